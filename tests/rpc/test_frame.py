"""The frame codec: every frame survives, and no bytes do anything but raise RemoteProtocolError."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc import frame as f

LIMIT = 64 * 1024
ids = st.integers(1, f.MAX_CALL_ID)
bodies = st.binary(max_size=200)
words = st.text(max_size=f.MAX_METHOD_CHARS)


traces = st.just(b"") | st.binary(min_size=f.TRACE_BYTES, max_size=f.TRACE_BYTES)
keys = st.binary(max_size=f.MAX_KEY_BYTES)


@st.composite
def calls(draw: st.DrawFn) -> f.Call:
    shape = draw(st.sampled_from(f.Shape))
    body = b"" if shape & f.Shape.REQUESTS else draw(bodies)
    size = 0 if shape & f.Shape.REQUESTS else draw(st.integers(len(body), f.MAX_BODY_BYTES))
    name = words.filter(bool)
    timeout_ms = draw(st.integers(1, f.MAX_TIMEOUT_MS))
    return f.Call(draw(ids), draw(name), draw(name), timeout_ms, shape, draw(traces), draw(keys), size, body)


@st.composite
def replies(draw: st.DrawFn) -> f.Reply:
    code = draw(st.sampled_from(["", "busy", "internal"]))
    body = b"" if code else draw(bodies)
    size = 0 if code else draw(st.integers(len(body), f.MAX_BODY_BYTES))
    text = st.text(max_size=100)
    return f.Reply(draw(ids), code, draw(words), draw(text), draw(st.booleans()), draw(text), size, body)


@st.composite
def messages(draw: st.DrawFn) -> f.Message:
    body = draw(bodies)
    return f.Message(draw(ids), draw(st.integers(len(body), f.MAX_BODY_BYTES)), body)


frames = st.one_of(
    calls(),
    replies(),
    messages(),
    st.builds(f.Data, ids, st.binary(min_size=1, max_size=200)),
    st.builds(f.End, ids),
    st.builds(f.Credit, st.integers(0, f.MAX_CALL_ID), st.integers(1, f.MAX_BODY_BYTES)),
    st.builds(f.Cancel, ids),
)


def whole(frames: list[f.Frame]) -> list[f.Frame]:
    """Frames whose bodies came in pieces, put together: what a receiver understands, whatever the pieces."""
    found: list[f.Frame] = []
    for frame in frames:
        body = bytes(getattr(frame, "body", b""))
        if type(frame) is f.Data and found and hasattr(found[-1], "body") and found[-1].call_id == frame.call_id:
            found[-1] = found[-1]._replace(body=bytes(found[-1].body) + body)  # type: ignore[call-arg, union-attr]
        else:
            found.append(frame._replace(body=body) if hasattr(frame, "body") else frame)  # type: ignore[call-arg]
    return found


@given(st.lists(frames, max_size=8), st.integers(1, 400))
def test_round_trip_in_pieces_of_any_size(sent: list[f.Frame], step: int) -> None:
    wire = b"".join(map(f.encode, sent))
    decoder = f.FrameDecoder(max_frame_bytes=LIMIT)
    got: list[f.Frame] = []
    for i in range(0, len(wire), step):
        # As the channel does: take the bodies before feeding more.
        got += whole(list(decoder.feed(wire[i : i + step])))
    assert whole(got) == whole(sent)
    assert not decoder.is_partial
    assert decoder.completed == len(sent)


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_remote_protocol_errors(data: bytes) -> None:
    for attempt in (data, len(data).to_bytes(4, "big") + data):
        try:
            list(f.FrameDecoder(max_frame_bytes=LIMIT).feed(attempt))
        except RemoteProtocolError:
            pass


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.integers(0, 20), st.lists(values, max_size=8), bodies)
def test_headers_of_any_shape_raise_only_remote_protocol_errors(kind: int, rest: list[object], body: bytes) -> None:
    try:
        f.decode_header(msgpack.packb([kind, *rest]), len(body), body)
    except RemoteProtocolError:
        pass


@given(frames, st.data())
def test_a_damaged_frame_raises_only_remote_protocol_errors(frame: f.Frame, data: st.DataObject) -> None:
    wire = bytearray(f.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        list(f.FrameDecoder(max_frame_bytes=LIMIT).feed(bytes(wire)))
    except RemoteProtocolError:
        pass


def call(**changes: object) -> tuple[object, ...]:
    fields = {
        "id": 1,
        "protocol": "/a/1.0.0",
        "method": "m",
        "timeout": 1,
        "shape": 0,
        "trace": b"",
        "key": b"",
        "size": 0,
    }
    return (1, *(fields | changes).values())


@pytest.mark.parametrize(
    "header",
    [
        call(id=0),  # call ids begin at 1
        call(id=True),  # a bool is no number
        call(protocol=""),
        call(method="m" * 65),
        call(timeout=0),  # no time left
        call(timeout=f.MAX_TIMEOUT_MS + 1),
        call(timeout=1.0),
        call(size=f.MAX_BODY_BYTES + 1),
        call(size=-1),
        call(shape=8),
        call(shape=1, size=1),  # requests follow, so there is no body
        call(trace=bytes(23)),
        call(key=bytes(33)),
        call()[:-1],
        (*call(), 0),
        (2, 1, "busy", "", "", True, "", 5),  # an error has no body
        (2, 1, "", "", "", 1, "", 0),
        (3, 1, -1),
        (4, 1),  # no data
        (5, 0),
        (6, 1, 0),
        (7, 0),
        (8, 1),
        (),
        {},
        7,
    ],
)
def test_wrong_headers(header: object) -> None:
    with pytest.raises(RemoteProtocolError):
        f.decode_header(msgpack.packb(header), 0, b"")


@pytest.mark.parametrize("header", [b"", b"\xff\xff\x90", b"\xc1", b"\xd6"])
def test_headers_that_are_no_msgpack(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        f.decode_header(header, 0, b"")


def test_more_body_than_announced_and_bodies_where_none_belong() -> None:
    for header in (call(size=2), (2, 1, "", "", "", False, "", 2), (3, 1, 2), (5, 1), (6, 1, 1), (7, 1)):
        with pytest.raises(RemoteProtocolError):
            f.decode_header(msgpack.packb(header), 3, b"a")


def test_a_length_is_refused_before_its_bytes_come() -> None:
    for length in (0, 2, LIMIT - 3, 0xFFFFFFFF):
        with pytest.raises(RemoteProtocolError):
            list(f.FrameDecoder(max_frame_bytes=LIMIT).feed(length.to_bytes(4, "big")))
    for wrong in (b"\0\0\0\x09\0\0", b"\0\0\0\x09\0\x08", b"\0\0\xff\0\x07\0"):  # header of 0, 8 of 7, 1792
        with pytest.raises(RemoteProtocolError):
            list(f.FrameDecoder(max_frame_bytes=LIMIT).feed(wrong))


def test_a_decoder_holds_no_more_than_a_header() -> None:
    decoder = f.FrameDecoder(max_frame_bytes=LIMIT)
    wire = f.encode(f.Data(1, bytes(60_000)))
    for start in range(0, len(wire), 1000):
        list(decoder.feed(wire[start : start + 1000]))
        assert len(decoder._partial) <= f.MAX_HEADER_BYTES
    assert decoder.completed == 1


def test_oversized_headers_are_not_made() -> None:
    f.encode(f.Call(f.MAX_CALL_ID, "ü" * 96, "ü" * 64, f.MAX_TIMEOUT_MS, f.Shape(7), bytes(24), bytes(32), 1 << 30))
    with pytest.raises(LocalProtocolError):
        f.encode(f.Reply(1, "x", "", "ü" * 800, False, "", 0))


@given(st.lists(st.binary(max_size=5), max_size=5), st.integers(0, 25), st.integers(0, 25))
def test_pieces_are_a_slice_of_all(buffers: list[bytes], start: int, end: int) -> None:
    assert b"".join(f.pieces(buffers, start, end)) == b"".join(buffers)[start:end]


@given(st.text(), st.integers(0, 40))
def test_printable(text: str, limit: int) -> None:
    clean = f.printable(text, limit)
    assert clean.isprintable()
    assert len(clean.encode()) <= limit
