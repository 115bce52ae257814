"""An epoch recomputed from its blob, long after."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mesh.chain.types import NodeClass, Score
from mesh.consensus.replay import Difference, Replay, ScoreFunction, recompute, replay
from mesh.consensus.round import Decision, encode_blob, make_blob
from mesh.errors import ConsensusError
from mesh.kad.record import Record
from mesh.subnet import Evidence

from .toy import KEYS, LABELS, ToySubnet, context, inventory, note

FOUR = LABELS[:4]
TOY = ToySubnet()
RECORDS = (note("ada", "1"), note("ada", "2"), note("bob", "3"))
RIGHT = (Score(1, 2), Score(2, 1))


def blob(records: Sequence[Record] = RECORDS, inventories: Sequence[Record] | None = None) -> bytes:
    return encode_blob(make_blob(inventories or [inventory(label, RECORDS) for label in FOUR], records))


def replayed(
    data: bytes, proposed: Sequence[Score] = RIGHT, *, score: ScoreFunction = TOY.score, **changes: object
) -> Replay:
    return replay(data, context(**changes), draw_hash=bytes(32), score=score, proposed=proposed)


def test_a_right_proposal_is_recomputed_with_its_counts() -> None:
    found = replayed(blob())
    assert found.is_right
    assert found.scores == RIGHT
    assert found.differences == ()
    assert (found.inventories, found.equivocators, len(found.records)) == (4, (), 3)
    assert found.by_owner == {KEYS["ada"].peer_id: 2, KEYS["bob"].peer_id: 1}


def test_each_node_whose_score_differs_is_named() -> None:
    found = replayed(blob(), [Score(1, 9), Score(4, 1)])
    assert found.judgement.decision is Decision.REFUSE
    assert found.judgement.reason == "scores"
    assert found.differences == (Difference(1, 9, 2), Difference(2, None, 1), Difference(4, 1, None))


def test_who_signed_two_inventories_is_named_and_does_not_count() -> None:
    pair = [inventory("dan", RECORDS), inventory("dan", ())]
    found = replayed(blob(inventories=[*(inventory(label, RECORDS) for label in FOUR[:3]), *pair]))
    assert found.is_right
    assert (found.inventories, found.equivocators) == (3, (KEYS["dan"].peer_id,))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"nonsense", "malformed"), (blob(RECORDS[:1]), "dropped"), (blob([*RECORDS, note("cyd", "4")]), "unlisted")],
)
def test_what_is_wrong_with_a_blob_is_said(data: bytes, reason: str) -> None:
    found = replayed(data)
    assert (found.judgement.decision, found.judgement.reason) == (Decision.REFUSE, reason)
    assert found.scores == found.differences == ()


def test_a_node_that_the_chain_leaves_out_is_a_difference_but_no_lie() -> None:
    idle = {"ada": {"node_class": NodeClass.IDLE}}
    three = [inventory(label, RECORDS) for label in FOUR[1:]]
    found = replayed(blob(inventories=three), [Score(2, 1)], **idle)
    assert found.is_right
    assert found.differences == (Difference(1, None, 2),)


@pytest.mark.parametrize("returned", [[Score(1, -1)], [Score(1, 2**128)], [Score(1, 0.5)], [Score(1, True)], None])
def test_scores_the_chain_cannot_hold_are_the_subnets_fault(returned: object) -> None:
    def score(evidence: Evidence) -> Sequence[Score]:
        return returned  # type: ignore[return-value]

    found = replayed(blob(), score=score)
    assert (found.judgement.decision, found.judgement.reason) == (Decision.ABSTAIN, "score-failed")
    with pytest.raises(ConsensusError):
        recompute(score, None)  # type: ignore[arg-type]
