"""py-libp2p's KadDHT as it comes, nodes in one trio process. It stores at its 20 closest and nowhere else, so that put
is what put_20 is of others; it has no batches. A get is of a key that its getter does not hold, as it would answer
from its own store without asking; quorum=1 is content with the first value, quorum=0 asks all of the closest."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import trio
from dht_ops import GET_S, JOIN_S, KNOWN, Bench, Entry
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network import swarm
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from trio_lines import read_line


class Anything(Validator):
    def validate(self, key: str, value: bytes) -> None:
        return None

    def select(self, key: str, values: list[bytes]) -> int:
        return 0


class Node:
    def __init__(self) -> None:
        self.host = new_host(key_pair=create_new_key_pair())
        validator = NamespacedValidator({"bench": Anything()})
        self.dht = KadDHT(self.host, DHTMode.SERVER, validator=validator, validator_changed=True)
        self.scope = trio.CancelScope()
        self.may_join = trio.Event()
        self.joined = trio.Event()

    async def run(self, bootstrap: list[PeerInfo], known: int, *, task_status: Any) -> None:
        """Listen; join when told so."""
        with self.scope:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]))
                stack.push_async_callback(self.host.close)
                task_status.started()
                if bootstrap:
                    await self.may_join.wait()
                for info in bootstrap:
                    await self.host.connect(info)
                    await self.dht.add_peer(info.peer_id)
                await stack.enter_async_context(background_trio_service(self.dht))
                if bootstrap:
                    with trio.move_on_after(JOIN_S):
                        while self.dht.get_routing_table_size() < known:
                            await self.dht.peer_routing.refresh_routing_table()
                            await trio.sleep(0.01)
                self.joined.set()
                await trio.sleep_forever()

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.host.get_id(), list(self.host.get_transport_addrs()))


class Kad:
    """See dht_ops.Dht."""

    def __init__(self, nursery: trio.Nursery, count: int) -> None:
        self.what = f"py-libp2p 0.8.1's KadDHT, {count} nodes in one process"
        no_batches = "it has no batches"
        self.lacks = {
            "put": "it has no number of replicas: always its 20 closest, see put_20",
            "put_many": no_batches,
            "get_many": no_batches,
        }
        self._nursery = nursery
        self._nodes: list[Node] = []

    async def put(self, node: int, key: str, value: bytes, replicas: int) -> None:
        await self._nodes[node].dht.put_value(f"/bench/{key}", value)

    async def get(self, node: int, key: str, *, is_latest: bool) -> bytes | None:
        with trio.move_on_after(GET_S):
            return await self._nodes[node].dht.get_value(f"/bench/{key}", quorum=0 if is_latest else 1)
        return None

    # It has no batches: the driver is told so (`lacks`), and calls neither.

    async def put_many(self, node: int, entries: Sequence[Entry]) -> None:
        raise NotImplementedError

    async def get_many(self, node: int, keys: Sequence[str]) -> dict[str, bytes]:
        raise NotImplementedError

    def holds(self, node: int, key: str) -> bool:
        return self._nodes[node].dht.value_store.get(f"/bench/{key}".encode()) is not None

    def has_at_hand(self, node: int, key: str) -> bool:
        return self.holds(node, key)

    async def start(self) -> None:
        bootstrap = [self._nodes[0].info] if self._nodes else []
        known = min(len(self._nodes), KNOWN)
        self._nodes.append(Node())
        await self._nursery.start(self._nodes[-1].run, bootstrap, known)

    async def join(self, node: int) -> None:
        self._nodes[node].may_join.set()
        await self._nodes[node].joined.wait()

    def known(self, node: int) -> int:
        return self._nodes[node].dht.get_routing_table_size()

    def verified(self, node: int) -> int:
        """It adds whom others name, too: those count to whom it is connected."""
        table = self._nodes[node].dht.routing_table
        return sum(table.peer_in_table(peer) for peer in self._nodes[node].host.get_connected_peers())

    def found_by(self, node: int, others: Sequence[int]) -> int:
        peer = self._nodes[node].host.get_id()
        return sum(self._nodes[other].dht.routing_table.peer_in_table(peer) for other in others)

    async def stop(self, node: int) -> None:
        self._nodes[node].scope.cancel()

    async def cool(self, node: int) -> None:
        host = self._nodes[node].host
        async with trio.open_nursery() as nursery:
            for peer in host.get_connected_peers():
                nursery.start_soon(host.disconnect, peer)

    async def connections(self, node: int) -> int:
        return len(self._nodes[node].host.get_connected_peers())

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


async def main(count: int) -> None:
    swarm._HAPPY_EYEBALLS_DELAY = 0  # else each dial waits 250 ms: in its favour
    async with trio.open_nursery() as nursery:
        bench = Bench(Kad(nursery, count), count)
        await bench.build()
        while line := await read_line():
            await bench.answer(line)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    trio.run(main, int(sys.argv[1]))
