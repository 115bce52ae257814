"""hivemind 1.1.12 as it uses itself: a ServicerBase and its stub, with p2pd beside each of both processes.

Runs in an environment of its own. p2pd encrypts, as it does by default; what looks for a way out of a home network
(port mapping, AutoNAT, relays) is off, as it only disturbs on loopback. The event loop is uvloop, as in hivemind's own
processes. A message is its Tensor, made before the time is taken, so that only the call is measured.

In the mode `raw`, streams are p2pd's binary streams, below hivemind's RPC: bytes and no messages.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, AsyncIterator  # noqa: UP035 - hivemind reads these hints, and knows only typing's

import hivemind
from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.utils import switch_to_uvloop
from ops import KIB, MIB, Cannot, answer, check, role, say

CHUNKS = {"messages of 64 KiB": 64 * KIB, "messages of 1 MiB": MIB}
RAW_CHUNKS = {"writes of 64 KiB": 64 * KIB, "writes of 1 MiB": MIB}
RAW = "bench_raw"


class BenchServicer(ServicerBase):
    """What is called."""

    async def rpc_echo(self, request: Tensor, context: P2PContext) -> Tensor:
        return request

    async def rpc_take(self, request: Tensor, context: P2PContext) -> Tensor:
        return Tensor(size=[len(request.buffer)])

    async def rpc_upload(self, request: AsyncIterator[Tensor], context: P2PContext) -> Tensor:
        size = 0
        async for tensor in request:
            size += len(tensor.buffer)
        return Tensor(size=[size])


async def take_raw(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Eight bytes of length, so many bytes, and the length back."""
    header = await reader.readexactly(8)
    left = int.from_bytes(header, "big")
    while left and (data := await reader.read(MIB)):
        left -= len(data)
    writer.write(header)
    await writer.drain()
    writer.close()


@lru_cache(maxsize=8)
def message(body: bytes) -> Tensor:
    return Tensor(buffer=body)


async def read_line() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


class Caller:
    """See ops.Caller."""

    read_line = staticmethod(read_line)

    def __init__(self, p2p: P2P, server: PeerID, is_raw: bool) -> None:
        self.p2p = p2p
        self.server = server
        self.is_raw = is_raw
        self.stub = BenchServicer.get_stub(p2p, server)

    async def echo(self, body: bytes, worker: int) -> None:
        self._needs_messages()
        check((await self.stub.rpc_echo(message(body))).buffer, body)

    async def take(self, body: bytes) -> None:
        self._needs_messages()
        check((await self.stub.rpc_take(message(body))).size[0], len(body))

    async def stream(self, chunk: bytes, chunks: int) -> None:
        if self.is_raw:
            return await self._stream_raw(chunk, chunks)
        tensor = message(chunk)

        async def requests() -> AsyncIterator[Tensor]:
            for _ in range(chunks):
                yield tensor

        check((await self.stub.rpc_upload(requests())).size[0], len(chunk) * chunks)

    async def at_once(self, jobs: list[Callable[[], Awaitable[None]]]) -> None:
        await asyncio.gather(*(job() for job in jobs))

    def check_path(self) -> None:
        """There is one path."""

    async def _stream_raw(self, chunk: bytes, chunks: int) -> None:
        _, reader, writer = await self.p2p.call_binary_stream_handler(self.server, RAW)
        header = (len(chunk) * chunks).to_bytes(8, "big")
        writer.write(header)
        for _ in range(chunks):
            writer.write(chunk)
            await writer.drain()
        check(await reader.readexactly(8), header)
        writer.close()

    def _needs_messages(self) -> None:
        if self.is_raw:
            raise Cannot("binary streams carry no messages")


async def main() -> None:
    part, address, mode = role()
    quiet = {"nat_port_map": False, "auto_nat": False, "use_relay": False}
    if part == "server":
        p2p = await P2P.create(**quiet)
        await BenchServicer().add_p2p_handlers(p2p)
        await p2p.add_binary_stream_handler(RAW, take_raw)
        maddrs = await p2p.get_visible_maddrs()
        say(address=str(maddrs[0]))
        await read_line()
    else:
        p2p = await P2P.create([address], **quiet)
        server = PeerID.from_base58(address.rpartition("/p2p/")[2])
        chunk_sizes = RAW_CHUNKS if mode == "raw" else CHUNKS
        say(what=f"hivemind {hivemind.__version__}", variants=list(chunk_sizes))
        await answer(Caller(p2p, server, mode == "raw"), chunk_sizes)
    await p2p.shutdown()


if __name__ == "__main__":
    switch_to_uvloop().run_until_complete(main())
