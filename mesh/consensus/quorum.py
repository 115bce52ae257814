"""Commitments and the draw of quorums. PURE.

A commitment binds a value to everything that could otherwise be swapped: chain, subnet, epoch, owner, kind, and the
thing the value is about. A quorum is drawn from the epoch's snapshot after the commit, with a block hash nobody knew
then; whoever authors that block could still grind it (mesh/README.md says so).
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgpack

from mesh.chain.types import Snapshot, SubnetNode
from mesh.errors import ConsensusError, LocalProtocolError
from mesh.peer import PeerID

SALT_BYTES: Final = 32
_COMMIT: Final = "mesh/commit/1"
_QUORUM: Final = "mesh/quorum/1"


def commitment(
    genesis: bytes,
    subnet_id: int,
    *,
    epoch: int,
    owner: PeerID,
    kind: str,
    target_digest: bytes,
    salt: bytes,
    value: bytes,
) -> bytes:
    """The 32-byte commitment to `value`.

    `kind` says what sort of thing is committed ("claim", "vote", …), `target_digest` what it is about (b"" when
    nothing). Raises LocalProtocolError when the salt is not 32 bytes: a short one can be guessed, and with it a value
    from a small set.
    """
    if len(salt) != SALT_BYTES:
        raise LocalProtocolError(f"a commitment's salt has {SALT_BYTES} bytes, not {len(salt)}")
    return _hash(
        [_COMMIT, genesis, subnet_id, epoch, owner.multihash, kind, target_digest, salt, value],
    )


def quorum(
    snapshot: Snapshot,
    *,
    genesis: bytes,
    epoch: int,
    claim_commit_digest: bytes,
    draw_hash: bytes,
    claim_owner: PeerID,
    size: int,
) -> tuple[SubnetNode, ...]:
    """The nodes that judge a claim, best rank first: at most `size`, fewer when there are not so many.

    Validators of `epoch` only, never the claim's owner nor a node of the owner's coldkey. Raises
    ConsensusError("claim-owner") when the owner is no node of the snapshot: its coldkey would be unknown.
    """
    owner = snapshot.by_peer(claim_owner)
    if owner is None:
        raise ConsensusError("claim-owner", f"{claim_owner} is no node of subnet {snapshot.subnet_id}")

    def rank(node: SubnetNode) -> tuple[bytes, int]:
        fields = [_QUORUM, genesis, snapshot.subnet_id, epoch, claim_commit_digest, draw_hash, node.node_id]
        return (_hash(fields), node.node_id)

    eligible = [
        node for node in snapshot.validators(epoch) if node.node_id != owner.node_id and node.coldkey != owner.coldkey
    ]
    return tuple(sorted(eligible, key=rank)[: max(size, 0)])


def _hash(fields: list[object]) -> bytes:
    """sha256 of the msgpack array: every field carries its type and length, so no two lists share an encoding."""
    return hashlib.sha256(msgpack.packb(fields, use_bin_type=True)).digest()
