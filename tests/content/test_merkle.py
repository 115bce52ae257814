"""How blobs are named: the tree of RFC 6962, bound to the size; every false manifest and chunk is told apart."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.content.merkle import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    MAX_BLOB_BYTES,
    MAX_CHUNKS,
    Manifest,
    check_manifest,
    check_size,
    chunk_count,
    digest_of,
    leaf_of,
    manifest_of,
    parse_digest,
    root_of,
)
from mesh.errors import LocalProtocolError, RemoteProtocolError

LEAVES = st.lists(st.binary(min_size=32, max_size=32), max_size=40)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def rfc6962(leaves: list[bytes]) -> bytes:
    """As the RFC writes it: split at the largest power of two below the number of leaves."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + rfc6962(leaves[:split]) + rfc6962(leaves[split:]))


def manifest_with(leaves: list[bytes], last: int = CHUNK_BYTES) -> Manifest:
    return Manifest((len(leaves) - 1) * CHUNK_BYTES + last if leaves else 0, b"".join(leaves))


@given(LEAVES)
def test_the_root_is_the_tree_hash_of_rfc_6962(leaves: list[bytes]) -> None:
    assert root_of(leaves) == rfc6962(leaves)


def test_known_roots() -> None:
    """The first entries of the certificate transparency test vectors: leaves "", 00, 10, 2021."""
    leaves = [leaf_of(bytes.fromhex(text)) for text in ("", "00", "10", "2021")]
    assert root_of(leaves[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root_of(leaves[:2]).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert root_of(leaves[:3]).hex() == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert root_of(leaves).hex() == "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3_500_000])
def test_a_digest_is_of_the_bytes_and_their_number(size: int) -> None:
    data = random.Random(size).randbytes(size)
    chunks = [data[i : i + CHUNK_BYTES] for i in range(0, size, CHUNK_BYTES)]
    root = rfc6962([sha256(b"\x00" + chunk) for chunk in chunks])
    assert digest_of(data) == sha256(b"\x02" + size.to_bytes(8, "big") + root)
    manifest = manifest_of(data)
    check_manifest(manifest, digest_of(data))
    assert len(manifest) == len(chunks) == chunk_count(size)
    for index, chunk in enumerate(chunks):
        manifest.check_chunk(index, chunk)


@given(LEAVES.filter(bool), st.data())
def test_no_other_manifest_has_the_digest(leaves: list[bytes], data: st.DataObject) -> None:
    manifest = manifest_with(leaves)
    change = data.draw(st.sampled_from(["flip", "size", "swap", "drop", "add", "inner"]))
    size, other = manifest.size, bytearray(manifest.leaves)
    match change:
        case "flip":
            other[data.draw(st.integers(0, len(other) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "size":
            size = data.draw(st.integers(size - CHUNK_BYTES + 1, size - 1))
        case "swap":
            i, j = (data.draw(st.integers(0, len(leaves) - 1)) for _ in "ij")
            if leaves[i] == leaves[j]:
                return
            changed = list(leaves)
            changed[i], changed[j] = changed[j], changed[i]
            other = bytearray(b"".join(changed))
        case "drop":
            del other[-DIGEST_BYTES:]
            size -= CHUNK_BYTES
        case "add":
            other += other[-DIGEST_BYTES:]
            size += CHUNK_BYTES
        case "inner":  # an inner node in a leaf's place: the size gives it away
            if len(leaves) < 2:
                return
            other[: 2 * DIGEST_BYTES] = sha256(b"\x01" + leaves[0] + leaves[1])
            size -= CHUNK_BYTES
    with pytest.raises(RemoteProtocolError, match="another blob"):
        check_manifest(Manifest(size, bytes(other)), manifest.digest)


def test_a_node_is_no_chunk() -> None:
    """Without prefixes the 64 bytes of two leaves would be a blob with the root of both."""
    left, right = leaf_of(b"a"), leaf_of(b"b")
    assert leaf_of(left + right) != root_of([left, right])
    assert digest_of(left + right) != Manifest(2 * CHUNK_BYTES, left + right).digest


@pytest.mark.parametrize(
    ("size", "leaves"),
    [(-1, 0), (MAX_BLOB_BYTES + 1, MAX_CHUNKS + 1), (2**63, 1), (CHUNK_BYTES + 1, 1), (1, 2), (0, 1), (CHUNK_BYTES, 0)],
)
def test_an_impossible_manifest_is_refused_by_its_size(size: int, leaves: int) -> None:
    with pytest.raises(RemoteProtocolError):
        check_size(size, bytes(leaves * DIGEST_BYTES))
    with pytest.raises(RemoteProtocolError):
        check_size(CHUNK_BYTES, bytes(DIGEST_BYTES - 1))


def test_other_bytes_are_no_chunk() -> None:
    data = random.Random(1).randbytes(CHUNK_BYTES + 10)
    manifest = manifest_of(data)
    first, last = data[:CHUNK_BYTES], data[CHUNK_BYTES:]
    for index, wrong in ((0, last), (1, first), (1, last[:-1]), (1, last + b"x"), (1, b""), (0, first[:-1] + b"?")):
        with pytest.raises(RemoteProtocolError):
            manifest.check_chunk(index, wrong)


def test_a_digest_as_typed() -> None:
    digest = digest_of(b"hello")
    assert parse_digest(digest.hex()) == parse_digest(digest.hex().upper()) == digest
    for wrong in ("", "ab", "zz" * 32, digest.hex() + "00", "../" + digest.hex(), " " + digest.hex(), "ab " * 32):
        with pytest.raises(LocalProtocolError, match="64 hexadecimal"):
            parse_digest(wrong)
