"""The DHT's messages, and how addresses that strangers send are read. PURE.

They travel as bodies of mesh.rpc. Peers are (multihash, addresses) in bytes; addresses are hostile until
parsed: bounded in number and length, ours left out, loopback believed only where we are on loopback
ourselves.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mesh.errors import RemoteProtocolError
from mesh.kad.equivocation import MAX_PROOF_BYTES
from mesh.kad.key import Key, key_of, key_of_record
from mesh.kad.record import MAX_KEY_BYTES, MAX_RECORD_BYTES, MAX_SUBKEY_BYTES
from mesh.kad.replicas import MAX_OFFER
from mesh.peer import MAX_PEER_ID_BYTES, Multiaddr, PeerID, PeerInfo

MAX_ADDRS: Final = 8
"""Addresses of one peer."""
MAX_ADDR_BYTES: Final = 256
MAX_CLOSER: Final = 20
"""Peers in one answer."""
MAX_BATCH: Final = 128
"""Records in one store request."""
MAX_QUERIES: Final = 64
"""Questions in one find request."""
MAX_NAMED: Final = 512
"""Different peers in all answers of one reply."""
MAX_PROOFS: Final = 4
"""Equivocations in one message."""


class Role(enum.StrEnum):
    """What a node does for others."""

    SERVER = "server"
    """Routes and holds replicas."""
    ROUTING_ONLY = "routing_only"
    """A bootnode: routes, never holds replicas."""
    CLIENT = "client"
    """Asks only; in nobody's table."""


RawAddr = Annotated[bytes, Field(min_length=1, max_length=MAX_ADDR_BYTES)]
RawAddrs = Annotated[tuple[RawAddr, ...], Field(max_length=MAX_ADDRS)]
RawPeer = tuple[Annotated[bytes, Field(max_length=MAX_PEER_ID_BYTES)], RawAddrs]
NamedPeers = Annotated[tuple[RawPeer, ...], Field(max_length=MAX_NAMED)]
RawRecord = Annotated[bytes, Field(max_length=MAX_RECORD_BYTES)]
RawDigest = Annotated[bytes, Field(min_length=32, max_length=32)]
RawProof = Annotated[bytes, Field(max_length=MAX_PROOF_BYTES)]
RawKey = Annotated[bytes, Field(min_length=1, max_length=MAX_KEY_BYTES)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PingRequest(_Message):
    """Are you there?"""

    role: Role


class PingReply(_Message):
    """I am."""

    role: Role


class Query(_Message):
    """One question: whom do you know near `target`; or near a record key, and which records do you hold under
    it; or near any key, and who provides it?"""

    target: Annotated[bytes, Field(min_length=32, max_length=32)] | None = None
    key: RawKey | None = None
    """A record key; its place is the target."""
    provided: RawKey | None = None
    """A provider key, a multihash say; its place is the target."""
    want: Annotated[int, Field(ge=0, le=MAX_CLOSER)] = MAX_CLOSER
    """How many closer peers: naming them is half the work of an answer."""
    after: (
        tuple[
            Annotated[bytes, Field(max_length=MAX_PEER_ID_BYTES)],
            Annotated[bytes, Field(max_length=MAX_SUBKEY_BYTES)],
        ]
        | None
    ) = None
    """(owner, subkey) of the last record of the page before."""

    @model_validator(mode="after")
    def _is_one_question(self) -> Query:
        if [self.target, self.key, self.provided].count(None) != 2:
            raise ValueError("exactly one of target, key and provided")
        return self

    @property
    def place(self) -> Key:
        """Where the peers asked for should be near."""
        if self.target is not None:
            return Key(int.from_bytes(self.target, "big"))
        return key_of_record(self.key) if self.key is not None else key_of(self.provided or b"")


class FindRequest(_Message):
    """Several questions at once; each is charged for."""

    role: Role
    addrs: RawAddrs
    """The sender's own, so that it can be asked in turn."""
    queries: Annotated[tuple[Query, ...], Field(min_length=1, max_length=MAX_QUERIES)]


Indices = Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_NAMED)], ...], Field(max_length=MAX_CLOSER)]
"""Places in a reply's `peers`: answers about near keys name the same peers, which so travel once."""


