"""Replacing a file: the old content or the new, and nothing left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mesh.files import Durable, replace_file


@pytest.mark.parametrize("durable", Durable)
def test_a_file_is_replaced_and_is_for_its_owner_only(tmp_path: Path, durable: Durable) -> None:
    path = tmp_path / "f"
    for data in (b"old, and longer", b"new"):
        replace_file(path, data, durable=durable)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_durable_is_flushed_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "f", []

    def fsync(handle: int) -> None:
        seen.append((os.path.isdir(f"/dev/fd/{handle}"), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(tmp_path / "g", b"x", durable=Durable.NO)
    assert seen == []
    replace_file(path, b"x", durable=Durable.YES)
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "f"
    replace_file(path, b"old", durable=Durable.YES)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new", durable=Durable.YES)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
