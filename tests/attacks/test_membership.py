"""Streams between members, with a chain behind them that takes the right away, is killed, or is told in two ways."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from mesh.auth.membership import MembershipAuthorizer, MembershipConfig
from mesh.chain.staking import NodeTerms, node_args
from mesh.chain.types import BlockRef, Snapshot
from mesh.errors import NotAuthorized
from mesh.identity import AccountKey, PeerKey
from mesh.rpc.rpc import Rpc
from mesh.testing.chain import FakeChain, Ledger
from mesh.testing.network import SimNetwork
from mesh.testing.simulation import run_sim

from .scene import CONFIG, Part, Scale, Target, check_clean, count_tasks, no_crashes, scales

TENSOR = 10**18
SUBNET = 128_001
BLOCK_S = 6.0
ACCOUNTS = [AccountKey.from_private(bytes((n,)) * 32) for n in range(1, 9)]
KEYS = [PeerKey.dev(f"attacks member {n}") for n in range(3)]
STALE_S, GRACE_S = 30.0, 60.0


async def made_chain() -> FakeChain:
    """An active subnet of three nodes with 10 TENSOR each."""
    ledger = Ledger(seed=1, fund={key.account_id: 10_000 * TENSOR for key in ACCOUNTS})
    chain = FakeChain(ledger, block_time_s=BLOCK_S)
    data = {"name": b"s", "min_stake": TENSOR, "max_stake": 100 * TENSOR, "bootnodes": {b"x": b"y"}}
    calls: list[tuple[str, dict[str, object], AccountKey]] = [
        ("register_subnet", {"max_cost": 1, "subnet_data": data}, ACCOUNTS[0])
    ]
    for i, key in enumerate(KEYS):
        terms = NodeTerms(ACCOUNTS[i + 4].account_id, key.peer_id, None, None, 10 * TENSOR, max_burn_planck=0)
        calls.append(("register_subnet_node", node_args(SUBNET, terms), ACCOUNTS[i]))
    calls.append(("activate_subnet", {"subnet_id": SUBNET}, ACCOUNTS[0]))
    for name, args, key in calls:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chain.submit, name, args, key)
            await trio.sleep(0.1)
            chain.new_block()
    return chain


class Liar(FakeChain):
    """A URL that leaves one node out, once told to."""

    hides: int | None = None

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        found = await super().snapshot(subnet_id, at)
        return replace(found, nodes=tuple(node for node in found.nodes if node.node_id != self.hides))


class Town:
    """Three members, the first of which serves by what its own view of the chain says."""

    def __init__(self, beat: FakeChain, who: MembershipAuthorizer, view: FakeChain, witness: Liar) -> None:
        self.beat, self.who, self.view, self.witness = beat, who, view, witness
        sim = SimNetwork(seed=5, latency_s=0.01)
        self.rpcs = [Rpc(sim.node(key), who, config=CONFIG, rng=random.Random(1)) for key in KEYS]
        self.rpcs[0].serve(Target())
        self.ended: dict[int, tuple[float, str]] = {}

    async def watch(self, index: int) -> None:
        """One member's stream from the server, until it is refused; `ended` says when and why."""
        try:
            async with self.rpcs[index].open(Target.rpc_watch, KEYS[0].peer_id, Part()) as beats:
                async for _ in beats:
                    pass
        except NotAuthorized as error:
            self.ended[index] = trio.current_time(), error.reason


@asynccontextmanager
async def town(*, witnessed: bool = False, min_stake: int = 0) -> AsyncIterator[Town]:
    beat = await made_chain()
    view, witness = FakeChain(beat.ledger), Liar(beat.ledger)
    for _ in range(4):
        beat.new_block()
    config = MembershipConfig(
        stale_after_s=STALE_S, grace_s=GRACE_S, min_stake_planck=min_stake, queries_per_s=1.0, max_unknown=64
    )
    who = MembershipAuthorizer(view, SUBNET, config=config, witnesses=[witness] if witnessed else [])
    it = Town(beat, who, view, witness)
    async with trio.open_nursery() as nursery:
        await nursery.start(beat.run)
        await nursery.start(who.run)
        for rpc in it.rpcs:
            for other in it.rpcs:
                rpc.net.learn(other.net.local)
            await nursery.start(rpc.net.run)
            await nursery.start(rpc.run)
        yield it
        nursery.cancel_scope.cancel()


def simulate(main: Callable[[], Awaitable[None]], seed: int) -> None:
    with no_crashes():
        run_sim(main, seed)


def may_leave(it: Town) -> int:
    """One of the two callers that may leave now: an elected node may not."""
    subnet = it.beat.ledger.subnets[SUBNET]
    return next(i for i in (1, 2) if i + 1 not in subnet.elected.values())


