"""What a node remembers of messages: those it can still give, and those it has seen. PURE."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from mesh.gossip.wire import RawMessage


class MessageCache:
    """The last messages, in windows of one heartbeat each (gossipsub v1.0, "Message Cache").

    Bounded in windows, messages and bytes; when full the oldest leave first.
    """

    def __init__(self, *, windows: int, max_messages: int, max_bytes: int) -> None:
        self._windows: deque[int] = deque([0], maxlen=windows)
        """Messages in each window that are still there, the newest window last."""
        self._messages: dict[bytes, RawMessage] = {}
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._messages

    def put(self, message: RawMessage) -> None:
        """Add to the newest window."""
        if message.id in self._messages:
            return
        self._messages[message.id] = message
        self._bytes += message.size
        self._windows[-1] += 1
        while len(self._messages) > self._max_messages or self._bytes > self._max_bytes:
            self._drop_oldest()

    def get(self, message_id: bytes) -> RawMessage | None:
        """The message, if it is still there."""
        return self._messages.get(message_id)

    def ids(self, topic: str, *, windows: int | None = None) -> list[bytes]:
        """Of a topic, the newest first; of the newest `windows` only."""
        count = len(self._messages) if windows is None else sum(list(self._windows)[-windows:])
        return [m.id for m, _ in zip(self._newest(), range(count), strict=False) if m.topic == topic]

    def shift(self) -> None:
        """A heartbeat is over: begin a new window, drop the oldest."""
        if len(self._windows) == self._windows.maxlen:
            for _ in range(self._windows[0]):
                self._bytes -= self._messages.pop(next(iter(self._messages))).size
            self._windows.popleft()
        self._windows.append(0)

    def _newest(self) -> Iterator[RawMessage]:
        return reversed(self._messages.values())

    def _drop_oldest(self) -> None:
        self._bytes -= self._messages.pop(next(iter(self._messages))).size
        for index, count in enumerate(self._windows):
            if count:
                self._windows[index] -= 1
                return


class SeenCache:
    """Ids of messages that were accepted, each for `ttl_s`. When it is full the oldest goes early."""

    def __init__(self, *, ttl_s: float, max_ids: int) -> None:
        self.ttl_s = ttl_s
        self._max_ids = max_ids
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._until

    def add(self, message_id: bytes, now: float) -> None:
        """Remember it from now on."""
        self._until[message_id] = now + self.ttl_s
        while len(self._until) > self._max_ids:
            del self._until[next(iter(self._until))]

    def expire(self, now: float) -> None:
        """Forget those whose time is over."""
        while self._until and self._until[oldest := next(iter(self._until))] <= now:
            del self._until[oldest]
