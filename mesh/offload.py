"""How blocking work is done: in a thread, or at once where threads are forbidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")


class Offload(Protocol):
    """Does blocking work and waits for it."""

    async def __call__(self, function: Callable[[], T], /) -> T:
        """Run `function` and return what it returns."""
        ...


async def in_thread(function: Callable[[], T], /) -> T:
    """Run blocking work in a thread. Cancelled: waits for it first, so work is cut into pieces of a few ms."""
    return await trio.to_thread.run_sync(function)


async def inline(function: Callable[[], T], /) -> T:
    """Run it here and now, which stops the event loop for that long: for simulations."""
    await trio.lowlevel.checkpoint()
    return function()
