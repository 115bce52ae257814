"""What the block hook does: elections, settlements, penalties, the queue, classes, removals."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallets.network import economics, nodes, rewards
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.epoch import draw
from mesh.devchain.pallets.network.stake import held

from .chain import COLDKEYS, HOTKEYS, OWNER, SUBNET, TENSOR, Chain, account, node_args, peer

ONE = economics.ONE
ALL = {1: TENSOR, 2: TENSOR, 3: TENSOR}


@pytest.fixture
def chain() -> Chain:
    """An active subnet with three validators, before its first election."""
    made = Chain()
    made.make_active()
    return made


def reputation(chain: Chain, node: int) -> int:
    return int(chain.get(s.SubnetNodeReputation, SUBNET, node))


# --- elections ---------------------------------------------------------------------------------------------------


def test_one_validator_is_elected_at_the_slot_block_of_each_epoch(chain: Chain) -> None:
    for epoch in range(1, 4):
        chain.to_block(epoch * 20 + 2)
        assert chain.get(s.SubnetElectedValidator, SUBNET, epoch) is None
        chain.to_slot(epoch)
        assert chain.block == epoch * 20 + 3
        assert chain.get(s.SubnetElectedValidator, SUBNET, epoch) in (1, 2, 3)
    assert chain.get(s.SubnetElectedValidator, SUBNET, 0) is None


def test_the_draw_depends_on_the_parent_hash_and_is_even() -> None:
    counts = [0, 0, 0]
    for number in range(3000):
        counts[draw(number.to_bytes(32, "big"), SUBNET, 1, 3)] += 1
    assert min(counts) > 900
    same = bytes(32)
    assert len({draw(same, SUBNET, epoch, 1000) for epoch in range(20)}) > 15


def test_a_subnet_without_electable_nodes_elects_nobody(chain: Chain) -> None:
    for node in (1, 2, 3):
        chain.call("remove_subnet_node", COLDKEYS[node - 1], subnet_id=SUBNET, subnet_node_id=node)
    chain.to_slot(1)
    assert chain.get(s.SubnetElectedValidator, SUBNET, 1) is None


def test_nothing_runs_for_a_subnet_that_is_not_active() -> None:
    chain = Chain()
    chain.to_block(8)
    chain.register_subnet()
    chain.to_block(43)
    assert chain.get(s.FinalSubnetEmissionWeights, 2)["weights"] == {}
    assert chain.get(s.SubnetElectedValidator, SUBNET, 2) is None


# --- settlements -------------------------------------------------------------------------------------------------


def test_without_a_proposal_the_elected_node_and_the_subnet_lose_reputation(chain: Chain) -> None:
    chain.to_slot(1, elect=2)
    before = held(chain.ctx())
    chain.to_slot(2)
    assert reputation(chain, 2) == 95 * ONE // 100
    assert chain.get(s.SubnetReputation, SUBNET) == 95 * ONE // 100
    assert [reputation(chain, node) for node in (1, 3)] == [ONE, ONE]
    assert chain.names() == ["SubnetReputationUpdate", "NodeReputationUpdate"]
    assert held(chain.ctx()) == before


def test_a_rejected_proposal_is_slashed_and_pays_nobody(chain: Chain) -> None:
    chain.to_slot(1, elect=3)
    chain.next_block()
    chain.propose(3, ALL)  # nobody else attests: a third of the validators
    before = held(chain.ctx())
    pool = chain.get(s.TotalSubnetDelegateStakeBalance, SUBNET)
    chain.to_slot(2)
    assert chain.event("Slashing") == {"subnet_id": SUBNET, "account_id": HOTKEYS[2], "amount": ONE}
    assert chain.stake_of(3) == 199 * TENSOR
    assert held(chain.ctx()) == before - ONE
    assert chain.get(s.TotalSubnetDelegateStakeBalance, SUBNET) == pool
    assert "SubnetRewards" not in chain.names()
    shortfall = economics.shortfall(economics.attestation_ratio(1, 3), 66 * 10**16)
    lost = economics.lower_reputation(ONE, economics.percent_mul(5 * 10**16, shortfall))
    lost = economics.lower_reputation(lost, economics.percent_mul(10**17, shortfall))  # it also attested
    assert reputation(chain, 3) == lost
    assert reputation(chain, 1) == ONE
    subnet = economics.lower_reputation(ONE, economics.percent_mul(125 * 10**15, shortfall))
    assert chain.get(s.SubnetReputation, SUBNET) == subnet
    coldkey = chain.get(s.ColdkeyReputation, COLDKEYS[2])
    assert coldkey["total_decreases"] == 1
    assert coldkey["score"] < 5 * 10**17


def test_two_of_three_attestations_are_a_quorum_but_no_super_majority(chain: Chain) -> None:
    chain.to_slot(1, elect=3)
    chain.next_block()
    chain.propose(3, ALL)
    chain.attest(1)
    chain.to_slot(2)
    paid = dict(chain.event("SubnetRewards")["node_rewards"])
    assert set(paid) == {1, 2, 3}
    assert reputation(chain, 2) == ONE  # who did not attest is only blamed by a super majority


def test_a_super_majority_blames_who_did_not_attest() -> None:
    chain = Chain(genesis={"SuperMajorityAttestationRatio": 66 * 10**16})
    chain.make_active()
    chain.to_slot(1, elect=3)
    chain.next_block()
    chain.propose(3, ALL)
    chain.attest(1)
    chain.to_slot(2)
    assert reputation(chain, 2) == 9 * ONE // 10
    paid = dict(chain.event("SubnetRewards")["node_rewards"])
    assert paid[2] >= paid[1]  # its factor stays 1.0: the loss is in its reputation


def test_a_node_left_out_loses_reputation_and_is_not_paid(chain: Chain) -> None:
    chain.agree(1, {1: TENSOR, 2: TENSOR}, elect=3)
    chain.to_slot(2)
    assert set(dict(chain.event("SubnetRewards")["node_rewards"])) == {1, 2}
    assert reputation(chain, 3) == 9 * ONE // 10


def test_reputation_comes_back_when_scored_again(chain: Chain) -> None:
    chain.agree(1, {1: TENSOR, 2: TENSOR}, elect=3)
    chain.agree(2, ALL, elect=1)
    chain.to_slot(3)
    assert reputation(chain, 3) == economics.raise_reputation(9 * ONE // 10, 10**17)


def test_an_agreed_empty_proposal_pays_only_its_proposer(chain: Chain) -> None:
    chain.agree(1, {}, elect=3)
    before = held(chain.ctx())
    chain.to_slot(2)
    reward = economics.percent_mul(ONE, chain.get(s.SubnetConsensusSubmission, SUBNET, 1)["validator_reward_factor"])
    assert held(chain.ctx()) == before + reward
    assert chain.stake_of(3) == 200 * TENSOR + reward
    assert [reputation(chain, node) for node in (1, 2, 3)] == [ONE, ONE, ONE]
    assert "SubnetRewards" not in chain.names()


def test_agreed_zeros_for_all_pay_only_the_proposer_and_raise_the_subnet(chain: Chain) -> None:
    chain.ctx().put(s.SubnetReputation, SUBNET, value=ONE // 2)
    chain.agree(1, {1: 0, 2: 0, 3: 0}, elect=3)
    before, owner = held(chain.ctx()), chain.ctx().free_balance(OWNER)
    chain.to_slot(2)
    factor = chain.get(s.SubnetConsensusSubmission, SUBNET, 1)["validator_reward_factor"]
    assert held(chain.ctx()) - before == economics.percent_mul(ONE, factor)
    assert chain.ctx().free_balance(OWNER) == owner
    assert chain.get(s.SubnetReputation, SUBNET) == economics.raise_reputation(ONE // 2, 125 * 10**15)
    assert [reputation(chain, node) for node in (1, 2, 3)] == [ONE, ONE, ONE]


def test_zero_scores_earn_nothing_and_cost_nothing(chain: Chain) -> None:
    chain.agree(1, {1: TENSOR, 2: 0, 3: TENSOR}, elect=3)
    chain.to_slot(2)
    assert set(dict(chain.event("SubnetRewards")["node_rewards"])) == {1, 3}
    assert reputation(chain, 2) == ONE


def test_a_light_node_loses_reputation_where_the_subnet_asks_for_weight(chain: Chain) -> None:
    chain.ctx().put(s.SubnetNodeMinWeightDecreaseReputationThreshold, SUBNET, value=10**17)
    chain.agree(1, {1: 1, 2: 50, 3: 49}, elect=3)
    chain.to_slot(2)
    assert [reputation(chain, node) for node in (1, 2)] == [9 * ONE // 10, ONE]


def test_a_node_below_the_minimum_reputation_is_removed(chain: Chain) -> None:
    chain.ctx().put(s.SubnetNodeReputation, SUBNET, 1, value=10**17 - 1)
    chain.agree(1, ALL, elect=3)
    chain.to_slot(2)
    assert ("Network", "SubnetNodeRemoved", {"subnet_id": SUBNET, "subnet_node_id": 1}) in chain.events
    assert chain.get(s.SubnetNodeElectionSlots, SUBNET) == [3, 2]
    assert not chain.ctx().has(s.SubnetNodeReputation, SUBNET, 1)
    assert chain.get(s.AccountSubnetStake, HOTKEYS[0], SUBNET) == 200 * TENSOR


def test_a_proposer_whose_reputation_falls_too_low_is_removed(chain: Chain) -> None:
    chain.ctx().put(s.SubnetNodeReputation, SUBNET, 3, value=10**17)
    chain.to_slot(1, elect=3)
    chain.next_block()
    chain.propose(3, ALL)
    chain.to_slot(2)
    assert "SubnetNodeRemoved" in chain.names()
    assert chain.get(s.HotkeySubnetNodeId, SUBNET, HOTKEYS[2]) is None
    assert not chain.ctx().has(s.SubnetNodeReputation, SUBNET, 3)


def test_a_node_that_left_after_the_proposal_is_paid_into_its_old_stake(chain: Chain) -> None:
    chain.agree(1, ALL, elect=3)
    chain.call("remove_subnet_node", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1)
    chain.to_slot(2)
    paid = dict(chain.event("SubnetRewards")["node_rewards"])
    assert chain.get(s.AccountSubnetStake, HOTKEYS[0], SUBNET) == 200 * TENSOR + paid[1]
    assert not chain.ctx().has(s.SubnetNodeReputation, SUBNET, 1)


def test_a_node_that_took_all_its_stake_out_is_not_paid(chain: Chain) -> None:
    chain.agree(1, ALL, elect=3)
    chain.call("remove_subnet_node", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1)
    chain.call("remove_stake", COLDKEYS[0], subnet_id=SUBNET, hotkey=HOTKEYS[0], stake_to_be_removed=200 * TENSOR)
    chain.to_slot(2)
    assert set(dict(chain.event("SubnetRewards")["node_rewards"])) == {2, 3}


def test_delegates_and_delegate_accounts_of_a_node_get_their_part() -> None:
    chain = Chain()
    chain.to_block(8)
    chain.register_subnet()
    friend = account(5)
    chain.register_node(0, delegate_reward_rate=TENSOR // 4, delegate_account={"account_id": friend, "rate": ONE // 2})
    for place in (1, 2):
        chain.register_node(place)
    chain.call("add_to_delegate_stake", OWNER, subnet_id=SUBNET, stake_to_be_added=TENSOR)
    chain.call("activate_subnet", OWNER, subnet_id=SUBNET)
    chain.ctx().put(s.TotalNodeDelegateStakeShares, SUBNET, 1, value=1000)
    chain.agree(1, ALL, elect=1)
    chain.to_slot(2)
    rewards_event = chain.event("SubnetRewards")
    ((_, delegates),) = rewards_event["node_delegate_stake_rewards"]
    ((_, (who, given)),) = rewards_event["node_delegate_account_allocations"]
    kept = dict(rewards_event["node_rewards"])[1]
    whole = delegates + given + kept
    assert who == friend
    assert delegates == economics.percent_mul(whole, TENSOR // 4)
    assert given == economics.percent_mul(whole - delegates, ONE // 2)
    assert chain.get(s.AccountDelegateStake, friend) == given
    assert chain.get(s.TotalNodeDelegateStakeBalance, SUBNET, 1) == delegates


# --- queue and classes -------------------------------------------------------------------------------------------


def join(chain: Chain, number: int) -> int:
    """Register another node (account `number`); gives its id."""
    chain.call("register_subnet_node", OWNER, **node_args(number, hotkey=account(number)))
    return int(chain.get(s.HotkeySubnetNodeId, SUBNET, account(number)))


def node_class(chain: Chain, node: int) -> str:
    found = nodes.find_node(chain.ctx(), SUBNET, node)
    assert found is not None
    return str(found["classification"]["node_class"])


def test_a_new_node_climbs_from_the_queue_to_validator(chain: Chain) -> None:
    chain.to_slot(1, elect=1)
    new = join(chain, 4)
    registered = chain.get(s.RegisteredSubnetNodesData, SUBNET, new)["classification"]
    assert registered == {"node_class": "Registered", "start_epoch": 2}
    seen = {}
    for epoch in range(1, 13):
        if epoch > 1:
            chain.to_slot(epoch, elect=1)
        seen[epoch] = node_class(chain, new)
        chain.next_block()
        scores = ALL if seen[epoch] in ("Registered", "Idle") else {**ALL, new: TENSOR}
        chain.propose(1, scores)
        for node in chain.get(s.SubnetNodeElectionSlots, SUBNET):
            if node != 1:
                chain.attest(node)
    # start 2, waits 3 epochs more: 6 > 2 + 3; idle for 2 agreed epochs, included for 2
    first = {
        name: min(epoch for epoch, held_class in seen.items() if held_class == name)
        for name in ("Registered", "Idle", "Included", "Validator")
    }
    assert first == {"Registered": 1, "Idle": 6, "Included": 8, "Validator": 10}
    assert chain.get(s.SubnetNodeElectionSlots, SUBNET) == [1, 2, 3, new]
    assert chain.get(s.TotalElectableNodes) == 4


def test_an_included_node_that_is_left_out_starts_counting_again(chain: Chain) -> None:
    chain.to_slot(1, elect=1)
    new = join(chain, 4)
    for epoch in range(1, 9):
        if epoch > 1:
            chain.to_slot(epoch, elect=1)
        chain.next_block()
        chain.propose(1, ALL)
        for node in (2, 3):
            chain.attest(node)
    assert node_class(chain, new) == "Included"
    chain.to_slot(9, elect=1)
    assert reputation(chain, new) == 9 * ONE // 10
    assert chain.get(s.SubnetNodeConsecutiveIncludedEpochs, SUBNET, new) == 0
    chain.next_block()
    chain.propose(1, {**ALL, new: TENSOR})
    for node in (2, 3):
        chain.attest(node)
    chain.to_slot(10, elect=1)
    assert chain.get(s.SubnetNodeConsecutiveIncludedEpochs, SUBNET, new) == 1
    assert dict(chain.event("SubnetRewards")["node_rewards"]).keys() == {1, 2, 3}  # no pay below Validator


def test_no_more_nodes_enter_at_once_than_the_churn_limit(chain: Chain) -> None:
    chain.ctx().put(s.ChurnLimit, SUBNET, value=2)
    for number in range(4, 9):
        join(chain, number)
    active = []
    for epoch in range(1, 9):
        chain.to_slot(epoch)
        active.append(chain.get(s.TotalActiveSubnetNodes, SUBNET))
    assert active == [3, 3, 3, 3, 5, 7, 8, 8]
    assert chain.get(s.SubnetNodeQueue, SUBNET) == []


def test_the_churn_multiplier_skips_epochs_and_the_maximum_caps_the_subnet(chain: Chain) -> None:
    chain.ctx().put(s.ChurnLimitMultiplier, SUBNET, value=4)
    chain.ctx().put(s.MaxSubnetNodes, value=5)
    for number in range(4, 9):
        join(chain, number)
    active = []
    for epoch in range(1, 10):
        chain.to_slot(epoch)
        active.append(chain.get(s.TotalActiveSubnetNodes, SUBNET))
    assert active == [3, 3, 3, 3, 3, 3, 3, 5, 5]


def test_an_address_changed_while_waiting_counts(chain: Chain) -> None:
    new = join(chain, 4)
    chain.call(
        "update_peer_info",
        OWNER,
        subnet_id=SUBNET,
        subnet_node_id=new,
        new_peer_info={"peer_id": peer(44), "multiaddr": None},
    )
    chain.to_slot(6)
    assert chain.get(s.SubnetNodesData, SUBNET, new)["peer_info"]["peer_id"] == peer(44)


def test_a_super_majority_moves_and_removes_queued_nodes(chain: Chain) -> None:
    first, second, third = (join(chain, number) for number in (4, 5, 6))
    chain.to_slot(4, elect=1)
    chain.next_block()
    chain.propose(1, ALL, prioritize=third, remove=first)
    chain.attest(2)
    chain.attest(3)
    chain.ctx().put(s.SubnetNodeQueueEpochs, SUBNET, value=50)
    chain.to_slot(5)
    assert chain.names().count("QueuedNodePrioritized") == 1
    assert chain.names().count("QueuedNodeRemoved") == 1
    assert [each["id"] for each in chain.get(s.SubnetNodeQueue, SUBNET)] == [third, second]
    assert nodes.find_node(chain.ctx(), SUBNET, first) is None


def test_wishes_about_immune_or_unknown_nodes_are_dropped(chain: Chain) -> None:
    new = join(chain, 4)
    chain.to_slot(1, elect=1)
    chain.next_block()
    chain.propose(1, ALL, prioritize=77, remove=new)
    submission = chain.get(s.SubnetConsensusSubmission, SUBNET, 1)
    assert submission["prioritize_queue_node_id"] is None
    assert submission["remove_queue_node_id"] is None


def test_a_bare_quorum_does_not_touch_the_queue(chain: Chain) -> None:
    first, second = join(chain, 4), join(chain, 5)
    chain.ctx().put(s.SubnetNodeQueueEpochs, SUBNET, value=50)
    chain.to_slot(4, elect=1)
    chain.next_block()
    chain.propose(1, ALL, prioritize=second, remove=first)
    chain.attest(2)
    chain.to_slot(5)
    assert [each["id"] for each in chain.get(s.SubnetNodeQueue, SUBNET)] == [first, second]


# --- removal of subnets ------------------------------------------------------------------------------------------


def test_a_subnet_that_was_never_activated_goes_with_its_period() -> None:
    chain = Chain(genesis={"SubnetRegistrationEpochs": 1, "SubnetEnactmentEpochs": 1})
    chain.to_block(1)
    chain.register_subnet()
    for place in range(3):
        chain.register_node(place)
    chain.to_block(59)
    assert chain.ctx().has(s.SubnetsData, SUBNET)
    chain.to_block(60)
    assert chain.event("SubnetDeactivated")["reason"] == "EnactmentPeriod"
    assert chain.get(s.TotalSubnets) == 0
    assert chain.get(s.TotalActiveNodes) == 0
    assert chain.get(s.TotalElectableNodes) == 0
    assert chain.get(s.AssignedSlots) == set()
    chain.register_subnet()  # name, repo and slot are free again
    assert chain.get(s.SubnetSlot, SUBNET + 1) == 3


def test_a_subnet_without_nodes_goes_at_the_end_of_its_registration() -> None:
    chain = Chain(genesis={"SubnetRegistrationEpochs": 1})
    chain.to_block(1)
    chain.register_subnet()
    chain.to_block(40)
    assert chain.event("SubnetDeactivated")["reason"] == "MinSubnetNodes"


def test_an_active_subnet_must_keep_its_delegate_stake() -> None:
    chain = Chain(genesis={"MinSubnetDelegateStakeFactor": 10**15})
    chain.make_active()
    shares = chain.get(s.AccountSubnetDelegateStakeShares, COLDKEYS[2], SUBNET)
    chain.call("remove_delegate_stake", COLDKEYS[2], subnet_id=SUBNET, shares_to_be_removed=shares - 1000)
    chain.to_block(39)
    assert chain.ctx().has(s.SubnetsData, SUBNET)
    chain.to_block(40)  # looked at every second epoch
    assert chain.event("SubnetDeactivated")["reason"] == "MinSubnetDelegateStake"
    assert chain.get(s.TotalActiveSubnets) == 0
    chain.call("remove_delegate_stake", COLDKEYS[2], subnet_id=SUBNET, shares_to_be_removed=1000)
    everything: dict[str, Any] = {"subnet_id": SUBNET, "stake_to_be_removed": 200 * TENSOR}
    for place in range(3):
        chain.call("remove_stake", COLDKEYS[place], hotkey=HOTKEYS[place], **everything)
    assert chain.get(s.TotalStake) == 0


def test_a_subnet_with_too_few_nodes_or_too_little_reputation_goes_in_the_end(chain: Chain) -> None:
    chain.call("remove_subnet_node", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1)
    chain.to_block(20)
    assert chain.get(s.SubnetReputation, SUBNET) == economics.lower_reputation(ONE, 125 * 10**15)
    chain.ctx().put(s.SubnetReputation, SUBNET, value=10**17)
    chain.to_block(40)
    assert chain.event("SubnetDeactivated")["reason"] == "MinReputation"


def test_a_subnet_paused_too_long_goes_in_the_end(chain: Chain) -> None:
    subnet = chain.get(s.SubnetsData, SUBNET)
    chain.ctx().put(s.SubnetsData, SUBNET, value={**subnet, "state": "Paused", "start_epoch": 0})
    chain.ctx().put(s.MaxSubnetPauseEpochs, value=0)
    chain.ctx().put(s.SubnetReputation, SUBNET, value=11 * 10**16)
    chain.to_block(20)
    assert chain.event("SubnetDeactivated")["reason"] == "PauseExpired"
    chain.to_block(43)
    assert chain.get(s.SubnetElectedValidator, SUBNET, 2) is None


def test_of_too_many_subnets_the_poorest_goes() -> None:
    chain = Chain(genesis={"MaxSubnets": 1, "MinSubnetRemovalInterval": 1, "MaxSubnetRemovalInterval": 2})
    chain.make_active()
    other = SUBNET + 1
    chain.register_subnet(name=b"rich", repo=b"rich")
    for place in range(3):
        args = node_args(place, hotkey=account(place)) | {"subnet_id": other}
        chain.call("register_subnet_node", COLDKEYS[place], **args)
    chain.call("add_to_delegate_stake", OWNER, subnet_id=other, stake_to_be_added=500_000 * TENSOR)
    chain.call("activate_subnet", OWNER, subnet_id=other)
    chain.to_block(22)
    weights = chain.get(s.FinalSubnetEmissionWeights, 1)["weights"]
    assert weights[other] > weights[SUBNET] > 0
    assert abs(sum(weights.values()) - ONE) < 1000
    chain.to_block(40)
    assert chain.event("SubnetDeactivated") == {"subnet_id": SUBNET, "reason": "MaxSubnets"}


def test_two_subnets_are_settled_each_at_its_slot() -> None:
    chain = Chain()
    chain.make_active()
    other = SUBNET + 1
    chain.register_subnet(name=b"two", repo=b"two")
    for place in range(3):
        args = node_args(place, hotkey=account(place)) | {"subnet_id": other}
        chain.call("register_subnet_node", COLDKEYS[place], **args)
    chain.call("activate_subnet", OWNER, subnet_id=other)
    chain.to_block(23)
    assert chain.get(s.SubnetElectedValidator, SUBNET, 1) is not None
    assert chain.get(s.SubnetElectedValidator, other, 1) is None
    chain.to_block(24)
    assert chain.get(s.SubnetElectedValidator, other, 1) in (1, 2, 3)


def test_a_settlement_of_a_proposer_that_left_pays_the_others(chain: Chain) -> None:
    """The elected node cannot leave by call; when it is gone all the same, nothing fails and nobody gets its reward."""
    chain.agree(1, ALL, elect=3)
    nodes.remove(chain.ctx(), SUBNET, 3)
    ctx = chain.ctx()
    submission = ctx.get(s.SubnetConsensusSubmission, SUBNET, 1)
    rewards._reward_proposer(ctx, SUBNET, submission, ONE)
    assert chain.get(s.AccountSubnetStake, HOTKEYS[2], SUBNET) == 200 * TENSOR
    chain.to_slot(2)
    assert set(dict(chain.event("SubnetRewards")["node_rewards"])) == {1, 2, 3}
