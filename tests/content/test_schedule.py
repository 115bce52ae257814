"""The schedule of a fetch: every chunk once, bounds kept, the fast asked for more, the slow worked around."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.content.schedule import Ask, Fault, Schedule, ScheduleConfig
from mesh.identity import PeerKey
from mesh.peer import PeerID

PEERS = [PeerKey.dev(f"source {n}").peer_id for n in range(6)]
SMALL = ScheduleConfig(max_in_flight=5, max_in_flight_per_source=3)


class AnyEvents(RuleBasedStateMachine):
    """Sources that do anything at all, in any order; then one honest source ends it."""

    @initialize(chunks=st.integers(0, 12), sources=st.integers(0, 4))
    def start(self, chunks: int, sources: int) -> None:
        self.now = 0.0
        self.schedule = Schedule(range(chunks), SMALL)
        self.chunks = chunks
        self.flying: set[Ask] = set()
        self.delivered: Counter[int] = Counter()
        self.banned: set[PeerID] = set()
        for peer in PEERS[:sources]:
            self.schedule.add(peer)

    def send(self) -> None:
        for ask in self.schedule.asks(self.now):
            assert ask not in self.flying
            assert ask.peer not in self.banned
            assert not self.delivered[ask.chunk]
            self.flying.add(ask)

    def give_up(self, asks: tuple[Ask, ...]) -> None:
        for ask in asks:
            self.flying.remove(ask)

    def one(self, data: st.DataObject) -> Ask:
        ask = data.draw(st.sampled_from(sorted(self.flying, key=lambda each: (each.chunk, each.peer.multihash))))
        self.flying.remove(ask)
        return ask

    @rule()
    def ask(self) -> None:
        self.send()

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_as_told(self) -> None:
        wake = self.schedule.wake_at(self.now)
        if wake < math.inf:
            self.now = max(self.now, wake)
            before = len(self.flying)
            self.send()
            assert len(self.flying) > before, "woken for nothing"

    @rule(peer=st.sampled_from(PEERS))
    def join(self, peer: PeerID) -> None:
        assert not (self.schedule.add(peer) and peer in self.banned)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        ask = self.one(data)
        is_new, give_up = self.schedule.arrived(ask, self.now)
        assert is_new
        self.delivered[ask.chunk] += 1
        self.give_up(give_up)
        assert self.schedule.arrived(ask, self.now) == (False, ())  # told twice, counted once

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), fault=st.sampled_from(Fault))
    def fail(self, data: st.DataObject, fault: Fault) -> None:
        ask = self.one(data)
        self.give_up(self.schedule.failed(ask, fault, self.now))
        if fault in (Fault.CORRUPT, Fault.MISSING):
            self.banned.add(ask.peer)

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "schedule"):
            return
        assert self.schedule.in_flight == len(self.flying) <= SMALL.max_in_flight
        for peer in PEERS:
            mine = [ask for ask in self.flying if ask.peer == peer]
            assert self.schedule.in_flight_at(peer) == len(mine) <= SMALL.max_in_flight_per_source
        assert all(count == 1 for count in self.delivered.values())
        assert self.schedule.is_done == (len(self.delivered) == self.chunks)

    def teardown(self) -> None:
        """One honest source that joins now is enough, whatever the others do not do any more."""
        if not hasattr(self, "schedule"):
            return
        honest = PeerKey.dev("honest").peer_id
        assert self.schedule.add(honest)
        steps = 0
        while not self.schedule.is_done:
            steps += 1
            assert steps < 500
            self.send()
            mine = [ask for ask in self.flying if ask.peer == honest]
            others = [ask for ask in self.flying if ask.peer != honest]
            if mine:
                self.now += 0.1
                self.flying.remove(mine[0])
                _, give_up = self.schedule.arrived(mine[0], self.now)
                self.delivered[mine[0].chunk] += 1
                self.give_up(give_up)
            elif (wake := self.schedule.wake_at(self.now)) < math.inf:
                self.now = max(wake, self.now)
            else:  # silent ones hold every place until their time is over
                self.now += 30.0
                self.flying.remove(others[0])
                self.give_up(self.schedule.failed(others[0], Fault.FAILED, self.now))
        assert sorted(self.delivered) == list(range(self.chunks))
        assert set(self.delivered.values()) <= {1}
        assert not self.flying


AnyEvents.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_any_events = AnyEvents.TestCase


@dataclass
class Line:
    """A source that sends one chunk after the other, each in `chunk_s`."""

    chunk_s: float
    free_at: float = 0.0


def simulate(
    schedule: Schedule, lines: dict[PeerID, Line], *, limit_s: float = 1000.0
) -> tuple[float, Counter[PeerID]]:
    """Seconds until done, and chunks by source."""
    now, coming, served = 0.0, {}, Counter()  # type: ignore[var-annotated]
    for peer in lines:
        schedule.add(peer)
    while not schedule.is_done:
        for ask in schedule.asks(now):
            line = lines[ask.peer]
            line.free_at = max(line.free_at, now) + line.chunk_s
            coming[ask] = line.free_at
        soonest = min(coming, key=lambda ask: coming[ask]) if coming else None
        now = max(now, min(schedule.wake_at(now), coming[soonest] if soonest else math.inf))
        assert now < limit_s
        if soonest is None or coming[soonest] > now:
            continue
        del coming[soonest]
        is_new, give_up = schedule.arrived(soonest, now)
        served[soonest.peer] += is_new
        for other in give_up:
            del coming[other]
    return now, served


def test_three_equal_sources_are_three_times_as_fast() -> None:
    alone, _ = simulate(Schedule(range(90)), {PEERS[0]: Line(0.1)})
    together, served = simulate(Schedule(range(90)), {peer: Line(0.1) for peer in PEERS[:3]})
    assert alone == pytest.approx(9.0)
    assert together == pytest.approx(3.0, abs=0.2)
    assert min(served.values()) >= 28


def test_the_faster_get_more() -> None:
    seconds, served = simulate(Schedule(range(140)), {PEERS[0]: Line(0.05), PEERS[1]: Line(0.1), PEERS[2]: Line(0.5)})
    assert [served[peer] for peer in PEERS[:3]] == pytest.approx([87, 44, 9], abs=4)
    assert seconds < 140 / (20 + 10 + 2) * 1.25


def test_a_source_that_stalls_costs_seconds_not_the_transfer() -> None:
    seconds, served = simulate(Schedule(range(20)), {PEERS[0]: Line(math.inf), PEERS[1]: Line(0.1)})
    assert seconds < 3.5
    assert served == {PEERS[1]: 20}


def test_even_with_many_that_stall() -> None:
    lines = {peer: Line(math.inf) for peer in PEERS[:5]} | {PEERS[5]: Line(0.1)}
    seconds, served = simulate(Schedule(range(20)), lines)
    assert seconds < 4.0
    assert served == {PEERS[5]: 20}


def test_a_corrupt_source_loses_all_it_owes() -> None:
    schedule = Schedule(range(10), ScheduleConfig(max_in_flight_per_source=4, queue_s=10))
    schedule.add(PEERS[0])
    (first,) = schedule.asks(0)
    schedule.arrived(first, 0.1)
    owed = schedule.asks(0.1)
    assert len(owed) == 4
    assert sorted(schedule.failed(owed[0], Fault.CORRUPT, 0.2)) == sorted(owed[1:])
    assert schedule.is_stuck
    assert not schedule.add(PEERS[0])  # for this fetch it is out
    assert schedule.add(PEERS[1])
    assert not schedule.is_stuck
    assert [ask.chunk for ask in schedule.asks(1)] == [1]


def test_failures_are_retried_later_and_not_for_ever() -> None:
    config = ScheduleConfig(retry_s=1, max_failures=3, max_busy=5, max_retry_s=3)
    schedule = Schedule(range(2), config)
    schedule.add(PEERS[0])
    now, waits = 0.0, []
    for _ in range(4):
        (ask,) = schedule.asks(now)
        schedule.failed(ask, Fault.BUSY, now)
        assert not schedule.asks(now)
        wake = schedule.wake_at(now)
        waits.append(wake - now)
        now = wake
    assert waits == [1, 2, 3, 3]
    (ask,) = schedule.asks(now)
    schedule.arrived(ask, now)  # and all is forgiven
    for _ in range(3):
        assert not schedule.is_stuck
        (ask,) = schedule.asks(now)
        schedule.failed(ask, Fault.FAILED, now)
        now += 10
    assert schedule.is_stuck
    assert not schedule.asks(now)
    assert schedule.wake_at(now) == math.inf


def test_nothing_missing_is_done_and_no_source_is_stuck() -> None:
    assert Schedule([]).is_done
    schedule = Schedule([3])
    assert schedule.is_stuck
    for peer in PEERS:
        schedule.add(peer)
    assert len(schedule.asks(0)) == 1


def test_sources_are_bounded() -> None:
    schedule = Schedule(range(9), ScheduleConfig(max_sources=2))
    assert [schedule.add(peer) for peer in PEERS[:4]] == [True, True, False, False]


@given(st.integers(1, 60), st.lists(st.floats(0.01, 3), min_size=1, max_size=5), st.integers(0, 2**32))
def test_any_lines_deliver_everything(chunks: int, speeds: list[float], seed: int) -> None:
    rng = random.Random(seed)
    missing = [n for n in range(chunks) if rng.random() < 0.8]
    lines = {peer: Line(chunk_s) for peer, chunk_s in zip(PEERS, speeds, strict=False)}
    seconds, served = simulate(Schedule(missing), lines)
    assert served.total() == len(missing)
    assert seconds <= len(missing) * min(speeds) + 3 * max(speeds) + 2
