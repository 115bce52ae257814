"""What every Chain must do: run over FakeChain, and over SubstrateChain against the dev chain's real websocket.

Blocks are made by hand, so nothing here waits for a clock.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
import trio
import trio.testing
from multiaddr import Multiaddr

from mesh.chain.client import Chain
from mesh.chain.dialect import peer_id_bytes
from mesh.chain.epochs import Epochs
from mesh.chain.staking import NodeTerms, node_args
from mesh.chain.substrate import ChainConfig, SubstrateChain
from mesh.chain.types import BlockRef, NodeClass, Receipt, Score, SubnetState
from mesh.devchain.node import DevChain, DevChainConfig, run_chain
from mesh.errors import BlockUnavailable, CallRefused, ChainError, ExtrinsicFailed, ExtrinsicInvalid, first_leaf
from mesh.identity import AccountKey, PeerKey
from mesh.peer import PeerID
from mesh.testing.chain import FakeChain, Ledger

TENSOR = 10**18
STAKE = 200 * TENSOR
OWNER = AccountKey.dev("baltathar")
COLDKEYS = [AccountKey.dev(name) for name in ("alith", "baltathar", "charleth")]
HOTKEYS = [AccountKey.dev(name) for name in ("dorothy", "ethan", "faith")]
PEERS = [PeerKey.dev(f"node {i}").peer_id for i in range(3)]
BOOTNODE = PeerKey.dev("bootnode").peer_id
FUND = {key.account_id: 1_000_000 * TENSOR for key in (*COLDKEYS, *HOTKEYS)}
STRANGER = AccountKey.dev("ian")

T = TypeVar("T")


class Bench(Protocol):
    """A chain under test and the hand that makes its blocks."""

    chain: Chain

    def new_block(self) -> None: ...
    def number(self) -> int: ...
    def pooled(self) -> int: ...


class FakeBench:
    def __init__(self) -> None:
        self.ledger = Ledger(seed=1, fund=FUND)
        self.chain = FakeChain(self.ledger)

    def new_block(self) -> None:
        self.ledger.new_block()

    def number(self) -> int:
        return self.ledger.number

    def pooled(self) -> int:
        return len(self.ledger.pool)


class DevBench:
    def __init__(self, dev: DevChain, chain: SubstrateChain) -> None:
        self.dev = dev
        self.chain = chain

    def new_block(self) -> None:
        self.dev.new_block()

    def number(self) -> int:
        return self.dev.best.number

    def pooled(self) -> int:
        return len(self.dev.pool)


@asynccontextmanager
async def dev_bench(tmp_path: Path) -> AsyncIterator[DevBench]:
    config = DevChainConfig(fund={f"0x{a.hex()}": planck for a, planck in FUND.items()})
    dev = DevChain(config)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: run_chain(config, chain=dev, task_status=task_status))
        chain = SubstrateChain(
            ChainConfig(urls=(url,), call_timeout_s=10, poll_interval_s=0.05),
            journal_dir=tmp_path / "journal",
            rng=random.Random(1),
        )
        await nursery.start(chain.run)
        yield DevBench(dev, chain)
        nursery.cancel_scope.cancel()
    dev.close()


@pytest.fixture(params=["fake", "substrate"])
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if request.param == "fake":
        yield FakeBench()
        return
    async with dev_bench(tmp_path) as made:
        yield made


async def sealed(bench: Bench, act: Callable[[], Awaitable[T]]) -> T:
    """Run something that submits, with a block made whenever something waits for one."""
    results: list[T] = []
    async with trio.open_nursery() as nursery:

        async def seal() -> None:
            while True:
                if bench.pooled():
                    bench.new_block()
                await trio.sleep(0.002)

        async def run() -> None:
            try:
                results.append(await act())
            finally:
                nursery.cancel_scope.cancel()

        nursery.start_soon(seal)
        nursery.start_soon(run)
    return results[0]


async def submit(bench: Bench, call: str, args: dict[str, object], key: AccountKey) -> Receipt:
    try:
        return await sealed(bench, lambda: bench.chain.submit(call, args, key))
    except* ChainError as group:
        error = first_leaf(group)
    raise error


def subnet_data(**changes: object) -> dict[str, object]:
    address = Multiaddr(f"/ip4/127.0.0.1/tcp/8080/p2p/{BOOTNODE}").to_bytes()
    return {
        "name": b"sub-one",
        "repo": b"https://x/y",
        "description": b"d",
        "misc": b"m",
        "min_stake": 100 * TENSOR,
        "max_stake": 1_000 * TENSOR,
        "delegate_stake_percentage": TENSOR // 10,
        "initial_coldkeys": {key.account_id: 1 for key in COLDKEYS},
        "bootnodes": {peer_id_bytes(BOOTNODE): address},
        **changes,
    }


async def registered(bench: Bench) -> int:
    """A registered subnet with three nodes, not yet active."""
    args: dict[str, object] = {"max_cost": 10**24, "subnet_data": subnet_data()}
    await submit(bench, "register_subnet", args, OWNER)
    subnet_id = await bench.chain.resolve_subnet_id(1)
    for coldkey, hotkey, peer in zip(COLDKEYS, HOTKEYS, PEERS, strict=True):
        await submit(bench, "register_subnet_node", registration(subnet_id, hotkey, peer), coldkey)
    return subnet_id


def registration(subnet_id: int, hotkey: AccountKey, peer: PeerID) -> dict[str, object]:
    return node_args(subnet_id, NodeTerms(hotkey.account_id, peer, None, None, STAKE))


async def active(bench: Bench) -> int:
    """The same, active and at its first epoch with an elected node."""
    subnet_id = await registered(bench)
    delegate: dict[str, object] = {"subnet_id": subnet_id, "stake_to_be_added": 400_000 * TENSOR}
    await submit(bench, "add_to_delegate_stake", delegate, COLDKEYS[2])
    await submit(bench, "activate_subnet", {"subnet_id": subnet_id}, OWNER)
    return subnet_id


async def to_epoch(bench: Bench, subnet_id: int, epoch: int) -> None:
    """Make blocks up to the epoch's slot block."""
    slot = (await bench.chain.subnet(subnet_id)).slot
    assert slot is not None
    while bench.number() < slot + epoch * bench.chain.epoch_length:
        bench.new_block()


