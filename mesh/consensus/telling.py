"""Telling the subnet what was settled, in order and once; the oldest unread is dropped when it falls behind."""

from __future__ import annotations

import logging

import trio

from mesh.consensus.attesting import Attestor
from mesh.consensus.gathering import Gatherer
from mesh.consensus.rounds import Parts, log
from mesh.errors import ChainUnavailable, MeshError
from mesh.subnet import Settlement


class Teller:
    """Hands settlements to the subnet."""

    def __init__(
        self,
        parts: Parts,
        gatherer: Gatherer,
        attestor: Attestor,
        send: trio.MemorySendChannel[Settlement],
        receiver: trio.MemoryReceiveChannel[Settlement] | None,
    ) -> None:
        self._parts = parts
        self._gatherer = gatherer
        self._attestor = attestor
        self._send = send
        self._receiver = receiver
        self._resettled = trio.Event()
        self._ready: dict[int, Settlement] = {}
        self._told = -1
        self._missed_checked: int | None = None
        self._unread = 0
        self._is_read = False

    async def resettle(self, epoch: int) -> None:
        """Tell the subnet again what was settled shortly before this run, as far as the blobs can still be had."""
        for work in range(max(0, epoch - 1 - self._parts.config.settle_back), max(0, epoch - 1)):
            while True:
                try:
                    await self._settle_past(work)
                    break
                except ChainUnavailable as error:
                    log.warning("epoch %d is not read yet: %s", work, error)
                    await self._parts.epochs.wait_block()
                except MeshError as error:
                    log.warning("epoch %d is not told again: %s", work, error)
                    break
        self._resettled.set()
        self.tell()

    async def _settle_past(self, epoch: int) -> None:
        submission = await self._parts.chain.submission(self._parts.subnet_id, epoch + 1)
        if submission is None:
            return
        found = await self._gatherer.round(epoch)
        await self._attestor.weigh(found, submission)
        if found.settlement is not None:
            self.ready(epoch, found.settlement)

    def ready(self, epoch: int, settlement: Settlement) -> None:
        """An epoch that can be told."""
        self._ready[epoch] = settlement

    def tell(self) -> None:
        """Tell what is ready, the oldest first, each once; nothing before what an earlier run settled."""
        if not self._resettled.is_set():
            return
        for epoch in sorted(self._ready):
            settlement = self._ready.pop(epoch)
            if epoch > self._told:
                self._told = epoch
                self._emit(settlement)

    def _emit(self, settlement: Settlement) -> None:
        waits = self._send.statistics()
        self._is_read |= bool(waits.tasks_waiting_receive) or waits.current_buffer_used < self._unread
        self._unread = waits.current_buffer_used
        while True:
            try:
                self._send.send_nowait(settlement)
                self._unread += 1
                return
            except trio.WouldBlock:
                try:
                    if self._receiver is None:
                        raise trio.WouldBlock
                    dropped = self._receiver.receive_nowait()
                    self._unread -= 1
                except (trio.WouldBlock, trio.ClosedResourceError):
                    log.warning("epoch %d: nobody reads settlements; dropped", settlement.evidence.epoch)
                    return
                # a subnet that never asks for settlements has nothing to be warned of
                level = logging.WARNING if self._is_read else logging.DEBUG
                log.log(level, "epoch %d: its settlement was not read in time and is dropped", dropped.evidence.epoch)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the subnet has ended; so will the node

    async def note_missed(self, epoch: int) -> None:
        """Say once when the epoch before `epoch + 1` got no proposal."""
        if self._missed_checked is not None and self._missed_checked >= epoch:
            return
        parts = self._parts
        if epoch > 0 and await parts.chain.submission(parts.subnet_id, epoch) is None:
            elected = await parts.chain.elected(parts.subnet_id, epoch)
            if elected is not None:
                log.warning("epoch %d: missed, node %d was elected and proposed nothing", epoch - 1, elected)
        self._missed_checked = epoch
