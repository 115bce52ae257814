"""Message bodies: pydantic models as msgpack maps. PURE.

One value has one encoding: fields in the order of the model, shortest integers, `bytes` raw. A body is accepted when
it validates *and* packing what was understood gives the same bytes again; so nothing is coerced or ignored (text for a
number, a fraction for an integer, an unknown field), although tuples, enums and nested models may be used freely.
"""

from __future__ import annotations

import enum
from typing import Any, Final, TypeVar

import msgpack
from pydantic import BaseModel, ValidationError

from mesh.errors import LocalProtocolError, RemoteProtocolError
from mesh.rpc.frame import printable

ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_ITEMS: Final = 262_144
"""Elements of all lists and maps in one body: small bytes can unfold into large objects."""
_BUFFER_BYTES: Final = 64 * 1024
_UNCOUNTED_BYTES: Final = 16 * 1024  # a body this small cannot unfold into much


def pack(model: BaseModel) -> bytes:
    """The body of a model. Raises LocalProtocolError when it holds what msgpack cannot carry."""
    return _pack(model.model_dump(), type(model).__name__)


def _pack(value: dict[str, Any], name: str, *, expect_bytes: int = 0) -> bytes:
    # A buffer of the right size at once: growing one costs a large body half again as much.
    try:
        packed: bytes = msgpack.packb(value, default=_plain, buf_size=max(_BUFFER_BYTES, expect_bytes + 64))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{name} cannot be a message: {error}") from error
    return packed


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"no encoding for {type(value).__name__}")


def unpack(model: type[ModelT], body: bytes | bytearray) -> ModelT:
    """The model of a body. Raises RemoteProtocolError, which names the field."""
    try:
        count = None if len(body) <= _UNCOUNTED_BYTES else _Counter()
        value = msgpack.unpackb(
            body,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
            list_hook=count,
            object_hook=count,
        )
        if not isinstance(value, dict):
            raise RemoteProtocolError(f"the body of a {model.__name__} is not a map")
        result = model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        text = printable(f"{where}: {first['msg']}", 200)
        raise RemoteProtocolError(f"{model.__name__}: {text}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(f"{model.__name__}: the body is not msgpack ({error})") from error
    try:
        again = _pack(result.model_dump(exclude_unset=True), model.__name__, expect_bytes=len(body))
    except LocalProtocolError as error:
        raise RemoteProtocolError(str(error)) from error
    if again != body:
        raise RemoteProtocolError(f"{model.__name__}: not its canonical encoding (unknown field, type or order)")
    return result


class _Counter:
    """msgpack hook: counts elements, refuses too many."""

    def __init__(self) -> None:
        self._items = 0

    def __call__(self, value: Any) -> Any:
        self._items += len(value) + 1
        if self._items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} elements")
        return value
