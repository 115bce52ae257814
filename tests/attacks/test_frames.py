"""Frames: valid ones in any order, lengths and sizes that lie, bodies that unfold."""

from __future__ import annotations

import gc
import random
import struct
from collections import Counter

import msgpack
import trio
import zstandard

from mesh.errors import MeshError
from mesh.rpc import frame as f
from mesh.rpc.body import MAX_DEPTH, _is_deep, pack
from mesh.rpc.codec import Codec, TensorHeader
from mesh.rpc.flow import LIBP2P_LINK
from mesh.rpc.tensor import ALIGN

from .scene import (
    CONFIG,
    MAX_GROWTH_BYTES,
    MAX_TENSOR_BYTES,
    SHAPES,
    Part,
    Scale,
    Scene,
    Target,
    call,
    put,
    scales,
    serve_bytes,
    simulate,
    take,
)

CROWD = 100
"""More peers than standings are kept for."""
TOGETHER = 50
BODY = pack(Part(n=1, blob=bytes(100)))

# --- any valid frames in any order ------------------------------------------------------------------------------------

_NAMES = (*(name for name in SHAPES if name != "watch"), "none")
_SIZES = (0, 1, 100, 5000, 40_000, 1 << 20, 5 << 20, f.MAX_BODY_BYTES)


def random_frame(rng: random.Random, last_id: int, *, from_caller: bool) -> tuple[bytes, int]:
    """A frame that decodes, most of the time about a call that there is; and the highest call id so far."""
    call_id = max(1, last_id - rng.choice((0, 0, 0, 0, 1, 2, -1)))
    body = rng.choice((b"", BODY, rng.randbytes(rng.choice((1, 30, 3000)))))
    size = rng.choice((len(body), len(body), max(len(body), rng.choice(_SIZES))))
    match rng.choice((1, 1, 1, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7) if from_caller else (2, 2, 3, 3, 4, 4, 6, 7, 1)):
        case 1:
            last_id += rng.choice((1, 1, 1, 1, 2, 0))
            name = rng.choice(_NAMES)
            shape = SHAPES.get(name, f.Shape.ONE) if rng.random() < 0.9 else f.Shape(rng.randrange(8))
            if shape & f.Shape.REQUESTS:
                body, size = b"", 0
            key = rng.randbytes(4) if name == "keyed" or rng.random() < 0.05 else b""
            protocol = (
                Target.protocol if rng.random() < 0.95 else rng.choice(("\x1b[2J\r\n", "é" * 96, "/mesh/x/1.0.0"))
            )
            frame: f.Frame = f.Call(
                max(1, last_id), protocol, name, rng.choice((1, 500, 2000)), shape, b"", key, size, body
            )
        case 2:
            code = rng.choice(("", "", "busy", "not-authorized", "\x1b[2J", "x" * 64))
            body = b"" if code else body
            details = rng.choice(("", "{}", "[" * 500, '{"at": 1}'))
            frame = f.Reply(call_id, code, "r", "m" * 40, rng.random() < 0.5, details, 0 if code else size, body)
        case 3:
            frame = f.Message(call_id, size, body)
        case 4:
            frame = f.Data(call_id, body or b"x")
        case 5:
            frame = f.End(call_id)
        case 6:
            frame = f.Credit(rng.choice((call_id, call_id, 0)), rng.choice((1, 1000, 1 << 20, f.MAX_BODY_BYTES)))
        case _:
            frame = f.Cancel(call_id)
    return f.encode(frame), max(last_id, 0)


