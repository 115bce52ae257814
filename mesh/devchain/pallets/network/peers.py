"""Peer ids and multiaddrs as the Network pallet takes them, and who holds them.

A peer id is the ASCII of its base58 text (``Qm...`` or ``1...``), 32 to 128 bytes: the raw multihash is
refused. A multiaddr is binary, with the raw multihash inside ``/p2p``. Main, bootnode and client ids of all
nodes of a subnet are pairwise different.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from mesh.devchain.pallet import Context, Dispatch, StorageItem
from mesh.devchain.pallets.network import storage as s

MIN_PEER_ID_BYTES: Final = 32
MAX_PEER_ID_BYTES: Final = 128
_BASE58: Final = frozenset(b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")


class Role(Enum):
    """Which of a node's three peer ids is meant; the names of its errors and its storage item follow."""

    MAIN = ("InvalidPeerId", "PeerIdExist", s.PeerIdSubnetNodeId)
    BOOTNODE = ("InvalidBootnodePeerId", "BootnodePeerIdExist", s.BootnodePeerIdSubnetNodeId)
    CLIENT = ("InvalidClientPeerId", "ClientPeerIdExist", s.ClientPeerIdSubnetNodeId)

    @property
    def invalid(self) -> str:
        """Error: not a peer id."""
        return self.value[0]

    @property
    def taken(self) -> str:
        """Error: another node of the subnet has it."""
        return self.value[1]

    @property
    def index(self) -> StorageItem:
        """Peer id to node id."""
        return self.value[2]


def is_peer_id(peer_id: bytes) -> bool:
    """Whether the bytes are the base58 text of a peer id."""
    return (
        MIN_PEER_ID_BYTES <= len(peer_id) <= MAX_PEER_ID_BYTES
        and (peer_id.startswith(b"Qm") or peer_id.startswith(b"1"))
        and all(byte in _BASE58 for byte in peer_id)
    )


def claim(ctx: Context, subnet_id: int, node_id: int, info: Mapping[str, Any], role: Role) -> None:
    """Give a checked peer id and multiaddr to a node."""
    ctx.put(role.index, subnet_id, info["peer_id"], value=node_id)
    if info["multiaddr"] is not None:
        ctx.put(s.MultiaddrSubnetNodeId, subnet_id, info["multiaddr"], value=node_id)


def release(ctx: Context, subnet_id: int, info: Mapping[str, Any] | None, role: Role) -> None:
    """Make a node's peer id and multiaddr free again."""
    if info is None:
        return
    ctx.remove(role.index, subnet_id, info["peer_id"])
    if info["multiaddr"] is not None:
        ctx.remove(s.MultiaddrSubnetNodeId, subnet_id, info["multiaddr"])


def check(ctx: Context, subnet_id: int, info: Mapping[str, Any], role: Role) -> None:
    """`Dispatch` unless the peer id and multiaddr are well-formed and nobody in the subnet has them.

    Nobody includes the node itself: as in the network, a node cannot set the id it already has.
    """
    peer_id: bytes = info["peer_id"]
    if not is_peer_id(peer_id):
        raise Dispatch(role.invalid)
    if any(ctx.has(each.index, subnet_id, peer_id) for each in Role) or ctx.has(
        s.PeerIdOverwatchNodeId, subnet_id, peer_id
    ):
        raise Dispatch(role.taken)
    if info["multiaddr"] is not None:
        check_multiaddr(info["multiaddr"])
        if ctx.has(s.MultiaddrSubnetNodeId, subnet_id, info["multiaddr"]):
            raise Dispatch("MultiaddrExist")


# Protocol code -> bytes of its value; None: a length comes first. From the multiaddr protocol table.
_FIXED: Final[dict[int, int]] = {
    4: 4,  # ip4
    6: 2,  # tcp
    33: 2,  # dccp
    41: 16,  # ip6
    43: 1,  # ipcidr
    132: 2,  # sctp
    273: 2,  # udp
    275: 0,  # p2p-webrtc-star
    276: 0,  # p2p-webrtc-direct
    277: 0,  # p2p-stardust
    280: 0,  # webrtc-direct
    281: 0,  # webrtc
    290: 0,  # p2p-circuit
    301: 0,  # udt
    302: 0,  # utp
    443: 0,  # https
    444: 12,  # onion
    445: 37,  # onion3
    448: 0,  # tls
    454: 0,  # noise
    460: 0,  # quic
    461: 0,  # quic-v1
    465: 0,  # webtransport
    477: 0,  # ws
    478: 0,  # wss
    480: 0,  # http
}
_PREFIXED: Final[frozenset[int]] = frozenset({42, 53, 54, 55, 56, 400, 421, 446, 447, 449, 466, 481, 777})
_P2P: Final = 421


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned varint of at most 9 bytes and the place after it."""
    value = 0
    for count in range(9):
        if at + count >= len(data):
            raise Dispatch("MultiaddrTruncated")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if not byte & 0x80:
            if byte == 0 and count:
                raise Dispatch("MultiaddrInvalidVarint")
            return value, at + count + 1
    raise Dispatch("MultiaddrInvalidVarint")


def check_multiaddr(data: bytes) -> None:
    """`Dispatch` with the multiaddr error of what is wrong, unless the bytes are a binary multiaddr."""
    at = 0
    if not data:
        raise Dispatch("MultiaddrTruncated")
    while at < len(data):
        code, at = _varint(data, at)
        if code in _FIXED:
            size = _FIXED[code]
        elif code in _PREFIXED:
            size, at = _varint(data, at)
        else:
            raise Dispatch("MultiaddrInvalidProtocol")
        if at + size > len(data):
            raise Dispatch("MultiaddrTruncated")
        if code == _P2P and size < 2 + 32:
            raise Dispatch("MultiaddrInvalidAddress")
        at += size


def check_bootnodes(bootnodes: Mapping[bytes, bytes]) -> None:
    """`Dispatch` unless every peer id and multiaddr of a subnet's bootnode map is well-formed."""
    for peer_id, multiaddr in bootnodes.items():
        if not is_peer_id(peer_id):
            raise Dispatch("InvalidBootnodePeerId")
        try:
            check_multiaddr(multiaddr)
        except Dispatch:
            raise Dispatch("InvalidMultiaddr") from None
