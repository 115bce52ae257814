"""What a hostile peer can send to a DHT node: every field of every message wrong in every way, records wrong in every
part, and a thousand of them at once. Nothing of it is stored, nothing crashes, memory stays within the bounds of the
configuration, reasons are counted, and who sends it pays."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from pydantic import BaseModel

from mesh.auth.authorizer import PeerClass
from mesh.dht import DHT, DhtConfig, KadServicer, Role, Want
from mesh.dht.state import DhtState
from mesh.errors import ConfigError, MeshError, NotAuthorized, RecordNotFound
from mesh.identity import PeerKey
from mesh.kad import ipfs
from mesh.kad.rate import RateConfig
from mesh.kad.record import MAX_KEY_BYTES, MAX_RECORD_BYTES, MAX_SUBKEY_BYTES, Record
from mesh.kad.schedule import ScheduleConfig
from mesh.kad.store import StoreConfig
from mesh.kad.validator import ValidatorConfig
from mesh.kad.wire import (
    MAX_ADDRS,
    MAX_BATCH,
    Answer,
    FindReply,
    FindRequest,
    OfferRequest,
    PingRequest,
    ProofRequest,
    ProvideRequest,
    Query,
    StoreRequest,
)
from mesh.peer import PeerInfo
from mesh.protobuf import framed
from mesh.rpc.servicer import RpcContext, method
from tests.attacks.scene import Scale, bounded_growth, no_crashes, scales
from tests.dht.cluster import Cluster, Node, in_sim
from tests.dht.test_dht import send

EVE = PeerKey.dev("eve")
MIB = 2**20

QUERY = Query(target=bytes(32))
HONEST: dict[str, BaseModel] = {
    "rpc_ping": PingRequest(role=Role.SERVER),
    "rpc_find": FindRequest(role=Role.SERVER, addrs=(), queries=(QUERY,)),
    "rpc_store": StoreRequest(role=Role.SERVER, addrs=(), records=(b"",)),
    "rpc_provide": ProvideRequest(role=Role.SERVER, addrs=(), keys=(b"k",)),
    "rpc_offer": OfferRequest(role=Role.SERVER, addrs=(), digests=(bytes(32),)),
    "rpc_proof": ProofRequest(role=Role.SERVER, proofs=(b"",)),
}
ANY: tuple[Any, ...] = (
    None,
    -1,
    2**70,
    1.5,
    "x" * 300,
    b"\xff" * 70_000,
    [],
    {},
    [[]],
    [{"a": 1}],
    [None],
    [b""] * 5000,
)
"""Of no use in any field, but for what is left out below."""
FINE = {("rpc_find", "addrs", "[]"), ("rpc_store", "addrs", "[]"), ("rpc_provide", "addrs", "[]"),
        ("rpc_offer", "addrs", "[]")}  # fmt: skip


def wrong_messages() -> list[tuple[str, str, Any]]:
    """(method, field, value)."""
    cases = [
        (name, field, value)
        for name, message in HONEST.items()
        for field in type(message).model_fields
        if field not in ("want",)
        for value in ANY
        if (name, field, repr(value)) not in FINE
    ]
    cases += [(name, "want", value) for name in ("rpc_store", "rpc_provide") for value in (-1, 21, "x", None)]
    cases += [(name, "addrs", (b"a",) * (MAX_ADDRS + 1)) for name in ("rpc_find", "rpc_store")]
    cases += [
        ("rpc_store", "records", (b"x",) * (MAX_BATCH + 1)),
        ("rpc_store", "records", (bytes(MAX_RECORD_BYTES + 1),)),
    ]
    wrong_queries: list[dict[str, Any]] = [
        {"target": bytes(31)}, {"target": "x"}, {"key": b""}, {"key": bytes(MAX_KEY_BYTES + 1)},
        {"key": b"a", "target": bytes(32)}, {}, {"provided": b""}, {"target": bytes(32), "want": 21},
        {"key": b"a", "after": (b"x",)},
        {"key": b"a", "after": (bytes(45), b"")}, {"key": b"a", "after": (b"x", bytes(MAX_SUBKEY_BYTES + 1))},
    ]  # fmt: skip
    cases += [("rpc_find", "queries", (query,)) for query in wrong_queries]
    return cases


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # that is the point
def test_every_field_of_every_message_may_be_wrong_in_every_way() -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        node, honest = (await cluster.grow(2))[:2]
        await honest.dht.put(b"any/a", b"v", ttl_s=600)
        for number, (name, field, value) in enumerate(wrong_messages()):
            # A peer that goes on so is no longer answered at all: each lie comes from a peer of its own.
            eve = await cluster.add(f"eve-{number}", role=Role.CLIENT)
            fields = {one: getattr(HONEST[name], one) for one in type(HONEST[name]).model_fields}
            message = type(HONEST[name]).model_construct(**(fields | {field: value}))
            with pytest.raises(MeshError):
                await eve.rpc.call(getattr(KadServicer, name), node.id, message, timeout_s=5.0)
                pytest.fail(f"{name} took {value!r} for {field}")
            eve.stop()
        assert node.dht.gauges()["records"] == 1
        assert [record.value for record in await honest.dht.get(b"any/a")] == [b"v"]

    with no_crashes():
        run()


def wrong_records(cluster: Cluster, rng: random.Random) -> dict[str, list[bytes]]:
    """Bytes by the verdict on them."""
    now_ms = int(cluster.clock.now() * 1000)
    good = cluster.record(EVE)
    replaced: Callable[..., bytes] = lambda **changes: dataclasses.replace(good, **changes).to_bytes()  # noqa: E731
    raw = good.to_bytes()
    return {
        "malformed": [
            b"", b"\x9b", raw[:-1], raw + b"\x00", raw[:40], rng.randbytes(200),
            *(replaced(**{field: value}) for field, value in (
                ("key", "text"), ("subkey", 5), ("value", None), ("expiry_ms", b"1"), ("seq", 1.5), ("subnet_id", "1"),
                ("public_key_pb", "k"), ("signature", None), ("tombstone", 1), ("tombstone", True),
                ("genesis", b"short"),
                ("key", b""), ("key", bytes(MAX_KEY_BYTES + 1)), ("subkey", bytes(MAX_SUBKEY_BYTES + 1)),
                ("signature", b""), ("public_key_pb", b"abc"), ("seq", -1),
            )),
        ],
        "signature": [
            replaced(value=b"other"), replaced(subkey=b"other"), replaced(seq=good.seq + 1),
            replaced(signature=bytes(64)), replaced(signature=b"x"), replaced(expiry_ms=good.expiry_ms + 1),
        ],
        "genesis": [cluster.record(EVE, genesis=bytes(32)).to_bytes()],
        "subnet": [cluster.record(EVE, subnet_id=7).to_bytes()],
        "expired": [cluster.record(EVE, expiry_ms=now_ms - 1).to_bytes(), cluster.record(EVE, expiry_ms=0).to_bytes()],
        "ttl": [cluster.record(EVE, expiry_ms=2**63).to_bytes()],
        "future": [cluster.record(EVE, seq=2**64 - 1).to_bytes()],
        "namespace": [cluster.record(EVE, b"none/x").to_bytes(), cluster.record(EVE, b"nothing").to_bytes()],
        "size": [cluster.record(EVE, value=bytes(5000)).to_bytes()],
        "schema": [cluster.record(EVE, b"note/x", value).to_bytes() for value in (b"\x80", b"\xc1", b"")],
        "window": [cluster.record(EVE, b"vote/3/x").to_bytes()],
        "key": [cluster.record(EVE, b"vote/x").to_bytes()],
    }  # fmt: skip


def test_a_record_wrong_in_any_part_is_refused_with_the_reason_and_counted() -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        nodes = await cluster.grow(3)
        for reason, raws in wrong_records(cluster, random.Random(1)).items():
            for number, raw in enumerate(raws):
                sender = await cluster.add(f"{reason}-{number}", role=Role.CLIENT)
                request = StoreRequest(role=Role.SERVER, addrs=(), records=(raw, raw))
                reply = await sender.rpc.call(KadServicer.rpc_store, nodes[0].id, request)
                assert reply.verdicts == (reason, reason), (reason, number)
                sender.stop()
            assert nodes[0].dht.metrics.refused[reason] >= 2 * len(raws)
        assert nodes[0].dht.gauges()["records"] == 0

    with no_crashes():
        run()


@scales
def test_a_flood_of_bad_signatures_buys_few_checks(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signatures are checked last, within the sender's rate; each that fails makes the next dearer, until nothing of
    the sender is looked at. What a check costs is measured in benchmarks/dht_validate.py."""
    checks = 0
    real = Record.check_signature

    def counting(self: Record, *args: Any) -> None:
        nonlocal checks
        checks += 1
        real(self, *args)

    monkeypatch.setattr(Record, "check_signature", counting)

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        node, honest = (await cluster.grow(2))[:2]
        eve = await cluster.add("eve", role=Role.CLIENT)
        await honest.dht.put(b"any/a", b"v", ttl_s=3000)
        good = cluster.record(EVE)
        before, offered, refused = checks, 0, 0
        for number in scale.rounds(MAX_BATCH, least=10 * MAX_BATCH):
            raws = tuple(
                dataclasses.replace(good, value=b"%d" % (number + place)).to_bytes() for place in range(MAX_BATCH)
            )
            offered += MAX_BATCH
            try:
                request = StoreRequest(role=Role.SERVER, addrs=(), records=raws)
                reply = await eve.rpc.call(KadServicer.rpc_store, node.id, request)
                assert set(reply.verdicts) <= {"signature", "rate"}
            except NotAuthorized:
                refused += 1
        assert checks - before <= 0.05 * offered + 40, (checks, offered)
        assert refused > 0
        assert node.dht.metrics.refused["rate"] > 0
        assert node.dht.gauges()["records"] == 1
        # The honest peer stores and reads as ever.
        assert (await honest.dht.put(b"any/b", b"v", ttl_s=600)).stored == (node.id,)
        assert await honest.dht.get(b"any/a")

    with no_crashes(), bounded_growth(24 * MIB):
        run()


