"""Do honest validators agree and get paid, whatever f of n do? mesh.testing.consensus_sim, for many seeds.

    python benchmarks/consensus_sim.py [--row NAME] [--json]

A row is a number of nodes, of seeds and what carries their messages; each seed is one epoch of work from its first
block to its settlement. `post` stands for a network: the product's loop, stores and rules, but no streams, RPC or
routing. `network` is the whole stack on a simulated network. Exit code 1 when anything was violated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mesh.chain.types import ONE
from mesh.testing.consensus_sim import Carrier, Epoch, Found, Scenario, drawn, simulate_consensus


@dataclass(frozen=True)
class Row:
    """What is run."""

    nodes: int
    seeds: int
    carrier: Carrier
    honest: bool = False
    """All of them, instead of scenarios drawn by seed."""


ROWS = {
    "honest-7": Row(7, 20, Carrier.POST, honest=True),
    "honest-7-network": Row(7, 3, Carrier.NETWORK, honest=True),
    "honest-50": Row(50, 2, Carrier.POST, honest=True),
    "drawn-4": Row(4, 200, Carrier.POST),
    "drawn-7": Row(7, 500, Carrier.POST),
    "drawn-7-network": Row(7, 30, Carrier.NETWORK),
    "drawn-13": Row(13, 50, Carrier.POST),
    "drawn-50": Row(50, 5, Carrier.POST),
}


def outcome(found: Found, epoch: Epoch) -> str:
    """What became of an epoch, in two words: whose proposal, and what of it."""
    outlaw = found.scenario.outlaws.get(epoch.proposer)
    who = "honest" if outlaw is None else outlaw.proposing.right.name.lower()
    return f"{who}/{'none' if epoch.submission is None else 'accepted' if epoch.is_accepted else 'slashed'}"


def runs(row: Row) -> Iterator[tuple[int, Found]]:
    """Each seed of a row."""
    for seed in range(row.seeds):
        scenario = Scenario(nodes=row.nodes, proposers=(1,)) if row.honest else drawn(seed, nodes=row.nodes)
        yield seed, simulate_consensus(scenario, seed=seed, carrier=row.carrier)


def measure(name: str) -> dict[str, Any]:
    """Run a row and count."""
    row = ROWS[name]
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    costs, ratios, messages = [], [], []
    began = time.process_time()
    for seed, found in runs(row):
        costs.append(time.process_time() - began)
        wrong += [f"{name}, seed {seed}: {text}" for text in found.violations()]
        messages.append(found.messages)
        for epoch in found.epochs:
            outcomes[outcome(found, epoch)] += 1
            if epoch.is_accepted:
                ratios.append(100 * epoch.ratio / ONE)
        began = time.process_time()
    return {
        "row": name,
        "nodes": row.nodes,
        "carrier": row.carrier.name.lower(),
        "runs": row.seeds,
        "violations": len(wrong),
        "attested_percent": round(statistics.median(ratios), 1) if ratios else None,
        "cpu_s_per_run": round(statistics.median(costs), 3),
        "messages_per_run": round(statistics.median(messages)),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(ROWS), action="append", help="one or more; all without")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
        print(
            "| row | carrier | runs | violations | attested, median | CPU-s a run | messages | proposals by outcome |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    told = []
    for name in options.row or ROWS:
        told.append(one := measure(name))
        if not options.json:
            counts = ", ".join(f"{what} {count}" for what, count in one["outcomes"].items())
            print(
                f"| {name} | {one['carrier']} | {one['runs']} | {one['violations']} | {one['attested_percent']} % "
                f"| {one['cpu_s_per_run']} | {one['messages_per_run']} | {counts} |",
                flush=True,
            )
            for text in one["wrong"]:
                print(f"  {text}", flush=True)
    if options.json:
        print(json.dumps(told))
    sys.exit(any(one["violations"] for one in told))
