"""Whole epochs on a simulated network and chain: agreement, lies, restarts and a chain that goes away."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio

from mesh.chain.types import Score, Submission
from mesh.consensus import round as rules
from mesh.consensus.refusing import Standing, check_refusal
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import pack_value, unpack_value

from .town import Node, Town, in_town
from .toy import KEYS, LABELS, SUBNET, Note, ToySubnet, hotkey, note_key

ALL = "ada bob cyd dan"


async def everybody(town: Town, *, proposer: str = "ada", liar: str | None = None) -> None:
    """All nodes run from the first epoch on; a liar's consensus is driven by the test."""
    await town.found(proposer=proposer)
    for label in town.labels:
        await town.add(label, has_loop=label != liar)
    await town.until(0, 2)


def proposed(town: Town, epoch: int = 1) -> dict[int, int]:
    submission = town.submission(epoch)
    assert submission is not None
    return {score.node_id: score.score for score in submission.scores}


def args_of(town: Town, epoch: int = 1) -> rules.ProposalArgs:
    submission = town.submission(epoch)
    assert submission is not None
    return rules.decode_args(submission.args)


# --- agreement ----------------------------------------------------------------------------------------------------


def test_an_epoch_is_agreed_on_settled_and_paid(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        for label, count in (("ada", 1), ("bob", 2), ("cyd", 3)):
            for i in range(count):
                await town.nodes[label].note(f"{label} {i}")
        before = {n.node_id: n.stake_planck for n in town.ledger.subnets[SUBNET].nodes.values()}
        await town.until(1, 14)
        assert town.attests() == ALL
        assert proposed(town) == {1: 1, 2: 2, 3: 3}
        for node in town.nodes.values():
            (settled,) = node.settled()
            assert settled.scores == (Score(1, 1), Score(2, 2), Score(3, 3))
            assert len(settled.evidence.records) == 6
            assert settled.evidence.epoch == 0
            assert settled.evidence.draw_hash == town.ledger.blocks[3 + 7].ref.hash
        await town.until(2, 0)
        after = {n.node_id: n.stake_planck for n in town.ledger.subnets[SUBNET].nodes.values()}
        assert after[3] - before[3] > after[2] - before[2] > 0
        assert after[4] == before[4]

    in_town(main, tmp_path)


def test_epoch_after_epoch_is_settled_in_order_and_blobs_leave(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        told = []
        for epoch in range(6):
            await town.until(epoch, 5)
            await town.nodes["bob"].note(f"{epoch}", epoch)
            told += town.nodes["cyd"].settled()
        assert [s.evidence.epoch for s in told] == [0, 1, 2, 3, 4]
        assert all(s.scores == (Score(2, 1),) for s in told)
        pinned = town.nodes["cyd"].content._pins
        assert len(pinned) == 3  # of epochs 2 to 4; older blobs may leave
        assert sorted(p.name for p in (tmp_path / "cyd" / "consensus").iterdir()) == [
            f"inventory-{e}" for e in range(1, 5)
        ]

    in_town(main, tmp_path)


def test_nodes_that_miss_records_still_agree(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        bob, cyd, dan = (town.nodes[label] for label in ("bob", "cyd", "dan"))
        await bob.note("everybody has it")
        await bob.note("dan never saw it", to=[town.nodes["ada"], cyd])
        await cyd.note("the proposer never saw it", to=[bob, dan])
        await town.until(1, 14)
        assert town.attests() == ALL
        assert proposed(town) == {2: 2, 3: 1}

    in_town(main, tmp_path)


def test_an_epoch_without_work_is_agreed_on_too(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.until(1, 14)
        assert town.attests() == ALL
        assert proposed(town) == {}
        assert args_of(town).evidence
        assert town.nodes["dan"].settled()[0].evidence.records == ()

    in_town(main, tmp_path)


@pytest.mark.parametrize("labels", [LABELS[:3], LABELS[:5]], ids=["three", "five"])
def test_other_sizes(labels: Sequence[str], tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(1, 14)
        assert town.attests() == " ".join(labels)
        assert proposed(town) == {2: 1}

    in_town(main, tmp_path, labels=labels)


def test_two_of_three_are_enough_and_both_must_have_seen_it(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        ada, bob = town.nodes["ada"], town.nodes["bob"]
        await bob.note("seen by ada and bob", to=[ada])
        await bob.note("seen by bob and cyd", to=[town.nodes["cyd"]])
        await town.nodes["cyd"].stop()
        await town.until(1, 14)
        assert town.attests() == "ada bob"
        assert proposed(town) == {2: 1}

    in_town(main, tmp_path, labels=LABELS[:3])


def test_a_silent_validator_does_not_hold_the_others_up(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        town.sim.kill(town.nodes["dan"].peer)
        await town.until(1, 4)
        assert proposed(town) == {2: 1}
        await town.until(1, 14)
        assert town.attests() == "ada bob cyd"

    in_town(main, tmp_path)


# --- what does not become evidence --------------------------------------------------------------------------------


def test_late_and_back_dated_records_fall_out(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town, liar="dan")
        dan = town.nodes["dan"]
        early = await town.nodes["bob"].note("in time")
        await town.until(0, 19)
        await dan.note("late")  # stores still take it, but the inventories are made
        backdated = sign_record(
            dan.key, note_key(0), pack_value(Note(text="back-dated")), subkey=b"b", expiry_ms=early.expiry_ms,
            seq=early.seq - 1000, subnet_id=SUBNET, genesis=town.ledger.genesis,
        )  # fmt: skip
        assert set((await dan.push(backdated)).values()) == {""}
        await dan.publish_inventory()
        await town.until(1, 3)
        late = dataclasses.replace(backdated, subkey=b"c")
        assert set((await dan.push(late)).values()) == {"window"}
        await town.until(1, 14)
        assert proposed(town) == {2: 1}
        assert town.attests() == "ada bob cyd"

    in_town(main, tmp_path)


def test_a_record_named_by_its_writer_alone_earns_nothing(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town, liar="dan")
        await town.nodes["bob"].note("work")
        await town.nodes["dan"].note("kept for myself", to=[])
        await town.until(0, 19)
        await town.nodes["dan"].publish_inventory(more=[b"\x01" * 32])  # nor does a record that does not exist
        await town.until(1, 14)
        assert proposed(town) == {2: 1}
        assert town.attests() == "ada bob cyd"

    in_town(main, tmp_path)


@pytest.mark.parametrize("seen_by_all", [True, False])
def test_an_equivocator_counts_for_nothing(seen_by_all: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(town: Town) -> None:
        await everybody(town, liar="dan")
        dan = town.nodes["dan"]
        await town.nodes["bob"].note("work")
        await town.until(0, 19)
        if seen_by_all:
            await dan.publish_inventory()
            await trio.sleep(0.5)
            await dan.publish_inventory(more=[b"\x01" * 32])
        else:
            first, second = await two_inventories(dan)
            await store_at(dan, first, "ada")
            await store_at(dan, second, "cyd")
        await town.until(1, 14)
        assert proposed(town) == {2: 1}
        assert town.attests() == "ada bob cyd"
        blob = rules.decode_blob(town.nodes["bob"].content.get_local(args_of(town).evidence) or b"")
        assert sum(r.owner == dan.peer for r in blob.inventories) == (2 if seen_by_all else 1)

    in_town(main, tmp_path)
    assert ("signed two inventories" in caplog.text) == seen_by_all


async def two_inventories(liar: Node) -> tuple[Record, Record]:
    snapshot = await liar.epochs.snapshot(0)
    made = []
    for digests in ((), (b"\x01" * 32,)):
        value = pack_value(rules.Inventory(epoch=0, snapshot=snapshot.block.hash, digests=digests))
        now_ms = int(liar.town.clock.now() * 1000)
        made.append(
            sign_record(
                liar.key,
                rules.inventory_key(0),
                value,
                expiry_ms=now_ms + 3_600_000,
                seq=now_ms,
                subnet_id=SUBNET,
                genesis=liar.town.ledger.genesis,
            )
        )
    return made[0], made[1]


async def store_at(liar: Node, record: Record, label: str) -> None:
    nodes = liar.town.nodes
    liar.town.nodes = {label: nodes[label]}
    assert set((await liar.push(record)).values()) == {""}
    liar.town.nodes = nodes


# --- lies ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Honest:
    """What an honest proposer would have used, for a lie to depart from."""

    inventories: tuple[Record, ...]
    records: tuple[Record, ...]
    own: Record


Lie = Callable[[Node, Honest], Awaitable[None]]
EMPTY = {"evidence": b"", "size": 0, "reason": rules.TOO_FEW_INVENTORIES}


def forged(record: Record) -> Record:
    return dataclasses.replace(record, signature=bytes(64))


LIES: dict[str, tuple[str, Lie]] = {
    "adds an unlisted record": ("unlisted", lambda dan, h: dan.propose(records=[*h.records, h.own])),
    "drops a record": ("dropped", lambda dan, h: dan.propose(records=h.records[:1])),
    "alters a score": ("scores", lambda dan, h: dan.propose(scores=[Score(2, 1), Score(3, 2)])),
    "scores itself": ("scores", lambda dan, h: dan.propose(scores=[Score(2, 1), Score(3, 1), Score(4, 1)])),
    "leaves a score out": ("scores", lambda dan, h: dan.propose(scores=[Score(2, 1)])),
    "takes too few inventories": (
        "too-few-inventories", lambda dan, h: dan.propose(inventories=h.inventories[:2])
    ),
    "forges an inventory": (
        "inventory", lambda dan, h: dan.propose(inventories=[forged(h.inventories[0]), *h.inventories[1:]])
    ),
    "forges a record": ("record", lambda dan, h: dan.propose(records=[forged(h.records[0]), h.records[1]])),
    "serves nonsense": ("malformed", lambda dan, h: dan.propose(evidence=dan.content.put(b"nonsense"), size=8)),
    "misstates the size": ("size", lambda dan, h: dan.propose(size=100_000)),
    "claims enormous evidence": ("oversize", lambda dan, h: dan.propose(size=2**39)),
    "serves more than it says": ("unavailable", lambda dan, h: dan.propose(size=100)),
    "serves nothing": ("unavailable", lambda dan, h: dan.propose(evidence=b"\x01" * 32)),
    "names another epoch": ("wrong-epoch", lambda dan, h: dan.propose(epoch=5)),
    "names another snapshot": ("wrong-snapshot", lambda dan, h: dan.propose(snapshot=b"\x02" * 32)),
    "says it had too few inventories": ("had-inventories", lambda dan, h: dan.propose(scores=[], **EMPTY)),
    "scores without evidence": ("scores", lambda dan, h: dan.propose(scores=[Score(4, 9)], **EMPTY)),
    "gives no reason": ("args", lambda dan, h: dan.propose(scores=[], **EMPTY | {"reason": ""})),
    "gives a strange reason": ("empty-reason", lambda dan, h: dan.propose(scores=[], **EMPTY | {"reason": "rain"})),
    "says nothing": ("args", lambda dan, h: say_nothing(dan)),
}  # fmt: skip


async def say_nothing(dan: Node) -> None:
    await dan.chain.propose(SUBNET, [Score(4, 9)], args=b"", hotkey=hotkey("dan"))


async def lie(town: Town, tell: Lie) -> None:
    """Run epoch 0 up to dan's proposal, in which it departs from the truth."""
    await everybody(town, proposer="dan", liar="dan")
    dan = town.nodes["dan"]
    await town.nodes["bob"].note("work")
    await town.nodes["cyd"].note("more work")
    own = await dan.note("only mine", to=[])
    await town.until(0, 19)
    await dan.publish_inventory()
    await town.until(1, 1)
    inventories = dan.dht.local(rules.inventory_key(0))
    records = tuple(r for r in dan.dht.local(note_key(0)) if r != own)
    assert (len(inventories), len(records)) == (4, 2)
    await tell(dan, Honest(inventories, records, own))


@pytest.mark.parametrize("name", LIES)
def test_honest_nodes_do_not_attest_a_lie_and_say_why(name: str, tmp_path: Path) -> None:
    reason, tell = LIES[name]

    async def main(town: Town) -> None:
        await lie(town, tell)
        await town.until(1, 16)
        assert town.attests() == "dan"
        assert town.refusals() == dict.fromkeys(("ada", "bob", "cyd"), reason)
        assert not town.nodes["ada"].settled()
        expected = Standing.OPEN if reason == "unavailable" else Standing.CONFIRMED
        assert {await third_party(town, owner) for owner in ("ada", "bob", "cyd")} == {expected}

    in_town(main, tmp_path)


async def third_party(town: Town, owner: str, **changes: object) -> Standing:
    """What somebody who only reads makes of a refusal, with the blobs that can be had."""
    reader, submission = town.nodes["cyd"], town.submission()
    assert submission is not None
    (record,) = (r for r in reader.dht.local(rules.refusal_key(0)) if r.owner == KEYS[owner].peer_id)
    refusal = unpack_value(rules.Refusal, record.value).model_copy(update=changes)
    return check_refusal(
        refusal,
        await reader.context(),
        args=submission.args,
        proposed=submission.scores,
        draw_hash=await reader.epochs.draw_hash(0),
        score=reader.subnet.score,
        blob=town.nodes["dan"].content.get_local(refusal.evidence) if refusal.evidence else None,
        witness=town.nodes[owner].content.get_local(refusal.witness) if refusal.witness else None,
    )


@pytest.mark.parametrize(
    ("name", "changes", "standing"),
    [
        ("drops a record", {"reason": "unlisted"}, Standing.REFUTED),
        ("drops a record", {"epoch": 1}, Standing.REFUTED),
        ("drops a record", {"evidence": b"\x01" * 32}, Standing.REFUTED),
        ("drops a record", {"reason": "unavailable"}, Standing.OPEN),
        ("names another epoch", {"reason": "scores"}, Standing.REFUTED),
        ("says it had too few inventories", {"witness": b""}, Standing.OPEN),
        ("says it had too few inventories", {"reason": "scores"}, Standing.REFUTED),
        ("scores without evidence", {"reason": "had-inventories"}, Standing.REFUTED),
    ],
)
def test_a_refusal_that_names_another_fault_is_refuted(
    name: str, changes: dict[str, object], standing: Standing, tmp_path: Path
) -> None:
    async def main(town: Town) -> None:
        await lie(town, LIES[name][1])
        await town.until(1, 6)
        assert await third_party(town, "ada", **changes) is standing

    in_town(main, tmp_path)


def test_the_same_proposal_without_a_lie_is_attested(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await lie(town, lambda dan, h: dan.propose())
        await town.until(1, 5)
        assert town.attests() == ALL
        assert town.refusals() == {}
        assert proposed(town) == {2: 1, 3: 1}

    in_town(main, tmp_path)


def test_a_refused_empty_proposal_comes_with_a_witness_anybody_can_check(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await lie(town, LIES["says it had too few inventories"][1])
        await town.until(1, 5)
        bob = town.nodes["bob"]
        (refusal,) = (r for r in bob.dht.local(rules.refusal_key(0)) if r.owner == KEYS["ada"].peer_id)
        witness = unpack_value(rules.Refusal, refusal.value).witness
        data = await bob.content.fetch(witness, max_bytes=rules.MAX_BLOB_BYTES, peers=[KEYS["ada"].peer_id])
        ctx = await bob.context()
        standing = [rules.check_inventory(record, ctx) for record in rules.decode_blob(data).inventories]
        assert len(standing) >= ctx.thresholds.need

    in_town(main, tmp_path)


def test_without_enough_validators_to_say_so_nothing_is_proposed(tmp_path: Path) -> None:
    """Two of four cannot know what the others hold, nor could they pass a proposal: a miss costs less than a slash."""

    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        for label in ("cyd", "dan"):
            await town.nodes[label].stop()  # before the inventories: two of four are not n-f
        stake = town.ledger.subnets[SUBNET].nodes[1].stake_planck
        await town.until(2, 0)
        assert town.submission() is None
        assert town.ledger.subnets[SUBNET].nodes[1].stake_planck == stake
        assert not town.nodes["bob"].settled()

    in_town(main, tmp_path)


async def too_few_inventories(town: Town) -> None:
    """Everybody is there, but two did not hear of the epoch's end: their chains were away."""
    await everybody(town)
    await town.nodes["bob"].note("work")
    await town.until(0, 15)
    for label in ("cyd", "dan"):
        town.nodes[label].chain.away = True
    await town.until(1, 2)
    for label in ("cyd", "dan"):
        town.nodes[label].chain.away = False


def test_too_few_inventories_make_an_empty_proposal_that_others_attest(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await too_few_inventories(town)
        await town.until(1, 6)
        assert args_of(town).reason == rules.TOO_FEW_INVENTORIES
        assert proposed(town) == {}
        assert town.attests() == ALL
        assert not town.nodes["bob"].settled()

    in_town(main, tmp_path)


def test_who_is_cut_off_does_not_attest_that_there_was_nothing(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await too_few_inventories(town)
        town.sim.partition([[town.nodes[label].peer for label in ["ada", "bob", "cyd"]], [town.nodes["dan"].peer]])
        await town.until(1, 8)
        assert town.attests() == "ada bob cyd"
        town.sim.heal()
        await town.until(1, 14)
        assert town.attests() == ALL

    in_town(main, tmp_path)


def test_who_came_after_the_inventories_asks_before_it_believes_there_were_none(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town, proposer="dan", liar="dan")
        await town.nodes["bob"].note("work")
        await town.until(0, 17)
        await town.nodes["bob"].stop()
        await town.until(0, 19)
        await town.nodes["dan"].publish_inventory()
        await town.until(1, 3)
        await town.nodes["dan"].propose(scores=[], **EMPTY)
        await town.until(1, 4)
        await town.add("bob")  # its store is empty
        await town.until(1, 9)
        assert town.attests() == "dan"
        assert town.refusals() == dict.fromkeys(("ada", "bob", "cyd"), "had-inventories")

    in_town(main, tmp_path)


def test_a_draft_that_comes_true_is_attested_without_fetching_anything(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(0, 19)
        assert all(node.content.entries() for node in town.nodes.values())
        town.sim.partition([[node.peer] for node in town.nodes.values()])
        await town.until(1, 3)
        assert town.attests() == ALL
        assert proposed(town) == {2: 1}

    in_town(main, tmp_path)


def test_while_an_inventory_lacks_the_draft_waits_for_the_epochs_end(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(0, 18)
        await town.nodes["dan"].stop()
        await town.until(0, 19)
        assert not any(node.content.entries() for node in town.nodes.values())
        await town.until(1, 4)
        assert town.attests() == "ada bob cyd"
        assert [e.digest for e in town.nodes["cyd"].content.entries()] == [args_of(town).evidence]

    in_town(main, tmp_path)


def test_an_unknown_scoring_function_is_no_reason_to_refuse_or_attest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(town: Town) -> None:
        await town.found(proposer="ada")
        for label in town.labels:
            await town.add(label, subnet=ToySubnet("toy/2.0.0" if label == "ada" else "toy/1.0.0"))
        await town.until(1, 16)
        assert town.attests() == "ada"
        assert town.refusals() == {}

    caplog.set_level(logging.INFO)
    in_town(main, tmp_path)
    assert "abstain" in caplog.text
    assert "unknown-score-id" in caplog.text


class Raises(ToySubnet):
    def score(self, evidence: object) -> Sequence[Score]:
        raise ZeroDivisionError("a bug of the subnet")


class Floats(ToySubnet):
    def score(self, evidence: object) -> Sequence[Score]:
        return [Score(2, 0.5)]  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [Raises, Floats])
def test_a_scoring_function_that_fails_ends_nothing(
    broken: type[ToySubnet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(town: Town) -> None:
        await town.found(proposer="ada")
        for label in town.labels:
            await town.add(label, subnet=broken() if label == "dan" else ToySubnet())
        await town.until(1, 14)
        assert town.attests() == "ada bob cyd"
        assert town.refusals() == {}
        await town.until(2, 5)
        assert town.attests(2) == "ada bob cyd"

    in_town(main, tmp_path)
    assert "score-failed" in caplog.text


def test_a_proposer_that_cannot_score_proposes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(town: Town) -> None:
        await town.found(proposer="ada")
        for label in town.labels:
            await town.add(label, subnet=Raises() if label == "ada" else ToySubnet())
        await town.until(1, 16)
        assert town.submission() is None

    in_town(main, tmp_path)
    assert caplog.text.count("cannot score its evidence") == 2  # the draft, and once more when it was due


def test_an_epoch_nobody_proposed_for_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(town: Town) -> None:
        await everybody(town, proposer="dan", liar="dan")
        await town.until(2, 1)
        assert town.submission() is None

    in_town(main, tmp_path)
    assert caplog.text.count("epoch 0: missed, node 4 was elected") == 3


def test_a_proposal_that_is_another_when_it_is_looked_at_again_is_not_attested(tmp_path: Path) -> None:
    """A fork may put another proposal in the place of the one that was judged; an attestation does not say which."""

    async def main(town: Town) -> None:
        await everybody(town)
        bob = town.nodes["bob"]
        await bob.note("work")
        real, looks = bob.chain.submission, 0

        async def submission(subnet_id: int, epoch: int) -> Submission | None:
            nonlocal looks
            found = await real(subnet_id, epoch)
            if found is None or epoch != 1:
                return found
            looks += 1
            return found if looks == 1 else dataclasses.replace(found, scores=(Score(4, 9),))

        bob.chain.submission = submission  # type: ignore[method-assign]
        await town.until(1, 14)
        assert looks > 2
        assert town.attests() == "ada cyd dan"
        assert town.refusals() == {"bob": "scores"}

    in_town(main, tmp_path)


# --- restarts and a chain that goes away --------------------------------------------------------------------------


def nonces(town: Town) -> dict[str, int]:
    return {label: town.ledger.accounts[hotkey(label).account_id].nonce for label in town.labels}


def test_a_node_restarted_after_attesting_does_not_attest_again(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(1, 6)
        assert town.attests() == ALL
        before = nonces(town)
        for label in ("ada", "bob"):  # the proposer, and one that attested
            await town.nodes[label].stop()
            await town.add(label)
        await town.until(1, 16)
        assert nonces(town) == before
        for label in ("ada", "bob"):
            assert [s.evidence.epoch for s in town.nodes[label].settled()] == [0]

    in_town(main, tmp_path)


def test_a_node_restarted_between_proposal_and_attestation_attests_once(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town, proposer="dan", liar="dan")
        dan = town.nodes["dan"]
        await town.nodes["bob"].note("work")
        await town.until(0, 19)
        await dan.publish_inventory()
        await town.until(1, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dan.propose)
            await town.ledger.submitted.wait()
            await town.nodes["bob"].stop()
        await town.until(1, 5)
        assert "bob" not in town.attests()
        await town.add("bob")
        await town.until(1, 9)
        assert town.attests() == ALL
        assert nonces(town)["bob"] == 1

    in_town(main, tmp_path)


def test_a_node_stopped_while_its_attestation_is_in_the_pool_attests_once(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.until(1, 1)
        while town.submission() is None:
            await town.nodes["bob"].epochs.wait_block()
        while not any(p.signer == hotkey("bob").account_id for p in town.ledger.pool):
            await town.ledger.submitted.wait()
        await town.nodes["bob"].stop()
        await town.add("bob")
        await town.until(1, 14)
        assert town.attests() == ALL
        # The second look came before the block: the chain said AlreadyAttested, and that was the end of it.
        assert nonces(town)["bob"] <= 2

    in_town(main, tmp_path)


def test_a_proposer_stopped_while_its_proposal_is_in_the_pool_proposes_once(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(1, 0)
        while not any(p.signer == hotkey("ada").account_id for p in town.ledger.pool):
            await town.ledger.submitted.wait()
        await town.nodes["ada"].stop()
        await town.add("ada")
        await town.until(1, 14)
        assert proposed(town) == {2: 1}
        assert town.attests() == ALL
        assert nonces(town)["ada"] <= 2  # SubnetRewardsAlreadySubmitted was the end of it

    in_town(main, tmp_path)


def test_attestors_serve_the_blob_when_the_proposer_is_gone(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(0, 19)
        late = [town.nodes["cyd"], town.nodes["dan"]]
        for node in late:
            node.chain.away = True
        await town.until(1, 5)
        assert town.attests() == "ada bob"
        town.sim.kill(town.nodes["ada"].peer)
        for node in late:
            node.chain.away = False
        await town.until(1, 9)
        assert town.attests() == ALL

    in_town(main, tmp_path)


def test_a_node_cut_off_from_the_others_attests_when_it_is_back(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(0, 18)  # before the inventories: it has no draft
        others = [town.nodes[label].peer for label in ("ada", "bob", "cyd")]
        town.sim.partition([others, [town.nodes["dan"].peer]])
        await town.until(1, 6)
        assert town.attests() == "ada bob cyd"  # the chain alone is not enough
        town.sim.heal()
        await town.until(1, 12)
        assert town.attests() == ALL
        assert town.refusals() == {}

    in_town(main, tmp_path)


def test_a_node_without_hotkey_learns_what_was_settled_and_votes_on_nothing(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await town.found(proposer="ada")
        for label in town.labels:
            await town.add(label, has_hotkey=label != "dan")
        await town.until(1, 14)
        assert town.attests() == "ada bob cyd"
        assert [s.evidence.epoch for s in town.nodes["dan"].settled()] == [0]

    in_town(main, tmp_path)


def test_an_inventory_survives_restarts_and_a_lost_disk_unchanged(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        bob = town.nodes["bob"]
        await bob.note("work")
        await bob.note("only mine", to=[])  # gone with its store, so a new inventory would differ
        await town.until(0, 19)
        first = {r.value for r in town.nodes["ada"].dht.local(rules.inventory_key(0)) if r.owner == bob.peer}
        await bob.stop()
        await town.add("bob")
        await trio.sleep(0.5)
        await town.nodes["bob"].stop()
        (tmp_path / "bob" / "consensus" / "inventory-0").unlink()
        await town.add("bob")
        await town.until(1, 14)
        blob = rules.decode_blob(town.nodes["ada"].content.get_local(args_of(town).evidence) or b"")
        assert {r.value for r in blob.inventories if r.owner == bob.peer} == first
        assert len(blob.inventories) == 4
        assert town.attests() == ALL

    in_town(main, tmp_path)


def test_a_proposer_waits_a_little_for_the_last_inventory(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.until(0, 18)
        await town.nodes["dan"].stop()
        await town.until(1, 0)
        assert town.submission() is None
        await town.add("dan")
        await town.until(1, 4)
        blob = rules.decode_blob(town.nodes["ada"].content.get_local(args_of(town).evidence) or b"")
        assert len(blob.inventories) == 4

    in_town(main, tmp_path)


def test_a_proposer_that_starts_late_proposes_with_what_others_hold(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(0, 17)
        await town.nodes["ada"].stop()
        await town.until(1, 3)
        await town.add("ada")  # with an empty store, and nobody puts inventories any more
        await town.until(1, 14)
        assert proposed(town) == {2: 1}
        assert town.attests() == ALL

    in_town(main, tmp_path)


def test_settled_epochs_are_told_again_after_a_restart(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        for epoch in range(4):
            await town.until(epoch, 5)
            await town.nodes["bob"].note(f"{epoch}", epoch)
        await town.until(4, 8)
        await town.nodes["dan"].stop()
        await trio.sleep(1)
        for path in (tmp_path / "dan" / "content").iterdir():
            path.unlink()  # others that attested serve the blobs again
        dan = await town.add("dan")
        await town.until(4, 10)
        told = [s.evidence.epoch for s in dan.settled()]
        assert told == [2, 3]  # 1, 2, 3 were told; the channel holds two and the oldest was dropped

    in_town(main, tmp_path)


def test_a_blob_is_kept_and_served_until_three_epochs_after_its_work_also_after_a_restart(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(1, 14)
        digest = args_of(town).evidence
        await town.nodes["cyd"].stop()
        await town.until(3, 2)
        cyd = await town.add("cyd")
        await town.until(3, 18)
        assert digest in cyd.content._pins
        (tmp_path / "dan" / "content" / digest.hex()).unlink()
        assert await town.nodes["dan"].content.fetch(digest, max_bytes=10**6, peers=[cyd.peer])
        await town.until(4, 2)
        assert digest not in cyd.content._pins

    in_town(main, tmp_path)


def test_a_chain_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(0, 12)
        bob, cyd = town.nodes["bob"], town.nodes["cyd"]
        await town.until(1, 0)
        bob.chain.away = cyd.chain.away = True
        await town.until(1, 7)
        assert town.attests() == "ada dan"  # never blindly
        bob.chain.away = False
        await town.until(1, 9)
        assert town.attests() == "ada bob dan"
        await town.until(1, 16)
        cyd.chain.away = False  # the time to attest is over
        await town.until(1, 18)
        assert town.attests() == "ada bob dan"
        assert [s.evidence.epoch for s in cyd.settled()] == [0]  # but it learns what was settled
        await town.until(2, 10)
        assert town.attests(2) == ALL

    in_town(main, tmp_path)


def test_a_proposer_without_chain_proposes_when_it_is_back(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.until(0, 19)
        ada = town.nodes["ada"]
        ada.chain.away = True
        await town.until(1, 6)
        assert town.submission() is None
        ada.chain.away = False
        await town.until(1, 9)
        assert town.attests() == ALL

    in_town(main, tmp_path)


def test_a_subnet_that_does_not_read_misses_the_oldest(tmp_path: Path) -> None:
    async def main(town: Town) -> None:
        await everybody(town)
        await town.until(4, 10)
        assert [s.evidence.epoch for s in town.nodes["bob"].settled()] == [2, 3]

    in_town(main, tmp_path)


def test_same_seed_same_chain(tmp_path: Path) -> None:
    heads = []

    async def main(town: Town) -> None:
        await everybody(town)
        await town.nodes["bob"].note("work")
        await town.until(1, 14)
        heads.append((town.ledger.best.ref.hash, town.sim.digest()))

    for name in ("one", "two"):
        in_town(main, tmp_path / name)
    assert heads[0] == heads[1]
