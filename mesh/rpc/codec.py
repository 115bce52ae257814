"""Tensors as bytes: what an array is (its header) and its buffers, exact or with fewer bits. PURE; no pickle.

All is little endian, in C order. numpy is imported only where arrays are made, and torch is not known here (its tensors
go through numpy; bfloat16, which numpy lacks, as its 2-byte words). A header comes from a stranger: every size that
follows from it is computed, and held against a limit, before anything is allocated or decompressed.

Codecs (relative L2 errors are of normally distributed values; benchmarks/tensor_codecs.py measures them):

| codec | bytes an element | error of an element | relative L2 |
| --- | --- | --- | --- |
| RAW | as it is | none | 0 |
| BF16 | 2 | at most 2**-8 of it, and 2**-134 | 1.7e-3 |
| FP16 | 2 | at most 2**-11 of it, and 2**-25; nothing finite above 65504 | 2.1e-4 |
| INT8 | 1.0625 | at most 1/254 of the largest of its block, and 2**-127 | 5.9e-3 |
| ZSTD | what zstd makes of it | none | 0 |

BF16 is for activations, INT8 for bulk over slow links (an outlier spoils its own 64 elements only), ZSTD for what is
mostly zeros: ordinary floats hardly shrink.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal

import zstandard
from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

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
INT8_BLOCK: Final = 64
"""Elements that share a scale."""
MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Most that a zstd frame may look back, where the whole of it is longer. RFC 8878 asks every decoder for this much."""

_LOSSY_DTYPES: Final = ("float32", "float64")
_ZSTD_LEVEL: Final = 1
_PIECE: Final = 32 * 1024
"""Elements worked on at once, so that what is between two steps stays in the processor's cache."""
_BF16_LARGEST: Final = (2 - 2**-8) * 2.0**127
"""From here on (half a step above the largest finite one) nearest is infinity."""
_FP16_LARGEST: Final = 65520.0
_SMALLEST_SCALE: Final = 2.0**-126
"""Smaller floats have fewer bits, and a block of zeros has to have some scale."""
_LARGEST_SCALE: Final = 2.0**120
"""128 of it is finite."""


class Codec(enum.Enum):
    """How an array's elements become bytes."""

    RAW = "raw"
    BF16 = "bf16"
    """float32 and float64 rounded to bfloat16, to nearest even."""
    FP16 = "fp16"
    """float32 and float64 rounded to IEEE half precision, to nearest even."""
    INT8 = "int8"
    """float32 and float64 as whole multiples, -127 to 127, of one float32 scale for each 64 elements."""
    ZSTD = "zstd"
    """RAW, compressed without loss."""


LOSSY: Final = frozenset({Codec.BF16, Codec.FP16, Codec.INT8})


