"""Blobs on disk: nothing unchecked is given, what is kept is bounded, a crash leaves nothing half-done behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mesh.content import (
    Access,
    BlobStore,
    ContentConfig,
    StoreConfig,
    digest_of,
    in_thread,
    inline,
    put_file,
)
from mesh.content.disk import Partial, read_manifest
from mesh.content.merkle import CHUNK_BYTES, manifest_of
from mesh.errors import ConfigError, ContentNotFound, RemoteProtocolError, StoreFull
from tests.content.hosts import MIB, alone, blob


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_put_is_there_under_its_digest_for_its_owner_only(tmp_path: Path) -> None:
    content = alone(tmp_path / "blobs")
    digest = content.put(b"hello")
    assert digest == digest_of(b"hello")
    assert content.get_local(digest) == b"hello"
    assert content.get_local(b"\0" * 32) is None
    (path,) = (tmp_path / "blobs").iterdir()
    assert path.name == digest.hex()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "blobs").stat().st_mode & 0o777 == 0o700
    assert content.put(b"hello") == digest
    assert content.used_bytes == 5


def test_blobs_survive_a_restart_and_torn_writes_do_not(tmp_path: Path) -> None:
    first = alone(tmp_path)
    kept = [first.put(bytes([n]) * 10) for n in range(3)]
    for n, digest in enumerate(kept):
        os.utime(tmp_path / digest.hex(), ns=(n, n))
    (tmp_path / f".{'ab' * 32}.123.456").write_bytes(b"torn")
    (tmp_path / f".{'ab' * 16}.put").write_bytes(b"torn")
    (tmp_path / ("cd" * 32 + ".leaves")).write_bytes(b"of nothing")
    (tmp_path / "notes.txt").write_text("not ours")
    again = alone(tmp_path, ContentConfig(max_files=3))
    assert [again.get_local(d) for d in kept] == [bytes([n]) * 10 for n in range(3)]
    assert files(tmp_path) == sorted(["notes.txt", *(d.hex() for d in kept)])
    again.put(b"new")
    assert again.get_local(kept[0]) is None  # the oldest left
    assert (tmp_path / "notes.txt").exists()


def test_a_partial_file_is_no_blob_and_counts(tmp_path: Path) -> None:
    data = blob(3 * MIB)
    (tmp_path / (digest_of(data).hex() + ".part")).write_bytes(data)  # even a full one: nobody checked it
    store = BlobStore(tmp_path, StoreConfig(max_bytes=4 * MIB))
    assert store.size(digest_of(data)) is None
    assert store.get_local(digest_of(data)) is None
    assert 3 * MIB <= store.used_bytes < 3 * MIB + 1000
    assert [(e.digest, e.is_whole) for e in store.entries()] == [(digest_of(data), False)]
    store.put(blob(2 * MIB, 2))
    assert not list(tmp_path.glob("*.part"))  # it makes room before any blob does


def test_a_damaged_blob_is_dropped_not_given(tmp_path: Path) -> None:
    content = alone(tmp_path)
    digest = content.put(b"hello")
    (tmp_path / digest.hex()).write_bytes(b"hellO")
    assert content.get_local(digest) is None
    assert content.used_bytes == 0
    assert content.put(b"hello") == digest
    (tmp_path / digest.hex()).unlink()
    assert content.get_local(digest) is None
    assert content.put(b"hello") == digest
    assert content.get_local(digest) == b"hello"


def test_the_oldest_unpinned_leave_first_and_pinned_ones_stay(tmp_path: Path) -> None:
    content = alone(tmp_path, ContentConfig(max_bytes=30))
    a, b, c = (content.put(bytes([n]) * 10) for n in range(3))
    content.pin(a)
    d = content.put(b"d" * 10)
    assert [content.get_local(x) is not None for x in (a, b, c, d)] == [True, False, True, True]
    content.pin(c)
    content.pin(d)
    with pytest.raises(StoreFull):
        content.put(b"e")
    content.unpin(a)
    content.put(b"e" * 10)
    assert content.get_local(a) is None
    with pytest.raises(StoreFull):
        content.put(b"f" * 31)
    with pytest.raises(ContentNotFound):
        content.pin(a)
    content.unpin(a)  # nothing to take back, nothing happens


def test_pins_count(tmp_path: Path) -> None:
    content = alone(tmp_path, ContentConfig(max_files=1))
    digest = content.put(b"x")
    content.pin(digest)
    content.pin(digest)
    content.unpin(digest)
    with pytest.raises(StoreFull):
        content.put(b"y")
    content.unpin(digest)
    content.put(b"y")


def test_what_is_retained_stays_until_its_epoch_and_leaves_then(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, StoreConfig(max_files=3))
    a, b, c = (store.put(bytes([n])) for n in range(3))
    store.retain(a, until=7)
    store.retain(b, until=9)
    store.retain(b, until=8)
    store.pin(b)
    d = store.put(b"d")
    assert [store.size(x) for x in (a, b, c, d)] == [1, 1, None, 1]
    assert store.expire(6) == []
    assert store.expire(7) == [a]
    assert store.expire(8) == []  # it is pinned
    assert [store.size(x) for x in (a, b, d)] == [None, 1, 1]
    store.unpin(b)
    assert store.expire(100) == []  # it left the list, and is a blob like any other
    with pytest.raises(ContentNotFound):
        store.retain(c, until=3)


def test_room_is_kept_for_what_is_on_its_way(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, StoreConfig(max_bytes=4 * MIB, max_files=3))
    old = store.put(blob(MIB))
    manifest = manifest_of(blob(2 * MIB, 2))
    with store.partial(manifest) as partial:
        with pytest.raises(StoreFull):
            store.put(blob(2 * MIB, 3))
        store.put(b"small")
        store.pin(digest_of(b"small"))
        with store.room(1), pytest.raises(StoreFull, match="3 blobs"):
            store.put(b"one too many")
        store.unpin(digest_of(b"small"))
        partial.accept(0, blob(2 * MIB, 2)[:MIB])
    assert store.size(old) is None  # it made room
    assert store.used_bytes == MIB + 5  # as much as came
    assert [e.is_whole for e in store.entries()] == [True, False]
    store.put(blob(4 * MIB - 200, 4))
    assert store.used_bytes < 4 * MIB


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), st.integers(1, 100), st.integers(1, 6))
def test_bounds_hold_for_any_sequence(blobs: list[bytes], max_bytes: int, max_files: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        content = alone(Path(directory), ContentConfig(max_bytes=max_bytes, max_files=max_files))
        for data in blobs:
            try:
                digest = content.put(data)
            except StoreFull:
                assert len(data) > max_bytes
                continue
            assert content.get_local(digest) == data
            found = list(Path(directory).iterdir())
            assert len(found) <= max_files
            assert sum(f.stat().st_size for f in found) == content.used_bytes <= max_bytes


def test_no_name_leads_out_of_the_directory(tmp_path: Path) -> None:
    """A digest is 32 bytes, whatever they are, and becomes 64 hexadecimal digits; links are not followed."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    store = BlobStore(tmp_path / "blobs")
    for digest in (b"../secret".ljust(32, b"\0"), b"/" * 32, b"../" * 10 + b"./"):
        assert store.path(digest).parent == tmp_path / "blobs"
        assert store.get_local(digest) is None
    digest = digest_of(b"secret")
    store.path(digest).symlink_to(secret)
    assert store.size(digest) is None
    assert store.get_local(digest) is None
    assert BlobStore(tmp_path / "blobs").entries() == []
    with pytest.raises(ContentNotFound):
        read_manifest(store.path(digest), digest)
    manifest = manifest_of(blob(2 * MIB))
    (tmp_path / "blobs" / (manifest.digest.hex() + ".part")).symlink_to(secret)
    with pytest.raises(StoreFull), store.partial(manifest):
        raise AssertionError
    assert secret.read_bytes() == b"secret"


