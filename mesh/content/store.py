"""What blobs are on disk, and which leave when room is needed.

    <digest>            a whole blob, mode 0600
    <digest>.leaves     the hashes of its chunks, when it has several
    <digest>.part       a blob of which some chunks are there
    .…                  being written; removed at the next start

A name is made of a digest's hexadecimal digits and nothing else, so no peer can name another file. A file gets its
blob's name by a rename when all of it is there; its bytes are checked again whenever they are read, so what a crash or
a bad disk did to it costs a fetch and nothing more.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.content.disk import LEAVES, PARTIAL, Partial, read_whole, write_leaves
from mesh.content.merkle import CHUNK_BYTES, DIGEST_BYTES, Manifest, chunk_count, manifest_of
from mesh.errors import ContentNotFound, StoreFull
from mesh.files import Durable, replace_file

log = logging.getLogger(__name__)

_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{32,64}\.")


class StoreConfig(BaseModel):
    """Bounds of what is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(
        default=2 * 1024**3, ge=1, description="bytes on disk; the oldest unpinned blobs leave first"
    )
    max_files: int = Field(default=4096, ge=1, description="blobs on disk, partial ones among them")


class Access(enum.Enum):
    """Whose directory it is."""

    OWNER = enum.auto()
    """This process's: it tidies up at the start and makes room."""
    GUEST = enum.auto()
    """Perhaps another's, which runs: only whole blobs are added, nothing is removed. The owner finds them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A blob in a listing."""

    digest: bytes
    size: int
    """Bytes; of a partial blob, those up to the last chunk there."""
    modified_s: float
    """Unix time."""
    is_whole: bool


def footprint(size: int) -> int:
    """Bytes on disk of a blob with this many."""
    return size + (chunk_count(size) * DIGEST_BYTES if size > CHUNK_BYTES else 0)


