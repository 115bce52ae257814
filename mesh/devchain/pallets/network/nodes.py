"""Nodes of a subnet: registering, activating, removing, changing their addresses, and the election slots.

A coldkey registers a hotkey as a node. While the subnet itself is being registered its nodes are validators
at once; afterwards a new node waits in the queue (class Registered), becomes Idle when its turn comes, then
Included, then Validator, each by the rules of rewards.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import economics, epochs, peers
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.peers import Role
from mesh.devchain.pallets.network.stake import (
    EXISTENTIAL_DEPOSIT,
    add_to,
    check_unpaused,
    deposit_stake,
    is_elected,
)

CLASSES = ("Registered", "Idle", "Included", "Validator")
"""Node classes, lowest first."""

_PEER_FIELDS = (
    (Role.MAIN, "peer_info"),
    (Role.BOOTNODE, "bootnode_peer_info"),
    (Role.CLIENT, "client_peer_info"),
)


def has_class(node: Mapping[str, Any], least: str, subnet_epoch: int) -> bool:
    """Whether a node is of at least a class, and that class holds in the epoch."""
    held = node["classification"]
    return CLASSES.index(held["node_class"]) >= CLASSES.index(least) and held["start_epoch"] <= subnet_epoch


def active_nodes(ctx: Context, subnet_id: int) -> list[dict[str, Any]]:
    """All activated nodes of a subnet in storage order (which is little-endian: 256 comes before 1)."""
    return [node for _, node in ctx.items(s.SubnetNodesData, subnet_id)]


def find_node(ctx: Context, subnet_id: int, node_id: int) -> dict[str, Any] | None:
    """An activated or queued node, or None."""
    for item in (s.SubnetNodesData, s.RegisteredSubnetNodesData):
        if ctx.has(item, subnet_id, node_id):
            node: dict[str, Any] = ctx.get(item, subnet_id, node_id)
            return node
    return None


def require_node(ctx: Context, subnet_id: int, node_id: int) -> dict[str, Any]:
    """An activated or queued node; `Dispatch` InvalidSubnetNodeId when there is none."""
    node = find_node(ctx, subnet_id, node_id)
    if node is None:
        raise Dispatch("InvalidSubnetNodeId")
    return node


def write_node(ctx: Context, subnet_id: int, node: Mapping[str, Any]) -> None:
    """Store a changed node where it is kept, active or queued."""
    active = ctx.has(s.SubnetNodesData, subnet_id, node["id"])
    item = s.SubnetNodesData if active else s.RegisteredSubnetNodesData
    ctx.put(item, subnet_id, node["id"], value=node)


def check_coldkey(ctx: Context, origin: bytes, subnet_id: int, node_id: int) -> None:
    """`Dispatch` NotKeyOwner unless ``origin`` is the node's coldkey."""
    hotkey = ctx.get(s.SubnetNodeIdHotkey, subnet_id, node_id)
    if hotkey is None or ctx.get(s.HotkeyOwner, hotkey) != origin:
        raise Dispatch("NotKeyOwner")


def check_keys(ctx: Context, origin: bytes, subnet_id: int, node_id: int) -> None:
    """`Dispatch` NotKeyOwner unless ``origin`` is the node's coldkey or hotkey."""
    if ctx.get(s.SubnetNodeIdHotkey, subnet_id, node_id) != origin:
        check_coldkey(ctx, origin, subnet_id, node_id)


# --- registering -----------------------------------------------------------------------------------------------------


