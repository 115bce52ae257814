"""The chain on a real websocket, by hand: what clients of others never send too. (tests/interop drives those.)"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, open_websocket_url

from mesh.devchain import scale as s
from mesh.devchain.node import DevChain, DevChainConfig, PoolConfig, ServerConfig, run_chain
from mesh.devchain.pallets import system
from mesh.devchain.pallets.network import storage
from mesh.devchain.pallets.transaction_payment import BASE_FEE_PLANCK
from mesh.devchain.server import refusal
from mesh.errors import ConfigError, ListenFailed

from .serving import ALICE, BOB, CAROL, FUND, running
from .test_runtime import events, transfer


@pytest.fixture(autouse=True)
def own_data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a chain notes its genesis in the user's data folder; here that is a temporary one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


async def test_restart_keeps_what_clients_saw(tmp_path: Path) -> None:
    folder = tmp_path / "chain"
    async with running(data_dir=folder) as (chain, _):
        chain.submit(transfer(chain))
        chain.new_block()
        genesis, head = chain.genesis_hash, chain.best.hash
    async with running(data_dir=folder) as (chain, url):
        with pytest.raises(ConfigError, match="another dev chain runs"):
            await run_chain(chain.config)

        async with bare(url) as client:
            assert await client.get("chain_getBlockHash", 0) == "0x" + genesis.hex()
            assert await client.get("chain_getHead") == "0x" + head.hex()
            assert await client.get("account_nextIndex", ALICE.hex) == 1


class Client:
    """A bare JSON-RPC client."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.ident = 0
        self.notes: list[dict[str, Any]] = []

    async def ask(self, method: str, *params: Any) -> dict[str, Any]:
        """The whole reply; notifications met before it are kept in `notes`."""
        self.ident += 1
        body = {"jsonrpc": "2.0", "id": self.ident, "method": method, "params": list(params)}
        await self.socket.send_message(json.dumps(body))
        while True:
            message = await self.read()
            if message.get("id") == self.ident:
                return message
            self.notes.append(message)

    async def get(self, method: str, *params: Any) -> Any:
        """The result; an error fails the test."""
        reply = await self.ask(method, *params)
        assert "error" not in reply, reply
        return reply["result"]

    async def code(self, method: str, *params: Any) -> int:
        """The error's code."""
        reply = await self.ask(method, *params)
        assert "error" in reply, reply
        return int(reply["error"]["code"])

    async def read(self) -> dict[str, Any]:
        """The next message."""
        with trio.fail_after(20):
            message: dict[str, Any] = json.loads(await self.socket.get_message())
        return message

    async def note(self) -> Any:
        """The result of the next notification."""
        message = self.notes.pop(0) if self.notes else await self.read()
        return message["params"]["result"]


@asynccontextmanager
async def bare(url: str, **options: Any) -> AsyncIterator[Client]:
    """A bare client at a url."""
    async with open_websocket_url(url, **options) as socket:
        yield Client(socket)


async def test_chain_and_state_methods() -> None:
    async with running() as (chain, url), bare(url) as client:
        chain.submit(transfer(chain))
        chain.new_block()
        chain.new_block()
        zero, one, two = ["0x" + (chain.store.hash_of(n) or b"").hex() for n in range(3)]
        assert await client.get("chain_getBlockHash") == two
        assert await client.get("chain_getBlockHash", None) == two
        assert await client.get("chain_getBlockHash", [0, "0x1", 9]) == [zero, one, None]
        assert await client.get("chain_getFinalizedHead") == one
        assert (await client.get("chain_getHeader", one))["parentHash"] == zero
        assert await client.get("chain_getHeader", "0x" + "11" * 32) is None
        body = await client.get("chain_getBlock", one)
        assert len(body["block"]["extrinsics"]) == 2
        key = "0x" + system.ACCOUNT.key(BOB.address).hex()
        old, new = await client.get("state_getStorage", key, zero), await client.get("state_getStorageAt", key)
        assert old != new
        assert await client.get("state_getStorageSize", key) == len(new) // 2 - 1
        assert len(await client.get("state_getStorageHash", key)) == 66
        assert await client.get("state_queryStorageAt", [key], zero) == [{"block": zero, "changes": [[key, old]]}]
        prefix = "0x" + system.ACCOUNT.prefix.hex()
        keys = await client.get("state_getKeys", prefix)
        paged = await client.get("state_getKeysPaged", prefix, 1, None, None)
        while len(page := await client.get("state_getKeysPaged", prefix, 1, paged[-1], two)) > 0:
            paged += page
        assert paged == keys
        # the parent of the genesis block counts as known for version and metadata, not for state
        nothing = "0x" + "00" * 32
        assert (await client.get("state_getRuntimeVersion", nothing))["specVersion"] == 1
        assert (await client.get("state_getMetadata", nothing)).startswith("0x6d6574610e")
        assert await client.code("state_getStorage", key, nothing) == 4003
        assert await client.code("state_getMetadata", "0x" + "11" * 32) == 4003
        assert await client.get("system_chainType") == "Development"
        assert (await client.get("system_properties"))["isEthereum"] is True
        assert "single author" in await client.get("system_name")
        assert "state_call" in (await client.get("rpc_methods"))["methods"]


