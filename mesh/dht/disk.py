"""Records that survive the process: a RecordStore's journal in an SQLite database.

The store stays in memory and is the truth while the node runs. It tells this journal what changed; changes gather in
memory, the newest of each slot, until `flush` writes them in one transaction. Call `flush` in a worker thread before
acknowledging a request: telling costs the caller microseconds, and several requests that wait share a transaction.

The database is in WAL mode with synchronous=NORMAL. What `flush` returned for is in the kernel's hands: the process may
be killed the next moment. A power cut may lose the transactions since the last checkpoint (some 4 MiB of them), never
the database: what is lost are replicas, which others hold too. Checkpoints, which wait for the disk, happen inside
`flush`.

At start, every row is checked as a stranger's record would be.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import logging
import os
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from mesh.errors import ConfigError, RecordRejected, RemoteProtocolError
from mesh.identity import is_signature
from mesh.kad.equivocation import MAX_PROOF_BYTES, Equivocation
from mesh.kad.key import key_of_peer
from mesh.kad.record import Record, Slot, Verify
from mesh.kad.store import Keep, RecordStore
from mesh.kad.validator import Purpose, RecordValidator
from mesh.peer import PeerID

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES: Final = 512 * 2**20
MAX_PENDING_BYTES: Final = 16 * 2**20
"""Changes gathered in memory; more are written at once, by whoever makes them. A store request is 10 MiB at most."""

MALFORMED: Final = "malformed"

_APPLICATION_ID: Final = 0x6D657368  # "mesh"
_SCHEMA_VERSION: Final = 1
_PAGES_PER_BYTE: Final = 2
"""How much larger than the records the file may be: a row of just over half a page has a page to itself."""
_PENDING_OVERHEAD_BYTES: Final = 512
_SCHEMA: Final = """
CREATE TABLE network (genesis BLOB NOT NULL, subnet_id INTEGER NOT NULL);
CREATE TABLE records (slot BLOB PRIMARY KEY, record BLOB NOT NULL, keep TEXT NOT NULL, sender BLOB);
CREATE TABLE proofs (slot BLOB PRIMARY KEY, proof BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found at start."""

    records: int
    proofs: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Rows left out and deleted, by reason; MALFORMED for those that are no record at all."""


class _Table(enum.Enum):
    """Of rows that are named by their slot."""

    RECORDS = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)"
    PROOFS = "INSERT OR REPLACE INTO proofs VALUES (?, ?)"


_Changes = dict[tuple[_Table, bytes], tuple[object, ...] | None]
"""By table and slot: what follows the slot in its row, None for a row that leaves."""