@scales
def test_frames_of_a_caller_in_any_order(scale: Scale) -> None:
    outcomes: Counter[str] = Counter()

    async def one(it: Scene, number: int) -> None:
        rng = random.Random(number)
        try:
            stream = await it.open(number)
        except MeshError:
            outcomes["suspended"] += 1
            return
        last_id, alive = 0, True
        for _ in range(rng.randrange(1, 16)):
            data, last_id = random_frame(rng, last_id, from_caller=True)
            for start in range(0, len(data), cut := rng.choice((1 << 20, 7, 500))):
                alive = alive and await put(stream, data[start : start + cut])
            if rng.random() < 0.2:
                await trio.sleep(rng.random() / 10)
        frames, dropped = await take(stream, 2.5)
        outcomes["dropped"] += dropped
        for frame in frames:
            if isinstance(frame, f.Reply):
                outcomes["refused" if frame.code else "answered"] += 1
                assert frame.code != "internal"
        await stream.aclose()

    async def attack(it: Scene) -> None:
        for first in scale.rounds(TOGETHER):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + TOGETHER):
                    nursery.start_soon(one, it, number)
            assert it.victim.metrics.buffered_bytes <= it.victim.config.max_buffered_bytes

    simulate(attack, crowd=CROWD)
    assert all(outcomes[name] for name in ("dropped", "refused", "answered")), outcomes


@scales
def test_frames_of_an_answerer_in_any_order(scale: Scale) -> None:
    outcomes: Counter[str] = Counter()
    unprintable: list[str] = []

    async def one(it: Scene, number: int) -> None:
        rng = random.Random(number)
        node = it.crowd[number % CROWD]

        async def answer(request: f.Call) -> bytes:
            data = b""
            for _ in range(rng.randrange(1, 8)):
                frame, _ = random_frame(rng, request.call_id, from_caller=False)
                data += frame
            return data

        await serve_bytes(node, answer)
        peer = node.local.peer_id
        stub = it.honest.stub(Target, peer)
        try:
            with trio.fail_after(6):
                match number % 4:
                    case 0:
                        await stub.rpc_plain(Part(n=1))
                    case 1:
                        async with stub.rpc_count(Part(n=1)) as answers:
                            async for _ in answers:
                                pass
                    case 2:
                        async with stub.rpc_sum() as upload:
                            for _ in range(rng.randrange(5)):
                                await upload.send(Part(blob=bytes(rng.choice((0, 100, 100_000)))))
                            await upload.result()
                    case _:
                        async with stub.rpc_chat() as chat:
                            for _ in range(rng.randrange(5)):
                                await chat.send(Part(blob=bytes(rng.choice((0, 100, 100_000)))))
                            await chat.end()
                            async for _ in chat:
                                pass
            outcomes["answered"] += 1
        except MeshError as error:
            unprintable.extend(c for c in str(error) if not c.isprintable())
            outcomes[type(error).__name__] += 1

    async def attack(it: Scene) -> None:
        for first in scale.rounds(TOGETHER):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + TOGETHER):
                    nursery.start_soon(one, it, number)

    simulate(attack, crowd=CROWD)
    assert not unprintable
    assert outcomes["RemoteProtocolError"], outcomes
    assert outcomes["RequestTimeout"], outcomes


# --- lengths that lie -------------------------------------------------------------------------------------------------


def _header(*fields: object, length: int | None = None, body: bytes = b"") -> bytes:
    packed = msgpack.packb(fields)
    length = 2 + len(packed) + len(body) if length is None else length
    return struct.pack(">IH", length, len(packed)) + packed + body


