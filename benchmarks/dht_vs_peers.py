"""What do a put, a get and a join cost in hivemind's DHT, in py-libp2p's KadDHT and in mesh's, side by side?

All nodes of a peer live in one process on loopback, with real sockets (hivemind has a p2pd beside each node besides);
keys, values and owners are the same for all, and so is who counts as having succeeded (benchmarks/peers/dht_ops.py).
The peers' rounds are interleaved, so that what else the machine does hits all alike.

    python benchmarks/dht_vs_peers.py [--nodes 32] [--peers hivemind,kad-dht,mesh] [--rounds 3] [--operations 30]
                                      [--kill] [--json]

Wall times are over all operations of all rounds. `cpu_ms` is of one operation, user and system, of all processes and
both ends of every message, what runs in the background included: the median over rounds. `idle_cpu_ms` is what the same
nodes take in an equal time while nothing is asked of them. `success` is the part of the operations that did what was
asked: as many nodes hold the record as there should be replicas; the value came; the node has joined.

| op | |
| --- | --- |
| put, put_20 | a record at 5 and at 20 nodes; done when all of them have answered |
| get_first, get_latest | the first value that comes; the newest that the closest nodes hold |
| put_many, get_many | 64 at once |
| join | from a host that listens until the node has joined |
| join_with_start | from nothing: the host's start, hivemind's daemon above all, and the join |
| ..._cold | the first operation of a node all of whose connections were closed |
| ..._before_kill, ..._after_kill | with --kill, in a network of its own: before and after 20 % of the nodes are gone |

hivemind gets a virtual environment of its own under --env-dir (about 1.2 GB, made at the first run). A peer that cannot
be measured has null figures, and its reason is in `note` and on standard error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peers.children import PEERS_DIR, ROOT, Child, Gone, Unmeasured, commit, hivemind_python, machine, progress
from rich import box
from rich.console import Console
from rich.table import Table

SOURCES: Final = {
    "hivemind": ("dht_hivemind.py", ()),
    "kad-dht": ("dht_kad_dht.py", ()),
    "mesh": ("dht_mesh.py", ()),
    "mesh-libp2p": ("dht_mesh.py", ("libp2p",)),
}
SHARE: Final = {"put": 1, "put_20": 2, "get_first": 1, "get_latest": 1, "put_many": 10, "get_many": 10}
"""Operations, and how many fewer than --operations a round has of them."""
JOINS: Final = ("join", "join_with_start")
OPS: Final = (*SHARE, *JOINS)
COLD: Final = ("put_cold", "put_20_cold", "get_first_cold", "get_latest_cold")
BEFORE_KILL: Final = ("put_before_kill", "put_20_before_kill", "get_first_before_kill", "get_latest_before_kill")
AFTER_KILL: Final = ("get_first_after_kill", "get_latest_after_kill", "put_after_kill", "put_20_after_kill")
KILLED: Final = 0.2
JOIN_SHARE: Final = 10
COLD_SHARE: Final = 3
WARM: Final = {"put": 4, "put_20": 4, "get_latest": 4}
"""Operations, and how many by node on average nobody counts: connections are made on first use, mesh's data connections
after some calls only. The gets read what was put."""
SPARE: Final = 10
"""Keys more than gets, so that there is one that the getter does not hold."""
START_S: Final = 600.0
OP_S: Final = 600.0
IDLE_S: Final = 10.0
FIGURES: Final = ("p50_ms", "p95_ms", "cpu_ms", "idle_cpu_ms", "success")
MIB: Final = 2**20


@dataclass
class Peer:
    """A peer whose nodes run."""

    name: str
    child: Child
    nodes: int
    what: str
    lacks: dict[str, str]
    rss_mib: list[float] = field(default_factory=list)
    """Of a node, at first and at the end."""
    idle_s: list[float] = field(default_factory=list)
    """CPU seconds a second while nothing is asked."""
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Operations that could not be measured, and why."""
    gone: str = ""

    def has(self, op: str) -> bool:
        """Whether there is such an operation; what has no put has none of a cold node either."""
        return op.removesuffix("_cold").removesuffix("_before_kill").removesuffix("_after_kill") not in self.lacks

    def ask(self, **order: Any) -> dict[str, Any]:
        """An order and its answer; {} when the peer is gone."""
        if self.gone:
            return {}
        try:
            self.child.tell(**order)
            return self.child.hear(OP_S)
        except Gone as error:
            self.gone = str(error)
            progress(f"{self.name}: {order}: {error}")
            return {}

    def measure(self, op: str, count: int) -> None:
        """One round of one operation."""
        if self.has(op):
            if op.startswith("get_") and "many" not in op:
                self.ask(op="fill", count=count + SPARE)
            before = self.child.cpu_s()
            self._note(op, self.ask(op=op, count=count), before)

    def measure_joins(self, count: int) -> None:
        """One round of joins; whoever joined leaves again."""
        before = self.child.cpu_s()
        started = self.ask(op="start", count=count)
        began = self.child.cpu_s()
        joined = self.ask(op="join", count=count)
        self._note("join", joined, began)
        if started and joined:
            both = [sum(times) for times in zip(started["times_ms"], joined["times_ms"], strict=True)]
            self._note("join_with_start", {"times_ms": both, "ok": joined["ok"]}, before)
        self.ask(op="leave")

    def _note(self, op: str, answer: dict[str, Any], before: float) -> None:
        if "error" in answer:
            self.failures[op] = answer["error"]
            progress(f"{self.name}: {op}: {answer['error']}")
        elif answer:
            times_ms = answer["times_ms"]
            self.cpu_ms.setdefault(op, []).append((self.child.cpu_s() - before) * 1e3 / len(times_ms))
            self.times_ms.setdefault(op, []).extend(times_ms)
            self.done[op] = self.done.get(op, 0) + answer["ok"]

    def weigh(self) -> None:
        """Note its memory."""
        if not self.gone:
            self.rss_mib.append(round(self.child.rss_bytes() / self.nodes / MIB, 1))

    def row(self, op: str) -> dict[str, Any]:
        """The figures of an operation."""
        times = sorted(self.times_ms.get(op, ()))
        if not times:
            return empty_row(self.name, op, self.lacks.get(op) or self.failures.get(op) or self.gone)
        cpu, idle = self.cpu_ms[op], statistics.mean(self.idle_s) if self.idle_s else 0.0
        return {
            "peer": self.name,
            "op": op,
            "p50_ms": round(statistics.median(times), 2),
            "p95_ms": round(times[min(len(times) - 1, len(times) * 95 // 100)], 2),
            "cpu_ms": round(statistics.median(cpu), 2),
            "idle_cpu_ms": round(idle * statistics.mean(times), 2),
            "success": round(self.done[op] / len(times), 4),
            "cpu_ms_spread": [round(min(cpu), 2), round(max(cpu), 2)],
            "n": len(times),
            "note": "",
        }


def empty_row(peer: str, op: str, why: str) -> dict[str, Any]:
    """The row of what was not measured."""
    return {"peer": peer, "op": op, **dict.fromkeys(FIGURES), "cpu_ms_spread": None, "n": 0, "note": why}


@contextmanager
def running(name: str, nodes: int, env_dir: Path) -> Iterator[Peer]:
    """All nodes of a peer, joined, while the block runs. Raises Unmeasured."""
    script, arguments = SOURCES[name]
    python = hivemind_python(env_dir) if name == "hivemind" else sys.executable
    with tempfile.TemporaryFile() as log:
        child = Child([python, str(PEERS_DIR / script), str(nodes), *arguments], log)
        try:
            progress(f"{name}: {nodes} nodes join ...")
            hello = child.hear(START_S)
            peer = Peer(name, child, nodes, hello["what"], hello["lacks"])
            peer.weigh()
            yield peer
        finally:
            child.close()


def warm(peer: Peer) -> None:
    """Operations that nobody counts; as many as fit into the longest round, where a peer is slow."""
    for op, times in WARM.items():
        if peer.has(op):
            peer.ask(op=op, count=times * peer.nodes)


def measure_idle(peers: Sequence[Peer]) -> None:
    """What all of them take while nothing is asked of any."""
    before = [peer.child.cpu_s() for peer in peers]
    began = time.monotonic()
    time.sleep(IDLE_S)
    for peer, cpu_s in zip(peers, before, strict=True):
        peer.idle_s.append((peer.child.cpu_s() - cpu_s) / (time.monotonic() - began))


def measure_rounds(peers: Sequence[Peer], loads: list[float], *, rounds: int, operations: int) -> None:
    """Everything but the killing. Notes the machine's load after each round."""
    for peer in peers:
        warm(peer)
    progress("warm")
    measure_idle(peers)
    for number in range(rounds):
        turn = number % max(1, len(peers))
        for op, share in SHARE.items():
            for peer in (*peers[turn:], *peers[:turn]):
                peer.measure(op, max(1, operations // share))
        loads.append(os.getloadavg()[0])
        progress(f"round {number + 1} of {rounds} done, load {loads[-1]:.1f}")
    measure_idle(peers)
    for op in COLD:
        for peer in peers:
            if peer.has(op) and (op != "put_20_cold" or not peer.has("put_cold")):
                count = min(max(1, operations // COLD_SHARE), peer.nodes // COLD_SHARE)
                left = peer.ask(op="cool", count=count).get("left_open", 0)
                if left:
                    progress(f"{peer.name}: {op}: {left} connections of {count} nodes are open")
                peer.measure(op, count)
    for peer in peers:
        peer.weigh()
    for _ in range(rounds):  # last, since who joined leaves again, and is missed for a while
        for peer in peers:
            peer.measure_joins(max(1, operations // JOIN_SHARE))
    loads.append(os.getloadavg()[0])
    progress(f"joins done, load {loads[-1]:.1f}")


def measure_kill(peer: Peer, *, operations: int) -> None:
    """Before and after a part of the nodes is gone; in a network that has done nothing else."""
    warm(peer)
    skipped = "put_20" if peer.has("put") else "put"
    for op in BEFORE_KILL:
        if not op.startswith(f"{skipped}_before"):
            peer.measure(op, operations)
    peer.ask(op="fill", count=2 * operations + SPARE)  # before the killing, and read after it
    peer.ask(op="kill", part=KILLED)
    for op in AFTER_KILL:
        if not op.startswith(f"{skipped}_after"):
            peer.measure(op, operations)


@dataclass
class Measured:
    """What there is so far."""

    peers: dict[str, Peer] = field(default_factory=dict)
    killed: dict[str, Peer] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that could not be started, and why."""
    loads: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])


def measure(options: argparse.Namespace, so_far: Measured) -> None:
    """Start all, measure in turns; then those that lose nodes, each by itself."""
    env_dir, peers, killed = options.env_dir.resolve(), so_far.peers, so_far.killed
    with ExitStack() as stack:
        for name in options.peers.split(","):
            try:
                peers[name] = stack.enter_context(running(name, options.nodes, env_dir))
            except Unmeasured as error:
                so_far.absent[name] = str(error)
                progress(f"{name}: {error}")
        measure_rounds(tuple(peers.values()), so_far.loads, rounds=options.rounds, operations=options.operations)
    for name in peers if options.kill else ():
        try:
            with running(name, options.nodes, env_dir) as killed[name]:
                killed[name].idle_s = peers[name].idle_s
                measure_kill(killed[name], operations=options.operations)
        except Unmeasured as error:
            progress(f"{name}: killing: {error}")
        so_far.loads.append(os.getloadavg()[0])


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and report; told to end, it reports what there is."""
    so_far = Measured()
    try:
        measure(options, so_far)
    except KeyboardInterrupt:
        progress("told to end: this is what was measured until then")
    names, peers, killed = options.peers.split(","), so_far.peers, so_far.killed
    absent = {name: so_far.absent.get(name, "not started") for name in names if name not in peers}
    rows = [peers[name].row(op) if name in peers else empty_row(name, op, absent[name]) for op in OPS for name in names]
    rows += [peer.row(op) for op in COLD for peer in peers.values() if op in peer.times_ms]
    rows += [peer.row(op) for op in (*BEFORE_KILL, *AFTER_KILL) for peer in killed.values() if op in peer.times_ms]
    return {
        "rows": rows,
        "nodes": options.nodes,
        "rounds": options.rounds,
        "operations": options.operations,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": machine(),
        "python": platform.python_version(),
        "load": [round(load, 1) for load in so_far.loads],
        "peers": {
            peer.name: {
                "what": peer.what + (f" ({commit()})" if "mesh" in peer.name else ""),
                "rss_mib_per_node": peer.rss_mib[0],
                "rss_mib_per_node_at_end": peer.rss_mib[-1],
                "idle_cpu_ms_per_s": [round(idle * 1e3, 1) for idle in peer.idle_s],
            }
            for peer in peers.values()
        },
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table, which is Markdown, too."""
    console, about, loads = Console(width=200), report["machine"], report["load"]
    console.print(
        f"{report['date']}, {about['cpu']}, {about['cores']} cores, {about['system']}, Python {report['python']}; "
        f"{report['nodes']} nodes, {report['rounds']} rounds of {report['operations']} operations; "
        f"load {min(loads)} to {max(loads)}, these included\n"
    )
    for name, peer in report["peers"].items():
        console.print(
            f"- {name}: {peer['what']}; {peer['rss_mib_per_node']} MiB a node at first, "
            f"{peer['rss_mib_per_node_at_end']} later; idle {peer['idle_cpu_ms_per_s']} CPU-ms/s in all"
        )
    table = Table(box=box.MARKDOWN)
    for column in ("op", "peer", "p50 ms", "p95 ms", "CPU-ms", "least–most", "idle CPU-ms", "success"):
        table.add_column(column, overflow="fold")
    for row in report["rows"]:
        if row["p50_ms"] is None:
            table.add_row(row["op"], row["peer"], *["-"] * 5, row["note"])
            continue
        low, high = row["cpu_ms_spread"]
        figures = (row["p50_ms"], row["p95_ms"], row["cpu_ms"], f"{low}–{high}", row["idle_cpu_ms"])
        table.add_row(row["op"], row["peer"], *map(str, figures), f"{row['success']:.1%} of {row['n']}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=32, help="at least 5")
    parser.add_argument("--peers", default="hivemind,kad-dht,mesh", help=f"of {', '.join(SOURCES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operations", type=int, default=30, help="single ones a round")
    parser.add_argument("--kill", action="store_true", help="also before and after 20 %% of the nodes are killed")
    parser.add_argument("--json", action="store_true", help="JSON and nothing else on standard output")
    parser.add_argument("--env-dir", type=Path, default=ROOT / ".bench", help="where environments are made")
    chosen = parser.parse_args()
    for name in chosen.peers.split(","):
        if name not in SOURCES:
            parser.error(f"no {name!r}; there are {', '.join(SOURCES)}")
    if chosen.nodes < 5 or chosen.rounds < 1 or chosen.operations < 1:
        parser.error("at least 5 nodes, 1 round, 1 operation")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the peers' processes end, too
    found = main(chosen)
    if chosen.json:
        print(json.dumps(found))
    else:
        show(found)
