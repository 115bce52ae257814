"""What does the DHT survive? The experiments of mesh.testing.scenarios in full size, each with the claim it tests.

    python benchmarks/dht_scenarios.py [--scenario NAME] [--nodes N] [--records N] [--replicas R] [--seed S] [--json]

Exit code 1 when a claim does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from mesh.testing import scenarios
from mesh.testing.scenarios import Eclipse, Finding, Healing, Surrounded
from mesh.testing.world import WorldConfig

CLAIMS: dict[str, str] = {
    "kill": "30 % of the nodes die at once, after the repair 30 % of the rest: >= 99.9 % of the records are found",
    "churn": "10 % of the nodes change every minute for an hour: >= 99.9 % of the unexpired records are found",
    "partition": "halves apart for 10 minutes, both writing: 150 s later 99 % of the ten closest know each other, "
    "and the newest of every record is found",
    "byzantine": "20 % of the nodes lie: >= 99 % of the gets are correct with 3 paths, no forged record is accepted",
    "eclipse": "200 Sybils in 4 IP groups: every bucket keeps honest peers, >= 99 % of the gets are correct",
    "surround": "200 Sybils around 10 keys, closer than any honest node: what was put there before is found by 99 % of "
    "the gets with 3 paths",
}


def run(
    name: str, nodes: int, records: int, seed: int, config: WorldConfig
) -> tuple[bool, Finding | Healing | Eclipse | Surrounded]:
    """One experiment, and whether its claim holds."""
    arguments: dict[str, Any] = {"nodes": nodes, "records": records, "seed": seed, "config": config}
    if name == "kill":
        found = scenarios.kill_twice(**arguments)
        return found.success >= 0.999 and not found.forged, found
    if name == "churn":
        found = scenarios.churn(**arguments)
        return found.success >= 0.999 and not found.forged, found
    if name == "partition":
        healing = scenarios.partition(**arguments)
        return healing.neighbours_after >= 0.99 and healing.gets.success == 1.0, healing
    if name == "byzantine":
        found = scenarios.byzantine(**arguments)
        return found.success >= 0.99 and not found.forged, found
    if name == "surround":
        around = scenarios.surround(**arguments)
        return around.before.success >= 0.99 and not around.after.forged, around
    eclipse = scenarios.eclipse(**arguments)
    return not eclipse.lost_buckets and eclipse.gets.success >= 0.99 and not eclipse.gets.forged, eclipse


def main(
    names: list[str], nodes: int, records: int, seed: int, config: WorldConfig, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run and report each."""
    results: list[dict[str, Any]] = []
    for name in names:
        say(f"{name}: {CLAIMS[name]}")
        began = time.process_time()
        holds, found = run(name, nodes, records, seed, config)
        cpu_s = time.process_time() - began
        results.append({"scenario": name, "holds": holds, "cpu_s": round(cpu_s, 1), **dataclasses.asdict(found)})
        gets = found if isinstance(found, Finding) else found.before if isinstance(found, Surrounded) else found.gets
        verdict = "holds" if holds else "DOES NOT HOLD"
        say(f"  {verdict}: {gets.correct} of {gets.tried} gets correct, {gets.stale} stale, {gets.forged} forged")
        if isinstance(found, Eclipse):
            say(f"  honest peers in the table {found.honest_before} -> {found.honest_after}, Sybils {found.sybils}")
        if isinstance(found, Surrounded):
            since, elsewhere = found.after, found.others
            say(f"  not claimed: of what was put there since, {since.correct} of {since.tried} gets correct")
            say(
                f"  not claimed: of what was put elsewhere since, {elsewhere.correct} of {elsewhere.tried} gets correct"
            )
        if isinstance(found, Healing):
            say(f"  of everybody's ten closest known: {found.neighbours_apart:.1%} -> {found.neighbours_after:.1%}")
        say(f"  {gets.messages} messages, {cpu_s:.1f} CPU-s")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=list(CLAIMS), action="append", help="one or more; all without")
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    quiet = options.json
    if not quiet:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(f"{options.nodes} nodes, {options.records} records, {options.replicas} replicas, seed {options.seed}")
    told = main(
        options.scenario or list(CLAIMS), options.nodes, options.records, options.seed,
        WorldConfig(upkeep=True, replicas=options.replicas),
        (lambda text: print(text, file=sys.stderr)) if quiet else print,
    )  # fmt: skip
    if quiet:
        print(json.dumps(told))
    sys.exit(not all(one["holds"] for one in told))
