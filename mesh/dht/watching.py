"""Watching a key: what changes under it, as an async iterator. Changes stored here are seen at once, others at the
next look."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import trio

from mesh.dht.config import DhtConfig
from mesh.dht.holdings import Holdings
from mesh.dht.report import Change
from mesh.kad.record import Record, Slot


class Watch(AsyncIterator[Change]):
    """The changes of one key since it was begun, what is there at first included. It has no task of its own: dropped,
    it leaves nothing behind. A record that merely expires is no change."""

    def __init__(
        self,
        key: bytes,
        holdings: Holdings,
        look: Callable[[bytes], Awaitable[Sequence[Record]]],
        *,
        config: DhtConfig,
    ) -> None:
        self._key = key
        self._holdings = holdings
        self._look = look
        self._config = config
        self._known: dict[Slot, Record] = {}
        self._news: deque[Change] = deque()
        self._seen = holdings.changes
        self._look_at = trio.current_time()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        """The next change, whenever it comes. Cancelled, no change is lost: ask again."""
        while not self._news:
            if trio.current_time() >= self._look_at:
                for record in await self._look(self._key):
                    self._note(record)
                self._look_at = trio.current_time() + self._config.watch_s
            else:
                with trio.move_on_at(self._look_at):
                    self._seen = await self._holdings.wait_change(self._seen)
            for record in self._holdings.store.records(self._key, now=self._holdings.now()):
                self._note(record)
        return self._news.popleft()

    def _note(self, record: Record) -> None:
        before = self._known.get(record.slot)
        if before is not None and before.order >= record.order:
            return
        if before is None and (record.tombstone or not self._has_room()):
            return
        self._known[record.slot] = record
        self._news.append(Change(record, before))

    def _has_room(self) -> bool:
        """What expired is forgotten when there is no room for more."""
        if len(self._known) >= self._config.max_watched_records:
            now = self._holdings.now()
            self._known = {slot: record for slot, record in self._known.items() if not record.is_expired(now)}
        return len(self._known) < self._config.max_watched_records