def frame_bomb(rng: random.Random) -> bytes:
    """A frame whose lengths, types or numbers are none that may be."""
    big = rng.choice((1 << 16, 1 << 31, (1 << 32) - 1))
    text = rng.choice(("x" * 1500, "\0" * 97, "é" * 200))
    return rng.choice(
        (
            struct.pack(">IH", big, rng.randrange(1 << 16)) + rng.randbytes(20),
            struct.pack(">IH", rng.randrange(3), 1),
            struct.pack(">IH", 60_000, rng.choice((0, 1537, 65_535))),
            struct.pack(">IH", 10, 11) + bytes(20),
            _header(1, 1, text, "plain", 1000, 0, b"", b"", 0),
            _header(1, 1, Target.protocol, "plain", 1000, 0, b"", b"", 1 << 40),
            _header(1, 1, Target.protocol, "plain", 1000, 0, b"", b"", -1),
            _header(1, 1 << 63, Target.protocol, "plain", 1000, 0, b"", b"", 0),
            _header(1, True, Target.protocol, "plain", 1000, 0, b"", b"", 0),
            _header(1, 1, Target.protocol, "plain", 0, 0, b"", b"", 0),
            _header(1, 1, Target.protocol, "plain", 1000, 8, b"", b"", 0),
            _header(1, 1, Target.protocol, "plain", 1000, 0, b"x", b"", 0),
            _header(1, 1, Target.protocol, "plain", 1000, 0, b"", b"k" * 33, 0),
            _header(1, 1, Target.protocol, "sum", 1000, 1, b"", b"", 10, body=b"x"),
            _header(3, 1, 1 << 30 | 1),
            _header(3, 1, 5, body=b"longer than announced"),
            _header(6, 0, 1 << 31),
            _header(6, 1, 0),
            _header(5, 1, body=b"x"),
            _header(*range(9)),
            _header(7.0, 1),
            _header([[[[[[[[[[]]]]]]]]]]),
            # Headers that announce more elements than they have bytes.
            struct.pack(">IH", 7, 5) + b"\xdd\xff\xff\xff\xff",
            struct.pack(">IH", 7, 5) + b"\xc6\xff\xff\xff\xff",
            struct.pack(">IH", 7, 5) + b"\xdf\xff\xff\xff\xff",
            struct.pack(">IH", 1502, 1500) + b"\x91" * 1500,
        )
    )


@scales
def test_frames_that_lie_about_themselves(scale: Scale) -> None:
    """Each ends its channel as a violation, at once and whole or in pieces, also behind good calls."""

    async def one(it: Scene, number: int) -> None:
        rng = random.Random(number)
        stream = await it.open(number)
        good = call(1, body=BODY) if rng.random() < 0.5 else b""
        bomb = frame_bomb(rng)
        if good:
            await put(stream, good)
        for start in range(0, len(bomb), cut := rng.choice((1 << 20, 1, 100))):
            await put(stream, bomb[start : start + cut])
        _, dropped = await take(stream, it.victim.config.frame_timeout_s + 1)
        assert dropped, bomb[:40]

    async def attack(it: Scene) -> None:
        done = 0
        for first in scale.rounds(TOGETHER):
            await trio.sleep(0.1)  # longer than a suspension
            async with trio.open_nursery() as nursery:
                for number in range(first, first + TOGETHER):
                    nursery.start_soon(one, it, number)
            done += TOGETHER
        assert it.victim.metrics.violations == done

    simulate(attack, crowd=CROWD)


# --- sizes that are announced and never sent --------------------------------------------------------------------------


@scales
def test_sizes_announced_for_memory_that_is_not_there(scale: Scale) -> None:
    """Streams of requests to a method that never reads them, each with one message of 4 MiB: what is not reserved is
    not allocated, and what is sent beyond it is a violation or thrown away."""

    async def one(it: Scene, number: int) -> None:
        try:
            stream = await it.open(number)
        except MeshError:
            return
        for call_id in range(1, 33):
            await put(stream, call(call_id, "deaf", ms=1500) + f.encode(f.Message(call_id, 4 << 20, bytes(10_000))))
        for call_id in range(1, 33):
            for _ in range(20):
                await put(stream, f.encode(f.Data(call_id, bytes(50_000))))
        await take(stream, 2.0)
        await stream.aclose()

    async def attack(it: Scene) -> None:
        for first in scale.rounds(50):
            gc.collect()  # a dropped channel lies in cycles with its errors until the collector comes: no leak
            async with trio.open_nursery() as nursery:
                for number in range(first, first + 10):
                    nursery.start_soon(one, it, number)
            assert it.victim.metrics.buffered_bytes <= it.victim.config.max_buffered_bytes

    simulate(attack, crowd=10)


