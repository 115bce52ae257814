"""The judgement of an epoch: what is accepted, what is paid, and that no attacker gains. Pure."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mesh.chain.types import ONE
from mesh.chain.windows import Windows
from mesh.consensus.during import bounds
from mesh.consensus.evidence import Commit, epoch_key
from mesh.identity import PeerKey
from mesh.kad.record import sign_record
from subnets.evaluation.votes import Ballot, decide, lower_median
from subnets.optimization.candidate import DEFAULT
from subnets.optimization.records import (
    CLAIM,
    CLAIM_COMMIT,
    DEFAULT_CHAMPION,
    VOTE,
    VOTE_COMMIT,
    Champion,
)
from subnets.optimization.score import (
    CLAIM_PPM,
    MIN_GAIN_PPM,
    TOLERANCE_PPM,
    VOTE_PPM,
    Outcome,
    Status,
    Verdict,
    outcome,
    score,
)
from tests.subnets.evidence import EPOCH, GENESIS, GOOD, SUBNET, Case, peer_key, snapshot_of

PPM = ONE // 1_000_000


def verdict_of(found: Outcome, node: int) -> Verdict:
    return next(v for v in found.verdicts if v.node_id == node)


def scores_of(found: Outcome) -> dict[int, int]:
    return {s.node_id: s.score // PPM for s in found.scores}


def test_an_honest_claim_is_accepted_and_paid_by_its_verified_gain() -> None:
    case = Case()
    claim_id, members = case.honest(1, claimed=965_000, verified=960_000)
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.ACCEPTED
    assert verdict_of(found, 1).gain_ppm == 140_000
    assert scores_of(found) == {1: CLAIM_PPM + 140_000} | dict.fromkeys(members, VOTE_PPM)
    assert found.champion == Champion(
        candidate=GOOD,
        epoch=EPOCH,
        claim_id=claim_id,
        owner=peer_key(1).peer_id.multihash,
        weights=b"\x01" * 32,
        ppm=960_000,
    )
    assert found.incumbent == DEFAULT_CHAMPION
    assert found.improved
    assert list(score(case.evidence())) == sorted(found.scores, key=lambda s: s.node_id)


def test_the_gain_is_what_was_verified_not_what_was_claimed() -> None:
    case = Case()
    case.honest(1, claimed=900_000 + TOLERANCE_PPM, verified=900_000)
    assert scores_of(outcome(case.evidence()))[1] == CLAIM_PPM + 80_000


def test_an_overclaim_is_rejected_and_earns_nothing_at_all() -> None:
    case = Case()
    _, members = case.honest(1, claimed=925_000, verified=820_000)
    other_id, other_members = case.honest(2, 960_000, 960_000, GOOD.model_copy(update={"hidden": 90}))
    if 1 not in other_members:  # make sure the liar also voted honestly somewhere
        case.cast(1, other_id, case.vote_of(1, 960_000))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.OVERCLAIM
    assert 1 not in scores_of(found)  # absent on chain: costs reputation
    assert [v.node_id for v in found.rejected] == [1]
    assert all(scores_of(found)[m] >= VOTE_PPM for m in members)  # its verifiers are paid for finding out
    assert found.champion.owner == peer_key(2).peer_id.multihash


def test_overclaim_at_the_edge_of_the_tolerance() -> None:
    for claimed, status in (
        (900_000 + TOLERANCE_PPM, Status.ACCEPTED),
        (900_000 + TOLERANCE_PPM + 1, Status.OVERCLAIM),
        (900_000 - TOLERANCE_PPM, Status.ACCEPTED),
        (900_000 - TOLERANCE_PPM - 1, Status.UNDERCLAIM),
    ):
        case = Case()
        case.honest(1, claimed, 900_000)
        assert verdict_of(outcome(case.evidence()), 1).status is status


def test_a_liar_cannot_vote_its_own_claim_through() -> None:
    case = Case(snapshot_of(6, shared_coldkey=(1, 2)))
    claim_id = case.commit_and_reveal(1, case.claim(1, 990_000))
    members = case.quorum(1, claim_id)
    assert not {1, 2} & set(members)  # neither the owner nor the owner's other node
    for node in (1, 2):
        case.cast(node, claim_id, case.vote_of(node, 990_000))
    for member in members:
        case.cast(member, claim_id, case.vote_of(member, 820_000))
    assert verdict_of(outcome(case.evidence()), 1).status is Status.OVERCLAIM


def test_votes_from_outside_the_quorum_count_for_nothing_and_earn_nothing() -> None:
    case = Case()
    claim_id, members = case.honest(1, 960_000, 960_000)
    outside = next(n for n in range(2, 7) if n not in members)
    case.cast(outside, claim_id, case.vote_of(outside, 100_000))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).median_ppm == 960_000
    assert outside not in scores_of(found)


def test_a_claim_without_a_commit_is_rejected() -> None:
    case = Case()
    claim = case.claim(1, 960_000)
    case.add(1, CLAIM, claim)
    claim_id = case.claim_id(1, claim)
    for member in case.quorum(1, claim_id):
        case.cast(member, claim_id, case.vote_of(member, 960_000))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.UNCOMMITTED
    assert found.scores == ()


def test_a_reveal_that_differs_from_the_commit_is_rejected_and_costs_all_score() -> None:
    case = Case()
    committed, revealed = case.claim(1, 960_000), case.claim(1, 970_000)
    case.add(1, CLAIM_COMMIT, Commit(commitment=case.claim_id(1, committed)))
    case.add(1, CLAIM, revealed)
    case.honest(2, 960_000, 960_000, GOOD.model_copy(update={"hidden": 90}))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.MISMATCH
    assert 1 not in scores_of(found)


def test_two_commits_of_one_owner_void_its_claim() -> None:
    case = Case()
    case.honest(1, 960_000, 960_000)
    spare = case.claim(1, 970_000, salt=2)
    case.add(1, CLAIM_COMMIT, Commit(commitment=case.claim_id(1, spare)))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.RECOMMITTED
    assert 1 not in scores_of(found)


def test_a_committed_claim_that_is_never_revealed_earns_nothing() -> None:
    case = Case()
    case.add(1, CLAIM_COMMIT, Commit(commitment=case.claim_id(1, case.claim(1, 960_000))))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.UNREVEALED
    assert found.rejected == ()
    assert found.scores == ()


def test_a_commit_copied_from_another_cannot_be_revealed() -> None:
    """The copier commits to the victim's commitment and, once the victim reveals, reveals the same content."""
    case = Case()
    claim = case.claim(1, 960_000)
    case.honest(1, 960_000, 960_000)
    case.add(2, CLAIM_COMMIT, Commit(commitment=case.claim_id(1, claim)))
    case.add(2, CLAIM, claim)
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.ACCEPTED
    assert verdict_of(found, 2).status is Status.MISMATCH


