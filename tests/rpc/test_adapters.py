"""Adapters: which types travel, and numpy arrays through real calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import trio
from pydantic import BaseModel, ConfigDict
from trio.testing import MockClock

from mesh.errors import LocalProtocolError, RemoteFailure, RemoteProtocolError
from mesh.rpc import adapters
from mesh.rpc.adapters import Adapter, Coded, adapter_for, coded, json_form, register
from mesh.rpc.codec import Codec
from mesh.rpc.frame import Shape
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.rpc.tensor import pack_tensor

from .conftest import Nodes

MAX = 1 << 20


class Pair(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = 0


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Celsius:
    def __init__(self, degrees: int) -> None:
        self.degrees = degrees


class CelsiusAdapter:
    type = Celsius

    def accepts(self, value: object) -> bool:
        return isinstance(value, Celsius)

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (value.degrees.to_bytes(2, "little", signed=True),)

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> Celsius:
        if len(body) != 2:
            raise RemoteProtocolError(f"a temperature has 2 bytes, not {len(body)}")
        return Celsius(int.from_bytes(body, "little", signed=True))


@pytest.fixture
def only_built_in() -> Iterator[None]:
    kept = dict(adapters._registered)
    yield
    adapters._registered.clear()
    adapters._registered.update(kept)
    adapters._adapter_for.cache_clear()


def test_hints_have_adapters() -> None:
    for hint, kind in (
        (Pair, Pair),
        (bytes, bytes),
        (np.ndarray, np.ndarray),
        (npt.NDArray[Any], np.ndarray),
        (npt.NDArray[np.float32], np.ndarray),
        (np.ndarray[Any, np.dtype[np.int8]], np.ndarray),
    ):
        adapter = adapter_for(hint)
        assert adapter.type is kind
        assert adapter_for(hint) is adapter
    for hint in (int, str, bytearray, None, list[int], list[bytes], Pair(), [], "Pair", Pair | None, Celsius):
        with pytest.raises(LocalProtocolError, match=r"a message is a pydantic model, bytes, np\.ndarray"):
            adapter_for(hint)
    with pytest.raises(LocalProtocolError, match="allows extra fields"):
        adapter_for(Open)


def test_registering(only_built_in: None) -> None:
    adapter = CelsiusAdapter()
    register(adapter)
    register(adapter)  # once more is nothing new
    assert adapter_for(Celsius) is adapter
    with pytest.raises(LocalProtocolError, match="Celsius has an adapter already"):
        register(CelsiusAdapter())
    assert adapter_for(Celsius) is adapter
    with pytest.raises(LocalProtocolError, match=r"np\.ndarray, .*Celsius, not"):
        adapter_for(int)
    for kind in (bytes, Pair, np.ndarray):
        other: Any = CelsiusAdapter()
        other.type = kind
        with pytest.raises(LocalProtocolError, match="has an adapter already"):
            register(other)


def through(adapter: Adapter, value: Any, *, max_bytes: int = MAX) -> Any:
    assert adapter.accepts(value)
    return adapter.unpack(bytearray(b"".join(adapter.pack(value))), max_bytes=max_bytes)


def test_an_array_may_bring_its_codec() -> None:
    adapter = adapter_for(np.ndarray)
    array = np.linspace(-1, 1, 200, dtype="float32")
    np.testing.assert_array_equal(through(adapter, array), array)
    for codec in Codec:
        np.testing.assert_allclose(through(adapter, Coded(array, codec)), array, atol=0.005)
    assert coded(array, Codec.INT8) == Coded(array, Codec.INT8)  # type: ignore[comparison-overlap]
    assert not adapter.accepts([1.0])
    assert not adapter.accepts(Coded([1.0], Codec.RAW))
    assert not adapter.accepts(np.float32(1))
    assert not adapter_for(Pair).accepts(Coded(Pair(), Codec.RAW))


def test_an_alias_says_which_dtypes_may_come() -> None:
    single = adapter_for(npt.NDArray[np.float32])
    floats = adapter_for(npt.NDArray[np.floating[Any]])
    anything = adapter_for(npt.NDArray[Any])
    for name, taken in (("float32", (True, True)), ("float64", (False, True)), ("int32", (False, False))):
        array = np.zeros(3, name)
        body = b"".join(pack_tensor(array))
        through(anything, array)
        for adapter, is_taken in zip((single, floats), taken, strict=True):
            if is_taken:
                assert through(adapter, array).dtype == name
                continue
            with pytest.raises(LocalProtocolError, match="the method has arrays of float"):
                adapter.pack(array)
            with pytest.raises(RemoteProtocolError, match=f"arrays of float.*not {name}"):
                adapter.unpack(body, max_bytes=MAX)


def test_bfloat16_is_no_numpy_array() -> None:
    body = b"".join(pack_tensor(np.zeros(2, "uint16"), dtype="bfloat16"))
    with pytest.raises(RemoteProtocolError, match="numpy has no bfloat16"):
        adapter_for(np.ndarray).unpack(body, max_bytes=MAX)


def test_only_models_have_a_json_form() -> None:
    assert json_form(adapter_for(Pair)).type is Pair
    for hint in (np.ndarray, bytes):
        with pytest.raises(RemoteFailure, match="has no JSON form"):
            json_form(adapter_for(hint))


# --- through calls --------------------------------------------------------------------------------------------------


class ArrayServicer(Servicer):
    protocol = "/mesh/arrays/1.0.0"

    @method(timeout_s=600.0)
    async def rpc_double(self, request: npt.NDArray[np.float32], ctx: RpcContext) -> npt.NDArray[np.float32]:
        """In place: what came is the method's own."""
        request *= 2
        return request

    @method(timeout_s=600.0)
    async def rpc_shrink(self, request: npt.NDArray[np.float32], ctx: RpcContext) -> npt.NDArray[np.float32]:
        return coded(request, Codec.INT8)

    @method(timeout_s=600.0)
    async def rpc_running_sum(
        self, requests: AsyncIterator[npt.NDArray[np.float32]], ctx: RpcContext
    ) -> AsyncIterator[npt.NDArray[np.float32]]:
        total: npt.NDArray[np.float32] | None = None
        async for array in requests:
            total = array if total is None else total + array
            yield coded(total, Codec.INT8)

    @method(max_request_bytes=2000, max_response_bytes=2000)
    async def rpc_small(self, request: np.ndarray[Any, Any], ctx: RpcContext) -> np.ndarray[Any, Any]:
        return coded(np.zeros(int(request[0]), "float64"), Codec.ZSTD)

    @method()
    async def rpc_wrong(self, request: Pair, ctx: RpcContext) -> npt.NDArray[np.float32]:
        return np.zeros(1, "int64") if request.n else [1.0]  # type: ignore[return-value]


