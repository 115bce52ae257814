"""Whole epochs of optimization among simulated nodes: honest, with a liar, with a crash."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio
import trio.testing

from mesh.subnet import Settlement
from mesh.testing.adversaries import overclaim
from mesh.testing.simulation import run_sim
from subnets.inference.service import InferenceServicer, ModelRequest, PredictReply, predict_request
from subnets.optimization.candidate import DEFAULT
from subnets.optimization.records import DEFAULT_CHAMPION
from subnets.optimization.score import TOLERANCE_PPM, Status, outcome
from subnets.optimization.service import OptimizationServicer, OptimizationSubnet, StatusRequest
from tests.subnets.simulated import BLOCK_S, SimulatedNode, World

T = TypeVar("T")


def simulate(world: Callable[[], World], main: Callable[[World], Awaitable[T]]) -> T:
    async def run() -> T:
        made = world()
        async with trio.open_nursery() as nursery:
            await made.start(nursery)
            result = await main(made)
            nursery.cancel_scope.cancel()
        return result

    return run_sim(run, seed=1)


async def settle(world: World, epoch: int) -> Settlement:
    """Wait for the epoch's end and hand every node what was agreed on, as the consensus loop does."""
    await world.nodes[0].epochs.wait_until(epoch, 19)
    evidence = await world.evidence(epoch)
    settlement = Settlement(evidence, outcome(evidence).scores)
    for node in world.nodes:
        if not node.scope.cancel_called:
            node.settle.send_nowait(settlement)
    await trio.sleep(BLOCK_S)
    return settlement


def test_an_epoch_of_honest_nodes_pays_them_and_serves_the_champion(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        first = outcome((await settle(world, 0)).evidence)
        assert [v.status for v in first.verdicts] == [Status.ACCEPTED] * 4
        assert first.improved
        assert first.champion.ppm > 860_000
        assert {s.node_id for s in first.scores} == {1, 2, 3, 4}
        client = world.nodes[1].rpc
        for node in world.nodes:  # every one serves the champion now
            about = await client.stub(InferenceServicer, node.key.peer_id).model(ModelRequest())
            assert about.model == first.champion.weights
            assert (about.epoch, about.verified_ppm) == (0, first.champion.ppm)
        second = outcome((await settle(world, 1)).evidence)
        assert second.incumbent == first.champion  # verifiers measured against what was settled
        assert first.champion.candidate not in {v.claim.candidate for v in second.accepted if v.claim}
        status = await client.stub(OptimizationServicer, world.nodes[0].key.peer_id).status(StatusRequest())
        assert status.settled_epoch == 1
        assert status.champion_ppm == second.champion.ppm
        assert len(status.claims) == 4
        assert status.explored > 10

    simulate(lambda: World([OptimizationSubnet() for _ in range(4)], tmp_path), main)


def test_the_same_seed_gives_the_same_epoch(tmp_path: Path) -> None:
    def once(name: str) -> tuple[object, str]:
        async def main(world: World) -> tuple[object, str]:
            found = outcome((await settle(world, 0)).evidence)
            return found, world.sim.digest()

        return simulate(lambda: World([OptimizationSubnet() for _ in range(4)], tmp_path / name), main)

    assert once("a") == once("b")


def test_a_liar_is_found_out_by_its_quorum(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        found = outcome((await settle(world, 0)).evidence)
        liar = next(v for v in found.verdicts if v.node_id == 4)
        assert liar.status is Status.OVERCLAIM
        assert liar.claim is not None
        assert liar.median_ppm is not None
        assert liar.claim.claimed_ppm - liar.median_ppm >= 100_000 > TOLERANCE_PPM
        assert {s.node_id for s in found.scores} == {1, 2, 3}
        assert found.champion.owner != world.nodes[3].key.peer_id.multihash

    honest = OptimizationSubnet()
    liar = dataclasses.replace(honest, name="optimization-liar", restate=overclaim)
    simulate(lambda: World([OptimizationSubnet() for _ in range(3)] + [liar], tmp_path), main)


def test_an_epoch_survives_a_node_that_dies_before_it_votes(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        victim = world.nodes[2]
        await world.nodes[0].epochs.wait_until(0, 14)
        victim.scope.cancel()
        found = outcome((await settle(world, 0)).evidence)
        assert len(found.accepted) >= 3
        assert found.improved
        assert {1, 2, 4} <= {s.node_id for s in found.scores}
        # its own claim was revealed before it died and is judged by the others
        assert next(v for v in found.verdicts if v.node_id == 3).status is Status.ACCEPTED
        dead = victim.key.peer_id.multihash
        if found.champion.owner == dead:  # then the others train the verified candidate themselves
            about = await world.nodes[0].rpc.stub(InferenceServicer, world.nodes[1].key.peer_id).model(ModelRequest())
            assert about.verified_ppm == found.champion.ppm

    simulate(lambda: World([OptimizationSubnet() for _ in range(4)], tmp_path), main)


def test_before_the_first_champion_the_documented_default_is_served(tmp_path: Path) -> None:
    async def main(world: World) -> PredictReply:
        node = world.nodes[0]
        stub = world.nodes[1].rpc.stub(InferenceServicer, node.key.peer_id)
        about = await stub.model(ModelRequest())
        assert (about.epoch, about.verified_ppm, about.width) == (0, 0, DEFAULT.hidden)
        replies: list[PredictReply] = []

        async def ask() -> None:
            replies.append(await stub.predict(predict_request(bytes(3 * 256), 3)))

        before = node.worker.calls.count("predict")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert all(reply.labels == [7, 7, 7] and reply.model == about.model for reply in replies)
        assert node.worker.calls.count("predict") - before < 5  # put together
        assert max(reply.batch for reply in replies) > 3
        return replies[0]

    reply = simulate(lambda: World([OptimizationSubnet() for _ in range(2)], tmp_path), main)
    assert reply.device == "cpu"
    assert DEFAULT_CHAMPION.candidate == DEFAULT


def test_a_node_restarted_between_commit_and_reveal_goes_on(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async with trio.open_nursery() as nursery:
            await world.nodes[0].epochs.wait_until(0, 6)
            old = world.nodes[1]
            old.scope.cancel()
            world.sim.kill(old.key.peer_id)
            await trio.testing.wait_all_tasks_blocked()
            world.sim.revive(old.key.peer_id)
            again = SimulatedNode(world, old.node_id, OptimizationSubnet(), old.ctx.data_dir, net=old.net)
            world.nodes[1] = again
            await nursery.start(again.run, [world.nodes[0].net.local])
            found = outcome((await settle(world, 0)).evidence)
            assert next(v for v in found.verdicts if v.node_id == 2).status is Status.ACCEPTED
            nursery.cancel_scope.cancel()

    simulate(lambda: World([OptimizationSubnet() for _ in range(4)], tmp_path), main)
