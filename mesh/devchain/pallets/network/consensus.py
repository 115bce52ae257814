"""Proposing and attesting: what one elected node says the others are worth, and who agrees.

Both are signed by hotkeys and cost nothing when they succeed. What follows from them is settled one subnet
epoch later, in rewards.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mesh.devchain.pallet import Context, Dispatch, Pays
from mesh.devchain.pallets.network import economics, emergency, epochs
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network import types as t
from mesh.devchain.pallets.network.nodes import active_nodes, has_class
from mesh.devchain.pallets.network.stake import check_unpaused
from mesh.devchain.scale import Reader


def propose_attestation(
    ctx: Context,
    origin: bytes,
    *,
    subnet_id: int,
    data: list[dict[str, int]],
    prioritize_queue_node_id: int | None,
    remove_queue_node_id: int | None,
    args: bytes | None,
    attest_data: bytes | None,
) -> Pays:
    """Call 65, by the elected node's hotkey, once per subnet epoch; it attests its own proposal.

    Entries of nodes below class Included are dropped and several entries of one node become its lowest.
    Wishes about the queue are dropped when the node is not in it, or (removal) still immune.
    """
    check_unpaused(ctx)
    now = epochs.subnet_progress(ctx, subnet_id)
    node_id = ctx.get(s.SubnetElectedValidator, subnet_id, now.epoch)
    if node_id is None:
        raise Dispatch("NoElectedValidator")
    if ctx.get(s.SubnetNodeIdHotkey, subnet_id, node_id) != origin:
        raise Dispatch("InvalidValidator")
    if ctx.has(s.SubnetConsensusSubmission, subnet_id, now.epoch):
        raise Dispatch("SubnetRewardsAlreadySubmitted")
    nodes = active_nodes(ctx, subnet_id)
    scores = _qualify(data, {each["id"] for each in nodes if has_class(each, "Included", now.epoch)})
    prioritize, remove = _queue_wishes(
        ctx, subnet_id, now.epoch, prioritize=prioritize_queue_node_id, remove=remove_queue_node_id
    )
    own = {
        "block": ctx.block,
        "attestor_progress": 0,
        "reward_factor": economics.ONE,
        "data": attest_data,
    }
    submission = {
        "validator_id": node_id,
        "block": ctx.block,
        "validator_epoch_progress": now.progress,
        "validator_reward_factor": economics.proposer_factor(
            now.progress,
            midpoint=ctx.get(s.ValidatorRewardMidpoint),
            steepness=ctx.get(s.ValidatorRewardK),
        ),
        "attests": {node_id: own},
        "subnet_nodes": [each for each in nodes if has_class(each, "Idle", now.epoch)],
        "prioritize_queue_node_id": prioritize,
        "remove_queue_node_id": remove,
        "data": scores,
        "args": args,
    }
    ctx.put(s.SubnetConsensusSubmission, subnet_id, now.epoch, value=submission)
    ctx.emit("ValidatorSubmission", subnet_id=subnet_id, account_id=origin, epoch=now.epoch)
    return Pays.NO


def _qualify(data: list[dict[str, int]], included: set[int]) -> list[dict[str, int]]:
    """The entries that count, one per node, in the order given; their sum must fit u128."""
    lowest: dict[int, int] = {}
    for entry in data:
        node_id, score = entry["subnet_node_id"], entry["score"]
        if node_id in included:
            lowest[node_id] = min(score, lowest.get(node_id, score))
    if sum(lowest.values()) > economics.U128_MAX:
        raise Dispatch("ScoreOverflow")
    return [{"subnet_node_id": node_id, "score": score} for node_id, score in lowest.items()]


def _queue_wishes(
    ctx: Context, subnet_id: int, epoch: int, *, prioritize: int | None, remove: int | None
) -> tuple[int | None, int | None]:
    """The wishes that may be granted."""
    if prioritize is None and remove is None:
        return None, None
    queue: dict[int, dict[str, Any]] = {each["id"]: each for each in ctx.get(s.SubnetNodeQueue, subnet_id)}
    immunity = ctx.get(s.QueueImmunityEpochs, subnet_id)
    if remove is not None and (
        remove not in queue or queue[remove]["classification"]["start_epoch"] + immunity > epoch
    ):
        remove = None
    return (prioritize if prioritize in queue else None), remove


@lru_cache(maxsize=64)
def _snapshot_ids(rest: bytes) -> frozenset[int]:
    """The nodes in a submission from its snapshot on, which is the same for all who attest: decoding it for each of
    them is what an epoch of a large subnet would spend its time with."""
    return frozenset(each["id"] for each in t.consensus_nodes.decode(Reader(rest)))


def attest(ctx: Context, origin: bytes, *, subnet_id: int, attest_data: bytes | None) -> Pays:
    """Call 66, by the hotkey of a node of class Validator, once, after the proposal of the same subnet epoch.

    While an emergency set is in force only its nodes may.
    """
    check_unpaused(ctx)
    epoch = epochs.subnet_epoch(ctx, subnet_id)
    node_id = ctx.get(s.HotkeySubnetNodeId, subnet_id, origin)
    if node_id is None:
        raise Dispatch("InvalidHotkeySubnetNodeId")
    if not ctx.has(s.SubnetNodesData, subnet_id, node_id):
        raise Dispatch("InvalidSubnetNodeId")
    if not has_class(ctx.get(s.SubnetNodesData, subnet_id, node_id), "Validator", epoch):
        raise Dispatch("InvalidSubnetNodeClassification")
    chosen = emergency.in_force(ctx, subnet_id, epoch)
    if chosen is not None and node_id not in chosen:
        raise Dispatch("InvalidEmergencySubnetNodeId")
    raw = ctx.get_raw(s.SubnetConsensusSubmission, subnet_id, epoch)
    if raw is None:
        raise Dispatch("InvalidSubnetConsensusSubmission")
    reader = Reader(raw)
    submission, rest = t.consensus_start.decode(reader), raw[reader.position :]
    if node_id not in _snapshot_ids(rest):
        raise Dispatch("InvalidSubnetNodeId")
    if node_id in submission["attests"]:
        raise Dispatch("AlreadyAttested")
    progress = epochs.attestor_progress(ctx, subnet_id, proposed_at=submission["block"])
    submission["attests"][node_id] = {
        "block": ctx.block,
        "attestor_progress": progress,
        "reward_factor": economics.attestor_factor(
            progress,
            min_factor=ctx.get(s.AttestorMinRewardFactor),
            exponent=ctx.get(s.AttestorRewardExponent),
        ),
        "data": attest_data,
    }
    changed = t.consensus_start.encode(submission) + rest
    ctx.put_raw(s.SubnetConsensusSubmission, subnet_id, epoch, raw=changed)
    ctx.emit("Attestation", subnet_id=subnet_id, subnet_node_id=node_id, epoch=epoch)
    return Pays.NO
