"""Every call of the network pallet that an owner, a node, a staker or an overwatcher makes, as values. PURE.

Names and arguments are those of the deployed pallet (dialect W); `mesh.chain.dialect` carries them over to the other
one. Nothing is checked here but what the types say: the metadata refuses unknown arguments, the chain the rest.
Subnet ids are real ones (128001 …), amounts planck, shares as the pools count them, rates and factors of 1e18 = 100 %.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.chain.dialect import Call, peer_id_bytes
from mesh.errors import CallRefused
from mesh.peer import Multiaddr, PeerID, PeerInfo

MAX_SALT_BYTES: Final = 63
"""A salt's length must fit the one-byte form of a SCALE length here; 32 bytes are used."""

# --- owners -----------------------------------------------------------------------------------------------------


def activate_subnet(subnet_id: int) -> Call:
    """Start a registered subnet at the next epoch."""
    return Call("activate_subnet", {"subnet_id": subnet_id})


def pause_subnet(subnet_id: int) -> Call:
    """Stop an active subnet's epochs."""
    return Call("owner_pause_subnet", {"subnet_id": subnet_id})


def unpause_subnet(subnet_id: int) -> Call:
    """Let a paused subnet go on."""
    return Call("owner_unpause_subnet", {"subnet_id": subnet_id})


def deactivate_subnet(subnet_id: int) -> Call:
    """Remove a subnet for good."""
    return Call("owner_deactivate_subnet", {"subnet_id": subnet_id})


OWNER_TEXTS: Final = ("name", "repo", "description", "misc")
OWNER_NUMBERS: Final = (
    "churn_limit",
    "churn_limit_multiplier",
    "registration_queue_epochs",
    "idle_classification_epochs",
    "included_classification_epochs",
    "max_registered_nodes",
    "target_node_registrations_per_epoch",
    "queue_immunity_epochs",
)
OWNER_SHARES: Final = (
    "delegate_stake_percentage",
    "min_subnet_node_reputation",
    "node_burn_rate_alpha",
    "non_consensus_attestor_decrease_reputation_factor",
    "absent_decrease_reputation_factor",
    "included_increase_reputation_factor",
    "below_min_weight_decrease_reputation_factor",
    "non_attestor_decrease_reputation_factor",
    "validator_absent_decrease_reputation_factor",
    "validator_non_consensus_decrease_reputation_factor",
    "subnet_node_min_weight_decrease_reputation_threshold",
)
"""What an owner may set one at a time: texts, whole numbers, and shares of 1e18."""


def update_subnet(subnet_id: int, setting: str, value: str | int) -> Call:
    """Set one of OWNER_TEXTS, OWNER_NUMBERS or OWNER_SHARES. Raises CallRefused for another name."""
    if setting not in (*OWNER_TEXTS, *OWNER_NUMBERS, *OWNER_SHARES):
        raise CallRefused(f"a subnet has no setting {setting!r}")
    raw = value.encode() if isinstance(value, str) else value
    return Call(f"owner_update_{setting}", {"subnet_id": subnet_id, "value": raw})


def update_stake_limits(subnet_id: int, *, min_planck: int, max_planck: int) -> Call:
    """Set the least and the most a node of the subnet stakes."""
    return Call("owner_update_min_max_stake", {"subnet_id": subnet_id, "min": min_planck, "max": max_planck})


def set_initial_coldkeys(subnet_id: int, coldkeys: Mapping[bytes, int]) -> Call:
    """Let accounts register so many nodes each before activation."""
    return Call("owner_add_or_update_initial_coldkeys", {"subnet_id": subnet_id, "coldkeys": dict(coldkeys)})


def remove_initial_coldkeys(subnet_id: int, coldkeys: Iterable[bytes]) -> Call:
    """Take accounts off that list."""
    return Call("owner_remove_initial_coldkeys", {"subnet_id": subnet_id, "coldkeys": tuple(sorted(set(coldkeys)))})


def set_emergency_validators(subnet_id: int, node_ids: Sequence[int]) -> Call:
    """Elect among these nodes only, for a bounded number of epochs."""
    return Call("owner_set_emergency_validator_set", {"subnet_id": subnet_id, "subnet_node_ids": sorted(set(node_ids))})


def revert_emergency_validators(subnet_id: int) -> Call:
    """Elect among all validators again."""
    return Call("owner_revert_emergency_validator_set", {"subnet_id": subnet_id})


