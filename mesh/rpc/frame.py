"""Frames of the RPC channel: bytes to values and back. PURE: no stream, no clock.

    frame  = length:u32 header_length:u16 header body        (big endian; length counts what follows it)
    header = msgpack array [kind, call id, ...fields of the kind]

A whole frame is at most MAX_FRAME_BYTES. A message (request or response) is one head frame, which announces the size
of its body and carries the first part of it, and DATA frames with the rest. Kinds 6 to 15 are kept for streams of
messages; a frame of an unknown kind is an error, so they need a new channel version on both sides.
Decoding raises RemoteProtocolError and nothing else, whatever the bytes.
"""

from __future__ import annotations

import enum
import struct
from typing import Any, Final, NamedTuple

import msgpack

from mesh.errors import LocalProtocolError, RemoteProtocolError

MAX_FRAME_BYTES: Final = 64 * 1024
"""Whole frame with its length field: one yamux frame of py-libp2p."""
MAX_HEADER_BYTES: Final = 1024
MAX_PROTOCOL_CHARS: Final = 96
MAX_METHOD_CHARS: Final = 64
MAX_CODE_CHARS: Final = 64
MAX_MESSAGE_BYTES: Final = 480
MAX_BODY_BYTES: Final = 1 << 30
"""No method may allow more than this in one message; each method's own limit is far lower."""
MAX_TIMEOUT_MS: Final = 3_600_000
MAX_CALL_ID: Final = (1 << 63) - 1

_PREFIX: Final = struct.Struct(">IH")
_LENGTH: Final = struct.Struct(">I")
MAX_BODY_PER_FRAME: Final = MAX_FRAME_BYTES - _PREFIX.size - MAX_HEADER_BYTES
"""What fits beside any header."""
WINDOW_BYTES: Final = 192 * 1024
"""Body bytes on their way per channel and direction. Below yamux's first window of 256 KiB, so that a reader that
stalls never runs into py-libp2p's 5 s reset of a write beyond the window. The receiver returns thirds of it."""
FIRST_CREDIT_BYTES: Final = 32 * 1024
"""What a message may send of its body before the receiver agreed to take it (authorized, not too large)."""


class Kind(enum.IntEnum):
    """First item of a header."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3
    CREDIT = 4
    CANCEL = 5


class Request(NamedTuple):
    """A call: `timeout_ms` is what is left of the caller's deadline, `body_size` the size of the whole message."""

    call_id: int
    protocol: str
    method: str
    timeout_ms: int
    body_size: int
    body: bytes


class Response(NamedTuple):
    """The answer. `code` is empty for success; else a stable word, with a reason, text, and whether to try again."""

    call_id: int
    code: str
    reason: str
    message: str
    retryable: bool
    body_size: int
    body: bytes


class Data(NamedTuple):
    """The next part of a message's body, never empty."""

    call_id: int
    body: bytes


class Credit(NamedTuple):
    """The sender of this frame lets the other send `amount` more body bytes: of that call, or with call id 0 the
    channel's window back."""

    call_id: int
    amount: int


class Cancel(NamedTuple):
    """From the caller: the answer is no longer wanted. From the answerer: the rest of the answer will not come."""

    call_id: int


Frame = Request | Response | Data | Credit | Cancel


def encode(frame: Frame) -> bytes:
    """The frame's bytes. Raises LocalProtocolError when it breaks a limit above."""
    body: bytes | memoryview = b""
    header: tuple[Any, ...]
    match frame:
        case Data(call_id, body):
            header = (3, call_id)
        case Request(call_id, protocol, method, timeout_ms, size, body):
            header = (1, call_id, protocol, method, timeout_ms, size)
        case Response(call_id, code, reason, message, retryable, size, body):
            header = (2, call_id, code, reason, message, retryable, size)
        case Credit(call_id, amount):
            header = (4, call_id, amount)
        case Cancel(call_id):
            header = (5, call_id)
    packed = msgpack.packb(header)
    length = 2 + len(packed) + len(body)
    if len(packed) > MAX_HEADER_BYTES or length + 4 > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"a frame of {length + 4} bytes (header {len(packed)}) is over the limit of {MAX_FRAME_BYTES}"
        )
    return b"".join((_PREFIX.pack(length, len(packed)), packed, body))


