"""The Network pallet (index 23) of the dev chain: subnets, nodes, stake, consensus and rewards, in dialect W.

Dialect W is the network's coldkey/hotkey model: a coldkey owns money and signs registrations and stakes, a
hotkey signs proposals and attestations. Names, indices, argument and storage layouts are those of the
network's metadata; rules and amounts are checked against a recorded epoch of it. The council's calls (77 to
162) are not declared: its settings are given at genesis.

Where the recorded epoch is silent (penalties, queue, graduation, swaps, keys, overwatch) the rules follow the
network's public sources, and may differ from a given release of it in detail. On purpose different:

- A node activated from the queue is taken as it is registered then, with addresses changed while it waited.
- A node that has left is not given a reputation again, and is paid for its last epoch only while its hotkey is owned
  and not another node's.
- No more initial coldkeys than a subnet may have nodes.
- A reward goes to the hotkey a node has when it is paid, not to the one it had when it was proposed.
- Several proposed scores of one node become its lowest.
- A subnet has a weight and elects only from its first epoch on. A paused one has none, except for the round that was
  under way when it was paused; pause.py says what else a pause does and does not do.
- Unpausing moves the waiting nodes of this subnet only, and in the queue as well as in their own data.
- A paused subnet counts as active when it is removed.
- An emergency set is in force from the subnet epoch after unpausing on, not while it is only chosen; a further pause
  does not renew its time; it ends with fewer nodes than a subnet needs. Nobody is lifted, and no Idle node blamed,
  meanwhile (emergency.py).
- A hotkey is forgotten only when nothing at all is staked on it and it is no node of any kind.
- Nobody hands over more shares than it has, nor to itself, and only its owner may change a waiting swap.
- A swap whose target is gone, or too dear for one share, goes to the unbonding ledger, due at once, not into the
  pool of something that is gone or into nothing. A swap of nothing is refused, and so is one too many for the queue.
- A new coldkey takes over all hotkeys of the old one, and being on the overwatch blacklist. It must be fresh: what
  it has itself is never given to the old one. Delegate accounts stay different from the keys of their node.
- A reveal that reveals nothing new is not free.
- An overwatch node's peer id in a subnet is free again once it has another.
- Swap updates and removals of identities are refused like all calls while the network is paused.
- Adding to the stake of an overwatch node that is not there is InvalidOverwatchNodeId.

| file          | what                                                        |
| ------------- | ----------------------------------------------------------- |
| economics.py, overwatch_economics.py | all arithmetic, pure                 |
| types.py, storage.py, events.py, errors.py | the declaration                |
| epochs.py     | which epoch it is                                           |
| peers.py      | peer ids and multiaddrs                                     |
| subnets.py, consensus.py | the calls about subnets and their consensus      |
| nodes.py, node_settings.py, keys.py, identity.py | the calls about nodes and who they are |
| owner.py, pause.py, emergency.py | the owner's calls                        |
| stake.py      | node stake, and the ledger of what is unstaked              |
| pools.py      | delegate pools in storage, a subnet's or a node's           |
| delegate.py, node_delegate.py, swaps.py, delegate_account.py | the calls of who delegates |
| overwatch.py  | who watches from outside: calls, and settling their epoch   |
| epoch.py      | the block hook: weights, elections, queue, removals         |
| rewards.py    | settling an epoch                                           |
| reputation.py | who falls and rises                                         |
| info.py       | the runtime API                                             |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.devchain.pallet import Call, Constant, Context, Pallet
from mesh.devchain.pallets.network import (
    consensus,
    delegate,
    delegate_account,
    emergency,
    epoch,
    identity,
    info,
    keys,
    node_delegate,
    node_settings,
    nodes,
    overwatch,
    owner,
    pause,
    stake,
    storage,
    subnets,
    swaps,
)
from mesh.devchain.pallets.network import types as t
from mesh.devchain.pallets.network.errors import ERRORS
from mesh.devchain.pallets.network.events import EVENTS
from mesh.devchain.scale import (
    account_id,
    bounded_bytes,
    btree_map,
    btree_set,
    opaque_peer_id,
    option,
    u32,
    u128,
    vec,
)
from mesh.errors import ConfigError

INDEX: Final = 23
BLOCKS_PER_YEAR: Final = 5_256_000
"""At a block every 6 seconds; a year's emission is divided by the epochs in it, whatever their length."""

