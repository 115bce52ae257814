"""Which call this task works for: an id that travels with calls and appears in log lines.

A trace begins with a call made outside of any other; the calls that a method makes while it answers belong to the
trace of its caller. Ids are those of W3C Trace Context (16 and 8 bytes), so `traceparent` can be handed on to other
systems.
"""

from __future__ import annotations

import random
from contextvars import ContextVar
from typing import NamedTuple


class Trace(NamedTuple):
    """Where a call belongs."""

    trace_id: bytes
    span_id: bytes
    """Of this call; a peer chose it, so it is unique only among honest ones."""

    @property
    def traceparent(self) -> str:
        """As an HTTP header's value."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-01"

    def __str__(self) -> str:
        return f"{self.trace_id.hex()[:8]}/{self.span_id.hex()[:8]}"


CURRENT: ContextVar[Trace | None] = ContextVar("mesh_trace", default=None)
"""The call that is being answered by this task; None outside of any."""


def child(rng: random.Random) -> Trace:
    """A new call's: of the current trace, or of a new one."""
    current = CURRENT.get()
    span = rng.getrandbits(64).to_bytes(8, "big")
    return Trace(rng.getrandbits(128).to_bytes(16, "big") if current is None else current.trace_id, span)
