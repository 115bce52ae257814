"""Where facts are read: the runtime's API, the node's own RPC, storage; and blocks whose state is not to be had."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import WebSocketConnection

from mesh.chain import dialect as dialects
from mesh.chain import info, session
from mesh.chain.codec import compact
from mesh.chain.metadata import Metadata
from mesh.chain.runtime import Version
from mesh.chain.session import RpcRefused, Session
from mesh.chain.subscription import MAX_MESSAGE_BYTES
from mesh.chain.substrate import SubstrateChain
from mesh.chain.types import BlockRef, Snapshot, SubnetInfo
from mesh.devchain.chain import DevChain
from mesh.devchain.server import header_json
from mesh.errors import BlockUnavailable, ChainError
from tests.chain.nodes import Raw, Relay, client, refuse, serve, serve_sockets
from tests.chain.subnet import SUBNET, config, populate
from tests.contract.test_chain import BOOTNODE, COLDKEYS, HOTKEYS, OWNER, PEERS, STAKE

GATHERED = ("state_call", "network_getSubnetInfo", "network_getSubnetNodesInfo")


@asynccontextmanager
async def reading(tmp_path: Path, **changes: Any) -> AsyncIterator[tuple[Relay, SubstrateChain]]:
    dev = DevChain(config(None, **changes))
    populate(dev)
    relay = Relay(dev)
    async with trio.open_nursery() as nursery:
        chain = client(tmp_path, await serve(nursery, relay.answer), poll_interval_s=30, silence_s=30)
        with trio.fail_after(20):
            await nursery.start(chain.run)
            yield relay, chain
        nursery.cancel_scope.cancel()
    dev.close()


def state_call(relay: Relay, change: Any) -> None:
    """Change what the runtime's functions answer: `change(inner bytes) -> inner bytes`, as raw SCALE inside Vec<u8>."""

    def answer(params: Sequence[Any]) -> object:
        name, data = params[0], bytes.fromhex(params[1][2:])
        pallet, function = relay.dev.runtime.apis[name]
        ctx = relay.dev.runtime.context(
            relay.dev.state, pallet=pallet.name, block=relay.dev.best.number, parent_hash=relay.dev.best.hash
        )
        inner = change(info.unwrap(function(ctx, data)))
        return f"0x{(compact(len(inner)) + inner).hex()}"

    relay.instead["state_call"] = answer


async def both(chain: SubstrateChain) -> tuple[SubnetInfo, Snapshot]:
    return await chain.subnet(SUBNET), await chain.snapshot(SUBNET)


def require_right(facts: tuple[SubnetInfo, Snapshot]) -> None:
    subnet, snapshot = facts
    assert (subnet.name, subnet.owner, subnet.slot, subnet.friendly_id) == ("sub-one", OWNER.account_id, 3, 1)
    found = [(node.node_id, node.coldkey, node.hotkey, node.peer_id, node.stake_planck) for node in snapshot.nodes]
    wanted = zip((1, 2, 3), COLDKEYS, HOTKEYS, PEERS, strict=True)
    assert found == [(i, cold.account_id, hot.account_id, peer, STAKE) for i, cold, hot, peer in wanted]


async def test_the_runtimes_api_is_read_once_it_has_told_the_same_as_storage(tmp_path: Path) -> None:
    async with reading(tmp_path) as (relay, chain):
        relay.methods()
        first = await both(chain)
        assert "state_queryStorageAt" in relay.methods()
        second = await both(chain)
        assert relay.methods() == ["state_call", *["state_getKeysPaged"] * 2, "state_call"]
        assert first == second
        require_right(second)


async def test_the_nodes_own_rpc_is_read_where_the_api_is_not_to_be_had(tmp_path: Path) -> None:
    async with reading(tmp_path) as (relay, chain):
        relay.instead["state_call"] = refuse
        first = await both(chain)
        relay.methods()
        second = await both(chain)
        assert relay.methods() == ["network_getSubnetInfo", *["state_getKeysPaged"] * 2, "network_getSubnetNodesInfo"]
        assert first == second
        require_right(second)


