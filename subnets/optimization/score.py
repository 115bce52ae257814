"""What an epoch of optimization was worth. PURE, integers only: every node computes the same from the same evidence.

A claim is accepted when its commit is in evidence and matches, the quorum that the draw names revealed a majority of
votes that agree within the tolerance, and the claimed accuracy lies within the tolerance of their median. What it
gained is the median difference to the incumbent champion, measured by the same voters on the same splits. Whoever
overclaims, or reveals something else than was committed, gets no score at all and so loses reputation on chain as an
absent node does.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from mesh.chain.types import ONE, Score, SubnetNode
from mesh.consensus.evidence import Commit, epoch_key, read_value
from mesh.consensus.quorum import quorum
from mesh.peer import PeerID
from mesh.subnet import Evidence
from subnets.evaluation.votes import FAULTS, Ballot, Finding, decide, lower_median, revealed
from subnets.optimization.records import (
    CLAIM,
    CLAIM_COMMIT,
    DEFAULT_CHAMPION,
    MILLION,
    VOTE,
    VOTE_COMMIT,
    Champion,
    Claim,
    Vote,
    claim_commitment,
    vote_commitment,
)

SCORE_ID: Final = "optimization/1.1.0"
"""Raise it with every change below: nodes abstain from a score id they do not know."""

QUORUM_SIZE: Final = 3

TOLERANCE_PPM: Final = 60_000
"""Between a claim and its quorum's median, and between votes. Measured on digits (60 splits, 1 thread, torch 2.13):
one split of 500 samples has sd 28,100 ppm at the default (accuracy .82), 10,200 at .93 and 8,400 at .96; a
verification (mean of two splits and trainings) 23,500, 9,500 and 6,800. So it is more than 5 sd of a split for the
candidates that get claimed (.93 and better) and 2.5 sd of a verification for the default itself, which nobody gains
by claiming. An overclaim of 100,000 ppm exceeds it by 4 sd of a verification at .93."""

MIN_GAIN_PPM: Final = 7_000
"""A smaller gain counts as none: paying for noise invites it. One sd of the paired difference between two candidates of
equal worth, measured as above, is 7,000 ppm."""

VOTE_PPM: Final = 10_000
"""Score for each vote that agreed: what a gain of one percentage point earns."""

CLAIM_PPM: Final = 1_000
"""Score for an accepted claim whatever it gained: the work was real."""

_SCALE: Final = ONE // MILLION


class Status(enum.Enum):
    """What became of a claim."""

    ACCEPTED = "accepted"
    OVERCLAIM = "overclaim"
    """More than the tolerance above the quorum's median: no score this epoch."""
    UNDERCLAIM = "underclaim"
    """More than the tolerance below: not accepted, no penalty."""
    UNDECIDED = "undecided"
    """No majority of the quorum revealed votes that agree."""
    UNCOMMITTED = "uncommitted"
    """No commit in evidence: it may have been made after the draw."""
    RECOMMITTED = "recommitted"
    """More than one commit in evidence: its owner could have chosen after the draw. No score this epoch."""
    MISMATCH = "mismatch"
    """What was revealed is not what was committed: no score this epoch."""
    UNREVEALED = "unrevealed"
    """Committed, never revealed."""


