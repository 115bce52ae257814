"""How long does a typed call take over libp2p, and how fast are large bodies?

Both ends run in one process on loopback (noise, yamux), so CPU-ms are those of both. Calls go one after the other
unless said. `python benchmarks/rpc_roundtrip.py [calls]`
"""

from __future__ import annotations

import math
import random
import sys
import time

import trio
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import Everyone
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method

MIB = 1 << 20


class Blob(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    blob: bytes


class BlobServicer(Servicer):
    protocol = "/bench/blob/1.0.0"

    @method(max_request_bytes=5 * MIB, max_response_bytes=5 * MIB, timeout_s=60.0)
    async def rpc_echo(self, request: Blob, ctx: RpcContext) -> Blob:
        return request

    @method(max_request_bytes=5 * MIB, timeout_s=60.0)
    async def rpc_take(self, request: Blob, ctx: RpcContext) -> Blob:
        return Blob(blob=b"")


async def in_sequence(name: str, rpc: Rpc, servicer_method, peer, blob: bytes, calls: int, *, moved: int) -> None:
    times_ms = []
    cpu = time.process_time()
    begin = time.perf_counter()
    for _ in range(calls):
        start = time.perf_counter()
        await rpc.call(servicer_method, peer, Blob(blob=blob))
        times_ms.append((time.perf_counter() - start) * 1e3)
    wall = time.perf_counter() - begin
    cpu_ms = (time.process_time() - cpu) * 1e3
    times_ms.sort()
    p99 = times_ms[min(calls - 1, math.ceil(calls * 0.99))]
    line = f"{name:24} p50 {times_ms[calls // 2]:8.2f} ms  p99 {p99:8.2f} ms  {cpu_ms / calls:8.2f} CPU-ms/call"
    if moved >= MIB:
        line += f"  {calls * moved / wall / 1e6:6.1f} MB/s  {cpu_ms / (calls * moved / 1e6):5.1f} CPU-ms/MB"
    print(line)


async def at_once(rpc: Rpc, peer, calls: int, tasks: int) -> None:
    async def worker() -> None:
        for _ in range(calls // tasks):
            await rpc.call(BlobServicer.rpc_echo, peer, Blob(blob=bytes(64)))

    begin, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(worker)
    wall, cpu_ms = time.perf_counter() - begin, (time.process_time() - cpu) * 1e3
    print(f"{f'64 B echo, {tasks} at once':24} {calls / wall:8.0f} calls/s {cpu_ms / calls:33.2f} CPU-ms/call")


async def main(calls: int) -> None:
    server, client = (
        Rpc(Libp2pNetwork(PeerKey.generate(), Libp2pConfig()), Everyone(), rng=random.Random(1)) for _ in range(2)
    )
    server.serve(BlobServicer())
    async with trio.open_nursery() as nursery:
        for rpc in (server, client):
            await nursery.start(rpc.net.run)
            await nursery.start(rpc.run)
        client.net.learn(server.net.local)
        peer = server.net.local.peer_id
        await in_sequence("warm-up", client, BlobServicer.rpc_echo, peer, bytes(64), 50, moved=64)
        await in_sequence("64 B echo", client, BlobServicer.rpc_echo, peer, bytes(64), calls, moved=64)
        for tasks in (8, 64):
            await at_once(client, peer, calls, tasks)
        few = max(10, calls // 50)
        await in_sequence("1 MiB there", client, BlobServicer.rpc_take, peer, bytes(MIB), few, moved=MIB)
        await in_sequence("1 MiB there and back", client, BlobServicer.rpc_echo, peer, bytes(MIB), few, moved=2 * MIB)
        await in_sequence("4 MiB there", client, BlobServicer.rpc_take, peer, bytes(4 * MIB), few // 2, moved=4 * MIB)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
