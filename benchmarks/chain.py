"""What does the chain client cost: metadata, queries, events and submissions, and how long does the event loop stall?

A dev chain in a process of its own, on loopback, which makes a block as soon as something waits for one; the client
here. Beside it, in the same run, unmodified substrate-interface against the same chain. The loop's stall is how much
later than asked a task that sleeps 1 ms wakes.

Run: python benchmarks/chain.py [--rounds 3] [--queries 500]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import trio

from mesh.chain import metadata as metadata_v14
from mesh.chain import runtime
from mesh.chain.dialect import peer_id_bytes
from mesh.chain.session import Breath
from mesh.chain.substrate import ChainConfig, SubstrateChain
from mesh.chain.types import FIRST_SUBNET_ID
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.node import run_chain
from mesh.identity import AccountKey, PeerKey

TENSOR = 10**18
RECORDED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "hypertensor_v14.hex"
SIGNER = AccountKey.from_private(b"\x11" * 32)
NODES = 64
COLDKEYS = [AccountKey.from_private(bytes((1, number)) * 16) for number in range(1, NODES + 1)]


# --- the chain, in its own process ------------------------------------------------------------------------------------


def serve(report: Connection, home: str) -> None:
    """A dev chain with a subnet of many nodes."""
    os.environ["XDG_DATA_HOME"] = home
    trio.run(_serve, report)


async def _serve(report: Connection) -> None:
    accounts = [key.account_id for key in (SIGNER, *COLDKEYS)]
    config = DevChainConfig(fund={f"0x{account.hex()}": 10**6 * TENSOR for account in accounts})
    dev = DevChain(config)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: run_chain(config, chain=dev, task_status=task_status))
        nursery.start_soon(_seal, dev)
        report.send(url)
        await trio.sleep_forever()


async def _seal(dev: DevChain) -> None:
    while True:
        if len(dev.pool):
            dev.new_block()
        await trio.sleep(0.001)


async def populate(chain: SubstrateChain) -> None:
    """A subnet of NODES nodes, registered before activation."""
    bootnode = PeerKey.dev("bootnode").peer_id
    address = bytes.fromhex("047f000001061f90")
    data = {
        "name": b"bench", "repo": b"bench", "description": b"", "misc": b"", "min_stake": 100 * TENSOR,
        "max_stake": 1000 * TENSOR, "delegate_stake_percentage": TENSOR // 10,
        "initial_coldkeys": {key.account_id: 1 for key in COLDKEYS}, "bootnodes": {peer_id_bytes(bootnode): address},
    }  # fmt: skip
    await chain.submit("register_subnet", {"max_cost": 10**24, "subnet_data": data}, COLDKEYS[0])
    for number, coldkey in enumerate(COLDKEYS):
        peer = {"peer_id": peer_id_bytes(PeerKey.dev(f"bench {number}").peer_id), "multiaddr": None}
        hotkey = runtime.blake2(coldkey.account_id)[:20]
        args = {
            "subnet_id": FIRST_SUBNET_ID, "hotkey": hotkey, "peer_info": peer, "delegate_reward_rate": 0,
            "stake_to_be_added": 100 * TENSOR, "max_burn_amount": 100 * TENSOR,
        }  # fmt: skip
        await chain.submit("register_subnet_node", args, coldkey)


# --- measuring --------------------------------------------------------------------------------------------------------


class Table:
    """Rows of the README: median, least and most of the rounds' figures."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[float]] = {}

    def add(self, what: str, whose: str, milliseconds: float) -> None:
        self._rows.setdefault((what, whose), []).append(milliseconds)

    def show(self) -> None:
        print("| what | whose | median ms | least–most |")
        print("| --- | --- | --- | --- |")
        for (what, whose), values in self._rows.items():
            print(f"| {what} | {whose} | {statistics.median(values):.2f} | {min(values):.2f}–{max(values):.2f} |")


