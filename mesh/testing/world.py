"""World: the Kademlia core of mesh.kad under a bare event loop, for thousands of nodes.

No trio, no sockets, no wall clock: a heap of events and one seeded rng. It answers questions about the
algorithm (does a lookup find what brute force finds? do records outlive the nodes that hold them?), in
seconds and reproducibly: the same seed gives the same trace, whatever PYTHONHASHSEED. What it cannot show,
the shell's timeouts and cancellation, is for SimNetwork and `run_sim`.

A world without `upkeep` comes to rest, and `run()` ends there. With it nodes refresh, republish, offer each other
records and knock at bootnodes for ever: `run(until=…)`.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RecordRejected
from mesh.identity import PeerKey, is_signature
from mesh.kad.key import Key, key_of_peer, key_of_record
from mesh.kad.lookup import Counts, Lookup, LookupConfig
from mesh.kad.record import Record, Slot, sign_record
from mesh.kad.rejoin import unmet
from mesh.kad.replicas import (
    INCARNATION_BYTES,
    MAX_OFFER,
    PASSING,
    Ledger,
    Name,
    ReplicasConfig,
    batches,
    debts,
    name_of,
    wanted,
)
from mesh.kad.routing import Ping, RoutingConfig, RoutingTable
from mesh.kad.schedule import Schedule, ScheduleConfig
from mesh.kad.store import Keep, RecordStore
from mesh.kad.validator import NamespaceRule, Purpose, RecordValidator
from mesh.kad.wire import MAX_BATCH, Role
from mesh.peer import Multiaddr, PeerID, PeerInfo

GENESIS: Final = b"\x2a" * 32
SUBNET_ID: Final = 1
EPOCH0: Final = 1_800_000_000.0
MAX_BATCH_BYTES: Final = 2**20
_FORGED: Final = frozenset({"signature", "schema", "genesis", "subnet", "namespace", "size", "key"})
"""As in the shell: refusals of a record in an answer that no honest peer can cause."""

_is_signature = functools.lru_cache(maxsize=65_536)(is_signature)
"""A thousand nodes check the same signatures; one process need not. Counted once in CPU seconds, not per node."""


class WorldConfig(BaseModel):
    """A world's physics and habits. The habits are the product's defaults."""

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
    rejoin_s: float = Field(default=60.0, gt=0, description="how often bootnodes missing in a table are tried")
    shun_s: float = Field(default=600.0, ge=0, description="how long a peer that sent a forgery is not asked")
    routing: RoutingConfig = Field(default=RoutingConfig(), description="of every node")
    lookup: LookupConfig = Field(default=LookupConfig(), description="of every lookup")
    upkeep: ScheduleConfig | None = Field(default=None, description="of every node; none: it does nothing by itself")
    sharing: ReplicasConfig = Field(default=ReplicasConfig(), description="what is offered, with upkeep")


@dataclass
class WorldNode:
    """One simulated node: the pure core's parts and nothing else."""

    index: int
    info: PeerInfo
    role: Role
    table: RoutingTable
    store: RecordStore
    validator: RecordValidator
    schedule: Schedule
    ledger: Ledger
    incarnation: bytes
    via: tuple[PeerID, ...] = ()
    """Its bootnodes: through whom it joins, again if need be."""
    alive: bool = True
    own: dict[Slot, Record] = field(default_factory=dict)
    shunned: dict[PeerID, float] = field(default_factory=dict)
    """Until when."""
    alarm: float = math.inf
    """When it looks at its schedule next."""

    @property
    def peer(self) -> PeerID:
        """Who it is."""
        return self.info.peer_id


@dataclass(frozen=True, slots=True)
class Message:
    """A request: "ping", "find" (with a key: and its records), "store", "offer"."""

    kind: str
    target: Key
    key: bytes | None = None
    records: tuple[Record, ...] = ()
    names: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """Closer peers, records, a verdict on each record stored ("": held), positions wanted of an offer."""

    closer: tuple[PeerInfo, ...] = ()
    records: tuple[Record, ...] = ()
    verdicts: tuple[str, ...] = ()
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


Honest = Callable[[Message], Reply]
Adversary = Callable[[WorldNode, Message, Honest], Reply]
"""Answers in a node's place; `honest` is what the node would do and say. See mesh.testing.adversaries."""


