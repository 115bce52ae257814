"""The Network pallet's own SCALE types, field for field as the network's metadata declares them.

Values are plain Python (see `mesh.devchain.scale`): structs are dicts, plain enum variants are strings.
"""

from __future__ import annotations

from typing import Any

from mesh.devchain.scale import (
    Type,
    account_id,
    array_u8,
    bounded_bytes,
    btree_map,
    bytes_,
    compact,
    enum,
    h256,
    newtype,
    opaque_peer_id,
    option,
    struct,
    tuple_of,
    u32,
    u64,
    u128,
    vec,
)

_AT = "pallet_network::pallet::"

peer_info = struct(_AT + "PeerInfo", peer_id=opaque_peer_id, multiaddr=option(bounded_bytes))
"""A peer id (base58 text) and where to reach it (binary multiaddr)."""

node_class = enum(_AT + "SubnetNodeClass", Registered=None, Idle=None, Included=None, Validator=None)
"""How far a node has come; a later class may do everything an earlier one may."""

classification = struct(_AT + "SubnetNodeClassification", node_class=node_class, start_epoch=u32)
"""A class and the subnet epoch from which it holds."""

delegate_account = struct(_AT + "DelegateAccount", account_id=account_id, rate=u128).with_params(AccountId=account_id)

subnet_node = struct(
    _AT + "SubnetNode",
    id=u32,
    hotkey=account_id,
    peer_info=peer_info,
    bootnode_peer_info=option(peer_info),
    client_peer_info=option(peer_info),
    classification=classification,
    delegate_reward_rate=u128,
    last_delegate_reward_rate_update=u32,
    unique=option(bounded_bytes),
    non_unique=option(bounded_bytes),
    delegate_account=option(delegate_account),
).with_params(AccountId=account_id)

subnet_state = enum(_AT + "SubnetState", Registered=None, Active=None, Paused=None)

subnet_data = struct(
    _AT + "SubnetData",
    id=u32,
    friendly_id=u32,
    name=bytes_,
    repo=bytes_,
    description=bytes_,
    misc=bytes_,
    state=subnet_state,
    start_epoch=u32,
)

registration_subnet_data = struct(
    _AT + "RegistrationSubnetData",
    name=bytes_,
    repo=bytes_,
    description=bytes_,
    misc=bytes_,
    min_stake=u128,
    max_stake=u128,
    delegate_stake_percentage=u128,
    initial_coldkeys=btree_map(account_id, u32),
    bootnodes=btree_map(opaque_peer_id, bounded_bytes),
).with_params(AccountId=account_id)

removal_reason = enum(
    _AT + "SubnetRemovalReason",
    MinReputation=None,
    MinSubnetNodes=None,
    MinSubnetDelegateStake=None,
    Council=None,
    EnactmentPeriod=None,
    MaxSubnets=None,
    Owner=None,
    PauseExpired=None,
)

consensus_score = struct(_AT + "SubnetNodeConsensusData", subnet_node_id=u32, score=u128)

attest_entry = struct(
    _AT + "AttestEntry", block=u32, attestor_progress=u128, reward_factor=u128, data=option(bounded_bytes)
)

_consensus_start: dict[str, Type] = {
    "validator_id": u32,
    "block": u32,
    "validator_epoch_progress": u128,
    "validator_reward_factor": u128,
    "attests": btree_map(u32, attest_entry),
}
consensus_start = struct("", **_consensus_start)
"""What an encoded `consensus_data` begins with: all that an attestation changes. `consensus_nodes` follow."""

consensus_nodes = vec(subnet_node)

consensus_data = struct(
    _AT + "ConsensusData",
    **_consensus_start,
    subnet_nodes=consensus_nodes,
    prioritize_queue_node_id=option(u32),
    remove_queue_node_id=option(u32),
    data=vec(consensus_score),
    args=option(bounded_bytes),
).with_params(AccountId=account_id)
"""One submission; ``validator_id`` is the proposer's subnet *node* id."""

distribution_data = struct(_AT + "DistributionData", validator_emissions=u128, weights=btree_map(u32, u128))

reputation = struct(
    _AT + "Reputation",
    start_epoch=u32,
    score=u128,
    lifetime_node_count=u32,
    total_active_nodes=u32,
    total_increases=u32,
    total_decreases=u32,
    average_attestation=u128,
    last_validator_epoch=u32,
    ow_score=u128,
)

DEFAULT_REPUTATION: dict[str, Any] = {**reputation.zero(), "score": 5 * 10**17, "ow_score": 5 * 10**14}
"""What a coldkey starts with."""

weight_factors = struct(_AT + "SubnetWeightFactorsData", delegate_stake=u128, node_count=u128, net_flow=u128)

IDENTITY_FIELDS = (
    "name",
    "url",
    "image",
    "discord",
    "x",
    "telegram",
    "github",
    "hugging_face",
    "description",
    "misc",
)

identity = struct(_AT + "ColdkeyIdentityData", **dict.fromkeys(IDENTITY_FIELDS, bounded_bytes))

emergency_validators = struct(
    _AT + "EmergencySubnetValidatorData",
    subnet_node_ids=vec(u32),
    target_emergency_validators_epochs=u32,
    max_emergency_validators_epoch=u32,
    total_epochs=u32,
)

overwatch_node = struct(_AT + "OverwatchNode", id=u32, hotkey=account_id).with_params(AccountId=account_id)

overwatch_commit = struct(_AT + "OverwatchCommit", subnet_id=u32, weight=h256).with_params(Hash=h256)

overwatch_reveal = struct(_AT + "OverwatchReveal", subnet_id=u32, weight=u128, salt=bytes_)

queued_swap_call = enum(
    _AT + "QueuedSwapCall",
    SwapToSubnetDelegateStake={"account_id": account_id, "to_subnet_id": u32, "balance": u128},
    SwapToNodeDelegateStake={
        "account_id": account_id,
        "to_subnet_id": u32,
        "to_subnet_node_id": u32,
        "balance": u128,
    },
).with_params(AccountId=account_id)

queued_swap_item = struct(
    _AT + "QueuedSwapItem", id=u32, call=queued_swap_call, queued_at_block=u32, execute_after_blocks=u32
).with_params(AccountId=account_id)

hooks_weight = struct("sp_weights::weight_v2::Weight", ref_time=compact(u64), proof_size=compact(u64))

pallet_id = newtype("frame_support::PalletId", array_u8(8))

node_amount = tuple_of(u32, u128)
"""A subnet node id and planck."""

node_account_amount = tuple_of(u32, tuple_of(account_id, u128))
