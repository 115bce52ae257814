"""The emergency set: for a bounded time only some validators of a subnet are elected and attest.

An owner whose subnet cannot agree any more, because most of its validators are gone or against it, pauses the
subnet, names validators that can be relied on, and unpauses. From the next subnet epoch on only they are elected,
only they may attest, and they alone are the quorum. The others are absent from what is proposed and lose
reputation until they are removed; then, or at the latest after a number of epochs, the set is gone and everybody is
electable again.

It ends at the first election where

- more rounds were settled than it takes to remove an absent node (``target_emergency_validators_epochs``), or
- ``MaxEmergencyValidatorEpochsMultiplier`` times as many epochs have gone by since the subnet was unpaused, or
- fewer than ``MinSubnetNodes`` of the set are left,

or when the owner takes it back. Nobody climbs to a higher class while it is in force, and nobody outside of the set
is blamed for not attesting.

What is stored has no place for the epoch in which the set came into force; it is the last epoch less the span.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.devchain.pallet import Call, Context, Dispatch
from mesh.devchain.pallets.network import economics, epochs
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.nodes import active_nodes, has_class
from mesh.devchain.pallets.network.owner import SUBNET, authorize
from mesh.devchain.scale import u32, vec


def set_emergency_validator_set(ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_ids: list[int]) -> None:
    """Call 25, of a paused subnet: choose the set, in place of one chosen before.

    Ids that are no validators are left out, and each counts once. What is left must be ``MinSubnetNodes`` to
    ``MaxEmergencySubnetNodes``.
    """
    authorize(ctx, origin, subnet_id)
    if ctx.get(s.SubnetsData, subnet_id)["state"] != "Paused":
        raise Dispatch("SubnetMustBePaused")
    now = epochs.subnet_epoch(ctx, subnet_id)
    validators = {each["id"] for each in active_nodes(ctx, subnet_id) if has_class(each, "Validator", now)}
    chosen = [each for each in dict.fromkeys(subnet_node_ids) if each in validators]
    if len(chosen) < ctx.get(s.MinSubnetNodes):
        raise Dispatch("InvalidMinEmergencySubnetNodes")
    if len(chosen) > ctx.get(s.MaxEmergencySubnetNodes):
        raise Dispatch("InvalidMaxEmergencySubnetNodes")
    data = {
        "subnet_node_ids": chosen,
        "target_emergency_validators_epochs": _epochs_to_removal(ctx, subnet_id),
        "max_emergency_validators_epoch": 0,
        "total_epochs": 0,
    }
    ctx.put(s.EmergencySubnetNodeElectionData, subnet_id, value=data)
    ctx.emit("SubnetForked", subnet_id=subnet_id, owner=origin, subnet_node_ids=chosen)


def revert_emergency_validator_set(ctx: Context, origin: bytes, *, subnet_id: int) -> None:
    """Call 26: take the set back, at any time. A round under way is then judged by all validators again."""
    authorize(ctx, origin, subnet_id)
    ctx.remove(s.EmergencySubnetNodeElectionData, subnet_id)
    ctx.emit("SubnetForkRevert", subnet_id=subnet_id, owner=origin)


def _epochs_to_removal(ctx: Context, subnet_id: int) -> int:
    """Epochs until an absent node of full reputation is removed; no more than the network's limits make it."""
    return min(
        economics.epochs_to_removal(ctx.get(s.MinMinSubnetNodeReputation), ctx.get(s.MinNodeReputationFactor)),
        economics.epochs_to_removal(
            ctx.get(s.MinSubnetNodeReputation, subnet_id), ctx.get(s.AbsentDecreaseReputationFactor, subnet_id)
        ),
    )


def _span(ctx: Context, data: dict[str, Any]) -> int:
    """Epochs the set may last from unpausing on."""
    multiplier = ctx.get(s.MaxEmergencyValidatorEpochsMultiplier)
    return economics.percent_mul(data["target_emergency_validators_epochs"], multiplier)


def come_into_force(ctx: Context, subnet_id: int) -> None:
    """Start the time a chosen set may last; nothing where there is none, or where it runs already."""
    data = ctx.get(s.EmergencySubnetNodeElectionData, subnet_id)
    if data is None or data["max_emergency_validators_epoch"]:
        return
    last = min(epochs.subnet_epoch(ctx, subnet_id) + _span(ctx, data), economics.U32_MAX)
    data["max_emergency_validators_epoch"] = last
    ctx.put(s.EmergencySubnetNodeElectionData, subnet_id, value=data)


def in_force(ctx: Context, subnet_id: int, subnet_epoch: int) -> list[int] | None:
    """The set that alone is elected, attests and is the quorum in a subnet epoch; None where all validators are."""
    data = ctx.get(s.EmergencySubnetNodeElectionData, subnet_id)
    if data is None or data["total_epochs"] > data["target_emergency_validators_epochs"]:
        return None
    last = data["max_emergency_validators_epoch"]
    if not last or not last - _span(ctx, data) < subnet_epoch <= last:
        return None
    chosen: list[int] = data["subnet_node_ids"]
    return chosen


def electable(ctx: Context, subnet_id: int, subnet_epoch: int) -> list[int]:
    """Who can be elected now: the set in force, else the election slots. A set that has ended is removed."""
    chosen = in_force(ctx, subnet_id, subnet_epoch)
    if chosen is not None and len(chosen) >= ctx.get(s.MinSubnetNodes):
        return chosen
    data = ctx.get(s.EmergencySubnetNodeElectionData, subnet_id)
    if data is not None and data["max_emergency_validators_epoch"]:
        ctx.remove(s.EmergencySubnetNodeElectionData, subnet_id)
    slots: list[int] = ctx.get(s.SubnetNodeElectionSlots, subnet_id)
    return slots


def count_round(ctx: Context, subnet_id: int) -> None:
    """Count a settled round towards the end of the set."""
    data = ctx.get(s.EmergencySubnetNodeElectionData, subnet_id)
    data["total_epochs"] += 1
    ctx.put(s.EmergencySubnetNodeElectionData, subnet_id, value=data)


CALLS: Final[tuple[Call, ...]] = (
    Call(
        25,
        "owner_set_emergency_validator_set",
        (SUBNET, ("subnet_node_ids", vec(u32))),
        set_emergency_validator_set,
    ),
    Call(26, "owner_revert_emergency_validator_set", (SUBNET,), revert_emergency_validator_set),
)
"""This file's calls."""
