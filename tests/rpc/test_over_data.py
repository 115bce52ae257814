"""Calls move to a data connection by themselves, and back to the libp2p stream where there is none."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from mesh.auth.authorizer import Authorizer, Everyone, PeerClass
from mesh.errors import NotAuthorized, StreamBroken
from mesh.identity import PeerKey
from mesh.net.data import DataConfig, DataPlane
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerID
from mesh.rpc.config import RpcConfig
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method

from .test_streams import Gate

WAIT_S = 30.0  # a bound on a whole test, far above what it takes


class BulkServicer(Servicer):
    protocol = "/mesh/bulk/1.0.0"

    @method(max_request_bytes=8 << 20, max_response_bytes=8 << 20)
    async def rpc_echo(self, request: bytes, ctx: RpcContext) -> bytes:
        return request

    @method(timeout_s=60.0)
    async def rpc_count(self, requests: AsyncIterator[bytes], ctx: RpcContext) -> bytes:
        total = 0
        async for part in requests:
            total += len(part)
        return str(total).encode()

    @method(timeout_s=60.0)
    async def rpc_forever(self, request: bytes, ctx: RpcContext) -> AsyncIterator[bytes]:
        while True:
            yield request


class Node:
    def __init__(
        self, name: str, *, authorizer: Authorizer | None = None, listens: bool = True, config: RpcConfig | None = None
    ) -> None:
        self.net = Libp2pNetwork(PeerKey.dev(name), Libp2pConfig())
        self.data = DataPlane(
            self.net, hosts=self.net.listen_hosts if listens else (), config=DataConfig(handshake_timeout_s=2.0)
        )
        self.rpc = Rpc(self.net, authorizer or Everyone(), rng=random.Random(1), data=self.data, config=config)
        self.rpc.serve(BulkServicer())

    @property
    def id(self) -> PeerID:
        return self.net.local.peer_id


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.net.run)
                await nursery.start(node.data.run)
                await nursery.start(node.rpc.run)
                node.net.learn(nodes[0].net.local)
            yield
            nursery.cancel_scope.cancel()


async def test_a_peer_that_is_called_often_gets_a_data_connection() -> None:
    server, client = Node("server"), Node("client")
    async with running(server, client):
        stub = client.rpc.stub(BulkServicer, server.id)
        assert await stub.rpc_echo(b"first") == b"first"
        assert client.rpc.metrics.data_opened == 0  # lazily
        while not client.rpc.metrics.data_opened:
            await stub.rpc_echo(b"more")
        before = client.rpc._calling[server.id].calls_made
        blob = random.Random(3).randbytes(5 << 20)
        assert await stub.rpc_echo(blob) == blob
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(stub.rpc_echo, b"x" * 1000)
        assert client.rpc._calling[server.id].calls_made == before
        assert server.data.count(client.id) == 1


async def test_a_stream_gets_one_at_once() -> None:
    server, client = Node("server"), Node("client")
    async with running(server, client):
        async with client.rpc.stub(BulkServicer, server.id).rpc_count() as call:
            for _ in range(16):
                await call.send(bytes(1 << 20))
            assert await call.result() == str(16 << 20).encode()
        assert client.rpc.metrics.data_opened == 1
        assert not client.rpc._calling  # nothing went over the libp2p stream


async def test_without_a_data_connection_all_goes_over_libp2p() -> None:
    server, client = Node("server", listens=False), Node("client")
    async with running(server, client):
        stub = client.rpc.stub(BulkServicer, server.id)
        async with stub.rpc_count() as call:
            for _ in range(4):
                await call.send(bytes(1 << 20))
            assert await call.result() == str(4 << 20).encode()
        for _ in range(20):
            assert await stub.rpc_echo(bytes(100_000)) == bytes(100_000)
        assert client.rpc.metrics.data_opened == 0
        assert client.rpc._data_failed[server.id][0] == 1  # tried once, then left alone for a while
        assert client.rpc.metrics.errors_out == {}


async def test_a_lost_data_connection_costs_no_call_that_was_not_sent() -> None:
    server, client = Node("server"), Node("client")
    async with running(server, client):
        stub = client.rpc.stub(BulkServicer, server.id)
        await stub.rpc_echo(bytes(200_000))
        assert client.rpc.metrics.data_opened == 1
        await server.data.close_peer(client.id)
        while client.data.count():  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert await stub.rpc_echo(b"goes on") == b"goes on"
        assert client.rpc.metrics.errors_out == {}
        assert not server.rpc.metrics.violations


async def test_an_idle_data_connection_is_closed_and_opened_again() -> None:
    server, client = Node("server"), Node("client", config=RpcConfig(data_idle_s=0.2))
    async with running(server, client):
        stub = client.rpc.stub(BulkServicer, server.id)
        await stub.rpc_echo(bytes(200_000))
        while server.data.count():  # noqa: ASYNC110
            await trio.sleep(0.02)
        await stub.rpc_echo(bytes(200_000))
        assert client.rpc.metrics.data_opened == 2


async def test_a_member_that_is_removed_loses_streams_and_data_connections_and_is_told_why() -> None:
    gate = Gate()
    server, client = Node("server", authorizer=gate), Node("client")
    async with running(server, client):
        stub = client.rpc.stub(BulkServicer, server.id)
        with pytest.raises(NotAuthorized, match="was removed"):
            async with stub.rpc_forever(bytes(100_000)) as answers:
                async for _ in answers:
                    if not gate.is_shut:
                        assert server.data.count(client.id) == 1
                        gate.shut()
        while server.data.count():  # noqa: ASYNC110
            await trio.sleep(0.02)
        with pytest.raises(NotAuthorized, match="was removed"):
            await stub.rpc_echo(b"x")


async def test_no_data_connection_is_asked_of_who_is_no_member() -> None:
    class Choosy(Everyone):
        async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            raise NotAuthorized("not-registered", "a stranger")

    server, client = Node("server"), Node("client", authorizer=Choosy())
    async with running(server, client):
        assert await client.rpc.stub(BulkServicer, server.id).rpc_echo(bytes(200_000)) == bytes(200_000)
        assert client.rpc.metrics.data_opened == 0
        assert not server.data.count()


async def test_garbage_on_a_data_connection_suspends_its_sender() -> None:
    server, attacker, honest = Node("server"), Node("attacker"), Node("honest")
    async with running(server, attacker, honest):
        stream = await attacker.data.open(server.id)
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(StreamBroken):
            while await stream.receive_some():
                pass
            raise StreamBroken("ended in order")
        assert server.rpc.standings.violations(attacker.id) == 1
        assert await honest.rpc.stub(BulkServicer, server.id).rpc_echo(b"x") == b"x"
