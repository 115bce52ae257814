"""Inventories, and the evidence that follows from enough of them. PURE.

Every validator signs one inventory: the digests of the valid records it holds when the epoch ends. The evidence is
exactly the records that f+1 of n-f inventories name. A record that every honest validator names is in whatever a
proposer takes; one that no honest validator names never is.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass

from mesh.consensus.context import RoundContext, Thresholds, check_inventory, check_record
from mesh.consensus.wire import (
    MAX_DIGESTS,
    MAX_EVIDENCE_BYTES,
    MAX_INVENTORY_RECORD_BYTES,
    TOO_FEW_INVENTORIES,
    Inventory,
)
from mesh.errors import ConsensusError
from mesh.kad.record import Record
from mesh.peer import PeerID


def select_records(
    records: Iterable[Record],
    ctx: RoundContext,
    *,
    max_records: int = MAX_DIGESTS,
    max_bytes: int = MAX_INVENTORY_RECORD_BYTES,
) -> tuple[Record, ...]:
    """The valid ones among `records` that fit an inventory, sorted by digest.

    When there are too many, owners share the room (each with its own in the order of their digests): a record is taken
    before another if its owner has taken less up to and with it. So whoever floods the epoch displaces its own records
    first, and an owner's first `max_bytes // owners` bytes are always in, a record counting as no less than its part of
    `max_bytes`.
    """
    own: dict[PeerID, dict[bytes, Record]] = {}
    for record in records:
        try:
            check_record(record, ctx)
        except ConsensusError:
            continue  # a store also holds what is no evidence: other epochs' records, owners who came later
        own.setdefault(record.owner, {})[record.digest] = record
    least = max_bytes // max_records
    queue: list[tuple[int, PeerID, bytes, int]] = []
    for owner, theirs in own.items():
        taken = 0
        for digest, record in sorted(theirs.items()):
            cost = max(least, len(record.to_bytes()))
            taken += cost
            queue.append((taken, owner, digest, cost))
    room = max_bytes
    chosen: dict[bytes, Record] = {}
    for _, owner, digest, cost in sorted(queue):
        if cost <= room and len(chosen) < max_records:
            room -= cost
            chosen[digest] = own[owner][digest]
    return tuple(record for _, record in sorted(chosen.items()))


def make_inventory(records: Iterable[Record], ctx: RoundContext) -> Inventory:
    """Our inventory of what we hold."""
    return inventory_of(select_records(records, ctx), ctx)


def inventory_of(selected: Iterable[Record], ctx: RoundContext) -> Inventory:
    """The inventory that names what `select_records` chose."""
    return Inventory(
        epoch=ctx.epoch, snapshot=ctx.snapshot.block.hash, digests=tuple(record.digest for record in selected)
    )


class Added(enum.Enum):
    """What a record changed in a book."""

    NEW = enum.auto()
    """Its owner had no inventory here."""
    KNOWN = enum.auto()
    """Nothing of note."""
    PROOF = enum.auto()
    """Its owner has signed two: now neither counts."""


class InventoryBook:
    """The inventories of one epoch as they become known, at most two per validator.

    The second, different one voids both and is kept as the proof. A record that only repeats the value (a refresh
    raises its seq) is the same inventory; the one with the lowest digest stands for it.
    """

    def __init__(self, ctx: RoundContext) -> None:
        self._ctx = ctx
        self._by_owner: dict[PeerID, tuple[Record, ...]] = {}
        self._inventories: dict[PeerID, Inventory] = {}
        """The first of each owner; the only one, where it stands."""

    def add(self, record: Record) -> Added:
        """Take a record in. Raises ConsensusError("inventory") when it is none of this epoch."""
        known = self._by_owner.get(record.owner, ())
        if len(known) > 1 or any(record.digest == other.digest for other in known):
            return Added.KNOWN
        inventory = check_inventory(record, self._ctx)
        if not known:
            self._by_owner[record.owner] = (record,)
            self._inventories[record.owner] = inventory
            return Added.NEW
        if known[0].value == record.value:
            self._by_owner[record.owner] = (min(known[0], record, key=lambda r: r.digest),)
            return Added.KNOWN
        self._by_owner[record.owner] = (known[0], record)
        return Added.PROOF

    def valid(self) -> dict[PeerID, tuple[Record, Inventory]]:
        """By owner, those that stand: owners with exactly one."""
        return {
            owner: (records[0], self._inventories[owner])
            for owner, records in sorted(self._by_owner.items())
            if len(records) == 1
        }

    def proofs(self) -> dict[PeerID, tuple[Record, Record]]:
        """By owner, the two inventories that prove its equivocation."""
        return {
            owner: (records[0], records[1]) for owner, records in sorted(self._by_owner.items()) if len(records) == 2
        }

    def heard(self) -> frozenset[PeerID]:
        """Owners of whom any inventory is known."""
        return frozenset(self._by_owner)

    def records(self, owners: Collection[PeerID]) -> tuple[Record, ...]:
        """What is known of these owners, proofs included."""
        return tuple(r for owner in sorted(owners) for r in self._by_owner.get(owner, ()))


@dataclass(frozen=True, slots=True)
class Choice:
    """Inventories to build on and the evidence that follows from them."""

    owners: tuple[PeerID, ...]
    digests: tuple[bytes, ...]


def named(inventories: Iterable[Inventory], naming: int) -> tuple[bytes, ...]:
    """Digests that at least `naming` of the inventories name, ascending."""
    counts = Counter(digest for inventory in inventories for digest in inventory.digests)
    return tuple(sorted(digest for digest, count in counts.items() if count >= naming))


def choose(
    inventories: Mapping[PeerID, Inventory],
    *,
    held: Set[bytes],
    limits: Thresholds,
    sizes: Mapping[bytes, int] | None = None,
    max_bytes: int = MAX_EVIDENCE_BYTES,
) -> Choice:
    """All inventories, less those that make us need records we could not get or more of them than fit a blob, while
    enough remain.

    `sizes` are the bytes of records in `held`. Of n-f honest inventories the evidence always fits (MAX_EVIDENCE_BYTES):
    where it does not, some inventory names more than an honest one may, and the one that names most is left out.
    Raises ConsensusError("too-few-inventories"), ("missing-records") or ("too-large") when there is no way to a
    complete blob; with f dishonest or unlucky validators there is one.
    """
    if len(inventories) < limits.need:
        raise ConsensusError(TOO_FEW_INVENTORIES, f"{len(inventories)} of {limits.need}")
    left = dict(sorted(inventories.items()))
    while True:
        digests = named(left.values(), limits.naming)
        missing = set(digests) - held
        weights = dict.fromkeys(missing, 1) if missing else {digest: (sizes or {}).get(digest, 0) for digest in digests}
        if not missing and sum(weights.values()) <= max_bytes:
            return Choice(tuple(left), digests)
        if len(left) == limits.need:
            if missing:
                raise ConsensusError(
                    "missing-records",
                    f"{len(missing)} records are named by {limits.naming} validators but none gave them to us, "
                    f"such as {min(missing).hex()}",
                )
            raise ConsensusError("too-large", f"the evidence has {sum(weights.values())} bytes, over {max_bytes}")
        del left[max(left, key=lambda owner: (sum(weights.get(d, 0) for d in left[owner].digests), owner))]
