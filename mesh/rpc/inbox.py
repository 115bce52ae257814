"""Messages as their bytes come: one of them, and a stream of them for one reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from mesh.errors import MeshError, RemoteFailure, RemoteProtocolError
from mesh.rpc import frame as f
from mesh.rpc.flow import Intake
from mesh.rpc.link import LinkWriter
from mesh.rpc.status import TOO_LARGE

_TAKEN_AT_ONCE: Final = 32
"""How many messages are read between two looks at other tasks."""


class Assembly:
    """A message as its bytes come."""

    __slots__ = ("body", "have", "size")

    def __init__(self, size: int, *, allocate: int) -> None:
        self.size = size
        self.have = 0
        self.body = bytearray(min(size, allocate))

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes; there is room, since they were granted. Raises RemoteProtocolError beyond what was
        announced."""
        end = self.have + len(data)
        if end > self.size:
            raise RemoteProtocolError(f"more data than the {self.size} bytes announced")
        self.body[self.have : end] = data
        self.have = end

    def expand(self) -> None:
        """Make room for all of it."""
        if len(self.body) < self.size:
            whole = bytearray(self.size)
            whole[: self.have] = memoryview(self.body)[: self.have]
            self.body = whole

    @property
    def is_whole(self) -> bool:
        """Whether all of it has come."""
        return self.have == self.size


class Inbox:
    """The messages of a stream as they come, for one reader."""

    __slots__ = (
        "_assembly",
        "_changed",
        "_cost",
        "_first",
        "_is_open",
        "_is_reading",
        "_reserve",
        "_taken",
        "_writer",
        "call_id",
        "error",
        "intake",
        "is_over",
        "limit",
        "queue",
    )

    def __init__(
        self,
        writer: LinkWriter,
        call_id: int,
        limit: int,
        *,
        first: int,
        reserve: Callable[[int], None],
        is_open: bool,
    ) -> None:
        """`limit` bounds each message; `first` is what may come unasked. `reserve` takes memory for what comes beyond
        it (and takes it back for a negative amount); it may raise RemoteFailure. Nothing is granted until `open`."""
        self.call_id = call_id
        self.limit = limit
        self.intake = Intake(first, window=writer.limits.stream_window_bytes)
        self.queue: deque[tuple[bytearray, int, int]] = deque()
        self.is_over = False
        self.error: MeshError | None = None
        self._writer = writer
        self._reserve = reserve
        self._assembly: Assembly | None = None
        self._cost = 0  # of the message that is coming: reserved beyond the window
        self._first = first
        self._is_open = is_open
        self._is_reading = False
        self._taken = 0
        self._changed: trio.Event | None = None

    def begin(self, frame: f.Message) -> None:
        """A message begins. Raises RemoteProtocolError; RemoteFailure when it is too large or there is no memory for
        it, after which only its bytes are counted."""
        if self._assembly is not None:
            raise RemoteProtocolError("a message within another")
        self.intake.came(f.MESSAGE_COST + len(frame.body))
        if self.error is not None:
            return
        if frame.size > self.limit:
            # Not a violation: the other side may be of another version, with another limit.
            raise RemoteFailure(TOO_LARGE, f"a message of {frame.size} bytes, {self.limit} may be")
        self._assembly = Assembly(frame.size, allocate=max(len(frame.body), min(frame.size, self._first)))
        self._assembly.add(frame.body)
        if self._is_open:
            self._take_all_of_it()
        self._finish_if_whole()

    def open(self) -> None:
        """The other side may send: a window, and what a message that has begun lacks. Raises RemoteFailure."""
        self._is_open = True
        grant = self.intake.took(0)
        if grant:
            self._reserve(grant)
            self._writer.control(f.Credit(self.call_id, grant))
        if self._assembly is not None:
            self._take_all_of_it()

    def _take_all_of_it(self) -> None:
        """Let the message come that has begun, although it may be larger than the window."""
        assert self._assembly is not None
        left = self._assembly.size - self._assembly.have
        lack = left - self.intake.outstanding
        if lack > 0:
            self._reserve(lack)  # before anything is allocated or granted: it may refuse
            self._cost = self.intake.need(left)
            self._writer.control(f.Credit(self.call_id, self._cost))
        self._assembly.expand()

    def data(self, data: bytes | memoryview) -> None:
        """More of the message that has begun. Raises RemoteProtocolError."""
        if self._assembly is None and self.error is None:
            raise RemoteProtocolError("data outside of a message")
        self.intake.came(len(data))
        if self._assembly is None:
            return
        self._assembly.add(data)
        self._finish_if_whole()

    def _finish_if_whole(self) -> None:
        assembly = self._assembly
        if assembly is not None and assembly.is_whole:
            self.queue.append((assembly.body, assembly.size + f.MESSAGE_COST, self._cost))
            self._assembly, self._cost = None, 0
            self._wake()

    def end(self, error: MeshError | None = None) -> None:
        """No more messages; with an error, none of the waiting ones either. Raises RemoteProtocolError within one."""
        if error is None and self._assembly is not None:
            raise RemoteProtocolError("the stream ended within a message")
        self.is_over = True
        self.error = error
        if error is not None:
            self._assembly = None
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def next(self) -> bytearray | None:
        """The next message; None at the end. Raises the stream's error, trio.BusyResourceError for a second reader."""
        if self._is_reading:
            raise trio.BusyResourceError("another task reads this stream")
        self._taken += 1
        if self._taken % _TAKEN_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()  # a sender that is always ahead must not hold up the other tasks
        while not self.queue or self.error is not None:
            if self.error is not None:
                raise self.error
            if self.is_over:
                await trio.lowlevel.checkpoint()
                return None
            self._changed = trio.Event()
            self._is_reading = True
            try:
                await self._changed.wait()
            finally:
                self._is_reading = False
        body, cost, reserved = self.queue.popleft()
        grant = self.intake.took(cost)
        if reserved:
            self._reserve(-reserved)
        if grant and not self.is_over:
            self._writer.control(f.Credit(self.call_id, grant))
        return body
