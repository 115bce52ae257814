"""What nodes ask each other about blobs: a manifest, then chunks."""

from __future__ import annotations

from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import PeerClass
from mesh.content.merkle import CHUNK_BYTES, DIGEST_BYTES, MAX_BLOB_BYTES, MAX_CHUNKS
from mesh.peer import PeerID
from mesh.rpc.servicer import RpcContext, Servicer, method

MANIFEST_TIMEOUT_S: Final = 30.0
CHUNK_TIMEOUT_S: Final = 60.0
_REPLY_BYTES: Final = 1024 * 1024 + 1024
assert max(CHUNK_BYTES, MAX_CHUNKS * DIGEST_BYTES) <= _REPLY_BYTES - 1024

Digest = Annotated[bytes, Field(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class ManifestRequest(BaseModel):
    """What is in the blob with this digest?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest


class ManifestReply(BaseModel):
    """A blob of one chunk comes at once, in `data`; of a longer one come the hashes of its chunks, in `leaves`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    leaves: Annotated[bytes, Field(max_length=MAX_CHUNKS * DIGEST_BYTES)]
    data: Annotated[bytes, Field(max_length=CHUNK_BYTES)]


class ChunkRequest(BaseModel):
    """One chunk of a blob."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]


class ChunkReply(BaseModel):
    """Its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Annotated[bytes, Field(max_length=CHUNK_BYTES)]


class Serves(Protocol):
    """Who has blobs."""

    async def serve_manifest(self, request: ManifestRequest, remote: PeerID) -> ManifestReply:
        """Raises ContentNotFound, RemoteFailure("busy")."""
        ...

    async def serve_chunk(self, request: ChunkRequest, remote: PeerID) -> ChunkReply:
        """Raises ContentNotFound, RemoteFailure("busy")."""
        ...


class ContentServicer(Servicer):
    """`/mesh/content/1.0.0`: the blobs this node has."""

    protocol = "/mesh/content/1.0.0"

    def __init__(self, content: Serves) -> None:
        self._content = content

    @method(
        least=PeerClass.MEMBER,
        timeout_s=MANIFEST_TIMEOUT_S,
        max_request_bytes=1024,
        max_response_bytes=_REPLY_BYTES,
        max_concurrent=32,
    )
    async def rpc_manifest(self, request: ManifestRequest, ctx: RpcContext) -> ManifestReply:
        """A blob's manifest, or all of a small one. ContentNotFound when it is not here, busy for who asks for too
        much at once."""
        return await self._content.serve_manifest(request, ctx.remote)

    @method(
        least=PeerClass.MEMBER,
        timeout_s=CHUNK_TIMEOUT_S,
        max_request_bytes=1024,
        max_response_bytes=_REPLY_BYTES,
        max_concurrent=32,
    )
    async def rpc_chunk(self, request: ChunkRequest, ctx: RpcContext) -> ChunkReply:
        """One chunk. ContentNotFound when it is not here, busy for who asks for too much at once."""
        return await self._content.serve_chunk(request, ctx.remote)
