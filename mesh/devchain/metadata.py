"""Runtime metadata V14, made from the declared pallets.

The metadata's own layout is declared with the same codec it describes (frame-metadata 14, scale-info 2), so it is
encoded, and in tests decoded, by one code; the tests let scalecodec, which none of us wrote, decode it as well and
compare it with the metadata recorded from the real runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh.devchain import scale as s
from mesh.devchain.pallet import Pallet

MAGIC = b"meta"
VERSION = 14

_id = s.compact(s.u32)
_field = s.struct("", name=s.option(s.text), type=_id, type_name=s.option(s.text), docs=s.vec(s.text))
_fields = s.vec(_field)
_variant = s.struct("", name=s.text, fields=_fields, index=s.u8, docs=s.vec(s.text))
_PRIMITIVES = (
    "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "u256", "i8", "i16", "i32", "i64", "i128", "i256",
)  # fmt: skip
_primitive = s.Enum("", dict.fromkeys(_PRIMITIVES))
_type_def = s.enum(
    "",
    Composite=_fields,
    Variant=s.vec(_variant),
    Sequence=_id,
    Array=s.struct("", len=s.u32, type=_id),
    Tuple=s.vec(_id),
    Primitive=_primitive,
    Compact=_id,
    BitSequence=s.struct("", bit_store_type=_id, bit_order_type=_id),
)
_type = s.Struct(
    "",
    {
        "path": s.vec(s.text),
        "params": s.vec(s.struct("", name=s.text, type=s.option(_id))),
        "def": _type_def,
        "docs": s.vec(s.text),
    },
)
_hasher = s.enum(
    "",
    Blake2_128=None,
    Blake2_256=None,
    Blake2_128Concat=None,
    Twox128=None,
    Twox256=None,
    Twox64Concat=None,
    Identity=None,
)
_entry = s.struct(
    "",
    name=s.text,
    modifier=s.enum("", Optional=None, Default=None, Required=None),
    type=s.enum("", Plain=_id, Map=s.struct("", hashers=s.vec(_hasher), key=_id, value=_id)),
    default=s.bytes_,
    docs=s.vec(s.text),
)
_pallet = s.struct(
    "",
    name=s.text,
    storage=s.option(s.struct("", prefix=s.text, entries=s.vec(_entry))),
    calls=s.option(_id),
    event=s.option(_id),
    constants=s.vec(s.struct("", name=s.text, type=_id, value=s.bytes_, docs=s.vec(s.text))),
    error=s.option(_id),
    index=s.u8,
)
_extrinsic = s.struct(
    "",
    type=_id,
    version=s.u8,
    signed_extensions=s.vec(s.struct("", identifier=s.text, type=_id, additional_signed=_id)),
)
metadata_v14 = s.struct(
    "",
    types=s.vec(s.struct("", id=_id, type=_type)),
    pallets=s.vec(_pallet),
    extrinsic=_extrinsic,
    type=_id,
)
"""`RuntimeMetadataV14`, to follow `MAGIC` and the version byte."""

ethereum_signature = s.newtype("fp_account::EthereumSignature", s.array_u8(65))
era = s.Enum(
    "sp_runtime::generic::era::Era",
    {"Immortal": None, **{f"Mortal{first}": s.u8 for first in range(1, 256)}},
)


@dataclass(frozen=True)
class RuntimeTypes:
    """The types made of all pallets together."""

    call: s.Enum
    event: s.Enum
    errors: dict[str, s.Enum]


def _crate(pallet: str) -> str:
    snake = "".join("_" + char.lower() if char.isupper() else char for char in pallet).lstrip("_")
    return "frame_system" if pallet == "System" else f"pallet_{snake}"


def runtime_types(pallets: Sequence[Pallet]) -> RuntimeTypes:
    """`RuntimeCall`, `RuntimeEvent` and the pallets' error enums."""
    calls: dict[str, s.Fields | s.Variant] = {}
    events: dict[str, s.Fields | s.Variant] = {}
    errors: dict[str, s.Enum] = {}
    for pallet in sorted(pallets, key=lambda each: each.index):
        crate = _crate(pallet.name)
        params: tuple[tuple[str, s.Type | None], ...] = (("T", None),)
        if pallet.name == "Balances":
            params += (("I", None),)
        if pallet.calls:
            variants = {c.name: s.Variant(c.index, dict(c.args) if c.args else None) for c in pallet.calls}
            calls[pallet.name] = s.Variant(pallet.index, s.Enum(f"{crate}::pallet::Call", variants, params=params))
        if pallet.event_variants:
            events[pallet.name] = s.Variant(
                pallet.index, s.Enum(f"{crate}::pallet::Event", pallet.event_variants, params=params)
            )
        if pallet.error_indices:
            names = {name: s.Variant(index) for name, index in pallet.error_indices.items()}
            errors[pallet.name] = s.Enum(f"{crate}::pallet::Error", names, params=params)
    return RuntimeTypes(
        s.Enum("hypertensor_runtime::RuntimeCall", calls),
        s.Enum("hypertensor_runtime::RuntimeEvent", events),
        errors,
    )


