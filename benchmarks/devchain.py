"""How fast is the development chain, and what does a block cost on disk?

The chain is a process of its own with a data directory, as `mesh-chain` starts it; everything goes over its websocket.
Empty blocks: `dev_newBlock`, one a call, each answered before the next is asked for, and 100 a call. Extrinsics: signed
before anything is timed, of 50 accounts with 20 ascending nonces each, all `add_to_delegate_stake`; sent without
waiting for answers, a block asked for after every 250, the clock stopped when the last answer is there; that all of
them succeeded is read from the delegate pool of the subnet. Bytes on disk: all files of the data directory after a
clean end, less those before, by block.
Run: python benchmarks/devchain.py [--rounds 5] [--blocks 500]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from coincurve import PrivateKey
from multiaddr import Multiaddr
from trio_websocket import WebSocketConnection, open_websocket_url

from mesh.devchain import scale as s
from mesh.devchain.extrinsic import SIGNED_V4, Era, Extrinsic
from mesh.devchain.pallets import SPEC_VERSION, TRANSACTION_VERSION
from mesh.devchain.pallets.network import storage
from mesh.devchain.runtime import Runtime
from mesh.identity import PeerKey, keccak256

ACCOUNTS, NONCES, PER_BLOCK = 50, 20, 250
TENSOR = 10**18
SUBNET = 128_001
STAKE = TENSOR
PEER = PeerKey.dev("bench").peer_id
BOOTNODE = Multiaddr(f"/ip4/127.0.0.1/tcp/31330/p2p/{PEER}").to_bytes()
KEYS = [PrivateKey(hashlib.sha256(b"bench %d" % number).digest()) for number in range(ACCOUNTS + 1)]


def address(key: PrivateKey) -> bytes:
    """Of an Ethereum-style account."""
    return keccak256(key.public_key.format(compressed=False)[1:])[-20:]


@contextmanager
def chain(folder: Path) -> Iterator[str]:
    """A chain process with this data directory; gives its URL, ends it cleanly."""
    funds = [f"0x{address(key).hex()}=100000" for key in KEYS]
    command = [sys.executable, "-m", "mesh.cli", "chain", "run", "--block-time", "manual", "--dev-rpc", "--port", "0",
               "--json", "--log-level", "WARNING", "--data-dir", str(folder), "--fund", *funds]  # fmt: skip
    env = {**os.environ, "XDG_DATA_HOME": str(folder / "home"), "MESH_PARENT_PID": str(os.getpid())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def sign(runtime: Runtime, key: PrivateKey, *, genesis: bytes, nonce: int, call: Any) -> bytes:
    """The bytes of an immortal extrinsic."""
    encoded = runtime.types.call.encode(call)
    ext = Extrinsic(b"", b"", address(key), b"", Era(b"\x00"), nonce, 0, call, encoded)
    payload = ext.payload(
        spec_version=SPEC_VERSION, transaction_version=TRANSACTION_VERSION, genesis=genesis, birth=genesis
    )
    signature = key.sign_recoverable(keccak256(payload), hasher=None)
    body = bytes([SIGNED_V4]) + ext.signer + signature + ext.era.raw + s.encode_compact(nonce) + b"\x00" + encoded
    return s.encode_compact(len(body)) + body


class Client:
    """JSON-RPC by hand."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.ident = 0

    async def send(self, method: str, *params: Any) -> None:
        """Ask, without waiting."""
        self.ident += 1
        await self.socket.send_message(
            json.dumps({"jsonrpc": "2.0", "id": self.ident, "method": method, "params": params})
        )

    async def answer(self) -> Any:
        """The next answer; an error ends the benchmark."""
        reply = json.loads(await self.socket.get_message())
        if "error" in reply:
            raise SystemExit(f"the chain refused: {reply['error']}")
        return reply["result"]

    async def ask(self, method: str, *params: Any) -> Any:
        """Ask and wait."""
        await self.send(method, *params)
        return await self.answer()


