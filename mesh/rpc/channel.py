"""RPC channels: many calls over one long-lived stream, in one direction of calling.

A node opens its own channel to each peer it calls (CallingChannel) and answers on those opened to it
(AnsweringChannel). On both, one task reads and never waits for anything but bytes, and one task writes: control frames
first, then heads of messages, then one DATA frame in turn of each long message, so that long ones hold up nobody.

Two bounds keep a slow reader from costing memory or tripping the transport. The channel's window: body bytes sent and
not yet returned by CREDIT with call id 0. The message's credit: a body beyond the first credit waits until the
receiver, having checked size and permission, grants the rest.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from mesh.errors import LocalProtocolError, MeshError, NetworkError, RemoteProtocolError, StreamBroken
from mesh.net.base import Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.config import RpcConfig, RpcMetrics
from mesh.rpc.status import BUSY, OK, TIMEOUT, Status, error_of

log = logging.getLogger(__name__)

_BATCH_BYTES: Final = f.MAX_FRAME_BYTES
_CLOSE_S: Final = 1.0
_READ_BYTES: Final = 65536


class Outgoing:
    """A message on its way out: its head frame, and what is left of its body."""

    __slots__ = ("body", "call_id", "credit", "done", "head", "head_body", "offset", "started")

    def __init__(self, head: f.Request | f.Response, body: bytes) -> None:
        self.call_id = head.call_id
        first = min(len(body), f.FIRST_CREDIT_BYTES, f.MAX_BODY_PER_FRAME)
        self.head = f.encode(head._replace(body_size=len(body), body=body[:first]))
        self.head_body = first
        self.body = memoryview(body)
        self.offset = first
        self.credit = f.FIRST_CREDIT_BYTES - first
        self.started = False
        self.done = trio.Event()
        """Set when the last byte was handed to the stream."""

    @property
    def left(self) -> int:
        """Body bytes not sent yet."""
        return len(self.body) - self.offset


class FrameWriter:
    """The writing half of a channel: what to send next, and the task that sends it."""

    def __init__(self, stream: Stream, config: RpcConfig, metrics: RpcMetrics) -> None:
        self._stream = stream
        self._config = config
        self._metrics = metrics
        self._control: deque[bytes] = deque()
        self._heads: deque[Outgoing] = deque()
        self._bodies: deque[Outgoing] = deque()
        self._window = f.WINDOW_BYTES
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._is_stopped = False
        self.writing_since: float | None = None
        """When the write began that is going on."""

    def control(self, frame: f.Credit | f.Cancel) -> None:
        """Queue a control frame; it goes out before everything else."""
        self._control.append(f.encode(frame))
        self._check_queue()

    def add(self, message: Outgoing) -> None:
        """Queue a message."""
        self._heads.append(message)
        self._check_queue()

    def _check_queue(self) -> None:
        if len(self._control) + len(self._heads) > self._config.max_queued_frames:
            self._scope.cancel()  # even out of a write that waits
        self._wake.set()

    def credit(self, call_id: int, amount: int) -> None:
        """The other side took bytes (call id 0) or grants a message more. Raises RemoteProtocolError."""
        if call_id == 0:
            self._window += amount
            if self._window > f.WINDOW_BYTES:
                raise RemoteProtocolError("credit for bytes that were never sent")
        else:
            # Messages in flight are few, and grants rare: one per message beyond the first credit.
            for message in (*self._bodies, *self._heads):
                if message.call_id == call_id:
                    message.credit = min(message.credit + amount, f.MAX_BODY_BYTES)
        self._wake.set()

    def drop(self, message: Outgoing) -> None:
        """Forget a message, wherever it stands."""
        for queue in (self._heads, self._bodies):
            if message in queue:
                queue.remove(message)

    async def run(self) -> None:
        """Send until cancelled. Raises StreamBroken."""
        with self._scope:
            await self._send()
        if self._scope.cancelled_caught:
            raise StreamBroken(f"{self._stream.remote.short} leaves {self._config.max_queued_frames} frames unread")

    def stop(self) -> None:
        """Begin no more writes: what is queued was never sent."""
        self._is_stopped = True

    async def _send(self) -> None:
        while not self._is_stopped:
            batch, finished = self._next_batch()
            if not batch:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            data = b"".join(batch)
            self.writing_since = trio.current_time()
            await self._stream.send_all(data)
            self.writing_since = None
            self._metrics.bytes_out += len(data)
            for message in finished:
                message.done.set()

    def _next_batch(self) -> tuple[list[bytes], list[Outgoing]]:
        """All control frames, heads while they fit a batch, and one DATA frame of the message whose turn it is."""
        batch, finished = list(self._control), []
        self._control.clear()
        size = sum(map(len, batch))
        while self._heads and size < _BATCH_BYTES and self._heads[0].head_body <= self._window:
            message = self._heads.popleft()
            batch.append(message.head)
            size += len(message.head)
            self._window -= message.head_body
            message.started = True
            if message.left:
                self._bodies.append(message)
            else:
                finished.append(message)
        for _ in range(len(self._bodies)):
            message = self._bodies[0]
            # A sliver of window is left to gather: tiny DATA frames would cost more than they carry.
            room = min(message.left, message.credit, f.MAX_BODY_PER_FRAME)
            if room and (room <= self._window):
                piece = bytes(message.body[message.offset : message.offset + room])
                batch.append(f.encode(f.Data(message.call_id, piece)))
                message.offset += room
                message.credit -= room
                self._window -= room
                self._bodies.popleft()
                if message.left:
                    self._bodies.append(message)
                else:
                    finished.append(message)
                break
            self._bodies.rotate(-1)
        return batch, finished


class _FrameReader:
    """The reading half: frames as they come, none of them may take longer than the frame timeout."""

    def __init__(self, stream: Stream, writer: FrameWriter, config: RpcConfig, metrics: RpcMetrics) -> None:
        self._stream = stream
        self._writer = writer
        self._config = config
        self._metrics = metrics
        self._decoder = f.FrameDecoder()
        self._unreturned = 0
        self._partial_since: float | None = None
        self.last_frame = trio.current_time()

    async def next(self) -> list[f.Frame] | None:
        """The next frames; None at the end of the stream. Raises StreamBroken, RemoteProtocolError."""
        try:
            frames = await self._next()
        except (StreamBroken, RemoteProtocolError):
            self._writer.stop()
            raise
        if frames is None:
            self._writer.stop()
        return frames

    async def _next(self) -> list[f.Frame] | None:
        while True:
            if self._partial_since is None:
                data = await self._stream.receive_some(_READ_BYTES)
            else:
                data = b""
                with trio.CancelScope(deadline=self._partial_since + self._config.frame_timeout_s) as scope:
                    data = await self._stream.receive_some(_READ_BYTES)
                if scope.cancelled_caught:
                    raise RemoteProtocolError(f"a frame was not complete within {self._config.frame_timeout_s} s")
            if not data:
                if self._decoder.is_partial:
                    raise StreamBroken("the stream ended within a frame")
                return None
            self._metrics.bytes_in += len(data)
            frames = self._decoder.feed(data)
            if not self._decoder.is_partial:
                self._partial_since = None
            elif frames or self._partial_since is None:
                self._partial_since = trio.current_time()
            if frames:
                self.last_frame = trio.current_time()
                return frames

    def took(self, body: bytes) -> None:
        """Return window for body bytes, a third of a window at a time."""
        self._unreturned += len(body)
        if self._unreturned * 3 >= f.WINDOW_BYTES:
            self._writer.control(f.Credit(0, self._unreturned))
            self._unreturned = 0


async def _watch(reader: _FrameReader, writer: FrameWriter, config: RpcConfig, idle_s: float, *, is_used: Used) -> None:
    """Return when the channel is idle. Raises StreamBroken when a write waits too long.

    One task that sleeps, in place of a timeout around every read and write: those are most of what a call costs."""
    while True:
        now = trio.current_time()
        idle_at = reader.last_frame + idle_s
        if now >= idle_at:
            if not is_used():
                return
            idle_at = now + idle_s
        if writer.writing_since is not None and now >= writer.writing_since + config.write_timeout_s:
            raise StreamBroken(f"the peer read nothing for {config.write_timeout_s} s")
        # A stalled write is noticed after one to two timeouts.
        await trio.sleep_until(min(idle_at, now + config.write_timeout_s))


Used = Callable[[], bool]


class _Stale:
    """How many more body bytes may come for messages nobody waits for any more."""

    def __init__(self) -> None:
        self._bytes = 0

    def expect(self, amount: int) -> None:
        """Bytes the sender may have been sending when the message was given up."""
        self._bytes += max(0, amount)

    def take(self, amount: int) -> None:
        """Raises RemoteProtocolError when nobody can have allowed these bytes."""
        self._bytes -= amount
        if self._bytes < 0:
            raise RemoteProtocolError("data for a call that is over or never was")


# --- calling --------------------------------------------------------------------------------------------------


class _Call:
    """One call of ours in flight."""

    __slots__ = ("body", "body_size", "done", "error", "limit", "message")

    def __init__(self, message: Outgoing, limit: int) -> None:
        self.message = message
        self.limit = limit
        self.body = bytearray()
        self.body_size = -1  # no head of the response yet
        self.error: MeshError | None = None
        self.done = trio.Event()


class NotSent(StreamBroken):
    """The channel broke before the first byte of the request went out: trying again is safe."""


class CallingChannel:
    """The channel we opened to a peer for our calls."""

    def __init__(
        self, peer: PeerID, config: RpcConfig, metrics: RpcMetrics, *, idle_s: float, last_used: float
    ) -> None:
        self.peer = peer
        self.ready = trio.Event()
        """Set when calls can start, or never will (`closed`)."""
        self.closed: MeshError | None = None
        self.last_used = last_used
        self.scope = trio.CancelScope()
        self._config = config
        self._metrics = metrics
        self._idle_s = idle_s
        self._calls: dict[int, _Call] = {}
        self._last_id = 0
        self._slots = trio.Semaphore(config.max_calls_per_channel)
        self._stale = _Stale()
        self._writer: FrameWriter | None = None
        self.waiting = 0
        """Calls in flight or waiting for a slot."""

    async def run(
        self, open_stream: Callable[[], Awaitable[Stream]], on_violation: Callable[[MeshError], None]
    ) -> None:
        """Open the stream and serve calls until it ends, idles out or is cancelled. Raises nothing of the network."""
        error: MeshError = StreamBroken(f"the channel to {self.peer.short} was closed")
        stream: Stream | None = None
        try:
            with self.scope:
                stream = await open_stream()
                self._metrics.channels_opened += 1
                self._writer = writer = FrameWriter(stream, self._config, self._metrics)
                self.ready.set()
                reader = _FrameReader(stream, self._writer, self._config, self._metrics)
                await _until_first(
                    lambda: self._read(reader),
                    self._writer.run,
                    lambda: _watch(reader, writer, self._config, self._idle_s, is_used=lambda: self.waiting > 0),
                )
        except RemoteProtocolError as violation:
            error = violation
            on_violation(violation)
        except MeshError as failure:
            error = failure
        finally:
            self._fail(error)
            if stream is not None:
                with trio.move_on_after(_CLOSE_S, shield=True):
                    await (stream.reset() if isinstance(error, RemoteProtocolError) else stream.aclose())

    def _fail(self, error: MeshError) -> None:
        self.closed = error
        self.ready.set()
        for call in self._calls.values():
            call.error = error if call.message.started else NotSent(str(error))
            call.done.set()
        self._calls.clear()

    async def call(self, protocol: str, method: str, body: bytes, *, deadline: float, max_response_bytes: int) -> bytes:
        """One call; returns the body of its answer.

        Raises NotSent, StreamBroken, RemoteFailure, NotAuthorized, RequestTimeout (the peer's own),
        RemoteProtocolError. Cancelled: the peer is told, and its handler cancelled."""
        self.waiting += 1
        try:
            try:
                self._slots.acquire_nowait()
            except trio.WouldBlock:
                await self._slots.acquire()
            try:
                if self.closed is not None or self._writer is None:
                    raise NotSent(str(self.closed))
                self._last_id = call_id = self._last_id + 1
                timeout_ms = max(1, min(f.MAX_TIMEOUT_MS, int((deadline - trio.current_time()) * 1000)))
                head = f.Request(call_id, protocol, method, timeout_ms, 0, b"")
                call = self._calls[call_id] = _Call(Outgoing(head, body), max_response_bytes)
                self._writer.add(call.message)
                try:
                    await call.done.wait()
                finally:
                    self._forget(call)
            finally:
                self._slots.release()
        finally:
            self.waiting -= 1
            self.last_used = trio.current_time()
        if call.error is not None:
            raise call.error
        return bytes(call.body)

    def _forget(self, call: _Call) -> None:
        """Stop sending and waiting; tell the peer unless the answer was complete."""
        message = call.message
        if self._calls.pop(message.call_id, None) is None:
            return  # over already
        assert self._writer is not None
        self._writer.drop(message)
        if message.started:
            self._writer.control(f.Cancel(message.call_id))
            known = call.body_size if call.body_size >= 0 else f.FIRST_CREDIT_BYTES
            self._stale.expect(known - len(call.body))

    def _finish(self, call: _Call, error: MeshError | None) -> None:
        call.error = error
        call.done.set()
        del self._calls[call.message.call_id]
        if call.message.left and self._writer is not None:
            self._writer.drop(call.message)  # refused before it had all of it

    async def _read(self, reader: _FrameReader) -> None:
        assert self._writer is not None
        while True:
            frames = await reader.next()
            if frames is None:
                raise StreamBroken(f"{self.peer.short} closed the channel")
            for frame in frames:
                match frame:
                    case f.Response():
                        reader.took(frame.body)
                        self._on_response(frame, self._writer)
                    case f.Data():
                        reader.took(frame.body)
                        self._on_data(frame)
                    case f.Credit():
                        self._writer.credit(frame.call_id, frame.amount)
                    case f.Cancel():
                        call = self._calls.get(frame.call_id)
                        if call is not None:
                            self._finish(call, error_of(Status(TIMEOUT, "", "the peer gave the answer up", True)))
                    case f.Request():
                        raise RemoteProtocolError("a request on a channel that is not the peer's")

    def _on_response(self, frame: f.Response, writer: FrameWriter) -> None:
        call = self._calls.get(frame.call_id)
        if call is None:
            if frame.call_id > self._last_id:
                raise RemoteProtocolError(f"an answer to call {frame.call_id}, which was never made")
            self._stale.take(len(frame.body))
            return
        if call.body_size >= 0:
            raise RemoteProtocolError(f"a second answer to call {frame.call_id}")
        if frame.code:
            self._finish(call, error_of(Status(frame.code, frame.reason, frame.message, frame.retryable)))
            return
        if frame.body_size > call.limit:
            self._finish(
                call,
                RemoteProtocolError(f"{self.peer.short} answers {frame.body_size} bytes, the limit is {call.limit}"),
            )
            writer.control(f.Cancel(frame.call_id))
            self._stale.expect(f.FIRST_CREDIT_BYTES - len(frame.body))
            return
        call.body_size = frame.body_size
        call.body += frame.body
        if len(call.body) == call.body_size:
            self._finish(call, None)
        elif call.body_size > f.FIRST_CREDIT_BYTES:
            writer.control(f.Credit(frame.call_id, call.body_size - f.FIRST_CREDIT_BYTES))

    def _on_data(self, frame: f.Data) -> None:
        call = self._calls.get(frame.call_id)
        if call is None:
            self._stale.take(len(frame.body))
            return
        if len(call.body) + len(frame.body) > call.body_size:
            raise RemoteProtocolError(f"more data than announced for call {frame.call_id}")
        call.body += frame.body
        if len(call.body) == call.body_size:
            self._finish(call, None)


# --- answering ------------------------------------------------------------------------------------------------


class Admission(Protocol):
    """A call that was let in: holds a place in its method until released."""

    timeout_s: float

    async def answer(self, call: InboundCall) -> bytes:
        """Authorize, take the body, run the method. Raises MeshError for the caller."""
        ...

    def release(self) -> None:
        """Give the place back."""
        ...


class Service(Protocol):
    """What an AnsweringChannel asks."""

    def admit(self, remote: PeerID, request: f.Request) -> Admission:
        """Whether there is such a method, with room and for this size. Raises RemoteFailure."""
        ...

    def status_of_exception(self, error: BaseException, where: str) -> Status:
        """What to tell the caller; re-raises what must not be held up (cancellation)."""
        ...

    def reserve(self, amount: int) -> None:
        """Take from the node's budget of buffered bytes (negative gives back). Raises RemoteFailure `busy`."""
        ...


class InboundCall:
    """A call being answered."""

    def __init__(self, channel: AnsweringChannel, request: f.Request, deadline: float) -> None:
        self.remote = channel.stream.remote
        self.request = request
        self.deadline = deadline
        self.scope = trio.CancelScope(deadline=deadline)
        self.body = bytearray(request.body)
        self.granted = min(request.body_size, f.FIRST_CREDIT_BYTES)
        self.reserved = 0
        self.is_cancelled = False
        self.complete = trio.Event()
        self._channel = channel
        if len(self.body) == request.body_size:
            self.complete.set()

    async def receive_body(self) -> bytearray:
        """The whole body: from here on the caller may send all of it. Raises RemoteFailure `busy`."""
        rest = self.request.body_size - self.granted
        if rest > 0:
            self._channel.reserve(self, rest)
            self.granted += rest
            self._channel.writer.control(f.Credit(self.request.call_id, rest))
        await self.complete.wait()
        return self.body


class AnsweringChannel:
    """A channel a peer opened to us: reads its calls, runs each in a task of its own."""

    def __init__(self, stream: Stream, service: Service, config: RpcConfig, metrics: RpcMetrics, *, now: float) -> None:
        self.stream = stream
        self.config = config
        self.scope = trio.CancelScope()
        self.last_used = now
        self._service = service
        self._metrics = metrics
        self.writer = FrameWriter(stream, config, metrics)
        self.calls: dict[int, InboundCall] = {}
        self._last_id = 0
        self._reserved = 0
        self._refusals = 0
        self._stale = _Stale()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until the peer ends, idles out, breaks the protocol or we are cancelled; handlers end with it.

        Raises StreamBroken, RemoteProtocolError. The caller closes the stream."""
        failure: MeshError | None = None
        with self.scope:
            async with trio.open_nursery() as self._nursery:
                try:
                    reader = _FrameReader(self.stream, self.writer, self.config, self._metrics)
                    await _until_first(
                        lambda: self._read(reader),
                        self.writer.run,
                        lambda: _watch(
                            reader,
                            self.writer,
                            self.config,
                            self.config.idle_in_s,
                            is_used=lambda: bool(self.calls),
                        ),
                    )
                except MeshError as error:
                    failure = error  # raised below, as the nursery would wrap it
                self._nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def reserve(self, call: InboundCall, amount: int) -> None:
        """Take buffer space for a call, of this channel's share and the node's. Raises RemoteFailure `busy`."""
        if self._reserved + amount > self.config.max_buffered_bytes_per_channel:
            raise error_of(Status(BUSY, "", "too many bytes on their way on this channel", True))
        self._service.reserve(amount)
        self._reserved += amount
        call.reserved += amount

    async def _read(self, reader: _FrameReader) -> None:
        while True:
            frames = await reader.next()
            if frames is None:
                return  # nobody waits for answers any more
            self.last_used = trio.current_time()
            for frame in frames:
                match frame:
                    case f.Request():
                        reader.took(frame.body)
                        self._on_request(frame)
                    case f.Data():
                        reader.took(frame.body)
                        self._on_data(frame)
                    case f.Credit():
                        self.writer.credit(frame.call_id, frame.amount)
                    case f.Cancel():
                        call = self.calls.get(frame.call_id)
                        if call is not None:
                            call.is_cancelled = True
                            call.scope.cancel()
                        elif frame.call_id > self._last_id:
                            raise RemoteProtocolError(f"cancels call {frame.call_id}, which was never made")
                    case f.Response():
                        raise RemoteProtocolError("an answer on the peer's own channel")

    def _on_request(self, request: f.Request) -> None:
        if request.call_id <= self._last_id:
            raise RemoteProtocolError(f"call id {request.call_id} after {self._last_id}: ids must rise")
        if len(request.body) > f.FIRST_CREDIT_BYTES:
            raise RemoteProtocolError("more data than its credit allows")
        self._last_id = request.call_id
        self._metrics.calls_in += 1
        assert self._nursery is not None
        admission: Admission | None = None
        try:
            if len(self.calls) >= self.config.max_calls_in_per_channel:
                raise error_of(Status(BUSY, "", f"more than {len(self.calls)} calls at once", True))
            admission = self._service.admit(self.stream.remote, request)
            now = trio.current_time()
            call = InboundCall(self, request, now + min(request.timeout_ms / 1000, admission.timeout_s))
            self.reserve(call, call.granted)
        except MeshError as error:
            if admission is not None:
                admission.release()
            self._stale.expect(min(request.body_size, f.FIRST_CREDIT_BYTES) - len(request.body))
            self._refuse(request, self._service.status_of_exception(error, f"{request.protocol} {request.method}"))
            return
        self.calls[request.call_id] = call
        self._nursery.start_soon(self._answer, call, admission)

    def _refuse(self, request: f.Request, status: Status) -> None:
        """Answer without a task; the queue of answers is bounded, and a caller who does not read them is cut off."""
        self._metrics.count_error(self._metrics.errors_in, status.code)
        self.writer.add(Outgoing(f.Response(request.call_id, *status, 0, b""), b""))

    def _on_data(self, frame: f.Data) -> None:
        call = self.calls.get(frame.call_id)
        if call is None or call.complete.is_set():
            self._stale.take(len(frame.body))
            return
        if len(call.body) + len(frame.body) > call.granted:
            raise RemoteProtocolError(f"more data than granted for call {frame.call_id}")
        call.body += frame.body
        if len(call.body) == call.request.body_size:
            call.complete.set()

    async def _answer(self, call: InboundCall, admission: Admission) -> None:
        request = call.request
        status = Status(TIMEOUT, "", "the method did not finish in time", True)
        message: Outgoing | None = None
        try:
            try:
                with call.scope:
                    body = await admission.answer(call)
                    status = OK
                    message = self._queue(request.call_id, OK, body)
                    await message.done.wait()
            except BaseException as error:  # noqa: BLE001 - a handler's failure is an answer, never ours
                status = self._service.status_of_exception(error, f"{request.protocol} {request.method}")
            if status.code:
                self._metrics.count_error(self._metrics.errors_in, status.code)
                if not call.is_cancelled:
                    message = self._queue(request.call_id, status, b"")
                    call.scope = trio.CancelScope(deadline=trio.current_time() + self.config.write_timeout_s)
                    with call.scope:
                        await message.done.wait()
            if message is not None and not message.done.is_set():
                self._give_up(message, call)
        finally:
            del self.calls[request.call_id]
            admission.release()
            self._reserved -= call.reserved
            self._service.reserve(-call.reserved)
            if not call.complete.is_set():
                self._stale.expect(call.granted - len(call.body))

    def _queue(self, call_id: int, status: Status, body: bytes) -> Outgoing:
        message = Outgoing(f.Response(call_id, *status, 0, b""), body)
        self.writer.add(message)
        return message

    def _give_up(self, message: Outgoing, call: InboundCall) -> None:
        """An answer whose deadline passed, or that is no longer wanted, before all of it was sent."""
        self.writer.drop(message)
        if not call.is_cancelled:
            self.writer.control(f.Cancel(message.call_id))


async def _until_first(*tasks: Callable[[], Awaitable[None]]) -> None:
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
