"""Node stake, and the ledger that holds what is unstaked until its cooldown is over.

A coldkey stakes on its hotkey, per subnet. Planck that leaves a stake or a delegate pool goes to the
coldkey's unbonding ledger under the block from which it can be claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mesh.devchain.pallet import Context, Dispatch, StorageItem
from mesh.devchain.pallets.network import epochs
from mesh.devchain.pallets.network import storage as s

EXISTENTIAL_DEPOSIT: Final = 500
"""Planck an account must keep to stay alive; no stake may take the last of it."""


def add_to(ctx: Context, item: StorageItem, *keys: object, amount: int) -> int:
    """Add a positive or negative amount to a stored number, never below 0; gives the new value."""
    value = max(int(ctx.get(item, *keys)) + amount, 0)
    ctx.put(item, *keys, value=value)
    return value


def check_unpaused(ctx: Context) -> None:
    """`Dispatch` Paused while the network's transactions are paused."""
    if ctx.get(s.TxPause):
        raise Dispatch("Paused")


def check_rate_limit(ctx: Context, who: bytes) -> None:
    """`Dispatch` TxRateLimitExceeded when the account staked less than ``TxRateLimit`` blocks ago."""
    limit = ctx.get(s.TxRateLimit)
    last = ctx.get(s.LastTxBlock, who)
    if limit and last and ctx.block - last <= limit:
        raise Dispatch("TxRateLimitExceeded")


def take_balance(ctx: Context, who: bytes, amount: int) -> None:
    """Move free balance into the pallet's keeping; the account must have it and stay alive."""
    free = ctx.free_balance(who)
    if amount > free:
        raise Dispatch("NotEnoughBalanceToStake")
    if free - amount < EXISTENTIAL_DEPOSIT:
        raise Dispatch("BalanceWithdrawalError")
    ctx.transfer_in(who, amount)


def held(ctx: Context) -> int:
    """All planck in the pallet's keeping: stakes, delegate pools, delegate accounts, unbondings, queued swaps.

    Together with the balances of all accounts this is every planck there is; no call and no block changes the
    sum except by what is minted and burned.
    """
    totals = (
        s.TotalStake,
        s.TotalDelegateStake,
        s.TotalNodeDelegateStake,
        s.TotalAccountDelegateStake,
        s.TotalUnbondingBalance,
        s.TotalOverwatchStake,
    )
    queued = sum(content["balance"] for _, item in ctx.items(s.SwapCallQueue) for content in item["call"].values())
    return sum(int(ctx.get(item)) for item in totals) + int(queued)


HOLDINGS: Final[dict[str, Callable[[Any], int]]] = {
    **dict.fromkeys(
        (
            s.AccountSubnetStake.name,
            s.TotalSubnetDelegateStakeBalance.name,
            s.TotalNodeDelegateStakeBalance.name,
            s.AccountDelegateStake.name,
            s.AccountOverwatchStake.name,
        ),
        int,
    ),
    s.StakeUnbondingLedger.name: lambda ledger: sum(ledger.values()),
    s.SwapCallQueue.name: lambda item: sum(content["balance"] for content in item["call"].values()),
}
"""Where the planck of `held` is, entry by entry: the item and the planck that a value of it stands for."""


def change_stake(ctx: Context, hotkey: bytes, subnet_id: int, amount: int) -> int:
    """Add to (or, negative, take from) a hotkey's stake and the totals; gives the new stake."""
    stake = add_to(ctx, s.AccountSubnetStake, hotkey, subnet_id, amount=amount)
    add_to(ctx, s.TotalSubnetStake, subnet_id, amount=amount)
    add_to(ctx, s.TotalStake, amount=amount)
    return stake


def deposit_stake(ctx: Context, coldkey: bytes, hotkey: bytes, subnet_id: int, amount: int) -> None:
    """Move planck of a coldkey to a hotkey's stake, within the subnet's limits."""
    after = ctx.get(s.AccountSubnetStake, hotkey, subnet_id) + amount
    if after < ctx.get(s.SubnetMinStakeBalance, subnet_id):
        raise Dispatch("MinStakeNotReached")
    if after > ctx.get(s.SubnetMaxStakeBalance, subnet_id):
        raise Dispatch("MaxStakeReached")
    if amount > ctx.free_balance(coldkey):
        raise Dispatch("NotEnoughBalanceToStake")
    check_rate_limit(ctx, coldkey)
    take_balance(ctx, coldkey, amount)
    change_stake(ctx, hotkey, subnet_id, amount)
    ctx.put(s.LastTxBlock, coldkey, value=ctx.block)
    ctx.emit("StakeAdded", subnet_id, coldkey, hotkey, amount)


def add_stake(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, hotkey: bytes, stake_to_be_added: int
) -> None:
    """Call 47, signed by the coldkey. ``subnet_node_id`` is not looked at: the hotkey names the stake."""
    check_unpaused(ctx)
    if not ctx.has(s.SubnetsData, subnet_id):
        raise Dispatch("InvalidSubnetId")
    if not ctx.has(s.HotkeyOwner, hotkey) or ctx.get(s.HotkeyOwner, hotkey) != origin:
        raise Dispatch("NotKeyOwner")
    deposit_stake(ctx, origin, hotkey, subnet_id, stake_to_be_added)


def is_elected(ctx: Context, subnet_id: int, node_id: int) -> bool:
    """Whether the node is the validator elected for the subnet's current epoch."""
    elected = ctx.get(s.SubnetElectedValidator, subnet_id, epochs.subnet_epoch(ctx, subnet_id))
    return elected is not None and elected == node_id


