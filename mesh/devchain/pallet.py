"""How a pallet of the dev chain is declared, and what its functions are given.

One declaration serves everything: storage keys, call decoding, events, errors, and the metadata that clients
read. Functions of a pallet are pure: they see the chain only through `Context`, whose writes go to an overlay
that is dropped when the call fails.

A call's function is `fn(ctx, origin, **args)`: it returns None (the fee is kept) or `Pays.NO` (the fee is given
back), and fails by `raise Dispatch("ErrorName")`. Storage keys are those of FRAME:
twox128(pallet) ++ twox128(item) ++ hashed keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum as PyEnum
from typing import Any, Protocol

import xxhash

from mesh.devchain.overlay import Overlay
from mesh.devchain.scale import Fields, Reader, ScaleError, Type, Variant
from mesh.errors import MeshError


class Dispatch(MeshError):
    """A call failed by the rules of a pallet. `pallet` is None for the pallet whose call runs."""

    def __init__(self, error: str, *, pallet: str | None = None) -> None:
        super().__init__(error if pallet is None else f"{pallet}.{error}")
        self.error = error
        self.pallet = pallet


class DispatchOther(MeshError):
    """A call failed with a `DispatchError` that is no pallet's, e.g. "BadOrigin" or {"Token": "FundsUnavailable"}."""

    def __init__(self, error: str | dict[str, str]) -> None:
        super().__init__(str(error))
        self.error = error


class Pays(PyEnum):
    """Whether the origin pays the fee of a call that succeeded."""

    YES = "Yes"
    NO = "No"


class Hasher(PyEnum):
    """How a key of a storage map becomes bytes. The value is the name in the metadata."""

    IDENTITY = "Identity"
    TWOX64_CONCAT = "Twox64Concat"
    BLAKE2_128_CONCAT = "Blake2_128Concat"

    def hash(self, encoded: bytes) -> bytes:
        """The hashed key: the hash followed by the key itself, so that a key can be read back."""
        if self is Hasher.IDENTITY:
            return encoded
        if self is Hasher.TWOX64_CONCAT:
            return twox(encoded, 8) + encoded
        return hashlib.blake2b(encoded, digest_size=16).digest() + encoded

    @property
    def prefix_length(self) -> int:
        """Bytes of hash before the key itself."""
        return {Hasher.IDENTITY: 0, Hasher.TWOX64_CONCAT: 8, Hasher.BLAKE2_128_CONCAT: 16}[self]


