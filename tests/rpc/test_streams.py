"""Streams of requests and answers: all arrives in order, a slow side holds the other up, and either may end it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
from pydantic import BaseModel, ConfigDict
from trio.testing import MockClock

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.errors import (
    LocalProtocolError,
    NotAuthorized,
    RemoteFailure,
    RemoteProtocolError,
    RequestTimeout,
    StreamBroken,
)
from mesh.peer import PeerID
from mesh.rpc.config import RpcConfig
from mesh.rpc.flow import LIBP2P_LINK
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.testing.network import SimNetwork
from mesh.testing.simulation import run_sim

from .conftest import Nodes


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = 0
    blob: bytes = b""


class StreamServicer(Servicer):
    protocol = "/mesh/streams/1.0.0"

    def __init__(self) -> None:
        self.produced = 0
        self.consumed = 0
        self.ended = trio.Event()
        """The last stream's handler is over, however it ended."""

    @method(timeout_s=600.0)
    async def rpc_count(self, request: Part, ctx: RpcContext) -> AsyncIterator[Part]:
        """`n` parts, each with the request's blob; fails at 13."""
        try:
            for n in range(request.n):
                if n == 13:
                    raise RemoteFailure("unlucky", "13", details={"at": n})
                self.produced = n + 1
                yield Part(n=n, blob=request.blob)
        finally:
            self.ended.set()

    @method(timeout_s=600.0)
    async def rpc_forever(self, request: Part, ctx: RpcContext) -> AsyncIterator[Part]:
        try:
            while True:
                self.produced += 1
                yield request
        finally:
            self.ended.set()

    @method(timeout_s=600.0)
    async def rpc_sum(self, requests: AsyncIterator[Part], ctx: RpcContext) -> Part:
        total = 0
        async for part in requests:
            self.consumed += 1
            total += part.n + len(part.blob)
        return Part(n=total)

    @method(timeout_s=600.0)
    async def rpc_first(self, requests: AsyncIterator[Part], ctx: RpcContext) -> Part:
        """Answers after the first request, whatever follows."""
        async for part in requests:
            return part
        return Part()

    @method(timeout_s=600.0)
    async def rpc_never_reads(self, requests: AsyncIterator[Part], ctx: RpcContext) -> Part:
        await trio.sleep_forever()
        return Part()

    @method(timeout_s=600.0)
    async def rpc_chat(self, requests: AsyncIterator[Part], ctx: RpcContext) -> AsyncIterator[Part]:
        async for part in requests:
            yield Part(n=part.n + 1, blob=part.blob)

    @method(timeout_s=600.0, max_request_bytes=1000, max_response_bytes=1000)
    async def rpc_small(self, requests: AsyncIterator[bytes], ctx: RpcContext) -> AsyncIterator[bytes]:
        async for part in requests:
            yield part * 2

    @method(timeout_s=600.0)
    async def rpc_plain(self, request: Part, ctx: RpcContext) -> Part:
        return request


def stub_of(server: Rpc, client: Rpc) -> StreamServicer:
    return client.stub(StreamServicer, server.net.local.peer_id)


@pytest.mark.parametrize("who", [0, 1])
async def test_all_shapes_carry_messages_of_all_sizes(nodes: Nodes, autojump_clock: MockClock, who: int) -> None:
    sizes = (0, 1, 1000, 32 * 1024, 64 * 1024, 130 * 1024, 1 << 20, 3 << 20, 5)
    async with nodes([StreamServicer()], []) as both:
        stub = stub_of(both[0], both[who])
        async with stub.rpc_count(Part(n=10, blob=bytes(70_000))) as answers:
            assert [part.n async for part in answers] == list(range(10))
        async with stub.rpc_sum() as call:
            for size in sizes:
                await call.send(Part(blob=bytes(size)))
            assert (await call.result()).n == sum(sizes)
        async with stub.rpc_chat() as chat:

            async def send() -> None:
                for n, size in enumerate(sizes):
                    await chat.send(Part(n=n, blob=bytes(size)))
                await chat.end()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                got = [(part.n, len(part.blob)) async for part in chat]
            assert got == [(n + 1, size) for n, size in enumerate(sizes)]
        assert both[0].metrics.buffered_bytes == 0
        assert not both[0].metrics.violations


