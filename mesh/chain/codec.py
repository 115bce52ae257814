"""SCALE values by the types of a runtime's own registry. PURE.

Why not scalecodec: it turns `Vec<u8>` into text where it happens to be UTF-8, cannot encode a V14 `BTreeMap`, accepts
bytes left over in places, and costs tens of milliseconds per batch. Values here:

| SCALE | Python |
| --- | --- |
| integers, Compact | int |
| Vec<u8>, [u8; n] and newtypes of them (AccountId20, H256, PeerId) | bytes |
| Vec, array / tuple | list / tuple |
| Option | None or the value |
| BTreeMap / BTreeSet | dict / tuple, ascending |
| struct / newtype | dict / the inner value |
| enum | "Variant" or {"Variant": fields} (one unnamed field: its value; several: tuple; named: dict) |

Decoding reads bytes of others: lengths are checked against what is left before anything is allocated, depth is bounded,
and `decode_all` insists that every byte is consumed. Encoding is strict and names the place of a wrong value.
Specification: docs.substrate.io "Type encoding (SCALE)".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.errors import CallRefused, ChainError, KeyFileError
from mesh.identity import parse_address

MAX_DEPTH: Final = 64
"""Nesting of values that is followed; the pallet's deepest struct is 7."""
MAX_CHAR: Final = 0x10FFFF
MAX_EMPTY_ITEMS: Final = 4096
"""Items of a sequence whose items take no bytes, which the bytes left cannot bound."""


STEPS_PER_BYTE: Final = 8
STEPS_AT_LEAST: Final = 4096
"""Values that are read out of so many bytes: types that take no bytes (which metadata may nest and repeat as it likes)
would take hours otherwise. Real ones take a byte or more each, but for newtypes around them."""


class Kind(enum.Enum):
    """What a registry type is (scale-info's TypeDef)."""

    COMPOSITE = enum.auto()
    VARIANT = enum.auto()
    SEQUENCE = enum.auto()
    ARRAY = enum.auto()
    TUPLE = enum.auto()
    PRIMITIVE = enum.auto()
    COMPACT = enum.auto()
    BITS = enum.auto()


