"""RPC channels: many calls over one long-lived stream, in one direction of calling.

A node opens its own channels to each peer it calls (CallingChannel) and answers on those opened to it
(AnsweringChannel). A channel rides on a libp2p stream or on a data connection; only its limits differ.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from mesh.auth.authorizer import PeerClass
from mesh.errors import MeshError, NotAuthorized, RemoteFailure, RemoteProtocolError, StreamBroken
from mesh.net.base import Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.config import RpcConfig, RpcMetrics
from mesh.rpc.flow import Intake, LinkLimits, Stale
from mesh.rpc.link import Buffers, LinkReader, LinkWriter, Sender, until_first, watch
from mesh.rpc.status import BUSY, OK, TIMEOUT, TOO_LARGE, Status, error_of

log = logging.getLogger(__name__)

_CLOSE_S: Final = 1.0
_UNWATCHED_BYTES: Final = 4096
"""An answer this small is not waited for: its handler's task ends once it is queued."""


_TAKEN_AT_ONCE: Final = 32
"""How many messages are read between two looks at other tasks."""


class _Assembly:
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
        self._assembly: _Assembly | None = None
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
        self._assembly = _Assembly(frame.size, allocate=max(len(frame.body), min(frame.size, self._first)))
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


def _body_bytes(buffers: Buffers) -> int:
    return sum(map(len, buffers))


# --- calling --------------------------------------------------------------------------------------------------


class NotSent(StreamBroken):
    """The channel broke before the first byte of the request went out: trying again is safe."""


