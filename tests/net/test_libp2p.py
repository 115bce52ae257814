"""Libp2pNetwork on loopback: keys, addresses, limits, and everything a stranger can throw at its port."""

import os
import socket
import time
from contextlib import suppress

import pytest
import trio
from libp2p.peer.peerinfo import PeerInfo as BareInfo
from multiaddr import Multiaddr

from mesh.errors import ConfigError, DialFailed, ListenFailed, LocalProtocolError, StreamBroken
from mesh.identity import KeyType, PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo

from .nodes import ECHO, SPARE_S, bare, bare_host, echo, network, running, still_serves, until


def endpoint(info: PeerInfo) -> tuple[str, int]:
    return "127.0.0.1", int(info.addrs[0].value_for_protocol("tcp"))


def open_sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


# --- keys and addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", list(KeyType))
async def test_every_key_type_works_as_identity(key_type):
    a, b = Libp2pNetwork(PeerKey.generate(key_type)), network("b")
    async with running(a, b) as (info_a, info_b):
        await a.connect(info_b)
        assert a.connected() == (info_b.peer_id,)
        await until(lambda: b.connected() == (info_a.peer_id,))
        a.serve(ECHO, echo)
        b.learn(info_a)
        stream = await b.open(info_a.peer_id, ECHO)
        assert stream.remote == info_a.peer_id


async def test_port_0_is_reported_as_the_real_port_and_identify_tells_it():
    a, b = network("a"), network("b")
    async with running(a, b) as (info_a, info_b):
        assert int(info_a.addrs[0].value_for_protocol("tcp")) > 0
        assert a.local == info_a == a.known(info_a.peer_id)
        await a.connect(info_b)
        await until(lambda: b.known(info_a.peer_id) == info_a)


async def test_announced_addresses_take_the_place_of_the_real_ones():
    key = PeerKey.dev("a")
    net = Libp2pNetwork(key, Libp2pConfig(announce=(f"/dns4/node.example/tcp/31330/p2p/{key.peer_id}",)))
    async with running(net) as (info,):
        assert info.multiaddrs() == (f"/dns4/node.example/tcp/31330/p2p/{key.peer_id}",)


async def test_a_wildcard_is_announced_as_addresses_one_can_dial():
    a, b = network("a", listen=("/ip4/0.0.0.0/tcp/0",)), network("b", listen=())
    async with running(a, b) as (info_a, info_b):
        assert info_a.addrs
        assert all("0.0.0.0" not in str(address) for address in info_a.addrs)
        assert info_b.addrs == ()
        await b.connect(info_a)


@pytest.mark.parametrize(
    "config",
    [
        {"listen": ("nonsense",)},
        {"listen": ("/ip4/127.0.0.1/udp/1/quic-v1",)},
        {"listen": ("/dns4/example/tcp/1",)},
        {"announce": ("/ip4/1",)},
    ],
)
def test_addresses_that_cannot_be_used_are_refused_by_name(config):
    with pytest.raises(ConfigError, match=next(iter(config))):
        Libp2pNetwork(PeerKey.dev("a"), Libp2pConfig(**config))


async def test_a_port_that_is_taken_is_said_in_one_sentence_and_leaves_no_socket():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = open_sockets()
        net = network("a", listen=("/ip4/127.0.0.1/tcp/0", f"/ip4/127.0.0.1/tcp/{port}"))
        with pytest.raises(ListenFailed, match=rf"cannot listen on /ip4/127\.0\.0\.1/tcp/{port}: another process"):
            await net.run()
        assert open_sockets() == before
    with pytest.raises(ListenFailed, match="not an address of this machine"):
        await network("a", listen=("/ip4/192.0.2.1/tcp/0",)).run()


async def test_it_runs_once_and_a_new_one_takes_the_same_port_at_once():
    first, other = network("a"), network("b")
    async with running(other) as (info_b,):
        async with running(first) as (info,):
            await other.connect(info)
        with pytest.raises(LocalProtocolError):
            await first.run()
        with pytest.raises(DialFailed):
            await first.connect(info_b)
        second = network("a", listen=(str(info.addrs[0]),))
        async with running(second) as (again,):
            assert again == info
            await until(lambda: other.connected() == ())
            stream = await other.open(info.peer_id, ECHO)
            await stream.send_all(b"back")
            assert await stream.receive_some() == b"back"


async def test_it_ends_within_its_bound_and_leaves_neither_task_nor_socket():
    async with running(network("warm up")):
        pass
    await trio.sleep(0.2)
    sockets, tasks = open_sockets(), trio.lowlevel.current_statistics().tasks_living
    hub, others = network("hub"), [network(f"n{i}") for i in range(6)]
    async with trio.open_nursery() as nursery:
        info = await nursery.start(hub.run)
        for net in others:
            await nursery.start(net.run)
            await net.connect(info)
            stream = await net.open(info.peer_id, ECHO)
            await stream.send_all(b"x")
        start = time.perf_counter()
        nursery.cancel_scope.cancel()
    assert time.perf_counter() - start < hub.config.close_timeout_s + SPARE_S
    await until(lambda: open_sockets() == sockets)
    await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)


