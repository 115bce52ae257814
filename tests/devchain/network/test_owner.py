"""What the owner may change, within which limits, and that nobody else may."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallets.network import economics, owner
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.owner import SETTINGS, TEXTS, During, Setting
from mesh.devchain.scale import u32

from .chain import (
    BOOTNODE,
    BOOTNODE_ADDRESS,
    COLDKEYS,
    HOTKEYS,
    OWNER,
    SUBNET,
    TENSOR,
    Chain,
    account,
    node_args,
    peer,
)

ONE = economics.ONE
FRIEND = account(1)
ONLY_REGISTERING = {"owner_add_or_update_initial_coldkeys", "owner_remove_initial_coldkeys"}


@pytest.fixture
def chain() -> Chain:
    """An active subnet with three validators, at its slot block of epoch 1."""
    made = Chain()
    made.make_active()
    made.to_slot(1)
    return made


@pytest.fixture
def registered() -> Chain:
    """A subnet that is being registered."""
    made = Chain()
    made.to_block(1)
    made.register_subnet()
    return made


def call(chain: Chain, name: str, origin: bytes = OWNER, **args: Any) -> None:
    chain.call(name, origin, subnet_id=SUBNET, **args)


def error(chain: Chain, name: str, origin: bytes = OWNER, **args: Any) -> str:
    return chain.error(name, origin, subnet_id=SUBNET, **args)


# --- who ---------------------------------------------------------------------------------------------------------


def test_no_call_of_the_owner_is_taken_from_anybody_else(chain: Chain) -> None:
    names = [each.name for each in chain.pallet.calls if each.name.startswith("owner_")]
    assert len(names) == 33
    for name in [*names, "transfer_subnet_ownership"]:
        args = {arg: kind.zero() for arg, kind in chain.calls[name].args if arg != "subnet_id"}
        for stranger in (COLDKEYS[0], HOTKEYS[1], FRIEND):  # a node's coldkey, the owner's own hotkey, nobody
            assert error(chain, name, stranger, **args) == "NotSubnetOwner", name
        assert chain.error(name, OWNER, subnet_id=5, **args) == "NotSubnetOwner", name  # no such subnet


def test_an_owner_owns_no_other_subnet(chain: Chain) -> None:
    other = SUBNET + 1
    data = chain.get(s.SubnetsData, SUBNET)
    chain.ctx().put(s.SubnetsData, other, value={**data, "id": other})
    chain.ctx().put(s.SubnetOwner, other, value=FRIEND)
    assert chain.error("owner_deactivate_subnet", OWNER, subnet_id=other) == "NotSubnetOwner"
    assert chain.error("owner_update_misc", FRIEND, subnet_id=SUBNET, value=b"") == "NotSubnetOwner"


# --- numbers -----------------------------------------------------------------------------------------------------

LIMITS: dict[int, tuple[int, int]] = {
    9: (1, 64),
    10: (1, 5053),
    11: (3, 21_900),
    12: (1, 5053),
    13: (1, 5053),
    **dict.fromkeys(range(14, 21), (5 * 10**16, 5 * 10**17)),
    21: (0, 10**17),
    22: (5 * 10**16, 5 * 10**17),
    29: (1, 64),
    34: (1, 64),
    35: (0, ONE),
    36: (0, 2**32 - 1),
}
"""Call to its least and greatest value, by the defaults of the network's items."""

ERRORS: dict[int, str] = {
    9: "InvalidChurnLimit",
    10: "InvalidChurnLimitMultiplier",
    11: "InvalidRegistrationQueueEpochs",
    12: "InvalidIdleClassificationEpochs",
    13: "InvalidIncludedClassificationEpochs",
    14: "InvalidNonConsensusAttestorDecreaseReputationFactor",
    15: "InvalidAbsentDecreaseReputationFactor",
    16: "InvalidIncludedIncreaseReputationFactor",
    17: "InvalidBelowMinWeightDecreaseReputationFactor",
    18: "InvalidNonAttestorDecreaseReputationFactor",
    19: "InvalidNonValidatorAbsentDecreaseReputationFactor",
    20: "InvalidValidatorNonConsensusSubnetNodeReputationFactor",
    21: "InvalidPercent",
    22: "MinSubnetNodeReputation",
    29: "InvalidMaxRegisteredNodes",
    34: "InvalidTargetNodeRegistrationsPerEpoch",
    35: "InvalidPercent",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.call)
