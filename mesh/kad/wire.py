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

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RemoteProtocolError
from mesh.kad.record import MAX_KEY_BYTES, MAX_RECORD_BYTES, MAX_SUBKEY_BYTES
from mesh.peer import MAX_PEER_ID_BYTES, Multiaddr, PeerID, PeerInfo

MAX_ADDRS: Final = 8
"""Addresses of one peer."""
MAX_ADDR_BYTES: Final = 256
MAX_CLOSER: Final = 20
"""Peers in one answer."""
MAX_BATCH: Final = 128
"""Records in one store request."""


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
RawPeers = Annotated[tuple[RawPeer, ...], Field(max_length=MAX_CLOSER)]
RawRecord = Annotated[bytes, Field(max_length=MAX_RECORD_BYTES)]
RawKey = Annotated[bytes, Field(min_length=1, max_length=MAX_KEY_BYTES)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PingRequest(_Message):
    """Are you there?"""

    role: Role


class PingReply(_Message):
    """I am."""

    role: Role


class FindRequest(_Message):
    """Whom do you know near `target`, and, with `key`, which records do you hold under it?"""

    role: Role
    addrs: RawAddrs
    """The sender's own, so that it can be asked in turn."""
    target: Annotated[bytes, Field(min_length=32, max_length=32)]
    want: Annotated[int, Field(ge=0, le=MAX_CLOSER)] = MAX_CLOSER
    """How many closer peers: naming them is half the work of an answer."""
    key: RawKey | None = None
    after: (
        tuple[
            Annotated[bytes, Field(max_length=MAX_PEER_ID_BYTES)],
            Annotated[bytes, Field(max_length=MAX_SUBKEY_BYTES)],
        ]
        | None
    ) = None
    """(owner, subkey) of the last record of the page before."""


class FindReply(_Message):
    """`more`: there are records after the last one."""

    role: Role
    closer: RawPeers
    records: Annotated[tuple[RawRecord, ...], Field(max_length=16_384)] = ()
    more: bool = False


class StoreRequest(_Message):
    """Please hold these."""

    role: Role
    addrs: RawAddrs
    records: Annotated[tuple[RawRecord, ...], Field(min_length=1, max_length=MAX_BATCH)]
    want: Annotated[int, Field(ge=0, le=MAX_CLOSER)] = MAX_CLOSER


class StoreReply(_Message):
    """One verdict per record: "" for stored, else the reason of the refusal. `closer` is about the first's
    key."""

    role: Role
    verdicts: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MAX_BATCH)]
    closer: RawPeers


def raw_addrs(addrs: Iterable[Multiaddr]) -> tuple[bytes, ...]:
    """Addresses as they travel: the first few, those too long left out."""
    return _raw_addrs(tuple(addrs))


def raw_peers(peers: Iterable[PeerInfo]) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
    """Peers as they travel."""
    return tuple((info.peer_id.multihash, raw_addrs(info.addrs)) for info in peers)[:MAX_CLOSER]


def parse_addrs(raws: Sequence[bytes], *, ours: Sequence[Multiaddr]) -> tuple[Multiaddr, ...]:
    """Addresses a stranger sent, without those that are garbage or lead nowhere a stranger can be:
    unspecified and multicast, our own, and loopback unless we announce loopback too."""
    return _parse_addrs(tuple(raws[:MAX_ADDRS]), tuple(ours))


def parse_peers(raws: Sequence[tuple[bytes, Sequence[bytes]]], *, local: PeerInfo) -> tuple[PeerInfo, ...]:
    """Peers a stranger sent, each once, ourselves left out. Raises RemoteProtocolError for a peer id that is
    none."""
    found: dict[PeerID, PeerInfo] = {}
    for multihash, addrs in raws[:MAX_CLOSER]:
        peer = _parse_peer(multihash)
        if peer != local.peer_id and peer not in found:
            found[peer] = PeerInfo(peer, parse_addrs(addrs, ours=local.addrs))
    return tuple(found.values())


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
def _parse_addrs(raws: tuple[bytes, ...], ours: tuple[Multiaddr, ...]) -> tuple[Multiaddr, ...]:
    is_local = any(_scope(addr) is _Scope.LOOPBACK for addr in ours)
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
