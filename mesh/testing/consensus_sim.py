"""Whole epochs of consensus with outlaws among the validators, in virtual time, checked against what must hold.

    found = simulate_consensus(Scenario(nodes=7, outlaws={3: Outlaw(proposing=Inflates())}, proposers=(3,)), seed=1)
    assert not found.violations()

Honest nodes run the product's ConsensusLoop, unchanged, on a FakeChain. What carries their messages is chosen by
`Carrier`: POST (mesh.testing.postoffice: the product's stores and rules, but no streams, RPC or routing; cheap enough
for hundreds of seeds) or NETWORK (SimNetwork, Rpc, DHT and Content as a node has them). Same scenario and seed, same
run.

A subnet of one's own takes the place of the built-in one (`Scenario.subnet`, with `Scenario.make` to make its records).
Subnets that need to compute to earn are simulated whole, by mesh.testing.village.

What is promised holds while outlaws and honest nodes in trouble (an outage, a restart) are at most f = (n-1)//3.
"""

from __future__ import annotations

import enum
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, cast

import trio
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import Everyone
from mesh.chain.epochs import Epochs
from mesh.chain.types import ONE, Score, Submission, SubnetNode, first_block
from mesh.chain.windows import Windows
from mesh.clock import SimClock
from mesh.consensus.loop import ConsensusConfig, ConsensusLoop, inventory_rule, refusal_rule
from mesh.consensus.round import Decision, Judgement, decode_args, decode_blob
from mesh.content import Content, inline
from mesh.dht import DHT, KadServicer
from mesh.errors import ConsensusError, NetworkError, RecordRejected, RemoteProtocolError, RpcError
from mesh.identity import AccountKey, KeyType, PeerKey, is_signature
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, NamespaceRule, pack_value, window
from mesh.kad.wire import Role, StoreRequest
from mesh.peer import PeerID
from mesh.rpc.rpc import Rpc
from mesh.subnet import Evidence, Settlement, Subnet
from mesh.testing.adversaries.consensus import (
    AddsRecords,
    ClaimsThereWasNothing,
    Floods,
    Inflates,
    LeavesOutRecords,
    LeavesOutScore,
    Listing,
    Lists,
    ListsLate,
    ListsNot,
    ListsPhantoms,
    ListsTwice,
    Outlaw,
    PicksInventories,
    Proposes,
    ProposesGarbage,
    ProposesLate,
    ProposesNot,
    Proposing,
    Right,
    Standpoint,
    TakesTooFew,
    VotesBlindly,
    VotesHonestly,
    VotesNot,
    Voting,
    Withholds,
    Work,
    Works,
    WorksAtTheEdge,
    WorksBackdated,
    WorksForSome,
    WorksNot,
    WorksTwice,
)  # fmt: skip
from mesh.testing.chain import (
    ABSENT,
    ATTESTED_REJECTED,
    BASE_REWARD_PLANCK,
    EMISSION_PLANCK,
    LEFT_OUT,
    MAX_SLASH_PLANCK,
    MIN_ATTESTATION,
    NOT_ATTESTED,
    REJECTED,
    SLASH,
    SUPER_MAJORITY,
    FakeChain,
    Ledger,
)
from mesh.testing.network import SimNetwork, SimNode
from mesh.testing.postoffice import Desk, PostOffice
from mesh.testing.simulation import run_sim

T = TypeVar("T")

BLOCK_S: Final = 6.0
STAKE_PLANCK: Final = 200 * ONE
FUNDS_PLANCK: Final = 1000 * ONE
_FIRST_BLOCK: Final = 3
_NAMESPACE: Final = "tally"
_MEMORY: Final = "/dev/shm"


# --- the subnet ---------------------------------------------------------------------------------------------------


