"""SCALE, the codec of Substrate chains, small and strict.

A `Type` object encodes and decodes plain Python values and can describe itself to a V14 type registry
(metadata.py), so one declaration of a storage item, call or event gives its bytes and its metadata. Values:

| SCALE                    | Python                                                   |
| ------------------------ | -------------------------------------------------------- |
| u8 .. u128, i128, Compact| int                                                      |
| bool, str                | bool, str                                                |
| Vec<u8>, [u8; n], newtypes of them | bytes                                          |
| Vec<T>, tuple            | list, tuple                                              |
| Option<T>                | None or the value                                        |
| BTreeMap, BTreeSet       | dict, set; encoded in ascending order of the key's value |
| struct                   | dict                                                     |
| enum                     | "Variant", or {"Variant": value}                         |

Decoding reads untrusted bytes: every length is checked against what is left before anything is allocated,
and `decode_all` insists that nothing is left over. A set or map that is not in ascending order decodes (as
the Rust decoder does); whoever needs the canonical bytes encodes the value again and compares.

Specification: docs.substrate.io "Type encoding (SCALE)"; scale-info's `PortableRegistry` for the description.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.errors import LocalProtocolError, RemoteProtocolError

MAX_BOUNDED_BYTES = 4096
"""Longest content of `bounded_bytes` that decodes, in bytes. The real bounds are not in the metadata."""


class ScaleError(RemoteProtocolError):
    """Bytes that are not a value of the type: the sender's fault."""


class ScaleEncodeError(LocalProtocolError):
    """A Python value that the type cannot hold: the caller's fault."""


class Reader:
    """A cursor over immutable bytes. Reading past the end raises `ScaleError`."""

    __slots__ = ("_data", "position")

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self.position

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count < 0 or count > self.remaining:
            raise ScaleError(f"SCALE: {count} bytes wanted at offset {self.position}, {self.remaining} left")
        start = self.position
        self.position += count
        return self._data[start : self.position]

    def byte(self) -> int:
        """The next byte as an integer."""
        return self.take(1)[0]

    def finish(self) -> None:
        """Raise `ScaleError` when bytes are left over."""
        if self.remaining:
            raise ScaleError(f"SCALE: {self.remaining} bytes left over at offset {self.position}")


@dataclass(frozen=True)
class Field:
    """One field of a composite or of an enum's variant, for the registry. `name` is None in tuples."""

    name: str | None
    type: Type


@dataclass(frozen=True)
class VariantDescription:
    """One variant of an enum, for the registry."""

    name: str
    index: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Description:
    """What a type says of itself in a V14 registry. `kind` is the `TypeDef` variant; the rest by kind."""

    kind: str
    """Composite, Variant, Sequence, Array, Tuple, Primitive or Compact."""
    path: tuple[str, ...] = ()
    params: tuple[tuple[str, Type | None], ...] = ()
    fields: tuple[Field, ...] = ()
    variants: tuple[VariantDescription, ...] = ()
    inner: tuple[Type, ...] = ()
    length: int = 0
    primitive: str = ""


class Type(ABC):
    """A SCALE type. `ident` names its structure: two types with one ident are one entry of a registry."""

    ident: str

    @abstractmethod
    def encode(self, value: Any) -> bytes:
        """The bytes of `value`; `ScaleEncodeError` when the type cannot hold it."""

    @abstractmethod
    def decode(self, reader: Reader) -> Any:
        """Read one value; `ScaleError` when the bytes are not one."""

    @abstractmethod
    def describe(self) -> Description:
        """The registry entry."""

    @abstractmethod
    def zero(self) -> Any:
        """The value of Rust's `Default` (0, empty, None, first variant)."""

    def decode_all(self, data: bytes) -> Any:
        """Decode `data` as exactly one value: bytes left over are an error."""
        reader = Reader(data)
        value = self.decode(reader)
        reader.finish()
        return value

    def __repr__(self) -> str:
        return f"<scale {self.ident}>"