def twox(data: bytes, size: int) -> bytes:
    """Substrate's twox hash of 8 or 16 bytes: xxh64 with seeds 0, 1, little-endian, joined."""
    return b"".join(xxhash.xxh64(data, seed=seed).intdigest().to_bytes(8, "little") for seed in range(size // 8))


_NO_DEFAULT: Any = object()


class StorageItem:
    """One storage value or map.

    `optional=True`: `get` gives None where nothing is stored. Else it gives `default` (the zero value of the type
    when not named). Bound to its pallet when the `Pallet` is made.
    """

    def __init__(
        self,
        name: str,
        *,
        value: Type,
        keys: Sequence[tuple[Hasher, Type]] = (),
        default: Any = _NO_DEFAULT,
        optional: bool = False,
        docs: str = "",
    ) -> None:
        if optional and default is not _NO_DEFAULT:
            raise ValueError(f"{name}: an optional item has no default")
        self.name = name
        self.value = value
        self.hashed_keys = tuple(keys)
        self.optional = optional
        self.docs = docs
        start = value.zero() if default is _NO_DEFAULT and not optional else default
        self.default_bytes = b"\x00" if optional else value.encode(start)
        """What the metadata gives as the default."""
        self.pallet = ""
        self.prefix = b""

    def bind(self, pallet: str) -> None:
        """Set the pallet whose item this is; an item belongs to one pallet."""
        if self.pallet not in ("", pallet):
            raise ValueError(f"storage item {self.name} belongs to {self.pallet} already")
        self.pallet = pallet
        self.prefix = twox(pallet.encode(), 16) + twox(self.name.encode(), 16)

    def key(self, *keys: Any) -> bytes:
        """The raw storage key, or the raw prefix when fewer keys are given than the map has."""
        if not self.prefix:
            raise ValueError(f"storage item {self.name} belongs to no pallet")
        if len(keys) > len(self.hashed_keys):
            raise ValueError(f"{self.pallet}.{self.name} has {len(self.hashed_keys)} keys, {len(keys)} given")
        parts = [hasher.hash(kind.encode(each)) for each, (hasher, kind) in zip(keys, self.hashed_keys, strict=False)]
        return self.prefix + b"".join(parts)

    def decode_key(self, raw: bytes) -> tuple[Any, ...]:
        """The keys inside a raw storage key."""
        reader = Reader(raw)
        if reader.take(32) != self.prefix:
            raise ScaleError(f"a key of another item than {self.pallet}.{self.name}")
        keys = []
        for hasher, kind in self.hashed_keys:
            reader.take(hasher.prefix_length)
            keys.append(kind.decode(reader))
        reader.finish()
        return tuple(keys)

    def __repr__(self) -> str:
        return f"<storage {self.pallet}.{self.name}>"


CallFunction = Callable[..., "Pays | None"]


@dataclass(frozen=True)
class Call:
    """One dispatchable. `args` are (name, type) in the order of their encoding; `fn(ctx, origin, **args)`."""

    index: int
    name: str
    args: tuple[tuple[str, Type], ...] = ()
    fn: CallFunction | None = None
    docs: str = ""

    def run(self, ctx: Context, origin: bytes, args: Mapping[str, Any]) -> Pays:
        """Run the function; a call declared for its metadata only fails as `CallFiltered` does."""
        if self.fn is None:
            raise Dispatch("CallFiltered", pallet="System")
        return self.fn(ctx, origin, **args) or Pays.YES


@dataclass(frozen=True)
class Constant:
    """A constant that clients read from the metadata."""

    type: Type
    value: Any


@dataclass
class Pallet:
    """A pallet's whole declaration.

    `events`: name to its fields, its index being its place unless given as `Variant(index, fields)`.
    `errors`: names, the index being the place; or a mapping of name to index.
    `on_initialize(ctx)` runs at the start of each block, in the order of the pallets' indices.
    `genesis(ctx)` writes the pallet's state at block 0.
    `apis`: runtime API functions, `fn(ctx, encoded_args) -> encoded_result`; `state_call` gives exactly that back.
    `holdings`: the storage items whose entries say what planck the pallet keeps for somebody (not their totals), and
    how many an entry's value says.
    """

    name: str
    index: int
    storage: Sequence[StorageItem] = ()
    calls: Sequence[Call] = ()
    events: Mapping[str, Fields | Variant] = field(default_factory=dict)
    errors: Sequence[str] | Mapping[str, int] = ()
    constants: Mapping[str, Constant] = field(default_factory=dict)
    on_initialize: Callable[[Context], None] | None = None
    genesis: Callable[[Context], None] | None = None
    apis: Mapping[str, Callable[[Context, bytes], bytes]] = field(default_factory=dict)
    holdings: Mapping[str, Callable[[Any], int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in self.storage:
            item.bind(self.name)
        self.event_variants = {
            name: given if isinstance(given, Variant) else Variant(place, given)
            for place, (name, given) in enumerate(self.events.items())
        }
        if isinstance(self.errors, Mapping):
            self.error_indices = dict(self.errors)
        else:
            self.error_indices = {name: place for place, name in enumerate(self.errors)}
        self.call_by_index = {call.index: call for call in self.calls}
        if len(self.call_by_index) != len(self.calls):
            raise ValueError(f"pallet {self.name}: two calls share an index")
        if len({v.index for v in self.event_variants.values()}) != len(self.event_variants):
            raise ValueError(f"pallet {self.name}: two events share an index")


class Ledger(Protocol):
    """Who keeps balances: the Balances and Books pallets, given to contexts by the runtime."""

    def free(self, ctx: Context, who: bytes) -> int:
        """The free balance, planck."""

    def issuance(self, ctx: Context) -> int:
        """The planck in all accounts together (stake held by pallets is not in it)."""

    def mint(self, ctx: Context, who: bytes | None, amount: int, cause: str) -> None:
        """Create planck in an account, or (None) in the keeping of the pallets."""

    def burn(self, ctx: Context, who: bytes | None, amount: int, cause: str) -> None:
        """Destroy planck of an account, or (None) in the keeping of the pallets."""

    def transfer(self, ctx: Context, source: bytes, target: bytes, amount: int) -> None:
        """Move free balance between accounts."""

    def transfer_in(self, ctx: Context, who: bytes, amount: int) -> None:
        """Move free balance into the keeping of the pallets."""

    def transfer_out(self, ctx: Context, who: bytes, amount: int) -> None:
        """Move planck from the keeping of the pallets to an account."""


EventSink = Callable[[str, str, Any], None]


class Context:
    """The chain as one function of a pallet sees it.

    Reads give fresh Python values each time: change one, then `put` it back. `block` is the number of the block
    being built (for runtime API calls: the block asked about), `parent_hash` its parent's hash.
    """

    def __init__(
        self,
        state: Overlay,
        *,
        pallet: Pallet,
        ledger: Ledger,
        block: int,
        parent_hash: bytes,
        sink: EventSink,
    ) -> None:
        self.state = state
        self.pallet = pallet
        self.block = block
        self.parent_hash = parent_hash
        self._ledger = ledger
        self._sink = sink

    def get(self, item: StorageItem, *keys: Any) -> Any:
        """The stored value; where there is none: None of an optional item, else its default."""
        raw = self.state.get(self._key(item, keys))
        if raw is None:
            return None if item.optional else item.value.decode_all(item.default_bytes)
        return item.value.decode_all(raw)

    def get_raw(self, item: StorageItem, *keys: Any) -> bytes | None:
        """The encoded value, for whoever changes a part of a large one; None where nothing is stored."""
        return self.state.get(self._key(item, keys))

    def put_raw(self, item: StorageItem, *keys: Any, raw: bytes) -> None:
        """Store an encoded value, which must be one of the item's type."""
        self.state.put(self._key(item, keys), raw)

    def has(self, item: StorageItem, *keys: Any) -> bool:
        """Whether something is stored under the keys (a default is not)."""
        return self.state.get(self._key(item, keys)) is not None

    def put(self, item: StorageItem, *keys: Any, value: Any) -> None:
        """Store a value."""
        self.state.put(self._key(item, keys), item.value.encode(value))

    def remove(self, item: StorageItem, *keys: Any) -> None:
        """Remove what is stored, if anything."""
        self.state.put(self._key(item, keys), None)

    def items(self, item: StorageItem, *prefix_keys: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """All (keys, value) of a map under the first keys given, ordered by raw key; a snapshot of the keys."""
        for raw_key in self.state.keys(item.key(*prefix_keys)):
            raw = self.state.get(raw_key)
            if raw is not None:
                yield item.decode_key(raw_key), item.value.decode_all(raw)

    def emit(self, event: str, /, *values: Any, **fields: Any) -> None:
        """Record an event of this pallet: positional values for unnamed fields, keywords for named ones."""
        self.emit_for(self.pallet.name, event, *values, **fields)

    def emit_for(self, pallet: str, event: str, /, *values: Any, **fields: Any) -> None:
        """Record an event of a named pallet."""
        content: Any = fields if fields else (values if len(values) != 1 else values[0])
        self._sink(pallet, event, content if fields or values else None)

    def free_balance(self, who: bytes) -> int:
        """The free balance of an account, planck."""
        return self._ledger.free(self, who)

    def total_issuance(self) -> int:
        """The planck in all accounts together; what pallets hold (stake) is not in it, as in the real pallet."""
        return self._ledger.issuance(self)

    def mint(self, who: bytes | None, amount: int, cause: str) -> None:
        """Create `amount` planck (into an account, or into the pallets' keeping) and book it under `cause`."""
        self._ledger.mint(self, who, amount, cause)

    def burn(self, who: bytes | None, amount: int, cause: str) -> None:
        """Destroy `amount` planck and book it; `Dispatch` InsufficientBalance of Balances when it is not there."""
        self._ledger.burn(self, who, amount, cause)

    def transfer(self, source: bytes, target: bytes, amount: int) -> None:
        """Move free balance between two accounts (event Balances.Transfer)."""
        self._ledger.transfer(self, source, target, amount)

    def transfer_in(self, who: bytes, amount: int) -> None:
        """Move free balance into the pallets' keeping (stake): nothing is burned or booked."""
        self._ledger.transfer_in(self, who, amount)

    def transfer_out(self, who: bytes, amount: int) -> None:
        """Move planck from the pallets' keeping to an account: nothing is minted or booked."""
        self._ledger.transfer_out(self, who, amount)

    @staticmethod
    def _key(item: StorageItem, keys: tuple[Any, ...]) -> bytes:
        if len(keys) != len(item.hashed_keys):
            raise ValueError(f"{item.pallet}.{item.name} has {len(item.hashed_keys)} keys, {len(keys)} given")
        return item.key(*keys)
