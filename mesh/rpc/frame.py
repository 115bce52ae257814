"""Frames of the RPC channel: bytes to values and back. PURE: no stream, no clock.

    frame  = length:u32 header_length:u16 header body        (big endian; length counts what follows it)
    header = msgpack array [kind, call id, ...fields of the kind]

A call has two directions, each a sequence of messages. CALL opens it; it carries the one request, or announces that
requests follow as MESSAGEs until END. REPLY ends it; it carries the one answer, or says how the answers that came as
MESSAGEs ended. The body of a message begins in its head frame and goes on in DATA frames.
Decoding raises RemoteProtocolError and nothing else, whatever the bytes.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from mesh.errors import LocalProtocolError, RemoteProtocolError

MAX_HEADER_BYTES: Final = 1536
MAX_PROTOCOL_CHARS: Final = 96
MAX_METHOD_CHARS: Final = 64
MAX_CODE_CHARS: Final = 64
MAX_MESSAGE_BYTES: Final = 480
MAX_DETAILS_BYTES: Final = 512
MAX_KEY_BYTES: Final = 32
TRACE_BYTES: Final = 24
MAX_BODY_BYTES: Final = 1 << 30
"""No method may allow more than this in one message; each method's own limit is far lower."""
MAX_TIMEOUT_MS: Final = 24 * 3_600_000
MAX_CALL_ID: Final = (1 << 63) - 1
MESSAGE_COST: Final = 64
"""What a MESSAGE costs of its credit besides its body: so credit bounds the number of small messages too."""

_PREFIX: Final = struct.Struct(">IH")
_SMALL: Final = 6
"""Bytes of the two length fields."""


class Kind(enum.IntEnum):
    """First item of a header."""

    CALL = 1
    REPLY = 2
    MESSAGE = 3
    DATA = 4
    END = 5
    CREDIT = 6
    CANCEL = 7


class Shape(enum.IntFlag):
    """What a caller takes a method for. The answerer refuses a call of another shape than its method's."""

    ONE = 0
    """One request, which CALL carries; one answer, which REPLY carries."""
    REQUESTS = 1
    """Requests follow as MESSAGEs; CALL has no body."""
    ANSWERS = 2
    """Answers come as MESSAGEs; REPLY has no body."""
    JSON = 4
    """Bodies are JSON text: for people and programs without the method's models."""


_MAX_SHAPE: Final = Shape.REQUESTS | Shape.ANSWERS | Shape.JSON


class Call(NamedTuple):
    """The head of a call. `timeout_ms` is what is left of the caller's deadline, `size` the request's bytes, `trace`
    16 bytes of trace id and 8 of the call's own (or nothing), `key` the idempotency key (or nothing)."""

    call_id: int
    protocol: str
    method: str
    timeout_ms: int
    shape: Shape
    trace: bytes
    key: bytes
    size: int
    body: bytes | memoryview = b""


class Reply(NamedTuple):
    """The end of a call. `code` is empty for success; else a stable word, with a reason, text, whether to try again,
    and details (JSON text or nothing)."""

    call_id: int
    code: str
    reason: str
    message: str
    retryable: bool
    details: str
    size: int
    body: bytes | memoryview = b""


class Message(NamedTuple):
    """The head of one message of a stream."""

    call_id: int
    size: int
    body: bytes | memoryview = b""


class Data(NamedTuple):
    """The next part of a message's body, never empty."""

    call_id: int
    body: bytes | memoryview


class End(NamedTuple):
    """From the caller: no more requests."""

    call_id: int


class Credit(NamedTuple):
    """The sender of this frame lets the other send `amount` more bytes: of that call, or with call id 0 the channel's
    window back."""

    call_id: int
    amount: int


class Cancel(NamedTuple):
    """From the caller: the answer is no longer wanted. From the answerer: the rest of the answer will not come."""

    call_id: int


Frame = Call | Reply | Message | Data | End | Credit | Cancel
Head = Call | Reply | Message
"""Frames that begin a message."""


