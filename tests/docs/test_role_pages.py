"""The pages for owners, nodes, stakers and watchers: their commands, in this order, on one development chain."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROLES, commands_of, is_like

ROOT = Path(__file__).parents[2]
PROGRAMS = {"mesh": (), "mesh-chain": ("chain", "run"), "mesh-server": ("server",)}
"""What the shown programs are in this checkout; others are their own names."""
OWN = {"keygen", "keyview", "register-subnet", "register-node", "activate-subnet", "activate-node"}
EPOCH_BLOCKS = 100
REVEAL_BLOCK = 80
"""Of an overwatch epoch; watch-over-subnets.md goes on to it by so many blocks, as if none came meanwhile."""
WAIT_S = 60.0


class Reader:
    """Somebody who types what the pages show."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "XDG_DATA_HOME": str(folder / "home")}
        self.running: list[subprocess.Popen[str]] = []
        shutil.copytree(ROOT / "keys", folder / "keys")
        for file in (folder / "keys").iterdir():
            file.chmod(0o600)
        programs = folder / "bin"
        programs.mkdir()
        for name in (*PROGRAMS, *OWN):
            argv = shlex.join([sys.executable, "-m", "mesh.cli", *PROGRAMS.get(name, (name,))])
            (programs / name).write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
            (programs / name).chmod(0o700)
        self.env["PATH"] = f"{programs}:{self.env['PATH']}"
        self.env["PYTHONPATH"] = str(ROOT)
        self.bootnode = ""

    def start(self, command: str) -> dict[str, object]:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command} --json"],
            cwd=self.folder, env={**self.env, "MESH_PARENT_PID": str(os.getpid())}, stdout=subprocess.PIPE,
            stderr=(self.folder / "err.log").open("a"), text=True,
        )  # fmt: skip
        self.running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{command} ended with {process.wait()}"
        said: dict[str, object] = json.loads(line)
        return said

    def type(self, command: str) -> str:
        """What a command prints; long-running ones go on, `export` is remembered."""
        command = command.replace("/p2p/12D3KooW...", f"/p2p/{self.bootnode}")
        if command.startswith("mesh-chain "):
            self.env["MESH_CHAIN_URL"] = str(self.start(f"{command} --port 0")["url"])
            return ""
        if command.startswith("mesh-server "):
            self.start(command.replace("tcp/31330", "tcp/0"))
            return ""
        name, is_export, value = command.removeprefix("export ").partition("=")
        line = f"printf %s {value}" if command.startswith("export ") and is_export else command
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if command.startswith("export "):
            self.env[name] = done.stdout
            return ""
        if command.startswith("keygen --keys-dir entry"):
            found = re.search(r"^bootnode +(\S+)", done.stdout, re.MULTILINE)
            assert found is not None
            self.bootnode = found[1]
        return done.stdout

    def go_to(self, offset: int) -> None:
        """Make blocks up to the next one that has this place in its epoch. The chain makes some by itself meanwhile."""
        block = json.loads(self.type("mesh overwatch show --json"))["block"]
        self.type(f"mesh chain dev new-block --count {(offset - block - 1) % EPOCH_BLOCKS + 1}")

    def end(self) -> None:
        for process in reversed(self.running):
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    for process in reader.running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ordered() -> Iterator[tuple[str, str, str]]:
    """(page, command, what it prints). An owner activates when others have registered: that part comes later."""
    owner = commands_of(ROOT / "docs" / f"{ROLES[0]}.md")
    last = next(place for place, (command, _) in enumerate(owner) if command.startswith("activate-subnet"))
    for command, shown in owner[:last]:
        yield ROLES[0], command, shown
    for page in ROLES[1:3]:
        for command, shown in commands_of(ROOT / "docs" / f"{page}.md"):
            yield page, command, shown
    yield ROLES[0], "export MESH_COLDKEY=$(cat keys/alith.account)", ""
    for command, shown in owner[last:]:
        yield ROLES[0], command, shown
    for command, shown in commands_of(ROOT / "docs" / f"{ROLES[3]}.md"):
        yield ROLES[3], command, shown


@pytest.mark.timeout(300)
def test_the_pages_of_the_roles(reader: Reader) -> None:
    page = ""
    for where, command, shown in ordered():
        if where == ROLES[3] and page != where:
            reader.go_to(0)
        page = where
        if command == f"mesh chain dev new-block --count {REVEAL_BLOCK}":
            reader.go_to(REVEAL_BLOCK)
            continue
        real = reader.type(command)
        assert is_like(shown, real), f"{page}: {command} printed:\n{real}"
    reader.end()
