"""An epoch recomputed from its blob: what anybody needs to check a proposal long after it was made. PURE.

    found = replay(data, ctx, draw_hash=draw, score=subnet.score, proposed=submission.scores)
    print(found.judgement.decision, found.judgement.detail)

`data` is the blob named by the proposal's args, `ctx` is made of the state at the first block of the work's epoch. No
vote, no clock and no network comes into it: two people with the same blob get the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from mesh.chain.types import Score
from mesh.consensus.round import (
    Blob,
    Decision,
    Judgement,
    RoundContext,
    checks,
    collapsed,
    decode_blob,
    eligible,
    evidence_of,
    judge_scores,
    judgement_of,
)
from mesh.errors import ConsensusError, RemoteProtocolError
from mesh.kad.record import Record
from mesh.peer import PeerID
from mesh.subnet import Evidence

ScoreFunction = Callable[[Evidence], Sequence[Score]]

_U128: Final = 2**128


@dataclass(frozen=True, slots=True)
class Difference:
    """One node whose score on chain is not what the evidence is worth; None: no score."""

    node_id: int
    proposed: int | None
    recomputed: int | None


@dataclass(frozen=True, slots=True)
class Replay:
    """What a blob says, and whether the chain holds what it is worth."""

    judgement: Judgement
    """What an honest validator does about the proposal; a refusal names the first thing that is wrong."""
    inventories: int = 0
    """Validators whose inventory counts."""
    equivocators: tuple[PeerID, ...] = ()
    """Validators that signed two inventories, both of which are in the blob; neither counts."""
    records: tuple[Record, ...] = ()
    """Records in the blob, sorted by digest; the evidence where the blob is valid."""
    by_owner: Mapping[PeerID, int] = field(default_factory=dict)
    """How many of these each owner has."""
    scores: tuple[Score, ...] = ()
    """Recomputed; empty where the blob is invalid or nothing was earned."""
    differences: tuple[Difference, ...] = ()
    """Nodes whose score on chain differs, by node id, those included that the chain leaves out because of their
    class: `judgement` forgives these. Empty where the blob is invalid."""

    @property
    def is_right(self) -> bool:
        """Whether an honest validator attests the proposal."""
        return self.judgement.decision is Decision.ATTEST


def recompute(score: ScoreFunction, evidence: Evidence) -> tuple[Score, ...]:
    """The subnet's scores of an epoch's evidence, ascending by node id, each id once.

    Raises ConsensusError("score-failed") when the scoring function raises or returns what the chain cannot hold: the
    subnet's fault, never the proposer's.
    """
    try:
        scores = collapsed(score(evidence))
        if not all(type(value) is int and 0 <= value < _U128 for value in scores.values()):
            raise ValueError("a score is an integer from 0 to 2**128 - 1")
    except Exception as error:  # a subnet's code: whatever it raises must not end the node
        raise ConsensusError("score-failed", f"{type(error).__name__}: {error}") from error
    return tuple(Score(node_id, value) for node_id, value in scores.items())


def evidence_for(ctx: RoundContext, records: Sequence[Record], *, draw_hash: bytes) -> Evidence:
    """What a scoring function gets of the records that `evidence_of` returned."""
    return Evidence(
        epoch=ctx.epoch,
        subnet_id=ctx.subnet_id,
        genesis=ctx.genesis,
        snapshot=ctx.snapshot,
        draw_hash=draw_hash,
        records=tuple(records),
    )


def replay(
    data: bytes,
    ctx: RoundContext,
    *,
    draw_hash: bytes,
    score: ScoreFunction,
    proposed: Sequence[Score],
    eligible_ids: Set[int] | None = None,
) -> Replay:
    """Recompute an epoch from its blob and compare it with the proposal's scores.

    `draw_hash` is the hash of the draw block of the work's epoch, `proposed` what the chain holds. The chain keeps no
    score of a node that is not Included when the proposal is made: `eligible_ids` are those that were (`eligible` of
    the snapshots at the next epoch's first block and at the proposal's block); without it, those of the work's epoch.
    Raises nothing for a bad blob: the judgement says what is wrong with it.
    """
    try:
        blob = decode_blob(data)
    except RemoteProtocolError as error:
        return Replay(judgement_of(error))
    owners = Counter(record.owner for record in blob.inventories)
    judgement, scores, differences = _compare(blob, ctx, draw_hash, score, proposed, eligible_ids)
    return Replay(
        judgement,
        inventories=sum(count == 1 for count in owners.values()),
        equivocators=tuple(sorted(owner for owner, count in owners.items() if count > 1)),
        records=blob.records,
        by_owner=dict(sorted(Counter(record.owner for record in blob.records).items())),
        scores=scores,
        differences=differences,
    )


def _compare(
    blob: Blob,
    ctx: RoundContext,
    draw_hash: bytes,
    score: ScoreFunction,
    proposed: Sequence[Score],
    eligible_ids: Set[int] | None,
) -> tuple[Judgement, tuple[Score, ...], tuple[Difference, ...]]:
    try:
        for _ in checks(blob, ctx):
            pass
        scores = recompute(score, evidence_for(ctx, evidence_of(blob, ctx), draw_hash=draw_hash))
    except ConsensusError as error:
        return judgement_of(error), (), ()
    allowed = eligible(ctx.snapshot, epoch=ctx.epoch) if eligible_ids is None else eligible_ids
    ours, theirs = collapsed(scores), collapsed(proposed)
    differences = tuple(
        Difference(node_id, theirs.get(node_id), ours.get(node_id))
        for node_id in sorted(ours.keys() | theirs.keys())
        if ours.get(node_id) != theirs.get(node_id)
    )
    return judge_scores(scores, proposed, eligible_ids=allowed), scores, differences
