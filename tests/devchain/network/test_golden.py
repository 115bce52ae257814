"""The recorded life of a subnet, replayed: the same blocks give the same amounts, events and storage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.devchain.pallet import Pays
from mesh.devchain.pallets.network import TREASURY
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.scale import TupleOf

from .chain import COLDKEYS, GOLDEN, HOTKEYS, OWNER, SUBNET, TENSOR, Chain

ACCOUNTS = "0x26aa394eea5630e07c48ae0c9558cef7b99d880ec681799c0cf30e8886371da9"
"""The storage prefix of System.Account."""

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no recorded data at {GOLDEN}")


@pytest.fixture(scope="module")
def replayed() -> Chain:
    """The recorded scenario up to block 43."""
    chain = Chain()
    chain.make_active()
    chain.to_slot(1, elect=3)
    assert chain.block == 23
    chain.next_block()
    chain.propose(3, {1: TENSOR, 2: 2 * TENSOR, 3: 3 * TENSOR})
    chain.next_block()
    chain.attest(1)
    chain.to_block(27)
    chain.attest(2)
    chain.to_slot(2, elect=2)
    assert chain.block == 43
    return chain


def test_the_reward_amounts_are_the_recorded_ones(replayed: Chain) -> None:
    assert replayed.event("SubnetRewards") == {
        "subnet_id": SUBNET,
        "node_rewards": [(1, 34901843424534753), (2, 69803686398644636), (3, 104705530273615693)],
        "delegate_stake_reward": 23267895616359042,
        "node_delegate_stake_rewards": [],
        "node_delegate_account_allocations": [],
    }
    stakes = [replayed.get(s.AccountSubnetStake, hotkey, SUBNET) for hotkey in HOTKEYS]
    assert stakes == [200034901843424534753, 200069803686398644636, 201104582135697629517]
    assert stakes[2] - 200 * TENSOR - 104705530273615693 == 999876605424013824


def test_the_submission_is_the_recorded_one(replayed: Chain) -> None:
    submission = replayed.get(s.SubnetConsensusSubmission, SUBNET, 1)
    assert submission["validator_id"] == 3
    assert submission["block"] == 24
    assert submission["validator_epoch_progress"] == 50000000000000000
    assert submission["validator_reward_factor"] == 999876605424013824
    assert [
        (node, each["block"], each["attestor_progress"], each["reward_factor"])
        for node, each in submission["attests"].items()
    ] == [
        (1, 25, 52631578947368421, 999999999999890816),
        (2, 27, 157894736842105263, 999999993547153280),
        (3, 24, 0, 10**18),
    ]


@needs_golden
def test_money_outside_the_pallet_moved_as_recorded(replayed: Chain) -> None:
    recorded = json.loads((GOLDEN / "golden_state_end.json").read_text())["storage"]

    def free(who: bytes) -> int:
        (value,) = [value for key, value in recorded.items() if key.startswith(ACCOUNTS) and key.endswith(who.hex())]
        return int.from_bytes(bytes.fromhex(value[2:])[16:32], "little")

    ctx = replayed.ctx()
    assert ctx.free_balance(TREASURY) == free(TREASURY)
    # The owner also paid the fees of its six extrinsics (about 1.1e8 planck each), which are not charged here.
    assert 0 < ctx.free_balance(OWNER) - free(OWNER) < 6 * 120_000_000


@needs_golden
def test_storage_equals_the_recorded_state_byte_for_byte(replayed: Chain) -> None:
    recorded = json.loads((GOLDEN / "golden_state_end.json").read_text())["storage"]
    by_prefix = {item.prefix.hex(): item for item in s.ITEMS}
    same, wrong, absent = 0, [], []
    for key, value in recorded.items():
        item = by_prefix.get(key[2:66])
        if item is None:
            continue
        ours = replayed.state.get(bytes.fromhex(key[2:]))
        if ours is None:
            absent.append(item.name)
        elif ours.hex() == value[2:]:
            same += 1
        else:
            wrong.append((item.name, item.decode_key(bytes.fromhex(key[2:])), ours.hex(), value))
    assert wrong == []
    assert absent == []
    assert same == 94
    prefix = s.ITEMS[0].prefix[:16]
    extra = [key for key in replayed.state.keys(prefix) if "0x" + key.hex() not in recorded]
    assert extra == []


@needs_golden
def test_each_call_emits_what_the_runtime_emitted() -> None:
    """Every recorded extrinsic again: its call bytes decode, its Network and Balances events are the same."""
    from . import golden_metadata

    recorded = json.loads((GOLDEN / "golden_epoch.json").read_text())
    chain = Chain()
    signers = {0: OWNER, 1: COLDKEYS[0], 2: COLDKEYS[1], 3: COLDKEYS[2], 4: COLDKEYS[2], 5: OWNER}
    signers |= {6: HOTKEYS[2], 7: HOTKEYS[0], 8: HOTKEYS[0], 9: HOTKEYS[1]}
    blocks = [8, 9, 10, 11, 12, 13, 24, 25, 26, 27]
    for place, (entry, block) in enumerate(zip(recorded, blocks, strict=True)):
        if block == 24:
            chain.to_slot(1, elect=3)
        chain.to_block(block)
        raw = bytes.fromhex(entry["call_hex"][2:])
        call = chain.calls[entry["call"]]
        assert raw[:2] == bytes([chain.pallet.index, call.index])
        types = TupleOf(tuple(kind for _, kind in call.args))
        values = types.decode_all(raw[2:])
        assert types.encode(values) == raw[2:]
        args = dict(zip([name for name, _ in call.args], values, strict=True))
        theirs = [
            each["event"]
            for each in golden_metadata.events(entry["events_hex"])
            if each["extrinsic_idx"] == 1 and each["event"]["module_id"] in ("Network", "Balances")
        ]
        theirs = [each for each in theirs if each["event_id"] != "Upgraded"][1:-1]  # without the fee
        if not entry["ok"]:
            assert chain.error(entry["call"], signers[place], **args) == entry["err"]["name"]
            assert theirs == []
            continue
        before = len(chain.events)
        pays = chain.call(entry["call"], signers[place], **args)
        assert (pays is Pays.NO) == (entry["fee"] == 0)
        ours = chain.events[before:]
        assert [(each["module_id"], each["event_id"]) for each in theirs] == [each[:2] for each in ours]
        for each, (_, _, content) in zip(theirs, ours, strict=True):
            assert _plain(each["attributes"]) == _plain(content)


def _plain(value: Any) -> Any:
    """Event contents in one form: bytes as hex, texts as their bytes' hex, tuples as lists."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return value[2:] if value.startswith("0x") else value.encode().hex()
    return value
