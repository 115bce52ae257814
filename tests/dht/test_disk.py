"""Records on disk: what was acknowledged survives SIGKILL, and what is read back is checked like a stranger's."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from mesh.dht.disk import MALFORMED, MAX_PENDING_BYTES, SqliteRecords
from mesh.errors import ConfigError, RecordRejected
from mesh.identity import PeerKey
from mesh.kad.equivocation import Equivocation
from mesh.kad.key import key_of_peer
from mesh.kad.quota import NamespaceQuota, Quota
from mesh.kad.record import Record, sign_record
from mesh.kad.store import Keep, RecordStore, StoreConfig
from mesh.kad.validator import NamespaceRule, RecordValidator
from tests.dht.cluster import Cluster, in_sim

NOW = 1_800_000_000.0
GENESIS = b"g" * 32
ALICE, BOB = PeerKey.dev("alice"), PeerKey.dev("bob")
LOCAL = key_of_peer(ALICE.peer_id)
RULES = (NamespaceRule("k", max_ttl_s=3600.0), NamespaceRule("e", max_ttl_s=3600.0, is_evidence=True))


def signed(
    key: bytes = b"k/1", *, by: PeerKey = BOB, value: bytes = b"v", ttl_s: float = 600.0, seq: int = 1, **more: object
) -> Record:
    fields: dict[str, object] = {"subnet_id": 1, "genesis": GENESIS, **more}
    return sign_record(by, key, value, expiry_ms=int((NOW + ttl_s) * 1000), seq=seq, **fields)  # type: ignore[arg-type]


def disk(path: Path, **more: object) -> SqliteRecords:
    return SqliteRecords(path, **{"subnet_id": 1, "genesis": GENESIS, **more})  # type: ignore[arg-type]


def reopened(path: Path, *, now: float = NOW, config: StoreConfig | None = None) -> tuple[RecordStore, dict[str, int]]:
    """What a node finds after a restart, and what it left out and why."""
    journal = disk(path)
    store = RecordStore(LOCAL, config, journal=journal)
    validator = RecordValidator(RULES, subnet_id=1, genesis=GENESIS)
    loaded = journal.load(store, validator, now=now)
    assert loaded.records == len(store)
    journal.close()
    return store, dict(loaded.skipped)


def test_everything_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    command = [sys.executable, "-m", "tests.dht.disk_child", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert child.stdout is not None
    try:
        acknowledged = [child.stdout.readline() for _ in range(1000)]
        child.kill()
        acknowledged += child.stdout.readlines()  # what was in the pipe
    finally:
        child.kill()
        child.stdout.close()
        child.wait()
    names = [line.strip() for line in acknowledged if line.endswith(b"\n")]
    assert len(names) >= 1000
    store, skipped = reopened(path)
    assert skipped == {}
    assert set(names) <= set(store.keys())
    assert len(store) <= len(names) + 8  # a batch that was written and not yet named


def test_a_store_comes_back_with_why_and_from_whom(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    journal = disk(path)
    store = RecordStore(LOCAL, journal=journal)
    own, replica, evidence = signed(b"k/own", by=ALICE), signed(b"k/replica", by=ALICE), signed(b"e/1", by=ALICE)
    for record, keep in ((own, Keep.OWN), (replica, Keep.REPLICA), (evidence, Keep.EVIDENCE)):
        store.put(record, max_per_owner=8, keep=keep, sender=None if keep is Keep.OWN else BOB.peer_id)
    store.put(signed(b"k/dropped"), max_per_owner=8)
    store.put(signed(b"k/expired", ttl_s=1.0), max_per_owner=8)
    store.put(signed(b"k/replaced", value=b"old"), max_per_owner=8)
    journal.flush()
    store.put(signed(b"k/replaced", value=b"new", seq=2), max_per_owner=8)
    store.drop(signed(b"k/dropped").slot)
    store.expire(NOW + 2)
    for said in sorted((signed(b"k/liar", value=value) for value in (b"yes", b"no")), key=lambda record: record.order):
        store.put(said, max_per_owner=8)
    journal.close()
    again, skipped = reopened(path)
    assert skipped == {}
    assert list(again) == list(store)
    assert [again.keep(r.slot) for r in (own, replica, evidence)] == [Keep.OWN, Keep.REPLICA, Keep.EVIDENCE]
    assert again.proofs == store.proofs
    assert len(again.proofs) == 1
    # Shares of senders count on.
    tight = StoreConfig(max_records=20, max_sender_share=0.1)
    full, _ = reopened(path, config=tight)
    with pytest.raises(RecordRejected, match="sender"):
        full.check(signed(b"k/more", by=ALICE), max_per_owner=8, sender=BOB.peer_id)


def test_what_was_not_flushed_may_be_lost_and_what_was_is_not(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    journal = disk(path)
    store = RecordStore(LOCAL, journal=journal)
    store.put(signed(b"k/1"), max_per_owner=8)
    journal.flush()
    store.put(signed(b"k/2"), max_per_owner=8)
    journal._database.close()
    again, _ = reopened(path)
    assert again.keys() == (b"k/1",)


def test_rows_are_checked_like_a_strangers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "records.db"
    journal = disk(path)
    good = signed(b"k/good")
    for record in (
        good,
        signed(b"k/expired", ttl_s=1.0),
        signed(b"k/foreign", genesis=b"h" * 32),
        signed(b"k/other", subnet_id=2),
        signed(b"nope/x"),
        signed(b"k/forever", ttl_s=10_000.0),
        dataclasses.replace(signed(b"k/forged"), value=b"w"),
    ):
        journal.kept(record, Keep.REPLICA, BOB.peer_id)
    journal.kept(signed(b"k/own-of-another"), Keep.OWN, None)
    forged = Equivocation.of(signed(b"k/liar"), dataclasses.replace(signed(b"k/liar"), value=b"w"))
    journal.proven(forged)
    journal.close()
    with sqlite3.connect(path) as database:
        for row in ((b"x" * 32, b"garbage", "REPLICA", None), (b"y" * 32, good.to_bytes(), "REPLICA", None),
                    ("text", 5, "REPLICA", None), (b"z" * 32, b"", "WHATEVER", None)):  # fmt: skip
            database.execute("INSERT INTO records VALUES (?, ?, ?, ?)", row)
        database.execute("INSERT INTO proofs VALUES (?, ?)", (b"x" * 32, b"garbage"))
    database.close()
    with caplog.at_level(logging.WARNING):
        again, skipped = reopened(path, now=NOW + 2)
    assert set(again.keys()) == {b"k/good", b"k/own-of-another"}
    assert again.keep(signed(b"k/own-of-another").slot) is Keep.REPLICA
    assert again.proofs == ()
    assert skipped == {
        "expired": 1, "genesis": 1, "subnet": 1, "namespace": 1, "ttl": 1, "signature": 2, MALFORMED: 5
    }  # fmt: skip
    assert caplog.text.count("dht.row_skipped") == 5
    assert reopened(path, now=NOW + 2)[1] == {}  # they are gone


def test_a_store_that_became_smaller_keeps_what_it_has_room_for(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    journal = disk(path)
    store = RecordStore(LOCAL, journal=journal)
    for number in range(20):
        store.put(signed(b"k/%d" % number), max_per_owner=8)
    store.put(signed(b"e/1"), max_per_owner=8, keep=Keep.EVIDENCE)
    journal.close()
    small = StoreConfig(max_records=5, max_owner_share=1.0)
    again, skipped = reopened(path, config=small)
    nearest = [record.key for record in store if record.key != b"e/1"][:4]
    assert set(again.keys()) == {b"e/1", *nearest}
    assert set(skipped) <= {"full"}
    assert set(reopened(path)[0].keys()) == set(again.keys())


def test_the_file_is_private_and_of_one_process_chain_and_subnet(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.db"
    first = disk(path)
    first.kept(signed(), Keep.REPLICA, None)
    first.flush()
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="another process"):
        disk(path)
    first.close()
    for other in ({"genesis": b"h" * 32}, {"subnet_id": 2}):
        with pytest.raises(ConfigError, match="another chain or subnet"):
            disk(path, **other)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        disk(path)


def test_files_that_are_not_ours_are_refused_with_advice(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(os.urandom(8192))
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    later, damaged = tmp_path / "later.db", tmp_path / "damaged.db"
    for path in (later, damaged):
        journal = disk(path)
        for number in range(200):
            journal.kept(signed(b"k/%d" % number, value=bytes(500)), Keep.REPLICA, None)
        journal.close()
    with sqlite3.connect(later) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    raw = bytearray(damaged.read_bytes())
    raw[8192:16384] = b"\xff" * 8192
    damaged.write_bytes(raw)
    for path, advice in (
        (garbage, "move it away"), (foreign, "another program"), (later, "schema 99"), (damaged, "move it away"),
        (tmp_path, "cannot open"),
    ):  # fmt: skip
        path.chmod(0o600 if path.is_file() else 0o700)
        with pytest.raises(ConfigError, match=advice):
            disk(path)


def test_the_file_must_have_room_for_the_store_and_grows_no_further(tmp_path: Path) -> None:
    validator = RecordValidator(RULES, subnet_id=1, genesis=GENESIS)
    journal = disk(tmp_path / "small.db", max_bytes=2**20)
    store = RecordStore(LOCAL, StoreConfig(max_proofs=0), journal=journal)
    with pytest.raises(ConfigError, match="max_bytes"):
        journal.load(store, validator, now=NOW)
    for number in range(40):
        store.put(signed(b"k/%d" % number, value=bytes(60_000)), max_per_owner=8)
    with pytest.raises(ConfigError, match="no longer kept"):
        journal.flush()
    store.put(signed(b"k/after"), max_per_owner=8)  # the store goes on
    with pytest.raises(ConfigError, match="no longer kept"):  # and nothing is acknowledged as kept
        journal.flush()
    assert journal.size_bytes <= 2**20
    with pytest.raises(ConfigError):
        journal.close()


def test_a_full_store_of_the_worst_sizes_fits_into_twice_its_bytes(tmp_path: Path) -> None:
    """Rows of just over half a page."""
    path = tmp_path / "records.db"
    config = StoreConfig(max_bytes=4 * 2**20, max_owner_share=1.0, max_proofs=0)
    journal = disk(path, max_bytes=2 * config.max_bytes)
    store = RecordStore(LOCAL, config, journal=journal)
    for generation in range(3):
        for number in range(2000):
            record = signed(b"k/%d" % (number % 1700), value=bytes(1780 + generation), seq=generation * 2000 + number)
            with contextlib.suppress(RecordRejected):  # once it is full of nearer ones
                store.put(record, max_per_owner=8)
        journal.flush()
    assert store.size_bytes > 0.95 * config.max_bytes
    assert journal.size_bytes < 2 * config.max_bytes
    journal.close()


def test_changes_that_nobody_flushes_are_bounded(tmp_path: Path) -> None:
    journal = disk(tmp_path / "records.db")
    store = RecordStore(LOCAL, StoreConfig(max_owner_share=1.0), journal=journal)
    for number in range(2 * MAX_PENDING_BYTES // 60_000):
        store.put(signed(b"k/%d" % number, value=bytes(60_000)), max_per_owner=8)
        assert journal._pending_bytes <= MAX_PENDING_BYTES
    journal.close()


def test_flushes_of_several_threads_each_wait_for_what_they_told(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    journal = disk(path)
    seen = set[bytes]()

    def work(number: int) -> None:
        for step in range(20):
            journal.kept(signed(b"k/%d-%d" % (number, step)), Keep.REPLICA, None)
            journal.flush()
            seen.add(b"k/%d-%d" % (number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal._database.close()
    assert set(reopened(path)[0].keys()) == seen
    assert len(seen) == 80


def test_a_quota_that_became_smaller_holds_for_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    journal = disk(path)
    for number in range(5):
        journal.kept(signed(b"k/%d" % number), Keep.REPLICA, None)
    journal.close()
    journal = disk(path)
    store = RecordStore(LOCAL, journal=journal)
    rule = NamespaceRule("k", max_ttl_s=3600.0, quota=NamespaceQuota(per_owner=Quota(max_records=2)))
    loaded = journal.load(store, RecordValidator([rule], subnet_id=1, genesis=GENESIS), now=NOW)
    assert (loaded.records, dict(loaded.skipped)) == (2, {"quota": 3})
    journal.close()


def test_a_node_that_crashed_still_holds_what_it_acknowledged_and_publishes_its_own_again(tmp_path: Path) -> None:
    """Restarted from its file, without the peers that knew it before: what it held is there, and what it owned goes out
    to the new ones."""
    path = tmp_path / "records.sqlite"

    @in_sim
    async def before(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        node = await cluster.add("kept", records_path=path)
        other = await cluster.add("other")
        await node.dht.put(b"any/mine", b"mine", ttl_s=3000)
        await other.dht.put(b"any/theirs", b"theirs", ttl_s=3000)
        node.stop()
        await trio.sleep(1)

    @in_sim
    async def after(nursery: trio.Nursery) -> None:
        cluster = Cluster(nursery)
        first = await cluster.add("fresh")
        node = await cluster.add("kept", records_path=path)
        assert {record.value for record in (*node.dht.local(b"any/mine"), *node.dht.local(b"any/theirs"))} == {
            b"mine",
            b"theirs",
        }
        await trio.sleep(30)
        assert [record.value for record in first.dht.local(b"any/mine")] == [b"mine"]
        node.stop()
        await trio.sleep(1)

    before()
    after()
