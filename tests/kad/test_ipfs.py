"""The messages of `/ipfs/kad/1.0.0`: what is encoded is read back, libp2p's own protobuf agrees, garbage is refused;
and our records in them."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.kad_dht.pb import kademlia_pb2

from mesh import protobuf
from mesh.errors import RecordRejected, RemoteProtocolError
from mesh.identity import PeerKey
from mesh.kad import ipfs
from mesh.kad.ipfs import Kind, Message, decode, encode, pack_records, select, unpack_records, validate
from mesh.kad.record import Record, sign_record
from mesh.kad.wire import MAX_ADDR_BYTES, MAX_ADDRS, MAX_CLOSER
from mesh.peer import MAX_PEER_ID_BYTES

ALICE, BOB = PeerKey.dev("alice"), PeerKey.dev("bob")
NOW = 1_800_000_000.0


def record(
    key: PeerKey = ALICE, *, seq: int = 1, subkey: bytes = b"", value: bytes = b"v", name: bytes = b"t/x"
) -> Record:
    expiry_ms = int(NOW * 1000) + 60_000
    return sign_record(key, name, value, subkey=subkey, expiry_ms=expiry_ms, seq=seq, subnet_id=1, genesis=bytes(32))


peers = st.tuples(
    st.binary(min_size=1, max_size=MAX_PEER_ID_BYTES),
    st.lists(st.binary(min_size=1, max_size=MAX_ADDR_BYTES), max_size=MAX_ADDRS).map(tuple),
)
lists_of_peers = st.lists(peers, max_size=4).map(tuple)
keys = st.binary(max_size=ipfs.MAX_WIRE_KEY_BYTES)
without_record = st.builds(
    Message, kind=st.sampled_from(Kind), key=keys, closer=lists_of_peers, providers=lists_of_peers
)
with_record = st.builds(
    dataclasses.replace, without_record, value=st.binary(max_size=300), value_key=keys
)  # fmt: skip
messages = without_record | with_record


# --- the protobuf -----------------------------------------------------------------------------------------------------


@given(messages)
def test_what_is_encoded_is_read_back(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages)
def test_libp2ps_protobuf_reads_it_and_we_read_libp2ps(message: Message) -> None:
    theirs = kademlia_pb2.Message.FromString(encode(message))
    assert (theirs.type, theirs.key) == (message.kind, message.key)
    assert theirs.HasField("record") == (message.value is not None)
    assert (theirs.record.key, theirs.record.value) == (message.value_key, message.value or b"")
    for listed, ours in ((theirs.closerPeers, message.closer), (theirs.providerPeers, message.providers)):
        assert [(peer.id, tuple(peer.addrs)) for peer in listed] == list(ours)
    assert decode(theirs.SerializeToString()) == message
    # And with everything else that libp2p's nodes write into it.
    theirs.clusterLevelRaw = 3
    theirs.senderRecord = b"a signed peer record"
    if message.value is not None:
        theirs.record.timeReceived = "2026-01-01T00:00:00Z"
        theirs.record.author, theirs.record.signature = b"who", b"how"
    for peer in (*theirs.closerPeers, *theirs.providerPeers):
        peer.connection = kademlia_pb2.Message.CAN_CONNECT
        peer.signedRecord = b"another"
    assert decode(theirs.SerializeToString()) == message


def test_the_types_have_the_numbers_of_the_spec() -> None:
    assert {kind.name: kind.value for kind in Kind} == dict(kademlia_pb2.Message.MessageType.items())
    assert ipfs.protocol() == "/ipfs/kad/1.0.0"
    assert ipfs.protocol("myapp") == "/myapp/kad/1.0.0"


@given(st.binary(max_size=400))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refused(data)


@given(messages, st.data())
def test_a_flipped_bit_never_surprises(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode(message))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    read_or_refused(bytes(body))


def read_or_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except RemoteProtocolError:
        return
    assert decode(encode(message)) == message


PEER = protobuf.delimited(8, protobuf.delimited(1, b"id"))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\x08", "does not end"),
        (b"\x08\x06", "unknown type 6"),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "unknown type"),
        (b"\x08\x00\x08\x00", "field 1 twice"),
        (b"\x0a\x00", "bytes where a number"),
        (b"\x10\x01", "a number where bytes"),
        (b"\x12\x05ab", "ends after its message"),
        (b"\x1a\x00\x1a\x00", "field 3 twice"),
        (b"\x1a\x02\x0a\x05", "ends after its message"),
        (b"\x42\x04\x0a\x00\x0a\x00", "field 1 twice"),
        (b"\x42\x02\x10\x01", "a number where bytes"),
        (b"\x40\x01", "a number where bytes"),
        (b"\x45abcd", "wire type 5"),
    ],
)
def test_what_no_honest_node_writes_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode(body)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Message(Kind.GET_VALUE, bytes(ipfs.MAX_WIRE_KEY_BYTES + 1)), "a key of 130 bytes"),
        (Message(Kind.PUT_VALUE, value=b"", value_key=bytes(ipfs.MAX_WIRE_KEY_BYTES + 1)), "a record key of 130"),
        (Message(Kind.PUT_VALUE, value=bytes(ipfs.MAX_VALUE_BYTES + 1)), "a record value of"),
        (Message(Kind.PUT_VALUE, value=bytes(ipfs.MAX_MESSAGE_BYTES)), "a message of"),
        (Message(Kind.FIND_NODE, closer=((bytes(MAX_PEER_ID_BYTES + 1), ()),)), "a peer id of"),
    ],
)
def test_each_part_has_its_bound(message: Message, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode(encode(message))


def test_the_largest_of_each_part_is_read() -> None:
    many = tuple((bytes([number]) * MAX_PEER_ID_BYTES, (b"a" * MAX_ADDR_BYTES,) * MAX_ADDRS) for number in range(20))
    assert len(many) == MAX_CLOSER
    asked = Message(Kind.GET_PROVIDERS, bytes(ipfs.MAX_WIRE_KEY_BYTES), closer=many, providers=many)
    assert decode(encode(asked)) == asked
    put = Message(Kind.PUT_VALUE, b"/t/x", bytes(ipfs.MAX_VALUE_BYTES), b"/t/x")
    assert decode(encode(put)) == put


def test_peers_and_addresses_beyond_what_we_take_are_left_out_unread() -> None:
    peer = (b"id", (b"", b"a" * (MAX_ADDR_BYTES + 1), *(bytes([number]) for number in range(MAX_ADDRS + 2))))
    garbage = protobuf.delimited(8, b"\xff")
    message = decode(encode(Message(Kind.FIND_NODE, closer=(peer,) * MAX_CLOSER)) + garbage * 3)
    assert message.closer == ((b"id", tuple(bytes([number]) for number in range(MAX_ADDRS))),) * MAX_CLOSER
    assert len(decode(PEER * 300).closer) == MAX_CLOSER


@pytest.mark.parametrize(
    "body",
    [
        b"\x42\x00" * (ipfs.MAX_FIELDS + 1),
        b"\x78\x01" * (ipfs.MAX_FIELDS + 1),
        protobuf.delimited(3, b"\x78\x01" * (ipfs.MAX_PART_FIELDS + 1)),
        protobuf.delimited(9, b"\x12\x00" * (ipfs.MAX_PART_FIELDS + 1)),
    ],
    ids=["empty peers", "unknown fields", "in a record", "in a peer"],
)
def test_a_message_of_nothing_but_fields_is_refused_before_it_is_read(body: bytes) -> None:
    """A mebibyte of two-byte fields, which anybody may send, would keep a node busy for a second."""
    with pytest.raises(RemoteProtocolError, match=r"more than \d+ fields"):
        decode(body)


# --- records in it ----------------------------------------------------------------------------------------------------


def test_a_record_key_is_theirs_without_the_slash() -> None:
    assert ipfs.record_key(b"/t/x") == b"t/x"
    for wrong in (b"", b"/", b"t/x", b"\x12\x20"):
        with pytest.raises(RemoteProtocolError):
            ipfs.record_key(wrong)


def test_one_record_travels_as_itself_and_several_as_a_container() -> None:
    one, two, sub = record(), record(BOB), record(subkey=b"s")
    assert pack_records([one]) == one.to_bytes()
    assert not ipfs.is_container(pack_records([one]))
    for several in ([one, two], [two, one, sub], [sub]):
        value = pack_records(several)
        assert ipfs.is_container(value)
        assert unpack_records(value) == tuple(sorted(several, key=lambda r: (r.owner, r.subkey)))
        assert pack_records(several[::-1]) == value  # one value, however the store lists it
    assert unpack_records(one.to_bytes()) == (one,)


def test_a_container_is_not_larger_than_a_value_may_be() -> None:
    large = [record(subkey=bytes([number]), value=bytes(64 * 1024)) for number in range(20)]
    value = pack_records(large)
    assert len(value) <= ipfs.MAX_VALUE_BYTES
    kept = unpack_records(value)
    assert kept == tuple(large[: len(kept)])
    assert len(kept) == 15


def container(raws: object) -> bytes:
    packed = msgpack.packb(["mesh/records/1", raws])
    assert isinstance(packed, bytes)
    return packed


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        container([b"no record"]),
        container([1]),
        container({}),
        container(None),
        container([])[:-1],
        container([]) + b"\0",
        container([record().to_bytes()] * 2),
        container([r.to_bytes() for r in (record(subkey=b"b"), record(subkey=b"a"))]),
        container([r.to_bytes() for r in (record(), record(seq=2))]),
        container([bytes(80_000)]),
    ],
)
def test_what_is_no_value_of_ours_is_refused(value: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_records(value)
    with pytest.raises(RecordRejected, match="malformed"):
        validate(b"/t/x", value, NOW)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.booleans())
def test_a_damaged_container_is_read_or_refused(data: bytes, inside: bool) -> None:
    value = container([data]) if inside else container([])[:-1] + data
    try:
        records = unpack_records(value)
    except RemoteProtocolError:
        return
    assert records == ()


def test_a_validator_takes_what_is_signed_for_its_key_and_lives() -> None:
    mine = record()
    validate(b"/t/x", mine.to_bytes(), NOW)
    validate(b"/t/x", pack_records([mine, record(BOB)]), NOW)
    forged = dataclasses.replace(mine, value=b"w")
    cases = {
        "malformed": (b"/t/x", container([]), NOW),
        "key": (b"/t/y", mine.to_bytes(), NOW),
        "signature": (b"/t/x", forged.to_bytes(), NOW),
        "expired": (b"/t/x", mine.to_bytes(), NOW + 60.0),
    }
    for reason, (key, value, now) in cases.items():
        with pytest.raises(RecordRejected) as caught:
            validate(key, value, now)
        assert caught.value.reason == reason
    with pytest.raises(RecordRejected, match="signature"):  # one bad record spoils a container
        validate(b"/t/x", pack_records([forged, record(BOB)]), NOW)


def test_the_newest_is_selected_and_a_tie_is_a_refresh() -> None:
    old, new = record().to_bytes(), record(seq=2).to_bytes()
    assert select([old, new]) == 1
    assert select([new, old]) == 0
    assert select([new]) == 0
    assert select([old, new, old]) == 1
    assert select([new, new]) == 1  # KadDHT puts what it holds first: the same again extends its life
    both = pack_records([record(), record(BOB)])
    assert select([both, new]) == 1  # an older record does not come back by standing beside another's
    assert select([new, pack_records([record(seq=2), record(BOB)])]) == 1
    assert select([both, pack_records([record(seq=2), record(BOB)])]) == 1