async def test_a_conversation_takes_turns(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        async with stub_of(server, client).rpc_chat() as chat:
            answers = chat.__aiter__()
            for n in range(50):
                await chat.send(Part(n=n))
                assert (await anext(answers)).n == n + 1
            await chat.end()
            with pytest.raises(StopAsyncIteration):
                await anext(answers)


async def test_many_small_messages_cost_few_frames_of_credit(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        async with client.open(StreamServicer.rpc_sum, server.net.local.peer_id) as call:
            for _ in range(20_000):
                await call.send(Part(n=1))
            assert (await call.result()).n == 20_000


async def test_a_failure_comes_after_the_answers_before_it(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        got = []
        with pytest.raises(RemoteFailure, match="unlucky") as caught:
            async with stub_of(server, client).rpc_count(Part(n=20)) as answers:
                async for part in answers:
                    got.append(part.n)
                    await trio.sleep(0.1)
        assert caught.value.details == {"at": 13}
        assert got == list(range(len(got)))  # in order; those unread when the failure came are void
        assert client.metrics.errors_out == {"unlucky": 1}


async def test_a_slow_reader_holds_up_its_own_stream_only(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = StreamServicer()
    async with nodes([servicer], []) as (server, client):
        stub = stub_of(server, client)
        async with stub.rpc_forever(Part(blob=bytes(10_000))) as answers:
            await trio.sleep(60)
            # What the reader's window takes, what waits at the sender, and the one being made.
            most = LIBP2P_LINK.stream_window_bytes + 2 * LIBP2P_LINK.max_frame_bytes
            assert servicer.produced * 10_000 <= most + 30_000
            for _ in range(20):
                start = trio.current_time()
                await stub.rpc_plain(Part(blob=bytes(100_000)))
                assert trio.current_time() - start < 0.2
            produced = servicer.produced
            taken = 0
            async for _ in answers:
                taken += 1
                if taken == 100:
                    break
            await trio.sleep(1)
            assert produced < servicer.produced <= produced + 100 + 1
        await servicer.ended.wait()
        await trio.sleep(1)
        assert not server._answering[0].calls


async def test_a_handler_that_does_not_read_holds_up_its_sender_only(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        stub = stub_of(server, client)
        sent = 0
        async with stub.rpc_never_reads() as call:
            with trio.move_on_after(30):
                while True:
                    await call.send(Part(blob=bytes(10_000)))
                    sent += 1
            assert sent * 10_000 < LIBP2P_LINK.stream_window_bytes + 3 * LIBP2P_LINK.max_frame_bytes
            assert server.metrics.buffered_bytes <= LIBP2P_LINK.stream_window_bytes + 10_100  # and one message
            await stub.rpc_plain(Part(blob=bytes(100_000)))
        await trio.sleep(0.1)
        assert server.metrics.buffered_bytes == 0


@pytest.mark.parametrize("latency_s", [0.0, 0.05])
async def test_leaving_the_block_reaches_the_handler_within_a_round_trip(
    nodes: Nodes, autojump_clock: MockClock, latency_s: float
) -> None:
    servicer = StreamServicer()
    async with nodes([servicer], [], sim=SimNetwork(seed=1, latency_s=latency_s)) as (server, client):
        async with stub_of(server, client).rpc_forever(Part()) as answers:
            async for _ in answers:
                break
        left_at = trio.current_time()
        await servicer.ended.wait()
        assert trio.current_time() - left_at <= 2 * latency_s + 1e-6
        assert client.metrics.errors_out == {}
        # And the channel goes on.
        assert (await stub_of(server, client).rpc_plain(Part(n=5))).n == 5
        assert client.metrics.channels_opened == 1
        assert not server.metrics.violations


async def test_the_deadline_ends_a_stream_on_both_sides(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = StreamServicer()
    async with nodes([servicer], []) as (server, client):
        start = trio.current_time()
        with pytest.raises(RequestTimeout, match="within 2 s"):
            async with stub_of(server, client).rpc_forever(Part(), timeout_s=2.0) as answers:
                async for _ in answers:
                    await trio.sleep(0.01)
        assert trio.current_time() - start == pytest.approx(2.0, abs=0.1)
        await servicer.ended.wait()
        assert trio.current_time() - start == pytest.approx(2.0, abs=0.1)


async def test_an_early_answer_ends_the_requests(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        stub = stub_of(server, client)
        async with stub.rpc_first() as call:
            with pytest.raises(StreamBroken, match="has ended"):
                for n in range(10_000):
                    await call.send(Part(n=n, blob=bytes(1000)))
            assert (await call.result()).n == 0
        for _ in range(3):
            assert (await stub.rpc_plain(Part(n=5))).n == 5
        assert client.metrics.channels_opened == 1
        assert not server.metrics.violations


async def test_a_lost_connection_ends_streams_with_an_error(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = StreamServicer()
    async with nodes([servicer], []) as (server, client):
        with pytest.raises(StreamBroken):
            async with stub_of(server, client).rpc_forever(Part()) as answers:
                async for part in answers:
                    if part is not None:
                        await client.net.disconnect(server.net.local.peer_id)
        await servicer.ended.wait()


async def test_limits_of_messages(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        stub = stub_of(server, client)
        async with stub.rpc_small() as call:
            with pytest.raises(LocalProtocolError, match="takes 1000 bytes"):
                await call.send(bytes(1001))
            await call.send(b"ab")
            assert await anext(call.__aiter__()) == b"abab"
        with pytest.raises(RemoteFailure, match="too-large"):
            async with stub.rpc_small() as call:
                await call.send(bytes(900))
                async for _ in call:
                    pass


class SmallerServicer(StreamServicer):
    """The same protocol in another version of a program: its limits are lower."""

    @method(timeout_s=600.0, max_request_bytes=1000)
    async def rpc_sum(self, requests: AsyncIterator[Part], ctx: RpcContext) -> Part:
        total = 0
        async for part in requests:
            total += len(part.blob)
        return Part(n=total)

    @method(timeout_s=600.0, max_response_bytes=1000)
    async def rpc_forever(self, request: Part, ctx: RpcContext) -> AsyncIterator[Part]:
        yield request


@pytest.mark.parametrize("size", [2000, 100_000, 3 << 20])
async def test_a_peer_with_lower_limits_refuses_and_nobody_is_to_blame(
    nodes: Nodes, autojump_clock: MockClock, size: int
) -> None:
    async with nodes([SmallerServicer()], [StreamServicer()]) as (smaller, other):
        with pytest.raises(RemoteFailure, match="too-large"):
            async with stub_of(smaller, other).rpc_sum() as call:
                for _ in range(20):
                    await call.send(Part(blob=bytes(size)))
                await call.result()
        with pytest.raises(RemoteProtocolError, match="sends a message of"):
            async with smaller.stub(SmallerServicer, other.net.local.peer_id).rpc_forever(
                Part(blob=bytes(size))
            ) as call:
                async for _ in call:
                    pass
        assert (await stub_of(smaller, other).rpc_plain(Part(n=5))).n == 5
        assert (await stub_of(other, smaller).rpc_plain(Part(n=5))).n == 5
        assert not smaller.metrics.violations
        assert not other.metrics.violations
        assert smaller.metrics.buffered_bytes == other.metrics.buffered_bytes == 0


async def test_the_wrong_use_is_said(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        stub = stub_of(server, client)
        async with stub.rpc_count(Part(n=1)) as call:
            with pytest.raises(LocalProtocolError, match="no more requests"):
                await call.send(Part())
            with pytest.raises(LocalProtocolError, match="iterate"):
                await call.result()
        async with stub.rpc_sum() as call:
            with pytest.raises(LocalProtocolError, match="one answer"):
                await anext(call.__aiter__())
            await call.end()
            with pytest.raises(LocalProtocolError, match="no more requests"):
                await call.send(Part())


async def test_a_method_taken_for_another_shape_is_refused_and_no_violation(
    nodes: Nodes, autojump_clock: MockClock
) -> None:
    class Other(Servicer):
        protocol = StreamServicer.protocol

        async def rpc_count(self, request: Part, ctx: RpcContext) -> Part:
            raise NotImplementedError

        @method()
        async def rpc_plain(self, requests: AsyncIterator[Part], ctx: RpcContext) -> AsyncIterator[Part]:
            yield Part()

    async with nodes([StreamServicer()], []) as (server, client):
        stub = client.stub(Other, server.net.local.peer_id)
        with pytest.raises(RemoteFailure, match="a stream of answers"):
            await stub.rpc_count(Part(), timeout_s=1.0)  # type: ignore[call-arg]
        with pytest.raises(RemoteFailure, match="bad-request"):
            async with stub.rpc_plain() as call:
                while True:
                    await call.send(Part(blob=bytes(1000)))
        assert not server.metrics.violations
        assert not client.metrics.violations


class Gate(Everyone):
    """Lets everybody in until it is shut."""

    def __init__(self) -> None:
        self.is_shut = False
        self._changed = trio.Event()
        self._changes = 0

    @property
    def changes(self) -> int:
        return self._changes

    def shut(self) -> None:
        self.is_shut = True
        self._changes += 1
        self._changed.set()

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        return await self.recheck(peer, least)

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        if self.is_shut:
            raise NotAuthorized("not-registered", f"{peer.short} was removed")
        return PeerClass.MEMBER

    async def wait_change(self, seen: int | None = None) -> int:
        if seen:
            await trio.sleep_forever()
        await self._changed.wait()
        return self._changes


@pytest.mark.parametrize("name", ["forever", "sum"])
async def test_who_is_removed_loses_its_streams_and_is_told_why(
    nodes: Nodes, autojump_clock: MockClock, name: str
) -> None:
    gate, servicer = Gate(), StreamServicer()
    async with nodes([servicer], [], authorizer=gate) as (server, client):
        stub = stub_of(server, client)
        with pytest.raises(NotAuthorized, match="was removed") as caught, trio.fail_after(2):
            if name == "forever":
                async with stub.rpc_forever(Part(blob=bytes(1000))) as call:
                    async for part in call:
                        if part and not gate.is_shut:
                            gate.shut()
            else:
                async with stub.rpc_sum() as upload:
                    while True:
                        await upload.send(Part(blob=bytes(1000)))
                        if servicer.consumed > 20 and not gate.is_shut:
                            gate.shut()
        assert caught.value.reason == "not-registered"


async def _talk(rng: random.Random, stub: StreamServicer, problems: list[str]) -> None:
    """One of several calls at once, of a random shape, with random sizes and pauses."""
    count = rng.randrange(1, 12)
    sizes = [rng.choice((0, 10, 2000, 40_000, 150_000, 400_000)) for _ in range(count)]

    async def pause() -> None:
        if rng.random() < 0.3:
            await trio.sleep(rng.random())

    match rng.randrange(4):
        case 0:
            answer = await stub.rpc_plain(Part(blob=bytes(sizes[0])), timeout_s=None)
            good = len(answer.blob) == sizes[0]
        case 1:
            got = 0
            async with stub.rpc_count(Part(n=count, blob=bytes(sizes[0]))) as call:
                async for part in call:
                    got += len(part.blob) == sizes[0]
                    await pause()
            good = got == count
        case 2:
            async with stub.rpc_sum() as call:
                for size in sizes:
                    await call.send(Part(blob=bytes(size)))
                    await pause()
                good = (await call.result()).n == sum(sizes)
        case _:
            back: list[int] = []
            async with stub.rpc_chat() as call:

                async def send() -> None:
                    for size in sizes:
                        await call.send(Part(blob=bytes(size)))
                        await pause()
                    await call.end()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    async for part in call:
                        back.append(len(part.blob))
                        await pause()
            good = back == sizes
    if not good:
        problems.append(f"{count} {sizes}")


def _no_deadlock(nodes: Nodes, seed: int) -> None:
    rng = random.Random(seed)
    config = RpcConfig(max_calls_per_channel=rng.choice((1, 2, 64)))
    problems: list[str] = []

    async def main() -> None:
        sim = SimNetwork(seed=seed, latency_s=rng.choice((0.0, 0.01, 0.2)))
        async with nodes([StreamServicer()], [StreamServicer()], sim=sim, config=config) as (one, two):
            with trio.fail_after(300):  # virtual
                async with trio.open_nursery() as nursery:
                    for _ in range(rng.randrange(1, 8)):
                        a, b = (one, two) if rng.random() < 0.5 else (two, one)
                        nursery.start_soon(_talk, rng, stub_of(a, b), problems)
            assert one.metrics.buffered_bytes == two.metrics.buffered_bytes == 0
            assert not one.metrics.violations
            assert not two.metrics.violations

    run_sim(main, seed)
    assert not problems, f"seed {seed}"


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_no_deadlock_in_300_schedules(nodes: Nodes, start: int) -> None:
    for seed in range(start, start + 50):
        _no_deadlock(nodes, seed)


@pytest.mark.slow
def test_no_deadlock_in_10000_schedules(nodes: Nodes) -> None:
    for seed in range(1000, 11_000):
        _no_deadlock(nodes, seed)
