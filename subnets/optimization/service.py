"""The optimization node: explore, claim, verify others, serve the champion. A thin shell around the pure parts.

Four tasks run side by side. `_explore` searches whenever the worker has nothing better to do. `_epochs` follows the
chain's blocks through claim and verification. `_settle` follows what was settled and serves the champion. The batcher
answers clients. All computing happens in the worker; this process only talks.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.chain.types import Score, Snapshot
from mesh.consensus.evidence import Commit, epoch_key, read_value
from mesh.consensus.quorum import SALT_BYTES, quorum
from mesh.errors import ContentNotFound, LocalProtocolError, MeshError, ModelRejected, WorkerError
from mesh.kad.record import Record
from mesh.kad.validator import NamespaceRule
from mesh.peer import PeerID
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.subnet import Evidence, Settlement, SubnetContext
from mesh.worker import Priority
from subnets.inference.models import ARCHITECTURE, MAX_MODEL_BYTES
from subnets.inference.service import Batcher, InferenceServicer, Served
from subnets.optimization.candidate import DEFAULT, Candidate
from subnets.optimization.config import OptimizationConfig
from subnets.optimization.records import (
    CLAIM,
    CLAIM_COMMIT,
    EVIDENCE,
    MIGRANT,
    VOTE,
    VOTE_COMMIT,
    Champion,
    Claim,
    Migrant,
    Vote,
    claim_commitment,
    rules,
    verification_seed,
    vote_commitment,
)
from subnets.optimization.score import QUORUM_SIZE, SCORE_ID, TOLERANCE_PPM, Outcome, outcome
from subnets.optimization.state import PendingVote, load_state, save_state

log = logging.getLogger(__name__)

PROTOCOL: Final = "/mesh/optimization/1.0.0"
STATE_FILE: Final = "optimization.msgpack"
_RETRY_S: Final = 2.0
_MAX_FOREIGN: Final = 1024
_MAX_MIGRANTS: Final = 64
"""Foreign candidates that wait for the next exploration; the oldest give way."""


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate this node measured itself, on several splits."""

    candidate: Candidate
    ppm: int


Restate = Callable[[Sequence[Found]], Found | None]
"""What a node says of what it found: (everything measured, best first) → the claim, or None for no claim."""


def best_found(found: Sequence[Found]) -> Found | None:
    """The honest statement: the best candidate, with the accuracy that was measured."""
    return found[0] if found else None


class StatusRequest(BaseModel):
    """How far is the search?"""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClaimReport(BaseModel):
    """One claim of the last settled epoch, as this node judged it from the evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_id: int
    status: str
    claimed_ppm: int
    verified_ppm: int | None
    gain_ppm: int


class StatusReply(BaseModel):
    """What an optimization node knows now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    explored: int
    """Candidates trained so far by this node's island."""
    best_ppm: int
    """Best own candidate, as measured on its own splits; 0 before the first."""
    champion_epoch: int
    """Subnet epoch whose quorum verified the champion; 0 for the documented default."""
    champion_ppm: int
    champion_digest: bytes
    """Digest of the weights that are served; empty until something is."""
    settled_epoch: int
    """Last settled epoch this node saw, -1 before the first."""
    claims: list[ClaimReport] = Field(max_length=1024)
    """Of that epoch."""


class OptimizationServicer(Servicer):
    """Progress, for members."""

    protocol = PROTOCOL

    def __init__(self, read: Callable[[], StatusReply]) -> None:
        self._read = read

    @method(timeout_s=5.0)
    async def rpc_status(self, request: StatusRequest, ctx: RpcContext) -> StatusReply:
        """How far this node is."""
        return self._read()


