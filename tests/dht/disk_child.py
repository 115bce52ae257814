"""Stores records until it is killed, and names each on its standard output once it is acknowledged.

Run: python -m tests.dht.disk_child DATABASE
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from mesh.kad.store import RecordStore
from tests.dht.test_disk import LOCAL, disk, signed

BATCH = 8


def main(path: Path) -> None:
    journal = disk(path)
    store = RecordStore(LOCAL, journal=journal)
    for number in itertools.count():
        batch = [signed(b"k/%d" % (number * BATCH + n), value=bytes(n * 300)) for n in range(BATCH)]
        for record in batch:
            store.put(record, max_per_owner=8)
        journal.flush()
        sys.stdout.write("".join(f"{record.key.decode()}\n" for record in batch))
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
