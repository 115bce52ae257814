"""What each peer has done to us lately, and whether we deal with it now. PURE; monotonic seconds are an argument.

A peer that breaks the protocol is suspended in both directions, four times as long each time; this fades when it
behaves. A peer that fails to answer several calls in a row is not called for a while (a circuit breaker): then one call
tries it, and its success closes the circuit. The two are kept apart: failing is no offence.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import PeerSuspended
from mesh.peer import PeerID


class StandingConfig(BaseModel):
    """When a peer is left alone, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_peers: int = Field(default=4096, ge=1)
    """Peers remembered; who was not heard of for longest is forgotten first."""
    first_suspension_s: float = Field(default=2.0, gt=0)
    """After a first violation; each further one makes it four times as long."""
    max_suspension_s: float = Field(default=3600.0, gt=0)
    """The longest."""
    violation_life_s: float = Field(default=3600.0, gt=0)
    """A violation is forgiven after so long without another."""
    failures_to_open: int = Field(default=5, ge=1)
    """Failed calls in a row after which a peer is not called."""
    first_pause_s: float = Field(default=1.0, gt=0)
    """How long it is not called at first; doubled whenever the call that tries it fails too."""
    max_pause_s: float = Field(default=30.0, gt=0)
    """The longest."""


@dataclass(slots=True)
class _Peer:
    violations: int = 0
    violated_at: float = 0.0
    suspended_until: float = float("-inf")
    failures: int = 0
    pause_s: float = 0.0
    paused_until: float = float("-inf")


class Standings:
    """Every peer's standing with this node."""

    def __init__(self, config: StandingConfig | None = None) -> None:
        self.config = config or StandingConfig()
        self._peers: OrderedDict[PeerID, _Peer] = OrderedDict()

    def violated(self, peer: PeerID, now: float) -> float:
        """It broke the protocol. Returns for how many seconds it is suspended."""
        entry = self._entry(peer)
        self._forgive(entry, now)
        entry.violations += 1
        entry.violated_at = now
        seconds = min(
            self.config.first_suspension_s * 4.0 ** min(entry.violations - 1, 32), self.config.max_suspension_s
        )
        entry.suspended_until = now + seconds
        return seconds

    def failed(self, peer: PeerID, now: float) -> None:
        """It did not answer a call."""
        entry = self._entry(peer)
        entry.failures += 1
        if entry.failures >= self.config.failures_to_open:
            entry.pause_s = min(max(entry.pause_s * 2, self.config.first_pause_s), self.config.max_pause_s)
            entry.paused_until = now + entry.pause_s

    def answered(self, peer: PeerID) -> None:
        """It answered, or came to us by itself: it lives."""
        entry = self._peers.get(peer)
        if entry is not None and entry.failures:
            entry.failures, entry.pause_s, entry.paused_until = 0, 0.0, float("-inf")

    def may_serve(self, peer: PeerID, now: float) -> None:
        """Raises PeerSuspended when the peer is not to be dealt with."""
        entry = self._peers.get(peer)
        if entry is not None and now < entry.suspended_until:
            raise PeerSuspended(
                f"{peer.short} broke the protocol {entry.violations} times and is refused for another "
                f"{entry.suspended_until - now:.0f} s"
            )

    def may_call(self, peer: PeerID, now: float) -> None:
        """Raises PeerSuspended when the peer is not to be called. After a pause one call is let through to try it, and
        the next one a pause later unless that succeeds."""
        entry = self._peers.get(peer)
        if entry is None:
            return
        self.may_serve(peer, now)
        if entry.failures >= self.config.failures_to_open:
            if now < entry.paused_until:
                raise PeerSuspended(
                    f"{peer.short} did not answer {entry.failures} calls in a row and is tried again in "
                    f"{entry.paused_until - now:.1f} s"
                )
            entry.paused_until = now + entry.pause_s

    def violations(self, peer: PeerID) -> int:
        """How often it broke the protocol, as far as remembered."""
        entry = self._peers.get(peer)
        return entry.violations if entry is not None else 0

    def scores(self, now: float) -> dict[PeerID, float]:
        """1 for a peer without blame, less for violations and failures in a row; those with less than 1 only."""
        found = {}
        for peer, entry in self._peers.items():
            self._forgive(entry, now)
            score = 0.25**entry.violations * 0.9**entry.failures
            if score < 1:
                found[peer] = score
        return found

    def _forgive(self, entry: _Peer, now: float) -> None:
        if entry.violations and now > entry.violated_at + self.config.violation_life_s:
            entry.violations = 0

    def _entry(self, peer: PeerID) -> _Peer:
        entry = self._peers.setdefault(peer, _Peer())
        self._peers.move_to_end(peer)
        while len(self._peers) > self.config.max_peers:
            self._peers.popitem(last=False)
        return entry
