"""What a DHT of mesh.kad nodes outlives: five claims, each a simulated scenario that says whether it holds.

Every scenario builds a World with the product's upkeep, does harm to it, and then asks as a user would: does a get by
a random living node give the newest record? Bootnodes (routing only) are the fixed point that newcomers know; they are
not killed. A scenario is a function of its parameters and seed alone; `tests/sim` runs them small,
`benchmarks/dht_scenarios.py` in full.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh.identity import PeerKey
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.lookup import LookupConfig
from mesh.kad.record import Slot
from mesh.kad.routing import ip_group
from mesh.kad.schedule import ScheduleConfig
from mesh.kad.validator import NamespaceRule
from mesh.kad.wire import Role
from mesh.peer import Multiaddr, PeerID, PeerInfo
from mesh.testing.adversaries import DropsStores, Forger, Stale, Sybil, WrongPeers, ground_peers, invented_peers
from mesh.testing.world import Adversary, Outcome, World, WorldConfig, WorldNode

RULES: Final = (NamespaceRule("any", max_value_bytes=1024, max_ttl_s=86_400.0),)
BOOTNODES: Final = 2
TTL_S: Final = 10_000.0
"""Longer than any scenario: no record expires, all of them must be found."""
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Claim:
    """How a scenario ended: whether its claim holds, and what was counted."""

    scenario: str
    claim: str
    holds: bool
    figures: Figures
    trace: str


@dataclass
class Town:
    """A world with bootnodes, nodes that joined through them, and the records they put."""

    world: World
    boot: list[PeerID] = field(default_factory=list)
    keys: dict[PeerID, PeerKey] = field(default_factory=dict)
    newest: dict[Slot, bytes] = field(default_factory=dict)
    """The value each slot should have."""
    born: int = 0

    @property
    def living(self) -> list[WorldNode]:
        """Living nodes that hold replicas, in the order they came."""
        nodes = self.world.nodes
        return [nodes[peer] for peer in self.keys if nodes[peer].alive]

    def arrive(self, *, addrs: tuple[Multiaddr, ...] = ()) -> WorldNode:
        """A fresh node joins through the bootnodes."""
        key = PeerKey.dev(f"town-{self.born}")
        self.born += 1
        self.keys[key.peer_id] = key
        return self.world.add(key.peer_id, self.boot, addrs=addrs)

    def put(self, node: WorldNode, name: bytes, value: bytes) -> Outcome:
        """A node puts a record, which is the newest of its slot from now on."""
        self.newest[Slot(name, node.peer, b"")] = value
        return self.world.put(node, self.keys[node.peer], name, value, ttl_s=TTL_S)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.world.run(until=self.world.now + seconds)

    def pick(self) -> WorldNode:
        """A random living node."""
        return self.world.rng.choice(self.living)

    def check(self, slots: Sequence[Slot] | None = None, *, askers: Sequence[WorldNode] | None = None) -> Found:
        """Get every slot (of these) from a random living node that is not its owner."""
        world = self.world
        chosen = sorted(self.newest, key=lambda slot: (slot.key, slot.owner)) if slots is None else slots
        asked: list[tuple[Slot, Outcome]] = []
        among = self.living if askers is None else list(askers)
        for slot in chosen:
            asker = world.rng.choice([node for node in among if node.peer != slot.owner])
            asked.append((slot, world.get(asker, slot.key)))
            if len(asked) % 20 == 19:
                self.wait(0.5)
        world.run_until_done([outcome for _, outcome in asked])
        found = Found()
        for slot, outcome in asked:
            record = outcome.records.get(slot)
            found.asked += 1
            if record is None:
                found.missing += 1
            elif record.value == self.newest[slot]:
                found.correct += 1
            elif record.value == b"forged":
                found.forged += 1
            else:
                found.old += 1
        return found

    def copies(self) -> float:
        """Mean living copies of the newest record of each slot, its owner's left out."""
        count = 0
        for slot, value in self.newest.items():
            holders = self.world.holders(slot)
            count += sum(record.value == value for peer, record in holders.items() if peer != slot.owner)
        return count / max(1, len(self.newest))


