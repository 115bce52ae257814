"""Who provides what: entries live until they are not said again, and every bound forgets the longest silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.kad.providers import ProviderConfig, ProviderStore
from tests.kad.small import info, numbers

DAY_S = 86_400.0


def test_who_spoke_last_comes_first_with_its_latest_addresses() -> None:
    store = ProviderStore()
    store.add(b"k", info(1), now=0)
    store.add(b"k", info(2), now=1)
    store.add(b"k", info(1, "/ip4/192.0.2.1/tcp/1"), now=2)
    assert store.get(b"k", now=3) == (info(1, "/ip4/192.0.2.1/tcp/1"), info(2))
    assert store.get(b"other", now=3) == ()


def test_an_entry_lives_for_48_hours_unless_it_is_said_again() -> None:
    store = ProviderStore()
    store.add(b"k", info(1), now=0)
    store.add(b"k", info(2), now=0)
    store.add(b"k", info(1), now=22 * 3600)  # as often as providers say it again
    assert numbers(store.get(b"k", now=2 * DAY_S - 1)) == [1, 2]
    assert numbers(store.get(b"k", now=2 * DAY_S)) == [1]
    store.expire(2 * DAY_S)
    assert len(store) == 1
    store.expire(3 * DAY_S)
    assert len(store) == 0
    assert store.get(b"k", now=0) == ()


def test_a_key_has_so_many_providers_and_the_longest_silent_leaves() -> None:
    store = ProviderStore(ProviderConfig(max_per_key=2))
    for number in (1, 2, 1, 3):
        store.add(b"k", info(number), now=number)
    assert numbers(store.get(b"k", now=4)) == [3, 1]


def test_a_provider_has_so_many_keys_and_takes_only_from_itself() -> None:
    store = ProviderStore(ProviderConfig(max_per_provider=2))
    store.add(b"a", info(9), now=0)
    for key in (b"a", b"b", b"a", b"c"):
        store.add(key, info(1), now=1)
    assert numbers(store.get(b"a", now=2)) == [1, 9]
    assert numbers(store.get(b"b", now=2)) == []
    assert numbers(store.get(b"c", now=2)) == [1]


def test_there_are_so_many_keys_and_the_longest_not_told_of_leaves() -> None:
    store = ProviderStore(ProviderConfig(max_keys=2))
    store.add(b"a", info(1), now=0)
    store.add(b"a", info(2), now=0)
    store.add(b"b", info(1), now=1)
    store.add(b"a", info(2), now=2)
    store.add(b"c", info(3), now=3)
    assert {key: numbers(store.get(key, now=4)) for key in (b"a", b"b", b"c")} == {b"a": [2, 1], b"b": [], b"c": [3]}


KEYS = (b"a", b"b", b"c", b"d", b"e")
said = st.tuples(st.sampled_from(KEYS), st.integers(0, 5), st.integers(0, 4))


@given(st.lists(said, max_size=60))
def test_every_history_keeps_within_the_bounds(history: list[tuple[bytes, int, int]]) -> None:
    config = ProviderConfig(ttl_s=10, max_keys=3, max_per_key=3, max_per_provider=2)
    store, now, last = ProviderStore(config), 0, dict[tuple[bytes, int], int]()
    for key, number, passed in history:
        now += passed
        store.add(key, info(number), now=now)
        last[key, number] = now
        if passed == 4:
            store.expire(now)
        told = {name: numbers(store.get(name, now=now)) for name in KEYS}
        assert told[key][0] == number  # what was just said is never what a bound forgets
        assert len(store) <= config.max_keys
        assert sum(1 for found in told.values() if found) <= config.max_keys
        assert all(len(found) <= config.max_per_key for found in told.values())
        assert all(sum(n in found for found in told.values()) <= config.max_per_provider for n in range(6))
        for name, found in told.items():
            times = [last[name, n] for n in found]
            assert times == sorted(times, reverse=True)
            assert all(now - at < config.ttl_s for at in times)
    store.expire(now + config.ttl_s)
    assert len(store) == 0
    assert not store._of  # a provider without keys is forgotten, too
