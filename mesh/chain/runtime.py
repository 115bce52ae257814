"""What metadata makes possible: storage keys, calls by argument name, signed extrinsics, events by name. PURE.

Sources: Substrate `frame_support::storage` (key layout), sp-runtime `generic/era.rs` (mortal eras), extrinsic format v4
(docs.substrate.io "Extrinsics"); accounts and signatures are Ethereum-style (20 bytes, 65 bytes, no enum byte).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from mesh.chain.codec import Kind, Reader, compact, decode, decode_all, encode, encode_fields, no_pause
from mesh.chain.metadata import Metadata, StorageItem
from mesh.chain.types import Event
from mesh.errors import CallRefused, ChainError, ExtrinsicFailed, WrongChain

ACCOUNT_BYTES: Final = 20
SIGNATURE_BYTES: Final = 65
LONGEST_SIGNED_PLAIN: Final = 256
"""Longer payloads are signed by their blake2-256 hash (sp-runtime `SignedPayload`)."""
_SIGNED_V4: Final = 0x84


@dataclass(frozen=True, slots=True)
class Version:
    """What of `state_getRuntimeVersion` is signed and identifies the metadata."""

    spec_name: str
    spec_version: int
    transaction_version: int


@dataclass(frozen=True, slots=True)
class Era:
    """A mortal era: blocks `birth` to `end - 1` may contain the extrinsic."""

    birth: int
    period: int

    @property
    def end(self) -> int:
        """The first block that cannot contain it any more."""
        return self.birth + self.period

    def encode(self) -> bytes:
        """Two bytes (sp-runtime `Era::Mortal`); the period is a power of two, 4 to 4096, so the quantum is 1."""
        return ((self.birth % self.period) << 4 | self.period.bit_length() - 2).to_bytes(2, "little")


@dataclass(frozen=True, slots=True)
class SigningContext:
    """What a signature covers beside the call. `era` None means immortal, for `checkpoint` genesis."""

    version: Version
    genesis: bytes
    checkpoint: bytes
    """Hash of the era's birth block, genesis when immortal."""
    nonce: int
    era: Era | None


# --- storage --------------------------------------------------------------------------------------------------


