"""Overwatch nodes: coldkeys of good standing that say, from outside, how much each subnet is worth.

In the first ``OverwatchCommitCutoffPercent`` of an overwatch epoch a node commits to a weight per subnet, in the
rest of it the node opens its commits. The block after the epoch makes subnet weights of what was opened and
pays the nodes by how close they came.

A commit is ``blake2_256(SCALE(weight u128, salt Vec<u8>))`` and names no node: as in the network, who copies
somebody's commit can open it once the other has, so a copy says as much as the original.
"""

from __future__ import annotations

import hashlib
from typing import Any

from mesh.devchain.pallet import Context, Dispatch, Pays
from mesh.devchain.pallets.network import economics, epochs, overwatch_economics, peers
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import add_to, check_unpaused, take_balance, unbond
from mesh.devchain.scale import bytes_, u128

# --- who may ---------------------------------------------------------------------------------------------------------


def is_qualified(ctx: Context, coldkey: bytes) -> bool:
    """Whether a coldkey may have an overwatch node: it has a reputation, old and good enough, its proposals
    were attested, and it has active nodes in enough of the subnets."""
    if not ctx.has(s.ColdkeyReputation, coldkey):
        return False
    standing = ctx.get(s.ColdkeyReputation, coldkey)
    now, least_age = epochs.network_epoch(ctx), ctx.get(s.OverwatchMinAge)
    if now <= least_age or max(now - standing["start_epoch"], 0) < least_age:
        return False
    if standing["score"] < ctx.get(s.OverwatchMinRepScore):
        return False
    if _diversification(ctx, coldkey) < ctx.get(s.OverwatchMinDiversificationRatio):
        return False
    return bool(standing["average_attestation"] >= ctx.get(s.OverwatchMinAvgAttestationRatio))


def _diversification(ctx: Context, coldkey: bytes) -> int:
    """In what part (percentage) of the active subnets a coldkey has an active node."""
    subnets = sum(
        any(ctx.has(s.SubnetNodesData, subnet_id, node_id) for node_id in ids)
        for subnet_id, ids in ctx.get(s.ColdkeySubnetNodes, coldkey).items()
    )
    active = ctx.get(s.TotalActiveSubnets)
    return economics.ONE if subnets >= active else economics.percent_div(subnets, active)


def _check_keys(ctx: Context, origin: bytes, node_id: int) -> None:
    """`Dispatch` NotKeyOwner unless ``origin`` is the node's hotkey or coldkey."""
    hotkey = ctx.get(s.OverwatchNodeIdHotkey, node_id)
    if hotkey is None or origin not in (hotkey, ctx.get(s.HotkeyOwner, hotkey)):
        raise Dispatch("NotKeyOwner")


# --- coming and going ------------------------------------------------------------------------------------------------


def register_overwatch_node(ctx: Context, origin: bytes, *, hotkey: bytes, stake_to_be_added: int) -> None:
    """Call 69, signed by the coldkey."""
    check_unpaused(ctx)
    if ctx.get(s.OverwatchNodeBlacklist, origin):
        raise Dispatch("ColdkeyBlacklisted")
    if epochs.overwatch_epoch(ctx) == 0:
        raise Dispatch("OverwatchEpochIsZero")
    if ctx.get(s.TotalOverwatchNodes) >= ctx.get(s.MaxOverwatchNodes):
        raise Dispatch("MaxOverwatchNodes")
    if hotkey == origin:
        raise Dispatch("ColdkeyMatchesHotkey")
    if ctx.has(s.HotkeyOwner, hotkey):
        raise Dispatch("HotkeyHasOwner")
    if not is_qualified(ctx, origin):
        raise Dispatch("ColdkeyNotOverwatchQualified")
    _deposit(ctx, origin, hotkey, stake_to_be_added)
    node_id = add_to(ctx, s.TotalOverwatchNodeUids, amount=1)
    ctx.put(s.HotkeyOwner, hotkey, value=origin)
    ctx.put(s.ColdkeyHotkeys, origin, value=ctx.get(s.ColdkeyHotkeys, origin) | {hotkey})
    ctx.put(s.HotkeyOverwatchNodeId, hotkey, value=node_id)
    ctx.put(s.OverwatchNodeIdHotkey, node_id, value=hotkey)
    ctx.put(s.OverwatchNodes, node_id, value={"id": node_id, "hotkey": hotkey})
    add_to(ctx, s.TotalOverwatchNodes, amount=1)


def remove_overwatch_node(ctx: Context, origin: bytes, *, overwatch_node_id: int) -> None:
    """Call 70, signed by the coldkey or the hotkey. The stake stays until `remove_overwatch_stake`."""
    check_unpaused(ctx)
    _check_keys(ctx, origin, overwatch_node_id)
    remove(ctx, overwatch_node_id)


