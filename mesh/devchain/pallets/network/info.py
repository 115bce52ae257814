"""The runtime API ``NetworkRuntimeApi``: subnets, nodes, bootnodes and stakes gathered for clients.

Called through ``state_call("NetworkRuntimeApi_get_subnet_info", SCALE(arguments))``. Every function gives
SCALE ``Vec<u8>`` holding the SCALE of what is named below, except ``proof_of_stake``, which gives a plain
bool. Arguments that do not decode are the caller's error (`ScaleError`).

| function                        | arguments                                        | inside the bytes        |
| ------------------------------- | ------------------------------------------------ | ----------------------- |
| get_subnet_info                 | subnet_id u32                                    | Option<SubnetInfo>      |
| get_all_subnets_info            |                                                  | Vec<SubnetInfo>         |
| get_subnet_node_info            | subnet_id u32, subnet_node_id u32                | Option<SubnetNodeInfo>  |
| get_subnet_nodes_info           | subnet_id u32                                    | Vec<SubnetNodeInfo>     |
| get_all_subnet_nodes_info       |                                                  | Vec<SubnetNodeInfo>     |
| get_elected_validator_info      | subnet_id u32, subnet_epoch u32                  | Option<SubnetNodeInfo>  |
| get_validators_and_attestors    | subnet_id u32                                    | Vec<SubnetNodeInfo>     |
| get_bootnodes                   | subnet_id u32                                    | AllSubnetBootnodes      |
| get_coldkey_subnet_nodes_info   | coldkey                                          | Vec<SubnetNodeInfo>     |
| get_coldkey_stakes              | coldkey                                          | Vec<SubnetNodeStakeInfo>|
| get_delegate_stakes             | account                                          | Vec<DelegateStakeInfo>  |
| get_node_delegate_stakes        | account                                          | Vec<NodeDelegateStakeInfo> |
| get_overwatch_commits_for_epoch_and_node | overwatch epoch u32, overwatch node id u32 | Vec<(subnet_id u32, H256)> |
| get_overwatch_reveals_for_epoch_and_node | overwatch epoch u32, overwatch node id u32 | Vec<(subnet_id u32, u128)> |
| get_all_overwatch_nodes_info    |                                                  | Vec<OverwatchNodeInfo>  |
| proof_of_stake                  | subnet_id u32, peer_id Vec<u8>, min_class u8 [, min_stake Option<u128>] | bool |

Layout. These structs are not in the network's metadata. The order of fields below is that of the public
pallet sources of the coldkey/hotkey dialect: the fields every client of it decodes, with ``key_types`` gone
(the dialect's registration data has none) and flat peer ids replaced by the ``PeerInfo`` of its
``SubnetNode``. It has not been compared with bytes of a running network; raw storage, which has, is the safer
source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from mesh.devchain.pallet import Context
from mesh.devchain.pallets.network import economics, emergency, epochs, nodes, peers
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network import types as t
from mesh.devchain.pallets.network.delegate import min_delegate_stake
from mesh.devchain.scale import (
    Reader,
    Type,
    account_id,
    boolean,
    bounded_bytes,
    btree_map,
    btree_set,
    bytes_,
    h256,
    opaque_peer_id,
    option,
    struct,
    tuple_of,
    u8,
    u32,
    u128,
    vec,
)

_AT = "pallet_network::pallet::"

subnet_info = struct(
    _AT + "SubnetInfo",
    id=u32,
    friendly_id=option(u32),
    name=bytes_,
    repo=bytes_,
    description=bytes_,
    misc=bytes_,
    state=t.subnet_state,
    start_epoch=u32,
    churn_limit=u32,
    churn_limit_multiplier=u32,
    min_stake=u128,
    max_stake=u128,
    queue_immunity_epochs=u32,
    target_node_registrations_per_epoch=u32,
    node_registrations_this_epoch=u32,
    subnet_node_queue_epochs=u32,
    idle_classification_epochs=u32,
    included_classification_epochs=u32,
    delegate_stake_percentage=u128,
    last_delegate_stake_rewards_update=u32,
    node_burn_rate_alpha=u128,
    current_node_burn_rate=u128,
    initial_coldkeys=option(btree_map(account_id, u32)),
    initial_coldkey_data=option(btree_map(account_id, u32)),
    max_registered_nodes=u32,
    owner=option(account_id),
    pending_owner=option(account_id),
    registration_epoch=option(u32),
    prev_pause_epoch=u32,
    slot_index=option(u32),
    slot_assignment=option(u32),
    subnet_node_min_weight_decrease_reputation_threshold=u128,
    reputation=u128,
    min_subnet_node_reputation=u128,
    absent_decrease_reputation_factor=u128,
    included_increase_reputation_factor=u128,
    below_min_weight_decrease_reputation_factor=u128,
    non_attestor_decrease_reputation_factor=u128,
    non_consensus_attestor_decrease_reputation_factor=u128,
    validator_absent_subnet_node_reputation_factor=u128,
    validator_non_consensus_subnet_node_reputation_factor=u128,
    bootnode_access=btree_set(account_id),
    bootnodes=btree_map(opaque_peer_id, bounded_bytes),
    total_nodes=u32,
    total_active_nodes=u32,
    total_electable_nodes=u32,
    current_min_delegate_stake=u128,
    total_subnet_stake=u128,
    total_subnet_delegate_stake_shares=u128,
    total_subnet_delegate_stake_balance=u128,
)

subnet_node_info = struct(
    _AT + "SubnetNodeInfo",
    subnet_id=u32,
    subnet_node_id=u32,
    coldkey=account_id,
    hotkey=account_id,
    peer_info=t.peer_info,
    bootnode_peer_info=option(t.peer_info),
    client_peer_info=option(t.peer_info),
    delegate_account=option(t.delegate_account),
    identity=t.identity,
    classification=t.classification,
    delegate_reward_rate=u128,
    last_delegate_reward_rate_update=u32,
    unique=option(bounded_bytes),
    non_unique=option(bounded_bytes),
    stake_balance=u128,
    total_node_delegate_stake_shares=u128,
    node_delegate_stake_balance=u128,
    coldkey_reputation=t.reputation,
    subnet_node_reputation=u128,
    node_slot_index=option(u32),
    consecutive_idle_epochs=u32,
    consecutive_included_epochs=u32,
)

all_subnet_bootnodes = struct(
    _AT + "AllSubnetBootnodes",
    subnet_bootnodes=btree_map(opaque_peer_id, bounded_bytes),
    node_bootnodes=btree_map(opaque_peer_id, option(bounded_bytes)),
    registered_bootnodes=btree_map(opaque_peer_id, option(bounded_bytes)),
)
"""The official bootnodes, those of activated nodes, and those of queued nodes (only those with an
address)."""

subnet_node_stake_info = struct(
    _AT + "SubnetNodeStakeInfo",
    subnet_id=option(u32),
    subnet_node_id=option(u32),
    hotkey=account_id,
    balance=u128,
)

delegate_stake_info = struct(_AT + "DelegateStakeInfo", subnet_id=u32, shares=u128, balance=u128)

node_delegate_stake_info = struct(
    _AT + "NodeDelegateStakeInfo", subnet_id=u32, subnet_node_id=u32, shares=u128, balance=u128
)

overwatch_node_info = struct(
    _AT + "OverwatchNodeInfo",
    overwatch_node_id=u32,
    coldkey=account_id,
    hotkey=option(account_id),
    peer_ids=btree_map(u32, opaque_peer_id),
    reputation=t.reputation,
    account_overwatch_stake=u128,
)

# Fields of SubnetInfo that are just a storage item under the subnet id.
_SUBNET_FIELDS: Final = {
    "friendly_id": s.SubnetIdFriendlyUid,
    "churn_limit": s.ChurnLimit,
    "churn_limit_multiplier": s.ChurnLimitMultiplier,
    "min_stake": s.SubnetMinStakeBalance,
    "max_stake": s.SubnetMaxStakeBalance,
    "queue_immunity_epochs": s.QueueImmunityEpochs,
    "target_node_registrations_per_epoch": s.TargetNodeRegistrationsPerEpoch,
    "node_registrations_this_epoch": s.NodeRegistrationsThisEpoch,
    "subnet_node_queue_epochs": s.SubnetNodeQueueEpochs,
    "idle_classification_epochs": s.IdleClassificationEpochs,
    "included_classification_epochs": s.IncludedClassificationEpochs,
    "delegate_stake_percentage": s.SubnetDelegateStakeRewardsPercentage,
    "last_delegate_stake_rewards_update": s.LastSubnetDelegateStakeRewardsUpdate,
    "node_burn_rate_alpha": s.NodeBurnRateAlpha,
    "current_node_burn_rate": s.CurrentNodeBurnRate,
    "initial_coldkeys": s.SubnetRegistrationInitialColdkeys,
    "initial_coldkey_data": s.InitialColdkeyData,
    "max_registered_nodes": s.MaxRegisteredNodes,
    "owner": s.SubnetOwner,
    "pending_owner": s.PendingSubnetOwner,
    "registration_epoch": s.SubnetRegistrationEpoch,
    "prev_pause_epoch": s.PreviousSubnetPauseEpoch,
    "slot_index": s.SubnetSlot,
    "slot_assignment": s.SlotAssignment,  # keyed by slot, asked with the subnet id as the network does: always None
    "subnet_node_min_weight_decrease_reputation_threshold": s.SubnetNodeMinWeightDecreaseReputationThreshold,
    "reputation": s.SubnetReputation,
    "min_subnet_node_reputation": s.MinSubnetNodeReputation,
    "absent_decrease_reputation_factor": s.AbsentDecreaseReputationFactor,
    "included_increase_reputation_factor": s.IncludedIncreaseReputationFactor,
    "below_min_weight_decrease_reputation_factor": s.BelowMinWeightDecreaseReputationFactor,
    "non_attestor_decrease_reputation_factor": s.NonAttestorDecreaseReputationFactor,
    "non_consensus_attestor_decrease_reputation_factor": s.NonConsensusAttestorDecreaseReputationFactor,
    "validator_absent_subnet_node_reputation_factor": s.ValidatorAbsentDecreaseReputationFactor,
    "validator_non_consensus_subnet_node_reputation_factor": s.ValidatorNonConsensusSubnetNodeReputationFactor,
    "bootnode_access": s.SubnetBootnodeAccess,
    "bootnodes": s.SubnetBootnodes,
    "total_nodes": s.TotalSubnetNodes,
    "total_active_nodes": s.TotalActiveSubnetNodes,
    "total_electable_nodes": s.TotalSubnetElectableNodes,
    "total_subnet_stake": s.TotalSubnetStake,
    "total_subnet_delegate_stake_shares": s.TotalSubnetDelegateStakeShares,
    "total_subnet_delegate_stake_balance": s.TotalSubnetDelegateStakeBalance,
}


def _subnet(ctx: Context, subnet_id: int) -> dict[str, Any] | None:
    data = ctx.get(s.SubnetsData, subnet_id)
    if data is None:
        return None
    gathered = {name: ctx.get(item, subnet_id) for name, item in _SUBNET_FIELDS.items()}
    return {**data, **gathered, "current_min_delegate_stake": min_delegate_stake(ctx, subnet_id)}


def _node(ctx: Context, subnet_id: int, node_id: int) -> dict[str, Any] | None:
    node = nodes.find_node(ctx, subnet_id, node_id)
    if node is None:
        return None
    coldkey = ctx.get(s.HotkeyOwner, node["hotkey"])
    kept = {name: value for name, value in node.items() if name != "id"}
    return {
        **kept,
        "subnet_id": subnet_id,
        "subnet_node_id": node_id,
        "coldkey": coldkey,
        "identity": ctx.get(s.ColdkeyIdentity, coldkey),
        "stake_balance": ctx.get(s.AccountSubnetStake, node["hotkey"], subnet_id),
        "total_node_delegate_stake_shares": ctx.get(s.TotalNodeDelegateStakeShares, subnet_id, node_id),
        "node_delegate_stake_balance": ctx.get(s.TotalNodeDelegateStakeBalance, subnet_id, node_id),
        "coldkey_reputation": ctx.get(s.ColdkeyReputation, coldkey),
        "subnet_node_reputation": ctx.get(s.SubnetNodeReputation, subnet_id, node_id),
        "node_slot_index": ctx.get(s.NodeSlotIndex, subnet_id, node_id),
        "consecutive_idle_epochs": ctx.get(s.SubnetNodeIdleConsecutiveEpochs, subnet_id, node_id),
        "consecutive_included_epochs": ctx.get(s.SubnetNodeConsecutiveIncludedEpochs, subnet_id, node_id),
    }


def _subnet_ids(ctx: Context) -> Iterator[int]:
    for (subnet_id,), _ in ctx.items(s.SubnetsData):
        yield subnet_id


def _nodes_of(ctx: Context, subnet_id: int) -> list[dict[str, Any]]:
    """All nodes, queued ones too, by node id."""
    ids = sorted(node_id for _, node_id in ctx.items(s.HotkeySubnetNodeId, subnet_id))
    return [found for node_id in ids if (found := _node(ctx, subnet_id, node_id)) is not None]


# --- the functions ---------------------------------------------------------------------------------------------------


def get_subnet_info(ctx: Context, subnet_id: int) -> dict[str, Any] | None:
    """One subnet, or None."""
    return _subnet(ctx, subnet_id)


def get_all_subnets_info(ctx: Context) -> list[dict[str, Any]]:
    """All subnets."""
    return [found for subnet_id in _subnet_ids(ctx) if (found := _subnet(ctx, subnet_id)) is not None]


def get_subnet_node_info(ctx: Context, subnet_id: int, subnet_node_id: int) -> dict[str, Any] | None:
    """One node, active or queued, or None."""
    return _node(ctx, subnet_id, subnet_node_id)


def get_subnet_nodes_info(ctx: Context, subnet_id: int) -> list[dict[str, Any]]:
    """All nodes of a subnet."""
    return _nodes_of(ctx, subnet_id)


def get_all_subnet_nodes_info(ctx: Context) -> list[dict[str, Any]]:
    """All nodes of all subnets."""
    return [node for subnet_id in _subnet_ids(ctx) for node in _nodes_of(ctx, subnet_id)]


def get_elected_validator_info(ctx: Context, subnet_id: int, subnet_epoch: int) -> dict[str, Any] | None:
    """The node elected for a subnet epoch, or None."""
    elected = ctx.get(s.SubnetElectedValidator, subnet_id, subnet_epoch)
    return None if elected is None else _node(ctx, subnet_id, elected)


def get_validators_and_attestors(ctx: Context, subnet_id: int) -> list[dict[str, Any]]:
    """The nodes that may be elected and attest: the emergency set in force, else the election slots, in order."""
    slots = emergency.in_force(ctx, subnet_id, epochs.subnet_epoch(ctx, subnet_id))
    if slots is None:
        slots = ctx.get(s.SubnetNodeElectionSlots, subnet_id)
    return [found for node_id in slots if (found := _node(ctx, subnet_id, node_id)) is not None]


def get_bootnodes(ctx: Context, subnet_id: int) -> dict[str, Any]:
    """All bootnodes of a subnet with an address."""

    def of(item: Any) -> dict[bytes, bytes]:
        infos = [node["bootnode_peer_info"] for _, node in ctx.items(item, subnet_id)]
        return {info["peer_id"]: info["multiaddr"] for info in infos if info and info["multiaddr"] is not None}

    return {
        "subnet_bootnodes": ctx.get(s.SubnetBootnodes, subnet_id),
        "node_bootnodes": of(s.SubnetNodesData),
        "registered_bootnodes": of(s.RegisteredSubnetNodesData),
    }


def get_coldkey_subnet_nodes_info(ctx: Context, coldkey: bytes) -> list[dict[str, Any]]:
    """All nodes whose hotkeys a coldkey owns."""
    return [
        found
        for subnet_id, ids in ctx.get(s.ColdkeySubnetNodes, coldkey).items()
        for node_id in sorted(ids)
        if (found := _node(ctx, subnet_id, node_id)) is not None
    ]


def get_coldkey_stakes(ctx: Context, coldkey: bytes) -> list[dict[str, Any]]:
    """What a coldkey has staked on its nodes."""
    stakes = []
    for subnet_id, ids in ctx.get(s.ColdkeySubnetNodes, coldkey).items():
        for node_id in sorted(ids):
            hotkey = ctx.get(s.SubnetNodeIdHotkey, subnet_id, node_id)
            if hotkey is not None:
                stakes.append(
                    {
                        "subnet_id": subnet_id,
                        "subnet_node_id": node_id,
                        "hotkey": hotkey,
                        "balance": ctx.get(s.AccountSubnetStake, hotkey, subnet_id),
                    }
                )
    return stakes


def get_delegate_stakes(ctx: Context, account: bytes) -> list[dict[str, Any]]:
    """An account's shares of delegate pools and what they are worth, planck."""
    stakes = []
    for (_, subnet_id), shares in ctx.items(s.AccountSubnetDelegateStakeShares, account):
        worth = economics.shares_to_balance(
            shares,
            total_shares=ctx.get(s.TotalSubnetDelegateStakeShares, subnet_id),
            total_balance=ctx.get(s.TotalSubnetDelegateStakeBalance, subnet_id),
        )
        stakes.append({"subnet_id": subnet_id, "shares": shares, "balance": worth})
    return stakes


