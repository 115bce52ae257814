"""Fetching a blob from many peers at once: the shell around mesh.content.schedule.

First the manifest, of one source after the other and of several when they are slow to answer; it fits the digest or
its sender is a liar. Then chunks, of all sources in parallel. Whoever sends what does not hash right is refused as a
source for a while, here and in later fetches (mesh.content.penalty).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.content.disk import OFFLOAD_BYTES, Partial
from mesh.content.merkle import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    Manifest,
    check_manifest,
    check_size,
    manifest_of,
)
from mesh.content.penalty import Penalties, PenaltyConfig
from mesh.content.schedule import Ask, Fault, Schedule, ScheduleConfig
from mesh.content.service import (
    CHUNK_TIMEOUT_S,
    MANIFEST_TIMEOUT_S,
    ChunkRequest,
    ContentServicer,
    ManifestReply,
    ManifestRequest,
)
from mesh.errors import (
    ContentNotFound,
    LocalProtocolError,
    MeshError,
    NetworkError,
    NotAuthorized,
    RemoteFailure,
    RemoteProtocolError,
    RpcError,
    StoreFull,
)
from mesh.files import Durable, replace_file
from mesh.offload import Offload, in_thread
from mesh.peer import PeerID
from mesh.rpc.rpc import Rpc

T = TypeVar("T")

log = logging.getLogger(__name__)

FindProviders = Callable[[bytes], Awaitable[Sequence[PeerID]]]
"""Peers that may have the blob with a digest."""
Progress = Callable[[int, int], None]
"""Told bytes that are there and bytes in all, whenever they change."""
OnPenalty = Callable[[PeerID, str], None]
"""Told who sent something false, and what."""

_ADOPT_AT_ONCE = 4  # chunks of an earlier run hashed per turn


class FetchConfig(BaseModel):
    """Bounds of fetching."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_timeout_s: float = Field(default=30.0, gt=0, le=CHUNK_TIMEOUT_S, description="for one chunk from one source")
    manifest_timeout_s: float = Field(default=15.0, gt=0, le=MANIFEST_TIMEOUT_S, description="for one manifest")
    hedge_s: float = Field(default=1.0, gt=0, description="without a manifest, before the next source is asked too")
    max_hedged: int = Field(default=8, ge=1, description="sources asked for a manifest at the same time")
    max_lookups: int = Field(default=2, ge=0, description="times `find_providers` is asked in one fetch")
    lookup_timeout_s: float = Field(
        default=15.0, gt=0, description="for one of these, and for telling others of a blob"
    )
    max_said: int = Field(default=8, ge=0, description="sources' excuses quoted in an error")
    schedule: ScheduleConfig = ScheduleConfig()
    penalty: PenaltyConfig = PenaltyConfig()


def fault_of(error: MeshError) -> Fault:
    """What an error says about the source it came from."""
    match error:
        case RemoteProtocolError():
            return Fault.CORRUPT
        case NetworkError():
            return Fault.FAILED
        case RemoteFailure(retryable=True):
            return Fault.BUSY
        case NotAuthorized(reason="rate-limited" | "chain-unreachable"):
            return Fault.BUSY
    return Fault.MISSING


