"""The wire format: what is encoded is read back, libp2p's own protobuf agrees, and garbage is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import signature_validator

from mesh.errors import RemoteProtocolError
from mesh.gossip.wire import (
    MAX_IDS,
    MAX_RPC_BYTES,
    MAX_SUBSCRIPTIONS,
    IHave,
    Prune,
    RawMessage,
    Rpc,
    decode,
    encode,
    frame,
    is_signed,
    sign,
)
from mesh.identity import KeyType, PeerKey
from mesh.protobuf import FrameReader

topics = st.text(max_size=24)
ids = st.binary(max_size=52)
messages = st.builds(
    RawMessage,
    source=st.binary(max_size=44),
    data=st.binary(max_size=200),
    seqno=st.binary(max_size=8),
    topic=topics,
    signature=st.binary(max_size=80),
    key=st.binary(max_size=80),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.tuples(st.booleans(), topics), max_size=4).map(tuple),
    publish=st.lists(messages, max_size=4).map(tuple),
    ihave=st.lists(st.builds(IHave, topics, st.lists(ids, max_size=4).map(tuple)), max_size=3).map(tuple),
    iwant=st.lists(ids, max_size=4).map(tuple),
    graft=st.lists(topics, max_size=3).map(tuple),
    prune=st.lists(st.builds(Prune, topics, st.integers(0, 2**64 - 1)), max_size=3).map(tuple),
)


@given(rpcs)
def test_what_is_encoded_is_read_back(rpc: Rpc) -> None:
    assert decode(encode(rpc)) == rpc


@given(st.lists(rpcs, max_size=4), st.integers(1, 40))
def test_frames_are_cut_wherever_the_stream_is(sent: list[Rpc], step: int) -> None:
    stream = b"".join(map(frame, sent))
    reader = FrameReader(MAX_RPC_BYTES)
    got = [decode(body) for at in range(0, len(stream), step) for body in reader.feed(stream[at : at + step])]
    assert got == sent


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        decode(data)
    except RemoteProtocolError:
        pass


@given(rpcs, st.data())
def test_a_flipped_bit_never_surprises(rpc: Rpc, data: st.DataObject) -> None:
    body = bytearray(encode(rpc) or b"\0")
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode(bytes(body))
    except RemoteProtocolError:
        pass


@given(rpcs)
def test_libp2ps_protobuf_reads_it_and_we_read_libp2ps(rpc: Rpc) -> None:
    theirs = rpc_pb2.RPC.FromString(encode(rpc))
    assert [(s.subscribe, s.topicid) for s in theirs.subscriptions] == list(rpc.subscriptions)
    assert [(m.from_id, m.data, m.seqno, list(m.topicIDs)) for m in theirs.publish] == [
        (m.source, m.data, m.seqno, [m.topic]) for m in rpc.publish
    ]
    assert [(i.topicID, tuple(i.messageIDs)) for i in theirs.control.ihave] == [(i.topic, i.ids) for i in rpc.ihave]
    assert [i for want in theirs.control.iwant for i in want.messageIDs] == list(rpc.iwant)
    assert [g.topicID for g in theirs.control.graft] == list(rpc.graft)
    assert [(p.topicID, p.backoff) for p in theirs.control.prune] == [(p.topic, p.backoff_s) for p in rpc.prune]
    theirs.senderRecord = b"a field of theirs"
    assert decode(theirs.SerializeToString()) == rpc


@pytest.mark.parametrize("key_type", [KeyType.ED25519, KeyType.SECP256K1, KeyType.RSA])
def test_a_signature_of_ours_is_right_for_libp2p_too(key_type: KeyType) -> None:
    raw = sign(PeerKey.generate(key_type), "/a/topic", b"data", 1_800_000_000_000_000_000)
    assert is_signed(raw)
    [theirs] = rpc_pb2.RPC.FromString(encode(Rpc(publish=(raw,)))).publish
    assert signature_validator(theirs)
    theirs.data = b"other"
    assert not signature_validator(theirs)


def test_the_key_must_be_the_one_that_from_names() -> None:
    honest, liar = PeerKey.dev("honest"), PeerKey.dev("liar")
    lie = sign(liar, "t", b"x", 1)
    spoofed = RawMessage(honest.peer_id.multihash, lie.data, lie.seqno, lie.topic, lie.signature, liar.public_key_pb)
    assert not is_signed(spoofed)
    unsigned = RawMessage(honest.peer_id.multihash, b"x", bytes(8), "t")
    assert not is_signed(unsigned)
    with pytest.raises(RemoteProtocolError):
        is_signed(RawMessage(b"", b"x", bytes(8), "t"))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\x12", "varint that does not end"),
        (b"\x12\x05ab", "ends after its message"),
        (b"\x13", "wire type 3"),
        (b"\x00\x00", "field 0"),
        (b"\x10\x01", "number where bytes"),
        (b"\x0a\x02\x0a\x00", "bytes where a number"),
        (b"\x12\x04\x12\x00\x12\x00", "twice"),
        (b"\x12\x02\x22\x01", "ends after"),
        (b"\x12\x03\x22\x01\xff", "not UTF-8"),
        (b"\x12\x02\x22\x02ab", "ends after"),
        (b"\x12\x0b\x1a\x09123456789", "seqno of 9 bytes"),
        (b"\xff" * 11, "varint"),
        (b"\x09" + bytes(8), "wire type 1"),
    ],
)
def test_what_no_honest_peer_writes_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode(body)


def test_more_than_the_bounds_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="subscriptions"):
        decode(encode(Rpc(subscriptions=((True, "t"),) * (MAX_SUBSCRIPTIONS + 1))))
    with pytest.raises(RemoteProtocolError, match="message ids"):
        decode(encode(Rpc(iwant=(b"i",) * (MAX_IDS + 1))))
    with pytest.raises(RemoteProtocolError, match="1048577 bytes"):
        decode(bytes(1024 * 1024 + 1))


def test_a_frame_that_is_announced_too_long_is_refused_before_it_comes() -> None:
    with pytest.raises(RemoteProtocolError, match="bytes or more"):
        list(FrameReader(1000).feed(b"\xff\xff\x7f"))
    with pytest.raises(RemoteProtocolError, match="does not end"):
        list(FrameReader(1000).feed(b"\x80\x80\x80\x80\x80\x80"))
