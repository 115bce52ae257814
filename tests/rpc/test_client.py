"""A client in one call: addresses are checked, answers come, and errors are the plain ones."""

from __future__ import annotations

import pytest
import trio

from mesh.client import connect, parse_peers
from mesh.errors import ConfigError, DialFailed, RemoteFailure
from mesh.identity import PeerKey
from mesh.peer import PeerInfo

from .test_over_data import BulkServicer, Node, running
from .test_rpc import EchoServicer


async def test_a_client_calls_and_streams() -> None:
    server = Node("server")
    async with running(server):
        async with connect(server.net.local.multiaddrs(), identity=PeerKey.dev("client")) as client:
            stub = client.rpc.stub(BulkServicer, client.peers[0])
            assert await stub.rpc_echo(bytes(300_000)) == bytes(300_000)
            async with stub.rpc_count() as call:
                await call.send(bytes(1 << 20))
                assert await call.result() == b"1048576"
            assert client.rpc.metrics.data_opened == 1


async def test_errors_come_out_bare() -> None:
    server = Node("server")
    async with running(server):
        with pytest.raises(RemoteFailure, match="unknown-method"):
            async with connect([server.net.local]) as client:
                await client.rpc.stub(EchoServicer, client.peers[0]).rpc_echo(
                    EchoServicer.methods["echo"].request.type()
                )
        with pytest.raises(ZeroDivisionError):
            async with connect([server.net.local]):
                raise ZeroDivisionError
    with trio.fail_after(20), pytest.raises(DialFailed):
        async with connect([PeerInfo.parse(f"/ip4/127.0.0.1/tcp/1/p2p/{server.id}")]) as client:
            await client.rpc.stub(BulkServicer, server.id).rpc_echo(b"")


@pytest.mark.parametrize("texts", [[], [""], ["x"], ["/ip4/127.0.0.1/tcp/1"]])
def test_addresses_that_are_none(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--peers"):
        parse_peers(texts, flag="--peers")
