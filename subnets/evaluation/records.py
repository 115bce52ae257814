"""The records of the evaluation subnet. PURE.

Key                        | subkey     | value   | when (blocks of the epoch, L = 20)
---------------------------|------------|---------|-----------------------------------
eval-request/<epoch>       | model      | Request | 0-5
eval-vote-commit/<epoch>   | request id | Commit  | 8-14
eval-vote/<epoch>          | request id | Vote    | 16-18
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import BaseModel, Field

from mesh.consensus.during import During
from mesh.consensus.evidence import Commit, Digest, Salt, Value
from mesh.consensus.quorum import commitment
from mesh.errors import RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, NamespaceRule, pack_value
from mesh.peer import PeerID

REQUEST: Final = "eval-request"
VOTE_COMMIT: Final = "eval-vote-commit"
VOTE: Final = "eval-vote"
KIND: Final = "eval-vote/1"
REQUESTS_PER_OWNER: Final = 4
MAX_VOTES_PER_OWNER: Final = 256
_MAX_VALUE_BYTES: Final = 512


class Request(Value):
    """A model whose worth is asked for; its bytes are served by the record's owner under `model`."""

    architecture: Annotated[str, Field(max_length=32)]
    width: Annotated[int, Field(ge=1, le=4096)]
    model: Digest


class Vote(Value):
    """What a node measured."""

    ppm: Annotated[int, Field(ge=0, le=1_000_000)]
    salt: Salt


def request_id(epoch: int, owner: PeerID, request: Request) -> bytes:
    """What the quorum is drawn for and votes are about."""
    return hashlib.sha256(b"mesh/eval/1" + epoch.to_bytes(8, "big") + owner.multihash + pack_value(request)).digest()


def vote_commitment(genesis: bytes, subnet_id: int, *, epoch: int, owner: PeerID, request: bytes, vote: Vote) -> bytes:
    """Binds the voter, so that another's commit cannot be copied and revealed."""
    return commitment(
        genesis,
        subnet_id,
        epoch=epoch,
        owner=owner,
        kind=KIND,
        target_digest=request,
        salt=vote.salt,
        value=vote.ppm.to_bytes(4, "big"),
    )


def seed_of(draw_hash: bytes, request: bytes) -> int:
    """Names the splits on which a request is measured; unknown before the draw. 63 bits."""
    return int.from_bytes(hashlib.sha256(b"mesh/eval/seed/1" + draw_hash + request).digest()[:8], "big") >> 1


def require_digest_subkey(record: Record, position: BlockPosition | None) -> None:
    """Subkeys are 32 bytes: a predicate."""
    if len(record.subkey) != 32:
        raise RecordRejected("subkey", f"{record.key!r} takes a subkey of 32 bytes, not {len(record.subkey)}")


def rules(max_ttl_s: float) -> Sequence[NamespaceRule]:
    """The namespaces, their schemas and windows."""

    def rule(namespace: str, schema: type[BaseModel], owned: int, during: During) -> NamespaceRule:
        return NamespaceRule(
            namespace,
            schema=schema,
            max_value_bytes=_MAX_VALUE_BYTES,
            max_ttl_s=max_ttl_s,
            max_records_per_owner=owned,
            predicate=(require_digest_subkey, during),
            is_evidence=True,
        )

    return (
        rule(REQUEST, Request, REQUESTS_PER_OWNER, During("claim_commit")),
        rule(VOTE_COMMIT, Commit, MAX_VOTES_PER_OWNER, During("vote_commit")),
        rule(VOTE, Vote, MAX_VOTES_PER_OWNER, During("vote_reveal")),
    )