class TensorHeader(BaseModel):
    """What bytes mean. As it comes from a stranger, ask `nbytes` with a limit before allocating."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: DType
    """Of the array, before and after: a lossy codec gives the same dtype back."""
    shape: tuple[int, ...] = Field(max_length=MAX_RANK)
    codec: Codec

    @property
    def items(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def nbytes(self, *, max_bytes: int) -> int:
        """Bytes of the decoded array. Raises RemoteProtocolError for a shape that cannot be, more than `max_bytes`, or
        a codec that is not for this dtype."""
        if any(not 0 <= n <= MAX_DIM for n in self.shape):
            raise RemoteProtocolError(f"a tensor of shape {self.shape} cannot be")
        if self.codec in LOSSY and self.dtype not in _LOSSY_DTYPES:
            raise RemoteProtocolError(f"{self.codec.value} is for {' and '.join(_LOSSY_DTYPES)}, not {self.dtype}")
        # Python integers do not overflow: at most 8 factors of 41 bits.
        size = self.items * ITEM_BYTES[self.dtype]
        # An empty tensor with huge other dimensions is no memory, but breaks strides: count its dimensions too.
        if max(size, math.prod(n for n in self.shape if n)) > max_bytes:
            raise RemoteProtocolError(f"a tensor of {size} bytes {self.shape}, allowed are {max_bytes}")
        return size

    def encoded_bytes(self) -> int | None:
        """Bytes of the encoded array; None where only the data tells (ZSTD, unless empty)."""
        match self.codec:
            case Codec.RAW:
                return self.items * ITEM_BYTES[self.dtype]
            case Codec.BF16 | Codec.FP16:
                return self.items * 2
            case Codec.INT8:
                return _blocks(self.items) * 4 + self.items
            case Codec.ZSTD:
                return None if self.items else 0


def encode(
    array: Array, codec: Codec = Codec.RAW, *, dtype: DType | None = None
) -> tuple[TensorHeader, list[bytes | memoryview]]:
    """An array's header and its bytes, in buffers that belong one behind the other.

    RAW shares the memory of an array that is contiguous and little endian; all others make their own. `dtype` is
    for what numpy has no name for: "bfloat16" with an array of its words (uint16).

    Raises LocalProtocolError for a dtype, rank or codec that is not sent, and for values that the codec cannot hold:
    finite ones out of the range of BF16 or FP16; infinity, NaN and above 1.6e38 with INT8."""
    import numpy as np

    name = _sent_as(array, dtype)
    if codec in LOSSY and name not in _LOSSY_DTYPES:
        raise LocalProtocolError(f"{codec.value} is for {' and '.join(_LOSSY_DTYPES)}, not {name}: use raw or zstd")
    header = TensorHeader(dtype=name, shape=array.shape, codec=codec)  # type: ignore[arg-type]
    little: Array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    flat = np.ascontiguousarray(little).reshape(-1)
    if not flat.size:
        return header, []
    match codec:
        case Codec.RAW:
            return header, [_bytes_of(flat)]
        case Codec.BF16:
            return header, [_bytes_of(_to_bf16(flat))]
        case Codec.FP16:
            return header, [_bytes_of(_to_fp16(flat))]
        case Codec.INT8:
            return header, [_bytes_of(part) for part in _to_int8(flat)]
        case Codec.ZSTD:
            return header, [zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(_bytes_of(flat))]


def decode(header: TensorHeader, data: bytes | bytearray | memoryview, *, max_bytes: int) -> Array:
    """The array of these bytes, bfloat16 as uint16 words. RAW shares the memory of `data` and is read-only over what
    is; all others are new and writable.

    Raises RemoteProtocolError when the array is above `max_bytes`, `data` is not of the size or form that the header
    says, or it holds a value that its encoding has not."""
    import numpy as np

    size = header.nbytes(max_bytes=max_bytes)
    expected = header.encoded_bytes()
    if expected is not None and len(data) != expected:
        raise RemoteProtocolError(
            f"a {header.codec.value} tensor {header.dtype}{list(header.shape)} has {expected} bytes, not {len(data)}"
        )
    flat: Array
    if header.codec in LOSSY:
        flat = np.empty(header.items, np.dtype(header.dtype).newbyteorder("<"))
        _FROM[header.codec](data, flat)
    else:
        raw = np.frombuffer(data if header.codec is Codec.RAW or not size else _inflate(data, size), "uint8")
        if header.dtype == "bool":
            if size and raw.max() > 1:
                raise RemoteProtocolError("a bool tensor has other bytes than 0 and 1")
            flat = raw.view("bool")
        else:
            name = "uint16" if header.dtype == "bfloat16" else header.dtype
            flat = raw.view(np.dtype(name).newbyteorder("<"))
    shaped: Array = flat.reshape(header.shape)
    return shaped


def _sent_as(array: Array, dtype: DType | None) -> str:
    """The dtype's name in a header. Raises LocalProtocolError."""
    import numpy as np

    name = str(array.dtype.name)  # without byte order
    if isinstance(array, np.ma.MaskedArray):
        raise LocalProtocolError("a masked array is not sent: its mask would be lost")
    if dtype is not None and dtype != name:
        if (dtype, name) != ("bfloat16", "uint16"):
            raise LocalProtocolError(f"an array of {name} is not sent as {dtype}")
    elif name not in ITEM_BYTES or name == "bfloat16":
        raise LocalProtocolError(f"an array of {name} is not sent: allowed are {', '.join(ITEM_BYTES)}")
    if array.ndim > MAX_RANK or any(n > MAX_DIM for n in array.shape):
        raise LocalProtocolError(f"an array of shape {array.shape} is not sent: at most {MAX_RANK} dimensions")
    return dtype or name


def _bytes_of(flat: Array) -> memoryview:
    return flat.view("uint8").data


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _PIECE, size)) for start in range(0, size, _PIECE))


# --- bfloat16 and half ----------------------------------------------------------------------------------------------


def _to_bf16(flat: Array) -> Array:
    import numpy as np

    words: Array = np.empty(flat.size, "<u2")
    room: Array = np.empty(min(flat.size, _PIECE), "<u4")
    for piece in _pieces(flat.size):
        values = flat[piece]
        bits = _rounded_to_odd(values) if values.dtype.itemsize == 8 else values.view("<u4")
        work = room[: values.size]
        peak = np.abs(values, out=work.view("<f4") if values.dtype.itemsize == 4 else None).max()
        is_plain = peak < _BF16_LARGEST  # false for NaN
        # Half a step, less one bit where the last bit kept is even: what is exactly between goes to even.
        np.right_shift(bits, 16, out=work)
        np.bitwise_and(work, 1, out=work)
        np.add(work, 0x7FFF, out=work)
        np.add(work, bits, out=work)
        np.right_shift(work, 16, out=work)
        words[piece] = work
        if not is_plain:
            is_nan = np.isnan(values)
            if np.any(np.isfinite(values) & (np.abs(values) >= _BF16_LARGEST)):
                raise LocalProtocolError("a value is too large for bf16 (above 3.39e38): use raw")
            # Rounding may carry a NaN's bits over its exponent: cut instead, and keep one bit below it.
            words[piece][is_nan] = (bits[is_nan] >> 16) | 0x40
    return words


