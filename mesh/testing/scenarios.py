"""What a DHT must survive, as experiments in a World: each returns what it measured and claims nothing itself.

Tests run them small, benchmarks/dht_scenarios.py in full; with other numbers they answer what your own network would
do. All are determined by their arguments.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.identity import PeerKey, is_signature
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.record import Record
from mesh.kad.validator import NamespaceRule
from mesh.peer import Multiaddr, PeerID
from mesh.testing.liars import drops_stores, forges, invented_peers, silent_on_everything, stale, wrong_peers
from mesh.testing.world import World, WorldConfig, WorldNode

RULES = (NamespaceRule("any", max_value_bytes=1024, max_ttl_s=86_400.0),)
LIFE_S = 43_200.0
_SETTLE_S = 20.0
"""For messages under way: ten times the time after which one is given up."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an experiment found."""

    tried: int
    """Gets made."""
    correct: int
    """Of these, with the newest record and nothing else."""
    forged: int = 0
    """Records accepted that nobody signed."""
    stale: int = 0
    """Gets that returned an older record of the owner."""
    messages: int = 0
    trace: str = ""

    @property
    def success(self) -> float:
        """Part of the gets that were correct."""
        return self.correct / max(1, self.tried)


class Experiment:
    """A grown world with records in it, and who put them there."""

    def __init__(
        self, *, nodes: int, records: int, seed: int, config: WorldConfig | None = None, bootnodes: int = 0
    ) -> None:
        """The first `bootnodes` nodes are whom all others join through; with 0, three by chance."""
        self.world = World(seed=seed, config=config or WorldConfig(upkeep=True), rules=RULES)
        self._bootnodes = bootnodes
        self._made = itertools.count()
        self.keys: dict[PeerID, PeerKey] = {}
        self.newest: dict[bytes, tuple[PeerID, bytes]] = {}
        """Key → owner and value that a correct get returns."""
        for _ in range(nodes):
            self.join()
            self.world.run_for(0.5)
        self.world.run_for(_SETTLE_S)
        for number in range(records):
            self.put(b"any/%d" % number, b"value %d" % number)
        self.world.run_for(_SETTLE_S)

    def join(self, *, address: str | None = None, via: Sequence[PeerID] | None = None) -> WorldNode:
        """A fresh node, through the bootnodes or three that are there."""
        key = PeerKey.dev(f"world-{next(self._made)}")
        self.keys[key.peer_id] = key
        living = self.living()
        through = via or living[: self._bootnodes] or self.world.rng.sample(living, min(3, len(living)))
        addrs = (Multiaddr(address),) if address else ()
        return self.world.add(key.peer_id, through, addrs=addrs)

    def living(self) -> list[PeerID]:
        """Everybody who is there, in the order of joining."""
        return [peer for peer, node in self.world.nodes.items() if node.alive]

    def honest(self) -> list[PeerID]:
        """Of these, who keeps the rules."""
        return [peer for peer in self.living() if peer not in self.world.adversaries]

    def put(self, name: bytes, value: bytes, *, by: PeerID | None = None) -> None:
        """A record by an honest node, the owner of an older one if there is."""
        known = self.newest.get(name)
        owner = by or (known[0] if known else self.world.rng.choice(self.honest()))
        self.world.put(self.world.nodes[owner], self.keys[owner], name, value, ttl_s=LIFE_S)
        self.newest[name] = (owner, value)

    def neighbours_known(self, count: int = 10) -> float:
        """Part of everybody's closest living `count` that it has in its table."""
        world, living = self.world, self.living()
        known = 0
        for peer in living:
            closest = [other for other in world.closest(key_of_peer(peer), count + 1) if other != peer]
            known += sum(other in world.nodes[peer].table for other in closest[:count])
        return known / max(1, count * len(living))

    def kill(self, part: float) -> None:
        """That part of the nodes is gone at once."""
        living = self.living()
        for peer in self.world.rng.sample(living, int(part * len(living))):
            self.world.kill(peer)

    def check(self, names: Sequence[bytes], *, paths: int | None = None, askers: Sequence[PeerID] = ()) -> Finding:
        """Get each of these keys from a random honest node that does not own it, and compare."""
        outcomes = []
        for name in names:
            owner, _ = self.newest[name]
            others = [peer for peer in askers or self.honest() if peer != owner]
            if not others:
                continue
            asker = self.world.rng.choice(others)
            outcomes.append((name, self.world.get(self.world.nodes[asker], name, paths=paths)))
        self.world.run_for(2 * _SETTLE_S)
        correct = forged = old = 0
        for name, outcome in outcomes:
            owner, value = self.newest[name]
            found = [record for record in outcome.records.values() if record.owner == owner]
            forged += sum(not _is_signed(record) for record in outcome.records.values())
            correct += [record.value for record in found] == [value]
            old += bool(found) and found[0].value != value
        return Finding(len(outcomes), correct, forged, old, self.world.messages, self.world.digest())