async def test_runtime_apis() -> None:
    async with running() as (chain, url), bare(url) as client:
        raw = transfer(chain)

        async def call(name: str, data: bytes = b"") -> bytes:
            return bytes.fromhex((await client.get("state_call", name, "0x" + data.hex()))[2:])

        metadata = chain.runtime.metadata
        assert s.bytes_.decode_all(await call("Metadata_metadata")) == metadata
        assert s.vec(s.u32).decode_all(await call("Metadata_metadata_versions")) == [14]
        option = s.option(s.bytes_)
        assert option.decode_all(await call("Metadata_metadata_at_version", s.u32.encode(14))) == metadata
        assert option.decode_all(await call("Metadata_metadata_at_version", s.u32.encode(15))) is None
        assert system.runtime_version.decode_all(await call("Core_version"))["transaction_version"] == 1
        nonce = await call("AccountNonceApi_account_nonce", ALICE.address)
        assert s.u32.decode_all(nonce) == 0
        info = await call("TransactionPaymentApi_query_info", raw + s.u32.encode(len(raw)))
        assert s.u128.decode_all(info[-16:]) == BASE_FEE_PLANCK + len(raw)
        assert (await client.get("payment_queryInfo", "0x" + raw.hex()))["partialFee"] == str(
            BASE_FEE_PLANCK + len(raw)
        )
        for name in chain.runtime.apis:
            assert name.startswith("NetworkRuntimeApi_")
        assert await client.code("state_call", "Nobody_knows", "0x") == 4003
        assert await client.code("state_call", "AccountNonceApi_account_nonce", "0x00") == 4003
        chain.submit(raw)
        assert await client.get("system_accountNextIndex", ALICE.hex) == 1
        assert await client.get("account_nextIndex", ALICE.hex) == 1
        assert s.u32.decode_all(await call("AccountNonceApi_account_nonce", ALICE.address)) == 0
        assert await client.get("author_pendingExtrinsics") == ["0x" + raw.hex()]


async def test_watching_tells_in_order_and_final_comes_with_the_next_block() -> None:
    async with running() as (chain, url), bare(url) as client:
        raw = "0x" + transfer(chain).hex()
        ident = await client.get("author_submitAndWatchExtrinsic", raw)
        assert not client.notes  # the reply came before the first notification
        first = await client.read()
        assert first["params"] == {"subscription": ident, "result": "ready"}
        block = "0x" + chain.new_block().hash.hex()
        assert await client.note() == {"inBlock": block}
        assert await client.code("author_submitAndWatchExtrinsic", raw) == 1010  # stale now
        assert not client.notes
        chain.new_block()
        assert await client.note() == {"finalized": block}
        assert await client.get("author_unwatchExtrinsic", ident) is False  # over already


async def test_subscriptions() -> None:
    async with running() as (chain, url), bare(url) as client:
        key = "0x" + system.ACCOUNT.key(BOB.address).hex()
        heads = await client.get("chain_subscribeNewHeads")
        assert (await client.note())["number"] == "0x0"
        await client.get("chain_subscribeFinalizedHeads")
        assert (await client.note())["number"] == "0x0"
        await client.get("state_subscribeStorage", [key])
        assert (await client.note())["changes"][0][0] == key
        await client.get("state_subscribeRuntimeVersion")
        assert (await client.note())["specName"] == "hypertensor-node"
        chain.new_block()
        assert (await client.note())["number"] == "0x1"
        chain.submit(transfer(chain))
        chain.new_block()
        got = [await client.read() for _ in range(3)]
        assert [each["method"] for each in got] == ["chain_newHead", "chain_finalizedHead", "state_storage"]
        assert got[1]["params"]["result"]["number"] == "0x1"
        assert await client.get("chain_unsubscribeNewHeads", heads) is True
        chain.new_block()
        assert (await client.read())["method"] == "chain_finalizedHead"
        assert await client.get("chain_unsubscribeNewHeads", heads) is False


