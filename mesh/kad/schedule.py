"""What a node has to do again and again: buckets to refresh, own records to publish anew. PURE: `due(now)`
says what.

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


@dataclass(frozen=True, slots=True)
class Due:
    """What to do now: bucket numbers and slots of own records, each in a stable order."""

    buckets: tuple[int, ...]
    records: tuple[Slot, ...]


class Schedule:
    """Remembers when each thing was done last. `now` is any monotonic clock in seconds."""

    def __init__(self, config: ScheduleConfig | None = None, *, rng: random.Random) -> None:
        self._config = config or ScheduleConfig()
        self._rng = rng
        self._buckets: dict[int, float] = {}
        self._records: dict[Slot, float] = {}

    def touched(self, bucket: int, *, now: float) -> None:
        """A lookup went through this bucket."""
        self._buckets[bucket] = now + self._spread(self._config.refresh_s)

    def published(self, slot: Slot, *, now: float) -> None:
        """A record of ours was sent out."""
        self._records[slot] = now + self._spread(self._config.republish_s)

    def forget(self, slot: Slot) -> None:
        """A record of ours is no more."""
        self._records.pop(slot, None)

    def due(self, now: float, *, buckets: int) -> Due:
        """What is due among the table's first `buckets` buckets (one never touched is) and our records. It
        stays due until `touched`, `published` or `forget`."""
        return Due(
            tuple(index for index in range(buckets) if self._buckets.get(index, now) <= now),
            tuple(sorted((s for s, at in self._records.items() if at <= now), key=lambda s: (s.key, s.subkey))),
        )

    def next_at(self, now: float, *, buckets: int) -> float:
        """When `due` has something, `now` if it has already; infinity when nothing is scheduled."""
        times = [self._buckets.get(index, now) for index in range(buckets)] + list(self._records.values())
        return max(now, min(times, default=float("inf")))

    def _spread(self, interval_s: float) -> float:
        return interval_s * (0.9 + 0.2 * self._rng.random())