async def test_storage_is_read_where_there_is_neither(tmp_path: Path) -> None:
    async with reading(tmp_path) as (relay, chain):
        relay.instead.update(
            dict.fromkeys(("state_call", "network_getSubnetInfo", "network_getSubnetNodesInfo"), refuse)
        )
        require_right(await both(chain))
        relay.methods()
        require_right(await both(chain))
        assert {"state_call", "network_getSubnetInfo"}.isdisjoint(relay.methods())


def drop_first_node(inner: bytes) -> bytes:
    """A node list without its first node (all three have the same length); a subnet's info as it is."""
    if inner[0] >> 2 != 3:
        return inner
    size = (len(inner) - 1) // 3
    return bytes((2 << 2,)) + inner[1 + size :]


LIES = {
    "a byte more": lambda inner: inner + b"\0",
    "a byte less": lambda inner: inner[:-1],
    "nothing": lambda inner: b"",
    "another stake": lambda inner: inner.replace(STAKE.to_bytes(16, "little"), (STAKE + 1).to_bytes(16, "little")),
    "no such subnet": lambda inner: b"\0",
    "a node left out": drop_first_node,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_storage_has_the_last_word(tmp_path: Path, lie: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with reading(tmp_path) as (relay, chain):
        state_call(relay, lie)
        relay.instead.update(dict.fromkeys(("network_getSubnetInfo", "network_getSubnetNodesInfo"), refuse))
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                require_right(await both(chain))
        if lie is not LIES["no such subnet"]:
            assert "get_subnet_nodes_info by STATE_CALL" in caplog.text


async def test_an_api_that_leaves_out_a_node_later_is_found_out(tmp_path: Path) -> None:
    async with reading(tmp_path) as (relay, chain):
        require_right(await both(chain))
        state_call(relay, drop_first_node)
        require_right(await both(chain))


async def test_no_subnet_is_an_error_and_an_absent_slot_is_none(tmp_path: Path) -> None:
    async with reading(tmp_path) as (_, chain):
        for _ in range(2):
            with pytest.raises(ChainError, match="no subnet 128002"):
                await chain.subnet(128_002)
            assert (await chain.snapshot(128_002)).nodes == ()
        for _ in range(2):
            (node, *_) = (await chain.snapshot(SUBNET)).nodes
            assert (node.bootnode_peer_id, node.client_peer_id) == (None, None)
        assert await chain.storage("Network", "SubnetSlot", 128_002) is None
        assert await chain.storage("Network", "SubnetsData", 128_002) is None
        assert await chain.elected(SUBNET, 99) is None
        assert await chain.submission(SUBNET, 99) is None
        (bootnode,) = await chain.bootnodes(SUBNET)
        assert bootnode.peer_id == BOOTNODE


async def test_what_belongs_together_is_read_at_one_block(tmp_path: Path) -> None:
    """Blocks are made between any two questions, and every question about state is about the same one."""
    async with reading(tmp_path) as (relay, chain):
        relay.instead.update(dict.fromkeys(GATHERED, refuse))  # the longest way
        truth = relay.truth

        async def restless(method: str, params: Sequence[Any]) -> object:
            relay.dev.new_block()
            return await truth(method, params)

        relay.truth = restless  # type: ignore[method-assign]
        relay.asked.clear()
        snapshot = await chain.snapshot(SUBNET)
        hashes = {params[-1] for method, params in relay.asked if method.startswith("state_")}
        assert hashes == {f"0x{snapshot.block.hash.hex()}"}
        relay.asked.clear()
        await chain.subnet(SUBNET)
        assert len({params[-1] for method, params in relay.asked if method.startswith("state_")}) == 1
        assert relay.dev.best.number > snapshot.block.number + 5


async def test_a_block_whose_state_is_pruned_is_named_with_what_to_do(tmp_path: Path) -> None:
    async with reading(tmp_path, history_blocks=16) as (relay, chain):
        old = BlockRef(2, await chain.block_hash(2))
        for _ in range(30):
            relay.dev.new_block()
        asks = (
            lambda: chain.storage("Network", "TotalSubnetUids", at=old.hash),
            lambda: chain.storage_map("Network", "HotkeyOwner", at=old.hash),
            lambda: chain.snapshot(SUBNET, old),
            lambda: chain.subnet(SUBNET, old.hash),
            lambda: chain.events(old.hash),
        )
        for ask in asks:
            with pytest.raises(BlockUnavailable, match=r"block 2 .* archive") as caught:
                await ask()
            assert caught.value.number == 2
        require_right(await both(chain))  # and nothing is thought of the sources


@pytest.mark.parametrize(
    "words",
    [
        "Client error: Api called for an unknown Block: State already discarded for 0x22",
        "Client error: UnknownBlock: State already discarded for 0x22",
        "State already discarded",
    ],
)
async def test_it_is_known_by_what_real_nodes_say(tmp_path: Path, words: str) -> None:
    async with reading(tmp_path) as (relay, chain):
        old = BlockRef(2, await chain.block_hash(2))

        def discarded(*_: object) -> object:
            raise RpcRefused("", 4003, words)

        relay.instead.update(dict.fromkeys(("state_call", "state_queryStorageAt", "state_getKeysPaged"), discarded))
        with pytest.raises(BlockUnavailable) as caught:
            await chain.snapshot(SUBNET, old)
        assert caught.value.number == 2


async def test_an_unknown_block_is_named_too(tmp_path: Path) -> None:
    async with reading(tmp_path) as (_, chain):
        for ask in (
            lambda: chain.storage("Network", "TotalSubnetUids", at=b"\x77" * 32),
            lambda: chain.events(b"\x77" * 32),
        ):
            with pytest.raises(BlockUnavailable, match=f"0x{'77' * 32}: it is of another fork") as caught:
                await ask()
            assert caught.value.number is None
        with pytest.raises(BlockUnavailable, match="no block 999 yet") as caught:
            await chain.block_hash(999)
        assert caught.value.number == 999


# --- lies and nonsense ------------------------------------------------------------------------------------------------


def header_of(relay: Relay, **changes: object) -> Any:
    return {**header_json(relay.dev.best), **changes}


FALSE_HEADERS: dict[str, dict[str, object]] = {
    "another number": {"number": "0x7fffffff"},
    "another parent": {"parentHash": "0x" + "55" * 32},
    "another root": {"stateRoot": "0x" + "55" * 32},
    "a log more": {"digest": {"logs": ["0x00"]}},
    "logs without end": {"digest": {"logs": ["0x00"] * 5000}},
    "no digest": {"digest": None},
}


@pytest.mark.parametrize("changes", FALSE_HEADERS.values(), ids=FALSE_HEADERS)
async def test_a_node_cannot_lie_about_the_number_of_its_head(tmp_path: Path, changes: dict[str, object]) -> None:
    async with reading(tmp_path) as (relay, chain):
        relay.dev.new_block()
        relay.instead["chain_getHeader"] = lambda _: header_of(relay, **changes)
        with pytest.raises(ChainError, match=r"another hash|no header"):
            await chain.head()
        del relay.instead["chain_getHeader"]
        assert (await chain.head()).number == relay.dev.best.number


async def test_an_answer_to_another_question_is_not_taken(tmp_path: Path) -> None:
    async with reading(tmp_path) as (relay, chain):
        relay.instead["chain_getFinalizedHead"] = lambda _: Raw('{"jsonrpc":"2.0","id":99999,"result":"0x00"}')
        chain._connection.config = chain._connection.config.model_copy(update={"call_timeout_s": 0.2})
        with pytest.raises(ChainError, match=r"within 0\.2 s"):
            await chain.finalized()


async def test_a_flood_of_answers_to_other_questions_ends_the_connection(tmp_path: Path) -> None:
    async with reading(tmp_path) as (relay, chain):
        stray = Raw('{"jsonrpc":"2.0","id":99999,"result":"0x00"}')
        stray.count = 100
        relay.instead["chain_getFinalizedHead"] = lambda _: stray
        with pytest.raises(ChainError, match="that answer nothing"):
            await chain.finalized()
        del relay.instead["chain_getFinalizedHead"]
        with trio.fail_after(10):
            while True:
                try:
                    assert (await chain.finalized()).number > 0
                    break
                except ChainError:
                    await trio.sleep(0.02)


async def test_an_answer_larger_than_what_is_taken_is_refused_unread(tmp_path: Path) -> None:
    async with reading(tmp_path) as (relay, chain):
        most = chain._config.max_message_bytes
        relay.instead["chain_getFinalizedHead"] = lambda _: Raw('{"id":1,"result":"' + "0" * most + '"}')
        with pytest.raises(ChainError, match=f"more than {most} bytes"):
            await chain.finalized()


KUSAMA_3102680 = {
    "parentHash": "0x4da72fba92b87766d8ad1b4913e7b222b136119abb567064f28aa716c625757d",
    "number": "0x2f57d8",
    "stateRoot": "0x1273b6c2c49f0e68bca9c2ddf691d89fcec7caf64b8fb2b2681dcb907c8a0f86",
    "extrinsicsRoot": "0x5d8dd72b5ece054e9ad20f233accb42a3d0c5702d2deeb721563cebb6a437b48",
    "digest": {
        "logs": [
            "0x06424142453402030000000d91d60f00000000",
            "0x0542414245010102b7f819b3d6841d8137701d613b31fd9142b43b524da53f15f5f25a4bf747552e3f"
            "d080b3f4d5f7919610f31147053f6ee019d96ba6326aba236c80d3bb6884",
        ]
    },
}
"""The header of a block of a public chain, as its nodes tell it; its hash is known too."""


def test_the_hash_of_a_header_is_that_of_a_public_chains_block(metadata: Metadata) -> None:
    known = bytes.fromhex("73ee3842500e98de95191e2e91c422bd31f9dbe81c2719a156c2fdebeec815ed")
    dialect = dialects.choose(metadata.pallet("Network").calls)
    made = Session("", lambda *_: KUSAMA_3102680, bytes(32), "", Version("", 1, 1), metadata, dialect, None)
    assert session.block_ref(made, known) == BlockRef(3_102_680, known)
    with pytest.raises(ChainError, match="another hash"):
        session.block_ref(made, known[::-1])


# --- what is pushed ---------------------------------------------------------------------------------------------------

PUSHED: dict[str, object] = {
    "no JSON": "{",
    "no object": "[]",
    "too large": '{"x":"' + "0" * MAX_MESSAGE_BYTES + '"}',
    "a number": "7",
    "another subscription": '{"method":"chain_newHead","params":{"subscription":"other","result":{"number":"0xffff"}}}',
    "params that are none": '{"method":"chain_newHead","params":[]}',
    "a head that is none": '{"method":"chain_newHead","params":{"subscription":"s","result":7}}',
    "logs that are none": '{"method":"chain_newHead","params":{"subscription":"s","result":{"digest":{"logs":{}}}}}',
    "a false head": '{"method":"chain_newHead","params":{"subscription":"s","result":{"number":"0x7fffffff"}}}',
    "nothing, and it hangs up": None,
}


@pytest.mark.parametrize("pushed", PUSHED.values(), ids=PUSHED)
async def test_heads_come_whatever_a_subscription_pushes(tmp_path: Path, pushed: str | None) -> None:
    dev = DevChain(config(None))
    relay = Relay(dev)

    async def handle(websocket: WebSocketConnection) -> None:
        while True:
            asked = json.loads(await websocket.get_message())
            if asked["method"] != "chain_subscribeNewHeads":
                reply = {"id": asked["id"], "result": await relay.truth(asked["method"], asked["params"])}
                await websocket.send_message(json.dumps(reply))
                continue
            await websocket.send_message(json.dumps({"id": asked["id"], "result": "s"}))
            if pushed is None:
                return
            await websocket.send_message(pushed)

    async with trio.open_nursery() as nursery:
        chain = client(tmp_path, await serve_sockets(nursery, handle), poll_interval_s=0.05, silence_s=0.05)
        await nursery.start(chain.run)
        with trio.fail_after(10):
            async for head in chain.heads():
                assert head.number <= dev.best.number
                if head.number == 2:
                    break
                dev.new_block()
        nursery.cancel_scope.cancel()
    dev.close()
