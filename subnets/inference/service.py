"""Serving a model to others: requests are collected for a few milliseconds, answered by one run of the worker.

`/mesh/inference/1.0.0` answers members, which a registered client id is. Every answer says which model made it (by the
digest of its safetensors bytes), on which device, and in how large a batch.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Annotated, Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import LocalProtocolError, MeshError, RemoteFailure, WorkerError
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.worker import Compute, Priority
from subnets.inference.config import BatchConfig
from subnets.inference.models import PIXELS

log = logging.getLogger(__name__)

PROTOCOL: Final = "/mesh/inference/1.0.0"
MAX_REQUEST_ROWS: Final = 4096
_FLOAT32: Final = 4


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictRequest(_Message):
    """Rows to classify: `data` is `shape` = (rows, 64) of little-endian float32 in 0..1."""

    dtype: str = Field(default="float32", pattern="^float32$")
    shape: tuple[Annotated[int, Field(ge=1, le=MAX_REQUEST_ROWS)], Annotated[int, Field(ge=PIXELS, le=PIXELS)]]
    data: bytes = Field(max_length=MAX_REQUEST_ROWS * PIXELS * _FLOAT32)


class PredictReply(_Message):
    """One label per row, in order."""

    labels: list[int]
    model: bytes
    """The digest (mesh.content) of the model's safetensors bytes."""
    device: str
    """"cpu", or "cuda (…)" with the device's name."""
    batch: int
    """Rows that were computed together."""


class ModelRequest(_Message):
    """What is served?"""


class ModelReply(_Message):
    """The model that is served now."""

    model: bytes
    architecture: str
    width: int
    verified_ppm: int
    """Accuracy found by a quorum; 0 when no quorum has looked at it."""
    epoch: int
    """Subnet epoch in which it was verified; 0 when it was not."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that passed its checks."""

    digest: bytes
    data: bytes = field(repr=False)
    architecture: str
    width: int
    verified_ppm: int
    epoch: int


@dataclass(slots=True)
class _Waiting:
    data: bytes
    rows: int
    done: trio.Event = field(default_factory=trio.Event)
    reply: PredictReply | None = None
    error: MeshError | None = None


class Batcher:
    """Collects requests for the current model. `run` it; `use` gives it a model, also while it runs."""

    def __init__(self, worker: Compute, config: BatchConfig | None = None) -> None:
        self.config = config or BatchConfig()
        self._worker = worker
        self._served: Served | None = None
        self._send, self._receive = trio.open_memory_channel[_Waiting](self.config.max_waiting)
        self.batches = 0
        """Runs of the worker so far."""

    @property
    def served(self) -> Served | None:
        """The current model."""
        return self._served

    def use(self, served: Served) -> None:
        """Serve this model from the next batch on."""
        self._served = served

    async def predict(self, data: bytes, rows: int) -> PredictReply:
        """Classify `rows` rows. Raises RemoteFailure: "not-ready" without a model, "busy" when too many wait,
        "too-large"; "failed" when the worker could not. Cancelled: the answer is dropped."""
        if self._served is None:
            raise RemoteFailure("not-ready", "no model is served yet: try again soon", retryable=True)
        if rows > self.config.max_request_rows:
            raise RemoteFailure("too-large", f"{rows} rows; one request takes {self.config.max_request_rows}")
        waiting = _Waiting(data, rows)
        try:
            self._send.send_nowait(waiting)
        except trio.WouldBlock as error:
            raise RemoteFailure("busy", "too many requests wait: try again soon", retryable=True) from error
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        assert waiting.reply is not None
        return waiting.reply

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        task_status.started()
        held: _Waiting | None = None
        while True:
            batch = [held or await self._receive.receive()]
            held = None
            rows = batch[0].rows
            with trio.move_on_after(self.config.window_s):
                while held is None and rows < self.config.max_rows:
                    following = await self._receive.receive()
                    if rows + following.rows > self.config.max_rows:
                        held = following  # opens the next batch
                    else:
                        batch.append(following)
                        rows += following.rows
            await self._answer(batch, rows)

    async def _answer(self, batch: list[_Waiting], rows: int) -> None:
        served = self._served
        assert served is not None
        try:
            found = await self._worker.call(
                "predict",
                {
                    "model": served.data,
                    "architecture": served.architecture,
                    "width": served.width,
                    "inputs": b"".join(waiting.data for waiting in batch),
                    "rows": rows,
                },
                priority=Priority.SERVE,
                timeout_s=self.config.timeout_s,
            )
        except MeshError as error:
            log.warning("a batch of %d rows failed: %s", rows, error)
            for waiting in batch:
                retryable = isinstance(error, WorkerError)
                waiting.error = RemoteFailure("failed", str(error), retryable=retryable)
                waiting.done.set()
            return
        self.batches += 1
        start = 0
        for waiting in batch:
            labels = found["labels"][start : start + waiting.rows]
            start += waiting.rows
            waiting.reply = PredictReply(labels=labels, model=served.digest, device=found["device"], batch=rows)
            waiting.done.set()


class InferenceServicer(Servicer):
    """Answers for the model of a Batcher."""

    protocol = PROTOCOL

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    @method(timeout_s=30.0, max_request_bytes=MAX_REQUEST_ROWS * PIXELS * _FLOAT32 + 4096, max_concurrent=256)
    async def rpc_predict(self, request: PredictRequest, ctx: RpcContext) -> PredictReply:
        """Classify rows."""
        rows = request.shape[0]
        if len(request.data) != math.prod(request.shape) * _FLOAT32:
            raise RemoteFailure("bad-request", f"{len(request.data)} bytes are not {request.shape} of {request.dtype}")
        return await self._batcher.predict(request.data, rows)

    @method(timeout_s=5.0)
    async def rpc_model(self, request: ModelRequest, ctx: RpcContext) -> ModelReply:
        """Which model answers now. Fails with "not-ready" while there is none."""
        served = self._batcher.served
        if served is None:
            raise RemoteFailure("not-ready", "no model is served yet: try again soon", retryable=True)
        return ModelReply(
            model=served.digest,
            architecture=served.architecture,
            width=served.width,
            verified_ppm=served.verified_ppm,
            epoch=served.epoch,
        )


def predict_request(rows: bytes, count: int) -> PredictRequest:
    """A request for `count` rows of little-endian float32. Raises LocalProtocolError when the size does not fit."""
    if len(rows) != count * PIXELS * _FLOAT32 or not 1 <= count <= MAX_REQUEST_ROWS:
        raise LocalProtocolError(f"{len(rows)} bytes are not {count} rows of {PIXELS} float32")
    return PredictRequest(shape=(count, PIXELS), data=rows)
