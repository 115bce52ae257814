"""Who should hold what: a record belongs with the r live peers closest to its key. PURE.

One rule serves three ends. A peer that is new near a key is owed the key's records (hand-over); when a replica is lost
the next closest is owed them (repair); and a replica that missed a newer record is owed that. A node pays in rounds:
it tells each peer the digests of what it owes it, and sends what the peer says it lacks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from mesh.kad.key import Key, key_of_peer, key_of_record
from mesh.kad.routing import RoutingTable
from mesh.peer import PeerID, PeerInfo

MAX_OFFER: Final = 2048
"""Digests in one message: 64 KiB."""


def owed(
    keys: Iterable[bytes], table: RoutingTable, *, replicas: int, local: Key, near: int
) -> Iterator[tuple[bytes, Sequence[PeerInfo]]]:
    """For each key that we hold, the peers that should hold it too: the `replicas` closest we know. Lazy, so that a
    shell can breathe between keys: each costs a search of the table.

    Keys to which `near` peers are closer than we, who lie at `local`, are left out, for these to look after:
    what a table calls closest to a place far from its node may be far from it as well, and offering would spread copies
    where nobody looks for them. Such keys are our own records, published by a lookup, and what puts left on their way.
    Half of the offers of 300 nodes were about them.
    """
    for key in keys:
        target = key_of_record(key)
        closest = table.closest(target, max(near, replicas))
        is_far = len(closest) >= near and key_of_peer(closest[near - 1].peer_id) ^ target < local ^ target
        if not is_far:
            yield key, closest[:replicas]


def by_peer(owing: Iterable[tuple[bytes, Sequence[PeerInfo]]]) -> Mapping[PeerInfo, Sequence[bytes]]:
    """The same by peer, in the order in which they come up."""
    found: dict[PeerInfo, list[bytes]] = {}
    for key, peers in owing:
        for info in peers:
            found.setdefault(info, []).append(key)
    return found


def is_first_to_give(key: bytes, newcomer: PeerID, table: RoutingTable, *, local: Key, replicas: int) -> bool:
    """Whether a newcomer should hold the key and we are the closest to it of those who do: one gives, not all."""
    target = key_of_record(key)
    closest = table.closest(target, replicas)
    return any(info.peer_id == newcomer for info in closest) and all(
        info.peer_id == newcomer or local ^ target < key_of_peer(info.peer_id) ^ target for info in closest
    )


def pack_wanted(wanted: Sequence[bool]) -> bytes:
    """A bit per digest offered, the first in the highest bit of the first byte."""
    padded = [*wanted, *[False] * (-len(wanted) % 8)]
    return bytes(
        sum(bit << (7 - place) for place, bit in enumerate(padded[start : start + 8]))
        for start in range(0, len(padded), 8)
    )


def unpack_wanted(raw: bytes, count: int) -> tuple[int, ...]:
    """The places of the bits set among the first `count`."""
    return tuple(place for place in range(min(count, 8 * len(raw))) if raw[place // 8] >> (7 - place % 8) & 1)


class Refusals:
    """What peers lately refused to hold ("full", "quota", "older", …): they want it at every offer, and would be sent
    it every round in vain.

    Remembered for `remember_s`, at most `most` of them, the oldest forgotten first; "rate" is not, being over in
    seconds. That a peer refuses costs its own copy only, whoever's record it is. `now` is any monotonic clock in
    seconds.
    """

    def __init__(self, *, remember_s: float = 600.0, most: int = 16_384) -> None:
        self._remember_s = remember_s
        self._most = most
        self._until: OrderedDict[tuple[PeerID, bytes], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def note(self, peer: PeerID, digest: bytes, reason: str, *, now: float) -> None:
        """A peer refused the record of this digest."""
        if reason == "rate":
            return
        self._until.pop((peer, digest), None)
        self._until[peer, digest] = now + self._remember_s
        while len(self._until) > self._most:
            self._until.popitem(last=False)

    def holds(self, peer: PeerID, digest: bytes, *, now: float) -> bool:
        """Whether the peer refused it lately."""
        return self._until.get((peer, digest), now) > now
