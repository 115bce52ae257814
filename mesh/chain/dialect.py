"""The two versions of the network pallet behind one interface. PURE.

Both call themselves spec version 1, so the metadata decides: a runtime with the call `register_validator` speaks
"validator ids" (S, the newer source), one without it "coldkey and hotkey" (W, the deployed runtime, against which
everything here is checked with recorded data). Of S nothing recorded exists: its calls follow the published names, and
what its storage lacks is refused by name instead of guessed.

Callers speak W: a call that S has under another name or with other arguments is translated, ids it wants are looked
up on the chain. A call that S has under the name given is passed on as it is.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from mesh.chain.checked import require_account, require_number
from mesh.chain.info import NODE_INFO_S, NODE_INFO_W, SUBNET_INFO_S, SUBNET_INFO_W, Layout
from mesh.chain.types import NodeClass, Score, Submission, SubnetInfo, SubnetNode, SubnetState
from mesh.errors import CallRefused, ChainError, RemoteProtocolError, WrongChain
from mesh.peer import Multiaddr, PeerID, PeerInfo

log = logging.getLogger(__name__)

M = TypeVar("M", bound=enum.Enum)

PALLET: Final = "Network"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the network pallet with its arguments by name."""

    name: str
    args: dict[str, object]


@dataclass(frozen=True, slots=True)
class Read:
    """One storage entry of the network pallet."""

    item: str
    keys: tuple[object, ...]


class Lookup(Protocol):
    """Ids that a translation asks the chain for."""

    def validator_of(self, coldkey: bytes) -> int:
        """Raises CallRefused when the account has no validator."""
        ...

    def node_of(self, subnet_id: int, hotkey: bytes) -> int:
        """Raises CallRefused when it is the hotkey of no node there."""
        ...


class Dialect(Protocol):
    """What differs between the two pallets."""

    name: str
    needs_node_id: bool
    """Whether propose and attest name the node."""
    subnet_layouts: tuple[Layout, ...]
    """How the runtime may lay out what its API tells of a subnet, the likeliest first."""
    node_layouts: tuple[Layout, ...]

    def translate(self, call: Call, *, known: Container[str], signer: bytes, look: Lookup) -> Call:
        """The call as this pallet takes it; `known` are the names of its calls. Raises CallRefused for what this
        pallet has no place for."""
        ...

    def propose(self, subnet_id: int, node_id: int | None, scores: Sequence[Score], args: bytes) -> Call:
        """`propose_attestation`; scores ascending by node id."""
        ...

    def attest(self, subnet_id: int, node_id: int | None) -> Call:
        """`attest`."""
        ...

    def node_maps(self) -> tuple[str, ...]:
        """Storage maps keyed (subnet id, node id) that hold the nodes."""
        ...

    def node_reads(self, subnet_id: int, node: Mapping[str, object]) -> tuple[Read, ...]:
        """What else must be read to know a node; the values go to `node` in this order."""
        ...

    def node(self, node: Mapping[str, object], values: Sequence[object]) -> SubnetNode | None:
        """The node, or None (with a log line) when its peer id on chain is malformed."""
        ...


class HotkeyDialect:
    """W: a node is known by its hotkey, which a coldkey owns."""

    name = "coldkey/hotkey"
    needs_node_id = False
    subnet_layouts: tuple[Layout, ...] = (SUBNET_INFO_W, SUBNET_INFO_S)
    node_layouts: tuple[Layout, ...] = (NODE_INFO_W, NODE_INFO_S)

    def translate(self, call: Call, *, known: Container[str], signer: bytes, look: Lookup) -> Call:
        return call

    def propose(self, subnet_id: int, node_id: int | None, scores: Sequence[Score], args: bytes) -> Call:
        return Call("propose_attestation", _proposal(subnet_id, scores, args))

    def attest(self, subnet_id: int, node_id: int | None) -> Call:
        return Call("attest", {"subnet_id": subnet_id, "attest_data": None})

    def node_maps(self) -> tuple[str, ...]:
        return ("SubnetNodesData", "RegisteredSubnetNodesData")

    def node_reads(self, subnet_id: int, node: Mapping[str, object]) -> tuple[Read, ...]:
        hotkey = account(node, "hotkey")
        return (
            Read("HotkeyOwner", (hotkey,)),
            Read("AccountSubnetStake", (hotkey, subnet_id)),
            Read("SubnetNodeReputation", (subnet_id, integer(node, "id"))),
        )

    def node(self, node: Mapping[str, object], values: Sequence[object]) -> SubnetNode | None:
        coldkey, stake, reputation = values
        return _node(node, coldkey, account(node, "hotkey"), stake, reputation)


