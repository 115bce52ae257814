"""Who should hold what."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.identity import PeerKey
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.replicas import Refusals, by_peer, is_first_to_give, owed, pack_wanted, unpack_wanted
from mesh.kad.routing import RoutingTable
from mesh.peer import PeerInfo

KEYS = [b"any/%d" % number for number in range(30)]
PEERS = [PeerKey.dev(f"replica-{number}").peer_id for number in range(12)]


def tables() -> list[RoutingTable]:
    """Twelve nodes that all know each other."""
    made = [RoutingTable(key_of_peer(peer)) for peer in PEERS]
    for table in made:
        for peer in PEERS:
            table.add(PeerInfo(peer), now=0.0)
    return made


def test_every_key_is_owed_to_the_closest_and_each_peer_is_told_once() -> None:
    table = tables()[0]
    told = by_peer(owed(KEYS, table, replicas=3, local=key_of_peer(PEERS[0]), near=20))
    for info, keys in told.items():
        assert list(keys) == sorted(set(keys), key=KEYS.index)
        for key in keys:
            assert info in table.closest(key_of_record(key), 3)
    assert sum(map(len, told.values())) == 3 * len(KEYS)


def test_of_those_who_hold_a_key_exactly_one_gives_it_to_a_newcomer() -> None:
    made, newcomer = tables(), PEERS[5]
    for key in KEYS:
        givers = [
            peer
            for peer, table in zip(PEERS, made, strict=True)
            if peer != newcomer and is_first_to_give(key, newcomer, table, local=key_of_peer(peer), replicas=3)
        ]
        nearest = sorted(PEERS, key=lambda peer: key_of_peer(peer) ^ key_of_record(key))
        if newcomer in nearest[:3]:
            assert givers == [next(peer for peer in nearest if peer != newcomer)]
        else:
            assert len(givers) <= 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=100))
def test_what_is_wanted_survives_the_wire(wanted: list[bool]) -> None:
    places = tuple(place for place, bit in enumerate(wanted) if bit)
    assert unpack_wanted(pack_wanted(wanted), len(wanted)) == places


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=40), st.integers(0, 64))
def test_bits_beyond_what_was_offered_are_nobodys(raw: bytes, count: int) -> None:
    assert all(0 <= place < count for place in unpack_wanted(raw, count))


def test_a_round_over_many_keys_is_cheap_enough_to_count() -> None:
    """No wall time here: a key costs one search of the table, whatever the number of peers owed."""
    table, calls = tables()[0], 0
    closest = table.closest

    def counting(*args: object) -> object:
        nonlocal calls
        calls += 1
        return closest(*args)  # type: ignore[arg-type]

    table.closest = counting  # type: ignore[method-assign,assignment]
    keys = [b"any/%d" % random.Random(number).getrandbits(64) for number in range(500)]
    by_peer(owed(keys, table, replicas=5, local=key_of_peer(PEERS[0]), near=20))
    assert calls == 500


def test_keys_that_enough_peers_are_nearer_to_are_theirs_to_look_after() -> None:
    for peer, table in zip(PEERS, tables(), strict=True):
        near = {key for key, _ in owed(KEYS, table, replicas=3, local=key_of_peer(peer), near=4)}
        for key in KEYS:
            nearest = sorted(PEERS, key=lambda other: key_of_peer(other) ^ key_of_record(key))
            assert (key in near) == (peer in nearest[:4])
    told = dict(owed(KEYS, tables()[0], replicas=3, local=key_of_peer(PEERS[0]), near=20))
    assert list(told) == KEYS, "who knows fewer than that is near to all"


def test_refusals_are_remembered_for_a_while_and_only_so_many() -> None:
    refusals = Refusals(remember_s=600.0, most=2)
    digests = [bytes([number]) * 32 for number in range(3)]
    refusals.note(PEERS[0], digests[0], "full", now=0.0)
    assert refusals.holds(PEERS[0], digests[0], now=599.0)
    assert not refusals.holds(PEERS[1], digests[0], now=0.0), "what one refuses is no matter of another"
    assert not refusals.holds(PEERS[0], digests[0], now=600.0)
    refusals.note(PEERS[0], digests[1], "rate", now=0.0)
    assert not refusals.holds(PEERS[0], digests[1], now=0.0)
    refusals.note(PEERS[0], digests[1], "quota", now=1.0)
    refusals.note(PEERS[0], digests[2], "quota", now=2.0)
    assert len(refusals) == 2
    assert [refusals.holds(PEERS[0], digest, now=3.0) for digest in digests] == [False, True, True]
