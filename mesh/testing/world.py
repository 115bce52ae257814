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
from mesh.kad.key import Key, key_of_peer, key_of_record
from mesh.kad.lookup import Counts, Lookup, LookupConfig
from mesh.kad.record import Record, Slot, sign_record
from mesh.kad.routing import Ping, RoutingConfig, RoutingTable
from mesh.kad.store import RecordStore
from mesh.kad.validator import NamespaceRule, Purpose, RecordValidator
from mesh.peer import PeerID, PeerInfo

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
    routing: RoutingConfig = Field(default=RoutingConfig(), description="of every node")
    lookup: LookupConfig = Field(default=LookupConfig(), description="of every lookup")


@dataclass
class WorldNode:
    """One simulated node: the pure core's parts and nothing else."""

    index: int
    info: PeerInfo
    table: RoutingTable
    store: RecordStore
    validator: RecordValidator
    via: tuple[PeerID, ...] = ()
    """Through whom it joins, again if need be."""
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Message:
    """A request: whom it asks about, and what it brings or wants."""

    kind: str
    target: Key
    key: bytes | None = None
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Closer peers, records, and the reason of a refusal."""

    closer: tuple[PeerInfo, ...] = ()
    records: tuple[Record, ...] = ()
    refused: str = ""


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

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def digest(self) -> str:
        """Hash of all messages so far, with their times: equal for equal runs."""
        return self._trace.hexdigest()

    @property
    def wall(self) -> float:
        """Unix seconds, for records."""
        return EPOCH0 + self.now

    # -- nodes --

    def add(self, peer: PeerID, via: Iterable[PeerID] = ()) -> WorldNode:
        """A node that is there from now on; with `via` it joins through these."""
        local = key_of_peer(peer)
        node = WorldNode(
            len(self.nodes),
            PeerInfo(peer),
            RoutingTable(local, config=self.config.routing),
            RecordStore(local),
            RecordValidator(self._rules, subnet_id=SUBNET_ID, genesis=GENESIS),
            tuple(via),
        )
        self.nodes[peer] = node
        if node.via:
            self.join(node)
        return node

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
        message = Message("store", key_of_record(name), record=record)
        return self._drive(node, self.config.replicas, message, None, alpha=self.config.replicas)

    def get(self, node: WorldNode, name: bytes) -> Outcome:
        """The newest valid records under a key."""
        return self._drive(
            node,
            self.config.read_width,
            Message("find", key_of_record(name), key=name),
            None,
            alpha=self.config.read_width,
        )

    # -- inside --

    def _drive(
        self, node: WorldNode, k: int, message: Message, then: Callable[[Outcome], None] | None, *, alpha: int
    ) -> Outcome:
        config = self.config.lookup.model_copy(update={"alpha": alpha})
        lookup = Lookup(message.target, k, local=node.info.peer_id, config=config)
        lookup.start(node.table.closest(message.target, max(k, self.config.routing.bucket_size)))
        outcome = Outcome(lookup)
        alarm = float("inf")

        def ring() -> None:
            nonlocal alarm
            alarm = float("inf")
            advance()

        def advance() -> None:
            nonlocal alarm
            if outcome.done:
                return
            for info in lookup.next_requests(self.now):
                ask(info)
            is_miss = lookup.finished and message.key is not None and not outcome.records
            if is_miss and lookup.k < self.config.miss_width:
                lookup.widen(self.config.miss_width)
                advance()
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
                lookup.on_response(info.peer_id, reply.closer, now=self.now, counts=counts)
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
        receiver = self.nodes[peer]
        is_open = True

        def deliver() -> None:
            if not receiver.alive:
                return
            self._note(message.kind, node, receiver)
            self._heard(receiver, node.info)
            reply = self._answer(receiver, message)
            if peer in self.adversaries:
                reply = self.adversaries[peer](receiver, message, reply)
            self._send(lambda: back(reply))

        def back(reply: Reply) -> None:
            nonlocal is_open
            if is_open and node.alive:
                is_open = False
                self._note("reply", receiver, node)
                self._heard(node, receiver.info)
                answered(reply)

        def give_up() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                node.table.on_failure(peer)
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
        if message.key is not None:
            return Reply(closer, records=node.store.records(message.key, now=self.wall))
        return Reply(closer)

    def _heard(self, node: WorldNode, info: PeerInfo) -> None:
        ping = node.table.add(info, now=self.now)
        if ping is not None:
            self._ping(node, ping)

    def _ping(self, node: WorldNode, ping: Ping) -> None:
        peer = ping.info.peer_id
        self._call(node, peer, Message("ping", key_of_peer(peer)), lambda reply: None, lambda: None)

    def _note(self, kind: str, sender: WorldNode, receiver: WorldNode) -> None:
        self._trace.update(f"{self.now:.9f} {kind} {sender.index} {receiver.index}\n".encode())
