"""Exactly once, though the process is killed at any step and the chain dies under it. Real processes, real SIGKILL.

The whole matrix is slow (`-m slow`); in every run there is each step for stake, which the chain itself would take
twice, and some steps for the other calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.chain.dialect import peer_id_bytes
from mesh.chain.runtime import blake2
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.node import run_chain
from mesh.devchain.pallets.network import storage as s
from mesh.identity import AccountKey, PeerKey
from tests.chain.forks import SETTLING_STEPS, STEPS
from tests.chain.subnet import SUBNET, config, populate, propose, registration, to_next_epoch
from tests.contract.test_chain import COLDKEYS, HOTKEYS, TENSOR

ADDED = 7 * TENSOR
ROOT = Path(__file__).parents[2]


class Forks:
    """The server that forks (tests.chain.forks), and what it said."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._pids: list[int] = []
        self._urls: list[str] = []
        self.exits: dict[int, dict[str, Any]] = {}
        self._said = trio.Event()

    async def listen(self) -> None:
        assert self._process.stdout is not None
        buffer = b""
        async for data in self._process.stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "pid" in message:
                    self._pids.append(message["pid"])
                elif "url" in message:
                    self._urls.append(message["url"])
                else:
                    self.exits[message["exit"]] = message
                event, self._said = self._said, trio.Event()
                event.set()

    async def start(self, **request: Any) -> int:
        """The pid of a new child."""
        assert self._process.stdin is not None
        count = len(self._pids)
        await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
        await self._until(lambda: len(self._pids) > count)
        return self._pids[-1]

    async def ended(self, pid: int) -> dict[str, Any]:
        """How it ended: {"signal", "result"}."""
        await self._until(lambda: pid in self.exits)
        return self.exits[pid]

    async def chain(self, **config: Any) -> tuple[int, str]:
        """(pid, url) of a dev chain."""
        count = len(self._urls)
        pid = await self.start(do="chain", config=config)
        await self._until(lambda: len(self._urls) > count or pid in self.exits)
        assert pid not in self.exits, "the chain did not start"
        return pid, self._urls[-1]

    async def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        await self.ended(pid)

    async def _until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not holds():
                await self._said.wait()


@asynccontextmanager
async def forking(home: Path) -> AsyncIterator[Forks]:
    environment = {**os.environ, "XDG_DATA_HOME": str(home)}
    command = [sys.executable, "-m", "tests.chain.forks"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, cwd=ROOT, env=environment, check=False, **pipes)
        process = await nursery.start(run)
        forks = Forks(process)
        nursery.start_soon(forks.listen)
        yield forks
        nursery.cancel_scope.cancel()


class Scene:
    """One thing that is to happen once: what a child is asked to do, and how the chain shows that it happened."""

    def __init__(self, dev: DevChain, call: str, number: int) -> None:
        self._dev = dev
        self.call = call
        self.args: dict[str, Any] = {"subnet_id": SUBNET}
        if call == "propose":
            self._epoch = to_next_epoch(dev)
            elected = dev.get(s.SubnetElectedValidator, SUBNET, self._epoch)
            self.key = HOTKEYS[elected - 1]
            self.args |= {"scores": [[1, TENSOR], [2, TENSOR], [3, TENSOR]], "args": "00ff"}
        elif call == "attest":
            self._epoch = to_next_epoch(dev)
            elected = dev.get(s.SubnetElectedValidator, SUBNET, self._epoch)
            propose(dev, elected)
            self._node = elected % 3 + 1
            self.key = HOTKEYS[self._node - 1]
        elif call == "register_subnet_node":
            self.key, self._hotkey = COLDKEYS[0], AccountKey.from_private(blake2(b"hotkey %d" % number))
            peer = {"peer_id": {"hex": peer_id_bytes(PeerKey.dev(f"peer {number}").peer_id).hex()}, "multiaddr": None}
            self.args = {**registration(b"", b""), "hotkey": {"hex": self._hotkey.account_id.hex()}, "peer_info": peer}
        else:
            self.call, self.key = "add_stake", COLDKEYS[0]
            hotkey = HOTKEYS[0].account_id
            self.args |= {"subnet_node_id": 1, "hotkey": {"hex": hotkey.hex()}, "stake_to_be_added": ADDED}
            self._stake = self._staked()
        self.since = dev.best.number

    def _staked(self) -> int:
        return int(self._dev.get(s.AccountSubnetStake, HOTKEYS[0].account_id, SUBNET))

    def require_once(self) -> None:
        """Exactly one extrinsic of the signer since, and its effect once."""
        signed = signed_since(self._dev, self.since, self.key)
        assert len(signed) == 1, f"{len(signed)} extrinsics"
        if self.call == "add_stake":
            assert self._staked() - self._stake == ADDED
        elif self.call == "propose":
            assert self._dev.get(s.SubnetConsensusSubmission, SUBNET, self._epoch)["args"] == b"\x00\xff"
        elif self.call == "attest":
            assert self._node in self._dev.get(s.SubnetConsensusSubmission, SUBNET, self._epoch)["attests"]
        else:
            assert self._dev.get(s.HotkeyOwner, self._hotkey.account_id) == self.key.account_id


