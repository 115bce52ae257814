"""What `NetworkRuntimeApi` and `network_*` answer: structs that a runtime's metadata does not describe. PURE.

The order of their fields is known from the pallet's published sources only, one layout per dialect; the types inside
(PeerInfo, the classification, …) are taken from the metadata. So a layout is a conjecture: bytes must be consumed to
the last, and the reader (facts.py) compares a first answer of each kind with storage before any is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.chain.codec import Field, Kind, Reader, TypeDef, Variant, decode_all
from mesh.chain.metadata import Metadata
from mesh.errors import ChainError

Layout = tuple[tuple[str, str], ...]
"""Field names and types: u8 … u128, bytes, account, `?` option, `[` sequence, `{` set, `k>v` map, `@Name` a type of the
metadata by the end of its path."""


def _layout(text: str) -> Layout:
    fields = [part.split(":") for part in text.split()]
    return tuple((name, kind) for name, kind in fields)


_SUBNET_HEAD: Final = """
    id:u32 friendly_id:?u32 name:bytes repo:bytes description:bytes misc:bytes state:@SubnetState start_epoch:u32
    churn_limit:u32 churn_limit_multiplier:u32 min_stake:u128 max_stake:u128 queue_immunity_epochs:u32
    target_node_registrations_per_epoch:u32 node_registrations_this_epoch:u32 subnet_node_queue_epochs:u32
    idle_classification_epochs:u32 included_classification_epochs:u32 delegate_stake_percentage:u128
    last_delegate_stake_rewards_update:u32 node_burn_rate_alpha:u128 current_node_burn_rate:u128
"""
_SUBNET_MIDDLE: Final = """
    max_registered_nodes:u32 owner:?account pending_owner:?account registration_epoch:?u32 prev_pause_epoch:u32
    slot_index:?u32 slot_assignment:?u32 subnet_node_min_weight_decrease_reputation_threshold:u128 reputation:u128
    min_subnet_node_reputation:u128 absent_decrease_reputation_factor:u128 included_increase_reputation_factor:u128
    below_min_weight_decrease_reputation_factor:u128 non_attestor_decrease_reputation_factor:u128
    non_consensus_attestor_decrease_reputation_factor:u128 validator_absent_subnet_node_reputation_factor:u128
    validator_non_consensus_subnet_node_reputation_factor:u128
