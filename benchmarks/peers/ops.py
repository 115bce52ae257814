"""What is measured of every peer, and how the driver asks for it. Standard library only: each peer's own interpreter
imports it.

A peer script has two roles. `server [MODE]` prints one line of JSON, `{"address": ...}`, and serves until its standard
input ends. `client ADDRESS [MODE]` connects and prints `{"what": ..., "variants": [...]}`, its ways to send a stream.
Then it answers each line `{"kind": ..., "size": bytes, "calls": n, "workers": n, "variant": ...}` with one line,
`{"times_ms": [...], "wall_s": s}`, or `{"error": why}` for what it cannot do, until its standard input ends.
"""

from __future__ import annotations

import enum
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

KIB: Final = 1 << 10
MIB: Final = 1 << 20


class Kind(enum.Enum):
    """How an operation moves bytes."""

    ECHO = "echo"
    """One request, and the same bytes back."""
    TAKE = "take"
    """One request, and a small answer."""
    STREAM = "stream"
    """A stream to the server, and one small answer when all of it has come."""


@dataclass(frozen=True)
class Op:
    """One operation: `calls` of `size` bytes a round, `workers` of them at once."""

    kind: Kind
    size: int
    calls: int
    warm_calls: int
    warm_size: int
    workers: int = 1


OPS: Final[dict[str, Op]] = {
    "unary_64B": Op(Kind.ECHO, 64, 1000, 100, 64),
    "unary_1MiB": Op(Kind.TAKE, MIB, 100, 10, MIB),
    "unary_4MiB": Op(Kind.TAKE, 4 * MIB, 30, 3, 4 * MIB),
    "stream_16MiB": Op(Kind.STREAM, 16 * MIB, 6, 1, 16 * MIB),
    "stream_64MiB": Op(Kind.STREAM, 64 * MIB, 2, 1, 16 * MIB),
    "rps_64": Op(Kind.ECHO, 64, 64 * 60, 64 * 5, 64, 64),
}


class Cannot(Exception):
    """This peer has no such operation; the text says why."""


class Caller(Protocol):
    """A peer's client: what one call does. Each checks that the answer is right."""

    async def echo(self, body: bytes, worker: int) -> None: ...
    async def take(self, body: bytes) -> None: ...
    async def stream(self, chunk: bytes, chunks: int) -> None: ...
    async def at_once(self, jobs: list[Callable[[], Awaitable[None]]]) -> None:
        """Run them all and wait for all."""
        ...

    def check_path(self) -> None:
        """Raises when the calls were not carried by what they should be."""
        ...

    async def read_line(self) -> str:
        """The next line of standard input, without blocking the loop."""
        ...


def say(**message: Any) -> None:
    """One line of JSON to the driver."""
    print(json.dumps(message), flush=True)


def check(got: object, wanted: object) -> None:
    """An answer must be what it should; a benchmark of wrong answers measures nothing."""
    if got != wanted:
        raise RuntimeError(f"wrong answer: {got!r:.80} instead of {wanted!r:.80}")


async def answer(caller: Caller, chunk_sizes: dict[str, int]) -> None:
    """Do what the driver asks until it ends; `chunk_sizes` by name of the variants of a stream."""
    while line := await caller.read_line():
        request = json.loads(line)
        try:
            say(**await _measure(caller, request, chunk_sizes))
        except Cannot as error:
            say(error=str(error))
        except Exception as error:  # noqa: BLE001 - the driver says so beside a null figure
            say(error=f"{type(error).__name__}: {error}"[:300])


async def _measure(caller: Caller, request: dict[str, Any], chunk_sizes: dict[str, int]) -> dict[str, Any]:
    kind, size, calls, workers = Kind(request["kind"]), request["size"], request["calls"], request["workers"]
    times_ms: list[float] = []
    chunk = chunk_sizes.get(request["variant"], size)
    body = bytes(range(256)) * (min(chunk, size) // 256) or bytes(size)

    async def one(worker: int) -> None:
        if kind is Kind.ECHO:
            await caller.echo(body, worker)
        elif kind is Kind.TAKE:
            await caller.take(body)
        else:
            await caller.stream(body, size // len(body))

    async def work(worker: int) -> None:
        for _ in range(calls // workers):
            start = time.perf_counter()
            await one(worker)
            times_ms.append((time.perf_counter() - start) * 1e3)

    begin = time.perf_counter()
    if workers == 1:
        await work(0)
    else:
        await caller.at_once([lambda worker=n: work(worker) for n in range(workers)])  # type: ignore[misc]
    wall_s = time.perf_counter() - begin
    caller.check_path()
    return {"times_ms": times_ms, "wall_s": wall_s}


def role() -> tuple[str, str, str]:
    """From the command line: "server" or "client", the address to call, and the peer's mode ("" is the usual one)."""
    match sys.argv[1:]:
        case ["server", *mode] if len(mode) < 2:
            return "server", "", "".join(mode)
        case ["client", address, *mode] if len(mode) < 2:
            return "client", address, "".join(mode)
    raise SystemExit(f"usage: {sys.argv[0]} server [MODE] | client ADDRESS [MODE]")
