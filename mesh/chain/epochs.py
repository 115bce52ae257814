"""Where a node is in its subnet's epochs, by the chain's blocks and nothing else."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

import trio

from mesh.chain.client import Chain
from mesh.chain.types import BlockRef, EpochPosition, Snapshot, first_block
from mesh.chain.windows import Windows
from mesh.errors import ChainError, ChainUnavailable

log = logging.getLogger(__name__)

KEPT_EPOCHS: Final = 8
"""Snapshots and draw hashes kept; what is settled is two epochs old at most."""


class Epochs:
    """Follows the heads of a chain for one subnet. Everything raises ChainUnavailable before the first head.

    A subnet that is not activated has no slot; it is then 0, and read again at each head until there is one.
    """

    def __init__(self, chain: Chain, subnet_id: int) -> None:
        self._chain = chain
        self._subnet_id = subnet_id
        self._head: BlockRef | None = None
        self._slot: int | None = None
        self._moved = trio.Event()
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self._draws: OrderedDict[int, bytes] = OrderedDict()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow heads until cancelled; started() when the first position is known."""
        await self._see(await self._chain.head())
        task_status.started()
        async for head in self._chain.heads():
            try:
                await self._see(head)
            except ChainError as error:
                log.warning("subnet %d at block %d: %s", self._subnet_id, head.number, error)

    async def _see(self, head: BlockRef) -> None:
        if self._slot is None:
            self._slot = (await self._chain.subnet(self._subnet_id)).slot
        if head != self._head:
            self._head = head
            event, self._moved = self._moved, trio.Event()
            event.set()

    @property
    def length(self) -> int:
        """Blocks per epoch."""
        return self._chain.epoch_length

    @property
    def slot(self) -> int:
        """The subnet's slot, 0 while it has none."""
        return self._slot or 0

    @property
    def windows(self) -> Windows:
        """The calendar of an epoch. Raises ConfigError on a chain whose epochs are too short for one."""
        return Windows.of(self.length)

    def block(self) -> BlockRef:
        """The best block seen."""
        if self._head is None:
            raise ChainUnavailable("the chain was not heard yet")
        return self._head

    def position(self) -> EpochPosition:
        """Epoch and offset of the best block."""
        return EpochPosition.of(self.block().number, slot=self.slot, length=self.length)

    async def wait_block(self) -> BlockRef:
        """The next new head."""
        await self._moved.wait()
        return self.block()

    async def wait_until(self, epoch: int, offset: int) -> None:
        """Return when the best block is at this offset of this epoch or past it."""
        while True:
            moved = self._moved
            if self._head is not None:
                here = self.position()
                if (here.epoch, here.offset) >= (epoch, offset) and self._head.number >= self.slot:
                    return
            await moved.wait()

    def is_by(self, epoch: int, offset: int) -> bool:
        """Whether the best block is not past this offset of this epoch."""
        here = self.position()
        return (here.epoch, here.offset) <= (epoch, offset)

    async def each(self) -> AsyncIterator[int]:
        """The epoch that runs now, then every new one as it begins, from the slot block on. Epochs that pass while the
        caller is busy with one are left out."""
        epoch = -1
        while True:
            moved = self._moved
            if self._head is not None and self._head.number >= self.slot and (now := self.position().epoch) > epoch:
                epoch = now
                yield epoch
            else:
                await moved.wait()

    async def snapshot(self, epoch: int) -> Snapshot:
        """The subnet's nodes in the state at the epoch's first block. Raises ChainError when it is still to come."""
        if epoch not in self._snapshots:
            block = await self._ref(first_block(epoch, slot=self.slot, length=self.length))
            found = await self._chain.snapshot(self._subnet_id, block)
            if self._head is None or self._head.number < block.number:
                return found  # not kept: we have not come there, so the block may still be replaced
            self._snapshots[epoch] = found
            while len(self._snapshots) > KEPT_EPOCHS:
                self._snapshots.popitem(last=False)
            return found
        kept = self._snapshots[epoch]
        try:
            digest = await self._chain.block_hash(kept.block.number)
        except ChainUnavailable:
            return kept  # nobody says that it was retracted
        if digest != kept.block.hash:  # retracted meanwhile
            del self._snapshots[epoch]
            return await self.snapshot(epoch)
        return kept

    async def draw_hash(self, epoch: int) -> bytes:
        """Hash of the epoch's draw block. Raises ChainError when it is still to come."""
        if epoch not in self._draws:
            number = first_block(epoch, slot=self.slot, length=self.length) + self.windows.draw
            digest = await self._chain.block_hash(number)
            if self.position().epoch <= epoch:
                return digest  # not kept while its epoch lasts: the block may still be replaced
            self._draws[epoch] = digest
            while len(self._draws) > KEPT_EPOCHS:
                self._draws.popitem(last=False)
        return self._draws[epoch]

    async def _ref(self, number: int) -> BlockRef:
        return BlockRef(number, await self._chain.block_hash(number))
