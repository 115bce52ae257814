"""Message bodies: strict, canonical, bounded."""

from __future__ import annotations

import enum

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc.body import MAX_ITEMS, pack, unpack


class Shade(enum.Enum):
    DARK = 1
    LIGHT = 2


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: bytes = b""


class Whole(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = 0
    ratio: float = 0.0
    flag: bool = False
    text: str | None = None
    parts: tuple[Part, ...] = ()
    names: list[str] = []
    by_key: dict[bytes, int] = {}
    shade: Shade = Shade.DARK


parts = st.builds(Part, name=st.text(max_size=5), data=st.binary(max_size=5))
wholes = st.builds(
    Whole,
    number=st.integers(-(2**63), 2**64 - 1),
    ratio=st.floats(allow_nan=False),
    flag=st.booleans(),
    text=st.none() | st.text(max_size=5),
    parts=st.lists(parts, max_size=3).map(tuple),
    names=st.lists(st.text(max_size=5), max_size=3),
    by_key=st.dictionaries(st.binary(max_size=3), st.integers(0, 9), max_size=3),
    shade=st.sampled_from(Shade),
)


@given(wholes)
def test_round_trip(whole: Whole) -> None:
    assert unpack(Whole, pack(whole)) == whole
    assert unpack(Whole, bytearray(pack(whole))) == whole


@given(st.binary(max_size=100))
def test_random_bytes_raise_only_remote_protocol_errors(data: bytes) -> None:
    for body in (data, b"\x81\xa5parts" + data, b"\x81\xa6by_key" + data):
        try:
            unpack(Whole, body)
        except RemoteProtocolError:
            pass


@pytest.mark.parametrize(
    "value",
    [
        {"number": "5"},
        {"number": 5.0},
        {"number": True},
        {"number": 2**64 - 1, "ratio": 1},
        {"flag": 1},
        {"flag": "yes"},
        {"text": b"bytes"},
        {"names": "ab"},
        {"names": {"a": 1}},
        {"parts": [{"name": "x", "data": "text"}]},
        {"parts": [{"data": b""}]},
        {"parts": [{"name": "x", "more": 1}]},
        {"unknown": 1},
        {"shade": 3},
        {"shade": True},
        {"ratio": 0.0, "number": 1},  # the fields' order is part of the encoding
        {"by_key": {1: 1}},
        [],
        None,
        7,
    ],
)
def test_nothing_is_coerced_or_ignored(value: object) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(Whole, msgpack.packb(value))


def test_other_encodings_of_the_same_value_are_refused() -> None:
    assert unpack(Whole, b"\x81\xa6number\x05") == Whole(number=5)
    for body in (b"\xde\x00\x01\xa6number\x05", b"\x81\xa6number\xcc\x05", b"\x81\xd9\x06number\x05"):
        with pytest.raises(RemoteProtocolError, match="canonical"):
            unpack(Whole, body)
    with pytest.raises(RemoteProtocolError):
        unpack(Whole, b"\x82\xa6number\x05\xa6number\x05")


def test_fields_with_defaults_may_be_left_out() -> None:
    assert unpack(Whole, b"\x80") == Whole()


@pytest.mark.parametrize("element", [b"\x90", b"\x80", b"\xc0", b"\x91\x90"])
def test_small_bytes_do_not_unfold_into_large_objects(element: bytes) -> None:
    count = MAX_ITEMS + 10
    row = b"\xdd" + (60_000).to_bytes(4, "big") + element * 60_000
    for body in (b"\xdd" + count.to_bytes(4, "big") + element * count, b"\x99" + row * 9):
        with pytest.raises(RemoteProtocolError):
            unpack(Whole, b"\x81\xa5names" + body)
    with pytest.raises(RemoteProtocolError):
        unpack(Whole, b"\x81\xa5names" + b"\x91" * 100_000)


def test_what_cannot_be_a_message() -> None:
    class Bad(BaseModel):
        value: object

    for value in ({1, 2}, object(), 2**70):
        with pytest.raises(LocalProtocolError):
            pack(Bad(value=value))
