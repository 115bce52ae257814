"""Validators that lie about an epoch. An Outlaw is put together of four habits, each honest unless it is replaced:
which records it writes and for whom (`work`), which inventories it signs (`listing`), what it proposes when it is
elected (`proposing`), and what it attests (`voting`).

    liar = Outlaw(proposing=Inflates(), voting=VotesBlindly())

Outlaws know the rules and keep no state: they act from a Standpoint, which is what an honest node has, too. They are
run by mesh.testing.consensus_sim, over a simulated network or over the post.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import trio

from mesh.chain.client import Chain
from mesh.chain.epochs import Epochs
from mesh.chain.types import Score, Submission
from mesh.clock import Clock
from mesh.consensus import round as rules
from mesh.consensus.replay import evidence_for, recompute, replay
from mesh.consensus.round import Inventory, RoundContext
from mesh.content.merkle import digest_of
from mesh.errors import ChainUnavailable, ConsensusError, MeshError
from mesh.identity import AccountKey, PeerKey
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import pack_value, unpack_value
from mesh.peer import PeerID
from mesh.subnet import Subnet


class Right(enum.Enum):
    """What honest validators must make of an outlaw's proposal."""

    ATTESTED = enum.auto()
    """Whatever its proposer is, the proposal is right."""
    REFUSED = enum.auto()
    OPEN = enum.auto()
    """It is right, and may come too late to be attested."""
    NONE = enum.auto()
    """There is none."""


@dataclass(frozen=True)
class Standpoint:
    """What a node sees and can do."""

    node_id: int
    key: PeerKey
    hotkey: AccountKey
    chain: Chain
    subnet_id: int
    epochs: Epochs
    dht: Any
    """A DHT, or what stands for one: `local` and `put`."""
    content: Any
    """A Content, or what stands for one: `put` and `fetch`."""
    subnet: Subnet
    push: Callable[[Record, Sequence[PeerID]], Awaitable[Mapping[PeerID, str]]]
    """Offers a record to peers as it is."""
    make: Callable[[int, int], tuple[bytes, bytes, bytes]]
    """Key, subkey and value of one piece of work: of an epoch, and a number."""
    clock: Clock
    rng: random.Random

    async def context(self, epoch: int) -> RoundContext:
        """What everybody knows about an epoch."""
        return RoundContext(
            genesis=self.chain.genesis,
            subnet_id=self.subnet_id,
            epoch=epoch,
            snapshot=await self.epochs.snapshot(epoch),
            evidence_keys=frozenset(self.subnet.evidence_keys(epoch)),
            score_id=self.subnet.score_id,
            validator=rules.timeless_validator(
                self.subnet.rules(self.subnet.Config()), subnet_id=self.subnet_id, genesis=self.chain.genesis
            ),
        )

    async def others(self, epoch: int) -> list[PeerID]:
        """The epoch's other validators; waits for a chain that is away."""
        while True:
            try:
                peers = (await self.epochs.snapshot(epoch)).validator_peers(epoch)
                return [peer for peer in peers if peer != self.key.peer_id]
            except ChainUnavailable:
                await self.epochs.wait_block()

    def held(self, epoch: int) -> list[Record]:
        """Records of the epoch that are here."""
        return [record for key in self.subnet.evidence_keys(epoch) for record in self.dht.local(key)]

    def sign(self, key: bytes, value: bytes, *, subkey: bytes = b"", seq: int | None = None) -> Record:
        """A record of ours."""
        now_ms = int(self.clock.now() * 1000)
        return sign_record(
            self.key,
            key,
            value,
            subkey=subkey,
            expiry_ms=now_ms + 3_600_000,
            seq=now_ms if seq is None else seq,
            subnet_id=self.subnet_id,
            genesis=self.chain.genesis,
        )

    def work(self, epoch: int, number: int, *, seq: int | None = None) -> Record:
        """A record of work of ours, as the rules want it."""
        key, subkey, value = self.make(epoch, number)
        return self.sign(key, value, subkey=subkey, seq=seq)

    async def submission(self, epoch: int) -> Submission | None:
        """The proposal for the work of `epoch`, if there is one."""
        return await self.chain.submission(self.subnet_id, epoch + 1)

    async def at(self, epoch: int, offset: int) -> None:
        """Wait for a block of an epoch, and until everybody had time to act on it."""
        await self.epochs.wait_until(epoch, offset)
        await trio.sleep(3.0)


