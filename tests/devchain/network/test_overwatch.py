"""Overwatch nodes: who may be one, commits and reveals, honest and forged, and what an epoch of them comes to."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.devchain.pallet import Pays
from mesh.devchain.pallets import books
from mesh.devchain.pallets.network import economics, info
from mesh.devchain.pallets.network import overwatch_economics as oe
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.overwatch import commitment

from .chain import COLDKEYS, HOTKEYS, OWNER, PEERS, SUBNET, TENSOR, Chain, account, peer
from .test_conservation import booked, causes, supply

ONE = economics.ONE
EMISSION = 0x872FDD8883387F
OTHER = SUBNET + 1
WATCHERS = [account(number) for number in (31, 32, 33)]
STRANGER = account(22)


def register(chain: Chain, place: int, stake: int = 200 * TENSOR) -> None:
    chain.call("register_overwatch_node", COLDKEYS[place], hotkey=WATCHERS[place], stake_to_be_added=stake)


@pytest.fixture
def chain() -> Chain:
    """An active and a registered subnet; three overwatch nodes of 200, 200 and 400; block 40, epoch 2."""
    made = Chain()
    made.make_active()
    made.register_subnet(name=b"two", repo=b"two")
    made.to_block(20)
    for place, stake in enumerate((200, 200, 400)):
        register(made, place, stake * TENSOR)
    made.to_block(40)
    return made


def commit(
    chain: Chain, node: int, weights: dict[int, int], *, salt: bytes = b"salt", who: bytes | None = None
) -> Pays:
    commits = [{"subnet_id": subnet, "weight": commitment(weight, salt)} for subnet, weight in weights.items()]
    return send_commits(chain, node, commits, who)


def send_commits(chain: Chain, node: int, commits: list[dict[str, Any]], who: bytes | None = None) -> Pays:
    who = WATCHERS[node - 1] if who is None else who
    return chain.call("commit_overwatch_subnet_weights", who, overwatch_node_id=node, commit_weights=commits)


def refused_commits(chain: Chain, node: int, commits: list[dict[str, Any]], who: bytes | None = None) -> str:
    who = WATCHERS[node - 1] if who is None else who
    return chain.error("commit_overwatch_subnet_weights", who, overwatch_node_id=node, commit_weights=commits)


def opening(weights: dict[int, int], salt: bytes = b"salt") -> list[dict[str, Any]]:
    return [{"subnet_id": subnet, "weight": weight, "salt": salt} for subnet, weight in weights.items()]


def reveal(
    chain: Chain, node: int, weights: dict[int, int], *, salt: bytes = b"salt", who: bytes | None = None
) -> Pays:
    who = WATCHERS[node - 1] if who is None else who
    reveals = opening(weights, salt)
    return chain.call("reveal_overwatch_subnet_weights", who, overwatch_node_id=node, reveals=reveals)


def refused(chain: Chain, node: int, reveals: list[dict[str, Any]], who: bytes | None = None) -> str:
    who = WATCHERS[node - 1] if who is None else who
    return chain.error("reveal_overwatch_subnet_weights", who, overwatch_node_id=node, reveals=reveals)


# --- the arithmetic ----------------------------------------------------------------------------------------------


def test_an_epoch_by_hand() -> None:
    """Equal stakes: a subnet's weight is the mean, and who is as far from it as the other earns as much."""
    stakes = {1: 100 * TENSOR, 2: 100 * TENSOR}
    outcome = oe.settle({7: {1: ONE, 2: ONE // 2}}, stakes, power=9 * ONE // 10, emission=1000)
    assert outcome.subnet_weights == {7: 3 * ONE // 4}
    assert outcome.node_weights == {1: ONE // 2, 2: ONE // 2}
    assert outcome.rewards == {1: 500, 2: 500}


def test_stake_counts_less_than_in_proportion() -> None:
    linear = oe.stake_weights({1: TENSOR, 2: 3 * TENSOR}, power=ONE)
    assert linear == pytest.approx({1: ONE // 4, 2: 3 * ONE // 4}, rel=1e-15, abs=100)  # doubles
    damped = oe.stake_weights({1: TENSOR, 2: 3 * TENSOR}, power=9 * ONE // 10)
    assert damped[2] / damped[1] == pytest.approx(3**0.9)
    assert oe.stake_weights({1: 0, 2: 0}, power=ONE) == {}
    assert oe.settle({7: {1: ONE}}, {1: 0}, power=ONE, emission=10**6) == oe.Outcome({}, {}, {})
    assert oe.stake_weights({1: 10**27, 2: 10**29}, power=9 * ONE // 10) == {1: ONE // 2, 2: ONE // 2}  # the cast's end


def test_closeness_pays_and_so_does_weighing_more_subnets() -> None:
    stakes = {1: TENSOR, 2: TENSOR, 3: TENSOR}
    near = oe.settle({7: {1: ONE, 2: ONE, 3: 0}}, stakes, power=ONE, emission=10**6).rewards
    assert near[1] == near[2] > near[3] > 0
    more = oe.settle({7: {1: ONE, 2: ONE}, 8: {1: ONE}}, stakes, power=ONE, emission=10**6).rewards
    assert 3 not in more
    assert more[1] > more[2]


def test_nothing_revealed_or_weighed_pays_nobody() -> None:
    assert oe.settle({}, {}, power=ONE, emission=5) == oe.Outcome({}, {}, {})
    nothing = oe.settle({7: {1: 0}}, {1: TENSOR}, power=ONE, emission=5)
    assert nothing == oe.Outcome({7: 0}, {}, {})
    gone = oe.settle({7: {1: ONE, 2: ONE // 4}}, {2: TENSOR}, power=ONE, emission=5)
    assert gone.subnet_weights == {7: ONE // 4}  # node 1 has no stake: it has left


@given(
    reveals=st.dictionaries(
        st.integers(1, 5), st.dictionaries(st.integers(1, 6), st.integers(0, ONE), min_size=1), max_size=5
    ),
    stakes=st.dictionaries(st.integers(1, 6), st.integers(0, 10**27), max_size=6),
    power=st.integers(ONE // 2, ONE),
    emission=st.integers(0, 10**22),
)
def test_an_epoch_pays_no_more_than_its_emission(
    reveals: dict[int, dict[int, int]], stakes: dict[int, int], power: int, emission: int
) -> None:
    outcome = oe.settle(reveals, stakes, power=power, emission=emission)
    assert sum(outcome.rewards.values()) <= emission
    assert sum(outcome.node_weights.values()) <= ONE
    assert set(outcome.rewards) <= set(outcome.node_weights) <= set(stakes)
    for subnet, weight in outcome.subnet_weights.items():
        given_ = [each for node, each in reveals[subnet].items() if node in stakes]
        assert 0 <= weight <= max(given_)


# --- who may -----------------------------------------------------------------------------------------------------


def test_registering(chain: Chain) -> None:
    assert chain.get(s.TotalOverwatchNodes) == chain.get(s.TotalOverwatchNodeUids) == 3
    assert chain.get(s.OverwatchNodes, 2) == {"id": 2, "hotkey": WATCHERS[1]}
    assert chain.get(s.OverwatchNodeIdHotkey, 2) == WATCHERS[1]
    assert chain.get(s.HotkeyOverwatchNodeId, WATCHERS[1]) == 2
    assert chain.get(s.HotkeyOwner, WATCHERS[1]) == COLDKEYS[1]
    assert chain.get(s.ColdkeyHotkeys, COLDKEYS[1]) == {HOTKEYS[1], WATCHERS[1]}
    assert chain.get(s.AccountOverwatchStake, WATCHERS[2]) == 400 * TENSOR
    assert chain.get(s.TotalOverwatchStake) == 800 * TENSOR
    assert supply(chain) == booked(chain)


def test_registrations_that_are_refused(chain: Chain) -> None:
    def error(who: bytes, hotkey: bytes, stake: int) -> str:
        return chain.error("register_overwatch_node", who, hotkey=hotkey, stake_to_be_added=stake)

    fresh = account(40)
    assert error(OWNER, OWNER, 200 * TENSOR) == "ColdkeyMatchesHotkey"
    for used in (HOTKEYS[0], WATCHERS[0]):
        assert error(OWNER, used, 200 * TENSOR) == "HotkeyHasOwner"
    assert error(HOTKEYS[0], fresh, 200 * TENSOR) == "ColdkeyNotOverwatchQualified"  # money but no reputation
    assert error(OWNER, fresh, 100 * TENSOR - 1) == "MinStakeNotReached"
    assert error(OWNER, fresh, 10**7 * TENSOR) == "NotEnoughBalanceToStake"
    assert error(OWNER, fresh, chain.ctx().free_balance(OWNER)) == "BalanceWithdrawalError"
    chain.ctx().put(s.MaxOverwatchNodes, value=3)
    assert error(OWNER, fresh, 200 * TENSOR) == "MaxOverwatchNodes"
    chain.ctx().put(s.OverwatchNodeBlacklist, OWNER, value=True)
    assert error(OWNER, fresh, 200 * TENSOR) == "ColdkeyBlacklisted"
    chain.ctx().put(s.OverwatchEpochLengthMultiplier, value=3)
    assert error(COLDKEYS[0], fresh, 200 * TENSOR) == "OverwatchEpochIsZero"


RULES: list[tuple[str, int, dict[str, int]]] = [
    ("OverwatchMinAge", 2, {}),  # the network itself is no older
    ("OverwatchMinAge", 1, {"start_epoch": 2}),
    ("OverwatchMinRepScore", ONE // 2 + 1, {}),
    ("OverwatchMinDiversificationRatio", ONE // 2 + 1, {}),  # active in one of two active subnets
    ("OverwatchMinAvgAttestationRatio", ONE // 2 + 1, {"average_attestation": ONE // 2}),
]


@pytest.mark.parametrize(("item", "value", "standing"), RULES)
def test_a_coldkey_qualifies_by_every_rule_or_not_at_all(
    chain: Chain, item: str, value: int, standing: dict[str, int]
) -> None:
    """And one that does not any more is removed by anybody."""
    chain.ctx().put(s.TotalActiveSubnets, value=2)
    reputation = chain.get(s.ColdkeyReputation, COLDKEYS[0])
    chain.ctx().put(s.ColdkeyReputation, COLDKEYS[0], value={**reputation, **standing})
    by_anybody = {"overwatch_node_id": 1}
    assert chain.error("anyone_remove_overwatch_node", STRANGER, **by_anybody) == "ColdkeyOverwatchQualified"
    args: dict[str, Any] = {"hotkey": account(40), "stake_to_be_added": 200 * TENSOR}
    chain.ctx().put(getattr(s, item), value=value)
    assert chain.error("register_overwatch_node", COLDKEYS[0], **args) == "ColdkeyNotOverwatchQualified"
    chain.call("anyone_remove_overwatch_node", STRANGER, **by_anybody)
    assert chain.get(s.OverwatchNodes, 1) is None
    assert chain.error("anyone_remove_overwatch_node", STRANGER, **by_anybody) == "InvalidOverwatchNodeId"
    chain.ctx().put(getattr(s, item), value=value - 1 if "Ratio" not in item else ONE // 2)
    chain.call("register_overwatch_node", COLDKEYS[0], **args)


def test_nodes_in_every_active_subnet_are_all_the_diversification_there_is(chain: Chain) -> None:
    chain.ctx().put(s.OverwatchMinDiversificationRatio, value=ONE)
    chain.call("register_overwatch_node", COLDKEYS[0], hotkey=account(40), stake_to_be_added=200 * TENSOR)
    chain.call("remove_subnet_node", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1)
    args = {"hotkey": account(41), "stake_to_be_added": 200 * TENSOR}
    assert chain.error("register_overwatch_node", COLDKEYS[0], **args) == "ColdkeyNotOverwatchQualified"


def test_leaving_by_either_key_frees_the_node_but_not_the_stake(chain: Chain) -> None:
    peer_id = {"subnet_id": SUBNET, "overwatch_node_id": 1, "peer_id": peer(1)}
    chain.call("set_overwatch_node_peer_id", WATCHERS[0], **peer_id)
    for who in (STRANGER, COLDKEYS[1], WATCHERS[1]):
        assert chain.error("remove_overwatch_node", who, overwatch_node_id=1) == "NotKeyOwner"
    assert chain.error("remove_overwatch_node", COLDKEYS[0], overwatch_node_id=9) == "NotKeyOwner"
    chain.call("remove_overwatch_node", WATCHERS[0], overwatch_node_id=1)
    chain.call("remove_overwatch_node", COLDKEYS[1], overwatch_node_id=2)
    assert chain.get(s.TotalOverwatchNodes) == 1
    assert not chain.ctx().has(s.PeerIdOverwatchNodeId, SUBNET, peer(1))
    assert chain.get(s.OverwatchNodeIndex, 1) == {}
    assert chain.get(s.HotkeyOverwatchNodeId, WATCHERS[0]) is None
    assert chain.get(s.AccountOverwatchStake, WATCHERS[0]) == 200 * TENSOR
    assert chain.get(s.HotkeyOwner, WATCHERS[0]) == COLDKEYS[0]
    chain.call("remove_overwatch_stake", COLDKEYS[0], hotkey=WATCHERS[0], stake_to_be_removed=200 * TENSOR)
    assert supply(chain) == booked(chain)


# --- stake -------------------------------------------------------------------------------------------------------


def test_overwatch_stake(chain: Chain) -> None:
    def add(who: bytes, amount: int, node: int = 1, hotkey: bytes = WATCHERS[0]) -> tuple[str, bytes, dict[str, Any]]:
        return (
            "add_to_overwatch_stake",
            who,
            {"overwatch_node_id": node, "hotkey": hotkey, "stake_to_be_added": amount},
        )

    def take(who: bytes, amount: int) -> tuple[str, bytes, dict[str, Any]]:
        return "remove_overwatch_stake", who, {"hotkey": WATCHERS[0], "stake_to_be_removed": amount}

    def error(call: tuple[str, bytes, dict[str, Any]]) -> str:
        return chain.error(call[0], call[1], **call[2])

    cold = COLDKEYS[0]
    assert error(add(cold, 1, node=9)) == "InvalidOverwatchNodeId"
    assert error(add(COLDKEYS[1], 1)) == "NotKeyOwner"
    assert error(add(WATCHERS[0], 1)) == "NotKeyOwner"
    assert error(add(bytes(20), 1, hotkey=STRANGER)) == "NotKeyOwner"
    assert error(add(cold, 10**7 * TENSOR)) == "NotEnoughBalanceToStake"
    name, who, args = add(cold, 50 * TENSOR)
    chain.call(name, who, **args)
    assert chain.get(s.AccountOverwatchStake, WATCHERS[0]) == 250 * TENSOR

    assert error(take(COLDKEYS[1], 1)) == "NotKeyOwner"
    assert error(take(WATCHERS[0], 1)) == "NotKeyOwner"
    assert error(take(cold, 0)) == "AmountZero"
    assert error(take(cold, 251 * TENSOR)) == "NotEnoughStakeToWithdraw"
    assert error(take(cold, 150 * TENSOR + 1)) == "MinStakeNotReached"
    name, who, args = take(cold, 150 * TENSOR)
    chain.call(name, who, **args)
    assert chain.get(s.StakeUnbondingLedger, cold) == {chain.block + 20: 150 * TENSOR}
    chain.ctx().put(s.MaxUnbondings, value=1)
    chain.call("remove_overwatch_node", cold, overwatch_node_id=1)
    chain.next_block()
    assert error(take(cold, 1)) == "MaxUnlockingsReached"
    assert error(add(cold, 1)) == "InvalidOverwatchNodeId"
    assert supply(chain) == booked(chain)


# --- peer ids ----------------------------------------------------------------------------------------------------


def test_an_overwatch_node_has_one_peer_id_per_subnet(chain: Chain) -> None:
    def at(subnet: int, peer_id: bytes, node: int = 1) -> dict[str, Any]:
        return {"subnet_id": subnet, "overwatch_node_id": node, "peer_id": peer_id}

    name = "set_overwatch_node_peer_id"
    assert chain.error(name, WATCHERS[0], **at(9, peer(1))) == "InvalidSubnetId"
    for who in (STRANGER, WATCHERS[1], COLDKEYS[1]):
        assert chain.error(name, who, **at(SUBNET, peer(1))) == "NotKeyOwner"
    assert chain.error(name, WATCHERS[0], **at(SUBNET, bytes(34))) == "InvalidPeerId"
    assert chain.error(name, WATCHERS[0], **at(SUBNET, PEERS[0])) == "PeerIdExist"
    assert chain.call(name, WATCHERS[0], **at(SUBNET, peer(1))) is Pays.NO
    assert chain.error(name, WATCHERS[1], **at(SUBNET, peer(1), 2)) == "PeerIdExist"
    moved = {"subnet_id": SUBNET, "subnet_node_id": 1, "new_peer_info": {"peer_id": peer(1), "multiaddr": None}}
    assert chain.error("update_peer_info", COLDKEYS[0], **moved) == "PeerIdExist"
    assert info.proof_of_stake(chain.ctx(), SUBNET, peer(1), 3)
    chain.call(name, COLDKEYS[0], **at(OTHER, peer(1)))  # by the coldkey; another subnet is another place
    chain.call(name, WATCHERS[0], **at(SUBNET, peer(2)))
    assert chain.get(s.OverwatchNodeIndex, 1) == {SUBNET: peer(2), OTHER: peer(1)}
    assert not info.proof_of_stake(chain.ctx(), SUBNET, peer(1), 3)  # the old one opens no door
    chain.call(name, WATCHERS[1], **at(SUBNET, peer(1), 2))


# --- commits -----------------------------------------------------------------------------------------------------


def test_a_commit_is_the_hash_of_weight_and_salt() -> None:
    weight, salt = 3 * ONE // 4, b"pepper"
    encoded = weight.to_bytes(16, "little") + bytes([len(salt) << 2]) + salt
    assert commitment(weight, salt) == hashlib.blake2b(encoded, digest_size=32).digest()


def test_commits_come_first_and_reveals_after(chain: Chain) -> None:
    weights = {SUBNET: ONE, OTHER: ONE // 2}
    assert refused(chain, 1, opening(weights)) == "NotRevealPeriod"
    assert commit(chain, 1, weights) is Pays.NO
    assert chain.get(s.OverwatchCommits, 2, 1, SUBNET) == commitment(ONE, b"salt")
    chain.to_block(55)  # the last of the first 80 %
    commit(chain, 2, weights, who=COLDKEYS[1])  # either key
    chain.next_block()
    late = [{"subnet_id": SUBNET, "weight": commitment(ONE, b"x")}]
    assert refused_commits(chain, 3, late) == "NotCommitPeriod"
    assert reveal(chain, 1, weights) is Pays.NO
    assert chain.get(s.OverwatchReveals, 2, SUBNET, 1) == ONE
    chain.to_block(59)
    reveal(chain, 2, weights, who=COLDKEYS[1])
    chain.next_block()
    assert refused(chain, 1, opening(weights)) == "NotRevealPeriod"


def test_commits_that_are_refused(chain: Chain) -> None:
    one = {"subnet_id": SUBNET, "weight": commitment(ONE, b"x")}
    for who in (STRANGER, WATCHERS[1], COLDKEYS[1]):
        assert refused_commits(chain, 1, [one], who) == "NotKeyOwner"
    assert refused_commits(chain, 9, [one], WATCHERS[0]) == "NotKeyOwner"
    assert refused_commits(chain, 1, []) == "CommitsEmpty"
    assert refused_commits(chain, 1, [{**one, "subnet_id": 9}]) == "CommitsEmpty"
    assert refused_commits(chain, 1, [one, {**one, "subnet_id": OTHER}, one]) == "AlreadyCommitted"
    second = {**one, "weight": bytes(32)}
    send_commits(chain, 1, [one, second, {**one, "subnet_id": 9}])
    assert chain.get(s.OverwatchCommits, 2, 1, SUBNET) == one["weight"]  # the first of two in a row
    assert chain.get(s.OverwatchCommits, 2, 1, 9) is None
    assert refused_commits(chain, 1, [second]) == "AlreadyCommitted"
    assert refused_commits(chain, 1, [{**one, "subnet_id": OTHER}, second]) == "AlreadyCommitted"
    assert chain.get(s.OverwatchCommits, 2, 1, OTHER) is None  # all or nothing
    commit(chain, 1, {OTHER: ONE})


def test_forged_reveals(chain: Chain) -> None:
    commit(chain, 1, {SUBNET: ONE // 2})
    commit(chain, 2, {SUBNET: 2 * ONE})
    chain.to_block(56)
    good = {"subnet_id": SUBNET, "weight": ONE // 2, "salt": b"salt"}
    for who in (STRANGER, WATCHERS[1]):
        assert refused(chain, 1, [good], who) == "NotKeyOwner"
    assert refused(chain, 1, [{**good, "weight": ONE // 2 + 1}]) == "RevealMismatch"
    assert refused(chain, 1, [{**good, "salt": b"salt2"}]) == "RevealMismatch"
    assert refused(chain, 1, [{**good, "salt": b""}]) == "RevealMismatch"
    assert refused(chain, 1, [{**good, "subnet_id": OTHER}]) == "NoCommitFound"
    assert refused(chain, 3, [good]) == "NoCommitFound"
    assert refused(chain, 2, [{**good, "weight": 2 * ONE}]) == "InvalidWeight"  # committed, but no weight
    assert refused(chain, 1, [good, {**good, "subnet_id": OTHER}]) == "NoCommitFound"
    assert chain.get(s.OverwatchReveals, 2, SUBNET, 1) is None  # all or nothing
    reveal(chain, 1, {SUBNET: ONE // 2})
    reveal(chain, 1, {SUBNET: ONE // 2})  # again: it says the same
    assert dict(chain.ctx().items(s.OverwatchReveals)) == {(2, SUBNET, 1): ONE // 2}


def test_a_commit_is_for_one_epoch(chain: Chain) -> None:
    commit(chain, 1, {SUBNET: ONE})
    chain.to_block(76)  # the reveal period of the next
    assert refused(chain, 1, opening({SUBNET: ONE})) == "NoCommitFound"
    chain.to_block(80)
    commit(chain, 1, {SUBNET: ONE})  # the same commit again is another epoch's


def test_a_copied_commit_says_what_the_original_says(chain: Chain) -> None:
    """A commit names no node: as in the network, a copycat can open it once the original is opened, not before."""
    commit(chain, 1, {SUBNET: ONE // 2}, salt=b"secret")
    copied = chain.get(s.OverwatchCommits, 2, 1, SUBNET)
    send_commits(chain, 2, [{"subnet_id": SUBNET, "weight": copied}])
    chain.to_block(56)
    assert refused(chain, 2, opening({SUBNET: ONE // 2}, b"guess")) == "RevealMismatch"
    reveal(chain, 1, {SUBNET: ONE // 2}, salt=b"secret")
    reveal(chain, 2, {SUBNET: ONE // 2}, salt=b"secret")
    chain.to_block(61)
    rewards = dict(chain.event("OverwatchRewards")["node_rewards"])
    assert rewards[1] == rewards[2]


# --- settling ----------------------------------------------------------------------------------------------------


def play(chain: Chain, given_: dict[int, dict[int, int]]) -> None:
    """One overwatch epoch up to the block that settles it."""
    start = chain.block
    for node, weights in given_.items():
        commit(chain, node, weights)
    chain.to_block(start + 16)
    for node, weights in given_.items():
        reveal(chain, node, weights)
    chain.to_block(start + 21)


def test_the_block_after_the_epoch_makes_weights_and_pays(chain: Chain) -> None:
    given_ = {1: {SUBNET: ONE, OTHER: ONE // 2}, 2: {SUBNET: ONE // 2}, 3: {SUBNET: ONE}}
    play(chain, given_)
    stakes = {1: 200 * TENSOR, 2: 200 * TENSOR, 3: 400 * TENSOR}
    reveals = {SUBNET: {1: ONE, 2: ONE // 2, 3: ONE}, OTHER: {1: ONE // 2}}
    wanted = oe.settle(reveals, stakes, power=9 * ONE // 10, emission=EMISSION)
    assert chain.event("OverwatchRewards") == {"node_rewards": sorted(wanted.rewards.items())}
    for subnet in (SUBNET, OTHER):
        assert chain.get(s.OverwatchSubnetWeights, 2, subnet) == wanted.subnet_weights[subnet]
    counts = [stake**0.9 for stake in (200, 200, 400)]
    mean = (counts[0] + counts[1] / 2 + counts[2]) / sum(counts)
    assert chain.get(s.OverwatchSubnetWeights, 2, SUBNET) / ONE == pytest.approx(mean)
    # A node's share of the stakes is of all that revealed anything: a lone voice in a subnet is not the whole.
    alone = ONE / 2 * counts[0] / sum(counts)
    assert chain.get(s.OverwatchSubnetWeights, 2, OTHER) == pytest.approx(alone)
    paid = 0
    for node, hotkey in enumerate(WATCHERS, 1):
        assert chain.get(s.OverwatchNodeWeights, 2, node) == wanted.node_weights[node]
        assert chain.get(s.AccountOverwatchStake, hotkey) == stakes[node] + wanted.rewards[node]
        paid += wanted.rewards[node]
    assert EMISSION - 3 <= paid <= EMISSION
    assert causes(chain, books.MINTED)["overwatch"] == paid
    assert chain.get(s.TotalOverwatchStake) == 800 * TENSOR + paid
    assert supply(chain) == booked(chain)
    chain.to_block(81)
    assert "OverwatchRewards" not in chain.names()  # nobody said anything


def test_the_weights_decide_the_emission_of_the_epoch_that_follows(chain: Chain) -> None:
    play(chain, {1: {SUBNET: 0}, 2: {SUBNET: 0}})
    assert chain.get(s.OverwatchSubnetWeights, 2, SUBNET) == 0
    assert "OverwatchRewards" not in chain.names()  # zero times anything
    chain.next_block()
    assert chain.get(s.FinalSubnetEmissionWeights, 3)["weights"] == {SUBNET: 0}
    chain.to_block(82)
    assert chain.get(s.FinalSubnetEmissionWeights, 4)["weights"] == {SUBNET: ONE}


def test_who_has_left_does_not_count(chain: Chain) -> None:
    for node, weight in ((1, ONE), (2, 0)):
        commit(chain, node, {SUBNET: weight})
    chain.to_block(56)
    for node, weight in ((1, ONE), (2, 0)):
        reveal(chain, node, {SUBNET: weight})
    chain.call("remove_overwatch_node", COLDKEYS[1], overwatch_node_id=2)
    chain.to_block(61)
    assert chain.get(s.OverwatchSubnetWeights, 2, SUBNET) == ONE
    assert chain.event("OverwatchRewards") == {"node_rewards": [(1, EMISSION)]}
    assert chain.get(s.AccountOverwatchStake, WATCHERS[1]) == 200 * TENSOR


def test_a_longer_overwatch_epoch_is_settled_once(chain: Chain) -> None:
    chain.ctx().put(s.OverwatchEpochLengthMultiplier, value=2)  # epoch 1 of 40 blocks began at 40
    commit(chain, 1, {SUBNET: ONE})
    chain.to_block(40 + 31)
    assert refused(chain, 1, opening({SUBNET: ONE})) == "NotRevealPeriod"
    chain.next_block()
    reveal(chain, 1, {SUBNET: ONE})
    chain.to_block(81)
    assert chain.event("OverwatchRewards") == {"node_rewards": [(1, EMISSION)]}
    assert chain.get(s.OverwatchSubnetWeights, 1, SUBNET) == ONE
    chain.to_block(101)
    assert "OverwatchRewards" not in chain.names()
