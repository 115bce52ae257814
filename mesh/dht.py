"""The DHT: the trio shell around mesh.kad. It moves messages over Rpc and waits; what is decided is decided
there.

A put is a lookup whose question is "please store this": the answers carry closer peers, so that with a warm
table it is one round. A get asks the closest peers and merges what they hold, the newest valid record of each
slot. Everything that comes from others (records, peers, addresses) is checked before it is kept, returned or
asked.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import PeerClass
from mesh.clock import Clock
from mesh.dht_state import DhtState
from mesh.errors import (
    DialFailed,
    LocalProtocolError,
    MeshError,
    NetworkError,
    NotAuthorized,
    RecordNotFound,
    RecordRejected,
    RemoteFailure,
    RemoteProtocolError,
)
from mesh.identity import PeerKey
from mesh.kad.key import Key, key_bytes, key_of_peer, key_of_record
from mesh.kad.lookup import Counts, Lookup, LookupConfig
from mesh.kad.record import Record, Slot, sign_record
from mesh.kad.routing import Ping, RoutingConfig, RoutingTable
from mesh.kad.schedule import Schedule, ScheduleConfig
from mesh.kad.store import Equivocation, Keep, RecordStore, StoreConfig
from mesh.kad.validator import (
    BlockPosition,
    NamespaceRule,
    Purpose,
    RecordValidator,
    ValidatorConfig,
    record_bytes,
)
from mesh.kad.wire import (
    MAX_BATCH,
    MAX_CLOSER,
    FindReply,
    FindRequest,
    PingReply,
    PingRequest,
    Role,
    StoreReply,
    StoreRequest,
    parse_addrs,
    parse_peer,
    parse_peers,
    raw_addrs,
    raw_peers,
)
from mesh.net.base import Protection
from mesh.peer import PeerID, PeerInfo
from mesh.ratelimit import Rate, RateLimiter
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method

__all__ = ["DHT", "DhtConfig", "KadServicer", "Role", "StoreReport"]

log = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=BaseModel)
ReplyT = TypeVar("ReplyT", bound=BaseModel)

STORED: Final = ""
_TAG: Final = "routing-table"
_TAG_INTERVAL_S: Final = 10.0
"""How often the network is told who is in the table; below the grace of a new connection."""
_HELD: Final = frozenset({STORED, "duplicate"})
"""Verdicts after which the replica holds the record."""
_ITS_OWN_TROUBLE: Final = frozenset({"not-a-replica", "full", "rate"})
"""Verdicts about the replica, not the record: the next closest peer is asked instead."""
_FORGED: Final = frozenset({"signature", "schema", "genesis", "subnet", "namespace", "size", "key"})
"""Refusals of a record in an answer that no honest peer can cause: the rest of the answer is not looked
at."""


class DhtConfig(BaseModel):
    """Bounds and habits of a DHT node. Defaults marked unmeasured are guesses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role = Field(default=Role.SERVER, description="what this node does for others")
    replicas: int = Field(default=5, ge=1, le=20, description="r: how many of the closest peers hold a record")
    read_width: int = Field(
        default=6, ge=1, le=20, description="how many of the closest peers must have answered a get (unmeasured)"
    )
    miss_width: int = Field(
        default=20, ge=1, le=20, description="how many must have answered before a get says that nothing is there"
    )
    refresh_width: int = Field(
        default=5, ge=1, le=20, description="peers looked for to refresh a bucket: enough to meet some of it"
    )
    request_timeout_s: float = Field(default=5.0, gt=0, description="one request")
    operation_timeout_s: float = Field(default=20.0, gt=0, description="one get, put or find in all")
    bootstrap_timeout_s: float = Field(default=5.0, gt=0, description="the first attempt to join, before started()")
    retry_min_s: float = Field(default=1.0, gt=0, description="first pause after a failed bootstrap")
    retry_max_s: float = Field(default=60.0, gt=0, description="longest pause after failed bootstraps")
    rejoin_s: float = Field(
        default=60.0, gt=0, description="how often bootnodes and cached peers missing in the table are tried"
    )
    peer_cache: int = Field(default=128, ge=0, description="peers kept on disk to come back to")
    max_page_bytes: int = Field(default=1024 * 1024, ge=1, description="records in one answer to a member")
    max_guest_page_bytes: int = Field(default=128 * 1024, ge=1, description="records in one answer to a guest")
    max_get_bytes: int = Field(
        default=16 * 2**20, ge=1, description="records one peer may answer a get with, over all pages"
    )
    max_parallel_gets: int = Field(default=8, ge=1, description="keys looked up at once by get_many")
    max_parallel_stores: int = Field(default=16, ge=1, description="peers stored at, at once, when given by name")
    member_finds_per_s: float = Field(default=200.0, gt=0, description="find requests of one member")
    guest_finds_per_s: float = Field(default=5.0, gt=0, description="find requests of one guest")
    all_guest_finds_per_s: float = Field(default=50.0, gt=0, description="find requests of all guests together")
    max_callers: int = Field(default=1024, ge=1, description="callers whose rate is remembered")
    shun_s: float = Field(default=600.0, ge=0, description="how long a peer that broke the protocol is not asked")
    max_shunned: int = Field(default=1024, ge=1, description="such peers remembered")
    max_pings: int = Field(default=256, ge=1, description="peers waiting to be pinged")
    max_handovers: int = Field(default=64, ge=1, description="new peers waiting to be given records")
    max_handover_records: int = Field(default=1024, ge=1, description="records given to one new peer")
    expire_s: float = Field(default=30.0, gt=0, description="how often expired records are dropped")
    routing: RoutingConfig = Field(default=RoutingConfig(), description="the routing table")
    lookup: LookupConfig = Field(default=LookupConfig(), description="lookups")
    store: StoreConfig = Field(default=StoreConfig(), description="records held")
    validator: ValidatorConfig = Field(default=ValidatorConfig(), description="record checks")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="refresh and republish")


