"""What everybody knows about an epoch before looking at any record, and what a record must be to count in it. PURE."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mesh.chain.types import Snapshot, SubnetNode
from mesh.consensus.wire import Inventory, inventory_key
from mesh.errors import ConsensusError, RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import Purpose, RecordValidator, unpack_value
from mesh.peer import PeerID


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`need` inventories make a proposal, `naming` of those must name a record."""

    need: int
    naming: int


def thresholds(validators: int) -> Thresholds:
    """n-f and f+1 with f = (n-1)//3.

    Two and three validators: two inventories, and both must name a record (f would be 0, and a single node could then
    bring in whatever it likes, as late as it likes). That keeps going without one of three, but is not byzantine-safe.
    Raises ConsensusError("no-validators").
    """
    if validators < 1:
        raise ConsensusError("no-validators", "the epoch's snapshot has no node of class Validator")
    if validators <= 3:
        few = min(validators, 2)
        return Thresholds(few, few)
    faulty = (validators - 1) // 3
    return Thresholds(validators - faulty, faulty + 1)


@dataclass(frozen=True)
class RoundContext:
    """What everybody knows about the epoch of the work before looking at any record."""

    genesis: bytes
    subnet_id: int
    epoch: int
    snapshot: Snapshot
    evidence_keys: frozenset[bytes]
    score_id: str
    validator: RecordValidator = field(repr=False)
    """Made by `timeless_validator`."""

    @cached_property
    def validators(self) -> Mapping[PeerID, SubnetNode]:
        """The snapshot's nodes of class Validator, by peer id."""
        return {node.peer_id: node for node in self.snapshot.validators(self.epoch)}

    @cached_property
    def owners(self) -> frozenset[PeerID]:
        """Who may own evidence: every node of the snapshot."""
        return frozenset(node.peer_id for node in self.snapshot.nodes)

    @cached_property
    def thresholds(self) -> Thresholds:
        """See `thresholds`."""
        return thresholds(len(self.validators))


def check_record(record: Record, ctx: RoundContext) -> None:
    """Whether a record can be evidence of the epoch, whoever names it. Raises ConsensusError("record").

    The same function decides what goes into an inventory and what a blob may hold; were they to differ, an honest
    inventory could make an honest proposal wrong.
    """
    _check(record, ctx, keys=ctx.evidence_keys, owners=ctx.owners, what="record")


def check_inventory(record: Record, ctx: RoundContext) -> Inventory:
    """A validator's inventory of this epoch on this snapshot. Raises ConsensusError("inventory")."""
    _check(record, ctx, keys=(inventory_key(ctx.epoch),), owners=ctx.validators, what="inventory")
    inventory = unpack_value(Inventory, record.value)
    if inventory.snapshot != ctx.snapshot.block.hash:
        raise ConsensusError(
            "inventory",
            f"of {record.owner} is for another snapshot ({inventory.snapshot.hex()[:16]}…) of epoch {ctx.epoch}",
        )
    return inventory


def _check(
    record: Record, ctx: RoundContext, *, keys: Collection[bytes], owners: Collection[PeerID], what: str
) -> None:
    if record.key not in keys:
        raise ConsensusError(what, f"under {record.key!r}, which is not of epoch {ctx.epoch}")
    if record.tombstone:
        raise ConsensusError(what, f"under {record.key!r} of {record.owner} is a tombstone")
    if record.owner not in owners:
        raise ConsensusError(what, f"under {record.key!r} of {record.owner}, who may not own one in this epoch")
    try:
        # Judged as of a second before it expires: a past epoch's record must mean the same today and tomorrow.
        ctx.validator.check_envelope(record, purpose=Purpose.READ, now=record.expiry_ms / 1000 - 1)
        ctx.validator.check_content(record, purpose=Purpose.READ, member=True)
    except RecordRejected as error:
        raise ConsensusError(what, f"under {record.key!r} of {record.owner}: {error}") from error
