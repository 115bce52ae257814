"""The codec against itself, against hostile bytes, and against bytes recorded from the real runtime."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.devchain import scale as s
from mesh.devchain.extrinsic import parse, read_era, recover
from mesh.devchain.runtime import Runtime
from mesh.errors import LocalProtocolError, RemoteProtocolError

from . import golden

shape = s.enum("demo::Shape", Nothing=None, One=s.u32, Two=(s.u8, s.boolean), Named={"a": s.bytes_})
record = s.struct(
    "demo::Record",
    small=s.u8,
    big=s.u128,
    signed=s.i128,
    flag=s.boolean,
    name=s.text,
    raw=s.bytes_,
    who=s.account_id,
    maybe=s.option(s.u32),
    many=s.vec(s.u16),
    pairs=s.btree_map(s.bytes_, s.u32),
    set=s.btree_set(s.u32),
    both=s.tuple_of(s.u64, s.boolean),
    packed=s.compact(s.u128),
    bounded=s.bounded_bytes,
    shape=shape,
)

records = st.fixed_dictionaries(
    {
        "small": st.integers(0, 255),
        "big": st.integers(0, 2**128 - 1),
        "signed": st.integers(-(2**127), 2**127 - 1),
        "flag": st.booleans(),
        "name": st.text(),
        "raw": st.binary(),
        "who": st.binary(min_size=20, max_size=20),
        "maybe": st.none() | st.integers(0, 2**32 - 1),
        "many": st.lists(st.integers(0, 65535)),
        "pairs": st.dictionaries(st.binary(), st.integers(0, 2**32 - 1)),
        "set": st.sets(st.integers(0, 2**32 - 1)),
        "both": st.tuples(st.integers(0, 2**64 - 1), st.booleans()),
        "packed": st.integers(0, 2**128 - 1),
        "bounded": st.binary(max_size=100),
        "shape": st.just("Nothing")
        | st.builds(lambda n: {"One": n}, st.integers(0, 2**32 - 1))
        | st.builds(lambda n, b: {"Two": (n, b)}, st.integers(0, 255), st.booleans())
        | st.builds(lambda b: {"Named": {"a": b}}, st.binary()),
    }
)


@settings(deadline=None, derandomize=True)
@given(records)
def test_every_value_comes_back(value: dict[str, Any]) -> None:
    assert record.decode_all(record.encode(value)) == value


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_junk_is_a_value_or_a_scale_error(junk: bytes) -> None:
    try:
        value = record.decode_all(junk)
    except RemoteProtocolError:
        return
    record.encode(value)


@settings(deadline=None, derandomize=True)
@given(records, st.data())
def test_a_cut_encoding_is_refused(value: dict[str, Any], data: st.DataObject) -> None:
    whole = record.encode(value)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(s.ScaleError):
        record.decode_all(whole[:cut])
    with pytest.raises(s.ScaleError, match="left over"):
        record.decode_all(whole + b"\x00")


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "04"), (63, "fc"), (64, "0101"), (16383, "fdff"), (16384, "02000100"), (2**30, "0300000040"),
     (2**32 - 1, "03ffffffff"), (10**18, "13000064a7b3b6e00d")],
)  # fmt: skip
def test_compact_integers_of_the_specification(value: int, encoded: str) -> None:
    assert s.encode_compact(value).hex() == encoded
    assert s.decode_compact(s.Reader(bytes.fromhex(encoded))) == value


@pytest.mark.parametrize("longer", ["0100", "02000000", "0300000000", "0700000000 00", "13000064a7b3b6e000"])
def test_compact_integers_longer_than_needed_are_refused(longer: str) -> None:
    with pytest.raises(s.ScaleError, match="longer than needed"):
        s.decode_compact(s.Reader(bytes.fromhex(longer)))


def test_a_length_that_lies_allocates_nothing() -> None:
    huge = s.encode_compact(2**32 - 1)
    for kind in (s.vec(s.u32), s.bytes_, s.btree_map(s.u32, s.u32), s.btree_set(s.u32), s.text, s.vec(s.unit)):
        with pytest.raises(s.ScaleError):
            kind.decode_all(huge)


def test_maps_and_sets_are_written_in_ascending_order_of_the_key() -> None:
    table = s.btree_map(s.bytes_, s.u8)
    encoded = table.encode({b"b": 1, b"aaa": 2, b"": 3})
    assert encoded == bytes.fromhex("0c" + "0003" + "0c61616102" + "046201")
    assert s.btree_set(s.u32).encode({256, 1}) == bytes.fromhex("08" + "01000000" + "00010000")
    # out of order decodes, as in Rust, and is written back in order
    assert table.encode(table.decode_all(bytes.fromhex("08" + "046201" + "0003"))) == bytes.fromhex("080003046201")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(s.u8, 256), (s.u32, -1), (s.u32, True), (s.u32, "1"), (s.boolean, 1), (s.account_id, bytes(19)),
     (s.bounded_bytes, bytes(s.MAX_BOUNDED_BYTES + 1)), (s.compact(s.u32), 2**32), (shape, "Other"),
     (shape, {"One": 1, "Two": (1, True)}), (shape, {"Nothing": 1}), (record, {"small": 1})],
)  # fmt: skip
def test_values_that_do_not_fit_are_the_callers_fault(kind: s.Type, value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        kind.encode(value)


def test_zero_values_encode() -> None:
    assert record.decode_all(record.encode(record.zero())) == record.zero()


def test_eras_that_cannot_be() -> None:
    assert read_era(s.Reader(b"\x00")).immortal
    era = read_era(s.Reader(bytes.fromhex("7500")))
    assert (era.period, era.phase) == (64, 7)
    assert [era.birth(number) for number in (0, 7, 70, 71, 135)] == [7, 7, 7, 71, 135]
    with pytest.raises(s.ScaleError):
        read_era(s.Reader(bytes.fromhex("f5ff")))  # a phase beyond the period
    with pytest.raises(s.ScaleError):
        read_era(s.Reader(bytes.fromhex("0100")[:1]))


@golden.needs_golden
@pytest.mark.parametrize("place", range(len(golden.calls())))
def test_recorded_extrinsics_decode_encode_and_recover_their_signer(place: int) -> None:
    recorded = golden.calls()[place]
    call_type = Runtime(epoch_length=20).types.call
    call = bytes.fromhex(recorded["call_hex"][2:])
    assert call_type.encode(call_type.decode_all(call)) == call
    raw = bytes.fromhex(recorded["extrinsic"][2:])
    ext = parse(raw, call_type)
    assert ext.call_bytes == call
    assert ext.call == {"Network": {recorded["call"]: next(iter(ext.call["Network"].values()))}}
    assert ext.raw == raw


@golden.needs_golden
def test_recorded_signatures_recover_their_signer() -> None:
    """Recorded extrinsics are mortal, born at the head they were signed on; the next block took them in. So the
    hash of a birth block is known where the extrinsic before it was recorded as well."""
    call_type = Runtime(epoch_length=20).types.call
    exts = {}
    hashes = {}
    for recorded in golden.calls():
        ext = parse(bytes.fromhex(recorded["extrinsic"][2:]), call_type)
        exts[ext.hash] = ext
        hashes[ext.era.phase + 1] = bytes.fromhex(recorded["block"][2:])
    genesis = bytes([0x45]) * 32  # a constant of the recording tool
    checked = 0
    for ext in exts.values():
        birth = hashes.get(ext.era.birth(ext.era.phase))
        if birth is None:
            continue
        payload = ext.payload(spec_version=1, transaction_version=1, genesis=genesis, birth=birth)
        assert recover(payload, ext.signature) == ext.signer
        other = ext.payload(spec_version=2, transaction_version=1, genesis=genesis, birth=birth)
        assert recover(other, ext.signature) != ext.signer
        checked += 1
    assert checked >= 8
