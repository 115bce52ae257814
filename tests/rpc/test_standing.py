"""Suspension and circuit breaker as functions of time."""

from __future__ import annotations

import pytest

from mesh.errors import PeerSuspended
from mesh.identity import PeerKey
from mesh.rpc.standing import StandingConfig, Standings

PEER, OTHER = (PeerKey.dev(name).peer_id for name in ("peer", "other"))


def test_suspensions_grow_up_to_a_bound_and_are_forgiven() -> None:
    standings = Standings(StandingConfig(first_suspension_s=1.0, max_suspension_s=50.0, violation_life_s=100.0))
    assert [standings.violated(PEER, 0.0) for _ in range(5)] == [1.0, 4.0, 16.0, 50.0, 50.0]
    with pytest.raises(PeerSuspended, match="5 times"):
        standings.may_serve(PEER, 49.9)
    with pytest.raises(PeerSuspended):
        standings.may_call(PEER, 49.9)
    standings.may_serve(PEER, 50.0)
    standings.may_serve(OTHER, 0.0)
    assert standings.violated(PEER, 101.0) == 1.0  # forgiven in between


def test_many_violations_do_not_overflow() -> None:
    standings = Standings()
    for n in range(2000):
        assert standings.violated(PEER, float(n)) <= standings.config.max_suspension_s


def test_the_circuit_opens_after_failures_in_a_row_and_lets_one_call_try() -> None:
    standings = Standings(StandingConfig(failures_to_open=3, first_pause_s=2.0, max_pause_s=5.0))
    for _ in range(2):
        standings.failed(PEER, 0.0)
    standings.answered(PEER)
    for _ in range(2):
        standings.failed(PEER, 0.0)
    standings.may_call(PEER, 0.0)  # not in a row
    standings.failed(PEER, 0.0)
    for now in (0.0, 1.9):
        with pytest.raises(PeerSuspended, match="3 calls in a row"):
            standings.may_call(PEER, now)
    standings.may_serve(PEER, 0.0)  # failing is no offence
    standings.may_call(PEER, 2.0)
    with pytest.raises(PeerSuspended):
        standings.may_call(PEER, 2.0)  # one tries, the others wait for it
    standings.failed(PEER, 3.0)
    with pytest.raises(PeerSuspended):
        standings.may_call(PEER, 6.9)
    standings.may_call(PEER, 7.0)
    standings.failed(PEER, 7.0)
    standings.may_call(PEER, 12.0)  # 5 s, not 8
    standings.answered(PEER)
    standings.may_call(PEER, 12.0)
    standings.may_call(PEER, 12.0)


def test_strangers_do_not_fill_memory() -> None:
    standings = Standings(StandingConfig(max_peers=10))
    for n in range(100):
        standings.failed(PeerKey.dev(f"stranger {n}").peer_id, 0.0)
    assert len(standings.scores(0.0)) == 10


def test_scores_tell_who_is_to_blame() -> None:
    standings = Standings()
    standings.violated(PEER, 0.0)
    standings.failed(OTHER, 0.0)
    scores = standings.scores(0.0)
    assert scores[PEER] < scores[OTHER] < 1
    standings.answered(OTHER)
    assert OTHER not in standings.scores(0.0)