# --- dialling -------------------------------------------------------------------------------------------------------


async def test_dead_addresses_before_the_good_one_cost_little():
    a, b = network("a"), network("b")
    async with running(a, b) as (_, info):
        dead = tuple(Multiaddr(f"/ip4/127.0.0.1/tcp/{port}") for port in (1, 2, 3))
        await a.connect(PeerInfo(info.peer_id, (*dead, *info.addrs)))
        assert a.known(info.peer_id).addrs[0] == info.addrs[0]


async def test_somebody_else_at_the_address_is_not_the_peer():
    a, b = network("a"), network("b")
    victim = PeerKey.dev("victim").peer_id
    async with running(a, b) as (_, info):
        with pytest.raises(DialFailed, match=str(victim)):
            await a.connect(PeerInfo(victim, info.addrs))
        assert a.known(victim).addrs == ()
        await until(lambda: victim not in a.connected())


async def test_a_listener_that_says_nothing_ends_the_dial_in_time():
    a = network("a", dial_timeout_s=0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with running(a):
            peer = PeerKey.dev("silent").peer_id
            address = Multiaddr(f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}")
            with pytest.raises(DialFailed, match=r"no answer within 0\.3 s"):
                await a.connect(PeerInfo(peer, (address,)))


async def test_a_caller_that_gives_up_does_not_take_the_dial_from_the_others():
    a, b = network("a"), network("b")
    async with running(a, b) as (_, info):
        a.learn(info)
        async with trio.open_nursery() as nursery:

            async def impatient() -> None:
                with trio.move_on_after(0.001):
                    await a.connect(info)

            nursery.start_soon(impatient)
            nursery.start_soon(a.open, info.peer_id, ECHO)
        assert a.connected() == (info.peer_id,)


async def test_no_more_connections_than_allowed_are_dialled():
    a, others = network("a", max_connections=2), [network(f"n{i}") for i in range(3)]
    async with running(a, *others) as (_, *infos):
        for info in infos[:2]:
            await a.connect(info)
        with pytest.raises(DialFailed, match="max_connections"):
            await a.connect(infos[2])
        await a.disconnect(infos[0].peer_id)
        await a.connect(infos[2])


async def test_a_connection_that_died_unnoticed_is_replaced_when_opening():
    a, b = network("a", stream_timeout_s=2), network("b")
    async with running(a, b) as (_, info):
        await a.connect(info)
        muxed = await a._connection(info.peer_id)

        async def broken(_data: bytes) -> None:
            raise OSError("the wire was cut")

        muxed.secured_conn.conn.write_msg = broken
        stream = await a.open(info.peer_id, ECHO)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        assert muxed.is_closed


# --- limits on others -----------------------------------------------------------------------------------------------


async def test_connections_from_one_ip_are_bounded_and_places_come_back():
    server = network("server", max_connections_per_ip=2)
    clients = [network(f"c{i}", dial_timeout_s=2) for i in range(3)]
    async with running(server, *clients) as (info, *_):
        for client in clients[:2]:
            await client.connect(info)
        with pytest.raises(DialFailed):
            await clients[2].connect(info)
        await clients[0].disconnect(info.peer_id)
        await until(lambda: len(server._inbound) == 1)
        await clients[2].connect(info)


async def test_when_full_an_idle_connection_makes_room_and_a_used_one_does_not():
    server = network("server", max_inbound=1, min_idle_s=0)
    first, second, third = (network(f"c{i}", dial_timeout_s=2) for i in range(3))
    async with running(server, first, second, third) as (info, *_):
        await first.connect(info)
        await until(lambda: len(server._inbound) == 1 and next(iter(server._inbound)).idle_since is not None)
        await trio.sleep(0.3)  # identify has come and gone
        await second.connect(info)
        await until(lambda: first.connected() == ())
        used = await second.open(info.peer_id, ECHO)
        await used.send_all(b"x")
        assert await used.receive_some() == b"x"
        with pytest.raises(DialFailed):
            await third.connect(info)
        await used.send_all(b"y")
        assert await used.receive_some() == b"y"


async def test_one_peer_has_few_connections_and_the_newest_stay():
    server = network("server", max_connections_per_peer=2)
    twins = [network("twin") for _ in range(4)]
    async with running(server, *twins) as (info, *_):
        for twin in twins:
            await twin.connect(info)
        await until(lambda: [bool(twin.connected()) for twin in twins] == [False, False, True, True])
        assert server.connected() == (twins[0].local.peer_id,)


async def test_idle_connections_end_and_used_ones_do_not():
    a, b = network("a", idle_timeout_s=0.5), network("b")
    async with running(a, b) as (_, info):
        a.learn(info)
        stream = await a.open(info.peer_id, ECHO)
        await trio.sleep(0.8)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        await stream.aclose()
        await until(lambda: a.connected() == () and b.connected() == ())


async def test_a_stream_the_peer_never_ends_does_not_stay():
    """We end ours, the peer keeps its side open and goes on sending: it is thrown away and then reset."""
    a, b = network("a"), network("b")
    broke = trio.Event()

    async def never_ends(stream):
        with suppress(StreamBroken):
            while True:
                await stream.send_all(b"more and more")
                await trio.sleep(0.001)
        broke.set()

    b.serve("/never-ends", never_ends)
    async with running(a, b) as (_, info):
        a.learn(info)
        stream = await a.open(info.peer_id, "/never-ends")
        await stream.receive_some()
        await stream.aclose()
        await broke.wait()
        muxed = await a._connection(info.peer_id)
        await until(lambda: muxed.stream_count == 0)


# --- strangers at the port ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\xff" * 5000,
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff\xff" + os.urandom(4000),
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\x00\x20" + bytes(32),
        b"\x13/multistream/1.0.0\n" + b"\x03ls\n" * 50,
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x7f",
    ],
    ids=["nothing", "http", "tls", "ff", "long noise", "short noise", "ls", "huge length"],
)
async def test_garbage_at_the_port_ends_that_connection_only(payload):
    net = network("a", handshake_timeout_s=0.4)
    async with running(net) as (info,):
        stream = await trio.open_tcp_stream(*endpoint(info))
        if payload:
            await stream.send_all(payload)
        with trio.fail_after(3), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        await stream.aclose()
        await until(lambda: not net._half_open and not net._inbound_by_ip)
        await still_serves(net)


