"""The answering side of a channel: a channel that a peer opened to us, and its calls."""

from __future__ import annotations

import math
from typing import Final, Protocol

import trio

from mesh.auth.authorizer import PeerClass
from mesh.errors import MeshError, NotAuthorized, RemoteFailure, RemoteProtocolError
from mesh.net.base import Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.config import RpcConfig, RpcMetrics
from mesh.rpc.flow import Intake, LinkLimits, Stale
from mesh.rpc.inbox import Assembly, Inbox
from mesh.rpc.link import Buffers, LinkReader, LinkWriter, Sender, body_bytes, until_first, watch
from mesh.rpc.status import BUSY, OK, TIMEOUT, TOO_LARGE, Status

_UNWATCHED_BYTES: Final = 4096
"""An answer this small is not waited for: its handler's task ends once it is queued."""


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
        self.body: Assembly | None = None
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
            self.body = Assembly(request.size, allocate=first)
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
        self.sender.add(f.Message(self.request.call_id, 0), buffers, body_bytes(buffers))
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
            self._nursery = None
        if failure is not None:
            raise failure

    def _last_active(self) -> float:
        return math.inf if self.calls or self.writer.is_busy else self.last_used

    def reserve(self, call: InboundCall, amount: int) -> None:
        """Take buffer space for a call, of this channel's share and the node's (negative gives back). Raises
        RemoteFailure `busy`."""
        most = self.config.max_buffered_bytes_per_channel
        if call.reserved + amount > most:
            raise RemoteFailure(TOO_LARGE, f"it takes more than the {most} bytes this node buffers for one peer")
        if amount > 0 and self._reserved + amount > most:
            raise RemoteFailure(BUSY, "too many bytes on their way on this channel", retryable=True)
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
                raise RemoteFailure(BUSY, f"more than {len(self.calls)} calls at once", retryable=True)
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
                    size = body_bytes(buffers)
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
