"""What an epoch paid, from the recorded settlement of the real runtime and from events that are not what they should
be; and whose attestations count."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

from mesh.chain import runtime
from mesh.chain.earnings import Cause, paid_by_work, settlement_entries
from mesh.chain.metadata import Metadata
from mesh.chain.reading import electable
from mesh.chain.types import BlockRef, Event, NodeClass, Snapshot, SubnetNode
from mesh.errors import ChainError
from mesh.identity import PeerKey

from .conftest import golden

SUBNET = 128001
PROPOSER_REWARD = 999876605424013824


def snapshot(block: int, stakes: dict[int, int]) -> Snapshot:
    nodes = tuple(
        SubnetNode(
            node_id=number,
            coldkey=bytes((number,)) * 20,
            hotkey=bytes((100 + number,)) * 20,
            peer_id=PeerKey.dev(f"node {number}").peer_id,
            bootnode_peer_id=None,
            client_peer_id=None,
            node_class=NodeClass.VALIDATOR,
            start_epoch=0,
            stake_planck=stake,
            reputation=10**18,
        )
        for number, stake in stakes.items()
    )
    return Snapshot(SUBNET, BlockRef(block, bytes(32)), nodes)


def event(name: str, **fields: object) -> Event:
    return Event("Network", name, dict(fields))


def rewards(**changes: object) -> Event:
    fields: dict[str, object] = {
        "subnet_id": SUBNET, "node_rewards": [(1, 5)], "delegate_stake_reward": 0, "node_delegate_stake_rewards": [],
        "node_delegate_account_allocations": [],
    }  # fmt: skip
    return event("SubnetRewards", **(fields | changes))


def entries(events: list[Event], before: dict[int, int], after: dict[int, int], proposer: int | None = None) -> Any:
    found = settlement_entries(
        events, before=snapshot(42, before), after=snapshot(43, after), epoch=1, proposer=proposer
    )
    return [(entry.node_id, entry.cause, entry.planck) for entry in found]


def test_the_recorded_settlement_is_explained_to_the_planck() -> None:
    text = golden("scenario_output.txt")
    found = re.search(r"EVENT SubnetRewards (\{.*\})", text)
    before, after = (
        dict(enumerate(ast.literal_eval(re.search(rf"stakes {when} (\[[0-9, ]*\])", text)[1]), 1))  # type: ignore[index]
        for when in ("before", "after")
    )
    assert found is not None
    settled = event("SubnetRewards", **ast.literal_eval(found[1]))
    assert entries([settled], before, after, proposer=3) == [
        (1, Cause.WORK, 34901843424534753),
        (2, Cause.WORK, 69803686398644636),
        (3, Cause.PROPOSER, PROPOSER_REWARD),
        (3, Cause.WORK, 104705530273615693),
        (None, Cause.SUBNET_DELEGATORS, 23267895616359042),
    ]
    assert paid_by_work([settled], SUBNET) == {
        1: 34901843424534753, 2: 69803686398644636, 3: 104705530273615693
    }  # fmt: skip
    assert paid_by_work([settled], SUBNET + 1) is None


def test_whose_attestations_count_is_read_from_the_recorded_submission(
    metadata: Metadata, state_end: dict[str, Any]
) -> None:
    item = metadata.item("Network", "SubnetConsensusSubmission")
    raw = state_end["storage"][f"0x{runtime.storage_key(metadata, item, (SUBNET, 1)).hex()}"]
    submission = runtime.decode_value(metadata, item, bytes.fromhex(raw[2:]))
    assert electable(submission, snapshot(1, {}), epoch=1) == (1, 2, 3)
    assert electable({"validator_ids": [3, 1]}, snapshot(1, {}), epoch=1) == (1, 3)
    assert electable(None, snapshot(1, {2: 0}), epoch=1) == (2,)
    with pytest.raises(ChainError):
        electable({"validator_ids": ["x"]}, snapshot(1, {}), epoch=1)


def test_what_no_event_explains_is_said_and_who_left_lost_nothing() -> None:
    assert entries([], {1: 10, 2: 10}, {1: 12, 2: 9}, proposer=2) == [(1, Cause.OTHER, 2), (2, Cause.OTHER, -1)]
    assert entries([], {1: 10, 2: 10}, {1: 10}) == []
    hotkey = bytes((101,)) * 20
    slashed = event("Slashing", subnet_id=SUBNET, account_id=hotkey, amount=4)
    staked = event("StakeAdded", **{"0": SUBNET, "1": bytes(20), "2": hotkey, "3": 7})
    taken = event("StakeRemoved", **{"0": SUBNET, "1": bytes(20), "2": hotkey, "3": 2})
    assert entries([slashed, staked, taken], {1: 10}, {1: 11}) == [
        (1, Cause.SLASH, -4), (1, Cause.STAKED, 7), (1, Cause.UNSTAKED, -2),
    ]  # fmt: skip
    elsewhere = event("Slashing", subnet_id=SUBNET + 1, account_id=hotkey, amount=4)
    assert entries([elsewhere, Event("Other", "Slashing", {})], {1: 10}, {1: 10}) == []


def test_what_goes_to_others_than_the_node_is_no_stake() -> None:
    settled = rewards(node_delegate_stake_rewards=[(1, 2)], node_delegate_account_allocations=[(1, (bytes(20), 3))])
    assert entries([settled], {1: 10}, {1: 15}) == [
        (1, Cause.DELEGATE_ACCOUNT, 3), (1, Cause.NODE_DELEGATORS, 2), (1, Cause.WORK, 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        rewards(node_rewards=None),
        rewards(node_rewards=[1]),
        rewards(node_rewards=[("1", 5)]),
        rewards(node_rewards=[(1, -5)]),
        rewards(node_rewards=[(1, 5, 5)]),
        rewards(delegate_stake_reward="much"),
        rewards(node_delegate_account_allocations=[(1, 5)]),
        event("Slashing", subnet_id=SUBNET, account_id="me", amount=4),
        event("StakeAdded", **{"0": SUBNET, "2": bytes(19), "3": 1}),
    ],
)
def test_an_event_of_another_form_is_an_error(bad: Event) -> None:
    with pytest.raises(ChainError):
        entries([bad], {1: 10}, {1: 10})
