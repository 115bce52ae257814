"""`mesh content`: a file put beside a running node is served by it and comes from all nodes at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.cli.app import build
from mesh.cli.common import run_app
from mesh.content import digest_of
from tests.content.hosts import MIB, blob

ROOT = Path(__file__).parents[2]
DIGEST = "ab" * 32
PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"


class Shell:
    """Commands in this process, nodes in their own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.nodes: list[subprocess.Popen[str]] = []

    def run(self, *argv: str, code: int = 0) -> str:
        """What it printed: on stdout when all is well, on stderr otherwise."""
        ended: object = 0
        try:
            run_app(build(), ["content", *argv])
        except SystemExit as end:
            ended = end.code
        out, err = self.capsys.readouterr()
        assert ended == code, err
        assert "Traceback" not in err
        return err if code else out

    def node(self, name: str) -> str:
        """The address of a node without a chain."""
        argv = ("server", "mock", "--no_blockchain_rpc", "--new_swarm", "--data_dir", str(self.folder / name), "--json")
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", *argv],
            cwd=ROOT,  # so that it runs this code
            env={**os.environ, "MESH_PARENT_PID": str(os.getpid())},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.nodes.append(process)
        assert process.stdout is not None
        ready: dict[str, Any] = json.loads(process.stdout.readline())
        address: str = ready["addresses"][0]
        return address


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PUBLIC_INITIAL_PEERS", raising=False)
    shell = Shell(tmp_path, capsys)
    yield shell
    for process in shell.nodes:
        process.send_signal(signal.SIGINT)
    for process in shell.nodes:
        process.wait(timeout=10)
        assert process.stdout is not None
        process.stdout.close()


def test_put_get_and_list(shell: Shell) -> None:
    data = blob(3 * MIB + 5)
    (shell.folder / "model").write_bytes(data)
    addresses = [shell.node("one"), shell.node("two")]
    for data_dir in ("one", "two"):
        assert shell.run("put", "model", "--data_dir", data_dir).strip() == digest_of(data).hex()
    assert json.loads(shell.run("put", "model", "--data_dir", "one", "--json")) == {
        "digest": digest_of(data).hex(),
        "bytes": len(data),
    }
    (listed,) = json.loads(shell.run("ls", "--data_dir", "one", "--json"))
    assert (listed["digest"], listed["bytes"], listed["whole"]) == (digest_of(data).hex(), len(data), True)
    assert digest_of(data).hex() in shell.run("ls", "--data_dir", "two")
    get = ("get", digest_of(data).hex(), "--initial_peers", *addresses)
    assert shell.run(*get, "-o", "copy") == f"copy: {len(data)} bytes\n"
    assert (shell.folder / "copy").read_bytes() == data
    assert "there already" in shell.run(*get, "-o", "copy", code=1)
    shell.run(*get)
    assert (shell.folder / digest_of(data).hex()).read_bytes() == data
    assert "served by none of 2 peers" in shell.run("get", DIGEST, "--initial_peers", *addresses, code=1)
    assert not list(shell.folder.glob(".*.part"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("put", "nothing", "--data-dir", "."), "nothing cannot be read"),
        (("put", ".", "--data-dir", "."), "is no file"),
        (("put", "nothing"), "--data-dir"),
        (("put", "nothing", "--data-dir", "nowhere"), "start the node once"),
        (("put", "nothing", "--identity_path", "no-key"), "not there"),
        (("ls",), "--data-dir"),
        (("ls", "--data-dir", "a-file"), "is no folder"),
        (("get", "abc"), "64 hexadecimal digits"),
        (("get", "../../etc/passwd"), "64 hexadecimal digits"),
        (("get", DIGEST), "--initial_peers"),
        (("get", DIGEST, "--initial_peers", "/ip4/1.2.3.4/tcp/1"), "--initial_peers"),
        (("get", DIGEST, "--initial_peers", PEER, "-o", "nowhere/x"), "a folder that is there"),
        (("get", DIGEST, "--initial_peers", PEER, "-o", ".", "--force"), "-o"),
        (("get", DIGEST, "--initial_peers", PEER, "--identity", "no-key"), "not there"),
        (("get", DIGEST, "--initial_peers", PEER), "served by none of 1 peers"),
        (("get", DIGEST, "--initial_peers", PEER), "--identity"),
    ],
)
def test_errors_are_one_sentence(argv: tuple[str, ...], says: str, shell: Shell) -> None:
    (shell.folder / "a-file").touch()
    err = shell.run(*argv, code=1)
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_an_empty_list_is_no_error(shell: Shell) -> None:
    assert shell.run("ls", "--data-dir", ".") == ""
    assert shell.run("ls", "--data-dir", ".", "--json").strip() == "[]"
