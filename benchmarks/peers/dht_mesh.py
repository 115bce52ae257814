"""Our DHT with its defaults: nodes in one trio process, each with its own host, sockets and identity; every record is
signed and checked. With `libp2p` as the second argument without data connections."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

import trio
from dht_ops import LIFE_S, REPLICAS, Bench, Entry
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
            config=DhtConfig(replicas=REPLICAS),
            clock=SystemClock(),
            rng=random.Random(index),
        )
        self.scope = trio.CancelScope()
        self.may_join = trio.Event()
        self.joined = trio.Event()

    async def run(self, bootstrap: list[PeerInfo], *, task_status: trio.TaskStatus[None]) -> None:
        """Listen; join when told so."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.net.run)
                if self.data is not None:
                    await nursery.start(self.data.run)
                await nursery.start(self.rpc.run)
                task_status.started()
                if bootstrap:
                    await self.may_join.wait()
                await nursery.start(self.dht.run, bootstrap)
                self.joined.set()


class Mesh:
    """See dht_ops.Dht."""

    def __init__(self, nursery: trio.Nursery, count: int, *, with_data: bool) -> None:
        self.what = f"mesh, {count} nodes in one process{'' if with_data else ', libp2p streams only'}"
        self.lacks: dict[str, str] = {}
        self._nursery = nursery
        self._with_data = with_data
        self._nodes: list[Node] = []

    async def put(self, node: int, key: str, value: bytes, replicas: int) -> None:
        await self._nodes[node].dht.put(_name(key), value, ttl_s=LIFE_S, replicas=replicas)

    async def get(self, node: int, key: str, *, is_latest: bool) -> bytes | None:
        try:
            found = await self._nodes[node].dht.get(_name(key), want=Want.LATEST if is_latest else Want.FIRST)
        except MeshError:
            return None
        return found[0].value

    async def put_many(self, node: int, entries: Sequence[Entry]) -> None:
        await self._nodes[node].dht.put_many([(_name(key), value) for key, value in entries], ttl_s=LIFE_S)

    async def get_many(self, node: int, keys: Sequence[str]) -> dict[str, bytes]:
        found = await self._nodes[node].dht.get_many([_name(key) for key in keys])
        return {key: found[_name(key)][0].value for key in keys if _name(key) in found}

    def holds(self, node: int, key: str) -> bool:
        return bool(self._nodes[node].dht.local(_name(key)))

    def has_at_hand(self, node: int, key: str) -> bool:
        return self.holds(node, key)  # its cache has what it has read, and nothing else

    async def start(self) -> None:
        bootstrap = [self._nodes[0].net.local] if self._nodes else []
        self._nodes.append(Node(len(self._nodes), with_data=self._with_data))
        await self._nursery.start(self._nodes[-1].run, bootstrap)

    async def join(self, node: int) -> None:
        self._nodes[node].may_join.set()
        await self._nodes[node].joined.wait()

    def known(self, node: int) -> int:
        return len(self._nodes[node].dht.peers)

    def verified(self, node: int) -> int:
        return self.known(node)  # a table holds only who answered or called

    def found_by(self, node: int, others: Sequence[int]) -> int:
        peer = self._nodes[node].key.peer_id
        return sum(any(info.peer_id == peer for info in self._nodes[other].dht.peers) for other in others)

    async def stop(self, node: int) -> None:
        self._nodes[node].scope.cancel()

    async def cool(self, node: int) -> None:
        net, data = self._nodes[node].net, self._nodes[node].data
        for peer in net.connected():
            await net.disconnect(peer)
        for peer in () if data is None else data.peers():
            await data.close_peer(peer)

    async def connections(self, node: int) -> int:
        data = self._nodes[node].data
        return len(self._nodes[node].net.connected()) + (0 if data is None else data.count())

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


def _name(key: str) -> bytes:
    return b"bench/" + key.encode()


async def main(count: int, mode: str) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(Mesh(nursery, count, with_data=mode != "libp2p"), count)
        await bench.build()
        while line := await read_line():
            await bench.answer(line)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
