"""Swaps between delegate pools: the queue, its order, and where the planck goes when the target is gone."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallet import DispatchOther
from mesh.devchain.pallets.network import pools, swaps
from mesh.devchain.pallets.network import storage as s

from .chain import COLDKEYS, HOTKEYS, SUBNET, TENSOR, Chain, account
from .test_conservation import booked, supply

ALICE, BOB = account(11), account(12)
OTHER = SUBNET + 1
HALF = TENSOR // 2

SUBNET_TO_SUBNET = (
    "swap_delegate_stake",
    {"from_subnet_id": SUBNET, "to_subnet_id": OTHER},
    "delegate_stake_shares_to_swap",
)
NODE_TO_NODE = (
    "swap_node_delegate_stake",
    {"from_subnet_id": SUBNET, "from_subnet_node_id": 1, "to_subnet_id": SUBNET, "to_subnet_node_id": 2},
    "node_delegate_stake_shares_to_swap",
)
NODE_TO_SUBNET = (
    "swap_from_node_to_subnet",
    {"from_subnet_id": SUBNET, "from_subnet_node_id": 1, "to_subnet_id": OTHER},
    "node_delegate_stake_shares_to_swap",
)
SUBNET_TO_NODE = (
    "swap_from_subnet_to_node",
    {"from_subnet_id": SUBNET, "to_subnet_id": SUBNET, "to_subnet_node_id": 2},
    "delegate_stake_shares_to_swap",
)
Swap = tuple[str, dict[str, int], str]
every_swap = pytest.mark.parametrize(
    "swap",
    [SUBNET_TO_SUBNET, NODE_TO_NODE, NODE_TO_SUBNET, SUBNET_TO_NODE],
    ids=lambda swap: swap[0],
)


@pytest.fixture
def chain() -> Chain:
    """Two subnets; Alice and Bob each have shares worth about 1 of the first one's pool and of its node 1's."""
    made = Chain(
        fund={**dict.fromkeys([*COLDKEYS, *HOTKEYS], 10**6 * TENSOR), **dict.fromkeys([ALICE, BOB], 9 * TENSOR)}
    )
    made.make_active(delegate=0)
    made.register_subnet(name=b"two", repo=b"two")
    for who in (ALICE, BOB):
        made.call("add_to_delegate_stake", who, subnet_id=SUBNET, stake_to_be_added=TENSOR)
        node = {"subnet_id": SUBNET, "subnet_node_id": 1}
        made.call("add_to_node_delegate_stake", who, **node, node_delegate_stake_to_be_added=TENSOR)
    return made


def start(chain: Chain, swap: Swap, who: bytes = ALICE, shares: int = HALF, **changes: int) -> int:
    """Queue a swap; gives its planck."""
    chain.call(swap[0], who, **{**swap[1], **changes}, **{swap[2]: shares})
    call = chain.event("SwapCallQueued")["call"]
    ((_, content),) = call.items()
    chain.events.clear()
    return int(content["balance"])


def refused(chain: Chain, swap: Swap, who: bytes = ALICE, shares: int = HALF, **changes: int) -> str:
    return chain.error(swap[0], who, **{**swap[1], **changes}, **{swap[2]: shares})


def target_of(swap: Swap) -> pools.Place:
    node = swap[1].get("to_subnet_node_id")
    subnet = swap[1]["to_subnet_id"]
    return pools.of_subnet(subnet) if node is None else pools.of_node(subnet, node)


def shares(chain: Chain, place: pools.Place, who: bytes = ALICE) -> int:
    return pools.owned_by(chain.ctx(), place, who)


def to_subnet(who: bytes, subnet_id: int, balance: int = 0) -> dict[str, Any]:
    return {"SwapToSubnetDelegateStake": {"account_id": who, "to_subnet_id": subnet_id, "balance": balance}}


def to_node(who: bytes, subnet_id: int, node_id: int, balance: int = 0) -> dict[str, Any]:
    content = {"account_id": who, "to_subnet_id": subnet_id, "to_subnet_node_id": node_id, "balance": balance}
    return {"SwapToNodeDelegateStake": content}


@every_swap
def test_a_swap_arrives_one_epoch_later(chain: Chain, swap: Swap) -> None:
    before = chain.block
    chain.call(swap[0], ALICE, **swap[1], **{swap[2]: HALF})
    queued = chain.event("SwapCallQueued")
    ((variant, content),) = queued["call"].items()
    amount = content["balance"]
    assert (queued["id"], queued["account_id"], content["account_id"]) == (0, ALICE, ALICE)
    assert HALF - 1010 < amount <= HALF
    assert variant == ("SwapToNodeDelegateStake" if "to_subnet_node_id" in swap[1] else "SwapToSubnetDelegateStake")
    said = {
        "swap_delegate_stake": "SubnetDelegateStakeSwapped",
        "swap_node_delegate_stake": "DelegateNodeStakeSwapped",
        "swap_from_node_to_subnet": "DelegateNodeToSubnetDelegateStakeSwapped",
        "swap_from_subnet_to_node": "SubnetDelegateToNodeDelegateStakeSwapped",
    }[swap[0]]
    fields: Any = {"account_id": ALICE, **swap[1], "amount": amount}
    assert chain.event(said) == ((SUBNET, OTHER, ALICE, amount) if swap is SUBNET_TO_SUBNET else fields)
    item = {"id": 0, "call": queued["call"], "queued_at_block": before, "execute_after_blocks": 20}
    assert chain.get(s.SwapCallQueue, 0) == item
    assert chain.get(s.SwapQueueOrder) == [0]
    assert chain.get(s.NextSwapQueueId) == 1
    place = target_of(swap)
    for _ in range(19):
        chain.next_block()
        assert shares(chain, place) == 0
        assert supply(chain) == booked(chain)
    chain.next_block()
    assert chain.block == before + 20
    assert shares(chain, place) == amount  # the first buyer of a pool pays 1 for a share
    assert chain.get(s.SwapCallQueue, 0) is None
    assert chain.get(s.SwapQueueOrder) == []
    assert chain.get(s.StakeUnbondingLedger, ALICE) == {}
    assert supply(chain) == booked(chain)


@every_swap
def test_swaps_that_are_refused(chain: Chain, swap: Swap) -> None:
    if "to_subnet_node_id" in swap[1]:
        assert refused(chain, swap, to_subnet_node_id=9) == "InvalidSubnetNodeId"
        assert refused(chain, swap, to_subnet_id=OTHER) == "InvalidSubnetNodeId"
    else:
        assert refused(chain, swap, to_subnet_id=9) == "InvalidSubnetId"
    assert refused(chain, swap, shares=0) == "SharesZero"
    assert refused(chain, swap, shares=TENSOR + 1) == "NotEnoughStakeToWithdraw"
    assert refused(chain, swap, who=account(1)) == "NotEnoughStakeToWithdraw"
    assert refused(chain, swap, shares=1) == "AmountZero"
    chain.ctx().put(s.TxRateLimit, value=1)
    assert refused(chain, swap) == "TxRateLimitExceeded"


def test_the_price_is_that_of_the_block_the_swap_arrives_in(chain: Chain) -> None:
    amount = start(chain, SUBNET_TO_NODE)
    node = {"subnet_id": SUBNET, "subnet_node_id": 2}
    chain.call("add_to_node_delegate_stake", BOB, **node, node_delegate_stake_to_be_added=TENSOR)
    chain.call("donate_node_delegate_stake", BOB, **node, amount=3 * TENSOR)
    chain.to_block(chain.block + 20)
    place = pools.of_node(SUBNET, 2)
    assert shares(chain, place) < amount // 3  # a share costs 4 by now
    assert 0 <= amount - pools.worth(chain.ctx(), place, shares(chain, place)) <= 4


def test_the_flow_of_a_subnet_counts_swaps_out_and_in(chain: Chain) -> None:
    flow = chain.get(s.SubnetNetFlow, SUBNET)
    amount = start(chain, SUBNET_TO_SUBNET)
    assert chain.get(s.SubnetNetFlow, SUBNET) == flow - amount
    assert chain.get(s.SubnetNetFlow, OTHER) == 0
    chain.to_block(chain.block + 20)
    assert chain.get(s.SubnetNetFlow, OTHER) == amount


# --- another target ----------------------------------------------------------------------------------------------


def test_the_owner_of_a_swap_may_choose_another_target_while_it_waits(chain: Chain) -> None:
    amount = start(chain, SUBNET_TO_SUBNET)
    due = chain.block + 20
    chain.to_block(due - 1)
    chain.call("update_swap_queue", ALICE, id=0, new_call=to_node(ALICE, SUBNET, 3, balance=2**100))
    kept = to_node(ALICE, SUBNET, 3, balance=amount)  # the planck is what left the pool, whatever the call says
    assert chain.event("SwapCallQueueUpdated") == {"id": 0, "account_id": ALICE, "call": kept}
    assert chain.get(s.SwapCallQueue, 0)["call"] == kept
    chain.next_block()  # and the time it has waited counts
    assert shares(chain, pools.of_node(SUBNET, 3)) == amount
    assert shares(chain, pools.of_subnet(OTHER)) == 0
    assert supply(chain) == booked(chain)
    gone = chain.error("update_swap_queue", ALICE, id=0, new_call=to_subnet(ALICE, OTHER))
    assert gone == "SwapCallNotFound"


def test_nobody_takes_over_anothers_swap(chain: Chain) -> None:
    amount = start(chain, NODE_TO_SUBNET)

    def error(who: bytes, new_call: dict[str, Any], swap_id: int = 0) -> str:
        return chain.error("update_swap_queue", who, id=swap_id, new_call=new_call)

    assert error(BOB, to_subnet(BOB, SUBNET)) == "NotKeyOwner"
    assert error(BOB, to_subnet(ALICE, SUBNET)) == "NotKeyOwner"
    assert error(ALICE, to_subnet(BOB, SUBNET)) == "NotKeyOwner"
    assert error(ALICE, to_subnet(ALICE, 9)) == "InvalidSubnetId"
    assert error(ALICE, to_node(ALICE, SUBNET, 9)) == "InvalidSubnetNodeId"
    assert error(ALICE, to_subnet(ALICE, SUBNET), swap_id=1) == "SwapCallNotFound"
    chain.call("update_swap_queue", ALICE, id=0, new_call=to_subnet(ALICE, SUBNET))
    before = shares(chain, pools.of_subnet(SUBNET))
    chain.to_block(chain.block + 20)
    assert shares(chain, pools.of_subnet(SUBNET)) > before
    assert amount > 0


# --- targets that are gone ---------------------------------------------------------------------------------------


def lose_node(chain: Chain) -> None:
    chain.call("remove_subnet_node", COLDKEYS[1], subnet_id=SUBNET, subnet_node_id=2)


def lose_subnet(chain: Chain) -> None:
    chain.ctx().put(s.SubnetRegistrationEpochs, value=0)
    chain.ctx().put(s.SubnetEnactmentEpochs, value=0)


@pytest.mark.parametrize(("swap", "lose"), [(NODE_TO_NODE, lose_node), (SUBNET_TO_SUBNET, lose_subnet)])
def test_a_swap_whose_target_is_gone_comes_back_whole(chain: Chain, swap: Swap, lose: Any) -> None:
    amount = start(chain, swap)
    due = chain.block + 20
    lose(chain)
    chain.to_block(due)
    assert chain.ctx().has(s.SubnetsData, OTHER) == (lose is lose_node)
    assert shares(chain, target_of(swap)) == 0
    assert chain.get(s.StakeUnbondingLedger, ALICE) == {due: amount}
    assert chain.get(s.SwapQueueOrder) == []
    assert supply(chain) == booked(chain)
    free = chain.ctx().free_balance(ALICE)
    chain.call("claim_unbondings", ALICE)  # at once: it has waited
    assert chain.ctx().free_balance(ALICE) == free + amount
    assert supply(chain) == booked(chain)


def test_a_swap_that_buys_no_share_comes_back_whole(chain: Chain) -> None:
    amount = start(chain, SUBNET_TO_NODE, shares=10_000)
    due = chain.block + 20
    node = {"subnet_id": SUBNET, "subnet_node_id": 2}
    chain.call("donate_node_delegate_stake", BOB, **node, amount=5 * TENSOR)  # nobody's: a share costs 5e15 now
    chain.to_block(due)
    assert chain.get(s.StakeUnbondingLedger, ALICE) == {due: amount}
    assert pools.read(chain.ctx(), pools.of_node(SUBNET, 2)).balance == 5 * TENSOR
    assert supply(chain) == booked(chain)


def test_what_comes_back_finds_room_in_a_full_ledger(chain: Chain) -> None:
    chain.ctx().put(s.MaxUnbondings, value=2)
    for _ in range(2):
        chain.call("remove_delegate_stake", ALICE, subnet_id=SUBNET, shares_to_be_removed=5000)
        chain.next_block()
    before = chain.get(s.StakeUnbondingLedger, ALICE)
    amounts = [start(chain, NODE_TO_NODE, shares=1_000_000), start(chain, NODE_TO_NODE, shares=1_000_000)]
    lose_node(chain)
    chain.to_block(chain.block + 20)
    last = max(before)  # due by now, and joined by both
    assert last < chain.block
    assert chain.get(s.StakeUnbondingLedger, ALICE) == {**before, last: before[last] + sum(amounts)}
    assert supply(chain) == booked(chain)


# --- the queue ---------------------------------------------------------------------------------------------------


def test_the_oldest_swaps_go_first_and_no_more_than_allowed_per_block(chain: Chain) -> None:
    chain.ctx().put(s.MaxSwapQueueCallsPerBlock, value=2)
    for who in (BOB, ALICE, BOB):
        start(chain, SUBNET_TO_SUBNET, who, TENSOR // 10)
    due = chain.block + 20
    chain.to_block(due)
    assert chain.get(s.SwapQueueOrder) == [2]
    here = pools.of_subnet(OTHER)
    first = shares(chain, here, BOB)
    assert first
    assert shares(chain, here, ALICE)
    assert chain.get(s.SwapCallQueue, 2) is not None
    chain.next_block()
    assert chain.get(s.SwapQueueOrder) == []
    assert shares(chain, here, BOB) > first
    start(chain, SUBNET_TO_SUBNET)
    assert chain.get(s.SwapQueueOrder) == [3]


def test_a_swap_waits_its_time_behind_one_that_is_due(chain: Chain) -> None:
    start(chain, SUBNET_TO_SUBNET)
    due = chain.block + 20
    chain.next_block()
    start(chain, SUBNET_TO_NODE, shares=TENSOR // 4)
    chain.to_block(due)
    assert chain.get(s.SwapQueueOrder) == [1]
    chain.next_block()
    assert chain.get(s.SwapQueueOrder) == []


def test_a_full_queue_refuses_rather_than_lose_a_swap(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "MAX_QUEUE", 2)
    for _ in range(2):
        start(chain, SUBNET_TO_SUBNET, shares=TENSOR // 10)
    before = dict(chain.state.changes)
    with pytest.raises(DispatchOther, match="Exhausted"):
        start(chain, SUBNET_TO_SUBNET, shares=TENSOR // 10)
    assert chain.state.changes == before
    chain.to_block(chain.block + 20)
    start(chain, SUBNET_TO_SUBNET, shares=TENSOR // 10)


def test_swaps_wait_while_the_network_is_paused(chain: Chain) -> None:
    amount = start(chain, NODE_TO_SUBNET)
    chain.ctx().put(s.TxPause, value=True)
    chain.to_block(chain.block + 30)
    assert chain.get(s.SwapQueueOrder) == [0]
    chain.ctx().put(s.TxPause, value=False)
    chain.next_block()
    assert shares(chain, pools.of_subnet(OTHER)) == amount
