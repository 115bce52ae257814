"""What the DHT claims to survive, small: tens of nodes and records where benchmarks/dht_scenarios.py takes hundreds,
and minutes of churn where it takes an hour. The replicas (5), intervals and limits are the product's defaults."""

from __future__ import annotations

import pytest

from mesh.kad.store import StoreConfig
from mesh.testing.scenarios import Experiment, byzantine, churn, eclipse, kill_twice, partition, surround
from mesh.testing.world import WorldConfig


@pytest.mark.parametrize("seed", [1, 2])
def test_three_of_ten_nodes_die_at_once_and_after_the_repair_as_many_again(seed: int) -> None:
    """5 replicas and the owner: the chance that all six of a record are among 30 % is 0.07 % each time. With these
    seeds none is lost."""
    found = kill_twice(nodes=60, records=60, seed=seed)
    assert (found.correct, found.forged) == (60, 0)


def test_without_repair_the_second_death_costs_records() -> None:
    """What the repair is worth: the same deaths, but nobody syncs or publishes anew in between, cost some."""
    lazy = WorldConfig(upkeep=True)
    lazy = lazy.model_copy(
        update={"schedule": lazy.schedule.model_copy(update={"sync_s": 1e6, "sync_soon_s": 1e6, "republish_s": 1e6})}
    )
    run = Experiment(nodes=60, records=60, seed=1, config=lazy)
    for _ in range(2):
        run.kill(0.45)
        run.world.run_for(150)
    assert run.check(list(run.newest)).success < 1.0
    assert kill_twice(nodes=60, records=60, seed=1, part=0.45).success > run.check(list(run.newest)).success


def test_a_tenth_of_the_nodes_changing_every_minute_loses_nothing() -> None:
    found = churn(nodes=40, records=40, seed=1, minutes=8)
    assert (found.correct, found.forged, found.stale) == (40, 0, 0)


def test_a_partition_heals_and_no_newer_record_loses_to_an_older() -> None:
    found = partition(nodes=40, records=20, seed=1)
    assert (found.gets.correct, found.gets.tried, found.gets.stale) == (40, 40, 0)
    assert found.neighbours_apart < 0.9
    assert found.neighbours_after >= 0.99


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fifth_of_the_nodes_lying_forge_nothing_and_hide_next_to_nothing(seed: int) -> None:
    found = byzantine(nodes=60, records=60, seed=seed, paths=3)
    assert found.forged == 0
    assert found.success >= 0.99


def test_two_hundred_sybils_in_four_ip_groups_do_not_surround_a_node() -> None:
    found = eclipse(nodes=60, records=20, seed=1, minutes=5.0)
    assert found.honest_after >= found.honest_before
    assert found.lost_buckets == 0
    assert found.gets.correct == found.gets.tried
    assert found.sybils <= 100  # those limits let in


def test_who_is_told_nothing_by_a_few_networks_asks_the_others() -> None:
    """Sybils outnumber the honest four to one: all 20 peers nearest to some keys in the victim's table are theirs.
    Without the second opinion (mesh.kad.diversity) one of these 30 gets finds nothing."""
    found = eclipse(nodes=50, records=30, seed=1, minutes=2.0)
    assert found.gets.correct == found.gets.tried


def test_sybils_around_a_key_hide_what_is_put_since_but_not_what_was_there() -> None:
    """The limit of what a DHT can do: who owns all places around a key decides what becomes of it."""
    found = surround(nodes=60, records=20, keys=5, rounds=1, seed=1)
    assert found.before.correct == found.before.tried == 5
    assert found.others.correct == found.others.tried == 15
    assert found.after.correct < 5
    assert found.after.forged == 0


def test_full_replicas_are_not_sent_in_vain_every_round() -> None:
    """Nobody has room for more than ten records of others: what is refused once is not sent again for ten minutes,
    where ten rounds would send it ten times: 8 records in 400 s where it was 3573."""
    config = WorldConfig(upkeep=True, store=StoreConfig(max_records=10, max_owner_share=1.0))
    run = Experiment(nodes=20, records=60, seed=1, config=config)
    run.world.run_for(120.0)
    before = run.world.given
    run.world.run_for(400.0)
    assert run.world.given - before <= 60


def test_the_same_seed_gives_the_same_story() -> None:
    first, again = (churn(nodes=20, records=5, seed=3, minutes=2) for _ in range(2))
    assert first == again
    assert first.trace != churn(nodes=20, records=5, seed=4, minutes=2).trace
