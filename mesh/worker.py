"""The compute worker: one child process per node in which all machine-learning work runs.

The process that holds the network never computes: a busy model cannot stall its event loop. The child is spawned (not
forked), imports its job modules once, runs one job at a time on one thread at low priority, and lives no longer than
its parent. A job that takes too long, is cancelled, eats too much memory or crashes costs the child its life; the next
call gets a fresh one. Frames are a 4-byte length and msgpack, over pipes; there is no pickle.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Protocol

import msgpack
import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.config import SECRET_VARIABLES
from mesh.errors import ConfigError, MeshError, ModelRejected, WorkerError

log = logging.getLogger(__name__)

LENGTH_BYTES: Final = 4
_RAISED: Final[Mapping[str, type[MeshError]]] = {"ModelRejected": ModelRejected, "ConfigError": ConfigError}
"""Errors of a job that reach the caller as themselves; all others become WorkerError."""


class WorkerConfig(BaseModel):
    """Limits of the worker child."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: float = Field(default=60.0, gt=0, description="longest run of one job, unless the call says less")
    start_timeout_s: float = Field(default=180.0, gt=0, description="longest start of the child, with its imports")
    memory_bytes: int | None = Field(
        default=2 * 1024**3,
        ge=64 * 1024**2,
        description="private memory of the child (RLIMIT_DATA); not applied where there is an NVIDIA device, "
        "whose driver maps more than it uses; None: no limit",
    )
    nice: int = Field(default=10, ge=0, le=19, description="added to the child's niceness")
    max_waiting: int = Field(default=64, ge=1, description="calls that may wait for their turn; further ones fail")
    max_frame_bytes: int = Field(default=16 * 1024**2, ge=1024, description="longest request or reply")


class Priority(enum.IntEnum):
    """Who goes first among waiting calls; a running job is never interrupted for another."""

    VERIFY = 0
    """Has a deadline in blocks."""
    SERVE = 1
    """Somebody waits for the answer."""
    EXPLORE = 2
    """Whenever there is nothing else to do."""


