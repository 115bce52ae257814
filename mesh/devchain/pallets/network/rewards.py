"""Settling one subnet epoch at the next slot block: what the submission of the epoch before earns or costs
whom.

The order within a settlement is the network's: the proposer first, then the queue wishes, the subnet's
reputation, the owner, each node, the delegators. Nothing here fails: a settlement is part of a block, not of
anybody's call.
"""

from __future__ import annotations

from typing import Any

from mesh.devchain.pallet import Context
from mesh.devchain.pallets.network import economics, emergency, epochs, nodes, reputation
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.delegate import reward_pool
from mesh.devchain.pallets.network.delegate_account import reward_account
from mesh.devchain.pallets.network.node_delegate import reward_node_pool
from mesh.devchain.pallets.network.stake import add_to, change_stake


def settle(ctx: Context, subnet_id: int, *, subnet_epoch: int, emission: int, weight: int) -> None:
    """Settle the submission of ``subnet_epoch - 1`` with the subnet's ``weight`` of this epoch's
    ``emission``."""
    submission = ctx.get(s.SubnetConsensusSubmission, subnet_id, subnet_epoch - 1)
    if submission is None:
        _punish_absence(ctx, subnet_id, subnet_epoch - 1)
        return
    chosen = emergency.in_force(ctx, subnet_id, subnet_epoch - 1)
    if chosen is None:
        electable = sum(nodes.has_class(n, "Validator", subnet_epoch - 1) for n in submission["subnet_nodes"])
    else:
        electable = len(chosen)
        emergency.count_round(ctx, subnet_id)
    ratio = economics.attestation_ratio(len(submission["attests"]), electable)
    if ratio < ctx.get(s.MinAttestationPercentage):
        _punish_rejection(ctx, subnet_id, submission, ratio)
        return
    _reward_proposer(ctx, subnet_id, submission, ratio)
    if ratio >= ctx.get(s.SuperMajorityAttestationRatio):
        _grant_queue_wishes(ctx, subnet_id, submission)
    if len(submission["data"]) >= ctx.get(s.MinSubnetNodes):
        reputation.raise_subnet(ctx, subnet_id, ctx.get(s.InConsensusSubnetReputationFactor))
    score_sum = sum(entry["score"] for entry in submission["data"])
    if score_sum == 0:
        return  # the subnet agreed to pay nobody but the proposer
    pools = economics.split_subnet_emission(
        emission,
        weight,
        owner_percentage=ctx.get(s.SubnetOwnerPercentage),
        delegate_percentage=ctx.get(s.SubnetDelegateStakeRewardsPercentage, subnet_id),
    )
    owner = ctx.get(s.SubnetOwner, subnet_id)
    if owner is not None and pools.owner:
        ctx.mint(owner, pools.owner, "owner_reward")
    paid = _Paid()
    for node in submission["subnet_nodes"]:
        _settle_node(
            ctx,
            subnet_id,
            node,
            submission,
            ratio=ratio,
            score_sum=score_sum,
            pool=pools.nodes,
            epoch=subnet_epoch,
            chosen=chosen,
            paid=paid,
        )
    reward_pool(ctx, subnet_id, pools.delegators)
    ctx.emit(
        "SubnetRewards",
        subnet_id=subnet_id,
        node_rewards=paid.nodes,
        delegate_stake_reward=pools.delegators,
        node_delegate_stake_rewards=paid.node_delegates,
        node_delegate_account_allocations=paid.accounts,
    )


class _Paid:
    """What one settlement paid, for its event."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, int]] = []
        self.node_delegates: list[tuple[int, int]] = []
        self.accounts: list[tuple[int, tuple[bytes, int]]] = []


# --- the proposer ----------------------------------------------------------------------------------------------------


def _reward_proposer(ctx: Context, subnet_id: int, submission: dict[str, Any], ratio: int) -> None:
    """Mint the base reward times the proposer's factor into its stake; nothing when it has left."""
    hotkey = ctx.get(s.SubnetNodeIdHotkey, subnet_id, submission["validator_id"])
    if hotkey is None:
        return
    amount = economics.percent_mul(ctx.get(s.BaseValidatorReward), submission["validator_reward_factor"])
    if amount:
        ctx.mint(None, amount, "proposer_reward")
        change_stake(ctx, hotkey, subnet_id, amount)
    reputation.move_coldkey(ctx, ctx.get(s.HotkeyOwner, hotkey), ratio, epoch=epochs.network_epoch(ctx))


