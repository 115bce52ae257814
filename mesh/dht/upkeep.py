"""What a node does again and again: refresh buckets, publish its own records anew, see to it that replicas are where
mesh.kad.replicas says, drop what expired. When each is due, mesh.kad.schedule says."""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

import trio

from mesh.dht.config import DhtConfig
from mesh.dht.gifts import Gifts
from mesh.dht.holdings import Holdings
from mesh.dht.peers import Peers
from mesh.dht.writing import Writer
from mesh.errors import ConfigError, MeshError
from mesh.kad.key import key_of_peer
from mesh.kad.record import Record, Slot
from mesh.kad.replicas import MAX_OFFER, by_peer, is_first_to_give, owed
from mesh.kad.schedule import Schedule
from mesh.kad.wire import Role
from mesh.peer import PeerID, PeerInfo

log = logging.getLogger(__name__)


class Upkeep:
    """The standing tasks of a node. `run` it."""

    def __init__(
        self,
        peers: Peers,
        holdings: Holdings,
        writer: Writer,
        gifts: Gifts,
        schedule: Schedule,
        *,
        config: DhtConfig,
        rng: random.Random,
    ) -> None:
        self._peers = peers
        self._holdings = holdings
        self._writer = writer
        self._gifts = gifts
        self._schedule = schedule
        self._config = config
        self._rng = rng
        self._local = key_of_peer(peers.local)
        self._given_at: OrderedDict[PeerID, float] = OrderedDict()
        self._partners: frozenset[PeerID] = frozenset()
        """Whom something was offered in the last round: who holds records with us."""
        self._new_in, self._new_out = trio.open_memory_channel[PeerInfo](config.max_gifts)

    def on_new(self, info: PeerInfo) -> None:
        """A peer came into the table that was not there before. One that comes and goes is given what it should hold
        once in a while only."""
        now = trio.current_time()
        if self._given_at.get(info.peer_id, -math.inf) > now - self._config.handover_s:
            return
        if self._peers.role is Role.SERVER and len(self._holdings.store):
            self._given_at.pop(info.peer_id, None)
            self._given_at[info.peer_id] = now
            if len(self._given_at) > self._config.max_callers:
                self._given_at.popitem(last=False)
            try:
                self._new_in.send_nowait(info)
            except trio.WouldBlock:
                log.debug("dht.hand_over_skipped", extra={"peer": str(info.peer_id)})

    def on_lost(self, peer: PeerID) -> None:
        """A peer lost its place in the table."""
        if peer in self._partners:
            self._schedule.sync_soon(now=trio.current_time())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh)
            nursery.start_soon(self._republish)
            nursery.start_soon(self._keep_synced)
            nursery.start_soon(self._hand_over)
            nursery.start_soon(self._drop_expired)
            task_status.started()

    # Each of these waits for its own peers only: a slow one delays neither of the others.

    async def _refresh(self) -> None:
        table = self._peers.table
        while True:
            now = trio.current_time()
            for index in self._schedule.due(now, buckets=table.buckets).buckets:
                self._schedule.touched(index, now=now)
                if len(table):
                    await self._peers.find(table.random_key(index, rng=self._rng), k=self._config.refresh_width)
            await self._tick()

    async def _republish(self) -> None:
        limiter = trio.CapacityLimiter(self._config.max_parallel_keys)

        async def one(slot: Slot) -> None:
            async with limiter:
                await self._writer.republish(slot)

        while True:
            async with trio.open_nursery() as nursery:
                for slot in self._schedule.due(trio.current_time(), buckets=0).records:
                    nursery.start_soon(one, slot)
            await self._tick()

    async def _keep_synced(self) -> None:
        self._schedule.synced(now=trio.current_time())
        while True:
            if self._schedule.due(trio.current_time(), buckets=0).sync:
                self._schedule.synced(now=trio.current_time())
                await self._sync()
            await self._tick()

    async def _tick(self) -> None:
        """Until something known is due; what is put or lost meanwhile may be due sooner."""
        now = trio.current_time()
        at = self._schedule.next_at(now, buckets=self._peers.table.buckets)
        tick_s = min(30.0, self._config.schedule.sync_soon_s)
        await trio.sleep(max(1.0, min(tick_s, at - now)))

    async def _sync(self) -> None:
        """Offer each peer what it should hold and we do, and give what it lacks."""
        if self._peers.role is not Role.SERVER:
            return
        owing: list[tuple[bytes, Sequence[PeerInfo]]] = []
        keys = self._holdings.store.keys()
        near = self._config.routing.bucket_size
        pairs = owed(keys, self._peers.table, replicas=self._config.replicas, local=self._local, near=near)
        for number, pair in enumerate(pairs):
            if number % 64 == 63:
                await trio.lowlevel.checkpoint()
            owing.append(pair)
        told = by_peer(owing)
        self._partners = frozenset(info.peer_id for info in told)
        for info, owed_keys in told.items():
            await self._offer(info, owed_keys)

    async def _offer(self, info: PeerInfo, keys: Sequence[bytes]) -> None:
        now = self._holdings.now()
        records = [
            record
            for key in keys
            for record in self._holdings.store.records(key, now=now)
            if self._holdings.may_be_spread(record)
        ]
        for start in range(0, len(records), MAX_OFFER):
            batch = records[start : start + MAX_OFFER]
            try:
                wanted = await self._peers.ask_wanted(info, [record.digest for record in batch])
            except MeshError as error:
                log.debug("dht.offer_failed", extra={"peer": str(info.peer_id), "error": str(error)})
                with suppress(MeshError):  # once more, so that a replica that is gone is not counted on for long
                    await self._peers.ping(info)
                return
            self._gifts.offer(info, [batch[place] for place in wanted])

    async def _drop_expired(self) -> None:
        while True:
            await trio.sleep(self._config.expire_s)
            for record in self._holdings.store.expire(self._holdings.now()):
                self._writer.forget(record.slot)
            with suppress(ConfigError):  # the disk has said what is wrong; records go on in memory
                await self._holdings.flush()

    async def _hand_over(self) -> None:
        """Give a peer that is new here the records it should hold, if of those who hold them we are the closest."""
        async for info in self._new_out:
            batch: list[Record] = []
            for number, key in enumerate(self._holdings.store.keys()):
                if number % 64 == 63:
                    await trio.lowlevel.checkpoint()
                if len(batch) >= self._config.max_handover_records:
                    break
                if is_first_to_give(
                    key, info.peer_id, self._peers.table, local=self._local, replicas=self._config.replicas
                ):
                    batch += self._holdings.store.records(key, now=self._holdings.now())
            self._gifts.offer(info, batch)
