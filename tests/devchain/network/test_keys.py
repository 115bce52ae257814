"""Changing keys: what is kept under the old key is found under the new one, and nobody loses anything by it."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network import types as t

from .chain import COLDKEYS, HOTKEYS, OWNER, SUBNET, TENSOR, Chain, account, node_args
from .test_conservation import booked, supply

COLD, HOT = COLDKEYS[0], HOTKEYS[0]
NEW, STRANGER = account(21), account(22)
ALL = {1: TENSOR, 2: TENSOR, 3: TENSOR}


@pytest.fixture
def chain() -> Chain:
    """An active subnet of three nodes, node 3 elected; the first coldkey also has an overwatch node and a queued
    node."""
    made = Chain()
    made.make_active()
    made.to_slot(1, elect=3)
    made.call("register_overwatch_node", COLD, hotkey=account(30), stake_to_be_added=150 * TENSOR)
    made.call("register_subnet_node", COLD, **node_args(3, hotkey=account(4)))
    made.next_block()
    return made


def identity(hotkey: bytes, name: bytes = b"me", **changes: bytes) -> dict[str, Any]:
    return {"hotkey": hotkey, **dict.fromkeys(t.IDENTITY_FIELDS, b"x"), "name": name, **changes}


def unstake(chain: Chain, who: bytes, hotkey: bytes, amount: int) -> None:
    chain.call("remove_stake", who, subnet_id=SUBNET, hotkey=hotkey, stake_to_be_removed=amount)


# --- coldkeys ----------------------------------------------------------------------------------------------------


def test_a_new_coldkey_has_everything_the_old_one_had(chain: Chain) -> None:
    chain.call("register_or_update_identity", COLD, **identity(HOT))
    unstake(chain, COLD, HOT, TENSOR)
    kept = {
        item: chain.get(item, COLD)
        for item in (
            s.ColdkeyHotkeys,
            s.ColdkeySubnetNodes,
            s.ColdkeyReputation,
            s.ColdkeyIdentity,
            s.StakeUnbondingLedger,
        )
    }
    assert all(kept.values())
    chain.call("update_coldkey", COLD, hotkey=HOT, new_coldkey=NEW)
    assert chain.event("UpdateColdkey") == {"coldkey": COLD, "new_coldkey": NEW}
    for item, value in kept.items():
        assert chain.get(item, NEW) == value, item.name
        assert not chain.ctx().has(item, COLD), item.name
    for hotkey in (HOT, account(4), account(30)):
        assert chain.get(s.HotkeyOwner, hotkey) == NEW
    assert chain.get(s.ColdkeyIdentityNameOwner, b"me") == NEW
    assert supply(chain) == booked(chain)

    leave = {"subnet_id": SUBNET, "subnet_node_id": 1}
    assert chain.error("remove_subnet_node", COLD, **leave) == "NotKeyOwner"
    args = {"subnet_id": SUBNET, "hotkey": HOT, "stake_to_be_removed": 1}
    assert chain.error("remove_stake", COLD, **args) == "NotKeyOwner"
    assert chain.error("remove_overwatch_node", COLD, overwatch_node_id=1) == "NotKeyOwner"
    chain.call("remove_overwatch_node", NEW, overwatch_node_id=1)
    unstake(chain, NEW, HOT, TENSOR)
    chain.to_block(chain.block + 20)
    assert chain.error("claim_unbondings", COLD) == "NoStakeUnbondingsOrCooldownNotMet"
    chain.call("claim_unbondings", NEW)
    assert chain.ctx().free_balance(NEW) == 2 * TENSOR
    chain.call("remove_subnet_node", NEW, **leave)
    assert supply(chain) == booked(chain)


def test_what_a_coldkey_has_as_a_user_stays_with_it(chain: Chain) -> None:
    chain.call("add_to_delegate_stake", COLDKEYS[1], subnet_id=SUBNET, stake_to_be_added=TENSOR)
    free = chain.ctx().free_balance(COLDKEYS[1])
    chain.call("update_coldkey", COLDKEYS[1], hotkey=HOTKEYS[1], new_coldkey=NEW)
    assert chain.ctx().free_balance(COLDKEYS[1]) == free
    assert chain.get(s.AccountSubnetDelegateStakeShares, COLDKEYS[1], SUBNET) > 0
    assert chain.get(s.SubnetOwner, SUBNET) == OWNER == COLDKEYS[1]


def test_coldkey_changes_that_are_refused(chain: Chain) -> None:
    def error(who: bytes, hotkey: bytes, new: bytes) -> str:
        return chain.error("update_coldkey", who, hotkey=hotkey, new_coldkey=new)

    assert error(COLD, HOT, HOT) == "ColdkeyMatchesHotkey"
    assert error(STRANGER, HOT, NEW) == "NotKeyOwner"
    assert error(HOT, HOT, NEW) == "NotKeyOwner"
    assert error(COLD, HOTKEYS[1], NEW) == "NotKeyOwner"
    assert error(bytes(20), STRANGER, NEW) == "NotKeyOwner"
    assert error(COLD, HOT, HOTKEYS[1]) == "HotkeyHasOwner"
    for used in (COLD, COLDKEYS[1]):
        assert error(COLD, HOT, used) == "HotkeyAlreadyRegisteredToColdkey"
    friend = {"delegate_account_id": NEW, "delegate_rate": TENSOR}
    chain.call("update_delegate_account", COLD, subnet_id=SUBNET, subnet_node_id=4, **friend)
    assert error(COLD, HOT, NEW) == "DelegateAccountCannotBeColdkey"


def test_a_key_change_takes_nothing_from_the_account_it_names(chain: Chain) -> None:
    """The new coldkey signs nothing: what is its own must stay its own."""
    victim = account(40)
    chain.ctx().transfer(COLDKEYS[1], victim, 20 * TENSOR)
    chain.call("add_to_delegate_stake", victim, subnet_id=SUBNET, stake_to_be_added=10 * TENSOR)
    chain.call("remove_delegate_stake", victim, subnet_id=SUBNET, shares_to_be_removed=8 * TENSOR)
    ((due, own),) = chain.get(s.StakeUnbondingLedger, victim).items()
    unstake(chain, COLD, HOT, TENSOR)
    chain.call("update_coldkey", COLD, hotkey=HOT, new_coldkey=victim)
    assert chain.get(s.StakeUnbondingLedger, COLD) == {}
    assert chain.get(s.StakeUnbondingLedger, victim) == {due: own + TENSOR}
    assert supply(chain) == booked(chain)


def test_two_ledgers_become_one_only_where_it_has_room(chain: Chain) -> None:
    chain.ctx().put(s.MaxUnbondings, value=2)
    for _ in range(2):
        unstake(chain, COLD, HOT, TENSOR)
        chain.next_block()
    mine = chain.get(s.StakeUnbondingLedger, COLD)
    chain.ctx().put(s.StakeUnbondingLedger, NEW, value={1: 1})
    assert chain.error("update_coldkey", COLD, hotkey=HOT, new_coldkey=NEW) == "MaxUnlockingsReached"
    chain.ctx().put(s.StakeUnbondingLedger, NEW, value={max(mine): 1})
    chain.call("update_coldkey", COLD, hotkey=HOT, new_coldkey=NEW)
    assert chain.get(s.StakeUnbondingLedger, NEW) == {**mine, max(mine): TENSOR + 1}


def test_a_blacklisted_coldkey_stays_blacklisted(chain: Chain) -> None:
    chain.ctx().put(s.OverwatchNodeBlacklist, COLD, value=True)
    chain.call("update_coldkey", COLD, hotkey=HOT, new_coldkey=NEW)
    assert chain.get(s.OverwatchNodeBlacklist, NEW) is True
    assert chain.get(s.OverwatchNodeBlacklist, COLD) is True


def test_a_coldkey_without_reputation_takes_none_away(chain: Chain) -> None:
    late = HOTKEYS[1]  # funded, but a coldkey of nothing yet
    chain.call("register_subnet_node", late, **node_args(5, hotkey=account(6)))
    before = {**chain.get(s.ColdkeyReputation, NEW), "score": 9 * TENSOR // 10}
    chain.ctx().put(s.ColdkeyReputation, NEW, value=before)
    chain.call("update_coldkey", late, hotkey=account(6), new_coldkey=NEW)
    assert chain.get(s.ColdkeyReputation, NEW) == before


# --- hotkeys -----------------------------------------------------------------------------------------------------


def test_a_new_hotkey_is_the_node(chain: Chain) -> None:
    free = chain.ctx().free_balance(HOTKEYS[2])
    chain.call("update_hotkey", COLDKEYS[2], old_hotkey=HOTKEYS[2], new_hotkey=NEW)
    assert chain.event("UpdateHotkey") == {"hotkey": HOTKEYS[2], "new_hotkey": NEW}
    assert chain.get(s.SubnetNodeIdHotkey, SUBNET, 3) == NEW
    assert chain.get(s.HotkeySubnetNodeId, SUBNET, NEW) == 3
    assert chain.get(s.HotkeySubnetId, NEW) == SUBNET
    assert chain.get(s.HotkeyOwner, NEW) == COLDKEYS[2]
    assert chain.get(s.ColdkeyHotkeys, COLDKEYS[2]) == {NEW}
    assert chain.get(s.SubnetNodesData, SUBNET, 3)["hotkey"] == NEW
    assert chain.get(s.AccountSubnetStake, NEW, SUBNET) == 200 * TENSOR
    for item, keys in (
        (s.HotkeySubnetNodeId, (SUBNET, HOTKEYS[2])),
        (s.HotkeySubnetId, (HOTKEYS[2],)),
        (s.HotkeyOwner, (HOTKEYS[2],)),
        (s.AccountSubnetStake, (HOTKEYS[2], SUBNET)),
    ):
        assert not chain.ctx().has(item, *keys), item.name
    assert chain.ctx().free_balance(HOTKEYS[2]) == free  # money is not a node's
    assert supply(chain) == booked(chain)
    data = [{"subnet_node_id": 1, "score": 1}]
    wishes = {"prioritize_queue_node_id": None, "remove_queue_node_id": None, "args": None, "attest_data": None}
    args = {"subnet_id": SUBNET, "data": data, **wishes}
    assert chain.error("propose_attestation", HOTKEYS[2], **args) == "InvalidValidator"
    chain.call("propose_attestation", NEW, **args)  # elected is the node, not the key


def test_a_reward_finds_the_hotkey_that_was_changed_after_the_proposal(chain: Chain) -> None:
    chain.propose(3, ALL)
    for node in (1, 2):
        chain.attest(node)
    chain.call("update_hotkey", COLD, old_hotkey=HOT, new_hotkey=NEW)
    chain.to_slot(2)
    paid = dict(chain.event("SubnetRewards")["node_rewards"])
    assert chain.get(s.AccountSubnetStake, NEW, SUBNET) == 200 * TENSOR + paid[1]
    assert not chain.ctx().has(s.AccountSubnetStake, HOT, SUBNET)
    assert supply(chain) == booked(chain)


def test_a_queued_node_is_activated_with_its_new_hotkey(chain: Chain) -> None:
    chain.call("update_hotkey", COLD, old_hotkey=account(4), new_hotkey=NEW)
    assert chain.get(s.RegisteredSubnetNodesData, SUBNET, 4)["hotkey"] == NEW
    chain.to_slot(6)
    assert chain.get(s.SubnetNodesData, SUBNET, 4)["hotkey"] == NEW
    assert chain.get(s.ColdkeyReputation, COLD)["total_active_nodes"] == 2


def test_an_overwatch_node_and_its_stake_move(chain: Chain) -> None:
    chain.call("update_hotkey", COLD, old_hotkey=account(30), new_hotkey=NEW)
    assert chain.get(s.OverwatchNodes, 1) == {"id": 1, "hotkey": NEW}
    assert chain.get(s.OverwatchNodeIdHotkey, 1) == NEW
    assert chain.get(s.HotkeyOverwatchNodeId, NEW) == 1
    assert chain.get(s.HotkeyOverwatchNodeId, account(30)) is None
    assert chain.get(s.AccountOverwatchStake, NEW) == 150 * TENSOR
    assert not chain.ctx().has(s.AccountOverwatchStake, account(30))
    chain.call("remove_overwatch_node", NEW, overwatch_node_id=1)  # signed by the hotkey
    chain.call("update_hotkey", COLD, old_hotkey=NEW, new_hotkey=STRANGER)  # a stake without a node
    chain.call("remove_overwatch_stake", COLD, hotkey=STRANGER, stake_to_be_removed=150 * TENSOR)
    assert supply(chain) == booked(chain)


def test_hotkey_changes_that_are_refused(chain: Chain) -> None:
    def error(who: bytes, old: bytes, new: bytes) -> str:
        return chain.error("update_hotkey", who, old_hotkey=old, new_hotkey=new)

    assert error(COLD, HOT, COLD) == "ColdkeyMatchesHotkey"
    assert error(STRANGER, HOT, NEW) == "NotKeyOwner"
    assert error(HOT, HOT, NEW) == "NotKeyOwner"
    assert error(bytes(20), STRANGER, NEW) == "NotKeyOwner"
    for used in (HOTKEYS[1], HOT, account(30)):
        assert error(COLD, HOT, used) == "HotkeyHasOwner"
    friend = {"delegate_account_id": NEW, "delegate_rate": TENSOR}
    chain.call("update_delegate_account", COLD, subnet_id=SUBNET, subnet_node_id=1, **friend)
    assert error(COLD, HOT, NEW) == "DelegateAccountCannotBeHotkey"
    chain.ctx().put(s.ColdkeyHotkeys, COLD, value=set())
    assert error(COLD, HOT, STRANGER) == "OldHotkeyNotRegistered"


# --- hotkeys that are forgotten ----------------------------------------------------------------------------------


def test_a_hotkey_is_not_forgotten_while_anything_is_staked_on_it(chain: Chain) -> None:
    """Else nobody could take the rest out: stake in another subnet, or as an overwatch node."""
    chain.register_subnet(name=b"two", repo=b"two")
    other = SUBNET + 1
    for hotkey in (HOT, account(30)):
        args = {"subnet_id": other, "subnet_node_id": 0, "hotkey": hotkey, "stake_to_be_added": 100 * TENSOR}
        chain.call("add_stake", COLD, **args)
    chain.call("remove_subnet_node", COLD, subnet_id=SUBNET, subnet_node_id=1)
    unstake(chain, COLD, HOT, 200 * TENSOR)
    assert chain.get(s.HotkeyOwner, HOT) == COLD
    for hotkey in (HOT, account(30)):
        chain.call("remove_stake", COLD, subnet_id=other, hotkey=hotkey, stake_to_be_removed=100 * TENSOR)
    assert not chain.ctx().has(s.HotkeyOwner, HOT)
    assert not chain.ctx().has(s.HotkeySubnetId, HOT)
    assert chain.get(s.ColdkeyHotkeys, COLD) == {account(4), account(30)}
    chain.call("remove_overwatch_node", COLD, overwatch_node_id=1)
    chain.call("remove_overwatch_stake", COLD, hotkey=account(30), stake_to_be_removed=150 * TENSOR)
    assert supply(chain) == booked(chain)


@pytest.mark.parametrize("node", ["with stake only", "with node only"])
def test_an_overwatch_hotkey_is_not_forgotten_for_a_stake_it_had_elsewhere(chain: Chain, node: str) -> None:
    hotkey = account(30)
    if node == "with stake only":
        chain.call("remove_overwatch_node", COLD, overwatch_node_id=1)
    else:
        chain.ctx().put(s.OverwatchMinStakeBalance, value=0)
        chain.call("remove_overwatch_stake", COLD, hotkey=hotkey, stake_to_be_removed=150 * TENSOR)
    args = {"subnet_id": SUBNET, "subnet_node_id": 0, "hotkey": hotkey, "stake_to_be_added": 100 * TENSOR}
    chain.call("add_stake", COLD, **args)
    unstake(chain, COLD, hotkey, 100 * TENSOR)
    assert chain.get(s.HotkeyOwner, hotkey) == COLD


# --- identities --------------------------------------------------------------------------------------------------


def test_an_identity_has_a_name_that_nobody_else_has(chain: Chain) -> None:
    chain.call("register_or_update_identity", COLD, **identity(HOT, b"ann"))
    said = {**dict.fromkeys(t.IDENTITY_FIELDS, b"x"), "name": b"ann"}
    assert chain.event("IdentityRegistered") == {"coldkey": COLD, "identity": said}
    assert chain.get(s.ColdkeyIdentity, COLD) == said
    taken = chain.error("register_or_update_identity", COLDKEYS[1], **identity(HOTKEYS[1], b"ann"))
    assert taken == "IdentityTaken"
    chain.call("register_or_update_identity", COLD, **identity(HOT, b"ann", url=b"new"))  # the same name again
    chain.call("register_or_update_identity", COLD, **identity(account(30), b"eve"))  # by any of its hotkeys
    assert not chain.ctx().has(s.ColdkeyIdentityNameOwner, b"ann")
    chain.call("register_or_update_identity", COLDKEYS[1], **identity(HOTKEYS[1], b"ann"))
    assert chain.get(s.ColdkeyIdentityNameOwner, b"ann") == COLDKEYS[1]
    chain.events.clear()
    chain.call("remove_identity", COLD)
    assert chain.event("IdentityRemoved")["identity"]["name"] == b"eve"
    assert not chain.ctx().has(s.ColdkeyIdentity, COLD)
    assert not chain.ctx().has(s.ColdkeyIdentityNameOwner, b"eve")
    chain.call("remove_identity", STRANGER)  # an empty one
    assert chain.get(s.ColdkeyIdentityNameOwner, b"ann") == COLDKEYS[1]


@pytest.mark.parametrize("field", t.IDENTITY_FIELDS)
def test_an_identity_is_for_coldkeys_and_says_something_in_every_field(chain: Chain, field: str) -> None:
    bad = {**identity(HOT), field: b""}
    assert chain.error("register_or_update_identity", COLD, **bad) == "IdentityFieldEmpty"
    for who, hotkey in ((STRANGER, HOT), (HOT, HOT), (COLD, HOTKEYS[1]), (bytes(20), STRANGER)):
        assert chain.error("register_or_update_identity", who, **identity(hotkey)) == "NotKeyOwner"


def test_two_identities_do_not_become_one(chain: Chain) -> None:
    chain.call("register_or_update_identity", COLD, **identity(HOT, b"ann"))
    chain.ctx().put(s.ColdkeyIdentity, NEW, value={**dict.fromkeys(t.IDENTITY_FIELDS, b"y")})
    assert chain.error("update_coldkey", COLD, hotkey=HOT, new_coldkey=NEW) == "IdentityTaken"
    chain.call("remove_identity", COLD)
    chain.call("update_coldkey", COLD, hotkey=HOT, new_coldkey=NEW)
    assert chain.get(s.ColdkeyIdentity, NEW)["name"] == b"y"
