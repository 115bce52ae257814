"""A proof convinces whoever is shown it, and nothing else does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import RecordRejected, RemoteProtocolError
from mesh.identity import KeyType, PeerKey, is_signature
from mesh.kad.equivocation import MAX_PROOF_BYTES, Equivocation, ProofBook
from mesh.kad.record import MAX_VALUE_BYTES, Record, sign_record

GENESIS = b"g" * 32
ALICE, BOB = PeerKey.dev("alice"), PeerKey.dev("bob")


def signed(value: bytes, key: PeerKey = ALICE, name: bytes = b"ns/k", **changes: object) -> Record:
    fields: dict[str, object] = {"expiry_ms": 2_000, "seq": 7, "subnet_id": 1, "genesis": GENESIS, **changes}
    return sign_record(key, name, value, **fields)  # type: ignore[arg-type]


def check(proof: Equivocation) -> None:
    proof.check(is_signature, subnet_id=1, genesis=GENESIS)


@pytest.mark.parametrize("key_type", list(KeyType))
def test_anybody_can_check_a_proof_against_any_kind_of_owner(key_type: KeyType) -> None:
    key = PeerKey.generate(key_type)
    proof = Equivocation.of(signed(b"yes", key), signed(b"", key, tombstone=True))
    again = Equivocation.from_bytes(proof.to_bytes())
    assert again == proof
    check(again)
    assert again.owner == key.peer_id


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_proofs_come_back_in_one_form_whichever_record_came_first(
    one: bytes, other: bytes, seq: int, expiry_ms: int
) -> None:
    a, b = signed(one, seq=seq), signed(other, seq=seq, expiry_ms=expiry_ms)
    if a.order == b.order:
        return
    raw = Equivocation.of(a, b).to_bytes()
    assert raw == Equivocation.of(b, a).to_bytes()
    proof = Equivocation.from_bytes(raw)
    assert {proof.first, proof.second} == {a, b}
    with pytest.raises(RemoteProtocolError, match="canonical"):
        Equivocation.from_bytes(Equivocation(proof.second, proof.first).to_bytes())
    if one == other:
        with pytest.raises(RecordRejected, match="not-a-proof"):
            check(proof)
    else:
        check(proof)


def test_the_largest_proof_fits_and_nothing_larger_is_read() -> None:
    values = (bytes(MAX_VALUE_BYTES), b"\x01" * MAX_VALUE_BYTES)
    proof = Equivocation.of(*(signed(v, name=b"n/" + b"k" * 126, subkey=b"s" * 128) for v in values))
    assert Equivocation.from_bytes(proof.to_bytes()) == proof
    with pytest.raises(RemoteProtocolError, match="at most"):
        Equivocation.from_bytes(bytes(MAX_PROOF_BYTES + 1))


@pytest.mark.parametrize(
    ("reason", "one", "other"),
    [
        ("not-a-proof", signed(b"1"), signed(b"2", seq=8)),
        ("not-a-proof", signed(b"1"), signed(b"2", BOB)),
        ("not-a-proof", signed(b"1"), signed(b"2", name=b"ns/l")),
        ("not-a-proof", signed(b"1"), signed(b"2", subkey=b"s")),
        ("not-a-proof", signed(b"1"), signed(b"1", expiry_ms=3_000)),
        ("genesis", signed(b"1", genesis=b"h" * 32), signed(b"2", genesis=b"h" * 32)),
        ("genesis", signed(b"1"), signed(b"2", genesis=b"h" * 32)),
        ("subnet", signed(b"1", subnet_id=2), signed(b"2", subnet_id=2)),
        ("subnet", signed(b"1"), signed(b"2", subnet_id=2)),
        ("signature", signed(b"1"), dataclasses.replace(signed(b"1"), value=b"2")),
        ("signature", dataclasses.replace(signed(b"2"), value=b"1"), signed(b"2")),
        ("signature", signed(b"1"), dataclasses.replace(signed(b"2", BOB), public_key_pb=ALICE.public_key_pb)),
    ],
)
def test_what_proves_nothing_is_refused(reason: str, one: Record, other: Record) -> None:
    with pytest.raises(RecordRejected) as caught:
        check(Equivocation.of(one, other))
    assert caught.value.reason == reason


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_proofs_are_a_protocol_error_or_prove_nothing(data: st.DataObject) -> None:
    good = Equivocation.of(signed(b"1"), signed(b"2")).to_bytes()
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    if bytes(raw) == good:
        return
    with pytest.raises((RemoteProtocolError, RecordRejected)):
        check(Equivocation.from_bytes(bytes(raw)))


def test_one_liar_with_many_slots_does_not_push_out_proofs_against_others() -> None:
    book = ProofBook(max_proofs=5, max_per_owner=2)

    def proof(number: int, key: PeerKey) -> Equivocation:
        return Equivocation.of(*(signed(v, key, b"ns/%d" % number) for v in (b"1", b"2")))

    against_bob = proof(0, BOB)
    assert book.add(against_bob) == ()
    assert book.add(proof(0, BOB)) == ()  # the same once more
    left = [gone for number in range(10) for gone in book.add(proof(number, ALICE))]
    assert [gone.slot.key for gone in left] == [b"ns/%d" % number for number in range(8)]
    assert [(p.owner, p.slot.key) for p in book.proofs] == [
        (BOB.peer_id, b"ns/0"), (ALICE.peer_id, b"ns/8"), (ALICE.peer_id, b"ns/9")
    ]  # fmt: skip
    assert book.proves(against_bob.slot, 7)
    assert not book.proves(against_bob.slot, 8)
    newer = Equivocation.of(*(signed(v, BOB, b"ns/0", seq=8) for v in (b"1", b"2")))
    assert book.add(newer) == (against_bob,)
    none = ProofBook(max_proofs=0, max_per_owner=2)
    assert none.add(newer) == (newer,)
    assert none.proofs == ()
