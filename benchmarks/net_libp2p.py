"""What do a dial, a stream, a round trip and a megabyte cost on the libp2p network, and on py-libp2p alone?

Both ends in one process on loopback, so CPU time is that of both ends. Prints median, first and ninth decile.
Run: python benchmarks/net_libp2p.py [--quick]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo as BareInfo
from multiaddr import Multiaddr

from mesh.identity import PeerKey
from mesh.net.base import Stream
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork

ECHO = "/bench/echo"
SIZE = 64
BULK = 4 * 1024 * 1024
CHUNK = 256 * 1024

Step = Callable[[], Awaitable[None]]


async def measure(label: str, repeats: int, step: Step, after: Step | None = None) -> None:
    """Time `step` alone; `after` (putting things back) is not counted."""
    wall, cpu = [], []
    for _ in range(repeats):
        t, c = time.perf_counter(), time.process_time()
        await step()
        wall.append((time.perf_counter() - t) * 1e3)
        cpu.append((time.process_time() - c) * 1e3)
        if after is not None:
            await after()
            await trio.sleep(0.15)
    deciles = statistics.quantiles(wall, n=10)
    print(
        f"{label:34} n={repeats:<5} {statistics.median(wall):8.2f} ms  ({deciles[0]:.2f} - {deciles[-1]:.2f})"
        f"   {statistics.median(cpu):7.2f} CPU-ms"
    )


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def ours(scale: int) -> None:
    """mesh.net.libp2p."""
    a, b = (Libp2pNetwork(PeerKey.generate(), Libp2pConfig()) for _ in range(2))
    b.serve(ECHO, echo)
    async with trio.open_nursery() as nursery:
        await nursery.start(a.run)
        info = await nursery.start(b.run)

        async def drop() -> None:
            await a.disconnect(info.peer_id)

        await measure("mesh dial", 4 * scale, lambda: a.connect(info), drop)
        await a.connect(info)
        await trio.sleep(0.3)

        async def open_and_close() -> None:
            await (await a.open(info.peer_id, ECHO)).aclose()

        await measure("mesh open a stream", 30 * scale, open_and_close)
        stream = await a.open(info.peer_id, ECHO)

        async def exchange(size: int) -> None:
            got = 0

            async def receive() -> None:
                nonlocal got
                while got < size:
                    got += len(await stream.receive_some())

            if size <= SIZE:
                await stream.send_all(b"x" * size)
                return await receive()
            async with trio.open_nursery() as both:
                both.start_soon(receive)
                for _ in range(size // CHUNK):
                    await stream.send_all(b"x" * CHUNK)
            return None

        await measure(f"mesh round trip of {SIZE} B", 200 * scale, lambda: exchange(SIZE))
        await measure("mesh echo of 4 MiB", scale, lambda: exchange(BULK))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def bare_hosts() -> AsyncIterator[tuple[Any, Any]]:
    """Two py-libp2p hosts as its documentation makes them."""
    a, b = (new_host(key_pair=create_new_key_pair()) for _ in range(2))
    async with a.run([]), b.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield a, b
        await a.close()
        await b.close()


async def bare(scale: int) -> None:
    """py-libp2p alone."""

    async def bare_echo(stream: Any) -> None:
        try:
            while True:
                await stream.write(await stream.read(65536))
        except Exception:  # noqa: BLE001 - what it raises here would end its host
            await stream.reset()

    async with bare_hosts() as (a, b):
        b.set_stream_handler(ECHO, bare_echo)
        info = BareInfo(b.get_id(), list(b.get_transport_addrs()))
        await measure("py-libp2p dial", 4 * scale, lambda: a.connect(info), lambda: a.disconnect(info.peer_id))
        await a.connect(info)
        await trio.sleep(0.3)

        async def open_and_close() -> None:
            await (await a.new_stream(info.peer_id, [ECHO])).close()

        await measure("py-libp2p open a stream", 30 * scale, open_and_close)
        stream = await a.new_stream(info.peer_id, [ECHO])

        async def exchange(size: int) -> None:
            async def send() -> None:
                for _ in range(size // CHUNK):
                    await stream.write(b"x" * CHUNK)

            got = 0
            async with trio.open_nursery() as both:
                if size <= SIZE:
                    await stream.write(b"x" * size)
                else:
                    both.start_soon(send)
                while got < size:
                    got += len(await stream.read(65536))

        await measure(f"py-libp2p round trip of {SIZE} B", 200 * scale, lambda: exchange(SIZE))
        await measure("py-libp2p echo of 4 MiB", scale, lambda: exchange(BULK))


if __name__ == "__main__":
    factor = 2 if "--quick" in sys.argv else 10
    trio.run(bare, factor)  # first: mesh's patches hold for the whole process
    trio.run(ours, factor)
