"""hivemind's DHTNode, many in one asyncio process, each with its p2pd: as its own tests and benchmarks do. Runs in an
environment of its own. What looks for a way out of a home network is off, as it only disturbs on loopback. Its caches
are as they come. A daemon that has started has dialled the first node already: its joins begin ahead of others'."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from dht_ops import GET_S, LIFE_S, REPLICAS, Bench, Entry
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P
from hivemind.utils import get_dht_time, switch_to_uvloop


class Hivemind:
    """See dht_ops.Dht."""

    def __init__(self, count: int) -> None:
        self.what = f"hivemind 1.1.12, {count} DHTNodes in one process, a p2pd each"
        self.lacks: dict[str, str] = {}
        self._hosts: list[P2P] = []
        self._nodes: dict[int, DHTNode] = {}
        self._bootstrap: list[Any] = []

    async def put(self, node: int, key: str, value: bytes, replicas: int) -> None:
        self._nodes[node].num_replicas = replicas
        await self._nodes[node].store(key, value, get_dht_time() + LIFE_S, await_all_replicas=True)
        self._nodes[node].num_replicas = REPLICAS

    async def get(self, node: int, key: str, *, is_latest: bool) -> bytes | None:
        try:
            found = await asyncio.wait_for(self._nodes[node].get(key, latest=is_latest), GET_S)
        except TimeoutError:
            return None
        return None if found is None else found.value

    async def put_many(self, node: int, entries: Sequence[Entry]) -> None:
        keys, values = [key for key, _ in entries], [value for _, value in entries]
        await self._nodes[node].store_many(keys, values, get_dht_time() + LIFE_S, await_all_replicas=True)

    async def get_many(self, node: int, keys: Sequence[str]) -> dict[str, bytes]:
        found = await self._nodes[node].get_many(list(keys), sufficient_expiration_time=float("inf"))
        return {key: item.value for key, item in found.items() if item is not None}

    def holds(self, node: int, key: str) -> bool:
        return self._nodes[node].protocol.storage.get(DHTID.generate(source=key)) is not None

    def has_at_hand(self, node: int, key: str) -> bool:
        return self.holds(node, key) or self._nodes[node].protocol.cache.get(DHTID.generate(source=key)) is not None

    async def start(self) -> None:
        host = await P2P.create(
            initial_peers=self._bootstrap,
            host_maddrs=["/ip4/127.0.0.1/tcp/0"],
            use_relay=False,
            use_auto_relay=False,
            auto_nat=False,
            nat_port_map=False,
            startup_timeout=60,
        )
        self._hosts.append(host)
        if not self._bootstrap:
            self._bootstrap = list(await host.get_visible_maddrs())
            self._nodes[0] = await DHTNode.create(p2p=host, num_replicas=REPLICAS)

    async def join(self, node: int) -> None:
        self._nodes[node] = await DHTNode.create(
            p2p=self._hosts[node], initial_peers=self._bootstrap, num_replicas=REPLICAS
        )

    def known(self, node: int) -> int:
        return len(self._nodes[node].protocol.routing_table.uid_to_peer_id)

    def verified(self, node: int) -> int:
        return self.known(node)  # a table holds only who answered or called

    def found_by(self, node: int, others: Sequence[int]) -> int:
        uid = self._nodes[node].node_id
        return sum(uid in self._nodes[other].protocol.routing_table.uid_to_peer_id for other in others)

    async def stop(self, node: int) -> None:
        self._nodes[node].is_alive = False
        await self._hosts[node].shutdown()  # its daemon is terminated; nobody is told

    async def cool(self, node: int) -> None:
        client = self._hosts[node]._client
        for peer in await client.list_peers():
            await client.disconnect(peer.peer_id)

    async def connections(self, node: int) -> int:
        return len(await self._hosts[node]._client.list_peers())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def main(count: int) -> None:
    bench = Bench(Hivemind(count), count)
    await bench.build()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await bench.answer(line)


if __name__ == "__main__":
    switch_to_uvloop()
    asyncio.run(main(int(sys.argv[1])))
