"""Validators that lie, one kind at a time and drawn together, against the product's loop: who is paid, slashed and
lowered in reputation, and that honest nodes never disagree about one blob. Messages go by post (see
mesh.testing.consensus_sim) except where a test says that it takes the whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

import mesh.consensus.attesting as attesting
import mesh.consensus.proposing as proposing
from mesh.chain.types import ONE
from mesh.consensus.round import Decision, Judgement
from mesh.kad.validator import pack_value
from mesh.testing.adversaries.consensus import (
    AddsRecords,
    ClaimsThereWasNothing,
    Floods,
    Inflates,
    LeavesOutRecords,
    LeavesOutScore,
    Listing,
    ListsLate,
    ListsNot,
    ListsPhantoms,
    ListsTwice,
    Outlaw,
    PicksInventories,
    ProposesGarbage,
    ProposesLate,
    ProposesNot,
    Proposing,
    TakesTooFew,
    VotesBlindly,
    Withholds,
    Work,
    WorksAtTheEdge,
    WorksBackdated,
    WorksForFellows,
    WorksForSome,
    WorksNot,
    WorksTwice,
)
from mesh.testing.chain import ABSENT, BASE_REWARD_PLANCK, EMISSION_PLANCK, LEFT_OUT, MIN_ATTESTATION
from mesh.testing.consensus_sim import Carrier, Epoch, Found, Loss, Outage, Restart, Scenario, drawn, simulate_consensus

from .toy import Note, ToySubnet, note_key


def sound(scenario: Scenario, *, seed: int = 1, carrier: Carrier = Carrier.POST) -> Found:
    """Run it; nothing may be wrong."""
    found = simulate_consensus(scenario, seed=seed, carrier=carrier)
    assert found.violations() == [], f"seed {seed}, {scenario.name or scenario}"
    return found


def only(found: Found) -> Epoch:
    (epoch,) = found.epochs
    return epoch


def scores(epoch: Epoch) -> dict[int, int]:
    return {score.node_id: score.score for score in epoch.submission.scores} if epoch.submission else {}


# --- nobody lies --------------------------------------------------------------------------------------------------


def test_where_all_are_honest_all_attest_and_all_work_is_paid() -> None:
    found = sound(Scenario(proposers=(1, 2, 3)))
    for epoch in found.epochs:
        assert epoch.ratio == ONE
        assert scores(epoch) == epoch.seen_by_all == {n: 1 + n % 3 for n in range(1, 8)}
        assert sum(epoch.gained(n) for n in range(1, 8)) > BASE_REWARD_PLANCK + EMISSION_PLANCK - 7
        assert all(epoch.after[n].reputation == ONE for n in range(1, 8))
    assert found.fetched_bytes == 0  # everybody's draft came true


def test_windows_grow_with_the_epoch() -> None:
    epoch = only(sound(Scenario(length=50, proposers=(1,))))
    assert epoch.ratio == ONE
    assert scores(epoch) == {n: 1 + n % 3 for n in range(1, 8)}


def test_a_subnet_of_ones_own_takes_the_place_of_the_built_in_one() -> None:
    def make(epoch: int, number: int) -> tuple[bytes, bytes, bytes]:
        return note_key(epoch), b"%d" % (number % 1000), pack_value(Note(text=f"{number}"))

    subnet = ToySubnet()
    subnet.bonus = 10
    outlaws = {3: Outlaw(work=WorksTwice()), 4: Outlaw(listing=ListsTwice())}
    epoch = only(sound(Scenario(subnet=cast(Any, subnet), make=make, outlaws=outlaws, proposers=(1,))))
    assert epoch.ratio == ONE
    assert all(scores(epoch)[n] == 11 + n % 3 for n in (1, 2, 5, 6, 7))


def test_the_same_seed_is_the_same_run() -> None:
    one, again, other = (simulate_consensus(drawn(seed), seed=seed) for seed in (5, 5, 6))
    assert (one.head, one.messages) == (again.head, again.messages)
    assert one.head != other.head


# --- one lie at a time --------------------------------------------------------------------------------------------

LIES: list[Proposing] = [
    Inflates(), LeavesOutScore(), LeavesOutRecords(), AddsRecords(), TakesTooFew(), Withholds(),
    ClaimsThereWasNothing(),
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: type(lie).__name__)
def test_a_proposer_that_lies_is_slashed_and_nobody_is_paid(lie: Proposing) -> None:
    """And that with 30 % of the validators attesting whatever there is: 3 of 7 are 43 %, below the 66 that pay."""
    blind = Outlaw(voting=VotesBlindly())
    epoch = only(sound(Scenario(outlaws={3: Outlaw(proposing=lie), 4: blind}, proposers=(3,))))
    assert epoch.submission is not None
    assert epoch.submission.attests == (3, 4)
    assert epoch.gained(3) < 0
    assert all(epoch.gained(n) == 0 for n in range(1, 8) if n != 3)
    lowered = [n for n in range(1, 8) if epoch.after[n].reputation < ONE]
    assert lowered == [3, 4]  # who proposed it, and who attested it without looking
    assert epoch.after[3].reputation < epoch.after[4].reputation


@pytest.mark.parametrize("seed", range(5))
def test_a_proposer_of_garbage_is_slashed(seed: int) -> None:
    epoch = only(sound(Scenario(outlaws={3: Outlaw(proposing=ProposesGarbage())}, proposers=(3,)), seed=seed))
    assert epoch.submission is not None
    assert epoch.submission.attests == (3,)
    assert epoch.gained(3) < 0


def test_a_proposer_that_proposes_nothing_loses_reputation() -> None:
    epoch = only(sound(Scenario(outlaws={3: Outlaw(proposing=ProposesNot())}, proposers=(3,))))
    assert epoch.submission is None
    assert epoch.after[3].reputation == ONE * (ONE - ABSENT) // ONE
    assert all(epoch.gained(n) == 0 for n in range(1, 8))


def test_a_proposer_may_choose_which_inventories_it_takes_and_gains_nothing_by_it() -> None:
    picks = Outlaw(proposing=PicksInventories(), work=WorksForSome())
    epoch = only(sound(Scenario(outlaws={3: picks}, proposers=(3,))))
    assert epoch.ratio == ONE
    assert all(scores(epoch)[n] == 1 + n % 3 for n in (1, 2, 4, 5, 6, 7))


@pytest.mark.parametrize(("before_end", "attests"), [(3, 7), (0, 1)])
def test_a_proposer_that_is_late_risks_its_own_stake_only(before_end: int, attests: int) -> None:
    late = Outlaw(proposing=ProposesLate(before_end))
    epoch = only(sound(Scenario(outlaws={3: late}, proposers=(3,))))
    assert epoch.submission is not None
    assert len(epoch.submission.attests) == attests
    assert (epoch.gained(3) > 0) == (attests > 4)
    assert all(epoch.gained(n) >= 0 for n in range(1, 8) if n != 3)


def test_the_blind_alone_pay_no_lie_even_where_most_of_the_faulty_are_blind() -> None:
    """A liar and two blind ones of seven are one more than the protocol promises to stand; 43 % still do not pay."""
    outlaws = {3: Outlaw(proposing=Inflates()), 4: Outlaw(voting=VotesBlindly()), 5: Outlaw(voting=VotesBlindly())}
    epoch = only(sound(Scenario(outlaws=outlaws, proposers=(3,))))
    assert epoch.ratio == 3 * ONE // 7 < MIN_ATTESTATION
    assert epoch.gained(3) < 0


# --- records and inventories --------------------------------------------------------------------------------------


def two(work: Work | None = None, listing: Listing | None = None) -> dict[int, Outlaw]:
    """f nodes of seven with a habit."""
    changes: dict[str, Any] = {"work": work} if work is not None else {}
    if listing is not None:
        changes["listing"] = listing
    return {3: Outlaw(**changes), 6: Outlaw(**changes)}


@pytest.mark.parametrize(
    ("work", "most"),
    [
        (WorksForSome(), 4),
        (WorksAtTheEdge(), 6),
        (WorksBackdated(), 0),
        (WorksTwice(), 2),
        (Floods(), 64),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_two_of_seven_send_the_others_agree_and_are_paid(work: Work, most: int) -> None:
    for proposer in (1, 3):
        epoch = only(sound(Scenario(outlaws=two(work), proposers=(proposer,)), seed=proposer))
        if epoch.submission is None and proposer == 3:
            continue  # it asks nobody for what it lacks; honest proposers do
        assert epoch.ratio == ONE
        paid = scores(epoch)
        assert all(paid[n] == 1 + n % 3 for n in (1, 2, 4, 5, 7))
        assert all(paid.get(n, 0) <= most for n in (3, 6))


def test_what_fellows_gave_to_one_honest_node_only_is_got_from_it() -> None:
    conspiracy = Outlaw(work=WorksForFellows(fellows=(3, 6), witness=5))
    epoch = only(sound(Scenario(outlaws={3: conspiracy, 6: conspiracy}, proposers=(1,))))
    assert epoch.ratio == ONE
    assert scores(epoch)[3] == scores(epoch)[6] == 3


@pytest.mark.parametrize("at", [19, 20])
def test_what_fellows_gave_to_one_that_lost_it_makes_nobody_mute(at: int) -> None:
    """One more in trouble than is promised for; the proposer leaves out an inventory that asks for too much."""
    conspiracy = Outlaw(work=WorksForFellows(fellows=(3, 6), witness=5), voting=VotesBlindly())
    lost = Restart(5, at, 1, Loss.RECORDS)
    silent = {3: conspiracy, 6: conspiracy}
    epoch = only(sound(Scenario(outlaws=silent, restarts=(lost,), proposers=(1,))))
    assert epoch.is_accepted
    assert all(scores(epoch)[n] == 1 + n % 3 for n in (1, 2, 4, 7))


def test_who_writes_nothing_is_not_paid_and_loses_reputation() -> None:
    epoch = only(sound(Scenario(outlaws=two(WorksNot()), proposers=(1,))))
    assert epoch.gained(3) == epoch.gained(6) == 0
    assert epoch.after[3].reputation == ONE * (ONE - LEFT_OUT) // ONE


@pytest.mark.parametrize(
    "listing",
    [ListsNot(), ListsTwice(), ListsTwice(seen_by_all=True), ListsPhantoms(), ListsLate()],
    ids=lambda listing: f"{type(listing).__name__}{'-all' if getattr(listing, 'seen_by_all', False) else ''}",
)
@pytest.mark.parametrize("proposer", [1, 3])
def test_whatever_inventories_two_of_seven_sign_everybody_is_paid_for_the_work_all_saw(
    listing: Listing, proposer: int
) -> None:
    epoch = only(sound(Scenario(outlaws=two(listing=listing), proposers=(proposer,)), seed=proposer))
    if proposer == 1 or epoch.submission is not None:
        assert epoch.ratio == ONE
        assert all(scores(epoch)[n] == 1 + n % 3 for n in (1, 2, 4, 5, 7))


# --- the chain goes away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 8, 12, 19, 21, 27])
def test_two_nodes_may_miss_three_fifths_of_an_epoch(first: int) -> None:
    outages = (Outage(3, first, 12), Outage(6, first, 12))
    epoch = only(sound(Scenario(outages=outages, proposers=(1,))))
    assert epoch.is_accepted
    assert len(epoch.submission.attests if epoch.submission else ()) >= 5


@pytest.mark.parametrize("first", [2, 21])
def test_all_may_miss_three_fifths_of_an_epoch_when_nothing_was_due(first: int) -> None:
    """From block 2 to 14 of the epoch of the work, or of the next one, before the proposal or right after."""
    everybody = tuple(Outage(n, first, 12) for n in range(1, 8))
    epoch = only(sound(Scenario(outages=everybody, proposers=(1,))))
    assert epoch.ratio == ONE
    assert scores(epoch)


def test_where_nobody_heard_the_epoch_end_an_empty_proposal_passes_and_nobody_is_slashed() -> None:
    everybody = tuple(Outage(n, 14, 12) for n in range(1, 8))
    epoch = only(sound(Scenario(outages=everybody, proposers=(1,))))
    assert epoch.ratio == ONE
    assert scores(epoch) == {}
    assert epoch.gained(1) == BASE_REWARD_PLANCK
    assert all(epoch.after[n].reputation == ONE for n in range(1, 8))


@pytest.mark.parametrize("at", range(16, 36, 2))
def test_a_proposer_and_another_may_be_restarted_at_any_block(at: int) -> None:
    """And that with all that the other had on its disk gone."""
    restarts = (Restart(1, at), Restart(5, at, loss=Loss.DISK))
    epoch = only(sound(Scenario(restarts=restarts, proposers=(1,), start=8), seed=at))
    assert epoch.is_accepted
    assert len(scores(epoch)) == 7
    assert not epoch.equivocators


# --- drawn together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_drawn_scenarios_are_sound(first: int) -> None:
    for seed in range(first, first + 20):
        sound(drawn(seed), seed=seed)


@pytest.mark.parametrize("seed", [1000, 1001, 1002])
def test_drawn_scenarios_are_sound_over_the_whole_network(seed: int) -> None:
    """SimNetwork, Rpc, DHT and Content under the same loop and outlaws."""
    sound(drawn(seed), seed=seed, carrier=Carrier.NETWORK)


@pytest.mark.slow
def test_fifty_honest_nodes_agree() -> None:
    epoch = only(sound(Scenario(nodes=50, proposers=(7,), start=8)))
    assert epoch.ratio == ONE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_drawn_scenarios_of_fifty_nodes_are_sound(seed: int) -> None:
    sound(drawn(seed, nodes=50), seed=seed)


# --- the checks themselves ----------------------------------------------------------------------------------------


async def _attests_anything(self: Any, found: Any, submission: Any) -> Judgement:
    return Judgement(Decision.ATTEST, "equal")


def _everywhere(patch: pytest.MonkeyPatch, named: Callable[..., Any]) -> None:
    for module in ("inventories", "judging", "gathering", "proposing"):
        patch.setattr(f"mesh.consensus.{module}.named", named)


real_named = proposing.named
INFLATES = Scenario(outlaws={3: Outlaw(proposing=Inflates())}, proposers=(3,))


def test_a_loop_that_attests_what_it_did_not_check_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attesting.Attestor, "_judge", _attests_anything)
    said = " ".join(simulate_consensus(INFLATES, seed=1).violations())
    assert "attested a lie" in said
    assert "was not slashed" in said


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda patch: _everywhere(patch, lambda i, n: real_named(i, n)[1:]), "are paid"),
        (lambda patch: patch.setattr("mesh.consensus.loop.Proposer.propose", _nothing), "proposed nothing"),
        (lambda patch: patch.setattr("mesh.consensus.attesting.Attestor.attest", _nothing), "slashed"),
        (lambda patch: patch.setattr("mesh.testing.chain.Ledger._pay", _pays_twice), "outside the books"),
    ],
    ids=["drops a record", "does not propose", "does not attest", "pays twice"],
)  # fmt: skip
def test_other_faults_are_found_out(
    break_it: Callable[[pytest.MonkeyPatch], None], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    assert expected in " ".join(simulate_consensus(Scenario(proposers=(1,)), seed=1).violations())


async def _nothing(self: Any, *args: Any) -> None:
    """In place of a step."""


def _pays_twice(self: Any, subnet: Any, node_id: int, planck: int) -> None:
    node = subnet.nodes[node_id]
    self._set(subnet, type(node)(**{**_fields(node), "stake_planck": node.stake_planck + 2 * planck}))


def _fields(node: Any) -> dict[str, Any]:
    return {name: getattr(node, name) for name in node.__dataclass_fields__}