def transfer_subnet(subnet_id: int, new_owner: bytes) -> Call:
    """Offer the subnet to another account; it is theirs once they accept."""
    return Call("transfer_subnet_ownership", {"subnet_id": subnet_id, "new_owner": new_owner})


def accept_subnet(subnet_id: int) -> Call:
    """Accept an offered subnet; signed by the new owner."""
    return Call("accept_subnet_ownership", {"subnet_id": subnet_id})


def add_bootnode_access(subnet_id: int, account: bytes) -> Call:
    """Let an account change the subnet's bootnodes."""
    return Call("owner_add_bootnode_access", {"subnet_id": subnet_id, "new_account": account})


def remove_bootnode_access(subnet_id: int, account: bytes) -> Call:
    """Take that back."""
    return Call("owner_remove_bootnode_access", {"subnet_id": subnet_id, "remove_account": account})


def update_bootnodes(subnet_id: int, *, add: Sequence[PeerInfo] = (), remove: Iterable[PeerID] = ()) -> Call:
    """Change the subnet's bootnodes; each new one needs an address."""
    return Call(
        "update_bootnodes",
        {
            "subnet_id": subnet_id,
            "add": {peer_id_bytes(peer.peer_id): multiaddr_bytes(peer) for peer in add},
            "remove": tuple(sorted(peer_id_bytes(peer) for peer in set(remove))),
        },
    )


# --- nodes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeRef:
    """One node of one subnet; the real subnet id."""

    subnet_id: int
    node_id: int

    def args(self) -> dict[str, object]:
        """As the pallet names them."""
        return {"subnet_id": self.subnet_id, "subnet_node_id": self.node_id}


def remove_node(node: NodeRef) -> Call:
    """Take a node out of its subnet; its stake stays until it is removed."""
    return Call("remove_subnet_node", node.args())


def update_peer(node: NodeRef, peer: PeerInfo) -> Call:
    """Change the peer id the node runs with."""
    return Call("update_peer_info", {**node.args(), "new_peer_info": peer_struct(peer)})


def update_bootnode_peer(node: NodeRef, peer: PeerInfo | None) -> Call:
    """Change or drop the node's own bootnode."""
    return Call(
        "update_bootnode_peer_info", {**node.args(), "new_peer_info": None if peer is None else peer_struct(peer)}
    )


def update_client_peer(node: NodeRef, peer: PeerInfo | None) -> Call:
    """Change or drop the node's client identity."""
    return Call(
        "update_client_peer_info", {**node.args(), "new_peer_info": None if peer is None else peer_struct(peer)}
    )


def update_delegate_account(node: NodeRef, *, account: bytes | None, rate: int | None) -> Call:
    """Give a part of the node's rewards to an account, or (None, None) to nobody."""
    return Call("update_delegate_account", {**node.args(), "delegate_account_id": account, "delegate_rate": rate})


def update_delegate_reward_rate(node: NodeRef, rate: int) -> Call:
    """Change the part of its rewards that goes to the node's delegators."""
    return Call("update_node_delegate_reward_rate", {**node.args(), "new_delegate_reward_rate": rate})


def update_unique(node: NodeRef, value: bytes | None) -> Call:
    """Change the parameter no other node of the subnet may have."""
    return Call("update_unique", {**node.args(), "unique": value})


def update_non_unique(node: NodeRef, value: bytes | None) -> Call:
    """Change the free parameter."""
    return Call("update_non_unique", {**node.args(), "non_unique": value})


def update_coldkey(hotkey: bytes, new_coldkey: bytes) -> Call:
    """Hand a hotkey with its nodes and stake to another coldkey; signed by the present one."""
    return Call("update_coldkey", {"hotkey": hotkey, "new_coldkey": new_coldkey})


def update_hotkey(old_hotkey: bytes, new_hotkey: bytes) -> Call:
    """Replace a hotkey; signed by its coldkey."""
    return Call("update_hotkey", {"old_hotkey": old_hotkey, "new_hotkey": new_hotkey})


