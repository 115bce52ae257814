"""Optimization nodes over a simulated network and chain, in virtual time.

What is replaced: the worker (a process, so no part of a deterministic run) by a function that says how good a candidate
is. It is a seam of the framework: `SubnetContext.worker`. Everything else is the product's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from pydantic import BaseModel

from mesh.auth.authorizer import Everyone
from mesh.chain.epochs import Epochs
from mesh.chain.types import NodeClass, SubnetInfo, SubnetNode, SubnetState
from mesh.clock import SimClock
from mesh.content import Content
from mesh.dht import DHT
from mesh.errors import ChainUnavailable, ModelRejected
from mesh.identity import PeerKey
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition
from mesh.peer import PeerInfo
from mesh.rpc.servicer import Rpc
from mesh.subnet import Evidence, Settlement, SubnetContext
from mesh.testing.chain import FakeChain, Ledger, _Subnet
from mesh.testing.network import SimNetwork, SimNode
from mesh.worker import Priority
from subnets.optimization.candidate import DIMENSIONS, Candidate, from_unit, to_unit
from subnets.optimization.config import OptimizationConfig

SUBNET = 128_001
SLOT = 3
LENGTH = 20
BLOCK_S = 6.0
WALL0 = 1_800_000_000.0


def optimization_config(directory: Path) -> BaseModel:
    return OptimizationConfig(pool=directory / "pool", rest=1.0)


def quality(candidate: Candidate, seed: int) -> int:
    """A smooth landscape (0.80 at the default, 0.97 at its top) with noise of ± 5,000 ppm, in place of training."""
    top = {"lr_micro": 0.8, "hidden": 0.9, "batch": 0.9}
    away = sum((to_unit(candidate)[i] - top.get(axis.name, 0.5)) ** 2 for i, axis in enumerate(DIMENSIONS))
    noise = hashlib.sha256(candidate.digest() + seed.to_bytes(8, "big")).digest()[0] * 10_000 // 255 - 5_000
    return max(0, min(1_000_000, 970_000 - int(away * 190_000) + noise))


class ScriptedWorker:
    """Answers the subnet's jobs from `quality`, in virtual time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.calls: list[str] = []

    async def call(
        self, name: str, args: Mapping[str, Any], *, priority: Priority = Priority.SERVE, timeout_s: float | None = None
    ) -> dict[str, Any]:
        self.calls.append(name)
        await trio.sleep(0.5 if name == "explore" else 0.2)
        if name == "explore":
            point = [min(1.0, max(0.0, x + self._rng.gauss(0, 0.15))) for x in to_unit(Candidate(**args["best"]))]
            candidate = from_unit(point)
            return {"candidate": candidate.model_dump(), "ppm": quality(candidate, self._rng.getrandbits(60))}
        if name == "measure":
            return {"ppm": quality(Candidate(**args["candidate"]), args["seed"])}
        if name == "judge":
            return {
                "candidate_ppm": quality(Candidate(**args["candidate"]), args["seed"]),
                "incumbent_ppm": quality(Candidate(**args["incumbent"]), args["seed"]),
            }
        if name == "serve":
            return {"model": b"weights of " + Candidate(**args["candidate"]).digest(), "ppm": 0}
        if name == "check" and "candidate" in args:
            if args["model"] != b"weights of " + Candidate(**args["candidate"]).digest():
                raise ModelRejected("other weights")
            return {"ppm": args["verified_ppm"]}
        if name == "predict":
            return {"labels": [7] * args["rows"], "device": "cpu"}
        if name == "score":
            return {"ppm": (args["seed"] + args["model"][0]) % 1_000_000}
        if name == "probe":
            return {"labels": hashlib.sha256(args["model"] + args["seed"].to_bytes(8, "big")).digest()}
        return {}


