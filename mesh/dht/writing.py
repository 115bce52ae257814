"""Writing: a put is a lookup whose question is "please store this". The answers carry closer peers, so that with a
warm table it is one round. Our own records are published again while they live."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

import trio

from mesh.dht.answers import Judged
from mesh.dht.batching import Batch
from mesh.dht.config import DhtConfig
from mesh.dht.holdings import Holdings
from mesh.dht.metrics import DhtMetrics
from mesh.dht.peers import Peers
from mesh.dht.report import StoreReport
from mesh.dht.servicer import HELD
from mesh.dht.state import DhtState
from mesh.errors import (
    LocalProtocolError,
    MeshError,
    NetworkError,
    NotAuthorized,
    RecordRejected,
    RemoteFailure,
)
from mesh.identity import PeerKey
from mesh.kad.key import key_of_record
from mesh.kad.lookup import Counts
from mesh.kad.record import Record, Slot, sign_record
from mesh.kad.schedule import Schedule
from mesh.kad.store import Keep
from mesh.kad.validator import record_bytes
from mesh.kad.wire import MAX_BATCH
from mesh.peer import PeerID, PeerInfo

log = logging.getLogger(__name__)

AskStore = Callable[[PeerInfo, Record], Awaitable[Judged]]

_ITS_OWN_TROUBLE: Final = frozenset({"not-a-replica", "full", "rate"})
"""Verdicts about the replica, not the record: the next closest peer is asked instead."""


class Entry(NamedTuple):
    """One record to put."""

    key: bytes
    value: bytes
    subkey: bytes = b""


class Writer:
    """The puts of one node, and the records it owns."""

    def __init__(
        self,
        peers: Peers,
        holdings: Holdings,
        schedule: Schedule,
        state: DhtState,
        identity: PeerKey,
        *,
        subnet_id: int,
        genesis: bytes,
        config: DhtConfig,
        metrics: DhtMetrics,
    ) -> None:
        self._peers = peers
        self._holdings = holdings
        self._schedule = schedule
        self._state = state
        self._identity = identity
        self._subnet_id = subnet_id
        self._genesis = genesis
        self._config = config
        self._metrics = metrics
        self._own: dict[Slot, tuple[PeerID, ...] | None] = {}

    @property
    def own(self) -> tuple[Slot, ...]:
        """The slots we publish again."""
        return tuple(self._own)

    def resume(self) -> None:
        """Publish anew what of ours an earlier run left on disk: due at once. Which peers a record was for is not kept;
        one that was for named peers stays here."""
        for record in self._holdings.store:
            if self._holdings.store.keep(record.slot) is Keep.OWN:
                self._own[record.slot] = None
                self._schedule.resume(record.slot)

    async def put(
        self, entry: Entry, *, expires_at: float, peers: Sequence[PeerID] | None, replicas: int | None = None
    ) -> StoreReport:
        """See DHT.put."""
        record = await self._make(entry, expires_at, peers)
        return await self._send_out(record, self._own[record.slot], self._ask, replicas=replicas)

    async def put_many(self, entries: Iterable[Entry], *, expires_at: float) -> tuple[StoreReport, ...]:
        """See DHT.put_many."""
        records = [await self._make(entry, expires_at, None) for entry in entries]
        reports: dict[int, StoreReport] = {}
        limiter = trio.CapacityLimiter(self._config.max_parallel_keys)

        async def send(info: PeerInfo, batch: Sequence[Record]) -> Sequence[Judged]:
            return await self._peers.ask_store(info, batch, want=self._config.replicas)

        async def one(number: int, record: Record, ask: AskStore) -> None:
            async with limiter:
                reports[number] = await self._send_out(record, None, ask)

        async with trio.open_nursery() as sending:
            batch = Batch[Record, Judged](
                sending, send, weigh=record_bytes, max_weight=self._config.max_page_bytes, max_items=MAX_BATCH
            )
            async with trio.open_nursery() as nursery:
                for number, record in enumerate(records):
                    nursery.start_soon(one, number, record, batch.ask)
            sending.cancel_scope.cancel()
        return tuple(reports[number] for number in range(len(records)))

    async def delete(self, key: bytes, subkey: bytes, peers: Sequence[PeerID] | None) -> StoreReport:
        """See DHT.delete."""
        expires_at = self._holdings.now() + self._holdings.validator.rule(key).max_ttl_s
        record = await self._make(Entry(key, b"", subkey), expires_at, peers, tombstone=True)
        return await self._send_out(record, self._own[record.slot], self._ask)

    async def _make(
        self, entry: Entry, expires_at: float, peers: Sequence[PeerID] | None, *, tombstone: bool = False
    ) -> Record:
        """Sign a record, hold it ourselves and publish it again from now on."""
        record = sign_record(
            self._identity,
            entry.key,
            entry.value,
            subkey=entry.subkey,
            expiry_ms=math.floor(expires_at * 1000),
            seq=self._state.next_seq(self._holdings.now()),
            subnet_id=self._subnet_id,
            genesis=self._genesis,
            tombstone=tombstone,
        )
        named = None if peers is None else tuple(p for p in dict.fromkeys(peers) if p != self._peers.local)
        await self._holdings.accept(record, sender=None, own=Keep.OWN if named is None else Keep.NAMED)
        await self._holdings.flush()
        self._own[record.slot] = named
        self._schedule.published(record.slot, now=trio.current_time())
        return record

    async def _ask(self, info: PeerInfo, record: Record) -> Judged:
        (judged,) = await self._peers.ask_store(info, (record,), want=self._config.replicas)
        return judged

    async def _send_out(
        self, record: Record, named: tuple[PeerID, ...] | None, ask: AskStore, *, replicas: int | None = None
    ) -> StoreReport:
        stored: list[PeerID] = []
        refused: dict[PeerID, str] = {}

        async def offer(info: PeerInfo) -> Judged:
            try:
                judged = await ask(info, record)
            except MeshError as error:
                refused[info.peer_id] = _reason(error)
                raise
            if judged.verdict in HELD:
                stored.append(info.peer_id)
            else:
                refused[info.peer_id] = judged.verdict
            return judged

        async def one(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            judged = await offer(info)
            return judged.closer, Counts.ROUTES_ONLY if judged.verdict in _ITS_OWN_TROUBLE else Counts.YES

        if named is None:
            replicas = replicas or self._config.replicas
            lookup = self._peers.lookup(key_of_record(record.key), k=replicas, alpha=replicas)
            await self._peers.drive(lookup, one, kind="put")
        else:
            await self._offer_to(named, offer)
            for peer in named:
                if peer not in stored and peer not in refused:
                    refused[peer] = "timeout"
        for reason in refused.values():
            self._metrics.count(self._metrics.refused_by_others, reason)
        log.debug("dht.stored", extra={"key": record.key, "stored": len(stored), "refused": len(refused)})
        return StoreReport(record, tuple(stored), dict(refused))

    async def _offer_to(self, named: Sequence[PeerID], offer: Callable[[PeerInfo], Awaitable[Judged]]) -> None:
        limiter = trio.CapacityLimiter(self._config.max_parallel_stores)

        async def one(peer: PeerID) -> None:
            async with limiter:
                try:
                    await offer(self._peers.rpc.net.known(peer))
                except MeshError as error:
                    log.debug("dht.store_failed", extra={"peer": str(peer), "error": str(error)})

        with trio.move_on_after(self._config.operation_timeout_s):
            async with trio.open_nursery() as nursery:
                for peer in named:
                    nursery.start_soon(one, peer)

    async def republish(self, slot: Slot) -> None:
        """Send one of our records out again, if it is held still and its window is open."""
        record = self._holdings.store.held(slot)
        if record is None or slot not in self._own:
            self.forget(slot)
            return
        self._schedule.published(slot, now=trio.current_time())
        if self._holdings.may_be_sent(record):
            await self._send_out(record, self._own[slot], self._ask)

    def forget(self, slot: Slot) -> None:
        """A record of ours is no more."""
        self._own.pop(slot, None)
        self._schedule.forget(slot)


def expiry_of(now: float, ttl_s: float | None, expires_at: float | None) -> float:
    """Unix seconds at which a record expires that lives so long, or until then. Raises LocalProtocolError unless
    exactly one is given."""
    if (ttl_s is None) == (expires_at is None):
        raise LocalProtocolError("say how long the record lives: either ttl_s, in seconds, or expires_at, unix seconds")
    at = now + ttl_s if ttl_s is not None else expires_at
    assert at is not None
    if not math.isfinite(at) or not 0 <= at < 2**64 / 1000:
        raise LocalProtocolError(f"a record cannot expire at {at}: unix seconds are expected")
    return at


def _reason(error: MeshError) -> str:
    """One word for a report on why a peer did not store."""
    if isinstance(error, NotAuthorized | RecordRejected):
        return error.reason
    if isinstance(error, RemoteFailure):
        return error.code
    return "unreachable" if isinstance(error, NetworkError) else "misbehaved"