# --- bodies that unfold -----------------------------------------------------------------------------------------------


def tensor_body(header: TensorHeader | bytes, data: bytes) -> bytes:
    packed = header if isinstance(header, bytes) else pack(header)
    head = struct.pack("<I", len(packed)) + packed
    return head + bytes(-len(head) % ALIGN) + data


def zstd(size: int, *, announce: bool = True) -> bytes:
    parameters = zstandard.ZstdCompressor(level=1, write_content_size=announce)
    return parameters.compress(bytes(size))


def _tensor_bombs() -> dict[str, bytes]:
    def of(items: int, codec: Codec = Codec.ZSTD) -> TensorHeader:
        return TensorHeader(dtype="float32", shape=(items,), codec=codec)

    most = MAX_TENSOR_BYTES // 4
    huge = TensorHeader.model_construct(dtype="float32", shape=(1 << 40, 1 << 40), codec=Codec.ZSTD)
    hollow = TensorHeader.model_construct(dtype="float32", shape=(0, 1 << 40), codec=Codec.RAW)
    writer = zstandard.ZstdCompressor(level=1).compressobj()
    two = zstd(1000) + zstd(1 << 20)
    window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    ).compressobj()
    return {
        "says little, holds much": tensor_body(of(10), zstd(64 << 20)),
        "says much": tensor_body(of(16 << 20), zstd(64 << 20)),
        "as much as may be": tensor_body(of(most), zstd(MAX_TENSOR_BYTES)),
        "one more": tensor_body(of(most + 1), zstd(MAX_TENSOR_BYTES + 4)),
        "no size": tensor_body(of(most), zstd(MAX_TENSOR_BYTES, announce=False)),
        "no size, streamed": tensor_body(of(most), writer.compress(bytes(64 << 20)) + writer.flush()),
        "a second frame": tensor_body(of(250), two),
        "a wide window": tensor_body(of(most), window.compress(bytes(MAX_TENSOR_BYTES)) + window.flush()),
        "skippable": tensor_body(of(most), b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(100)),
        "cut": tensor_body(of(most), zstd(MAX_TENSOR_BYTES)[:-3]),
        "not zstd": tensor_body(of(most), b"\x28\xb5\x2f\xfd" + bytes(50)),
        "huge shape": tensor_body(huge, b""),
        "hollow shape": tensor_body(hollow, b""),
        "a raw one that is none": tensor_body(of(most, Codec.RAW), bytes(100)),
        "an int8 one of no scales": tensor_body(of(6400, Codec.INT8), bytes(6800)),
        "a long header": tensor_body(b"\x81" * 300, b""),
        "header of arrays": tensor_body(b"\x83\xa5dtype\xdd\xff\xff\xff\xff", b""),
        "nothing": b"",
    }


@scales
def test_tensors_that_unfold(scale: Scale) -> None:
    """At most what the method takes is ever unfolded of one call; only the bomb that keeps to it is answered."""
    bombs = list(_tensor_bombs().items())
    answered: Counter[str] = Counter()

    async def attack(it: Scene) -> None:
        stream = await it.open()
        decoder = f.FrameDecoder(max_frame_bytes=1 << 20)
        number = 0
        for number in scale.rounds():
            name, body = bombs[number % len(bombs)]
            await put(stream, call(number + 1, "tensor", body))
            frames, dropped = await take(stream, 0.2, decoder=decoder)
            assert not dropped
            (reply,) = [frame for frame in frames if isinstance(frame, f.Reply)]
            assert reply.code in ("", "bad-request"), (name, reply)
            answered[name] += not reply.code

    assert max(len(body) for _, body in bombs) <= LIBP2P_LINK.first_credit_bytes
    simulate(attack)
    assert list(answered - Counter()) == ["as much as may be"]


