"""Gossip on a simulated network: nothing is lost, and the same seed gives the same run."""

import pytest
import trio

from mesh.errors import LocalProtocolError, PublishFailed
from mesh.gossip import GossipConfig, RouterConfig
from mesh.testing.simulation import run_sim
from tests.gossip.village import TOPIC, News, Villager, village


async def publish_all(everyone: list[Villager], count: int, *, gap_s: float = 0.02, first: int = 0) -> None:
    """Numbered messages, the nodes taking turns."""
    for number in range(first, first + count):
        await everyone[number % len(everyone)].gossip.publish(TOPIC, News(number=number))
        await trio.sleep(gap_s)


def others(index: int, nodes: int, count: int) -> list[int]:
    return [number for number in range(count) if number % nodes != index]


@pytest.mark.slow
def test_twenty_nodes_lose_none_of_a_thousand_messages() -> None:
    async def main() -> tuple[list[list[int]], list[float]]:
        async with village(20) as (_, everyone):
            await publish_all(everyone, 1000)
            await trio.sleep(1)
            return [v.numbers for v in everyone], sorted(delay for v in everyone for delay in v.delays_s)

    got, delays = run_sim(main, 7)
    for index, numbers in enumerate(got):
        assert sorted(numbers) == others(index, 20, 1000)  # all of them, each once
    assert delays[int(len(delays) * 0.99)] <= 0.5  # with 20 to 80 ms between any two


def test_eight_nodes_lose_nothing_and_the_same_seed_is_the_same_run() -> None:
    async def main() -> tuple[str, list[list[int]], float]:
        async with village(8, seed=3) as (sim, everyone):
            await publish_all(everyone, 80)
            await trio.sleep(1)
            return sim.digest(), [v.numbers for v in everyone], max(d for v in everyone for d in v.delays_s)

    first, second, other = run_sim(main, 1), run_sim(main, 1), run_sim(main, 2)
    assert first == second
    assert first[0] != other[0]
    assert first[2] <= 0.5
    for index, numbers in enumerate(first[1]):
        assert sorted(numbers) == others(index, 8, 80)


def test_when_one_node_dies_the_others_lose_nothing() -> None:
    async def main() -> list[list[int]]:
        async with village(8) as (sim, everyone):
            dead, living = everyone[-1], everyone[:-1]
            await publish_all(living, 70)
            sim.kill(dead.peer)
            dead.scope.cancel()
            await publish_all(living, 70, first=70)
            await trio.sleep(10)
            return [v.numbers for v in living]

    for index, numbers in enumerate(run_sim(main, 5)):
        assert sorted(numbers) == others(index, 7, 140)


def test_after_a_partition_what_was_missed_is_asked_for() -> None:
    async def main() -> tuple[int, list[list[int]]]:
        async with village(6, config=GossipConfig(retry_s=1.0)) as (sim, everyone):
            left, right = everyone[:3], everyone[3:]
            sim.partition([[v.peer for v in left], [v.peer for v in right]])
            await publish_all(left, 30)
            await publish_all(right, 30, first=30)
            await trio.sleep(1)
            before = sum(len(v.numbers) for v in everyone)
            sim.heal()
            await trio.sleep(15)
            return before, [sorted(v.numbers) for v in everyone]

    before, after = run_sim(main, 2)
    assert before == 6 * 20
    assert after == [
        [n for n in range(60) if (n % 3, n < 30) != (index % 3, index < 3)] for index in range(6)
    ]  # all but its own


def test_who_only_publishes_reaches_all_and_gets_nothing() -> None:
    async def main() -> tuple[list[int], list[int]]:
        async with village(5, silent=1) as (_, everyone):
            for number in range(10):
                await everyone[-1].gossip.publish(TOPIC, News(number=number))
            await everyone[0].gossip.publish(TOPIC, News(number=99))
            await trio.sleep(2)
            return everyone[1].numbers, everyone[-1].numbers

    heard, silent = run_sim(main, 1)
    assert sorted(heard) == [*range(10), 99]
    assert silent == []


def test_a_late_joiner_gets_what_is_remembered() -> None:
    async def main() -> list[int]:
        async with village(3) as (sim, everyone):
            sim.partition([[v.peer for v in everyone[:2]], [everyone[2].peer]])
            for number in range(5):
                await everyone[0].gossip.publish(TOPIC, News(number=number))
            sim.heal()
            await trio.sleep(12)
            return everyone[2].numbers

    assert sorted(run_sim(main, 1)) == [0, 1, 2, 3, 4]


def test_a_slow_subscriber_loses_the_oldest_and_knows_how_many() -> None:
    async def main() -> tuple[int, list[int]]:
        async with village(2, config=GossipConfig(max_unread=10)) as (_, (a, b)):
            async with b.gossip.subscribe(TOPIC) as slow:
                for number in range(25):
                    await a.gossip.publish(TOPIC, News(number=number))
                await trio.sleep(1)
                first = [(await anext(slow)).value.number for _ in range(10)]
                return slow.dropped, first

    dropped, first = run_sim(main, 1)
    assert dropped == 15
    assert first == list(range(15, 25))


def test_a_neighbour_that_does_not_read_delays_publish_and_is_named() -> None:
    config = GossipConfig(
        max_outbox_messages=4,
        send_timeout_s=60.0,
        publish_wait_s=1.0,
        router=RouterConfig(max_cache_messages=64),
    )

    async def main() -> float:
        async with village(2, config=config) as (_, (a, b)):
            assert a.gossip.neighbours() == (b.peer,)
            link = a.gossip._links[b.peer]
            link.outbox._max_messages = 0  # as if all of it waited for a reader that does not come
            begin = trio.current_time()
            with pytest.raises(PublishFailed, match="took no message"):
                await a.gossip.publish(TOPIC, News(number=1))
            return trio.current_time() - begin

    assert run_sim(main, 1) == pytest.approx(1.0)


def test_publish_refuses_what_others_would_refuse() -> None:
    async def main() -> None:
        async with village(1, settle_s=0.1) as (_, (a,)):
            with pytest.raises(LocalProtocolError, match="no rule"):
                await a.gossip.publish("/nobody/knows", News(number=1))
            with pytest.raises(LocalProtocolError, match="carries News"):
                await a.gossip.publish(TOPIC, RouterConfig())
            report = await a.gossip.publish(TOPIC, News(number=1))
            assert report.queued == 0  # alone: said, not hidden
            with pytest.raises(PublishFailed, match="messages a second"):
                for number in range(1000):
                    await a.gossip.publish(TOPIC, News(number=number))

    run_sim(main, 1)