class Compute(Protocol):
    """What a node uses of its compute worker: `Worker` has it, and so has what a simulation puts in its place."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Worker.run`."""
        ...

    async def call(
        self,
        name: str,
        args: Mapping[str, Any],
        *,
        priority: Priority = Priority.SERVE,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """See `Worker.call`."""
        ...


class Worker:
    """The node's compute worker. `jobs` maps names to "package.module:function"; a job takes and returns a dict of
    what msgpack carries (None, bool, int, float, str, bytes, list, dict)."""

    def __init__(self, jobs: Mapping[str, str], config: WorkerConfig | None = None) -> None:
        self._jobs = dict(jobs)
        self._config = config or WorkerConfig()
        self._child: _Child | None = None
        self._busy = False
        self._waiting: list[tuple[int, int, trio.Event]] = []
        self._order = itertools.count()
        self._running = False
        self.restarts = 0
        """Children lost so far to timeouts, cancellation, crashes or limits."""

    @property
    def pid(self) -> int | None:
        """Process id of the living child, if there is one."""
        return self._child.process.pid if self._child is not None else None

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Allow calls until cancelled, then kill the child. started() at once: the child's imports go on meanwhile
        and the first call waits for them."""
        self._running = True
        try:
            task_status.started()
            if self._jobs:
                await self.ready()
            await trio.sleep_forever()
        finally:
            self._running = False
            self._kill()

    async def ready(self) -> None:
        """Wait until the child has made its imports. Raises WorkerError when it cannot."""
        async with self._turn(Priority.VERIFY):
            try:
                await self._living()
            except BaseException:
                self._kill()
                raise

    async def call(
        self,
        name: str,
        args: Mapping[str, Any],
        *,
        priority: Priority = Priority.SERVE,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Run job `name` and return its result.

        `timeout_s` bounds the job's run, not its wait for a turn. Raises ModelRejected or ConfigError when the job
        does, WorkerError for everything else: unknown job, too many waiting, timeout, crash, memory, an exception in
        the job. Cancelled while the job runs, the child is killed: there is no other way to stop it.
        """
        if name not in self._jobs:
            raise WorkerError(f"there is no job {name!r}; this worker knows {', '.join(sorted(self._jobs)) or 'none'}")
        request = msgpack.packb({"job": name, "args": dict(args)}, use_bin_type=True)
        if len(request) > self._config.max_frame_bytes:
            raise WorkerError(f"job {name}: {len(request)} bytes of arguments, limit {self._config.max_frame_bytes}")
        limit_s = self._config.timeout_s if timeout_s is None else min(timeout_s, self._config.timeout_s)
        async with self._turn(priority):
            try:
                child = await self._living()
                with trio.move_on_after(limit_s) as scope:
                    reply = await child.exchange(request)
                if scope.cancelled_caught:
                    raise WorkerError(f"job {name} ran longer than {limit_s:g} s; the worker was restarted")
                if reply.get("fatal"):
                    raise WorkerError(f"job {name}: {reply.get('message')}; the worker was restarted")
            except BaseException as error:
                self._kill()
                if isinstance(error, WorkerError):
                    log.warning("%s", error)
                raise
        if "error" in reply:
            raised = _RAISED.get(reply["error"])
            if raised is not None:
                raise raised(reply["message"])
            raise WorkerError(f"job {name} raised {reply['error']}: {reply['message']}")
        result = reply.get("result")
        if not isinstance(result, dict):
            raise WorkerError(f"job {name} returned {type(result).__name__}, not a dict")
        return result

    @contextlib.asynccontextmanager
    async def _turn(self, priority: Priority) -> AsyncIterator[None]:
        """Hold the worker, best priority first, then first come first served."""
        if not self._running:
            raise WorkerError("the worker is not running")
        if self._busy:
            if len(self._waiting) >= self._config.max_waiting:
                raise WorkerError(f"the worker is busy: {len(self._waiting)} calls wait already")
            entry = (int(priority), next(self._order), trio.Event())
            heapq.heappush(self._waiting, entry)
            try:
                await entry[2].wait()
            except BaseException:
                if entry[2].is_set():
                    self._next()
                else:
                    self._waiting.remove(entry)
                    heapq.heapify(self._waiting)
                raise
        else:
            self._busy = True
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        """Give the turn to the best waiting call; the worker stays busy in between, so none can slip in."""
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._busy = False

    async def _living(self) -> _Child:
        if self._child is not None and self._child.process.poll() is not None:
            log.warning("the worker child ended by itself (code %s)", self._child.process.returncode)
            self._kill()
        if self._child is None:
            self._child = _Child(self._config)
            hello = msgpack.packb({"jobs": self._jobs, "max_frame_bytes": self._config.max_frame_bytes})
            with trio.move_on_after(self._config.start_timeout_s) as scope:
                reply = await self._child.exchange(hello)
            if scope.cancelled_caught:
                raise WorkerError(f"the worker did not start within {self._config.start_timeout_s:g} s")
            if "error" in reply:
                raise WorkerError(f"the worker cannot load its jobs: {reply['message']}")
            log.debug("worker child %d is ready", self._child.process.pid)
        return self._child

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None
            self.restarts += self._running


class _Child:
    """One process and the two pipes to it.

    Popen runs on this thread on purpose: the child asks the kernel to die with the *thread* that made it
    (PR_SET_PDEATHSIG), and a thread of trio's cache would end after some idle seconds. It is a vfork, hence short.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._max_frame_bytes = config.max_frame_bytes
        memory = config.memory_bytes if config.memory_bytes is not None else 0
        environment = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mesh.worker_main", str(os.getpid()), str(config.nice), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to = trio.lowlevel.FdStream(os.dup(self.process.stdin.fileno()))
        self._from = trio.lowlevel.FdStream(os.dup(self.process.stdout.fileno()))
        self.process.stdin.close()
        self.process.stdout.close()

    async def exchange(self, request: bytes) -> dict[str, Any]:
        """Send one frame, receive one. Raises WorkerError when the child is gone or talks nonsense."""
        try:
            await self._to.send_all(len(request).to_bytes(LENGTH_BYTES, "big") + request)
            length = int.from_bytes(await self._exactly(LENGTH_BYTES), "big")
            if length > self._max_frame_bytes:
                raise WorkerError(f"the worker sent a frame of {length} bytes, limit {self._max_frame_bytes}")
            reply = msgpack.unpackb(await self._exactly(length), strict_map_key=False)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WorkerError(f"the worker process died (code {self.process.poll()})") from error
        except (ValueError, msgpack.UnpackException) as error:
            raise WorkerError("the worker sent something that is not msgpack") from error
        if not isinstance(reply, dict):
            raise WorkerError("the worker sent something that is not a reply")
        return reply

    async def _exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            chunk = await self._from.receive_some(min(count - len(received), 65536))
            if not chunk:
                raise WorkerError(f"the worker process died (code {self._exit_code()}): out of memory, or a crash")
            received += chunk
        return bytes(received)

    def _exit_code(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=1.0)  # its pipe is closed: it is ending
        return None

    def kill(self) -> None:
        """End the process now and reap it; a killed process is gone within milliseconds."""
        self.process.kill()
        self.process.wait()
        for stream in (self._to, self._from):
            stream.close()
