"""Standard input in trio."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import trio


async def read_line() -> str:
    """The next line; "" at the end."""
    return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def at_once(jobs: list[Callable[[], Awaitable[None]]]) -> None:
    """Run all and wait for all."""
    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(job)
