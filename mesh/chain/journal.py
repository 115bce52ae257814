"""The write-ahead journal of signed extrinsics: what makes a submission happen exactly once.

An entry {nonce, signed bytes, era, account, call, purpose} is on disk before its bytes leave. After a crash only these
identical bytes are sent again; as chain and nonce allow one of them at most, nothing happens twice. An entry is dead
when its era has ended and it is in no block of it: then, and only then, a new extrinsic may carry the same intent.

One file per chain and account, a line of JSON per step, each with a checksum, written whole and flushed with fsync, or
taken back. A torn last line is a crash while writing, before anything was sent, and is dropped; any other damage is
refused, because sending what a damaged journal forgot could do a thing twice.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mesh.errors import ChainError
from mesh.files import Durable, replace_file, sync_directory

log = logging.getLogger(__name__)

MAX_JOURNAL_BYTES: Final = 256 * 1024
"""Beyond this a file is rewritten with what still matters."""
KEPT_DONE: Final = 64
"""Finished entries kept when a file is rewritten."""
_CHECK_CHARS: Final = 16


class JournalDamaged(ChainError):
    """A journal file is not what was written; the message says which file and line, and what to do."""


class Fate(enum.StrEnum):
    """How an entry ended."""

    INCLUDED = "included"
    """In a block, successful there or not."""
    REFUSED = "refused"
    """The node did not take it into its pool."""
    DEAD = "dead"
    """Its era ended without it."""


class Delivery(enum.StrEnum):
    """Whether it is certain that a caller learned the fate."""

    DELIVERED = "delivered"
    """It is: the process that was told went on to the next such call, or ended in order."""
    WAITING = "waiting"
    """It is not: after a crash the same call, made again, gets this fate instead of a second extrinsic."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One signed extrinsic. `era_end` is the first block that cannot contain it."""

    nonce: int
    extrinsic: bytes
    extrinsic_hash: bytes
    era_birth: int
    era_end: int
    account: bytes
    call: str
    purpose: bytes
    """Digest of the call's bytes: the same call with the same arguments."""


@dataclass(frozen=True, slots=True)
class Done:
    """A finished entry. `block` is the number of the block that has it, -1 without one."""

    entry: Entry
    fate: Fate
    delivery: Delivery
    block: int
    teller: int = 0
    """The process that told its caller, 0 when none did."""
    born: int = 0
    """When that process started (`started`): its number is soon another's, in a container at once."""