@dataclass
class Found:
    """What gets gave."""

    asked: int = 0
    correct: int = 0
    missing: int = 0
    old: int = 0
    forged: int = 0

    @property
    def part(self) -> float:
        """Part that was right."""
        return self.correct / max(1, self.asked)

    def add(self, other: Found) -> None:
        """Count these as well."""
        self.asked += other.asked
        self.correct += other.correct
        self.missing += other.missing
        self.old += other.old
        self.forged += other.forged


def built(
    nodes: int,
    records: int,
    *,
    seed: int,
    config: WorldConfig,
    addrs: Callable[[int], tuple[Multiaddr, ...]] = lambda index: (),
    settle_s: float = 30.0,
) -> Town:
    """A town where everybody has joined, one a second, and `records` random nodes have put a record each."""
    town = Town(World(seed=seed, config=config, rules=RULES))
    for index in range(BOOTNODES):
        peer = PeerKey.dev(f"boot-{index}").peer_id
        town.world.add(peer, town.boot[:], role=Role.ROUTING_ONLY)
        town.boot.append(peer)
    for index in range(nodes):
        town.arrive(addrs=addrs(index))
        town.wait(1.0)
    town.wait(settle_s)
    fill(town, records)
    town.wait(settle_s)
    return town


def fill(town: Town, records: int, *, prefix: str = "any") -> None:
    """Random nodes put a record each."""
    puts: list[Outcome] = []
    for number in range(records):
        puts.append(town.put(town.pick(), f"{prefix}/{number}".encode(), b"first"))
        if number % 20 == 19:
            town.wait(0.5)
    town.world.run_until_done(puts)


# --- the scenarios ------------------------------------------------------------------------------------------


def kills(
    *,
    nodes: int = 200,
    records: int = 400,
    replicas: int = 5,
    seed: int = 1,
    part: float = 0.3,
    interval_s: float = 120.0,
) -> Claim:
    """30 % of all nodes die at once; after the repair interval, 30 % of the others: every record is still found."""
    town = built(nodes, records, seed=seed, config=WorldConfig(replicas=replicas, upkeep=ScheduleConfig()))
    before = town.copies()
    figures: Figures = {"nodes": nodes, "records": records, "replicas": replicas, "interval_s": interval_s}
    lost = 0
    for blow in ("first", "second"):
        for node in town.world.rng.sample(town.living, round(part * len(town.living))):
            town.world.kill(node.peer)
        lost += sum(not town.world.holders(slot) for slot in town.newest) - lost
        town.wait(interval_s)
        figures[f"copies_after_{blow}"] = town.copies()
    found = town.check()
    figures |= {"copies_before": before, "lost_with_all_holders": lost, "found": found.part, "old": found.old}
    return Claim(
        "kills",
        f"30 % killed, {interval_s:.0f} s later 30 % more: all records found",
        found.correct == found.asked,
        figures | costs(town),
        town.world.digest(),
    )


def churn(
    *,
    nodes: int = 100,
    records: int = 200,
    replicas: int = 5,
    seed: int = 2,
    part_per_min: float = 0.1,
    minutes: float = 60.0,
) -> Claim:
    """A tenth of the nodes leaves every minute without a word and as many fresh ones come: ≥ 99.9 % of the records are
    found, asked all the time."""
    town = built(nodes, records, seed=seed, config=WorldConfig(replicas=replicas, upkeep=ScheduleConfig()))
    world = town.world
    step_s = 60.0 / (part_per_min * nodes)
    slots = sorted(town.newest, key=lambda slot: (slot.key, slot.owner))
    found = Found()
    steps = round(minutes * 60.0 / step_s)
    for _ in range(steps):
        world.kill(town.pick().peer)
        town.arrive()
        town.wait(step_s)
        found.add(town.check(world.rng.sample(slots, min(4, len(slots)))))
    copies = town.copies()
    last = town.check()
    found.add(last)
    return Claim(
        "churn",
        f"{part_per_min:.0%} of the nodes replaced each minute for {minutes:.0f} minutes: 99.9 % of gets succeed",
        found.part >= 0.999 and last.part >= 0.999,
        {
            "nodes": nodes, "records": records, "replicas": replicas, "replaced": steps, "gets": found.asked,
            "found": found.part, "found_at_the_end": last.part, "copies_at_the_end": copies,
            "lost_with_all_holders": sum(not world.holders(slot) for slot in slots),
        } | costs(town),
        world.digest(),
    )  # fmt: skip


