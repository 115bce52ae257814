"""One epoch's agreement, as functions of values. PURE.

Every validator signs an inventory: the digests of the valid records it holds when the epoch ends. The elected proposer
gathers n-f of them; the evidence is exactly the records that f+1 of these name. Inventories and records travel in one
blob, so whoever holds the blob and the epoch's snapshot computes the same scores, and nobody needs to be believed.

What remains with the proposer is which n-f inventories it takes (mesh/README.md says so). A record that every honest
validator names is in whatever it takes; one that no honest validator names never is.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Final, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mesh.chain.types import MAX_ARGS_BYTES, NodeClass, Score, Snapshot, SubnetNode
from mesh.chain.windows import SLACK_BLOCKS, Windows
from mesh.errors import ConsensusError, LocalProtocolError, RecordRejected, RemoteProtocolError
from mesh.kad.record import MAX_RECORD_BYTES, Record
from mesh.kad.validator import (
    BlockPosition,
    NamespaceRule,
    Predicate,
    Purpose,
    RecordValidator,
    StoreWindow,
    ValidatorConfig,
    pack_value,
    unpack_value,
    window,
)
from mesh.peer import PeerID

INVENTORY: Final = "inventory"
REFUSAL: Final = "refusal"
VERSION: Final = 1
"""Of args and blob; a node abstains from versions it does not know."""
DIGEST_BYTES: Final = 32
MAX_DIGESTS: Final = 1900
"""Digests in one inventory: what fits a record's 64 KiB beside the epoch and the snapshot's hash."""
MAX_INVENTORY_RECORD_BYTES: Final = 8 * 1024 * 1024
"""Bytes of all records one inventory names, so that what f+1 of them name fits into one blob."""
MAX_BLOB_BYTES: Final = 48 * 1024 * 1024
"""Inventories of 256 validators (17 MiB) and the records f+1 of them can name (under 3 times 8 MiB), with room."""
MAX_BLOB_INVENTORIES: Final = 2 * 256
MAX_BLOB_RECORDS: Final = 16_384
MAX_TTL_S: Final = 86_400.0
_MAX_DETAIL: Final = 512
_U32: Final = 2**32

Digest = Annotated[bytes, Field(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
DigestOrNone = Annotated[bytes, Field(max_length=DIGEST_BYTES)]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Inventory(_Wire):
    """What one validator held when the epoch ended: the value of its record under `inventory/<epoch>`."""

    epoch: Annotated[int, Field(ge=0, lt=_U32)]
    snapshot: Digest
    """Hash of the block whose state names the epoch's nodes."""
    digests: Annotated[tuple[Digest, ...], Field(max_length=MAX_DIGESTS)]
    """Digests of valid evidence records, ascending."""

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if any(a >= b for a, b in pairwise(self.digests)):
            raise ValueError("digests must ascend without repetition")
        return self


class ProposalArgs(_Wire):
    """What a proposal says on chain besides its scores (`propose_attestation`'s args)."""

    v: int
    epoch: Annotated[int, Field(ge=0, lt=_U32)]
    """The epoch of the work; the proposal is made in the one after it."""
    snapshot: Digest
    evidence: DigestOrNone
    """The digest (mesh.content) of the blob; b"" in an empty proposal."""
    size: Annotated[int, Field(ge=0, le=2**40)]
    """Bytes of the blob."""
    score: Annotated[str, Field(min_length=1, max_length=128)]
    """Name and semver of the scoring function."""
    reason: Annotated[str, Field(max_length=128)] = ""
    """Why the proposal is empty; "" when it is not."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.evidence:
            if len(self.evidence) != DIGEST_BYTES or not self.size or self.reason:
                raise ValueError("a proposal with evidence has a 32-byte digest, a size and no reason")
        elif self.size or not self.reason:
            raise ValueError("an empty proposal has no size and says why")
        return self


class Refusal(_Wire):
    """Why a validator did not attest, for others to check: the value of its record under `refusal/<epoch>`."""

    epoch: Annotated[int, Field(ge=0, lt=_U32)]
    proposer_node_id: Annotated[int, Field(ge=0, lt=_U32)]
    evidence: DigestOrNone
    """The blob the proposal named."""
    reason: Annotated[str, Field(min_length=1, max_length=64)]
    detail: Annotated[str, Field(max_length=_MAX_DETAIL)]
    witness: DigestOrNone
    """A blob that shows it (the inventories an empty proposal denied); b"" when the proposal's own blob does."""


