"""How long to wait for a peer before another is asked beside it: learnt from its round trips. PURE.

The estimate is TCP's (Jacobson 1988; RFC 6298 §2 and §5.5): a smoothed round trip and four times its mean deviation,
doubled for each request in a row that was too slow. A peer not met yet gets the estimate over all peers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.peer import PeerID

_ALPHA: Final = 1 / 8
_BETA: Final = 1 / 4
_DEVIATIONS: Final = 4
"""The gains and the factor of RFC 6298 §2.3."""


class PatienceConfig(BaseModel):
    """Bounds of the estimate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_s: float = Field(default=1.0, gt=0, description="before any answer of anybody")
    min_s: float = Field(
        default=0.25, gt=0, description="least, whatever was learnt: a busy peer answers late now and then"
    )
    max_s: float = Field(default=4.0, gt=0, description="most, whatever was learnt")
    max_peers: int = Field(default=4096, ge=1, description="peers whose round trips are remembered, the last met")


@dataclass(slots=True)
class _Estimate:
    smoothed_s: float
    deviation_s: float
    slow: int = 0
    """Requests in a row that were too slow."""

    def observe(self, rtt_s: float) -> None:
        self.deviation_s += _BETA * (abs(self.smoothed_s - rtt_s) - self.deviation_s)
        self.smoothed_s += _ALPHA * (rtt_s - self.smoothed_s)


class Patience:
    """What a node knows of its peers' round trips; shared by its lookups."""

    def __init__(self, config: PatienceConfig | None = None) -> None:
        self._config = config or PatienceConfig()
        self._peers: OrderedDict[PeerID, _Estimate] = OrderedDict()
        self._all: _Estimate | None = None

    def __len__(self) -> int:
        return len(self._peers)

    def of(self, peer: PeerID) -> float:
        """Seconds for which a request to this peer counts as in flight."""
        config = self._config
        estimate = self._peers.get(peer, self._all)
        if estimate is None:
            return min(config.first_s, config.max_s)
        patience_s = estimate.smoothed_s + _DEVIATIONS * estimate.deviation_s
        return float(min(config.max_s, max(config.min_s, patience_s) * 2**estimate.slow))

    def observe(self, peer: PeerID, rtt_s: float) -> None:
        """The peer answered after so long, however late that was: each request has its own answer, so that Karn's
        ambiguity does not arise."""
        rtt_s = max(0.0, rtt_s)
        estimate = self._peers.get(peer)
        if estimate is None:
            self._peers[peer] = _Estimate(rtt_s, rtt_s / 2)
            if len(self._peers) > self._config.max_peers:
                self._peers.popitem(last=False)
        else:
            estimate.observe(rtt_s)
            estimate.slow = 0
            self._peers.move_to_end(peer)
        if self._all is None:
            self._all = _Estimate(rtt_s, rtt_s / 2)
        else:
            self._all.observe(rtt_s)

    def on_slow(self, peer: PeerID) -> None:
        """A request outlasted the patience: the next has twice as much, up to the most. One that never answered has
        nobody's patience but everybody's."""
        estimate = self._peers.get(peer)
        if estimate is not None and self.of(peer) < self._config.max_s:
            estimate.slow += 1
