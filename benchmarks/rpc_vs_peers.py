"""What does a call, and what does a stream cost in hivemind, in py-libp2p alone, and in mesh, side by side?

Each peer is a server process and a client process on loopback, encrypted, with the same sizes and the same warm-up; all
of them live through the whole run, and their rounds are interleaved, so that what else the machine does hits all alike.
CPU time is that of both ends with all their child processes (hivemind's p2pd), user and system. Figures are medians
over rounds, with the least and the most in brackets; p99 is over all calls of all rounds, and null below 100 of them.

`python benchmarks/rpc_vs_peers.py [--peers hivemind,py-libp2p,mesh] [--json] [--quick] [--rounds N] [--env-dir DIR]`

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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peers.children import PEERS_DIR, ROOT, Child, Gone, Unmeasured, commit, hivemind_python, machine, progress
from peers.ops import OPS, Kind, Op

START_S: Final = 60.0
OP_S: Final = 180.0
QUICK: Final = 5
"""By how much fewer calls a round makes with --quick."""
LEAST_FOR_P99: Final = 100
FIGURES: Final = ("p50_ms", "p99_ms", "cpu_ms", "cpu_ms_per_mb", "mb_s", "per_s")


@dataclass(frozen=True)
class Source:
    """How a peer is started."""

    script: str
    mode: str = ""
    own_environment: bool = False


SOURCES: Final = {
    "hivemind": Source("hivemind_peer.py", own_environment=True),
    "hivemind-raw": Source("hivemind_peer.py", "raw", own_environment=True),
    "py-libp2p": Source("py_libp2p_peer.py"),
    "mesh": Source("mesh_peer.py"),
    "mesh-libp2p": Source("mesh_peer.py", "libp2p"),
}


@dataclass
class Round:
    """What one round of one operation gave."""

    times_ms: list[float]
    wall_s: float
    cpu_s: float


@dataclass
class Peer:
    """A peer that runs."""

    name: str
    server: Child
    client: Child
    what: str
    variants: list[str]
    rounds: dict[tuple[str, str], list[Round]] = field(default_factory=dict)
    """By operation and variant."""
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    gone: str = ""
    """Why nothing more can be asked of it."""

    def measure(self, name: str, op: Op, variant: str, calls: int) -> None:
        """One round, after its warm-up. Raises Unmeasured."""
        self._ask(op, variant, op.warm_size, op.warm_calls)
        before = self.server.cpu_s() + self.client.cpu_s()
        answer = self._ask(op, variant, op.size, calls)
        cpu_s = self.server.cpu_s() + self.client.cpu_s() - before
        self.rounds.setdefault((name, variant), []).append(Round(answer["times_ms"], answer["wall_s"], cpu_s))

    def _ask(self, op: Op, variant: str, size: int, calls: int) -> dict[str, Any]:
        self.client.tell(kind=op.kind.value, size=size, calls=calls, workers=op.workers, variant=variant)
        answer = self.client.hear(OP_S)
        if "error" in answer:
            raise Unmeasured(answer["error"])
        return answer


@contextmanager
def started(name: str, env_dir: Path) -> Iterator[Peer]:
    """The peer's server and client while the block runs. Raises Unmeasured."""
    source = SOURCES[name]
    python = hivemind_python(env_dir) if source.own_environment else sys.executable
    script, mode = str(PEERS_DIR / source.script), [source.mode] if source.mode else []
    with ExitStack() as stack:

        def child(*arguments: str) -> Child:
            log = stack.enter_context(tempfile.TemporaryFile())
            made = Child([python, script, *arguments, *mode], log)
            stack.callback(made.close)
            return made

        server = child("server")
        client = child("client", server.hear(START_S)["address"])
        hello = client.hear(START_S)
        yield Peer(name, server, client, hello["what"], hello["variants"])


# --- measuring and telling ----------------------------------------------------------------------------------------