@dataclass
class OptimizationSubnet:
    """The subnet object. `restate` is how a node states what it found; the honest way is the default."""

    Config: ClassVar[type[BaseModel]] = OptimizationConfig
    jobs: ClassVar[Mapping[str, str]] = {
        "explore": "subnets.optimization.jobs:explore",
        "measure": "subnets.optimization.jobs:measure",
        "judge": "subnets.optimization.jobs:judge",
        "serve": "subnets.optimization.jobs:serve",
        "check": "subnets.optimization.jobs:check",
        "pool": "subnets.optimization.jobs:pool",
        "predict": "subnets.inference.core:predict",
    }
    """Jobs of the compute worker; nothing here imports torch in the node's own process."""

    name: str = "optimization"
    score_id: str = SCORE_ID
    restate: Restate = best_found

    _nodes: dict[PeerID, _Node] = field(default_factory=dict, init=False, repr=False)
    """Made by `servicers`, taken by `run`; one that never ran gives way to the next of its identity."""

    def rules(self, config: OptimizationConfig) -> Sequence[NamespaceRule]:
        return rules(max_ttl_s=config.record_ttl_s, migrant_ttl_s=config.migrant_ttl_s)

    def evidence_keys(self, epoch: int) -> Sequence[bytes]:
        return [epoch_key(namespace, epoch) for namespace in EVIDENCE]

    def servicers(self, ctx: SubnetContext, config: OptimizationConfig) -> Sequence[Servicer]:
        node = self._nodes[ctx.identity.peer_id] = _Node(ctx, config, self.restate)
        return [InferenceServicer(node.batcher), OptimizationServicer(node.status)]

    async def run(
        self,
        ctx: SubnetContext,
        config: OptimizationConfig,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """started() once the default model is trained and served."""
        node = self._nodes.pop(ctx.identity.peer_id, None) or _Node(ctx, config, self.restate)
        await node.run(task_status=task_status)

    def score(self, evidence: Evidence) -> Sequence[Score]:
        return outcome(evidence).scores

    def outcome(self, evidence: Evidence) -> Outcome:
        """The full judgement: claims, reasons, champion, scores."""
        return outcome(evidence)


class _Node:
    def __init__(self, ctx: SubnetContext, config: OptimizationConfig, restate: Restate) -> None:
        self._ctx = ctx
        self._config = config
        self._restate = restate
        self._me = ctx.identity.peer_id
        self.batcher = Batcher(ctx.worker, config.batch)
        self._state_path = ctx.data_dir / STATE_FILE
        self._state = load_state(self._state_path)
        self._pool = str(config.pool or ctx.data_dir / "pool")
        self._found: list[Found] = []
        self._foreign: OrderedDict[bytes, None] = OrderedDict()
        """Candidates others published: fine to learn from, not to claim."""
        self._migrants: deque[Candidate] = deque(maxlen=_MAX_MIGRANTS)
        self._explored = 0
        self._last: Outcome | None = None

    # -- running --

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        if self._config.pool is None:
            await self._ctx.worker.call("pool", {"directory": self._pool, "seed": self._config.data_seed})
        await self._serve_own_training(self._state.champion)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.batcher.run)
            nursery.start_soon(self._explore)
            nursery.start_soon(self._epochs)
            nursery.start_soon(self._settle)
            task_status.started()

    def status(self) -> StatusReply:
        last = self._last
        served = self.batcher.served
        return StatusReply(
            epoch=self._ctx.epochs.position().epoch,
            explored=self._explored,
            best_ppm=self._found[0].ppm if self._found else 0,
            champion_epoch=self._state.champion.epoch,
            champion_ppm=self._state.champion.ppm,
            champion_digest=served.digest if served else b"",
            settled_epoch=last.epoch if last else -1,
            claims=[
                ClaimReport(
                    node_id=v.node_id,
                    status=v.status.value,
                    claimed_ppm=v.claim.claimed_ppm if v.claim else 0,
                    verified_ppm=v.median_ppm,
                    gain_ppm=v.gain_ppm,
                )
                for v in (last.verdicts if last else ())[:1024]
            ],
        )

    # -- exploring --

    async def _explore(self) -> None:
        """Search for ever; a failure of the worker costs one step."""
        island = self._ctx.rng.getrandbits(62)
        await self._patiently("measuring the default", lambda: self._confirm(DEFAULT, Priority.EXPLORE))
        while True:
            await self._until_votes_are_cast()
            began = trio.current_time()
            await self._patiently("exploring", lambda: self._explore_once(island))
            await trio.sleep(self._config.rest * (trio.current_time() - began))

    async def _until_votes_are_cast(self) -> None:
        """Rest from the draw until votes are committed: verifying has a deadline, and nodes may share a machine."""
        epochs = self._ctx.epochs
        while epochs.windows.draw <= epochs.position().offset <= epochs.windows.vote_commit.last:
            await epochs.wait_block()

    async def _explore_once(self, island: int) -> None:
        migrants = list(self._migrants)
        self._migrants.clear()
        best = self._found[0].candidate if self._found else self._state.champion.candidate
        reply = await self._ctx.worker.call(
            "explore",
            {
                "pool": self._pool,
                "island": island,
                "best": best.model_dump(),
                "migrants": [one.model_dump() for one in migrants],
            },
            priority=Priority.EXPLORE,
        )
        self._explored += 1
        candidate = Candidate(**reply["candidate"])
        if not self._found or reply["ppm"] > self._found[0].ppm:
            await self._confirm(candidate, Priority.EXPLORE)

    async def _confirm(self, candidate: Candidate, priority: Priority) -> None:
        """Measure a promising candidate on fresh splits: the single one that made it look good flatters it."""
        if any(found.candidate == candidate for found in self._found):
            return
        reply = await self._ctx.worker.call(
            "measure",
            {
                "pool": self._pool,
                "candidate": candidate.model_dump(),
                "seed": self._ctx.rng.getrandbits(62),
                "splits": self._config.confirm_splits,
            },
            priority=priority,
        )
        self._found.append(Found(candidate, reply["ppm"]))
        self._found.sort(key=lambda found: -found.ppm)
        del self._found[self._config.max_candidates - 1 : -1]  # the worst stays, as a measure

    async def _patiently(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except WorkerError as error:
            log.warning("%s: %s", what, error)
            await trio.sleep(_RETRY_S)

    # -- epochs --

    async def _epochs(self) -> None:
        async for epoch in self._ctx.epochs.each():
            try:
                await self._epoch(epoch)
            except MeshError as error:
                log.warning("epoch %d: %s", epoch, error)

    async def _epoch(self, epoch: int) -> None:
        snapshot = await self._ctx.epochs.snapshot(epoch)
        if snapshot.by_peer(self._me) is None:
            log.info("epoch %d: this node is not in the snapshot; exploring only", epoch)
            return
        if not snapshot.validators(epoch):
            return  # before the subnet is active there is nobody to judge
        if self._state.epoch != epoch:
            self._save(epoch=epoch, claim=None, votes=[])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._contained, "claim", epoch, lambda: self._claim(epoch))
            if self._me in snapshot.validator_peers(epoch):
                nursery.start_soon(self._contained, "verification", epoch, lambda: self._verify(epoch, snapshot))

    async def _contained(self, what: str, epoch: int, part: Callable[[], Awaitable[None]]) -> None:
        """One part's failure leaves the other alone."""
        try:
            await part()
        except MeshError as error:
            log.warning("epoch %d, %s: %s", epoch, what, error)

    async def _claim(self, epoch: int) -> None:
        epochs, when = self._ctx.epochs, self._ctx.epochs.windows
        claim = self._state.claim or await self._commit(epoch)
        if claim is None:
            return
        await epochs.wait_until(epoch, when.reveal.first)
        if not epochs.is_by(epoch, when.reveal.last):
            return
        await self._put(CLAIM, epoch, claim)
        await self._put(MIGRANT, epoch, Migrant(candidate=claim.candidate, ppm=claim.claimed_ppm))

    async def _commit(self, epoch: int) -> Claim | None:
        """Choose a claim and commit to it; None when its window passed or there is nothing to claim."""
        epochs, when = self._ctx.epochs, self._ctx.epochs.windows.claim_commit
        # A third into the window: late enough to have searched on, early enough to train and reach all validators.
        await epochs.wait_until(epoch, when.first + (when.last - when.first) // 3)
        if not epochs.is_by(epoch, when.last):
            return None
        stated = self._restate(self._claimable())
        if stated is None:
            log.info("epoch %d: nothing to claim yet", epoch)
            return None
        trained = await self._worker("serve", {"candidate": stated.candidate.model_dump()}, Priority.VERIFY)
        claim = Claim(
            candidate=stated.candidate,
            claimed_ppm=stated.ppm,
            weights=self._ctx.content.put(trained["model"]),
            salt=self._salt(),
        )
        self._save(claim=claim)  # before the commit leaves: a restart must be able to reveal
        await self._put(CLAIM_COMMIT, epoch, Commit(commitment=self._claim_id(epoch, claim)))
        log.info("epoch %d: committed a claim of %d ppm", epoch, claim.claimed_ppm)
        return claim

    def _claimable(self) -> list[Found]:
        """What may be stated, best first: own discoveries, without the champion and what others published; and the
        default, which everybody may measure and nobody gains by."""
        champion = self._state.champion.candidate
        return [
            found
            for found in self._found
            if found.candidate == DEFAULT
            or (found.candidate != champion and found.candidate.digest() not in self._foreign)
        ]

    async def _verify(self, epoch: int, snapshot: Snapshot) -> None:
        epochs, when = self._ctx.epochs, self._ctx.epochs.windows
        await epochs.wait_until(epoch, when.reveal.first)
        draw_hash = await epochs.draw_hash(epoch)
        while epochs.is_by(epoch, when.vote_commit.last):
            seen = self._ctx.dht.changes
            self._take_migrants(epoch)
            for owner, claim_id, claim in self._revealed(epoch, snapshot):
                drawn = self._is_drawn(epoch, snapshot, owner, claim_id, draw_hash)
                if drawn and epochs.is_by(epoch, when.vote_commit.last):
                    await self._judge(epoch, claim_id, claim, draw_hash)
            await self._until_news(seen)
        await epochs.wait_until(epoch, when.vote_reveal.first)
        if not epochs.is_by(epoch, when.vote_reveal.last):
            return
        for pending in self._state.votes:
            await self._put(VOTE, epoch, pending.vote, subkey=pending.claim_id)

    def _revealed(self, epoch: int, snapshot: Snapshot) -> list[tuple[PeerID, bytes, Claim]]:
        """Claims that match their commit and are not voted on yet, as this node holds them."""
        commits = {record.owner: read_value(Commit, record) for record in self._local(CLAIM_COMMIT, epoch)}
        voted = {pending.claim_id for pending in self._state.votes}
        found = []
        for record in self._local(CLAIM, epoch):
            claim, commit = read_value(Claim, record), commits.get(record.owner)
            if claim is None or commit is None or record.owner == self._me or not snapshot.by_peer(record.owner):
                continue
            claim_id = self._claim_id(epoch, claim, record.owner)
            if claim_id == commit.commitment and claim_id not in voted:
                self._remember_foreign(claim.candidate)
                found.append((record.owner, claim_id, claim))
        return found

    def _is_drawn(self, epoch: int, snapshot: Snapshot, owner: PeerID, claim_id: bytes, draw_hash: bytes) -> bool:
        members = quorum(
            snapshot,
            genesis=self._ctx.genesis,
            epoch=epoch,
            claim_commit_digest=claim_id,
            draw_hash=draw_hash,
            claim_owner=owner,
            size=QUORUM_SIZE,
        )
        return any(member.peer_id == self._me for member in members)

    async def _judge(self, epoch: int, claim_id: bytes, claim: Claim, draw_hash: bytes) -> None:
        """Re-train a claim's candidate and the champion on the drawn splits, and commit to what came out."""
        incumbent = self._state.champion
        found = await self._worker(
            "judge",
            {
                "candidate": claim.candidate.model_dump(),
                "incumbent": incumbent.candidate.model_dump(),
                "seed": verification_seed(draw_hash, claim_id),
            },
            Priority.VERIFY,
        )
        vote = Vote(
            candidate_ppm=found["candidate_ppm"],
            incumbent=incumbent,
            incumbent_ppm=found["incumbent_ppm"],
            salt=self._salt(),
        )
        self._save(votes=[*self._state.votes, PendingVote(claim_id=claim_id, vote=vote)])
        commit = vote_commitment(
            self._ctx.genesis, self._ctx.subnet_id, epoch=epoch, owner=self._me, claim_id=claim_id, vote=vote
        )
        await self._put(VOTE_COMMIT, epoch, Commit(commitment=commit), subkey=claim_id)

    def _take_migrants(self, epoch: int) -> None:
        """Others' champions join the next generation of the island, where they are measured like any other."""
        for record in self._local(MIGRANT, epoch):
            migrant = read_value(Migrant, record)
            if migrant is None or record.owner == self._me or migrant.candidate.digest() in self._foreign:
                continue
            self._remember_foreign(migrant.candidate)
            self._migrants.append(migrant.candidate)

    def _remember_foreign(self, candidate: Candidate) -> None:
        self._foreign[candidate.digest()] = None
        while len(self._foreign) > _MAX_FOREIGN:
            self._foreign.popitem(last=False)

    # -- settlement and serving --

    async def _settle(self) -> None:
        """Follow settled epochs: learn the champion and serve it."""
        async for settlement in self._ctx.settlements:
            judged = outcome(settlement.evidence)
            self._last = judged
            log.info(
                "epoch %d is settled: champion %d ppm; claims: %s",
                judged.epoch,
                judged.champion.ppm,
                ", ".join(f"node {v.node_id} {v.status.value}" for v in judged.verdicts) or "none",
            )
            champion = judged.champion
            if champion == self._state.champion or champion.epoch < self._state.champion.epoch:
                continue
            self._save(champion=champion)  # the incumbent of the votes from now on
            try:
                await self._serve_champion(champion, settlement)
            except MeshError as error:
                log.warning("champion of epoch %d cannot be served, the old one stays: %s", champion.epoch, error)

    async def _serve_champion(self, champion: Champion, settlement: Settlement) -> None:
        """Fetch the champion's weights by digest, check and score them, serve them. If nobody has them, or they are
        not what was verified, train the verified candidate here instead: that is what was agreed on."""
        evidence = settlement.evidence
        draw_hash = evidence.draw_hash
        if champion.epoch != evidence.epoch:
            draw_hash = await self._ctx.epochs.draw_hash(champion.epoch)
        others = [node.peer_id for node in evidence.snapshot.nodes if node.peer_id != self._me]
        others.sort(key=lambda peer: peer.multihash != champion.owner)  # its finder first
        try:
            data = await self._ctx.content.fetch(champion.weights, max_bytes=MAX_MODEL_BYTES, peers=others)
            await self._check(champion, data, draw_hash)
        except (ContentNotFound, ModelRejected) as error:
            log.warning("weights of the champion of epoch %d: %s; training them here", champion.epoch, error)
            await self._serve_own_training(champion)
            return
        self._use(champion, champion.weights, data)

    async def _check(self, champion: Champion, data: bytes, draw_hash: bytes) -> None:
        await self._worker(
            "check",
            {
                "candidate": champion.candidate.model_dump(),
                "model": data,
                "seed": verification_seed(draw_hash, champion.claim_id),
                "verified_ppm": champion.ppm,
                "tolerance_ppm": TOLERANCE_PPM,
            },
            Priority.SERVE,
        )

    async def _serve_own_training(self, champion: Champion) -> None:
        """Train a candidate deterministically and serve it: the default before the first champion, a known champion
        after a restart."""
        trained = await self._worker("serve", {"candidate": champion.candidate.model_dump()}, Priority.SERVE)
        self._use(champion, self._ctx.content.put(trained["model"]), trained["model"])

    def _use(self, champion: Champion, digest: bytes, data: bytes) -> None:
        self.batcher.use(Served(digest, data, ARCHITECTURE, champion.candidate.hidden, champion.ppm, champion.epoch))
        log.info("serving %s of epoch %d, verified %d ppm", digest.hex()[:16], champion.epoch, champion.ppm)

    # -- helpers --

    async def _worker(self, job: str, args: dict[str, object], priority: Priority) -> dict[str, Any]:
        return await self._ctx.worker.call(job, {"pool": self._pool, **args}, priority=priority)

    async def _put(self, namespace: str, epoch: int, value: BaseModel, *, subkey: bytes = b"") -> None:
        """Store at every validator of the epoch, who will say in their inventories what they hold."""
        ttl_s = self._config.migrant_ttl_s if namespace == MIGRANT else self._config.record_ttl_s
        report = await self._ctx.put_evidence(epoch, epoch_key(namespace, epoch), value, subkey=subkey, ttl_s=ttl_s)
        for peer, reason in report.refused.items():
            log.info("epoch %d: %s refused our %s: %s", epoch, peer, namespace, reason)

    def _local(self, namespace: str, epoch: int) -> Sequence[Record]:
        return self._ctx.dht.local(epoch_key(namespace, epoch))

    def _claim_id(self, epoch: int, claim: Claim, owner: PeerID | None = None) -> bytes:
        return claim_commitment(
            self._ctx.genesis, self._ctx.subnet_id, epoch=epoch, owner=owner or self._me, claim=claim
        )

    def _salt(self) -> bytes:
        return self._ctx.rng.randbytes(SALT_BYTES)

    async def _until_news(self, seen: int) -> None:
        """Wait for a new local record or a new block, whichever comes first."""
        async with trio.open_nursery() as nursery:

            async def first(wait: Callable[[], Awaitable[object]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, lambda: self._ctx.dht.wait_change(seen))
            nursery.start_soon(first, self._ctx.epochs.wait_block)

    def _save(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)
        try:
            save_state(self._state_path, self._state)
        except LocalProtocolError as error:
            log.error("%s: a restart would lose this epoch's claim and votes", error)
