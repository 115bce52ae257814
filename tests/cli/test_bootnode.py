"""A bootnode as a process: what it tells others of itself, how it ends, and that it is found on the local network."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def begin(*argv: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mesh.cli",
                "dht",
                "bootnode",
                "--no_blockchain_rpc",
                "--new_swarm",
                "--json",
                *argv,
            ],
            cwd=Path(__file__).parent.parent.parent,
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        return process, json.loads(line) if line else {}

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return err


def test_announce_maddrs_are_what_others_are_told(start: Start) -> None:
    process, ready = start("--announce_maddrs", "/dns4/node.example/tcp/31330", "/ip4/127.0.0.1/tcp/31330")
    peer = ready["peer_id"]
    assert ready["addresses"] == [f"/dns4/node.example/tcp/31330/p2p/{peer}", f"/ip4/127.0.0.1/tcp/31330/p2p/{peer}"]
    err = end(process)
    assert "others cannot reach this node at /ip4/127.0.0.1/tcp/31330" in err
    assert "node.example/tcp/31330:" not in err


def test_nodes_that_were_told_of_nobody_meet_by_mdns(start: Start) -> None:
    from mesh.cli.server import NodeOptions

    assert NodeOptions().mdns is False
    first, ready = start("--mdns", "--log_level", "DEBUG")
    if not ready and "mDNS does not work" in first.communicate()[1]:
        pytest.skip("no multicast on this machine")
    second, also = start("--mdns", "--log_level", "DEBUG")
    assert second.stderr is not None
    said = ""
    while f"meet {ready['peer_id']}" not in said:  # pytest's timeout ends it
        line = second.stderr.readline()
        assert line, said
        said += line
    assert also["event"] == "ready"
    end(second)
    end(first)