def get_node_delegate_stakes(ctx: Context, account: bytes) -> list[dict[str, Any]]:
    """An account's shares of single nodes' delegate pools and what they are worth, planck."""
    stakes = []
    for (_, subnet_id, node_id), shares in ctx.items(s.AccountNodeDelegateStakeShares, account):
        worth = economics.shares_to_balance(
            shares,
            total_shares=ctx.get(s.TotalNodeDelegateStakeShares, subnet_id, node_id),
            total_balance=ctx.get(s.TotalNodeDelegateStakeBalance, subnet_id, node_id),
        )
        stakes.append({"subnet_id": subnet_id, "subnet_node_id": node_id, "shares": shares, "balance": worth})
    return stakes


def get_overwatch_commits(ctx: Context, epoch: int, overwatch_node_id: int) -> list[tuple[int, bytes]]:
    """What an overwatch node committed to in an overwatch epoch: (subnet id, hash)."""
    return [(keys[2], commit) for keys, commit in ctx.items(s.OverwatchCommits, epoch, overwatch_node_id)]


def get_overwatch_reveals(ctx: Context, epoch: int, overwatch_node_id: int) -> list[tuple[int, int]]:
    """The weights an overwatch node revealed in an overwatch epoch: (subnet id, weight)."""
    reveals = ctx.items(s.OverwatchReveals, epoch)
    return [(subnet_id, weight) for (_, subnet_id, node_id), weight in reveals if node_id == overwatch_node_id]


