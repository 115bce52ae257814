"""`mesh rpc list` and `mesh rpc call` against a real node in another process."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mesh.cli.app import build
from mesh.cli.common import run_app


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node of the mock subnet without a chain."""
    folder = tmp_path_factory.mktemp("node")
    command = "from mesh.cli.app import mesh_server; mesh_server()"
    node = subprocess.Popen(
        [sys.executable, "-c", command, "mock", "--no-blockchain-rpc", "--data-dir", str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert node.stdout is not None
        yield json.loads(node.stdout.readline())["addresses"][0]
    finally:
        node.terminate()
        node.wait(20)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code: object = 0
    try:
        run_app(build(), ["rpc", *argv])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 1), out, err


def test_what_a_node_serves(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", address)
    assert code == 0
    assert "/mesh/health/1.0.0\n" in out
    assert re.search(r"alive +\{\} -> \{heartbeats: integer\}\n +for members, 5 s\.", out)
    listed = json.loads(run(capsys, "list", address, "--json")[1])
    assert "/mesh/reflection/1.0.0" in [service["protocol"] for service in listed["services"]]


def test_a_call(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "call", address, "/mesh/health/1.0.0", "health")
    assert code == 0
    assert json.loads(out)["subnet"] == "mock"
    assert json.loads(run(capsys, "call", address, "/mesh/mock/1.0.0", "rpc_alive", "{}")[1])["heartbeats"] >= 0


def test_requests_come_from_standard_input(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}\n"))
    code, out, _ = run(capsys, "call", address, "/mesh/health/1.0.0", "health", "-")
    assert code == 0
    assert json.loads(out)["subnet"] == "mock"
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}\n{}\n"))
    assert "takes one request, and 2 were given" in run(capsys, "call", address, "/mesh/health/1.0.0", "health", "-")[2]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("/mesh/health/1.0.0", "nope"), "has no method nope; it has health"),
        (("/mesh/none/1.0.0", "nope"), "does not serve /mesh/none/1.0.0; it serves"),
        (("/mesh/health/1.0.0", "health", "{x"), "not JSON"),
        (("/mesh/health/1.0.0", "health", '{"x": 1}'), "bad-request: Empty: x: Extra inputs"),
    ],
)
def test_mistakes_are_one_sentence(
    address: str, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    code, out, err = run(capsys, "call", address, *argv)
    assert code != 0
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("peer", ["", "127.0.0.1", "/ip4/127.0.0.1/tcp/1"])
def test_addresses_that_are_none(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "list", peer)
    assert code != 0
    assert "PEER" in err