"""
_SUBNET_TAIL: Final = """
    bootnode_access:{account bootnodes:bytes>bytes total_nodes:u32 total_active_nodes:u32 total_electable_nodes:u32
    current_min_delegate_stake:u128 total_subnet_stake:u128 total_subnet_delegate_stake_shares:u128
    total_subnet_delegate_stake_balance:u128
"""
SUBNET_INFO_W: Final = _layout(
    f"{_SUBNET_HEAD} initial_coldkeys:?account>u32 initial_coldkey_data:?account>u32 {_SUBNET_MIDDLE} {_SUBNET_TAIL}"
)
SUBNET_INFO_S: Final = _layout(
    f"{_SUBNET_HEAD} initial_validators:?u32>u32 initial_validator_data:?u32>u32 {_SUBNET_MIDDLE} "
    f"pending_reputation_factors:?@ReputationFactors {_SUBNET_TAIL}"
)
_PEERS: Final = "peer_info:@PeerInfo bootnode_peer_info:?@PeerInfo client_peer_info:?@PeerInfo"
_COUNTS: Final = "node_slot_index:?u32 consecutive_idle_epochs:u32 consecutive_included_epochs:u32"
NODE_INFO_W: Final = _layout(
    f"""subnet_id:u32 subnet_node_id:u32 coldkey:account hotkey:account {_PEERS} delegate_account:?@DelegateAccount
    identity:@ColdkeyIdentityData classification:@SubnetNodeClassification delegate_reward_rate:u128
    last_delegate_reward_rate_update:u32 unique:?bytes non_unique:?bytes stake_balance:u128
    total_node_delegate_stake_shares:u128 node_delegate_stake_balance:u128 coldkey_reputation:@Reputation
    subnet_node_reputation:u128 {_COUNTS}"""
)
NODE_INFO_S: Final = _layout(
    f"""validator_id:?u32 subnet_id:u32 subnet_node_id:u32 coldkey:account hotkey:account {_PEERS}
    classification:@SubnetNodeClassification unique:?bytes non_unique:?bytes stake_balance:u128
    subnet_node_reputation:?u128 {_COUNTS}"""
)


class Shape:
    """How many of a struct an answer holds."""

    OPTION: Final = "?"
    VEC: Final = "["


@dataclass(frozen=True, slots=True)
class Layouts:
    """The layouts as types: a runtime's registry with what they need added to it."""

    registry: tuple[TypeDef, ...]
    ids: dict[tuple[str, Layout], int]

    def read(self, shape: str, layouts: Sequence[Layout], raw: bytes, pause: Callable[[], None]) -> object:
        """An answer by the first of the layouts that it fits to the last byte. Raises ChainError when none does."""
        why = "this runtime lacks a type of it"
        for layout in layouts:
            type_id = self.ids.get((shape, layout))
            if type_id is None:
                continue
            try:
                return decode_all(self.registry, type_id, raw, pause)
            except ChainError as error:
                why = str(error)
        raise ChainError(f"the answer fits no known layout ({why})")


def build(metadata: Metadata) -> Layouts:
    """Layouts for this runtime; those that use a type it does not have are left out."""
    builder = _Builder(metadata)
    ids: dict[tuple[str, Layout], int] = {}
    for layout in (SUBNET_INFO_W, SUBNET_INFO_S, NODE_INFO_W, NODE_INFO_S):
        try:
            struct = builder.struct(layout)
        except KeyError:
            continue
        ids[Shape.OPTION, layout] = builder.option(struct)
        ids[Shape.VEC, layout] = builder.add(TypeDef(Kind.SEQUENCE, inner=(struct,)))
    return Layouts(tuple(builder.registry), ids)


def unwrap(raw: bytes) -> bytes:
    """The bytes inside a SCALE `Vec<u8>`: what `state_call` gives for these functions."""
    reader = Reader(raw)
    inner = reader.take(reader.count())
    reader.finish()
    return inner


class _Builder:
    def __init__(self, metadata: Metadata) -> None:
        self.registry = list(metadata.registry)
        self._known: dict[str, int] = {"account": metadata.address_id}
        self._named = {definition.path[-1]: i for i, definition in enumerate(self.registry) if definition.path}

    def add(self, definition: TypeDef) -> int:
        self.registry.append(definition)
        return len(self.registry) - 1

    def struct(self, layout: Layout) -> int:
        return self.add(TypeDef(Kind.COMPOSITE, fields=tuple(Field(name, self.of(kind)) for name, kind in layout)))

    def option(self, inner: int) -> int:
        variants = (Variant("None", 0, ()), Variant("Some", 1, (Field(None, inner),)))
        return self.add(TypeDef(Kind.VARIANT, path=("Option",), variants=variants))

    def of(self, kind: str) -> int:
        """The id of a type. Raises KeyError for a name that the metadata does not have."""
        if kind not in self._known:
            self._known[kind] = self._make(kind)
        return self._known[kind]

    def _make(self, kind: str) -> int:
        if kind[0] == "@":
            return self._named[kind[1:]]
        if kind[0] == "?":
            return self.option(self.of(kind[1:]))
        if kind[0] == "{":
            items = self.add(TypeDef(Kind.SEQUENCE, inner=(self.of(kind[1:]),)))
            return self.add(TypeDef(Kind.COMPOSITE, path=("BTreeSet",), fields=(Field(None, items),)))
        if ">" in kind:
            key, _, value = kind.partition(">")
            pair = self.add(TypeDef(Kind.TUPLE, inner=(self.of(key), self.of(value))))
            items = self.add(TypeDef(Kind.SEQUENCE, inner=(pair,)))
            return self.add(TypeDef(Kind.COMPOSITE, path=("BTreeMap",), fields=(Field(None, items),)))
        if kind == "bytes":
            return self.add(TypeDef(Kind.SEQUENCE, inner=(self.of("u8"),)))
        return self.add(TypeDef(Kind.PRIMITIVE, primitive=kind))
