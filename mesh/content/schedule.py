"""Which chunk to ask of whom next: a fetch from many sources as a function of events and `now`. PURE.

Every source has a window of chunks in flight, as many as it delivers in `queue_s` at the speed it has shown, and one
more: the faster it is, the more it is asked for, and a slow one never holds much. Chunks go out in order. When all are
out, whoever has room is asked for one whose source has gone silent, or would need several times longer for it than he
(the endgame): a stalled source costs a second at the end, not the transfer. What comes first counts.

    asks(now)           what to ask now, to be sent at once
    arrived, failed     how an ask ended; both return asks that have become pointless and are to be given up
    wake_at(now)        when `asks` may have more to say without any event
"""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mesh.peer import PeerID


class ScheduleConfig(BaseModel):
    """Bounds of one fetch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_in_flight: int = Field(default=32, ge=1, le=1024, description="chunks asked for and not there yet")
    max_in_flight_per_source: int = Field(default=8, ge=1, le=256, description="of these, at one source")
    max_sources: int = Field(default=64, ge=1, le=1024, description="sources considered; later ones are left out")
    queue_s: float = Field(default=2.0, ge=0, description="work a source is given ahead, at the speed it has shown")
    min_patience_s: float = Field(default=1.0, gt=0, description="of silence, before which no chunk is asked for again")
    patience: float = Field(default=3.0, ge=1, description="times what another source needs for a chunk, to ask it too")
    max_failures: int = Field(default=3, ge=1, description="in a row, after which a source is left out")
    max_busy: int = Field(default=10, ge=1, description="times in a row that a source may put us off")
    retry_s: float = Field(default=0.25, gt=0, description="before asking again after a failure; doubles in a row")
    max_retry_s: float = Field(default=5.0, gt=0, description="the longest such wait")


class Fault(enum.Enum):
    """How an ask ended badly."""

    BUSY = enum.auto()
    """The source is well and says: later."""
    FAILED = enum.auto()
    """No answer: unreachable, broken or too slow."""
    MISSING = enum.auto()
    """The source does not have it or does not give it to us: left out."""
    CORRUPT = enum.auto()
    """The source sent something else: left out, and whatever else it owes is taken from it."""


class Ask(NamedTuple):
    """One chunk asked of one source."""

    peer: PeerID
    chunk: int


class _Source:
    __slots__ = ("asked", "busy", "failures", "is_out", "last_arrival", "retry_at", "service_s")

    def __init__(self) -> None:
        self.asked: dict[int, float] = {}  # chunk → when
        self.service_s: float | None = None  # per chunk, smoothed
        self.last_arrival = -math.inf
        self.failures = 0
        self.busy = 0
        self.retry_at = -math.inf
        self.is_out = False

    def elapsed(self, chunk: int, now: float) -> float:
        """How long the source has worked on a chunk: those before it in its queue do not count."""
        return max(now - max(self.asked[chunk], self.last_arrival), 1e-6)


_SMOOTHING = 0.3


class Schedule:
    """The state of one fetch. Times are seconds of any clock that does not run backwards."""

    def __init__(self, missing: Iterable[int], config: ScheduleConfig | None = None) -> None:
        self.config = config or ScheduleConfig()
        self._todo = sorted(set(missing))  # a heap: chunks nobody is asked for
        self._left = set(self._todo)  # chunks not delivered
        self._flying: dict[int, dict[PeerID, float]] = {}  # chunk → whom, since when
        self._sources: dict[PeerID, _Source] = {}

    @property
    def is_done(self) -> bool:
        """Every chunk was delivered."""
        return not self._left

    @property
    def is_stuck(self) -> bool:
        """There is nobody left to ask: only a new source helps."""
        return not self.is_done and not self._flying and all(source.is_out for source in self._sources.values())

    @property
    def in_flight(self) -> int:
        """Asks that have not ended."""
        return sum(map(len, self._flying.values()))

    def in_flight_at(self, peer: PeerID) -> int:
        """Those at one source."""
        return len(self._sources[peer].asked) if peer in self._sources else 0

    def add(self, peer: PeerID) -> bool:
        """Take a source; False when it is known (left out ones included) or there are enough."""
        if peer in self._sources or len(self._sources) >= self.config.max_sources:
            return False
        self._sources[peer] = _Source()
        return True

    def asks(self, now: float) -> list[Ask]:
        """What to ask now. Each returned ask is in flight until `arrived` or `failed`, or is given up by one."""
        ready = [
            (peer, source)
            for peer, source in self._sources.items()
            if not source.is_out and source.retry_at <= now and len(source.asked) < self._window(source)
        ]
        # Proven speed first; those never tried before those that failed.
        ready.sort(key=lambda item: (item[1].failures + item[1].busy, item[1].service_s or math.inf))
        asks: list[Ask] = []
        room = self.config.max_in_flight - self.in_flight
        while ready and room > 0:
            still = []
            for peer, source in ready:
                if room <= 0:
                    break
                chunk = self._pick(peer, source, now)
                if chunk is None:
                    continue
                self._flying.setdefault(chunk, {})[peer] = now
                source.asked[chunk] = now
                asks.append(Ask(peer, chunk))
                room -= 1
                if len(source.asked) < self._window(source):
                    still.append((peer, source))
            ready = still
        return asks

    def arrived(self, ask: Ask, now: float) -> tuple[bool, tuple[Ask, ...]]:
        """A chunk came and is what was asked for: whether it is the first time, and what to give up."""
        source = self._sources[ask.peer]
        if ask.chunk not in source.asked:
            return False, ()
        elapsed = source.elapsed(ask.chunk, now)
        known = source.service_s
        source.service_s = elapsed if known is None else known + _SMOOTHING * (elapsed - known)
        source.last_arrival = now
        source.failures = source.busy = 0
        source.retry_at = -math.inf
        self._left.discard(ask.chunk)
        self._end(ask)
        others = tuple(Ask(peer, ask.chunk) for peer in self._flying.get(ask.chunk, ()))
        for other in others:
            slow = self._sources[other.peer]
            slow.service_s = max(slow.service_s or 0.0, slow.elapsed(other.chunk, now))
            self._end(other)
        return True, others

    def failed(self, ask: Ask, fault: Fault, now: float) -> tuple[Ask, ...]:
        """An ask ended badly; returns what to give up: everything of a source that is left out."""
        source = self._sources[ask.peer]
        if ask.chunk not in source.asked:
            return ()
        self._end(ask)
        match fault:
            case Fault.FAILED:
                source.failures += 1
            case Fault.BUSY:
                source.busy += 1
            case Fault.MISSING | Fault.CORRUPT:
                source.is_out = True
        if source.failures >= self.config.max_failures or source.busy >= self.config.max_busy:
            source.is_out = True
        if not source.is_out:
            doublings = min(source.failures + source.busy - 1, 32)
            source.retry_at = now + min(self.config.retry_s * 2.0**doublings, self.config.max_retry_s)
            return ()
        rest = tuple(Ask(ask.peer, chunk) for chunk in source.asked)
        for other in rest:
            self._end(other)
        return rest

    def wake_at(self, now: float) -> float:
        """When to call `asks` again if nothing happens until then; math.inf when only an event helps."""
        if self.is_done or self.in_flight >= self.config.max_in_flight:
            return math.inf
        times = [math.inf]
        for peer, source in self._sources.items():
            if source.is_out or len(source.asked) >= self._window(source):
                continue
            if self._todo:
                times.append(max(source.retry_at, now))
            else:
                times += [
                    max(source.retry_at, self._heard(asked) + self._patience(source))
                    for asked in self._flying.values()
                    if peer not in asked
                ]
        return min(times)

    def _window(self, source: _Source) -> int:
        if source.service_s is None or source.failures or source.busy:
            return 1
        ahead = self.config.queue_s / source.service_s
        return int(min(1 + ahead, self.config.max_in_flight_per_source))

    def _patience(self, source: _Source) -> float:
        return max(self.config.min_patience_s, self.config.patience * (source.service_s or 0.0))

    def _heard(self, asked: dict[PeerID, float]) -> float:
        """When one of those asked was last heard of, or asked."""
        return max(max(since, self._sources[peer].last_arrival) for peer, since in asked.items())

    def _pick(self, peer: PeerID, source: _Source, now: float) -> int | None:
        if self._todo:
            return heapq.heappop(self._todo)
        patience = self._patience(source)
        late = []
        for chunk, asked in self._flying.items():
            if peer in asked:
                continue
            heard = self._heard(asked)
            if heard + patience <= now:
                late.append((0, heard, chunk))
            elif source.service_s is not None:
                mine_s = (len(source.asked) + 1) * source.service_s
                theirs_s = self._expected(chunk, asked) - now
                if theirs_s > self.config.patience * mine_s:
                    late.append((1, -theirs_s, chunk))
        return min(late)[2] if late else None

    def _expected(self, chunk: int, asked: dict[PeerID, float]) -> float:
        """When a chunk in flight should come, by the speed of whom it was asked; now or never for the unproven."""
        times = []
        for peer, since in asked.items():
            source = self._sources[peer]
            place = list(source.asked).index(chunk) + 1
            times.append(max(since, source.last_arrival) + place * (source.service_s or 0.0))
        return min(times)

    def _end(self, ask: Ask) -> None:
        """Take an ask out of flight; its chunk is to be asked for again when it was the only one."""
        del self._sources[ask.peer].asked[ask.chunk]
        asked = self._flying[ask.chunk]
        del asked[ask.peer]
        if not asked:
            del self._flying[ask.chunk]
            if ask.chunk in self._left:
                heapq.heappush(self._todo, ask.chunk)