def _punish_absence(ctx: Context, subnet_id: int, missed_epoch: int) -> None:
    """Nobody proposed: the subnet and the node elected for that epoch lose reputation."""
    subnet = ctx.get(s.SubnetsData, subnet_id)
    if subnet is None or subnet["state"] != "Active" or subnet["start_epoch"] > epochs.network_epoch(ctx):
        return
    elected = ctx.get(s.SubnetElectedValidator, subnet_id, missed_epoch)
    if elected is None:
        return
    reputation.lower_subnet(ctx, subnet_id, ctx.get(s.ValidatorAbsentSubnetReputationFactor))
    factor = ctx.get(s.ValidatorAbsentDecreaseReputationFactor, subnet_id)
    reputation.lower_node(ctx, subnet_id, elected, factor)


def _punish_rejection(ctx: Context, subnet_id: int, submission: dict[str, Any], ratio: int) -> None:
    """Too few attested: the proposer is slashed; it, its attestors and the subnet lose reputation, by the
    shortfall."""
    shortfall = economics.shortfall(ratio, ctx.get(s.MinAttestationPercentage))
    floor = ctx.get(s.MinSubnetNodeReputation, subnet_id)
    proposer = submission["validator_id"]
    hotkey = ctx.get(s.SubnetNodeIdHotkey, subnet_id, proposer)
    if hotkey is not None:
        amount = economics.slash_amount(
            ctx.get(s.AccountSubnetStake, hotkey, subnet_id),
            ratio,
            minimum=ctx.get(s.MinAttestationPercentage),
            base_percentage=ctx.get(s.BaseSlashPercentage),
            maximum=ctx.get(s.MaxSlashAmount),
        )
        if amount:
            change_stake(ctx, hotkey, subnet_id, -amount)
            ctx.burn(None, amount, "slash")
        factor = ctx.get(s.ValidatorNonConsensusSubnetNodeReputationFactor, subnet_id)
        left = reputation.lower_node(ctx, subnet_id, proposer, economics.percent_mul(factor, shortfall))
        coldkey = ctx.get(s.HotkeyOwner, hotkey)
        reputation.move_coldkey(ctx, coldkey, ratio, epoch=epochs.network_epoch(ctx))
        if left < floor:
            nodes.remove(ctx, subnet_id, proposer)
        ctx.emit("Slashing", subnet_id=subnet_id, account_id=hotkey, amount=amount)
    factor = ctx.get(s.NotInConsensusSubnetReputationFactor)
    reputation.lower_subnet(ctx, subnet_id, economics.percent_mul(factor, shortfall))
    factor = ctx.get(s.NonConsensusAttestorDecreaseReputationFactor, subnet_id)
    for node_id in submission["attests"]:
        if ctx.has(s.SubnetNodeIdHotkey, subnet_id, node_id):
            left = reputation.lower_node(ctx, subnet_id, node_id, economics.percent_mul(factor, shortfall))
            if left < floor:
                nodes.remove(ctx, subnet_id, node_id)


# --- the queue -------------------------------------------------------------------------------------------------------


def _grant_queue_wishes(ctx: Context, subnet_id: int, submission: dict[str, Any]) -> None:
    """With a super majority: move one queued node to the front, take another out."""
    wanted = submission["prioritize_queue_node_id"]
    queue = ctx.get(s.SubnetNodeQueue, subnet_id)
    if wanted is not None and any(each["id"] == wanted for each in queue):
        queue.sort(key=lambda each: each["id"] != wanted)  # stable: only the wanted one moves
        ctx.put(s.SubnetNodeQueue, subnet_id, value=queue)
        ctx.emit("QueuedNodePrioritized", subnet_id=subnet_id, subnet_node_id=wanted)
    unwanted = submission["remove_queue_node_id"]
    if unwanted is not None and ctx.has(s.RegisteredSubnetNodesData, subnet_id, unwanted):
        nodes.remove(ctx, subnet_id, unwanted)
        ctx.emit("QueuedNodeRemoved", subnet_id=subnet_id, subnet_node_id=unwanted)


# --- the nodes -------------------------------------------------------------------------------------------------------


