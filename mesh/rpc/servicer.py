"""Typed RPC between peers: a Servicer's methods, and the Rpc that serves and calls them.

    class EchoServicer(Servicer):
        protocol = "/mesh/echo/1.0.0"

        @method(least=PeerClass.GUEST)
        async def rpc_echo(self, request: Echo, ctx: RpcContext) -> Echo: ...

    rpc.serve(EchoServicer())
    answer = await rpc.stub(EchoServicer, peer).echo(Echo(text="hello"))
    answer = await rpc.call(EchoServicer.rpc_echo, peer, Echo(text="hello"))    # the same, typed for mypy

Requests and answers are pydantic models (mesh.rpc.body). Every call is authorized by the proven identity of the peer
before its body is taken, has a deadline that travels, and ends in an answer or in an error of mesh.errors.
"""

from __future__ import annotations

import inspect
import logging
import random
import re
import typing
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

import trio
from pydantic import BaseModel

from mesh.auth.authorizer import Authorizer, PeerClass
from mesh.errors import (
    DialFailed,
    LocalProtocolError,
    MeshError,
    NetworkError,
    RemoteProtocolError,
    RequestTimeout,
    StreamBroken,
)
from mesh.net.base import Lifetime, Network, Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.body import pack, unpack
from mesh.rpc.channel import AnsweringChannel, CallingChannel, InboundCall, NotSent
from mesh.rpc.config import RPC_PROTOCOL, RpcConfig, RpcMetrics, Violations
from mesh.rpc.status import (
    BAD_REQUEST,
    BUSY,
    INTERNAL,
    TOO_LARGE,
    UNKNOWN_METHOD,
    Status,
    error_of,
    status_of,
)

log = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=BaseModel)
ResponseT = TypeVar("ResponseT", bound=BaseModel)
ServicerT = TypeVar("ServicerT", bound="Servicer")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Awaitable[BaseModel]])

_PREFIX: Final = "rpc_"
_PROTOCOL_RE: Final = re.compile(r"/[a-z0-9-]+(/[a-z0-9.-]+)+")


@dataclass(frozen=True, slots=True)
class RpcContext:
    """Who calls, and until when the answer is wanted."""

    remote: PeerID
    """Proven by the connection's handshake."""
    peer_class: PeerClass
    deadline: float
    """In trio's time; the handler is cancelled then."""
    request_id: int
    """Of the call on its channel, for log lines."""


@dataclass(frozen=True, slots=True)
class MethodLimits:
    """What `@method` declares."""

    least: PeerClass = PeerClass.MEMBER
    timeout_s: float = 10.0
    max_request_bytes: int = 4 * 1024 * 1024
    max_response_bytes: int = 4 * 1024 * 1024
    max_concurrent: int = 64


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method of a servicer class, as its type hints and `@method` say."""

    protocol: str
    name: str
    request: type[BaseModel]
    response: type[BaseModel]
    limits: MethodLimits

    def __str__(self) -> str:
        return f"{self.protocol} {self.name}"


def method(
    *,
    least: PeerClass = PeerClass.MEMBER,
    timeout_s: float = 10.0,
    max_request_bytes: int = 4 * 1024 * 1024,
    max_response_bytes: int = 4 * 1024 * 1024,
    max_concurrent: int = 64,
) -> Callable[[FunctionT], FunctionT]:
    """Declare limits of an `rpc_` method: least class of the caller, seconds until it is cancelled, sizes of one
    message, calls worked on at once (all callers together). Raises LocalProtocolError for impossible ones."""
    if not 0 < timeout_s <= f.MAX_TIMEOUT_MS / 1000:
        raise LocalProtocolError(f"timeout_s is {timeout_s}: above 0, at most {f.MAX_TIMEOUT_MS / 1000:.0f}")
    for name, value in (("max_request_bytes", max_request_bytes), ("max_response_bytes", max_response_bytes)):
        if not 1 <= value <= f.MAX_BODY_BYTES:
            raise LocalProtocolError(f"{name} is {value}: 1 to {f.MAX_BODY_BYTES}")
    if max_concurrent < 1:
        raise LocalProtocolError(f"max_concurrent is {max_concurrent}: at least 1")
    limits = MethodLimits(least, timeout_s, max_request_bytes, max_response_bytes, max_concurrent)

    def declare(function: FunctionT) -> FunctionT:
        setattr(function, _LIMITS, limits)
        return function

    return declare


_LIMITS: Final = "__mesh_limits__"
_SPEC: Final = "__mesh_spec__"


class Servicer:
    """Base of all services: `protocol` names and versions it, methods `rpc_*` are what peers may call.

    Each method is `async def rpc_name(self, request: Model, ctx: RpcContext) -> Model`. A class whose methods cannot
    be served raises LocalProtocolError where it is defined.
    """

    protocol: ClassVar[str] = ""
    methods: ClassVar[dict[str, MethodSpec]] = {}
    """By name without `rpc_`, in order of definition; filled when a class is defined."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        functions: dict[str, Callable[..., Any]] = {}
        for owner in reversed(cls.__mro__):
            functions |= {k: v for k, v in vars(owner).items() if k.startswith(_PREFIX) and callable(v)}
        if not functions:
            return
        if not _PROTOCOL_RE.fullmatch(cls.protocol) or len(cls.protocol) > f.MAX_PROTOCOL_CHARS:
            raise LocalProtocolError(f"{cls.__name__}.protocol is {cls.protocol!r}: write it like /mesh/echo/1.0.0")
        cls.methods = {}
        for full_name, function in functions.items():
            spec = _spec_of(cls, full_name.removeprefix(_PREFIX), function)
            cls.methods[spec.name] = spec
            # A method inherited under another protocol keeps the spec of the class that defined it.
            if not hasattr(function, _SPEC):
                setattr(function, _SPEC, spec)


