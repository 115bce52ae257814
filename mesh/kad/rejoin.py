"""Staying in one network: whom to ask now and then who is near us, and when the answer is reason to look for ourselves.
PURE.

Every `rejoin_s` a node asks the bootnodes missing in its table, and one peer that is in it, for the peers closest to
itself. That is how the halves of a partition come together. That the table grew by the answer is no measure: a bootnode
finds no place while its bucket is full of peers that answer. Nor are missing bootnodes enough: one that was not asked
during the partition was never missed, while neighbours, asked every minute, were given up. With both, 99 % of the ten
closest of 300 nodes know each other again a minute after ten minutes apart; with missing bootnodes alone 87 %, and with
growth as the reason 63 %.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mesh.kad.key import key_of_peer
from mesh.kad.routing import RoutingTable
from mesh.peer import PeerID, PeerInfo


def whom_to_ask(table: RoutingTable, bootnodes: Sequence[PeerInfo], *, rng: random.Random) -> list[PeerInfo]:
    """The bootnodes missing in the table, and one peer that is in it, by chance: one request more."""
    met = list(table)
    return [info for info in bootnodes if info.peer_id not in table] + ([rng.choice(met)] if met else [])


def strangers_near(table: RoutingTable, local: PeerID, closer: Sequence[PeerInfo], *, near: int) -> list[PeerInfo]:
    """Those named in an answer that belong among the `near` closest to us and are not in the table, where everybody so
    near should be. If there are any, look for ourselves, beginning with them: what begins at the table alone stays on
    our side."""
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
