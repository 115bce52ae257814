"""How values of a type travel as message bodies: an adapter for each type, found by a method's type hints.

Built in are pydantic models, bytes, and numpy arrays (`np.ndarray`, or `npt.NDArray[np.float32]` where only that dtype
may come). Others are registered: a module that defines an adapter calls `register` when it is imported, before the
servicers that name its type. Arrays take a codec for each message:

    await stub.rpc_forward(activations)
    await stub.rpc_forward(coded(activations, Codec.BF16))

and the other side gets an array of the same dtype either way. PURE.
"""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from mesh.errors import LocalProtocolError, RemoteFailure, RemoteProtocolError
from mesh.rpc.body import pack, unpack
from mesh.rpc.codec import Codec
from mesh.rpc.tensor import pack_tensor, unpack_tensor

ArrayT = TypeVar("ArrayT")

_MAX_CACHED: Final = 1024  # hints of one program; more are made anew


class Adapter(Protocol):
    """How values of one type travel. Stateless: one adapter serves all methods and calls."""

    @property
    def type(self) -> type[Any]:
        """What a method gets."""
        ...

    def accepts(self, value: object) -> bool:
        """Whether `pack` takes this value: one of `type`, or a wrapper of it such as Coded."""
        ...

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        """The body, in buffers; they may share the value's memory. Raises LocalProtocolError."""
        ...

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> Any:
        """The value of a body, which has at most `max_bytes` and must not unfold into more; it may share the body's
        memory. Raises RemoteProtocolError for whatever a stranger may have put into it."""
        ...


@dataclass(frozen=True, slots=True)
class Coded:
    """An array and the codec it shall travel with."""

    array: Any
    codec: Codec


def coded(array: ArrayT, codec: Codec) -> ArrayT:
    """The array, to be sent with this codec: as a request, or as a method's answer. To mypy it is the array itself."""
    return cast(ArrayT, Coded(array, codec))


def uncoded(value: Any) -> tuple[Any, Codec]:
    """The array in a value that may be Coded, and its codec. For adapters."""
    return (value.array, value.codec) if isinstance(value, Coded) else (value, Codec.RAW)


def register(adapter: Adapter) -> None:
    """Let methods take and return `adapter.type`. Raises LocalProtocolError when that type has another adapter."""
    if _is_built_in(adapter.type) or _registered.setdefault(adapter.type, adapter) is not adapter:
        raise LocalProtocolError(f"{adapter.type.__name__} has an adapter already")


def adapter_for(hint: object) -> Adapter:
    """The adapter of a type hint. Raises LocalProtocolError, which names what is allowed."""
    try:
        return _adapter_for(hint)
    except TypeError:  # no hint: it cannot be hashed
        raise _unknown(hint) from None


_registered: Final[dict[type[Any], Adapter]] = {}


@functools.lru_cache(_MAX_CACHED)
def _adapter_for(hint: object) -> Adapter:
    if isinstance(hint, type) and not typing.get_args(hint):
        if issubclass(hint, BaseModel):
            if hint.model_config.get("extra") == "allow":
                raise LocalProtocolError(f"{hint.__name__} allows extra fields; a message must not")
            return _Model(hint)
        if hint is bytes:
            return _Bytes()
        if hint in _registered:
            return _registered[hint]
    if (numpy := sys.modules.get("numpy")) is not None:  # else the hint cannot be an array
        if hint is numpy.ndarray:
            return _Array(None)
        if typing.get_origin(hint) is numpy.ndarray:
            return _Array(_scalar_of(hint))
    raise _unknown(hint)


def _scalar_of(hint: object) -> type[Any] | None:
    """The dtype in np.ndarray[shape, np.dtype[scalar]]; None where it says any."""
    import numpy as np

    dtype = typing.get_args(hint)[-1]
    scalar = next(iter(typing.get_args(dtype)), None)
    scalar = typing.get_origin(scalar) or scalar  # np.floating[Any]
    return scalar if isinstance(scalar, type) and issubclass(scalar, np.generic) else None


