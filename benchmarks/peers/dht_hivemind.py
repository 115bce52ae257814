"""hivemind's DHTNode, many in one asyncio process, each with its p2pd: as its own tests and benchmarks do. Runs in an
environment of its own. What looks for a way out of a home network is off, as it only disturbs on loopback."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from dht_ops import LIFE_S, MANY, Script, say, timed
from hivemind.dht.node import DHTNode
from hivemind.p2p import P2P
from hivemind.utils import get_dht_time, switch_to_uvloop

REPLICAS = 5


async def make_p2p(bootstrap: list[Any]) -> P2P:
    return await P2P.create(
        initial_peers=bootstrap,
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        use_relay=False,
        use_auto_relay=False,
        auto_nat=False,
        nat_port_map=False,
        startup_timeout=60,
    )


async def make_node(bootstrap: list[Any]) -> tuple[DHTNode, float]:
    """A joined node, and how long joining took, its daemon running already."""
    p2p = await make_p2p(bootstrap)
    began = time.perf_counter()
    node = await DHTNode.create(p2p=p2p, initial_peers=bootstrap, num_replicas=REPLICAS)
    return node, (time.perf_counter() - began) * 1e3


async def main(count: int) -> None:
    script = Script(count)
    nodes: list[DHTNode] = []
    bootstrap: list[Any] = []
    for _ in range(count):
        node, _ = await make_node(bootstrap)
        nodes.append(node)
        bootstrap = bootstrap or list(await node.p2p.get_visible_maddrs())
    await asyncio.sleep(2)

    async def store(replicas: int) -> tuple[bool, str, int]:
        owner, key, value = script.entry()
        node = nodes[owner]
        node.num_replicas = replicas
        done = await node.store(key, value, get_dht_time() + LIFE_S, await_all_replicas=True)
        node.num_replicas = REPLICAS
        return bool(done), key, owner

    async def put() -> bool:
        done, key, owner = await store(REPLICAS)
        script.put.append((key, owner))
        return done

    async def put_20() -> bool:
        return (await store(20))[0]

    async def get(latest: bool) -> bool:
        getter, key = script.read()
        return await nodes[getter].get(key, latest=latest) is not None

    async def put_many() -> bool:
        entries = [script.entry() for _ in range(MANY)]
        owner = entries[0][0]
        keys, values = [key for _, key, _ in entries], [value for _, _, value in entries]
        done = await nodes[owner].store_many(keys, values, get_dht_time() + LIFE_S, await_all_replicas=True)
        script.put.extend((key, owner) for key in keys)
        return all(done.values())

    async def get_many() -> bool:
        reads = [script.read() for _ in range(MANY)]
        found = await nodes[reads[0][0]].get_many([key for _, key in reads], sufficient_expiration_time=float("inf"))
        return all(value is not None for value in found.values())

    async def join(times: int) -> dict[str, Any]:
        times_ms, ok = [], 0
        for _ in range(times):
            node, took_ms = await make_node(bootstrap)
            # Its table holds peers that answered or called.
            ok += len(node.protocol.routing_table.uid_to_peer_id) >= min(20, len(script.alive) - 1)
            times_ms.append(took_ms)
            await node.shutdown()
            await node.p2p.shutdown()
        return {"times_ms": times_ms, "ok": ok}

    operations = {
        "put": put,
        "put_cold": put,
        "put_20": put_20,
        "get_first": lambda: get(False),
        "get_latest": lambda: get(True),
        "get_cold": lambda: get(True),
        "get_after_kill": lambda: get(True),
        "put_many": put_many,
        "get_many": get_many,
    }
    say(what=f"hivemind 1.1.12, {count} DHTNodes in one process, a p2pd each", lacks={})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if order["op"] == "kill":
            for dead in script.kill(order["part"]):
                await nodes[dead].shutdown()
                await nodes[dead].p2p.shutdown()
            await asyncio.sleep(1)
            say(nodes=len(script.alive))
        elif order["op"] == "join":
            say(**await join(order["count"]))
        else:
            say(**await timed(operations[order["op"]], order["count"]))


if __name__ == "__main__":
    switch_to_uvloop()
    asyncio.run(main(int(sys.argv[1])))
