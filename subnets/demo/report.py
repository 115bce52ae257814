"""What the demo found, and whether it is what was promised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from subnets.demo.books import EpochBooks

LEAST_GAIN = 0.02
"""Accuracy the judge set must show between the default configuration and the champion."""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node, from the chain's state; amounts in planck."""

    name: str
    peer_id: str
    role: str
    """honest, liar or killed"""
    score: int
    claims_accepted: int
    claims_rejected: int
    stake_before: int
    stake_after: int
    reward_work: int
    reward_proposer: int
    reputation: int


@dataclass
class Report:
    """The demo's result."""

    accuracy_before: float = 0.0
    accuracy_after: float = 0.0
    verified_gain: float = 0.0
    judge_samples: int = 0
    device: str = ""
    rejected_claims: int = 0
    stranger_refused_because: str = ""
    liar_paid_after_rejection: int = 0
    """Planck the liar earned by work in epochs in which its claim was rejected."""
    epochs_settled: int = 0
    epochs_missed: int = 0
    books: list[EpochBooks] = field(default_factory=list)
    nodes: list[NodeRow] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def conserved(self) -> bool:
        """Whether every epoch's books are balanced, and there were some."""
        return bool(self.books) and all(epoch.conserved for epoch in self.books)

    def failures(self, *, epochs: int) -> list[str]:
        """What did not hold, in words; empty when all did."""
        liar = next((row for row in self.nodes if row.role == "liar"), None)
        gain = self.accuracy_after - self.accuracy_before
        checks = [
            (gain >= LEAST_GAIN, f"the served model gained {gain:+.3f} accuracy, less than {LEAST_GAIN}"),
            (self.verified_gain > 0, "no verified gain"),
            (bool(self.stranger_refused_because), "the stranger was not refused"),
            (self.epochs_settled >= epochs, f"only {self.epochs_settled} of {epochs} epochs were settled with rewards"),
            (self.conserved, "the books are not balanced"),
            (liar is not None and liar.claims_rejected > 0, "no claim of the liar was rejected"),
            (liar is not None and liar.claims_accepted == 0, "a claim of the liar was accepted"),
            (self.liar_paid_after_rejection == 0, "the liar was paid in an epoch whose quorum rejected its claim"),
            (
                liar is not None and liar.reputation < max(row.reputation for row in self.nodes),
                "the liar's reputation did not fall",
            ),
            (any(row.role == "killed" for row in self.nodes), "no node was killed and restarted"),
            (any(row.reward_work > 0 for row in self.nodes), "nobody was paid for work"),
        ]
        return [text for held, text in checks if not held]

    def to_json(self) -> dict[str, Any]:
        """The object scripts read; planck as decimal strings."""
        return {
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
            "verified_gain": self.verified_gain,
            "judge_samples": self.judge_samples,
            "device": self.device,
            "rejected_claims": self.rejected_claims,
            "stranger_refused": bool(self.stranger_refused_because),
            "stranger_refused_because": self.stranger_refused_because,
            "epochs_settled": self.epochs_settled,
            "epochs_missed": self.epochs_missed,
            "conserved": self.conserved,
            "nodes": [
                {
                    "name": row.name,
                    "peer_id": row.peer_id,
                    "role": row.role,
                    "score": row.score,
                    "claims_accepted": row.claims_accepted,
                    "claims_rejected": row.claims_rejected,
                    "stake_before": str(row.stake_before),
                    "stake_after": str(row.stake_after),
                    "reward_work": str(row.reward_work),
                    "reward_proposer": str(row.reward_proposer),
                    "reputation": str(row.reputation),
                }
                for row in self.nodes
            ],
            "books": [
                {
                    "epoch": epoch.epoch,
                    "before": str(epoch.before),
                    "after": str(epoch.after),
                    "minted": {cause: str(amount) for cause, amount in sorted(epoch.minted.items())},
                    "burned": {cause: str(amount) for cause, amount in sorted(epoch.burned.items())},
                    "conserved": epoch.conserved,
                }
                for epoch in self.books
            ],
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }
