"""Membership: which class a peer has, from the subnet's nodes on chain.

There is one snapshot per subnet, read again at every slot block and when a block's events speak of nodes or stake. An
unknown peer costs at most one more reading, and few are made per second in all.

Without the chain nobody new gets in: members named a short while ago stay until `stale_after_s` + `grace_s` (90 s by
default) after the chain's last word, then they are refused too, and open streams with them (`wait_change`, `recheck`).
A member that leaves, or falls below the least stake, is refused once the block with that event is read: a few seconds
after it, and at the next slot block (one epoch) at the latest. With witnesses (mesh.auth.reading) only what all chains
say counts, and each one's events are heard: a URL that hides or invents nodes makes this node refuse, never admit.
"""

from __future__ import annotations

import enum
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import PeerClass
from mesh.auth.reading import Reading, TwoHistories, read_agreed
from mesh.chain.client import Chain
from mesh.chain.types import BlockRef, EpochPosition, Event, NodeClass, SubnetInfo, SubnetNode, SubnetState
from mesh.errors import ChainError, ChainsDisagree, ChainUnavailable, NotAuthorized
from mesh.peer import PeerID
from mesh.ratelimit import Rate, RateLimiter, TokenBucket

log = logging.getLogger(__name__)

PALLET: Final = "Network"
_TELLING: Final = ("Node", "Stake", "SubnetActivated", "SubnetDeactivated", "Bootnode", "Coldkey", "Hotkey")
"""Parts of event names after which the snapshot may be another."""


class MembershipConfig(BaseModel):
    """Who is a member, and how often the chain is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_class: NodeClass = Field(
        default=NodeClass.REGISTERED,
        description="least class of a member's node; not asked before the subnet is active",
    )
    min_stake_planck: int = Field(default=0, ge=0, description="least stake of a member's node")
    grace_s: float = Field(default=60.0, ge=0, le=3600, description="how long members stay when the chain is away")
    guest_open: bool = Field(default=False, description="whether strangers are guests; else they are public")
    guest_rate_per_s: float = Field(default=20.0, gt=0, description="calls of one guest in the long run")
    guest_burst: float = Field(default=40.0, ge=1, description="the same at once")
    max_guests: int = Field(default=4096, ge=1, description="guests whose rate is remembered")
    stale_after_s: float = Field(
        default=30.0, gt=0, description="without any answer of the chain for so long it counts as away"
    )
    probe_s: float = Field(
        default=10.0, gt=0, description="a chain without new blocks for so long is asked for its head"
    )
    timeout_s: float = Field(default=20.0, gt=0, description="what one reading of the nodes may take")
    unknown_life_s: float = Field(
        default=6.0, ge=0, description="how long an unknown peer is refused without asking again"
    )
    max_unknown: int = Field(default=4096, ge=1, description="unknown peers remembered")
    queries_per_s: float = Field(default=1.0, gt=0, description="readings caused by unknown peers, in the long run")
    query_burst: float = Field(default=3.0, ge=1, description="the same at once")
    max_lag_blocks: int = Field(
        default=3, ge=0, le=100, description="how far the chain and its witnesses may be apart (mesh.auth.reading)"
    )


class Standing(enum.Enum):
    """Why a node's peer is a member, or is not."""

    MEMBER = "member"
    CLASS = "class"
    STAKE = "stake"


@dataclass(frozen=True, slots=True)
class MembershipView:
    """One reading of the chain."""

    block: BlockRef
    standing: dict[PeerID, tuple[Standing, SubnetNode]]
    """Peer, bootnode and client ids of all registered nodes."""
    infrastructure: frozenset[PeerID]


def effective_class(node: SubnetNode, epoch: int) -> NodeClass:
    """The class that holds in `epoch`: a class begins at its start epoch, until then the one below it holds."""
    if node.start_epoch <= epoch or node.node_class is NodeClass.REGISTERED:
        return node.node_class
    return NodeClass(node.node_class - 1)


def standing_of(
    node: SubnetNode, *, epoch: int, state: SubnetState, min_class: NodeClass, min_stake_planck: int
) -> Standing:
    """Whether a registered node counts. Before the subnet is active its nodes gather, so no class is asked for."""
    if state is not SubnetState.REGISTERED and effective_class(node, epoch) < min_class:
        return Standing.CLASS
    if node.stake_planck < min_stake_planck:
        return Standing.STAKE
    return Standing.MEMBER


