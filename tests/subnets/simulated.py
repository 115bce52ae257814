"""What whole simulated epochs of a subnet need besides mesh.testing.village: a worker and a look inside.

What is replaced: the worker (a process, so no part of a deterministic run) by a function that says how good a candidate
is. It is a seam of the framework: `mesh.node.Parts.worker`. Everything else is the product's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio
from pydantic import BaseModel

from mesh.errors import ModelRejected
from mesh.subnet import Evidence, SubnetContext
from mesh.worker import Priority
from subnets.optimization.candidate import DIMENSIONS, Candidate, from_unit, to_unit


def quality(candidate: Candidate, seed: int) -> int:
    """A smooth landscape (0.80 at the default, 0.97 at its top) with noise of ± 5,000 ppm, in place of training."""
    top = {"lr_micro": 0.8, "hidden": 0.9, "batch": 0.9}
    away = sum((to_unit(candidate)[i] - top.get(axis.name, 0.5)) ** 2 for i, axis in enumerate(DIMENSIONS))
    noise = hashlib.sha256(candidate.digest() + seed.to_bytes(8, "big")).digest()[0] * 10_000 // 255 - 5_000
    return max(0, min(1_000_000, 970_000 - int(away * 190_000) + noise))


class ScriptedWorker:
    """Answers the subnet's jobs from `quality`, in virtual time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.calls: list[str] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def call(
        self, name: str, args: Mapping[str, Any], *, priority: Priority = Priority.SERVE, timeout_s: float | None = None
    ) -> dict[str, Any]:
        self.calls.append(name)
        await trio.sleep(0.5 if name == "explore" else 0.2)
        if name == "explore":
            point = [min(1.0, max(0.0, x + self._rng.gauss(0, 0.15))) for x in to_unit(Candidate(**args["best"]))]
            candidate = from_unit(point)
            return {"candidate": candidate.model_dump(), "ppm": quality(candidate, self._rng.getrandbits(60))}
        if name == "measure":
            return {"ppm": quality(Candidate(**args["candidate"]), args["seed"])}
        if name == "judge":
            return {
                "candidate_ppm": quality(Candidate(**args["candidate"]), args["seed"]),
                "incumbent_ppm": quality(Candidate(**args["incumbent"]), args["seed"]),
            }
        if name == "serve":
            return {"model": b"weights of " + Candidate(**args["candidate"]).digest(), "ppm": 0}
        if name == "check" and "candidate" in args:
            if args["model"] != b"weights of " + Candidate(**args["candidate"]).digest():
                raise ModelRejected("other weights")
            return {"ppm": args["verified_ppm"]}
        if name == "predict":
            return {"labels": [7] * args["rows"], "device": "cpu"}
        if name == "score":
            return {"ppm": (args["seed"] + args["model"][0]) % 1_000_000}
        if name == "probe":
            return {"labels": hashlib.sha256(args["model"] + args["seed"].to_bytes(8, "big")).digest()}
        return {}


class Watched:
    """A subnet on one node, with the context it was given and the evidence it scored kept for a test to look at.

    `config` makes this node's own settings from its data directory.
    """

    def __init__(self, subnet: Any, config: Callable[[Path], BaseModel] | None = None) -> None:
        self._subnet = subnet
        self._make = config
        self.evidence: dict[int, Evidence] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subnet, name)

    def _settings(self, ctx: SubnetContext, config: Any) -> Any:
        return config if self._make is None else self._make(ctx.data_dir)

    def servicers(self, ctx: SubnetContext, config: Any) -> Any:
        self.ctx = ctx
        return self._subnet.servicers(ctx, self._settings(ctx, config))

    async def run(self, ctx: SubnetContext, config: Any, *, task_status: trio.TaskStatus[None]) -> None:
        await self._subnet.run(ctx, self._settings(ctx, config), task_status=task_status)

    def score(self, evidence: Evidence) -> Any:
        self.evidence[evidence.epoch] = evidence
        return self._subnet.score(evidence)


def watch(*subnets: Any, config: Callable[[Path], BaseModel] | None = None) -> dict[int, Any]:
    """Node id -> its subnet, watched."""
    return {number: Watched(subnet, config) for number, subnet in enumerate(subnets, start=1)}


def scripted(number: int) -> ScriptedWorker:
    """The worker of a node."""
    return ScriptedWorker(random.Random(number + 200))
