"""How a blob is named: a Merkle tree over its chunks, and the manifest that lists them. PURE.

    leaf   = sha256(0x00 || chunk)                          chunks of CHUNK_BYTES, the last one shorter
    node   = sha256(0x01 || left || right)                  neighbours are paired; an odd last one goes up as it is
    root   = the one that is left; sha256() of nothing for no chunks at all
    digest = sha256(0x02 || size, 8 bytes big-endian || root)

Leaves, nodes and roots are the Merkle Tree Hash of RFC 6962 (section 2.1); the prefixes keep a node from passing for a
chunk. The digest binds the size, so nobody can lie about it: a manifest (size and leaves) is checked as a whole before
the first chunk is asked for, and each chunk by itself as it comes, whoever sends it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from mesh.errors import LocalProtocolError, RemoteProtocolError

DIGEST_BYTES: Final = 32
CHUNK_BYTES: Final = 1024 * 1024
"""A constant of the format: other chunks would give the same bytes another name."""
MAX_CHUNKS: Final = 32 * 1024
"""Its manifest of 1 MiB still fits one message."""
MAX_BLOB_BYTES: Final = MAX_CHUNKS * CHUNK_BYTES

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"
_BLOB: Final = b"\x02"

Bytes = bytes | bytearray | memoryview


def chunk_count(size: int) -> int:
    """Chunks of a blob of `size` bytes."""
    return -(-size // CHUNK_BYTES)


def leaf_of(chunk: Bytes) -> bytes:
    """The hash of one chunk."""
    hasher = hashlib.sha256(_LEAF)
    hasher.update(chunk)
    return hasher.digest()


def root_of(leaves: Iterable[bytes]) -> bytes:
    """RFC 6962's tree hash over leaf hashes."""
    level = list(leaves)
    if not level:
        return hashlib.sha256().digest()
    while len(level) > 1:
        above = [hashlib.sha256(_NODE + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


@dataclass(frozen=True)
class Manifest:
    """A blob's size and the hashes of its chunks, one after the other."""

    size: int
    leaves: bytes

    @cached_property
    def digest(self) -> bytes:
        """The blob's name. For the largest blob this takes some 40 ms of CPU time."""
        return hashlib.sha256(_BLOB + self.size.to_bytes(8, "big") + root_of(map(self.leaf, range(len(self))))).digest()

    def __len__(self) -> int:
        """Chunks."""
        return len(self.leaves) // DIGEST_BYTES

    def leaf(self, index: int) -> bytes:
        """The hash that chunk `index` must have."""
        return self.leaves[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def chunk_size(self, index: int) -> int:
        """Bytes of chunk `index`."""
        return min(CHUNK_BYTES, self.size - index * CHUNK_BYTES)

    def check_chunk(self, index: int, chunk: Bytes) -> None:
        """Raises RemoteProtocolError when these bytes are not chunk `index`."""
        if len(chunk) != self.chunk_size(index):
            raise RemoteProtocolError(f"{len(chunk)} bytes for chunk {index}, which has {self.chunk_size(index)}")
        if leaf_of(chunk) != self.leaf(index):
            raise RemoteProtocolError(f"bytes that are not chunk {index}")


def check_size(size: int, leaves: bytes) -> None:
    """Whether a size and leaves can be a manifest at all, before anything is computed from them. Raises
    RemoteProtocolError."""
    if not 0 <= size <= MAX_BLOB_BYTES:
        raise RemoteProtocolError(f"a manifest of {size} bytes; a blob has {MAX_BLOB_BYTES} at most")
    if len(leaves) != chunk_count(size) * DIGEST_BYTES:
        raise RemoteProtocolError(
            f"a manifest with {len(leaves)} bytes of hashes where {chunk_count(size)} chunks have "
            f"{chunk_count(size) * DIGEST_BYTES}"
        )


def check_manifest(manifest: Manifest, digest: bytes) -> None:
    """Raises RemoteProtocolError unless this is the manifest of the blob with this digest."""
    check_size(manifest.size, manifest.leaves)
    if manifest.digest != digest:
        raise RemoteProtocolError(f"a manifest of another blob than {digest.hex()}")


def manifest_of(data: Bytes) -> Manifest:
    """The manifest of bytes in memory. Raises LocalProtocolError for more than MAX_BLOB_BYTES."""
    view = memoryview(data)
    if len(view) > MAX_BLOB_BYTES:
        raise LocalProtocolError(f"a blob has {MAX_BLOB_BYTES} bytes at most, not {len(view)}")
    chunks = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    return Manifest(len(view), b"".join(map(leaf_of, chunks)))


def digest_of(data: Bytes) -> bytes:
    """The name of a blob: the one kind of digest that is used wherever blobs are named."""
    return manifest_of(data).digest


def parse_digest(text: str) -> bytes:
    """A digest as a person writes it: 64 hexadecimal digits. Raises LocalProtocolError."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_BYTES or text.lower() != digest.hex():
        raise LocalProtocolError(f"{text[:80]!r} is no digest: it has {2 * DIGEST_BYTES} hexadecimal digits")
    return digest
