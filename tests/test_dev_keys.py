"""The test identities in keys/ are what anybody can compute, and nothing else."""

from pathlib import Path

import pytest

from mesh.identity import DEV_NAMES, AccountKey, PeerKey

KEYS = Path(__file__).parent.parent / "keys"


@pytest.mark.parametrize("name", [*DEV_NAMES, "bootnode"])
def test_peer_key_is_the_hash_of_its_label(name: str) -> None:
    assert (KEYS / f"{name}.key").read_bytes() == PeerKey.dev(name).to_pb()


@pytest.mark.parametrize("name", DEV_NAMES)
def test_account_is_on_the_public_development_phrase(name: str) -> None:
    assert AccountKey.parse((KEYS / f"{name}.account").read_text()) == AccountKey.dev(name)


def test_alith_is_the_account_every_substrate_developer_knows() -> None:
    alith = AccountKey.dev("alith")
    assert alith.address == "0xf24FF3a9CF04c71Dbc94D0b566f7A27B94566cac"
    assert alith.private.hex() == "5fb92d6e98884f76de468fa3f6278f8807c48bebc13595d45af5bdc4da702133"


def test_nothing_else_lies_in_keys() -> None:
    expected = {f"{n}.key" for n in [*DEV_NAMES, "bootnode"]} | {f"{n}.account" for n in DEV_NAMES} | {"README.md"}
    assert {path.name for path in KEYS.iterdir()} == expected
