"""`mesh chain` as a person uses it: one that runs is changed, killed, started again and restored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli.app import build
from mesh.cli.common import run_app


class Processes:
    """Chains in processes of their own, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *argv: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", "chain", "run", "--port", "0", "--json", *argv],
            env={**os.environ, "XDG_DATA_HOME": str(self.folder / "home"), "MESH_PARENT_PID": str(os.getpid())},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def url(self, *argv: str) -> str:
        """Of a chain that is ready."""
        process = self.start(*argv)
        assert process.stdout is not None
        url: str = json.loads(process.stdout.readline())["url"]
        return url


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path)
    yield found
    for process in found.running:
        process.kill()
        process.communicate()


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MESH_CHAIN_URL", raising=False)

    def call(*argv: str, code: int = 0) -> str:
        ended: object = 0
        try:
            run_app(build(), argv)
        except SystemExit as end:
            ended = end.code
        out, err = capsys.readouterr()
        assert ended == code, err
        assert "Traceback" not in err
        return out + err

    return call


def test_a_chain_is_changed_killed_and_restored(processes: Processes, mesh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "genesis.toml").write_text("epoch_length = 10\n[network]\nMinSubnetNodes = 2\n")
    folder = ("--data-dir", str(tmp_path / "chain"), "--genesis", str(tmp_path / "genesis.toml"))
    url = processes.url("--block-time", "manual", "--dev-rpc", *folder)
    at = ("--chain-url", url)
    mesh("chain", "dev", "new-block", "--count", "3", *at)
    mesh("chain", "dev", "set-storage", "MinSubnetNodes", "1", *at)
    mesh("chain", "dev", "set-storage", "Network.SubnetReputation[128001]", "5", *at)
    size = mesh("chain", "dev", "snapshot", "s.bin", *at)
    assert size == f"s.bin: {(tmp_path / 's.bin').stat().st_size} bytes\n"
    (marked,) = {mesh("chain", "dev", "restore", "s.bin", *at) for _ in range(2)}
    later = mesh("chain", "dev", "new-block", *at)
    assert later != marked
    assert "no storage item" in mesh("chain", "dev", "set-storage", "MinSubnetNodez", "1", *at, code=1)
    assert "kept by the chain" in mesh("chain", "dev", "set-storage", "System.Number", "1", *at, code=1)
    (tmp_path / "torn.bin").write_bytes((tmp_path / "s.bin").read_bytes()[:-1])
    assert "digest does not fit" in mesh("chain", "dev", "restore", "torn.bin", *at, code=1)
    assert "cannot be read" in mesh("chain", "dev", "restore", "nothing.bin", *at, code=1)

    second = processes.start("--block-time", "1", *folder)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 1
    assert said.splitlines()[-1].startswith(f"error: another dev chain runs in {tmp_path / 'chain'}")

    first = processes.running[0]
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
    url = processes.url("--block-time", "manual", "--dev-rpc", *folder)
    at = ("--chain-url", url)
    assert mesh("chain", "dev", "restore", "s.bin", *at) == marked
    assert mesh("chain", "dev", "new-block", *at) == later  # the same chain, to the last byte


def test_without_dev_rpc_and_without_a_chain_it_says_what_to_do(processes: Processes, mesh) -> None:  # type: ignore[no-untyped-def]
    at = ("--chain-url", processes.url("--block-time", "3600", "--data-dir", str(processes.folder / "chain")))
    assert "start it again with that flag" in mesh("chain", "dev", "new-block", *at, code=1)
    processes.running[0].kill()
    processes.running[0].wait(timeout=60)
    assert "start one with `mesh-chain --dev-rpc`" in mesh("chain", "dev", "new-block", *at, code=1)