class ValidatorDialect:
    """S: a node belongs to a validator id, which has a coldkey and a hotkey."""

    name = "validator ids"
    needs_node_id = True
    subnet_layouts: tuple[Layout, ...] = (SUBNET_INFO_S, SUBNET_INFO_W)
    node_layouts: tuple[Layout, ...] = (NODE_INFO_S, NODE_INFO_W)

    def translate(self, call: Call, *, known: Container[str], signer: bytes, look: Lookup) -> Call:
        args = dict(call.args)
        if call.name == "register_subnet":
            return Call(call.name, {**args, "subnet_data": _with_validators(args.get("subnet_data"), look)})
        if call.name == "register_subnet_node" and "validator_id" not in args:
            for name, nothing in (("delegate_reward_rate", 0), ("delegate_account", None)):
                if args.pop(name, nothing) != nothing:
                    raise CallRefused(
                        f"on this chain {name} is the validator's, not the node's: call update_validator_{name}"
                    )
            return Call(call.name, {**args, "validator_id": look.validator_of(signer)})
        if call.name in known:
            return call
        if call.name == "add_stake":
            args.pop("hotkey", None)
            return Call("add_node_stake", args)
        if call.name == "remove_stake":
            subnet_id, hotkey = args.get("subnet_id"), args.pop("hotkey", None)
            if isinstance(subnet_id, int) and isinstance(hotkey, bytes):
                args["subnet_node_id"] = look.node_of(subnet_id, hotkey)
            return Call("remove_node_stake", args)
        return Call(_S_NAMES.get(call.name, call.name), args)

    def propose(self, subnet_id: int, node_id: int | None, scores: Sequence[Score], args: bytes) -> Call:
        return Call(
            "propose_attestation",
            {**_proposal(subnet_id, scores, args), "subnet_node_id": _required(node_id, "node id")},
        )

    def attest(self, subnet_id: int, node_id: int | None) -> Call:
        args = {"subnet_id": subnet_id, "subnet_node_id": _required(node_id, "node id")}
        return Call("attest", {**args, "data": None})

    def node_maps(self) -> tuple[str, ...]:
        return ("SubnetNodesData",)

    def node_reads(self, subnet_id: int, node: Mapping[str, object]) -> tuple[Read, ...]:
        node_id = integer(node, "id")
        return (
            Read("ValidatorsData", (integer(node, "validator_id"),)),
            # the order of these keys is not recorded; subnet ids begin at 128001, so the wrong one holds nothing
            Read("NodeSubnetStake", (subnet_id, node_id)),
            Read("NodeSubnetStake", (node_id, subnet_id)),
            Read("SubnetNodeReputation", (subnet_id, node_id)),
        )

    def node(self, node: Mapping[str, object], values: Sequence[object]) -> SubnetNode | None:
        validator, one, other, reputation = values
        if not isinstance(validator, Mapping):
            raise ChainError(f"node {node.get('id')} belongs to a validator the chain does not have")
        stake = max((s for s in (one, other) if isinstance(s, int)), default=None)
        return _node(node, account(validator, "coldkey"), account(validator, "hotkey"), stake, reputation)


