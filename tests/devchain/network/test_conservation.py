"""Every planck is somewhere: over random lives of a subnet, the sum changes only by what is minted and burned."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.devchain.pallet import Dispatch
from mesh.devchain.pallets import books, system
from mesh.devchain.pallets.network import TREASURY
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.overwatch import commitment
from mesh.devchain.pallets.network.stake import held

from .chain import COLDKEYS, FUND, HOTKEYS, OWNER, SUBNET, TENSOR, Chain, account, node_args, proposal

NEWCOMERS = [account(number) for number in (4, 5)]
FRIEND = account(9)
PEOPLE = [*COLDKEYS, FRIEND]
WHOSE_IT_IS = b""
"""As the origin of a call: whoever owns the key or the node it is about."""


def supply(chain: Chain) -> int:
    """All balances, and everything the pallet keeps, counted at its owners."""
    ctx = chain.ctx()
    accounts = sum(info["data"]["free"] + info["data"]["reserved"] for _, info in ctx.items(system.ACCOUNT))
    assert all(info["data"]["free"] >= 0 for _, info in ctx.items(system.ACCOUNT))
    places = (
        (s.AccountSubnetStake, s.TotalStake),
        (s.TotalSubnetStake, s.TotalStake),
        (s.TotalSubnetDelegateStakeBalance, s.TotalDelegateStake),
        (s.TotalNodeDelegateStakeBalance, s.TotalNodeDelegateStake),
        (s.AccountDelegateStake, s.TotalAccountDelegateStake),
        (s.AccountOverwatchStake, s.TotalOverwatchStake),
    )
    kept = 0
    for item, total in places:
        amount = sum(amount for _, amount in ctx.items(item))
        assert amount == ctx.get(total), item.name
        kept += amount if item is not s.TotalSubnetStake else 0
    unbonding = sum(sum(entry.values()) for _, entry in ctx.items(s.StakeUnbondingLedger))
    assert unbonding == ctx.get(s.TotalUnbondingBalance)
    swapping = sum(content["balance"] for _, item in ctx.items(s.SwapCallQueue) for content in item["call"].values())
    assert sorted(keys[0] for keys, _ in ctx.items(s.SwapCallQueue)) == sorted(ctx.get(s.SwapQueueOrder))
    kept += unbonding + swapping
    assert kept == held(ctx) == ctx.get(books.HELD)
    return int(accounts + kept)


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
    assert ctx.get(s.TotalSubnetDelegateStakeShares, SUBNET) - shares in (0, 1000)
    owned: dict[int, int] = {}
    for (_, _, node), amount in ctx.items(s.AccountNodeDelegateStakeShares):
        owned[node] = owned.get(node, 0) + amount
    for (_, node), amount in ctx.items(s.TotalNodeDelegateStakeShares, SUBNET):
        assert amount - owned.get(node, 0) in (0, 1000)
    for (hotkey,), coldkey in ctx.items(s.HotkeyOwner):
        assert hotkey in ctx.get(s.ColdkeyHotkeys, coldkey)
    for (hotkey, _), amount in ctx.items(s.AccountSubnetStake):
        assert amount == 0 or ctx.has(s.HotkeyOwner, hotkey)  # else nobody could take it out
    for node in active + queued:
        coldkey = ctx.get(s.HotkeyOwner, node["hotkey"])
        assert ctx.get(s.SubnetNodeIdHotkey, SUBNET, node["id"]) == node["hotkey"]
        assert ctx.get(s.HotkeySubnetNodeId, SUBNET, node["hotkey"]) == node["id"]
        assert node["id"] in ctx.get(s.ColdkeySubnetNodes, coldkey)[SUBNET]
    overwatchers = [node for _, node in ctx.items(s.OverwatchNodes)]
    assert len(overwatchers) == ctx.get(s.TotalOverwatchNodes)
    assert all(ctx.get(s.HotkeyOverwatchNodeId, node["hotkey"]) == node["id"] for node in overwatchers)


amounts = st.one_of(
    st.integers(1, 2000),
    st.integers(1, 10**20),
    st.integers(1, 300).map(lambda n: n * TENSOR),
    st.just(2**100),
)
nodes = st.sampled_from([1, 2, 3, 1, 2, 3, 4, 5])
watchers = st.sampled_from([1, 1, 2, 3])
hotkeys = st.sampled_from([*HOTKEYS, *NEWCOMERS])
fresh = st.sampled_from([account(number) for number in (31, 32, 33)])
origins = st.sampled_from([*PEOPLE, *[WHOSE_IT_IS] * 4])
friends = st.sampled_from([None, {"account_id": FRIEND, "rate": TENSOR // 3}])
scores = st.dictionaries(nodes, st.integers(0, 10 * TENSOR), max_size=5)
subnet = st.just(SUBNET)


def a_call(name: str, **args: Any) -> st.SearchStrategy[Any]:
    return st.tuples(st.just("call"), origins, st.just(name), st.fixed_dictionaries(args))


def a_node(number: int, friend: dict[str, Any] | None, rate: int) -> dict[str, Any]:
    return node_args(number, hotkey=account(number), delegate_account=friend, delegate_reward_rate=rate)


steps = st.one_of(
    st.tuples(st.just("blocks"), st.integers(1, 25)),
    st.tuples(st.just("epoch"), scores, st.sets(nodes)),
    st.tuples(st.just("owner"), st.sampled_from(["pause", "emergency", "unpause", "revert", "dearer"])),
    st.tuples(st.just("watch"), watchers, st.integers(0, TENSOR)),
    st.builds(
        lambda who, args: ("call", who, "register_subnet_node", args),
        st.sampled_from(PEOPLE),
        st.builds(a_node, st.integers(4, 5), friends, st.sampled_from([0, TENSOR // 2])),
    ),
    a_call("remove_subnet_node", subnet_id=subnet, subnet_node_id=nodes),
    a_call("add_stake", subnet_id=subnet, subnet_node_id=nodes, hotkey=hotkeys, stake_to_be_added=amounts),
    a_call("remove_stake", subnet_id=subnet, hotkey=hotkeys, stake_to_be_removed=amounts),
    a_call("claim_unbondings"),
    a_call("add_to_delegate_stake", subnet_id=subnet, stake_to_be_added=amounts),
    a_call("remove_delegate_stake", subnet_id=subnet, shares_to_be_removed=amounts),
    a_call("donate_delegate_stake", subnet_id=subnet, amount=amounts),
    a_call(
        "add_to_node_delegate_stake", subnet_id=subnet, subnet_node_id=nodes, node_delegate_stake_to_be_added=amounts
    ),
    a_call(
        "remove_node_delegate_stake",
        subnet_id=subnet,
        subnet_node_id=nodes,
        node_delegate_stake_shares_to_be_removed=amounts,
    ),
    a_call("donate_node_delegate_stake", subnet_id=subnet, subnet_node_id=nodes, amount=amounts),
    a_call(
        "swap_node_delegate_stake",
        from_subnet_id=subnet,
        from_subnet_node_id=nodes,
        to_subnet_id=subnet,
        to_subnet_node_id=nodes,
        node_delegate_stake_shares_to_swap=amounts,
    ),
    a_call(
        "swap_from_subnet_to_node",
        from_subnet_id=subnet,
        to_subnet_id=subnet,
        to_subnet_node_id=nodes,
        delegate_stake_shares_to_swap=amounts,
    ),
    a_call("remove_delegate_balance", amount_to_remove=amounts),
    a_call("update_hotkey", old_hotkey=hotkeys, new_hotkey=hotkeys | fresh),
    a_call("update_coldkey", hotkey=hotkeys, new_coldkey=st.sampled_from(PEOPLE) | fresh),
    a_call("register_overwatch_node", hotkey=fresh, stake_to_be_added=amounts),
    a_call("remove_overwatch_node", overwatch_node_id=watchers),
    a_call("remove_overwatch_stake", hotkey=hotkeys | fresh, stake_to_be_removed=amounts),
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
    if kind == "watch":
        watch(chain, *given_)
        return
    origin, name, args = given_
    attempt(chain, name, origin or whose(chain, name, args), **args)


def whose(chain: Chain, name: str, args: dict[str, Any]) -> bytes:
    """A coldkey that may do this, where there is one."""
    hotkey = args.get("hotkey", args.get("old_hotkey"))
    if "overwatch_node_id" in args:
        hotkey = chain.get(s.OverwatchNodeIdHotkey, args["overwatch_node_id"])
    elif name == "remove_subnet_node":
        hotkey = chain.get(s.SubnetNodeIdHotkey, SUBNET, args["subnet_node_id"])
    owner: bytes = COLDKEYS[0] if hotkey is None else chain.get(s.HotkeyOwner, hotkey)
    return owner if any(owner) else COLDKEYS[0]


def watch(chain: Chain, node: int, weight: int) -> None:
    """An overwatch node weighs the subnet in the next overwatch epoch, and is paid for it."""
    hotkey = chain.get(s.OverwatchNodeIdHotkey, node)
    start = (chain.block // 20 + 1) * 20
    if hotkey is None:
        return
    chain.to_block(start)
    commits = [{"subnet_id": SUBNET, "weight": commitment(weight, b"salt")}]
    attempt(chain, "commit_overwatch_subnet_weights", hotkey, overwatch_node_id=node, commit_weights=commits)
    chain.to_block(start + 16)
    reveals = [{"subnet_id": SUBNET, "weight": weight, "salt": b"salt"}]
    attempt(chain, "reveal_overwatch_subnet_weights", hotkey, overwatch_node_id=node, reveals=reveals)
    chain.to_block(start + 21)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(steps, min_size=10, max_size=30))
def test_no_planck_appears_or_vanishes_unbooked(life: list[tuple[Any, ...]]) -> None:
    chain = Chain(fund=dict.fromkeys([*PEOPLE, *HOTKEYS], FUND))
    chain.make_active()
    for node, who in enumerate(PEOPLE[:3], 1):
        pool = {"subnet_id": SUBNET, "subnet_node_id": node}
        chain.call("add_to_node_delegate_stake", who, **pool, node_delegate_stake_to_be_added=100 * TENSOR)
    friend = {"delegate_account_id": FRIEND, "delegate_rate": TENSOR // 3}
    chain.call("update_delegate_account", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1, **friend)
    rate = {"new_delegate_reward_rate": TENSOR // 2}
    chain.call("update_node_delegate_reward_rate", COLDKEYS[0], subnet_id=SUBNET, subnet_node_id=1, **rate)
    chain.to_block(21)
    chain.call("register_overwatch_node", COLDKEYS[0], hotkey=account(30), stake_to_be_added=200 * TENSOR)
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
