"""Calls over a simulated network: results, errors, limits, deadlines, cancellation."""

from __future__ import annotations

import enum
import logging
import random

import pytest
import trio
from pydantic import BaseModel, ConfigDict
from trio.testing import MockClock

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.errors import (
    DialFailed,
    LocalProtocolError,
    NotAuthorized,
    RecordRejected,
    RemoteFailure,
    RequestTimeout,
    StreamBroken,
)
from mesh.identity import PeerKey
from mesh.peer import PeerID
from mesh.rpc.body import pack
from mesh.rpc.config import RpcConfig
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.testing.network import SimNetwork
from mesh.testing.simulation import run_sim

from .conftest import Nodes


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Color(enum.Enum):
    RED = "red"


class Echo(Message):
    text: str = ""
    blob: bytes = b""
    parts: tuple[bytes, ...] = ()
    color: Color | None = None


class Wait(Message):
    seconds: float


class Name(Message):
    name: str


class EchoServicer(Servicer):
    protocol = "/mesh/echo/1.0.0"

    def __init__(self) -> None:
        self.contexts: list[RpcContext] = []

    async def rpc_echo(self, request: Echo, ctx: RpcContext) -> Echo:
        self.contexts.append(ctx)
        return request


async def test_echo(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = EchoServicer()
    async with nodes([servicer], []) as (server, client):
        peer = server.net.local.peer_id
        sent = Echo(text="hällo", blob=b"\x00\xff", parts=(b"a", b""), color=Color.RED)
        assert await client.stub(EchoServicer, peer).rpc_echo(sent) == sent
        assert await client.call(EchoServicer.rpc_echo, peer, sent) == sent
    ctx = servicer.contexts[0]
    assert ctx.remote == client.net.local.peer_id
    assert ctx.peer_class is PeerClass.MEMBER


class Odd(BaseException):
    """Neither an Exception nor one that may end a program."""


class ToolServicer(Servicer):
    """Misbehaves on request."""

    protocol = "/mesh/tools/1.0.0"

    def __init__(self) -> None:
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.running = 0
        self.most = 0

    @method(timeout_s=30.0, max_concurrent=8, max_concurrent_per_peer=8)
    async def rpc_wait(self, request: Wait, ctx: RpcContext) -> Wait:
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.set()
        try:
            await trio.sleep(request.seconds)
        except trio.Cancelled:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
        return request

    async def rpc_fail(self, request: Name, ctx: RpcContext) -> Name:
        match request.name:
            case "mesh":
                raise RecordRejected("expired", "long ago")
            case "own-code":
                raise RemoteFailure("out-of-memory", "no room", retryable=True)
            case "refused":
                raise NotAuthorized("rate-limited", "come back later")
            case "value":
                raise ValueError("a secret of this node")
            case "group":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._raise, ValueError("one"))
                    nursery.start_soon(trio.sleep_forever)
            case "exit":
                raise SystemExit(1)
            case "odd":
                raise Odd
            case "stop":
                raise StopAsyncIteration
            case "recursion":
                return await self.rpc_fail(request, ctx)
            case "type":
                return Wait(seconds=1.0)  # type: ignore[return-value]
            case "control":
                raise RemoteFailure("x", "\x1b[2J\nred")
        return request

    async def _raise(self, error: Exception) -> None:
        raise error

    @method(max_request_bytes=100, max_response_bytes=1000)
    async def rpc_grow(self, request: Echo, ctx: RpcContext) -> Echo:
        return Echo(blob=bytes(int(request.text)))

    @method(max_request_bytes=8 << 20, max_response_bytes=8 << 20, timeout_s=60.0)
    async def rpc_big(self, request: Echo, ctx: RpcContext) -> Echo:
        return request


async def test_large_bodies_both_ways(nodes: Nodes, autojump_clock: MockClock) -> None:
    blob = bytes(range(256)) * 16 * 1024  # 4 MiB
    async with nodes([ToolServicer()], []) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        for size in (0, 1, 32 * 1024 - 40, 32 * 1024, 64 * 1024, 192 * 1024, 1 << 20, len(blob)):
            assert (await stub.rpc_big(Echo(blob=blob[:size]))).blob == blob[:size]
        assert server.metrics.buffered_bytes == 0


