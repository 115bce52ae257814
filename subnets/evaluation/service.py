"""The evaluation node: takes models to be judged, judges those it is drawn for, answers what was found.

A member sends a model with `rpc_request`; in the next epoch the node asks the network, a quorum drawn afterwards scores
the weights on samples drawn with it, and from the settlement on every node tells the finding with `rpc_result`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.chain.types import Score, Snapshot
from mesh.consensus.evidence import Commit, Digest, epoch_key
from mesh.consensus.quorum import SALT_BYTES, quorum
from mesh.errors import MeshError, RemoteFailure
from mesh.kad.validator import NamespaceRule, unpack_value
from mesh.peer import PeerID
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.subnet import Evidence, SubnetContext
from mesh.worker import Priority
from subnets.evaluation.config import EvaluationConfig
from subnets.evaluation.records import (
    REQUEST,
    REQUESTS_PER_OWNER,
    VOTE,
    VOTE_COMMIT,
    Request,
    Vote,
    request_id,
    rules,
    seed_of,
    vote_commitment,
)
from subnets.evaluation.score import QUORUM_SIZE, SCORE_ID, evaluated, score
from subnets.evaluation.votes import Ballot
from subnets.inference.models import MAX_MODEL_BYTES

log = logging.getLogger(__name__)

PROTOCOL: Final = "/mesh/evaluation/1.0.0"
_ASK_EARLY_BLOCKS: Final = 2


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvaluateRequest(_Message):
    """A model to be judged."""

    architecture: str = Field(max_length=32)
    width: int = Field(ge=1, le=4096)
    data: bytes = Field(max_length=MAX_MODEL_BYTES)
    """safetensors."""


class EvaluateReply(_Message):
    """Taken; ask for the result by this digest after an epoch."""

    model: bytes


class ResultRequest(_Message):
    """What was found about a model?"""

    model: Digest


class ResultReply(_Message):
    """The newest settled finding."""

    epoch: int
    ppm: int
    agreed: int
    """Votes that agree with it."""


class EvaluationServicer(Servicer):
    """Takes models, tells findings."""

    protocol = PROTOCOL

    def __init__(self, node: _Node) -> None:
        self._node = node

    @method(timeout_s=10.0, max_request_bytes=MAX_MODEL_BYTES + 1024, max_concurrent=8)
    async def rpc_request(self, request: EvaluateRequest, ctx: RpcContext) -> EvaluateReply:
        """Have a model judged in the next epoch. Fails with "busy" when too many wait."""
        return EvaluateReply(model=self._node.take(request))

    @method(timeout_s=5.0)
    async def rpc_result(self, request: ResultRequest, ctx: RpcContext) -> ResultReply:
        """What a quorum found. Fails with "unknown" while nothing is settled about this model."""
        found = self._node.results.get(request.model)
        if found is None:
            raise RemoteFailure("unknown", "no settled finding about this model", retryable=True)
        return found


@dataclass
class EvaluationSubnet:
    """The subnet object."""

    Config: ClassVar[type[BaseModel]] = EvaluationConfig
    jobs: ClassVar[Mapping[str, str]] = {
        "score": "subnets.optimization.jobs:score",
        "pool": "subnets.optimization.jobs:pool",
    }
    """By name only: this process imports neither torch nor the optimization subnet."""

    name: str = "evaluation"
    score_id: str = SCORE_ID
    _nodes: dict[PeerID, _Node] = field(default_factory=dict, init=False, repr=False)
    """Made by `servicers`, taken by `run`; one that never ran gives way to the next of its identity."""

    def rules(self, config: EvaluationConfig) -> Sequence[NamespaceRule]:
        return rules(config.record_ttl_s)

    def evidence_keys(self, epoch: int) -> Sequence[bytes]:
        return [epoch_key(namespace, epoch) for namespace in (REQUEST, VOTE_COMMIT, VOTE)]

    def servicers(self, ctx: SubnetContext, config: EvaluationConfig) -> Sequence[Servicer]:
        node = self._nodes[ctx.identity.peer_id] = _Node(ctx, config)
        return [EvaluationServicer(node)]

    async def run(
        self,
        ctx: SubnetContext,
        config: EvaluationConfig,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        node = self._nodes.pop(ctx.identity.peer_id, None) or _Node(ctx, config)
        await node.run(task_status=task_status)

    def score(self, evidence: Evidence) -> Sequence[Score]:
        return score(evidence)


class _Node:
    def __init__(self, ctx: SubnetContext, config: EvaluationConfig) -> None:
        self._ctx = ctx
        self._config = config
        self._me = ctx.identity.peer_id
        self._pool = str(config.pool or ctx.data_dir / "pool")
        self._queue: deque[Request] = deque()
        self.results: OrderedDict[bytes, ResultReply] = OrderedDict()

    def take(self, wanted: EvaluateRequest) -> bytes:
        """Queue a model for the next epoch and return its digest. The quorum checks it; here only its size was."""
        if len(self._queue) >= self._config.max_queued:
            raise RemoteFailure("busy", f"{len(self._queue)} models wait already", retryable=True)
        digest = self._ctx.content.put(wanted.data)
        self._queue.append(Request(architecture=wanted.architecture, width=wanted.width, model=digest))
        return digest

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        if self._config.pool is None:
            await self._ctx.worker.call("pool", {"directory": self._pool, "seed": self._config.data_seed})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._epochs)
            nursery.start_soon(self._settle)
            task_status.started()

    async def _settle(self) -> None:
        async for settlement in self._ctx.settlements:
            for one in evaluated(settlement.evidence):
                if one.finding.median is not None:
                    agreed = sum(ballot is Ballot.AGREED for _, ballot in one.finding.ballots)
                    self.results[one.request.model] = ResultReply(
                        epoch=settlement.evidence.epoch, ppm=one.finding.median, agreed=agreed
                    )
                    self.results.move_to_end(one.request.model)
            while len(self.results) > self._config.max_results:
                self.results.popitem(last=False)

    async def _epochs(self) -> None:
        epochs = self._ctx.epochs
        async for epoch in epochs.each():
            try:
                snapshot = await epochs.snapshot(epoch)
                if snapshot.by_peer(self._me) is not None:
                    await self._ask(epoch)
                    if self._me in snapshot.validator_peers(epoch):
                        await self._vote(epoch, snapshot)
            except MeshError as error:
                log.warning("epoch %d: %s", epoch, error)

    async def _ask(self, epoch: int) -> None:
        """Publish what waits, as many as one owner may."""
        when = self._ctx.epochs.windows.claim_commit
        await self._ctx.epochs.wait_until(epoch, max(when.first, when.last - _ASK_EARLY_BLOCKS))
        for _ in range(REQUESTS_PER_OWNER):
            if not self._queue or not self._ctx.epochs.is_by(epoch, when.last):
                return
            request = self._queue[0]
            await self._put(REQUEST, epoch, request, request.model)
            self._queue.popleft()  # what could not be put is asked in the next epoch

    async def _vote(self, epoch: int, snapshot: Snapshot) -> None:
        """Judge what this node is drawn for; commit, then reveal. Votes live in memory: a restart in between loses
        the epoch's votes, which the score counts as unrevealed."""
        epochs, when = self._ctx.epochs, self._ctx.epochs.windows
        await epochs.wait_until(epoch, when.vote_commit.first)
        draw_hash = await epochs.draw_hash(epoch)
        votes: dict[bytes, Vote] = {}
        for record in self._ctx.dht.local(epoch_key(REQUEST, epoch)):
            if not epochs.is_by(epoch, when.vote_commit.last):
                break
            if snapshot.by_peer(record.owner) is None:
                continue
            try:
                request = unpack_value(Request, record.value)
                name = request_id(epoch, record.owner, request)
                members = quorum(
                    snapshot,
                    genesis=self._ctx.genesis,
                    epoch=epoch,
                    claim_commit_digest=name,
                    draw_hash=draw_hash,
                    claim_owner=record.owner,
                    size=QUORUM_SIZE,
                )
                if not any(member.peer_id == self._me for member in members):
                    continue
                data = await self._ctx.content.fetch(request.model, max_bytes=MAX_MODEL_BYTES, peers=[record.owner])
                found = await self._ctx.worker.call(
                    "score",
                    {
                        "pool": self._pool,
                        "model": data,
                        "architecture": request.architecture,
                        "width": request.width,
                        "seed": seed_of(draw_hash, name),
                    },
                    priority=Priority.VERIFY,
                )
            except MeshError as error:
                log.info("epoch %d: no vote on a request of %s: %s", epoch, record.owner, error)
                continue
            vote = Vote(ppm=found["ppm"], salt=self._ctx.rng.randbytes(SALT_BYTES))
            votes[name] = vote
            commit = vote_commitment(
                self._ctx.genesis, self._ctx.subnet_id, epoch=epoch, owner=self._me, request=name, vote=vote
            )
            await self._put(VOTE_COMMIT, epoch, Commit(commitment=commit), name)
        await epochs.wait_until(epoch, when.vote_reveal.first)
        for name, vote in votes.items():
            if epochs.is_by(epoch, when.vote_reveal.last):
                await self._put(VOTE, epoch, vote, name)

    async def _put(self, namespace: str, epoch: int, value: BaseModel, subkey: bytes) -> None:
        await self._ctx.put_evidence(
            epoch, epoch_key(namespace, epoch), value, subkey=subkey, ttl_s=self._config.record_ttl_s
        )