def stub_of(server: Rpc, client: Rpc) -> ArrayServicer:
    return client.stub(ArrayServicer, server.net.local.peer_id)


@pytest.mark.parametrize("who", [0, 1])
async def test_arrays_both_ways(nodes: Nodes, autojump_clock: MockClock, who: int) -> None:
    rng = np.random.default_rng(3)
    async with nodes([ArrayServicer()], []) as both:
        stub = stub_of(both[0], both[who])
        for shape in ((), (0, 3), (5,), (300, 1000)):
            array = rng.standard_normal(shape).astype("float32")
            for codec in Codec:
                sent = array.copy()
                got = await stub.rpc_double(coded(sent, codec))
                np.testing.assert_allclose(got, 2 * array, atol=0.05, rtol=0.01)
                assert got.shape == shape
            np.testing.assert_allclose(await stub.rpc_shrink(array), array, atol=0.03)
        assert not both[0].metrics.violations


async def test_a_stream_of_arrays_in_int8(nodes: Nodes, autojump_clock: MockClock) -> None:
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal((64, 512)).astype("float32") for _ in range(20)]
    async with nodes([ArrayServicer()], []) as (server, client):
        async with stub_of(server, client).rpc_running_sum() as call:

            async def send() -> None:
                for array in arrays:
                    await call.send(coded(array, Codec.INT8))
                await call.end()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                got = [total async for total in call]
        assert len(got) == len(arrays)
        for answer, total in zip(got, np.cumsum(arrays, axis=0), strict=True):
            assert np.linalg.norm(answer - total) < 0.01 * np.linalg.norm(total)
        assert server.metrics.buffered_bytes == 0


async def test_wrong_arrays_are_refused(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([ArrayServicer()], []) as (server, client):
        stub = stub_of(server, client)
        with pytest.raises(LocalProtocolError, match="takes a ndarray, not a list"):
            await stub.rpc_double([1.0])  # type: ignore[arg-type]
        with pytest.raises(LocalProtocolError, match="arrays of float32, not int64"):
            await stub.rpc_double(np.zeros(1, "int64"))  # type: ignore[arg-type]
        with pytest.raises(LocalProtocolError, match="use bf16"):
            await stub.rpc_double(coded(np.full(1, 1e6, "float32"), Codec.FP16))
        for n in (0, 1):
            with pytest.raises(RemoteFailure, match="internal"):
                await stub.rpc_wrong(Pair(n=n))
        # An array of no more than the limit, whatever its codec makes of it: on either side.
        assert (await stub.rpc_small(np.array([250]))).size == 250
        with pytest.raises(RemoteFailure, match=r"bad-request.*allowed are 2000"):
            await stub.rpc_small(coded(np.zeros(251, "float64"), Codec.ZSTD))
        with pytest.raises(RemoteProtocolError, match="allowed are 2000"):
            await stub.rpc_small(np.array([251]))


async def test_arrays_have_no_json_form(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([ArrayServicer()], []) as (server, client):
        peer = server.net.local.peer_id
        with pytest.raises(RemoteFailure, match="no JSON form"):
            async with client.open_json(
                peer, ArrayServicer.protocol, "double", "[1]", Shape.ONE, timeout_s=5.0
            ) as call:
                await call.result()
