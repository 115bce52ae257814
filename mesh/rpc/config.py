"""Bounds of the RPC layer and what it counts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.peer import PeerID

RPC_PROTOCOL: Final = "/mesh/rpc/1.0.0"

_MAX_COUNTED_CODES: Final = 64


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
    max_violators: int = Field(default=1024, ge=1)
    """Peers whose protocol violations are remembered, latest first."""


@dataclass(slots=True)
class RpcMetrics:
    """What an Rpc did since it was made. Bytes are those of frames, both kinds of channels together."""

    calls_out: int = 0
    calls_in: int = 0
    calls_local: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    channels_opened: int = 0
    channels_accepted: int = 0
    channels_refused: int = 0
    violations: int = 0
    buffered_bytes: int = 0
    """Bytes of requests being received right now."""
    errors_out: dict[str, int] = field(default_factory=dict)
    """Calls of ours that failed, by code or exception name."""
    errors_in: dict[str, int] = field(default_factory=dict)
    """Calls to us that failed, by code."""

    def count_error(self, table: dict[str, int], code: str) -> None:
        """Count under the code; codes chosen by strangers beyond a bound are summed as `other`."""
        if code not in table and len(table) >= _MAX_COUNTED_CODES:
            code = "other"
        table[code] = table.get(code, 0) + 1


class Violations:
    """How often each peer broke the protocol; bounded, the longest quiet leave first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[PeerID, int] = OrderedDict()

    def add(self, peer: PeerID) -> None:
        """Count one."""
        self._counts[peer] = self._counts.pop(peer, 0) + 1
        while len(self._counts) > self._limit:
            self._counts.popitem(last=False)

    def __getitem__(self, peer: PeerID) -> int:
        return self._counts.get(peer, 0)

    def items(self) -> tuple[tuple[PeerID, int], ...]:
        """Peers and counts, the latest violator last."""
        return tuple(self._counts.items())
