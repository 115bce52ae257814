"""The Authorizer protocol: which class a live peer has, and whether that is enough (mesh/README.md, Classes).

The transport proves who a peer is; an authorizer says what that peer may do. Guards deny on doubt.
"""

from __future__ import annotations

import enum
from typing import Protocol

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


class Authorizer(Protocol):
    """Decides, per call, on the proven identity of the peer."""

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """The peer's class when it is at least `least`. Raises NotAuthorized with the reason otherwise; any trouble
        in finding out is a refusal too."""
        ...


class Everyone:
    """Every peer is a member: for chains turned off (`--no_blockchain_rpc`) and tests."""

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        return PeerClass.MEMBER
