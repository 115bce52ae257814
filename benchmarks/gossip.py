"""How many messages arrive, how fast and at what cost, when 20 nodes publish to each other? And on py-libp2p alone?

All nodes run in one process on loopback with real connections (noise, yamux): CPU figures are of all of them together,
delays include waiting for the one core. Every node subscribes; publishers take turns at a steady rate. A delivery is
one message at one node other than its publisher. py-libp2p's GossipSub runs twice, with its defaults and with a
heartbeat of 1 s (its default is 120 s), in the same graph: each node dials six others.
`python benchmarks/gossip.py [--nodes 20] [--messages 1000] [--per-s 20]`
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo as BareInfo
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from pydantic import BaseModel, ConfigDict

from mesh.clock import SystemClock
from mesh.gossip import Gossip, TopicRule
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pNetwork

TOPIC = "/bench/1"
DIALS = 6
SETTLE_S = 4.0
"""Between the last dial and the first message."""
AFTER_S = 5.0
"""For what is recovered late."""


class Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    text: str


TEXT = "x" * 100


@dataclass
class Run:
    """What was published and what came."""

    nodes: int
    messages: int
    per_s: float
    published: dict[int, float] = field(default_factory=dict)
    delays_ms: list[float] = field(default_factory=list)
    got: set[tuple[int, int]] = field(default_factory=set)

    def came(self, node: int, number: int) -> None:
        if number % self.nodes != node and (node, number) not in self.got:
            self.got.add((node, number))
            self.delays_ms.append((time.perf_counter() - self.published[number]) * 1e3)

    async def publish(self, send: Callable[[int, int], Awaitable[object]]) -> float:
        """All messages at a steady rate; returns the CPU-ms it took until nothing came any more."""
        cpu = time.process_time()
        begin = trio.current_time()
        for number in range(self.messages):
            await trio.sleep_until(begin + number / self.per_s)
            self.published[number] = time.perf_counter()
            await send(number % self.nodes, number)
        deadline = trio.current_time() + AFTER_S
        while len(self.got) < self.messages * (self.nodes - 1) and trio.current_time() < deadline:  # noqa: ASYNC110
            await trio.sleep(0.05)
        return (time.process_time() - cpu) * 1e3

    def report(self, name: str, cpu_ms: float) -> None:
        wanted, delays = self.messages * (self.nodes - 1), sorted(self.delays_ms)
        if not delays:
            print(f"{name:36} nothing arrived")
            return
        p50, p99 = (delays[min(len(delays) - 1, math.ceil(len(delays) * q) - 1)] for q in (0.5, 0.99))
        print(
            f"{name:36} {len(delays):6}/{wanted} ({100 * len(delays) / wanted:5.1f} %)  p50 {p50:7.1f} ms"
            f"  p99 {p99:7.1f} ms  max {delays[-1]:7.1f} ms  {cpu_ms / len(delays):6.2f} CPU-ms/delivery",
            flush=True,
        )


def dialled(nodes: int) -> list[list[int]]:
    """Whom each node dials: the same for all that are compared."""
    rng = random.Random(1)
    return [rng.sample([j for j in range(nodes) if j != i], min(DIALS, nodes - 1)) for i in range(nodes)]


async def ours(run: Run) -> None:
    keys = [PeerKey.generate() for _ in range(run.nodes)]
    nets = [Libp2pNetwork(key) for key in keys]
    rule = TopicRule(TOPIC, Note, max_bytes=1024, max_per_s=run.per_s, burst=50.0)
    gossips = [
        Gossip(net, key, is_member=lambda p: True, clock=SystemClock(), rng=random.Random(i), rules=[rule])
        for i, (net, key) in enumerate(zip(nets, keys, strict=True))
    ]

    async def read(index: int) -> None:
        async with gossips[index].subscribe(TOPIC) as messages:
            async for message in messages:
                assert isinstance(message.value, Note)
                run.came(index, message.value.number)

    async with trio.open_nursery() as nursery:
        for net, gossip in zip(nets, gossips, strict=True):
            await nursery.start(net.run)
            await nursery.start(gossip.run)
        for index in range(run.nodes):
            nursery.start_soon(read, index)
        for index, others in enumerate(dialled(run.nodes)):
            for other in others:
                await nets[index].connect(nets[other].local)
        await trio.sleep(SETTLE_S)
        cpu_ms = await run.publish(lambda i, n: gossips[i].publish(TOPIC, Note(number=n, text=TEXT)))
        run.report("mesh", cpu_ms)
        received = sum(gossip.counts["received"] for gossip in gossips)
        print(f"{'':36} received {received / max(1, len(run.delays_ms)):.1f} times each", flush=True)
        nursery.cancel_scope.cancel()


async def theirs(run: Run, name: str, **options: object) -> None:
    async with AsyncExitStack() as stack:
        hosts = [new_host(key_pair=create_new_key_pair()) for _ in range(run.nodes)]
        pubsubs = []
        for host in hosts:
            await stack.enter_async_context(host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]))
            router = GossipSub([PROTOCOL_ID_V11], degree=6, degree_low=5, degree_high=12, **options)
            pubsub = Pubsub(host, router)
            await stack.enter_async_context(background_trio_service(router))
            await stack.enter_async_context(background_trio_service(pubsub))
            await pubsub.wait_until_ready()
            pubsubs.append(pubsub)
        subscriptions = [await pubsub.subscribe(TOPIC) for pubsub in pubsubs]
        for index, others in enumerate(dialled(run.nodes)):
            for other in others:
                await hosts[index].connect(BareInfo(hosts[other].get_id(), list(hosts[other].get_transport_addrs())))
        await trio.sleep(SETTLE_S)

        async def read(index: int) -> None:
            while True:
                message = await subscriptions[index].get()
                run.came(index, int(message.data.split(b" ")[0]))

        async with trio.open_nursery() as nursery:
            for index in range(run.nodes):
                nursery.start_soon(read, index)
            cpu_ms = await run.publish(lambda i, n: pubsubs[i].publish(TOPIC, f"{n} {TEXT}".encode()))
            run.report(name, cpu_ms)
            nursery.cancel_scope.cancel()
        for host in hosts:
            with trio.move_on_after(2):
                await host.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--per-s", type=float, default=20.0)
    parser.add_argument("--only", choices=("mesh", "py-libp2p"))
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)

    def fresh() -> Run:
        return Run(args.nodes, args.messages, args.per_s)

    print(f"{args.nodes} nodes, {args.messages} messages of 100 B, {args.per_s:g} a second in all")
    if args.only != "py-libp2p":
        trio.run(ours, fresh())
    if args.only != "mesh":
        for name, options in (("as shipped", {}), ("heartbeat 1 s", {"heartbeat_interval": 1})):
            with_options = _swallowing(theirs)
            trio.run(with_options, fresh(), f"py-libp2p GossipSub, {name}", options)


def _swallowing(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """py-libp2p's hosts may raise as they close; the figures are printed by then."""

    async def quietly(fresh: Run, name: str, options: dict[str, object]) -> None:
        try:
            with trio.move_on_after(fresh.messages / fresh.per_s + 120):
                await run(fresh, name, **options)
        except Exception as error:  # noqa: BLE001
            if not fresh.delays_ms:
                print(f"{name}: {error!r}")

    return quietly


if __name__ == "__main__":
    main()
