"""Token buckets. PURE: `now` is an argument (monotonic seconds), so a simulation moves them with its own clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mesh.errors import ConfigError

K = TypeVar("K", bound=Hashable)


class TokenBucket:
    """Allows `burst` at once and `rate_per_s` in the long run. Full at first; time that runs backwards adds nothing."""

    __slots__ = ("_last", "_tokens", "burst", "rate_per_s")

    def __init__(self, *, rate_per_s: float, burst: float) -> None:
        if rate_per_s < 0 or burst <= 0:
            raise ConfigError(f"a rate of {rate_per_s}/s with a burst of {burst} lets nothing through")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = burst
        self._last: float | None = None

    def take(self, now: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens if they are there; says whether they were."""
        if not self.holds(now, cost):
            return False
        self._tokens -= cost
        return True

    def holds(self, now: float, cost: float = 1.0) -> bool:
        """Whether `cost` tokens are there; takes none."""
        self._refill(now)
        return self._tokens >= cost

    def is_full(self, now: float) -> bool:
        """Whether nothing has been taken that time has not given back: such a bucket may be forgotten."""
        return self.holds(now, self.burst)

    def _refill(self, now: float) -> None:
        if self._last is not None and now > self._last:
            self._tokens = min(self.burst, self._tokens + (now - self._last) * self.rate_per_s)
        self._last = now if self._last is None else max(now, self._last)


@dataclass(frozen=True, slots=True)
class Rate:
    """What one bucket allows."""

    per_s: float
    burst: float

    def bucket(self) -> TokenBucket:
        """A full one."""
        return TokenBucket(rate_per_s=self.per_s, burst=self.burst)


class RateLimiter(Generic[K]):
    """One bucket per key, at most `max_keys` of them.

    A table that is full makes room by forgetting a bucket that is full again (it says nothing); when there is none the
    new key is refused, because forgetting a used bucket would let whoever makes many keys start afresh.
    """

    def __init__(self, rate: Rate, *, max_keys: int) -> None:
        self._rate = rate
        self._max_keys = max_keys
        self._buckets: OrderedDict[K, TokenBucket] = OrderedDict()

    def take(self, key: K, now: float, cost: float = 1.0) -> bool:
        """Take from the key's bucket; says whether it was allowed."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._max_keys and not self._make_room(now):
                return False
            bucket = self._buckets[key] = self._rate.bucket()
        self._buckets.move_to_end(key)
        return bucket.take(now, cost)

    def __len__(self) -> int:
        return len(self._buckets)

    def _make_room(self, now: float) -> bool:
        # Least recently used first: if that one has not filled up again, hardly any other has.
        key, bucket = next(iter(self._buckets.items()))
        if not bucket.is_full(now):
            return False
        del self._buckets[key]
        return True
