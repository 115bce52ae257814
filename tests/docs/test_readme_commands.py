"""Every command the README shows, run in its order against a development chain, as a newcomer would."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.identity import AccountKey, PeerKey, save_account_key

ROOT = Path(__file__).parents[2]
ENTRY = {
    "mesh": [],
    "mesh-server": ["server"],
    "mesh-chain": ["chain"],
    "keygen": ["keygen"],
    "keyview": ["keyview"],
    "register-subnet": ["register-subnet"],
    "register-node": ["register-node"],
    "activate-subnet": ["activate-subnet"],
    "activate-node": ["activate-node"],
}
LONG_RUNNING = {"mesh-server", "mesh-chain"}


def shown() -> list[list[str]]:
    """All commands in the README's console blocks, as argument lists."""
    found = []
    for block in re.findall(r"^ *```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE):
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
        found += [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]
    return found


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [words[1] for words in shown() if words[0] == "make"]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


class Shell:
    """An empty folder with a chain in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "XDG_DATA_HOME": str(folder / "home"), "MESH_PARENT_PID": str(os.getpid())}
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *argv: str) -> str:
        """Start a program that goes on; its first line of output."""
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", *argv],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{argv} ended with {process.wait()}"
        return line

    def run(self, *argv: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli", *argv],
            cwd=self.folder,
            env=self.env,
            input="y\n",  # what signs asks first
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def end(self) -> list[int]:
        for process in self.running:
            process.send_signal(signal.SIGINT)
        return [process.wait(timeout=10) for process in self.running]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    for process in shell.running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.timeout(300)
def test_the_commands_in_their_order(shell: Shell) -> None:
    url = json.loads(shell.start("chain", "--block-time", "0.5", "--port", "0", "--json"))["url"]
    shell.env["MESH_CHAIN_URL"] = url
    owner = AccountKey.dev("alith")
    others = [AccountKey.dev(name) for name in ("baltathar", "charleth")]
    save_account_key(shell.folder / "funded.account", owner)
    for account, keys in zip(others, ("node2", "node3"), strict=True):
        shell.run("keygen", "--keys-dir", keys)
        save_account_key(shell.folder / f"{keys}.account", account)
    peer = str(PeerKey.dev("bootnode").peer_id)
    places = {
        "12D3KooW...": peer,
        "0xA...": owner.address,
        "0xB...": others[0].address,
        "0xC...": others[1].address,
        "0xHOTKEY": others[0].address,
        "198.51.100.7": "127.0.0.1",
    }
    ran = set()
    first_server = ""
    commands = [words for words in shown() if words[0] in ENTRY]
    order = [w for w in commands if w[0] not in ("mesh-server", "mesh")] + [
        w for w in commands if w[0] in ("mesh-server", "mesh")
    ]
    for words in order:
        line = " ".join(shlex.quote(word) for word in words[1:])
        for place, value in places.items():
            line = line.replace(place, value)
        argv = [*ENTRY[words[0]], *shlex.split(line)]
        if words[0] == "mesh-chain" or words[:2] == ["mesh", "demo"]:
            ran.add(words[0])
            continue  # the chain runs already; the demo has its own test
        if "--coldkey-file" in argv:  # a fresh coldkey owns nothing: the funded one signs
            argv[argv.index("--coldkey-file") + 1] = "funded.account"
        if words[0] == "activate-subnet":
            for keys in ("node2", "node3"):
                arguments = ("--subnet_id", "1", "--keys-dir", keys, "--coldkey-file", f"{keys}.account")
                assert "is registered" in shell.run("register-node", *arguments)
            shell.run("register-node", "--help")  # a stranger's first move; must not need a chain
        if words[0] == "mesh-server":
            if "--no_blockchain_rpc" not in argv:
                continue  # the demo's end-to-end test runs optimization nodes on a chain
            if "--initial_peers" in argv:
                argv[argv.index("--initial_peers") + 1] = first_server
            at = argv.index("--host_maddrs") + 1 if "--host_maddrs" in argv else 0
            if at:
                argv[at] = "/ip4/127.0.0.1/tcp/0"
            ready = json.loads(shell.start(*argv, "--json"))
            first_server = first_server or ready["addresses"][0]
        elif words[:2] == ["mesh", "doctor"]:
            done = subprocess.run(
                [sys.executable, "-m", "mesh.cli", *argv], cwd=shell.folder, env=shell.env, capture_output=True,
                text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 1  # the hotkey holds nothing
            assert "fails    balance" in done.stdout
            assert "ok       registration" in done.stdout
        else:
            shell.run(*argv)
        ran.add(words[0])
    assert ran >= set(ENTRY) - {"keyview"}
    assert shell.end() == [0] * len(shell.running)