def register_subnet_node(
    ctx: Context,
    origin: bytes,
    *,
    subnet_id: int,
    hotkey: bytes,
    peer_info: dict[str, Any],
    bootnode_peer_info: dict[str, Any] | None,
    client_peer_info: dict[str, Any] | None,
    delegate_reward_rate: int,
    stake_to_be_added: int,
    unique: bytes | None,
    non_unique: bytes | None,
    delegate_account: dict[str, Any] | None,
    max_burn_amount: int,
) -> None:
    """Call 38, signed by the coldkey: burn the node fee, stake, and enter the subnet or its queue."""
    check_unpaused(ctx)
    subnet = ctx.get(s.SubnetsData, subnet_id)
    if subnet is None:
        raise Dispatch("InvalidSubnetId")
    if origin == hotkey:
        raise Dispatch("ColdkeyMatchesHotkey")
    if subnet["state"] == "Paused":
        raise Dispatch("SubnetIsPaused")
    if ctx.has(s.HotkeyOwner, hotkey) or ctx.has(s.HotkeySubnetId, hotkey):
        raise Dispatch("HotkeyHasOwner")
    infos = {Role.MAIN: peer_info, Role.BOOTNODE: bootnode_peer_info, Role.CLIENT: client_peer_info}
    given = {role: info for role, info in infos.items() if info is not None}
    if len({info["peer_id"] for info in given.values()}) != len(given):
        raise Dispatch("PeerIdsMustBeUnique")
    if in_enactment(ctx, subnet_id, subnet):
        raise Dispatch("SubnetMustBeRegisteringOrActivated")
    _check_whitelist(ctx, subnet_id, origin)
    if len(ctx.get(s.SubnetNodeQueue, subnet_id)) > ctx.get(s.MaxRegisteredNodes, subnet_id):
        raise Dispatch("MaxRegisteredNodes")
    for role, info in given.items():
        peers.check(ctx, subnet_id, info, role)
    addresses = [info["multiaddr"] for info in given.values() if info["multiaddr"] is not None]
    if len(set(addresses)) != len(addresses):
        raise Dispatch("MultiaddrExist")
    if delegate_reward_rate > min(economics.ONE, ctx.get(s.MaxDelegateStakePercentage)):
        raise Dispatch("InvalidDelegateRewardRate")
    if delegate_account is not None:
        check_delegate_account(delegate_account, coldkey=origin, hotkey=hotkey)
    if ctx.get(s.AccountSubnetStake, hotkey, subnet_id):
        raise Dispatch("MustUnstakeToRegister")
    if unique is not None and ctx.has(s.UniqueParamSubnetNodeId, subnet_id, unique):
        raise Dispatch("SubnetNodeUniqueParamTaken")
    _burn_fee(ctx, origin, subnet_id, max_burn_amount)
    deposit_stake(ctx, origin, hotkey, subnet_id, stake_to_be_added)

    node_id = add_to(ctx, s.TotalSubnetNodeUids, subnet_id, amount=1)
    subnet_epoch = epochs.subnet_epoch(ctx, subnet_id)
    if unique is not None:
        ctx.put(s.UniqueParamSubnetNodeId, subnet_id, unique, value=node_id)
    _bind_keys(ctx, subnet_id, node_id, coldkey=origin, hotkey=hotkey)
    for role, info in given.items():
        peers.claim(ctx, subnet_id, node_id, info, role)
    add_to(ctx, s.TotalSubnetNodes, subnet_id, amount=1)
    add_to(ctx, s.TotalNodes, amount=1)
    node = {
        "id": node_id,
        "hotkey": hotkey,
        "peer_info": peer_info,
        "bootnode_peer_info": bootnode_peer_info,
        "client_peer_info": client_peer_info,
        "classification": {"node_class": "Registered", "start_epoch": subnet_epoch + 1},
        "delegate_reward_rate": delegate_reward_rate,
        "last_delegate_reward_rate_update": ctx.block if delegate_reward_rate else 0,
        "unique": unique,
        "non_unique": non_unique,
        "delegate_account": delegate_account,
    }
    if subnet["state"] == "Registered":
        if ctx.get(s.TotalActiveSubnetNodes, subnet_id) >= ctx.get(s.MaxSubnetNodes):
            raise Dispatch("MaxRegisteredNodes")
        activate(ctx, subnet_id, node, node_class="Validator", subnet_epoch=subnet_epoch)
        counts = ctx.get(s.InitialColdkeyData, subnet_id) or {}
        counts[origin] = counts.get(origin, 0) + 1
        ctx.put(s.InitialColdkeyData, subnet_id, value=counts)
        return
    ctx.put(s.RegisteredSubnetNodesData, subnet_id, node_id, value=node)
    ctx.put(s.SubnetNodeQueue, subnet_id, value=[*ctx.get(s.SubnetNodeQueue, subnet_id), node])
    ctx.emit(
        "SubnetNodeRegistered",
        subnet_id=subnet_id,
        subnet_node_id=node_id,
        coldkey=origin,
        hotkey=hotkey,
        data=node,
    )


