"""Places in the key space: 256-bit keys under XOR (Kademlia §2.1, libp2p kad-dht "Distance").

A key is a plain integer, because lookups and tables compare millions of them. The sha256 of a record key or
of a peer's multihash places it; tests use 8-bit keys, whose tables can be checked by hand.
"""

from __future__ import annotations

import functools
import hashlib
import random
from typing import Final, NewType

from mesh.peer import PeerID

KEY_BITS: Final = 256

Key = NewType("Key", int)
"""A place in the key space, 0 … 2**bits - 1."""


@functools.lru_cache(maxsize=16_384)
def key_of(data: bytes) -> Key:
    """Where a record key or multihash lies: its sha256, big-endian."""
    return Key(int.from_bytes(hashlib.sha256(data).digest(), "big"))


def wire_key(key: bytes) -> bytes:
    """A record key as other libp2p nodes write it: `/<namespace>/<rest>`, by whose first part they choose a
    validator."""
    return b"/" + key


def key_of_record(key: bytes) -> Key:
    """Where a record lies: the sha256 of its key as it travels between libp2p nodes, so that theirs and ours
    look for it in one place."""
    return key_of(wire_key(key))


def key_of_peer(peer: PeerID) -> Key:
    """Where a peer lies: the sha256 of its multihash."""
    return key_of(peer.multihash)


def key_bytes(key: Key, bits: int = KEY_BITS) -> bytes:
    """The key as it travels: big-endian, `bits` / 8 bytes."""
    return int(key).to_bytes(bits // 8, "big")


def distance(a: Key, b: Key) -> int:
    """XOR, read as an integer: symmetric, and unidirectional (one point per distance)."""
    return a ^ b


def common_prefix_length(a: Key, b: Key, bits: int = KEY_BITS) -> int:
    """How many leading bits two keys share: 0 … `bits`."""
    return bits - (a ^ b).bit_length()


def random_key_sharing(key: Key, prefix: int, *, rng: random.Random, bits: int = KEY_BITS) -> Key:
    """A random key that shares exactly the first `prefix` bits with `key` (0 ≤ prefix < bits): a place in
    that bucket."""
    if not 0 <= prefix < bits:
        raise ValueError(f"prefix {prefix} of a {bits}-bit key")
    below = bits - prefix - 1
    flipped = (key >> below) ^ 1
    return Key((flipped << below) | (rng.getrandbits(below) if below else 0))
