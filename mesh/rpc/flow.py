"""Credit: who may send how many bytes. PURE.

Three bounds keep a slow or hostile reader from costing memory. The channel's window counts body bytes that are on their
way on the whole channel (LinkLimits.window_bytes; mesh.rpc.link). A call's credit counts, per direction, what its
receiver has agreed to hold: a first amount that may come unasked, and more once the receiver has checked size and
permission, or its reader has taken messages out. A stale budget says how much may still come for calls that are over.
"""

from __future__ import annotations

from typing import NamedTuple

from mesh.errors import RemoteProtocolError
from mesh.rpc.frame import MAX_BODY_BYTES, MESSAGE_COST


class LinkLimits(NamedTuple):
    """Sizes that both ends of a channel keep, by what carries it."""

    max_frame_bytes: int
    """A whole frame with its length field."""
    window_bytes: int
    """Body bytes on their way, per channel and direction."""
    first_credit_bytes: int
    """What a message may send before its receiver agreed to take it (authorized, not too large)."""
    stream_window_bytes: int
    """What a stream of messages may hold unread at its receiver, besides one message that is larger."""


LIBP2P_LINK = LinkLimits(64 * 1024, 192 * 1024, 32 * 1024, 128 * 1024)
"""On a libp2p stream. A frame is one yamux frame; the window is below yamux's first window of 256 KiB, so that a reader
that stalls never runs into py-libp2p's 5 s reset of a write beyond it."""
DATA_LINK = LinkLimits(256 * 1024 + 2048, 4 * 1024 * 1024, 64 * 1024, 4 * 1024 * 1024)
"""On a data connection, where TCP alone holds a writer back: few large frames cost least."""


class SendCredit:
    """What we may still send in one direction of a call."""

    __slots__ = ("left",)

    def __init__(self, first: int) -> None:
        self.left = first

    def add(self, amount: int) -> None:
        """The receiver grants more; capped, as a receiver that grants without end means no harm to us."""
        self.left = min(self.left + amount, MAX_BODY_BYTES)


class Intake:
    """What the other side may send in one direction of a call, and what of it lies unread here.

    `outstanding` bytes may come and have not; `held` have come and were not taken by the reader. A stream keeps
    `outstanding + held` at its window, and above it only by what one large message lacks.
    """

    __slots__ = ("held", "outstanding", "window")

    def __init__(self, first: int, *, window: int = 0) -> None:
        self.outstanding = first
        self.held = 0
        self.window = window

    def came(self, amount: int) -> None:
        """Bytes have come. Raises RemoteProtocolError when they were not granted."""
        if amount > self.outstanding:
            raise RemoteProtocolError(f"{amount} bytes where {self.outstanding} were granted")
        self.outstanding -= amount
        self.held += amount

    def need(self, amount: int) -> int:
        """What to grant so that `amount` more bytes can come; 0 when nothing."""
        grant = max(0, amount - self.outstanding)
        self.outstanding += grant
        return grant

    def took(self, amount: int) -> int:
        """The reader took `amount` bytes out. Returns what to grant now: quarters of the window, so that grants are
        few, or whatever is missing when nothing is held any more."""
        self.held -= amount
        free = self.window - self.held - self.outstanding
        if free <= 0 or (free * 4 < self.window and (self.held or self.outstanding >= MESSAGE_COST)):
            return 0
        self.outstanding += free
        return free


class Stale:
    """How many more bytes may come for calls nobody waits for any more."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def expect(self, amount: int) -> None:
        """Bytes the sender may have been sending when the call was given up."""
        self._bytes += max(0, amount)

    def take(self, amount: int) -> None:
        """Raises RemoteProtocolError when nobody can have allowed these bytes."""
        self._bytes -= amount
        if self._bytes < 0:
            raise RemoteProtocolError("data for a call that is over or never was")
