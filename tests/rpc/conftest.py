"""Two or more nodes with an Rpc each, on a simulated network."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from mesh.auth.authorizer import Authorizer, Everyone
from mesh.identity import PeerKey
from mesh.rpc.config import RpcConfig
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import Servicer
from mesh.testing.network import SimNetwork

Nodes = Callable[..., AbstractAsyncContextManager[list[Rpc]]]


@asynccontextmanager
async def running(
    *services: Sequence[Servicer],
    sim: SimNetwork | None = None,
    authorizer: Authorizer | None = None,
    config: RpcConfig | None = None,
) -> AsyncIterator[list[Rpc]]:
    """One running node per argument, serving what is in it; all know each other's addresses."""
    sim = sim or SimNetwork(seed=1, latency_s=0.01)
    rpcs = []
    async with trio.open_nursery() as nursery:
        for number, servicers in enumerate(services):
            node = sim.node(PeerKey.dev(f"rpc {number}"))
            rpc = Rpc(node, authorizer or Everyone(), config=config, rng=random.Random(number))
            for servicer in servicers:
                rpc.serve(servicer)
            rpcs.append(rpc)
        for rpc in rpcs:
            for other in rpcs:
                rpc.net.learn(other.net.local)
            await nursery.start(rpc.net.run)
            await nursery.start(rpc.run)
        yield rpcs
        nursery.cancel_scope.cancel()


@pytest.fixture
def nodes() -> Nodes:
    return running
