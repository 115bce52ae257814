"""A node's blobs: the store, what serves it to members, and what fetches into it."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import trio
from pydantic import Field

from mesh.content.disk import (
    OFFLOAD_BYTES,
    Copy,
    Partial,
    read_chunk,
    read_manifest,
    read_whole,
    write_leaves,
)
from mesh.content.fetch import FetchConfig, Fetcher, FindProviders, OnPenalty, Progress, check_digest
from mesh.content.merkle import Manifest
from mesh.content.service import ChunkReply, ChunkRequest, ContentServicer, ManifestReply, ManifestRequest
from mesh.content.store import BlobStore, StoreConfig
from mesh.errors import ContentNotFound, MeshError, RemoteFailure
from mesh.offload import Offload, in_thread
from mesh.peer import PeerID
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import Servicer
from mesh.rpc.status import BUSY

log = logging.getLogger(__name__)

T = TypeVar("T")

Provide = Callable[[bytes], Awaitable[None]]
"""Tells others that the blob with a digest is here."""

_MANIFESTS: Final = 16


class ContentConfig(StoreConfig):
    """Bounds of a node's blobs."""

    max_served_per_peer: int = Field(
        default=12, ge=1, description="answers in work for one peer, so that one cannot take all places"
    )
    fetch: FetchConfig = FetchConfig()


