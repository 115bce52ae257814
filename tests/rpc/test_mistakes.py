"""What people get wrong is said in one sentence, at once, and costs nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.errors import LocalProtocolError, NotAuthorized, RemoteFailure, RequestTimeout
from mesh.peer import PeerID
from mesh.rpc.config import RpcConfig
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.rpc.standing import StandingConfig

from .conftest import Nodes
from .test_blame import innocent
from .test_calls import Job, JobServicer
from .test_streams import Part, StreamServicer, stub_of


@pytest.mark.parametrize("said", [PeerClass.PUBLIC, PeerClass.INFRASTRUCTURE, True, None, 3, "MEMBER"])
async def test_an_authorizer_that_forgets_to_compare_lets_nobody_in(
    nodes: Nodes, autojump_clock: MockClock, said: Any
) -> None:
    class Forgetful(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            return said  # type: ignore[no-any-return]

        async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            return said  # type: ignore[no-any-return]

    servicer = JobServicer()
    async with nodes([servicer], [], authorizer=Forgetful()) as (server, client):
        stub = client.stub(JobServicer, server.net.local.peer_id)
        with pytest.raises(NotAuthorized, match="is for members"):
            await stub.rpc_once(Job())
        with pytest.raises(NotAuthorized, match="is for members"):
            await stub.rpc_at_members(Job())
        assert servicer.ran == []


async def test_a_peer_that_is_no_peer_id(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer()], []) as (server, client):
        for wrong in (str(server.net.local.peer_id), server.net.local, None):
            with pytest.raises(LocalProtocolError, match="a peer is a PeerID"):
                client.stub(JobServicer, wrong)  # type: ignore[arg-type]
            with pytest.raises(LocalProtocolError, match="a peer is a PeerID"):
                await client.call(JobServicer.rpc_once, wrong, Job())  # type: ignore[arg-type]
        await client.stub(JobServicer, server.net.local.peer_id).rpc_once(Job())


async def test_a_stub_says_how_it_is_used(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        stub: Any = stub_of(server, client)
        with pytest.raises(LocalProtocolError, match=r"gives a stream of answers: `async with stub.rpc_count"):
            await stub.rpc_count(Part(n=1))
        with pytest.raises(LocalProtocolError, match="async with"):
            async for _ in stub.rpc_count(Part(n=1)):
                pass
        with pytest.raises(LocalProtocolError, match="async with"):
            await stub.rpc_sum().send(Part())
        with pytest.raises(LocalProtocolError, match="call it with 0 requests"):
            stub.rpc_sum(Part())
        with pytest.raises(LocalProtocolError, match="call it with 1 request"):
            stub.rpc_count()
        innocent(server, client)


async def test_a_deadline_that_is_none(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer(), StreamServicer()], []) as (server, client):
        for timeout_s in (0, -1.0):
            with pytest.raises(LocalProtocolError, match="above 0"):
                await client.stub(JobServicer, server.net.local.peer_id).rpc_once(Job(), timeout_s=timeout_s)
            with pytest.raises(LocalProtocolError, match="above 0"):
                async with stub_of(server, client).rpc_sum(timeout_s=timeout_s):
                    pass


async def test_impatience_is_not_the_peers_fault(nodes: Nodes, autojump_clock: MockClock) -> None:
    config = RpcConfig(standing=StandingConfig(failures_to_open=2))
    async with nodes([JobServicer(delay_s=1.0)], [], config=config) as (server, client):
        stub = client.stub(JobServicer, server.net.local.peer_id)
        for _ in range(5):
            with pytest.raises(RequestTimeout):
                await stub.rpc_once(Job(), timeout_s=0.2)
        await stub.rpc_once(Job())
        innocent(client)


async def test_a_forgotten_end_is_hinted_at(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        with pytest.raises(RequestTimeout, match="`end` was not called"):
            async with stub_of(server, client).rpc_chat(timeout_s=2.0) as call:
                await call.send(Part())
                async for _ in call:
                    pass


async def test_what_can_never_fit_is_not_called_busy(nodes: Nodes, autojump_clock: MockClock) -> None:
    config = RpcConfig(max_buffered_bytes_per_channel=1 << 20)
    async with nodes([StreamServicer()], [], config=config) as (server, client):
        stub = stub_of(server, client)
        with pytest.raises(RemoteFailure, match="too-large") as caught:
            await stub.rpc_plain(Part(blob=bytes(2 << 20)))
        assert not caught.value.retryable
        with pytest.raises(RemoteFailure, match="too-large") as caught:
            async with stub.rpc_sum() as call:
                await call.send(Part(blob=bytes(2 << 20)))
                await call.result()
        assert not caught.value.retryable
        innocent(server, client)


def test_declarations_that_mean_nothing() -> None:
    for wrong in ({"repeat": "safe"}, {"least": "member"}, {"server": 3}):
        with pytest.raises(LocalProtocolError, match="PeerClass"):
            method(**wrong)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match="begins with rpc_"):

        class Unnamed(Servicer):
            protocol = "/mesh/unnamed/1.0.0"

            @method()
            async def upper(self, request: Part, ctx: RpcContext) -> Part:
                return request

            @method()
            async def rpc_other(self, request: Part, ctx: RpcContext) -> AsyncIterator[Part]:
                yield request


async def test_a_class_is_no_service(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([]) as (node,):
        with pytest.raises(LocalProtocolError, match=r"serve an instance: JobServicer\(\)"):
            node.serve(JobServicer)  # type: ignore[arg-type]
        await trio.lowlevel.checkpoint()