def encode_head(frame: Frame, body_bytes: int) -> bytes:
    """The frame's bytes up to its body of `body_bytes`. Raises LocalProtocolError for an oversized header."""
    header: tuple[Any, ...]
    match frame:
        case Message(call_id, size, _):
            header = (3, call_id, size)
        case Data(call_id, _):
            header = (4, call_id)
        case Call(call_id, protocol, method, timeout_ms, shape, trace, key, size, _):
            header = (1, call_id, protocol, method, timeout_ms, int(shape), trace, key, size)
        case Reply(call_id, code, reason, message, retryable, details, size, _):
            header = (2, call_id, code, reason, message, retryable, details, size)
        case End(call_id):
            header = (5, call_id)
        case Credit(call_id, amount):
            header = (6, call_id, amount)
        case Cancel(call_id):
            header = (7, call_id)
    packed = msgpack.packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"a frame header of {len(packed)} bytes is over the limit of {MAX_HEADER_BYTES}")
    head: bytes = _PREFIX.pack(2 + len(packed) + body_bytes, len(packed)) + packed
    return head


def encode(frame: Frame) -> bytes:
    """The whole frame. Raises LocalProtocolError."""
    body = getattr(frame, "body", b"")
    return encode_head(frame, len(body)) + bytes(body)


class FrameDecoder:
    """Takes bytes as they come and gives frames; holds at most one incomplete header.

    A body is given on as it comes, so a frame whose body is not there yet appears as its head and one or more Data. The
    bodies are views of what was fed: copy them before feeding more.
    """

    def __init__(self, *, max_frame_bytes: int) -> None:
        self._max_length = max_frame_bytes - 4
        self._partial = bytearray()
        self._call_id = 0
        self._body_left = 0
        """Bytes of the current frame's body that have not come yet."""
        self.completed = 0
        """Frames that have come whole."""

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._partial) or self._body_left > 0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """What came complete, in order, decoded as it is asked for: take all of it before feeding more.

        Raises RemoteProtocolError; the decoder is spent then."""
        view = memoryview(data).toreadonly()
        start, end = 0, len(view)
        if self._body_left and end:
            start = min(self._body_left, end)
            self._body_left -= start
            self.completed += not self._body_left
            yield Data(self._call_id, view[:start])
        if self._partial and start < end:
            # At most a prefix and one header are gathered here; whatever of `data` follows them stays where it is.
            had = len(self._partial)
            self._partial += view[start : start + _SMALL + MAX_HEADER_BYTES]
            with memoryview(self._partial) as gathered:
                header_end = self._check(gathered, 0, len(gathered))
                length = int.from_bytes(gathered[:4], "big")
                header = bytes(gathered[_SMALL:header_end])
            if not header_end:
                return
            self._partial.clear()
            frame, start = self._take(header, length, view, start + header_end - had, end)
            if frame is not None:
                yield frame
        while start < end:
            header_end = self._check(view, start, end)
            if not header_end:
                self._partial += view[start:end]
                break
            length = int.from_bytes(view[start : start + 4], "big")
            frame, start = self._take(view[start + _SMALL : header_end], length, view, header_end, end)
            if frame is not None:
                yield frame

    def _check(self, view: memoryview, start: int, end: int) -> int:
        """Where the header that begins at `start` ends; 0 when it has not all come."""
        have = end - start
        if have >= 4:
            length = int.from_bytes(view[start : start + 4], "big")
            if not 2 < length <= self._max_length:
                raise RemoteProtocolError(f"a frame of {length} bytes (allowed: 3 to {self._max_length})")
            if have >= _SMALL:
                header_length = view[start + 4] << 8 | view[start + 5]
                if not 0 < header_length <= min(MAX_HEADER_BYTES, length - 2):
                    raise RemoteProtocolError(f"a frame header of {header_length} bytes in a frame of {length}")
                if have >= _SMALL + header_length:
                    return start + _SMALL + header_length
        return 0

    def _take(
        self, header: bytes | memoryview, length: int, view: memoryview, start: int, end: int
    ) -> tuple[Frame | None, int]:
        """The frame of this header with what is there of its body, and where that ends; None for a DATA frame of whose
        body nothing has come."""
        body_size = length - 2 - len(header)
        stop = min(start + body_size, end)
        frame = decode_header(header, body_size, view[start:stop])
        self._body_left = start + body_size - stop
        self.completed += not self._body_left
        self._call_id = frame.call_id
        return (None if type(frame) is Data and start == stop else frame), stop


