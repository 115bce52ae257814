"""What is measured of every DHT, and how the driver asks for it. Standard library only.

A peer script `SCRIPT NODES` runs that many nodes in one process (and whatever processes these need), prints
`{"what": ..., "lacks": {op: why}}` when they have joined, and answers each line with one line until its input ends:
`{"op": ..., "count": n}` with `{"times_ms": [...], "ok": k}`, `{"op": "kill", "part": 0.2}` with `{"nodes": left}`.

Keys and values are the same everywhere: names of 32 hexadecimal digits and 64 bytes, from one seed. Who puts and who
gets is drawn from one seed, too; a getter is never the owner. A get is of a key put before, read for the first time by
its getter.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

OPS: Final = ("put", "put_20", "get_first", "get_latest", "put_many", "get_many", "join")
EXTRA: Final = ("put_cold", "get_cold", "get_after_kill")
MANY: Final = 64
VALUE_BYTES: Final = 64
LIFE_S: Final = 3600.0
MOST_S: Final = 60.0


class Script:
    """Who does what to which key: the same for all peers."""

    def __init__(self, nodes: int) -> None:
        self._rng = random.Random(20)
        self.alive = list(range(nodes))
        self.put: list[tuple[str, int]] = []
        """Keys put with 5 replicas (or as many as a peer has) and their owners."""
        self._next_get = 0

    def entry(self) -> tuple[int, str, bytes]:
        """Owner, key and value of a put."""
        return self._rng.choice(self.alive), f"{self._rng.getrandbits(128):032x}", self._rng.randbytes(VALUE_BYTES)

    def read(self) -> tuple[int, str]:
        """Getter and key of a get; keys in the order in which they were put, again and again."""
        key, owner = self.put[self._next_get % len(self.put)]
        self._next_get += 1
        return self._rng.choice([node for node in self.alive if node != owner]), key

    def kill(self, part: float) -> list[int]:
        """Which nodes end; the first one, through which all joined, stays."""
        dead = self._rng.sample(self.alive[1:], int(part * len(self.alive)))
        self.alive = [node for node in self.alive if node not in dead]
        return dead


Operation = Callable[[], Awaitable[bool]]
"""Does one operation; says whether it did what was asked."""


def say(**message: Any) -> None:
    """One line for the driver."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def timed(operation: Operation, count: int) -> dict[str, Any]:
    """One after another, at least one, for a minute at most."""
    times_ms, ok, until = [], 0, time.perf_counter() + MOST_S
    for _ in range(count):
        if times_ms and time.perf_counter() > until:
            break
        began = time.perf_counter()
        ok += await operation()
        times_ms.append((time.perf_counter() - began) * 1e3)
    return {"times_ms": times_ms, "ok": ok}