def test_a_setting_is_stored_within_its_limits(chain: Chain, setting: Setting) -> None:
    low, high = LIMITS[setting.index]
    default = chain.get(setting.item, SUBNET + 1)
    for value in (low, high):
        before = len(chain.events)
        call(chain, setting.call, value=value)
        assert chain.get(setting.item, SUBNET) == value
        content = {"subnet_id": SUBNET, "owner": OWNER, "value": value}
        assert chain.events[before:] == [("Network", setting.event, content)]
    for value in (low - 1, high + 1):
        if 0 <= value < (2**32 if setting.kind is u32 else 2**128):
            assert error(chain, setting.call, value=value) == ERRORS[setting.index]
    assert chain.get(setting.item, SUBNET) == high
    assert chain.get(setting.item, SUBNET + 1) == default


@pytest.mark.parametrize("setting", [each for each in SETTINGS if 14 <= each.index <= 22 or each.index == 35])
def test_no_percentage_exceeds_one(chain: Chain, setting: Setting) -> None:
    assert error(chain, setting.call, value=ONE + 1) == "InvalidPercent"
    assert error(chain, setting.call, value=2**128 - 1) == "InvalidPercent"


@pytest.mark.parametrize("setting", [each for each in SETTINGS if 14 <= each.index <= 20])
def test_what_a_running_emergency_was_measured_by_stays(chain: Chain, setting: Setting) -> None:
    call(chain, "owner_pause_subnet")
    call(chain, "owner_set_emergency_validator_set", subnet_node_ids=[1, 2, 3])
    if setting.during is During.ANY_TIME:
        assert setting.item is s.IncludedIncreaseReputationFactor
        call(chain, setting.call, value=10**17)
        return
    assert error(chain, setting.call, value=10**17) == "EmergencyValidatorsSet"
    call(chain, "owner_revert_emergency_validator_set")
    call(chain, setting.call, value=10**17)


def test_the_target_and_the_maximum_of_waiting_nodes_bound_each_other(chain: Chain) -> None:
    call(chain, "owner_update_max_registered_nodes", value=10)
    assert error(chain, "owner_update_target_node_registrations_per_epoch", value=11) == ERRORS[34]
    call(chain, "owner_update_target_node_registrations_per_epoch", value=9)
    assert error(chain, "owner_update_max_registered_nodes", value=10) == ERRORS[29]


def test_settings_are_obeyed_by_the_queue(chain: Chain) -> None:
    call(chain, "owner_update_churn_limit", value=1)
    call(chain, "owner_update_churn_limit_multiplier", value=3)
    for number in (4, 5):
        chain.call("register_subnet_node", OWNER, **node_args(number, hotkey=account(number)))
    active = []
    for epoch in range(2, 11):
        chain.to_slot(epoch)
        active.append(chain.get(s.TotalActiveSubnetNodes, SUBNET))
    assert active == [3, 3, 3, 3, 4, 4, 4, 5, 5]  # in epochs 6 and 9


def test_a_full_queue_turns_nodes_away(chain: Chain) -> None:
    call(chain, "owner_update_max_registered_nodes", value=1)
    for number in (4, 5):  # one more than the maximum, as in the network
        chain.call("register_subnet_node", OWNER, **node_args(number, hotkey=account(number)))
    late = node_args(6, hotkey=account(6))
    assert chain.error("register_subnet_node", OWNER, **late) == "MaxRegisteredNodes"


