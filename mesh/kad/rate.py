"""What one sender may ask of us: token buckets in records and bytes, bounded in senders. PURE: `now` is an
argument."""

from __future__ import annotations

from collections import OrderedDict

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RecordRejected
from mesh.peer import PeerID
from mesh.ratelimit import TokenBucket


class RateConfig(BaseModel):
    """Per sender. A bucket is full at first and refills evenly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    records_per_s: float = Field(default=100.0, gt=0, description="sustained records per second")
    burst_records: float = Field(default=500.0, ge=1, description="records at once")
    bytes_per_s: float = Field(default=1_000_000.0, gt=0, description="sustained bytes per second")
    burst_bytes: float = Field(default=8_000_000.0, ge=1, description="bytes at once")
    max_senders: int = Field(
        default=1024, ge=1, description="senders remembered; the longest silent is forgotten first"
    )


class SenderRates:
    """Two token buckets by sender: records and bytes."""

    def __init__(self, config: RateConfig) -> None:
        self._config = config
        self._buckets: OrderedDict[PeerID, tuple[TokenBucket, TokenBucket]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, sender: PeerID, size: int, *, now: float) -> None:
        """Charge one record of `size` bytes. Raises RecordRejected("rate"); a refused record costs
        nothing."""
        config = self._config
        if sender not in self._buckets:
            self._buckets[sender] = (
                TokenBucket(rate_per_s=config.records_per_s, burst=config.burst_records),
                TokenBucket(rate_per_s=config.bytes_per_s, burst=config.burst_bytes),
            )
        self._buckets.move_to_end(sender)  # last touched
        records, volume = self._buckets[sender]
        if len(self._buckets) > config.max_senders:
            self._buckets.popitem(last=False)
        if not (records.holds(now) and volume.take(now, size)):
            raise RecordRejected(
                "rate",
                f"{sender} may send {config.records_per_s:g} records/s and {config.bytes_per_s:g} bytes/s",
            )
        records.take(now)
