"""yamux for the connections of py-libp2p, in place of its own `Yamux` (hashicorp/yamux spec.md, version 0).

Same wire, other guarantees. py-libp2p 0.8.1's muxer gives up a write after 5 s of a full window and polls for it (B5),
blocks without limit when 256 streams are open (B6), keeps what a peer sends beyond its window (B13), writes to the
socket in the caller's task, where a cancelled caller leaves half an encrypted message behind and with it a dead
connection (B14), lets the task that reads wait for the one that writes, so that two busy peers can wait for each
other for ever (B15), reports a lost connection as a clean end (B16), and never notices a peer that is silent (B17).

Here one task reads and never writes, one task writes and never reads. Each stream may hold one window of unread
bytes; a peer that sends more, opens streams with our ids, or speaks another version loses the connection.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from types import TracebackType
from typing import Any, Final

import trio
from libp2p.abc import ConnectionType, IMuxedConn, IMuxedStream, ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from multiaddr import Multiaddr
from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import first_leaf
from mesh.ratelimit import TokenBucket

log = logging.getLogger(__name__)

FIRST_WINDOW: Final = 256 * 1024
"""Bytes a side may send on a new stream before it has heard anything (spec: "Flow Control")."""

_HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream id, length
_DATA, _WINDOW, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_MAX_U32: Final = 0xFFFFFFFF
_MAX_FRAME: Final = 65_480
"""Bytes in one data frame of ours: with its header and a few control frames it fits into one noise message."""
_MAX_BATCH: Final = 65_519
"""Plaintext of one noise message: frames that wait at the same time travel in one."""


class YamuxConfig(BaseModel):
    """Limits of one connection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    receive_window_bytes: int = Field(default=FIRST_WINDOW, ge=FIRST_WINDOW, le=16 * 1024 * 1024)
    """Unread bytes a stream may hold; throughput over a long way is at most this per round trip."""
    max_inbound_streams: int = Field(default=256, ge=1)
    """Streams the peer may have open with us; further ones are reset."""
    streams_per_s: float = Field(default=100.0, gt=0)
    """Streams the peer may open in the long run; each costs over a millisecond of negotiation. Further ones are reset.
    Our own traffic opens few: calls share one."""
    streams_burst: float = Field(default=512.0, ge=1)
    """How many at once."""
    max_outbound_streams: int = Field(default=256, ge=1)
    """Streams we may have open with the peer; opening a further one waits."""
    max_unsent_bytes: int = Field(default=256 * 1024, ge=64 * 1024)
    """Bytes accepted from senders and not yet given to the socket; beyond them senders wait."""
    max_unsent_control_bytes: int = Field(default=64 * 1024, ge=4096)
    """The same for acknowledgements; a peer that asks for more of them than it reads loses the connection."""
    write_stall_timeout_s: float = Field(default=30.0, gt=0)
    """How long a sender waits for the peer to grant any window before the stream counts as broken."""
    ping_interval_s: float = Field(default=15.0, gt=0)
    ping_timeout_s: float = Field(default=15.0, gt=0)
    """A ping unanswered for so long ends the connection."""
    flush_timeout_s: float = Field(default=0.2, gt=0)
    """How long closing waits for what is still unsent."""


