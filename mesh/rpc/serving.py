"""A served method: its places, and one call of it from authorization to answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import trio

from mesh.auth.authorizer import PeerClass
from mesh.errors import LocalProtocolError, RemoteFailure, RemoteProtocolError
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.adapters import json_form
from mesh.rpc.answering import InboundCall
from mesh.rpc.config import MethodMetrics
from mesh.rpc.link import Buffers, body_bytes
from mesh.rpc.replies import ReplyCache
from mesh.rpc.servicer import MethodSpec, RpcContext
from mesh.rpc.status import BAD_REQUEST, BUSY, TOO_LARGE
from mesh.trace import CURRENT, Trace


class Gate(Protocol):
    """What a call being answered asks of its node."""

    @property
    def replies(self) -> ReplyCache:
        """Replies kept for repeated calls."""
        ...

    async def class_of(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """The caller's class. Raises NotAuthorized, and RemoteFailure `busy` beyond the node's rate."""
        ...

    async def recheck(self, peer: PeerID, least: PeerClass) -> None:
        """Raises NotAuthorized when the caller may not go on."""
        ...

    def left(self) -> None:
        """A call is over."""
        ...


class Bound:
    """A served method and how many calls of it run."""

    def __init__(self, spec: MethodSpec, run: Callable[..., Any], metrics: MethodMetrics) -> None:
        self.spec = spec
        self.run = run
        self.metrics = metrics
        self.running = 0
        self.by_peer: dict[PeerID, int] = {}

    def enter(self, peer: PeerID, body_size: int) -> None:
        """Take a place. Raises RemoteFailure."""
        limits = self.spec.limits
        if body_size > limits.max_request_bytes:
            raise RemoteFailure(TOO_LARGE, f"{self.spec} takes {limits.max_request_bytes} bytes, not {body_size}")
        if self.running >= limits.max_concurrent:
            raise RemoteFailure(BUSY, f"{self.spec} is running {self.running} times already", retryable=True)
        own = self.by_peer.get(peer, 0)
        if own >= limits.max_concurrent_per_peer:
            raise RemoteFailure(BUSY, f"{self.spec} is running {own} times for you already", retryable=True)
        self.by_peer[peer] = own + 1
        self.running += 1
        self.metrics.calls += 1
        self.metrics.running = self.running

    def leave(self, peer: PeerID) -> None:
        """Give the place back."""
        self.running -= 1
        self.metrics.running = self.running
        if self.by_peer[peer] > 1:
            self.by_peer[peer] -= 1
        else:
            del self.by_peer[peer]


class Requests:
    """A stream of requests as a method sees it: an async iterator."""

    def __init__(self, call: InboundCall, unpack: Callable[[bytearray], Any]) -> None:
        self._inbox = call.open_inbox()
        self._unpack = unpack

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        body = await self._inbox.next()
        if body is None:
            raise StopAsyncIteration
        return self._unpack(body)


class Admitted:
    """A call from a peer that found its method with room for it (mesh.rpc.answering.Admission)."""

    def __init__(self, gate: Gate, bound: Bound, peer: PeerID, request: f.Call) -> None:
        self._gate = gate
        self._bound = bound
        self._peer = peer
        self._begun = trio.current_time()
        self._failed = True
        limits = bound.spec.limits
        self.timeout_s = limits.timeout_s
        self.max_request_bytes = limits.max_request_bytes
        is_json = bool(request.shape & f.Shape.JSON)
        self._request = json_form(bound.spec.request) if is_json else bound.spec.request
        self._response = json_form(bound.spec.response) if is_json else bound.spec.response

    async def answer(self, call: InboundCall) -> Buffers:
        spec = self._bound.spec
        request = call.request
        trace = Trace(request.trace[:16], request.trace[16:]) if request.trace else None
        CURRENT.set(trace)
        peer_class = await self._gate.class_of(call.remote, str(spec), spec.limits.least)
        call.is_let_in(peer_class)
        ctx = RpcContext(call.remote, peer_class, call.deadline, request.call_id, trace)
        if spec.shape & f.Shape.ANSWERS:
            await self._stream(call, ctx)
            self._failed = False
            return ()
        if spec.shape & f.Shape.REQUESTS:
            buffers = self._pack(await self._bound.run(Requests(call, self._unpack), ctx))
        elif request.key:
            body = await call.receive()
            buffers = (await self._keyed(body, request, ctx),)
        else:
            buffers = self._pack(await self._bound.run(self._unpack(await call.receive()), ctx))
        self._failed = False
        return buffers

    async def _keyed(self, body: bytearray, request: f.Call, ctx: RpcContext) -> bytes:
        async def run() -> bytes:
            return b"".join(self._pack(await self._bound.run(self._unpack(body), ctx)))

        key = (request.protocol, request.method, request.key)
        return await self._gate.replies.once(self._peer, key, body, run)

    async def _stream(self, call: InboundCall, ctx: RpcContext) -> None:
        is_stream = bool(self._bound.spec.shape & f.Shape.REQUESTS)
        request = Requests(call, self._unpack) if is_stream else self._unpack(await call.receive())
        async with aclosing(self._bound.run(request, ctx)) as answers:
            async for answer in answers:
                await call.send(self._pack(answer))

    def _unpack(self, body: bytearray) -> Any:
        try:
            return self._request.unpack(body, max_bytes=self.max_request_bytes)
        except RemoteProtocolError as error:
            raise RemoteFailure(BAD_REQUEST, str(error)) from error

    def _pack(self, value: Any) -> Buffers:
        spec = self._bound.spec
        if not spec.response.accepts(value):
            raise LocalProtocolError(f"{spec} answered with a {type(value).__name__}")
        buffers = self._response.pack(value)
        size = body_bytes(buffers)
        if size > spec.limits.max_response_bytes:
            raise RemoteFailure(TOO_LARGE, f"the answer has {size} bytes, {spec.limits.max_response_bytes} may be")
        return buffers

    async def recheck(self) -> None:
        """See mesh.rpc.answering.Admission."""
        await self._gate.recheck(self._peer, self._bound.spec.limits.least)

    def release(self) -> None:
        """See mesh.rpc.answering.Admission."""
        self._bound.leave(self._peer)
        self._gate.left()
        metrics = self._bound.metrics
        seconds = trio.current_time() - self._begun
        metrics.seconds += seconds
        metrics.slowest_s = max(metrics.slowest_s, seconds)
        metrics.failures += self._failed