def run_rounds(peers: list[Peer], rounds: int, ops: list[str], *, divisor: int) -> list[float]:
    """All rounds of all operations; in each, the peers take turns, and another begins every time. Returns the machine's
    load average before the first round and after each."""
    loads = [os.getloadavg()[0]]
    for number in range(rounds):
        for name in ops:
            op = OPS[name]
            calls = max(1, op.calls // op.workers // divisor) * op.workers
            turn = number % max(1, len(peers))
            for peer in peers[turn:] + peers[:turn]:
                for variant in peer.variants if op.kind is Kind.STREAM else [""]:
                    if peer.gone:
                        peer.failures.setdefault((name, variant), peer.gone)
                    if (name, variant) in peer.failures:
                        continue
                    try:
                        peer.measure(name, op, variant, calls)
                    except Unmeasured as error:
                        peer.gone = str(error) if isinstance(error, Gone) else ""
                        peer.failures[name, variant] = str(error)
                        progress(f"{peer.name}: {name} {variant}: {error}")
        loads.append(os.getloadavg()[0])
        progress(f"round {number + 1} of {rounds} done, load {loads[-1]:.1f}")
    return loads


def empty_row(peer: str, op: str, reason: str) -> dict[str, Any]:
    """The row of what was not measured."""
    return {"peer": peer, "op": op, **dict.fromkeys(FIGURES), "spread": {}, "note": reason}


def row(peer: Peer, name: str) -> dict[str, Any]:
    """The figures of a peer's operation, of its fastest variant."""
    found = {variant: made for (op, variant), made in peer.rounds.items() if op == name}
    whole = {variant: made for variant, made in found.items() if (name, variant) not in peer.failures}
    if not whole:
        return empty_row(peer.name, name, next((why for (op, _), why in peer.failures.items() if op == name), ""))
    variant, rounds = min(whole.items(), key=lambda item: statistics.median(r.wall_s for r in item[1]))
    op, moves_bytes = OPS[name], OPS[name].kind is not Kind.ECHO
    megabytes = op.size / 1e6
    by_round: dict[str, list[float]] = {
        "p50_ms": [statistics.median(r.times_ms) for r in rounds],
        "cpu_ms": [r.cpu_s * 1e3 / len(r.times_ms) for r in rounds],
    }
    if moves_bytes:
        by_round["cpu_ms_per_mb"] = [cpu_ms / megabytes for cpu_ms in by_round["cpu_ms"]]
        by_round["mb_s"] = [len(r.times_ms) * megabytes / r.wall_s for r in rounds]
    if op.workers > 1:
        by_round["per_s"] = [len(r.times_ms) / r.wall_s for r in rounds]
    times_ms = sorted(ms for r in rounds for ms in r.times_ms)
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    figures |= {figure: round(statistics.median(values), 3) for figure, values in by_round.items()}
    if len(times_ms) >= LEAST_FOR_P99:
        figures["p99_ms"] = round(times_ms[len(times_ms) * 99 // 100], 3)
    spread = {figure: [round(min(values), 3), round(max(values), 3)] for figure, values in by_round.items()}
    return {"peer": peer.name, "op": name, **figures, "spread": spread, "note": variant}


def cell(row: dict[str, Any], figure: str) -> str:
    """A figure with its spread."""
    value = row[figure]
    if value is None:
        return "-"
    digits = 0 if value >= 1000 else 1 if value >= 20 else 2
    low, high = row["spread"].get(figure, (None, None))
    return f"{value:,.{digits}f}" + (f" ({low:,.{digits}f}–{high:,.{digits}f})" if low is not None else "")


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    about, loads = report["machine"], report["load"]
    lines = [
        f"{report['date']}, {about['cpu']}, {about['cores']} cores, {about['system']}, Python {report['python']}; "
        f"load {min(loads):.1f} to {max(loads):.1f}, what is measured included; {report['rounds']} rounds",
        "; ".join(f"{name}: {what}" for name, what in report["versions"].items()),
        "",
        "| operation | peer | p50 ms | p99 ms | CPU-ms | CPU-ms/MB | MB/s | calls/s | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for op in OPS:
        for entry in (r for r in report["rows"] if r["op"] == op):
            cells = (entry["peer"], *(cell(entry, figure) for figure in FIGURES), entry["note"])
            lines.append(f"| {op} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", default="hivemind,py-libp2p,mesh", help=f"of {', '.join(SOURCES)}")
    parser.add_argument("--ops", default=",".join(OPS), help="which operations, default all")
    parser.add_argument("--json", action="store_true", help="JSON and nothing else on standard output")
    parser.add_argument("--quick", action="store_true", help=f"two rounds of a {QUICK}th of the calls")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--env-dir", type=Path, default=ROOT / ".bench", help="where environments are made")
    arguments = parser.parse_args()
    names, ops = arguments.peers.split(","), arguments.ops.split(",")
    for given, known in ((names, SOURCES), (ops, OPS)):
        for name in given:
            if name not in known:
                parser.error(f"no {name!r}; there are {', '.join(known)}")
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    if rounds < 1:
        parser.error("at least one round")

    absent: dict[str, str] = {}
    with ExitStack() as stack:
        peers: list[Peer] = []
        for name in names:
            try:
                peers.append(stack.enter_context(started(name, arguments.env_dir.resolve())))
            except Unmeasured as error:
                absent[name] = str(error)
                progress(f"{name}: {error}")
        loads = run_rounds(peers, rounds, ops, divisor=QUICK if arguments.quick else 1)
    live = {peer.name: peer for peer in peers}
    rows = [row(live[n], op) if n in live else empty_row(n, op, absent[n]) for n in names for op in ops]
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "load": loads,
        "rounds": rounds,
        "versions": {peer.name: f"{peer.what} ({commit()})" if "mesh" in peer.name else peer.what for peer in peers},
        "rows": rows,
    }
    print(json.dumps(report) if arguments.json else table(report))


if __name__ == "__main__":
    main()