def get_all_overwatch_nodes_info(ctx: Context) -> list[dict[str, Any]]:
    """All overwatch nodes."""
    infos = []
    for (node_id,), node in ctx.items(s.OverwatchNodes):
        coldkey = ctx.get(s.HotkeyOwner, node["hotkey"])
        infos.append(
            {
                "overwatch_node_id": node_id,
                "coldkey": coldkey,
                "hotkey": node["hotkey"],
                "peer_ids": ctx.get(s.OverwatchNodeIndex, node_id),
                "reputation": ctx.get(s.ColdkeyReputation, coldkey),
                "account_overwatch_stake": ctx.get(s.AccountOverwatchStake, node["hotkey"]),
            }
        )
    return infos


def proof_of_stake(ctx: Context, subnet_id: int, peer_id: bytes, min_class: int, min_stake: int | None = None) -> bool:
    """Whether a peer id (main, bootnode or client) belongs to a node of a class with the subnet's minimum
    stake.

    Also true for the official bootnodes and for overwatch nodes of the subnet.
    """
    if not ctx.has(s.SubnetsData, subnet_id) or min_class >= len(nodes.CLASSES):
        return False
    if min_stake is None:
        min_stake = ctx.get(s.SubnetMinStakeBalance, subnet_id)
    least = nodes.CLASSES[min_class]
    now = epochs.subnet_epoch(ctx, subnet_id)
    for role in peers.Role:
        if not ctx.has(role.index, subnet_id, peer_id):
            continue
        node = nodes.find_node(ctx, subnet_id, ctx.get(role.index, subnet_id, peer_id))
        if (
            node is not None
            and nodes.has_class(node, least, now)
            and ctx.get(s.AccountSubnetStake, node["hotkey"], subnet_id) >= min_stake
        ):
            return True
    if ctx.has(s.PeerIdOverwatchNodeId, subnet_id, peer_id):
        return True
    return peer_id in ctx.get(s.SubnetBootnodes, subnet_id)


