"""The core in the small world: it finds what brute force finds, and does the same every time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mesh.identity import PeerKey
from mesh.kad.key import key_of, key_of_peer, key_of_record
from mesh.kad.validator import NamespaceRule
from mesh.testing.world import Message, Reply, World, WorldConfig, WorldNode

RULES = (NamespaceRule("any", max_value_bytes=1024, max_ttl_s=7200.0),)
NODES = 100


def grown(seed: int, *, nodes: int = NODES, loss: float = 0.02) -> tuple[World, list[PeerKey]]:
    """A world whose nodes joined one after another, each through one that was there."""
    world = World(seed=seed, config=WorldConfig(loss=loss), rules=RULES)
    keys = [PeerKey.dev(f"world-{index}") for index in range(nodes)]
    for index, key in enumerate(keys):
        via = [keys[world.rng.randrange(index)].peer_id] if index else []
        world.add(key.peer_id, via)
        world.run()
    return world, keys


def test_lookups_find_what_brute_force_finds_with_two_percent_loss() -> None:
    """All of the 20 closest are found, but for those whose request or answer was lost: nothing is sent
    twice."""
    world, keys = grown(1)
    exact = 0
    for number in range(50):
        target = key_of(b"target %d" % number)
        asker = world.nodes[keys[world.rng.randrange(NODES)].peer_id]
        outcome = world.lookup(asker, target)
        world.run()
        assert outcome.done
        expected = [peer for peer in world.closest(target, 21) if peer != asker.info.peer_id][:20]
        assert outcome.peers == sorted(outcome.peers, key=lambda peer: key_of_peer(peer) ^ target)
        exact += set(expected) <= set(outcome.peers) | set(outcome.lookup.missed())
        assert len(set(outcome.peers) & set(expected)) >= 15
    assert exact >= 48


def test_lookups_are_exact_without_loss() -> None:
    world, keys = grown(2, loss=0.0)
    for number in range(30):
        target = key_of(b"exact %d" % number)
        asker = world.nodes[keys[number].peer_id]
        outcome = world.lookup(asker, target)
        world.run()
        assert outcome.peers == [peer for peer in world.closest(target, 21) if peer != asker.info.peer_id][:20]


def test_a_put_reaches_the_closest_and_is_got_after_some_of_them_died() -> None:
    world, keys = grown(3)
    put = world.put(world.nodes[keys[0].peer_id], keys[0], b"any/thing", b"value")
    world.run()
    assert len(put.stored) >= 5
    holders = set(put.stored)
    assert len(holders & set(world.closest(key_of_record(b"any/thing"), 6))) >= 4
    for peer in put.stored[:3]:
        world.nodes[peer].alive = False
    got = world.get(world.nodes[keys[50].peer_id], b"any/thing")
    world.run()
    assert [record.value for record in got.records.values()] == [b"value"]


def test_a_get_that_finds_nothing_asks_more_peers_before_it_says_so() -> None:
    world, keys = grown(6, loss=0.0)
    miss = world.get(world.nodes[keys[3].peer_id], b"any/nothing")
    world.run()
    assert miss.done
    assert not miss.records
    assert len(miss.peers) == 20
    world.put(world.nodes[keys[3].peer_id], keys[3], b"any/thing", b"value")
    world.run()
    hit = world.get(world.nodes[keys[9].peer_id], b"any/thing")
    world.run()
    assert len(hit.peers) == 6


def test_liars_neither_forge_records_nor_hide_them() -> None:
    """A third of the nodes answers every get with a forged newer record and names nobody closer."""
    world, keys = grown(4, loss=0.0)
    put = world.put(world.nodes[keys[0].peer_id], keys[0], b"any/thing", b"true")
    world.run()
    true = world.nodes[put.stored[0]].store.records(b"any/thing", now=world.wall)[0]

    def lie(node: WorldNode, message: Message, reply: Reply) -> Reply:
        import dataclasses

        forged = dataclasses.replace(true, value=b"false", seq=true.seq + 1)
        return Reply((), (forged,)) if message.key == b"any/thing" else Reply()

    for key in keys[1::3]:
        world.adversaries[key.peer_id] = lie
    found = 0
    for key in keys[2::9]:
        got = world.get(world.nodes[key.peer_id], b"any/thing")
        world.run()
        assert b"false" not in {record.value for record in got.records.values()}
        found += bool(got.records)
    assert found == len(keys[2::9])


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second, other = (grown(seed, nodes=40)[0] for seed in (7, 7, 8))
    assert first.digest() == second.digest()
    assert first.messages == second.messages
    assert first.digest() != other.digest()


def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tests.kad.test_world import grown; from mesh.testing.scenarios import churn; "
        "print(grown(7, nodes=40)[0].digest(), churn(nodes=15, records=5, seed=3, minutes=1).trace)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.slow
def test_a_thousand_nodes() -> None:
    """200 lookups and 200 signed puts among 1000 nodes: the budget's scenario, measured in
    benchmarks/dht_sim.py."""
    world, keys = grown(5, nodes=1000)
    for number in range(200):
        asker = world.nodes[keys[world.rng.randrange(1000)].peer_id]
        found = world.lookup(asker, key_of(b"%d" % number))
        put = world.put(asker, keys[asker.index], b"any/%d" % number, b"x")
        world.run()
        near = set(world.closest(key_of_record(b"any/%d" % number), 7))
        assert found.done
        assert len(set(put.stored) & near) >= 3
