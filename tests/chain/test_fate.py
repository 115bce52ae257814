"""What becomes of a submission, whatever the node says of it: scripted nodes between the client and a dev chain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio_websocket import WebSocketConnection

from mesh.chain.journal import Delivery, Entry, Fate, Journal
from mesh.chain.runtime import blake2
from mesh.chain.submitting import MAX_STATUSES, Intent, era_for
from mesh.chain.substrate import SubstrateChain
from mesh.chain.types import BlockRef, Receipt
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.server import Connection
from mesh.errors import ChainError, ChainUnavailable, ExtrinsicInvalid, ExtrinsicLost
from tests.chain.nodes import FUND, OWN, REMARK, client, serve_sockets, until
from tests.contract.test_chain import subnet_data

PAYMENT = {"code": 1010, "message": "Invalid Transaction", "data": "Inability to pay some fees"}
BAD_PROOF = {"code": 1010, "message": "Invalid Transaction", "data": "Transaction has a bad signature"}
STALE = {"code": 1010, "message": "Invalid Transaction", "data": "Transaction is outdated"}
BANNED = {"code": 1012, "message": "Transaction is temporarily banned"}
POOL_FULL = {"code": 1016, "message": "Immediately Dropped: the transaction couldn't enter the pool"}
NO_SUCH_METHOD = {"code": -32601, "message": "Method not found"}

Step = object
"""A status to tell, or a function to call first (its result, if any, is told)."""


class Refuse(dict[str, object]):
    """An error instead of a subscription."""


class Scripted:
    """A node over a dev chain whose author_submitAndWatchExtrinsic plays a script, one scene per sending."""

    def __init__(self, dev: DevChain) -> None:
        self.dev = dev
        self.scenes: list[Refuse | Sequence[Step]] = []
        self.sent: list[bytes] = []
        self.plain: list[bytes] = []
        self._direct = Connection(dev, cast(WebSocketConnection, None))

    def include(self, raw: bytes | None = None) -> None:
        """Put an extrinsic (the last one sent) into the next block."""
        self.dev.submit(self.sent[-1] if raw is None else raw)
        self.dev.new_block()

    def blocks(self, count: int) -> None:
        """Make blocks."""
        for _ in range(count):
            self.dev.new_block()

    async def handle(self, websocket: WebSocketConnection) -> None:
        while True:
            asked = json.loads(await websocket.get_message())
            if asked["method"] == "author_submitAndWatchExtrinsic":
                await self._watch(websocket, asked)
                continue
            if asked["method"] == "author_submitExtrinsic":
                self.plain.append(bytes.fromhex(asked["params"][0][2:]))
            if asked["method"].startswith("chain_subscribe"):
                reply: dict[str, Any] = {"error": NO_SUCH_METHOD}
            else:
                reply = await self._direct._answer(asked)
            await websocket.send_message(json.dumps({**reply, "jsonrpc": "2.0", "id": asked["id"]}))

    async def _watch(self, websocket: WebSocketConnection, asked: dict[str, Any]) -> None:
        self.sent.append(bytes.fromhex(asked["params"][0][2:]))
        scene = self.scenes.pop(0) if self.scenes else []
        if isinstance(scene, Refuse):
            await websocket.send_message(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": scene}))
            return
        await websocket.send_message(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": "w"}))
        for step in scene:
            status = step() if callable(step) else step
            if status is None and callable(step):
                continue
            note = {"method": "author_extrinsicUpdate", "params": {"subscription": "w", "result": status}}
            await websocket.send_message(json.dumps({"jsonrpc": "2.0", **note}))


@asynccontextmanager
async def scripted(tmp_path: Path, **changes: Any) -> AsyncIterator[tuple[Scripted, SubstrateChain]]:
    dev = DevChain(DevChainConfig(fund=FUND))
    node = Scripted(dev)
    async with trio.open_nursery() as nursery:
        url = await serve_sockets(nursery, node.handle)
        settings: dict[str, Any] = {"resend_interval_s": 0.03, "poll_interval_s": 0.02, **changes}
        chain = client(tmp_path, url, **settings)
        with trio.fail_after(20):
            await nursery.start(chain.run)
            yield node, chain
        nursery.cancel_scope.cancel()
    dev.close()


async def remark(chain: SubstrateChain) -> Receipt:
    return await chain.submit("System.remark", REMARK, OWN)


def pending(tmp_path: Path, node: Scripted) -> list[bytes]:
    journal = Journal.open_locked(tmp_path / "journal", genesis=node.dev.genesis_hash, account=OWN.account_id)
    assert journal is not None
    journal.release()
    return [entry.extrinsic for entry in journal.pending]


def on_chain(node: Scripted) -> int:
    """Extrinsics in blocks that somebody signed."""
    found = 0
    for number in range(1, node.dev.best.number + 1):
        block = node.dev.store.block_at(number)
        assert block is not None
        found += len(block.extrinsics) - 1  # the block's own
    return found


ENDS: list[tuple[str, Callable[[Scripted], list[Sequence[Step]]]]] = [
    ("nothing", lambda n: [[n.include]]),
    ("ready", lambda n: [["ready", {"broadcast": ["peer"]}, n.include]]),
    ("future", lambda n: [["future", n.include]]),
    ("in block", lambda n: [["ready", n.include, {"inBlock": "0x" + "11" * 32}]]),
    ("retracted", lambda n: [["ready", {"inBlock": "0x01"}, {"retracted": "0x01"}, n.include, {"inBlock": "0x02"}]]),
    ("finalized", lambda n: [[n.include, {"finalized": "0x01"}]]),
    ("finality timeout", lambda n: [[n.include, {"finalityTimeout": "0x01"}]]),
    ("dropped", lambda n: [["ready", "dropped"], ["ready", n.include]]),
    ("dropped again and again", lambda n: [["dropped"], ["dropped"], ["dropped"], [n.include]]),
    ("invalid, and taken again", lambda n: [["invalid"], [n.include]]),
    ("invalid, for it is in a block", lambda n: [[n.include, "invalid"]]),
    ("usurped, says the node", lambda n: [[{"usurped": "0x" + "22" * 32}], [n.include]]),
    ("lies of finality", lambda n: [[{"finalized": "0x" + "33" * 32}, {"inBlock": 7}, n.include]]),
    ("nonsense", lambda n: [[7, [], {}, {"a": 1, "b": 2}, "x" * 1000, {"": None}, n.include]]),
    ("a flood", lambda n: [[*["ready"] * 10 * MAX_STATUSES, n.include]]),
]


@pytest.mark.parametrize(("scenes"), [scenes for _, scenes in ENDS], ids=[name for name, _ in ENDS])
async def test_it_happens_once_whatever_the_node_says(
    tmp_path: Path, scenes: Callable[[Scripted], list[Sequence[Step]]]
) -> None:
    async with scripted(tmp_path) as (node, chain):
        node.scenes.extend(scenes(node))
        receipt = await remark(chain)
        assert receipt.extrinsic_hash == blake2(node.sent[0])
        assert set(node.sent) == {node.sent[0]}  # whatever was sent again were the same bytes
        assert on_chain(node) == 1
        assert pending(tmp_path, node) == []


@pytest.mark.parametrize("refusal", [BANNED, POOL_FULL, STALE], ids=lambda r: str(r.get("data") or r["message"]))
async def test_what_may_be_out_already_is_sent_again_until_it_is_in_a_block(
    tmp_path: Path, refusal: dict[str, object]
) -> None:
    async with scripted(tmp_path) as (node, chain):
        node.scenes.extend([["dropped"], Refuse(refusal), Refuse(refusal), [node.include]])
        receipt = await remark(chain)
        assert len(node.sent) == 4
        assert (len(set(node.sent)), on_chain(node)) == (1, 1)
        assert receipt.extrinsic_hash == blake2(node.sent[0])


async def test_a_banned_extrinsic_is_looked_for_and_sent_again(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (node, chain):
        node.scenes.extend([Refuse(BANNED), Refuse(BANNED), [node.include]])
        await remark(chain)
        assert (len(set(node.sent)), on_chain(node)) == (1, 1)


@pytest.mark.parametrize("refusal", [PAYMENT, BAD_PROOF, POOL_FULL], ids=lambda r: str(r.get("data") or r["message"]))
async def test_a_first_refusal_is_final_and_says_why(tmp_path: Path, refusal: dict[str, object]) -> None:
    async with scripted(tmp_path) as (node, chain):
        node.scenes.append(Refuse(refusal))
        with pytest.raises(ExtrinsicInvalid) as caught:
            await remark(chain)
        assert caught.value.code == refusal["code"]
        assert str(refusal.get("data", "")) in caught.value.reason
        assert pending(tmp_path, node) == []


async def test_what_is_given_up_for_a_refusal_is_not_sent_again_meanwhile(tmp_path: Path) -> None:
    """Looking may take longer than the time to the next sending."""
    async with scripted(tmp_path, resend_interval_s=0.001) as (node, chain):
        looking = chain._submitter._look

        async def slow(entry: Entry) -> object:
            await trio.sleep(0.1)
            return await looking(entry)

        chain._submitter._look = slow  # type: ignore[method-assign, assignment]
        node.scenes.append(Refuse(PAYMENT))
        with pytest.raises(ExtrinsicInvalid):
            await remark(chain)
        assert len(node.sent) == 1


async def test_invalid_for_want_of_money_is_told_and_the_bytes_stay_the_only_ones(tmp_path: Path) -> None:
    """Another node's pool may have it yet: so the same call goes on with the same bytes, until their era is over."""
    async with scripted(tmp_path) as (node, chain):
        node.scenes.extend([["invalid"], Refuse(PAYMENT)])
        with pytest.raises(ExtrinsicInvalid, match=r"Inability to pay .* the same call continues it"):
            await remark(chain)
        node.scenes.append(Refuse(PAYMENT))
        with pytest.raises(ExtrinsicInvalid):
            await chain.submit("System.remark", {"remark": b"another"}, OWN)
        assert len(set(node.sent)) == 2
        assert node.plain == []  # who heard that it was refused does not find it sent behind his back
        node.sent.pop()
        node.scenes.append(Refuse(PAYMENT))
        with pytest.raises(ExtrinsicInvalid, match="Inability to pay"):
            await remark(chain)  # its first refusal in this submission, but not the first time it was sent
        assert pending(tmp_path, node) == [node.sent[0]]
        node.scenes.append([node.include])
        receipt = await remark(chain)
        assert receipt.extrinsic_hash == blake2(node.sent[0])
        assert (set(node.sent + node.plain), on_chain(node)) == ({node.sent[0]}, 1)


