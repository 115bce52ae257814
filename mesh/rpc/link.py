"""A channel's link: frames over one stream, one task that reads and one that writes.

A channel carries many calls in one direction of calling: a node opens its own to each peer it calls (mesh.rpc.calling)
and answers on those opened to it (mesh.rpc.answering). It rides on a libp2p stream or on a data connection; only its
limits differ.

The reader never waits for anything but bytes. The writer sends control frames first, then heads of messages, then one
DATA frame in turn of each long message, so that long ones hold up nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import Final

import trio

from mesh.errors import LocalProtocolError, MeshError, NetworkError, RemoteProtocolError, StreamBroken
from mesh.net.base import Stream
from mesh.rpc import frame as f
from mesh.rpc.config import RpcConfig, RpcMetrics
from mesh.rpc.flow import LinkLimits, SendCredit

_READ_BYTES: Final = 256 * 1024
_FRAMES_AT_ONCE: Final = 256
"""How many frames are decoded between two looks at other tasks."""
_BATCH_BYTES: Final = 64 * 1024
Buffers = Sequence[bytes | bytearray | memoryview]


def body_bytes(buffers: Buffers) -> int:
    """How long a message of these buffers is."""
    return sum(map(len, buffers))


class _Outgoing:
    """A message that waits or is being sent: its head, and how far its body has gone."""

    __slots__ = ("buffers", "cost", "head", "sent", "size")

    def __init__(self, head: f.Head | f.End, buffers: Buffers, size: int, cost: int) -> None:
        self.head = head
        self.buffers = buffers
        self.size = size
        self.sent = -1  # not even the head
        self.cost = cost


class Sender:
    """Our direction of one call: its messages in order, and the credit they have."""

    __slots__ = ("_drained", "_link", "call_id", "credit", "is_queued", "messages", "started", "unsent")

    def __init__(self, link: LinkWriter, call_id: int) -> None:
        self._link = link
        self.call_id = call_id
        self.credit = SendCredit(link.limits.first_credit_bytes)
        self.messages: deque[_Outgoing] = deque()
        self.started = False
        """Whether anything of it was given to the stream."""
        self.unsent = 0
        """Body bytes that wait."""
        self.is_queued = False
        self._drained: trio.Event | None = None

    def add(self, head: f.Head | f.End, buffers: Buffers = (), size: int = 0) -> None:
        """Queue a message behind those of this call. Its head is completed with `size`."""
        cost = 0
        if not isinstance(head, f.End):
            head = head._replace(size=size)
            cost = f.MESSAGE_COST if type(head) is f.Message else 0
        self.messages.append(_Outgoing(head, buffers, size, cost))
        self.unsent += size
        self._link.ready(self)

    def grant(self, amount: int) -> None:
        """The other side takes more."""
        self.credit.add(amount)
        if self.messages:
            self._link.ready(self)

    async def drain(self, most: int = 0) -> None:
        """Wait until at most `most` bytes (for 0: nothing at all) are left to hand to the stream, or the link ended."""
        while self.messages and (self.unsent > most or not most) and not self._link.is_over:
            if self._drained is None or self._drained.is_set():
                self._drained = trio.Event()
            await self._drained.wait()

    def drop(self) -> None:
        """Forget what was not sent."""
        if self.messages:
            self.messages.clear()
            self.unsent = 0
            self._link.unqueue(self)
            self.wake()

    def wake(self) -> None:
        """Let `drain` look again."""
        if self._drained is not None:
            self._drained.set()


class LinkWriter:
    """The writing half: what to send next, and the task that sends it."""

    def __init__(self, stream: Stream, limits: LinkLimits, config: RpcConfig, metrics: RpcMetrics) -> None:
        self.limits = limits
        self.is_over = False
        self._stream = stream
        self._config = config
        self._metrics = metrics
        self._most_body = limits.max_frame_bytes - f.MAX_HEADER_BYTES - 6
        self._control: list[bytes] = []
        self._heads: deque[Sender] = deque()
        """Calls whose next message has not begun."""
        self._bodies: deque[Sender] = deque()
        """Calls in the middle of a message."""
        self._window = limits.window_bytes
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._is_stopped = False
        self.writing_since: float | None = None
        """When the write began that is going on."""

    def control(self, frame: f.Credit | f.Cancel) -> None:
        """Queue a control frame; it goes out before everything else."""
        self._control.append(f.encode_head(frame, 0))
        self._check_queue()

    def ready(self, sender: Sender) -> None:
        """A call has something to send, or may send more of it."""
        if not sender.is_queued:
            sender.is_queued = True
            (self._heads if sender.messages[0].sent < 0 else self._bodies).append(sender)
        self._check_queue()

    @property
    def is_busy(self) -> bool:
        """Whether something waits to be sent or is being sent."""
        return bool(self._control or self._heads or self._bodies or self.writing_since is not None)

    def unqueue(self, sender: Sender) -> None:
        """A call has nothing to send any more."""
        if sender.is_queued:
            sender.is_queued = False
            for queue in (self._heads, self._bodies):
                if sender in queue:
                    queue.remove(sender)

    def _check_queue(self) -> None:
        if len(self._control) + len(self._heads) > self._config.max_queued_frames:
            self._scope.cancel()  # even out of a write that waits
        self._wake.set()

    def give_back(self, amount: int) -> None:
        """The other side took bytes off the link. Raises RemoteProtocolError."""
        self._window += amount
        if self._window > self.limits.window_bytes:
            raise RemoteProtocolError("credit for bytes that were never sent")
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. Raises StreamBroken."""
        try:
            with self._scope:
                await self._send()
        finally:
            self.is_over = True
            for sender in (*self._heads, *self._bodies):
                sender.is_queued = False
                sender.wake()
            for queue in (self._heads, self._bodies):
                queue.clear()  # what it held does not wait for the garbage collector
            self._control.clear()
        if self._scope.cancelled_caught:
            raise StreamBroken(f"{self._stream.remote.short} leaves {self._config.max_queued_frames} frames unread")

    def stop(self) -> None:
        """Begin no more writes: what is queued was never sent."""
        self._is_stopped = True

    async def _send(self) -> None:
        while not self._is_stopped:
            batch, touched = self._next_batch()
            if not batch:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            data = batch[0] if len(batch) == 1 else b"".join(batch)
            self.writing_since = trio.current_time()
            await self._stream.send_all(data)
            self.writing_since = None
            self._metrics.bytes_out += len(data)
            for sender in touched:
                sender.wake()

    def _next_batch(self) -> tuple[list[bytes | memoryview], list[Sender]]:
        """All control frames, heads while they fit a batch, and one DATA frame of the call whose turn it is."""
        batch: list[bytes | memoryview] = [*self._control]
        self._control.clear()
        touched: list[Sender] = []
        size = sum(map(len, batch))
        heads = self._heads
        while heads and size < _BATCH_BYTES:
            sender = heads[0]
            message = sender.messages[0]
            credit = sender.credit
            if message.cost > credit.left:
                heads.popleft()
                sender.is_queued = False  # a grant brings it back
                continue
            first = min(message.size, credit.left - message.cost, self._most_body)
            if first > self._window:
                break
            heads.popleft()
            batch.append(f.encode_head(message.head, first))
            size += len(batch[-1]) + first
            credit.left -= message.cost
            sender.started = True
            message.sent = 0
            self._put_body(batch, sender, message, first)
            touched.append(sender)
            self._go_on(sender)
        for _ in range(len(self._bodies)):
            sender = self._bodies.popleft()
            message = sender.messages[0]
            part = min(message.size - message.sent, sender.credit.left, self._most_body)
            if not part:
                sender.is_queued = False  # a grant brings it back
                continue
            if part > self._window:
                # A sliver of window is left to gather: tiny DATA frames would cost more than they carry.
                self._bodies.append(sender)
                continue
            batch.append(f.encode_head(f.Data(sender.call_id, b""), part))
            self._put_body(batch, sender, message, part)
            touched.append(sender)
            self._go_on(sender)
            break
        return batch, touched

    def _put_body(self, batch: list[bytes | memoryview], sender: Sender, message: _Outgoing, amount: int) -> None:
        if amount:
            batch += f.pieces(message.buffers, message.sent, message.sent + amount)
            message.sent += amount
            sender.credit.left -= amount
            sender.unsent -= amount
            self._window -= amount

    def _go_on(self, sender: Sender) -> None:
        """Queue a call, just taken out of its queue, for what it has left to send."""
        message = sender.messages[0]
        if message.sent == message.size:
            sender.messages.popleft()
            if sender.messages:
                self._heads.append(sender)
            else:
                sender.is_queued = False
        else:
            self._bodies.append(sender)


