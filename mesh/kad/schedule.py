"""What a node has to do again and again: buckets to refresh, own records to publish anew, replicas to look after.
PURE: `due(now)` says what.

Times are spread by up to a tenth, so that nodes started together do not all do it together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from mesh.kad.record import Slot


class ScheduleConfig(BaseModel):
    """How often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refresh_s: float = Field(default=600.0, gt=0, description="a bucket untouched for this long is refreshed")
    republish_s: float = Field(default=300.0, gt=0, description="own live records are sent out again")
    sync_s: float = Field(default=60.0, gt=0, description="peers are offered what they should hold")
    sync_soon_s: float = Field(default=5.0, gt=0, description="the same after a replica was lost")


@dataclass(frozen=True, slots=True)
class Due:
    """What to do now: bucket numbers and slots of own records, each in a stable order, and whether to offer peers what
    they should hold."""

    buckets: tuple[int, ...]
    records: tuple[Slot, ...]
    sync: bool = False


class Schedule:
    """Remembers when each thing was done last. `now` is any monotonic clock in seconds."""

    def __init__(self, config: ScheduleConfig | None = None, *, rng: random.Random) -> None:
        self._config = config or ScheduleConfig()
        self._rng = rng
        self._buckets: dict[int, float] = {}
        self._records: dict[Slot, float] = {}
        self._sync_at: float | None = None

    def touched(self, bucket: int, *, now: float) -> None:
        """A lookup went through this bucket."""
        self._buckets[bucket] = now + self._spread(self._config.refresh_s)

    def published(self, slot: Slot, *, now: float) -> None:
        """A record of ours was sent out."""
        self._records[slot] = now + self._spread(self._config.republish_s)

    def resume(self, slot: Slot) -> None:
        """A record of ours that an earlier run sent out is due now."""
        self._records[slot] = float("-inf")

    def forget(self, slot: Slot) -> None:
        """A record of ours is no more."""
        self._records.pop(slot, None)

    def synced(self, *, now: float) -> None:
        """A round of offers has begun; the first call starts the clock."""
        self._sync_at = now + self._spread(self._config.sync_s)

    def sync_soon(self, *, now: float) -> None:
        """A replica was lost: offer before the round is due, but not before others lost with it have been noticed."""
        if self._sync_at is not None:
            self._sync_at = min(self._sync_at, now + self._spread(self._config.sync_soon_s))

    def due(self, now: float, *, buckets: int) -> Due:
        """What is due among the table's first `buckets` buckets (one never touched is), our records, and offers. It
        stays due until `touched`, `published`, `forget` or `synced`."""
        return Due(
            tuple(index for index in range(buckets) if self._buckets.get(index, now) <= now),
            tuple(sorted((s for s, at in self._records.items() if at <= now), key=lambda s: (s.key, s.subkey))),
            self._sync_at is not None and self._sync_at <= now,
        )

    def next_at(self, now: float, *, buckets: int) -> float:
        """When `due` has something, `now` if it has already; infinity when nothing is scheduled."""
        times = [self._buckets.get(index, now) for index in range(buckets)] + list(self._records.values())
        if self._sync_at is not None:
            times.append(self._sync_at)
        return max(now, min(times, default=float("inf")))

    def _spread(self, interval_s: float) -> float:
        return spread(interval_s, self._rng)


def spread(interval_s: float, rng: random.Random) -> float:
    """The interval, give or take a tenth."""
    return interval_s * (0.9 + 0.2 * rng.random())
