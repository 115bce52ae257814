"""What is due when."""

from __future__ import annotations

import random

from mesh.identity import PeerKey
from mesh.kad.record import Slot
from mesh.kad.schedule import Due, Schedule, ScheduleConfig

OWNER = PeerKey.dev("a").peer_id
CONFIG = ScheduleConfig(refresh_s=100.0, republish_s=10.0)


def test_a_bucket_is_due_at_first_and_again_after_its_time() -> None:
    schedule = Schedule(CONFIG, rng=random.Random(1))
    assert schedule.due(0.0, buckets=2) == Due((0, 1), ())
    schedule.touched(0, now=0.0)
    assert schedule.due(1.0, buckets=2) == Due((1,), ())
    schedule.touched(1, now=1.0)
    assert schedule.due(80.0, buckets=2) == Due((), ())
    assert 90.0 <= schedule.next_at(80.0, buckets=2) <= 110.0
    assert schedule.due(112.0, buckets=2) == Due((0, 1), ())
    assert schedule.next_at(112.0, buckets=2) == 112.0


def test_records_are_due_until_published_or_forgotten() -> None:
    schedule = Schedule(CONFIG, rng=random.Random(1))
    a, b = Slot(b"k/a", OWNER, b""), Slot(b"k/b", OWNER, b"")
    schedule.published(b, now=0.0)
    schedule.published(a, now=0.0)
    assert schedule.due(8.9, buckets=0) == Due((), ())
    assert schedule.due(11.1, buckets=0) == Due((), (a, b))
    schedule.published(a, now=11.1)
    schedule.forget(b)
    assert schedule.due(12.0, buckets=0) == Due((), ())
    schedule.forget(a)
    assert schedule.next_at(12.0, buckets=0) == float("inf")


def test_nodes_started_together_do_not_work_together() -> None:
    times = set()
    for seed in range(10):
        schedule = Schedule(CONFIG, rng=random.Random(seed))
        schedule.touched(0, now=0.0)
        times.add(schedule.next_at(0.0, buckets=1))
    assert len(times) == 10


def test_offers_are_due_in_rounds_and_soon_after_a_loss() -> None:
    schedule = Schedule(ScheduleConfig(sync_s=60.0, sync_soon_s=5.0), rng=random.Random(1))
    schedule.sync_soon(now=0.0)
    assert not schedule.due(1000.0, buckets=0).sync  # nobody has begun to sync
    schedule.synced(now=0.0)
    assert not schedule.due(50.0, buckets=0).sync
    assert schedule.due(66.1, buckets=0).sync
    assert 54.0 <= schedule.next_at(0.0, buckets=0) <= 66.0
    schedule.sync_soon(now=10.0)
    assert not schedule.due(14.0, buckets=0).sync
    assert schedule.due(15.6, buckets=0).sync
    schedule.sync_soon(now=15.0)  # a second loss does not put it off
    assert schedule.due(15.6, buckets=0).sync
    schedule.synced(now=15.6)
    assert not schedule.due(60.0, buckets=0).sync
