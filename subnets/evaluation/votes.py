"""Votes on a number that several nodes measured: who agrees, what was found, who failed. PURE, integers only.

A quorum of `size` nodes was drawn. Each first commits, then reveals. What counts are the revealed votes whose commit
is in evidence and matches. With a majority of the quorum counted, their (lower) median is the finding; votes further
from it than the tolerance are wrong. The finding stands only if a majority of the quorum agrees with it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

VoteT = TypeVar("VoteT")


class Ballot(enum.Enum):
    """What became of one quorum member's vote."""

    AGREED = "agreed"
    OUTSIDE = "outside-tolerance"
    UNREVEALED = "unrevealed"
    MISMATCH = "mismatch"
    """What was revealed is not what was committed, or one place was signed twice with different values."""
    UNCOMMITTED = "uncommitted"
    """Revealed without a commit in evidence: it may have been copied from others."""
    SILENT = "silent"
    UNDECIDED = "undecided"
    """A valid vote in a quorum without a majority: neither right nor wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one quorum. `median` is None when there was no majority."""

    median: int | None
    ballots: tuple[tuple[int, Ballot], ...]
    """(node id, ballot) of every quorum member, in the quorum's order."""

    def having(self, ballot: Ballot) -> tuple[int, ...]:
        """Node ids with this ballot."""
        return tuple(node for node, one in self.ballots if one is ballot)


FAULTS: Final = frozenset({Ballot.OUTSIDE, Ballot.UNREVEALED, Ballot.MISMATCH})
"""Votes that cost a share: else one could commit to everything and reveal what suits."""


def lower_median(values: Sequence[int]) -> int:
    """The median; of two middle values the lower one, so that it is always a value somebody measured."""
    return sorted(values)[(len(values) - 1) // 2]


def decide(quorum: Sequence[int], votes: Mapping[int, int | Ballot], *, tolerance: int) -> Finding:
    """Judge a quorum. `votes`: by node id, the counted value, or the ballot that says why there is none; members
    left out are silent. Nodes outside the quorum are ignored."""
    counted = {node: vote for node in quorum if isinstance(vote := votes.get(node, Ballot.SILENT), int)}
    majority = len(quorum) // 2 + 1
    median = lower_median(list(counted.values())) if len(counted) >= majority else None
    agreeing = [n for n, v in counted.items() if median is not None and abs(v - median) <= tolerance]
    if len(agreeing) < majority:
        median = None

    def ballot(node: int) -> Ballot:
        vote = votes.get(node, Ballot.SILENT)
        if not isinstance(vote, int):
            return vote
        if median is None:
            return Ballot.UNDECIDED
        return Ballot.AGREED if abs(vote - median) <= tolerance else Ballot.OUTSIDE

    return Finding(median, tuple((node, ballot(node)) for node in quorum))


def revealed(
    commits: Collection[bytes], reveals: Sequence[VoteT], commitment_of: Callable[[VoteT], bytes]
) -> VoteT | Ballot:
    """The vote that counts among what one member committed and revealed on one thing, or why none does."""
    if not commits:
        return Ballot.UNCOMMITTED if reveals else Ballot.SILENT
    if not reveals:
        return Ballot.UNREVEALED
    if len(set(commits)) > 1:
        return Ballot.MISMATCH
    return next((vote for vote in reveals if commitment_of(vote) in commits), Ballot.MISMATCH)