def anyone_remove_overwatch_node(ctx: Context, origin: bytes, *, overwatch_node_id: int) -> None:
    """Call 71, signed by anybody: remove a node whose coldkey does not qualify any more."""
    check_unpaused(ctx)
    hotkey = ctx.get(s.OverwatchNodeIdHotkey, overwatch_node_id)
    if hotkey is None:
        raise Dispatch("InvalidOverwatchNodeId")
    if is_qualified(ctx, ctx.get(s.HotkeyOwner, hotkey)):
        raise Dispatch("ColdkeyOverwatchQualified")
    remove(ctx, overwatch_node_id)


def remove(ctx: Context, node_id: int) -> None:
    """Remove a node and free its peer ids; nothing where there is none. Owner of the hotkey and stake are
    kept."""
    if not ctx.has(s.OverwatchNodes, node_id):
        return
    ctx.remove(s.HotkeyOverwatchNodeId, ctx.get(s.OverwatchNodeIdHotkey, node_id))
    for subnet_id, peer_id in ctx.get(s.OverwatchNodeIndex, node_id).items():
        ctx.remove(s.PeerIdOverwatchNodeId, subnet_id, peer_id)
    for item in (s.OverwatchNodes, s.OverwatchNodeIdHotkey, s.OverwatchNodeIndex):
        ctx.remove(item, node_id)
    add_to(ctx, s.TotalOverwatchNodes, amount=-1)


def set_overwatch_node_peer_id(
    ctx: Context, origin: bytes, *, subnet_id: int, overwatch_node_id: int, peer_id: bytes
) -> Pays:
    """Call 72, signed by the coldkey or the hotkey: the peer id the node has in a subnet, in place of the one
    before."""
    check_unpaused(ctx)
    if not ctx.has(s.SubnetsData, subnet_id):
        raise Dispatch("InvalidSubnetId")
    _check_keys(ctx, origin, overwatch_node_id)
    peers.check(ctx, subnet_id, {"peer_id": peer_id, "multiaddr": None}, peers.Role.MAIN)
    index = ctx.get(s.OverwatchNodeIndex, overwatch_node_id)
    if subnet_id in index:
        ctx.remove(s.PeerIdOverwatchNodeId, subnet_id, index[subnet_id])
    ctx.put(s.PeerIdOverwatchNodeId, subnet_id, peer_id, value=overwatch_node_id)
    ctx.put(s.OverwatchNodeIndex, overwatch_node_id, value={**index, subnet_id: peer_id})
    return Pays.NO


# --- weights ---------------------------------------------------------------------------------------------------------


def commitment(weight: int, salt: bytes) -> bytes:
    """The commit to a weight (percentage) under a salt."""
    return hashlib.blake2b(u128.encode(weight) + bytes_.encode(salt), digest_size=32).digest()


def in_commit_period(ctx: Context) -> bool:
    """Whether commits are taken in this block; else reveals are."""
    length = epochs.overwatch_length(ctx)
    return epochs.overwatch_block(ctx) < economics.percent_mul(length, ctx.get(s.OverwatchCommitCutoffPercent))


def commit_overwatch_subnet_weights(
    ctx: Context, origin: bytes, *, overwatch_node_id: int, commit_weights: list[dict[str, Any]]
) -> Pays:
    """Call 73, signed by the coldkey or the hotkey; free. One commit per subnet and epoch; a second one of the
    same list right after the first, and those for subnets that are not there, are dropped."""
    check_unpaused(ctx)
    _check_keys(ctx, origin, overwatch_node_id)
    if not in_commit_period(ctx):
        raise Dispatch("NotCommitPeriod")
    epoch = epochs.overwatch_epoch(ctx)
    previous = None
    taken = 0
    for commit in commit_weights:
        subnet_id = commit["subnet_id"]
        repeated, previous = subnet_id == previous, subnet_id
        if repeated or not ctx.has(s.SubnetsData, subnet_id):
            continue
        if ctx.has(s.OverwatchCommits, epoch, overwatch_node_id, subnet_id):
            raise Dispatch("AlreadyCommitted")
        ctx.put(s.OverwatchCommits, epoch, overwatch_node_id, subnet_id, value=commit["weight"])
        taken += 1
    if not taken:
        raise Dispatch("CommitsEmpty")
    return Pays.NO


