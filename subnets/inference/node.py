"""The inference node: serve one model, and prove in every epoch that it is the one the others serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import trio
from pydantic import BaseModel

from mesh.chain.types import Score
from mesh.consensus.evidence import Commit, epoch_key
from mesh.consensus.quorum import SALT_BYTES
from mesh.content import digest_of
from mesh.errors import ConfigError, MeshError, ModelRejected
from mesh.kad.validator import NamespaceRule
from mesh.peer import PeerID
from mesh.rpc.servicer import Servicer
from mesh.subnet import Evidence, SubnetContext
from mesh.worker import Priority
from subnets.inference.config import InferenceConfig
from subnets.inference.models import MAX_MODEL_BYTES
from subnets.inference.records import COMMIT, PROBE, Answer, answer_commitment, probe_seed, rules
from subnets.inference.score import SCORE_ID, score
from subnets.inference.service import Batcher, InferenceServicer, Served

log = logging.getLogger(__name__)


@dataclass
class InferenceSubnet:
    """The subnet object."""

    Config: ClassVar[type[BaseModel]] = InferenceConfig
    jobs: ClassVar[Mapping[str, str]] = {
        "predict": "subnets.inference.core:predict",
        "check": "subnets.inference.core:check",
        "probe": "subnets.inference.core:probe",
    }
    name: str = "inference"
    score_id: str = SCORE_ID
    _batchers: dict[PeerID, Batcher] = field(default_factory=dict, init=False, repr=False)
    """Made by `servicers`, taken by `run`; one that never ran gives way to the next of its identity."""

    def rules(self, config: InferenceConfig) -> Sequence[NamespaceRule]:
        return rules(config.record_ttl_s)

    def evidence_keys(self, epoch: int) -> Sequence[bytes]:
        return [epoch_key(COMMIT, epoch), epoch_key(PROBE, epoch)]

    def servicers(self, ctx: SubnetContext, config: InferenceConfig) -> Sequence[Servicer]:
        batcher = self._batchers[ctx.identity.peer_id] = Batcher(ctx.worker, config.batch)
        return [InferenceServicer(batcher)]

    async def run(
        self,
        ctx: SubnetContext,
        config: InferenceConfig,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """started() once the model is checked and served. Raises ConfigError for a model that cannot be."""
        batcher = self._batchers.pop(ctx.identity.peer_id, None) or Batcher(ctx.worker, config.batch)
        model = await _load(ctx, config)
        batcher.use(Served(digest_of(model["model"]), model["model"], config.architecture, config.width, 0, 0))
        async with trio.open_nursery() as nursery:
            await nursery.start(batcher.run)
            nursery.start_soon(_prove, ctx, config, model)
            task_status.started()

    def score(self, evidence: Evidence) -> Sequence[Score]:
        return score(evidence)


async def _load(ctx: SubnetContext, config: InferenceConfig) -> dict[str, Any]:
    try:
        with config.model.open("rb") as file:
            data = file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the model {config.model}: {error.strerror}") from error
    model = {"model": data, "architecture": config.architecture, "width": config.width}
    try:
        await ctx.worker.call("check", model)
    except ModelRejected as error:
        raise ConfigError(f"{config.model} cannot be served: {error}") from error
    return model


async def _prove(ctx: SubnetContext, config: InferenceConfig, model: Mapping[str, Any]) -> None:
    """Answer every epoch's drawn inputs."""
    async for epoch in ctx.epochs.each():
        try:
            snapshot = await ctx.epochs.snapshot(epoch)
            if ctx.identity.peer_id in snapshot.validator_peers(epoch):
                await _answer(ctx, config, model, epoch)
        except MeshError as error:
            log.warning("epoch %d: %s", epoch, error)


async def _answer(ctx: SubnetContext, config: InferenceConfig, model: Mapping[str, Any], epoch: int) -> None:
    when = ctx.epochs.windows
    await ctx.epochs.wait_until(epoch, when.vote_commit.first)
    seed = probe_seed(await ctx.epochs.draw_hash(epoch))
    found = await ctx.worker.call("probe", {**model, "seed": seed}, priority=Priority.VERIFY)
    answer = Answer(model=digest_of(model["model"]), labels=found["labels"], salt=ctx.rng.randbytes(SALT_BYTES))
    commit = answer_commitment(ctx.genesis, ctx.subnet_id, epoch=epoch, owner=ctx.identity.peer_id, answer=answer)
    for namespace, value, first in ((COMMIT, Commit(commitment=commit), 0), (PROBE, answer, when.vote_reveal.first)):
        await ctx.epochs.wait_until(epoch, first)
        await ctx.put_evidence(epoch, epoch_key(namespace, epoch), value, ttl_s=config.record_ttl_s)
