"""Subnets: registering, activating, removing, their slots and bootnodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.devchain.pallet import Context, Dispatch, StorageItem
from mesh.devchain.pallets.network import economics, epochs, peers
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.delegate import min_delegate_stake
from mesh.devchain.pallets.network.nodes import active_nodes, in_enactment
from mesh.devchain.pallets.network.stake import EXISTENTIAL_DEPOSIT, add_to, check_unpaused

NEVER: Final = 2**32 - 1
"""``start_epoch`` of a subnet that is not active yet."""

_PER_SUBNET: Final[tuple[StorageItem, ...]] = (
    s.SubnetsData,
    s.SubnetOwner,
    s.PendingSubnetOwner,
    s.SubnetRegistrationEpoch,
    s.PreviousSubnetPauseEpoch,
    s.ChurnLimit,
    s.ChurnLimitMultiplier,
    s.SubnetNodeQueueEpochs,
    s.IdleClassificationEpochs,
    s.IncludedClassificationEpochs,
    s.SubnetMinStakeBalance,
    s.SubnetMaxStakeBalance,
    s.SubnetDelegateStakeRewardsPercentage,
    s.LastSubnetDelegateStakeRewardsUpdate,
    s.SubnetRegistrationInitialColdkeys,
    s.InitialColdkeyData,
    s.MaxRegisteredNodes,
    s.TargetNodeRegistrationsPerEpoch,
    s.NodeBurnRateAlpha,
    s.CurrentNodeBurnRate,
    s.QueueImmunityEpochs,
    s.SubnetBootnodeAccess,
    s.SubnetBootnodes,
    s.EmergencySubnetNodeElectionData,
    s.SubnetReputation,
    s.MinSubnetNodeReputation,
    s.NodeRegistrationsThisEpoch,
    s.SubnetNodeMinWeightDecreaseReputationThreshold,
    s.AbsentDecreaseReputationFactor,
    s.IncludedIncreaseReputationFactor,
    s.BelowMinWeightDecreaseReputationFactor,
    s.NonAttestorDecreaseReputationFactor,
    s.NonConsensusAttestorDecreaseReputationFactor,
    s.ValidatorAbsentDecreaseReputationFactor,
    s.ValidatorNonConsensusSubnetNodeReputationFactor,
    s.SubnetNetFlow,
    s.TotalSubnetNodes,
    s.TotalSubnetNodeUids,
    s.TotalActiveSubnetNodes,
    s.TotalSubnetElectableNodes,
    s.SubnetNodeElectionSlots,
    s.SubnetNodeQueue,
)
_PER_NODE: Final[tuple[StorageItem, ...]] = (
    s.SubnetNodesData,
    s.RegisteredSubnetNodesData,
    s.PeerIdSubnetNodeId,
    s.BootnodePeerIdSubnetNodeId,
    s.ClientPeerIdSubnetNodeId,
    s.MultiaddrSubnetNodeId,
    s.UniqueParamSubnetNodeId,
    s.HotkeySubnetNodeId,
    s.SubnetNodeIdHotkey,
    s.SubnetNodeReputation,
    s.SubnetNodeIdleConsecutiveEpochs,
    s.SubnetNodeConsecutiveIncludedEpochs,
    s.SubnetElectedValidator,
    s.NodeSlotIndex,
)


def register_subnet(ctx: Context, origin: bytes, *, max_cost: int, subnet_data: dict[str, Any]) -> None:
    """Call 0: pay the treasury, get an id, a friendly id and a slot; nodes may then register."""
    check_unpaused(ctx)
    _check_registration(ctx, subnet_data)
    cost = economics.registration_cost(
        ctx.get(s.LastRegistrationCost),
        ctx.block - ctx.get(s.LastSubnetRegistrationBlock),
        minimum=ctx.get(s.MinRegistrationCost),
        decay_blocks=ctx.get(s.RegistrationCostDecayBlocks),
        exponent=ctx.get(s.RegistrationCostAlpha),
    )
    if cost > max_cost:
        raise Dispatch("CostGreaterThanMaxCost")
    next_cost = economics.percent_mul(cost, ctx.get(s.NewRegistrationCostMultiplier))
    ctx.put(s.LastRegistrationCost, value=next_cost)
    ctx.put(s.LastSubnetRegistrationBlock, value=ctx.block)
    if ctx.free_balance(origin) - cost < EXISTENTIAL_DEPOSIT:
        raise Dispatch("NotEnoughBalanceToRegisterSubnet")
    if cost:
        ctx.transfer(origin, ctx.pallet.constants["TreasuryAccount"].value, cost)

    subnet_id = add_to(ctx, s.TotalSubnetUids, amount=1)
    friendly_id = _assign_slot(ctx, subnet_id) - epochs.first_slot(ctx) + 1
    ctx.put(s.SubnetIdFriendlyUid, subnet_id, value=friendly_id)
    ctx.put(s.FriendlyUidSubnetId, friendly_id, value=subnet_id)
    data = {
        "id": subnet_id,
        "friendly_id": friendly_id,
        **{name: subnet_data[name] for name in ("name", "repo", "description", "misc")},
        "state": "Registered",
        "start_epoch": NEVER,
    }
    ctx.put(s.SubnetsData, subnet_id, value=data)
    ctx.put(s.SubnetOwner, subnet_id, value=origin)
    ctx.put(s.SubnetMinStakeBalance, subnet_id, value=subnet_data["min_stake"])
    ctx.put(s.SubnetMaxStakeBalance, subnet_id, value=subnet_data["max_stake"])
    percentage = subnet_data["delegate_stake_percentage"]
    ctx.put(s.SubnetDelegateStakeRewardsPercentage, subnet_id, value=percentage)
    ctx.put(s.LastSubnetDelegateStakeRewardsUpdate, subnet_id, value=ctx.block)
    ctx.put(s.SubnetRegistrationInitialColdkeys, subnet_id, value=subnet_data["initial_coldkeys"])
    ctx.put(s.SubnetBootnodes, subnet_id, value=subnet_data["bootnodes"])
    ctx.put(s.SubnetName, data["name"], value=subnet_id)
    ctx.put(s.SubnetRepo, data["repo"], value=subnet_id)
    ctx.put(s.SubnetRegistrationEpoch, subnet_id, value=epochs.network_epoch(ctx))
    add_to(ctx, s.TotalSubnets, amount=1)
    ctx.emit("SubnetRegistered", owner=origin, name=data["name"], subnet_id=subnet_id)


def _check_registration(ctx: Context, data: dict[str, Any]) -> None:
    """`Dispatch` with the first rule the registration breaks."""
    if ctx.has(s.SubnetName, data["name"]):
        raise Dispatch("SubnetNameExist")
    if ctx.get(s.TotalSubnets) > ctx.get(s.MaxSubnets):  # one more than that may exist; epoch.py removes one
        raise Dispatch("MaxSubnets")
    if ctx.has(s.SubnetRepo, data["repo"]):
        raise Dispatch("SubnetRepoExist")
    if not data["bootnodes"]:
        raise Dispatch("BootnodesEmpty")
    if len(data["bootnodes"]) > ctx.get(s.MaxBootnodes):
        raise Dispatch("TooManyBootnodes")
    peers.check_bootnodes(data["bootnodes"])
    if not ctx.get(s.MinSubnetMinStake) <= data["min_stake"] <= ctx.get(s.MaxSubnetMinStake):
        raise Dispatch("InvalidSubnetMinStake")
    if data["max_stake"] > ctx.get(s.NetworkMaxStakeBalance):
        raise Dispatch("InvalidSubnetMaxStake")
    if data["min_stake"] > data["max_stake"]:
        raise Dispatch("InvalidSubnetStakeParameters")
    low, high = ctx.get(s.MinDelegateStakePercentage), ctx.get(s.MaxDelegateStakePercentage)
    if not low <= data["delegate_stake_percentage"] <= min(high, economics.ONE):
        raise Dispatch("InvalidMinDelegateStakePercentage")
    coldkeys = data["initial_coldkeys"]
    if len(coldkeys) < ctx.get(s.MinSubnetNodes):
        raise Dispatch("InvalidSubnetRegistrationInitialColdkeys")
    check_initial_coldkeys(ctx, coldkeys)


def check_initial_coldkeys(ctx: Context, coldkeys: Mapping[bytes, int]) -> None:
    """`Dispatch` unless each may register a node and there are no more of them than nodes: every registration reads
    them all."""
    if len(coldkeys) > ctx.get(s.MaxSubnetNodes) or any(count < 1 for count in coldkeys.values()):
        raise Dispatch("InvalidSubnetRegistrationInitialColdkeys")


def _assign_slot(ctx: Context, subnet_id: int) -> int:
    """The lowest free slot; `Dispatch` NoAvailableSlots when all are taken."""
    taken = ctx.get(s.AssignedSlots)
    for slot in range(epochs.first_slot(ctx), epochs.epoch_length(ctx)):
        if slot not in taken:
            ctx.put(s.AssignedSlots, value=taken | {slot})
            ctx.put(s.SubnetSlot, subnet_id, value=slot)
            ctx.put(s.SlotAssignment, slot, value=subnet_id)
            return slot
    raise Dispatch("NoAvailableSlots")


def activate_subnet(ctx: Context, origin: bytes, *, subnet_id: int) -> None:
    """Call 1, signed by the owner: start at the next epoch, if the subnet has nodes and delegate stake
    enough.

    Within the registration period a failed try costs nothing; in the enactment period after it, and later, it
    removes the subnet.
    """
    check_unpaused(ctx)
    if ctx.get(s.SubnetOwner, subnet_id) != origin:
        raise Dispatch("NotSubnetOwner")
    subnet = ctx.get(s.SubnetsData, subnet_id)
    if subnet is None:
        raise Dispatch("InvalidSubnetId")
    if subnet["state"] != "Registered":
        raise Dispatch("SubnetActivatedAlready")
    epoch = epochs.network_epoch(ctx)
    since = ctx.get(s.SubnetRegistrationEpoch, subnet_id)
    if since is None or epoch < since + ctx.get(s.MinSubnetRegistrationEpochs):
        raise Dispatch("MinSubnetRegistrationEpochsNotMet")
    registering = epoch <= since + ctx.get(s.SubnetRegistrationEpochs)
    if not registering and not in_enactment(ctx, subnet_id, subnet):
        remove_subnet(ctx, subnet_id, "EnactmentPeriod")
        return
    reason = _why_not_active(ctx, subnet_id)
    if reason is not None:
        if registering:
            raise Dispatch("SubnetActivationConditionsNotMetYet")
        remove_subnet(ctx, subnet_id, reason)
        return
    subnet["state"] = "Active"
    subnet["start_epoch"] = epoch + 1
    ctx.put(s.SubnetsData, subnet_id, value=subnet)
    add_to(ctx, s.TotalActiveSubnets, amount=1)
    ctx.remove(s.SubnetRegistrationEpoch, subnet_id)
    ctx.remove(s.SubnetRegistrationInitialColdkeys, subnet_id)
    ctx.remove(s.InitialColdkeyData, subnet_id)
    ctx.put(s.LastSubnetDelegateStakeRewardsUpdate, subnet_id, value=ctx.block)
    ctx.put(s.PreviousSubnetPauseEpoch, subnet_id, value=epoch)
    ctx.put(s.PrevSubnetActivationEpoch, value=epoch)
    ctx.emit("SubnetActivated", subnet_id=subnet_id)


def _why_not_active(ctx: Context, subnet_id: int) -> str | None:
    """The removal reason that stands against activation, or None."""
    if ctx.get(s.SubnetReputation, subnet_id) < ctx.get(s.MinSubnetReputation):
        return "MinReputation"
    if ctx.get(s.TotalActiveSubnetNodes, subnet_id) < ctx.get(s.MinSubnetNodes):
        return "MinSubnetNodes"
    if ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id) < min_delegate_stake(ctx, subnet_id):
        return "MinSubnetDelegateStake"
    return None


def remove_subnet(ctx: Context, subnet_id: int, reason: str) -> None:
    """Remove a subnet and its nodes. Stakes and delegate shares stay until their owners take them out."""
    subnet = ctx.get(s.SubnetsData, subnet_id)
    if subnet is None:
        return
    ctx.remove(s.SubnetName, subnet["name"])
    ctx.remove(s.SubnetRepo, subnet["repo"])
    add_to(ctx, s.TotalActiveNodes, amount=-ctx.get(s.TotalActiveSubnetNodes, subnet_id))
    add_to(ctx, s.TotalNodes, amount=-ctx.get(s.TotalSubnetNodes, subnet_id))
    add_to(ctx, s.TotalElectableNodes, amount=-len(ctx.get(s.SubnetNodeElectionSlots, subnet_id)))
    add_to(ctx, s.TotalSubnets, amount=-1)
    if subnet["state"] != "Registered":  # a paused subnet counts as active
        add_to(ctx, s.TotalActiveSubnets, amount=-1)
    for node in active_nodes(ctx, subnet_id):
        coldkey = ctx.get(s.HotkeyOwner, node["hotkey"])
        standing = ctx.get(s.ColdkeyReputation, coldkey)
        standing["total_active_nodes"] = max(standing["total_active_nodes"] - 1, 0)
        ctx.put(s.ColdkeyReputation, coldkey, value=standing)
    friendly_id = ctx.get(s.SubnetIdFriendlyUid, subnet_id)
    if friendly_id is not None:
        ctx.remove(s.FriendlyUidSubnetId, friendly_id)
        ctx.remove(s.SubnetIdFriendlyUid, subnet_id)
    slot = ctx.get(s.SubnetSlot, subnet_id)
    if slot is not None:
        ctx.remove(s.SubnetSlot, subnet_id)
        ctx.remove(s.SlotAssignment, slot)
        ctx.put(s.AssignedSlots, value=ctx.get(s.AssignedSlots) - {slot})
    for item in _PER_SUBNET:
        ctx.remove(item, subnet_id)
    for item in _PER_NODE:
        for keys, _ in list(ctx.items(item, subnet_id)):
            ctx.remove(item, *keys)
    ctx.emit("SubnetDeactivated", subnet_id=subnet_id, reason=reason)


def update_bootnodes(
    ctx: Context, origin: bytes, *, subnet_id: int, add: dict[bytes, bytes], remove: set[bytes]
) -> None:
    """Call 37: change the official bootnodes; for the owner and the accounts it gave access."""
    check_unpaused(ctx)
    if not ctx.has(s.SubnetsData, subnet_id):
        raise Dispatch("InvalidSubnetId")
    access = ctx.get(s.SubnetBootnodeAccess, subnet_id)
    if origin != ctx.get(s.SubnetOwner, subnet_id) and origin not in access:
        raise Dispatch("InvalidAccess")
    peers.check_bootnodes(add)
    kept = {key: value for key, value in ctx.get(s.SubnetBootnodes, subnet_id).items() if key not in remove}
    bootnodes = {**kept, **add}
    if len(bootnodes) > ctx.get(s.MaxBootnodes):
        raise Dispatch("TooManyBootnodes")
    ctx.put(s.SubnetBootnodes, subnet_id, value=bootnodes)
    ctx.emit("BootnodesUpdated", subnet_id=subnet_id, added=add, removed=remove)
