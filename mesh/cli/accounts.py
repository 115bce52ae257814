"""`mesh keys`: coldkeys and hotkeys in encrypted files, which geth, MetaMask and eth_account read, too."""

from __future__ import annotations

import json as jsonlib
import secrets
from pathlib import Path
from typing import Literal

from mesh.cli.keyfiles import (
    SUFFIX,
    address_in,
    ask_new_password,
    ask_password,
    ask_secret,
    confirm,
    key_path,
    keys_home,
    open_key,
)
from mesh.errors import ConfigError, KeyFileError
from mesh.identity import (
    AccountKey,
    Overwrite,
    checksum_address,
    load_peer_key,
    read_secret,
    write_secret,
)
from mesh.keystore import MAX_INDEX, Kdf, Opened, Phrase, is_sealed, seal, unseal

KDFS = {"scrypt": Kdf.SCRYPT, "scrypt-light": Kdf.SCRYPT_LIGHT, "pbkdf2": Kdf.PBKDF2}
MAX_LISTED = 1000
"""Key files that one listing shows."""


def new(
    name: str,
    /,
    *,
    words: Literal["12", "15", "18", "21", "24"] = "12",
    kdf: Literal["scrypt", "scrypt-light", "pbkdf2"] = "scrypt",
    keys_dir: Path | None = None,
    force: bool = False,
    json: bool = False,
) -> None:
    """Make a coldkey or hotkey from a new BIP39 phrase, in an encrypted file.

    The phrase lies in the file, too, and is not printed: `mesh keys export NAME --phrase --show-secret` shows it, to be
    written down. Coldkey and hotkey are the same kind of key; what it signs makes the difference.

    Args:
        name: What it is called, such as `coldkey`.
        words: Words of the phrase.
        kdf: How the password becomes a key; scrypt-light takes 4 MiB instead of 128, and is easier to guess.
        keys_dir: Folder of the key store; default is `keys` in this user's data folder.
        force: Replace a key of this name.
        json: Print one JSON object.
    """
    from bip39 import bip39_generate

    path = _free(name, keys_dir, force=force)
    phrase = Phrase(bip39_generate(int(words), "en"))
    opened = Opened(AccountKey.from_mnemonic(phrase.words), phrase)
    _write(path, opened, ask_new_password(), kdf=KDFS[kdf], force=force)
    _say(name, path, opened, json=json)
    if not json:
        print(f"write its phrase down: `mesh keys export {name} --phrase --show-secret`")


def import_(
    name: str,
    /,
    *,
    from_file: Path | None = None,
    index: int = 0,
    kdf: Literal["scrypt", "scrypt-light", "pbkdf2"] = "scrypt",
    keys_dir: Path | None = None,
    force: bool = False,
    json: bool = False,
) -> None:
    """Take a key that is there into the key store: a phrase, a private key, or another program's encrypted file.

    Without --from-file the phrase or private key is asked for, or read from what is piped in. An encrypted file keeps
    its password.

    Args:
        name: What it is to be called.
        from_file: File with a phrase, hexadecimal, or JSON of geth, MetaMask or eth_account; mode 0600.
        index: Which account of the phrase: the n of m/44'/60'/0'/0/n.
        kdf: How the password becomes a key.
        keys_dir: Folder of the key store.
        force: Replace a key of this name.
        json: Print one JSON object.
    """
    if not 0 <= index <= MAX_INDEX:
        raise ConfigError(f"--index: {index} must be 0 to {MAX_INDEX}")
    path = _free(name, keys_dir, force=force)
    password = None
    data = ask_secret("private key or phrase") if from_file is None else read_secret(from_file)
    if isinstance(data, bytes) and is_sealed(data):
        password = ask_password(f"password of {from_file}")
        opened = unseal(data, password)
        if index:
            raise ConfigError("--index goes with a phrase; this file holds one key")
    else:
        opened = _parsed(data if isinstance(data, str) else data.decode("ascii", errors="replace"), index)
    _write(path, opened, password or ask_new_password(), kdf=KDFS[kdf], force=force)
    _say(name, path, opened, json=json)


def list_(*, keys_dir: Path | None = None, json: bool = False) -> None:
    """List the key files of a folder: names, addresses, and which are not encrypted. No password is asked for.

    Args:
        keys_dir: Folder of the key store.
        json: Print one JSON array.
    """
    folder = keys_dir or keys_home()
    found = []
    if folder.is_dir():
        paths = sorted(p for p in folder.iterdir() if p.suffix in (SUFFIX, ".key") and not p.name.startswith("."))
        if len(paths) > MAX_LISTED:
            raise ConfigError(f"{folder} holds more than {MAX_LISTED} key files")
        found = [_about(path) for path in paths]
    if json:
        print(jsonlib.dumps(found))
        return
    if not found:
        print(f"no keys in {folder}: make one with `mesh keys new coldkey`")
    for entry in found:
        who = entry.get("address") or entry.get("peer_id") or entry.get("problem") or "(does not say who it is)"
        print(f"{entry['name']:<16} {who:<52} {_protection(entry)}")


