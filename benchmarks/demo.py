"""What does a node of the demo cost? Seconds per phase, CPU seconds and peak memory of every process.

Runs `mesh demo --json` once and watches its processes from outside. Run: python benchmarks/demo.py [mesh demo options]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass

import psutil

SAMPLE_S = 0.5


@dataclass
class Usage:
    """Of one process, up to the last sample it was seen in."""

    kind: str
    cpu_s: float = 0.0
    rss_mib: float = 0.0


def kind_of(command: list[str]) -> str:
    """What a process of the demo is, by its command line."""
    if "mesh.worker_main" in command:
        return "compute worker"
    for word, kind in (("server", "node"), ("dht", "bootnode"), ("chain", "chain")):
        if command[2:4] == ["mesh.cli", word]:
            return kind
    return "demo itself"


def watch(demo: subprocess.Popen[str]) -> dict[int, Usage]:
    """Sample the demo and its descendants until it ends."""
    seen: dict[int, Usage] = {}
    root = psutil.Process(demo.pid)
    while demo.poll() is None:
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for process in processes:
            try:
                usage = seen.setdefault(process.pid, Usage(kind_of(process.cmdline())))
                times = process.cpu_times()
                usage.cpu_s = times.user + times.system
                usage.rss_mib = max(usage.rss_mib, process.memory_info().rss / 2**20)
            except psutil.Error:
                continue
        try:
            demo.wait(SAMPLE_S)
        except subprocess.TimeoutExpired:
            continue
    return seen


def main() -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "mesh.cli", "demo", "--json", "--data-dir", folder, *sys.argv[1:]]
        demo = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        seen = watch(demo)
        output = demo.communicate()[0]
    if demo.returncode != 0:
        sys.exit(demo.returncode)
    phases = json.loads(output)["seconds"]
    for name, seconds in phases.items():
        print(f"{seconds:8.1f} s  {name}")
    print(f"{sum(phases.values()):8.1f} s  in all")
    by_kind: dict[str, list[Usage]] = defaultdict(list)
    for usage in seen.values():
        by_kind[usage.kind].append(usage)
    print(f"{'process':<16} {'count':>5} {'CPU-s median':>13} {'CPU-s most':>11} {'MiB median':>11} {'MiB most':>9}")
    for kind, usages in sorted(by_kind.items()):
        cpu, rss = [u.cpu_s for u in usages], [u.rss_mib for u in usages]
        print(
            f"{kind:<16} {len(usages):>5} {statistics.median(cpu):>13.1f} {max(cpu):>11.1f} "
            f"{statistics.median(rss):>11.0f} {max(rss):>9.0f}"
        )
    network, compute = (sum(u.cpu_s for u in by_kind[kind]) for kind in ("node", "compute worker"))
    print(
        f"network share: {network / (network + compute):.0%} of the nodes' CPU is spent in the processes that hold "
        "network, DHT, consensus and chain client (their start included), the rest in compute workers"
    )


if __name__ == "__main__":
    main()
