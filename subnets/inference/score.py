"""Who served the right model in an epoch. PURE, integers only.

All validators answer the same inputs, drawn from a block. What more than half of them say, with the same model, is
right; each of those gets one share. Without such a majority nobody is paid.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from mesh.chain.types import ONE, Score
from mesh.consensus.evidence import Commit, epoch_key, read_value
from mesh.peer import PeerID
from mesh.subnet import Evidence
from subnets.evaluation.votes import revealed
from subnets.inference.records import COMMIT, PROBE, Answer, answer_commitment

SCORE_ID: Final = "inference/1.0.0"


def score(evidence: Evidence) -> tuple[Score, ...]:
    """One share for each validator that answered as the majority did."""
    validators = evidence.snapshot.validators(evidence.epoch)
    commits: dict[PeerID, list[bytes]] = defaultdict(list)
    answers: dict[PeerID, list[Answer]] = defaultdict(list)
    for record in evidence.records:
        if record.tombstone or (record.subnet_id, record.genesis) != (evidence.subnet_id, evidence.genesis):
            continue
        if record.key == epoch_key(COMMIT, evidence.epoch):
            if commit := read_value(Commit, record):
                commits[record.owner].append(commit.commitment)
        elif record.key == epoch_key(PROBE, evidence.epoch) and (answer := read_value(Answer, record)):
            answers[record.owner].append(answer)

    said: dict[int, tuple[bytes, bytes]] = {}
    for node in validators:
        owner = node.peer_id

        def commitment_of(answer: Answer, owner: PeerID = owner) -> bytes:
            return answer_commitment(
                evidence.genesis, evidence.subnet_id, epoch=evidence.epoch, owner=owner, answer=answer
            )

        found = revealed(commits.get(owner, []), answers.get(owner, []), commitment_of)
        if isinstance(found, Answer):
            said[node.node_id] = (found.model, found.labels)
    right = [what for what, count in Counter(said.values()).items() if 2 * count > len(validators)]
    return tuple(Score(node_id, ONE) for node_id, what in sorted(said.items()) if what in right)
