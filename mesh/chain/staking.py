"""What stakers and owners do on the chain, as functions: the commands and the demo both call these.

Each signs one extrinsic with the coldkey it is given and returns what the caller needs next. Amounts are planck,
shares of 1e18 are 100 %. Errors are the Chain protocol's; ExtrinsicFailed carries the pallet's error name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.chain.client import Chain
from mesh.chain.dialect import peer_id_bytes
from mesh.chain.types import FIRST_SUBNET_ID, ONE, PLANCK_PER_TENSOR, Receipt
from mesh.errors import ChainError
from mesh.identity import AccountKey
from mesh.peer import Multiaddr, PeerID, PeerInfo


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
    return _new_id(receipt, "SubnetRegistered", "subnet_id"), receipt


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
            "bootnodes": {peer_id_bytes(b.peer_id): _multiaddr_bytes(b) for b in bootnodes},
        },
    }


async def register_node(chain: Chain, coldkey: AccountKey, *, subnet_id: int, terms: NodeTerms) -> tuple[int, Receipt]:
    """Register and stake a node; returns its node id."""
    real = await chain.resolve_subnet_id(subnet_id)
    receipt = await chain.submit("register_subnet_node", node_args(real, terms), coldkey)
    for name in ("SubnetNodeRegistered", "SubnetNodeActivated"):
        for event in receipt.events:
            if event.name == name:
                return _int(event.fields["subnet_node_id"]), receipt
    raise ChainError("the node was registered, but the block has no event with its id: look with `mesh doctor`")


def node_args(subnet_id: int, terms: NodeTerms) -> dict[str, object]:
    """The arguments of `register_subnet_node`; `subnet_id` is a real id."""
    bootnode: dict[str, object] | None = None
    if terms.bootnode_peer_id is not None:
        bootnode = _peer(terms.bootnode_peer_id)
        if terms.bootnode is not None:
            bootnode["multiaddr"] = _multiaddr_bytes(terms.bootnode)
    return {
        "subnet_id": subnet_id,
        "hotkey": terms.hotkey,
        "peer_info": _peer(terms.peer_id),
        "bootnode_peer_info": bootnode,
        "client_peer_info": None if terms.client_peer_id is None else _peer(terms.client_peer_id),
        "delegate_reward_rate": terms.delegate_reward_rate,
        "stake_to_be_added": terms.stake_planck,
        "unique": terms.unique,
        "non_unique": terms.non_unique,
        "delegate_account": None,
        "max_burn_amount": terms.max_burn_planck,
    }


async def activate_subnet(chain: Chain, owner: AccountKey, *, subnet_id: int) -> Receipt:
    """Activate a registered subnet that has enough nodes and delegated stake."""
    real = await chain.resolve_subnet_id(subnet_id)
    return await chain.submit("activate_subnet", {"subnet_id": real}, owner)


async def add_delegate_stake(chain: Chain, account: AccountKey, *, subnet_id: int, amount_planck: int) -> Receipt:
    """Delegate stake to a subnet."""
    real = await chain.resolve_subnet_id(subnet_id)
    return await chain.submit("add_to_delegate_stake", {"subnet_id": real, "stake_to_be_added": amount_planck}, account)


async def transfer(chain: Chain, account: AccountKey, *, to: bytes, amount_planck: int) -> Receipt:
    """Send planck; the sender's account must stay above the existential deposit."""
    return await chain.submit("Balances.transfer_keep_alive", {"dest": to, "value": amount_planck}, account)


def describe_subnet_id(subnet_id: int, friendly_id: int) -> str:
    """Both ids, so that they are never mixed up."""
    return f"{subnet_id} (friendly id {friendly_id})" if subnet_id >= FIRST_SUBNET_ID else str(subnet_id)


def _peer(peer: PeerID) -> dict[str, object]:
    return {"peer_id": peer_id_bytes(peer), "multiaddr": None}


def _multiaddr_bytes(info: PeerInfo) -> bytes:
    if not info.addrs:
        raise ChainError(f"bootnode {info.peer_id} needs an address: /ip4/…/tcp/…/p2p/{info.peer_id}")
    return bytes(Multiaddr(f"{info.addrs[0]}/p2p/{info.peer_id}").to_bytes())


def _new_id(receipt: Receipt, event_name: str, field: str) -> int:
    for event in receipt.events:
        if event.name == event_name:
            return _int(event.fields[field])
    raise ChainError(f"the extrinsic is in block {receipt.block.number}, but made no {event_name} event")


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise ChainError(f"expected a number from the chain, got {value!r}")
    return value