IDENTITY_FIELDS: Final = (
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


NOTHING: Final = "-"
"""What a field says that has nothing to say: the pallet refuses empty ones."""


def set_identity(hotkey: bytes, fields: Mapping[str, str]) -> Call:
    """Say who a coldkey is; `hotkey` is one of its own. Raises CallRefused for an unknown field."""
    if unknown := set(fields) - set(IDENTITY_FIELDS):
        raise CallRefused(f"an identity has no field {', '.join(sorted(unknown))}")
    texts = {name: (fields.get(name) or NOTHING).encode() for name in IDENTITY_FIELDS}
    return Call("register_or_update_identity", {"hotkey": hotkey, **texts})


def remove_identity() -> Call:
    """Forget who the signing coldkey is."""
    return Call("remove_identity", {})


# --- stake ------------------------------------------------------------------------------------------------------


def add_stake(node: NodeRef, hotkey: bytes, *, amount_planck: int) -> Call:
    """Stake more on a node of one's own."""
    return Call("add_stake", {**node.args(), "hotkey": hotkey, "stake_to_be_added": amount_planck})


def remove_stake(subnet_id: int, hotkey: bytes, *, amount_planck: int) -> Call:
    """Unstake; the planck can be claimed after the cooldown."""
    return Call("remove_stake", {"subnet_id": subnet_id, "hotkey": hotkey, "stake_to_be_removed": amount_planck})


def claim_unbondings() -> Call:
    """Take what has cooled down back to the free balance."""
    return Call("claim_unbondings", {})


PoolKey = int | NodeRef
"""Which delegate pool: a subnet's own by its real id, or one node's."""


def delegate(pool: PoolKey, *, amount_planck: int) -> Call:
    """Buy shares of a pool."""
    if isinstance(pool, NodeRef):
        return Call("add_to_node_delegate_stake", {**pool.args(), "node_delegate_stake_to_be_added": amount_planck})
    return Call("add_to_delegate_stake", {"subnet_id": pool, "stake_to_be_added": amount_planck})


def undelegate(pool: PoolKey, *, shares: int) -> Call:
    """Sell shares of a pool; the planck can be claimed after the cooldown."""
    if isinstance(pool, NodeRef):
        args = {**pool.args(), "node_delegate_stake_shares_to_be_removed": shares}
        return Call("remove_node_delegate_stake", args)
    return Call("remove_delegate_stake", {"subnet_id": pool, "shares_to_be_removed": shares})


def transfer_delegation(pool: PoolKey, to: bytes, *, shares: int) -> Call:
    """Give shares of a pool to another account."""
    if isinstance(pool, NodeRef):
        args = {**pool.args(), "to_account_id": to, "node_delegate_stake_shares_to_transfer": shares}
        return Call("transfer_node_delegate_stake", args)
    args = {"subnet_id": pool, "to_account_id": to, "delegate_stake_shares_to_transfer": shares}
    return Call("transfer_delegate_stake", args)


def donate(pool: PoolKey, *, amount_planck: int) -> Call:
    """Give planck to all who hold shares of a pool; it cannot be taken back."""
    if isinstance(pool, NodeRef):
        return Call("donate_node_delegate_stake", {**pool.args(), "amount": amount_planck})
    return Call("donate_delegate_stake", {"subnet_id": pool, "amount": amount_planck})


def swap_delegation(source: PoolKey, target: PoolKey, *, shares: int) -> Call:
    """Move shares from a pool to another; it waits in the chain's swap queue."""
    if isinstance(source, NodeRef):
        args: dict[str, object] = {
            "from_subnet_id": source.subnet_id,
            "from_subnet_node_id": source.node_id,
            "node_delegate_stake_shares_to_swap": shares,
        }
        if isinstance(target, NodeRef):
            return Call("swap_node_delegate_stake", {**args, **_to(target)})
        return Call("swap_from_node_to_subnet", {**args, "to_subnet_id": target})
    args = {"from_subnet_id": source, "delegate_stake_shares_to_swap": shares}
    if isinstance(target, NodeRef):
        return Call("swap_from_subnet_to_node", {**args, **_to(target)})
    return Call("swap_delegate_stake", {**args, "to_subnet_id": target})


def redirect_swap(swap_id: int, account: bytes, target: PoolKey, *, balance_planck: int) -> Call:
    """Send a swap that still waits in the queue to another pool."""
    if isinstance(target, NodeRef):
        fields = {"account_id": account, **_to(target), "balance": balance_planck}
        return Call("update_swap_queue", {"id": swap_id, "new_call": {"SwapToNodeDelegateStake": fields}})
    fields = {"account_id": account, "to_subnet_id": target, "balance": balance_planck}
    return Call("update_swap_queue", {"id": swap_id, "new_call": {"SwapToSubnetDelegateStake": fields}})


def transfer_delegate_account(node: NodeRef, account: bytes) -> Call:
    """Name another receiver of a node's delegate-account part; signed by the present one."""
    return Call("transfer_delegate_account", {**node.args(), "delegate_account_id": account})


def withdraw_delegate_account(*, amount_planck: int) -> Call:
    """Take out what nodes gave the signing account as their delegate account."""
    return Call("remove_delegate_balance", {"amount_to_remove": amount_planck})


# --- overwatch --------------------------------------------------------------------------------------------------


def register_overwatch(hotkey: bytes, *, amount_planck: int) -> Call:
    """Become an overwatch node."""
    return Call("register_overwatch_node", {"hotkey": hotkey, "stake_to_be_added": amount_planck})


def remove_overwatch(node_id: int) -> Call:
    """Stop being one; the stake stays until it is removed."""
    return Call("remove_overwatch_node", {"overwatch_node_id": node_id})


def remove_unfit_overwatch(node_id: int) -> Call:
    """Remove somebody's overwatch node that qualifies no more; anybody may."""
    return Call("anyone_remove_overwatch_node", {"overwatch_node_id": node_id})


def set_overwatch_peer(subnet_id: int, node_id: int, peer: PeerID) -> Call:
    """Say with which peer id an overwatch node looks at a subnet."""
    return Call(
        "set_overwatch_node_peer_id",
        {"subnet_id": subnet_id, "overwatch_node_id": node_id, "peer_id": peer_id_bytes(peer)},
    )


def overwatch_commitment(weight: int, salt: bytes) -> bytes:
    """blake2b-256 of SCALE (weight u128, salt Vec<u8>): what is committed before it is revealed."""
    if not 0 <= weight < 2**128 or len(salt) > MAX_SALT_BYTES:
        raise CallRefused(f"an overwatch weight is a u128 and a salt has {MAX_SALT_BYTES} bytes at most")
    body = weight.to_bytes(16, "little") + bytes([len(salt) << 2]) + salt
    return hashlib.blake2b(body, digest_size=32).digest()


def commit_overwatch(node_id: int, commitments: Mapping[int, bytes]) -> Call:
    """Commit to a weight per subnet, in the first part of an overwatch epoch."""
    commits = [{"subnet_id": each, "weight": commitments[each]} for each in sorted(commitments)]
    return Call("commit_overwatch_subnet_weights", {"overwatch_node_id": node_id, "commit_weights": commits})


def reveal_overwatch(node_id: int, weights: Mapping[int, tuple[int, bytes]]) -> Call:
    """Reveal (weight, salt) per subnet, in the last part of the same epoch."""
    reveals = [{"subnet_id": each, "weight": weight, "salt": salt} for each, (weight, salt) in sorted(weights.items())]
    return Call("reveal_overwatch_subnet_weights", {"overwatch_node_id": node_id, "reveals": reveals})


def add_overwatch_stake(node_id: int, hotkey: bytes, *, amount_planck: int) -> Call:
    """Stake more on an overwatch node."""
    return Call(
        "add_to_overwatch_stake",
        {"overwatch_node_id": node_id, "hotkey": hotkey, "stake_to_be_added": amount_planck},
    )


def remove_overwatch_stake(hotkey: bytes, *, amount_planck: int) -> Call:
    """Unstake from an overwatch node; the planck can be claimed after the cooldown."""
    return Call("remove_overwatch_stake", {"hotkey": hotkey, "stake_to_be_removed": amount_planck})


# --- money ------------------------------------------------------------------------------------------------------


def transfer(to: bytes, *, amount_planck: int) -> Call:
    """Send planck; the sender stays above the existential deposit."""
    return Call("Balances.transfer_keep_alive", {"dest": to, "value": amount_planck})


# --- shared -----------------------------------------------------------------------------------------------------


def peer_struct(peer: PeerInfo) -> dict[str, object]:
    """The pallet's `PeerInfo`: text of the peer id, and its first address with the id in it."""
    return {"peer_id": peer_id_bytes(peer.peer_id), "multiaddr": multiaddr_bytes(peer) if peer.addrs else None}


def multiaddr_bytes(peer: PeerInfo) -> bytes:
    """A binary multiaddr that ends with the peer id. Raises CallRefused without an address."""
    if not peer.addrs:
        raise CallRefused(f"{peer.peer_id} needs an address: /ip4/…/tcp/…/p2p/{peer.peer_id}")
    return bytes(Multiaddr(f"{peer.addrs[0]}/p2p/{peer.peer_id}").to_bytes())


def _to(target: NodeRef) -> dict[str, object]:
    return {"to_subnet_id": target.subnet_id, "to_subnet_node_id": target.node_id}