def partition(
    *,
    nodes: int = 200,
    records: int = 200,
    replicas: int = 5,
    seed: int = 3,
    apart_s: float = 600.0,
    healing_s: float = 180.0,
) -> Claim:
    """Two halves cannot reach each other for ten minutes while owners on both sides write anew. When they can, every
    get gives the newest record, and no replica is left with an older one."""
    town = built(nodes, records, seed=seed, config=WorldConfig(replicas=replicas, upkeep=ScheduleConfig()))
    world = town.world
    everybody = [*town.boot, *town.keys]
    sides = {peer: index % 2 for index, peer in enumerate(everybody)}
    world.split(sides)
    town.wait(apart_s / 2)
    nodes_by_peer = world.nodes
    puts: list[Outcome] = []
    for slot in sorted(town.newest, key=lambda slot: (slot.key, slot.owner))[::2]:  # half the slots, on both sides
        puts.append(town.put(nodes_by_peer[slot.owner], slot.key, b"second"))
    world.run_until_done(puts)
    town.wait(apart_s / 2)
    world.heal()
    during = town.check()
    town.wait(healing_s)
    after = town.check()
    old = 0
    for slot, value in town.newest.items():
        near = set(world.closest(key_of_record(slot.key), replicas + BOOTNODES))
        old += any(record.value != value for peer, record in world.holders(slot).items() if peer in near)
    return Claim(
        "partition",
        f"{apart_s:.0f} s apart with writes on both sides: {healing_s:.0f} s after it nothing newer has lost",
        after.correct == after.asked and old == 0,
        {
            "nodes": nodes, "records": records, "replicas": replicas, "rewritten": len(puts),
            "found_at_once": during.part, "old_at_once": during.old, "found": after.part, "old": after.old,
            "slots_with_an_old_replica": old, "copies": town.copies(),
        } | costs(town),
        world.digest(),
    )  # fmt: skip


def byzantine(
    *,
    nodes: int = 200,
    records: int = 200,
    replicas: int = 5,
    seed: int = 4,
    part: float = 0.2,
    gets: int = 1000,
    lookup: LookupConfig | None = None,
) -> Claim:
    """20 % of the nodes lie, each in one of five ways, from the time they joined: ≥ 99 % of the gets of honest nodes are
    right, and no forgery is taken."""
    config = WorldConfig(replicas=replicas, upkeep=ScheduleConfig(), lookup=lookup or LookupConfig())
    town = built(nodes, 0, seed=seed, config=config)
    world = town.world
    liars = world.rng.sample(town.living, round(part * nodes))
    accomplices = [node.info for node in liars]
    phantoms = invented_peers(4 * nodes, rng=world.rng)
    ways: tuple[Callable[[], Adversary], ...] = (
        lambda: WrongPeers(accomplices),
        lambda: WrongPeers(phantoms),
        DropsStores,
        Forger,
        Stale,
    )
    for number, liar in enumerate(liars):
        world.adversaries[liar.peer] = ways[number % len(ways)]()
    honest = [node for node in town.living if node.peer not in world.adversaries]
    puts = [town.put(world.rng.choice(honest), b"any/%d" % number, b"first") for number in range(records)]
    town.wait(60.0)
    for slot in sorted(town.newest, key=lambda slot: (slot.key, slot.owner))[::2]:
        puts.append(town.put(world.nodes[slot.owner], slot.key, b"second"))
    world.run_until_done(puts)
    town.wait(60.0)
    slots = sorted(town.newest, key=lambda slot: (slot.key, slot.owner))
    found = Found()
    for start in range(0, gets, len(slots)):
        found.add(town.check(slots[: gets - start], askers=honest))
    return Claim(
        "byzantine",
        f"{part:.0%} of the nodes lie: 99 % of gets are right, no forgery is taken",
        found.part >= 0.99 and found.forged == 0,
        {
            "nodes": nodes, "records": records, "replicas": replicas, "liars": len(liars), "gets": found.asked,
            "right": found.part, "missing": found.missing, "old": found.old, "forged": found.forged,
        } | costs(town),
        world.digest(),
    )  # fmt: skip


