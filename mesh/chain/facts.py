"""What is known of subnets, nodes and accounts over one connection, and what is asked before something is signed.

A subnet and its nodes are gathered by the runtime's API, else by the node's own RPC, else from storage; a source is
believed on a connection once it has told the same as storage there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from mesh.chain import dialect as dialects
from mesh.chain import info, runtime
from mesh.chain.codec import Reader
from mesh.chain.dialect import PALLET, Call, Read
from mesh.chain.runtime import EventRecord
from mesh.chain.session import (
    Breath,
    Disconnected,
    RpcRefused,
    Session,
    Source,
    Trust,
    at_block,
    head,
    keys_under,
    read_many,
    read_map,
    read_raw,
    state_call,
    to_hex,
    unhex,
)
from mesh.chain.types import FIRST_SUBNET_ID, Balance, BlockRef, Snapshot, Submission, SubnetInfo, SubnetNode
from mesh.errors import BlockUnavailable, CallRefused, ChainError
from mesh.peer import PeerInfo

log = logging.getLogger(__name__)

T = TypeVar("T")


def resolve_subnet_id(session: Session, subnet_id: int) -> int:
    """The real id of a friendly or real one."""
    if subnet_id >= FIRST_SUBNET_ID:
        (data,) = read_many(session, [Read("SubnetsData", (subnet_id,))], None)
        if data is not None:
            return subnet_id
    else:
        (real,) = read_many(session, [Read("FriendlyUidSubnetId", (subnet_id,))], None)
        if isinstance(real, int) and real:
            return real
    raise ChainError(f"there is no subnet {subnet_id}")


def subnet(session: Session, subnet_id: int, at: bytes | None) -> SubnetInfo:
    """A subnet's facts at one block, as the runtime gathers them, or from storage."""
    block = head(session).hash if at is None else at
    for source in Source:
        data = _gathered(session, source, _SUBNET, subnet_id, block)
        if not isinstance(data, Mapping):
            continue  # also where it says that there is none: storage has the last word
        told = _understood(session, source, _SUBNET, partial(dialects.subnet_of_info, data))
        if told is None or told.subnet_id != subnet_id:
            continue
        if session.trust.get((source, _SUBNET.function)) is Trust.PROVED:
            return told
        return _compared(session, source, _SUBNET, told, _stored_subnet(session, subnet_id, block))
    return _stored_subnet(session, subnet_id, block)


def _stored_subnet(session: Session, subnet_id: int, at: bytes) -> SubnetInfo:
    names = ("SubnetsData", "SubnetSlot", "SubnetOwner", "SubnetMinStakeBalance", "SubnetMaxStakeBalance")
    data, slot, owner, low, high = read_many(session, [Read(name, (subnet_id,)) for name in names], at)
    if not isinstance(data, Mapping):
        raise ChainError(f"there is no subnet {subnet_id}")
    return dialects.subnet_info(data, slot=slot, owner=owner, min_stake=low, max_stake=high)


def snapshot(session: Session, subnet_id: int, at: BlockRef | None) -> Snapshot:
    """All nodes of a subnet at one block, as the runtime gathers them, or from storage.

    Who is a node is read from storage's keys in either case: everybody must name the same nodes of a block.
    """
    block = at or head(session)
    ids: set[object] = set()
    for name in session.dialect.node_maps():
        item = session.metadata.item(PALLET, name)
        keys = keys_under(session, item, (subnet_id,), block.hash)
        ids.update(runtime.decode_keys(session.metadata, item, key)[-1] for key in keys)
    for source in Source if ids else ():
        data = _gathered(session, source, _NODES, subnet_id, block.hash)
        if not isinstance(data, list):
            continue
        told = _understood(session, source, _NODES, partial(_nodes_of_info, data, subnet_id, ids))
        if told is None:
            continue
        if session.trust.get((source, _NODES.function)) is Trust.PROVED:
            return Snapshot(subnet_id, block, told)
        stored = _stored_nodes(session, subnet_id, block.hash)
        return Snapshot(subnet_id, block, _compared(session, source, _NODES, told, stored))
    return Snapshot(subnet_id, block, _stored_nodes(session, subnet_id, block.hash) if ids else ())


def _nodes_of_info(data: Sequence[object], subnet_id: int, ids: set[object]) -> tuple[SubnetNode, ...]:
    raws = [each for each in data if isinstance(each, Mapping) and each.get("subnet_id") == subnet_id]
    if {each.get("subnet_node_id") for each in raws} != ids or len(raws) != len(ids):
        raise ChainError(f"it names {len(raws)} of the {len(ids)} nodes in storage")
    breath = Breath()
    found: list[SubnetNode | None] = []
    for each in raws:
        found.append(dialects.node_of_info(each))
        breath()
    return tuple(sorted((node for node in found if node is not None), key=lambda node: node.node_id))


