"""Nodes outlive their chain: it is killed with SIGKILL mid-run and comes back; the nodes wait, reconnect and go on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh.identity import AccountKey, PeerKey, save_account_key, save_peer_key

NAMES = ("alith", "baltathar", "charleth")


class Town:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "XDG_DATA_HOME": str(folder / "home"), "MESH_PARENT_PID": str(os.getpid())}
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *argv: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        log = (self.folder / f"{argv[0]}-{len(self.running)}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", *argv, "--json"],
            cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        log.close()
        self.running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{argv} ended with {process.wait()}"
        return process, json.loads(line)

    def run(self, *argv: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli", *argv, "--json"],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.timeout(600)
def test_a_chain_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    town = Town(tmp_path)
    try:
        _story(town)
    finally:
        town.end()


def _story(town: Town) -> None:
    chain_argv = ["chain", "--block-time", "0.5", "--data-dir", "chain"]
    hotkeys = {name: AccountKey.generate() for name in NAMES}
    funds = [f"{key.address}=1" for key in hotkeys.values()]
    chain, ready = town.start(*chain_argv, "--port", "0", "--fund", *funds)
    url = ready["url"]
    town.env["MESH_CHAIN_URL"] = url
    for name in NAMES:
        save_account_key(town.folder / f"{name}.account", AccountKey.dev(name))
        save_account_key(town.folder / name / "hotkey.account", hotkeys[name])
        for file in ("peer", "bootnode", "client"):
            save_peer_key(town.folder / name / f"{file}.key", PeerKey.generate())
    town.run(
        "register-subnet", "--yes", "--name", "m", "--repo", "m", "--coldkey-file", "alith.account",
        "--initial_coldkeys", *(AccountKey.dev(name).address for name in NAMES),
        "--bootnodes", f"/ip4/127.0.0.1/tcp/1/p2p/{PeerKey.dev('bootnode').peer_id}",
    )  # fmt: skip
    entry: list[str] = ["--new-swarm"]
    nodes = []
    for name in NAMES:
        registered = ("--subnet_id", "1", "--keys-dir", name, "--coldkey-file", f"{name}.account")
        town.run("register-node", "--yes", *registered)
        node, said = town.start(
            "server", "mock", "--identity-path", f"{name}/peer.key", "--hotkey-file", f"{name}/hotkey.account",
            "--data-dir", f"data-{name}", *entry,
        )  # fmt: skip
        entry = ["--initial-peers", said["addresses"][0]]
        nodes.append(node)
    town.run("activate-subnet", "--yes", "--subnet_id", "1", "--coldkey-file", "alith.account")

    # ... and the chain dies; its database and port stay.
    chain.kill()
    chain.wait()
    port = url.rsplit(":", 1)[1].strip("/")
    chain, _ = town.start(*chain_argv, "--port", port, "--fund", *funds)

    _wait_for_attested_proposal(town, url)
    assert all(node.poll() is None for node in nodes)


def _wait_for_attested_proposal(town: Town, url: str) -> None:
    """Until all score and all attest in one epoch; where the chain was away, somebody's heartbeat may be missing."""
    import random

    import trio

    from mesh.chain.substrate import ChainConfig, SubstrateChain

    async def main() -> None:
        chain = SubstrateChain(ChainConfig(urls=(url,)), journal_dir=town.folder / "j", rng=random.Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(chain.run)
            real = await chain.resolve_subnet_id(1)
            async for head in chain.heads():
                epoch = head.number // chain.epoch_length
                for one in range(max(0, epoch - 2), epoch + 1):
                    submission = await chain.submission(real, one)
                    if submission is None or len(submission.attests) < len(NAMES):
                        continue
                    if {score.node_id for score in submission.scores} == {1, 2, 3}:
                        nursery.cancel_scope.cancel()
                        return

    trio.run(main)
