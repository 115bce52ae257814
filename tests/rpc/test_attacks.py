"""Who breaks the protocol loses the channel and is counted; who floods it or reads slowly costs bounded memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from pydantic import BaseModel, ConfigDict
from trio.testing import MockClock

from mesh.auth.authorizer import Everyone
from mesh.errors import MeshError, NetworkError, RemoteProtocolError, RequestTimeout, StreamBroken
from mesh.identity import PeerKey
from mesh.net.base import Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.body import pack
from mesh.rpc.config import RPC_PROTOCOL, RpcConfig
from mesh.rpc.flow import LIBP2P_LINK
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.testing.network import SimConfig, SimNetwork, SimNode


class Blob(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = 0
    blob: bytes = b""


class BlobServicer(Servicer):
    protocol = "/mesh/blob/1.0.0"

    def __init__(self) -> None:
        self.calls = 0

    @method(timeout_s=10.0, max_concurrent=1000, max_concurrent_per_peer=1000)
    async def rpc_give(self, request: Blob, ctx: RpcContext) -> Blob:
        self.calls += 1
        return Blob(blob=bytes(request.size))

    @method(timeout_s=10.0, max_response_bytes=1000, max_concurrent=1000, max_concurrent_per_peer=1000)
    async def rpc_wait(self, request: Blob, ctx: RpcContext) -> Blob:
        self.calls += 1
        await trio.sleep_forever()
        return request


NAME = BlobServicer.protocol
CONFIG = RpcConfig(
    max_channels_in=4,
    max_queued_frames=256,
    max_calls_in_per_channel=32,
    max_buffered_bytes=16 << 20,
    max_buffered_bytes_per_channel=8 << 20,
)


def request(call_id: int, name: str = "give", *, size: int = 0, body: bytes = b"", timeout_ms: int = 5000) -> bytes:
    return f.encode(f.Call(call_id, NAME, name, timeout_ms, f.Shape.ONE, b"", b"", size or len(body), body))


class Scene:
    """A victim that serves, an honest caller, and an attacker with nothing but streams."""

    def __init__(self, sim: SimNetwork) -> None:
        self.sim = sim
        self.servicer = BlobServicer()
        self.victim, self.honest = (
            Rpc(sim.node(PeerKey.dev(name)), Everyone(), config=CONFIG, rng=random.Random(1))
            for name in ("victim", "honest")
        )
        self.victim.serve(self.servicer)
        self.attacker = sim.node(PeerKey.dev("attacker"))

    @property
    def peer(self) -> PeerID:
        return self.victim.net.local.peer_id

    async def open(self) -> Stream:
        return await self.attacker.open(self.peer, RPC_PROTOCOL)

    async def check_alive(self) -> None:
        answer = await self.honest.call(BlobServicer.rpc_give, self.peer, Blob(size=100))
        assert len(answer.blob) == 100

    def violations(self) -> int:
        return self.victim.standings.violations(self.attacker.local.peer_id)


@asynccontextmanager
async def scene(sim: SimNetwork | None = None) -> AsyncIterator[Scene]:
    it = Scene(sim or SimNetwork(seed=3, latency_s=0.01))
    async with trio.open_nursery() as nursery:
        for node in (it.victim.net, it.honest.net, it.attacker):
            assert isinstance(node, SimNode)
            node.learn(it.victim.net.local)
            node.learn(it.attacker.local)
            await nursery.start(node.run)
        await nursery.start(it.victim.run)
        await nursery.start(it.honest.run)
        await it.check_alive()
        yield it
        await it.check_alive()
        nursery.cancel_scope.cancel()


async def drained(stream: Stream) -> bytes:
    """What comes until the stream is reset (raises StreamBroken) or ends."""
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


BODY = pack(Blob(blob=bytes(100)))
VIOLATIONS: dict[str, list[bytes]] = {
    "garbage": [b"GET / HTTP/1.1\r\n\r\n"],
    "zeros": [bytes(100)],
    "huge length": [b"\xff\xff\xff\xff"],
    "wrong header": [b"\0\0\0\x04\0\x02\x91\x07"],
    "an answer": [f.encode(f.Reply(1, "", "", "", False, "", 0))],
    "same id twice": [request(5, body=BODY), request(5, body=BODY)],
    "falling ids": [request(5, body=BODY), request(4, body=BODY)],
    "data for nothing": [f.encode(f.Data(1, b"x"))],
    "data after the end": [request(1, body=BODY), f.encode(f.Data(1, b"x"))],
    "more than announced": [request(1, "wait", size=10, body=b"x"), f.encode(f.Data(1, bytes(10)))],
    "more than credit": [request(1, "wait", size=4 << 20, body=bytes(32 << 10)), f.encode(f.Data(1, b"x"))],
    "more than first credit": [request(1, "wait", size=4 << 20, body=bytes(33 << 10))],
    "refused, and goes on": [request(1, "none", size=10, body=bytes(5)), f.encode(f.Data(1, bytes(6)))],
    "too much credit": [f.encode(f.Credit(0, 1))],
    "cancels nothing": [f.encode(f.Cancel(9))],
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_violations_end_the_channel_and_are_counted(name: str, autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        await stream.send_all(b"".join(VIOLATIONS[name]))
        with pytest.raises(StreamBroken), trio.fail_after(3):
            await drained(stream)
        assert it.violations() == it.victim.metrics.violations == 1
        assert it.victim.metrics.buffered_bytes == 0


@pytest.mark.parametrize("pause_s", [1.0, 1000.0])
async def test_a_frame_that_never_ends_is_cut(pause_s: float, autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        start = trio.current_time()
        with pytest.raises(NetworkError):
            for byte in request(1, body=BODY):
                await stream.send_all(bytes((byte,)))
                with trio.move_on_after(pause_s):
                    await stream.receive_some()
        assert trio.current_time() - start == pytest.approx(CONFIG.frame_timeout_s, abs=1.1)
        assert it.violations() == 0  # a network that stalls looks the same


async def test_a_silent_channel_is_closed_when_its_time_is_over(autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        start = trio.current_time()
        assert await drained(stream) == b""
        assert trio.current_time() - start == pytest.approx(CONFIG.idle_in_s, abs=1)
        assert it.violations() == 0


async def test_a_body_that_never_comes_ends_with_the_deadline(autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        await stream.send_all(b"".join(request(n, size=4 << 20) for n in range(1, 9)))
        await trio.sleep(1)
        # Two of 4 MiB fit the channel's share; the others were told to come back.
        assert it.victim.metrics.buffered_bytes <= CONFIG.max_buffered_bytes_per_channel
        assert it.victim.metrics.errors_in["busy"] >= 6
        await trio.sleep(6)
        assert it.victim.metrics.buffered_bytes == 0
        assert not it.victim._answering[-1].calls


async def test_a_flood_of_calls(autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, *(len(c.calls) for c in it.victim._answering))
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            with pytest.raises(NetworkError):
                # Never reads an answer: the refusals pile up, then the channel is gone.
                for start in range(1, 100_000, 100):
                    await stream.send_all(b"".join(request(n, "wait", body=BODY) for n in range(start, start + 100)))
            await it.check_alive()
            nursery.cancel_scope.cancel()
        assert most <= CONFIG.max_calls_in_per_channel
        assert it.servicer.calls < 100


async def test_a_flood_of_cancelled_calls(autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        for start in range(1, 5001, 50):
            flood = (request(n, "wait", body=BODY) + f.encode(f.Cancel(n)) for n in range(start, start + 50))
            await stream.send_all(b"".join(flood))
            await it.check_alive()
        assert all(not c.calls for c in it.victim._answering)


async def test_a_reader_that_does_not_read(autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        body = pack(Blob(size=1 << 20))
        for n in range(1, 20):
            await stream.send_all(request(n, body=body) + f.encode(f.Credit(n, 2 << 20)))
        await trio.sleep(4)
        sent = it.victim.metrics.bytes_out
        assert sent <= LIBP2P_LINK.window_bytes + 10_000
        await trio.sleep(40)
        assert it.victim.metrics.bytes_out - sent < 10_000  # errors in place of the answers
        assert not any(c.calls for c in it.victim._answering)


async def test_a_write_that_nobody_reads_ends_the_channel(autojump_clock: MockClock) -> None:
    async with scene(SimNetwork(seed=3, latency_s=0.01, config=SimConfig(window_bytes=1000))) as it:
        stream = await it.open()
        await stream.send_all(request(1, body=pack(Blob(size=20_000))))
        await trio.sleep(CONFIG.write_timeout_s - 1)
        assert len(it.victim._answering) == 2
        await trio.sleep(CONFIG.write_timeout_s + 2)
        assert len(it.victim._answering) == 1


async def test_a_reader_that_reads_but_gives_no_credit(autojump_clock: MockClock) -> None:
    async with scene() as it:
        stream = await it.open()
        await stream.send_all(request(1, body=pack(Blob(size=1 << 20))))
        got = bytearray()
        with trio.move_on_after(30):
            while True:
                got += await stream.receive_some()
        assert LIBP2P_LINK.first_credit_bytes < len(got) < LIBP2P_LINK.first_credit_bytes + 1000
        assert not any(c.calls for c in it.victim._answering)


async def test_channels_per_peer_and_in_all(autojump_clock: MockClock) -> None:
    async with scene() as it:
        streams = [await it.open() for _ in range(3)]
        await trio.sleep(1)
        assert await drained(streams[0]) == b""  # the oldest left for the newest
        assert len(it.victim._answering) == 3
        others = [it.sim.node(PeerKey.dev(f"other {n}")) for n in range(6)]
        async with trio.open_nursery() as nursery:
            for node in others:
                node.learn(it.victim.net.local)
                await nursery.start(node.run)
                # Each keeps its channel busy.
                stream = await node.open(it.peer, RPC_PROTOCOL)
                try:
                    await stream.send_all(request(1, "wait", body=BODY, timeout_ms=9000))
                except StreamBroken:
                    pass
                await trio.sleep(0.1)
            assert len(it.victim._answering) <= CONFIG.max_channels_in
            assert it.victim.metrics.channels_refused == 2
            await trio.sleep(10)
            nursery.cancel_scope.cancel()


# --- an answerer that attacks its caller -------------------------------------------------------------------------


def respond(call_id: int, size: int, body: bytes = b"") -> bytes:
    return f.encode(f.Reply(call_id, "", "", "", False, "", size, body))


GOOD = pack(Blob(blob=b"ok"))
HOSTILE_ANSWERS: dict[str, tuple[Callable[[int], bytes], type[MeshError]]] = {
    "garbage": (lambda n: b"HTTP/1.1 200 OK\r\n", RemoteProtocolError),
    "answer to a call never made": (lambda n: respond(n + 7, 0), RemoteProtocolError),
    "two answers": (lambda n: respond(n, 100, b"x") + respond(n, 100, b"x"), RemoteProtocolError),
    "more than announced": (
        lambda n: respond(n, 10, b"x") + f.encode(f.Data(n, bytes(10))),
        RemoteProtocolError,
    ),
    "data before the answer": (lambda n: f.encode(f.Data(n, b"x")), RemoteProtocolError),
    "too large": (lambda n: respond(n, 1001), RemoteProtocolError),
    "a gigabyte": (lambda n: respond(n, 1 << 30, bytes(1000)), RemoteProtocolError),
    "not the model": (lambda n: respond(n, 4, b"\x81\xa1x\x01"), RemoteProtocolError),
    "a request": (lambda n: request(n), RemoteProtocolError),
    "credit for nothing": (lambda n: f.encode(f.Credit(0, 1 << 20)), RemoteProtocolError),
    "never-ending frame": (lambda n: b"\0\0\x10\0", RequestTimeout),
    "silence": (lambda n: b"", RequestTimeout),
    "half an answer": (lambda n: respond(n, 500, bytes(100)), RequestTimeout),
    "gives up": (lambda n: f.encode(f.Cancel(n)), RequestTimeout),
    "control characters": (
        lambda n: f.encode(f.Reply(n, "bad\n", "", "\x1b[2J", False, "", 0)),
        MeshError,
    ),
}


@pytest.mark.parametrize("name", HOSTILE_ANSWERS)
async def test_hostile_answers_are_errors_of_the_call(name: str, autojump_clock: MockClock) -> None:
    reply, expected = HOSTILE_ANSWERS[name]
    async with scene() as it:

        async def serve(stream: Stream) -> None:
            decoder = f.FrameDecoder(max_frame_bytes=1 << 16)
            while data := await stream.receive_some():
                for frame in decoder.feed(data):
                    if isinstance(frame, f.Call):
                        await stream.send_all(reply(frame.call_id))

        it.attacker.serve(RPC_PROTOCOL, serve)
        start = trio.current_time()
        with pytest.raises(expected) as caught:
            await it.honest.call(BlobServicer.rpc_wait, it.attacker.local.peer_id, Blob())
        assert str(caught.value).isprintable()
        assert trio.current_time() - start <= 10.0
        # An honest answer right after, over the same channel or a fresh one.
        it.attacker.serve(RPC_PROTOCOL, _answers_well)
        await it.attacker.disconnect(it.honest.net.local.peer_id)
        await trio.sleep(it.honest.config.standing.first_suspension_s)
        answer = await it.honest.call(BlobServicer.rpc_wait, it.attacker.local.peer_id, Blob())
        assert answer.blob == b"ok"


async def _answers_well(stream: Stream) -> None:
    decoder = f.FrameDecoder(max_frame_bytes=1 << 16)
    while data := await stream.receive_some():
        for frame in decoder.feed(data):
            if isinstance(frame, f.Call):
                await stream.send_all(respond(frame.call_id, len(GOOD), GOOD))


@pytest.mark.parametrize("seed", range(20))
async def test_random_bytes_on_both_ends(seed: int, autojump_clock: MockClock) -> None:
    rng = random.Random(seed)
    async with scene() as it:

        async def noise(stream: Stream) -> None:
            for _ in range(20):
                data = rng.randbytes(rng.randrange(1, 200))
                await stream.send_all(
                    rng.choice((data, len(data).to_bytes(4, "big") + data, request(rng.getrandbits(9))))
                )

        it.attacker.serve(RPC_PROTOCOL, noise)
        for _ in range(5):
            with pytest.raises(MeshError):
                await noise(await it.open())
                await it.honest.call(BlobServicer.rpc_wait, it.attacker.local.peer_id, Blob())
        assert it.victim.metrics.buffered_bytes == 0
