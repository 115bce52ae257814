"""Who should hold what: every record at the r live peers closest to its place, whoever put it there. PURE.

A node that holds a record offers it to those of the r closest that may lack it: neighbours, every `sync_s`; a peer
that newly came near, soon (hand-over); everybody, soon after a neighbour was lost (repair). So one idea keeps records
alive while nodes come and go, and nobody is in charge of a record: any one of its holders brings back all of them.
The schedule says when (mesh.kad.schedule), `debts` to whom and what, `Ledger` what can be left unsaid.

An offer names records, and only those the other lacks are sent. A name is the record's key and its whole 32-byte
digest. Were it a prefix, somebody could grind a record of his own until its prefix is that of another's, have it held,
and so have the other's taken for known: 2**64 hashes for 8 bytes, fewer for one of many. Binding a prefix to its slot,
where nobody but the owner can put anything, would close that, but owner and subkey (some 38 bytes and more) are longer
than the digest they would shorten. Two names are equal only if all that is signed is equal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RemoteProtocolError
from mesh.kad.key import Key, key_of_peer, key_of_record
from mesh.kad.record import Record
from mesh.kad.validator import record_bytes
from mesh.kad.wire import RawAddrs, RawKey, Role
from mesh.peer import PeerID, PeerInfo

DIGEST_BYTES: Final = 32
MAX_OFFER: Final = 512
"""Names in one offer: at most 82 KiB with the longest keys, some 30 with usual ones."""
INCARNATION_BYTES: Final = 8

Name = tuple[bytes, bytes]
"""A record as an offer names it: (key, digest)."""
Closest = Callable[[Key, int], Sequence[PeerInfo]]
"""The peers we know that hold replicas (bootnodes do not), closest to a key first; at most so many."""


class ReplicasConfig(BaseModel):
    """Bounds of what a node offers and remembers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    near: int = Field(
        default=20, ge=1, description="we answer for the keys to which we are among so many closest: k, the peers "
        "around us that the table knows completely"
    )  # fmt: skip
    max_given: int = Field(
        default=500, ge=1, description="records sent to one peer before others have their turn: a sender's burst"
    )
    remember_s: float = Field(
        default=600.0, gt=0, description="how long a peer is believed to hold what it said it holds"
    )
    max_remembered: int = Field(
        default=250_000, ge=1, description="names remembered over all peers; the peer longest not asked goes first"
    )


def debts(
    keys: Iterable[bytes],
    closest: Closest,
    *,
    local: PeerID,
    replicas: int,
    near: int,
    peers: Container[PeerID] | None = None,
) -> dict[PeerID, list[bytes]]:
    """Which of the keys we hold each peer should hold too: it is one of the `replicas` closest to the key of those we
    know, ourselves included. Of these `peers` only, if told.

    Asks `closest` once for each key. A key to which `near` peers are closer than we is theirs to look after: our table
    does not know everybody around it, and what we would call closest may not be (our own records often lie there; they
    are published by a lookup instead).
    """
    owed: dict[PeerID, list[bytes]] = {}
    place = key_of_peer(local)
    width = max(near, replicas)
    for key in keys:
        target = key_of_record(key)
        mine = place ^ target
        known = closest(target, width)
        if len(known) >= width and key_of_peer(known[-1].peer_id) ^ target < mine:
            continue
        holders = known[:replicas]
        if len(holders) == replicas and mine < key_of_peer(holders[-1].peer_id) ^ target:
            holders = holders[:-1]  # we are one of them
        for info in holders:
            if peers is None or info.peer_id in peers:
                owed.setdefault(info.peer_id, []).append(key)
    return owed


def owed(
    keys: Iterable[bytes], closest: Closest, *, local: PeerID, peer: PeerID, replicas: int, near: int
) -> list[bytes]:
    """Which of the keys we hold one peer should hold too; see `debts`, which is cheaper for several peers."""
    return debts(keys, closest, local=local, replicas=replicas, near=near, peers=(peer,)).get(peer, [])


def name_of(record: Record) -> Name:
    """How an offer names it."""
    return record.key, record.digest


def wanted(names: Sequence[Name], digests: Callable[[bytes], Iterable[bytes]]) -> tuple[int, ...]:
    """Which of an offer's names, by position, are of records not held. `digests` says those of the live records held
    under a key; it is asked once for each key."""
    held: dict[bytes, frozenset[bytes]] = {}
    missing: list[int] = []
    for position, (key, digest) in enumerate(names):
        if key not in held:
            held[key] = frozenset(digests(key))
        if digest not in held[key]:
            missing.append(position)
    return tuple(missing)


def batches(records: Iterable[Record], *, max_records: int, max_bytes: int) -> Iterator[tuple[Record, ...]]:
    """Records in their order as messages of at most so many records and bytes, but at least one record."""
    batch: list[Record] = []
    used = 0
    for record in records:
        size = record_bytes(record)
        if batch and (len(batch) >= max_records or used + size > max_bytes):
            yield tuple(batch)
            batch, used = [], 0
        batch.append(record)
        used += size
    if batch:
        yield tuple(batch)


# --- what each peer holds, as it said -----------------------------------------------------------------------


