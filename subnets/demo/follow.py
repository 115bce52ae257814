"""Watching the chain from outside: which epochs were proposed, settled with rewards, or missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from mesh.chain.client import Chain
from mesh.chain.types import EpochPosition, Event, Submission
from mesh.errors import ChainError


@dataclass(frozen=True, slots=True)
class Settled:
    """One epoch's proposal as the chain settled it at the next slot block."""

    epoch: int
    """Subnet epoch of the proposal; the work it pays was done in the one before."""
    block: int
    submission: Submission
    node_rewards: dict[int, int]
    """Planck by node id."""

    @property
    def paid(self) -> bool:
        """Whether anybody earned by work."""
        return sum(self.node_rewards.values()) > 0


@dataclass
class Follower:
    """What the demo has seen of its subnet so far. `changed` is replaced at every new block."""

    chain: Chain
    subnet_id: int
    slot: int
    first_epoch: int
    block: int = 0
    proposals: dict[int, Submission] = field(default_factory=dict)
    settled: list[Settled] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def position(self) -> EpochPosition:
        """Where the last block seen stands."""
        return EpochPosition.of(self.block, slot=self.slot, length=self.chain.epoch_length)

    async def run(self) -> None:
        """Follow new heads until cancelled."""
        self.block = (await self.chain.head()).number
        async for head in self.chain.heads():
            for number in range(self.block + 1, head.number + 1):
                await self._look(number)
            self.changed.set()
            self.changed = trio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for blocks until something holds."""
        while not holds():
            await self.changed.wait()

    async def _look(self, number: int) -> None:
        at = await self.chain.block_hash(number)
        before = self.position.epoch
        self.block = number
        epoch = self.position.epoch
        if epoch >= self.first_epoch and epoch not in self.proposals:
            submission = await self.chain.submission(self.subnet_id, epoch)
            if submission is not None:
                self.proposals[epoch] = submission
        if epoch > before and before >= self.first_epoch:
            await self._settle(before, number, await self.chain.events(at))

    async def _settle(self, epoch: int, block: int, events: tuple[Event, ...]) -> None:
        submission = await self.chain.submission(self.subnet_id, epoch)
        if submission is None:
            if await self.chain.elected(self.subnet_id, epoch) is not None:
                self.missed.append(epoch)
            return
        rewards: dict[int, int] = {}
        for event in events:
            if event.name == "SubnetRewards" and event.fields["subnet_id"] == self.subnet_id:
                pairs = event.fields["node_rewards"]
                if not isinstance(pairs, list | tuple):
                    raise ChainError(f"unexpected rewards in block {block}: {pairs!r}")
                rewards = {int(node): int(amount) for node, amount in pairs}
        self.settled.append(Settled(epoch, block, submission, rewards))