_S_NAMES: Final = {
    "add_to_delegate_stake": "add_delegate_stake",
    "swap_delegate_stake": "swap_from_subnet_to_subnet",
    "update_peer_info": "update_node_peer_info",
    "update_bootnode_peer_info": "update_node_bootnode_peer_info",
    "update_client_peer_info": "update_node_client_peer_info",
    "update_unique": "update_node_unique",
    "update_non_unique": "update_node_non_unique",
}
"""Calls of W that S has under another name."""


def _with_validators(data: object, look: Lookup) -> object:
    """A subnet's registration with the validators of its initial coldkeys."""
    if not isinstance(data, Mapping) or not isinstance(data.get("initial_coldkeys"), Mapping):
        return data
    rest = {name: value for name, value in data.items() if name != "initial_coldkeys"}
    counts = {look.validator_of(coldkey): count for coldkey, count in data["initial_coldkeys"].items()}
    return {**rest, "initial_validators": counts}


def choose(calls: Mapping[str, object]) -> Dialect:
    """The dialect of a runtime whose network pallet has these calls. Raises WrongChain when it is neither."""
    if "propose_attestation" not in calls or "attest" not in calls:
        raise WrongChain("the chain has no network pallet with propose_attestation and attest")
    return ValidatorDialect() if "register_validator" in calls else HotkeyDialect()


# --- values both dialects share -------------------------------------------------------------------------------


def subnet_info(
    data: Mapping[str, object], *, slot: object, owner: object, min_stake: object, max_stake: object
) -> SubnetInfo:
    """From `SubnetsData` and the items beside it. Raises ChainError when a field is missing."""
    name = data.get("name")
    return SubnetInfo(
        subnet_id=integer(data, "id"),
        friendly_id=integer(data, "friendly_id"),
        name=name.decode(errors="replace") if isinstance(name, bytes) else str(name),
        state=_member(SubnetState, data.get("state")),
        start_epoch=integer(data, "start_epoch"),
        slot=slot if isinstance(slot, int) else None,
        owner=None if owner is None else require_account(owner, "subnet owner"),
        min_stake_planck=require_number(min_stake, "least stake"),
        max_stake_planck=require_number(max_stake, "largest stake"),
    )


def subnet_of_info(data: Mapping[str, object]) -> SubnetInfo:
    """From what the runtime API tells of a subnet, in either layout."""
    return subnet_info(
        data,
        slot=data.get("slot_index"),
        owner=data.get("owner"),
        min_stake=data.get("min_stake"),
        max_stake=data.get("max_stake"),
    )


def node_of_info(data: Mapping[str, object]) -> SubnetNode | None:
    """From what the runtime API tells of a node, in either layout; None when its peer id is malformed."""
    node = {**data, "id": integer(data, "subnet_node_id")}
    return _node(
        node,
        account(data, "coldkey"),
        account(data, "hotkey"),
        data.get("stake_balance"),
        data.get("subnet_node_reputation"),
    )


def submission(data: Mapping[str, object]) -> Submission:
    """From `ConsensusData` (its `validator_id` is the proposer's node id in both dialects)."""
    scores, attests, args = data.get("data"), data.get("attests"), data.get("args")
    if not isinstance(scores, list) or not isinstance(attests, Mapping):
        raise ChainError("the chain's ConsensusData has no data or attests")
    return Submission(
        proposer_node_id=integer(data, "validator_id"),
        block=integer(data, "block"),
        scores=tuple(Score(integer(s, "subnet_node_id"), integer(s, "score")) for s in scores),
        args=args if isinstance(args, bytes) else None,
        attests=tuple(sorted(int(node_id) for node_id in attests)),
    )