def signed_since(dev: DevChain, since: int, key: AccountKey) -> list[bytes]:
    """Extrinsics of an account in the blocks after `since`."""
    found = []
    for number in range(since + 1, dev.best.number + 1):
        block = dev.store.block_at(number)
        assert block is not None
        found += [raw for raw in block.extrinsics if key.account_id in raw[:32]]
    return found


async def seal(dev: DevChain) -> None:
    """A block when something waits for one, and one on top, which makes it final."""
    while True:
        if len(dev.pool):
            dev.new_block()
            await trio.sleep(0.002)
            dev.new_block()
        await trio.sleep(0.002)


class Stage:
    """A chain with a subnet, in this process, and children that submit to it."""

    def __init__(self, dev: DevChain, url: str, forks: Forks, folder: Path) -> None:
        self.dev, self.url, self._forks, self._folder = dev, url, forks, folder
        self._number = 0

    def scene(self, call: str) -> Scene:
        self._number += 1
        return Scene(self.dev, call, self._number)

    async def live(self, scene: Scene, *, kill: str | None = None) -> dict[str, Any]:
        """One life of the process: how it ended. Every other scene's settles what was left when it starts, and not
        only when it makes the call again."""
        recover = self._number % 2 == 0
        pid = await self._forks.start(
            do="submit", urls=[self.url], journal=str(self._folder / f"journal {self._number}"),
            key=scene.key.private.hex(), call=scene.call, args=scene.args, kill=kill, recover=recover,
        )  # fmt: skip
        return await self._forks.ended(pid)

    async def crash_and_come_back(self, call: str, *steps: str) -> None:
        """Die at each of the steps in turn, then live; afterwards it has happened once."""
        scene = self.scene(call)
        for step in steps:
            died = await self.live(scene, kill=step)
            assert died["signal"] == signal.SIGKILL, f"did not come to {step!r}: {died}"
        lived = await self.live(scene)
        assert lived["signal"] == 0
        assert "hash" in (lived["result"] or {}), lived
        scene.require_once()
        (raw,) = signed_since(self.dev, scene.since, scene.key)
        assert lived["result"]["hash"] == blake2(raw).hex()


@asynccontextmanager
async def staged(tmp_path: Path) -> AsyncIterator[Stage]:
    dev = DevChain(config(None))
    populate(dev)
    async with trio.open_nursery() as nursery, forking(tmp_path) as forks:
        url = await nursery.start(lambda task_status: run_chain(dev.config, chain=dev, task_status=task_status))
        nursery.start_soon(seal, dev)
        yield Stage(dev, url, forks, tmp_path)
        nursery.cancel_scope.cancel()
    dev.close()


CALLS = ("add_stake", "propose", "attest", "register_subnet_node")
QUICK = [("add_stake", step) for step in STEPS] + [
    ("propose", "sent and not answered"),
    ("attest", "the journal has its fate"),
    ("register_subnet_node", "the journal has it"),
]


