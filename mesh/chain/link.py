"""One websocket to a node, for one thread that may wait: a request out, its answer back.

Everything a node sends is bounded: bytes of one answer, messages that answer nothing, seconds between bytes. What is
no answer ends the link, for what follows it could not be trusted to belong to its request either.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import websocket

from mesh.chain.session import Disconnected, RpcRefused
from mesh.errors import ChainError, WrongChain

MAX_STRAY_MESSAGES: Final = 64
"""Messages that answer another request, or none, while one answer is waited for."""


MAX_CONTAINERS: Final = 65_536
MAX_ITEMS: Final = 1_048_576
"""Lists and objects, and commas, of one message: the parser of JSON lets no other thread run until it is done, and a
few bytes each make it slow where one long text (metadata, a block) is nothing."""
MAX_DIGITS: Final = 78
"""Of one number: a u256 has so many. Longer ones take time that grows with their square."""
MAX_ADDRESSES: Final = 4
"""Of a host's addresses that are tried."""

_SOCKET_OPTIONS: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE))


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
        self._raw: socket.socket | None = None
        self._shut = False
        self._last_id = 0

    def connect(self) -> None:
        """Open the websocket. Raises Disconnected; WrongChain for what is no websocket URL.

        Its socket is made here and not by the library, so that `shut` reaches it while the other side draws out a
        handshake; a redirection is not followed, for it would lead to a node that nobody named.
        """
        try:
            parts = urlsplit(self._url)
            if parts.scheme not in ("ws", "wss") or not parts.hostname:
                raise ValueError("its scheme or host is missing")
            secure, host = parts.scheme == "wss", parts.hostname
            port = parts.port or (443 if secure else 80)
        except ValueError as error:
            raise WrongChain(f"{self._url!r} is no ws:// or wss:// URL: {error}") from error
        # its check of UTF-8 is Python code; decoding the text checks the same in C
        opened = _Bounded(skip_utf8_validation=True)
        opened.settimeout(self._timeout_s)
        try:
            self._open(host, port)
            if secure:
                assert self._raw is not None
                context = ssl.create_default_context()
                tls = context.wrap_socket(self._raw, server_hostname=host, do_handshake_on_connect=False)
                self._keep(tls)
                tls.do_handshake()
            opened.connect(self._url, socket=self._raw, redirect_limit=0)
            opened.most = self._max_bytes
            self._websocket = opened
        except (websocket.WebSocketException, OSError, ValueError) as error:
            raise Disconnected(f"{self._url}: {error}") from error
        finally:
            if self._websocket is None:
                self.shut()
        if self._shut:
            self.shut()
            raise Disconnected(f"{self._url}: given up")

    def _open(self, host: str, port: int) -> None:
        """A TCP connection to one of the host's addresses. Raises OSError."""
        failed: OSError = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            :MAX_ADDRESSES
        ]:
            raw = socket.socket(family, kind, protocol)
            self._keep(raw)
            try:
                raw.settimeout(self._timeout_s)
                for level, option in _SOCKET_OPTIONS:
                    raw.setsockopt(level, option, 1)
                raw.connect(address)
            except OSError as error:
                raw.close()
                if self._shut:
                    raise
                failed = error
            else:
                return
        raise failed

    def _keep(self, raw: socket.socket) -> None:
        self._raw = raw
        if self._shut:
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
                reply = parse_message(text)
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
        raw = self._raw
        if raw is not None:
            with contextlib.suppress(OSError, ValueError):
                raw.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError, ValueError):
                raw.close()


def parse_message(text: str | bytes) -> dict[str, object]:
    """The JSON object of one message, in a bounded time. Raises ValueError, RecursionError."""
    if isinstance(text, bytes):
        text = text.decode()
    if text.count("[") + text.count("{") > MAX_CONTAINERS or text.count(",") > MAX_ITEMS:
        raise ValueError("it has more parts than an answer needs")
    message = json.loads(text, parse_int=_integer, parse_float=_float)
    if not isinstance(message, dict):
        raise ValueError(f"it sent a {type(message).__name__}")
    return message


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return float(digits)


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