class OutboundCall:
    """One call of ours in flight."""

    __slots__ = ("_limit", "answer", "channel", "done", "error", "granted", "inbox", "is_heard", "sender")

    def __init__(self, channel: CallingChannel, sender: Sender, limit: int, inbox: Inbox | None) -> None:
        self.channel = channel
        self.sender = sender
        self.inbox = inbox
        """Where answers of a stream arrive; None for one answer."""
        self.answer: _Assembly | None = None
        self.error: MeshError | None = None
        self.granted = sender.credit.left
        """Bytes of the one answer that may come in all."""
        self.done = trio.Event()
        self.is_heard = False
        """Whether anything came for it."""
        self._limit = limit

    async def send(self, buffers: Buffers) -> None:
        """One message of a stream of requests; waits while too much of it is unsent. Raises the call's error."""
        size = _body_bytes(buffers)
        self._check()
        self.sender.add(f.Message(self.sender.call_id, 0), buffers, size)
        await trio.lowlevel.checkpoint()
        await self.sender.drain(self.channel.limits.max_frame_bytes * 2)
        self._check()

    def end(self) -> None:
        """No more requests."""
        if self.error is None and not self.done.is_set():
            self.sender.add(f.End(self.sender.call_id))

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
        if self.done.is_set():
            raise StreamBroken("the call has ended: its answer is there")

    async def result(self) -> bytearray:
        """The one answer, or the end of a stream of answers. Raises the call's error."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.answer.body if self.answer is not None else bytearray()

    def on_reply(self, frame: f.Reply, writer: LinkWriter) -> bool:
        """The head of the end came. Says whether the call is over."""
        if self.answer is not None:
            raise RemoteProtocolError(f"a second answer to call {frame.call_id}")
        if frame.code:
            self.error = error_of(Status(frame.code, frame.reason, frame.message, frame.retryable, frame.details))
            return True
        if self.inbox is not None:
            if frame.size:
                raise RemoteProtocolError("an answer in one piece to a call that asked for a stream")
            self.inbox.end()
            return True
        if frame.size > self._limit:
            peer = self.channel.peer.short
            self.error = RemoteProtocolError(f"{peer} answers {frame.size} bytes, the limit is {self._limit}")
            writer.control(f.Cancel(frame.call_id))
            self.channel.stale.expect(self.channel.limits.first_credit_bytes - len(frame.body))
            return True
        first = self.channel.limits.first_credit_bytes
        self.answer = _Assembly(frame.size, allocate=frame.size)
        if frame.size > first:
            self.granted += frame.size - first
            writer.control(f.Credit(frame.call_id, frame.size - first))
        return self.on_data(frame.body)

    def on_data(self, data: bytes | memoryview) -> bool:
        """Says whether the call is over."""
        if self.inbox is not None:
            self.inbox.data(data)
            return False
        if self.answer is None:
            raise RemoteProtocolError("data before its answer")
        self.answer.add(data)
        return self.answer.is_whole

    @property
    def may_still_come(self) -> int:
        """Bytes the peer may be sending for it."""
        if self.inbox is not None:
            return self.inbox.intake.outstanding
        return self.granted - (self.answer.have if self.answer is not None else 0)


class CallingChannel:
    """A channel we opened to a peer for our calls."""

    def __init__(
        self,
        peer: PeerID,
        limits: LinkLimits,
        config: RpcConfig,
        metrics: RpcMetrics,
        *,
        idle_s: float,
        last_used: float,
    ) -> None:
        self.peer = peer
        self.limits = limits
        self.ready = trio.Event()
        """Set when calls can start, or never will (`closed`)."""
        self.closed: MeshError | None = None
        self.last_used = last_used
        self.scope = trio.CancelScope()
        self._config = config
        self._metrics = metrics
        self._idle_s = idle_s
        self._calls: dict[int, OutboundCall] = {}
        self._last_id = 0
        self._slots = trio.Semaphore(config.max_calls_per_channel)
        self.stale = Stale()
        """What may still come for calls that we gave up."""
        self._writer: LinkWriter | None = None
        self.waiting = 0
        """Calls in flight or waiting for a slot."""

    @property
    def calls_made(self) -> int:
        """Calls since it was opened."""
        return self._last_id

    @property
    def is_open(self) -> bool:
        """Whether calls can start now."""
        return self._writer is not None and self.closed is None and not self.scope.cancel_called

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
                self._writer = writer = LinkWriter(stream, self.limits, self._config, self._metrics)
                reader = LinkReader(stream, writer, self._config, self._metrics)

                def last_active() -> float:
                    return math.inf if self.waiting else max(reader.last_frame, self.last_used)

                self.ready.set()
                await until_first(
                    lambda: self._read(reader, writer),
                    writer.run,
                    lambda: watch(writer, self._config, self._idle_s, last_active=last_active),
                )
        except RemoteProtocolError as violation:
            error = violation
            on_violation(violation)
        except MeshError as failure:
            error = failure
        except Exception:  # a fault of ours: it costs this channel, never the node
            log.exception("the channel to %s failed", self.peer.short)
        finally:
            self._fail(error)
            if stream is not None:
                with trio.move_on_after(_CLOSE_S, shield=True):
                    await (stream.reset() if isinstance(error, RemoteProtocolError) else stream.aclose())

    def _fail(self, error: MeshError) -> None:
        self.closed = error
        self.ready.set()
        for call in self._calls.values():
            self._conclude(call, error if call.sender.started else NotSent(str(error)))
        self._calls.clear()

    async def reserve(self) -> None:
        """Wait for a place among the calls in flight; `release` gives it back."""
        self.waiting += 1
        try:
            try:
                self._slots.acquire_nowait()
            except trio.WouldBlock:
                await self._slots.acquire()
        except BaseException:
            self.waiting -= 1
            raise

    def release(self) -> None:
        """Give the place back."""
        self._slots.release()
        self.waiting -= 1
        self.last_used = trio.current_time()

    def begin(self, head: f.Call, buffers: Buffers, *, deadline: float, max_response_bytes: int) -> OutboundCall:
        """Start a call; a place must be held. `head` lacks its id, timeout and size. Raises NotSent."""
        if self.closed is not None or self._writer is None:
            raise NotSent(str(self.closed))
        self._last_id = call_id = self._last_id + 1
        timeout_ms = max(1, min(f.MAX_TIMEOUT_MS, int((deadline - trio.current_time()) * 1000)))
        sender = Sender(self._writer, call_id)
        inbox = None
        if head.shape & f.Shape.ANSWERS:
            first = self.limits.stream_window_bytes
            inbox = Inbox(self._writer, call_id, max_response_bytes, first=first, reserve=_no_reserve, is_open=True)
        call = self._calls[call_id] = OutboundCall(self, sender, max_response_bytes, inbox)
        head = head._replace(call_id=call_id, timeout_ms=timeout_ms)
        sender.add(head, buffers, _body_bytes(buffers))
        return call

    def forget(self, call: OutboundCall) -> None:
        """Stop sending and waiting; tell the peer unless the call is over."""
        sender = call.sender
        if self._calls.pop(sender.call_id, None) is None:
            return
        self._conclude(call, StreamBroken("the call was ended on this side"))
        if sender.started and self._writer is not None and self.closed is None:
            self._writer.control(f.Cancel(sender.call_id))
            self.stale.expect(call.may_still_come)

    def _finish(self, call: OutboundCall) -> None:
        del self._calls[call.sender.call_id]
        self._conclude(call, call.error)

    def _conclude(self, call: OutboundCall, error: MeshError | None) -> None:
        call.error = error
        call.sender.drop()  # requests that were not sent are not wanted any more
        if call.inbox is not None and error is not None:
            call.inbox.end(error)
        call.done.set()

    async def _read(self, reader: LinkReader, writer: LinkWriter) -> None:
        while True:
            frames = await reader.next()
            if frames is None:
                raise StreamBroken(f"{self.peer.short} closed the channel")
            for frame in frames:
                match frame:
                    case f.Reply() | f.Data() | f.Message():
                        reader.took(len(frame.body))
                        self._on_answer(frame, writer)
                    case f.Credit(0, amount):
                        writer.give_back(amount)
                    case f.Credit(call_id, amount):
                        call = self._calls.get(call_id)
                        if call is not None:
                            call.sender.grant(amount)
                    case f.Cancel(call_id):
                        call = self._calls.get(call_id)
                        if call is not None:
                            call.error = error_of(Status(TIMEOUT, "", "the peer gave the answer up", True))
                            self._finish(call)
                    case _:
                        raise RemoteProtocolError(
                            f"a {type(frame).__name__.lower()} on a channel that is not the peer's"
                        )

    def _on_answer(self, frame: f.Reply | f.Data | f.Message, writer: LinkWriter) -> None:
        call = self._calls.get(frame.call_id)
        if call is None:
            if frame.call_id > self._last_id:
                raise RemoteProtocolError(f"an answer to call {frame.call_id}, which was never made")
            self.stale.take(len(frame.body) + (f.MESSAGE_COST if type(frame) is f.Message else 0))
            return
        call.is_heard = True
        if type(frame) is f.Data:
            is_over = call.on_data(frame.body)
        elif type(frame) is f.Reply:
            is_over = call.on_reply(frame, writer)
        else:
            if call.inbox is None:
                raise RemoteProtocolError("a stream of answers to a call that asked for one")
            is_over = False
            try:
                call.inbox.begin(frame)  # type: ignore[arg-type]
            except RemoteFailure as error:
                call.error = RemoteProtocolError(f"{self.peer.short} sends {error.message}")
                writer.control(f.Cancel(frame.call_id))
                self.stale.expect(call.inbox.intake.outstanding)
                is_over = True
        if is_over:
            self._finish(call)


def _no_reserve(amount: int) -> None:
    """A caller asked for its answers: what they need is bounded by the method's limit and the calls per channel."""