class FrameDecoder:
    """Takes bytes as they come, gives whole frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by `data`, in order. Raises RemoteProtocolError; the decoder is spent then."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start, have = 0, len(buffer)
        with memoryview(buffer) as view:
            while have - start >= 4:
                (length,) = _LENGTH.unpack_from(view, start)
                if not 2 < length <= MAX_FRAME_BYTES - 4:
                    raise RemoteProtocolError(f"a frame of {length} bytes (allowed: 3 to {MAX_FRAME_BYTES - 4})")
                end = start + 4 + length
                if end > have:
                    break
                with view[start + 4 : end] as payload:
                    frames.append(decode(payload))
                start = end
        if start:
            del buffer[:start]
        return frames


def decode(payload: memoryview | bytes) -> Frame:
    """One frame from what follows its length field. Raises RemoteProtocolError."""
    if len(payload) < 3:
        raise RemoteProtocolError(f"a frame of {len(payload)} bytes is too short")
    header_length = payload[0] << 8 | payload[1]
    if not 0 < header_length <= min(MAX_HEADER_BYTES, len(payload) - 2):
        raise RemoteProtocolError(f"a frame header of {header_length} bytes in a frame of {len(payload)}")
    try:
        header = msgpack.unpackb(
            payload[2 : 2 + header_length],
            use_list=False,
            max_array_len=8,
            max_map_len=0,
            max_bin_len=0,
            max_ext_len=0,
        )
    except (ValueError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(f"a frame header is not msgpack: {error}") from error
    body = bytes(payload[2 + header_length :])
    match header:
        case (Kind.DATA, call_id):
            if not body:
                raise RemoteProtocolError("a data frame without data")
            return Data(_call_id(call_id), body)
        case (Kind.REQUEST, call_id, protocol, method, timeout_ms, size):
            return Request(
                _call_id(call_id),
                _text(protocol, MAX_PROTOCOL_CHARS, least=1),
                _text(method, MAX_METHOD_CHARS, least=1),
                _int(timeout_ms, 1, MAX_TIMEOUT_MS),
                _int(size, len(body), MAX_BODY_BYTES),
                body,
            )
        case (Kind.RESPONSE, call_id, code, reason, message, bool(retryable), size):
            return Response(
                _call_id(call_id),
                _text(code, MAX_CODE_CHARS),
                _text(reason, MAX_CODE_CHARS),
                _text(message, MAX_MESSAGE_BYTES),
                retryable,
                _int(size, len(body), 0 if code else MAX_BODY_BYTES),
                body,
            )
        case (Kind.CREDIT, call_id, amount) if not body:
            return Credit(_int(call_id, 0, MAX_CALL_ID), _int(amount, 1, MAX_BODY_BYTES))
        case (Kind.CANCEL, call_id) if not body:
            return Cancel(_call_id(call_id))
    raise RemoteProtocolError(f"not a frame header: {str(header)[:80]!r}")


def printable(text: str, max_bytes: int) -> str:
    """Cut to `max_bytes` of UTF-8, control characters replaced: a stranger's text must not steer a terminal."""
    clean = "".join(c if c.isprintable() else "·" for c in text[:max_bytes])
    return clean.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def _int(value: object, low: int, high: int) -> int:
    # bool is an int to isinstance, not to the wire.
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError(f"a frame field is {str(value)[:40]!r}, not a number from {low} to {high}")
    return value


def _call_id(value: object) -> int:
    return _int(value, 1, MAX_CALL_ID)


def _text(value: object, limit: int, *, least: int = 0) -> str:
    if type(value) is not str or not least <= len(value) <= limit:
        raise RemoteProtocolError(f"a frame field is {str(value)[:40]!r}, not text of {least} to {limit} characters")
    return value
