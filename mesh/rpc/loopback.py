"""A stream from a node to itself: calls to our own servicers pass the same frames, limits and errors as others'."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from mesh.errors import StreamBroken
from mesh.peer import PeerID

_MAX_UNREAD: Final = 1024 * 1024


class _Pipe:
    """Bytes in one direction."""

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.unread = 0
        self.is_ended = False
        self.is_broken = False
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class LoopStream:
    """One end (mesh.net.base.Stream)."""

    def __init__(self, local: PeerID, out: _Pipe, into: _Pipe) -> None:
        self._local = local
        self._out = out
        self._into = into

    @property
    def remote(self) -> PeerID:
        """Ourselves."""
        return self._local

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See mesh.net.base.Stream."""
        await trio.lowlevel.checkpoint()
        pipe = self._out
        while pipe.unread >= _MAX_UNREAD and not (pipe.is_broken or pipe.is_ended):
            await pipe.changed.wait()
        if pipe.is_broken or pipe.is_ended:
            raise StreamBroken("the call to this node itself was closed")
        if data:
            pipe.chunks.append(bytes(data))
            pipe.unread += len(data)
            pipe.wake()

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See mesh.net.base.Stream."""
        await trio.lowlevel.checkpoint()
        pipe = self._into
        while not pipe.chunks:
            if pipe.is_broken:
                raise StreamBroken("the call to this node itself was closed")
            if pipe.is_ended:
                return b""
            await pipe.changed.wait()
        data = pipe.chunks.popleft()
        if len(data) > max_bytes:
            pipe.chunks.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        pipe.unread -= len(data)
        pipe.wake()
        return data

    async def aclose(self) -> None:
        """See mesh.net.base.Stream."""
        self._out.is_ended = self._into.is_broken = True
        self._out.wake()
        self._into.wake()

    async def reset(self) -> None:
        """See mesh.net.base.Stream."""
        self._out.is_broken = self._into.is_broken = True
        self._out.wake()
        self._into.wake()


def loop(local: PeerID) -> tuple[LoopStream, LoopStream]:
    """Both ends of a stream from `local` to itself."""
    there, back = _Pipe(), _Pipe()
    return LoopStream(local, there, back), LoopStream(local, back, there)
