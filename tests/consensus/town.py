"""Nodes of the toy subnet on a simulated network and chain, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from mesh.auth.authorizer import Everyone
from mesh.chain.epochs import Epochs
from mesh.chain.types import Score, Submission
from mesh.clock import SimClock
from mesh.consensus import round as rules
from mesh.consensus.loop import ConsensusConfig, ConsensusLoop, inventory_rule, refusal_rule
from mesh.content import Content, inline
from mesh.dht import DHT, KadServicer
from mesh.identity import AccountKey
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, pack_value, unpack_value
from mesh.kad.wire import Role, StoreRequest
from mesh.peer import PeerID
from mesh.rpc.rpc import Rpc
from mesh.subnet import Settlement
from mesh.testing.chain import FakeChain, Ledger
from mesh.testing.network import SimNetwork, SimNode
from mesh.testing.simulation import run_sim

from .toy import KEYS, LABELS, SUBNET, Note, ToyConfig, ToySubnet, hotkey, note_key

BLOCK_S = 6.0
PLANCK = 10**18
OWNER = AccountKey.from_private((999).to_bytes(32, "big"))


def coldkey(label: str) -> AccountKey:
    return AccountKey.from_private((2000 + LABELS.index(label)).to_bytes(32, "big"))


class Node:
    """One node: network, DHT, blobs, epochs and, unless it is a liar driven by its test, the consensus loop."""

    def __init__(
        self, town: Town, label: str, net: SimNode, *, subnet: ToySubnet, has_loop: bool, has_hotkey: bool
    ) -> None:
        self.town, self.label, self.key, self.net = town, label, KEYS[label], net
        self.node_id = town.labels.index(label) + 1
        self.chain = FakeChain(town.ledger)
        self.epochs = Epochs(self.chain, SUBNET)
        self.rpc = Rpc(net, Everyone(), rng=random.Random(1))
        self.subnet = subnet
        self.has_loop = has_loop
        self.dht = DHT(
            self.rpc,
            self.key,
            rules=[*subnet.rules(None), inventory_rule(), refusal_rule()],
            is_member=lambda peer: True,
            position=self._position,
            subnet_id=SUBNET,
            genesis=town.ledger.genesis,
            clock=town.clock,
            rng=random.Random(label),
        )
        self.dir = town.dir / label
        self.content = Content(self.dir / "content", self.rpc, offload=inline)
        self.content_served = False
        self.scope: trio.CancelScope | None = None
        self.send, self.settlements = trio.open_memory_channel[Settlement](2)
        self.loop = ConsensusLoop(
            chain=self.chain,
            subnet_id=SUBNET,
            epochs=self.epochs,
            dht=self.dht,
            content=self.content,
            subnet=subnet,
            subnet_config=ToyConfig(),
            identity=self.key,
            hotkey=hotkey(label) if has_hotkey else None,
            state_dir=self.dir,
            settlements=self.send,
            receiver=self.settlements,
            config=town.config,
        )

    def _position(self) -> BlockPosition:
        at = self.epochs.position()
        return BlockPosition(self.epochs.block().number, at.epoch, at.offset, at.length)

    @property
    def peer(self) -> PeerID:
        return self.key.peer_id

    async def run(self, bootstrap: Sequence[Any], *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self.ended = trio.Event()
        with trio.CancelScope() as self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.net.run)
                await nursery.start(self.rpc.run)
                await nursery.start(self.epochs.run)
                self.rpc.serve(self.content.servicer())
                await nursery.start(self.dht.run, bootstrap)
                if self.has_loop:
                    await nursery.start(self.loop.run)
                task_status.started()
        self.ended.set()

    async def stop(self) -> None:
        """As a kill does: nothing is said to anybody; what is on disk stays."""
        assert self.scope is not None
        self.scope.cancel()
        await self.ended.wait()

    async def note(self, text: str, epoch: int = 0, *, to: Sequence[Node] | None = None) -> Record:
        """Work: a note, stored at every validator or only at some."""
        peers = [n.peer for n in (self.town.nodes.values() if to is None else to) if n is not self]
        value = pack_value(Note(text=text))
        report = await self.dht.put(note_key(epoch), value, subkey=text.encode(), ttl_s=3600.0, peers=peers)
        assert set(report.stored) == set(peers), report
        return report.record

    async def publish_inventory(self, epoch: int = 0, *, more: Sequence[bytes] = ()) -> None:
        """What a liar does by hand that a loop does by itself."""
        snapshot = await self.epochs.snapshot(epoch)
        digests = {r.digest for r in self.dht.local(note_key(epoch))} | set(more)
        value = rules.Inventory(epoch=epoch, snapshot=snapshot.block.hash, digests=tuple(sorted(digests)))
        peers = [n.peer for n in self.town.nodes.values() if n is not self]
        await self.dht.put(rules.inventory_key(epoch), pack_value(value), ttl_s=3600.0, peers=peers)

    async def context(self, epoch: int = 0) -> rules.RoundContext:
        return rules.RoundContext(
            genesis=self.town.ledger.genesis,
            subnet_id=SUBNET,
            epoch=epoch,
            snapshot=await self.epochs.snapshot(epoch),
            evidence_keys=frozenset(self.subnet.evidence_keys(epoch)),
            score_id=self.subnet.score_id,
            validator=rules.timeless_validator(
                self.subnet.rules(None), subnet_id=SUBNET, genesis=self.town.ledger.genesis
            ),
        )

    async def propose(
        self,
        work: int = 0,
        *,
        inventories: Sequence[Record] | None = None,
        records: Sequence[Record] | None = None,
        scores: Sequence[Score] | None = None,
        **args: Any,
    ) -> None:
        """A proposal by hand: honest but for what is given."""
        ctx = await self.context(work)
        invs = self.dht.local(rules.inventory_key(work)) if inventories is None else inventories
        named = rules.named([unpack_value(rules.Inventory, r.value) for r in invs], ctx.thresholds.naming)
        honest = [r for r in self.dht.local(note_key(work)) if r.digest in named]
        chosen = honest if records is None else records
        data = rules.encode_blob(rules.make_blob(invs, chosen))
        fields: dict[str, Any] = {
            "v": 1, "epoch": work, "snapshot": ctx.snapshot.block.hash, "evidence": self.content.put(data),
            "size": len(data), "score": self.subnet.score_id,
        }  # fmt: skip
        if scores is None:
            owners = {node.peer_id: node.node_id for node in ctx.snapshot.nodes}
            counts: dict[int, int] = {}
            for record in chosen:
                counts[owners[record.owner]] = counts.get(owners[record.owner], 0) + 1
            scores = [Score(node_id, count) for node_id, count in sorted(counts.items())]
        raw = pack_value(rules.ProposalArgs.model_construct(**(fields | args)))
        await self.chain.propose(SUBNET, scores, args=raw, hotkey=hotkey(self.label))

    async def push(self, record: Record) -> dict[PeerID, str]:
        """Offer somebody's record to everybody as it is; what they said, "" for stored."""
        said = {}
        request = StoreRequest(role=Role.SERVER, addrs=(), records=(record.to_bytes(),))
        for node in self.town.nodes.values():
            if node is not self:
                reply = await self.rpc.stub(KadServicer, node.peer).rpc_store(request)
                said[node.peer] = reply.verdicts[0]
        return said

    def settled(self) -> list[Settlement]:
        """What the subnet was told and has not read."""
        found = []
        try:
            while True:
                found.append(self.settlements.receive_nowait())
        except trio.WouldBlock:
            return found


