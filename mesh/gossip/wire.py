"""The bytes of `/meshsub/1.1.0`: the RPC protobuf of libp2p's pubsub and gossipsub specs, read strictly. PURE.

An RPC is length-prefixed (unsigned varint) on the stream. Decoding knows the field numbers of the specs, skips unknown
ones as protobuf asks, and refuses what no honest sender writes: a known field of another wire type, a single field
twice, text that is not UTF-8, more of anything than the bounds below. A message is passed on as it is encoded here,
never as the bytes that came, so unknown fields in it end at the first hop.

Messages follow the policy StrictSign: `from`, `seqno` (8 bytes) and `signature` must be there, and the signature is
over "libp2p-pubsub:" and the message without signature and key. A `seqno` of ours is the time of publishing in
nanoseconds since the unix epoch: it only grows, and gives each message an age without a field that others do not know.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from mesh import protobuf
from mesh.errors import RemoteProtocolError
from mesh.identity import MAX_PUBLIC_KEY_BYTES, PeerKey, is_signature
from mesh.peer import MAX_PEER_ID_BYTES, PeerID
from mesh.protobuf import count, delimited, fields, number, singles, text

_Item = TypeVar("_Item")

PROTOCOL: Final = "/meshsub/1.1.0"

MAX_RPC_BYTES: Final = 1024 * 1024
"""One RPC; go-libp2p-pubsub's default too."""
MAX_TOPIC_BYTES: Final = 128
MAX_ID_BYTES: Final = MAX_PEER_ID_BYTES + 8
"""A message id is `from` followed by `seqno`."""
MAX_SUBSCRIPTIONS: Final = 256
MAX_MESSAGES: Final = 1024
MAX_IDS: Final = 8192
"""Message ids of all IHAVE and IWANT of one RPC."""
MAX_CONTROLS: Final = 256
"""GRAFT, PRUNE and IHAVE entries of one RPC, each."""
MAX_SIGNATURE_BYTES: Final = 1024
SEQNO_BYTES: Final = 8
_SIGNING_PREFIX: Final = b"libp2p-pubsub:"
_LAST_FIELD: Final = 6
"""No message here has a field above it, and none has one of fixed width."""


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A published message as it travels; nothing in it is believed before `is_signed`."""

    source: bytes
    """`from`: the multihash of its publisher's PeerID."""
    data: bytes
    seqno: bytes
    topic: str
    signature: bytes = b""
    key: bytes = b""
    """The publisher's protobuf public key; left out where `source` already holds it."""

    @property
    def id(self) -> bytes:
        """What IHAVE and IWANT call it."""
        return self.source + self.seqno

    @property
    def seq(self) -> int:
        """`seqno` as a number: nanoseconds since the unix epoch."""
        return int.from_bytes(self.seqno, "big")

    @property
    def size(self) -> int:
        """Bytes it takes in an RPC, to within a few."""
        return len(self.data) + len(self.topic) + len(self.source) + len(self.signature) + len(self.key) + 32


@dataclass(frozen=True, slots=True)
class IHave:
    """The sender holds these messages of a topic."""

    topic: str
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Prune:
    """The sender leaves us out of its mesh of a topic; it wants no GRAFT for `backoff_s` (0: not said)."""

    topic: str
    backoff_s: int = 0


