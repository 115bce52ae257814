"""The later dialect (S: validator ids) through the same client calls as the deployed one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from mesh.chain import staking
from mesh.chain.staking import NodeTerms, SubnetTerms
from mesh.chain.substrate import SubstrateChain
from mesh.chain.types import NodeClass, Score
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.errors import CallRefused, ExtrinsicFailed
from mesh.identity import AccountKey, PeerKey
from mesh.peer import PeerInfo
from tests.chain import validators
from tests.chain.nodes import Relay, client, refuse, serve

TENSOR = 10**18
SUBNET = validators.SUBNET
COLDKEYS = [AccountKey.from_private(bytes((number,)) * 32) for number in (1, 2)]
HOTKEYS = [AccountKey.from_private(bytes((number,)) * 32) for number in (3, 4)]
PEERS = [PeerKey.dev(f"node {number}").peer_id for number in range(2)]
BOOTNODE = PeerInfo.parse(f"/ip4/192.0.2.1/tcp/1/p2p/{PeerKey.dev('bootnode').peer_id}")
FUND = {f"0x{key.account_id.hex()}": 10**24 for key in (*COLDKEYS, *HOTKEYS)}

T = TypeVar("T")


class Bench:
    def __init__(self, dev: DevChain, relay: Relay, chain: SubstrateChain) -> None:
        self.dev, self.relay, self.chain = dev, relay, chain

    async def sealed(self, act: Callable[[], Awaitable[T]]) -> T:
        """Something that submits, with blocks made for it."""
        results: list[T] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                results.append(await act())
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            while not results:
                if len(self.dev.pool):
                    self.dev.new_block()
                await trio.sleep(0.002)
        return results[0]

    async def submit(self, call: str, key: AccountKey, **args: Any) -> None:
        await self.sealed(lambda: self.chain.submit(call, args, key))

    async def populate(self) -> None:
        for coldkey, hotkey in zip(COLDKEYS, HOTKEYS, strict=True):
            await self.submit("register_validator", coldkey, hotkey=hotkey.account_id, delegate_reward_rate=0)
        initial = {key.account_id: 1 for key in COLDKEYS}
        await self.sealed(lambda: staking.register_subnet(
            self.chain, COLDKEYS[0], terms=SubnetTerms("later", "repo"), initial_coldkeys=initial, bootnodes=[BOOTNODE]
        ))  # fmt: skip
        for number in range(2):
            terms = NodeTerms(HOTKEYS[number].account_id, PEERS[number], None, None, 200 * TENSOR)
            node_id, _ = await self.sealed(
                lambda number=number, terms=terms: staking.register_node(  # type: ignore[misc]
                    self.chain, COLDKEYS[number], subnet_id=1, terms=terms
                )
            )
            assert node_id == number + 1


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async with later_chain(tmp_path, monkeypatch) as made:
        await made.populate()
        yield made


@asynccontextmanager
async def later_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("mesh.devchain.chain.Runtime", validators.runtime)
    dev = DevChain(DevChainConfig(fund=FUND))
    relay = Relay(dev)
    relay.instead.update(dict.fromkeys(("network_getSubnetInfo", "network_getSubnetNodesInfo"), refuse))
    async with trio.open_nursery() as nursery:
        chain = client(tmp_path, await serve(nursery, relay.answer), poll_interval_s=0.02)
        await nursery.start(chain.run)
        yield Bench(dev, relay, chain)
        nursery.cancel_scope.cancel()
    dev.close()


async def test_a_subnet_and_its_nodes_are_read_back(bench: Bench) -> None:
    chain = bench.chain
    assert chain.dialect.name == "validator ids"
    info = await chain.subnet(await chain.resolve_subnet_id(1))
    assert (info.name, info.slot, info.owner) == ("later", 3, COLDKEYS[0].account_id)
    bench.relay.methods()
    for _ in range(2):
        nodes = (await chain.snapshot(SUBNET)).nodes
        found = [(n.node_id, n.coldkey, n.hotkey, n.peer_id, n.stake_planck, n.node_class) for n in nodes]
        assert found == [
            (number + 1, COLDKEYS[number].account_id, HOTKEYS[number].account_id, PEERS[number], 200 * TENSOR,
             NodeClass.VALIDATOR)
            for number in range(2)
        ]  # fmt: skip
        assert [node.client_peer_id for node in nodes] == [None, None]
    assert bench.relay.methods()[-2:] == ["state_getKeysPaged", "state_call"]  # the API, told the same as storage
    assert await chain.storage("Network", "SubnetRegistrationInitialValidators", SUBNET) == {1: 1, 2: 1}
    assert (await chain.bootnodes(SUBNET))[0].peer_id == BOOTNODE.peer_id


async def test_a_round_from_proposal_to_attestation(bench: Bench) -> None:
    chain = bench.chain
    while bench.dev.best.number < 23:
        bench.dev.new_block()
    scores = [Score(2, 1), Score(1, 3)]
    await bench.sealed(lambda: chain.propose(SUBNET, scores, args=b"evidence", hotkey=HOTKEYS[0]))
    await bench.sealed(lambda: chain.attest(SUBNET, hotkey=HOTKEYS[1]))
    submission = await chain.submission(SUBNET, 1)
    assert submission is not None
    assert (submission.proposer_node_id, submission.attests, submission.args) == (1, (1, 2), b"evidence")
    assert submission.scores == (Score(1, 3), Score(2, 1))
    with pytest.raises(ExceptionGroup) as caught:
        await bench.sealed(lambda: chain.attest(SUBNET, hotkey=HOTKEYS[1]))
    assert caught.group_contains(ExtrinsicFailed, match=r"Network\.AlreadyAttested")
    with pytest.raises(CallRefused, match="hotkey of no node"):
        await chain.attest(SUBNET, hotkey=COLDKEYS[0])


async def test_calls_of_the_deployed_dialect_are_translated(bench: Bench) -> None:
    hotkey = HOTKEYS[0].account_id
    await bench.submit("add_stake", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1, hotkey=hotkey, stake_to_be_added=5)
    await bench.submit("remove_stake", COLDKEYS[0], subnet_id=SUBNET, hotkey=hotkey, stake_to_be_removed=2)
    assert (await bench.chain.snapshot(SUBNET)).nodes[0].stake_planck == 200 * TENSOR + 3
    await bench.submit("add_to_delegate_stake", COLDKEYS[1], subnet_id=SUBNET, stake_to_be_added=9)
    item = "AccountSubnetDelegateStakeShares"
    assert await bench.chain.storage("Network", item, COLDKEYS[1].account_id, SUBNET) == 9
    await bench.submit("add_node_stake", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1, stake_to_be_added=5)
    assert (await bench.chain.snapshot(SUBNET)).nodes[0].stake_planck == 200 * TENSOR + 8
    args = {"subnet_id": SUBNET, "subnet_node_id": 1, "hotkey": hotkey, "stake_to_be_added": 5}
    shown = await bench.chain.preview("add_stake", args, COLDKEYS[0])
    assert shown.raw[:2] == bytes((23, 52))
    assert shown.call == "Network.add_node_stake"
    assert shown.args == {"subnet_id": SUBNET, "subnet_node_id": 1, "stake_to_be_added": 5}
    assert await bench.chain.estimate_fee("add_stake", args, COLDKEYS[0]) > 0


NO_PLACE: list[tuple[str, dict[str, object], str]] = [
    ("register_subnet_node", {"subnet_id": 1, "delegate_reward_rate": 5}, "update_validator_delegate_reward_rate"),
    ("register_subnet_node", {"subnet_id": 1}, "needs the argument 'peer_info'"),
    ("register_validator", {"delegate_reward_rate": 0}, "needs the argument 'hotkey'"),
    ("attest", {"subnet_id": 1}, "needs the argument 'subnet_node_id'"),
    ("attest", {"subnet_id": 1, "subnet_node_id": 1, "attest_data": None}, "no argument 'attest_data'"),
    ("update_coldkey", {"hotkey": b"", "new_coldkey": b""}, "no call 'update_coldkey'"),
    ("update_unique", {}, "no call 'update_node_unique'"),
]


async def test_what_this_pallet_has_no_place_for_is_refused_by_name(bench: Bench) -> None:
    for call, args, words in NO_PLACE:
        with pytest.raises(CallRefused, match=words):
            await bench.chain.submit(call, args, COLDKEYS[0])
    assert len(bench.dev.pool) == 0


async def test_an_account_without_a_validator_is_told_so(bench: Bench) -> None:
    terms = NodeTerms(b"\x09" * 20, PeerKey.dev("x").peer_id, None, None, TENSOR)
    with pytest.raises(CallRefused, match="call register_validator first"):
        await staking.register_node(bench.chain, HOTKEYS[0], subnet_id=1, terms=terms)


async def test_a_chain_without_a_network_pallet_is_another_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mesh.devchain.runtime import Runtime
    from mesh.errors import WrongChain

    def bare(*, epoch_length: int, **_: object) -> Runtime:
        made = validators.runtime(epoch_length=epoch_length)
        return Runtime(epoch_length=epoch_length, pallets=[p for p in made.pallets.values() if p.name != "Network"])

    monkeypatch.setattr("mesh.devchain.chain.Runtime", bare)
    dev = DevChain(DevChainConfig(fund=FUND))
    async with trio.open_nursery() as nursery:
        chain = client(tmp_path, await serve(nursery, Relay(dev).answer))
        with pytest.raises(WrongChain, match="no network pallet"):
            await chain.run()
        nursery.cancel_scope.cancel()
    dev.close()