def kill_twice(*, nodes: int, records: int, seed: int, part: float = 0.3, config: WorldConfig | None = None) -> Finding:
    """A part of the nodes dies at once; when the rest has had two rounds to repair, as large a part of it dies."""
    run = Experiment(nodes=nodes, records=records, seed=seed, config=config)
    for _ in range(2):
        run.kill(part)
        run.world.run_for(2.5 * run.world.config.schedule.sync_s)
    return run.check(list(run.newest))


def churn(
    *, nodes: int, records: int, seed: int, per_min: float = 0.1, minutes: int = 60, config: WorldConfig | None = None
) -> Finding:
    """Every minute a part of the nodes leaves without a word and as many fresh ones join, evenly over the minute;
    owners leave too, and then publish nothing anew."""
    run = Experiment(nodes=nodes, records=records, seed=seed, config=config)
    each = max(1, round(nodes * per_min))
    for _ in range(minutes):
        for _ in range(each):
            run.world.kill(run.world.rng.choice(run.living()))
            run.join()
            run.world.run_for(60.0 / each)
    return run.check(list(run.newest))


@dataclass(frozen=True, slots=True)
class Healing:
    """How two halves came together again."""

    neighbours_apart: float
    """Part of everybody's ten closest it knew, when the halves could reach each other again."""
    neighbours_after: float
    """The same some time later."""
    gets: Finding
    """Then."""


def partition(
    *,
    nodes: int,
    records: int,
    seed: int,
    minutes: float = 10.0,
    healing_s: float = 150.0,
    config: WorldConfig | None = None,
) -> Healing:
    """The network falls into halves for a while, both of which go on writing; afterwards neighbours know each other
    again and the newest record of each key is what everybody finds. Two bootnodes, one in each half, are all that every
    node was told. `healing_s` is two rounds in which bootnodes are tried, and a little; nothing is published anew for
    twice as long."""
    run = Experiment(nodes=nodes, records=records, seed=seed, config=config, bootnodes=2)
    left, right = run.living()[::2], run.living()[1::2]
    run.world.split((left, right))
    names = list(run.newest)
    run.world.run_for(minutes * 30.0)
    for number, name in enumerate(names):
        if number % 2:
            run.put(name, b"newer %d" % number)
    for number in range(records):
        run.put(b"any/new-%d" % number, b"new", by=run.world.rng.choice((left, right)[number % 2]))
    run.world.run_for(minutes * 30.0)
    run.world.heal()
    apart = run.neighbours_known()
    run.world.run_for(healing_s)
    return Healing(apart, run.neighbours_known(), run.check(list(run.newest)))


def byzantine(
    *, nodes: int, records: int, seed: int, part: float = 0.2, paths: int = 3, config: WorldConfig | None = None
) -> Finding:
    """A part of the nodes lies: names its own kind only, or peers that do not exist, says nothing, drops what it says
    it stored, forges, or returns what is old. They were there before the records, half of which were replaced since."""
    run = Experiment(nodes=nodes, records=0, seed=seed, config=config)
    living = run.living()
    liars = run.world.rng.sample(living, int(part * len(living)))
    infos = [run.world.nodes[peer].info for peer in liars]
    invented = invented_peers(4 * nodes, rng=run.world.rng)
    kinds = (wrong_peers(infos), wrong_peers(invented), silent_on_everything(), drops_stores(), forges(), stale())
    for number, peer in enumerate(liars):
        run.world.adversaries[peer] = kinds[number % len(kinds)]
    for round_ in range(2):
        for number in range(records):
            if round_ == 0 or number % 2:
                run.put(b"any/%d" % number, b"value %d in round %d" % (number, round_))
        run.world.run_for(_SETTLE_S)
    return run.check(list(run.newest), paths=paths)


@dataclass(frozen=True, slots=True)
class Eclipse:
    """How an attempt to surround one node ended."""

    honest_before: int
    honest_after: int
    """Honest peers in the victim's table."""
    sybils: int
    """Sybils in it."""
    lost_buckets: int
    """Buckets that had honest peers and have none any more."""
    gets: Finding
    """The victim's."""


