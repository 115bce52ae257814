"""What the Network pallet does at the start of a block, by the block's place in the epoch.

| block mod L | what                                                            |
| ----------- | --------------------------------------------------------------- |
| 0           | subnets that broke the rules are removed                        |
| 1           | overwatchers' weights and rewards, once an overwatch epoch       |
| 2           | emission weights of the epoch, and the treasury's part          |
| 3 .. L-1    | the subnet whose slot it is: settle, elect, queue, fee average  |

Then, in every block, swaps of delegate stake that have waited long enough.
"""

from __future__ import annotations

import hashlib
from typing import Any

from mesh.devchain.pallet import Context
from mesh.devchain.pallets.network import (
    economics,
    emergency,
    epochs,
    nodes,
    overwatch,
    reputation,
    rewards,
    swaps,
)
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.delegate import min_delegate_stake
from mesh.devchain.pallets.network.subnets import remove_subnet


def on_initialize(ctx: Context) -> None:
    """The pallet's block hook; nothing in epoch 0's first blocks, nothing while the network is paused."""
    if ctx.get(s.TxPause):
        return
    length = epochs.epoch_length(ctx)
    epoch, place = divmod(ctx.block, length)
    if place == 0 and epoch >= 1:
        remove_unfit_subnets(ctx, epoch)
    elif place == 1 and epochs.overwatch_epoch(ctx) >= 1 and epochs.overwatch_block(ctx) == 1:
        overwatch.settle(ctx, epochs.overwatch_epoch(ctx) - 1)
    elif place == 2 and epoch >= 1:
        distribute_weights(ctx, epoch)
    elif place >= epochs.first_slot(ctx):
        subnet_id = ctx.get(s.SlotAssignment, place)
        if subnet_id is not None:
            run_slot(ctx, subnet_id, epoch)
    swaps.run_queue(ctx)


# --- slot block ------------------------------------------------------------------------------------------------------


def run_slot(ctx: Context, subnet_id: int, epoch: int) -> None:
    """A subnet's slot block, if the subnet has a weight in this epoch.

    Paused since the weights were fixed, or paused with a round still to be settled: only that.
    """
    distribution = ctx.get(s.FinalSubnetEmissionWeights, epoch)
    weight = distribution["weights"].get(subnet_id)
    if weight is None:
        return
    subnet_epoch = epochs.subnet_epoch(ctx, subnet_id)
    if subnet_epoch == 0:
        return
    emission = distribution["validator_emissions"]
    rewards.settle(ctx, subnet_id, subnet_epoch=subnet_epoch, emission=emission, weight=weight)
    if not _runs(ctx.get(s.SubnetsData, subnet_id), epoch):
        return
    elect(ctx, subnet_id, subnet_epoch)
    activate_queued(ctx, subnet_id, subnet_epoch)
    update_burn_rate(ctx, subnet_id)


def _runs(subnet: dict[str, Any], epoch: int) -> bool:
    """Whether a subnet is active and its first epoch has come."""
    return bool(subnet["state"] == "Active" and subnet["start_epoch"] <= epoch)


def elect(ctx: Context, subnet_id: int, subnet_epoch: int) -> None:
    """Pick the validator of a subnet epoch from the election slots or the emergency set, by the parent block's hash.

    Whoever authors the parent block can choose among hashes, so a single author could grind this; a
    development chain's only author is trusted.
    """
    if ctx.has(s.SubnetElectedValidator, subnet_id, subnet_epoch):
        return
    slots = emergency.electable(ctx, subnet_id, subnet_epoch)
    if not slots:
        return
    place = draw(ctx.parent_hash, subnet_id, subnet_epoch, len(slots))
    ctx.put(s.SubnetElectedValidator, subnet_id, subnet_epoch, value=slots[place])


def draw(parent_hash: bytes, subnet_id: int, subnet_epoch: int, count: int) -> int:
    """A number below ``count`` that the parent hash, the subnet and the epoch decide."""
    seed = b"election" + parent_hash + subnet_id.to_bytes(4, "little") + subnet_epoch.to_bytes(4, "little")
    return int.from_bytes(hashlib.blake2b(seed, digest_size=32).digest(), "little") % count