class Content(BlobStore):
    """This node's blobs. `put`, `get_local`, `pin`, `retain` and `drop` are the store's; here is what talks to peers.

    `find_providers` and `provide` are how it asks and tells who has a blob; without them, sources are those a caller
    gives. `put` waits for nothing and so tells nobody: `announce` does. `on_penalty` hears of peers that sent what
    hashes to something else.
    """

    config: ContentConfig

    def __init__(
        self,
        directory: Path,
        rpc: Rpc,
        config: ContentConfig | None = None,
        *,
        offload: Offload = in_thread,
        find_providers: FindProviders | None = None,
        provide: Provide | None = None,
        on_penalty: OnPenalty | None = None,
    ) -> None:
        """Takes over what an earlier run left in `directory`, unpinned and oldest first. Raises StoreFull."""
        config = config or ContentConfig()
        super().__init__(directory, config)
        self.rpc = rpc
        self.fetcher = Fetcher(
            rpc,
            config.fetch,
            offload=offload,
            find_providers=find_providers,
            on_penalty=on_penalty,
        )
        self._offload = offload
        self._provide = provide
        self._manifests: OrderedDict[bytes, Manifest] = OrderedDict()
        self._reading = trio.Lock()
        self._locks: dict[bytes, trio.Lock] = {}
        self._serving: Counter[PeerID] = Counter()

    def servicer(self) -> Servicer:
        """What answers other nodes' fetches."""
        return ContentServicer(self)

    # --- publishing ---

    async def put_file(self, path: Path, *, progress: Progress | None = None) -> bytes:
        """Copy a file in, chunk by chunk, and return its digest; others are told where `provide` is given.

        Raises StoreFull when there is no room, ConfigError when the file cannot be read. Cancelled: nothing is kept.
        """
        digest = await put_file(self, path, offload=self._offload, progress=progress)
        await self.announce(digest)
        return digest

    async def announce(self, digest: bytes) -> None:
        """Tell others that a blob is here; a failure, or not being done in time, is logged."""
        if self._provide is None:
            return
        with trio.move_on_after(self.config.fetch.lookup_timeout_s) as scope:
            try:
                await self._provide(digest)
            except MeshError as error:
                log.warning("nobody was told that blob %s is here: %s", digest.hex(), error)
        if scope.cancelled_caught:
            log.warning("nobody was told in time that blob %s is here", digest.hex())

    # --- fetching ---

    async def fetch(
        self,
        digest: bytes,
        *,
        max_bytes: int,
        peers: Sequence[PeerID] = (),
        progress: Progress | None = None,
    ) -> bytes:
        """A blob in memory: from disk, else from `peers` and whom `find_providers` names; then it is kept here too.

        `max_bytes` bounds it before it comes. Raises ContentNotFound (with what every peer said) when no peer has it
        whole, StoreFull when it cannot be kept, LocalProtocolError for what is no digest. Cancelled: chunks that came
        stay for the next time.
        """
        async with self._one_at_a_time(digest, max_bytes):
            if self.size(digest) is not None:
                try:
                    return await self._whole(digest)
                except ContentNotFound as error:
                    self._lost(digest, error)
            data = await self._fetch(digest, max_bytes, peers, progress)
            if data is not None:
                return data
            with self._pinned(digest):
                return await self._whole(digest)

    async def fetch_file(
        self,
        digest: bytes,
        *,
        max_bytes: int,
        peers: Sequence[PeerID] = (),
        progress: Progress | None = None,
    ) -> Path:
        """The same on disk only: the store's own file, to be read, not written. Pin or retain it to keep it there."""
        async with self._one_at_a_time(digest, max_bytes):
            if not await self._is_sound(digest):
                await self._fetch(digest, max_bytes, peers, progress)
            return self.path(digest)

    async def fetch_to(
        self,
        digest: bytes,
        path: Path,
        *,
        max_bytes: int,
        peers: Sequence[PeerID] = (),
        progress: Progress | None = None,
    ) -> int:
        """Fetch into a file of the caller's and return its size; nothing is kept here. See Fetcher.to_file."""
        return await self.fetcher.to_file(digest, path, max_bytes=max_bytes, peers=peers, progress=progress)

    async def _whole(self, digest: bytes) -> bytes:
        return await self._work(self.size(digest) or 0, lambda: read_whole(self.path(digest), digest))

    async def _is_sound(self, digest: bytes) -> bool:
        try:
            manifest = await self._manifest(digest)
            for index in range(len(manifest)):
                await self._chunk(digest, manifest, index)
        except ContentNotFound:
            return False
        return True

    async def _fetch(
        self, digest: bytes, max_bytes: int, peers: Sequence[PeerID], progress: Progress | None
    ) -> bytes | None:
        found = await self.fetcher.search(digest, max_bytes=max_bytes, peers=peers)
        if found.data is not None:
            self.put(found.data)
            if progress is not None:
                progress(found.manifest.size, found.manifest.size)
        else:
            with self.partial(found.manifest) as partial:
                await self.fetcher.fill(found, partial, progress)
                await self._offload(lambda: _finish(partial, self.path(digest)))
                self.finished(found.manifest)
        await self.announce(digest)
        return found.data

    @contextmanager
    def _pinned(self, digest: bytes) -> Iterator[None]:
        self.pin(digest)
        try:
            yield
        finally:
            self.unpin(digest)

    @asynccontextmanager
    async def _one_at_a_time(self, digest: bytes, max_bytes: int) -> AsyncIterator[None]:
        """Two fetches of one blob would fill the same file: the second waits and finds it. Raises ContentNotFound for
        one that is here and too large."""
        check_digest(digest)
        lock = self._locks.setdefault(digest, trio.Lock())
        try:
            async with lock:
                size = self.size(digest)
                if size is not None and size > max_bytes:
                    raise ContentNotFound(f"blob {digest.hex()} has {size} bytes; {max_bytes} are allowed here")
                yield
        finally:
            if not lock.locked():
                self._locks.pop(digest, None)

    # --- serving ---

    async def serve_manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
        """See mesh.content.service.Serves."""
        with self._place(remote):
            manifest = await self._manifest(request.digest)
            if len(manifest) > 1:
                return ManifestReply(size=manifest.size, leaves=manifest.leaves, data=b"")
            data = await self._chunk(request.digest, manifest, 0) if len(manifest) else b""
            return ManifestReply(size=manifest.size, leaves=b"", data=data)

    async def serve_chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        """See mesh.content.service.Serves."""
        with self._place(remote):
            manifest = await self._manifest(request.digest)
            if request.index >= len(manifest):
                raise ContentNotFound(f"blob {request.digest.hex()} has {len(manifest)} chunks, not {request.index}")
            return ChunkReply(data=await self._chunk(request.digest, manifest, request.index))

    @contextmanager
    def _place(self, remote: PeerID) -> Iterator[None]:
        if self._serving[remote] >= self.config.max_served_per_peer:
            raise RemoteFailure(BUSY, f"{self._serving[remote]} answers for you are in work", retryable=True)
        self._serving[remote] += 1
        try:
            yield
        finally:
            self._serving[remote] -= 1
            if not self._serving[remote]:
                del self._serving[remote]

    async def _manifest(self, digest: bytes) -> Manifest:
        """Of a blob that is here. Raises ContentNotFound; what is damaged is dropped."""
        size = self.size(digest)
        if size is None:
            self._manifests.pop(digest, None)
            raise ContentNotFound(f"blob {digest.hex()} is not here")
        manifest = self._manifests.get(digest)
        if manifest is None:
            async with self._reading:  # it may take a second: not once for everybody who asks meanwhile
                manifest = self._manifests.get(digest)
                if manifest is None:
                    try:
                        manifest = await self._work(size, lambda: read_manifest(self.path(digest), digest))
                    except ContentNotFound as error:
                        self._lost(digest, error)
                        raise
            self._manifests[digest] = manifest
            while len(self._manifests) > _MANIFESTS:
                self._manifests.popitem(last=False)
        self._manifests.move_to_end(digest)
        return manifest

    async def _chunk(self, digest: bytes, manifest: Manifest, index: int) -> bytes:
        try:
            return await self._work(manifest.chunk_size(index), lambda: read_chunk(self.path(digest), manifest, index))
        except ContentNotFound as error:
            self._lost(digest, error)
            raise

    def _lost(self, digest: bytes, error: ContentNotFound) -> None:
        log.warning("%s: dropped", error)
        self._manifests.pop(digest, None)
        self.drop(digest)

    async def _work(self, size: int, function: Callable[[], T]) -> T:
        return await self._offload(function) if size >= OFFLOAD_BYTES else function()


def _finish(partial: Partial, path: Path) -> None:
    with suppress(OSError):  # they can be computed again
        write_leaves(path, partial.manifest)
    partial.finish(path)


async def put_file(
    store: BlobStore, path: Path, *, offload: Offload = in_thread, progress: Progress | None = None
) -> bytes:
    """Copy a file into a store, chunk by chunk, and return its digest.

    It is on disk, flushed, when the call returns. Raises StoreFull when there is no room, ConfigError when the file
    cannot be read. Cancelled: nothing is kept.
    """
    copy = Copy(path, store.directory)
    try:
        with store.room(copy.size):
            while await offload(copy.step):
                if progress is not None:
                    progress(copy.done, copy.size)
            manifest = await offload(copy.finish)
            digest = await offload(lambda: manifest.digest)
            store.move_in(copy.path, manifest)  # over the one that is there, which may be damaged
        return digest
    finally:
        copy.close()
