"""Every planck is somewhere: over random lives of a subnet, the sum changes only by what is minted and burned."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.devchain.pallet import Dispatch
from mesh.devchain.pallets import books, system
from mesh.devchain.pallets.network import TREASURY
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import held

from .chain import COLDKEYS, HOTKEYS, OWNER, SUBNET, TENSOR, Chain, account, node_args, proposal

NEWCOMERS = [account(number) for number in (4, 5)]


def supply(chain: Chain) -> int:
    """All balances, and everything the pallet keeps, counted at its owners."""
    ctx = chain.ctx()
    accounts = sum(info["data"]["free"] + info["data"]["reserved"] for _, info in ctx.items(system.ACCOUNT))
    stakes = sum(amount for _, amount in ctx.items(s.AccountSubnetStake))
    unbonding = sum(sum(entry.values()) for _, entry in ctx.items(s.StakeUnbondingLedger))
    pools = sum(amount for _, amount in ctx.items(s.TotalSubnetDelegateStakeBalance))
    pools += sum(amount for _, amount in ctx.items(s.TotalNodeDelegateStakeBalance))
    pools += sum(amount for _, amount in ctx.items(s.AccountDelegateStake))
    assert stakes == ctx.get(s.TotalStake)
    assert unbonding == ctx.get(s.TotalUnbondingBalance)
    assert stakes + unbonding + pools == held(ctx) == ctx.get(books.HELD)
    return int(accounts + stakes + unbonding + pools)


def booked(chain: Chain) -> int:
    """Minted less burned, over all epochs and causes."""
    ctx = chain.ctx()
    minted = sum(amount for _, amount in ctx.items(books.MINTED))
    return int(minted - sum(amount for _, amount in ctx.items(books.BURNED)))


def causes(chain: Chain, item: Any) -> dict[str, int]:
    totals: dict[str, int] = {}
    for (_, cause), amount in chain.ctx().items(item):
        totals[cause.decode()] = totals.get(cause.decode(), 0) + amount
    return totals


def check_counts(chain: Chain) -> None:
    """The counters agree with what is there."""
    ctx = chain.ctx()
    active = [node for _, node in ctx.items(s.SubnetNodesData, SUBNET)]
    queued = [node for _, node in ctx.items(s.RegisteredSubnetNodesData, SUBNET)]
    assert ctx.get(s.TotalActiveSubnetNodes, SUBNET) == ctx.get(s.TotalActiveNodes) == len(active)
    assert ctx.get(s.TotalSubnetNodes, SUBNET) == ctx.get(s.TotalNodes) == len(active) + len(queued)
    slots = ctx.get(s.SubnetNodeElectionSlots, SUBNET)
    validators = {n["id"] for n in active if n["classification"]["node_class"] == "Validator"}
    assert set(slots) == validators
    assert len(slots) == ctx.get(s.TotalElectableNodes) == ctx.get(s.TotalSubnetElectableNodes, SUBNET)
    assert [ctx.get(s.NodeSlotIndex, SUBNET, node) for node in slots] == list(range(len(slots)))
    assert {n["id"] for n in queued} == {n["id"] for n in ctx.get(s.SubnetNodeQueue, SUBNET)}
    shares = sum(amount for _, amount in ctx.items(s.AccountSubnetDelegateStakeShares))
    assert ctx.get(s.TotalSubnetDelegateStakeShares, SUBNET) - shares in range(0, 10_000, 1000)


amounts = st.one_of(st.integers(1, 2000), st.integers(1, 300).map(lambda n: n * TENSOR), st.just(2**100))
nodes = st.integers(1, 6)
places = st.integers(0, 2)
hotkeys = st.sampled_from([*HOTKEYS, *NEWCOMERS])
scores = st.dictionaries(nodes, st.integers(0, 10 * TENSOR), max_size=5)

steps = st.one_of(
    st.tuples(st.just("blocks"), st.integers(1, 25)),
    st.tuples(st.just("epoch"), scores, st.sets(nodes)),
    st.tuples(st.just("add_stake"), places, hotkeys, amounts),
    st.tuples(st.just("remove_stake"), places, hotkeys, amounts),
    st.tuples(st.just("add_to_delegate_stake"), places, amounts),
    st.tuples(st.just("remove_delegate_stake"), places, amounts),
    st.tuples(st.just("claim_unbondings"), places),
    st.tuples(st.just("remove_subnet_node"), places, nodes),
    st.tuples(st.just("register_subnet_node"), places, st.integers(4, 5), st.booleans()),
    st.tuples(st.just("owner"), st.sampled_from(["pause", "emergency", "unpause", "revert", "dearer"])),
)


OWNERS_WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "pause": ("owner_pause_subnet", {}),
    "emergency": ("owner_set_emergency_validator_set", {"subnet_node_ids": [1, 2, 3]}),
    "unpause": ("owner_unpause_subnet", {}),
    "revert": ("owner_revert_emergency_validator_set", {}),
    "dearer": ("owner_update_min_max_stake", {"min": 250 * TENSOR, "max": 1000 * TENSOR}),
}


def attempt(chain: Chain, name: str, origin: bytes, **args: Any) -> None:
    """A call that may be refused."""
    try:
        chain.call(name, origin, **args)
    except Dispatch:
        pass


def run(chain: Chain, step: tuple[Any, ...]) -> None:
    kind, *given_ = step
    if kind == "blocks":
        for _ in range(given_[0]):
            before = supply(chain) - booked(chain)
            chain.next_block()
            assert supply(chain) - booked(chain) == before
        return
    if kind == "epoch":
        weights, attestors = given_
        chain.to_slot(chain.block // 20 + 1)
        for hotkey in [*HOTKEYS, *NEWCOMERS]:
            attempt(chain, "propose_attestation", hotkey, **proposal(weights))
        for node in attestors:
            hotkey = chain.get(s.SubnetNodeIdHotkey, SUBNET, node)
            if hotkey is not None:
                attempt(chain, "attest", hotkey, subnet_id=SUBNET, attest_data=None)
        return
    if kind == "owner":
        name, more = OWNERS_WAYS[given_[0]]
        attempt(chain, name, OWNER, subnet_id=SUBNET, **more)
        return
    origin = COLDKEYS[given_[0]]
    args: dict[str, Any] = {"subnet_id": SUBNET}
    if kind == "add_stake":
        args |= {"subnet_node_id": 1, "hotkey": given_[1], "stake_to_be_added": given_[2]}
    elif kind == "remove_stake":
        args |= {"hotkey": given_[1], "stake_to_be_removed": given_[2]}
    elif kind == "add_to_delegate_stake":
        args |= {"stake_to_be_added": given_[1]}
    elif kind == "remove_delegate_stake":
        args |= {"shares_to_be_removed": given_[1]}
    elif kind == "remove_subnet_node":
        args |= {"subnet_node_id": given_[1]}
    elif kind == "register_subnet_node":
        friend = {"account_id": account(9), "rate": TENSOR // 3} if given_[2] else None
        args = node_args(given_[1], hotkey=account(given_[1]), delegate_account=friend)
    else:
        args = {}
    attempt(chain, kind, origin, **args)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(steps, min_size=5, max_size=25))
def test_no_planck_appears_or_vanishes_unbooked(life: list[tuple[Any, ...]]) -> None:
    chain = Chain()
    chain.make_active()
    assert supply(chain) == booked(chain)
    for step in life:
        run(chain, step)
        assert supply(chain) == booked(chain)
        if chain.ctx().has(s.SubnetsData, SUBNET):
            check_counts(chain)


def test_every_cause_is_booked_under_its_name() -> None:
    chain = Chain()
    chain.make_active()
    chain.agree(1, {1: TENSOR, 2: TENSOR, 3: TENSOR}, elect=3)
    chain.to_slot(2, elect=1)
    chain.next_block()
    chain.propose(1, {1: TENSOR})
    chain.to_slot(3)
    minted, burned = causes(chain, books.MINTED), causes(chain, books.BURNED)
    assert set(minted) == {"genesis", "treasury", "proposer_reward", "node_rewards", "delegate_rewards", "owner_reward"}
    assert set(burned) == {"node_burn", "slash"}
    assert burned["node_burn"] == 3 * 10**13
    emissions = chain.get(s.FinalSubnetEmissionWeights, 2)["validator_emissions"]
    shared = minted["node_rewards"] + minted["delegate_rewards"] + minted["owner_reward"]
    assert emissions - 10 < shared <= emissions  # rounded down per node; attestor factors a little below 1
    assert chain.ctx().free_balance(TREASURY) > minted["treasury"]
    assert chain.ctx().free_balance(OWNER) < 10**6 * TENSOR
    assert supply(chain) == booked(chain)
