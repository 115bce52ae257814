"""Data connections on loopback: they carry bytes both ways, end with what they hang on, and nobody else gets in."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import DialFailed, MeshError, NetworkError, NotAuthorized, RemoteProtocolError, StreamBroken
from mesh.identity import PeerKey
from mesh.net.base import Stream
from mesh.net.data import DATA_PROTOCOL, DataConfig, DataPlane, _receive
from mesh.net.libp2p import Libp2pNetwork
from mesh.net.offer import MAX_OFFER_BYTES, Offer, Refusal, agree, decode, encode
from mesh.net.tls import ALPN, TlsStream, client_context, dial, handshake, new_identity
from mesh.peer import PeerID

from .nodes import network, until

NOW_S = 1_800_000_000.0  # of the certificates of tests; nodes use the real time


class Node:
    """A network, its data connections, and a handler that echoes."""

    def __init__(self, name: str, **limits: object) -> None:
        self.net: Libp2pNetwork = network(name)
        self.data = DataPlane(
            self.net,
            hosts=["127.0.0.1"],
            config=DataConfig(**{"handshake_timeout_s": 0.5, "offer_life_s": 1.0, **limits}),
        )
        self.refused: set[PeerID] = set()
        self.served: list[PeerID] = []
        self.data.serve(self.echo, self.authorize)

    async def authorize(self, peer: PeerID) -> None:
        if peer in self.refused:
            raise NotAuthorized("not-registered", f"{peer.short} is no node here")

    async def echo(self, stream: Stream) -> None:
        self.served.append(stream.remote)
        while data := await stream.receive_some():
            await stream.send_all(data)

    @property
    def id(self) -> PeerID:
        return self.net.local.peer_id

    def is_clean(self) -> bool:
        """Nothing is left of any attempt."""
        data = self.data
        return not (data._waiting or data._claimed or data._unproven or data._offers or data._live)


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """All running; the others know the first. Afterwards no socket is left."""
    before = len(os.listdir("/proc/self/fd"))
    with trio.fail_after(25):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.net.run)
                await nursery.start(node.data.run)
                node.net.learn(nodes[0].net.local)
            yield
            nursery.cancel_scope.cancel()
    # Trio's own (epoll, wake-up sockets) were there before.
    assert len(os.listdir("/proc/self/fd")) <= before
    assert all(node.is_clean() for node in nodes)


async def check(node: Node, asker: Node) -> None:
    """An honest connection works."""
    stream = await asker.data.open(node.id)
    await stream.send_all(b"alive?")
    assert await stream.receive_some() == b"alive?"
    await stream.aclose()
    await until(lambda: not node.data.count(asker.id))


@pytest.mark.parametrize("dialler", ["asker", "asked"])
async def test_bytes_go_both_ways_whoever_dialled(dialler: str) -> None:
    one, two = Node("one"), Node("two")
    async with running(one, two):
        if dialler == "asked":
            one.net.learn(two.net.local)
            await one.net.connect(two.net.local)
        stream = await two.data.open(one.id)
        assert stream.remote == one.id
        blob = bytes(range(256)) * 32 * 1024  # 8 MiB
        back = bytearray()

        async def read() -> None:
            while len(back) < len(blob):
                back.extend(await stream.receive_some(1 << 20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await stream.send_all(memoryview(blob))
        assert back == blob
        assert one.served == [two.id]
        await stream.aclose()
        await until(lambda: one.is_clean() and two.is_clean())


async def test_what_was_sent_arrives_before_the_end() -> None:
    one, two = Node("one"), Node("two")
    got = bytearray()
    ended = trio.Event()

    async def take(stream: Stream) -> None:
        while data := await stream.receive_some():
            got.extend(data)
        ended.set()

    one.data.serve(take, one.authorize)
    async with running(one, two):
        stream = await two.data.open(one.id)
        await stream.send_all(bytes(3 << 20))
        await stream.aclose()
        await ended.wait()
        assert len(got) == 3 << 20
        with pytest.raises(StreamBroken):
            await stream.send_all(b"x")


async def test_a_reader_that_stalls_holds_its_sender_up() -> None:
    one, two = Node("one"), Node("two")

    async def sleep(stream: Stream) -> None:
        await trio.sleep_forever()

    one.data.serve(sleep, one.authorize)
    async with running(one, two):
        stream = await two.data.open(one.id)
        sent = 0
        with trio.move_on_after(1.0):
            while True:
                await stream.send_all(bytes(1 << 20))
                sent += 1
        assert sent < 64  # what the kernel's buffers hold


@pytest.mark.parametrize("which", ["asker", "asked"])
async def test_it_ends_with_the_libp2p_connection(which: str) -> None:
    one, two = Node("one"), Node("two")
    async with running(one, two):
        stream = await two.data.open(one.id)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        node, other = (two, one) if which == "asker" else (one, two)
        await node.net.disconnect(other.id)
        with pytest.raises(StreamBroken):
            while await stream.receive_some():
                pass
            raise StreamBroken("ended in order")
        await until(lambda: one.is_clean() and two.is_clean())


async def test_a_member_that_is_removed_loses_its_connections() -> None:
    one, two, three = Node("one"), Node("two"), Node("three")
    async with running(one, two, three):
        streams = [await two.data.open(one.id), await two.data.open(one.id)]
        kept = await three.data.open(one.id)
        one.refused.add(two.id)
        await one.data.close_peer(two.id)
        for stream in streams:
            with pytest.raises(StreamBroken):
                while await stream.receive_some():
                    pass
                raise StreamBroken("ended in order")
        with pytest.raises(NotAuthorized, match="is no node here") as caught:
            await two.data.open(one.id)
        assert caught.value.reason == "not-registered"
        await kept.send_all(b"still")
        assert await kept.receive_some() == b"still"


async def test_limits_are_told() -> None:
    one, two = Node("one", max_connections=3, max_connections_per_peer=2), Node("two")
    three = Node("three")
    async with running(one, two, three):
        first = await two.data.open(one.id)
        await two.data.open(one.id)
        with pytest.raises(DialFailed, match="2 of them yours"):
            await two.data.open(one.id)
        await three.data.open(one.id)
        with pytest.raises(DialFailed, match="no room"):
            await three.data.open(one.id)
        await first.aclose()
        await until(lambda: one.data.count() == 2)
        await three.data.open(one.id)


async def test_nobody_to_ask() -> None:
    one, two = Node("one"), Node("two")
    with pytest.raises(DialFailed, match="not running"):
        await two.data.open(one.id)
    two.data._hosts = ()
    async with running(one, two):
        one.net.learn(two.net.local)
        await one.net.connect(two.net.local)  # so `two` would have to listen
        with pytest.raises(DialFailed, match="listens for no data connections"):
            await two.data.open(one.id)
        with pytest.raises(DialFailed):
            await two.data.open(PeerKey.dev("nobody").peer_id)


async def test_cancelling_while_it_opens_leaves_nothing() -> None:
    one, two = Node("one"), Node("two")
    async with running(one, two):
        await two.net.connect(one.net.local)
        for wait_s in (0.0, 0.001, 0.003, 0.006, 0.01, 0.02):
            # An attempt that was cancelled may still count over there.
            with trio.move_on_after(wait_s), suppress(DialFailed):
                await two.data.open(one.id)
        await two.data.close_peer(one.id)
        await until(lambda: one.is_clean() and two.is_clean())
        await check(one, two)


# --- attackers ----------------------------------------------------------------------------------------------------


class Attacker(Node):
    """Speaks the offer protocol by hand; it dialled the victim, so it dials data connections too."""

    async def offer(self, victim: Node, *, certificate: bytes | None = None) -> tuple[Offer, Offer, object, Stream]:
        """Our offer, theirs, our identity, and the stream they went over."""
        identity = new_identity(self.data._clock.now())
        ours = Offer(certificate or identity.certificate, os.urandom(32), 0)
        stream = await self.net.open(victim.id, DATA_PROTOCOL)
        await stream.send_all(encode(ours))
        theirs = await _receive(stream)
        assert isinstance(theirs, Offer)
        return ours, theirs, identity, stream

    async def connect(
        self,
        victim: Node,
        ours: Offer,
        theirs: Offer,
        identity: object,
        *,
        name: str | None = "",
        hello: bytes = b"",
    ) -> TlsStream:
        """Dial as its offer says, with changes. Raises OSError when the victim breaks it off during the handshake."""
        agreement = agree(self.id, victim.id, ours, theirs, dialler=self.id)
        context = client_context(identity, theirs.certificate)  # type: ignore[arg-type]
        tcp = await dial("127.0.0.1", victim.data.port)
        tls = context.wrap_socket(
            tcp,
            server_hostname=agreement.name if name == "" else name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        try:
            await handshake(tls, lambda: theirs.certificate)
        except BaseException:
            trio.lowlevel.notify_closing(tls)
            tls.close()
            raise
        stream = TlsStream(tls, victim.id)
        await stream.send_all(hello or agreement.hello)
        return stream


async def refused(stream: TlsStream) -> None:
    """The victim ends it without an ack, whatever we ignore."""
    with trio.fail_after(5):
        try:
            assert await stream.receive_some() == b""
            await stream.send_all(b"go on regardless")
            assert await stream.receive_some() == b""
        except StreamBroken:
            pass
    await stream.reset()


@asynccontextmanager
async def scene(**limits: object) -> AsyncIterator[tuple[Node, Attacker]]:
    """A victim that still serves others afterwards, and an attacker."""
    victim, attacker, honest = Node("victim", **limits), Attacker("attacker"), Node("honest")
    async with running(victim, attacker, honest):
        await check(victim, honest)
        served = len(victim.served)
        yield victim, attacker
        await until(victim.is_clean)
        assert victim.served[served:].count(attacker.id) == 0
        await check(victim, honest)


async def test_the_attacker_can_connect_when_it_is_honest() -> None:
    victim, attacker = Node("victim"), Attacker("attacker")
    async with running(victim, attacker):
        ours, theirs, identity, offers = await attacker.offer(victim)
        stream = await attacker.connect(victim, ours, theirs, identity)
        assert len(await stream.receive_some()) == 32
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        await stream.reset()
        await offers.reset()
        await until(victim.is_clean)


async def test_another_certificate_than_the_offered_one() -> None:
    async with scene() as (victim, attacker):
        ours, theirs, _, _ = await attacker.offer(victim)
        other = new_identity(attacker.data._clock.now())
        # In TLS 1.3 the client's handshake ends before the server has looked at its certificate.
        await refused(await attacker.connect(victim, ours, theirs, other))


async def test_a_certificate_of_a_third_party_without_its_key() -> None:
    async with scene() as (victim, attacker):
        third = new_identity(attacker.data._clock.now()).certificate
        ours, theirs, identity, _ = await attacker.offer(victim, certificate=third)
        await refused(await attacker.connect(victim, ours, theirs, identity))


async def test_a_server_with_another_certificate_is_not_trusted() -> None:
    """The victim dials here: whoever took over the port of its peer has not the key."""
    victim, attacker = Node("victim"), Node("attacker")
    async with running(attacker, victim):
        other = new_identity(attacker.data._clock.now())
        real = attacker.data._expect

        def wrong(peer: PeerID, ip: str, identity: object, theirs: Offer, agreement: object) -> object:
            return real(peer, ip, other, theirs, agreement)  # type: ignore[arg-type]

        attacker.data._expect = wrong  # type: ignore[method-assign, assignment]
        with pytest.raises(DialFailed, match="certificate"):
            await victim.data.open(attacker.id)
        await until(lambda: victim.is_clean() and attacker.is_clean())


async def test_an_offer_works_once() -> None:
    victim, attacker = Node("victim"), Attacker("attacker")
    async with running(victim, attacker):
        ours, theirs, identity, offers = await attacker.offer(victim)
        stream = await attacker.connect(victim, ours, theirs, identity)
        assert len(await stream.receive_some()) == 32
        with pytest.raises(OSError):
            await attacker.connect(victim, ours, theirs, identity)
        assert len(victim.served) == 1
        await stream.reset()
        await offers.reset()
        await until(victim.is_clean)
        with pytest.raises(OSError):  # nor after it was over
            await attacker.connect(victim, ours, theirs, identity)


async def test_an_offer_expires() -> None:
    async with scene(offer_life_s=0.2) as (victim, attacker):
        ours, theirs, identity, _ = await attacker.offer(victim)
        await until(victim.is_clean)
        with pytest.raises(OSError):
            await attacker.connect(victim, ours, theirs, identity)


@pytest.mark.parametrize("change", ["ids", "role", "nonce", "label", "garbage"])
async def test_a_hello_that_binds_something_else(change: str) -> None:
    async with scene() as (victim, attacker):
        ours, theirs, identity, _ = await attacker.offer(victim)
        hello = {
            "ids": agree(victim.id, attacker.id, ours, theirs, dialler=attacker.id).hello,
            "role": agree(attacker.id, victim.id, ours, theirs, dialler=victim.id).hello,
            "nonce": agree(attacker.id, victim.id, ours._replace(nonce=bytes(32)), theirs, dialler=attacker.id).hello,
            "label": agree(attacker.id, victim.id, ours, theirs, dialler=attacker.id).ack,
            "garbage": bytes(32),
        }[change]
        await refused(await attacker.connect(victim, ours, theirs, identity, hello=hello))


@pytest.mark.parametrize("name", [None, "example.org", "0" * 56])
async def test_a_dial_without_the_right_name(name: str | None) -> None:
    async with scene() as (victim, attacker):
        ours, theirs, identity, _ = await attacker.offer(victim)
        with pytest.raises(OSError):
            await attacker.connect(victim, ours, theirs, identity, name=name)


async def test_older_tls_is_refused() -> None:
    async with scene() as (victim, attacker):
        ours, theirs, _, _ = await attacker.offer(victim)
        name = agree(attacker.id, victim.id, ours, theirs, dialler=attacker.id).name

        def connect() -> None:
            context = ssl.create_default_context(cadata=theirs.certificate)
            context.check_hostname = False
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols([ALPN])
            with socket.create_connection(("127.0.0.1", victim.data.port), timeout=5) as tcp:
                with pytest.raises(OSError):
                    context.wrap_socket(tcp, server_hostname=name)

        await trio.to_thread.run_sync(connect)


async def test_a_dial_cannot_be_aimed_at_a_third_address() -> None:
    """An offer has a port and no address; the victim dials the IP of the libp2p connection, whatever the port says."""
    victim, attacker = Node("victim"), Attacker("attacker")
    async with running(attacker, victim):
        asked = []
        real = attacker.net._services[DATA_PROTOCOL].handler

        async def lie(stream: Stream) -> None:
            asked.append(await _receive(stream))
            bystander = socket.create_server(("127.0.0.2", 0))
            bystander.setblocking(False)
            try:
                port = bystander.getsockname()[1]
                await stream.send_all(encode(Offer(new_identity(NOW_S).certificate, bytes(32), port)))
                with trio.move_on_after(0.5):
                    await trio.lowlevel.wait_readable(bystander)
                    raise AssertionError("the bystander was dialled")
            finally:
                bystander.close()

        attacker.net._services[DATA_PROTOCOL].handler = lie
        with pytest.raises(DialFailed, match="refused"):
            await victim.data.open(attacker.id)
        attacker.net._services[DATA_PROTOCOL].handler = real
        await check(attacker, victim)


async def test_sockets_that_say_nothing_are_few_and_short_lived() -> None:
    async with scene(max_unproven_per_ip=4, handshake_timeout_s=0.3) as (victim, _):
        sockets = [await dial("127.0.0.1", victim.data.port) for _ in range(40)]
        try:
            await trio.sleep(0.1)
            assert victim.data._unproven.total() <= 4
            await until(lambda: not victim.data._unproven)
        finally:
            for sock in sockets:
                sock.close()


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff", bytes(4096)])
async def test_port_scans_and_garbage(data: bytes) -> None:
    async with scene() as (victim, _):
        for _ in range(20):
            sock = await dial("127.0.0.1", victim.data.port)
            try:
                sock.send(data)
                if data:
                    await trio.lowlevel.wait_readable(sock)
            finally:
                sock.close()


async def test_a_flood_of_offers() -> None:
    async with scene(max_offers=4, max_offers_per_peer=2, offer_life_s=0.4) as (victim, attacker):
        accepted = refusals = 0
        streams: list[Stream] = []
        for _ in range(60):
            stream = await attacker.net.open(victim.id, DATA_PROTOCOL)
            streams.append(stream)
            await stream.send_all(encode(Offer(new_identity(NOW_S).certificate, os.urandom(32), 0)))
            answer = await _receive(stream)
            accepted += isinstance(answer, Offer)
            refusals += isinstance(answer, Refusal)
            assert len(victim.data._waiting) <= 2
        assert accepted <= 6  # two at a time, and the flood may outlast the first ones
        assert refusals >= 54


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff" + bytes(70_000),
        b"\x00\x01\xc1",
        b"\x00\x00",
        encode(Offer(b"not a certificate", bytes(32), 0)),
        encode(Refusal("x", "y")),
        encode(Offer(b"\x30\x82" + bytes(1000), bytes(32), 0)),
        b"\x00",
    ],
)
async def test_offers_that_are_none(data: bytes) -> None:
    async with scene() as (victim, attacker):
        stream = await attacker.net.open(victim.id, DATA_PROTOCOL)
        with pytest.raises(NetworkError):
            await stream.send_all(data)
            while await stream.receive_some():
                pass
            raise StreamBroken("ended in order")


async def test_a_victim_that_asks_a_liar() -> None:
    """What a peer answers to our offer cannot do more than fail it."""
    victim, attacker = Node("victim"), Node("attacker")
    answers = [
        b"",
        b"\xff\xff" + bytes(5000),
        encode(Offer(b"junk", bytes(32), 9)),
        encode(Offer(new_identity(NOW_S).certificate, bytes(32), 1)),
        encode(Refusal("", "\x1b[2J" * 100)),
        encode(Refusal("busy", "no")),
    ]
    async with running(attacker, victim):

        async def lie(stream: Stream) -> None:
            await stream.receive_some()
            await stream.send_all(answer)

        attacker.net._services[DATA_PROTOCOL].handler = lie
        for answer in answers:  # noqa: B007
            with pytest.raises(MeshError) as caught:
                await victim.data.open(attacker.id)
            assert str(caught.value).isprintable()
        await until(victim.is_clean)


# --- offers and sources -------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_random_bytes_are_no_offer(data: bytes) -> None:
    try:
        decode(data)
    except RemoteProtocolError:
        pass


@given(st.binary(min_size=1, max_size=2048), st.binary(min_size=32, max_size=32), st.just(0) | st.integers(1024, 65535))
def test_offers_survive(certificate: bytes, nonce: bytes, port: int) -> None:
    offer = Offer(certificate, nonce, port)
    wire = encode(offer)
    assert len(wire) <= MAX_OFFER_BYTES
    assert decode(wire[2:]) == offer


@pytest.mark.parametrize("port", [1, 22, 80, 1023, 65536, -1])
def test_a_dial_cannot_be_aimed_at_a_system_service(port: int) -> None:
    body = msgpack.packb((1, b"certificate", bytes(32), port))
    with pytest.raises(RemoteProtocolError):
        decode(body)
    with pytest.raises(ValueError):
        DataConfig(port=port)


def test_everything_changes_what_is_agreed() -> None:
    a, b = PeerKey.dev("a").peer_id, PeerKey.dev("b").peer_id
    one, two = Offer(b"one", bytes(32), 0), Offer(b"two", bytes(32), 7)
    base = agree(a, b, one, two, dialler=a)
    others = [
        agree(b, a, one, two, dialler=a),
        agree(a, b, two, one, dialler=a),
        agree(a, b, one, two, dialler=b),
        agree(a, b, one._replace(certificate=b"onet"), two._replace(certificate=b"wo"), dialler=a),
        agree(a, b, one._replace(nonce=b"\1" * 32), two, dialler=a),
        agree(a, b, one, two._replace(port=8), dialler=a),
    ]
    seen = [base, *others]
    assert len({x.name for x in seen}) == len({x.hello for x in seen}) == len({x.ack for x in seen}) == len(seen)
    assert len(base.name) <= 63
    assert len({base.hello, base.ack}) == 2


def test_no_context_is_ever_made_that_accepts_anybody() -> None:
    lax = ["CERT_" + word for word in ("NONE", "OPTIONAL")]
    root = Path(__file__).parents[2]
    sources = [p for folder in ("mesh", "subnets", "benchmarks", "tests") for p in (root / folder).rglob("*.py")]
    assert len(sources) > 100
    for path in sources:
        text = path.read_text()
        assert not any(word in text for word in lax), path
