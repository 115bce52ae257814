"""Typed services: a Servicer's methods, and what their type hints say about them.

    class EchoServicer(Servicer):
        protocol = "/mesh/echo/1.0.0"

        @method(least=PeerClass.GUEST)
        async def rpc_echo(self, request: Echo, ctx: RpcContext) -> Echo: ...

        @method()
        async def rpc_count(self, request: Count, ctx: RpcContext) -> AsyncIterator[Count]:
            for n in range(request.n): yield Count(n=n)

        @method()
        async def rpc_sum(self, requests: AsyncIterator[Count], ctx: RpcContext) -> Count: ...

        @method()
        async def rpc_chat(self, requests: AsyncIterator[Echo], ctx: RpcContext) -> AsyncIterator[Echo]: ...

    rpc.serve(EchoServicer())
    stub = rpc.stub(EchoServicer, peer)
    answer = await stub.rpc_echo(Echo(text="hello"))
    async with stub.rpc_count(Count(n=3)) as answers:
        async for count in answers: ...

mypy knows the types of a stub's methods. A message is a pydantic model, bytes, a numpy array, or of a type with a
registered adapter (mesh.rpc.adapters).
"""

from __future__ import annotations

import enum
import inspect
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar, overload

from mesh.auth.authorizer import PeerClass
from mesh.errors import LocalProtocolError
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.adapters import Adapter, adapter_for
from mesh.trace import Trace

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
SendT = TypeVar("SendT", contravariant=True)
GetT = TypeVar("GetT", covariant=True)
ServicerT = TypeVar("ServicerT", bound="Servicer")