# --- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS, ids=lambda each: each.field)
def test_a_text_changes_and_the_old_one_is_free(chain: Chain, text: owner.Text) -> None:
    previous = chain.get(s.SubnetsData, SUBNET)[text.field]
    call(chain, f"owner_update_{text.field}", value=b"new")
    assert chain.get(s.SubnetsData, SUBNET)[text.field] == b"new"
    assert chain.event(text.event) == {
        "subnet_id": SUBNET,
        "owner": OWNER,
        "prev_value": previous,
        "value": b"new",
    }
    if text.taken is None:
        return
    assert chain.get(text.taken, b"new") == SUBNET
    assert chain.get(text.taken, previous) is None
    for subnet in (SUBNET + 1, SUBNET):  # somebody else's, and its own
        chain.ctx().put(text.taken, b"taken", value=subnet)
        assert error(chain, f"owner_update_{text.field}", value=b"taken") == text.error


# --- stakes and rewards ------------------------------------------------------------------------------------------


def test_stake_limits(chain: Chain) -> None:
    call(chain, "owner_update_min_max_stake", min=250 * TENSOR, max=250 * TENSOR)
    assert chain.event("SubnetMinMaxStakeBalanceUpdate") == {
        "subnet_id": SUBNET,
        "owner": OWNER,
        "min": 250 * TENSOR,
        "max": 250 * TENSOR,
    }
    node = node_args(4, hotkey=account(4))
    for amount, refusal in ((250 * TENSOR - 1, "MinStakeNotReached"), (250 * TENSOR + 1, "MaxStakeReached")):
        assert chain.error("register_subnet_node", OWNER, **(node | {"stake_to_be_added": amount})) == refusal
    chain.call("register_subnet_node", OWNER, **(node | {"stake_to_be_added": 250 * TENSOR}))
    assert chain.get(s.AccountSubnetStake, HOTKEYS[0], SUBNET) == 200 * TENSOR  # who is in stays


@pytest.mark.parametrize(
    ("low", "high", "refusal"),
    [
        (200 * TENSOR, 200 * TENSOR - 1, "InvalidValues"),
        (100 * TENSOR - 1, 200 * TENSOR, "InvalidSubnetMinStake"),
        (250 * TENSOR + 1, 300 * TENSOR, "InvalidSubnetMinStake"),
        (100 * TENSOR, 1000 * TENSOR + 1, "InvalidSubnetMaxStake"),
    ],
)
def test_stake_limits_out_of_limits(chain: Chain, low: int, high: int, refusal: str) -> None:
    assert error(chain, "owner_update_min_max_stake", min=low, max=high) == refusal


def test_the_delegators_part_changes_slowly() -> None:
    chain = Chain(genesis={"SubnetDelegateStakeRewardsUpdatePeriod": 5})
    chain.make_active()
    name = "owner_update_delegate_stake_percentage"
    chain.to_block(18)  # activated at 13
    assert error(chain, name, value=10**17) == "DelegateStakePercentageUpdateTooSoon"
    chain.next_block()
    for value in (8 * 10**16 - 1, 12 * 10**16 + 1):
        assert error(chain, name, value=value) == "DelegateStakePercentageAbsDiffTooLarge"
    call(chain, name, value=12 * 10**16)
    assert chain.event("SubnetDelegateStakeRewardsPercentageUpdate")["value"] == 12 * 10**16
    assert error(chain, name, value=12 * 10**16) == "DelegateStakePercentageUpdateTooSoon"
    chain.agree(1, {1: TENSOR}, elect=1)
    chain.to_slot(2)
    found = chain.event("SubnetRewards")
    nodes = sum(amount for _, amount in found["node_rewards"])
    part = economics.percent_div(found["delegate_stake_reward"], found["delegate_stake_reward"] + nodes)
    assert abs(part - 12 * 10**16) < 10**9


@pytest.mark.parametrize("value", [5 * 10**16 - 1, 95 * 10**16 + 1])
def test_the_delegators_part_has_limits(chain: Chain, value: int) -> None:
    chain.ctx().put(s.MaxSubnetDelegateStakeRewardsPercentageChange, value=ONE)
    assert error(chain, "owner_update_delegate_stake_percentage", value=value) == "InvalidDelegateStakePercentage"


# --- who may join before activation ------------------------------------------------------------------------------