def _stored_nodes(session: Session, subnet_id: int, at: bytes) -> tuple[SubnetNode, ...]:
    dialect = session.dialect
    raws: dict[int, Mapping[str, object]] = {}
    for name in dialect.node_maps():
        for _, node in read_map(session, PALLET, name, (subnet_id,), at):
            if isinstance(node, Mapping):
                raws.setdefault(dialects.integer(node, "id"), node)
    reads = {node_id: dialect.node_reads(subnet_id, raw) for node_id, raw in sorted(raws.items())}
    values = iter(read_many(session, [read for group in reads.values() for read in group], at))
    nodes: list[SubnetNode] = []
    for node_id, group in reads.items():
        node = dialect.node(raws[node_id], [next(values) for _ in group])
        if node is not None:
            nodes.append(node)
    return tuple(nodes)


@dataclass(frozen=True, slots=True)
class _Api:
    """A function of the runtime's `NetworkRuntimeApi`, which takes a subnet id."""

    function: str
    rpc: str
    shape: str


_SUBNET: Final = _Api("get_subnet_info", "network_getSubnetInfo", info.Shape.OPTION)
_NODES: Final = _Api("get_subnet_nodes_info", "network_getSubnetNodesInfo", info.Shape.VEC)


def _gathered(session: Session, source: Source, api: _Api, subnet_id: int, at: bytes) -> object:
    """What a source tells, decoded; None where it tells nothing. Raises BlockUnavailable."""
    if session.trust.get((source, api.function)) is Trust.REFUSED:
        return None
    session.layouts = session.layouts or info.build(session.metadata)
    layouts = session.dialect.subnet_layouts if api is _SUBNET else session.dialect.node_layouts

    def read() -> object:
        if source is Source.STATE_CALL:
            argument = subnet_id.to_bytes(4, "little")
            raw = info.unwrap(state_call(session, f"NetworkRuntimeApi_{api.function}", argument, at))
        else:
            raw = _bytes_of(at_block(session, api.rpc, [subnet_id, to_hex(at)], at))
        assert session.layouts is not None
        return session.layouts.read(api.shape, layouts, raw, Breath())

    return _understood(session, source, api, read)


def _bytes_of(answer: object) -> bytes:
    """The bytes of an answer of `network_*`: a JSON list of numbers."""
    if isinstance(answer, str):
        return unhex(answer, "answer")
    if not isinstance(answer, list) or not all(isinstance(each, int) and 0 <= each < 256 for each in answer):
        raise ChainError("the node's answer is no list of bytes")
    return bytes(answer)


def _understood(session: Session, source: Source, api: _Api, read: Callable[[], T]) -> T | None:
    """`read()`; None, and the source is not asked again, where that is the source's fault."""
    try:
        return read()
    except (BlockUnavailable, Disconnected):
        raise
    except RpcRefused as error:
        log.debug("%s: %s", api.function, error)
    except ChainError as error:
        log.warning("%s by %s: %s; another source is read from now on", api.function, source.name, error)
    session.trust[source, api.function] = Trust.REFUSED
    return None


def _compared(session: Session, source: Source, api: _Api, told: T, stored: T) -> T:
    """What storage has, after noting whether the source told the same."""
    same = told == stored
    session.trust[source, api.function] = Trust.PROVED if same else Trust.REFUSED
    if not same:
        log.warning("%s by %s tells something else than storage has; it is not read", api.function, source.name)
    return stored


def bootnodes(session: Session, subnet_id: int) -> tuple[PeerInfo, ...]:
    """`SubnetBootnodes`."""
    (data,) = read_many(session, [Read("SubnetBootnodes", (subnet_id,))], None)
    return dialects.bootnodes(data) if isinstance(data, Mapping) else ()


def elected(session: Session, subnet_id: int, epoch: int) -> int | None:
    """`SubnetElectedValidator`."""
    (node_id,) = read_many(session, [Read("SubnetElectedValidator", (subnet_id, epoch))], None)
    return node_id if isinstance(node_id, int) else None


def submission(session: Session, subnet_id: int, epoch: int) -> Submission | None:
    """`SubnetConsensusSubmission`."""
    (data,) = read_many(session, [Read("SubnetConsensusSubmission", (subnet_id, epoch))], None)
    return dialects.submission(data) if isinstance(data, Mapping) else None


