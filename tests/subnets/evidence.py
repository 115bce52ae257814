"""Builds the evidence of one epoch of optimization, honest or forged, from really signed records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from mesh.chain.types import BlockRef, NodeClass, Snapshot, SubnetNode
from mesh.consensus.evidence import Commit, epoch_key
from mesh.consensus.quorum import quorum
from mesh.identity import PeerKey
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import pack_value
from mesh.subnet import Evidence
from subnets.optimization.candidate import DEFAULT, Candidate
from subnets.optimization.records import (
    CLAIM,
    CLAIM_COMMIT,
    DEFAULT_CHAMPION,
    VOTE,
    VOTE_COMMIT,
    Champion,
    Claim,
    Vote,
    claim_commitment,
    vote_commitment,
)
from subnets.optimization.score import QUORUM_SIZE

GENESIS = b"\x07" * 32
SUBNET = 128_001
EPOCH = 5
DRAW = b"\x99" * 32
GOOD = DEFAULT.model_copy(update={"lr_micro": 20_000, "batch": 128})


def peer_key(number: int) -> PeerKey:
    return PeerKey.dev(f"optimizer-{number}")


def snapshot_of(count: int, *, shared_coldkey: Sequence[int] = ()) -> Snapshot:
    """Validators 1 … count; those in `shared_coldkey` belong to one owner."""
    nodes = tuple(
        SubnetNode(
            node_id=number,
            coldkey=bytes([1 if number in shared_coldkey else 100 + number]) * 20,
            hotkey=bytes([number]) * 20,
            peer_id=peer_key(number).peer_id,
            bootnode_peer_id=None,
            client_peer_id=None,
            node_class=NodeClass.VALIDATOR,
            start_epoch=0,
            stake_planck=10**20,
            reputation=10**18,
        )
        for number in range(1, count + 1)
    )
    return Snapshot(SUBNET, BlockRef(100, b"\x01" * 32), nodes)


@dataclass
class Case:
    """An epoch in the making."""

    snapshot: Snapshot = field(default_factory=lambda: snapshot_of(6))
    records: list[Record] = field(default_factory=list)
    seq: int = 0

    def add(
        self, node: int, namespace: str, value: BaseModel | bytes, *, subkey: bytes = b"", epoch: int = EPOCH
    ) -> None:
        self.seq += 1
        raw = value if isinstance(value, bytes) else pack_value(value)
        self.records.append(
            sign_record(
                peer_key(node),
                epoch_key(namespace, epoch),
                raw,
                subkey=subkey,
                expiry_ms=2**41,
                seq=self.seq,
                subnet_id=SUBNET,
                genesis=GENESIS,
            )
        )

    def claim(self, node: int, ppm: int, candidate: Candidate = GOOD, *, salt: int = 1) -> Claim:
        return Claim(candidate=candidate, claimed_ppm=ppm, weights=bytes([node]) * 32, salt=bytes([salt]) * 32)

    def claim_id(self, node: int, claim: Claim) -> bytes:
        return claim_commitment(GENESIS, SUBNET, epoch=EPOCH, owner=peer_key(node).peer_id, claim=claim)

    def commit_and_reveal(self, node: int, claim: Claim) -> bytes:
        claim_id = self.claim_id(node, claim)
        self.add(node, CLAIM_COMMIT, Commit(commitment=claim_id))
        self.add(node, CLAIM, claim)
        return claim_id

    def quorum(self, owner: int, claim_id: bytes) -> list[int]:
        members = quorum(
            self.snapshot,
            genesis=GENESIS,
            epoch=EPOCH,
            claim_commit_digest=claim_id,
            draw_hash=DRAW,
            claim_owner=peer_key(owner).peer_id,
            size=QUORUM_SIZE,
        )
        return [member.node_id for member in members]

    def vote_of(
        self, node: int, ppm: int, incumbent_ppm: int = 820_000, incumbent: Champion = DEFAULT_CHAMPION
    ) -> Vote:
        return Vote(candidate_ppm=ppm, incumbent=incumbent, incumbent_ppm=incumbent_ppm, salt=bytes([100 + node]) * 32)

    def vote_commitment(self, node: int, claim_id: bytes, vote: Vote) -> bytes:
        return vote_commitment(GENESIS, SUBNET, epoch=EPOCH, owner=peer_key(node).peer_id, claim_id=claim_id, vote=vote)

    def commit_vote(self, node: int, claim_id: bytes, vote: Vote) -> None:
        self.add(node, VOTE_COMMIT, Commit(commitment=self.vote_commitment(node, claim_id, vote)), subkey=claim_id)

    def reveal_vote(self, node: int, claim_id: bytes, vote: Vote) -> None:
        self.add(node, VOTE, vote, subkey=claim_id)

    def cast(self, node: int, claim_id: bytes, vote: Vote) -> None:
        self.commit_vote(node, claim_id, vote)
        self.reveal_vote(node, claim_id, vote)

    def honest(self, node: int, claimed: int, verified: int, candidate: Candidate = GOOD) -> tuple[bytes, list[int]]:
        """A whole claim with its quorum's votes."""
        claim_id = self.commit_and_reveal(node, self.claim(node, claimed, candidate))
        members = self.quorum(node, claim_id)
        for member in members:
            self.cast(member, claim_id, self.vote_of(member, verified))
        return claim_id, members

    def evidence(self) -> Evidence:
        records = tuple(sorted(self.records, key=lambda record: record.digest))
        return Evidence(EPOCH, SUBNET, GENESIS, self.snapshot, DRAW, records)
