"""The optimization subnet's jobs in a real worker child: torch over there, none of it here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mesh.content import digest_of
from mesh.errors import ModelRejected, RemoteFailure
from mesh.worker import Priority, Worker
from subnets.inference.models import ARCHITECTURE
from subnets.inference.service import Batcher, Served, predict_request
from subnets.optimization.candidate import DEFAULT
from subnets.optimization.score import TOLERANCE_PPM
from subnets.optimization.service import OptimizationSubnet

GOOD = DEFAULT.model_copy(update={"lr_micro": 20_000, "batch": 128})


async def test_a_candidate_is_explored_judged_and_served_by_a_child(tmp_path: Path) -> None:
    worker = Worker(OptimizationSubnet.jobs)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        pool = str(tmp_path)
        await worker.call("pool", {"directory": pool, "seed": 7})
        found = await worker.call("explore", {"pool": pool, "island": 1, "best": None, "migrants": [GOOD.model_dump()]})
        assert found["candidate"] == GOOD.model_dump()  # a migrant is measured first
        judge = {"pool": pool, "candidate": GOOD.model_dump(), "incumbent": DEFAULT.model_dump(), "seed": 5}
        judged = await worker.call("judge", judge, priority=Priority.VERIFY)
        assert judged["candidate_ppm"] - judged["incumbent_ppm"] >= 50_000

        model = (await worker.call("serve", {"pool": pool, "candidate": GOOD.model_dump()}))["model"]
        check = {
            "pool": pool,
            "candidate": GOOD.model_dump(),
            "seed": 5,
            "verified_ppm": judged["candidate_ppm"],
            "tolerance_ppm": TOLERANCE_PPM,
        }
        await worker.call("check", {**check, "model": model})
        with pytest.raises(ModelRejected, match="not a safetensors file"):
            await worker.call("check", {**check, "model": b"\x80\x04}q\x00."})  # a pickle

        batcher = Batcher(worker)
        rows = bytes(2 * 256)
        with pytest.raises(RemoteFailure, match="not-ready"):
            await batcher.predict(rows, 2)
        batcher.use(Served(digest_of(model), model, ARCHITECTURE, GOOD.hidden, 0, 0))
        await nursery.start(batcher.run)
        assert len(predict_request(rows, 2).data) == len(rows)
        replies = []

        async def ask() -> None:
            replies.append(await batcher.predict(rows, 2))

        async with trio.open_nursery() as clients:
            for _ in range(20):
                clients.start_soon(ask)
        assert len({tuple(reply.labels) for reply in replies}) == 1
        assert batcher.batches < 20
        assert replies[0].model == digest_of(model)
        assert replies[0].device == "cpu" or replies[0].device.startswith("cuda (")
        assert worker.restarts == 0
        nursery.cancel_scope.cancel()


def test_a_node_process_of_any_subnet_loads_no_torch() -> None:
    program = (
        "import sys; from mesh.subnet import load_subnet;"
        "[load_subnet(n) for n in ('optimization', 'optimization-liar', 'evaluation', 'inference', 'mock')];"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'cma', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