def _spec_of(cls: type[Servicer], name: str, function: Callable[..., Any]) -> MethodSpec:
    where = f"{cls.__name__}.{_PREFIX}{name}"
    if not name or len(name) > f.MAX_METHOD_CHARS:
        raise LocalProtocolError(f"{where}: a name has 1 to {f.MAX_METHOD_CHARS} characters after {_PREFIX}")
    if not inspect.iscoroutinefunction(function):
        raise LocalProtocolError(f"{where} must be `async def` (streams of messages are not served yet)")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise LocalProtocolError(
            f"{where}: {error}; its models must be importable names of the module, not local ones"
        ) from error
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) != 3:
        raise LocalProtocolError(f"{where} takes (self, request, ctx), not ({', '.join(parameters)})")
    if hints.get(parameters[2], RpcContext) is not RpcContext:
        raise LocalProtocolError(f"{where}: `{parameters[2]}` must be an RpcContext")
    request = _model(where, parameters[1], hints.get(parameters[1]))
    response = _model(where, "the return type", hints.get("return"))
    return MethodSpec(cls.protocol, name, request, response, getattr(function, _LIMITS, MethodLimits()))


def _model(where: str, what: str, hint: object) -> type[BaseModel]:
    if not (isinstance(hint, type) and issubclass(hint, BaseModel)):
        raise LocalProtocolError(f"{where}: {what} needs a pydantic model as type hint, not {hint!r}")
    if hint.model_config.get("extra") == "allow":
        raise LocalProtocolError(f"{where}: {hint.__name__} allows extra fields; a message must not")
    return hint


class RemoteMethod:
    """One method of one peer, to be called."""

    __slots__ = ("_peer", "_rpc", "_spec")

    def __init__(self, rpc: Rpc, peer: PeerID, spec: MethodSpec) -> None:
        self._rpc = rpc
        self._peer = peer
        self._spec = spec

    def __call__(self, request: BaseModel, *, timeout_s: float | None = None) -> Coroutine[Any, Any, Any]:
        """Call it. See Rpc.call for errors; `timeout_s` is at most the method's own."""
        return self._rpc._call(self._spec, self._peer, request, timeout_s)


