"""Owners with every kind of key in one network, and what one can do to the slots of another: nothing."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.errors import RecordRejected
from mesh.identity import KeyType, PeerKey
from mesh.kad.key import key_of_peer
from mesh.kad.record import Record, sign_record
from mesh.kad.store import RecordStore
from mesh.kad.validator import NamespaceRule, Purpose, RecordValidator

NOW = 1_800_000_000.0
GENESIS = b"\x01" * 32
KEYS = {kind: PeerKey.generate(kind) for kind in KeyType}
RULE = NamespaceRule("ns", max_ttl_s=100.0)


def signed(key: PeerKey, value: bytes = b"v", seq: int = 5, **changes: object) -> Record:
    fields: dict[str, object] = {
        "expiry_ms": int((NOW + 60) * 1000), "seq": seq, "subnet_id": 1, "genesis": GENESIS, **changes
    }  # fmt: skip
    return sign_record(key, b"ns/shared", value, **fields)  # type: ignore[arg-type]


class Replica:
    """A store behind its validator, fed with bytes."""

    def __init__(self) -> None:
        self.validator = RecordValidator([RULE], subnet_id=1, genesis=GENESIS)
        self.store = RecordStore(key_of_peer(PeerKey.dev("local").peer_id))
        self.members = {key.peer_id for key in KEYS.values()}

    def offer(self, raw: bytes, sender: PeerKey = KEYS[KeyType.ED25519]) -> str:
        record = Record.from_bytes(raw)
        try:
            self.validator.validate(
                record, purpose=Purpose.STORE, now=NOW, is_member=self.members.__contains__, sender=sender.peer_id,
                held=self.store,
            )  # fmt: skip
            self.store.put(record, max_per_owner=RULE.max_records_per_owner, sender=sender.peer_id)
        except RecordRejected as error:
            return error.reason
        return ""


def test_owners_of_all_kinds_share_a_key_without_competing() -> None:
    replica = Replica()
    for kind, key in KEYS.items():
        assert replica.offer(signed(key, kind.name.encode()).to_bytes()) == ""
        assert replica.offer(signed(key, b"newer", seq=6).to_bytes()) == ""
        assert replica.offer(signed(key, b"older", seq=4).to_bytes()) == "older"
    held = replica.store.records(b"ns/shared", now=NOW)
    assert {record.owner for record in held} == {key.peer_id for key in KEYS.values()}
    assert {record.value for record in held} == {b"newer"}


@pytest.mark.parametrize("victim", list(KeyType))
@pytest.mark.parametrize("thief", list(KeyType))
def test_nobody_raises_the_seq_of_anothers_slot(victim: KeyType, thief: KeyType) -> None:
    replica = Replica()
    good = signed(KEYS[victim], b"mine")
    assert replica.offer(good.to_bytes()) == ""
    stolen = signed(PeerKey.generate(KeyType.ED25519) if thief is victim else KEYS[thief], b"stolen", seq=99)
    for attempt in (
        dataclasses.replace(good, seq=99),  # the victim's record, lifted
        dataclasses.replace(good, seq=99, value=b"stolen", signature=stolen.signature),
        dataclasses.replace(stolen, public_key_pb=good.public_key_pb),  # signed by the thief, in the victim's name
        dataclasses.replace(good, tombstone=True, value=b"", seq=99),
        dataclasses.replace(good, value=b"stolen"),  # a "proof" against the victim
    ):
        assert replica.offer(attempt.to_bytes()) == "signature"
    # Its own slot, under its own name, is all a thief may fill.
    assert replica.offer(stolen.to_bytes()) == ("not-member" if thief is victim else "")
    assert replica.store.held(good.slot) == good
    assert replica.store.proofs == ()
    assert replica.offer(signed(KEYS[victim], b"next", seq=6).to_bytes(), KEYS[victim]) == ""


def test_an_owner_cannot_lock_its_slot_for_ever() -> None:
    replica = Replica()
    key = KEYS[KeyType.SECP256K1]
    assert replica.offer(signed(key, seq=2**64 - 1).to_bytes()) == "future"
    assert replica.offer(signed(key, seq=int(NOW * 1000)).to_bytes()) == ""