async def test_blocks_have_numbers_and_hashes(bench: Bench) -> None:
    chain = bench.chain
    assert await chain.block_hash(0) == chain.genesis
    bench.new_block()
    head = await chain.head()
    assert head.number == bench.number() == 1
    assert await chain.block_hash(1) == head.hash
    assert (await chain.finalized()).number <= 1
    with pytest.raises(ChainError, match="no block 2 yet"):
        await chain.block_hash(2)


async def test_heads_come_in_order_and_the_newest_is_never_missed(bench: Bench) -> None:
    seen = []
    async for head in bench.chain.heads():
        seen.append(head.number)
        if head.number == 3:
            break
        bench.new_block()
    assert seen == sorted(set(seen))
    assert seen[-1] == 3


async def test_time_grows_with_blocks(bench: Bench) -> None:
    bench.new_block()
    before = await bench.chain.timestamp_ms()
    bench.new_block()
    assert await bench.chain.timestamp_ms() > before > 1_700_000_000_000


async def test_a_receipt_says_block_fee_and_events(bench: Bench) -> None:
    before = await bench.chain.balance(COLDKEYS[0].account_id)
    receipt = await submit(bench, "System.remark", {"remark": b"hello"}, COLDKEYS[0])
    after = await bench.chain.balance(COLDKEYS[0].account_id)
    assert receipt.block == await bench.chain.head()
    assert receipt.fee_planck > 0
    assert before.free_planck - after.free_planck == receipt.fee_planck
    assert after.nonce == before.nonce + 1
    assert receipt.events[-1].name == "ExtrinsicSuccess"
    events = await bench.chain.events(receipt.block.hash)
    assert [e.name for e in events][-len(receipt.events) :] == [e.name for e in receipt.events]


async def test_several_submissions_of_one_account_at_once_each_happen_once(bench: Bench) -> None:
    receipts: list[Receipt] = []

    async def all_of_them() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(3):

                async def one(number: int = number) -> None:
                    receipts.append(
                        await bench.chain.submit("System.remark", {"remark": bytes((number,))}, COLDKEYS[0])
                    )

                nursery.start_soon(one)

    await sealed(bench, all_of_them)
    assert len({receipt.extrinsic_hash for receipt in receipts}) == 3
    assert (await bench.chain.balance(COLDKEYS[0].account_id)).nonce == 3


