"""`keygen` and `keyview`: the identities of a node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from mesh.errors import ConfigError, KeyFileError
from mesh.identity import (
    AccountKey,
    KeyType,
    Overwrite,
    PeerKey,
    checksum_address,
    load_peer_key,
    save_account_key,
    save_peer_key,
)

KEY_TYPES = {"ed25519": KeyType.ED25519, "rsa": KeyType.RSA, "secp256k1": KeyType.SECP256K1}
PEER_FILES = {"peer": "peer.key", "bootnode": "bootnode.key", "client": "client.key"}
HOTKEY_FILE = "hotkey.account"


def require_keys_dir(keys_dir: Path) -> None:
    """Raises KeyFileError, which says how to make it, when a node's folder of keys is not there."""
    if not keys_dir.is_dir():
        raise KeyFileError(f"{keys_dir} is not there: make a node's keys with `keygen --keys-dir {keys_dir}`")


def keygen(
    *,
    keys_dir: Path | None = None,
    path: Path | None = None,
    bootstrap_path: Path | None = None,
    client_path: Path | None = None,
    hotkey_path: Path | None = None,
    coldkey_path: Path | None = None,
    key_type: Literal["ed25519", "rsa", "secp256k1"] = "ed25519",
    force: bool = False,
    json: bool = False,
) -> None:
    """Make the keys of a node.

    A node has three network identities (peer, bootnode, client) and a hotkey that votes; a coldkey holds its stake.
    `keygen --keys-dir node1` makes all but the coldkey in one folder, which `register-node --keys-dir node1` reads.
    Files get mode 0600 and are never replaced without --force. Secrets are not printed.

    Args:
        keys_dir: Folder for peer.key, bootnode.key, client.key and hotkey.account.
        path: File of the peer key.
        bootstrap_path: File of the bootnode key.
        client_path: File of the client key.
        hotkey_path: File of a new hotkey.
        coldkey_path: File of a new coldkey.
        key_type: Type of the network identities.
        force: Replace files that are there.
        json: Print one JSON object.
    """
    peer_paths = {"peer": path, "bootnode": bootstrap_path, "client": client_path}
    if keys_dir is not None:
        peer_paths = {name: chosen or keys_dir / PEER_FILES[name] for name, chosen in peer_paths.items()}
        hotkey_path = hotkey_path or keys_dir / HOTKEY_FILE
    account_paths = {"hotkey": hotkey_path, "coldkey": coldkey_path}
    wanted = [p for p in [*peer_paths.values(), *account_paths.values()] if p is not None]
    if not wanted:
        raise ConfigError("say where the keys go: `keygen --keys-dir node1`, or --path FILE for a single one")
    if len({p.resolve() for p in wanted}) != len(wanted):
        raise ConfigError("two keys cannot share one file")
    overwrite = Overwrite.REPLACE if force else Overwrite.REFUSE
    if not force and (there := [p for p in wanted if p.exists()]):
        raise KeyFileError(f"{there[0]} is already there: choose another path, or pass --force to replace it")
    made: dict[str, dict[str, str]] = {}
    for name, target in peer_paths.items():
        if target is not None:
            key = PeerKey.generate(KEY_TYPES[key_type])
            save_peer_key(target, key, overwrite)
            made[name] = {"path": str(target), "peer_id": str(key.peer_id)}
    for name, target in account_paths.items():
        if target is not None:
            account = AccountKey.generate()
            save_account_key(target, account, overwrite)
            made[name] = {"path": str(target), "address": account.address}
    _print(made, json)


def keyview(path: Path, *, json: bool = False) -> None:
    """Show who a key file is: type and PeerID, or the account's address. Never the secret.

    Args:
        path: Key file.
        json: Print one JSON object.
    """
    try:
        key = load_peer_key(path)
        shown = {"path": str(path), "type": key.type.name.lower(), "peer_id": str(key.peer_id)}
    except KeyFileError as error:
        from mesh.cli.keyfiles import account_in

        try:
            shown = {"path": str(path), "type": "account", "address": checksum_address(account_in(path))}
        except KeyFileError:
            raise error from None
    _print({"key": shown}, json)


def _print(made: dict[str, dict[str, str]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(made))
        return
    for name, fields in made.items():
        print(f"{name:<9} {fields.get('peer_id') or fields.get('address')}  {fields['path']}")
