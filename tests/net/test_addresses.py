"""The address book: bounded, garbage dropped, proof before hearsay."""

import pytest
from multiaddr import Multiaddr

from mesh.identity import PeerKey
from mesh.net.addresses import Addresses, tcp_endpoint, unreachable, without_peer
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo

PEER = PeerKey.dev("a").peer_id


def at(port: int) -> Multiaddr:
    return Multiaddr(f"/ip4/10.0.0.1/tcp/{port}")


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("/ip4/127.0.0.1/tcp/4001", ("127.0.0.1", 4001)),
        ("/ip6/::1/tcp/4001", ("::1", 4001)),
        ("/dns4/node.example/tcp/4001", ("node.example", 4001)),
        ("/ip4/0.0.0.0/tcp/4001", None),
        ("/ip4/224.0.0.1/tcp/4001", None),
        ("/ip4/10.0.0.1/tcp/0", None),
        ("/ip4/10.0.0.1/udp/4001/quic-v1", None),
        ("/ip4/10.0.0.1/tcp/4001/ws", None),
        (f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}/p2p-circuit", None),
        ("/unix/tmp%2fsocket", None),
    ],
)
def test_only_tcp_addresses_that_can_be_dialled_count(text, endpoint):
    assert tcp_endpoint(Multiaddr(text)) == endpoint


def test_bytes_that_are_no_address_are_no_address():
    for raw in (b"", b"\xff\xff\xff", b"\x04\x7f", b"\x04\x7f\x00\x00\x01\x06"):
        try:
            address = Multiaddr(raw)
        except ValueError:
            continue
        assert tcp_endpoint(address) is None
    assert str(without_peer(Multiaddr(f"/ip4/10.0.0.1/tcp/1/p2p/{PEER}"))) == "/ip4/10.0.0.1/tcp/1"


def test_each_peer_keeps_its_newest():
    book = Addresses(max_peers=10, max_addrs=3)
    book.learn(PeerInfo(PEER, (at(1), at(2))))
    book.learn(PeerInfo(PEER, (at(3), at(2))))
    assert book.known(PEER).addrs == (at(3), at(2), at(1))
    book.learn(PeerInfo(PEER, tuple(map(at, range(10, 1000)))))
    assert book.known(PEER).addrs == (at(10), at(11), at(12))
    book.learn(PeerInfo(PEER, tuple(Multiaddr(f"/ip4/10.0.0.1/udp/{port}") for port in range(1, 100))))
    assert book.known(PEER).addrs == (at(10), at(11), at(12))


def test_where_the_peer_answered_stays_first_whatever_others_say():
    book = Addresses(max_peers=2, max_addrs=3)
    book.proved(PEER, at(1))
    for number in range(10):
        book.learn(PeerInfo(PeerKey.dev(f"flood {number}").peer_id, (at(9),)))
        book.learn(PeerInfo(PEER, (at(100 + number),)))
    assert book.known(PEER).addrs == (at(1), at(109), at(108))
    assert len(book._heard) == 2


def test_an_address_that_failed_goes_behind_and_a_wrong_one_goes():
    book = Addresses(max_peers=2, max_addrs=3)
    book.learn(PeerInfo(PEER, (at(1), at(2), at(3))))
    book.proved(PEER, at(1))
    book.failed(PEER, at(1))
    assert book.known(PEER).addrs == (at(2), at(3), at(1))
    book.wrong(PEER, at(2))
    assert book.known(PEER).addrs == (at(3), at(1))
    book.wrong(PEER, at(3))
    book.wrong(PEER, at(1))
    assert book.known(PEER) == PeerInfo(PEER)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/ip4/0.0.0.0/tcp/31330", "every interface"),
        ("/ip6/::/tcp/31330", "every interface"),
        ("/ip4/127.0.0.1/tcp/31330", "own"),
        ("/ip6/::1/tcp/31330", "own"),
        ("/ip4/10.0.0.1/udp/31330/quic-v1", "form"),
        ("/ip4/10.0.0.1/tcp/0", "form"),
        ("/ip4/10.0.0.1/tcp/31330", ""),
        ("/dns4/node.example/tcp/31330", ""),
    ],
)
def test_an_announced_address_that_leads_nowhere_is_told(address, reason, caplog):
    assert reason in unreachable(Multiaddr(address))
    Libp2pNetwork(PeerKey.dev("a"), Libp2pConfig(announce=(address,)))
    assert ("others cannot reach this node at " + address in caplog.text) == bool(reason)
