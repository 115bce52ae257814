"""Blobs by digest: kept on disk, served to members, fetched from whoever has them, from many at once.

What is too large for a record (a proposal's evidence, a model) travels here. A blob's name is the root of a hash tree
over its chunks (mesh.content.merkle, `digest_of`), so it does not matter who sends which chunk.

    merkle     how a blob is named and its parts are checked; pure
    schedule   which chunk to ask of whom next; pure
    penalty    who lied and is refused for how long; pure
    disk       files: reading, writing and checking blobs
    store      what is on disk, and which leave when room is needed
    service    what nodes ask each other
    fetch      fetching from many peers
    content    a node's blobs: all of this together
"""

from mesh.content.content import Content, ContentConfig, Provide, put_file
from mesh.content.fetch import FetchConfig, Fetcher, FindProviders, Progress
from mesh.content.merkle import CHUNK_BYTES, DIGEST_BYTES, MAX_BLOB_BYTES, Manifest, digest_of, parse_digest
from mesh.content.penalty import Penalties, Penalty, PenaltyConfig
from mesh.content.schedule import ScheduleConfig
from mesh.content.service import (
    ChunkReply,
    ChunkRequest,
    ContentServicer,
    ManifestReply,
    ManifestRequest,
)
from mesh.content.store import Access, BlobStore, Entry, StoreConfig
from mesh.offload import Offload, in_thread, inline

__all__ = [
    "CHUNK_BYTES",
    "DIGEST_BYTES",
    "MAX_BLOB_BYTES",
    "Access",
    "BlobStore",
    "ChunkReply",
    "ChunkRequest",
    "Content",
    "ContentConfig",
    "ContentServicer",
    "Entry",
    "FetchConfig",
    "Fetcher",
    "FindProviders",
    "Manifest",
    "ManifestReply",
    "ManifestRequest",
    "Offload",
    "Penalties",
    "Penalty",
    "PenaltyConfig",
    "Progress",
    "Provide",
    "ScheduleConfig",
    "StoreConfig",
    "digest_of",
    "in_thread",
    "inline",
    "parse_digest",
    "put_file",
]