PRIMITIVES: Final = (
    "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "u256", "i8", "i16", "i32", "i64", "i128", "i256",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a struct or of an enum's variant."""

    name: str | None
    type_id: int


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of an enum: also a call, an event or an error of a pallet."""

    name: str
    index: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class TypeDef:
    """One entry of the registry; which members matter follows from `kind`."""

    kind: Kind
    path: tuple[str, ...] = ()
    params: tuple[tuple[str, int | None], ...] = ()
    fields: tuple[Field, ...] = ()
    variants: tuple[Variant, ...] = ()
    inner: tuple[int, ...] = ()
    length: int = 0
    primitive: str = ""

    def variant(self, index: int) -> Variant | None:
        """The variant with this index byte."""
        return next((v for v in self.variants if v.index == index), None)


Registry = Sequence[TypeDef]


def no_pause() -> None:
    """Go on at once."""


class Reader:
    """A cursor over bytes. Reading past the end raises ChainError.

    `pause` is called between the items of what is long: who decodes beside an event loop lets it run there.
    """

    __slots__ = ("data", "pause", "position", "steps")

    def __init__(self, data: bytes, pause: Callable[[], None] = no_pause) -> None:
        self.data = data
        self.pause = pause
        self.position = 0
        self.steps = STEPS_AT_LEAST + STEPS_PER_BYTE * len(data)

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.position

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise ChainError(f"the chain's bytes end early: {count} wanted at offset {self.position}, {self.left} left")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def uint(self, size: int) -> int:
        """A little-endian unsigned integer."""
        return int.from_bytes(self.take(size), "little")

    def compact(self) -> int:
        """A Compact integer."""
        first = self.uint(1)
        mode = first & 3
        if mode == 0:
            return first >> 2
        if mode == 1:
            return (first | self.uint(1) << 8) >> 2
        if mode == 2:
            return (first | self.uint(3) << 8) >> 2
        return self.uint((first >> 2) + 4)

    def count(self) -> int:
        """The item count of a sequence whose items take a byte or more."""
        count = self.compact()
        if count > self.left:
            raise ChainError(f"the chain's bytes promise {count} items at {self.position}, {self.left} bytes left")
        return count

    def text(self) -> str:
        """A `str`; bytes that are not UTF-8 raise ChainError."""
        raw = self.take(self.count())
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ChainError("the chain sent a text that is not UTF-8") from error

    def finish(self) -> None:
        """Raises ChainError when bytes are left over."""
        if self.left:
            raise ChainError(f"the chain's bytes do not fit their type: {self.left} left over at {self.position}")


def compact(value: int) -> bytes:
    """A Compact integer's bytes (0 … 2**536 - 1)."""
    if value < 1 << 6:
        return bytes((value << 2,))
    if value < 1 << 14:
        return (value << 2 | 1).to_bytes(2, "little")
    if value < 1 << 30:
        return (value << 2 | 2).to_bytes(4, "little")
    raw = value.to_bytes((value.bit_length() + 7) // 8, "little")
    return bytes(((len(raw) - 4) << 2 | 3,)) + raw


def is_byte(registry: Registry, type_id: int) -> bool:
    """Whether the type is u8."""
    return registry[type_id].primitive == "u8"


def label(definition: TypeDef) -> str:
    """A type's last path segment, for telling Option, BTreeMap and BTreeSet apart."""
    return definition.path[-1] if definition.path else ""


# --- decoding -------------------------------------------------------------------------------------------------


def decode_all(registry: Registry, type_id: int, data: bytes, pause: Callable[[], None] = no_pause) -> object:
    """Exactly one value: bytes missing or left over raise ChainError."""
    reader = Reader(data, pause)
    value = decode(registry, type_id, reader)
    reader.finish()
    return value


def decode(registry: Registry, type_id: int, reader: Reader, depth: int = 0) -> object:
    """Read one value. Raises ChainError when the bytes are not one."""
    if depth > MAX_DEPTH:
        raise ChainError(f"the chain's value is nested deeper than {MAX_DEPTH}")
    reader.steps -= 1
    if reader.steps < 0:
        raise ChainError("the chain's types make more values of these bytes than any real ones do")
    definition = registry[type_id]
    depth += 1
    match definition.kind:
        case Kind.PRIMITIVE:
            return _decode_primitive(definition.primitive, reader)
        case Kind.COMPOSITE:
            value = decode_fields(registry, definition.fields, reader, depth)
            if label(definition) == "BTreeMap" and isinstance(value, list):
                try:
                    return {key: item for key, item in value}  # noqa: C416 - pairs, typed object
                except (TypeError, ValueError) as error:
                    raise ChainError("the chain's map has an item that is no pair, or a key that is a list") from error
            return tuple(value) if label(definition) == "BTreeSet" and isinstance(value, list) else value
        case Kind.VARIANT:
            return _decode_variant(registry, definition, reader, depth)
        case Kind.SEQUENCE:
            if is_byte(registry, definition.inner[0]):
                return reader.take(reader.count())
            count = reader.compact()
            if count > max(reader.left, MAX_EMPTY_ITEMS):
                raise ChainError(f"the chain's bytes promise {count} items, {reader.left} bytes left")
            items: list[object] = []
            for _ in range(count):
                items.append(decode(registry, definition.inner[0], reader, depth))
                reader.pause()
            return items
        case Kind.ARRAY:
            if is_byte(registry, definition.inner[0]):
                return reader.take(definition.length)
            return [decode(registry, definition.inner[0], reader, depth) for _ in range(definition.length)]
        case Kind.TUPLE:
            return tuple(decode(registry, inner, reader, depth) for inner in definition.inner)
        case Kind.COMPACT:
            return reader.compact() if _bits_of_compact(registry, definition.inner[0]) else ()
        case Kind.BITS:
            bits = reader.compact()
            return reader.take((bits + 7) // 8)


def decode_fields(registry: Registry, fields: Sequence[Field], reader: Reader, depth: int = 0) -> object:
    """Fields of a struct or variant: dict when named, the value when there is one without a name, else tuple."""
    if fields and fields[0].name is not None:  # Rust names all fields of a struct or none
        return {str(field.name): decode(registry, field.type_id, reader, depth) for field in fields}
    values = tuple(decode(registry, field.type_id, reader, depth) for field in fields)
    return values[0] if len(values) == 1 else values


def _decode_primitive(name: str, reader: Reader) -> object:
    if name == "str":
        return reader.text()
    if name == "bool":
        value = reader.uint(1)
        if value > 1:
            raise ChainError(f"the chain sent {value} for a bool")
        return value == 1
    if name == "char":
        code = reader.uint(4)
        if code > MAX_CHAR:
            raise ChainError(f"the chain sent {code} for a char")
        return chr(code)
    size = int(name[1:]) // 8
    return int.from_bytes(reader.take(size), "little", signed=name[0] == "i")


def _decode_variant(registry: Registry, definition: TypeDef, reader: Reader, depth: int) -> object:
    index = reader.uint(1)
    variant = definition.variant(index)
    if variant is None:
        raise ChainError(f"{'::'.join(definition.path) or 'an enum'} has no variant {index}")
    if definition.path == ("Option",):
        return decode_fields(registry, variant.fields, reader, depth) if variant.fields else None
    if not variant.fields:
        return variant.name
    return {variant.name: decode_fields(registry, variant.fields, reader, depth)}


def _bits_of_compact(registry: Registry, type_id: int) -> int:
    """Width of the integer inside a Compact, through newtypes; 0 for Compact<()>. Raises ChainError for another."""
    for _ in range(MAX_DEPTH):
        definition = registry[type_id]
        if definition.kind is Kind.PRIMITIVE and definition.primitive.startswith("u"):
            return int(definition.primitive[1:])
        if definition.kind in (Kind.COMPOSITE, Kind.TUPLE) and not definition.fields and not definition.inner:
            return 0
        if definition.kind is not Kind.COMPOSITE or len(definition.fields) != 1:
            break
        type_id = definition.fields[0].type_id
    raise ChainError(f"Compact of {definition.kind.name.lower()} is not known")


# --- encoding -------------------------------------------------------------------------------------------------


def encode(registry: Registry, type_id: int, value: object, where: str) -> bytes:
    """A value's bytes. Raises CallRefused naming the place (`where`) of what does not fit its type."""
    definition = registry[type_id]
    match definition.kind:
        case Kind.PRIMITIVE:
            return _encode_primitive(definition.primitive, value, where)
        case Kind.COMPOSITE:
            if label(definition) in ("BTreeMap", "BTreeSet") and len(definition.fields) == 1:
                return _encode_sorted(registry, definition.fields[0].type_id, value, where)
            return encode_fields(registry, definition.fields, value, where)
        case Kind.VARIANT:
            return _encode_variant(registry, definition, value, where)
        case Kind.SEQUENCE:
            if is_byte(registry, definition.inner[0]):
                raw = _as_bytes(value, where)
                return compact(len(raw)) + raw
            items = _as_items(value, where)
            return compact(len(items)) + b"".join(
                encode(registry, definition.inner[0], item, f"{where}[{i}]") for i, item in enumerate(items)
            )
        case Kind.ARRAY:
            if is_byte(registry, definition.inner[0]):
                raw = _as_account(value, where) if definition.length == 20 else _as_bytes(value, where)
                if len(raw) != definition.length:
                    raise CallRefused(f"{where} takes {definition.length} bytes, not {len(raw)}")
                return raw
            items = _as_items(value, where)
            if len(items) != definition.length:
                raise CallRefused(f"{where} takes {definition.length} items, not {len(items)}")
            return b"".join(encode(registry, definition.inner[0], item, where) for item in items)
        case Kind.TUPLE:
            items = _as_items(value, where)
            if len(items) != len(definition.inner):
                raise CallRefused(f"{where} takes {len(definition.inner)} items, not {len(items)}")
            return b"".join(
                encode(registry, inner, item, f"{where}[{i}]")
                for i, (inner, item) in enumerate(zip(definition.inner, items, strict=True))
            )
        case Kind.COMPACT:
            bits = _bits_of_compact(registry, definition.inner[0])
            return compact(_as_int(value, 0, (1 << bits) - 1, where)) if bits else b""
        case Kind.BITS:
            raise CallRefused(f"{where} is a bit sequence, which is not supported")


def encode_fields(registry: Registry, fields: Sequence[Field], value: object, where: str) -> bytes:
    """Named fields from a mapping: unknown names and missing ones (Option apart) raise CallRefused."""
    if not fields:
        return b""
    if not all(field.name is not None for field in fields):
        items = [value] if len(fields) == 1 else _as_items(value, where)
        if len(items) != len(fields):
            raise CallRefused(f"{where} takes {len(fields)} items, not {len(items)}")
        return b"".join(encode(registry, f.type_id, v, where) for f, v in zip(fields, items, strict=True))
    if not isinstance(value, Mapping):
        raise CallRefused(f"{where} takes named values, not {type(value).__name__}")
    names = [str(field.name) for field in fields]
    unknown = sorted(str(name) for name in value if name not in names)
    if unknown:
        raise CallRefused(f"{where} has no argument {unknown[0]!r}; it takes {', '.join(names)}")
    out = bytearray()
    for name, field in zip(names, fields, strict=True):
        if name not in value and registry[field.type_id].path != ("Option",):
            raise CallRefused(f"{where} needs the argument {name!r}")
        out += encode(registry, field.type_id, value.get(name), f"{where}.{name}")
    return bytes(out)


def _encode_sorted(registry: Registry, sequence_id: int, value: object, where: str) -> bytes:
    """BTreeMap or BTreeSet in ascending order: the runtime encodes the call again before it checks the signature."""
    item_id = registry[sequence_id].inner[0]
    if isinstance(value, Mapping):
        items: list[object] = [tuple(pair) for pair in value.items()]
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, str)):
        items = list(value)
    else:
        raise CallRefused(f"{where} takes a map or set, not {type(value).__name__}")
    is_map = registry[item_id].kind is Kind.TUPLE and isinstance(value, Mapping)
    encoded: dict[object, bytes] = {}
    for item in items:
        raw = encode(registry, item_id, item, where)
        order = _order(registry, item_id, decode_all(registry, item_id, raw))
        # a map is ordered by its keys alone; pairs given as a sequence are such a map too
        key = order[0] if isinstance(order, tuple) and (is_map or registry[item_id].kind is Kind.TUPLE) else order
        if key in encoded:
            raise CallRefused(f"{where} has the same key twice")
        encoded[key] = raw
    return compact(len(encoded)) + b"".join(encoded[key] for key in sorted(encoded))  # type: ignore[type-var]


def _order(registry: Registry, type_id: int, value: object) -> object:
    """A decoded value in a form that compares as Rust's derived `Ord` does."""
    definition = registry[type_id]
    if definition.kind is Kind.COMPOSITE and isinstance(value, dict):
        return tuple(_order(registry, f.type_id, value[str(f.name)]) for f in definition.fields)
    if definition.kind is Kind.VARIANT:
        name, inner = next(iter(value.items())) if isinstance(value, dict) else (value, ())
        index = next((v.index for v in definition.variants if v.name == name), 0)
        return (0,) if value is None else (index + 1, inner)
    if definition.kind is Kind.TUPLE and isinstance(value, tuple):
        return tuple(_order(registry, t, v) for t, v in zip(definition.inner, value, strict=True))
    return tuple(value) if isinstance(value, list) else value


def _encode_variant(registry: Registry, definition: TypeDef, value: object, where: str) -> bytes:
    if definition.path == ("Option",):
        if value is None:
            return b"\0"
        some = next(v for v in definition.variants if v.fields)
        return bytes((some.index,)) + encode_fields(registry, some.fields, value, where)
    if isinstance(value, Mapping) and len(value) == 1:
        name, inner = next(iter(value.items()))
    else:
        name, inner = value, ()
    variant = next((v for v in definition.variants if v.name == name), None)
    if variant is None:
        names = ", ".join(v.name for v in definition.variants)
        raise CallRefused(f"{where} has no variant {name!r}; it is one of {names}")
    return bytes((variant.index,)) + encode_fields(registry, variant.fields, inner, f"{where}.{variant.name}")


def _encode_primitive(name: str, value: object, where: str) -> bytes:
    if name == "bool":
        if not isinstance(value, bool):
            raise CallRefused(f"{where} takes True or False, not {type(value).__name__}")
        return bytes((value,))
    if name == "str":
        if not isinstance(value, str):
            raise CallRefused(f"{where} takes text, not {type(value).__name__}")
        raw = value.encode()
        return compact(len(raw)) + raw
    if name == "char":
        raise CallRefused(f"{where} is a char, which is not supported")
    bits = int(name[1:])
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if name[0] == "i" else (0, (1 << bits) - 1)
    return _as_int(value, low, high, where).to_bytes(bits // 8, "little", signed=name[0] == "i")


def _as_int(value: object, low: int, high: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CallRefused(f"{where} takes an integer, not {type(value).__name__}")
    if not low <= value <= high:
        raise CallRefused(f"{where} takes {low} to {high}, not {value}")
    return int(value)


def _as_bytes(value: object, where: str) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise CallRefused(f"{where} takes bytes, not {type(value).__name__}")
    return bytes(value)


def _as_account(value: object, where: str) -> bytes:
    """20 bytes, or an address' text with a right checksum."""
    if isinstance(value, str):
        try:
            return parse_address(value)
        except KeyFileError as error:
            raise CallRefused(f"{where}: {error}") from error
    return _as_bytes(value, where)


def _as_items(value: object, where: str) -> list[object]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise CallRefused(f"{where} takes a list, not {type(value).__name__}")
    return list(value)