class BlobStore:
    """An index of one directory. Its methods do not block for longer than a small file takes."""

    def __init__(self, directory: Path, config: StoreConfig | None = None, *, access: Access = Access.OWNER) -> None:
        """Takes over what an earlier run left, unpinned and oldest first. Raises StoreFull when the directory cannot
        be used."""
        self.directory = directory
        self.config = config or StoreConfig()
        self._access = access
        self._sizes: dict[bytes, int] = {}  # oldest first
        self._partials: dict[bytes, int] = {}  # oldest first; not those being filled
        self._pins: Counter[bytes] = Counter()
        self._until: dict[bytes, float] = {}
        self._reserved = 0
        self._reservations = 0
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._recover()
        except OSError as error:
            raise StoreFull(f"cannot keep blobs in {directory}: {error.strerror}") from error

    # --- what is here ---

    @property
    def used_bytes(self) -> int:
        """Bytes of all blobs here, and what is kept free for those on their way."""
        return sum(map(footprint, self._sizes.values())) + sum(map(footprint, self._partials.values())) + self._reserved

    def path(self, digest: bytes) -> Path:
        """Where a blob is, or would be."""
        return self.directory / digest.hex()

    def size(self, digest: bytes) -> int | None:
        """Bytes of a blob that is here; one that a guest added is found, one whose file is gone is not."""
        try:
            info = self.path(digest).lstat()
        except OSError:
            if digest in self._sizes:
                self.drop(digest)
            return None
        if digest not in self._sizes and not _is_file(info):
            return None
        return self._sizes.setdefault(digest, info.st_size)

    def entries(self) -> list[Entry]:
        """Everything here, the oldest first."""
        found = []
        for digests, suffix in ((self._sizes, ""), (self._partials, PARTIAL)):
            for digest in digests:
                with contextlib.suppress(OSError):
                    info = (self.directory / (digest.hex() + suffix)).lstat()
                    found.append(Entry(digest, info.st_size, info.st_mtime, not suffix))
        return sorted(found, key=lambda entry: entry.modified_s)

    def get_local(self, digest: bytes) -> bytes | None:
        """The blob, when it is here and whole: all of it in memory. Blocks for as long as reading it takes."""
        if self.size(digest) is None:
            return None
        try:
            return read_whole(self.path(digest), digest)
        except ContentNotFound as error:
            log.warning("%s, and is dropped", error)
            self.drop(digest)
            return None

    # --- coming ---

    def put(self, data: bytes) -> bytes:
        """Keep a blob and return its digest; one that is here becomes the newest. Blocks for as long as writing takes.

        Raises StoreFull when what is pinned leaves no room for it.
        """
        manifest = manifest_of(data)
        if self.refresh(manifest.digest):
            return manifest.digest
        with self.room(len(data)):
            try:
                write_leaves(self.path(manifest.digest), manifest)
                # Not flushed: a torn file shows by its digest and is fetched again.
                replace_file(self.path(manifest.digest), data, durable=Durable.NO)
            except OSError as error:
                raise StoreFull(f"cannot write {len(data)} bytes under {self.directory}: {error.strerror}") from error
        self._sizes[manifest.digest] = len(data)
        return manifest.digest

    def refresh(self, digest: bytes) -> bool:
        """Make a blob the newest; False when it is not here."""
        size = self.size(digest)
        if size is None:
            return False
        with contextlib.suppress(OSError):
            os.utime(self.path(digest))
        del self._sizes[digest]
        self._sizes[digest] = size
        return True

    def move_in(self, path: Path, manifest: Manifest) -> None:
        """Make a whole file of this file system the blob; the caller holds `room` for it. Raises StoreFull."""
        try:
            write_leaves(self.path(manifest.digest), manifest)
            os.replace(path, self.path(manifest.digest))
        except OSError as error:
            raise StoreFull(f"cannot keep {manifest.size} bytes in {self.directory}: {error.strerror}") from error
        self._sizes.pop(manifest.digest, None)
        self._sizes[manifest.digest] = manifest.size

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Keep room for one blob inside the block. Raises StoreFull when what is pinned leaves none."""
        self._make_room(size)
        self._reserved += footprint(size)
        self._reservations += 1
        try:
            yield
        finally:
            self._reserved -= footprint(size)
            self._reservations -= 1

    @contextmanager
    def partial(self, manifest: Manifest) -> Iterator[Partial]:
        """The partial file of a blob, with room kept for all of it; what is in it stays afterwards, until the room is
        needed. `Partial.finish` and then `finished` make it a blob. Raises StoreFull."""
        digest = manifest.digest
        self._partials.pop(digest, None)  # counted as room from here on
        try:
            with self.room(manifest.size):
                try:
                    partial = Partial(self._partial_path(digest), manifest)
                except OSError as error:
                    raise StoreFull(f"cannot write under {self.directory}: {error.strerror}") from error
                try:
                    yield partial
                finally:
                    partial.close()
        finally:
            with contextlib.suppress(OSError):
                self._partials[digest] = self._partial_path(digest).lstat().st_size

    def finished(self, manifest: Manifest) -> None:
        """A partial file has become the blob (Partial.finish)."""
        self._sizes[manifest.digest] = manifest.size

    # --- staying and leaving ---

    def pin(self, digest: bytes) -> None:
        """Keep a blob that is here until as many `unpin` calls; pins do not outlive the process.
        Raises ContentNotFound."""
        if self.size(digest) is None:
            raise ContentNotFound(f"blob {digest.hex()} is not here and cannot be pinned")
        self._pins[digest] += 1

    def unpin(self, digest: bytes) -> None:
        """Take one pin back; nothing happens when there is none."""
        if self._pins[digest] > 1:
            self._pins[digest] -= 1
        else:
            del self._pins[digest]

    def retain(self, digest: bytes, *, until: float) -> None:
        """Keep a blob that is here as if pinned, and delete it when `expire` is told that `until` has come: a time or
        an epoch, whatever the owner counts in. Of several, the last one holds. Raises ContentNotFound."""
        if self.size(digest) is None:
            raise ContentNotFound(f"blob {digest.hex()} is not here and cannot be retained")
        self._until[digest] = until

    def expire(self, now: float) -> list[bytes]:
        """Delete what was retained until now or earlier; what is pinned stays, as any other blob does. Returns the
        deleted."""
        due = [digest for digest, until in self._until.items() if until <= now]
        gone = [digest for digest in due if not self._pins[digest]]
        for digest in due:
            del self._until[digest]
        for digest in gone:
            self.drop(digest)
        return gone

    def drop(self, digest: bytes) -> None:
        """Delete a blob, pinned or not."""
        self._sizes.pop(digest, None)
        self._until.pop(digest, None)
        del self._pins[digest]
        path = self.path(digest)
        for each in (path, path.with_name(path.name + LEAVES)):
            with contextlib.suppress(OSError):
                each.unlink()

    def _partial_path(self, digest: bytes) -> Path:
        return self.directory / (digest.hex() + PARTIAL)

    def _drop_partial(self, digest: bytes) -> None:
        self._partials.pop(digest, None)
        with contextlib.suppress(OSError):
            self._partial_path(digest).unlink()

    def _make_room(self, size: int) -> None:
        free = self.config.max_bytes - self.used_bytes
        places = self.config.max_files - len(self._sizes) - len(self._partials) - self._reservations
        partials, blobs = [], []
        if self._access is Access.OWNER:
            for digest, its_size in self._partials.items():
                if free >= footprint(size) and places > 0:
                    break
                partials.append(digest)
                free, places = free + footprint(its_size), places + 1
            for digest, its_size in self._sizes.items():
                if free >= footprint(size) and places > 0:
                    break
                if not self._pins[digest] and digest not in self._until:
                    blobs.append(digest)
                    free, places = free + footprint(its_size), places + 1
        if free < footprint(size) or places <= 0:
            raise StoreFull(
                f"no room for a blob of {size} bytes: {self.config.max_bytes} bytes and {self.config.max_files} blobs "
                f"are allowed, {len(self._sizes)} are here and {len({*self._pins, *self._until})} of them kept"
            )
        for digest in partials:
            self._drop_partial(digest)
        for digest in blobs:
            self.drop(digest)

    def _recover(self) -> None:
        blobs, partials, leaves = [], [], []
        for path in self.directory.iterdir():
            info = path.lstat()
            if not _is_file(info):
                continue
            if self._access is Access.OWNER and _TEMPORARY.match(path.name):
                path.unlink(missing_ok=True)  # a write that a crash cut short
                continue
            digest = _digest_in(path.stem)
            if digest is None:
                continue
            found = (info.st_mtime_ns, digest, info.st_size)
            if path.suffix == PARTIAL:
                partials.append(found)
            elif path.suffix == LEAVES:
                leaves.append((digest, path))
            elif not path.suffix:
                blobs.append(found)
        self._sizes = {digest: size for _, digest, size in sorted(blobs)}
        self._partials = {digest: size for _, digest, size in sorted(partials)}
        if self._access is Access.OWNER:
            for digest, path in leaves:
                if digest not in self._sizes:
                    path.unlink(missing_ok=True)


def _is_file(info: os.stat_result) -> bool:
    return (info.st_mode & 0o170000) == 0o100000


def _digest_in(name: str) -> bytes | None:
    if len(name) != 2 * DIGEST_BYTES or name.lower() != name:
        return None
    try:
        return bytes.fromhex(name)
    except ValueError:
        return None