class LinkReader:
    """The reading half: frames as they come, none of them may take longer than the frame timeout."""

    def __init__(self, stream: Stream, writer: LinkWriter, config: RpcConfig, metrics: RpcMetrics) -> None:
        self._stream = stream
        self._writer = writer
        self._config = config
        self._metrics = metrics
        self._decoder = f.FrameDecoder(max_frame_bytes=writer.limits.max_frame_bytes)
        # A stream that can fill a buffer of ours saves one copy of everything.
        self._into = getattr(stream, "receive_into", None)
        self._buffer = memoryview(bytearray(_READ_BYTES)) if self._into is not None else memoryview(b"")
        self._fed: Iterator[f.Frame] | None = None
        """What was received and not decoded yet."""
        self._completed = 0
        self._unreturned = 0
        self._partial_since: float | None = None
        self.last_frame = trio.current_time()

    async def next(self) -> list[f.Frame] | None:
        """The next frames, their bodies valid until the next call; None at the end of the stream.

        Raises StreamBroken, RemoteProtocolError."""
        try:
            frames = await self._next()
        except (StreamBroken, RemoteProtocolError):
            self._writer.stop()
            raise
        if frames is None:
            self._writer.stop()
        return frames

    async def _receive(self) -> bytes | memoryview:
        if self._into is not None:
            return self._buffer[: await self._into(self._buffer)]
        return await self._stream.receive_some(65536)

    async def _next(self) -> list[f.Frame] | None:
        if self._fed is not None and (frames := self._decoded(self._fed)):
            await trio.lowlevel.checkpoint()  # many small frames came at once: other tasks first
            return frames
        while True:
            data: bytes | memoryview = b""
            if self._partial_since is None:
                data = await self._receive()
            else:
                with trio.CancelScope(deadline=self._partial_since + self._config.frame_timeout_s) as scope:
                    data = await self._receive()
                if scope.cancelled_caught:
                    # A network that stalls looks the same as a peer that dribbles: no violation.
                    raise StreamBroken(f"a frame was not complete within {self._config.frame_timeout_s} s")
            if not data:
                if self._decoder.is_partial:
                    raise StreamBroken("the stream ended within a frame")
                return None
            self._metrics.bytes_in += len(data)
            self._completed = self._decoder.completed
            if frames := self._decoded(self._decoder.feed(data)):
                return frames

    def _decoded(self, fed: Iterator[f.Frame]) -> list[f.Frame]:
        """The next frames of what was fed; none when all were given."""
        frames = list(islice(fed, _FRAMES_AT_ONCE))
        self._fed = fed if len(frames) == _FRAMES_AT_ONCE else None
        now = trio.current_time()
        if not self._decoder.is_partial:
            self._partial_since = None
        elif self._partial_since is None or self._decoder.completed > self._completed:
            self._partial_since = now  # another frame has begun
        if frames:
            self.last_frame = now
        return frames

    def took(self, amount: int) -> None:
        """Return window for body bytes, a third of a window at a time."""
        self._unreturned += amount
        if self._unreturned * 3 >= self._writer.limits.window_bytes:
            self._writer.control(f.Credit(0, self._unreturned))
            self._unreturned = 0


async def watch(writer: LinkWriter, config: RpcConfig, idle_s: float, *, last_active: Callable[[], float]) -> None:
    """Return when the channel was idle for `idle_s` (`last_active` says since when: inf while it is used). Raises
    StreamBroken when a write waits too long.

    One task that sleeps, in place of a timeout around every read and write: those are most of what a call costs."""
    while True:
        now = trio.current_time()
        idle_at = last_active() + idle_s
        if now >= idle_at:
            return
        if writer.writing_since is not None and now >= writer.writing_since + config.write_timeout_s:
            raise StreamBroken(f"the peer read nothing for {config.write_timeout_s} s")
        # A stalled write is noticed after one to two timeouts.
        await trio.sleep_until(min(idle_at, now + idle_s, now + config.write_timeout_s))


async def until_first(*tasks: Callable[[], Awaitable[None]]) -> None:
    """Run all until one returns, then cancel the others. Raises what the first failing one raised, unwrapped."""
    failure: list[MeshError] = []

    async def one(task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except (NetworkError, RemoteProtocolError, LocalProtocolError) as error:
            failure.append(error)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(one, task)
    if failure:
        raise failure[0]
