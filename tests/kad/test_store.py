"""The store against a plain dict, its bounds, and the defect of others that it must not have."""

from __future__ import annotations

import contextlib

import pytest

from mesh.errors import RecordRejected
from mesh.identity import PeerKey
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.record import Record, Slot
from mesh.kad.store import Equivocation, Keep, RecordStore, StoreConfig
from mesh.peer import PeerID

NOW = 1_800_000_000.0
OWNERS = [PeerKey.dev(name) for name in ("a", "b", "c")]
LOCAL = key_of_peer(PeerKey.dev("local").peer_id)


def record(
    key: bytes = b"k/1", *, owner: int = 0, subkey: bytes = b"", value: bytes = b"v", ttl_s: float = 60.0, seq: int = 1
) -> Record:
    """The store never looks at signatures: they were checked before."""
    public = OWNERS[owner].public_key_pb
    return Record(key, subkey, value, int((NOW + ttl_s) * 1000), seq, 1, b"g" * 32, public, b"s" * 64)


def put(store: RecordStore, *records: Record, keep: Keep = Keep.REPLICA) -> None:
    for one in records:
        store.put(one, max_per_owner=8, keep=keep)


def store(**config: object) -> RecordStore:
    return RecordStore(LOCAL, StoreConfig.model_validate(config))


def refusal(into: RecordStore, one: Record, max_per_owner: int = 8) -> str:
    with pytest.raises(RecordRejected) as from_check:
        into.check(one, max_per_owner=max_per_owner)
    with pytest.raises(RecordRejected) as from_put:
        into.put(one, max_per_owner=max_per_owner)
    assert from_check.value.reason == from_put.value.reason
    return from_put.value.reason


def test_a_refused_older_record_does_not_take_the_newer_one_with_it_when_it_expires() -> None:
    """hivemind: a rejected store rewrites the expiry heap, and the newer value is deleted with the older
    one's expiry."""
    held = store()
    newer = record(seq=2, ttl_s=600.0)
    put(held, newer)
    assert refusal(held, record(seq=1, ttl_s=4.0)) == "older"
    assert held.expire(NOW + 5) == ()
    assert held.records(b"k/1", now=NOW + 5) == (newer,)
    assert held.expire(NOW + 601) == (newer,)
    assert len(held) == 0
    assert held.size_bytes == 0


def test_a_replaced_record_leaves_with_its_own_expiry_only() -> None:
    held = store()
    put(held, record(seq=1, ttl_s=5.0), record(seq=2, ttl_s=50.0))
    assert held.expire(NOW + 10) == ()
    assert len(held) == 1
    put(held, record(seq=3, ttl_s=1.0))  # newer and shorter: the owner's wish
    assert held.records(b"k/1", now=NOW + 2) == ()
    assert len(held.expire(NOW + 2)) == 1
    assert held.expire(NOW + 60) == ()


def test_order_within_a_slot_is_seq_then_expiry_then_digest() -> None:
    held = store()
    put(held, record(seq=5))
    assert refusal(held, record(seq=5)) == "duplicate"
    assert refusal(held, record(seq=4, ttl_s=3600.0)) == "older"
    assert refusal(held, record(seq=5, ttl_s=1.0)) == "older"
    put(held, record(seq=5, ttl_s=61.0), record(seq=6, ttl_s=1.0))
    # Other owners and other subkeys never compete.
    put(held, record(owner=1, seq=1), record(subkey=b"x", seq=1))
    assert len(held.records(b"k/1", now=NOW)) == 3


def test_two_values_for_one_seq_are_kept_as_proof_whichever_wins() -> None:
    one, two = sorted((record(value=b"yes"), record(value=b"no")), key=lambda r: r.order)
    held = store()
    put(held, two)
    held.check(one, max_per_owner=8)  # let through, so that its signature is checked
    with pytest.raises(RecordRejected, match="proof"):
        held.put(one, max_per_owner=8)
    assert held.proofs == (Equivocation.of(two, one),)
    assert held.records(b"k/1", now=NOW) == (two,)
    assert refusal(held, record(value=b"third")) == "older" or held.held(two.slot) != two
    other = store()
    put(other, one, two)
    assert other.proofs == (Equivocation.of(one, two),)
    assert other.records(b"k/1", now=NOW) == (two,)


def test_a_journal_that_heard_of_a_proof_keeps_it_when_the_lie_is_told_again() -> None:
    told: list[str] = []

    class Told:
        def kept(self, record: Record, keep: Keep, sender: PeerID | None) -> None:
            told.append("kept")

        def dropped(self, slot: Slot) -> None:
            told.append("dropped")

        def proven(self, proof: Equivocation) -> None:
            told.append("proven")

        def unproven(self, proof: Equivocation) -> None:
            told.append("unproven")

    one, two = sorted((record(value=b"yes"), record(value=b"no")), key=lambda r: r.order)
    held = RecordStore(LOCAL, journal=Told())
    put(held, one, two)
    with pytest.raises(RecordRejected, match="older"):
        put(held, one)
    assert told == ["kept", "proven", "kept"]
    held.drop(one.slot)
    assert told[3:] == ["dropped"]


