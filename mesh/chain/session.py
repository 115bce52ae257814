"""One connection to a node, used from one thread: raw JSON-RPC, checked replies, blocks and storage.

`rpc` is a function from method and parameters to the JSON result; SubstrateChain's is a websocket (link.py), a test's
a table. Nothing here waits for anything else, keeps no lock and knows no event loop.

A block's number and parent are believed only from a header that hashes to the block's hash.
"""

from __future__ import annotations

import enum
import hashlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from mesh.chain import dialect as dialects
from mesh.chain import info, runtime
from mesh.chain import metadata as metadata_v14
from mesh.chain.codec import compact
from mesh.chain.dialect import PALLET, Dialect, Read
from mesh.chain.metadata import Metadata, StorageItem
from mesh.chain.runtime import Version
from mesh.chain.types import BlockRef
from mesh.errors import BlockUnavailable, ChainError
from mesh.files import Durable, replace_file

log = logging.getLogger(__name__)

T = TypeVar("T")

HASH_BYTES: Final = 32
METHOD_NOT_FOUND: Final = -32601
CODE_KEY: Final = b":code"
PAGE_KEYS: Final = 256
"""Storage keys asked for in one request."""
MAX_ENTRIES: Final = 65_536
"""Entries of one map that are read; a subnet has at most 256 nodes."""
KEPT_BLOCKS: Final = 256
"""Blocks whose extrinsic hashes are remembered: four eras."""
MAX_BLOCK_EXTRINSICS: Final = 100_000
HELD_S: Final = 0.001
LET_GO_S: Final = 0.0001
MAX_DIGEST_LOGS: Final = 1024
PRUNED_AFTER_BLOCKS: Final = 256
"""A node that is no archive keeps the state of so many blocks."""
_NO_SUCH_BLOCK: Final = re.compile(r"discarded|unknown ?block|header was not found", re.IGNORECASE)
"""What nodes say, under several codes, of a block or state they do not have."""

Rpc = Callable[[str, Sequence[object]], object]


class Disconnected(ChainError):
    """The connection ended under a call; the call may be made again on the next one."""


class RpcRefused(ChainError):
    """The node answered a JSON-RPC error."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"the node refused {method} ({code}): {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class BlockBody:
    """What is remembered of a block: its parent and its extrinsics' hashes, in order."""

    ref: BlockRef
    parent: bytes
    extrinsics: tuple[bytes, ...]


class Breath:
    """Called often while something is decoded: lets other threads have the interpreter every millisecond.

    Left to itself Python takes it from a thread after 5 ms only, and the event loop wants it at every turn.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._since > HELD_S:
            time.sleep(LET_GO_S)  # 0 would take it back before the other thread is awake
            self._since = time.perf_counter()


class Source(enum.Enum):
    """Where a gathered struct is read, in this order; storage comes last."""

    STATE_CALL = enum.auto()
    """The runtime API, through `state_call`."""
    NETWORK_RPC = enum.auto()
    """The node's own `network_*`."""


class Trust(enum.Enum):
    """What a source turned out to be worth, on this connection and runtime."""

    PROVED = enum.auto()
    """It told the same as storage."""
    REFUSED = enum.auto()
    """It told something else, nothing that can be read, or nothing."""


@dataclass
class Session:
    """A connection's state: its chain and the runtime as last read."""

    url: str
    rpc: Rpc
    genesis: bytes
    chain_type: str
    version: Version
    metadata: Metadata
    dialect: Dialect
    cache_dir: Path | None
    blocks: OrderedDict[bytes, BlockBody] = field(default_factory=OrderedDict)
    refs: OrderedDict[bytes, BlockRef] = field(default_factory=OrderedDict)
    trust: dict[tuple[Source, str], Trust] = field(default_factory=dict)
    layouts: info.Layouts | None = None
    """Of the structs that the metadata does not have, made when first needed."""
    next_index_known: bool = True
    """Whether the node may have `system_accountNextIndex` (pool-aware nonces)."""


def open_session(rpc: Rpc, url: str, *, cache_dir: Path | None) -> Session:
    """Learn the chain behind `rpc`. Raises WrongChain when it is no Ethereum-style chain with a network pallet."""
    genesis = unhex(rpc("chain_getBlockHash", [0]), "genesis hash", HASH_BYTES)
    chain_type = _optional(rpc, "system_chainType", [])
    version = read_version(rpc)
    metadata = read_metadata(rpc, genesis, version, cache_dir)
    return Session(
        url=url,
        rpc=rpc,
        genesis=genesis,
        chain_type=chain_type if isinstance(chain_type, str) else "",
        version=version,
        metadata=metadata,
        dialect=dialects.choose(metadata.pallets[PALLET].calls if PALLET in metadata.pallets else {}),
        cache_dir=cache_dir,
    )