@dataclass(frozen=True, slots=True)
class Rpc:
    """One message between neighbours: any mixture of these."""

    subscriptions: tuple[tuple[bool, str], ...] = ()
    """(whether it subscribes, topic)."""
    publish: tuple[RawMessage, ...] = ()
    ihave: tuple[IHave, ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[Prune, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.subscriptions or self.publish or self.ihave or self.iwant or self.graft or self.prune)


# --- signatures -------------------------------------------------------------------------------------------------------


def sign(identity: PeerKey, topic: str, data: bytes, seq: int) -> RawMessage:
    """A message of ours. `seq` must grow with each one."""
    message = RawMessage(identity.peer_id.multihash, data, seq.to_bytes(SEQNO_BYTES, "big"), topic)
    key = b"" if _embedded_key(message.source) else identity.public_key_pb
    return replace(message, signature=identity.sign(_signed_bytes(message)), key=key)


def is_signed(message: RawMessage) -> bool:
    """Whether the owner of `from` signed it: the key is the one `from` names, and the signature is right.

    Raises RemoteProtocolError when `from` or `key` is garbage.
    """
    source = PeerID(message.source)
    key = message.key or _embedded_key(message.source)
    if not key or PeerID.of_public_key(key) != source:
        return False
    return is_signature(key, _signed_bytes(message), message.signature)


def _embedded_key(source: bytes) -> bytes:
    """The public key inside an identity multihash, or b""."""
    return source[2:] if source[:1] == b"\x00" else b""


def _signed_bytes(message: RawMessage) -> bytes:
    return _SIGNING_PREFIX + _encode_message(replace(message, signature=b"", key=b""))


# --- encoding ---------------------------------------------------------------------------------------------------------


def frame(rpc: Rpc) -> bytes:
    """An RPC with its length before it, as it goes on the stream."""
    return protobuf.framed(encode(rpc))


def encode(rpc: Rpc) -> bytes:
    """The RPC protobuf."""
    parts = [delimited(1, number(1, int(on)) + text(2, topic)) for on, topic in rpc.subscriptions]
    parts += [delimited(2, _encode_message(message)) for message in rpc.publish]
    control = [delimited(1, text(1, h.topic) + b"".join(delimited(2, i) for i in h.ids)) for h in rpc.ihave]
    if rpc.iwant:
        control.append(delimited(2, b"".join(delimited(1, i) for i in rpc.iwant)))
    control += [delimited(3, text(1, topic)) for topic in rpc.graft]
    control += [delimited(4, text(1, p.topic) + (number(3, p.backoff_s) if p.backoff_s else b"")) for p in rpc.prune]
    if control:
        parts.append(delimited(3, b"".join(control)))
    return b"".join(parts)


@functools.lru_cache(maxsize=128)  # the same message goes to every neighbour
def _encode_message(message: RawMessage) -> bytes:
    parts = [
        delimited(1, message.source),
        delimited(2, message.data),
        delimited(3, message.seqno),
        text(4, message.topic),
    ]
    if message.signature:
        parts.append(delimited(5, message.signature))
    if message.key:
        parts.append(delimited(6, message.key))
    return b"".join(parts)


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(body: bytes) -> Rpc:
    """The RPC in these bytes. Raises RemoteProtocolError."""
    if len(body) > MAX_RPC_BYTES:
        raise RemoteProtocolError(f"an RPC of {len(body)} bytes; {MAX_RPC_BYTES} are allowed")
    found = _Found()
    for field_, value in fields(body, last=_LAST_FIELD):
        if field_ == 1:
            _add(found.subscriptions, _decode_subscription(_data(value)), MAX_SUBSCRIPTIONS, "subscriptions")
        elif field_ == 2:
            _add(found.publish, _decode_message(_data(value)), MAX_MESSAGES, "messages")
        elif field_ == 3:
            _decode_control(_data(value), found)
    return Rpc(
        tuple(found.subscriptions),
        tuple(found.publish),
        tuple(found.ihave),
        tuple(found.iwant),
        tuple(found.graft),
        tuple(found.prune),
    )


@dataclass(slots=True)
class _Found:
    subscriptions: list[tuple[bool, str]] = field(default_factory=list)
    publish: list[RawMessage] = field(default_factory=list)
    ihave: list[IHave] = field(default_factory=list)
    iwant: list[bytes] = field(default_factory=list)
    graft: list[str] = field(default_factory=list)
    prune: list[Prune] = field(default_factory=list)
    ids: int = 0

    def message_id(self, value: int | bytes) -> bytes:
        self.ids += 1
        if self.ids > MAX_IDS:
            raise RemoteProtocolError(f"more than {MAX_IDS} message ids in one RPC")
        return _data(value, MAX_ID_BYTES, "message id")


def _add(to: list[_Item], item: _Item, limit: int, what: str) -> None:
    if len(to) >= limit:
        raise RemoteProtocolError(f"more than {limit} {what} in one RPC")
    to.append(item)


def _decode_subscription(data: bytes) -> tuple[bool, str]:
    single = singles(data, (1, 2), last=_LAST_FIELD)
    return bool(count(single.get(1, 0))), _topic(single.get(2, b""))


def _decode_message(data: bytes) -> RawMessage:
    single = singles(data, (1, 2, 3, 4, 5, 6), last=_LAST_FIELD)
    return RawMessage(
        _data(single.get(1, b""), MAX_PEER_ID_BYTES, "publisher"),
        _data(single.get(2, b"")),
        _data(single.get(3, b""), SEQNO_BYTES, "seqno"),
        _topic(single.get(4, b"")),
        _data(single.get(5, b""), MAX_SIGNATURE_BYTES, "signature"),
        _data(single.get(6, b""), MAX_PUBLIC_KEY_BYTES, "public key"),
    )


def _decode_control(data: bytes, found: _Found) -> None:
    for field_, value in fields(data, last=_LAST_FIELD):
        if field_ == 1:
            topic, ids = "", []
            for inner, item in fields(_data(value), last=_LAST_FIELD):
                if inner == 1:
                    topic = _topic(item)
                elif inner == 2:
                    ids.append(found.message_id(item))
            _add(found.ihave, IHave(topic, tuple(ids)), MAX_CONTROLS, "IHAVE")
        elif field_ == 2:
            found.iwant += [
                found.message_id(item) for inner, item in fields(_data(value), last=_LAST_FIELD) if inner == 1
            ]
        elif field_ == 3:
            _add(found.graft, _topic(singles(_data(value), (1,), last=_LAST_FIELD).get(1, b"")), MAX_CONTROLS, "GRAFT")
        elif field_ == 4:
            single = singles(_data(value), (1, 3), last=_LAST_FIELD)
            prune = Prune(_topic(single.get(1, b"")), count(single.get(3, 0)))
            _add(found.prune, prune, MAX_CONTROLS, "PRUNE")


def _data(value: int | bytes, limit: int = MAX_RPC_BYTES, what: str = "field") -> bytes:
    return protobuf.raw(value, limit, what)


def _topic(value: int | bytes) -> str:
    try:
        return _data(value, MAX_TOPIC_BYTES, "topic").decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("a topic that is not UTF-8") from error
