"""`/ipfs/kad/1.0.0` as a server speaks it: several exchanges on a stream, who may, and how much."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from mesh import protobuf
from mesh.auth.authorizer import Everyone, PeerClass, is_enough
from mesh.dht import DhtConfig, Role
from mesh.dht.ipfs import IpfsConfig, IpfsWire
from mesh.errors import NotAuthorized, StreamBroken
from mesh.identity import PeerKey
from mesh.kad import ipfs
from mesh.kad.ipfs import Kind, Message
from mesh.kad.record import Record
from mesh.net.base import Stream
from mesh.peer import Multiaddr, PeerID
from tests.dht.cluster import Cluster, Node, in_sim

EVE = PeerKey.dev("eve")
PING = Message(Kind.PING)


class Foreign:
    """A stream of another project's node."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reader = protobuf.FrameReader(ipfs.MAX_MESSAGE_BYTES)

    async def ask(self, message: Message) -> Message | None:
        """The reply, None when the stream ends instead."""
        try:
            await self.tell(message)
            with trio.fail_after(5):
                while data := await self.stream.receive_some():
                    for body in self.reader.feed(data):
                        return ipfs.decode(body)
        except StreamBroken:
            pass
        return None

    async def tell(self, message: Message) -> None:
        await self.stream.send_all(protobuf.framed(ipfs.encode(message)))


async def foreign(asker: Node, node: Node) -> Foreign:
    return Foreign(await asker.net.open(node.id, ipfs.protocol()))


def wire(node: Node) -> IpfsWire:
    found = node.dht._peers.ipfs
    assert found is not None
    return found


class Classes(Everyone):
    """Everybody is a member but the guests and the strangers named."""

    def __init__(self) -> None:
        self.named: dict[PeerID, PeerClass] = {}

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        found = self.named.get(peer, PeerClass.MEMBER)
        if not is_enough(found, least):
            raise NotAuthorized("class-too-low", f"{peer} is {found.name}")
        return found


@in_sim
async def test_requests_and_replies_go_in_turn_on_one_stream(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    node, other = (await cluster.grow(2))[:2]
    eve = await cluster.add("eve", role=Role.CLIENT)
    peer = await foreign(eve, node)
    record = cluster.record(EVE, b"any/k", b"hello")
    put = Message(Kind.PUT_VALUE, b"/any/k", record.to_bytes(), b"/any/k")
    assert await peer.ask(PING) == PING
    assert await peer.ask(put) == put  # the spec: what was stored is echoed
    assert await peer.ask(put) == put  # and so is what is said again
    got = await peer.ask(Message(Kind.GET_VALUE, b"/any/k"))
    assert got is not None
    assert (Record.from_bytes(got.value or b""), got.value_key) == (record, b"/any/k")
    assert [multihash for multihash, _ in got.closer] == [other.id.multihash]
    missing = await peer.ask(Message(Kind.GET_VALUE, b"/pk/whoever"))  # a key that no rule of ours covers
    assert missing is not None
    assert (missing.value, len(missing.closer)) == (None, 1)
    # Nobody is told of itself.
    assert other.id in {info.peer_id for info in node.dht.peers}
    named = await (await foreign(other, node)).ask(Message(Kind.FIND_NODE, other.id.multihash))
    assert named is not None
    assert named.closer == ()
    # A provider speaks for itself: whoever else it names is left out.
    mine, another = (Multiaddr(f"/ip4/192.0.2.{number}/tcp/1").to_bytes() for number in (1, 2))
    claims = ((eve.id.multihash, (mine,)), (other.id.multihash, (another,)))
    await peer.tell(Message(Kind.ADD_PROVIDER, b"digest", providers=claims))
    found = await peer.ask(Message(Kind.GET_PROVIDERS, b"digest"))
    assert found is not None
    assert found.providers == ((eve.id.multihash, (mine,)),)


@in_sim
async def test_a_node_that_only_routes_takes_neither_records_nor_providers(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    bootnode = await cluster.add(role=Role.ROUTING_ONLY)
    eve = await cluster.add("eve", role=Role.CLIENT)
    put = Message(Kind.PUT_VALUE, b"/any/k", cluster.record(EVE).to_bytes(), b"/any/k")
    provide = Message(Kind.ADD_PROVIDER, b"digest", providers=((eve.id.multihash, ()),))
    for message in (put, provide):
        assert await (await foreign(eve, bootnode)).ask(message) is None
    assert bootnode.dht.metrics.refused["not-a-replica"] == 2
    assert len(bootnode.dht._providers) == 0
    assert await (await foreign(eve, bootnode)).ask(Message(Kind.FIND_NODE, b"x")) is not None


@in_sim
async def test_a_peer_has_so_many_streams_and_who_says_nothing_loses_its_own(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(ipfs=IpfsConfig(max_streams_per_peer=3, idle_s=30.0)))
    node = await cluster.add()
    eve, other = await cluster.add("eve", role=Role.CLIENT), await cluster.add("other", role=Role.CLIENT)
    async with AsyncExitStack() as stack:
        streams = [await foreign(eve, node) for _ in range(4)]
        for peer in streams:
            stack.push_async_callback(peer.stream.aclose)
        answered = [await peer.ask(PING) for peer in streams]
        assert answered == [PING] * 3 + [None]
        assert node.dht.metrics.refused["rate-limited"] == 1
        assert await (await foreign(other, node)).ask(PING) == PING
        await trio.sleep(31)
        assert not wire(node)._streams
        assert await (await foreign(eve, node)).ask(PING) == PING


@in_sim
async def test_classes_decide_and_guests_ask_less_often(nursery: trio.Nursery) -> None:
    classes = Classes()
    config = DhtConfig(ipfs=IpfsConfig(guest_requests_per_s=1.0, requests_per_s=1000.0))
    cluster = Cluster(nursery, authorizer=classes, config=config)
    node = await cluster.add()
    await node.dht.put(b"any/k", b"v", ttl_s=600)
    askers = {name: await cluster.add(name.name, role=Role.CLIENT) for name in (PeerClass.PUBLIC, PeerClass.GUEST)}
    classes.named = {asker.id: name for name, asker in askers.items()}
    member = await cluster.add("member", role=Role.CLIENT)
    reads = [Message(kind, b"/any/k") for kind in (Kind.FIND_NODE, Kind.GET_VALUE, Kind.GET_PROVIDERS)]
    mine = cluster.record(EVE, b"any/k")
    writes = [
        Message(Kind.PUT_VALUE, b"/any/k", mine.to_bytes(), b"/any/k"),
        Message(Kind.ADD_PROVIDER, b"digest", providers=()),
    ]
    for name, asker in askers.items():
        assert await (await foreign(asker, node)).ask(PING) == PING
        for message in reads:
            answer = await (await foreign(asker, node)).ask(message)
            assert (answer is not None) == (name is PeerClass.GUEST), (name, message.kind)
        for message in writes:
            assert await (await foreign(asker, node)).ask(message) is None
    assert node.dht.metrics.refused["class-too-low"] == 7
    assert node.dht.gauges()["records"] == 1
    assert not {asker.id for asker in askers.values()} & {info.peer_id for info in node.dht.peers}
    await trio.sleep(60)
    # A guest has five at once and one a second; a member is not held to that.
    guest = await foreign(askers[PeerClass.GUEST], node)
    replies = [await guest.ask(PING) for _ in range(8)]
    assert 5 <= len([reply for reply in replies if reply is not None]) <= 6
    assert await (await foreign(member, node)).ask(PING) == PING
    busy = await foreign(member, node)
    assert all([await busy.ask(PING) == PING for _ in range(50)])