async def test_an_unknown_call_and_a_wrong_argument_are_refused_by_name(bench: Bench) -> None:
    submit_it = bench.chain.submit
    with pytest.raises(CallRefused, match="make_me_rich"):
        await submit_it("Network.make_me_rich", {}, OWNER)
    with pytest.raises(CallRefused, match="'subnet'"):
        await submit_it("activate_subnet", {"subnet": 1}, OWNER)
    with pytest.raises(CallRefused, match="'subnet_id'"):
        await submit_it("activate_subnet", {}, OWNER)
    with pytest.raises(CallRefused, match="subnet_id"):
        await submit_it("activate_subnet", {"subnet_id": "1"}, OWNER)
    assert bench.pooled() == 0


async def test_who_cannot_pay_is_refused_before_a_block(bench: Bench) -> None:
    with pytest.raises(ExtrinsicInvalid) as caught:
        await bench.chain.submit("System.remark", {"remark": b""}, STRANGER)
    assert caught.value.code == 1010
    assert bench.pooled() == 0


async def test_a_subnet_and_its_nodes_are_read_back(bench: Bench) -> None:
    subnet_id = await registered(bench)
    assert subnet_id == 128_001
    assert await bench.chain.resolve_subnet_id(subnet_id) == subnet_id
    info = await bench.chain.subnet(subnet_id)
    assert (info.name, info.friendly_id, info.state) == ("sub-one", 1, SubnetState.REGISTERED)
    assert info.slot in (None, 3)  # when a slot is given out is the pallet's affair
    assert info.owner == OWNER.account_id
    assert (info.min_stake_planck, info.max_stake_planck) == (100 * TENSOR, 1_000 * TENSOR)
    snapshot = await bench.chain.snapshot(subnet_id)
    assert snapshot.block == await bench.chain.head()
    assert [node.node_id for node in snapshot.nodes] == [1, 2, 3]
    for node, coldkey, hotkey, peer in zip(snapshot.nodes, COLDKEYS, HOTKEYS, PEERS, strict=True):
        assert (node.coldkey, node.hotkey, node.peer_id) == (coldkey.account_id, hotkey.account_id, peer)
        assert (node.node_class, node.start_epoch, node.stake_planck) == (NodeClass.VALIDATOR, 0, STAKE)
        assert node.reputation == TENSOR
    (bootnode,) = await bench.chain.bootnodes(subnet_id)
    assert bootnode.peer_id == BOOTNODE
    assert [str(a) for a in bootnode.addrs] == ["/ip4/127.0.0.1/tcp/8080"]
    for unknown in (2, 128_002):
        with pytest.raises(ChainError, match="no subnet"):
            await bench.chain.resolve_subnet_id(unknown)
    with pytest.raises(ChainError, match="no subnet"):
        await bench.chain.subnet(128_002)


async def test_the_past_is_read_at_its_block(bench: Bench) -> None:
    subnet_id = await registered(bench)
    then = await bench.chain.head()
    node: dict[str, object] = {"subnet_id": subnet_id, "subnet_node_id": 1, "hotkey": HOTKEYS[0].account_id}
    await submit(bench, "add_stake", {**node, "stake_to_be_added": 7 * TENSOR}, COLDKEYS[0])
    assert (await bench.chain.snapshot(subnet_id, then)).nodes[0].stake_planck == STAKE
    assert (await bench.chain.snapshot(subnet_id)).nodes[0].stake_planck == STAKE + 7 * TENSOR
    assert (await bench.chain.subnet(subnet_id, then.hash)).state is SubnetState.REGISTERED


async def test_a_call_that_fails_in_its_block_says_why_by_name(bench: Bench) -> None:
    with pytest.raises(ExtrinsicFailed) as caught:
        await submit(bench, "activate_subnet", {"subnet_id": 128_009}, OWNER)
    assert (caught.value.pallet, caught.value.name) == ("Network", "NotSubnetOwner")
    subnet_id = await registered(bench)
    again = registration(subnet_id, HOTKEYS[0], PEERS[0])
    with pytest.raises(ExtrinsicFailed, match="HotkeyHasOwner"):
        await submit(bench, "register_subnet_node", again, COLDKEYS[1])
    own = registration(subnet_id, OWNER, PeerKey.dev("x").peer_id)
    with pytest.raises(ExtrinsicFailed, match="ColdkeyMatchesHotkey"):
        await submit(bench, "register_subnet_node", own, OWNER)


