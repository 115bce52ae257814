"""Calls that must fail, each with its error and no trace in the state; and what the good ones leave behind."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallet import Pays
from mesh.devchain.pallets.network import economics, peers
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network import types as t
from mesh.devchain.scale import ScaleEncodeError

from .chain import (
    BOOTNODE,
    BOOTNODE_ADDRESS,
    COLDKEYS,
    HOTKEYS,
    OWNER,
    PEERS,
    SUBNET,
    TENSOR,
    Chain,
    account,
    node_args,
    peer,
    proposal,
    subnet_data,
)

ALL = {1: TENSOR, 2: TENSOR, 3: TENSOR}


@pytest.fixture
def registered() -> Chain:
    """A registered subnet without nodes, block 8."""
    chain = Chain()
    chain.to_block(8)
    chain.register_subnet()
    return chain


@pytest.fixture
def elected() -> Chain:
    """An active subnet with three validators; node 3 is elected for epoch 1; the block after the slot."""
    chain = Chain()
    chain.make_active()
    chain.to_slot(1, elect=3)
    chain.next_block()
    return chain


# --- register_subnet ---------------------------------------------------------------------------------------------

SUBNET_CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "SubnetNameExist"),
    ({"name": b"other"}, "SubnetRepoExist"),
    ({"name": b"o", "repo": b"o", "bootnodes": {}}, "BootnodesEmpty"),
    (
        {"name": b"o", "repo": b"o", "bootnodes": {peer(n): BOOTNODE_ADDRESS for n in range(33)}},
        "TooManyBootnodes",
    ),
    (
        {"name": b"o", "repo": b"o", "bootnodes": {b"\x12\x20" + bytes(32): BOOTNODE_ADDRESS}},
        "InvalidBootnodePeerId",
    ),
    ({"name": b"o", "repo": b"o", "bootnodes": {BOOTNODE: b"/ip4/127.0.0.1/tcp/1"}}, "InvalidMultiaddr"),
    ({"name": b"o", "repo": b"o", "min_stake": 99 * TENSOR}, "InvalidSubnetMinStake"),
    ({"name": b"o", "repo": b"o", "min_stake": 251 * TENSOR}, "InvalidSubnetMinStake"),
    ({"name": b"o", "repo": b"o", "max_stake": 1001 * TENSOR}, "InvalidSubnetMaxStake"),
    (
        {"name": b"o", "repo": b"o", "min_stake": 200 * TENSOR, "max_stake": 150 * TENSOR},
        "InvalidSubnetStakeParameters",
    ),
    ({"name": b"o", "repo": b"o", "delegate_stake_percentage": TENSOR // 100}, "InvalidMinDelegateStakePercentage"),
    (
        {"name": b"o", "repo": b"o", "initial_coldkeys": {OWNER: 3}},
        "InvalidSubnetRegistrationInitialColdkeys",
    ),
    (
        {"name": b"o", "repo": b"o", "initial_coldkeys": dict.fromkeys(COLDKEYS, 0)},
        "InvalidSubnetRegistrationInitialColdkeys",
    ),
]


@pytest.mark.parametrize(("changes", "error"), SUBNET_CASES, ids=[error for _, error in SUBNET_CASES])
def test_bad_subnet_registrations(registered: Chain, changes: dict[str, Any], error: str) -> None:
    data = subnet_data(**changes)
    assert registered.error("register_subnet", OWNER, max_cost=2000 * TENSOR, subnet_data=data) == error


def test_a_subnet_costs_what_the_price_says_and_not_more_than_the_owner_allows(registered: Chain) -> None:
    price = registered.get(s.LastRegistrationCost)
    data = subnet_data(name=b"two", repo=b"two")
    assert registered.error("register_subnet", OWNER, max_cost=price - 1, subnet_data=data) == "CostGreaterThanMaxCost"
    poor = account(1)
    assert (
        registered.error("register_subnet", poor, max_cost=price, subnet_data=data)
        == "NotEnoughBalanceToRegisterSubnet"
    )
    registered.register_subnet(name=b"two", repo=b"two")
    assert registered.get(s.SubnetSlot, SUBNET + 1) == 4
    assert registered.get(s.FriendlyUidSubnetId, 2) == SUBNET + 1
    assert registered.get(s.LastRegistrationCost) == 2 * price


def test_the_price_of_a_subnet_falls_with_the_root_of_the_time_left() -> None:
    chain = Chain(genesis={"RegistrationCostDecayBlocks": 100})
    chain.to_block(8)
    chain.register_subnet()
    last = chain.get(s.LastRegistrationCost)
    chain.to_block(8 + 36)  # 64 of 100 blocks are left, and 0.64 ** 0.5 is 0.8
    price = 10**17 + (last - 10**17) * 8 // 10
    data = subnet_data(name=b"two", repo=b"two")
    assert chain.error("register_subnet", OWNER, max_cost=price - 1000, subnet_data=data) == "CostGreaterThanMaxCost"
    chain.call("register_subnet", OWNER, max_cost=price + 1000, subnet_data=data)
    assert abs(chain.get(s.LastRegistrationCost) - 2 * price) <= 2000
    chain.to_block(44 + 100)
    data = subnet_data(name=b"three", repo=b"three")
    assert chain.error("register_subnet", OWNER, max_cost=10**17 - 1, subnet_data=data) == "CostGreaterThanMaxCost"
    chain.call("register_subnet", OWNER, max_cost=10**17, subnet_data=data)


def test_an_epoch_has_no_more_subnets_than_slots() -> None:
    chain = Chain(epoch_length=5)
    chain.to_block(1)
    for name in (b"a", b"b"):
        chain.register_subnet(name=name, repo=name)
    data = subnet_data(name=b"c", repo=b"c")
    assert chain.error("register_subnet", OWNER, max_cost=9 * TENSOR, subnet_data=data) == "NoAvailableSlots"


def test_one_subnet_more_than_the_maximum_may_register() -> None:
    chain = Chain(genesis={"MaxSubnets": 1})
    chain.to_block(1)
    for name in (b"a", b"b"):
        chain.register_subnet(name=name, repo=name)
    data = subnet_data(name=b"c", repo=b"c")
    assert chain.error("register_subnet", OWNER, max_cost=9 * TENSOR, subnet_data=data) == "MaxSubnets"


# --- register_subnet_node ----------------------------------------------------------------------------------------

DNS = bytes.fromhex("3603646e7306") + b"\x1f\x90"  # /dns4/dns/tcp/8080
NODE_CASES: list[tuple[dict[str, Any], str]] = [
    ({"subnet_id": 1}, "InvalidSubnetId"),
    ({"hotkey": COLDKEYS[1]}, "ColdkeyMatchesHotkey"),
    ({"hotkey": HOTKEYS[0]}, "HotkeyHasOwner"),
    ({"peer_info": {"peer_id": PEERS[0], "multiaddr": None}}, "PeerIdExist"),
    ({"bootnode_peer_info": {"peer_id": PEERS[0], "multiaddr": None}}, "BootnodePeerIdExist"),
    ({"client_peer_info": {"peer_id": PEERS[0], "multiaddr": None}}, "ClientPeerIdExist"),
    ({"client_peer_info": {"peer_id": PEERS[1], "multiaddr": None}}, "PeerIdsMustBeUnique"),
    ({"peer_info": {"peer_id": bytes(34), "multiaddr": None}}, "InvalidPeerId"),
    ({"peer_info": {"peer_id": b"Qm" + b"x" * 29, "multiaddr": None}}, "InvalidPeerId"),
    ({"peer_info": {"peer_id": b"Qm" + b"0" * 44, "multiaddr": None}}, "InvalidPeerId"),
    ({"bootnode_peer_info": {"peer_id": b"1" * 129, "multiaddr": None}}, "InvalidBootnodePeerId"),
    ({"client_peer_info": {"peer_id": b"xx" * 20, "multiaddr": None}}, "InvalidClientPeerId"),
    ({"peer_info": {"peer_id": PEERS[1], "multiaddr": b"\xff" * 10}}, "MultiaddrInvalidVarint"),
    ({"peer_info": {"peer_id": PEERS[1], "multiaddr": b"\x7f\x00"}}, "MultiaddrInvalidProtocol"),
    ({"peer_info": {"peer_id": PEERS[1], "multiaddr": BOOTNODE_ADDRESS[:-1]}}, "MultiaddrTruncated"),
    ({"peer_info": {"peer_id": PEERS[1], "multiaddr": b"\xa5\x03\x02ab"}}, "MultiaddrInvalidAddress"),
    ({"peer_info": {"peer_id": PEERS[1], "multiaddr": DNS}}, "MultiaddrExist"),
    ({"delegate_reward_rate": 96 * TENSOR // 100}, "InvalidDelegateRewardRate"),
    ({"delegate_account": {"account_id": HOTKEYS[1], "rate": 1}}, "DelegateAccountCannotBeHotkey"),
    ({"delegate_account": {"account_id": OWNER, "rate": 1}}, "DelegateAccountCannotBeColdkey"),
    ({"delegate_account": {"account_id": account(1), "rate": 0}}, "InvalidDelegateAccountRate"),
    ({"unique": b"mine"}, "SubnetNodeUniqueParamTaken"),
    ({"max_burn_amount": 10**13 - 1}, "MaxBurnAmountExceeded"),
    ({"stake_to_be_added": 100 * TENSOR - 1}, "MinStakeNotReached"),
    ({"stake_to_be_added": 1000 * TENSOR + 1}, "MaxStakeReached"),
]


@pytest.mark.parametrize(("changes", "error"), NODE_CASES)
def test_bad_node_registrations(registered: Chain, changes: dict[str, Any], error: str) -> None:
    registered.register_node(0, peer_info={"peer_id": PEERS[0], "multiaddr": DNS}, unique=b"mine")
    assert registered.error("register_subnet_node", OWNER, **node_args(1, **changes)) == error
    registered.register_node(1)


def test_only_whitelisted_coldkeys_register_before_activation_and_as_often_as_allowed(
    registered: Chain,
) -> None:
    stranger = account(1)
    assert registered.error("register_subnet_node", stranger, **node_args(0)) == "ColdkeyRegistrationWhitelist"
    registered.register_node(0)
    again = node_args(3, hotkey=account(2))
    assert registered.error("register_subnet_node", COLDKEYS[0], **again) == "MaxRegisteredNodes"


def test_a_coldkey_needs_the_stake_and_must_live_on() -> None:
    chain = Chain(fund={OWNER: 10 * TENSOR, **dict.fromkeys(COLDKEYS[:1], 200 * TENSOR), COLDKEYS[2]: 10**13})
    chain.to_block(1)
    chain.register_subnet()
    assert chain.error("register_subnet_node", COLDKEYS[2], **node_args(2)) == "BalanceBurnError"
    assert chain.error("register_subnet_node", COLDKEYS[0], **node_args(0)) == "NotEnoughBalanceToStake"
    just = 200 * TENSOR - 10**13
    args = node_args(0, stake_to_be_added=just)
    assert chain.error("register_subnet_node", COLDKEYS[0], **args) == "BalanceWithdrawalError"
    chain.register_node(0, stake_to_be_added=just - 500)


def test_nobody_joins_in_the_enactment_period() -> None:
    chain = Chain(genesis={"SubnetRegistrationEpochs": 1, "SubnetEnactmentEpochs": 5})
    chain.to_block(1)
    chain.register_subnet()
    chain.to_block(39)
    for place in range(3):
        chain.register_node(place)
    chain.to_block(41)
    args = node_args(3, hotkey=account(9))
    assert chain.error("register_subnet_node", OWNER, **args) == "SubnetMustBeRegisteringOrActivated"


# --- activate_subnet ---------------------------------------------------------------------------------------------


def test_activation_needs_the_owner_the_nodes_and_the_delegate_stake() -> None:
    chain = Chain(genesis={"MinSubnetDelegateStakeFactor": 10**15, "MinSubnetRegistrationEpochs": 1})
    chain.to_block(1)
    chain.register_subnet()
    args: dict[str, Any] = {"subnet_id": SUBNET}
    assert chain.error("activate_subnet", COLDKEYS[0], **args) == "NotSubnetOwner"
    assert chain.error("activate_subnet", OWNER, subnet_id=5) == "NotSubnetOwner"
    assert chain.error("activate_subnet", OWNER, **args) == "MinSubnetRegistrationEpochsNotMet"
    chain.to_block(20)
    assert chain.error("activate_subnet", OWNER, **args) == "SubnetActivationConditionsNotMetYet"
    for place in range(3):
        chain.register_node(place)
    assert chain.error("activate_subnet", OWNER, **args) == "SubnetActivationConditionsNotMetYet"
    needed = economics.percent_mul(6 * 1_000_000 * TENSOR, 10**15)
    chain.call("add_to_delegate_stake", OWNER, subnet_id=SUBNET, stake_to_be_added=needed)
    chain.call("activate_subnet", OWNER, **args)
    assert chain.get(s.SubnetsData, SUBNET)["start_epoch"] == 2
    assert chain.error("activate_subnet", OWNER, **args) == "SubnetActivatedAlready"


def test_a_late_activation_removes_the_subnet() -> None:
    chain = Chain(genesis={"SubnetRegistrationEpochs": 1, "SubnetEnactmentEpochs": 1})
    chain.to_block(1)
    chain.register_subnet()
    for place in range(3):
        chain.register_node(place)
    chain.to_block(2 * 20 + 1)
    chain.ctx().put(s.MinSubnetNodes, value=4)
    chain.call("activate_subnet", OWNER, subnet_id=SUBNET)
    assert chain.event("SubnetDeactivated") == {"subnet_id": SUBNET, "reason": "MinSubnetNodes"}
    assert chain.get(s.SubnetsData, SUBNET) is None


# --- stake -------------------------------------------------------------------------------------------------------


def stake_args(amount: int, hotkey: bytes = HOTKEYS[0]) -> dict[str, Any]:
    return {"subnet_id": SUBNET, "hotkey": hotkey, "stake_to_be_removed": amount}


def test_adding_stake_is_for_the_owner_of_the_hotkey_up_to_the_maximum(elected: Chain) -> None:
    args: dict[str, Any] = {"subnet_id": SUBNET, "subnet_node_id": 1, "hotkey": HOTKEYS[0]}
    assert elected.error("add_stake", OWNER, **args, stake_to_be_added=1) == "NotKeyOwner"
    assert elected.error("add_stake", HOTKEYS[0], **args, stake_to_be_added=1) == "NotKeyOwner"
    unknown = {**args, "hotkey": account(7)}
    assert elected.error("add_stake", bytes(20), **unknown, stake_to_be_added=1) == "NotKeyOwner"
    elsewhere = {**args, "subnet_id": 9}
    assert elected.error("add_stake", COLDKEYS[0], **elsewhere, stake_to_be_added=1) == "InvalidSubnetId"
    assert elected.error("add_stake", COLDKEYS[0], **args, stake_to_be_added=800 * TENSOR + 1) == "MaxStakeReached"
    elected.call("add_stake", COLDKEYS[0], **args, stake_to_be_added=800 * TENSOR)
    assert elected.stake_of(1) == 1000 * TENSOR


def test_a_node_keeps_the_minimum_stake_and_waits_before_it_takes_any(elected: Chain) -> None:
    assert elected.error("remove_stake", OWNER, **stake_args(1)) == "NotKeyOwner"
    assert elected.error("remove_stake", COLDKEYS[0], **stake_args(0)) == "NotEnoughStakeToWithdraw"
    assert elected.error("remove_stake", COLDKEYS[0], **stake_args(201 * TENSOR)) == "NotEnoughStakeToWithdraw"
    assert elected.error("remove_stake", COLDKEYS[0], **stake_args(100 * TENSOR + 1)) == "MinStakeNotReached"
    elected.ctx().put(s.MinActiveNodeStakeEpochs, value=2)
    assert elected.error("remove_stake", COLDKEYS[0], **stake_args(1)) == "MinActiveNodeStakeEpochs"
    elected.ctx().put(s.MinActiveNodeStakeEpochs, value=1)
    elected.call("remove_stake", COLDKEYS[0], **stake_args(100 * TENSOR))
    assert elected.get(s.StakeUnbondingLedger, COLDKEYS[0]) == {elected.block + 20: 100 * TENSOR}


def test_the_elected_validator_neither_unstakes_nor_leaves(elected: Chain) -> None:
    args = stake_args(1, HOTKEYS[2])
    assert elected.error("remove_stake", COLDKEYS[2], **args) == "ElectedValidatorCannotUnstake"
    leave = {"subnet_id": SUBNET, "subnet_node_id": 3}
    for key in (COLDKEYS[2], HOTKEYS[2]):
        assert elected.error("remove_subnet_node", key, **leave) == "ElectedValidatorCannotRemove"
    elected.to_slot(2, elect=1)
    elected.call("remove_subnet_node", HOTKEYS[2], **leave)


def test_a_removed_node_gets_everything_back_and_its_keys_are_free_again(elected: Chain) -> None:
    leave = {"subnet_id": SUBNET, "subnet_node_id": 1}
    assert elected.error("remove_subnet_node", OWNER, **leave) == "NotKeyOwner"
    assert elected.error("remove_subnet_node", OWNER, subnet_id=SUBNET, subnet_node_id=9) == "NotKeyOwner"
    elected.call("remove_subnet_node", COLDKEYS[0], **leave)
    assert elected.get(s.SubnetNodeElectionSlots, SUBNET) == [3, 2]
    assert elected.get(s.NodeSlotIndex, SUBNET, 3) == 0
    args = node_args(0)
    assert elected.error("register_subnet_node", COLDKEYS[0], **args) == "HotkeyHasOwner"
    elected.call("remove_stake", COLDKEYS[0], **stake_args(200 * TENSOR))
    free = elected.ctx().free_balance(COLDKEYS[0])
    assert elected.error("claim_unbondings", COLDKEYS[0]) == "NoStakeUnbondingsOrCooldownNotMet"
    elected.to_block(elected.block + 19)
    assert elected.error("claim_unbondings", COLDKEYS[0]) == "NoStakeUnbondingsOrCooldownNotMet"
    elected.next_block()
    elected.call("claim_unbondings", COLDKEYS[0])
    assert elected.ctx().free_balance(COLDKEYS[0]) == free + 200 * TENSOR
    elected.call("register_subnet_node", COLDKEYS[0], **args)
    assert elected.event("SubnetNodeRegistered")["data"]["classification"]["node_class"] == "Registered"


def test_everything_due_is_claimed_at_once_and_each_kind_has_its_own_cooldown(elected: Chain) -> None:
    who, start = COLDKEYS[0], elected.block
    elected.call("add_to_delegate_stake", who, subnet_id=SUBNET, stake_to_be_added=TENSOR)
    node = {"subnet_id": SUBNET, "subnet_node_id": 2}
    elected.call("add_to_node_delegate_stake", who, **node, node_delegate_stake_to_be_added=TENSOR)
    for item, epochs in (
        (s.DelegateStakeCooldownEpochs, 1),
        (s.NodeDelegateStakeCooldownEpochs, 2),
        (s.StakeCooldownEpochs, 3),
    ):
        elected.ctx().put(item, value=epochs)
    elected.call("remove_delegate_stake", who, subnet_id=SUBNET, shares_to_be_removed=1000)
    elected.call("remove_node_delegate_stake", who, **node, node_delegate_stake_shares_to_be_removed=2000)
    elected.call("remove_stake", who, **stake_args(TENSOR))
    elected.call("remove_stake", who, **stake_args(TENSOR))  # the same block: one entry
    ledger = elected.get(s.StakeUnbondingLedger, who)
    assert set(ledger) == {start + 20, start + 40, start + 60}
    assert ledger[start + 60] == 2 * TENSOR
    assert sum(ledger.values()) == elected.get(s.TotalUnbondingBalance)
    free = elected.ctx().free_balance(who)
    elected.to_block(start + 59)
    elected.call("claim_unbondings", who)
    assert elected.ctx().free_balance(who) == free + ledger[start + 20] + ledger[start + 40]
    assert elected.error("claim_unbondings", who) == "NoStakeUnbondingsOrCooldownNotMet"
    assert elected.get(s.StakeUnbondingLedger, who) == {start + 60: 2 * TENSOR}
    elected.next_block()
    elected.call("claim_unbondings", who)
    assert elected.ctx().free_balance(who) == free + sum(ledger.values())
    assert elected.get(s.TotalUnbondingBalance) == 0


def test_the_unbonding_ledger_is_bounded(elected: Chain) -> None:
    elected.ctx().put(s.MaxUnbondings, value=2)
    for _ in range(2):
        elected.call("remove_stake", COLDKEYS[0], **stake_args(TENSOR))
        elected.next_block()
    assert elected.error("remove_stake", COLDKEYS[0], **stake_args(TENSOR)) == "MaxUnlockingsReached"
    elected.to_block(elected.block + 18)  # the first entry is due: it is paid to make room
    elected.call("remove_stake", COLDKEYS[0], **stake_args(TENSOR))
    assert len(elected.get(s.StakeUnbondingLedger, COLDKEYS[0])) == 2


def test_the_rate_limit_counts_blocks_between_stakes() -> None:
    chain = Chain(genesis={"TxRateLimit": 2})
    chain.to_block(1)
    chain.register_subnet()
    args: dict[str, Any] = {"subnet_id": SUBNET, "stake_to_be_added": TENSOR}
    chain.call("add_to_delegate_stake", OWNER, **args)
    chain.to_block(3)
    assert chain.error("add_to_delegate_stake", OWNER, **args) == "TxRateLimitExceeded"
    chain.to_block(4)
    chain.call("add_to_delegate_stake", OWNER, **args)


# --- delegate stake ----------------------------------------------------------------------------------------------


def test_delegate_stake_rules(registered: Chain) -> None:
    def add(amount: int, subnet_id: int = SUBNET) -> dict[str, Any]:
        return {"subnet_id": subnet_id, "stake_to_be_added": amount}

    assert registered.error("add_to_delegate_stake", OWNER, **add(TENSOR, 5)) == "InvalidSubnetId"
    assert registered.error("add_to_delegate_stake", OWNER, **add(999)) == "MinDelegateStakeDepositNotReached"
    assert registered.error("add_to_delegate_stake", account(1), **add(1000)) == "NotEnoughBalanceToStake"
    registered.call("add_to_delegate_stake", OWNER, **add(TENSOR))
    assert registered.get(s.TotalSubnetDelegateStakeShares, SUBNET) == TENSOR + 1000
    remove: dict[str, Any] = {"subnet_id": SUBNET}
    assert registered.error("remove_delegate_stake", OWNER, **remove, shares_to_be_removed=0) == "SharesZero"
    assert (
        registered.error("remove_delegate_stake", OWNER, **remove, shares_to_be_removed=TENSOR + 1)
        == "NotEnoughStakeToWithdraw"
    )
    registered.call("remove_delegate_stake", OWNER, **remove, shares_to_be_removed=TENSOR)
    (amount,) = registered.get(s.StakeUnbondingLedger, OWNER).values()
    assert amount == TENSOR - 1010 + 1  # the dead shares keep the rest
    assert registered.get(s.SubnetNetFlow, SUBNET) == TENSOR - amount


# --- bootnodes and addresses -------------------------------------------------------------------------------------


def test_bootnodes_are_changed_by_the_owner_only(registered: Chain) -> None:
    def change(
        add: dict[bytes, bytes] | None = None, remove: set[bytes] | None = None, subnet_id: int = SUBNET
    ) -> dict[str, Any]:
        return {"subnet_id": subnet_id, "add": add or {}, "remove": remove or set()}

    name = "update_bootnodes"
    assert registered.error(name, OWNER, **change(subnet_id=3)) == "InvalidSubnetId"
    assert registered.error(name, COLDKEYS[0], **change()) == "InvalidAccess"
    assert registered.error(name, OWNER, **change({peer(1): b"\x04"})) == "InvalidMultiaddr"
    assert registered.error(name, OWNER, **change({bytes(34): BOOTNODE_ADDRESS})) == "InvalidBootnodePeerId"
    many = {peer(n): BOOTNODE_ADDRESS for n in range(32)}
    assert registered.error(name, OWNER, **change(many)) == "TooManyBootnodes"
    registered.call(name, OWNER, **change(many, {BOOTNODE}))
    assert set(registered.get(s.SubnetBootnodes, SUBNET)) == set(many)
    assert registered.event("BootnodesUpdated")["removed"] == {BOOTNODE}
    registered.ctx().put(s.SubnetBootnodeAccess, SUBNET, value={COLDKEYS[0]})
    registered.call(name, COLDKEYS[0], **change(remove={peer(0)}))


def test_a_node_moves_to_free_addresses_only(elected: Chain) -> None:
    def to(peer_id: bytes, multiaddr: bytes | None = None) -> dict[str, Any]:
        return {
            "subnet_id": SUBNET,
            "subnet_node_id": 1,
            "new_peer_info": {"peer_id": peer_id, "multiaddr": multiaddr},
        }

    assert elected.error("update_peer_info", HOTKEYS[0], **to(peer(1))) == "NotKeyOwner"
    assert elected.error("update_peer_info", COLDKEYS[0], **to(PEERS[1])) == "PeerIdExist"
    assert elected.error("update_bootnode_peer_info", COLDKEYS[0], **to(PEERS[1])) == "BootnodePeerIdExist"
    assert elected.error("update_client_peer_info", COLDKEYS[0], **to(b"x")) == "InvalidClientPeerId"
    elected.call("update_peer_info", COLDKEYS[0], **to(peer(1), DNS))
    elected.call("update_bootnode_peer_info", COLDKEYS[0], **to(PEERS[0]))  # free since the node left it
    elected.call("update_client_peer_info", COLDKEYS[0], **to(peer(2)))
    assert not elected.ctx().has(s.PeerIdSubnetNodeId, SUBNET, PEERS[0])
    gone = {"subnet_id": SUBNET, "subnet_node_id": 1, "new_peer_info": None}
    elected.call("update_client_peer_info", COLDKEYS[0], **gone)
    elected.call("update_bootnode_peer_info", COLDKEYS[0], **gone)
    node = elected.get(s.SubnetNodesData, SUBNET, 1)
    assert node["peer_info"] == {"peer_id": peer(1), "multiaddr": DNS}
    assert node["bootnode_peer_info"] is None
    assert not elected.ctx().has(s.ClientPeerIdSubnetNodeId, SUBNET, peer(2))
    elected.call("remove_subnet_node", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1)
    assert not elected.ctx().has(s.MultiaddrSubnetNodeId, SUBNET, DNS)


def test_peer_ids() -> None:
    assert all(peers.is_peer_id(each) for each in PEERS)
    assert peers.is_peer_id(b"12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")
    assert not peers.is_peer_id(b"Qm" + b"l" * 44)  # no base58 digit


# --- propose and attest ------------------------------------------------------------------------------------------


def test_only_the_elected_hotkey_proposes_and_once(elected: Chain) -> None:
    args = proposal(ALL)
    for key in (HOTKEYS[0], COLDKEYS[2], account(1)):
        assert elected.error("propose_attestation", key, **args) == "InvalidValidator"
    assert elected.call("propose_attestation", HOTKEYS[2], **args) is Pays.NO
    assert elected.error("propose_attestation", HOTKEYS[2], **args) == "SubnetRewardsAlreadySubmitted"


def test_a_proposal_needs_an_election() -> None:
    chain = Chain()
    chain.make_active()
    args = proposal(ALL)
    assert chain.error("propose_attestation", HOTKEYS[2], **args) == "NoElectedValidator"
    assert chain.error("propose_attestation", HOTKEYS[2], **{**args, "subnet_id": 7}) == "SubnetEpochDataIsNone"


def test_the_right_to_propose_ends_with_the_epoch(elected: Chain) -> None:
    elected.to_slot(2, elect=1)
    assert elected.error("propose_attestation", HOTKEYS[2], **proposal(ALL)) == "InvalidValidator"


def test_scores_that_overflow_together_are_refused(elected: Chain) -> None:
    scores = {1: economics.U128_MAX, 2: 1}
    assert elected.error("propose_attestation", HOTKEYS[2], **proposal(scores)) == "ScoreOverflow"
    elected.propose(3, {1: economics.U128_MAX, 9: 1})  # what is no node does not count


def test_a_score_beyond_u128_has_no_encoding(elected: Chain) -> None:
    with pytest.raises(ScaleEncodeError):
        elected.propose(3, {1: economics.U128_MAX + 1})


def test_repeated_entries_become_the_lowest_and_strangers_are_dropped(elected: Chain) -> None:
    args = proposal({})
    args["data"] = [{"subnet_node_id": n, "score": v} for n, v in ((2, 7), (1, 9), (8, 4), (1, 3), (1, 5))]
    elected.call("propose_attestation", HOTKEYS[2], **args)
    data = elected.get(s.SubnetConsensusSubmission, SUBNET, 1)["data"]
    assert data == [{"subnet_node_id": 2, "score": 7}, {"subnet_node_id": 1, "score": 3}]


def test_arguments_are_bounded(elected: Chain) -> None:
    with pytest.raises(ScaleEncodeError, match="bound"):
        elected.propose(3, ALL, args=bytes(4097))
    elected.propose(3, ALL, args=bytes(4096))


def test_attesting_rules(elected: Chain) -> None:
    args: dict[str, Any] = {"subnet_id": SUBNET, "attest_data": b"why"}
    assert elected.error("attest", HOTKEYS[0], **args) == "InvalidSubnetConsensusSubmission"
    elected.propose(3, ALL)
    for stranger in (account(1), COLDKEYS[0]):
        assert elected.error("attest", stranger, **args) == "InvalidHotkeySubnetNodeId"
    assert elected.error("attest", HOTKEYS[0], subnet_id=4, attest_data=None) == "InvalidHotkeySubnetNodeId"
    assert elected.error("attest", HOTKEYS[2], **args) == "AlreadyAttested"  # a proposal attests itself
    assert elected.call("attest", HOTKEYS[0], **args) is Pays.NO
    assert elected.error("attest", HOTKEYS[0], **args) == "AlreadyAttested"
    elected.to_slot(2)
    assert elected.error("attest", HOTKEYS[1], **args) == "InvalidSubnetConsensusSubmission"


def test_a_queued_node_and_a_latecomer_cannot_attest(elected: Chain) -> None:
    elected.call("register_subnet_node", OWNER, **node_args(3, hotkey=account(3)))
    elected.propose(3, ALL)
    args: dict[str, Any] = {"subnet_id": SUBNET, "attest_data": None}
    assert elected.error("attest", account(3), **args) == "InvalidSubnetNodeId"
    node = elected.get(s.SubnetNodesData, SUBNET, 1)
    for held in ({"node_class": "Included", "start_epoch": 0}, {"node_class": "Validator", "start_epoch": 2}):
        elected.ctx().put(s.SubnetNodesData, SUBNET, 1, value={**node, "classification": held})
        assert elected.error("attest", HOTKEYS[0], **args) == "InvalidSubnetNodeClassification"


def test_a_node_that_was_not_in_the_snapshot_cannot_attest(elected: Chain) -> None:
    elected.propose(3, ALL)
    submission = elected.get(s.SubnetConsensusSubmission, SUBNET, 1)
    submission["subnet_nodes"] = submission["subnet_nodes"][1:]
    elected.ctx().put(s.SubnetConsensusSubmission, SUBNET, 1, value=submission)
    assert elected.error("attest", HOTKEYS[0], subnet_id=SUBNET, attest_data=None) == "InvalidSubnetNodeId"


# --- all of them -------------------------------------------------------------------------------------------------


def test_a_paused_network_takes_no_call_and_does_nothing(elected: Chain) -> None:
    elected.ctx().put(s.TxPause, value=True)
    for name, call in elected.calls.items():
        for origin in (OWNER, COLDKEYS[0], HOTKEYS[0]):
            assert elected.error(name, origin, **{arg: kind.zero() for arg, kind in call.args}) == "Paused", name
    elected.to_block(43)
    assert elected.names() == []


def test_an_unsorted_map_is_not_what_its_signer_would_have_signed() -> None:
    """Signatures are checked over the canonical bytes, maps in ascending order: unsorted bytes are others."""
    kind = t.registration_subnet_data
    value = subnet_data(initial_coldkeys=dict.fromkeys(COLDKEYS, 1))
    canonical = kind.encode(value)
    first, second = sorted(COLDKEYS)[:2]
    unsorted = canonical.replace(first, b"A" * 20).replace(second, first).replace(b"A" * 20, second)
    assert unsorted != canonical
    assert kind.encode(kind.decode_all(unsorted)) == canonical
