"""run_sim: a trio program in virtual time with a seeded scheduler. Same seed, same trace.

Trio shuffles the tasks that are ready at once; the hook it has for deterministic test runs (the one
pytest-trio uses under hypothesis) sorts them first, so a seeded shuffle decides, never the address of an
object. Time is MockClock's and jumps when all tasks wait. Real sockets and threads would let the outside
decide, so they raise.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeVar

import trio
from trio._core import _run  # the scheduler's hook for deterministic tests has no public name
from trio.testing import MockClock

from mesh.errors import LocalProtocolError

T = TypeVar("T")

MAX_VIRTUAL_S: Final = 30 * 86400.0
"""A simulation that runs longer than this in virtual time has lost its way."""


class _NoSockets(trio.abc.SocketFactory):
    def socket(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise LocalProtocolError("a simulation opens no sockets: use SimNetwork")


async def _no_threads(*args: Any, **kwargs: Any) -> NoReturn:
    raise LocalProtocolError("a simulation starts no threads: their timing is not reproducible")


def run_sim(main: Callable[[], Awaitable[T]], seed: int) -> T:
    """Run `main` under a MockClock with autojump and a scheduler seeded by `seed`; return its result.

    Raises what `main` raises, LocalProtocolError where it uses trio sockets or threads, and
    trio.TooSlowError after MAX_VIRTUAL_S. Not reentrant: call it from ordinary (not async) tests.
    """

    async def bounded() -> T:
        trio.socket.set_custom_socket_factory(_NoSockets())
        with trio.fail_after(MAX_VIRTUAL_S):
            return await main()

    before = (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r, trio.to_thread.run_sync)
    # Setattr by name, as these are not meant to be assigned: the run below is the only one that sees them.
    _patch(_run, _ALLOW_DETERMINISTIC_SCHEDULING=True, _r=random.Random(seed))
    _patch(trio.to_thread, run_sync=_no_threads)
    try:
        return trio.run(bounded, clock=MockClock(autojump_threshold=0))
    finally:
        _patch(_run, _ALLOW_DETERMINISTIC_SCHEDULING=before[0], _r=before[1])
        _patch(trio.to_thread, run_sync=before[2])


def _patch(module: object, **values: object) -> None:
    for name, value in values.items():
        setattr(module, name, value)