@dataclass(slots=True)
class _Page:
    incarnation: bytes
    since: float
    digests: set[bytes] = field(default_factory=set)


class Ledger:
    """What each peer said it holds, or will not take: it need not be offered again for `remember_s`, nor sent.

    A peer that says it holds what it does not, or forgets it, harms only its own copy, and for that long; one that
    was started anew says another `incarnation` and is believed nothing. Bounded by `max_remembered`. `now` is any
    monotonic clock in seconds.
    """

    def __init__(self, config: ReplicasConfig | None = None) -> None:
        self._config = config or ReplicasConfig()
        self._pages: OrderedDict[PeerID, _Page] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, peer: PeerID) -> bool:
        """Whether it has answered an offer since it came: a neighbour whose loss calls for repair."""
        return peer in self._pages

    def unsaid(self, peer: PeerID, records: Iterable[Record], *, now: float) -> list[Record]:
        """Those of the records that it has not spoken about."""
        page = self._pages.get(peer)
        if page is not None and now >= page.since + self._config.remember_s:
            self._count -= len(page.digests)
            page.digests, page.since = set(), now
        settled = frozenset[bytes]() if page is None else page.digests
        return [record for record in records if record.digest not in settled]

    def settle(self, peer: PeerID, records: Iterable[Record], *, incarnation: bytes, now: float) -> None:
        """It answered an offer: it holds these, or refuses them. With no records: it is there."""
        page = self._pages.get(peer)
        if page is None or page.incarnation != incarnation:
            self.forget(peer)
            page = self._pages[peer] = _Page(incarnation, now)
        self._pages.move_to_end(peer)
        before = len(page.digests)
        page.digests.update(record.digest for record in records)
        self._count += len(page.digests) - before
        while self._count > self._config.max_remembered:
            _, dropped = self._pages.popitem(last=False)
            self._count -= len(dropped.digests)

    def forget(self, peer: PeerID) -> None:
        """It is gone: when it comes back it is offered everything."""
        page = self._pages.pop(peer, None)
        if page is not None:
            self._count -= len(page.digests)


PASSING: Final = frozenset({"rate"})
"""Refusals that are over in seconds: offered again. All others are settled, until the ledger forgets them."""


# --- on the wire --------------------------------------------------------------------------------------------

RawOffer = tuple[
    RawKey, Annotated[bytes, Field(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES * MAX_OFFER)]
]  # a key and the digests of records under it, one after another


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OfferRequest(_Message):
    """I hold these, and by what I know of the network you should: which do you lack? Of nothing: are you there?"""

    role: Role
    addrs: RawAddrs
    offered: Annotated[tuple[RawOffer, ...], Field(max_length=MAX_OFFER)] = ()


class OfferReply(_Message):
    """`wanted` is a bitmap over the names in their order, the first in the highest bit of the first byte.
    `incarnation` is drawn at random when a node starts: who says another one has forgotten what it said."""

    role: Role
    incarnation: Annotated[bytes, Field(min_length=INCARNATION_BYTES, max_length=INCARNATION_BYTES)]
    wanted: Annotated[bytes, Field(max_length=MAX_OFFER // 8)] = b""


def pack_names(names: Sequence[Name]) -> tuple[tuple[bytes, bytes], ...]:
    """Names as they travel, those of one key (neighbours in the sequence) together; at most MAX_OFFER."""
    packed: list[tuple[bytes, list[bytes]]] = []
    for key, digest in names[:MAX_OFFER]:
        if not packed or packed[-1][0] != key:
            packed.append((key, []))
        packed[-1][1].append(digest)
    return tuple((key, b"".join(digests)) for key, digests in packed)


def unpack_names(offered: Sequence[tuple[bytes, bytes]]) -> list[Name]:
    """The inverse of `pack_names`. Raises RemoteProtocolError for digests cut short and for too many names."""
    names: list[Name] = []
    for key, digests in offered:
        if len(digests) % DIGEST_BYTES:
            raise RemoteProtocolError(f"an offer with {len(digests)} bytes of digests of {DIGEST_BYTES} each")
        if len(names) + len(digests) // DIGEST_BYTES > MAX_OFFER:
            raise RemoteProtocolError(f"an offer of more than {MAX_OFFER} names")
        names += ((key, digests[at : at + DIGEST_BYTES]) for at in range(0, len(digests), DIGEST_BYTES))
    return names


def pack_positions(positions: Iterable[int], count: int) -> bytes:
    """Positions among `count` as a bitmap."""
    bitmap = bytearray((count + 7) // 8)
    for position in positions:
        bitmap[position // 8] |= 0x80 >> position % 8
    return bytes(bitmap)


def unpack_positions(bitmap: bytes, count: int) -> tuple[int, ...]:
    """The inverse of `pack_positions`. Raises RemoteProtocolError for a bitmap of another length and for bits behind
    the last position."""
    if len(bitmap) != (count + 7) // 8:
        raise RemoteProtocolError(f"a bitmap of {len(bitmap)} bytes over {count} names")
    found = tuple(at for at in range(8 * len(bitmap)) if bitmap[at // 8] & 0x80 >> at % 8)
    if found and found[-1] >= count:
        raise RemoteProtocolError(f"a bitmap that wants name {found[-1]} of {count}")
    return found