def _is_built_in(kind: type[Any]) -> bool:
    numpy = sys.modules.get("numpy")
    return issubclass(kind, BaseModel) or kind is bytes or (numpy is not None and kind is numpy.ndarray)


def _unknown(hint: object) -> LocalProtocolError:
    names = "".join(f", {kind.__name__}" for kind in _registered)
    return LocalProtocolError(f"a message is a pydantic model, bytes, np.ndarray{names}, not {hint!r}")


# --- built in -------------------------------------------------------------------------------------------------------


class _Model:
    def __init__(self, model: type[BaseModel]) -> None:
        self.type = model

    def accepts(self, value: object) -> bool:
        return isinstance(value, self.type)

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (pack(value),)

    def unpack(self, body: Any, *, max_bytes: int) -> Any:
        return unpack(self.type, body)


class _Bytes:
    type = bytes

    def accepts(self, value: object) -> bool:
        return isinstance(value, bytes)

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (value,)

    def unpack(self, body: Any, *, max_bytes: int) -> Any:
        return bytes(body)


class _Array:
    """numpy arrays, of one dtype (or kind of dtypes, such as np.floating) where the hint says so.

    A RAW array goes out without a copy, and may still wait to be sent when `send` or the method has returned: whoever
    goes on changing it (a buffer used again, weights in training) sends `array.copy()`, or a codec, which makes its
    own. What comes may be written to."""

    def __init__(self, scalar: type[Any] | None) -> None:
        import numpy as np

        self.type: type[Any] = np.ndarray
        self._scalar = scalar

    def accepts(self, value: object) -> bool:
        return isinstance(uncoded(value)[0], self.type)

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        array, codec = uncoded(value)
        if not self._is_wanted(array):
            raise LocalProtocolError(f"the method has arrays of {self._wanted}, not {array.dtype.name}")
        return pack_tensor(array, codec)

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> Any:
        header, array = unpack_tensor(body, max_bytes=max_bytes)
        if header.dtype == "bfloat16":
            raise RemoteProtocolError("numpy has no bfloat16: send float32, with the codec bf16")
        if not self._is_wanted(array):
            raise RemoteProtocolError(f"the method has arrays of {self._wanted}, not {header.dtype}")
        return array

    @property
    def _wanted(self) -> str:
        return self._scalar.__name__ if self._scalar is not None else "any dtype"

    def _is_wanted(self, array: Any) -> bool:
        import numpy as np

        return self._scalar is None or bool(np.issubdtype(array.dtype, self._scalar))


# --- JSON -----------------------------------------------------------------------------------------------------------


class JsonAdapter:
    """JSON text as the body, for callers without the models."""

    type = str

    def accepts(self, value: object) -> bool:
        return isinstance(value, str)

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (value.encode(),)

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> str:
        try:
            return bytes(body).decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(f"the body is no text: {error}") from error


MAX_JSON_BYTES: Final = 256 * 1024
"""Of a JSON request: small text can unfold into large objects, and people type less."""


class _JsonModel:
    """A model as JSON text; bytes are base64 in what we write and text in what we read."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.type = model

    def accepts(self, value: object) -> bool:
        return isinstance(value, self.type)

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        return (to_json(value, bytes_mode="base64"),)

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> Any:
        if len(body) > MAX_JSON_BYTES:
            raise RemoteProtocolError(f"{len(body)} bytes of JSON, allowed are {MAX_JSON_BYTES}")
        try:
            return self.type.model_validate_json(bytes(body), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RemoteProtocolError(f"{self.type.__name__}: {where}: {first['msg']}"[:300]) from error


def json_form(adapter: Adapter) -> Adapter:
    """The same messages as JSON text. Raises RemoteFailure for types that have no such form."""
    if issubclass(adapter.type, BaseModel):
        return _JsonModel(adapter.type)
    raise RemoteFailure("bad-request", f"a {adapter.type.__name__} has no JSON form")
