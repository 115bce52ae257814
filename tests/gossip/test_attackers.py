"""Hostile neighbours on the stream itself: what they send ends their stream, and never more."""

import random

import pytest
import trio
from trio.testing import MockClock

from mesh.clock import SimClock
from mesh.errors import StreamBroken
from mesh.gossip.wire import PROTOCOL, IHave, Rpc, frame, sign
from mesh.identity import PeerKey
from mesh.net.base import Stream
from mesh.rpc.body import pack
from mesh.testing.network import SimNetwork, SimNode
from tests.gossip.village import TOPIC, News, village

MALLORY = PeerKey.dev("mallory")


async def mallory(sim: SimNetwork, nursery: trio.Nursery, victim: SimNode) -> tuple[SimNode, Stream]:
    """A node that speaks the protocol by hand: it takes what comes and sends what it likes."""
    node = sim.node(MALLORY)

    async def swallow(stream: Stream) -> None:
        while await stream.receive_some():
            pass

    node.serve(PROTOCOL, swallow)
    await nursery.start(node.run)
    node.learn(victim.local)
    return node, await node.open(victim.local.peer_id, PROTOCOL)


async def is_ended(stream: Stream) -> bool:
    with trio.fail_after(5):
        try:
            return not await stream.receive_some()
        except StreamBroken:
            return True


@pytest.mark.parametrize(
    "garbage",
    [b"\x05hello", b"\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x80\x80", frame(Rpc(graft=("x" * 200,)))],
    ids=["no-rpc", "oversized", "endless-length", "long-topic"],
)
async def test_garbage_ends_the_stream_and_costs_score(garbage: bytes, autojump_clock: MockClock) -> None:
    async with village(3) as (sim, everyone), trio.open_nursery() as nursery:
        victim = everyone[0]
        _, stream = await mallory(sim, nursery, victim.net)
        await stream.send_all(garbage)
        assert await is_ended(stream)
        assert victim.gossip.score(MALLORY.peer_id) < -10
        await everyone[1].gossip.publish(TOPIC, News(number=1))
        await trio.sleep(1)
        assert victim.numbers == [1]
        nursery.cancel_scope.cancel()


async def test_a_stranger_may_not_even_speak(autojump_clock: MockClock) -> None:
    async with village(2, is_member=lambda peer: peer != MALLORY.peer_id) as (sim, everyone):
        async with trio.open_nursery() as nursery:
            victim = everyone[0]
            _, stream = await mallory(sim, nursery, victim.net)
            assert await is_ended(stream)
            await trio.sleep(5)
            assert MALLORY.peer_id not in victim.gossip.neighbours()
            assert victim.gossip.counts["strangers"] >= 1
            nursery.cancel_scope.cancel()


async def test_a_members_lies_reach_nobody_else(autojump_clock: MockClock) -> None:
    """Spoofed, wrongly signed, replayed and oversized messages through a member that is a full neighbour."""
    async with village(4) as (sim, everyone), trio.open_nursery() as nursery:
        victim, honest = everyone[0], everyone[1]
        await honest.gossip.publish(TOPIC, News(number=1))
        await trio.sleep(1)
        _, stream = await mallory(sim, nursery, victim.net)
        now_ns = int(SimClock().now() * 1e9)
        fresh = sign(honest.key, TOPIC, pack(News(number=2)), now_ns)
        old = sign(honest.key, TOPIC, pack(News(number=3)), now_ns - 61 * 10**9)
        forged = sign(MALLORY, TOPIC, pack(News(number=4)), now_ns)
        spoofed = type(forged)(honest.peer.multihash, forged.data, forged.seqno, TOPIC, forged.signature)
        large = sign(MALLORY, TOPIC, bytes(65), now_ns + 1)
        subscribed = Rpc(subscriptions=((True, TOPIC),))
        await stream.send_all(frame(subscribed) + frame(Rpc(publish=(old, spoofed, large, fresh, fresh))))
        await trio.sleep(2)
        for v in (victim, everyone[2], everyone[3]):
            assert v.numbers == [1, 2]  # the only honest ones, once each, though a liar brought the second
        assert victim.gossip.counts["old"] == 1
        assert victim.gossip.counts["signature"] == 1
        assert victim.gossip.counts["size"] == 1
        await trio.sleep(70)  # past its age: a replay is now too old rather than recognised
        await stream.send_all(frame(Rpc(publish=(fresh,))))
        await trio.sleep(1)
        assert victim.numbers == [1, 2]
        nursery.cancel_scope.cancel()


async def test_who_breaks_rules_long_enough_is_left(autojump_clock: MockClock) -> None:
    async with village(3) as (sim, everyone), trio.open_nursery() as nursery:
        victim = everyone[0]
        _, stream = await mallory(sim, nursery, victim.net)
        await stream.send_all(frame(Rpc(subscriptions=((True, TOPIC),))))
        await trio.sleep(1)
        assert MALLORY.peer_id in victim.gossip.mesh(TOPIC)
        lies = [sign(MALLORY, TOPIC, b"no news", int(SimClock().now() * 1e9) + n) for n in range(6)]
        await stream.send_all(frame(Rpc(publish=tuple(lies))))
        assert await is_ended(stream)
        await trio.sleep(1)
        assert MALLORY.peer_id not in victim.gossip.neighbours()
        assert MALLORY.peer_id not in victim.gossip.mesh(TOPIC)
        nursery.cancel_scope.cancel()


async def test_offers_that_are_never_kept_do_not_hide_a_message(autojump_clock: MockClock) -> None:
    """Mallory offers the id of a real message and does not give it: an honest neighbour is asked next."""
    async with village(2) as (sim, everyone), trio.open_nursery() as nursery:
        victim, honest = everyone
        _, stream = await mallory(sim, nursery, victim.net)
        raw = sign(honest.key, TOPIC, pack(News(number=7)), int(SimClock().now() * 1e9))
        await stream.send_all(frame(Rpc(subscriptions=((True, TOPIC),), ihave=(IHave(TOPIC, (raw.id,)),))))
        await trio.sleep(0.5)
        state = honest.gossip._router  # holds it, but it was lost on its eager way
        state._cache.put(raw)
        state._seen.add(raw.id, trio.current_time())
        await trio.sleep(10)
        assert victim.numbers == [7]
        assert victim.gossip.score(MALLORY.peer_id) < 0
        nursery.cancel_scope.cancel()


async def test_a_neighbour_that_reads_nothing_is_left_and_costs_a_bounded_amount(autojump_clock: MockClock) -> None:
    async with village(2) as (sim, everyone), trio.open_nursery() as nursery:
        victim = everyone[0]
        node = sim.node(MALLORY)

        async def hold(stream: Stream) -> None:
            await trio.sleep_forever()

        node.serve(PROTOCOL, hold)
        await nursery.start(node.run)
        node.learn(victim.net.local)
        stream = await node.open(victim.peer, PROTOCOL)
        await stream.send_all(frame(Rpc(subscriptions=((True, TOPIC),))))
        await trio.sleep(1)
        assert MALLORY.peer_id in victim.gossip.neighbours()
        link = victim.gossip._links[MALLORY.peer_id]
        number, rng = 0, random.Random(1)
        with trio.fail_after(120):
            while victim.gossip._links.get(MALLORY.peer_id) is link:
                await everyone[1].gossip.publish(TOPIC, News(number=number))
                number += 1
                await trio.sleep(0.01 * rng.random())
                assert link.outbox._count <= 2048
        await trio.sleep(1)
        assert sorted(victim.numbers) == list(range(number))
        nursery.cancel_scope.cancel()
