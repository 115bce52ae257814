"""Each fault of py-libp2p 0.8.1: first the fault, by py-libp2p alone, then the same with mesh.

When a test named `..._is_a_fault` fails after an upgrade, the fault is gone: remove its containment.
"""

import logging
import time

import libp2p.network.swarm
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.exceptions import CryptographyError
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.exceptions import ParseError
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.io.exceptions import IOException
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo as BareInfo
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE, Yamux
from multiaddr import Multiaddr

from mesh.errors import ConfigError, DialFailed, ListenFailed, StreamBroken
from mesh.net import compat
from mesh.peer import PeerID, PeerInfo

from .nodes import ECHO, LOOPBACK, SPARE_S, bare, bare_host, network, running, still_serves, until
from .wire import DATA, SYN, WINDOW, wires

NOT_UTF8 = b"\x13/multistream/1.0.0\n" + b"\x04/\xff\xfe\n"


@pytest.fixture
def unpatched(monkeypatch):
    """Put py-libp2p's own code back."""
    for patch in compat.PATCHES:
        monkeypatch.setattr(patch.target, patch.attribute, patch.original)


@pytest.fixture
def patched(monkeypatch):
    """mesh's code in place, whatever ran before."""
    for patch in compat.PATCHES:
        monkeypatch.setattr(patch.target, patch.attribute, patch.replacement)


def test_every_patch_changes_something_and_applying_twice_is_once(patched):
    compat.apply()
    compat.apply()
    for patch in compat.PATCHES:
        assert getattr(patch.target, patch.attribute) is patch.replacement
        assert patch.original is not patch.replacement
    handlers = logging.getLogger("libp2p").handlers
    compat.apply()
    assert logging.getLogger("libp2p").handlers == handlers


def test_another_version_is_refused():
    with pytest.raises(ConfigError, match=r"libp2p 0\.9\.0 .*pip install libp2p==0\.8\.1"):
        compat.apply(lambda _name: "0.9.0")


# --- B1: a protocol name that is not UTF-8 ends the host -------------------------------------------


async def test_b1_is_a_fault(unpatched):
    victim, attacker = bare_host(), bare_host()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with bare(victim, attacker) as (info, _):
            await attacker.connect(info)
            stream = await attacker.get_network().new_stream(info.peer_id)
            await stream.write(NOT_UTF8)
            await trio.sleep(3)
    assert caught.group_contains(UnicodeDecodeError)


async def test_b1_is_contained():
    victim, attacker = network("victim"), network("attacker")
    async with running(victim, attacker) as (info, _):
        await attacker.connect(info)
        muxed = await attacker._connection(info.peer_id)
        for payload in (NOT_UTF8, b"\xff" * 20, b"\x13/multistream/9.9.9\n", b"\x00", b""):
            stream = await muxed.open_stream()
            await stream.write(payload)
            await stream.close()
        stream = await attacker.open(info.peer_id, ECHO)
        await stream.send_all(b"same connection")
        assert await stream.receive_some() == b"same connection"
        await still_serves(victim)


# --- B2: an exception in a stream handler ends the host --------------------------------------------


async def test_b2_is_a_fault(unpatched):
    victim, client = bare_host(), bare_host()

    async def handler(stream):
        raise RuntimeError("a bug in a handler")

    victim.set_stream_handler("/bug", handler)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with bare(victim, client) as (info, _):
            await client.connect(info)
            await client.new_stream(info.peer_id, ["/bug"])
            await trio.sleep(3)
    assert caught.group_contains(RuntimeError, match="a bug in a handler")


@pytest.mark.parametrize("error", [RuntimeError, EOFError, KeyError, ExceptionGroup("g", [ValueError()])])
async def test_b2_is_contained(error):
    victim, client = network("victim"), network("client")

    async def handler(stream):
        raise error

    victim.serve("/bug", handler)
    async with running(victim, client) as (info, _):
        client.learn(info)
        with pytest.raises(StreamBroken):  # at opening or after
            stream = await client.open(info.peer_id, "/bug")
            await stream.receive_some()
        stream = await client.open(info.peer_id, ECHO)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"


