"""Requests that one operation has for the same peer, sent as one message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from mesh.errors import MeshError
from mesh.peer import PeerID, PeerInfo

Item = TypeVar("Item")
Reply = TypeVar("Reply")


@dataclass(slots=True)
class _Waiting(Generic[Item, Reply]):
    item: Item
    done: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None
    error: MeshError | None = None


class Batch(Generic[Item, Reply]):
    """Many lookups side by side that mostly ask the same peers: what they ask of one peer in one turn of the event
    loop goes in one message. Lives in its operation's nursery and ends with it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        send: Callable[[PeerInfo, Sequence[Item]], Awaitable[Sequence[Reply]]],
        *,
        weigh: Callable[[Item], int],
        max_weight: int,
        max_items: int,
    ) -> None:
        """`send` gives one reply per item, in their order; what it raises of MeshError is raised to every asker."""
        self._nursery = nursery
        self._send = send
        self._weigh = weigh
        self._max_weight = max_weight
        self._max_items = max_items
        self._waiting: dict[PeerID, list[_Waiting[Item, Reply]]] = {}

    async def ask(self, info: PeerInfo, item: Item) -> Reply:
        """One item, together with whatever others ask of the peer now. Raises what `send` raises."""
        waiting = self._waiting.setdefault(info.peer_id, [])
        mine = _Waiting[Item, Reply](item)
        waiting.append(mine)
        if len(waiting) == 1:
            self._nursery.start_soon(self._flush, info)
        await mine.done.wait()
        if mine.error is not None:
            raise mine.error
        assert mine.reply is not None
        return mine.reply

    async def _flush(self, info: PeerInfo) -> None:
        await trio.lowlevel.checkpoint()  # whoever is ready to ask has asked when this goes on
        batch: list[_Waiting[Item, Reply]] = []
        weight = 0
        for mine in self._waiting.pop(info.peer_id):
            weight += self._weigh(mine.item)
            if batch and (len(batch) >= self._max_items or weight > self._max_weight):
                self._nursery.start_soon(self._one, info, batch)
                batch, weight = [], self._weigh(mine.item)
            batch.append(mine)
        await self._one(info, batch)

    async def _one(self, info: PeerInfo, batch: Sequence[_Waiting[Item, Reply]]) -> None:
        try:
            replies = await self._send(info, [mine.item for mine in batch])
        except MeshError as error:
            for mine in batch:
                mine.error = error
        else:
            for mine, reply in zip(batch, replies, strict=True):
                mine.reply = reply
        for mine in batch:
            mine.done.set()
