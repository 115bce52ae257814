"""Which key file a command means, and the password that opens it.

Passwords come from MESH_KEY_PASSWORD or are typed at the terminal, never from the command line: others can read that.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError, KeyFileError
from mesh.identity import AccountKey, read_secret
from mesh.keystore import MAX_PASSWORD_BYTES, Opened, Phrase, address_of, is_sealed, unseal

PASSWORD_VARIABLE: Final = "MESH_KEY_PASSWORD"
SUFFIX: Final = ".account"
_WHEN_MISSING: Final = "make a key with `mesh keys new` or `keygen`, or look at its name again (`mesh keys list`)"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def keys_home() -> Path:
    """The key store's folder when none is named: `keys` in this user's data folder."""
    from mesh.chain.local import data_home

    return data_home() / "keys"


def key_path(name: str, keys_dir: Path | None) -> Path:
    """Where the key of this name lies. Raises ConfigError for a name that could be anything but a plain file's."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a key: use up to 64 letters, digits, - and _, a letter first")
    return (keys_dir or keys_home()) / f"{name}{SUFFIX}"


def named_file(file: Path) -> Path:
    """The file itself, or, for a bare name that is no file here, the key store's key of that name."""
    if not file.exists() and _NAME.fullmatch(str(file)):
        stored = key_path(str(file), None)
        if stored.exists():
            return stored
    return file


def open_key(path: Path) -> Opened:
    """The key in a file, encrypted (its password is asked for) or plain. Raises KeyFileError naming the file."""
    data = read_secret(path, when_missing=_WHEN_MISSING)
    try:
        if is_sealed(data):
            address_of(data)  # nobody types a password for a file that cannot be one
            return unseal(data, ask_password(f"password of {path}"))
        text = data.decode("ascii").strip()
        key = AccountKey.parse(text)
        return Opened(key, Phrase(" ".join(text.split())) if " " in text else None)
    except (KeyFileError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: {error}") from error


def address_in(path: Path) -> tuple[bytes | None, bool]:
    """(account, whether it is encrypted) of a key file, without its password: an encrypted one is taken at its word.

    The account is None when the file does not say. Raises KeyFileError.
    """
    data = read_secret(path, when_missing=_WHEN_MISSING)
    if is_sealed(data):
        return address_of(data), True
    return open_key(path).key.account_id, False


def account_in(path: Path) -> bytes:
    """Whose key a file is; the password is asked for only where the file does not say. Raises KeyFileError."""
    account, _ = address_in(path)
    return open_key(path).key.account_id if account is None else account


def ask_password(prompt: str) -> str:
    """The password of a key that is there. Raises KeyFileError when there is nobody to ask."""
    if value := os.environ.get(PASSWORD_VARIABLE):
        return value
    return _typed(prompt)


def ask_new_password() -> str:
    """A password for a new key, typed twice. Raises KeyFileError."""
    if value := os.environ.get(PASSWORD_VARIABLE):
        return value
    password = _typed("new password")
    if not password or len(password.encode(errors="surrogateescape")) > MAX_PASSWORD_BYTES:
        raise KeyFileError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes")
    if _typed("the same again") != password:
        raise KeyFileError("the two passwords differ; nothing was written")
    return password


def ask_secret(prompt: str) -> str:
    """A private key or phrase: typed without being shown, or the whole of what is piped in."""
    if sys.stdin.isatty():
        return _typed(prompt)
    text = sys.stdin.read(4096)
    if not text.strip():
        raise KeyFileError("no secret came in: type it at a terminal, pipe it in, or name a file with --from-file")
    return text


def confirm(question: str, answer: str) -> None:
    """Go on only when the person types `answer`. Raises ConfigError."""
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to confirm at: pass --yes if you mean it")
    print(f"{question} Type {answer!r} to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != answer:
        raise ConfigError("not confirmed; nothing was done")


def _typed(prompt: str) -> str:
    import getpass

    if not sys.stdin.isatty():
        what = prompt.partition(" of ")[0]  # whoever reads this is told the file as well
        raise KeyFileError(f"there is no terminal to ask for the {what} at: set {PASSWORD_VARIABLE}")
    return getpass.getpass(f"{prompt}: ")