PREFIX: Final = "rpc_"
_PROTOCOL_RE: Final = re.compile(r"(/[a-z0-9-]+(?:/[a-z0-9.-]+)*)/(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class RpcContext:
    """Who calls, and until when the answer is wanted."""

    remote: PeerID
    """Proven by the connection's handshake."""
    peer_class: PeerClass
    deadline: float
    """In trio's time; the handler is cancelled then."""
    request_id: int
    """Of the call on its channel."""
    trace: Trace | None = None
    """Which call of which trace this is; log lines of the method carry it by themselves."""


class Repeat(enum.Enum):
    """Whether a call may be sent again when its answer was lost."""

    NEVER = "never"
    SAFE = "safe"
    """Running it twice does no harm."""
    KEYED = "keyed"
    """Each call carries an idempotency key, under which the answerer keeps its reply: it completes once. A run whose
    connection breaks is cancelled, and the repetition runs anew: a method must undo or finish what it began."""


@dataclass(frozen=True, slots=True)
class MethodLimits:
    """What `@method` declares."""

    least: PeerClass = PeerClass.MEMBER
    server: PeerClass = PeerClass.PUBLIC
    timeout_s: float = 10.0
    max_request_bytes: int = 4 * 1024 * 1024
    max_response_bytes: int = 4 * 1024 * 1024
    max_concurrent: int = 128
    max_concurrent_per_peer: int = 64
    repeat: Repeat = Repeat.NEVER


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method of a servicer class, as its type hints and `@method` say."""

    protocol: str
    name: str
    request: Adapter
    response: Adapter
    shape: f.Shape
    limits: MethodLimits
    summary: str = ""
    """First line of its docstring."""

    def __str__(self) -> str:
        return f"{self.protocol} {self.name}"


# --- what mypy sees of methods and stubs --------------------------------------------------------------------------


class Exchange(Protocol[SendT, GetT]):
    """A call whose requests or answers are streams, while it is open."""

    async def send(self, request: SendT) -> None:
        """One more request; waits while the peer is slow. Raises the call's error."""
        ...

    async def end(self) -> None:
        """No more requests."""
        ...

    async def result(self) -> GetT:
        """Of a call with one answer: the answer, `end` included."""
        ...

    def __aiter__(self) -> AsyncIterator[GetT]:
        """Of a call with a stream of answers: they, in order."""
        ...


class UnaryCall(Protocol[SendT, GetT]):
    """A bound method with one request and one answer: of a stub, or of a servicer itself (which wants `ctx`)."""

    def __call__(
        self, request: SendT, ctx: RpcContext = ..., /, *, timeout_s: float | None = ...
    ) -> Awaitable[GetT]: ...


class StreamCall(Protocol[SendT, GetT]):
    """A bound method with one request and a stream of answers."""

    def __call__(
        self, request: SendT, /, *, timeout_s: float | None = ...
    ) -> AbstractAsyncContextManager[Exchange[SendT, GetT]]: ...


class UploadCall(Protocol[SendT, GetT]):
    """A bound method with a stream of requests."""

    def __call__(self, *, timeout_s: float | None = ...) -> AbstractAsyncContextManager[Exchange[SendT, GetT]]: ...


class Unary(Generic[RequestT, ResponseT]):
    """The type of a decorated method with one request and one answer."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Servicer, owner: type) -> UnaryCall[RequestT, ResponseT]: ...
    def __get__(self, instance: Servicer | None, owner: type) -> Any: ...
    def __call__(self, servicer: Any, request: RequestT, ctx: RpcContext) -> Awaitable[ResponseT]: ...  # type: ignore[empty-body]


class Streaming(Generic[RequestT, ResponseT]):
    """The type of a decorated method with one request and a stream of answers."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Servicer, owner: type) -> StreamCall[RequestT, ResponseT]: ...
    def __get__(self, instance: Servicer | None, owner: type) -> Any: ...


class Uploading(Generic[RequestT, ResponseT]):
    """The type of a decorated method with a stream of requests, whatever it answers."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Servicer, owner: type) -> UploadCall[RequestT, ResponseT]: ...
    def __get__(self, instance: Servicer | None, owner: type) -> Any: ...


class _Declare(Protocol):
    @overload
    def __call__(
        self, function: Callable[[Any, AsyncIterator[RequestT], RpcContext], AsyncIterator[ResponseT]], /
    ) -> Uploading[RequestT, ResponseT]: ...
    @overload
    def __call__(
        self, function: Callable[[Any, AsyncIterator[RequestT], RpcContext], Awaitable[ResponseT]], /
    ) -> Uploading[RequestT, ResponseT]: ...
    @overload
    def __call__(
        self, function: Callable[[Any, RequestT, RpcContext], AsyncIterator[ResponseT]], /
    ) -> Streaming[RequestT, ResponseT]: ...
    @overload
    def __call__(
        self, function: Callable[[Any, RequestT, RpcContext], Awaitable[ResponseT]], /
    ) -> Unary[RequestT, ResponseT]: ...


def method(
    *,
    least: PeerClass = PeerClass.MEMBER,
    server: PeerClass = PeerClass.PUBLIC,
    timeout_s: float = 10.0,
    max_request_bytes: int = 4 * 1024 * 1024,
    max_response_bytes: int = 4 * 1024 * 1024,
    max_concurrent: int = 128,
    max_concurrent_per_peer: int | None = None,
    repeat: Repeat = Repeat.NEVER,
) -> _Declare:
    """Declare an `rpc_` method.

    `least` is the least class of a caller, `server` the least class of a peer that we call it at. `timeout_s` is when
    it is cancelled, the whole stream of a streaming method included (up to 24 hours). Sizes are of one message.
    `max_concurrent` calls are worked on at once, of one caller `max_concurrent_per_peer` (half of them, unless given).
    Raises LocalProtocolError for impossible limits.
    """
    if not 0 < timeout_s <= f.MAX_TIMEOUT_MS / 1000:
        raise LocalProtocolError(f"timeout_s is {timeout_s}: above 0, at most {f.MAX_TIMEOUT_MS / 1000:.0f}")
    for name, value in (("max_request_bytes", max_request_bytes), ("max_response_bytes", max_response_bytes)):
        if not 1 <= value <= f.MAX_BODY_BYTES:
            raise LocalProtocolError(f"{name} is {value}: 1 to {f.MAX_BODY_BYTES}")
    if not (isinstance(least, PeerClass) and isinstance(server, PeerClass) and isinstance(repeat, Repeat)):
        raise LocalProtocolError("least and server are PeerClass values, and repeat is a Repeat")
    if max_concurrent_per_peer is None:
        max_concurrent_per_peer = max(1, max_concurrent // 2)
    for name, value in (("max_concurrent", max_concurrent), ("max_concurrent_per_peer", max_concurrent_per_peer)):
        if value < 1:
            raise LocalProtocolError(f"{name} is {value}: at least 1")
    limits = MethodLimits(
        least, server, timeout_s, max_request_bytes, max_response_bytes, max_concurrent, max_concurrent_per_peer, repeat
    )

    def declare(function: Any) -> Any:
        setattr(function, _LIMITS, limits)
        return function

    return typing.cast(_Declare, declare)


_LIMITS: Final = "__mesh_limits__"
_SPEC: Final = "__mesh_spec__"


class Servicer:
    """Base of all services: `protocol` names and versions it, methods `rpc_*` are what peers may call.

    Each method is `async def rpc_name(self, request: Model, ctx: RpcContext) -> Model`; either side may be an
    AsyncIterator. A class whose methods cannot be served raises LocalProtocolError where it is defined.

    Versions: a peer answers exactly the protocols it serves. A method it does not know is `unknown-method`, a field it
    does not know is `bad-request`; so a new field means a new version, served beside the old one by a second servicer.
    `Rpc.newest` picks the newest that both sides have.
    """

    protocol: ClassVar[str] = ""
    methods: ClassVar[dict[str, MethodSpec]] = {}
    """By name without `rpc_`, in order of definition; filled when a class is defined."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        functions: dict[str, Callable[..., Any]] = {}
        for owner in reversed(cls.__mro__):
            functions |= {k: v for k, v in vars(owner).items() if k.startswith(PREFIX) and callable(v)}
            for name, value in vars(owner).items():
                if hasattr(value, _LIMITS) and not name.startswith(PREFIX):
                    raise LocalProtocolError(
                        f"{cls.__name__}.{name}: a method is served when its name begins with rpc_"
                    )
        if not functions:
            return
        if not _PROTOCOL_RE.fullmatch(cls.protocol) or len(cls.protocol) > f.MAX_PROTOCOL_CHARS:
            raise LocalProtocolError(f"{cls.__name__}.protocol is {cls.protocol!r}: write it like /mesh/echo/1.0.0")
        cls.methods = {}
        for full_name, function in functions.items():
            spec = _spec_of(cls, full_name.removeprefix(PREFIX), function)
            cls.methods[spec.name] = spec
            # A method inherited under another protocol keeps the spec of the class that defined it.
            if not hasattr(function, _SPEC):
                setattr(function, _SPEC, spec)


def version_of(protocol: str) -> tuple[str, tuple[int, int, int]]:
    """A protocol's name and version. Raises LocalProtocolError."""
    match = _PROTOCOL_RE.fullmatch(protocol)
    if match is None:
        raise LocalProtocolError(f"{protocol!r} is no protocol such as /mesh/echo/1.0.0")
    return match[1], (int(match[2]), int(match[3]), int(match[4]))


def spec_of(function: object) -> MethodSpec:
    """The spec of `SomeServicer.rpc_name`. Raises LocalProtocolError."""
    spec: MethodSpec | None = getattr(function, _SPEC, None)
    if spec is None:
        raise LocalProtocolError(f"{function!r} is no {PREFIX} method of a Servicer")
    return spec


def _spec_of(cls: type[Servicer], name: str, function: Callable[..., Any]) -> MethodSpec:
    where = f"{cls.__name__}.{PREFIX}{name}"
    if not name or len(name) > f.MAX_METHOD_CHARS:
        raise LocalProtocolError(f"{where}: a name has 1 to {f.MAX_METHOD_CHARS} characters after {PREFIX}")
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise LocalProtocolError(f"{where} must be `async def`")
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
    request, requests_stream = _message(where, f"`{parameters[1]}`", hints.get(parameters[1]))
    response, answers_stream = _message(where, "the return type", hints.get("return"))
    if answers_stream != inspect.isasyncgenfunction(function):
        raise LocalProtocolError(
            f"{where}: a method that yields its answers returns AsyncIterator[...], and only such a method"
        )
    shape = f.Shape.ONE
    if requests_stream:
        shape |= f.Shape.REQUESTS
    if answers_stream:
        shape |= f.Shape.ANSWERS
    limits = getattr(function, _LIMITS, MethodLimits())
    if shape is not f.Shape.ONE and limits.repeat is not Repeat.NEVER:
        raise LocalProtocolError(f"{where}: a stream cannot be repeated")
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    return MethodSpec(cls.protocol, name, request, response, shape, limits, summary)


def _message(where: str, what: str, hint: object) -> tuple[Adapter, bool]:
    is_stream = typing.get_origin(hint) is AsyncIterator
    if is_stream:
        (hint,) = typing.get_args(hint)
    try:
        return adapter_for(hint), is_stream
    except LocalProtocolError as error:
        raise LocalProtocolError(f"{where}: {what}: {error}") from error
