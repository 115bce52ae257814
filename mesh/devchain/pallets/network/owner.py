"""What a subnet's owner may change about it: its texts, its numbers, its stakes, who else may act, its owner.

Every call here is signed by the owner (`Dispatch` NotSubnetOwner for anybody else, also where there is no such
subnet) and refused while the network is paused. Eighteen of the calls only store a number within limits: they are
`SETTINGS`, one table, served by one function. Pausing is in pause.py, the emergency set in emergency.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final

from mesh.devchain.pallet import Call, Context, Dispatch, StorageItem
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.economics import ONE
from mesh.devchain.pallets.network.stake import check_unpaused
from mesh.devchain.pallets.network.subnets import check_initial_coldkeys, remove_subnet
from mesh.devchain.scale import Type, account_id, btree_map, btree_set, bytes_, u32, u128

SUBNET: Final = ("subnet_id", u32)


def authorize(ctx: Context, origin: bytes, subnet_id: int) -> None:
    """`Dispatch` Paused while the network is, NotSubnetOwner unless ``origin`` owns the subnet."""
    check_unpaused(ctx)
    if ctx.get(s.SubnetOwner, subnet_id) != origin:
        raise Dispatch("NotSubnetOwner")


# --- numbers ---------------------------------------------------------------------------------------------------------

Bound = int | StorageItem
"""A limit itself, or the item that holds it: of the network, or of the subnet when the item is a map."""


@dataclass(frozen=True, slots=True)
class Limit:
    """``low <= value <= high``, or this error."""

    error: str
    low: Bound
    high: Bound


class During(Enum):
    """Whether a setting may change while an emergency set is there: what was measured out for it must stay."""

    ANY_TIME = "any time"
    NO_EMERGENCY = "no emergency"


@dataclass(frozen=True, slots=True)
class Setting:
    """A call that stores one number of a subnet; the limits are tried in order."""

    index: int
    call: str
    kind: Type
    item: StorageItem
    event: str
    limits: tuple[Limit, ...]
    during: During = During.ANY_TIME


def _factor(index: int, call: str, item: StorageItem, error: str, *, during: During = During.NO_EMERGENCY) -> Setting:
    """A reputation factor: a percentage within the network's limits for all of them."""
    limits = (
        Limit("InvalidPercent", 0, ONE),
        Limit(error, s.MinNodeReputationFactor, s.MaxNodeReputationFactor),
    )
    name = f"owner_update_{call}_reputation_factor"
    return Setting(index, name, u128, item, f"{item.name}Update", limits, during)


def _epochs(index: int, call: str, item: StorageItem, event: str, *, low: StorageItem, high: StorageItem) -> Setting:
    """A number of nodes or epochs; its error is the event's name turned around."""
    error = "Invalid" + event.removesuffix("Update")
    return Setting(index, f"owner_update_{call}", u32, item, event, (Limit(error, low, high),))


