"""FakeChain by the clock, out of reach, and the same every time; Epochs over it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mesh.chain.dialect import HotkeyDialect
from mesh.chain.epochs import Epochs
from mesh.chain.staking import NodeTerms, node_args
from mesh.chain.types import NodeClass, Score
from mesh.errors import CallRefused, ChainUnavailable, ExtrinsicFailed
from mesh.identity import AccountKey, PeerKey
from mesh.testing.chain import FakeChain, Ledger

TENSOR = 10**18
KEYS = [AccountKey.from_private(bytes((n,)) * 32) for n in range(1, 9)]
W = HotkeyDialect()


def ledger(seed: int = 0) -> Ledger:
    return Ledger(seed=seed, fund={key.account_id: 10_000 * TENSOR for key in KEYS})


async def mined(chain: FakeChain, call: str, args: dict[str, object], key: AccountKey) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.submit, call, args, key)
        await trio.testing.wait_all_tasks_blocked()
        chain.new_block()


def registration(subnet_id: int, hotkey: AccountKey, name: str) -> dict[str, object]:
    peer = PeerKey.dev(name).peer_id
    return node_args(subnet_id, NodeTerms(hotkey.account_id, peer, None, None, 10 * TENSOR, max_burn_planck=0))


async def subnet(chain: FakeChain) -> int:
    data: dict[str, object] = {"name": b"s", "min_stake": TENSOR, "max_stake": 100 * TENSOR, "bootnodes": {b"x": b"y"}}
    await mined(chain, "register_subnet", {"max_cost": 1, "subnet_data": data}, KEYS[0])
    for i in range(3):
        await mined(chain, "register_subnet_node", registration(128_001, KEYS[i + 4], f"f{i}"), KEYS[i])
    await mined(chain, "activate_subnet", {"subnet_id": 1 + 128_000}, KEYS[0])
    return 128_001


async def test_blocks_come_by_the_clock_once_however_many_views_run(autojump_clock: trio.testing.MockClock) -> None:
    shared = ledger()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            await nursery.start(FakeChain(shared, block_time_s=6).run)
        await trio.sleep(61)
        assert shared.number == 10
        nursery.cancel_scope.cancel()


async def test_a_view_started_later_keeps_no_other_time(autojump_clock: trio.testing.MockClock) -> None:
    shared = ledger()
    async with trio.open_nursery() as nursery:
        await nursery.start(FakeChain(shared, block_time_s=6).run)
        await trio.sleep(20)
        await nursery.start(FakeChain(shared, block_time_s=6).run)
        await trio.sleep(101)
        assert shared.number == 20
        nursery.cancel_scope.cancel()


async def test_away_means_away_for_this_node_only() -> None:
    shared = ledger()
    here, there = FakeChain(shared), FakeChain(shared)
    here.away = True
    with pytest.raises(ChainUnavailable):
        await here.head()
    with pytest.raises(ChainUnavailable):
        await here.submit("System.remark", {"remark": b""}, KEYS[0])
    assert (await there.head()).number == 0


async def run_to_epoch(seed: int, epochs: int) -> tuple[bytes, list[int]]:
    chain = FakeChain(ledger(seed))
    subnet_id = await subnet(chain)
    chain.new_blocks(until=3 + 20 * epochs)
    elected = [await chain.elected(subnet_id, e) or 0 for e in range(epochs + 1)]
    return (await chain.head()).hash, elected


async def test_the_same_seed_gives_the_same_chain_and_another_another() -> None:
    assert await run_to_epoch(1, 12) == await run_to_epoch(1, 12)
    assert await run_to_epoch(1, 12) != await run_to_epoch(2, 12)


async def test_a_proposal_without_attestations_is_slashed_and_pays_nobody() -> None:
    chain = FakeChain(ledger())
    subnet_id = await subnet(chain)
    chain.new_blocks(until=23)
    elected = await chain.elected(subnet_id, 1)
    assert elected is not None
    call = W.propose(subnet_id, None, [Score(elected, 1)], b"")
    await mined(chain, call.name, call.args, KEYS[elected + 3])
    chain.new_blocks(until=43)
    for node in (await chain.snapshot(subnet_id)).nodes:
        if node.node_id == elected:
            assert 9 * TENSOR < node.stake_planck < 10 * TENSOR
        else:
            assert node.stake_planck == 10 * TENSOR


async def test_a_later_node_rises_to_validator_and_is_elected_no_sooner() -> None:
    chain = FakeChain(ledger())
    subnet_id = await subnet(chain)
    chain.new_blocks(until=23)
    await mined(chain, "register_subnet_node", registration(subnet_id, KEYS[7], "late"), KEYS[3])
    risen: dict[NodeClass, int] = {}
    for epoch in range(2, 12):
        chain.new_blocks(until=3 + 20 * epoch)
        late = (await chain.snapshot(subnet_id)).nodes[3]
        risen.setdefault(late.node_class, epoch)
        if late.node_class is not NodeClass.VALIDATOR:
            assert await chain.elected(subnet_id, epoch) != 4
            call = W.attest(subnet_id, None)
            with pytest.raises(BaseExceptionGroup) as caught:
                await mined(chain, call.name, call.args, KEYS[7])
            assert caught.group_contains(ExtrinsicFailed, match="InvalidSubnetNodeClassification")
    assert list(risen) == [NodeClass.REGISTERED, NodeClass.IDLE, NodeClass.INCLUDED, NodeClass.VALIDATOR]


async def test_arguments_of_a_wrong_shape_fail_the_caller_and_not_the_chain() -> None:
    chain = FakeChain(ledger())
    subnet_id = await subnet(chain)
    chain.new_blocks(until=23)
    elected = await chain.elected(subnet_id, 1)
    assert elected is not None
    with pytest.raises(BaseExceptionGroup) as caught:
        await mined(chain, "propose_attestation", {"subnet_id": subnet_id, "data": [{"node": 1}]}, KEYS[elected + 3])
    assert caught.group_contains(CallRefused)
    chain.new_block()


async def test_epochs_are_unknown_before_the_first_head_and_survive_an_outage() -> None:
    chain = FakeChain(ledger())
    subnet_id = await subnet(chain)
    epochs = Epochs(chain, subnet_id)
    with pytest.raises(ChainUnavailable):
        epochs.position()
    async with trio.open_nursery() as nursery:
        await nursery.start(epochs.run)
        chain.away = True
        chain.new_blocks(until=30)
        await trio.testing.wait_all_tasks_blocked()
        assert epochs.position().epoch == 0
        chain.away = False
        chain.new_block()
        await epochs.wait_until(1, 8)
        assert (epochs.position().epoch, epochs.position().offset) == (1, 8)
        kept = await epochs.snapshot(1)
        assert await epochs.snapshot(1) is kept
        nursery.cancel_scope.cancel()


async def test_a_subnet_activated_later_gets_its_slot(autojump_clock: trio.testing.MockClock) -> None:
    chain = FakeChain(ledger())
    data: dict[str, object] = {"name": b"s", "min_stake": TENSOR, "max_stake": 100 * TENSOR, "bootnodes": {b"x": b"y"}}
    await mined(chain, "register_subnet", {"max_cost": 1, "subnet_data": data}, KEYS[0])
    epochs = Epochs(chain, 128_001)
    async with trio.open_nursery() as nursery:
        await nursery.start(epochs.run)
        assert epochs.slot == 0
        for i in range(3):
            await mined(chain, "register_subnet_node", registration(128_001, KEYS[i + 4], f"f{i}"), KEYS[i])
        await mined(chain, "activate_subnet", {"subnet_id": 128_001}, KEYS[0])
        await trio.testing.wait_all_tasks_blocked()
        assert epochs.slot == 3
        nursery.cancel_scope.cancel()
