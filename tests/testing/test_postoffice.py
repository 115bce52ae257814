"""The post: messages arrive after a delay or are known to be lost; stores keep the product's rules."""

from __future__ import annotations

import dataclasses
import random

import pytest

from mesh.clock import SimClock
from mesh.content import digest_of
from mesh.errors import ContentNotFound, DialFailed, ProtocolNotSpoken, RecordRejected, RequestTimeout
from mesh.identity import PeerKey
from mesh.kad.validator import BlockPosition, NamespaceRule, window
from mesh.testing.postoffice import Desk, PostOffice
from mesh.testing.simulation import run_sim

KEYS = [PeerKey.dev(f"post {n}") for n in range(3)]
PEERS = [key.peer_id for key in KEYS]
RULE = NamespaceRule("any", max_value_bytes=8, predicate=window(0, 18), is_evidence=True)


class Clerk:
    """Answers what it is asked."""

    async def rpc_echo(self, request: str, ctx: object) -> str:
        return request


def desks(*, delay_s: float = 1.0, loss: float = 0.0, offset: int = 5) -> tuple[PostOffice, list[Desk]]:
    office = PostOffice(rng=random.Random(1), delay_s=delay_s, loss=loss)
    made = [
        Desk(
            office,
            key,
            rules=[RULE],
            subnet_id=1,
            genesis=bytes(32),
            position=lambda: BlockPosition(100, 3, offset, 20),
            clock=SimClock(),
        )
        for key in KEYS
    ]
    return office, made


def test_a_record_is_held_by_those_it_reached() -> None:
    async def main() -> None:
        office, (one, two, three) = desks()
        office.closed.add(PEERS[2])
        receipt = await one.put(b"any/3", b"hello", ttl_s=60.0, peers=PEERS[1:])
        assert receipt.stored == (PEERS[1],)
        assert one.local(b"any/3") == two.local(b"any/3") == (receipt.record,)
        assert three.local(b"any/3") == ()
        assert office.carried == 1

    run_sim(main, 1)


def test_stores_refuse_what_the_rules_refuse() -> None:
    async def main() -> None:
        _, (one, two, _) = desks()
        good = (await one.put(b"any/3", b"hello", ttl_s=60.0, peers=[])).record
        forged = dataclasses.replace(good, value=b"other")
        assert await one.push(forged, [PEERS[1]]) == {PEERS[1]: "signature"}
        assert await one.push(good, [PEERS[1]]) == {PEERS[1]: ""}
        assert await one.push(good, [PEERS[1]]) == {PEERS[1]: "duplicate"}
        assert two.refused == {"signature": 1, "duplicate": 1}
        with pytest.raises(RecordRejected):
            await one.put(b"any/3", b"much too long", ttl_s=60.0, peers=[])
        with pytest.raises(RecordRejected):
            await one.put(b"any/2", b"late", ttl_s=60.0, peers=[])

    run_sim(main, 1)


def test_what_is_lost_is_known_to_be_lost() -> None:
    async def main() -> None:
        office, (one, _, _) = desks(loss=1.0)
        receipt = await one.put(b"any/3", b"hello", ttl_s=60.0, peers=PEERS[1:])
        assert receipt.stored == ()
        with pytest.raises(DialFailed):
            await office.carry(PEERS[0], PEERS[1])

    run_sim(main, 1)


def test_a_blob_comes_from_the_first_that_has_it() -> None:
    async def main() -> None:
        _, (one, two, three) = desks()
        digest = three.content.put(b"evidence")
        assert digest == digest_of(b"evidence")
        with pytest.raises(ContentNotFound):
            await one.content.fetch(digest, max_bytes=100, peers=PEERS[:2])
        with pytest.raises(ContentNotFound):
            await one.content.fetch(digest, max_bytes=3, peers=PEERS)
        assert await one.content.fetch(digest, max_bytes=100, peers=PEERS) == b"evidence"
        assert await two.content.fetch(digest, max_bytes=100, peers=PEERS[:1]) == b"evidence"
        assert one.content.fetched_bytes == 8

    run_sim(main, 1)


def test_calls_are_answered_in_time_or_not_at_all() -> None:
    async def main() -> None:
        _, (one, two, _) = desks(delay_s=2.0)
        two.content.rpc.serve(Clerk())
        assert await one.content.rpc.stub(Clerk, PEERS[1]).rpc_echo("hello", timeout_s=10.0) == "hello"
        with pytest.raises(ProtocolNotSpoken):
            await one.content.rpc.stub(Clerk, PEERS[2]).rpc_echo("hello", timeout_s=10.0)
        with pytest.raises(RequestTimeout):
            await one.content.rpc.stub(Clerk, PEERS[1]).rpc_echo("hello", timeout_s=0.01)

    run_sim(main, 1)
