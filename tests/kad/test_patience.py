"""How long a peer is waited for."""

from __future__ import annotations

import pytest

from mesh.kad.patience import Patience, PatienceConfig
from tests.kad.small import peer


def test_a_peers_own_round_trips_decide_and_a_strangers_patience_is_everybodys() -> None:
    patience = Patience(PatienceConfig(first_s=1.0, min_s=0.01))
    assert patience.of(peer(1)) == 1.0
    for _ in range(40):
        patience.observe(peer(1), 0.02)
        patience.observe(peer(2), 0.5)
    assert patience.of(peer(1)) == pytest.approx(0.02, abs=0.01)
    assert patience.of(peer(2)) == pytest.approx(0.5, abs=0.05)
    assert patience.of(peer(1)) < patience.of(peer(3)) < 3.0


def test_jitter_makes_patient() -> None:
    steady, jittery = Patience(PatienceConfig(min_s=0.001)), Patience(PatienceConfig(min_s=0.001))
    for number in range(50):
        steady.observe(peer(1), 0.1)
        jittery.observe(peer(1), 0.05 if number % 2 else 0.15)
    assert jittery.of(peer(1)) > 2 * steady.of(peer(1))
    assert jittery.of(peer(1)) > 0.15


def test_it_doubles_while_a_peer_is_slow_and_forgives_with_an_answer() -> None:
    patience = Patience(PatienceConfig(min_s=0.1, max_s=1.0))
    patience.observe(peer(1), 0.1)
    before = patience.of(peer(1))
    patience.on_slow(peer(1))
    assert patience.of(peer(1)) == 2 * before
    for _ in range(100):
        patience.on_slow(peer(1))
    assert patience.of(peer(1)) == 1.0
    patience.observe(peer(1), 0.1)
    assert patience.of(peer(1)) <= before
    patience.on_slow(peer(9))  # of whom nothing is known


def test_bounds_hold() -> None:
    patience = Patience(PatienceConfig(min_s=0.5, max_s=2.0, max_peers=3))
    for number in range(10):
        patience.observe(peer(number), 100.0)
        patience.observe(peer(number), -1.0)
    assert len(patience) == 3
    assert 0.5 <= patience.of(peer(9)) <= 2.0
    assert 0.5 <= patience.of(peer(0)) <= 2.0
