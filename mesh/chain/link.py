"""One websocket to a node, for one thread that may wait: a request out, its answer back.

Everything a node sends is bounded: bytes of one answer, messages that answer nothing, seconds between bytes. What is
no answer ends the link, for what follows it could not be trusted to belong to its request either.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from typing import Any, Final

import websocket

from mesh.chain.session import Disconnected, RpcRefused
from mesh.errors import ChainError, WrongChain

MAX_STRAY_MESSAGES: Final = 64
"""Messages that answer another request, or none, while one answer is waited for."""


class _TooLarge(Exception):
    """An answer has more bytes than are taken."""


class _Bounded(websocket.WebSocket):  # type: ignore[misc]
    """A websocket that counts what it receives since the last request."""

    most = 0
    received = 0

    def _recv(self, bufsize: int) -> bytes:
        data: bytes = super()._recv(bufsize)
        self.received += len(data)
        if self.most and self.received > self.most:
            raise _TooLarge
        return data


class Link:
    """`connect` and `rpc` run in the worker thread, `shut` in any."""

    def __init__(self, url: str, *, timeout_s: float, max_bytes: int) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._websocket: Any = None
        self._shut = False
        self._last_id = 0

    def connect(self) -> None:
        """Open the websocket. Raises Disconnected; WrongChain for what is no websocket URL."""
        try:
            # its check of UTF-8 is Python code; decoding the text checks the same in C
            self._websocket = websocket.create_connection(
                self._url, timeout=self._timeout_s, class_=_Bounded, skip_utf8_validation=True
            )
        except (websocket.WebSocketException, OSError) as error:
            raise Disconnected(f"{self._url}: {error}") from error
        except ValueError as error:
            raise WrongChain(f"{self._url!r} is no ws:// or wss:// URL: {error}") from error
        self._websocket.most = self._max_bytes
        if self._shut:
            self.shut()
            raise Disconnected(f"{self._url}: given up")

    def rpc(self, method: str, params: Sequence[object]) -> object:
        """One call. Raises RpcRefused, Disconnected; ChainError (and the link is shut) for what is no answer."""
        if self._websocket is None or self._shut:
            raise Disconnected(f"{self._url}: closed")
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": list(params)}
        self._websocket.received = 0
        try:
            self._websocket.send(json.dumps(request))
            for _ in range(MAX_STRAY_MESSAGES):
                text = self._websocket.recv()
                if not text:
                    raise Disconnected(f"{self._url}: closed by the node")
                reply = json.loads(text)
                if not isinstance(reply, dict):
                    raise ValueError(f"it sent a {type(reply).__name__}")
                if reply.get("id") == self._last_id:
                    return _result(method, reply)
            raise ValueError(f"{MAX_STRAY_MESSAGES} messages came that answer nothing")
        except _TooLarge as error:
            self.shut()
            raise ChainError(f"{self._url} answers {method} with more than {self._max_bytes} bytes") from error
        except (websocket.WebSocketException, OSError) as error:
            raise Disconnected(f"{self._url}: {error}") from error
        except (ValueError, RecursionError) as error:
            self.shut()
            raise ChainError(f"{self._url} answers {method} with what is no JSON-RPC: {error}") from error

    def shut(self) -> None:
        """End the socket under whatever reads from it; the thread there gets an error at once."""
        self._shut = True
        raw = getattr(self._websocket, "sock", None)
        if raw is not None:
            with contextlib.suppress(OSError, ValueError):
                raw.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError, ValueError):
                raw.close()


def _result(method: str, reply: dict[str, object]) -> object:
    if reply.get("error") is not None:
        raise refusal(method, reply["error"])
    if "result" not in reply:
        raise ValueError("it has no result")
    return reply["result"]


def refusal(method: str, error: object) -> RpcRefused:
    """The code, message and data of a JSON-RPC error object."""
    if not isinstance(error, dict):
        return RpcRefused(method, 0, str(error)[:500])
    code, data = error.get("code"), error.get("data")
    message = str(error.get("message", ""))[:500]
    return RpcRefused(
        method, code if isinstance(code, int) else 0, message if data is None else f"{message}: {str(data)[:500]}"
    )