async def test_what_is_submitted_happens_once_though_the_process_is_killed_at_any_step(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for call, step in QUICK:
            await stage.crash_and_come_back(call, step)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
async def test_every_call_at_every_step(tmp_path: Path, call: str) -> None:
    async with staged(tmp_path) as stage:
        for step in STEPS:
            await stage.crash_and_come_back(call, step)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", STEPS[2:4])
async def test_killed_again_while_it_settles_what_it_left(tmp_path: Path, first: str) -> None:
    async with staged(tmp_path) as stage:
        for second in SETTLING_STEPS:
            await stage.crash_and_come_back("add_stake", first, second)


# --- the chain dies ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def prepared(folder: Path, call: str = "add_stake") -> AsyncIterator[tuple[Scene, dict[str, Any]]]:
    """A chain's data directory with a subnet in it, and a scene on it; nothing has it open."""
    dev = DevChain(config(folder))
    populate(dev)
    scene = Scene(dev, call, 0)
    dev.close()
    yield scene, {**dev.config.model_dump(mode="json"), "block_time_s": 0.15}


def judge(folder: Path, scene: Scene) -> None:
    """Open the directory again and look."""
    with contextlib.closing(DevChain(config(folder))) as dev:
        scene._dev = dev
        scene.require_once()


CHAIN_DIES_AFTER = ["the journal has it", "sent and not answered", "told ready", "told inBlock", None]


async def chain_dies(tmp_path: Path, forks: Forks, step: str | None, call: str = "add_stake") -> None:
    """The process is killed at a step (or waits on, None), then the chain, which comes back as it was on disk."""
    async with prepared(tmp_path / "chain", call) as (scene, settings):
        chain, url = await forks.chain(**{**settings, "block_time_s": settings["block_time_s"] if step else None})
        request = asked(tmp_path, url, scene)
        child = await forks.start(**request, kill=step)
        if step is None:
            await sent(tmp_path)
        else:
            assert (await forks.ended(child))["signal"] == signal.SIGKILL
        await forks.kill(chain)
        chain, _ = await forks.chain(**{**settings, "port": int(url.rpartition(":")[2])})
        if step is not None:
            child = await forks.start(**request)
        lived = await forks.ended(child)
        assert "hash" in (lived["result"] or {}), lived
        await forks.kill(chain)
    judge(tmp_path / "chain", scene)


def asked(tmp_path: Path, url: str, scene: Scene) -> dict[str, Any]:
    return {
        "do": "submit", "urls": [url], "journal": str(tmp_path / "journal"), "key": scene.key.private.hex(),
        "call": scene.call, "args": scene.args,
    }  # fmt: skip


async def sent(tmp_path: Path) -> None:
    """Until the journal has it, and a little longer."""
    with trio.fail_after(20):
        while not any(path.stat().st_size for path in (tmp_path / "journal").glob("*.jsonl")):  # noqa: ASYNC110
            await trio.sleep(0.01)
    await trio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("step", CHAIN_DIES_AFTER)
async def test_a_chain_that_dies_after_any_step_has_it_once(tmp_path: Path, step: str | None, call: str) -> None:
    async with forking(tmp_path) as forks:
        await chain_dies(tmp_path, forks, step, call)


async def test_a_chain_that_dies_and_comes_back_has_it_once_and_another_chain_gets_nothing(tmp_path: Path) -> None:
    async with forking(tmp_path) as forks:
        for number, step in enumerate(("sent and not answered", None)):
            await chain_dies(tmp_path / str(number), forks, step)
        await another_genesis(tmp_path, forks)


async def another_genesis(tmp_path: Path, forks: Forks) -> None:
    """A fresh directory at the same address: who waits neither signs for that chain nor sends to it."""
    async with prepared(tmp_path / "chain") as (scene, settings):
        chain, url = await forks.chain(**{**settings, "block_time_s": None})
        child = await forks.start(**asked(tmp_path, url, scene), timeout_s=1.0)
        await sent(tmp_path)
        await forks.kill(chain)
        richer = {address: planck + 1 for address, planck in settings["fund"].items()}
        other = {**settings, "fund": richer, "data_dir": str(tmp_path / "fresh"), "port": int(url.rpartition(":")[2])}
        chain, _ = await forks.chain(**other)
        assert (await forks.ended(child))["result"]["error"] == "ChainUnavailable"
        await forks.kill(chain)
    with contextlib.closing(DevChain(DevChainConfig.model_validate({**other, "block_time_s": None}))) as dev:
        assert dev.best.number > 0
        assert signed_since(dev, 0, scene.key) == []
    assert len(list((tmp_path / "journal").glob("*.jsonl"))) == 1
