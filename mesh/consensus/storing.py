"""When inventories and refusals are stored, and the same rules without a moment: for judging a past epoch. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mesh.chain.windows import SLACK_BLOCKS, Windows
from mesh.consensus.wire import INVENTORY, REFUSAL, Inventory, Refusal, inventory_key, refusal_key
from mesh.errors import RecordRejected
from mesh.identity import is_signature
from mesh.kad.record import Record, Verify
from mesh.kad.validator import (
    BlockPosition,
    NamespaceRule,
    Predicate,
    RecordValidator,
    StoreWindow,
    ValidatorConfig,
    unpack_value,
    window,
)

MAX_TTL_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class _InventoryWindow(StoreWindow):
    """From the inventory block to the epoch's end; the length comes with the position."""

    def __call__(self, record: Record, position: BlockPosition | None) -> None:
        if position is None:
            raise RecordRejected("window", "this node does not know the chain's block yet")
        first = Windows.of(position.length).inventory
        window(first, position.length - 1, SLACK_BLOCKS)(record, position)


def _inventory_form(record: Record, position: BlockPosition | None) -> None:
    if record.subkey:
        raise RecordRejected("subkey", "a node has one inventory per epoch, without a subkey")
    named = unpack_value(Inventory, record.value).epoch
    if record.key != inventory_key(named):
        raise RecordRejected("key", f"an inventory of epoch {named} under {record.key!r}")


def _refusal_form(record: Record, position: BlockPosition | None) -> None:
    named = unpack_value(Refusal, record.value).epoch
    if record.subkey or record.key != refusal_key(named):
        raise RecordRejected("key", f"a refusal of epoch {named} under {record.key!r}")


@dataclass(frozen=True, slots=True)
class _RefusalWindow(StoreWindow):
    """During the epoch after the work, in which proposals are made."""

    def __call__(self, record: Record, position: BlockPosition | None) -> None:
        if position is None:
            raise RecordRejected("window", "this node does not know the chain's block yet")
        window(position.length, 2 * position.length - 1, SLACK_BLOCKS)(record, position)


def inventory_rule() -> NamespaceRule:
    """The namespace rule of inventories: stored from the inventory block to the epoch's end."""
    return NamespaceRule(
        INVENTORY,
        schema=Inventory,
        max_ttl_s=MAX_TTL_S,
        max_records_per_owner=1,
        predicate=(_InventoryWindow(0, 0), _inventory_form),
        is_evidence=True,
    )


def refusal_rule() -> NamespaceRule:
    """The namespace rule of refusals: stored in the epoch after the work."""
    return NamespaceRule(
        REFUSAL,
        schema=Refusal,
        max_value_bytes=2048,
        max_ttl_s=MAX_TTL_S,
        max_records_per_owner=1,
        predicate=(_RefusalWindow(0, 0), _refusal_form),
    )


def timeless_validator(
    rules: Sequence[NamespaceRule],
    *,
    subnet_id: int,
    genesis: bytes,
    verified_cache: int = 8192,
    verify: Verify = is_signature,
) -> RecordValidator:
    """The rules without what is about the moment of storing: for judging a past epoch's records.

    Whether a record came in time is not decided by the judge's clock but by how many inventories name it.
    """

    def lasting(rule: NamespaceRule) -> NamespaceRule:
        kept = tuple(_lasting(p) for p in rule.predicates if not isinstance(p, StoreWindow))
        return replace(rule, predicate=kept)

    present = [*rules]
    if all(rule.namespace != INVENTORY for rule in present):
        present.append(inventory_rule())
    return RecordValidator(
        [lasting(rule) for rule in present],
        subnet_id=subnet_id,
        genesis=genesis,
        config=ValidatorConfig(verified_cache=verified_cache),
        verify=verify,
    )


def _lasting(predicate: Predicate) -> Predicate:
    def check(record: Record, position: BlockPosition | None) -> None:
        try:
            predicate(record, position)
        except RecordRejected as error:
            if error.reason != "window":
                raise

    return check