class Piece(BaseModel):
    """One piece of work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str


class TallyConfig(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TallySubnet:
    """Work is writing records; a node's score is for how many places it has any in the evidence."""

    name: ClassVar[str] = "tally"
    score_id: ClassVar[str] = "tally/1.0.0"
    Config: ClassVar[type[BaseModel]] = TallyConfig
    jobs: ClassVar[Mapping[str, str]] = {}

    def rules(self, config: Any) -> Sequence[NamespaceRule]:
        """See mesh.subnet.Subnet."""
        return [
            NamespaceRule(
                _NAMESPACE,
                schema=Piece,
                max_value_bytes=256,
                max_ttl_s=86_400.0,
                predicate=window(0, 18),
                is_evidence=True,
            )
        ]

    def evidence_keys(self, epoch: int) -> Sequence[bytes]:
        """See mesh.subnet.Subnet."""
        return [_key(epoch)]

    def servicers(self, ctx: Any, config: Any) -> Sequence[Any]:
        """None."""
        return []

    async def run(self, ctx: Any, config: Any, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Nothing: the simulation writes."""
        task_status.started()

    def score(self, evidence: Evidence) -> Sequence[Score]:
        """See mesh.subnet.Subnet."""
        ids = {node.peer_id: node.node_id for node in evidence.snapshot.nodes}
        places: dict[int, set[bytes]] = {}
        for record in evidence.records:
            places.setdefault(ids[record.owner], set()).add(record.subkey)
        return [Score(node_id, len(places[node_id])) for node_id in sorted(places)]


Make = Callable[[int, int], tuple[bytes, bytes, bytes]]
"""Key, subkey and value of a piece of work, of an epoch and a number: records a subnet's rules take in the first 18
blocks of an epoch of 20. The same number is the same place, and a number a thousand higher another value for it."""


def _key(epoch: int) -> bytes:
    return f"{_NAMESPACE}/{epoch}".encode()


def piece(epoch: int, number: int) -> tuple[bytes, bytes, bytes]:
    """Key, subkey and value of a piece of work."""
    return _key(epoch), b"%d" % (number % 1000), pack_value(Piece(text=f"{epoch}/{number}"))


# --- scenarios ----------------------------------------------------------------------------------------------------


class Carrier(enum.Enum):
    """What carries messages."""

    POST = enum.auto()
    NETWORK = enum.auto()


@dataclass(frozen=True, slots=True)
class Outage:
    """A node does not reach the chain for some blocks, counted from the first block of epoch 0."""

    node_id: int
    first: int
    blocks: int


class Loss(enum.Enum):
    """What a restarted node has lost."""

    NOTHING = enum.auto()
    RECORDS = enum.auto()
    DISK = enum.auto()
    """Records, blobs, and the inventory it wrote down."""


@dataclass(frozen=True, slots=True)
class Restart:
    """A node is stopped at a block and started again some blocks later."""

    node_id: int
    at: int
    blocks: int = 1
    loss: Loss = Loss.NOTHING


@dataclass(frozen=True)
class Scenario:
    """Who does what. Nodes have the ids 1 to `nodes`; all are validators."""

    nodes: int = 7
    outlaws: Mapping[int, Outlaw] = field(default_factory=dict)
    proposers: tuple[int, ...] = (1,)
    """Who is elected in epoch 1, 2, …: for the work of epoch 0, 1, …"""
    outages: tuple[Outage, ...] = ()
    restarts: tuple[Restart, ...] = ()
    subnet: Subnet = field(default_factory=lambda: cast(Subnet, TallySubnet()))
    make: Make = piece
    """Makes a piece of work for it."""
    length: int = 20
    """Blocks of an epoch."""
    start: int = 0
    """Block of epoch 0 at which the nodes are started. What happens before is cheap, and little."""
    delay_s: float = 1.0
    """The longest a message takes by post; the latency of the network."""
    loss: float = 0.0
    """Messages lost by post; streams that break in the network."""
    name: str = ""

    @property
    def faulty(self) -> frozenset[int]:
        """Nodes that are not both honest and well."""
        return frozenset(
            (*self.outlaws, *(each.node_id for each in self.outages), *(each.node_id for each in self.restarts))
        )

    @property
    def is_bounded(self) -> bool:
        """Whether these are no more than the protocol stands."""
        return len(self.faulty) <= (self.nodes - 1) // 3


WORKS: Final[tuple[Work, ...]] = (
    WorksNot(), WorksForSome(), WorksAtTheEdge(), WorksBackdated(), WorksTwice(), Floods(),
)  # fmt: skip
LISTINGS: Final[tuple[Listing, ...]] = (
    ListsNot(), ListsTwice(), ListsTwice(seen_by_all=True), ListsPhantoms(), ListsLate(),
)  # fmt: skip
PROPOSALS: Final[tuple[Proposing, ...]] = (
    ProposesNot(), PicksInventories(), ProposesLate(), Inflates(), LeavesOutScore(), LeavesOutRecords(), AddsRecords(),
    TakesTooFew(), ProposesGarbage(), Withholds(), ClaimsThereWasNothing(),
)  # fmt: skip
VOTES: Final[tuple[Voting, ...]] = (VotesBlindly(), VotesNot())


def drawn(seed: int, *, nodes: int = 7) -> Scenario:
    """A scenario drawn by seed: up to f nodes that are outlaws, each dishonest in any of the four ways, or in trouble
    (the chain out of reach for up to 60 % of an epoch, a restart, perhaps with an empty store); messages that are slow
    or lost; an outlaw elected about as often as an honest node."""
    rng = random.Random(seed)
    most = (nodes - 1) // 3
    faulty = rng.sample(range(1, nodes + 1), rng.choice((most, most, rng.randint(0, most))))
    count = rng.randint(0, len(faulty))

    def habit(honest: T, others: Sequence[T]) -> T:
        return rng.choice(others) if rng.random() < 0.6 else honest

    outlaws = {
        node_id: Outlaw(
            work=habit(Works(), WORKS),
            listing=habit(Lists(), LISTINGS),
            proposing=habit(Proposes(), PROPOSALS),
            voting=habit(VotesHonestly(), VOTES),
        )
        for node_id in faulty[:count]
    }
    outages: list[Outage] = []
    restarts: list[Restart] = []
    for node_id in faulty[count:]:
        if rng.random() < 0.6:
            outages.append(Outage(node_id, rng.randint(6, 35), rng.randint(1, 12)))
        else:
            restarts.append(Restart(node_id, rng.randint(9, 34), rng.randint(1, 4), rng.choice(list(Loss))))
    honest = [node_id for node_id in range(1, nodes + 1) if node_id not in outlaws]
    proposer = rng.choice(sorted(outlaws)) if outlaws and rng.random() < 0.6 else rng.choice(honest)
    return Scenario(
        nodes=nodes,
        outlaws=outlaws,
        proposers=(proposer,),
        start=8,
        outages=tuple(outages),
        restarts=tuple(restarts),
        delay_s=rng.choice((0.2, 1.0, 3.0)),
        loss=rng.choice((0.0, 0.02, 0.1)),
        name=f"drawn by {seed}",
    )


# --- what came of it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """One epoch of work, after its settlement."""

    work: int
    proposer: int
    submission: Submission | None
    judgements: Mapping[int, tuple[bytes, Judgement]]
    """Of honest nodes, by node id: the blob's digest and what they decided."""
    seen: Mapping[int, frozenset[bytes]]
    """By owner: digests of the records that every honest node that was well held before the inventories."""
    evidence: frozenset[bytes] | None
    """Digests of the records in the proposal's blob; None where no honest node has it."""
    equivocators: frozenset[int]
    """Node ids of which some honest node has two inventories."""
    before: Mapping[int, SubnetNode]
    after: Mapping[int, SubnetNode]
    """Nodes in the block before the settlement, and in its block."""

    @property
    def seen_by_all(self) -> dict[int, int]:
        """How many records of each node these are."""
        return {node_id: len(digests) for node_id, digests in self.seen.items()}

    @property
    def ratio(self) -> int:
        """Part of the validators that attested, of ONE."""
        return 0 if self.submission is None else len(self.submission.attests) * ONE // len(self.before)

    @property
    def is_accepted(self) -> bool:
        """Whether the chain pays."""
        return self.submission is not None and self.ratio >= MIN_ATTESTATION

    def gained(self, node_id: int) -> int:
        """Planck of stake a node won, or lost."""
        return self.after[node_id].stake_planck - self.before[node_id].stake_planck

    def due(self, node_id: int) -> tuple[int, int]:
        """What the chain's rules make of the submission for a node: stake won or lost, and its reputation."""
        before = self.before[node_id]
        stake, reputation = 0, before.reputation

        def lower(part: int) -> None:
            nonlocal reputation
            reputation = reputation * (ONE - part) // ONE

        if self.submission is None:
            if node_id == self.proposer:
                lower(ABSENT)
            return 0, reputation
        attested = node_id in self.submission.attests
        if not self.is_accepted:
            shortfall = ONE - self.ratio * ONE // MIN_ATTESTATION
            if node_id == self.proposer:
                stake -= min(before.stake_planck * SLASH // ONE * shortfall // ONE, MAX_SLASH_PLANCK)
                lower(REJECTED * shortfall // ONE)
            if attested:
                lower(ATTESTED_REJECTED * shortfall // ONE)
            return stake, reputation
        scores = {score.node_id: score.score for score in self.submission.scores}
        if node_id == self.proposer:
            stake += BASE_REWARD_PLANCK
        total = sum(scores.values())
        if total and node_id not in scores:
            lower(LEFT_OUT)
        elif total:
            stake += EMISSION_PLANCK * scores[node_id] // total
            if not attested and self.ratio >= SUPER_MAJORITY:
                lower(NOT_ATTESTED)
        return stake, reputation


@dataclass(frozen=True)
class Found:
    """A run, and what is wrong with it."""

    scenario: Scenario
    epochs: tuple[Epoch, ...]
    ledger: Ledger
    messages: int
    """Delivered by post."""
    fetched_bytes: int
    """Of blobs, by post."""

    @property
    def head(self) -> bytes:
        """Hash of the last block: equal for equal runs."""
        return self.ledger.best.ref.hash

    def violations(self) -> list[str]:
        """Everything that must hold and does not, as sentences; none in a sound run."""
        found = []
        for epoch in self.epochs:
            found += [f"epoch {epoch.work}: {text}" for text in (*self._agreement(epoch), *self._settlement(epoch))]
            if self.scenario.is_bounded:
                found += [f"epoch {epoch.work}: {text}" for text in self._promises(epoch)]
        if self.ledger.issuance() != self.ledger.minted.total() - self.ledger.burned.total():
            found.append("planck were made or lost outside the books")
        return found

    def _honest(self) -> list[int]:
        return [n for n in range(1, self.scenario.nodes + 1) if n not in self.scenario.outlaws]

    def _agreement(self, epoch: Epoch) -> list[str]:
        """Holds however many are faulty."""
        found = []
        by_blob: dict[bytes, set[tuple[Decision, str]]] = {}
        for digest, judgement in epoch.judgements.values():
            if digest:
                by_blob.setdefault(digest, set()).add((judgement.decision, judgement.reason))
        found += [f"honest nodes disagree about one blob: {said}" for said in by_blob.values() if len(said) > 1]
        attests = epoch.submission.attests if epoch.submission else ()
        for node_id in self._honest():
            if node_id in attests and node_id in epoch.judgements:
                judgement = epoch.judgements[node_id][1]
                if judgement.decision is not Decision.ATTEST:
                    found.append(f"honest node {node_id} attested what it judged {judgement}")
        found += [f"honest node {n} signed two inventories" for n in epoch.equivocators if n in self._honest()]
        outlaw = self.scenario.outlaws.get(epoch.proposer)
        if outlaw is not None and outlaw.proposing.right is Right.REFUSED:
            found += [f"honest node {n} attested a lie" for n in self._honest() if n in attests]
        return found

    def _settlement(self, epoch: Epoch) -> list[str]:
        """Stakes and reputations are what the rules make of the submission."""
        found = []
        for node_id in sorted(epoch.before):
            if node_id not in epoch.after:
                found.append(f"node {node_id} is gone")
                continue
            due = epoch.due(node_id)
            got = epoch.gained(node_id), epoch.after[node_id].reputation
            if got != due:
                found.append(f"node {node_id} got {got} where {due} was due")
        return found

    def _promises(self, epoch: Epoch) -> list[str]:
        """Holds while at most f are faulty."""
        found = []
        outlaw = self.scenario.outlaws.get(epoch.proposer)
        well = [n for n in self._honest() if n not in self.scenario.faulty]
        attests = epoch.submission.attests if epoch.submission else ()
        if outlaw is None:
            if epoch.gained(epoch.proposer) < 0:
                found.append("an honest proposer was slashed")
            if epoch.proposer in well and epoch.submission is None:
                found.append("an honest proposer proposed nothing")
            if epoch.submission is not None:
                found += self._paid(epoch, well)
        if outlaw is not None and outlaw.proposing.right is Right.REFUSED and epoch.submission is not None:
            if epoch.is_accepted or epoch.gained(epoch.proposer) >= 0:
                found.append("a lie was not slashed")
            found += [f"a lie paid node {n}" for n in epoch.before if epoch.gained(n) > 0]
        if (outlaw is None or outlaw.proposing.right is Right.ATTESTED) and epoch.submission is not None:
            found += [f"honest node {n} did not attest what is right" for n in well if n not in attests]
        return found

    def _paid(self, epoch: Epoch, well: Sequence[int]) -> list[str]:
        """What all saw of honest nodes' work is evidence, and is paid where the score is known to be by records."""
        seen = {node_id: epoch.seen.get(node_id, frozenset()) for node_id in well}
        found = []
        if epoch.evidence is not None:
            found += [f"a record of node {n} that all saw is no evidence" for n in well if seen[n] - epoch.evidence]
        elif any(seen.values()):
            found.append("what all saw is no evidence: there is none")
        if isinstance(self.scenario.subnet, TallySubnet) and epoch.submission is not None:
            paid = {score.node_id: score.score for score in epoch.submission.scores}
            found += [
                f"{len(seen[n])} records of node {n} were seen by all, and {paid.get(n, 0)} are paid"
                for n in well
                if paid.get(n, 0) < len(seen[n])
            ]
        return found


# --- running it ---------------------------------------------------------------------------------------------------


def simulate_consensus(scenario: Scenario, *, seed: int, carrier: Carrier = Carrier.POST) -> Found:
    """Run a scenario until the last of its proposals is settled. Raises what any part raises. Not reentrant."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)  # refusals and outages are what this is about
    try:
        # Nodes flush their inventories to disk before they send them: in memory, where there is such a place.
        place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="mesh-consensus-", dir=place) as directory:
            return run_sim(lambda: _Town(scenario, seed, carrier, Path(directory)).run(), seed)
    finally:
        logging.disable(level)


class _Elections:
    """Elects in epoch e who the scenario says, for the work of e - 1."""

    def __init__(self, proposers: Sequence[int]) -> None:
        self._next = iter((proposers[0], *proposers))

    def choice(self, electable: Sequence[int]) -> int:
        wanted = next(self._next, electable[0])
        return wanted if wanted in electable else electable[0]


class _Town:
    def __init__(self, scenario: Scenario, seed: int, carrier: Carrier, directory: Path) -> None:
        self.scenario, self.carrier, self.directory = scenario, carrier, directory
        self.rng = random.Random(seed)
        self.clock = SimClock()
        self.keys = [PeerKey.from_secret(KeyType.ED25519, self.rng.randbytes(32)) for _ in range(scenario.nodes)]
        self.hotkeys = [AccountKey.from_private(self.rng.randbytes(32)) for _ in range(scenario.nodes)]
        self.coldkeys = [AccountKey.from_private(self.rng.randbytes(32)) for _ in range(scenario.nodes)]
        accounts = [key.account_id for key in (*self.hotkeys, *self.coldkeys)]
        self.ledger = Ledger(seed=seed, epoch_length=scenario.length, fund=dict.fromkeys(accounts, FUNDS_PLANCK))
        self.ledger.rng = cast(Any, _Elections(scenario.proposers))
        self.subnet = scenario.subnet
        self.subnet_id = 0
        self.office = PostOffice(rng=random.Random(seed), delay_s=scenario.delay_s, loss=scenario.loss)
        self.network = SimNetwork(seed=seed, latency_s=scenario.delay_s / 10, loss=scenario.loss)
        self.members: dict[int, _Member] = {}
        self.seen: dict[int, dict[int, frozenset[bytes]]] = {}

    async def run(self) -> Found:
        scenario = self.scenario
        works = len(scenario.proposers)
        chain = FakeChain(self.ledger, block_time_s=BLOCK_S)
        async with trio.open_nursery() as nursery:
            await self._found(chain)
            chain.new_blocks(until=_FIRST_BLOCK + scenario.start)
            for node_id in range(1, scenario.nodes + 1):
                self.members[node_id] = _Member(self, node_id)
            for member in self.members.values():
                await nursery.start(member.run)
            for member in self.members.values():
                member.act(nursery)
            await nursery.start(chain.run)
            for outage in scenario.outages:
                nursery.start_soon(self._outage, outage)
            for restart in scenario.restarts:
                nursery.start_soon(self._restart, restart, nursery)
            for work in range(works):
                await self._until(work * scenario.length + Windows.of(scenario.length).inventory - 1)
                await trio.sleep(BLOCK_S / 2)
                self.seen[work] = self._seen_by_all(work)
            await self._until((works + 1) * scenario.length)
            found = self._found_out()
            nursery.cancel_scope.cancel()
        return found

    async def _found(self, chain: FakeChain) -> None:
        """The subnet is active from block 3 on, which is the first of its epoch 0."""
        bootnode = str(self.keys[0].peer_id).encode()
        data = {
            "name": b"tally", "repo": b"", "description": b"", "misc": b"", "min_stake": 100 * ONE,
            "max_stake": 900 * ONE, "delegate_stake_percentage": ONE // 10, "initial_coldkeys": {},
            "bootnodes": {bootnode: b""},
        }  # fmt: skip
        owner = self.coldkeys[0]
        await self._block(lambda: chain.submit("register_subnet", {"max_cost": 10**21, "subnet_data": data}, owner))
        (self.subnet_id,) = self.ledger.subnets
        await self._block(*(self._registration(chain, number) for number in range(self.scenario.nodes)))
        await self._block(lambda: chain.submit("activate_subnet", {"subnet_id": self.subnet_id}, owner))
        assert self.ledger.number == _FIRST_BLOCK

    def _registration(self, chain: FakeChain, number: int) -> Callable[[], Awaitable[Any]]:
        call = {
            "subnet_id": self.subnet_id, "hotkey": self.hotkeys[number].account_id,
            "peer_info": {"peer_id": str(self.keys[number].peer_id).encode(), "multiaddr": None},
            "delegate_reward_rate": 0, "stake_to_be_added": STAKE_PLANCK, "max_burn_amount": 10**20,
        }  # fmt: skip
        return lambda: chain.submit("register_subnet_node", call, self.coldkeys[number])

    async def _block(self, *calls: Callable[[], Awaitable[Any]]) -> None:
        async with trio.open_nursery() as nursery:
            for number, call in enumerate(calls):
                nursery.start_soon(call)
                while len(self.ledger.pool) <= number:
                    await self.ledger.submitted.wait()
            self.ledger.new_block()

    async def _until(self, offset: int) -> None:
        """Wait for a block, counted from the first of epoch 0."""
        while self.ledger.number < _FIRST_BLOCK + offset:
            await self.ledger.moved.wait()

    async def _outage(self, outage: Outage) -> None:
        chain = self.members[outage.node_id].chain
        await self._until(outage.first)
        chain.away = True
        await self._until(outage.first + outage.blocks)
        chain.away = False

    async def _restart(self, restart: Restart, nursery: trio.Nursery) -> None:
        member = self.members[restart.node_id]
        await self._until(restart.at)
        await trio.sleep(self.rng.uniform(0.0, BLOCK_S))
        await member.stop()
        await self._until(restart.at + restart.blocks)
        if restart.loss is Loss.DISK and member.directory.exists():
            shutil.rmtree(member.directory)
        fresh = self.members[restart.node_id] = _Member(self, restart.node_id, old=member, loss=restart.loss)
        await nursery.start(fresh.run)
        fresh.act(nursery)

    def _seen_by_all(self, work: int) -> dict[int, frozenset[bytes]]:
        """Records that every honest node that is well holds, by owner."""
        held = [
            {record.digest: record for key in self.subnet.evidence_keys(work) for record in member.dht.local(key)}
            for node_id, member in self.members.items()
            if node_id not in self.scenario.faulty
        ]
        ids = {key.peer_id: number for number, key in enumerate(self.keys, start=1)}
        found: dict[int, set[bytes]] = {}
        for digest, record in held[0].items() if held else ():
            if all(digest in each for each in held):
                found.setdefault(ids[record.owner], set()).add(digest)
        return {node_id: frozenset(digests) for node_id, digests in sorted(found.items())}

    def _evidence(self, submission: Submission | None) -> frozenset[bytes] | None:
        try:
            digest = decode_args(submission.args if submission else None).evidence
            for member in self.members.values():
                data = member.content.get_local(digest) if member.loop is not None else None
                if data is not None:
                    return frozenset(record.digest for record in decode_blob(data).records)
        except (ConsensusError, RemoteProtocolError):
            pass
        return None

    def _found_out(self) -> Found:
        subnet = self.ledger.subnets[self.subnet_id]
        epochs = []
        for work in range(len(self.scenario.proposers)):
            settled = first_block(work + 2, slot=_FIRST_BLOCK, length=self.scenario.length)
            before, after = (
                {node.node_id: node for node in self.ledger.block_number(number).subnets[self.subnet_id][1]}
                for number in (settled - 1, settled)
            )
            judgements = {
                node_id: member.loop.judgements[work]
                for node_id, member in self.members.items()
                if member.loop is not None and work in member.loop.judgements
            }
            epochs.append(
                Epoch(
                    work=work,
                    proposer=subnet.elected[work + 1],
                    submission=subnet.submissions.get(work + 1),
                    judgements=judgements,
                    seen=self.seen[work],
                    evidence=self._evidence(subnet.submissions.get(work + 1)),
                    equivocators=self._equivocators(work),
                    before=before,
                    after=after,
                )
            )
        fetched = sum(desk.content.fetched_bytes for desk in self.office.desks.values())
        return Found(self.scenario, tuple(epochs), self.ledger, self.office.carried, fetched)

    def _equivocators(self, work: int) -> frozenset[int]:
        ids = {key.peer_id: number for number, key in enumerate(self.keys, start=1)}
        loops = [member.loop for member in self.members.values() if member.loop is not None]
        return frozenset(ids[owner] for loop in loops for owner in loop.proofs(work))


class _Member:
    """A validator: its network, its store, and the loop or the outlaw that uses them."""

    def __init__(self, town: _Town, node_id: int, *, old: _Member | None = None, loss: Loss = Loss.RECORDS) -> None:
        self.town, self.node_id = town, node_id
        self.key, self.hotkey = town.keys[node_id - 1], town.hotkeys[node_id - 1]
        self.chain = FakeChain(town.ledger)
        if old is not None:
            self.chain.away = old.chain.away
        self.epochs = Epochs(self.chain, town.subnet_id)
        self.rng = random.Random(town.rng.random())
        self.directory = town.directory / str(node_id)
        self.dht: Any
        self.content: Any
        self._desk: Desk
        self._net: SimNode
        if town.carrier is Carrier.POST:
            self._by_post(old if loss is Loss.NOTHING else None)
        else:
            self._by_network(old)
        self.loop: ConsensusLoop | None = None
        if node_id not in town.scenario.outlaws:
            send, receive = trio.open_memory_channel[Settlement](4)
            self.loop = ConsensusLoop(
                chain=self.chain,
                subnet_id=town.subnet_id,
                epochs=self.epochs,
                dht=self.dht,
                content=self.content,
                subnet=town.subnet,
                subnet_config=town.subnet.Config(),
                identity=self.key,
                hotkey=self.hotkey,
                state_dir=self.directory,
                settlements=send,
                receiver=receive,
                config=ConsensusConfig(),
                verify=town.office.verify if town.carrier is Carrier.POST else is_signature,
            )

    def _rules(self) -> list[NamespaceRule]:
        return [*self.town.subnet.rules(self.town.subnet.Config()), inventory_rule(), refusal_rule()]

    def _by_post(self, old: _Member | None) -> None:
        if old is not None:
            self._desk = old._desk
            self._desk.position = self._position
        else:
            self._desk = Desk(
                self.town.office,
                self.key,
                rules=self._rules(),
                subnet_id=self.town.subnet_id,
                genesis=self.town.ledger.genesis,
                position=self._position,
                clock=self.town.clock,
            )
        self.dht, self.content = self._desk, self._desk.content

    def _by_network(self, old: _Member | None) -> None:
        self._net = old._net if old is not None else self.town.network.node(self.key)
        self._rpc = Rpc(self._net, Everyone(), rng=self.rng)
        self.dht = DHT(
            self._rpc,
            self.key,
            rules=self._rules(),
            is_member=lambda peer: True,
            position=self._position,
            subnet_id=self.town.subnet_id,
            genesis=self.town.ledger.genesis,
            clock=self.town.clock,
            rng=self.rng,
        )
        self.content = Content(self.directory / "content", self._rpc, offload=inline)

    def _position(self) -> BlockPosition:
        at = self.epochs.position()
        return BlockPosition(self.epochs.block().number, at.epoch, at.offset, at.length)

    async def push(self, record: Record, peers: Sequence[PeerID]) -> Mapping[PeerID, str]:
        """Offer a record to peers as it is."""
        if self.town.carrier is Carrier.POST:
            return await self._desk.push(record, peers)
        said: dict[PeerID, str] = {}
        request = StoreRequest(role=Role.SERVER, addrs=(), records=(record.to_bytes(),))

        async def offer(peer: PeerID) -> None:
            try:
                if peer == self.key.peer_id:
                    await self.dht._holdings.accept(record, sender=None)
                    said[peer] = ""
                    return
                said[peer] = (await self._rpc.stub(KadServicer, peer).rpc_store(request)).verdicts[0]
            except (NetworkError, RpcError):
                said[peer] = "lost"
            except RecordRejected as error:
                said[peer] = error.reason

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(offer, peer)
        return said

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """What a node has besides its consensus, until stopped."""
        self.ended = trio.Event()
        with trio.CancelScope() as self.scope:
            async with trio.open_nursery() as self.nursery:
                if self.town.carrier is Carrier.NETWORK:
                    await self.nursery.start(self._net.run)
                    await self.nursery.start(self._rpc.run)
                    self._rpc.serve(self.content.servicer())
                    others = [m._net.local for m in self.town.members.values() if m is not self]
                    for info in others:
                        self._net.learn(info)
                self.town.office.closed.discard(self.key.peer_id)
                self.nursery.start_soon(self.epochs.run)
                if self.town.carrier is Carrier.NETWORK:
                    await self.nursery.start(self.dht.run, others[:1] if self.node_id > 1 else [])
                task_status.started()
                await trio.sleep_forever()
        self.ended.set()

    def act(self, nursery: trio.Nursery) -> None:
        """Start the loop and the work, or the outlaw."""
        at = Standpoint(
            node_id=self.node_id,
            key=self.key,
            hotkey=self.hotkey,
            chain=self.chain,
            subnet_id=self.town.subnet_id,
            epochs=self.epochs,
            dht=self.dht,
            content=self.content,
            subnet=self.town.subnet,
            push=self.push,
            make=self.town.scenario.make,
            clock=self.town.clock,
            rng=self.rng,
        )
        if self.loop is None:
            self.nursery.start_soon(self.town.scenario.outlaws[self.node_id].run, at)
        else:
            self.nursery.start_soon(self.loop.run)
            self.nursery.start_soon(self._work, at)

    async def _work(self, at: Standpoint) -> None:
        work = Works(records=1 + self.node_id % 3)
        async with trio.open_nursery() as nursery:
            async for epoch in self.epochs.each():
                nursery.start_soon(work.work, at, epoch)

    async def stop(self) -> None:
        """As a kill does."""
        self.town.office.closed.add(self.key.peer_id)
        self.scope.cancel()
        await self.ended.wait()
