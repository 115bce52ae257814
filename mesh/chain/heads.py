"""New heads by subscription.

Only the tick and the header's digest are used; number and hash of the best block are asked for over the worker's
connection, whose replies are checked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from mesh.chain.subscription import SocketConfig, subscribe
from mesh.errors import ChainError, first_leaf

RUNTIME_UPDATED: Final = "0x08"
"""The digest item RuntimeEnvironmentUpdated: this block changed the runtime's code."""


class HeadsConfig(SocketConfig, Protocol):
    """The bounds this needs (ChainConfig has them)."""

    @property
    def silence_s(self) -> float: ...


async def follow_heads(url: str, on_head: Callable[[bool], Awaitable[None]], config: HeadsConfig) -> None:
    """Subscribe to new heads and call `on_head(runtime_changed)` at each until the connection ends.

    Heads that arrive while `on_head` works are one call; after `silence_s` without one it is called all the same.
    Never returns: raises what `subscribe` raises, and what `on_head` does.
    """
    tick = _Tick()
    ended: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_deliver, tick, on_head, config.silence_s)
            await subscribe(url, "chain_subscribeNewHeads", (), tick.tell, config)
    except* ChainError as group:
        ended = first_leaf(group)
    if ended is not None:
        raise ended


class _Tick:
    """An event that can be waited for again and again, with one bit."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.runtime_changed = False

    def tell(self, header: object) -> None:
        self.runtime_changed |= _runtime_changed(header)
        self.event.set()


async def _deliver(tick: _Tick, on_head: Callable[[bool], Awaitable[None]], silence_s: float) -> None:
    while True:
        with trio.move_on_after(silence_s):  # a subscription may live and say nothing (a proxy, a node that syncs)
            await tick.event.wait()
        tick.event = trio.Event()
        changed, tick.runtime_changed = tick.runtime_changed, False
        await on_head(changed)


def _runtime_changed(header: object) -> bool:
    digest = header.get("digest") if isinstance(header, dict) else None
    logs = digest.get("logs") if isinstance(digest, dict) else None
    return isinstance(logs, list) and RUNTIME_UPDATED in logs
