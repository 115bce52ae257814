"""Blobs over the network: many sources at once, some of which lie, stall or vanish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from mesh.content import (
    CHUNK_BYTES,
    ChunkReply,
    ChunkRequest,
    Content,
    ContentConfig,
    ContentServicer,
    FetchConfig,
    ManifestReply,
    ManifestRequest,
    PenaltyConfig,
    digest_of,
    in_thread,
)
from mesh.content.merkle import MAX_BLOB_BYTES, MAX_CHUNKS, manifest_of
from mesh.errors import ContentNotFound, LocalProtocolError, NetworkError, RemoteFailure, StoreFull
from mesh.peer import PeerID
from tests.content.hosts import MIB, Corrupt, Counting, Hosts, Slow, Stalled, blob, in_hosts, peer

LARGE = blob(8 * MIB + 1000)
CHUNKS = 9


class Noted:
    """Makes a servicer of a kind for a node and keeps it for the test to ask."""

    def __init__(self, kind: type[Counting]) -> None:
        self.kind = kind
        self.made: list[Counting] = []

    def __call__(self, content: Content) -> Counting:
        self.made.append(self.kind(content))
        return self.made[-1]

    @property
    def chunks(self) -> list[int]:
        return self.made[0].chunks


@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_blob_comes_and_is_kept(size: int, tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        served = Noted(Counting)
        one, two = await hosts.add(serves=served), await hosts.add()
        data = blob(size)
        digest = one.put(data)
        assert await two.fetch(digest, max_bytes=size, peers=[peer(one)]) == data
        assert sorted(served.chunks) == (list(range(len(manifest_of(data)))) if size > CHUNK_BYTES else [])
        hosts.sim.kill(peer(one))
        assert await two.fetch(digest, max_bytes=size, peers=[]) == data
        assert two.size(digest) == size

    in_hosts(main, tmp_path)


async def test_it_comes_the_same_way_with_threads(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        hosts = Hosts(nursery, tmp_path)
        one, other, two = [await hosts.add(offload=in_thread) for _ in range(3)]
        one.put(LARGE)
        other.put(LARGE)
        path = await two.fetch_file(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one), peer(other)])
        assert path.read_bytes() == LARGE
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE)) == LARGE
        nursery.cancel_scope.cancel()


def test_chunks_come_from_all_who_have_them(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        served = [Noted(Slow) for _ in range(3)]
        sources = [await hosts.add(serves=each) for each in served]
        for source in sources:
            source.put(LARGE)
        two = await hosts.add()
        told: list[tuple[int, int]] = []
        before = trio.current_time()
        path = await two.fetch_file(
            digest_of(LARGE),
            max_bytes=len(LARGE),
            peers=[peer(s) for s in sources],
            progress=lambda *at: told.append(at),
        )
        assert trio.current_time() - before < 3.5  # one after the other would take nine seconds
        assert path.read_bytes() == LARGE
        assert [len(each.chunks) for each in served] == [3, 3, 3]
        assert told[0] == (0, len(LARGE))
        assert told[-1] == (len(LARGE), len(LARGE))
        assert told == sorted(told)

    in_hosts(main, tmp_path)


def test_a_peer_that_sends_wrong_bytes_is_left_and_refused_for_longer_each_time(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        heard: list[tuple[PeerID, str]] = []
        liar = Noted(Corrupt)
        config = ContentConfig(fetch=FetchConfig(penalty=PenaltyConfig(first_s=30)))
        bad, good = await hosts.add(serves=liar), await hosts.add()
        two = await hosts.add(config, on_penalty=lambda *what: heard.append(what))
        both = [peer(bad), peer(good)]
        refused = []
        for n in range(3):
            data = blob(4 * MIB, n)
            assert bad.put(data) == good.put(data)
            begin = trio.current_time()
            assert await two.fetch(digest_of(data), max_bytes=len(data), peers=both) == data
            ((who, penalty),) = two.fetcher.penalties.items()
            assert who == peer(bad)
            assert penalty.offences == n + 1
            refused.append(round((penalty.until - begin) / 30))
            await trio.sleep_until(penalty.until)
        assert refused == [1, 2, 4]
        assert [who for who, _ in heard] == [peer(bad)] * 3
        assert all("not chunk" in why for _, why in heard)
        asked = len(liar.chunks)
        data = blob(4 * MIB, 9)
        bad.put(data)
        good.put(data)
        two.fetcher.penalize(peer(bad), "again")
        assert await two.fetch(digest_of(data), max_bytes=len(data), peers=both) == data
        assert len(liar.chunks) == asked  # not asked while it is refused
        two.drop(digest_of(data))
        with pytest.raises(ContentNotFound, match="refused for what it sent before"):
            await two.fetch(digest_of(data), max_bytes=len(data), peers=[peer(bad)])

    in_hosts(main, tmp_path)


def test_a_peer_that_stalls_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        stalled = Noted(Stalled)
        bad, good, two = await hosts.add(serves=stalled), await hosts.add(), await hosts.add()
        bad.put(LARGE)
        good.put(LARGE)
        before = trio.current_time()
        data = await two.fetch(digest_of(LARGE), max_bytes=len(LARGE), peers=[peer(bad), peer(good)])
        assert data == LARGE
        assert trio.current_time() - before < 5
        assert len(stalled.chunks) == 1
        assert not two.fetcher.penalties.items()  # slow is no lie

    in_hosts(main, tmp_path)


def test_a_peer_that_vanishes_mid_way_is_replaced(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        class Vanishing(Slow):
            async def chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
                if len(self.chunks) == 3:
                    hosts.sim.kill(peer(one))
                return await super().chunk(request, remote)

        vanishing, slow = Noted(Vanishing), Noted(Slow)
        one, other, two = await hosts.add(serves=vanishing), await hosts.add(serves=slow), await hosts.add()
        one.put(LARGE)
        other.put(LARGE)
        data = await two.fetch(digest_of(LARGE), max_bytes=len(LARGE), peers=[peer(one), peer(other)])
        assert data == LARGE
        assert 2 <= len(vanishing.chunks) <= 3
        assert len(slow.chunks) >= 6

    in_hosts(main, tmp_path)


def test_no_source_left_is_said_with_what_each_said(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        bad, other, two = await hosts.add(serves=Corrupt), await hosts.add(), await hosts.add()
        bad.put(LARGE)
        with pytest.raises(ContentNotFound, match="none of 2 peers") as error:
            await two.fetch(digest_of(LARGE), max_bytes=len(LARGE), peers=[peer(bad), peer(other)])
        assert "not chunk 0" in str(error.value)
        assert "is not here" in str(error.value)
        assert two.entries() == []

    in_hosts(main, tmp_path)


def lie(size: int, leaves: bytes, data: bytes) -> Callable[[Content], Counting]:
    class Liar(Counting):
        async def manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
            return ManifestReply(size=size, leaves=leaves, data=data)

        async def chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
            raise AssertionError("no chunk is asked for before the manifest is right")

    return Liar


TRUE = manifest_of(LARGE)
LIES = {
    "other bytes": lie(5, b"", b"wrong"),
    "no bytes": lie(5, b"", b""),
    "more bytes than announced": lie(5, b"", b"hello, and much more"),
    "an empty blob": lie(0, b"", b""),
    "one byte less": lie(TRUE.size - 1, TRUE.leaves, b""),
    "one byte more": lie(TRUE.size + 1, TRUE.leaves, b""),
    "an enormous blob": lie(MAX_BLOB_BYTES, bytes(MAX_CHUNKS * 32), b""),
    "an enormous blob of few chunks": lie(MAX_BLOB_BYTES, TRUE.leaves, b""),
    "few chunks": lie(TRUE.size, TRUE.leaves[:-32], b""),
    "no chunks": lie(TRUE.size, b"", b""),
    "half a hash": lie(TRUE.size, TRUE.leaves[:-1], b""),
    "swapped chunks": lie(TRUE.size, TRUE.leaves[32:64] + TRUE.leaves[:32] + TRUE.leaves[64:], b""),
    "data beside chunks": lie(TRUE.size, TRUE.leaves, b"x"),
    "chunks of a small blob": lie(5, bytes(32), b"hello"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_false_manifest_costs_its_sender_and_not_us(what: str, tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        liar, honest, two = await hosts.add(serves=LIES[what]), await hosts.add(), await hosts.add()
        honest.put(LARGE)
        both = [peer(liar), peer(honest)]
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE) + MIB, peers=both) == LARGE
        is_only_large = what.startswith("an enormous")  # which it may be: the digest cannot say before the tree does
        assert bool(two.fetcher.penalties.items()) != is_only_large
        assert [entry.size for entry in two.entries()] == [len(LARGE)]  # nothing was made for the liar

    in_hosts(main, tmp_path)


def test_the_callers_bound_holds_before_and_on_disk(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.add(), await hosts.add()
        for data in (b"x" * 1000, LARGE):
            digest = one.put(data)
            less = len(data) - 1
            with pytest.raises(ContentNotFound, match=f"{less} are allowed"):
                await two.fetch(digest, max_bytes=less, peers=[peer(one)])
            with pytest.raises(ContentNotFound, match=f"{less} are allowed"):
                await one.fetch(digest, max_bytes=less, peers=[])
            with pytest.raises(ContentNotFound, match="none of 0 peers"):
                await two.fetch(digest, max_bytes=len(data), peers=[])
            with pytest.raises(ContentNotFound):  # ourselves are no source
                await two.fetch(digest, max_bytes=len(data), peers=[peer(two)])
            assert two.entries() == []
        with pytest.raises(LocalProtocolError):
            await two.fetch(b"short", max_bytes=1000, peers=[])

    in_hosts(main, tmp_path)


def test_a_fetch_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        served = Noted(Slow)
        one, two = await hosts.add(serves=served), await hosts.add()
        one.put(LARGE)
        with trio.move_on_after(4.5):
            await two.fetch_file(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)])
            raise AssertionError
        assert two.size(TRUE.digest) is None
        assert [entry.is_whole for entry in two.entries()] == [False]
        assert list(range(len(served.chunks))) == sorted(served.chunks)
        with (two.directory / (TRUE.digest.hex() + ".part")).open("r+b") as file:
            file.write(b"damage")  # the crash took one of them
        there = (two.directory / (TRUE.digest.hex() + ".part")).stat().st_size // MIB
        assert there == 4
        served.chunks.clear()
        again = hosts.again(two)
        told: list[int] = []
        path = await again.fetch_file(
            TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)], progress=lambda done, _: told.append(done)
        )
        assert path.read_bytes() == LARGE
        assert sorted(served.chunks) == [0, 4, 5, 6, 7, 8]
        assert told[0] == 3 * MIB
        assert [entry.is_whole for entry in again.entries()] == [True]

    in_hosts(main, tmp_path)


def test_a_file_of_the_callers_is_filled_the_same_way(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        served = Noted(Slow)
        one, two = await hosts.add(serves=served), await hosts.add()
        one.put(LARGE)
        small = one.put(b"small")
        out = tmp_path / "out"
        out.mkdir()
        target = out / "model"
        with trio.move_on_after(4.5):
            await two.fetch_to(TRUE.digest, target, max_bytes=len(LARGE), peers=[peer(one)])
        assert [path.suffix for path in out.iterdir()] == [".part"]
        served.chunks.clear()
        assert await two.fetch_to(TRUE.digest, target, max_bytes=len(LARGE), peers=[peer(one)]) == len(LARGE)
        assert target.read_bytes() == LARGE
        assert len(served.chunks) == 5
        assert await two.fetch_to(small, out / "small", max_bytes=9, peers=[peer(one)]) == 5
        assert sorted(path.name for path in out.iterdir()) == ["model", "small"]
        assert two.entries() == []
        with pytest.raises(StoreFull, match="cannot write"):
            await two.fetch_to(small, tmp_path / "nowhere" / "small", max_bytes=9, peers=[peer(one)])
        with pytest.raises(StoreFull, match="cannot write"):
            await two.fetch_to(TRUE.digest, tmp_path / "nowhere" / "x", max_bytes=len(LARGE), peers=[peer(one)])

    in_hosts(main, tmp_path)


def test_two_who_fetch_one_blob_fetch_it_once(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        served = Noted(Slow)
        one, two = await hosts.add(serves=served), await hosts.add()
        one.put(LARGE)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)]))
        assert sorted(served.chunks) == list(range(CHUNKS))
        assert not two._locks

    in_hosts(main, tmp_path)


def test_what_has_no_room_is_not_fetched(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        served = Noted(Counting)
        one, two = await hosts.add(serves=served), await hosts.add(ContentConfig(max_bytes=9 * MIB))
        one.put(LARGE)
        kept = two.put(blob(MIB))
        two.pin(kept)
        with pytest.raises(StoreFull):
            await two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)])
        assert served.chunks == []
        two.unpin(kept)
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)]) == LARGE
        assert two.size(kept) is None

    in_hosts(main, tmp_path)


def test_sources_are_found_and_told(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        provided: list[bytes] = []
        answers: list[Sequence[PeerID]] = []

        async def find(digest: bytes) -> Sequence[PeerID]:
            if not answers:
                raise NetworkError("nobody answers")
            return answers.pop(0)

        async def provide(digest: bytes) -> None:
            provided.append(digest)
            if len(provided) > 1:
                raise NetworkError("nobody answers")

        bad, good = await hosts.add(serves=Corrupt), await hosts.add()
        two = await hosts.add(find_providers=find, provide=provide)
        bad.put(LARGE)
        good.put(LARGE)
        with pytest.raises(ContentNotFound, match="none of 0 peers"):
            await two.fetch(TRUE.digest, max_bytes=len(LARGE))
        answers[:] = [[], [peer(two), peer(good)]]
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE)) == LARGE
        assert provided == [TRUE.digest]
        two.drop(TRUE.digest)
        answers[:] = [[peer(bad)], [peer(bad), peer(good)]]  # looked for again when the first has lied
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE)) == LARGE
        assert len(provided) == 2  # a failure is no failure of the fetch

    in_hosts(main, tmp_path)


def test_slow_answers_are_not_waited_for_one_after_the_other(tmp_path: Path) -> None:
    class Silent(Counting):
        async def manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
            await trio.sleep_forever()
            raise AssertionError

    async def main(hosts: Hosts) -> None:
        silent = [await hosts.add(serves=Silent) for _ in range(4)]
        honest, two = await hosts.add(), await hosts.add()
        digest = honest.put(b"hello")
        before = trio.current_time()
        assert await two.fetch(digest, max_bytes=5, peers=[peer(each) for each in (*silent, honest)]) == b"hello"
        assert trio.current_time() - before < 4.5

    in_hosts(main, tmp_path)


def test_a_dead_peer_is_left_for_the_next(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        dead, honest, two = await hosts.add(), await hosts.add(), await hosts.add()
        digest = honest.put(b"hello")
        honest.put(LARGE)
        hosts.sim.kill(peer(dead))
        both = [peer(dead), peer(honest)]
        assert await two.fetch(digest, max_bytes=5, peers=both) == b"hello"
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=both) == LARGE

    in_hosts(main, tmp_path)


def test_a_busy_peer_is_asked_later(tmp_path: Path) -> None:
    class Busy(Counting):
        async def manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
            if self.manifests < 3:
                raise RemoteFailure("busy", "later", retryable=True)
            return await super().manifest(request, remote)

        async def chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
            if len(self.chunks) % 2:
                raise RemoteFailure("busy", "later", retryable=True)
            return await super().chunk(request, remote)

    async def main(hosts: Hosts) -> None:
        busy, two = await hosts.add(serves=Busy), await hosts.add()
        busy.put(LARGE)
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=[peer(busy)]) == LARGE
        assert not two.fetcher.penalties.items()

    in_hosts(main, tmp_path)


# --- serving ------------------------------------------------------------------------------------------------------


def test_asking_for_nonsense_is_refused(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.add(), await hosts.add()
        small, large = one.put(b"hello"), one.put(LARGE)
        call, at = two.rpc.call, peer(one)
        with pytest.raises(RemoteFailure, match="content-not-found"):
            await call(ContentServicer.rpc_manifest, at, ManifestRequest(digest=b"\1" * 32))
        for digest, index in ((b"\1" * 32, 0), (small, 1), (large, CHUNKS), (large, MAX_CHUNKS - 1)):
            with pytest.raises(RemoteFailure, match="content-not-found"):
                await call(ContentServicer.rpc_chunk, at, ChunkRequest(digest=digest, index=index))
        assert (await call(ContentServicer.rpc_chunk, at, ChunkRequest(digest=small, index=0))).data == b"hello"
        unchecked = ChunkRequest.model_construct(digest=b"../../../etc/passwd", index=0)
        with pytest.raises(RemoteFailure, match="bad-request"):
            await call(ContentServicer.rpc_chunk, at, unchecked)

    in_hosts(main, tmp_path)


def test_what_was_damaged_on_disk_is_not_served(tmp_path: Path) -> None:
    """Else a bad disk would make a liar of an honest node."""

    async def main(hosts: Hosts) -> None:
        one, two = await hosts.add(), await hosts.add()
        one.put(LARGE)
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)]) == LARGE
        with one.path(TRUE.digest).open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"damage")
        two.drop(TRUE.digest)
        with pytest.raises(ContentNotFound, match="damaged on disk"):
            await two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)])
        assert one.size(TRUE.digest) is None
        assert not two.fetcher.penalties.items()
        with two.path(one.put(LARGE)).open("wb") as file:
            file.write(LARGE[:-1])  # and here: noticed, fetched again
        assert await two.fetch(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)]) == LARGE
        with two.path(TRUE.digest).open("r+b") as file:
            file.write(b"damage")
        path = await two.fetch_file(TRUE.digest, max_bytes=len(LARGE), peers=[peer(one)])
        assert path.read_bytes() == LARGE

    in_hosts(main, tmp_path)


def test_one_peer_cannot_take_all_places(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        entered = 0

        async def held(function):  # type: ignore[no-untyped-def]
            nonlocal entered
            entered += 1
            await trio.sleep(10)
            return function()

        one, greedy, modest = (
            await hosts.add(ContentConfig(max_served_per_peer=3)),
            await hosts.add(),
            await hosts.add(),
        )
        one.put(LARGE)
        await modest.rpc.call(ContentServicer.rpc_manifest, peer(one), ManifestRequest(digest=TRUE.digest))
        one._offload = held
        said: list[str] = []

        async def ask(content: Content, index: int) -> None:
            try:
                request = ChunkRequest(digest=TRUE.digest, index=index)
                await content.rpc.call(ContentServicer.rpc_chunk, peer(one), request)
            except RemoteFailure as error:
                said.append(error.code)

        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(ask, greedy, index)
            await trio.sleep(1)
            nursery.start_soon(ask, modest, 0)
        assert said == ["busy"] * 5
        assert entered == 4
        assert not one._serving

    in_hosts(main, tmp_path)


def test_hashes_that_are_gone_are_computed_once_for_all_who_ask(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.add(), await hosts.add()
        one.put(LARGE)
        (one.directory / (TRUE.digest.hex() + ".leaves")).unlink()
        works = 0

        async def slowly(function):  # type: ignore[no-untyped-def]
            nonlocal works
            works += 1
            await trio.sleep(1)
            return function()

        one._offload = slowly
        request = ManifestRequest(digest=TRUE.digest)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(two.rpc.call, ContentServicer.rpc_manifest, peer(one), request)
        assert works == 1

    in_hosts(main, tmp_path)
