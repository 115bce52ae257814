"""What is measured of every DHT, in the same way whichever it is. Standard library only: hivemind's environment has it.

A peer script `SCRIPT NODES` has a `Dht`: a handful of calls into one DHT whose nodes all live in this process (and
whatever processes these need). `answer` does the rest: who does what to which key, the clock, and whether it worked.
The script prints `{"what": ..., "lacks": {op: why}}` when its nodes have joined, and answers each line of its input:

- `{"op": OP, "count": n}`: n operations one after another; `{"times_ms": [...], "ok": k}`, or `{"error": why}`
- `{"op": "fill", "count": n}`: put keys until n are there that nobody has read; `{}`
- `{"op": "start", "count": n}`: n more hosts listen, and know nobody yet; `{"times_ms": [...]}`
- `{"op": "join", "count": n}`: they join, one after another; `{"times_ms": [...], "ok": k}`
- `{"op": "leave"}`: they are gone again
- `{"op": "cool", "count": n}`: n nodes close all their connections, and are those that act in the next operations that
  end with `_cold`; `{"left_open": k}`
- `{"op": "kill", "part": 0.2}`: that part of the nodes is gone, without a word to the others; `{"nodes": left}`

The n-th entry of an operation is the same everywhere: a name of 32 hexadecimal digits, 64 bytes, the owner. A get is of
a key that nobody has read before, by a node that does not hold it, so that it has to ask and no cache helps; of the 64
of get_many, their getter may hold some.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

REPLICAS: Final = 5
MANY: Final = 64
VALUE_BYTES: Final = 64
LIFE_S: Final = 3600.0

KNOWN: Final = 20
VERIFIED: Final = 8
FOUND_BY: Final = 8
JOIN_S: Final = 30.0
"""A node has joined when it knows KNOWN peers (or all, where there are fewer), VERIFIED of them have answered it or
called it, and FOUND_BY others have it in their tables; what has not joined after JOIN_S has failed."""
GET_S: Final = 20.0
"""What takes longer has not got anything; the limit that mesh has of itself."""
COOL_TIMES: Final = 5
"""How often all connections are closed until none is open: others may dial meanwhile."""
ROUND_S: Final = 60.0
"""No operation of a round begins after that: slow ones are measured fewer times."""

Entry = tuple[str, bytes]


class Dht(Protocol):
    """One DHT, all its nodes in this process, which are named by their numbers."""

    what: str
    lacks: dict[str, str]
    """Operations it does not have, and why."""

    async def put(self, node: int, key: str, value: bytes, replicas: int) -> None:
        """Store at so many; done when all of them have answered."""

    async def get(self, node: int, key: str, *, is_latest: bool) -> bytes | None:
        """The newest value that the closest peers hold, or else the first that somebody has."""

    async def put_many(self, node: int, entries: Sequence[Entry]) -> None:
        """`put` with 5 replicas, for several at once."""

    async def get_many(self, node: int, keys: Sequence[str]) -> dict[str, bytes]:
        """`get` of the latest, for several at once."""

    def holds(self, node: int, key: str) -> bool:
        """Whether it is a replica (or the owner) that others would get the value from."""

    def has_at_hand(self, node: int, key: str) -> bool:
        """Whether it holds or caches the key, and so might answer itself."""

    async def start(self) -> None:
        """One more host listens, and knows nobody."""

    async def join(self, node: int) -> None:
        """It joins through the first node, as its makers mean it."""

    def known(self, node: int) -> int:
        """Peers in its table."""

    def verified(self, node: int) -> int:
        """Those of them that answered it, or called it."""

    def found_by(self, node: int, others: Sequence[int]) -> int:
        """How many of the others have it in their tables."""

    async def stop(self, node: int) -> None:
        """It is gone, as when its process was killed."""

    async def cool(self, node: int) -> None:
        """Close all its connections."""

    async def connections(self, node: int) -> int:
        """How many it has."""

    async def sleep(self, seconds: float) -> None:
        """As the event loop has it."""


class Unable(Exception):
    """The operation makes no sense here; the text says why."""


class Bench:
    """Drives a Dht."""

    def __init__(self, dht: Dht, nodes: int) -> None:
        self._dht = dht
        self._alive = list(range(nodes))
        self._next_node = nodes
        self._joining: list[int] = []
        self._cold: list[int] = []
        self._drawn: defaultdict[str, int] = defaultdict(int)
        self._unread: deque[str] = deque()
        """Keys put with 5 replicas (or as many as a peer always has)."""
        self._unread_together: deque[tuple[list[str], int]] = deque()
        """Of put_many, with their owners."""
        self._values: dict[str, bytes] = {}

    async def build(self) -> None:
        """Let all nodes join, one after another, and say hello."""
        for number in self._alive:
            await self._dht.start()
            if number:
                await self._dht.join(number)
        await self._dht.sleep(2)
        say(what=self._dht.what, lacks=self._dht.lacks)

    async def answer(self, line: str) -> None:
        """Do what a line asks for, and say what came of it."""
        order = json.loads(line)
        op, count = order["op"], order.get("count", 1)
        if op == "start":
            say(times_ms=[await self._start() for _ in range(count)])
        elif op == "join":
            joined = [await self._join(node) for node in self._joining]
            say(times_ms=[took_ms for took_ms, _ in joined], ok=sum(ok for _, ok in joined))
        elif op == "leave":
            while self._joining:
                await self._dht.stop(self._joining.pop())
            await self._dht.sleep(0.5)
            say()
        elif op == "fill":
            while len(self._unread) < count:
                await self._put("fill", None, replicas=REPLICAS)
            say()
        elif op == "cool":
            say(left_open=await self._cool(count))
        elif op == "kill":
            await self._kill(order["part"])
            say(nodes=len(self._alive))
        else:
            try:
                done, until = [await self._once(op)], time.monotonic() + ROUND_S
                while len(done) < count and time.monotonic() < until:
                    done.append(await self._once(op))
            except Unable as error:
                say(error=str(error))
            else:
                say(times_ms=[took_ms for took_ms, _ in done], ok=sum(ok for _, ok in done))

    # -- operations: each returns what it took, in ms, and whether it did what was asked --

    async def _once(self, op: str) -> tuple[float, bool]:
        owner = self._cold.pop() if op.endswith("_cold") else None
        if op.startswith("put_many"):
            return await self._put_many(op)
        if op.startswith("get_many"):
            return await self._get_many()
        if op.startswith("put"):
            return await self._put(op, owner, replicas=20 if op.startswith("put_20") else REPLICAS)
        return await self._get(owner, is_latest=op.startswith("get_latest"))

    async def _put(self, op: str, owner: int | None, *, replicas: int) -> tuple[float, bool]:
        drawn, key, value = self._entry(op)
        owner = drawn if owner is None else owner
        began = time.perf_counter()
        await self._dht.put(owner, key, value, replicas)
        took_ms = _ms_since(began)
        if replicas == REPLICAS or "put" in self._dht.lacks:
            self._unread.append(key)
        return took_ms, self._is_held(key, replicas)

    async def _get(self, getter: int | None, *, is_latest: bool) -> tuple[float, bool]:
        getter, key = self._reader(getter)
        began = time.perf_counter()
        value = await self._dht.get(getter, key, is_latest=is_latest)
        return _ms_since(began), value == self._values[key]

    async def _put_many(self, op: str) -> tuple[float, bool]:
        drawn = [self._entry(op) for _ in range(MANY)]
        owner, entries = drawn[0][0], [(key, value) for _, key, value in drawn]
        began = time.perf_counter()
        await self._dht.put_many(owner, entries)
        took_ms = _ms_since(began)
        keys = [key for key, _ in entries]
        self._unread_together.append((keys, owner))
        return took_ms, all(self._is_held(key, REPLICAS) for key in keys)

    async def _get_many(self) -> tuple[float, bool]:
        if not self._unread_together:
            raise Unable("nothing was put that nobody has read")
        keys, owner = self._unread_together.popleft()
        getter = next(node for node in self._shuffled(keys[0]) if node != owner)
        began = time.perf_counter()
        values = await self._dht.get_many(getter, keys)
        return _ms_since(began), values == {key: self._values[key] for key in keys}

    def _entry(self, op: str) -> tuple[int, str, bytes]:
        """Owner, key and value of the operation's next put."""
        self._drawn[op] += 1
        rng = random.Random(f"{op} {self._drawn[op]}")
        owner, key, value = rng.choice(self._alive), f"{rng.getrandbits(128):032x}", rng.randbytes(VALUE_BYTES)
        self._values[key] = value
        return owner, key, value

    def _reader(self, getter: int | None) -> tuple[int, str]:
        """Who gets what: the first unread key that somebody, or this one, does not hold."""
        for key in self._unread:
            for node in self._shuffled(key) if getter is None else [getter]:
                if not self._dht.has_at_hand(node, key):
                    self._unread.remove(key)
                    return node, key
        raise Unable("whoever could read a key holds it")

    def _shuffled(self, key: str) -> list[int]:
        return random.Random(f"get {key}").sample(self._alive, len(self._alive))

    def _is_held(self, key: str, replicas: int) -> bool:
        """By as many as were asked for, the owner among them if it holds the key."""
        return sum(self._dht.holds(node, key) for node in self._alive) >= min(replicas, len(self._alive) - 1)

    # -- nodes --

    async def _start(self) -> float:
        began = time.perf_counter()
        await self._dht.start()
        took_ms = _ms_since(began)
        self._joining.append(self._next_node)
        self._next_node += 1
        return took_ms

    async def _join(self, node: int) -> tuple[float, bool]:
        known = min(KNOWN, len(self._alive))
        began = time.perf_counter()
        await self._dht.join(node)
        while _ms_since(began) < JOIN_S * 1e3:
            if (
                self._dht.known(node) >= known
                and self._dht.verified(node) >= min(VERIFIED, known)
                and self._dht.found_by(node, self._alive) >= min(FOUND_BY, known)
            ):
                return _ms_since(began), True
            await self._dht.sleep(0.002)
        return _ms_since(began), False

    async def _cool(self, count: int) -> int:
        """Close the connections of the next ones, and see what is open after that."""
        self._cold = random.Random("cool").sample(self._alive[1:], count)
        left = 0
        for _ in range(COOL_TIMES):
            for node in self._cold:
                await self._dht.cool(node)
            await self._dht.sleep(1)
            left = sum([await self._dht.connections(node) for node in self._cold])
            if not left:
                break
        return left

    async def _kill(self, part: float) -> None:
        """The first one, through which all joined, stays."""
        dead = random.Random("kill").sample(self._alive[1:], int(part * len(self._alive)))
        self._alive = [node for node in self._alive if node not in dead]
        for node in dead:
            await self._dht.stop(node)
        await self._dht.sleep(1)


def say(**message: Any) -> None:
    """One line for the driver."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3
