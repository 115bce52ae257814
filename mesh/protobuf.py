"""Protobuf's wire format for the messages of other projects' protocols: written plainly, read strictly. PURE.

A reader takes fields by number, skips those it does not know as protobuf asks, and refuses what no honest sender
writes: a known field of another wire type, a single field twice, a length beyond its message. Everything raises
RemoteProtocolError. (Encoding: protobuf.dev/programming-guides/encoding.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mesh.errors import RemoteProtocolError

_MAX_U64: Final = 2**64 - 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field that holds an unsigned number."""
    return varint(field << 3 | _VARINT) + varint(value)


def delimited(field: int, data: bytes) -> bytes:
    """A field that holds bytes or a message."""
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def text(field: int, value: str) -> bytes:
    """A field that holds UTF-8."""
    return delimited(field, value.encode())


def fields(data: bytes, *, last: int, most: int | None = None) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: a number for a varint, bytes else. `last`: the highest field that the
    protocol knows; none of those may have a fixed width, which no message here has. `most`: how many fields are read
    before the message is refused, for two bytes make one and reading each costs a microsecond."""
    at = read = 0
    while at < len(data):
        if read == most:
            raise RemoteProtocolError(f"a protobuf message of more than {most} fields")
        read += 1
        tag, at = read_varint(data, at)
        field, kind = tag >> 3, tag & 7
        if not 0 < field < 2**29:
            raise RemoteProtocolError(f"protobuf field {field}")
        if kind == _VARINT:
            value, at = read_varint(data, at)
            yield field, value
            continue
        if kind == _BYTES:
            size, at = read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise RemoteProtocolError(f"protobuf wire type {kind}")
        if size > len(data) - at:
            raise RemoteProtocolError(f"protobuf field {field} ends after its message")
        if kind == _BYTES:
            yield field, data[at : at + size]
        elif field <= last:
            raise RemoteProtocolError(f"protobuf field {field} of wire type {kind}")
        at += size


def singles(data: bytes, known: tuple[int, ...], *, last: int, most: int | None = None) -> dict[int, int | bytes]:
    """Fields of which a message has one at most."""
    found: dict[int, int | bytes] = {}
    for field, value in fields(data, last=last, most=most):
        if field in known:
            if field in found:
                raise RemoteProtocolError(f"field {field} twice")
            found[field] = value
    return found


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise RemoteProtocolError("a varint that does not end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if value > _MAX_U64:
        raise RemoteProtocolError("a varint of more than 64 bits")
    return value, at


def count(value: int | bytes) -> int:
    """A field's value as a number."""
    if not isinstance(value, int):
        raise RemoteProtocolError("bytes where a number belongs")
    return value


def raw(value: int | bytes, limit: int, what: str = "field") -> bytes:
    """A field's value as at most `limit` bytes."""
    if not isinstance(value, bytes):
        raise RemoteProtocolError("a number where bytes belong")
    if len(value) > limit:
        raise RemoteProtocolError(f"a {what} of {len(value)} bytes; {limit} are allowed")
    return value


def framed(body: bytes) -> bytes:
    """A message with its length before it, as it goes on a stream."""
    return varint(len(body)) + body


class FrameReader:
    """Cuts a stream's bytes into messages. Holds one message and one read at most."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete now. Raises RemoteProtocolError when one is announced longer than allowed;
        then the stream is of no further use."""
        self._buffer += data
        while (size := self._announced()) is not None:
            length, begin = size
            if len(self._buffer) < begin + length:
                return
            body = bytes(self._buffer[begin : begin + length])
            del self._buffer[: begin + length]
            yield body

    def _announced(self) -> tuple[int, int] | None:
        """(length, where the body begins), or None while the length itself is incomplete."""
        length = 0
        for at, byte in enumerate(self._buffer[:5]):
            length |= (byte & 0x7F) << (7 * at)
            if length > self._max_bytes:
                raise RemoteProtocolError(f"a message of {length} bytes or more; {self._max_bytes} are allowed")
            if byte < 0x80:
                return length, at + 1
        if len(self._buffer) >= 5:
            raise RemoteProtocolError("the length of a message does not end")
        return None
