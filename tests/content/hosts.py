"""Nodes that know each other and serve blobs over a simulated network, some of them badly."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from mesh.auth.authorizer import Everyone
from mesh.content import (
    ChunkReply,
    ChunkRequest,
    Content,
    ContentConfig,
    ContentServicer,
    ManifestReply,
    ManifestRequest,
    inline,
)
from mesh.content.service import Serves
from mesh.identity import PeerKey
from mesh.peer import PeerID
from mesh.rpc.rpc import Rpc
from mesh.testing.network import SimNetwork
from mesh.testing.simulation import run_sim

MIB = 1024 * 1024


class Hosts:
    """One simulated network."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self.nursery, self.dir = nursery, directory
        self.sim = SimNetwork(seed=1, latency_s=0.01)
        self.rpcs: list[Rpc] = []

    async def add(
        self, config: ContentConfig | None = None, *, serves: Callable[[Content], Serves] | None = None, **more: Any
    ) -> Content:
        """A node; what it serves goes through `serves`."""
        net = self.sim.node(PeerKey.dev(f"content {len(self.rpcs)}"))
        rpc = Rpc(net, Everyone(), rng=random.Random(1))
        for other in self.rpcs:
            other.net.learn(net.local)
            net.learn(other.net.local)
        content = Content(self.dir / str(len(self.rpcs)), rpc, config, **{"offload": inline, **more})
        rpc.serve(ContentServicer(serves(content) if serves else content))
        self.rpcs.append(rpc)
        await self.nursery.start(net.run)
        await self.nursery.start(rpc.run)
        return content

    def again(self, content: Content) -> Content:
        """The same node's blobs after a restart."""
        return Content(content.directory, content.rpc, content.config, offload=inline)


class Counting:
    """Serves honestly and notes what was asked."""

    def __init__(self, content: Serves) -> None:
        self.content = content
        self.manifests = 0
        self.chunks: list[int] = []

    async def serve_manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
        self.manifests += 1
        return await self.manifest(request, remote)

    async def serve_chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        self.chunks.append(request.index)
        return await self.chunk(request, remote)

    async def manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
        """To be overridden."""
        return await self.content.serve_manifest(request, remote)

    async def chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        """To be overridden."""
        return await self.content.serve_chunk(request, remote)


class Corrupt(Counting):
    """One bit of every chunk is wrong."""

    async def chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        data = bytearray((await super().chunk(request, remote)).data)
        data[len(data) // 2] ^= 1
        return ChunkReply(data=bytes(data))


class Stalled(Counting):
    """Has the manifest and never sends a chunk."""

    async def chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        await trio.sleep_forever()
        raise AssertionError


class Slow(Counting):
    """One chunk a second."""

    lock: trio.Lock | None = None

    async def chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        self.lock = self.lock or trio.Lock()
        async with self.lock:
            await trio.sleep(1.0)
        return await super().chunk(request, remote)


def peer(content: Content) -> PeerID:
    """Who it is."""
    return content.rpc.net.local.peer_id


def in_hosts(main: Callable[[Hosts], Awaitable[None]], tmp_path: Path) -> None:
    """Run a test on a network of its own."""

    async def bounded() -> None:
        async with trio.open_nursery() as nursery:
            await main(Hosts(nursery, tmp_path))
            nursery.cancel_scope.cancel()

    run_sim(bounded, 1)


def alone(directory: Path, config: ContentConfig | None = None, **more: Any) -> Content:
    """Blobs of a node that talks to nobody."""
    net = SimNetwork(seed=1).node(PeerKey.dev("alone"))
    return Content(directory, Rpc(net, Everyone(), rng=random.Random(1)), config, **{"offload": inline, **more})


def blob(size: int, seed: int = 1) -> bytes:
    """Bytes that look like nothing else."""
    return random.Random(seed).randbytes(size)
