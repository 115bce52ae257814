"""Which chains are this user's own: the only ones on which public development keys may sign.

A local chain is one whose URL's host is loopback, whose type is Development or Local, and whose genesis hash
`mesh-chain` wrote into this user's data directory. A tunnel to a real chain on 127.0.0.1 fails the last two.
"""

from __future__ import annotations

import enum
import ipaddress
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mesh.errors import ConfigError, WrongChain
from mesh.files import Durable, replace_file
from mesh.identity import is_dev_account

MAX_REMEMBERED: Final = 1000
"""Genesis hashes kept, the newest; a development chain with a fresh state makes one per start."""
_GENESIS_BYTES: Final = 32
_LOCAL_TYPES: Final = ("Development", "Local")


class TestChain(enum.Enum):
    """Whether the user vouches that a chain is for tests (`--i-know-this-is-a-test-chain`)."""

    __test__ = False
    NOT_SAID = enum.auto()
    ACKNOWLEDGED = enum.auto()


def data_home() -> Path:
    """Where this user's mesh keeps what must survive: `$XDG_DATA_HOME/mesh`, `~/.local/share/mesh` without it."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "mesh"


def remember_genesis(genesis: bytes) -> None:
    """Note that this user started a chain with this genesis hash (32 bytes). Raises ConfigError."""
    if len(genesis) != _GENESIS_BYTES:
        raise ConfigError(f"a genesis hash has {_GENESIS_BYTES} bytes, not {len(genesis)}")
    known = [line for line in _remembered() if line != genesis.hex()]
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = "".join(f"{line}\n" for line in [*known, genesis.hex()][-MAX_REMEMBERED:])
        replace_file(path, text.encode(), durable=Durable.YES)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def is_local_chain(url: str, chain_type: str, genesis: bytes) -> bool:
    """Whether all three hold: loopback host, type Development or Local, genesis remembered by this user."""
    return _is_loopback(url) and chain_type in _LOCAL_TYPES and genesis.hex() in _remembered()


def require_local_for_dev_key(
    account: bytes, *, url: str, chain_type: str, genesis: bytes, said: TestChain = TestChain.NOT_SAID
) -> None:
    """Raises WrongChain when a public development account would sign on a chain that is not this user's own."""
    if said is TestChain.ACKNOWLEDGED or not is_dev_account(account):
        return
    if not is_local_chain(url, chain_type, genesis):
        raise WrongChain(
            f"0x{account.hex()} is a public development account, whose key anybody knows, and {url} is not a local "
            "chain started with mesh-chain by this user: use a key of your own, or pass "
            "--i-know-this-is-a-test-chain"
        )


def _path() -> Path:
    return data_home() / "local-chains"


def _remembered() -> list[str]:
    try:
        return _path().read_text().split()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {_path()}: {error}") from error


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
