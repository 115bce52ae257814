"""The Network protocol: authenticated streams between PeerIDs, whatever carries them.

`mesh.net.libp2p.Libp2pNetwork` is the real one, `mesh.testing.SimNetwork` the simulated one; both pass
tests/contract/test_network.py. Whoever implements it guarantees that `Stream.remote` was proven by a handshake.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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


class Network(Protocol):
    """A node's place on the network."""

    @property
    def local(self) -> PeerInfo:
        """Our id and the addresses we announce."""
        ...

    def serve(self, protocol: str, handler: Handler, *, max_streams: int = 256) -> None:
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

    async def run(self, *, task_status: trio.TaskStatus[PeerInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled; started(local) once reachable. Raises ListenFailed."""
        ...
