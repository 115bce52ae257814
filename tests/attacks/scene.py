"""A node under attack, an honest peer that goes on calling it, and what must be true afterwards.

In virtual time all work takes no time at all: a latency that grows there means that calls waited for something an
attacker held. What the work itself costs an honest caller is measured over real sockets, in the slow tests.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import trio
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import Authorizer, Everyone, PeerClass
from mesh.errors import MeshError
from mesh.identity import PeerKey
from mesh.net.base import Network, Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.config import RPC_PROTOCOL, ReplyCacheConfig, RpcConfig
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import Repeat, RpcContext, Servicer, method
from mesh.rpc.standing import StandingConfig
from mesh.testing.network import SimNetwork, SimNode
from mesh.testing.simulation import run_sim

# --- how much ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How long an attack goes on: so many operations or seconds of real time, whichever is first."""

    operations: int
    seconds: float

    def rounds(self, size: int = 1, *, least: int = 1) -> Iterator[int]:
        """Numbers of operations, `size` apart. The first `least` operations always happen, however long they take."""
        end = time.perf_counter() + self.seconds
        for number in range(0, self.operations, size):
            yield number
            if number + size >= least and time.perf_counter() > end:
                return


scales = pytest.mark.parametrize(
    "scale",
    [
        pytest.param(Scale(1000, 0.8), id="normal"),
        pytest.param(Scale(10_000, 30.0), id="long", marks=pytest.mark.slow),
    ],
)

# --- what is attacked -------------------------------------------------------------------------------------------------


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = 0
    blob: bytes = b""


MAX_TENSOR_BYTES = 1 << 20


class Target(Servicer):
    """All four shapes, a method with replies that are kept, one that never reads, and tensors."""

    protocol = "/mesh/target/1.0.0"

    @method(timeout_s=5.0)
    async def rpc_plain(self, request: Part, ctx: RpcContext) -> Part:
        return request

    @method(timeout_s=5.0)
    async def rpc_slow(self, request: Part, ctx: RpcContext) -> Part:
        await trio.sleep(request.n)
        return request

    @method(timeout_s=5.0, repeat=Repeat.KEYED)
    async def rpc_keyed(self, request: Part, ctx: RpcContext) -> Part:
        return request

    @method(timeout_s=5.0)
    async def rpc_count(self, request: Part, ctx: RpcContext) -> AsyncIterator[Part]:
        for n in range(request.n):
            yield Part(n=n, blob=request.blob)

    @method(timeout_s=5.0)
    async def rpc_sum(self, requests: AsyncIterator[Part], ctx: RpcContext) -> Part:
        total = 0
        async for part in requests:
            total += len(part.blob)
        return Part(n=total)

    @method(timeout_s=5.0)
    async def rpc_chat(self, requests: AsyncIterator[Part], ctx: RpcContext) -> AsyncIterator[Part]:
        async for part in requests:
            yield part

    @method(timeout_s=5.0)
    async def rpc_deaf(self, requests: AsyncIterator[Part], ctx: RpcContext) -> Part:
        """Never reads its requests."""
        await trio.sleep_forever()
        return Part()

    @method(timeout_s=5.0, max_request_bytes=MAX_TENSOR_BYTES, max_response_bytes=MAX_TENSOR_BYTES)
    async def rpc_tensor(self, request: npt.NDArray[np.float32], ctx: RpcContext) -> Part:
        await trio.sleep(0.1)
        return Part(n=request.size)

    @method(timeout_s=3600.0)
    async def rpc_watch(self, request: Part, ctx: RpcContext) -> AsyncIterator[Part]:
        """A beat a second, for an hour."""
        while True:
            yield request
            await trio.sleep(1)


SHAPES = {
    "plain": f.Shape.ONE,
    "slow": f.Shape.ONE,
    "keyed": f.Shape.ONE,
    "count": f.Shape.ANSWERS,
    "sum": f.Shape.REQUESTS,
    "chat": f.Shape.REQUESTS | f.Shape.ANSWERS,
    "deaf": f.Shape.REQUESTS,
    "tensor": f.Shape.ONE,
    "watch": f.Shape.ANSWERS,
}

CONFIG = RpcConfig(
    max_channels_in=64,
    max_queued_frames=512,
    max_calls_in_per_channel=32,
    max_buffered_bytes=16 << 20,
    max_buffered_bytes_per_channel=4 << 20,
    frame_timeout_s=5.0,
    write_timeout_s=5.0,
    standing=StandingConfig(max_peers=64, first_suspension_s=0.01, max_suspension_s=0.01),
    replies=ReplyCacheConfig(
        max_replies=128, max_replies_per_peer=16, max_bytes=1 << 20, max_bytes_per_peer=1 << 18, life_s=600.0
    ),
)
"""Bounds low enough to be reached, and suspensions so short that an attacker comes back at once."""

