"""Who is near us: whom to ask, and which answers are news."""

from __future__ import annotations

import random

from mesh.identity import PeerKey
from mesh.kad.key import key_of_peer
from mesh.kad.rejoin import strangers_near, whom_to_ask
from mesh.kad.routing import RoutingTable
from mesh.peer import PeerID, PeerInfo

LOCAL = PeerKey.dev("here").peer_id
PEERS = sorted(
    (PeerKey.dev(f"there-{number}").peer_id for number in range(12)),
    key=lambda peer: key_of_peer(peer) ^ key_of_peer(LOCAL),
)


def table_of(*peers: PeerID) -> RoutingTable:
    table = RoutingTable(key_of_peer(LOCAL))
    for peer in peers:
        table.add(PeerInfo(peer), now=0.0)
    return table


def infos(*peers: PeerID) -> list[PeerInfo]:
    return [PeerInfo(peer) for peer in peers]


def test_bootnodes_missing_in_the_table_are_asked_and_one_peer_in_it() -> None:
    table = table_of(*PEERS[:3])
    boot = infos(PEERS[0], PEERS[9])
    asked = {tuple(whom_to_ask(table, boot, rng=random.Random(seed))) for seed in range(20)}
    assert asked == {tuple(infos(PEERS[9], peer)) for peer in PEERS[:3]}
    assert whom_to_ask(table_of(), infos(PEERS[9]), rng=random.Random(1)) == infos(PEERS[9])


def test_strangers_are_news_only_where_we_should_know_everybody() -> None:
    table = table_of(*PEERS[2:6])
    named = infos(LOCAL, *PEERS)
    assert strangers_near(table, LOCAL, named, near=4) == infos(*PEERS[:2])
    assert strangers_near(table, LOCAL, infos(*PEERS[6:]), near=4) == []
    assert strangers_near(table, LOCAL, infos(*PEERS[2:6]), near=20) == []


def test_who_knows_few_is_near_to_all() -> None:
    assert strangers_near(table_of(PEERS[0]), LOCAL, infos(*PEERS), near=20) == infos(*PEERS[1:])
