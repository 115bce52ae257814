"""Any history of a store, beside a dict that adds everything up anew for every question."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.errors import RecordRejected
from mesh.identity import PeerKey
from mesh.kad.equivocation import Equivocation
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.quota import NamespaceQuota, Quota
from mesh.kad.record import Record, Slot, is_equivocation
from mesh.kad.store import Keep, RecordStore, StoreConfig
from mesh.kad.validator import record_bytes
from mesh.peer import PeerID

NOW = 1_800_000_000.0
OWNERS = [PeerKey.dev(name) for name in ("a", "b", "c")]
SENDERS = [None, *(owner.peer_id for owner in OWNERS[:2])]
LOCAL = key_of_peer(PeerKey.dev("local").peer_id)
KEYS = [b"k/1", b"k/2", b"l/1", b"l/2"]
MAX_PER_OWNER = 3
OVERHEAD = 512
QUOTA = NamespaceQuota(in_all=Quota(max_records=6), per_owner=Quota(max_records=4, max_bytes=4_000))
CONFIG = StoreConfig(
    max_records=8, max_bytes=9_000, max_records_per_key=5, max_owner_share=0.7, max_sender_share=0.5, max_proofs=3,
    max_proofs_per_owner=2,
)  # fmt: skip


def weight(record: Record) -> int:
    return record_bytes(record) + OVERHEAD


class Refused(Exception):
    """With the reason."""


class PlainStore:
    """Slot → (record, why, from whom), and the proofs in their order."""

    def __init__(self) -> None:
        self.held: dict[Slot, tuple[Record, Keep, PeerID | None]] = {}
        self.proofs: list[Equivocation] = []

    def put(self, record: Record, keep: Keep, sender: PeerID | None) -> list[Record]:
        """What was evicted."""
        old = self.held.get(record.slot)
        if old is not None and is_equivocation(old[0], record):
            self.prove(Equivocation.of(old[0], record))
            if record.order < old[0].order:
                raise Refused("older")
        evicted = self.victims(record, keep, sender)
        for victim in evicted:
            del self.held[victim.slot]
        self.held[record.slot] = (record, keep, sender)
        return evicted

    def prove(self, proof: Equivocation) -> None:
        if any(p.slot == proof.slot and p.first.seq == proof.first.seq for p in self.proofs):
            return
        self.proofs = [p for p in self.proofs if p.slot != proof.slot] + [proof]
        mine = [p for p in self.proofs if p.owner == proof.owner]
        if len(mine) > 2:
            self.proofs.remove(mine[0])
        self.proofs = self.proofs[-3:]

    def victims(self, record: Record, keep: Keep, sender: PeerID | None) -> list[Record]:
        old = self.held.get(record.slot)
        others = [held for slot, held in self.held.items() if slot != record.slot]
        if old is None:
            under_key = [r for r, _, _ in others if r.key == record.key]
            if len(under_key) >= 5 or sum(r.owner == record.owner for r in under_key) >= MAX_PER_OWNER:
                raise Refused("quota")
        else:
            if old[0].digest == record.digest:
                raise Refused("duplicate")
            known = any(p.slot == record.slot and p.first.seq == record.seq for p in self.proofs)
            if record.order < old[0].order and (known or not is_equivocation(old[0], record)):
                raise Refused("older")
        namespace = record.key[:1]
        brought = []
        if sender not in (None, record.owner):  # a sender's share is of what it brings of others
            brought = [(CONFIG.share(0.5), [r for r, _, s in others if s == sender != r.owner])]
        for quota, mine in (
            (CONFIG.share(0.7), [r for r, _, _ in others if r.owner == record.owner]),
            (QUOTA.in_all, [r for r, _, _ in others if r.key[:1] == namespace]),
            (QUOTA.per_owner, [r for r, _, _ in others if r.owner == record.owner and r.key[:1] == namespace]),
            *brought,
        ):
            if quota.max_records is not None and len(mine) + 1 > quota.max_records:
                raise Refused("quota")
            if quota.max_bytes is not None and sum(map(weight, [*mine, record])) > quota.max_bytes:
                raise Refused("quota")
        left = [r for r, _, _ in others]
        replicas = [r for r, why, _ in others if why is Keep.REPLICA]
        evicted: list[Record] = []
        while len(left) + 1 > 8 or sum(map(weight, [*left, record])) > 9_000:
            if not replicas:
                raise Refused("full")
            victim = min(replicas, key=self.leaving)
            if keep is Keep.REPLICA and self.leaving(record) <= self.leaving(victim):
                raise Refused("full")
            replicas.remove(victim)
            left.remove(victim)
            evicted.append(victim)
        return evicted

    def leaving(self, record: Record) -> tuple[int, int, bytes]:
        """The least leaves first."""
        return (-(key_of_record(record.key) ^ LOCAL), record.expiry_ms, record.digest)


class Told:
    """A journal: what somebody knows who only listens."""

    def __init__(self) -> None:
        self.held: dict[Slot, tuple[Record, Keep, PeerID | None]] = {}
        self.proofs: dict[Slot, Equivocation] = {}

    def kept(self, record: Record, keep: Keep, sender: PeerID | None) -> None:
        self.held[record.slot] = (record, keep, sender)

    def dropped(self, slot: Slot) -> None:
        del self.held[slot]

    def proven(self, proof: Equivocation) -> None:
        self.proofs[proof.slot] = proof

    def unproven(self, proof: Equivocation) -> None:
        del self.proofs[proof.slot]


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.plain = PlainStore()
        self.told = Told()
        self.store = RecordStore(LOCAL, CONFIG, journal=self.told)

    @rule(
        key=st.sampled_from(KEYS),
        owner=st.sampled_from(OWNERS),
        subkey=st.sampled_from([b"", b"s", b"t", b"u"]),
        seq=st.integers(0, 3),
        ttl_s=st.integers(1, 40),
        value=st.sampled_from([b"v", b"w", bytes(1_500)]),
        keep=st.sampled_from([Keep.REPLICA, Keep.REPLICA, Keep.EVIDENCE, Keep.OWN]),
        sender=st.sampled_from(SENDERS),
    )
    def put(
        self, key: bytes, owner: PeerKey, subkey: bytes, seq: int, ttl_s: int, value: bytes, keep: Keep,
        sender: PeerID | None,
    ) -> None:  # fmt: skip
        expiry_ms = int((self.now + ttl_s) * 1000)
        new = Record(key, subkey, value, expiry_ms, seq, 1, b"g" * 32, owner.public_key_pb, b"s" * 64)
        self.offer(new, keep, sender)

    def offer(self, new: Record, keep: Keep, sender: PeerID | None) -> None:
        how = {"max_per_owner": MAX_PER_OWNER, "keep": keep, "quota": QUOTA, "sender": sender}
        try:
            reason, expected = "", self.plain.put(new, keep, sender)
        except Refused as refusal:
            reason, expected = str(refusal), []
        if not reason:
            self.store.check(new, **how)  # type: ignore[arg-type]
            assert list(self.store.put(new, **how)) == expected  # type: ignore[arg-type]
            return
        with pytest.raises(RecordRejected, match=rf"\({reason}\)"):
            self.store.put(new, **how)  # type: ignore[arg-type]
        with pytest.raises(RecordRejected):  # now that a proof it may have been is known
            self.store.check(new, **how)  # type: ignore[arg-type]

    @rule(data=st.data(), value=st.sampled_from([b"v", b"w", b"x"]), keep=st.sampled_from([Keep.REPLICA, Keep.OWN]))
    def lie(self, data: st.DataObject, value: bytes, keep: Keep) -> None:
        """Another record of a slot and seq that is held."""
        if self.plain.held:
            slot = data.draw(st.sampled_from(sorted(self.plain.held, key=repr)))
            held = self.plain.held[slot][0]
            self.offer(dataclasses.replace(held, value=value, expiry_ms=held.expiry_ms + 1), keep, None)

    @rule(seconds=st.integers(1, 30), limit=st.none() | st.integers(1, 2))
    def expire(self, seconds: int, limit: int | None) -> None:
        self.now += seconds
        gone = self.store.expire(self.now, limit=limit)
        expired = [r for r, _, _ in self.plain.held.values() if r.is_expired(self.now)]
        assert [r.expiry_ms for r in gone] == sorted(r.expiry_ms for r in expired)[:limit]
        assert set(gone) <= set(expired)
        for record in gone:
            del self.plain.held[record.slot]

    @rule(key=st.sampled_from(KEYS), owner=st.sampled_from(OWNERS))
    def drop(self, key: bytes, owner: PeerKey) -> None:
        slot = Slot(key, owner.peer_id, b"")
        self.store.drop(slot)
        self.plain.held.pop(slot, None)

    @invariant()
    def holds_the_same_and_says_so(self) -> None:
        held = self.plain.held
        assert {r.slot: r for r in self.store} == {slot: r for slot, (r, _, _) in held.items()}
        assert all(self.store.keep(slot) is keep for slot, (_, keep, _) in held.items())
        assert len(self.store) == len(held) <= 8
        assert self.store.size_bytes == sum(weight(r) for r, _, _ in held.values()) <= 9_000
        assert self.store.proofs == tuple(self.plain.proofs)
        assert self.told.held == held
        assert self.told.proofs == {proof.slot: proof for proof in self.plain.proofs}

    @invariant()
    def lists_the_same(self) -> None:
        keys = {slot.key for slot in self.plain.held}
        assert self.store.keys() == tuple(sorted(keys, key=lambda key: key_of_record(key) ^ LOCAL))
        for key in KEYS:
            under = sorted((s.owner, s.subkey) for s in self.plain.held if s.key == key)
            live = [
                record for place in under
                if not (record := self.plain.held[Slot(key, *place)][0]).is_expired(self.now)
            ]  # fmt: skip
            assert list(self.store.records(key, now=self.now)) == live
            assert self.store.owners(key) == tuple(sorted({owner for owner, _ in under}))
            for after in (None, *under):
                rest = [r for r in live if after is None or (r.owner, r.subkey) > after]
                page = self.store.page(key, now=self.now, max_bytes=1, after=after)
                assert (list(page.records), page.more) == (rest[:1], len(rest) > 1)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