PENALIZED: Final = frozenset({Status.OVERCLAIM, Status.MISMATCH, Status.RECOMMITTED})
"""Claims that cost their owner all score of the epoch: it lied, or signed twice and so robbed its verifiers."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim, judged. Fields that were never known are None or empty."""

    node_id: int
    owner: PeerID
    status: Status
    claim_id: bytes = b""
    claim: Claim | None = None
    median_ppm: int | None = None
    incumbent_ppm: int | None = None
    gain_ppm: int = 0
    """Verified gain over the incumbent; 0 unless accepted."""
    paid_ppm: int = 0
    """This claim's share of the epoch's gain, see `_share_gains`."""
    ballots: tuple[tuple[int, Ballot], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that follows from an epoch's evidence."""

    epoch: int
    verdicts: tuple[Verdict, ...]
    """By node id, at most one per node."""
    incumbent: Champion
    """Champion before this epoch, as most voters named it."""
    champion: Champion
    """Champion after it: the accepted claim of highest median that gained, else the incumbent."""
    scores: tuple[Score, ...]

    @property
    def accepted(self) -> tuple[Verdict, ...]:
        """Accepted claims."""
        return tuple(v for v in self.verdicts if v.status is Status.ACCEPTED)

    @property
    def rejected(self) -> tuple[Verdict, ...]:
        """Claims that were revealed and not accepted."""
        return tuple(v for v in self.verdicts if v.status not in (Status.ACCEPTED, Status.UNREVEALED))

    @property
    def improved(self) -> bool:
        """Whether this epoch made a new champion."""
        return self.champion != self.incumbent


def score(evidence: Evidence) -> tuple[Score, ...]:
    """The subnet's scoring function."""
    return outcome(evidence).scores


def outcome(evidence: Evidence) -> Outcome:
    """Judge all claims of an epoch. Records that are not of this epoch, of no node of the snapshot, or malformed are
    ignored: nobody can make it raise."""
    nodes = {node.peer_id: node for node in evidence.snapshot.nodes}
    book = _Book(evidence, nodes)
    judged = sorted((_judge(evidence, book, node) for node in book.claimants()), key=lambda v: v[0].node_id)
    incumbent = _most_named(vote.incumbent for _, votes in judged for vote in votes.values())
    coldkeys = {node.node_id: node.coldkey for node in nodes.values()}
    verdicts = _share_gains([_with_gain(verdict, votes, incumbent) for verdict, votes in judged], coldkeys)
    best = max(
        (v for v in verdicts if v.status is Status.ACCEPTED and v.gain_ppm > 0),
        key=lambda v: (v.median_ppm or 0, v.claim_id),  # the id decides a tie alike everywhere
        default=None,
    )
    champion = incumbent
    if best is not None and best.claim is not None and best.median_ppm is not None:
        champion = Champion(
            candidate=best.claim.candidate,
            epoch=evidence.epoch,
            claim_id=best.claim_id,
            owner=best.owner.multihash,
            weights=best.claim.weights,
            ppm=best.median_ppm,
        )
    return Outcome(evidence.epoch, verdicts, incumbent, champion, _scores(verdicts))


class _Book:
    """The evidence, sorted by kind and owner; of the right epoch, subnet and chain only."""

    def __init__(self, evidence: Evidence, nodes: Mapping[PeerID, SubnetNode]) -> None:
        self.nodes = nodes
        self.claim_commits: dict[PeerID, set[bytes]] = defaultdict(set)
        self.claims: dict[PeerID, list[Claim]] = defaultdict(list)
        self.vote_commits: dict[tuple[PeerID, bytes], set[bytes]] = defaultdict(set)
        self.votes: dict[tuple[PeerID, bytes], list[Vote]] = defaultdict(list)
        for record in evidence.records:
            if (
                record.tombstone
                or record.subnet_id != evidence.subnet_id
                or record.genesis != evidence.genesis
                or record.owner not in nodes
            ):
                continue
            if record.key == epoch_key(CLAIM_COMMIT, evidence.epoch):
                if commit := read_value(Commit, record):
                    self.claim_commits[record.owner].add(commit.commitment)
            elif record.key == epoch_key(CLAIM, evidence.epoch):
                if claim := read_value(Claim, record):
                    self.claims[record.owner].append(claim)
            elif record.key == epoch_key(VOTE_COMMIT, evidence.epoch):
                if commit := read_value(Commit, record):
                    self.vote_commits[record.owner, record.subkey].add(commit.commitment)
            elif record.key == epoch_key(VOTE, evidence.epoch) and (vote := read_value(Vote, record)):
                self.votes[record.owner, record.subkey].append(vote)

    def claimants(self) -> list[SubnetNode]:
        """Nodes that committed or revealed a claim."""
        return [node for peer, node in self.nodes.items() if peer in self.claim_commits or peer in self.claims]


def _judge(evidence: Evidence, book: _Book, node: SubnetNode) -> tuple[Verdict, dict[int, Vote]]:
    """A node's claim and the votes on it that agreed, by node id."""
    owner = node.peer_id
    commits, claims = book.claim_commits.get(owner, set()), book.claims.get(owner, [])
    if not claims:
        return Verdict(node.node_id, owner, Status.UNREVEALED), {}
    if not commits:
        return Verdict(node.node_id, owner, Status.UNCOMMITTED, claim=claims[0]), {}
    if len(commits) > 1:
        return Verdict(node.node_id, owner, Status.RECOMMITTED, claim=claims[0]), {}
    (claim_id,) = commits
    claim = next((one for one in claims if _claim_id(evidence, owner, one) == claim_id), None)
    if claim is None:
        return Verdict(node.node_id, owner, Status.MISMATCH, claim_id, claims[0]), {}
    members = quorum(
        evidence.snapshot,
        genesis=evidence.genesis,
        epoch=evidence.epoch,
        claim_commit_digest=claim_id,
        draw_hash=evidence.draw_hash,
        claim_owner=owner,
        size=QUORUM_SIZE,
    )
    votes = {member.node_id: _vote(evidence, book, member.peer_id, claim_id) for member in members}
    finding = decide(
        [member.node_id for member in members],
        {n: v.candidate_ppm if isinstance(v, Vote) else v for n, v in votes.items()},
        tolerance=TOLERANCE_PPM,
    )
    status = _status(claim, finding)
    verdict = Verdict(node.node_id, owner, status, claim_id, claim, finding.median, ballots=finding.ballots)
    agreed = finding.having(Ballot.AGREED)
    return verdict, {n: v for n, v in votes.items() if n in agreed and isinstance(v, Vote)}


def _claim_id(evidence: Evidence, owner: PeerID, claim: Claim) -> bytes:
    return claim_commitment(evidence.genesis, evidence.subnet_id, epoch=evidence.epoch, owner=owner, claim=claim)


def _vote(evidence: Evidence, book: _Book, voter: PeerID, claim_id: bytes) -> Vote | Ballot:
    """The vote that counts, or why none does."""

    def commitment_of(vote: Vote) -> bytes:
        return vote_commitment(
            evidence.genesis, evidence.subnet_id, epoch=evidence.epoch, owner=voter, claim_id=claim_id, vote=vote
        )

    commits = book.vote_commits.get((voter, claim_id), set())
    return revealed(commits, book.votes.get((voter, claim_id), []), commitment_of)


def _status(claim: Claim, finding: Finding) -> Status:
    if finding.median is None:
        return Status.UNDECIDED
    if claim.claimed_ppm > finding.median + TOLERANCE_PPM:
        return Status.OVERCLAIM
    if claim.claimed_ppm < finding.median - TOLERANCE_PPM:
        return Status.UNDERCLAIM
    return Status.ACCEPTED


def _most_named(champions: Iterable[Champion]) -> Champion:
    """The incumbent that a strict majority of the agreeing votes names; the default when none does, which replaces
    nobody's champion (its epoch is 0) and from which no gain is counted that the same votes did not measure."""
    named = list(champions)
    for champion in named:
        if 2 * named.count(champion) > len(named):
            return champion
    return DEFAULT_CHAMPION


def _with_gain(verdict: Verdict, votes: Mapping[int, Vote], incumbent: Champion) -> Verdict:
    """The claim's gain over the incumbent, from the votes that measured that incumbent; a majority of the agreeing
    votes must have."""
    measured = [vote for vote in votes.values() if vote.incumbent == incumbent]
    if verdict.median_ppm is None or 2 * len(measured) <= len(votes):
        return verdict
    incumbent_ppm = lower_median([vote.incumbent_ppm for vote in measured])
    difference = lower_median([vote.candidate_ppm - vote.incumbent_ppm for vote in measured])
    gain = difference if verdict.status is Status.ACCEPTED and difference >= MIN_GAIN_PPM else 0
    return replace(verdict, incumbent_ppm=incumbent_ppm, gain_ppm=gain)


def _share_gains(verdicts: Iterable[Verdict], coldkeys: Mapping[int, bytes]) -> tuple[Verdict, ...]:
    """What an epoch gained is paid once: the best gain, shared in proportion among those who gained, one claim of each
    coldkey. So nothing is earned by claiming one discovery twice, a hair apart or under several names of one owner."""
    found = list(verdicts)
    best: dict[bytes, Verdict] = {}
    for verdict in found:
        owner = coldkeys[verdict.node_id]
        if verdict.gain_ppm and (owner not in best or verdict.gain_ppm > best[owner].gain_ppm):
            best[owner] = verdict
    total = sum(verdict.gain_ppm for verdict in best.values())
    most = max((verdict.gain_ppm for verdict in best.values()), default=0)
    counted = {verdict.node_id for verdict in best.values()}
    return tuple(replace(v, paid_ppm=v.gain_ppm * most // total) if v.node_id in counted else v for v in found)


def _scores(verdicts: Iterable[Verdict]) -> tuple[Score, ...]:
    earned: dict[int, int] = defaultdict(int)
    shares: dict[int, int] = defaultdict(int)
    barred: set[int] = set()
    for verdict in verdicts:
        if verdict.status is Status.ACCEPTED:
            earned[verdict.node_id] += CLAIM_PPM + verdict.paid_ppm
        elif verdict.status in PENALIZED:
            barred.add(verdict.node_id)
        for node_id, ballot in verdict.ballots:
            shares[node_id] += 1 if ballot is Ballot.AGREED else -1 if ballot in FAULTS else 0
    for node_id, count in shares.items():
        earned[node_id] += VOTE_PPM * max(count, 0)
    return tuple(
        Score(node_id, ppm * _SCALE) for node_id, ppm in sorted(earned.items()) if ppm > 0 and node_id not in barred
    )
