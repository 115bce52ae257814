"""Peers on the local network: what strangers may say there, and two nodes that find each other."""

import contextlib
import random
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from mesh.errors import RemoteProtocolError
from mesh.identity import PeerKey
from mesh.net.mdns import MdnsConfig, Reader, discover, is_local, make_txt, parse_txt
from mesh.peer import PeerInfo

from .nodes import ECHO, network, running

US, THEM, THIRD = (PeerKey.dev(name).peer_id for name in ("us", "them", "third"))
CONFIG = MdnsConfig()
LOCAL = PeerInfo(US, (Multiaddr("/ip4/192.168.1.2/tcp/31330"),))


def txt(*strings: bytes) -> bytes:
    return b"".join(bytes((len(text),)) + text for text in strings)


def dnsaddr(address: str, peer: object = THEM) -> bytes:
    return f"dnsaddr={address}/p2p/{peer}".encode()


def announced(*texts: bytes) -> bytes:
    return txt(*(b"dnsaddr=" + text for text in texts))


def read(data: bytes, local: PeerInfo = LOCAL) -> PeerInfo:
    return parse_txt(data, local=local, config=CONFIG)


def test_what_one_node_says_the_other_reads():
    addrs = tuple(map(Multiaddr, ("/ip4/192.168.1.3/tcp/1", "/ip6/fd00::3/tcp/2", "/ip4/8.8.8.8/tcp/3")))
    assert read(make_txt(PeerInfo(THEM, addrs), CONFIG)) == PeerInfo(THEM, addrs[:2])
    assert make_txt(PeerInfo(THEM, addrs[2:]), CONFIG) == b""


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/ip4/10.1.2.3/tcp/1", True),
        ("/ip4/172.31.0.1/tcp/1", True),
        ("/ip4/169.254.7.7/tcp/1", True),
        ("/ip6/fd12::1/tcp/1", True),
        ("/ip4/127.0.0.1/tcp/22", False),
        ("/ip6/::1/tcp/22", False),
        ("/ip6/::ffff:127.0.0.1/tcp/22", False),
        ("/ip4/172.32.0.1/tcp/1", False),
        ("/ip4/8.8.8.8/tcp/53", False),
        ("/ip6/2001:4860::8888/tcp/53", False),
        ("/ip6/fe80::1/tcp/1", False),
        ("/ip4/0.0.0.0/tcp/1", False),
        ("/ip4/224.0.0.251/tcp/5353", False),
        ("/ip4/10.1.2.3/tcp/0", False),
        ("/ip4/10.1.2.3/udp/1/quic-v1", False),
        ("/dns4/router.local/tcp/80", False),
    ],
)
def test_only_addresses_of_a_local_network_count(address, expected):
    assert is_local(Multiaddr(address), ours=LOCAL.addrs) is expected


def test_loopback_counts_for_a_node_on_loopback_only():
    ours = (Multiaddr("/ip4/127.0.0.1/tcp/1"),)
    assert is_local(Multiaddr("/ip4/127.0.0.1/tcp/2"), ours=ours)
    assert not is_local(Multiaddr("/ip4/127.0.0.1/tcp/2"), ours=LOCAL.addrs)


