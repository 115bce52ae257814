"""The end of a network in good order: no new work from others, and a bounded wait for what still runs for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Drain:
    """Counts what runs for others, and waits for it once begun."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        """Set for good by `finish`."""
        self._held = 0
        self._released = trio.Event()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While inside, `finish` waits."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if not self._held:
                self._released.set()

    async def finish(self, within_s: float) -> None:
        """Begin, and return when nothing is held any more or `within_s` have passed."""
        self.begun.set()
        with trio.move_on_after(within_s):
            while self._held:
                self._released = trio.Event()
                await self._released.wait()
