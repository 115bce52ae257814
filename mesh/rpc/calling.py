"""The calling side of a channel: a channel we opened to a peer, and our calls on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mesh.errors import MeshError, ProtocolNotSpoken, RemoteFailure, RemoteProtocolError, StreamBroken
from mesh.net.base import Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.config import RpcConfig, RpcMetrics
from mesh.rpc.flow import LinkLimits, Stale
from mesh.rpc.inbox import Assembly, Inbox
from mesh.rpc.link import Buffers, LinkReader, LinkWriter, Sender, body_bytes, until_first, watch
from mesh.rpc.status import TIMEOUT, Status, error_of

log = logging.getLogger(__name__)

_CLOSE_S: Final = 1.0


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
        self.answer: Assembly | None = None
        self.error: MeshError | None = None
        self.granted = sender.credit.left
        """Bytes of the one answer that may come in all."""
        self.done = trio.Event()
        self.is_heard = False
        """Whether anything came for it."""
        self._limit = limit

    async def send(self, buffers: Buffers) -> None:
        """One message of a stream of requests; waits while too much of it is unsent. Raises the call's error."""
        size = body_bytes(buffers)
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
            raise StreamBroken("the call has ended, it takes no more requests: await result() for its answer")

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
        self.answer = Assembly(frame.size, allocate=frame.size)
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
            is_final = call.sender.started or isinstance(error, ProtocolNotSpoken)
            self._conclude(call, error if is_final else NotSent(str(error)))
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
            if isinstance(self.closed, ProtocolNotSpoken):
                raise self.closed
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
        sender.add(head, buffers, body_bytes(buffers))
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
