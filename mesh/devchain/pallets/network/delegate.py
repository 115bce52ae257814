"""The delegate pool of a subnet: anybody's planck, held as shares of a balance that rewards make grow."""

from __future__ import annotations

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import economics, epochs
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import (
    add_to,
    check_rate_limit,
    check_unpaused,
    take_balance,
    unbond,
)


def _change(ctx: Context, who: bytes, subnet_id: int, *, amount: int, shares: int) -> None:
    add_to(ctx, s.AccountSubnetDelegateStakeShares, who, subnet_id, amount=shares)
    add_to(ctx, s.TotalSubnetDelegateStakeBalance, subnet_id, amount=amount)
    add_to(ctx, s.TotalSubnetDelegateStakeShares, subnet_id, amount=shares)
    add_to(ctx, s.TotalDelegateStake, amount=amount)
    ctx.put(s.SubnetNetFlow, subnet_id, value=ctx.get(s.SubnetNetFlow, subnet_id) + amount)


def add_to_delegate_stake(ctx: Context, origin: bytes, *, subnet_id: int, stake_to_be_added: int) -> None:
    """Call 50: buy shares of a subnet's pool."""
    check_unpaused(ctx)
    if not ctx.has(s.SubnetsData, subnet_id):
        raise Dispatch("InvalidSubnetId")
    if stake_to_be_added < ctx.get(s.MinDelegateStakeDeposit):
        raise Dispatch("MinDelegateStakeDepositNotReached")
    if stake_to_be_added > ctx.free_balance(origin):
        raise Dispatch("NotEnoughBalanceToStake")
    check_rate_limit(ctx, origin)
    take_balance(ctx, origin, stake_to_be_added)
    pool_shares = ctx.get(s.TotalSubnetDelegateStakeShares, subnet_id)
    shares = economics.balance_to_shares(
        stake_to_be_added,
        total_shares=pool_shares,
        total_balance=ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id),
    )
    if shares == 0:
        raise Dispatch("CouldNotConvertToShares")
    if pool_shares == 0:
        add_to(ctx, s.TotalSubnetDelegateStakeShares, subnet_id, amount=economics.MIN_LIQUIDITY)
    _change(ctx, origin, subnet_id, amount=stake_to_be_added, shares=shares)
    ctx.put(s.LastTxBlock, origin, value=ctx.block)
    ctx.emit("SubnetDelegateStakeAdded", subnet_id, origin, stake_to_be_added)


def remove_delegate_stake(ctx: Context, origin: bytes, *, subnet_id: int, shares_to_be_removed: int) -> None:
    """Call 53: sell shares; what they are worth goes to the unbonding ledger. Also from a subnet that is
    gone."""
    check_unpaused(ctx)
    if shares_to_be_removed == 0:
        raise Dispatch("SharesZero")
    if shares_to_be_removed > ctx.get(s.AccountSubnetDelegateStakeShares, origin, subnet_id):
        raise Dispatch("NotEnoughStakeToWithdraw")
    pool = ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id)
    amount = economics.shares_to_balance(
        shares_to_be_removed,
        total_shares=ctx.get(s.TotalSubnetDelegateStakeShares, subnet_id),
        total_balance=pool,
    )
    amount = min(amount, pool)  # the 1 and the 10 of the price formula may round past what the pool holds
    check_rate_limit(ctx, origin)
    _change(ctx, origin, subnet_id, amount=-amount, shares=-shares_to_be_removed)
    cooldown = ctx.get(s.DelegateStakeCooldownEpochs) * epochs.epoch_length(ctx)
    unbond(ctx, origin, amount, cooldown_blocks=cooldown)
    ctx.put(s.LastTxBlock, origin, value=ctx.block)
    ctx.emit("SubnetDelegateStakeRemoved", subnet_id, origin, amount)


def reward_pool(ctx: Context, subnet_id: int, amount: int) -> None:
    """Mint a reward into the pool: the shares stay, each is worth more. An empty pool gets dead shares
    first."""
    if amount == 0:
        return
    if not ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id) or not ctx.get(
        s.TotalSubnetDelegateStakeShares, subnet_id
    ):
        add_to(ctx, s.TotalSubnetDelegateStakeShares, subnet_id, amount=economics.MIN_LIQUIDITY)
    ctx.mint(None, amount, "delegate_rewards")
    add_to(ctx, s.TotalSubnetDelegateStakeBalance, subnet_id, amount=amount)
    add_to(ctx, s.TotalDelegateStake, amount=amount)


def reward_node_pool(ctx: Context, subnet_id: int, node_id: int, amount: int) -> None:
    """Mint a reward into the delegate pool of one node."""
    ctx.mint(None, amount, "node_delegate_rewards")
    add_to(ctx, s.TotalNodeDelegateStakeBalance, subnet_id, node_id, amount=amount)
    add_to(ctx, s.TotalNodeDelegateStake, amount=amount)


def reward_account(ctx: Context, account: bytes, amount: int) -> None:
    """Mint a node's allocation to its delegate account, whose balance the pallet keeps."""
    ctx.mint(None, amount, "delegate_account_rewards")
    add_to(ctx, s.AccountDelegateStake, account, amount=amount)
    add_to(ctx, s.TotalAccountDelegateStake, amount=amount)


def min_delegate_stake(ctx: Context, subnet_id: int) -> int:
    """Planck a subnet's pool must hold for the subnet to live: a part of all planck, more with more nodes."""
    factor = ctx.get(s.MinSubnetDelegateStakeFactor)
    if factor == 0:
        return 0
    supply = ctx.total_issuance() + sum(
        int(ctx.get(item)) for item in (s.TotalStake, s.TotalDelegateStake, s.TotalNodeDelegateStake)
    )
    multiplier = economics.min_delegate_stake_multiplier(
        len(ctx.get(s.SubnetNodeElectionSlots, subnet_id)),
        min_nodes=ctx.get(s.MinSubnetNodes),
        max_nodes=ctx.get(s.MaxSubnetNodes),
        max_multiplier=ctx.get(s.MaxMinDelegateStakeMultiplier),
    )
    return economics.percent_mul(economics.percent_mul(supply, factor), multiplier)
