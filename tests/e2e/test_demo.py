"""The demo as a person runs it: separate processes, real sockets, a real chain. Waits on events, not on time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "mesh.cli", "demo"]


def processes_naming(text: str) -> list[int]:
    """Ids of running processes with this text in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.timeout(420)
def test_the_whole_loop_holds(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    argv = [*DEMO, "--nodes", "5", "--epochs", "1", "--seed", "11", "--json", "--data-dir", str(data)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["accuracy_after"] - found["accuracy_before"] >= 0.02
    assert found["verified_gain"] > 0
    assert found["rejected_claims"] >= 1
    assert found["stranger_refused"] is True
    assert found["epochs_settled"] >= 1
    assert found["conserved"] is True
    assert [row["role"] for row in found["nodes"]].count("liar") == 1
    assert [row["role"] for row in found["nodes"]].count("killed") == 1
    liar = next(row for row in found["nodes"] if row["role"] == "liar")
    assert liar["claims_accepted"] == 0
    assert any(int(row["reward_work"]) > 0 for row in found["nodes"])
    for epoch in found["books"]:
        minted, burned = (sum(int(v) for v in epoch[k].values()) for k in ("minted", "burned"))
        assert int(epoch["after"]) - int(epoch["before"]) == minted - burned
    assert processes_naming(str(data)) == []
    assert {path.name for path in (data / "logs").iterdir()} >= {"chain.log", "bootnode.log", "node-1.log"}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("after_log", ["chain.log", "node-5.log"], ids=["early", "nodes-starting"])
def test_ctrl_c_leaves_nothing_behind(after_log: str, tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(
        [*DEMO, "--nodes", "5"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not list(tmp_path.glob(f"mesh-demo-*/logs/{after_log}")):
            assert demo.poll() is None, demo.communicate()
            try:
                demo.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=30)
        assert demo.returncode == 130, errors
        assert "Traceback" not in errors
    finally:
        demo.kill()
    assert processes_naming(str(tmp_path)) == []
    assert list(tmp_path.glob("mesh-demo-*")) == []
