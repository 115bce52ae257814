"""The messages of `/ipfs/kad/1.0.0`, as go-libp2p, js-libp2p and py-libp2p speak it, and our records in them. PURE.

libp2p/specs, kad-dht, "RPC messages": one protobuf `Message` with its length before it, a request and a reply in turn
on a stream. A record key `<namespace>/<rest>` is `/<namespace>/<rest>` there. One record without subkey travels as its
bytes in `Record.value`; several records under a key travel as a container, which can be read and not be put: on that
wire a key has one value, and nobody may replace the records of others by putting his among them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import msgpack

from mesh import protobuf
from mesh.errors import RecordRejected, RemoteProtocolError
from mesh.kad.key import wire_key
from mesh.kad.record import MAX_KEY_BYTES, MAX_RECORD_BYTES, Record
from mesh.kad.wire import MAX_ADDR_BYTES, MAX_ADDRS, MAX_CLOSER
from mesh.peer import MAX_PEER_ID_BYTES

PREFIX: Final = "ipfs"
MAX_VALUE_BYTES: Final = 1024 * 1024
"""What go-libp2p and js-libp2p take in one message, nearly."""
MAX_MESSAGE_BYTES: Final = MAX_VALUE_BYTES + 64 * 1024
MAX_WIRE_KEY_BYTES: Final = MAX_KEY_BYTES + 1
MAX_FIELDS: Final = 4096
"""Fields of a message: go-libp2p and js-libp2p name every provider of a key, more than we take."""
MAX_PART_FIELDS: Final = 256
"""Fields of a record or of a peer in it: a node behind many interfaces has dozens of addresses."""
_LAST_FIELD: Final = 10
_CONTAINER: Final = "mesh/records/1"


def protocol(prefix: str = PREFIX) -> str:
    """`/ipfs/kad/1.0.0`, or that of a network of its own."""
    return f"/{prefix}/kad/1.0.0"


class Kind(enum.IntEnum):
    """`Message.type`."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


RawPeer = tuple[bytes, tuple[bytes, ...]]
"""Multihash and addresses, as mesh.kad.wire has them."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a reply. `value` is `Record.value`, None where there is no record."""

    kind: Kind
    key: bytes = b""
    value: bytes | None = None
    value_key: bytes = b""
    """`Record.key`."""
    closer: tuple[RawPeer, ...] = ()
    providers: tuple[RawPeer, ...] = ()


def encode(message: Message) -> bytes:
    """The protobuf of a message."""
    parts = [protobuf.number(1, message.kind)]
    if message.key:
        parts.append(protobuf.delimited(2, message.key))
    if message.value is not None:
        record = protobuf.delimited(1, message.value_key) + protobuf.delimited(2, message.value)
        parts.append(protobuf.delimited(3, record))
    parts += [protobuf.delimited(8, _encode_peer(peer)) for peer in message.closer]
    parts += [protobuf.delimited(9, _encode_peer(peer)) for peer in message.providers]
    return b"".join(parts)


def decode(body: bytes) -> Message:
    """The message in these bytes. Peers beyond what we take from one answer are left out, as are addresses too long to
    be any. Raises RemoteProtocolError."""
    if len(body) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"a message of {len(body)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    single = protobuf.singles(body, (1, 2, 3), last=_LAST_FIELD, most=MAX_FIELDS)
    kind = protobuf.count(single.get(1, 0))
    if kind not in Kind._value2member_map_:
        raise RemoteProtocolError(f"a message of unknown type {kind}")
    value, value_key = None, b""
    if 3 in single:
        part = protobuf.raw(single[3], MAX_MESSAGE_BYTES)
        record = protobuf.singles(part, (1, 2, 5), last=_LAST_FIELD, most=MAX_PART_FIELDS)
        value_key = protobuf.raw(record.get(1, b""), MAX_WIRE_KEY_BYTES, "record key")
        value = protobuf.raw(record.get(2, b""), MAX_VALUE_BYTES, "record value")
    closer: list[RawPeer] = []
    providers: list[RawPeer] = []
    for field, data in protobuf.fields(body, last=_LAST_FIELD):
        if field in (8, 9):
            peers = closer if field == 8 else providers
            part = protobuf.raw(data, MAX_MESSAGE_BYTES)
            if len(peers) < MAX_CLOSER:
                peers.append(_decode_peer(part))
    key = protobuf.raw(single.get(2, b""), MAX_WIRE_KEY_BYTES, "key")
    return Message(Kind(kind), key, value, value_key, tuple(closer), tuple(providers))