MAX_GROWTH_BYTES = 24 << 20
"""Above what was there before: the bytes that may lie buffered, and half of it again for objects and the attacker's own
side of the simulated streams."""


def call(
    call_id: int, name: str = "plain", body: bytes = b"", *, size: int | None = None, key: bytes = b"", ms: int = 4000
) -> bytes:
    """The frame that opens a call."""
    size = len(body) if size is None else size
    return f.encode(f.Call(call_id, Target.protocol, name, ms, SHAPES[name], b"", key, size, body))


# --- what is left -----------------------------------------------------------------------------------------------------


def count_tasks() -> int:
    """All tasks of this run, trio's own included."""
    count, left = 0, [trio.lowlevel.current_root_task()]
    while left:
        task = left.pop()
        assert task is not None
        count += 1
        left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return count


def count_files() -> int:
    """Open file descriptors of this process, sockets among them."""
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def bounded_growth(most: int) -> Iterator[None]:
    """Memory that Python gave out in here never exceeds what was there before by more than `most` bytes."""
    gc.collect()
    tracemalloc.start(1)
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak <= most, f"grew by {peak / 2**20:.1f} MiB, allowed are {most / 2**20:.1f}"


class Crashes(logging.Handler):
    """Log records that carry an exception: an attack may be refused, it may not surprise."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(self.format(record))


@contextmanager
def no_crashes() -> Iterator[None]:
    """Nothing in here logs an exception or an error."""
    crashes = Crashes()
    logger = logging.getLogger("mesh")
    logger.addHandler(crashes)
    logger.propagate = False  # pytest keeps all records, with what their errors hold: that is no growth of the node's
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(crashes)
    assert not crashes.found, crashes.found[0]


def check_clean(rpc: Rpc) -> None:
    """Nothing of any call is left, and all tables are within their bounds."""
    config, metrics = rpc.config, rpc.metrics
    assert metrics.buffered_bytes == 0
    assert [len(channel.calls) for channel in rpc._answering if channel.calls] == []
    assert [channel._reserved for channel in rpc._answering if channel._reserved] == []
    assert [name for name, method in metrics.methods_in.items() if method.running] == []
    assert [bound.spec.name for bound in rpc._bound.values() if bound.by_peer] == []
    assert rpc._running_calls == 0
    assert all(not channel._calls and not channel.waiting for channel in rpc._calling.values())
    assert len(rpc._answering) <= config.max_channels_in
    assert len(rpc._rates) <= config.max_rated_peers
    assert len(rpc.standings._peers) <= config.standing.max_peers
    kept = [entry for own in rpc.replies._peers.values() for entry in own.values()]
    assert len(kept) == rpc.replies.replies <= config.replies.max_replies
    assert sum(len(entry.reply or b"") for entry in kept) == rpc.replies.bytes <= config.replies.max_bytes


# --- the scene --------------------------------------------------------------------------------------------------------

LATENCY_S = 0.01
HONEST_EVERY_S = 0.25
HONEST_AT_LEAST = 40
MAX_SLOWDOWN = 2.0
"""Of an honest caller's 99th percentile under attack."""


def p99(latencies_s: Sequence[float]) -> float:
    """Their 99th percentile."""
    return statistics.quantiles(latencies_s, n=100, method="inclusive")[98]


async def honest_call(rpc: Rpc, peer: PeerID, number: int) -> float:
    """One call that must succeed, or one stream; returns the seconds it took."""
    start = trio.current_time()
    if number % 4:
        answer = await rpc.call(Target.rpc_plain, peer, Part(n=number))
        assert answer.n == number
    else:
        async with rpc.open(Target.rpc_count, peer, Part(n=3)) as answers:
            assert [part.n async for part in answers] == [0, 1, 2]
    return trio.current_time() - start


