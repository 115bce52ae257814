"""The records a node holds: bounded in bytes and records, one per slot, the newest.

Newer is greater in (seq, expiry, digest); an older record changes nothing, neither the record nor when it
expires (hivemind's timed storage lets a rejected one take the newer one's place in the expiry heap, and so
deletes it). Two records of one slot and seq with different values are kept as a proof against their owner.
When there is no room, what is farthest from us leaves first, of that what expires soonest; our own records
stay.
"""

from __future__ import annotations

import enum
import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import msgpack
from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RecordRejected
from mesh.kad.key import Key, key_of_record
from mesh.kad.record import Record, Slot, is_equivocation
from mesh.kad.validator import record_bytes
from mesh.peer import PeerID

_OVERHEAD_BYTES = 512
"""Python objects and index entries per record (sys.getsizeof over a store of 10,000, rounded up)."""


class StoreConfig(BaseModel):
    """Bounds of a RecordStore."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=128 * 2**20, ge=1024, description="all records together, with overhead")
    max_records: int = Field(default=100_000, ge=1, description="records in all")
    max_records_per_key: int = Field(default=8192, ge=1, description="slots under one key, over all owners")
    max_owner_share: float = Field(
        default=0.25, gt=0, le=1, description="part of max_bytes that one owner's records may take"
    )
    max_proofs: int = Field(default=256, ge=0, description="proofs of equivocation kept, the newest")


class Keep(enum.Enum):
    """Why a record is held."""

    REPLICA = enum.auto()
    """For others: may be evicted."""
    EVIDENCE = enum.auto()
    """For others, at every validator whatever the distance: stays until it expires. Bounded by the windows of its
    namespace and by every owner's share."""
    OWN = enum.auto()
    """Ours: stays until it expires."""


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two signed records of one slot and seq: proof that their owner said two things."""

    first: Record
    second: Record

    def to_bytes(self) -> bytes:
        packed = msgpack.packb([1, self.first.to_bytes(), self.second.to_bytes()], use_bin_type=True)
        assert isinstance(packed, bytes)
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Equivocation:
        _version, first, second = msgpack.unpackb(data)
        return cls(Record.from_bytes(first), Record.from_bytes(second))


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


class OwnView:
    """A store as `Held` for our own records, which may push replicas out."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def check(self, record: Record, *, max_per_owner: int) -> None:
        """See RecordStore.check."""
        self._store.check(record, max_per_owner=max_per_owner, keep=Keep.OWN)


