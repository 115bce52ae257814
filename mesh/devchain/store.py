"""What the dev chain keeps on disk: blocks, and every storage value with the block that wrote it.

One SQLite transaction per block, so a kill loses at most the block in progress (and a crash of the machine perhaps the
last few: a commit is not waited for on the disk). State can be read as of any block within `history_blocks`; blocks
themselves are kept for good. A lock file keeps a second chain out of the directory. A database that SQLite or the root
of the state finds damaged is not opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mesh.devchain import scale as s
from mesh.devchain.overlay import MemoryState, root_of
from mesh.devchain.runtime import Block, extrinsics_root, header_hash, header_type
from mesh.errors import ChainError, ConfigError

PRUNE_EVERY_BLOCKS = 256
LOCKED_TIMEOUT_S = 5.0
"""How long another program may hold the file before that is an error."""
_FORMAT = 2
_opaque = s.vec(s.bytes_)


class HistoryDiscarded(ChainError):
    """State was asked for at a block older than the history that is kept."""


class Store:
    """The chain's database. `data_dir` None keeps everything in memory.

    Opening raises ConfigError when the directory cannot be used, another chain runs in it, or the database is damaged
    or of another format; a write raises ChainError when the disk refuses it, and has then changed nothing.
    """

    def __init__(self, data_dir: Path | None, *, history_blocks: int) -> None:
        self.history_blocks = history_blocks
        self._lock: int | None = None
        if data_dir is None:
            path = ":memory:"
        else:
            try:
                data_dir.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(data_dir / "lock")
            except OSError as error:
                raise ConfigError(
                    f"the data directory {data_dir} cannot be used ({error.strerror}): choose another one"
                ) from error
            path = str(data_dir / "chain.sqlite3")
        self._path = path
        try:
            self._db = sqlite3.connect(path, LOCKED_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            self._unlock()
            raise ConfigError(f"{path} cannot be opened ({error}): choose another data directory") from error
        try:
            with self._reading():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _FORMAT):
            raise ConfigError(
                f"{self._path} has format {found}, this version reads {_FORMAT}: choose another data directory or "
                "delete this one"
            )
        (said,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise _damaged(self._path, said)
        self._db.executescript(
            """
            CREATE TABLE IF NOT EXISTS state (
              key BLOB NOT NULL, block INTEGER NOT NULL, value BLOB, PRIMARY KEY (key, block)
            ) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS blocks (
              number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,
              header BLOB NOT NULL, extrinsics BLOB NOT NULL
            );
            CREATE TABLE IF NOT EXISTS history (from_block INTEGER NOT NULL);
            INSERT INTO history SELECT 0 WHERE NOT EXISTS (SELECT * FROM history);
            """
        )
        self._db.execute(f"PRAGMA user_version = {_FORMAT}")
        (self._from,) = self._db.execute("SELECT from_block FROM history").fetchone()

    @property
    def history_from(self) -> int:
        """The lowest block whose state may be there."""
        return int(self._from)

    def close(self) -> None:
        """Close the database and let go of the directory."""
        self._db.close()
        self._unlock()

    def append(self, block: Block) -> None:
        """Write a block and its changes in one transaction."""
        with self._writing():
            self._insert(block, block.changes)
            if block.number % PRUNE_EVERY_BLOCKS == 0:
                self._prune(block.number - self.history_blocks)

    def cut(self, number: int) -> None:
        """Forget all blocks above `number`, a block whose state is kept, in one transaction."""
        with self._writing():
            for table, column in (("blocks", "number"), ("state", "block")):
                self._db.execute(f"DELETE FROM {table} WHERE {column} > ?", (number,))

    def replace(self, blocks: Sequence[Block], state: Mapping[bytes, bytes]) -> None:
        """Keep of the chain its genesis block, these blocks and the state after the last, in one transaction."""
        *before, last = blocks
        with self._writing():
            self._db.execute("DELETE FROM blocks WHERE number > 0 OR ? = 0", (blocks[0].number,))
            self._db.execute("DELETE FROM state")
            for block in before:
                self._insert(block, {})
            self._insert(last, state)
            self._keep_from(last.number)

    def _insert(self, block: Block, changes: Mapping[bytes, bytes | None]) -> None:
        header, extrinsics = header_type.encode(block.header), _opaque.encode(list(block.extrinsics))
        self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?)", (block.number, block.hash, header, extrinsics))
        rows = [(key, block.number, value) for key, value in changes.items()]
        self._db.executemany("INSERT INTO state VALUES (?, ?, ?)", rows)

    def _keep_from(self, number: int) -> None:
        self._db.execute("UPDATE history SET from_block = ?", (number,))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it, or on any error nothing."""
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise ChainError(
                    f"{self._path} cannot be written ({error}): see that the disk has room and that no other program "
                    "writes there, then start the chain again; finished blocks are kept"
                ) from error
            raise
        (self._from,) = db.execute("SELECT from_block FROM history").fetchone()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What SQLite or the codec cannot read is damage, but for what is not the file's fault."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise ConfigError(
                f"{self._path} cannot be used ({error}): see that it may be written, that the disk has room and that "
                "no other program has it open"
            ) from error
        except (sqlite3.Error, s.ScaleError) as error:
            raise _damaged(self._path, str(error)) from error

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

    def load(self, root: bytes) -> MemoryState:
        """The latest state, wholly; ConfigError when it is not the one with this root."""
        query = "SELECT key, value, MAX(block) FROM state GROUP BY key HAVING value IS NOT NULL"
        with self._reading():
            state = MemoryState({bytes(key): bytes(value) for key, value, _ in self._db.execute(query)})
        if root_of(state.items()) != root:
            raise _damaged(self._path, "the state is not the one that its last block names")
        return state

    def at(self, number: int, *, best: int) -> HistoricState:
        """The state after block `number`; `HistoryDiscarded` when that is older than what is kept."""
        oldest = max(best - self.history_blocks, self.history_from)
        if number < oldest:
            raise HistoryDiscarded(f"the state of block {number} is gone: that of blocks {oldest} to {best} is kept")
        return HistoricState(self._db, number)

    def _block(self, query: str, values: tuple[bytes | int, ...]) -> Block | None:
        with self._reading():
            row = self._db.execute(query, values).fetchone()
        if row is None:
            return None
        number, block_hash, header, extrinsics = row
        with self._reading():
            decoded = header_type.decode_all(header)
            body = tuple(_opaque.decode_all(extrinsics))
        if header_hash(decoded) != block_hash or extrinsics_root(body) != decoded["extrinsics_root"]:
            raise _damaged(self._path, f"the hash of block {number} does not fit")
        return Block(number, block_hash, decoded, body, {})

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
        self._keep_from(max(cutoff, self._from))

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


def _damaged(path: str, what: str) -> ConfigError:
    return ConfigError(
        f"the chain's database {path} is damaged ({' '.join(what.split())}): delete its directory and start anew, "
        "`mesh chain dev restore` then brings back a snapshot"
    )


def _lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(
            f"another dev chain runs in {path.parent}: stop it or choose another data directory (--data-dir)"
        ) from None
    return handle