async def test_an_epoch_from_election_to_payout(bench: Bench) -> None:
    chain = bench.chain
    subnet_id = await active(bench)
    assert (await chain.subnet(subnet_id)).slot == 3
    assert await chain.elected(subnet_id, 1) is None
    await to_epoch(bench, subnet_id, 1)
    elected = await chain.elected(subnet_id, 1)
    assert elected in (1, 2, 3)
    assert await chain.submission(subnet_id, 1) is None
    proposer, *others = sorted(range(3), key=lambda i: i + 1 != elected)
    scores = [Score(node_id, node_id * TENSOR) for node_id in (3, 1, 2)]

    async def propose(i: int) -> Receipt:
        return await chain.propose(subnet_id, scores, args=b"\x00evidence\xff", hotkey=HOTKEYS[i])

    async def refused(act: Callable[[], Awaitable[Receipt]]) -> str:
        caught: list[str] = []
        try:
            await sealed(bench, act)
        except* ExtrinsicFailed as group:
            leaves, _ = group.split(ExtrinsicFailed)
            caught.append(str(first_leaf(leaves if leaves is not None else group)))
        return caught[0]

    async def attest(i: int) -> Receipt:
        return await chain.attest(subnet_id, hotkey=HOTKEYS[i])

    assert await refused(lambda: attest(others[0])) == "Network.InvalidSubnetConsensusSubmission"
    assert await refused(lambda: propose(others[0])) == "Network.InvalidValidator"
    receipt = await sealed(bench, lambda: propose(proposer))
    assert receipt.fee_planck == 0
    assert "ValidatorSubmission" in [event.name for event in receipt.events]
    assert await refused(lambda: propose(proposer)) == "Network.SubnetRewardsAlreadySubmitted"
    for i in others:
        assert (await sealed(bench, lambda i=i: attest(i))).fee_planck == 0  # type: ignore[misc]
    assert await refused(lambda: attest(others[0])) == "Network.AlreadyAttested"

    submission = await chain.submission(subnet_id, 1)
    assert submission is not None
    assert submission.proposer_node_id == elected
    assert submission.args == b"\x00evidence\xff"
    assert submission.scores == tuple(Score(node_id, node_id * TENSOR) for node_id in (1, 2, 3))
    assert submission.attests == (1, 2, 3)
    assert submission.block == receipt.block.number

    await to_epoch(bench, subnet_id, 2)
    (rewards,) = [e for e in await chain.events((await chain.head()).hash) if e.name == "SubnetRewards"]
    nodes = (await chain.snapshot(subnet_id)).nodes
    paid = {node.node_id: node.stake_planck - STAKE for node in nodes}
    assert paid[elected] > TENSOR * 9 // 10  # the proposer's own reward
    announced = rewards.fields["node_rewards"]
    assert isinstance(announced, list)
    assert {node_id for node_id, _ in announced} == {1, 2, 3}
    for node_id, reward in announced:
        if node_id != elected:
            assert paid[node_id] == reward
    assert dict(announced)[2] == pytest.approx(2 * dict(announced)[1], rel=1e-6)


async def test_epochs_follow_the_chain(bench: Bench) -> None:
    subnet_id = await active(bench)
    await to_epoch(bench, subnet_id, 1)
    epochs = Epochs(bench.chain, subnet_id)
    async with trio.open_nursery() as nursery:
        await nursery.start(epochs.run)
        position = epochs.position()
        assert (position.epoch, position.offset, epochs.slot, epochs.length) == (1, 0, 3, 20)
        snapshot = await epochs.snapshot(1)
        assert (snapshot.block.number, len(snapshot.nodes)) == (23, 3)
        with pytest.raises(ChainError, match="no block 43 yet"):
            await epochs.snapshot(2)
        with pytest.raises(ChainError, match="no block 30 yet"):
            await epochs.draw_hash(1)
        arrived = trio.Event()

        async def wait() -> None:
            await epochs.wait_until(1, 7)
            arrived.set()

        nursery.start_soon(wait)
        while not arrived.is_set():
            bench.new_block()
            await epochs.wait_block()
            await trio.testing.wait_all_tasks_blocked()
        assert (epochs.position().epoch, epochs.position().offset) == (1, 7)
        assert await epochs.draw_hash(1) == await bench.chain.block_hash(30) == epochs.block().hash
        nursery.cancel_scope.cancel()