def test_initial_coldkeys(registered: Chain) -> None:
    newcomer = {"coldkey": FRIEND, "hotkey": account(2)}
    registered.ledger.mint(registered.ctx(), FRIEND, 1000 * TENSOR, "test")
    args = node_args(4, hotkey=account(2))
    assert registered.error("register_subnet_node", FRIEND, **args) == "ColdkeyRegistrationWhitelist"
    call(registered, "owner_add_or_update_initial_coldkeys", coldkeys={FRIEND: 1, COLDKEYS[0]: 2})
    assert registered.event("AddSubnetRegistrationInitialColdkeys")["coldkeys"] == {FRIEND: 1, COLDKEYS[0]: 2}
    allowed = registered.get(s.SubnetRegistrationInitialColdkeys, SUBNET)
    assert allowed == {**dict.fromkeys(COLDKEYS, 1), COLDKEYS[0]: 2, FRIEND: 1}
    registered.register_node(4, **newcomer)
    again = node_args(5, hotkey=account(3))
    assert registered.error("register_subnet_node", FRIEND, **again) == "MaxRegisteredNodes"
    call(registered, "owner_remove_initial_coldkeys", coldkeys={COLDKEYS[0], account(77)})
    assert registered.event("RemoveSubnetRegistrationInitialColdkeys")["coldkeys"] == {COLDKEYS[0], account(77)}
    first = node_args(0)
    assert registered.error("register_subnet_node", COLDKEYS[0], **first) == "ColdkeyRegistrationWhitelist"
    call(registered, "owner_remove_initial_coldkeys", coldkeys={*COLDKEYS, FRIEND})
    assert registered.get(s.SubnetRegistrationInitialColdkeys, SUBNET) is None
    registered.register_node(0)  # no list: everybody


def test_initial_coldkeys_must_be_allowed_a_node_and_end_with_the_registration(registered: Chain) -> None:
    name = "owner_add_or_update_initial_coldkeys"
    assert error(registered, name, coldkeys={FRIEND: 0}) == "InvalidSubnetRegistrationInitialColdkeys"
    chain = Chain()
    chain.make_active()
    assert error(chain, name, coldkeys={FRIEND: 1}) == "SubnetMustBeRegistering"
    assert error(chain, "owner_remove_initial_coldkeys", coldkeys={FRIEND}) == "SubnetMustBeRegistering"


# --- who may act -------------------------------------------------------------------------------------------------


def test_ownership_goes_over_in_two_steps(chain: Chain) -> None:
    accept = "accept_subnet_ownership"
    assert error(chain, accept, FRIEND) == "NoPendingSubnetOwner"
    call(chain, "transfer_subnet_ownership", new_owner=FRIEND)
    assert chain.event("TransferPendingSubnetOwner") == {"subnet_id": SUBNET, "owner": OWNER, "new_owner": FRIEND}
    assert chain.get(s.SubnetOwner, SUBNET) == OWNER
    for stranger in (OWNER, COLDKEYS[0]):
        assert error(chain, accept, stranger) == "NotPendingSubnetOwner"
    call(chain, "owner_update_misc", value=b"still mine")
    call(chain, accept, FRIEND)
    assert chain.event("AcceptPendingSubnetOwner") == {"subnet_id": SUBNET, "new_owner": FRIEND}
    assert error(chain, "owner_update_misc", OWNER, value=b"") == "NotSubnetOwner"
    call(chain, "owner_update_misc", FRIEND, value=b"mine")
    assert error(chain, accept, FRIEND) == "NoPendingSubnetOwner"
    before = chain.ctx().free_balance(FRIEND)
    chain.to_slot(2, elect=1)
    chain.next_block()
    chain.propose(1, {1: TENSOR})
    chain.attest(2)
    chain.to_slot(3)
    assert chain.ctx().free_balance(FRIEND) > before  # the owner's part of the rewards


def test_an_offer_can_be_taken_back(chain: Chain) -> None:
    call(chain, "transfer_subnet_ownership", new_owner=FRIEND)
    call(chain, "transfer_subnet_ownership", new_owner=bytes(20))
    assert error(chain, "accept_subnet_ownership", FRIEND) == "NotPendingSubnetOwner"


