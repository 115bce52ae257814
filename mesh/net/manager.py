"""Which connections a node ends for economy: those worth least, once there are more than it cares to keep.

High and low water as in go-libp2p's connection manager. The hard limits against strangers are in Libp2pConfig and stay
what they are; what is here never refuses anybody. PURE: facts and `now` (monotonic seconds) are arguments.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mesh.errors import LocalProtocolError
from mesh.net.base import Protection
from mesh.peer import PeerID

K = TypeVar("K", bound=Hashable)

MAX_TAGS_PER_PEER: Final = 16
"""Parts of a node that may have an interest in the same peer."""


class ManagerConfig(BaseModel):
    """How many connections a node cares to keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    high_water: int = Field(default=256, ge=1)
    """Beyond this many connections some are closed."""
    low_water: int = Field(default=192, ge=0)
    """So many are left, where those that must be kept are not more."""
    grace_s: float = Field(default=30.0, ge=0)
    """How long a new connection has to show what it is good for; one that moved bytes within it counts as in use."""
    max_tagged_peers: int = Field(default=4096, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_water > self.high_water:
            raise ValueError(f"low_water ({self.low_water}) must not be above high_water ({self.high_water})")
        return self


@dataclass(frozen=True, slots=True)
class Connection(Generic[K]):
    """What is known of one live connection."""

    key: K
    """Whatever the caller knows it by."""
    peer: PeerID
    opened_at: float
    used_at: float
    """When bytes of a stream last moved; `opened_at` when none did."""
    has_streams: bool
    """Whether any stream is open. Not how many: they cost the peer nothing, so their number must not buy it a place."""


class Tags:
    """Who has an interest in which peer."""

    def __init__(self, *, max_peers: int) -> None:
        self._max_peers = max_peers
        self._by_peer: dict[PeerID, dict[str, Protection]] = {}

    def protect(self, peer: PeerID, tag: str, keep: Protection) -> None:
        """Set or change one tag. Raises LocalProtocolError beyond `max_peers` or MAX_TAGS_PER_PEER."""
        tags = self._by_peer.get(peer)
        if tags is None:
            if len(self._by_peer) >= self._max_peers:
                raise LocalProtocolError(f"{self._max_peers} peers are protected already: unprotect some")
            tags = self._by_peer[peer] = {}
        if tag not in tags and len(tags) >= MAX_TAGS_PER_PEER:
            raise LocalProtocolError(f"{peer.short} has {MAX_TAGS_PER_PEER} tags already")
        tags[tag] = keep

    def unprotect(self, peer: PeerID, tag: str) -> None:
        """Take one tag away; nothing happens when it is not there."""
        tags = self._by_peer.get(peer)
        if tags is not None:
            tags.pop(tag, None)
            if not tags:
                del self._by_peer[peer]

    def is_protected(self, peer: PeerID) -> bool:
        """Whether any tag says ALWAYS."""
        return Protection.ALWAYS in self._by_peer.get(peer, {}).values()

    def count(self, peer: PeerID) -> int:
        """How many parts of the node have an interest."""
        return len(self._by_peer.get(peer, ()))


def surplus(connections: Iterable[Connection[K]], tags: Tags, *, config: ManagerConfig, now: float) -> list[K]:
    """What to close, least valuable first: nothing up to `high_water`, and beyond it what is above `low_water`.

    Never a protected peer's connection, nor one younger than `grace_s`. Of the others these are worth less: first
    those with fewer tags, then those that moved nothing within `grace_s`, then those without a stream, then those
    unused for longer. Equal ones go in the order given.
    """
    live = list(connections)
    if len(live) <= config.high_water:
        return []
    closable = [c for c in live if now - c.opened_at >= config.grace_s and not tags.is_protected(c.peer)]
    closable.sort(key=lambda c: (tags.count(c.peer), now - c.used_at < config.grace_s, c.has_streams, c.used_at))
    return [connection.key for connection in closable[: len(live) - config.low_water]]