def eclipse(
    *,
    nodes: int,
    records: int,
    seed: int,
    sybils: int = 200,
    groups: int = 4,
    minutes: float = 10.0,
    config: WorldConfig | None = None,
) -> Eclipse:
    """Sybils in a few IP groups, whose ids share many bits with the victim's, keep calling it for some minutes while
    honest nodes, each in a group of its own, go on as always. What the victim gets afterwards, its table decides."""
    run = Experiment(nodes=0, records=0, seed=seed, config=config)
    for number in range(nodes):
        run.join(address=f"/ip4/{20 + number // 200}.{number % 200}.0.1/tcp/4001")
        run.world.run_for(0.5)
    for number in range(records):
        run.put(b"any/%d" % number, b"value %d" % number)
    victim = run.world.nodes[run.honest()[nodes // 2]]
    place = key_of_peer(victim.info.peer_id)
    run.world.run_for(_SETTLE_S)
    before = {info.peer_id for info in victim.table}
    had = {victim.table.bucket_index(key_of_peer(peer)) for peer in before}
    ground = sorted(
        (info.peer_id for info in invented_peers(20 * sybils, rng=run.world.rng)),
        key=lambda peer: key_of_peer(peer) ^ place,
    )
    infos = []
    for number, peer in enumerate(ground[:sybils]):
        address = Multiaddr(f"/ip4/99.{number % groups}.{number // groups}.1/tcp/4001")
        infos.append(run.world.add(peer, addrs=(address,), upkeep=False).info)
    lie = wrong_peers(infos)
    for info in infos:
        run.world.adversaries[info.peer_id] = lie
    for _ in range(round(6 * minutes)):
        for info in infos:
            run.world.call(run.world.nodes[info.peer_id], victim.info.peer_id)
        run.world.run_for(10.0)
    after = {info.peer_id for info in victim.table}
    has = {victim.table.bucket_index(key_of_peer(peer)) for peer in after if peer not in run.world.adversaries}
    gets = run.check(list(run.newest), paths=3, askers=[victim.info.peer_id])
    return Eclipse(
        len(before),
        sum(peer not in run.world.adversaries for peer in after),
        sum(peer in run.world.adversaries for peer in after),
        len({index for index in had if index < victim.table.buckets - 1} - has),
        gets,
    )


@dataclass(frozen=True, slots=True)
class Surrounded:
    """What became of records under keys that Sybils surround."""

    before: Finding
    """Gets of records put before the Sybils came."""
    after: Finding
    """Gets of newer records of the same owners, put when they were there."""
    others: Finding
    """Gets of newer records under other keys, meanwhile."""


def surround(
    *,
    nodes: int,
    records: int,
    seed: int,
    keys: int = 10,
    sybils: int = 20,
    groups: int = 4,
    rounds: int = 5,
    config: WorldConfig | None = None,
) -> Surrounded:
    """Around each of the first `keys` keys so many Sybils that lie closer to it than any honest node; they call those
    near, `rounds` times in as many half minutes. What is put there from then on has most of its replicas with them, and
    they drop it. The limits on IP groups, which are about tables, let them in: each bucket has room for some of each
    group. What is left is the owner's own copy, and that whoever becomes a member has staked for it."""
    run = Experiment(nodes=nodes, records=0, seed=seed, config=config)
    world = run.world
    names = [b"any/%d" % number for number in range(records)]
    for name in names:
        run.put(name, b"before")
    world.run_for(3 * _SETTLE_S)
    attacked, others = names[:keys], names[keys:]
    pool = [(key_of_peer(info.peer_id), info.peer_id) for info in invented_peers(200 * nodes, rng=world.rng)]
    honest = run.living()
    callers: list[tuple[WorldNode, list[PeerID]]] = []
    for number, name in enumerate(attacked):
        place = key_of_record(name)
        near = heapq.nsmallest(40, honest, key=lambda peer: key_of_peer(peer) ^ place)
        ground = heapq.nsmallest(sybils, pool, key=lambda one: one[0] ^ place)
        for each, (_, peer) in enumerate(ground):
            address = Multiaddr(f"/ip4/99.{each % groups}.{number % 250}.{each % 250}/tcp/4001")
            callers.append((world.add(peer, addrs=(address,), upkeep=False), near))
    lie = wrong_peers([node.info for node, _ in callers])
    world.adversaries.update((node.info.peer_id, lie) for node, _ in callers)
    for _ in range(rounds):
        for node, near in callers:
            for peer in near:
                world.call(node, peer)
        world.run_for(30.0)
    before = run.check(attacked, paths=3)
    for name in names:
        run.put(name, b"after")
    world.run_for(3 * _SETTLE_S)
    return Surrounded(before, run.check(attacked, paths=3), run.check(others, paths=3))


def _is_signed(record: Record) -> bool:
    return is_signature(record.public_key_pb, record.signed_bytes(), record.signature)
