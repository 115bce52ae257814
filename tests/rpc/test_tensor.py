"""Tensors on the wire: exact, without copies, sizes checked before anything is allocated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc import tensor as t
from mesh.rpc.body import pack, unpack

MAX = 1 << 20
NAMES = [name for name in t.ITEM_BYTES if name != "bfloat16"]


@given(st.sampled_from(NAMES), st.lists(st.integers(0, 4), max_size=8), st.integers(0, 2**32 - 1))
def test_round_trip(name: str, shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.standard_normal(shape) * 9).astype(name)
    for sent in (array, array.T, array.astype(array.dtype.newbyteorder(">"))):
        got = t.unpack_tensor(unpack(t.TensorMessage, pack(t.pack_tensor(sent))), max_bytes=MAX)
        assert got.dtype == array.dtype
        assert got.shape == sent.shape
        np.testing.assert_array_equal(got, sent)


def test_no_copies() -> None:
    array = np.arange(12, dtype="float32").reshape(3, 4)
    view = t.buffer_of(array)
    assert np.shares_memory(np.frombuffer(view, "uint8"), array)
    data = bytearray(view)
    assert np.shares_memory(t.array_of(t.header_of(array), data, max_bytes=MAX), np.frombuffer(data, "uint8"))
    with pytest.raises(ValueError, match="read-only"):
        t.unpack_tensor(t.pack_tensor(array), max_bytes=MAX)[0] = 1


def test_pieces() -> None:
    array = np.arange(1000, dtype="int64")
    builder = t.TensorBuilder(t.header_of(array), max_bytes=MAX)
    for piece in t.chunks(t.buffer_of(array), 333):
        with pytest.raises(RemoteProtocolError, match="bytes of the tensor came"):
            builder.array()
        builder.add(piece)
    np.testing.assert_array_equal(builder.array(), array)
    with pytest.raises(RemoteProtocolError, match="more than"):
        builder.add(b"x")
    assert [len(c) for c in t.chunks(bytes(2 * t.CHUNK_BYTES + 1))] == [t.CHUNK_BYTES, t.CHUNK_BYTES, 1]


def test_bfloat16_travels_as_words() -> None:
    header = t.TensorHeader(dtype="bfloat16", shape=(2,))
    assert t.array_of(header, b"\x80\x3f\x00\x40", max_bytes=4).tolist() == [0x3F80, 0x4000]


@pytest.mark.parametrize(
    "shape",
    [
        (1 << 20,),
        (1 << 40, 1 << 40),
        (1 << 40,) * 8,
        (-1,),
        (-1, -1),
        (0, 1 << 40),
        ((1 << 40) + 1, 0),
        (1 << 80,),
    ],
)
def test_sizes_are_refused_before_allocation(shape: tuple[int, ...]) -> None:
    header = t.TensorHeader(dtype="float32", shape=shape)
    with pytest.raises(RemoteProtocolError):
        t.TensorBuilder(header, max_bytes=MAX)
    with pytest.raises(RemoteProtocolError):
        t.array_of(header, b"", max_bytes=MAX)


def test_what_a_header_may_not_be() -> None:
    for dtype, shape in (("object", (1,)), ("float128", (1,)), ("<f4", (1,)), ("float32", (1,) * 9)):
        with pytest.raises(ValidationError):
            t.TensorHeader(dtype=dtype, shape=shape)  # type: ignore[arg-type]
    header = t.TensorHeader(dtype="float32", shape=(2,))
    for data in (b"", bytes(7), bytes(9)):
        with pytest.raises(RemoteProtocolError, match="has 8 bytes"):
            t.array_of(header, data, max_bytes=MAX)
    with pytest.raises(RemoteProtocolError, match="0 and 1"):
        t.array_of(t.TensorHeader(dtype="bool", shape=(2,)), b"\x01\x02", max_bytes=MAX)


def test_what_is_not_sent() -> None:
    for array in (np.array([object()]), np.array(["x"]), np.zeros(1, "complex64"), np.zeros((1,) * 9)):
        with pytest.raises(LocalProtocolError):
            t.pack_tensor(array)