async def test_a_port_scan_leaves_nothing():
    net = network("a")
    async with running(net) as (info,):
        for _ in range(50):
            stream = await trio.open_tcp_stream(*endpoint(info))
            await stream.aclose()
        await until(lambda: not net._half_open and not net._inbound_by_ip)
        await still_serves(net)


async def test_connections_that_never_finish_their_handshake_give_way_to_those_that_do():
    net = network("a", max_half_open=4, max_half_open_per_ip=100, handshake_timeout_s=10)
    async with running(net) as (info,):
        silent = [await trio.open_tcp_stream(*endpoint(info)) for _ in range(20)]
        await until(lambda: len(net._half_open) == 4)
        await still_serves(net)
        for stream in silent:
            await stream.aclose()


async def test_unfinished_handshakes_from_one_ip_are_few():
    net = network("a", max_half_open_per_ip=2, handshake_timeout_s=0.5)
    async with running(net) as (info,):
        silent = [await trio.open_tcp_stream(*endpoint(info)) for _ in range(5)]
        refused = 0
        for stream in silent[2:]:
            with suppress(trio.BrokenResourceError):
                while data := await stream.receive_some():
                    assert data
            refused += 1
        assert refused == 3
        await until(lambda: not net._half_open)
        await still_serves(net)


async def test_a_connected_peer_that_sends_rubbish_into_the_muxer_is_dropped():
    net, attacker = network("a"), network("attacker")
    async with running(net, attacker) as (info, _):
        for rubbish in (b"\x01" * 12, b"\x00\x00\x00\x00\x00\x00\x00\x02\xff\xff\xff\xff", os.urandom(500)):
            muxed = await attacker._connection(info.peer_id) if attacker.connected() else None
            if muxed is None:
                await attacker.connect(info)
                muxed = await attacker._connection(info.peer_id)
            await muxed.secured_conn.write(rubbish)
            with trio.fail_after(3):
                await muxed.event_closed.wait()
        await still_serves(net)


async def test_ciphertext_that_does_not_decrypt_drops_the_connection():
    net, attacker = network("a"), network("attacker")
    async with running(net, attacker) as (info, _):
        await attacker.connect(info)
        muxed = await attacker._connection(info.peer_id)
        raw = muxed.secured_conn.conn.read_writer
        await raw.write_msg(os.urandom(100))
        with trio.fail_after(3):
            await muxed.event_closed.wait()
        await still_serves(net)


async def test_what_identify_says_is_bounded():
    net = network("a", max_known_addrs=3)
    liar = bare_host(announce_addrs=[Multiaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in range(1, 400)])
    async with running(net) as (info,), bare(liar):
        await liar.connect(BareInfo(bare_id(info), list(info.addrs)))
        await until(lambda: len(net.connected()) == 1)
        peer = net.connected()[0]
        await until(lambda: len(net.known(peer).addrs) == 3)


def bare_id(info: PeerInfo):
    from libp2p.peer.id import ID

    return ID(info.peer_id.multihash)


async def test_a_bare_py_libp2p_host_and_ours_understand_each_other():
    net, host = network("a"), bare_host()

    async def bare_echo(stream):
        while True:
            await stream.write(await stream.read(1000))

    host.set_stream_handler("/bare/echo", bare_echo)
    async with running(net) as (info,), bare(host):
        await host.connect(BareInfo(bare_id(info), list(info.addrs)))
        stream = await host.new_stream(bare_id(info), [ECHO])
        await stream.write(b"from bare")
        assert await stream.read(100) == b"from bare"
        await stream.write(b"z" * 600_000)
        got = 0
        while got < 600_000:
            got += len(await stream.read(65536))
        await stream.close()
        peer = net.connected()[0]
        ours = await net.open(peer, "/bare/echo")
        await ours.send_all(b"from ours")
        assert await ours.receive_some() == b"from ours"
        await ours.reset()
