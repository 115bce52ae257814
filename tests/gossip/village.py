"""Nodes that gossip on a simulated network."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from pydantic import BaseModel, ConfigDict

from mesh.clock import SimClock
from mesh.gossip import Gossip, GossipConfig, Message, TopicRule
from mesh.identity import PeerKey
from mesh.peer import PeerID
from mesh.testing.network import SimNetwork, SimNode

TOPIC = "/test/news/1"


class News(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int


RULE = TopicRule(TOPIC, News, max_bytes=64, max_per_s=200.0, burst=400.0, max_age_s=60.0)


@dataclass
class Villager:
    key: PeerKey
    net: SimNode
    gossip: Gossip
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    got: list[Message] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)

    @property
    def peer(self) -> PeerID:
        return self.key.peer_id

    @property
    def numbers(self) -> list[int]:
        return [message.value.number for message in self.got]

    async def run(self, subscribes: bool, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.net.run)
                await nursery.start(self.gossip.run)
                task_status.started()
                if subscribes:
                    async with self.gossip.subscribe(TOPIC) as messages:
                        async for message in messages:
                            self.got.append(message)
                            self.delays_s.append(SimClock().now() - message.sent_at)
                await trio.sleep_forever()


def villager(
    sim: SimNetwork,
    name: str,
    peers: Callable[[], Sequence[PeerID]],
    *,
    is_member: Callable[[PeerID], bool] = lambda peer: True,
    rules: Sequence[TopicRule] = (RULE,),
    config: GossipConfig | None = None,
) -> Villager:
    key = PeerKey.dev(name)
    net = sim.node(key)
    gossip = Gossip(
        net,
        key,
        is_member=is_member,
        clock=SimClock(),
        rng=random.Random(name),
        rules=rules,
        peers=peers,
        config=config,
    )
    return Villager(key, net, gossip)


@asynccontextmanager
async def village(
    count: int, *, seed: int = 1, settle_s: float = 5.0, silent: int = 0, **options: Any
) -> AsyncIterator[tuple[SimNetwork, list[Villager]]]:
    """Nodes that know each other's addresses; each links to a few. The last `silent` do not subscribe."""
    sim = SimNetwork(seed=seed, latency_s=0.02, jitter_s=0.06)
    everyone: list[Villager] = []
    for index in range(count):
        everyone.append(villager(sim, f"v{index}", lambda: [v.peer for v in everyone], **options))
    for a in everyone:
        for b in everyone:
            a.net.learn(b.net.local)
    async with trio.open_nursery() as nursery:
        for index, v in enumerate(everyone):
            await nursery.start(v.run, index < count - silent)
        await trio.sleep(settle_s)
        yield sim, everyone
        nursery.cancel_scope.cancel()
