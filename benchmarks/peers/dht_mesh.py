"""Our DHT: nodes in one trio process, each with its own host, sockets and identity. With `libp2p` as the second
argument without data connections."""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import trio
from dht_ops import LIFE_S, MANY, Script, say, timed
from trio_lines import read_line

from mesh.auth.authorizer import Everyone
from mesh.clock import SystemClock
from mesh.dht import DHT, DhtConfig, Want
from mesh.errors import MeshError
from mesh.identity import PeerKey
from mesh.kad.validator import NamespaceRule
from mesh.net.data import DataPlane
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo
from mesh.rpc.rpc import Rpc

RULES = (NamespaceRule("bench", max_value_bytes=1024, max_ttl_s=2 * LIFE_S),)


class Node:
    """One node and what stands under it."""

    def __init__(self, index: int, *, with_data: bool) -> None:
        self.key = PeerKey.dev(f"bench-{index}")
        self.net = Libp2pNetwork(self.key, Libp2pConfig(listen=("/ip4/127.0.0.1/tcp/0",)))
        self.data = DataPlane(self.net, hosts=self.net.listen_hosts) if with_data else None
        self.rpc = Rpc(self.net, Everyone(), rng=random.Random(index), data=self.data)
        self.dht = DHT(
            self.rpc,
            self.key,
            rules=RULES,
            is_member=lambda peer: True,
            position=lambda: None,
            subnet_id=1,
            genesis=b"\x00" * 32,
            config=DhtConfig(replicas=5, member_finds_per_s=100_000.0),
            clock=SystemClock(),
            rng=random.Random(index),
        )
        self.scope = trio.CancelScope()
        self.join_ms = 0.0

    async def run(self, bootstrap: list[PeerInfo], *, task_status: trio.TaskStatus[PeerInfo]) -> None:
        """Start the host, then join: only the joining is timed."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                local = await nursery.start(self.net.run)
                if self.data is not None:
                    await nursery.start(self.data.run)
                await nursery.start(self.rpc.run)
                began = time.perf_counter()
                await nursery.start(self.dht.run, bootstrap)
                self.join_ms = (time.perf_counter() - began) * 1e3
                task_status.started(local)


async def main(count: int, mode: str) -> None:
    """Build, answer."""
    script = Script(count)
    async with trio.open_nursery() as nursery:
        nodes: list[Node] = []
        bootstrap: list[PeerInfo] = []
        for index in range(count):
            nodes.append(Node(index, with_data=mode != "libp2p"))
            local = await nursery.start(nodes[-1].run, bootstrap)
            bootstrap = bootstrap or [local]
        await trio.sleep(2)
        fresh = count

        async def put() -> bool:
            owner, key, value = script.entry()
            report = await nodes[owner].dht.put(b"bench/" + key.encode(), value, ttl_s=LIFE_S)
            script.put.append((key, owner))
            return len(report.stored) >= min(5, len(script.alive) - 1)

        async def put_20() -> bool:
            owner, key, value = script.entry()
            report = await nodes[owner].dht.put(b"bench/" + key.encode(), value, ttl_s=LIFE_S, replicas=20)
            return len(report.stored) >= min(20, len(script.alive) - 1)

        async def get(want: Want) -> bool:
            getter, key = script.read()
            try:
                return len(await nodes[getter].dht.get(b"bench/" + key.encode(), want=want)) == 1
            except MeshError:
                return False

        async def put_many() -> bool:
            entries = [script.entry() for _ in range(MANY)]
            owner = entries[0][0]
            pairs = [(b"bench/" + key.encode(), value) for _, key, value in entries]
            reports = await nodes[owner].dht.put_many(pairs, ttl_s=LIFE_S)
            script.put += [(key, owner) for _, key, _ in entries]
            return all(len(report.stored) >= min(5, len(script.alive) - 1) for report in reports)

        async def get_many() -> bool:
            reads = [script.read() for _ in range(MANY)]
            found = await nodes[reads[0][0]].dht.get_many([b"bench/" + key.encode() for _, key in reads])
            return len(found) == len({key for _, key in reads})

        async def join(times: int) -> dict[str, Any]:
            nonlocal fresh
            times_ms, ok = [], 0
            for _ in range(times):
                node = Node(fresh, with_data=mode != "libp2p")
                fresh += 1
                await nursery.start(node.run, bootstrap)
                # The table holds peers that answered us or called us, and nobody else: known and verified are one.
                ok += len(node.dht.peers) >= min(20, len(script.alive) - 1)
                times_ms.append(node.join_ms)
                node.scope.cancel()
                await trio.sleep(0.2)
            return {"times_ms": times_ms, "ok": ok}

        operations = {
            "put": put,
            "put_cold": put,
            "put_20": put_20,
            "get_first": lambda: get(Want.FIRST),
            "get_latest": lambda: get(Want.LATEST),
            "get_cold": lambda: get(Want.LATEST),
            "get_after_kill": lambda: get(Want.LATEST),
            "put_many": put_many,
            "get_many": get_many,
        }
        say(what=f"mesh, {count} nodes in one process{', libp2p streams only' if mode == 'libp2p' else ''}", lacks={})
        while line := await read_line():
            order = json.loads(line)
            if order["op"] == "kill":
                for dead in script.kill(order["part"]):
                    nodes[dead].scope.cancel()
                await trio.sleep(1)
                say(nodes=len(script.alive))
            elif order["op"] == "join":
                say(**await join(order["count"]))
            else:
                say(**await timed(operations[order["op"]], order["count"]))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
