"""Tensors as messages: aligned, without copies, and no header of a stranger is believed."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc.body import pack, unpack
from mesh.rpc.codec import ITEM_BYTES, MAX_DIM, MAX_RANK, Codec, TensorHeader
from mesh.rpc.tensor import ALIGN, MAX_HEADER_BYTES, TensorMessage, pack_tensor, unpack_tensor

MAX = 1 << 20
NAMES = [name for name in ITEM_BYTES if name != "bfloat16"]


def body_of(header: object, buffer: bytes, *, fill: bytes = b"\0") -> bytes:
    packed = msgpack.packb(header)
    head = struct.pack("<I", len(packed)) + packed
    return head + fill * (-len(head) % ALIGN) + buffer


@given(st.sampled_from(NAMES), st.lists(st.integers(0, 4), max_size=8), st.integers(0, 2**32 - 1))
def test_round_trip(name: str, shape: list[int], seed: int) -> None:
    array = (np.random.default_rng(seed).standard_normal(shape) * 9).astype(name)
    for codec in (Codec.RAW, Codec.ZSTD):
        header, got = unpack_tensor(bytearray(b"".join(pack_tensor(array, codec))), max_bytes=MAX)
        assert (header.dtype, header.codec, got.dtype, got.shape) == (name, codec, array.dtype, array.shape)
        np.testing.assert_array_equal(got, array)
        message = unpack(TensorMessage, pack(TensorMessage.of(array, codec)))
        np.testing.assert_array_equal(message.array(max_bytes=MAX), array)


def test_no_copies_and_aligned() -> None:
    for shape in ((12,), (3, 4), (1, 1, 1, 12)):
        array = np.arange(12.0).reshape(shape)
        head, view = pack_tensor(array)
        assert len(head) % ALIGN == 0
        assert np.shares_memory(np.frombuffer(view, "uint8"), array)
        data = bytearray(head + view)
        _, got = unpack_tensor(data, max_bytes=MAX)
        assert np.shares_memory(got, np.frombuffer(data, "uint8"))
        got[...] = 7
        assert not unpack_tensor(bytes(data), max_bytes=MAX)[1].flags.writeable


def test_the_layout_is_as_documented() -> None:
    header = {"dtype": "int16", "shape": [2], "codec": "raw"}
    assert b"".join(pack_tensor(np.array([1, -2], "int16"))) == body_of(header, b"\x01\x00\xfe\xff")


def test_the_longest_header_is_short() -> None:
    header = TensorHeader(dtype="bfloat16", shape=(MAX_DIM,) * MAX_RANK, codec=Codec.RAW)
    assert len(pack(header)) <= MAX_HEADER_BYTES // 2


def test_hostile_bodies() -> None:
    good = {"dtype": "float32", "shape": [2], "codec": "raw"}
    assert unpack_tensor(body_of(good, bytes(8)), max_bytes=8)[1].tolist() == [0.0, 0.0]
    for data in (
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff" + bytes(100),
        struct.pack("<I", MAX_HEADER_BYTES + 1) + bytes(1000),
        body_of(good, bytes(8), fill=b"x"),
        body_of(good, bytes(7)),
        body_of(good, bytes(9)),
        body_of(good, bytes(8))[:20],
        body_of({"dtype": "float32", "shape": [2]}, bytes(8)),
        body_of(good | {"more": 1}, bytes(8)),
        body_of(good | {"dtype": "object"}, bytes(8)),
        body_of(good | {"dtype": "<f4"}, bytes(8)),
        body_of(good | {"codec": "pickle"}, bytes(8)),
        body_of(good | {"codec": 0}, bytes(8)),
        body_of(good | {"codec": "int8"}, bytes(8)),
        body_of(good | {"shape": [-2]}, bytes(8)),
        body_of(good | {"shape": [2.0]}, bytes(8)),
        body_of(good | {"shape": ["2"]}, bytes(8)),
        body_of(good | {"shape": [1 << 62]}, bytes(8)),
        body_of(good | {"shape": [3]}, bytes(12)),  # more than max_bytes
        body_of(good | {"shape": 2}, bytes(8)),
        body_of([good], bytes(8)),
        body_of(good, bytes(8)).replace(b"float32", b"int32\0\0"),
    ):
        with pytest.raises(RemoteProtocolError):
            unpack_tensor(data, max_bytes=8)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_tensor_or_the_peers_fault(data: bytes) -> None:
    for body in (data, struct.pack("<I", len(data) // 2) + data):
        with pytest.raises(RemoteProtocolError):
            unpack_tensor(body, max_bytes=MAX)


def test_what_expands_is_held_to_the_limit_too() -> None:
    """A body within the limit, whose array is not."""
    array = np.zeros(1000, "float64")
    for codec in (Codec.ZSTD, Codec.INT8, Codec.BF16):
        body = b"".join(pack_tensor(array, codec))
        assert len(body) < 4000
        with pytest.raises(RemoteProtocolError, match="allowed are 4000"):
            unpack_tensor(body, max_bytes=4000)


def test_what_is_not_sent() -> None:
    for array in (np.array([object()]), np.zeros((1,) * 9)):
        with pytest.raises(LocalProtocolError):
            pack_tensor(array)
        with pytest.raises(LocalProtocolError):
            TensorMessage.of(array)