class RecordStore:
    """Slot → newest record. `now` is in unix seconds; expired records are never returned, and leave with
    `expire`."""

    def __init__(self, local: Key, config: StoreConfig | None = None) -> None:
        self._local = local
        self._config = config or StoreConfig()
        self._keys: dict[bytes, dict[tuple[PeerID, bytes], _Held]] = {}
        self._by_distance: list[tuple[int, bytes]] = []
        self._expiry: list[tuple[int, bytes, bytes, PeerID, bytes]] = []
        self._owner_bytes: dict[PeerID, int] = {}
        self._digests: set[bytes] = set()
        self._proofs: OrderedDict[Slot, Equivocation] = OrderedDict()
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """What the records weigh, overhead included."""
        return self._bytes

    def held(self, slot: Slot) -> Record | None:
        """The record of a slot, expired or not; None when there is none."""
        held = self._keys.get(slot.key, {}).get((slot.owner, slot.subkey))
        return None if held is None else held.record

    def check(self, record: Record, *, max_per_owner: int, keep: Keep = Keep.REPLICA) -> None:
        """Whether `put` would take it, before its signature is looked at. Raises RecordRejected: "duplicate"
        (we have it), "older", "quota", "full". A record that would prove an equivocation passes, to have its
        signature checked, unless its slot has been proven false for that seq already."""
        held = self.held(record.slot)
        if held is not None:
            if held.digest == record.digest:
                raise RecordRejected("duplicate", "this very record is held already")
            if record.order < held.order and not self._is_new_proof(record, held):
                raise RecordRejected("older", f"seq {record.seq}; held is seq {held.seq}")
        else:
            owners = self._keys.get(record.key, {})
            if len(owners) >= self._config.max_records_per_key:
                raise RecordRejected("quota", f"{len(owners)} records under {record.key!r}")
            mine = sum(owner == record.owner for owner, _ in owners)
            if mine >= max_per_owner:
                raise RecordRejected("quota", f"{mine} records of {record.owner} under {record.key!r}")
        size = record_bytes(record) + _OVERHEAD_BYTES
        replaced = 0 if held is None else record_bytes(held) + _OVERHEAD_BYTES
        allowed = int(self._config.max_bytes * self._config.max_owner_share)
        if self._owner_bytes.get(record.owner, 0) + size - replaced > allowed:
            raise RecordRejected("quota", f"all records of {record.owner} here: at most {allowed} bytes")
        self._make_room(record, keep)

    def put(self, record: Record, *, max_per_owner: int, keep: Keep = Keep.REPLICA) -> tuple[Record, ...]:
        """Hold a record whose signature was checked. Returns what was evicted for it. Raises RecordRejected
        as `check` does; then nothing has changed, but for a proof of equivocation that may have been kept."""
        held = self.held(record.slot)
        if held is not None and is_equivocation(held, record):
            self.add_proof(Equivocation(held, record))
            if record.order < held.order:
                raise RecordRejected(
                    "older", "same seq as another record of this slot: kept as proof against its owner"
                )
        self.check(record, max_per_owner=max_per_owner, keep=keep)
        evicted = self._make_room(record, keep)
        for victim in evicted:
            self._drop(victim.slot)
        if held is not None:
            self._drop(record.slot)
        self._add(record, keep)
        return evicted

    def own_view(self) -> OwnView:
        """What a validator asks about records of our own."""
        return OwnView(self)

    def drop(self, slot: Slot) -> None:
        """Forget the record of a slot, if there is one."""
        if self.held(slot) is not None:
            self._drop(slot)

    def records(self, key: bytes, *, now: float) -> tuple[Record, ...]:
        """The live records under a key, tombstones included, sorted by (owner, subkey)."""
        owners = self._keys.get(key, {})
        return tuple(owners[place].record for place in sorted(owners) if not owners[place].record.is_expired(now))

    def owners(self, key: bytes) -> tuple[PeerID, ...]:
        """Who owns records under a key, sorted."""
        return tuple(sorted({owner for owner, _ in self._keys.get(key, {})}))

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
        slots = self._keys.get(key, {})
        places = sorted(
            place for place in slots if (after is None or place > after) and (owners is None or place[0] in owners)
        )
        chosen: list[Record] = []
        used = 0
        for place in places:
            record = slots[place].record
            if record.is_expired(now):
                continue
            used += record_bytes(record)
            if chosen and used > max_bytes:
                return Listing(tuple(chosen), more=True)
            chosen.append(record)
        return Listing(tuple(chosen), more=False)

    def expire(self, now: float) -> tuple[Record, ...]:
        """Drop and return what has expired."""
        gone: list[Record] = []
        while self._expiry and self._expiry[0][0] <= now * 1000:
            _, digest, key, owner, subkey = heapq.heappop(self._expiry)
            slot = Slot(key, owner, subkey)
            held = self.held(slot)
            if held is not None and held.digest == digest:  # else replaced since: that one has its own entry
                self._drop(slot)
                gone.append(held)
        return tuple(gone)

    def keys(self) -> tuple[bytes, ...]:
        """All keys held, the nearest to us first."""
        return tuple(key for _, key in self._by_distance)

    def __iter__(self) -> Iterator[Record]:
        """All records, nearest key first, then by (owner, subkey)."""
        for _, key in self._by_distance:
            for place in sorted(self._keys[key]):
                yield self._keys[key][place].record

    @property
    def proofs(self) -> tuple[Equivocation, ...]:
        """Equivocations seen, oldest first."""
        return tuple(self._proofs.values())

    @property
    def proof_count(self) -> int:
        """How many there are."""
        return len(self._proofs)

    def proof(self, slot: Slot) -> Equivocation | None:
        """What proves that a slot's owner equivocated there; None when nothing does."""
        return self._proofs.get(slot)

    def proofs_of(self, key: bytes) -> tuple[Equivocation, ...]:
        """The proofs about slots under a key, oldest first."""
        return tuple(proof for slot, proof in self._proofs.items() if slot.key == key)

    def has_proof(self, proof: Equivocation) -> bool:
        """Whether this slot's owner is proven to have equivocated at this seq or a later one already."""
        known = self._proofs.get(proof.first.slot)
        return known is not None and known.first.seq >= proof.first.seq

    def add_proof(self, proof: Equivocation) -> None:
        """Keep a proof that was checked; the oldest leaves when there are too many."""
        self._proofs.pop(proof.first.slot, None)
        self._proofs[proof.first.slot] = proof
        while len(self._proofs) > self._config.max_proofs:
            self._proofs.popitem(last=False)

    def has_digest(self, digest: bytes) -> bool:
        """Whether this very record is held."""
        return digest in self._digests

    def has(self, key: bytes) -> bool:
        """Whether there is any record under the key, expired or not."""
        return key in self._keys

    # -- inside --

    def _is_new_proof(self, record: Record, held: Record) -> bool:
        if not is_equivocation(held, record):
            return False
        proof = self._proofs.get(record.slot)
        return proof is None or proof.first.seq != record.seq

    def _make_room(self, record: Record, keep: Keep) -> tuple[Record, ...]:
        """What has to leave for a record; nothing has left yet. Raises RecordRejected("full") when that would
        be something with more right to stay."""
        held = self.held(record.slot)
        too_many = self._count + int(held is None) - self._config.max_records
        too_much = self._bytes + record_bytes(record) + _OVERHEAD_BYTES - self._config.max_bytes
        if held is not None:
            too_much -= record_bytes(held) + _OVERHEAD_BYTES
        victims: list[Record] = []
        if too_many <= 0 and too_much <= 0:
            return ()
        for victim in self._by_rank():
            if victim.slot == record.slot:
                continue
            if keep is Keep.REPLICA and self._rank(record) >= self._rank(victim):
                break
            victims.append(victim)
            too_many -= 1
            too_much -= record_bytes(victim) + _OVERHEAD_BYTES
            if too_many <= 0 and too_much <= 0:
                return tuple(victims)
        raise RecordRejected("full", "no room: what is held is nearer to this node, lives longer, or is its own")

    def _rank(self, record: Record) -> tuple[int, int, bytes]:
        """Greatest leaves first: far, then soon to expire."""
        return (key_of_record(record.key) ^ self._local, -record.expiry_ms, record.digest)

    def _by_rank(self) -> Iterator[Record]:
        """Replicas, the first to leave first."""
        for _, key in reversed(self._by_distance):
            held = [h.record for h in self._keys[key].values() if h.keep is Keep.REPLICA]
            yield from sorted(held, key=self._rank, reverse=True)

    def _add(self, record: Record, keep: Keep) -> None:
        size = record_bytes(record) + _OVERHEAD_BYTES
        owners = self._keys.get(record.key)
        if owners is None:
            owners = self._keys[record.key] = {}
            insort(self._by_distance, (key_of_record(record.key) ^ self._local, record.key))
        owners[record.owner, record.subkey] = _Held(record, keep, size)
        self._digests.add(record.digest)
        self._count += 1
        self._bytes += size
        self._owner_bytes[record.owner] = self._owner_bytes.get(record.owner, 0) + size
        heapq.heappush(self._expiry, (record.expiry_ms, record.digest, record.key, record.owner, record.subkey))
        if len(self._expiry) > 2 * self._count + 64:  # entries of replaced records: rebuild now and then
            self._expiry = [
                (h.record.expiry_ms, h.record.digest, h.record.key, h.record.owner, h.record.subkey)
                for owned in self._keys.values()
                for h in owned.values()
            ]
            heapq.heapify(self._expiry)

    def _drop(self, slot: Slot) -> None:
        owners = self._keys[slot.key]
        held = owners.pop((slot.owner, slot.subkey))
        self._digests.discard(held.record.digest)
        if not owners:
            del self._keys[slot.key]
            entry = (key_of_record(slot.key) ^ self._local, slot.key)
            del self._by_distance[bisect_left(self._by_distance, entry)]
        self._count -= 1
        self._bytes -= held.size
        left = self._owner_bytes[slot.owner] - held.size
        if left:
            self._owner_bytes[slot.owner] = left
        else:
            del self._owner_bytes[slot.owner]
