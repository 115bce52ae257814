"""The journal: what a crash, a torn write and damage leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.chain import journal as journals
from mesh.chain.journal import Delivery, Entry, Fate, Journal, JournalDamaged
from mesh.chain.runtime import blake2
from mesh.errors import ChainError

GENESIS, ACCOUNT = b"\x01" * 32, b"\x02" * 20


def entry(number: int = 0, purpose: bytes = b"p") -> Entry:
    raw = b"extrinsic %d" % number
    return Entry(number, raw, blake2(raw), 10, 74, ACCOUNT, "Network.attest", purpose)


def opened(directory: Path) -> Journal:
    journal = Journal.open_locked(directory, genesis=GENESIS, account=ACCOUNT)
    assert journal is not None
    return journal


def test_an_open_entry_is_pending_after_a_crash_with_its_identical_bytes(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.open(entry(1))
    journal.open(entry(0))
    journal.release()
    assert opened(tmp_path).pending == (entry(0), entry(1))


def test_a_closed_entry_is_not_pending_any_more(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.open(entry())
    journal.close(entry(), Fate.INCLUDED, delivery=Delivery.DELIVERED, block=12)
    journal.release()
    again = opened(tmp_path)
    assert again.pending == ()
    assert again.done[0].block == 12
    assert again.unheard(b"p", head=13) == ()


def test_a_fate_nobody_heard_waits_for_the_same_call_while_its_era_lasts(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.open(entry())
    journal.close(entry(), Fate.INCLUDED, delivery=Delivery.WAITING, block=12)
    assert journal.unheard(b"other", head=20) == ()
    assert journal.unheard(b"p", head=74) == ()
    (done,) = journal.unheard(b"p", head=73)
    assert done.block == 12
    journal.deliver(done.entry.extrinsic_hash)
    assert journal.unheard(b"p", head=73) == ()
    journal.release()
    assert opened(tmp_path).unheard(b"p", head=20) == ()


def test_what_another_living_process_told_its_caller_is_not_told_again(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    journal = opened(tmp_path)
    for number, teller in enumerate((os.getppid(), dead.pid, os.getpid())):
        journal.open(entry(number))
        journal.close(entry(number), Fate.INCLUDED, delivery=Delivery.WAITING, block=12, teller=teller)
    journal.release()
    assert [done.entry.nonce for done in opened(tmp_path).unheard(b"p", head=20)] == [1, 2]


def test_only_one_may_have_it_open(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert Journal.open_locked(tmp_path, genesis=GENESIS, account=ACCOUNT) is None
    assert Journal.open_locked(tmp_path, genesis=GENESIS, account=b"\x03" * 20) is not None
    journal.release()
    opened(tmp_path).release()


def test_a_torn_last_line_was_never_sent_and_is_dropped(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.open(entry(0))
    journal.release()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + whole[: len(whole) // 2])
    again = opened(tmp_path)
    assert again.pending == (entry(0),)
    again.open(entry(1))
    again.release()
    assert opened(tmp_path).pending == (entry(0), entry(1))


def writes(*, at_most: int, until: int = 1 << 30) -> Callable[[int, bytes], int]:
    """os.write as a nearly full disk has it: `at_most` bytes at a time, none after `until` bytes."""
    real, written = os.write, 0

    def write(handle: int, data: bytes) -> int:
        nonlocal written
        if written >= until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(handle, data[: min(at_most, until - written)])
        written += done
        return done

    return write


def test_a_line_that_is_written_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", writes(at_most=40))
    journal = opened(tmp_path)
    journal.open(entry(0))
    journal.open(entry(1))
    journal.close(entry(0), Fate.INCLUDED, delivery=Delivery.DELIVERED, block=12)
    journal.release()
    again = opened(tmp_path)
    assert again.pending == (entry(1),)
    assert again.done[0].entry == entry(0)


@pytest.mark.parametrize("truncate", ["works", "fails"])
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncate: str) -> None:
    journal = opened(tmp_path)
    journal.open(entry(0))
    whole = journal.path.read_bytes()
    with monkeypatch.context() as full:
        full.setattr(os, "write", writes(at_most=40, until=100))
        if truncate == "fails":
            sizes = iter([os.ftruncate])  # the one before the writing works
            full.setattr(os, "ftruncate", lambda handle, size: next(sizes, refuse)(handle, size))
        with pytest.raises(ChainError, match=r"cannot write the journal .*No space left"):
            journal.open(entry(1))
    assert journal.pending == (entry(0),)
    assert len(journal.path.read_bytes()) - len(whole) == (0 if truncate == "works" else 100)
    journal.open(entry(2))
    journal.release()
    assert opened(tmp_path).pending == (entry(0), entry(2))


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_tampered_line_is_refused_by_file_and_line(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.open(entry(0))
    journal.open(entry(1))
    journal.release()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    for damaged in (
        lines[0].replace(b'"nonce": 0', b'"nonce": 7'),
        lines[0].replace(entry(0).extrinsic.hex().encode(), b"00"),
        b"garbage\n",
        b"\xff\xfe\n",
        b"\n",
    ):
        journal.path.write_bytes(damaged + lines[1])
        with pytest.raises(JournalDamaged, match="line 1 is damaged"):
            opened(tmp_path)


def test_bytes_that_are_not_the_signed_ones_are_refused_even_with_a_right_checksum(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.open(entry(0))
    journal.release()
    text = journal.path.read_bytes().partition(b" ")[2].rstrip(b"\n")
    text = text.replace(entry(0).extrinsic.hex().encode(), entry(1).extrinsic.hex().encode())
    journal.path.write_bytes(journals._check(text) + b" " + text + b"\n")
    with pytest.raises(JournalDamaged, match="not the one that was signed"):
        opened(tmp_path)


def test_the_file_stays_small_and_keeps_what_is_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MAX_JOURNAL_BYTES", 4096)
    monkeypatch.setattr(journals, "KEPT_DONE", 2)
    journal = opened(tmp_path)
    journal.open(entry(1000))
    for number in range(100):
        journal.open(entry(number))
        journal.close(entry(number), Fate.INCLUDED, delivery=Delivery.DELIVERED, block=number)
        assert journal.path.stat().st_size < 3 * 4096
    journal.release()
    again = opened(tmp_path)
    assert again.pending == (entry(1000),)
    assert again.done[-1].entry == entry(99)


def test_a_file_that_cannot_be_shortened_goes_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MAX_JOURNAL_BYTES", 0)
    monkeypatch.setattr(os, "replace", refuse)
    journal = opened(tmp_path)
    for number in range(2):
        journal.open(entry(number))
        journal.close(entry(number), Fate.INCLUDED, delivery=Delivery.DELIVERED, block=number)
    journal.release()
    assert [done.entry for done in opened(tmp_path).done] == [entry(0), entry(1)]


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.open(entry())
    assert journal.path.stat().st_mode & 0o077 == 0