def eclipse(
    *,
    nodes: int = 200,
    records: int = 100,
    sybils: int = 200,
    groups: int = 4,
    replicas: int = 5,
    seed: int = 5,
    minutes: float = 10.0,
) -> Claim:
    """200 Sybils in 4 networks, their ids ground to lie around a victim, talk to it all the time: it keeps honest peers
    in every bucket that had some, and what it gets is right."""

    def honest_addr(index: int) -> tuple[Multiaddr, ...]:
        return (Multiaddr(f"/ip4/{20 + index // 250}.{index % 250}.0.1/tcp/4001"),)

    town = built(
        nodes, records, seed=seed, config=WorldConfig(replicas=replicas, upkeep=ScheduleConfig()), addrs=honest_addr
    )
    world = town.world
    victim = town.living[nodes // 2]
    had = [index for index in range(victim.table.buckets) if victim.table.bucket_peers(index)]
    rng = random.Random(seed)
    place = key_of_peer(victim.peer)
    bits = nodes.bit_length()
    ground = ground_peers(sybils // 2, place, bits=bits, rng=rng)  # closer than any honest peer
    for index in range(sybils - len(ground)):  # and some for every bucket
        ground += ground_peers(1, victim.table.random_key(index % len(had), rng=rng), bits=bits // 2, rng=rng)
    infos = [
        PeerInfo(peer, (Multiaddr(f"/ip4/66.{number % groups}.{number // 250}.{number % 250}/tcp/4001"),))
        for number, peer in enumerate(ground)
    ]
    sybil = Sybil(infos)
    for info in infos:
        world.add(info.peer_id, [victim.peer], addrs=info.addrs)
        world.adversaries[info.peer_id] = sybil
        town.wait(0.25)
    town.wait(minutes * 60.0)
    bad = {info.peer_id for info in infos}
    left = [index for index in had if any(info.peer_id not in bad for info in victim.table.bucket_peers(index))]
    table = list(victim.table)
    by_victim = town.check(askers=[victim])
    by_others = town.check(askers=[node for node in town.living if node is not victim])
    in_groups = {ip_group(info.addrs) for info in table if info.peer_id in bad}
    return Claim(
        "eclipse",
        f"{sybils} Sybils in {groups} networks around a victim: every bucket keeps honest peers, its gets are right",
        len(left) == len(had) and by_victim.correct == by_victim.asked,
        {
            "nodes": nodes, "records": records, "replicas": replicas, "buckets_with_honest_before": len(had),
            "of_them_after": len(left), "sybils_in_table": sum(info.peer_id in bad for info in table),
            "groups_of_them": len(in_groups), "peers_in_table": len(table), "gets": by_victim.asked,
            "right": by_victim.part, "missing": by_victim.missing, "right_for_others": by_others.part,
        } | costs(town),
        world.digest(),
    )  # fmt: skip


SCENARIOS: Final[dict[str, Callable[..., Claim]]] = {
    "kills": kills,
    "churn": churn,
    "partition": partition,
    "byzantine": byzantine,
    "eclipse": eclipse,
}


def costs(town: Town) -> Figures:
    """What the network spent."""
    world = town.world
    return {"messages": world.messages, "records_sent": world.records_sent, "virtual_s": round(world.now, 1)}