def halves(at: Standpoint, peers: Sequence[PeerID]) -> tuple[list[PeerID], list[PeerID]]:
    """Peers in two parts, by chance."""
    shuffled = at.rng.sample(list(peers), len(peers))
    return shuffled[: len(peers) // 2], shuffled[len(peers) // 2 :]


# --- records ------------------------------------------------------------------------------------------------------


class Work(Protocol):
    """Which records are written, and for whom."""

    async def work(self, at: Standpoint, epoch: int) -> None:
        """Called at the epoch's first block."""
        ...


@dataclass(frozen=True)
class Works:
    """As an honest node does: each record for everybody, in time, sent again to whom it did not reach."""

    records: int = 2

    async def work(self, at: Standpoint, epoch: int) -> None:
        for number in range(self.records):
            await at.epochs.wait_until(epoch, at.rng.randint(1, 14))
            await deliver(at, at.work(epoch, number), await at.others(epoch))


async def deliver(at: Standpoint, record: Record, peers: Sequence[PeerID], *, blocks: int = 3) -> None:
    """Hold a record and offer it to peers, at most `blocks` blocks long."""
    await at.push(record, [at.key.peer_id])
    left = list(peers)
    for _ in range(blocks):
        said = await at.push(record, left)
        left = [peer for peer in left if said[peer] not in ("", "duplicate")]
        if not left:
            return
        await at.epochs.wait_block()


@dataclass(frozen=True)
class WorksNot:
    """Writes nothing."""

    async def work(self, at: Standpoint, epoch: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class WorksForSome:
    """Each record goes to some validators, drawn anew, and not to the others."""

    records: int = 4

    async def work(self, at: Standpoint, epoch: int) -> None:
        await at.at(epoch, 3)
        peers = await at.others(epoch)
        for number in range(self.records):
            some = at.rng.sample(peers, at.rng.randint(0, len(peers)))
            await at.push(at.work(epoch, number), [at.key.peer_id, *some])


@dataclass(frozen=True)
class WorksForFellows:
    """Gives its records to its fellows, who are dishonest too, and to one honest node: just enough to name them, and
    only one honest node to get them from."""

    fellows: tuple[int, ...]
    witness: int
    records: int = 3

    async def work(self, at: Standpoint, epoch: int) -> None:
        await at.at(epoch, 3)
        nodes = (await at.epochs.snapshot(epoch)).nodes
        peers = [node.peer_id for node in nodes if node.node_id in (*self.fellows, self.witness)]
        for number in range(self.records):
            await at.push(at.work(epoch, number), peers)


@dataclass(frozen=True)
class WorksAtTheEdge:
    """Sends its records while the others make their inventories, so that some have them and some do not."""

    records: int = 6

    async def work(self, at: Standpoint, epoch: int) -> None:
        await at.epochs.wait_until(epoch, at.epochs.windows.inventory - 1)
        peers = await at.others(epoch)
        for number in range(self.records):
            await trio.sleep(at.rng.uniform(0.0, 3.0))
            await at.push(at.work(epoch, number), [at.key.peer_id, *peers])


@dataclass(frozen=True)
class WorksBackdated:
    """Makes its records when the epoch is over and dates them into it."""

    records: int = 3

    async def work(self, at: Standpoint, epoch: int) -> None:
        began_ms = int(at.clock.now() * 1000)
        for number, offset in enumerate((19, 20, 22, 25)[: self.records + 1]):
            length = at.epochs.length
            await at.at(epoch + offset // length, offset % length)
            record = at.work(epoch, number, seq=began_ms + 10_000)
            await at.push(record, [at.key.peer_id, *await at.others(epoch)])


@dataclass(frozen=True)
class WorksTwice:
    """Signs two contents for one place and sequence number, and gives each to half of the others."""

    records: int = 2

    async def work(self, at: Standpoint, epoch: int) -> None:
        await at.at(epoch, 3)
        for number in range(self.records):
            key, subkey, one = at.make(epoch, number)
            _, _, two = at.make(epoch, number + 1000)
            seq = int(at.clock.now() * 1000)
            for value, part in zip((one, two), halves(at, await at.others(epoch)), strict=True):
                await at.push(at.sign(key, value, subkey=subkey, seq=seq), part)


@dataclass(frozen=True)
class Floods:
    """Sends as many records as the rules let in, more that they do not, and others' under signatures that are none."""

    records: int = 80
    forged: int = 5

    async def work(self, at: Standpoint, epoch: int) -> None:
        await at.at(epoch, 2)
        peers = await at.others(epoch)
        for number in range(self.records):
            await at.push(at.work(epoch, number), [at.key.peer_id, *peers] if number % 4 else at.rng.sample(peers, 2))
        for record in at.held(epoch)[: self.forged]:
            await at.push(replace(record, seq=record.seq + 1, signature=bytes(64)), peers)


# --- inventories --------------------------------------------------------------------------------------------------


class Listing(Protocol):
    """Which inventories are signed."""

    async def list(self, at: Standpoint, epoch: int) -> None:
        """Called at the inventory block."""
        ...


def _inventory(at: Standpoint, ctx: RoundContext, digests: Sequence[bytes], *, seq: int | None = None) -> Record:
    value = Inventory(epoch=ctx.epoch, snapshot=ctx.snapshot.block.hash, digests=tuple(sorted(set(digests))))
    return at.sign(rules.inventory_key(ctx.epoch), pack_value(value), seq=seq)


@dataclass(frozen=True)
class Lists:
    """As an honest node does."""

    async def list(self, at: Standpoint, epoch: int) -> None:
        ctx = await at.context(epoch)
        digests = rules.make_inventory(at.held(epoch), ctx).digests
        await at.push(_inventory(at, ctx, digests), [at.key.peer_id, *await at.others(epoch)])


@dataclass(frozen=True)
class ListsNot:
    """Has no inventory."""

    async def list(self, at: Standpoint, epoch: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class ListsTwice:
    """Signs two inventories: all see both, or each half sees one."""

    seen_by_all: bool = False

    async def list(self, at: Standpoint, epoch: int) -> None:
        ctx, peers = await at.context(epoch), await at.others(epoch)
        digests = rules.make_inventory(at.held(epoch), ctx).digests
        one = _inventory(at, ctx, digests)
        two = _inventory(at, ctx, [*digests[1:], at.rng.randbytes(32)], seq=one.seq + 1)
        first, second = (peers, peers) if self.seen_by_all else halves(at, peers)
        await at.push(one, [at.key.peer_id, *first])
        await at.push(two, second)


@dataclass(frozen=True)
class ListsPhantoms:
    """Names records that nobody has, and its own that it gave to nobody; leaves out what others wrote."""

    async def list(self, at: Standpoint, epoch: int) -> None:
        ctx = await at.context(epoch)
        own = at.work(epoch, 999)
        await at.push(own, [at.key.peer_id])
        digests = [own.digest, *(at.rng.randbytes(32) for _ in range(3))]
        await at.push(_inventory(at, ctx, digests), [at.key.peer_id, *await at.others(epoch)])


@dataclass(frozen=True)
class ListsLate:
    """Gives its inventory to some others, in the last block in which they take it."""

    async def list(self, at: Standpoint, epoch: int) -> None:
        ctx, peers = await at.context(epoch), await at.others(epoch)
        digests = rules.make_inventory(at.held(epoch), ctx).digests
        await at.epochs.wait_until(epoch + 1, 1)
        await at.push(_inventory(at, ctx, digests), halves(at, peers)[0])


# --- proposals ----------------------------------------------------------------------------------------------------


class Proposing(Protocol):
    """What is proposed."""

    right: ClassVar[Right]

    async def propose(self, at: Standpoint, epoch: int) -> None:
        """Called for the work of `epoch` in the second block of the next one, when elected. May raise MeshError."""
        ...


@dataclass(frozen=True)
class Proposal:
    """What an honest proposer would propose of what an outlaw holds."""

    ctx: RoundContext
    inventories: tuple[Record, ...]
    records: tuple[Record, ...]
    scores: tuple[Score, ...]

    @classmethod
    async def of(cls, at: Standpoint, epoch: int, *, only: Sequence[Record] | None = None) -> Proposal:
        """From all inventories here that count, or `only` these. Raises ConsensusError when they are too few."""
        ctx = await at.context(epoch)
        book = rules.InventoryBook(ctx)
        for record in at.dht.local(rules.inventory_key(epoch)) if only is None else only:
            with suppress(ConsensusError):
                book.add(record)
        standing = {owner: inventory for owner, (_, inventory) in book.valid().items()}
        held = {record.digest: record for record in at.held(epoch)}
        choice = rules.choose(standing, held=held.keys(), limits=ctx.thresholds)
        records = tuple(held[digest] for digest in choice.digests)
        draw = await at.epochs.draw_hash(epoch)
        scores = recompute(at.subnet.score, evidence_for(ctx, records, draw_hash=draw))
        return cls(ctx, book.records(choice.owners), records, scores)

    def data(self) -> bytes:
        """The blob."""
        return rules.encode_blob(rules.make_blob(self.inventories, self.records))


async def submit(at: Standpoint, made: Proposal, *, data: bytes | None = None, **args: Any) -> None:
    """Propose, honest but for what is given."""
    blob = made.data() if data is None else data
    fields: dict[str, Any] = {
        "v": rules.VERSION, "epoch": made.ctx.epoch, "snapshot": made.ctx.snapshot.block.hash, "size": len(blob),
        "evidence": at.content.put(blob) if "evidence" not in args else b"", "score": made.ctx.score_id, "reason": "",
    }  # fmt: skip
    raw = pack_value(rules.ProposalArgs.model_construct(**(fields | args)))
    await at.chain.propose(at.subnet_id, made.scores, args=raw, hotkey=at.hotkey)


@dataclass(frozen=True)
class Proposes:
    """As an honest node does."""

    right: ClassVar[Right] = Right.ATTESTED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        await submit(at, await Proposal.of(at, epoch))


@dataclass(frozen=True)
class ProposesNot:
    """Proposes nothing."""

    right: ClassVar[Right] = Right.NONE

    async def propose(self, at: Standpoint, epoch: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class PicksInventories:
    """Takes the n-f inventories it likes best. That is its right: what all honest nodes name is in any of them."""

    right: ClassVar[Right] = Right.ATTESTED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        own = {record.digest for record in at.held(epoch) if record.owner == at.key.peer_id}
        liked = sorted(
            made.inventories,
            key=lambda r: (-len(own.intersection(unpack_value(Inventory, r.value).digests)), r.digest),
        )
        await submit(at, await Proposal.of(at, epoch, only=liked[: made.ctx.thresholds.need]))


@dataclass(frozen=True)
class ProposesLate:
    """Proposes what is right when the time to attest is nearly over, so that some may be in time and some not."""

    before_end: int = 1
    right: ClassVar[Right] = Right.OPEN

    async def propose(self, at: Standpoint, epoch: int) -> None:
        await at.epochs.wait_until(epoch + 1, at.epochs.windows.attest_by - self.before_end)
        await trio.sleep(at.rng.uniform(0.0, 6.0))
        await submit(at, await Proposal.of(at, epoch))


@dataclass(frozen=True)
class Inflates:
    """Gives itself more than its records are worth."""

    by: int = 100
    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        scores = rules.collapsed(made.scores)
        scores[at.node_id] = scores.get(at.node_id, 0) + self.by
        await submit(at, replace(made, scores=tuple(Score(n, s) for n, s in sorted(scores.items()))))


@dataclass(frozen=True)
class LeavesOutScore:
    """Leaves out the best of the others, whose records it shows."""

    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        rival = _rival(at, made)
        await submit(at, replace(made, scores=tuple(s for s in made.scores if s.node_id != rival)))


@dataclass(frozen=True)
class LeavesOutRecords:
    """Leaves out the best of the others as if it had written nothing."""

    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        rival = _rival(at, made)
        owner = next(node.peer_id for node in made.ctx.snapshot.nodes if node.node_id == rival)
        records = tuple(record for record in made.records if record.owner != owner)
        scores = tuple(s for s in made.scores if s.node_id != rival)
        await submit(at, replace(made, records=records, scores=scores))


def _rival(at: Standpoint, made: Proposal) -> int:
    others = [score for score in made.scores if score.node_id != at.node_id]
    if not others:
        raise ConsensusError("nobody", "nobody else has earned anything")
    return max(others, key=lambda score: (score.score, score.node_id)).node_id


@dataclass(frozen=True)
class AddsRecords:
    """Adds a record of its own that it showed to nobody in time."""

    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        records = (*made.records, at.work(epoch, 777))
        draw = await at.epochs.draw_hash(epoch)
        scores = recompute(at.subnet.score, evidence_for(made.ctx, records, draw_hash=draw))
        await submit(at, replace(made, records=records, scores=scores))


@dataclass(frozen=True)
class TakesTooFew:
    """Takes fewer inventories than n-f."""

    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        few = made.inventories[: made.ctx.thresholds.need - 1]
        names = rules.named([unpack_value(Inventory, r.value) for r in few], made.ctx.thresholds.naming)
        records = tuple(record for record in made.records if record.digest in names)
        await submit(at, replace(made, inventories=few, records=records))


@dataclass(frozen=True)
class ProposesGarbage:
    """Proposes nonsense: as args, as a blob, as scores, or last epoch's blob."""

    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        kind = at.rng.randrange(5)
        if kind == 0:
            raw = at.rng.randbytes(at.rng.randint(0, 300))
            await at.chain.propose(at.subnet_id, made.scores, args=raw, hotkey=at.hotkey)
        elif kind == 1:
            await submit(at, made, data=at.rng.randbytes(at.rng.randint(1, 5000)))
        elif kind == 2:
            flipped = bytearray(made.data())
            flipped[at.rng.randrange(len(flipped))] ^= at.rng.randint(1, 255)
            await submit(at, made, data=bytes(flipped))
        elif kind == 3:
            scores = tuple(Score(node.node_id, at.rng.randint(1, 2**64)) for node in made.ctx.snapshot.nodes)
            await submit(at, replace(made, scores=scores))
        else:
            await submit(at, made, epoch=epoch + 1)


@dataclass(frozen=True)
class Withholds:
    """Proposes what is right and serves the blob to nobody. It signs its own inventory anew for it: a blob that others
    can make themselves is no secret, and they attest it."""

    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = await Proposal.of(at, epoch)
        own = _inventory(at, made.ctx, rules.make_inventory(at.held(epoch), made.ctx).digests)
        others = [record for record in made.inventories if record.owner != at.key.peer_id]
        made = await Proposal.of(at, epoch, only=[*others, own])
        data = made.data()
        await submit(at, made, data=data, evidence=digest_of(data))


@dataclass(frozen=True)
class ClaimsThereWasNothing:
    """Says that it had too few inventories."""

    right: ClassVar[Right] = Right.REFUSED

    async def propose(self, at: Standpoint, epoch: int) -> None:
        made = replace(await Proposal.of(at, epoch), scores=())
        await submit(at, made, evidence=b"", size=0, reason=rules.TOO_FEW_INVENTORIES)


# --- votes --------------------------------------------------------------------------------------------------------


class Voting(Protocol):
    """What is attested."""

    async def vote(self, at: Standpoint, epoch: int, submission: Submission) -> None:
        """Called once there is a proposal for the work of `epoch`. May raise MeshError."""
        ...


@dataclass(frozen=True)
class VotesHonestly:
    """Recomputes, and attests what is equal."""

    async def vote(self, at: Standpoint, epoch: int, submission: Submission) -> None:
        ctx = await at.context(epoch)
        claim = rules.read_proposal(submission.args, ctx)
        data = await at.content.fetch(claim.evidence, max_bytes=claim.size, peers=await at.others(epoch))
        draw = await at.epochs.draw_hash(epoch)
        if replay(data, ctx, draw_hash=draw, score=at.subnet.score, proposed=submission.scores).is_right:
            await at.chain.attest(at.subnet_id, hotkey=at.hotkey)


@dataclass(frozen=True)
class VotesBlindly:
    """Attests whatever is proposed."""

    async def vote(self, at: Standpoint, epoch: int, submission: Submission) -> None:
        await at.chain.attest(at.subnet_id, hotkey=at.hotkey)


@dataclass(frozen=True)
class VotesNot:
    """Attests nothing."""

    async def vote(self, at: Standpoint, epoch: int, submission: Submission) -> None:
        """Nothing."""


# --- all together -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlaw:
    """A validator with habits of its own; honest in those that are not given."""

    work: Work = field(default_factory=Works)
    listing: Listing = field(default_factory=Lists)
    proposing: Proposing = field(default_factory=Proposes)
    voting: Voting = field(default_factory=VotesHonestly)

    async def run(self, at: Standpoint) -> None:
        """Act, epoch after epoch, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for epoch in at.epochs.each():
                nursery.start_soon(self._try, self.work.work, at, epoch)
                nursery.start_soon(self._list, at, epoch)
                nursery.start_soon(self._settle, at, epoch)

    async def _list(self, at: Standpoint, epoch: int) -> None:
        await at.epochs.wait_until(epoch, at.epochs.windows.inventory)
        await self._try(self.listing.list, at, epoch)

    async def _settle(self, at: Standpoint, epoch: int) -> None:
        for offset in (1, 2, 3):  # again, should something have kept it from it
            await at.at(epoch + 1, offset)
            if await at.submission(epoch) is None and await at.chain.elected(at.subnet_id, epoch + 1) == at.node_id:
                await self._try(self.proposing.propose, at, epoch)
        while at.epochs.is_by(epoch + 1, at.epochs.windows.attest_by):
            submission = await at.submission(epoch)
            if submission is not None:
                if at.node_id not in submission.attests:
                    await self._try(self.voting.vote, at, epoch, submission)
                return
            await at.epochs.wait_block()

    @staticmethod
    async def _try(step: Callable[..., Awaitable[None]], *args: Any) -> None:
        with suppress(MeshError):
            await step(*args)
