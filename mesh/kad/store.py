"""The records a node holds: bounded in bytes and records, one per slot, the newest.

Newer is greater in (seq, expiry, digest); an older record changes nothing, neither the record nor when it
expires (hivemind's timed storage lets a rejected one take the newer one's place in the expiry heap, and so
deletes it). Two records of one slot and seq with different values are kept as a proof against their owner.
When there is no room, what is farthest from us leaves first, of that what expires soonest; our own records
stay.

Every look-up is a dict's or a bisection's. The sorted lists are Python's: an insertion moves pointers (20 µs at most
in a list of 100,000), which is less than comparing along a tree would cost.
"""

from __future__ import annotations

import enum
import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RecordRejected
from mesh.kad.equivocation import Equivocation as Equivocation
from mesh.kad.equivocation import ProofBook
from mesh.kad.key import Key, key_of_record
from mesh.kad.quota import NO_QUOTA, UNLIMITED, Account, Ledger, NamespaceQuota, Quota
from mesh.kad.record import Record, Slot, is_equivocation
from mesh.kad.validator import record_bytes
from mesh.peer import PeerID

_T = TypeVar("_T", tuple[int, bytes], tuple[int, bytes, tuple[bytes, bytes]], tuple[bytes, bytes])

_OVERHEAD_BYTES = 512
"""Python objects and index entries per record (sys.getsizeof over a store of 10,000, rounded up)."""


class StoreConfig(BaseModel):
    """Bounds of a RecordStore."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=128 * 2**20, ge=1024, description="all records together, with overhead")
    max_records: int = Field(default=100_000, ge=1, description="records in all")
    max_records_per_key: int = Field(default=8192, ge=1, description="slots under one key, over all owners")
    max_owner_share: float = Field(
        default=0.25, gt=0, le=1, description="part of max_bytes and of max_records that one owner's records may take"
    )
    max_sender_share: float = Field(
        default=0.25, gt=0, le=1, description="part of both that what one peer sent us may take, whoever owns it"
    )
    max_proofs: int = Field(default=256, ge=0, description="proofs of equivocation kept, the newest")
    max_proofs_per_owner: int = Field(default=8, ge=1, description="of those, against one owner")

    def share(self, part: float) -> Quota:
        """That part of all room, one record at least; all of it is no limit, since what is full makes room."""
        if part >= 1:
            return UNLIMITED
        return Quota(max_records=max(1, int(self.max_records * part)), max_bytes=max(1, int(self.max_bytes * part)))


class Keep(enum.Enum):
    """Why a record is held."""

    REPLICA = enum.auto()
    """For others: may be evicted."""
    EVIDENCE = enum.auto()
    """For others, at every validator whatever the distance: stays until it expires. Bounded by the windows of its
    namespace and by every owner's share."""
    OWN = enum.auto()
    """Ours: stays until it expires."""
    NAMED = enum.auto()
    """The same, for peers that its owner named and for no others."""


