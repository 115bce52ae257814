"""Several URLs of one chain: what does not agree with all of them does not count, and nobody gets in by it."""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.auth.authorizer import PeerClass
from mesh.auth.membership import MembershipAuthorizer, MembershipConfig
from mesh.auth.reading import TwoHistories, read_agreed
from mesh.chain.client import Chain
from mesh.chain.substrate import ChainConfig, SubstrateChain
from mesh.chain.types import BlockRef, Event, Snapshot
from mesh.devchain.node import DevChain, DevChainConfig, run_chain
from mesh.errors import ChainError, ChainUnavailable, NotAuthorized
from mesh.identity import PeerKey
from mesh.testing.chain import FakeChain, Ledger
from mesh.testing.simulation import run_sim
from tests.auth.test_streams import ACCOUNTS, BLOCK_S, MEMBER, PEERS, SUBNET, TENSOR, Stream, made_chain, not_elected
from tests.contract.test_chain import dev_bench, registered

STRANGER = PeerKey.dev("witness stranger").peer_id


class Url(FakeChain):
    """One URL's view of the ledger, which may lie, lag or hang."""

    behind = 0
    """Blocks it does not have yet."""
    hangs = False
    hides_events = False
    invented: bytes | None = None
    """Genesis of the chain it tells instead."""
    fork_from: int | None = None
    """First block that has another hash here; its state is what the ledger says."""
    final: int | None = None
    nodes_lie: Callable[[Snapshot], Snapshot] | None = None
    asked = 0

    @property
    def genesis(self) -> bytes:
        return self.invented or self.ledger.genesis

    def _own(self, block: BlockRef) -> BlockRef:
        if self.fork_from is None or block.number < self.fork_from:
            return block
        return BlockRef(block.number, bytes(b ^ 1 for b in block.hash))

    def _true(self, at: bytes) -> bytes:
        for block in self.ledger.blocks:
            if self._own(block.ref).hash == at and block.ref.number <= self.ledger.number - self.behind:
                return block.ref.hash
        raise ChainError("this URL does not know the block")

    async def _wait(self) -> None:
        self.asked += 1
        if self.hangs:
            await trio.sleep_forever()
        self._reach()

    async def head(self) -> BlockRef:
        await self._wait()
        return self._own(self.ledger.block_number(self.ledger.number - self.behind).ref)

    async def finalized(self) -> BlockRef:
        await self._wait()
        number = self.ledger.number - self.behind - 2 if self.final is None else self.final
        return self._own(self.ledger.block_number(number).ref)

    async def block_hash(self, number: int) -> bytes:
        await self._wait()
        if number > self.ledger.number - self.behind:
            raise ChainError("not there yet")
        return self._own(self.ledger.block_number(number).ref).hash

    async def events(self, at: bytes) -> tuple[Event, ...]:
        await self._wait()
        events = await super().events(self._true(at))
        return () if self.hides_events else events

    async def subnet(self, subnet_id: int, at: bytes | None = None) -> Any:
        await self._wait()
        return await super().subnet(subnet_id, self._true(at) if at else None)

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        await self._wait()
        assert at is not None
        found = await super().snapshot(subnet_id, BlockRef(at.number, self._true(at.hash)))
        found = replace(found, block=at)
        return self.nodes_lie(found) if self.nodes_lie else found


def scene(main: Callable[[Url, Url, MembershipAuthorizer], Awaitable[None]], **config: Any) -> None:
    async def bounded() -> None:
        beat = await made_chain()
        here, there = Url(beat.ledger), Url(beat.ledger)
        await trio.sleep(1)
        for _ in range(8):
            beat.new_block()
        who = MembershipAuthorizer(here, SUBNET, config=MembershipConfig(**config), witnesses=[there])
        async with trio.open_nursery() as nursery:
            await nursery.start(beat.run)
            await nursery.start(who.run)
            assert who.is_member(PEERS[0])
            await main(here, there, who)
            nursery.cancel_scope.cancel()

    run_sim(bounded, 1)