async def test_errors_have_their_codes() -> None:
    async with running(dev_rpc=False) as (chain, url), bare(url) as client:
        assert await client.code("dev_newBlock") == -32601
        assert await client.code("network_getConsensusData", 1) == -32601
        for method, params in (
            ("state_getStorage", ()),
            ("state_getStorage", ("nothex",)),
            ("state_getStorage", ("0x0",)),
            ("chain_getHeader", ("0x11",)),
            ("chain_getBlockHash", (-1,)),
            ("state_getKeysPaged", ("0x", 10**9)),
            ("system_accountNextIndex", ("0x1234",)),
            ("state_subscribeStorage", ()),
            ("chain_getHead", (1, 2, 3)),
        ):
            assert await client.code(method, *params) == -32602, method
        assert await client.code("author_submitExtrinsic", "0x1234") == 1001
        raw = "0x" + transfer(chain).hex()
        await client.get("author_submitExtrinsic", raw)
        assert await client.code("author_submitExtrinsic", raw) == 1013
        other = "0x" + transfer(chain, amount=2).hex()
        assert await client.code("author_submitExtrinsic", other) == 1014
        for junk, code in (("{", -32700), ("[" * 5000, -32700), ("17", -32600), ("[]", -32600), ('{"id": 1}', -32600)):
            await client.socket.send_message(junk)
            assert (await client.read())["error"]["code"] == code
        await client.socket.send_message(json.dumps([{"id": 7, "method": "system_chain"}, {"id": 8, "method": "no"}]))
        batch: Any = await client.read()
        assert [each["id"] for each in batch] == [7, 8]
        assert batch[0]["result"] == "mesh dev chain"


async def test_limits() -> None:
    limits = ServerConfig(max_connections=1, max_subscriptions=2, max_message_bytes=2048)
    async with running(server=limits, pool=PoolConfig(max_extrinsics=1)) as (chain, url):
        async with bare(url) as client:
            with pytest.raises(ConnectionRejected) as caught:
                async with bare(url):
                    pass
            assert caught.value.status_code == 503
            for _ in range(2):
                await client.get("chain_subscribeNewHeads")
            assert await client.code("chain_subscribeNewHeads") == -32006
            raw = "0x" + transfer(chain).hex()
            assert await client.code("author_submitAndWatchExtrinsic", raw) == -32006
            assert len(chain.pool) == 0  # not taken in either
            assert await client.code("dev_newBlock", {"count": 10**9}) == -32602
            await client.socket.send_message(" " * 4000)
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.read()
        with trio.fail_after(20):  # the place is free again
            while True:
                try:
                    async with bare(url) as client:
                        assert await client.get("system_chain") == "mesh dev chain"
                    break
                except (ConnectionClosed, OSError, ConnectionRejected):
                    await trio.lowlevel.checkpoint()


async def test_who_does_not_read_is_closed() -> None:
    async with running(server=ServerConfig(max_outgoing_messages=16)) as (chain, url):
        async with bare(url) as client:
            await client.get("chain_subscribeNewHeads")
            for _ in range(40):  # nothing is sent between them: the queue runs over
                chain.new_block()
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.read()
        with trio.fail_after(20):
            while chain.listeners:
                await trio.lowlevel.checkpoint()
        chain.new_block()


@pytest.mark.parametrize(
    ("host", "origin", "taken"),
    [
        ("127.0.0.1:9944", None, True),
        ("localhost:9944", None, True),
        ("[::1]:9944", None, True),
        ("127.0.0.1:9944", "http://127.0.0.1:9944", True),
        ("rebound.example:9944", None, False),
        ("localhost.example:9944", None, False),
        ("", None, False),
        ("127.0.0.1:9944", "http://evil.example", False),
        ("127.0.0.1:9944", "http://127.0.0.1:8000", False),
        ("127.0.0.1:9944", "null", False),
        ("chain.internal:9944", "https://page.example", True),
    ],
)
def test_hosts_and_origins(host: str, origin: str | None, taken: bool) -> None:
    headers = [] if origin is None else [(b"Origin", origin.encode())]
    reason = refusal(host, headers, hosts=["chain.internal"], origins=["https://page.example"])
    assert (reason is None) is taken


