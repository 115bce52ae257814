"""The delegate account of a node: an account that gets a part of the node's rewards, kept by the pallet until the
account takes it out."""

from __future__ import annotations

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import epochs, nodes
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import add_to, check_unpaused, unbond


def _set(ctx: Context, subnet_id: int, node_id: int, account_id: bytes, rate: int) -> None:
    node = nodes.require_node(ctx, subnet_id, node_id)
    account = {"account_id": account_id, "rate": rate}
    nodes.check_delegate_account(account, coldkey=ctx.get(s.HotkeyOwner, node["hotkey"]), hotkey=node["hotkey"])
    node["delegate_account"] = account
    nodes.write_node(ctx, subnet_id, node)
    ctx.emit("SubnetNodeUpdateDelegateAccount", subnet_id=subnet_id, subnet_node_id=node_id, delegate_account=account)


def update_delegate_account(
    ctx: Context,
    origin: bytes,
    *,
    subnet_id: int,
    subnet_node_id: int,
    delegate_account_id: bytes | None,
    delegate_rate: int | None,
) -> None:
    """Call 41, signed by the coldkey: set the account, the rate or both. Once set there is always one."""
    check_unpaused(ctx)
    nodes.check_coldkey(ctx, origin, subnet_id, subnet_node_id)
    if delegate_account_id is None and delegate_rate is None:
        raise Dispatch("InvalidDelegateAccountParameters")
    now = nodes.require_node(ctx, subnet_id, subnet_node_id)["delegate_account"] or {}
    account_id = now.get("account_id") if delegate_account_id is None else delegate_account_id
    rate = now.get("rate") if delegate_rate is None else delegate_rate
    if account_id is None:
        raise Dispatch("DelegateAccountIdIsNone")
    if rate is None:
        raise Dispatch("DelegateAccountRateIsNone")
    _set(ctx, subnet_id, subnet_node_id, account_id, rate)


def transfer_delegate_account(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, delegate_account_id: bytes
) -> None:
    """Call 163, signed by the delegate account: put another account in its place, at the same rate. What the
    pallet keeps for the old one stays its own."""
    check_unpaused(ctx)
    now = nodes.require_node(ctx, subnet_id, subnet_node_id)["delegate_account"]
    if now is None:
        raise Dispatch("NoDelegateAccountSet")
    if now["account_id"] != origin:
        raise Dispatch("NotDelegateAccountOwner")
    _set(ctx, subnet_id, subnet_node_id, delegate_account_id, now["rate"])


def remove_delegate_balance(ctx: Context, origin: bytes, *, amount_to_remove: int) -> None:
    """Call 164: move what a delegate account earned to its unbonding ledger."""
    check_unpaused(ctx)
    if amount_to_remove == 0:
        raise Dispatch("AmountZero")
    if amount_to_remove > ctx.get(s.AccountDelegateStake, origin):
        raise Dispatch("NotEnoughStakeToWithdraw")
    add_to(ctx, s.AccountDelegateStake, origin, amount=-amount_to_remove)
    add_to(ctx, s.TotalAccountDelegateStake, amount=-amount_to_remove)
    cooldown = ctx.get(s.StakeCooldownEpochs) * epochs.epoch_length(ctx)
    unbond(ctx, origin, amount_to_remove, cooldown_blocks=cooldown)
    ctx.emit("DelegateBalanceRemoved", account_id=origin, amount=amount_to_remove)


def reward_account(ctx: Context, account: bytes, amount: int) -> None:
    """Mint a node's allocation to its delegate account."""
    if amount:
        ctx.mint(None, amount, "delegate_account_rewards")
        add_to(ctx, s.AccountDelegateStake, account, amount=amount)
        add_to(ctx, s.TotalAccountDelegateStake, amount=amount)