class _Always:
    """Elections with a known outcome."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id

    def choice(self, electable: Sequence[int]) -> int:
        return self.node_id if self.node_id in electable else electable[0]


class Town:
    """Makes the chain with its subnet, then nodes; blocks come every BLOCK_S of virtual time."""

    def __init__(self, nursery: trio.Nursery, directory: Path, *, labels: Sequence[str] = LABELS[:4]) -> None:
        self.nursery, self.dir, self.labels = nursery, directory, tuple(labels)
        self.sim = SimNetwork(seed=1, latency_s=0.02)
        self.clock = SimClock()
        self.config = ConsensusConfig()
        accounts = [OWNER.account_id, *(k(label).account_id for label in labels for k in (coldkey, hotkey))]
        self.ledger = Ledger(seed=1, fund=dict.fromkeys(accounts, 1000 * PLANCK))
        self.chain = FakeChain(self.ledger, block_time_s=BLOCK_S)
        self.nodes: dict[str, Node] = {}
        self.bootstrap: list[Any] = []

    async def found(self, *, proposer: str) -> None:
        """Register and activate the subnet so that its epoch 0 begins at block 3, and start the blocks."""
        self.ledger.rng = _Always(self.labels.index(proposer) + 1)  # type: ignore[assignment]
        bootnode = str(KEYS[self.labels[0]].peer_id).encode()
        data = {
            "name": b"toy", "repo": b"", "description": b"", "misc": b"", "min_stake": 100 * PLANCK,
            "max_stake": 900 * PLANCK, "delegate_stake_percentage": PLANCK // 10, "initial_coldkeys": {},
            "bootnodes": {bootnode: b""},
        }  # fmt: skip
        await self._block(
            lambda: self.chain.submit("register_subnet", {"max_cost": 10**21, "subnet_data": data}, OWNER)
        )
        await self._block(*(self._registration(label) for label in self.labels))
        await self._block(lambda: self.chain.submit("activate_subnet", {"subnet_id": SUBNET}, OWNER))
        await self.nursery.start(self.chain.run)

    def _registration(self, label: str) -> Callable[[], Awaitable[Any]]:
        call = {
            "subnet_id": SUBNET, "hotkey": hotkey(label).account_id,
            "peer_info": {"peer_id": str(KEYS[label].peer_id).encode(), "multiaddr": None},
            "delegate_reward_rate": 0, "stake_to_be_added": 200 * PLANCK, "max_burn_amount": 10**20,
        }  # fmt: skip
        return lambda: self.chain.submit("register_subnet_node", call, coldkey(label))

    async def _block(self, *calls: Callable[[], Awaitable[Any]]) -> None:
        async with trio.open_nursery() as nursery:
            for number, call in enumerate(calls):
                nursery.start_soon(call)
                while len(self.ledger.pool) <= number:
                    await self.ledger.submitted.wait()
            self.ledger.new_block()

    async def add(
        self, label: str, *, has_loop: bool = True, has_hotkey: bool = True, subnet: ToySubnet | None = None
    ) -> Node:
        """Start a node, or start one again that was stopped (it keeps its place and its files)."""
        old = self.nodes.get(label)
        net = old.net if old else self.sim.node(KEYS[label])
        node = Node(self, label, net, subnet=subnet or ToySubnet(), has_loop=has_loop, has_hotkey=has_hotkey)
        self.nodes[label] = node
        others = [n.net.local for n in self.nodes.values() if n is not node]
        for info in others:
            net.learn(info)
        await self.nursery.start(node.run, others[:1])
        for other in self.nodes.values():
            other.net.learn(net.local)
        return node

    async def until(self, epoch: int, offset: int) -> None:
        """Return in the middle of this block, when everybody had time to act on it."""
        block = 3 + 20 * epoch + offset
        while self.ledger.number < block:
            await self.ledger.moved.wait()
        await trio.sleep(BLOCK_S / 2)

    def submission(self, epoch: int = 1) -> Submission | None:
        return self.ledger.subnets[SUBNET].submissions.get(epoch)

    def attests(self, epoch: int = 1) -> str:
        """Who attested, by label."""
        found = self.submission(epoch)
        return " ".join(self.labels[i - 1] for i in found.attests) if found else "nothing proposed"

    def refusals(self, epoch: int = 0) -> dict[str, str]:
        """Reasons of the refusals everybody can read, by label."""
        by_peer = {KEYS[label].peer_id: label for label in self.labels}
        found: dict[str, str] = {}
        for node in self.nodes.values():
            for record in node.dht.local(rules.refusal_key(epoch)):
                found[by_peer[record.owner]] = unpack_value(rules.Refusal, record.value).reason
        return dict(sorted(found.items()))


def in_town(main: Callable[..., Awaitable[None]], tmp_path: Path, **settings: Any) -> None:
    """Run a test in virtual time with a seeded scheduler; its nodes end with it."""

    async def bounded() -> None:
        async with trio.open_nursery() as nursery:
            await main(Town(nursery, tmp_path, **settings))
            nursery.cancel_scope.cancel()

    run_sim(bounded, 1)
