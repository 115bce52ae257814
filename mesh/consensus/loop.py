"""The loop that carries an epoch's agreement out: what is due at a block is done, what failed is tried at the next.

Every step looks first at what is there already (the chain, the files of an earlier run), so a node that is stopped at
any point goes on where it was and says nothing twice. Decisions are functions of `mesh.consensus.round`; when to take
them, and where their inputs come from, is in one file for each part a node plays:

    rounds      what is known about an epoch
    publishing  our inventory
    gathering   what others have
    proposing   the draft, and the proposal when we are elected
    attesting   judging what was proposed
    telling     what the subnet is told

Nothing but cancellation ends the loop.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import trio

from mesh.chain.client import Chain
from mesh.chain.epochs import Epochs
from mesh.chain.types import BlockRef, EpochPosition
from mesh.consensus.attesting import Attestor
from mesh.consensus.config import ConsensusConfig
from mesh.consensus.gathering import Gatherer
from mesh.consensus.proposing import Proposer
from mesh.consensus.publishing import Publisher, validator_peers
from mesh.consensus.round import Decision, Judgement, inventory_rule, refusal_rule
from mesh.consensus.rounds import Parts, Rounds
from mesh.consensus.service import ConsensusServicer
from mesh.consensus.storing import timeless_validator
from mesh.consensus.telling import Teller
from mesh.content import Content
from mesh.dht import DHT
from mesh.errors import ChainUnavailable, MeshError
from mesh.identity import AccountKey, PeerKey, is_signature
from mesh.kad.record import Record, Verify
from mesh.peer import PeerID
from mesh.subnet import Settlement, Subnet

__all__ = ["ConsensusConfig", "ConsensusLoop", "inventory_rule", "refusal_rule", "validator_peers"]

log = logging.getLogger(__name__)


class ConsensusLoop:
    """Publishes inventories, proposes when elected, attests what it recomputed, tells the subnet what was settled."""

    def __init__(
        self,
        *,
        chain: Chain,
        subnet_id: int,
        epochs: Epochs,
        dht: DHT,
        content: Content,
        subnet: Subnet,
        subnet_config: Any,
        identity: PeerKey,
        hotkey: AccountKey | None,
        state_dir: Path,
        settlements: trio.MemorySendChannel[Settlement],
        receiver: trio.MemoryReceiveChannel[Settlement] | None = None,
        config: ConsensusConfig | None = None,
        verify: Verify = is_signature,
    ) -> None:
        """`receiver` is the other end of `settlements` (or a clone): through it the oldest unread one is dropped when
        the subnet falls behind; without it the newest is. Without `hotkey` nothing is proposed or attested, the rest is
        done."""
        self.config = config or ConsensusConfig()
        self._parts = parts = Parts(
            chain=chain,
            subnet_id=subnet_id,
            epochs=epochs,
            dht=dht,
            content=content,
            subnet=subnet,
            identity=identity,
            hotkey=hotkey,
            files=state_dir / "consensus",
            config=self.config,
            validator=timeless_validator(
                subnet.rules(subnet_config), subnet_id=subnet_id, genesis=chain.genesis, verify=verify
            ),
        )
        self._rounds = Rounds(parts)
        self._gatherer = Gatherer(parts, self._rounds)
        self._publisher = Publisher(parts, self._gatherer)
        self._proposer = Proposer(parts, self._rounds, self._gatherer)
        self._attestor = Attestor(parts, self._rounds, self._gatherer)
        self._teller = Teller(parts, self._gatherer, self._attestor, settlements, receiver)
        self._serving = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started() once it watches. A chain that is away is waited for."""
        self._parts.files.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._serving:
            self._parts.content.rpc.serve(ConsensusServicer(self))
            self._serving = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._gatherer.watch)
            task_status.started()
            self._publisher.started_at = started_at = await self._next_position(None)
            nursery.start_soon(self._teller.resettle, started_at.epoch)
            # Tasks of their own: settling waits for what others serve, and nobody may make us late with our inventory
            # by that, nor with a draft.
            nursery.start_soon(self._at_every_block, self._tick_inventories)
            nursery.start_soon(self._at_every_block, self._tick_settling)
            nursery.start_soon(self._draft_at_epoch_ends)

    async def _at_every_block(self, tick: Callable[[EpochPosition], Awaitable[None]]) -> None:
        last: EpochPosition | None = None
        while True:
            last = await self._next_position(last)
            await tick(last)

    async def _next_position(self, last: EpochPosition | None) -> EpochPosition:
        """The newest position that is not `last`, once the subnet is active (before, its epochs have no numbers)."""
        epochs = self._parts.epochs
        while True:
            block = self._block()
            if block is not None and 0 < epochs.slot <= block.number and epochs.position() != last:
                return epochs.position()
            await epochs.wait_block()

    async def _draft_at_epoch_ends(self) -> None:
        epochs = self._parts.epochs
        async for epoch in epochs.each():
            await epochs.wait_until(epoch, epochs.windows.inventory)
            await self._attempt(f"draft of epoch {epoch}", functools.partial(self._proposer.draft, epoch))

    # -- what this node found --

    @property
    def judgements(self) -> Mapping[int, tuple[bytes, Judgement]]:
        """By epoch of the work: the digest of the blob that was judged (b"" where none was) and what was decided."""
        return {
            epoch: (found.judged, found.judgement)
            for epoch, found in sorted(self._rounds.known.items())
            if found.judgement is not None
        }

    def proofs(self, epoch: int) -> Mapping[PeerID, tuple[Record, Record]]:
        """By owner, the two inventories that prove that it signed two for this epoch, as far as this node saw both."""
        found = self._rounds.known.get(epoch)
        return found.book.proofs() if found else {}

    # -- what others may ask (service.Holdings) --

    def inventories_of(self, epoch: int, owners: Iterable[PeerID]) -> Iterable[Record]:
        """See service.Holdings."""
        found = self._rounds.known.get(epoch)
        return found.book.records(tuple(owners)) if found else ()

    def records_of(self, epoch: int, digests: Iterable[bytes]) -> Iterable[Record]:
        """See service.Holdings."""
        found = self._rounds.known.get(epoch)
        if found is None:
            return ()
        held = self._gatherer.held(found)
        return tuple(held[digest] for digest in digests if digest in held)

    # -- one block --

    async def _tick_inventories(self, position: EpochPosition) -> None:
        for epoch in (position.epoch, position.epoch - 1):
            if epoch >= 0:
                await self._attempt(
                    f"inventory of epoch {epoch}", functools.partial(self._publisher.inventory_due, epoch)
                )

    async def _tick_settling(self, position: EpochPosition) -> None:
        epoch = position.epoch
        self._rounds.forget(epoch)
        if epoch > 0:
            await self._attempt(f"settling epoch {epoch - 1}", lambda: self._settle(epoch - 1))
            await self._attempt("missed epochs", lambda: self._teller.note_missed(epoch - 1))
        self._teller.tell()

    async def _attempt(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """Run a step; what it raises on purpose is logged, and the next block tries again."""
        try:
            await step()
        except ChainUnavailable as error:
            log.warning("%s waits for the chain: %s", what, error)
        except MeshError as error:
            log.warning("%s: %s", what, error)

    def _block(self) -> BlockRef | None:
        try:
            return self._parts.epochs.block()
        except ChainUnavailable:
            return None

    async def _settle(self, epoch: int) -> None:
        """Propose, judge and attest the work of `epoch`, which is settled in the epoch after it."""
        parts = self._parts
        found = await self._gatherer.round(epoch)
        if not found.ctx.validators:
            return
        now = await parts.epochs.snapshot(epoch + 1)
        us = now.by_peer(parts.us)
        submission = await parts.chain.submission(parts.subnet_id, epoch + 1)
        if submission is None:
            if us is None or parts.hotkey is None:
                return
            if await parts.chain.elected(parts.subnet_id, epoch + 1) != us.node_id:
                return
            await self._proposer.propose(found, parts.hotkey)
            submission = await parts.chain.submission(parts.subnet_id, epoch + 1)
            if submission is None:
                return
        await self._attestor.weigh(found, submission)
        if found.judgement is None:
            return
        if found.settlement is not None:
            self._teller.ready(epoch, found.settlement)
        if us is None or us not in now.validators(epoch + 1) or us.node_id in submission.attests:
            return
        if found.judgement.decision is Decision.ATTEST:
            if parts.hotkey is not None:
                await self._attestor.attest(found, parts.hotkey)
        elif found.judgement.decision is Decision.REFUSE:
            await self._attestor.publish_refusal(found, submission)