class Stub(Generic[ServicerT]):
    """A peer's service: attributes are its methods without `rpc_`."""

    def __init__(self, rpc: Rpc, servicer: type[ServicerT], peer: PeerID) -> None:
        self._rpc = rpc
        self._servicer = servicer
        self.peer = peer

    def __getattr__(self, name: str) -> RemoteMethod:
        spec = self._servicer.methods.get(name)
        if spec is None:
            names = ", ".join(self._servicer.methods) or "none"
            raise AttributeError(f"{self._servicer.__name__} has no method {name!r} (it has: {names})")
        return RemoteMethod(self._rpc, self.peer, spec)


class _Bound:
    """A served method and how many calls of it run."""

    def __init__(self, spec: MethodSpec, run: Callable[[BaseModel, RpcContext], Awaitable[BaseModel]]) -> None:
        self.spec = spec
        self.run = run
        self.running = 0

    def enter(self, body_size: int) -> None:
        """Take a place. Raises RemoteFailure."""
        limits = self.spec.limits
        if body_size > limits.max_request_bytes:
            raise error_of(
                Status(TOO_LARGE, "", f"{self.spec} takes {limits.max_request_bytes} bytes, not {body_size}")
            )
        if self.running >= limits.max_concurrent:
            raise error_of(Status(BUSY, "", f"{self.spec} is running {self.running} times already", True))
        self.running += 1

    async def answer(self, body: bytes | bytearray, ctx: RpcContext) -> bytes:
        """Decode, run, encode. Raises what the method raises, RemoteFailure for what it cannot take or give."""
        try:
            request = unpack(self.spec.request, body)
        except RemoteProtocolError as error:
            raise error_of(Status(BAD_REQUEST, "", str(error))) from error
        response = await self.run(request, ctx)
        if not isinstance(response, self.spec.response):
            raise LocalProtocolError(f"{self.spec} returned a {type(response).__name__}")
        packed = pack(response)
        if len(packed) > self.spec.limits.max_response_bytes:
            raise error_of(
                Status(
                    TOO_LARGE,
                    "",
                    f"the answer has {len(packed)} bytes, {self.spec.limits.max_response_bytes} may be",
                )
            )
        return packed


class _Admitted:
    """A call from a peer that found its method with room for it (mesh.rpc.channel.Admission)."""

    def __init__(self, bound: _Bound, authorizer: Authorizer) -> None:
        self._bound = bound
        self._authorizer = authorizer
        self.timeout_s = bound.spec.limits.timeout_s

    async def answer(self, call: InboundCall) -> bytes:
        spec = self._bound.spec
        peer_class = await self._authorizer.authorize(call.remote, str(spec), spec.limits.least)
        body = await call.receive_body()
        return await self._bound.answer(body, RpcContext(call.remote, peer_class, call.deadline, call.request.call_id))

    def release(self) -> None:
        self._bound.running -= 1


