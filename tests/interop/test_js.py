"""A js-libp2p node with its Kademlia DHT in one network with ours (`make test-npm`): it makes and signs mesh records
itself, puts, gets and provides through our nodes, and ours through it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.auth.authorizer import PeerClass
from mesh.dht import Want
from mesh.identity import PeerKey
from mesh.kad import ipfs
from mesh.kad.record import Record
from mesh.peer import PeerID, PeerInfo
from tests.interop.foreign import GENESIS, SUBNET, Members, nodes, now
from tests.net.nodes import until

HERE = Path(__file__).parent / "js"
DIGESTS = tuple(b"\x12\x20" + bytes([number]) * 32 for number in (1, 2))

pytestmark = pytest.mark.npm


class Js:
    """The other process: a JSON line in, a JSON line out."""

    def __init__(self, process: trio.Process, hello: dict[str, Any], lines: AsyncIterator[bytes]) -> None:
        self._process = process
        self._lines = lines
        self.peer = PeerID.parse(hello["peer"])
        self.info = PeerInfo.parse(hello["addresses"][0])

    async def __call__(self, command: str, **options: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps({"command": command, **options}).encode() + b"\n")
        with trio.fail_after(30):
            answer: dict[str, Any] = json.loads(await anext(self._lines))
        assert "error" not in answer, answer["error"]
        return answer

    async def record(self, name: str, value: str) -> bytes:
        """Signed by the js node with its own key."""
        at_ms = int(now() * 1000)
        signed = await self(
            "sign",
            name=name,
            value=value,
            expiry_ms=at_ms + 600_000,
            seq=at_ms,
            subnet_id=SUBNET,
            genesis=GENESIS.hex(),
        )
        return bytes.fromhex(signed["record"])


async def _lines(process: trio.Process) -> AsyncIterator[bytes]:
    assert process.stdout is not None
    buffer = b""
    async for data in process.stdout:
        *whole, buffer = (buffer + data).split(b"\n")
        for line in whole:
            yield line


@asynccontextmanager
async def js_node() -> AsyncIterator[Js]:
    if shutil.which("node") is None or not (HERE / "node_modules").exists():
        pytest.skip("no Node.js, or its packages are not installed: make test-npm installs them")
    process = await trio.lowlevel.open_process(
        ["node", "node.mjs"], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    lines = _lines(process)
    try:
        with trio.fail_after(30):
            hello = json.loads(await anext(lines))
        yield Js(process, hello, lines)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            with contextlib.suppress(trio.BrokenResourceError):
                await lines.aclose()  # type: ignore[attr-defined]


async def test_js_and_ours_read_and_write_each_other() -> None:
    async with js_node() as js, nodes(2) as ours:
        (first, info, _), (second, _, _) = ours
        assert (await js("connect", address=info.multiaddrs()[0]))["peers"] >= 1
        # Theirs signs and puts through ours; ours have it.
        record = await js.record("t/theirs", "from js")
        assert str(info.peer_id) in (await js("put", key="/t/theirs", record=record.hex()))["stored"]
        found = await second.get(b"t/theirs")
        assert [(r.owner, r.value) for r in found] == [(js.peer, b"from js")]
        # Ours meet theirs, put to it and get from it.
        await until(lambda: js.peer in {known.peer_id for known in first.peers})
        report = await first.put(b"t/ours", b"from mesh", ttl_s=600)
        assert js.peer in report.stored
        values = (await js("get", key="/t/ours"))["values"]
        assert {Record.from_bytes(bytes.fromhex(value)).value for value in values} == {b"from mesh"}
        assert (await second.get(b"t/ours", want=Want.LATEST))[0].value == b"from mesh"
        # Two owners under a key: a container, readable as such.
        await first.put(b"t/both", b"1", ttl_s=600)
        await second.put(b"t/both", b"2", ttl_s=600)
        for value in (await js("get", key="/t/both"))["values"]:
            assert ipfs.unpack_records(bytes.fromhex(value))
        # Providers and peers, both ways.
        await js("provide", digest=DIGESTS[0].hex())
        assert js.peer in {provider.peer_id for provider in await second.find_providers(DIGESTS[0])}
        await second.provide(DIGESTS[1])
        providers = (await js("providers", digest=DIGESTS[1].hex()))["providers"]
        assert str(PeerKey.dev("interop-1").peer_id) in providers
        assert (await js("find", peer=str(PeerKey.dev("interop-1").peer_id)))["addresses"]
        assert (await second.find_peer(js.peer)).addrs


async def test_ours_join_through_a_js_node() -> None:
    async with js_node() as js, nodes(1) as ours:
        ((dht, _, _),) = ours
        await dht.meet(js.info)
        assert js.peer in {known.peer_id for known in dht.peers}
        report = await dht.put(b"t/x", b"v", ttl_s=600)
        assert report.stored == (js.peer,)


@pytest.mark.parametrize("others", [PeerClass.GUEST, PeerClass.PUBLIC])
async def test_in_a_staked_network_js_may_not_put_and_reads_only_where_guests_may(others: PeerClass) -> None:
    members = Members({PeerKey.dev("interop-0").peer_id}, others=others)
    async with js_node() as js, nodes(1, authorizer=members) as ours:
        ((dht, info, _),) = ours
        await dht.put(b"t/ours", b"v", ttl_s=600)
        await js("connect", address=info.multiaddrs()[0])
        record = await js.record("t/theirs", "from js")
        stored = (await js("put", key="/t/theirs", record=record.hex()))["stored"]
        assert str(info.peer_id) not in stored
        assert dht.gauges()["records"] == 1
        values = (await js("get", key="/t/ours"))["values"]
        assert bool(values) == (others is PeerClass.GUEST)
        assert js.peer not in {known.peer_id for known in dht.peers}