@scales
def test_many_that_unfold_at_once(scale: Scale) -> None:
    """Small bodies of the greatest arrays, 32 at once: what they hold in memory is the method's limit for each."""
    body = _tensor_bombs()["as much as may be"]

    async def attack(it: Scene) -> None:
        for first in scale.rounds(32):
            stream = await it.open()
            await put(stream, b"".join(call(n, "tensor", body) for n in range(1, 33)))
            frames, dropped = await take(stream, 1.0)
            codes = Counter(frame.code for frame in frames if isinstance(frame, f.Reply))
            assert not dropped
            assert codes[""] + codes["busy"] == 32, (first, codes)
            await stream.aclose()

    simulate(attack, max_growth=MAX_GROWTH_BYTES + CONFIG.max_calls_in_per_channel * MAX_TENSOR_BYTES)


def _json_bombs() -> list[bytes]:
    return [
        b"[" * 30_000,
        b'{"n":' * 6000,
        b'{"n": ' + b"9" * 30_000 + b"}",
        b'{"n": 1e999999}',
        b'{"blob": "' + b"\\ud800" * 100 + b'"}',
        b'{"x": ' + b"[1," * 9000,
        b"\xff\xfe" * 100,
        b'{"n": 1, "n": 2, "z": 3}',
    ]


def _msgpack_bombs() -> list[bytes]:
    return [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 30_000,
        b"\x81\xa1n" * 9000,
        b"\x81\xa1n\xdd\x00\x03\xff\xff" + b"\xc0" * 20_000,
        b"\x81\xa4blob\xc6\xff\xff\xff\xff",
        b"\xdc\x70\x00" + b"\x90" * 28_672,
        b"\x81\xa1n" + b"\xdd\x00\x03\xff\xff" * 1000,
        b"\x81\xa1n" + b"\xc4\x02ab\xdf\x00\x01\xff\xff" * 500,
        b"\x81\xa1n" + b"\x92\xa1\xdd\xdc\xff\xff" * 500,
        b"\x81\xa1n" + b"\xdd\x00\x03\xff\xff" * 500,
    ]


@scales
def test_bodies_that_nest_and_lie(scale: Scale) -> None:
    bombs = [(f.Shape.ONE, body) for body in _msgpack_bombs()] + [(f.Shape.JSON, body) for body in _json_bombs()]

    async def attack(it: Scene) -> None:
        stream = await it.open()
        decoder = f.FrameDecoder(max_frame_bytes=1 << 20)
        for number in scale.rounds():
            shape, body = bombs[number % len(bombs)]
            head = f.Call(number + 1, Target.protocol, "plain", 1000, shape, b"", b"", len(body), body)
            await put(stream, f.encode(head))
            frames, dropped = await take(stream, 0.1, decoder=decoder)
            assert not dropped
            (reply,) = [frame for frame in frames if isinstance(frame, f.Reply)]
            assert reply.code == "bad-request", (body[:20], reply)
            assert reply.message.isprintable()

    simulate(attack)


def _value(rng: random.Random, depth: int) -> object:
    kind = rng.randrange(9)
    if depth and kind < 3:
        return [_value(rng, depth - 1) for _ in range(rng.choice((0, 1, 3, 20)))]
    if depth and kind < 5:
        return {str(n): _value(rng, depth - 1) for n in range(rng.choice((0, 1, 3, 20)))}
    size = rng.choice((0, 5, 40, 300, 70_000))
    number = rng.getrandbits(rng.randrange(1, 64))
    return rng.choice((None, True, number, -number, rng.random(), "x" * size, rng.randbytes(size)))


def test_depth_is_told_whatever_lies_between() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        value = [_value(rng, 2), bytes(4096)]  # a smaller one is only counted
        for count, expected in ((MAX_DEPTH - 3, False), (2 * MAX_DEPTH, True)):
            nested = value
            for _ in range(count):
                nested = [rng.random(), nested, *[1] * 20] if rng.random() < 0.5 else {"a": b"\xdd\xff", "b": nested}
            assert _is_deep(msgpack.packb(nested)) is expected, (seed, count)