class Registry:
    """Types in the order they were met; each has the id of its place."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._entries: list[dict[str, Any]] = []

    def add(self, kind: s.Type) -> int:
        """The id of a type, with everything it is made of registered."""
        known = self._ids.get(kind.ident)
        if known is not None:
            return known
        number = len(self._entries)
        self._ids[kind.ident] = number
        entry: dict[str, Any] = {}
        self._entries.append(entry)
        entry.update(self._entry(kind.describe()))
        return number

    def entries(self) -> list[dict[str, Any]]:
        """The registry as a value of the metadata's type."""
        return [{"id": number, "type": entry} for number, entry in enumerate(self._entries)]

    def _entry(self, given: s.Description) -> dict[str, Any]:
        inner = [self.add(each) for each in given.inner]
        shape: Any
        match given.kind:
            case "Composite":
                shape = self._fields(given.fields)
            case "Variant":
                shape = [
                    {"name": v.name, "fields": self._fields(v.fields), "index": v.index, "docs": []}
                    for v in given.variants
                ]
            case "Array":
                shape = {"len": given.length, "type": inner[0]}
            case "Tuple":
                shape = inner
            case "Primitive":
                shape = given.primitive
            case _:  # Sequence, Compact
                shape = inner[0]
        params = [{"name": name, "type": None if each is None else self.add(each)} for name, each in given.params]
        return {"path": list(given.path), "params": params, "def": {given.kind: shape}, "docs": []}

    def _fields(self, fields: Sequence[s.Field]) -> list[dict[str, Any]]:
        return [{"name": f.name, "type": self.add(f.type), "type_name": type_name(f.type), "docs": []} for f in fields]


def type_name(kind: s.Type) -> str | None:
    """The short Rust-like name of a field's type, for tools that show it."""
    path = kind.describe().path
    return path[-1] if path else (kind.ident if len(kind.ident) < 80 else None)


SIGNED_EXTENSIONS: tuple[tuple[str, s.Type, s.Type], ...] = tuple(
    (path.split("::")[-1], s.Struct(path, {}, params=(("T", None),)) if inner is None else
     s.Newtype(path, inner, params=(("T", None),)), additional)
    for path, inner, additional in (
        ("frame_system::extensions::check_non_zero_sender::CheckNonZeroSender", None, s.unit),
        ("frame_system::extensions::check_spec_version::CheckSpecVersion", None, s.u32),
        ("frame_system::extensions::check_tx_version::CheckTxVersion", None, s.u32),
        ("frame_system::extensions::check_genesis::CheckGenesis", None, s.h256),
        ("frame_system::extensions::check_mortality::CheckMortality", era, s.h256),
        ("frame_system::extensions::check_nonce::CheckNonce", s.compact(s.u32), s.unit),
        ("frame_system::extensions::check_weight::CheckWeight", None, s.unit),
        ("pallet_transaction_payment::ChargeTransactionPayment", s.compact(s.u128), s.unit),
    )
)  # fmt: skip
"""(identifier, type in the extrinsic, type in the signed payload only), in the order they are encoded."""


def build(pallets: Sequence[Pallet], types: RuntimeTypes) -> bytes:
    """The metadata's bytes, as `state_getMetadata` gives them."""
    registry = Registry()
    extrinsic = s.Newtype(
        "sp_runtime::generic::unchecked_extrinsic::UncheckedExtrinsic",
        s.bytes_,
        params=(
            ("Address", s.account_id),
            ("Call", types.call),
            ("Signature", ethereum_signature),
            ("Extra", s.tuple_of(*[kind for _, kind, _ in SIGNED_EXTENSIONS])),
        ),
    )
    described = [_describe_pallet(registry, each, types) for each in sorted(pallets, key=lambda p: p.index)]
    value = {
        "pallets": described,
        "extrinsic": {
            "type": registry.add(extrinsic),
            "version": 4,
            "signed_extensions": [
                {
                    "identifier": name,
                    "type": registry.add(kind),
                    "additional_signed": registry.add(additional),
                }
                for name, kind, additional in SIGNED_EXTENSIONS
            ],
        },
        "type": registry.add(s.Struct("hypertensor_runtime::Runtime", {})),
        "types": registry.entries(),
    }
    return MAGIC + bytes([VERSION]) + metadata_v14.encode(value)


def _describe_pallet(registry: Registry, pallet: Pallet, types: RuntimeTypes) -> dict[str, Any]:
    def enum_id(kind: s.Enum) -> int | None:
        variant = kind.variants.get(pallet.name)
        return None if variant is None or not isinstance(variant.fields, s.Type) else registry.add(variant.fields)

    entries = []
    for item in pallet.storage:
        shape: dict[str, Any] = {"Plain": registry.add(item.value)}
        if item.hashed_keys:
            kinds = [kind for _, kind in item.hashed_keys]
            shape = {
                "Map": {
                    "hashers": [hasher.value for hasher, _ in item.hashed_keys],
                    "key": registry.add(kinds[0] if len(kinds) == 1 else s.tuple_of(*kinds)),
                    "value": registry.add(item.value),
                }
            }
        entries.append(
            {
                "name": item.name,
                "modifier": "Optional" if item.optional else "Default",
                "type": shape,
                "default": item.default_bytes,
                "docs": [item.docs] if item.docs else [],
            }
        )
    error = types.errors.get(pallet.name)
    return {
        "name": pallet.name,
        "storage": {"prefix": pallet.name, "entries": entries} if entries else None,
        "calls": enum_id(types.call),
        "event": enum_id(types.event),
        "constants": [
            {"name": name, "type": registry.add(c.type), "value": c.type.encode(c.value), "docs": []}
            for name, c in pallet.constants.items()
        ],
        "error": None if error is None else registry.add(error),
        "index": pallet.index,
    }