async def empty_blocks(client: Client, blocks: int) -> tuple[float, float]:
    """Blocks a second, one a call and 100 a call."""
    start = time.perf_counter()
    for _ in range(blocks):
        await client.ask("dev_newBlock")
    single = blocks / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(blocks // 100):
        await client.ask("dev_newBlock", {"count": 100})
    return single, blocks // 100 * 100 / (time.perf_counter() - start)


async def extrinsics(client: Client, runtime: Runtime, *, first_nonce: int) -> float:
    """Stake extrinsics a second, from the first submission to the last block."""
    genesis = bytes.fromhex((await client.ask("chain_getBlockHash", 0))[2:])
    if first_nonce == 0:
        info = {
            "name": b"bench", "repo": b"bench", "description": b"", "misc": b"", "min_stake": 100 * TENSOR,
            "max_stake": 1000 * TENSOR, "delegate_stake_percentage": TENSOR // 10,
            "initial_coldkeys": {address(key): 1 for key in KEYS[:3]}, "bootnodes": {str(PEER).encode(): BOOTNODE},
        }  # fmt: skip
        call = {"Network": {"register_subnet": {"max_cost": 2000 * TENSOR, "subnet_data": info}}}
        raw = sign(runtime, KEYS[-1], genesis=genesis, nonce=0, call=call)
        await client.ask("author_submitExtrinsic", "0x" + raw.hex())
        await client.ask("dev_newBlock")
    signed = []
    for nonce in range(first_nonce, first_nonce + NONCES):
        for key in KEYS[:ACCOUNTS]:
            call = {"Network": {"add_to_delegate_stake": {"subnet_id": SUBNET, "stake_to_be_added": STAKE}}}
            signed.append("0x" + sign(runtime, key, genesis=genesis, nonce=nonce, call=call).hex())
    pool = "0x" + storage.TotalSubnetDelegateStakeBalance.key(SUBNET).hex()

    async def total() -> int:
        raw = await client.ask("state_getStorage", pool)
        return int.from_bytes(bytes.fromhex((raw or "0x")[2:]), "little")

    before = await total()
    asked = len(signed) + len(signed) // PER_BLOCK
    start = time.perf_counter()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for number, raw in enumerate(signed, 1):
                await client.send("author_submitExtrinsic", raw)
                if number % PER_BLOCK == 0:
                    await client.send("dev_newBlock")

        nursery.start_soon(send)
        for _ in range(asked):
            await client.answer()
    took = time.perf_counter() - start
    if await total() - before != len(signed) * STAKE:
        raise SystemExit("not all extrinsics succeeded")
    return len(signed) / took


def size(folder: Path) -> int:
    """Bytes of the chain's files."""
    return sum(each.stat().st_size for each in folder.iterdir() if each.is_file())


async def measure(url: str, blocks: int, runtime: Runtime, *, first_nonce: int | None) -> Sequence[float]:
    """Empty blocks (one a call, 100 a call), or with `first_nonce`: extrinsics."""
    async with open_websocket_url(url) as socket:
        client = Client(socket)
        if first_nonce is None:
            return await empty_blocks(client, blocks)
        return [await extrinsics(client, runtime, first_nonce=first_nonce)]


def row(title: str, values: Sequence[float], unit: str) -> None:
    """One line: median, least and most."""
    print(f"| {title} | {statistics.median(values):,.0f} {unit} | {min(values):,.0f} to {max(values):,.0f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=500)
    options = parser.parse_args()
    runtime = Runtime(epoch_length=20)
    single, many, staked, bytes_empty, bytes_full = [], [], [], [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with chain(folder):
                pass
            start = size(folder)
            with chain(folder) as url:
                one, hundred = trio.run(lambda url=url: measure(url, options.blocks, runtime, first_nonce=None))
            empty = size(folder)
            made = options.blocks + options.blocks // 100 * 100
            with chain(folder) as url:
                (rate,) = trio.run(lambda url=url: measure(url, 0, runtime, first_nonce=0))
            full = size(folder)
        single.append(one)
        many.append(hundred)
        staked.append(rate)
        bytes_empty.append((empty - start) / made)
        bytes_full.append((full - empty) / (ACCOUNTS * NONCES // PER_BLOCK))
    load = os.getloadavg()[0]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f}; {options.rounds} rounds"
    )
    print("| what | median | least to most |\n| --- | --- | --- |")
    row("empty blocks, one a call", single, "blocks/s")
    row("empty blocks, 100 a call", many, "blocks/s")
    row("stake extrinsics, pipelined", staked, "extrinsics/s")
    row("on disk, an empty block", bytes_empty, "bytes")
    row(f"on disk, a block of {PER_BLOCK} stake extrinsics", bytes_full, "bytes")


if __name__ == "__main__":
    main()
