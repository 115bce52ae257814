"""New heads over trio-websocket: a small JSON-RPC subscription in the event loop, so that no thread waits for blocks.

Only the tick and the header's digest are used; number and hash of the best block are asked for over the worker's
connection, whose replies are checked.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio
import trio_websocket

from mesh.errors import ChainError, ChainUnavailable, first_leaf

RUNTIME_UPDATED: Final = "0x08"
"""The digest item RuntimeEnvironmentUpdated: this block changed the runtime's code."""
_PENDING_MESSAGES: Final = 16


class HeadsConfig(Protocol):
    """The bounds this needs (ChainConfig has them)."""

    @property
    def call_timeout_s(self) -> float: ...

    @property
    def ping_interval_s(self) -> float: ...

    @property
    def silence_s(self) -> float: ...

    @property
    def max_message_bytes(self) -> int: ...


async def follow_heads(url: str, on_head: Callable[[bool], Awaitable[None]], config: HeadsConfig) -> None:
    """Subscribe to new heads and call `on_head(runtime_changed)` at each until the connection ends.

    Heads that arrive while `on_head` works are one call; after `silence_s` without one it is called all the same.
    Never returns: raises ChainUnavailable when the connection cannot be made or ends, ChainError when the node speaks
    no JSON-RPC.
    """
    ended: ChainError | None = None
    try:
        async with trio_websocket.open_websocket_url(
            url,
            connect_timeout=config.call_timeout_s,
            disconnect_timeout=1,
            max_message_size=config.max_message_bytes,
            message_queue_size=_PENDING_MESSAGES,
        ) as websocket:
            request = {"jsonrpc": "2.0", "id": 1, "method": "chain_subscribeNewHeads", "params": []}
            await websocket.send_message(json.dumps(request))
            with trio.fail_after(config.call_timeout_s):
                reply = _parse(await websocket.get_message())
            if reply.get("id") != 1 or "result" not in reply:
                raise ChainError(f"{url} refuses chain_subscribeNewHeads: {str(reply.get('error'))[:200]}")
            state = _Tick()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ping, websocket, config)
                nursery.start_soon(_deliver, state, on_head, config.silence_s)
                while True:
                    changed = _runtime_changed(_parse(await websocket.get_message()))
                    state.tell(changed)
    except* (
        trio_websocket.ConnectionClosed,
        trio_websocket.HandshakeError,
        trio_websocket.ConnectionTimeout,
        trio.TooSlowError,
        OSError,
        ValueError,
    ) as group:
        ended = ChainUnavailable(f"the head subscription at {url} ended: {first_leaf(group)!r}")
    except* ChainError as group:
        ended = ChainError(str(first_leaf(group)))
    # raised out here: an error raised inside `except*` would itself arrive wrapped in a group
    raise ended or ChainUnavailable(f"the head subscription at {url} ended")


class _Tick:
    """An event that can be waited for again and again, with one bit."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.runtime_changed = False

    def tell(self, runtime_changed: bool) -> None:
        self.runtime_changed |= runtime_changed
        self.event.set()


async def _deliver(tick: _Tick, on_head: Callable[[bool], Awaitable[None]], silence_s: float) -> None:
    while True:
        with trio.move_on_after(silence_s):  # a subscription may live and say nothing (a proxy, a node that syncs)
            await tick.event.wait()
        tick.event = trio.Event()
        changed, tick.runtime_changed = tick.runtime_changed, False
        await on_head(changed)


async def _ping(websocket: trio_websocket.WebSocketConnection, config: HeadsConfig) -> None:
    """A connection that answers no ping is dead, though TCP may not know for minutes."""
    while True:
        await trio.sleep(config.ping_interval_s)
        with trio.fail_after(config.call_timeout_s):
            await websocket.ping()


def _parse(message: str | bytes) -> dict[str, object]:
    try:
        parsed = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ChainError(f"the chain's node sent what is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ChainError("the chain's node sent JSON that is no object")
    return parsed


def _runtime_changed(message: dict[str, object]) -> bool:
    params = message.get("params")
    header = params.get("result") if isinstance(params, dict) else None
    digest = header.get("digest") if isinstance(header, dict) else None
    logs = digest.get("logs") if isinstance(digest, dict) else None
    return isinstance(logs, list) and RUNTIME_UPDATED in logs
