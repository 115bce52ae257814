"""Whose word is taken that there is nothing."""

from __future__ import annotations

from mesh.identity import PeerKey
from mesh.kad.diversity import crowding, outside, second_seeds
from mesh.kad.key import key_of, key_of_peer
from mesh.kad.routing import RoutingTable
from mesh.peer import Multiaddr, PeerInfo


def peers(name: str, *addresses: str) -> list[PeerInfo]:
    return [
        PeerInfo(PeerKey.dev(f"{name}-{number}").peer_id, (Multiaddr(f"{address}/tcp/4001"),) if address else ())
        for number, address in enumerate(addresses)
    ]


FEW = peers("few", *(f"/ip4/66.{number % 2}.0.{number}" for number in range(8)))
MANY = peers("many", *(f"/ip4/20.{number}.0.1" for number in range(8)))


def test_groups_with_more_than_their_share_are_crowding() -> None:
    assert crowding([*FEW, *MANY]) == {"66.0.0.0/16", "66.1.0.0/16"}
    assert crowding([*FEW[:6], *MANY]) == frozenset()
    assert crowding(MANY) == frozenset()


def test_nobody_is_crowding_on_one_machine_or_without_an_address() -> None:
    assert crowding(peers("here", *["/ip4/127.0.0.1"] * 9)) == frozenset()
    assert crowding(peers("nowhere", *[""] * 9)) == frozenset()


def test_the_closest_others_are_asked_and_none_if_there_are_none() -> None:
    table, target = RoutingTable(key_of_peer(PeerKey.dev("local").peer_id)), key_of(b"target")
    for info in (*FEW, *MANY):
        table.add(info, now=0.0)
    groups = crowding(FEW)
    nearest = sorted(MANY, key=lambda info: key_of_peer(info.peer_id) ^ target)
    assert list(second_seeds(table, target, groups, count=3)) == nearest[:3]
    assert outside([*FEW, *MANY], groups) == MANY
    for info in MANY:
        table.remove(info.peer_id)
    assert list(second_seeds(table, target, groups, count=3)) == []
