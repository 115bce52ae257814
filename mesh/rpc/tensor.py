"""Tensors as messages: a body that is one tensor, or a field of a model. PURE; no pickle.

    body = u32 length of the header | header, msgpack | zeros up to a multiple of 16 | the encoded buffer

(little endian). So the buffer lies aligned in a body that is received into one piece of memory, and goes out and comes
in without a copy. A tensor longer than a method's limit travels as a stream of such messages, a few rows in each.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from mesh.errors import RemoteProtocolError
from mesh.rpc.body import pack, unpack
from mesh.rpc.codec import Codec, DType, TensorHeader, decode, encode

if TYPE_CHECKING:
    import numpy as np

ALIGN: Final = 16
"""Of the buffer in a body."""
MAX_HEADER_BYTES: Final = 256
"""The longest header, 8 dimensions of 9 bytes, is half of this."""
_LENGTH: Final = struct.Struct("<I")


def pack_tensor(
    array: np.ndarray[Any, Any], codec: Codec = Codec.RAW, *, dtype: DType | None = None
) -> list[bytes | memoryview]:
    """The body that is this array, in buffers. See mesh.rpc.codec.encode. Raises LocalProtocolError."""
    header, buffers = encode(array, codec, dtype=dtype)
    packed = pack(header)
    head = _LENGTH.pack(len(packed)) + packed
    return [head + bytes(-len(head) % ALIGN), *buffers]


def unpack_tensor(data: bytes | bytearray | memoryview, *, max_bytes: int) -> tuple[TensorHeader, np.ndarray[Any, Any]]:
    """The header and array of a body. See mesh.rpc.codec.decode. Raises RemoteProtocolError."""
    view = memoryview(data)
    if len(view) < _LENGTH.size:
        raise RemoteProtocolError(f"a tensor of {len(view)} bytes has no header")
    (length,) = _LENGTH.unpack_from(view)
    end = _LENGTH.size + length
    start = end + -end % ALIGN
    if length > MAX_HEADER_BYTES or start > len(view):
        raise RemoteProtocolError(f"a tensor of {len(view)} bytes has no header of {length} bytes")
    if any(view[end:start]):
        raise RemoteProtocolError("other than zeros between a tensor's header and its buffer")
    header = unpack(TensorHeader, bytes(view[_LENGTH.size : end]))
    return header, decode(header, view[start:], max_bytes=max_bytes)


class TensorMessage(BaseModel):
    """A tensor as a field of a model, beside what goes with it. Costs a copy on either side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: TensorHeader
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray[Any, Any], codec: Codec = Codec.RAW) -> TensorMessage:
        """The message of an array. Raises LocalProtocolError."""
        header, buffers = encode(array, codec)
        return cls(header=header, data=b"".join(buffers))

    def array(self, *, max_bytes: int) -> np.ndarray[Any, Any]:
        """Its array, read-only where the codec is RAW. Raises RemoteProtocolError."""
        return decode(self.header, self.data, max_bytes=max_bytes)
