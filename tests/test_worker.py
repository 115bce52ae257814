"""The worker child: what it answers, how it is limited, and that its death is never ours. Real processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mesh.errors import ModelRejected, WorkerError
from mesh.worker import Priority, Worker, WorkerConfig

NAMES = ("echo", "count", "spin", "crash", "hog", "fail", "facts", "odd", "big")
JOBS = {name: f"tests.worker_jobs:{name}" for name in NAMES}


@asynccontextmanager
async def running(config: WorkerConfig | None = None) -> AsyncIterator[Worker]:
    worker = Worker(JOBS, config)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        yield worker
        nursery.cancel_scope.cancel()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_job_answers_and_keeps_its_state_in_one_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_HOTKEY", "11" * 32)
    async with running() as worker:
        args = {"b": b"\x00\xff", "n": 2**63, "f": 0.5, "none": None, "list": [1, "two"]}
        assert await worker.call("echo", args) == args
        assert await worker.call("count", {}) == {"count": 1}
        assert await worker.call("count", {}) == {"count": 2}
        facts = await worker.call("facts", {})
        assert facts["threads"] == "1"
        assert facts["secrets"] == []
        assert facts["nice"] >= 10
        assert facts["torch"] is False  # the framework itself loads none
        assert facts["pid"] == worker.pid != os.getpid()
    assert not is_alive(facts["pid"])
    assert worker.restarts == 0


async def test_a_job_s_own_errors_arrive_and_cost_nothing() -> None:
    async with running() as worker:
        with pytest.raises(ModelRejected, match="not a model"):
            await worker.call("fail", {"model": True})
        with pytest.raises(WorkerError, match="job fail raised RuntimeError: a bug"):
            await worker.call("fail", {"model": False})
        with pytest.raises(WorkerError, match="not msgpack"):
            await worker.call("odd", {"what": "object"})
        with pytest.raises(WorkerError, match="returned list"):
            await worker.call("odd", {"what": "list"})
        with pytest.raises(WorkerError, match="there is no job 'rm'"):
            await worker.call("rm", {})
        assert worker.restarts == 0


async def test_frames_are_bounded_both_ways() -> None:
    async with running(WorkerConfig(max_frame_bytes=100_000)) as worker:
        with pytest.raises(WorkerError, match="limit 100000"):
            await worker.call("echo", {"data": bytes(100_001)})
        with pytest.raises(WorkerError, match="limit 100000"):
            await worker.call("big", {"bytes": 100_001})
        assert len((await worker.call("big", {"bytes": 90_000}))["data"]) == 90_000  # more than a pipe holds
        assert worker.restarts == 0


async def test_a_crashed_child_is_replaced() -> None:
    async with running() as worker:
        with pytest.raises(WorkerError, match="died"):
            await worker.call("crash", {})
        assert await worker.call("count", {}) == {"count": 1}
        assert worker.restarts == 1


async def test_a_child_killed_from_outside_in_the_middle_of_a_job_is_replaced() -> None:
    async with running() as worker:
        await worker.ready()
        errors = []

        async def doomed() -> None:
            try:
                await worker.call("spin", {"seconds": 60})
            except WorkerError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(doomed)
            await trio.testing.wait_all_tasks_blocked()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        assert len(errors) == 1
        assert await worker.call("echo", {"x": 1}) == {"x": 1}


async def test_a_child_killed_while_idle_is_replaced() -> None:
    async with running() as worker:
        await worker.ready()
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        handle = os.pidfd_open(pid)
        await trio.lowlevel.wait_readable(handle)
        os.close(handle)
        assert await worker.call("echo", {"x": 1}) == {"x": 1}


async def test_a_job_over_its_time_is_ended() -> None:
    async with running() as worker:
        await worker.ready()
        pid = worker.pid
        with pytest.raises(WorkerError, match=r"longer than 0\.1 s"):
            await worker.call("spin", {"seconds": 60}, timeout_s=0.1)
        assert pid is not None
        assert not is_alive(pid)
        assert await worker.call("echo", {}) == {}


async def test_a_cancelled_job_is_ended_and_the_next_one_runs() -> None:
    async with running() as worker:
        await worker.ready()
        pid = worker.pid
        with trio.move_on_after(0.05) as scope:
            await worker.call("spin", {"seconds": 60})
        assert scope.cancelled_caught
        assert pid is not None
        assert not is_alive(pid)
        assert await worker.call("echo", {}) == {}


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="no memory limit beside an NVIDIA driver")
async def test_a_job_over_its_memory_fails_and_the_next_one_runs() -> None:
    async with running(WorkerConfig(memory_bytes=256 * 1024**2)) as worker:
        assert await worker.call("hog", {"bytes": 1024**2}) == {"size": 1024**2}
        with pytest.raises(WorkerError, match="memory"):
            await worker.call("hog", {"bytes": 1024**3})
        assert worker.restarts == 1
        assert await worker.call("echo", {}) == {}


async def test_a_busy_worker_does_not_stall_the_loop() -> None:
    async with running() as worker:
        await worker.ready()
        ticks = 0
        done = False

        async def tick() -> None:
            nonlocal ticks
            while not done:
                await trio.lowlevel.checkpoint()
                ticks += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await worker.call("spin", {"seconds": 0.2})
            done = True
        assert ticks > 100  # a loop that computed the job itself would have made a handful


async def test_waiting_calls_are_bounded_and_the_urgent_go_first() -> None:
    async with running(WorkerConfig(max_waiting=2)) as worker:
        await worker.ready()
        order: list[str] = []

        async def call(label: str, priority: Priority) -> None:
            await worker.call("spin", {"seconds": 0.05}, priority=priority)
            order.append(label)

        async with trio.open_nursery() as nursery:
            for label, priority in (("first", Priority.EXPLORE), ("explore", Priority.EXPLORE)):
                nursery.start_soon(call, label, priority)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(call, "verify", Priority.VERIFY)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(WorkerError, match="busy"):
                await worker.call("echo", {})
        assert order == ["first", "verify", "explore"]


async def test_cancelling_a_waiting_call_leaves_the_running_one_alone() -> None:
    async with running() as worker:
        await worker.ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.call, "spin", {"seconds": 0.1})
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.01):
                await worker.call("echo", {})
            assert worker.waiting == 0
        assert worker.restarts == 0
        assert await worker.call("count", {}) == {"count": 1}


async def test_calls_need_a_running_worker_with_loadable_jobs() -> None:
    with pytest.raises(WorkerError, match="not running"):
        await Worker(JOBS).call("echo", {})
    broken = Worker({"x": "no_such_module:job"})
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(broken.run)
    assert caught.group_contains(WorkerError, match="no_such_module")


def test_the_child_dies_with_its_parent_even_in_the_middle_of_a_job() -> None:
    program = """
import trio
from mesh.worker import Worker
from tests.test_worker import JOBS

async def main():
    worker = Worker(JOBS)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await worker.ready()
        print(worker.pid, flush=True)
        await worker.call("spin", {"seconds": 60})

trio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        handle = os.pidfd_open(pid)
        parent.kill()
        parent.wait()
        readable, _, _ = select.select([handle], [], [], 10)
        os.close(handle)
    assert readable