class Integer(Type):
    """A fixed-width little-endian integer."""

    def __init__(self, name: str, size: int, *, signed: bool = False) -> None:
        self.ident = name
        self.size = size
        self.signed = signed

    def encode(self, value: Any) -> bytes:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ScaleEncodeError(f"SCALE: {self.ident} cannot hold a {type(value).__name__}")
        try:
            return value.to_bytes(self.size, "little", signed=self.signed)
        except OverflowError:
            raise ScaleEncodeError(f"SCALE: {value} does not fit {self.ident}") from None

    def decode(self, reader: Reader) -> int:
        return int.from_bytes(reader.take(self.size), "little", signed=self.signed)

    def describe(self) -> Description:
        return Description("Primitive", primitive=self.ident)

    def zero(self) -> int:
        return 0


class Boolean(Type):
    """One byte, 0 or 1."""

    ident = "bool"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, bool):
            raise ScaleEncodeError(f"SCALE: bool cannot hold a {type(value).__name__}")
        return b"\x01" if value else b"\x00"

    def decode(self, reader: Reader) -> bool:
        byte = reader.byte()
        if byte > 1:
            raise ScaleError(f"SCALE: {byte} is no bool")
        return byte == 1

    def describe(self) -> Description:
        return Description("Primitive", primitive="bool")

    def zero(self) -> bool:
        return False


def encode_compact(value: int) -> bytes:
    """`value` (0 .. 2**536-1) as a SCALE compact integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ScaleEncodeError(f"SCALE: {value!r} cannot be compact")
    if value < 1 << 6:
        return bytes([value << 2])
    if value < 1 << 14:
        return (value << 2 | 1).to_bytes(2, "little")
    if value < 1 << 30:
        return (value << 2 | 2).to_bytes(4, "little")
    size = (value.bit_length() + 7) // 8
    if size > 67:
        raise ScaleEncodeError(f"SCALE: an integer of {size} bytes cannot be compact")
    return bytes([(size - 4) << 2 | 3]) + value.to_bytes(size, "little")


def decode_compact(reader: Reader) -> int:
    """Read a compact integer; an encoding longer than needed is refused, as the Rust decoder does."""
    first = reader.byte()
    mode = first & 3
    if mode == 0:
        return first >> 2
    if mode == 1:
        value = (first | reader.byte() << 8) >> 2
        minimum = 1 << 6
    elif mode == 2:
        value = int.from_bytes(bytes([first]) + reader.take(3), "little") >> 2
        minimum = 1 << 14
    else:
        size = (first >> 2) + 4
        value = int.from_bytes(reader.take(size), "little")
        minimum = max(1 << 30, 1 << (8 * (size - 1)))
    if value < minimum:
        raise ScaleError(f"SCALE: compact integer {value} has an encoding longer than needed")
    return value


class Compact(Type):
    """`Compact<T>` of an unsigned integer type."""

    def __init__(self, inner: Integer) -> None:
        self.inner = inner
        self.ident = f"Compact<{inner.ident}>"

    def encode(self, value: Any) -> bytes:
        self.inner.encode(value)  # the range check of T
        return encode_compact(value)

    def decode(self, reader: Reader) -> int:
        value = decode_compact(reader)
        if value >> (8 * self.inner.size):
            raise ScaleError(f"SCALE: {value} does not fit {self.ident}")
        return value

    def describe(self) -> Description:
        return Description("Compact", inner=(self.inner,))

    def zero(self) -> int:
        return 0


class Text(Type):
    """A UTF-8 string."""

    ident = "str"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise ScaleEncodeError(f"SCALE: str cannot hold a {type(value).__name__}")
        raw = value.encode()
        return encode_compact(len(raw)) + raw

    def decode(self, reader: Reader) -> str:
        raw = reader.take(decode_compact(reader))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ScaleError("SCALE: a str that is no UTF-8") from None

    def describe(self) -> Description:
        return Description("Primitive", primitive="str")

    def zero(self) -> str:
        return ""


class Bytes(Type):
    """`Vec<u8>`, as Python bytes."""

    def __init__(self, max_length: int | None = None) -> None:
        self.max_length = max_length
        self.ident = "Vec<u8>"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray):
            raise ScaleEncodeError(f"SCALE: Vec<u8> cannot hold a {type(value).__name__}")
        if self.max_length is not None and len(value) > self.max_length:
            raise ScaleEncodeError(f"SCALE: {len(value)} bytes exceed the bound {self.max_length}")
        return encode_compact(len(value)) + bytes(value)

    def decode(self, reader: Reader) -> bytes:
        length = decode_compact(reader)
        if self.max_length is not None and length > self.max_length:
            raise ScaleError(f"SCALE: {length} bytes exceed the bound {self.max_length}")
        return reader.take(length)

    def describe(self) -> Description:
        return Description("Sequence", inner=(u8,))

    def zero(self) -> bytes:
        return b""


class ArrayU8(Type):
    """`[u8; n]`, as Python bytes of exactly that length."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.ident = f"[u8; {length}]"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray) or len(value) != self.length:
            size = len(value) if isinstance(value, bytes | bytearray | str) else type(value).__name__
            raise ScaleEncodeError(f"SCALE: {self.ident} cannot hold {size}")
        return bytes(value)

    def decode(self, reader: Reader) -> bytes:
        return reader.take(self.length)

    def describe(self) -> Description:
        return Description("Array", inner=(u8,), length=self.length)

    def zero(self) -> bytes:
        return bytes(self.length)


