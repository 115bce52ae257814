"""Evaluation, inference and mock: their scores against attackers, and an epoch of each among simulated nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from mesh import mock
from mesh.chain.types import ONE
from mesh.consensus.evidence import Commit, epoch_key
from mesh.content import digest_of
from mesh.errors import ConfigError, RecordRejected, RemoteFailure, StoreFull
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition
from mesh.subnet import SubnetContext
from mesh.testing.village import SimResult, Village, simulate
from subnets.evaluation import records as er
from subnets.evaluation.config import EvaluationConfig
from subnets.evaluation.score import evaluated
from subnets.evaluation.score import score as evaluation_score
from subnets.evaluation.service import EvaluateRequest, EvaluationServicer, EvaluationSubnet, ResultRequest
from subnets.evaluation.votes import Ballot
from subnets.inference import records as ir
from subnets.inference.config import InferenceConfig
from subnets.inference.node import InferenceSubnet
from subnets.inference.score import score as inference_score
from subnets.inference.service import InferenceServicer, ModelRequest
from tests.subnets.evidence import DRAW, EPOCH, GENESIS, SUBNET, Case, peer_key, snapshot_of
from tests.subnets.simulated import scripted, watch

# --- evaluation ---------------------------------------------------------------------------------------------

REQUEST = er.Request(architecture="mlp-digits-1", width=16, model=b"m" * 32)


def evaluation_case(values: Sequence[int | None]) -> tuple[Case, list[int]]:
    """Node 1 asks; the quorum votes `values`, None for a committed vote that is not revealed."""
    case = Case()
    owner = peer_key(1).peer_id
    name = er.request_id(EPOCH, owner, REQUEST)
    case.add(1, er.REQUEST, REQUEST, subkey=REQUEST.model)
    members = case.quorum(1, name)
    for member, value in zip(members, values, strict=False):
        vote = er.Vote(ppm=value or 0, salt=bytes([member]) * 32)
        commit = er.vote_commitment(
            GENESIS, SUBNET, epoch=EPOCH, owner=peer_key(member).peer_id, request=name, vote=vote
        )
        case.add(member, er.VOTE_COMMIT, Commit(commitment=commit), subkey=name)
        if value is not None:
            case.add(member, er.VOTE, vote, subkey=name)
    return case, members


def test_evaluation_pays_votes_that_agree() -> None:
    case, members = evaluation_case([900_000, 900_500, 100_000])
    (one,) = evaluated(case.evidence())
    assert one.finding.median == 900_000
    assert {s.node_id: s.score for s in evaluation_score(case.evidence())} == dict.fromkeys(members[:2], ONE)


def test_evaluation_without_a_majority_finds_nothing() -> None:
    for values in ([900_000], [900_000, None, None], [100_000, 500_000, 900_000]):
        case, _ = evaluation_case(values)
        (one,) = evaluated(case.evidence())
        assert one.finding.median is None
        assert evaluation_score(case.evidence()) == ()


def test_an_evaluation_vote_copied_from_another_does_not_count() -> None:
    case, members = evaluation_case([900_000, 900_000])
    name = er.request_id(EPOCH, peer_key(1).peer_id, REQUEST)
    stolen = next(r for r in case.records if r.key == epoch_key(er.VOTE, EPOCH))
    commit = next(r for r in case.records if r.key == epoch_key(er.VOTE_COMMIT, EPOCH))
    case.add(members[2], er.VOTE_COMMIT, commit.value, subkey=name)
    case.add(members[2], er.VOTE, stolen.value, subkey=name)
    (one,) = evaluated(case.evidence())
    assert dict(one.finding.ballots)[members[2]] is Ballot.MISMATCH


def test_one_owner_s_flood_of_requests_is_bounded() -> None:
    case = Case()
    for number in range(20):
        request = REQUEST.model_copy(update={"model": bytes([number]) * 32})
        case.add(1, er.REQUEST, request, subkey=request.model)
    assert len(evaluated(case.evidence())) == er.REQUESTS_PER_OWNER


# --- inference ----------------------------------------------------------------------------------------------


def answered(case: Case, node: int, model: bytes, labels: bytes, *, commit: bool = True) -> ir.Answer:
    answer = ir.Answer(model=model, labels=labels, salt=bytes([node]) * 32)
    if commit:
        digest = ir.answer_commitment(GENESIS, SUBNET, epoch=EPOCH, owner=peer_key(node).peer_id, answer=answer)
        case.add(node, ir.COMMIT, Commit(commitment=digest))
    case.add(node, ir.PROBE, answer)
    return answer


def test_inference_pays_the_majority_s_answer_and_nobody_else() -> None:
    case = Case()
    for node in (1, 2, 3, 4):
        answered(case, node, b"m" * 32, b"l" * 32)
    answered(case, 5, b"m" * 32, b"x" * 32)
    answered(case, 6, b"m" * 32, b"l" * 32, commit=False)  # waited for the others' reveals
    assert {s.node_id for s in inference_score(case.evidence())} == {1, 2, 3, 4}


def test_half_is_no_majority() -> None:
    case = Case()
    for node in range(1, 7):
        answered(case, node, b"m" * 32, (b"a" if node % 2 else b"b") * 32)
    assert inference_score(case.evidence()) == ()


# --- mock ---------------------------------------------------------------------------------------------------


def test_mock_pays_who_kept_both_heartbeats() -> None:
    case = Case(snapshot_of(4))
    beat = mock.Heartbeat(block=1)
    for node, subkeys in (
        (1, (mock.EARLY, mock.LATE)),
        (2, (mock.EARLY,)),
        (3, (mock.LATE,)),
        (9, (mock.EARLY, mock.LATE)),
    ):
        for subkey in subkeys:
            case.add(node, mock.NAMESPACE, beat, subkey=subkey)
    case.add(4, mock.NAMESPACE, beat, subkey=mock.EARLY)
    case.add(4, mock.NAMESPACE, beat, subkey=mock.LATE, epoch=EPOCH - 1)
    assert mock.subnet.score(case.evidence()) == [mock.Score(1, ONE)]


def test_a_heartbeat_is_stored_in_its_window_only() -> None:
    (rule,) = mock.subnet.rules(mock.MockConfig())
    (predicate,) = rule.predicates
    case = Case()
    case.add(1, mock.NAMESPACE, mock.Heartbeat(block=1), subkey=mock.LATE)
    late: Record = case.records[0]
    predicate(late, BlockPosition(0, EPOCH, 17, 20))
    for position in (BlockPosition(0, EPOCH, 3, 20), BlockPosition(0, EPOCH + 1, 17, 20), None):
        with pytest.raises(RecordRejected):
            predicate(late, position)
    with pytest.raises(RecordRejected, match="subkey"):
        predicate(replace(late, subkey=b"third"), BlockPosition(0, EPOCH, 17, 20))


# --- whole epochs -------------------------------------------------------------------------------------------


def run(
    nodes: dict[int, Any],
    config: BaseModel,
    meanwhile: Callable[[Village], Awaitable[None]],
    *,
    epochs: int = 1,
) -> SimResult:
    return simulate(
        nodes[1],
        nodes=len(nodes),
        epochs=epochs,
        seed=1,
        config=config,
        liars=nodes,
        worker=scripted,
        meanwhile=meanwhile,
    )


def test_a_model_sent_by_a_client_is_judged_and_its_worth_told() -> None:
    nodes = watch(*(EvaluationSubnet() for _ in range(4)))

    async def ask(village: Village) -> None:
        rpc = nodes[1].ctx.rpc
        first = rpc.stub(EvaluationServicer, village.peer(2))
        data = b"a model of many bytes"
        taken = await first.rpc_request(EvaluateRequest(architecture="mlp-digits-1", width=16, data=data))
        assert taken.model == digest_of(data)
        with pytest.raises(RemoteFailure, match="no settled finding"):
            await first.rpc_result(ResultRequest(model=taken.model))
        await village.reach(village.first_epoch + 1, 10)
        evidence = nodes[1].evidence[village.first_epoch]
        (one,) = evaluated(evidence)
        seed = er.seed_of(evidence.draw_hash, one.request_id)
        assert one.finding.median == (seed + data[0]) % 1_000_000
        told = await rpc.stub(EvaluationServicer, village.peer(3)).rpc_result(ResultRequest(model=taken.model))
        assert (told.ppm, told.agreed, told.epoch) == (one.finding.median, 3, village.first_epoch)

    result = run(nodes, EvaluationConfig(), ask)
    assert result.earned() == {1, 3, 4}  # all but the owner of the request


def test_a_request_that_could_not_be_put_is_asked_in_the_next_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = watch(*(EvaluationSubnet() for _ in range(3)))
    put, failed = SubnetContext.put_evidence, []

    async def fails_once(self: SubnetContext, epoch: int, *args: Any, **kwargs: Any) -> Any:
        if not failed:
            failed.append(epoch)
            raise StoreFull("nobody took it")
        return await put(self, epoch, *args, **kwargs)

    async def ask(village: Village) -> None:
        monkeypatch.setattr(SubnetContext, "put_evidence", fails_once)
        stub = nodes[1].ctx.rpc.stub(EvaluationServicer, village.peer(2))
        await stub.rpc_request(EvaluateRequest(architecture="mlp-digits-1", width=16, data=b"a model"))
        await village.reach(village.first_epoch + 2, 10)
        asked = {epoch: len(evaluated(evidence)) for epoch, evidence in sorted(nodes[1].evidence.items())}
        assert asked[failed[0]] == 0
        assert asked[failed[0] + 1] == 1

    run(nodes, EvaluationConfig(), ask, epochs=2)


def test_a_node_that_never_ran_leaves_nothing_behind_for_the_next() -> None:
    subnet = EvaluationSubnet()
    ctx = SimpleNamespace(identity=peer_key(1), data_dir=Path("unused"))
    for _ in range(3):
        subnet.servicers(ctx, EvaluationConfig())  # type: ignore[arg-type]
    assert len(subnet._nodes) == 1


def test_nodes_that_serve_one_model_are_paid_and_the_odd_one_is_not(tmp_path: Path) -> None:
    def config(directory: Path) -> BaseModel:
        file = directory / "model.safetensors"
        file.write_bytes(b"another model" if directory.name == "4" else b"the model")
        return InferenceConfig(model=file, width=16)

    nodes = watch(*(InferenceSubnet() for _ in range(4)), config=config)

    async def ask(village: Village) -> None:
        stub = nodes[1].ctx.rpc.stub(InferenceServicer, village.peer(2))
        assert (await stub.rpc_model(ModelRequest())).model == digest_of(b"the model")

    assert run(nodes, InferenceConfig(model=tmp_path, width=16), ask).earned() == {1, 2, 3}


def test_mock_nodes_keep_their_heartbeat() -> None:
    nodes = watch(*(mock.MockSubnet() for _ in range(4)))

    async def look(village: Village) -> None:
        await village.kill(4)
        await village.reach(village.first_epoch, 19)
        stub = nodes[1].ctx.rpc.stub(mock.MockServicer, village.peer(2))
        assert (await stub.rpc_alive(mock.AliveRequest())).heartbeats >= 2

    assert run(nodes, mock.MockConfig(), look).earned() == {1, 2, 3}


def test_a_subnet_with_jobs_is_not_simulated_without_a_worker() -> None:
    with pytest.raises(ConfigError, match="worker"):
        simulate(EvaluationSubnet())


def test_the_draw_decides_the_questions() -> None:
    assert ir.probe_seed(DRAW) != ir.probe_seed(b"\x98" * 32)
    assert er.seed_of(DRAW, b"r" * 32) != er.seed_of(b"\x98" * 32, b"r" * 32)
