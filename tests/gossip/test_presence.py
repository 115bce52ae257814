"""Presence: states are heard, the later one wins, and a node that stops says so."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from mesh.errors import ConfigError
from mesh.gossip import Message
from mesh.identity import PeerKey
from mesh.presence import Beat, NodeState, Presence, PresenceConfig, presence_rule, presence_topic
from mesh.testing.simulation import run_sim
from tests.gossip.village import Villager, village

TOPIC = presence_topic(1, b"genesis.")


@asynccontextmanager
async def present(count: int) -> AsyncIterator[tuple[list[Villager], list[Presence], list[trio.CancelScope]]]:
    async with village(count, silent=count, rules=[presence_rule(TOPIC)]) as (_, everyone):
        presences = [Presence(v.gossip, TOPIC, rng=random.Random(v.key.private)) for v in everyone]
        scopes = [trio.CancelScope() for _ in everyone]

        async def run(index: int, task_status: trio.TaskStatus[None]) -> None:
            with scopes[index]:
                await presences[index].run(task_status=task_status)

        async with trio.open_nursery() as nursery:
            for index in range(count):
                await nursery.start(run, index)
            yield everyone, presences, scopes
            nursery.cancel_scope.cancel()


def test_joining_online_offline_are_heard_in_that_order() -> None:
    async def main() -> list[tuple[NodeState, float]]:
        async with present(3) as (everyone, presences, scopes):
            seen = []
            with trio.fail_after(60):
                for state, step in (
                    (NodeState.JOINING, lambda: None),
                    (NodeState.ONLINE, presences[0].go_online),
                    (NodeState.OFFLINE, scopes[0].cancel),
                ):
                    begin = trio.current_time()
                    step()
                    await presences[1].wait_for(everyone[0].peer, state)
                    seen.append((presences[1].states()[everyone[0].peer].state, trio.current_time() - begin))
            assert presences[1].online() == ()
            return seen

    seen = run_sim(main, 1)
    assert [state for state, _ in seen] == [NodeState.JOINING, NodeState.ONLINE, NodeState.OFFLINE]
    assert all(waited_s < 1.0 for _, waited_s in seen)


def test_a_node_that_crashed_is_forgotten_and_an_online_one_is_not() -> None:
    async def main() -> tuple[int, int]:
        async with present(3) as (everyone, presences, _):
            for presence in presences:
                presence.go_online()
            await trio.sleep(100)
            before = len(presences[0].online())
            everyone[2].net._sim.kill(everyone[2].peer)
            everyone[2].scope.cancel()
            await trio.sleep(50)
            return before, len(presences[0].online())

    assert run_sim(main, 1) == (2, 1)


def test_offline_sticks_against_a_late_online() -> None:
    async def main() -> NodeState:
        async with present(2) as (everyone, presences, scopes):
            presences[0].go_online()
            await presences[1].wait_for(everyone[0].peer, NodeState.ONLINE)
            last = presences[1]._entries[everyone[0].peer].seq
            scopes[0].cancel()
            await presences[1].wait_for(everyone[0].peer, NodeState.OFFLINE)
            late = Message(TOPIC, everyone[0].peer, Beat(state=NodeState.ONLINE), last + 1, everyone[0].peer)
            presences[1]._hear(late)
            return presences[1].states()[everyone[0].peer].state

    assert run_sim(main, 1) is NodeState.OFFLINE


def test_the_table_is_bounded() -> None:
    async def main() -> int:
        async with village(1, settle_s=0.1, silent=1, rules=[presence_rule(TOPIC)]) as (_, (v,)):
            presence = Presence(v.gossip, TOPIC, rng=random.Random(1), config=PresenceConfig(max_peers=5))
            for number in range(9):
                peer = PeerKey.dev(f"p{number}").peer_id
                presence._hear(Message(TOPIC, peer, Beat(state=NodeState.ONLINE), number, peer))
            return len(presence.states())

    assert run_sim(main, 1) == 5


def test_the_farewell_is_bounded_when_nobody_reads() -> None:
    async def main() -> float:
        async with present(2) as (everyone, presences, scopes):

            async def never() -> None:
                await trio.sleep_forever()

            everyone[0].gossip.flush = never  # type: ignore[method-assign]
            begin = trio.current_time()
            scopes[0].cancel()
            with trio.fail_after(10):
                while presences[0].state is not NodeState.OFFLINE or everyone[0].gossip._subscriptions[TOPIC]:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            return trio.current_time() - begin

    assert run_sim(main, 1) == pytest.approx(1.0, abs=0.05)


def test_a_topic_has_one_rule() -> None:
    async def main() -> None:
        async with village(1, settle_s=0.1, silent=1, rules=[presence_rule(TOPIC)]) as (_, (v,)):
            with pytest.raises(ConfigError, match="two rules"):
                v.gossip.add_rule(presence_rule(TOPIC))

    run_sim(main, 1)
