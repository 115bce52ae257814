"""Records that a peer lacks and should hold, waiting to be sent to it: from read repair, from a peer that is new near
a key, from replicas lost. One queue, bounded in peers; what does not fit is left to the next round of upkeep."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import trio

from mesh.dht.config import DhtConfig
from mesh.dht.holdings import Holdings
from mesh.dht.metrics import DhtMetrics
from mesh.dht.peers import Peers
from mesh.dht.servicer import HELD
from mesh.errors import MeshError
from mesh.kad.record import Record, Slot
from mesh.kad.replicas import Refusals
from mesh.kad.validator import record_bytes
from mesh.kad.wire import MAX_BATCH, Role
from mesh.peer import PeerID, PeerInfo

log = logging.getLogger(__name__)

_GIVERS: Final = 4
"""Peers given to at once: one that stalls delays others little."""


class Gifts:
    """What is to be given to whom. `run` it."""

    def __init__(self, peers: Peers, holdings: Holdings, *, config: DhtConfig, metrics: DhtMetrics) -> None:
        self._peers = peers
        self._holdings = holdings
        self._config = config
        self._metrics = metrics
        self._waiting: OrderedDict[PeerID, tuple[PeerInfo, dict[Slot, Record]]] = OrderedDict()
        self._bytes = 0
        self._news = trio.Event()
        self._refusals = Refusals()

    def offer(self, info: PeerInfo, records: Sequence[Record]) -> None:
        """Send these to the peer soon, those left out that may not be spread or that it refused lately. Nodes that hold
        no replicas themselves give none."""
        now = trio.current_time()
        records = [
            record
            for record in records
            if not self._refusals.holds(info.peer_id, record.digest, now=now) and self._holdings.may_be_spread(record)
        ]
        if not records or self._peers.role is not Role.SERVER:
            return
        if info.peer_id not in self._waiting and len(self._waiting) >= self._config.max_gifts:
            log.debug("dht.gift_skipped", extra={"peer": str(info.peer_id)})
            return
        _, lacking = self._waiting.get(info.peer_id, (info, {}))
        self._waiting[info.peer_id] = (info, lacking)
        for record in records:
            held = lacking.get(record.slot)
            more = record_bytes(record) - (0 if held is None else record_bytes(held))
            if (held is not None and held.order >= record.order) or self._bytes + more > self._config.max_gift_bytes:
                continue
            if held is not None or len(lacking) < self._config.max_handover_records:
                lacking[record.slot] = record
                self._bytes += more
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_GIVERS):
                nursery.start_soon(self._give)
            task_status.started()

    async def _give(self) -> None:
        while True:
            while not self._waiting:
                self._news = trio.Event() if self._news.is_set() else self._news
                await self._news.wait()
            _, (info, lacking) = self._waiting.popitem(last=False)
            self._bytes -= sum(map(record_bytes, lacking.values()))
            try:
                if lacking:
                    await self.send(info, tuple(lacking.values()))
            except MeshError as error:
                log.debug("dht.gift_failed", extra={"peer": str(info.peer_id), "error": str(error)})

    async def send(self, info: PeerInfo, records: Sequence[Record]) -> None:
        """Send records to a peer now, in batches. Raises MeshError at the first that fails."""
        batch: list[Record] = []
        size = 0
        for record in (*records, None):
            is_full = record is None or len(batch) >= MAX_BATCH or size > self._config.max_page_bytes
            if is_full and batch:
                judged = await self._peers.ask_store(info, tuple(batch), want=0)
                for given, verdict in zip(batch, judged, strict=True):
                    if verdict.verdict not in HELD:
                        self._refusals.note(info.peer_id, given.digest, verdict.verdict, now=trio.current_time())
                self._metrics.given += len(batch)
                batch, size = [], 0
            if record is not None:
                batch.append(record)
                size += record_bytes(record)
