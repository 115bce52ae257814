"""Registering and activating on the chain, as functions: the commands and the demo both call these.

Everything else a staker or an owner does is a call of mesh.chain.calls handed to `sign`.

Each signs one extrinsic with the coldkey it is given and returns what the caller needs next. Amounts are planck,
shares of 1e18 are 100 %. Errors are the Chain protocol's; ExtrinsicFailed carries the pallet's error name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.chain import calls
from mesh.chain.calls import multiaddr_bytes, peer_struct
from mesh.chain.checked import require_number
from mesh.chain.client import Chain
from mesh.chain.dialect import Call, peer_id_bytes
from mesh.chain.types import FIRST_SUBNET_ID, ONE, PLANCK_PER_TENSOR, Receipt
from mesh.errors import ChainError
from mesh.identity import AccountKey
from mesh.peer import PeerID, PeerInfo


@dataclass(frozen=True, slots=True)
class SubnetTerms:
    """What an owner registers a subnet with; the numbers are the pallet's lower bounds and defaults."""

    name: str
    repo: str
    description: str = ""
    misc: str = ""
    min_stake_planck: int = 100 * PLANCK_PER_TENSOR
    max_stake_planck: int = 1000 * PLANCK_PER_TENSOR
    delegate_stake_percentage: int = ONE // 10
    max_cost_planck: int = 100 * PLANCK_PER_TENSOR


@dataclass(frozen=True, slots=True)
class NodeTerms:
    """What a node is registered with. The three peer ids must differ; the last two are optional."""

    hotkey: bytes
    peer_id: PeerID
    bootnode_peer_id: PeerID | None
    client_peer_id: PeerID | None
    stake_planck: int
    delegate_reward_rate: int = 0
    max_burn_planck: int = 100 * PLANCK_PER_TENSOR
    bootnode: PeerInfo | None = None
    unique: bytes | None = None
    non_unique: bytes | None = None


async def register_subnet(
    chain: Chain,
    owner: AccountKey,
    *,
    terms: SubnetTerms,
    initial_coldkeys: Mapping[bytes, int],
    bootnodes: Sequence[PeerInfo],
) -> tuple[int, Receipt]:
    """Register a subnet; returns its real id. `initial_coldkeys` maps accounts to how many nodes each may register
    before activation; every bootnode needs one address."""
    receipt = await chain.submit("register_subnet", subnet_args(terms, initial_coldkeys, bootnodes), owner)
    return new_id(receipt, "SubnetRegistered", "subnet_id"), receipt


def subnet_args(
    terms: SubnetTerms, initial_coldkeys: Mapping[bytes, int], bootnodes: Sequence[PeerInfo]
) -> dict[str, object]:
    """The arguments of `register_subnet`."""
    return {
        "max_cost": terms.max_cost_planck,
        "subnet_data": {
            "name": terms.name.encode(),
            "repo": terms.repo.encode(),
            "description": terms.description.encode(),
            "misc": terms.misc.encode(),
            "min_stake": terms.min_stake_planck,
            "max_stake": terms.max_stake_planck,
            "delegate_stake_percentage": terms.delegate_stake_percentage,
            "initial_coldkeys": dict(initial_coldkeys),
            "bootnodes": {peer_id_bytes(b.peer_id): multiaddr_bytes(b) for b in bootnodes},
        },
    }


async def register_node(chain: Chain, coldkey: AccountKey, *, subnet_id: int, terms: NodeTerms) -> tuple[int, Receipt]:
    """Register and stake a node; returns its node id."""
    real = await chain.resolve_subnet_id(subnet_id)
    receipt = await chain.submit("register_subnet_node", node_args(real, terms), coldkey)
    return node_id_of(receipt), receipt


def node_args(subnet_id: int, terms: NodeTerms) -> dict[str, object]:
    """The arguments of `register_subnet_node`; `subnet_id` is a real id."""
    bootnode: dict[str, object] | None = None
    if terms.bootnode_peer_id is not None:
        at = terms.bootnode.addrs if terms.bootnode is not None else ()
        bootnode = peer_struct(PeerInfo(terms.bootnode_peer_id, at))
    return {
        "subnet_id": subnet_id,
        "hotkey": terms.hotkey,
        "peer_info": peer_struct(PeerInfo(terms.peer_id, ())),
        "bootnode_peer_info": bootnode,
        "client_peer_info": None if terms.client_peer_id is None else peer_struct(PeerInfo(terms.client_peer_id, ())),
        "delegate_reward_rate": terms.delegate_reward_rate,
        "stake_to_be_added": terms.stake_planck,
        "unique": terms.unique,
        "non_unique": terms.non_unique,
        "delegate_account": None,
        "max_burn_amount": terms.max_burn_planck,
    }


async def activate_subnet(chain: Chain, owner: AccountKey, *, subnet_id: int) -> Receipt:
    """Activate a registered subnet that has enough nodes and delegated stake."""
    return await sign(chain, owner, calls.activate_subnet(await chain.resolve_subnet_id(subnet_id)))


async def add_delegate_stake(chain: Chain, account: AccountKey, *, subnet_id: int, amount_planck: int) -> Receipt:
    """Delegate stake to a subnet."""
    real = await chain.resolve_subnet_id(subnet_id)
    return await sign(chain, account, calls.delegate(real, amount_planck=amount_planck))


async def transfer(chain: Chain, account: AccountKey, *, to: bytes, amount_planck: int) -> Receipt:
    """Send planck; the sender's account must stay above the existential deposit."""
    return await sign(chain, account, calls.transfer(to, amount_planck=amount_planck))


async def sign(chain: Chain, signer: AccountKey, call: Call) -> Receipt:
    """Submit any call of mesh.chain.calls."""
    return await chain.submit(call.name, call.args, signer)


def describe_subnet_id(subnet_id: int, friendly_id: int) -> str:
    """Both ids, so that they are never mixed up."""
    return f"{subnet_id} (friendly id {friendly_id})" if subnet_id >= FIRST_SUBNET_ID else str(subnet_id)


def node_id_of(receipt: Receipt) -> int:
    """The id a registration gave a node. Raises ChainError when the receipt is of something else."""
    for name in ("SubnetNodeRegistered", "SubnetNodeActivated"):
        for event in receipt.events:
            if event.name == name:
                return require_number(event.fields.get("subnet_node_id"), "new node id")
    raise ChainError("the node was registered, but the block has no event with its id: look with `mesh node list`")


def new_id(receipt: Receipt, event_name: str, field: str) -> int:
    """A field of the first event of this name. Raises ChainError when there is none."""
    for event in receipt.events:
        if event.name == event_name:
            return require_number(event.fields.get(field), f"{field} of {event_name}")
    raise ChainError(f"the extrinsic is in block {receipt.block.number}, but made no {event_name} event")