class SqliteRecords:
    """A Journal (mesh.kad.store) in one file, for one process at a time.

    Telling it something never raises and never waits, but for when MAX_PENDING_BYTES are reached. Once writing has
    failed, it takes nothing more and every `flush` says so: the node goes on in memory, if it likes, and acknowledges
    nothing as kept.
    """

    def __init__(
        self,
        path: Path,
        *,
        subnet_id: int,
        genesis: bytes,
        max_bytes: int = DEFAULT_MAX_BYTES,
        verify: Verify = is_signature,
    ) -> None:
        """Open the database, or make it with mode 0600. `max_bytes` bounds the file.

        Raises ConfigError when it cannot be opened, is open elsewhere, is damaged, or is another program's or
        network's.
        """
        self._path = path
        self._subnet_id = subnet_id
        self._genesis = genesis
        self._max_bytes = max_bytes
        self._verify = verify
        self._pending: _Changes = {}
        self._pending_bytes = 0
        self._pending_lock = threading.Lock()
        """Held for as long as a dict takes; `_disk_lock` for as long as the disk takes, and never the other way."""
        self._disk_lock = threading.Lock()
        self._is_loading = False
        self._failure: str | None = None
        self._database = self._open()

    # -- told by the store --

    def kept(self, record: Record, keep: Keep, sender: PeerID | None) -> None:
        """The record is in its slot now."""
        if not self._is_loading:
            row = (record.to_bytes(), keep.name, None if sender is None else sender.multihash)
            self._note(_Table.RECORDS, _name(record.slot), row)

    def dropped(self, slot: Slot) -> None:
        """The slot is empty now."""
        self._note(_Table.RECORDS, _name(slot), None)

    def proven(self, proof: Equivocation) -> None:
        """The proof is held now."""
        if not self._is_loading:
            self._note(_Table.PROOFS, _name(proof.slot), (proof.to_bytes(),))

    def unproven(self, proof: Equivocation) -> None:
        """The proof left."""
        self._note(_Table.PROOFS, _name(proof.slot), None)

    # -- to and from the disk --

    def flush(self) -> None:
        """Write what was told; when it returns, everything told before the call survives the process. Waits for the
        disk: call it in a worker thread. Raises ConfigError when writing failed, now or before."""
        with self._disk_lock:
            if self._failure is not None:
                raise ConfigError(self._failure)
            with self._pending_lock:
                changes, self._pending, self._pending_bytes = self._pending, {}, 0
            if not changes:
                return
            try:
                self._write(changes)
            except sqlite3.Error as error:
                self._failure = (
                    f"records are no longer kept in {self._path}: {error}. Free its disk or move it away, and restart"
                )
                log.error("dht.disk_failed", extra={"path": str(self._path), "error": str(error)})
                raise ConfigError(self._failure) from error

    def load(self, store: RecordStore, validator: RecordValidator, *, now: float) -> Loaded:
        """Put into `store` (whose journal this is) what was kept, once, before anything else is put there. Every row
        is checked anew, signatures too (some 0.2 ms a row), but for membership, which the caller asks whenever it
        answers. Rows that fail are deleted. Raises ConfigError when the file cannot be read, or is too small for what
        the store may hold."""
        proofs_bytes = store.config.max_proofs * MAX_PROOF_BYTES
        needed = _PAGES_PER_BYTE * (store.config.max_bytes + proofs_bytes)
        if self._max_bytes < needed:
            raise ConfigError(
                f"max_bytes of {self._path} is {self._max_bytes}; a store of {store.config.max_bytes} bytes needs "
                f"{needed}: raise the one or lower the other"
            )
        skipped = Counter[str]()
        self._is_loading = True
        try:
            # What stays comes first: if the store has become smaller, it need not make room for itself.
            for which in ("keep != 'REPLICA'", "keep = 'REPLICA'"):
                for name, *row in self._rows(f"SELECT slot, record, keep, sender FROM records WHERE {which}"):
                    self._take(_Table.RECORDS, name, skipped, partial(_put, name, row, store, validator, now))
            for name, raw in self._rows("SELECT slot, proof FROM proofs"):
                self._take(_Table.PROOFS, name, skipped, partial(self._prove, name, raw, store))
        finally:
            self._is_loading = False
        self.flush()
        return Loaded(len(store), len(store.proofs), dict(skipped))

    @property
    def size_bytes(self) -> int:
        """What the file takes, the WAL beside it left out."""
        with self._disk_lock:
            return int(_one(self._database, "PRAGMA page_count")) * int(_one(self._database, "PRAGMA page_size"))

    def close(self) -> None:
        """Flush and close. Raises ConfigError as `flush` does; it is closed then, too."""
        try:
            self.flush()
        finally:
            with self._disk_lock:
                self._database.close()

    # -- inside --

    def _note(self, table: _Table, name: bytes, row: tuple[object, ...] | None) -> None:
        if self._failure is not None:
            return
        size = _PENDING_OVERHEAD_BYTES + sum(len(part) for part in row or () if isinstance(part, bytes))
        with self._pending_lock:
            self._pending[table, name] = row
            self._pending_bytes += size
            is_full = self._pending_bytes > MAX_PENDING_BYTES
        if is_full and not self._is_loading:
            with contextlib.suppress(ConfigError):  # logged, and what every flush says from now on
                self.flush()

    def _take(self, table: _Table, name: Any, skipped: Counter[str], put: Callable[[], None]) -> None:
        """Put a row where it belongs, or have it deleted and counted."""
        try:
            put()
        except RecordRejected as error:
            level, reason, text = logging.DEBUG, error.reason, str(error)
        except RemoteProtocolError as error:
            level, reason, text = logging.WARNING, MALFORMED, str(error)
        else:
            return
        skipped[reason] += 1
        self._note(table, name, None)
        log.log(level, "dht.row_skipped", extra={"path": str(self._path), "reason": reason, "error": text})

    def _prove(self, name: object, raw: object, store: RecordStore) -> None:
        proof = Equivocation.from_bytes(_bytes(raw))
        _check_name(name, proof.slot)
        proof.check(self._verify, subnet_id=self._subnet_id, genesis=self._genesis)
        store.prove(proof)

    def _write(self, changes: _Changes) -> None:
        """One transaction; what leaves makes room first. Raises sqlite3.Error; then nothing is written."""
        database = self._database
        database.execute("BEGIN")
        try:
            for (table, name), row in changes.items():
                if row is None:
                    database.execute(f"DELETE FROM {table.name.lower()} WHERE slot = ?", (name,))
            for (table, name), row in changes.items():
                if row is not None:
                    database.execute(table.value, (name, *row))
            database.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):  # some errors have rolled back already
                database.execute("ROLLBACK")
            raise

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._database.execute(query)
        except sqlite3.Error as error:
            raise ConfigError(_problem(self._path, error)) from error

    def _open(self) -> sqlite3.Connection:
        _make_private(self._path)
        try:
            database = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise ConfigError(_problem(self._path, error)) from error
        try:
            self._prepare(database)
        except sqlite3.Error as error:
            database.close()
            raise ConfigError(_problem(self._path, error)) from error
        except ConfigError:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA trusted_schema = OFF")
        is_new = _one(database, "PRAGMA page_count") == 0
        ours = (_one(database, "PRAGMA application_id"), _one(database, "PRAGMA user_version"))
        if not is_new and ours[0] != _APPLICATION_ID:
            raise ConfigError(f"{self._path} is another program's database: name another file")
        if not is_new and ours[1] != _SCHEMA_VERSION:
            raise ConfigError(
                f"{self._path} has schema {ours[1]}, this program writes {_SCHEMA_VERSION}: move it away to start anew"
            )
        if _one(database, "PRAGMA journal_mode = WAL") != "wal":
            raise ConfigError(f"{self._path} lies where SQLite cannot keep a write-ahead log: name another directory")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA journal_size_limit = {MAX_PENDING_BYTES}")
        database.execute(f"PRAGMA max_page_count = {self._max_bytes // int(_one(database, 'PRAGMA page_size'))}")
        if is_new:
            database.execute("BEGIN EXCLUSIVE")
            for statement in _SCHEMA.strip().split(";\n"):
                database.execute(statement)
            database.execute("INSERT INTO network VALUES (?, ?)", (self._genesis, self._subnet_id))
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            database.execute("COMMIT")
            return
        damage = _one(database, "PRAGMA quick_check(1)")
        if damage != "ok":
            raise ConfigError(f"{self._path} is damaged ({damage}): move it away to start anew")
        network = database.execute("SELECT genesis, subnet_id FROM network").fetchall()
        if network != [(self._genesis, self._subnet_id)]:
            raise ConfigError(f"{self._path} is of another chain or subnet: name another file, or move it away")


