"""Moving delegated planck from one pool to another, without the unbonding ledger but not at once.

A swap sells the shares now and waits an epoch in the queue; then the block hook buys shares of the target, at
its price of that block. While it waits its owner may choose another target. When the target is gone by then,
or sells no share for so little, the planck goes to the owner's unbonding ledger, due at once: it has waited.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.devchain.pallet import Context, Dispatch, DispatchOther
from mesh.devchain.pallets.network import epochs, nodes, pools
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.delegate import check_subnet, count_flow, leave
from mesh.devchain.pallets.network.node_delegate import check_node
from mesh.devchain.pallets.network.stake import check_unpaused, refund

MAX_QUEUE: Final = 1000
"""Swaps that may wait at once, on the whole chain; a further one is refused with `Exhausted`."""

_TO_SUBNET: Final = "SwapToSubnetDelegateStake"
_TO_NODE: Final = "SwapToNodeDelegateStake"


def _enqueue(ctx: Context, who: bytes, variant: str, **content: Any) -> None:
    """Let planck that left a pool wait for its target."""
    if content["balance"] == 0:
        raise Dispatch("AmountZero")
    order = ctx.get(s.SwapQueueOrder)
    if len(order) >= MAX_QUEUE:
        raise DispatchOther("Exhausted")
    swap_id = ctx.get(s.NextSwapQueueId)
    call = {variant: {"account_id": who, **content}}
    item = {
        "id": swap_id,
        "call": call,
        "queued_at_block": ctx.block,
        "execute_after_blocks": epochs.epoch_length(ctx),
    }
    ctx.put(s.SwapCallQueue, swap_id, value=item)
    ctx.put(s.SwapQueueOrder, value=[*order, swap_id])
    ctx.put(s.NextSwapQueueId, value=swap_id + 1)
    ctx.emit("SwapCallQueued", id=swap_id, account_id=who, call=call)


def _leave_subnet(ctx: Context, who: bytes, subnet_id: int, shares: int) -> int:
    amount = leave(ctx, pools.of_subnet(subnet_id), who, shares)
    count_flow(ctx, subnet_id, -amount)
    return amount


def swap_delegate_stake(
    ctx: Context, origin: bytes, *, from_subnet_id: int, to_subnet_id: int, delegate_stake_shares_to_swap: int
) -> None:
    """Call 51: from a subnet's pool to another's."""
    check_unpaused(ctx)
    check_subnet(ctx, to_subnet_id)
    amount = _leave_subnet(ctx, origin, from_subnet_id, delegate_stake_shares_to_swap)
    _enqueue(ctx, origin, _TO_SUBNET, to_subnet_id=to_subnet_id, balance=amount)
    ctx.emit("SubnetDelegateStakeSwapped", from_subnet_id, to_subnet_id, origin, amount)


def swap_node_delegate_stake(
    ctx: Context,
    origin: bytes,
    *,
    from_subnet_id: int,
    from_subnet_node_id: int,
    to_subnet_id: int,
    to_subnet_node_id: int,
    node_delegate_stake_shares_to_swap: int,
) -> None:
    """Call 56: from a node's pool to another's, of any subnet."""
    check_unpaused(ctx)
    check_node(ctx, to_subnet_id, to_subnet_node_id)
    place = pools.of_node(from_subnet_id, from_subnet_node_id)
    amount = leave(ctx, place, origin, node_delegate_stake_shares_to_swap)
    target = {"to_subnet_id": to_subnet_id, "to_subnet_node_id": to_subnet_node_id}
    _enqueue(ctx, origin, _TO_NODE, **target, balance=amount)
    ctx.emit(
        "DelegateNodeStakeSwapped",
        account_id=origin,
        from_subnet_id=from_subnet_id,
        from_subnet_node_id=from_subnet_node_id,
        **target,
        amount=amount,
    )


def swap_from_node_to_subnet(
    ctx: Context,
    origin: bytes,
    *,
    from_subnet_id: int,
    from_subnet_node_id: int,
    to_subnet_id: int,
    node_delegate_stake_shares_to_swap: int,
) -> None:
    """Call 60: from a node's pool to a subnet's."""
    check_unpaused(ctx)
    check_subnet(ctx, to_subnet_id)
    place = pools.of_node(from_subnet_id, from_subnet_node_id)
    amount = leave(ctx, place, origin, node_delegate_stake_shares_to_swap)
    _enqueue(ctx, origin, _TO_SUBNET, to_subnet_id=to_subnet_id, balance=amount)
    ctx.emit(
        "DelegateNodeToSubnetDelegateStakeSwapped",
        account_id=origin,
        from_subnet_id=from_subnet_id,
        from_subnet_node_id=from_subnet_node_id,
        to_subnet_id=to_subnet_id,
        amount=amount,
    )


def swap_from_subnet_to_node(
    ctx: Context,
    origin: bytes,
    *,
    from_subnet_id: int,
    to_subnet_id: int,
    to_subnet_node_id: int,
    delegate_stake_shares_to_swap: int,
) -> None:
    """Call 61: from a subnet's pool to a node's."""
    check_unpaused(ctx)
    check_node(ctx, to_subnet_id, to_subnet_node_id)
    amount = _leave_subnet(ctx, origin, from_subnet_id, delegate_stake_shares_to_swap)
    target = {"to_subnet_id": to_subnet_id, "to_subnet_node_id": to_subnet_node_id}
    _enqueue(ctx, origin, _TO_NODE, **target, balance=amount)
    ctx.emit(
        "SubnetDelegateToNodeDelegateStakeSwapped",
        account_id=origin,
        from_subnet_id=from_subnet_id,
        **target,
        amount=amount,
    )


def update_swap_queue(ctx: Context, origin: bytes, *, id: int, new_call: dict[str, dict[str, Any]]) -> None:
    """Call 62: another target for a swap of one's own that waits. Planck and waiting time stay."""
    check_unpaused(ctx)
    item = ctx.get(s.SwapCallQueue, id)
    if item is None:
        raise Dispatch("SwapCallNotFound")
    ((_, waiting),) = item["call"].items()
    ((variant, wanted),) = new_call.items()
    if origin != waiting["account_id"] or origin != wanted["account_id"]:
        raise Dispatch("NotKeyOwner")
    if variant == _TO_SUBNET:
        check_subnet(ctx, wanted["to_subnet_id"])
    else:
        check_node(ctx, wanted["to_subnet_id"], wanted["to_subnet_node_id"])
    item["call"] = {variant: {**wanted, "balance": waiting["balance"]}}
    ctx.put(s.SwapCallQueue, id, value=item)
    ctx.emit("SwapCallQueueUpdated", id=id, account_id=origin, call=item["call"])