def reveal_overwatch_subnet_weights(
    ctx: Context, origin: bytes, *, overwatch_node_id: int, reveals: list[dict[str, Any]]
) -> Pays:
    """Call 74, signed by the coldkey or the hotkey. Every reveal must open this epoch's commit. Free, if it says
    anything that was not said before: or blocks could be filled for nothing."""
    check_unpaused(ctx)
    _check_keys(ctx, origin, overwatch_node_id)
    if in_commit_period(ctx):
        raise Dispatch("NotRevealPeriod")
    epoch = epochs.overwatch_epoch(ctx)
    news = False
    for reveal in reveals:
        subnet_id, weight = reveal["subnet_id"], reveal["weight"]
        if weight > economics.ONE:
            raise Dispatch("InvalidWeight")
        committed = ctx.get(s.OverwatchCommits, epoch, overwatch_node_id, subnet_id)
        if committed is None:
            raise Dispatch("NoCommitFound")
        if commitment(weight, reveal["salt"]) != committed:
            raise Dispatch("RevealMismatch")
        news = news or not ctx.has(s.OverwatchReveals, epoch, subnet_id, overwatch_node_id)
        ctx.put(s.OverwatchReveals, epoch, subnet_id, overwatch_node_id, value=weight)
    return Pays.NO if news else Pays.YES


def settle(ctx: Context, epoch: int) -> None:
    """Make subnet weights of an overwatch epoch's reveals, and mint the overwatchers' reward into their stakes.

    Nodes that have left do not count; stakes are those of now.
    """
    reveals: dict[int, dict[int, int]] = {}
    stakes: dict[int, int] = {}
    for (_, subnet_id, node_id), weight in ctx.items(s.OverwatchReveals, epoch):
        node = ctx.get(s.OverwatchNodes, node_id)
        if node is not None:
            stakes[node_id] = ctx.get(s.AccountOverwatchStake, node["hotkey"])
            reveals.setdefault(subnet_id, {})[node_id] = weight
    outcome = overwatch_economics.settle(
        reveals,
        stakes,
        power=ctx.get(s.OverwatchStakeWeightFactor),
        emission=ctx.pallet.constants["OverwatchEpochEmissions"].value,
    )
    for subnet_id, weight in outcome.subnet_weights.items():
        ctx.put(s.OverwatchSubnetWeights, epoch, subnet_id, value=weight)
    for node_id, weight in outcome.node_weights.items():
        ctx.put(s.OverwatchNodeWeights, epoch, node_id, value=weight)
    for node_id, amount in outcome.rewards.items():
        ctx.mint(None, amount, "overwatch")
        _change_stake(ctx, ctx.get(s.OverwatchNodes, node_id)["hotkey"], amount)
    if outcome.node_weights:
        ctx.emit("OverwatchRewards", node_rewards=list(outcome.rewards.items()))


# --- stake -----------------------------------------------------------------------------------------------------------


def _change_stake(ctx: Context, hotkey: bytes, amount: int) -> None:
    add_to(ctx, s.AccountOverwatchStake, hotkey, amount=amount)
    add_to(ctx, s.TotalOverwatchStake, amount=amount)


def _deposit(ctx: Context, coldkey: bytes, hotkey: bytes, amount: int) -> None:
    if ctx.get(s.AccountOverwatchStake, hotkey) + amount < ctx.get(s.OverwatchMinStakeBalance):
        raise Dispatch("MinStakeNotReached")
    take_balance(ctx, coldkey, amount)
    _change_stake(ctx, hotkey, amount)


def _check_owner(ctx: Context, origin: bytes, hotkey: bytes) -> None:
    if not ctx.has(s.HotkeyOwner, hotkey) or ctx.get(s.HotkeyOwner, hotkey) != origin:
        raise Dispatch("NotKeyOwner")


def add_to_overwatch_stake(
    ctx: Context, origin: bytes, *, overwatch_node_id: int, hotkey: bytes, stake_to_be_added: int
) -> None:
    """Call 75, signed by the coldkey. The node must be there, but the hotkey names the stake."""
    check_unpaused(ctx)
    if not ctx.has(s.OverwatchNodes, overwatch_node_id):
        raise Dispatch("InvalidOverwatchNodeId")
    _check_owner(ctx, origin, hotkey)
    _deposit(ctx, origin, hotkey, stake_to_be_added)


def remove_overwatch_stake(ctx: Context, origin: bytes, *, hotkey: bytes, stake_to_be_removed: int) -> None:
    """Call 76, signed by the coldkey: stake goes to the unbonding ledger. While the hotkey is an overwatch node
    it keeps the minimum."""
    check_unpaused(ctx)
    _check_owner(ctx, origin, hotkey)
    if stake_to_be_removed == 0:
        raise Dispatch("AmountZero")
    left = ctx.get(s.AccountOverwatchStake, hotkey) - stake_to_be_removed
    if left < 0:
        raise Dispatch("NotEnoughStakeToWithdraw")
    if ctx.has(s.HotkeyOverwatchNodeId, hotkey) and left < ctx.get(s.OverwatchMinStakeBalance):
        raise Dispatch("MinStakeNotReached")
    _change_stake(ctx, hotkey, -stake_to_be_removed)
    cooldown = ctx.get(s.StakeCooldownEpochs) * epochs.epoch_length(ctx)
    unbond(ctx, origin, stake_to_be_removed, cooldown_blocks=cooldown)