TOO_FEW_INVENTORIES: Final = "too-few-inventories"
"""The one reason an empty proposal may give."""


# --- what may be stored -----------------------------------------------------------------------------------------


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


def inventory_key(epoch: int) -> bytes:
    """Where the inventories of an epoch lie."""
    return f"{INVENTORY}/{epoch}".encode()


def refusal_key(epoch: int) -> bytes:
    """Where the refusals of an epoch's proposal lie."""
    return f"{REFUSAL}/{epoch}".encode()


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


# --- how many ---------------------------------------------------------------------------------------------------


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


# --- the context of a round -------------------------------------------------------------------------------------


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


def timeless_validator(
    rules: Sequence[NamespaceRule], *, subnet_id: int, genesis: bytes, verified_cache: int = 8192
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
    )


def _lasting(predicate: Predicate) -> Predicate:
    def check(record: Record, position: BlockPosition | None) -> None:
        try:
            predicate(record, position)
        except RecordRejected as error:
            if error.reason != "window":
                raise

    return check


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


# --- inventories ------------------------------------------------------------------------------------------------


def select_records(
    records: Iterable[Record],
    ctx: RoundContext,
    *,
    max_records: int = MAX_DIGESTS,
    max_bytes: int = MAX_INVENTORY_RECORD_BYTES,
) -> tuple[Record, ...]:
    """The valid ones among `records` that fit an inventory, sorted by digest.

    When there are too many, owners take turns (each with its own in the order of their digests), so whoever floods
    the epoch displaces its own records first.
    """
    by_owner: dict[PeerID, dict[bytes, Record]] = {}
    for record in records:
        try:
            check_record(record, ctx)
        except ConsensusError:
            continue  # a store also holds what is no evidence: other epochs' records, owners who came later
        by_owner.setdefault(record.owner, {})[record.digest] = record
    queues = {owner: sorted(own.items()) for owner, own in sorted(by_owner.items())}
    chosen: dict[bytes, Record] = {}
    size = 0
    for turn in range(max((len(queue) for queue in queues.values()), default=0)):
        for queue in queues.values():
            if turn >= len(queue) or len(chosen) >= max_records:
                continue
            digest, record = queue[turn]
            weight = len(record.to_bytes())
            if size + weight <= max_bytes:
                chosen[digest] = record
                size += weight
    return tuple(record for _, record in sorted(chosen.items()))


def make_inventory(records: Iterable[Record], ctx: RoundContext) -> Inventory:
    """Our inventory of what we hold."""
    return Inventory(
        epoch=ctx.epoch,
        snapshot=ctx.snapshot.block.hash,
        digests=tuple(record.digest for record in select_records(records, ctx)),
    )


class InventoryBook:
    """The inventories of one epoch as they become known, at most two per validator.

    The second, different one voids both and is kept as the proof. A record that only repeats the value (a refresh
    raises its seq) is the same inventory; the one with the lowest digest stands for it.
    """

    def __init__(self, ctx: RoundContext) -> None:
        self._ctx = ctx
        self._by_owner: dict[PeerID, tuple[Record, ...]] = {}
        self._parsed: dict[bytes, Inventory] = {}

    def add(self, record: Record) -> None:
        """Take a record in. Raises ConsensusError("inventory") when it is none of this epoch."""
        known = self._by_owner.get(record.owner, ())
        if len(known) > 1 or any(record.digest == other.digest for other in known):
            return
        inventory = check_inventory(record, self._ctx)
        if not known:
            kept: tuple[Record, ...] = (record,)
        elif known[0].value == record.value:
            kept = (min(known[0], record, key=lambda r: r.digest),)
        else:
            kept = (known[0], record)
        self._by_owner[record.owner] = kept
        self._parsed[record.digest] = inventory

    def valid(self) -> dict[PeerID, tuple[Record, Inventory]]:
        """By owner, those that stand: owners with exactly one."""
        return {
            owner: (records[0], self._parsed[records[0].digest])
            for owner, records in sorted(self._by_owner.items())
            if len(records) == 1
        }

    def proofs(self) -> dict[PeerID, tuple[Record, Record]]:
        """By owner, the two inventories that prove its equivocation."""
        return {
            owner: (records[0], records[1]) for owner, records in sorted(self._by_owner.items()) if len(records) == 2
        }

    def heard(self) -> frozenset[PeerID]:
        """Owners of whom any inventory is known."""
        return frozenset(self._by_owner)

    def records(self, owners: Collection[PeerID]) -> tuple[Record, ...]:
        """What is known of these owners, proofs included."""
        return tuple(r for owner in sorted(owners) for r in self._by_owner.get(owner, ()))