def twox(data: bytes, size: int) -> bytes:
    """Substrate's twox of `size` bytes: xxh64 with seeds 0, 1, …"""
    return b"".join(xxhash.xxh64(data, seed=i).intdigest().to_bytes(8, "little") for i in range(size // 8))


def blake2(data: bytes, size: int = 32) -> bytes:
    """blake2b of `size` bytes: hash of extrinsics and headers."""
    return hashlib.blake2b(data, digest_size=size).digest()


_HASH: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "Blake2_128": lambda raw: blake2(raw, 16),
    "Blake2_256": lambda raw: blake2(raw, 32),
    "Blake2_128Concat": lambda raw: blake2(raw, 16) + raw,
    "Twox128": lambda raw: twox(raw, 16),
    "Twox256": lambda raw: twox(raw, 32),
    "Twox64Concat": lambda raw: twox(raw, 8) + raw,
    "Identity": lambda raw: raw,
}
_SKIP: Final = {"Blake2_128Concat": 16, "Twox64Concat": 8, "Identity": 0}
_OPAQUE: Final = {"Blake2_128": 16, "Blake2_256": 32, "Twox128": 16, "Twox256": 32}


def storage_prefix(metadata: Metadata, item: StorageItem, keys: Sequence[object]) -> bytes:
    """The key under which a (partial) key's entries lie. Raises CallRefused for too many or wrong keys."""
    if len(keys) > len(item.key_ids):
        raise CallRefused(f"{item.prefix}.{item.name} takes {len(item.key_ids)} keys, not {len(keys)}")
    out = twox(item.prefix.encode(), 16) + twox(item.name.encode(), 16)
    for number, (hasher, key_id, key) in enumerate(zip(item.hashers, item.key_ids, keys, strict=False)):
        out += _HASH[hasher](encode(metadata.registry, key_id, key, f"{item.name} key {number}"))
    return out


def storage_key(metadata: Metadata, item: StorageItem, keys: Sequence[object]) -> bytes:
    """The key of one entry. Raises CallRefused unless all keys are given."""
    if len(keys) != len(item.key_ids):
        raise CallRefused(f"{item.prefix}.{item.name} takes {len(item.key_ids)} keys, not {len(keys)}")
    return storage_prefix(metadata, item, keys)


def decode_keys(metadata: Metadata, item: StorageItem, raw: bytes) -> tuple[object, ...]:
    """The keys in an entry's storage key; those behind an opaque hasher come as their hash. Raises ChainError."""
    reader = Reader(raw)
    if reader.take(32) != storage_prefix(metadata, item, ()):
        raise ChainError(f"the chain answered a key outside {item.prefix}.{item.name}")
    keys: list[object] = []
    for hasher, key_id in zip(item.hashers, item.key_ids, strict=True):
        if hasher in _OPAQUE:
            keys.append(reader.take(_OPAQUE[hasher]))
            continue
        digest = reader.take(_SKIP[hasher])
        start = reader.position
        keys.append(decode(metadata.registry, key_id, reader))
        if digest and not _HASH[hasher](raw[start : reader.position]).startswith(digest):
            raise ChainError(f"the chain answered a key of {item.name} whose hash is wrong")
    reader.finish()
    return tuple(keys)


def decode_value(
    metadata: Metadata, item: StorageItem, raw: bytes | None, pause: Callable[[], None] = no_pause
) -> object:
    """A stored value; absent means None when the item is optional, else its default. `pause` as Reader's."""
    if raw is None:
        return None if item.optional else decode_all(metadata.registry, item.value_id, item.default, pause)
    return decode_all(metadata.registry, item.value_id, raw, pause)


# --- calls and extrinsics -------------------------------------------------------------------------------------


def encode_call(metadata: Metadata, pallet: str, name: str, args: Mapping[str, object]) -> bytes:
    """A call's bytes, arguments by name. Raises CallRefused naming an unknown, missing or ill-typed argument."""
    variant = metadata.call(pallet, name)
    body = encode_fields(metadata.registry, variant.fields, args, f"{pallet}.{name}")
    return bytes((metadata.pallet(pallet).index, variant.index)) + body


def decode_call(metadata: Metadata, raw: bytes) -> tuple[str, dict[str, object]]:
    """(`Pallet.call`, arguments by name) of a call's bytes: what a signature of them would say. Raises ChainError."""
    reader = Reader(raw)
    pallet = metadata.by_index.get(reader.uint(1))
    index = reader.uint(1)
    variant = None if pallet is None else next((v for v in pallet.calls.values() if v.index == index), None)
    if pallet is None or variant is None:
        raise ChainError(f"no call of this chain begins with 0x{raw[:2].hex()}")
    args = {str(field.name): decode(metadata.registry, field.type_id, reader) for field in variant.fields}
    reader.finish()
    return f"{pallet.name}.{variant.name}", args


def require_known_format(metadata: Metadata) -> None:
    """Raises WrongChain unless extrinsics are v4 with 20-byte accounts and 65-byte signatures."""
    if metadata.extrinsic_version != 4:
        raise WrongChain(f"the chain's extrinsics are version {metadata.extrinsic_version}; version 4 is understood")
    for what, type_id, size in (
        ("accounts", metadata.address_id, ACCOUNT_BYTES),
        ("signatures", metadata.signature_id, SIGNATURE_BYTES),
    ):
        if _fixed_size(metadata, type_id) != size:
            raise WrongChain(f"the chain's {what} are not of {size} bytes: it is no Ethereum-style chain")


def _fixed_size(metadata: Metadata, type_id: int) -> int | None:
    """Bytes of a newtype of [u8; n] (or of nothing), None for anything else."""
    definition = metadata.registry[type_id]
    if definition.kind is Kind.ARRAY and metadata.registry[definition.inner[0]].primitive == "u8":
        return definition.length
    if definition.kind is Kind.COMPOSITE and len(definition.fields) == 1:
        return _fixed_size(metadata, definition.fields[0].type_id)
    if definition.kind in (Kind.COMPOSITE, Kind.TUPLE) and not definition.fields and not definition.inner:
        return 0
    return None


def signed_parts(metadata: Metadata, context: SigningContext) -> tuple[bytes, bytes]:
    """(what travels, what is only signed) of all signed extensions. Raises WrongChain for one not understood."""
    travels, signed = bytearray(), bytearray()
    version = context.version
    for extension in metadata.extensions:
        match extension.identifier:
            case "CheckMortality" | "CheckEra":
                travels += context.era.encode() if context.era else b"\0"
                signed += context.checkpoint
            case "CheckNonce":
                travels += compact(context.nonce)
            case "ChargeTransactionPayment":
                travels += compact(0)  # tip
            case "ChargeAssetTxPayment":
                travels += compact(0) + b"\0"  # tip, no other asset
            case "CheckMetadataHash":
                travels += b"\0"  # mode: disabled
                signed += b"\0"
            case "CheckSpecVersion":
                signed += version.spec_version.to_bytes(4, "little")
            case "CheckTxVersion":
                signed += version.transaction_version.to_bytes(4, "little")
            case "CheckGenesis":
                signed += context.genesis
            case other:
                if _fixed_size(metadata, extension.type_id) or _fixed_size(metadata, extension.additional_id):
                    raise WrongChain(f"the chain wants the signed extension {other}, which is not understood")
                if None in (_fixed_size(metadata, extension.type_id), _fixed_size(metadata, extension.additional_id)):
                    raise WrongChain(f"the chain wants the signed extension {other}, which is not understood")
    return bytes(travels), bytes(signed)


def signing_payload(metadata: Metadata, call: bytes, context: SigningContext) -> bytes:
    """The message to sign (keccak and secp256k1 follow)."""
    travels, signed = signed_parts(metadata, context)
    payload = call + travels + signed
    return blake2(payload) if len(payload) > LONGEST_SIGNED_PLAIN else payload


def build_extrinsic(
    metadata: Metadata, call: bytes, context: SigningContext, *, account: bytes, signature: bytes
) -> bytes:
    """The signed extrinsic with its length prefix."""
    travels, _ = signed_parts(metadata, context)
    body = (
        bytes((_SIGNED_V4,))
        + encode(metadata.registry, metadata.address_id, account, "account")
        + encode(metadata.registry, metadata.signature_id, signature, "signature")
        + travels
        + call
    )
    return compact(len(body)) + body


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event and the extrinsic that caused it (None: the block itself)."""

    extrinsic: int | None
    event: Event


def decode_events(
    metadata: Metadata, raw: bytes | None, pause: Callable[[], None] = no_pause
) -> tuple[EventRecord, ...]:
    """`System.Events`, every byte consumed; `pause` is called between events. Raises ChainError."""
    if raw is None:
        return ()
    fields = metadata.event_record_fields
    reader = Reader(raw)
    records: list[EventRecord] = []
    for _ in range(reader.count()):
        records.append(_decode_record(metadata, fields, reader))
        pause()
    reader.finish()
    return tuple(records)


def _decode_record(metadata: Metadata, fields: Mapping[str, int], reader: Reader) -> EventRecord:
    phase = decode(metadata.registry, fields["phase"], reader)
    index = reader.uint(1)
    pallet = metadata.by_index.get(index)
    variant = pallet.events.get(reader.uint(1)) if pallet else None
    if pallet is None or variant is None:
        raise ChainError(f"the chain sent an event of pallet {index} that its metadata does not have")
    values: dict[str, object] = {}
    for position, field in enumerate(variant.fields):
        values[field.name or str(position)] = decode(metadata.registry, field.type_id, reader)
    decode(metadata.registry, fields["topics"], reader)
    extrinsic = phase.get("ApplyExtrinsic") if isinstance(phase, dict) else None
    return EventRecord(extrinsic if isinstance(extrinsic, int) else None, Event(pallet.name, variant.name, values))


def dispatch_error(metadata: Metadata, error: object) -> ExtrinsicFailed:
    """The error of `System.ExtrinsicFailed` by name."""
    if isinstance(error, dict) and len(error) == 1:
        kind, inner = next(iter(error.items()))
        if kind == "Module" and isinstance(inner, dict):
            raw = inner.get("error")
            number = raw[0] if isinstance(raw, bytes) and raw else 0
            return ExtrinsicFailed(*metadata.module_error(int(str(inner.get("index"))), number))
        return ExtrinsicFailed(str(kind), str(inner))
    return ExtrinsicFailed("System", str(error))


def outcome(metadata: Metadata, records: Sequence[EventRecord], index: int) -> tuple[tuple[Event, ...], int]:
    """(events, fee in planck) of the extrinsic at `index`. Raises ExtrinsicFailed by name, ChainError when unsaid."""
    events = tuple(r.event for r in records if r.extrinsic == index)
    fee = 0
    for event in events:
        if (event.pallet, event.name) == ("TransactionPayment", "TransactionFeePaid"):
            paid = event.fields.get("actual_fee", 0)
            fee = paid if isinstance(paid, int) else 0
    for event in events:
        if (event.pallet, event.name) == ("System", "ExtrinsicFailed"):
            raise dispatch_error(metadata, event.fields.get("dispatch_error", event.fields.get("0")))
        if (event.pallet, event.name) == ("System", "ExtrinsicSuccess"):
            return events, fee
    raise ChainError("the block has no ExtrinsicSuccess or ExtrinsicFailed event for the extrinsic")