class YamuxStream(IMuxedStream):  # type: ignore[misc]  # libp2p is untyped to mypy here
    """One stream; made by YamuxConnection only. Errors are py-libp2p's, as its callers expect them."""

    def __init__(self, connection: YamuxConnection, stream_id: int) -> None:
        self.muxed_conn = connection
        self.stream_id = stream_id
        self._connection = connection
        self._buffer = bytearray()
        self._credit = FIRST_WINDOW  # bytes the peer may still send
        self._consumed = 0  # read by us since the last window update
        self._send_window = FIRST_WINDOW
        self._fin_sent = False
        self._fin_received = False
        self._reset = False
        self._ended = False  # by us or with the connection: nothing more will come or go
        self._discard = False
        self._readable = trio.Event()
        self._writable = trio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether both directions have ended."""
        return self._ended or self._reset or (self._fin_sent and self._fin_received)

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes (all there are if None or -1), at least one.

        Raises MuxedStreamEOF after the peer's end, MuxedStreamReset when the stream or connection broke off.
        """
        while True:
            if self._buffer and not self._reset:
                if n is None or n < 0 or n >= len(self._buffer):
                    data = bytes(self._buffer)
                    self._buffer.clear()
                else:
                    data = bytes(self._buffer[:n])
                    del self._buffer[:n]
                self._connection._grant(self, len(data))
                await trio.lowlevel.checkpoint()
                return data
            if self._fin_received and not self._reset:
                raise MuxedStreamEOF("the peer ended the stream")
            if self._reset or self._ended:
                raise MuxedStreamReset(f"stream reset: {self._connection.reason or 'by one of its sides'}")
            self._readable = trio.Event()
            await self._readable.wait()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand all of `data` to the connection; returns when it is accepted, not when the peer has it.

        Raises MuxedStreamClosed after close(), MuxedStreamReset, and MuxedStreamError when the peer grants no window
        for `write_stall_timeout_s`. Cancelled: an unknown part was sent, so reset the stream.
        """
        view = memoryview(data).cast("B")
        while True:
            if self._fin_sent:
                raise MuxedStreamClosed("the stream is closed for sending")
            if self._reset or self._ended:
                raise MuxedStreamReset(f"stream reset: {self._connection.reason or 'by one of its sides'}")
            if not view:
                return
            size = min(self._send_window, _MAX_FRAME, len(view))
            if size == 0:
                await self._wait_for_window()
                continue
            # Take the window and queue the frame without a checkpoint between: two writers cannot overdraw it.
            self._send_window -= size
            self._connection._queue(_HEADER.pack(0, _DATA, 0, self.stream_id, size), view[:size])
            view = view[size:]
            await self._connection._backpressure()

    async def _wait_for_window(self) -> None:
        self._writable = trio.Event()
        timeout_s = self._connection.config.write_stall_timeout_s
        with trio.move_on_after(timeout_s) as scope:
            await self._writable.wait()
        if scope.cancelled_caught:
            raise MuxedStreamError(f"the peer granted no window for {timeout_s:g} s")

    async def close(self) -> None:
        """End our direction; the peer may go on sending. Never blocks."""
        self.finish()
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """close() without a checkpoint."""
        if not (self._fin_sent or self._reset or self._ended):
            self._fin_sent = True
            self._connection._queue(_HEADER.pack(0, _WINDOW, _FIN, self.stream_id, 0))
            self._writable.set()
            self._connection._forget_if_closed(self)

    async def reset(self) -> None:
        """Abort both directions at once. Never blocks."""
        self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """reset() without a checkpoint, for code that is being cancelled."""
        if not self.is_closed:
            self._connection._queue(_HEADER.pack(0, _WINDOW, _RST, self.stream_id, 0))
        if not (self._fin_sent and self._fin_received):
            self._break(reset=True)
        self._connection._forget_if_closed(self)

    def discard_input(self) -> None:
        """Throw away what was and will be received: nobody reads any more."""
        self._discard = True
        self._buffer.clear()

    def _break(self, *, reset: bool) -> None:
        """Wake everybody; `reset` says that unread bytes are void too (not so when only the connection was lost)."""
        self._ended = True
        if reset:
            self._reset = True
            self._buffer.clear()
        self._readable.set()
        self._writable.set()

    def _feed(self, data: memoryview) -> None:
        if not (self._discard or self._reset):
            self._buffer += data
            self._readable.set()

    def set_deadline(self, ttl: int) -> None:
        """Not supported: use trio's timeouts."""
        raise NotImplementedError("yamux streams have no deadlines of their own; use trio.fail_after")

    def get_remote_address(self) -> tuple[str, int] | None:
        """The peer's IP address and port."""
        return self._connection.get_remote_address()

    async def __aenter__(self) -> YamuxStream:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()