class _Sources:
    """Who may have one blob: peers given, then peers found, in that order and once each."""

    def __init__(self, fetcher: Fetcher, digest: bytes, peers: Iterable[PeerID]) -> None:
        self._fetcher = fetcher
        self._digest = digest
        self._lookups_left = fetcher.config.max_lookups if fetcher.find_providers else 0
        self._next = 0
        self.usable: list[PeerID] = []
        self.said: dict[PeerID, str] = {}
        self.out: set[PeerID] = set()  # of these, who does not have it
        self._add(peers)

    def _add(self, peers: Iterable[PeerID]) -> bool:
        now, limit = trio.current_time(), self._fetcher.config.schedule.max_sources
        before = len(self.usable)
        for peer in peers:
            if len(self.usable) >= limit:
                break
            if peer == self._fetcher.local or peer in self.usable or peer in self.said:
                continue
            if self._fetcher.penalties.is_refused(peer, now):
                self.said[peer] = "refused for what it sent before"
                continue
            self.usable.append(peer)
        return len(self.usable) > before

    async def next(self) -> PeerID | None:
        """One not returned yet; None when there is nobody left."""
        while self._next >= len(self.usable):
            if not await self.find():
                return None
        self._next += 1
        return self.usable[self._next - 1]

    async def find(self) -> bool:
        """Look for more; False when there are none."""
        while self._lookups_left:
            self._lookups_left -= 1
            assert self._fetcher.find_providers is not None
            found: Sequence[PeerID] = ()
            with trio.move_on_after(self._fetcher.config.lookup_timeout_s):
                try:
                    found = await self._fetcher.find_providers(self._digest)
                except MeshError as error:
                    log.debug("who has blob %s: %s", self._digest.hex(), error)
            if self._add(found):
                return True
        return False

    def fail(self, peer: PeerID, error: MeshError) -> None:
        """A source said this; what proves a lie is penalized."""
        self.said[peer] = str(error)
        if fault_of(error) in (Fault.MISSING, Fault.CORRUPT):
            self.out.add(peer)
        log.debug("blob %s from %s: %s", self._digest.hex(), peer.short, error)
        if isinstance(error, RemoteProtocolError):
            self._fetcher.penalize(peer, str(error))

    def not_found(self) -> ContentNotFound:
        """Nobody has it; with what they said."""
        said = [f"{peer.short}: {text}" for peer, text in self.said.items()][: self._fetcher.config.max_said]
        return ContentNotFound(
            f"blob {self._digest.hex()} was served by none of {len(self.said)} peers{': ' if said else ''}"
            f"{'; '.join(said)}"
        )