class Scene:
    """A victim that serves, an honest caller, and a crowd of attackers with nothing but streams."""

    def __init__(self, authorizer: Authorizer, *, crowd: int, config: RpcConfig) -> None:
        self.sim = SimNetwork(seed=7, latency_s=LATENCY_S)
        self.rng = random.Random(7)
        self.victim, self.honest = (
            Rpc(self.sim.node(key), authorizer, config=config, rng=random.Random(1)) for key in (VICTIM, HONEST)
        )
        self.victim.serve(Target())
        self.honest.serve(Target())
        self.crowd: list[SimNode] = [self.sim.node(attacker(n)) for n in range(crowd)]

    @property
    def peer(self) -> PeerID:
        """The victim."""
        return self.victim.net.local.peer_id

    async def open(self, number: int = 0) -> Stream:
        """A stream of attacker `number`, as it would open one for its calls."""
        return await self.crowd[number % len(self.crowd)].open(self.peer, RPC_PROTOCOL)

    async def run(
        self, attack: Callable[[], Awaitable[None]], *, settle_s: float = 30.0, max_growth: int = MAX_GROWTH_BYTES
    ) -> None:
        """The attack, with honest calls before and beside it, and the reckoning. `settle_s`: what may take until all
        deadlines of what was begun are over."""
        for number in range(4):
            await honest_call(self.honest, self.peer, number)
        tasks = count_tasks()
        calm = await self._call_until(None)
        with bounded_growth(max_growth):
            over = trio.Event()
            stormy: list[float] = []

            async def call_beside() -> None:
                stormy.extend(await self._call_until(over))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call_beside)
                await attack()
                over.set()
        for node in self.crowd:
            for peer in node.connected():
                await node.disconnect(peer)
        await trio.sleep(settle_s)
        check_clean(self.victim)
        check_clean(self.honest)
        assert p99(stormy) <= MAX_SLOWDOWN * p99(calm)
        await honest_call(self.honest, self.peer, 1)
        assert count_tasks() <= tasks

    async def _call_until(self, over: trio.Event | None) -> list[float]:
        latencies: list[float] = []
        while len(latencies) < HONEST_AT_LEAST or (over is not None and not over.is_set()):
            latencies.append(await honest_call(self.honest, self.peer, len(latencies)))
            await trio.sleep(HONEST_EVERY_S)
        return latencies


VICTIM, HONEST = PeerKey.dev("attacks victim"), PeerKey.dev("attacks honest")


def attacker(number: int) -> PeerKey:
    """The key of one of the crowd."""
    return PeerKey.dev(f"attacks attacker {number}")


@asynccontextmanager
async def running(it: Scene) -> AsyncIterator[None]:
    """All nodes of the scene."""
    async with trio.open_nursery() as nursery:
        for node in (it.victim.net, it.honest.net, *it.crowd):
            assert isinstance(node, SimNode)
            node.learn(it.victim.net.local)
            node.learn(it.honest.net.local)
            for other in it.crowd:
                node.learn(other.local)
            await nursery.start(node.run)
        await nursery.start(it.victim.run)
        await nursery.start(it.honest.run)
        yield
        nursery.cancel_scope.cancel()


def simulate(
    attack: Callable[[Scene], Awaitable[None]],
    *,
    crowd: int = 1,
    authorizer: Callable[[], Authorizer] = Everyone,
    config: RpcConfig = CONFIG,
    settle_s: float = 30.0,
    max_growth: int = MAX_GROWTH_BYTES,
) -> None:
    """Run an attack in virtual time, with all that `Scene.run` checks."""

    async def main() -> None:
        it = Scene(authorizer(), crowd=crowd, config=config)
        async with running(it):

            async def bounded() -> None:
                await attack(it)

            await it.run(bounded, settle_s=settle_s, max_growth=max_growth)

    with no_crashes():
        run_sim(main, 7)


async def put(stream: Stream, data: bytes) -> bool:
    """Send as an attacker does; says whether the channel took it."""
    try:
        await stream.send_all(data)
    except MeshError:
        return False
    return True


async def take(stream: Stream, seconds: float, *, decoder: f.FrameDecoder | None = None) -> tuple[list[f.Frame], bool]:
    """What comes within `seconds` of trio's time, and whether the channel was dropped or ended."""
    decoder = decoder or f.FrameDecoder(max_frame_bytes=1 << 20)
    frames: list[f.Frame] = []
    with trio.move_on_after(seconds):
        try:
            while data := await stream.receive_some():
                frames += decoder.feed(data)
        except MeshError:
            pass
        return frames, True
    return frames, False


async def serve_bytes(net: Network, answer: Callable[[f.Call], Awaitable[bytes]]) -> None:
    """Let a node answer each call with bytes of its own choice."""

    async def serve(stream: Stream) -> None:
        decoder = f.FrameDecoder(max_frame_bytes=1 << 16)
        while data := await stream.receive_some():
            for frame in decoder.feed(data):
                if isinstance(frame, f.Call):
                    await stream.send_all(await answer(frame))

    net.serve(RPC_PROTOCOL, serve)
    await trio.lowlevel.checkpoint()


MEMBER = PeerClass.MEMBER
