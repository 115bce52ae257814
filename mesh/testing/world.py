"""World: the Kademlia core of mesh.kad under a bare event loop, for thousands of nodes.

No trio, no sockets, no wall clock: a heap of events and one seeded rng. It answers questions about the
algorithm (does a lookup find what brute force finds? how many messages does a put cost at 1000 nodes?), in
seconds and reproducibly: the same seed gives the same trace, whatever PYTHONHASHSEED. What it cannot show,
the shell's timeouts and cancellation, is for SimNetwork and `run_sim`.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RecordRejected
from mesh.identity import PeerKey
from mesh.kad.diversity import crowding, outside, second_seeds
from mesh.kad.key import Key, key_of_peer, key_of_record
from mesh.kad.lookup import Counts, Lookup, LookupConfig
from mesh.kad.patience import Patience, PatienceConfig
from mesh.kad.record import Record, Slot, sign_record
from mesh.kad.rejoin import strangers_near, whom_to_ask
from mesh.kad.replicas import MAX_OFFER, Refusals, by_peer, is_first_to_give, owed
from mesh.kad.routing import Ping, RoutingConfig, RoutingTable
from mesh.kad.schedule import Schedule, ScheduleConfig, spread
from mesh.kad.store import Keep, RecordStore, StoreConfig
from mesh.kad.validator import NamespaceRule, Purpose, RecordValidator
from mesh.peer import Multiaddr, PeerID, PeerInfo

GENESIS = b"\x2a" * 32
SUBNET_ID = 1
EPOCH0 = 1_800_000_000.0


class WorldConfig(BaseModel):
    """A world's physics and habits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_s: float = Field(default=0.05, ge=0, description="mean one-way latency, drawn per message ± half")
    loss: float = Field(default=0.0, ge=0, lt=1, description="part of the messages that never arrive")
    timeout_s: float = Field(default=2.0, gt=0, description="when a request is given up")
    replicas: int = Field(default=5, ge=1, description="r")
    refresh_width: int = Field(
        default=5, ge=1, description="peers looked for when a bucket is refreshed: enough to meet some of it"
    )
    miss_width: int = Field(default=20, ge=1, description="such peers before a get says that nothing is there")
    read_width: int = Field(default=6, ge=1, description="closest peers that must answer a get")
    upkeep: bool = Field(
        default=False,
        description="whether nodes refresh, publish anew, sync and rejoin; such a world "
        "never comes to rest: run it until a time",
    )
    rejoin_s: float = Field(default=60.0, gt=0, description="how often bootnodes missing in a table are tried")
    expire_s: float = Field(default=30.0, gt=0, description="how often expired records are dropped")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="of every node")
    patience: PatienceConfig = Field(default=PatienceConfig(), description="of every node")
    routing: RoutingConfig = Field(default=RoutingConfig(), description="of every node")
    store: StoreConfig = Field(default=StoreConfig(), description="of every node")
    lookup: LookupConfig = Field(default=LookupConfig(), description="of every lookup")


@dataclass
class WorldNode:
    """One simulated node: the pure core's parts and nothing else."""

    index: int
    info: PeerInfo
    table: RoutingTable
    store: RecordStore
    validator: RecordValidator
    schedule: Schedule
    patience: Patience
    via: tuple[PeerID, ...] = ()
    """Through whom it joins, again if need be."""
    alive: bool = True
    side: int = 0
    """Of a partition: messages between different sides are lost."""
    own: dict[Slot, Record] = field(default_factory=dict)
    """What it publishes anew."""
    refusals: Refusals = field(default_factory=Refusals)
    partners: frozenset[PeerID] = frozenset()
    """Whom it offered something in its last round: who holds records with it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request: whom it asks about, and what it brings or wants."""

    kind: str
    target: Key
    key: bytes | None = None
    record: Record | None = None
    digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """Closer peers, records, the reason of a refusal, and the places of the digests wanted."""

    closer: tuple[PeerInfo, ...] = ()
    records: tuple[Record, ...] = ()
    refused: str = ""
    wanted: tuple[int, ...] = ()


