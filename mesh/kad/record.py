"""Signed records: what the DHT stores.

A record is (key, subkey, value, expiry, seq, owner, subnet, genesis), signed over all of them by the owner's
peer key. Its slot is (key, owner, subkey): records of different owners never compete. Within a slot the order
is (seq, expiry, digest), so every node that saw the same records keeps the same one. Two records of one slot
and seq with different value digests prove that their owner equivocated.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgpack

from mesh.errors import LocalProtocolError, RecordRejected, RemoteProtocolError
from mesh.identity import MAX_PUBLIC_KEY_BYTES, PeerKey, is_signature
from mesh.peer import PeerID

MAX_KEY_BYTES: Final = 128  # go-libp2p and js-libp2p refuse longer keys
MAX_SUBKEY_BYTES: Final = 128
MAX_VALUE_BYTES: Final = 64 * 1024
MAX_RECORD_BYTES: Final = MAX_VALUE_BYTES + 4096
MAX_SIGNATURE_BYTES: Final = 1024  # RSA 8192
_DOMAIN: Final = "mesh/record/1"
_MAX_U64: Final = 2**64 - 1

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key protobuf, message, signature) → whether it is a signature of that key."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What a record competes for."""

    key: bytes
    owner: PeerID
    subkey: bytes


@dataclass(frozen=True)
class Record:
    """One signed record. `expiry_ms` is in unix milliseconds; a `tombstone` has no value and deletes."""

    key: bytes
    subkey: bytes
    value: bytes
    expiry_ms: int
    seq: int
    subnet_id: int
    genesis: bytes
    public_key_pb: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    tombstone: bool = False

    @functools.cached_property
    def owner(self) -> PeerID:
        """Whose record it is: the id of the signing key."""
        return PeerID.of_public_key(self.public_key_pb)

    @property
    def slot(self) -> Slot:
        """(key, owner, subkey)."""
        return Slot(self.key, self.owner, self.subkey)

    @functools.cached_property
    def digest(self) -> bytes:
        """sha256 of everything signed: names this record wherever records are listed. Signatures are left
        out, so that re-signing changes nothing."""
        return hashlib.sha256(self.signed_bytes()).digest()

    @property
    def order(self) -> tuple[int, int, bytes]:
        """Newer is greater, within one slot."""
        return (self.seq, self.expiry_ms, self.digest)

    def signed_bytes(self) -> bytes:
        """The canonical bytes under the signature."""
        return _signed_bytes(
            self.key, self.subkey, self.value, self.expiry_ms, self.seq, self.subnet_id, self.genesis,
            self.public_key_pb, self.tombstone,
        )  # fmt: skip

    def is_expired(self, now: float) -> bool:
        """`now` in unix seconds."""
        return self.expiry_ms <= now * 1000

    def check_signature(self, verify: Verify = is_signature) -> None:
        """Raises RecordRejected("signature")."""
        try:
            good = verify(self.public_key_pb, self.signed_bytes(), self.signature)
        except RemoteProtocolError as error:
            raise RecordRejected("signature", str(error)) from error
        if not good:
            raise RecordRejected("signature", f"of {self.owner} under key {self.key!r} does not match")

    def to_bytes(self) -> bytes:
        """Wire form; `from_bytes` is its inverse."""
        return _packed(
            [
                1,
                self.key,
                self.subkey,
                self.value,
                self.expiry_ms,
                self.seq,
                self.subnet_id,
                self.genesis,
                self.public_key_pb,
                self.signature,
                self.tombstone,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Parse and bound, without checking the signature. Raises RemoteProtocolError."""
        if len(data) > MAX_RECORD_BYTES:
            raise RemoteProtocolError(f"a record of {len(data)} bytes; at most {MAX_RECORD_BYTES} are accepted")
        try:
            fields = msgpack.unpackb(data, use_list=True, strict_map_key=True)
        except (ValueError, msgpack.UnpackException) as error:
            raise RemoteProtocolError("a record that is not msgpack") from error
        if not (
            isinstance(fields, list)
            and len(fields) == 11
            and [type(f) for f in fields] == [int, bytes, bytes, bytes, int, int, int, bytes, bytes, bytes, bool]
        ):
            raise RemoteProtocolError("a record with missing fields or of wrong types")
        version, key, subkey, value, expiry_ms, seq, subnet_id, genesis, public, signature, tombstone = fields
        if version != 1:
            raise RemoteProtocolError(f"a record of version {version}; this node reads version 1")
        check_sizes(key, subkey, value)
        if not (
            all(0 <= number <= _MAX_U64 for number in (expiry_ms, seq))
            and 0 <= subnet_id < 2**32
            and len(genesis) == 32
            and 4 < len(public) <= MAX_PUBLIC_KEY_BYTES
            and 0 < len(signature) <= MAX_SIGNATURE_BYTES
            and not (tombstone and value)
        ):
            raise RemoteProtocolError("a record with a field out of range")
        record = cls(key, subkey, value, expiry_ms, seq, subnet_id, genesis, public, signature, tombstone)
        if record.to_bytes() != data:
            raise RemoteProtocolError("a record that is not in canonical form")
        return record


def check_sizes(key: bytes, subkey: bytes, value: bytes) -> None:
    """Raises RemoteProtocolError when a part is too long; also used before signing, see `sign_record`."""
    for name, part, limit in (
        ("key", key, MAX_KEY_BYTES),
        ("subkey", subkey, MAX_SUBKEY_BYTES),
        ("value", value, MAX_VALUE_BYTES),
    ):
        if len(part) > limit:
            raise RemoteProtocolError(f"a record {name} of {len(part)} bytes; at most {limit} are accepted")
    if not key:
        raise RemoteProtocolError("a record without a key")


def sign_record(
    identity: PeerKey,
    key: bytes,
    value: bytes,
    *,
    subkey: bytes = b"",
    expiry_ms: int,
    seq: int,
    subnet_id: int,
    genesis: bytes,
    tombstone: bool = False,
) -> Record:
    """A record of ours. Raises LocalProtocolError when a part is out of its bounds or is not bytes."""
    for name, part in (("key", key), ("value", value), ("subkey", subkey)):
        if type(part) is not bytes:
            raise LocalProtocolError(f"a record's {name} is bytes, not {type(part).__name__}: encode it")
    try:
        check_sizes(key, subkey, value)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error
    public = identity.public_key_pb
    message = _signed_bytes(key, subkey, value, expiry_ms, seq, subnet_id, genesis, public, tombstone)
    return Record(key, subkey, value, expiry_ms, seq, subnet_id, genesis, public, identity.sign(message), tombstone)


def is_equivocation(a: Record, b: Record) -> bool:
    """Whether two (signature-checked) records prove that their owner signed two things for one place."""
    return a.slot == b.slot and a.seq == b.seq and (a.value, a.tombstone) != (b.value, b.tombstone)


def _signed_bytes(
    key: bytes, subkey: bytes, value: bytes, expiry_ms: int, seq: int, subnet_id: int, genesis: bytes,
    public_key_pb: bytes, tombstone: bool,
) -> bytes:  # fmt: skip
    return _packed([_DOMAIN, key, subkey, value, expiry_ms, seq, subnet_id, genesis, public_key_pb, tombstone])


def _packed(fields: list[object]) -> bytes:
    packed = msgpack.packb(fields, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed
