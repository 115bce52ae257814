"""A subnet simulated whole: real nodes (`mesh.node.run_node`) on a simulated network and chain, in virtual time.

    result = simulate(subnet, nodes=4, epochs=2, seed=1)
    assert result.earned() == {1, 2, 3, 4}

Same seed, same run. Nodes find each other through the first one, register, stake, work, publish evidence, propose,
attest and are paid, all by the code that runs on real sockets; only network, chain and time are simulated.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from mesh.chain import staking
from mesh.chain.types import PLANCK_PER_TENSOR, Score, SubnetNode, first_block
from mesh.clock import SimClock
from mesh.config import NodeConfig
from mesh.identity import AccountKey, KeyType, PeerKey
from mesh.node import NodeInfo, Parts, run_node
from mesh.peer import PeerInfo
from mesh.subnet import Subnet
from mesh.testing.chain import FakeChain, Ledger
from mesh.testing.network import SimNetwork
from mesh.testing.simulation import run_sim

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
) -> SimResult:
    """Run `nodes` nodes (at least 3) until `epochs` epochs of work are settled. `liars` maps node numbers, from 1, to
    the subnet object they run instead. Not reentrant: call it from ordinary (not async) tests."""
    with tempfile.TemporaryDirectory(prefix="mesh-sim-") as directory:
        village = _Village(subnet, nodes, seed, config or subnet.Config(), liars or {}, latency_s, Path(directory))
        return run_sim(lambda: village.run(epochs), seed)


class _Village:
    def __init__(
        self,
        subnet: Subnet,
        nodes: int,
        seed: int,
        config: Any,
        liars: Mapping[int, Subnet],
        latency_s: float,
        directory: Path,
    ) -> None:
        self._subnet, self._config, self._liars, self._directory = subnet, config, liars, directory
        self._rng = random.Random(seed)
        self._keys = [PeerKey.from_secret(KeyType.ED25519, self._rng.randbytes(32)) for _ in range(nodes)]
        self._hotkeys = [AccountKey.from_private(self._rng.randbytes(32)) for _ in range(nodes)]
        self._coldkeys = [AccountKey.from_private(self._rng.randbytes(32)) for _ in range(nodes)]
        accounts = [key.account_id for key in (*self._hotkeys, *self._coldkeys)]
        self._seed, self._latency_s, self._funds = seed, latency_s, dict.fromkeys(accounts, FUNDS_PLANCK)

    async def run(self, epochs: int) -> SimResult:
        network = SimNetwork(seed=self._seed, latency_s=self._latency_s)
        ledger = Ledger(seed=self._seed, fund=self._funds)
        chain = FakeChain(ledger, block_time_s=BLOCK_TIME_S)
        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run)
            subnet_id = await self._register(chain, network)
            entry: tuple[str, ...] = ()
            for number, key in enumerate(self._keys, start=1):
                parts = Parts(key, network.node(key), FakeChain(ledger), SimClock(), random.Random(self._rng.random()))
                node_config = NodeConfig(
                    identity_path=self._directory / "unused",
                    data_dir=self._directory / str(number),
                    initial_peers=entry,
                    is_new_swarm=not entry,
                    subnet_id=subnet_id,
                )
                started: NodeInfo = await nursery.start(self._node, node_config, parts, number)
                entry = entry or started.local.multiaddrs()
            await staking.activate_subnet(chain, self._coldkeys[0], subnet_id=subnet_id)
            before = (await chain.snapshot(subnet_id)).nodes
            info = await chain.subnet(subnet_id)
            assert info.slot is not None
            # Work of the first whole epoch is proposed in the next one and paid at the start of the one after.
            last = info.start_epoch + epochs + 1
            until = first_block(last, slot=info.slot, length=chain.epoch_length) + 1
            async for head in chain.heads():
                if head.number >= until:
                    break
            found = {epoch: await chain.submission(subnet_id, epoch) for epoch in range(info.start_epoch, last)}
            after = (await chain.snapshot(subnet_id)).nodes
            nursery.cancel_scope.cancel()
        made = {epoch: submission for epoch, submission in found.items() if submission is not None}
        return SimResult(
            before=before,
            after=after,
            proposals={epoch: submission.scores for epoch, submission in made.items()},
            attested={epoch: len(submission.attests) for epoch, submission in made.items()},
            trace=network.digest(),
        )

    async def _node(
        self, config: NodeConfig, parts: Parts, number: int, *, task_status: trio.TaskStatus[NodeInfo]
    ) -> None:
        subnet = self._liars.get(number, self._subnet)
        hotkey = self._hotkeys[number - 1]
        await run_node(config, parts, subnet, self._config, hotkey=hotkey, task_status=task_status)

    async def _register(self, chain: FakeChain, network: SimNetwork) -> int:
        bootnode = PeerInfo.parse(f"/ip4/203.0.113.1/tcp/1/p2p/{self._keys[0].peer_id}")
        subnet_id, _ = await staking.register_subnet(
            chain,
            self._coldkeys[0],
            terms=staking.SubnetTerms(name="sim", repo="sim"),
            initial_coldkeys={key.account_id: 1 for key in self._coldkeys},
            bootnodes=[bootnode],
        )
        async with trio.open_nursery() as nursery:
            for number, key in enumerate(self._keys):
                terms = staking.NodeTerms(
                    hotkey=self._hotkeys[number].account_id,
                    peer_id=key.peer_id,
                    bootnode_peer_id=None,
                    client_peer_id=None,
                    stake_planck=STAKE_PLANCK,
                )
                nursery.start_soon(self._register_node, chain, self._coldkeys[number], subnet_id, terms)
        return subnet_id

    async def _register_node(
        self, chain: FakeChain, coldkey: AccountKey, subnet_id: int, terms: staking.NodeTerms
    ) -> None:
        await staking.register_node(chain, coldkey, subnet_id=subnet_id, terms=terms)
