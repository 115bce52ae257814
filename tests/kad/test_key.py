"""XOR arithmetic, with 8-bit keys that can be checked by hand."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import PeerKey
from mesh.kad.key import Key, common_prefix_length, distance, key_bytes, key_of, key_of_peer, random_key_sharing


def test_a_key_is_the_sha256_of_the_libp2p_spec() -> None:
    peer = PeerKey.dev("alith").peer_id
    assert key_bytes(key_of(b"any/x")) == hashlib.sha256(b"any/x").digest()
    assert key_bytes(key_of_peer(peer)) == hashlib.sha256(peer.multihash).digest()


def test_prefixes_by_hand() -> None:
    a = Key(0b1010_0000)
    assert common_prefix_length(a, a, 8) == 8
    assert common_prefix_length(a, Key(0b1010_0001), 8) == 7
    assert common_prefix_length(a, Key(0b1000_0000), 8) == 2
    assert common_prefix_length(a, Key(0b0010_0000), 8) == 0
    assert distance(a, Key(0b1000_0000)) == 0b0010_0000


@given(st.integers(0, 255), st.integers(0, 7), st.integers(0, 2**32))
def test_a_random_key_shares_exactly_the_prefix(key: int, prefix: int, seed: int) -> None:
    other = random_key_sharing(Key(key), prefix, rng=random.Random(seed), bits=8)
    assert 0 <= other < 256
    assert common_prefix_length(Key(key), other, 8) == prefix


@pytest.mark.parametrize("prefix", [-1, 8])
def test_a_prefix_outside_the_key_is_refused(prefix: int) -> None:
    with pytest.raises(ValueError, match="prefix"):
        random_key_sharing(Key(0), prefix, rng=random.Random(0), bits=8)