def test_proofs_are_bounded() -> None:
    held = store(max_proofs=2)
    for number in range(5):
        pair = sorted((record(b"k/%d" % number, value=v) for v in (b"1", b"2")), key=lambda r: r.order)
        put(held, *pair)
    assert [proof.first.key for proof in held.proofs] == [b"k/3", b"k/4"]


def test_quotas_per_owner_and_key_and_per_owner_in_all() -> None:
    held = store(max_records_per_key=5)
    put(held, *(record(subkey=bytes((n,))) for n in range(3)))
    assert refusal(held, record(subkey=b"\x09"), max_per_owner=3) == "quota"
    held.check(record(subkey=b"\x02", seq=2), max_per_owner=3)  # replacing needs no further place
    put(held, *(record(owner=1, subkey=bytes((n,))) for n in range(2)))
    assert refusal(held, record(owner=2)) == "quota"
    greedy = store(max_bytes=100_000, max_owner_share=0.1)
    for number in range(6):
        put(greedy, record(b"k/%d" % number, value=b"x" * 800))
    assert refusal(greedy, record(b"k/9", value=b"x" * 4000)) == "quota"
    put(greedy, record(b"k/9", owner=1, value=b"x" * 4000))


def test_the_farthest_leaves_first_and_of_that_what_expires_soonest() -> None:
    keys = sorted((b"k/%d" % n for n in range(40)), key=lambda key: key_of_record(key) ^ LOCAL)
    held = store(max_records=4, max_owner_share=1.0)
    far, farther = keys[-2], keys[-1]
    put(held, record(keys[0]), record(farther, ttl_s=9.0), record(farther, owner=1, ttl_s=90.0), record(far))
    assert held.keys() == (keys[0], far, farther)
    assert refusal(held, record(farther, owner=2, ttl_s=5.0)) == "full"
    gone = held.put(record(keys[1]), max_per_owner=8)
    assert gone == (record(farther, ttl_s=9.0),)
    assert held.put(record(keys[2]), max_per_owner=8) == (record(farther, owner=1, ttl_s=90.0),)
    assert len(held) == 4


def test_bytes_are_bounded_and_a_refusal_evicts_nobody() -> None:
    keys = sorted((b"k/%d" % n for n in range(40)), key=lambda key: key_of_record(key) ^ LOCAL)
    held = store(max_bytes=10_000, max_owner_share=1.0)
    put(held, record(keys[0], value=b"x" * 5000), record(keys[30], value=b"x" * 2000))
    before = tuple(held)
    # It would need the far one's place and more: nothing leaves for a record that still has no room.
    assert refusal(held, record(keys[10], owner=1, value=b"x" * 6000)) == "full"
    assert tuple(held) == before
    put(held, record(keys[10], owner=1, value=b"x" * 2500))
    assert held.keys() == (keys[0], keys[10])
    assert held.size_bytes <= 10_000


def test_own_records_stay() -> None:
    keys = sorted((b"k/%d" % n for n in range(40)), key=lambda key: key_of_record(key) ^ LOCAL)
    held = store(max_records=2, max_owner_share=1.0)
    put(held, record(keys[-1]), keep=Keep.OWN)
    put(held, record(keys[5]))
    put(held, record(keys[-2]), keep=Keep.OWN)  # far, but ours: the replica leaves
    assert held.keys() == (keys[-2], keys[-1])
    assert refusal(held, record(keys[0])) == "full"
    with pytest.raises(RecordRejected, match="full"):
        put(held, record(keys[0]), keep=Keep.OWN)


def test_pages_go_through_all_slots_once() -> None:
    held = store()
    everything = [record(owner=o, subkey=bytes((n,)), value=b"x" * 100) for o in range(3) for n in range(5)]
    put(held, *everything, record(owner=0, subkey=b"gone", ttl_s=-1.0))
    seen: list[Record] = []
    after = None
    pages = 0
    while True:
        page = held.page(b"k/1", now=NOW, max_bytes=700, after=after)
        pages += 1
        seen += page.records
        assert 1 <= len(page.records) <= 3
        if not page.more:
            break
        after = (page.records[-1].owner, page.records[-1].subkey)
    assert pages >= 5
    assert tuple(seen) == held.records(b"k/1", now=NOW)
    assert len(seen) == 15
    assert len(held.page(b"k/1", now=NOW, max_bytes=1).records) == 1
    one = frozenset({OWNERS[1].peer_id})
    assert {r.owner for r in held.page(b"k/1", now=NOW, max_bytes=10**6, owners=one).records} == one


def test_evidence_stays_whatever_floods_in_and_makes_room_among_replicas() -> None:
    held = store(max_records=8, max_owner_share=1.0)
    evidence = [record(b"far/%d" % n, owner=1, ttl_s=10.0) for n in range(4)]
    put(held, *evidence, keep=Keep.EVIDENCE)
    for n in range(200):  # nearer, longer-lived, and as many as anybody likes
        with contextlib.suppress(RecordRejected):
            put(held, record(b"flood/%d" % n, owner=2, ttl_s=600.0))
    assert all(held.records(one.key, now=NOW) == (one,) for one in evidence)
    later = record(b"far/5", owner=1, ttl_s=10.0)
    put(held, later, keep=Keep.EVIDENCE)
    assert held.records(later.key, now=NOW) == (later,)
    assert len(held) == 8