async def test_stake_goes_in_and_comes_out_a_cooldown_later(bench: Bench) -> None:
    subnet_id = await registered(bench)
    delegate: dict[str, object] = {"subnet_id": subnet_id, "stake_to_be_added": 10 * TENSOR}
    await submit(bench, "add_to_delegate_stake", delegate, COLDKEYS[1])
    with pytest.raises(ExtrinsicFailed, match="NoStakeUnbondingsOrCooldownNotMet"):
        await submit(bench, "claim_unbondings", {}, COLDKEYS[1])
    shares = await bench.chain.storage("Network", "AccountSubnetDelegateStakeShares", COLDKEYS[1].account_id, subnet_id)
    assert isinstance(shares, int)
    undelegate: dict[str, object] = {"subnet_id": subnet_id, "shares_to_be_removed": shares}
    await submit(bench, "remove_delegate_stake", undelegate, COLDKEYS[1])
    before = await bench.chain.balance(COLDKEYS[1].account_id)
    for _ in range(2 * bench.chain.epoch_length):
        bench.new_block()
    receipt = await submit(bench, "claim_unbondings", {}, COLDKEYS[1])
    after = await bench.chain.balance(COLDKEYS[1].account_id)
    assert after.free_planck - before.free_planck + receipt.fee_planck == pytest.approx(10 * TENSOR, abs=1e4)


async def test_storage_is_read_by_name(bench: Bench) -> None:
    subnet_id = await registered(bench)
    assert await bench.chain.storage("Network", "TotalSubnetUids") == subnet_id
    assert await bench.chain.storage("Network", "HotkeyOwner", HOTKEYS[0].account_id) == COLDKEYS[0].account_id
    entries = dict(await bench.chain.storage_map("Network", "HotkeyOwner"))
    owners = zip(HOTKEYS, COLDKEYS, strict=True)
    assert entries == {(hotkey.account_id,): coldkey.account_id for hotkey, coldkey in owners}
    with pytest.raises(CallRefused, match="NoSuchItem"):
        await bench.chain.storage("Network", "NoSuchItem")


async def test_a_fee_is_known_before_to_the_planck_and_asking_costs_nothing(bench: Bench) -> None:
    chain, payer = bench.chain, COLDKEYS[0]
    before = await chain.balance(payer.account_id)
    fee = await chain.estimate_fee("System.remark", {"remark": b"hello"}, payer)
    assert await chain.estimate_fee("System.remark", {"remark": b"hello"}, payer) == fee
    assert await chain.balance(payer.account_id) == before
    assert bench.pooled() == 0
    receipt = await submit(bench, "System.remark", {"remark": b"hello"}, payer)
    assert fee == receipt.fee_planck > 0
    assert before.free_planck - (await chain.balance(payer.account_id)).free_planck == fee
    # whoever cannot pay is told what it would cost
    assert await chain.estimate_fee("System.remark", {"remark": b"hello"}, STRANGER) == fee


async def test_a_price_of_what_cannot_be_called_is_refused_by_name(bench: Bench) -> None:
    with pytest.raises(CallRefused, match="make_me_rich"):
        await bench.chain.estimate_fee("Network.make_me_rich", {}, OWNER)
    with pytest.raises(CallRefused, match="'subnet'"):
        await bench.chain.estimate_fee("activate_subnet", {"subnet": 1}, OWNER)


async def test_constants_are_read_by_name(bench: Bench) -> None:
    assert await bench.chain.constant("Network", "EpochLength") == bench.chain.epoch_length == 20
    assert await bench.chain.constant("Balances", "ExistentialDeposit") == 500
    with pytest.raises(CallRefused, match="NoSuchConstant"):
        await bench.chain.constant("Network", "NoSuchConstant")


