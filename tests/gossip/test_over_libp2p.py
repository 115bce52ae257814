"""Gossip over real connections on loopback."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb.rpc_pb2 import Message as Note
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from mesh.clock import SystemClock
from mesh.gossip import Gossip, TopicRule
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pNetwork
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.body import pack
from tests.gossip.village import TOPIC, News
from tests.net.nodes import bare, bare_host, until

RULE = TopicRule(TOPIC, News, max_bytes=64, max_per_s=200.0, burst=400.0)


@asynccontextmanager
async def connected(count: int, *, dials: int) -> AsyncIterator[tuple[list[Gossip], list[list[int]], trio.Nursery]]:
    """Nodes that subscribe, each connected to some others, once all know of each other."""
    keys = [PeerKey.dev(f"gossip {index}") for index in range(count)]
    nets = [Libp2pNetwork(key) for key in keys]
    gossips = [
        Gossip(net, key, is_member=lambda peer: True, clock=SystemClock(), rng=random.Random(index), rules=[RULE])
        for index, (net, key) in enumerate(zip(nets, keys, strict=True))
    ]
    got: list[list[int]] = [[] for _ in keys]

    async def read(index: int) -> None:
        async with gossips[index].subscribe(TOPIC) as messages:
            async for message in messages:
                assert isinstance(message.value, News)
                got[index].append(message.value.number)

    async with trio.open_nursery() as nursery:
        for net, gossip in zip(nets, gossips, strict=True):
            await nursery.start(net.run)
            await nursery.start(gossip.run)
        for index in range(count):
            nursery.start_soon(read, index)
        rng = random.Random(4)
        for net in nets:
            for other in rng.sample([n for n in nets if n is not net], dials):
                await net.connect(other.local)
        with trio.fail_after(30):
            for net, gossip in zip(nets, gossips, strict=True):
                while len(gossip.subscribers(TOPIC)) < len(net.connected()):  # noqa: ASYNC110
                    await trio.sleep(0.01)
        yield gossips, got, nursery
        nursery.cancel_scope.cancel()


async def all_arrive(count: int, messages: int, *, dials: int, gap_s: float) -> None:
    async with connected(count, dials=dials) as (gossips, got, _):
        for number in range(messages):
            await gossips[number % count].publish(TOPIC, News(number=number))
            await trio.sleep(gap_s)
        expected = [[n for n in range(messages) if n % count != index] for index in range(count)]
        with trio.move_on_after(30):
            while [sorted(numbers) for numbers in got] != expected:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert [sorted(numbers) for numbers in got] == expected


async def test_six_nodes_deliver_all_of_fifty_messages_each() -> None:
    await all_arrive(6, 300, dials=2, gap_s=0.002)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_twenty_nodes_deliver_all_of_a_thousand_messages() -> None:
    await all_arrive(20, 1000, dials=6, gap_s=0.05)


def test_py_libp2ps_gossipsub_still_refuses_our_own_messages_in_silence() -> None:
    """Why mesh has its own router; when this fails, look again (mesh/README.md, "Where this differs")."""
    theirs = GossipSub([PROTOCOL_ID_V11], degree=6, degree_low=5, degree_high=12)
    us = ID(PeerKey.dev("us").peer_id.multihash)
    taken = [theirs._check_spam_protection(us, Note(topicIDs=[TOPIC])) for _ in range(12)]
    assert taken == [True] * 10 + [False] * 2


async def test_py_libp2ps_gossipsub_and_ours_understand_each_other() -> None:
    """Both ways through signatures: theirs is checked by us and ours by them. Their seqno must be a time, as ours."""
    host = bare_host()
    theirs = Pubsub(host, GossipSub([PROTOCOL_ID_V11], degree=6, degree_low=5, degree_high=12))
    async with bare(host) as (info,), connected(1, dials=0) as (gossips, got, nursery):
        async with background_trio_service(theirs.router), background_trio_service(theirs):
            await theirs.wait_until_ready()
            subscription = await theirs.subscribe(TOPIC)
            [ours] = gossips
            await ours._net.connect(PeerInfo(PeerID(info.peer_id.to_bytes()), tuple(info.addrs)))
            await until(lambda: bool(ours.subscribers(TOPIC)))
            await ours.publish(TOPIC, News(number=5))
            message = await subscription.get()
            assert message.data == pack(News(number=5))
            theirs.counter = int(SystemClock().now() * 1e9)
            await until(lambda: bool(theirs.router.mesh.get(TOPIC)))
            await theirs.publish(TOPIC, pack(News(number=6)))
            await until(lambda: got[0] == [6])
            theirs.counter = int(SystemClock().now())  # as they count: seconds
            await theirs.publish(TOPIC, pack(News(number=7)))
            await until(lambda: ours.counts.get("old", 0) == 1)
            nursery.cancel_scope.cancel()