async def test_a_browser_page_is_kept_out_on_the_wire() -> None:
    async with running() as (_, url):
        with pytest.raises(ConnectionRejected) as caught:
            async with bare(url, extra_headers=[(b"Origin", b"http://evil.example")]):
                pass
        assert caught.value.status_code == 403
        async with bare(url) as client:
            assert await client.get("system_chain") == "mesh dev chain"


@pytest.mark.parametrize(
    "junk",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 500, b"GET / HTTP/1.1\r\nHost: \xff\xfe.x\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n"],
    ids=["nothing", "http", "zeros", "host", "key"],
)  # fmt: skip
async def test_junk_on_the_socket_ends_only_itself(junk: bytes) -> None:
    async with running() as (_, url):
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1]))
        await stream.send_all(junk)
        await stream.aclose()
        async with bare(url) as client:
            assert await client.get("system_chain") == "mesh dev chain"


async def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ListenFailed, match="the dev chain cannot listen"):
            await run_chain(DevChainConfig(port=taken.getsockname()[1]))


async def test_blocks_come_by_themselves(autojump_clock: trio.testing.MockClock) -> None:
    """With a block time, on virtual time; the chain's time is the clock's."""
    from mesh.clock import SimClock

    config = DevChainConfig(fund=FUND, block_time_s=6.0)
    chain = DevChain(config)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(run_chain, config, chain=chain, clock=SimClock()))
        await trio.sleep(61)
        nursery.cancel_scope.cancel()
    assert chain.best.number == 10
    now = next(item for item in chain.runtime.pallets["Timestamp"].storage if item.name == "Now")
    assert chain.get(now) == int((SimClock().now()) * 1000) - 1000
    assert [name for _, name, _ in events(chain)][-1] == "ExtrinsicSuccess"
    chain.close()


async def test_dev_methods_over_the_wire() -> None:
    async with running() as (chain, url), bare(url) as client:
        nodes = "0x" + storage.MinSubnetNodes.key().hex()
        block = await client.get("dev_setStorage", [[nodes, "0x01000000"]])
        assert block == "0x" + chain.best.hash.hex()
        raw = await client.get("dev_snapshot")
        account = [[[CAROL.hex], {"nonce": 0, "consumers": 0, "providers": 1, "sufficients": 0,
                                  "data": {"free": "5000", "reserved": 0, "frozen": 0, "flags": 0}}]]  # fmt: skip
        named = {"Network": {"MinSubnetNodes": 2, "TxPause": True, "SubnetReputation": [[[7], 9], [[8], None]]},
                 "System": {"Account": account}}  # fmt: skip
        await client.get("dev_setStorage", named)
        assert [chain.get(storage.MinSubnetNodes), chain.get(storage.TxPause)] == [2, True]
        assert chain.get(storage.SubnetReputation, 7) == 9
        assert chain.get(system.ACCOUNT, CAROL.address)["data"]["free"] == 5000
        await client.get("chain_subscribeNewHeads")
        assert (await client.note())["number"] == "0x2"
        await client.get("state_subscribeStorage", [nodes])
        assert (await client.note())["changes"] == [[nodes, "0x02000000"]]
        assert await client.get("dev_restore", raw) == block
        assert (await client.note())["number"] == "0x1"
        assert (await client.note())["changes"] == [[nodes, "0x01000000"]]
        for junk in ([], {}, 5, [[nodes]], [[nodes, "0x"]], [["0x12", "0x"]], {"Network": 5}, {"Nobody": {"X": 1}},
                     {"Network": {"MinSubnetNodez": 1}}, {"Network": {"SubnetReputation": 5}},
                     {"Network": {"SubnetReputation": [[["a"], 5]]}}, {"Network": {"MinSubnetNodes": "x"}},
                     {"System": {"Number": 5}}):  # fmt: skip
            assert await client.code("dev_setStorage", junk) == -32602, junk
        for junk in ("0x", "0x1234", raw[:-2], 5):
            assert await client.code("dev_restore", junk) == -32602
        assert chain.best.number == 1


async def test_without_dev_rpc_its_methods_say_what_to_do() -> None:
    async with running(dev_rpc=False) as (_, url), bare(url) as client:
        for method in ("dev_newBlock", "dev_setStorage", "dev_snapshot", "dev_restore"):
            error = (await client.ask(method))["error"]
            assert error["code"] == -32601
            assert "--dev-rpc" in error["message"]
        assert "dev_newBlock" not in (await client.get("rpc_methods"))["methods"]
