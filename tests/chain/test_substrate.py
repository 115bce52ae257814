"""The client against a chain that is away, dies, lies, or restarts; and submissions that are interrupted.

Real websockets on loopback; blocks by hand. Timeouts are short where running into them is the point.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.chain import session
from mesh.chain.journal import Journal, JournalDamaged
from mesh.chain.runtime import Version
from mesh.chain.substrate import SubstrateChain
from mesh.devchain.node import DevChain, DevChainConfig
from mesh.errors import ChainError, ChainUnavailable, ExtrinsicLost, WrongChain
from tests.chain.nodes import ALITH, OWN, REMARK, Node, Raw, back, client, expect, serve, until

# --- connection -------------------------------------------------------------------------------------------------------


async def test_nobody_at_the_url_is_unavailable_and_run_keeps_trying(tmp_path: Path) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    chain = client(tmp_path, f"ws://127.0.0.1:{port}", call_timeout_s=0.3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.run)
        with pytest.raises(ChainUnavailable, match=r"within 0\.3 s at ws://127"):
            await chain.head()
        with pytest.raises(ChainUnavailable):
            _ = chain.genesis
        nursery.cancel_scope.cancel()


async def test_the_next_url_is_tried_when_the_first_does_not_answer(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, "ws://127.0.0.1:1", node.url)
        with trio.fail_after(20):
            await nursery.start(chain.run)
        assert chain.url == node.url
        nursery.cancel_scope.cancel()


async def test_a_chain_killed_and_restarted_is_found_again(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url)
        await nursery.start(chain.run)
        node.dev.new_block()
        assert (await chain.head()).number == 1
        node.kill()
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await chain.head()).number)

        nursery.start_soon(ask)  # asked while it is away: answered when it is back
        await trio.sleep(0.1)
        assert not answers
        await node.start()
        node.dev.new_block()
        await until(lambda: answers == [2])
        node.dev.new_block()
        async for head in chain.heads():
            if head.number == 3:
                break
        nursery.cancel_scope.cancel()


async def test_another_chain_at_the_same_url_is_not_taken(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url, call_timeout_s=0.5)
        await nursery.start(chain.run)
        node.kill()
        node.dev = DevChain(DevChainConfig(fund={}))
        await node.start()
        with pytest.raises(ChainUnavailable):
            await chain.head()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("subscription", ["refused", "silent"])
async def test_heads_come_by_polling_when_there_is_no_subscription(tmp_path: Path, subscription: str) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()

        async def relay(method: str, params: Sequence[Any]) -> object:
            if method.startswith("chain_subscribe") and subscription == "silent":
                return "0x01"  # and never a word
            return await back(node.url, method, params)

        url = await serve(nursery, relay)
        chain = client(tmp_path, url, silence_s=0.05)
        await nursery.start(chain.run)
        heads = chain.heads()
        assert (await anext(heads)).number == 0
        node.dev.new_block()
        with trio.fail_after(10):
            assert (await anext(heads)).number == 1
        await heads.aclose()  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def test_a_call_that_is_not_answered_ends_at_its_deadline_and_the_next_one_works(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        silent = False

        async def relay(method: str, params: Sequence[Any]) -> object:
            if silent and method == "chain_getFinalizedHead":
                await trio.sleep_forever()
            return await back(node.url, method, params)

        chain = client(tmp_path, await serve(nursery, relay), call_timeout_s=0.6)
        await nursery.start(chain.run)
        silent = True
        started = trio.current_time()
        with pytest.raises(ChainUnavailable, match=r"0\.6 s"):
            await chain.finalized()
        assert trio.current_time() - started < 5
        silent = False
        await until_answers(chain)
        assert (await chain.finalized()).number == 0
        silent = True
        with trio.move_on_after(0.05) as scope:  # cancelled from outside: at once, and the thread is not left behind
            await chain.finalized()
        assert scope.cancelled_caught
        silent = False
        await until_answers(chain)
        assert (await chain.finalized()).number == 0
        nursery.cancel_scope.cancel()


GARBAGE: list[tuple[str, object]] = [
    ("chain_getHead", None),
    ("chain_getHead", 7),
    ("chain_getHead", "0xzz"),
    ("chain_getHead", "0x00"),
    ("chain_getHeader", []),
    ("chain_getHeader", {"number": "x"}),
    ("chain_getHeader", {"number": "-0x1"}),
    ("state_queryStorageAt", None),
    ("state_queryStorageAt", [[]]),
    ("state_queryStorageAt", [{"changes": [["0x00"]]}]),
    ("state_queryStorageAt", [{"changes": []}]),
]


@pytest.mark.parametrize(("method", "answer"), GARBAGE)
async def test_a_garbage_answer_is_a_chain_error_and_nothing_worse(tmp_path: Path, method: str, answer: object) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        lying = False

        async def relay(asked: str, params: Sequence[Any]) -> object:
            return answer if lying and asked == method else await back(node.url, asked, params)

        chain = client(tmp_path, await serve(nursery, relay))
        await nursery.start(chain.run)
        lying = True
        node.dev.new_block()
        with pytest.raises(ChainError):
            await chain.timestamp_ms()
            await chain.head()
        lying = False
        assert await chain.timestamp_ms() > 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "message", ["", "[]", "7", "null", "{", '{"id": 1}', '{"params": {}}', '{"params": 1}', "[" * 100_000]
)
async def test_what_is_no_json_rpc_is_a_chain_error(tmp_path: Path, message: str) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        lying = False

        async def relay(asked: str, params: Sequence[Any]) -> object:
            return Raw(message) if lying else await back(node.url, asked, params)

        chain = client(tmp_path, await serve(nursery, relay), call_timeout_s=0.5)
        await nursery.start(chain.run)
        lying = True
        with pytest.raises(ChainError):
            await chain.head()
        lying = False
        await until_answers(chain)
        nursery.cancel_scope.cancel()


async def until_answers(chain: SubstrateChain) -> None:
    with trio.fail_after(20):
        while True:
            try:
                await chain.head()
                return
            except ChainError:
                await trio.sleep(0.02)


# --- submitting -------------------------------------------------------------------------------------------------------


async def test_a_dev_key_does_not_sign_on_a_chain_this_user_did_not_start(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        (tmp_path / "mesh" / "local-chains").unlink()  # as on the far end of a tunnel
        chain = client(tmp_path, node.url)
        await nursery.start(chain.run)
        with pytest.raises(WrongChain, match="public development account"):
            await chain.submit("System.remark", REMARK, ALITH)
        assert len(node.dev.pool) == 0
        assert not list((tmp_path / "journal").glob("*")) if (tmp_path / "journal").exists() else True
        nursery.cancel_scope.cancel()


async def test_the_fee_is_known_before_and_pricing_signs_nothing_valid(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url)
        await nursery.start(chain.run)
        fee = await chain.estimate_fee("System.remark", REMARK, OWN)
        nursery.start_soon(seal, node.dev)
        receipt = await chain.submit("System.remark", REMARK, OWN)
        assert fee == pytest.approx(receipt.fee_planck, abs=2)
        nursery.cancel_scope.cancel()


async def seal(dev: DevChain) -> None:
    while True:
        if len(dev.pool):
            dev.new_block()
        await trio.sleep(0.005)


def sent(dev: DevChain) -> list[bytes]:
    return [ext.raw for ext in dev.pool]


async def interrupted(chain: SubstrateChain, dev: DevChain) -> bytes:
    """Submit and be cancelled while it waits for a block; the bytes in the pool."""
    before = len(dev.pool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.submit, "System.remark", REMARK, OWN)
        await until(lambda: len(dev.pool) > before)
        nursery.cancel_scope.cancel()
    return sent(dev)[-1]


async def test_a_cancelled_submission_is_continued_with_its_identical_bytes(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url)
        await nursery.start(chain.run)
        raw = await interrupted(chain, node.dev)
        hashes: list[bytes] = []

        async def submit() -> None:
            hashes.append((await chain.submit("System.remark", REMARK, OWN)).extrinsic_hash)

        nursery.start_soon(submit)
        for _ in range(20):  # while it waits nothing else comes into the pool
            await chain.head()
            assert sent(node.dev) == [raw]
        node.dev.new_block()
        await until(lambda: hashes == [session.runtime.blake2(raw)])
        assert node.dev.nonce(OWN.account_id) == 1
        nursery.cancel_scope.cancel()


async def test_after_a_restart_the_pending_bytes_and_only_they_are_sent_again(tmp_path: Path) -> None:
    """The node lost its pool as well: what the new client sends is what the old one had signed."""
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        first = trio.CancelScope()

        async def life() -> None:
            with first:
                async with trio.open_nursery() as inner:
                    chain = client(tmp_path, node.url)
                    await inner.start(chain.run)
                    lost.append(await interrupted(chain, node.dev))
                    inner.cancel_scope.cancel()

        lost: list[bytes] = []
        await life()
        node.dev.pool.remove(next(iter(node.dev.pool)))
        chain = client(tmp_path, node.url, recover=(OWN.account_id,))
        await nursery.start(chain.run)
        assert sent(node.dev) == lost  # run() sent them again by itself
        node.dev.new_block()
        receipt = await chain.submit("System.remark", REMARK, OWN)
        assert receipt.extrinsic_hash == session.runtime.blake2(lost[0])
        assert node.dev.nonce(OWN.account_id) == 1
        nursery.start_soon(seal, node.dev)
        another = await chain.submit("System.remark", REMARK, OWN)  # a new intent now
        assert another.extrinsic_hash != receipt.extrinsic_hash
        assert node.dev.nonce(OWN.account_id) == 2
        nursery.cancel_scope.cancel()


async def test_the_same_call_again_is_a_new_intent_unless_the_process_died_in_between(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        nursery.start_soon(seal, node.dev)
        hashes: list[bytes] = []
        for _ in range(2):  # two lives that end in order
            async with trio.open_nursery() as life:
                chain = client(tmp_path, node.url)
                await life.start(chain.run)
                receipts = [await chain.submit("System.remark", REMARK, OWN) for _ in range(2)]  # and two calls in each
                hashes += [receipt.extrinsic_hash for receipt in receipts]
                life.cancel_scope.cancel()
        assert len(set(hashes)) == 4 == node.dev.nonce(OWN.account_id)
        nursery.cancel_scope.cancel()


async def test_who_is_cancelled_when_it_was_about_to_hear_hears_it_the_next_time(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        nursery.start_soon(seal, node.dev)
        chain = client(tmp_path, node.url)
        await nursery.start(chain.run)
        closing = chain._submitter._close
        with trio.CancelScope() as scope:

            async def close(*args: Any, **named: Any) -> None:
                await closing(*args, **named)
                scope.cancel()

            chain._submitter._close = close  # type: ignore[method-assign]
            await chain.submit("System.remark", REMARK, OWN)
        assert scope.cancelled_caught
        await chain.submit("System.remark", REMARK, OWN)
        assert node.dev.nonce(OWN.account_id) == 1
        await chain.submit("System.remark", REMARK, OWN)
        assert node.dev.nonce(OWN.account_id) == 2
        nursery.cancel_scope.cancel()


async def test_an_entry_whose_era_ended_unused_is_dead_and_the_call_is_made_anew(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url, era_blocks=4)
        await nursery.start(chain.run)
        raw = await interrupted(chain, node.dev)
        node.dev.pool.remove(next(iter(node.dev.pool)))
        for _ in range(4):
            node.dev.new_block()
        nursery.start_soon(seal, node.dev)
        receipt = await chain.submit("System.remark", REMARK, OWN)
        assert receipt.extrinsic_hash != session.runtime.blake2(raw)
        assert node.dev.nonce(OWN.account_id) == 1
        nursery.cancel_scope.cancel()


async def test_what_is_in_no_block_before_its_era_ends_is_lost(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url, era_blocks=4)
        await nursery.start(chain.run)
        errors: list[Exception] = []

        async def submit() -> None:
            errors.append(await expect(ExtrinsicLost, lambda: chain.submit("System.remark", REMARK, OWN)))

        nursery.start_soon(submit)
        await until(lambda: len(node.dev.pool) == 1)
        node.dev.pool.remove(next(iter(node.dev.pool)))
        for _ in range(4):
            node.dev.new_block()
        await until(lambda: bool(errors))
        assert "it may be made again" in str(errors[0])
        nursery.cancel_scope.cancel()


async def test_no_block_in_time_is_unavailable_and_the_same_call_goes_on(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url, submit_timeout_s=0.3)
        await nursery.start(chain.run)
        with pytest.raises(ChainUnavailable, match="the same call continues it"):
            await chain.submit("System.remark", REMARK, OWN)
        (raw,) = sent(node.dev)
        node.dev.new_block()
        receipt = await chain.submit("System.remark", REMARK, OWN)
        assert receipt.extrinsic_hash == session.runtime.blake2(raw)
        nursery.cancel_scope.cancel()


async def test_a_submission_survives_the_node_dying_under_it(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url, submit_timeout_s=30)
        await nursery.start(chain.run)
        hashes: list[bytes] = []

        async def submit() -> None:
            hashes.append((await chain.submit("System.remark", REMARK, OWN)).extrinsic_hash)

        nursery.start_soon(submit)
        await until(lambda: len(node.dev.pool) == 1)
        (raw,) = sent(node.dev)
        node.kill()
        node.dev.pool.remove(next(iter(node.dev.pool)))
        await node.start()
        await until(lambda: sent(node.dev) == [raw])
        node.dev.new_block()
        await until(lambda: hashes == [session.runtime.blake2(raw)])
        nursery.cancel_scope.cancel()


async def test_two_clients_of_one_account_take_turns(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chains = [client(tmp_path, node.url) for _ in range(2)]
        for chain in chains:
            await nursery.start(chain.run)
        nursery.start_soon(seal, node.dev)
        async with trio.open_nursery() as both:
            for number, chain in enumerate(chains):
                both.start_soon(chain.submit, "System.remark", {"remark": bytes((number,))}, OWN)
        assert node.dev.nonce(OWN.account_id) == 2
        nursery.cancel_scope.cancel()


async def test_nothing_is_signed_over_a_damaged_journal(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        chain = client(tmp_path, node.url)
        await nursery.start(chain.run)
        await interrupted(chain, node.dev)
        (path,) = (tmp_path / "journal").glob("*.jsonl")
        path.write_bytes(path.read_bytes().replace(b'"nonce": 0', b'"nonce": 1'))
        before = sent(node.dev)
        with pytest.raises(JournalDamaged, match=path.name):
            await chain.submit("System.remark", {"remark": b"other"}, OWN)
        assert sent(node.dev) == before
        nursery.cancel_scope.cancel()


async def test_the_bytes_are_on_disk_before_they_leave(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery)
        await node.start()
        written: list[bool] = []

        async def relay(method: str, params: Sequence[Any]) -> object:
            if method == "author_submitExtrinsic":
                (path,) = (tmp_path / "journal").glob("*.jsonl")
                written.append(params[0].removeprefix("0x") in path.read_text())
            return await back(node.url, method, params)

        chain = client(tmp_path, await serve(nursery, relay))
        await nursery.start(chain.run)
        nursery.start_soon(seal, node.dev)
        await chain.submit("System.remark", REMARK, OWN)
        assert written == [True]
        journal = Journal.open_locked(tmp_path / "journal", genesis=chain.genesis, account=OWN.account_id)
        assert journal is not None
        journal.release()
        nursery.cancel_scope.cancel()


# --- metadata cache ---------------------------------------------------------------------------------------------------


def test_a_second_start_does_not_download_the_metadata(tmp_path: Path, metadata_bytes: bytes) -> None:
    asked: list[str] = []
    code = "0x" + "11" * 32

    def rpc(method: str, params: Sequence[object]) -> object:
        asked.append(method)
        return code if method == "state_getStorageHash" else f"0x{metadata_bytes.hex()}"

    version = Version("node", 1, 1)
    session.read_metadata(rpc, bytes(32), version, tmp_path)
    session.read_metadata(rpc, bytes(32), version, tmp_path)
    assert asked.count("state_getMetadata") == 1
    code = "0x" + "22" * 32  # other code under the same version
    session.read_metadata(rpc, bytes(32), version, tmp_path)
    session.read_metadata(rpc, bytes(32), Version("node", 2, 1), tmp_path)
    assert asked.count("state_getMetadata") == 3
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    session.read_metadata(rpc, bytes(32), version, tmp_path)
    assert asked.count("state_getMetadata") == 4
