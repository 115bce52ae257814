"""What comes of reading and writing: a Found for a get, a StoreReport for a put."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from mesh.errors import RecordNotFound
from mesh.kad.equivocation import Equivocation
from mesh.kad.record import Record, Slot
from mesh.peer import PeerID


class Want(enum.Enum):
    """What a get is content with."""

    LATEST = enum.auto()
    """The newest valid record of every slot that the closest peers hold."""
    FIRST = enum.auto()
    """The first answer that holds something valid, perhaps our own or a cached one: faster, and possibly not the
    newest."""


@dataclass(frozen=True, slots=True)
class Found(Sequence[Record]):
    """The live records under a key, sorted by (owner, subkey), deleted ones left out; a sequence of them."""

    key: bytes
    records: tuple[Record, ...]
    answered: int = 0
    """Nodes that said what they hold, ourselves included where we hold anything."""
    holders: Mapping[Slot, int] = field(default_factory=dict)
    """How many of these hold exactly the record that is here."""
    at: float = 0.0
    """Unix seconds by our clock when we began to ask."""
    age_s: float = 0.0
    """How long before this get was called that was: more than 0 for an answer from the cache or of a lookup that
    another get had begun."""
    proofs: tuple[Equivocation, ...] = ()
    """Owners of such records caught signing two for one place and seq."""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...

    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def agreed(self) -> int:
        """How many nodes hold exactly what is here, for the record that fewest of them hold."""
        return min((self.holders.get(record.slot, 0) for record in self.records), default=0)

    def of(self, owner: PeerID, subkey: bytes = b"") -> Record:
        """The record of one owner. Raises RecordNotFound."""
        for record in self.records:
            if record.owner == owner and record.subkey == subkey:
                return record
        raise RecordNotFound(f"{owner} stored nothing under {self.key!r}, subkey {subkey!r}")


@dataclass(frozen=True, slots=True)
class StoreReport:
    """How a put ended: who holds the record now besides us, and who refused it, with the reason. False when nobody else
    holds it."""

    record: Record
    stored: tuple[PeerID, ...]
    refused: Mapping[PeerID, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.stored)


@dataclass(frozen=True, slots=True)
class Change:
    """News of a watched key: `record` is what holds now of its slot, a tombstone when it was deleted; `before` what
    was known until then."""

    record: Record
    before: Record | None = None
