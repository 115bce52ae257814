"""What one sender may ask of us per second, bounded in senders, and what all of them together may cost. PURE: `now` is
an argument.

A signature check is the dearest thing a stranger can make us do: 8,000 a second are a core. So it is the last check,
and paid for twice. Whoever sent a signature that fails pays for it with many records' worth of its rate, and after a
few is refused outright for a while; and all senders draw from one budget of checks, of which those that never sent
us a good record share only a part. A thousand strangers that each behave just badly enough then cost a fixed part of
a core, and cannot keep out those we know.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RecordRejected
from mesh.peer import PeerID
from mesh.ratelimit import TokenBucket

V = TypeVar("V")

_KEY_BYTES_PER_CHECK: Final = 256
"""RSA takes 30 us for a key of 300 bytes, 230 us for one of 1,070; Ed25519 and secp256k1 take 50 to 70 us. This line
lies above all of them."""


class RateConfig(BaseModel):
    """Per sender, but for the last three. A bucket is full at first and refills evenly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    records_per_s: float = Field(default=100.0, gt=0, description="sustained records per second")
    burst_records: float = Field(default=500.0, ge=1, description="records at once")
    bytes_per_s: float = Field(default=1_000_000.0, gt=0, description="sustained bytes per second")
    burst_bytes: float = Field(default=8_000_000.0, ge=1, description="bytes at once")
    failure_cost: float = Field(default=50.0, ge=0, description="records that one failed signature is charged as")
    max_failures: int = Field(
        default=8, ge=1, description="failed signatures, each good one taking one off, after which a sender is refused"
    )
    refuse_s: float = Field(default=60.0, ge=0, description="how long it is refused then")
    max_senders: int = Field(
        default=1024, ge=1, description="senders remembered; the longest silent is forgotten first"
    )
    checks_per_s: float = Field(
        default=2000.0, gt=0, description="signature checks for all senders together; 2000 are 15 to 25 % of a core"
    )
    unproven_share: float = Field(
        default=0.5, gt=0, le=1, description="part of them for senders that have not sent a good record lately"
    )


@dataclass(slots=True)
class _Sender:
    records: TokenBucket
    volume: TokenBucket
    failures: int = 0


class SenderRates:
    """What each sender has left. At most `max_senders` of them are remembered in each of three roles: active, refused,
    proven; a flood of new ones makes room among the active only."""

    def __init__(self, config: RateConfig) -> None:
        self._config = config
        self._senders: OrderedDict[PeerID, _Sender] = OrderedDict()
        self._refused: OrderedDict[PeerID, float] = OrderedDict()
        self._proven: OrderedDict[PeerID, None] = OrderedDict()
        unproven_per_s = config.checks_per_s * config.unproven_share
        self._checks = TokenBucket(rate_per_s=config.checks_per_s, burst=max(1.0, config.checks_per_s))
        self._unproven_checks = TokenBucket(rate_per_s=unproven_per_s, burst=max(1.0, unproven_per_s))

    def __len__(self) -> int:
        return max(len(self._senders), len(self._refused), len(self._proven))

    def check(self, sender: PeerID, *, now: float) -> None:
        """Whether anything of this sender is looked at. Raises RecordRejected("rate") while it is refused."""
        until = self._refused.get(sender)
        if until is None:
            return
        if now >= until:
            del self._refused[sender]
            return
        raise RecordRejected("rate", f"{sender} sent signatures that fail; refused for another {until - now:.0f} s")

    def spend(self, sender: PeerID, size: int, *, now: float) -> None:
        """Charge one record of `size` bytes. Raises RecordRejected("rate"); a refused record costs
        nothing."""
        self.check(sender, now=now)
        state = self._sender(sender)
        if not (state.records.holds(now) and state.volume.take(now, size)):
            config = self._config
            raise RecordRejected(
                "rate",
                f"{sender} may send {config.records_per_s:g} records/s and {config.bytes_per_s:g} bytes/s",
            )
        state.records.take(now)

    def spend_check(self, sender: PeerID, *, key_bytes: int, now: float) -> None:
        """Charge one signature check, by a public key of so many bytes, to what all senders share. Raises
        RecordRejected("rate")."""
        self.check(sender, now=now)
        is_proven = sender in self._proven
        cost = max(1.0, key_bytes / _KEY_BYTES_PER_CHECK)
        everybody, unproven = self._checks, self._unproven_checks
        if everybody.holds(now, min(cost, everybody.burst)) and (
            is_proven or unproven.take(now, min(cost, unproven.burst))
        ):
            everybody.take(now, min(cost, everybody.burst))
            return
        raise RecordRejected(
            "rate",
            f"this node checks {self._config.checks_per_s:g} signatures/s"
            + ("" if is_proven else f", {self._config.unproven_share:g} of them for senders new to it"),
        )

    def on_good(self, sender: PeerID) -> None:
        """Its signature was good, of a record that was new to us."""
        state = self._sender(sender)
        state.failures = max(0, state.failures - 1)
        _remember(self._proven, sender, None, self._config.max_senders)

    def on_bad(self, sender: PeerID, *, now: float) -> None:
        """Its signature failed, which no honest node's does: it checks before it passes on."""
        self._proven.pop(sender, None)
        state = self._sender(sender)
        state.failures += 1
        can_pay = state.records.take(now, self._config.failure_cost)
        if state.failures >= self._config.max_failures or not can_pay:
            state.failures = 0
            _remember(self._refused, sender, now + self._config.refuse_s, self._config.max_senders)

    def _sender(self, sender: PeerID) -> _Sender:
        config = self._config
        state = self._senders.get(sender) or _Sender(
            TokenBucket(rate_per_s=config.records_per_s, burst=config.burst_records),
            TokenBucket(rate_per_s=config.bytes_per_s, burst=config.burst_bytes),
        )
        _remember(self._senders, sender, state, config.max_senders)
        return state


def _remember(into: OrderedDict[PeerID, V], sender: PeerID, value: V, most: int) -> None:
    into[sender] = value
    into.move_to_end(sender)
    if len(into) > most:
        into.popitem(last=False)
