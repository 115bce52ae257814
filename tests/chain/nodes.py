"""Chains for tests of the client: a dev chain that can be killed, and nodes whose answers come from a function."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, open_websocket_url, serve_websocket

from mesh.chain import session
from mesh.chain.session import RpcRefused
from mesh.chain.substrate import ChainConfig, SubstrateChain
from mesh.devchain.node import DevChain, DevChainConfig, run_chain
from mesh.devchain.server import Connection
from mesh.identity import AccountKey

ALITH = AccountKey.dev("alith")
OWN = AccountKey.from_private(b"\x11" * 32)
FUND = {f"0x{key.account_id.hex()}": 10**24 for key in (ALITH, OWN)}
REMARK = {"remark": b"once"}


def config(*urls: str, **changes: Any) -> ChainConfig:
    defaults: dict[str, Any] = {
        "urls": urls,
        "call_timeout_s": 5,
        "backoff_first_s": 0.02,
        "backoff_max_s": 0.1,
        "poll_interval_s": 0.05,
    }
    return ChainConfig(**{**defaults, **changes})


def client(tmp_path: Path, *urls: str, **changes: Any) -> SubstrateChain:
    recover: Sequence[bytes] = changes.pop("recover", ())
    return SubstrateChain(
        config(*urls, **changes), journal_dir=tmp_path / "journal", recover=recover, rng=random.Random(1)
    )


class Node:
    """A dev chain that can be killed and started again on the same port, with the same state."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.dev = DevChain(DevChainConfig(fund=FUND))
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self.url = ""

    async def start(self) -> None:
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        self._scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[str]) -> None:
            with self._scope:
                await run_chain(DevChainConfig(fund=FUND, port=port), chain=self.dev, task_status=task_status)

        self.url = await self._nursery.start(run)

    def kill(self) -> None:
        self._scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not holds():  # noqa: ASYNC110 - what is waited for is another program's state
            await trio.sleep(0.005)


async def expect(error: type[Exception], act: Callable[[], Awaitable[object]]) -> Exception:
    with pytest.raises(error) as caught:
        await act()
    return caught.value


class Raw(str):
    """A message to send as it is, `count` times."""

    count = 1


Answer = Callable[[str, Sequence[Any]], Awaitable[object]]


async def serve(nursery: trio.Nursery, answer: Answer) -> str:
    """A JSON-RPC node on loopback whose answers come from a function."""

    return await serve_sockets(nursery, lambda websocket: _answer(websocket, answer))


Handler = Callable[[WebSocketConnection], Awaitable[None]]


async def serve_sockets(nursery: trio.Nursery, handler: Handler) -> str:
    """A server on loopback that leaves each websocket to a function."""

    async def handle(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        try:
            await handler(websocket)
        except ConnectionClosed:
            pass

    async def run(task_status: trio.TaskStatus[Any]) -> None:
        await serve_websocket(handle, "127.0.0.1", 0, None, task_status=task_status)

    return f"ws://127.0.0.1:{(await nursery.start(run)).port}"


async def _answer(websocket: WebSocketConnection, answer: Answer) -> None:
    while True:
        asked = json.loads(await websocket.get_message())
        reply: dict[str, object] = {"jsonrpc": "2.0", "id": asked["id"]}
        try:
            result = await answer(asked["method"], asked["params"])
        except RpcRefused as error:
            reply["error"] = {"code": error.code, "message": error.message}
        else:
            if isinstance(result, Raw):
                for _ in range(result.count):
                    await websocket.send_message(str(result))
                continue
            reply["result"] = result
        await websocket.send_message(json.dumps(reply))


async def back(url: str, method: str, params: Sequence[Any]) -> object:
    """Ask the real node; subscriptions, which this cannot pass on, are refused."""
    if method.startswith("chain_subscribe") or method == "author_submitAndWatchExtrinsic":
        raise RpcRefused(method, session.METHOD_NOT_FOUND, "Method not found")
    async with open_websocket_url(url) as websocket:
        await websocket.send_message(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
        reply = json.loads(await websocket.get_message())
        if "error" in reply:
            raise RpcRefused(method, reply["error"]["code"], reply["error"]["message"])
        return reply["result"]


def refuse(*_: object) -> object:
    """An answer for Relay.instead: there is no such method."""
    raise RpcRefused("", session.METHOD_NOT_FOUND, "Method not found")


class Relay:
    """A node over a dev chain in this process: answers at once, can be told to answer otherwise, remembers requests."""

    def __init__(self, dev: DevChain) -> None:
        self.dev = dev
        self.asked: list[tuple[str, Sequence[Any]]] = []
        self.instead: dict[str, Callable[[Sequence[Any]], object]] = {}
        """Answers by method; a function may raise RpcRefused, and return Raw."""
        self._direct = Connection(dev, cast(WebSocketConnection, None))

    async def answer(self, method: str, params: Sequence[Any]) -> object:
        """For `serve`."""
        self.asked.append((method, params))
        if method.startswith("chain_subscribe") or method == "author_submitAndWatchExtrinsic":
            raise RpcRefused(method, session.METHOD_NOT_FOUND, "Method not found")
        if method in self.instead:
            return self.instead[method](params)
        return await self.truth(method, params)

    async def truth(self, method: str, params: Sequence[Any]) -> object:
        """What the dev chain says."""
        reply = await self._direct._answer({"id": 1, "method": method, "params": list(params)})
        if "error" in reply:
            raise RpcRefused(method, reply["error"]["code"], reply["error"]["message"])
        return reply["result"]

    def methods(self) -> list[str]:
        """The methods asked since the last time, heads left out."""
        asked, self.asked = self.asked, []
        return [method for method, _ in asked if not method.startswith(("chain_", "system_"))]