# --- the proposer's choice --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """Inventories to build on and the evidence that follows from them."""

    owners: tuple[PeerID, ...]
    digests: tuple[bytes, ...]


def named(inventories: Iterable[Inventory], naming: int) -> tuple[bytes, ...]:
    """Digests that at least `naming` of the inventories name, ascending."""
    counts = Counter(digest for inventory in inventories for digest in inventory.digests)
    return tuple(sorted(digest for digest, count in counts.items() if count >= naming))


def choose(inventories: Mapping[PeerID, Inventory], *, held: Set[bytes], limits: Thresholds) -> Choice:
    """All inventories, less those that make us need records we could not get, while enough remain.

    Raises ConsensusError("too-few-inventories"), or ("missing-records") when there is no way to a complete blob.
    """
    if len(inventories) < limits.need:
        raise ConsensusError(TOO_FEW_INVENTORIES, f"{len(inventories)} of {limits.need}")
    left = dict(sorted(inventories.items()))
    while True:
        digests = named(left.values(), limits.naming)
        missing = set(digests) - held
        if not missing:
            return Choice(tuple(left), digests)
        if len(left) == limits.need:
            raise ConsensusError(
                "missing-records",
                f"{len(missing)} records are named by {limits.naming} validators but none gave them to us, "
                f"such as {min(missing).hex()}",
            )
        worst = max(left, key=lambda owner: (len(missing.intersection(left[owner].digests)), owner))
        del left[worst]


# --- the blob ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blob:
    """A proposal's evidence: inventories (both of an owner who signed two) and records, each sorted by digest."""

    inventories: tuple[Record, ...]
    records: tuple[Record, ...]


def make_blob(inventories: Iterable[Record], records: Iterable[Record]) -> Blob:
    """A blob in canonical order."""
    return Blob(_by_digest(inventories), _by_digest(records))


def _by_digest(records: Iterable[Record]) -> tuple[Record, ...]:
    unique = {record.digest: record for record in records}
    return tuple(record for _, record in sorted(unique.items()))


def encode_blob(blob: Blob, *, max_bytes: int = MAX_BLOB_BYTES) -> bytes:
    """The canonical bytes whose digest goes on chain. Raises LocalProtocolError when they are too many."""
    data = msgpack.packb(
        {
            "v": VERSION,
            "inventories": [record.to_bytes() for record in blob.inventories],
            "records": [record.to_bytes() for record in blob.records],
        },
        use_bin_type=True,
    )
    assert isinstance(data, bytes)
    if len(data) > max_bytes:
        raise LocalProtocolError(f"evidence of {len(data)} bytes; at most {max_bytes} are accepted by others")
    return data


