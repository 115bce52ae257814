"""A chain that answers, for tests whose clients are on the other side of a websocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from mesh.devchain.node import DevChain, DevChainConfig, run_chain

from .signing import Signer

ALICE, BOB, CAROL = Signer("alice"), Signer("bob"), Signer("carol")
START = 10**24
FUND = {ALICE.hex: START, BOB.hex: START}


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[DevChain, str]]:
    """A chain that answers at a url; blocks by hand unless `block_time_s` is given."""
    config = DevChainConfig(**{"fund": FUND, "dev_rpc": True, **settings})
    chain = DevChain(config)
    try:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(partial(run_chain, config, chain=chain))
            yield chain, url
            nursery.cancel_scope.cancel()
    finally:
        chain.close()
