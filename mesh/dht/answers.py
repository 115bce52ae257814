"""What a peer answers, whatever wire it was asked on."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.kad.key import Key
from mesh.kad.routing import RoutingTable
from mesh.kad.wire import Role
from mesh.net.base import Network
from mesh.peer import PeerID, PeerInfo


def closest_to(table: RoutingTable, net: Network, target: Key, *, asker: PeerID, want: int) -> list[PeerInfo]:
    """Whom we name to an asker: the closest we know but for itself, with the addresses we know of them."""
    if want == 0:
        return []
    infos = [info for info in table.closest(target, want + 1) if info.peer_id != asker][:want]
    return [info if info.addrs else net.known(info.peer_id) for info in infos]


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
