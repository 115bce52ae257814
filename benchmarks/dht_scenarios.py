"""What does a DHT of simulated nodes outlive? The five claims of mesh.testing.scenarios, in full.

    python benchmarks/dht_scenarios.py [--scenario kills|churn|partition|byzantine|eclipse|all] [--nodes N]
        [--records N] [--replicas R] [--paths D] [--seed S] [--json]

One line (or JSON object) per scenario: whether the claim holds, what was counted, CPU seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mesh.kad.lookup import LookupConfig
from mesh.testing.scenarios import SCENARIOS, Claim


def main(arguments: argparse.Namespace) -> int:
    """Run, print; 1 when a claim does not hold."""
    names = list(SCENARIOS) if arguments.scenario == "all" else [arguments.scenario]
    failed = 0
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        for name in names:
            task = progress.add_task(name, total=None)
            options: dict[str, Any] = {
                option: getattr(arguments, option)
                for option in ("nodes", "records", "replicas", "seed")
                if getattr(arguments, option) is not None
            }
            if arguments.paths is not None and name == "byzantine":
                options["lookup"] = LookupConfig.model_validate({"paths": arguments.paths})
            before = time.process_time()
            claim = SCENARIOS[name](**options)
            report(claim, time.process_time() - before, as_json=arguments.json)
            failed += not claim.holds
            progress.remove_task(task)
    return int(failed > 0)


def report(claim: Claim, cpu_s: float, *, as_json: bool) -> None:
    """One scenario's result."""
    if as_json:
        print(json.dumps({**dataclasses.asdict(claim), "cpu_s": round(cpu_s, 2)}), flush=True)
        return
    figures = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in claim.figures.items())
    print(f"{'holds' if claim.holds else 'FAILS'}: {claim.claim}\n    {figures}; {cpu_s:.1f} CPU-s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="all")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--records", type=int)
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--paths", type=int, help="disjoint paths of a lookup (byzantine)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--json", action="store_true")
    sys.exit(main(parser.parse_args()))