# --- the queue -------------------------------------------------------------------------------------------------------


def run_queue(ctx: Context) -> None:
    """Execute the swaps that have waited long enough, the oldest first, ``MaxSwapQueueCallsPerBlock`` at most."""
    order = ctx.get(s.SwapQueueOrder)
    done = 0
    for swap_id in order[: ctx.get(s.MaxSwapQueueCallsPerBlock)]:
        item = ctx.get(s.SwapCallQueue, swap_id)
        if ctx.block - item["queued_at_block"] < item["execute_after_blocks"]:
            break
        ((variant, content),) = item["call"].items()
        ctx.remove(s.SwapCallQueue, swap_id)
        if not _arrive(ctx, variant, content):
            refund(ctx, content["account_id"], content["balance"])
        done += 1
    if done or not ctx.has(s.SwapQueueOrder):  # the network stores its empty queue too
        ctx.put(s.SwapQueueOrder, value=order[done:])


def _arrive(ctx: Context, variant: str, content: dict[str, Any]) -> bool:
    """Buy shares of a swap's target; whether it is there and sold any."""
    who, subnet_id, amount = content["account_id"], content["to_subnet_id"], content["balance"]
    if variant == _TO_NODE:
        node_id = content["to_subnet_node_id"]
        there = nodes.find_node(ctx, subnet_id, node_id) is not None
        return there and pools.buy(ctx, pools.of_node(subnet_id, node_id), who, amount) > 0
    if not ctx.has(s.SubnetsData, subnet_id) or not pools.buy(ctx, pools.of_subnet(subnet_id), who, amount):
        return False
    count_flow(ctx, subnet_id, amount)
    return True
