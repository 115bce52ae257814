"""Calls over a simulated network: results, errors, limits, deadlines, cancellation."""

from __future__ import annotations

import enum
import logging

import pytest
import trio
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import PeerClass
from mesh.errors import (
    DialFailed,
    LocalProtocolError,
    NotAuthorized,
    RecordRejected,
    RemoteFailure,
    RemoteProtocolError,
    RequestTimeout,
    StreamBroken,
)
from mesh.peer import PeerID
from mesh.rpc.config import RpcConfig
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.testing.network import SimNetwork

from .conftest import Nodes, running

pytestmark = pytest.mark.usefixtures("autojump_clock")


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Color(enum.Enum):
    RED = "red"


class Echo(Message):
    text: str = ""
    blob: bytes = b""
    parts: tuple[bytes, ...] = ()
    color: Color | None = None


class Wait(Message):
    seconds: float


class Name(Message):
    name: str


class EchoServicer(Servicer):
    protocol = "/mesh/echo/1.0.0"

    def __init__(self) -> None:
        self.contexts: list[RpcContext] = []

    async def rpc_echo(self, request: Echo, ctx: RpcContext) -> Echo:
        self.contexts.append(ctx)
        return request


async def test_echo(nodes: Nodes) -> None:
    servicer = EchoServicer()
    async with nodes([servicer], []) as (server, client):
        peer = server.net.local.peer_id
        sent = Echo(text="hällo", blob=b"\x00\xff", parts=(b"a", b""), color=Color.RED)
        assert await client.stub(EchoServicer, peer).echo(sent) == sent
        assert await client.call(EchoServicer.rpc_echo, peer, sent) == sent
    ctx = servicer.contexts[0]
    assert ctx.remote == client.net.local.peer_id
    assert ctx.peer_class is PeerClass.MEMBER
