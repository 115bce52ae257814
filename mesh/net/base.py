"""The Network protocol: authenticated streams between PeerIDs, whatever carries them.

`mesh.net.libp2p.Libp2pNetwork` is the real one, `mesh.testing.SimNetwork` the simulated one; both pass
tests/contract/test_network.py. Whoever implements it guarantees that `Stream.remote` was proven by a handshake.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from mesh.peer import PeerID, PeerInfo


class Stream(Protocol):
    """One ordered, reliable, bidirectional byte stream to an authenticated peer."""

    @property
    def remote(self) -> PeerID:
        """Who is at the other end, proven by the connection's handshake."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. Raises StreamBroken. Cancelled: the stream is no longer usable and must be closed."""
        ...

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """At least one byte, or b"" once the other side has ended. Raises StreamBroken."""
        ...

    async def aclose(self) -> None:
        """End the stream; never raises, takes a bounded time."""
        ...

    async def reset(self) -> None:
        """Abort the stream at once; never raises."""
        ...


Handler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. Whatever it raises ends that stream only."""


class Protection(enum.Enum):
    """What a tag asks of the network when connections are closed for economy (mesh.net.manager)."""

    ALWAYS = enum.auto()
    """Never close it."""
    RATHER = enum.auto()
    """Close those first in which fewer parts of the node have an interest."""


class Lifetime(enum.Enum):
    """How the inbound streams of a protocol end."""

    EXCHANGE = enum.auto()
    """Each carries one exchange: while its handler runs, a drain waits for it."""
    CHANNEL = enum.auto()
    """Each is open for long and mostly idle: a drain does not wait for it, but for what `Network.hold` marks."""


class Network(Protocol):
    """A node's place on the network."""

    @property
    def local(self) -> PeerInfo:
        """Our id and the addresses we announce."""
        ...

    @property
    def draining(self) -> trio.Event:
        """Set once `drain` has begun: take no new work from others, finish what runs."""
        ...

    def serve(
        self, protocol: str, handler: Handler, *, max_streams: int = 256, lifetime: Lifetime = Lifetime.EXCHANGE
    ) -> None:
        """Answer inbound streams of `protocol`, at most `max_streams` at once (further ones are reset)."""
        ...

    def learn(self, info: PeerInfo) -> None:
        """Remember addresses of a peer (bounded, newest first)."""
        ...

    def known(self, peer: PeerID) -> PeerInfo:
        """What we know of a peer's addresses; empty when nothing."""
        ...

    async def connect(self, info: PeerInfo) -> None:
        """Be connected to the peer. Raises DialFailed."""
        ...

    async def open(self, peer: PeerID, protocol: str) -> Stream:
        """A fresh stream speaking `protocol`, dialling if needed. Raises DialFailed, StreamBroken."""
        ...

    async def disconnect(self, peer: PeerID) -> None:
        """Drop all connections to the peer; never raises."""
        ...

    def connected(self) -> tuple[PeerID, ...]:
        """Peers with a live connection, in a stable order."""
        ...

    def protect(self, peer: PeerID, tag: str, *, keep: Protection = Protection.ALWAYS) -> None:
        """Keep connections to the peer when some are closed for economy; `tag` names who wants it, and each part of a
        node sets and removes its own. Connects nobody, and no limit against strangers yields to it.
        Raises LocalProtocolError when too many are protected."""
        ...

    def unprotect(self, peer: PeerID, tag: str) -> None:
        """Take back a `protect`; nothing happens when there was none."""
        ...

    def hold(self) -> AbstractContextManager[None]:
        """While inside, a drain waits: for one call of a channel, say."""
        ...

    async def drain(self) -> None:
        """Refuse new connections and streams from others, and wait until what runs for them has ended, for a bounded
        time (`drain_s`). Our own calls go on. Only the end of `run` undoes it; cancelled, it has still begun."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[PeerInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled; started(local) once reachable. Raises ListenFailed."""
        ...