@dataclass
class Outcome:
    """What came of a lookup, put or get; `done` once it is finished."""

    lookup: Lookup
    done: bool = False
    stored: list[PeerID] = field(default_factory=list)
    records: dict[Slot, Record] = field(default_factory=dict)

    @property
    def peers(self) -> list[PeerID]:
        """The closest that answered."""
        return [info.peer_id for info in self.lookup.closest()]


Adversary = Callable[[WorldNode, Message, Reply], Reply]
"""Turns an honest reply into what this node answers instead."""


class World:
    """Nodes, messages between them, and time."""

    def __init__(self, *, seed: int, config: WorldConfig | None = None, rules: Sequence[NamespaceRule] = ()) -> None:
        self.config = config or WorldConfig()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.messages = 0
        self.given = 0
        """Records sent to peers that should hold them and had said, or seemed, to lack them."""
        self.nodes: dict[PeerID, WorldNode] = {}
        self.adversaries: dict[PeerID, Adversary] = {}
        self._rules = tuple(rules)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._trace = hashlib.sha256()

    # -- time --

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later; ties in the order of asking."""
        self.at(self.now + delay_s, action)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    def run(self, until: float | None = None) -> None:
        """Until nothing is left to happen, or until a time."""
        while self._events and (until is None or self._events[0][0] <= until):
            self.now, _, action = heapq.heappop(self._events)
            action()
        if until is not None:
            self.now = max(self.now, until)

    def run_for(self, seconds: float) -> None:
        """For so long."""
        self.run(until=self.now + seconds)

    def digest(self) -> str:
        """Hash of all messages so far, with their times: equal for equal runs."""
        return self._trace.hexdigest()

    @property
    def wall(self) -> float:
        """Unix seconds, for records."""
        return EPOCH0 + self.now

    # -- nodes --

    def add(
        self,
        peer: PeerID,
        via: Iterable[PeerID] = (),
        *,
        addrs: tuple[Multiaddr, ...] = (),
        upkeep: bool | None = None,
    ) -> WorldNode:
        """A node that is there from now on; with `via` it joins through these. `addrs` count for the limits on IP
        groups only; `upkeep` is the config's unless told."""
        local = key_of_peer(peer)
        node = WorldNode(
            len(self.nodes),
            PeerInfo(peer, addrs),
            RoutingTable(local, config=self.config.routing),
            RecordStore(local, self.config.store),
            RecordValidator(self._rules, subnet_id=SUBNET_ID, genesis=GENESIS),
            Schedule(self.config.schedule, rng=self.rng),
            Patience(self.config.patience),
            tuple(via),
        )
        self.nodes[peer] = node
        if node.via:
            self.join(node)
        if self.config.upkeep if upkeep is None else upkeep:
            node.schedule.synced(now=self.now)
            self._again(node, lambda: self.config.schedule.sync_soon_s, self._keep_up)
            self._again(node, lambda: self.config.rejoin_s, self._rejoin)
            self._again(node, lambda: self.config.expire_s, self._expire)
        return node

    def kill(self, peer: PeerID) -> None:
        """The node is gone, without a word; what it held is lost."""
        self.nodes[peer].alive = False

    def split(self, sides: Sequence[Iterable[PeerID]]) -> None:
        """Messages between these groups are lost from now on, those under way too; who is in none is with the
        first."""
        for number, side in enumerate(sides):
            for peer in side:
                self.nodes[peer].side = number

    def heal(self) -> None:
        """Everybody reaches everybody again."""
        for node in self.nodes.values():
            node.side = 0

    def join(self, node: WorldNode) -> None:
        """Look for ourselves, then refresh every bucket. Tried again until somebody answers."""
        for peer in node.via:
            if not len(node.table):
                self._heard(node, self.nodes[peer].info)

        def refresh(outcome: Outcome) -> None:
            if not outcome.peers:  # all messages lost, or nobody there: try again, as the shell does for ever
                if node.alive:
                    self.after(self.config.timeout_s, lambda: self.join(node))
                return
            for index in range(node.table.buckets):
                self.lookup(node, node.table.random_key(index, rng=self.rng), k=self.config.refresh_width)

        self.lookup(node, key_of_peer(node.info.peer_id), then=refresh)

    def closest(self, target: Key, count: int) -> list[PeerID]:
        """Brute force: the closest living nodes of all."""
        living = [peer for peer, node in self.nodes.items() if node.alive]
        return sorted(living, key=lambda peer: key_of_peer(peer) ^ target)[:count]

    # -- operations; each returns at once and is done after `run` --

    def lookup(
        self, node: WorldNode, target: Key, *, k: int | None = None, then: Callable[[Outcome], None] | None = None
    ) -> Outcome:
        """The k closest peers to `target`, the asking node itself left out."""
        k = self.config.routing.bucket_size if k is None else k
        return self._drive(node, k, Message("find", target), then, alpha=self.config.lookup.alpha)

    def put(
        self, node: WorldNode, key: PeerKey, name: bytes, value: bytes, *, ttl_s: float = 3600.0, seq: int | None = None
    ) -> Outcome:
        """Sign a record and store it at the r closest."""
        record = sign_record(
            key,
            name,
            value,
            expiry_ms=int((self.wall + ttl_s) * 1000),
            seq=int(self.wall * 1000) if seq is None else seq,
            subnet_id=SUBNET_ID,
            genesis=GENESIS,
        )
        held = node.store.held(record.slot)
        if held is None or held.order < record.order:
            node.store.put(record, max_per_owner=node.validator.rule(name).max_records_per_owner, keep=Keep.OWN)
            node.own[record.slot] = record
            node.schedule.published(record.slot, now=self.now)
        return self.send_out(node, record)

    def send_out(self, node: WorldNode, record: Record) -> Outcome:
        """Store a record at the r closest."""
        message = Message("store", key_of_record(record.key), record=record)
        return self._drive(node, self.config.replicas, message, None, alpha=self.config.replicas)

    def get(self, node: WorldNode, name: bytes, *, paths: int | None = None) -> Outcome:
        """The newest valid records under a key, along so many disjoint paths."""
        message = Message("find", key_of_record(name), key=name)
        return self._drive(node, self.config.read_width, message, None, alpha=self.config.read_width, paths=paths)

    def call(self, node: WorldNode, peer: PeerID) -> None:
        """One node calls another for no purpose but to be heard of."""
        self._call(node, peer, Message("ping", key_of_peer(peer)), lambda reply: None, lambda: None)

    # -- inside --

    def _drive(
        self,
        node: WorldNode,
        k: int,
        message: Message,
        then: Callable[[Outcome], None] | None,
        *,
        alpha: int,
        paths: int | None = None,
        seeds: Sequence[PeerInfo] = (),
        first: Outcome | None = None,
        without: frozenset[str] = frozenset(),
    ) -> Outcome:
        """With `first`, a second opinion on it: of peers outside these IP groups, beginning with the seeds only."""
        paths = paths or self.config.lookup.paths
        config = self.config.lookup.model_copy(update={"alpha": alpha, "paths": paths})
        lookup = Lookup(message.target, k, local=node.info.peer_id, config=config, patience=node.patience)
        known = node.table.closest(message.target, max(k, self.config.routing.bucket_size)) if first is None else ()
        lookup.start((*seeds, *known))
        outcome = Outcome(lookup) if first is None else first
        outcome.lookup = lookup
        alarm = float("inf")

        def ring() -> None:
            nonlocal alarm
            alarm = float("inf")
            advance()

        def advance() -> None:
            nonlocal alarm
            if outcome.done or outcome.lookup is not lookup or not node.alive:
                return
            for info in lookup.next_requests(self.now):
                ask(info)
            is_miss = lookup.finished and message.key is not None and not outcome.records
            if is_miss and lookup.k < self.config.miss_width:
                lookup.widen(self.config.miss_width)
                advance()
                return
            if is_miss and first is None:
                crowded = crowding(lookup.closest())
                others = second_seeds(node.table, message.target, crowded, count=self.config.routing.bucket_size)
                if crowded and others:
                    self._drive(
                        node, k, message, then, alpha=alpha, paths=paths, seeds=others, first=outcome, without=crowded
                    )
                    return
            if lookup.finished:
                outcome.done = True
                if then is not None:
                    then(outcome)
                return
            wake_at = lookup.wake_at()
            if wake_at is not None and wake_at < alarm:
                alarm = max(self.now, wake_at)
                self.at(alarm, ring)

        def ask(info: PeerInfo) -> None:
            def answered(reply: Reply) -> None:
                counts = Counts.YES
                if message.kind == "store":
                    if reply.refused in ("", "duplicate"):
                        outcome.stored.append(info.peer_id)
                    elif reply.refused == "full":
                        counts = Counts.ROUTES_ONLY
                try:
                    for record in reply.records:
                        self._take(node, outcome, message, record)
                except RecordRejected:
                    failed()
                    return
                closer = outside(reply.closer, without) if without else reply.closer
                lookup.on_response(info.peer_id, closer, now=self.now, counts=counts)
                advance()

            def failed() -> None:
                lookup.on_failure(info.peer_id)
                advance()

            self._call(node, info.peer_id, message, answered, failed)

        advance()
        return outcome

    def _take(self, node: WorldNode, outcome: Outcome, message: Message, record: Record) -> None:
        if record.key != message.key:
            raise RecordRejected("key")
        held = outcome.records.get(record.slot)
        if held is None or held.order < record.order:
            node.validator.validate(record, purpose=Purpose.READ, now=self.wall, is_member=self.nodes.__contains__)
            outcome.records[record.slot] = record

    def _call(
        self,
        node: WorldNode,
        peer: PeerID,
        message: Message,
        answered: Callable[[Reply], None],
        failed: Callable[[], None],
    ) -> None:
        receiver = self.nodes.get(peer)  # none: a liar made it up
        is_open = True

        def deliver() -> None:
            if receiver is None or not receiver.alive or receiver.side != node.side:
                return
            self._note(message.kind, node, receiver)
            self._heard(receiver, node.info)
            reply = self._answer(receiver, message)
            if peer in self.adversaries:
                reply = self.adversaries[peer](receiver, message, reply)
            self._send(lambda: back(reply))

        def back(reply: Reply) -> None:
            nonlocal is_open
            if is_open and node.alive and receiver is not None and receiver.side == node.side:
                is_open = False
                self._note("reply", receiver, node)
                self._heard(node, receiver.info)
                answered(reply)

        def give_up() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                if node.table.on_failure(peer) and peer in node.partners:
                    node.schedule.sync_soon(now=self.now)
                failed()

        self._send(deliver)
        self.after(self.config.timeout_s, give_up)

    def _send(self, deliver: Callable[[], None]) -> None:
        self.messages += 1
        latency_s = self.config.latency_s * (0.5 + self.rng.random())
        if self.rng.random() >= self.config.loss:
            self.after(latency_s, deliver)

    def _answer(self, node: WorldNode, message: Message) -> Reply:
        closer = tuple(node.table.closest(message.target, self.config.routing.bucket_size))
        if message.record is not None:
            record = message.record
            try:
                node.validator.validate(
                    record,
                    purpose=Purpose.STORE,
                    now=self.wall,
                    is_member=self.nodes.__contains__,
                    held=node.store,
                )
                node.store.put(record, max_per_owner=node.validator.rule(record.key).max_records_per_owner)
            except RecordRejected as error:
                return Reply(closer, refused=error.reason)
            return Reply(closer)
        if message.digests:
            return Reply(wanted=tuple(n for n, d in enumerate(message.digests) if not node.store.has_digest(d)))
        if message.key is not None:
            return Reply(closer, records=node.store.records(message.key, now=self.wall))
        return Reply(closer)

    def _heard(self, node: WorldNode, info: PeerInfo) -> None:
        is_new = self.config.upkeep and len(node.store) and info.peer_id not in node.table
        ping = node.table.add(info, now=self.now)
        if ping is not None:
            self._ping(node, ping)
        if is_new and info.peer_id in node.table:
            local, replicas = key_of_peer(node.info.peer_id), self.config.replicas
            for key in node.store.keys():  # noqa: SIM118 - the store iterates over records
                if is_first_to_give(key, info.peer_id, node.table, local=local, replicas=replicas):
                    for record in node.store.records(key, now=self.wall):
                        self._give(node, info.peer_id, record)

    # -- upkeep --

    def _again(self, node: WorldNode, every_s: Callable[[], float], action: Callable[[WorldNode], None]) -> None:
        def act() -> None:
            if node.alive:
                action(node)
                self._again(node, every_s, action)

        self.after(spread(every_s(), self.rng), act)

    def _keep_up(self, node: WorldNode) -> None:
        due = node.schedule.due(self.now, buckets=node.table.buckets)
        for index in due.buckets:
            node.schedule.touched(index, now=self.now)
            if len(node.table):
                self.lookup(node, node.table.random_key(index, rng=self.rng), k=self.config.refresh_width)
        for slot in due.records:
            record = node.own.get(slot)
            if record is None or record.is_expired(self.wall):
                node.own.pop(slot, None)
                node.schedule.forget(slot)
            else:
                node.schedule.published(slot, now=self.now)
                self.send_out(node, record)
        if due.sync:
            node.schedule.synced(now=self.now)
            owing = owed(
                node.store.keys(),
                node.table,
                replicas=self.config.replicas,
                local=key_of_peer(node.info.peer_id),
                near=self.config.routing.bucket_size,
            )
            told = by_peer(owing)
            node.partners = frozenset(info.peer_id for info in told)
            for info, keys in told.items():
                self._offer(node, info.peer_id, keys)

    def _offer(self, node: WorldNode, peer: PeerID, keys: Sequence[bytes]) -> None:
        records = [record for key in keys for record in node.store.records(key, now=self.wall)]
        for start in range(0, len(records), MAX_OFFER):
            batch = records[start : start + MAX_OFFER]

            def answered(reply: Reply, batch: Sequence[Record] = batch) -> None:
                for place in reply.wanted:
                    if place < len(batch):
                        self._give(node, peer, batch[place])

            message = Message("offer", key_of_peer(peer), digests=tuple(record.digest for record in batch))
            self._call(node, peer, message, answered, lambda: self._ping(node, Ping(self.nodes[peer].info)))

    def _give(self, node: WorldNode, peer: PeerID, record: Record) -> None:
        if node.refusals.holds(peer, record.digest, now=self.now):
            return
        self.given += 1

        def answered(reply: Reply) -> None:
            if reply.refused not in ("", "duplicate"):
                node.refusals.note(peer, record.digest, reply.refused, now=self.now)

        message = Message("store", key_of_record(record.key), record=record)
        self._call(node, peer, message, answered, lambda: None)

    def _rejoin(self, node: WorldNode) -> None:
        """Bootnodes that are not in the table, and one peer that is, are asked who is near us."""
        message = Message("find", key_of_peer(node.info.peer_id))
        for info in whom_to_ask(node.table, [self.nodes[peer].info for peer in node.via], rng=self.rng):
            self._call(node, info.peer_id, message, lambda reply: self._look_for_itself(node, reply), lambda: None)

    def _look_for_itself(self, node: WorldNode, reply: Reply) -> None:
        near = self.config.routing.bucket_size
        if strangers := strangers_near(node.table, node.info.peer_id, reply.closer, near=near):
            message = Message("find", key_of_peer(node.info.peer_id))
            self._drive(node, near, message, None, alpha=self.config.lookup.alpha, seeds=strangers)

    def _expire(self, node: WorldNode) -> None:
        node.store.expire(self.wall)

    def _ping(self, node: WorldNode, ping: Ping) -> None:
        peer = ping.info.peer_id
        self._call(node, peer, Message("ping", key_of_peer(peer)), lambda reply: None, lambda: None)

    def _note(self, kind: str, sender: WorldNode, receiver: WorldNode) -> None:
        self._trace.update(f"{self.now:.9f} {kind} {sender.index} {receiver.index}\n".encode())
