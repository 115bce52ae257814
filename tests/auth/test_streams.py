"""Long streams: whoever was let in is looked at again when the chain says something new, or nothing for too long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from mesh.auth.authorizer import Authorizer, Everyone, PeerClass
from mesh.auth.combine import AllOf, AllowList, AnyOf
from mesh.auth.membership import MembershipAuthorizer, MembershipConfig
from mesh.auth.rate import RateLimited
from mesh.chain.staking import NodeTerms, node_args
from mesh.chain.types import NodeClass
from mesh.errors import NotAuthorized
from mesh.identity import AccountKey, PeerKey
from mesh.peer import PeerID
from mesh.testing.chain import FakeChain, Ledger
from mesh.testing.simulation import run_sim

TENSOR = 10**18
SUBNET = 128_001
BLOCK_S = 6.0
MEMBER = PeerClass.MEMBER
ACCOUNTS = [AccountKey.from_private(bytes((n,)) * 32) for n in range(1, 9)]
PEERS = [PeerKey.dev(f"streams {n}").peer_id for n in range(3)]


async def made_chain(block_time_s: float | None = BLOCK_S) -> FakeChain:
    """An active subnet of three nodes with 10 TENSOR each, at the start of its first epoch."""
    ledger = Ledger(seed=1, fund={key.account_id: 10_000 * TENSOR for key in ACCOUNTS})
    chain = FakeChain(ledger, block_time_s=block_time_s)
    data = {"name": b"s", "min_stake": TENSOR, "max_stake": 100 * TENSOR, "bootnodes": {b"x": b"y"}}
    calls: list[tuple[str, dict[str, object], AccountKey]] = [
        ("register_subnet", {"max_cost": 1, "subnet_data": data}, ACCOUNTS[0])
    ]
    for i, peer in enumerate(PEERS):
        terms = NodeTerms(ACCOUNTS[i + 4].account_id, peer, None, None, 10 * TENSOR, max_burn_planck=0)
        calls.append(("register_subnet_node", node_args(SUBNET, terms), ACCOUNTS[i]))
    calls.append(("activate_subnet", {"subnet_id": SUBNET}, ACCOUNTS[0]))
    for call, args, key in calls:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chain.submit, call, args, key)
            await trio.sleep(0.1)
            chain.new_block()
    return chain


class Stream:
    """What the RPC layer does beside an open stream; `ended` is when and why."""

    def __init__(self, who: Authorizer, peer: PeerID) -> None:
        self.who, self.peer = who, peer
        self.ended: tuple[float, str] | None = None
        self.looked = 0

    async def run(self) -> None:
        seen = self.who.changes
        try:
            await self.who.authorize(self.peer, "/toy watch", MEMBER)
            while True:
                seen = await self.who.wait_change(seen)
                self.looked += 1
                await self.who.recheck(self.peer, MEMBER)
        except NotAuthorized as error:
            self.ended = trio.current_time(), error.reason


WRAPS: dict[str, Callable[[Authorizer], Authorizer]] = {
    "bare": lambda who: who,
    "all": lambda who: AllOf(Everyone(), who),
    "any": lambda who: AnyOf(AllowList([]), who),
    "rate": RateLimited,
    "nested": lambda who: AllOf(RateLimited(AnyOf(AllowList([]), who)), Everyone()),
}


def told(wrap: str, reason: str) -> str:
    """The reason as it comes out of a wrap: an AnyOf whose list refuses as well says so."""
    return "all-refused" if wrap in ("any", "nested") else reason


def scene(
    main: Callable[[FakeChain, MembershipAuthorizer, list[Stream]], Awaitable[None]],
    wrap: Callable[[Authorizer], Authorizer] = WRAPS["bare"],
    *,
    block_time_s: float | None = BLOCK_S,
    **config: Any,
) -> None:
    async def bounded() -> None:
        chain = await made_chain(block_time_s)
        who = MembershipAuthorizer(chain, SUBNET, config=MembershipConfig(**config))
        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run)
            await nursery.start(who.run)
            streams = [Stream(wrap(who), peer) for peer in PEERS]
            for stream in streams:
                nursery.start_soon(stream.run)
            await trio.sleep(1)
            await main(chain, who, streams)
            nursery.cancel_scope.cancel()

    run_sim(bounded, 1)


def not_elected(chain: FakeChain) -> int:
    """Index of a node that may leave now: an elected one may not."""
    subnet = chain.ledger.subnets[SUBNET]
    return next(i for i in range(3) if i + 1 not in subnet.elected.values())


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_streams_of_a_removed_node_end_with_the_block_that_says_so(wrap: str) -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        gone = not_elected(chain)
        args = {"subnet_id": SUBNET, "subnet_node_id": gone + 1}
        receipt = await chain.submit("remove_subnet_node", args, ACCOUNTS[gone])
        included_at = trio.current_time()
        await trio.sleep(BLOCK_S * chain.epoch_length)
        assert receipt.block.number < chain.ledger.number
        assert streams[gone].ended is not None
        ended_at, reason = streams[gone].ended
        assert (reason, ended_at - included_at < BLOCK_S) == (told(wrap, "not-registered"), True)
        assert [s.ended for i, s in enumerate(streams) if i != gone] == [None, None]

    scene(main, WRAPS[wrap])


def test_stake_withdrawn_below_the_least_ends_streams() -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        poor = not_elected(chain)
        for amount, expected in ((2 * TENSOR, None), (1 * TENSOR, "class-too-low")):
            args = {
                "subnet_id": SUBNET,
                "hotkey": ACCOUNTS[poor + 4].account_id,
                "stake_to_be_removed": amount,
            }
            await chain.submit("remove_stake", args, ACCOUNTS[poor])
            await trio.sleep(BLOCK_S - 1)
            ended = streams[poor].ended
            assert (ended and ended[1]) == expected
        assert sum(1 for stream in streams if stream.ended) == 1

    scene(main, min_stake_planck=8 * TENSOR)


def test_a_lowered_class_ends_streams_at_the_next_epoch_at_the_latest() -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        subnet = chain.ledger.subnets[SUBNET]  # by no event at all: the slot block's reading finds it
        subnet.nodes[1] = replace(subnet.nodes[1], node_class=NodeClass.IDLE)
        await trio.sleep(BLOCK_S * (chain.epoch_length + 1))
        assert streams[0].ended is not None
        assert streams[0].ended[1] == "class-too-low"
        assert [s.ended for s in streams[1:]] == [None, None]

    scene(main, min_class=NodeClass.INCLUDED)


@pytest.mark.parametrize("wrap", WRAPS)
def test_without_the_chain_streams_end_when_the_grace_does_and_not_before(wrap: str) -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        chain.away = True  # killed: no heads, no answers
        proven_at = who._proven_at
        await trio.sleep_until(proven_at + 30 + 60 - 0.001)
        assert [stream.ended for stream in streams] == [None] * 3
        await trio.sleep(0.002)
        assert [stream.ended for stream in streams] == [(proven_at + 90, told(wrap, "chain-unreachable"))] * 3
        looked = sum(stream.looked for stream in streams)
        await trio.sleep(3600)
        assert sum(stream.looked for stream in streams) == looked
        changes = who.changes
        chain.away = False
        await trio.sleep(2 * BLOCK_S)
        assert who.changes > changes  # that they are members again is a change as well
        again = Stream(who, PEERS[0])
        with trio.move_on_after(60):
            await again.run()
        assert again.ended is None

    scene(main, WRAPS[wrap], stale_after_s=30, grace_s=60)


def test_a_chain_that_comes_back_within_the_grace_ends_nothing() -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        for _ in range(5):
            chain.away = True
            await trio.sleep(80)
            chain.away = False
            await trio.sleep(10)
        assert [stream.ended for stream in streams] == [None] * 3

    scene(main, stale_after_s=30, grace_s=60)


def test_each_grace_ends_although_no_block_ever_comes() -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        for _ in range(3):
            readings = who._readings
            await trio.sleep(500)  # idle, and not away: nothing ends
            stream = Stream(who, PEERS[0])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                await trio.sleep(1)
                assert stream.ended is None
                chain.away = True
                await trio.sleep(100)
                assert stream.ended is not None
            seen = who.changes
            chain.away = False
            with trio.fail_after(11):  # the probe finds it back, and whoever waits to come back is told
                await who.wait_change(seen)
            assert who.is_member(PEERS[0])
            assert who._readings == readings

    scene(main, block_time_s=None, stale_after_s=30, grace_s=60)


def test_looking_again_asks_no_chain_and_takes_no_rate() -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        chain.away = True
        stranger, start = PeerKey.dev("streams stranger").peer_id, trio.current_time()
        for _ in range(100):
            await who.recheck(PEERS[0], MEMBER)
            with pytest.raises(NotAuthorized):
                await who.recheck(stranger, MEMBER)
            await who.recheck(stranger, PeerClass.GUEST)
            await who.classify(stranger, "/toy ask", PeerClass.GUEST)  # our call to it
        assert trio.current_time() == start
        await who.authorize(stranger, "/toy ask", PeerClass.GUEST)
        with pytest.raises(NotAuthorized, match="a second as a guest") as caught:
            await who.authorize(stranger, "/toy ask", PeerClass.GUEST)
        assert caught.value.retry_after_s == 1.0

    scene(main, guest_open=True, guest_rate_per_s=1, guest_burst=1)


def test_a_server_is_held_to_a_class_as_well() -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        assert await who.classify(PEERS[1], "/toy train", MEMBER) is MEMBER
        with pytest.raises(NotAuthorized) as caught:
            await who.classify(PeerKey.dev("streams impostor").peer_id, "/toy train", MEMBER)
        assert caught.value.reason == "not-registered"

    scene(main)


def test_a_crowd_of_strangers_costs_few_questions_both_ways() -> None:
    async def main(chain: FakeChain, who: MembershipAuthorizer, streams: list[Stream]) -> None:
        before, start = who._readings, trio.current_time()
        for i in range(300):
            peer = PeerKey.dev(f"streams sybil {i}").peer_id
            ask = who.authorize if i % 2 else who.classify
            with pytest.raises(NotAuthorized):
                await ask(peer, "/toy train", MEMBER)
            await trio.sleep(0.01)
        assert who._readings - before <= 3 + (trio.current_time() - start) * 1.0 + 1

    scene(main, max_unknown=64)