async def refused(who: MembershipAuthorizer, peer: Any = PEERS[0]) -> str:
    with pytest.raises(NotAuthorized) as caught:
        await who.authorize(peer, "/toy train", MEMBER)
    return caught.value.reason


def invent(snapshot: Snapshot) -> Snapshot:
    """A node that is not there."""
    fake = replace(snapshot.nodes[0], node_id=99, peer_id=STRANGER)
    return replace(snapshot, nodes=(*snapshot.nodes, fake))


def test_chains_that_agree_are_one() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        await trio.sleep(1000)
        assert who.members() == tuple(sorted(PEERS))
        assert await who.authorize(PEERS[0], "/toy train", MEMBER) is MEMBER
        assert await refused(who, STRANGER) == "not-registered"

    scene(main)


@pytest.mark.parametrize("liar", ["first", "witness"])
def test_an_invented_node_does_not_get_in(liar: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        (here if liar == "first" else there).nodes_lie = invent
        stream = Stream(who, PEERS[0])
        with trio.move_on_after(2 * BLOCK_S) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                await trio.sleep(0.5)
                assert await refused(who, STRANGER) == "chain-disagrees"
        assert not scope.cancelled_caught  # the stream ended by itself, and
        assert stream.ended is not None
        assert stream.ended[1] == "chain-disagrees"  # which of them lies is not known, so nobody is believed
        assert await refused(who) == "chain-disagrees"
        assert who.members() == ()
        here.nodes_lie = there.nodes_lie = None
        await trio.sleep(2 * BLOCK_S)
        assert who.members() == tuple(sorted(PEERS))

    scene(main)
    assert "tell different things" in caplog.text


def test_another_genesis_is_refused_at_once() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        there.invented = bytes(32)
        assert await refused(who, STRANGER) == "chain-disagrees"
        assert await refused(who) == "chain-disagrees"

    scene(main)


def test_two_final_histories_are_refused_at_once_and_a_short_fork_is_waited_for() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        await trio.sleep(1)
        there.fork_from = here.ledger.number
        assert await refused(who, STRANGER) == "chain-disagrees"
        assert await who.authorize(PEERS[0], "/toy train", MEMBER) is MEMBER  # named before the fork
        there.fork_from = None
        await trio.sleep(2 * BLOCK_S)
        assert await refused(who, STRANGER) == "not-registered"
        there.fork_from = here.ledger.number - 4
        assert await refused(who, PeerKey.dev("witness other").peer_id) == "chain-disagrees"
        assert await refused(who) == "chain-disagrees"

    scene(main)


def test_a_fork_that_does_not_settle_ends_with_the_grace() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        there.fork_from, there.final = here.ledger.number, 1  # and nothing above is ever final, it says
        await trio.sleep(BLOCK_S)
        proven_at = who._proven_at
        await trio.sleep_until(proven_at + 89.9)
        assert who.is_member(PEERS[0])
        await trio.sleep(0.2)
        assert await refused(who) == "chain-disagrees"

    scene(main, stale_after_s=30, grace_s=60)


def test_a_url_that_hides_a_removal_is_found_out_by_the_other() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        here.hides_events = True
        gone = not_elected(here)
        args = {"subnet_id": SUBNET, "subnet_node_id": gone + 1}
        await here.submit("remove_subnet_node", args, ACCOUNTS[gone])
        await trio.sleep(1)
        assert await refused(who, PEERS[gone]) == "not-registered"

    scene(main)


def test_a_url_that_stands_still_is_not_believed() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        async def no_heads() -> Any:
            await trio.sleep_forever()
            yield

        here.heads = no_heads  # type: ignore[method-assign]
        start = here.ledger.number
        async with trio.open_nursery() as nursery:
            other = MembershipAuthorizer(here, SUBNET, config=who.config, witnesses=[there])
            await nursery.start(other.run)
            assert other.is_member(PEERS[0])
            for _ in range(40):  # its head stays where it was, whatever the others say
                here.behind = here.ledger.number - start
                await trio.sleep(BLOCK_S / 2)
            assert await refused(other) == "chain-unreachable"
            nursery.cancel_scope.cancel()

    scene(main, stale_after_s=30, grace_s=30)


@pytest.mark.parametrize("fault", ["away", "hangs"])
def test_a_witness_that_does_not_answer_costs_the_grace_and_then_everybody(fault: str) -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        setattr(there, fault, True)
        start = trio.current_time()
        assert await refused(who, STRANGER) == "not-registered"
        assert trio.current_time() - start <= 5
        assert who.is_member(PEERS[0])
        await trio.sleep(90)
        assert await refused(who) == "chain-unreachable"
        setattr(there, fault, False)
        await trio.sleep(4 * BLOCK_S)
        assert who.is_member(PEERS[0])

    scene(main, timeout_s=5, stale_after_s=30, grace_s=60)


def test_a_witness_may_lag_a_little_and_what_it_has_not_seen_does_not_count_yet() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        await trio.sleep(BLOCK_S)
        there.behind = 2
        gone = not_elected(here)
        args = {"subnet_id": SUBNET, "subnet_node_id": gone + 1}
        await here.submit("remove_subnet_node", args, ACCOUNTS[gone])
        await trio.sleep(1)
        assert who.is_member(PEERS[gone])
        await trio.sleep(2 * BLOCK_S)
        assert not who.is_member(PEERS[gone])
        assert who.is_member(PEERS[(gone + 1) % 3])
        there.behind = 4  # too far: and back in time it cannot lead us
        await trio.sleep(2 * BLOCK_S)
        assert not who.is_member(PEERS[gone])
        await trio.sleep(90)
        assert await refused(who) == "chain-unreachable"

    scene(main, max_lag_blocks=3, stale_after_s=30, grace_s=60)


def test_agreement_on_an_older_block_than_known_does_not_count() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        assert who._view is not None
        known = who._view.block.number
        here.behind = there.behind = 3
        with pytest.raises(ChainUnavailable, match="older than known"):
            await who.refresh()
        assert who._view.block.number == known

    scene(main)


def test_many_questions_of_strangers_stay_few_with_witnesses() -> None:
    async def main(here: Url, there: Url, who: MembershipAuthorizer) -> None:
        before, start = there.asked, trio.current_time()
        for i in range(100):
            await refused(who, PeerKey.dev(f"witness crowd {i}").peer_id)
        assert trio.current_time() == start
        assert there.asked - before <= 3 * 5

    scene(main)


async def test_two_connections_to_real_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    async with dev_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        subnet_id = await registered(bench)
        other = DevChain(DevChainConfig(fund={f"0x{'1' * 40}": TENSOR}))
        urls = [bench.chain.url]
        urls.append(await nursery.start(functools.partial(run_chain, other.config, chain=other)))
        chains: list[Chain] = [bench.chain]
        for number, url in enumerate(urls):
            chain = SubstrateChain(ChainConfig(urls=(url,)), journal_dir=tmp_path / str(number), rng=random.Random(1))
            await nursery.start(chain.run)
            chains.append(chain)
        reading = await read_agreed(chains[:2], subnet_id, max_lag_blocks=0)
        assert reading == await read_agreed(chains[:1], subnet_id, max_lag_blocks=0)
        assert len(reading.snapshot.nodes) == 3
        with pytest.raises(TwoHistories, match="genesis"):
            await read_agreed(chains, subnet_id, max_lag_blocks=0)
        nursery.cancel_scope.cancel()
    other.close()


def test_different_ledgers_never_agree() -> None:
    async def bounded() -> None:
        beat = await made_chain()
        other = FakeChain(Ledger(seed=2, fund={key.account_id: TENSOR for key in ACCOUNTS}))
        who = MembershipAuthorizer(beat, SUBNET, witnesses=[other])
        async with trio.open_nursery() as nursery:
            await nursery.start(who.run)
            assert await refused(who) == "chain-disagrees"
            assert who.peer_class(PEERS[0]) is PeerClass.PUBLIC
            nursery.cancel_scope.cancel()

    run_sim(bounded, 1)