def activate_queued(ctx: Context, subnet_id: int, subnet_epoch: int) -> None:
    """Activate, as Idle, up to ``ChurnLimit`` queued nodes that waited out ``SubnetNodeQueueEpochs``.

    The node is taken as it is registered now, so an address changed while waiting counts.
    """
    if subnet_epoch % max(ctx.get(s.ChurnLimitMultiplier, subnet_id), 1):
        return
    room = max(ctx.get(s.MaxSubnetNodes) - ctx.get(s.TotalActiveSubnetNodes, subnet_id), 0)
    wait = ctx.get(s.SubnetNodeQueueEpochs, subnet_id)
    queue = ctx.get(s.SubnetNodeQueue, subnet_id)
    done = 0
    for queued in queue[: min(room, ctx.get(s.ChurnLimit, subnet_id))]:
        if queued["classification"]["start_epoch"] + wait >= subnet_epoch:
            break
        node = ctx.get(s.RegisteredSubnetNodesData, subnet_id, queued["id"])
        nodes.activate(ctx, subnet_id, node, node_class="Idle", subnet_epoch=subnet_epoch)
        done += 1
    if done:
        ctx.put(s.SubnetNodeQueue, subnet_id, value=queue[done:])


def update_burn_rate(ctx: Context, subnet_id: int) -> None:
    """Move the node fee's rate by this epoch's registrations, and start counting anew."""
    rate = economics.next_burn_rate(
        ctx.get(s.CurrentNodeBurnRate, subnet_id),
        ctx.get(s.NodeRegistrationsThisEpoch, subnet_id),
        target=ctx.get(s.TargetNodeRegistrationsPerEpoch, subnet_id),
        alpha=ctx.get(s.NodeBurnRateAlpha, subnet_id),
        minimum=ctx.get(s.MinNodeBurnRate),
        maximum=ctx.get(s.MaxNodeBurnRate),
    )
    ctx.put(s.CurrentNodeBurnRate, subnet_id, value=rate)
    ctx.put(s.NodeRegistrationsThisEpoch, subnet_id, value=0)


# --- emission weights ------------------------------------------------------------------------------------------------


def distribute_weights(ctx: Context, epoch: int) -> None:
    """Fix the epoch's emission and each subnet's weight of it; pay the treasury. Net flows start anew.

    A weight goes to the subnets that run, and to one just paused whose last round waits to be settled.
    """
    shares: dict[int, economics.SubnetShare] = {}
    for (subnet_id,), subnet in list(ctx.items(s.SubnetsData)):
        flow = ctx.get(s.SubnetNetFlow, subnet_id)
        ctx.remove(s.SubnetNetFlow, subnet_id)
        if _runs(subnet, epoch) or ctx.has(s.SubnetConsensusSubmission, subnet_id, epoch - 1):
            shares[subnet_id] = _share(ctx, subnet_id, flow)
    if not shares:
        return
    factors = ctx.get(s.SubnetWeightFactors)
    weights = economics.subnet_weights(
        shares,
        total_delegate_stake=ctx.get(s.TotalDelegateStake),
        total_electable_nodes=ctx.get(s.TotalElectableNodes),
        factors=economics.WeightFactors(
            delegate_stake=factors["delegate_stake"],
            node_count=factors["node_count"],
            net_flow=factors["net_flow"],
            power=ctx.get(s.SubnetDistributionPower),
        ),
    )
    emissions = economics.epoch_emissions(
        ctx.get(s.TotalActiveNodes),
        max_nodes=ctx.get(s.MaxSubnets) * ctx.get(s.MaxSubnetNodes),
        midpoint=ctx.get(s.InflationSigmoidMidpoint),
        steepness=ctx.get(s.InflationSigmoidSteepness),
        epochs_per_year=ctx.pallet.constants["EpochsPerYear"].value,
    )
    ctx.mint(ctx.pallet.constants["TreasuryAccount"].value, emissions.treasury, "treasury")
    data = {"validator_emissions": emissions.subnets, "weights": weights}
    ctx.put(s.FinalSubnetEmissionWeights, epoch, value=data)