class Fetcher:
    """Gets blobs from peers; keeps nothing but the memory of who lied."""

    def __init__(
        self,
        rpc: Rpc,
        config: FetchConfig | None = None,
        *,
        offload: Offload = in_thread,
        find_providers: FindProviders | None = None,
        on_penalty: OnPenalty | None = None,
    ) -> None:
        self.config = config or FetchConfig()
        self.penalties = Penalties(self.config.penalty)
        self.find_providers = find_providers
        self._rpc = rpc
        self._offload = offload
        self._on_penalty = on_penalty

    @property
    def local(self) -> PeerID:
        """Ourselves, who are no source."""
        return self._rpc.net.local.peer_id

    def penalize(self, peer: PeerID, reason: str) -> None:
        """Refuse a peer as a source for a while, longer each time."""
        penalty = self.penalties.add(peer, trio.current_time())
        log.warning("%s is no source of blobs for now (offence %d): %s", peer.short, penalty.offences, reason)
        if self._on_penalty is not None:
            self._on_penalty(peer, reason)

    async def to_file(
        self,
        digest: bytes,
        path: Path,
        *,
        max_bytes: int,
        peers: Sequence[PeerID] = (),
        progress: Progress | None = None,
    ) -> int:
        """Fetch a blob into the file `path`, which appears when all of it is there, and return its size.

        What came before a failure, a crash or a cancellation stays beside it as `.NAME.DIGEST.part` and is not fetched
        again. Raises ContentNotFound, StoreFull when it cannot be written, LocalProtocolError for what is no digest.
        """
        found = await self.search(digest, max_bytes=max_bytes, peers=peers)
        if found.data is not None:
            data = found.data
            try:
                await self._offload(lambda: replace_file(path, data, durable=Durable.YES))
            except OSError as error:
                raise StoreFull(f"cannot write {path}: {error.strerror}") from error
            if progress is not None:
                progress(found.manifest.size, found.manifest.size)
            return found.manifest.size
        with _partial_at(path.with_name(f".{path.name}.{digest.hex()[:16]}.part"), found.manifest) as partial:
            await self.fill(found, partial, progress)
            await self._offload(lambda: partial.finish(path))
        return found.manifest.size

    async def search(self, digest: bytes, *, max_bytes: int, peers: Sequence[PeerID] = ()) -> Found:
        """A blob's manifest, checked, and the blob itself when it has one chunk.

        `max_bytes` bounds what a manifest may announce. Raises ContentNotFound with what every source said,
        LocalProtocolError for what is no digest.
        """
        check_digest(digest)
        sources = _Sources(self, digest, peers)
        found: list[Found] = []
        places = trio.Semaphore(self.config.max_hedged)

        async def ask(peer: PeerID, answered: trio.Event) -> None:
            plan = self.config.schedule
            for attempt in range(plan.max_busy):
                try:
                    manifest, data = await self._manifest(peer, digest, max_bytes)
                except (NetworkError, RpcError, RemoteProtocolError, ContentNotFound) as error:
                    answered.set()
                    sources.fail(peer, error)
                    if fault_of(error) is not Fault.BUSY:
                        break
                    await trio.sleep(min(plan.retry_s * 2.0**attempt, plan.max_retry_s))
                else:
                    found.append(Found(manifest, data, sources, peer))
                    nursery.cancel_scope.cancel()
                    return
            places.release()

        async with trio.open_nursery() as nursery:
            await trio.lowlevel.checkpoint()
            while (peer := await sources.next()) is not None:
                await places.acquire()
                answered = trio.Event()
                nursery.start_soon(ask, peer, answered)
                with trio.move_on_after(self.config.hedge_s):
                    await answered.wait()
        if not found:
            raise sources.not_found()
        return found[0]

    async def fill(self, found: Found, partial: Partial, progress: Progress | None = None) -> None:
        """Get all chunks that a partial file lacks. Raises ContentNotFound when its sources do not have them, StoreFull
        when one cannot be written. Cancelled: what is there stays in the file."""
        manifest = found.manifest
        for start in range(0, len(manifest), _ADOPT_AT_ONCE):
            indexes = range(start, min(start + _ADOPT_AT_ONCE, len(manifest)))
            if start * CHUNK_BYTES >= partial.left_bytes:
                break
            await self._offload(functools.partial(partial.adopt, indexes))
        schedule = Schedule((i for i in range(len(manifest)) if i not in partial.have), self.config.schedule)
        for peer in found.sources_in_order():
            schedule.add(peer)
        await _Filling(self, self._rpc, self._offload, found, partial, schedule, progress).run()

    async def _manifest(self, peer: PeerID, digest: bytes, max_bytes: int) -> tuple[Manifest, bytes | None]:
        reply: ManifestReply = await self._rpc.call(
            ContentServicer.rpc_manifest,
            peer,
            ManifestRequest(digest=digest),
            timeout_s=self.config.manifest_timeout_s,
        )
        if reply.size > max_bytes:
            raise ContentNotFound(f"it says the blob has {reply.size} bytes; {max_bytes} are allowed here")
        if reply.size <= CHUNK_BYTES:
            if reply.leaves or len(reply.data) != reply.size:
                raise RemoteProtocolError(f"{len(reply.data)} bytes of a blob where {reply.size} were announced")
            manifest = await self._work(reply.size, lambda: manifest_of(reply.data))
            if manifest.digest != digest:
                raise RemoteProtocolError(f"{reply.size} bytes that are not the blob {digest.hex()}")
            return manifest, reply.data
        if reply.data:
            raise RemoteProtocolError("data beside the manifest of a blob of several chunks")
        check_size(reply.size, reply.leaves)
        manifest = Manifest(reply.size, reply.leaves)
        await self._work(2 * len(reply.leaves), lambda: check_manifest(manifest, digest))
        return manifest, None

    async def _work(self, size: int, function: Callable[[], T]) -> T:
        return await self._offload(function) if size >= OFFLOAD_BYTES else function()


