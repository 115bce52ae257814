"""Layered key-value state: changes are kept apart until they are wanted.

PURE. A block writes into an overlay over the chain's state, a call into an overlay over the block's, so a
failed call is undone by dropping its overlay.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol

NO_ROOT: Final = bytes(32)
"""The root of an empty state."""


class ReadState(Protocol):
    """Something that answers for raw storage keys."""

    def get(self, key: bytes) -> bytes | None:
        """The raw value, or None."""

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """The keys under `prefix`, ascending."""


class MemoryState:
    """The state of one block, wholly in memory: a dict and its keys in order."""

    def __init__(self, values: dict[bytes, bytes] | None = None) -> None:
        self._values = dict(values or {})
        self._order = sorted(self._values)

    def get(self, key: bytes) -> bytes | None:
        """The raw value, or None."""
        return self._values.get(key)

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """The keys under `prefix`, ascending; a snapshot, so the state may change meanwhile."""
        first = bisect_left(self._order, prefix)
        found = []
        for place in range(first, len(self._order)):
            key = self._order[place]
            if not key.startswith(prefix):
                break
            found.append(key)
        return iter(found)

    def apply(self, changes: dict[bytes, bytes | None]) -> None:
        """Take over an overlay's changes; None deletes."""
        for key, value in changes.items():
            known = key in self._values
            if value is None:
                if known:
                    del self._values[key]
                    del self._order[bisect_left(self._order, key)]
            else:
                if not known:
                    insort(self._order, key)
                self._values[key] = value

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All pairs, keys ascending."""
        return iter([(key, self._values[key]) for key in self._order])


class Overlay:
    """Changes over another state. `changes` maps a raw key to its new value, or None where it was removed."""

    def __init__(self, below: ReadState) -> None:
        self.below = below
        self.changes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """The raw value as changed here, else as it is below."""
        if key in self.changes:
            return self.changes[key]
        return self.below.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set a raw value, or remove it with None."""
        self.changes[key] = value

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """The keys under `prefix`, ascending; a snapshot."""
        touched = {key: value for key, value in self.changes.items() if key.startswith(prefix)}
        if not touched:
            return self.below.keys(prefix)
        kept = [key for key in self.below.keys(prefix) if key not in touched]
        kept += [key for key, value in touched.items() if value is not None]
        return iter(sorted(kept))

    def commit(self) -> None:
        """Push the changes into the overlay below; `TypeError` when what is below is not one."""
        if not isinstance(self.below, Overlay):
            raise TypeError("only an overlay over an overlay can be committed downwards")
        self.below.changes.update(self.changes)
        self.changes = {}


def moved_root(root: bytes, below: ReadState, changes: Mapping[bytes, bytes | None]) -> bytes:
    """The root of the state that `changes` make of `below`, whose root is `root`.

    A root is the sum, modulo 2**256, of a hash of each entry: whoever has the whole state can check it, a change moves
    it by itself alone, and nothing can be proven to somebody who has a part. It finds damage, not malice.
    """
    total = int.from_bytes(root, "little")
    for key, value in changes.items():
        old = below.get(key)
        if old != value:
            total += (0 if value is None else _entry(key, value)) - (0 if old is None else _entry(key, old))
    return (total % (1 << 256)).to_bytes(32, "little")


def root_of(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The root of a whole state."""
    return moved_root(NO_ROOT, MemoryState(), dict(entries))


def _entry(key: bytes, value: bytes) -> int:
    digest = hashlib.blake2b(len(key).to_bytes(4, "little") + key + value, digest_size=32).digest()
    return int.from_bytes(digest, "little")
