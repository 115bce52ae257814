"""The pallet's arithmetic: recorded values, and the edges where the rules bend."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.devchain.pallets.network import economics as e

E15, E16, E17 = 10**15, 10**16, 10**17
FACTORS = e.WeightFactors(delegate_stake=4 * E17, node_count=4 * E17, net_flow=2 * E17, power=75 * E16)


def test_recorded_values() -> None:
    assert e.proposer_factor(5 * E16, midpoint=5 * E17, steepness=20) == 999876605424013824
    progress = [e.percent_div(blocks, 19) for blocks in (1, 3)]
    assert progress == [52631578947368421, 157894736842105263]
    factors = [e.attestor_factor(each, min_factor=33 * E16, exponent=10) for each in progress]
    assert factors == [999999999999890816, 999999993547153280]
    emissions = e.epoch_emissions(3, max_nodes=64 * 256, midpoint=5 * E17, steepness=7, epochs_per_year=262_800)
    assert emissions == e.EpochEmissions(subnets=302180462550117440, treasury=75545115637529360)
    pools = e.split_subnet_emission(emissions.subnets, e.ONE, owner_percentage=23 * E16, delegate_percentage=E17)
    assert pools.delegators == 23267895616359042
    rewards = [
        e.node_reward(pools.nodes, score, score_sum=6, factor=factor)
        for score, factor in zip((1, 2, 3), [*factors, e.ONE], strict=True)
    ]
    assert rewards == [34901843424534753, 69803686398644636, 104705530273615693]
    cost = e.registration_cost(e.ONE, 8, minimum=E17, decay_blocks=438_290, exponent=5 * E17)
    assert cost == 999991786222757376
    rate = e.ONE
    for registrations in (3, 0):
        rate = e.next_burn_rate(rate, registrations, target=64, alpha=5 * E17, minimum=e.ONE, maximum=5 * e.ONE)
    assert rate == 1046875000000000000
    assert e.coldkey_reputation_step(5 * E17, e.ONE, minimum=66 * E16, factor=5 * 10**14) == 340


def test_the_proposer_factor_falls_through_one_half_at_the_midpoint() -> None:
    at = [e.proposer_factor(x * E16, midpoint=5 * E17, steepness=20) for x in (0, 20, 50, 80, 100)]
    assert at == sorted(at, reverse=True)
    assert at[2] == 5 * E17
    assert at[1] / e.ONE == pytest.approx(0.9975, abs=1e-4)


def test_the_attestor_factor_never_leaves_its_range() -> None:
    assert e.attestor_factor(0, min_factor=33 * E16, exponent=10) == e.ONE
    assert e.attestor_factor(e.ONE, min_factor=33 * E16, exponent=10) == 33 * E16
    assert e.attestor_factor(2 * e.ONE, min_factor=33 * E16, exponent=10) == 33 * E16
    assert e.attestor_factor(5 * E17, min_factor=33 * E16, exponent=0) == 665 * E15


@pytest.mark.parametrize(
    ("attests", "electable", "ratio"),
    [(2, 3, 666666666666666666), (1, 3, 333333333333333333), (4, 3, e.ONE), (1, 0, 0)],
)
def test_attestation_ratio(attests: int, electable: int, ratio: int) -> None:
    assert e.attestation_ratio(attests, electable) == ratio


def test_two_of_three_is_a_quorum_and_one_of_three_is_slashed_by_half() -> None:
    minimum = 66 * E16
    assert e.shortfall(e.attestation_ratio(2, 3), minimum) == 0
    third = e.attestation_ratio(1, 3)
    assert e.shortfall(third, minimum) == 494949494949494950
    slash = e.slash_amount(200 * e.ONE, third, minimum=minimum, base_percentage=3125 * 10**13, maximum=e.ONE)
    assert slash == e.ONE  # 6.25 * 0.4949 is above the cap
    slash = e.slash_amount(20 * e.ONE, third, minimum=minimum, base_percentage=3125 * 10**13, maximum=e.ONE)
    assert slash == e.percent_mul(625 * E15, 494949494949494950)
    assert e.slash_amount(200 * e.ONE, minimum, minimum=minimum, base_percentage=E17, maximum=e.ONE) == 0


def test_reputation_moves_between_zero_and_one() -> None:
    assert e.raise_reputation(e.ONE, E17) == e.ONE
    assert e.raise_reputation(0, E17) == 0
    half = e.raise_reputation(5 * E17, E17)
    assert half == int((0.5 + math.pow(0.5, 1.1) * 0.1) * 1e18)
    assert e.lower_reputation(e.ONE, E17) == 9 * E17
    assert e.lower_reputation(e.ONE, 2 * e.ONE) == 0


def test_weights_are_shares_of_one() -> None:
    one = {7: e.SubnetShare(delegate_stake=10, electable_nodes=3, net_flow=0)}
    assert e.subnet_weights(one, total_delegate_stake=10, total_electable_nodes=3, factors=FACTORS) == {7: e.ONE}
    two = {
        1: e.SubnetShare(delegate_stake=75, electable_nodes=3, net_flow=100),
        2: e.SubnetShare(delegate_stake=25, electable_nodes=3, net_flow=-100),
    }
    weights = e.subnet_weights(two, total_delegate_stake=100, total_electable_nodes=6, factors=FACTORS)
    heavy, light = math.pow(0.3 + 0.2 + 0.2, 0.75), math.pow(0.1 + 0.2, 0.75)
    assert weights[1] / e.ONE == pytest.approx(heavy / (heavy + light))
    assert abs(sum(weights.values()) - e.ONE) < 1000


def test_overwatchers_can_take_a_subnets_weight_away() -> None:
    two = {
        1: e.SubnetShare(delegate_stake=50, electable_nodes=3, net_flow=0, overwatch_weight=0),
        2: e.SubnetShare(delegate_stake=50, electable_nodes=3, net_flow=0),
    }
    assert e.subnet_weights(two, total_delegate_stake=100, total_electable_nodes=6, factors=FACTORS) == {
        1: 0,
        2: e.ONE,
    }


def test_nothing_staked_or_electable_weighs_nothing() -> None:
    share = {1: e.SubnetShare(delegate_stake=0, electable_nodes=3, net_flow=0)}
    assert e.subnet_weights(share, total_delegate_stake=0, total_electable_nodes=3, factors=FACTORS) == {1: 0}
    assert e.subnet_weights(share, total_delegate_stake=5, total_electable_nodes=0, factors=FACTORS) == {1: 0}
    assert e.subnet_weights({}, total_delegate_stake=0, total_electable_nodes=0, factors=FACTORS) == {}


def test_doubles_are_cast_as_the_runtime_casts_them() -> None:
    assert e.from_f64(float("nan")) == 0
    assert e.from_f64(-1.0) == 0
    assert e.from_f64(1e300) == e.U128_MAX
    assert e.percent_mul(e.U128_MAX, 2 * e.ONE) == e.U128_MAX
    assert e.percent_div(1, 0) == 0


def test_the_registration_cost_decays_to_the_minimum() -> None:
    costs = [
        e.registration_cost(2 * e.ONE, blocks, minimum=E17, decay_blocks=100, exponent=5 * E17)
        for blocks in (0, 50, 99, 100, 1000)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == 2 * e.ONE
    assert costs[-2:] == [E17, E17]
    assert e.registration_cost(1, 0, minimum=E17, decay_blocks=100, exponent=5 * E17) == E17
    assert e.registration_cost(e.ONE, 50, minimum=E17, decay_blocks=0, exponent=5 * E17) == e.ONE


def test_more_nodes_need_more_delegate_stake() -> None:
    def multiplier(nodes: int) -> int:
        return e.min_delegate_stake_multiplier(nodes, min_nodes=3, max_nodes=256, max_multiplier=4 * e.ONE)

    assert [multiplier(n) for n in (0, 3, 256, 300)] == [e.ONE, e.ONE, 4 * e.ONE, 4 * e.ONE]
    assert e.ONE < multiplier(100) < multiplier(200) < 4 * e.ONE


@given(
    emission=st.integers(0, 10**24),
    weight=st.integers(0, e.ONE),
    owner=st.integers(0, e.ONE),
    delegates=st.integers(0, e.ONE),
)
def test_pools_never_exceed_the_emission(emission: int, weight: int, owner: int, delegates: int) -> None:
    pools = e.split_subnet_emission(emission, weight, owner_percentage=owner, delegate_percentage=delegates)
    assert pools.owner + pools.delegators + pools.nodes == e.percent_mul(emission, weight)
    assert min(pools.owner, pools.delegators, pools.nodes) >= 0


@given(scores=st.lists(st.integers(0, 2**100), min_size=1, max_size=20), pool=st.integers(0, 10**24))
def test_nodes_together_never_earn_more_than_their_pool(scores: list[int], pool: int) -> None:
    total = sum(scores)
    earned = [e.node_reward(pool, score, score_sum=total, factor=e.ONE) for score in scores]
    assert sum(earned) <= pool
