"""What do a put, a get and a join cost in hivemind's DHT, in py-libp2p's KadDHT and in mesh's, side by side?

All nodes of a peer live in one process on loopback, with real sockets (hivemind has a p2pd beside each node besides);
keys, values, owners and getters are the same for all. The peers' rounds are interleaved, so that what else the machine
does hits all alike. Wall times are over all operations of all rounds; CPU-ms per operation is that of all processes,
both ends of every message, user and system, the median over rounds; what the peer does in the background counts, and is
measured by itself, too (idle). Success is the part of the operations that did what was asked: as many replicas as asked
for, a value found, at least 20 peers known after a join.

    python benchmarks/dht_vs_peers.py [--nodes 32] [--peers hivemind,kad-dht,mesh] [--rounds 3] [--kill] [--json]

hivemind gets a virtual environment of its own under --env-dir (about 1.2 GB, made at the first run). A peer that cannot
be measured has null figures, and its reason is on standard error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peers.children import PEERS_DIR, ROOT, Child, Gone, Unmeasured, hivemind_python, machine, progress
from peers.dht_ops import EXTRA, OPS

SOURCES: Final = {
    "hivemind": ("dht_hivemind.py", ()),
    "kad-dht": ("dht_kad_dht.py", ()),
    "mesh": ("dht_mesh.py", ()),
    "mesh-libp2p": ("dht_mesh.py", ("libp2p",)),
}
COUNTS: Final = {
    "put": 30, "put_20": 15, "get_first": 30, "get_latest": 30, "put_many": 3, "get_many": 3, "join": 3,
    "put_cold": 10, "get_cold": 10, "get_after_kill": 30,
}  # fmt: skip
"""Operations of a round."""
WARM: Final = 4
"""Operations of each kind, by node, before any is counted. KadDHT's nodes are all connected when they have joined, and
it takes half a second for each: two suffice."""
QUICK: Final = 3
"""By how much fewer with --quick."""
START_S: Final = 600.0
OP_S: Final = 600.0
IDLE_S: Final = 5.0
FIGURES: Final = ("p50_ms", "p95_ms", "cpu_ms", "success")
PER_NODE: Final = "rss_mb_per_node"


@dataclass
class Peer:
    """A peer whose nodes run."""

    name: str
    child: Child
    what: str
    lacks: dict[str, str]
    rss_mb_per_node: float
    rss_mb_at_end: float = 0.0
    idle_cpu_ms_per_s: float = 0.0
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    gone: str = ""

    def measure(self, op: str, count: int) -> None:
        """One round of one operation."""
        if self.gone or op in self.lacks:
            return
        before = self.child.cpu_s()
        try:
            self.child.tell(op=op, count=count)
            answer = self.child.hear(OP_S)
        except Gone as error:
            self.gone = str(error)
            progress(f"{self.name}: {op}: {error}")
            return
        made = max(1, len(answer["times_ms"]))
        self.cpu_ms.setdefault(op, []).append((self.child.cpu_s() - before) * 1e3 / made)
        self.times_ms.setdefault(op, []).extend(answer["times_ms"])
        self.done[op] = self.done.get(op, 0) + answer["ok"]

    def warm(self, op: str, count: int) -> None:
        """Operations that nobody counts."""
        if not self.gone and op not in self.lacks:
            self.child.tell(op=op, count=count)
            self.child.hear(OP_S)

    def row(self, op: str) -> dict[str, Any]:
        """The figures of an operation."""
        times = sorted(self.times_ms.get(op, ()))
        if not times:
            note = self.lacks.get(op, self.gone)
            return {
                "peer": self.name,
                "op": op,
                **dict.fromkeys(("p50_ms", "p95_ms", "cpu_ms", "success")),
                "note": note,
            }
        cpu = self.cpu_ms[op]
        return {
            "peer": self.name,
            "op": op,
            "p50_ms": round(statistics.median(times), 2),
            "p95_ms": round(times[min(len(times) - 1, len(times) * 95 // 100)], 2),
            "cpu_ms": round(statistics.median(cpu), 2),
            "success": round(self.done[op] / len(times), 4),
            "cpu_ms_spread": [round(min(cpu), 2), round(max(cpu), 2)],
            "n": len(times),
            "note": "",
        }


def start(name: str, nodes: int, env_dir: Path, stack: ExitStack) -> Peer:
    """All nodes of a peer, joined. Raises Unmeasured."""
    script, arguments = SOURCES[name]
    python = hivemind_python(env_dir) if name == "hivemind" else sys.executable
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    child = Child([python, str(PEERS_DIR / script), str(nodes), *arguments], log)
    stack.callback(child.close)
    progress(f"{name}: {nodes} nodes join ...")
    hello = child.hear(START_S)
    return Peer(name, child, hello["what"], hello["lacks"], round(child.rss_bytes() / nodes / 2**20, 1))


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Start all, measure in turns, report."""
    divisor = QUICK if options.quick else 1
    with ExitStack() as stack:
        peers: list[Peer] = []
        missing: dict[str, str] = {}
        for name in options.peers.split(","):
            try:
                peers.append(start(name, options.nodes, options.env_dir, stack))
            except Unmeasured as error:
                missing[name] = str(error)
                progress(f"{name}: {error}")
        loads = [os.getloadavg()[0]]
        for peer in peers:
            before = peer.child.cpu_s()
            time.sleep(IDLE_S)
            peer.idle_cpu_ms_per_s = round((peer.child.cpu_s() - before) * 1e3 / IDLE_S, 1)
        for peer in peers:  # before anything else: channels are not open, nothing is cached
            peer.measure("put_cold" if "put_cold" not in peer.lacks else "put_20", COUNTS["put_cold"])
            peer.measure("get_cold", COUNTS["get_cold"])
        for op in ("put", "put_20", "get_latest", "put_20"):  # connections between nodes are made on first use
            for peer in peers:
                peer.warm(op, max(1, (2 if peer.name == "kad-dht" else WARM) * options.nodes // divisor))
        progress("warm")
        for number in range(2 * options.rounds):
            # Joins come last: the nodes that joined leave again, and KadDHT's gets do not get over peers that left.
            for op in OPS[:-1] if number < options.rounds else OPS[-1:]:
                turn = number % max(1, len(peers))
                for peer in peers[turn:] + peers[:turn]:
                    peer.measure(op, max(1, COUNTS[op] // divisor))
            loads.append(os.getloadavg()[0])
            progress(f"round {number + 1} of {2 * options.rounds} done, load {loads[-1]:.1f}")
        if options.kill:
            for peer in peers:
                if not peer.gone:
                    peer.child.tell(op="kill", part=0.2)
                    peer.child.hear(OP_S)
                    peer.measure("get_after_kill", COUNTS["get_after_kill"])
        for peer in peers:
            peer.rss_mb_at_end = (
                round(peer.child.rss_bytes() / max(1, options.nodes) / 2**20, 1) if not peer.gone else 0.0
            )
        rows = [peer.row(op) for op in (*OPS, *EXTRA) for peer in peers if op in OPS or op in peer.times_ms]
        rows += [
            {"peer": name, "op": op, **dict.fromkeys(FIGURES), "note": why}
            for name, why in missing.items()
            for op in OPS
        ]
        return {
            "rows": rows,
            "nodes": options.nodes,
            "rounds": options.rounds,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "python": platform.python_version(),
            "load": [round(load, 1) for load in loads],
            "peers": {
                peer.name: {
                    "what": peer.what,
                    PER_NODE: peer.rss_mb_per_node,
                    "rss_mb_per_node_at_end": peer.rss_mb_at_end,
                    "idle_cpu_ms_per_s": peer.idle_cpu_ms_per_s,
                }
                for peer in peers
            },
        }


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    about, loads = report["machine"], report["load"]
    lines = [
        f"{report['date']}, {about['cpu']}, {about['cores']} cores, {about['system']}, Python {report['python']}; "
        f"{report['nodes']} nodes, {report['rounds']} rounds; load {min(loads)} to {max(loads)}, these included",
        "",
    ]
    lines += [
        f"- {name}: {peer['what']}; {peer[PER_NODE]} MiB a node at first, "
        f"{peer['rss_mb_per_node_at_end']} at the end; idle {peer['idle_cpu_ms_per_s']} CPU-ms/s in all"
        for name, peer in report["peers"].items()
    ]
    lines += [
        "",
        "| op | peer | p50 ms | p95 ms | CPU-ms | least–most | success |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        if row["p50_ms"] is None:
            lines.append(f"| {row['op']} | {row['peer']} | - | - | - | - | {row['note']} |")
            continue
        low, high = row["cpu_ms_spread"]
        success = f"{row['success']:.1%} of {row['n']}"
        cells = (row["op"], row["peer"], row["p50_ms"], row["p95_ms"], row["cpu_ms"], f"{low}–{high}", success)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--peers", default="hivemind,kad-dht,mesh")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kill", action="store_true", help="kill 20 %% of the nodes at the end, and get")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--env-dir", type=Path, default=ROOT / ".bench")
    chosen = parser.parse_args()
    found = main(chosen)
    print(json.dumps(found) if chosen.json else table(found))
