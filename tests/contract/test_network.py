"""What every Network guarantees (mesh.net.base), for the real one and the simulated one."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import trio

from mesh.errors import DialFailed, StreamBroken
from mesh.identity import PeerKey
from mesh.net.base import Lifetime, Network, Protection, Stream
from mesh.net.manager import ManagerConfig
from mesh.peer import Multiaddr, PeerInfo

ECHO = "/test/echo/1.0.0"


@dataclass
class Pair:
    a: Network
    b: Network
    stop_b: Callable[[], None]


@pytest.fixture(params=["libp2p", "sim"])
def make(request: pytest.FixtureRequest) -> Callable[..., Network]:
    """Makes nodes by name; `manager` is that of one node (in the simulation, of all)."""
    if request.param == "sim":
        from mesh.testing.network import SimConfig, SimNetwork

        sim = SimNetwork(seed=1, config=SimConfig(drain_s=0.5))

        def simulated(name: str, **limits: ManagerConfig) -> Network:
            sim.config = sim.config.model_copy(update=limits)
            return sim.node(PeerKey.dev(name))

        return simulated
    from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork

    def real(name: str, **limits: ManagerConfig) -> Network:
        config = Libp2pConfig(dial_timeout_s=3, linger_s=0.2, sweep_interval_s=0.1, drain_s=0.5, **limits)
        return Libp2pNetwork(PeerKey.dev(name), config)

    return real


@asynccontextmanager
async def pair(make: Callable[..., Network]) -> AsyncIterator[Pair]:
    a, b = make("a"), make("b")
    stop_b = trio.CancelScope()

    async def run_b(task_status: trio.TaskStatus[PeerInfo]) -> None:
        with stop_b:
            await b.run(task_status=task_status)

    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            await nursery.start(a.run)
            a.learn(await nursery.start(run_b))
            yield Pair(a, b, stop_b.cancel)
            nursery.cancel_scope.cancel()


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def receive_exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some()
        assert more, f"ended after {len(data)} of {size} bytes"
        data += more
    return data


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - networks report connections by state, not by event
            await trio.sleep(0.005)


async def test_both_ends_know_who_the_other_is(make):
    seen = []

    async def handler(stream):
        seen.append(stream.remote)
        await echo(stream)

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        await stream.send_all(b"hello")
        assert await receive_exactly(stream, 5) == b"hello"
        assert stream.remote == net.b.local.peer_id
        assert seen == [net.a.local.peer_id]


async def test_a_close_lets_the_rest_arrive_and_then_the_end(make):
    got = bytearray()
    done = trio.Event()

    async def handler(stream):
        while data := await stream.receive_some(1000):
            assert len(data) <= 1000
            got.extend(data)
        done.set()

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        await stream.send_all(b"x" * 50_000)
        await stream.aclose()
        await stream.aclose()
        await done.wait()
        assert bytes(got) == b"x" * 50_000
        with pytest.raises(StreamBroken):
            await stream.send_all(b"more")


async def test_a_reset_breaks_the_other_side(make):
    broke = trio.Event()

    async def handler(stream):
        try:
            while await stream.receive_some():
                pass
        except StreamBroken:
            broke.set()

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        await stream.send_all(b"x")
        await stream.reset()
        await broke.wait()
        with pytest.raises(StreamBroken):
            await stream.receive_some()


async def test_a_handler_that_raises_ends_its_stream_only(make):
    async def handler(stream):
        if await stream.receive_some() == b"raise":
            raise RuntimeError("a bug in a handler")
        await stream.send_all(b"fine")
        await echo(stream)

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        good = await net.a.open(net.b.local.peer_id, ECHO)
        await good.send_all(b"go")
        assert await receive_exactly(good, 4) == b"fine"
        bad = await net.a.open(net.b.local.peer_id, ECHO)
        await bad.send_all(b"raise")
        with pytest.raises(StreamBroken):
            await bad.receive_some()
        await good.send_all(b"still here")
        assert await receive_exactly(good, 10) == b"still here"
        assert net.b.connected() == (net.a.local.peer_id,)


async def test_more_streams_than_max_streams_are_reset_and_places_come_back(make):
    async def handler(stream):
        await stream.send_all(b"in")
        while await stream.receive_some():
            pass

    async with pair(make) as net:
        net.b.serve(ECHO, handler, max_streams=2)
        peer = net.b.local.peer_id
        held = [await net.a.open(peer, ECHO) for _ in range(2)]
        for stream in held:
            assert await receive_exactly(stream, 2) == b"in"
        with pytest.raises(StreamBroken):
            refused = await net.a.open(peer, ECHO)
            await receive_exactly(refused, 2)
        await held[0].aclose()
        with trio.fail_after(5):
            while True:
                try:
                    stream = await net.a.open(peer, ECHO)
                    assert await receive_exactly(stream, 2) == b"in"
                    break
                except StreamBroken:
                    await trio.sleep(0.01)


async def test_an_unknown_protocol_is_refused(make):
    async with pair(make) as net:
        with pytest.raises(StreamBroken):
            stream = await net.a.open(net.b.local.peer_id, "/nobody/speaks/this")
            await stream.receive_some()
        assert net.a.connected() == (net.b.local.peer_id,)


async def test_an_unknown_peer_and_ourselves_cannot_be_dialled(make):
    async with pair(make) as net:
        with pytest.raises(DialFailed):
            await net.a.open(PeerKey.dev("nobody").peer_id, ECHO)
        with pytest.raises(DialFailed):
            await net.a.connect(PeerInfo(PeerKey.dev("nobody").peer_id, (Multiaddr("/ip4/127.0.0.1/tcp/9"),)))
        with pytest.raises(DialFailed):
            await net.a.open(net.a.local.peer_id, ECHO)


def test_addresses_are_bounded_and_newest_first(make):
    net = make("a")
    peer = PeerKey.dev("b").peer_id
    assert net.known(peer) == PeerInfo(peer)
    addrs = [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in range(4001, 4041)]
    for address in addrs:
        net.learn(PeerInfo(peer, (address,)))
    known = net.known(peer)
    assert known.peer_id == peer
    assert known.addrs == tuple(reversed(addrs))[: len(known.addrs)]
    assert 1 < len(known.addrs) <= 16
    net.learn(PeerInfo(peer, (known.addrs[-1],)))
    assert net.known(peer).addrs == (known.addrs[-1], *known.addrs[:-1])


async def test_connect_and_disconnect_show_on_both_sides(make):
    async with pair(make) as net:
        a, b = net.a.local.peer_id, net.b.local.peer_id
        assert net.a.connected() == net.b.connected() == ()
        await net.a.connect(net.b.local)
        assert net.a.connected() == (b,)
        await until(lambda: net.b.connected() == (a,))
        await net.a.connect(net.b.local)
        await net.a.disconnect(b)
        assert net.a.connected() == ()
        await until(lambda: net.b.connected() == ())
        await net.a.disconnect(b)
        await net.a.connect(net.b.local)
        assert net.a.connected() == (b,)


async def test_two_peers_that_dial_each_other_at_once_both_succeed(make):
    async with pair(make) as net:
        net.b.learn(net.a.local)
        for network in (net.a, net.b):
            network.serve(ECHO, echo)

        async def talk(network: Network, other: Network) -> None:
            stream = await network.open(other.local.peer_id, ECHO)
            await stream.send_all(b"ping")
            assert await receive_exactly(stream, 4) == b"ping"

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(talk, net.a, net.b)
                nursery.start_soon(talk, net.b, net.a)
        assert net.a.connected() == (net.b.local.peer_id,)
        assert net.b.connected() == (net.a.local.peer_id,)


async def test_a_peer_that_stops_is_noticed(make):
    async with pair(make) as net:
        net.b.serve(ECHO, echo)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        await stream.send_all(b"x")
        assert await receive_exactly(stream, 1) == b"x"
        net.stop_b()
        with pytest.raises(StreamBroken):
            await stream.receive_some()
        await until(lambda: net.a.connected() == ())
        with pytest.raises((DialFailed, StreamBroken)):
            await net.a.open(net.b.local.peer_id, ECHO)


async def test_more_than_a_window_arrives_whole_at_a_slow_reader(make):
    data = bytes(range(256)) * 4096  # 1 MiB
    got = bytearray()
    done = trio.Event()

    async def handler(stream):
        while more := await stream.receive_some(17_000):
            got.extend(more)
            await trio.lowlevel.checkpoint()
        done.set()

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        await stream.send_all(memoryview(data))
        await stream.aclose()
        await done.wait()
        assert got == data


async def test_a_sender_waits_for_a_reader_that_does_not_read(make):
    go = trio.Event()
    got = bytearray()
    done = trio.Event()

    async def handler(stream):
        await go.wait()
        while more := await stream.receive_some():
            got.extend(more)
        done.set()

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        sent = trio.Event()

        async def send() -> None:
            await stream.send_all(b"x" * 2_000_000)
            sent.set()
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(0.1)
            assert not sent.is_set()
            go.set()
        await done.wait()
        assert len(got) == 2_000_000


async def test_a_cancelled_receive_loses_nothing(make):
    async with pair(make) as net:
        net.b.serve(ECHO, echo)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        with trio.move_on_after(0.02) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        await stream.send_all(b"later")
        assert await receive_exactly(stream, 5) == b"later"


async def test_a_cancelled_sender_harms_its_own_stream_only(make):
    async def handler(stream):
        if await stream.receive_some(1) == b"r":  # this one stops reading
            await trio.sleep_forever()
        await echo(stream)

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        stuck = await net.a.open(net.b.local.peer_id, ECHO)
        good = await net.a.open(net.b.local.peer_id, ECHO)
        with trio.move_on_after(0.05) as scope:
            await stuck.send_all(b"r" * 4_000_000)
        assert scope.cancelled_caught
        await stuck.reset()
        await good.send_all(b"ee")
        assert await receive_exactly(good, 1) == b"e"


# --- economy and the end --------------------------------------------------------------------------------------------


@asynccontextmanager
async def star(make: Callable[..., Network], rays: int) -> AsyncIterator[tuple[Network, list[PeerInfo]]]:
    """A hub with a high water mark of 3 and a low one of 1, and peers that it knows."""
    hub = make("hub", manager=ManagerConfig(high_water=3, low_water=1, grace_s=0))
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            await nursery.start(hub.run)
            infos = [await nursery.start(make(f"ray{i}").run) for i in range(rays)]
            for info in infos:
                hub.learn(info)
            yield hub, infos
            nursery.cancel_scope.cancel()


async def test_beyond_high_water_the_unprotected_connections_go(make):
    async with star(make, 4) as (hub, infos):
        peers = [info.peer_id for info in infos]
        hub.protect(peers[0], "test")
        for info in infos[:3]:
            await hub.connect(info)
        await trio.sleep(0.3)
        assert set(hub.connected()) == set(peers[:3])
        hub.protect(peers[3], "test", keep=Protection.RATHER)
        with suppress(DialFailed):
            await hub.connect(infos[3])
        await until(lambda: hub.connected() == (peers[0],))


async def test_what_was_unprotected_goes_like_any_other(make):
    async with star(make, 4) as (hub, infos):
        for info in infos:
            hub.protect(info.peer_id, "test")
            hub.protect(info.peer_id, "other")
        for info in infos:
            await hub.connect(info)
        await trio.sleep(0.3)
        assert len(hub.connected()) == 4
        for info in infos:
            hub.unprotect(info.peer_id, "test")
            hub.unprotect(info.peer_id, "never set")
        for info in infos[1:]:
            hub.unprotect(info.peer_id, "other")
        await hub.disconnect(infos[3].peer_id)
        with suppress(DialFailed):
            await hub.connect(infos[3])
        await until(lambda: hub.connected() == (infos[0].peer_id,))


async def test_a_drain_waits_for_what_runs_and_refuses_what_comes(make):
    go = trio.Event()

    async def handler(stream):
        await stream.receive_some()
        await go.wait()
        await stream.send_all(b"done")

    async with pair(make) as net:
        net.b.serve(ECHO, handler)
        peer = net.b.local.peer_id
        running = await net.a.open(peer, ECHO)
        await running.send_all(b"x")
        await trio.sleep(0.1)
        assert not net.b.draining.is_set()
        drained = trio.Event()

        async def drain() -> None:
            await net.b.drain()
            drained.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await net.b.draining.wait()
            with pytest.raises((StreamBroken, DialFailed)):
                refused = await net.a.open(peer, ECHO)
                await receive_exactly(refused, 1)
            assert not drained.is_set()
            go.set()
            assert await receive_exactly(running, 4) == b"done"
        assert drained.is_set()


async def test_a_draining_node_takes_no_connections_and_still_opens_its_own(make):
    async with pair(make) as net:
        net.a.serve(ECHO, echo)
        net.b.learn(net.a.local)
        await net.b.drain()
        await trio.sleep(0.05)
        with pytest.raises(DialFailed):
            await net.a.connect(net.b.local)
        stream = await net.b.open(net.a.local.peer_id, ECHO)
        await stream.send_all(b"x")
        assert await receive_exactly(stream, 1) == b"x"


async def test_a_drain_waits_for_no_idle_channel_but_for_what_is_held(make):
    async with pair(make) as net:
        net.b.serve(ECHO, echo, lifetime=Lifetime.CHANNEL)
        stream = await net.a.open(net.b.local.peer_id, ECHO)
        await stream.send_all(b"x")
        assert await receive_exactly(stream, 1) == b"x"
        with trio.fail_after(0.2), net.a.hold():  # another node's
            await net.b.drain()
        with trio.move_on_after(0.05) as scope, net.b.hold():
            await net.b.drain()
        assert scope.cancelled_caught


async def test_a_drain_ends_in_time_whoever_does_not(make):
    async with pair(make) as net:
        with net.b.hold(), trio.fail_after(5):
            await net.b.drain()