class Answer(_Message):
    """To one query. `more`: there are records after the last one, or there was no room for any."""

    closer: Indices
    records: Annotated[tuple[RawRecord, ...], Field(max_length=16_384)] = ()
    more: bool = False
    providers: Indices = ()
    proofs: Annotated[tuple[RawProof, ...], Field(max_length=MAX_PROOFS)] = ()
    """Equivocations known under the key."""


class FindReply(_Message):
    """An answer per query."""

    role: Role
    peers: NamedPeers
    answers: Annotated[tuple[Answer, ...], Field(max_length=MAX_QUERIES)]


class StoreRequest(_Message):
    """Please hold these."""

    role: Role
    addrs: RawAddrs
    records: Annotated[tuple[RawRecord, ...], Field(min_length=1, max_length=MAX_BATCH)]
    want: Annotated[int, Field(ge=0, le=MAX_CLOSER)] = MAX_CLOSER


class StoreReply(_Message):
    """One verdict per record: "" for stored, else the reason of the refusal; and, per record, closer peers."""

    role: Role
    verdicts: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MAX_BATCH)]
    peers: NamedPeers
    closer: Annotated[tuple[Indices, ...], Field(max_length=MAX_BATCH)]


class ProvideRequest(_Message):
    """The sender has what these keys name."""

    role: Role
    addrs: RawAddrs
    keys: Annotated[tuple[RawKey, ...], Field(min_length=1, max_length=MAX_QUERIES)]
    want: Annotated[int, Field(ge=0, le=MAX_CLOSER)] = MAX_CLOSER


class ProvideReply(_Message):
    """One verdict per key, as in a StoreReply."""

    role: Role
    verdicts: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MAX_QUERIES)]
    peers: NamedPeers
    closer: Annotated[tuple[Indices, ...], Field(max_length=MAX_QUERIES)]


class OfferRequest(_Message):
    """The sender holds records with these digests that the receiver should hold too; which does it lack?"""

    role: Role
    addrs: RawAddrs
    digests: Annotated[tuple[RawDigest, ...], Field(min_length=1, max_length=MAX_OFFER)]


