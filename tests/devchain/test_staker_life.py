"""A staker's, a node's and an overwatcher's life in signed extrinsics: the client's calls, the dev chain's runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mesh.chain import calls
from mesh.chain.calls import NodeRef
from mesh.chain.dialect import Call
from mesh.chain.staking import NodeTerms, SubnetTerms, node_args, subnet_args
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.pallets import system
from mesh.devchain.pallets.network import storage as s
from mesh.identity import PeerKey
from mesh.peer import PeerInfo

from .signing import Signer
from .test_runtime import events, free, planck_adds_up

TENSOR = 10**18
OWNER, ALICE, BOB, HOT, NEW_HOT, WATCH = (Signer(name) for name in ("owner", "alice", "bob", "hot", "new hot", "watch"))
PEERS = [PeerKey.dev(f"node {i}").peer_id for i in range(3)]
BOOTNODE = PeerInfo.parse(f"/ip4/127.0.0.1/tcp/4001/p2p/{PeerKey.dev('bootnode').peer_id}")
SUBNET, NODE = 128_001, NodeRef(128_001, 1)


@pytest.fixture
def chain() -> Iterator[DevChain]:
    """A registered subnet whose node 1 is Bob's, epochs of 8 blocks."""
    fund = {each.hex: 10**6 * TENSOR for each in (OWNER, ALICE, BOB, HOT, NEW_HOT, WATCH)}
    opened = DevChain(DevChainConfig(fund=fund, epoch_length=8))
    initial = {each.address: 1 for each in (OWNER, ALICE, BOB)}
    act(opened, OWNER, Call("register_subnet", subnet_args(SubnetTerms("one", "https://x"), initial, [BOOTNODE])))
    terms = NodeTerms(HOT.address, PEERS[0], None, None, 200 * TENSOR, delegate_reward_rate=TENSOR // 10)
    act(opened, BOB, Call("register_subnet_node", node_args(SUBNET, terms)))
    yield opened
    opened.close()


def submit(chain: DevChain, signer: Signer, call: Call) -> Any:
    """Sign, submit and put into a block; gives the last event, which says how it went."""
    chain.submit(signer.sign(chain, "Network", call.name, **call.args))
    chain.new_block()
    planck_adds_up(chain)
    return events(chain)[-1]


def act(chain: DevChain, signer: Signer, call: Call) -> None:
    """A call that succeeds."""
    _, name, content = submit(chain, signer, call)
    assert name == "ExtrinsicSuccess", (call.name, content)


def to_block(chain: DevChain, number: int) -> None:
    while chain.best.number < number:
        chain.new_block()
        planck_adds_up(chain)


def test_delegating_to_a_node_and_swapping_to_its_subnet(chain: DevChain) -> None:
    act(chain, ALICE, calls.delegate(NODE, amount_planck=100 * TENSOR))
    act(chain, ALICE, calls.donate(NODE, amount_planck=TENSOR))
    act(chain, ALICE, calls.transfer_delegation(NODE, BOB.address, shares=10 * TENSOR))
    act(chain, BOB, calls.undelegate(NODE, shares=5 * TENSOR))
    act(chain, ALICE, calls.swap_delegation(NODE, SUBNET, shares=50 * TENSOR))
    queued = chain.best.number
    act(chain, BOB, calls.swap_delegation(NODE, NODE, shares=TENSOR))
    act(chain, BOB, calls.redirect_swap(1, BOB.address, SUBNET, balance_planck=0))
    balance = chain.get(s.SwapCallQueue, 0)["call"]["SwapToSubnetDelegateStake"]["balance"]
    to_block(chain, queued + 8)
    assert chain.get(s.AccountSubnetDelegateStakeShares, ALICE.address, SUBNET) == balance > 50 * TENSOR
    assert chain.get(s.AccountSubnetDelegateStakeShares, BOB.address, SUBNET) == 0
    chain.new_block()
    assert chain.get(s.AccountSubnetDelegateStakeShares, BOB.address, SUBNET) > 0
    act(chain, BOB, calls.claim_unbondings())


def test_a_failed_call_changes_fee_and_nonce_only(chain: DevChain) -> None:
    act(chain, ALICE, calls.delegate(NODE, amount_planck=TENSOR))
    to_block(chain, 3)
    before = {keys: value for keys, value in chain.state.items() if keys.startswith(s.ITEMS[0].prefix[:16])}
    held, nonce = free(chain, ALICE), chain.nonce(ALICE.address)
    for call, error in (
        (calls.undelegate(NODE, shares=2 * TENSOR), "NotEnoughStakeToWithdraw"),
        (calls.swap_delegation(NODE, 5, shares=1), "InvalidSubnetId"),
        (calls.update_coldkey(HOT.address, ALICE.address), "NotKeyOwner"),
        (calls.register_overwatch(WATCH.address, amount_planck=1000 * TENSOR), "OverwatchEpochIsZero"),
    ):
        _, name, content = submit(chain, ALICE, call)
        assert name == "ExtrinsicFailed"
        index = content["dispatch_error"]["Module"]["error"][0]
        assert chain.runtime.pallets["Network"].errors[index] == error
    after = {keys: value for keys, value in chain.state.items() if keys.startswith(s.ITEMS[0].prefix[:16])}
    assert after == before
    assert chain.nonce(ALICE.address) == nonce + 4
    assert 0 < held - free(chain, ALICE) < 4 * 200_000_000


def test_a_node_changes_its_keys_and_what_it_says(chain: DevChain) -> None:
    act(chain, BOB, calls.update_delegate_account(NODE, account=ALICE.address, rate=TENSOR // 2))
    act(chain, ALICE, calls.transfer_delegate_account(NODE, OWNER.address))
    act(chain, BOB, calls.update_delegate_reward_rate(NODE, TENSOR // 5))
    act(chain, HOT, calls.update_unique(NODE, b"unique"))
    act(chain, HOT, calls.update_non_unique(NODE, b"not"))
    texts = dict.fromkeys(
        ("name", "url", "image", "discord", "x", "telegram", "github", "hugging_face", "description", "misc"), "bob"
    )
    act(chain, BOB, calls.set_identity(HOT.address, texts))
    act(chain, BOB, calls.update_hotkey(HOT.address, NEW_HOT.address))
    act(chain, BOB, calls.update_coldkey(NEW_HOT.address, ALICE.address))
    node = chain.get(s.SubnetNodesData, SUBNET, 1)
    assert node["hotkey"] == NEW_HOT.address
    assert chain.get(s.HotkeyOwner, NEW_HOT.address) == ALICE.address
    assert node["delegate_account"] == {"account_id": OWNER.address, "rate": TENSOR // 2}
    assert chain.get(s.ColdkeyIdentity, ALICE.address)["name"] == b"bob"
    act(chain, ALICE, calls.remove_identity())
    act(chain, ALICE, calls.remove_node(NODE))
    act(chain, ALICE, calls.remove_stake(SUBNET, NEW_HOT.address, amount_planck=200 * TENSOR))


def test_watching_costs_nothing_but_stake(chain: DevChain) -> None:
    to_block(chain, 8)
    act(chain, BOB, calls.register_overwatch(WATCH.address, amount_planck=150 * TENSOR))
    to_block(chain, 15)
    before = free(chain, WATCH)
    act(chain, WATCH, calls.set_overwatch_peer(SUBNET, 1, PEERS[1]))
    salt = bytes(range(32))
    act(chain, WATCH, calls.commit_overwatch(1, {SUBNET: calls.overwatch_commitment(TENSOR, salt)}))
    to_block(chain, 22)  # the cutoff of this epoch is block 16 + 6
    act(chain, WATCH, calls.reveal_overwatch(1, {SUBNET: (TENSOR, salt)}))
    assert free(chain, WATCH) == before  # all three are free
    to_block(chain, 25)
    assert ("Network", "OverwatchRewards") in [each[:2] for each in events(chain)]
    assert chain.get(s.OverwatchSubnetWeights, 2, SUBNET) == TENSOR
    earned = chain.get(s.AccountOverwatchStake, WATCH.address) - 150 * TENSOR
    assert earned == 0x872FDD8883387F
    act(chain, BOB, calls.add_overwatch_stake(1, WATCH.address, amount_planck=TENSOR))
    act(chain, BOB, calls.remove_overwatch(1))
    act(chain, BOB, calls.remove_overwatch_stake(WATCH.address, amount_planck=151 * TENSOR + earned))
    to_block(chain, chain.best.number + 8)
    act(chain, BOB, calls.claim_unbondings())
    assert chain.get(system.ACCOUNT, BOB.address)["data"]["free"] < 10**6 * TENSOR + earned