class Rpc:
    """Serves our servicers to peers and calls theirs, over one channel per peer and direction.

    `serve` may be called before or during `run`; calls need `run` (and the network's own) to be running.
    """

    def __init__(
        self, net: Network, authorizer: Authorizer, *, config: RpcConfig | None = None, rng: random.Random
    ) -> None:
        self.net = net
        self.config = config or RpcConfig()
        self.metrics = RpcMetrics()
        self.violations = Violations(self.config.max_violators)
        self._authorizer = authorizer
        self._rng = rng
        self._bound: dict[tuple[str, str], _Bound] = {}
        self._calling: OrderedDict[PeerID, CallingChannel] = OrderedDict()
        self._answering: list[AnsweringChannel] = []
        self._nursery: trio.Nursery | None = None
        self._local_calls = 0
        places = self.config.max_channels_in + _CLOSING
        net.serve(RPC_PROTOCOL, self._accept, max_streams=places, lifetime=Lifetime.CHANNEL)

    # --- serving ---

    def serve(self, servicer: Servicer) -> None:
        """Answer calls to this servicer's methods. Raises LocalProtocolError when its protocol is served already."""
        if not servicer.methods:
            raise LocalProtocolError(f"{type(servicer).__name__} has no {_PREFIX} methods")
        if any(protocol == servicer.protocol for protocol, _ in self._bound):
            raise LocalProtocolError(f"{servicer.protocol} is served already")
        for spec in servicer.methods.values():
            self._bound[spec.protocol, spec.name] = _Bound(spec, getattr(servicer, _PREFIX + spec.name))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep channels until cancelled; may run again after that. Raises LocalProtocolError when running already."""
        if self._nursery is not None:
            raise LocalProtocolError("this Rpc is already running")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for channel in self._answering:
                channel.scope.cancel()

    async def _accept(self, stream: Stream) -> None:
        """Serve a channel that a peer opened (a handler of the network: it runs in the network's task)."""
        if self._nursery is None:
            await stream.reset()
            return
        if not self._make_room(stream.remote):
            self.metrics.channels_refused += 1
            log.info("%s: channel refused, %d are open", stream.remote.short, len(self._answering))
            await stream.reset()
            return
        channel = AnsweringChannel(stream, self, self.config, self.metrics, now=trio.current_time())
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

    def _make_room(self, remote: PeerID) -> bool:
        """Close the oldest channel of a peer that has too many, or the longest idle one when all places are taken.

        Says whether there is room now."""
        live = [c for c in self._answering if not c.scope.cancel_called]
        own = [c for c in live if c.stream.remote == remote]
        if len(own) >= self.config.max_channels_in_per_peer:
            own[0].scope.cancel()
        elif len(live) >= self.config.max_channels_in:
            idle = [c for c in live if not c.calls]
            if not idle:
                return False
            min(idle, key=lambda c: c.last_used).scope.cancel()
        return True

    def _violated(self, peer: PeerID, error: MeshError) -> None:
        self.metrics.violations += 1
        self.violations.add(peer)
        log.warning("%s broke the RPC protocol (time %d): %s", peer.short, self.violations[peer], error)

    def admit(self, remote: PeerID, request: f.Request) -> _Admitted:
        """For channels: see mesh.rpc.channel.Service."""
        bound = self._bound.get((request.protocol, request.method))
        if bound is None:
            raise error_of(Status(UNKNOWN_METHOD, "", f"{request.protocol} {request.method} is not served here"))
        bound.enter(request.body_size)
        return _Admitted(bound, self._authorizer)

    def reserve(self, amount: int) -> None:
        """For channels: see mesh.rpc.channel.Service."""
        if amount > 0 and self.metrics.buffered_bytes + amount > self.config.max_buffered_bytes:
            raise error_of(Status(BUSY, "", "too many bytes on their way to this node", True))
        self.metrics.buffered_bytes += amount

    def status_of_exception(self, error: BaseException, where: str) -> Status:
        """For channels: see mesh.rpc.channel.Service. What is not a MeshError is logged and told as `internal`."""
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

    def stub(self, servicer: type[ServicerT], peer: PeerID) -> Stub[ServicerT]:
        """The service of that type at that peer; nothing is sent until a method is called."""
        return Stub(self, servicer, peer)

    async def call(
        self,
        function: Callable[[Any, RequestT, RpcContext], Awaitable[ResponseT]],
        peer: PeerID,
        request: RequestT,
        *,
        timeout_s: float | None = None,
    ) -> ResponseT:
        """Call `SomeServicer.rpc_name` at a peer; typed.

        `timeout_s` counts from now, dial included; the default and the most is the method's own. Raises DialFailed,
        StreamBroken (the answer may have been lost: the call may have happened), RequestTimeout, NotAuthorized,
        RemoteFailure, RemoteProtocolError, LocalProtocolError. Cancelled: the handler is cancelled too.
        """
        spec: MethodSpec | None = getattr(function, _SPEC, None)
        if spec is None:
            raise LocalProtocolError(f"{function!r} is no {_PREFIX} method of a Servicer")
        response: ResponseT = await self._call(spec, peer, request, timeout_s)
        return response

    async def _call(self, spec: MethodSpec, peer: PeerID, request: BaseModel, timeout_s: float | None) -> Any:
        if not isinstance(request, spec.request):
            raise LocalProtocolError(f"{spec} takes a {spec.request.__name__}, not a {type(request).__name__}")
        timeout_s = spec.limits.timeout_s if timeout_s is None else min(timeout_s, spec.limits.timeout_s)
        body = pack(request)
        if len(body) > spec.limits.max_request_bytes:
            raise LocalProtocolError(f"{spec} takes {spec.limits.max_request_bytes} bytes, not {len(body)}")
        deadline = trio.current_time() + timeout_s
        self.metrics.calls_out += 1
        try:
            answer: bytes | None = None
            with trio.CancelScope(deadline=deadline):
                if peer == self.net.local.peer_id:
                    answer = await self._call_here(spec, body, deadline)
                else:
                    answer = await self._call_there(spec, peer, body, deadline)
            if answer is None:
                raise RequestTimeout(f"{peer.short} did not answer {spec} within {timeout_s:g} s")
            return unpack(spec.response, answer)
        except MeshError as error:
            self.metrics.count_error(self.metrics.errors_out, status_of(error).code)
            raise

    async def _call_there(self, spec: MethodSpec, peer: PeerID, body: bytes, deadline: float) -> bytes:
        for is_last in (False, True):
            channel = self._channel(peer)
            channel.waiting += 1  # so that nobody closes it as idle
            try:
                # A checkpoint even when it is set: the reader may be about to hear that the channel broke.
                await channel.ready.wait()
                if channel.closed is not None and not isinstance(channel.closed, StreamBroken):
                    raise channel.closed
                return await channel.call(
                    spec.protocol,
                    spec.name,
                    body,
                    deadline=deadline,
                    max_response_bytes=spec.limits.max_response_bytes,
                )
            except NotSent as error:
                if is_last:
                    raise StreamBroken(f"the channel to {peer.short} broke twice: {error}") from error
            finally:
                channel.waiting -= 1
        raise AssertionError("unreachable")

    async def _call_here(self, spec: MethodSpec, body: bytes, deadline: float) -> bytes:
        """A call to ourselves: no network and no authorizer, but the same encoding, limits and errors."""
        await trio.lowlevel.checkpoint()
        self.metrics.calls_local += 1
        self._local_calls += 1
        where = f"{spec} (local)"
        try:
            bound = self._bound.get((spec.protocol, spec.name))
            if bound is None:
                raise error_of(Status(UNKNOWN_METHOD, "", f"{spec} is not served here"))
            bound.enter(len(body))
            try:
                return await bound.answer(
                    body, RpcContext(self.net.local.peer_id, PeerClass.MEMBER, deadline, self._local_calls)
                )
            finally:
                bound.running -= 1
        except BaseException as error:  # the same answers as over the network
            raise error_of(self.status_of_exception(error, where)) from error

    def _channel(self, peer: PeerID) -> CallingChannel:
        """The channel to a peer, a new one when there is none that works. Raises LocalProtocolError, DialFailed."""
        channel = self._calling.get(peer)
        if channel is not None and channel.closed is None and not channel.scope.cancel_called:
            self._calling.move_to_end(peer)
            return channel
        if self._nursery is None:
            raise LocalProtocolError("this Rpc is not running: start `run` before calling")
        self._calling.pop(peer, None)
        if len(self._calling) >= self.config.max_channels:
            idle = next((c for c in self._calling.values() if not c.waiting), None)
            if idle is None:
                raise DialFailed(f"all {len(self._calling)} RPC channels are in use")
            del self._calling[idle.peer]
            idle.scope.cancel()
        # Drawn apart, so that a network that came up at once does not close its channels at once.
        idle_s = self.config.idle_s * self._rng.uniform(0.75, 1.25)
        channel = CallingChannel(peer, self.config, self.metrics, idle_s=idle_s, last_used=trio.current_time())
        self._calling[peer] = channel
        self._nursery.start_soon(self._keep, channel)
        return channel

    async def _keep(self, channel: CallingChannel) -> None:
        try:
            await channel.run(lambda: self._open(channel.peer), lambda error: self._violated(channel.peer, error))
        finally:
            if self._calling.get(channel.peer) is channel:
                del self._calling[channel.peer]

    async def _open(self, peer: PeerID) -> Stream:
        with trio.move_on_after(self.config.dial_timeout_s):
            return await self.net.open(peer, RPC_PROTOCOL)
        raise DialFailed(f"{peer.short} did not open a channel within {self.config.dial_timeout_s} s")


_CLOSE_S: Final = 1.0
_CLOSING: Final = 16  # channels told to end, whose streams are still counted by the network
_MUST_PASS: Final = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)
