"""Liars are refused for longer each time; the table is bounded."""

from __future__ import annotations

from mesh.content import Penalties, PenaltyConfig
from mesh.identity import PeerKey

PEERS = [PeerKey.dev(f"peer {n}").peer_id for n in range(20)]


def test_each_offence_doubles_the_refusal_up_to_a_longest() -> None:
    penalties = Penalties(PenaltyConfig(first_s=10, longest_s=65))
    now = 1000.0
    refused = []
    for _ in range(5):
        until = penalties.add(PEERS[0], now).until
        assert penalties.is_refused(PEERS[0], until - 0.1)
        assert not penalties.is_refused(PEERS[0], until)
        refused.append(until - now)
        now = until + 1
    assert refused == [10, 20, 40, 65, 65]
    assert not penalties.is_refused(PEERS[1], now)
    for _ in range(5000):
        assert penalties.add(PEERS[0], now).until == now + 65


def test_good_conduct_is_rewarded_with_forgetting() -> None:
    penalties = Penalties(PenaltyConfig(first_s=10, forget_s=100))
    penalties.add(PEERS[0], 0)
    assert penalties.add(PEERS[0], 109).offences == 2
    assert penalties.add(PEERS[0], 109 + 20 + 101).offences == 1


def test_the_table_is_bounded_and_keeps_the_worst() -> None:
    penalties = Penalties(PenaltyConfig(max_peers=5))
    for _ in range(4):
        penalties.add(PEERS[0], 0)
    for n, peer in enumerate(PEERS):
        penalties.add(peer, n)
    assert len(penalties.items()) == 5
    assert dict(penalties.items())[PEERS[0]].offences == 5
    assert penalties.items()[-1][0] == PEERS[-1]