def _share(ctx: Context, subnet_id: int, flow: int) -> economics.SubnetShare:
    last = max(epochs.overwatch_epoch(ctx) - 1, 0)
    given = ctx.get(s.OverwatchSubnetWeights, last, subnet_id)
    if given is not None:
        given = economics.percent_mul(given, ctx.get(s.OverwatchWeightFactor))
    return economics.SubnetShare(
        delegate_stake=ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id),
        electable_nodes=ctx.get(s.TotalSubnetElectableNodes, subnet_id),
        net_flow=flow,
        overwatch_weight=given,
    )


# --- removal of subnets ----------------------------------------------------------------------------------------------


def remove_unfit_subnets(ctx: Context, epoch: int) -> None:
    """Remove subnets that missed a deadline or fell below a minimum, and the poorest one when there are too
    many."""
    subnets = [(subnet_id, data) for (subnet_id,), data in list(ctx.items(s.SubnetsData))]
    crowded = (
        len(subnets) > ctx.get(s.MaxSubnets)
        and epoch % max(ctx.get(s.MaxSubnetRemovalInterval), 1) == 0
        and epoch >= ctx.get(s.PrevSubnetActivationEpoch) + ctx.get(s.MinSubnetRemovalInterval)
    )
    staying: list[tuple[int, int]] = []
    for subnet_id, subnet in subnets:
        reason = _REASONS[subnet["state"]](ctx, subnet_id, subnet, epoch)
        if reason is not None:
            remove_subnet(ctx, subnet_id, reason)
        elif subnet["state"] == "Active" and subnet["start_epoch"] <= epoch:
            staying.append((ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id), subnet_id))
    if crowded and staying:
        poorest = min(staying, key=lambda each: each[0])  # of equals the first in storage order
        remove_subnet(ctx, poorest[1], "MaxSubnets")


def _unfit_registered(ctx: Context, subnet_id: int, subnet: dict[str, Any], epoch: int) -> str | None:
    since = ctx.get(s.SubnetRegistrationEpoch, subnet_id)
    if since is None:
        return None
    last_registration = since + ctx.get(s.SubnetRegistrationEpochs)
    if epoch <= last_registration:
        return None
    if epoch > last_registration + ctx.get(s.SubnetEnactmentEpochs):
        return "EnactmentPeriod"
    few = ctx.get(s.TotalActiveSubnetNodes, subnet_id) < ctx.get(s.MinSubnetNodes)
    return "MinSubnetNodes" if few else None


def _unfit_active(ctx: Context, subnet_id: int, subnet: dict[str, Any], epoch: int) -> str | None:
    if subnet["start_epoch"] > epoch:
        return None
    pool = ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id)
    looked_at = epoch % max(ctx.get(s.DelegateStakeSubnetRemovalInterval), 1) == 0
    if looked_at and pool < min_delegate_stake(ctx, subnet_id):
        return "MinSubnetDelegateStake"
    if ctx.get(s.TotalSubnetElectableNodes, subnet_id) < ctx.get(s.MinSubnetNodes):
        reputation.lower_subnet(ctx, subnet_id, ctx.get(s.LessThanMinNodesSubnetReputationFactor))
    low = ctx.get(s.SubnetReputation, subnet_id) < ctx.get(s.MinSubnetReputation)
    return "MinReputation" if low else None


def _unfit_paused(ctx: Context, subnet_id: int, subnet: dict[str, Any], epoch: int) -> str | None:
    if subnet["start_epoch"] + ctx.get(s.MaxSubnetPauseEpochs) >= epoch:
        return None
    left = reputation.lower_subnet(ctx, subnet_id, ctx.get(s.MaxPauseEpochsSubnetReputationFactor))
    return "PauseExpired" if left < ctx.get(s.MinSubnetReputation) else None


_REASONS = {"Registered": _unfit_registered, "Active": _unfit_active, "Paused": _unfit_paused}
