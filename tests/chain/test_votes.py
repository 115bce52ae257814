"""A vote is for one epoch, though the pallet counts it for whatever epoch its block is in and it does not say which."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.chain.journal import Journal
from mesh.chain.substrate import SubstrateChain
from mesh.devchain.chain import DevChain
from mesh.devchain.node import run_chain
from mesh.devchain.pallets.network import storage as s
from mesh.errors import ChainUnavailable
from mesh.identity import AccountKey
from tests.chain.nodes import client
from tests.chain.subnet import SUBNET, config, populate, propose, to_next_epoch
from tests.contract.test_chain import HOTKEYS


@asynccontextmanager
async def voting(tmp_path: Path) -> AsyncIterator[tuple[DevChain, str, trio.Nursery]]:
    dev = DevChain(config(None))
    populate(dev)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: run_chain(dev.config, chain=dev, task_status=task_status))
        yield dev, url, nursery
        nursery.cancel_scope.cancel()
    dev.close()


def proposed(dev: DevChain) -> tuple[int, int, AccountKey]:
    """(epoch, node, hotkey) of one who is to attest the proposal of the next epoch, which is made."""
    epoch = to_next_epoch(dev)
    elected = dev.get(s.SubnetElectedValidator, SUBNET, epoch)
    propose(dev, elected)
    node = elected % 3 + 1
    return epoch, node, HOTKEYS[node - 1]


def attests(dev: DevChain, epoch: int) -> set[int]:
    return set(dev.get(s.SubnetConsensusSubmission, SUBNET, epoch)["attests"])


async def seal(dev: DevChain) -> None:
    while True:
        if len(dev.pool):
            dev.new_block()
        await trio.sleep(0.005)


async def cancelled_before_it_heard(chain: SubstrateChain, hotkey: AccountKey) -> None:
    closing = chain._submitter._close
    with trio.CancelScope() as scope:

        async def close(*args: Any, **named: Any) -> None:
            await closing(*args, **named)
            scope.cancel()

        chain._submitter._close = close  # type: ignore[method-assign]
        await chain.attest(SUBNET, hotkey=hotkey)
    assert scope.cancelled_caught


async def test_a_vote_nobody_heard_of_is_heard_of_in_its_epoch_and_does_not_stand_for_the_next(tmp_path: Path) -> None:
    async with voting(tmp_path) as (dev, url, nursery):
        epoch, node, hotkey = proposed(dev)
        nursery.start_soon(seal, dev)
        chain = client(tmp_path, url)
        await nursery.start(chain.run)
        await cancelled_before_it_heard(chain, hotkey)
        assert node in attests(dev, epoch)
        again = client(tmp_path, url)
        await nursery.start(again.run)
        await again.attest(SUBNET, hotkey=hotkey)
        assert dev.nonce(hotkey.account_id) == 1
        later = to_next_epoch(dev)
        while dev.get(s.SubnetElectedValidator, SUBNET, later) == node:
            later = to_next_epoch(dev)
        propose(dev, dev.get(s.SubnetElectedValidator, SUBNET, later))
        third = client(tmp_path, url)  # to which it could be something that was never heard of
        await nursery.start(third.run)
        await third.attest(SUBNET, hotkey=hotkey)
        assert node in attests(dev, later)


@pytest.mark.parametrize("offset", [1, 6, 13])
async def test_a_vote_left_over_cannot_be_counted_in_the_next_epoch(tmp_path: Path, offset: int) -> None:
    async with voting(tmp_path) as (dev, url, nursery):
        epoch, node, hotkey = proposed(dev)
        end = dev.best.number - 1 + 20
        for _ in range(offset - 1):
            dev.new_block()
        chain = client(tmp_path, url, submit_timeout_s=0.3)
        await nursery.start(chain.run)
        with pytest.raises(ChainUnavailable):
            await chain.attest(SUBNET, hotkey=hotkey)
        journal = Journal.open_locked(tmp_path / "journal", genesis=chain.genesis, account=hotkey.account_id)
        assert journal is not None
        journal.release()
        (left,) = journal.pending
        assert dev.best.number < left.era_end <= end
        dev.pool.remove(next(iter(dev.pool)))
        later, _, _ = proposed(dev)
        await chain.recover(hotkey.account_id)
        dev.new_block()
        assert later == epoch + 1
        assert len(attests(dev, later)) == 1
        assert node not in attests(dev, epoch)
