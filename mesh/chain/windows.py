"""When things happen inside a subnet epoch, as block offsets from its first block. PURE.

The offsets are set for epochs of 20 blocks and scaled for other lengths; everything is counted in blocks of the chain,
never in seconds of a node's own clock. Work of epoch e happens in e; its proposal and attestations in e + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from mesh.errors import ConfigError

BASE_LENGTH: Final = 20
MIN_LENGTH: Final = 20  # shorter epochs leave no room between draw, votes and inventory

SLACK_BLOCKS: Final = 2
"""Stores accept records this many blocks outside a window: heads reach nodes at different moments."""


@dataclass(frozen=True, slots=True)
class Window:
    """Offsets `first` to `last`, both included."""

    first: int
    last: int

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and self.first <= offset <= self.last


@dataclass(frozen=True, slots=True)
class Windows:
    """The calendar of one epoch. `propose_by` and `attest_by` count in the epoch after the work."""

    length: int
    claim_commit: Window
    draw: int
    reveal: Window
    vote_commit: Window
    vote_reveal: Window
    inventory: int
    propose_by: int
    attest_by: int

    @classmethod
    def of(cls, length: int) -> Self:
        """For epochs of `length` blocks. Raises ConfigError below 20."""
        if length < MIN_LENGTH:
            raise ConfigError(f"epochs of {length} blocks are too short: at least {MIN_LENGTH} are needed")

        def at(offset: int) -> int:
            return offset * length // BASE_LENGTH

        def window(first: int, last: int) -> Window:
            return Window(at(first), at(last + 1) - 1)

        return cls(
            length=length,
            claim_commit=window(0, 5),
            draw=at(7),
            reveal=window(8, 15),
            vote_commit=window(8, 14),  # a block shorter than revealing: see mesh.consensus.during
            vote_reveal=window(16, 18),
            inventory=at(19),
            propose_by=at(4),
            attest_by=at(14),
        )
