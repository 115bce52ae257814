"""What the records of an epoch's evidence have in common: their key, and the parts of their values. PURE."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mesh.consensus.quorum import SALT_BYTES
from mesh.errors import RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, Model, unpack_value

Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
Salt = Annotated[bytes, Field(min_length=SALT_BYTES, max_length=SALT_BYTES)]


class Value(BaseModel):
    """Base of what a record holds: one encoding, nothing besides its fields, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Commit(Value):
    """A commitment (mesh.consensus.quorum) to what is revealed later."""

    commitment: Digest


def epoch_key(namespace: str, epoch: int) -> bytes:
    """`<namespace>/<epoch>`: where records of an epoch are."""
    return f"{namespace}/{epoch}".encode()


def read_value(model: type[Model], record: Record) -> Model | None:
    """A record's value, or None for a malformed one: stores refuse these, and evidence that holds one all the same is
    ignored by everybody alike."""
    try:
        return unpack_value(model, record.value)
    except RecordRejected:
        return None


def no_subkey(record: Record, position: BlockPosition | None) -> None:
    """One record per owner and key: a predicate."""
    if record.subkey:
        raise RecordRejected("subkey", f"{record.key!r} takes no subkey")