def _encode_peer(peer: RawPeer) -> bytes:
    multihash, addrs = peer
    return protobuf.delimited(1, multihash) + b"".join(protobuf.delimited(2, addr) for addr in addrs)


def _decode_peer(data: bytes) -> RawPeer:
    single = protobuf.singles(data, (1, 3), last=3, most=MAX_PART_FIELDS)
    multihash = protobuf.raw(single.get(1, b""), MAX_PEER_ID_BYTES, "peer id")
    addrs = [protobuf.raw(value, MAX_MESSAGE_BYTES) for field, value in protobuf.fields(data, last=3) if field == 2]
    return multihash, tuple(addr for addr in addrs if 0 < len(addr) <= MAX_ADDR_BYTES)[:MAX_ADDRS]


# --- our records in it ------------------------------------------------------------------------------------------------


def record_key(key: bytes) -> bytes:
    """Our key for one of theirs. Raises RemoteProtocolError for one that is not `/<namespace>/<rest>`."""
    if not key.startswith(b"/") or len(key) < 2:
        raise RemoteProtocolError(f"the key {key[:40]!r} is not /<namespace>/<rest>")
    return key[1:]


def pack_records(records: Sequence[Record], *, max_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """The value of a key: the record itself where there is one without subkey, else a container of them all. Those that
    do not fit into `max_bytes` are left out, the last in (owner, subkey) first."""
    if len(records) == 1 and not records[0].subkey:
        return records[0].to_bytes()
    raws: list[bytes] = []
    room = max_bytes - 64
    for record in sorted(records, key=lambda record: (record.owner, record.subkey)):
        raw = record.to_bytes()
        room -= len(raw) + 5
        if room < 0:
            break
        raws.append(raw)
    packed = msgpack.packb([_CONTAINER, raws], use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def unpack_records(value: bytes) -> tuple[Record, ...]:
    """The inverse, without any check of signatures. Raises RemoteProtocolError, also where a record is said twice or
    out of order: what holds more records is preferred (`select`), so none may count twice."""
    if not is_container(value):
        return (Record.from_bytes(value),)
    try:
        fields = msgpack.unpackb(value, use_list=True, strict_map_key=True, max_bin_len=MAX_RECORD_BYTES)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("a container of records that is not msgpack") from error
    if not (isinstance(fields, list) and len(fields) == 2 and isinstance(fields[1], list)):
        raise RemoteProtocolError("a container of records with wrong fields")
    if not all(type(raw) is bytes for raw in fields[1]):
        raise RemoteProtocolError("a container that holds something else than records")
    records = tuple(Record.from_bytes(raw) for raw in fields[1])
    places = [(record.owner, record.subkey) for record in records]
    if any(later <= earlier for earlier, later in pairwise(places)):
        raise RemoteProtocolError("a container whose records are not in order, each once")
    return records


def is_container(value: bytes) -> bool:
    """Whether a value holds several records; such a value cannot be put."""
    return value.startswith(b"\x92" + msgpack.packb(_CONTAINER))


def validate(key: bytes, value: bytes, now: float) -> None:
    """What other libp2p nodes need to carry our records: a validator of keys `/<namespace>/<rest>`, with `now` in unix
    seconds. It checks all that needs no chain: signature, the key it is for, time. Raises RecordRejected."""
    try:
        records = unpack_records(value)
    except RemoteProtocolError as error:
        raise RecordRejected("malformed", str(error)) from error
    if not records:
        raise RecordRejected("malformed", "a container without records")
    for record in records:
        if wire_key(record.key) != key:
            raise RecordRejected("key", f"a record for {record.key!r} under {key!r}")
        if record.is_expired(now):
            raise RecordRejected("expired", f"{now - record.expiry_ms / 1000:.1f} s ago")
        record.check_signature()


def select(values: Iterable[bytes]) -> int:
    """The place of the best of several valid values: that with the newest record, of these the one with most. Among
    equals the last, so that whoever is given a value again takes it as a refresh."""

    def rank(value: bytes) -> tuple[tuple[int, int, bytes], int]:
        records = unpack_records(value)
        return max(record.order for record in records), len(records)

    ranked = [(rank(value), place) for place, value in enumerate(values)]
    return max(ranked)[1]
