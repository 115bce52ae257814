"""The frame codec: every frame survives, and no bytes do anything but raise RemoteProtocolError."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc import frame as f

ids = st.integers(1, f.MAX_CALL_ID)
bodies = st.binary(max_size=200)
words = st.text(max_size=f.MAX_METHOD_CHARS)


@st.composite
def requests(draw: st.DrawFn) -> f.Request:
    body = draw(bodies)
    size = draw(st.integers(len(body), f.MAX_BODY_BYTES))
    name = words.filter(bool)
    return f.Request(draw(ids), draw(name), draw(name), draw(st.integers(1, f.MAX_TIMEOUT_MS)), size, body)


@st.composite
def responses(draw: st.DrawFn) -> f.Response:
    code = draw(st.sampled_from(["", "busy", "internal"]))
    body = b"" if code else draw(bodies)
    size = 0 if code else draw(st.integers(len(body), f.MAX_BODY_BYTES))
    return f.Response(draw(ids), code, draw(words), draw(st.text(max_size=100)), draw(st.booleans()), size, body)


frames = st.one_of(
    requests(),
    responses(),
    st.builds(f.Data, ids, st.binary(min_size=1, max_size=200)),
    st.builds(f.Credit, st.integers(0, f.MAX_CALL_ID), st.integers(1, f.MAX_BODY_BYTES)),
    st.builds(f.Cancel, ids),
)


@given(st.lists(frames, max_size=8), st.integers(1, 400))
def test_round_trip_in_pieces_of_any_size(sent: list[f.Frame], step: int) -> None:
    wire = b"".join(map(f.encode, sent))
    decoder = f.FrameDecoder()
    got = [frame for i in range(0, len(wire), step) for frame in decoder.feed(wire[i : i + step])]
    assert got == sent
    assert list(map(type, got)) == list(map(type, sent))
    assert not decoder.is_partial


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_remote_protocol_errors(data: bytes) -> None:
    for attempt in (data, len(data).to_bytes(4, "big") + data):
        try:
            f.FrameDecoder().feed(attempt)
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
    header = msgpack.packb([kind, *rest])
    try:
        f.decode(len(header).to_bytes(2, "big") + header + body)
    except RemoteProtocolError:
        pass


@given(frames, st.data())
def test_a_damaged_frame_raises_only_remote_protocol_errors(frame: f.Frame, data: st.DataObject) -> None:
    wire = bytearray(f.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        f.FrameDecoder().feed(bytes(wire))
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "header",
    [
        (1, 0, "/a/1", "m", 1, 0),  # call ids begin at 1
        (1, True, "/a/1", "m", 1, 0),  # a bool is no number
        (1, 1, "", "m", 1, 0),
        (1, 1, "/a/1", "m" * 65, 1, 0),
        (1, 1, "/a/1", "m", 0, 0),  # no time left
        (1, 1, "/a/1", "m", f.MAX_TIMEOUT_MS + 1, 0),
        (1, 1, "/a/1", "m", 1, f.MAX_BODY_BYTES + 1),
        (1, 1, "/a/1", "m", 1, -1),
        (1, 1, "/a/1", "m", 1.0, 0),
        (1, 1, "/a/1", "m", 1),
        (1, 1, "/a/1", "m", 1, 0, 0),
        (2, 1, "busy", "", "", True, 5),  # an error has no body
        (2, 1, "", "", "", 1, 0),
        (3, 1),  # no data
        (4, 1, 0),
        (5, 0),
        (6, 1),  # kept for streams
        (),
        {},
        7,
    ],
)
def test_wrong_headers(header: object) -> None:
    packed = msgpack.packb(header)
    with pytest.raises(RemoteProtocolError):
        f.decode(len(packed).to_bytes(2, "big") + packed)


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\0\0\0", b"\xff\xff\x90", b"\0\x02\x90", b"\0\x01\xc1", b"\0\x01\xd6"]
)
def test_wrong_payloads(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        f.decode(payload)


def test_more_body_than_announced_and_bodies_where_none_belong() -> None:
    for header in ((1, 1, "/a/1", "m", 1, 2), (2, 1, "", "", "", False, 2), (4, 1, 1), (5, 1)):
        packed = msgpack.packb(header)
        with pytest.raises(RemoteProtocolError):
            f.decode(len(packed).to_bytes(2, "big") + packed + b"abc")


def test_a_length_is_refused_before_its_bytes_come() -> None:
    for length in (0, 2, f.MAX_FRAME_BYTES - 3, 0xFFFFFFFF):
        with pytest.raises(RemoteProtocolError):
            f.FrameDecoder().feed(length.to_bytes(4, "big"))


def test_the_largest_frame_fits_and_nothing_larger_is_made() -> None:
    longest = "x" * f.MAX_PROTOCOL_CHARS
    head = f.Request(f.MAX_CALL_ID, longest, "m" * 64, f.MAX_TIMEOUT_MS, f.MAX_BODY_BYTES, bytes(f.MAX_BODY_PER_FRAME))
    assert len(f.encode(head)) <= f.MAX_FRAME_BYTES
    with pytest.raises(LocalProtocolError):
        f.encode(f.Data(1, bytes(f.MAX_FRAME_BYTES)))
    with pytest.raises(LocalProtocolError):
        f.encode(f.Response(1, "x", "", "ü" * 600, False, 0, b""))


@given(st.text(), st.integers(0, 40))
def test_printable(text: str, limit: int) -> None:
    clean = f.printable(text, limit)
    assert clean.isprintable()
    assert len(clean.encode()) <= limit
