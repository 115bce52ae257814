"""The loop that carries an epoch's agreement out: what is due at a block is done, what failed is tried at the next.

Every step looks first at what is there already (the chain, the files of an earlier run), so a node that is stopped at
any point goes on where it was and says nothing twice. Decisions are functions of `mesh.consensus.round`; here is only
when to take them and where their inputs come from. Nothing but cancellation ends the loop.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.chain.client import Chain
from mesh.chain.epochs import Epochs
from mesh.chain.types import BlockRef, EpochPosition, Score, Snapshot, Submission, SubnetNode
from mesh.chain.windows import BASE_LENGTH, SLACK_BLOCKS
from mesh.consensus import round as rules
from mesh.consensus.replay import evidence_for, recompute
from mesh.consensus.round import (
    Blob,
    Decision,
    InventoryBook,
    Judgement,
    ProposalArgs,
    Refusal,
    RoundContext,
    inventory_rule,
    refusal_rule,
)
from mesh.consensus.service import MAX_ASKED, ConsensusServicer, InventoriesRequest, RecordsReply, RecordsRequest
from mesh.content import Content
from mesh.dht import DHT
from mesh.errors import (
    ChainUnavailable,
    ConsensusError,
    ContentNotFound,
    ExtrinsicFailed,
    ExtrinsicLost,
    MeshError,
    NetworkError,
    RecordRejected,
    RemoteProtocolError,
    RpcError,
    StoreFull,
)
from mesh.files import Durable, replace_file
from mesh.identity import AccountKey, PeerKey
from mesh.kad.record import Record
from mesh.kad.validator import pack_value, unpack_value
from mesh.peer import PeerID
from mesh.subnet import Evidence, Settlement, Subnet

__all__ = ["ConsensusConfig", "ConsensusLoop", "inventory_rule", "refusal_rule", "validator_peers"]

log = logging.getLogger(__name__)

DONE_PROPOSING: Final = frozenset({"SubnetRewardsAlreadySubmitted"})
"""Errors of the pallet that mean: the epoch has its proposal."""
NOT_OURS: Final = frozenset({"InvalidValidator", "NoElectedValidator"})
"""… it was not for us to propose."""
DONE_ATTESTING: Final = frozenset({"AlreadyAttested"})
_LIVE_ROUNDS: Final = 4


class ConsensusConfig(BaseModel):
    """Times and bounds of the loop. Blocks are for epochs of 20 and scale with the length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gather_block: int = Field(
        default=2, ge=0, le=10, description="until this block a proposer waits for all inventories, then n-f suffice"
    )
    give_up_block: int = Field(default=3, ge=0, le=10, description="from this block on too few means an empty proposal")
    settle_back: int = Field(
        default=2, ge=0, le=3, description="epochs settled before the last one told again at start"
    )
    keep_epochs: int = Field(default=3, ge=1, le=16, description="how many epochs a blob is kept after its work")
    fetch_timeout_s: float = Field(default=60.0, gt=0, description="what fetching one blob may take at one block")
    ask_timeout_s: float = Field(default=5.0, gt=0, description="what asking others for records may take at one block")
    max_asked_peers: int = Field(default=8, ge=1, le=64, description="peers asked at once for one missing thing")
    max_tries: int = Field(default=5, ge=1, description="extrinsics the chain refuses before an epoch is given up")
    ttl_s: float = Field(default=7200.0, gt=0, le=rules.MAX_TTL_S, description="life of inventories and refusals")
    checks_per_turn: int = Field(default=16, ge=1, description="signatures checked before other tasks run")


@dataclass
class _Round:
    """What is known about one epoch's work."""

    ctx: RoundContext
    book: InventoryBook
    records: dict[bytes, Record] = field(default_factory=dict)
    """Evidence beside the store's: what our inventory names, and what others gave us."""
    inventory: bytes | None = None
    inventory_sent: bool = False
    tries: int = 0
    closed: bool = False
    """Whether we have nothing (more) to propose."""
    fingerprint: object = None
    """Of the submission that `judgement` is about."""
    judgement: Judgement | None = None
    witness: bytes = b""
    refusal_sent: bool = False
    attest_tries: int = 0
    settlement: Settlement | None = None
    pinned: set[bytes] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    """Log lines that need no repetition at every block."""

    @property
    def epoch(self) -> int:
        return self.ctx.epoch