DESIGNATED_EPOCH_SLOTS: Final = 3
TREASURY: Final = b"modlpy/trsry".ljust(20, b"\0")
"""The treasury's account."""

_OVERWATCH_EPOCH_EMISSIONS: Final = 0x872FDD8883387F
_SUBNET = ("subnet_id", u32)
_NODE = ("subnet_node_id", u32)
_FROM_SUBNET = ("from_subnet_id", u32)
_FROM_NODE = ("from_subnet_node_id", u32)
_TO_SUBNET = ("to_subnet_id", u32)
_TO_NODE = ("to_subnet_node_id", u32)
_OVERWATCHER = ("overwatch_node_id", u32)
_HOTKEY = ("hotkey", account_id)

_CALLS: Final[tuple[Call, ...]] = (
    *owner.CALLS,
    *pause.CALLS,
    *emergency.CALLS,
    Call(
        0,
        "register_subnet",
        (("max_cost", u128), ("subnet_data", t.registration_subnet_data)),
        subnets.register_subnet,
    ),
    Call(1, "activate_subnet", (_SUBNET,), subnets.activate_subnet),
    Call(
        37,
        "update_bootnodes",
        (_SUBNET, ("add", btree_map(opaque_peer_id, bounded_bytes)), ("remove", btree_set(opaque_peer_id))),
        subnets.update_bootnodes,
    ),
    Call(
        38,
        "register_subnet_node",
        (
            _SUBNET,
            ("hotkey", account_id),
            ("peer_info", t.peer_info),
            ("bootnode_peer_info", option(t.peer_info)),
            ("client_peer_info", option(t.peer_info)),
            ("delegate_reward_rate", u128),
            ("stake_to_be_added", u128),
            ("unique", option(bounded_bytes)),
            ("non_unique", option(bounded_bytes)),
            ("delegate_account", option(t.delegate_account)),
            ("max_burn_amount", u128),
        ),
        nodes.register_subnet_node,
    ),
    Call(39, "remove_subnet_node", (_SUBNET, _NODE), nodes.remove_subnet_node),
    Call(40, "update_peer_info", (_SUBNET, _NODE, ("new_peer_info", t.peer_info)), nodes.update_peer_info),
    Call(
        41,
        "update_delegate_account",
        (_SUBNET, _NODE, ("delegate_account_id", option(account_id)), ("delegate_rate", option(u128))),
        delegate_account.update_delegate_account,
    ),
    Call(
        42,
        "update_bootnode_peer_info",
        (_SUBNET, _NODE, ("new_peer_info", option(t.peer_info))),
        nodes.update_bootnode_peer_info,
    ),
    Call(
        43,
        "update_client_peer_info",
        (_SUBNET, _NODE, ("new_peer_info", option(t.peer_info))),
        nodes.update_client_peer_info,
    ),
    Call(
        44,
        "update_node_delegate_reward_rate",
        (_SUBNET, _NODE, ("new_delegate_reward_rate", u128)),
        node_settings.update_node_delegate_reward_rate,
    ),
    Call(45, "update_unique", (_SUBNET, _NODE, ("unique", option(bounded_bytes))), node_settings.update_unique),
    Call(
        46,
        "update_non_unique",
        (_SUBNET, _NODE, ("non_unique", option(bounded_bytes))),
        node_settings.update_non_unique,
    ),
    Call(
        47,
        "add_stake",
        (_SUBNET, _NODE, ("hotkey", account_id), ("stake_to_be_added", u128)),
        stake.add_stake,
    ),
    Call(
        48,
        "remove_stake",
        (_SUBNET, ("hotkey", account_id), ("stake_to_be_removed", u128)),
        stake.remove_stake,
    ),
    Call(49, "claim_unbondings", (), stake.claim_unbondings),
    Call(50, "add_to_delegate_stake", (_SUBNET, ("stake_to_be_added", u128)), delegate.add_to_delegate_stake),
    Call(
        51,
        "swap_delegate_stake",
        (_FROM_SUBNET, _TO_SUBNET, ("delegate_stake_shares_to_swap", u128)),
        swaps.swap_delegate_stake,
    ),
    Call(
        52,
        "transfer_delegate_stake",
        (_SUBNET, ("to_account_id", account_id), ("delegate_stake_shares_to_transfer", u128)),
        delegate.transfer_delegate_stake,
    ),
    Call(53, "remove_delegate_stake", (_SUBNET, ("shares_to_be_removed", u128)), delegate.remove_delegate_stake),
    Call(54, "donate_delegate_stake", (_SUBNET, ("amount", u128)), delegate.donate_delegate_stake),
    Call(
        55,
        "add_to_node_delegate_stake",
        (_SUBNET, _NODE, ("node_delegate_stake_to_be_added", u128)),
        node_delegate.add_to_node_delegate_stake,
    ),
    Call(
        56,
        "swap_node_delegate_stake",
        (_FROM_SUBNET, _FROM_NODE, _TO_SUBNET, _TO_NODE, ("node_delegate_stake_shares_to_swap", u128)),
        swaps.swap_node_delegate_stake,
    ),
    Call(
        57,
        "transfer_node_delegate_stake",
        (_SUBNET, _NODE, ("to_account_id", account_id), ("node_delegate_stake_shares_to_transfer", u128)),
        node_delegate.transfer_node_delegate_stake,
    ),
    Call(
        58,
        "remove_node_delegate_stake",
        (_SUBNET, _NODE, ("node_delegate_stake_shares_to_be_removed", u128)),
        node_delegate.remove_node_delegate_stake,
    ),
    Call(
        59,
        "donate_node_delegate_stake",
        (_SUBNET, _NODE, ("amount", u128)),
        node_delegate.donate_node_delegate_stake,
    ),
    Call(
        60,
        "swap_from_node_to_subnet",
        (_FROM_SUBNET, _FROM_NODE, _TO_SUBNET, ("node_delegate_stake_shares_to_swap", u128)),
        swaps.swap_from_node_to_subnet,
    ),
    Call(
        61,
        "swap_from_subnet_to_node",
        (_FROM_SUBNET, _TO_SUBNET, _TO_NODE, ("delegate_stake_shares_to_swap", u128)),
        swaps.swap_from_subnet_to_node,
    ),
    Call(62, "update_swap_queue", (("id", u32), ("new_call", t.queued_swap_call)), swaps.update_swap_queue),
    Call(
        63,
        "register_or_update_identity",
        (_HOTKEY, *((name, bounded_bytes) for name in t.IDENTITY_FIELDS)),
        identity.register_or_update_identity,
    ),
    Call(64, "remove_identity", (), identity.remove_identity),
    Call(
        65,
        "propose_attestation",
        (
            _SUBNET,
            ("data", vec(t.consensus_score)),
            ("prioritize_queue_node_id", option(u32)),
            ("remove_queue_node_id", option(u32)),
            ("args", option(bounded_bytes)),
            ("attest_data", option(bounded_bytes)),
        ),
        consensus.propose_attestation,
    ),
    Call(66, "attest", (_SUBNET, ("attest_data", option(bounded_bytes))), consensus.attest),
    Call(67, "update_coldkey", (_HOTKEY, ("new_coldkey", account_id)), keys.update_coldkey),
    Call(68, "update_hotkey", (("old_hotkey", account_id), ("new_hotkey", account_id)), keys.update_hotkey),
    Call(69, "register_overwatch_node", (_HOTKEY, ("stake_to_be_added", u128)), overwatch.register_overwatch_node),
    Call(70, "remove_overwatch_node", (_OVERWATCHER,), overwatch.remove_overwatch_node),
    Call(71, "anyone_remove_overwatch_node", (_OVERWATCHER,), overwatch.anyone_remove_overwatch_node),
    Call(
        72,
        "set_overwatch_node_peer_id",
        (_SUBNET, _OVERWATCHER, ("peer_id", opaque_peer_id)),
        overwatch.set_overwatch_node_peer_id,
    ),
    Call(
        73,
        "commit_overwatch_subnet_weights",
        (_OVERWATCHER, ("commit_weights", vec(t.overwatch_commit))),
        overwatch.commit_overwatch_subnet_weights,
    ),
    Call(
        74,
        "reveal_overwatch_subnet_weights",
        (_OVERWATCHER, ("reveals", vec(t.overwatch_reveal))),
        overwatch.reveal_overwatch_subnet_weights,
    ),
    Call(
        75,
        "add_to_overwatch_stake",
        (_OVERWATCHER, _HOTKEY, ("stake_to_be_added", u128)),
        overwatch.add_to_overwatch_stake,
    ),
    Call(
        76,
        "remove_overwatch_stake",
        (_HOTKEY, ("stake_to_be_removed", u128)),
        overwatch.remove_overwatch_stake,
    ),
    Call(
        163,
        "transfer_delegate_account",
        (_SUBNET, _NODE, ("delegate_account_id", account_id)),
        delegate_account.transfer_delegate_account,
    ),
    Call(164, "remove_delegate_balance", (("amount_to_remove", u128),), delegate_account.remove_delegate_balance),
)
CALLS: Final = tuple(sorted(_CALLS, key=lambda call: call.index))
"""All calls, by index."""


