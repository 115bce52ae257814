"""Codecs: exact, or within their stated error; and no header or frame of a stranger costs more than it may."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc.codec import INT8_BLOCK, ITEM_BYTES, LOSSY, Codec, TensorHeader, decode, encode

MAX = 1 << 24
NAMES = [name for name in ITEM_BYTES if name != "bfloat16"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
FINITE32 = hnp.arrays("float32", SHAPES, elements=st.floats(-(2.0**126), 2.0**126, width=32))


def through(array: np.ndarray[Any, Any], codec: Codec, *, max_bytes: int = MAX) -> np.ndarray[Any, Any]:
    header, buffers = encode(array, codec)
    data = bytearray(b"".join(buffers))
    assert header.encoded_bytes() in (None, len(data))
    got = decode(header, data, max_bytes=max_bytes)
    assert got.dtype == array.dtype.newbyteorder("=")
    assert got.shape == array.shape
    assert got.flags.writeable
    return got


def normal(count: int, dtype: str = "float32", seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


# --- what comes back ------------------------------------------------------------------------------------------------


@given(st.sampled_from(NAMES).flatmap(lambda name: hnp.arrays(name, SHAPES)), st.sampled_from([Codec.RAW, Codec.ZSTD]))
def test_exact_codecs_keep_every_bit(array: np.ndarray[Any, Any], codec: Codec) -> None:
    for sent in (
        array,
        array.T,
        array[..., ::-1] if array.ndim else array,
        array.astype(array.dtype.newbyteorder(">")),
    ):
        got = through(sent, codec)
        assert got.tobytes() == np.ascontiguousarray(sent, array.dtype).tobytes()


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_codecs_take_all_forms_of_arrays(codec: Codec, dtype: str) -> None:
    square = normal(70 * 70, dtype).reshape(70, 70)
    whole = through(square, codec)
    np.testing.assert_array_equal(through(square.astype(square.dtype.newbyteorder(">")), codec), whole)
    if codec is not Codec.INT8:  # whose blocks follow the order in memory
        np.testing.assert_array_equal(through(square.T, codec), whole.T)
        np.testing.assert_array_equal(through(square[::-2, 3::7], codec), whole[::-2, 3::7])
    assert through(square.T, codec).flags.c_contiguous
    assert through(np.array(2.0, dtype), codec) == pytest.approx(2.0)
    assert through(np.zeros((3, 0, 2), dtype), codec).size == 0
    assert not through(np.zeros((3, 50), dtype), codec).any()
    frozen = square.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(through(frozen, codec), whole)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 32 * 1024, 32 * 1024 + 1, 600_001])
@pytest.mark.parametrize("codec", sorted(LOSSY, key=lambda c: c.value))
def test_pieces_and_blocks_of_any_length(codec: Codec, size: int) -> None:
    array = normal(size)
    got = through(array, codec)
    assert np.linalg.norm(got - array) <= 0.01 * np.linalg.norm(array)
    # As if each block had travelled alone, wherever it lies.
    for start in range(0, size, 64 * 997):
        block = slice(start, start + 64)
        np.testing.assert_array_equal(got[block], through(array[block], codec))


def bf16_of(value: float) -> float:
    """Nearest of the two bfloat16 around a value, by exact arithmetic; to even between them."""
    if value == 0.0:
        return value
    _, exponent = np.frexp(value)
    unit = 2.0 ** (max(int(exponent), -125) - 8)
    return float(np.rint(np.float64(value) / unit) * unit)  # rint goes to even


@given(hnp.arrays("float64", SHAPES, elements=st.floats(-3.38e38, 3.38e38)), st.sampled_from(["float32", "float64"]))
def test_bf16_rounds_to_nearest_even(array: np.ndarray[Any, Any], dtype: str) -> None:
    array = array.astype(dtype)
    expected = [bf16_of(float(value)) for value in array.reshape(-1)]
    got = through(array, Codec.BF16)
    assert got.reshape(-1).tolist() == expected
    assert np.all(np.abs(got.astype("f8") - array) <= np.maximum(np.abs(array.astype("f8")) * 2.0**-8, 2.0**-134))


def test_bf16_at_its_edges() -> None:
    words = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x80000000, 0x00000001, 0x7F7F7FFF], "<u4")
    got = through(words.view("<f4"), Codec.BF16).view("<u4")
    assert [hex(n) for n in got] == [hex(n << 16) for n in (0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x8000, 0, 0x7F7F)]
    # Twice rounded, by way of float32, this would come out one step higher: it lies just below the middle.
    near = 1 + 2.0**-8 + 2.0**-7 - 2.0**-40
    assert through(np.array([near, -near]), Codec.BF16).tolist() == [1 + 2.0**-7, -1 - 2.0**-7]
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFC00000], "<u4").view("<f4")
    with np.errstate(invalid="ignore"):
        wide = nans.astype("f8")
    for sent in (nans, wide):
        got = through(sent, Codec.BF16)
        assert np.isnan(got).all()
    assert np.signbit(through(nans, Codec.BF16)).tolist() == [False, False, True, True]
    for dtype in ("f4", "f8"):
        infinite = np.array([np.inf, -np.inf, 1.0, np.nan], dtype)
        np.testing.assert_array_equal(through(infinite, Codec.BF16), infinite)


@given(hnp.arrays("float64", SHAPES, elements=st.floats(-65519, 65519)), st.sampled_from(["float32", "float64"]))
def test_fp16_is_within_its_error(array: np.ndarray[Any, Any], dtype: str) -> None:
    array = array.astype(dtype)
    error = np.abs(through(array, Codec.FP16).astype("f8") - array)
    assert np.all(error <= np.maximum(np.abs(array.astype("f8")) * 2.0**-11, 2.0**-25))


@given(FINITE32, st.sampled_from(["float32", "float64"]))
def test_int8_is_within_its_error(array: np.ndarray[Any, Any], dtype: str) -> None:
    array = array.astype(dtype)
    flat = array.astype("f8").reshape(-1)
    error = np.abs(through(array, Codec.INT8).astype("f8").reshape(-1) - flat)
    for start in range(0, flat.size, INT8_BLOCK):
        block = slice(start, start + INT8_BLOCK)
        bound = max(np.abs(flat[block]).max() / 254, 2.0**-127)
        assert error[block].max() <= bound * (1 + 1e-4)


@pytest.mark.parametrize(
    ("codec", "most"), [(Codec.BF16, 1.7e-3), (Codec.FP16, 2.2e-4), (Codec.INT8, 6.0e-3), (Codec.ZSTD, 0.0)]
)
def test_relative_error_of_normal_values(codec: Codec, most: float) -> None:
    array = normal(1 << 18)
    error = np.linalg.norm(through(array, codec) - array) / np.linalg.norm(array)
    assert most / 1.1 <= error <= most


def test_an_outlier_spoils_its_own_block_only() -> None:
    array = normal(10 * INT8_BLOCK)
    expected = through(array, Codec.INT8)
    array[3 * INT8_BLOCK + 5] = 1e6
    got = through(array, Codec.INT8)
    rest = np.r_[0 : 3 * INT8_BLOCK, 4 * INT8_BLOCK : array.size]
    np.testing.assert_array_equal(got[rest], expected[rest])


def test_sizes() -> None:
    array = np.where(np.arange(64_000) % 20 == 0, normal(64_000), 0).astype("float32")
    sizes = {codec: sum(map(len, encode(array, codec)[1])) for codec in Codec}
    assert sizes.pop(Codec.ZSTD) < 0.15 * array.nbytes
    assert sizes == {Codec.RAW: 256_000, Codec.BF16: 128_000, Codec.FP16: 128_000, Codec.INT8: 68_000}


def test_raw_copies_nothing() -> None:
    array = np.arange(12, dtype="float32").reshape(3, 4)
    header, (view,) = encode(array)
    assert np.shares_memory(np.frombuffer(view, "uint8"), array)
    data = bytearray(view)
    assert np.shares_memory(decode(header, data, max_bytes=MAX), np.frombuffer(data, "uint8"))
    assert not decode(header, bytes(data), max_bytes=MAX).flags.writeable


def test_bfloat16_travels_as_words() -> None:
    words = np.array([0x3F80, 0x4000], "uint16")
    for codec in (Codec.RAW, Codec.ZSTD):
        header, buffers = encode(words, codec, dtype="bfloat16")
        assert header.dtype == "bfloat16"
        assert decode(header, b"".join(buffers), max_bytes=4).tolist() == [0x3F80, 0x4000]


# --- what is not sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", Codec)
def test_what_is_not_sent(codec: Codec) -> None:
    masked = np.ma.masked_array(np.zeros(2, "f4"), [True, False])
    structured = np.zeros(1, [("a", "f4")])
    for array in (np.array([object()]), np.array(["x"]), np.zeros(1, "c8"), np.zeros((1,) * 9), structured, masked):
        with pytest.raises(LocalProtocolError, match="is not sent"):
            encode(array, codec)
    for array, dtype in ((np.zeros(1, "uint16"), "float16"), (np.zeros(1, "f4"), "bfloat16")):
        with pytest.raises(LocalProtocolError, match="is not sent as"):
            encode(array, codec, dtype=dtype)  # type: ignore[arg-type]
    if codec in LOSSY:
        for array in (np.zeros(1, "int32"), np.zeros(1, "bool"), np.zeros(1, "float16")):
            with pytest.raises(LocalProtocolError, match="use raw or zstd"):
                encode(array, codec)


@pytest.mark.parametrize("at", [0, 70_000])
@pytest.mark.parametrize(
    ("codec", "dtype", "value", "advice"),
    [
        (Codec.FP16, "f4", 65520.0, "use bf16"),
        (Codec.FP16, "f8", -1e300, "use bf16"),
        (Codec.BF16, "f4", 3.4e38, "use raw"),
        (Codec.BF16, "f8", -1e300, "use raw"),
        (Codec.INT8, "f4", np.nan, "use raw or bf16"),
        (Codec.INT8, "f4", -np.inf, "use raw or bf16"),
        (Codec.INT8, "f4", 2e38, "use raw or bf16"),
        (Codec.INT8, "f8", 1e300, "use raw or bf16"),
    ],
)
def test_what_a_codec_cannot_hold_is_refused(codec: Codec, dtype: str, value: float, advice: str, at: int) -> None:
    array = np.ones(70_001, dtype)
    array[at] = value
    array[5] = np.nan  # beside it
    with pytest.raises(LocalProtocolError, match=advice):
        encode(array, codec)


def test_fp16_keeps_what_is_not_finite() -> None:
    array = np.array([np.inf, -np.inf, np.nan, 65504.0], "f4")
    np.testing.assert_array_equal(through(array, Codec.FP16), array)


# --- hostile --------------------------------------------------------------------------------------------------------

SHAPES_REFUSED = [
    (1 << 22,),
    (1 << 40, 1 << 40),
    (1 << 40,) * 8,
    (-1,),
    (-1, -1),
    (0, 1 << 40),
    ((1 << 40) + 1, 0),
    (1 << 80,),
]


@pytest.mark.parametrize(("shape", "codec"), list(itertools.product(SHAPES_REFUSED, Codec)))
def test_shapes_are_refused_before_anything_is_allocated(shape: tuple[int, ...], codec: Codec) -> None:
    header = TensorHeader(dtype="float32", shape=shape, codec=codec)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    tracemalloc.start()
    try:
        for data in (b"", bomb):
            with pytest.raises(RemoteProtocolError, match=r"cannot be|allowed are"):
                decode(header, data, max_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_what_a_header_may_not_be() -> None:
    for dtype, shape, codec in (
        ("object", (1,), "raw"),
        ("float128", (1,), "raw"),
        ("<f4", (1,), "raw"),
        ("uint16", (1,), "raw"),
        ("float32", (1,) * 9, "raw"),
        ("float32", (1.5,), "raw"),
        ("float32", (1,), "int4"),
        ("float32", (1,), "RAW"),
    ):
        with pytest.raises(ValidationError):
            TensorHeader(dtype=dtype, shape=shape, codec=codec)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", sorted(LOSSY, key=lambda c: c.value))
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64", "bool"])
def test_a_codec_that_is_not_for_the_dtype(codec: Codec, dtype: Any) -> None:
    header = TensorHeader(dtype=dtype, shape=(2,), codec=codec)
    with pytest.raises(RemoteProtocolError, match="is for float32 and float64"):
        decode(header, bytes(4), max_bytes=MAX)


@pytest.mark.parametrize("codec", Codec)
def test_truncated_or_longer_data(codec: Codec) -> None:
    for array in (normal(100), np.zeros(0, "f4")):
        header, buffers = encode(array, codec)
        data = b"".join(buffers)
        for wrong in (data[:-1], data[:1], b"", data + b"\0", data * 2):
            if wrong != data:
                with pytest.raises(RemoteProtocolError):
                    decode(header, wrong, max_bytes=MAX)


@given(st.binary(max_size=200), st.sampled_from(NAMES), st.sampled_from(sorted(Codec, key=lambda c: c.value)))
def test_any_bytes_are_an_array_or_the_peers_fault(data: bytes, dtype: Any, codec: Codec) -> None:
    for count in (1, 7, len(data), len(data) // ITEM_BYTES[dtype], len(data) // 2):
        header = TensorHeader(dtype=dtype, shape=(count,), codec=codec)
        try:
            got = decode(header, data, max_bytes=1000)
        except RemoteProtocolError:
            continue
        assert (got.shape, got.nbytes <= 1000) == ((count,), True)
        if codec is Codec.INT8:
            assert np.isfinite(got).all()


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 0.0, -0.0, 1e-40, 3e38])
def test_scales_that_cannot_be(scale: float) -> None:
    header, buffers = encode(normal(130), Codec.INT8)
    data = bytearray(b"".join(buffers))
    data[4:8] = struct.pack("<f", scale)
    with pytest.raises(RemoteProtocolError, match="scale"):
        decode(header, data, max_bytes=MAX)


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
def test_bools_are_0_and_1(codec: Codec) -> None:
    header, buffers = encode(np.array([0, 1], "uint8"), codec)
    data = b"".join(buffers)
    as_bool = header.model_copy(update={"dtype": "bool"})
    assert decode(as_bool, data, max_bytes=2).tolist() == [False, True]
    header, buffers = encode(np.array([0, 2], "uint8"), codec)
    with pytest.raises(RemoteProtocolError, match="0 and 1"):
        decode(as_bool, b"".join(buffers), max_bytes=2)


def test_zstd_bombs() -> None:
    header = TensorHeader(dtype="uint8", shape=(1000,), codec=Codec.ZSTD)
    big = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    assert big[4] & 0xE0 == 0x80  # a size of 4 bytes behind the window's 1
    lying = big[:6] + struct.pack("<I", 1000) + big[10:]
    assert zstandard.get_frame_parameters(lying).content_size == 1000
    honest = zstandard.ZstdCompressor().compress(bytes(1000))
    assert decode(header, honest, max_bytes=1000).size == 1000
    skippable = struct.pack("<II", 0x184D2A50, 1000) + bytes(1000)
    cases = {
        "announces": big,
        "no zstd frame|window|holds": lying,
        "announces 18446744073709551615": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26)),
        "announces 999": zstandard.ZstdCompressor().compress(bytes(999)),
        "no zstd frame": honest + honest,
        "no zstd frame: .*unused": honest + b"x",
        "no zstd frame: decompression|holds 0": skippable,
        "no zstd frame: not enough": b"",
    }
    for reason, data in cases.items():
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError, match=reason):
                decode(header, data, max_bytes=1000)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


def test_a_zstd_window_is_bounded() -> None:
    """A frame may ask its reader for a window of gigabytes, whatever it holds."""
    header = TensorHeader(dtype="uint8", shape=(1000,), codec=Codec.ZSTD)
    # Magic; descriptor: size of 4 bytes, with a window; window of 2**31; size; one last raw block of 1000 bytes.
    frame = b"\x28\xb5\x2f\xfd" + b"\x80" + bytes([(31 - 10) << 3]) + struct.pack("<I", 1000)
    frame += (1000 << 3 | 1).to_bytes(3, "little") + bytes(1000)
    assert zstandard.get_frame_parameters(frame).window_size == 1 << 31
    with pytest.raises(RemoteProtocolError, match="window of 2147483648"):
        decode(header, frame, max_bytes=MAX)
    assert decode(header, frame[:5] + bytes([13 << 3]) + frame[6:], max_bytes=MAX).size == 1000


def test_a_frame_that_wants_a_dictionary() -> None:
    dictionary = zstandard.train_dictionary(2000, [f"sample {n} of {n * 7}".encode() * 9 for n in range(300)])
    data = zstandard.ZstdCompressor(dict_data=dictionary).compress(bytes(1000))
    header = TensorHeader(dtype="uint8", shape=(1000,), codec=Codec.ZSTD)
    with pytest.raises(RemoteProtocolError, match="dictionary"):
        decode(header, data, max_bytes=MAX)
