"""Every call a person makes fits the recorded runtime's metadata, and its bytes say what was asked for."""

import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.chain import calls, runtime
from mesh.chain.calls import NodeRef
from mesh.chain.dialect import Call
from mesh.chain.metadata import Metadata
from mesh.errors import CallRefused, ChainError
from mesh.identity import PeerKey
from mesh.peer import PeerInfo

SUBNET, NODE = 128_001, NodeRef(128_001, 3)
A, B = b"\x0a" * 20, b"\x0b" * 20
PEER = PeerKey.dev("bootnode").peer_id
BOOTNODE = PeerInfo.parse(f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}")

MADE: Mapping[str, Call] = {
    call.name: call
    for call in (
        calls.activate_subnet(SUBNET),
        calls.pause_subnet(SUBNET),
        calls.unpause_subnet(SUBNET),
        calls.deactivate_subnet(SUBNET),
        *(calls.update_subnet(SUBNET, name, "text") for name in calls.OWNER_TEXTS),
        *(calls.update_subnet(SUBNET, name, 7) for name in (*calls.OWNER_NUMBERS, *calls.OWNER_SHARES)),
        calls.update_stake_limits(SUBNET, min_planck=1, max_planck=2),
        calls.set_initial_coldkeys(SUBNET, {B: 2, A: 1}),
        calls.remove_initial_coldkeys(SUBNET, [B, A, B]),
        calls.set_emergency_validators(SUBNET, [3, 1, 2]),
        calls.revert_emergency_validators(SUBNET),
        calls.transfer_subnet(SUBNET, A),
        calls.accept_subnet(SUBNET),
        calls.add_bootnode_access(SUBNET, A),
        calls.remove_bootnode_access(SUBNET, A),
        calls.update_bootnodes(SUBNET, add=[BOOTNODE], remove=[PEER]),
        calls.remove_node(NODE),
        calls.update_peer(NODE, BOOTNODE),
        calls.update_bootnode_peer(NODE, None),
        calls.update_client_peer(NODE, PeerInfo(PEER, ())),
        calls.update_delegate_account(NODE, account=A, rate=5),
        calls.update_delegate_reward_rate(NODE, 5),
        calls.update_unique(NODE, b"u"),
        calls.update_non_unique(NODE, None),
        calls.update_coldkey(A, B),
        calls.update_hotkey(A, B),
        calls.set_identity(A, {"name": "we", "hugging_face": "us"}),
        calls.remove_identity(),
        calls.add_stake(NODE, A, amount_planck=1),
        calls.remove_stake(SUBNET, A, amount_planck=1),
        calls.claim_unbondings(),
        *(calls.delegate(pool, amount_planck=1) for pool in (SUBNET, NODE)),
        *(calls.undelegate(pool, shares=1) for pool in (SUBNET, NODE)),
        *(calls.transfer_delegation(pool, B, shares=1) for pool in (SUBNET, NODE)),
        *(calls.donate(pool, amount_planck=1) for pool in (SUBNET, NODE)),
        *(calls.swap_delegation(one, two, shares=1) for one in (SUBNET, NODE) for two in (SUBNET + 1, NODE)),
        calls.redirect_swap(4, A, SUBNET, balance_planck=9),
        calls.transfer_delegate_account(NODE, B),
        calls.withdraw_delegate_account(amount_planck=1),
        calls.register_overwatch(A, amount_planck=1),
        calls.remove_overwatch(1),
        calls.remove_unfit_overwatch(1),
        calls.set_overwatch_peer(SUBNET, 1, PEER),
        calls.commit_overwatch(1, {SUBNET + 1: b"\2" * 32, SUBNET: b"\1" * 32}),
        calls.reveal_overwatch(1, {SUBNET: (5, b"salt")}),
        calls.add_overwatch_stake(1, A, amount_planck=1),
        calls.remove_overwatch_stake(A, amount_planck=1),
    )
}


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_bytes_say_what_was_asked(name: str, metadata: Metadata) -> None:
    call = MADE[name]
    raw = runtime.encode_call(metadata, "Network", call.name, call.args)
    said, args = runtime.decode_call(metadata, raw)
    assert said == f"Network.{name}"
    assert set(args) == set(call.args)
    assert args == call.args


def test_a_person_can_make_every_call_of_the_roles(metadata: Metadata) -> None:
    """Calls 0-76 of the pallet: registering and voting have builders of their own (staking, dialect)."""
    elsewhere = {"register_subnet", "register_subnet_node", "propose_attestation", "attest"}
    of_people = {call.name for call in metadata.pallets["Network"].calls.values() if call.index <= 76}
    assert of_people - set(MADE) == elsewhere


def test_a_redirected_swap_may_go_to_a_node(metadata: Metadata) -> None:
    call = calls.redirect_swap(4, A, NODE, balance_planck=9)
    raw = runtime.encode_call(metadata, "Network", call.name, call.args)
    assert runtime.decode_call(metadata, raw)[1] == call.args


@pytest.mark.parametrize("cut", [1, 2, 5, 9])
def test_a_call_that_is_cut_off_or_too_long_is_no_call(cut: int, metadata: Metadata) -> None:
    call = MADE["remove_stake"]
    raw = runtime.encode_call(metadata, "Network", call.name, call.args)
    for wrong in (raw[:-cut], raw + b"\0" * cut, b"\xff" + raw[1:]):
        with pytest.raises(ChainError):
            runtime.decode_call(metadata, wrong)


@given(st.integers(0, 2**128 - 1), st.binary(max_size=calls.MAX_SALT_BYTES))
def test_an_overwatch_commitment_is_the_hash_of_weight_and_salt(weight: int, salt: bytes) -> None:
    body = weight.to_bytes(16, "little") + bytes([len(salt) << 2]) + salt
    assert calls.overwatch_commitment(weight, salt) == hashlib.blake2b(body, digest_size=32).digest()


def test_what_the_pallet_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(CallRefused, match="max_node_penalties"):
        calls.update_subnet(SUBNET, "max_node_penalties", 3)
    with pytest.raises(CallRefused, match="fax"):
        calls.set_identity(A, {"fax": "1"})
    with pytest.raises(CallRefused, match="needs an address"):
        calls.update_bootnodes(SUBNET, add=[PeerInfo(PEER, ())])
    with pytest.raises(CallRefused, match="salt"):
        calls.overwatch_commitment(1, bytes(64))
