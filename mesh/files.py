"""Writing a file so that its readers find the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import enum
import os
import threading
from pathlib import Path


class Durable(enum.Enum):
    """Whether new content must be there after a crash of the machine."""

    YES = enum.auto()
    """On disk when the call returns: the file and its name are flushed."""
    NO = enum.auto()
    """What is lost can be had again, and the reader notices a torn file by itself."""


def replace_file(path: Path, data: bytes, *, durable: Durable) -> None:
    """Make `data` the file's content, mode 0600, atomically. Its directory must be there.

    Raises OSError; the file then has its old content, or the new when only the flush of its directory failed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable is Durable.YES:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable is Durable.YES:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory, so that a file made or renamed in it keeps its name through a crash. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