@dataclass(frozen=True, slots=True)
class StoreReport:
    """How a put ended: who holds the record now besides us, and who refused it, with the reason."""

    record: Record
    stored: tuple[PeerID, ...]
    refused: Mapping[PeerID, str] = field(default_factory=dict)


class KadServicer(Servicer):
    """`/mesh/kad/1.0.0`: what other nodes ask of a DHT node."""

    protocol = "/mesh/kad/1.0.0"

    def __init__(self, dht: DHT) -> None:
        self._dht = dht

    @method(least=PeerClass.PUBLIC, timeout_s=5.0, max_request_bytes=256, max_response_bytes=256)
    async def rpc_ping(self, request: PingRequest, ctx: RpcContext) -> PingReply:
        """Answers anybody; changes nothing."""
        return PingReply(role=self._dht.role)

    @method(least=PeerClass.GUEST, timeout_s=10.0, max_request_bytes=8192, max_response_bytes=2 * 2**20)
    async def rpc_find(self, request: FindRequest, ctx: RpcContext) -> FindReply:
        """Closer peers, and a page of records. Raises NotAuthorized("rate-limited")."""
        return await self._dht._answer_find(request, ctx)

    @method(least=PeerClass.MEMBER, timeout_s=10.0, max_request_bytes=10 * 2**20, max_response_bytes=64 * 1024)
    async def rpc_store(self, request: StoreRequest, ctx: RpcContext) -> StoreReply:
        """A verdict on each record, and closer peers."""
        return await self._dht._answer_store(request, ctx)


