"""The runtime API: what clients are told, in the layout they decode."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallets.network import info
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.scale import (
    ScaleError,
    Type,
    account_id,
    boolean,
    bytes_,
    h256,
    option,
    tuple_of,
    u8,
    u32,
    u128,
    vec,
)

from .chain import BOOTNODE, BOOTNODE_ADDRESS, COLDKEYS, HOTKEYS, OWNER, PEERS, SUBNET, TENSOR, Chain, peer

ADDRESS = bytes.fromhex("047f000001060001")


@pytest.fixture(scope="module")
def chain() -> Chain:
    """An active subnet, node 1 with bootnode and client, node 4 queued; in epoch 1."""
    made = Chain()
    made.make_active()
    for call, number in (("update_bootnode_peer_info", 7), ("update_client_peer_info", 8)):
        made.call(
            call,
            COLDKEYS[0],
            subnet_id=SUBNET,
            subnet_node_id=1,
            new_peer_info={"peer_id": peer(number), "multiaddr": ADDRESS if number == 7 else None},
        )
    made.to_slot(1, elect=2)
    made.register_node(4, coldkey=OWNER, hotkey=bytes([4]) * 20)
    return made


def ask(chain: Chain, name: str, result: Type, *args: tuple[Type, Any]) -> Any:
    encoded = b"".join(kind.encode(value) for kind, value in args)
    answer = chain.pallet.apis["NetworkRuntimeApi_" + name](chain.ctx(), encoded)
    return result.decode_all(bytes_.decode_all(answer))


def test_subnet_info(chain: Chain) -> None:
    found = ask(chain, "get_subnet_info", option(info.subnet_info), (u32, SUBNET))
    assert found["id"] == SUBNET
    assert found["friendly_id"] == 1
    assert (found["name"], found["state"], found["start_epoch"]) == (b"sub-one", "Active", 1)
    assert found["owner"] == OWNER
    assert found["slot_index"] == 3
    assert found["total_nodes"] == 4
    assert found["total_electable_nodes"] == 3
    assert found["bootnodes"] == {BOOTNODE: BOOTNODE_ADDRESS}
    assert found["total_subnet_stake"] == 800 * TENSOR
    assert found["total_subnet_delegate_stake_balance"] == 400_000 * TENSOR
    assert ask(chain, "get_subnet_info", option(info.subnet_info), (u32, 5)) is None
    assert ask(chain, "get_all_subnets_info", vec(info.subnet_info)) == [found]


def test_node_info(chain: Chain) -> None:
    all_nodes = ask(chain, "get_subnet_nodes_info", vec(info.subnet_node_info), (u32, SUBNET))
    assert [node["subnet_node_id"] for node in all_nodes] == [1, 2, 3, 4]
    assert all_nodes[0]["coldkey"] == COLDKEYS[0]
    assert all_nodes[0]["hotkey"] == HOTKEYS[0]
    assert all_nodes[0]["peer_info"]["peer_id"] == PEERS[0]
    assert all_nodes[0]["stake_balance"] == 200 * TENSOR
    assert all_nodes[0]["coldkey_reputation"]["lifetime_node_count"] == 1
    assert [node["classification"]["node_class"] for node in all_nodes] == ["Validator"] * 3 + ["Registered"]
    assert [node["node_slot_index"] for node in all_nodes] == [0, 1, 2, None]
    assert ask(chain, "get_all_subnet_nodes_info", vec(info.subnet_node_info)) == all_nodes
    one = option(info.subnet_node_info)
    assert ask(chain, "get_subnet_node_info", one, (u32, SUBNET), (u32, 4)) == all_nodes[3]
    assert ask(chain, "get_subnet_node_info", one, (u32, SUBNET), (u32, 9)) is None
    assert ask(chain, "get_elected_validator_info", one, (u32, SUBNET), (u32, 1)) == all_nodes[1]
    assert ask(chain, "get_elected_validator_info", one, (u32, SUBNET), (u32, 2)) is None
    validators = ask(chain, "get_validators_and_attestors", vec(info.subnet_node_info), (u32, SUBNET))
    assert validators == all_nodes[:3]
    owned = ask(chain, "get_coldkey_subnet_nodes_info", vec(info.subnet_node_info), (account_id, OWNER))
    assert [node["subnet_node_id"] for node in owned] == [2, 4]


def test_stakes(chain: Chain) -> None:
    stakes = ask(chain, "get_coldkey_stakes", vec(info.subnet_node_stake_info), (account_id, OWNER))
    assert [(each["subnet_node_id"], each["balance"]) for each in stakes] == [
        (2, 200 * TENSOR),
        (4, 200 * TENSOR),
    ]
    shares = ask(chain, "get_delegate_stakes", vec(info.delegate_stake_info), (account_id, COLDKEYS[2]))
    assert shares == [{"subnet_id": SUBNET, "shares": 400_000 * TENSOR, "balance": 400_000 * TENSOR - 1009}]
    assert ask(chain, "get_delegate_stakes", vec(info.delegate_stake_info), (account_id, OWNER)) == []


def test_bootnodes(chain: Chain) -> None:
    found = ask(chain, "get_bootnodes", info.all_subnet_bootnodes, (u32, SUBNET))
    assert found == {
        "subnet_bootnodes": {BOOTNODE: BOOTNODE_ADDRESS},
        "node_bootnodes": {peer(7): ADDRESS},
        "registered_bootnodes": {},
    }


def proof(chain: Chain, peer_id: bytes, min_class: int, *more: bytes, subnet_id: int = SUBNET) -> bool:
    args = u32.encode(subnet_id) + bytes_.encode(peer_id) + u8.encode(min_class) + b"".join(more)
    answer = chain.pallet.apis["NetworkRuntimeApi_proof_of_stake"](chain.ctx(), args)
    return bool(boolean.decode_all(answer))


def test_proof_of_stake(chain: Chain) -> None:
    assert all(proof(chain, each, 3) for each in (PEERS[0], peer(7), peer(8), BOOTNODE))
    assert not proof(chain, peer(99), 0)
    assert not proof(chain, PEERS[0], 4)  # no such class
    assert not proof(chain, PEERS[0], 0, subnet_id=3)
    assert not proof(chain, peer(4), 1)  # queued: below Idle
    assert not proof(chain, peer(4), 0)  # and Registered only from its start epoch on
    assert proof(chain, PEERS[0], 3, option(u128).encode(200 * TENSOR))
    assert not proof(chain, PEERS[0], 3, option(u128).encode(200 * TENSOR + 1))
    assert proof(chain, PEERS[0], 3, option(u128).encode(None))


def test_a_slashed_node_has_no_proof_of_stake_any_more() -> None:
    chain = Chain()
    chain.make_active()
    chain.ctx().put(s.AccountSubnetStake, HOTKEYS[0], SUBNET, value=100 * TENSOR - 1)
    assert not proof(chain, PEERS[0], 3)


def test_what_an_account_delegated_to_single_nodes() -> None:
    chain = Chain()
    chain.make_active()
    ctx = chain.ctx()
    kind = vec(info.node_delegate_stake_info)
    for who, node, shares in ((OWNER, 3, 70), (OWNER, 1, 30), (COLDKEYS[0], 3, 20)):
        ctx.put(s.AccountNodeDelegateStakeShares, who, SUBNET, node, value=shares * TENSOR)
    ctx.put(s.TotalNodeDelegateStakeShares, SUBNET, 3, value=90 * TENSOR)
    ctx.put(s.TotalNodeDelegateStakeBalance, SUBNET, 3, value=180 * TENSOR)
    found = ask(chain, "get_node_delegate_stakes", kind, (account_id, OWNER))
    assert found[0] == {"subnet_id": SUBNET, "subnet_node_id": 1, "shares": 30 * TENSOR, "balance": 30 * TENSOR}
    third = {"subnet_id": SUBNET, "subnet_node_id": 3, "shares": 70 * TENSOR}
    assert {name: found[1][name] for name in third} == third
    assert 140 * TENSOR - 100 < found[1]["balance"] <= 140 * TENSOR
    assert len(found) == 2
    assert ask(chain, "get_node_delegate_stakes", kind, (account_id, HOTKEYS[0])) == []


def test_overwatch_nodes_and_what_they_said() -> None:
    chain = Chain()
    chain.make_active()
    ctx = chain.ctx()
    hotkey = bytes([9]) * 20
    ctx.put(s.OverwatchNodes, 1, value={"id": 1, "hotkey": hotkey})
    ctx.put(s.HotkeyOwner, hotkey, value=COLDKEYS[0])
    ctx.put(s.OverwatchNodeIndex, 1, value={SUBNET: peer(3)})
    ctx.put(s.AccountOverwatchStake, hotkey, value=5 * TENSOR)
    (found,) = ask(chain, "get_all_overwatch_nodes_info", vec(info.overwatch_node_info))
    assert found == {
        "overwatch_node_id": 1,
        "coldkey": COLDKEYS[0],
        "hotkey": hotkey,
        "peer_ids": {SUBNET: peer(3)},
        "reputation": chain.get(s.ColdkeyReputation, COLDKEYS[0]),
        "account_overwatch_stake": 5 * TENSOR,
    }
    for epoch, node, subnet in ((7, 1, 5), (7, 1, 6), (7, 2, 5), (8, 1, 5)):
        ctx.put(s.OverwatchCommits, epoch, node, subnet, value=bytes([epoch, node, subnet]) + bytes(29))
        ctx.put(s.OverwatchReveals, epoch, subnet, node, value=100 * epoch + 10 * node + subnet)
    asked = ((u32, 7), (u32, 1))
    commits = ask(chain, "get_overwatch_commits_for_epoch_and_node", vec(tuple_of(u32, h256)), *asked)
    assert commits == [(5, bytes([7, 1, 5]) + bytes(29)), (6, bytes([7, 1, 6]) + bytes(29))]
    reveals = ask(chain, "get_overwatch_reveals_for_epoch_and_node", vec(tuple_of(u32, u128)), *asked)
    assert reveals == [(5, 715), (6, 716)]


@pytest.mark.parametrize("raw", [b"", b"\x00" * 3, b"\x00" * 5])
def test_arguments_must_decode_to_the_last_byte(chain: Chain, raw: bytes) -> None:
    with pytest.raises(ScaleError):
        chain.pallet.apis["NetworkRuntimeApi_get_subnet_info"](chain.ctx(), raw)


def test_the_layouts_have_the_order_clients_decode() -> None:
    """A struct's bytes are its fields' in order: pinned here, so that a change is a decision."""
    assert list(info.subnet_node_info.fields) == [
        "subnet_id",
        "subnet_node_id",
        "coldkey",
        "hotkey",
        "peer_info",
        "bootnode_peer_info",
        "client_peer_info",
        "delegate_account",
        "identity",
        "classification",
        "delegate_reward_rate",
        "last_delegate_reward_rate_update",
        "unique",
        "non_unique",
        "stake_balance",
        "total_node_delegate_stake_shares",
        "node_delegate_stake_balance",
        "coldkey_reputation",
        "subnet_node_reputation",
        "node_slot_index",
        "consecutive_idle_epochs",
        "consecutive_included_epochs",
    ]
    assert len(info.subnet_info.fields) == 50
    head = tuple_of(u32, option(u32), bytes_).encode((1, 2, b"n"))
    value = {**info.subnet_info.zero(), "id": 1, "friendly_id": 2, "name": b"n"}
    assert info.subnet_info.encode(value).startswith(head)
