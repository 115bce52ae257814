"""How much work is the Kademlia core itself, and does it scale? N simulated nodes, no sockets.

    python benchmarks/dht_sim.py [--nodes 1000] [--lookups 200] [--seed 5] [--json]

Nodes join one after another through a random one that is there, with 2 % of the messages lost; then lookups, signed
puts and gets from random nodes, as many of each. CPU seconds include signing and verifying. With --json it prints one
object: the hash of all messages, CPU seconds, messages, and the part of puts that were got.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time

from rich.console import Console
from rich.progress import Progress

from mesh.identity import PeerKey
from mesh.kad.key import key_of
from mesh.kad.validator import NamespaceRule
from mesh.testing.world import World, WorldConfig


def main(nodes: int, lookups: int, seed: int, *, is_json: bool) -> None:
    """Build, run, print."""
    world = World(seed=seed, config=WorldConfig(loss=0.02), rules=(NamespaceRule("any", max_value_bytes=1024),))
    keys = [PeerKey.dev(f"world-{index}") for index in range(nodes)]
    marks = [("start", time.process_time(), 0)]

    def mark(name: str) -> None:
        marks.append((name, time.process_time(), world.messages))

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        joining = progress.add_task("joins", total=nodes)
        for index, key in enumerate(keys):
            world.add(key.peer_id, [keys[world.rng.randrange(index)].peer_id] if index else [])
            world.run()
            progress.advance(joining)
        mark(f"{nodes} joins")
        exact = 0
        for number in progress.track(range(lookups), description="lookups"):
            asker = world.nodes[keys[world.rng.randrange(nodes)].peer_id]
            found = world.lookup(asker, key_of(b"%d" % number))
            world.run()
            expected = [peer for peer in world.closest(key_of(b"%d" % number), 21) if peer != asker.info.peer_id][:20]
            exact += len(set(found.peers) & set(expected))
        mark(f"{lookups} lookups")
        for number in progress.track(range(lookups), description="puts"):
            asker = world.nodes[keys[world.rng.randrange(nodes)].peer_id]
            world.put(asker, keys[asker.index], b"any/%d" % number, b"value")
            world.run()
        mark(f"{lookups} signed puts")
        got = 0
        for number in progress.track(range(lookups), description="gets"):
            asker = world.nodes[keys[world.rng.randrange(nodes)].peer_id]
            outcome = world.get(asker, b"any/%d" % number)
            world.run()
            got += bool(outcome.records)
        mark(f"{lookups} gets")
    cpu_s = marks[-1][1] - marks[0][1]
    if is_json:
        result = {
            "trace": world.digest(),
            "cpu_s": round(cpu_s, 3),
            "messages": world.messages,
            "success": got / max(1, lookups),
        }
        print(json.dumps(result))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, seed {seed}")
    for (_, before, sent), (name, after, messages) in itertools.pairwise(marks):
        print(f"{name:>18}: {after - before:6.2f} CPU-s, {messages - sent} messages")
    print(
        f"{'all':>18}: {cpu_s:6.2f} CPU-s; {exact / max(1, lookups):.1f} of the 20 closest found, "
        f"{got} of {lookups} records got; trace {world.digest()[:16]}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--lookups", type=int, default=200)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    main(options.nodes, options.lookups, options.seed, is_json=options.json)