class Journal:
    """The journal of one account on one chain, locked against others while it is open."""

    def __init__(self, path: Path, account: bytes, lock: int) -> None:
        self.path = path
        self.users = 0
        """Submissions under way that use it; the caller counts and releases at zero."""
        self._account = account
        self._lock = lock
        self._pending: dict[bytes, Entry] = {}
        self._done: dict[bytes, Done] = {}
        self._size = 0
        """Bytes of the file that are whole lines; what lies behind them is torn and makes way for the next line."""
        self._load()

    @classmethod
    def open_locked(cls, directory: Path, *, genesis: bytes, account: bytes) -> Journal | None:
        """Open and read it; None while another process (or chain object) has it. Raises JournalDamaged, ChainError."""
        path = journal_path(directory, genesis=genesis, account=account)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ChainError(f"cannot open the journal {path}: {error.strerror}; nothing was sent") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(path, account, lock)
        except BlockingIOError:
            os.close(lock)
            return None
        except ChainError:
            os.close(lock)
            raise

    def release(self) -> None:
        """Let others open it."""
        with contextlib.suppress(OSError):
            os.close(self._lock)

    @property
    def pending(self) -> tuple[Entry, ...]:
        """Entries without a fate, by nonce."""
        return tuple(sorted(self._pending.values(), key=lambda entry: entry.nonce))

    @property
    def done(self) -> tuple[Done, ...]:
        """Finished entries still remembered, oldest first."""
        return tuple(self._done.values())

    def open(self, entry: Entry) -> None:
        """Write an entry; on return it is on disk and its bytes may be sent. One that was closed is open again."""
        self._append(_entry_line(entry))
        self._done.pop(entry.extrinsic_hash, None)
        self._pending[entry.extrinsic_hash] = entry

    def close(self, entry: Entry, fate: Fate, *, delivery: Delivery, block: int = -1, teller: int = 0) -> None:
        """Write an entry's fate."""
        done = Done(entry, fate, delivery, block, teller, started(teller) if teller else 0)
        self._append(_done_line(done))
        self._pending.pop(entry.extrinsic_hash, None)
        self._done[entry.extrinsic_hash] = done
        if self.path.stat().st_size > MAX_JOURNAL_BYTES:
            self._rewrite()

    def unheard(self, purpose: bytes, *, head: int) -> tuple[Done, ...]:
        """Inclusions of this very call that perhaps nobody heard of, while their eras last: those found by a later
        start, and those whose teller lives no more. (A teller in this process knows what it told.)"""
        return tuple(
            done
            for done in self._done.values()
            if done.entry.purpose == purpose
            and done.delivery is Delivery.WAITING
            and done.fate is Fate.INCLUDED
            and head < done.entry.era_end
            and (done.teller in (0, os.getpid()) or not _lives(done.teller, done.born))
        )

    def deliver(self, extrinsic_hash: bytes) -> None:
        """Write that the fate was heard."""
        done = self._done.get(extrinsic_hash)
        if done is not None and done.delivery is Delivery.WAITING:
            self.close(done.entry, done.fate, delivery=Delivery.DELIVERED, block=done.block)

    def _append(self, line: str) -> None:
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = min(self._size, os.fstat(handle).st_size)
                os.ftruncate(handle, size)
                try:
                    _write_all(handle, _sealed(line))
                    os.fsync(handle)
                    if size == 0:
                        sync_directory(self.path.parent)  # the file may be new
                except OSError:
                    with contextlib.suppress(OSError):  # what stays is behind `_size`: the next line replaces it
                        os.ftruncate(handle, size)
                    raise
                self._size = os.fstat(handle).st_size
            finally:
                os.close(handle)
        except OSError as error:
            raise ChainError(f"cannot write the journal {self.path}: {error.strerror}; nothing was sent") from error

    def _rewrite(self) -> None:
        kept = list(self._done.values())[-KEPT_DONE:]
        lines = [line for done in kept for line in (_entry_line(done.entry), _done_line(done))]
        lines += [_entry_line(entry) for entry in self.pending]
        data = b"".join(_sealed(line) for line in lines)
        try:
            replace_file(self.path, data, durable=Durable.YES)
        except OSError as error:
            log.warning("journal %s is not shortened: %s; it goes on as it is", self.path, error.strerror)
            self._size = min(self._size, self.path.stat().st_size)
            return
        self._size = len(data)
        self._done = {done.entry.extrinsic_hash: done for done in kept}

    def _load(self) -> None:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return
        *lines, torn = raw.split(b"\n")
        if torn:
            log.warning("journal %s: a torn last line is dropped; it was never sent", self.path)
        self._size = len(raw) - len(torn)
        for number, line in enumerate(lines, 1):
            try:
                self._replay(_unsealed(line))
            except (ValueError, KeyError, TypeError) as error:
                raise JournalDamaged(
                    f"{self.path} line {number} is damaged ({error}): nothing is signed for this account until the "
                    "file is restored, or removed after 64 blocks without this account"
                ) from error

    def _replay(self, step: dict[str, object]) -> None:
        digest = bytes.fromhex(str(step["extrinsic_hash"]))
        if step["step"] == "open":
            entry = Entry(
                nonce=int(str(step["nonce"])),
                extrinsic=bytes.fromhex(str(step["extrinsic"])),
                extrinsic_hash=digest,
                era_birth=int(str(step["era_birth"])),
                era_end=int(str(step["era_end"])),
                account=bytes.fromhex(str(step["account"])),
                call=str(step["call"]),
                purpose=bytes.fromhex(str(step["purpose"])),
            )
            if hashlib.blake2b(entry.extrinsic, digest_size=32).digest() != digest:
                raise ValueError("the extrinsic is not the one that was signed")
            if entry.account != self._account:
                raise ValueError("the entry is another account's")
            self._pending[digest] = entry
            self._done.pop(digest, None)
            return
        entry_or_done = self._pending.pop(digest, None) or self._done[digest].entry
        fate, delivery = Fate(str(step["fate"])), Delivery(str(step["delivery"]))
        self._done[digest] = Done(
            entry_or_done,
            fate,
            delivery,
            int(str(step["block"])),
            int(str(step.get("teller", 0))),
            int(str(step.get("born", 0))),
        )


def journal_path(directory: Path, *, genesis: bytes, account: bytes) -> Path:
    """The file of an account on a chain."""
    return directory / f"{genesis.hex()[:16]}-{account.hex()}.jsonl"


def _write_all(handle: int, data: bytes) -> None:
    # A write may take a part only, as on a full disk; whatever is missing then fails by itself.
    while data:
        data = data[os.write(handle, data) :]


def _entry_line(entry: Entry) -> str:
    fields = {k: v.hex() if isinstance(v, bytes) else v for k, v in asdict(entry).items()}
    return json.dumps({"step": "open", **fields})


def _done_line(done: Done) -> str:
    step = {"step": "close", "extrinsic_hash": done.entry.extrinsic_hash.hex(), "block": done.block}
    told = {"teller": done.teller, "born": done.born}
    return json.dumps({**step, "fate": done.fate.value, "delivery": done.delivery.value, **told})


def started(pid: int) -> int:
    """When a process started, in the kernel's ticks since it did (proc(5), `starttime`); 0 where that is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def _lives(pid: int, born: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's process: there is one
        pass
    return not born or started(pid) in (0, born)


def _check(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_CHECK_CHARS].encode()


def _sealed(line: str) -> bytes:
    return _check(line.encode()) + b" " + line.encode() + b"\n"


def _unsealed(line: bytes) -> dict[str, object]:
    check, _, text = line.partition(b" ")
    if check != _check(text):
        raise ValueError("its checksum is wrong")
    step = json.loads(text)
    if not isinstance(step, dict):
        raise ValueError("it is no object")
    return step