def bootnodes(data: Mapping[bytes, object]) -> tuple[PeerInfo, ...]:
    """From `SubnetBootnodes`: peer id → binary multiaddr. Malformed entries are left out with a log line."""
    found: dict[PeerID, list[Multiaddr]] = {}
    for raw, address in data.items():
        try:
            peer = parse_peer_id(raw)
            if not isinstance(address, bytes):
                raise RemoteProtocolError("its address is no bytes")
            text = str(Multiaddr(address))
            if Multiaddr(text).to_bytes() != address:  # the library reads a cut-off address as a shorter one
                raise RemoteProtocolError("its address is cut off")
            head, _, tail = text.partition("/p2p/")
            if tail and tail != str(peer):
                raise RemoteProtocolError(f"its address names the peer {tail}")
            found.setdefault(peer, []).extend([Multiaddr(head)] if head else [])
        except (RemoteProtocolError, ValueError, LookupError) as error:
            log.warning("bootnode %s on chain is left out: %s", raw[:64], error)
    return tuple(PeerInfo(peer, tuple(found[peer])) for peer in sorted(found))


def parse_peer_id(raw: bytes) -> PeerID:
    """From an OpaquePeerId: ASCII base58 text, or the raw multihash some tools write. Raises RemoteProtocolError."""
    try:
        return PeerID.parse(raw.decode("ascii"))
    except (UnicodeDecodeError, RemoteProtocolError):
        return PeerID(raw)


def peer_id_bytes(peer: PeerID) -> bytes:
    """What goes on chain: the base58 text (a raw multihash is refused there as InvalidPeerId)."""
    return str(peer).encode("ascii")


def integer(data: Mapping[str, object], name: str) -> int:
    """A field that must be a number. Raises ChainError."""
    return require_number(data.get(name), f"{name!r} in a struct of {', '.join(map(str, data))}")


def account(data: Mapping[str, object], name: str) -> bytes:
    """A field that must be an account. Raises ChainError."""
    return require_account(data.get(name), f"{name!r} in a struct of {', '.join(map(str, data))}")


def _required(value: int | None, what: str) -> int:
    if value is None:
        raise CallRefused(f"this chain's pallet works with validator ids: a {what} is needed")
    return value


def _proposal(subnet_id: int, scores: Sequence[Score], args: bytes) -> dict[str, object]:
    ordered = sorted(scores, key=lambda score: score.node_id)
    return {
        "subnet_id": subnet_id,
        "data": [{"subnet_node_id": s.node_id, "score": s.score} for s in ordered],
        "prioritize_queue_node_id": None,
        "remove_queue_node_id": None,
        "args": args,
        "attest_data": None,
    }


def _node(
    node: Mapping[str, object], coldkey: object, hotkey: bytes, stake: object, reputation: object
) -> SubnetNode | None:
    node_id = integer(node, "id")
    peer = _peer_of(node, "peer_info", node_id)
    if peer is None:
        return None
    classification = node.get("classification")
    if not isinstance(classification, Mapping) or not isinstance(coldkey, bytes):
        raise ChainError(f"the chain's node {node_id} has no classification or no coldkey")
    return SubnetNode(
        node_id=node_id,
        coldkey=coldkey,
        hotkey=hotkey,
        peer_id=peer,
        bootnode_peer_id=_peer_of(node, "bootnode_peer_info", node_id),
        client_peer_id=_peer_of(node, "client_peer_info", node_id),
        node_class=_member(NodeClass, classification.get("node_class")),
        start_epoch=integer(classification, "start_epoch"),
        stake_planck=require_number(stake, f"stake of node {node_id}"),
        reputation=require_number(reputation, f"reputation of node {node_id}"),
    )


def _member(members: type[M], name: object) -> M:
    """The member of one of our enums that a variant of the chain's means. Raises ChainError."""
    try:
        return members[str(name).upper()]
    except KeyError as error:
        raise ChainError(f"the chain's {members.__name__} {str(name)[:40]!r} is not known") from error


def _peer_of(node: Mapping[str, object], name: str, node_id: int) -> PeerID | None:
    info = node.get(name)
    if not isinstance(info, Mapping):
        return None
    raw = info.get("peer_id")
    try:
        return parse_peer_id(raw if isinstance(raw, bytes) else b"")
    except RemoteProtocolError as error:
        log.warning("%s of node %d on chain is left out: %s", name, node_id, error)
        return None