SETTINGS: Final[tuple[Setting, ...]] = (
    _epochs(9, "churn_limit", s.ChurnLimit, "ChurnLimitUpdate", low=s.MinChurnLimit, high=s.MaxChurnLimit),
    _epochs(
        10,
        "churn_limit_multiplier",
        s.ChurnLimitMultiplier,
        "ChurnLimitMultiplierUpdate",
        low=s.MinChurnLimitMultiplier,
        high=s.MaxChurnLimitMultiplier,
    ),
    _epochs(
        11,
        "registration_queue_epochs",
        s.SubnetNodeQueueEpochs,
        "RegistrationQueueEpochsUpdate",
        low=s.MinQueueEpochs,
        high=s.MaxQueueEpochs,
    ),
    _epochs(
        12,
        "idle_classification_epochs",
        s.IdleClassificationEpochs,
        "IdleClassificationEpochsUpdate",
        low=s.MinIdleClassificationEpochs,
        high=s.MaxIdleClassificationEpochs,
    ),
    _epochs(
        13,
        "included_classification_epochs",
        s.IncludedClassificationEpochs,
        "IncludedClassificationEpochsUpdate",
        low=s.MinIncludedClassificationEpochs,
        high=s.MaxIncludedClassificationEpochs,
    ),
    _factor(
        14,
        "non_consensus_attestor_decrease",
        s.NonConsensusAttestorDecreaseReputationFactor,
        "InvalidNonConsensusAttestorDecreaseReputationFactor",
    ),
    _factor(15, "absent_decrease", s.AbsentDecreaseReputationFactor, "InvalidAbsentDecreaseReputationFactor"),
    _factor(
        16,
        "included_increase",
        s.IncludedIncreaseReputationFactor,
        "InvalidIncludedIncreaseReputationFactor",
        during=During.ANY_TIME,
    ),
    _factor(
        17,
        "below_min_weight_decrease",
        s.BelowMinWeightDecreaseReputationFactor,
        "InvalidBelowMinWeightDecreaseReputationFactor",
    ),
    _factor(
        18,
        "non_attestor_decrease",
        s.NonAttestorDecreaseReputationFactor,
        "InvalidNonAttestorDecreaseReputationFactor",
    ),
    _factor(
        19,
        "validator_absent_decrease",
        s.ValidatorAbsentDecreaseReputationFactor,
        "InvalidNonValidatorAbsentDecreaseReputationFactor",
    ),
    _factor(
        20,
        "validator_non_consensus_decrease",
        s.ValidatorNonConsensusSubnetNodeReputationFactor,
        "InvalidValidatorNonConsensusSubnetNodeReputationFactor",
    ),
    Setting(
        21,
        "owner_update_subnet_node_min_weight_decrease_reputation_threshold",
        u128,
        s.SubnetNodeMinWeightDecreaseReputationThreshold,
        "SubnetNodeMinWeightDecreaseReputationThresholdUpdate",
        (Limit("InvalidPercent", 0, s.MaxSubnetNodeMinWeightDecreaseReputationThreshold),),
    ),
    Setting(
        22,
        "owner_update_min_subnet_node_reputation",
        u128,
        s.MinSubnetNodeReputation,
        "MinSubnetNodeReputationUpdate",
        (
            Limit("InvalidPercent", 0, ONE),
            Limit("MinSubnetNodeReputation", s.MinMinSubnetNodeReputation, s.MaxMinSubnetNodeReputation),
        ),
    ),
    Setting(
        29,
        "owner_update_max_registered_nodes",
        u32,
        s.MaxRegisteredNodes,
        "MaxRegisteredNodesUpdate",
        (
            Limit("InvalidMaxRegisteredNodes", s.MinMaxRegisteredNodes, s.MaxMaxRegisteredNodes),
            Limit("InvalidMaxRegisteredNodes", 0, s.TargetNodeRegistrationsPerEpoch),
        ),
    ),
    Setting(
        34,
        "owner_update_target_node_registrations_per_epoch",
        u32,
        s.TargetNodeRegistrationsPerEpoch,
        "TargetNodeRegistrationsPerEpochUpdate",
        (Limit("InvalidTargetNodeRegistrationsPerEpoch", 1, s.MaxRegisteredNodes),),
    ),
    Setting(
        35,
        "owner_update_node_burn_rate_alpha",
        u128,
        s.NodeBurnRateAlpha,
        "NodeBurnRateAlphaUpdate",
        (Limit("InvalidPercent", 0, ONE),),
    ),
    Setting(
        36,
        "owner_update_queue_immunity_epochs",
        u32,
        s.QueueImmunityEpochs,
        "QueueImmunityEpochsUpdate",
        (),
    ),
)
"""Calls 9 to 22, 29 and 34 to 36."""


def update_setting(ctx: Context, origin: bytes, setting: Setting, *, subnet_id: int, value: int) -> None:
    """Store a subnet's number, within the setting's limits."""
    authorize(ctx, origin, subnet_id)
    for limit in setting.limits:
        if not _bound(ctx, limit.low, subnet_id) <= value <= _bound(ctx, limit.high, subnet_id):
            raise Dispatch(limit.error)
    if setting.during is During.NO_EMERGENCY and ctx.has(s.EmergencySubnetNodeElectionData, subnet_id):
        raise Dispatch("EmergencyValidatorsSet")
    ctx.put(setting.item, subnet_id, value=value)
    ctx.emit(setting.event, subnet_id=subnet_id, owner=origin, value=value)


def _bound(ctx: Context, bound: Bound, subnet_id: int) -> int:
    if isinstance(bound, int):
        return bound
    return int(ctx.get(bound, subnet_id) if bound.hashed_keys else ctx.get(bound))


# --- texts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """A call that changes one text of a subnet. ``taken`` maps the text to its subnet where it must be unique."""

    index: int
    field: str
    event: str
    taken: StorageItem | None = None
    error: str = ""


TEXTS: Final[tuple[Text, ...]] = (
    Text(5, "name", "SubnetNameUpdate", s.SubnetName, "SubnetNameExist"),
    Text(6, "repo", "SubnetRepoUpdate", s.SubnetRepo, "SubnetRepoExist"),
    Text(7, "description", "SubnetDescriptionUpdate"),
    Text(8, "misc", "SubnetMiscUpdate"),
)


