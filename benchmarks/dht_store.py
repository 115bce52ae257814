"""What does holding a record cost, in memory and on disk, and how long does the event loop wait for the disk?

Memory: a store of 100,000 records, 8,192 of them under one key; microseconds per call, and the worst. Disk: batches of
128 records (a store request's most) are told and flushed, in a worker thread as a node does; beside it a task that
wants to wake every millisecond says how late it was. Signatures are garbage: neither store nor journal looks at them.
Run: python benchmarks/dht_store.py [--records 100000] [--batches 300]
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from mesh.dht.disk import SqliteRecords
from mesh.errors import RecordRejected
from mesh.identity import PeerKey
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.record import Record
from mesh.kad.store import Keep, RecordStore, StoreConfig

NOW = 1_800_000_000.0
GENESIS = b"g" * 32
LOCAL = key_of_peer(PeerKey.dev("local").peer_id)
RNG = random.Random(1)
OWNERS = [b"\x08\x01\x12\x20" + RNG.randbytes(32) for _ in range(2000)]
PER_KEY = 8192
BATCH = 128


def record(
    key: bytes, number: int, *, subkey: bytes = b"", seq: int = 1, size: int = 100, ttl_s: float = 0.0
) -> Record:
    """Of one of 2,000 owners. Its owner, digest and place are known before anything is timed, as after a validator."""
    expiry_ms = int((NOW + (ttl_s or RNG.uniform(10, 1000))) * 1000)
    made = Record(key, subkey, bytes(size), expiry_ms, seq, 1, GENESIS, OWNERS[number % 2000], b"s" * 64)
    for known in (made.owner, made.digest, key_of_record(key)):
        assert known is not None
    return made


def hot(count: int, key: bytes = b"k/hot", seq: int = 1, step: int = 1) -> list[Record]:
    """Records in the slots of one key."""
    return [record(key, n, subkey=b"%d" % (n // 2000), seq=seq) for n in range(0, count, step)]


def timed(title: str, call: Callable[[Record], object], records: Iterable[Record]) -> None:
    """Print microseconds per call."""
    took: list[float] = []
    refused = 0
    gc.collect()
    gc.disable()  # its pauses are of this script's making: a store has no cycles
    for one in records:
        start = time.perf_counter()
        try:
            call(one)
        except RecordRejected:
            refused += 1
        took.append(time.perf_counter() - start)
    gc.enable()
    took.sort()
    mean, p99, worst = (1e6 * x for x in (statistics.fmean(took), took[int(0.99 * len(took))], took[-1]))
    print(f"{title:58} {mean:7.1f} us, p99 {p99:7.1f}, worst {worst:7.0f}; refused {refused} of {len(took)}")


def memory(count: int) -> None:
    """The store alone."""
    config = StoreConfig(max_records=count, max_bytes=2**30, max_owner_share=1.0)
    store = RecordStore(LOCAL, config)

    def put(one: Record) -> None:
        store.put(one, max_per_owner=PER_KEY)

    def check(one: Record) -> None:
        store.check(one, max_per_owner=PER_KEY)

    others = count - PER_KEY
    timed(f"put, {others} keys", put, [record(b"k/%d" % n, n) for n in range(others)])
    timed(f"put, {PER_KEY} slots of one key", put, hot(PER_KEY))
    timed("put a newer one of these", put, hot(PER_KEY, seq=2, step=8))
    timed("check an older one of these", check, hot(PER_KEY, step=8))
    timed("check, store full", check, [record(b"n/%d" % n, n, ttl_s=5000) for n in range(2000)])
    timed("put and evict, store full", put, [record(b"n/%d" % n, n, ttl_s=5000) for n in range(2000)])

    far = max((b"f/%d" % n for n in range(count)), key=lambda key: key_of_record(key) ^ LOCAL)
    store = RecordStore(LOCAL, StoreConfig(max_records=PER_KEY, max_bytes=2**30, max_owner_share=1.0))
    timed("put, far key", put, hot(PER_KEY, far))
    timed("put and evict from that key", put, [record(b"n/%d" % n, n) for n in range(300)])
    timed("refused as full, under that key", put, [record(far, n, subkey=b"z", ttl_s=0.5) for n in range(300)])

    store = RecordStore(LOCAL, StoreConfig(max_records=PER_KEY, max_bytes=2**30, max_owner_share=1.0))
    for one in hot(PER_KEY):
        store.put(one, max_per_owner=PER_KEY, keep=Keep.EVIDENCE)
    timed("refused as full, of evidence", put, [record(b"n/%d" % n, n) for n in range(300)])
    start = time.perf_counter()
    store.records(b"k/hot", now=NOW)
    print(f"records() of {PER_KEY}: {1e3 * (time.perf_counter() - start):.1f} ms")
    start = time.perf_counter()
    store.owners(b"k/hot")
    print(f"owners() of {PER_KEY}: {1e3 * (time.perf_counter() - start):.1f} ms")
    pages, after, start = 0, None, time.perf_counter()
    while True:
        page = store.page(b"k/hot", now=NOW, max_bytes=100_000, after=after)
        pages += 1
        if not page.more:
            break
        after = (page.records[-1].owner, page.records[-1].subkey)
    print(f"page() of 100 kB: {1e6 * (time.perf_counter() - start) / pages:.0f} us, {pages} pages")
    start = time.perf_counter()
    gone = store.expire(NOW + 2000)
    print(f"expire(): {1e6 * (time.perf_counter() - start) / len(gone):.1f} us per record")


async def disk(path: Path, size: int, batches: int) -> None:
    """Batches beside a task that wants to be punctual."""
    journal = SqliteRecords(path, subnet_id=1, genesis=GENESIS, max_bytes=2**31)
    made = [[record(b"k/%d" % (b * BATCH + n), n, size=size) for n in range(BATCH)] for b in range(batches)]
    telling: list[float] = []
    flushing: list[float] = []
    late: list[float] = []

    async def punctual() -> None:
        while True:
            at = trio.current_time() + 0.001
            await trio.sleep_until(at)
            late.append(trio.current_time() - at)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(punctual)
        for batch in made:
            await trio.sleep(0.005)
            start = time.perf_counter()
            for one in batch:
                journal.kept(one, Keep.REPLICA, None)
            told = time.perf_counter()
            await trio.to_thread.run_sync(journal.flush)
            telling.append(told - start)
            flushing.append(time.perf_counter() - told)
        nursery.cancel_scope.cancel()
    file_mb = journal.size_bytes / 2**20
    journal.close()

    def quantiles(values: list[float]) -> str:
        values = sorted(values)
        return f"{1e3 * statistics.median(values):6.2f} ms, p99 {1e3 * values[int(0.99 * len(values))]:6.2f}"

    print(
        f"{size:6} B: told in {quantiles(telling)}; flushed in {quantiles(flushing)}, "
        f"{1e6 * statistics.fmean(flushing) / BATCH:.1f} us per record; loop late by {quantiles(late)}; "
        f"file {file_mb:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    memory(options.records)
    print(f"disk, batches of {BATCH}:")
    with tempfile.TemporaryDirectory() as directory:
        for size, batches in ((300, options.batches), (4096, options.batches), (64_000, options.batches // 10)):
            trio.run(disk, Path(directory) / f"{size}.db", size, batches)


if __name__ == "__main__":
    main()