# --- B3: inbound slots are never freed -------------------------------------------------------------


async def test_b3_is_a_fault(unpatched):
    small = ConnectionConfig(max_connections=1, high_watermark=1, low_watermark=0, min_connections=0)
    server, first, second = bare_host(connection_config=small), bare_host(), bare_host()
    async with bare(server, first, second) as (info, *_):
        await first.connect(info)
        await first.disconnect(info.peer_id)
        await until(lambda: not server.get_connected_peers())
        with pytest.raises(SwarmException), trio.fail_after(2):
            await second.connect(info)


async def test_b3_is_contained():
    server, clients = network("server", max_inbound=2), [network(f"c{i}") for i in range(3)]
    async with running(server, *clients) as (info, *_):
        for client in (*clients, *clients):
            await client.connect(info)
            await client.disconnect(info.peer_id)
            await until(lambda: not server._inbound)


# --- B4: every dial takes 250 ms -------------------------------------------------------------------


async def _bare_dial_s() -> float:
    a, b = bare_host(), bare_host()
    async with bare(a, b) as (_, info):
        start = time.perf_counter()
        await a.connect(info)
        return time.perf_counter() - start


async def test_b4_is_a_fault(unpatched):
    assert libp2p.network.swarm._HAPPY_EYEBALLS_DELAY == 0.25
    assert await _bare_dial_s() >= 0.25


async def test_b4_is_contained(patched, monkeypatch):
    assert libp2p.network.swarm._HAPPY_EYEBALLS_DELAY == 0
    await _bare_dial_s()
    # our own dials do not come by it; with it, this one would outlast the test
    monkeypatch.setattr(libp2p.network.swarm, "_HAPPY_EYEBALLS_DELAY", 3600)
    a, b = network("a"), network("b")
    async with running(a, b) as (_, info):
        await a.connect(info)
        assert a.connected() == (info.peer_id,)


# --- B5, B6, B13 to B17: the muxer; contained in mesh.net.yamux, see test_yamux --------------------


def _bare_yamux(capacity: float = 1000) -> tuple[Yamux, Yamux]:
    one, other = wires(capacity)
    return Yamux(one, ID(b"\x00\x01b"), is_initiator=True), Yamux(other, ID(b"\x00\x01a"), is_initiator=False)


async def test_b5_is_a_fault(autojump_clock):
    a, b = _bare_yamux()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        stream = await a.open_stream()
        with pytest.raises(MuxedStreamError, match="5 seconds"):
            await stream.write(b"x" * (DEFAULT_WINDOW_SIZE + 1))
        nursery.cancel_scope.cancel()


async def test_b5_what_fits_into_the_first_window_passes_without_a_reader(autojump_clock):
    a, b = _bare_yamux()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        stream = await a.open_stream()
        await stream.write(b"x" * DEFAULT_WINDOW_SIZE)
        nursery.cancel_scope.cancel()


async def test_b6_is_a_fault(autojump_clock):
    a, b = _bare_yamux()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)

        async def accept():
            while True:
                await b.accept_stream()

        nursery.start_soon(accept)
        for _ in range(256):
            await a.open_stream()
        with trio.move_on_after(3600) as scope:
            await a.open_stream()
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_b6_is_contained():
    a, b = network("a", stream_timeout_s=0.2, muxer={"max_outbound_streams": 2}), network("b")
    async with running(a, b) as (_, info):
        a.learn(info)
        held = [await a.open(info.peer_id, ECHO) for _ in range(2)]
        with pytest.raises(StreamBroken, match=r"within 0\.2 s"):
            await a.open(info.peer_id, ECHO)
        await held[0].aclose()
        await trio.sleep(0.05)
        await a.open(info.peer_id, ECHO)