class Journal(Protocol):
    """Is told what a store holds, so that it may be held again after a restart. Must not raise for what it is told
    to forget and does not know."""

    def kept(self, record: Record, keep: Keep, sender: PeerID | None) -> None:
        """The record is in its slot now, in place of another that may have been there."""
        ...

    def dropped(self, slot: Slot) -> None:
        """The slot is empty now: its record expired, was evicted, or was dropped."""
        ...

    def proven(self, proof: Equivocation) -> None:
        """The proof is held now."""
        ...

    def unproven(self, proof: Equivocation) -> None:
        """The proof left for a newer one."""
        ...


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of the records under a key, sorted by (owner, subkey). `more`: there are others after the
    last."""

    records: tuple[Record, ...]
    more: bool


@dataclass(slots=True)
class _Held:
    record: Record
    keep: Keep
    size: int
    accounts: tuple[Account, ...]


_Place = tuple[bytes, bytes]
"""(owner's multihash, subkey): what tells slots of one key apart. Compared in C, where PeerIDs are not."""


@dataclass(slots=True)
class _UnderKey:
    held: dict[_Place, _Held] = field(default_factory=dict)
    places: list[_Place] = field(default_factory=list)
    """Sorted."""
    replicas: list[tuple[int, bytes, _Place]] = field(default_factory=list)
    """(expiry, digest, place) of what may be evicted, the first to leave first."""

    def count_of(self, owner: PeerID) -> int:
        """How many records one owner has here."""
        name = owner.multihash
        return bisect_left(self.places, (name + b"\0", b"")) - bisect_left(self.places, (name, b""))


class OwnView:
    """A store as `Held` for our own records, which may push replicas out."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def check(
        self, record: Record, *, max_per_owner: int, quota: NamespaceQuota | None = None, sender: PeerID | None = None
    ) -> None:
        """See RecordStore.check."""
        self._store.check(record, max_per_owner=max_per_owner, keep=Keep.OWN, quota=quota, sender=sender)


class RecordStore:
    """Slot → newest record. `now` is in unix seconds; expired records are never returned, and leave with
    `expire`."""

    def __init__(self, local: Key, config: StoreConfig | None = None, *, journal: Journal | None = None) -> None:
        """`local` is where this node lies: what is far from there leaves first."""
        self._local = local
        self._config = config or StoreConfig()
        self._journal = journal
        self._owner_quota = self._config.share(self._config.max_owner_share)
        self._sender_quota = self._config.share(self._config.max_sender_share)
        self._keys: dict[bytes, _UnderKey] = {}
        self._by_distance: list[tuple[int, bytes]] = []
        self._with_replicas: list[tuple[int, bytes]] = []
        self._expiry: list[tuple[int, bytes, bytes, PeerID, bytes]] = []
        self._digests: set[bytes] = set()
        self._ledger = Ledger()
        self._proofs = ProofBook(max_proofs=self._config.max_proofs, max_per_owner=self._config.max_proofs_per_owner)
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def config(self) -> StoreConfig:
        """Its bounds."""
        return self._config

    @property
    def local(self) -> Key:
        """Where this node lies."""
        return self._local

    @property
    def size_bytes(self) -> int:
        """What the records weigh, overhead included."""
        return self._bytes

    def held(self, slot: Slot) -> Record | None:
        """The record of a slot, expired or not; None when there is none."""
        held = self._held(slot)
        return None if held is None else held.record

    def keep(self, slot: Slot) -> Keep | None:
        """Why the record of a slot is held; None when there is none."""
        held = self._held(slot)
        return None if held is None else held.keep

    def check(
        self,
        record: Record,
        *,
        max_per_owner: int,
        keep: Keep = Keep.REPLICA,
        quota: NamespaceQuota | None = None,
        sender: PeerID | None = None,
    ) -> None:
        """Whether `put` would take it, before its signature is looked at. Raises RecordRejected: "duplicate"
        (we have it), "older", "quota", "full". A record that would prove an equivocation passes, to have its
        signature checked, unless its slot has been proven false for that seq already."""
        self._victims(record, max_per_owner, keep, quota, sender)

    def put(
        self,
        record: Record,
        *,
        max_per_owner: int,
        keep: Keep = Keep.REPLICA,
        quota: NamespaceQuota | None = None,
        sender: PeerID | None = None,
    ) -> tuple[Record, ...]:
        """Hold a record whose signature was checked; `sender` is who asked us to, on whose share it then counts.
        Returns what was evicted for it.

        Raises RecordRejected as `check` does; then nothing has changed, but for a proof of equivocation that may have
        been kept. What the journal raises comes through; the record is held then.
        """
        slot = record.slot
        held = self._held(slot)
        if held is not None and is_equivocation(held.record, record):
            if self._is_new_proof(record, held.record):
                self.prove(Equivocation.of(held.record, record))
            if record.order < held.record.order:
                raise RecordRejected(
                    "older", "same seq as another record of this slot: kept as proof against its owner"
                )
        evicted = self._victims(record, max_per_owner, keep, quota, sender)
        for victim in evicted:
            self.drop(victim.slot)
        if held is not None:
            self._remove(slot, held)
        self._add(record, keep, _accounts(record, sender))
        if self._journal is not None:
            self._journal.kept(record, keep, sender)
        return evicted

    def prove(self, proof: Equivocation) -> None:
        """Keep a proof that was checked."""
        gone = self._proofs.add(proof)
        if self._journal is not None:
            for other in gone:
                if other is not proof:
                    self._journal.unproven(other)
            if proof not in gone:
                self._journal.proven(proof)

    def own_view(self) -> OwnView:
        """What a validator asks about records of our own."""
        return OwnView(self)

    def drop(self, slot: Slot) -> None:
        """Forget the record of a slot, if there is one."""
        held = self._held(slot)
        if held is None:
            return
        self._remove(slot, held)
        if self._journal is not None:
            self._journal.dropped(slot)

    def records(self, key: bytes, *, now: float) -> tuple[Record, ...]:
        """The live records under a key, tombstones included, sorted by (owner, subkey)."""
        under = self._keys.get(key)
        if under is None:
            return ()
        held = (under.held[place].record for place in under.places)
        return tuple(record for record in held if not record.is_expired(now))

    def owners(self, key: bytes) -> tuple[PeerID, ...]:
        """Who owns records under a key, sorted."""
        under = self._keys.get(key)
        if under is None:
            return ()
        places = under.places
        firsts = (place for before, place in pairwise([(b"", b""), *places]) if before[0] != place[0])
        return tuple(under.held[place].record.owner for place in firsts)

    def page(
        self,
        key: bytes,
        *,
        now: float,
        max_bytes: int,
        after: tuple[PeerID, bytes] | None = None,
        owners: frozenset[PeerID] | None = None,
    ) -> Listing:
        """As `records`, of these owners only if told, at most `max_bytes` of them but at least one, from
        behind `after` on."""
        under = self._keys.get(key) or _UnderKey()
        start = 0 if after is None else bisect_right(under.places, (after[0].multihash, after[1]))
        chosen: list[Record] = []
        used = 0
        for index in range(start, len(under.places)):
            record = under.held[under.places[index]].record
            if record.is_expired(now) or (owners is not None and record.owner not in owners):
                continue
            used += record_bytes(record)
            if chosen and used > max_bytes:
                return Listing(tuple(chosen), more=True)
            chosen.append(record)
        return Listing(tuple(chosen), more=False)

    def expire(self, now: float, *, limit: int | None = None) -> tuple[Record, ...]:
        """Drop and return what has expired, the longest ago first; at most `limit` of it."""
        gone: list[Record] = []
        while self._expiry and self._expiry[0][0] <= now * 1000 and len(gone) != limit:
            _, digest, key, owner, subkey = heapq.heappop(self._expiry)
            slot = Slot(key, owner, subkey)
            held = self.held(slot)
            if held is not None and held.digest == digest:  # else replaced since: that one has its own entry
                self.drop(slot)
                gone.append(held)
        return tuple(gone)

    def keys(self) -> tuple[bytes, ...]:
        """All keys held, the nearest to us first."""
        return tuple(key for _, key in self._by_distance)

    def __iter__(self) -> Iterator[Record]:
        """All records, nearest key first, then by (owner, subkey)."""
        for _, key in self._by_distance:
            under = self._keys[key]
            for place in under.places:
                yield under.held[place].record

    @property
    def proofs(self) -> tuple[Equivocation, ...]:
        """Equivocations seen, oldest first."""
        return self._proofs.proofs

    @property
    def proof_count(self) -> int:
        """How many there are."""
        return len(self._proofs)

    def proof(self, slot: Slot) -> Equivocation | None:
        """What proves that a slot's owner equivocated there; None when nothing does."""
        return self._proofs.of(slot)

    def proofs_of(self, key: bytes) -> tuple[Equivocation, ...]:
        """The proofs about slots under a key, oldest first."""
        return self._proofs.under(key)

    def has_digest(self, digest: bytes) -> bool:
        """Whether this very record is held."""
        return digest in self._digests

    def has(self, key: bytes) -> bool:
        """Whether there is any record under the key, expired or not."""
        return key in self._keys

    # -- inside --

    def _held(self, slot: Slot) -> _Held | None:
        under = self._keys.get(slot.key)
        return None if under is None else under.held.get((slot.owner.multihash, slot.subkey))

    def _victims(
        self, record: Record, max_per_owner: int, keep: Keep, quota: NamespaceQuota | None, sender: PeerID | None
    ) -> tuple[Record, ...]:
        """What has to leave for a record; nothing has left yet. Raises RecordRejected."""
        held = self._held(record.slot)
        if held is None:
            self._check_key(record, max_per_owner)
        else:
            if held.record.digest == record.digest:
                raise RecordRejected("duplicate", "this very record is held already")
            if record.order < held.record.order and not self._is_new_proof(record, held.record):
                raise RecordRejected("older", f"seq {record.seq}; held is seq {held.record.seq}")
        size = record_bytes(record) + _OVERHEAD_BYTES
        replaced = 0 if held is None else held.size
        quota = quota or NO_QUOTA
        self._ledger.check(
            zip(
                _accounts(record, sender),
                (self._owner_quota, quota.in_all, quota.per_owner, self._sender_quota),
                strict=False,  # our own records have no sender
            ),
            size,
            replacing=() if held is None else held.accounts,
            replaced=replaced,
        )
        return self._make_room(
            record,
            keep,
            too_many=self._count + int(held is None) - self._config.max_records,
            too_much=self._bytes + size - replaced - self._config.max_bytes,
        )

    def _check_key(self, record: Record, max_per_owner: int) -> None:
        under = self._keys.get(record.key)
        if under is None:
            return
        if len(under.held) >= self._config.max_records_per_key:
            raise RecordRejected("quota", f"{len(under.held)} records under {record.key!r}")
        mine = under.count_of(record.owner)
        if mine >= max_per_owner:
            raise RecordRejected("quota", f"{mine} records of {record.owner} under {record.key!r}")

    def _is_new_proof(self, record: Record, held: Record) -> bool:
        return is_equivocation(held, record) and not self._proofs.proves(record.slot, record.seq)

    def _make_room(self, record: Record, keep: Keep, *, too_many: int, too_much: int) -> tuple[Record, ...]:
        if too_many <= 0 and too_much <= 0:
            return ()
        victims: list[Record] = []
        mine = key_of_record(record.key) ^ self._local
        for distance, victim in self._leaving():
            if victim.record.slot == record.slot:
                continue
            if keep is Keep.REPLICA and (mine, -record.expiry_ms, victim.record.digest) >= (
                distance, -victim.record.expiry_ms, record.digest,
            ):  # fmt: skip
                break  # it would be the next to leave itself
            victims.append(victim.record)
            too_many -= 1
            too_much -= victim.size
            if too_many <= 0 and too_much <= 0:
                return tuple(victims)
        raise RecordRejected("full", "no room: what is held is nearer to this node, lives longer, or is its own")

    def _leaving(self) -> Iterator[tuple[int, _Held]]:
        """Replicas and their distances, the first to leave first: far, soon to expire, of the lesser digest."""
        for distance, key in reversed(self._with_replicas):
            under = self._keys[key]
            for _, _, place in under.replicas:
                yield distance, under.held[place]

    def _add(self, record: Record, keep: Keep, accounts: tuple[Account, ...]) -> None:
        size = record_bytes(record) + _OVERHEAD_BYTES
        by_distance = (key_of_record(record.key) ^ self._local, record.key)
        under = self._keys.get(record.key)
        if under is None:
            under = self._keys[record.key] = _UnderKey()
            insort(self._by_distance, by_distance)
        place = (record.owner.multihash, record.subkey)
        under.held[place] = _Held(record, keep, size, accounts)
        self._digests.add(record.digest)
        insort(under.places, place)
        if keep is Keep.REPLICA:
            if not under.replicas:
                insort(self._with_replicas, by_distance)
            insort(under.replicas, (record.expiry_ms, record.digest, place))
        self._count += 1
        self._bytes += size
        self._ledger.book(accounts, size)
        heapq.heappush(self._expiry, (record.expiry_ms, record.digest, record.key, record.owner, record.subkey))
        if len(self._expiry) > 2 * self._count + 64:  # entries of replaced records: rebuild now and then
            self._expiry = [
                (h.record.expiry_ms, h.record.digest, h.record.key, h.record.owner, h.record.subkey)
                for under in self._keys.values()
                for h in under.held.values()
            ]
            heapq.heapify(self._expiry)

    def _remove(self, slot: Slot, held: _Held) -> None:
        under = self._keys[slot.key]
        place = (slot.owner.multihash, slot.subkey)
        by_distance = (key_of_record(slot.key) ^ self._local, slot.key)
        del under.held[place]
        self._digests.discard(held.record.digest)
        _take_out(under.places, place)
        if held.keep is Keep.REPLICA:
            _take_out(under.replicas, (held.record.expiry_ms, held.record.digest, place))
            if not under.replicas:
                _take_out(self._with_replicas, by_distance)
        if not under.held:
            del self._keys[slot.key]
            _take_out(self._by_distance, by_distance)
        self._count -= 1
        self._bytes -= held.size
        self._ledger.release(held.accounts, held.size)


def _take_out(items: list[_T], item: _T) -> None:
    """Remove what is in a sorted list."""
    del items[bisect_left(items, item)]


def _accounts(record: Record, sender: PeerID | None) -> tuple[Account, ...]:
    namespace = record.key.partition(b"/")[0].decode("ascii", "replace")
    accounts: tuple[Account, ...] = (
        ("owner", record.owner),
        ("namespace", namespace),
        ("owner in namespace", namespace, record.owner),
    )
    # Who sends its own record is held to its share as the owner; what others hand over of it is on theirs.
    return accounts if sender is None or sender == record.owner else (*accounts, ("sender", sender))
