"""How fast are the bytes of a data connection, beside trio's own TLS stream and plain TCP?

Loopback; a sender and a receiver in one process, so CPU-ms are those of both ends.
`python benchmarks/data_stream.py [MiB]`
"""

from __future__ import annotations

import socket
import ssl
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from mesh.clock import SystemClock
from mesh.identity import PeerKey
from mesh.net.tls import TlsStream, client_context, dial, handshake, new_identity, server_context

MIB = 1 << 20
CHUNK = 256 * 1024
ROUNDS = 5
PEER = PeerKey.dev("peer").peer_id
Pair = tuple[Any, Any]


async def _tcp() -> tuple[socket.socket, socket.socket]:
    listener = socket.create_server(("127.0.0.1", 0))
    ours = await dial("127.0.0.1", listener.getsockname()[1])
    theirs, _ = listener.accept()
    theirs.setblocking(False)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.close()
    return ours, theirs


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext, bytes, bytes]:
    now_s = SystemClock().now()
    one, two = new_identity(now_s), new_identity(now_s)
    return (
        client_context(one, two.certificate),
        server_context(two, one.certificate),
        one.certificate,
        two.certificate,
    )


@asynccontextmanager
async def plain() -> AsyncIterator[Pair]:
    ours, theirs = await _tcp()
    a, b = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in (ours, theirs))
    yield a, b
    await a.aclose()
    await b.aclose()


@asynccontextmanager
async def trio_tls() -> AsyncIterator[Pair]:
    ours, theirs = await _tcp()
    client, server, _, _ = _contexts()
    a, b = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in (ours, theirs))
    one = trio.SSLStream(a, client, server_hostname="x")
    two = trio.SSLStream(b, server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.do_handshake)
        nursery.start_soon(two.do_handshake)
    yield one, two
    await a.aclose()
    await b.aclose()


@asynccontextmanager
async def mesh_tls() -> AsyncIterator[Pair]:
    ours, theirs = await _tcp()
    client, server, client_certificate, server_certificate = _contexts()
    one = client.wrap_socket(ours, server_hostname="x", do_handshake_on_connect=False, suppress_ragged_eofs=False)
    two = server.wrap_socket(theirs, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handshake, one, lambda: server_certificate)
        nursery.start_soon(handshake, two, lambda: client_certificate)
    a, b = TlsStream(one, PEER), TlsStream(two, PEER)
    yield a, b
    await a.reset()
    await b.reset()


async def bulk(a: Any, b: Any, size: int) -> tuple[float, float]:
    """MB/s and CPU-ms per MB of `size` bytes in one direction."""
    chunk = memoryview(bytes(CHUNK))
    buffer = memoryview(bytearray(CHUNK))

    async def send() -> None:
        for _ in range(size // CHUNK):
            await a.send_all(chunk)

    async def take() -> None:
        have = 0
        while have < size:
            if isinstance(b, TlsStream):
                have += await b.receive_into(buffer)
            else:
                have += len(await b.receive_some(CHUNK))

    wall, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(take)
    return size / 1e6 / (time.perf_counter() - wall), (time.process_time() - cpu) * 1e3 / (size / 1e6)


async def ping_pong(a: Any, b: Any, rounds: int) -> tuple[float, float]:
    """Milliseconds and CPU-ms of 64 bytes there and back."""

    async def answer() -> None:
        for _ in range(rounds):
            await b.send_all(await b.receive_some(64))

    wall, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        for _ in range(rounds):
            await a.send_all(bytes(64))
            await a.receive_some(64)
    return (time.perf_counter() - wall) * 1e3 / rounds, (time.process_time() - cpu) * 1e3 / rounds


async def main(size: int) -> None:
    makers: dict[str, Callable[[], Any]] = {"plain TCP": plain, "trio.SSLStream": trio_tls, "mesh": mesh_tls}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in makers}
    for _ in range(ROUNDS):
        for name, make in makers.items():
            async with make() as (a, b):
                await bulk(a, b, 4 * MIB)
                found[name].append((*await bulk(a, b, size), *await ping_pong(a, b, 500)))
    print(f"{size // MIB} MiB in one direction, {ROUNDS} rounds, medians (lowest to highest)")
    for name, rows in found.items():
        mb_s, cpu, ping, ping_cpu = zip(*rows, strict=True)
        print(
            f"{name:16} {statistics.median(mb_s):6.0f} MB/s ({min(mb_s):.0f}-{max(mb_s):.0f}) "
            f"{statistics.median(cpu):6.2f} CPU-ms/MB   64 B there and back {statistics.median(ping):6.3f} ms "
            f"{statistics.median(ping_cpu):6.3f} CPU-ms"
        )


if __name__ == "__main__":
    trio.run(main, MIB * (int(sys.argv[1]) if len(sys.argv) > 1 else 64))
