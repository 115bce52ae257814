"""Reputation of nodes, subnets and coldkeys: how it moves, and what says so.

A node starts at 1.0 (nothing stored); below the subnet's ``MinSubnetNodeReputation`` it is removed. A subnet
below ``MinSubnetReputation`` is removed. A coldkey's score decides whether it may have an overwatch node.
"""

from __future__ import annotations

from mesh.devchain.pallet import Context
from mesh.devchain.pallets.network import economics
from mesh.devchain.pallets.network import storage as s


def set_node(ctx: Context, subnet_id: int, node_id: int, new: int) -> int:
    """Store a node's reputation and say so; gives it back. A node that is gone keeps none."""
    previous = ctx.get(s.SubnetNodeReputation, subnet_id, node_id)
    if not ctx.has(s.SubnetNodeIdHotkey, subnet_id, node_id):
        return new
    ctx.put(s.SubnetNodeReputation, subnet_id, node_id, value=new)
    ctx.emit(
        "NodeReputationUpdate",
        subnet_id=subnet_id,
        subnet_node_id=node_id,
        prev_reputation=previous,
        new_reputation=new,
    )
    return new


def raise_node(ctx: Context, subnet_id: int, node_id: int, factor: int) -> int:
    """Raise a node's reputation by a factor, unless it is full; gives the new one."""
    now = ctx.get(s.SubnetNodeReputation, subnet_id, node_id)
    if now >= economics.ONE:
        return int(now)
    return set_node(ctx, subnet_id, node_id, economics.raise_reputation(now, factor))


def lower_node(ctx: Context, subnet_id: int, node_id: int, factor: int) -> int:
    """Lower a node's reputation by a factor; gives the new one."""
    now = ctx.get(s.SubnetNodeReputation, subnet_id, node_id)
    return set_node(ctx, subnet_id, node_id, economics.lower_reputation(now, factor))


def _set_subnet(ctx: Context, subnet_id: int, previous: int, new: int) -> int:
    ctx.put(s.SubnetReputation, subnet_id, value=new)
    ctx.emit("SubnetReputationUpdate", subnet_id=subnet_id, prev_reputation=previous, new_reputation=new)
    return new


def raise_subnet(ctx: Context, subnet_id: int, factor: int) -> None:
    """Raise a subnet's reputation by a factor, unless it is full."""
    now = ctx.get(s.SubnetReputation, subnet_id)
    if now < economics.ONE:
        _set_subnet(ctx, subnet_id, now, economics.raise_reputation(now, factor))


def lower_subnet(ctx: Context, subnet_id: int, factor: int) -> int:
    """Lower a subnet's reputation by a factor; gives the new one."""
    now = ctx.get(s.SubnetReputation, subnet_id)
    return _set_subnet(ctx, subnet_id, now, economics.lower_reputation(now, factor))


def move_coldkey(ctx: Context, coldkey: bytes, ratio: int, *, epoch: int) -> None:
    """Move a proposer's coldkey up or down by how its proposal fared against the minimum ratio."""
    if not ctx.has(s.ColdkeyReputation, coldkey):
        return
    minimum = ctx.get(s.MinAttestationPercentage)
    rises = ratio >= minimum
    factor = ctx.get(s.ColdkeyReputationIncreaseFactor if rises else s.ColdkeyReputationDecreaseFactor)
    entry = ctx.get(s.ColdkeyReputation, coldkey)
    step = economics.coldkey_reputation_step(entry["score"], ratio, minimum=minimum, factor=factor)
    score = min(entry["score"] + step, economics.ONE) if rises else max(entry["score"] - step, 0)
    if score == entry["score"]:
        return
    before = entry["total_increases"] + entry["total_decreases"]
    entry["score"] = score
    entry["total_increases" if rises else "total_decreases"] += 1
    entry["last_validator_epoch"] = epoch
    entry["start_epoch"] = entry["start_epoch"] or epoch
    entry["average_attestation"] = (entry["average_attestation"] * before + ratio) // (before + 1)
    ctx.put(s.ColdkeyReputation, coldkey, value=entry)
