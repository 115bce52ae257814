"""Several URLs: the next one when one dies, none of another chain, none that is far behind; heads go on meanwhile."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.chain.connection import ROUNDS_BEHIND, Connection
from mesh.chain.substrate import SubstrateChain
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.errors import ChainUnavailable
from tests.chain.nodes import FUND, Node, Relay, client, config, serve, until


@asynccontextmanager
async def nodes(tmp_path: Path, *numbers: int, **changes: Any) -> AsyncIterator[tuple[list[Node], SubstrateChain]]:
    """Nodes of one chain that stand at these blocks, and a client that knows their URLs in this order."""
    async with trio.open_nursery() as nursery:
        made = []
        for number in numbers:
            node = Node(nursery)
            for _ in range(number):
                node.dev.new_block()
            await node.start()
            made.append(node)
        settings: dict[str, Any] = {"max_lag_blocks": 4, "call_timeout_s": 2, **changes}
        chain = client(tmp_path, *[node.url for node in made], **settings)
        with trio.fail_after(30):
            await nursery.start(chain.run)
            yield made, chain
        nursery.cancel_scope.cancel()


def uses(chain: SubstrateChain, node: Node) -> bool:
    try:
        return chain.url == node.url
    except ChainUnavailable:
        return False


async def test_a_node_that_falls_behind_the_others_is_left(tmp_path: Path) -> None:
    async with nodes(tmp_path, 0, 0, lag_check_s=0.05) as ((slow, good), chain):
        assert uses(chain, slow)
        for _ in range(4):
            good.dev.new_block()
        await trio.sleep(0.2)
        assert uses(chain, slow)  # so far behind is no reason yet
        heads = chain.heads()
        assert (await anext(heads)).number == 0
        good.dev.new_block()
        await until(lambda: uses(chain, good))
        assert (await anext(heads)).number == 5  # the iterator goes on with the other node
        assert (await chain.head()).number == 5
        await heads.aclose()  # type: ignore[attr-defined]


async def test_a_node_that_is_far_behind_is_passed_over(tmp_path: Path) -> None:
    async with nodes(tmp_path, 20, 3, 20) as ((first, behind, third), chain):
        assert uses(chain, first)
        first.kill()
        await until(lambda: uses(chain, third))
        assert behind.dev.best.number == 3


async def test_one_that_is_behind_is_taken_only_after_all_were_tried_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(tmp_path, 20, 3) as ((first, behind), chain):
        first.kill()
        await until(lambda: uses(chain, behind))
        assert caplog.text.count("it is passed over") == ROUNDS_BEHIND
        assert (await chain.head()).number == 3
        behind.dev.new_block()
        async for head in chain.heads():  # and it is followed
            if head.number == 4:
                break


async def test_the_same_chain_set_back_is_found_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, 20) as ((node,), chain):
        node.kill()
        node.dev = DevChain(DevChainConfig(fund=FUND))
        await node.start()
        with trio.fail_after(10):
            while True:
                try:
                    assert (await chain.head()).number == 0
                    break
                except ChainUnavailable:
                    pass


async def test_no_url_of_another_chain_is_taken(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2, 2, call_timeout_s=0.4) as ((first, second), chain):
        second.kill()
        second.dev = DevChain(DevChainConfig(fund={}))
        await second.start()
        first.kill()
        with pytest.raises(ChainUnavailable):
            await chain.head()
        await first.start()
        await until(lambda: uses(chain, first))


@pytest.mark.parametrize("header", [None, 7, {"number": "0x7fffffff"}, {"number": "x"}, {}])
async def test_what_another_url_claims_without_proof_takes_us_nowhere_worse(tmp_path: Path, header: object) -> None:
    """A claim is a reason to try that node, whose head is then checked as every head is."""
    async with trio.open_nursery() as nursery:
        dev = DevChain(DevChainConfig(fund=FUND))
        honest, liar = Relay(dev), Relay(dev)
        liar.instead["chain_getHeader"] = lambda _: header
        urls = [await serve(nursery, relay.answer) for relay in (honest, liar)]
        chain = client(tmp_path, *urls, lag_check_s=0.02, call_timeout_s=2)
        await nursery.start(chain.run)
        await until(lambda: ("chain_getHeader", []) in liar.asked)
        await trio.sleep(0.1)
        dev.new_block()
        assert (await chain.head()).number == 1
        assert chain.url == urls[0]
        nursery.cancel_scope.cancel()
    dev.close()


def test_the_wait_between_tries_grows_to_its_bound_and_is_jittered() -> None:
    made = Connection(config("ws://x", backoff_first_s=0.5, backoff_max_s=30), cache_dir=None, rng=random.Random(1))
    waits = [[made._backoff(failures) for _ in range(50)] for failures in (0, 1, 5, 6, 1000)]
    for some, longest in zip(waits, (0.5, 1, 16, 30, 30), strict=True):
        assert longest / 2 <= min(some) < max(some) <= longest