class _Violation(Exception):
    """The peer broke the protocol."""


class YamuxConnection(IMuxedConn):  # type: ignore[misc]
    """All streams of one secured connection. `start` runs it and returns when it has ended; nothing escapes from it."""

    def __init__(self, conn: ISecureConn, peer_id: ID, *, config: YamuxConfig | None = None) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.config = config or YamuxConfig()
        self.on_close: Any = None  # set by SwarmConn: an async function without arguments
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.reason = ""
        """Why the connection ended; empty while it lives."""
        self.idle_since: float | None = trio.current_time()
        """trio time since when no stream is open; None while one is."""
        self.opened_at = trio.current_time()
        self.used_at = self.opened_at
        """trio time when a stream last opened or moved bytes."""
        self.rtt_s: float | None = None
        """Round trip of the last ping."""
        self._is_initiator = bool(conn.is_initiator)
        self._next_id = 1 if self._is_initiator else 2
        self._streams: dict[int, YamuxStream] = {}
        self._inbound = 0
        self._syns = TokenBucket(rate_per_s=self.config.streams_per_s, burst=self.config.streams_burst)
        self._outbound_slots = trio.Semaphore(self.config.max_outbound_streams)
        self._accept_in, self._accept_out = trio.open_memory_channel[YamuxStream](self.config.max_inbound_streams)
        self._outbox: deque[bytes] = deque()
        self._unsent = 0
        self._control = bytearray()
        self._wake_writer = trio.Event()
        self._drained = trio.Event()
        self._pong = trio.Event()
        self._ping_nonce = 0
        self._closing = False
        self._scope: trio.CancelScope | None = None  # around the tasks of start()

    # --- what SwarmConn and the host ask for --------------------------------------------------------------------

    @property
    def is_initiator(self) -> bool:
        """Whether we dialled."""
        return self._is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self._closing

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self.event_closed.is_set()

    @property
    def stream_count(self) -> int:
        """Streams open in at least one direction."""
        return len(self._streams)

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Addresses of the peer's end."""
        return list(self.secured_conn.get_transport_addresses())

    def get_connection_type(self) -> ConnectionType:
        """Direct or relayed."""
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The peer's IP address and port."""
        address: tuple[str, int] | None = self.secured_conn.get_remote_address()
        return address

    async def start(self) -> None:
        """Run until either side ends the connection. Never raises (a raise here would end the whole host: B2)."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write)
                nursery.start_soon(self._ping)
                self.event_started.set()
                await self._read()
        except* _Violation as group:
            self._end(f"the peer broke the protocol: {first_leaf(group)}")
        except* (BaseLibp2pError, OSError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
            self._end(f"connection lost: {first_leaf(group)!r}")
        except* Exception as group:  # noqa: BLE001 - a decryption error, or a fault of ours: either way this connection only
            self._end(f"connection failed: {first_leaf(group)!r}")
        finally:
            self._end("connection lost")
            self.event_started.set()
            await self._release()

    async def close(self) -> None:
        """Tell the peer, flush briefly, and end. Bounded by `flush_timeout_s`; never raises."""
        if not self._closing:
            self._closing = True
            self._queue(_HEADER.pack(0, _GO_AWAY, 0, 0, 0))
            with trio.move_on_after(self.config.flush_timeout_s):
                while self._unsent and not self.event_closed.is_set():
                    await self._wait_drained()
        self._end("we closed the connection")
        await self._release()

    async def _release(self) -> None:
        # aclose() of trio's socket closes it before its only checkpoint, so this holds under cancellation too.
        try:
            await self.secured_conn.close()
        except (BaseLibp2pError, OSError, trio.BrokenResourceError) as error:
            log.debug("closing the connection to %s: %r", self.peer_id, error)
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            await on_close()

    def _end(self, reason: str) -> None:
        if self.event_closed.is_set():
            return
        self._closing = True
        self.reason = reason
        log.debug("connection to %s ended: %s", self.peer_id, reason)
        self.event_closed.set()
        self._accept_in.close()
        for stream in list(self._streams.values()):
            stream._break(reset=False)
            self._forget_if_closed(stream)
        self._outbox.clear()
        self._control.clear()
        self._unsent = 0
        self._drained.set()
        if self._scope is not None:
            self._scope.cancel()

    async def open_stream(self) -> YamuxStream:
        """A new stream; waits for a free slot. Raises MuxedConnUnavailable when the connection has ended."""
        await self._outbound_slots.acquire()
        if self._closing or self._next_id > _MAX_U32:
            self._outbound_slots.release()
            raise MuxedConnUnavailable(self.reason or "the connection is closing")
        stream = YamuxStream(self, self._next_id)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self.idle_since = None
        self._queue(_HEADER.pack(0, _WINDOW, _SYN, stream.stream_id, self._first_grant(stream)))
        return stream

    async def accept_stream(self) -> YamuxStream:
        """The next stream the peer opened. Raises MuxedConnUnavailable when the connection has ended."""
        try:
            return await self._accept_out.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise MuxedConnUnavailable(self.reason or "the connection ended") from error

    # --- streams --------------------------------------------------------------------------------------------------

    def _first_grant(self, stream: YamuxStream) -> int:
        extra = self.config.receive_window_bytes - FIRST_WINDOW
        stream._credit += extra
        return extra

    def _grant(self, stream: YamuxStream, consumed: int) -> None:
        """Return window for bytes that were read, in steps of half a window."""
        stream._consumed += consumed
        if stream._consumed * 2 >= self.config.receive_window_bytes and not stream._fin_received and not stream._ended:
            self._queue_control(_HEADER.pack(0, _WINDOW, 0, stream.stream_id, stream._consumed))
            stream._credit += stream._consumed
            stream._consumed = 0

    def _forget_if_closed(self, stream: YamuxStream) -> None:
        if stream.is_closed and self._streams.pop(stream.stream_id, None) is not None:
            if (stream.stream_id % 2 == 1) == self._is_initiator:
                self._outbound_slots.release()
            else:
                self._inbound -= 1
            if not self._streams:
                self.idle_since = trio.current_time()

    # --- writing --------------------------------------------------------------------------------------------------

    def _queue(self, header: bytes, body: memoryview | None = None) -> None:
        """Send in order with everything else of this kind. The caller may change `body` later, so it is copied."""
        if self.event_closed.is_set():
            return
        frame = header if body is None else header + body
        self._outbox.append(frame)
        self.used_at = trio.current_time()
        self._unsent += len(frame)
        self._wake_writer.set()

    def _queue_control(self, frame: bytes) -> None:
        """Send before any data that waits."""
        if self.event_closed.is_set():
            return
        self._control += frame
        self._wake_writer.set()
        if len(self._control) > self.config.max_unsent_control_bytes:
            self._end("the peer broke the protocol: it asks for more replies than it reads")

    async def _backpressure(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._unsent > self.config.max_unsent_bytes and not self.event_closed.is_set():
            await self._wait_drained()

    async def _wait_drained(self) -> None:
        if self._drained.is_set():
            self._drained = trio.Event()
        await self._drained.wait()

    async def _write(self) -> None:
        write = self.secured_conn.write
        while True:
            if not self._control and not self._outbox:
                self._wake_writer = trio.Event()
                await self._wake_writer.wait()
                continue
            batch = self._control
            self._control = bytearray()
            taken = 0
            while self._outbox and (not batch or len(batch) + len(self._outbox[0]) <= _MAX_BATCH):
                frame = self._outbox.popleft()
                batch += frame
                taken += len(frame)
            await write(bytes(batch))
            self._unsent = max(0, self._unsent - taken)
            self._drained.set()

    async def _ping(self) -> None:
        while True:
            await trio.sleep(self.config.ping_interval_s)
            self._ping_nonce = (self._ping_nonce + 1) & _MAX_U32
            self._pong = trio.Event()
            sent_at = trio.current_time()
            self._queue_control(_HEADER.pack(0, _PING, _SYN, 0, self._ping_nonce))
            with trio.move_on_after(self.config.ping_timeout_s) as scope:
                await self._pong.wait()
            if scope.cancelled_caught:
                raise _Violation(f"no answer to a ping for {self.config.ping_timeout_s:g} s")
            self.rtt_s = trio.current_time() - sent_at

    # --- reading --------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        read = self.secured_conn.read
        buffer = bytearray()
        while True:
            while len(buffer) < _HEADER.size:
                buffer += await read()
            version, kind, flags, stream_id, length = _HEADER.unpack_from(buffer)
            if version != 0:
                raise _Violation(f"frame of version {version}")
            if kind == _DATA:
                if length > self.config.receive_window_bytes:
                    raise _Violation(f"frame of {length} bytes, beyond any window")
                size = _HEADER.size + length
                while len(buffer) < size:
                    buffer += await read()
                with memoryview(buffer) as view, view[_HEADER.size : size] as body:
                    self._on_stream_frame(flags, stream_id, body, 0)
                del buffer[:size]
                continue
            del buffer[: _HEADER.size]
            if kind == _WINDOW:
                self._on_stream_frame(flags, stream_id, None, length)
            elif kind == _PING:
                if flags & _SYN:
                    self._queue_control(_HEADER.pack(0, _PING, _ACK, 0, length))
                elif flags & _ACK and length == self._ping_nonce:
                    self._pong.set()
            elif kind == _GO_AWAY:
                self._end(f"the peer closed the connection (code {length})")
                return
            else:
                raise _Violation(f"frame of unknown type {kind}")

    def _on_stream_frame(self, flags: int, stream_id: int, body: memoryview | None, grant: int) -> None:
        if flags & _SYN and not self._on_syn(stream_id, flags):
            return
        self.used_at = trio.current_time()
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # late frames of a stream that is already closed here
        if grant:
            stream._send_window = min(stream._send_window + grant, _MAX_U32)
            stream._writable.set()
        if body is not None and len(body):
            stream._credit -= len(body)
            if stream._credit < 0:
                raise _Violation(f"{-stream._credit} bytes beyond the window of stream {stream_id}")
            if stream._fin_received:
                raise _Violation(f"bytes after the end of stream {stream_id}")
            stream._feed(body)
        if flags & _RST:
            # Bytes before a clean end were meant for us whatever came after it.
            stream._break(reset=not stream._fin_received)
            self._forget_if_closed(stream)
        elif flags & _FIN:
            stream._fin_received = True
            stream._readable.set()
            self._forget_if_closed(stream)

    def _on_syn(self, stream_id: int, flags: int) -> bool:
        if stream_id == 0 or (stream_id % 2 == 1) == self._is_initiator or stream_id in self._streams:
            raise _Violation(f"stream id {stream_id} is not the peer's to open")
        is_too_fast = not self._syns.take(trio.current_time())
        if is_too_fast or self._inbound >= self.config.max_inbound_streams or self._closing:
            self._queue_control(_HEADER.pack(0, _WINDOW, _RST, stream_id, 0))
            return False
        if flags & _RST:
            return False
        stream = YamuxStream(self, stream_id)
        try:
            # Never full but when nobody accepts: as many places as streams.
            self._accept_in.send_nowait(stream)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._queue_control(_HEADER.pack(0, _WINDOW, _RST, stream_id, 0))
            return False
        self._streams[stream_id] = stream
        self._inbound += 1
        self.idle_since = None
        self._queue_control(_HEADER.pack(0, _WINDOW, _ACK, stream_id, self._first_grant(stream)))
        return True
