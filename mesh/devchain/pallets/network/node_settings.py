"""What a node says of itself and may change later: its delegators' rate, its unique and non-unique bytes."""

from __future__ import annotations

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import economics, nodes
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import check_unpaused


def update_node_delegate_reward_rate(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, new_delegate_reward_rate: int
) -> None:
    """Call 44, signed by the coldkey: the part (percentage) of the node's rewards its delegators get.

    At most once per ``NodeRewardRateUpdatePeriod`` blocks; up freely, down by ``MaxRewardRateDecrease``. Rewards
    of an epoch whose proposal is in are still paid at the rate it was proposed under.
    """
    check_unpaused(ctx)
    nodes.check_coldkey(ctx, origin, subnet_id, subnet_node_id)
    rate = new_delegate_reward_rate
    if rate > min(economics.ONE, ctx.get(s.MaxDelegateStakePercentage)):
        raise Dispatch("InvalidDelegateRewardRate")
    node = nodes.require_node(ctx, subnet_id, subnet_node_id)
    if ctx.block - node["last_delegate_reward_rate_update"] < ctx.get(s.NodeRewardRateUpdatePeriod):
        raise Dispatch("MaxRewardRateUpdates")
    if rate == node["delegate_reward_rate"]:
        raise Dispatch("NoDelegateRewardRateChange")
    if node["delegate_reward_rate"] - rate > ctx.get(s.MaxRewardRateDecrease):
        raise Dispatch("SurpassesMaxRewardRateDecrease")
    node["delegate_reward_rate"] = rate
    node["last_delegate_reward_rate_update"] = ctx.block
    nodes.write_node(ctx, subnet_id, node)
    ctx.emit(
        "SubnetNodeUpdateDelegateRewardRate",
        subnet_id=subnet_id,
        subnet_node_id=subnet_node_id,
        delegate_reward_rate=rate,
    )


def update_unique(ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, unique: bytes | None) -> None:
    """Call 45, signed by the coldkey or the hotkey: bytes that no other node of the subnet has."""
    check_unpaused(ctx)
    nodes.check_keys(ctx, origin, subnet_id, subnet_node_id)
    node = nodes.require_node(ctx, subnet_id, subnet_node_id)
    if node["unique"] is not None:
        ctx.remove(s.UniqueParamSubnetNodeId, subnet_id, node["unique"])
    if unique is not None:
        if ctx.has(s.UniqueParamSubnetNodeId, subnet_id, unique):
            raise Dispatch("UniqueParameterTaken")
        ctx.put(s.UniqueParamSubnetNodeId, subnet_id, unique, value=subnet_node_id)
    node["unique"] = unique
    nodes.write_node(ctx, subnet_id, node)
    ctx.emit("SubnetNodeUpdateUnique", subnet_id=subnet_id, subnet_node_id=subnet_node_id, unique=unique)


def update_non_unique(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, non_unique: bytes | None
) -> None:
    """Call 46, signed by the coldkey or the hotkey: any bytes."""
    check_unpaused(ctx)
    nodes.check_keys(ctx, origin, subnet_id, subnet_node_id)
    node = nodes.require_node(ctx, subnet_id, subnet_node_id)
    node["non_unique"] = non_unique
    nodes.write_node(ctx, subnet_id, node)
    ctx.emit("SubnetNodeUpdateNonUnique", subnet_id=subnet_id, subnet_node_id=subnet_node_id, non_unique=non_unique)
