"""What a DHT node did since it was made. Plain numbers, bounded in names; an exporter reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_BOUNDS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_BOUNDS_HOPS: Final = (1, 2, 3, 4, 6, 8)
_MAX_REASONS: Final = 64


@dataclass(slots=True)
class Histogram:
    """Observations counted under upper bounds, as Prometheus wants them."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    """By bound, not cumulative; the last is for what lies beyond all."""
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one."""
        self.total += value
        self.counts[sum(value > bound for bound in self.bounds)] += 1

    @property
    def count(self) -> int:
        """Observations in all."""
        return sum(self.counts)


@dataclass(slots=True)
class OperationMetrics:
    """One kind of operation of ours: find, get, put, provide."""

    done: int = 0
    failed: int = 0
    """Lookups that ended without an answer."""
    requests: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(_BOUNDS_S))
    hops: Histogram = field(default_factory=lambda: Histogram(_BOUNDS_HOPS))
    """How many answers led to the nearest peer that answered, one after another."""


@dataclass(slots=True)
class DhtMetrics:
    """See the fields."""

    operations: dict[str, OperationMetrics] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    """Records that others wanted us to store and requests of theirs that we refused, by reason."""
    refused_by_others: dict[str, int] = field(default_factory=dict)
    """Records of ours that others did not store, by reason."""
    asked: dict[str, int] = field(default_factory=dict)
    """Requests of others, by kind."""
    shunned: int = 0
    """Times a peer broke the protocol and was shunned."""
    forged: int = 0
    """Answers that held what no honest peer sends."""
    cache_hits: int = 0
    shared_lookups: int = 0
    """Gets that waited for the lookup of another."""
    given: int = 0
    """Records handed to peers that lacked them."""

    def counters(self) -> dict[str, int]:
        """The single numbers, by name."""
        return {name: getattr(self, name) for name in ("shunned", "forged", "cache_hits", "shared_lookups", "given")}

    def operation(self, kind: str) -> OperationMetrics:
        """The numbers of one kind; kinds are ours, so few."""
        return self.operations.setdefault(kind, OperationMetrics())

    @staticmethod
    def count(table: dict[str, int], name: str, times: int = 1) -> None:
        """Count under a name; names beyond a bound, which strangers may choose, are summed as `other`."""
        if name not in table and len(table) >= _MAX_REASONS:
            name = "other"
        table[name] = table.get(name, 0) + times
