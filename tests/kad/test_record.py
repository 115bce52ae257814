"""Records on the wire: one encoding, bounded, and only a RemoteProtocolError for anything else."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import LocalProtocolError, RecordRejected, RemoteProtocolError
from mesh.identity import KeyType, PeerKey
from mesh.kad.record import MAX_RECORD_BYTES, MAX_VALUE_BYTES, Record, is_equivocation, sign_record

ALICE = PeerKey.dev("alice")
FIELDS = {"expiry_ms": 2_000, "seq": 7, "subnet_id": 1, "genesis": b"g" * 32}


def signed(value: bytes = b"v", key: PeerKey = ALICE, **changes: object) -> Record:
    return sign_record(key, b"ns/k", value, **{**FIELDS, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("key_type", list(KeyType))
def test_a_record_comes_back_and_is_its_owners(key_type: KeyType) -> None:
    key = PeerKey.generate(key_type)
    record = signed(key=key, value=bytes(range(256)))
    again = Record.from_bytes(record.to_bytes())
    assert again == record
    assert again.owner == key.peer_id
    again.check_signature()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_random_bytes_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Record.from_bytes(data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_records_are_a_protocol_error_or_do_not_verify(data: st.DataObject) -> None:
    raw = bytearray(signed().to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    if bytes(raw) == signed().to_bytes():
        return
    with pytest.raises((RemoteProtocolError, RecordRejected)):
        Record.from_bytes(bytes(raw)).check_signature()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.integers(-1, 2**64 - 1), st.binary(max_size=40), st.booleans(), st.none(), st.text(max_size=4)),
        min_size=9, max_size=12,
    )
)  # fmt: skip
def test_lists_of_anything_are_a_protocol_error(fields: list[object]) -> None:
    with pytest.raises(RemoteProtocolError):
        Record.from_bytes(msgpack.packb([1, b"k/x", *fields]))


def test_other_spellings_of_a_good_record_are_refused() -> None:
    raw = signed().to_bytes()
    for other in (raw + b"\x00", raw.replace(b"\x07", b"\xcc\x07", 1), b"\xdc\x00\x0b" + raw[1:]):
        with pytest.raises(RemoteProtocolError):
            Record.from_bytes(other)


def test_sizes_are_bounded_on_both_sides() -> None:
    with pytest.raises(LocalProtocolError):
        signed(b"x" * (MAX_VALUE_BYTES + 1))
    Record.from_bytes(signed(b"x" * MAX_VALUE_BYTES).to_bytes())
    with pytest.raises(RemoteProtocolError):
        Record.from_bytes(b"\x00" * (MAX_RECORD_BYTES + 1))
    with pytest.raises(RemoteProtocolError, match="value"):
        Record.from_bytes(dataclasses.replace(signed(), value=b"x" * (MAX_VALUE_BYTES + 1)).to_bytes())
    with pytest.raises(RemoteProtocolError, match="range"):
        Record.from_bytes(dataclasses.replace(signed(), tombstone=True).to_bytes())


def test_equivocation_is_two_contents_for_one_slot_and_seq() -> None:
    assert is_equivocation(signed(b"1"), signed(b"2"))
    assert is_equivocation(signed(b"1"), signed(b"", tombstone=True))
    assert not is_equivocation(signed(b"1"), signed(b"1", expiry_ms=3_000))
    assert not is_equivocation(signed(b"1"), signed(b"2", seq=8))
    assert not is_equivocation(signed(b"1"), signed(b"2", subkey=b"s"))
    assert not is_equivocation(signed(b"1"), signed(b"2", key=PeerKey.dev("bob")))


@pytest.mark.parametrize("part", ["key", "value", "subkey"])
def test_text_is_refused_where_bytes_belong(part: str) -> None:
    parts: dict[str, object] = {"key": b"k/1", "value": b"v", "subkey": b"", part: "text"}
    with pytest.raises(LocalProtocolError, match=f"{part} is bytes, not str"):
        sign_record(
            PeerKey.dev("a"), parts["key"], parts["value"], subkey=parts["subkey"],  # type: ignore[arg-type]
            expiry_ms=1, seq=1, subnet_id=1, genesis=bytes(32),
        )  # fmt: skip
