"""RPC over the real network on loopback: unary calls, large bodies, a restart of the answerer, hostile bytes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from mesh.auth.authorizer import Everyone
from mesh.errors import NetworkError
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.rpc.config import RPC_PROTOCOL
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import Servicer

from .test_rpc import Echo, EchoServicer, ToolServicer, Wait

WAIT_S = 30.0  # a bound on the whole test, far above what it takes


def make(name: str, *servicers: Servicer, listen: str = "/ip4/127.0.0.1/tcp/0") -> Rpc:
    net = Libp2pNetwork(PeerKey.dev(name), Libp2pConfig(listen=(listen,)))
    rpc = Rpc(net, Everyone(), rng=random.Random(1))
    for servicer in servicers:
        rpc.serve(servicer)
    return rpc


@asynccontextmanager
async def running(rpc: Rpc) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(rpc.net.run)
        await nursery.start(rpc.run)
        yield
        nursery.cancel_scope.cancel()


async def test_echo_large_bodies_and_cancellation() -> None:
    tools = ToolServicer()
    server, client = make("server", tools, EchoServicer()), make("client")
    with trio.fail_after(WAIT_S):
        async with running(server), running(client):
            client.net.learn(server.net.local)
            peer = server.net.local.peer_id
            assert await client.call(EchoServicer.rpc_echo, peer, Echo(text="hi")) == Echo(text="hi")
            blob = random.Random(5).randbytes(4 << 20)
            assert (await client.stub(ToolServicer, peer).rpc_big(Echo(blob=blob))).blob == blob
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.stub(ToolServicer, peer).rpc_wait, Wait(seconds=25.0))
                await tools.started.wait()
                nursery.cancel_scope.cancel()
            await tools.cancelled.wait()
            assert client.metrics.channels_opened == 1
            assert client.metrics.violations == server.metrics.violations == 0


async def test_calls_go_on_after_the_server_restarts() -> None:
    client = make("client")
    with trio.fail_after(WAIT_S):
        async with running(client):
            listen = "/ip4/127.0.0.1/tcp/0"
            for _ in range(2):
                server = make("server", EchoServicer(), listen=listen)
                async with running(server):
                    client.net.learn(server.net.local)
                    listen = str(server.net.local.addrs[0])
                    stub = client.stub(EchoServicer, server.net.local.peer_id)
                    assert (await stub.rpc_echo(Echo(text="hi"))).text == "hi"
                with pytest.raises(NetworkError):
                    await stub.rpc_echo(Echo(text="nobody"))
            assert client.metrics.channels_opened == 2


async def test_garbage_costs_the_stranger_its_channel_only() -> None:
    server, client, attacker = make("server", EchoServicer()), make("client"), make("attacker")
    with trio.fail_after(WAIT_S):
        async with running(server), running(client), running(attacker):
            for rpc in (client, attacker):
                rpc.net.learn(server.net.local)
            stream = await attacker.net.open(server.net.local.peer_id, RPC_PROTOCOL)
            with pytest.raises(NetworkError):
                await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
                while await stream.receive_some():
                    pass
                raise NetworkError("ended in order")
            assert server.standings.violations(attacker.net.local.peer_id) == 1
            await client.call(EchoServicer.rpc_echo, server.net.local.peer_id, Echo())