async def test_a_block_nobody_knows_is_unavailable(bench: Bench) -> None:
    unknown = b"\x77" * 32
    subnet_id = await registered(bench)
    for ask in (
        lambda: bench.chain.subnet(subnet_id, unknown),
        lambda: bench.chain.snapshot(subnet_id, BlockRef(9, unknown)),
        lambda: bench.chain.events(unknown),
    ):
        with pytest.raises(BlockUnavailable, match="77777777"):
            await ask()
    with pytest.raises(BlockUnavailable, match="no block 999 yet") as caught:
        await bench.chain.block_hash(999)
    assert caught.value.number == 999


async def test_events_are_of_the_block_that_is_named(bench: Bench) -> None:
    receipts = [await submit(bench, "System.remark", {"remark": bytes((n,))}, COLDKEYS[0]) for n in range(2)]
    bench.new_block()
    for receipt in receipts:
        events = await bench.chain.events(receipt.block.hash)
        assert list(events)[-len(receipt.events) :] == list(receipt.events)
    names = [event.name for event in await bench.chain.events((await bench.chain.head()).hash)]
    assert "TransactionFeePaid" not in names


async def test_finality_follows_the_head(bench: Bench) -> None:
    assert (await bench.chain.finalized()).number == 0
    for _ in range(3):
        bench.new_block()
    final = await bench.chain.finalized()
    assert 0 < final.number <= (await bench.chain.head()).number
    assert await bench.chain.block_hash(final.number) == final.hash


async def test_a_reader_of_heads_that_was_slow_gets_the_newest_only(bench: Bench) -> None:
    heads = bench.chain.heads()
    assert (await anext(heads)).number == 0
    for _ in range(5):
        bench.new_block()
    with trio.fail_after(10):
        seen = [(await anext(heads)).number]
        while seen[-1] < 5:
            seen.append((await anext(heads)).number)
    assert seen == sorted(set(seen))
    assert len(seen) <= 5
    await heads.aclose()  # type: ignore[attr-defined]


async def test_what_does_not_exist_is_none_or_empty_and_never_a_struct_of_zeros(bench: Bench) -> None:
    subnet_id = await registered(bench)
    chain = bench.chain
    assert await chain.elected(subnet_id, 99) is None
    assert await chain.submission(subnet_id, 99) is None
    assert (await chain.snapshot(subnet_id + 1)).nodes == ()
    assert await chain.bootnodes(subnet_id + 1) == ()
    for node in (await chain.snapshot(subnet_id)).nodes:
        assert (node.bootnode_peer_id, node.client_peer_id) == (None, None)
    nobody = await chain.balance(b"\x09" * 20)
    assert (nobody.free_planck, nobody.reserved_planck, nobody.nonce) == (0, 0, 0)


async def test_money_is_sent_to_the_planck(bench: Bench) -> None:
    to = b"\x0a" * 20
    args: dict[str, object] = {"dest": to, "value": 7 * TENSOR + 1}
    receipt = await submit(bench, "Balances.transfer_keep_alive", args, COLDKEYS[0])
    assert (await bench.chain.balance(to)).free_planck == 7 * TENSOR + 1
    left = (await bench.chain.balance(COLDKEYS[0].account_id)).free_planck
    assert left == FUND[COLDKEYS[0].account_id] - 7 * TENSOR - 1 - receipt.fee_planck


ERRORS: list[tuple[str, dict[str, object], AccountKey, str]] = [
    ("activate_subnet", {}, COLDKEYS[0], "NotSubnetOwner"),
    ("remove_subnet_node", {"subnet_node_id": 1}, COLDKEYS[1], "NotKeyOwner"),
    ("add_to_delegate_stake", {"stake_to_be_added": 10**30}, COLDKEYS[0], "NotEnoughBalanceToStake"),
    ("remove_delegate_stake", {"shares_to_be_removed": 1}, COLDKEYS[0], "NotEnoughStakeToWithdraw"),
]


async def test_the_pallets_errors_come_by_name(bench: Bench) -> None:
    subnet_id = await registered(bench)
    for call, args, key, name in ERRORS:
        with pytest.raises(ExtrinsicFailed) as caught:
            await submit(bench, call, {"subnet_id": subnet_id, **args}, key)
        assert (caught.value.pallet, caught.value.name) == ("Network", name), call
