"""What an epoch's agreement writes down: inventories, refusals, a proposal's args and its blob. PURE.

Every form has one encoding, so that a digest names it; whatever is parsed is bounded first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mesh.chain.types import MAX_ARGS_BYTES
from mesh.errors import ConsensusError, LocalProtocolError, RecordRejected, RemoteProtocolError
from mesh.kad.record import MAX_RECORD_BYTES, Record
from mesh.kad.validator import pack_value, unpack_value

INVENTORY: Final = "inventory"
REFUSAL: Final = "refusal"
VERSION: Final = 1
"""Of args and blob; a node abstains from versions it does not know."""
DIGEST_BYTES: Final = 32
MAX_DIGESTS: Final = 1900
"""Digests in one inventory: what fits a record's 64 KiB beside the epoch and the snapshot's hash."""
MAX_INVENTORY_RECORD_BYTES: Final = 8 * 1024 * 1024
"""Bytes of all records one inventory names, so that what f+1 of them name fits into one blob."""
MAX_EVIDENCE_BYTES: Final = 3 * MAX_INVENTORY_RECORD_BYTES
"""What f+1 of n inventories can name where each keeps to its bound: n is at most 3 (f+1)."""
MAX_BLOB_BYTES: Final = 48 * 1024 * 1024
"""The evidence, and inventories of 256 validators of whom a third signed two (21 MiB), with room."""
MAX_BLOB_INVENTORIES: Final = 2 * 256
MAX_BLOB_RECORDS: Final = 16_384
MAX_DETAIL: Final = 512
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
        if list(self.digests) != sorted(set(self.digests)):
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
    detail: Annotated[str, Field(max_length=MAX_DETAIL)]
    witness: DigestOrNone
    """A blob that shows it (the inventories an empty proposal denied); b"" when the proposal's own blob does."""


TOO_FEW_INVENTORIES: Final = "too-few-inventories"
"""The one reason an empty proposal may give."""


def inventory_key(epoch: int) -> bytes:
    """Where the inventories of an epoch lie."""
    return f"{INVENTORY}/{epoch}".encode()


def refusal_key(epoch: int) -> bytes:
    """Where the refusals of an epoch's proposal lie."""
    return f"{REFUSAL}/{epoch}".encode()


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
