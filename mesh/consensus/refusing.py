"""Whether a refusal is right: anybody can check what a validator said against a proposal. PURE."""

from __future__ import annotations

import enum
from collections.abc import Sequence, Set

from mesh.chain.types import Score
from mesh.consensus.context import RoundContext
from mesh.consensus.inventories import InventoryBook
from mesh.consensus.judging import Decision, judge_empty, judgement_of, read_proposal
from mesh.consensus.replay import ScoreFunction, replay
from mesh.consensus.wire import Refusal, decode_blob
from mesh.content.merkle import digest_of
from mesh.errors import ConsensusError, RemoteProtocolError


class Standing(enum.Enum):
    """What a check makes of a refusal."""

    CONFIRMED = enum.auto()
    """The proposal has the fault that the refusal names."""
    REFUTED = enum.auto()
    """It does not."""
    OPEN = enum.auto()
    """It takes a blob that is not at hand, or says that there was none to be had."""


def check_refusal(
    refusal: Refusal,
    ctx: RoundContext,
    *,
    args: bytes | None,
    proposed: Sequence[Score],
    draw_hash: bytes,
    score: ScoreFunction,
    eligible_ids: Set[int] | None = None,
    blob: bytes | None = None,
    witness: bytes | None = None,
) -> Standing:
    """Check a refusal of the proposal with these `args` and scores.

    `blob` is the proposal's evidence, `witness` the refusal's, where they could be had; the rest as for `replay`. Who
    signed the refusal is for the caller to check, as for every record.
    """
    if refusal.epoch != ctx.epoch:
        return Standing.REFUTED
    try:
        claim = read_proposal(args, ctx)
    except ConsensusError as error:
        judgement = judgement_of(error)
        return _said(judgement.decision is Decision.REFUSE and judgement.reason == refusal.reason)
    if refusal.evidence != claim.evidence:
        return Standing.REFUTED
    if not claim.evidence:
        if refusal.reason == "had-inventories" and not proposed:
            return _check_witness(refusal, ctx, witness)
        return _said(refusal.reason == "scores" and bool(proposed))
    if refusal.reason == "unavailable" or blob is None or digest_of(blob) != claim.evidence:
        return Standing.OPEN
    if len(blob) != claim.size:
        return _said(refusal.reason == "size")
    found = replay(blob, ctx, draw_hash=draw_hash, score=score, proposed=proposed, eligible_ids=eligible_ids).judgement
    return _said(found.decision is Decision.REFUSE and found.reason == refusal.reason)


def _check_witness(refusal: Refusal, ctx: RoundContext, witness: bytes | None) -> Standing:
    """Whether the inventories that an empty proposal denied are in the witness."""
    if witness is None or digest_of(witness) != refusal.witness:
        return Standing.OPEN
    book = InventoryBook(ctx)
    try:
        for record in decode_blob(witness).inventories:
            book.add(record)
    except (ConsensusError, RemoteProtocolError):
        return Standing.REFUTED
    standing = len(book.valid())
    judgement = judge_empty((), standing=standing, heard=standing, limits=ctx.thresholds)
    return _said(judgement.reason == refusal.reason)


def _said(is_right: bool) -> Standing:
    return Standing.CONFIRMED if is_right else Standing.REFUTED
