"""The lookup, step by step and against its reference."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.kad.key import Key
from mesh.kad.lookup import Counts, Lookup, LookupConfig, simple_lookup
from mesh.kad.patience import Patience, PatienceConfig
from mesh.peer import Multiaddr, PeerID, PeerInfo
from tests.kad.small import info, numbers, peer, place


def lookup(target: int, k: int, seeds: list[int], **fields: object) -> Lookup:
    made = Lookup(Key(target), k, place=place, **fields)  # type: ignore[arg-type]
    return made.start([info(number) for number in seeds])


def test_the_window_slides_and_the_closest_come_first() -> None:
    search = lookup(0, 3, [9, 1, 5, 7, 3])
    assert numbers(search.next_requests(0.0)) == [1, 3, 5]
    assert search.next_requests(0.0) == []
    search.on_response(peer(3), [info(2)], now=0.1)
    assert numbers(search.next_requests(0.1)) == [2]  # one answered, one more may go
    search.on_response(peer(1), [], now=0.1)
    search.on_response(peer(2), [], now=0.1)
    search.next_requests(0.1)
    assert search.finished  # 5 has not answered, but 1, 2, 3 are closer and have
    assert numbers(search.closest()) == [1, 2, 3]


def test_the_dead_are_replaced_by_the_next_closest() -> None:
    search = lookup(0, 2, [1, 2, 3])
    search.next_requests(0.0)
    search.on_failure(peer(1))
    search.on_response(peer(2), [], now=0.1)
    assert search.next_requests(0.1) == [] or not search.finished
    search.on_response(peer(3), [], now=0.1)
    search.next_requests(0.1)
    assert search.finished
    assert numbers(search.closest()) == [2, 3]
    assert search.stats.failures == 1


def test_a_slow_peer_holds_nothing_up_but_its_late_answer_counts() -> None:
    config = LookupConfig(alpha=1)
    search = lookup(0, 1, [1, 2], config=config)
    assert numbers(search.next_requests(0.0)) == [1]
    assert search.wake_at() == 1.0
    assert search.next_requests(0.9) == []
    assert numbers(search.next_requests(1.0)) == [2]
    search.on_response(peer(1), [], now=1.2)
    search.next_requests(1.2)
    assert search.finished
    assert numbers(search.closest()) == [1]


def test_patience_adapts_to_round_trips() -> None:
    patience = Patience(PatienceConfig(first_s=5.0, min_s=0.01, max_s=9.0))
    search = lookup(0, 3, [1, 2, 3], patience=patience)
    search.next_requests(0.0)
    assert search.wake_at() == 5.0
    search.on_response(peer(1), [], now=0.1)
    assert search.wake_at() == pytest.approx(0.3)  # 0.1 and four deviations of half that
    assert search.next_requests(0.31) == []
    assert search.stats.slow == 2
    assert search.finished
    assert search.unanswered() == [peer(2), peer(3)]


def test_how_many_answers_led_to_the_closest_is_counted() -> None:
    search = lookup(0, 1, [8])
    assert search.hops == 0
    for asked, named in ((8, 4), (4, 2), (2, 9)):
        assert numbers(search.next_requests(0.0)) == [asked]
        search.on_response(peer(asked), [info(named)], now=0.0)
    search.next_requests(0.0)
    assert search.finished
    assert search.hops == 3


def test_the_nearest_that_has_nothing_is_named() -> None:
    search = lookup(0, 3, [1, 2, 3])
    for asked in search.next_requests(0.0):
        search.on_response(asked.peer_id, [], now=0.0)
    assert search.nearest_without(set()) == info(1)
    assert search.nearest_without({peer(1), peer(2)}) == info(3)
    assert search.nearest_without({peer(1), peer(2), peer(3)}) is None


def test_who_only_routes_is_no_result() -> None:
    search = lookup(0, 1, [1])
    search.next_requests(0.0)
    search.on_response(peer(1), [info(2)], now=0.1, counts=Counts.ROUTES_ONLY)
    assert numbers(search.next_requests(0.1)) == [2]
    search.on_response(peer(2), [], now=0.2)
    search.next_requests(0.2)
    assert numbers(search.closest()) == [2]


def test_it_stops_early_at_the_deadline_and_when_the_budget_is_spent() -> None:
    early = lookup(0, 3, [1, 2, 3], stop_when=lambda search: search.info(peer(0)) is not None)
    early.next_requests(0.0)
    early.on_response(peer(2), [info(0)], now=0.1)
    assert early.finished
    late = lookup(0, 3, [1, 2, 3], deadline=5.0)
    late.next_requests(0.0)
    assert late.wake_at() == 1.0
    late.next_requests(5.0)
    assert late.finished
    # An adversary that names ever closer peers, all dead, ends with the budget.
    search = lookup(0, 3, [255], config=LookupConfig(max_requests=10))
    search.next_requests(0.0)
    search.on_response(peer(255), [info(number) for number in range(100, 120)], now=0.0)
    for _ in range(50):
        for asked in search.next_requests(0.0):
            search.on_failure(asked.peer_id)
    assert search.finished
    assert search.stats.requests == 10


def test_it_ignores_itself_answers_nobody_asked_for_and_more_than_its_bounds() -> None:
    config = LookupConfig(max_closer=5, max_candidates=20)
    search = lookup(0, 3, [1], local=peer(0), config=config)
    search.on_response(peer(7), [info(2)], now=0.0)
    search.on_response(peer(1), [info(2)], now=0.0)  # not asked yet
    assert search.info(peer(2)) is None
    search.next_requests(0.0)
    search.on_response(peer(1), [info(0), *(info(number) for number in range(2, 250))], now=0.0)
    assert search.info(peer(0)) is None
    assert sum(search.info(peer(number)) is not None for number in range(256)) == 5


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 6), st.integers(1, 4))
def test_it_finds_what_the_reference_finds(seed: int, nodes: int, k: int, alpha: int) -> None:
    """Any graph of who knows whom, some dead, answers in any order."""
    rng = random.Random(seed)
    everybody = rng.sample(range(256), nodes)
    knows = {a: [b for b in everybody if rng.random() < 0.3] for a in everybody}
    dead = {a for a in everybody if rng.random() < 0.2}
    target = rng.randrange(256)
    seeds = rng.sample(everybody, min(3, nodes))

    def ask(who: PeerID) -> list[PeerID] | None:
        number = int(place(who))
        return None if number in dead else [peer(other) for other in knows[number]]

    expected = simple_lookup(Key(target), [peer(n) for n in seeds], ask, k=k, place=place)
    search = lookup(target, k, seeds, config=LookupConfig(alpha=alpha, max_closer=256))
    waiting: list[int] = []
    now = 0.0
    while not search.finished:
        waiting += numbers(search.next_requests(now))
        assert len(waiting) <= alpha
        if not waiting:
            break
        now += 0.001
        number = waiting.pop(rng.randrange(len(waiting)))
        if number in dead:
            search.on_failure(peer(number))
        else:
            search.on_response(peer(number), [info(other) for other in knows[number]], now=now)
    assert search.finished
    # The closest alive it found are all there; with more in flight it may have seen more of the graph.
    found = search.closest()
    for theirs, ours in zip(expected, found, strict=False):
        assert place(ours.peer_id) ^ target <= place(theirs) ^ target
    assert len(found) >= len(expected)


# --- disjoint paths ---


def test_a_path_learns_only_from_whom_it_asked_and_a_peer_is_asked_once() -> None:
    search = lookup(0, 2, [10, 11], config=LookupConfig(paths=2, alpha=2))
    assert numbers(search.next_requests(0.0)) == [10, 11]
    search.on_response(peer(10), [info(1), info(2)], now=0.0)
    assert numbers(search.next_requests(0.0)) == [1]
    search.on_response(peer(11), [info(1), info(3)], now=0.0)  # 1 is asked by the other path already
    assert numbers(search.next_requests(0.0)) == [3]
    search.on_response(peer(1), [], now=0.0)
    assert numbers(search.next_requests(0.0)) == [2]
    for asked in (2, 3):
        search.on_response(peer(asked), [], now=0.0)
    search.next_requests(0.0)
    assert search.finished
    assert numbers(search.closest(4)) == [1, 2, 3, 10]


def test_naming_every_honest_peer_first_keeps_none_from_the_other_path() -> None:
    """The first answer names everybody there is and its accomplices, which are closer; honest peers belong to whom asks
    them, so the second path still finds the closest of them."""
    accomplices, honest = list(range(20)), list(range(32, 48))
    search = lookup(0, 3, [200, 201], config=LookupConfig(paths=2, alpha=4))
    search.next_requests(0.0)
    search.on_response(peer(200), [info(n) for n in (*accomplices[:10], *honest[:10])], now=0.0)
    search.on_response(peer(201), [info(n) for n in honest], now=0.0)
    while not search.finished:
        for asked in search.next_requests(0.0):
            search.on_response(
                asked.peer_id, [info(n) for n in accomplices] if asked in map(info, accomplices) else [], now=0.0
            )
    answered = set(numbers(search.closest(100)))
    assert {32, 33, 34} <= answered


def test_liars_that_answer_at_once_do_not_spend_the_other_paths_requests() -> None:
    """An honest chain of 15 slow hops beside endless accomplices of 1 ms: the chain is followed to its end."""
    search = Lookup(Key(0), 3, config=LookupConfig(paths=3, alpha=3), place=wide_place)
    search.start([wide(1_000_000_000), wide(2000), wide(1990)])
    events: list[tuple[float, int, int]] = []
    now, liar = 0.0, 900_000_000
    while not search.finished:
        for asked in search.next_requests(now):
            number = int(wide_place(asked.peer_id))
            heapq.heappush(events, (now + (0.1 if number <= 2000 else 0.001), len(events), number))
        if search.finished or not events:
            break
        now, _, number = heapq.heappop(events)
        if number <= 2000:
            named = [number - 130] if number > 130 else [10]
        else:
            liar -= 20_000
            named = [liar + 1000 * place for place in range(20)]
        search.on_response(wide(number).peer_id, [wide(n) for n in named], now=now)
    assert 10 in {int(wide_place(found.peer_id)) for found in search.closest(3)}
    assert search.stats.requests <= 200


def test_a_far_seed_that_answered_does_not_end_all_learning() -> None:
    search = Lookup(Key(0), 3, config=LookupConfig(max_candidates=20), place=wide_place)
    search.start([wide(10**9)])
    search.next_requests(0.0)
    search.on_response(wide(10**9).peer_id, [wide(n) for n in range(1000, 1020)], now=0.0)
    (nearest, *_) = search.next_requests(0.0)
    search.on_response(nearest.peer_id, [wide(5)], now=0.0)
    assert search.info(wide(5).peer_id) is not None
    assert len(search._known) <= 20


def test_where_a_liar_says_that_a_peer_is_does_not_hide_where_others_say() -> None:
    search = lookup(0, 2, [100, 101], config=LookupConfig(paths=2, alpha=2))
    search.next_requests(0.0)
    at = [PeerInfo(peer(50), (Multiaddr(address),)) for address in ("/ip4/192.0.2.1/tcp/1", "/ip4/10.0.0.1/tcp/1")]
    search.on_response(peer(100), [at[0], info(1), info(2)], now=0.0)
    search.on_response(peer(101), [at[1]], now=0.0)
    known = search.info(peer(50))
    assert known is not None
    assert set(known.addrs) == {Multiaddr("/ip4/192.0.2.1/tcp/1"), Multiaddr("/ip4/10.0.0.1/tcp/1")}


def byzantine_success(paths: int, *, nodes: int = 200, lookups: int = 200) -> float:
    """Part of the lookups that hear of the closest honest peer although a fifth of the peers lie: they name only their
    own kind, nobody, or made-up peers near the target that never answer."""
    rng = random.Random(7)
    space = 2**32
    everybody = rng.sample(range(space), nodes)
    liars = set(rng.sample(everybody, nodes // 5))
    honest = [number for number in everybody if number not in liars]
    tables = {
        number: sorted(rng.sample(everybody, 60), key=lambda other: number ^ other)[:20] + rng.sample(everybody, 20)
        for number in everybody
    }
    found = 0
    for _ in range(lookups):
        target = rng.randrange(space)
        search = Lookup(Key(target), 6, config=LookupConfig(paths=paths, alpha=6), place=wide_place)
        search.start([wide(number) for number in sorted(rng.sample(everybody, 20), key=lambda n: n ^ target)])
        kinds = {liar: rng.randrange(3) for liar in sorted(liars)}
        while not search.finished:
            for asked in search.next_requests(0.0):
                number = wide_place(asked.peer_id)
                if number in liars:
                    if kinds[number] == 0:
                        named = sorted(liars, key=lambda n: n ^ target)[:20]
                    else:
                        named = [] if kinds[number] == 1 else [target ^ bits for bits in range(1, 21)]
                    search.on_response(asked.peer_id, [wide(n) for n in named], now=0.0)
                elif number in tables:
                    near = sorted(tables[number], key=lambda n: n ^ target)[:20]
                    search.on_response(asked.peer_id, [wide(n) for n in near], now=0.0)
                else:
                    search.on_failure(asked.peer_id)
        closest = min(honest, key=lambda n: n ^ target)
        found += wide(closest) in search.closest(200)
    return found / lookups


def wide(number: int) -> PeerInfo:
    return PeerInfo(PeerID(b"\x00\x04" + number.to_bytes(4, "big")))


def wide_place(who: PeerID) -> Key:
    return Key(int.from_bytes(who.multihash[2:], "big"))


def test_disjoint_paths_get_past_liars_that_one_path_falls_for() -> None:
    one, three = byzantine_success(1), byzantine_success(3)
    assert three >= 0.99
    assert one < three


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))
def test_whatever_answers_come_the_bounds_hold(seed: int, paths: int, k: int, alpha: int) -> None:
    rng = random.Random(seed)
    config = LookupConfig(paths=paths, alpha=alpha, max_candidates=20, max_requests=60)
    search = lookup(rng.randrange(256), k, rng.sample(range(256), 5), local=peer(0), config=config)
    asked: list[int] = []
    waiting: set[int] = set()
    now = 0.0
    for _ in range(500):
        new = numbers(search.next_requests(now))
        asked += new
        waiting |= set(new)
        if search.finished:
            break
        assert len(search._waiting) <= max(alpha, paths)
        action = rng.randrange(4)
        number = rng.choice([*sorted(waiting), rng.randrange(256)])
        if action == 0:
            search.on_failure(peer(number))
        elif action == 1:
            now = max(now, search.wake_at() or now)
        else:
            search.on_response(peer(number), [info(rng.randrange(256)) for _ in range(rng.randrange(50))], now=now)
            waiting.discard(number)
        now += 0.01
    assert search.finished
    assert len(asked) == len(set(asked)) <= 60
    assert 0 not in asked
    assert len(search._known) <= 20 * paths
