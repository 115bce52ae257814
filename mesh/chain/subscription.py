"""JSON-RPC over trio-websocket, in the event loop: one subscription, or a few questions, on a socket of their own.

For what comes unasked (heads, the fate of an extrinsic), so that no thread waits for it, and for a glance at another
node. Answers are not believed: what is told here is a reason to ask over the checked connection.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, NoReturn, Protocol

import trio
import trio_websocket

from mesh.chain.link import MAX_STRAY_MESSAGES, parse_message, refusal
from mesh.errors import ChainError, ChainUnavailable, first_leaf

MAX_MESSAGE_BYTES: Final = 256 * 1024
"""Of one message here: it is read in the event loop, and a header or a hash is small."""
_PENDING_MESSAGES: Final = 16
_DISCONNECT_S: Final = 1


class SocketConfig(Protocol):
    """The bounds this needs (ChainConfig has them)."""

    @property
    def call_timeout_s(self) -> float: ...

    @property
    def ping_interval_s(self) -> float: ...


async def subscribe(
    url: str, method: str, params: Sequence[object], tell: Callable[[object], None], config: SocketConfig
) -> NoReturn:
    """Subscribe and `tell` each notification's result until the connection ends.

    Never returns. Raises ChainUnavailable when the connection cannot be made or ends, RpcRefused when the node
    refuses, ChainError when it speaks no JSON-RPC, and the ChainError that `tell` raises.
    """
    timeout_s = config.call_timeout_s
    async with _opened(url, timeout_s=timeout_s, max_message_bytes=MAX_MESSAGE_BYTES) as websocket:
        ident = await _ask(websocket, 1, method, params, timeout_s=timeout_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ping, websocket, config)
            while True:
                message = _parse(await websocket.get_message())
                body = message.get("params")
                if isinstance(body, dict) and body.get("subscription") == ident and "result" in body:
                    tell(body["result"])
    raise ChainUnavailable(f"{method} at {url} ended")


async def ask_once(
    url: str,
    questions: Sequence[tuple[str, Sequence[object]]],
    *,
    timeout_s: float,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> tuple[object, ...]:
    """A few questions, one after the other, over a connection that ends then; each may take `timeout_s`, and so may
    connecting. Raises as `subscribe`."""
    async with _opened(url, timeout_s=timeout_s, max_message_bytes=max_message_bytes) as websocket:
        numbered = enumerate(questions, 1)
        return tuple(
            [await _ask(websocket, i, method, params, timeout_s=timeout_s) for i, (method, params) in numbered]
        )


@contextlib.asynccontextmanager
async def _opened(
    url: str, *, timeout_s: float, max_message_bytes: int
) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    ended: BaseException | None = None
    try:
        async with trio_websocket.open_websocket_url(
            url,
            connect_timeout=timeout_s,
            disconnect_timeout=_DISCONNECT_S,
            max_message_size=max_message_bytes,
            message_queue_size=_PENDING_MESSAGES,
        ) as websocket:
            yield websocket
    except* ChainError as group:
        ended = first_leaf(group)
    except* (
        trio_websocket.ConnectionClosed,
        trio_websocket.HandshakeError,
        trio_websocket.ConnectionTimeout,
        trio.TooSlowError,
        OSError,
        ValueError,
    ) as group:
        ended = ended or ChainUnavailable(f"the connection to {url} ended: {first_leaf(group)!r}")
    if ended is not None:  # raised out here: an error raised inside `except*` would itself arrive wrapped in a group
        raise ended


async def _ask(
    websocket: trio_websocket.WebSocketConnection,
    ident: int,
    method: str,
    params: Sequence[object],
    *,
    timeout_s: float,
) -> object:
    await websocket.send_message(json.dumps({"jsonrpc": "2.0", "id": ident, "method": method, "params": list(params)}))
    with trio.fail_after(timeout_s):
        for _ in range(MAX_STRAY_MESSAGES):
            reply = _parse(await websocket.get_message())
            if reply.get("id") != ident:
                continue
            if reply.get("error") is not None:
                raise refusal(method, reply["error"])
            if "result" in reply:
                return reply["result"]
            break
    raise ChainError(f"the chain's node does not answer {method} with a result")


async def _ping(websocket: trio_websocket.WebSocketConnection, config: SocketConfig) -> None:
    """A connection that answers no ping is dead, though TCP may not know for minutes."""
    while True:
        await trio.sleep(config.ping_interval_s)
        with trio.fail_after(config.call_timeout_s):
            await websocket.ping()


def _parse(message: str | bytes) -> dict[str, object]:
    try:
        return parse_message(message)
    except (ValueError, RecursionError) as error:
        raise ChainError(f"the chain's node sent what is no JSON-RPC: {error}") from error
