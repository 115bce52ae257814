"""An epoch's agreement as pure functions: who may say what, and what an honest node answers to a lie."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import sys
from types import ModuleType

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.chain.types import MAX_ARGS_BYTES, NodeClass, Score
from mesh.consensus.round import (
    MAX_DIGESTS,
    MAX_EVIDENCE_BYTES,
    MAX_INVENTORY_RECORD_BYTES,
    Added,
    Choice,
    Decision,
    Inventory,
    InventoryBook,
    ProposalArgs,
    RoundContext,
    Thresholds,
    check_inventory,
    check_record,
    choose,
    collapsed,
    decode_args,
    decode_blob,
    eligible,
    encode_args,
    encode_blob,
    evidence_of,
    inventory_key,
    inventory_rule,
    judge_empty,
    judge_scores,
    judgement_of,
    make_blob,
    make_inventory,
    named,
    read_proposal,
    refusal_rule,
    select_records,
    thresholds,
    verify_blob,
)
from mesh.errors import ConsensusError, LocalProtocolError, RecordRejected, RemoteProtocolError
from mesh.kad.record import MAX_VALUE_BYTES, Record
from mesh.kad.validator import BlockPosition, Purpose, RecordValidator, pack_value

from .toy import EPOCH, GENESIS, KEYS, LABELS, SNAPSHOT_HASH, SUBNET, context, inventory, note, signed, snapshot

FOUR = LABELS[:4]
A, B, C, D = (KEYS[label].peer_id for label in FOUR)


def reason_of(error: pytest.ExceptionInfo[ConsensusError]) -> str:
    return error.value.reason


# --- thresholds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "need", "naming"),
    [(1, 1, 1), (2, 2, 2), (3, 2, 2), (4, 3, 2), (5, 4, 2), (6, 5, 2), (7, 5, 3), (10, 7, 4), (256, 171, 86)],
)
def test_thresholds_are_n_minus_f_and_f_plus_one(n: int, need: int, naming: int) -> None:
    assert thresholds(n) == Thresholds(need, naming)


def test_without_validators_there_is_no_round() -> None:
    with pytest.raises(ConsensusError) as error:
        thresholds(0)
    assert reason_of(error) == "no-validators"


@given(st.integers(4, 300))
def test_what_all_honest_nodes_name_is_in_every_choice_and_what_none_names_in_no_choice(n: int) -> None:
    faulty = (n - 1) // 3
    limits = thresholds(n)
    assert limits.need - faulty >= limits.naming  # even if all faulty ones are among the chosen and silent
    assert faulty < limits.naming  # and they cannot bring anything in alone


# --- what is a record, what an inventory --------------------------------------------------------------------------


def test_records_of_this_epoch_by_nodes_of_the_snapshot_are_evidence() -> None:
    check_record(note("ada", "one"), context())


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(note("ada", "x", key=b"note/4"), id="another epoch"),
        pytest.param(note("gus", "x"), id="owner not in the snapshot"),
        pytest.param(note("ada", "x", genesis=b"\x08" * 32), id="another chain"),
        pytest.param(note("ada", "x", subnet_id=SUBNET + 1), id="another subnet"),
        pytest.param(signed("ada", b"note/3", b"\x81\xa4text\x01"), id="schema"),
        pytest.param(signed("ada", b"note/3", b"", tombstone=True), id="tombstone"),
        pytest.param(dataclasses.replace(note("ada", "x"), signature=b"\0" * 64), id="signature"),
        pytest.param(dataclasses.replace(note("ada", "x"), value=note("ada", "y").value), id="value changed"),
    ],
)
def test_everything_else_is_no_evidence(record: Record) -> None:
    with pytest.raises(ConsensusError) as error:
        check_record(record, context())
    assert reason_of(error) == "record"


def test_windows_and_expiry_do_not_matter_for_a_past_epoch() -> None:
    check_record(note("ada", "old", expiry_ms=1), context())  # `window` rule and wall clock both long past


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(inventory("eve", []), id="no validator"),
        pytest.param(inventory("ada", [], snapshot=b"\x44" * 32), id="another snapshot"),
        pytest.param(inventory("ada", [], epoch=4), id="another epoch inside"),
        pytest.param(inventory("ada", [], key=inventory_key(4), epoch=4), id="another epoch"),
        pytest.param(inventory("ada", [], subkey=b"second"), id="subkey"),
        pytest.param(dataclasses.replace(inventory("ada", []), signature=b"\1" * 64), id="signature"),
        pytest.param(
            signed("ada", inventory_key(EPOCH), msgpack.packb(
                {"epoch": EPOCH, "snapshot": SNAPSHOT_HASH, "digests": [b"\2" * 32, b"\1" * 32]})),
            id="unsorted",
        ),
        pytest.param(
            signed("ada", inventory_key(EPOCH), msgpack.packb(
                {"epoch": EPOCH, "snapshot": SNAPSHOT_HASH, "digests": [b"\1" * 32, b"\1" * 32]})),
            id="twice",
        ),
        pytest.param(
            signed("ada", inventory_key(EPOCH), msgpack.packb(
                {"epoch": EPOCH, "snapshot": SNAPSHOT_HASH, "digests": [b"\1" * 31]})),
            id="short digest",
        ),
    ],
)  # fmt: skip
def test_what_is_no_inventory(record: Record) -> None:
    with pytest.raises(ConsensusError) as error:
        check_inventory(record, context((*FOUR, "eve"), eve={"node_class": NodeClass.INCLUDED}))
    assert reason_of(error) == "inventory"


def test_the_largest_inventory_fits_a_record() -> None:
    digests = tuple(sorted(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(MAX_DIGESTS)))
    value = pack_value(Inventory(epoch=2**32 - 1, snapshot=SNAPSHOT_HASH, digests=digests))
    assert len(value) <= MAX_VALUE_BYTES


@pytest.mark.parametrize(
    ("offset", "epoch", "taken"),
    [(16, EPOCH, False), (17, EPOCH, True), (19, EPOCH, True), (1, EPOCH + 1, True), (2, EPOCH + 1, False)],
)
def test_inventories_are_stored_at_the_epochs_end_only(offset: int, epoch: int, taken: bool) -> None:
    validator = RecordValidator([inventory_rule(), refusal_rule()], subnet_id=SUBNET, genesis=GENESIS)
    position = BlockPosition(60 + offset, epoch, offset, 20)
    record = inventory("ada", [])
    now = record.expiry_ms / 1000 - 600
    if taken:
        validator.check_envelope(record, purpose=Purpose.STORE, now=now, position=position)
    else:
        with pytest.raises(RecordRejected) as error:
            validator.check_envelope(record, purpose=Purpose.STORE, now=now, position=position)
        assert error.value.reason == "window"
    validator.check_content(record, purpose=Purpose.STORE, member=True, position=position)


def test_inventory_lists_valid_records_only_sorted() -> None:
    good = [note("ada", "1"), note("bob", "2"), note("cyd", "3")]
    bad = [note("gus", "4"), note("ada", "5", key=b"note/2")]
    made = make_inventory([*bad, *good], context())
    assert made.digests == tuple(sorted(r.digest for r in good))


def test_a_flood_displaces_the_flooders_own_records_first() -> None:
    flood = [note("dan", f"{i}") for i in range(60)]
    few = [note(label, "work") for label in FOUR[:3]]
    chosen = select_records([*flood, *few], context(), max_records=10)
    assert {r.digest for r in few} <= {r.digest for r in chosen}
    assert len(chosen) == 10
    bounded = select_records([*flood, *few], context(), max_bytes=5 * len(few[0].to_bytes()))
    assert {r.digest for r in few} <= {r.digest for r in bounded}
    assert sum(len(r.to_bytes()) for r in bounded) <= 5 * len(few[0].to_bytes())


@given(st.lists(st.integers(1, 900), max_size=12), st.lists(st.integers(1, 900), min_size=1, max_size=12))
def test_whatever_others_send_an_owners_share_is_in(theirs: list[int], ours: list[int]) -> None:
    flood = [note(label, f"{label} {i} " + "x" * size) for label in FOUR[1:] for i, size in enumerate(theirs)]
    work = sorted((note("ada", f"{i} " + "y" * size) for i, size in enumerate(ours)), key=lambda r: r.digest)
    chosen = {r.digest for r in select_records([*flood, *work], context(), max_records=20, max_bytes=8000)}
    spent = 0
    for record in work:
        spent += max(400, len(record.to_bytes()))
        assert spent > 8000 // 4 or record.digest in chosen


# --- two inventories ----------------------------------------------------------------------------------------------


def test_two_inventories_of_one_owner_void_both_and_are_kept_as_proof() -> None:
    book = InventoryBook(context())
    one, two = inventory("dan", [note("ada", "1")]), inventory("dan", [], seq=1_800_000_000_001)
    for record in (inventory("ada", []), one, two, inventory("dan", [note("bob", "3")], seq=1_800_000_000_002)):
        book.add(record)
    assert set(book.valid()) == {A}
    assert book.proofs() == {D: (one, two)}
    assert book.heard() == {A, D}
    assert book.records([D]) == (one, two)


def test_the_same_inventory_signed_again_is_one_inventory() -> None:
    book = InventoryBook(context())
    first, again = inventory("ada", []), inventory("ada", [], seq=1_800_000_000_009)
    book.add(first)
    book.add(again)
    assert book.valid()[A][0] == min(first, again, key=lambda r: r.digest)
    assert not book.proofs()


def test_an_inventory_signed_a_thousand_times_takes_the_room_of_one() -> None:
    book, records = InventoryBook(context()), [note("ada", "1")]
    signed_again = [inventory("ada", records, seq=1_800_000_000_000 + n) for n in range(1000)]
    assert book.add(signed_again[0]) is Added.NEW
    before = asizeof(book)
    assert {book.add(record) for record in signed_again[1:]} == {Added.KNOWN}
    assert asizeof(book) <= before + 4096
    assert book.records([A]) == (min(signed_again, key=lambda r: r.digest),)


def asizeof(root: object) -> int:
    """Bytes of everything reachable but classes and modules, roughly: enough to see growth."""
    seen: set[int] = set()
    stack, size = [root], 0
    while stack:
        one = stack.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | RoundContext):
            continue
        seen.add(id(one))
        size += sys.getsizeof(one)
        stack += gc.get_referents(one)
    return size


def test_a_book_takes_nothing_that_is_no_inventory() -> None:
    book = InventoryBook(context())
    with pytest.raises(ConsensusError):
        book.add(inventory("gus", []))
    assert not book.heard()


# --- choosing -----------------------------------------------------------------------------------------------------


def inv(*digests: bytes) -> Inventory:
    return Inventory(epoch=EPOCH, snapshot=SNAPSHOT_HASH, digests=tuple(sorted(digests)))


X, Y, Z = (bytes([n]) * 32 for n in (1, 2, 3))


def test_the_evidence_is_what_enough_inventories_name() -> None:
    lists = {A: inv(X, Y), B: inv(X), C: inv(X, Z), D: inv(Z)}
    assert named(lists.values(), 2) == (X, Z)
    assert choose(lists, held={X, Z}, limits=thresholds(4)) == Choice(tuple(sorted(lists)), (X, Z))


def test_an_inventory_that_makes_us_need_the_unknown_is_left_out_while_enough_remain() -> None:
    lists = {A: inv(X), B: inv(X), C: inv(X, Z), D: inv(Z)}
    chosen = choose(lists, held={X}, limits=thresholds(4))
    assert chosen.digests == (X,)
    assert len(chosen.owners) == 3


def test_no_proposal_when_a_needed_record_is_nowhere_or_inventories_are_too_few() -> None:
    lists = {A: inv(X, Z), B: inv(X, Z), C: inv(X, Z), D: inv(X, Z)}
    with pytest.raises(ConsensusError) as error:
        choose(lists, held={X}, limits=thresholds(4))
    assert reason_of(error) == "missing-records"
    with pytest.raises(ConsensusError) as error:
        choose({A: inv(X), B: inv(X)}, held={X}, limits=thresholds(4))
    assert reason_of(error) == "too-few-inventories"


def test_inventories_that_name_more_than_fits_are_left_out_while_enough_remain() -> None:
    many = tuple(bytes([n]) * 32 for n in range(1, 30))
    lists = {A: inv(*many), B: inv(*many[:10]), C: inv(*many[10:20]), D: inv(*many[20:])}
    sizes = dict.fromkeys(many, 10)
    chosen = choose(lists, held=set(many), limits=thresholds(4), sizes=sizes, max_bytes=150)
    assert chosen == Choice(tuple(sorted([B, C, D])), ())
    with pytest.raises(ConsensusError) as error:
        choose(
            dict.fromkeys((A, B, C, D), inv(*many)), held=set(many), limits=thresholds(4), sizes=sizes, max_bytes=289
        )
    assert reason_of(error) == "too-large"


@given(st.integers(1, 300))
def test_what_honest_inventories_name_always_fits(n: int) -> None:
    assert n * MAX_INVENTORY_RECORD_BYTES // thresholds(n).naming <= MAX_EVIDENCE_BYTES


@given(st.lists(st.frozensets(st.sampled_from([bytes([i]) * 32 for i in range(8)])), min_size=4, max_size=7), st.data())
def test_whatever_is_chosen_is_complete_and_enough(lists: list[frozenset[bytes]], data: st.DataObject) -> None:
    owners = [KEYS[label].peer_id for label in LABELS]
    inventories = {owner: inv(*digests) for owner, digests in zip(owners, lists, strict=False)}
    held = data.draw(st.frozensets(st.sampled_from([bytes([i]) * 32 for i in range(8)])))
    limits = thresholds(len(lists))
    try:
        choice = choose(inventories, held=held, limits=limits)
    except ConsensusError as error:
        assert error.reason == "missing-records"  # noqa: PT017
        return
    assert len(choice.owners) >= limits.need
    assert set(choice.digests) <= held
    assert choice.digests == named([inventories[o] for o in choice.owners], limits.naming)


# --- the blob -----------------------------------------------------------------------------------------------------


def honest_blob(ctx: RoundContext) -> tuple[bytes, list[Record]]:
    records = [note("ada", "1"), note("ada", "2"), note("bob", "3")]
    late = note("cyd", "late")  # reached one validator only
    inventories = [inventory(label, records) for label in FOUR[:2]]
    inventories += [inventory("cyd", [*records, late])]
    return encode_blob(make_blob(inventories, records)), records


def test_a_blob_says_the_same_to_everybody() -> None:
    data, records = honest_blob(context())
    assert verify_blob(data, context()) == tuple(sorted(records, key=lambda r: r.digest))
    assert encode_blob(decode_blob(data)) == data


def test_late_records_fall_out_because_too_few_name_them() -> None:
    records, late = [note("ada", "1")], note("dan", "late")
    inventories = [inventory(label, records) for label in FOUR[:2]] + [inventory("dan", [*records, late])]
    assert verify_blob(encode_blob(make_blob(inventories, records)), context()) == tuple(records)
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(make_blob(inventories, [*records, late])), context())
    assert reason_of(error) == "unlisted"


def test_a_dropped_record_shows() -> None:
    records = [note("ada", "1"), note("bob", "2")]
    inventories = [inventory(label, records) for label in FOUR]
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(make_blob(inventories, records[:1])), context())
    assert reason_of(error) == "dropped"


def test_too_few_inventories_show_also_when_an_owner_signed_two() -> None:
    two = [inventory("ada", []), inventory("bob", [])]
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(make_blob(two, [])), context())
    assert reason_of(error) == "too-few-inventories"
    pair = [inventory("cyd", []), inventory("cyd", [note("ada", "1")])]
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(make_blob([*two, *pair], [])), context())
    assert reason_of(error) == "too-few-inventories"


def test_a_proof_of_equivocation_rides_along_and_does_not_count() -> None:
    records = [note("ada", "1")]
    pair = [inventory("dan", records), inventory("dan", [note("bob", "forged")])]
    three = [inventory(label, records) for label in FOUR[:3]]
    assert verify_blob(encode_blob(make_blob([*three, *pair], records)), context()) == tuple(records)


def test_the_same_inventory_twice_is_no_way_to_more_votes() -> None:
    records = [note("ada", "1")]
    again = inventory("ada", records, seq=1_800_000_000_005)
    blob = make_blob([inventory("ada", records), again, inventory("bob", []), inventory("cyd", [])], records)
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(blob), context())
    assert reason_of(error) == "inventories"


def test_a_forged_record_or_inventory_shows() -> None:
    good = note("ada", "1")
    forged = dataclasses.replace(good, signature=bytes(64))
    inventories = [inventory(label, [good]) for label in FOUR]
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(make_blob(inventories, [forged])), context())
    assert reason_of(error) == "record"
    stranger = [*inventories[:2], inventory("gus", [good])]
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(make_blob(stranger, [good])), context())
    assert reason_of(error) == "inventory"


def test_three_validators_need_two_inventories_that_agree() -> None:
    ctx = context(FOUR[:3])
    record, single = note("ada", "1"), note("bob", "only one saw it")
    both = [inventory("ada", [record, single]), inventory("cyd", [record])]
    assert verify_blob(encode_blob(make_blob(both, [record])), ctx) == (record,)
    with pytest.raises(ConsensusError) as error:
        verify_blob(encode_blob(make_blob(both[:1], [record])), ctx)
    assert reason_of(error) == "too-few-inventories"


def test_oversize_evidence_is_neither_made_nor_read() -> None:
    data, _ = honest_blob(context())
    with pytest.raises(RemoteProtocolError, match="at most"):
        decode_blob(data, max_bytes=len(data) - 1)
    with pytest.raises(LocalProtocolError):
        encode_blob(decode_blob(data), max_bytes=len(data) - 1)


def test_other_forms_of_the_same_evidence_are_refused() -> None:
    data, _ = honest_blob(context())
    fields = msgpack.unpackb(data)
    for changed in (
        {**fields, "records": fields["records"][::-1]},
        {**fields, "records": [*fields["records"], fields["records"][-1]]},
        {**fields, "extra": 1},
        {**fields, "v": True},
        {**fields, "v": 2},
        {"v": 1, "records": fields["records"], "inventories": fields["inventories"]},
        {**fields, "records": {}},
        {**fields, "inventories": ["text"]},
    ):
        with pytest.raises(RemoteProtocolError):
            decode_blob(msgpack.packb(changed))
    for other in (data + b"\0", data[:-1], b""):
        with pytest.raises(RemoteProtocolError):
            decode_blob(other)


@given(st.binary(max_size=400))
def test_random_bytes_are_the_senders_fault(data: bytes) -> None:
    with pytest.raises((RemoteProtocolError, ConsensusError)):
        verify_blob(data, context())
    with pytest.raises((RemoteProtocolError, ConsensusError)):
        decode_args(data)


MSGPACKS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["v", "epoch", "snapshot", "evidence", "size", "score", "reason", "records", "inventories"]
            ),
            inner,
            max_size=7,
        )
    ),
    max_leaves=12,
)


@given(MSGPACKS)
def test_well_formed_nonsense_is_the_senders_fault_too(value: object) -> None:
    data = msgpack.packb(value)
    with pytest.raises((RemoteProtocolError, ConsensusError)):
        verify_blob(data, context())
    try:
        decode_args(data)
    except ConsensusError as error:
        assert error.reason in ("args", "unknown-version")  # noqa: PT017


@given(st.data())
def test_one_changed_byte_never_passes_unnoticed(data: st.DataObject) -> None:
    blob, _records = honest_blob(context())
    at = data.draw(st.integers(0, len(blob) - 1))
    changed = bytearray(blob)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((RemoteProtocolError, ConsensusError)):
        verify_blob(bytes(changed), context())


# --- args ---------------------------------------------------------------------------------------------------------


def args(**changes: object) -> ProposalArgs:
    fields: dict[str, object] = {
        "v": 1, "epoch": EPOCH, "snapshot": SNAPSHOT_HASH, "evidence": b"\5" * 32, "size": 10, "score": "toy/1.0.0"
    }  # fmt: skip
    return ProposalArgs.model_validate(fields | changes)


EMPTY = {"evidence": b"", "size": 0, "reason": "too-few-inventories"}


@given(
    st.builds(
        args, epoch=st.integers(0, 2**32 - 1), evidence=st.binary(min_size=32, max_size=32),
        size=st.integers(1, 2**40), score=st.text(min_size=1, max_size=128),
    )
)  # fmt: skip
def test_args_come_back_as_they_were(made: ProposalArgs) -> None:
    data = encode_args(made)
    assert len(data) <= MAX_ARGS_BYTES
    assert decode_args(data) == made


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "args"),
        (b"", "args"),
        (b"\xc1", "args"),
        (b"\x80" * 5000, "args"),
        (encode_args(args(v=2)), "unknown-version"),
        (encode_args(args())[:-1], "args"),
        (encode_args(args(score="toy/2.0.0")), "unknown-score-id"),
        (encode_args(args(epoch=EPOCH + 1)), "wrong-epoch"),
        (encode_args(args(snapshot=b"\0" * 32)), "wrong-snapshot"),
        (encode_args(args(size=2**40)), "oversize"),
        (encode_args(args(**EMPTY | {"reason": "tired"})), "empty-reason"),
        (msgpack.packb({**args().model_dump(), "evidence": b""}), "args"),
        (msgpack.packb({**args().model_dump(), **EMPTY, "reason": ""}), "args"),
        (msgpack.packb({**args().model_dump(), "size": 0}), "args"),
    ],
)
def test_args_that_say_something_else_are_not_attested(data: bytes | None, reason: str) -> None:
    with pytest.raises(ConsensusError) as error:
        read_proposal(data, context())
    assert reason_of(error) == reason
    abstains = reason in ("unknown-version", "unknown-score-id")
    assert judgement_of(error.value).decision is (Decision.ABSTAIN if abstains else Decision.REFUSE)


def test_args_of_an_honest_proposal_are_read() -> None:
    assert read_proposal(encode_args(args()), context()) == args()
    assert read_proposal(encode_args(args(**EMPTY)), context()).reason == "too-few-inventories"


# --- scores -------------------------------------------------------------------------------------------------------


def test_equal_scores_are_attested_in_any_order() -> None:
    ours, theirs = [Score(1, 5), Score(2, 7)], [Score(2, 7), Score(1, 5)]
    assert judge_scores(ours, theirs, eligible_ids={1, 2}).decision is Decision.ATTEST
    assert judge_scores([], [], eligible_ids={1}).decision is Decision.ATTEST


@pytest.mark.parametrize(
    "theirs", [[Score(1, 5)], [Score(1, 5), Score(2, 8)], [Score(1, 5), Score(2, 7), Score(3, 0)], []]
)
def test_altered_added_or_left_out_scores_are_refused(theirs: list[Score]) -> None:
    verdict = judge_scores([Score(1, 5), Score(2, 7)], theirs, eligible_ids={1, 2, 3})
    assert (verdict.decision, verdict.reason) == (Decision.REFUSE, "scores")


def test_what_the_chain_filters_and_collapses_is_still_equal() -> None:
    ours = [Score(1, 5), Score(1, 4), Score(2, 7)]
    assert collapsed(ours) == {1: 4, 2: 7}
    assert judge_scores(ours, [Score(1, 4)], eligible_ids={1}).decision is Decision.ATTEST


def test_eligible_are_nodes_included_or_better_in_every_snapshot() -> None:
    before = snapshot(FOUR, ada={"node_class": NodeClass.IDLE}, bob={"start_epoch": 9})
    after = snapshot(FOUR[:3])
    assert eligible(before, after, epoch=4) == {3}
    assert eligible(epoch=4) == frozenset()


@pytest.mark.parametrize(
    ("scores", "standing", "heard", "decision", "reason"),
    [
        ([], 2, 3, Decision.ATTEST, "equal"),
        ([], 2, 2, Decision.ABSTAIN, "unheard"),
        ([], 0, 1, Decision.ABSTAIN, "unheard"),
        ([], 3, 3, Decision.REFUSE, "had-inventories"),
        ([Score(1, 1)], 0, 4, Decision.REFUSE, "scores"),
    ],
)
def test_an_empty_proposal_is_right_only_where_inventories_were_too_few(
    scores: list[Score], standing: int, heard: int, decision: Decision, reason: str
) -> None:
    verdict = judge_empty(scores, standing=standing, heard=heard, limits=thresholds(4))
    assert (verdict.decision, verdict.reason) == (decision, reason)


def test_evidence_without_records_is_evidence() -> None:
    blob = make_blob([inventory(label, []) for label in FOUR], [])
    assert evidence_of(blob, context()) == ()
