"""What a node may change: its delegators' rate, its bytes, its delegate account; and what that account may do."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallets.network import storage as s

from .chain import COLDKEYS, HOTKEYS, SUBNET, TENSOR, Chain, account, node_args
from .test_conservation import booked, supply

COLD, HOT = COLDKEYS[0], HOTKEYS[0]
FRIEND, STRANGER = account(9), account(22)
NODE: dict[str, Any] = {"subnet_id": SUBNET, "subnet_node_id": 1}
WAITING: dict[str, Any] = {"subnet_id": SUBNET, "subnet_node_id": 4}
ALL = {1: TENSOR, 2: TENSOR, 3: TENSOR}
PERCENT = TENSOR // 100

both = pytest.mark.parametrize("node", [NODE, WAITING], ids=["active", "queued"])


@pytest.fixture
def chain() -> Chain:
    """An active subnet of three nodes; the first coldkey also has node 4, which waits in the queue."""
    made = Chain(fund={**dict.fromkeys([*COLDKEYS, *HOTKEYS], 10**6 * TENSOR), FRIEND: TENSOR})
    made.make_active()
    made.call("register_subnet_node", COLD, **node_args(3, hotkey=account(4), unique=b"four"))
    return made


def stored(chain: Chain, node: dict[str, Any]) -> dict[str, Any]:
    item = s.SubnetNodesData if node is NODE else s.RegisteredSubnetNodesData
    found: dict[str, Any] = chain.get(item, SUBNET, node["subnet_node_id"])
    return found


# --- the rate ----------------------------------------------------------------------------------------------------


@both
def test_the_rate_rises_freely_and_falls_slowly(chain: Chain, node: dict[str, Any]) -> None:
    def change(rate: int) -> dict[str, Any]:
        return {**node, "new_delegate_reward_rate": rate}

    name = "update_node_delegate_reward_rate"
    chain.ctx().put(s.NodeRewardRateUpdatePeriod, value=5)
    chain.ctx().put(s.MaxRewardRateDecrease, value=PERCENT)
    chain.call(name, COLD, **change(50 * PERCENT))  # the block it never changed in is 0
    assert chain.event("SubnetNodeUpdateDelegateRewardRate") == {**node, "delegate_reward_rate": 50 * PERCENT}
    assert stored(chain, node)["delegate_reward_rate"] == 50 * PERCENT
    assert stored(chain, node)["last_delegate_reward_rate_update"] == chain.block
    chain.to_block(chain.block + 4)
    assert chain.error(name, COLD, **change(51 * PERCENT)) == "MaxRewardRateUpdates"
    chain.next_block()
    assert chain.error(name, COLD, **change(50 * PERCENT)) == "NoDelegateRewardRateChange"
    assert chain.error(name, COLD, **change(49 * PERCENT - 1)) == "SurpassesMaxRewardRateDecrease"
    assert chain.error(name, COLD, **change(95 * PERCENT + 1)) == "InvalidDelegateRewardRate"
    for who in (HOT, STRANGER):
        assert chain.error(name, who, **change(49 * PERCENT)) == "NotKeyOwner"
    assert chain.error(name, COLD, **change(1) | {"subnet_node_id": 9}) == "NotKeyOwner"
    chain.call(name, COLD, **change(49 * PERCENT))


def test_a_rate_changed_after_the_proposal_is_for_the_next_one(chain: Chain) -> None:
    stake = {**NODE, "node_delegate_stake_to_be_added": TENSOR}
    chain.call("add_to_node_delegate_stake", COLDKEYS[1], **stake)
    chain.agree(1, ALL, elect=3)
    chain.call("update_node_delegate_reward_rate", COLD, **NODE, new_delegate_reward_rate=50 * PERCENT)
    chain.to_slot(2)
    assert chain.event("SubnetRewards")["node_delegate_stake_rewards"] == []
    chain.agree(2, ALL, elect=3)
    chain.to_slot(3)
    ((node, _),) = chain.event("SubnetRewards")["node_delegate_stake_rewards"]
    assert node == 1


# --- its bytes ---------------------------------------------------------------------------------------------------


@both
def test_unique_bytes_are_one_nodes_of_a_subnet(chain: Chain, node: dict[str, Any]) -> None:
    other, hotkey = (WAITING, account(4)) if node is NODE else (NODE, HOT)
    chain.call("update_unique", COLD, **other, unique=b"theirs")
    assert chain.error("update_unique", COLD, **node, unique=b"theirs") == "UniqueParameterTaken"
    chain.call("update_unique", COLD, **node, unique=b"mine")
    assert chain.event_of("SubnetNodeUpdateUnique", -1) == {**node, "unique": b"mine"}
    assert stored(chain, node)["unique"] == b"mine"
    assert chain.get(s.UniqueParamSubnetNodeId, SUBNET, b"mine") == node["subnet_node_id"]
    chain.call("update_unique", COLD, **node, unique=b"mine")  # its own
    chain.call("update_unique", hotkey, **other, unique=None)  # by the hotkey too
    assert not chain.ctx().has(s.UniqueParamSubnetNodeId, SUBNET, b"theirs")
    chain.call("update_unique", COLD, **node, unique=b"theirs")
    assert not chain.ctx().has(s.UniqueParamSubnetNodeId, SUBNET, b"mine")
    for who in (STRANGER, COLDKEYS[1], hotkey):
        assert chain.error("update_unique", who, **node, unique=b"x") == "NotKeyOwner"
    chain.call("remove_subnet_node", COLD, **node)
    assert not chain.ctx().has(s.UniqueParamSubnetNodeId, SUBNET, b"theirs")


@both
def test_non_unique_bytes_are_anything(chain: Chain, node: dict[str, Any]) -> None:
    for value in (b"same", None, b""):
        chain.call("update_non_unique", COLD, **node, non_unique=value)
        assert chain.event_of("SubnetNodeUpdateNonUnique", -1) == {**node, "non_unique": value}
        assert stored(chain, node)["non_unique"] == value
    chain.call("update_non_unique", HOT if node is NODE else account(4), **node, non_unique=b"hot")
    for who in (STRANGER, COLDKEYS[1]):
        assert chain.error("update_non_unique", who, **node, non_unique=b"x") == "NotKeyOwner"


# --- the delegate account ----------------------------------------------------------------------------------------


def account_args(node: dict[str, Any], who: bytes | None, rate: int | None) -> dict[str, Any]:
    return {**node, "delegate_account_id": who, "delegate_rate": rate}


@both
def test_a_delegate_account_is_set_and_changed_in_parts(chain: Chain, node: dict[str, Any]) -> None:
    name = "update_delegate_account"
    assert chain.error(name, COLD, **account_args(node, None, None)) == "InvalidDelegateAccountParameters"
    assert chain.error(name, COLD, **account_args(node, None, 1)) == "DelegateAccountIdIsNone"
    assert chain.error(name, COLD, **account_args(node, FRIEND, None)) == "DelegateAccountRateIsNone"
    hotkey = HOT if node is NODE else account(4)
    assert chain.error(name, COLD, **account_args(node, hotkey, 1)) == "DelegateAccountCannotBeHotkey"
    assert chain.error(name, COLD, **account_args(node, COLD, 1)) == "DelegateAccountCannotBeColdkey"
    for rate in (0, TENSOR + 1):
        assert chain.error(name, COLD, **account_args(node, FRIEND, rate)) == "InvalidDelegateAccountRate"
    for who in (hotkey, STRANGER, FRIEND):
        assert chain.error(name, who, **account_args(node, FRIEND, 1)) == "NotKeyOwner"
    chain.call(name, COLD, **account_args(node, FRIEND, TENSOR))
    now = {"account_id": FRIEND, "rate": TENSOR}
    assert chain.event("SubnetNodeUpdateDelegateAccount") == {**node, "delegate_account": now}
    chain.call(name, COLD, **account_args(node, None, 5))
    chain.call(name, COLD, **account_args(node, STRANGER, None))
    assert stored(chain, node)["delegate_account"] == {"account_id": STRANGER, "rate": 5}


@both
def test_a_delegate_account_hands_its_place_on(chain: Chain, node: dict[str, Any]) -> None:
    def to(who: bytes, **changes: int) -> dict[str, Any]:
        return {**node, **changes, "delegate_account_id": who}

    name = "transfer_delegate_account"
    assert chain.error(name, FRIEND, **to(STRANGER)) == "NoDelegateAccountSet"
    chain.call("update_delegate_account", COLD, **account_args(node, FRIEND, 7))
    assert chain.error(name, FRIEND, **to(STRANGER, subnet_node_id=9)) == "InvalidSubnetNodeId"
    for who in (COLD, HOT, STRANGER):
        assert chain.error(name, who, **to(STRANGER)) == "NotDelegateAccountOwner"
    assert chain.error(name, FRIEND, **to(COLD)) == "DelegateAccountCannotBeColdkey"
    hotkey = HOT if node is NODE else account(4)
    assert chain.error(name, FRIEND, **to(hotkey)) == "DelegateAccountCannotBeHotkey"
    chain.events.clear()
    chain.call(name, FRIEND, **to(STRANGER))
    now = {"account_id": STRANGER, "rate": 7}
    assert chain.event("SubnetNodeUpdateDelegateAccount") == {**node, "delegate_account": now}
    assert chain.error(name, FRIEND, **to(STRANGER)) == "NotDelegateAccountOwner"


def test_what_a_delegate_account_earned_is_its_own(chain: Chain) -> None:
    chain.call("update_delegate_account", COLD, **account_args(NODE, FRIEND, TENSOR))  # everything
    chain.agree(1, ALL, elect=3)
    chain.call("transfer_delegate_account", FRIEND, **NODE, delegate_account_id=STRANGER)
    stake = chain.stake_of(1)
    chain.to_slot(2)
    ((_, (who, earned)),) = chain.event("SubnetRewards")["node_delegate_account_allocations"]
    assert who == FRIEND  # as the proposal said
    assert chain.stake_of(1) == stake
    assert chain.get(s.AccountDelegateStake, FRIEND) == earned > 0
    assert supply(chain) == booked(chain)

    name = "remove_delegate_balance"
    assert chain.error(name, FRIEND, amount_to_remove=0) == "AmountZero"
    assert chain.error(name, FRIEND, amount_to_remove=earned + 1) == "NotEnoughStakeToWithdraw"
    assert chain.error(name, STRANGER, amount_to_remove=1) == "NotEnoughStakeToWithdraw"
    chain.ctx().put(s.StakeCooldownEpochs, value=2)
    chain.call(name, FRIEND, amount_to_remove=earned - 1)
    assert chain.event("DelegateBalanceRemoved") == {"account_id": FRIEND, "amount": earned - 1}
    assert chain.get(s.AccountDelegateStake, FRIEND) == chain.get(s.TotalAccountDelegateStake) == 1
    assert chain.get(s.StakeUnbondingLedger, FRIEND) == {chain.block + 40: earned - 1}
    chain.to_block(chain.block + 40)
    chain.call("claim_unbondings", FRIEND)
    assert chain.ctx().free_balance(FRIEND) == TENSOR + earned - 1
    assert supply(chain) == booked(chain)
