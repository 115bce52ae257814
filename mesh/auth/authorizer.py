"""The Authorizer protocol: which class a live peer has, and whether that is enough (mesh/README.md, Classes).

The transport proves who a peer is; an authorizer says what that peer may do. Guards deny on doubt.

A caller of this protocol asks at three moments: `authorize` before it serves a peer, `classify` before it calls one
(both ends of a call are held to a class), and `recheck` for as long as a stream is open:

    seen = authorizer.changes  # before the first check, so that nothing falls between
    await authorizer.authorize(peer, method, least)
    while True:  # beside the stream, which ends with what this raises
        seen = await authorizer.wait_change(seen)
        await authorizer.recheck(peer, least)
"""

from __future__ import annotations

import enum
from typing import Protocol, TypeGuard

import trio

from mesh.peer import PeerID


class PeerClass(enum.IntEnum):
    """Ordered by what they may do; INFRASTRUCTURE routes but never holds replicas and is no member."""

    PUBLIC = 0
    """Anyone: ping, identify."""
    GUEST = 1
    """Anyone where configuration opens it, rate-limited: kad reads, methods marked guest."""
    INFRASTRUCTURE = 2
    """Bootnodes listed on chain or in configuration: routing."""
    MEMBER = 3
    """Peer, bootnode or client id of a registered node with the subnet's least class and stake."""


def is_enough(found: object, least: PeerClass) -> TypeGuard[PeerClass]:
    """Whether an answer is a class, and at least that one: an authorizer that forgets to compare lets nobody in."""
    return isinstance(found, PeerClass) and found >= least


class Authorizer(Protocol):
    """Decides on the proven identity of the peer. Whatever a question raises means no, its cancellation nothing."""

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """May `peer` call our `method`? Its class when that is at least `least`. May ask the chain, counts against the
        peer's rates. Raises NotAuthorized with the reason otherwise; any trouble in finding out is a refusal too."""
        ...

    async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """May we call `method` of `peer`? As `authorize`, but it takes nothing from the peer's rates: the call is ours.
        `least` is the class a server of that method must have."""
        ...

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        """Does what was allowed a while ago still hold? By what is known: asks no chain, takes from no rate, never
        waits. Raises NotAuthorized."""
        ...

    @property
    def changes(self) -> int:
        """How often answers may have become others since the start."""
        ...

    async def wait_change(self, seen: int | None = None) -> int:
        """Until `changes` is beyond `seen` (by default: beyond what it is now); returns it. That the grace for a chain
        that is away has ended is a change too."""
        ...


class Everyone:
    """Every peer is a member: for chains turned off (`--no_blockchain_rpc`) and tests."""

    @property
    def changes(self) -> int:
        """Always 0."""
        return 0

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        return PeerClass.MEMBER

    async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        return PeerClass.MEMBER

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        return PeerClass.MEMBER

    async def wait_change(self, seen: int | None = None) -> int:
        """For ever."""
        await trio.sleep_forever()
        raise AssertionError