class World:
    """Nodes, messages between them, and time."""

    def __init__(self, *, seed: int, config: WorldConfig | None = None, rules: Sequence[NamespaceRule] = ()) -> None:
        self.config = config or WorldConfig()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.messages = 0
        self.records_sent = 0
        """Records in store requests, puts and offers alike."""
        self.nodes: dict[PeerID, WorldNode] = {}
        self.adversaries: dict[PeerID, Adversary] = {}
        self._rules = tuple(rules)
        self._sides: Mapping[PeerID, int] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._trace = hashlib.sha256()
        self._lookups: dict[int, LookupConfig] = {}

    # -- time --

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later; ties in the order of asking."""
        self.at(self.now + delay_s, action)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    def run(self, until: float | None = None) -> None:
        """Until nothing is left to happen, or until that time; `now` is that time then."""
        while self._events and (until is None or self._events[0][0] <= until):
            self.now, _, action = heapq.heappop(self._events)
            action()
        if until is not None:
            self.now = max(self.now, until)

    def run_until_done(self, outcomes: Sequence[Outcome], *, patience_s: float = 60.0) -> None:
        """Until these operations are finished; for worlds that never rest. Raises TimeoutError."""
        deadline = self.now + patience_s
        while not all(outcome.done for outcome in outcomes):
            if not self._events or self._events[0][0] > deadline:
                raise TimeoutError(f"an operation was not finished after {patience_s} s")
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

    def add(
        self,
        peer: PeerID,
        via: Iterable[PeerID] = (),
        *,
        addrs: tuple[Multiaddr, ...] = (),
        role: Role = Role.SERVER,
    ) -> WorldNode:
        """A node that is there from now on; with `via` it joins through these. One that was there comes back
        with nothing: no records, no peers."""
        local = key_of_peer(peer)
        known = self.nodes.get(peer)
        node = WorldNode(
            len(self.nodes) if known is None else known.index,
            PeerInfo(peer, addrs),
            role,
            RoutingTable(local, config=self.config.routing),
            RecordStore(local),
            RecordValidator(self._rules, subnet_id=SUBNET_ID, genesis=GENESIS, verify=_is_signature),
            Schedule(self.config.upkeep, rng=self.rng),
            Ledger(self.config.sharing),
            self.rng.randbytes(INCARNATION_BYTES),
            tuple(via),
        )
        if known is not None:
            known.alive = False
        self.nodes[peer] = node
        if node.via:
            self.join(node)
        if self.config.upkeep is not None:
            if node.via:
                self.after(self._spread(self.config.rejoin_s), lambda: self._keep_joined(node))
            self._arm(node)
        return node

    def kill(self, peer: PeerID) -> None:
        """A node is gone without a word, and all it held."""
        self.nodes[peer].alive = False

    def split(self, sides: Mapping[PeerID, int]) -> None:
        """From now on messages arrive only between nodes of one side (0 unless named); `heal` ends it."""
        self._sides = dict(sides)

    def heal(self) -> None:
        """Everybody can reach everybody again."""
        self._sides = {}

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

        self.lookup(node, key_of_peer(node.peer), then=refresh)

    def closest(self, target: Key, count: int) -> list[PeerID]:
        """Brute force: the closest living nodes of all."""
        living = [peer for peer, node in self.nodes.items() if node.alive]
        return sorted(living, key=lambda peer: key_of_peer(peer) ^ target)[:count]

    def holders(self, slot: Slot) -> dict[PeerID, Record]:
        """Brute force: which living nodes hold a record of a slot, and which one."""
        found: dict[PeerID, Record] = {}
        for peer, node in self.nodes.items():
            record = node.store.held(slot) if node.alive else None
            if record is not None:
                found[peer] = record
        return found

    # -- operations; each returns at once and is done after `run` --

    def lookup(
        self, node: WorldNode, target: Key, *, k: int | None = None, then: Callable[[Outcome], None] | None = None
    ) -> Outcome:
        """The k closest peers to `target`, the asking node itself left out."""
        k = self.config.routing.bucket_size if k is None else k
        node.schedule.touched(node.table.bucket_index(target), now=self.now)
        return self._drive(node, k, Message("find", target), then, alpha=self.config.lookup.alpha)

    def put(
        self, node: WorldNode, key: PeerKey, name: bytes, value: bytes, *, ttl_s: float = 3600.0, seq: int | None = None
    ) -> Outcome:
        """Sign a record and store it at the r closest; with upkeep it is published again while it lives. Only
        in a world with upkeep the node holds it itself."""
        record = sign_record(
            key,
            name,
            value,
            expiry_ms=int((self.wall + ttl_s) * 1000),
            seq=int(self.wall * 1000) if seq is None else seq,
            subnet_id=SUBNET_ID,
            genesis=GENESIS,
        )
        if self.config.upkeep is not None:
            node.store.put(record, max_per_owner=node.validator.rule(name).max_records_per_owner, keep=Keep.OWN)
            node.own[record.slot] = record
            node.schedule.published(record.slot, now=self.now)
            self._arm(node)
        return self._publish(node, record)

    def get(self, node: WorldNode, name: bytes) -> Outcome:
        """The newest valid records under a key."""
        outcome = self._drive(
            node,
            self.config.read_width,
            Message("find", key_of_record(name), key=name),
            None,
            alpha=self.config.read_width,
        )
        for record in node.store.records(name, now=self.wall):
            self._take(node, outcome, name, record)
        return outcome

    # -- inside: operations --

    def _publish(self, node: WorldNode, record: Record) -> Outcome:
        message = Message("store", key_of_record(record.key), records=(record,))
        return self._drive(node, self.config.replicas, message, None, alpha=self.config.replicas)

    def _drive(
        self,
        node: WorldNode,
        k: int,
        message: Message,
        then: Callable[[Outcome], None] | None,
        *,
        alpha: int,
        seeds: Sequence[PeerInfo] = (),
    ) -> Outcome:
        config = self._lookups.get(alpha)
        if config is None:
            config = self._lookups[alpha] = self.config.lookup.model_copy(update={"alpha": alpha})
        lookup = Lookup(message.target, k, local=node.peer, config=config)
        lookup.start((*seeds, *node.table.closest(message.target, max(k, self.config.routing.bucket_size))))
        outcome = Outcome(lookup)
        alarm = math.inf

        def ring() -> None:
            nonlocal alarm
            alarm = math.inf
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
                    verdict = reply.verdicts[0] if reply.verdicts else "malformed"
                    if verdict in ("", "duplicate"):
                        outcome.stored.append(info.peer_id)
                    elif verdict in ("full", "not-a-replica", "rate"):
                        counts = Counts.ROUTES_ONLY
                elif message.key is not None and self._routes_only(info.peer_id):
                    counts = Counts.ROUTES_ONLY
                for record in reply.records:
                    try:
                        self._take(node, outcome, message.key, record)
                    except RecordRejected as error:
                        if error.reason in _FORGED:
                            node.shunned[info.peer_id] = self.now + self.config.shun_s
                            self._forget(node, info.peer_id)
                            failed()
                            return
                lookup.on_response(info.peer_id, reply.closer, now=self.now, counts=counts)
                advance()

            def failed() -> None:
                lookup.on_failure(info.peer_id)
                advance()

            if self._is_shunned(node, info.peer_id):
                self.after(0.0, failed)
            else:
                self._call(node, info.peer_id, message, answered, failed)

        advance()
        return outcome

    def _take(self, node: WorldNode, outcome: Outcome, key: bytes | None, record: Record) -> None:
        if record.key != key:
            raise RecordRejected("key")
        held = outcome.records.get(record.slot)
        if held is None or held.order < record.order:
            node.validator.validate(record, purpose=Purpose.READ, now=self.wall, is_member=self.nodes.__contains__)
            outcome.records[record.slot] = record

    # -- inside: upkeep --

    def _arm(self, node: WorldNode) -> None:
        """See that the node looks at its schedule when something is due."""
        if self.config.upkeep is None:
            return
        at = node.schedule.next_at(self.now, buckets=node.table.buckets)
        if at >= node.alarm or at == math.inf:
            return
        node.alarm = at

        def ring() -> None:
            if node.alarm == at and node.alive:
                node.alarm = math.inf
                self._keep_up(node)
                self._arm(node)

        self.at(at, ring)

    def _keep_up(self, node: WorldNode) -> None:
        for expired in node.store.expire(self.wall):
            node.own.pop(expired.slot, None)
            node.schedule.forget(expired.slot)
        due = node.schedule.due(self.now, buckets=node.table.buckets, peers=(info.peer_id for info in node.table))
        for index in due.buckets:
            node.schedule.touched(index, now=self.now)
            if len(node.table):
                self.lookup(node, node.table.random_key(index, rng=self.rng), k=self.config.refresh_width)
        for slot in due.records:
            node.schedule.published(slot, now=self.now)
            self._publish(node, node.own[slot])
        # An empty table's `peers` are due as well, and done.
        node.schedule.synced(now=self.now)
        if due.peers and node.role is Role.SERVER:
            self._sync(node, due.peers)

    def _sync(self, node: WorldNode, peers: Sequence[PeerID]) -> None:
        owed = debts(
            node.store.keys(),
            functools.partial(self._replicas, node),
            local=node.peer,
            replicas=self.config.replicas,
            near=self.config.sharing.near,
            peers=frozenset(peers),
        )
        for peer, keys in owed.items():
            held = [record for key in keys for record in node.store.records(key, now=self.wall)]
            unsaid = node.ledger.unsaid(peer, held, now=self.now)
            self._offer(node, peer, unsaid, left=self.config.sharing.max_given)

    def _replicas(self, node: WorldNode, key: Key, count: int) -> list[PeerInfo]:
        """The closest that hold replicas; who does, every message says."""
        found = node.table.closest(key, count)
        if any(self._routes_only(info.peer_id) for info in found):
            every = node.table.closest(key, len(node.table))
            found = [info for info in every if not self._routes_only(info.peer_id)][:count]
        return found

    def _offer(self, node: WorldNode, peer: PeerID, unsaid: Sequence[Record], *, left: int) -> None:
        """Offer the first of what it has not spoken about, give it what it wants, and go on with the rest."""
        page, rest = unsaid[:MAX_OFFER], unsaid[MAX_OFFER:]

        def answered(reply: Reply) -> None:
            missing = [page[position] for position in reply.wanted if 0 <= position < len(page)]
            lacking = {record.digest for record in missing}
            settle([record for record in page if record.digest not in lacking])
            give(list(batches(missing[:left], max_records=MAX_BATCH, max_bytes=MAX_BATCH_BYTES)), left - len(missing))

        def give(todo: list[tuple[Record, ...]], budget: int) -> None:
            if not node.alive:
                return
            if not todo:
                if budget < 0 or (rest and budget == 0):
                    node.schedule.came(peer, now=self.now)  # the rest soon
                    self._arm(node)
                elif rest:
                    self._offer(node, peer, rest, left=budget)
                return
            batch = todo[0]

            def stored(reply: Reply) -> None:
                settle([r for r, verdict in zip(batch, reply.verdicts, strict=False) if verdict not in PASSING])
                give(todo[1:], budget)

            message = Message("store", key_of_record(batch[0].key), records=batch)
            self._call(node, peer, message, stored, lambda: None)

        def settle(records: Sequence[Record]) -> None:
            if peer in node.table:
                node.ledger.settle(peer, records, incarnation=self.nodes[peer].incarnation, now=self.now)

        def failed() -> None:
            # Once more at once: a neighbour that is gone shall be replaced within seconds.
            if peer in node.table:
                self._call(node, peer, Message("ping", key_of_peer(peer)), lambda reply: None, lambda: None)

        message = Message("offer", key_of_peer(peer), names=tuple(name_of(record) for record in page))
        self._call(node, peer, message, answered, failed)

    def _keep_joined(self, node: WorldNode) -> None:
        """Knock at the bootnodes that are missing in the table, for ever."""
        if not node.alive:
            return
        local = key_of_peer(node.peer)
        near = self.config.routing.bucket_size

        def answered(reply: Reply) -> None:
            if strangers := unmet(node.table, node.peer, reply.closer, near=near):
                self._drive(node, near, Message("find", local), None, alpha=self.config.lookup.alpha, seeds=strangers)

        for peer in node.via:
            if peer not in node.table:
                self._call(node, peer, Message("find", local), answered, lambda: None)
        self.after(self._spread(self.config.rejoin_s), lambda: self._keep_joined(node))

    def _spread(self, interval_s: float) -> float:
        return interval_s * (0.9 + 0.2 * self.rng.random())

    # -- inside: messages --

    def _call(
        self,
        node: WorldNode,
        peer: PeerID,
        message: Message,
        answered: Callable[[Reply], None],
        failed: Callable[[], None],
    ) -> None:
        receiver = self.nodes.get(peer)  # none: somebody made it up
        is_open = True

        def deliver() -> None:
            assert receiver is not None
            if not receiver.alive:
                return
            self._note(message.kind, node, receiver)
            self._heard(receiver, node.info)
            adversary = self.adversaries.get(peer)
            if adversary is None:
                reply = self._answer(receiver, message)
            else:
                reply = adversary(receiver, message, functools.partial(self._answer, receiver))
            self._send(receiver.peer, node.peer, lambda: back(reply))

        def back(reply: Reply) -> None:
            nonlocal is_open
            assert receiver is not None
            if is_open and node.alive:
                is_open = False
                self._note("reply", receiver, node)
                self._heard(node, receiver.info)
                answered(reply)

        def give_up() -> None:
            nonlocal is_open
            if is_open and node.alive:
                is_open = False
                self._failed(node, peer)
                failed()

        self._send(node.peer, peer, deliver if receiver is not None else None)
        self.after(self.config.timeout_s, give_up)

    def _send(self, sender: PeerID, receiver: PeerID, deliver: Callable[[], None] | None) -> None:
        self.messages += 1
        latency_s = self.config.latency_s * (0.5 + self.rng.random())
        is_lost = self.rng.random() < self.config.loss
        if is_lost or deliver is None:
            return
        if self._sides and self._sides.get(sender, 0) != self._sides.get(receiver, 0):
            return
        self.after(latency_s, deliver)

    def _answer(self, node: WorldNode, message: Message) -> Reply:
        if message.kind == "offer":
            if node.role is not Role.SERVER:
                return Reply()
            held = node.store
            return Reply(wanted=wanted(message.names, lambda key: [r.digest for r in held.records(key, now=self.wall)]))
        closer = tuple(node.table.closest(message.target, self.config.routing.bucket_size))
        if message.records:
            self.records_sent += len(message.records)
            return Reply(closer, verdicts=tuple(self._accept(node, record) for record in message.records))
        if message.key is not None and node.role is Role.SERVER:
            return Reply(closer, records=node.store.records(message.key, now=self.wall))
        return Reply(closer)

    def _accept(self, node: WorldNode, record: Record) -> str:
        """The verdict on a record that somebody wants stored."""
        if node.role is not Role.SERVER:
            return "not-a-replica"
        try:
            node.validator.validate(
                record, purpose=Purpose.STORE, now=self.wall, is_member=self.nodes.__contains__, held=node.store
            )
            node.store.put(record, max_per_owner=node.validator.rule(record.key).max_records_per_owner)
        except RecordRejected as error:
            return error.reason
        return ""

    def _routes_only(self, peer: PeerID) -> bool:
        node = self.nodes.get(peer)
        return node is not None and node.role is Role.ROUTING_ONLY

    def _is_shunned(self, node: WorldNode, peer: PeerID) -> bool:
        return bool(node.shunned) and node.shunned.get(peer, -math.inf) > self.now

    def _heard(self, node: WorldNode, info: PeerInfo) -> None:
        if self._is_shunned(node, info.peer_id):
            return
        is_watched = self.config.upkeep is not None and info.peer_id not in node.table
        ping = node.table.add(info, now=self.now)
        if is_watched and info.peer_id in node.table:
            node.schedule.came(info.peer_id, now=self.now)
            self._arm(node)
        if ping is not None:
            self._ping(node, ping)

    def _failed(self, node: WorldNode, peer: PeerID) -> None:
        if node.table.on_failure(peer):
            self._gone(node, peer)

    def _forget(self, node: WorldNode, peer: PeerID) -> None:
        node.table.remove(peer)
        self._gone(node, peer)

    def _gone(self, node: WorldNode, peer: PeerID) -> None:
        """A peer lost its place in the table: if it held records with us, others must."""
        if peer in node.ledger:
            node.ledger.forget(peer)
            node.schedule.lost(now=self.now)
            self._arm(node)

    def _ping(self, node: WorldNode, ping: Ping) -> None:
        peer = ping.info.peer_id
        self._call(node, peer, Message("ping", key_of_peer(peer)), lambda reply: None, lambda: None)

    def _note(self, kind: str, sender: WorldNode, receiver: WorldNode) -> None:
        self._trace.update(f"{self.now:.9f} {kind} {sender.index} {receiver.index}\n".encode())