def _rounded_to_odd(values: Array) -> Array:
    """float64 as the bits of float32, cut, with the last bit set where anything was lost: a second rounding to fewer
    bits then comes out as if it were the only one (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded
    sums")."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        near: Array = values.astype("<f4")
        wide: Array = near.astype("<f8")
    bits: Array = near.view("<u4").copy()
    bits -= np.abs(wide) > np.abs(values)
    bits |= wide != values
    return bits


def _from_bf16(data: bytes | bytearray | memoryview, flat: Array) -> None:
    import numpy as np

    words = np.frombuffer(data, "<u2")
    if flat.dtype.itemsize == 4:
        np.left_shift(words, np.uint32(16), out=flat.view("<u4"), dtype="<u4")
        return
    for piece in _pieces(flat.size):
        flat[piece] = (words[piece].astype("<u4") << 16).view("<f4")


def _to_fp16(flat: Array) -> Array:
    import numpy as np

    halves: Array = np.empty(flat.size, "<f2")
    for piece in _pieces(flat.size):
        values = flat[piece]
        sizes = np.abs(values)
        if not sizes.max() < _FP16_LARGEST and np.any(np.isfinite(values) & (sizes >= _FP16_LARGEST)):
            raise LocalProtocolError("a value is too large for fp16 (above 65504): use bf16")
        with np.errstate(under="ignore", invalid="ignore"):
            halves[piece] = values
    return halves


def _from_fp16(data: bytes | bytearray | memoryview, flat: Array) -> None:
    import numpy as np

    flat[:] = np.frombuffer(data, "<f2")


# --- int8 in blocks ---------------------------------------------------------------------------------------------------


def _blocks(items: int) -> int:
    return -(-items // INT8_BLOCK)


def _to_int8(flat: Array) -> tuple[Array, Array]:
    """Scales and multiples. A scale is the largest of its block over 127, so that one uses the whole range."""
    import numpy as np

    scales: Array = np.empty(_blocks(flat.size), "<f4")
    multiples: Array = np.empty(flat.size, "i1")
    room: Array = np.empty((_PIECE // INT8_BLOCK, INT8_BLOCK), flat.dtype)
    for piece in _pieces(flat.size):
        values = flat[piece]
        count = _blocks(values.size)
        work = room[:count]
        if values.size % INT8_BLOCK:
            work[-1] = 0  # a short last block is padded
        np.abs(values, out=work.reshape(-1)[: values.size])
        largest = work.max(axis=1)
        if not largest.max() <= 127 * _LARGEST_SCALE:  # also for NaN
            raise LocalProtocolError("int8 holds no infinity, NaN or value above 1.6e38: use raw or bf16")
        scale = scales[piece.start // INT8_BLOCK :][:count]
        scale[:] = np.maximum(largest / 127, _SMALLEST_SCALE)
        work.reshape(-1)[: values.size] = values
        np.multiply(work, (1 / scale)[:, None], out=work)
        np.rint(work, out=work)
        multiples[piece] = work.reshape(-1)[: values.size]
    return scales, multiples


def _from_int8(data: bytes | bytearray | memoryview, flat: Array) -> None:
    import numpy as np

    count = _blocks(flat.size)
    scales = np.frombuffer(data, "<f4", count)
    if count and not (scales.min() >= _SMALLEST_SCALE and scales.max() <= _LARGEST_SCALE):  # also for NaN
        raise RemoteProtocolError("an int8 tensor has a scale that cannot be")
    multiples = np.frombuffer(data, "i1", offset=4 * count)
    whole = flat.size - flat.size % INT8_BLOCK
    full = (-1, INT8_BLOCK)
    np.multiply(
        multiples[:whole].reshape(full),
        scales[: whole // INT8_BLOCK, None],
        out=flat[:whole].reshape(full),
        dtype="<f4",
    )
    flat[whole:] = multiples[whole:] * scales[-1:]


_FROM: Final = {Codec.BF16: _from_bf16, Codec.FP16: _from_fp16, Codec.INT8: _from_int8}


# --- zstd -----------------------------------------------------------------------------------------------------------


def _inflate(data: bytes | bytearray | memoryview, size: int) -> bytearray:
    """What a zstd frame holds, when that is `size` bytes and nothing follows it. Raises RemoteProtocolError."""
    try:
        frame = zstandard.get_frame_parameters(data)
        # Unknown is 2**64 - 1 here, which is no size of ours.
        if frame.content_size != size:
            raise RemoteProtocolError(f"a zstd frame announces {frame.content_size} bytes where the tensor has {size}")
        window = max(MAX_WINDOW_BYTES, size)
        if frame.window_size > window or frame.dict_id:
            raise RemoteProtocolError(f"a zstd frame needs a window of {frame.window_size} bytes or a dictionary")
        whole = zstandard.ZstdDecompressor(max_window_size=window).decompress(
            data, allow_extra_data=False, read_across_frames=False
        )
    except zstandard.ZstdError as error:
        raise RemoteProtocolError(f"the tensor is no zstd frame: {error}") from error
    if len(whole) != size:
        raise RemoteProtocolError(f"a zstd frame holds {len(whole)} bytes where the tensor has {size}")
    return bytearray(whole)  # so that whoever gets the array may write to it, whatever codec the sender chose
