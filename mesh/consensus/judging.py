"""Whether a proposal is right: decided from its blob and the epoch's context, and so the same for everybody. PURE."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final

from mesh.chain.types import NodeClass, Score, Snapshot
from mesh.consensus.context import RoundContext, Thresholds, check_inventory, check_record
from mesh.consensus.inventories import named
from mesh.consensus.wire import (
    MAX_BLOB_BYTES,
    MAX_DETAIL,
    TOO_FEW_INVENTORIES,
    Blob,
    Inventory,
    ProposalArgs,
    decode_args,
    decode_blob,
)
from mesh.errors import ConsensusError, RemoteProtocolError
from mesh.kad.record import Record
from mesh.kad.validator import unpack_value
from mesh.peer import PeerID


def checks(blob: Blob, ctx: RoundContext) -> Iterator[None]:
    """Checks every inventory and record, one per step (a signature each: the caller may let others run between).
    Raises ConsensusError("inventory" or "record")."""
    for record in blob.inventories:
        check_inventory(record, ctx)
        yield
    for record in blob.records:
        check_record(record, ctx)
        yield


def evidence_of(blob: Blob, ctx: RoundContext) -> tuple[Record, ...]:
    """The evidence of a blob that passed `checks`, sorted by digest.

    Raises ConsensusError: "inventories" (the same one twice, or more than two of an owner), "too-few-inventories",
    "unlisted" (a record too few name), "dropped" (a record is missing that enough name).
    """
    by_owner: dict[PeerID, list[Record]] = {}
    for record in blob.inventories:
        by_owner.setdefault(record.owner, []).append(record)
    standing = []
    for owner, records in by_owner.items():
        if len(records) == 1:
            standing.append(unpack_value(Inventory, records[0].value))
        elif len(records) > 2 or records[0].value == records[1].value:
            raise ConsensusError("inventories", f"of {owner} come {len(records)} times without proving anything")
    limits = ctx.thresholds
    if len(standing) < limits.need:
        raise ConsensusError(
            TOO_FEW_INVENTORIES, f"{len(standing)} inventories stand; {limits.need} of {len(ctx.validators)} are needed"
        )
    wanted = set(named(standing, limits.naming))
    given = {record.digest for record in blob.records}
    if unlisted := sorted(given - wanted):
        raise ConsensusError(
            "unlisted", f"{len(unlisted)} records are named by fewer than {limits.naming}, such as {unlisted[0].hex()}"
        )
    if dropped := sorted(wanted - given):
        raise ConsensusError(
            "dropped",
            f"{len(dropped)} records named by {limits.naming} or more are left out, such as {dropped[0].hex()}",
        )
    return blob.records


def verify_blob(data: bytes, ctx: RoundContext, *, max_bytes: int = MAX_BLOB_BYTES) -> tuple[Record, ...]:
    """The evidence in a blob, fully checked: what anybody needs to check a proposal or a refusal afterwards.
    Raises RemoteProtocolError, ConsensusError."""
    blob = decode_blob(data, max_bytes=max_bytes)
    for _ in checks(blob, ctx):
        pass
    return evidence_of(blob, ctx)


class Decision(enum.Enum):
    """What to do about a proposal."""

    ATTEST = "attest"
    REFUSE = "refuse"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A decision with its reason: a short stable word, and a sentence for people."""

    decision: Decision
    reason: str
    detail: str = ""


ABSTENTIONS: Final = frozenset({"unknown-version", "unknown-score-id", "score-failed", "unheard"})
"""Reasons that are ours, not the proposer's: they say nothing about whether the proposal is right."""


def judgement_of(error: ConsensusError | RemoteProtocolError) -> Judgement:
    """The decision that an error in a proposal leads to."""
    reason = error.reason if isinstance(error, ConsensusError) else "malformed"
    decision = Decision.ABSTAIN if reason in ABSTENTIONS else Decision.REFUSE
    return Judgement(decision, reason, str(error)[:MAX_DETAIL])


