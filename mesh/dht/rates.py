"""What one caller may ask, and all guests together: the same for each wire."""

from __future__ import annotations

import trio

from mesh.errors import NotAuthorized
from mesh.peer import PeerID
from mesh.ratelimit import Rate, RateLimiter


class CallerRates:
    """A bucket for each caller, and one more for all guests; each holds five seconds' worth."""

    def __init__(self, *, member_per_s: float, guest_per_s: float, all_guests_per_s: float, max_callers: int) -> None:
        self._members = RateLimiter[PeerID](_rate(member_per_s), max_keys=max_callers)
        self._guests = RateLimiter[PeerID](_rate(guest_per_s), max_keys=max_callers)
        self._all_guests = _rate(all_guests_per_s).bucket()

    def charge(self, caller: PeerID, *, is_guest: bool, cost: float = 1.0) -> None:
        """Raises NotAuthorized("rate-limited")."""
        now = trio.current_time()
        if is_guest:
            allowed = self._guests.take(caller, now, cost) and self._all_guests.take(now, cost)
        else:
            allowed = self._members.take(caller, now, cost)
        if not allowed:
            raise NotAuthorized("rate-limited", f"{caller} asks more often than this node answers")


def _rate(per_s: float) -> Rate:
    return Rate(per_s=per_s, burst=per_s * 5)
