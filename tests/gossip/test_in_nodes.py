"""Whole nodes on a simulated chain: members see each other, and a subnet has a topic of its own."""

from dataclasses import dataclass, field
from typing import Any

import trio

from mesh.gossip import TopicRule
from mesh.mock import MockSubnet
from mesh.peer import PeerID
from mesh.subnet import SubnetContext
from mesh.testing.village import simulate
from tests.gossip.village import News

TOPIC = "/test/in-nodes/1"


@dataclass
class Newsroom(MockSubnet):
    """Every node waits for two others to be online, publishes one piece of news, and reads that of the others."""

    online: dict[PeerID, set[PeerID]] = field(default_factory=dict)
    news: dict[PeerID, set[PeerID]] = field(default_factory=dict)

    async def run(
        self, ctx: SubnetContext, config: Any, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        ctx.gossip.add_rule(TopicRule(TOPIC, News))
        got = self.news[ctx.identity.peer_id] = set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().run, ctx, config)
            async with ctx.gossip.subscribe(TOPIC) as messages:
                task_status.started()
                while len(ctx.presence.online()) < 2:  # noqa: ASYNC110
                    await trio.sleep(1)
                self.online[ctx.identity.peer_id] = set(ctx.presence.online())
                await ctx.gossip.publish(TOPIC, News(number=1))
                async for message in messages:
                    got.add(message.owner)


def test_members_are_online_for_each_other_and_hear_the_subnets_news() -> None:
    room = Newsroom()
    simulate(room, nodes=3, epochs=1, seed=4)
    everyone = set(room.news)
    assert len(everyone) == 3
    assert room.online == {peer: everyone - {peer} for peer in everyone}
    assert room.news == {peer: everyone - {peer} for peer in everyone}