def refresh_runtime(session: Session) -> None:
    """Read version and, when it changed, metadata again (a runtime upgrade)."""
    version = read_version(session.rpc)
    if version == session.version:
        return
    log.info("the chain's runtime is now %s %d", version.spec_name, version.spec_version)
    session.metadata = read_metadata(session.rpc, session.genesis, version, session.cache_dir)
    session.dialect = dialects.choose(session.metadata.pallet(PALLET).calls)
    session.version = version
    session.trust.clear()
    session.layouts = None


def read_version(rpc: Rpc) -> Version:
    """`state_getRuntimeVersion`."""
    raw = rpc("state_getRuntimeVersion", [])
    if not isinstance(raw, Mapping):
        raise ChainError("the node's runtime version is no object")
    name, spec, transaction = raw.get("specName"), raw.get("specVersion"), raw.get("transactionVersion")
    if not isinstance(name, str) or not isinstance(spec, int) or not isinstance(transaction, int):
        raise ChainError("the node's runtime version lacks specName, specVersion or transactionVersion")
    if not 0 <= spec < 1 << 32 or not 0 <= transaction < 1 << 32:
        raise ChainError("the node's runtime version is out of range")
    return Version(name, spec, transaction)


def read_metadata(rpc: Rpc, genesis: bytes, version: Version, cache_dir: Path | None) -> Metadata:
    """The runtime's metadata, from disk where the same code's bytes lie there already.

    The file's name covers the hash of the runtime's code, so a node that does not tell it (a development chain, whose
    code may change under one version) is asked each time. A cached file that cannot be read is fetched again.
    """
    code = _optional(rpc, "state_getStorageHash", [to_hex(CODE_KEY)])
    path: Path | None = None
    if cache_dir is not None and isinstance(code, str):
        identity = f"{genesis.hex()} {version} {code}".encode()
        path = cache_dir / f"metadata-{hashlib.sha256(identity).hexdigest()[:32]}"
        try:
            raw = path.read_bytes()
            if raw[:HASH_BYTES] == hashlib.sha256(raw[HASH_BYTES:]).digest():
                return _checked(raw[HASH_BYTES:])
            log.warning("%s is damaged; the metadata is fetched again", path)
        except FileNotFoundError:
            pass
        except (OSError, ChainError) as error:
            log.warning("%s cannot be used (%s); the metadata is fetched again", path, error)
    raw = unhex(rpc("state_getMetadata", []), "metadata")
    metadata = _checked(raw)
    if path is not None:
        _write_cache(path, hashlib.sha256(raw).digest() + raw)
    return metadata


def _checked(raw: bytes) -> Metadata:
    metadata = metadata_v14.parse(raw, Breath())
    runtime.require_known_format(metadata)
    return metadata


def _write_cache(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, durable=Durable.NO)  # a torn file shows by its digest and is fetched again
    except OSError as error:
        log.warning("the metadata cannot be cached at %s: %s", path, error)


# --- blocks ---------------------------------------------------------------------------------------------------


def head(session: Session) -> BlockRef:
    """The best block."""
    return block_ref(session, unhex(session.rpc("chain_getHead", []), "head", HASH_BYTES))


def finalized(session: Session) -> BlockRef:
    """The last finalized block."""
    return block_ref(session, unhex(session.rpc("chain_getFinalizedHead", []), "finalized head", HASH_BYTES))


def block_ref(session: Session, block_hash: bytes) -> BlockRef:
    """A block's number from its hash. Raises BlockUnavailable when the node does not know it."""
    known = session.refs.get(block_hash)
    if known is not None:
        return known
    header = session.rpc("chain_getHeader", [to_hex(block_hash)])
    if header is None:
        raise _unknown(session, block_hash)
    number, _ = _checked_header(session, header, block_hash)
    ref = session.refs[block_hash] = BlockRef(number, block_hash)
    while len(session.refs) > KEPT_BLOCKS:
        session.refs.popitem(last=False)
    return ref


def _checked_header(session: Session, header: object, wanted: bytes) -> tuple[int, bytes]:
    """(number, parent's hash) from a header that is the wanted block's: its hash is blake2-256 of its SCALE bytes."""
    digest = header.get("digest") if isinstance(header, Mapping) else None
    logs = digest.get("logs") if isinstance(digest, Mapping) else None
    if not isinstance(header, Mapping) or not isinstance(logs, list) or len(logs) > MAX_DIGEST_LOGS:
        raise ChainError(f"the node's answer for block 0x{wanted.hex()} has no header")
    height = block_number(header.get("number"))
    parent = unhex(header.get("parentHash"), "parent hash", HASH_BYTES)
    roots = [unhex(header.get(name), name, HASH_BYTES) for name in ("stateRoot", "extrinsicsRoot")]
    items = b"".join(unhex(item, "digest item") for item in logs)
    if runtime.blake2(parent + compact(height) + b"".join(roots) + compact(len(logs)) + items) != wanted and (
        height or wanted != session.genesis  # a fork made for tests may name its first block as it likes
    ):
        raise ChainError(f"the node's header for block 0x{wanted.hex()} is not that block's: it has another hash")
    return height, parent


