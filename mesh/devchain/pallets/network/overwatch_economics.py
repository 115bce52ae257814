"""The arithmetic of overwatching: what the overwatchers' weights make of a subnet, and who is paid how much.

Pure, like economics.py, and with the same units: planck, and percentages where 1e18 means 1.0. Only the
damping of stakes is a double, as in the network's runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.devchain.pallets.network import economics
from mesh.devchain.pallets.network.economics import ONE, from_f64, percent_div, percent_mul, to_f64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one overwatch epoch comes to. Nodes with no part in it are not in the mappings."""

    subnet_weights: dict[int, int]
    """Percentage by subnet: the mean of its weights, each counting by its giver's damped stake."""
    node_weights: dict[int, int]
    """Percentage by node, summing to at most 1.0: its share of the reward."""
    rewards: dict[int, int]
    """Planck by node, summing to at most the emission."""


def stake_weights(stakes: Mapping[int, int], *, power: int) -> dict[int, int]:
    """How much each node's word counts: its stake to a power below 1.0, as a percentage of all of them.

    One without stake has no word at all: a subnet that it alone weighs is not weighed.
    """
    damped = {
        node_id: from_f64(economics.power(float(stake), to_f64(power))) for node_id, stake in stakes.items() if stake
    }
    total = sum(damped.values())
    return {node_id: percent_div(each, total) for node_id, each in damped.items()}


def settle(
    reveals: Mapping[int, Mapping[int, int]], stakes: Mapping[int, int], *, power: int, emission: int
) -> Outcome:
    """Settle an epoch.

    ``reveals`` are the weights (percentages) by subnet and node; ``stakes`` the planck of each node among them:
    a node without one does not count. A node's score is, over the subnets it weighed, how close it came to the
    result, times the result.
    """
    counts = stake_weights(stakes, power=power)
    weights: dict[int, int] = {}
    scores: dict[int, int] = dict.fromkeys(stakes, 0)
    for subnet_id, given in sorted(reveals.items()):
        counted = {node_id: weight for node_id, weight in given.items() if node_id in counts}
        if not counted:
            continue
        result = min(sum(percent_mul(weight, counts[node_id]) for node_id, weight in counted.items()), ONE)
        weights[subnet_id] = result
        for node_id, weight in counted.items():
            scores[node_id] += percent_mul(max(ONE - abs(weight - result), 0), result)
    total = sum(scores.values())
    shares = {node_id: percent_div(score, total) for node_id, score in sorted(scores.items()) if score}
    rewards = {node_id: percent_mul(share, emission) for node_id, share in shares.items()}
    return Outcome(weights, shares, {node_id: amount for node_id, amount in rewards.items() if amount})
