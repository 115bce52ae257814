"""The arithmetic of the Network pallet: percentages in 1e18 fixed point, reward curves, emissions, slashes,
shares.

Everything here is a pure function of its arguments; storage is read and written elsewhere.

Amounts are planck (1e-18 TENSOR). A *percentage* is an int where ``ONE`` (1e18) means 1.0. Most of the rules
are integer arithmetic; the reward curves, the emission curve and the subnet weights are IEEE double
arithmetic in the network's runtime, so they are doubles here, evaluated in the same order, and truncated to
an int at the same places. Whatever the rules leave to integers stays in integers: no reward share ever passes
through a float.

A node's utilization of f64 functions (``exp``, ``pow``) may differ from another maths library in the last
bit; the recorded amounts of the runtime are reproduced exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ONE: Final = 10**18
"""1.0 as a percentage."""

U32_MAX: Final = 2**32 - 1
U128_MAX: Final = 2**128 - 1

MIN_LIQUIDITY: Final = 1000
"""Dead shares added to an empty delegate pool, so that a first depositor cannot inflate the price of a
share."""

_YEARLY_EMISSION_MAX: Final = 100_000e18
_YEARLY_EMISSION_MIN: Final = 75_000e18
_TREASURY_SHARE: Final = 0.2


def percent_mul(value: int, percentage: int) -> int:
    """``value * percentage / 1e18`` rounded down, saturated at 2**128 - 1."""
    return min(value * percentage // ONE, U128_MAX)


def percent_div(part: int, whole: int) -> int:
    """``part / whole`` as a percentage, rounded down; 0 when ``whole`` is 0; saturated at 2**128 - 1."""
    if whole == 0:
        return 0
    return min(part * ONE // whole, U128_MAX)


def to_f64(percentage: int) -> float:
    """A percentage as a double (1e18 -> 1.0)."""
    return percentage / 1e18


def from_f64(value: float) -> int:
    """A double as a percentage, truncated; NaN and negatives become 0, too large saturates."""
    return _truncate(value * 1e18)


def _truncate(value: float) -> int:
    """The runtime's saturating cast of a double to u128."""
    if math.isnan(value) or value <= 0.0:
        return 0
    return U128_MAX if value >= 2.0**128 else int(value)


