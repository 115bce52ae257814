"""How a node ends: running calls are finished, no new ones are taken, and a second signal does not wait."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import Everyone
from mesh.errors import MeshError
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method

PROGRAM = """
import sys
import trio
from mesh import mock
from mesh.cli import server
from mesh.subnet import load_subnet
from tests.cli.test_end import SlowServicer

mock.MockServicer = lambda count: SlowServicer()
server.serve("mock", node=server.NodeOptions(no_blockchain_rpc=True, json=True, drain_s=float(sys.argv[1])))
"""


class Wait(BaseModel):
    """Answer when the file is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    go: str


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    payload: str


class SlowServicer(Servicer):
    protocol = "/test/slow/1.0.0"

    @method(timeout_s=60.0)
    async def rpc_wait(self, request: Wait, ctx: RpcContext) -> Answer:
        go = trio.Path(request.go)
        await trio.Path(request.go + ".began").touch()
        while not await go.exists():  # noqa: ASYNC110 - told by another process, by a file
            await trio.sleep(0.01)
        return Answer(payload="x" * 300_000)  # more than one window of what a connection holds unsent


@contextmanager
def node(tmp_path: Path, *, drain_s: float) -> Iterator[tuple[subprocess.Popen[str], PeerInfo]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(drain_s)],
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield process, PeerInfo.parse(ready["addresses"][0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def ended(process: subprocess.Popen[str]) -> int:
    with trio.fail_after(20):
        while process.poll() is None:  # noqa: ASYNC110
            await trio.sleep(0.01)
    return process.returncode


async def began(go: Path) -> None:
    with trio.fail_after(20):
        while not go.with_name(go.name + ".began").exists():  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_running_call_is_answered_and_a_new_one_refused(tmp_path: Path, number: signal.Signals) -> None:
    with node(tmp_path, drain_s=30) as (process, info):
        net = Libp2pNetwork(PeerKey.dev("caller"), Libp2pConfig(listen=()))
        rpc = Rpc(net, Everyone(), rng=random.Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(net.run)
            await nursery.start(rpc.run)
            net.learn(info)
            answers = []

            async def call(go: Path) -> None:
                answers.append(await rpc.call(SlowServicer.rpc_wait, info.peer_id, Wait(go=str(go))))

            async with trio.open_nursery() as calls:
                calls.start_soon(call, tmp_path / "go")
                await began(tmp_path / "go")
                process.send_signal(number)
                refused: MeshError | None = None
                (tmp_path / "at once").touch()
                with trio.fail_after(20):
                    while refused is None:
                        try:
                            await rpc.call(SlowServicer.rpc_wait, info.peer_id, Wait(go=str(tmp_path / "at once")))
                        except MeshError as error:
                            refused = error
                assert "stopping" in str(refused)
                assert process.poll() is None
                (tmp_path / "go").touch()
            assert [len(answer.payload) for answer in answers] == [300_000]
            assert await ended(process) == 0
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("second", [True, False], ids=["a second signal", "the end of drain_s"])
async def test_a_call_that_does_not_end_holds_nobody_for_long(tmp_path: Path, second: bool) -> None:
    with node(tmp_path, drain_s=600 if second else 0.2) as (process, info):
        net = Libp2pNetwork(PeerKey.dev("caller"), Libp2pConfig(listen=()))
        rpc = Rpc(net, Everyone(), rng=random.Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(net.run)
            await nursery.start(rpc.run)
            net.learn(info)

            async def call() -> None:
                with pytest.raises(MeshError):
                    await rpc.call(SlowServicer.rpc_wait, info.peer_id, Wait(go=str(tmp_path / "never")))

            async with trio.open_nursery() as calls:
                calls.start_soon(call)
                await began(tmp_path / "never")
                process.terminate()
                if second:
                    await trio.sleep(0.3)  # two signals at once may arrive as one
                    assert process.poll() is None
                    process.terminate()
                assert await ended(process) == 0
            nursery.cancel_scope.cancel()