def in_enactment(ctx: Context, subnet_id: int, subnet: Mapping[str, Any]) -> bool:
    """Whether the subnet is past its registration period and not active yet: nobody may join then."""
    since = ctx.get(s.SubnetRegistrationEpoch, subnet_id)
    if subnet["state"] != "Registered" or since is None:
        return False
    last = since + ctx.get(s.SubnetRegistrationEpochs)
    return bool(last < epochs.network_epoch(ctx) <= last + ctx.get(s.SubnetEnactmentEpochs))


def _check_whitelist(ctx: Context, subnet_id: int, coldkey: bytes) -> None:
    """While the subnet is being registered: only its initial coldkeys, each up to its number of nodes."""
    allowed = ctx.get(s.SubnetRegistrationInitialColdkeys, subnet_id)
    if allowed is None:
        return
    if coldkey not in allowed:
        raise Dispatch("ColdkeyRegistrationWhitelist")
    if (ctx.get(s.InitialColdkeyData, subnet_id) or {}).get(coldkey, 0) >= allowed[coldkey]:
        raise Dispatch("MaxRegisteredNodes")


def check_delegate_account(account: Mapping[str, Any], *, coldkey: bytes, hotkey: bytes) -> None:
    """`Dispatch` unless the account may be the delegate account of a node with these keys."""
    if account["account_id"] == hotkey:
        raise Dispatch("DelegateAccountCannotBeHotkey")
    if account["account_id"] == coldkey:
        raise Dispatch("DelegateAccountCannotBeColdkey")
    if not 0 < account["rate"] <= economics.ONE:
        raise Dispatch("InvalidDelegateAccountRate")


def _burn_fee(ctx: Context, coldkey: bytes, subnet_id: int, max_burn_amount: int) -> None:
    """Burn the current price of a registration and count it."""
    fee = economics.percent_mul(ctx.get(s.BaseNodeBurnAmount), ctx.get(s.CurrentNodeBurnRate, subnet_id))
    if fee > max_burn_amount:
        raise Dispatch("MaxBurnAmountExceeded")
    if ctx.free_balance(coldkey) - fee < EXISTENTIAL_DEPOSIT:
        raise Dispatch("BalanceBurnError")
    if fee:
        ctx.burn(coldkey, fee, "node_burn")
    add_to(ctx, s.NodeRegistrationsThisEpoch, subnet_id, amount=1)


def _bind_keys(ctx: Context, subnet_id: int, node_id: int, *, coldkey: bytes, hotkey: bytes) -> None:
    ctx.put(s.HotkeySubnetNodeId, subnet_id, hotkey, value=node_id)
    ctx.put(s.SubnetNodeIdHotkey, subnet_id, node_id, value=hotkey)
    ctx.put(s.HotkeySubnetId, hotkey, value=subnet_id)
    ctx.put(s.HotkeyOwner, hotkey, value=coldkey)
    ctx.put(s.ColdkeyHotkeys, coldkey, value=ctx.get(s.ColdkeyHotkeys, coldkey) | {hotkey})
    owned = ctx.get(s.ColdkeySubnetNodes, coldkey)
    owned.setdefault(subnet_id, set()).add(node_id)
    living = {each: ids for each, ids in owned.items() if ctx.has(s.SubnetsData, each)}
    ctx.put(s.ColdkeySubnetNodes, coldkey, value=living)


