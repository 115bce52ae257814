"""mesh: a Servicer and its stub, with data connections. In the mode `libp2p` without: calls go over libp2p alone."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import trio
from ops import MIB, answer, check, role, say
from trio_lines import at_once, read_line

from mesh.auth.authorizer import Everyone
from mesh.identity import PeerKey
from mesh.net.data import DataPlane
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.config import RpcConfig
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method

CHUNKS = {"messages of 1 MiB": MIB}
LIMIT = 5 * MIB
# The rate at which one peer may call is a limit of a node's, not of its speed.
UNHURRIED = RpcConfig(calls_per_s=1e6, calls_per_s_per_peer=1e6)


class BenchServicer(Servicer):
    """What is called."""

    protocol = "/bench/peers/1.0.0"

    @method(timeout_s=60.0)
    async def rpc_echo(self, request: bytes, ctx: RpcContext) -> bytes:
        return request

    @method(max_request_bytes=LIMIT, timeout_s=60.0)
    async def rpc_take(self, request: bytes, ctx: RpcContext) -> bytes:
        return len(request).to_bytes(8, "big")

    @method(max_request_bytes=LIMIT, timeout_s=120.0)
    async def rpc_upload(self, requests: AsyncIterator[bytes], ctx: RpcContext) -> bytes:
        size = 0
        async for request in requests:
            size += len(request)
        return size.to_bytes(8, "big")


class Caller:
    """See ops.Caller."""

    read_line = staticmethod(read_line)
    at_once = staticmethod(at_once)

    def __init__(self, rpc: Rpc, data: DataPlane | None, peer: PeerID) -> None:
        self.rpc = rpc
        self.data = data
        self.peer = peer
        self.stub = rpc.stub(BenchServicer, peer)

    async def echo(self, body: bytes, worker: int) -> None:
        check(await self.stub.rpc_echo(body), body)

    async def take(self, body: bytes) -> None:
        check(await self.stub.rpc_take(body), len(body).to_bytes(8, "big"))

    async def stream(self, chunk: bytes, chunks: int) -> None:
        async with self.stub.rpc_upload() as call:
            for _ in range(chunks):
                await call.send(chunk)
            check(await call.result(), (len(chunk) * chunks).to_bytes(8, "big"))

    def check_path(self) -> None:
        """One data connection from the first call to the last, or none where there should be none."""
        wanted = 0 if self.data is None else 1
        check(self.rpc.metrics.data_opened, wanted)
        check(self.data.count(self.peer) if self.data else 0, wanted)


async def main() -> None:
    part, address, mode = role()
    net = Libp2pNetwork(PeerKey.generate(), Libp2pConfig())
    data = None if mode == "libp2p" else DataPlane(net, hosts=net.listen_hosts)
    rpc = Rpc(net, Everyone(), config=UNHURRIED, rng=random.Random(1), data=data)
    async with trio.open_nursery() as nursery:
        if part == "server":
            rpc.serve(BenchServicer())
        await nursery.start(net.run)
        if data is not None:
            await nursery.start(data.run)
        await nursery.start(rpc.run)
        if part == "server":
            say(address=net.local.multiaddrs()[0])
            await read_line()
        else:
            info = PeerInfo.parse(address)
            net.learn(info)
            caller = Caller(rpc, data, info.peer_id)
            for _ in range(50):
                await caller.echo(bytes(64), 0)
            with trio.fail_after(10):
                while data is not None and not rpc.metrics.data_opened:  # noqa: ASYNC110 - once, before all measuring
                    await trio.sleep(0.05)
            say(what="mesh over libp2p alone" if data is None else "mesh", variants=list(CHUNKS))
            await answer(caller, CHUNKS)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
