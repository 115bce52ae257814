"""Peer identities and addresses, without loading a libp2p host.

PeerID is the libp2p peer id (specs/peer-ids): the multihash of a protobuf-encoded public key; identity multihash when
the key is at most 42 bytes (Ed25519, secp256k1), sha2-256 otherwise (RSA).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

import base58
from multiaddr import Multiaddr

from mesh.errors import RemoteProtocolError

__all__ = ["MAX_PEER_ID_BYTES", "Multiaddr", "PeerID", "PeerInfo"]

# An identity multihash holds at most 42 bytes of key and 2 of header; sha2-256 gives 34. Nothing longer is a PeerID.
MAX_PEER_ID_BYTES: Final = 44
_IDENTITY: Final = 0x00
_SHA256: Final = 0x12


@dataclass(frozen=True, order=True, slots=True)
class PeerID:
    """A libp2p peer id; ordered and hashed by its multihash bytes, printed in base58."""

    multihash: bytes

    def __post_init__(self) -> None:
        raw = self.multihash
        if not 2 < len(raw) <= MAX_PEER_ID_BYTES or raw[0] not in (_IDENTITY, _SHA256) or raw[1] != len(raw) - 2:
            raise RemoteProtocolError(f"not a peer id: {raw[:8].hex()}… ({len(raw)} bytes)")

    def __hash__(self) -> int:
        return hash(self.multihash)  # bytes remember their hash; tables look peers up millions of times

    @classmethod
    def of_public_key(cls, public_key_pb: bytes) -> PeerID:
        """The id of a libp2p protobuf public key (`PublicKey{Type, Data}`)."""
        if len(public_key_pb) <= 42:
            return cls(bytes((_IDENTITY, len(public_key_pb))) + public_key_pb)
        return cls(bytes((_SHA256, 32)) + hashlib.sha256(public_key_pb).digest())

    @classmethod
    def parse(cls, text: str) -> PeerID:
        """From base58 text (`12D3KooW…`, `Qm…`). Raises RemoteProtocolError."""
        if len(text) > 64:
            raise RemoteProtocolError(f"not a peer id: {text[:16]}… ({len(text)} characters)")
        try:
            return cls(base58.b58decode(text))
        except ValueError as error:
            raise RemoteProtocolError(f"not a peer id: {text!r} is not base58") from error

    def __str__(self) -> str:
        return str(base58.b58encode(self.multihash).decode())

    def __repr__(self) -> str:
        return f"PeerID({self})"

    @property
    def short(self) -> str:
        """The last eight characters: enough for a log line, not for identity."""
        return str(self)[-8:]


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer and the addresses it may be dialled at, best first; addresses carry no `/p2p/` part."""

    peer_id: PeerID
    addrs: tuple[Multiaddr, ...] = field(default=())

    @classmethod
    def parse(cls, text: str) -> PeerInfo:
        """From `/ip4/…/tcp/…/p2p/12D3KooW…`. Raises RemoteProtocolError."""
        address, separator, peer = text.strip().rpartition("/p2p/")
        if not separator:
            raise RemoteProtocolError(f"{text!r} has no /p2p/ part: give the full multiaddr with the peer id")
        try:
            return cls(PeerID.parse(peer), (Multiaddr(address),) if address else ())
        except ValueError as error:
            raise RemoteProtocolError(f"{text!r} is not a multiaddr: {error}") from error

    def __str__(self) -> str:
        """Its multiaddrs, as `connect` and --initial_peers take them; the id alone when there are none."""
        return " ".join(self.multiaddrs()) or str(self.peer_id)

    def multiaddrs(self) -> tuple[str, ...]:
        """The full texts, `/ip4/…/tcp/…/p2p/…`."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self.addrs)
