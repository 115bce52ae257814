"""Delegating to a subnet and to a node: the same rules for both pools, and what the pools are paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mesh.devchain.pallets.network import economics, pools
from mesh.devchain.pallets.network import storage as s

from .chain import COLDKEYS, HOTKEYS, OWNER, SUBNET, TENSOR, Chain, account, node_args
from .test_conservation import booked, supply

ALICE, BOB = account(11), account(12)
ALL = {1: TENSOR, 2: TENSOR, 3: TENSOR}


@dataclass(frozen=True)
class Kind:
    """One of the two pools: its calls, the names of their arguments, and its errors."""

    place: pools.Place
    target: dict[str, int]
    add: tuple[str, str]
    remove: tuple[str, str]
    transfer: tuple[str, str]
    donate: str
    too_little: str
    unknown: str
    cooldown: Any

    def run(self, chain: Chain, call: tuple[str, str], who: bytes, value: int, **more: Any) -> None:
        chain.call(call[0], who, **self.target, **{call[1]: value}, **more)

    def error(self, chain: Chain, call: tuple[str, str], who: bytes, value: int, **more: Any) -> str:
        return chain.error(call[0], who, **self.target, **{call[1]: value}, **more)

    def shares(self, chain: Chain, who: bytes) -> int:
        return pools.owned_by(chain.ctx(), self.place, who)

    def worth(self, chain: Chain, who: bytes) -> int:
        return pools.worth(chain.ctx(), self.place, self.shares(chain, who))


SUBNET_POOL = Kind(
    pools.of_subnet(SUBNET),
    {"subnet_id": SUBNET},
    ("add_to_delegate_stake", "stake_to_be_added"),
    ("remove_delegate_stake", "shares_to_be_removed"),
    ("transfer_delegate_stake", "delegate_stake_shares_to_transfer"),
    "donate_delegate_stake",
    "MinDelegateStakeDepositNotReached",
    "InvalidSubnetId",
    s.DelegateStakeCooldownEpochs,
)
NODE_POOL = Kind(
    pools.of_node(SUBNET, 1),
    {"subnet_id": SUBNET, "subnet_node_id": 1},
    ("add_to_node_delegate_stake", "node_delegate_stake_to_be_added"),
    ("remove_node_delegate_stake", "node_delegate_stake_shares_to_be_removed"),
    ("transfer_node_delegate_stake", "node_delegate_stake_shares_to_transfer"),
    "donate_node_delegate_stake",
    "MinNodeDelegateStakeDepositNotReached",
    "InvalidSubnetNodeId",
    s.NodeDelegateStakeCooldownEpochs,
)

pytestmark = pytest.mark.parametrize("kind", [SUBNET_POOL, NODE_POOL], ids=["subnet", "node"])


@pytest.fixture
def chain() -> Chain:
    """An active subnet of three nodes without delegates; Alice and Bob have 1000 each."""
    made = Chain(
        fund={**dict.fromkeys([*COLDKEYS, *HOTKEYS], 10**6 * TENSOR), ALICE: 1000 * TENSOR, BOB: 1000 * TENSOR}
    )
    made.make_active(delegate=0)
    return made


def test_shares_are_bought_and_sold(chain: Chain, kind: Kind) -> None:
    kind.run(chain, kind.add, ALICE, 100 * TENSOR)
    added = "SubnetDelegateStakeAdded" if kind is SUBNET_POOL else "DelegateNodeStakeAdded"
    fields = {"account_id": ALICE, "subnet_id": SUBNET, "subnet_node_id": 1, "amount": 100 * TENSOR}
    assert chain.event(added) == ((SUBNET, ALICE, 100 * TENSOR) if kind is SUBNET_POOL else fields)
    assert chain.ctx().free_balance(ALICE) == 900 * TENSOR
    assert kind.shares(chain, ALICE) == 100 * TENSOR
    assert pools.read(chain.ctx(), kind.place) == economics.Pool(100 * TENSOR + 1000, 100 * TENSOR)
    kind.run(chain, kind.add, BOB, 50 * TENSOR)
    assert abs(kind.worth(chain, BOB) - 50 * TENSOR) <= 1
    assert supply(chain) == booked(chain)

    chain.ctx().put(kind.cooldown, value=3)
    kind.run(chain, kind.remove, BOB, kind.shares(chain, BOB))
    assert kind.shares(chain, BOB) == 0
    (entry,) = chain.get(s.StakeUnbondingLedger, BOB).items()
    assert entry[0] == chain.block + 3 * 20
    assert 50 * TENSOR - entry[1] in (0, 1)
    removed = "SubnetDelegateStakeRemoved" if kind is SUBNET_POOL else "DelegateNodeStakeRemoved"
    fields = {"account_id": BOB, "subnet_id": SUBNET, "subnet_node_id": 1, "amount": entry[1]}
    assert chain.event(removed) == ((SUBNET, BOB, entry[1]) if kind is SUBNET_POOL else fields)
    assert chain.error("claim_unbondings", BOB) == "NoStakeUnbondingsOrCooldownNotMet"
    chain.to_block(entry[0])
    chain.call("claim_unbondings", BOB)
    assert 1000 * TENSOR - chain.ctx().free_balance(BOB) in (0, 1)
    assert supply(chain) == booked(chain)


def test_deposits_that_are_refused(chain: Chain, kind: Kind) -> None:
    gone = {**kind.target, list(kind.target)[-1]: 9}
    assert chain.error(kind.add[0], ALICE, **gone, **{kind.add[1]: TENSOR}) == kind.unknown
    assert kind.error(chain, kind.add, ALICE, 999) == kind.too_little
    assert kind.error(chain, kind.add, ALICE, 1001 * TENSOR) == "NotEnoughBalanceToStake"
    assert kind.error(chain, kind.add, ALICE, 1000 * TENSOR) == "BalanceWithdrawalError"  # the account must live
    chain.call(kind.donate, BOB, **kind.target, amount=TENSOR)  # nobody holds shares: each is dear now
    assert kind.error(chain, kind.add, ALICE, 1000) == "CouldNotConvertToShares"
    chain.ctx().put(s.TxRateLimit, value=2)
    kind.run(chain, kind.add, ALICE, TENSOR)
    assert kind.error(chain, kind.add, ALICE, TENSOR) == "TxRateLimitExceeded"
    assert kind.error(chain, kind.remove, ALICE, 1) == "TxRateLimitExceeded"


def test_sales_that_are_refused(chain: Chain, kind: Kind) -> None:
    kind.run(chain, kind.add, ALICE, TENSOR)
    assert kind.error(chain, kind.remove, ALICE, 0) == "SharesZero"
    assert kind.error(chain, kind.remove, ALICE, TENSOR + 1) == "NotEnoughStakeToWithdraw"
    assert kind.error(chain, kind.remove, BOB, 1) == "NotEnoughStakeToWithdraw"
    chain.ctx().put(s.MaxUnbondings, value=1)
    kind.run(chain, kind.remove, ALICE, 10)
    chain.next_block()
    assert kind.error(chain, kind.remove, ALICE, 10) == "MaxUnlockingsReached"


def test_what_was_delegated_to_something_gone_is_not_gone(chain: Chain, kind: Kind) -> None:
    kind.run(chain, kind.add, ALICE, TENSOR)
    chain.call("remove_subnet_node", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1)
    chain.ctx().put(s.SubnetReputation, SUBNET, value=0)
    chain.to_block(40)
    assert not chain.ctx().has(s.SubnetsData, SUBNET)
    assert kind.error(chain, kind.add, ALICE, TENSOR) == kind.unknown
    assert chain.error(kind.donate, ALICE, **kind.target, amount=TENSOR) == kind.unknown
    kind.run(chain, kind.transfer, ALICE, TENSOR // 2, to_account_id=BOB)
    for who in (ALICE, BOB):
        kind.run(chain, kind.remove, who, TENSOR // 2)
    paid = sum(sum(chain.get(s.StakeUnbondingLedger, who).values()) for who in (ALICE, BOB))
    assert TENSOR - 1100 < paid < TENSOR
    assert not chain.ctx().has(s.SubnetNetFlow, SUBNET)
    assert supply(chain) == booked(chain)


def test_shares_are_handed_over_by_who_has_them(chain: Chain, kind: Kind) -> None:
    kind.run(chain, kind.add, ALICE, TENSOR)
    before = pools.read(chain.ctx(), kind.place)
    assert kind.error(chain, kind.transfer, ALICE, 0, to_account_id=BOB) == "NotEnoughStakeToWithdraw"
    assert kind.error(chain, kind.transfer, ALICE, TENSOR + 1, to_account_id=BOB) == "NotEnoughStakeToWithdraw"
    assert kind.error(chain, kind.transfer, BOB, TENSOR, to_account_id=account(1)) == "NotEnoughStakeToWithdraw"
    assert kind.error(chain, kind.transfer, ALICE, TENSOR, to_account_id=ALICE) == "TransferToSelfNotAllowed"
    assert kind.error(chain, kind.transfer, ALICE, 1000, to_account_id=BOB) == "CouldNotConvertToBalance"  # 999 planck
    kind.run(chain, kind.transfer, ALICE, TENSOR // 4, to_account_id=BOB)
    assert (kind.shares(chain, ALICE), kind.shares(chain, BOB)) == (TENSOR - TENSOR // 4, TENSOR // 4)
    assert pools.read(chain.ctx(), kind.place) == before
    assert kind.error(chain, kind.remove, ALICE, TENSOR) == "NotEnoughStakeToWithdraw"
    kind.run(chain, kind.remove, BOB, TENSOR // 4)


def test_a_donation_is_for_all_who_hold_shares(chain: Chain, kind: Kind) -> None:
    def donate(amount: int, **target: int) -> dict[str, int]:
        return {**kind.target, **target, "amount": amount}

    kind.run(chain, kind.add, ALICE, 100 * TENSOR)
    gone = {list(kind.target)[-1]: 9}
    assert chain.error(kind.donate, BOB, **donate(TENSOR, **gone)) == kind.unknown
    assert chain.error(kind.donate, BOB, **donate(999)) == "MinDelegateStake"
    assert chain.error(kind.donate, BOB, **donate(1001 * TENSOR)) == "NotEnoughBalance"
    assert chain.error(kind.donate, BOB, **donate(1000 * TENSOR)) == "BalanceWithdrawalError"
    chain.call(kind.donate, BOB, **donate(10 * TENSOR))
    assert kind.shares(chain, BOB) == 0
    assert 0 <= 110 * TENSOR - kind.worth(chain, ALICE) < 2000
    assert chain.ctx().free_balance(BOB) == 990 * TENSOR
    assert supply(chain) == booked(chain)
    if kind is NODE_POOL:  # a node that waits can be delegated to, but not donated to
        chain.call("register_subnet_node", OWNER, **node_args(3, hotkey=account(3)))
        waiting = {"subnet_id": SUBNET, "subnet_node_id": 4}
        chain.call(kind.add[0], ALICE, **waiting, **{kind.add[1]: TENSOR})
        assert chain.error(kind.donate, BOB, **waiting, amount=TENSOR) == "InvalidSubnetNodeId"


def test_a_first_depositor_cannot_steal_by_inflating_the_share_price(chain: Chain, kind: Kind) -> None:
    """The classic attack: deposit the least, keep one share, make it dear, let the victim round to nothing."""
    kind.run(chain, kind.add, ALICE, 1000)
    kind.run(chain, kind.remove, ALICE, 999)
    chain.call(kind.donate, ALICE, **kind.target, amount=100 * TENSOR)
    assert kind.error(chain, kind.add, BOB, TENSOR // 100) == "CouldNotConvertToShares"  # refused, not taken
    kind.run(chain, kind.add, BOB, 200 * TENSOR)
    assert kind.worth(chain, BOB) > 199 * TENSOR
    assert kind.worth(chain, ALICE) < TENSOR  # 100 went to shares that are nobody's


def test_rewards_reach_the_delegates_of_who_earned_them(kind: Kind) -> None:
    """A proposal of three nodes, one with delegates, a rate and a delegate account: every planck, to the last."""
    third = TENSOR // 3
    chain = Chain(
        fund={**dict.fromkeys([*COLDKEYS, *HOTKEYS], 10**6 * TENSOR), ALICE: 1000 * TENSOR, BOB: 1000 * TENSOR}
    )
    chain.to_block(8)
    chain.register_subnet()
    friend = {"account_id": BOB, "rate": third}
    chain.register_node(0, delegate_reward_rate=TENSOR // 4, delegate_account=friend)
    chain.register_node(1, delegate_reward_rate=TENSOR // 4)  # nobody delegates to it: it keeps all
    chain.register_node(2)
    chain.call("add_to_delegate_stake", ALICE, subnet_id=SUBNET, stake_to_be_added=100 * TENSOR)
    chain.call(
        "add_to_node_delegate_stake", ALICE, subnet_id=SUBNET, subnet_node_id=1, node_delegate_stake_to_be_added=TENSOR
    )
    chain.call("activate_subnet", OWNER, subnet_id=SUBNET)
    chain.agree(1, ALL, elect=3)
    before = kind.worth(chain, ALICE)
    stake = chain.stake_of(1)
    chain.to_slot(2)
    paid = chain.event("SubnetRewards")
    nodes = dict(paid["node_rewards"])
    ((node, to_delegates),) = paid["node_delegate_stake_rewards"]
    ((owner_node, (who, to_friend)),) = paid["node_delegate_account_allocations"]
    assert (node, owner_node, who) == (1, 1, BOB)
    whole = nodes[1] + to_delegates + to_friend
    assert whole == nodes[2]  # the same score, attested in the same block
    assert to_delegates == economics.percent_mul(whole, TENSOR // 4)
    assert to_friend == economics.percent_mul(whole - to_delegates, third)
    assert chain.stake_of(1) == stake + nodes[1]
    assert chain.get(s.AccountDelegateStake, BOB) == chain.get(s.TotalAccountDelegateStake) == to_friend
    gained = paid["delegate_stake_reward"] if kind is SUBNET_POOL else to_delegates
    assert 0 <= gained - (kind.worth(chain, ALICE) - before) <= gained // 10**14  # the dead shares' part
    assert supply(chain) == booked(chain)