def balance(session: Session, account: bytes) -> Balance:
    """`System.Account`."""
    (info,) = read_many(session, [Read("Account", (account,))], None, "System")
    data = info.get("data") if isinstance(info, Mapping) else None
    if not isinstance(info, Mapping) or not isinstance(data, Mapping):
        raise ChainError("the chain's account has no data")
    return Balance(dialects.integer(data, "free"), dialects.integer(data, "reserved"), dialects.integer(info, "nonce"))


def node_of_hotkey(session: Session, subnet_id: int, hotkey: bytes) -> int:
    """Node id of a hotkey in a subnet. Raises CallRefused when it has none."""
    for node in snapshot(session, subnet_id, None).nodes:
        if node.hotkey == hotkey:
            return node.node_id
    raise CallRefused(f"0x{hotkey.hex()} is the hotkey of no node in subnet {subnet_id}")


def encode_call(session: Session, pallet: str, name: str, args: Mapping[str, object], signer: bytes) -> bytes:
    """A call's bytes, translated into the pallet's dialect. Raises CallRefused."""
    if pallet == PALLET:
        known = session.metadata.pallet(PALLET).calls
        call = session.dialect.translate(Call(name, dict(args)), known=known, signer=signer, look=_Lookup(session))
        name, args = call.name, call.args
    return runtime.encode_call(session.metadata, pallet, name, args)


@dataclass(frozen=True, slots=True)
class _Lookup:
    """dialect.Lookup over this connection."""

    session: Session

    def validator_of(self, coldkey: bytes) -> int:
        (found,) = read_many(self.session, [Read("ColdkeyValidatorId", (coldkey,))], None)
        if not isinstance(found, int) or not found:
            raise CallRefused(f"0x{coldkey.hex()} has no validator on this chain: call register_validator first")
        return found

    def node_of(self, subnet_id: int, hotkey: bytes) -> int:
        return node_of_hotkey(self.session, subnet_id, hotkey)


def end_of_epoch(session: Session, subnet_id: int) -> int | None:
    """First block of the subnet's next epoch, None for a subnet without a slot."""
    if "SubnetSlot" not in session.metadata.pallet(PALLET).storage:
        return None
    best = head(session)
    (slot,) = read_many(session, [Read("SubnetSlot", (subnet_id,))], best.hash)
    length = constant(session, PALLET, "EpochLength")
    if not isinstance(slot, int) or not isinstance(length, int) or length < 1 or best.number < slot:
        return None
    return slot + ((best.number - slot) // length + 1) * length


def nonce_at(session: Session, account: bytes, at: bytes) -> int:
    """The account's next nonce in the state at a block: how many of its extrinsics are in the chain."""
    (found,) = read_many(session, [Read("Account", (account,))], at, "System")
    if not isinstance(found, Mapping):
        raise ChainError("the chain's account is no struct")
    return dialects.integer(found, "nonce")


def next_nonce(session: Session, account: bytes) -> int:
    """The account's next nonce, pool included where the node tells it."""
    if session.next_index_known:
        try:
            answer = session.rpc("system_accountNextIndex", [to_hex(account)])
            if isinstance(answer, int) and 0 <= answer < 1 << 32:
                return answer
        except RpcRefused as error:
            log.debug("the node has no pool-aware nonces: %s", error)
        session.next_index_known = False
    raw = state_call(session, "AccountNonceApi_account_nonce", account)
    if not 4 <= len(raw) <= 8:
        raise ChainError(f"the runtime's nonce has {len(raw)} bytes")
    return int.from_bytes(raw, "little")


def fee(session: Session, extrinsic: bytes) -> int:
    """`TransactionPaymentApi_query_info`: the inclusion fee in planck (partial_fee)."""
    length = len(extrinsic).to_bytes(4, "little")
    reader = Reader(state_call(session, "TransactionPaymentApi_query_info", extrinsic + length))
    reader.compact()
    reader.compact()
    reader.uint(1)
    planck = reader.uint(16)
    reader.finish()
    return planck


def constant(session: Session, pallet: str, name: str) -> object:
    """A constant of the metadata."""
    return session.metadata.constant(pallet, name)


def events(session: Session, at: bytes) -> tuple[EventRecord, ...]:
    """Events of a block, with the extrinsic that caused each."""
    item = session.metadata.item("System", "Events")
    key = runtime.storage_key(session.metadata, item, ())
    return runtime.decode_events(session.metadata, read_raw(session, [key], at)[key], Breath())
