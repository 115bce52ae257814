"""A runtime's metadata (V14) as plain values: which types, calls, storage items, events and errors it has. PURE.

Reading the 178 KB of the real runtime takes some 0.02 s here and a second or two in scalecodec, all of it with the
interpreter lock held, which the event loop beside it would feel; a test compares the two results.
Source: frame-metadata `v14.rs`, scale-info `portable.rs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from mesh.chain.codec import PRIMITIVES, Field, Kind, Reader, Registry, TypeDef, Variant, decode_all, no_pause
from mesh.errors import CallRefused, ChainError, WrongChain

MAGIC: Final = b"meta"
VERSION: Final = 14
MAX_METADATA_BYTES: Final = 16 * 1024 * 1024
"""Bound on what is decoded; large relay chains have under 1 MiB."""
_KINDS: Final = (
    Kind.COMPOSITE, Kind.VARIANT, Kind.SEQUENCE, Kind.ARRAY, Kind.TUPLE, Kind.PRIMITIVE, Kind.COMPACT, Kind.BITS,
)  # fmt: skip
HASHERS: Final = (
    "Blake2_128", "Blake2_256", "Blake2_128Concat", "Twox128", "Twox256", "Twox64Concat", "Identity",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageItem:
    """A storage item: its hashers and key types (empty for a plain value), its value type and what absence means."""

    prefix: str
    name: str
    optional: bool
    hashers: tuple[str, ...]
    key_ids: tuple[int, ...]
    value_id: int
    default: bytes


@dataclass(frozen=True, slots=True)
class Constant:
    """A pallet's constant, still encoded."""

    type_id: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Pallet:
    """One pallet; calls and errors by name through the registry."""

    name: str
    index: int
    storage: dict[str, StorageItem]
    constants: dict[str, Constant]
    calls: dict[str, Variant]
    events: dict[int, Variant]
    errors: dict[int, str]


@dataclass(frozen=True, slots=True)
class SignedExtension:
    """One signed extension: the type of what travels and of what is only signed."""

    identifier: str
    type_id: int
    additional_id: int


@dataclass(frozen=True)
class Metadata:
    """Everything that drives the client."""

    registry: Registry
    pallets: dict[str, Pallet]
    extrinsic_version: int
    extensions: tuple[SignedExtension, ...]
    address_id: int
    signature_id: int
    by_index: dict[int, Pallet] = field(repr=False)

    def pallet(self, name: str) -> Pallet:
        """Raises CallRefused when the runtime has no such pallet."""
        if name not in self.pallets:
            raise CallRefused(f"this chain has no pallet {name!r}; it has {', '.join(self.pallets)}")
        return self.pallets[name]

    def call(self, pallet: str, name: str) -> Variant:
        """A call's variant. Raises CallRefused."""
        found = self.pallet(pallet).calls.get(name)
        if found is None:
            raise CallRefused(f"pallet {pallet} has no call {name!r} in this runtime")
        return found

    def item(self, pallet: str, name: str) -> StorageItem:
        """A storage item. Raises CallRefused."""
        found = self.pallet(pallet).storage.get(name)
        if found is None:
            raise CallRefused(f"pallet {pallet} has no storage item {name!r} in this runtime")
        return found

    def constant(self, pallet: str, name: str) -> object:
        """A decoded constant. Raises CallRefused."""
        found = self.pallet(pallet).constants.get(name)
        if found is None:
            raise CallRefused(f"pallet {pallet} has no constant {name!r} in this runtime")
        return decode_all(self.registry, found.type_id, found.value)

    def module_error(self, index: int, error: int) -> tuple[str, str]:
        """(pallet, error name) of a DispatchError::Module."""
        pallet = self.by_index.get(index)
        if pallet is None:
            return f"pallet {index}", f"error {error}"
        return pallet.name, pallet.errors.get(error, f"error {error}")

    @cached_property
    def event_record_fields(self) -> dict[str, int]:
        """Field name → type id of `frame_system::EventRecord`."""
        item = self.item("System", "Events")
        record = self.registry[self.registry[item.value_id].inner[0]]
        fields = {str(f.name): f.type_id for f in record.fields}
        if list(fields) != ["phase", "event", "topics"]:
            raise WrongChain(f"this runtime's EventRecord has the fields {', '.join(fields)}: not known")
        return fields


