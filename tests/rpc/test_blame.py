"""Who is blamed: never an honest peer, whatever races, and never the whole node."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
import trio
from trio.testing import MockClock

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.errors import (
    DialFailed,
    LocalProtocolError,
    MeshError,
    NotAuthorized,
    RemoteFailure,
    RequestTimeout,
    StreamBroken,
)
from mesh.net.base import Stream
from mesh.peer import PeerID
from mesh.rpc import frame as f
from mesh.rpc.config import RPC_PROTOCOL, RpcConfig
from mesh.rpc.frame import Shape
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.rpc.standing import StandingConfig

from .conftest import Nodes
from .test_calls import Job, JobServicer
from .test_streams import Gate, Part, StreamServicer, stub_of


def innocent(*nodes: Rpc) -> None:
    """Nobody charged anybody with anything, and nothing is left."""
    for node in nodes:
        assert node.metrics.violations == 0
        assert node.metrics.buffered_bytes == 0
        assert node.standings.scores(trio.current_time()) == {}


def deep_header(kind: int) -> bytes:
    """A frame whose header nests as deep as its bytes allow."""
    packed = b"\x92" + bytes((kind,)) + b"\x91" * 1000 + b"\x01"
    return (2 + len(packed)).to_bytes(4, "big") + len(packed).to_bytes(2, "big") + packed


@pytest.mark.parametrize("kind", range(9))
def test_a_deep_header_is_an_error_of_its_sender(kind: int) -> None:
    with pytest.raises(MeshError) as caught:
        list(f.FrameDecoder(max_frame_bytes=1 << 16).feed(deep_header(kind)))
    assert len(str(caught.value)) < 200
    assert msgpack.packb(1)


async def test_a_deep_header_in_an_answer_costs_its_sender_only(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer()], []) as (server, client):

        async def hostile(stream: Stream) -> None:
            await stream.receive_some()
            await stream.send_all(deep_header(2))
            await trio.sleep(1)

        client.net.serve(RPC_PROTOCOL, hostile)
        with pytest.raises(MeshError):
            await server.stub(JobServicer, client.net.local.peer_id).rpc_once(Job())
        assert server.standings.violations(client.net.local.peer_id) == 1
        await trio.sleep(StandingConfig().first_suspension_s)
        await client.stub(JobServicer, server.net.local.peer_id).rpc_once(Job())  # `server` goes on


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2])
async def test_membership_that_ends_during_a_large_answer(
    nodes: Nodes, autojump_clock: MockClock, after_s: float
) -> None:
    gate = Gate()
    async with nodes([StreamServicer()], [], authorizer=gate) as (server, client):
        stub = stub_of(server, client)
        await stub.rpc_plain(Part())

        async def shut() -> None:
            await trio.sleep(after_s)
            gate.shut()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shut)
            with suppress(NotAuthorized, RequestTimeout):
                await stub.rpc_plain(Part(blob=bytes(3 << 20)))
        await trio.sleep(1)
        innocent(server)
        assert client.metrics.violations == 0


async def test_a_call_that_was_left_takes_no_more(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        stub = stub_of(server, client)
        async with trio.open_nursery() as nursery:
            async with stub.rpc_sum() as call:

                async def feed() -> None:
                    with pytest.raises(StreamBroken, match="on this side"):
                        while True:
                            await call.send(Part(blob=bytes(50_000)))

                nursery.start_soon(feed)
                await trio.sleep(0.5)
        with pytest.raises(StreamBroken):
            await call.send(Part())
        with pytest.raises(StreamBroken):
            await call.result()
        assert (await stub.rpc_plain(Part(n=3))).n == 3
        innocent(server)


async def test_a_failure_in_the_callers_block_is_not_the_peers(nodes: Nodes, autojump_clock: MockClock) -> None:
    config = RpcConfig(standing=StandingConfig(failures_to_open=2, first_pause_s=1000.0))
    async with nodes([StreamServicer()], [], config=config) as (server, client):
        stub = stub_of(server, client)
        for _ in range(5):
            with pytest.raises(DialFailed, match="somebody else"):
                async with stub.rpc_count(Part(n=3)) as call:
                    async for _ in call:
                        raise DialFailed("somebody else")
        for _ in range(5):
            with pytest.raises(StreamBroken, match="has ended"):
                async with stub.rpc_first() as call:
                    while True:
                        await call.send(Part(blob=bytes(1000)))
        for _ in range(5):
            with trio.move_on_after(1):
                async with stub.rpc_forever(Part()) as call:
                    async for _ in call:
                        await trio.sleep(0.4)
        assert (await stub.rpc_plain(Part(n=3))).n == 3
        innocent(client, server)


async def test_a_full_table_of_our_own_is_not_the_peers_fault(nodes: Nodes, autojump_clock: MockClock) -> None:
    config = RpcConfig(max_channels=1, standing=StandingConfig(failures_to_open=2))
    async with nodes([StreamServicer()], [StreamServicer()], [], config=config) as (one, two, client):
        async with stub_of(one, client).rpc_forever(Part()):
            for _ in range(5):
                with pytest.raises(DialFailed, match="in use"):
                    await stub_of(two, client).rpc_plain(Part())
        await trio.sleep(0.1)
        await stub_of(two, client).rpc_plain(Part())
        innocent(client)


async def test_a_refusal_closes_the_circuit(nodes: Nodes, autojump_clock: MockClock) -> None:
    class Nobody(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            raise NotAuthorized("not-registered", "no")

    config = RpcConfig(standing=StandingConfig(failures_to_open=1, first_pause_s=5.0))
    async with nodes([JobServicer()], [], authorizer=Nobody(), config=config) as (server, client):
        client.standings.failed(server.net.local.peer_id, trio.current_time())
        await trio.sleep(5)
        for _ in range(3):
            with pytest.raises(NotAuthorized):
                await client.stub(JobServicer, server.net.local.peer_id).rpc_once(Job())


async def test_what_strangers_are_refused_costs_members_nothing(nodes: Nodes, autojump_clock: MockClock) -> None:
    strangers: set[PeerID] = set()

    class Some(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            if peer in strangers:
                raise NotAuthorized("not-registered", "no")
            return PeerClass.MEMBER

    config = RpcConfig(calls_per_s=20.0, calls_per_s_per_peer=10.0)
    async with nodes([JobServicer()], [], [], authorizer=Some(), config=config) as (server, stranger, member):
        strangers.add(stranger.net.local.peer_id)
        for _ in range(100):
            with pytest.raises((NotAuthorized, RemoteFailure)):
                await stranger.stub(JobServicer, server.net.local.peer_id).rpc_once(Job())
        for _ in range(9):
            await member.stub(JobServicer, server.net.local.peer_id).rpc_once(Job())


async def test_names_no_service_can_have_are_refused_here(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer()], []) as (server, client):
        peer = server.net.local.peer_id
        for protocol, name in (("/x" * 1000, "m"), ("", "m"), ("/a/1.0.0", "m" * 65)):
            with pytest.raises(LocalProtocolError):
                client.open_json(peer, protocol, name, "{}", Shape.ONE, timeout_s=5)
        await client.stub(JobServicer, peer).rpc_once(Job())
        innocent(client, server)


async def test_our_own_services_answer_while_we_drain(nodes: Nodes, autojump_clock: MockClock) -> None:
    class Relay(Servicer):
        protocol = "/mesh/relay/1.0.0"
        rpc: Rpc

        @method()
        async def rpc_pass(self, request: Job, ctx: RpcContext) -> Job:
            await trio.sleep(1)
            return await self.rpc.stub(JobServicer, self.rpc.net.local.peer_id).rpc_once(request)

    relay = Relay()
    async with nodes([JobServicer(), relay], []) as (server, client):
        relay.rpc = server
        got = []

        async def call() -> None:
            got.append(await client.stub(Relay, server.net.local.peer_id).rpc_pass(Job(name="x")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(0.5)
            await server.net.drain()
        assert [job.name for job in got] == ["x"]


async def test_a_waiting_repetition_gets_a_reply_too_large_to_keep(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = JobServicer(delay_s=1.0)
    async with nodes([servicer], []) as (server, client):
        server.replies.config = server.replies.config.model_copy(update={"max_bytes_per_peer": 1})
        spec = JobServicer.methods["keyed"]
        head = client._head(spec, b"k" * 16)
        answers = []

        async def send() -> None:
            body = b"".join(spec.request.pack(Job(name="big")))
            answers.append(
                await client._attempt(spec, server.net.local.peer_id, head, (body,), trio.current_time() + 9)
            )

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send)
        assert len(answers) == 3
        assert servicer.ran == ["big"]
        assert server.replies.replies == server.replies.bytes == 0


async def test_a_hedge_goes_on_when_any_call_fails(nodes: Nodes, autojump_clock: MockClock) -> None:
    failing, slow, good = JobServicer(delay_s=3.0), JobServicer(delay_s=100.0), JobServicer()
    failing.failures_left = 99
    async with nodes([failing], [slow], [good], []) as (one, two, three, client):
        peers = [n.net.local.peer_id for n in (one, two, three)]
        start = trio.current_time()
        await client.hedge(JobServicer.rpc_safe, peers, Job(), after_s=8.0)
        # The second is asked at 8 s; the first one fails for good meanwhile, which asks the third.
        assert trio.current_time() - start < 12.0


async def test_a_reader_of_what_is_always_there_lets_others_run(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                await trio.lowlevel.checkpoint()
                others += 1

        async with stub_of(server, client).rpc_count(Part(n=1000)) as call:
            await trio.sleep(2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                with pytest.raises(RemoteFailure):  # it fails at 13
                    async for _ in call:
                        pass
                nursery.cancel_scope.cancel()
        async with stub_of(server, client).rpc_forever(Part()) as call:
            await trio.sleep(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                for _ in range(1000):
                    await anext(call.__aiter__())
                assert others >= 20  # each 32 messages
                nursery.cancel_scope.cancel()


async def test_two_readers_of_one_stream_are_a_mistake(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([StreamServicer()], []) as (server, client):
        async with stub_of(server, client).rpc_chat() as call, trio.open_nursery() as nursery:
            nursery.start_soon(anext, call.__aiter__(), None)
            await trio.sleep(0.1)
            with pytest.raises(trio.BusyResourceError):
                await anext(call.__aiter__())
            nursery.cancel_scope.cancel()
