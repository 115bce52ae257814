"""Public development keys sign on this user's own chains only."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.chain import local
from mesh.chain.local import TestChain, is_local_chain, remember_genesis, require_local_for_dev_key
from mesh.errors import ConfigError, WrongChain
from mesh.identity import AccountKey

MINE, OTHER = b"\x01" * 32, b"\x02" * 32
ALITH = AccountKey.dev("alith").account_id


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    remember_genesis(MINE)
    return tmp_path


def test_the_data_home_follows_xdg(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local.data_home() == home / "mesh"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert local.data_home() == Path.home() / ".local" / "share" / "mesh"


@pytest.mark.parametrize(
    ("url", "chain_type", "genesis", "expected"),
    [
        ("ws://127.0.0.1:9944", "Development", MINE, True),
        ("ws://localhost:1", "Local", MINE, True),
        ("ws://[::1]:9944", "Development", MINE, True),
        ("ws://127.0.0.1:9944", "Development", OTHER, False),
        ("ws://127.0.0.1:9944", "Live", MINE, False),
        ("ws://127.0.0.1:9944", "", MINE, False),
        ("wss://rpc.example.org", "Development", MINE, False),
        ("ws://localhost.example.org", "Development", MINE, False),
        ("ws://127.0.0.1.nip.io", "Development", MINE, False),
        ("ws://127.0.0.1@example.org", "Development", MINE, False),
        ("ws://0.0.0.0:9944", "Development", MINE, False),
        ("ws://[bad", "Development", MINE, False),
    ],
)
def test_local_takes_all_three(url: str, chain_type: str, genesis: bytes, expected: bool) -> None:
    assert is_local_chain(url, chain_type, genesis) is expected


def test_a_dev_key_on_a_tunnel_to_a_real_chain_is_refused() -> None:
    where = {"url": "ws://127.0.0.1:9944", "chain_type": "Development"}
    require_local_for_dev_key(ALITH, genesis=MINE, **where)
    require_local_for_dev_key(b"\x07" * 20, genesis=OTHER, **where)
    with pytest.raises(WrongChain, match="--i-know-this-is-a-test-chain"):
        require_local_for_dev_key(ALITH, genesis=OTHER, **where)
    require_local_for_dev_key(ALITH, genesis=OTHER, said=TestChain.ACKNOWLEDGED, **where)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_REMEMBERED", 3)
    for number in range(5):
        remember_genesis(bytes((number,)) * 32)
    assert not is_local_chain("ws://localhost", "Local", b"\x01" * 32)
    assert is_local_chain("ws://localhost", "Local", b"\x04" * 32)
    with pytest.raises(ConfigError):
        remember_genesis(b"short")
