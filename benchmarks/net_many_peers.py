"""What do 200 connected peers cost one node: memory, and CPU while nothing happens?

The node and its peers are processes of their own, on loopback; each peer is a Libp2pNetwork with one live connection.
Run: python benchmarks/net_many_peers.py [--peers 200] [--children 4] [--idle_s 20]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import trio

from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo

CONNECT_TIMEOUT_S = 120.0


def rss_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def peers(address: str, count: int) -> None:
    """So many networks that connect to `address` and stay."""
    info = PeerInfo.parse(address)
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            net = Libp2pNetwork(PeerKey.generate(), Libp2pConfig(listen=()))
            await nursery.start(net.run)
            await net.connect(info)


def child(address: str, count: int) -> subprocess.Popen[bytes]:
    """A process that hosts so many peers."""
    return subprocess.Popen([sys.executable, __file__, "--connect", address, "--peers", str(count)])


async def node(count: int, children: int, idle_s: float) -> None:
    """The measured one; starts the others."""
    # As many from one address, and as many for good, as this question needs.
    config = Libp2pConfig(max_connections_per_ip=count, max_inbound=max(400, count), max_connections=max(512, count))
    net = Libp2pNetwork(PeerKey.generate(), config)
    async with trio.open_nursery() as nursery:
        info = await nursery.start(net.run)
        before = rss_mib()
        shares = [count // children + (number < count % children) for number in range(children)]
        running = [child(info.multiaddrs()[0], share) for share in shares]
        try:
            begun = time.perf_counter()
            with trio.fail_after(CONNECT_TIMEOUT_S):
                while len(net.connected()) < count:  # noqa: ASYNC110 - a network reports connections by state
                    await trio.sleep(0.1)
            connected_s = time.perf_counter() - begun
            await trio.sleep(3)  # identify comes and goes
            rss, tasks = rss_mib(), trio.lowlevel.current_statistics().tasks_living
            wall, cpu = time.perf_counter(), time.process_time()
            await trio.sleep(idle_s)
            share = (time.process_time() - cpu) / (time.perf_counter() - wall)
            print(
                json.dumps(
                    {
                        "peers": len(net.connected()),
                        "connected_after_s": round(connected_s, 1),
                        "rss_before_mib": round(before, 1),
                        "rss_mib": round(rss, 1),
                        "kib_per_peer": round((rss - before) * 1024 / count, 1),
                        "tasks": tasks,
                        "idle_s": idle_s,
                        "idle_cpu_percent": round(100 * share, 2),
                        "load": os.getloadavg()[0],
                    }
                )
            )
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        nursery.cancel_scope.cancel()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--idle_s", type=float, default=20.0)
    parser.add_argument("--connect", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.connect:
        trio.run(functools.partial(peers, options.connect, options.peers))
    else:
        trio.run(functools.partial(node, options.peers, options.children, options.idle_s))


if __name__ == "__main__":
    main()
