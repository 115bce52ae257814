"""Attacks over real sockets on loopback: connections that say little, many streams, many identities at one address.

In the normal run only outcomes are asserted. The slow one measures how long an honest caller waits, with and without
the attack; attackers and victim share one thread there, so the ratio says more than an attacker from outside would do.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError

from mesh.auth.authorizer import PeerClass
from mesh.auth.combine import AllowList
from mesh.errors import MeshError
from mesh.identity import PeerKey
from mesh.net.base import Stream
from mesh.net.data import DATA_PROTOCOL, DataConfig, DataPlane
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.rpc.config import RPC_PROTOCOL
from mesh.rpc.rpc import Rpc

from .scene import (
    CONFIG,
    HONEST,
    VICTIM,
    Scale,
    Target,
    bounded_growth,
    call,
    check_clean,
    count_files,
    count_tasks,
    honest_call,
    no_crashes,
    p99,
    put,
)

WAIT_S = 60.0  # a bound on a whole test, far above what it takes
MAX_GROWTH_BYTES = 32 << 20
MAX_SLOWDOWN = 20.0
"""Of an honest caller's 99th percentile while the attackers, in the same thread, do nothing but attack."""
IPS = [f"127.0.0.{n}" for n in range(2, 10)]
"""Where attackers sit; the honest caller is at 127.0.0.1."""
PER_IP, HALF_OPEN, UNPROVEN_PER_IP, UNPROVEN = 8, 24, 4, 16


class Node:
    """A network with calls and data connections."""

    def __init__(self, key: PeerKey) -> None:
        self.net = Libp2pNetwork(
            key,
            Libp2pConfig(
                max_connections_per_ip=PER_IP,
                max_half_open=HALF_OPEN,
                max_half_open_per_ip=PER_IP,
                handshake_timeout_s=1.0,
                stream_timeout_s=2.0,
                dial_timeout_s=3.0,
                sweep_interval_s=0.05,
                linger_s=0.2,
            ),
        )
        self.data = DataPlane(
            self.net,
            hosts=["127.0.0.1"],
            config=DataConfig(
                max_unproven=UNPROVEN, max_unproven_per_ip=UNPROVEN_PER_IP, handshake_timeout_s=1.0, offer_life_s=2.0
            ),
        )
        members = AllowList({VICTIM.peer_id: PeerClass.MEMBER, HONEST.peer_id: PeerClass.MEMBER})
        self.rpc = Rpc(self.net, members, config=CONFIG, rng=random.Random(1), data=self.data)
        self.rpc.serve(Target())

    def endpoint(self, kind: str) -> tuple[str, int]:
        """Host and port of one of its two listeners."""
        if kind == "data":
            return "127.0.0.1", self.data.port
        return "127.0.0.1", int(str(self.net.local.addrs[0]).split("/")[4])


class Field:
    """A victim, an honest caller, and what attackers need."""

    def __init__(self) -> None:
        self.victim, self.honest = Node(VICTIM), Node(HONEST)
        self.latencies_s: list[float] = []
        self.seen: Counter[str] = Counter()

    async def call(self) -> None:
        """One honest call; it must succeed."""
        start = time.perf_counter()
        await honest_call(self.honest.rpc, self.victim.net.local.peer_id, len(self.latencies_s))
        self.latencies_s.append(time.perf_counter() - start)

    async def keep_calling(self, over: trio.Event) -> None:
        while not over.is_set():
            await self.call()
            await trio.sleep(0.005)


Attack = Callable[[Field, Scale], Awaitable[None]]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - sockets end by state, not by event
            await trio.sleep(0.01)


