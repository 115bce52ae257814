"""Nothing a node answers makes the client raise anything but a ChainError, hang, or allocate without bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.chain import dialect as dialects
from mesh.chain import facts, info, runtime, session
from mesh.chain.codec import Kind, Reader, Registry, TypeDef, compact, decode_all, encode
from mesh.chain.metadata import Metadata, parse
from mesh.chain.runtime import Version
from mesh.chain.session import RpcRefused, Session
from mesh.chain.types import BlockRef
from mesh.devchain.runtime import Runtime
from mesh.errors import ChainError

RAW = Runtime(epoch_length=20).metadata
METADATA = parse(RAW)
HEAD = BlockRef(7, b"\x01" * 32)
SUBNET = 128_001

hex_text = st.binary(max_size=80).map(lambda raw: f"0x{raw.hex()}")
leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | hex_text
change_sets = st.builds(lambda key, value: [{"block": "0x", "changes": [[key, value]]}], hex_text, st.none() | hex_text)
trees = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
answers = trees | change_sets

ASKS: dict[str, Callable[[Session], object]] = {
    "head": session.head,
    "finalized": session.finalized,
    "block hash": lambda s: session.block_hash(s, 3),
    "block body": lambda s: session.block_body(s, b"\x02" * 32),
    "find": lambda s: session.find_extrinsic(s, b"\x03" * 32, after=0, until=9),
    "events": lambda s: facts.events(s, HEAD.hash),
    "snapshot": lambda s: facts.snapshot(s, SUBNET, HEAD),
    "subnet": lambda s: facts.subnet(s, SUBNET, HEAD.hash),
    "resolve": lambda s: facts.resolve_subnet_id(s, 1),
    "bootnodes": lambda s: facts.bootnodes(s, SUBNET),
    "elected": lambda s: facts.elected(s, SUBNET, 1),
    "submission": lambda s: facts.submission(s, SUBNET, 1),
    "balance": lambda s: facts.balance(s, bytes(20)),
    "map": lambda s: session.read_map(s, "Network", "HotkeyOwner", (), HEAD.hash),
    "nonce": lambda s: facts.next_nonce(s, bytes(20)),
    "nonce in state": lambda s: facts.nonce_at(s, bytes(20), HEAD.hash),
    "fee": lambda s: facts.fee(s, b"extrinsic"),
    "end of epoch": lambda s: facts.end_of_epoch(s, SUBNET),
    "version": lambda s: session.read_version(s.rpc),
    "metadata": lambda s: session.read_metadata(s.rpc, bytes(32), Version("", 1, 1), None),
    "open": lambda s: session.open_session(s.rpc, "", cache_dir=None),
}


def session_over(rpc: session.Rpc) -> Session:
    dialect = dialects.choose(METADATA.pallet("Network").calls)
    return Session("", rpc, bytes(32), "", Version("", 1, 1), METADATA, dialect, None)


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@settings(max_examples=60)
@given(given_answers=st.lists(answers, min_size=1, max_size=4))
def test_any_json_is_an_answer_or_a_chain_error(ask: Callable[[Session], object], given_answers: list[object]) -> None:
    asked = 0

    def rpc(method: str, params: Sequence[object]) -> object:
        nonlocal asked
        asked += 1
        if asked > 300:
            raise AssertionError("it asks without end")
        return given_answers[asked % len(given_answers)]

    try:
        ask(session_over(rpc))
    except ChainError:
        pass


def right_keys(method: str, params: Sequence[Any], value: bytes | None, keys: list[bytes]) -> object:
    """What a node answers that keeps to the form and lies in the values."""
    answer = None if value is None else f"0x{value.hex()}"
    if method == "state_queryStorageAt":
        return [{"block": "0x", "changes": [[key, answer] for key in params[0]]}]
    if method == "state_getKeysPaged":
        return [f"0x{key.hex()}" for key in keys]
    if method == "state_call":
        return f"0x{(compact(len(value or b'')) + (value or b'')).hex()}"
    raise RpcRefused(method, session.METHOD_NOT_FOUND, "Method not found")


@settings(max_examples=150)
@given(value=st.none() | st.binary(max_size=200), node_id=st.integers(0, 2**32 - 1))
def test_any_stored_bytes_are_a_value_or_a_chain_error(value: bytes | None, node_id: int) -> None:
    item = METADATA.item("Network", "SubnetNodesData")
    keys = [runtime.storage_key(METADATA, item, (SUBNET, node_id))]
    made = session_over(lambda method, params: right_keys(method, params, value, keys))
    for name in ("snapshot", "subnet", "submission", "bootnodes", "elected", "balance", "events", "resolve"):
        try:
            ASKS[name](made)
        except ChainError:
            pass


@settings(max_examples=300)
@given(type_id=st.integers(0, len(METADATA.registry) - 1), data=st.binary(max_size=120))
def test_any_bytes_are_a_value_of_any_type_or_a_chain_error(type_id: int, data: bytes) -> None:
    try:
        value = decode_all(METADATA.registry, type_id, data)
    except ChainError:
        return
    kinds = {definition.kind for definition in reachable(METADATA.registry, type_id)}
    if Kind.BITS in kinds or any(d.primitive in ("char",) for d in reachable(METADATA.registry, type_id)):
        return
    # what was read is what is written, but for maps and sets out of order and integers longer than need be
    try:
        again = encode(METADATA.registry, type_id, value, "value")
    except ChainError:
        return  # an enum's inner tuple of one, which reads as its value
    assert decode_all(METADATA.registry, type_id, again) == value


def reachable(registry: Registry, type_id: int) -> list[TypeDef]:
    seen: set[int] = set()
    todo = [type_id]
    while todo:
        each = todo.pop()
        if each not in seen:
            seen.add(each)
            definition = registry[each]
            todo += [*definition.inner, *(f.type_id for f in definition.fields)]
            todo += [f.type_id for v in definition.variants for f in v.fields]
    return [registry[each] for each in seen]


@settings(max_examples=150)
@given(at=st.integers(0, len(RAW) - 1), junk=st.binary(min_size=1, max_size=4), cut=st.booleans())
def test_damaged_metadata_is_metadata_or_a_chain_error(at: int, junk: bytes, cut: bool) -> None:
    data = RAW[:at] + junk + (b"" if cut else RAW[at + len(junk) :])
    try:
        damaged = parse(data)
        runtime.require_known_format(damaged)
        dialects.choose(damaged.pallet("Network").calls)
        info.build(damaged)
        _ = damaged.event_record_fields
        made = session_over(lambda *_: None)
        made.metadata = damaged
        for name in ("balance", "elected"):
            ASKS[name](made)
    except ChainError:
        pass


@pytest.mark.parametrize("count", [1 << 20, 1 << 29])
def test_a_promise_of_many_items_allocates_nothing(count: int) -> None:
    for type_id, definition in enumerate(METADATA.registry):
        if definition.kind is Kind.SEQUENCE:
            with pytest.raises(ChainError):
                decode_all(METADATA.registry, type_id, compact(count))
    with pytest.raises(ChainError):
        Reader(compact(count)).count()


def test_a_type_that_holds_itself_ends_at_a_depth() -> None:
    registry = (TypeDef(Kind.SEQUENCE, inner=(0,)),)
    with pytest.raises(ChainError, match="nested deeper"):
        decode_all(registry, 0, compact(1) * 500)


def test_the_two_codecs_agree_on_the_whole_registry() -> None:
    """Ours reads what the dev chain's wrote: the metadata of every pallet, item and constant."""
    made: Metadata = METADATA
    assert {"System", "Balances", "Network"} <= set(made.pallets)
    for pallet in made.pallets.values():
        for name in pallet.constants:
            made.constant(pallet.name, name)
        for item in pallet.storage.values():
            runtime.decode_value(made, item, None)