def test_a_guest_adds_and_removes_nothing_and_the_owner_finds_it(tmp_path: Path) -> None:
    owner = BlobStore(tmp_path, StoreConfig(max_files=2))
    owner.put(b"a")
    temporary = tmp_path / f".{'ab' * 32}.1.1"
    temporary.write_bytes(b"the owner is writing this")
    guest = BlobStore(tmp_path, StoreConfig(max_files=2), access=Access.GUEST)
    assert temporary.exists()
    digest = guest.put(b"b")
    assert owner.get_local(digest) == b"b"
    with pytest.raises(StoreFull):
        guest.put(b"c")
    assert owner.get_local(digest_of(b"a")) == b"a"
    owner.put(b"c")
    assert len(owner.entries()) == 2


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * MIB + 7])
async def test_a_file_is_copied_in_chunk_by_chunk(size: int, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(blob(size))
    store = BlobStore(tmp_path / "blobs")
    told: list[tuple[int, int]] = []
    digest = await put_file(store, tmp_path / "model", offload=inline, progress=lambda *at: told.append(at))
    assert digest == digest_of(blob(size))
    assert store.get_local(digest) == blob(size)
    assert [done for done, _ in told] == [*range(MIB, size, MIB), *([size] if size else [])]
    several = [digest.hex() + ".leaves"] if size > MIB else []
    assert files(tmp_path / "blobs") == [digest.hex(), *several]
    assert store.path(digest).stat().st_mode & 0o777 == 0o600
    store.path(digest).write_bytes(b"damaged")
    assert await put_file(store, tmp_path / "model", offload=inline) == digest
    assert store.get_local(digest) == blob(size)
    assert files(tmp_path / "blobs") == [digest.hex(), *several]


async def test_what_cannot_be_copied_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", StoreConfig(max_bytes=2 * MIB))
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("nothing", "No such file"), (".", "is no file"), ("pipe", "is no file")):
        with pytest.raises(ConfigError, match=says):
            await put_file(store, tmp_path / name, offload=inline)
    file = tmp_path / "large"
    file.write_bytes(blob(3 * MIB))
    with pytest.raises(StoreFull, match="no room"):
        await put_file(store, file, offload=inline)
    file.write_bytes(blob(MIB + MIB // 2))

    def grow(done: int, size: int) -> None:
        file.write_bytes(blob(2 * MIB))

    with pytest.raises(ConfigError, match="grew"):
        await put_file(store, file, offload=inline, progress=grow)

    def stop(done: int, size: int) -> None:
        scope.cancel()

    file.write_bytes(blob(MIB + MIB // 2))
    with trio.CancelScope() as scope:
        await put_file(store, file, offload=inline, progress=stop)
    assert scope.cancelled_caught
    assert files(tmp_path / "blobs") == []
    assert store.used_bytes == 0


async def test_large_work_is_done_in_threads(tmp_path: Path) -> None:
    """The loop goes on while a file is hashed: what runs beside it gets its turns."""
    (tmp_path / "large").write_bytes(bytes(8 * MIB))
    store = BlobStore(tmp_path / "blobs")
    loop_thread, threads, turns = trio.lowlevel.current_trio_token(), 0, 0

    async def counted(function, /):  # type: ignore[no-untyped-def]
        nonlocal threads
        threads += 1

        def work():  # type: ignore[no-untyped-def]
            with pytest.raises(RuntimeError):
                trio.lowlevel.current_trio_token()
            return function()

        return await in_thread(work)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await put_file(store, tmp_path / "large", offload=counted)
        nursery.cancel_scope.cancel()
    assert threads == 8 + 3  # each chunk, the end of the file, the flush, the digest
    assert turns > 8
    assert trio.lowlevel.current_trio_token() is loop_thread


def test_the_manifest_comes_from_the_file_beside_or_from_the_blob(tmp_path: Path) -> None:
    data = blob(3 * MIB)
    store = BlobStore(tmp_path)
    digest = store.put(data)
    leaves = tmp_path / (digest.hex() + ".leaves")
    assert read_manifest(store.path(digest), digest) == manifest_of(data)
    for wrong in (b"", b"x" * 96, manifest_of(data).leaves + b"x", manifest_of(data).leaves[:-32]):
        leaves.write_bytes(wrong)
        assert read_manifest(store.path(digest), digest) == manifest_of(data)
        assert leaves.read_bytes() == manifest_of(data).leaves  # mended
    with store.path(digest).open("r+b") as file:
        file.write(b"damage")
    leaves.unlink()
    with pytest.raises(ContentNotFound, match="damaged"):
        read_manifest(store.path(digest), digest)


def test_a_partial_file_believes_nothing(tmp_path: Path) -> None:
    data = blob(3 * MIB + 5)
    manifest = manifest_of(data)
    chunks = [data[i : i + MIB] for i in range(0, len(data), MIB)]
    partial = Partial(tmp_path / "x.part", manifest)
    partial.accept(3, chunks[3])
    partial.accept(1, chunks[1])
    for index, wrong in ((0, chunks[1]), (0, chunks[0][:-1]), (3, chunks[3] + b"x")):
        with pytest.raises(RemoteProtocolError):
            partial.accept(index, wrong)
    partial.close()
    with (tmp_path / "x.part").open("r+b") as file:
        file.seek(MIB + 17)
        file.write(b"?")
    again = Partial(tmp_path / "x.part", manifest)
    again.adopt(range(4))
    assert again.have == {3}
    for index in range(3):
        again.accept(index, chunks[index])
    again.finish(tmp_path / "x")
    again.close()
    assert (tmp_path / "x").read_bytes() == data
    empty = Partial(tmp_path / "y.part", manifest)
    empty.close()
    assert files(tmp_path) == ["x"]