class Vec(Type):
    """`Vec<T>`, as a list."""

    def __init__(self, inner: Type) -> None:
        self.inner = inner
        self.ident = f"Vec<{inner.ident}>"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
            raise ScaleEncodeError(f"SCALE: {self.ident} cannot hold a {type(value).__name__}")
        return encode_compact(len(value)) + b"".join([self.inner.encode(item) for item in value])

    def decode(self, reader: Reader) -> list[Any]:
        return [self.inner.decode(reader) for _ in range(_count(reader, self.ident))]

    def describe(self) -> Description:
        return Description("Sequence", inner=(self.inner,))

    def zero(self) -> list[Any]:
        return []


class OptionOf(Type):
    """`Option<T>`, as None or the value."""

    def __init__(self, inner: Type) -> None:
        if isinstance(inner, OptionOf):
            raise ValueError("an Option of an Option has no plain Python value")
        self.inner = inner
        self.ident = f"Option<{inner.ident}>"

    def encode(self, value: Any) -> bytes:
        return b"\x00" if value is None else b"\x01" + self.inner.encode(value)

    def decode(self, reader: Reader) -> Any:
        tag = reader.byte()
        if tag > 1:
            raise ScaleError(f"SCALE: {tag} is no tag of an Option")
        return self.inner.decode(reader) if tag else None

    def describe(self) -> Description:
        some = VariantDescription("Some", 1, (Field(None, self.inner),))
        return Description(
            "Variant",
            path=("Option",),
            params=(("T", self.inner),),
            variants=(VariantDescription("None", 0, ()), some),
        )

    def zero(self) -> None:
        return None


class BTreeMap(Type):
    """`BTreeMap<K, V>`, as a dict; encoded in ascending order of the keys' values."""

    def __init__(self, key: Type, value: Type) -> None:
        self.key = key
        self.value = value
        self.ident = f"BTreeMap<{key.ident}, {value.ident}>"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, Mapping):
            raise ScaleEncodeError(f"SCALE: {self.ident} cannot hold a {type(value).__name__}")
        body = [self.key.encode(key) + self.value.encode(value[key]) for key in sorted(value)]
        return encode_compact(len(body)) + b"".join(body)

    def decode(self, reader: Reader) -> dict[Any, Any]:
        pairs = {}
        for _ in range(_count(reader, self.ident)):
            key = self.key.decode(reader)
            pairs[key] = self.value.decode(reader)
        return {key: pairs[key] for key in sorted(pairs)}

    def describe(self) -> Description:
        pairs = Vec(TupleOf((self.key, self.value)))
        params = (("K", self.key), ("V", self.value))
        return Description("Composite", path=("BTreeMap",), params=params, fields=(Field(None, pairs),))

    def zero(self) -> dict[Any, Any]:
        return {}


