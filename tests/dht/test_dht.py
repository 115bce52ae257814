"""The DHT over a simulated network: eight nodes, in virtual time."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.dht import DHT, DhtConfig, KadServicer, Role, Want
from mesh.dht.state import DhtState
from mesh.errors import DialFailed, MeshError, NotAuthorized, RecordNotFound, RecordRejected, RemoteFailure
from mesh.identity import PeerKey
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.record import Record
from mesh.kad.schedule import ScheduleConfig
from mesh.kad.validator import BlockPosition
from mesh.kad.wire import FindReply, FindRequest, PingRequest, Query, StoreRequest
from mesh.peer import Multiaddr, PeerID, PeerInfo
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, method
from mesh.testing.simulation import run_sim
from tests.dht.cluster import Cluster, Node, in_sim, note

EVE = PeerKey.dev("eve")


def values(records: tuple[Record, ...]) -> list[bytes]:
    return [record.value for record in records]


async def send(sender: Node, to: Node, *records: Record) -> tuple[str, ...]:
    """Store records at a node over RPC, as they are, and return its verdicts."""
    request = StoreRequest(role=Role.SERVER, addrs=(), records=tuple(r.to_bytes() for r in records))
    reply = await sender.rpc.call(KadServicer.rpc_store, to.id, request)
    return reply.verdicts


@in_sim
async def test_what_one_node_puts_every_other_gets(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    report = await nodes[0].dht.put(b"any/a", b"hello", ttl_s=600)
    assert len(report.stored) == 5
    assert report.refused == {}
    for node in nodes:
        assert values(await node.dht.get(b"any/a")) == [b"hello"]
        assert values(await node.dht.get(b"any/a", want=Want.FIRST)) == [b"hello"]
    with pytest.raises(RecordNotFound):
        await nodes[3].dht.get(b"any/nothing")
    with pytest.raises(RecordRejected, match="namespace"):
        await nodes[3].dht.get(b"unheard-of/x")


@in_sim
async def test_owners_and_subkeys_do_not_compete_and_the_newest_of_each_is_got(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(6)
    for node in nodes[:3]:
        await node.dht.put(b"any/a", b"old", subkey=b"x", ttl_s=600)
        await node.dht.put(b"any/a", b"other", subkey=b"y", ttl_s=600)
        await node.dht.put(b"any/a", b"new", subkey=b"x", ttl_s=600)
    found = await nodes[5].dht.get(b"any/a")
    assert len(found) == 6
    assert [(r.owner, r.subkey) for r in found] == sorted((n.id, s) for n in nodes[:3] for s in (b"x", b"y"))
    assert {r.value for r in found if r.subkey == b"x"} == {b"new"}


@in_sim
async def test_three_of_eight_may_die(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    report = await nodes[1].dht.put(b"any/a", b"hello", ttl_s=600)
    for peer in report.stored[:3]:
        cluster.sim.kill(peer)
    alive = [n for n in nodes if n.id not in report.stored[:3]]
    for node in alive:
        assert values(await node.dht.get(b"any/a")) == [b"hello"]
    # The dead have left the tables, and the next put takes the living.
    again = await alive[0].dht.put(b"any/b", b"more", ttl_s=600)
    assert not set(again.stored) & set(report.stored[:3])
    assert len(again.stored) == 4


@in_sim
async def test_a_partition_heals(nursery: trio.Nursery) -> None:
    config = DhtConfig(schedule=ScheduleConfig(refresh_s=30.0, republish_s=30.0))
    cluster = Cluster(nursery, config=config)
    nodes = await cluster.grow(8)
    left, right = nodes[:4], nodes[4:]
    cluster.sim.partition([[n.id for n in left], [n.id for n in right]])
    await trio.sleep(200)
    assert all({i.peer_id for i in n.dht.peers} <= {m.id for m in right} for n in right)
    await left[0].dht.put(b"any/left", b"l", ttl_s=3000)
    await right[0].dht.put(b"any/right", b"r", ttl_s=3000)
    with pytest.raises(RecordNotFound):
        await right[1].dht.get(b"any/left")
    cluster.sim.heal()
    await trio.sleep(200)
    assert all(len(n.dht.peers) == 7 for n in nodes)
    assert values(await right[1].dht.get(b"any/left")) == [b"l"]
    assert values(await left[1].dht.get(b"any/right")) == [b"r"]


@in_sim
async def test_bad_records_are_refused_over_the_network_with_the_reason(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    a, b, *_ = await cluster.grow(3)
    cluster.strangers.add(EVE.peer_id)
    good = cluster.record(a.key)
    now_ms = int(cluster.clock.now() * 1000)
    bad = {
        "signature": dataclasses.replace(good, value=b"forged"),
        "expired": cluster.record(a.key, expiry_ms=now_ms - 1),
        "ttl": cluster.record(a.key, expiry_ms=now_ms + 10**9),
        "size": cluster.record(a.key, value=b"x" * 5000),
        "not-member": cluster.record(EVE),
        "genesis": cluster.record(a.key, genesis=b"\x08" * 32),
        "subnet": cluster.record(a.key, subnet_id=5),
        "namespace": cluster.record(a.key, b"other/k"),
        "schema": cluster.record(a.key, b"note/k", b"\x80"),
        "window": cluster.record(a.key, b"vote/4/x"),
        "key": cluster.record(a.key, b"vote/x"),
    }
    assert await send(a, b, *bad.values()) == tuple(bad)
    garbage = StoreRequest(role=Role.SERVER, addrs=(), records=(b"garbage", good.to_bytes(), good.to_bytes()))
    reply = await a.rpc.call(KadServicer.rpc_store, b.id, garbage)
    assert reply.verdicts == ("malformed", "", "duplicate")
    assert b.dht.local(b"any/k") == (good,)
    # People are told the same, all at once.
    lines = await b.dht.explain(dataclasses.replace(bad["not-member"], value=b"forged"))
    assert sum("REFUSED" in line for line in lines) == 2
    # And our own puts meet our own rules first.
    with pytest.raises(RecordRejected, match="size"):
        await a.dht.put(b"any/k", b"x" * 5000, ttl_s=60)
    with pytest.raises(RecordRejected, match="window"):
        await a.dht.put(b"vote/4/x", b"", ttl_s=60)
    cluster.strangers.add(a.id)
    with pytest.raises(RecordRejected, match="not-member"):
        await a.dht.put(b"any/k", b"x", ttl_s=60)


@in_sim
async def test_replaying_an_older_record_changes_nothing(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(6)
    old = (await nodes[0].dht.put(b"any/a", b"old", ttl_s=60)).record
    new = (await nodes[0].dht.put(b"any/a", b"new", ttl_s=600)).record
    for node in nodes[1:]:
        assert set(await send(nodes[1], node, old)) <= {"older", ""}  # "": it did not hold the slot
    await trio.sleep(120)  # the older one has expired: nothing may go with it
    for node in nodes:
        assert tuple(await node.dht.get(b"any/a")) == (new,)


@in_sim
async def test_a_tombstone_deletes_and_the_deleted_record_cannot_come_back(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(6)
    put = (await nodes[0].dht.put(b"any/a", b"hello", ttl_s=600)).record
    await nodes[0].dht.delete(b"any/a")
    for node in nodes:
        with pytest.raises(RecordNotFound):
            await node.dht.get(b"any/a")
        assert node.dht.local(b"any/a") == ()
    assert "older" in {(await send(nodes[1], node, put))[0] for node in nodes[1:]}
    with pytest.raises(RecordNotFound):
        await nodes[4].dht.get(b"any/a")


@in_sim
async def test_two_records_for_one_seq_are_proof_against_their_owner(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    a, b, *_ = await cluster.grow(3)
    one, two = cluster.record(EVE, value=b"yes"), cluster.record(EVE, value=b"no")
    await send(a, b, one, two)
    assert [{p.first.value, p.second.value} for p in b.dht.proofs] == [{b"yes", b"no"}]
    # A forged second record proves nothing.
    await send(a, b, dataclasses.replace(cluster.record(EVE, b"any/z"), value=b"w"), cluster.record(EVE, b"any/z"))
    assert len(b.dht.proofs) == 1


class Forger(DHT):
    """Answers every find with records it made up, newer than any, and with peers that do not exist."""

    victim: PeerKey
    shape: str

    def servicer(self) -> KadServicer:
        forging = _Forging(self._peers, self._holdings, self._providers, self._config, self.metrics)
        forging.victim, forging.shape = self.victim, self.shape
        return forging


class _Forging(KadServicer):
    victim: PeerKey
    shape: str

    @method(least=PeerClass.GUEST, timeout_s=10.0, max_request_bytes=64 * 1024, max_response_bytes=3 * 2**20)
    async def rpc_find(self, request: FindRequest, ctx: RpcContext) -> FindReply:
        honest = await super().rpc_find(request, ctx)
        if request.queries[0].key is None:
            return honest
        real = Record(
            request.queries[0].key,
            b"",
            b"forged",
            int(1e15),
            2**60,
            128_001,
            b"\x07" * 32,
            self.victim.public_key_pb,
            b"s" * 64,
        )
        raw = {
            "forged": real.to_bytes(),
            "garbage": b"\x00",
            "elsewhere": dataclasses.replace(real, key=b"any/elsewhere").to_bytes(),
        }[self.shape]
        answers = [answer.model_copy(update={"records": (raw,), "more": True}) for answer in honest.answers]
        return honest.model_copy(update={"answers": tuple(answers)})


@pytest.mark.parametrize("shape", ["forged", "garbage", "elsewhere"])
def test_a_byzantine_node_that_returns_nonsense_is_ignored(shape: str) -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        nodes = await cluster.grow(5)
        Forger.victim, Forger.shape = nodes[0].key, shape
        liars = [await cluster.add(f"liar-{n}", kind=Forger) for n in range(3)]
        await nodes[0].dht.put(b"any/a", b"true", ttl_s=600)
        for node in nodes:
            assert values(await node.dht.get(b"any/a")) == [b"true"]
            assert values(await node.dht.get(b"any/a", want=Want.FIRST)) == [b"true"]
        # Those caught lost their place.
        assert not {i.peer_id for i in nodes[2].dht.peers} & {n.id for n in liars}

    run()


@in_sim
async def test_bootnodes_route_and_hold_nothing(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    boot = await cluster.add("bootnode", role=Role.ROUTING_ONLY)
    cluster.strangers.add(boot.id)  # a bootnode is no member
    nodes = await cluster.grow(6)
    report = await nodes[1].dht.put(b"any/a", b"hello", ttl_s=600)
    assert boot.id not in report.stored
    assert len(report.stored) == 5
    assert boot.dht.local(b"any/a") == ()
    assert boot.id in {i.peer_id for i in nodes[3].dht.peers}
    assert await send(nodes[1], boot, report.record) == ("not-a-replica",)
    assert values(await nodes[3].dht.get(b"any/a")) == [b"hello"]


@in_sim
async def test_a_client_reads_and_is_in_nobodys_table(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(5)
    client = await cluster.add("client", role=Role.CLIENT)
    await nodes[0].dht.put(b"any/a", b"hello", ttl_s=600)
    assert values(await client.dht.get(b"any/a")) == [b"hello"]
    report = await client.dht.put(b"any/b", b"mine", ttl_s=600)
    assert len(report.stored) == 5
    assert client.id not in {info.peer_id for n in nodes for info in n.dht.peers}
    with pytest.raises(RemoteFailure, match="not served"):
        await nodes[0].rpc.call(KadServicer.rpc_ping, client.id, PingRequest(role=Role.SERVER))


@in_sim
async def test_strangers_get_no_place_and_are_not_asked(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(4)
    eve = await cluster.add("eve")
    assert eve.id in {i.peer_id for i in nodes[0].dht.peers}  # still a member
    cluster.strangers.add(eve.id)
    report = await nodes[0].dht.put(b"any/a", b"hello", ttl_s=600)
    assert eve.id not in report.stored
    assert eve.dht.local(b"any/a") == ()
    assert eve.id not in {i.peer_id for i in await nodes[1].dht.find_closest(b"any/a", 20)}


@in_sim
async def test_records_of_who_is_no_member_any_more_are_not_returned(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(5)
    await nodes[0].dht.put(b"any/a", b"one", ttl_s=600)
    await nodes[1].dht.put(b"any/a", b"two", ttl_s=600)
    cluster.strangers.add(nodes[0].id)
    assert values(await nodes[3].dht.get(b"any/a")) == [b"two"]


@in_sim
async def test_evidence_goes_to_exactly_the_peers_named(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(7)
    named = [nodes[2].id, nodes[5].id, nodes[0].id, PeerKey.dev("nobody").peer_id]
    report = await nodes[0].dht.put(b"vote/5/a", b"1", ttl_s=600, peers=named)
    assert set(report.stored) == {nodes[2].id, nodes[5].id}
    assert report.refused == {named[-1]: "unreachable"}
    holders = [n for n in nodes if n.dht.local(b"vote/5/a")]
    assert holders == [nodes[0], nodes[2], nodes[5]]
    # Once the window is over it can be read still, and is not sent out again.
    cluster.position = BlockPosition(125, 6, 5, 20)
    found = await nodes[2].dht.get(b"vote/5/a")
    assert values(found) == [b"1"]
    with pytest.raises(RecordRejected, match="window"):
        await nodes[0].dht.put(b"vote/5/a", b"2", ttl_s=600, peers=named)


@in_sim
async def test_finding_peers(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    assert await nodes[3].dht.find_peer(nodes[6].id) == nodes[6].info
    assert await nodes[3].dht.find_peer(nodes[3].id) == nodes[3].info
    target = key_of_record(b"any/x")
    everybody = sorted((n.id for n in nodes if n is not nodes[1]), key=lambda p: key_of_peer(p) ^ target)
    assert [i.peer_id for i in await nodes[1].dht.find_closest(b"any/x", 4)] == everybody[:4]
    with pytest.raises(DialFailed):
        await nodes[3].dht.find_peer(PeerKey.dev("nobody").peer_id)


@in_sim
async def test_a_node_that_knows_nobody_joins_through_one_it_meets(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(4)
    alone = Node(cluster, PeerKey.dev("alone"), Role.SERVER, None)
    await nursery.start(alone.run, [])
    nobody = PeerInfo(PeerKey.dev("nobody").peer_id, nodes[0].info.addrs)
    with pytest.raises(MeshError):
        await alone.dht.meet(nobody)
    await alone.dht.meet(alone.info)
    assert alone.dht.peers == ()
    alone.net.learn(nodes[2].info)
    await alone.dht.meet(nodes[2].info)
    assert {info.peer_id for info in alone.dht.peers} == {node.id for node in nodes}
    await alone.dht.meet(nodes[2].info)
    await trio.sleep(11)
    assert all(alone.net._tags.count(node.id) == 1 for node in nodes)
    assert not alone.net._tags.is_protected(nodes[0].id)
    alone.stop()
    await trio.sleep(1)
    assert all(alone.net._tags.count(node.id) == 0 for node in nodes)


@in_sim
async def test_several_keys_at_once_and_waiting_for_news(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(4)
    seen = nodes[3].dht.changes
    async with trio.open_nursery() as waiting:
        waiting.start_soon(nodes[3].dht.wait_change)
        await trio.testing.wait_all_tasks_blocked()
        await nodes[0].dht.put(b"note/1", note("one"), ttl_s=600)
        await nodes[1].dht.put(b"note/2", note("two"), ttl_s=600)
    assert await nodes[3].dht.wait_change(seen) >= seen + 1
    found = await nodes[2].dht.get_many([b"note/2", b"note/1", b"note/3", b"note/1"])
    assert {key: values(records) for key, records in found.items()} == {
        b"note/1": [note("one")],
        b"note/2": [note("two")],
    }


@in_sim
async def test_joining_is_tried_for_ever(nursery: trio.Nursery) -> None:
    """A node that starts before its bootnode finds it once it is there."""
    cluster = Cluster(nursery)
    boot = await cluster.add("late")
    boot.stop()
    cluster.sim.kill(boot.id)
    early = await cluster.add("early")
    await trio.sleep(500)
    assert early.dht.peers == ()
    cluster.sim.revive(boot.id)
    await nursery.start(boot.run, [])
    await trio.sleep(100)
    assert [i.peer_id for i in early.dht.peers] == [boot.id]


@in_sim
async def test_owners_publish_again_and_newcomers_are_given_what_they_should_hold(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(replicas=3))
    nodes = await cluster.grow(4)
    report = await nodes[0].dht.put(b"any/a", b"hello", ttl_s=3600)
    for n in range(6):
        await cluster.add(f"newcomer-{n}")
    await trio.sleep(5)
    closest = await nodes[0].dht.find_closest(b"any/a", 3)
    handed = {n.id for n in cluster.nodes if n.dht.local(b"any/a")}
    assert {i.peer_id for i in closest} - {nodes[0].id} <= handed | {nodes[0].id}
    for node in cluster.nodes:  # all replicas die at once
        if node is not nodes[0] and node.dht.local(b"any/a"):
            cluster.sim.kill(node.id)
    await trio.sleep(400)  # longer than republish_s
    holders = [n for n in cluster.nodes if n.dht.local(b"any/a") and n.net.alive and n is not nodes[0]]
    assert len(holders) >= 3
    assert holders[0].dht.local(b"any/a") == (report.record,)  # the same bytes: digests are cited elsewhere


@in_sim
async def test_own_records_are_forgotten_when_they_expire(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(3)
    await nodes[0].dht.put(b"any/a", b"hello", ttl_s=100)
    await trio.sleep(101)
    with pytest.raises(RecordNotFound):
        await nodes[1].dht.get(b"any/a")
    await trio.sleep(60)
    assert all(len(n.dht._holdings.store) == 0 for n in nodes)
    assert nodes[0].dht._writer.own == ()


class Classes(Everyone):
    """An authorizer that takes the named peers as guests and everybody else as members."""

    def __init__(self) -> None:
        self.guests: set[PeerID] = set()

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        peer_class = PeerClass.GUEST if peer in self.guests else PeerClass.MEMBER
        if peer_class < least:
            raise NotAuthorized("class-too-low", f"{peer} is a guest")
        return peer_class


@in_sim
async def test_what_a_guest_may_cost_is_bounded(nursery: trio.Nursery) -> None:
    classes = Classes()
    config = DhtConfig(guest_finds_per_s=1.0, all_guest_finds_per_s=2.0, max_guest_page_bytes=3000)
    cluster = Cluster(nursery, authorizer=classes, config=config)
    nodes = await cluster.grow(3)
    for n in range(4):
        await nodes[0].dht.put(b"any/a", bytes(1500), subkey=bytes((n,)), ttl_s=600)
    guest, other = await cluster.add("guest", role=Role.CLIENT), await cluster.add("guest-2", role=Role.CLIENT)
    await trio.sleep(10)
    classes.guests |= {guest.id, other.id}

    async def find(who: Node) -> FindReply:
        request = FindRequest(role=Role.SERVER, addrs=(), queries=(Query(key=b"any/a"),))
        return await who.rpc.call(KadServicer.rpc_find, nodes[1].id, request)

    (answer,) = (await find(guest)).answers
    assert (len(answer.records), answer.more) == (1, True)
    for _ in range(4):
        await find(guest)
    with pytest.raises(NotAuthorized) as caught:
        await find(guest)
    assert caught.value.reason == "rate-limited"
    for _ in range(5):
        await find(other)
    with pytest.raises(NotAuthorized):
        await find(other)
    assert guest.id not in {i.peer_id for i in nodes[1].dht.peers}  # though it claims to serve
    with pytest.raises(NotAuthorized):
        await send(guest, nodes[1], cluster.record(guest.key))
    # Members are not hindered by it, and all pages come together in a get.
    assert len(await nodes[2].dht.get(b"any/a")) == 4


@in_sim
async def test_a_get_goes_through_all_pages(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(max_page_bytes=2000))
    nodes = await cluster.grow(7)
    for node in nodes:
        for n in range(4):
            await node.dht.put(b"any/a", bytes(500), subkey=bytes((n,)), ttl_s=600)
    client = await cluster.add("client", role=Role.CLIENT)
    assert len(await client.dht.get(b"any/a")) == 28


# --- what survives the process ---


def test_seqs_rise_over_restarts_even_when_the_clock_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "dht.json"
    seqs = []
    for epoch0 in (1_800_000_000.0, 1_799_998_000.0, 1_799_998_000.0):  # by less than stores let a seq lie ahead

        @in_sim
        async def run(nursery: trio.Nursery, epoch0: float = epoch0) -> None:
            cluster = Cluster(nursery)
            cluster.clock._epoch0 = epoch0
            node = await cluster.add("a", state_path=path)
            for _ in range(3):
                seqs.append((await node.dht.put(b"any/a", b"x", ttl_s=60)).record.seq)  # noqa: PERF401

        run()
    assert seqs == sorted(set(seqs))


def test_a_restarted_node_comes_back_through_its_peer_cache(tmp_path: Path) -> None:
    path = tmp_path / "dht.json"

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        boot, a, b = [await cluster.add(label, state_path=tmp_path / f"{label}.json") for label in ("boot", "a", "b")]
        await b.dht.put(b"any/a", b"hello", ttl_s=3600)
        a.stop()
        boot.stop()
        cluster.sim.kill(boot.id)
        await trio.sleep(1)
        (tmp_path / "a.json").rename(path)
        a.rpc = Rpc(a.net, cluster.authorizer, rng=random.Random(1))
        a.dht = DHT(
            a.rpc, a.key, rules=(), is_member=lambda peer: True, position=lambda: None, subnet_id=1, genesis=b"",
            clock=cluster.clock, rng=random.Random(1), state_path=path,
        )  # fmt: skip
        assert a.dht.peers == ()
        await nursery.start(a.run, [boot.info])
        assert [i.peer_id for i in a.dht.peers] == [b.id]

    run()


def test_where_we_are_told_a_bootnode_is_comes_before_where_it_was(tmp_path: Path) -> None:
    """A remembered address of the same peer must not hide the one that the operator gives now."""
    path = tmp_path / "node.json"

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        boot = await cluster.add("boot")
        moved = PeerInfo(boot.id, (Multiaddr("/ip4/203.0.113.9/tcp/1"),))
        remembered = DhtState(path, max_peers=8)
        remembered.remember([moved])
        remembered.save()
        node = await cluster.add("node", state_path=path)
        assert [info.peer_id for info in node.dht.peers] == [boot.id]

    run()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 1, "seq": "x"}', "\x00" * 100])
def test_a_damaged_state_file_is_said_not_overwritten(tmp_path: Path, text: str) -> None:
    from mesh.errors import ConfigError

    path = tmp_path / "dht.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"dht\.json"):
        DhtState(path, max_peers=8)
    assert path.read_text() == text


@in_sim
async def test_it_ends_by_cancellation_and_leaves_no_task(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(5)
    before = len(nursery.child_tasks)
    nodes[4].stop()
    await trio.testing.wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == before - 1
    await nursery.start(nodes[4].run, [nodes[0].info])  # and may run again
    assert len(nodes[4].dht.peers) == 4


def test_the_same_seed_gives_the_same_trace() -> None:
    def trace(seed: int) -> tuple[str, float]:
        async def main() -> tuple[str, float]:
            async with trio.open_nursery() as nursery:
                cluster = Cluster(nursery, seed=seed, loss=0.02)
                nodes = await cluster.grow(8)
                await nodes[2].dht.put(b"any/a", b"hello", ttl_s=600)
                await nodes[5].dht.get(b"any/a")
                nursery.cancel_scope.cancel()
            return cluster.sim.digest(), trio.current_time()

        return run_sim(main, seed)

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_hostile_addresses_never_reach_the_network() -> None:
    """A peer announces loopback, our own address and garbage: none is learnt."""

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        a, b, *_ = await cluster.grow(3)
        own = b.info.addrs[0].to_bytes()
        request = FindRequest(
            role=Role.SERVER,
            addrs=(b"\xff\xff", own, b"\x04\x7f\x00\x00\x01\x06\x0f\xa1"),
            queries=(Query(target=b"\x00" * 32),),
        )
        before = b.net.known(a.id)
        await a.rpc.call(KadServicer.rpc_find, b.id, request)
        assert b.net.known(a.id) == before

    run()
