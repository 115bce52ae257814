"""The client's codec against bytes recorded from the real runtime, and against scalecodec, which none of us wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import coincurve
import pytest

from mesh.chain import dialect, facts, runtime, session
from mesh.chain.codec import Reader
from mesh.chain.metadata import Metadata, parse
from mesh.chain.runtime import Era, SigningContext, Version
from mesh.chain.session import Session
from mesh.chain.staking import NodeTerms, SubnetTerms, node_args, subnet_args
from mesh.chain.types import BlockRef, NodeClass, Score, SubnetState
from mesh.errors import CallRefused, ChainError, ExtrinsicFailed, WrongChain
from mesh.identity import keccak256
from mesh.peer import PeerID, PeerInfo

SUBNET = 128_001
VERSION = Version("hypertensor-node", 1, 1)
GENESIS = b"\x45" * 32


def parts(raw: bytes) -> tuple[bytes, bytes, int, int, bytes]:
    """(account, signature, era, nonce, call) of a recorded extrinsic."""
    reader = Reader(raw)
    assert reader.compact() == reader.left
    assert reader.uint(1) == 0x84
    account, signature, era = reader.take(20), reader.take(65), reader.uint(2)
    nonce = reader.compact()
    assert reader.compact() == 0
    return account, signature, era, nonce, reader.take(reader.left)


def test_the_metadata_agrees_with_scalecodec(metadata: Metadata, metadata_bytes: bytes) -> None:
    from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
    from scalecodec.type_registry import load_type_registry_preset

    config = RuntimeConfigurationObject(implements_scale_info=True)
    config.update_type_registry(load_type_registry_preset(name="core"))
    theirs = config.create_scale_object("MetadataVersioned", data=ScaleBytes(metadata_bytes))
    theirs.decode()
    value = theirs.value[1]["V14"]
    assert len(metadata.registry) == len(value["types"]["types"])
    for mine, entry in zip(metadata.registry, value["types"]["types"], strict=True):
        assert list(mine.path) == (entry["type"].get("path") or [])
    assert [p["name"] for p in value["pallets"]] == list(metadata.pallets)
    for pallet in value["pallets"]:
        own = metadata.pallets[pallet["name"]]
        assert own.index == pallet["index"]
        for item in (pallet["storage"] or {}).get("entries", []):
            mine_item = own.storage[item["name"]]
            assert mine_item.optional == (item["modifier"] == "Optional")
            kind, body = next(iter(item["type"].items()))
            assert list(mine_item.hashers) == ([] if kind == "Plain" else body["hashers"])
            assert mine_item.value_id == (body if kind == "Plain" else body["value"])
        assert {c["name"] for c in pallet["constants"]} == set(own.constants)
    extensions = value["extrinsic"]["signed_extensions"]
    assert [e["identifier"] for e in extensions] == [e.identifier for e in metadata.extensions]
    assert metadata.constant("Network", "EpochLength") == 20


def test_every_recorded_call_is_encoded_byte_for_byte(metadata: Metadata, recorded: list[dict[str, Any]]) -> None:
    for entry in recorded:
        call = runtime.encode_call(metadata, "Network", entry["call"], entry["params"])
        assert f"0x{call.hex()}" == entry["call_hex"], entry["call"]


def test_maps_go_out_in_ascending_order_however_they_were_given(
    metadata: Metadata, recorded: list[dict[str, Any]]
) -> None:
    """The runtime encodes a call again before it checks the signature: another order is a bad signature (1010)."""
    entry = recorded[0]
    data = {**entry["params"]["subnet_data"]}
    data["initial_coldkeys"] = dict(reversed(data["initial_coldkeys"]))
    call = runtime.encode_call(metadata, "Network", "register_subnet", {**entry["params"], "subnet_data": data})
    assert f"0x{call.hex()}" == entry["call_hex"]
    twice = [*data["initial_coldkeys"].items()] * 2
    with pytest.raises(CallRefused, match="initial_coldkeys has the same key twice"):
        runtime.encode_call(
            metadata,
            "Network",
            "register_subnet",
            {**entry["params"], "subnet_data": {**data, "initial_coldkeys": twice}},
        )


def test_integer_keys_are_ordered_as_numbers_not_as_bytes(metadata: Metadata) -> None:
    item = metadata.item("Network", "StakeUnbondingLedger")
    from mesh.chain.codec import decode_all, encode

    raw = encode(metadata.registry, item.value_id, {256: 1, 1: 2}, "ledger")
    assert raw[1:5] == (1).to_bytes(4, "little")
    assert list(decode_all(metadata.registry, item.value_id, raw)) == [1, 256]  # type: ignore[call-overload]


def test_the_recorded_signatures_are_over_our_payload(
    metadata: Metadata, recorded: list[dict[str, Any]], state_end: dict[str, Any]
) -> None:
    """The signer recovered from our message is the account in the extrinsic, which the real runtime accepted."""
    hashes = {}
    item = metadata.item("System", "BlockHash")
    prefix = runtime.storage_prefix(metadata, item, ())
    for key, value in state_end["storage"].items():
        if bytes.fromhex(key[2:]).startswith(prefix):
            (number,) = runtime.decode_keys(metadata, item, bytes.fromhex(key[2:]))
            hashes[number] = bytes.fromhex(value[2:])
    for entry in recorded:
        raw = bytes.fromhex(entry["extrinsic"][2:])
        account, signature, era_bytes, nonce, call = parts(raw)
        period = 2 << (era_bytes & 0xF)
        birth = era_bytes >> 4
        assert period == 64
        era = Era(birth, period)
        assert int.from_bytes(era.encode(), "little") == era_bytes
        context = SigningContext(VERSION, GENESIS, hashes[birth], nonce, era)
        message = keccak256(runtime.signing_payload(metadata, call, context))
        public = coincurve.PublicKey.from_signature_and_message(signature, message, hasher=None)
        assert keccak256(public.format(compressed=False)[1:])[-20:] == account, entry["call"]
        rebuilt = runtime.build_extrinsic(metadata, call, context, account=account, signature=signature)
        assert rebuilt == raw


def test_recorded_events_give_fee_and_error_by_name(metadata: Metadata, recorded: list[dict[str, Any]]) -> None:
    for entry in recorded:
        records = runtime.decode_events(metadata, bytes.fromhex(entry["events_hex"][2:]))
        index = max(r.extrinsic for r in records if r.extrinsic is not None)
        if entry["ok"]:
            _, fee = runtime.outcome(metadata, records, index)
            assert fee == entry["fee"]
        else:
            with pytest.raises(ExtrinsicFailed) as caught:
                runtime.outcome(metadata, records, index)
            assert (caught.value.pallet, caught.value.name) == ("Network", entry["err"]["name"])


def test_events_cut_short_or_with_a_byte_more_are_errors(metadata: Metadata, recorded: list[dict[str, Any]]) -> None:
    raw = bytes.fromhex(recorded[0]["events_hex"][2:])
    for cut in range(1, len(raw), 7):
        with pytest.raises(ChainError):
            runtime.decode_events(metadata, raw[:cut])
    with pytest.raises(ChainError, match="left over"):
        runtime.decode_events(metadata, raw + b"\0")


def table_rpc(state: dict[str, Any]) -> session.Rpc:
    """A node that answers from recorded storage, at one block."""
    storage = state["storage"]

    def rpc(method: str, params: Sequence[Any]) -> object:
        if method == "chain_getHead":
            return state["hash"]
        if method == "state_queryStorageAt":
            return [{"block": state["hash"], "changes": [[key, storage.get(key)] for key in params[0]]}]
        if method == "state_getKeysPaged":
            prefix, count, *start = params
            keys = sorted(key for key in storage if key.startswith(prefix))
            return [key for key in keys if len(start) < 2 or start[0] is None or key > start[0]][:count]
        raise session.RpcRefused(method, session.METHOD_NOT_FOUND, "Method not found")  # only storage was recorded

    return rpc


@pytest.fixture
def end(metadata: Metadata, state_end: dict[str, Any]) -> Session:
    chosen = dialect.choose(metadata.pallet("Network").calls)
    made = Session("recorded", table_rpc(state_end), GENESIS, "Development", VERSION, metadata, chosen, None)
    block = bytes.fromhex(state_end["hash"][2:])
    made.refs[block] = BlockRef(state_end["block"], block)  # headers were not recorded
    return made


def test_the_recorded_state_reads_as_a_subnet(end: Session, state_end: dict[str, Any]) -> None:
    assert facts.resolve_subnet_id(end, 1) == SUBNET == facts.resolve_subnet_id(end, SUBNET)
    info = facts.subnet(end, SUBNET, None)
    assert (info.name, info.state, info.slot, info.friendly_id) == ("sub-one", SubnetState.ACTIVE, 3, 1)
    found = facts.snapshot(end, SUBNET, None)
    assert found.block == BlockRef(43, bytes.fromhex(state_end["hash"][2:]))
    assert [node.stake_planck for node in found.nodes] == [
        200034901843424534753,
        200069803686398644636,
        201104582135697629517,
    ]
    assert {node.node_class for node in found.nodes} == {NodeClass.VALIDATOR}
    assert str(found.nodes[0].peer_id) == "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhxAN"
    assert found.nodes[0].coldkey.hex() == "f24ff3a9cf04c71dbc94d0b566f7a27b94566cac"
    assert all(node.reputation == 10**18 for node in found.nodes)
    assert facts.elected(end, SUBNET, 1) == 3
    assert facts.elected(end, SUBNET, 9) is None
    submission = facts.submission(end, SUBNET, 1)
    assert submission is not None
    assert (submission.proposer_node_id, submission.attests, submission.args) == (3, (1, 2, 3), None)
    assert submission.scores == tuple(Score(i, i * 10**18) for i in (1, 2, 3))
    assert facts.submission(end, SUBNET, 9) is None
    assert facts.balance(end, found.nodes[0].coldkey).nonce == 1


def test_the_recorded_bootnode_can_be_dialled(end: Session) -> None:
    (found,) = facts.bootnodes(end, SUBNET)
    assert found.multiaddrs() == ("/ip4/127.0.0.1/tcp/8080/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (b"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhxAN", "same"),  # the address names another peer
        (b"not base58 0OIl", "same"),
        (b"", "same"),
        (b"\xff" * 40, "same"),
        (b"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhxAN", b"\xff\xff\xff"),
        (b"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhxAN", b"\x04\x7f"),
        (b"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhxAN", None),
    ],
)
def test_a_malformed_bootnode_is_left_out_and_the_others_stay(
    end: Session, metadata: Metadata, state_end: dict[str, Any], peer: bytes, address: object
) -> None:
    item = metadata.item("Network", "SubnetBootnodes")
    raw = state_end["storage"][f"0x{runtime.storage_key(metadata, item, (SUBNET,)).hex()}"]
    good = runtime.decode_value(metadata, item, bytes.fromhex(raw[2:]))
    assert isinstance(good, dict)
    (known,) = good.values()
    found = dialect.bootnodes({peer: known if address == "same" else address, **good})
    assert [str(info.peer_id)[-2:] for info in found] == ["5N"]


def test_every_recorded_value_is_consumed_to_the_last_byte(metadata: Metadata, state_end: dict[str, Any]) -> None:
    known = {
        runtime.storage_prefix(metadata, item, ()): item
        for pallet in metadata.pallets.values()
        for item in pallet.storage.values()
    }
    checked = 0
    for key, value in state_end["storage"].items():
        raw_key, raw = bytes.fromhex(key[2:]), bytes.fromhex(value[2:])
        item = known.get(raw_key[:32])
        if item is None:
            continue  # the pallets' `:__STORAGE_VERSION__:`, which metadata does not list
        checked += 1
        keys = runtime.decode_keys(metadata, item, raw_key)
        assert runtime.storage_key(metadata, item, keys) == raw_key
        runtime.decode_value(metadata, item, raw)
        with pytest.raises(ChainError):
            runtime.decode_value(metadata, item, raw + b"\0")
        with pytest.raises(ChainError):
            runtime.decode_value(metadata, item, raw[:-1])
    assert checked > 150


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"subnet_id": 1, "attest": None}, "no argument 'attest'"),
        ({}, "needs the argument 'subnet_id'"),
        ({"subnet_id": -1}, r"attest.subnet_id takes 0 to 4294967295, not -1"),
        ({"subnet_id": 1 << 32}, "subnet_id takes 0 to"),
        ({"subnet_id": True}, "takes an integer, not bool"),
        ({"subnet_id": 1, "attest_data": "text"}, "attest_data takes bytes, not str"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(metadata: Metadata, args: dict[str, object], words: str) -> None:
    with pytest.raises(CallRefused, match=words):
        runtime.encode_call(metadata, "Network", "attest", args)


def test_addresses_are_taken_as_text_only_with_a_right_checksum(metadata: Metadata) -> None:
    def call(to: object) -> bytes:
        return runtime.encode_call(
            metadata, "Network", "transfer_delegate_stake",
            {"subnet_id": 1, "to_account_id": to, "delegate_stake_shares_to_transfer": 1},
        )  # fmt: skip

    good = "0xf24FF3a9CF04c71Dbc94D0b566f7A27B94566cac"
    assert call(good) == call(bytes.fromhex(good[2:]))
    with pytest.raises(CallRefused, match="checksum"):
        call("0xF24FF3a9CF04c71Dbc94D0b566f7A27B94566cac")
    with pytest.raises(CallRefused, match="takes 20 bytes, not 19"):
        call(bytes(19))


def test_metadata_of_another_version_or_cut_short_is_refused(metadata_bytes: bytes) -> None:
    with pytest.raises(WrongChain, match="version 15"):
        parse(b"meta\x0f" + metadata_bytes[5:])
    with pytest.raises(ChainError, match="meta"):
        parse(b"atem" + metadata_bytes[4:])
    for cut in (6, 1000, len(metadata_bytes) // 2, len(metadata_bytes) - 1):
        with pytest.raises(ChainError):
            parse(metadata_bytes[:cut])


def test_peer_ids_are_text_and_the_raw_form_is_tolerated() -> None:
    peer = PeerID.parse("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhxAN")
    assert dialect.parse_peer_id(dialect.peer_id_bytes(peer)) == peer
    assert dialect.parse_peer_id(peer.multihash) == peer


def test_a_node_with_a_malformed_peer_id_is_left_out_of_the_snapshot(
    end: Session, metadata: Metadata, state_end: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    item = metadata.item("Network", "SubnetNodesData")
    key = f"0x{runtime.storage_key(metadata, item, (SUBNET, 2)).hex()}"
    broken = {**state_end["storage"]}
    broken[key] = broken[key].replace(b"QmYyQ".hex(), b"Qm0OI".hex())
    end.rpc = table_rpc({**state_end, "storage": broken})
    assert [node.node_id for node in facts.snapshot(end, SUBNET, None).nodes] == [1, 3]
    assert "peer_info of node 2" in caplog.text


def test_the_dialect_is_read_from_the_calls(metadata: Metadata) -> None:
    calls = metadata.pallet("Network").calls
    assert dialect.choose(calls).name == "coldkey/hotkey"
    newer = dialect.choose({**calls, "register_validator": calls["attest"]})
    assert newer.needs_node_id
    assert newer.attest(1, 5).args == {"subnet_id": 1, "subnet_node_id": 5, "data": None}
    with pytest.raises(CallRefused, match="node id"):
        newer.attest(1, None)
    with pytest.raises(WrongChain):
        dialect.choose({"transfer": None})


def test_every_call_that_is_made_fits_the_recorded_runtime(metadata: Metadata) -> None:
    spoken = dialect.HotkeyDialect()
    peer = PeerInfo.parse("/ip4/192.0.2.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhxAN")
    node = NodeTerms(bytes(20), peer.peer_id, peer.peer_id, peer.peer_id, 1, bootnode=peer)
    subnet = subnet_args(SubnetTerms("name", "repo"), {bytes(20): 1}, [peer])
    for call in (
        spoken.propose(1, None, [Score(2, 1), Score(1, 1)], b"args"),
        spoken.attest(1, None),
        dialect.Call("register_subnet", subnet),
        dialect.Call("register_subnet_node", node_args(1, node)),
    ):
        assert runtime.encode_call(metadata, "Network", call.name, call.args)