def update_text(ctx: Context, origin: bytes, text: Text, *, subnet_id: int, value: bytes) -> None:
    """Change a text. A name or repository that any subnet has, this one too, is taken; the old one gets free."""
    authorize(ctx, origin, subnet_id)
    if text.taken is not None and ctx.has(text.taken, value):
        raise Dispatch(text.error)
    subnet = ctx.get(s.SubnetsData, subnet_id)
    previous = subnet[text.field]
    subnet[text.field] = value
    ctx.put(s.SubnetsData, subnet_id, value=subnet)
    if text.taken is not None:
        ctx.remove(text.taken, previous)
        ctx.put(text.taken, value, value=subnet_id)
    ctx.emit(text.event, subnet_id=subnet_id, owner=origin, prev_value=previous, value=value)


# --- stakes and rewards ----------------------------------------------------------------------------------------------


def update_min_max_stake(ctx: Context, origin: bytes, *, subnet_id: int, min: int, max: int) -> None:
    """Call 27: the planck a node must and may stake.

    Nodes that have less now stay, but proof of stake fails for them until they add.
    """
    authorize(ctx, origin, subnet_id)
    if min > max:
        raise Dispatch("InvalidValues")
    if not ctx.get(s.MinSubnetMinStake) <= min <= ctx.get(s.MaxSubnetMinStake):
        raise Dispatch("InvalidSubnetMinStake")
    if max > ctx.get(s.NetworkMaxStakeBalance):
        raise Dispatch("InvalidSubnetMaxStake")
    ctx.put(s.SubnetMinStakeBalance, subnet_id, value=min)
    ctx.put(s.SubnetMaxStakeBalance, subnet_id, value=max)
    ctx.emit("SubnetMinMaxStakeBalanceUpdate", subnet_id=subnet_id, owner=origin, min=min, max=max)


def update_delegate_stake_percentage(ctx: Context, origin: bytes, *, subnet_id: int, value: int) -> None:
    """Call 28: the delegators' part of the rewards; seldom, and by a little only, so that they can leave in time.

    ``SubnetDelegateStakeRewardsUpdatePeriod`` blocks must lie between two changes.
    """
    authorize(ctx, origin, subnet_id)
    last = ctx.get(s.LastSubnetDelegateStakeRewardsUpdate, subnet_id)
    if last + ctx.get(s.SubnetDelegateStakeRewardsUpdatePeriod) >= ctx.block:
        raise Dispatch("DelegateStakePercentageUpdateTooSoon")
    change = abs(value - ctx.get(s.SubnetDelegateStakeRewardsPercentage, subnet_id))
    if change > ctx.get(s.MaxSubnetDelegateStakeRewardsPercentageChange):
        raise Dispatch("DelegateStakePercentageAbsDiffTooLarge")
    low, high = ctx.get(s.MinDelegateStakePercentage), ctx.get(s.MaxDelegateStakePercentage)
    if not low <= value <= min(high, ONE):
        raise Dispatch("InvalidDelegateStakePercentage")
    ctx.put(s.LastSubnetDelegateStakeRewardsUpdate, subnet_id, value=ctx.block)
    ctx.put(s.SubnetDelegateStakeRewardsPercentage, subnet_id, value=value)
    ctx.emit("SubnetDelegateStakeRewardsPercentageUpdate", subnet_id=subnet_id, owner=origin, value=value)


# --- who may join before activation ----------------------------------------------------------------------------------


def _authorize_registering(ctx: Context, origin: bytes, subnet_id: int) -> None:
    authorize(ctx, origin, subnet_id)
    if ctx.get(s.SubnetsData, subnet_id)["state"] != "Registered":
        raise Dispatch("SubnetMustBeRegistering")


def add_or_update_initial_coldkeys(ctx: Context, origin: bytes, *, subnet_id: int, coldkeys: dict[bytes, int]) -> None:
    """Call 23: let coldkeys register up to a number of nodes each, before the subnet is activated."""
    _authorize_registering(ctx, origin, subnet_id)
    allowed = {**(ctx.get(s.SubnetRegistrationInitialColdkeys, subnet_id) or {}), **coldkeys}
    check_initial_coldkeys(ctx, allowed)
    ctx.put(s.SubnetRegistrationInitialColdkeys, subnet_id, value=allowed)
    ctx.emit("AddSubnetRegistrationInitialColdkeys", subnet_id=subnet_id, owner=origin, coldkeys=coldkeys)


def remove_initial_coldkeys(ctx: Context, origin: bytes, *, subnet_id: int, coldkeys: set[bytes]) -> None:
    """Call 24. As in the network, an emptied list is no list: then anybody may register."""
    _authorize_registering(ctx, origin, subnet_id)
    allowed = ctx.get(s.SubnetRegistrationInitialColdkeys, subnet_id) or {}
    left = {coldkey: count for coldkey, count in allowed.items() if coldkey not in coldkeys}
    if left:
        ctx.put(s.SubnetRegistrationInitialColdkeys, subnet_id, value=left)
    else:
        ctx.remove(s.SubnetRegistrationInitialColdkeys, subnet_id)
    ctx.emit("RemoveSubnetRegistrationInitialColdkeys", subnet_id=subnet_id, owner=origin, coldkeys=coldkeys)


