"""The Network pallet (index 23) of the dev chain: subnets, nodes, stake, consensus and rewards, in dialect W.

Dialect W is the network's coldkey/hotkey model: a coldkey owns money and signs registrations and stakes, a
hotkey signs proposals and attestations. Names, indices, argument and storage layouts are those of the
network's metadata; rules and amounts are checked against a recorded epoch of it. The council's calls (77 to
162) are not declared: its settings are given at genesis.

Where the recorded epoch is silent (penalties, queue, graduation) the rules follow the network's public
sources, and may differ from a given release of it in detail. On purpose different:

- A node activated from the queue is taken as it is registered then, with addresses changed while it waited.
- A node that has left is not given a reputation again, and is paid for its last epoch only while its hotkey is owned.
- Several proposed scores of one node become its lowest.
- A subnet has a weight and elects only from its first epoch on. A paused one has none, except for the round that was
  under way when it was paused; pause.py says what else a pause does and does not do.
- Unpausing moves the waiting nodes of this subnet only, and in the queue as well as in their own data.
- A paused subnet counts as active when it is removed.
- An emergency set is in force from the subnet epoch after unpausing on, not while it is only chosen; a further pause
  does not renew its time; it ends with fewer nodes than a subnet needs. Nobody is lifted, and no Idle node blamed,
  meanwhile (emergency.py).

| file          | what                                                        |
| ------------- | ----------------------------------------------------------- |
| economics.py  | all arithmetic, pure                                        |
| types.py, storage.py, events.py, errors.py | the declaration                |
| epochs.py     | which epoch it is                                           |
| peers.py      | peer ids and multiaddrs                                     |
| subnets.py, nodes.py, stake.py, delegate.py, consensus.py | the calls       |
| owner.py, pause.py, emergency.py | the owner's calls                        |
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
    emergency,
    epoch,
    info,
    nodes,
    owner,
    pause,
    stake,
    storage,
    subnets,
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
    Call(53, "remove_delegate_stake", (_SUBNET, ("shares_to_be_removed", u128)), delegate.remove_delegate_stake),
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
    )