# --- answering ------------------------------------------------------------------------------------------------


class Admission(Protocol):
    """A call that was let in: holds a place in its method until released."""

    timeout_s: float
    max_request_bytes: int

    async def answer(self, call: InboundCall) -> Buffers:
        """Authorize, take the requests, run the method; returns the one answer, or nothing after a stream of them.
        Raises MeshError for the caller."""
        ...

    async def recheck(self) -> None:
        """Raises NotAuthorized when the caller may not go on."""
        ...

    def release(self) -> None:
        """Give the place back."""
        ...


class Service(Protocol):
    """What an AnsweringChannel asks."""

    @property
    def is_ending(self) -> bool:
        """Whether the node ends once its calls are answered: then an answer counts when it was sent."""
        ...

    def admit(self, remote: PeerID, request: f.Call) -> Admission:
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

    def __init__(self, channel: AnsweringChannel, request: f.Call, admission: Admission, deadline: float) -> None:
        self.remote = channel.stream.remote
        self.request = request
        self.deadline = deadline
        self.admission = admission
        self.scope = trio.CancelScope(deadline=deadline)
        self.sender = Sender(channel.writer, request.call_id)
        self.reserved = 0
        self.is_cancelled = False
        self.refused: NotAuthorized | None = None
        """Set when the caller lost its right while the call went on."""
        self._channel = channel
        self._whole: trio.Event | None = None
        first = channel.limits.first_credit_bytes
        self.inbox: Inbox | None = None
        self.body: _Assembly | None = None
        if request.shape & f.Shape.ANSWERS:
            self.sender.credit.left = channel.limits.stream_window_bytes
        if request.shape & f.Shape.REQUESTS:
            self.inbox = Inbox(
                channel.writer,
                request.call_id,
                admission.max_request_bytes,
                first=first,
                reserve=lambda amount: channel.reserve(self, amount),
                is_open=False,
            )
            self.intake = self.inbox.intake
        else:
            self.intake = Intake(min(first, request.size))
            self.body = _Assembly(request.size, allocate=first)
            self.on_data(request.body)

    def is_let_in(self, peer_class: PeerClass) -> None:
        """Its caller was authorized, as one of this class."""
        self._channel.peer_class = max(self._channel.peer_class, peer_class)

    def on_data(self, data: bytes | memoryview) -> None:
        """Bytes of a request came. Raises RemoteProtocolError."""
        if self.body is None:
            assert self.inbox is not None
            self.inbox.data(data)
            return
        self.intake.came(len(data))
        self.body.add(data)
        if self._whole is not None and self.body.is_whole:
            self._whole.set()

    async def receive(self) -> bytearray:
        """The one request: from here on the caller may send all of it. Raises RemoteFailure `busy`."""
        body = self.body
        assert body is not None
        if not body.is_whole:
            grant = self.intake.need(body.size - body.have)
            if grant:
                self._channel.reserve(self, grant)
                body.expand()
                self._channel.writer.control(f.Credit(self.request.call_id, grant))
            if not body.is_whole:
                self._whole = trio.Event()
                await self._whole.wait()
        return body.body

    def open_inbox(self) -> Inbox:
        """The stream of requests: from here on the caller may send a window of it. Raises RemoteFailure `busy`."""
        assert self.inbox is not None
        self.inbox.open()
        return self.inbox

    async def send(self, buffers: Buffers) -> None:
        """One answer of a stream; waits while too much of it is unsent."""
        self.sender.add(f.Message(self.request.call_id, 0), buffers, _body_bytes(buffers))
        await trio.lowlevel.checkpoint()
        await self.sender.drain(self._channel.limits.max_frame_bytes * 2)

    def refuse(self, error: NotAuthorized) -> None:
        """End the call because its caller may not go on."""
        self.refused = error
        self.scope.cancel()