def test_an_offer_dies_with_the_subnet(chain: Chain) -> None:
    call(chain, "transfer_subnet_ownership", new_owner=FRIEND)
    call(chain, "owner_deactivate_subnet")
    assert error(chain, "accept_subnet_ownership", FRIEND) == "NoPendingSubnetOwner"
    assert chain.get(s.SubnetOwner, SUBNET) is None


def test_access_to_bootnodes(chain: Chain) -> None:
    change = {"add": {peer(5): BOOTNODE_ADDRESS}, "remove": {BOOTNODE}}
    assert error(chain, "update_bootnodes", FRIEND, **change) == "InvalidAccess"
    call(chain, "owner_add_bootnode_access", new_account=FRIEND)
    content = {"subnet_id": SUBNET, "owner": OWNER, "new_account": FRIEND}
    assert chain.event("AddSubnetBootnodeAccess") == content
    assert error(chain, "owner_add_bootnode_access", new_account=FRIEND) == "InBootnodeAccessList"
    call(chain, "update_bootnodes", FRIEND, **change)
    assert chain.get(s.SubnetBootnodes, SUBNET) == {peer(5): BOOTNODE_ADDRESS}
    assert error(chain, "owner_add_bootnode_access", FRIEND, new_account=account(2)) == "NotSubnetOwner"
    call(chain, "owner_remove_bootnode_access", remove_account=FRIEND)
    assert error(chain, "owner_remove_bootnode_access", remove_account=FRIEND) == "NotInAccessList"
    assert error(chain, "update_bootnodes", FRIEND, **change) == "InvalidAccess"
    call(chain, "update_bootnodes", add={}, remove=set())  # the owner needs no entry


def test_the_list_of_who_may_change_bootnodes_is_bounded(chain: Chain) -> None:
    for number in range(21):
        call(chain, "owner_add_bootnode_access", new_account=account(number))
    assert error(chain, "owner_add_bootnode_access", new_account=account(21)) == "MaxSubnetBootnodeAccess"


# --- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["Registered", "Active", "Paused"])
def test_an_owner_may_end_its_subnet_and_everybody_gets_their_stake(state: str) -> None:
    chain = Chain()
    chain.to_block(1)
    chain.register_subnet()
    for place in range(3):
        chain.register_node(place)
    chain.call("add_to_delegate_stake", COLDKEYS[2], subnet_id=SUBNET, stake_to_be_added=5000 * TENSOR)
    if state != "Registered":
        call(chain, "activate_subnet")
    if state == "Paused":
        call(chain, "owner_pause_subnet")
    assert chain.get(s.TotalActiveSubnets) == (state != "Registered")
    call(chain, "owner_deactivate_subnet")
    assert chain.event("SubnetDeactivated") == {"subnet_id": SUBNET, "reason": "Owner"}
    for item in (s.TotalSubnets, s.TotalActiveSubnets, s.TotalNodes, s.TotalActiveNodes, s.TotalElectableNodes):
        assert chain.get(item) == 0, item.name
    assert error(chain, "owner_deactivate_subnet") == "NotSubnetOwner"
    assert chain.get(s.AssignedSlots) == set()
    chain.register_subnet()  # name, repository, slot and friendly id are free again
    assert chain.get(s.SubnetSlot, SUBNET + 1) == 3
    assert chain.get(s.SubnetIdFriendlyUid, SUBNET + 1) == 1
    for place in range(3):
        stake = {"hotkey": HOTKEYS[place], "stake_to_be_removed": 200 * TENSOR}
        call(chain, "remove_stake", COLDKEYS[place], **stake)
    shares = chain.get(s.AccountSubnetDelegateStakeShares, COLDKEYS[2], SUBNET)
    call(chain, "remove_delegate_stake", COLDKEYS[2], shares_to_be_removed=shares)
    assert chain.get(s.TotalStake) == 0
    assert chain.get(s.TotalDelegateStake) < 2000  # what the dead shares are worth stays
    chain.to_block(21)
    for who in COLDKEYS:
        chain.call("claim_unbondings", who)
        assert chain.ctx().free_balance(who) > 999_990 * TENSOR
    chain.register_node(0, subnet_id=SUBNET + 1)  # and a hotkey without stake may be used again
