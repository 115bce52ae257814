"""Who has what; whom a crawl sees; what a watch reports; how a proof travels."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from mesh.config import NodeConfig
from mesh.content import inline
from mesh.dht import Change, DhtConfig, KadServicer, Role
from mesh.errors import LocalProtocolError, RecordRejected
from mesh.identity import PeerKey
from mesh.kad.equivocation import Equivocation
from mesh.kad.providers import ProviderConfig
from mesh.kad.wire import ProofRequest, ProvideRequest
from mesh.node import Parts, _content
from tests.dht.cluster import Cluster, in_sim
from tests.dht.test_dht import send

EVE = PeerKey.dev("eve")
DIGEST = b"\x12\x20" + bytes(range(32))


@in_sim
async def test_providers_are_found_by_everybody_and_forgotten_when_silent(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(provide_s=100.0, providers=ProviderConfig(ttl_s=250.0)))
    nodes = await cluster.grow(10)
    told = await nodes[1].dht.provide(DIGEST)
    assert len(told) >= 5
    await nodes[2].dht.provide(DIGEST)
    for node in nodes:
        found = await node.dht.find_providers(DIGEST)
        assert {info.peer_id for info in found} == {nodes[1].id, nodes[2].id}
        assert all(info.addrs for info in found)
    assert len(await nodes[5].dht.find_providers(DIGEST, want=1)) >= 1
    assert await nodes[5].dht.find_providers(b"unknown") == ()
    # Withdrawn, it is forgotten after its life; the other, said again, stays.
    nodes[1].dht.withdraw(DIGEST)
    await trio.sleep(400)
    assert [info.peer_id for info in await nodes[7].dht.find_providers(DIGEST)] == [nodes[2].id]


@in_sim
async def test_what_may_be_provided_has_bounds(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(max_provided=2))
    nodes = await cluster.grow(3)
    for wrong in (b"", bytes(129)):
        with pytest.raises(LocalProtocolError):
            await nodes[0].dht.provide(wrong)
    await nodes[0].dht.provide(b"1")
    await nodes[0].dht.provide(b"2")
    with pytest.raises(LocalProtocolError, match="max_provided"):
        await nodes[0].dht.provide(b"3")
    # A provider speaks of itself: the entry names who called, whatever addresses it sends.
    request = ProvideRequest(role=Role.SERVER, addrs=(b"garbage",), keys=(b"k",))
    await nodes[1].rpc.call(KadServicer.rpc_provide, nodes[2].id, request)
    assert [info.peer_id for info in nodes[2].dht._providers.get(b"k", now=trio.current_time())] == [nodes[1].id]


@in_sim
async def test_a_crawl_sees_every_node_and_who_does_not_answer(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(25)
    nodes[20].stop()
    await trio.sleep(0.1)
    report = await nodes[3].dht.crawl()
    ids = {node.id for node in nodes} - {nodes[3].id, nodes[20].id}
    assert set(report.nodes) == ids
    assert set(report.unreachable) <= {nodes[20].id}
    assert report.is_complete
    assert all(node.knows and node.rtt_s > 0 for node in report.nodes.values())
    few = await nodes[3].dht.crawl(max_peers=5)
    assert not few.is_complete
    assert len(few.nodes) + len(few.unreachable) == 5
    exact = await nodes[3].dht.crawl(max_peers=24)
    assert exact.is_complete
    none = await nodes[3].dht.crawl(timeout_s=0.0)
    assert not none.is_complete
    assert not none.nodes
    assert set(none.unreachable.values()) == {"no answer: out of time"}


@in_sim
async def test_a_watch_tells_what_is_there_what_comes_and_what_is_deleted(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(watch_s=2.0, replicas=2))
    nodes = await cluster.grow(10)
    await nodes[0].dht.put(b"any/a", b"one", ttl_s=600)
    watcher = next(n for n in nodes[1:] if not n.dht.local(b"any/a"))
    changes: list[Change] = []

    async def watch() -> None:
        async for change in watcher.dht.watch(b"any/a"):
            changes.append(change)  # noqa: PERF401 - as they come, for as long as they come

    nursery.start_soon(watch)
    await trio.sleep(0.5)
    await nodes[0].dht.put(b"any/a", b"two", ttl_s=600)
    await nodes[1].dht.put(b"any/a", b"other", ttl_s=600)
    await trio.sleep(3)
    await nodes[0].dht.delete(b"any/a")
    await trio.sleep(3)
    of_first = [c for c in changes if c.record.owner == nodes[0].id]
    assert [(c.record.value, c.before.value if c.before else None) for c in of_first[:2]] == [
        (b"one", None),
        (b"two", b"one"),
    ]
    assert of_first[-1].record.tombstone
    assert [c.record.value for c in changes if c.record.owner == nodes[1].id] == [b"other"]
    assert len(changes) == 4
    with pytest.raises(RecordRejected):
        watcher.dht.watch(b"unheard-of/x")


@in_sim
async def test_a_watcher_that_holds_the_key_hears_at_once(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(watch_s=3600.0))
    nodes = await cluster.grow(3)
    watch = nodes[1].dht.watch(b"any/a")
    await nodes[0].dht.put(b"any/a", b"one", ttl_s=600)
    with trio.fail_after(1):
        assert (await anext(watch)).record.value == b"one"
    async with trio.open_nursery() as both:
        both.start_soon(_put, nodes[0])
        with trio.fail_after(5):
            assert (await anext(watch)).record.value == b"two"


async def _put(node) -> None:  # type: ignore[no-untyped-def]
    await trio.sleep(1)
    await node.dht.put(b"any/a", b"two", ttl_s=600)


@in_sim
async def test_a_proof_against_an_owner_reaches_all_replicas_and_all_readers(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    one, two = cluster.record(EVE, value=b"yes"), cluster.record(EVE, value=b"no")
    # Each half of the nodes is told another story; they meet at one node only.
    for node in nodes[1:4]:
        await send(nodes[0], node, one)
    for node in nodes[4:]:
        await send(nodes[0], node, two)
    assert not any(node.dht.proofs for node in nodes)
    await send(nodes[0], nodes[4], one)
    await trio.sleep(2)
    assert sum(bool(node.dht.proofs) for node in nodes) >= 6
    reader = await cluster.add("reader", role=Role.CLIENT)
    found = await reader.dht.get(b"any/k")
    (proof,) = found.proofs
    # Anybody can check it.
    again = Equivocation.from_bytes(proof.to_bytes())
    reader.dht._holdings.validator.check_proof(again)
    assert {again.first.value, again.second.value} == {b"yes", b"no"}


@in_sim
async def test_a_made_up_proof_is_refused_and_counted(nursery: trio.Nursery) -> None:
    import dataclasses

    cluster = Cluster(nursery)
    nodes = await cluster.grow(3)
    one = cluster.record(EVE, value=b"yes")
    forged = dataclasses.replace(one, value=b"no")
    later = cluster.record(EVE, value=b"no", seq=one.seq + 1)
    foreign = cluster.record(EVE, value=b"no", subnet_id=5)
    for first, second in ((one, forged), (one, later), (foreign, dataclasses.replace(foreign, value=b"x"))):
        raw = Equivocation.of(first, second).to_bytes()
        request = ProofRequest(role=Role.SERVER, proofs=(raw,))
        reply = await nodes[0].rpc.call(KadServicer.rpc_proof, nodes[1].id, request)
        assert reply.new == 0
    assert nodes[1].dht.proofs == ()
    refused = nodes[1].dht.metrics.refused
    assert {"proof-signature", "proof-not-a-proof", "proof-subnet"} <= set(refused)
    for garbage in (b"", b"\x93", Equivocation(one, one).to_bytes()):
        await nodes[0].rpc.call(
            KadServicer.rpc_proof, nodes[1].id, ProofRequest(role=Role.SERVER, proofs=(garbage, garbage))
        )
    assert refused["proof-malformed"] == 6


@in_sim
async def test_a_blob_is_found_through_the_dht_alone_and_no_more_when_it_is_dropped(nursery: trio.Nursery) -> None:
    folder = Path(tempfile.mkdtemp())
    cluster = Cluster(nursery, config=DhtConfig(provide_s=50.0))
    nodes = await cluster.grow(6)
    contents = []
    for number, node in enumerate(nodes):
        config = cast(NodeConfig, SimpleNamespace(data_dir=folder / str(number)))
        parts = cast(Parts, SimpleNamespace(identity=node.key, offload=inline))
        content = _content(config, parts, node.rpc, node.dht)
        node.rpc.serve(content.servicer())
        contents.append(content)
    digest = contents[1].put(b"a blob" * 1000)
    await contents[1].announce(digest)
    assert await contents[4].fetch(digest, max_bytes=100_000) == b"a blob" * 1000
    contents[1].drop(digest)
    await trio.sleep(20)
    assert nodes[1].dht._providing._own == {}
    shutil.rmtree(folder)
