"""Peers that sent what no honest peer sends: refused as sources, each time for longer. PURE.

Only proof counts: bytes that do not hash to what was asked for. A slow or dead peer is no liar and is never put here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from mesh.peer import PeerID


class PenaltyConfig(BaseModel):
    """How long, and how many are remembered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_s: float = Field(default=30.0, gt=0, description="refusal after the first offence; each further one doubles")
    longest_s: float = Field(default=3600.0, gt=0, description="the longest refusal")
    forget_s: float = Field(default=6 * 3600.0, gt=0, description="good conduct after which all is forgotten")
    max_peers: int = Field(default=1024, ge=1, description="peers remembered; whose refusal ends first leaves first")


@dataclass(frozen=True, slots=True)
class Penalty:
    """What one peer has on its account."""

    offences: int
    until: float
    """No source before this time."""


class Penalties:
    """A bounded table of offenders."""

    def __init__(self, config: PenaltyConfig | None = None) -> None:
        self.config = config or PenaltyConfig()
        self._of: dict[PeerID, Penalty] = {}

    def add(self, peer: PeerID, now: float) -> Penalty:
        """Count an offence and return what follows from it."""
        old = self._of.pop(peer, None)
        if old is not None and now - old.until > self.config.forget_s:
            old = None
        offences = old.offences + 1 if old else 1
        # The exponent is bounded first: a float overflows long before an attacker is tired.
        refused_s = min(self.config.first_s * 2.0 ** min(offences - 1, 32), self.config.longest_s)
        while len(self._of) >= self.config.max_peers:
            del self._of[min(self._of, key=lambda each: self._of[each].until)]
        penalty = self._of[peer] = Penalty(offences, now + refused_s)
        return penalty

    def is_refused(self, peer: PeerID, now: float) -> bool:
        """Whether a peer is no source now."""
        penalty = self._of.get(peer)
        return penalty is not None and now < penalty.until

    def items(self) -> tuple[tuple[PeerID, Penalty], ...]:
        """Who is remembered, the latest offender last."""
        return tuple(self._of.items())