GOOD = dnsaddr("/ip4/10.0.0.1/tcp/1")
HOSTILE = {
    "nothing": b"",
    "empty string": b"\x00",
    "nothing of ours": txt(b"path=/printer", b"x"),
    "torn": txt(GOOD)[:-1],
    "torn after a good one": txt(GOOD) + b"\xff" + GOOD,
    "too long": txt(*([GOOD] + [b"x" * 255] * 20)),
    "without a peer": txt(b"dnsaddr=/ip4/10.0.0.1/tcp/1"),
    "without an address": txt(f"dnsaddr=/p2p/{THEM}".encode()),
    "another kind of id": txt(dnsaddr("/ip4/10.0.0.1/tcp/1", "x" * 60)),
    "not ascii": txt(b"dnsaddr=/ip4/10.0.0.1\xff/tcp/1/p2p/" + str(THEM).encode()),
    "ourselves": txt(dnsaddr("/ip4/10.0.0.1/tcp/1", US)),
    "two peers": txt(GOOD, dnsaddr("/ip4/10.0.0.1/tcp/1", THIRD)),
    "a place on the internet": txt(dnsaddr("/ip4/93.184.216.34/tcp/80")),
    "our own ports": txt(dnsaddr("/ip4/127.0.0.1/tcp/22")),
    "a relay": txt(dnsaddr(f"/ip4/10.0.0.1/tcp/1/p2p/{THIRD}/p2p-circuit")),
    "a name": txt(dnsaddr("/dns4/victim.example/tcp/80")),
    "port out of range": txt(dnsaddr("/ip4/10.0.0.1/tcp/65536")),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_announcement_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        read(data)


@given(st.binary(max_size=600) | st.lists(st.binary(max_size=200), max_size=4).map(lambda texts: announced(*texts)))
def test_bytes_of_strangers_are_refused_or_bounded(data):
    with contextlib.suppress(RemoteProtocolError):
        assert len(read(data).addrs) <= CONFIG.max_addrs


def test_what_is_unusable_beside_a_good_address_is_left_out_and_addresses_are_bounded():
    mixed = txt(dnsaddr("/ip4/8.8.8.8/tcp/1"), b"dnsaddr=nonsense", b"other=1", GOOD, GOOD)
    assert read(mixed).addrs == (Multiaddr("/ip4/10.0.0.1/tcp/1"),)
    many = txt(*(dnsaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in range(1, 30)))
    assert len(read(many).addrs) == CONFIG.max_addrs


def test_a_flood_is_read_at_its_rate_and_up_to_its_number_of_peers():
    reader = Reader(LOCAL, MdnsConfig(max_per_s=1, max_burst=2, max_peers=2))
    reader.read(txt(GOOD), now=0.0)
    reader.read(txt(GOOD), now=0.0)
    with pytest.raises(RemoteProtocolError, match="more records"):
        reader.read(txt(GOOD), now=0.5)
    reader.read(txt(dnsaddr("/ip4/10.0.0.1/tcp/1", THIRD)), now=1.5)
    fourth = PeerKey.dev("fourth").peer_id
    with pytest.raises(RemoteProtocolError, match="2 peers"):
        reader.read(txt(dnsaddr("/ip4/10.0.0.1/tcp/1", fourth)), now=10.0)
    assert reader.read(txt(GOOD), now=20.0).peer_id == THEM


def no_multicast() -> str:
    """Why a datagram to a group does not come back on the loopback interface; "" when it does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        try:
            sock.bind(("", 0))
            here, group = socket.inet_aton("127.0.0.1"), "224.0.0.251"
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + here)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            sock.sendto(b"x", (group, sock.getsockname()[1]))
            return "" if sock.recv(1) == b"x" else "something else came"
        except OSError as error:
            return str(error)


@pytest.mark.skipif(bool(no_multicast()), reason=f"no multicast on the loopback interface: {no_multicast()}")
async def test_two_nodes_on_loopback_find_each_other_and_a_dial_proves_who_it_is():
    a, b = network("a"), network("b")
    loopback = MdnsConfig(interfaces=("127.0.0.1",))
    async with running(a, b) as (info_a, info_b):
        found_a, found_b = trio.Event(), trio.Event()

        def hear(net, other, event, info):
            net.learn(info)
            if info.peer_id == other.peer_id:
                event.set()

        async with trio.open_nursery() as nursery:

            async def start(net, other, event, seed):
                await nursery.start(
                    lambda task_status: discover(
                        net.local,
                        lambda info: hear(net, other, event, info),
                        rng=random.Random(seed),
                        config=loopback,
                        task_status=task_status,
                    )
                )

            await start(a, info_b, found_b, 1)
            await start(b, info_a, found_a, 2)
            with trio.fail_after(15):
                await found_a.wait()
                await found_b.wait()
            stream = await a.open(info_b.peer_id, ECHO)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            nursery.cancel_scope.cancel()
