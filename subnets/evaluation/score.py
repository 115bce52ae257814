"""What an epoch of evaluation found and whom it pays. PURE, integers only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from mesh.chain.types import ONE, Score
from mesh.consensus.evidence import Commit, epoch_key, read_value
from mesh.consensus.quorum import quorum
from mesh.peer import PeerID
from mesh.subnet import Evidence
from subnets.evaluation.records import (
    REQUEST,
    REQUESTS_PER_OWNER,
    VOTE,
    VOTE_COMMIT,
    Request,
    Vote,
    request_id,
    vote_commitment,
)
from subnets.evaluation.votes import FAULTS, Ballot, Finding, decide, revealed

SCORE_ID: Final = "evaluation/1.0.0"
QUORUM_SIZE: Final = 3
TOLERANCE_PPM: Final = 2_000
"""All verifiers score the same weights on the same samples, so only rounding between kinds of machines differs: two
samples of a thousand."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One request and what its quorum found."""

    request_id: bytes
    owner: PeerID
    request: Request
    finding: Finding


def score(evidence: Evidence) -> tuple[Score, ...]:
    """One share for each vote that agreed with its quorum, less one for each fault."""
    shares: dict[int, int] = defaultdict(int)
    for one in evaluated(evidence):
        for node_id, ballot in one.finding.ballots:
            shares[node_id] += 1 if ballot is Ballot.AGREED else -1 if ballot in FAULTS else 0
    return tuple(Score(node_id, ONE * count) for node_id, count in sorted(shares.items()) if count > 0)


def evaluated(evidence: Evidence) -> tuple[Evaluated, ...]:
    """All requests of the epoch with their findings, by request id. Records that do not belong are ignored; of an
    owner with too many requests the first few by id count."""
    nodes = {node.peer_id: node for node in evidence.snapshot.nodes}
    requests: dict[PeerID, dict[bytes, Request]] = defaultdict(dict)
    commits: dict[tuple[PeerID, bytes], list[bytes]] = defaultdict(list)
    votes: dict[tuple[PeerID, bytes], list[Vote]] = defaultdict(list)
    for record in evidence.records:
        owner = record.owner
        if (
            record.tombstone
            or owner not in nodes
            or (record.subnet_id, record.genesis) != (evidence.subnet_id, evidence.genesis)
        ):
            continue
        if record.key == epoch_key(REQUEST, evidence.epoch):
            if (request := read_value(Request, record)) and request.model == record.subkey:
                requests[owner][request_id(evidence.epoch, owner, request)] = request
        elif record.key == epoch_key(VOTE_COMMIT, evidence.epoch):
            if commit := read_value(Commit, record):
                commits[owner, record.subkey].append(commit.commitment)
        elif record.key == epoch_key(VOTE, evidence.epoch) and (vote := read_value(Vote, record)):
            votes[owner, record.subkey].append(vote)

    def judge(owner: PeerID, name: bytes, request: Request) -> Evaluated:
        members = quorum(
            evidence.snapshot,
            genesis=evidence.genesis,
            epoch=evidence.epoch,
            claim_commit_digest=name,
            draw_hash=evidence.draw_hash,
            claim_owner=owner,
            size=QUORUM_SIZE,
        )

        def value(voter: PeerID) -> int | Ballot:
            def commitment_of(vote: Vote) -> bytes:
                return vote_commitment(
                    evidence.genesis, evidence.subnet_id, epoch=evidence.epoch, owner=voter, request=name, vote=vote
                )

            found = revealed(commits.get((voter, name), []), votes.get((voter, name), []), commitment_of)
            return found.ppm if isinstance(found, Vote) else found

        finding = decide(
            [member.node_id for member in members],
            {member.node_id: value(member.peer_id) for member in members},
            tolerance=TOLERANCE_PPM,
        )
        return Evaluated(name, owner, request, finding)

    found = [
        judge(owner, name, request)
        for owner, owned in requests.items()
        for name, request in sorted(owned.items())[:REQUESTS_PER_OWNER]
    ]
    return tuple(sorted(found, key=lambda one: one.request_id))
