"""SimNetwork: what it simulates beyond the contract, and that a run can be repeated exactly."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import trio
from trio.testing import MockClock

from mesh.errors import DialFailed, LocalProtocolError, NetworkError, StreamBroken
from mesh.identity import PeerKey
from mesh.net.base import Stream
from mesh.peer import PeerInfo
from mesh.testing.network import SimConfig, SimNetwork, SimNode
from mesh.testing.simulation import run_sim

ECHO = "/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def start(nursery: trio.Nursery, sim: SimNetwork, *names: str) -> list[SimNode]:
    nodes = [sim.node(PeerKey.dev(name)) for name in names]
    for node in nodes:
        node.serve(ECHO, echo)
        await nursery.start(node.run)
        for other in nodes:
            node.learn(other.local)
    return nodes


async def test_latency_is_the_time_of_flight(autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.25)
    async with trio.open_nursery() as nursery:
        a, b = await start(nursery, sim, "a", "b")
        begin = trio.current_time()
        stream = await a.open(b.local.peer_id, ECHO)
        assert trio.current_time() - begin == pytest.approx(1.0)  # dial and protocol: a round trip each
        await stream.send_all(b"ping")
        assert trio.current_time() - begin == pytest.approx(1.0)
        assert await stream.receive_some() == b"ping"
        assert trio.current_time() - begin == pytest.approx(1.5)
        nursery.cancel_scope.cancel()


async def test_the_sender_waits_at_a_full_window(autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.01, config=SimConfig(window_bytes=1000))
    async with trio.open_nursery() as nursery:
        a, b = await start(nursery, sim, "a", "b")
        ends: list[Stream] = []

        async def hold(stream: Stream) -> None:
            ends.append(stream)
            await trio.sleep_forever()

        b.serve("/hold/1", hold)
        stream = await a.open(b.local.peer_id, "/hold/1")
        await stream.send_all(bytes(1000))
        with trio.move_on_after(100) as scope:
            await stream.send_all(b"x")
        assert scope.cancelled_caught
        assert len(await ends[0].receive_some(600)) == 600
        await stream.send_all(bytes(600))
        nursery.cancel_scope.cancel()


async def test_partition_heal_kill_revive(autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.01)
    async with trio.open_nursery() as nursery:
        a, b, c = await start(nursery, sim, "a", "b", "c")
        ab, ac = await a.open(b.local.peer_id, ECHO), await a.open(c.local.peer_id, ECHO)
        sim.partition([[a.local.peer_id, b.local.peer_id]])
        with pytest.raises(StreamBroken, match="partition"):
            await ac.receive_some()
        assert a.connected() == (b.local.peer_id,)
        begin = trio.current_time()
        with pytest.raises(DialFailed, match="did not answer within"):
            await a.open(c.local.peer_id, ECHO)
        assert trio.current_time() - begin == pytest.approx(5.0)
        await ab.send_all(b"still")
        assert await ab.receive_some() == b"still"
        sim.heal()
        await a.open(c.local.peer_id, ECHO)

        sim.kill(b.local.peer_id)
        with pytest.raises(StreamBroken, match="crashed"):
            await ab.receive_some()
        with pytest.raises(DialFailed):
            await a.open(b.local.peer_id, ECHO)
        with pytest.raises(DialFailed):
            await b.open(a.local.peer_id, ECHO)
        sim.revive(b.local.peer_id)
        await b.open(a.local.peer_id, ECHO)
        nursery.cancel_scope.cancel()


async def test_a_dial_needs_the_right_address(autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1)
    async with trio.open_nursery() as nursery:
        a, b, c = await start(nursery, sim, "a", "b", "c")
        hidden = sim.node(PeerKey.dev("hidden"), addrs=())
        await nursery.start(hidden.run)
        with pytest.raises(DialFailed, match="no address"):
            await a.open(hidden.local.peer_id, ECHO)
        stranger = PeerKey.dev("not on this network").peer_id
        with pytest.raises(DialFailed):
            await a.connect(PeerInfo(stranger, b.local.addrs))  # another peer answers there
        with pytest.raises(DialFailed):
            await a.open(a.local.peer_id, ECHO)
        hidden.learn(c.local)
        await hidden.connect(c.local)
        assert hidden.local.peer_id in c.connected()
        nursery.cancel_scope.cancel()


async def test_what_a_node_remembers_is_bounded(autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, config=SimConfig(max_known_peers=2, max_known_addrs=1))
    nodes = [sim.node(PeerKey.dev(name)) for name in "abcd"]
    for other in nodes[1:]:
        nodes[0].learn(other.local)
    assert nodes[0].known(nodes[1].local.peer_id).addrs == ()
    assert nodes[0].known(nodes[3].local.peer_id) == nodes[3].local
    nodes[0].learn(PeerInfo(nodes[3].local.peer_id, nodes[2].local.addrs))
    assert nodes[0].known(nodes[3].local.peer_id).addrs == nodes[2].local.addrs
    assert len({str(a).rsplit(".", 2)[0] for n in nodes for a in n.local.addrs}) == 4
    with pytest.raises(LocalProtocolError):
        sim.node(PeerKey.dev("a"))


def chatter(seed: int, *, loss: float = 0.2) -> tuple[str, int, int]:
    """A dozen nodes call each other at random while the network breaks and heals: digest, events, failures."""
    sim = SimNetwork(seed=seed, latency_s=0.02, jitter_s=0.05, loss=loss)
    failures = 0

    async def talk(node: SimNode, others: list[SimNode], rng: random.Random) -> None:
        nonlocal failures
        for _ in range(10):
            await trio.sleep(rng.random())
            data = rng.randbytes(rng.randrange(1, 100_000))
            try:
                stream = await node.open(rng.choice(others).local.peer_id, ECHO)
                await stream.send_all(data)
                got = b""
                while len(got) < len(data):
                    piece = await stream.receive_some()
                    assert piece
                    got += piece
                assert got == data
                await stream.aclose()
            except NetworkError:
                failures += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nodes = await start(nursery, sim, *(f"n{i}" for i in range(12)))
            async with trio.open_nursery() as talkers:
                for i, node in enumerate(nodes):
                    others = [n for n in nodes if n is not node]
                    talkers.start_soon(talk, node, others, random.Random(seed * 100 + i))
                await trio.sleep(1.5)
                sim.partition([[n.local.peer_id for n in nodes[:5]]])
                await trio.sleep(1)
                sim.heal()
                sim.kill(nodes[3].local.peer_id)
            nursery.cancel_scope.cancel()

    run_sim(main, seed)
    return sim.digest(), sim.events, failures


def test_same_seed_same_trace() -> None:
    first = chatter(7)
    assert chatter(7) == first
    assert chatter(8)[0] != first[0]
    assert first[2] > 5


def test_loss_is_what_breaks_things() -> None:
    assert chatter(7, loss=0.0)[2] < chatter(7, loss=0.6)[2]


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_same_trace_in_another_process_with_other_hashes(hash_seed: str) -> None:
    code = "from tests.testing.test_network import chatter; import sys; sys.stdout.write(chatter(7)[0])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout == chatter(7)[0], run.stderr