def remove_stake(ctx: Context, origin: bytes, *, subnet_id: int, hotkey: bytes, stake_to_be_removed: int) -> None:
    """Call 48, signed by the coldkey: stake goes to the unbonding ledger.

    A hotkey that is a node must keep the subnet's minimum, must not be the elected validator, and must have
    held its class for ``MinActiveNodeStakeEpochs``. One that is no node any more may take everything; then it
    is forgotten.
    """
    check_unpaused(ctx)
    if not ctx.has(s.HotkeyOwner, hotkey) or ctx.get(s.HotkeyOwner, hotkey) != origin:
        raise Dispatch("NotKeyOwner")
    node_id = ctx.get(s.HotkeySubnetNodeId, subnet_id, hotkey)
    if node_id is not None:
        if is_elected(ctx, subnet_id, node_id):
            raise Dispatch("ElectedValidatorCannotUnstake")
        if ctx.has(s.SubnetNodesData, subnet_id, node_id):
            since = ctx.get(s.SubnetNodesData, subnet_id, node_id)["classification"]["start_epoch"]
            if since + ctx.get(s.MinActiveNodeStakeEpochs) > epochs.subnet_epoch(ctx, subnet_id):
                raise Dispatch("MinActiveNodeStakeEpochs")
    stake = ctx.get(s.AccountSubnetStake, hotkey, subnet_id)
    if stake_to_be_removed == 0 or stake_to_be_removed > stake:
        raise Dispatch("NotEnoughStakeToWithdraw")
    if node_id is not None and stake - stake_to_be_removed < ctx.get(s.SubnetMinStakeBalance, subnet_id):
        raise Dispatch("MinStakeNotReached")
    check_rate_limit(ctx, origin)
    left = change_stake(ctx, hotkey, subnet_id, -stake_to_be_removed)
    if left == 0:
        ctx.remove(s.AccountSubnetStake, hotkey, subnet_id)
    cooldown = ctx.get(s.StakeCooldownEpochs) * epochs.epoch_length(ctx)
    unbond(ctx, origin, stake_to_be_removed, cooldown_blocks=cooldown)
    if left == 0 and not _in_use(ctx, hotkey):
        _forget_hotkey(ctx, origin, hotkey)
    ctx.put(s.LastTxBlock, origin, value=ctx.block)
    ctx.emit("StakeRemoved", subnet_id, origin, hotkey, stake_to_be_removed)


def _in_use(ctx: Context, hotkey: bytes) -> bool:
    """Whether a hotkey is a node, of a subnet or overwatch, or anything is staked on it anywhere."""
    home = ctx.get(s.HotkeySubnetId, hotkey)
    return (
        (home is not None and ctx.has(s.HotkeySubnetNodeId, home, hotkey))
        or ctx.has(s.HotkeyOverwatchNodeId, hotkey)
        or ctx.get(s.AccountOverwatchStake, hotkey) > 0
        or any(amount for _, amount in ctx.items(s.AccountSubnetStake, hotkey))
    )


def _forget_hotkey(ctx: Context, coldkey: bytes, hotkey: bytes) -> None:
    """Make a hotkey without node and stake free to be used again."""
    ctx.remove(s.HotkeySubnetId, hotkey)
    ctx.remove(s.HotkeyOwner, hotkey)
    hotkeys = ctx.get(s.ColdkeyHotkeys, coldkey)
    hotkeys.discard(hotkey)
    ctx.put(s.ColdkeyHotkeys, coldkey, value=hotkeys)


def unbond(ctx: Context, who: bytes, amount: int, *, cooldown_blocks: int) -> None:
    """Put planck into the ledger of ``who``; `Dispatch` MaxUnlockingsReached with ``MaxUnbondings`` entries
    waiting."""
    limit = ctx.get(s.MaxUnbondings)
    if len(ctx.get(s.StakeUnbondingLedger, who)) >= limit:
        claim(ctx, who)
    ledger = ctx.get(s.StakeUnbondingLedger, who)
    if len(ledger) >= limit:
        raise Dispatch("MaxUnlockingsReached")
    at = ctx.block + cooldown_blocks
    ledger[at] = ledger.get(at, 0) + amount
    ctx.put(s.StakeUnbondingLedger, who, value=ledger)
    add_to(ctx, s.TotalUnbondingBalance, amount=amount)


def refund(ctx: Context, who: bytes, amount: int) -> None:
    """Put planck into the ledger of ``who``, claimable now. Never fails: it joins an entry that is due already."""
    ledger = ctx.get(s.StakeUnbondingLedger, who)
    at = max((block for block in ledger if block <= ctx.block), default=ctx.block)
    ledger[at] = ledger.get(at, 0) + amount
    ctx.put(s.StakeUnbondingLedger, who, value=ledger)
    add_to(ctx, s.TotalUnbondingBalance, amount=amount)


def claim(ctx: Context, who: bytes) -> int:
    """Pay all entries that are due to the free balance; gives how many there were."""
    ledger = ctx.get(s.StakeUnbondingLedger, who)
    due = sorted(block for block in ledger if block <= ctx.block)
    for block in due:
        amount = ledger.pop(block)
        ctx.transfer_out(who, amount)
        add_to(ctx, s.TotalUnbondingBalance, amount=-amount)
    if due:
        ctx.put(s.StakeUnbondingLedger, who, value=ledger)
    return len(due)


def claim_unbondings(ctx: Context, origin: bytes) -> None:
    """Call 49: pay the caller's due unbondings."""
    check_unpaused(ctx)
    if claim(ctx, origin) == 0:
        raise Dispatch("NoStakeUnbondingsOrCooldownNotMet")
