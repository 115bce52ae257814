"""Rpc: serves a node's servicers to peers and calls theirs.

Calls to a peer go over one channel on a libp2p stream, and over a data connection beside it once one is up (opened by
itself for a peer that is called often, and at once for streams and large bodies); where none can be had, the libp2p
stream carries all. Every call is authorized by the proven identity of the peer before its body is taken, has a deadline
that travels, and ends in an answer or in an error of mesh.errors.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Any, Final, Protocol, cast, overload

import trio

from mesh.auth.authorizer import Authorizer, PeerClass, is_enough
from mesh.errors import (
    DialFailed,
    LocalProtocolError,
    MeshError,
    NetworkError,
    NotAuthorized,
    PeerSuspended,
    ProtocolNotSpoken,
    RemoteFailure,
    RemoteProtocolError,
    RequestTimeout,
    RpcError,
    StreamBroken,
)
from mesh.net.base import Handler, Lifetime, Network, Stream
from mesh.peer import PeerID
from mesh.ratelimit import Rate, RateLimiter, TokenBucket
from mesh.rpc import frame as f
from mesh.rpc.adapters import JsonAdapter
from mesh.rpc.answering import AnsweringChannel
from mesh.rpc.calling import CallingChannel, NotSent, OutboundCall
from mesh.rpc.config import RPC_PROTOCOL, MethodMetrics, RpcConfig, RpcMetrics
from mesh.rpc.flow import DATA_LINK, LIBP2P_LINK, LinkLimits
from mesh.rpc.link import Buffers, body_bytes
from mesh.rpc.replies import ReplyCache
from mesh.rpc.servicer import (
    PREFIX,
    Exchange,
    MethodLimits,
    MethodSpec,
    Repeat,
    RequestT,
    ResponseT,
    RpcContext,
    Servicer,
    ServicerT,
    Streaming,
    Unary,
    Uploading,
    spec_of,
    version_of,
)
from mesh.rpc.serving import Admitted, Bound
from mesh.rpc.standing import Standings
from mesh.rpc.status import BAD_REQUEST, BUSY, INTERNAL, UNKNOWN_METHOD, Status, status_of
from mesh.rpc.stub import OpenExchange, PeerStub, in_words, pack_request, unpack_answer
from mesh.trace import child

log = logging.getLogger(__name__)

_CLOSE_S: Final = 1.0
_FAREWELL_S: Final = 0.5
_CLOSING: Final = 16  # channels told to end, whose streams are still counted by the network
_MUST_PASS: Final = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)
_KEY_BYTES: Final = 16
_MAX_WHERE_BYTES: Final = 200
_MAX_DATA_DOUBLINGS: Final = 4
_DATA: Final = "a data connection"


class _NoPlace(DialFailed):
    """We have no channel to spare: no fault of the peer's."""


class DataConnections(Protocol):
    """Streams beside the libp2p connection, for calls and bulk (mesh.net.data)."""

    def serve(self, handler: Handler, authorize: Callable[[PeerID], Awaitable[object]]) -> None:
        """What serves the connections that others ask for, and whose they may be."""
        ...

    def peers(self) -> tuple[PeerID, ...]:
        """Who has a live connection with us."""
        ...

    async def open(self, peer: PeerID) -> Stream:
        """A connection for our calls. Raises DialFailed, StreamBroken, NotAuthorized, RemoteProtocolError."""
        ...

    async def close_peer(self, peer: PeerID) -> None:
        """End all connections with a peer; never raises."""
        ...


