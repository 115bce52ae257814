"""Every refusal, their order, and the reasons people are given."""

from __future__ import annotations

import contextlib
import dataclasses
import enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mesh.errors import ConfigError, LocalProtocolError, RecordRejected
from mesh.identity import PeerKey, is_signature
from mesh.kad.key import key_of_peer
from mesh.kad.quota import NamespaceQuota, Quota
from mesh.kad.rate import RateConfig, SenderRates
from mesh.kad.record import Record, sign_record
from mesh.kad.store import RecordStore, StoreConfig
from mesh.kad.validator import (
    OTHER,
    REASONS,
    BlockPosition,
    NamespaceRule,
    Purpose,
    RecordValidator,
    ValidatorConfig,
    epoch_of,
    no_backdating,
    once_per_epoch,
    pack_value,
    unpack_value,
    window,
)
from mesh.peer import PeerID

NOW = 1_800_000_000.0
GENESIS = b"\x01" * 32
ALICE, BOB = PeerKey.dev("alice"), PeerKey.dev("bob")


class Colour(enum.StrEnum):
    RED = "red"


class Inner(BaseModel):
    digest: bytes


class Claim(BaseModel):
    name: str
    score: int
    parts: tuple[int, ...] = ()
    inner: Inner | None = None
    colour: Colour = Colour.RED


def odd(record: Record, position: BlockPosition | None) -> None:
    if unpack_value(Claim, record.value).score % 2 == 0:
        raise RecordRejected("even", "scores are odd here")


RULES = (
    NamespaceRule("raw", max_value_bytes=16, max_ttl_s=100.0, max_records_per_owner=2),
    NamespaceRule("claim", schema=Claim, max_ttl_s=100.0, predicate=[window(8, 15), odd]),
    NamespaceRule("open", max_ttl_s=100.0, members_only=False),
)
CLAIM = pack_value(Claim(name="a", score=1, parts=(1, 2), inner=Inner(digest=b"\x00\xff")))


def signed(name: bytes = b"raw/a", value: bytes = b"v", key: PeerKey = ALICE, **changes: object) -> Record:
    fields: dict[str, object] = {
        "expiry_ms": int((NOW + 60) * 1000), "seq": 1, "subnet_id": 1, "genesis": GENESIS, **changes
    }  # fmt: skip
    return sign_record(key, name, value, **fields)  # type: ignore[arg-type]


