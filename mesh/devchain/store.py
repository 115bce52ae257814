"""What the dev chain keeps on disk: blocks, and every storage value with the block that wrote it.

One SQLite transaction per block, so a kill loses at most the block in progress. State can be read as of any block
within `history_blocks`; blocks themselves are kept for good. A lock file keeps a second chain out of the directory.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mesh.devchain import scale as s
from mesh.devchain.overlay import MemoryState
from mesh.devchain.runtime import Block, header_hash, header_type
from mesh.errors import ChainError, ConfigError

PRUNE_EVERY_BLOCKS = 256
_FORMAT = 1
_opaque = s.vec(s.bytes_)


class HistoryDiscarded(ChainError):
    """State was asked for at a block older than the history that is kept."""


class Store:
    """The chain's database. `data_dir` None keeps everything in memory."""

    def __init__(self, data_dir: Path | None, *, history_blocks: int) -> None:
        self.history_blocks = history_blocks
        self._lock: int | None = None
        if data_dir is None:
            path = ":memory:"
        else:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(data_dir / "lock")
            path = str(data_dir / "chain.sqlite3")
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._open()
        except BaseException:
            self._unlock()
            raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _FORMAT):
            raise ConfigError(f"the chain's database has format {found}, this version reads {_FORMAT}")
        self._db.executescript(
            """
            CREATE TABLE IF NOT EXISTS state (
              key BLOB NOT NULL, block INTEGER NOT NULL, value BLOB, PRIMARY KEY (key, block)
            ) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS blocks (
              number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,
              header BLOB NOT NULL, extrinsics BLOB NOT NULL
            );
            """
        )
        self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def close(self) -> None:
        """Close the database and let go of the directory."""
        self._db.close()
        self._unlock()

    def append(self, block: Block) -> None:
        """Write a block and its changes in one transaction."""
        db = self._db
        header, extrinsics = header_type.encode(block.header), _opaque.encode(list(block.extrinsics))
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?)", (block.number, block.hash, header, extrinsics))
            db.executemany(
                "INSERT INTO state VALUES (?, ?, ?)",
                [(key, block.number, value) for key, value in block.changes.items()],
            )
            if block.number % PRUNE_EVERY_BLOCKS == 0:
                self._prune(block.number - self.history_blocks)
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def latest(self) -> Block | None:
        """The highest block, or None in a new store. Its changes are not read."""
        return self._block("SELECT * FROM blocks ORDER BY number DESC LIMIT 1", ())

    def block(self, block_hash: bytes) -> Block | None:
        """A block by its hash."""
        return self._block("SELECT * FROM blocks WHERE hash = ?", (block_hash,))

    def block_at(self, number: int) -> Block | None:
        """A block by its number."""
        return self._block("SELECT * FROM blocks WHERE number = ?", (number,))

    def number_of(self, block_hash: bytes) -> int | None:
        """A block's number by its hash."""
        row = self._db.execute("SELECT number FROM blocks WHERE hash = ?", (block_hash,)).fetchone()
        return None if row is None else int(row[0])

    def hash_of(self, number: int) -> bytes | None:
        """A block's hash by its number."""
        row = self._db.execute("SELECT hash FROM blocks WHERE number = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])

    def load(self) -> MemoryState:
        """The latest state, wholly."""
        rows = self._db.execute("SELECT key, value, MAX(block) FROM state GROUP BY key HAVING value IS NOT NULL")
        return MemoryState({bytes(key): bytes(value) for key, value, _ in rows})

    def at(self, number: int, *, best: int) -> HistoricState:
        """The state after block `number`; `HistoryDiscarded` when that is older than what is kept."""
        if number < best - self.history_blocks:
            raise HistoryDiscarded(
                f"the state of block {number} is gone: that of the last {self.history_blocks} of {best} is kept"
            )
        return HistoricState(self._db, number)

    def _block(self, query: str, values: tuple[bytes | int, ...]) -> Block | None:
        row = self._db.execute(query, values).fetchone()
        if row is None:
            return None
        number, block_hash, header, extrinsics = row
        decoded = header_type.decode_all(header)
        if header_hash(decoded) != block_hash:
            raise ConfigError(f"block {number} of the chain's database is damaged: its hash does not fit")
        return Block(number, block_hash, decoded, tuple(_opaque.decode_all(extrinsics)), {})

    def _prune(self, cutoff: int) -> None:
        """Drop values that were replaced at or before `cutoff`."""
        if cutoff <= 0:
            return
        self._db.execute(
            """
            DELETE FROM state WHERE block < ? AND EXISTS (
              SELECT 1 FROM state AS newer
              WHERE newer.key = state.key AND newer.block > state.block AND newer.block <= ?
            )
            """,
            (cutoff, cutoff),
        )

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class HistoricState:
    """Read access to the state after one block."""

    def __init__(self, db: sqlite3.Connection, number: int) -> None:
        self._db = db
        self._number = number

    def get(self, key: bytes) -> bytes | None:
        """The raw value, or None."""
        row = self._db.execute(
            "SELECT value FROM state WHERE key = ? AND block <= ? ORDER BY block DESC LIMIT 1",
            (key, self._number),
        ).fetchone()
        return None if row is None or row[0] is None else bytes(row[0])

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """The keys under `prefix`, ascending."""
        end = _after(prefix)
        rows = self._db.execute(
            "SELECT key, value, MAX(block) FROM state "
            "WHERE key >= ? AND (? IS NULL OR key < ?) AND block <= ? "
            "GROUP BY key HAVING value IS NOT NULL ORDER BY key",
            (prefix, end, end, self._number),
        )
        return iter([bytes(row[0]) for row in rows])


def _after(prefix: bytes) -> bytes | None:
    """The first key that sorts after everything under `prefix`; None when there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def _lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(
            f"another dev chain runs in {path.parent}: stop it or choose another data directory"
        ) from None
    return handle
