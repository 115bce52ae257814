"""Token buckets: what they let through, over any sequence of times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from mesh.ratelimit import Rate, RateLimiter, TokenBucket


def test_a_burst_and_then_the_rate() -> None:
    bucket = TokenBucket(rate_per_s=2.0, burst=3.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(0.4)
    assert bucket.take(0.5)
    assert not bucket.take(0.5)
    assert bucket.is_full(10.0)


def test_time_that_runs_backwards_gives_nothing() -> None:
    bucket = TokenBucket(rate_per_s=1.0, burst=1.0)
    assert bucket.take(100.0)
    assert not bucket.take(0.0)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)


def test_costs_are_taken_whole_or_not_at_all() -> None:
    bucket = TokenBucket(rate_per_s=1.0, burst=10.0)
    assert bucket.take(0.0, cost=8.0)
    assert not bucket.take(0.0, cost=3.0)
    assert bucket.take(0.0, cost=2.0)


@given(st.lists(st.floats(0, 5), max_size=100))
def test_no_sequence_gets_more_than_burst_and_rate(steps: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate_per_s=3.0, burst=5.0), 0.0, 0
    for step in steps:
        now += step
        taken += bucket.take(now)
    assert taken <= 5 + 3 * now + 1e-6


@pytest.mark.parametrize(("rate", "burst"), [(-1.0, 1.0), (1.0, 0.0)])
def test_a_bucket_that_lets_nothing_through_is_a_mistake(rate: float, burst: float) -> None:
    with pytest.raises(ConfigError):
        TokenBucket(rate_per_s=rate, burst=burst)


def test_many_names_are_no_way_around_a_full_table() -> None:
    limiter: RateLimiter[int] = RateLimiter(Rate(per_s=1.0, burst=1.0), max_keys=2)
    assert limiter.take(1, 0.0)
    assert limiter.take(2, 0.0)
    assert not limiter.take(3, 0.0)  # forgetting 1 would let it start afresh
    assert not limiter.take(1, 0.0)
    assert len(limiter) == 2
    assert limiter.take(3, 5.0)  # 2 has filled up again: nothing is lost by forgetting it
    assert len(limiter) == 2
