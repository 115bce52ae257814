"""The records this subnet writes, and what binds them together. PURE.

Key                          | subkey   | value        | when (blocks of the epoch, L = 20)
-----------------------------|----------|--------------|-----------------------------------
opt-claim-commit/<epoch>     |          | Commit       | 0-5
opt-claim/<epoch>            |          | Claim        | 8-15
opt-vote-commit/<epoch>      | claim id | Commit       | 8-14
opt-vote/<epoch>             | claim id | Vote         | 16-18
opt-champion/<epoch>         |          | Migrant      | its epoch, short-lived, no evidence

A claim's id is its commitment: it exists before the draw, and the reveal must hash to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import BaseModel, Field

from mesh.chain.windows import BASE_LENGTH, SLACK_BLOCKS
from mesh.consensus.during import During
from mesh.consensus.evidence import Commit, Digest, Salt, Value, no_subkey
from mesh.consensus.quorum import commitment
from mesh.errors import RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, NamespaceRule, Predicate, StoreWindow, pack_value
from mesh.peer import PeerID
from subnets.optimization.candidate import DEFAULT, Candidate

MILLION: Final = 1_000_000
CLAIM_COMMIT: Final = "opt-claim-commit"
CLAIM: Final = "opt-claim"
VOTE_COMMIT: Final = "opt-vote-commit"
VOTE: Final = "opt-vote"
MIGRANT: Final = "opt-champion"
EVIDENCE: Final = (CLAIM_COMMIT, CLAIM, VOTE_COMMIT, VOTE)

KIND_CLAIM: Final = "opt-claim/1"
KIND_VOTE: Final = "opt-vote/1"

MAX_VALUE_BYTES: Final = 1024
MAX_VOTES_PER_OWNER: Final = 256
"""Votes of one node in one epoch: one per claim, so this bounds the nodes of a subnet that can claim at once."""

Ppm = Annotated[int, Field(ge=0, le=MILLION)]


class Claim(Value):
    """What a node claims to have found: a candidate, the accuracy it measured, and the digest of the weights it
    would have served. The weights earn nothing by themselves."""

    candidate: Candidate
    claimed_ppm: Ppm
    weights: Digest
    salt: Salt

    def value(self) -> bytes:
        """The committed part."""
        return pack_value(_Stated(candidate=self.candidate, claimed_ppm=self.claimed_ppm, weights=self.weights))


class _Stated(Value):
    candidate: Candidate
    claimed_ppm: Ppm
    weights: Digest


class Champion(Value):
    """A verified candidate that all serve. The default counts as champion of epoch 0, found by nobody."""

    candidate: Candidate
    epoch: Annotated[int, Field(ge=0, le=2**63 - 1)]
    claim_id: Annotated[bytes, Field(max_length=32)]
    """Empty for the default."""
    owner: Annotated[bytes, Field(max_length=44)]
    """Multihash of the finder's peer id, empty for the default."""
    weights: Annotated[bytes, Field(max_length=32)]
    """The digest (mesh.content) of the weights' safetensors bytes, empty for the default."""
    ppm: Ppm
    """As verified by the quorum; 0 for the default."""


DEFAULT_CHAMPION: Final = Champion(candidate=DEFAULT, epoch=0, claim_id=b"", owner=b"", weights=b"", ppm=0)


class Vote(Value):
    """A verifier's measurement of a claim's candidate and of the champion it would replace, on the drawn splits."""

    candidate_ppm: Ppm
    incumbent: Champion
    incumbent_ppm: Ppm
    salt: Salt

    def value(self) -> bytes:
        """The committed part."""
        return pack_value(
            _Measured(candidate_ppm=self.candidate_ppm, incumbent=self.incumbent, incumbent_ppm=self.incumbent_ppm)
        )


class _Measured(Value):
    candidate_ppm: Ppm
    incumbent: Champion
    incumbent_ppm: Ppm


class Migrant(Value):
    """A candidate for other islands to try. Unverified: whoever takes it measures it for himself."""

    candidate: Candidate
    ppm: Ppm


def claim_commitment(genesis: bytes, subnet_id: int, *, epoch: int, owner: PeerID, claim: Claim) -> bytes:
    """The claim's id. Binds chain, subnet, epoch, owner, candidate, claimed accuracy and weights."""
    return commitment(
        genesis, subnet_id, epoch=epoch, owner=owner, kind=KIND_CLAIM, target_digest=b"", salt=claim.salt,
        value=claim.value(),
    )  # fmt: skip


def vote_commitment(genesis: bytes, subnet_id: int, *, epoch: int, owner: PeerID, claim_id: bytes, vote: Vote) -> bytes:
    """Binds the voter too, so another's commit cannot be copied and revealed as one's own."""
    return commitment(
        genesis, subnet_id, epoch=epoch, owner=owner, kind=KIND_VOTE, target_digest=claim_id, salt=vote.salt,
        value=vote.value(),
    )  # fmt: skip


def verification_seed(draw_hash: bytes, claim_id: bytes) -> int:
    """Names the splits and initial weights of a claim's verification: unknown before the draw block, the same for
    all verifiers. 63 bits."""
    return int.from_bytes(hashlib.sha256(b"mesh/opt/verify/1" + draw_hash + claim_id).digest()[:8], "big") >> 1


def require_claim_subkey(record: Record, position: BlockPosition | None) -> None:
    """Votes carry the id of the claim they are about: a predicate."""
    if len(record.subkey) != 32:
        raise RecordRejected("subkey", f"{record.key!r} takes a claim's id of 32 bytes, not {len(record.subkey)}")


def require_its_epoch(record: Record, position: BlockPosition | None) -> None:
    """Stored only while the epoch it names runs, so that nobody fills stores under names of his choice: a predicate."""
    length = position.length if position is not None else BASE_LENGTH
    StoreWindow(0, length - 1, SLACK_BLOCKS)(record, position)


def rules(*, max_ttl_s: float, migrant_ttl_s: float) -> Sequence[NamespaceRule]:
    """The namespaces, their schemas and windows. `max_ttl_s` bounds evidence, `migrant_ttl_s` champion records."""

    def rule(namespace: str, schema: type[BaseModel], owned: int, ttl_s: float, *asked: Predicate) -> NamespaceRule:
        return NamespaceRule(
            namespace,
            schema=schema,
            max_value_bytes=MAX_VALUE_BYTES,
            max_ttl_s=ttl_s,
            max_records_per_owner=owned,
            predicate=asked,
            is_evidence=namespace in EVIDENCE,
        )

    commits = During("claim_commit")
    return (
        rule(CLAIM_COMMIT, Commit, 1, max_ttl_s, no_subkey, commits),
        rule(CLAIM, Claim, 1, max_ttl_s, no_subkey, During("reveal")),
        rule(VOTE_COMMIT, Commit, MAX_VOTES_PER_OWNER, max_ttl_s, require_claim_subkey, During("vote_commit")),
        rule(VOTE, Vote, MAX_VOTES_PER_OWNER, max_ttl_s, require_claim_subkey, During("vote_reveal")),
        rule(MIGRANT, Migrant, 1, migrant_ttl_s, no_subkey, require_its_epoch),
    )
