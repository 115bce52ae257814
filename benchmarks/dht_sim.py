"""How much work is the Kademlia core itself, and does it scale? N simulated nodes, no sockets.

    python benchmarks/dht_sim.py [nodes] [operations]

Nodes join one after another through a random one that is there, with 2 % of the messages lost; then lookups,
signed puts and gets from random nodes. CPU seconds include signing and verifying.
"""

from __future__ import annotations

import itertools
import sys
import time

from mesh.identity import PeerKey
from mesh.kad.key import key_of
from mesh.kad.validator import NamespaceRule
from mesh.testing.world import World, WorldConfig


def main(nodes: int, operations: int) -> None:
    """Build, run, print."""
    world = World(seed=5, config=WorldConfig(loss=0.02), rules=(NamespaceRule("any", max_value_bytes=1024),))
    keys = [PeerKey.dev(f"world-{index}") for index in range(nodes)]
    marks = [("start", time.process_time(), 0)]

    def mark(name: str) -> None:
        marks.append((name, time.process_time(), world.messages))

    for index, key in enumerate(keys):
        world.add(key.peer_id, [keys[world.rng.randrange(index)].peer_id] if index else [])
        world.run()
    mark(f"{nodes} joins")
    exact = 0
    for number in range(operations):
        asker = world.nodes[keys[world.rng.randrange(nodes)].peer_id]
        found = world.lookup(asker, key_of(b"%d" % number))
        world.run()
        expected = [peer for peer in world.closest(key_of(b"%d" % number), 21) if peer != asker.info.peer_id][:20]
        exact += len(set(found.peers) & set(expected))
    mark(f"{operations} lookups")
    for number in range(operations):
        asker = world.nodes[keys[world.rng.randrange(nodes)].peer_id]
        world.put(asker, keys[asker.index], b"any/%d" % number, b"value")
        world.run()
    mark(f"{operations} signed puts")
    got = 0
    for number in range(operations):
        asker = world.nodes[keys[world.rng.randrange(nodes)].peer_id]
        outcome = world.get(asker, b"any/%d" % number)
        world.run()
        got += bool(outcome.records)
    mark(f"{operations} gets")
    for (_, before, sent), (name, after, messages) in itertools.pairwise(marks):
        print(f"{name:>18}: {after - before:6.2f} CPU-s, {messages - sent} messages")
    print(
        f"{'all':>18}: {marks[-1][1] - marks[0][1]:6.2f} CPU-s; {exact / operations:.1f} of the 20 closest found, "
        f"{got} of {operations} records got; trace {world.digest()[:16]}"
    )


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [1000, 200][len(arguments) :]))