class OfferReply(_Message):
    """A bit per digest (mesh.kad.replicas.pack_wanted): set for what it lacks."""

    role: Role
    wanted: Annotated[bytes, Field(max_length=MAX_OFFER // 8)]


class ProofRequest(_Message):
    """Equivocations, for who holds records of their keys."""

    role: Role
    proofs: Annotated[tuple[RawProof, ...], Field(min_length=1, max_length=MAX_PROOFS)]


class ProofReply(_Message):
    """How many of them were new here."""

    role: Role
    new: Annotated[int, Field(ge=0, le=MAX_PROOFS)]


class Naming:
    """Peers of a reply under construction, each once, and the indices that answers name them by."""

    def __init__(self) -> None:
        self._index: dict[PeerID, int] = {}
        self._infos: list[PeerInfo] = []

    def indices(self, infos: Iterable[PeerInfo]) -> tuple[int, ...]:
        """Where these peers are; those beyond MAX_NAMED are left out."""
        found: list[int] = []
        for info in infos:
            index = self._index.get(info.peer_id)
            if index is None:
                if len(self._infos) >= MAX_NAMED:
                    continue
                index = self._index[info.peer_id] = len(self._infos)
                self._infos.append(info)
            found.append(index)
        return tuple(found)

    def peers(self) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
        """All of them as they travel."""
        return raw_peers(self._infos)


def named(peers: Sequence[PeerInfo | None], indices: Sequence[int]) -> tuple[PeerInfo, ...]:
    """The peers an answer names, each once. Raises RemoteProtocolError for an index out of range."""
    if indices and max(indices) >= len(peers):
        raise RemoteProtocolError(f"an answer names peer {max(indices)} of {len(peers)}")
    return tuple(info for index in dict.fromkeys(indices) if (info := peers[index]) is not None)


def raw_addrs(addrs: Iterable[Multiaddr]) -> tuple[bytes, ...]:
    """Addresses as they travel: the first few, those too long left out."""
    return _raw_addrs(tuple(addrs))


def raw_peers(peers: Iterable[PeerInfo]) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
    """Peers as they travel."""
    return tuple((info.peer_id.multihash, raw_addrs(info.addrs)) for info in peers)[:MAX_NAMED]


def parse_addrs(
    raws: Sequence[bytes], *, ours: Sequence[Multiaddr], near: Sequence[Multiaddr] | None = None
) -> tuple[Multiaddr, ...]:
    """Addresses a stranger sent, without those that are garbage or lead nowhere a stranger can be:
    unspecified and multicast, our own, and loopback unless there is one in `near`, by default ours: a client
    has none and is near where it dials."""
    is_local = any(_scope(addr) is _Scope.LOOPBACK for addr in (ours if near is None else near))
    return _parse_addrs(tuple(raws[:MAX_ADDRS]), tuple(ours), is_local)


def parse_peers(
    raws: Sequence[tuple[bytes, Sequence[bytes]]], *, local: PeerInfo, near: Sequence[Multiaddr] | None = None
) -> tuple[PeerInfo | None, ...]:
    """Peers a stranger named, in their places; None where it is ourselves or one named before. `near` as for
    parse_addrs. Raises RemoteProtocolError for a peer id that is none."""
    seen = {local.peer_id}
    found: list[PeerInfo | None] = []
    for multihash, addrs in raws[:MAX_NAMED]:
        peer = _parse_peer(multihash)
        found.append(None if peer in seen else PeerInfo(peer, parse_addrs(addrs, ours=local.addrs, near=near)))
        seen.add(peer)
    return tuple(found)


class _Scope(enum.Enum):
    ANYWHERE = enum.auto()
    LOOPBACK = enum.auto()
    NOWHERE = enum.auto()


# Parsing a multiaddr takes some 20 µs and the same few hundred come again in every answer.


@functools.lru_cache(maxsize=4096)
def _parse_peer(multihash: bytes) -> PeerID:
    return PeerID(multihash)


@functools.lru_cache(maxsize=4096)
def _raw_addrs(addrs: tuple[Multiaddr, ...]) -> tuple[bytes, ...]:
    raws = (bytes(addr.to_bytes()) for addr in addrs)
    return tuple(raw for raw in raws if 0 < len(raw) <= MAX_ADDR_BYTES)[:MAX_ADDRS]


@functools.lru_cache(maxsize=4096)
def _parse_addrs(raws: tuple[bytes, ...], ours: tuple[Multiaddr, ...], is_local: bool) -> tuple[Multiaddr, ...]:
    found: list[Multiaddr] = []
    for raw in raws:
        addr = _parse_addr(raw)
        if addr is None or addr in ours or addr in found:
            continue
        scope = _scope(addr)
        if scope is _Scope.NOWHERE or (scope is _Scope.LOOPBACK and not is_local):
            continue
        found.append(addr)
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _parse_addr(raw: bytes) -> Multiaddr | None:
    if len(raw) > MAX_ADDR_BYTES:
        return None
    try:
        addr = Multiaddr(raw)
        text = str(addr)
    except (ValueError, LookupError, TypeError, RecursionError):  # what multiaddr 0.0.x raises on garbage
        return None
    # `/p2p/` would smuggle another identity into the address: who is there, the handshake says. (A relay's
    # own id before p2p-circuit is part of the way.)
    if text.count("/p2p/") > ("/p2p-circuit" in text):
        return None
    return addr if text.count("/") > 2 else None


@functools.lru_cache(maxsize=4096)
def _scope(addr: Multiaddr) -> _Scope:
    kind, _, rest = str(addr).lstrip("/").partition("/")
    if kind not in ("ip4", "ip6"):
        return _Scope.ANYWHERE
    try:
        address = ipaddress.ip_address(rest.partition("/")[0])
    except ValueError:
        return _Scope.NOWHERE
    if address.is_unspecified or address.is_multicast:
        return _Scope.NOWHERE
    return _Scope.LOOPBACK if address.is_loopback else _Scope.ANYWHERE


def parse_peer(multihash: bytes) -> PeerID:
    """A peer id in a message. Raises RemoteProtocolError."""
    if len(multihash) > MAX_PEER_ID_BYTES:
        raise RemoteProtocolError(f"a peer id of {len(multihash)} bytes")
    return PeerID(multihash)
