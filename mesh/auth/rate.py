"""Calls per second and peer, on top of another authorizer."""

from __future__ import annotations

from typing import Final

import trio
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mesh.auth.authorizer import Authorizer, PeerClass
from mesh.errors import NotAuthorized
from mesh.peer import PeerID
from mesh.ratelimit import Rate, RateLimiter, TokenBucket

_ONE_CALL: Final = 1.0


class RateLimits(BaseModel):
    """What one peer of each class may do, and all peers together. `Rate(per_s, burst)` in calls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    public: Rate = Rate(1.0, 5.0)
    guest: Rate = Rate(20.0, 40.0)
    infrastructure: Rate = Rate(50.0, 200.0)
    member: Rate = Rate(200.0, 1000.0)
    total: Rate | None = Field(default=None, description="of all peers together; None: no such limit")
    max_peers: int = Field(default=4096, ge=1, description="peers of one class whose rate is remembered")

    @field_validator("public", "guest", "infrastructure", "member", "total")
    @classmethod
    def _lets_through(cls, rate: Rate | None) -> Rate | None:
        if rate is not None and not (rate.per_s > 0 and rate.burst >= _ONE_CALL):
            raise ValueError(f"{rate.per_s:g} calls/s with a burst of {rate.burst:g} never lets a call through")
        return rate

    def of(self, peer_class: PeerClass) -> Rate:
        """The rate of one peer of a class."""
        return {
            PeerClass.PUBLIC: self.public,
            PeerClass.GUEST: self.guest,
            PeerClass.INFRASTRUCTURE: self.infrastructure,
            PeerClass.MEMBER: self.member,
        }[peer_class]


class RateLimited:
    """An authorizer whose peers may call only so often.

    `inner` is asked first: whom it refuses takes nothing from the total, so strangers cannot use up what members share;
    what strangers cost is for `inner` to bound. Every class has a table of its own, so one class cannot push another
    out; a table that is full refuses newcomers (mesh.ratelimit).
    """

    def __init__(self, inner: Authorizer, limits: RateLimits | None = None) -> None:
        self.limits = limits or RateLimits()
        self._inner = inner
        self._total: TokenBucket | None = self.limits.total.bucket() if self.limits.total else None
        self._peers: dict[PeerClass, RateLimiter[PeerID]] = {
            peer_class: RateLimiter(self.limits.of(peer_class), max_keys=self.limits.max_peers)
            for peer_class in PeerClass
        }

    @property
    def changes(self) -> int:
        """The inner one's: rates never end a stream."""
        return self._inner.changes

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer. Raises NotAuthorized("rate-limited") that says after how long there is room for certain,
        unless others take it first."""
        found = await self._inner.authorize(peer, method, least)
        now = trio.current_time()
        if self._total is not None and not self._total.holds(now):
            raise _too_often(
                f"{method}: this node is called too often by all peers together", 1 / self._total.rate_per_s
            )
        table, rate = self._peers[found], self.limits.of(found)
        is_full = len(table) >= self.limits.max_peers
        if not table.take(peer, now):
            raise _too_often(
                f"{method}: {peer} may make {rate.per_s:g} calls/s as {found.name.lower()}, {rate.burst:g} at once",
                (rate.burst if is_full else _ONE_CALL) / rate.per_s,
            )
        if self._total is not None:
            self._total.take(now)  # last, so that a peer over its own rate takes nothing from all
        return found

    async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer."""
        return await self._inner.classify(peer, method, least)

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        """See Authorizer."""
        return await self._inner.recheck(peer, least)

    async def wait_change(self, seen: int | None = None) -> int:
        """See Authorizer."""
        return await self._inner.wait_change(seen)


def _too_often(text: str, wait_s: float) -> NotAuthorized:
    return NotAuthorized("rate-limited", f"{text}: try again in {max(wait_s, 0.01):.2f} s.", retry_after_s=wait_s)
