"""The processes a benchmark runs its peers in, and the environments these need: shared by the drivers."""

from __future__ import annotations

import json
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PEERS_DIR: Final = ROOT / "benchmarks" / "peers"
HIVEMIND_PINS: Final = PEERS_DIR / "hivemind.txt"


class Unmeasured(Exception):
    """A peer, or one of its operations, could not be measured; the text says why."""


class Gone(Unmeasured):
    """The peer's process ended or hangs: nothing more can be asked of it."""


def progress(text: str) -> None:
    """For the one who waits; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


# --- environments -------------------------------------------------------------------------------------------------


def hivemind_python(env_dir: Path) -> str:
    """The interpreter of hivemind's environment, which is made unless it is complete. Raises Unmeasured."""
    where = env_dir / "hivemind"
    python, marker, pins = where / "bin" / "python", where / ".complete", HIVEMIND_PINS.read_text()
    if python.exists() and marker.exists() and marker.read_text() == pins:
        return str(python)
    progress(f"making hivemind's environment in {where} (some minutes) ...")
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", "-r", str(HIVEMIND_PINS)]
    for step in ([sys.executable, "-m", "venv", str(where)], install):
        try:
            done = subprocess.run(step, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        except OSError as error:
            raise Unmeasured(f"the environment in {where} cannot be made: {error}") from error
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "WARNING" not in line and line.strip()]
            raise Unmeasured(f"the environment in {where} cannot be made: {errors[-1] if errors else step}")
    marker.write_text(pins)
    return str(python)


# --- a peer's two processes ---------------------------------------------------------------------------------------


class Child:
    """A peer's server or client: lines of JSON in and out."""

    def __init__(self, command: list[str], log: IO[bytes]) -> None:
        self._log = log
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=env, text=True
        )
        self._tree = psutil.Process(self._process.pid)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Its next message. Raises Gone when it ends or says nothing for so long."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Gone(f"no answer in {timeout_s:.0f} s") from None
            if not line:
                raise Gone(f"its process ended ({self._status()}): {self._last_words()}")
            if line.startswith("{"):  # libraries print, too
                message: dict[str, Any] = json.loads(line)
                return message

    def tell(self, **message: Any) -> None:
        """Raises Gone when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise Gone(f"its process ended ({self._status()}): {self._last_words()}") from None

    def cpu_s(self) -> float:
        """User and system seconds so far, of it and all below it; and of those that ended and were waited for."""
        times = []
        for process in self._processes():
            try:
                times.append(process.cpu_times())
            except psutil.NoSuchProcess:
                continue
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)

    def rss_bytes(self) -> int:
        """Resident memory of it and all below it."""
        found = 0
        for process in self._processes():
            try:
                found += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return found

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._tree, *self._tree.children(recursive=True)]
        except psutil.NoSuchProcess:  # `hear` says so
            return []

    def close(self) -> None:
        """End it and all below it: first by the end of its input, then by force."""
        try:
            below = self._tree.children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(8)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in psutil.wait_procs(below, timeout=2)[1]:
            process.kill()

    def _status(self) -> str:
        try:
            return f"status {self._process.wait(2)}"  # negative: by that signal
        except subprocess.TimeoutExpired:
            return "its output did"

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


def machine() -> dict[str, Any]:
    """What the figures are of."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {"cpu": model, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}"}


def commit() -> str:
    """Which mesh this is."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