def power(base: float, exponent: float) -> float:
    """``base ** exponent`` of non-negative doubles; infinite when too large, as in the runtime."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def sigmoid_decreasing(x: float, *, midpoint: float, steepness: float) -> float:
    """A decreasing sigmoid in [0, 1], symmetric about ``midpoint`` and 0.5 there.

    Too steep for doubles it is NaN up to the midpoint, as in the runtime, and what is paid by it 0.
    """
    e = _exp(steepness * abs(x - midpoint))
    return 1.0 / (1.0 + e) if x > midpoint else e / (1.0 + e)


# --- consensus -------------------------------------------------------------------------------------------------------


def proposer_factor(progress: int, *, midpoint: int, steepness: int) -> int:
    """What part of the base validator reward a proposal earns at ``progress`` (percentage of the subnet epoch
    gone)."""
    curve = sigmoid_decreasing(to_f64(progress), midpoint=to_f64(midpoint), steepness=float(steepness))
    return min(from_f64(_clamp(curve, 0.0, 1.0)), ONE)


def attestor_factor(progress: int, *, min_factor: int, exponent: int) -> int:
    """What part of its reward an attestor keeps.

    ``progress`` is the percentage of the blocks between the proposal and the end of the epoch that had gone
    by. The factor falls from 1.0 to ``min_factor``, slowly first.
    """
    low = to_f64(min_factor)
    curve = 1.0 - power(to_f64(progress), float(exponent) if exponent > 0 else 1.0)
    return min(from_f64(_clamp(low + (1.0 - low) * curve, low, 1.0)), ONE)


def attestation_ratio(attests: int, electable: int) -> int:
    """Attestations over the validators that could attest, as a percentage of at most 1.0."""
    return min(percent_div(attests, electable), ONE)


def shortfall(ratio: int, minimum: int) -> int:
    """How far ``ratio`` is below ``minimum``, relative to it: 0 at the minimum, 1.0 when nobody attested."""
    return max(ONE - percent_div(ratio, minimum), 0)


def slash_amount(stake: int, ratio: int, *, minimum: int, base_percentage: int, maximum: int) -> int:
    """Planck taken from a proposer whose proposal got ``ratio`` attestations, below the ``minimum``."""
    return min(percent_mul(percent_mul(stake, base_percentage), shortfall(ratio, minimum)), maximum)


# --- reputation ------------------------------------------------------------------------------------------------------


def raise_reputation(reputation: int, factor: int) -> int:
    """Reputation of a node or subnet after something good: ``r + r**(1+f) * f``, at most 1.0."""
    r, f = to_f64(reputation), to_f64(factor)
    return min(_truncate((r + power(r, 1.0 + f) * f) * 1e18), ONE)


def lower_reputation(reputation: int, factor: int) -> int:
    """Reputation of a node or subnet after something bad: ``r * (1 - f)``, never below 0."""
    return max(reputation - percent_mul(reputation, min(factor, ONE)), 0)


def epochs_to_removal(minimum: int, factor: int) -> int:
    """Epochs, and one, until a full reputation that falls by ``factor`` each epoch is below ``minimum``."""
    if factor >= ONE or minimum >= ONE:
        return 1
    step = math.log(1.0 - to_f64(factor))
    if minimum <= 0 or step == 0.0:
        return U32_MAX  # it never gets there
    return min(math.ceil(math.log(to_f64(minimum)) / step) + 1, U32_MAX)


def coldkey_reputation_step(score: int, ratio: int, *, minimum: int, factor: int) -> int:
    """By how much a coldkey's score moves after a proposal that got ``ratio`` attestations.

    The runtime multiplies three percentages in saturating u128, so the product is at most 2**128 - 1 before
    it is scaled down: a step is never more than 340. That cap is observed and kept.
    """
    scale = ONE * ONE // (score + 1)
    product = min(min(abs(ratio - minimum) * factor, U128_MAX) * scale, U128_MAX)
    return product // ONE // ONE


# --- emissions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EpochEmissions:
    """New planck of one epoch: to be shared by the subnets, and for the treasury."""

    subnets: int
    treasury: int


def epoch_emissions(
    active_nodes: int, *, max_nodes: int, midpoint: int, steepness: int, epochs_per_year: int
) -> EpochEmissions:
    """Emissions of one epoch; they fall as the network fills (``active_nodes`` of ``max_nodes``)."""
    utilization = _clamp(active_nodes / max_nodes, 0.0, 1.0) if max_nodes else 0.0
    curve = sigmoid_decreasing(utilization, midpoint=to_f64(midpoint), steepness=float(steepness))
    yearly = _YEARLY_EMISSION_MIN + (_YEARLY_EMISSION_MAX - _YEARLY_EMISSION_MIN) * curve
    treasury = yearly * _TREASURY_SHARE
    return EpochEmissions(
        subnets=_truncate((yearly - treasury) / float(epochs_per_year)),
        treasury=_truncate(treasury / float(epochs_per_year)),
    )


@dataclass(frozen=True, slots=True)
class SubnetShare:
    """What a subnet's emission weight is computed from."""

    delegate_stake: int
    electable_nodes: int
    net_flow: int
    overwatch_weight: int | None = None
    """Percentage the overwatchers gave, already times its factor; None when they said nothing (counts as
    1.0)."""


@dataclass(frozen=True, slots=True)
class WeightFactors:
    """How much each part counts (percentages), and the power the result is raised to."""

    delegate_stake: int
    node_count: int
    net_flow: int
    power: int


def subnet_weights(
    subnets: Mapping[int, SubnetShare],
    *,
    total_delegate_stake: int,
    total_electable_nodes: int,
    factors: WeightFactors,
) -> dict[int, int]:
    """Emission weight (percentage, summing to about 1.0) of every active subnet.

    With no delegate stake or no electable node anywhere the runtime divides 0 by 0, and the NaN ends as
    weight 0 for every subnet: nothing is paid. That is kept.
    """
    if not subnets:
        return {}
    if total_delegate_stake == 0 or total_electable_nodes == 0:
        return dict.fromkeys(sorted(subnets), 0)
    flow_floor = min(s.net_flow for s in subnets.values())
    flow_sum = sum(s.net_flow - flow_floor for s in subnets.values())
    adjusted: dict[int, float] = {}
    total = 0.0
    # In storage order, which decides how the sum rounds.
    for subnet_id in sorted(subnets, key=lambda each: each.to_bytes(4, "little")):
        s = subnets[subnet_id]
        stake = _clamp(s.delegate_stake / total_delegate_stake, 0.0, 1.0)
        nodes = s.electable_nodes / total_electable_nodes
        flow = to_f64(percent_div(s.net_flow - flow_floor, flow_sum))
        overwatch = 1.0 if s.overwatch_weight is None else min(to_f64(s.overwatch_weight), 1.0)
        weight = _clamp(
            (
                stake * to_f64(factors.delegate_stake)
                + nodes * to_f64(factors.node_count)
                + flow * to_f64(factors.net_flow)
            )
            * overwatch,
            0.0,
            1.0,
        )
        adjusted[subnet_id] = power(weight, to_f64(factors.power))
        total += adjusted[subnet_id]
    if total == 0.0:
        return dict.fromkeys(sorted(subnets), 0)
    return {subnet_id: _truncate(adjusted[subnet_id] / total * 1e18) for subnet_id in sorted(adjusted)}