async def touch(endpoint: tuple[str, int], ip: str) -> trio.SocketStream | None:
    """A TCP connection from an address; None when it is refused at once."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.bind((ip, 0))
        await sock.connect(endpoint)
    except OSError as error:
        sock.close()
        if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EADDRNOTAVAIL):
            raise
        return None
    return trio.SocketStream(sock)


async def push(stream: trio.SocketStream, data: bytes) -> bool:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        return False
    return True


# --- the attacks ------------------------------------------------------------------------------------------------------


def half_open(kind: str) -> Attack:
    """Sockets that say nothing, or a little, from several addresses, more than may be."""

    async def attack(field: Field, scale: Scale) -> None:
        held: list[trio.SocketStream] = []
        greetings = (b"", b"\x13/multistream/1.0.0\n", b"\x16\x03\x01\x02\x00\x01", b"\x13/multi")
        for number in scale.rounds():
            stream = await touch(field.victim.endpoint(kind), IPS[number % len(IPS)])
            if stream is None:
                continue
            await push(stream, greetings[number % 4])
            held.append(stream)
            if len(held) > 100:
                await held.pop(0).aclose()
            net, data = field.victim.net, field.victim.data
            assert len(net._half_open) <= HALF_OPEN
            assert max(net._inbound_by_ip.values(), default=0) <= PER_IP
            assert data._unproven.total() <= UNPROVEN + UNPROVEN_PER_IP
            assert max(data._unproven.values(), default=0) <= UNPROVEN_PER_IP
        for stream in held:
            await stream.aclose()

    return attack


async def dribble(field: Field, scale: Scale) -> None:
    """The first bytes of a good handshake, one now and then."""
    hello = b"\x13/multistream/1.0.0\n\x07/noise\n" + bytes(200)
    sent = 0

    async def one(kind: str, ip: str) -> None:
        nonlocal sent
        while True:
            stream = await touch(field.victim.endpoint(kind), ip)
            if stream is None:
                await trio.sleep(0.05)
                continue
            async with stream:
                for byte in hello:
                    if not await push(stream, bytes((byte,))):
                        break
                    sent += 1
                    await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for ip in IPS:
            for kind in ("libp2p", "data"):
                nursery.start_soon(one, kind, ip)
        for number in scale.rounds():
            while sent < number:  # noqa: ASYNC110 - a count, not an event
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def streams(field: Field, scale: Scale) -> None:
    """A stranger opens streams of all protocols and leaves them, with or without a first word."""
    attacker = Libp2pNetwork(PeerKey.dev("attacks streams"), Libp2pConfig(listen=(), close_timeout_s=0.5))
    async with trio.open_nursery() as nursery:
        await nursery.start(attacker.run)
        attacker.learn(field.victim.net.local)
        peer = field.victim.net.local.peer_id
        held: list[Stream] = []
        for number in scale.rounds():
            protocol = (RPC_PROTOCOL, DATA_PROTOCOL, "/none/1.0.0")[number % 3]
            try:
                with trio.fail_after(1):
                    stream = await attacker.open(peer, protocol)
            except (MeshError, trio.TooSlowError):
                field.seen["refused"] += 1
                continue
            field.seen["opened"] += 1
            if number % 2:
                await put(stream, b"\0\x02" if protocol == DATA_PROTOCOL else call(1, "slow", b"\x80"))
            held.append(stream)
            if len(held) > 200:
                await held.pop(0).reset()
            assert len(field.victim.rpc._answering) <= CONFIG.max_channels_in
            for connection in list(field.victim.net._inbound):
                assert connection.stream_count <= field.victim.net.config.muxer.max_inbound_streams + 2
        nursery.cancel_scope.cancel()


async def stream_flood(field: Field, scale: Scale) -> None:
    """Beginnings of streams written straight into a connection, past all manners of our own muxer."""
    attacker = Libp2pNetwork(PeerKey.dev("attacks flood"), Libp2pConfig(listen=(), close_timeout_s=0.5))
    most = field.victim.net.config.muxer.max_inbound_streams
    async with trio.open_nursery() as nursery:
        await nursery.start(attacker.run)
        stream_id = 10_001
        for _ in scale.rounds(10):
            try:
                await attacker.connect(field.victim.net.local)
                muxed = await attacker._connection(field.victim.net.local.peer_id)
                # A data frame of nothing with SYN; ids rise, far above those of its own streams.
                ids = range(stream_id, stream_id + 20, 2)
                stream_id += 20
                await muxed.secured_conn.write(b"".join(struct.pack("!BBHII", 0, 0, 1, n, 0) for n in ids))
                field.seen["written"] += 10
            except (MeshError, BaseLibp2pError):
                field.seen["dropped"] += 1
            await trio.lowlevel.checkpoint()
            assert all(connection._inbound <= most for connection in field.victim.net._inbound)
        nursery.cancel_scope.cancel()
    assert field.seen["written"] > most


async def sybils(field: Field, scale: Scale) -> None:
    """Many identities at the honest caller's own address: it keeps its connection, they get what one address may."""
    peer = field.victim.net.local
    crowd = [
        Libp2pNetwork(
            PeerKey.dev(f"attacks sybil {n}"), Libp2pConfig(listen=(), dial_timeout_s=0.3, close_timeout_s=0.2)
        )
        for n in range(PER_IP + 4)
    ]
    async with trio.open_nursery() as nursery:
        for net in crowd:
            await nursery.start(net.run)
        for number in scale.rounds(least=len(crowd)):
            net = crowd[number % len(crowd)]
            try:
                await net.connect(peer)
                field.seen["connected"] += 1
            except MeshError:
                field.seen["refused"] += 1
                if number % 3 == 0:
                    other = crowd[(number * 7) % len(crowd)]
                    await other.disconnect(peer.peer_id)
            assert field.victim.net._inbound_by_ip["127.0.0.1"] <= PER_IP
        nursery.cancel_scope.cancel()
    assert field.seen["refused"]


