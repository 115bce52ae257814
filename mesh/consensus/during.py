"""A predicate for NamespaceRule: records of an epoch may be stored only in one of its named windows. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mesh.chain.windows import SLACK_BLOCKS, Window, Windows
from mesh.errors import RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, StoreWindow

Name = Literal["claim_commit", "reveal", "vote_commit", "vote_reveal"]


COMMIT_SLACK_BLOCKS: Final = 1
"""How late a commitment is still stored. Less than for other records: it must be closed at every store before what it
could be chosen after is known anywhere (the draw block for claims, the first reveal for votes)."""
_COMMITS: Final = ("claim_commit", "vote_commit")


@dataclass(frozen=True, slots=True)
class During:
    """Lets records under `<namespace>/<epoch>` in while the window `name` of that epoch is open, give or take a few
    blocks. The offsets follow from the epoch's length (mesh.chain.windows)."""

    name: Name

    def __call__(self, record: Record, position: BlockPosition | None) -> None:
        if position is None:
            raise RecordRejected("window", "this node does not know the chain's block yet")
        first, last = bounds(self.name, position.length)
        StoreWindow(first, last, 0)(record, position)


def bounds(name: Name, length: int) -> tuple[int, int]:
    """First and last offset at which a store takes records of this window, in epochs of `length` blocks."""
    when: Window = getattr(Windows.of(length), name)
    return when.first - SLACK_BLOCKS, when.last + (COMMIT_SLACK_BLOCKS if name in _COMMITS else SLACK_BLOCKS)