@dataclass(frozen=True, slots=True)
class Pools:
    """How one subnet's emission of one epoch is divided; the parts sum to the whole, in planck."""

    owner: int
    delegators: int
    nodes: int


def split_subnet_emission(
    subnets_emission: int, weight: int, *, owner_percentage: int, delegate_percentage: int
) -> Pools:
    """Divide a subnet's part (``weight``) of the epoch's emission."""
    whole = percent_mul(subnets_emission, weight)
    owner = percent_mul(whole, owner_percentage)
    delegators = percent_mul(whole - owner, delegate_percentage)
    return Pools(owner=owner, delegators=delegators, nodes=whole - owner - delegators)


def node_reward(nodes_pool: int, score: int, *, score_sum: int, factor: int) -> int:
    """Planck a validator earns for ``score`` of ``score_sum``, times its attestor factor."""
    return percent_mul(percent_mul(percent_div(score, score_sum), nodes_pool), factor)


# --- prices ----------------------------------------------------------------------------------------------------------


def registration_cost(last_cost: int, blocks_since: int, *, minimum: int, decay_blocks: int, exponent: int) -> int:
    """Price of registering a subnet: it falls from ``last_cost`` to ``minimum`` over ``decay_blocks``
    blocks."""
    if decay_blocks == 0 or last_cost <= minimum:
        return max(last_cost, minimum)
    if blocks_since >= decay_blocks:
        return minimum
    remaining = percent_div(decay_blocks - blocks_since, decay_blocks)
    addend = float(last_cost - minimum) * power(to_f64(remaining), to_f64(exponent))
    return minimum + _truncate(addend)


def next_burn_rate(rate: int, registrations: int, *, target: int, alpha: int, minimum: int, maximum: int) -> int:
    """The node burn rate of the next epoch: a moving average towards what this epoch's registrations ask
    for."""
    if registrations == 0:
        wanted = minimum
    elif registrations >= target:
        wanted = maximum
    else:
        wanted = minimum + percent_mul(max(maximum - minimum, 0), percent_div(registrations, target))
    average = percent_mul(wanted, alpha) + percent_mul(rate, max(ONE - alpha, 0))
    return min(max(average, minimum), maximum)


def min_delegate_stake_multiplier(electable_nodes: int, *, min_nodes: int, max_nodes: int, max_multiplier: int) -> int:
    """How much the minimum delegate stake of a subnet grows with its nodes: from 1.0 to
    ``max_multiplier``."""
    if electable_nodes <= min_nodes:
        return ONE
    if electable_nodes >= max_nodes:
        return max_multiplier
    ratio = percent_div(electable_nodes - min_nodes, max_nodes - min_nodes)
    return ONE + percent_mul(ratio, max(max_multiplier - ONE, 0))


# --- delegate pools --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pool:
    """A delegate pool, of a subnet or of a node: its shares, dead ones too, and the planck they stand for.

    A share's price is ``(balance + 1) / (shares + 10)``. Buying and selling round it up, never down, so no order
    of them takes out more than was put in and given; a gift raises it for everybody.
    """

    shares: int
    balance: int


def buy_shares(pool: Pool, amount: int) -> tuple[Pool, int]:
    """The pool after a deposit of ``amount`` planck, and the shares bought: 0 when it is worth less than one.

    The first buyer of a pool without shares gets them 1:1 and pays for `MIN_LIQUIDITY` dead ones.
    """
    bought = balance_to_shares(amount, total_shares=pool.shares, total_balance=pool.balance)
    dead = MIN_LIQUIDITY if pool.shares == 0 else 0
    return Pool(pool.shares + dead + bought, pool.balance + amount), bought


def sell_shares(pool: Pool, shares: int) -> tuple[Pool, int]:
    """The pool after ``shares`` of it are sold, and the planck paid for them; a pool always has as much."""
    amount = shares_to_balance(shares, total_shares=pool.shares, total_balance=pool.balance)
    return Pool(pool.shares - shares, pool.balance - amount), amount


def give_to_pool(pool: Pool, amount: int) -> Pool:
    """The pool after a reward or a donation: the shares stay. An empty pool gets dead shares first."""
    if amount == 0:
        return pool
    dead = MIN_LIQUIDITY if pool.balance == 0 or pool.shares == 0 else 0
    return Pool(pool.shares + dead, pool.balance + amount)


def balance_to_shares(balance: int, *, total_shares: int, total_balance: int) -> int:
    """Shares bought by ``balance`` planck; an empty pool sells them 1:1. Rounded down, against the buyer."""
    if total_shares == 0:
        return balance
    return min(balance * (total_shares + 10) // (total_balance + 1), U128_MAX)


def shares_to_balance(shares: int, *, total_shares: int, total_balance: int) -> int:
    """Planck that ``shares`` are worth. Rounded down, against the seller."""
    if total_shares == 0:
        return shares
    return min(shares * (total_balance + 1) // (total_shares + 10), U128_MAX)