@pytest.mark.parametrize("how", ["stake withdrawn", "removed"])
@scales
def test_who_loses_its_right_loses_its_streams_within_an_epoch(scale: Scale, how: str) -> None:
    """At a random moment of the epoch; the other member's stream goes on."""

    async def main(seed: int) -> None:
        rng = random.Random(seed)
        async with town(min_stake=8 * TENSOR) as it:
            tasks = count_tasks()
            async with trio.open_nursery() as nursery:
                for index in (1, 2):
                    nursery.start_soon(it.watch, index)
                await trio.sleep(1 + rng.random() * BLOCK_S * it.view.epoch_length)
                assert not it.ended
                gone = may_leave(it)
                args: dict[str, object] = {"subnet_id": SUBNET}
                if how == "removed":
                    call = "remove_subnet_node"
                    args |= {"subnet_node_id": gone + 1}
                else:
                    call = "remove_stake"
                    args |= {"hotkey": ACCOUNTS[gone + 4].account_id, "stake_to_be_removed": 3 * TENSOR}
                await it.beat.submit(call, args, ACCOUNTS[gone])
                included_at = trio.current_time()
                await trio.sleep(BLOCK_S * it.view.epoch_length)
                assert list(it.ended) == [gone]
                ended_at, reason = it.ended[gone]
                assert ended_at - included_at <= BLOCK_S * it.view.epoch_length
                assert reason == ("not-registered" if how == "removed" else "class-too-low")
                with pytest.raises(NotAuthorized) as caught:
                    await it.rpcs[gone].call(Target.rpc_plain, KEYS[0].peer_id, Part())
                assert caught.value.reason == reason
                assert it.rpcs[0].metrics.methods_in[f"{Target.protocol} watch"].running == 1
                nursery.cancel_scope.cancel()
            await trio.sleep(2 * CONFIG.idle_s)  # the callers' channels close, too
            check_clean(it.rpcs[0])
            assert count_tasks() <= tasks

    for number in scale.rounds(50):
        simulate(lambda seed=number: main(seed), number)  # type: ignore[misc]


@scales
def test_a_killed_chain_ends_streams_after_the_grace_and_not_before(scale: Scale) -> None:
    async def main(seed: int) -> None:
        rng = random.Random(seed)
        async with town() as it:
            async with trio.open_nursery() as nursery:
                for index in (1, 2):
                    nursery.start_soon(it.watch, index)
                await trio.sleep(1 + rng.random() * 60)
                it.view.away = True
                proven_at = it.who._proven_at
                end = proven_at + STALE_S + GRACE_S
                await trio.sleep_until(end - 0.001)
                assert not it.ended
                await trio.sleep_until(end + 0.1)
                assert {index: reason for index, (_, reason) in it.ended.items()} == {
                    1: "chain-unreachable",
                    2: "chain-unreachable",
                }
                # Back again: they may come back, too.
                it.view.away = False
                await trio.sleep(2 * BLOCK_S)
                await it.rpcs[1].call(Target.rpc_plain, KEYS[0].peer_id, Part())
            check_clean(it.rpcs[0])

    for number in scale.rounds(50):
        simulate(lambda seed=number: main(seed), number)  # type: ignore[misc]


@scales
def test_two_urls_that_disagree_let_nobody_in(scale: Scale) -> None:
    """A URL that begins to hide a node ends all streams with the next reading, an epoch later at most: nobody can say
    who is a member. When it tells the truth again all come back."""

    async def main(seed: int) -> None:
        rng = random.Random(seed)
        async with town(witnessed=True) as it:
            async with trio.open_nursery() as nursery:
                for index in (1, 2):
                    nursery.start_soon(it.watch, index)
                await trio.sleep(1 + rng.random() * 60)
                assert not it.ended
                it.witness.hides = rng.choice((2, 3))
                await trio.sleep(BLOCK_S * it.view.epoch_length + 1)
                assert {index: reason for index, (_, reason) in it.ended.items()} == {
                    1: "chain-disagrees",
                    2: "chain-disagrees",
                }
                for index in (1, 2):
                    with pytest.raises(NotAuthorized) as caught:
                        await it.rpcs[index].call(Target.rpc_plain, KEYS[0].peer_id, Part())
                    assert caught.value.reason == "chain-disagrees"
                it.witness.hides = None
                await trio.sleep(2 * BLOCK_S)
                await it.rpcs[1].call(Target.rpc_plain, KEYS[0].peer_id, Part())
            check_clean(it.rpcs[0])

    for number in scale.rounds(50):
        simulate(lambda seed=number: main(seed), number)  # type: ignore[misc]


@scales
def test_a_crowd_of_strangers_costs_the_members_nothing(scale: Scale) -> None:
    """Identities are free: each is refused, few questions go to the chain, what is remembered of them is bounded."""

    async def main() -> None:
        async with town() as it:
            sim = it.rpcs[0].net._sim  # type: ignore[attr-defined]
            crowd = [sim.node(PeerKey.dev(f"attacks stranger {n}")) for n in range(100)]
            readings, begun = it.who._readings, trio.current_time()
            refused = 0
            async with trio.open_nursery() as nursery:
                for node in crowd:
                    node.learn(it.rpcs[0].net.local)
                    await nursery.start(node.run)
                nursery.start_soon(it.watch, 1)
                strangers = [Rpc(node, it.who, config=CONFIG, rng=random.Random(n)) for n, node in enumerate(crowd)]
                for stranger in strangers:
                    await nursery.start(stranger.run)
                for number in scale.rounds():
                    with pytest.raises(NotAuthorized):
                        await strangers[number % 100].call(Target.rpc_plain, KEYS[0].peer_id, Part())
                    refused += 1
                    if number % 10 == 0:
                        await it.rpcs[2].call(Target.rpc_plain, KEYS[0].peer_id, Part(n=number))
                assert not it.ended
                seconds = trio.current_time() - begun
                assert it.who._readings - readings <= 3 + seconds + seconds / BLOCK_S
                assert len(it.who._unknown) <= it.who.config.max_unknown
                nursery.cancel_scope.cancel()
            await trio.sleep(1)
            check_clean(it.rpcs[0])
            assert it.rpcs[0].metrics.errors_in["not-authorized"] >= refused

    simulate(main, 3)
