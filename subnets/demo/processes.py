"""The demo's processes: one group, ready when they say so, gone when we are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from mesh.config import SECRET_VARIABLES
from mesh.errors import MeshError

READY_TIMEOUT_S = 120.0
"""Six nodes that load torch at once on two cores were ready in under a minute."""
END_TIMEOUT_S = 10.0
"""After SIGTERM; then SIGKILL. Together under the five seconds promised for Ctrl-C."""
MAX_LINE_BYTES = 65_536


class ProcessFailed(MeshError):
    """A process of the demo ended by itself; the message has the end of its log."""


@dataclass
class Process:
    """One running program."""

    name: str
    arguments: Sequence[str]
    log: Path
    popen: subprocess.Popen[bytes]
    ready: dict[str, Any] = field(default_factory=dict)
    """What it printed when it was ready."""

    def kill(self) -> None:
        """SIGKILL: what a power cut looks like to the others."""
        self.popen.kill()
        self.popen.wait()


class Fleet:
    """Processes in one process group; `end` ends them all, whatever state they are in."""

    def __init__(self, directory: Path, *, log_json: bool) -> None:
        self._directory = directory
        self._log_format = ["--log-json"] if log_json else []
        # the user's own secrets are not for a demo; empty, as a .env in this folder would fill in what is missing
        self._environment = {**os.environ, **dict.fromkeys(SECRET_VARIABLES, ""), "MESH_PARENT_PID": str(os.getpid())}
        self._group = 0
        self.processes: dict[str, Process] = {}

    async def start(self, name: str, arguments: Sequence[str]) -> Process:
        """Start `mesh ARGUMENTS` and wait until it prints its ready line. Raises ProcessFailed."""
        log = self._directory / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "mesh.cli", *arguments, "--json", "--log-file", str(log), *self._log_format]
        with log.open("ab") as errors:
            # From the main thread on purpose: a child asks the kernel to die with the THREAD that started it.
            popen = subprocess.Popen(  # noqa: ASYNC220
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                process_group=self._group,
            )
        self._group = self._group or popen.pid
        process = Process(name, arguments, log, popen)
        self.processes[name] = process
        with trio.move_on_after(READY_TIMEOUT_S):
            process.ready = await self._ready_line(process)
            return process
        raise ProcessFailed(f"{name} was not ready within {READY_TIMEOUT_S:g} s; {_tail(log)}")

    async def restart(self, process: Process) -> Process:
        """The same program again, from its data directory."""
        return await self.start(process.name, process.arguments)

    async def _ready_line(self, process: Process) -> dict[str, Any]:
        assert process.popen.stdout is not None
        async with trio.lowlevel.FdStream(os.dup(process.popen.stdout.fileno())) as stream:
            buffer = b""
            while len(buffer) < MAX_LINE_BYTES:
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    if line.startswith(b"{"):
                        return dict(json.loads(line))
                if not (chunk := await stream.receive_some(4096)):
                    break
                buffer += chunk
        code = await trio.to_thread.run_sync(process.popen.wait)
        raise ProcessFailed(f"{process.name} ended with code {code} before it was ready; {_tail(process.log)}")

    def check(self, *, except_for: str = "") -> None:
        """Raises ProcessFailed when one has ended by itself; `except_for` may be down on purpose."""
        for process in self.processes.values():
            if process.name != except_for and (code := process.popen.poll()) is not None:
                raise ProcessFailed(f"{process.name} ended with code {code}; {_tail(process.log)}")

    def end(self) -> None:
        """SIGTERM to all, then SIGKILL to whoever is left, and to what they left in the group."""
        running = [p.popen for p in self.processes.values() if p.popen.poll() is None]
        for popen in running:
            popen.terminate()
        deadline = trio.current_time() + END_TIMEOUT_S
        for popen in running:
            try:
                popen.wait(timeout=max(0.0, deadline - trio.current_time()))
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
        if self._group:
            try:
                os.killpg(self._group, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes.values():
            if process.popen.stdout is not None:
                process.popen.stdout.close()


def _tail(log: Path) -> str:
    text = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f"the end of {log}: " + (" | ".join(text[-3:]) if text else "(empty)")
