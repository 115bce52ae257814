"""A paused subnet: what stops, what is finished, how its queue comes out whole, and its end."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallets.network import economics, info, nodes
from mesh.devchain.pallets.network import storage as s

from .chain import COLDKEYS, HOTKEYS, OWNER, PEERS, SUBNET, TENSOR, Chain, account, node_args

ONE = economics.ONE
ALL = {1: TENSOR, 2: TENSOR, 3: TENSOR}
THIS: dict[str, Any] = {"subnet_id": SUBNET}


@pytest.fixture
def chain() -> Chain:
    """An active subnet; node 3 is elected for epoch 1; the block after the slot."""
    made = Chain()
    made.make_active()
    made.to_slot(1, elect=3)
    made.next_block()
    return made


def pause(chain: Chain) -> None:
    chain.call("owner_pause_subnet", OWNER, **THIS)


def unpause(chain: Chain) -> None:
    chain.call("owner_unpause_subnet", OWNER, **THIS)


def subnet(chain: Chain) -> tuple[str, int]:
    data = chain.get(s.SubnetsData, SUBNET)
    return data["state"], data["start_epoch"]


def join(chain: Chain, number: int) -> int:
    chain.call("register_subnet_node", OWNER, **node_args(number, hotkey=account(number)))
    return int(chain.get(s.HotkeySubnetNodeId, SUBNET, account(number)))


def activated_in(chain: Chain, node: int, *, by: int) -> int | None:
    """The subnet epoch in which a queued node gets active, looked for up to an epoch."""
    for epoch in range(chain.block // chain.length, by + 1):
        chain.to_slot(epoch)
        if chain.ctx().has(s.SubnetNodesData, SUBNET, node):
            return epoch
    return None


# --- the two calls -----------------------------------------------------------------------------------------------


def test_pausing_and_going_on(chain: Chain) -> None:
    pause(chain)
    assert chain.event("SubnetPaused") == {"subnet_id": SUBNET, "owner": OWNER}
    assert subnet(chain) == ("Paused", 1)
    assert chain.error("owner_pause_subnet", OWNER, **THIS) == "SubnetMustBeActive"
    assert chain.error("activate_subnet", OWNER, **THIS) == "SubnetActivatedAlready"
    chain.to_block(70)
    unpause(chain)
    assert chain.event("SubnetUnpaused") == {"subnet_id": SUBNET, "owner": OWNER}
    assert subnet(chain) == ("Active", 4)
    assert chain.get(s.PreviousSubnetPauseEpoch, SUBNET) == 3
    assert chain.error("owner_unpause_subnet", OWNER, **THIS) == "SubnetMustBePaused"


def test_only_an_active_subnet_can_be_paused() -> None:
    chain = Chain()
    chain.to_block(1)
    chain.register_subnet()
    assert chain.error("owner_pause_subnet", OWNER, **THIS) == "SubnetMustBeActive"
    assert chain.error("owner_unpause_subnet", OWNER, **THIS) == "SubnetMustBePaused"


def test_a_pause_needs_distance_from_the_last_one_and_from_activation() -> None:
    chain = Chain(genesis={"SubnetPauseCooldownEpochs": 3})
    chain.make_active()  # in epoch 0
    chain.to_block(59)
    assert chain.error("owner_pause_subnet", OWNER, **THIS) == "SubnetPauseCooldownActive"
    chain.next_block()
    pause(chain)
    chain.to_block(80)
    unpause(chain)  # in epoch 4
    chain.to_block(139)
    assert chain.error("owner_pause_subnet", OWNER, **THIS) == "SubnetPauseCooldownActive"
    chain.next_block()
    pause(chain)


# --- what stops --------------------------------------------------------------------------------------------------


def test_nothing_new_starts_in_a_paused_subnet(chain: Chain) -> None:
    waiting = join(chain, 4)
    chain.ctx().put(s.SubnetNodeQueueEpochs, SUBNET, value=0)
    chain.ctx().put(s.CurrentNodeBurnRate, SUBNET, value=3 * ONE)
    pause(chain)
    for epoch in range(2, 8):
        chain.to_slot(epoch)
        assert chain.names() == []
        assert chain.get(s.SubnetElectedValidator, SUBNET, epoch) is None
        assert chain.get(s.FinalSubnetEmissionWeights, epoch)["weights"] == {}
    assert [each["id"] for each in chain.get(s.SubnetNodeQueue, SUBNET)] == [waiting]
    assert chain.get(s.CurrentNodeBurnRate, SUBNET) == 3 * ONE
    assert chain.get(s.SubnetReputation, SUBNET) == ONE  # also the missing proposal of epoch 1 is nobody's fault
    assert not chain.ctx().has(s.SubnetNodeReputation, SUBNET, 3)
    assert chain.error("register_subnet_node", OWNER, **node_args(5, hotkey=account(5))) == "SubnetIsPaused"


def test_members_stay_members_and_may_leave(chain: Chain) -> None:
    pause(chain)
    chain.to_block(60)
    assert info.proof_of_stake(chain.ctx(), SUBNET, PEERS[0], 3)
    chain.call("remove_subnet_node", COLDKEYS[0], **THIS, subnet_node_id=1)
    chain.call("remove_stake", COLDKEYS[0], **THIS, hotkey=HOTKEYS[0], stake_to_be_removed=200 * TENSOR)
    chain.call("add_to_delegate_stake", OWNER, **THIS, stake_to_be_added=TENSOR)
    assert chain.get(s.SubnetNodeElectionSlots, SUBNET) == [3, 2]


def test_another_subnet_gets_the_whole_emission_meanwhile(chain: Chain) -> None:
    other = SUBNET + 1
    chain.register_subnet(name=b"two", repo=b"two")
    for place in range(3):
        args = node_args(place, hotkey=account(place)) | {"subnet_id": other}
        chain.call("register_subnet_node", COLDKEYS[place], **args)
    chain.call("activate_subnet", OWNER, subnet_id=other)
    chain.to_block(42)
    assert set(chain.get(s.FinalSubnetEmissionWeights, 2)["weights"]) == {SUBNET, other}
    pause(chain)
    chain.to_block(62)
    assert chain.get(s.FinalSubnetEmissionWeights, 3)["weights"] == {other: ONE}
    chain.to_block(64)
    assert chain.get(s.SubnetElectedValidator, other, 3) is not None


# --- the round under way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("paused_at", [26, 40, 41, 42])
def test_the_round_under_way_is_settled_and_is_the_last(chain: Chain, paused_at: int) -> None:
    """Wherever before its settlement the owner pauses: at once, or just before or after the weights are fixed."""
    chain.propose(3, ALL)
    chain.attest(1)
    chain.to_block(paused_at)
    pause(chain)
    if paused_at < 43 - 3:
        chain.attest(2)  # attesting goes on
    chain.to_slot(2)
    assert {node for node, _ in chain.event("SubnetRewards")["node_rewards"]} == {1, 2, 3}
    assert chain.stake_of(3) > 201 * TENSOR
    assert chain.get(s.SubnetElectedValidator, SUBNET, 2) is None
    before = [chain.stake_of(node) for node in ALL]
    chain.to_slot(6)
    assert [chain.stake_of(node) for node in ALL] == before


def test_a_pause_saves_no_proposer_from_its_slash(chain: Chain) -> None:
    chain.propose(3, ALL)
    pause(chain)
    chain.to_slot(2)
    assert chain.event("Slashing")["account_id"] == HOTKEYS[2]
    assert chain.get(s.SubnetReputation, SUBNET) < ONE


def test_a_pause_and_its_end_within_a_round_change_nothing_about_it(chain: Chain) -> None:
    chain.propose(3, ALL)
    pause(chain)
    chain.next_block()
    unpause(chain)
    chain.attest(1)
    chain.to_slot(2)
    assert {node for node, _ in chain.event("SubnetRewards")["node_rewards"]} == {1, 2, 3}
    assert chain.get(s.SubnetElectedValidator, SUBNET, 2) is not None


@pytest.mark.parametrize("unpaused_at", [40, 42, 44, 59])
def test_the_first_epoch_is_the_one_after_unpausing(chain: Chain, unpaused_at: int) -> None:
    chain.propose(3, ALL)
    chain.attest(1)
    pause(chain)
    settled = []
    while chain.block < 64:
        if chain.block == unpaused_at:
            unpause(chain)
        chain.next_block()
        settled += ["SubnetRewards"] * chain.names().count("SubnetRewards")
    assert settled == ["SubnetRewards"]
    assert chain.get(s.SubnetElectedValidator, SUBNET, 2) is None
    assert chain.get(s.SubnetElectedValidator, SUBNET, 3) is not None
    assert chain.get(s.SubnetReputation, SUBNET) == ONE


# --- the queue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [0, 2, 5])
def test_queued_nodes_wait_out_their_time_without_the_pause(chain: Chain, epochs: int) -> None:
    first = join(chain, 4)  # in epoch 1: starts in 2, waits 3 more, so 6
    pause(chain)
    chain.to_block(25 + epochs * 20)
    unpause(chain)
    data = chain.get(s.RegisteredSubnetNodesData, SUBNET, first)
    assert data["classification"]["start_epoch"] == 2 + epochs + 1
    assert chain.get(s.SubnetNodeQueue, SUBNET) == [data]
    assert activated_in(chain, first, by=20) == 6 + epochs + 1


def test_the_immunity_of_a_queued_node_is_moved_with_it(chain: Chain) -> None:
    node = join(chain, 4)
    chain.ctx().put(s.SubnetNodeQueueEpochs, SUBNET, value=50)
    pause(chain)
    chain.to_block(65)
    unpause(chain)  # start epoch 2 + 3; immune for 3 epochs from then on: until 8
    for epoch, wish in ((7, None), (8, node)):
        chain.to_slot(epoch, elect=1)
        chain.next_block()
        chain.propose(1, ALL, remove=node)
        assert chain.get(s.SubnetConsensusSubmission, SUBNET, epoch)["remove_queue_node_id"] == wish


def test_only_this_subnets_queue_is_moved(chain: Chain) -> None:
    other = SUBNET + 1
    data = chain.get(s.SubnetsData, SUBNET)
    chain.ctx().put(s.SubnetsData, other, value={**data, "id": other})
    chain.call("register_subnet_node", OWNER, **node_args(4, hotkey=account(4), subnet_id=other))
    before = chain.get(s.RegisteredSubnetNodesData, other, 1), chain.get(s.SubnetNodeQueue, other)
    pause(chain)
    unpause(chain)
    assert (chain.get(s.RegisteredSubnetNodesData, other, 1), chain.get(s.SubnetNodeQueue, other)) == before


def test_a_node_on_its_way_up_loses_no_step(chain: Chain) -> None:
    """Classes are climbed by settled rounds, so a pause between two of them neither helps nor costs."""
    new = join(chain, 4)

    def node_class() -> str:
        found = nodes.find_node(chain.ctx(), SUBNET, new)
        assert found is not None
        return str(found["classification"]["node_class"])

    chain.propose(3, ALL)
    chain.attest(1)
    for epoch in range(2, 8):
        chain.agree(epoch, ALL, elect=1)
    assert node_class() == "Idle"  # one settled round so far
    pause(chain)
    chain.to_slot(8)
    assert node_class() == "Included"  # by the round that was under way
    chain.to_block(250)
    unpause(chain)
    for epoch, held in ((13, "Included"), (14, "Included"), (15, "Validator")):
        chain.agree(epoch, {**ALL, new: TENSOR}, elect=1)
        assert node_class() == held


# --- the end -----------------------------------------------------------------------------------------------------


def test_a_pause_without_end_ends_the_subnet_and_stakes_come_back() -> None:
    chain = Chain(genesis={"MaxSubnetPauseEpochs": 2})
    chain.make_active()
    chain.to_block(21)
    pause(chain)  # in epoch 1
    chain.to_block(79)
    assert chain.get(s.SubnetReputation, SUBNET) == ONE
    expected = ONE
    for epoch in range(4, 22):
        chain.to_block(epoch * 20)
        expected = economics.lower_reputation(expected, 125 * 10**15)
        assert chain.event("SubnetReputationUpdate")["new_reputation"] == expected
        if expected < 10**17:
            break
        assert subnet(chain) == ("Paused", 1)
    assert chain.event("SubnetDeactivated") == {"subnet_id": SUBNET, "reason": "PauseExpired"}
    assert chain.get(s.TotalActiveSubnets) == 0
    for place in range(3):
        chain.call("remove_stake", COLDKEYS[place], **THIS, hotkey=HOTKEYS[place], stake_to_be_removed=200 * TENSOR)
    assert chain.get(s.TotalStake) == 0


def test_lost_delegate_stake_does_not_end_a_paused_subnet_but_an_unpaused_one() -> None:
    chain = Chain(genesis={"MinSubnetDelegateStakeFactor": 10**15})
    chain.make_active()
    chain.to_block(21)
    pause(chain)
    shares = chain.get(s.AccountSubnetDelegateStakeShares, COLDKEYS[2], SUBNET)
    chain.call("remove_delegate_stake", COLDKEYS[2], **THIS, shares_to_be_removed=shares)
    chain.to_block(100)
    assert subnet(chain) == ("Paused", 1)
    unpause(chain)
    chain.to_block(120)
    assert chain.event("SubnetDeactivated")["reason"] == "MinSubnetDelegateStake"
