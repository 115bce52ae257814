"""Bounds of the RPC layer and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.rpc.standing import StandingConfig

RPC_PROTOCOL: Final = "/mesh/rpc/2.0.0"

_MAX_COUNTED_CODES: Final = 64


class ReplyCacheConfig(BaseModel):
    """Bounds of the replies kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_replies: int = Field(default=4096, ge=1)
    """Of all callers; the oldest leave first."""
    max_replies_per_peer: int = Field(default=256, ge=1)
    """Of one caller."""
    max_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Of all of them together."""
    max_bytes_per_peer: int = Field(default=4 * 1024 * 1024, ge=1)
    """Of one caller's."""
    life_s: float = Field(default=600.0, gt=0)
    """How long a reply is kept."""


class RpcConfig(BaseModel):
    """Limits of one Rpc; the defaults suit a node with a few hundred peers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_channels: int = Field(default=256, ge=1)
    """Channels we hold open for our own calls; the least recently used idle one is closed for a new one."""
    max_channels_in: int = Field(default=512, ge=1)
    """Channels others hold open to us."""
    max_channels_in_per_peer: int = Field(default=2, ge=1)
    """Of one peer; its oldest is closed for a new one (after a restart of its, the old one may linger)."""
    max_calls_per_channel: int = Field(default=64, ge=1)
    """Our calls in flight to one peer; further ones wait."""
    max_calls_in_per_channel: int = Field(default=128, ge=1)
    """Calls of one channel that we work on; further ones are answered `busy`."""
    max_queued_frames: int = Field(default=1024, ge=16)
    """Control frames and answers waiting for a peer that does not read, before its channel is reset."""
    max_buffered_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Announced bytes of all requests being received; beyond it requests are answered `busy`."""
    max_buffered_bytes_per_channel: int = Field(default=64 * 1024 * 1024, ge=1)
    """The same for one channel, so that one peer cannot take all of it."""
    frame_timeout_s: float = Field(default=15.0, gt=0)
    """How long a frame may take from its first byte to its last."""
    write_timeout_s: float = Field(default=20.0, gt=0)
    """How long one write may wait for a peer that does not read."""
    dial_timeout_s: float = Field(default=15.0, gt=0)
    """How long opening a channel may take, dial included."""
    idle_s: float = Field(default=120.0, gt=0)
    """A channel of ours without calls for this long is closed (drawn from 0.75 to 1.25 of it)."""
    idle_in_s: float = Field(default=600.0, gt=0)
    """A channel of another's without a frame for this long is closed."""
    calls_per_s_per_peer: float = Field(default=10_000.0, gt=0)
    """Calls one peer may make in the long run (a burst of a second's worth); further ones are answered `busy`."""
    calls_per_s: float = Field(default=20_000.0, gt=0)
    """The same for all peers together."""
    max_rated_peers: int = Field(default=4096, ge=1)
    """Peers whose rate is remembered."""
    max_retries: int = Field(default=2, ge=0, le=10)
    """How often a call that may be repeated is tried again within its deadline."""
    retry_base_s: float = Field(default=0.1, gt=0)
    """Longest pause before the first retry; doubled each time, drawn evenly between 0 and that."""
    data_after_calls: int = Field(default=4, ge=1)
    """Calls to a peer after which a data connection is opened to it; a stream or a large body asks for one at once."""
    data_after_bytes: int = Field(default=64 * 1024, ge=1)
    """Request bytes that count as large."""
    data_wait_s: float = Field(default=1.0, ge=0)
    """How long a stream or large call waits for a data connection that is being opened."""
    data_idle_s: float = Field(default=60.0, gt=0)
    """A data connection of ours without calls for this long is closed."""
    data_retry_s: float = Field(default=60.0, gt=0)
    """After a failure to open one, no other is tried for so long (doubled each time, up to 16 times)."""
    standing: StandingConfig = StandingConfig()
    replies: ReplyCacheConfig = ReplyCacheConfig()


@dataclass(slots=True)
class MethodMetrics:
    """What one served method did."""

    calls: int = 0
    failures: int = 0
    running: int = 0
    seconds: float = 0.0
    """From admission to the end of the answer, all calls together."""
    slowest_s: float = 0.0


@dataclass(slots=True)
class RpcMetrics:
    """What an Rpc did since it was made. Bytes are those of frames, both kinds of channels together."""

    calls_out: int = 0
    calls_in: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    channels_opened: int = 0
    data_opened: int = 0
    """Of these, on data connections."""
    channels_accepted: int = 0
    channels_refused: int = 0
    violations: int = 0
    buffered_bytes: int = 0
    """Bytes of requests being received right now."""
    retries: int = 0
    hedges: int = 0
    methods_in: dict[str, MethodMetrics] = field(default_factory=dict)
    """By protocol and method, of calls to us. As many as are served."""
    errors_out: dict[str, int] = field(default_factory=dict)
    """Calls of ours that failed, by code or exception name."""
    errors_in: dict[str, int] = field(default_factory=dict)
    """Calls to us that failed, by code."""

    def count_error(self, table: dict[str, int], code: str) -> None:
        """Count under the code; codes chosen by strangers beyond a bound are summed as `other`."""
        if code not in table and len(table) >= _MAX_COUNTED_CODES:
            code = "other"
        table[code] = table.get(code, 0) + 1
