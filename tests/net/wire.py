"""Connections in memory for tests of muxers: what noise gives, without noise."""

import struct
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError

HEADER = struct.Struct("!BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class Wire:
    """One end. Each write is one message; a message that is missing from the sequence is noticed, as noise would."""

    def __init__(self, *, is_initiator: bool, out: Any, into: Any) -> None:
        self.is_initiator = is_initiator
        self._out, self._into = out, into
        self._buffer = bytearray()
        self._sequence = 0
        self._expected = 0
        self.gate: trio.Event | None = None
        """While it is set to an unset event, writes block as on a full socket buffer."""

    async def write(self, data: bytes) -> None:
        sequence, self._sequence = self._sequence, self._sequence + 1
        if self.gate is not None:
            await self.gate.wait()
        try:
            await self._out.send((sequence, bytes(data)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("closed") from error

    async def read(self, n: int | None = None) -> bytes:
        if not self._buffer:
            try:
                sequence, data = await self._into.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("closed") from error
            if sequence != self._expected:
                raise ConnectionClosedError("cannot decrypt: a message is missing")
            self._expected += 1
            self._buffer += data
        taken = bytes(self._buffer if n is None else self._buffer[:n])
        del self._buffer[: len(taken)]
        return taken

    async def close(self) -> None:
        self._out.close()
        self._into.close()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def get_transport_addresses(self) -> list[Any]:
        return []

    def get_connection_type(self) -> None:
        return None

    async def send_frame(self, kind: int, flags: int, stream: int, body: bytes | int = b"", version: int = 0) -> None:
        """For a hostile end: one yamux frame."""
        length, data = (body, b"") if isinstance(body, int) else (len(body), body)
        await self.write(HEADER.pack(version, kind, flags, stream, length) + data)

    async def receive_frame(self) -> tuple[int, int, int, int, bytes]:
        """For a hostile end: type, flags, stream, length, body."""
        _, kind, flags, stream, length = HEADER.unpack(await self._exactly(HEADER.size))
        return kind, flags, stream, length, await self._exactly(length) if kind == DATA else b""

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self.read(size - len(data))
        return data


def wires(capacity: float = 1000) -> tuple[Wire, Wire]:
    """Two ends; `capacity` messages fit between them in each direction."""
    to_b, from_a = trio.open_memory_channel[tuple[int, bytes]](capacity)
    to_a, from_b = trio.open_memory_channel[tuple[int, bytes]](capacity)
    return Wire(is_initiator=True, out=to_b, into=from_b), Wire(is_initiator=False, out=to_a, into=from_a)