# --- who may act -----------------------------------------------------------------------------------------------------


def transfer_subnet_ownership(ctx: Context, origin: bytes, *, subnet_id: int, new_owner: bytes) -> None:
    """Call 30: offer the subnet to an account, which must accept. Offering it to another one takes the offer back."""
    authorize(ctx, origin, subnet_id)
    ctx.put(s.PendingSubnetOwner, subnet_id, value=new_owner)
    ctx.emit("TransferPendingSubnetOwner", subnet_id=subnet_id, owner=origin, new_owner=new_owner)


def accept_subnet_ownership(ctx: Context, origin: bytes, *, subnet_id: int) -> None:
    """Call 31, signed by the account it was offered to, which is the owner from then on."""
    check_unpaused(ctx)
    offered = ctx.get(s.PendingSubnetOwner, subnet_id)
    if offered is None:
        raise Dispatch("NoPendingSubnetOwner")
    if offered != origin:
        raise Dispatch("NotPendingSubnetOwner")
    ctx.put(s.SubnetOwner, subnet_id, value=origin)
    ctx.remove(s.PendingSubnetOwner, subnet_id)
    ctx.emit("AcceptPendingSubnetOwner", subnet_id=subnet_id, new_owner=origin)


def add_bootnode_access(ctx: Context, origin: bytes, *, subnet_id: int, new_account: bytes) -> None:
    """Call 32: let an account change the official bootnodes, as call 37 does for the owner."""
    authorize(ctx, origin, subnet_id)
    access = ctx.get(s.SubnetBootnodeAccess, subnet_id)
    if new_account in access:
        raise Dispatch("InBootnodeAccessList")
    if len(access) >= ctx.get(s.MaxSubnetBootnodeAccess):
        raise Dispatch("MaxSubnetBootnodeAccess")
    ctx.put(s.SubnetBootnodeAccess, subnet_id, value=access | {new_account})
    ctx.emit("AddSubnetBootnodeAccess", subnet_id=subnet_id, owner=origin, new_account=new_account)


def remove_bootnode_access(ctx: Context, origin: bytes, *, subnet_id: int, remove_account: bytes) -> None:
    """Call 33. Bootnodes the account has set stay."""
    authorize(ctx, origin, subnet_id)
    access = ctx.get(s.SubnetBootnodeAccess, subnet_id)
    if remove_account not in access:
        raise Dispatch("NotInAccessList")
    ctx.put(s.SubnetBootnodeAccess, subnet_id, value=access - {remove_account})
    ctx.emit("RemoveSubnetBootnodeAccess", subnet_id=subnet_id, owner=origin, remove_account=remove_account)


def deactivate_subnet(ctx: Context, origin: bytes, *, subnet_id: int) -> None:
    """Call 4: remove the subnet, in whatever state it is. Stakes and delegate shares stay their owners'."""
    authorize(ctx, origin, subnet_id)
    remove_subnet(ctx, subnet_id, "Owner")


CALLS: Final[tuple[Call, ...]] = (
    Call(4, "owner_deactivate_subnet", (SUBNET,), deactivate_subnet),
    *(
        Call(each.index, f"owner_update_{each.field}", (SUBNET, ("value", bytes_)), partial(update_text, text=each))
        for each in TEXTS
    ),
    *(
        Call(each.index, each.call, (SUBNET, ("value", each.kind)), partial(update_setting, setting=each))
        for each in SETTINGS
    ),
    Call(
        23,
        "owner_add_or_update_initial_coldkeys",
        (SUBNET, ("coldkeys", btree_map(account_id, u32))),
        add_or_update_initial_coldkeys,
    ),
    Call(
        24,
        "owner_remove_initial_coldkeys",
        (SUBNET, ("coldkeys", btree_set(account_id))),
        remove_initial_coldkeys,
    ),
    Call(27, "owner_update_min_max_stake", (SUBNET, ("min", u128), ("max", u128)), update_min_max_stake),
    Call(
        28,
        "owner_update_delegate_stake_percentage",
        (SUBNET, ("value", u128)),
        update_delegate_stake_percentage,
    ),
    Call(30, "transfer_subnet_ownership", (SUBNET, ("new_owner", account_id)), transfer_subnet_ownership),
    Call(31, "accept_subnet_ownership", (SUBNET,), accept_subnet_ownership),
    Call(32, "owner_add_bootnode_access", (SUBNET, ("new_account", account_id)), add_bootnode_access),
    Call(33, "owner_remove_bootnode_access", (SUBNET, ("remove_account", account_id)), remove_bootnode_access),
)
"""This file's calls."""