class AnsweringChannel:
    """A channel a peer opened to us: reads its calls, runs each in a task of its own."""

    def __init__(
        self,
        stream: Stream,
        limits: LinkLimits,
        service: Service,
        config: RpcConfig,
        metrics: RpcMetrics,
        *,
        now: float,
    ) -> None:
        self.stream = stream
        self.limits = limits
        self.config = config
        self.scope = trio.CancelScope()
        self.last_used = now
        self.peer_class = PeerClass.PUBLIC
        """The highest its peer was found to have in a call on it: who has none loses its channel first."""
        self._service = service
        self._metrics = metrics
        self.writer = LinkWriter(stream, limits, config, metrics)
        self.calls: dict[int, InboundCall] = {}
        self._last_id = 0
        self._reserved = 0
        self._stale = Stale()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until the peer ends, idles out, breaks the protocol or we are cancelled; handlers end with it.

        Raises StreamBroken, RemoteProtocolError. The caller closes the stream."""
        failure: MeshError | None = None
        with self.scope:
            async with trio.open_nursery() as self._nursery:
                try:
                    reader = LinkReader(self.stream, self.writer, self.config, self._metrics)
                    await until_first(
                        lambda: self._read(reader),
                        self.writer.run,
                        lambda: watch(self.writer, self.config, self.config.idle_in_s, last_active=self._last_active),
                    )
                except MeshError as error:
                    failure = error  # raised below, as the nursery would wrap it
                self._nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _last_active(self) -> float:
        return math.inf if self.calls or self.writer.is_busy else self.last_used

    def reserve(self, call: InboundCall, amount: int) -> None:
        """Take buffer space for a call, of this channel's share and the node's (negative gives back). Raises
        RemoteFailure `busy`."""
        if amount > 0 and self._reserved + amount > self.config.max_buffered_bytes_per_channel:
            raise error_of(Status(BUSY, "", "too many bytes on their way on this channel", True))
        self._service.reserve(amount)
        self._reserved += amount
        call.reserved += amount

    async def _read(self, reader: LinkReader) -> None:
        while True:
            frames = await reader.next()
            if frames is None:
                return  # nobody waits for answers any more
            self.last_used = trio.current_time()
            for frame in frames:
                match frame:
                    case f.Call():
                        reader.took(len(frame.body))
                        self._on_call(frame)
                    case f.Data() | f.Message():
                        reader.took(len(frame.body))
                        self._on_body(frame)
                    case f.Credit(0, amount):
                        self.writer.give_back(amount)
                    case f.Credit(call_id, amount):
                        call = self.calls.get(call_id)
                        if call is not None:
                            call.sender.grant(amount)
                    case f.End(call_id):
                        call = self.calls.get(call_id)
                        if call is None:
                            self._check_made(call_id)
                        elif call.inbox is None:
                            raise RemoteProtocolError(f"ends the stream of call {call_id}, which has none")
                        elif call.inbox.error is None:
                            if call.inbox.is_over:
                                raise RemoteProtocolError("a stream of requests ends twice")
                            call.inbox.end()
                    case f.Cancel(call_id):
                        call = self.calls.get(call_id)
                        if call is not None:
                            call.is_cancelled = True
                            call.scope.cancel()
                        else:
                            self._check_made(call_id)
                    case f.Reply():
                        raise RemoteProtocolError("an answer on the peer's own channel")

    def _check_made(self, call_id: int) -> None:
        if call_id > self._last_id:
            raise RemoteProtocolError(f"ends or cancels call {call_id}, which was never made")

    def _on_call(self, request: f.Call) -> None:
        if request.call_id <= self._last_id:
            raise RemoteProtocolError(f"call id {request.call_id} after {self._last_id}: ids must rise")
        first = self.limits.first_credit_bytes
        if len(request.body) > first:
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
            timeout_s = min(request.timeout_ms / 1000, admission.timeout_s)
            call = InboundCall(self, request, admission, now + timeout_s)
            self.reserve(call, call.intake.outstanding + call.intake.held)
        except RemoteProtocolError:
            if admission is not None:
                admission.release()
            raise
        except MeshError as error:
            if admission is not None:
                admission.release()
            may_come = first if request.shape & f.Shape.REQUESTS else min(request.size, first)
            self._stale.expect(may_come - len(request.body))
            self._refuse(request, self._service.status_of_exception(error, f"{request.protocol} {request.method}"))
            return
        self.calls[request.call_id] = call
        self._nursery.start_soon(self._answer, call)

    def _refuse(self, request: f.Call, status: Status) -> None:
        """Answer without a task; the queue of answers is bounded, and a caller who does not read them is cut off."""
        self._metrics.count_error(self._metrics.errors_in, status.code)
        Sender(self.writer, request.call_id).add(_reply(request.call_id, status))

    def _on_body(self, frame: f.Data | f.Message) -> None:
        call = self.calls.get(frame.call_id)
        cost = f.MESSAGE_COST if type(frame) is f.Message else 0
        if call is None:
            self._stale.take(len(frame.body) + cost)
        elif not cost:
            call.on_data(frame.body)
        elif call.inbox is None or (call.inbox.is_over and call.inbox.error is None):
            raise RemoteProtocolError("a message outside of a stream of requests")
        else:
            try:
                call.inbox.begin(frame)  # type: ignore[arg-type]
            except MeshError as error:
                if isinstance(error, RemoteProtocolError):
                    raise
                call.inbox.end(error)  # no memory for it: the method's next read raises

    async def _answer(self, call: InboundCall) -> None:
        request = call.request
        where = f"{request.protocol} {request.method}"
        status = Status(TIMEOUT, "", "the method did not finish in time", True)
        try:
            try:
                with call.scope:
                    buffers = await call.admission.answer(call)
                    status = OK
                    size = _body_bytes(buffers)
                    call.sender.add(_reply(request.call_id, OK), buffers, size)
                    if size > _UNWATCHED_BYTES or len(call.sender.messages) > 1 or self._service.is_ending:
                        await call.sender.drain()
            except BaseException as error:  # noqa: BLE001 - a handler's failure is an answer, never ours
                status = self._service.status_of_exception(error, where)
            if call.refused is not None and status is not OK:
                status = self._service.status_of_exception(call.refused, where)
            if status.code:
                self._metrics.count_error(self._metrics.errors_in, status.code)
                if not call.is_cancelled:
                    call.sender.drop()
                    call.sender.add(_reply(request.call_id, status))
            elif call.sender.messages and call.scope.cancelled_caught and not call.is_cancelled:
                call.sender.drop()
                self.writer.control(f.Cancel(request.call_id))
        finally:
            if call.is_cancelled:
                call.sender.drop()
            del self.calls[request.call_id]
            self.last_used = trio.current_time()
            call.admission.release()
            self._reserved -= call.reserved
            self._service.reserve(-call.reserved)
            self._stale.expect(call.intake.outstanding)


def _reply(call_id: int, status: Status) -> f.Reply:
    return f.Reply(call_id, *status, 0)
