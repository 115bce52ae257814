"""Keys: encodings other libp2p programs read, files nobody else can, and garbage that is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import KeyFileError, RemoteProtocolError
from mesh.identity import (
    AccountKey,
    KeyType,
    Overwrite,
    PeerKey,
    is_signature,
    load_account_key,
    load_peer_key,
    parse_address,
    save_account_key,
    save_peer_key,
)
from mesh.peer import PeerID, PeerInfo

KEYS = {kind: PeerKey.generate(kind) for kind in KeyType}


@pytest.mark.parametrize("kind", KeyType)
def test_key_survives_its_file_and_signs(kind: KeyType, tmp_path: Path) -> None:
    key = KEYS[kind]
    save_peer_key(tmp_path / "k", key)
    assert load_peer_key(tmp_path / "k") == key
    assert os.stat(tmp_path / "k").st_mode & 0o777 == 0o600
    assert is_signature(key.public_key_pb, b"message", key.sign(b"message"))
    assert not is_signature(key.public_key_pb, b"another", key.sign(b"message"))
    assert not is_signature(key.public_key_pb, b"message", b"\0" * 64)
    assert PeerID.parse(str(key.peer_id)) == key.peer_id


def test_both_private_encodings_of_ed25519_are_read() -> None:
    key = KEYS[KeyType.ED25519]
    assert PeerKey.from_pb(bytes((8, 1, 0x12, 32)) + key.private) == key
    with pytest.raises(KeyFileError, match="halves"):
        PeerKey.from_pb(key.to_pb()[:-1] + bytes((key.to_pb()[-1] ^ 1,)))


def test_the_secret_is_in_no_repr() -> None:
    for key in KEYS.values():
        assert key.private.hex() not in repr(key)
        assert repr(key.private) not in repr(key)
    account = AccountKey.generate()
    assert account.private.hex() not in repr(account)


def test_a_key_file_is_never_replaced_or_read_when_open(tmp_path: Path) -> None:
    path = tmp_path / "k"
    save_peer_key(path, KEYS[KeyType.ED25519])
    with pytest.raises(KeyFileError, match="--force"):
        save_peer_key(path, KEYS[KeyType.SECP256K1])
    assert load_peer_key(path) == KEYS[KeyType.ED25519]
    save_peer_key(path, KEYS[KeyType.SECP256K1], Overwrite.REPLACE)
    assert load_peer_key(path) == KEYS[KeyType.SECP256K1]
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_peer_key(path)
    with pytest.raises(KeyFileError, match="keygen"):
        load_peer_key(tmp_path / "missing")
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_wrong_kinds_of_file(tmp_path: Path) -> None:
    save_account_key(tmp_path / "account", AccountKey.generate())
    with pytest.raises(KeyFileError):
        load_peer_key(tmp_path / "account")
    save_peer_key(tmp_path / "peer", KEYS[KeyType.RSA])
    with pytest.raises(KeyFileError):
        load_account_key(tmp_path / "peer")
    with pytest.raises(KeyFileError):
        load_peer_key(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyFileError, match="not a file"):
        load_peer_key(tmp_path / "pipe")


@given(st.binary(max_size=200))
def test_garbage_is_no_key(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        PeerKey.from_pb(b"\xff" + data)
    for public in (data, bytes((8, 1, 0x12, len(data) & 0x7F)) + data, bytes((8, 2, 0x12, len(data) & 0x7F)) + data):
        try:
            assert not is_signature(public, b"m", b"s" * 64)
        except RemoteProtocolError:
            pass


@given(st.binary(max_size=60))
def test_garbage_is_no_peer_id(data: bytes) -> None:
    try:
        peer = PeerID(data)
    except RemoteProtocolError:
        return
    assert PeerID.parse(str(peer)) == peer


@pytest.mark.parametrize("text", ["", "0OIl", "Qm", "12D3KooW" * 20, "é"])
def test_bad_peer_id_text(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        PeerID.parse(text)
    with pytest.raises(RemoteProtocolError):
        PeerInfo.parse(f"/ip4/127.0.0.1/tcp/1/p2p/{text}")


def test_addresses_carry_a_checksum() -> None:
    alith = AccountKey.dev("alith")
    assert parse_address(alith.address) == alith.account_id == parse_address(alith.address.lower())
    for wrong in (alith.address.replace("f2", "F2", 1), alith.address[:-1], "hello", ""):
        with pytest.raises(KeyFileError):
            parse_address(wrong)


def test_a_mistyped_phrase_is_refused_without_being_echoed() -> None:
    phrase = "bottom drive obey lake curtain smoke basket hold race lonely fit zoo"
    with pytest.raises(KeyFileError) as caught:
        AccountKey.parse(phrase)
    assert "bottom" not in str(caught.value)
    with pytest.raises(KeyFileError) as caught:
        AccountKey.parse("0x1234")
    assert "1234" not in str(caught.value)
