"""Blobs as files: reading, writing and checking them. Every function here blocks and keeps no state, so that it may
run in a thread; mesh.content.store knows what there is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

from mesh.content.merkle import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    MAX_BLOB_BYTES,
    Manifest,
    check_manifest,
    chunk_count,
    leaf_of,
    manifest_of,
)
from mesh.errors import ConfigError, ContentNotFound, LocalProtocolError, RemoteProtocolError, StoreFull
from mesh.files import Durable, replace_file, sync_directory

T = TypeVar("T")

LEAVES: Final = ".leaves"
"""Beside a blob of several chunks: the hashes of its chunks."""
PARTIAL: Final = ".part"
"""A blob of which some chunks are there: they show by their hashes, so no list of them is kept."""
OFFLOAD_BYTES: Final = 64 * 1024
"""Work on fewer bytes takes less than a thread's way there and back."""


def open_blob(path: Path) -> int:
    """A descriptor for reading; a symlink or anything but a file is none of ours. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def read_at(path: Path, offset: int, length: int) -> bytes:
    """Up to `length` bytes from `offset`. Raises OSError."""
    handle = open_blob(path)
    try:
        return _pread(handle, offset, length)
    finally:
        os.close(handle)


def read_whole(path: Path, digest: bytes) -> bytes:
    """A whole blob, checked. Raises ContentNotFound when it is gone or damaged."""
    try:
        handle = open_blob(path)
        with os.fdopen(handle, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ContentNotFound(f"blob {digest.hex()} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BLOB_BYTES or manifest_of(data).digest != digest:
        raise ContentNotFound(f"blob {digest.hex()} was damaged on disk")
    return data


def read_chunk(path: Path, manifest: Manifest, index: int) -> bytes:
    """A chunk, checked. Raises ContentNotFound when it is gone or damaged."""
    try:
        data = read_at(path, index * CHUNK_BYTES, manifest.chunk_size(index))
        manifest.check_chunk(index, data)
    except (OSError, RemoteProtocolError) as error:
        raise ContentNotFound(f"blob {manifest.digest.hex()} was damaged on disk: {error}") from error
    return data


def read_manifest(path: Path, digest: bytes) -> Manifest:
    """A blob's manifest, from the file beside it or, where that is missing or wrong, from the blob (a second a
    gigabyte). Raises ContentNotFound when the blob is gone or damaged."""
    try:
        size = path.lstat().st_size
        if size > CHUNK_BYTES:
            with contextlib.suppress(OSError, RemoteProtocolError):
                leaves = read_at(path.with_name(path.name + LEAVES), 0, chunk_count(size) * DIGEST_BYTES + 1)
                manifest = Manifest(size, leaves)
                check_manifest(manifest, digest)
                return manifest
        manifest = hash_file(path)
    except OSError as error:
        raise ContentNotFound(f"blob {digest.hex()} cannot be read: {error.strerror}") from error
    if manifest.digest != digest:
        raise ContentNotFound(f"blob {digest.hex()} was damaged on disk")
    with contextlib.suppress(OSError):
        write_leaves(path, manifest)
    return manifest


def write_leaves(path: Path, manifest: Manifest) -> None:
    """Keep the hashes of a blob of several chunks beside it. Raises OSError."""
    if len(manifest) > 1:
        replace_file(path.with_name(path.name + LEAVES), manifest.leaves, durable=Durable.NO)


def hash_file(path: Path) -> Manifest:
    """The manifest of a file, read once. Raises OSError."""
    handle = open_blob(path)
    try:
        leaves = []
        size = 0
        while chunk := _pread(handle, size, CHUNK_BYTES):
            leaves.append(leaf_of(chunk))
            size += len(chunk)
        return Manifest(size, b"".join(leaves))
    finally:
        os.close(handle)


class Copy:
    """A file on its way into a store: copied and hashed chunk by chunk, so the name fits the bytes that were kept."""

    def __init__(self, source: Path, directory: Path) -> None:
        """Raises ConfigError when the source is no file that can be read, StoreFull when nothing can be written."""
        self.path = directory / f".{secrets.token_hex(16)}.put"
        try:
            self._source = os.open(source, os.O_RDONLY | os.O_NONBLOCK)  # so that a pipe does not wait for a writer
        except OSError as error:
            raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
        try:
            info = os.fstat(self._source)
            if not stat.S_ISREG(info.st_mode):
                raise ConfigError(f"{source} is no file")
            if info.st_size > MAX_BLOB_BYTES:
                raise ConfigError(f"{source} has {info.st_size} bytes; a blob has {MAX_BLOB_BYTES} at most")
            self.size = info.st_size
            self._target = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except BaseException as error:
            os.close(self._source)
            if isinstance(error, OSError):
                raise StoreFull(f"cannot write in {directory}: {error.strerror}") from error
            raise
        self._from = source
        self._leaves: list[bytes] = []
        self._done = 0

    @property
    def done(self) -> int:
        """Bytes copied."""
        return self._done

    def step(self) -> bool:
        """Copy one chunk; False when there is none left. Raises ConfigError, StoreFull."""
        try:
            chunk = _pread(self._source, self._done, CHUNK_BYTES)
        except OSError as error:
            raise ConfigError(f"{self._from} cannot be read: {error.strerror}") from error
        if not chunk:
            return False
        if self._done + len(chunk) > self.size:
            raise ConfigError(f"{self._from} grew while it was read: try again when it is complete")
        try:
            _pwrite(self._target, chunk, self._done)
        except OSError as error:
            raise StoreFull(f"cannot write {self.size} bytes to {self.path.parent}: {error.strerror}") from error
        self._leaves.append(leaf_of(chunk))
        self._done += len(chunk)
        return True

    def finish(self) -> Manifest:
        """Flush what was copied and return its manifest; `path` may then be moved. Raises StoreFull."""
        try:
            os.fsync(self._target)
        except OSError as error:
            raise StoreFull(f"cannot write {self.size} bytes to {self.path.parent}: {error.strerror}") from error
        return Manifest(self._done, b"".join(self._leaves))

    def close(self) -> None:
        """Close, and remove the copy if it was not moved."""
        os.close(self._source)
        os.close(self._target)
        with contextlib.suppress(OSError):
            self.path.unlink()


class Partial:
    """A blob being filled chunk by chunk, in any order, from any thread. Nothing is believed that does not hash
    right, neither from a peer nor from an earlier run."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Opens what an earlier run left, or a new file. Raises OSError."""
        self.path = path
        self.manifest = manifest
        self.have: set[int] = set()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.left_bytes = os.fstat(self._handle).st_size
        """What an earlier run left, right or wrong."""

    def adopt(self, indexes: Iterable[int]) -> None:
        """Take over those of the chunks that an earlier run wrote whole."""
        for index in indexes:
            if index * CHUNK_BYTES >= self.left_bytes:
                return
            with contextlib.suppress(OSError, RemoteProtocolError):
                self.manifest.check_chunk(
                    index, _pread(self._handle, index * CHUNK_BYTES, self.manifest.chunk_size(index))
                )
                self.have.add(index)

    def accept(self, index: int, data: bytes) -> None:
        """Write a chunk if it is the right one. Raises RemoteProtocolError when not, StoreFull when it cannot be
        written."""
        self.manifest.check_chunk(index, data)
        try:
            _pwrite(self._handle, data, index * CHUNK_BYTES)
        except OSError as error:
            raise StoreFull(f"cannot write {len(data)} bytes to {self.path}: {error.strerror}") from error
        self.have.add(index)

    def finish(self, target: Path) -> None:
        """Make it the file `target`, once every chunk is there. Raises StoreFull."""
        if len(self.have) != len(self.manifest):
            raise LocalProtocolError(f"{self.path} has {len(self.have)} of {len(self.manifest)} chunks")
        try:
            os.ftruncate(self._handle, self.manifest.size)
            os.fsync(self._handle)
            os.replace(self.path, target)
            sync_directory(target.parent)
        except OSError as error:
            raise StoreFull(f"cannot make {target} of {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; what is there stays for the next time, unless it is nothing."""
        os.close(self._handle)
        if not self.have:
            with contextlib.suppress(OSError):
                self.path.unlink()


def _pread(handle: int, offset: int, length: int) -> bytes:
    """`length` bytes or those up to the end: one call may return fewer."""
    parts = []
    while length > 0 and (part := os.pread(handle, length, offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pwrite(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written
