"""Delegating: the rules of entering and leaving a pool, whichever it is, and the calls about a subnet's pool."""

from __future__ import annotations

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import economics, epochs, pools
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import (
    check_rate_limit,
    check_unpaused,
    take_balance,
    unbond,
)


def enter(ctx: Context, place: pools.Place, who: bytes, amount: int, *, too_little: str) -> None:
    """Buy shares with free balance; `Dispatch` with ``too_little`` below ``MinDelegateStakeDeposit``."""
    if amount < ctx.get(s.MinDelegateStakeDeposit):
        raise Dispatch(too_little)
    if amount > ctx.free_balance(who):
        raise Dispatch("NotEnoughBalanceToStake")
    check_rate_limit(ctx, who)
    take_balance(ctx, who, amount)
    if not pools.buy(ctx, place, who, amount):
        raise Dispatch("CouldNotConvertToShares")
    ctx.put(s.LastTxBlock, who, value=ctx.block)


def leave(ctx: Context, place: pools.Place, who: bytes, shares: int) -> int:
    """Sell shares the account has; gives the planck, which is still in the pallet's keeping."""
    if shares == 0:
        raise Dispatch("SharesZero")
    if shares > pools.owned_by(ctx, place, who):
        raise Dispatch("NotEnoughStakeToWithdraw")
    check_rate_limit(ctx, who)
    ctx.put(s.LastTxBlock, who, value=ctx.block)
    return pools.sell(ctx, place, who, shares)


def donate(ctx: Context, place: pools.Place, who: bytes, amount: int) -> None:
    """Give free balance to all who hold shares of a pool; the donor gets none."""
    if amount < ctx.get(s.MinDelegateStakeDeposit):
        raise Dispatch("MinDelegateStake")
    if amount > ctx.free_balance(who):
        raise Dispatch("NotEnoughBalance")
    take_balance(ctx, who, amount)
    pools.give(ctx, place, amount)


def transfer(ctx: Context, place: pools.Place, who: bytes, target: bytes, shares: int) -> None:
    """Hand shares over; they must be worth ``MinDelegateStakeDeposit``."""
    if target == who:
        raise Dispatch("TransferToSelfNotAllowed")
    if not 0 < shares <= pools.owned_by(ctx, place, who):
        raise Dispatch("NotEnoughStakeToWithdraw")
    if pools.worth(ctx, place, shares) < ctx.get(s.MinDelegateStakeDeposit):
        raise Dispatch("CouldNotConvertToBalance")
    pools.hand_over(ctx, place, who, target, shares)


def count_flow(ctx: Context, subnet_id: int, amount: int) -> None:
    """Count planck that delegators moved into (or, negative, out of) a subnet's pool this epoch."""
    if ctx.has(s.SubnetsData, subnet_id):
        ctx.put(s.SubnetNetFlow, subnet_id, value=ctx.get(s.SubnetNetFlow, subnet_id) + amount)


def check_subnet(ctx: Context, subnet_id: int) -> None:
    """`Dispatch` InvalidSubnetId unless the subnet is there."""
    if not ctx.has(s.SubnetsData, subnet_id):
        raise Dispatch("InvalidSubnetId")


# --- the calls -------------------------------------------------------------------------------------------------------


def add_to_delegate_stake(ctx: Context, origin: bytes, *, subnet_id: int, stake_to_be_added: int) -> None:
    """Call 50: buy shares of a subnet's pool."""
    check_unpaused(ctx)
    check_subnet(ctx, subnet_id)
    place = pools.of_subnet(subnet_id)
    enter(ctx, place, origin, stake_to_be_added, too_little="MinDelegateStakeDepositNotReached")
    count_flow(ctx, subnet_id, stake_to_be_added)
    ctx.emit("SubnetDelegateStakeAdded", subnet_id, origin, stake_to_be_added)


def transfer_delegate_stake(
    ctx: Context, origin: bytes, *, subnet_id: int, to_account_id: bytes, delegate_stake_shares_to_transfer: int
) -> None:
    """Call 52: hand shares of a subnet's pool to another account. Also of a subnet that is gone."""
    check_unpaused(ctx)
    transfer(ctx, pools.of_subnet(subnet_id), origin, to_account_id, delegate_stake_shares_to_transfer)


def remove_delegate_stake(ctx: Context, origin: bytes, *, subnet_id: int, shares_to_be_removed: int) -> None:
    """Call 53: sell shares; what they are worth goes to the unbonding ledger. Also from a subnet that is
    gone."""
    check_unpaused(ctx)
    amount = leave(ctx, pools.of_subnet(subnet_id), origin, shares_to_be_removed)
    count_flow(ctx, subnet_id, -amount)
    cooldown = ctx.get(s.DelegateStakeCooldownEpochs) * epochs.epoch_length(ctx)
    unbond(ctx, origin, amount, cooldown_blocks=cooldown)
    ctx.emit("SubnetDelegateStakeRemoved", subnet_id, origin, amount)


def donate_delegate_stake(ctx: Context, origin: bytes, *, subnet_id: int, amount: int) -> None:
    """Call 54: make the shares of a subnet's pool worth more."""
    check_unpaused(ctx)
    check_subnet(ctx, subnet_id)
    donate(ctx, pools.of_subnet(subnet_id), origin, amount)


def reward_pool(ctx: Context, subnet_id: int, amount: int) -> None:
    """Mint a reward into a subnet's pool."""
    if amount:
        ctx.mint(None, amount, "delegate_rewards")
        pools.give(ctx, pools.of_subnet(subnet_id), amount)


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
