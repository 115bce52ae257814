"""`mesh dht get|put|crawl|table|stats|explain` against real nodes in other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli.app import build
from mesh.cli.common import run_app

NODE = "from mesh.cli.app import mesh_server; mesh_server()"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes of the mock subnet without a chain; the address of the first."""
    nodes: list[subprocess.Popen[str]] = []
    addresses: list[str] = []
    try:
        for name in ("a", "b"):
            folder = tmp_path_factory.mktemp(name)
            argv = ["mock", "--no-blockchain-rpc", "--data-dir", str(folder), "--json"]
            argv += ["--initial-peers", *addresses[:1]] if addresses else []
            nodes.append(
                subprocess.Popen(
                    [sys.executable, "-c", NODE, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
            stdout = nodes[-1].stdout
            assert stdout is not None
            addresses.append(json.loads(stdout.readline())["addresses"][0])
        yield addresses[0]
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(20)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code: object = 0
    try:
        run_app(build(), ["dht", *argv])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 1), out, err


def test_the_network_as_a_whole(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "crawl", "--initial-peers", address)
    assert code == 0
    assert "2 nodes answered, 0 did not\n" in out
    found = json.loads(run(capsys, "crawl", "--initial-peers", address, "--json")[1])
    assert len(found["nodes"]) == 2
    assert found["is_complete"]
    assert all(node["role"] == "server" and node["knows"] for node in found["nodes"])


def test_a_nodes_table_and_numbers(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "table", "--initial-peers", address)
    assert code == 0
    assert out.startswith("0+ bits: 1 peers\n  12D3KooW")
    assert len(json.loads(run(capsys, "table", "--initial-peers", address, "--json")[1])["buckets"][0]) == 1
    code, out, _ = run(capsys, "stats", "--initial-peers", address)
    assert code == 0
    assert out.startswith("server, 1 peers, ")
    numbers = json.loads(run(capsys, "stats", "--initial-peers", address, "--json")[1])
    assert numbers["asked"]["find"] >= 1


def test_explaining_storing_and_reading(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The mock subnet takes heartbeats only: text is refused, and explain says by which check; what the nodes
    themselves store is read back."""
    code, out, _ = run(capsys, "explain", "heartbeat/1", "hello", "--initial-peers", address)
    assert code == 0
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["size"] == lines["signature"] == lines["membership"] == "ok"
    assert lines["schema"].startswith("REFUSED (schema)")
    code, out, err = run(capsys, "put", "heartbeat/1", "hello", "--initial-peers", address)
    assert code != 0
    assert out.count("refused  ") == 2
    assert "nobody stored it: schema" in err
    refused = json.loads(run(capsys, "stats", "--initial-peers", address, "--json")[1])["refused"]
    assert refused["schema"] >= 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("get", "nowhere/x"), "'nowhere' is not stored here"),
        (("get", "0xzz"), "is not hexadecimal"),
        (("get", "heartbeat/999"), "nothing is stored under"),
        (("put", "heartbeat/1", "y", "--ttl-s", "nan"), "unix seconds"),
    ],
)
def test_mistakes_are_one_sentence(
    address: str, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    code, out, err = run(capsys, *argv, "--initial-peers", address)
    assert code != 0
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_without_a_node_it_says_where_to_get_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "get", "heartbeat/1")
    assert code != 0
    assert "a running node prints its own" in err


def test_an_identity_is_kept_from_a_file(address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from mesh.identity import PeerKey, save_peer_key

    save_peer_key(tmp_path / "id.key", PeerKey.generate())
    argv = ("explain", "heartbeat/1", "y", "--identity", str(tmp_path / "id.key"), "--initial-peers", address, "--json")
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert json.loads(out)["lines"]
