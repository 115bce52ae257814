"""Values as JSON and TOML can say them, for people who set storage by hand.

PURE. Integers are numbers or their decimal or 0x digits in a string; bytes are 0x and hexadecimal digits, or (where any
length will do) text; a map is a table or a list of pairs, a set or tuple a list, an Option's None is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.devchain import scale as s
from mesh.errors import ConfigError

_MAX_DIGITS: Final = 100
"""Of a number in a string: Python refuses to print what has thousands."""


def from_plain(kind: s.Type, value: Any) -> Any:
    """The value that the codec wants for `value`; ConfigError when it is none of the type."""
    try:
        converted = _convert(kind, value)
        kind.encode(converted)
    except TypeError:  # a list or table where a set or map wants what can be told apart
        raise ConfigError(f"{value!r:.80} is no {kind.ident:.80}") from None
    except s.ScaleEncodeError as error:
        raise ConfigError(str(error)) from error
    return converted


def _convert(kind: s.Type, value: Any) -> Any:
    match kind:
        case s.Newtype() | s.OptionOf():
            return None if isinstance(kind, s.OptionOf) and value is None else _convert(kind.inner, value)
        case s.Integer() | s.Compact():
            return _integer(value)
        case s.Bytes() | s.ArrayU8():
            return _bytes(kind, value)
        case s.Vec() | s.BTreeSet():
            items = [_convert(kind.inner, each) for each in _list(kind, value)]
            return set(items) if isinstance(kind, s.BTreeSet) else items
        case s.TupleOf():
            items = _list(kind, value)
            if len(items) != len(kind.inner):
                raise _not(kind, value)
            return tuple(_convert(each, item) for each, item in zip(kind.inner, items, strict=True))
        case s.BTreeMap():
            pairs = list(value.items()) if isinstance(value, Mapping) else _list(kind, value)
            if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
                raise _not(kind, value)
            return {_convert(kind.key, key): _convert(kind.value, each) for key, each in pairs}
        case s.Struct():
            return _named(kind.ident, kind.fields, value)
        case s.Enum() if isinstance(value, Mapping) and len(value) == 1:
            ((name, content),) = value.items()
            return {name: _fields(kind, name, content)}
    return value  # bool, str and a variant that carries nothing: the codec checks them


def _fields(kind: s.Enum, name: str, content: Any) -> Any:
    fields = kind.variants[name].fields if name in kind.variants else None
    if isinstance(fields, s.Type):
        return _convert(fields, content)
    if isinstance(fields, tuple):
        return _convert(s.TupleOf(fields), content)
    return content if fields is None else _named(name, fields, content)


def _named(name: str, fields: Mapping[str, s.Type], value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or value.keys() != fields.keys():
        raise ConfigError(f"{name.partition('{')[0]} wants exactly the fields {', '.join(fields)}, got {value!r:.80}")
    return {field: _convert(kind, value[field]) for field, kind in fields.items()}


def _integer(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        if len(value) > _MAX_DIGITS:
            raise ValueError
        return int(value, 16 if value.lower().startswith("0x") else 10)
    except ValueError:
        raise ConfigError(f"{value!r:.80} is no whole number") from None


def _bytes(kind: s.Bytes | s.ArrayU8, value: Any) -> bytes:
    if isinstance(value, str) and value.startswith("0x"):
        try:
            return bytes.fromhex(value[2:])
        except ValueError:
            raise _not(kind, value) from None
    if isinstance(value, str) and isinstance(kind, s.Bytes):
        return value.encode()
    raise _not(kind, value)


def _list(kind: s.Type, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _not(kind, value)
    return value


def _not(kind: s.Type, value: Any) -> ConfigError:
    return ConfigError(f"{value!r:.80} is no {kind.ident:.80}")
