"""Blobs by digest: kept on disk, served to members, fetched from whoever has them.

What is too large for a record (a proposal's evidence, a model) travels here. A blob's name is the sha256 of its bytes,
so it does not matter who sends it; a peer that sends other bytes costs us at most the size the caller allowed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import PeerClass
from mesh.errors import ContentNotFound, LocalProtocolError, NetworkError, RemoteProtocolError, RpcError, StoreFull
from mesh.peer import PeerID
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method

log = logging.getLogger(__name__)

DIGEST_BYTES: Final = 32
MAX_CHUNK_BYTES: Final = 1024 * 1024
_REPLY_BYTES: Final = MAX_CHUNK_BYTES + 1024
_TEMPORARY: Final = ".part"


class ContentConfig(BaseModel):
    """Bounds of a node's blobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(
        default=2 * 1024**3, ge=1, description="bytes on disk; the oldest unpinned blobs leave first"
    )
    max_files: int = Field(default=4096, ge=1, description="blobs on disk")
    chunk_bytes: int = Field(default=512 * 1024, ge=1, le=MAX_CHUNK_BYTES, description="bytes asked for in one call")
    chunk_timeout_s: float = Field(default=15.0, gt=0, description="what one call may take")
    peer_timeout_s: float = Field(
        default=15.0, gt=0, description="what one peer may take, besides the time its bytes earn"
    )
    min_bytes_per_s: int = Field(
        default=128 * 1024, ge=1, description="a peer slower than this in the long run is left"
    )


class FetchRequest(BaseModel):
    """A piece of a blob."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Annotated[bytes, Field(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    offset: Annotated[int, Field(ge=0, lt=2**48)]
    length: Annotated[int, Field(ge=1, le=MAX_CHUNK_BYTES)]


class FetchReply(BaseModel):
    """`size` is the whole blob's; `data` ends early only at its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=0, lt=2**48)]
    data: Annotated[bytes, Field(max_length=MAX_CHUNK_BYTES)]


class ContentServicer(Servicer):
    """`/mesh/content/1.0.0`: pieces of the blobs this node has."""

    protocol = "/mesh/content/1.0.0"

    def __init__(self, content: Content) -> None:
        self._content = content

    @method(
        least=PeerClass.MEMBER,
        timeout_s=15.0,
        max_request_bytes=1024,
        max_response_bytes=_REPLY_BYTES,
        max_concurrent=16,
    )
    async def rpc_fetch(self, request: FetchRequest, ctx: RpcContext) -> FetchReply:
        """Bytes `offset` to `offset + length` of a blob. ContentNotFound when it is not here."""
        return self._content.piece(request)


