"""py-libp2p as it comes (noise, yamux), with the simplest protocol that does the job: frames of a 4-byte length on
streams that stay open, and bulk as raw writes of 64 KiB. It has no RPC of its own; this is what it costs below one.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr
from ops import KIB, answer, check, role, say
from trio_lines import at_once, read_line

ECHO, TAKE, UPLOAD = (TProtocol(f"/bench/{name}/1.0.0") for name in ("echo", "take", "upload"))
CHUNKS = {"writes of 64 KiB": 64 * KIB}


async def read_exactly(stream: Any, size: int) -> bytes:
    """b"" when the stream ended before the first byte."""
    data = await stream.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    left = size - len(data)
    while left:
        parts.append(await stream.read(left))
        if not parts[-1]:
            raise EOFError(f"the stream ended {left} bytes early")
        left -= len(parts[-1])
    return b"".join(parts)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def read_frame(stream: Any) -> bytes | None:
    header = await read_exactly(stream, 4)
    return await read_exactly(stream, int.from_bytes(header, "big")) if header else None


async def echo(stream: Any) -> None:
    while (body := await read_frame(stream)) is not None:
        await stream.write(frame(body))


async def take(stream: Any) -> None:
    while (body := await read_frame(stream)) is not None:
        await stream.write(frame(len(body).to_bytes(8, "big")))


async def upload(stream: Any) -> None:
    while header := await read_exactly(stream, 8):
        left = int.from_bytes(header, "big")
        while left:
            data = await stream.read(min(left, 64 * KIB))
            if not data:
                return
            left -= len(data)
        await stream.write(header)


def until_closed(handler: Any) -> Any:
    """py-libp2p ends the host for an error in a handler; the caller's leaving is none."""

    async def handle(stream: Any) -> None:
        try:
            await handler(stream)
        except Exception as error:  # noqa: BLE001 - what a left connection raises is not one type
            logging.info("stream ended: %r", error)

    return handle


class Caller:
    """See ops.Caller."""

    read_line = staticmethod(read_line)
    at_once = staticmethod(at_once)

    def __init__(self, host: Any, server: Any) -> None:
        self.host = host
        self.server = server
        self.streams: dict[tuple[str, int], Any] = {}

    async def _stream(self, protocol: TProtocol, worker: int = 0) -> Any:
        key = (protocol, worker)
        if key not in self.streams:
            self.streams[key] = await self.host.new_stream(self.server, [protocol])
        return self.streams[key]

    async def echo(self, body: bytes, worker: int) -> None:
        stream = await self._stream(ECHO, worker)
        await stream.write(frame(body))
        check(await read_frame(stream), body)

    async def take(self, body: bytes) -> None:
        stream = await self._stream(TAKE)
        await stream.write(frame(body))
        check(await read_frame(stream), len(body).to_bytes(8, "big"))

    async def stream(self, chunk: bytes, chunks: int) -> None:
        stream = await self._stream(UPLOAD)
        header = (len(chunk) * chunks).to_bytes(8, "big")
        await stream.write(header)
        for _ in range(chunks):
            await stream.write(chunk)
        check(await read_exactly(stream, 8), header)

    def check_path(self) -> None:
        """There is one path."""


async def main() -> None:
    part, address, _ = role()
    host = new_host(key_pair=create_new_key_pair())
    for protocol, handler in ((ECHO, echo), (TAKE, take), (UPLOAD, upload)):
        host.set_stream_handler(protocol, until_closed(handler))
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        if part == "server":
            say(address=f"{host.get_transport_addrs()[0]}/p2p/{host.get_id()}")
            await read_line()
        else:
            info = info_from_p2p_addr(Multiaddr(address))
            await host.connect(info)
            say(what=f"py-libp2p {version('libp2p')}", variants=list(CHUNKS))
            await answer(Caller(host, info.peer_id), CHUNKS)
        with trio.move_on_after(3):
            await host.close()


if __name__ == "__main__":
    trio.run(main)
