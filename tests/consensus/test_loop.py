"""Whole epochs on a simulated network and chain: agreement, lies, restarts and a chain that goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.chain.types import Score

from .toy import LABELS, ToySubnet
from .town import Town, in_town

FOUR = LABELS[:4]
ALL = "ada bob cyd dan"


async def everybody(town: Town, *, proposer: str = "ada", liar: str | None = None) -> None:
    await town.found(proposer=proposer)
    for label in town.labels:
        await town.add(label, has_loop=label != liar)
    await town.until(0, 2)


def test_an_epoch_is_agreed_on_settled_and_paid(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        for label, count in (("ada", 1), ("bob", 2), ("cyd", 3)):
            for i in range(count):
                await town.nodes[label].note(f"{label} {i}")
        before = {n.node_id: n.stake_planck for n in town.ledger.subnets[128_001].nodes.values()}
        await town.until(1, 14)
        assert town.attests() == ALL
        submission = town.submission()
        assert submission is not None
        assert submission.scores == (Score(1, 1), Score(2, 2), Score(3, 3))
        for node in town.nodes.values():
            (settled,) = node.settled()
            assert settled.scores == submission.scores
            assert len(settled.evidence.records) == 6
            assert settled.evidence.epoch == 0
        await town.until(2, 0)
        after = {n.node_id: n.stake_planck for n in town.ledger.subnets[128_001].nodes.values()}
        assert after[3] - before[3] > after[2] - before[2] > 0
        assert after[4] == before[4]

    in_town(main, tmp_path)
