"""Blobs by digest: what is served is checked, what is kept is bounded."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mesh.auth.authorizer import Everyone
from mesh.content import Content, ContentConfig, ContentServicer, FetchReply, FetchRequest
from mesh.errors import ContentNotFound, LocalProtocolError, RemoteFailure, StoreFull
from mesh.identity import PeerKey
from mesh.peer import PeerID
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext
from mesh.testing.network import SimNetwork
from mesh.testing.simulation import run_sim


class Hosts:
    """Nodes that know each other and serve blobs."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self.nursery, self.dir = nursery, directory
        self.sim = SimNetwork(seed=1, latency_s=0.01)
        self.rpcs: list[Rpc] = []

    async def add(self, config: ContentConfig | None = None, *, liar: ContentServicer | None = None) -> Content:
        net = self.sim.node(PeerKey.dev(f"content {len(self.rpcs)}"))
        rpc = Rpc(net, Everyone(), rng=random.Random(1))
        for other in self.rpcs:
            other.net.learn(net.local)
            net.learn(other.net.local)
        content = Content(self.dir / str(len(self.rpcs)), rpc, config)
        rpc.serve(liar or content.servicer())
        self.rpcs.append(rpc)
        await self.nursery.start(net.run)
        await self.nursery.start(rpc.run)
        return content


def peer(content: Content) -> PeerID:
    return content.rpc.net.local.peer_id


def in_hosts(main: Callable[[Hosts], Awaitable[None]], tmp_path: Path) -> None:
    async def bounded() -> None:
        async with trio.open_nursery() as nursery:
            await main(Hosts(nursery, tmp_path))
            nursery.cancel_scope.cancel()

    run_sim(bounded, 1)


def alone(tmp_path: Path, config: ContentConfig | None = None) -> Content:
    """Blobs of a node that talks to nobody."""
    net = SimNetwork(seed=1).node(PeerKey.dev("alone"))
    return Content(tmp_path, Rpc(net, Everyone(), rng=random.Random(1)), config)


class Liar(ContentServicer):
    """Answers with whatever it likes."""

    def __init__(self, answer: Callable[[FetchRequest], FetchReply]) -> None:
        self.answer = answer
        self.asked = 0

    async def rpc_fetch(self, request: FetchRequest, ctx: RpcContext) -> FetchReply:
        self.asked += 1
        return self.answer(request)


# --- on disk ------------------------------------------------------------------------------------------------------


def test_what_is_put_is_there_under_its_digest_for_its_owner_only(tmp_path: Path) -> None:
    content = alone(tmp_path / "blobs")
    digest = content.put(b"hello")
    assert digest == hashlib.sha256(b"hello").digest()
    assert content.get_local(digest) == b"hello"
    assert content.get_local(b"\0" * 32) is None
    (path,) = (tmp_path / "blobs").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert content.put(b"hello") == digest
    assert content.used_bytes == 5


def test_blobs_survive_a_restart_and_torn_writes_do_not(tmp_path: Path) -> None:
    first = alone(tmp_path)
    kept = [first.put(bytes([n]) * 10) for n in range(3)]
    for n, digest in enumerate(kept):
        os.utime(tmp_path / digest.hex(), ns=(n, n))
    (tmp_path / ("ab" * 32 + ".part")).write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("not ours")
    again = alone(tmp_path, ContentConfig(max_files=3))
    assert [again.get_local(d) for d in kept] == [bytes([n]) * 10 for n in range(3)]
    assert not list(tmp_path.glob("*.part"))
    again.put(b"new")
    assert again.get_local(kept[0]) is None  # the oldest left
    assert (tmp_path / "notes.txt").exists()


def test_a_damaged_blob_is_dropped_not_given(tmp_path: Path) -> None:
    content = alone(tmp_path)
    digest = content.put(b"hello")
    (tmp_path / digest.hex()).write_bytes(b"hellO")
    assert content.get_local(digest) is None
    assert content.used_bytes == 0
    assert content.put(b"hello") == digest
    (tmp_path / digest.hex()).unlink()
    with pytest.raises(ContentNotFound):
        content.piece(FetchRequest(digest=digest, offset=0, length=5))
    assert content.put(b"hello") == digest
    assert content.get_local(digest) == b"hello"


def test_the_oldest_unpinned_leave_first_and_pinned_ones_stay(tmp_path: Path) -> None:
    content = alone(tmp_path, ContentConfig(max_bytes=30))
    a, b, c = (content.put(bytes([n]) * 10) for n in range(3))
    content.pin(a)
    d = content.put(b"d" * 10)
    assert [content.get_local(x) is not None for x in (a, b, c, d)] == [True, False, True, True]
    content.pin(c)
    content.pin(d)
    with pytest.raises(StoreFull):
        content.put(b"e")
    content.unpin(a)
    content.put(b"e" * 10)
    assert content.get_local(a) is None
    with pytest.raises(StoreFull):
        content.put(b"f" * 31)
    with pytest.raises(ContentNotFound):
        content.pin(a)
    content.unpin(a)  # nothing to take back, nothing happens