def read_proposal(args: bytes | None, ctx: RoundContext, *, max_bytes: int = MAX_BLOB_BYTES) -> ProposalArgs:
    """What a proposal claims, as far as it can be checked before fetching anything.

    Raises ConsensusError: "args", "unknown-version", "unknown-score-id", "wrong-epoch", "wrong-snapshot", "oversize",
    "empty-reason".
    """
    claim = decode_args(args)
    if claim.score != ctx.score_id:
        raise ConsensusError("unknown-score-id", f"{claim.score!r}; this node scores by {ctx.score_id!r}")
    if claim.epoch != ctx.epoch:
        raise ConsensusError("wrong-epoch", f"{claim.epoch} instead of {ctx.epoch}")
    if claim.snapshot != ctx.snapshot.block.hash:
        raise ConsensusError("wrong-snapshot", f"{claim.snapshot.hex()} instead of {ctx.snapshot.block.hash.hex()}")
    if claim.size > max_bytes:
        raise ConsensusError("oversize", f"its evidence has {claim.size} bytes; at most {max_bytes} are fetched")
    if not claim.evidence and claim.reason != TOO_FEW_INVENTORIES:
        raise ConsensusError("empty-reason", f"{claim.reason!r} is no reason to propose nothing")
    return claim


def judge_empty(on_chain: Sequence[Score], *, standing: int, heard: int, limits: Thresholds) -> Judgement:
    """About a proposal without evidence.

    `standing` is how many valid inventories this node holds; `heard` of how many validators it knows whether they have
    one: itself, those whose inventory it has, and those that answered when asked. Who was cut off, or came later, knows
    too little to say that there were too few.
    """
    if on_chain:
        return Judgement(Decision.REFUSE, "scores", f"{len(on_chain)} scores without evidence")
    if standing >= limits.need:
        return Judgement(
            Decision.REFUSE,
            "had-inventories",
            f"the proposer says it had too few inventories; this node holds {standing} of {limits.need} needed",
        )
    if heard < limits.need:
        return Judgement(Decision.ABSTAIN, "unheard", f"{heard} validators were heard, {limits.need} are needed to say")
    return Judgement(Decision.ATTEST, "equal", "empty equals empty")


def collapsed(scores: Iterable[Score]) -> dict[int, int]:
    """By node id; the chain keeps the lowest score of an id named twice."""
    lowest: dict[int, int] = {}
    for score in scores:
        lowest[score.node_id] = min(score.score, lowest.get(score.node_id, score.score))
    return dict(sorted(lowest.items()))


def eligible(*snapshots: Snapshot, epoch: int) -> frozenset[int]:
    """Node ids that are Included or better in every one of these snapshots: the chain drops the scores of others."""
    sets = [
        {n.node_id for n in snapshot.nodes if n.node_class >= NodeClass.INCLUDED and n.start_epoch <= epoch}
        for snapshot in snapshots
    ]
    return frozenset(set.intersection(*sets)) if sets else frozenset()


def judge_scores(recomputed: Iterable[Score], on_chain: Iterable[Score], *, eligible_ids: Set[int]) -> Judgement:
    """Whether the chain holds what the evidence is worth.

    A node missing on chain is right only where the chain filters it (`eligible`); whatever is there must be equal.
    """
    ours, theirs = collapsed(recomputed), collapsed(on_chain)
    for node_id, score in theirs.items():
        if node_id not in ours:
            return Judgement(Decision.REFUSE, "scores", f"node {node_id} has {score} but earned nothing")
        if ours[node_id] != score:
            return Judgement(Decision.REFUSE, "scores", f"node {node_id} has {score} but earned {ours[node_id]}")
    for node_id, score in ours.items():
        if node_id not in theirs and node_id in eligible_ids:
            return Judgement(Decision.REFUSE, "scores", f"node {node_id} earned {score} but is left out")
    return Judgement(Decision.ATTEST, "equal", f"{len(theirs)} scores")