class Rpc:
    """Serves our servicers to peers and calls theirs.

    `serve` may be called before or during `run`; calls need `run` (and the network's own) to be running.
    """

    def __init__(
        self,
        net: Network,
        authorizer: Authorizer,
        *,
        config: RpcConfig | None = None,
        rng: random.Random,
        data: DataConnections | None = None,
    ) -> None:
        self.net = net
        self.config = config or RpcConfig()
        self.metrics = RpcMetrics()
        self.standings = Standings(self.config.standing)
        self.replies = ReplyCache(self.config.replies)
        self._authorizer = authorizer
        self._rng = rng
        self._data = data
        self._bound: dict[tuple[str, str], Bound] = {}
        self._calling: OrderedDict[PeerID, CallingChannel] = OrderedDict()
        self._data_calling: OrderedDict[PeerID, CallingChannel] = OrderedDict()
        self._data_failed: OrderedDict[PeerID, tuple[int, float]] = OrderedDict()
        """Peers to whom no data connection could be opened: how often in a row, and until when none is tried."""
        self._answering: list[AnsweringChannel] = []
        self._nursery: trio.Nursery | None = None
        self._rates: RateLimiter[PeerID] = RateLimiter(
            Rate(self.config.calls_per_s_per_peer, self.config.calls_per_s_per_peer),
            max_keys=self.config.max_rated_peers,
        )
        self._rate = TokenBucket(rate_per_s=self.config.calls_per_s, burst=self.config.calls_per_s)
        self._running_calls = 0
        self._hold = ExitStack()
        """Holds up a drain of the network while calls are being answered."""
        net.serve(
            RPC_PROTOCOL,
            self._accept,
            max_streams=self.config.max_channels_in + _CLOSING,
            lifetime=Lifetime.CHANNEL,
        )
        if data is not None:
            data.serve(self._accept_data, self._authorize_data)

    # --- serving ---

    def serve(self, servicer: Servicer) -> None:
        """Answer calls to this servicer's methods. Raises LocalProtocolError when its protocol is served already."""
        if isinstance(servicer, type):
            raise LocalProtocolError(f"serve an instance: {servicer.__name__}(), not the class")
        if not servicer.methods:
            raise LocalProtocolError(f"{type(servicer).__name__} has no {PREFIX} methods")
        if servicer.protocol in self.served():
            raise LocalProtocolError(f"{servicer.protocol} is served already")
        for spec in servicer.methods.values():
            metrics = self.metrics.methods_in[str(spec)] = MethodMetrics()
            self._bound[spec.protocol, spec.name] = Bound(spec, getattr(servicer, PREFIX + spec.name), metrics)

    @property
    def authorizer(self) -> Authorizer:
        """Who may do what: for protocols that are not calls."""
        return self._authorizer

    def served(self) -> dict[str, list[MethodSpec]]:
        """All methods we serve, by protocol."""
        found: dict[str, list[MethodSpec]] = {}
        for (protocol, _), bound in self._bound.items():
            found.setdefault(protocol, []).append(bound.spec)
        return found

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep channels until cancelled; may run again after that. Raises LocalProtocolError when running already."""
        if self._nursery is not None:
            raise LocalProtocolError("this Rpc is already running")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._watch_members)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before it closes: calls of others that end just now are told so
        finally:
            self._nursery = None  # also when a task's crash ended it
            for channel in self._answering:
                channel.scope.cancel()

    def _entered(self) -> None:
        if not self._running_calls:
            self._hold.enter_context(self.net.hold())
        self._running_calls += 1

    def left(self) -> None:
        """For calls: see mesh.rpc.serving.Gate."""
        self._running_calls -= 1
        if not self._running_calls:
            self._hold.close()

    async def _watch_members(self) -> None:
        """End what is being answered to peers that may not have it any more."""
        seen = self._authorizer.changes
        while True:
            seen = await self._authorizer.wait_change(seen)
            for channel in list(self._answering):
                for call in list(channel.calls.values()):
                    try:
                        await call.admission.recheck()
                    except NotAuthorized as error:
                        call.refuse(error)
            for peer in self._data.peers() if self._data is not None else ():
                try:
                    await self._authorizer.recheck(peer, PeerClass.MEMBER)
                except NotAuthorized as error:
                    log.info("the data connections with %s end: %s", peer.short, error)
                    if self._nursery is not None:
                        self._nursery.start_soon(self._part_from, peer)

    async def _part_from(self, peer: PeerID) -> None:
        """Close a peer's data connections once it was told why its calls end."""
        await trio.sleep(_FAREWELL_S)
        assert self._data is not None
        await self._data.close_peer(peer)

    async def recheck(self, peer: PeerID, least: PeerClass) -> None:
        """For calls: see mesh.rpc.serving.Gate."""
        if peer != self.net.local.peer_id:
            await self._authorizer.recheck(peer, least)

    async def _authorize_data(self, peer: PeerID) -> None:
        _at_least(PeerClass.MEMBER, await self._authorizer.authorize(peer, _DATA, PeerClass.MEMBER), peer, _DATA)

    async def class_of(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """For calls: see mesh.rpc.serving.Gate."""
        if peer == self.net.local.peer_id:
            return PeerClass.MEMBER
        found = _at_least(least, await self._authorizer.authorize(peer, method, least), peer, method)
        # After authorization: what strangers are refused must not use up what members may call.
        if not self._rate.take(trio.current_time()):
            raise RemoteFailure(BUSY, "this node gets too many calls a second", retryable=True)
        return found

    async def _accept(self, stream: Stream) -> None:
        """Serve a channel that a peer opened (a handler of the network: it runs in the network's task)."""
        await self._serve_channel(stream, LIBP2P_LINK)

    async def _accept_data(self, stream: Stream) -> None:
        await self._serve_channel(stream, DATA_LINK)

    async def _serve_channel(self, stream: Stream, limits: LinkLimits) -> None:
        try:
            self._check_room(stream.remote, limits)
        except MeshError as error:
            self.metrics.channels_refused += 1
            log.info("%s: channel refused: %s", stream.remote.short, error)
            await stream.reset()
            return
        self.standings.answered(stream.remote)
        channel = AnsweringChannel(stream, limits, self, self.config, self.metrics, now=trio.current_time())
        self._answering.append(channel)
        self.metrics.channels_accepted += 1
        try:
            await channel.run()
        except RemoteProtocolError as error:
            self._violated(stream.remote, error)
            with trio.move_on_after(_CLOSE_S, shield=True):
                await stream.reset()
        except NetworkError as error:
            log.debug("%s: channel ended: %s", stream.remote.short, error)
        finally:
            self._answering.remove(channel)
            with trio.move_on_after(_CLOSE_S, shield=True):
                await stream.aclose()

    def _check_room(self, remote: PeerID, limits: LinkLimits) -> None:
        """Close the oldest channel of a peer that has too many, or when all places are taken an idle one: a stranger's
        before a member's (identities are free, so strangers may be many), then the longest idle.

        Raises DialFailed or PeerSuspended when there is no place for another."""
        if self._nursery is None:
            raise DialFailed("this node is stopping")
        self.standings.may_serve(remote, trio.current_time())
        live = [c for c in self._answering if not c.scope.cancel_called]
        own = [c for c in live if c.stream.remote == remote and c.limits is limits]
        if len(own) >= self.config.max_channels_in_per_peer:
            own[0].scope.cancel()
        elif len(live) >= self.config.max_channels_in:
            idle = [c for c in live if not c.calls]
            if not idle:
                raise DialFailed(f"{len(live)} are open and busy")
            min(idle, key=lambda c: (c.peer_class, c.last_used)).scope.cancel()

    def _violated(self, peer: PeerID, error: MeshError) -> None:
        self.metrics.violations += 1
        seconds = self.standings.violated(peer, trio.current_time())
        log.warning("%s broke the RPC protocol and is refused for %.0f s: %s", peer.short, seconds, error)
        if self._nursery is not None:
            self._nursery.start_soon(self._drop, peer)

    async def _drop(self, peer: PeerID) -> None:
        if self._data is not None:
            await self._data.close_peer(peer)
        await self.net.disconnect(peer)

    def admit(self, remote: PeerID, request: f.Call) -> Admitted:
        """For channels: see mesh.rpc.answering.Service."""
        is_ours = remote == self.net.local.peer_id
        if not is_ours and not self._rates.take(remote, trio.current_time()):
            raise RemoteFailure(BUSY, "you make too many calls a second", retryable=True)
        bound = self._bound.get((request.protocol, request.method))
        if bound is None:
            raise RemoteFailure(UNKNOWN_METHOD, f"{request.protocol} {request.method} is not served here")
        spec = bound.spec
        if request.shape & ~f.Shape.JSON != spec.shape:
            raise RemoteFailure(BAD_REQUEST, f"{spec} {in_words(spec.shape)}")
        if request.key and spec.limits.repeat is not Repeat.KEYED:
            raise RemoteFailure(BAD_REQUEST, f"{spec} keeps no replies for idempotency keys")
        if self.is_ending and not is_ours:
            raise RemoteFailure(BUSY, "this node is stopping", retryable=True)
        admitted = Admitted(self, bound, remote, request)
        bound.enter(remote, request.size)
        self._entered()
        return admitted

    @property
    def is_ending(self) -> bool:
        """For channels: see mesh.rpc.answering.Service."""
        return self.net.draining.is_set()

    def reserve(self, amount: int) -> None:
        """For channels: see mesh.rpc.answering.Service."""
        if amount > 0 and self.metrics.buffered_bytes + amount > self.config.max_buffered_bytes:
            raise RemoteFailure(BUSY, "too many bytes on their way to this node", retryable=True)
        self.metrics.buffered_bytes += amount

    def status_of_exception(self, error: BaseException, where: str) -> Status:
        """For channels: see mesh.rpc.answering.Service. What is not a MeshError is logged and told as `internal`."""
        where = f.printable(where, _MAX_WHERE_BYTES)  # the caller's own words
        if isinstance(error, BaseExceptionGroup):
            stop, rest = error.split(_MUST_PASS)
            if stop is not None:
                if rest is not None:
                    log.error("%s failed while it was cancelled", where, exc_info=rest)
                raise stop
        elif isinstance(error, _MUST_PASS):
            raise error
        elif isinstance(error, MeshError) and not isinstance(error, LocalProtocolError):
            status = status_of(error)
            log.debug("%s: %s %s", where, status.code, status.message)
            return status
        log.error("%s failed", where, exc_info=error)
        return Status(INTERNAL, "", "the method failed; the peer's log says why")

    # --- calling ---

    def stub(self, servicer: type[ServicerT], peer: PeerID) -> ServicerT:
        """The service of that type at that peer: call its `rpc_` methods. Nothing is sent until then.

        One request, one answer: `await stub.rpc_x(request, timeout_s=...)`. Streams: `async with stub.rpc_x(...) as
        call:` gives an Exchange. Errors are those of `call`."""
        _check_peer(peer)
        return cast(ServicerT, PeerStub(self, servicer, peer))

    async def call(
        self,
        function: Callable[[Any, RequestT, RpcContext], Awaitable[ResponseT]],
        peer: PeerID,
        request: RequestT,
        *,
        timeout_s: float | None = None,
    ) -> ResponseT:
        """Call `SomeServicer.rpc_name` at a peer; typed.

        `timeout_s` counts from now, dial and retries included; the default and the most is the method's own. Raises
        DialFailed, StreamBroken (the answer may have been lost: the call may have happened), RequestTimeout,
        PeerSuspended, NotAuthorized (we may not call, or the peer may not be called), RemoteFailure,
        RemoteProtocolError, LocalProtocolError. A method that may be repeated is, up to `max_retries` times.
        Cancelled: the handler is cancelled too.
        """
        response: ResponseT = await self.unary(spec_of(function), peer, request, timeout_s)
        return response

    @overload
    def open(
        self,
        function: Streaming[RequestT, ResponseT],
        peer: PeerID,
        request: RequestT,
        *,
        timeout_s: float | None = None,
    ) -> AbstractAsyncContextManager[Exchange[RequestT, ResponseT]]: ...
    @overload
    def open(
        self, function: Uploading[RequestT, ResponseT], peer: PeerID, *, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[Exchange[RequestT, ResponseT]]: ...
    def open(
        self, function: Any, peer: PeerID, request: Any = None, *, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[Exchange[Any, Any]]:
        """Open `SomeServicer.rpc_name`, whose requests or answers are streams, at a peer; typed.

        Leaving the block ends the call: what was not over is cancelled at the peer. Raises as `call` does; never
        retried, as the answers so far are the caller's."""
        return self.open_call(spec_of(function), peer, request, timeout_s)

    async def hedge(
        self,
        function: Unary[RequestT, ResponseT],
        peers: Sequence[PeerID],
        request: RequestT,
        *,
        after_s: float,
        timeout_s: float | None = None,
    ) -> ResponseT:
        """Call the first peer, and whenever no answer came for `after_s`, or one failed, the next beside it; the first
        answer wins and the other calls are cancelled. For methods that are safe to repeat only. Raises the last
        failure when all failed."""
        spec = spec_of(function)
        if spec.limits.repeat is not Repeat.SAFE or not peers:
            raise LocalProtocolError(f"{spec} is not declared safe to repeat, or there is no peer to ask")
        won: list[Any] = []
        failures: list[MeshError] = []

        async def one(peer: PeerID) -> None:
            try:
                won.append(await self.unary(spec, peer, request, timeout_s))
                nursery.cancel_scope.cancel()
            except MeshError as error:
                failures.append(error)
                failed.set()

        async with trio.open_nursery() as nursery:
            for number, peer in enumerate(peers):
                self.metrics.hedges += number > 0
                failed = trio.Event()
                nursery.start_soon(one, peer)
                with trio.move_on_after(after_s):
                    await failed.wait()
        if won:
            answer: ResponseT = won[0]
            return answer
        raise failures[-1]

    async def newest(self, peer: PeerID, *servicers: type[Servicer]) -> type[Servicer]:
        """Of servicer classes that are versions of one protocol, the newest that the peer serves too.

        Raises RemoteFailure `unknown-method` when it serves none of them, and as `call` does."""
        from mesh.rpc.reflection import ListRequest, ReflectionServicer

        theirs = await self.call(ReflectionServicer.rpc_list, peer, ListRequest())
        served = {service.protocol for service in theirs.services}
        for servicer in sorted(servicers, key=lambda s: version_of(s.protocol)[1], reverse=True):
            if servicer.protocol in served:
                return servicer
        raise RemoteFailure(UNKNOWN_METHOD, f"{peer.short} serves none of {', '.join(s.protocol for s in servicers)}")

    def open_json(
        self, peer: PeerID, protocol: str, name: str, text: str | None, shape: f.Shape, *, timeout_s: float
    ) -> AbstractAsyncContextManager[Exchange[str, str]]:
        """Call a method whose models are not at hand with JSON text; for streams of answers and for one. Its `shape` is
        known from reflection. Raises as `open` does."""
        if not (0 < len(protocol) <= f.MAX_PROTOCOL_CHARS and 0 < len(name) <= f.MAX_METHOD_CHARS):
            raise LocalProtocolError("a protocol has 1 to 96 characters and a method 1 to 64")
        limits = MethodLimits(timeout_s=timeout_s)
        spec = MethodSpec(protocol, name, JsonAdapter(), JsonAdapter(), shape | f.Shape.JSON, limits)
        return self.open_call(spec, peer, text, timeout_s)

    async def unary(self, spec: MethodSpec, peer: PeerID, request: Any, timeout_s: float | None) -> Any:
        """For stubs: see mesh.rpc.stub.Caller."""
        _check_peer(peer)
        buffers = pack_request(spec, request)
        limits = spec.limits
        timeout_s = _timeout(spec, timeout_s)
        deadline = trio.current_time() + timeout_s
        key = self._rng.randbytes(_KEY_BYTES) if limits.repeat is Repeat.KEYED else b""
        head = self._head(spec, key)
        self.metrics.calls_out += 1
        body: bytearray | None = None
        try:
            with trio.CancelScope(deadline=deadline):
                if limits.repeat is Repeat.NEVER:
                    body = await self._attempt(spec, peer, head, buffers, deadline)
                else:
                    body = await self._attempts(spec, peer, head, buffers, deadline)
            if body is None:
                raise RequestTimeout(f"{peer.short} did not answer {spec} within {timeout_s:g} s")
            return unpack_answer(spec, body)
        except MeshError as error:
            # Who waits for less than the method may take cannot tell slow from dead.
            is_impatient = isinstance(error, RequestTimeout) and timeout_s < limits.timeout_s
            self._failed(peer, error, is_theirs=not is_impatient)
            raise

    def _failed(self, peer: PeerID, error: MeshError, *, is_theirs: bool = True) -> None:
        self.metrics.count_error(self.metrics.errors_out, status_of(error).code)
        if is_theirs and isinstance(error, NetworkError) and not isinstance(error, PeerSuspended | _NoPlace):
            self.standings.failed(peer, trio.current_time())

    def _head(self, spec: MethodSpec, key: bytes) -> f.Call:
        trace = child(self._rng)
        return f.Call(0, spec.protocol, spec.name, 0, spec.shape, trace.trace_id + trace.span_id, key, 0)

    async def _attempts(
        self, spec: MethodSpec, peer: PeerID, head: f.Call, buffers: Buffers, deadline: float
    ) -> bytearray:
        """Try again after failures that may pass, with pauses drawn so that callers spread."""
        for attempt in range(self.config.max_retries):
            try:
                return await self._attempt(spec, peer, head, buffers, deadline)
            except (PeerSuspended, ProtocolNotSpoken):
                raise
            except (NetworkError, RemoteFailure) as error:
                if isinstance(error, RemoteFailure) and not error.retryable:
                    raise
                self.metrics.retries += 1
                log.debug("%s at %s is tried again: %s", spec, peer.short, error)
            await trio.sleep(self._rng.random() * self.config.retry_base_s * 2**attempt)
        return await self._attempt(spec, peer, head, buffers, deadline)

    async def _attempt(
        self, spec: MethodSpec, peer: PeerID, head: f.Call, buffers: Buffers, deadline: float
    ) -> bytearray:
        await self._may_call(spec, peer)
        size = body_bytes(buffers)
        for is_last in (False, True):
            channel = await self._channel_for(peer, is_bulk=size >= self.config.data_after_bytes, no_data=is_last)
            try:
                call = self._begin(channel, spec, head, buffers, deadline)
                try:
                    body = await call.result()
                    self.standings.answered(peer)
                    return body
                except RpcError:
                    self.standings.answered(peer)  # it does answer
                    raise
                finally:
                    channel.forget(call)
            except NotSent as error:
                if is_last:
                    raise StreamBroken(f"the channel to {peer.short} broke twice: {error}") from error
            finally:
                channel.release()
        raise AssertionError("unreachable")

    def _begin(
        self, channel: CallingChannel, spec: MethodSpec, head: f.Call, buffers: Buffers, deadline: float
    ) -> OutboundCall:
        return channel.begin(head, buffers, deadline=deadline, max_response_bytes=spec.limits.max_response_bytes)

    @asynccontextmanager
    async def open_call(
        self, spec: MethodSpec, peer: PeerID, request: Any, timeout_s: float | None
    ) -> AsyncIterator[Exchange[Any, Any]]:
        """For stubs: see mesh.rpc.stub.Caller."""
        _check_peer(peer)
        takes_stream = bool(spec.shape & f.Shape.REQUESTS)
        if takes_stream and request is not None:
            raise LocalProtocolError(f"{spec} takes a stream of requests: send them")
        buffers = () if takes_stream else pack_request(spec, request)
        timeout_s = _timeout(spec, timeout_s)
        deadline = trio.current_time() + timeout_s
        self.metrics.calls_out += 1
        channel: CallingChannel | None = None
        call: OutboundCall | None = None
        exchange: OpenExchange | None = None
        try:
            with trio.CancelScope(deadline=deadline) as scope:
                await self._may_call(spec, peer)
                for is_last in (False, True):
                    channel = await self._channel_for(peer, is_bulk=True, no_data=is_last)
                    try:
                        call = self._begin(channel, spec, self._head(spec, b""), buffers, deadline)
                        break
                    except NotSent:
                        channel.release()
                        channel = None
                        if is_last:
                            raise
                assert call is not None
                exchange = OpenExchange(spec, call)
                yield cast(Exchange[Any, Any], exchange)
            if scope.cancelled_caught:
                hint = "" if exchange is None or exchange.is_ended else " (`end` was not called)"
                raise RequestTimeout(f"{peer.short} did not finish {spec} within {timeout_s:g} s{hint}")
        except MeshError as error:
            # What failed in the caller's block is no fault of the peer.
            if call is None or error is call.error or (scope.cancelled_caught and not call.is_heard):
                self._failed(peer, error)
            raise
        finally:
            if call is not None and call.is_heard:
                self.standings.answered(peer)
            if channel is not None:
                if call is not None:
                    channel.forget(call)
                channel.release()

    async def _may_call(self, spec: MethodSpec, peer: PeerID) -> None:
        self.standings.may_call(peer, trio.current_time())
        if spec.limits.server is not PeerClass.PUBLIC and peer != self.net.local.peer_id:
            least = spec.limits.server
            _at_least(least, await self._authorizer.classify(peer, str(spec), least), peer, str(spec))

    # --- channels for our calls ---

    async def _channel_for(self, peer: PeerID, *, is_bulk: bool, no_data: bool) -> CallingChannel:
        """A channel with a place for one call, which the caller releases. Raises what opening one raised."""
        channel: CallingChannel | None = None
        if self._data is not None and not no_data and peer != self.net.local.peer_id:
            channel = self._data_calling.get(peer)
            if channel is not None:
                self._data_calling.move_to_end(peer)
            if channel is None or channel.closed is not None or channel.scope.cancel_called:
                main = self._calling.get(peer)
                often = main is not None and main.calls_made >= self.config.data_after_calls
                channel = self._open_data(peer) if is_bulk or often else None
            if channel is not None and not channel.is_open:
                if is_bulk:
                    with trio.move_on_after(self.config.data_wait_s):
                        await channel.ready.wait()
                if not channel.is_open:
                    channel = None
        if channel is None:
            channel = self._main_channel(peer)
            channel.waiting += 1  # so that nobody closes it as idle
            try:
                # A checkpoint even when it is set: the reader may be about to hear that the channel broke.
                await channel.ready.wait()
            finally:
                channel.waiting -= 1
            if channel.closed is not None and not isinstance(channel.closed, StreamBroken):
                raise channel.closed
        await channel.reserve()
        return channel

    def _main_channel(self, peer: PeerID) -> CallingChannel:
        """The channel on a libp2p stream, a new one when there is none that works. Raises LocalProtocolError,
        DialFailed."""
        channel = self._calling.get(peer)
        if channel is not None and channel.closed is None and not channel.scope.cancel_called:
            self._calling.move_to_end(peer)
            return channel
        self._calling.pop(peer, None)
        if not _make_room(self._calling, self.config.max_channels):
            raise _NoPlace(f"all {len(self._calling)} RPC channels are in use")
        opened = self._open_loop if peer == self.net.local.peer_id else self._open_main
        return self._start(self._calling, peer, LIBP2P_LINK, self.config.idle_s, opened)

    def _open_data(self, peer: PeerID) -> CallingChannel | None:
        """A channel on a data connection that is being opened; None when it is not worth a try now."""
        _, not_before = self._data_failed.get(peer, (0, 0.0))
        if trio.current_time() < not_before or not _make_room(self._data_calling, self.config.max_channels):
            return None
        return self._start(self._data_calling, peer, DATA_LINK, self.config.data_idle_s, self._dial_data)

    def _start(
        self,
        table: OrderedDict[PeerID, CallingChannel],
        peer: PeerID,
        limits: LinkLimits,
        idle_s: float,
        opener: Callable[[PeerID], Awaitable[Stream]],
    ) -> CallingChannel:
        if self._nursery is None:
            raise LocalProtocolError("this Rpc is not running: start `run` before calling")
        # Drawn apart, so that a network that came up at once does not close its channels at once.
        idle_s *= self._rng.uniform(0.75, 1.25)
        channel = CallingChannel(peer, limits, self.config, self.metrics, idle_s=idle_s, last_used=trio.current_time())
        table[peer] = channel
        self._nursery.start_soon(self._keep, table, channel, opener)
        return channel

    async def _keep(
        self,
        table: OrderedDict[PeerID, CallingChannel],
        channel: CallingChannel,
        opener: Callable[[PeerID], Awaitable[Stream]],
    ) -> None:
        try:
            await channel.run(lambda: opener(channel.peer), lambda error: self._violated(channel.peer, error))
        finally:
            if table.get(channel.peer) is channel:
                del table[channel.peer]

    async def _open_main(self, peer: PeerID) -> Stream:
        with trio.move_on_after(self.config.dial_timeout_s):
            return await self.net.open(peer, RPC_PROTOCOL)
        raise DialFailed(f"{peer.short} did not open a channel within {self.config.dial_timeout_s} s")

    async def _dial_data(self, peer: PeerID) -> Stream:
        assert self._data is not None
        try:
            with trio.move_on_after(self.config.dial_timeout_s):
                _at_least(
                    PeerClass.MEMBER,
                    await self._authorizer.classify(peer, _DATA, PeerClass.MEMBER),
                    peer,
                    _DATA,
                )
                stream = await self._data.open(peer)
                self._data_failed.pop(peer, None)
                self.metrics.data_opened += 1
                return stream
            raise DialFailed(f"{peer.short} opened no data connection within {self.config.dial_timeout_s} s")
        except MeshError as error:
            times, _ = self._data_failed.pop(peer, (0, 0.0))
            pause_s = self.config.data_retry_s * 2 ** min(times, _MAX_DATA_DOUBLINGS)
            self._data_failed[peer] = (times + 1, trio.current_time() + pause_s)
            while len(self._data_failed) > self.config.max_channels:
                self._data_failed.popitem(last=False)
            log.debug("no data connection to %s: %s", peer.short, error)
            raise

    async def _open_loop(self, peer: PeerID) -> Stream:
        from mesh.rpc.loopback import loop

        await trio.lowlevel.checkpoint()
        ours, theirs = loop(peer)
        if self._nursery is None:
            raise DialFailed("this node is stopping")
        self._nursery.start_soon(self._accept, theirs)
        return ours


def _at_least(least: PeerClass, found: object, peer: PeerID, method: str) -> PeerClass:
    """What an authorizer said, held against what was asked for: one that forgets to compare lets nobody in."""
    if not is_enough(found, least):
        raise NotAuthorized("class-too-low", f"{method} is for {least.name.lower()}s, and {peer} is none here")
    return found


def _check_peer(peer: object) -> None:
    if not isinstance(peer, PeerID):
        raise LocalProtocolError(
            f"a peer is a PeerID, not a {type(peer).__name__}: PeerID.parse(text), or info.peer_id"
        )


def _timeout(spec: MethodSpec, asked_s: float | None) -> float:
    if asked_s is not None and asked_s <= 0:
        raise LocalProtocolError(f"timeout_s is {asked_s}: above 0, at most the {spec.limits.timeout_s:g} s of {spec}")
    return spec.limits.timeout_s if asked_s is None else min(asked_s, spec.limits.timeout_s)


def _make_room(table: OrderedDict[PeerID, CallingChannel], most: int) -> bool:
    """Close the least recently used idle channel of a full table; says whether there is room now."""
    if len(table) < most:
        return True
    idle = next((c for c in table.values() if not c.waiting), None)
    if idle is None:
        return False
    del table[idle.peer]
    idle.scope.cancel()
    return True
