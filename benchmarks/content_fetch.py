"""How much faster is a blob from three peers than from one, and how fast is it at all?

Every peer is a process of its own, on real libp2p over loopback, and fetches into a file. Throttled, each source sends
at most --rate MB/s (a token bucket in front of its chunks): on a machine whose processes share two cores, what is
measured is then what the schedule makes of three lines, not what the cores make of three encryptions. Unthrottled, the
processors are the limit, and three sources on two cores cannot be three times as fast.

Run: python benchmarks/content_fetch.py [--mib 1024] [--rate 8] [--repeats 1]
CPU-ms/MB are those of the fetching process and of all sources together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from mesh.auth.authorizer import Everyone
from mesh.content import (
    ChunkReply,
    ChunkRequest,
    Content,
    ContentConfig,
    ContentServicer,
    Fetcher,
    ManifestReply,
    ManifestRequest,
    put_file,
)
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.rpc import Rpc

MIB = 1 << 20
SOURCES = 3


class Throttled:
    """Serves a node's blobs at `rate` bytes/s in all; 0 for no limit."""

    def __init__(self, content: Content, rate: float) -> None:
        self._content = content
        self._rate = rate
        self._free_at = 0.0

    async def serve_manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
        return await self._content.serve_manifest(request, remote)

    async def serve_chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        reply = await self._content.serve_chunk(request, remote)
        if self._rate:
            self._free_at = max(self._free_at, trio.current_time()) + len(reply.data) / self._rate
            await trio.sleep_until(self._free_at)
        return reply


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def serve(directory: Path, rate: float) -> None:
    """A source: prints its address; prints its CPU seconds and ends when stdin does."""
    rpc = Rpc(Libp2pNetwork(PeerKey.generate(), Libp2pConfig()), Everyone(), rng=random.Random(1))
    content = Content(directory, rpc, ContentConfig(max_bytes=64 << 30))
    rpc.serve(ContentServicer(Throttled(content, rate)))
    async with trio.open_nursery() as nursery:
        await nursery.start(rpc.net.run)
        await nursery.start(rpc.run)
        print(rpc.net.local.multiaddrs()[0], flush=True)
        begin = cpu_s()
        await trio.to_thread.run_sync(sys.stdin.read)
        print(cpu_s() - begin, flush=True)
        nursery.cancel_scope.cancel()


async def fetch(digest: bytes, size: int, target: Path, addresses: list[str]) -> None:
    """The fetching process: prints seconds, CPU seconds, most memory (MiB) and the longest stop of its loop (ms), with
    waiting for a core and without."""
    rpc = Rpc(Libp2pNetwork(PeerKey.generate(), Libp2pConfig(listen=())), Everyone(), rng=random.Random(1))
    tick_s, longest, longest_cpu = 0.005, 0.0, 0.0

    async def watch() -> None:
        nonlocal longest, longest_cpu
        while True:
            before, before_cpu = time.perf_counter(), time.thread_time()
            await trio.sleep(tick_s)
            longest = max(longest, time.perf_counter() - before - tick_s)
            longest_cpu = max(longest_cpu, time.thread_time() - before_cpu - tick_s)

    async with trio.open_nursery() as nursery:
        await nursery.start(rpc.net.run)
        await nursery.start(rpc.run)
        peers = [PeerInfo.parse(address) for address in addresses]
        for info in peers:
            rpc.net.learn(info)
        nursery.start_soon(watch)
        begin, cpu = time.perf_counter(), cpu_s()
        got = await Fetcher(rpc).to_file(digest, target, max_bytes=size, peers=[info.peer_id for info in peers])
        seconds, cpu = time.perf_counter() - begin, cpu_s() - cpu
        assert got == size
        nursery.cancel_scope.cancel()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stops = {"stop_ms": longest * 1e3, "stop_cpu_ms": longest_cpu * 1e3}
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "mib": memory, **stops}), flush=True)


def run(stores: list[Path], digest: bytes, size: int, work: Path, rate: float) -> dict[str, float]:
    """One fetch from these stores, all processes fresh."""
    own = [sys.executable, __file__]
    sources = [
        subprocess.Popen(
            [*own, "--serve", str(store), "--rate", str(rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for store in stores
    ]
    target = work / "fetched"
    try:
        addresses = [source.stdout.readline().strip() for source in sources]
        done = subprocess.run(
            [*own, "--fetch", digest.hex(), "--size", str(size), "--target", str(target), "--from", *addresses],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        result = json.loads(done.stdout)
        result["source_cpu_s"] = sum(float(source.communicate()[0]) for source in sources)
        return result
    finally:
        for source in sources:
            source.kill()
            source.wait()
        target.unlink(missing_ok=True)


async def prepare(work: Path, size: int) -> tuple[list[Path], bytes]:
    file = work / "blob"
    rng = random.Random(1)
    with file.open("wb") as out:
        for _ in range(size // MIB):
            out.write(rng.randbytes(MIB))
    stores = []
    begin, cpu = time.perf_counter(), cpu_s()
    for number in range(SOURCES):
        rpc = Rpc(Libp2pNetwork(PeerKey.generate(), Libp2pConfig()), Everyone(), rng=rng)
        stores.append(work / str(number))
        digest = await put_file(Content(stores[-1], rpc, ContentConfig(max_bytes=64 << 30)), file)
    moved = SOURCES * size / 1e6
    print(
        f"put a file: {moved / (time.perf_counter() - begin):6.0f} MB/s  {(cpu_s() - cpu) * 1e3 / moved:5.1f} CPU-ms/MB"
    )
    file.unlink()
    return stores, digest


def main(mib: int, rate_mb: float, repeats: int) -> None:
    size, mb = mib * MIB, mib * MIB / 1e6
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        stores, digest = trio.run(prepare, work, size)
        seconds: dict[tuple[int, float], list[float]] = {}
        for rate in (rate_mb, 0.0):
            for count in (1, SOURCES):
                for _ in range(repeats):
                    load = os.getloadavg()[0]
                    got = run(stores[:count], digest, size, work, rate * 1e6)
                    seconds.setdefault((count, rate), []).append(got["seconds"])
                    print(
                        f"{mib} MiB from {count}, {f'{rate:g} MB/s each' if rate else 'unthrottled':>14}: "
                        f"{got['seconds']:7.2f} s  {mb / got['seconds']:6.1f} MB/s  CPU-ms/MB "
                        f"{got['cpu_s'] * 1e3 / mb:5.1f} here {got['source_cpu_s'] * 1e3 / mb:5.1f} there  "
                        f"at most {got['mib']:4.0f} MiB  longest stop of the loop {got['stop_ms']:4.1f} ms "
                        f"({got['stop_cpu_ms']:.1f} of them computing)  "
                        f"load before {load:.1f}"
                    )
            alone, together = (statistics.median(seconds[count, rate]) for count in (1, SOURCES))
            print(f"{SOURCES} sources are {alone / together:.2f} times as fast as one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--fetch", type=bytes.fromhex)
    parser.add_argument("--size", type=int)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--from", dest="sources", nargs="*")
    args = parser.parse_args()
    if args.serve:
        trio.run(serve, args.serve, args.rate)
    elif args.fetch:
        trio.run(fetch, args.fetch, args.size, args.target, args.sources)
    else:
        main(args.mib, args.rate, args.repeats)