class Counting:
    """Signature checks, counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, public: bytes, message: bytes, signature: bytes) -> bool:
        self.calls += 1
        return is_signature(public, message, signature)


def validator(verify: Counting | None = None, **config: object) -> RecordValidator:
    settings = ValidatorConfig.model_validate(config)
    return RecordValidator(RULES, subnet_id=1, genesis=GENESIS, config=settings, verify=verify or Counting())


def check(
    record: Record,
    *,
    purpose: Purpose = Purpose.STORE,
    position: BlockPosition | None = None,
    by: RecordValidator | None = None,
    sender: PeerID | None = None,
    held: RecordStore | None = None,
) -> None:
    (by or validator()).validate(
        record,
        purpose=purpose,
        now=NOW,
        is_member=lambda peer: peer == ALICE.peer_id,
        position=position,
        sender=sender,
        held=held,
    )


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        ("namespace", signed(b"unheard-of/x")),
        ("namespace", signed(b"raw")),
        ("namespace", signed(b"raw/")),
        ("genesis", signed(genesis=b"\x02" * 32)),
        ("subnet", signed(subnet_id=2)),
        ("size", signed(value=b"x" * 17)),
        ("expired", signed(expiry_ms=int(NOW * 1000))),
        ("ttl", signed(expiry_ms=int((NOW + 111) * 1000))),
        ("not-member", signed(key=BOB)),
        ("signature", dataclasses.replace(signed(), value=b"w")),
        ("signature", dataclasses.replace(signed(), seq=2)),
        ("signature", dataclasses.replace(signed(), tombstone=True, value=b"")),
        ("signature", dataclasses.replace(signed(), signature=b"\x00" * 64)),
        ("signature", dataclasses.replace(signed(key=BOB), public_key_pb=ALICE.public_key_pb)),
    ],
)
def test_each_refusal_has_its_reason_for_storing_and_for_reading(reason: str, record: Record) -> None:
    for purpose in Purpose:
        with pytest.raises(RecordRejected) as caught:
            check(record, purpose=purpose)
        assert caught.value.reason == reason


def test_good_records_pass() -> None:
    check(signed())
    check(signed(b"open/x", key=BOB))
    check(signed(b"claim/5/a", CLAIM), position=BlockPosition(110, 5, 10, 20))
    check(signed(b"raw/a", b"", tombstone=True))
    check(signed(b"claim/5/a", b"", tombstone=True), position=BlockPosition(110, 5, 10, 20))


@pytest.mark.parametrize(("block", "is_open"), [(105, False), (106, True), (108, True), (117, True), (118, False)])
def test_windows_are_blocks_of_the_keys_epoch_give_or_take_two(block: int, is_open: bool) -> None:
    """Epoch 5 of 20 blocks begins at block 100; the window is its blocks 8 to 15."""
    position = BlockPosition(block, block // 20, block % 20, 20)
    record = signed(b"claim/5/a", CLAIM)
    if is_open:
        check(record, position=position)
    else:
        with pytest.raises(RecordRejected, match="window"):
            check(record, position=position)
    check(record, purpose=Purpose.READ, position=position)  # reading is not bound to the window


def test_a_window_may_reach_into_the_next_epoch() -> None:
    rule = NamespaceRule("late", max_ttl_s=100.0, predicate=window(22, 24, slack=0))
    late = RecordValidator([rule], subnet_id=1, genesis=GENESIS)
    check(signed(b"late/5"), position=BlockPosition(123, 6, 3, 20), by=late)
    with pytest.raises(RecordRejected, match="window"):
        check(signed(b"late/5"), position=BlockPosition(119, 5, 19, 20), by=late)


def test_without_a_block_windows_are_closed() -> None:
    with pytest.raises(RecordRejected, match="window"):
        check(signed(b"claim/5/a", CLAIM), position=None)


@pytest.mark.parametrize("name", [b"claim/x", b"claim/05/a", b"claim/-1", b"claim/5x/a", b"claim/ 5"])
def test_an_epoch_has_one_spelling(name: bytes) -> None:
    with pytest.raises(RecordRejected, match="key"):
        epoch_of(name)


def test_checks_run_cheapest_first_and_stop() -> None:
    verify = Counting()
    store = RecordStore(key_of_peer(ALICE.peer_id))
    by = validator(verify)
    wrong_everywhere = dataclasses.replace(signed(key=BOB, expiry_ms=5), value=b"x" * 99)
    with pytest.raises(RecordRejected, match="size"):
        check(wrong_everywhere, by=by)
    forged_and_stranger = dataclasses.replace(signed(key=BOB), value=b"w")
    with pytest.raises(RecordRejected, match="not-member"):
        check(forged_and_stranger, by=by)
    held = signed(seq=5)
    store.put(held, max_per_owner=2)
    for record, reason in ((held, "duplicate"), (signed(seq=4), "older")):
        with pytest.raises(RecordRejected, match=reason):
            check(record, by=by, held=store)
    bad_schema = dataclasses.replace(signed(b"claim/5/a", b"\xff"), signature=b"x")
    with pytest.raises(RecordRejected, match="schema"):
        check(bad_schema, by=by, position=BlockPosition(110, 5, 10, 20))
    assert verify.calls == 0  # none of these cost a signature check


def test_predicates_judge_the_value() -> None:
    even = signed(b"claim/5/a", pack_value(Claim(name="a", score=2)))
    with pytest.raises(RecordRejected, match="even"):
        check(even, position=BlockPosition(110, 5, 10, 20))


def test_a_signature_is_verified_once_but_every_other_signature_anew() -> None:
    verify = Counting()
    by = validator(verify, verified_cache=2)
    record = signed()
    check(record, by=by)
    check(record, by=by)
    assert verify.calls == 1
    # Same content, other signature: its digest is the same, it must not pass as verified.
    with pytest.raises(RecordRejected, match="signature"):
        check(dataclasses.replace(record, signature=b"\x01" * 64), by=by)
    for seq in (2, 3):
        check(signed(seq=seq), by=by)
    check(record, by=by)
    assert verify.calls == 5  # forgotten meanwhile: the cache holds two


def test_senders_are_held_to_a_rate() -> None:
    by = validator(rate={"records_per_s": 1, "burst_records": 3})
    for seq in range(3):
        check(signed(seq=seq), by=by, sender=BOB.peer_id)
    with pytest.raises(RecordRejected, match="rate"):
        check(signed(seq=9), by=by, sender=BOB.peer_id)
    check(signed(seq=9), by=by, sender=ALICE.peer_id)
    check(signed(seq=9), by=by)  # our own


def test_buckets_refill_and_senders_are_bounded() -> None:
    rates = SenderRates(RateConfig(records_per_s=1, burst_records=1, bytes_per_s=10, burst_bytes=100, max_senders=2))
    rates.spend(ALICE.peer_id, 50, now=0.0)
    with pytest.raises(RecordRejected):
        rates.spend(ALICE.peer_id, 50, now=0.5)
    rates.spend(ALICE.peer_id, 50, now=1.0)
    with pytest.raises(RecordRejected):
        rates.spend(ALICE.peer_id, 50, now=2.0)  # bytes: 100 - 100 + 20
    for number in range(10):
        rates.spend(PeerKey.dev(f"s{number}").peer_id, 1, now=3.0)
    assert len(rates) == 2


def test_explain_runs_every_check() -> None:
    record = dataclasses.replace(signed(b"claim/5/a", b"\xff", key=BOB, subnet_id=9), signature=b"x")
    lines = [str(v) for v in validator().explain(record, now=NOW + 999, member=False, position=None)]
    assert [line.split(":")[0] for line in lines] == [
        "size", "namespace", "expiry", "seq", "window", "membership", "quota", "schema", "predicate", "signature"
    ]  # fmt: skip
    refused = [line for line in lines if "REFUSED" in line]
    assert len(refused) == 7
    assert "REFUSED (subnet)" in lines[1]
    unknown = validator().explain(signed(b"nope/x"), now=NOW, member=True)
    assert {v.reason for v in unknown} == {None, "namespace"}


def test_rules_are_checked() -> None:
    with pytest.raises(ConfigError, match="two rules"):
        RecordValidator([RULES[0], RULES[0]], subnet_id=1, genesis=GENESIS)
    for wrong in ({"namespace": "A/b"}, {"namespace": ""}, {"max_value_bytes": 10**9}, {"max_ttl_s": 0.0}):
        with pytest.raises(ConfigError):
            NamespaceRule(**{"namespace": "x", **wrong})  # type: ignore[arg-type]


# --- what a bad signature costs, and whom ---


def forged(number: int, name: bytes = b"raw/a") -> Record:
    return dataclasses.replace(signed(name, seq=number + 1), signature=b"\x01" * 64)


def offer(by: RecordValidator, record: Record, sender: PeerID, now: float) -> str:
    """The reason of the refusal, or nothing."""
    try:
        by.validate(record, purpose=Purpose.STORE, now=now, is_member=lambda peer: True, sender=sender)
    except RecordRejected as error:
        return error.reason
    return ""


def test_a_sender_whose_signatures_fail_is_refused_outright_for_a_time() -> None:
    verify = Counting()
    by = validator(verify, rate={"max_failures": 3, "refuse_s": 30.0})
    reasons = [offer(by, forged(n), BOB.peer_id, NOW) for n in range(5)]
    assert reasons == ["signature"] * 3 + ["rate"] * 2
    assert offer(by, signed(), BOB.peer_id, NOW + 29) == "rate"  # good ones, too
    with pytest.raises(RecordRejected, match="rate"):
        by.check_sender(BOB.peer_id, now=NOW + 29)
    by.check_sender(ALICE.peer_id, now=NOW + 29)
    assert verify.calls == 3
    assert offer(by, signed(), BOB.peer_id, NOW + 31) == ""
    assert by.refused["signature"] == 3
    assert by.refused["rate"] == 3


def test_who_cannot_pay_for_a_failure_is_refused_sooner() -> None:
    by = validator(rate={"burst_records": 10, "records_per_s": 1, "failure_cost": 6, "max_failures": 100})
    assert [offer(by, forged(n), BOB.peer_id, NOW) for n in range(3)] == ["signature", "signature", "rate"]


def test_eight_thousand_bad_signatures_per_second_of_one_sender_are_few_checks() -> None:
    """By count, not by clock: over 20 s, the checks are a handful; without the penalty they are its rate."""
    for cost, most in ((50.0, 8), (0.0, 20 * 100 + 500)):
        verify = Counting()
        rate = {"failure_cost": cost} if cost else {"failure_cost": 0.0, "max_failures": 10**9}
        by = validator(verify, rate=rate)
        bad = forged(0)
        for tick in range(20 * 800):  # each stands for ten, of which nine are refused by the same rule
            offer(by, bad, BOB.peer_id, NOW + tick / 800)
        assert 0 < verify.calls <= most
        assert by.refused["signature"] == verify.calls


def test_a_thousand_senders_share_one_budget_and_do_not_keep_out_those_that_proved_good() -> None:
    verify = Counting()
    by = validator(verify, rate={"checks_per_s": 200.0, "unproven_share": 0.25, "max_failures": 100})
    senders = [PeerID(b"\x00\x04" + number.to_bytes(4, "big")) for number in range(1000)]
    assert offer(by, signed(b"open/x"), ALICE.peer_id, NOW) == ""
    for second in range(5):
        for number, sender in enumerate(senders):
            offer(by, forged(number), sender, NOW + second)
        # One that is known is served in every second of it; one that is not has to wait.
        assert offer(by, signed(b"open/x", seq=2 + second), ALICE.peer_id, NOW + second) == ""
        assert offer(by, signed(b"open/y", seq=2 + second), BOB.peer_id, NOW + second) == "rate"
    assert verify.calls <= 6 + 50 + 4 * 50  # the burst is one second's worth
    assert offer(by, signed(b"open/y", seq=99), BOB.peer_id, NOW + 10) == ""


def test_a_proven_sender_that_fails_is_unproven_again_and_none_exceeds_the_whole_budget() -> None:
    rates = SenderRates(RateConfig(checks_per_s=4.0, unproven_share=0.25))
    rates.on_good(ALICE.peer_id)
    for _ in range(4):
        rates.spend_check(ALICE.peer_id, key_bytes=36, now=NOW)
    with pytest.raises(RecordRejected, match="4 signatures/s"):
        rates.spend_check(ALICE.peer_id, key_bytes=36, now=NOW)
    rates.spend_check(ALICE.peer_id, key_bytes=1067, now=NOW + 5)  # the largest RSA key takes four of them
    with pytest.raises(RecordRejected, match="4 signatures/s"):
        rates.spend_check(ALICE.peer_id, key_bytes=36, now=NOW + 5)
    rates.on_bad(ALICE.peer_id, now=NOW + 10)
    rates.spend_check(ALICE.peer_id, key_bytes=36, now=NOW + 10)
    with pytest.raises(RecordRejected, match="new to it"):
        rates.spend_check(ALICE.peer_id, key_bytes=36, now=NOW + 10)


def test_what_is_refused_before_the_signature_costs_none() -> None:
    verify = Counting()
    by = validator(verify)
    for number in range(1000):
        for record in (forged(number, b"nope/x"), forged(number, b"claim/5/a"), forged(number, b"raw/" + b"x" * 99)):
            offer(by, dataclasses.replace(record, subnet_id=2), BOB.peer_id, NOW + number)
    assert verify.calls == 0


def test_a_sender_is_charged_at_a_time() -> None:
    with pytest.raises(ValueError, match="now"):
        validator().check_content(signed(), purpose=Purpose.STORE, member=True, sender=BOB.peer_id)


def test_refusals_are_counted_under_few_names() -> None:
    by = validator()
    position = BlockPosition(110, 5, 10, 20)
    even = signed(b"claim/5/a", pack_value(Claim(name="a", score=2)))
    for record in (even, even, signed(b"nope/x"), signed(subnet_id=7), signed()):
        with contextlib.suppress(RecordRejected):
            check(record, by=by, position=position)
    by.explain(signed(b"nope/x"), now=NOW, member=True)
    assert {reason: count for reason, count in by.refused.items() if count} == {
        OTHER: 2, "namespace": 1, "subnet": 1
    }  # fmt: skip
    assert set(by.refused) == {*REASONS, OTHER}


# --- seqs, quotas and places ---


def test_a_seq_far_ahead_is_refused_when_storing_only() -> None:
    ahead = int((NOW + 3599) * 1000)
    check(signed(seq=ahead))
    for seq in (ahead + 2000, 2**64 - 1):
        with pytest.raises(RecordRejected, match="future"):
            check(signed(seq=seq))
        check(signed(seq=seq), purpose=Purpose.READ)


def test_a_namespace_has_a_quota_in_all_and_by_owner() -> None:
    per_owner, in_all = Quota(max_records=2), Quota(max_records=3, max_bytes=10_000)
    rule = NamespaceRule("q", max_ttl_s=100.0, members_only=False, quota=NamespaceQuota(in_all, per_owner))
    by = RecordValidator([rule], subnet_id=1, genesis=GENESIS)
    store = RecordStore(key_of_peer(ALICE.peer_id))

    def place(record: Record) -> str:
        try:
            check(record, by=by, held=store)
            store.put(record, max_per_owner=9, quota=rule.quota)
        except RecordRejected as error:
            return error.reason
        return ""

    assert [place(signed(b"q/%d" % n)) for n in range(3)] == ["", "", "quota"]
    assert place(signed(b"q/1", seq=2)) == ""  # a newer one takes no other place
    assert place(signed(b"q/1", key=BOB, value=b"x" * 10_000)) == "quota"
    assert place(signed(b"q/1", key=BOB)) == ""
    assert place(signed(b"q/2", key=BOB)) == "quota"
    store.expire(NOW + 1000)
    assert place(signed(b"q/2", key=BOB)) == ""


def test_one_peer_cannot_make_us_hold_more_than_its_share() -> None:
    store = RecordStore(key_of_peer(ALICE.peer_id), StoreConfig(max_records=8, max_sender_share=0.25))
    owners = [PeerKey.dev(f"o{n}") for n in range(4)]
    for number in range(2):
        store.put(signed(b"raw/%d" % number, key=owners[number]), max_per_owner=2, sender=BOB.peer_id)
    third = signed(b"raw/3", key=owners[3])
    with pytest.raises(RecordRejected, match=r"sender .* at most 2 records"):
        store.check(third, max_per_owner=2, sender=BOB.peer_id)
    store.put(third, max_per_owner=2, sender=ALICE.peer_id)
    # Once another sender brings a newer one, it counts on that one's share.
    store.put(signed(b"raw/0", key=owners[0], seq=2), max_per_owner=2, sender=ALICE.peer_id)
    store.put(signed(b"raw/4", key=owners[2]), max_per_owner=2, sender=BOB.peer_id)


def test_a_closed_window_holds_for_tombstones_and_not_for_readers_whoever_closes_it() -> None:
    def early(record: Record, position: BlockPosition | None) -> None:
        """A predicate of a subnet's own, that is no StoreWindow and reads the value."""
        window(0, 3, slack=0)(record, position)
        odd(record, position)

    rule = NamespaceRule("own", schema=Claim, max_ttl_s=100.0, predicate=early)
    by = RecordValidator([rule], subnet_id=1, genesis=GENESIS)
    claim, gone = signed(b"own/5", CLAIM), signed(b"own/5", b"", tombstone=True)
    for record in (claim, gone):
        check(record, by=by, position=BlockPosition(102, 5, 2, 20))
        with pytest.raises(RecordRejected, match="window"):
            check(record, by=by, position=BlockPosition(110, 5, 10, 20))
        check(record, by=by, position=BlockPosition(110, 5, 10, 20), purpose=Purpose.READ)