def parse(data: bytes, pause: Callable[[], None] = no_pause) -> Metadata:
    """From the bytes of `state_getMetadata`; `pause` is called between its parts.

    Raises WrongChain for another version, ChainError for broken bytes.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise ChainError(f"the chain's metadata is larger than {MAX_METADATA_BYTES} bytes")
    if data[:4] != MAGIC or len(data) < 5:
        raise ChainError("the chain's metadata does not begin with 'meta'")
    if data[4] != VERSION:
        raise WrongChain(f"the chain's metadata is version {data[4]}; version {VERSION} is understood")
    reader = Reader(data, pause)
    reader.take(5)
    registry = _read_registry(reader)
    pallets = [_read_pallet(reader, registry) for _ in range(reader.count())]
    extrinsic_id = _read_id(reader, registry)
    version = reader.uint(1)
    extensions = tuple(
        SignedExtension(reader.text(), _read_id(reader, registry), _read_id(reader, registry))
        for _ in range(reader.count())
    )
    _read_id(reader, registry)
    reader.finish()
    params = {name: type_id for name, type_id in registry[extrinsic_id].params if type_id is not None}
    if "Address" not in params or "Signature" not in params:
        raise WrongChain("the chain's extrinsic type names no Address or Signature")
    return Metadata(
        registry=registry,
        pallets={pallet.name: pallet for pallet in pallets},
        extrinsic_version=version,
        extensions=extensions,
        address_id=params["Address"],
        signature_id=params["Signature"],
        by_index={pallet.index: pallet for pallet in pallets},
    )


def _read_registry(reader: Reader) -> tuple[TypeDef, ...]:
    types: list[TypeDef] = []
    for expected in range(reader.count()):
        if reader.compact() != expected:
            raise ChainError("the metadata's type ids are not in order")
        types.append(_read_type(reader))
        reader.pause()
    for definition in types:  # every reference is checked once, so that decoding need not
        used = [*definition.inner, *(f.type_id for f in definition.fields)]
        used += [f.type_id for v in definition.variants for f in v.fields]
        used += [type_id for _, type_id in definition.params if type_id is not None]
        if any(type_id >= len(types) for type_id in used):
            raise ChainError("the metadata names a type it does not have")
    return tuple(types)


def _read_type(reader: Reader) -> TypeDef:
    path = _texts(reader)
    params = tuple((reader.text(), reader.compact() if reader.uint(1) else None) for _ in range(reader.count()))
    tag = reader.uint(1)
    if tag >= len(_KINDS):
        raise ChainError(f"the metadata has a type of kind {tag}")
    kind = _KINDS[tag]
    fields: tuple[Field, ...] = ()
    variants: tuple[Variant, ...] = ()
    inner: tuple[int, ...] = ()
    length, primitive = 0, ""
    if kind is Kind.COMPOSITE:
        fields = _read_fields(reader)
    elif kind is Kind.VARIANT:
        variants = tuple(_read_variant(reader) for _ in range(reader.count()))
    elif kind is Kind.ARRAY:
        length = reader.uint(4)
        inner = (reader.compact(),)
    elif kind is Kind.TUPLE:
        inner = tuple(reader.compact() for _ in range(reader.count()))
    elif kind is Kind.PRIMITIVE:
        index = reader.uint(1)
        if index >= len(PRIMITIVES):
            raise ChainError(f"the metadata has a primitive {index}")
        primitive = PRIMITIVES[index]
    elif kind is Kind.BITS:
        inner = (reader.compact(), reader.compact())
    else:
        inner = (reader.compact(),)
    _texts(reader)
    return TypeDef(kind, path, params, fields, variants, inner, length, primitive)


def _read_fields(reader: Reader) -> tuple[Field, ...]:
    fields = []
    for _ in range(reader.count()):
        name = reader.text() if reader.uint(1) else None
        type_id = reader.compact()
        if reader.uint(1):
            reader.text()
        _texts(reader)
        fields.append(Field(name, type_id))
    return tuple(fields)


def _read_variant(reader: Reader) -> Variant:
    name = reader.text()
    fields = _read_fields(reader)
    index = reader.uint(1)
    _texts(reader)
    return Variant(name, index, fields)


def _read_pallet(reader: Reader, registry: Registry) -> Pallet:
    name = reader.text()
    storage: dict[str, StorageItem] = {}
    if reader.uint(1):
        prefix = reader.text()
        for _ in range(reader.count()):
            item = _read_item(reader, registry, prefix)
            storage[item.name] = item
            reader.pause()
    calls = {v.name: v for v in _read_enum(reader, registry)}
    events = {v.index: v for v in _read_enum(reader, registry)}
    constants: dict[str, Constant] = {}
    for _ in range(reader.count()):
        constant = reader.text()
        type_id = _read_id(reader, registry)
        constants[constant] = Constant(type_id, reader.take(reader.count()))
        _texts(reader)
    errors = {v.index: v.name for v in _read_enum(reader, registry)}
    return Pallet(name, reader.uint(1), storage, constants, calls, events, errors)


def _read_item(reader: Reader, registry: Registry, prefix: str) -> StorageItem:
    name = reader.text()
    optional = reader.uint(1) == 0
    hashers: tuple[str, ...] = ()
    key_ids: tuple[int, ...] = ()
    if reader.uint(1):
        tags = [reader.uint(1) for _ in range(reader.count())]
        if any(tag >= len(HASHERS) for tag in tags):
            raise ChainError(f"storage item {name} has an unknown hasher")
        hashers = tuple(HASHERS[tag] for tag in tags)
        key_id = _read_id(reader, registry)
        key_ids = (key_id,) if len(hashers) == 1 else registry[key_id].inner
        if len(key_ids) != len(hashers):
            raise ChainError(f"storage item {name} has {len(hashers)} hashers for {len(key_ids)} keys")
    value_id = _read_id(reader, registry)
    default = reader.take(reader.count())
    _texts(reader)
    return StorageItem(prefix, name, optional, hashers, key_ids, value_id, default)


def _read_enum(reader: Reader, registry: Registry) -> tuple[Variant, ...]:
    """The variants behind an optional type id: a pallet's calls, events or errors."""
    return registry[_read_id(reader, registry)].variants if reader.uint(1) else ()


def _read_id(reader: Reader, registry: Registry) -> int:
    type_id = reader.compact()
    if type_id >= len(registry):
        raise ChainError(f"the metadata names type {type_id} and has {len(registry)}")
    return type_id


def _texts(reader: Reader) -> tuple[str, ...]:
    return tuple(reader.text() for _ in range(reader.count()))