class Content:
    """This node's blobs: files of mode 0600 named by their digest."""

    def __init__(self, directory: Path, rpc: Rpc, config: ContentConfig | None = None) -> None:
        """Takes over what an earlier run left in `directory`, unpinned and oldest first."""
        self.rpc = rpc
        self.config = config or ContentConfig()
        self._directory = directory
        self._sizes: dict[bytes, int] = {}  # oldest first
        self._pins: Counter[bytes] = Counter()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._recover()

    def servicer(self) -> Servicer:
        """What answers other nodes' fetches."""
        return ContentServicer(self)

    @property
    def used_bytes(self) -> int:
        """Bytes of all blobs here."""
        return sum(self._sizes.values())

    def put(self, data: bytes) -> bytes:
        """Keep a blob and return its digest; one that is here becomes the newest.

        Raises StoreFull when what is pinned leaves no room for it.
        """
        digest = hashlib.sha256(data).digest()
        path = self._path(digest)
        known = self._sizes.pop(digest, None)
        if known is not None and path.exists():
            self._sizes[digest] = known
            os.utime(path)
            return digest
        self._make_room(len(data))
        temporary = path.with_suffix(_TEMPORARY)
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)  # no fsync: a torn file shows by its digest and is fetched again
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StoreFull(f"cannot write {len(data)} bytes under {self._directory}: {error.strerror}") from error
        self._sizes[digest] = len(data)
        return digest

    def get_local(self, digest: bytes) -> bytes | None:
        """The blob, when it is here and whole."""
        if digest not in self._sizes:
            return None
        try:
            data = self._path(digest).read_bytes()
        except OSError as error:
            log.warning("cannot read blob %s: %s", digest.hex(), error.strerror)
            self.drop(digest)
            return None
        if hashlib.sha256(data).digest() != digest:
            log.warning("blob %s was damaged on disk and is dropped", digest.hex())
            self.drop(digest)
            return None
        return data

    def pin(self, digest: bytes) -> None:
        """Keep a blob that is here until as many `unpin` calls; pins do not outlive the process.
        Raises ContentNotFound."""
        if digest not in self._sizes:
            raise ContentNotFound(f"blob {digest.hex()} is not here and cannot be pinned")
        self._pins[digest] += 1

    def unpin(self, digest: bytes) -> None:
        """Take one pin back; nothing happens when there is none."""
        if self._pins[digest] > 1:
            self._pins[digest] -= 1
        else:
            del self._pins[digest]

    def drop(self, digest: bytes) -> None:
        """Delete a blob, pinned or not."""
        self._sizes.pop(digest, None)
        del self._pins[digest]
        with contextlib.suppress(FileNotFoundError):
            self._path(digest).unlink()

    def piece(self, request: FetchRequest) -> FetchReply:
        """Answers a FetchRequest. Raises ContentNotFound."""
        size = self._sizes.get(request.digest)
        if size is None:
            raise ContentNotFound(f"blob {request.digest.hex()} is not here")
        try:
            with self._path(request.digest).open("rb") as file:
                file.seek(request.offset)
                return FetchReply(size=size, data=file.read(request.length))
        except OSError as error:
            self.drop(request.digest)
            raise ContentNotFound(f"blob {request.digest.hex()} is not here any more") from error

    async def fetch(self, digest: bytes, *, max_bytes: int, peers: Sequence[PeerID]) -> bytes:
        """The blob: from disk, else from `peers` in their order; then it is kept here too.

        `max_bytes` bounds it before and while it comes. Raises ContentNotFound (with what every peer said) when no
        peer has it whole, StoreFull when it cannot be kept, LocalProtocolError for what is no digest. Cancelled:
        nothing is kept.
        """
        if len(digest) != DIGEST_BYTES:
            raise LocalProtocolError(f"a blob's digest has {DIGEST_BYTES} bytes, not {len(digest)}")
        await trio.lowlevel.checkpoint()
        data = self.get_local(digest)
        if data is not None:
            if len(data) > max_bytes:
                raise ContentNotFound(f"blob {digest.hex()} has {len(data)} bytes; {max_bytes} are allowed here")
            return data
        said = []
        for peer in dict.fromkeys(peers):
            if peer == self.rpc.net.local.peer_id:
                continue
            try:
                data = await self._fetch_from(peer, digest, max_bytes)
            except (NetworkError, RpcError, RemoteProtocolError, ContentNotFound) as error:
                log.debug("blob %s from %s: %s", digest.hex(), peer.short, error)
                said.append(f"{peer.short}: {error}")
                continue
            self.put(data)
            return data
        raise ContentNotFound(
            f"blob {digest.hex()} was served by none of {len(said)} peers{': ' if said else ''}{'; '.join(said[:8])}"
        )

    async def _fetch_from(self, peer: PeerID, digest: bytes, max_bytes: int) -> bytes:
        stub = self.rpc.stub(ContentServicer, peer)
        hasher = hashlib.sha256()
        parts: list[bytes] = []
        have, size = 0, -1
        deadline = trio.current_time() + self.config.peer_timeout_s
        while have != size:
            with trio.move_on_at(deadline + have / self.config.min_bytes_per_s) as scope:
                reply: FetchReply = await stub.rpc_fetch(
                    FetchRequest(digest=digest, offset=have, length=self.config.chunk_bytes),
                    timeout_s=self.config.chunk_timeout_s,
                )
            if scope.cancelled_caught:
                raise ContentNotFound(f"too slow: {have} of {size} bytes")
            if size < 0:
                size = reply.size
                if size > max_bytes:
                    raise ContentNotFound(f"it says the blob has {size} bytes; {max_bytes} are allowed here")
            want = min(self.config.chunk_bytes, size - have)
            if reply.size != size or len(reply.data) != want:
                raise RemoteProtocolError(f"{peer.short} sent {len(reply.data)} bytes of a blob where {want} were due")
            parts.append(reply.data)
            hasher.update(reply.data)
            have += len(reply.data)
        if hasher.digest() != digest:
            raise RemoteProtocolError(f"{peer.short} sent {size} bytes that are not the blob {digest.hex()}")
        return b"".join(parts)

    def _path(self, digest: bytes) -> Path:
        return self._directory / digest.hex()

    def _make_room(self, size: int) -> None:
        free = self.config.max_bytes - self.used_bytes
        files = len(self._sizes)
        leaving = []
        for digest, its_size in self._sizes.items():
            if free >= size and files < self.config.max_files:
                break
            if not self._pins[digest]:
                leaving.append(digest)
                free += its_size
                files -= 1
        if free < size or files >= self.config.max_files:
            raise StoreFull(
                f"no room for a blob of {size} bytes: {self.config.max_bytes} bytes and {self.config.max_files} blobs "
                f"are allowed, {len(self._sizes)} are here and {len(self._pins)} of them pinned"
            )
        for digest in leaving:
            self.drop(digest)

    def _recover(self) -> None:
        found = []
        for path in self._directory.iterdir():
            if path.suffix == _TEMPORARY:
                path.unlink(missing_ok=True)  # a write that a crash cut short
                continue
            try:
                digest = bytes.fromhex(path.name)
            except ValueError:
                continue
            info = path.lstat()
            if len(digest) == DIGEST_BYTES and path.is_file() and not path.is_symlink():
                found.append((info.st_mtime_ns, digest, info.st_size))
        self._sizes = {digest: size for _, digest, size in sorted(found)}
