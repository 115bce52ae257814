"""What a node has to do again and again: buckets to refresh, own records to publish anew, peers to offer records to.
PURE: `due(now)` says what.

Times are spread by up to a tenth, so that nodes started together do not all do it together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from mesh.kad.record import Slot
from mesh.peer import PeerID


class ScheduleConfig(BaseModel):
    """How often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refresh_s: float = Field(default=600.0, gt=0, description="a bucket untouched for this long is refreshed")
    republish_s: float = Field(default=300.0, gt=0, description="own live records are sent out again")
    sync_s: float = Field(default=60.0, gt=0, description="all peers are offered what they should hold")
    settle_s: float = Field(
        default=5.0,
        gt=0,
        description="how soon a peer that came, or all after one was lost: what changes meanwhile is done with it",
    )
    max_soon: int = Field(default=256, ge=1, description="peers that came, waiting; more: all peers are due")


@dataclass(frozen=True, slots=True)
class Due:
    """What to do now, each in a stable order: bucket numbers, slots of own records, peers to offer records to."""

    buckets: tuple[int, ...]
    records: tuple[Slot, ...]
    peers: tuple[PeerID, ...] = ()


class Schedule:
    """Remembers when each thing was done last. `now` is any monotonic clock in seconds."""

    def __init__(self, config: ScheduleConfig | None = None, *, rng: random.Random) -> None:
        self._config = config or ScheduleConfig()
        self._rng = rng
        self._buckets: dict[int, float] = {}
        self._records: dict[Slot, float] = {}
        self._came: dict[PeerID, None] = {}
        self._soon_at = math.inf
        self._all_at = math.inf
        """When every peer is due. Nothing, until somebody came."""

    def touched(self, bucket: int, *, now: float) -> None:
        """A lookup went through this bucket."""
        self._buckets[bucket] = now + self._spread(self._config.refresh_s)

    def published(self, slot: Slot, *, now: float) -> None:
        """A record of ours was sent out."""
        self._records[slot] = now + self._spread(self._config.republish_s)

    def forget(self, slot: Slot) -> None:
        """A record of ours is no more."""
        self._records.pop(slot, None)

    def came(self, peer: PeerID, *, now: float) -> None:
        """A peer entered the table, or has not got all it was owed: it is due soon."""
        if len(self._came) >= self._config.max_soon:
            self.lost(now=now)
            return
        self._came[peer] = None
        self._soon_at = min(self._soon_at, now + self._spread(self._config.settle_s))
        if self._all_at == math.inf:
            self._all_at = now + self._spread(self._config.sync_s)

    def lost(self, *, now: float) -> None:
        """A neighbour is gone, and others must take its place: all peers are due soon."""
        self._all_at = min(self._all_at, now + self._spread(self._config.settle_s))

    def synced(self, *, now: float) -> None:
        """The offers to those that were due begin."""
        if self._all_at <= now:
            self._all_at = now + self._spread(self._config.sync_s)
        self._came.clear()
        self._soon_at = math.inf

    def due(self, now: float, *, buckets: int, peers: Iterable[PeerID] = ()) -> Due:
        """What is due among the table's first `buckets` buckets (one never touched is), our records and the table's
        `peers`. It stays due until `touched`, `published` or `forget`, `synced`."""
        due_peers: tuple[PeerID, ...] = ()
        if self._all_at <= now:
            due_peers = tuple(peers)
        elif self._soon_at <= now:
            due_peers = tuple(self._came)
        return Due(
            tuple(index for index in range(buckets) if self._buckets.get(index, now) <= now),
            tuple(sorted((s for s, at in self._records.items() if at <= now), key=lambda s: (s.key, s.subkey))),
            due_peers,
        )

    def next_at(self, now: float, *, buckets: int) -> float:
        """When `due` has something, `now` if it has already; infinity when nothing is scheduled."""
        times = [self._buckets.get(index, now) for index in range(buckets)]
        times += self._records.values()
        return max(now, min(*times, self._soon_at, self._all_at, math.inf))

    def _spread(self, interval_s: float) -> float:
        return interval_s * (0.9 + 0.2 * self._rng.random())