def test_once_per_epoch_whatever_the_spelling() -> None:
    rule = NamespaceRule("once", max_ttl_s=100.0, predicate=once_per_epoch())
    by = RecordValidator([rule], subnet_id=1, genesis=GENESIS)
    check(signed(b"once/5"), by=by)
    check(signed(b"once/5", b"", tombstone=True), by=by)
    for tombstone in (False, True):
        for name, subkey in (
            (b"once/05", b""),
            (b"once/5/", b""),
            (b"once/5/a", b""),
            (b"once/x", b""),
            (b"once/5", b"s"),
        ):
            with pytest.raises(RecordRejected, match=r"key|subkey"):
                check(signed(name, b"", subkey=subkey, tombstone=tombstone), by=by)


@pytest.mark.parametrize(
    ("block", "seq_s", "reason"),
    [
        (110, 0.0, None),
        (110, -100.0, None),  # 10 blocks of 6 s, half as much again, and the clocks' 10 s
        (110, -101.0, "backdated"),
        (98, 0.0, None),  # within the slack in blocks before it begins
        (98, -11.0, "backdated"),
        (97, 0.0, "window"),
        (141, -300.0, None),
        (142, 0.0, "window"),  # the epoch and one more are over, and two blocks
    ],
)
def test_no_backdating(block: int, seq_s: float, reason: str | None) -> None:
    """Epoch 5 of 20 blocks begins at block 100."""
    rule = NamespaceRule("when", max_ttl_s=100.0, predicate=no_backdating(later=1))
    by = RecordValidator([rule], subnet_id=1, genesis=GENESIS)
    record = signed(b"when/5/a", seq=int((NOW + seq_s) * 1000))
    position = BlockPosition(block, block // 20, block % 20, 20)
    if reason is None:
        check(record, by=by, position=position)
    else:
        with pytest.raises(RecordRejected) as caught:
            check(record, by=by, position=position)
        assert caught.value.reason == reason
    check(record, by=by, purpose=Purpose.READ, position=position)
    with pytest.raises(RecordRejected, match="window"):
        check(record, by=by, position=None)


def test_no_backdating_is_configured_sensibly() -> None:
    for wrong in ({"later": -1}, {"block_s": 0.0}, {"slack": -1}, {"slack_s": -1.0}):
        with pytest.raises(ConfigError):
            no_backdating(**wrong)  # type: ignore[arg-type]


# --- values ---


def test_values_come_back_as_they_went() -> None:
    claim = Claim(name="é", score=-3, parts=(1, 2**63), inner=Inner(digest=bytes(range(256))))
    assert unpack_value(Claim, pack_value(claim)) == claim


def _msgpack(value: object) -> bytes:
    import msgpack

    return bytes(msgpack.packb(value))


FULL = {"name": "a", "score": 1, "parts": [], "inner": None, "colour": "red"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        _msgpack([1]),
        _msgpack({**FULL, "score": "1"}),
        _msgpack({**FULL, "score": 1.0}),
        _msgpack({**FULL, "score": True}),
        _msgpack({**FULL, "name": b"a"}),
        _msgpack({**FULL, "more": 1}),
        _msgpack({k: v for k, v in FULL.items() if k != "colour"}),
        _msgpack(dict(reversed(FULL.items()))),
        _msgpack({**FULL, "colour": "blue"}),
        _msgpack(FULL) + b"\x00",
        b"\x85" + _msgpack(FULL)[1:].replace(b"\xa5score\x01", b"\xa5score\xcc\x01"),
        b"\x91" * 5000 + b"\x90",
    ],
)
def test_nothing_is_coerced_filled_in_or_left_out(data: bytes) -> None:
    with pytest.raises(RecordRejected) as caught:
        unpack_value(Claim, data)
    assert caught.value.reason == "schema"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        value = unpack_value(Claim, data)
    except RecordRejected as error:
        reason: str | None = error.reason
    else:
        reason = None if pack_value(value) == data else "not canonical"
    assert reason in (None, "schema")


def test_what_msgpack_has_no_form_for_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        pack_value(Claim(name="a", score=2**70))