@scales
def test_a_flood_of_good_records_stays_within_the_stores_bounds(scale: Scale) -> None:
    """Members that sign and store as much as they can, under ever new keys: bytes and records stay within the config's,
    one sender has its share and no more, and what is nearer than all that stays."""
    config = DhtConfig(
        store=StoreConfig(max_bytes=2 * MIB, max_records=2000),
        validator=ValidatorConfig(
            rate=RateConfig(records_per_s=1e5, burst_records=1e5, bytes_per_s=1e9, burst_bytes=1e9)
        ),
    )

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery, config=config)
        node, honest = (await cluster.grow(2))[:2]
        senders = [await cluster.add(f"sender-{number}", role=Role.CLIENT) for number in range(6)]
        for number in scale.rounds(16, least=320):
            sender = senders[number // 16 % len(senders)]
            records = [cluster.record(sender.key, b"any/%d" % (number + place), bytes(3500)) for place in range(16)]
            verdicts = set(await send(sender, node, *records))
            assert verdicts <= {"", "quota", "full", "rate"}
            gauges = node.dht.gauges()
            assert gauges["record_bytes"] <= 2 * MIB
            assert gauges["records"] <= 2000
        assert {"quota", "full"} & set(node.dht.metrics.refused)
        assert await honest.dht.find_closest(b"any/a")

    with no_crashes(), bounded_growth(32 * MIB):
        run()


@scales
def test_a_flood_of_questions_is_answered_at_its_rate(scale: Scale) -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery, config=DhtConfig(member_finds_per_s=20.0))
        node, honest = (await cluster.grow(2))[:2]
        eve = await cluster.add("eve", role=Role.CLIENT)
        request = FindRequest(role=Role.SERVER, addrs=(), queries=(QUERY,) * 64)
        answered = refused = 0
        for _ in scale.rounds(1, least=50):
            try:
                await eve.rpc.call(KadServicer.rpc_find, node.id, request)
                answered += 1
            except NotAuthorized:
                refused += 1
        assert answered <= 1 + 20.0 * trio.current_time() / 64 + 2
        assert refused > 0
        assert await honest.dht.find_closest(b"any/a")

    with no_crashes(), bounded_growth(16 * MIB):
        run()