class DHT:
    """One node's part in the DHT of one subnet. `run` it; get, put and find work while it runs."""

    def __init__(
        self,
        rpc: Rpc,
        identity: PeerKey,
        *,
        rules: Sequence[NamespaceRule],
        is_member: Callable[[PeerID], bool | Awaitable[bool]],
        position: Callable[[], BlockPosition | None],
        subnet_id: int,
        genesis: bytes,
        config: DhtConfig | None = None,
        clock: Clock,
        rng: random.Random,
        state_path: Path | None = None,
    ) -> None:
        """`is_member` says who may own records and be asked; what it raises counts as no. Raises ConfigError
        when `rules` clash or the state file is not ours."""
        self._rpc = rpc
        self._identity = identity
        self._config = config or DhtConfig()
        self._is_member_now = is_member
        self._position = position
        self._subnet_id = subnet_id
        self._genesis = genesis
        self._clock = clock
        self._rng = rng
        local = key_of_peer(identity.peer_id)
        self._validator = RecordValidator(rules, subnet_id=subnet_id, genesis=genesis, config=self._config.validator)
        self._table = RoutingTable(local, config=self._config.routing)
        self._store = RecordStore(local, self._config.store)
        self._schedule = Schedule(self._config.schedule, rng=rng)
        self._state = DhtState(state_path, max_peers=self._config.peer_cache)
        self._own: dict[Slot, tuple[PeerID, ...] | None] = {}
        self._infrastructure: frozenset[PeerID] = frozenset()
        self._shunned: dict[PeerID, float] = {}
        self._changes = 0
        self._changed = trio.Event()
        self._running = False
        self._served = False
        config_ = self._config
        self._member_finds = RateLimiter[PeerID](_rate(config_.member_finds_per_s), max_keys=config_.max_callers)
        self._guest_finds = RateLimiter[PeerID](_rate(config_.guest_finds_per_s), max_keys=config_.max_callers)
        self._all_guests = _rate(config_.all_guest_finds_per_s).bucket()
        self._pings_in, self._pings_out = trio.open_memory_channel[Ping](config_.max_pings)
        self._new_in, self._new_out = trio.open_memory_channel[PeerInfo](config_.max_handovers)

    # -- what it is --

    @property
    def role(self) -> Role:
        """What this node does for others."""
        return self._config.role

    @property
    def peers(self) -> tuple[PeerInfo, ...]:
        """The routing table, farthest bucket first."""
        return tuple(self._table)

    @property
    def proofs(self) -> tuple[Equivocation, ...]:
        """Owners caught signing two records for one place and seq."""
        return self._store.proofs

    @property
    def changes(self) -> int:
        """Counts what was newly stored here."""
        return self._changes

    # -- reading --

    async def get(self, key: bytes) -> tuple[Record, ...]:
        """The newest valid record of every slot under the key, deleted ones left out, sorted by (owner,
        subkey).

        Raises RecordRejected("namespace") for a key no rule covers, RecordNotFound when no peer asked holds
        anything.
        """
        found = await self._collect(key, first=False)
        return self._present(key, found)

    async def get_first(self, key: bytes) -> tuple[Record, ...]:
        """As `get`, content with the first answer that holds something, or what we hold ourselves: faster,
        and possibly not the newest."""
        found = {record.slot: record for record in self.local(key)}
        if not found:
            found = await self._collect(key, first=True)
        return self._present(key, found)

    async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, tuple[Record, ...]]:
        """`get` for several keys at once; keys under which nothing is found are left out."""
        found: dict[bytes, tuple[Record, ...]] = {}
        limiter = trio.CapacityLimiter(self._config.max_parallel_gets)

        async def one(key: bytes) -> None:
            async with limiter:
                try:
                    found[key] = await self.get(key)
                except RecordNotFound:
                    return

        wanted = sorted(set(keys))
        async with trio.open_nursery() as nursery:
            for key in wanted:
                nursery.start_soon(one, key)
        return {key: found[key] for key in wanted if key in found}

    def local(self, key: bytes) -> tuple[Record, ...]:
        """What this node itself holds under the key: live, deleted ones left out, sorted by (owner,
        subkey)."""
        records = self._store.records(key, now=self._clock.now())
        return tuple(record for record in records if not record.tombstone)

    async def wait_change(self, seen: int | None = None) -> int:
        """Wait until something new was stored here, then return `changes`. With `seen` it returns at once
        when `changes` has gone past it, so that nothing is missed between two calls."""
        if seen is not None and self._changes > seen:
            await trio.lowlevel.checkpoint()
            return self._changes
        await self._changed.wait()
        return self._changes

    async def find_closest(self, key: bytes, k: int = 20) -> list[PeerInfo]:
        """The `k` members closest to a record key (or multihash) that answer now, closest first."""
        return (await self._find(key_of_record(key), k=k)).closest(k)

    async def find_peer(self, peer: PeerID) -> PeerInfo:
        """Where a peer can be dialled, as those near it say. Raises DialFailed when none of them knows."""
        if peer == self._identity.peer_id:
            return self._rpc.net.local
        known = self._rpc.net.known(peer)
        if peer in self._table and known.addrs:
            return known

        def is_met(lookup: Lookup) -> bool:
            info = lookup.info(peer)
            return info is not None and bool(info.addrs)

        lookup = await self._find(key_of_peer(peer), k=self._config.routing.bucket_size, stop_when=is_met)
        info = lookup.info(peer)
        if info is None or not info.addrs:
            if known.addrs:
                return known
            raise DialFailed(f"no peer near {peer} knows an address of it")
        self._rpc.net.learn(info)
        return info

    async def explain(self, record: Record) -> tuple[str, ...]:
        """What every check says about storing this record here and now, one line each."""
        return tuple(
            str(verdict)
            for verdict in self._validator.explain(
                record,
                now=self._clock.now(),
                member=await self._is_member(record.owner),
                position=self._position(),
                held=self._store,
            )
        )

    # -- writing --

    async def put(
        self,
        key: bytes,
        value: bytes,
        *,
        subkey: bytes = b"",
        ttl_s: float,
        peers: Sequence[PeerID] | None = None,
    ) -> StoreReport:
        """Sign a record, hold it, and store it at the r closest peers, or at exactly `peers`. It is published
        again while it lives and this node runs.

        Raises RecordRejected when our own rules refuse it (reason and detail say why), LocalProtocolError
        when a part is too long. That others refuse is in the report. Cancelled: some peers may hold it.
        """
        return await self._publish(key, value, subkey, ttl_s, peers, tombstone=False)

    async def delete(self, key: bytes, *, subkey: bytes = b"", peers: Sequence[PeerID] | None = None) -> StoreReport:
        """Put a tombstone over our record; it lives as long as the namespace allows, and so outlives what it
        deletes. Raises as `put`."""
        ttl_s = self._validator.rule(key).max_ttl_s
        return await self._publish(key, b"", subkey, ttl_s, peers, tombstone=True)

    async def _publish(
        self,
        key: bytes,
        value: bytes,
        subkey: bytes,
        ttl_s: float,
        peers: Sequence[PeerID] | None,
        *,
        tombstone: bool,
    ) -> StoreReport:
        now = self._clock.now()
        record = sign_record(
            self._identity,
            key,
            value,
            subkey=subkey,
            expiry_ms=math.floor((now + ttl_s) * 1000),
            seq=self._state.next_seq(now),
            subnet_id=self._subnet_id,
            genesis=self._genesis,
            tombstone=tombstone,
        )
        await self._accept(record, sender=None)
        named = None if peers is None else tuple(p for p in dict.fromkeys(peers) if p != self._identity.peer_id)
        self._own[record.slot] = named
        self._schedule.published(record.slot, now=trio.current_time())
        return await self._send_out(record, named)

    async def _send_out(self, record: Record, named: tuple[PeerID, ...] | None) -> StoreReport:
        stored: list[PeerID] = []
        refused: dict[PeerID, str] = {}

        async def offer(info: PeerInfo) -> StoreReply:
            try:
                reply = await self._ask_store(info, (record,))
            except MeshError as error:
                refused[info.peer_id] = _reason(error)
                raise
            if reply.verdicts[0] in _HELD:
                stored.append(info.peer_id)
            else:
                refused[info.peer_id] = reply.verdicts[0]
            return reply

        async def ask(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            reply = await offer(info)
            closer = parse_peers(reply.closer, local=self._rpc.net.local)
            passes = reply.verdicts[0] in _ITS_OWN_TROUBLE
            return closer, Counts.ROUTES_ONLY if passes else Counts.YES

        if named is None:
            await self._drive(
                self._lookup(key_of_record(record.key), k=self._config.replicas, alpha=self._config.replicas), ask
            )
        else:
            limiter = trio.CapacityLimiter(self._config.max_parallel_stores)

            async def one(peer: PeerID) -> None:
                async with limiter:
                    try:
                        await offer(self._rpc.net.known(peer))
                    except MeshError as error:
                        log.debug("dht.store_failed", extra={"peer": str(peer), "error": str(error)})

            with trio.move_on_after(self._config.operation_timeout_s):
                async with trio.open_nursery() as nursery:
                    for peer in named:
                        nursery.start_soon(one, peer)
            for peer in named:
                if peer not in stored and peer not in refused:
                    refused[peer] = "timeout"
        log.debug("dht.stored", extra={"key": record.key, "stored": len(stored), "refused": len(refused)})
        return StoreReport(record, tuple(stored), dict(refused))

    # -- running --

    async def run(
        self,
        bootstrap: Sequence[PeerInfo] = (),
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve, join, refresh and republish until cancelled. started() after the first attempt to join,
        successful or not; the DHT never stops trying."""
        if self._running:
            raise LocalProtocolError("this DHT is running already")
        self._running = True
        bootstrap = tuple(info for info in bootstrap if info.peer_id != self._identity.peer_id)
        self._infrastructure = frozenset(info.peer_id for info in bootstrap)
        if self.role is not Role.CLIENT and not self._served:
            self._rpc.serve(KadServicer(self))
            self._served = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ping_doubted)
                nursery.start_soon(self._hand_over)
                with trio.move_on_after(self._config.bootstrap_timeout_s):
                    await self._join(bootstrap)
                task_status.started()
                nursery.start_soon(self._keep_joined, bootstrap)
                nursery.start_soon(self._keep_up)
                nursery.start_soon(self._drop_expired)
                nursery.start_soon(self._keep_tagged)
        finally:
            self._running = False
            self._state.remember(self._table)
            self._state.save()

    async def meet(self, info: PeerInfo) -> None:
        """Ask a peer that somebody named whether it takes part, and join through it when we know nobody yet.

        Raises MeshError when it does not answer; then nothing has changed.
        """
        if info.peer_id == self._identity.peer_id or info.peer_id in self._table:
            return
        knew_nobody = len(self._table) == 0
        await self._ask_find(info, key_of_peer(self._identity.peer_id))
        if knew_nobody and len(self._table):
            await self._find(key_of_peer(self._identity.peer_id), k=self._config.routing.bucket_size)

    async def _join(self, bootstrap: Sequence[PeerInfo]) -> bool:
        """Ask bootnodes and cached peers that we do not have, then look for ourselves, so that those near us
        hear of us. Returns whether anybody is there or nobody need be."""
        cached = [info for info in self._state.peers if info.peer_id not in self._table]
        seeds: dict[PeerID, PeerInfo] = {}
        for info in (
            *bootstrap,
            *cached[: self._config.routing.bucket_size],
        ):  # where we were told first, then remembered
            told = seeds.get(info.peer_id)
            addrs = dict.fromkeys((*(told.addrs if told else ()), *info.addrs))
            seeds[info.peer_id] = PeerInfo(info.peer_id, tuple(addrs))
        missing = [info for info in seeds.values() if info.peer_id not in self._table]
        before = len(self._table)

        async def knock(info: PeerInfo) -> None:
            try:
                await self._ask_find(info, key_of_peer(self._identity.peer_id))
            except MeshError as error:
                log.info("cannot join through %s: %s", info.peer_id, error)

        async with trio.open_nursery() as nursery:
            for info in missing:
                nursery.start_soon(knock, info)
        if len(self._table) > before:
            await self._find(key_of_peer(self._identity.peer_id), k=self._config.routing.bucket_size)
            log.info("joined: %d peers in the table", len(self._table))
        return len(self._table) > 0 or not seeds

    async def _keep_joined(self, bootstrap: Sequence[PeerInfo]) -> None:
        config = self._config
        pause_s = config.retry_min_s
        while True:
            if len(self._table) > 0 or not (bootstrap or self._state.peers):
                pause_s = config.retry_min_s
                self._state.remember(self._table)
                await trio.sleep(config.rejoin_s * (0.9 + 0.2 * self._rng.random()))
            else:
                known = len({info.peer_id for info in (*bootstrap, *self._state.peers)})
                log.warning("none of %d known peers answers; trying again in %.1f s", known, pause_s)
                await trio.sleep(pause_s * (0.9 + 0.2 * self._rng.random()))
                pause_s = min(config.retry_max_s, pause_s * 2)
            await self._join(bootstrap)

    async def _keep_tagged(self) -> None:
        """Say to the network that connections to peers in the table are worth more than others."""
        net, tagged = self._rpc.net, frozenset[PeerID]()
        try:
            while True:
                table = frozenset(info.peer_id for info in self._table)
                for peer in tagged - table:
                    net.unprotect(peer, _TAG)
                for peer in table - tagged:
                    net.protect(peer, _TAG, keep=Protection.RATHER)
                tagged = table
                await trio.sleep(_TAG_INTERVAL_S)
        finally:
            for peer in tagged:
                net.unprotect(peer, _TAG)

    async def _keep_up(self) -> None:
        """Refresh buckets and publish own records again when they are due."""
        while True:
            now = trio.current_time()
            due = self._schedule.due(now, buckets=self._table.buckets)
            for index in due.buckets:
                self._schedule.touched(index, now=now)
                if len(self._table):
                    await self._find(self._table.random_key(index, rng=self._rng), k=self._config.refresh_width)
            for slot in due.records:
                await self._republish(slot)
            at = self._schedule.next_at(trio.current_time(), buckets=self._table.buckets)
            # A record put meanwhile is due no sooner than this: its interval is longer than a tick.
            tick_s = min(30.0, self._config.schedule.republish_s, self._config.schedule.refresh_s)
            await trio.sleep(max(0.1, min(tick_s, at - trio.current_time())))

    async def _republish(self, slot: Slot) -> None:
        record = self._store.held(slot)
        if record is None or slot not in self._own:
            self._own.pop(slot, None)
            self._schedule.forget(slot)
            return
        self._schedule.published(slot, now=trio.current_time())
        try:
            self._validator.check_envelope(
                record, purpose=Purpose.STORE, now=self._clock.now(), position=self._position()
            )
        except RecordRejected as error:  # its window is over, or it has expired: nobody would take it
            log.debug("dht.not_republished", extra={"key": slot.key, "reason": error.reason})
            return
        await self._send_out(record, self._own[slot])

    async def _drop_expired(self) -> None:
        while True:
            await trio.sleep(self._config.expire_s)
            for record in self._store.expire(self._clock.now()):
                self._own.pop(record.slot, None)
                self._schedule.forget(record.slot)

    async def _ping_doubted(self) -> None:
        """Ask peers of which the table is not sure; the answer or its lack settles it."""
        async for ping in self._pings_out:
            try:
                reply = await self._rpc.call(
                    KadServicer.rpc_ping,
                    ping.info.peer_id,
                    PingRequest(role=self.role),
                    timeout_s=self._config.request_timeout_s,
                )
            except MeshError as error:
                self._on_error(ping.info.peer_id, error)
            else:
                await self._on_answer(ping.info, reply.role)

    async def _hand_over(self) -> None:
        """Give a peer that is new here the records it should hold, if of those who hold them we are the
        closest."""
        async for info in self._new_out:
            now = self._clock.now()
            batch: list[Record] = []
            for number, key in enumerate(self._store.keys()):
                if number % 64 == 63:
                    await trio.lowlevel.checkpoint()
                if len(batch) >= self._config.max_handover_records:
                    break
                if self._should_hand_over(key, info.peer_id):
                    batch += self._store.records(key, now=now)
            for record in tuple(batch):
                try:
                    self._validator.check_envelope(record, purpose=Purpose.STORE, now=now, position=self._position())
                except RecordRejected:
                    batch.remove(record)  # its window is over: the new peer reads it from us
            await self._give(info, batch)

    def _should_hand_over(self, key: bytes, newcomer: PeerID) -> bool:
        target = key_of_record(key)
        closest = [p.peer_id for p in self._table.closest(target, self._config.replicas)]
        if newcomer not in closest:
            return False
        local = key_of_peer(self._identity.peer_id) ^ target
        return all(peer == newcomer or local < key_of_peer(peer) ^ target for peer in closest)

    async def _give(self, info: PeerInfo, records: Sequence[Record]) -> None:
        batch: list[Record] = []
        size = 0
        for record in (*records, None):
            full = record is None or len(batch) >= MAX_BATCH or size > self._config.max_page_bytes
            if full and batch:
                try:
                    await self._ask_store(info, tuple(batch))
                except MeshError as error:
                    log.debug("dht.hand_over_failed", extra={"peer": str(info.peer_id), "error": str(error)})
                    return
                batch, size = [], 0
            if record is not None:
                batch.append(record)
                size += record_bytes(record)

    # -- asking others --

    def _lookup(
        self,
        target: Key,
        *,
        k: int,
        alpha: int | None = None,
        stop_when: Callable[[Lookup], bool] | None = None,
    ) -> Lookup:
        config = self._config.lookup
        if alpha is not None:
            config = config.model_copy(update={"alpha": alpha})
        lookup = Lookup(
            target,
            k,
            local=self._identity.peer_id,
            config=config,
            deadline=trio.current_time() + self._config.operation_timeout_s,
            stop_when=stop_when,
        )
        return lookup.start(self._table.closest(target, max(k, self._config.routing.bucket_size)))

    async def _find(self, target: Key, *, k: int, stop_when: Callable[[Lookup], bool] | None = None) -> Lookup:
        async def ask(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            reply = await self._ask_find(info, target)
            return parse_peers(reply.closer, local=self._rpc.net.local), Counts.YES

        self._schedule.touched(self._table.bucket_index(target), now=trio.current_time())
        return await self._drive(self._lookup(target, k=k, stop_when=stop_when), ask)

    async def _drive(
        self, lookup: Lookup, ask: Callable[[PeerInfo], Awaitable[tuple[Sequence[PeerInfo], Counts]]]
    ) -> Lookup:
        """Move a lookup's messages until it is finished; requests still open then are cancelled."""
        news = trio.Event()

        async def one(info: PeerInfo) -> None:
            nonlocal news
            peer = info.peer_id
            try:
                if not await self._may_be_asked(peer):
                    raise NotAuthorized("not-registered", f"{peer} is no member, or misbehaved: not asked")
                closer, counts = await ask(info)
            except MeshError as error:
                log.debug("dht.no_answer", extra={"peer": str(peer), "error": str(error)})
                lookup.on_failure(peer)
            else:
                lookup.on_response(peer, closer, now=trio.current_time(), counts=counts)
            news.set()

        async with trio.open_nursery() as nursery:
            while True:
                for info in lookup.next_requests(trio.current_time()):
                    nursery.start_soon(one, info)
                if lookup.finished:
                    break
                wake_at = lookup.wake_at()
                with trio.move_on_at(math.inf if wake_at is None else wake_at):
                    await news.wait()
                news = trio.Event()
            nursery.cancel_scope.cancel()
        for peer in lookup.unanswered():
            self._table.on_failure(peer)
        return lookup

    async def _ask_find(
        self,
        info: PeerInfo,
        target: Key,
        *,
        key: bytes | None = None,
        after: tuple[bytes, bytes] | None = None,
        want: int = MAX_CLOSER,
    ) -> FindReply:
        request = FindRequest(
            role=self.role, addrs=self._raw_local(), target=key_bytes(target), want=want, key=key, after=after
        )
        reply = await self._call(KadServicer.rpc_find, info, request)
        await self._on_answer(info, reply.role)
        return reply

    async def _ask_store(self, info: PeerInfo, records: Sequence[Record]) -> StoreReply:
        request = StoreRequest(
            role=self.role,
            addrs=self._raw_local(),
            records=tuple(record.to_bytes() for record in records),
            want=self._config.replicas,
        )
        reply = await self._call(KadServicer.rpc_store, info, request)
        if len(reply.verdicts) != len(records):
            error = RemoteProtocolError(f"{info.peer_id} gave {len(reply.verdicts)} verdicts on {len(records)} records")
            self._on_error(info.peer_id, error)
            raise error
        await self._on_answer(info, reply.role)
        return reply

    async def _call(
        self,
        function: Callable[[Any, RequestT, RpcContext], Awaitable[ReplyT]],
        info: PeerInfo,
        request: RequestT,
    ) -> ReplyT:
        if not set(info.addrs) <= set(self._rpc.net.known(info.peer_id).addrs):
            self._rpc.net.learn(info)
        try:
            return await self._rpc.call(function, info.peer_id, request, timeout_s=self._config.request_timeout_s)
        except MeshError as error:
            self._on_error(info.peer_id, error)
            raise

    def _on_error(self, peer: PeerID, error: MeshError) -> None:
        if isinstance(error, RemoteProtocolError):
            log.warning("%s broke the protocol and is shunned for a while: %s", peer, error)
            self._table.remove(peer)
            self._shunned.pop(peer, None)
            self._shunned[peer] = trio.current_time() + self._config.shun_s
            while len(self._shunned) > self._config.max_shunned:
                del self._shunned[next(iter(self._shunned))]
        elif isinstance(error, RemoteFailure):
            self._table.on_seen(peer, now=trio.current_time())  # alive, if not well
        else:
            self._table.on_failure(peer)

    async def _on_answer(self, info: PeerInfo, role: Role) -> None:
        """A peer answered: members and bootnodes that serve get a place in the table."""
        if role is Role.CLIENT or not await self._may_be_asked(info.peer_id):
            self._table.remove(info.peer_id)
            return
        known = self._rpc.net.known(info.peer_id)
        self._heard(known if known.addrs else info, role)

    def _heard(self, info: PeerInfo, role: Role) -> None:
        is_new = info.peer_id not in self._table
        ping = self._table.add(info, now=trio.current_time())
        if ping is not None:
            try:
                self._pings_in.send_nowait(ping)
            except trio.WouldBlock:
                self._table.cancel_ping(ping.info.peer_id)
        if is_new and role is Role.SERVER and self.role is Role.SERVER and len(self._store):
            try:
                self._new_in.send_nowait(info)
            except trio.WouldBlock:
                log.debug("dht.hand_over_skipped", extra={"peer": str(info.peer_id)})

    def _is_shunned(self, peer: PeerID) -> bool:
        until = self._shunned.get(peer)
        return until is not None and trio.current_time() < until

    async def _may_be_asked(self, peer: PeerID) -> bool:
        if self._is_shunned(peer):
            return False
        return peer in self._infrastructure or await self._is_member(peer)

    async def _is_member(self, peer: PeerID) -> bool:
        try:
            answer = self._is_member_now(peer)
            return await answer if inspect.isawaitable(answer) else answer
        except MeshError as error:
            log.debug("dht.membership_unknown", extra={"peer": str(peer), "error": str(error)})
            return False

    def _raw_local(self) -> tuple[bytes, ...]:
        return raw_addrs(self._rpc.net.local.addrs)

    # -- collecting records --

    async def _collect(self, key: bytes, *, first: bool) -> dict[Slot, Record]:
        self._validator.rule(key)
        target = key_of_record(key)
        allowed = await self._allowed_owners(key)
        held = self._store.records(key, now=self._clock.now())
        found = {record.slot: record for record in held if record.owner in allowed}

        async def ask(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            reply = await self._ask_find(info, target, key=key, want=self._config.read_width)
            closer = parse_peers(reply.closer, local=self._rpc.net.local)
            budget = self._config.max_get_bytes
            last: tuple[bytes, bytes] | None = None
            while True:
                last = await self._merge(found, key, reply.records, source=info.peer_id, after=last)
                budget -= sum(map(len, reply.records))
                if not reply.more or not reply.records or budget <= 0:
                    break
                reply = await self._ask_find(info, target, key=key, after=last, want=0)
            return closer, Counts.YES if reply.role is Role.SERVER else Counts.ROUTES_ONLY

        lookup = await self._drive(
            self._lookup(
                target,
                k=self._config.read_width,
                # All at once: with a warm table that is one round. The first valid answer is most likely the
                # closest peer's, and asking more at once makes all of them slower.
                alpha=1 if first else self._config.read_width,
                stop_when=(lambda lookup: bool(found)) if first else None,
            ),
            ask,
        )
        if not found:
            lookup.widen(self._config.miss_width)
            await self._drive(lookup, ask)
        return found

    async def _merge(
        self,
        found: dict[Slot, Record],
        key: bytes,
        raws: Sequence[bytes],
        *,
        source: PeerID,
        after: tuple[bytes, bytes] | None,
    ) -> tuple[bytes, bytes] | None:
        """Take what is newer, after checking it. Returns where the page, which begins behind `after`, ended.
        Raises RemoteProtocolError for what no honest peer sends; what was taken before stays, being valid."""
        last = after
        for number, raw in enumerate(raws):
            if number % 32 == 31:
                await trio.lowlevel.checkpoint()
            try:
                record = Record.from_bytes(raw)
                if record.key != key:
                    raise RemoteProtocolError(f"a record under {record.key!r} when {key!r} was asked for")
                place = (record.owner.multihash, record.subkey)
                if last is not None and place <= last:
                    raise RemoteProtocolError("records out of order")
                last = place
                held = found.get(record.slot)
                if held is not None and held.order >= record.order:
                    continue
                await self._check_read(record)
            except RecordRejected as error:
                if error.reason in _FORGED:
                    misbehaviour = RemoteProtocolError(f"{source} returned a forged record: {error}")
                    self._on_error(source, misbehaviour)
                    raise misbehaviour from error
                log.debug("dht.record_skipped", extra={"peer": str(source), "reason": error.reason})
                continue
            except RemoteProtocolError as error:
                self._on_error(source, error)
                raise
            found[record.slot] = record
        return last

    async def _allowed_owners(self, key: bytes) -> frozenset[PeerID]:
        """Of those whose records we hold, who may own some still: of all checks only membership, besides
        expiry, can have changed since."""
        held = self._store.owners(key)
        if not held or not self._validator.rule(key).members_only:
            return frozenset(held)
        allowed: list[PeerID] = []
        for number, owner in enumerate(held):
            if number % 64 == 63:
                await trio.lowlevel.checkpoint()
            if await self._is_member(owner):
                allowed.append(owner)
        return frozenset(allowed)

    async def _check_read(self, record: Record) -> None:
        self._validator.check_envelope(record, purpose=Purpose.READ, now=self._clock.now())
        member = await self._is_member(record.owner)
        self._validator.check_content(record, purpose=Purpose.READ, member=member, position=self._position())

    def _present(self, key: bytes, found: Mapping[Slot, Record]) -> tuple[Record, ...]:
        now = self._clock.now()
        present = [r for r in found.values() if not r.tombstone and not r.is_expired(now)]
        if not present:
            raise RecordNotFound(f"nothing is stored under {key!r}, as far as {len(self._table)} known peers say")
        return tuple(sorted(present, key=lambda record: (record.owner, record.subkey)))

    # -- answering --

    async def _answer_find(self, request: FindRequest, ctx: RpcContext) -> FindReply:
        is_guest = ctx.peer_class < PeerClass.INFRASTRUCTURE
        self._charge_find(ctx.remote, is_guest)
        self._on_caller(ctx, request.role, request.addrs)
        target = Key(int.from_bytes(request.target, "big"))
        closer = self._closer(target, ctx.remote, request.want)
        if request.key is None or self.role is not Role.SERVER:
            return FindReply(role=self.role, closer=closer)
        if key_of_record(request.key) != target:
            raise RemoteProtocolError("the record key does not lie at the target")
        after = None if request.after is None else (parse_peer(request.after[0]), request.after[1])
        page = self._store.page(
            request.key,
            now=self._clock.now(),
            max_bytes=self._config.max_guest_page_bytes if is_guest else self._config.max_page_bytes,
            after=after,
            owners=await self._allowed_owners(request.key),
        )
        records = tuple(record.to_bytes() for record in page.records)
        return FindReply(role=self.role, closer=closer, records=records, more=page.more)

    async def _answer_store(self, request: StoreRequest, ctx: RpcContext) -> StoreReply:
        self._on_caller(ctx, request.role, request.addrs)
        verdicts: list[str] = []
        target: Key | None = None
        for number, raw in enumerate(request.records):
            if number % 8 == 7:  # eight RSA signatures are checked in a few milliseconds
                await trio.lowlevel.checkpoint()
            try:
                record = Record.from_bytes(raw)
                if target is None:
                    target = key_of_record(record.key)
                if self.role is not Role.SERVER:
                    raise RecordRejected("not-a-replica")
                await self._accept(record, sender=ctx.remote)
            except RecordRejected as error:
                verdicts.append(error.reason)
                if error.reason != "duplicate":
                    log.debug("dht.refused", extra={"peer": str(ctx.remote), "error": str(error)})
            except RemoteProtocolError:
                verdicts.append("malformed")
            else:
                verdicts.append(STORED)
        closer = () if target is None else self._closer(target, ctx.remote, request.want)
        return StoreReply(role=self.role, verdicts=tuple(verdicts), closer=closer)

    def _charge_find(self, caller: PeerID, is_guest: bool) -> None:
        now = trio.current_time()
        if is_guest:
            allowed = self._guest_finds.take(caller, now) and self._all_guests.take(now)
        else:
            allowed = self._member_finds.take(caller, now)
        if not allowed:
            raise NotAuthorized("rate-limited", f"{caller} asks more often than this node answers")

    def _on_caller(self, ctx: RpcContext, role: Role, raw: Sequence[bytes]) -> None:
        """Whoever may and wants to serve gets a place in the table for having called."""
        if ctx.peer_class < PeerClass.INFRASTRUCTURE or role is Role.CLIENT:
            return
        if ctx.remote == self._identity.peer_id or self._is_shunned(ctx.remote):
            return
        known = self._rpc.net.known(ctx.remote)
        info = PeerInfo(ctx.remote, parse_addrs(raw, ours=self._rpc.net.local.addrs))
        if not set(info.addrs) <= set(known.addrs):
            self._rpc.net.learn(info)
        self._heard(info if info.addrs else known, role)

    def _closer(self, target: Key, asker: PeerID, want: int) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
        if want == 0:
            return ()
        infos = [info for info in self._table.closest(target, want + 1) if info.peer_id != asker][:want]
        return raw_peers(info if info.addrs else self._rpc.net.known(info.peer_id) for info in infos)

    async def _accept(self, record: Record, *, sender: PeerID | None) -> None:
        """Check and hold a record. Raises RecordRejected."""
        position = self._position()
        self._validator.check_envelope(
            record, purpose=Purpose.STORE, now=self._clock.now(), position=position, sender=sender
        )
        member = await self._is_member(record.owner)
        is_own = sender is None
        self._validator.check_content(
            record,
            purpose=Purpose.STORE,
            member=member,
            position=position,
            held=self._store.own_view() if is_own else self._store,
        )
        rule = self._validator.rule(record.key)
        keep = Keep.OWN if is_own else Keep.EVIDENCE if rule.is_evidence else Keep.REPLICA
        evicted = self._store.put(record, max_per_owner=rule.max_records_per_owner, keep=keep)
        if evicted:
            log.debug("dht.evicted", extra={"records": len(evicted)})
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()


def _rate(per_s: float) -> Rate:
    return Rate(per_s=per_s, burst=per_s * 5)


def _reason(error: MeshError) -> str:
    """One word for a report on why a peer did not store."""
    if isinstance(error, NotAuthorized | RecordRejected):
        return error.reason
    if isinstance(error, RemoteFailure):
        return error.code
    return "unreachable" if isinstance(error, NetworkError) else "misbehaved"
