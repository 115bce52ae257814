"""What waits to be sent to one neighbour: bounded, the important first. PURE."""

from __future__ import annotations

from collections import deque
from typing import Final

from mesh.gossip.router import Priority
from mesh.gossip.wire import MAX_CONTROLS, MAX_IDS, MAX_MESSAGES, RawMessage, Rpc

MAX_CONTROL: Final = 1024
"""Control RPCs waiting; a neighbour that takes so few is not there any more."""
MAX_OFFERS: Final = 16
"""IHAVEs waiting."""
_ID_BYTES: Final = 56


class Outbox:
    """CONTROL goes first, then own messages, then those passed on, then answers to IWANT, then IHAVE.

    When the messages are too many or too large, the oldest answer makes room, then the oldest that is only passed on:
    both come back by IHAVE. Own messages and control never make room.
    """

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._control: deque[Rpc] = deque()
        self._offers: deque[Rpc] = deque(maxlen=MAX_OFFERS)
        self._messages: dict[Priority, dict[bytes, RawMessage]] = {p: {} for p in Priority}
        self._count = 0
        self._bytes = 0
        self.dropped = 0
        """Messages that had to make room, or found none."""

    def __bool__(self) -> bool:
        return bool(self._count or self._control or self._offers)

    @property
    def is_urgent(self) -> bool:
        """Whether there is more than what is only passed on or offered."""
        return bool(self._control or self._messages[Priority.OWN])

    def put(self, rpc: Rpc, priority: Priority) -> bool:
        """Take it; says whether there was room (for the lower priorities that may be ignored)."""
        if priority is Priority.CONTROL:
            if len(self._control) >= MAX_CONTROL:
                return False
            self._control.append(rpc)
            return True
        if rpc.ihave:
            self._offers.append(rpc)
            return True
        taken = [self._put_message(raw, priority) for raw in rpc.publish]
        return all(taken)

    def discard(self, message_id: bytes) -> None:
        """The neighbour has this message: it need not get it. (Own messages it cannot have from others first.)"""
        for priority in (Priority.FORWARD, Priority.LAZY):
            self._pop(priority, message_id)

    def take(self, max_bytes: int) -> Rpc | None:
        """The next RPC: as much as fits into about `max_bytes` (one message always does), or None."""
        parts: list[Rpc] = []
        size = ids = 0
        while self._control and size < max_bytes and len(parts) < MAX_CONTROLS // 4:
            wanted = len(self._control[0].iwant)
            if parts and ids + wanted > MAX_IDS // 2:
                break
            ids += wanted
            size += wanted * _ID_BYTES
            parts.append(self._control.popleft())
        messages: list[RawMessage] = []
        for priority in Priority:
            waiting = self._messages[priority]
            while waiting and len(messages) < MAX_MESSAGES:
                message_id, raw = next(iter(waiting.items()))
                if size and size + raw.size > max_bytes:
                    break
                self._pop(priority, message_id)
                messages.append(raw)
                size += raw.size
        if self._offers and not self._count and size < max_bytes:
            parts.append(self._offers.popleft())
        return _merge(parts, messages) or None

    def _put_message(self, raw: RawMessage, priority: Priority) -> bool:
        message_id = raw.id
        if any(message_id in waiting for waiting in self._messages.values()):
            return True
        while self._count >= self._max_messages or self._bytes + raw.size > self._max_bytes:
            if not self._make_room(priority):
                self.dropped += priority is not Priority.OWN
                return False
        self._messages[priority][message_id] = raw
        self._count += 1
        self._bytes += raw.size
        return True

    def _make_room(self, newcomer: Priority) -> bool:
        for priority in (Priority.LAZY, Priority.FORWARD):
            if priority >= newcomer and (waiting := self._messages[priority]):
                self._pop(priority, next(iter(waiting)))
                self.dropped += 1
                return True
        return False

    def _pop(self, priority: Priority, message_id: bytes) -> None:
        raw = self._messages[priority].pop(message_id, None)
        if raw is not None:
            self._count -= 1
            self._bytes -= raw.size


def _merge(parts: list[Rpc], messages: list[RawMessage]) -> Rpc:
    return Rpc(
        subscriptions=tuple(item for part in parts for item in part.subscriptions),
        publish=tuple(messages),
        ihave=tuple(item for part in parts for item in part.ihave),
        iwant=tuple(item for part in parts for item in part.iwant),
        graft=tuple(item for part in parts for item in part.graft),
        prune=tuple(item for part in parts for item in part.prune),
    )
