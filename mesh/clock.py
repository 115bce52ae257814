"""Wall time as an argument. Monotonic time is trio's own clock, which tests replace with MockClock.

Records expire at unix times, so somebody must read the wall clock: only SystemClock does.
"""

from __future__ import annotations

import time
from typing import Protocol

import trio


class Clock(Protocol):
    """Where wall time comes from."""

    def now(self) -> float:
        """Seconds since the unix epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()  # noqa: TID251 - the one place that reads it


class SimClock:
    """Wall time that follows trio's clock, for runs under trio.testing.MockClock."""

    def __init__(self, epoch0: float = 1_800_000_000.0) -> None:
        self._epoch0 = epoch0

    def now(self) -> float:
        return self._epoch0 + trio.current_time()