def activate(ctx: Context, subnet_id: int, node: dict[str, Any], *, node_class: str, subnet_epoch: int) -> None:
    """Make a node active in a class from this epoch on; a validator also gets an election slot."""
    ctx.remove(s.RegisteredSubnetNodesData, subnet_id, node["id"])
    node["classification"] = {"node_class": node_class, "start_epoch": subnet_epoch}
    if node_class == "Validator":
        add_election_slot(ctx, subnet_id, node["id"])
    ctx.put(s.SubnetNodesData, subnet_id, node["id"], value=node)
    add_to(ctx, s.TotalActiveSubnetNodes, subnet_id, amount=1)
    add_to(ctx, s.TotalActiveNodes, amount=1)
    coldkey = ctx.get(s.HotkeyOwner, node["hotkey"])
    reputation = ctx.get(s.ColdkeyReputation, coldkey)
    reputation["lifetime_node_count"] += 1
    reputation["total_active_nodes"] += 1
    ctx.put(s.ColdkeyReputation, coldkey, value=reputation)
    ctx.emit("SubnetNodeActivated", subnet_id=subnet_id, subnet_node_id=node["id"])


def graduate(ctx: Context, subnet_id: int, node_id: int, *, start_epoch: int) -> None:
    """Lift an active node to the next class."""
    if not ctx.has(s.SubnetNodesData, subnet_id, node_id):
        return
    node = ctx.get(s.SubnetNodesData, subnet_id, node_id)
    place = CLASSES.index(node["classification"]["node_class"])
    node["classification"] = {
        "node_class": CLASSES[min(place + 1, len(CLASSES) - 1)],
        "start_epoch": start_epoch,
    }
    ctx.put(s.SubnetNodesData, subnet_id, node_id, value=node)
    ctx.emit(
        "NodeClassGraduation",
        subnet_id=subnet_id,
        subnet_node_id=node_id,
        classification=node["classification"],
    )


# --- election slots --------------------------------------------------------------------------------------------------


def add_election_slot(ctx: Context, subnet_id: int, node_id: int) -> None:
    """Make a node electable."""
    slots = ctx.get(s.SubnetNodeElectionSlots, subnet_id)
    if node_id in slots:
        return
    ctx.put(s.NodeSlotIndex, subnet_id, node_id, value=len(slots))
    ctx.put(s.SubnetNodeElectionSlots, subnet_id, value=[*slots, node_id])
    add_to(ctx, s.TotalSubnetElectableNodes, subnet_id, amount=1)
    add_to(ctx, s.TotalElectableNodes, amount=1)


def remove_election_slot(ctx: Context, subnet_id: int, node_id: int) -> None:
    """Make a node not electable; the last one takes its slot."""
    slots = ctx.get(s.SubnetNodeElectionSlots, subnet_id)
    if node_id not in slots:
        return
    place = slots.index(node_id)
    last = slots.pop()
    if place < len(slots):
        slots[place] = last
        ctx.put(s.NodeSlotIndex, subnet_id, last, value=place)
    ctx.remove(s.NodeSlotIndex, subnet_id, node_id)
    ctx.put(s.SubnetNodeElectionSlots, subnet_id, value=slots)
    add_to(ctx, s.TotalSubnetElectableNodes, subnet_id, amount=-1)
    add_to(ctx, s.TotalElectableNodes, amount=-1)


# --- removing --------------------------------------------------------------------------------------------------------


def remove_subnet_node(ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int) -> None:
    """Call 39, signed by the node's coldkey or hotkey. The stake stays until `remove_stake`."""
    check_unpaused(ctx)
    check_keys(ctx, origin, subnet_id, subnet_node_id)
    if is_elected(ctx, subnet_id, subnet_node_id):
        raise Dispatch("ElectedValidatorCannotRemove")
    remove(ctx, subnet_id, subnet_node_id)


