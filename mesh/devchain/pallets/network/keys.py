"""Changing a coldkey or a hotkey: everything kept under the old key is found under the new one.

What an account has as a user stays with the account: its balance, its shares of delegate pools, what it earned
as a delegate account, the subnets it owns, swaps that wait.
"""

from __future__ import annotations

from mesh.devchain.pallet import Context, Dispatch, StorageItem
from mesh.devchain.pallets.network import nodes
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import add_to, check_unpaused


def update_coldkey(ctx: Context, origin: bytes, *, hotkey: bytes, new_coldkey: bytes) -> None:
    """Call 67, signed by the coldkey, which names any of its hotkeys: all of them get the new coldkey, and it
    gets the reputation, the identity and the unbonding ledger.

    The new coldkey must not have signed anything, so it must not lose anything either: it may not be a coldkey
    or a hotkey already, nor have an identity when one is to be moved there; what it has in its ledger stays.
    """
    check_unpaused(ctx)
    if hotkey == new_coldkey:
        raise Dispatch("ColdkeyMatchesHotkey")
    if not ctx.has(s.HotkeyOwner, hotkey) or ctx.get(s.HotkeyOwner, hotkey) != origin:
        raise Dispatch("NotKeyOwner")
    if ctx.has(s.HotkeyOwner, new_coldkey):
        raise Dispatch("HotkeyHasOwner")
    if ctx.get(s.ColdkeyHotkeys, new_coldkey):
        raise Dispatch("HotkeyAlreadyRegisteredToColdkey")
    if ctx.has(s.ColdkeyIdentity, origin) and ctx.has(s.ColdkeyIdentity, new_coldkey):
        raise Dispatch("IdentityTaken")
    for subnet_id, ids in ctx.get(s.ColdkeySubnetNodes, origin).items():
        for node_id in ids:
            node = nodes.find_node(ctx, subnet_id, node_id)
            account = node["delegate_account"] if node is not None else None
            if account is not None and account["account_id"] == new_coldkey:
                raise Dispatch("DelegateAccountCannotBeColdkey")
    for each in ctx.get(s.ColdkeyHotkeys, origin):
        ctx.put(s.HotkeyOwner, each, value=new_coldkey)
    for item in (s.ColdkeyHotkeys, s.ColdkeySubnetNodes, s.ColdkeyReputation, s.ColdkeyIdentity):
        _move(ctx, item, origin, new_coldkey)
    if ctx.has(s.ColdkeyIdentity, new_coldkey):
        ctx.put(s.ColdkeyIdentityNameOwner, ctx.get(s.ColdkeyIdentity, new_coldkey)["name"], value=new_coldkey)
    if ctx.get(s.OverwatchNodeBlacklist, origin):
        ctx.put(s.OverwatchNodeBlacklist, new_coldkey, value=True)
    _merge_ledger(ctx, origin, new_coldkey)
    ctx.emit("UpdateColdkey", coldkey=origin, new_coldkey=new_coldkey)


def _move(ctx: Context, item: StorageItem, old: bytes, new: bytes) -> None:
    """Move what is stored under a key, if anything."""
    if ctx.has(item, old):
        ctx.put(item, new, value=ctx.get(item, old))
        ctx.remove(item, old)


def _merge_ledger(ctx: Context, old: bytes, new: bytes) -> None:
    """Add one unbonding ledger to another; `Dispatch` MaxUnlockingsReached when there would be too many entries."""
    moved = ctx.get(s.StakeUnbondingLedger, old)
    if not moved:
        return
    ledger = ctx.get(s.StakeUnbondingLedger, new)
    for block, amount in moved.items():
        ledger[block] = ledger.get(block, 0) + amount
    if len(ledger) > max(ctx.get(s.MaxUnbondings), len(moved)):
        raise Dispatch("MaxUnlockingsReached")
    ctx.remove(s.StakeUnbondingLedger, old)
    ctx.put(s.StakeUnbondingLedger, new, value=ledger)


def update_hotkey(ctx: Context, origin: bytes, *, old_hotkey: bytes, new_hotkey: bytes) -> None:
    """Call 68, signed by the coldkey: its subnet node, its overwatch node and all stakes get another hotkey.

    An elected node proposes with the new one. The new hotkey must be nobody's.
    """
    check_unpaused(ctx)
    if origin == new_hotkey:
        raise Dispatch("ColdkeyMatchesHotkey")
    if not ctx.has(s.HotkeyOwner, old_hotkey) or ctx.get(s.HotkeyOwner, old_hotkey) != origin:
        raise Dispatch("NotKeyOwner")
    if ctx.has(s.HotkeyOwner, new_hotkey):
        raise Dispatch("HotkeyHasOwner")
    hotkeys = ctx.get(s.ColdkeyHotkeys, origin)
    if old_hotkey not in hotkeys:
        raise Dispatch("OldHotkeyNotRegistered")
    ctx.put(s.ColdkeyHotkeys, origin, value=hotkeys - {old_hotkey} | {new_hotkey})
    _move(ctx, s.HotkeyOwner, old_hotkey, new_hotkey)
    _move_subnet_node(ctx, old_hotkey, new_hotkey)
    _move_overwatch_node(ctx, old_hotkey, new_hotkey)
    for (_, subnet_id), amount in list(ctx.items(s.AccountSubnetStake, old_hotkey)):
        ctx.remove(s.AccountSubnetStake, old_hotkey, subnet_id)
        add_to(ctx, s.AccountSubnetStake, new_hotkey, subnet_id, amount=amount)
    ctx.emit("UpdateHotkey", hotkey=old_hotkey, new_hotkey=new_hotkey)


def _move_subnet_node(ctx: Context, old: bytes, new: bytes) -> None:
    subnet_id = ctx.get(s.HotkeySubnetId, old)
    if subnet_id is None:
        return
    _move(ctx, s.HotkeySubnetId, old, new)
    node_id = ctx.get(s.HotkeySubnetNodeId, subnet_id, old)
    if node_id is None:
        return
    node = nodes.require_node(ctx, subnet_id, node_id)
    if node["delegate_account"] is not None and node["delegate_account"]["account_id"] == new:
        raise Dispatch("DelegateAccountCannotBeHotkey")
    ctx.remove(s.HotkeySubnetNodeId, subnet_id, old)
    ctx.put(s.HotkeySubnetNodeId, subnet_id, new, value=node_id)
    ctx.put(s.SubnetNodeIdHotkey, subnet_id, node_id, value=new)
    nodes.write_node(ctx, subnet_id, {**node, "hotkey": new})


def _move_overwatch_node(ctx: Context, old: bytes, new: bytes) -> None:
    node_id = ctx.get(s.HotkeyOverwatchNodeId, old)
    if node_id is not None:
        _move(ctx, s.HotkeyOverwatchNodeId, old, new)
        ctx.put(s.OverwatchNodeIdHotkey, node_id, value=new)
        ctx.put(s.OverwatchNodes, node_id, value={"id": node_id, "hotkey": new})
    stake = ctx.get(s.AccountOverwatchStake, old)
    if stake:
        ctx.remove(s.AccountOverwatchStake, old)
        add_to(ctx, s.AccountOverwatchStake, new, amount=stake)
