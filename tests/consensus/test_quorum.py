"""Commitments bind everything; quorums are drawn by everybody alike and never hold the claimant's own nodes."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.chain.types import NodeClass
from mesh.consensus.quorum import commitment, quorum
from mesh.errors import ConsensusError, LocalProtocolError

from .toy import GENESIS, KEYS, LABELS, SUBNET, snapshot

ADA = KEYS["ada"].peer_id
SALT = b"\x05" * 32
WHOLE: dict[str, Any] = {
    "genesis": GENESIS, "subnet_id": SUBNET, "epoch": 3, "owner": ADA, "kind": "vote", "target_digest": b"\x01" * 32,
    "salt": SALT, "value": b"42",
}  # fmt: skip


def made(**changes: Any) -> bytes:
    fields = WHOLE | changes
    return commitment(fields.pop("genesis"), fields.pop("subnet_id"), **fields)


def test_a_commitment_is_the_hash_that_the_design_names() -> None:
    fields = ["mesh/commit/1", GENESIS, SUBNET, 3, ADA.multihash, "vote", b"\x01" * 32, SALT, b"42"]
    assert made() == hashlib.sha256(msgpack.packb(fields)).digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"genesis": b"\x08" * 32}, {"subnet_id": 1}, {"epoch": 4}, {"owner": KEYS["bob"].peer_id}, {"kind": "claim"},
        {"target_digest": b""}, {"salt": b"\x06" * 32}, {"value": b"43"},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_nothing_in_a_commitment_can_be_swapped(changes: dict[str, Any]) -> None:
    assert made() == made()
    assert made(**changes) != made()


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_fields_do_not_run_into_each_other(t1: bytes, v1: bytes, t2: bytes, v2: bytes) -> None:
    same = made(target_digest=t1, value=v1) == made(target_digest=t2, value=v2)
    assert same == ((t1, v1) == (t2, v2))


def test_a_short_salt_is_our_fault() -> None:
    with pytest.raises(LocalProtocolError):
        made(salt=b"1")


def draw(size: int = 3, **changes: Any) -> list[int]:
    fields: dict[str, Any] = {
        "genesis": GENESIS, "epoch": 3, "claim_commit_digest": b"\x09" * 32, "draw_hash": b"\x0a" * 32,
        "claim_owner": ADA, "size": size,
    }  # fmt: skip
    snap = changes.pop("snap", None) or snapshot(LABELS)
    return [node.node_id for node in quorum(snap, **(fields | changes))]


def test_a_quorum_is_the_same_for_everybody_and_leaves_the_claimant_out() -> None:
    assert draw() == draw()
    assert 1 not in draw(size=99)
    assert sorted(draw(size=99)) == [2, 3, 4, 5, 6, 7]
    assert draw(size=2) == draw(size=99)[:2]
    assert draw(size=0) == draw(size=-1) == []


def test_the_rank_is_the_hash_that_the_design_names() -> None:
    def rank(node_id: int) -> bytes:
        fields = ["mesh/quorum/1", GENESIS, SUBNET, 3, b"\x09" * 32, b"\x0a" * 32, node_id]
        return hashlib.sha256(msgpack.packb(fields)).digest()

    assert draw(size=99) == sorted(range(2, 8), key=rank)


def test_nodes_of_the_claimants_coldkey_and_non_validators_never_judge() -> None:
    snap = snapshot(
        LABELS,
        bob={"coldkey": bytes([1]) * 20},
        cyd={"node_class": NodeClass.INCLUDED},
        dan={"start_epoch": 4},
    )
    assert sorted(draw(size=99, snap=snap)) == [5, 6, 7]


def test_a_claim_by_nobody_has_no_quorum() -> None:
    with pytest.raises(ConsensusError) as error:
        draw(snap=snapshot(LABELS[1:]))
    assert error.value.reason == "claim-owner"


@pytest.mark.parametrize(
    "changes",
    [{"draw_hash": b"\x0b" * 32}, {"claim_commit_digest": b"\x0b" * 32}, {"epoch": 4}, {"genesis": b"\1" * 32}],
)
def test_everything_moves_the_draw(changes: dict[str, Any]) -> None:
    assert draw(size=99) != draw(size=99, **changes)


def test_draws_are_spread_over_the_nodes() -> None:
    counts = Counter(draw(size=1, draw_hash=i.to_bytes(32, "big"))[0] for i in range(600))
    assert sorted(counts) == [2, 3, 4, 5, 6, 7]
    assert all(60 <= count <= 140 for count in counts.values())
