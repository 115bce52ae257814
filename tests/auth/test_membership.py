"""Who is a member: by the chain's nodes, with few questions, and failing closed when the chain is away."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from mesh.auth.authorizer import PeerClass
from mesh.auth.membership import (
    MembershipAuthorizer,
    MembershipConfig,
    Standing,
    effective_class,
    standing_of,
)
from mesh.chain.types import (
    BlockRef,
    Event,
    NodeClass,
    Snapshot,
    SubnetInfo,
    SubnetNode,
    SubnetState,
)
from mesh.errors import ChainUnavailable, NotAuthorized
from mesh.identity import PeerKey
from mesh.peer import PeerID, PeerInfo
from mesh.testing.simulation import run_sim

SUBNET = 128_001
LENGTH = 20
SLOT = 3


def peer(label: str) -> PeerID:
    return PeerKey.dev(f"membership {label}").peer_id


def node(number: int, label: str, **changes: Any) -> SubnetNode:
    fields: dict[str, Any] = {
        "node_id": number, "coldkey": bytes(20), "hotkey": bytes([number]) * 20, "peer_id": peer(label),
        "bootnode_peer_id": None, "client_peer_id": None, "node_class": NodeClass.VALIDATOR, "start_epoch": 0,
        "stake_planck": 100, "reputation": 10**18,
    }  # fmt: skip
    return SubnetNode(**(fields | changes))


class Recorded:
    """The few answers of a chain that membership needs, and how often it was asked. Not a FakeChain: the tests set
    what a block says, and count."""

    epoch_length = LENGTH
    genesis = bytes(32)

    def __init__(self, *nodes: SubnetNode, state: SubnetState = SubnetState.ACTIVE) -> None:
        self.nodes = list(nodes)
        self.boot: tuple[PeerInfo, ...] = ()
        self.info = SubnetInfo(
            SUBNET, 1, "toy", state, 0, SLOT if state is SubnetState.ACTIVE else None, bytes(20), 0, 2**64
        )
        self.number = 30
        self.news: dict[int, tuple[Event, ...]] = {}
        self.away = False
        self.readings = 0
        self.moved = trio.Event()

    def block(self, *events: Event, skip: int = 0) -> None:
        self.number += 1 + skip
        self.news[self.number] = events
        event, self.moved = self.moved, trio.Event()
        event.set()

    def _reach(self) -> None:
        if self.away:
            raise ChainUnavailable("away")

    async def head(self) -> BlockRef:
        self._reach()
        return BlockRef(self.number, self.number.to_bytes(32, "big"))

    async def heads(self) -> AsyncIterator[BlockRef]:
        last = None
        while True:
            moved = self.moved
            if self.number != last and not self.away:
                last = self.number
                yield BlockRef(last, last.to_bytes(32, "big"))
            else:
                await moved.wait()

    async def subnet(self, subnet_id: int, at: bytes | None = None) -> SubnetInfo:
        self._reach()
        return self.info

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        self._reach()
        self.readings += 1
        await trio.sleep(0.1)
        return Snapshot(subnet_id, at or await self.head(), tuple(self.nodes))

    async def bootnodes(self, subnet_id: int) -> tuple[PeerInfo, ...]:
        self._reach()
        return self.boot

    async def events(self, at: bytes) -> tuple[Event, ...]:
        self._reach()
        return self.news.get(int.from_bytes(at, "big"), ())


def event(name: str, subnet_id: int = SUBNET) -> Event:
    return Event("Network", name, {"subnet_id": subnet_id})


def scene(
    main: Callable[[Recorded, MembershipAuthorizer], Awaitable[None]],
    *nodes: SubnetNode,
    state: SubnetState = SubnetState.ACTIVE,
    away: bool = False,
    infrastructure: tuple[PeerID, ...] = (),
    boot: tuple[PeerInfo, ...] = (),
    **config: Any,
) -> None:
    async def bounded() -> None:
        chain = Recorded(*nodes, state=state)
        chain.away, chain.boot = away, boot
        who = MembershipAuthorizer(
            chain,  # type: ignore[arg-type]
            SUBNET,
            config=MembershipConfig(**config),
            infrastructure=infrastructure,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(who.run)
            await trio.sleep(0.5)
            await main(chain, who)
            nursery.cancel_scope.cancel()

    run_sim(bounded, 1)


async def refused(who: MembershipAuthorizer, label: str, least: PeerClass = PeerClass.MEMBER) -> str:
    with pytest.raises(NotAuthorized) as error:
        await who.authorize(peer(label), "/toy train", least)
    assert str(error.value).endswith((".", "more"))
    return error.value.reason


async def allowed(who: MembershipAuthorizer, label: str, least: PeerClass = PeerClass.MEMBER) -> PeerClass:
    return await who.authorize(peer(label), "/toy train", least)


def test_all_three_ids_of_a_registered_node_are_members() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        for label in ("a", "b", "c"):
            assert await allowed(who, label) is PeerClass.MEMBER
            assert who.is_member(peer(label))
        assert await refused(who, "x") == "not-registered"
        assert not who.is_member(peer("x"))
        assert who.members() == tuple(sorted(peer(label) for label in "abc"))

    scene(main, node(1, "a", bootnode_peer_id=peer("b"), client_peer_id=peer("c")))


def test_bootnodes_route_and_are_no_members() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        for label in ("listed", "configured"):
            assert await allowed(who, label, PeerClass.INFRASTRUCTURE) is PeerClass.INFRASTRUCTURE
            assert not who.is_member(peer(label))
            assert await refused(who, label) == "not-registered"
        assert await allowed(who, "a") is PeerClass.MEMBER  # a node that is a bootnode too

    scene(main, node(1, "a"), infrastructure=(peer("configured"), peer("a")), boot=(PeerInfo(peer("listed")),))


@pytest.mark.parametrize(("is_open", "expected"), [(True, PeerClass.GUEST), (False, PeerClass.PUBLIC)])
def test_strangers_are_guests_only_where_that_is_open(is_open: bool, expected: PeerClass) -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        assert await allowed(who, "x", PeerClass.PUBLIC) is expected
        if is_open:
            assert await allowed(who, "x", PeerClass.GUEST) is PeerClass.GUEST
        else:
            assert await refused(who, "x", PeerClass.GUEST) == "not-registered"

    scene(main, guest_open=is_open)


def test_guests_are_rate_limited_and_members_are_not() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        for _ in range(3):
            await allowed(who, "x", PeerClass.GUEST)
        assert await refused(who, "x", PeerClass.GUEST) == "rate-limited"
        await trio.sleep(1.0)
        await allowed(who, "x", PeerClass.GUEST)
        for _ in range(100):
            await allowed(who, "a")

    scene(main, node(1, "a"), guest_open=True, guest_rate_per_s=1.0, guest_burst=3)


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"node_class": NodeClass.IDLE}, {"min_class": NodeClass.INCLUDED}),
        ({"node_class": NodeClass.VALIDATOR, "start_epoch": 99}, {"min_class": NodeClass.VALIDATOR}),
        ({"stake_planck": 9}, {"min_stake_planck": 10}),
    ],
)
def test_too_little_class_or_stake_is_said_so(changes: dict[str, Any], config: dict[str, Any]) -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        assert await allowed(who, "b") is PeerClass.MEMBER
        assert await refused(who, "a") == "class-too-low"
        readings = chain.readings
        for _ in range(5):
            assert await refused(who, "a") == "class-too-low"
        assert chain.readings == readings  # it is known; events tell when that changes

    scene(main, node(1, "a", **changes), node(2, "b"), **config)


def test_before_activation_every_registered_node_is_a_member() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        assert await allowed(who, "a") is PeerClass.MEMBER

    scene(
        main, node(1, "a", node_class=NodeClass.REGISTERED), state=SubnetState.REGISTERED, min_class=NodeClass.VALIDATOR
    )


def test_classes_begin_at_their_start_epoch() -> None:
    assert effective_class(node(1, "a", start_epoch=5), 5) is NodeClass.VALIDATOR
    assert effective_class(node(1, "a", start_epoch=6), 5) is NodeClass.INCLUDED
    assert effective_class(node(1, "a", node_class=NodeClass.REGISTERED, start_epoch=6), 5) is NodeClass.REGISTERED
    low = {"epoch": 5, "min_class": NodeClass.INCLUDED, "min_stake_planck": 1}
    idle = node(1, "a", node_class=NodeClass.IDLE)
    assert standing_of(idle, state=SubnetState.ACTIVE, **low) is Standing.CLASS  # type: ignore[arg-type]
    assert standing_of(idle, state=SubnetState.PAUSED, **low) is Standing.CLASS  # type: ignore[arg-type]
    assert standing_of(idle, state=SubnetState.REGISTERED, **low) is Standing.MEMBER  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["SubnetNodeRegistered", "StakeAdded", "NodeClassGraduation", "SubnetNodeRemoved"])
def test_events_about_nodes_and_stake_are_followed(name: str) -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        chain.nodes.append(node(2, "b"))
        for news in (event("Attestation"), event(name, SUBNET + 1)):
            chain.block(news)
            await trio.sleep(0.5)
        assert not who.is_member(peer("b"))
        chain.block(event(name))
        await trio.sleep(0.5)
        assert who.is_member(peer("b"))
        chain.nodes.pop()
        chain.block(Event("Network", name, {"0": SUBNET}))
        await trio.sleep(0.5)
        assert not who.is_member(peer("b"))

    scene(main, node(1, "a"))


def test_slot_blocks_and_missed_blocks_are_read_anew() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        chain.nodes.append(node(2, "b"))
        chain.block(skip=3)
        await trio.sleep(0.5)
        assert who.is_member(peer("b"))
        while (chain.number + 1 - SLOT) % LENGTH:
            chain.block()
            await trio.sleep(0.2)
        chain.nodes.pop()
        readings = chain.readings
        chain.block()  # the slot block
        await trio.sleep(0.5)
        assert chain.readings == readings + 1
        assert not who.is_member(peer("b"))

    scene(main, node(1, "a"))


def test_a_node_registered_just_now_gets_in_by_one_question() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        chain.nodes.append(node(2, "b"))
        assert await allowed(who, "b") is PeerClass.MEMBER

    scene(main, node(1, "a"))


def test_strangers_cost_few_questions() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        before, start = chain.readings, trio.current_time()
        for i in range(200):
            assert await refused(who, f"stranger {i % 50}") == "not-registered"
        assert chain.readings - before <= 3 + (trio.current_time() - start) * 1.0
        async with trio.open_nursery() as nursery:
            for i in range(50):
                nursery.start_soon(refused, who, f"crowd {i}")
        assert chain.readings - before <= 3 + (trio.current_time() - start) * 1.0
        assert len(who._unknown) <= 10

    scene(main, node(1, "a"), max_unknown=10)


def test_a_stranger_is_not_asked_about_twice_in_a_while() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        before = chain.readings
        for _ in range(20):
            await refused(who, "x")
            await trio.sleep(0.2)
        assert chain.readings == before + 1
        await trio.sleep(6)
        await refused(who, "x")
        assert chain.readings == before + 2

    scene(main, node(1, "a"))


def test_the_chain_away_members_stay_for_a_while_and_nobody_new_gets_in() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        chain.away = True
        chain.nodes.append(node(2, "b"))
        await trio.sleep(31)
        assert who.chain_away
        assert await allowed(who, "a") is PeerClass.MEMBER
        assert await refused(who, "b") == "chain-unreachable"
        assert await allowed(who, "boot", PeerClass.INFRASTRUCTURE) is PeerClass.INFRASTRUCTURE
        assert await allowed(who, "x", PeerClass.PUBLIC) is PeerClass.PUBLIC
        await trio.sleep(60)
        assert await refused(who, "a") == "chain-unreachable"
        assert not who.is_member(peer("a"))
        assert who.members() == ()
        chain.away = False
        chain.block()
        await trio.sleep(0.5)
        assert await allowed(who, "a") is PeerClass.MEMBER
        assert await allowed(who, "b") is PeerClass.MEMBER

    scene(main, node(1, "a"), infrastructure=(peer("boot"),), grace_s=60)


def test_without_a_first_reading_everybody_is_refused_until_the_chain_answers() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        assert await refused(who, "a") == "chain-unreachable"
        chain.away = False  # and no block comes: the probe finds out
        await trio.sleep(11)
        assert await allowed(who, "a") is PeerClass.MEMBER

    scene(main, node(1, "a"), away=True)


def test_an_idle_chain_is_not_an_absent_one() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        readings = chain.readings
        await trio.sleep(3600)
        assert await allowed(who, "a") is PeerClass.MEMBER
        assert chain.readings == readings  # heads are asked for, nodes are not

    scene(main, node(1, "a"), grace_s=0)


def test_a_chain_whose_news_stopped_is_read_by_the_probe() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        chain.nodes.append(node(2, "b"))
        chain.number += 1  # without waking the reader of heads: a dead subscription
        await trio.sleep(11)
        assert who.is_member(peer("b"))

    scene(main, node(1, "a"))


def test_a_chain_that_hangs_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        async def hang(subnet_id: int, at: BlockRef | None = None) -> Snapshot:
            await trio.sleep_forever()
            raise AssertionError

        chain.snapshot = hang  # type: ignore[method-assign]
        before = trio.current_time()
        assert await refused(who, "x") == "not-registered"
        assert trio.current_time() - before <= 21

    scene(main, node(1, "a"), stale_after_s=100.0)
    assert "took more than" in caplog.text


def test_a_change_can_be_waited_for() -> None:
    async def main(chain: Recorded, who: MembershipAuthorizer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(who.wait_change)
            await trio.sleep(0.1)
            chain.block(event("StakeAdded"))

    scene(main, dataclasses.replace(node(1, "a")))