class BTreeSet(Type):
    """`BTreeSet<T>`, as a set; encoded in ascending order."""

    def __init__(self, inner: Type) -> None:
        self.inner = inner
        self.ident = f"BTreeSet<{inner.ident}>"

    def encode(self, value: Any) -> bytes:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise ScaleEncodeError(f"SCALE: {self.ident} cannot hold a {type(value).__name__}")
        body = [self.inner.encode(item) for item in sorted(set(value))]
        return encode_compact(len(body)) + b"".join(body)

    def decode(self, reader: Reader) -> set[Any]:
        return {self.inner.decode(reader) for _ in range(_count(reader, self.ident))}

    def describe(self) -> Description:
        return Description(
            "Composite",
            path=("BTreeSet",),
            params=(("T", self.inner),),
            fields=(Field(None, Vec(self.inner)),),
        )

    def zero(self) -> set[Any]:
        return set()


class TupleOf(Type):
    """A tuple of fixed types; the empty one is Rust's unit."""

    def __init__(self, inner: tuple[Type, ...]) -> None:
        self.inner = inner
        self.ident = f"({', '.join(each.ident for each in inner)})"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, tuple | list) or len(value) != len(self.inner):
            raise ScaleEncodeError(f"SCALE: {self.ident} cannot hold {value!r:.80}")
        return b"".join([each.encode(item) for each, item in zip(self.inner, value, strict=True)])

    def decode(self, reader: Reader) -> tuple[Any, ...]:
        return tuple([each.decode(reader) for each in self.inner])

    def describe(self) -> Description:
        return Description("Tuple", inner=self.inner)

    def zero(self) -> tuple[Any, ...]:
        return tuple(each.zero() for each in self.inner)


class Newtype(Type):
    """A Rust struct with a path around one unnamed field; the value is the field's."""

    def __init__(
        self,
        path: str,
        inner: Type,
        *,
        params: tuple[tuple[str, Type | None], ...] = (),
        name: str | None = None,
    ) -> None:
        self.path = tuple(path.split("::"))
        self.inner = inner
        self.params = params
        self.field_name = name
        self.ident = f"{path}({inner.ident})"

    def encode(self, value: Any) -> bytes:
        return self.inner.encode(value)

    def decode(self, reader: Reader) -> Any:
        return self.inner.decode(reader)

    def describe(self) -> Description:
        fields = (Field(self.field_name, self.inner),)
        return Description("Composite", path=self.path, params=self.params, fields=fields)

    def zero(self) -> Any:
        return self.inner.zero()


class Struct(Type):
    """A Rust struct with named fields, as a dict with exactly those keys."""

    def __init__(
        self, path: str, fields: Mapping[str, Type], *, params: tuple[tuple[str, Type | None], ...] = ()
    ) -> None:
        self.path = tuple(path.split("::")) if path else ()
        self.fields = dict(fields)
        self.params = params
        inside = ", ".join(f"{name}: {each.ident}" for name, each in self.fields.items())
        self.ident = f"{path}{{{inside}}}"

    def with_params(self, **params: Type) -> Struct:
        """The same type with generic parameters, which show in the metadata only."""
        return Struct("::".join(self.path), self.fields, params=tuple(params.items()))

    def encode(self, value: Any) -> bytes:
        return _encode_named(self.ident, self.fields, value)

    def decode(self, reader: Reader) -> dict[str, Any]:
        return {name: each.decode(reader) for name, each in self.fields.items()}

    def describe(self) -> Description:
        fields = tuple(Field(name, each) for name, each in self.fields.items())
        return Description("Composite", path=self.path, params=self.params, fields=fields)

    def zero(self) -> dict[str, Any]:
        return {name: each.zero() for name, each in self.fields.items()}