async def test_a_signature_that_no_block_can_take_is_given_up_at_once(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (node, chain):
        node.scenes.extend([["invalid"], Refuse(BAD_PROOF)])
        with pytest.raises(ExtrinsicInvalid, match="bad signature"):
            await remark(chain)
        assert pending(tmp_path, node) == []


async def test_a_map_out_of_order_is_a_bad_proof_and_the_client_never_sends_one(tmp_path: Path) -> None:
    """The runtime encodes a call again, maps ascending, before it checks the signature."""
    async with scripted(tmp_path) as (node, chain):
        node.scenes = [Refuse(NO_SUCH_METHOD)] * 2
        first, second = sorted(bytes((number,)) * 20 for number in (1, 2))
        data = {**subnet_data(), "initial_coldkeys": {second: 1, first: 1}}
        shown = await chain.preview("register_subnet", {"max_cost": 1, "subnet_data": data}, OWN)
        raw, decoded = shown.raw, shown.args["subnet_data"]
        assert isinstance(decoded, dict)
        assert list(decoded["initial_coldkeys"]) == [first, second]
        one = (1).to_bytes(4, "little")
        swapped = raw.replace(first + one + second + one, second + one + first + one)
        assert swapped != raw
        with pytest.raises(ExtrinsicInvalid, match="bad signature"):
            await chain._submitter.submit(Intent(swapped, "Network.register_subnet"), OWN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chain._submitter.submit, Intent(raw, "Network.register_subnet"), OWN)
            await until(lambda: len(node.dev.pool) == 1)  # in order the same call is taken
            nursery.cancel_scope.cancel()


async def test_an_extrinsic_whose_nonce_another_used_is_lost_once_that_is_final(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (node, chain):
        other = client(tmp_path / "elsewhere", chain.url, poll_interval_s=0.02)
        errors: list[ExtrinsicLost] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(other.run)
            node.scenes.extend([[node.include], [{"usurped": "0x" + "44" * 32}], Refuse(STALE)])

            async def usurped() -> None:
                with pytest.raises(ExtrinsicLost, match="another extrinsic used its nonce") as caught:
                    await remark(chain)
                errors.append(caught.value)

            # the other's is signed first, and not in a block before ours is signed with the same nonce
            node.scenes[0] = []
            nursery.start_soon(other.submit, "System.remark", {"remark": b"the other"}, OWN)
            await until(lambda: len(node.sent) == 1)
            theirs = node.sent[0]
            nursery.start_soon(usurped)
            await until(lambda: len(node.sent) >= 2)
            node.include(theirs)
            await trio.sleep(0.1)
            assert not errors  # a block that is not final can go again
            node.blocks(1)
            await until(lambda: bool(errors))
            nursery.cancel_scope.cancel()
        assert on_chain(node) == 1


@pytest.mark.parametrize("era", ["open", "over"])
async def test_what_was_in_a_block_that_is_gone_happens_all_the_same(tmp_path: Path, era: str) -> None:
    """Its journal says that it was included, the chain has it no more, and its caller did not hear of it."""
    async with scripted(tmp_path, submit_timeout_s=1.0, era_blocks=4) as (node, chain):
        with pytest.raises(ChainUnavailable):
            await remark(chain)
        journal = Journal.open_locked(tmp_path / "journal", genesis=chain.genesis, account=OWN.account_id)
        assert journal is not None
        journal.close(journal.pending[0], Fate.INCLUDED, delivery=Delivery.WAITING, block=1)
        journal.release()
        first = node.sent[-1]
        node.scenes.append([node.include])
        if era == "over":
            node.blocks(5)
        receipt = await remark(chain)
        assert (receipt.extrinsic_hash == blake2(first)) == (era == "open")
        assert (pending(tmp_path, node), on_chain(node)) == ([], 1)


async def test_an_era_counts_as_over_only_in_final_blocks(tmp_path: Path) -> None:
    async with scripted(tmp_path, era_blocks=4) as (node, chain):
        errors: list[ChainError] = []

        async def submit() -> None:
            with pytest.raises(ExtrinsicLost, match="era ended at block 4") as caught:
                await remark(chain)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            await until(lambda: bool(node.sent))
            node.blocks(3)
            await trio.sleep(0.1)
            assert not errors
            node.blocks(1)


async def test_a_node_that_does_not_watch_is_sent_to_plainly(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (node, chain):
        node.scenes.append(Refuse(NO_SUCH_METHOD))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remark, chain)
            await until(lambda: bool(node.plain))
            node.blocks(1)
        assert node.plain == node.sent[:1]
        assert on_chain(node) == 1


async def test_a_node_that_never_answers_a_submission_ends_it_at_the_deadline(tmp_path: Path) -> None:
    async with scripted(tmp_path, submit_timeout_s=1.5, call_timeout_s=0.7) as (node, chain):

        async def silent(websocket: WebSocketConnection, asked: dict[str, Any]) -> None:
            node.sent.append(bytes.fromhex(asked["params"][0][2:]))

        node._watch = silent  # type: ignore[method-assign]
        with pytest.raises(ChainUnavailable, match="in no block after"):
            await remark(chain)
        assert pending(tmp_path, node) == [node.sent[0]]


def ref(number: int) -> BlockRef:
    return BlockRef(number, bytes(32))


@pytest.mark.parametrize(
    ("best", "final", "until", "birth", "period"),
    [
        (100, 99, None, 99, 64),
        (100, 92, None, 92, 64),
        (100, 80, None, 100, 64),  # finality is far behind: an era born there would be half over
        (100, 100, 164, 100, 64),
        (100, 99, 140, 99, 32),
        (100, 99, 106, 100, 4),
        (100, 100, 101, 100, 4),  # nothing shorter can be said
    ],
)
def test_the_era_ends_with_the_epoch(best: int, final: int, until: int | None, birth: int, period: int) -> None:
    era = era_for(ref(best), ref(final), period=64, until=until)
    assert (era.birth, era.period) == (birth, period)
