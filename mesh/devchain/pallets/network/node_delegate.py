"""The calls about the delegate pool of one node, and its rewards."""

from __future__ import annotations

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import delegate, epochs, pools
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.nodes import find_node
from mesh.devchain.pallets.network.stake import check_unpaused, unbond


def check_node(ctx: Context, subnet_id: int, node_id: int) -> None:
    """`Dispatch` InvalidSubnetNodeId unless the node is there, active or queued."""
    if find_node(ctx, subnet_id, node_id) is None:
        raise Dispatch("InvalidSubnetNodeId")


def add_to_node_delegate_stake(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, node_delegate_stake_to_be_added: int
) -> None:
    """Call 55: buy shares of a node's pool."""
    check_unpaused(ctx)
    check_node(ctx, subnet_id, subnet_node_id)
    amount = node_delegate_stake_to_be_added
    place = pools.of_node(subnet_id, subnet_node_id)
    delegate.enter(ctx, place, origin, amount, too_little="MinNodeDelegateStakeDepositNotReached")
    ctx.emit(
        "DelegateNodeStakeAdded", account_id=origin, subnet_id=subnet_id, subnet_node_id=subnet_node_id, amount=amount
    )


def transfer_node_delegate_stake(
    ctx: Context,
    origin: bytes,
    *,
    subnet_id: int,
    subnet_node_id: int,
    to_account_id: bytes,
    node_delegate_stake_shares_to_transfer: int,
) -> None:
    """Call 57: hand shares of a node's pool to another account. Also of a node that is gone."""
    check_unpaused(ctx)
    place = pools.of_node(subnet_id, subnet_node_id)
    delegate.transfer(ctx, place, origin, to_account_id, node_delegate_stake_shares_to_transfer)


def remove_node_delegate_stake(
    ctx: Context,
    origin: bytes,
    *,
    subnet_id: int,
    subnet_node_id: int,
    node_delegate_stake_shares_to_be_removed: int,
) -> None:
    """Call 58: sell shares of a node's pool into the unbonding ledger. Also of a node that is gone."""
    check_unpaused(ctx)
    place = pools.of_node(subnet_id, subnet_node_id)
    amount = delegate.leave(ctx, place, origin, node_delegate_stake_shares_to_be_removed)
    cooldown = ctx.get(s.NodeDelegateStakeCooldownEpochs) * epochs.epoch_length(ctx)
    unbond(ctx, origin, amount, cooldown_blocks=cooldown)
    ctx.emit(
        "DelegateNodeStakeRemoved",
        account_id=origin,
        subnet_id=subnet_id,
        subnet_node_id=subnet_node_id,
        amount=amount,
    )


def donate_node_delegate_stake(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, amount: int
) -> None:
    """Call 59: make the shares of an active node's pool worth more."""
    check_unpaused(ctx)
    if not ctx.has(s.SubnetNodesData, subnet_id, subnet_node_id):
        raise Dispatch("InvalidSubnetNodeId")
    delegate.donate(ctx, pools.of_node(subnet_id, subnet_node_id), origin, amount)


def reward_node_pool(ctx: Context, subnet_id: int, node_id: int, amount: int) -> None:
    """Mint a reward into the pool of one node."""
    if amount:
        ctx.mint(None, amount, "node_delegate_rewards")
        pools.give(ctx, pools.of_node(subnet_id, node_id), amount)