Fields = None | Type | tuple[Type, ...] | dict[str, Type]
"""What a variant carries: nothing, one value, several unnamed values, or named values."""


@dataclass(frozen=True)
class Variant:
    """A variant with an explicit index, where the index is not its place in the declaration."""

    index: int
    fields: Fields = None


class Enum(Type):
    """A Rust enum: "Variant" when the variant carries nothing, else {"Variant": value}.

    The value is the single unnamed field itself, a tuple of several unnamed fields, or a dict of named ones.
    """

    def __init__(
        self,
        path: str,
        variants: Mapping[str, Fields | Variant],
        *,
        params: tuple[tuple[str, Type | None], ...] = (),
    ) -> None:
        self.path = tuple(path.split("::")) if path else ()
        self.params = params
        self.variants: dict[str, Variant] = {}
        for place, (name, fields) in enumerate(variants.items()):
            self.variants[name] = fields if isinstance(fields, Variant) else Variant(place, fields)
        self._by_index = {variant.index: name for name, variant in self.variants.items()}
        if len(self._by_index) != len(self.variants):
            raise ValueError(f"{path}: two variants share an index")
        inside = ", ".join(f"{name}={v.index}{_fields_ident(v.fields)}" for name, v in self.variants.items())
        self.ident = f"{path}<{inside}>"

    def with_params(self, **params: Type) -> Enum:
        """The same type with generic parameters, which show in the metadata only."""
        return Enum("::".join(self.path), self.variants, params=tuple(params.items()))

    def encode(self, value: Any) -> bytes:
        if isinstance(value, str):
            name, content = value, None
        elif isinstance(value, Mapping) and len(value) == 1:
            ((name, content),) = value.items()
        else:
            raise ScaleEncodeError(f"SCALE: {'::'.join(self.path)} cannot hold {value!r:.80}")
        variant = self.variants.get(name)
        if variant is None:
            raise ScaleEncodeError(f"SCALE: {'::'.join(self.path)} has no variant {name!r}")
        return bytes([variant.index]) + encode_fields(name, variant.fields, content)

    def decode(self, reader: Reader) -> Any:
        index = reader.byte()
        name = self._by_index.get(index)
        if name is None:
            raise ScaleError(f"SCALE: {'::'.join(self.path)} has no variant {index}")
        fields = self.variants[name].fields
        return name if fields is None else {name: decode_fields(fields, reader)}

    def describe(self) -> Description:
        variants = tuple(
            VariantDescription(name, variant.index, describe_fields(variant.fields))
            for name, variant in self.variants.items()
        )
        return Description("Variant", path=self.path, params=self.params, variants=variants)

    def zero(self) -> Any:
        name, variant = min(self.variants.items(), key=lambda pair: pair[1].index)
        return name if variant.fields is None else {name: _zero_fields(variant.fields)}


def encode_fields(name: str, fields: Fields, content: Any) -> bytes:
    """The bytes of a variant's content."""
    if fields is None:
        if content not in (None, (), {}):
            raise ScaleEncodeError(f"SCALE: variant {name} carries nothing, got {content!r:.80}")
        return b""
    if isinstance(fields, Type):
        return fields.encode(content)
    if isinstance(fields, tuple):
        return TupleOf(fields).encode(content)
    return _encode_named(name, fields, content)


def decode_fields(fields: Fields, reader: Reader) -> Any:
    """The content of a variant."""
    if fields is None:
        return None
    if isinstance(fields, Type):
        return fields.decode(reader)
    if isinstance(fields, tuple):
        return tuple([each.decode(reader) for each in fields])
    return {name: each.decode(reader) for name, each in fields.items()}