def test_pins_count(tmp_path: Path) -> None:
    content = alone(tmp_path, ContentConfig(max_files=1))
    digest = content.put(b"x")
    content.pin(digest)
    content.pin(digest)
    content.unpin(digest)
    with pytest.raises(StoreFull):
        content.put(b"y")
    content.unpin(digest)
    content.put(b"y")


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), st.integers(1, 100), st.integers(1, 6))
def test_bounds_hold_for_any_sequence(blobs: list[bytes], max_bytes: int, max_files: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        content = alone(Path(directory), ContentConfig(max_bytes=max_bytes, max_files=max_files))
        for blob in blobs:
            try:
                digest = content.put(blob)
            except StoreFull:
                assert len(blob) > max_bytes
                continue
            assert content.get_local(digest) == blob
            files = list(Path(directory).iterdir())
            assert len(files) <= max_files
            assert sum(f.stat().st_size for f in files) == content.used_bytes <= max_bytes


# --- over the network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 2000, 10_000])
def test_a_blob_comes_in_chunks_and_is_kept(size: int, tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        one = await hosts.add()
        two = await hosts.add(ContentConfig(chunk_bytes=1000))
        data = random.Random(1).randbytes(size)
        digest = one.put(data)
        assert await two.fetch(digest, max_bytes=size, peers=[peer(one)]) == data
        hosts.sim.kill(peer(one))
        assert await two.fetch(digest, max_bytes=size, peers=[]) == data

    in_hosts(main, tmp_path)


LIES: dict[str, Callable[[FetchRequest], FetchReply]] = {
    "other bytes": lambda r: FetchReply(size=5, data=b"wrong"),
    "nothing": lambda r: FetchReply(size=5, data=b""),
    "more than asked": lambda r: FetchReply(size=5, data=b"hello, and much more"),
    "a growing blob": lambda r: FetchReply(size=r.offset + 20, data=b"x" * 10),
    "an enormous blob": lambda r: FetchReply(size=2**40, data=b"x" * 10),
    "an empty blob": lambda r: FetchReply(size=0, data=b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_peer_that_lies_is_left_for_the_next(lie: str, tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        servicer = Liar(LIES[lie])
        liar = await hosts.add(liar=servicer)
        honest, two = await hosts.add(), await hosts.add(ContentConfig(chunk_bytes=10))
        digest = honest.put(b"hello")
        assert await two.fetch(digest, max_bytes=100, peers=[peer(liar), peer(honest)]) == b"hello"
        assert 1 <= servicer.asked <= 10
        with pytest.raises(ContentNotFound) as error:
            await two.fetch(b"\1" * 32, max_bytes=100, peers=[peer(liar), peer(honest)])
        assert "none of 2 peers" in str(error.value)

    in_hosts(main, tmp_path)


def test_a_slow_peer_is_left_for_the_next(tmp_path: Path) -> None:
    class Slow(ContentServicer):
        async def rpc_fetch(self, request: FetchRequest, ctx: RpcContext) -> FetchReply:
            await trio.sleep(2)
            return FetchReply(size=10_000, data=b"x" * min(10, 10_000 - request.offset))

    async def main(hosts: Hosts) -> None:
        slow = await hosts.add(liar=Slow.__new__(Slow))
        honest, two = await hosts.add(), await hosts.add(ContentConfig(chunk_bytes=10, peer_timeout_s=9))
        digest = honest.put(b"hello")
        before = trio.current_time()
        assert await two.fetch(digest, max_bytes=10_000, peers=[peer(slow), peer(honest)]) == b"hello"
        assert trio.current_time() - before < 12

    in_hosts(main, tmp_path)


def test_the_callers_bound_holds_before_and_on_disk(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.add(), await hosts.add()
        digest = one.put(b"x" * 1000)
        with pytest.raises(ContentNotFound, match="999 are allowed"):
            await two.fetch(digest, max_bytes=999, peers=[peer(one)])
        with pytest.raises(ContentNotFound, match="999 are allowed"):
            await one.fetch(digest, max_bytes=999, peers=[])
        with pytest.raises(ContentNotFound, match="none of 0 peers"):
            await two.fetch(digest, max_bytes=1000, peers=[])
        with pytest.raises(ContentNotFound):  # ourselves are no source
            await two.fetch(digest, max_bytes=1000, peers=[peer(two)])
        with pytest.raises(LocalProtocolError):
            await two.fetch(b"short", max_bytes=1000, peers=[])

    in_hosts(main, tmp_path)


def test_asking_for_nonsense_is_refused(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.add(), await hosts.add()
        digest = one.put(b"hello")
        stub = two.rpc.stub(ContentServicer, peer(one))
        with pytest.raises(RemoteFailure) as error:
            await stub.rpc_fetch(FetchRequest(digest=b"\1" * 32, offset=0, length=5))
        assert error.value.code == "content-not-found"
        past = await stub.rpc_fetch(FetchRequest(digest=digest, offset=2**40, length=5))
        assert past == FetchReply(size=5, data=b"")

    in_hosts(main, tmp_path)


def test_a_dead_peer_is_left_for_the_next(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        dead, honest, two = await hosts.add(), await hosts.add(), await hosts.add()
        digest = honest.put(b"hello")
        hosts.sim.kill(peer(dead))
        assert await two.fetch(digest, max_bytes=5, peers=[peer(dead), peer(honest)]) == b"hello"

    in_hosts(main, tmp_path)