def validator_peers(snapshot: Snapshot, epoch: int) -> tuple[PeerID, ...]:
    """Whom evidence and inventories are stored at: every validator of the epoch, in the order of node ids."""
    return tuple(node.peer_id for node in snapshot.validators(epoch))


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
    ) -> None:
        """`receiver` is the other end of `settlements` (or a clone): through it the oldest unread one is dropped when
        the subnet falls behind; without it the newest is. Without `hotkey` nothing is proposed or attested, the rest is
        done."""
        self.config = config or ConsensusConfig()
        self._chain = chain
        self._epochs = epochs
        self._subnet_id = subnet_id
        self._dht = dht
        self._content = content
        self._subnet = subnet
        self._identity = identity
        self._hotkey = hotkey
        self._files = state_dir / "consensus"
        self._send = settlements
        self._receiver = receiver
        self._validator = rules.timeless_validator(
            subnet.rules(subnet_config), subnet_id=subnet_id, genesis=chain.genesis
        )
        self._serving = False
        self._rounds: dict[int, _Round] = {}
        self._started_at: EpochPosition | None = None
        self._resettled = trio.Event()
        self._ready: dict[int, Settlement] = {}
        self._told = -1
        self._missed_checked: int | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started() once it watches. A chain that is away is waited for."""
        self._files.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._serving:
            self._content.rpc.serve(ConsensusServicer(self))
            self._serving = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_inventories)
            task_status.started()
            self._started_at = await self._next_position(None)
            nursery.start_soon(self._resettle, self._started_at.epoch)
            # Two tasks: settling waits for what others serve, and nobody may make us late with our inventory by that.
            nursery.start_soon(self._at_every_block, self._tick_inventories)
            nursery.start_soon(self._at_every_block, self._tick_settling)

    async def _at_every_block(self, tick: Callable[[EpochPosition], Awaitable[None]]) -> None:
        last: EpochPosition | None = None
        while True:
            last = await self._next_position(last)
            await tick(last)

    async def _next_position(self, last: EpochPosition | None) -> EpochPosition:
        """The newest position that is not `last`, once the subnet is active (before, its epochs have no numbers)."""
        while True:
            block = self._block()
            if block is not None and 0 < self._epochs.slot <= block.number and self._epochs.position() != last:
                return self._epochs.position()
            await self._epochs.wait_block()

    # -- what others may ask (service.Holdings) --

    def inventories_of(self, epoch: int, owners: Iterable[PeerID]) -> Iterable[Record]:
        """See service.Holdings."""
        found = self._rounds.get(epoch)
        return found.book.records(tuple(owners)) if found else ()

    def records_of(self, epoch: int, digests: Iterable[bytes]) -> Iterable[Record]:
        """See service.Holdings."""
        found = self._rounds.get(epoch)
        if found is None:
            return ()
        held = self._held(found)
        return tuple(held[digest] for digest in digests if digest in held)

    # -- one block --

    async def _tick_inventories(self, position: EpochPosition) -> None:
        for epoch in (position.epoch, position.epoch - 1):
            if epoch >= 0:
                await self._attempt(f"inventory of epoch {epoch}", functools.partial(self._inventory_due, epoch))

    async def _tick_settling(self, position: EpochPosition) -> None:
        epoch = position.epoch
        self._forget(epoch)
        if epoch > 0:
            await self._attempt(f"settling epoch {epoch - 1}", lambda: self._settle(epoch - 1))
            await self._attempt("missed epochs", lambda: self._note_missed(epoch - 1))
        self._tell()

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
            return self._epochs.block()
        except ChainUnavailable:
            return None

    def _scaled(self, blocks: int) -> int:
        return blocks * self._epochs.length // BASE_LENGTH

    def _offset_in(self, epoch: int) -> int:
        """Blocks since the first one of `epoch`, as of the newest block we know."""
        now = self._epochs.position()
        return now.offset + (now.epoch - epoch) * now.length

    async def _round(self, epoch: int) -> _Round:
        found = self._rounds.get(epoch)
        if found is None:
            snapshot = await self._epochs.snapshot(epoch)
            ctx = RoundContext(
                genesis=self._chain.genesis,
                subnet_id=self._subnet_id,
                epoch=epoch,
                snapshot=snapshot,
                evidence_keys=frozenset(self._subnet.evidence_keys(epoch)),
                score_id=self._subnet.score_id,
                validator=self._validator,
            )
            found = self._rounds.setdefault(epoch, _Round(ctx, InventoryBook(ctx)))
            await self._locate(ctx.validators)
        self._collect(found)
        return found

    def _forget(self, epoch: int) -> None:
        for old in [e for e in self._rounds if e + self.config.keep_epochs < epoch]:
            for digest in self._rounds.pop(old).pinned:
                self._content.unpin(digest)
        for path in self._files.glob("inventory-*"):
            number = path.name.rpartition("-")[2]
            if number.isdecimal() and int(number) + _LIVE_ROUNDS < epoch:
                path.unlink(missing_ok=True)

    # -- inventories --

    async def _watch_inventories(self) -> None:
        """Take inventories in as they come: the store keeps only the newest of an owner, we keep the proof of two."""
        while True:
            seen = self._dht.changes
            for found in tuple(self._rounds.values()):
                self._collect(found)
            await self._dht.wait_change(seen)

    def _collect(self, found: _Round) -> None:
        key = rules.inventory_key(found.epoch)
        for record in self._dht.local(key):
            self._take_in(found, record)
        for proof in self._dht.proofs:
            if proof.first.key == key:
                self._take_in(found, proof.first)
                self._take_in(found, proof.second)

    def _take_in(self, found: _Round, record: Record) -> None:
        proofs = found.book.proofs().keys()
        try:
            found.book.add(record)
        except ConsensusError as error:
            self._say(found, logging.INFO, f"an inventory was not taken: {error}")
            return
        for owner in found.book.proofs().keys() - proofs:
            log.warning("epoch %d: %s signed two inventories; neither counts", found.epoch, owner)

    async def _inventory_due(self, epoch: int) -> None:
        offset = self._offset_in(epoch)
        windows = self._epochs.windows
        if not windows.inventory <= offset < self._epochs.length + SLACK_BLOCKS:
            return
        found = await self._round(epoch)
        if found.inventory_sent:
            return
        if self._identity.peer_id not in found.ctx.validators:
            found.inventory_sent = True
            return
        value = await self._our_inventory(found)
        peers = [p for p in validator_peers(found.ctx.snapshot, epoch) if p != self._identity.peer_id]
        report = await self._dht.put(rules.inventory_key(epoch), value, ttl_s=self.config.ttl_s, peers=peers)
        stored = {*report.stored, self._identity.peer_id}
        found.inventory_sent = len(stored & found.ctx.validators.keys()) >= found.ctx.thresholds.need
        log.log(
            logging.INFO if found.inventory_sent else logging.WARNING,
            "epoch %d: inventory of %d records stored at %d of %d validators",
            epoch,
            len(unpack_value(rules.Inventory, value).digests),
            len(stored & found.ctx.validators.keys()),
            len(found.ctx.validators),
        )

    async def _our_inventory(self, found: _Round) -> bytes:
        """The one inventory of ours: of this run, of an earlier one, or made and written down now."""
        if found.inventory is not None:
            return found.inventory
        path = self._files / f"inventory-{found.epoch}"
        value = self._read_inventory(path, found) or await self._sent_before(found)
        if value is None:
            held = [record for key in sorted(found.ctx.evidence_keys) for record in self._dht.local(key)]
            for number, record in enumerate(held):  # select_records would check them all at one go
                with suppress(ConsensusError):
                    rules.check_record(record, found.ctx)
                if number % self.config.checks_per_turn == 0:
                    await trio.lowlevel.checkpoint()
            chosen = rules.select_records(held, found.ctx)
            found.records.update({record.digest: record for record in chosen})
            value = pack_value(rules.make_inventory(chosen, found.ctx))
        try:
            replace_file(path, value, durable=Durable.YES)  # it must survive a crash before it is sent
        except OSError as error:
            raise StoreFull(f"{path} cannot be written, so the inventory is not sent: {error.strerror}") from error
        found.inventory = value
        return value

    def _read_inventory(self, path: Path, found: _Round) -> bytes | None:
        try:
            value = path.read_bytes()
            if unpack_value(rules.Inventory, value).snapshot == found.ctx.snapshot.block.hash:
                return value
        except FileNotFoundError:
            return None
        except RecordRejected as error:
            log.warning("%s is damaged: %s", path, error)
            return None
        log.warning("epoch %d: the snapshot's block changed after our inventory was written", found.epoch)
        return None

    async def _sent_before(self, found: _Round) -> bytes | None:
        """An inventory of ours that only others still have: this run began after it could have been sent."""
        started = self._started_at
        if started is None or (started.epoch, started.offset) < (found.epoch, self._epochs.windows.inventory):
            return None
        await self._ask_inventories(found, [self._identity.peer_id])
        records = found.book.records([self._identity.peer_id])
        return records[0].value if records else None

    # -- what others have --

    async def _ask_inventories(self, found: _Round, owners: Sequence[PeerID]) -> None:
        """Ask the owners themselves and some other validators for inventories we have not seen."""
        us = self._identity.peer_id
        others = [p for p in found.ctx.validators if p != us]
        asked: dict[PeerID, list[PeerID]] = {p: [p] for p in owners if p != us}
        for peer in others[: self.config.max_asked_peers]:
            asked[peer] = list(owners)

        async def ask(peer: PeerID) -> None:
            stub = self._content.rpc.stub(ConsensusServicer, peer)
            for start in range(0, len(asked[peer]), MAX_ASKED):
                few = asked[peer][start : start + MAX_ASKED]
                request = InventoriesRequest(epoch=found.epoch, owners=tuple(p.multihash for p in few))
                for record in await self._records(peer, stub.rpc_inventories, request):
                    if record.owner in few:
                        self._take_in(found, record)

        await self._together(ask, asked)

    async def _ask_records(self, found: _Round, missing: set[bytes]) -> None:
        """Ask whoever names records for those we lack; `missing` shrinks."""
        by_peer = {
            owner: named
            for owner, (_, inventory) in found.book.valid().items()
            if owner != self._identity.peer_id and (named := missing.intersection(inventory.digests))
        }

        async def ask(peer: PeerID) -> None:
            stub = self._content.rpc.stub(ConsensusServicer, peer)
            left = sorted(by_peer[peer])
            while left := [digest for digest in left if digest in missing]:
                few = left[:MAX_ASKED]
                request = RecordsRequest(epoch=found.epoch, digests=tuple(few))
                given = {r.digest: r for r in await self._records(peer, stub.rpc_records, request)}
                answered = [digest for digest in few if digest in given]
                for digest in answered:
                    try:
                        rules.check_record(given[digest], found.ctx)
                    except ConsensusError as error:
                        log.info("epoch %d: %s names what is no evidence: %s", found.epoch, peer.short, error)
                        continue
                    found.records[digest] = given[digest]
                    missing.discard(digest)
                # A short answer may only be full: ask on for the rest, as long as something comes.
                left = [d for d in left if d not in answered] if answered else left[MAX_ASKED:]

        await self._together(ask, by_peer)

    async def _together(self, ask: Callable[[PeerID], Awaitable[None]], peers: Iterable[PeerID]) -> None:
        limit = trio.CapacityLimiter(self.config.max_asked_peers)

        async def one(peer: PeerID) -> None:
            async with limit:
                await ask(peer)

        with trio.move_on_after(self.config.ask_timeout_s):
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(one, peer)

    async def _locate(self, peers: Iterable[PeerID]) -> None:
        """Learn where peers can be dialled whose addresses we do not have; bounded in time."""

        async def find(peer: PeerID) -> None:
            try:
                await self._dht.find_peer(peer)
            except NetworkError as error:
                log.debug("%s", error)

        net = self._content.rpc.net
        await self._together(find, [p for p in peers if not net.known(p).addrs])

    async def _records(
        self, peer: PeerID, call: Callable[..., Awaitable[RecordsReply]], request: BaseModel
    ) -> list[Record]:
        """What a peer answers, parsed; nothing when it does not answer or answers nonsense."""
        try:
            reply = await call(request, timeout_s=self.config.ask_timeout_s)
            return [Record.from_bytes(data) for data in reply.records]
        except (NetworkError, RpcError, RemoteProtocolError) as error:
            log.debug("%s gave no records: %s", peer.short, error)
            return []

    def _held(self, found: _Round) -> dict[bytes, Record]:
        held = dict(found.records)
        for key in sorted(found.ctx.evidence_keys):
            held.update({record.digest: record for record in self._dht.local(key)})
        return held

    # -- the epoch after --

    async def _settle(self, epoch: int) -> None:
        """Propose, judge and attest the work of `epoch`, which is settled in the epoch after it."""
        found = await self._round(epoch)
        if not found.ctx.validators:
            return
        now = await self._epochs.snapshot(epoch + 1)
        us = now.by_peer(self._identity.peer_id)
        submission = await self._chain.submission(self._subnet_id, epoch + 1)
        if submission is None:
            if us is None or self._hotkey is None:
                return
            if await self._chain.elected(self._subnet_id, epoch + 1) != us.node_id:
                return
            await self._propose(found, self._hotkey)
            submission = await self._chain.submission(self._subnet_id, epoch + 1)
            if submission is None:
                return
        await self._weigh(found, submission)
        if found.judgement is None:
            return
        if found.settlement is not None:
            self._ready[epoch] = found.settlement
        if us is None or us not in now.validators(epoch + 1) or us.node_id in submission.attests:
            return
        if found.judgement.decision is Decision.ATTEST:
            if self._hotkey is not None:
                await self._attest(found, self._hotkey)
        elif found.judgement.decision is Decision.REFUSE:
            await self._publish_refusal(found, submission)

    async def _weigh(self, found: _Round, submission: Submission) -> None:
        """Judge a submission once; one that took its place (another fork) is judged anew."""
        fingerprint = _fingerprint(submission)
        if found.judgement is not None and found.fingerprint == fingerprint:
            return
        found.fingerprint, found.settlement, found.refusal_sent, found.witness = fingerprint, None, False, b""
        found.judgement = await self._judge(found, submission)
        if found.judgement is None:
            return
        level = logging.INFO if found.judgement.decision is Decision.ATTEST else logging.WARNING
        log.log(
            level,
            "epoch %d: %s the proposal of node %d (%s): %s",
            found.epoch,
            found.judgement.decision.value,
            submission.proposer_node_id,
            found.judgement.reason,
            found.judgement.detail,
        )

    async def _judge(self, found: _Round, submission: Submission) -> Judgement | None:
        """What to do about a submission; None while its evidence cannot be had but may still come."""
        try:
            claim = rules.read_proposal(submission.args, found.ctx)
            if not claim.evidence:
                return self._judge_empty(found, submission)
            data = await self._fetch(found, claim, submission)
            if data is None:
                if self._offset_in(found.epoch + 1) <= self._epochs.windows.attest_by:
                    return None
                return Judgement(Decision.REFUSE, "unavailable", f"no peer served the blob {claim.evidence.hex()}")
            if len(data) != claim.size:
                raise ConsensusError("size", f"the evidence has {len(data)} bytes, the proposal says {claim.size}")
            blob = rules.decode_blob(data)
            await self._check(blob, found.ctx)
            records = rules.evidence_of(blob, found.ctx)
            evidence = await self._evidence(found.ctx, records)
            scores = self._score(evidence)
        except (ConsensusError, RemoteProtocolError) as error:
            return rules.judgement_of(error)
        block = BlockRef(submission.block, await self._chain.block_hash(submission.block))
        eligible = rules.eligible(
            await self._epochs.snapshot(found.epoch + 1),
            await self._chain.snapshot(self._subnet_id, block),
            epoch=found.epoch + 1,
        )
        judgement = rules.judge_scores(scores, submission.scores, eligible_ids=eligible)
        if judgement.decision is Decision.ATTEST:
            found.settlement = Settlement(evidence, scores)
        return judgement

    def _judge_empty(self, found: _Round, submission: Submission) -> Judgement:
        standing = found.book.valid()
        judgement = rules.judge_empty(submission.scores, standing=len(standing), limits=found.ctx.thresholds)
        if judgement.reason == "had-inventories":
            blob = rules.make_blob((record for record, _ in standing.values()), ())
            found.witness = self._keep(found, rules.encode_blob(blob))
        return judgement

    async def _fetch(self, found: _Round, claim: ProposalArgs, submission: Submission) -> bytes | None:
        peers = self._servers(await self._epochs.snapshot(found.epoch + 1), found.ctx, submission)
        data: bytes | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_when_late, found.epoch + 1, nursery.cancel_scope)
            nursery.cancel_scope.deadline = trio.current_time() + self.config.fetch_timeout_s
            await self._locate(peers[:1])
            try:
                data = await self._content.fetch(claim.evidence, max_bytes=claim.size, peers=peers)
                self._pin(found, claim.evidence)
            except ContentNotFound as error:
                self._say(found, logging.WARNING, f"evidence not fetched yet: {error}")
            nursery.cancel_scope.cancel()
        if data is None:
            self._say(found, logging.WARNING, "evidence not fetched yet: it took too long")
        return data

    async def _give_up_when_late(self, epoch: int, scope: trio.CancelScope) -> None:
        """Whoever serves slowly loses its own epoch, not the next one's: end a fetch when attesting is over, or where
        we come after that, with the epoch. Past epochs are told again by a task of their own and delay nothing."""
        offset, last = self._offset_in(epoch), self._epochs.windows.attest_by + 1
        if offset >= self._epochs.length:
            return
        await self._epochs.wait_until(*((epoch, last) if offset < last else (epoch + 1, 0)))
        scope.cancel()

    @staticmethod
    def _servers(now: Snapshot, ctx: RoundContext, submission: Submission) -> list[PeerID]:
        """The proposer, then those who attested (they have the blob), then every other validator."""
        nodes: dict[int, SubnetNode] = {node.node_id: node for node in (*ctx.snapshot.nodes, *now.nodes)}
        first = [submission.proposer_node_id, *sorted(submission.attests)]
        rest = [node.node_id for node in (*now.validators(ctx.epoch + 1), *ctx.validators.values())]
        return [nodes[node_id].peer_id for node_id in dict.fromkeys((*first, *rest)) if node_id in nodes]

    async def _check(self, blob: Blob, ctx: RoundContext) -> None:
        for number, _ in enumerate(rules.checks(blob, ctx)):
            if number % self.config.checks_per_turn == 0:
                await trio.lowlevel.checkpoint()

    async def _evidence(self, ctx: RoundContext, records: Sequence[Record]) -> Evidence:
        return evidence_for(ctx, records, draw_hash=await self._epochs.draw_hash(ctx.epoch))

    def _score(self, evidence: Evidence) -> tuple[Score, ...]:
        try:
            return recompute(self._subnet.score, evidence)
        except ConsensusError as error:
            log.exception(
                "epoch %d: %s cannot score its evidence", evidence.epoch, self._subnet.score_id, exc_info=error
            )
            raise

    async def _attest(self, found: _Round, hotkey: AccountKey) -> None:
        if found.attest_tries >= self.config.max_tries:
            return
        if self._offset_in(found.epoch + 1) > self._epochs.windows.attest_by:
            self._say(found, logging.WARNING, "not attested: the time for it is over")
            return
        # An attestation says nothing of what it is about: look once more that it is what we judged.
        latest = await self._chain.submission(self._subnet_id, found.epoch + 1)
        if latest is None or _fingerprint(latest) != found.fingerprint:
            return
        found.attest_tries += 1
        try:
            await self._chain.attest(self._subnet_id, hotkey=hotkey)
        except ExtrinsicFailed as error:
            if error.name not in DONE_ATTESTING:
                raise
            found.attest_tries = self.config.max_tries
        except (ChainUnavailable, ExtrinsicLost):
            found.attest_tries -= 1  # nothing was refused; the next block looks at the chain first
            raise
        log.info("epoch %d: attested", found.epoch)

    async def _publish_refusal(self, found: _Round, submission: Submission) -> None:
        judgement = found.judgement
        if found.refusal_sent or judgement is None:
            return
        found.refusal_sent = True  # told once: the log has it, and nothing depends on who hears it
        try:
            named = rules.decode_args(submission.args).evidence
        except ConsensusError:
            named = b""
        refusal = Refusal(
            epoch=found.epoch,
            proposer_node_id=submission.proposer_node_id,
            evidence=named,
            reason=judgement.reason,
            detail=judgement.detail,
            witness=found.witness,
        )
        peers = [p for p in validator_peers(found.ctx.snapshot, found.epoch) if p != self._identity.peer_id]
        await self._dht.put(rules.refusal_key(found.epoch), pack_value(refusal), ttl_s=self.config.ttl_s, peers=peers)

    # -- proposing --

    async def _propose(self, found: _Round, hotkey: AccountKey) -> None:
        """Propose the epoch's scores if we can by now; else the next block comes back here."""
        offset = self._offset_in(found.epoch + 1)
        windows = self._epochs.windows
        if found.closed or found.tries >= self.config.max_tries:
            return
        if offset > windows.attest_by:
            self._say(found, logging.ERROR, "not proposed: the time for it is over")
            return
        try:
            prepared = await self._prepare(found, offset)
        except ConsensusError as error:
            found.closed = error.reason == "score-failed"  # another block will not mend that
            raise
        if prepared is None:
            return
        scores, args = prepared
        found.tries += 1
        try:
            receipt = await self._chain.propose(self._subnet_id, scores, args=rules.encode_args(args), hotkey=hotkey)
        except ExtrinsicFailed as error:
            if error.name not in DONE_PROPOSING | NOT_OURS:
                raise
            found.closed = True
            log.warning("epoch %d: our proposal came to nothing: %s", found.epoch, error)
            return
        except (ChainUnavailable, ExtrinsicLost):
            found.tries -= 1
            raise
        found.closed = True
        log.log(
            logging.INFO if offset <= windows.propose_by else logging.WARNING,
            "epoch %d: proposed %d scores at block %d (%d of the epoch)%s",
            found.epoch,
            len(scores),
            receipt.block.number,
            offset,
            f", empty: {args.reason}" if args.reason else "",
        )

    async def _prepare(self, found: _Round, offset: int) -> tuple[tuple[Score, ...], ProposalArgs] | None:
        """Scores and args to propose; None while waiting may still bring what is missing."""
        ctx, limits = found.ctx, found.ctx.thresholds
        if unheard := [p for p in ctx.validators if p not in found.book.heard()]:
            await self._ask_inventories(found, unheard)
        standing = {owner: inventory for owner, (_, inventory) in found.book.valid().items()}
        if len(standing) < limits.need:
            if offset < self._scaled(self.config.give_up_block):
                return None
            return (), self._args(ctx, reason=rules.TOO_FEW_INVENTORIES)
        if found.book.heard() != ctx.validators.keys() and offset < self._scaled(self.config.gather_block):
            return None
        records = await self._complete(found, standing)
        if not records.keys() >= set(rules.named(standing.values(), limits.naming)) and (
            offset < self._epochs.windows.propose_by - 1
        ):
            self._say(found, logging.WARNING, "records are missing; asking again")
            return None
        choice = rules.choose(standing, held=records.keys(), limits=limits)
        blob = rules.make_blob(
            (*found.book.records(choice.owners), *found.book.records(tuple(found.book.proofs()))),
            (records[digest] for digest in choice.digests),
        )
        data = rules.encode_blob(blob)
        evidence = await self._evidence(ctx, rules.evidence_of(blob, ctx))
        scores = self._score(evidence)
        return scores, self._args(ctx, evidence=self._keep(found, data), size=len(data))

    async def _complete(self, found: _Round, standing: dict[PeerID, rules.Inventory]) -> dict[bytes, Record]:
        """The valid records among those enough inventories name, asking others for what we lack."""
        wanted = rules.named(standing.values(), found.ctx.thresholds.naming)
        held = self._held(found)
        missing = {digest for digest in wanted if digest not in held}
        if missing:
            await self._ask_records(found, missing)
            held.update(found.records)
        usable = {}
        for number, digest in enumerate(wanted):
            if number % self.config.checks_per_turn == 0:
                await trio.lowlevel.checkpoint()
            if digest in held:
                rules.check_record(held[digest], found.ctx)
                usable[digest] = held[digest]
        return usable

    @staticmethod
    def _args(ctx: RoundContext, *, evidence: bytes = b"", size: int = 0, reason: str = "") -> ProposalArgs:
        return ProposalArgs(
            v=rules.VERSION,
            epoch=ctx.epoch,
            snapshot=ctx.snapshot.block.hash,
            evidence=evidence,
            size=size,
            score=ctx.score_id,
            reason=reason,
        )

    def _keep(self, found: _Round, data: bytes) -> bytes:
        digest = self._content.put(data)
        self._pin(found, digest)
        return digest

    def _pin(self, found: _Round, digest: bytes) -> None:
        if digest not in found.pinned:
            self._content.pin(digest)
            found.pinned.add(digest)

    # -- telling --

    async def _resettle(self, epoch: int) -> None:
        """Tell the subnet again what was settled shortly before this run, as far as the blobs can still be had."""
        for work in range(max(0, epoch - 1 - self.config.settle_back), max(0, epoch - 1)):
            while True:
                try:
                    await self._settle_past(work)
                    break
                except ChainUnavailable as error:
                    log.warning("epoch %d is not read yet: %s", work, error)
                    await self._epochs.wait_block()
                except MeshError as error:
                    log.warning("epoch %d is not told again: %s", work, error)
                    break
        self._resettled.set()
        self._tell()

    async def _settle_past(self, epoch: int) -> None:
        submission = await self._chain.submission(self._subnet_id, epoch + 1)
        if submission is None:
            return
        found = await self._round(epoch)
        await self._weigh(found, submission)
        if found.settlement is not None:
            self._ready[epoch] = found.settlement

    def _tell(self) -> None:
        if not self._resettled.is_set():
            return
        for epoch in sorted(self._ready):
            settlement = self._ready.pop(epoch)
            if epoch > self._told:
                self._told = epoch
                self._emit(settlement)

    def _emit(self, settlement: Settlement) -> None:
        while True:
            try:
                self._send.send_nowait(settlement)
                return
            except trio.WouldBlock:
                try:
                    if self._receiver is None:
                        raise trio.WouldBlock
                    dropped = self._receiver.receive_nowait()
                except (trio.WouldBlock, trio.ClosedResourceError):
                    log.warning("epoch %d: nobody reads settlements; dropped", settlement.evidence.epoch)
                    return
                log.warning("epoch %d: its settlement was not read in time and is dropped", dropped.evidence.epoch)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the subnet has ended; so will the node

    async def _note_missed(self, epoch: int) -> None:
        """Say once when the epoch before `epoch + 1` got no proposal."""
        if self._missed_checked is not None and self._missed_checked >= epoch:
            return
        if epoch > 0 and await self._chain.submission(self._subnet_id, epoch) is None:
            elected = await self._chain.elected(self._subnet_id, epoch)
            if elected is not None:
                log.warning("epoch %d: missed, node %d was elected and proposed nothing", epoch - 1, elected)
        self._missed_checked = epoch

    def _say(self, found: _Round, level: int, text: str) -> None:
        if text not in found.said:
            found.said.add(text)
            log.log(level, "epoch %d: %s", found.epoch, text)


def _fingerprint(submission: Submission) -> object:
    """What of a submission does not change while others attest it."""
    return (submission.proposer_node_id, submission.scores, submission.args)