# --- as the runtime answers ------------------------------------------------------------------------------------------


def _api(fn: Callable[..., Any], result: Type, *args: Type) -> Callable[[Context, bytes], bytes]:
    def answer(ctx: Context, encoded: bytes) -> bytes:
        reader = Reader(encoded)
        values = [kind.decode(reader) for kind in args]
        reader.finish()
        return bytes_.encode(result.encode(fn(ctx, *values)))

    return answer


def _proof_of_stake_api(ctx: Context, encoded: bytes) -> bytes:
    """Takes three arguments, or four as the later dialect sends them."""
    reader = Reader(encoded)
    subnet_id, peer_id, min_class = u32.decode(reader), bytes_.decode(reader), u8.decode(reader)
    min_stake = option(u128).decode(reader) if reader.remaining else None
    reader.finish()
    return boolean.encode(proof_of_stake(ctx, subnet_id, peer_id, min_class, min_stake))


_NODES = vec(subnet_node_info)

APIS: Final[dict[str, Callable[[Context, bytes], bytes]]] = {
    "NetworkRuntimeApi_get_subnet_info": _api(get_subnet_info, option(subnet_info), u32),
    "NetworkRuntimeApi_get_all_subnets_info": _api(get_all_subnets_info, vec(subnet_info)),
    "NetworkRuntimeApi_get_subnet_node_info": _api(get_subnet_node_info, option(subnet_node_info), u32, u32),
    "NetworkRuntimeApi_get_subnet_nodes_info": _api(get_subnet_nodes_info, _NODES, u32),
    "NetworkRuntimeApi_get_all_subnet_nodes_info": _api(get_all_subnet_nodes_info, _NODES),
    "NetworkRuntimeApi_get_elected_validator_info": _api(
        get_elected_validator_info, option(subnet_node_info), u32, u32
    ),
    "NetworkRuntimeApi_get_validators_and_attestors": _api(get_validators_and_attestors, _NODES, u32),
    "NetworkRuntimeApi_get_bootnodes": _api(get_bootnodes, all_subnet_bootnodes, u32),
    "NetworkRuntimeApi_get_coldkey_subnet_nodes_info": _api(get_coldkey_subnet_nodes_info, _NODES, account_id),
    "NetworkRuntimeApi_get_coldkey_stakes": _api(get_coldkey_stakes, vec(subnet_node_stake_info), account_id),
    "NetworkRuntimeApi_get_delegate_stakes": _api(get_delegate_stakes, vec(delegate_stake_info), account_id),
    "NetworkRuntimeApi_get_node_delegate_stakes": _api(
        get_node_delegate_stakes, vec(node_delegate_stake_info), account_id
    ),
    "NetworkRuntimeApi_get_overwatch_commits_for_epoch_and_node": _api(
        get_overwatch_commits, vec(tuple_of(u32, h256)), u32, u32
    ),
    "NetworkRuntimeApi_get_overwatch_reveals_for_epoch_and_node": _api(
        get_overwatch_reveals, vec(tuple_of(u32, u128)), u32, u32
    ),
    "NetworkRuntimeApi_get_all_overwatch_nodes_info": _api(get_all_overwatch_nodes_info, vec(overwatch_node_info)),
    "NetworkRuntimeApi_proof_of_stake": _proof_of_stake_api,
}