def test_a_copied_vote_is_no_vote() -> None:
    """A lazy verifier copies another's vote commit, then its reveal; and one reveals without any commit."""
    case = Case()
    claim_id = case.commit_and_reveal(1, case.claim(1, 960_000))
    honest, copier, late = case.quorum(1, claim_id)
    vote = case.vote_of(honest, 960_000)
    case.cast(honest, claim_id, vote)
    case.add(copier, VOTE_COMMIT, Commit(commitment=case.vote_commitment(honest, claim_id, vote)), subkey=claim_id)
    case.reveal_vote(copier, claim_id, vote)
    case.reveal_vote(late, claim_id, vote)
    found = outcome(case.evidence())
    assert dict(verdict_of(found, 1).ballots) == {
        honest: Ballot.UNDECIDED,
        copier: Ballot.MISMATCH,
        late: Ballot.UNCOMMITTED,
    }
    assert verdict_of(found, 1).status is Status.UNDECIDED
    assert found.scores == ()


def test_one_verifier_far_off_is_outvoted_and_unpaid() -> None:
    case = Case()
    claim_id = case.commit_and_reveal(1, case.claim(1, 960_000))
    first, second, wrong = case.quorum(1, claim_id)
    case.cast(first, claim_id, case.vote_of(first, 958_000))
    case.cast(second, claim_id, case.vote_of(second, 961_000))
    case.cast(wrong, claim_id, case.vote_of(wrong, 500_000))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.ACCEPTED
    assert dict(verdict_of(found, 1).ballots)[wrong] is Ballot.OUTSIDE
    assert wrong not in scores_of(found)
    assert scores_of(found)[first] == VOTE_PPM


def test_a_majority_suffices_when_a_verifier_is_down() -> None:
    case = Case()
    claim_id = case.commit_and_reveal(1, case.claim(1, 960_000))
    first, second, dead = case.quorum(1, claim_id)
    for node in (first, second):
        case.cast(node, claim_id, case.vote_of(node, 960_000))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.ACCEPTED
    assert dict(verdict_of(found, 1).ballots)[dead] is Ballot.SILENT


def test_without_a_majority_nothing_is_decided() -> None:
    case = Case()
    claim_id = case.commit_and_reveal(1, case.claim(1, 960_000))
    only, *_ = case.quorum(1, claim_id)
    case.cast(only, claim_id, case.vote_of(only, 960_000))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).status is Status.UNDECIDED
    assert found.champion == DEFAULT_CHAMPION
    assert found.scores == ()


