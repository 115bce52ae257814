"""Our DHT nodes on real sockets, for nodes of other projects to meet."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from mesh.auth.authorizer import Authorizer, Everyone, PeerClass, is_enough
from mesh.clock import SystemClock
from mesh.dht import DHT, DhtConfig
from mesh.errors import NotAuthorized
from mesh.identity import PeerKey
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import NamespaceRule
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.rpc import Rpc

Node = tuple[DHT, PeerInfo, PeerKey]

GENESIS = b"\x07" * 32
SUBNET = 1
RULES = (NamespaceRule("t", max_value_bytes=4096, max_ttl_s=3600.0, members_only=True),)


class Members:
    """Who is a member is written down; others are guests, or strangers where guests are not let in."""

    changes = 0

    def __init__(self, members: set[PeerID], *, others: PeerClass) -> None:
        self.members, self.others = members, others

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        found = PeerClass.MEMBER if peer in self.members else self.others
        if not is_enough(found, least):
            raise NotAuthorized("not-registered", f"{peer} is no member")
        return found

    classify = authorize

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        return await self.authorize(peer, "", least)

    async def wait_change(self, seen: int | None = None) -> int:
        await trio.sleep_forever()
        raise AssertionError


@asynccontextmanager
async def nodes(
    count: int, *, authorizer: Authorizer | None = None
) -> AsyncIterator[list[tuple[DHT, PeerInfo, PeerKey]]]:
    """DHT nodes that know each other."""
    made: list[Node] = []
    async with trio.open_nursery() as nursery:
        for number in range(count):
            key = PeerKey.dev(f"interop-{number}")
            net = Libp2pNetwork(key, Libp2pConfig(listen=("/ip4/127.0.0.1/tcp/0",)))
            rpc = Rpc(net, authorizer or Everyone(), rng=random.Random(number))
            members = authorizer.members if isinstance(authorizer, Members) else None
            dht = DHT(
                rpc,
                key,
                rules=RULES,
                is_member=lambda peer, members=members: members is None or peer in members,  # type: ignore[misc]
                position=lambda: None,
                subnet_id=SUBNET,
                genesis=GENESIS,
                config=DhtConfig(),
                clock=SystemClock(),
                rng=random.Random(number),
            )
            local = await nursery.start(net.run)
            await nursery.start(rpc.run)
            await nursery.start(dht.run, [info for _, info, _ in made[:1]])
            made.append((dht, local, key))
        yield made
        nursery.cancel_scope.cancel()


def now() -> float:
    return SystemClock().now()


def signed(key: PeerKey, name: bytes, value: bytes, *, ago_s: float = 0.0) -> Record:
    """A record as any program signs it, made some time ago to live for ten minutes."""
    at_ms = int((now() - ago_s) * 1000)
    return sign_record(key, name, value, expiry_ms=at_ms + 600_000, seq=at_ms, subnet_id=SUBNET, genesis=GENESIS)