async def test_a_small_call_overtakes_a_large_one(nodes: Nodes, autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.05)
    async with nodes([ToolServicer(), EchoServicer()], [], sim=sim) as (server, client):
        peer = server.net.local.peer_id
        await client.stub(EchoServicer, peer).rpc_echo(Echo())
        ended: list[str] = []

        async def large() -> None:
            await client.stub(ToolServicer, peer).rpc_big(Echo(blob=bytes(4 << 20)))
            ended.append("large")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(large)
            await trio.sleep(0.5)
            start = trio.current_time()
            await client.stub(EchoServicer, peer).rpc_echo(Echo(text="small"))
            # One round trip, and at most one window of the large one ahead in each direction.
            assert trio.current_time() - start < 0.4
            assert not ended
    assert ended == ["large"]


async def test_many_calls_share_one_channel(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([EchoServicer()], []) as (server, client):
        stub = client.stub(EchoServicer, server.net.local.peer_id)
        answers: dict[int, str] = {}

        async def one(number: int) -> None:
            answers[number] = (await stub.rpc_echo(Echo(text=str(number)))).text

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, number)
        assert answers == {n: str(n) for n in range(300)}
        assert client.metrics.channels_opened == server.metrics.channels_accepted == 1


async def test_timeout_of_the_caller_cancels_the_handler(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = ToolServicer()
    async with nodes([servicer], []) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        start = trio.current_time()
        with pytest.raises(RequestTimeout, match=r"within 2 s"):
            await stub.rpc_wait(Wait(seconds=25.0), timeout_s=2.0)
        assert trio.current_time() - start == pytest.approx(2.0)
        await servicer.cancelled.wait()
        assert trio.current_time() - start < 2.1
        assert (await stub.rpc_wait(Wait(seconds=0.0))).seconds == 0.0


async def test_the_answerer_enforces_the_deadline_itself(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = ToolServicer()
    async with nodes([servicer], []) as (server, client):
        spec = ToolServicer.methods["wait"]
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        await stub.rpc_wait(Wait(seconds=0.0))
        start = trio.current_time()
        with pytest.raises(RequestTimeout):
            # A caller that asks for more than the method allows, and would wait.
            body = pack(Wait(seconds=1000.0))
            await client._attempt(spec, server.net.local.peer_id, client._head(spec, b""), (body,), start + 900)
        assert trio.current_time() - start == pytest.approx(30.0, abs=0.1)
        assert servicer.cancelled.is_set()


async def test_cancelling_the_caller_cancels_the_handler(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = ToolServicer()
    async with nodes([servicer], []) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stub.rpc_wait, Wait(seconds=25.0))
            await servicer.started.wait()
            nursery.cancel_scope.cancel()
        await servicer.cancelled.wait()
        assert server.metrics.violations == client.metrics.violations == 0


async def test_a_disconnect_cancels_the_handlers(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = ToolServicer()
    async with nodes([servicer], []) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_broken, stub)
            await servicer.started.wait()
            await client.net.disconnect(server.net.local.peer_id)
        await servicer.cancelled.wait()
        # The next call dials again by itself.
        assert (await stub.rpc_wait(Wait(seconds=0.0))).seconds == 0.0
        assert client.metrics.channels_opened == 2


async def test_a_cancelled_large_call_leaves_the_channel_whole(nodes: Nodes, autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.05)
    async with nodes([ToolServicer()], [], sim=sim) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        await stub.rpc_wait(Wait(seconds=0.0))
        for pause in (0.0, 0.04, 0.11, 0.2, 0.33, 0.5, 1.0, 1.5, 1.9):
            with trio.move_on_after(pause):
                await stub.rpc_big(Echo(blob=bytes(1 << 20)))
        assert len((await stub.rpc_big(Echo(blob=bytes(1 << 20)))).blob) == 1 << 20
        assert client.metrics.channels_opened == 1
        assert server.metrics.violations == client.metrics.violations == 0
        assert server.metrics.buffered_bytes == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("mesh", "record-rejected"),
        ("own-code", "out-of-memory"),
        ("value", "internal"),
        ("group", "internal"),
        ("exit", "internal"),
        ("odd", "internal"),
        ("stop", "internal"),
        ("recursion", "internal"),
        ("type", "internal"),
        ("control", "x"),
    ],
)
async def test_failures_of_a_handler_are_answers(
    nodes: Nodes, autojump_clock: MockClock, name: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes([ToolServicer()], []) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        with caplog.at_level(logging.ERROR), pytest.raises(RemoteFailure) as caught:
            await stub.rpc_fail(Name(name=name))
        assert caught.value.code == code
        assert caught.value.retryable is (name == "own-code")
        assert "secret" not in str(caught.value)
        assert caught.value.message.isprintable()
        assert bool(caplog.records) is (code == "internal")
        assert (await stub.rpc_fail(Name(name="none"))).name == "none"
        assert client.metrics.channels_opened == 1
        assert server.metrics.errors_in == client.metrics.errors_out == {code: 1}


async def test_not_authorized_travels_with_its_reason(nodes: Nodes, autojump_clock: MockClock) -> None:
    class Nobody(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            raise NotAuthorized("not-registered", f"{peer.short} may not {method}: needs {least.name}")

    servicer = EchoServicer()
    async with nodes([servicer], [], authorizer=Nobody()) as (server, client):
        stub = client.stub(EchoServicer, server.net.local.peer_id)
        for size in (0, 1 << 20):
            with pytest.raises(NotAuthorized, match="echo: needs MEMBER") as caught:
                await stub.rpc_echo(Echo(blob=bytes(size)))
            assert caught.value.reason == "not-registered"
        assert not servicer.contexts
        # Of the refused megabyte no more was sent than the first credit.
        assert server.metrics.bytes_in < 40 * 1024
        assert client.metrics.channels_opened == 1


async def test_an_authorizer_that_breaks_is_a_refusal(nodes: Nodes, autojump_clock: MockClock) -> None:
    class Broken(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            raise RuntimeError("bug")

    servicer = EchoServicer()
    async with nodes([servicer], [], authorizer=Broken()) as (server, client):
        with pytest.raises(RemoteFailure, match="internal"):
            await client.stub(EchoServicer, server.net.local.peer_id).rpc_echo(Echo())
        assert not servicer.contexts


async def test_sizes(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([ToolServicer()], []) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        with pytest.raises(LocalProtocolError, match="takes 100 bytes"):
            await stub.rpc_grow(Echo(blob=bytes(101)))
        with pytest.raises(RemoteFailure, match="too-large"):
            await stub.rpc_grow(Echo(text="2000"))
        assert len((await stub.rpc_grow(Echo(text="900"))).blob) == 900


async def test_unknown_methods_and_wrong_bodies(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([EchoServicer()], []) as (server, client):
        peer = server.net.local.peer_id
        with pytest.raises(RemoteFailure, match="unknown-method"):
            await client.stub(ToolServicer, peer).rpc_wait(Wait(seconds=0.0))
        with pytest.raises(LocalProtocolError, match="takes a Echo"):
            await client.stub(EchoServicer, peer).rpc_echo(Wait(seconds=0.0))
        with pytest.raises(AttributeError, match="it has: rpc_echo"):
            client.stub(EchoServicer, peer).shout  # noqa: B018
        spec = EchoServicer.methods["echo"]
        for body in (b"", b"\xc1", b"\x80\x80", b"\x90", b"\x81\xa4text\x01", b"\x81\xa5extra\x01"):
            with pytest.raises(RemoteFailure, match="bad-request"):
                await client._attempt(spec, peer, client._head(spec, b""), (body,), trio.current_time() + 5)
        assert client.metrics.channels_opened == 1


async def test_a_method_runs_at_most_its_number_at_once(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = ToolServicer()
    async with nodes([servicer], []) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        busy = 0

        async def one() -> None:
            nonlocal busy
            try:
                await stub.rpc_wait(Wait(seconds=1.0))
            except RemoteFailure as error:
                busy += error.code == "busy" and error.retryable

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert (servicer.most, busy) == (8, 12)
        await stub.rpc_wait(Wait(seconds=0.0))


async def test_calls_to_ourselves_pass_the_same_limits(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = ToolServicer()
    async with nodes([servicer]) as (node,):
        stub = node.stub(ToolServicer, node.net.local.peer_id)
        assert (await stub.rpc_wait(Wait(seconds=1.0))).seconds == 1.0
        with pytest.raises(RequestTimeout):
            await stub.rpc_wait(Wait(seconds=25.0), timeout_s=1.0)
        await servicer.cancelled.wait()
        with pytest.raises(RemoteFailure, match="record-rejected"):
            await stub.rpc_fail(Name(name="mesh"))
        with pytest.raises(RemoteFailure, match="internal"):
            await stub.rpc_fail(Name(name="value"))
        with pytest.raises(RemoteFailure, match="too-large"):
            await stub.rpc_grow(Echo(text="2000"))
        with pytest.raises(RemoteFailure, match="unknown-method"):
            await node.stub(EchoServicer, node.net.local.peer_id).rpc_echo(Echo())
        assert node.metrics.channels_opened == 1


async def test_dead_and_unknown_peers(nodes: Nodes, autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.01)
    async with nodes([EchoServicer()], [], sim=sim) as (server, client):
        peer = server.net.local.peer_id
        stub = client.stub(EchoServicer, peer)
        sim.kill(peer)
        with pytest.raises(DialFailed):
            await stub.rpc_echo(Echo())
        sim.revive(peer)
        await stub.rpc_echo(Echo())
        sim.partition([[peer]])
        with pytest.raises(DialFailed):
            await stub.rpc_echo(Echo())
        sim.heal()
        await stub.rpc_echo(Echo())


@pytest.mark.parametrize("seed", range(20))
def test_a_call_that_was_not_sent_is_tried_on_a_fresh_channel(nodes: Nodes, seed: int) -> None:
    servicer = EchoServicer()

    async def main() -> None:
        async with nodes([servicer], []) as (server, client):
            stub = client.stub(EchoServicer, server.net.local.peer_id)
            await stub.rpc_echo(Echo())
            await client.net.disconnect(server.net.local.peer_id)
            await stub.rpc_echo(Echo())  # at once: the channel has not heard of it yet

    run_sim(main, seed)
    assert len(servicer.contexts) == 2


async def test_an_idle_channel_is_closed_and_opened_again(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([EchoServicer()], [], config=RpcConfig(idle_s=10.0)) as (server, client):
        stub = client.stub(EchoServicer, server.net.local.peer_id)
        await stub.rpc_echo(Echo())
        await trio.sleep(20)
        assert not client._calling
        assert not server._answering
        await stub.rpc_echo(Echo())
        assert client.metrics.channels_opened == 2
        assert client.metrics.errors_out == {}


async def test_a_long_call_keeps_its_channel_open(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([ToolServicer()], [], config=RpcConfig(idle_s=1.0, idle_in_s=1.0)) as (server, client):
        stub = client.stub(ToolServicer, server.net.local.peer_id)
        assert (await stub.rpc_wait(Wait(seconds=20.0))).seconds == 20.0


async def test_the_least_recently_used_idle_channel_leaves_for_a_new_one(
    nodes: Nodes, autojump_clock: MockClock
) -> None:
    services = [[ToolServicer()] for _ in range(4)]
    async with nodes(*services, config=RpcConfig(max_channels=2)) as (client, *servers):
        peers = [server.net.local.peer_id for server in servers]
        for peer in (peers[0], peers[1], peers[0], peers[2]):
            await client.stub(ToolServicer, peer).rpc_wait(Wait(seconds=0.0))
        assert list(client._calling) == [peers[0], peers[2]]
        async with trio.open_nursery() as nursery:
            for peer in (peers[0], peers[2]):
                nursery.start_soon(client.stub(ToolServicer, peer).rpc_wait, Wait(seconds=5.0))
            await trio.sleep(1)
            with pytest.raises(DialFailed, match="in use"):
                await client.stub(ToolServicer, peers[1]).rpc_wait(Wait(seconds=0.0))


async def test_the_answerer_restarts(autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.01)
    server, client = (Rpc(sim.node(PeerKey.dev(n)), Everyone(), rng=random.Random(0)) for n in ("server", "client"))
    server.serve(servicer := ToolServicer())
    client.net.learn(server.net.local)
    stub = client.stub(ToolServicer, server.net.local.peer_id)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.net.run)
        with pytest.raises(LocalProtocolError, match="not running"):
            await stub.rpc_wait(Wait(seconds=0.0))
        await nursery.start(client.run)
        for _ in range(3):
            async with trio.open_nursery() as life:
                await life.start(server.net.run)
                await life.start(server.run)
                await stub.rpc_wait(Wait(seconds=0.0))
                async with trio.open_nursery() as calls:
                    calls.start_soon(_broken, stub)
                    await servicer.started.wait()
                    await trio.sleep(1)
                    life.cancel_scope.cancel()
            with pytest.raises(DialFailed):
                await stub.rpc_wait(Wait(seconds=0.0))
        nursery.cancel_scope.cancel()
    assert servicer.running == 0


async def _broken(stub: ToolServicer) -> None:
    with pytest.raises(StreamBroken):
        await stub.rpc_wait(Wait(seconds=25.0))


async def test_the_caller_stops(autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.01)
    server, client = (Rpc(sim.node(PeerKey.dev(n)), Everyone(), rng=random.Random(0)) for n in ("server", "client"))
    server.serve(servicer := ToolServicer())
    client.net.learn(server.net.local)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.net.run)
        await nursery.start(client.net.run)
        await nursery.start(server.run)
        async with trio.open_nursery() as life:
            await life.start(client.run)
            nursery.start_soon(_broken, client.stub(ToolServicer, server.net.local.peer_id))
            await servicer.started.wait()
            life.cancel_scope.cancel()
        await servicer.cancelled.wait()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
