"""`/mesh/reflection/1.0.0`: which services a node offers, for people and for choosing versions."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import PeerClass
from mesh.rpc.frame import Shape
from mesh.rpc.servicer import MethodSpec, Repeat, RpcContext, Servicer, method

MAX_SCHEMA_CHARS = 16_384


class ListRequest(BaseModel):
    """Which services are there?"""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodInfo(BaseModel):
    """A method as its caller needs to know it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    shape: int = Field(ge=0, le=int(Shape.REQUESTS | Shape.ANSWERS))
    """mesh.rpc.frame.Shape."""
    request: str
    """JSON schema of a request, or a type's name where it has none."""
    response: str
    least: str
    """Least class of a caller."""
    timeout_s: float


class ServiceInfo(BaseModel):
    """A protocol and its methods."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    methods: tuple[MethodInfo, ...]


class ServiceList(BaseModel):
    """All a node serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    services: tuple[ServiceInfo, ...]


class ReflectionServicer(Servicer):
    """Answers anyone: what a node serves is no secret."""

    protocol = "/mesh/reflection/1.0.0"

    def __init__(self, served: Callable[[], Mapping[str, Sequence[MethodSpec]]]) -> None:
        """`served` is `Rpc.served`."""
        self._served = served

    @method(
        least=PeerClass.PUBLIC, max_request_bytes=64, max_response_bytes=1 << 20, max_concurrent=4, repeat=Repeat.SAFE
    )
    async def rpc_list(self, request: ListRequest, ctx: RpcContext) -> ServiceList:
        """All services and their methods."""
        services = (
            ServiceInfo(protocol=protocol, methods=tuple(map(_info, specs)))
            for protocol, specs in sorted(self._served().items())
        )
        return ServiceList(services=tuple(services))


@functools.lru_cache(maxsize=1024)  # anyone may ask, and schemas are dear
def _info(spec: MethodSpec) -> MethodInfo:
    return MethodInfo(
        name=spec.name,
        summary=spec.summary[:200],
        shape=int(spec.shape),
        request=_schema(spec.request.type),
        response=_schema(spec.response.type),
        least=spec.limits.least.name.lower(),
        timeout_s=spec.limits.timeout_s,
    )


def _schema(kind: type) -> str:
    if issubclass(kind, BaseModel):
        text = json.dumps(kind.model_json_schema(), separators=(",", ":"))
        if len(text) <= MAX_SCHEMA_CHARS:
            return text
    return kind.__name__
