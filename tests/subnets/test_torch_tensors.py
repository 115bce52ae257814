"""Torch tensors as messages: every bit, no pickle, and what is no plain array stays here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc.adapters import Coded, adapter_for, coded, register
from mesh.rpc.codec import Codec
from mesh.rpc.servicer import RpcContext, Servicer, method
from subnets.torch_tensors import TorchAdapter

MAX = 1 << 22
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
ADAPTER = adapter_for(torch.Tensor)


class StageServicer(Servicer):
    protocol = "/test/stage/1.0.0"

    @method()
    async def rpc_forward(self, hidden: torch.Tensor, ctx: RpcContext) -> torch.Tensor:
        return hidden


def through(value: Any) -> torch.Tensor:
    assert ADAPTER.accepts(value)
    got: torch.Tensor = ADAPTER.unpack(bytearray(b"".join(ADAPTER.pack(value))), max_bytes=MAX)
    return got


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=5), st.integers(0, 2**31), st.booleans())
def test_round_trip(dtype: torch.dtype, shape: list[int], seed: int, is_coded: bool) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype)
    for sent in (tensor, tensor.movedim(0, -1) if shape else tensor):
        got = through(Coded(sent, Codec.ZSTD) if is_coded else sent)
        assert (got.dtype, got.shape) == (dtype, sent.shape)
        assert torch.equal(got, sent)


def test_the_hint_is_known_once_imported() -> None:
    assert StageServicer.methods["forward"].request is ADAPTER
    register(ADAPTER)
    with pytest.raises(LocalProtocolError, match="has an adapter already"):
        register(TorchAdapter())


def test_bfloat16_keeps_its_bits() -> None:
    words = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    got = through(words.view(torch.bfloat16))
    assert torch.equal(got.view(torch.int16), words)  # NaNs too


@pytest.mark.parametrize(("codec", "torch_dtype"), [(Codec.BF16, torch.bfloat16), (Codec.FP16, torch.float16)])
def test_rounding_is_as_torch_rounds(codec: Codec, torch_dtype: torch.dtype) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * 30
    assert torch.equal(through(coded(values, codec)), values.to(torch_dtype).float())


def test_no_copies_and_own_memory() -> None:
    tensor = torch.arange(8.0)
    _, view = ADAPTER.pack(tensor)
    assert np.frombuffer(view, "f4").ctypes.data == tensor.data_ptr()
    body = bytes(b"".join(ADAPTER.pack(tensor)))
    ADAPTER.unpack(body, max_bytes=MAX).zero_()
    assert torch.equal(ADAPTER.unpack(body, max_bytes=MAX), tensor)


def test_what_is_sent_is_the_values_only() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    got = through(parameter)
    assert (type(got), got.requires_grad, got.tolist()) == (torch.Tensor, False, [[1.0, 1.0], [1.0, 1.0]])
    assert through(torch.ones(3).expand(2, 3)).tolist() == [[1.0] * 3] * 2
    assert through(torch._neg_view(torch.ones(2))).tolist() == [-1.0, -1.0]


def test_numpy_and_torch_understand_each_other() -> None:
    array = np.arange(6, dtype="float32").reshape(2, 3)
    numpy_adapter = adapter_for(np.ndarray)
    assert torch.equal(ADAPTER.unpack(b"".join(numpy_adapter.pack(array)), max_bytes=MAX), torch.from_numpy(array))
    got = numpy_adapter.unpack(b"".join(ADAPTER.pack(torch.from_numpy(array))), max_bytes=MAX)
    np.testing.assert_array_equal(got, array)
    with pytest.raises(RemoteProtocolError, match="numpy has no bfloat16"):
        numpy_adapter.unpack(b"".join(ADAPTER.pack(torch.ones(1, dtype=torch.bfloat16))), max_bytes=MAX)


def test_what_is_not_sent() -> None:
    for tensor in (
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.uint16),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros((1,) * 9),
    ):
        with pytest.raises(LocalProtocolError, match="is not sent"):
            ADAPTER.pack(tensor)
    with pytest.raises(LocalProtocolError, match="bf16 is for float32 and float64"):
        ADAPTER.pack(Coded(torch.ones(2, dtype=torch.bfloat16), Codec.BF16))
    for value in ([1.0], np.ones(2), Coded(np.ones(2), Codec.RAW)):
        assert not ADAPTER.accepts(value)


def test_hostile_bodies() -> None:
    body = b"".join(ADAPTER.pack(torch.ones(100)))
    for wrong in (b"", body[:-1], body + b"x", body[:7], body.replace(b"float32", b"float33")):
        with pytest.raises(RemoteProtocolError):
            ADAPTER.unpack(wrong, max_bytes=MAX)
    with pytest.raises(RemoteProtocolError, match="allowed are 399"):
        ADAPTER.unpack(body, max_bytes=399)