def test_an_unrevealed_vote_costs_another_vote_s_share() -> None:
    case = Case()
    claims = {
        n: case.commit_and_reveal(n, case.claim(n, 960_000, GOOD.model_copy(update={"hidden": 20 + n})))
        for n in range(1, 7)
    }
    duties = {n: [o for o, claim_id in claims.items() if n in case.quorum(o, claim_id)] for n in range(1, 7)}
    sly = next(n for n in duties if len(duties[n]) >= 2)
    for owner, claim_id in claims.items():
        for member in case.quorum(owner, claim_id):
            vote = case.vote_of(member, 960_000)
            case.commit_vote(member, claim_id, vote)
            if (member, owner) != (sly, duties[sly][0]):
                case.reveal_vote(member, claim_id, vote)
    found = outcome(case.evidence())
    own = CLAIM_PPM + verdict_of(found, sly).paid_ppm
    assert scores_of(found)[sly] == own + VOTE_PPM * (len(duties[sly]) - 2)


def test_what_an_epoch_gained_is_paid_once() -> None:
    """However many claim it, and be their candidates a hair apart: the best gain is shared in proportion."""
    case = Case()
    case.honest(1, 960_000, 960_000)
    case.honest(2, 960_000, 960_000)
    case.honest(3, 890_000, 890_000, GOOD.model_copy(update={"decay_micro": 1}))
    found = outcome(case.evidence())
    assert [verdict_of(found, n).gain_ppm for n in (1, 2, 3)] == [140_000, 140_000, 70_000]
    assert [verdict_of(found, n).paid_ppm for n in (1, 2, 3)] == [56_000, 56_000, 28_000]


def test_one_owner_is_paid_for_one_claim() -> None:
    case = Case(snapshot=snapshot_of(6, shared_coldkey=(1, 2)))
    case.honest(1, 960_000, 960_000)
    case.honest(2, 950_000, 950_000, GOOD.model_copy(update={"hidden": 21}))
    case.honest(3, 960_000, 960_000, GOOD.model_copy(update={"hidden": 22}))
    found = outcome(case.evidence())
    assert verdict_of(found, 1).paid_ppm == verdict_of(found, 3).paid_ppm == 70_000
    assert verdict_of(found, 2).gain_ppm > 0
    assert verdict_of(found, 2).paid_ppm == 0


def test_a_second_commit_costs_its_owner_everything_else_it_earned() -> None:
    """It would otherwise take its verifiers' pay from them for nothing."""
    case = Case()
    case.honest(1, 960_000, 960_000)
    spare = case.claim(1, 970_000, salt=2)
    case.add(1, CLAIM_COMMIT, Commit(commitment=case.claim_id(1, spare)))
    other = case.commit_and_reveal(2, case.claim(2, 950_000))
    for member in case.quorum(2, other):
        case.cast(member, other, case.vote_of(member, 950_000))
    assert 1 not in scores_of(outcome(case.evidence()))


def test_one_liar_among_two_votes_names_no_champion() -> None:
    """On a tie nobody's incumbent counts: an invented one would be served by all."""
    invented = Champion(
        candidate=GOOD,
        epoch=EPOCH - 1,
        claim_id=bytes(32),
        owner=peer_key(3).peer_id.multihash,
        weights=b"w" * 32,
        ppm=0,
    )
    case = Case()
    claim_id = case.commit_and_reveal(1, case.claim(1, 960_000))
    liar, honest, _ = case.quorum(1, claim_id)
    case.cast(liar, claim_id, case.vote_of(liar, 960_000, 0, invented))
    case.cast(honest, claim_id, case.vote_of(honest, 960_000))
    found = outcome(case.evidence())
    assert found.incumbent != invented
    assert found.champion != invented
    assert verdict_of(found, 1).gain_ppm == 0


@pytest.mark.parametrize("length", [20, 21, 39, 100, 300])
def test_no_commitment_is_stored_once_what_it_could_be_copied_from_is_known(length: int) -> None:
    windows = Windows.of(length)
    assert bounds("claim_commit", length)[1] < windows.draw
    assert bounds("vote_commit", length)[1] < windows.vote_reveal.first


def test_a_gain_within_the_noise_is_none() -> None:
    for difference, gain in ((MIN_GAIN_PPM - 1, 0), (MIN_GAIN_PPM, MIN_GAIN_PPM), (-50_000, 0)):
        case = Case()
        claim_id = case.commit_and_reveal(1, case.claim(1, 930_000))
        for member in case.quorum(1, claim_id):
            case.cast(member, claim_id, case.vote_of(member, 930_000, incumbent_ppm=930_000 - difference))
        found = outcome(case.evidence())
        assert verdict_of(found, 1).gain_ppm == gain
        assert found.improved is bool(gain)


