"""A subnet simulated whole: real nodes (`mesh.node.run_node`) on a simulated network and chain, in virtual time.

    result = simulate(subnet, nodes=4, epochs=2, seed=1)
    assert result.earned() == {1, 2, 3, 4}

Same seed, same run. Nodes find each other through the first one, register, stake, work, publish evidence, propose,
attest and are paid, all by the code that runs on real sockets; only network, chain and time are simulated.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from mesh.chain import staking
from mesh.chain.types import PLANCK_PER_TENSOR, Score, SubnetNode, first_block
from mesh.clock import SimClock
from mesh.config import NodeConfig
from mesh.content import inline
from mesh.errors import ConfigError
from mesh.identity import AccountKey, KeyType, PeerKey
from mesh.node import NodeInfo, Parts, run_node
from mesh.peer import PeerID, PeerInfo
from mesh.subnet import Subnet
from mesh.testing.chain import FakeChain, Ledger
from mesh.testing.network import SimNetwork
from mesh.testing.simulation import run_sim
from mesh.worker import Compute

BLOCK_TIME_S: Final = 6.0
STAKE_PLANCK: Final = 200 * PLANCK_PER_TENSOR
FUNDS_PLANCK: Final = 1000 * PLANCK_PER_TENSOR


@dataclass(frozen=True)
class SimResult:
    """What the simulated chain says at the end."""

    before: tuple[SubnetNode, ...]
    after: tuple[SubnetNode, ...]
    proposals: Mapping[int, tuple[Score, ...]]
    """Scores by the subnet epoch in which they were proposed (the work is of the epoch before)."""
    attested: Mapping[int, int]
    """How many nodes attested each proposal."""
    trace: str
    """Digest of everything the network carried: equal for equal seeds."""

    def earned(self) -> set[int]:
        """Ids of the nodes that were given a score in any proposal."""
        return {score.node_id for scores in self.proposals.values() for score in scores if score.score > 0}


def simulate(
    subnet: Subnet,
    *,
    nodes: int = 4,
    epochs: int = 2,
    seed: int = 0,
    config: Any = None,
    liars: Mapping[int, Subnet] | None = None,
    latency_s: float = 0.02,
    worker: Callable[[int], Compute] | None = None,
    meanwhile: Callable[[Village], Awaitable[None]] | None = None,
) -> SimResult:
    """Run `nodes` nodes (at least 3) until `epochs` epochs of work are settled.

    `liars` maps node ids, from 1, to the subnet object they run instead. `worker` makes the compute worker of a node
    id; a subnet with jobs needs one, as processes are no part of a simulation. `meanwhile` runs beside the nodes from
    the subnet's activation on, and the simulation does not end before it. Raises what any of them raises. Not
    reentrant: call it from ordinary (not async) tests.
    """
    if subnet.jobs and worker is None:
        raise ConfigError(f"{subnet.name} computes in processes, which a simulation has none of: give it a `worker`")
    with tempfile.TemporaryDirectory(prefix="mesh-sim-") as directory:
        village = Village(
            subnet, nodes, seed, config or subnet.Config(), liars or {}, latency_s, Path(directory), worker
        )
        return run_sim(lambda: village.run(epochs, meanwhile), seed)


class Village:
    """The nodes of a running simulation, by node id."""

    def __init__(
        self,
        subnet: Subnet,
        nodes: int,
        seed: int,
        config: Any,
        liars: Mapping[int, Subnet],
        latency_s: float,
        directory: Path,
        worker: Callable[[int], Compute] | None,
    ) -> None:
        self._worker = worker
        self._subnet, self._config, self._liars, self._directory = subnet, config, liars, directory
        self._rng = random.Random(seed)
        self._keys = [PeerKey.from_secret(KeyType.ED25519, self._rng.randbytes(32)) for _ in range(nodes)]
        self._hotkeys = [AccountKey.from_private(self._rng.randbytes(32)) for _ in range(nodes)]
        self._coldkeys = [AccountKey.from_private(self._rng.randbytes(32)) for _ in range(nodes)]
        accounts = [key.account_id for key in (*self._hotkeys, *self._coldkeys)]
        self._network = SimNetwork(seed=seed, latency_s=latency_s)
        self._nets = [self._network.node(key) for key in self._keys]
        self._ledger = Ledger(seed=seed, fund=dict.fromkeys(accounts, FUNDS_PLANCK))
        self._chain = FakeChain(self._ledger, block_time_s=BLOCK_TIME_S)
        self._running: dict[int, tuple[trio.CancelScope, trio.Event]] = {}
        self._subnet_id = self._slot = 0
        self._nursery: trio.Nursery | None = None
        self.first_epoch = 0
        """The first epoch of work, known from the subnet's activation on."""

    def peer(self, number: int) -> PeerID:
        """Peer id of a node."""
        return self._keys[number - 1].peer_id

    async def reach(self, epoch: int, offset: int) -> None:
        """Wait until the chain is at this offset of this epoch."""
        until = first_block(epoch, slot=self._slot, length=self._chain.epoch_length) + offset
        if (await self._chain.head()).number >= until:
            return
        async for head in self._chain.heads():
            if head.number >= until:
                return

    async def kill(self, number: int) -> None:
        """Crash a node: its connections break, its tasks end, its directory stays. Returns when it is gone."""
        self._network.kill(self.peer(number))
        scope, ended = self._running.pop(number)
        scope.cancel()
        await ended.wait()

    async def restart(self, number: int) -> None:
        """Start a killed node anew on its directory. Returns once it is ready."""
        self._network.revive(self.peer(number))
        await self._start(number)

    async def run(self, epochs: int, meanwhile: Callable[[Village], Awaitable[None]] | None) -> SimResult:
        """See `simulate`. Once only."""
        chain = self._chain
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(chain.run)
            self._subnet_id = subnet_id = await self._register(chain)
            for number in range(1, len(self._keys) + 1):
                await self._start(number)
            await staking.activate_subnet(chain, self._coldkeys[0], subnet_id=subnet_id)
            before = (await chain.snapshot(subnet_id)).nodes
            info = await chain.subnet(subnet_id)
            assert info.slot is not None
            self._slot, self.first_epoch = info.slot, info.start_epoch
            # Work of the first whole epoch is proposed in the next one and paid at the start of the one after.
            last = info.start_epoch + epochs + 1
            async with trio.open_nursery() as until:
                until.start_soon(self.reach, last, 1)
                if meanwhile is not None:
                    until.start_soon(meanwhile, self)
            found = {epoch: await chain.submission(subnet_id, epoch) for epoch in range(info.start_epoch, last)}
            after = (await chain.snapshot(subnet_id)).nodes
            nursery.cancel_scope.cancel()
        made = {epoch: submission for epoch, submission in found.items() if submission is not None}
        return SimResult(
            before=before,
            after=after,
            proposals={epoch: submission.scores for epoch, submission in made.items()},
            attested={epoch: len(submission.attests) for epoch, submission in made.items()},
            trace=self._network.digest(),
        )

    async def _start(self, number: int) -> None:
        others = [self._nets[other - 1].local for other in sorted(self._running)]
        config = NodeConfig(
            identity_path=self._directory / "unused",
            data_dir=self._directory / str(number),
            initial_peers=others[0].multiaddrs() if others else (),
            is_new_swarm=not others,
            subnet_id=self._subnet_id,
            subnet_node_id=number,
        )
        parts = Parts(
            self._keys[number - 1],
            self._nets[number - 1],
            FakeChain(self._ledger),
            SimClock(),
            random.Random(self._rng.random()),
            self._worker(number) if self._worker is not None else None,
            offload=inline,
        )
        assert self._nursery is not None
        await self._nursery.start(self._node, config, parts, number)

    async def _node(
        self, config: NodeConfig, parts: Parts, number: int, *, task_status: trio.TaskStatus[NodeInfo]
    ) -> None:
        subnet = self._liars.get(number, self._subnet)
        hotkey = self._hotkeys[number - 1]
        ended = trio.Event()
        with trio.CancelScope() as scope:
            self._running[number] = scope, ended
            await run_node(config, parts, subnet, self._config, hotkey=hotkey, task_status=task_status)
        ended.set()

    async def _register(self, chain: FakeChain) -> int:
        bootnode = PeerInfo.parse(f"/ip4/203.0.113.1/tcp/1/p2p/{self._keys[0].peer_id}")
        subnet_id, _ = await staking.register_subnet(
            chain,
            self._coldkeys[0],
            terms=staking.SubnetTerms(name="sim", repo="sim"),
            initial_coldkeys={key.account_id: 1 for key in self._coldkeys},
            bootnodes=[bootnode],
        )
        for number, key in enumerate(self._keys):  # one after the other: who runs as number n is node n
            terms = staking.NodeTerms(
                hotkey=self._hotkeys[number].account_id,
                peer_id=key.peer_id,
                bootnode_peer_id=None,
                client_peer_id=None,
                stake_planck=STAKE_PLANCK,
            )
            await staking.register_node(chain, self._coldkeys[number], subnet_id=subnet_id, terms=terms)
        return subnet_id