class MembershipAuthorizer:
    """The Authorizer of a node on a chain (mesh.auth.authorizer)."""

    def __init__(
        self,
        chain: Chain,
        subnet_id: int,
        *,
        config: MembershipConfig | None = None,
        infrastructure: Sequence[PeerID] = (),
        witnesses: Sequence[Chain] = (),
    ) -> None:
        """`infrastructure`: bootnodes of the configuration, besides those listed on chain. `witnesses`: the same chain
        over other URLs, run by whoever made them; what does not agree with all of them does not count."""
        self.config = config or MembershipConfig()
        self._chain = chain
        self._chains = (chain, *witnesses)
        self._subnet_id = subnet_id
        self._configured = frozenset(infrastructure)
        self._view: MembershipView | None = None
        self._info: SubnetInfo | None = None
        self._proven_at = float("-inf")
        """When the chain last said something from which the snapshot is known to hold."""
        self._seen = 0
        """The newest block whose events are in the snapshot."""
        self._reading = trio.Lock()
        self._readings = 0
        self._disagreement = ""
        """What the chains said differently in the last reading, "" when they agreed."""
        self._changes = 0
        self._changed = trio.Event()
        self._unknown: OrderedDict[PeerID, float] = OrderedDict()
        self._queries = TokenBucket(rate_per_s=self.config.queries_per_s, burst=self.config.query_burst)
        self._guests: RateLimiter[PeerID] = RateLimiter(
            Rate(self.config.guest_rate_per_s, self.config.guest_burst), max_keys=self.config.max_guests
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the snapshot fresh until cancelled; started() after the first reading was tried (a chain that is away
        at the start leaves everybody refused until it answers)."""
        await self._try_refresh("start")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._probe)
            nursery.start_soon(self._end_grace)
            task_status.started()

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer. As `classify`, and a guest's calls are counted."""
        found = await self.classify(peer, method, least)
        if found is PeerClass.GUEST and not self._guests.take(peer, trio.current_time()):
            raise NotAuthorized(
                "rate-limited",
                f"{peer} may call {self.config.guest_rate_per_s:g} methods a second as a guest: register a node to "
                f"call more",
                retry_after_s=1 / self.config.guest_rate_per_s,
            )
        return found

    async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer. Asks the chain at most once, and only for a peer the snapshot does not know."""
        found = self.peer_class(peer)
        if found < least and least is not PeerClass.PUBLIC and self._may_ask(peer, found, least):
            await self._ask_about(peer)
            found = self.peer_class(peer)
        if found < least:
            raise self._refusal(peer, method, least)
        return found

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        """See Authorizer: `peer_class`, held against `least`."""
        found = self.peer_class(peer)
        if found < least:
            raise self._refusal(peer, "this", least)
        return found

    def is_member(self, peer: PeerID) -> bool:
        """Whether the peer is a member as far as the snapshot knows; never asks the chain."""
        return self.peer_class(peer) is PeerClass.MEMBER

    def peer_class(self, peer: PeerID) -> PeerClass:
        """The peer's class as far as the snapshot knows; never asks the chain."""
        view = self._view
        if view is not None and self._in_grace() and view.standing.get(peer, (None,))[0] is Standing.MEMBER:
            return PeerClass.MEMBER
        if peer in self._configured or (view is not None and peer in view.infrastructure):
            return PeerClass.INFRASTRUCTURE  # routing only: what this lets in does not depend on stake
        return PeerClass.GUEST if self.config.guest_open else PeerClass.PUBLIC

    @property
    def chain_away(self) -> bool:
        """Whether the chain has not answered for `stale_after_s`."""
        return trio.current_time() > self._proven_at + self.config.stale_after_s

    def members(self) -> tuple[PeerID, ...]:
        """Peers that are members now, sorted."""
        if self._view is None or not self._in_grace():
            return ()
        return tuple(sorted(p for p, (standing, _) in self._view.standing.items() if standing is Standing.MEMBER))

    @property
    def changes(self) -> int:
        """How often the snapshot was read, the grace ended, or the chain came back after it."""
        return self._changes

    async def wait_change(self, seen: int | None = None) -> int:
        """See Authorizer."""
        seen = self._changes if seen is None else seen
        while self._changes <= seen:
            await self._changed.wait()
        return self._changes

    def _change(self) -> None:
        self._changes += 1
        event, self._changed = self._changed, trio.Event()
        event.set()

    # -- reading the chain --

    async def refresh(self, *, at_least: int = 0) -> None:
        """Read the snapshot again, unless someone just did and it is not older than block `at_least`.
        Raises ChainError."""
        before = self._readings
        async with self._reading:
            if self._readings != before and self._seen >= at_least:
                return
            with trio.move_on_after(self.config.timeout_s) as scope:
                reading = await self._read()
            if scope.cancelled_caught:
                raise ChainUnavailable(
                    f"the chain took more than {self.config.timeout_s:g} s to list the subnet's nodes"
                )
            head, info = reading.block, reading.info
            epoch = self._position(head, info).epoch
            standing: dict[PeerID, tuple[Standing, SubnetNode]] = {}
            for node in reading.snapshot.nodes:
                verdict = standing_of(
                    node,
                    epoch=epoch,
                    state=info.state,
                    min_class=self.config.min_class,
                    min_stake_planck=self.config.min_stake_planck,
                )
                for peer in (node.peer_id, node.bootnode_peer_id, node.client_peer_id):
                    if peer is not None and standing.get(peer, (None,))[0] is not Standing.MEMBER:
                        standing[peer] = (verdict, node)
            self._view = MembershipView(head, standing, reading.bootnodes)
            self._info = info
            self._seen = max(self._seen, head.number)
            self._readings += 1
            self._proven()
            for peer in standing:
                self._unknown.pop(peer, None)
            self._change()

    async def _read(self) -> Reading:
        """What all chains say. Two histories end what was believed of any of them at once; a fork that may settle only
        keeps the reading from counting, and the grace runs."""
        try:
            reading = await read_agreed(self._chains, self._subnet_id, max_lag_blocks=self.config.max_lag_blocks)
        except ChainsDisagree as error:
            self._disagreement = str(error)
            if isinstance(error, TwoHistories) and self._view is not None:
                self._view = None
                self._change()
            raise
        known = self._view.block.number if self._view is not None else 0
        if self._is_witnessed and reading.block.number < known:
            raise ChainUnavailable(
                f"the chain URLs agree on block {reading.block.number} only, which is older than known"
            )
        self._disagreement = ""
        return reading

    @property
    def _is_witnessed(self) -> bool:
        return len(self._chains) > 1

    async def _try_refresh(self, why: str, *, at_least: int = 0) -> None:
        try:
            await self.refresh(at_least=at_least)
        except ChainError as error:
            log.warning("membership not read (%s): %s", why, error)

    async def _follow(self) -> None:
        async for head in self._chain.heads():
            if self._view is not None and head == self._view.block and not self._disagreement:
                self._proven()
                continue
            # `_seen` stays behind when a reading fails, so the next block tries again.
            is_next = head.number == self._seen + 1 and not self._disagreement and self._view is not None
            why = await self._news(head) if is_next else "blocks were missed"
            if why:
                await self._try_refresh(why, at_least=head.number)
            else:
                self._seen = head.number
                self._proven()

    async def _news(self, head: BlockRef) -> str:
        """Why the snapshot must be read again after this block; "" when it need not."""
        if self._info is None:
            return "first reading"
        position = self._position(head, self._info)
        if self._info.slot is not None and head.number >= self._info.slot and position.offset == 0:
            return f"slot block of epoch {position.epoch}"
        events: list[Event] = []
        try:
            with trio.move_on_after(self.config.timeout_s) as scope:
                for chain in self._chains:  # one that does not know this block is a reason, too
                    events += await chain.events(head.hash)
        except ChainError as error:
            return f"events of block {head.number}: {error}"
        if scope.cancelled_caught:
            return f"events of block {head.number}: no answer"
        for event in events:
            if event.pallet != PALLET or not any(part in event.name for part in _TELLING):
                continue
            subnet = event.fields.get("subnet_id", event.fields.get("0"))
            if subnet in (None, self._subnet_id) or not isinstance(subnet, int):
                return f"event {event.name}"
        return ""

    async def _probe(self) -> None:
        """A chain without new blocks may be idle or away: ask it."""
        probed_at = trio.current_time()
        while True:
            await trio.sleep_until(max(self._proven_at, probed_at) + self.config.probe_s)
            if trio.current_time() < self._proven_at + self.config.probe_s:
                continue
            probed_at = trio.current_time()
            if self._view is None or self._is_witnessed:  # an idle chain may be one whose URL stopped telling
                await self._try_refresh("no news")
                continue
            try:
                with trio.move_on_after(self.config.timeout_s) as scope:
                    head = await self._chain.head()
                if scope.cancelled_caught:
                    continue
                if head.number > self._seen:  # it goes on, but its news do not reach us
                    await self._try_refresh("blocks were missed")
                else:
                    self._proven()
            except ChainError as error:
                log.debug("chain probe: %s", error)

    async def _end_grace(self) -> None:
        """The end of the grace changes who is a member, although no block comes to say so."""
        while True:
            if self._in_grace():
                await trio.sleep_until(self._grace_end)
                continue
            self._change()
            await self.wait_change()  # a reading, or the chain is back (_proven)

    def _proven(self) -> None:
        was_over = not self._in_grace()
        self._proven_at = trio.current_time()
        if was_over:
            self._change()

    @property
    def _grace_end(self) -> float:
        return self._proven_at + self.config.stale_after_s + self.config.grace_s

    def _in_grace(self) -> bool:
        return trio.current_time() < self._grace_end

    def _position(self, head: BlockRef, info: SubnetInfo) -> EpochPosition:
        length = self._chain.epoch_length
        return EpochPosition.of(head.number, slot=info.slot if info.slot is not None else head.number, length=length)

    # -- unknown peers --

    def _may_ask(self, peer: PeerID, found: PeerClass, least: PeerClass) -> bool:
        """Whether a reading might raise the peer's class, and may be made now. Counts it as made."""
        if found is PeerClass.INFRASTRUCTURE and least <= PeerClass.INFRASTRUCTURE:
            return False
        if self._view is not None and peer in self._view.standing and not self.chain_away:
            return False  # known and below: events tell when that changes
        now = trio.current_time()
        refused_at = self._unknown.get(peer)
        if refused_at is not None and now < refused_at + self.config.unknown_life_s:
            return False
        return self._queries.take(now)

    async def _ask_about(self, peer: PeerID) -> None:
        await self._try_refresh(f"unknown peer {peer.short}")
        if self._view is None or peer not in self._view.standing:
            self._unknown[peer] = trio.current_time()
            self._unknown.move_to_end(peer)
            while len(self._unknown) > self.config.max_unknown:
                self._unknown.popitem(last=False)

    def _refusal(self, peer: PeerID, method: str, least: PeerClass) -> NotAuthorized:
        wants = f"{method} is for {least.name.lower()}s"
        if self._disagreement:
            return NotAuthorized(
                "chain-disagrees",
                f"{wants}, and whether {peer} is one is not known: the chain URLs of this node do not agree "
                f"({self._disagreement}). Try later.",
            )
        if self._view is None or self.chain_away:
            return NotAuthorized(
                "chain-unreachable",
                f"{wants}, and whether {peer} is one cannot be asked: this node's chain does not answer. Try later.",
            )
        standing, node = self._view.standing.get(peer, (None, None))
        if standing is Standing.CLASS and node is not None:
            return NotAuthorized(
                "class-too-low",
                f"{wants}, and node {node.node_id} of {peer} is {node.node_class.name.lower()} from epoch "
                f"{node.start_epoch}; subnet {self._subnet_id} asks for {self.config.min_class.name.lower()} here.",
            )
        if standing is Standing.STAKE and node is not None:
            return NotAuthorized(
                "class-too-low",
                f"{wants}, and node {node.node_id} of {peer} has {node.stake_planck} planck of stake; "
                f"{self.config.min_stake_planck} are asked for here.",
            )
        return NotAuthorized(
            "not-registered",
            f"{wants}, and {peer} is no node of subnet {self._subnet_id} as of block {self._view.block.number}: "
            f"register it, or wait a few seconds if it was registered just now.",
        )
