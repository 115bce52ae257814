"""A predicate for NamespaceRule: records of an epoch may be stored only in one of its named windows. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mesh.chain.windows import SLACK_BLOCKS, Window, Windows
from mesh.errors import RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, StoreWindow

Name = Literal["claim_commit", "reveal", "vote_commit", "vote_reveal"]


@dataclass(frozen=True, slots=True)
class During:
    """Lets records under `<namespace>/<epoch>` in while the window `name` of that epoch is open, give or take `slack`
    blocks. The offsets follow from the epoch's length (mesh.chain.windows)."""

    name: Name
    slack: int = SLACK_BLOCKS

    def __call__(self, record: Record, position: BlockPosition | None) -> None:
        if position is None:
            raise RecordRejected("window", "this node does not know the chain's block yet")
        when: Window = getattr(Windows.of(position.length), self.name)
        StoreWindow(when.first, when.last, self.slack)(record, position)
