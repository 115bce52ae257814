"""What a node remembers of where its peers can be dialled: bounded, and proof beats hearsay. No libp2p, no I/O.

Most addresses come from strangers (identify, DHT replies), so each peer keeps few, garbage is dropped, and neither a
flood of peers nor of addresses pushes out an address at which the peer has answered.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from multiaddr.exceptions import Error as MultiaddrError

from mesh.peer import Multiaddr, PeerID, PeerInfo

_IP: Final = {"ip4": 4, "ip6": 6}
_DNS: Final = frozenset({"dns", "dns4", "dns6"})


def tcp_endpoint(address: Multiaddr) -> tuple[str, int] | None:
    """Host and port of `/ip4|ip6|dns…/<host>/tcp/<port>`, or None when it is anything else or cannot be dialled."""
    try:
        parts = list(address.items())
    except (MultiaddrError, ValueError, LookupError, TypeError, EOFError):  # bytes of strangers, parsed only now
        return None
    if len(parts) != 2 or parts[1][0].name != "tcp":
        return None
    kind, host, port = parts[0][0].name, str(parts[0][1] or ""), str(parts[1][1] or "")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    if kind in _IP:
        ip = ipaddress.ip_address(host)
        return None if ip.is_unspecified or ip.is_multicast else (host, int(port))
    return (host, int(port)) if kind in _DNS and 0 < len(host) <= 253 else None


def unreachable(address: Multiaddr) -> str:
    """Why nobody on another machine can dial this address that a node tells others; "" when somebody may."""
    host = next((str(value) for protocol, value in address.items() if protocol.name in _IP), "")
    if host:
        ip = ipaddress.ip_address(host)
        if ip.is_unspecified:
            return "it stands for every interface, and for no place"
        if ip.is_loopback:
            return "it is every machine's own"
    return "" if tcp_endpoint(address) else "it is not of the form /ip4|ip6|dns/<host>/tcp/<port>"


def without_peer(address: Multiaddr) -> Multiaddr:
    """The address less a trailing `/p2p/…`; as it is when it cannot be parsed."""
    try:
        text = str(address)
    except (MultiaddrError, ValueError, LookupError, TypeError, EOFError):
        return address
    head, separator, _ = text.rpartition("/p2p/")
    return Multiaddr(head) if separator and head else address


class Addresses:
    """Addresses by peer, newest first; where a peer last answered comes before all others."""

    def __init__(self, *, max_peers: int, max_addrs: int) -> None:
        self._max_peers = max_peers
        self._max_addrs = max_addrs
        self._heard: dict[PeerID, tuple[Multiaddr, ...]] = {}
        self._proved: dict[PeerID, Multiaddr] = {}

    def learn(self, info: PeerInfo) -> None:
        """Remember; at most `max_addrs` of this call, oldest forgotten first, unusable ones ignored."""
        fresh = _usable(info.addrs, self._max_addrs)
        if not fresh:
            return
        old = self._heard.pop(info.peer_id, ())
        self._heard[info.peer_id] = tuple(dict.fromkeys((*fresh, *old)))[: self._max_addrs]
        while len(self._heard) > self._max_peers:
            del self._heard[next(iter(self._heard))]

    def known(self, peer: PeerID) -> PeerInfo:
        """What is remembered, best first; without addresses when nothing."""
        proved = self._proved.get(peer)
        heard = self._heard.get(peer, ())
        addrs = heard if proved is None else (proved, *(a for a in heard if a != proved))
        return PeerInfo(peer, addrs[: self._max_addrs])

    def proved(self, peer: PeerID, address: Multiaddr) -> None:
        """The peer answered here, with its key."""
        self._proved.pop(peer, None)
        self._proved[peer] = address
        while len(self._proved) > self._max_peers:
            del self._proved[next(iter(self._proved))]

    def proved_address(self, peer: PeerID) -> Multiaddr | None:
        """Where the peer last answered, unless it failed there since."""
        return self._proved.get(peer)

    def failed(self, peer: PeerID, address: Multiaddr) -> None:
        """The peer did not answer here: the address loses its precedence, and is kept behind the others."""
        if self._proved.get(peer) == address:
            del self._proved[peer]
        heard = self._heard.get(peer, ())
        if address in heard:
            self._heard[peer] = (*(a for a in heard if a != address), address)

    def wrong(self, peer: PeerID, address: Multiaddr) -> None:
        """Somebody else answered here: forget the address."""
        self.failed(peer, address)
        rest = tuple(a for a in self._heard.get(peer, ()) if a != address)
        if rest:
            self._heard[peer] = rest
        else:
            self._heard.pop(peer, None)


def _usable(addresses: Iterable[Multiaddr], limit: int) -> list[Multiaddr]:
    usable: list[Multiaddr] = []
    for seen, address in enumerate(addresses):
        if len(usable) == limit or seen == 4 * limit:
            break
        if tcp_endpoint(address) is not None and address not in usable:
            usable.append(address)
    return usable
