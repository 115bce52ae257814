"""Whole epochs of optimization among whole simulated nodes: honest, with a liar, with a crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from mesh.testing.adversaries import overclaiming
from mesh.testing.village import SimResult, Village, simulate
from subnets.inference.service import InferenceServicer, ModelRequest, PredictReply, predict_request
from subnets.optimization.candidate import DEFAULT
from subnets.optimization.config import OptimizationConfig
from subnets.optimization.records import DEFAULT_CHAMPION
from subnets.optimization.score import TOLERANCE_PPM, Outcome, Status, outcome
from subnets.optimization.service import OptimizationServicer, OptimizationSubnet, StatusRequest
from tests.subnets.simulated import scripted, watch


def run(
    nodes: dict[int, Any],
    meanwhile: Callable[[Village], Awaitable[None]] | None = None,
    *,
    epochs: int = 1,
) -> SimResult:
    return simulate(
        nodes[1],
        nodes=len(nodes),
        epochs=epochs,
        seed=1,
        config=OptimizationConfig(rest=1.0),
        liars=nodes,
        worker=scripted,
        meanwhile=meanwhile,
    )


def honest(count: int = 4) -> dict[int, Any]:
    return watch(*(OptimizationSubnet() for _ in range(count)))


def judged(node: Any) -> list[Outcome]:
    """What a node made of the evidence, by epoch; of epochs with claims."""
    found = [outcome(node.evidence[epoch]) for epoch in sorted(node.evidence)]
    return [one for one in found if one.verdicts]


def paid(result: SimResult) -> list[set[int]]:
    """Who was given a score, by proposal."""
    return [{score.node_id for score in result.proposals[epoch]} for epoch in sorted(result.proposals)]


def test_epochs_of_honest_nodes_pay_them_and_they_serve_the_champion() -> None:
    nodes = honest()

    async def look(village: Village) -> None:
        work = village.first_epoch
        await village.reach(work + 1, 10)  # settled, and the champion's weights were fetched
        first = outcome(nodes[1].evidence[work])
        client = nodes[2].ctx.rpc
        for number in nodes:  # every one serves the champion now
            about = await client.stub(InferenceServicer, village.peer(number)).rpc_model(ModelRequest())
            assert about.model == first.champion.weights
            assert (about.epoch, about.verified_ppm) == (work, first.champion.ppm)
        await village.reach(work + 2, 10)
        status = await client.stub(OptimizationServicer, village.peer(1)).rpc_status(StatusRequest())
        assert status.settled_epoch == work + 1
        assert status.champion_ppm == outcome(nodes[1].evidence[work + 1]).champion.ppm
        assert len(status.claims) == 4
        assert status.explored > 10

    result = run(nodes, look, epochs=2)
    first, second = judged(nodes[1])[:2]
    assert [v.status for v in first.verdicts] == [Status.ACCEPTED] * 4
    assert first.improved
    assert first.champion.ppm > 860_000
    assert second.incumbent == first.champion  # verifiers measured against what was settled
    # Claims of the next epoch are committed before this one is settled: a champion claimed again gains nothing.
    again = [v for v in second.accepted if v.claim and v.claim.candidate == first.champion.candidate]
    assert all(v.gain_ppm == 0 for v in again)
    assert paid(result)[-2:] == [{1, 2, 3, 4}] * 2
    assert list(result.attested.values())[-2:] == [4, 4]
    for node in nodes.values():  # and all judged the same
        assert judged(node)[:2] == [first, second]


def test_the_same_seed_gives_the_same_epoch() -> None:
    def once() -> tuple[list[Outcome], str]:
        nodes = honest(3)
        trace = run(nodes).trace
        return judged(nodes[1]), trace

    assert once() == once()


def test_a_liar_is_found_out_by_its_quorum_and_not_paid() -> None:
    nodes = watch(*(OptimizationSubnet() for _ in range(3)), overclaiming(OptimizationSubnet()))
    result = run(nodes)
    found = judged(nodes[1])[0]
    lie = next(v for v in found.verdicts if v.node_id == 4)
    assert lie.status is Status.OVERCLAIM
    assert lie.claim is not None
    assert lie.median_ppm is not None
    assert lie.claim.claimed_ppm - lie.median_ppm >= 100_000 > TOLERANCE_PPM
    assert found.champion.owner != nodes[4].ctx.identity.peer_id.multihash
    assert paid(result)[-1] == {1, 2, 3}
    grown = {a.node_id: a.stake_planck - b.stake_planck for a, b in zip(result.after, result.before, strict=True)}
    assert grown[4] <= 10**18 < 10**18 + grown[1]  # at most what proposing pays, which is for the work of settling
    kept = {node.node_id: node.reputation for node in result.after}
    assert kept[4] < min(kept[number] for number in (1, 2, 3))


def test_an_epoch_survives_a_node_that_dies_before_it_votes() -> None:
    nodes = honest()

    async def kill(village: Village) -> None:
        await village.reach(village.first_epoch, 14)
        await village.kill(3)
        await village.reach(village.first_epoch + 1, 12)
        found = outcome(nodes[1].evidence[village.first_epoch])
        assert len(found.accepted) >= 3
        assert found.improved
        assert {1, 2, 4} <= {s.node_id for s in found.scores}
        # its own claim was revealed before it died and is judged by the others
        assert next(v for v in found.verdicts if v.node_id == 3).status is Status.ACCEPTED
        about = await nodes[1].ctx.rpc.stub(InferenceServicer, village.peer(2)).rpc_model(ModelRequest())
        assert about.verified_ppm == found.champion.ppm  # also when the dead one found it: they train it themselves

    run(nodes, kill)


def test_before_the_first_champion_the_documented_default_is_served() -> None:
    nodes = honest(3)
    replies: list[PredictReply] = []

    async def ask(village: Village) -> None:
        stub = nodes[2].ctx.rpc.stub(InferenceServicer, village.peer(1))
        about = await stub.rpc_model(ModelRequest())
        assert (about.epoch, about.verified_ppm, about.width) == (0, 0, DEFAULT.hidden)

        async def one() -> None:
            replies.append(await stub.rpc_predict(predict_request(bytes(3 * 256), 3)))

        calls = nodes[1].ctx.worker.calls
        before = calls.count("predict")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert all(reply.labels == [7, 7, 7] and reply.model == about.model for reply in replies)
        assert calls.count("predict") - before < 5  # put together
        assert max(reply.batch for reply in replies) > 3

    run(nodes, ask, epochs=0)
    assert replies[0].device == "cpu"
    assert DEFAULT_CHAMPION.candidate == DEFAULT


def test_a_node_restarted_between_commit_and_reveal_goes_on() -> None:
    nodes = honest()

    async def restart(village: Village) -> None:
        await village.reach(village.first_epoch, 6)
        await village.kill(2)
        await village.restart(2)
        await village.reach(village.first_epoch + 1, 6)
        found = outcome(nodes[1].evidence[village.first_epoch])
        assert next(v for v in found.verdicts if v.node_id == 2).status is Status.ACCEPTED

    run(nodes, restart)
