"""The demo's client: a registered client id that sends the judge set over RPC, and a stranger who may not."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from mesh.auth.authorizer import Everyone
from mesh.content import Content
from mesh.errors import MeshError, NotAuthorized, RemoteFailure
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo
from mesh.rpc.rpc import Rpc
from subnets.inference.service import InferenceServicer, ModelReply, ModelRequest, predict_request
from subnets.optimization.data import read_arrays
from subnets.optimization.service import OptimizationServicer, StatusRequest

ROWS_PER_REQUEST = 25
"""Several requests at a time, so that nodes have something to batch."""
SERVE_TIMEOUT_S = 90.0
"""For all nodes to fetch, check and serve a champion after its epoch is settled."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the client measured itself."""

    accuracy: float
    samples: int
    device: str


class Client:
    """A libp2p peer with a client key, dialling only."""

    def __init__(self, identity: PeerKey, nodes: Sequence[PeerInfo], directory: Path) -> None:
        self._net = Libp2pNetwork(identity, Libp2pConfig(listen=()))
        self._rpc = Rpc(self._net, Everyone(), rng=random.Random(os.urandom(16)))
        self._content = Content(directory, self._rpc)
        self.nodes = tuple(nodes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be on the network until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._net.run)
            await nursery.start(self._rpc.run)
            for info in self.nodes:
                self._net.learn(info)
            task_status.started()

    async def measure(self, judge_file: Path) -> Measured:
        """Accuracy of what the nodes serve now on the judge set, asked of all nodes in turn."""
        pixels, classes = await trio.to_thread.run_sync(read_arrays, judge_file)
        right = 0
        devices: set[str] = set()

        async def ask(start: int, info: PeerInfo) -> None:
            nonlocal right
            rows = pixels[start : start + ROWS_PER_REQUEST]
            stub = self._rpc.stub(InferenceServicer, info.peer_id)
            reply = await stub.rpc_predict(predict_request(rows.astype("<f4").tobytes(), len(rows)))
            right += sum(int(a) == int(b) for a, b in zip(reply.labels, classes[start:], strict=False))
            devices.add(reply.device)

        async with trio.open_nursery() as nursery:
            for index, start in enumerate(range(0, len(pixels), ROWS_PER_REQUEST)):
                nursery.start_soon(ask, start, self.nodes[index % len(self.nodes)])
        return Measured(right / len(pixels), len(pixels), ", ".join(sorted(devices)))

    async def ask_one(self, info: PeerInfo) -> None:
        """One prediction. Raises what the node answers."""
        await self._rpc.stub(InferenceServicer, info.peer_id).rpc_predict(predict_request(bytes(64 * 4), 1))

    async def measure_champion(self, judge_file: Path, weights: bytes) -> Measured:
        """The same, once every node serves the model with this digest. Raises RemoteFailure when one does not."""
        with trio.move_on_after(SERVE_TIMEOUT_S):
            while True:
                serving = [await self.model(info) for info in self.nodes]
                if all(reply is not None and reply.model == weights for reply in serving):
                    return await self.measure(judge_file)
                await trio.sleep(0.5)
        raise RemoteFailure("not-served", f"not every node serves model {weights.hex()[:16]} in {SERVE_TIMEOUT_S:g} s")

    async def model(self, info: PeerInfo) -> ModelReply | None:
        """What a node serves; None while it cannot say."""
        try:
            reply = await self._rpc.stub(InferenceServicer, info.peer_id).rpc_model(ModelRequest(), timeout_s=3.0)
        except MeshError:
            return None
        assert isinstance(reply, ModelReply)
        return reply

    async def bests(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """What each node holds to be best, in words, for the progress display."""
        rows = []
        for name, info in zip(names, self.nodes, strict=True):
            try:
                status = await self._rpc.stub(OptimizationServicer, info.peer_id).rpc_status(
                    StatusRequest(), timeout_s=2.0
                )
                rows.append(
                    (name, f"island {status.best_ppm / 1e4:5.1f} %   champion {status.champion_ppm / 1e4:5.1f} %")
                )
            except MeshError:
                rows.append((name, "no answer"))
        return rows

    async def fetch(self, digest: bytes, *, max_bytes: int) -> bytes:
        """A blob from whichever node serves it, checked by its digest."""
        return await self._content.fetch(digest, max_bytes=max_bytes, peers=[info.peer_id for info in self.nodes])


async def refusal_of_a_stranger(node: PeerInfo, directory: Path) -> str:
    """What a node tells a peer without stake that asks for a prediction; empty when it was served."""
    stranger = Client(PeerKey.generate(), [node], directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(stranger.run)
        try:
            await stranger.ask_one(node)
        except NotAuthorized as error:
            return f"{error.reason}: {error}"
        finally:
            nursery.cancel_scope.cancel()
    return ""