def show(name: str, /, *, keys_dir: Path | None = None, prove: bool = False, json: bool = False) -> None:
    """Show whose key a file is, never the secret.

    Args:
        name: Name of the key.
        keys_dir: Folder of the key store.
        prove: Open the file with its password, and show that the key in it is what it says.
        json: Print one JSON object.
    """
    path = key_path(name, keys_dir)
    account, encrypted = address_in(path)
    shown: dict[str, object] = {"name": name, "path": str(path), "encrypted": encrypted, "proven": not encrypted}
    if prove or account is None:
        opened = open_key(path)
        account = opened.key.account_id
        shown |= {"proven": True, "phrase": opened.phrase is not None}
        if opened.phrase is not None:
            shown["derivation"] = opened.phrase.path
    shown["address"] = checksum_address(account)
    if json:
        print(jsonlib.dumps(shown))
        return
    print(f"{name:<16} {shown['address']}  {path}")
    print(f"{'':<16} {_protection(shown)}" + ("" if shown["proven"] else "; --prove asks for its password and checks"))
    if "phrase" in shown:
        print(f"{'':<16} " + (f"from a phrase, {shown['derivation']}" if shown["phrase"] else "without a phrase"))


def export(
    name: str,
    /,
    *,
    to: Path | None = None,
    show_secret: bool = False,
    phrase: bool = False,
    yes: bool = False,
    keys_dir: Path | None = None,
    force: bool = False,
    json: bool = False,
) -> None:
    """Give a key away: as an encrypted file for another wallet, or (--show-secret) as text on the screen.

    Args:
        name: Name of the key.
        to: Write the encrypted file here: geth, MetaMask and eth_account read it with the same password.
        show_secret: Print the private key. Whoever sees it owns the account.
        phrase: With --show-secret: the BIP39 phrase instead of the private key.
        yes: Do not ask whether you mean it.
        keys_dir: Folder of the key store.
        force: Replace the file named with --to.
        json: Print one JSON object.
    """
    if (to is None) != show_secret or (phrase and not show_secret):
        raise ConfigError("say where it goes: --to FILE (encrypted), or --show-secret (and --phrase) for the screen")
    path = key_path(name, keys_dir)
    if to is not None:
        _export_file(path, to, force=force, json=json)
        return
    opened = open_key(path)
    if phrase and opened.phrase is None:
        raise KeyFileError(f"{path} holds no phrase: the key came as a private key, or from a file without one")
    if not yes:
        confirm(f"This prints the secret of {opened.key.address} on the screen.", name)
    if phrase and opened.phrase is not None:
        shown = {"phrase": opened.phrase.words, "derivation": opened.phrase.path}
    else:
        shown = {"private_key": f"0x{opened.key.private.hex()}"}
    if json:
        print(jsonlib.dumps({"address": opened.key.address, **shown}))
        return
    print("\n".join(shown.values()))


def _export_file(path: Path, to: Path, *, force: bool, json: bool) -> None:
    account, encrypted = address_in(path)
    if encrypted:
        write_secret(to, read_secret(path), Overwrite.REPLACE if force else Overwrite.REFUSE)
    else:
        opened = open_key(path)
        _write(to, opened, ask_new_password(), kdf=Kdf.SCRYPT, force=force)
    address = None if account is None else checksum_address(account)
    if json:
        print(jsonlib.dumps({"address": address, "path": str(to)}))
    else:
        print(f"{address or 'the key'} is in {to}, encrypted" + (" with the same password" if encrypted else ""))


def _parsed(text: str, index: int) -> Opened:
    words = text.split()
    if len(words) > 1:
        phrase = Phrase(" ".join(words), index)
        return Opened(AccountKey.from_mnemonic(phrase.words, index), phrase)
    if index:
        raise ConfigError("--index goes with a phrase; a private key is one account")
    return Opened(AccountKey.parse(text), None)


def _free(name: str, keys_dir: Path | None, *, force: bool) -> Path:
    """The path for a new key; checked before anybody types a secret."""
    path = key_path(name, keys_dir)
    if path.exists() and not force:
        raise KeyFileError(f"{path} is already there: choose another name, or pass --force to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise KeyFileError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    return path


def _write(path: Path, opened: Opened, password: str, *, kdf: Kdf, force: bool) -> None:
    data = seal(opened, password, token_bytes=secrets.token_bytes, kdf=kdf)
    write_secret(path, data, Overwrite.REPLACE if force else Overwrite.REFUSE)


def _say(name: str, path: Path, opened: Opened, *, json: bool) -> None:
    shown: dict[str, object] = {"name": name, "address": opened.key.address, "path": str(path), "encrypted": True}
    if opened.phrase is not None:
        shown |= {"words": len(opened.phrase.words.split()), "derivation": opened.phrase.path}
    if json:
        print(jsonlib.dumps(shown))
        return
    print(f"{name:<16} {opened.key.address}  {path}")


def _about(path: Path) -> dict[str, object]:
    """One file of a listing; what cannot be read is said, not left out."""
    entry: dict[str, object] = {"name": path.name if path.suffix == ".key" else path.stem, "path": str(path)}
    try:
        if path.suffix == ".key":
            return {**entry, "peer_id": str(load_peer_key(path).peer_id), "encrypted": False}
        account, encrypted = address_in(path)
    except KeyFileError as error:
        return {**entry, "problem": str(error)}
    return {**entry, "address": account and checksum_address(account), "encrypted": encrypted}


def _protection(entry: dict[str, object]) -> str:
    if "problem" in entry:
        return ""
    if "peer_id" in entry:
        return "peer key"
    return "encrypted" if entry["encrypted"] else "NOT encrypted"
