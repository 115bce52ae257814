"""Every Python block of the README and of docs/ runs, and what it shows is what it prints; commands run, too.

Blocks of one page share a namespace, in their order. A block asserts something, prints what a ```text block right
behind it shows (`...` stands for anything), or only defines what a later block of its page uses.
"""

import ast
import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli.app import build
from tests.docs.pages import ROLES, commands_of, is_like

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = PAGES[1:]
ELSEWHERE = {"keep-keys", "look-at-the-chain", *ROLES}
"""Guides whose commands other tests run, with keys and a chain at hand: tests/cli, and test_role_pages.py."""
ACTING = {
    "subnet": ("update", "initial-coldkeys", "bootnodes", "emergency", "transfer"),
    "node": ("status", "update"),
    "stake": ("add", "remove"),
    "delegate": ("add", "swap", "remove", "transfer"),
    "overwatch": ("register", "commit", "show"),
    "identity": ("set",),
}
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")
WAIT_S = 60.0


def names_of(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def defined_in(tree: ast.Module) -> set[str]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)} | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    text = page.read_text()
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    trees = [ast.parse(block[1]) for block in blocks]
    for number, (block, tree) in enumerate(zip(blocks, trees, strict=True)):
        line = text.count("\n", 0, block.start()) + 1
        checks = any(isinstance(node, ast.Assert) for node in ast.walk(tree)) or block[2] is not None
        used = set().union(*map(names_of, trees[number + 1 :]))
        assert checks or defined_in(tree) & used, f"{page.name}:{line} checks nothing"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Tracebacks name the page and its line.
            exec(compile("\n" * line + block[1], str(page), "exec"), module.__dict__)
        shown = block[2] or ""
        assert is_like(shown, printed.getvalue()), f"{page.name}:{line} printed:\n{printed.getvalue()}"


def test_the_first_service_is_short() -> None:
    block = BLOCK.search((ROOT / "docs" / "write-a-service.md").read_text())
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) < 60


@pytest.mark.parametrize(
    "page", [*PAGES, *ROOT.glob("*/README.md")], ids=lambda page: f"{page.parent.name}-{page.stem}"
)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# --- commands -------------------------------------------------------------------------------------------------------


class Shell:
    """A folder in which a page's commands run one after the other; a server goes on until the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "XDG_DATA_HOME": str(folder / "home"), "MESH_PARENT_PID": str(os.getpid())}
        self.server: subprocess.Popen[str] | None = None
        self.address = ""

    def serve(self, argv: list[str]) -> None:
        """Start `mesh-server` with these arguments, on free ports of loopback, and wait until it is ready."""
        free = {"--host_maddrs": "/ip4/127.0.0.1/tcp/0", "--data_port": "0"}
        argv = [free.get(before, word) for before, word in zip(["", *argv], argv, strict=False)]
        self.server = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", "server", *argv, "--json"],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        assert line, f"mesh-server ended with {self.server.wait()}"
        (self.address,) = json.loads(line)["addresses"]

    def run(self, command: str) -> str:
        """A command's output. `mesh` is this checkout's."""
        command = re.sub(r"/ip4/127\.0\.0\.1/tcp/\d+/p2p/12D3KooW\.\.\.", self.address, command)
        argv = shlex.split(command, comments=True)
        if argv[0] == "mesh":
            argv, is_shell = [sys.executable, "-m", "mesh.cli", *argv[1:]], False
        else:
            is_shell = True
        done = subprocess.run(
            command if is_shell else argv,
            shell=is_shell,
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def end(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            assert self.server.wait(timeout=20) == 0
            assert self.server.stdout is not None
            self.server.stdout.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    if shell.server is not None:
        shell.server.kill()
        shell.server.wait()
        assert shell.server.stdout is not None
        shell.server.stdout.close()


@pytest.mark.timeout(WAIT_S)
@pytest.mark.parametrize(
    "page", [page for page in GUIDES if commands_of(page) and page.stem not in ELSEWHERE], ids=lambda page: page.stem
)
def test_commands_print_what_is_shown(page: Path, shell: Shell) -> None:
    commands = commands_of(page)
    if not any(command.startswith("mesh-server ") for command, _ in commands):
        named = re.search(r"`mesh-server ([^`]*)`", page.read_text())
        assert named is not None
        shell.serve(shlex.split(named[1]))
    for command, shown in commands:
        if command.startswith("mesh-server "):
            shell.serve(shlex.split(command)[1:])
            continue
        real = shell.run(command)
        assert is_like(shown, real), f"{command} printed:\n{real}"
    shell.end()


def test_flags_named_in_the_guides_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["server"],
        ["rpc", "call"],
        ["content", "get"],
        ["content", "put"],
        ["dht", "get"],
        ["dht", "put"],
        ["keys", "new"],
        ["keys", "import"],
        ["keys", "show"],
        ["keys", "export"],
        ["register-node"],
        ["transfer"],
        ["chain", "epoch"],
        ["chain", "events"],
        ["rewards"],
        ["epoch", "watch"],
        ["epoch", "replay"],
        ["doctor"],
        ["register-subnet"],
        ["keygen"],
        ["chain", "run"],
        ["chain", "dev", "new-block"],
        *([group, command] for group, commands in ACTING.items() for command in commands),
    ):
        build().help_print(command)
    known = {"--help", *re.findall(r"--[a-z-]+", capsys.readouterr().out.replace("_", "-"))}
    for page in GUIDES:
        for flag in re.findall(r"--[a-z][a-z_-]+", page.read_text()):
            assert flag.replace("_", "-") in known, f"{page.name}: {flag}"