def _put(name: object, row: Sequence[object], store: RecordStore, validator: RecordValidator, now: float) -> None:
    raw, keep_name, sender_raw = row
    record = Record.from_bytes(_bytes(raw))
    _check_name(name, record.slot)
    sender = None if sender_raw is None else PeerID(_bytes(sender_raw))
    keep = Keep.__members__.get(str(keep_name))
    if keep is None:
        raise RemoteProtocolError(f"a row kept for {keep_name!r}")
    if keep in (Keep.OWN, Keep.NAMED) and key_of_peer(record.owner) != store.local:
        keep = Keep.REPLICA  # this node had another key when it signed that
    validator.check_envelope(record, purpose=Purpose.READ, now=now)
    validator.check_content(record, purpose=Purpose.READ, member=True)
    rule = validator.rule(record.key)
    store.put(record, max_per_owner=rule.max_records_per_owner, keep=keep, quota=rule.quota, sender=sender)


def _name(slot: Slot) -> bytes:
    """A slot in 32 bytes, each part with its length, so that no two slots share one."""
    owner = slot.owner.multihash
    lengths = bytes((len(slot.key), len(owner), len(slot.subkey)))
    return hashlib.sha256(lengths + slot.key + owner + slot.subkey).digest()


def _check_name(name: object, slot: Slot) -> None:
    if name != _name(slot):
        raise RemoteProtocolError(f"a row of another slot than {slot.key!r} of {slot.owner}")


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise RemoteProtocolError(f"a column holds {type(value).__name__}")
    return value


def _one(database: sqlite3.Connection, query: str) -> Any:
    row = database.execute(query).fetchone()
    return None if row is None else row[0]


def _make_private(path: Path) -> None:
    """The file is there afterwards, ours to read and write and nobody else's. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            mode = os.fstat(handle).st_mode
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigError(f"cannot open {path} for records: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path} is not a file: name another for records")
    if mode & 0o077:
        raise ConfigError(f"{path} can be opened by others: run `chmod 600 {path}`, or move it away to start anew")


def _problem(path: Path, error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} is open in another process: every node needs its own"
    return f"{path} cannot be used for records ({error}): move it away to start anew"
