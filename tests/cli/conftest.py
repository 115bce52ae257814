"""What tests of commands share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.cli.app import build
from mesh.cli.common import run_app
from mesh.config import SECRET_VARIABLES


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The app in this process, as the entry points run it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # programs set up logging, on a stderr that is gone later
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in (*SECRET_VARIABLES, "PUBLIC_INITIAL_PEERS", "MESH_CHAIN_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*argv: str) -> Done:
        code: object = 0
        try:
            run_app(build(), argv)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return Done(code if isinstance(code, int) else 1, out, err)

    return call
