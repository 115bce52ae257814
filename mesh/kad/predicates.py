"""What the records of a namespace may be called and when they may be stored, beyond their form and size.

A predicate judges a record and the block this node sees; a rule has any number of them, and all must hold. What is
about the moment of storing (`window`, `no_backdating`) is not asked again when the record is read.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from mesh.errors import ConfigError, RecordRejected
from mesh.kad.record import Record

_EPOCH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class BlockPosition:
    """Where the best block stands in the subnet's epochs, as this node sees it."""

    block: int
    epoch: int
    offset: int
    """Blocks since the epoch's first block."""
    length: int
    """Blocks in an epoch."""

    def offset_in(self, epoch: int) -> int:
        """Blocks since the first block of another epoch: negative before it, beyond `length` after it."""
        return self.offset + (self.epoch - epoch) * self.length


Predicate = Callable[[Record, BlockPosition | None], None]
"""Raises RecordRejected. What raises it with reason "window" holds for storing only, not for reading.

A tombstone, whose value is empty, is shown to all of them. Of what they raise then only a "window" counts, unless they
judge the PLACE: else a commitment could be deleted after its window has closed.
"""


class Judges(enum.Enum):
    """What a predicate looks at; one that does not say looks at the value."""

    VALUE = enum.auto()
    """What it says of tombstones, which have none, does not count, but for a closed window."""
    PLACE = enum.auto()
    """Key and subkey: a tombstone takes a place as any record does."""


@dataclass(frozen=True, slots=True)
class StoreWindow:
    """A predicate: records of `<namespace>/<epoch>` and `<namespace>/<epoch>/…` are accepted for storing only
    from block `first` to block `last` of that epoch, counted from its first block (more than the epoch's
    length reaches into the next), give or take `slack` blocks. A node that does not know the block
    refuses."""

    first: int
    last: int
    slack: int = 2

    def __call__(self, record: Record, position: BlockPosition | None) -> None:
        """Raises RecordRejected("window")."""
        epoch = epoch_of(record.key)
        if position is None:
            raise RecordRejected("window", "this node does not know the chain's block yet")
        offset = position.offset_in(epoch)
        if not self.first - self.slack <= offset <= self.last + self.slack:
            raise RecordRejected(
                "window",
                f"{record.key!r} is stored from block {self.first} to {self.last} of epoch {epoch} "
                f"(± {self.slack}); now is its block {offset}",
            )

    def at(self, record: Record, position: BlockPosition | None, now: float) -> None:
        """The same at `now`, in unix seconds, for windows that ask the clock too."""
        self(record, position)


def window(first: int, last: int, slack: int = 2) -> StoreWindow:
    """The predicate that lets records in only while their epoch's window is open; see `StoreWindow`."""
    return StoreWindow(first, last, slack)


@dataclass(frozen=True, slots=True)
class NoBackdating(StoreWindow):
    """Records about an epoch are stored from its first block until `later` epochs after it are over, and their seq,
    which is the owner's clock, does not say that they were made before the epoch began.

    When that was follows from the block: `block_s` seconds per block ago, or earlier where blocks were missed, for
    which it allows half as much again. Within the epoch nobody but the owner knows when it signed: a seq that lies
    between its start and now proves nothing, and a commitment must be closed by its `window`. A seq that lies too far
    ahead is refused for every record (RecordValidator).
    """

    later: int = 0
    block_s: float = 6.0
    slack_s: float = 10.0

    MISSED_BLOCKS: ClassVar[float] = 1.5
    """The longest a chain takes for its blocks, in `block_s` each (a guess: a third of all missed)."""

    def __call__(self, record: Record, position: BlockPosition | None) -> None:
        """The blocks only: what needs no clock. Raises RecordRejected("window")."""
        last = self.last if position is None else (1 + self.later) * position.length - 1
        StoreWindow(0, last, self.slack)(record, position)

    def at(self, record: Record, position: BlockPosition | None, now: float) -> None:
        """Raises RecordRejected: "window", "backdated"."""
        self(record, position)
        assert position is not None  # else the window was closed
        elapsed_s = max(0, position.offset_in(epoch_of(record.key))) * self.block_s * self.MISSED_BLOCKS
        earliest_ms = (now - elapsed_s - self.slack_s) * 1000
        if record.seq < earliest_ms:
            raise RecordRejected(
                "backdated",
                f"its seq is {(earliest_ms - record.seq) / 1000:.0f} s before {record.key!r}'s epoch can have begun",
            )


def no_backdating(*, later: int = 0, block_s: float = 6.0, slack: int = 2, slack_s: float = 10.0) -> NoBackdating:
    """The predicate against records made before or after the epochs they are about; see `NoBackdating`. `slack` in
    blocks, `slack_s` for clocks. Raises ConfigError."""
    if later < 0 or block_s <= 0 or slack < 0 or slack_s < 0:
        raise ConfigError("no_backdating: later, slack and slack_s are not negative, block_s is positive")
    return NoBackdating(0, 0, slack, later, block_s, slack_s)


@dataclass(frozen=True, slots=True)
class OncePerEpoch:
    """An owner has one record per epoch under a namespace. As slots are (key, owner, subkey), that takes no counting
    (which no node could do: other keys lie elsewhere) but one spelling: the key is exactly `<namespace>/<epoch>`, and
    there is no subkey. A newer seq replaces it; two of one seq are a proof against their owner."""

    judges: ClassVar[Judges] = Judges.PLACE

    def __call__(self, record: Record, position: BlockPosition | None) -> None:
        """Raises RecordRejected: "key", "subkey"."""
        epoch_of(record.key)
        if record.key.count(b"/") != 1:
            raise RecordRejected("key", f"{record.key!r}: once per epoch is under <namespace>/<epoch>, nothing behind")
        if record.subkey:
            raise RecordRejected("subkey", f"{record.key!r} holds one record per owner, without a subkey")


def once_per_epoch() -> OncePerEpoch:
    """The predicate for one record per owner and epoch; see `OncePerEpoch`."""
    return OncePerEpoch()


def epoch_of(key: bytes) -> int:
    """The epoch in `<namespace>/<epoch>` or `<namespace>/<epoch>/…`. Raises RecordRejected("key")."""
    part = key.split(b"/", 2)[1:2]
    if not part or not _EPOCH.fullmatch(part[0]):
        raise RecordRejected("key", f"{key!r} names no epoch: <namespace>/<epoch>[/…], decimal without zeros before")
    return int(part[0])