def _unknown(session: Session, wanted: bytes, height: int | None = None) -> BlockUnavailable:
    name = f"block 0x{wanted.hex()}" if height is None else f"block {height} (0x{wanted.hex()})"
    return BlockUnavailable(
        f"the node at {session.url} does not know {name}: it is of another fork, or the node is not synchronized; "
        "read at a newer block",
        number=height,
    )


def at_block(session: Session, method: str, params: Sequence[object], at: bytes) -> object:
    """`rpc` for what is read at a block. Raises BlockUnavailable when the node has not that block or its state."""
    try:
        return session.rpc(method, params)
    except RpcRefused as error:
        if not _NO_SUCH_BLOCK.search(error.message):
            raise
        try:
            height = block_ref(session, at).number
        except BlockUnavailable as unknown:
            raise unknown from error
        raise BlockUnavailable(
            f"the node at {session.url} keeps the state of block {height} (0x{at.hex()}) no more: a node that is no "
            f"archive keeps {PRUNED_AFTER_BLOCKS} blocks; give the URL of an archive node, or read sooner",
            number=height,
        ) from error


def block_hash(session: Session, number: int) -> bytes:
    """Hash of a block of the best chain. Raises ChainError when there is none yet."""
    answer = session.rpc("chain_getBlockHash", [number])
    if answer is None:
        raise BlockUnavailable(f"the chain has no block {number} yet", number=number)
    return unhex(answer, f"hash of block {number}", HASH_BYTES)


def block_body(session: Session, wanted: bytes) -> BlockBody:
    """A block's parent and extrinsic hashes, remembered for a while."""
    known = session.blocks.get(wanted)
    if known is not None:
        return known
    answer = session.rpc("chain_getBlock", [to_hex(wanted)])
    if answer is None:
        raise _unknown(session, wanted)
    block = answer.get("block") if isinstance(answer, Mapping) else None
    raws = block.get("extrinsics") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or not isinstance(raws, list) or len(raws) > MAX_BLOCK_EXTRINSICS:
        raise ChainError(f"the node's answer for block 0x{wanted.hex()} is no block")
    height, parent = _checked_header(session, block.get("header"), wanted)
    hashes = tuple(runtime.blake2(unhex(raw, "extrinsic")) for raw in raws)
    body = BlockBody(BlockRef(height, wanted), parent, hashes)
    session.blocks[wanted] = body
    while len(session.blocks) > KEPT_BLOCKS:
        session.blocks.popitem(last=False)
    return body


@dataclass(frozen=True, slots=True)
class Found:
    """Where an extrinsic is, if it is anywhere, in the chain that ends at `head`."""

    head: BlockRef
    block: BlockRef | None
    index: int


def find_extrinsic(session: Session, digest: bytes, *, after: int, until: int) -> Found:
    """Look for an extrinsic in the blocks `after` < number < `until` below the best one, newest first."""
    best = head(session)
    number, at = best.number, best.hash
    if number >= until:
        number = until - 1
        at = block_hash(session, number)
    while number > after:
        body = block_body(session, at)
        if body.ref.number != number:
            raise ChainError(f"the node's block 0x{at.hex()} is number {body.ref.number}, not {number}")
        if digest in body.extrinsics:
            return Found(best, body.ref, body.extrinsics.index(digest))
        number, at = number - 1, body.parent
    return Found(best, None, -1)


# --- storage --------------------------------------------------------------------------------------------------


