"""Whether what a bootnode says is reason to look for ourselves again. PURE.

A node asks a bootnode missing in its table, for ever, for the peers closest to itself. After a partition that answer is
how the two halves hear of each other, even where the bootnode itself finds no place because its bucket is full.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.kad.key import key_of_peer
from mesh.kad.routing import RoutingTable
from mesh.peer import PeerID, PeerInfo


def unmet(table: RoutingTable, local: PeerID, closer: Sequence[PeerInfo], *, near: int) -> list[PeerInfo]:
    """Those an answer names that belong among the `near` closest to us and are not in the table: strangers where we
    should know everybody."""
    place = key_of_peer(local)
    known = table.closest(place, near)
    reach = key_of_peer(known[-1].peer_id) ^ place if len(known) >= near else None
    return [
        info
        for info in closer
        if info.peer_id != local
        and info.peer_id not in table
        and (reach is None or key_of_peer(info.peer_id) ^ place < reach)
    ]
