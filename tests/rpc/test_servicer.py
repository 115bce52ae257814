"""Servicer classes are checked where they are defined."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.errors import LocalProtocolError
from mesh.identity import PeerKey
from mesh.rpc.frame import Shape
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import MethodLimits, Repeat, RpcContext, Servicer, method
from mesh.testing.network import SimNetwork


class In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Good(Servicer):
    protocol = "/mesh/good/1.0.0"

    async def rpc_one(self, request: In, ctx: RpcContext) -> Out:
        return Out()

    @method(least=PeerClass.GUEST, timeout_s=1.5, max_request_bytes=1, max_response_bytes=2, max_concurrent=3)
    async def rpc_two(self, request: Out, ctx: RpcContext) -> In:
        return In()


def test_methods_come_from_type_hints() -> None:
    assert list(Good.methods) == ["one", "two"]
    one, two = Good.methods.values()
    assert (one.request.type, one.response.type, one.limits) == (In, Out, MethodLimits())
    assert (two.request.type, two.response.type) == (Out, In)
    assert two.limits == MethodLimits(
        least=PeerClass.GUEST,
        timeout_s=1.5,
        max_request_bytes=1,
        max_response_bytes=2,
        max_concurrent=3,
        max_concurrent_per_peer=1,
    )
    assert one.shape is Shape.ONE
    assert str(one) == "/mesh/good/1.0.0 one"


def test_methods_are_inherited() -> None:
    class Better(Good):
        async def rpc_one(self, request: Out, ctx: RpcContext) -> Out:  # type: ignore[override]
            return Out()

    assert Better.methods["one"].request.type is Out
    assert Better.methods["two"].request.type is Out
    assert Better.methods["two"].limits == Good.methods["two"].limits
    assert Good.methods["one"].request.type is In


def test_a_servicer_without_protocol() -> None:
    for text in ("", "echo", "/Echo/1", "/echo", "/echo/1 0", "/echo/1", "/" + "e" * 200 + "/1.0.0"):
        with pytest.raises(LocalProtocolError, match="write it like"):
            type("Bad", (Servicer,), {"protocol": text, "rpc_one": Good.rpc_one})


async def _no_hints(self, request, ctx):  # type: ignore[no-untyped-def]
    return In()


async def _no_return(self: Servicer, request: In, ctx: RpcContext):  # type: ignore[no-untyped-def]
    return In()


async def _no_model(self: Servicer, request: int, ctx: RpcContext) -> In:
    return In()


async def _loose(self: Servicer, request: Loose, ctx: RpcContext) -> In:
    return In()


async def _no_ctx(self: Servicer, request: In) -> In:
    return In()


async def _wrong_ctx(self: Servicer, request: In, ctx: int) -> In:
    return In()


async def _unresolvable(self: Servicer, request: Missing, ctx: RpcContext) -> In:  # type: ignore[name-defined]  # noqa: F821
    return In()


def _not_async(self: Servicer, request: In, ctx: RpcContext) -> In:
    return In()


async def _list_of_answers(self: Servicer, request: In, ctx: RpcContext) -> AsyncIterator[In]:
    raise NotImplementedError


@method(repeat=Repeat.SAFE)
async def _repeated_stream(self: Servicer, request: In, ctx: RpcContext) -> AsyncIterator[In]:
    yield In()


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (_no_hints, "a pydantic model"),
        (_no_return, "the return type:"),
        (_no_model, "a pydantic model"),
        (_loose, "allows extra"),
        (_no_ctx, r"takes \(self, request, ctx\)"),
        (_wrong_ctx, "must be an RpcContext"),
        (_unresolvable, "Missing"),
        (_not_async, "async def"),
        (_list_of_answers, "yields its answers"),
        (_repeated_stream, "cannot be repeated"),
    ],
)
def test_methods_that_cannot_be_served(function: object, match: str) -> None:
    with pytest.raises(LocalProtocolError, match=match):
        type("Bad", (Servicer,), {"protocol": "/mesh/bad/1.0.0", "rpc_it": function})


def test_impossible_limits() -> None:
    for limits in (
        {"timeout_s": 0.0},
        {"timeout_s": 1e9},
        {"max_request_bytes": 0},
        {"max_response_bytes": 1 << 40},
    ):
        with pytest.raises(LocalProtocolError):
            method(**limits)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError):
        method(max_concurrent=0)


def test_serving_twice_or_nothing() -> None:
    rpc = Rpc(SimNetwork(seed=0).node(PeerKey.dev("a")), Everyone(), rng=random.Random(0))
    rpc.serve(Good())
    with pytest.raises(LocalProtocolError, match="served already"):
        rpc.serve(Good())
    with pytest.raises(LocalProtocolError, match="has no rpc_ methods"):
        rpc.serve(Servicer())