def describe_fields(fields: Fields) -> tuple[Field, ...]:
    """A variant's fields for the registry."""
    if fields is None:
        return ()
    if isinstance(fields, Type):
        return (Field(None, fields),)
    if isinstance(fields, tuple):
        return tuple(Field(None, each) for each in fields)
    return tuple(Field(name, each) for name, each in fields.items())


def _zero_fields(fields: Fields) -> Any:
    if isinstance(fields, Type):
        return fields.zero()
    if isinstance(fields, tuple):
        return tuple(each.zero() for each in fields)
    return {name: each.zero() for name, each in (fields or {}).items()}


def _fields_ident(fields: Fields) -> str:
    return "(" + ", ".join(f"{f.name or ''}:{f.type.ident}" for f in describe_fields(fields)) + ")"


def _encode_named(ident: str, fields: Mapping[str, Type], value: Any) -> bytes:
    if not isinstance(value, Mapping) or value.keys() != fields.keys():
        got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ScaleEncodeError(f"SCALE: {ident[:80]} wants the fields {list(fields)}, got {got}")
    return b"".join([each.encode(value[name]) for name, each in fields.items()])


def _count(reader: Reader, ident: str) -> int:
    """The element count of a sequence. Every element takes a byte or more, so more than the bytes left is a lie."""
    count = decode_compact(reader)
    if count > reader.remaining:
        raise ScaleError(f"SCALE: {ident[:80]} says {count} elements, {reader.remaining} bytes are left")
    return count


u8 = Integer("u8", 1)
u16 = Integer("u16", 2)
u32 = Integer("u32", 4)
u64 = Integer("u64", 8)
u128 = Integer("u128", 16)
i128 = Integer("i128", 16, signed=True)
boolean = Boolean()
text = Text()
bytes_ = Bytes()
unit = TupleOf(())


def compact(inner: Integer) -> Compact:
    """`Compact<inner>`."""
    return Compact(inner)


def vec(inner: Type) -> Type:
    """`Vec<inner>`; of u8 it is `bytes_`, whose values are bytes."""
    return bytes_ if inner is u8 else Vec(inner)


def option(inner: Type) -> OptionOf:
    """`Option<inner>`."""
    return OptionOf(inner)


def btree_map(key: Type, value: Type) -> BTreeMap:
    """`BTreeMap<key, value>`."""
    return BTreeMap(key, value)


def btree_set(inner: Type) -> BTreeSet:
    """`BTreeSet<inner>`."""
    return BTreeSet(inner)


def tuple_of(*inner: Type) -> TupleOf:
    """`(inner, ...)`."""
    return TupleOf(inner)


def array_u8(length: int) -> ArrayU8:
    """`[u8; length]`."""
    return ArrayU8(length)


def newtype(path: str, inner: Type) -> Newtype:
    """A tuple struct of one field, e.g. `newtype("sp_core::OpaquePeerId", bytes_)`; the value is the field's."""
    return Newtype(path, inner)


def struct(path: str, /, **fields: Type) -> Struct:
    """A struct with named fields; `path` joined with `::`."""
    return Struct(path, fields)


def enum(path: str, /, **variants: Fields | Variant) -> Enum:
    """An enum; a variant's index is its place unless given as `Variant(index, fields)`."""
    return Enum(path, variants)


account_id = newtype("fp_account::AccountId20", array_u8(20))
"""A 20-byte account address, as bytes."""
h256 = newtype("primitive_types::H256", array_u8(32))
"""A 32-byte hash, as bytes."""
bounded_bytes = Newtype(
    "bounded_collections::bounded_vec::BoundedVec",
    Bytes(MAX_BOUNDED_BYTES),
    params=(("T", u8), ("S", None)),
)
"""`BoundedVec<u8, S>`, as bytes of at most `MAX_BOUNDED_BYTES`."""
opaque_peer_id = newtype("sp_core::OpaquePeerId", bytes_)
"""A libp2p peer id as the Network pallet keeps it: its base58 text in ASCII bytes."""
