"""How values of a type travel as message bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from mesh.errors import LocalProtocolError, RemoteFailure, RemoteProtocolError
from mesh.rpc.body import pack, unpack


class Adapter(Protocol):
    type: type[Any]

    def pack(self, value: Any) -> Sequence[bytes | memoryview]: ...

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> Any: ...


class _Model:
    def __init__(self, model: type[BaseModel]) -> None:
        self.type = model

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (pack(value),)

    def unpack(self, body: Any, *, max_bytes: int) -> Any:
        return unpack(self.type, body)


class _Bytes:
    type = bytes

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (value,)

    def unpack(self, body: Any, *, max_bytes: int) -> Any:
        return bytes(body)


def adapter_for(hint: object) -> Adapter:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        if hint.model_config.get("extra") == "allow":
            raise LocalProtocolError(f"{hint.__name__} allows extra fields; a message must not")
        return _Model(hint)
    if hint is bytes:
        return _Bytes()
    raise LocalProtocolError(f"a message is a pydantic model or bytes, not {hint!r}")


class JsonAdapter:
    """JSON text as the body, for callers without the models."""

    type = str

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (value.encode(),)

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> str:
        try:
            return bytes(body).decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(f"the body is no text: {error}") from error


class _JsonModel:
    """A model as JSON text; bytes are base64 in what we write and text in what we read."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.type = model

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (to_json(value, bytes_mode="base64"),)

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> Any:
        try:
            return self.type.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RemoteProtocolError(f"{self.type.__name__}: {where}: {first['msg']}"[:300]) from error


def json_form(adapter: Adapter) -> Adapter:
    """The same messages as JSON text. Raises RemoteFailure for types that have no such form."""
    if issubclass(adapter.type, BaseModel):
        return _JsonModel(adapter.type)
    raise RemoteFailure("bad-request", f"a {adapter.type.__name__} has no JSON form")
