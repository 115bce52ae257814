"""Encrypted key files: the format's own test vectors, other libraries' files, and files made to do harm."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from Crypto.Protocol import KDF
from hypothesis import given
from hypothesis import strategies as st

from mesh import keystore
from mesh.errors import KeyFileError
from mesh.identity import AccountKey
from mesh.keystore import Kdf, Opened, Phrase, address_of, is_sealed, seal, unseal

SECRET = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
ADDRESS = "008aeeda4d805471df9b2a5b0f38a0c3bcba786b"
VECTORS = {
    "pbkdf2": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "scrypt": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "p": 8,
            "r": 1,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
}
"""Of the format's definition; the password of both is `testpassword`."""

JUNK = "test test test test test test test test test test test junk"
OWN = AccountKey.from_private(bytes.fromhex(SECRET))
PASSWORD = "correct horse"


def file(crypto: object, **other: object) -> bytes:
    return json.dumps({"version": 3, "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "crypto": crypto, **other}).encode()


def sealed(opened: Opened | None = None, kdf: Kdf = Kdf.SCRYPT_LIGHT) -> bytes:
    return seal(opened or Opened(OWN, None), PASSWORD, token_bytes=random.Random(7).randbytes, kdf=kdf)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key derivation that costs nothing, where it is not what is tested."""
    monkeypatch.setattr(keystore, "_derive", lambda kdf, params, password: password.encode().ljust(64, b"\0"))


@pytest.mark.parametrize("name", VECTORS)
def test_the_formats_vectors_are_read(name: str) -> None:
    data = file(VECTORS[name], address=ADDRESS)
    assert address_of(data) == bytes.fromhex(ADDRESS)
    assert unseal(data, "testpassword").key.private.hex() == SECRET


def test_the_field_names_of_early_files_are_read() -> None:
    data = json.dumps({"version": 3, "Crypto": VECTORS["pbkdf2"]}).encode()  # and without an address
    assert address_of(data) is None
    assert unseal(data, "testpassword").key == OWN


@pytest.mark.parametrize("kdf", Kdf)
def test_what_is_written_is_read_and_holds_the_phrase(kdf: Kdf) -> None:
    phrase = Phrase(JUNK, 1)
    opened = Opened(AccountKey.from_mnemonic(JUNK, 1), phrase)
    assert opened.key.address == "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"  # as every Ethereum tool derives it
    data = sealed(opened, kdf)
    assert is_sealed(data)
    assert opened.key.private.hex() not in data.decode()
    assert "junk" not in data.decode()
    assert unseal(data, PASSWORD) == opened
    with pytest.raises(KeyFileError, match="password is wrong"):
        unseal(data, PASSWORD + " ")
    for secret in (JUNK, opened.key.private.hex()):
        assert secret not in repr(opened)


def test_an_empty_password_is_none() -> None:
    with pytest.raises(KeyFileError, match="empty"):
        seal(Opened(OWN, None), "", token_bytes=random.Random(7).randbytes)


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_other_libraries_read_ours_and_we_theirs(kdf: str) -> None:
    other = pytest.importorskip("eth_keyfile", reason="eth_keyfile is not installed")
    ours = json.loads(sealed(kdf=Kdf.SCRYPT_LIGHT if kdf == "scrypt" else Kdf.PBKDF2))
    assert other.decode_keyfile_json(ours, PASSWORD.encode()) == OWN.private
    theirs = other.create_keyfile_json(OWN.private, PASSWORD.encode(), kdf=kdf, iterations=4096)
    assert unseal(json.dumps(theirs).encode(), PASSWORD).key == OWN


# --- hostile files --------------------------------------------------------------------------------------------------


def changed(name: str, **fields: object) -> bytes:
    """A vector with other KDF parameters."""
    vector: dict[str, Any] = dict(VECTORS[name])
    vector["kdfparams"] = {**vector["kdfparams"], **fields}
    return file(vector)


@pytest.mark.parametrize(
    "data",
    [
        changed("scrypt", n=2**30),
        changed("scrypt", n=2**23, r=1, p=1),
        changed("scrypt", n=2**20, r=8),
        changed("scrypt", n=2**14, r=64, p=8),
        changed("scrypt", n=2, r=1, p=2**40),
        changed("scrypt", n=2, r=2**20),
        changed("scrypt", n=262143),
        changed("scrypt", n=0),
        changed("scrypt", n=-2),
        changed("scrypt", n=True),
        changed("scrypt", n="262144"),
        changed("scrypt", n=2.0),
        changed("scrypt", r=0),
        changed("scrypt", p=None),
        changed("scrypt", dklen=16),
        changed("scrypt", dklen=2**31),
        changed("scrypt", salt=""),
        changed("scrypt", salt="ab" * 4000),
        changed("scrypt", salt="zz"),
        changed("pbkdf2", c=2**31),
        changed("pbkdf2", c=0),
        changed("pbkdf2", prf="hmac-md5"),
        changed("pbkdf2", prf=["hmac-sha256"]),
    ],
)
def test_work_and_memory_are_bounded_before_they_are_spent(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the derivation was started")

    monkeypatch.setattr(keystore, "PBKDF2HMAC", never)
    monkeypatch.setattr(KDF, "scrypt", never)
    with pytest.raises(KeyFileError):
        unseal(data, "testpassword")


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.pop("crypto"),
        lambda c: c.update(crypto=[]),
        lambda c: c.update(version=1),
        lambda c: c.update(version=True),
        lambda c: c.update(version={"3": 3}),
        lambda c: c.update(address="00" * 20),
        lambda c: c.update(address="0x12"),
        lambda c: c.update(address=5),
        lambda c: c["crypto"].update(cipher="aes-256-cbc"),
        lambda c: c["crypto"].update(cipher=None),
        lambda c: c["crypto"].update(cipherparams="iv"),
        lambda c: c["crypto"]["cipherparams"].update(iv="00"),
        lambda c: c["crypto"].update(ciphertext="00" * 31),
        lambda c: c["crypto"].update(ciphertext="00 " * 32),
        lambda c: c["crypto"].update(ciphertext="٠" * 64),
        lambda c: c["crypto"].update(mac="00" * 32),
        lambda c: c["crypto"].update(mac=""),
        lambda c: c.update({"x-mesh-phrase": 1}),
        lambda c: c["x-mesh-phrase"].update(index=1),
        lambda c: c["x-mesh-phrase"].update(index=-1),
        lambda c: c["x-mesh-phrase"].update(ciphertext="00" * 40),
        lambda c: c["x-mesh-phrase"].update(nonce="00"),
    ],
)
def test_a_spoilt_file_is_refused(spoil: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(sealed(Opened(AccountKey.from_mnemonic(JUNK), Phrase(JUNK))))
    assert unseal(json.dumps(content).encode(), PASSWORD).phrase == Phrase(JUNK)
    spoil(content)
    with pytest.raises(KeyFileError):
        unseal(json.dumps(content).encode(), PASSWORD)


@pytest.mark.usefixtures("cheap")
def test_the_phrase_of_another_key_is_refused() -> None:
    with pytest.raises(KeyFileError, match="another key"):
        unseal(sealed(Opened(OWN, Phrase(JUNK))), PASSWORD)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    for each in (data, b"{" + data, b'{"version": 3, "crypto": ' + data):
        with pytest.raises(KeyFileError):
            unseal(each, PASSWORD)
        with pytest.raises(KeyFileError):
            address_of(each)


def test_deep_and_large_files_are_refused() -> None:
    for data in (b"[" * 8000, b"{" + b" " * 9000 + b"}", b'{"version":' + b"9" * 8000 + b"}"):
        with pytest.raises(KeyFileError):
            unseal(data, PASSWORD)