async def test_b13_is_a_fault(autojump_clock):
    one, peer = wires()
    ours = Yamux(one, ID(b"\x00\x01b"), is_initiator=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.start)
        await peer.send_frame(WINDOW, SYN, 2)
        for _ in range(32):
            await peer.send_frame(DATA, 0, 2, b"x" * 65536)
        await trio.sleep(1)
        assert len(ours.stream_buffers[2]) == 2 * 1024 * 1024 > DEFAULT_WINDOW_SIZE
        assert not ours.is_closed
        nursery.cancel_scope.cancel()


async def test_b14_is_a_fault(autojump_clock):
    a, b = _bare_yamux()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        slow, other = await a.open_stream(), await a.open_stream()
        await trio.sleep(0.1)
        a.secured_conn.gate = trio.Event()
        with trio.move_on_after(0.1):
            await slow.write(b"x")
        a.secured_conn.gate.set()
        await other.write(b"fine")
        await trio.sleep(1)
        assert b.is_closed
        nursery.cancel_scope.cancel()


async def test_b15_is_a_fault(autojump_clock):
    a, b = _bare_yamux(capacity=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        finished = 0

        async def push(one, other):
            nonlocal finished
            for _ in range(3):
                stream = await one.open_stream()
                await other.accept_stream()
                await stream.write(b"x" * 200_000)
            finished += 1

        with trio.move_on_after(600):
            async with trio.open_nursery() as pushers:
                pushers.start_soon(push, a, b)
                pushers.start_soon(push, b, a)
        assert finished < 2
        nursery.cancel_scope.cancel()


async def test_b16_is_a_fault(autojump_clock):
    a, b = _bare_yamux()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        stream = await a.open_stream()
        other = await b.accept_stream()
        await stream.write(b"half an ans")
        assert await other.read(100) == b"half an ans"
        await a.secured_conn.close()
        with pytest.raises(MuxedStreamEOF):
            await other.read(100)
        nursery.cancel_scope.cancel()


async def test_b17_is_a_fault(autojump_clock):
    one, _silent = wires()
    ours = Yamux(one, ID(b"\x00\x01b"), is_initiator=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.start)
        await trio.sleep(3600)
        assert not ours.is_closed
        nursery.cancel_scope.cancel()


# --- B7: one failed dial bars the peer for 60 s ----------------------------------------------------


async def test_b7_is_a_fault(unpatched):
    server, client = bare_host(), bare_host()
    async with bare(server, client) as (info, _):
        with pytest.raises(SwarmException):
            await client.connect(BareInfo(info.peer_id, [Multiaddr("/ip4/127.0.0.1/tcp/9")]))
        with pytest.raises(SwarmException, match="negative cache"):
            await client.connect(info)


async def test_b7_is_contained():
    server, client = network("server"), network("client")
    async with running(server, client) as (info, _):
        with pytest.raises(DialFailed):
            await client.connect(PeerInfo(info.peer_id, (Multiaddr("/ip4/127.0.0.1/tcp/9"),)))
        await client.connect(info)
        # The same for whoever goes through py-libp2p's own dial_peer.
        swarm = client._host.get_network()
        swarm._negative_peer_cache.mark_failed(str(ID(info.peer_id.multihash)))
        assert not swarm._negative_peer_cache.is_blocked(str(ID(info.peer_id.multihash)))


# --- B9: addresses expire after 120 s, and a peer's own words have no bound; B19: our own key is evicted ---


def test_b9_is_a_fault(monkeypatch):
    peer, now = ID(b"\x00\x01a"), time.time()  # noqa: TID251
    store = PeerStore()
    store.add_addrs(peer, [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in range(1, 501)], 120)
    assert len(store.addrs(peer)) == 500
    monkeypatch.setattr(time, "time", lambda: now + 122)
    with pytest.raises(PeerStoreError):
        store.addrs(peer)


def test_b9_is_contained(monkeypatch):
    heard, peer, now = [], ID(b"\x00\x01a"), time.time()  # noqa: TID251
    store = compat.AddressBook(
        lambda _peer, addrs: heard.append(addrs), max_addrs=8, max_peers=4, own=create_new_key_pair()
    )
    store.add_addrs(peer, [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in range(1, 501)], 120)
    store.add_protocols(peer, ["/p"] * 1000 + ["/" + "x" * 1000])
    monkeypatch.setattr(time, "time", lambda: now + 1_000_000)
    assert len(store.addrs(peer)) == len(heard[0]) == 8
    assert len(store.get_protocols(peer)) == 64


def _own_key_survives(store: PeerStore, own) -> bool:
    me = ID.from_pubkey(own.public_key)
    store.add_key_pair(me, own)
    for number in range(10):
        store.add_addrs(ID(bytes((0, 1, number))), [Multiaddr("/ip4/10.0.0.1/tcp/1")], 0)
    try:
        return store.privkey(me) == own.private_key
    except PeerStoreError:
        return False


def test_b19_is_a_fault():
    assert not _own_key_survives(PeerStore(max_peers=4), create_new_key_pair())


def test_b19_is_contained():
    own = create_new_key_pair()
    store = compat.AddressBook(lambda *_: None, max_addrs=8, max_peers=4, own=own)
    assert _own_key_survives(store, own)
    assert len(store.peer_ids()) == 4


# --- B10: logging ----------------------------------------------------------------------------------


def _log_from_swarm_connection(monkeypatch) -> list[logging.Handler]:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    swarm_connection.logging.debug("anything")
    return root.handlers


def test_b10_is_a_fault(unpatched, monkeypatch):
    assert len(_log_from_swarm_connection(monkeypatch)) == 1  # it installed one, on stderr


def test_b10_is_contained(patched, monkeypatch):
    assert _log_from_swarm_connection(monkeypatch) == []
    compat.apply()
    logger = logging.getLogger("libp2p")
    assert logger.handlers, "without a handler, warnings go to stderr"


# --- B11: the cause of an error is wrapped away ----------------------------------------------------


async def test_b11_is_a_fault_and_is_contained(unpatched):
    client = bare_host()
    async with bare(client):
        with pytest.raises(SwarmException) as caught:
            await client.connect(BareInfo(ID(b"\x00\x01a"), [Multiaddr("/ip4/127.0.0.1/tcp/9")]))
        assert "refused" not in str(caught.value)
        assert "refused" in compat.reason(caught.value)
    ours = network("a")
    async with running(ours):
        with pytest.raises(DialFailed, match=r"tcp/9: .*refused"):
            await ours.connect(PeerInfo(PeerID(b"\x00\x01a"), (Multiaddr("/ip4/127.0.0.1/tcp/9"),)))


def test_b11_reason_ends_on_loops_and_empty_errors():
    one, other = ValueError(""), KeyError("what happened")
    one.__cause__, other.__cause__ = other, one
    assert "what happened" in compat.reason(one)
    assert compat.reason(ValueError()) == "ValueError"


# --- B12: a length is believed before any handshake ------------------------------------------------


class _Announces:
    """A stranger that announces a name of 2**40 bytes."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._bytes = iter(b"\x80\x80\x80\x80\x80\x20")

    async def read(self, n: int) -> bytes:
        self.asked.append(n)
        if n > 1:
            raise IOException("end of test")
        return bytes((next(self._bytes),))


async def test_b12_is_a_fault(unpatched):
    stranger = _Announces()
    with pytest.raises((MultiselectCommunicatorError, ParseError)):
        await MultiselectCommunicator(stranger).read()
    assert max(stranger.asked) == 2**40


async def test_b12_is_contained(patched):
    stranger = _Announces()
    with pytest.raises(MultiselectCommunicatorError):
        await MultiselectCommunicator(stranger).read()
    assert max(stranger.asked) == 1


# --- B8: a host that is left keeps its connections; B18: two processes share a port in silence -----


async def test_b8_is_a_fault(unpatched):
    server, client = bare_host(), bare_host()
    async with bare(server) as (info,):
        async with client.run([LOOPBACK]):
            await client.connect(info)
            await until(lambda: len(server.get_connected_peers()) == 1)
        await trio.sleep(0.5)
        assert len(server.get_connected_peers()) == 1
        await client.close()


async def test_b8_is_contained():
    server, client = network("server"), network("client")
    async with running(server) as (info,):
        async with running(client):
            await client.connect(info)
            await until(lambda: len(server.connected()) == 1)
            start = time.perf_counter()
        assert time.perf_counter() - start < client.config.close_timeout_s + SPARE_S
        await until(lambda: server.connected() == ())
        assert not server._inbound
        assert not server._inbound_by_ip


async def test_b18_is_a_fault(unpatched):
    one, other = bare_host(), bare_host()
    async with bare(one) as (info,):
        async with other.run(info.addrs):
            assert [str(a) for a in other.get_transport_addrs()] == [str(a) for a in info.addrs]
            await other.close()


async def test_b18_is_contained():
    one = network("one")
    async with running(one) as (info,):
        port = info.addrs[0].value_for_protocol("tcp")
        with pytest.raises(ListenFailed, match=f"tcp/{port}: another process uses this port"):
            await network("other", listen=(f"/ip4/127.0.0.1/tcp/{port}",)).run()


# --- B20: it dials whom it likes --------------------------------------------------------------------


async def test_b20_is_a_fault(unpatched):
    quiet = ConnectionConfig(low_watermark=0, min_connections=0)
    host, other = bare_host(connection_config=quiet), bare_host()
    async with bare(host, other) as (_, info):
        host.get_peerstore().add_addrs(info.peer_id, info.addrs, 60)
        with trio.move_on_after(3):
            await host.get_network().auto_connector.maybe_connect()
        await until(lambda: info.peer_id in host.get_connected_peers())


async def test_b20_is_contained():
    net, other = network("a"), network("b")
    async with running(net, other) as (_, info):
        net._host.get_peerstore().add_addrs(ID(info.peer_id.multihash), list(info.addrs), 60)
        await net._host.get_network().auto_connector.maybe_connect()
        await trio.sleep(0.1)
        assert net.connected() == ()


# --- B21: an RSA key of a stranger costs minutes; B22: what strangers push is kept -----------------


def rsa_public(bits: int = 2048, exponent: int = 65537) -> bytes:
    """PKIX bytes of a key with these numbers; nobody needs its private half."""
    modulus = (1 << (bits - 1)) | 1
    numbers = rsa.RSAPublicNumbers(exponent, modulus)
    return numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def rsa_private() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())


async def test_b21_is_a_fault(unpatched):
    assert RSAPublicKey.from_bytes(rsa_private())  # a private key, its primes tested


async def test_b21_is_contained(patched):
    assert RSAPublicKey.from_bytes(rsa_public()).to_bytes()
    for refused in (
        rsa_private(),
        b"\x30\x82" + b"\xff" * 60_000,
        rsa_public(bits=1024),
        rsa_public(exponent=(1 << 2000) | 1),
        b"",
    ):
        with pytest.raises(CryptographyError):
            RSAPublicKey.from_bytes(refused)


async def test_b22_is_contained():
    victim, stranger = network("victim"), network("stranger")
    async with running(victim, stranger) as (info, _):
        await stranger.connect(info)
        with pytest.raises(StreamBroken):
            stream = await stranger.open(info.peer_id, str(ID_PUSH))
            await stream.send_all(b"x")
            await stream.receive_some()
        book = victim._host.get_peerstore()
        assert book.consume_peer_record(object(), 1) is False
        assert not book.peer_record_map