@scales
def test_garbage_on_the_other_wire(scale: Scale) -> None:
    """`/ipfs/kad/1.0.0`: random bytes, cut messages, wrong lengths, streams opened and left."""

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        node, honest = (await cluster.grow(2))[:2]
        await honest.dht.put(b"any/a", b"v", ttl_s=3000)
        eve = await cluster.add("eve", role=Role.CLIENT)
        rng = random.Random(3)
        get = ipfs.encode(ipfs.Message(ipfs.Kind.GET_VALUE, b"/any/a"))
        for number in scale.rounds(1, least=60):
            body = bytearray(get)
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            data = (
                rng.randbytes(rng.randrange(1, 300)),
                framed(bytes(body)),
                framed(get)[: rng.randrange(1, len(get))],
                b"\xff\xff\xff\xff\x0f",
                framed(ipfs.encode(ipfs.Message(ipfs.Kind.PUT_VALUE, b"/any/x", rng.randbytes(500), b"/any/x"))),
            )[number % 5]
            await _offer_bytes(eve, node, data)
        assert node.dht.gauges()["records"] == 1
        assert sum(node.dht.metrics.refused.values()) > 10
        assert [record.value for record in await honest.dht.get(b"any/a")] == [b"v"]
        await trio.sleep(120)
        assert not node.dht._peers.ipfs._streams  # type: ignore[union-attr]  # those left open have been closed

    with no_crashes(), bounded_growth(16 * MIB):
        run()


