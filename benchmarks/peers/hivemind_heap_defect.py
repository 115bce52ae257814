"""A store that hivemind 1.1.12 rejects takes the newer record away when the rejected one would have expired.

hivemind/utils/timed_storage.py, lines 78 and 79: `store` points key_to_heap at the new expiration before it decides
whether it takes the value. An older record is rejected, and the newer one goes when the older would have: at every
replica, for whoever may send a store. Here six nodes, three replicas, caches off; a record that lives for ten minutes,
and then a store of the same key that lives for four seconds, by another node; beside it a key that is left alone.

    .bench/hivemind/bin/python benchmarks/peers/hivemind_heap_defect.py

in the environment that dht_vs_peers.py makes. What it printed is at the end of this file.
"""

from __future__ import annotations

import asyncio

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P
from hivemind.utils import get_dht_time

NODES = 6
REPLICAS = 3
ATTACKED, LEFT_ALONE = "attacked", "left alone"
LONG_S = 600.0
SHORT_S = 4.0


async def start(bootstrap: list[object]) -> DHTNode:
    p2p = await P2P.create(
        initial_peers=bootstrap,
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        use_relay=False,
        use_auto_relay=False,
        auto_nat=False,
        nat_port_map=False,
        startup_timeout=60,
    )
    return await DHTNode.create(
        p2p=p2p,
        initial_peers=bootstrap,
        num_replicas=REPLICAS,
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
    )


async def look(when: str, nodes: list[DHTNode]) -> None:
    """Who finds the records, and who holds them after that."""
    for key in (ATTACKED, LEFT_ALONE):
        found = [await node.get(key, latest=True) for node in nodes]
        values = [None if item is None else item.value for item in found]
        held = sum(node.protocol.storage.get(DHTID.generate(source=key)) is not None for node in nodes)
        print(f"{when}, {key}: get gives {values}; {held} nodes hold it", flush=True)


async def main() -> None:
    nodes: list[DHTNode] = []
    bootstrap: list[object] = []
    for _ in range(NODES):
        nodes.append(await start(bootstrap))
        bootstrap = bootstrap or list(await nodes[0].p2p.get_visible_maddrs())
    for key in (ATTACKED, LEFT_ALONE):
        print(f"{key}: stored for {LONG_S:.0f} s: {await nodes[1].store(key, 'newer', get_dht_time() + LONG_S)}")
    await look("before", nodes)
    accepted = await nodes[5].store(ATTACKED, "older", get_dht_time() + SHORT_S)
    print(f"{ATTACKED}: stored by another for {SHORT_S:.0f} s: {accepted}")
    await look("at once", nodes)
    await asyncio.sleep(SHORT_S + 1)
    await look(f"{SHORT_S + 1:.0f} s later", nodes)
    for node in nodes:
        await node.shutdown()
        await node.p2p.shutdown()


if __name__ == "__main__":
    asyncio.run(main())

# Printed on 2026-11-28, Python 3.11.7, Linux:
#
#     attacked: stored for 600 s: True
#     left alone: stored for 600 s: True
#     before, attacked: get gives ['newer', 'newer', 'newer', 'newer', 'newer', 'newer']; 3 nodes hold it
#     before, left alone: get gives ['newer', 'newer', 'newer', 'newer', 'newer', 'newer']; 3 nodes hold it
#     attacked: stored by another for 4 s: False
#     at once, attacked: get gives ['newer', 'newer', 'newer', 'newer', 'newer', 'newer']; 3 nodes hold it
#     at once, left alone: get gives ['newer', 'newer', 'newer', 'newer', 'newer', 'newer']; 3 nodes hold it
#     5 s later, attacked: get gives [None, None, None, None, None, None]; 0 nodes hold it
#     5 s later, left alone: get gives ['newer', 'newer', 'newer', 'newer', 'newer', 'newer']; 3 nodes hold it