def pallet(epoch_length: int, *, genesis: Mapping[str, Any] = storage.DEV_GENESIS) -> Pallet:
    """The pallet, for epochs of ``epoch_length`` blocks (4 at least: three of them serve the network).

    ``genesis`` maps names of plain storage items to their values at block 0, in place of the defaults.
    """
    if epoch_length <= DESIGNATED_EPOCH_SLOTS:
        raise ConfigError(f"epoch_length is {epoch_length}; it must be {DESIGNATED_EPOCH_SLOTS + 1} or more")
    items = {item.name: item for item in storage.ITEMS}
    for name in genesis:
        if name not in items or items[name].hashed_keys:
            raise ConfigError(f"{name} is no plain storage item of the Network pallet")

    def build(ctx: Context) -> None:
        for name, value in genesis.items():
            ctx.put(items[name], value=value)
        ctx.mint(TREASURY, stake.EXISTENTIAL_DEPOSIT, "genesis")

    return Pallet(
        "Network",
        INDEX,
        storage=list(storage.ITEMS),
        calls=list(CALLS),
        events=EVENTS,
        errors=list(ERRORS),
        constants={
            "EpochLength": Constant(u32, epoch_length),
            "EpochsPerYear": Constant(u32, BLOCKS_PER_YEAR // epoch_length),
            "InitialTxRateLimit": Constant(u32, 0),
            "PalletId": Constant(t.pallet_id, b"/network"),
            "TreasuryAccount": Constant(account_id, TREASURY),
            "OverwatchEpochEmissions": Constant(u128, _OVERWATCH_EPOCH_EMISSIONS),
            "MaximumHooksWeight": Constant(t.hooks_weight, {"ref_time": 10**12, "proof_size": 2**63 - 1}),
            "DesignatedEpochSlots": Constant(u32, DESIGNATED_EPOCH_SLOTS),
        },
        on_initialize=epoch.on_initialize,
        genesis=build,
        apis=dict(info.APIS),
        holdings=stake.HOLDINGS,
    )
