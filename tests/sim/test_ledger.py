"""FakeChain's ledger makes and loses no planck: what there is, is what was minted less what was burned, by cause,
through joins, leaves, delegations, refused calls, rewards and slashes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import pytest
import trio
import trio.testing

from mesh.chain.dialect import HotkeyDialect
from mesh.chain.staking import NodeTerms, node_args
from mesh.chain.types import NodeClass, Score
from mesh.errors import ChainError
from mesh.identity import AccountKey, PeerKey
from mesh.testing.chain import BASE_REWARD_PLANCK, FEE_PLANCK, FakeChain, Ledger

TENSOR = 10**18
EPOCHS = 50
PEOPLE = [AccountKey.from_private(bytes((n,)) * 32) for n in range(1, 13)]
HOTKEYS = [AccountKey.from_private(bytes((100 + n,)) * 32) for n in range(1, 13)]
PEERS = [PeerKey.dev(f"ledger {n}").peer_id for n in range(1, 13)]
OWNER = AccountKey.from_private(bytes((99,)) * 32)
W = HotkeyDialect()
Call = tuple[str, Mapping[str, object], AccountKey]


class Life:
    """Draws what people do in a block, often what is refused."""

    def __init__(self, chain: FakeChain, seed: int) -> None:
        self.chain, self.rng = chain, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.paid_fees = 0

    async def block(self, *calls: Call) -> None:
        async def send(call: Call) -> None:
            try:
                receipt = await self.chain.submit(*call)
            except ChainError:
                self.failed[call[0]] += 1
                self.paid_fees += FEE_PLANCK
            else:
                self.done[call[0]] += 1
                self.paid_fees += receipt.fee_planck

        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(send, call)
                await trio.testing.wait_all_tasks_blocked()
            self.chain.new_block()

    def join(self, number: int) -> Call:
        terms = NodeTerms(HOTKEYS[number].account_id, PEERS[number], None, None, 120 * TENSOR, max_burn_planck=0)
        return "register_subnet_node", node_args(self.subnet_id, terms), PEOPLE[number]

    @property
    def subnet_id(self) -> int:
        return next(iter(self.chain.ledger.subnets))

    def anything(self) -> Call:
        number, amount = self.rng.randrange(len(PEOPLE)), self.rng.randrange(1, 60 * TENSOR)
        person, hotkey, subnet = PEOPLE[number], HOTKEYS[number].account_id, {"subnet_id": self.subnet_id}
        node_id = {"subnet_node_id": self.rng.randrange(1, 16)}
        return self.rng.choice(
            [
                self.join(number),
                ("remove_subnet_node", subnet | node_id, person),
                ("add_stake", subnet | node_id | {"hotkey": hotkey, "stake_to_be_added": amount}, person),
                ("remove_stake", subnet | {"hotkey": hotkey, "stake_to_be_removed": amount}, person),
                ("add_to_delegate_stake", subnet | {"stake_to_be_added": amount}, person),
                ("remove_delegate_stake", subnet | {"shares_to_be_removed": amount}, person),
                ("claim_unbondings", {}, person),
                ("Balances.transfer_keep_alive", {"dest": hotkey, "value": amount}, person),
                ("System.remark", {"remark": b"hello"}, person),
            ]
        )

    def votes(self, epoch: int) -> list[Call]:
        """A proposal in consensus, one out of consensus, or none."""
        subnet = self.chain.ledger.subnets[self.subnet_id]
        by_hotkey = {key.account_id: key for key in HOTKEYS}
        elected = subnet.nodes.get(subnet.elected.get(epoch, 0))
        willing = self.rng.choice((0.0, 0.3, 0.8, 1.0))
        if elected is None or not willing:
            return []
        scores = [Score(n, self.rng.randrange(0, 100)) for n in sorted(subnet.nodes) if self.rng.random() < 0.9]
        propose = W.propose(self.subnet_id, None, scores, b"")
        calls: list[Call] = [(propose.name, propose.args, by_hotkey[elected.hotkey])]
        attest = W.attest(self.subnet_id, None)
        voters = [node for node in subnet.nodes.values() if node.node_class is NodeClass.VALIDATOR]
        calls += [(attest.name, attest.args, by_hotkey[node.hotkey]) for node in voters if self.rng.random() < willing]
        return calls


@pytest.mark.parametrize("seed", [1, 2])
async def test_fifty_epochs_of_joins_leaves_delegations_and_slashes_conserve_planck(seed: int) -> None:
    accounts = [OWNER, *PEOPLE, *HOTKEYS]
    ledger = Ledger(seed=seed, fund={key.account_id: 1000 * TENSOR for key in accounts})
    chain = FakeChain(ledger)
    life = Life(chain, seed)
    data: dict[str, object] = {
        "name": b"s", "min_stake": 100 * TENSOR, "max_stake": 500 * TENSOR, "bootnodes": {b"x": b"y"}
    }  # fmt: skip
    await life.block(("register_subnet", {"max_cost": 1, "subnet_data": data}, OWNER))
    await life.block(*(life.join(number) for number in range(6)))
    await life.block(("activate_subnet", {"subnet_id": life.subnet_id}, OWNER))
    slashed = rewarded = 0
    for block in range(EPOCHS * 20):
        offset = block % 20
        calls = [life.anything() for _ in range(life.rng.randrange(2))]
        if offset == 2:
            calls += life.votes(block // 20)
        await life.block(*calls)
        for event in ledger.best.events:
            if event.name == "Slashing":
                slashed += event.fields["amount"]
            elif event.name == "SubnetRewards":
                rewarded += sum(planck for _, planck in event.fields["node_rewards"])
        assert ledger.issuance() == ledger.minted.total() - ledger.burned.total(), f"seed {seed}, block {block}"
    assert ledger.burned == {"fee": life.paid_fees, "slash": slashed}
    assert ledger.minted["genesis"] == len(accounts) * 1000 * TENSOR
    assert ledger.minted["node_rewards"] == rewarded > 0
    assert ledger.minted["proposer_reward"] % BASE_REWARD_PLANCK == 0 < ledger.minted["proposer_reward"]
    assert slashed > 0
    for call in ("register_subnet_node", "remove_subnet_node", "add_stake", "remove_stake", "add_to_delegate_stake",
                 "remove_delegate_stake", "claim_unbondings", "Network.attest"):  # fmt: skip
        assert life.done[call] or life.done[call.partition(".")[2]], f"seed {seed}: no {call} went through"
    assert life.failed["register_subnet_node"]
