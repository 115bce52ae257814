"""Nodes of one subnet over a simulated network, for the tests beside this file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from pydantic import BaseModel

from mesh.auth.authorizer import Authorizer, Everyone
from mesh.clock import SimClock
from mesh.dht import DHT, DhtConfig, Role
from mesh.identity import PeerKey
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import BlockPosition, NamespaceRule, pack_value, window
from mesh.offload import inline
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.rpc import Rpc
from mesh.testing.network import SimNetwork, SimNode

GENESIS = b"\x07" * 32
SUBNET = 128_001
EPOCH0 = 1_800_000_000.0


class Note(BaseModel):
    """A small schema."""

    text: str
    count: int = 0


def note(text: str, count: int = 0) -> bytes:
    return pack_value(Note(text=text, count=count))


RULES = (
    NamespaceRule("any", max_value_bytes=4096, max_ttl_s=3600.0, max_records_per_owner=4),
    NamespaceRule("note", schema=Note, max_value_bytes=1024, max_ttl_s=3600.0),
    NamespaceRule("vote", max_value_bytes=256, max_ttl_s=3600.0, predicate=window(8, 15)),
)


class Node:
    """One DHT node and what stands under it."""

    def __init__(
        self,
        cluster: Cluster,
        key: PeerKey,
        role: Role,
        state_path: Path | None,
        kind: type[DHT] = DHT,
        records_path: Path | None = None,
    ) -> None:
        self.key = key
        self.id = key.peer_id
        self.net: SimNode = cluster.sim.node(key)
        self.rpc = Rpc(self.net, cluster.authorizer, rng=random.Random(1))
        self.dht = kind(
            self.rpc,
            key,
            rules=RULES if role is not Role.ROUTING_ONLY else (),
            is_member=lambda peer: peer not in cluster.strangers,
            position=lambda: cluster.position,
            subnet_id=SUBNET,
            genesis=GENESIS,
            config=cluster.config.model_copy(update={"role": role}),
            clock=cluster.clock,
            rng=random.Random(key.public_key_pb),
            state_path=state_path,
            records_path=records_path,
            offload=inline,
        )
        self.scope: trio.CancelScope | None = None

    @property
    def info(self) -> PeerInfo:
        return self.net.local

    async def run(
        self, bootstrap: Sequence[PeerInfo], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.CancelScope() as self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.net.run)
                await nursery.start(self.rpc.run)
                await nursery.start(self.dht.run, bootstrap)
                task_status.started()

    def stop(self) -> None:
        assert self.scope is not None
        self.scope.cancel()


class Cluster:
    """Makes nodes that know each other through the first one."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        seed: int = 1,
        latency_s: float = 0.01,
        loss: float = 0.0,
        config: DhtConfig | None = None,
        authorizer: Authorizer | None = None,
    ) -> None:
        self.nursery = nursery
        self.sim = SimNetwork(seed=seed, latency_s=latency_s, loss=loss)
        self.clock = SimClock(EPOCH0)
        self.config = config or DhtConfig()
        self.authorizer = authorizer or Everyone()
        self.strangers: set[PeerID] = set()
        self.position: BlockPosition | None = BlockPosition(110, 5, 10, 20)
        self.nodes: list[Node] = []

    async def add(
        self,
        label: str | None = None,
        *,
        role: Role = Role.SERVER,
        state_path: Path | None = None,
        kind: type[DHT] = DHT,
        records_path: Path | None = None,
    ) -> Node:
        key = PeerKey.dev(label or f"node-{len(self.nodes)}")
        node = Node(self, key, role, state_path, kind, records_path)
        bootstrap = [n.info for n in self.nodes[:1]]
        self.nodes.append(node)
        await self.nursery.start(node.run, bootstrap)
        return node

    async def grow(self, count: int) -> list[Node]:
        for _ in range(count):
            await self.add()
        return self.nodes

    def record(self, key: PeerKey, name: bytes = b"any/k", value: bytes = b"v", **changes: object) -> Record:
        """A record signed by anybody, right in all but what `changes` says."""
        fields: dict[str, object] = {
            "subkey": b"",
            "expiry_ms": int((self.clock.now() + 600) * 1000),
            "seq": int(self.clock.now() * 1000),
            "subnet_id": SUBNET,
            "genesis": GENESIS,
        }
        fields.update(changes)
        return sign_record(key, name, value, **fields)  # type: ignore[arg-type]


def in_sim(main: Callable[[trio.Nursery], object]) -> Callable[[], None]:
    """A test that runs in virtual time with a seeded scheduler, and whose nodes end with it."""
    import functools

    from mesh.testing.simulation import run_sim

    @functools.wraps(main)
    def test() -> None:
        async def bounded() -> None:
            async with trio.open_nursery() as nursery:
                await main(nursery)  # type: ignore[misc]
                nursery.cancel_scope.cancel()

        run_sim(bounded, 1)

    del test.__wrapped__  # type: ignore[attr-defined]
    return test