async def _offer_bytes(eve: Node, node: Node, data: bytes) -> None:
    try:
        stream = await eve.net.open(node.id, ipfs.protocol())
        await stream.send_all(data)
        with trio.move_on_after(0.5):
            await stream.receive_some()
        await stream.reset()
    except MeshError:
        return


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # that is the point
def test_an_answer_may_be_wrong_in_every_way_too() -> None:
    """Whom we ask lies in each field of its answer: the get goes on with others."""
    honest_answer = Answer(closer=())
    wrong: list[dict[str, Any]] = [
        {"answers": ()},
        {"answers": (honest_answer, honest_answer)},
        {"answers": (honest_answer.model_copy(update={"closer": (5,)}),)},
        {"answers": (honest_answer.model_copy(update={"providers": (3,)}),)},
        {"answers": (honest_answer.model_copy(update={"records": (b"garbage",)}),)},
        {"answers": (honest_answer.model_copy(update={"records": (b"",) * 3, "more": True}),)},
        {"answers": (honest_answer.model_copy(update={"more": True}),)},
        {"answers": (honest_answer.model_copy(update={"proofs": (b"garbage",)}),)},
        {"peers": ((b"\x12\x20short", ()),), "answers": (honest_answer,)},
        {"role": "king"},
        {"peers": ((bytes(45), ()),)},
    ]

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        for number, update in enumerate(wrong):

            class Lying(KadServicer):
                lie: dict[str, Any] = update

                @method(least=PeerClass.GUEST, max_request_bytes=64 * 1024, max_response_bytes=3 * 2**20)
                async def rpc_find(self, request: FindRequest, ctx: RpcContext) -> FindReply:
                    reply = await super().rpc_find(request, ctx)
                    return reply.model_copy(update=self.lie)

            class Liar(DHT):
                lying: type[KadServicer] = Lying

                def servicer(self) -> KadServicer:
                    return self.lying(self._peers, self._holdings, self._providers, self._config, self.metrics)

            cluster = Cluster(nursery, seed=number)
            nodes = await cluster.grow(4)
            await nodes[0].dht.put(b"any/a", b"v", ttl_s=600)
            await cluster.add(f"liar-{number}", kind=Liar)
            for node in nodes:
                assert [record.value for record in await node.dht.get(b"any/a")] == [b"v"], update
            for node in cluster.nodes:
                node.stop()

    with no_crashes():
        run()