def test_the_incumbent_is_what_most_voters_name() -> None:
    """A verifier that missed the last settlement measures another incumbent: its number is left out of the gain."""
    champion = Champion(
        candidate=GOOD,
        epoch=EPOCH - 1,
        claim_id=b"c" * 32,
        owner=peer_key(3).peer_id.multihash,
        weights=b"w" * 32,
        ppm=950_000,
    )
    case = Case()
    claim_id = case.commit_and_reveal(1, case.claim(1, 960_000, GOOD.model_copy(update={"hidden": 99})))
    first, second, behind = case.quorum(1, claim_id)
    for node in (first, second):
        case.cast(node, claim_id, case.vote_of(node, 960_000, 950_000, champion))
    case.cast(behind, claim_id, case.vote_of(behind, 960_000, 820_000))
    found = outcome(case.evidence())
    assert found.incumbent == champion
    assert verdict_of(found, 1).gain_ppm == 10_000
    assert scores_of(found)[behind] == VOTE_PPM  # its measurement of the candidate was right


def test_without_improvement_the_incumbent_stays_champion() -> None:
    champion = Champion(
        candidate=GOOD,
        epoch=EPOCH - 1,
        claim_id=b"c" * 32,
        owner=peer_key(3).peer_id.multihash,
        weights=b"w" * 32,
        ppm=970_000,
    )
    case = Case()
    claim_id = case.commit_and_reveal(1, case.claim(1, 960_000, DEFAULT))
    for node in case.quorum(1, claim_id):
        case.cast(node, claim_id, case.vote_of(node, 960_000, 970_000, champion))
    found = outcome(case.evidence())
    assert found.champion == found.incumbent == champion


def test_records_of_strangers_other_epochs_other_chains_and_garbage_change_nothing() -> None:
    case = Case()
    case.honest(1, 960_000, 960_000)
    expected = outcome(case.evidence())
    for node, namespace, value in ((99, CLAIM, case.claim(99, 999_999)), (2, CLAIM, b"garbage"), (2, VOTE, b"\x80")):
        case.add(node, namespace, value)
    case.add(2, CLAIM, case.claim(2, 999_000), epoch=EPOCH + 1)
    foreign = sign_record(
        peer_key(3), epoch_key(CLAIM, EPOCH), b"", expiry_ms=2**41, seq=1, subnet_id=SUBNET + 1, genesis=GENESIS
    )
    tombstone = sign_record(
        peer_key(1),
        epoch_key(CLAIM, EPOCH),
        b"",
        expiry_ms=2**41,
        seq=2**40,
        subnet_id=SUBNET,
        genesis=GENESIS,
        tombstone=True,
    )
    case.records += [foreign, tombstone]
    assert outcome(case.evidence()) == expected


def test_the_order_of_records_changes_nothing() -> None:
    case = Case()
    for node in range(1, 7):
        case.honest(node, 950_000 + node, 950_000, GOOD.model_copy(update={"hidden": 20 + node}))
    evidence = case.evidence()
    expected = outcome(evidence)
    rng = random.Random(1)
    for _ in range(5):
        shuffled = list(evidence.records)
        rng.shuffle(shuffled)
        assert outcome(replace(evidence, records=tuple(shuffled))) == expected
    assert expected.champion.ppm == 950_000


def test_no_evidence_no_score() -> None:
    found = outcome(Case().evidence())
    assert found.scores == ()
    assert found.champion == DEFAULT_CHAMPION


def test_an_owner_outside_the_snapshot_cannot_claim() -> None:
    case = Case()
    claim = case.claim(42, 990_000)
    case.add(42, CLAIM_COMMIT, Commit(commitment=case.claim_id(42, claim)))
    case.add(42, CLAIM, claim)
    assert PeerKey.dev("optimizer-42").peer_id not in {n.peer_id for n in case.snapshot.nodes}
    assert outcome(case.evidence()).verdicts == ()


# --- votes --------------------------------------------------------------------------------------------------


def test_lower_median_is_a_value_somebody_measured() -> None:
    assert lower_median([5]) == 5
    assert lower_median([1, 9]) == 1
    assert lower_median([3, 1, 2]) == 2


@pytest.mark.parametrize(
    ("votes", "median"),
    [
        ({1: 100, 2: 105, 3: 95}, 100),
        ({1: 100, 2: 105}, 100),
        ({1: 100}, None),
        ({}, None),
        ({1: 100, 2: 200, 3: 300}, None),  # nobody agrees with the middle
        ({1: 100, 2: 100, 3: 900}, 100),
        ({7: 100, 8: 100, 9: 100}, None),  # not in the quorum
    ],
)
def test_decide(votes: dict[int, int | Ballot], median: int | None) -> None:
    assert decide([1, 2, 3], votes, tolerance=10).median == median
