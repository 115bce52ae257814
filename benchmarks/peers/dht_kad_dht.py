"""py-libp2p's KadDHT as it comes, nodes in one trio process. It stores at its 20 closest and nowhere else, so that put
is what put_20 is of others; it has no batches, and no get that is content with the first answer (quorum=1 walks, too).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import trio
from dht_ops import Script, say, timed
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network import swarm
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from trio_lines import read_line

LACKS = {
    "put": "it has no number of replicas; its put is the row put_20",
    "put_cold": "the same",
    "put_many": "it has no batches",
    "get_many": "it has no batches",
}


class Anything(Validator):
    def validate(self, key: str, value: bytes) -> None:
        return None

    def select(self, key: str, values: list[bytes]) -> int:
        return 0


class Node:
    def __init__(self) -> None:
        self.host = new_host(key_pair=create_new_key_pair())
        self.dht: KadDHT | None = None
        self.scope = trio.CancelScope()
        self.join_ms = 0.0

    async def run(self, bootstrap: list[PeerInfo], known: int, *, task_status: Any) -> None:
        """Start the host, then join: only the joining is timed."""
        with self.scope:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]))
                stack.push_async_callback(self.host.close)
                validator = NamespacedValidator({"bench": Anything()})
                self.dht = KadDHT(self.host, DHTMode.SERVER, validator=validator, validator_changed=True)
                began = time.perf_counter()
                for info in bootstrap:
                    await self.host.connect(info)
                    await self.dht.add_peer(info.peer_id)
                await stack.enter_async_context(background_trio_service(self.dht))
                if bootstrap:
                    with trio.move_on_after(30):
                        while self.dht.get_routing_table_size() < known:
                            await self.dht.peer_routing.refresh_routing_table()
                            await trio.sleep(0.01)
                self.join_ms = (time.perf_counter() - began) * 1e3
                task_status.started()
                await trio.sleep_forever()

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.host.get_id(), list(self.host.get_transport_addrs()))


async def main(count: int) -> None:
    swarm._HAPPY_EYEBALLS_DELAY = 0  # else each dial waits 250 ms: in its favour
    script = Script(count)
    async with trio.open_nursery() as nursery:
        nodes: list[Node] = []
        bootstrap: list[PeerInfo] = []
        for index in range(count):
            nodes.append(Node())
            await nursery.start(nodes[-1].run, bootstrap, min(index, 20))
            bootstrap = bootstrap or [nodes[0].info]
        await trio.sleep(2)

        async def put_20() -> bool:
            owner, key, value = script.entry()
            dht = nodes[owner].dht
            assert dht is not None
            await dht.put_value(f"/bench/{key}", value)
            script.put.append((key, owner))
            held = sum(
                node.dht is not None and node.dht.value_store.get(f"/bench/{key}".encode()) is not None
                for number, node in enumerate(nodes)
                if number in script.alive and number != owner
            )
            return held >= min(20, len(script.alive) - 1)

        async def get(quorum: int) -> bool:
            getter, key = script.read()
            dht = nodes[getter].dht
            assert dht is not None
            dht.value_store.store.pop(f"/bench/{key}".encode(), None)  # else it answers from its own store
            with trio.move_on_after(30):
                return await dht.get_value(f"/bench/{key}", quorum=quorum) is not None
            return False

        async def join(times: int) -> dict[str, Any]:
            times_ms, ok = [], 0
            for _ in range(times):
                node = Node()
                await nursery.start(node.run, bootstrap, min(20, len(script.alive) - 1))
                assert node.dht is not None
                ok += node.dht.get_routing_table_size() >= min(20, len(script.alive) - 1)
                times_ms.append(node.join_ms)
                node.scope.cancel()
                await trio.sleep(0.5)
            return {"times_ms": times_ms, "ok": ok}

        operations = {
            "put_20": put_20,
            "get_first": lambda: get(1),
            "get_latest": lambda: get(0),
            "get_cold": lambda: get(0),
            "get_after_kill": lambda: get(0),
        }
        say(what=f"py-libp2p 0.8.1's KadDHT, {count} nodes in one process", lacks=LACKS)
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
    logging.disable(logging.ERROR)
    trio.run(main, int(sys.argv[1]))
