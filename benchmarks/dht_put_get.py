"""What a DHT put and get cost over real libp2p connections on loopback.

    python benchmarks/dht_put_get.py [--nodes 32] [--operations 100] [--replicas 5]

N nodes live in one process and join through the first. Then records are put and read back by random nodes,
one after another: medians of wall time, CPU time of the whole process (both ends of every message) per
operation, and the time a join takes. All times include signing, validation and the storing of replicas.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Awaitable, Callable

import trio

from mesh.auth.authorizer import Everyone
from mesh.clock import SystemClock
from mesh.dht import DHT, DhtConfig, Want
from mesh.identity import PeerKey
from mesh.kad.validator import NamespaceRule
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo
from mesh.rpc.rpc import Rpc

RULES = (NamespaceRule("bench", max_value_bytes=1024, max_ttl_s=7200.0),)


async def node(nursery: trio.Nursery, index: int, replicas: int, bootstrap: list[PeerInfo]) -> tuple[DHT, PeerInfo]:
    """One joined node."""
    key = PeerKey.dev(f"bench-{index}")
    net = Libp2pNetwork(key, Libp2pConfig(listen=("/ip4/127.0.0.1/tcp/0",)))
    rpc = Rpc(net, Everyone(), rng=random.Random(index))
    dht = DHT(
        rpc,
        key,
        rules=RULES,
        is_member=lambda peer: True,
        position=lambda: None,
        subnet_id=1,
        genesis=b"\x00" * 32,
        config=DhtConfig(replicas=replicas),
        clock=SystemClock(),
        rng=random.Random(index),
    )
    local = await nursery.start(net.run)
    await nursery.start(rpc.run)
    await nursery.start(dht.run, bootstrap)
    return dht, local


async def measure(name: str, count: int, operation: Callable[[int], Awaitable[object]]) -> None:
    """Run an operation `count` times, one after another, and print what it took."""
    walls_ms = []
    cpu = time.process_time()
    for number in range(count):
        start = time.perf_counter()
        await operation(number)
        walls_ms.append((time.perf_counter() - start) * 1000)
    cpu_ms = (time.process_time() - cpu) * 1000 / count
    walls_ms.sort()
    p90 = walls_ms[int(len(walls_ms) * 0.9)]
    print(f"{name:>22}: median {statistics.median(walls_ms):7.1f} ms, p90 {p90:7.1f} ms, {cpu_ms:6.1f} CPU-ms")


async def main(nodes: int, operations: int, replicas: int) -> None:
    """Build the network, warm it, measure."""
    rng = random.Random(1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    print(f"{nodes} nodes in one process, {replicas} replicas, {operations} operations each")
    async with trio.open_nursery() as nursery:
        dhts: list[DHT] = []
        joins_s = []
        bootstrap: list[PeerInfo] = []
        for index in range(nodes):
            start = time.perf_counter()
            dht, local = await node(nursery, index, replicas, bootstrap)
            joins_s.append(time.perf_counter() - start)
            bootstrap = bootstrap or [local]
            dhts.append(dht)
        print(f"{'join':>22}: median {statistics.median(joins_s[1:]):7.3f} s, last {joins_s[-1]:.3f} s")
        await trio.sleep(3)  # bucket refreshes after the joins
        print(f"{'table':>22}: {min(len(d.peers) for d in dhts)} to {max(len(d.peers) for d in dhts)} peers")
        stored: list[int] = []

        async def put(number: int) -> None:
            report = await rng.choice(dhts).put(b"bench/%d" % number, os.urandom(64), ttl_s=3600)
            stored.append(len(report.stored))

        async def latest(number: int) -> None:
            assert await rng.choice(dhts).get(b"bench/%d" % number)

        async def first(number: int) -> None:
            assert await rng.choice(dhts).get(b"bench/%d" % number, want=Want.FIRST)

        # Channels open on first use: two rounds nobody counts.
        for number in range(operations):
            await put(number)
            await latest(number)
        stored.clear()
        await measure("put", operations, put)
        print(f"{'replicas':>22}: {min(stored)} to {max(stored)} per put, mean {statistics.mean(stored):.1f}")
        await measure("get, latest of all", operations, latest)
        await measure("get, first valid", operations, first)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--operations", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=5)
    arguments = parser.parse_args()
    trio.run(main, arguments.nodes, arguments.operations, arguments.replicas)