# --- found by attacking it --------------------------------------------------------------------------------------------


def test_a_deleted_record_does_not_come_back_from_memory() -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        a = (await cluster.grow(8))[0].dht
        await a.put(b"any/a", b"v", ttl_s=600)
        await a.get(b"any/a")
        await a.delete(b"any/a")
        for want in (Want.FIRST, Want.LATEST, Want.FIRST):
            with pytest.raises(RecordNotFound):
                await a.get(b"any/a", want=want)

    run()


def test_a_key_of_many_providers_is_answered() -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        nodes = await cluster.grow(3)
        for number in range(40):
            nodes[0].dht._providers.add(b"popular", PeerInfo(PeerKey.dev(f"p{number}").peer_id), now=0.0)
        assert len(await nodes[1].dht.find_providers(b"popular", want=64)) == 20

    with no_crashes():
        run()


def test_who_is_told_to_wait_is_not_taken_for_dead() -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery, config=DhtConfig(member_finds_per_s=5.0))
        nodes = await cluster.grow(6)
        known = len(nodes[1].dht.peers)
        await nodes[1].dht.get_many([b"any/%d" % number for number in range(200)])
        assert len(nodes[1].dht.peers) == known

    run()


def test_calling_again_and_again_is_given_records_once() -> None:
    """A peer that is new, then a client, then new again, and one that finds no place."""

    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        node = (await cluster.grow(1))[0]
        await node.dht.put_many([(b"any/%d" % number, bytes(1000)) for number in range(50)], ttl_s=3000)
        eve = await cluster.add("eve")
        await trio.sleep(10)
        given = node.dht.metrics.given
        for _ in range(20):
            node.dht._peers.table.remove(eve.id)
            await eve.rpc.call(KadServicer.rpc_find, node.id, HONEST["rpc_find"])
            await trio.sleep(1)
        assert node.dht.metrics.given == given

    run()


def test_bytes_that_trickle_hold_a_stream_no_longer_than_silence() -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        node = (await cluster.grow(1))[0]
        eve = await cluster.add("eve", role=Role.CLIENT)
        stream = await eve.net.open(node.id, ipfs.protocol())
        for byte in framed(ipfs.encode(ipfs.Message(ipfs.Kind.GET_VALUE, b"/any/a")))[:4]:
            try:
                await stream.send_all(bytes([byte]))
            except MeshError:
                break
            await trio.sleep(40)
        assert not node.dht._peers.ipfs._streams  # type: ignore[union-attr]

    run()


def test_a_seq_is_not_given_out_that_could_not_be_saved(tmp_path: Path) -> None:
    state = DhtState(tmp_path / "state" / "dht.json", max_peers=4)
    first = state.next_seq(1000.0)
    (tmp_path / "state").rename(tmp_path / "gone")
    (tmp_path / "state").write_text("in the way")
    for _ in range(2):
        with pytest.raises(ConfigError):
            state.next_seq(5000.0)
    (tmp_path / "state").unlink()
    (tmp_path / "gone").rename(tmp_path / "state")
    assert DhtState(tmp_path / "state" / "dht.json", max_peers=4).next_seq(0.0) > first


def test_a_slow_replica_does_not_keep_others_records_from_being_published() -> None:
    @in_sim
    async def run(nursery: trio.Nursery) -> None:
        config = DhtConfig(schedule=ScheduleConfig(republish_s=30.0))
        cluster = Cluster(nursery, config=config)
        nodes = await cluster.grow(4)
        await nodes[0].dht.put_many([(b"any/%d" % number, b"v") for number in range(100)], ttl_s=3000)
        nodes[1].stop()
        await trio.sleep(120)
        slots = nodes[0].dht._schedule._records
        assert min(slots.values()) > trio.current_time() - 10  # none is long overdue

    run()