def read_raw(session: Session, keys: Sequence[bytes], at: bytes | None) -> dict[bytes, bytes | None]:
    """Raw values of many keys at one block, in pages. Raises ChainError when the node leaves one out."""
    if at is None and len(keys) > PAGE_KEYS:  # one page is of one block by itself
        at = unhex(session.rpc("chain_getHead", []), "head", HASH_BYTES)
    values: dict[bytes, bytes | None] = {}
    for start in range(0, len(keys), PAGE_KEYS):
        page = keys[start : start + PAGE_KEYS]
        wanted = [to_hex(key) for key in page]
        if at is None:
            answer = session.rpc("state_queryStorageAt", [wanted])
        else:
            answer = at_block(session, "state_queryStorageAt", [wanted, to_hex(at)], at)
        if not isinstance(answer, list):
            raise ChainError("the node's answer to state_queryStorageAt is no list")
        for change_set in answer:
            changes = change_set.get("changes") if isinstance(change_set, Mapping) else None
            if not isinstance(changes, list):
                raise ChainError("the node's answer to state_queryStorageAt has no changes")
            for pair in changes:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise ChainError("the node's answer to state_queryStorageAt has a change that is no pair")
                values[unhex(pair[0], "storage key")] = None if pair[1] is None else unhex(pair[1], "storage value")
        missing = next((key for key in page if key not in values), None)
        if missing is not None:
            raise ChainError(f"the node's answer leaves out the storage key 0x{missing.hex()}")
    return values


def read_many(session: Session, reads: Sequence[Read], at: bytes | None, pallet: str = PALLET) -> list[object]:
    """Decoded values of many entries at one block, in the order asked."""
    metadata = session.metadata
    items = [metadata.item(pallet, read.item) for read in reads]
    keys = [runtime.storage_key(metadata, item, read.keys) for item, read in zip(items, reads, strict=True)]
    raw = read_raw(session, list(dict.fromkeys(keys)), at)
    breath = Breath()
    values: list[object] = []
    for item, key in zip(items, keys, strict=True):
        values.append(runtime.decode_value(metadata, item, raw[key]))
        breath()
    return values


def read_map(
    session: Session, pallet: str, name: str, keys: Sequence[object], at: bytes | None
) -> list[tuple[tuple[object, ...], object]]:
    """All entries under a partial key at one block, in the order of their storage keys."""
    if at is None:
        at = unhex(session.rpc("chain_getHead", []), "head", HASH_BYTES)
    item = session.metadata.item(pallet, name)
    found = keys_under(session, item, keys, at)
    raw = read_raw(session, found, at)
    metadata = session.metadata
    breath = Breath()
    entries: list[tuple[tuple[object, ...], object]] = []
    for key in found:
        entries.append((runtime.decode_keys(metadata, item, key), runtime.decode_value(metadata, item, raw[key])))
        breath()
    return entries


def keys_under(session: Session, item: StorageItem, keys: Sequence[object], at: bytes) -> list[bytes]:
    prefix = runtime.storage_prefix(session.metadata, item, keys)
    found: list[bytes] = []
    while True:
        start = [to_hex(found[-1])] if found else [None]
        answer = at_block(session, "state_getKeysPaged", [to_hex(prefix), PAGE_KEYS, *start, to_hex(at)], at)
        if not isinstance(answer, list):
            raise ChainError("the node's answer to state_getKeysPaged is no list")
        page = [unhex(key, "storage key") for key in answer]
        previous = found[-1] if found else b""
        for key in page:
            if not key.startswith(prefix) or key <= previous:
                raise ChainError(f"the node's keys of {item.name} are not under their prefix in ascending order")
            previous = key
        found += page
        if len(found) > MAX_ENTRIES:
            raise ChainError(f"the chain has more than {MAX_ENTRIES} entries of {item.name}")
        if len(page) < PAGE_KEYS:
            return found


def state_call(session: Session, name: str, data: bytes, at: bytes | None = None) -> bytes:
    """A runtime API's answer, raw."""
    if at is None:
        return unhex(session.rpc("state_call", [name, to_hex(data)]), name)
    return unhex(at_block(session, "state_call", [name, to_hex(data), to_hex(at)], at), name)


# --- replies --------------------------------------------------------------------------------------------------


def unhex(value: object, what: str, length: int | None = None) -> bytes:
    """Bytes from 0x text. Raises ChainError naming what is not."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ChainError(f"the node's {what} is no 0x text: {str(value)[:40]!r}")
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError as error:
        raise ChainError(f"the node's {what} is no hexadecimal text") from error
    if length is not None and len(raw) != length:
        raise ChainError(f"the node's {what} has {len(raw)} bytes, not {length}")
    return raw


def block_number(value: object) -> int:
    """A header's block number. Raises ChainError."""
    try:
        height = int(str(value), 16)
    except ValueError as error:
        raise ChainError(f"the node's block number is {str(value)[:40]!r}") from error
    if not 0 <= height < 1 << 32:
        raise ChainError(f"the node's block number is {height}")
    return height


def to_hex(raw: bytes) -> str:
    """0x text of bytes."""
    return f"0x{raw.hex()}"


def _optional(rpc: Rpc, method: str, params: Sequence[object]) -> object:
    """A reply that some nodes do not have; None then."""
    try:
        return rpc(method, params)
    except RpcRefused as error:
        log.debug("%s: %s", method, error)
        return None