def decode_blob(data: bytes, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
    """Parse and bound, without checking signatures. Raises RemoteProtocolError for anything not canonical."""
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"evidence of {len(data)} bytes; at most {max_bytes} are accepted")
    try:
        fields = msgpack.unpackb(data, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError("evidence that is not msgpack") from error
    if type(fields) is not dict or list(fields) != ["v", "inventories", "records"]:
        raise RemoteProtocolError("evidence that is no map of v, inventories and records")
    if fields["v"] != VERSION or type(fields["v"]) is not int:
        raise RemoteProtocolError(f"evidence of version {fields['v']!r}; this node reads version {VERSION}")
    blob = Blob(
        _parse_records(fields["inventories"], limit=MAX_BLOB_INVENTORIES, what="inventories"),
        _parse_records(fields["records"], limit=MAX_BLOB_RECORDS, what="records"),
    )
    if encode_blob(blob, max_bytes=max_bytes) != data:
        raise RemoteProtocolError("evidence that is not in canonical form")
    return blob


def _parse_records(items: object, *, limit: int, what: str) -> tuple[Record, ...]:
    if type(items) is not list or len(items) > limit:
        raise RemoteProtocolError(f"evidence whose {what} are no list of at most {limit}")
    records = []
    for item in items:
        if type(item) is not bytes or len(item) > MAX_RECORD_BYTES:
            raise RemoteProtocolError(f"evidence with something among its {what} that is no record")
        records.append(Record.from_bytes(item))
    if any(a.digest >= b.digest for a, b in pairwise(records)):
        raise RemoteProtocolError(f"evidence whose {what} do not ascend by digest")
    return tuple(records)


def checks(blob: Blob, ctx: RoundContext) -> Iterator[None]:
    """Checks every inventory and record, one per step (a signature each: the caller may let others run between).
    Raises ConsensusError("inventory" or "record")."""
    for record in blob.inventories:
        check_inventory(record, ctx)
        yield
    for record in blob.records:
        check_record(record, ctx)
        yield


def evidence_of(blob: Blob, ctx: RoundContext) -> tuple[Record, ...]:
    """The evidence of a blob that passed `checks`, sorted by digest.

    Raises ConsensusError: "inventories" (the same one twice, or more than two of an owner), "too-few-inventories",
    "unlisted" (a record too few name), "dropped" (a record is missing that enough name).
    """
    by_owner: dict[PeerID, list[Record]] = {}
    for record in blob.inventories:
        by_owner.setdefault(record.owner, []).append(record)
    standing = []
    for owner, records in by_owner.items():
        if len(records) == 1:
            standing.append(unpack_value(Inventory, records[0].value))
        elif len(records) > 2 or records[0].value == records[1].value:
            raise ConsensusError("inventories", f"of {owner} come {len(records)} times without proving anything")
    limits = ctx.thresholds
    if len(standing) < limits.need:
        raise ConsensusError(
            TOO_FEW_INVENTORIES, f"{len(standing)} inventories stand; {limits.need} of {len(ctx.validators)} are needed"
        )
    wanted = set(named(standing, limits.naming))
    given = {record.digest for record in blob.records}
    if unlisted := sorted(given - wanted):
        raise ConsensusError(
            "unlisted", f"{len(unlisted)} records are named by fewer than {limits.naming}, such as {unlisted[0].hex()}"
        )
    if dropped := sorted(wanted - given):
        raise ConsensusError(
            "dropped",
            f"{len(dropped)} records named by {limits.naming} or more are left out, such as {dropped[0].hex()}",
        )
    return blob.records


def verify_blob(data: bytes, ctx: RoundContext, *, max_bytes: int = MAX_BLOB_BYTES) -> tuple[Record, ...]:
    """The evidence in a blob, fully checked: what anybody needs to check a proposal or a refusal afterwards.
    Raises RemoteProtocolError, ConsensusError."""
    blob = decode_blob(data, max_bytes=max_bytes)
    for _ in checks(blob, ctx):
        pass
    return evidence_of(blob, ctx)


# --- args -------------------------------------------------------------------------------------------------------


def encode_args(args: ProposalArgs) -> bytes:
    """Canonical bytes of a proposal's args. Raises LocalProtocolError beyond the pallet's bound."""
    data = pack_value(args)
    if len(data) > MAX_ARGS_BYTES:
        raise LocalProtocolError(f"args of {len(data)} bytes; the chain takes {MAX_ARGS_BYTES}")
    return data


def decode_args(data: bytes | None) -> ProposalArgs:
    """The args of a proposal on chain. Raises ConsensusError: "args" (absent, malformed), "unknown-version"."""
    if not data:
        raise ConsensusError("args", "the proposal says nothing about its evidence")
    if len(data) > MAX_ARGS_BYTES:
        raise ConsensusError("args", f"{len(data)} bytes are more than the chain takes")
    try:
        fields = msgpack.unpackb(data, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ConsensusError("args", "they are not msgpack") from error
    version = fields.get("v") if type(fields) is dict else None
    if type(version) is int and version != VERSION:
        raise ConsensusError("unknown-version", f"{version}; this node reads version {VERSION}")
    try:
        return unpack_value(ProposalArgs, data)
    except RecordRejected as error:
        raise ConsensusError("args", error.detail) from error


# --- decisions --------------------------------------------------------------------------------------------------


class Decision(enum.Enum):
    """What to do about a proposal."""

    ATTEST = "attest"
    REFUSE = "refuse"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A decision with its reason: a short stable word, and a sentence for people."""

    decision: Decision
    reason: str
    detail: str = ""


ABSTENTIONS: Final = frozenset({"unknown-version", "unknown-score-id", "score-failed"})
"""Reasons that are ours, not the proposer's: they say nothing about whether the proposal is right."""


def judgement_of(error: ConsensusError | RemoteProtocolError) -> Judgement:
    """The decision that an error in a proposal leads to."""
    reason = error.reason if isinstance(error, ConsensusError) else "malformed"
    decision = Decision.ABSTAIN if reason in ABSTENTIONS else Decision.REFUSE
    return Judgement(decision, reason, str(error)[:_MAX_DETAIL])


def read_proposal(args: bytes | None, ctx: RoundContext, *, max_bytes: int = MAX_BLOB_BYTES) -> ProposalArgs:
    """What a proposal claims, as far as it can be checked before fetching anything.

    Raises ConsensusError: "args", "unknown-version", "unknown-score-id", "wrong-epoch", "wrong-snapshot", "oversize",
    "empty-reason".
    """
    claim = decode_args(args)
    if claim.score != ctx.score_id:
        raise ConsensusError("unknown-score-id", f"{claim.score!r}; this node scores by {ctx.score_id!r}")
    if claim.epoch != ctx.epoch:
        raise ConsensusError("wrong-epoch", f"{claim.epoch} instead of {ctx.epoch}")
    if claim.snapshot != ctx.snapshot.block.hash:
        raise ConsensusError("wrong-snapshot", f"{claim.snapshot.hex()} instead of {ctx.snapshot.block.hash.hex()}")
    if claim.size > max_bytes:
        raise ConsensusError("oversize", f"its evidence has {claim.size} bytes; at most {max_bytes} are fetched")
    if not claim.evidence and claim.reason != TOO_FEW_INVENTORIES:
        raise ConsensusError("empty-reason", f"{claim.reason!r} is no reason to propose nothing")
    return claim


def judge_empty(on_chain: Sequence[Score], *, standing: int, limits: Thresholds) -> Judgement:
    """About a proposal without evidence; `standing` is how many valid inventories this node holds."""
    if on_chain:
        return Judgement(Decision.REFUSE, "scores", f"{len(on_chain)} scores without evidence")
    if standing >= limits.need:
        return Judgement(
            Decision.REFUSE,
            "had-inventories",
            f"the proposer says it had too few inventories; this node holds {standing} of {limits.need} needed",
        )
    return Judgement(Decision.ATTEST, "equal", "empty equals empty")


def collapsed(scores: Iterable[Score]) -> dict[int, int]:
    """By node id; the chain keeps the lowest score of an id named twice."""
    lowest: dict[int, int] = {}
    for score in scores:
        lowest[score.node_id] = min(score.score, lowest.get(score.node_id, score.score))
    return dict(sorted(lowest.items()))


def eligible(*snapshots: Snapshot, epoch: int) -> frozenset[int]:
    """Node ids that are Included or better in every one of these snapshots: the chain drops the scores of others."""
    sets = [
        {n.node_id for n in snapshot.nodes if n.node_class >= NodeClass.INCLUDED and n.start_epoch <= epoch}
        for snapshot in snapshots
    ]
    return frozenset(set.intersection(*sets)) if sets else frozenset()


def judge_scores(recomputed: Iterable[Score], on_chain: Iterable[Score], *, eligible_ids: Set[int]) -> Judgement:
    """Whether the chain holds what the evidence is worth.

    A node missing on chain is right only where the chain filters it (`eligible`); whatever is there must be equal.
    """
    ours, theirs = collapsed(recomputed), collapsed(on_chain)
    for node_id, score in theirs.items():
        if node_id not in ours:
            return Judgement(Decision.REFUSE, "scores", f"node {node_id} has {score} but earned nothing")
        if ours[node_id] != score:
            return Judgement(Decision.REFUSE, "scores", f"node {node_id} has {score} but earned {ours[node_id]}")
    for node_id, score in ours.items():
        if node_id not in theirs and node_id in eligible_ids:
            return Judgement(Decision.REFUSE, "scores", f"node {node_id} earned {score} but is left out")
    return Judgement(Decision.ATTEST, "equal", f"{len(theirs)} scores")