class SimulatedNode:
    """One optimization node and what it stands on."""

    def __init__(self, world: World, number: int, subnet: Any, directory: Path, *, net: SimNode | None = None) -> None:
        self.key = PeerKey.dev(f"sim-{number}")
        self.node_id = number
        self.subnet = subnet
        self.net = net or world.sim.node(self.key)
        self.rpc = Rpc(self.net, Everyone(), rng=random.Random(number))
        chain = FakeChain(world.ledger, block_time_s=BLOCK_S)
        self.chain = chain
        self.epochs = Epochs(chain, SUBNET)
        directory.mkdir(parents=True, exist_ok=True)
        self.config = world.config(directory)
        self.dht = DHT(
            self.rpc,
            self.key,
            rules=subnet.rules(self.config),
            is_member=lambda peer: True,
            position=self._position,
            subnet_id=SUBNET,
            genesis=chain.genesis,
            clock=world.clock,
            rng=random.Random(number + 100),
        )
        self.content = Content(directory / "content", self.rpc)
        self.worker = ScriptedWorker(random.Random(number + 200))
        self.settle, settlements = trio.open_memory_channel[Settlement](8)
        self.ctx = SubnetContext(
            identity=self.key,
            subnet_id=SUBNET,
            genesis=chain.genesis,
            dht=self.dht,
            rpc=self.rpc,
            chain=chain,
            epochs=self.epochs,
            content=self.content,
            worker=self.worker,  # type: ignore[arg-type]
            clock=world.clock,
            rng=random.Random(number + 300),
            data_dir=directory,
            settlements=settlements,
        )
        self.scope = trio.CancelScope()

    def _position(self) -> BlockPosition | None:
        try:
            at = self.epochs.position()
        except ChainUnavailable:
            return None
        return BlockPosition(self.epochs.block().number, at.epoch, at.offset, at.length)

    async def run(self, bootstrap: list[PeerInfo], *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.chain.run)
                await nursery.start(self.epochs.run)
                await nursery.start(self.net.run)
                await nursery.start(self.rpc.run)
                await nursery.start(self.dht.run, bootstrap)
                self.rpc.serve(self.content.servicer())
                for servicer in self.subnet.servicers(self.ctx, self.config):
                    self.rpc.serve(servicer)
                await nursery.start(self.subnet.run, self.ctx, self.config)
                task_status.started()


class World:
    """A subnet of validators, active from the start."""

    def __init__(
        self,
        subnets: Sequence[Any],
        directory: Path,
        seed: int = 1,
        config: Callable[[Path], BaseModel] = optimization_config,
    ) -> None:
        self.config = config
        self.sim = SimNetwork(seed=seed, latency_s=0.05)
        self.clock = SimClock(WALL0)
        self.ledger = Ledger(seed=seed, epoch_length=LENGTH)
        info = SubnetInfo(SUBNET, 1, "sim", SubnetState.ACTIVE, 0, SLOT, b"\0" * 20, 0, 10**30)
        self.ledger.subnets[SUBNET] = _Subnet(info, {})
        self.nodes: list[SimulatedNode] = []
        for number, subnet in enumerate(subnets, start=1):
            node = SimulatedNode(self, number, subnet, directory / str(number))
            self.nodes.append(node)
            self.ledger.subnets[SUBNET].nodes[number] = SubnetNode(
                node_id=number,
                coldkey=bytes([number]) * 20,
                hotkey=bytes([100 + number]) * 20,
                peer_id=node.key.peer_id,
                bootnode_peer_id=None,
                client_peer_id=None,
                node_class=NodeClass.VALIDATOR,
                start_epoch=0,
                stake_planck=10**20,
                reputation=10**18,
            )

    async def start(self, nursery: trio.Nursery) -> None:
        """Run all nodes; the first one is everybody's bootstrap."""
        self.ledger.new_block()
        for node in self.nodes:
            await nursery.start(node.run, [self.nodes[0].net.local] if node is not self.nodes[0] else [])

    async def evidence(self, epoch: int) -> Evidence:
        """What all living nodes agree on, as the consensus would find it: records that f + 1 of them hold."""
        epochs = self.nodes[0].epochs
        snapshot, draw_hash = await epochs.snapshot(epoch), await epochs.draw_hash(epoch)
        held: dict[bytes, tuple[int, Record]] = {}
        for node in self.nodes:
            for key in node.subnet.evidence_keys(epoch):
                for record in node.dht.local(key):
                    held[record.digest] = (held.get(record.digest, (0, record))[0] + 1, record)
        needed = (len(self.nodes) - 1) // 3 + 1
        records = tuple(record for _, (count, record) in sorted(held.items()) if count >= needed)
        return Evidence(epoch, SUBNET, self.nodes[0].chain.genesis, snapshot, draw_hash, records)
