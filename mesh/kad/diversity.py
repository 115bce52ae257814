"""A second opinion for gets that found nothing: from peers outside the IP groups that had the first word. PURE.

Who owns all places around a key answers every lookup of it, by ids ground to lie there; ids are free, addresses in many
networks are not. So before a get says that nothing is there, it looks at who said so. If some IP groups hold more than
their share of the peers that answered, it asks again without them, beginning with the closest others in its own table.
That costs nothing where groups are spread evenly, and nothing where all nodes are in one network: there are no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Final

from mesh.kad.key import Key
from mesh.kad.routing import RoutingTable, ip_group
from mesh.peer import PeerInfo

MAX_SHARE: Final = 3
"""Of some 20 peers that answered, as many may be in one group unremarked."""


def crowding(answered: Iterable[PeerInfo], *, most: int = MAX_SHARE) -> frozenset[str]:
    """The IP groups of which more than `most` of these peers are."""
    groups = Counter(ip_group(info.addrs) for info in answered)
    return frozenset(group for group, count in groups.items() if group is not None and count > most)


def outside(peers: Iterable[PeerInfo], groups: Container[str]) -> list[PeerInfo]:
    """Those of the peers that are in none of the groups, in their order."""
    return [info for info in peers if (group := ip_group(info.addrs)) is None or group not in groups]


def second_seeds(table: RoutingTable, target: Key, groups: Container[str], *, count: int) -> Sequence[PeerInfo]:
    """The `count` peers closest to a key in our table that are in none of the groups."""
    return outside(table.closest(target, len(table)), groups)[:count]
