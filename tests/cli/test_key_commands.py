"""`mesh keys` as a person types it: encrypted files, nothing secret on the screen unless asked for twice."""

import json
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import keyfiles
from mesh.cli.common import ColdkeyOptions
from mesh.errors import KeyFileError
from mesh.identity import AccountKey, parse_address, save_account_key
from mesh.keystore import unseal
from tests.docs.pages import DOCS, commands_of, is_like

Run = Callable[..., Any]
JUNK = "test test test test test test test test test test test junk"
LIGHT = ("--kdf", "scrypt-light")


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MESH_KEY_PASSWORD", "correct horse")
    return "correct horse"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A person who types these answers; the list holds what was asked."""

    def types(*answers: str) -> list[str]:
        left, asked = list(answers), []

        def answer(prompt: str = "") -> str:
            asked.append(prompt)
            return left.pop(0)

        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stdin.readline", lambda: answer() + "\n", raising=False)
        monkeypatch.setattr("getpass.getpass", answer)
        return asked

    return types


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def pipe(text: str) -> None:
        monkeypatch.setattr("sys.stdin.read", lambda size=-1: text, raising=False)
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)

    return pipe


@pytest.mark.parametrize("words", ["12", "15", "18", "21", "24"])
def test_a_new_key_is_encrypted_private_and_can_be_backed_up(words: str, run: Run, password: str) -> None:
    made = run("keys", "new", "coldkey", "--words", words, *LIGHT, "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    path = Path(said["path"])
    assert path == Path("home/mesh/keys/coldkey.account").absolute()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    backup = json.loads(run("keys", "export", "coldkey", "--show-secret", "--phrase", "--yes", "--json").stdout)
    assert len(backup["phrase"].split()) == int(words) == said["words"]
    assert AccountKey.from_mnemonic(backup["phrase"]).address == said["address"] == backup["address"]
    key = unseal(path.read_bytes(), password).key
    for secret in (backup["phrase"], key.private.hex()):
        assert secret not in made.stdout + made.stderr + path.read_text()


def test_a_key_is_replaced_only_when_told_to(run: Run, password: str) -> None:
    argv = ("keys", "new", "a", *LIGHT, "--json")
    first = json.loads(run(*argv).stdout)
    again = run(*argv)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert json.loads(run("keys", "show", "a", "--json").stdout)["address"] == first["address"]
    assert json.loads(run(*argv, "--force").stdout)["address"] != first["address"]
    assert [p.name for p in Path("home/mesh/keys").iterdir()] == ["a.account"]


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "", "a.b", "-", "a" * 65, "ä", "a\n"])
def test_a_name_is_no_path(name: str, run: Run, password: str) -> None:
    done = run("keys", "new", "--", name)
    assert done.returncode == 1
    assert "no name" in done.stderr
    assert not Path("home").exists()


def test_phrases_keys_and_other_wallets_files_are_taken_in(
    run: Run, password: str, piped: Callable[[str], None]
) -> None:
    piped(f"  {JUNK}\n")
    second = json.loads(run("keys", "import", "second", "--index", "1", *LIGHT, "--json").stdout)
    assert second["address"] == "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"  # as every Ethereum tool derives it
    assert second["derivation"] == "m/44'/60'/0'/0/1"
    assert JUNK not in json.dumps(second)
    key = AccountKey.dev("ethan")
    piped(key.private.hex())
    assert json.loads(run("keys", "import", "hot", *LIGHT, "--json").stdout)["address"] == key.address
    assert run("keys", "export", "hot", "--to", "for-geth.json").returncode == 0
    taken = run("keys", "import", "back", "--from-file", "for-geth.json", *LIGHT, "--json")
    assert json.loads(taken.stdout)["address"] == key.address
    piped("")
    for argv, says in (
        (("keys", "import", "x"), "no secret"),
        (("keys", "import", "x", "--index", "1", "--from-file", "for-geth.json"), "--index"),
        (("keys", "import", "x", "--index", "-1"), "--index"),
        (("keys", "import", "x", "--index", str(2**31)), "--index"),
        (("keys", "export", "hot", "--show-secret", "--phrase", "--yes"), "no phrase"),
        (("keys", "export", "hot"), "--to FILE"),
        (("keys", "export", "hot", "--to", "for-geth.json"), "--force"),
        (("keys", "show", "nobody"), "not there"),
    ):
        done = run(*argv)
        assert done.returncode == 1, argv
        assert says in done.stderr, (argv, done.stderr)
    piped(JUNK.replace("junk", "zoo"))
    done = run("keys", "import", "x")
    assert "checksum" in done.stderr
    assert "zoo" not in done.stderr


def test_a_list_needs_no_password_and_hides_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    assert "mesh keys new" in run("keys", "list").stdout
    run("keys", "new", "safe", *LIGHT)
    monkeypatch.delenv("MESH_KEY_PASSWORD")
    run("keygen", "--keys-dir", "home/mesh/keys")
    store = Path("home/mesh/keys")
    (store / "torn.account").write_text('{"version": 3, "address": 5}')
    (store / "torn.account").chmod(0o600)
    (store / "open.account").write_text("11" * 32)
    (store / "open.account").chmod(0o644)
    found = {entry["name"]: entry for entry in json.loads(run("keys", "list", "--json").stdout)}
    assert set(found) == {"safe", "hotkey", "torn", "open", "peer.key", "bootnode.key", "client.key"}
    assert found["safe"]["encrypted"]
    assert not found["hotkey"]["encrypted"]
    assert found["peer.key"]["peer_id"].startswith("12D3KooW")
    assert "chmod 600" in found["open"]["problem"]
    assert "address" in found["torn"]["problem"]
    shown = run("keys", "list").stdout
    assert "NOT encrypted" in shown
    assert "11" * 32 not in shown


# --- who is asked, and what ---------------------------------------------------------------------------------------


def test_a_password_is_typed_twice_for_a_new_key_and_once_for_an_old(
    run: Run, terminal: Callable[..., list[str]]
) -> None:
    asked = terminal("one", "another")
    assert "differ" in run("keys", "new", "a", *LIGHT).stderr
    assert not list(Path("home/mesh/keys").iterdir())
    asked = terminal("one", "one", "wrong", "one")
    assert run("keys", "new", "a", *LIGHT).returncode == 0
    assert "password is wrong" in run("keys", "show", "a", "--prove").stderr
    assert json.loads(run("keys", "show", "a", "--prove", "--json").stdout)["proven"]
    assert len(asked) == 4
    terminal("", "")
    assert "1 to" in run("keys", "new", "b", *LIGHT).stderr


def test_nobody_to_ask_is_said(run: Run, piped: Callable[[str], None]) -> None:
    piped("")
    done = run("keys", "new", "a")
    assert done.returncode == 1
    assert "MESH_KEY_PASSWORD" in done.stderr


def test_a_secret_is_shown_only_after_its_name_is_typed(
    run: Run, password: str, terminal: Callable[..., list[str]], piped: Callable[[str], None]
) -> None:
    run("keys", "new", "a", *LIGHT)
    key = unseal(Path("home/mesh/keys/a.account").read_bytes(), password).key
    terminal("yes")
    refused = run("keys", "export", "a", "--show-secret")
    assert refused.returncode == 1
    assert key.private.hex() not in refused.stdout + refused.stderr
    piped("")
    assert "--yes" in run("keys", "export", "a", "--show-secret").stderr
    terminal("a")
    assert run("keys", "export", "a", "--show-secret").stdout == f"0x{key.private.hex()}\n"


# --- other commands -----------------------------------------------------------------------------------------------


def test_every_command_takes_an_encrypted_key_by_file_or_name(
    run: Run, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = json.loads(run("keys", "new", "coldkey", *LIGHT, "--json").stdout)
    for given in (Path("coldkey"), Path(made["path"])):
        assert ColdkeyOptions(coldkey_file=given).key().address == made["address"]
    assert json.loads(run("keyview", "--path", made["path"], "--json").stdout)["key"]["address"] == made["address"]
    save_account_key(Path("coldkey"), AccountKey.dev("ian"))  # what is named here goes before the store's
    assert ColdkeyOptions(coldkey_file=Path("coldkey")).key() == AccountKey.dev("ian")
    monkeypatch.delenv("MESH_KEY_PASSWORD")
    assert ColdkeyOptions(coldkey_file=Path(made["path"])).account_id() == parse_address(made["address"])  # no password
    monkeypatch.setenv("MESH_KEY_PASSWORD", "wrong")
    with pytest.raises(KeyFileError, match=r"coldkey\.account: the password is wrong"):
        keyfiles.open_key(Path(made["path"]))


def test_a_file_that_cannot_be_a_key_costs_nobody_a_password(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "k").write_text('{"version": 1}')
    (tmp_path / "k").chmod(0o600)
    monkeypatch.setattr(keyfiles, "ask_password", lambda prompt: pytest.fail("asked"))
    with pytest.raises(KeyFileError, match="version 1"):
        keyfiles.open_key(tmp_path / "k")


def test_the_guide_prints_what_it_shows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, shown in commands_of(DOCS / "keep-keys.md"):
        words = shlex.split(command, comments=True)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value)
            continue
        assert words[0] in ("mesh", "keygen"), command
        done = run(*(words[1:] if words[0] == "mesh" else words))
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert is_like(shown, done.stdout), f"{command} printed:\n{done.stdout}"
