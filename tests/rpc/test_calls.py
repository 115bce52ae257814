"""Around a call: repetition, hedging, kept replies, versions, reflection, JSON, suspension, traces, rates, draining."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

import pytest
import trio
from pydantic import BaseModel, ConfigDict
from trio.testing import MockClock

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.errors import (
    LocalProtocolError,
    NotAuthorized,
    PeerSuspended,
    RemoteFailure,
    RequestTimeout,
    StreamBroken,
)
from mesh.log import TraceFilter
from mesh.net.base import Stream
from mesh.peer import PeerID
from mesh.rpc.body import pack
from mesh.rpc.config import RPC_PROTOCOL, ReplyCacheConfig, RpcConfig
from mesh.rpc.frame import Shape
from mesh.rpc.reflection import ListRequest, ReflectionServicer
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import Repeat, RpcContext, Servicer, method
from mesh.rpc.standing import StandingConfig
from mesh.testing.network import SimNetwork
from mesh.trace import CURRENT

from .conftest import Nodes


class Job(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    n: int = 0


class JobServicer(Servicer):
    protocol = "/mesh/jobs/1.0.0"

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.ran: list[str] = []
        self.failures_left = 0
        self.cancelled = 0

    async def _run(self, request: Job) -> Job:
        self.ran.append(request.name)
        try:
            await trio.sleep(self.delay_s)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.failures_left:
            self.failures_left -= 1
            raise RemoteFailure("out-of-memory", "come back", retryable=True)
        return Job(name=request.name, n=len(self.ran))

    @method()
    async def rpc_once(self, request: Job, ctx: RpcContext) -> Job:
        return await self._run(request)

    @method(repeat=Repeat.SAFE)
    async def rpc_safe(self, request: Job, ctx: RpcContext) -> Job:
        return await self._run(request)

    @method(repeat=Repeat.KEYED)
    async def rpc_keyed(self, request: Job, ctx: RpcContext) -> Job:
        return await self._run(request)

    @method(server=PeerClass.MEMBER)
    async def rpc_at_members(self, request: Job, ctx: RpcContext) -> Job:
        return request

    @method()
    async def rpc_each(self, requests: AsyncIterator[Job], ctx: RpcContext) -> AsyncIterator[Job]:
        """What came, one up."""
        async for job in requests:
            yield Job(name=job.name, n=job.n + 1)


def of(server: Rpc) -> PeerID:
    return server.net.local.peer_id


async def test_only_what_may_be_repeated_is_tried_again(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = JobServicer()
    async with nodes([servicer], []) as (server, client):
        stub = client.stub(JobServicer, of(server))
        servicer.failures_left = 2
        assert (await stub.rpc_safe(Job(name="a"))).n == 3
        assert client.metrics.retries == 2
        servicer.failures_left = 3
        with pytest.raises(RemoteFailure, match="out-of-memory"):
            await stub.rpc_safe(Job(name="b"))
        servicer.failures_left, servicer.ran = 1, []
        with pytest.raises(RemoteFailure, match="out-of-memory"):
            await stub.rpc_once(Job(name="c"))
        assert servicer.ran == ["c"]


async def test_retries_end_with_the_deadline(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = JobServicer(delay_s=0.9)
    async with nodes([servicer], []) as (server, client):
        servicer.failures_left = 9
        start = trio.current_time()
        with pytest.raises(RequestTimeout):
            await client.stub(JobServicer, of(server)).rpc_safe(Job(), timeout_s=2.0)
        assert trio.current_time() - start == pytest.approx(2.0)


async def test_a_lost_answer_is_asked_for_again_and_the_call_ran_once(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = JobServicer(delay_s=1.0)
    async with nodes([servicer], []) as (server, client):
        stub = client.stub(JobServicer, of(server))

        async def cut() -> None:
            await trio.sleep(0.5)
            await client.net.disconnect(of(server))  # the first try's handler is cancelled with its channel
            await trio.sleep(1.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            assert (await stub.rpc_keyed(Job(name="x"))).name == "x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            with pytest.raises(StreamBroken):
                await stub.rpc_once(Job(name="y"))
        assert servicer.ran.count("y") == 1


async def test_a_key_runs_once_and_answers_all(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = JobServicer(delay_s=1.0)
    async with nodes([servicer], []) as (server, client):
        spec = JobServicer.methods["keyed"]
        head = client._head(spec, b"k" * 16)
        body = pack(Job(name="paid"))

        async def send(answers: list[bytes], data: bytes = body) -> None:
            answers.append(bytes(await client._attempt(spec, of(server), head, (data,), trio.current_time() + 9)))

        answers: list[bytes] = []
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send, answers)
        await send(answers)
        assert len(answers) == 6
        assert len(set(answers)) == 1
        assert servicer.ran == ["paid"]
        with pytest.raises(RemoteFailure, match="another request"):
            await send([], pack(Job(name="other")))
        with pytest.raises(RemoteFailure, match="keeps no replies"):
            other = JobServicer.methods["safe"]
            await client._attempt(other, of(server), client._head(other, b"k"), (body,), trio.current_time() + 9)
        await trio.sleep(ReplyCacheConfig().life_s + 1)
        await send([])
        assert servicer.ran == ["paid", "paid"]


async def test_kept_replies_are_bounded_and_every_callers_own(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = JobServicer()
    config = RpcConfig(replies=ReplyCacheConfig(max_replies=10, max_replies_per_peer=4, max_bytes=10_000))
    async with nodes([servicer], [], [], [], [], config=config) as (server, *clients):
        spec = JobServicer.methods["keyed"]
        for client in clients:
            for n in range(8):
                head = client._head(spec, bytes([n + 1]) * 16)
                await client._attempt(spec, of(server), head, (pack(Job()),), trio.current_time() + 9)
        assert len(servicer.ran) == 32
        assert server.replies.replies <= 10
        assert all(len(own) <= 4 for own in server.replies._peers.values())


async def test_a_hedged_call_takes_the_first_answer(nodes: Nodes, autojump_clock: MockClock) -> None:
    slow, fast, third = JobServicer(delay_s=5.0), JobServicer(delay_s=0.1), JobServicer()
    async with nodes([slow], [fast], [third], []) as (one, two, three, client):
        start = trio.current_time()
        peers = [of(one), of(two), of(three)]
        await client.hedge(JobServicer.rpc_safe, peers, Job(name="h"), after_s=1.0)
        assert trio.current_time() - start == pytest.approx(1.2, abs=0.1)
        await trio.sleep(1)
        assert (len(slow.ran), slow.cancelled, len(fast.ran), len(third.ran)) == (1, 1, 1, 0)
        slow.failures_left = fast.failures_left = third.failures_left = 9
        slow.delay_s = 0.0
        with pytest.raises(RemoteFailure, match="out-of-memory"):
            await client.hedge(JobServicer.rpc_safe, peers, Job(), after_s=1.0)
        with pytest.raises(LocalProtocolError, match="not declared safe"):
            await client.hedge(JobServicer.rpc_once, peers, Job(), after_s=1.0)


async def test_a_dead_peer_is_left_alone_and_tried_again(nodes: Nodes, autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.01)
    standing = StandingConfig(failures_to_open=3, first_pause_s=10.0, max_pause_s=40.0)
    async with nodes([JobServicer()], [JobServicer()], sim=sim, config=RpcConfig(standing=standing)) as (
        server,
        client,
    ):
        stub = client.stub(JobServicer, of(server))
        sim.kill(of(server))
        for _ in range(3):
            with pytest.raises(Exception, match="does not answer"):
                await stub.rpc_once(Job())
        start = trio.current_time()
        for _ in range(100):
            with pytest.raises(PeerSuspended, match="3 calls in a row"):
                await stub.rpc_once(Job())
        assert trio.current_time() == start
        await trio.sleep(10)
        with pytest.raises(Exception, match="does not answer"):
            await stub.rpc_once(Job())
        await trio.sleep(19)
        with pytest.raises(PeerSuspended):
            await stub.rpc_once(Job())
        sim.revive(of(server))
        await trio.sleep(1)
        await stub.rpc_once(Job())
        await stub.rpc_once(Job())
        assert client.standings.scores(trio.current_time()) == {}


async def test_a_peer_that_calls_us_is_alive(nodes: Nodes, autojump_clock: MockClock) -> None:
    sim = SimNetwork(seed=1, latency_s=0.01)
    config = RpcConfig(standing=StandingConfig(failures_to_open=1, first_pause_s=1000.0))
    async with nodes([JobServicer()], [JobServicer()], sim=sim, config=config) as (one, two):
        sim.kill(of(one))
        with pytest.raises(Exception, match="does not answer"):
            await two.stub(JobServicer, of(one)).rpc_once(Job())
        sim.revive(of(one))
        with pytest.raises(PeerSuspended):
            await two.stub(JobServicer, of(one)).rpc_once(Job())
        await one.stub(JobServicer, of(two)).rpc_once(Job())
        await two.stub(JobServicer, of(one)).rpc_once(Job())


async def test_who_breaks_the_protocol_is_refused_for_a_growing_time(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer()], []) as (server, attacker):
        waits = []
        for _ in range(4):
            stream = await attacker.net.open(of(server), RPC_PROTOCOL)
            with pytest.raises(StreamBroken):
                await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await stream.receive_some()
            start = trio.current_time()
            while not await _is_served(await attacker.net.open(of(server), RPC_PROTOCOL)):  # noqa: ASYNC110
                await trio.sleep(0.5)
            waits.append(trio.current_time() - start)
        first = StandingConfig().first_suspension_s
        assert waits == pytest.approx([first, first * 4, first * 16, first * 64], abs=1.5)
        assert server.standings.scores(trio.current_time())[of(attacker)] < 0.01
        await trio.sleep(StandingConfig().violation_life_s)
        assert server.standings.scores(trio.current_time()) == {}


async def _is_served(stream: Stream) -> bool:
    try:
        with trio.move_on_after(0.2):
            return bool(await stream.receive_some())
    except StreamBroken:
        return False
    await stream.reset()
    return True


class JobServicer2(JobServicer):
    protocol = "/mesh/jobs/2.0.0"


class JobServicer10(JobServicer):
    protocol = "/mesh/jobs/10.0.0"


async def test_the_newest_common_version_is_chosen(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer(), JobServicer2()], [JobServicer10()], []) as (both, newest, client):
        for server in (both, newest):
            server.serve(ReflectionServicer(server.served))
        versions = (JobServicer, JobServicer10, JobServicer2)
        assert await client.newest(of(both), *versions) is JobServicer2
        assert await client.newest(of(newest), *versions) is JobServicer10
        with pytest.raises(RemoteFailure, match="serves none of"):
            await client.newest(of(newest), JobServicer, JobServicer2)


async def test_reflection_says_what_there_is(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer()], []) as (server, client):
        server.serve(ReflectionServicer(server.served))
        listed = await client.stub(ReflectionServicer, of(server)).rpc_list(ListRequest())
        assert [s.protocol for s in listed.services] == ["/mesh/jobs/1.0.0", "/mesh/reflection/1.0.0"]
        each = {m.name: m for m in listed.services[0].methods}["each"]
        assert each.shape == Shape.REQUESTS | Shape.ANSWERS
        assert each.summary == "What came, one up."
        assert set(json.loads(each.request)["properties"]) == {"name", "n"}


async def test_calls_with_json(nodes: Nodes, autojump_clock: MockClock) -> None:
    async with nodes([JobServicer()], []) as (server, client):
        protocol = JobServicer.protocol
        async with client.open_json(of(server), protocol, "once", '{"name": "j"}', Shape.ONE, timeout_s=5) as call:
            assert json.loads(await call.result()) == {"name": "j", "n": 1}
        shape = Shape.REQUESTS | Shape.ANSWERS
        async with client.open_json(of(server), protocol, "each", None, shape, timeout_s=5) as call:
            for n in range(3):
                await call.send(json.dumps({"n": n}))
            await call.end()
            assert [json.loads(text)["n"] async for text in call] == [1, 2, 3]
        for wrong in ("{", "[]", '{"n": "x"}', '{"other": 1}', '"' + "[" * 5000):
            with pytest.raises(RemoteFailure, match="bad-request"):
                async with client.open_json(of(server), protocol, "once", wrong, Shape.ONE, timeout_s=5) as call:
                    await call.result()


async def test_a_peer_of_too_low_a_class_is_not_called(nodes: Nodes, autojump_clock: MockClock) -> None:
    class OnlyUs(Everyone):
        async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            raise NotAuthorized("not-registered", f"{peer.short} is no member")

    async with nodes([JobServicer()], [], authorizer=OnlyUs()) as (server, client):
        stub = client.stub(JobServicer, of(server))
        with pytest.raises(NotAuthorized, match="is no member"):
            await stub.rpc_at_members(Job())
        assert client.metrics.channels_opened == 0
        assert (await stub.rpc_once(Job(name="x"))).name == "x"


class Outer(Servicer):
    protocol = "/mesh/outer/1.0.0"

    def __init__(self) -> None:
        self.rpc: Rpc | None = None
        self.inner: PeerID | None = None
        self.contexts: list[RpcContext] = []

    @method()
    async def rpc_pass_on(self, request: Job, ctx: RpcContext) -> Job:
        self.contexts.append(ctx)
        logging.getLogger("mesh.test").warning("passing on")
        if self.rpc is None or self.inner is None:
            raise ValueError("the end of the line")
        return await self.rpc.stub(Outer, self.inner).rpc_pass_on(request)


async def test_a_trace_follows_calls_and_is_in_the_log(
    nodes: Nodes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Outer(), Outer()
    async with nodes([first], [second], []) as (one, two, client):
        first.rpc, first.inner = one, of(two)
        caplog.handler.addFilter(TraceFilter())
        with pytest.raises(RemoteFailure, match="internal"):
            await client.stub(Outer, of(one)).rpc_pass_on(Job())
    outer, inner = first.contexts[0].trace, second.contexts[0].trace
    assert outer is not None
    assert inner is not None
    assert outer.trace_id == inner.trace_id
    assert outer.span_id != inner.span_id
    said = {record.getMessage(): record.trace for record in caplog.records if hasattr(record, "trace")}
    assert said["/mesh/outer/1.0.0 pass_on failed"] == f" [{inner}]"
    assert CURRENT.get() is None


async def test_calls_per_second_are_bounded_per_peer(nodes: Nodes, autojump_clock: MockClock) -> None:
    config = RpcConfig(calls_per_s_per_peer=20.0, calls_per_s=30.0)
    async with nodes([JobServicer()], [], [], config=config) as (server, one, two):
        served, refusals = [], []
        for client in (one, two):
            answered = 0
            for _ in range(40):
                try:
                    await client.stub(JobServicer, of(server)).rpc_once(Job(), timeout_s=1.0)
                    answered += 1
                except RemoteFailure as error:
                    refusals.append((error.code, error.retryable))
            served.append(answered)
        # A burst of a second's worth, and what one round trip of 20 ms each gives back meanwhile.
        assert set(refusals) == {("busy", True)}
        assert served[0] <= 20 + 20 * 0.9
        assert sum(served) <= 30 + 30 * 1.8


async def test_one_peer_cannot_take_all_places_of_a_method(nodes: Nodes, autojump_clock: MockClock) -> None:
    class Narrow(Servicer):
        protocol = "/mesh/narrow/1.0.0"

        @method(max_concurrent=4)
        async def rpc_wait(self, request: Job, ctx: RpcContext) -> Job:
            await trio.sleep(1)
            return request

    async with nodes([Narrow()], [], []) as (server, greedy, other):
        results: list[str] = []

        async def one(client: Rpc, name: str) -> None:
            try:
                await client.stub(Narrow, of(server)).rpc_wait(Job())
                results.append(name)
            except RemoteFailure as error:
                results.append(f"{name} {error.code}")

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one, greedy, "greedy")
            await trio.sleep(0.5)
            nursery.start_soon(one, other, "other")
        assert results.count("greedy") == 2
        assert "other" in results


async def test_draining_answers_what_runs_and_nothing_new(nodes: Nodes, autojump_clock: MockClock) -> None:
    servicer = JobServicer(delay_s=2.0)
    async with nodes([servicer], []) as (server, client):
        stub = client.stub(JobServicer, of(server))
        answers: list[Job] = []

        async def one() -> None:
            answers.append(await stub.rpc_once(Job(name="running")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await trio.sleep(1)
            start = trio.current_time()
            nursery.start_soon(server.net.drain)
            await trio.sleep(0.1)
            with pytest.raises(RemoteFailure, match="stopping"):
                await stub.rpc_once(Job(name="new"))
        assert [a.name for a in answers] == ["running"]
        assert trio.current_time() - start < 1.5  # the drain ended with the call


def test_metrics_of_methods_are_named(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes([JobServicer(delay_s=0.25)], []) as (server, client):
            await client.stub(JobServicer, of(server)).rpc_once(Job())
            found = server.metrics.methods_in["/mesh/jobs/1.0.0 once"]
            assert (found.calls, found.failures, found.running) == (1, 0, 0)
            assert found.slowest_s == pytest.approx(0.25, abs=0.01)

    trio.run(main, clock=MockClock(autojump_threshold=0))
