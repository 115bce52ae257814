"""Batches of requests, and what a hostile or unlucky client is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from pydantic import ValidationError

from mesh.auth.authorizer import PeerClass
from mesh.errors import LocalProtocolError, RemoteFailure, WorkerError
from mesh.identity import PeerKey
from mesh.rpc.servicer import RpcContext
from mesh.worker import Priority
from subnets.inference.config import BatchConfig
from subnets.inference.service import Batcher, InferenceServicer, PredictReply, PredictRequest, Served, predict_request

SERVED = Served(b"d" * 32, b"weights", "mlp-digits-1", 16, 950_000, 3)
ROW = bytes(256)


class Gate:
    """A worker that answers when told to, with the first byte of each row as its label."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.rows: list[int] = []
        self.fails = False

    async def call(
        self, name: str, args: Mapping[str, Any], *, priority: Priority = Priority.SERVE, timeout_s: float | None = None
    ) -> dict[str, Any]:
        await self.open.wait()
        if self.fails:
            raise WorkerError("the worker process died")
        self.rows.append(args["rows"])
        return {"labels": [args["inputs"][n * 256] for n in range(args["rows"])], "device": "cpu"}


@asynccontextmanager
async def serving(config: BatchConfig, gate: Gate) -> AsyncIterator[Batcher]:
    batcher = Batcher(gate, config)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        batcher.use(SERVED)
        await nursery.start(batcher.run)
        yield batcher
        nursery.cancel_scope.cancel()


async def test_each_client_gets_the_labels_of_its_own_rows(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    gate.open.set()
    replies: dict[int, PredictReply] = {}
    async with serving(BatchConfig(max_rows=10), gate) as batcher:

        async def ask(number: int) -> None:
            replies[number] = await batcher.predict((bytes([number]) + bytes(255)) * 3, 3)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, number)
    assert {n: r.labels for n, r in replies.items()} == {n: [n] * 3 for n in range(8)}
    assert sum(gate.rows) == 24
    assert max(gate.rows) <= 10
    assert {reply.batch for reply in replies.values()} == set(gate.rows)


async def test_too_many_waiting_requests_are_told_to_come_back(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(BatchConfig(max_waiting=2, max_rows=1), gate) as batcher:
        async with trio.open_nursery() as nursery:
            for _ in range(3):  # one is computed, two wait
                nursery.start_soon(batcher.predict, ROW, 1)
                await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(RemoteFailure, match="busy") as caught:
                await batcher.predict(ROW, 1)
            assert caught.value.retryable
            gate.open.set()


async def test_a_dead_worker_is_a_retryable_failure_and_the_next_batch_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate = Gate()
    gate.open.set()
    gate.fails = True
    async with serving(BatchConfig(), gate) as batcher:
        with pytest.raises(RemoteFailure, match="failed") as caught:
            await batcher.predict(ROW, 1)
        assert caught.value.retryable
        gate.fails = False
        assert (await batcher.predict(ROW, 1)).labels == [0]


async def test_a_client_that_gives_up_does_not_disturb_others(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(BatchConfig(), gate) as batcher:
        with trio.move_on_after(1):
            await batcher.predict(ROW, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.predict, ROW, 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.open.set()
    assert sum(gate.rows) == 2


async def test_requests_that_lie_about_their_size_are_refused() -> None:
    batcher = Batcher(Gate(), BatchConfig(max_request_rows=4))  # type: ignore[arg-type]
    batcher.use(SERVED)
    servicer = InferenceServicer(batcher)
    ctx = RpcContext(PeerKey.dev("client").peer_id, PeerClass.MEMBER, trio.current_time() + 1, 1)
    for request in (
        PredictRequest(shape=(2, 64), data=ROW),
        PredictRequest(shape=(1, 64), data=b""),
        PredictRequest(shape=(1, 64), data=ROW + b"x"),
    ):
        with pytest.raises(RemoteFailure, match="bad-request"):
            await servicer.rpc_predict(request, ctx)
    with pytest.raises(RemoteFailure, match="too-large"):
        await servicer.rpc_predict(predict_request(ROW * 5, 5), ctx)
    for shape, dtype in (((0, 64), "float32"), ((10**9, 64), "float32"), ((1, 63), "float32"), ((1, 64), "object")):
        with pytest.raises(ValidationError):
            PredictRequest(shape=shape, dtype=dtype, data=ROW)
    with pytest.raises(LocalProtocolError):
        predict_request(ROW, 2)
