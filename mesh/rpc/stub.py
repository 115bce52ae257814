"""What a caller holds: a peer's service as a stub, and a call with streams while it is open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio

from mesh.errors import LocalProtocolError
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.calling import OutboundCall
from mesh.rpc.link import Buffers, body_bytes
from mesh.rpc.servicer import PREFIX, Exchange, MethodSpec, Servicer


class Caller(Protocol):
    """What a stub asks of its node (mesh.rpc.rpc.Rpc)."""

    async def unary(self, spec: MethodSpec, peer: PeerID, request: Any, timeout_s: float | None) -> Any:
        """One request, one answer."""
        ...

    def open_call(
        self, spec: MethodSpec, peer: PeerID, request: Any, timeout_s: float | None
    ) -> AbstractAsyncContextManager[Exchange[Any, Any]]:
        """A call with streams."""
        ...


class OpenExchange:
    """An open call with streams (mesh.rpc.servicer.Exchange)."""

    def __init__(self, spec: MethodSpec, call: OutboundCall) -> None:
        self._spec = spec
        self._call = call
        self.is_ended = not spec.shape & f.Shape.REQUESTS

    async def send(self, request: Any) -> None:
        if self.is_ended:
            raise LocalProtocolError(f"{self._spec} takes no more requests: it has its one, or `end` was called")
        await self._call.send(pack_request(self._spec, request))

    async def end(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.is_ended:
            self.is_ended = True
            self._call.end()

    async def result(self) -> Any:
        if self._spec.shape & f.Shape.ANSWERS:
            raise LocalProtocolError(f"{self._spec} answers with a stream: iterate over it")
        await self.end()
        return unpack_answer(self._spec, await self._call.result())

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        # No generator: one that is left half-way would be closed by the garbage collector.
        inbox = self._call.inbox
        if inbox is None:
            raise LocalProtocolError(f"{self._spec} has one answer: await result()")
        body = await inbox.next()
        if body is None:
            await self._call.result()
            raise StopAsyncIteration
        return unpack_answer(self._spec, body)


def pack_request(spec: MethodSpec, request: Any) -> Buffers:
    """The body of a request. Raises LocalProtocolError for one that the method does not take."""
    if not spec.request.accepts(request):
        raise LocalProtocolError(f"{spec} takes a {spec.request.type.__name__}, not a {type(request).__name__}")
    buffers = spec.request.pack(request)
    size = body_bytes(buffers)
    if size > spec.limits.max_request_bytes:
        raise LocalProtocolError(f"{spec} takes {spec.limits.max_request_bytes} bytes, not {size}")
    return buffers


def unpack_answer(spec: MethodSpec, body: bytearray) -> Any:
    """The answer of a body. Raises RemoteProtocolError."""
    return spec.response.unpack(body, max_bytes=spec.limits.max_response_bytes)


class Opening:
    """A call with streams before it is entered: it says what to do to whoever awaits or iterates over it."""

    def __init__(self, spec: MethodSpec, manager: AbstractAsyncContextManager[Exchange[Any, Any]]) -> None:
        self._hint = f"{spec} {in_words(spec.shape)}: `async with stub.{PREFIX}{spec.name}(...) as call:`"
        self._manager = manager

    async def __aenter__(self) -> Exchange[Any, Any]:
        return await self._manager.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._manager.__aexit__(*error)

    def __await__(self) -> Any:
        raise LocalProtocolError(self._hint)

    def __aiter__(self) -> Any:
        raise LocalProtocolError(self._hint)

    def __getattr__(self, name: str) -> Any:
        raise LocalProtocolError(self._hint)


class PeerStub:
    """A peer's service. To mypy it is the servicer itself."""

    def __init__(self, rpc: Caller, servicer: type[Servicer], peer: PeerID) -> None:
        self._rpc = rpc
        self._servicer = servicer
        self.peer = peer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        spec = self._servicer.methods.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if spec is None:
            names = ", ".join(PREFIX + n for n in self._servicer.methods) or "none"
            raise AttributeError(f"{self._servicer.__name__} has no method {name!r} (it has: {names})")
        rpc, peer = self._rpc, self.peer
        if spec.shape is f.Shape.ONE:
            return lambda request, *, timeout_s=None: rpc.unary(spec, peer, request, timeout_s)

        def opened(*requests: Any, timeout_s: float | None = None) -> Opening:
            takes = 0 if spec.shape & f.Shape.REQUESTS else 1
            if len(requests) != takes:
                raise LocalProtocolError(
                    f"{spec} {in_words(spec.shape)}: call it with {takes} request{'s' * (not takes)}"
                )
            return Opening(spec, rpc.open_call(spec, peer, requests[0] if takes else None, timeout_s))

        return opened


def in_words(shape: f.Shape) -> str:
    """What a method takes and gives."""
    requests = "a stream of requests" if shape & f.Shape.REQUESTS else "one request"
    answers = "a stream of answers" if shape & f.Shape.ANSWERS else "one answer"
    return f"takes {requests} and gives {answers}"