def timed(act: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1000


async def atimed(act: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    await act()
    return (time.perf_counter() - start) * 1000


def part(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """Milliseconds that a task sleeping 1 ms overslept, while the body runs."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            due = trio.current_time() + 0.001
            await trio.sleep_until(due)
            late.append((trio.current_time() - due) * 1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await trio.sleep(0.01)
        late.clear()
        yield late
        nursery.cancel_scope.cancel()


def client(url: str, folder: Path, *, cache: Path | None = None) -> SubstrateChain:
    return SubstrateChain(ChainConfig(urls=(url,)), journal_dir=folder, cache_dir=cache, rng=random.Random(1))


async def connect(table: Table, url: str, folder: Path, name: str, cache: Path | None) -> None:
    async with stalls() as late:
        async with trio.open_nursery() as nursery:
            chain = client(url, folder, cache=cache)
            table.add(f"connect, {name}", "mesh", await atimed(lambda: nursery.start(chain.run)))
            nursery.cancel_scope.cancel()
    table.add(f"loop stall while connecting, {name}: most", "mesh", max(late))


async def ours(table: Table, url: str, folder: Path, queries: int) -> None:
    cache = folder / "cache"
    await connect(table, url, folder, "first time", None)
    await connect(table, url, folder, "writing the cache", cache)
    await connect(table, url, folder, "metadata cached", cache)
    async with stalls() as late:
        await trio.sleep(0.5)
    table.add("loop stall with nothing to do: most", "mesh", max(late))
    async with trio.open_nursery() as nursery:
        chain = client(url, folder)
        await nursery.start(chain.run)
        account = SIGNER.account_id

        async def measure(what: str, count: int, ask: Callable[[], Awaitable[object]]) -> None:
            async with stalls() as late:
                cpu = time.process_time()
                times = [await atimed(ask) for _ in range(count)]
                cpu = time.process_time() - cpu
            table.add(f"{what}: CPU, the ticking task's included", "mesh", cpu * 1000 / count)
            table.add(f"{what}: p50", "mesh", part(times, 0.5))
            table.add(f"{what}: p99", "mesh", part(times, 0.99))
            table.add(f"{what}: loop stall p99", "mesh", part(late, 0.99))
            table.add(f"{what}: loop stall most", "mesh", max(late))

        await measure("query System.Account", queries, lambda: chain.storage("System", "Account", account))
        await measure("head", queries, chain.head)
        await measure(f"snapshot of {NODES} nodes", queries // 10, lambda: chain.snapshot(FIRST_SUBNET_ID))
        await measure("events of a block", queries // 5, lambda: events_of_head(chain))
        number = random.Random(2)

        async def submit() -> None:
            await chain.submit("System.remark", {"remark": number.randbytes(32)}, SIGNER)

        await measure("sign, submit, found in its block", queries // 10, submit)
        nursery.cancel_scope.cancel()


async def events_of_head(chain: SubstrateChain) -> object:
    return await chain.events((await chain.head()).hash)


def theirs(table: Table, url: str, queries: int) -> None:
    from substrateinterface import Keypair, KeypairType, SubstrateInterface

    def start() -> None:
        substrate = SubstrateInterface(url=url, use_remote_preset=False)
        substrate.init_runtime()
        substrate.close()

    table.add("connect, first time", "substrate-interface", timed(start))
    substrate = SubstrateInterface(url=url, use_remote_preset=False)
    substrate.init_runtime()
    keypair = Keypair.create_from_private_key(SIGNER.private.hex(), crypto_type=KeypairType.ECDSA)

    def measure(what: str, count: int, ask: Callable[[], object]) -> None:
        cpu = time.process_time()
        times = [timed(ask) for _ in range(count)]
        table.add(f"{what}: CPU", "substrate-interface", (time.process_time() - cpu) * 1000 / count)
        table.add(f"{what}: p50", "substrate-interface", part(times, 0.5))
        table.add(f"{what}: p99", "substrate-interface", part(times, 0.99))

    measure("query System.Account", queries, lambda: substrate.query("System", "Account", [SIGNER.address]))
    measure("events of a block", queries // 5, substrate.get_events)
    number = random.Random(3)

    def submit() -> None:
        call = substrate.compose_call("System", "remark", {"remark": f"0x{number.randbytes(32).hex()}"})
        extrinsic = substrate.create_signed_extrinsic(call=call, keypair=keypair, era={"period": 64})
        substrate.submit_extrinsic(extrinsic, wait_for_inclusion=True)

    measure("sign, submit, found in its block", queries // 10, submit)
    substrate.close()


def decode(table: Table) -> None:
    """Metadata by its bytes alone: the real runtime's where it was recorded beside this checkout, or ours."""
    from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
    from scalecodec.type_registry import load_type_registry_preset

    if RECORDED.exists():
        raw = bytes.fromhex(RECORDED.read_text().strip()[2:])
    else:
        raw = DevChain(DevChainConfig()).runtime.metadata
    what = f"decode {len(raw) // 1000} KB of metadata"
    table.add(what, "mesh", timed(lambda: metadata_v14.parse(raw)))

    def foreign() -> None:
        config = RuntimeConfigurationObject()
        config.update_type_registry(load_type_registry_preset("core"))
        decoded = config.create_scale_object("MetadataVersioned", ScaleBytes(raw))
        decoded.decode()
        config.add_portable_registry(decoded)

    table.add(what, "substrate-interface", timed(foreign))


async def decode_beside_a_loop(table: Table) -> None:
    """The same in a worker thread, as the client does it."""
    if not RECORDED.exists():
        return
    raw = bytes.fromhex(RECORDED.read_text().strip()[2:])
    async with stalls() as late:
        for _ in range(5):
            await trio.to_thread.run_sync(lambda: metadata_v14.parse(raw, Breath()))
    table.add("loop stall while metadata is decoded: most", "mesh", max(late))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    table = Table()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, folder), daemon=True)
        process.start()
        url: str = here.recv()

        async def prepare() -> None:
            async with trio.open_nursery() as nursery:
                chain = client(url, Path(folder) / "prepare")
                await nursery.start(chain.run)
                await populate(chain)
                nursery.cancel_scope.cancel()

        trio.run(prepare)
        for number in range(options.rounds):
            decode(table)
            trio.run(decode_beside_a_loop, table)
            trio.run(ours, table, url, Path(folder) / f"round {number}", options.queries)
            theirs(table, url, options.queries)
        process.kill()
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}; {options.rounds} rounds of {options.queries} queries; load {load:.1f} to "
        f"{os.getloadavg()[0]:.1f}, these included\n"
    )
    table.show()


if __name__ == "__main__":
    sys.exit(main())
