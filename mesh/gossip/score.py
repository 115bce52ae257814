"""What neighbours have earned: a number that only faults lower and time brings back to zero. PURE.

Much less than the score of gossipsub v1.1: there is nothing to gain by good behaviour, so nothing to farm, and members
have a stake and an identity, so there is no need to count those behind one address.
"""

from __future__ import annotations

import enum
from typing import Final

from mesh.peer import PeerID


class Fault(enum.Enum):
    """What costs score, and how much."""

    INVALID = 10.0
    """A message that was rejected."""
    MALFORMED = 20.0
    """Bytes that are no RPC."""
    EARLY_GRAFT = 5.0
    """GRAFT before the backoff was over."""
    FLOOD = 4.0
    """More than the bounds allow; once a heartbeat, so that one burst is forgiven and a minute of them is not."""
    BROKEN_PROMISE = 0.5
    """A message that IHAVE offered and IWANT did not bring; at most `MAX_PROMISES` of them a heartbeat."""


MAX_PROMISES: Final = 10
LOWEST: Final = -100.0
"""So that a peer that mended its ways comes back in minutes."""


class Scores:
    """One number a peer, at most `max_peers` of them; 0 for whoever did nothing wrong."""

    def __init__(self, *, decay: float, max_peers: int) -> None:
        """`decay`: what is left of a score after a heartbeat."""
        self._decay = decay
        self._max_peers = max_peers
        self._scores: dict[PeerID, float] = {}

    def __getitem__(self, peer: PeerID) -> float:
        return self._scores.get(peer, 0.0)

    def blame(self, peer: PeerID, fault: Fault, times: int = 1) -> None:
        """Lower the peer's score. It outlives the connection."""
        self._scores[peer] = max(LOWEST, self[peer] - fault.value * times)
        if len(self._scores) > self._max_peers:
            del self._scores[max(self._scores, key=self._scores.__getitem__)]

    def heartbeat(self) -> None:
        """Time heals."""
        self._scores = {peer: score * self._decay for peer, score in self._scores.items() if score < -0.1}
