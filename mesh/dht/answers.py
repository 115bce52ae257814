"""What a peer answers, whatever wire it was asked on."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.kad.wire import Role
from mesh.peer import PeerInfo


@dataclass(frozen=True, slots=True)
class Answered:
    """A peer's answer to one query: its peers are parsed, its records and proofs are not yet looked at."""

    role: Role
    closer: tuple[PeerInfo, ...]
    records: tuple[bytes, ...] = ()
    more: bool = False
    providers: tuple[PeerInfo, ...] = ()
    proofs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """A peer's verdict on one record or key it was asked to hold: "" for yes; and closer peers."""

    verdict: str
    closer: tuple[PeerInfo, ...]