def _settle_node(
    ctx: Context,
    subnet_id: int,
    node: dict[str, Any],
    submission: dict[str, Any],
    *,
    ratio: int,
    score_sum: int,
    pool: int,
    epoch: int,
    chosen: list[int] | None,
    paid: _Paid,
) -> None:
    """Reputation, class and reward of one node of the snapshot. One that has left meanwhile is paid, nothing else.

    With an emergency set in force (``chosen``) nobody climbs, and only its nodes are blamed for not attesting.
    """
    node_id = node["id"]
    here = ctx.has(s.SubnetNodesData, subnet_id, node_id)
    floor = ctx.get(s.MinSubnetNodeReputation, subnet_id)
    if here and ctx.get(s.SubnetNodeReputation, subnet_id, node_id) < floor:
        nodes.remove(ctx, subnet_id, node_id)
        return
    node_class = node["classification"]["node_class"]
    if node_class == "Idle":
        if here and chosen is None:
            idle = add_to(ctx, s.SubnetNodeIdleConsecutiveEpochs, subnet_id, node_id, amount=1)
            if idle >= ctx.get(s.IdleClassificationEpochs, subnet_id):
                nodes.graduate(ctx, subnet_id, node_id, start_epoch=epoch)
        return
    score = next((each["score"] for each in submission["data"] if each["subnet_node_id"] == node_id), None)
    if score is None:
        if here:
            factor = ctx.get(s.AbsentDecreaseReputationFactor, subnet_id)
            reputation.lower_node(ctx, subnet_id, node_id, factor)
            if node_class == "Included":
                ctx.put(s.SubnetNodeConsecutiveIncludedEpochs, subnet_id, node_id, value=0)
        return
    standing = economics.ONE
    if here:
        factor = ctx.get(s.IncludedIncreaseReputationFactor, subnet_id)
        standing = reputation.raise_node(ctx, subnet_id, node_id, factor)
    if node_class == "Included":
        if here and chosen is None:
            _advance_included(ctx, subnet_id, node_id, standing, epoch=epoch)
        return
    if here and economics.percent_div(score, score_sum) < ctx.get(
        s.SubnetNodeMinWeightDecreaseReputationThreshold, subnet_id
    ):
        factor = ctx.get(s.BelowMinWeightDecreaseReputationFactor, subnet_id)
        standing = reputation.lower_node(ctx, subnet_id, node_id, factor)
    attest = submission["attests"].get(node_id)
    asked = chosen is None or node_id in chosen
    if attest is None and asked and here and ratio >= ctx.get(s.SuperMajorityAttestationRatio):
        factor = ctx.get(s.NonAttestorDecreaseReputationFactor, subnet_id)
        standing = reputation.lower_node(ctx, subnet_id, node_id, factor)
    if standing < floor:
        nodes.remove(ctx, subnet_id, node_id)
        return
    reward = economics.node_reward(
        pool, score, score_sum=score_sum, factor=economics.ONE if attest is None else attest["reward_factor"]
    )
    if reward:
        _pay_node(ctx, subnet_id, node, reward, paid)


def _advance_included(ctx: Context, subnet_id: int, node_id: int, standing: int, *, epoch: int) -> None:
    """Count an epoch in which an Included node was scored; enough of them at full reputation make it a
    validator."""
    streak = add_to(ctx, s.SubnetNodeConsecutiveIncludedEpochs, subnet_id, node_id, amount=1)
    if standing < economics.ONE or streak < ctx.get(s.IncludedClassificationEpochs, subnet_id):
        return
    nodes.graduate(ctx, subnet_id, node_id, start_epoch=epoch)
    nodes.add_election_slot(ctx, subnet_id, node_id)
    ctx.remove(s.SubnetNodeConsecutiveIncludedEpochs, subnet_id, node_id)


def _is_left_behind(ctx: Context, subnet_id: int, hotkey: bytes) -> bool:
    """Whether a hotkey without its node is its owner's still: one that was forgotten may be anybody's node by now."""
    return (
        ctx.has(s.HotkeyOwner, hotkey)
        and ctx.get(s.HotkeySubnetId, hotkey) == subnet_id
        and not ctx.has(s.HotkeySubnetNodeId, subnet_id, hotkey)
    )


def _pay_node(ctx: Context, subnet_id: int, node: dict[str, Any], reward: int, paid: _Paid) -> None:
    """Mint a node's reward: its delegators' part, its delegate account's part, the rest into its stake.

    Rates are those of the snapshot; the hotkey is the one the node has now, which may have been changed since.
    """
    node_id = node["id"]
    hotkey = ctx.get(s.SubnetNodeIdHotkey, subnet_id, node_id)
    if hotkey is None:
        hotkey = node["hotkey"]
        if not _is_left_behind(ctx, subnet_id, hotkey):
            return  # nobody could ever take it out, or somebody who did not earn it
    rate = node["delegate_reward_rate"]
    if rate and ctx.get(s.TotalNodeDelegateStakeShares, subnet_id, node_id):
        part = economics.percent_mul(reward, rate)
        reward -= part
        reward_node_pool(ctx, subnet_id, node_id, part)
        paid.node_delegates.append((node_id, part))
    account = node["delegate_account"]
    if account is not None:
        part = economics.percent_mul(reward, account["rate"])
        reward -= part
        reward_account(ctx, account["account_id"], part)
        paid.accounts.append((node_id, (account["account_id"], part)))
    if reward:
        ctx.mint(None, reward, "node_rewards")
        change_stake(ctx, hotkey, subnet_id, reward)
    paid.nodes.append((node_id, reward))