@dataclass(frozen=True)
class Found:
    """A checked manifest and who may have its chunks."""

    manifest: Manifest
    data: bytes | None
    """All of the blob when it has one chunk, else None."""
    sources: _Sources
    first: PeerID
    """Who had the manifest."""

    def sources_in_order(self) -> Iterator[PeerID]:
        """Who has it first, then those who may, at last those who did not answer well; not those who said no."""
        rest = [peer for peer in self.sources.usable if peer != self.first and peer not in self.sources.out]
        yield self.first
        yield from sorted(rest, key=lambda peer: peer in self.sources.said)


class _Filling:
    """One run of a schedule."""

    def __init__(
        self,
        fetcher: Fetcher,
        rpc: Rpc,
        offload: Offload,
        found: Found,
        partial: Partial,
        schedule: Schedule,
        progress: Progress | None,
    ) -> None:
        self._fetcher = fetcher
        self._rpc = rpc
        self._offload = offload
        self._sources = found.sources
        self._manifest = found.manifest
        self._partial = partial
        self._schedule = schedule
        self._progress = progress
        self._scopes: dict[Ask, trio.CancelScope] = {}
        self._changed = trio.Event()
        self._broken: StoreFull | None = None
        self._done_bytes = sum(map(self._manifest.chunk_size, partial.have))

    async def run(self) -> None:
        """See Fetcher.fill."""
        self._tell()
        async with trio.open_nursery() as nursery:
            while not self._schedule.is_done and self._broken is None:
                self._changed = trio.Event()
                now = trio.current_time()
                for ask in self._schedule.asks(now):
                    scope = self._scopes[ask] = trio.CancelScope()
                    nursery.start_soon(self._ask, ask, scope)
                if self._schedule.is_stuck and not await self._more():
                    break
                with trio.CancelScope(deadline=self._schedule.wake_at(trio.current_time())):
                    await self._changed.wait()
            nursery.cancel_scope.cancel()
        if self._broken is not None:
            raise self._broken
        if not self._schedule.is_done:
            raise self._sources.not_found()

    async def _more(self) -> bool:
        """Find a source the schedule does not know."""
        while await self._sources.find():
            added = [self._schedule.add(peer) for peer in self._sources.usable]
            if True in added:
                return True
        return False

    async def _ask(self, ask: Ask, scope: trio.CancelScope) -> None:
        give_up: tuple[Ask, ...] = ()
        with scope:
            try:
                reply = await self._rpc.call(
                    ContentServicer.rpc_chunk,
                    ask.peer,
                    ChunkRequest(digest=self._manifest.digest, index=ask.chunk),
                    timeout_s=self._fetcher.config.chunk_timeout_s,
                )
                await self._offload(lambda: self._partial.accept(ask.chunk, reply.data))
            except StoreFull as error:
                self._broken = error
            except (NetworkError, RpcError, RemoteProtocolError) as error:
                if self._scopes.get(ask) is scope:
                    fault = fault_of(error)
                    self._sources.fail(ask.peer, error)
                    give_up = self._schedule.failed(ask, fault, trio.current_time())
            else:
                is_new, give_up = self._schedule.arrived(ask, trio.current_time())
                if is_new:
                    self._done_bytes += self._manifest.chunk_size(ask.chunk)
                    self._tell()
        if self._scopes.get(ask) is scope:
            del self._scopes[ask]
        for other in give_up:
            self._scopes.pop(other, scope).cancel()
        self._changed.set()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._done_bytes, self._manifest.size)


def check_digest(digest: bytes) -> None:
    """Raises LocalProtocolError for what is no digest."""
    if len(digest) != DIGEST_BYTES:
        raise LocalProtocolError(f"a blob's digest has {DIGEST_BYTES} bytes, not {len(digest)}")


@contextmanager
def _partial_at(path: Path, manifest: Manifest) -> Iterator[Partial]:
    try:
        partial = Partial(path, manifest)
    except OSError as error:
        raise StoreFull(f"cannot write {path}: {error.strerror}") from error
    try:
        yield partial
    finally:
        partial.close()
