"""Gets: what they say of themselves, what they share, keep and mend, and what they leave behind."""

from __future__ import annotations

import dataclasses

import pytest
import trio
import trio.testing

from mesh.dht import DhtConfig, Entry, Role, StoreReport, Want
from mesh.dht.cache import ReadCache
from mesh.dht.report import Found
from mesh.errors import LocalProtocolError, RecordNotFound, RecordRejected
from mesh.identity import PeerKey
from mesh.kad.key import key_of_peer, key_of_record
from tests.dht.cluster import Cluster, Node, in_sim
from tests.dht.test_dht import send

EVE = PeerKey.dev("eve")


def holders(nodes: list[Node], key: bytes) -> set[int]:
    return {number for number, node in enumerate(nodes) if node.dht.local(key)}


def closest(nodes: list[Node], key: bytes, count: int) -> list[Node]:
    return sorted(nodes, key=lambda node: key_of_peer(node.id) ^ key_of_record(key))[:count]


@in_sim
async def test_a_get_says_how_many_agreed_and_how_old_it_is(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    await nodes[0].dht.put(b"any/a", b"one", ttl_s=600)
    found = await nodes[7].dht.get(b"any/a")
    assert (found[0].value, len(found), found.age_s) == (b"one", 1, 0.0)
    assert found.of(nodes[0].id) is found[0]
    with pytest.raises(RecordNotFound):
        found.of(nodes[1].id)
    assert 5 <= found.agreed <= found.answered <= 8
    # One replica holds an older record: it answered and does not agree.
    older = found[0]
    await nodes[0].dht.put(b"any/a", b"two", ttl_s=600)
    stale = next(n for n in closest(nodes, b"any/a", 5) if n is not nodes[0])
    stale.dht._holdings.store.drop(older.slot)
    await send(nodes[0], stale, older)
    again = await nodes[7].dht.get(b"any/a")
    assert again[0].value == b"two"
    assert again.agreed == again.answered - 1 or again.agreed < again.answered


@in_sim
async def test_replicas_that_lack_a_record_are_given_it_by_who_reads(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(10)
    report = await nodes[0].dht.put(b"any/a", b"one", ttl_s=600)
    replicas = closest([n for n in nodes if n is not nodes[0]], b"any/a", 5)
    for node in replicas[:3]:
        node.dht._holdings.store.drop(report.record.slot)
    reader = next(n for n in nodes[1:] if n not in replicas)
    await reader.dht.get(b"any/a")
    await trio.sleep(1)
    assert all(node.dht.local(b"any/a") for node in replicas)


@in_sim
async def test_a_get_for_the_first_leaves_a_copy_on_its_way_and_remembers_the_answer(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(replicas=2, cache_s=30))
    nodes = await cluster.grow(10)
    report = await nodes[0].dht.put(b"any/a", b"one", ttl_s=45)
    away = [n for n in nodes if n is not nodes[0]]
    nearest, *_ = closest(away, b"any/a", 1)
    nearest.dht._holdings.store.drop(report.record.slot)
    reader = next(n for n in reversed(away) if not n.dht.local(b"any/a") and n is not nearest)
    first = await reader.dht.get(b"any/a", want=Want.FIRST)
    await trio.sleep(1)
    assert nearest.dht.local(b"any/a")
    # From memory now, and said so; not a message is sent.
    requests = reader.dht.metrics.operation("get").requests
    await trio.sleep(9)
    again = await reader.dht.get(b"any/a", want=Want.FIRST)
    assert again.records == first.records
    assert 9 < again.age_s < 12
    assert reader.dht.metrics.operation("get").requests == requests
    assert reader.dht.metrics.cache_hits == 1
    # Whose owner is no member any more is not returned from memory either.
    cluster.strangers.add(nodes[0].id)
    with pytest.raises(RecordNotFound):
        await reader.dht.get(b"any/a", want=Want.FIRST)


def test_the_cache_keeps_nothing_longer_than_a_record_lives_and_no_more_than_its_bytes() -> None:
    cluster_now = 1_800_000_000.0
    record = _record(b"any/a", int((cluster_now + 20) * 1000))
    cache = ReadCache(max_bytes=1000, max_age_s=30.0)
    cache.put(Found(b"any/a", (record,), at=cluster_now))
    assert cache.get(b"any/a", now=cluster_now + 19.9) is not None
    assert cache.get(b"any/a", now=cluster_now + 20.1) is None
    long = dataclasses.replace(record, expiry_ms=int((cluster_now + 900) * 1000))
    cache.put(Found(b"any/a", (long,), at=cluster_now))
    assert cache.get(b"any/a", now=cluster_now + 30.1) is None
    cache.put(Found(b"any/a", (long,), at=cluster_now))
    assert cache.get(b"any/a", now=cluster_now - 1) is None  # a clock set back makes nothing younger
    for number in range(20):
        cache.put(Found(b"any/%d" % number, (long,), at=cluster_now))
    assert 1 <= len(cache) <= 5
    assert cache.get(b"any/0", now=cluster_now) is None
    assert cache.get(b"any/19", now=cluster_now) is not None
    cache.put(Found(b"any/big", (dataclasses.replace(long, value=bytes(2000)),), at=cluster_now))
    assert cache.get(b"any/big", now=cluster_now) is None


def _record(key: bytes, expiry_ms: int):  # type: ignore[no-untyped-def]
    from mesh.kad.record import sign_record

    return sign_record(EVE, key, b"v", expiry_ms=expiry_ms, seq=1, subnet_id=1, genesis=bytes(32))


@in_sim
async def test_gets_of_one_key_share_a_lookup_and_outlive_whoever_began_it(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    await nodes[0].dht.put(b"any/a", b"one", ttl_s=600)
    got: list[bytes] = []
    reader = nodes[7].dht

    async def one(scope: trio.CancelScope) -> None:
        with scope:
            got.append((await reader.get(b"any/a"))[0].value)

    before = reader.metrics.operation("get").requests
    await reader.get(b"any/a")
    alone = reader.metrics.operation("get").requests - before
    scopes = [trio.CancelScope() for _ in range(10)]
    async with trio.open_nursery() as gets:
        for scope in scopes:
            gets.start_soon(one, scope)
    assert got == [b"one"] * 10
    assert reader.metrics.operation("get").requests - before <= 2 * alone
    # Whoever leads is cancelled half-way: the others still get theirs, and nothing runs on.
    got.clear()
    scopes = [trio.CancelScope() for _ in range(10)]
    async with trio.open_nursery() as gets:
        for scope in scopes:
            gets.start_soon(one, scope)
        await trio.testing.wait_all_tasks_blocked()
        for scope in scopes[:9]:
            scope.cancel()
    assert got
    assert set(got) == {b"one"}
    assert reader._reader._flights == {}


@in_sim
async def test_a_put_is_seen_by_a_get_that_joined_an_older_lookup(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    dht = nodes[3].dht
    await dht.put(b"any/a", b"one", ttl_s=600)
    async with trio.open_nursery() as both:

        async def early() -> None:
            await dht.get(b"any/a")

        both.start_soon(early)
        await trio.testing.wait_all_tasks_blocked()
        await dht.put(b"any/a", b"two", ttl_s=600)
        found = await dht.get(b"any/a")
    assert found[0].value == b"two"


@in_sim
async def test_many_keys_at_once_cost_fewer_messages_than_one_by_one(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(12)
    keys = [b"any/%d" % number for number in range(64)]
    reports = await nodes[0].dht.put_many([(key, key) for key in keys], ttl_s=600)
    assert [report.record.key for report in reports] == keys
    assert all(len(report.stored) >= 5 and not report.refused for report in reports)
    reader = nodes[5]
    before = reader.rpc.metrics.calls_out
    found = await reader.dht.get_many([*keys, b"any/nothing", keys[0]])
    together = reader.rpc.metrics.calls_out - before
    assert {key: records[0].value for key, records in found.items()} == {key: key for key in keys}
    before = reader.rpc.metrics.calls_out
    for key in keys[:8]:
        await reader.dht.get(key)
    assert together < 3 * (reader.rpc.metrics.calls_out - before)
    with pytest.raises(RecordRejected):
        await reader.dht.get_many([b"any/1", b"unheard-of/1"])


@in_sim
async def test_many_big_records_come_in_several_messages(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery, config=DhtConfig(max_page_bytes=10_000))
    nodes = await cluster.grow(4)
    keys = [b"any/%d" % number for number in range(30)]
    reports = await nodes[0].dht.put_many([Entry(key, bytes(3000), b"s") for key in keys], ttl_s=600)
    assert all(len(report.stored) == 3 for report in reports)
    client = await cluster.add("client", role=Role.CLIENT)
    found = await client.dht.get_many(keys)
    assert {len(found[key][0].value) for key in keys} == {3000}


@in_sim
async def test_how_long_a_record_lives_is_said_once(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    (node,) = await cluster.grow(1)
    at = cluster.clock.now() + 300
    report: StoreReport = await node.dht.put(b"any/a", b"v", expires_at=at)
    assert report.record.expiry_ms == int(at * 1000)
    for wrong in ({}, {"ttl_s": 1.0, "expires_at": at}, {"ttl_s": float("nan")}, {"ttl_s": float("inf")}):
        with pytest.raises(LocalProtocolError):
            await node.dht.put(b"any/a", b"v", **wrong)
    with pytest.raises(RecordRejected) as caught:
        await node.dht.put(b"any/a", b"v", ttl_s=-5)
    assert caught.value.reason == "expired"


@in_sim
async def test_cancelled_anywhere_nothing_is_left(nursery: trio.Nursery) -> None:
    """Each operation is cancelled at each of its first awaits; afterwards the node has the tasks it had."""
    cluster = Cluster(nursery)
    nodes = await cluster.grow(6)
    dht = nodes[2].dht
    await nodes[0].dht.put(b"any/a", b"v", ttl_s=600)
    await trio.sleep(5)

    async def watch() -> None:
        async for _ in dht.watch(b"any/a"):
            pass

    operations = {
        "get": lambda: dht.get(b"any/a"),
        "first": lambda: dht.get(b"any/b", want=Want.FIRST),
        "many": lambda: dht.get_many([b"any/a", b"any/b", b"any/c"]),
        "put": lambda: dht.put(b"any/x", b"v", ttl_s=60),
        "put_many": lambda: dht.put_many([(b"any/y", b"1"), (b"any/z", b"2")], ttl_s=60),
        "delete": lambda: dht.delete(b"any/x"),
        "provide": lambda: dht.provide(b"digest"),
        "providers": lambda: dht.find_providers(b"digest"),
        "closest": lambda: dht.find_closest(b"any/a"),
        "crawl": lambda: dht.crawl(),
        "watch": watch,
    }
    for name, operation in operations.items():
        for after_s in (0.0, 0.005, 0.012, 0.02, 0.03):
            before = _tasks()
            with trio.move_on_after(after_s):
                await operation()
            await trio.testing.wait_all_tasks_blocked()
            assert _tasks() == before, (name, after_s)
        await trio.sleep(2)
    assert dht._reader._flights == {}


def _tasks() -> list[str]:
    """The names of all tasks of the DHT that live; RPC channels, which stay open, are left out."""
    found: list[str] = []
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        assert task is not None
        found += [task.name] if "mesh.dht" in task.name else []
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return sorted(found)
