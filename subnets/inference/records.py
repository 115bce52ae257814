"""The records of the inference subnet. PURE.

Key                   | value   | when (blocks of the epoch, L = 20)
----------------------|---------|-----------------------------------
infer-commit/<epoch>  | Commit  | 8-14
infer-probe/<epoch>   | Answer  | 16-18
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from mesh.consensus.during import During
from mesh.consensus.evidence import Commit, Digest, Salt, Value, no_subkey
from mesh.consensus.quorum import commitment
from mesh.kad.validator import NamespaceRule
from mesh.peer import PeerID

COMMIT: Final = "infer-commit"
PROBE: Final = "infer-probe"
KIND: Final = "infer-probe/1"


class Answer(Value):
    """What a node's model says to the epoch's drawn inputs."""

    model: Digest
    """The digest (mesh.content) of its safetensors bytes."""
    labels: Digest
    """sha256 of the labels, one byte each."""
    salt: Salt


def answer_commitment(genesis: bytes, subnet_id: int, *, epoch: int, owner: PeerID, answer: Answer) -> bytes:
    """Binds the owner, so that another's commit cannot be copied and revealed."""
    return commitment(
        genesis,
        subnet_id,
        epoch=epoch,
        owner=owner,
        kind=KIND,
        target_digest=answer.model,
        salt=answer.salt,
        value=answer.labels,
    )


def probe_seed(draw_hash: bytes) -> int:
    """Names the epoch's inputs; unknown before the draw. 63 bits."""
    return int.from_bytes(hashlib.sha256(b"mesh/infer/probe/1" + draw_hash).digest()[:8], "big") >> 1


def rules(max_ttl_s: float) -> Sequence[NamespaceRule]:
    """The namespaces, their schemas and windows."""
    return [
        NamespaceRule(
            namespace,
            schema=schema,
            max_value_bytes=256,
            max_ttl_s=max_ttl_s,
            max_records_per_owner=1,
            predicate=(no_subkey, during),
            is_evidence=True,
        )
        for namespace, schema, during in (
            (COMMIT, Commit, During("vote_commit")),
            (PROBE, Answer, During("vote_reveal")),
        )
    ]
