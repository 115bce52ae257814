"""The emergency set: who may choose it, what it changes about a round, and that it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from mesh.devchain.pallets.network import economics, epochs, info, nodes
from mesh.devchain.pallets.network import storage as s

from .chain import COLDKEYS, OWNER, SUBNET, TENSOR, Chain, account, node_args

ONE = economics.ONE
THIS: dict[str, Any] = {"subnet_id": SUBNET}
CHOSEN = [2, 4, 6]
OTHERS = [1, 3, 5]
SCORES = dict.fromkeys(CHOSEN, TENSOR)


@pytest.fixture
def chain() -> Chain:
    """An active subnet with six validators, in epoch 1, paused."""
    made = Chain()
    made.to_block(1)
    made.register_subnet(initial_coldkeys=dict.fromkeys(COLDKEYS, 10))
    for number in range(1, 7):
        made.register_node(number + 10, coldkey=COLDKEYS[0], hotkey=account(number))
    made.call("add_to_delegate_stake", OWNER, **THIS, stake_to_be_added=1000 * TENSOR)
    made.call("activate_subnet", OWNER, **THIS)
    made.to_slot(1, elect=1)
    made.call("owner_pause_subnet", OWNER, **THIS)
    return made


def choose(chain: Chain, ids: Iterable[int] = CHOSEN) -> None:
    chain.call("owner_set_emergency_validator_set", OWNER, **THIS, subnet_node_ids=list(ids))


def refusal(chain: Chain, ids: Iterable[int]) -> str:
    return chain.error("owner_set_emergency_validator_set", OWNER, **THIS, subnet_node_ids=list(ids))


def unpause(chain: Chain) -> None:
    chain.call("owner_unpause_subnet", OWNER, **THIS)


def data(chain: Chain) -> dict[str, int] | None:
    found: dict[str, int] | None = chain.get(s.EmergencySubnetNodeElectionData, SUBNET)
    return found


def attest(chain: Chain, *node_ids: int) -> None:
    for node in node_ids:
        chain.attest(node)


def round_by_the_set(chain: Chain, epoch: int, *, attestors: Iterable[int] = CHOSEN) -> int:
    """A subnet epoch in which whoever of the set is elected proposes; gives the proposer."""
    chain.to_slot(epoch)
    elected = int(chain.get(s.SubnetElectedValidator, SUBNET, epoch))
    assert elected in CHOSEN
    chain.next_block()
    chain.propose(elected, SCORES)
    attest(chain, *(node for node in attestors if node != elected))
    return elected


# --- choosing ----------------------------------------------------------------------------------------------------


def test_a_set_is_chosen_while_paused_and_counts_from_unpausing(chain: Chain) -> None:
    choose(chain)
    assert chain.event("SubnetForked") == {"subnet_id": SUBNET, "owner": OWNER, "subnet_node_ids": CHOSEN}
    expected = {
        "subnet_node_ids": CHOSEN,
        "target_emergency_validators_epochs": 23,  # a full reputation less a tenth each epoch is below 0.1
        "max_emergency_validators_epoch": 0,
        "total_epochs": 0,
    }
    assert data(chain) == expected
    chain.to_block(65)
    unpause(chain)
    assert data(chain) == {**expected, "max_emergency_validators_epoch": 3 + 2 * 23}


def test_a_set_must_be_of_enough_and_not_too_many_validators(chain: Chain) -> None:
    node = chain.get(s.SubnetNodesData, SUBNET, 6)
    held = {"node_class": "Included", "start_epoch": 0}
    chain.ctx().put(s.SubnetNodesData, SUBNET, 6, value={**node, "classification": held})
    for ids in ([], [2, 4], [2, 4, 2, 4, 2], [2, 4, 6], [2, 4, 99]):
        assert refusal(chain, ids) == "InvalidMinEmergencySubnetNodes"
    chain.ctx().put(s.MaxEmergencySubnetNodes, value=4)
    assert refusal(chain, [1, 2, 3, 4, 5]) == "InvalidMaxEmergencySubnetNodes"
    choose(chain, [1, 2, 3, 4])
    before = len(chain.events)
    choose(chain, [6, 4, 1, 4, 99, 2])
    assert chain.events[before][2]["subnet_node_ids"] == [4, 1, 2]


def test_a_set_is_chosen_by_the_owner_of_a_paused_subnet_only(chain: Chain) -> None:
    name = "owner_set_emergency_validator_set"
    assert chain.error(name, COLDKEYS[0], **THIS, subnet_node_ids=CHOSEN) == "NotSubnetOwner"
    assert chain.error("owner_revert_emergency_validator_set", COLDKEYS[0], **THIS) == "NotSubnetOwner"
    unpause(chain)
    assert refusal(chain, CHOSEN) == "SubnetMustBePaused"


@pytest.mark.parametrize(
    ("minimum", "factor", "expected"),
    [
        (10**17, 10**17, 23),
        (5 * 10**16, 5 * 10**16, 60),
        (5 * 10**17, 5 * 10**17, 2),
        (10**17, ONE, 1),
        (ONE, 10**17, 1),
        (0, 10**17, 2**32 - 1),
        (10**17, 0, 2**32 - 1),
        (1, 1, 2**32 - 1),
    ],
)
def test_epochs_to_removal(minimum: int, factor: int, expected: int) -> None:
    assert economics.epochs_to_removal(minimum, factor) == expected


# --- in force ----------------------------------------------------------------------------------------------------


def test_a_set_that_is_only_chosen_decides_nothing(chain: Chain) -> None:
    """Otherwise the owner could, in the middle of a round, make three friends its quorum."""
    chain.propose(1, dict.fromkeys(range(1, 7), TENSOR))
    choose(chain)
    attest(chain, 2, 4, 3)
    unpause(chain)
    attest(chain, 5)  # nor when it comes into force before the round is over
    chain.to_slot(2)
    assert chain.names().count("SubnetRewards") == 1  # 5 of 6
    assert data(chain) is not None


def test_neither_before_the_first_epoch() -> None:
    chain = Chain()
    chain.make_active()
    chain.call("owner_pause_subnet", OWNER, **THIS)
    chain.ctx().put(s.MinSubnetNodes, value=1)
    choose(chain, [2])
    assert epochs.subnet_epoch(chain.ctx(), SUBNET) == 0
    assert len(info.get_validators_and_attestors(chain.ctx(), SUBNET)) == 3


def test_two_thirds_of_the_set_are_a_quorum_but_not_half_of_all(chain: Chain) -> None:
    choose(chain)
    chain.propose(1, SCORES)
    attest(chain, 2, 4)
    unpause(chain)
    chain.to_slot(2)
    assert "Slashing" in chain.names()  # 3 of 6 in the round before it
    chain.next_block()
    elected = chain.get(s.SubnetElectedValidator, SUBNET, 2)
    chain.propose(elected, SCORES)
    attest(chain, next(node for node in CHOSEN if node != elected))
    chain.to_slot(3)
    assert [node for node, _ in chain.event("SubnetRewards")["node_rewards"]] == CHOSEN


def test_only_the_set_is_elected_and_attests(chain: Chain) -> None:
    choose(chain)
    unpause(chain)
    shown = info.get_validators_and_attestors(chain.ctx(), SUBNET)
    assert [each["subnet_node_id"] for each in shown] == [1, 2, 3, 4, 5, 6]  # the epoch is not over yet
    seen = set()
    for epoch in range(2, 12):
        seen.add(round_by_the_set(chain, epoch))
        for node in OTHERS:
            found = chain.error("attest", account(node), **THIS, attest_data=None)
            assert found == "InvalidEmergencySubnetNodeId"
    assert seen == set(CHOSEN)
    shown = info.get_validators_and_attestors(chain.ctx(), SUBNET)
    assert [each["subnet_node_id"] for each in shown] == CHOSEN


def test_the_absent_fall_and_only_the_set_is_blamed_for_silence() -> None:
    chain = Chain(genesis={"SuperMajorityAttestationRatio": 66 * 10**16})
    chain.to_block(1)
    chain.register_subnet(initial_coldkeys=dict.fromkeys(COLDKEYS, 10))
    for number in range(1, 7):
        chain.register_node(number + 10, coldkey=COLDKEYS[0], hotkey=account(number))
    chain.call("add_to_delegate_stake", OWNER, **THIS, stake_to_be_added=1000 * TENSOR)
    chain.call("activate_subnet", OWNER, **THIS)
    chain.call("owner_pause_subnet", OWNER, **THIS)
    choose(chain)
    chain.next_block()
    unpause(chain)
    chain.to_slot(1)
    elected = chain.get(s.SubnetElectedValidator, SUBNET, 1)
    first, silent = (node for node in CHOSEN if node != elected)
    chain.next_block()
    chain.propose(elected, {**SCORES, 1: TENSOR})
    attest(chain, first)
    chain.to_slot(2)
    reputation = {node: chain.get(s.SubnetNodeReputation, SUBNET, node) for node in range(1, 7)}
    assert reputation == {**dict.fromkeys((1, elected, first), ONE), **dict.fromkeys((3, 5, silent), 9 * ONE // 10)}
    paid = dict(chain.event("SubnetRewards")["node_rewards"])
    assert set(paid) == {1, *CHOSEN}  # one outside that is scored is paid


def test_nobody_climbs_while_a_set_is_in_force(chain: Chain) -> None:
    idle, included = 5, 3
    for node, name in ((idle, "Idle"), (included, "Included")):
        found = chain.get(s.SubnetNodesData, SUBNET, node)
        held = {"node_class": name, "start_epoch": 0}
        chain.ctx().put(s.SubnetNodesData, SUBNET, node, value={**found, "classification": held})
        nodes.remove_election_slot(chain.ctx(), SUBNET, node)
    choose(chain)
    unpause(chain)
    for epoch in range(2, 8):
        chain.to_slot(epoch)
        elected = chain.get(s.SubnetElectedValidator, SUBNET, epoch)
        chain.next_block()
        chain.propose(elected, {**SCORES, included: TENSOR})
        attest(chain, *(node for node in CHOSEN if node != elected))
    chain.to_slot(8)
    for node, name in ((idle, "Idle"), (included, "Included")):
        assert chain.get(s.SubnetNodesData, SUBNET, node)["classification"]["node_class"] == name
        assert not chain.ctx().has(s.SubnetNodeReputation, SUBNET, node)  # and nobody falls for what it cannot do
    assert included not in dict(chain.event("SubnetRewards")["node_rewards"])


# --- the end of it -----------------------------------------------------------------------------------------------


def test_the_set_ends_when_the_others_are_removed(chain: Chain) -> None:
    choose(chain)
    unpause(chain)
    epoch = 2
    while data(chain) is not None:
        round_by_the_set(chain, epoch)
        epoch += 1
        chain.to_slot(epoch)
        assert epoch < 30
    # settled 24 rounds, one more than the target of 23; who is absent is below 0.1 after 22 and removed in the 23rd
    assert epoch == 2 + 24
    assert sorted(chain.get(s.SubnetNodeElectionSlots, SUBNET)) == CHOSEN
    assert chain.get(s.AccountSubnetStake, account(1), SUBNET) == 200 * TENSOR
    assert [each["id"] for each in nodes.active_nodes(chain.ctx(), SUBNET)] == CHOSEN


def test_the_set_ends_in_time_though_nothing_is_proposed(chain: Chain) -> None:
    chain.ctx().put(s.MinSubnetReputation, value=0)
    choose(chain)
    unpause(chain)  # in epoch 1
    last = 1 + 2 * 23
    chain.to_slot(last)
    assert data(chain) is not None
    assert chain.get(s.SubnetElectedValidator, SUBNET, last) in CHOSEN
    chain.to_slot(last + 1)
    assert data(chain) is None
    elected = {chain.get(s.SubnetElectedValidator, SUBNET, last + 1)}
    for epoch in range(last + 2, last + 20):
        chain.to_slot(epoch)
        elected.add(chain.get(s.SubnetElectedValidator, SUBNET, epoch))
    assert elected & set(OTHERS)


def test_another_pause_does_not_make_the_set_last_longer(chain: Chain) -> None:
    choose(chain)
    unpause(chain)
    before = data(chain)
    chain.to_block(130)
    chain.call("owner_pause_subnet", OWNER, **THIS)
    chain.to_block(150)
    unpause(chain)
    assert data(chain) == before


def test_the_set_ends_with_too_few_left_of_it(chain: Chain) -> None:
    choose(chain)
    unpause(chain)
    elected = round_by_the_set(chain, 2)
    leaver = next(node for node in CHOSEN if node != elected)
    chain.call("remove_subnet_node", COLDKEYS[0], **THIS, subnet_node_id=leaver)
    found = chain.get(s.EmergencySubnetNodeElectionData, SUBNET)
    assert found["subnet_node_ids"] == [node for node in CHOSEN if node != leaver]
    chain.to_slot(3)
    assert "SubnetRewards" in chain.names()
    assert data(chain) is None


def test_the_owner_takes_the_set_back(chain: Chain) -> None:
    choose(chain)
    unpause(chain)
    round_by_the_set(chain, 2)
    chain.call("owner_revert_emergency_validator_set", OWNER, **THIS)
    assert chain.event("SubnetForkRevert") == {"subnet_id": SUBNET, "owner": OWNER}
    assert data(chain) is None
    attest(chain, *OTHERS)
    chain.to_slot(3)
    assert "SubnetRewards" in chain.names()


def test_a_queued_node_can_not_be_chosen(chain: Chain) -> None:
    unpause(chain)
    chain.call("register_subnet_node", OWNER, **node_args(20, hotkey=account(20)))
    chain.call("owner_pause_subnet", OWNER, **THIS)
    assert refusal(chain, [2, 4, 7]) == "InvalidMinEmergencySubnetNodes"