def decode_header(header: bytes | memoryview, body_size: int, body: bytes | memoryview) -> Frame:
    """The frame of a header, in which `body` is what has come of its `body_size` bytes. Raises RemoteProtocolError."""
    try:
        fields = msgpack.unpackb(
            header,
            use_list=False,
            max_array_len=9,
            max_map_len=0,
            max_bin_len=TRACE_BYTES + MAX_KEY_BYTES,
            max_ext_len=0,
        )
    except (ValueError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(f"a frame header is not msgpack: {error}") from error
    # 7.0 and True equal kinds, and are none.
    match fields if type(fields) is tuple and fields and type(fields[0]) is int else None:
        case (Kind.DATA, call_id):
            if not body_size:
                raise RemoteProtocolError("a data frame without data")
            return Data(_call_id(call_id), body)
        case (Kind.MESSAGE, call_id, size):
            return Message(_call_id(call_id), _int(size, body_size, MAX_BODY_BYTES), body)
        case (Kind.CALL, call_id, protocol, method, timeout_ms, shape, trace, key, size):
            shape = Shape(_int(shape, 0, _MAX_SHAPE))
            return Call(
                _call_id(call_id),
                _text(protocol, MAX_PROTOCOL_CHARS, least=1),
                _text(method, MAX_METHOD_CHARS, least=1),
                _int(timeout_ms, 1, MAX_TIMEOUT_MS),
                shape,
                _binary(trace, TRACE_BYTES, TRACE_BYTES),
                _binary(key, 1, MAX_KEY_BYTES),
                _int(size, body_size, 0 if shape & Shape.REQUESTS else MAX_BODY_BYTES),
                body,
            )
        case (Kind.REPLY, call_id, code, reason, message, bool(retryable), details, size):
            return Reply(
                _call_id(call_id),
                _text(code, MAX_CODE_CHARS),
                _text(reason, MAX_CODE_CHARS),
                _text(message, MAX_MESSAGE_BYTES),
                retryable,
                _text(details, MAX_DETAILS_BYTES),
                _int(size, body_size, 0 if code else MAX_BODY_BYTES),
                body,
            )
        case (Kind.CREDIT, call_id, amount) if not body_size:
            return Credit(_int(call_id, 0, MAX_CALL_ID), _int(amount, 1, MAX_BODY_BYTES))
        case (Kind.END, call_id) if not body_size:
            return End(_call_id(call_id))
        case (Kind.CANCEL, call_id) if not body_size:
            return Cancel(_call_id(call_id))
    raise RemoteProtocolError(f"not a frame header: {_shown(fields)}")


def pieces(buffers: Sequence[bytes | bytearray | memoryview], start: int, end: int) -> list[memoryview]:
    """Bytes `start` to `end` of the buffers as if they were one, without copying."""
    found = []
    for buffer in buffers:
        if end <= max(0, start):
            break
        size = len(buffer)
        if start < size:
            found.append(memoryview(buffer)[max(0, start) : end])
        start -= size
        end -= size
    return found


def printable(text: str, max_bytes: int) -> str:
    """Cut to `max_bytes` of UTF-8, control characters replaced: a stranger's text must not steer a terminal."""
    clean = "".join(c if c.isprintable() else "·" for c in text[:max_bytes])
    return clean.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def _shown(value: object) -> str:
    # A container is not printed: a header may nest deeper than repr can go.
    return repr(value)[:40] if isinstance(value, int | float | str | bytes) else f"a {type(value).__name__}"


def _int(value: object, low: int, high: int) -> int:
    # bool is an int to isinstance, not to the wire.
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError(f"a frame field is {_shown(value)}, not a number from {low} to {high}")
    return value


def _call_id(value: object) -> int:
    return _int(value, 1, MAX_CALL_ID)


def _text(value: object, limit: int, *, least: int = 0) -> str:
    if type(value) is not str or not least <= len(value) <= limit:
        raise RemoteProtocolError(f"a frame field is {_shown(value)}, not text of {least} to {limit} characters")
    return value


def _binary(value: object, least: int, most: int) -> bytes:
    if type(value) is not bytes or (value and not least <= len(value) <= most):
        raise RemoteProtocolError(f"a frame field is {_shown(value)}, not {least} to {most} bytes")
    return value