def remove(ctx: Context, subnet_id: int, node_id: int) -> None:
    """Remove an active or queued node; nothing where there is none. Owner of the hotkey and stake are
    kept."""
    node = find_node(ctx, subnet_id, node_id)
    if node is None:
        return
    active = ctx.has(s.SubnetNodesData, subnet_id, node_id)
    hotkey = node["hotkey"]
    if node["unique"] is not None:
        ctx.remove(s.UniqueParamSubnetNodeId, subnet_id, node["unique"])
    for role, name in _PEER_FIELDS:
        peers.release(ctx, subnet_id, node[name], role)
    ctx.remove(s.HotkeySubnetNodeId, subnet_id, hotkey)
    for item in (
        s.SubnetNodesData,
        s.RegisteredSubnetNodesData,
        s.SubnetNodeIdHotkey,
        s.SubnetNodeReputation,
        s.SubnetNodeIdleConsecutiveEpochs,
        s.SubnetNodeConsecutiveIncludedEpochs,
    ):
        ctx.remove(item, subnet_id, node_id)
    coldkey = ctx.get(s.HotkeyOwner, hotkey)
    owned = ctx.get(s.ColdkeySubnetNodes, coldkey)
    owned.get(subnet_id, set()).discard(node_id)
    ctx.put(s.ColdkeySubnetNodes, coldkey, value={each: ids for each, ids in owned.items() if ids})
    add_to(ctx, s.TotalSubnetNodes, subnet_id, amount=-1)
    add_to(ctx, s.TotalNodes, amount=-1)
    ctx.emit("SubnetNodeRemoved", subnet_id=subnet_id, subnet_node_id=node_id)
    if not active:
        queue = [each for each in ctx.get(s.SubnetNodeQueue, subnet_id) if each["id"] != node_id]
        ctx.put(s.SubnetNodeQueue, subnet_id, value=queue)
        return
    reputation = ctx.get(s.ColdkeyReputation, coldkey)
    reputation["total_active_nodes"] = max(reputation["total_active_nodes"] - 1, 0)
    ctx.put(s.ColdkeyReputation, coldkey, value=reputation)
    remove_election_slot(ctx, subnet_id, node_id)
    add_to(ctx, s.TotalActiveSubnetNodes, subnet_id, amount=-1)
    add_to(ctx, s.TotalActiveNodes, amount=-1)
    emergency = ctx.get(s.EmergencySubnetNodeElectionData, subnet_id)
    if emergency is not None and node_id in emergency["subnet_node_ids"]:
        emergency["subnet_node_ids"].remove(node_id)
        ctx.put(s.EmergencySubnetNodeElectionData, subnet_id, value=emergency)


# --- changing addresses ----------------------------------------------------------------------------------------------


def _update(ctx: Context, origin: bytes, subnet_id: int, node_id: int, info: dict[str, Any] | None, role: Role) -> None:
    """Swap one of a node's peer infos, active or queued; signed by the coldkey."""
    check_unpaused(ctx)
    check_coldkey(ctx, origin, subnet_id, node_id)
    node = require_node(ctx, subnet_id, node_id)
    if info is not None:
        peers.check(ctx, subnet_id, info, role)
    name = dict(_PEER_FIELDS)[role]
    peers.release(ctx, subnet_id, node[name], role)
    if info is not None:
        peers.claim(ctx, subnet_id, node_id, info, role)
    node[name] = info
    write_node(ctx, subnet_id, node)


def update_peer_info(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, new_peer_info: dict[str, Any]
) -> None:
    """Call 40: the id and address the node is reached at."""
    _update(ctx, origin, subnet_id, subnet_node_id, new_peer_info, Role.MAIN)
    ctx.emit(
        "SubnetNodeUpdatePeerInfo",
        subnet_id=subnet_id,
        subnet_node_id=subnet_node_id,
        peer_info=new_peer_info,
    )


def update_bootnode_peer_info(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, new_peer_info: dict[str, Any] | None
) -> None:
    """Call 42: the node's bootnode, or None."""
    _update(ctx, origin, subnet_id, subnet_node_id, new_peer_info, Role.BOOTNODE)
    ctx.emit(
        "SubnetNodeUpdateBootnodePeerInfo",
        subnet_id=subnet_id,
        subnet_node_id=subnet_node_id,
        bootnode_peer_info=new_peer_info,
    )


def update_client_peer_info(
    ctx: Context, origin: bytes, *, subnet_id: int, subnet_node_id: int, new_peer_info: dict[str, Any] | None
) -> None:
    """Call 43: the node's client, or None."""
    _update(ctx, origin, subnet_id, subnet_node_id, new_peer_info, Role.CLIENT)
    ctx.emit(
        "SubnetNodeUpdateClientPeerInfo",
        subnet_id=subnet_id,
        subnet_node_id=subnet_node_id,
        client_peer_info=new_peer_info,
    )
