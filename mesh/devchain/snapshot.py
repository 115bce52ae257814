"""A chain at one block, as one file: its last blocks and its whole state. What waits in the pool is not in it.

PURE. A snapshot is trusted for nothing: its digest finds a torn file; its blocks must follow one another, hold the
extrinsics their headers name and end in a state with the root that the last one names; every entry of that state must
be one that the runtime declares, and its balances those of its books. Who made it is not in it: a state may be
anybody's invention, as a chain with a single author is anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mesh.devchain import scale as s
from mesh.devchain.extrinsic import blake2_256
from mesh.devchain.overlay import MemoryState, root_of
from mesh.devchain.pallets.system import BLOCK_HASH_COUNT
from mesh.devchain.runtime import Block, Runtime, extrinsics_root, header_hash, header_type
from mesh.errors import ConfigError

MAX_SNAPSHOT_BYTES: Final = 16 * 2**20
"""Of a whole snapshot; one that would be larger is not made."""
MAX_BLOCKS_BYTES: Final = 4 * 2**20
"""What blocks before the last one may take of it."""
MAX_BLOCKS: Final = BLOCK_HASH_COUNT
"""Blocks in a snapshot: those whose hashes the state itself knows."""

MAGIC: Final = b"mesh-chain snapshot 1\n"
_DIGEST_BYTES: Final = 32
_block = s.struct("", header=header_type, extrinsics=s.vec(s.bytes_))
_body = s.struct("", genesis=s.h256, blocks=s.vec(_block), state=s.vec(s.tuple_of(s.bytes_, s.bytes_)))


@dataclass(frozen=True)
class Snapshot:
    """`blocks` follow one another; the state is the one after the last."""

    blocks: tuple[Block, ...]
    state: dict[bytes, bytes]


def write(genesis_hash: bytes, blocks: Sequence[Block], state: MemoryState) -> bytes:
    """The snapshot's bytes; ConfigError when there would be more than `MAX_SNAPSHOT_BYTES`."""
    body = _body.encode(
        {
            "genesis": genesis_hash,
            "blocks": [{"header": each.header, "extrinsics": list(each.extrinsics)} for each in blocks],
            "state": list(state.items()),
        }
    )
    raw = MAGIC + blake2_256(body) + body
    if len(raw) > MAX_SNAPSHOT_BYTES:
        raise ConfigError(
            f"the snapshot would have {len(raw)} bytes, more than {MAX_SNAPSHOT_BYTES}: "
            "stop the chain and copy its data directory instead"
        )
    return raw


def check_digest(raw: bytes) -> bytes:
    """The body of a snapshot that is whole; ConfigError otherwise. What it says is not looked at."""
    if len(raw) > MAX_SNAPSHOT_BYTES:
        raise ConfigError(f"a snapshot has {MAX_SNAPSHOT_BYTES} bytes at most, this one has more")
    if not raw.startswith(MAGIC):
        raise ConfigError("this is no snapshot of a mesh chain, or one of another version")
    digest, body = raw[len(MAGIC) :][:_DIGEST_BYTES], raw[len(MAGIC) + _DIGEST_BYTES :]
    if blake2_256(body) != digest:
        raise ConfigError("the snapshot is damaged, its digest does not fit: take another one")
    return body


def read(raw: bytes, *, genesis_hash: bytes, runtime: Runtime) -> Snapshot:
    """A snapshot after all its checks; ConfigError says which one it failed."""
    try:
        body = _body.decode_all(check_digest(raw))
        if body["genesis"] != genesis_hash:
            raise ConfigError(
                f"the snapshot is of a chain with genesis 0x{body['genesis'].hex()}, this one has "
                f"0x{genesis_hash.hex()}: start mesh-chain with the funds, epoch length and genesis file of that one"
            )
        blocks = _blocks(body["blocks"], genesis_hash)
        for key, value in body["state"]:
            runtime.check_entry(key, value)
    except s.ScaleError as error:
        raise ConfigError(f"the snapshot holds what is no part of a chain ({error}): take another one") from error
    state = dict(body["state"])
    if root_of(state.items()) != blocks[-1].header["state_root"] or len(state) != len(body["state"]):
        raise ConfigError("the snapshot's state is not the one its last block names: take another one")
    try:
        runtime.check_books(MemoryState(state))
    except s.ScaleError as error:
        raise ConfigError(f"the snapshot is no state of a chain ({error}): take another one") from error
    return Snapshot(blocks, state)


def _blocks(bodies: list[dict[str, object]], genesis_hash: bytes) -> tuple[Block, ...]:
    if not 1 <= len(bodies) <= MAX_BLOCKS:
        raise s.ScaleError(f"{len(bodies)} blocks")
    blocks: list[Block] = []
    for each in bodies:
        header: dict[str, object] = each["header"]  # type: ignore[assignment]
        extrinsics: list[bytes] = each["extrinsics"]  # type: ignore[assignment]
        number = header["number"]
        assert isinstance(number, int)  # its type is a number
        block_hash = header_hash(header)
        if header["extrinsics_root"] != extrinsics_root(extrinsics):
            raise s.ScaleError(f"block {number} with other extrinsics than its header names")
        if blocks and (number != blocks[-1].number + 1 or header["parent_hash"] != blocks[-1].hash):
            raise s.ScaleError(f"block {number} does not follow the one before it")
        if number == 0 and block_hash != genesis_hash:
            raise s.ScaleError("another genesis block")
        blocks.append(Block(number, block_hash, header, tuple(extrinsics), {}))
    return tuple(blocks)