ATTACKS: dict[str, Attack] = {
    "half open": half_open("libp2p"),
    "half open at the data port": half_open("data"),
    "dribble": dribble,
    "streams": streams,
    "stream flood": stream_flood,
    "sybils": sybils,
}


@asynccontextmanager
async def field_of() -> AsyncIterator[Field]:
    """Both nodes, calling each other over a data connection; afterwards nothing is left."""
    files = count_files()
    field = Field()
    with trio.fail_after(WAIT_S), no_crashes():
        async with trio.open_nursery() as nursery:
            for node in (field.victim, field.honest):
                await nursery.start(node.net.run)
                await nursery.start(node.data.run)
                await nursery.start(node.rpc.run)
            field.honest.net.learn(field.victim.net.local)
            for _ in range(20):
                await field.call()
            tasks = count_tasks()
            yield field
            with suppress(trio.TooSlowError):  # the assertions say what is left
                await until(lambda: count_tasks() <= tasks)
            await field.call()
            check_clean(field.victim.rpc)
            assert count_tasks() <= tasks
            assert not field.victim.net._half_open
            assert not field.victim.data._unproven
            assert not field.victim.data._waiting
            nursery.cancel_scope.cancel()
    assert count_files() <= files


@pytest.mark.parametrize("name", ATTACKS)
async def test_calls_go_on_and_nothing_is_left(name: str) -> None:
    async with field_of() as field:
        with bounded_growth(MAX_GROWTH_BYTES):
            over = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(field.keep_calling, over)
                await ATTACKS[name](field, Scale(1000, 0.5))
                over.set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
async def test_how_long_an_honest_caller_waits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with field_of() as field:
        over = trio.Event()
        with trio.move_on_after(3):
            await field.keep_calling(over)
        calm, field.latencies_s = field.latencies_s, []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(field.keep_calling, over)
            await ATTACKS[name](field, Scale(10_000, 30.0))
            over.set()
        ratio = p99(field.latencies_s) / p99(calm)
        with capsys.disabled():
            times = f"{p99(calm) * 1e3:.2f} ms, attacked {p99(field.latencies_s) * 1e3:.2f} ms"
            print(f"\n{name}: p99 {times}, ratio {ratio:.1f}, {len(field.latencies_s)} calls")  # noqa: T201
        assert ratio <= MAX_SLOWDOWN


async def test_a_data_connection_that_is_expected_finds_room() -> None:
    """Sockets from other addresses take all the room for unproven ones: a peer whose offer was taken comes in."""
    async with field_of() as field:
        peer = field.victim.net.local.peer_id
        await field.victim.data.close_peer(HONEST.peer_id)
        held = []
        for number in range(UNPROVEN + 8):
            stream = await touch(field.victim.endpoint("data"), IPS[number % len(IPS)])
            if stream is not None:
                held.append(stream)
        await until(lambda: field.victim.data._unproven.total() == UNPROVEN)
        data = await field.honest.data.open(peer)
        await data.aclose()
        for stream in held:
            await stream.aclose()
