"""Peers whose 8-bit key is their number, so that tables can be laid out by hand."""

from __future__ import annotations

from mesh.kad.key import Key
from mesh.peer import Multiaddr, PeerID, PeerInfo


def peer(number: int) -> PeerID:
    return PeerID(bytes((0, 3, 1, 2, number)))


def place(who: PeerID) -> Key:
    return Key(who.multihash[-1])


def info(number: int, address: str | None = None) -> PeerInfo:
    return PeerInfo(peer(number), () if address is None else (Multiaddr(address),))


def numbers(infos: list[PeerInfo] | tuple[PeerInfo, ...]) -> list[int]:
    return [int(place(i.peer_id)) for i in infos]
