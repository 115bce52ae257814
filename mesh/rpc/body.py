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
MAX_DEPTH: Final = 64
"""Lists and maps within each other, where their announced lengths could cost memory: msgpack makes room for what a list
announces before its elements come (some 76 KB), so 5 KB of lists that only begin took 76 MiB and 0.2 s."""
_FEW: Final = 32  # long lists and maps that may be announced within each other
_LOOKED_AT: Final = 100  # values, after which a body without that many such bytes is not looked at further
_SMALL: Final = 4096  # bytes of a body in which counting those is cheaper than walking it
_FIXED: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LONG: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""First bytes of numbers, of text and bytes, and of long lists and maps: how wide what follows is (and the values that
one entry has)."""


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
        if _is_deep(body):
            raise RemoteProtocolError(f"{model.__name__}: more than {MAX_DEPTH} lists and maps within each other")
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


def _is_deep(body: bytes | bytearray) -> bool:
    """Whether more than MAX_DEPTH lists and maps begin within each other. Anything malformed is left to msgpack."""
    left = [1]  # values that are still to come, in each list or map around
    if len(body) < _SMALL and len(body) - len(body.translate(None, bytes(_LONG))) <= _FEW:
        return False
    at = seen = 0
    while left and at < len(body):
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        seen += 1
        if seen == _LOOKED_AT and sum(body.count(first, at) for first in _LONG) <= _FEW:
            return False
        first = body[at]
        at += 1
        if 0x80 <= first <= 0x8F:
            left.append(2 * (first & 0x0F))
        elif 0x90 <= first <= 0x9F:
            left.append(first & 0x0F)
        elif 0xA0 <= first <= 0xBF:
            at += first & 0x1F
        elif first in _FIXED:
            at += _FIXED[first]
        elif first in _SIZED:
            width = _SIZED[first]
            at += width + int.from_bytes(body[at : at + width], "big")
        elif first in _LONG:
            width, values = _LONG[first]
            left.append(values * int.from_bytes(body[at : at + width], "big"))
            at += width
        if len(left) - 1 > MAX_DEPTH:
            return True
    return False


class _Counter:
    """msgpack hook: counts elements, refuses too many."""

    def __init__(self) -> None:
        self._items = 0

    def __call__(self, value: Any) -> Any:
        self._items += len(value) + 1
        if self._items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} elements")
        return value
