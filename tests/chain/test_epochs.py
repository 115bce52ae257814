"""Following a subnet's epochs over a chain that goes on, has not come to the slot yet, or is away."""

from __future__ import annotations

from contextlib import aclosing

import pytest
import trio
import trio.testing

from mesh.chain.epochs import Epochs
from mesh.chain.types import SubnetInfo, SubnetState
from mesh.errors import ChainUnavailable
from mesh.testing.chain import FakeChain, Ledger, _Subnet

SUBNET, SLOT, LENGTH = 128_001, 3, 20


@pytest.fixture
def chain() -> FakeChain:
    ledger = Ledger(seed=1, epoch_length=LENGTH)
    info = SubnetInfo(SUBNET, 1, "sim", SubnetState.ACTIVE, 0, SLOT, b"\0" * 20, 0, 10**30)
    ledger.subnets[SUBNET] = _Subnet(info, {})
    return FakeChain(ledger)


async def test_each_begins_at_the_slot_and_leaves_out_what_passed(
    chain: FakeChain, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    chain.new_blocks(SLOT - 1)
    epochs = Epochs(chain, SUBNET)
    await nursery.start(epochs.run)
    async with aclosing(epochs.each()) as each:
        found: list[tuple[int, int]] = []

        async def follow() -> None:
            async for epoch in each:
                found.append((epoch, epochs.block().number))
                if epoch == 1:
                    await epochs.wait_until(3, 0)  # busy for two epochs

        with trio.CancelScope() as following:

            async def drive() -> None:
                await trio.sleep(1)
                assert found == []
                for number in range(SLOT, SLOT + 4 * LENGTH + 1):
                    chain.new_blocks(number)
                    await trio.sleep(1)
                following.cancel()

            nursery.start_soon(drive)
            await follow()
    assert found == [(n, SLOT + n * LENGTH) for n in (0, 1, 3, 4)]


async def test_is_by_counts_the_offset_itself_and_no_later_one(chain: FakeChain, nursery: trio.Nursery) -> None:
    chain.new_blocks(SLOT + LENGTH + 5)
    epochs = Epochs(chain, SUBNET)
    with pytest.raises(ChainUnavailable):
        epochs.is_by(1, 5)
    await nursery.start(epochs.run)
    assert epochs.is_by(1, 5)
    assert epochs.is_by(2, 0)
    assert not epochs.is_by(1, 4)
    assert not epochs.is_by(0, 19)


async def test_a_snapshot_that_was_read_is_there_while_the_chain_is_away(
    chain: FakeChain, nursery: trio.Nursery
) -> None:
    chain.new_blocks(SLOT + LENGTH)
    epochs = Epochs(chain, SUBNET)
    await nursery.start(epochs.run)
    read = await epochs.snapshot(1)
    chain.away = True
    assert await epochs.snapshot(1) == read
    with pytest.raises(ChainUnavailable):
        await epochs.snapshot(0)
