"""Tensors as messages: a header {dtype, shape} and the raw buffer, without copies where Python allows. No pickle.

The buffer is little endian, in C order. numpy is imported only where arrays are made; this module knows no torch (a
torch tensor goes through `.numpy()`; bfloat16, which numpy lacks, as its 2-byte words with `dtype="bfloat16"`).
Sizes are checked against the header before a buffer is allocated or looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    import numpy as np

DType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]

ITEM_BYTES: Final[dict[str, int]] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
MAX_RANK: Final = 8
MAX_DIM: Final = 1 << 40
CHUNK_BYTES: Final = 1024 * 1024
"""Longest piece of a tensor in one message."""


class TensorHeader(BaseModel):
    """What a buffer means. As it comes from a stranger, ask `nbytes` with a limit before allocating."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: DType
    shape: tuple[int, ...] = Field(max_length=MAX_RANK)

    def nbytes(self, *, max_bytes: int) -> int:
        """Bytes of the buffer. Raises RemoteProtocolError for a size below 0 or above `max_bytes`."""
        if any(not 0 <= n <= MAX_DIM for n in self.shape):
            raise RemoteProtocolError(f"a tensor of shape {self.shape} cannot be")
        # Python integers do not overflow: at most 8 factors of 41 bits.
        size = math.prod(self.shape) * ITEM_BYTES[self.dtype]
        # An empty tensor with huge other dimensions is no memory, but breaks strides: count its dimensions too.
        if max(size, math.prod(n for n in self.shape if n)) > max_bytes:
            raise RemoteProtocolError(f"a tensor of {size} bytes {self.shape}, allowed are {max_bytes}")
        return size


class TensorMessage(BaseModel):
    """A whole tensor in one message, for bodies within a method's limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: TensorHeader
    data: bytes


def header_of(array: np.ndarray[Any, Any]) -> TensorHeader:
    """The header of an array. Raises LocalProtocolError for a dtype or rank that is not sent."""
    name = str(array.dtype.name)  # without byte order
    if name not in get_args(DType) or array.ndim > MAX_RANK:
        raise LocalProtocolError(
            f"an array of {name}, rank {array.ndim} is not sent: allowed are {', '.join(ITEM_BYTES)}"
        )
    return TensorHeader(dtype=name, shape=array.shape)  # type: ignore[arg-type]


def buffer_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The array's bytes: without a copy when it is contiguous and little endian. Raises LocalProtocolError."""
    import numpy as np

    header_of(array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return memoryview(np.ascontiguousarray(little).reshape(-1)).cast("B")


def array_of(header: TensorHeader, data: bytes | bytearray | memoryview, *, max_bytes: int) -> np.ndarray[Any, Any]:
    """The array over these bytes, without a copy (read-only over bytes); bfloat16 as uint16 words.

    Raises RemoteProtocolError when the size is above `max_bytes` or not the header's, or a bool is neither 0 nor 1."""
    import numpy as np

    size = header.nbytes(max_bytes=max_bytes)
    if len(data) != size:
        raise RemoteProtocolError(f"a tensor {header.dtype}{list(header.shape)} has {size} bytes, not {len(data)}")
    name = "uint16" if header.dtype == "bfloat16" else header.dtype
    raw = np.frombuffer(data, dtype="uint8" if name == "bool" else np.dtype(name).newbyteorder("<"))
    if name == "bool":
        if size and raw.max() > 1:
            raise RemoteProtocolError("a bool tensor has other bytes than 0 and 1")
        raw = raw.view("bool")
    shaped: np.ndarray[Any, Any] = raw.reshape(header.shape)
    return shaped


def pack_tensor(array: np.ndarray[Any, Any]) -> TensorMessage:
    """A message of an array (one copy). Raises LocalProtocolError."""
    return TensorMessage(header=header_of(array), data=bytes(buffer_of(array)))


def unpack_tensor(message: TensorMessage, *, max_bytes: int) -> np.ndarray[Any, Any]:
    """The array of a message, read-only. Raises RemoteProtocolError."""
    return array_of(message.header, message.data, max_bytes=max_bytes)


def chunks(data: bytes | bytearray | memoryview, size: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The buffer in pieces of at most `size`, without copies."""
    view = memoryview(data)
    for start in range(0, len(view), size):
        yield view[start : start + size]


class TensorBuilder:
    """A tensor that comes in pieces: allocated once its size was checked, filled in order."""

    def __init__(self, header: TensorHeader, *, max_bytes: int) -> None:
        self.header = header
        self._max_bytes = max_bytes
        self._data = bytearray(header.nbytes(max_bytes=max_bytes))
        self._filled = 0

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        """The next piece. Raises RemoteProtocolError when it is more than announced."""
        end = self._filled + len(piece)
        if end > len(self._data):
            raise RemoteProtocolError(f"more than the {len(self._data)} bytes of the tensor")
        self._data[self._filled : end] = piece
        self._filled = end

    def array(self) -> np.ndarray[Any, Any]:
        """The whole tensor, writable. Raises RemoteProtocolError when pieces are missing."""
        if self._filled != len(self._data):
            raise RemoteProtocolError(f"{self._filled} of {len(self._data)} bytes of the tensor came")
        return array_of(self.header, self._data, max_bytes=self._max_bytes)
