"""The compute worker's child process: `python -m mesh.worker_main PARENT_PID NICE MEMORY_BYTES`.

Reads frames from stdin, runs jobs one after another on the main thread, writes replies to what was stdout; whatever a
job prints goes to stderr, where it cannot be taken for a reply. Ends with its parent, three times over: the kernel
kills it when the parent dies, it does not start under another parent, and it exits when stdin closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack

_PR_SET_PDEATHSIG: Final = 1
_LENGTH_BYTES: Final = 4
_NVIDIA: Final = Path("/dev/nvidiactl")

Job = Callable[[dict[str, Any]], dict[str, Any]]


def main() -> None:
    """Serve jobs until stdin closes."""
    parent, nice, memory = (int(text) for text in sys.argv[1:4])
    _bind_to(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides when we end
    os.nice(nice)
    if memory and not _NVIDIA.exists():
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    out = io.FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # bounded by the parent, which sends one frame at a time
    threading.Thread(target=_read, args=(frames,), daemon=True).start()
    hello = msgpack.unpackb(frames.get())
    limit: int = hello["max_frame_bytes"]
    try:
        jobs = {name: _load(path) for name, path in hello["jobs"].items()}
    except Exception as error:  # noqa: BLE001 - whatever an import raises is told to the parent
        _reply(out, {"error": type(error).__name__, "message": f"{type(error).__name__}: {error}"}, limit)
        return
    _reply(out, {"result": {"pid": os.getpid()}}, limit)
    while True:
        request = msgpack.unpackb(frames.get(), strict_map_key=False)
        try:
            answer: dict[str, Any] = {"result": jobs[request["job"]](request["args"])}
        except MemoryError:
            answer = {"fatal": True, "message": f"needs more than the worker's {memory} bytes of memory"}
        except Exception as error:  # noqa: BLE001 - a job's failure is an answer, not the end of the worker
            if "not enough memory" in str(error):  # torch's allocator raises RuntimeError instead of MemoryError
                answer = {"fatal": True, "message": f"needs more than the worker's {memory} bytes of memory"}
            else:
                answer = {"error": type(error).__name__, "message": str(error)[:2000]}
        _reply(out, answer, limit)


def _bind_to(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be killed with it
        os._exit(0)


def _read(frames: queue.SimpleQueue[bytes]) -> None:
    """Frames from stdin, until it closes: then the parent is gone, or done with us, even in the middle of a job."""
    source = sys.stdin.buffer
    with contextlib.suppress(OSError, ValueError):
        while True:
            header = source.read(_LENGTH_BYTES)
            if len(header) < _LENGTH_BYTES:
                break
            length = int.from_bytes(header, "big")
            data = source.read(length)
            if len(data) < length:
                break
            frames.put(data)
    os._exit(0)


def _load(path: str) -> Job:
    module, _, function = path.partition(":")
    job: Job = getattr(importlib.import_module(module), function)
    return job


def _reply(out: io.FileIO, answer: dict[str, Any], limit: int) -> None:
    try:
        data = msgpack.packb(answer, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        data = msgpack.packb({"error": "TypeError", "message": f"the result is not msgpack: {error}"})
    if len(data) > limit:
        data = msgpack.packb({"error": "ValueError", "message": f"a result of {len(data)} bytes, limit {limit}"})
    frame = memoryview(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    while frame:
        frame = frame[out.write(frame) :]  # unbuffered: a pipe may take a part of it


if __name__ == "__main__":
    main()
