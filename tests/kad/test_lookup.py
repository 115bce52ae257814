"""The lookup, step by step and against its reference."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.kad.key import Key
from mesh.kad.lookup import Counts, Lookup, LookupConfig, simple_lookup
from mesh.peer import PeerID
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
    config = LookupConfig(alpha=1, first_patience_s=1.0)
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
    config = LookupConfig(first_patience_s=5.0, min_patience_s=0.01, patience_rtts=3.0)
    search = lookup(0, 3, [1, 2, 3], config=config)
    search.next_requests(0.0)
    assert search.patience_s == 5.0
    search.on_response(peer(1), [], now=0.1)
    assert abs(search.patience_s - 0.3) < 1e-9
    assert search.next_requests(0.31) == []
    assert search.stats.slow == 2
    assert search.finished
    assert search.unanswered() == [peer(2), peer(3)]


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
