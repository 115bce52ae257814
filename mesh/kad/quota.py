"""How much of a node one party may take: records and bytes by owner, by sender and by namespace.

A rate (mesh.kad.rate) bounds what is asked of us per second, a quota what we come to hold. Every record is booked on
a few accounts; one that would overdraw any of them is refused before its signature is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RecordRejected


class Quota(BaseModel):
    """At most so much; None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_records: int | None = Field(default=None, ge=1, description="records")
    max_bytes: int | None = Field(default=None, ge=1, description="bytes, the store's overhead per record included")


UNLIMITED: Final = Quota()


@dataclass(frozen=True, slots=True)
class NamespaceQuota:
    """What one node holds of a namespace. Leave room in `in_all`: a namespace that is full takes nothing, near or
    far, until something expires."""

    in_all: Quota = UNLIMITED
    per_owner: Quota = UNLIMITED
    """Over all keys of the namespace."""


NO_QUOTA: Final = NamespaceQuota()


Account = tuple[object, ...]
"""Whose records are counted together, in words and ids: ("sender", PeerID)."""


class Ledger:
    """What is booked on each account. Knows as many accounts as records are held under, and no more."""

    def __init__(self) -> None:
        self._booked: dict[Account, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._booked)

    def booked(self, account: Account) -> tuple[int, int]:
        """(records, bytes)."""
        return self._booked.get(account, _NOTHING)

    def check(
        self,
        limits: Iterable[tuple[Account, Quota]],
        size: int,
        *,
        replacing: tuple[Account, ...] = (),
        replaced: int = 0,
    ) -> None:
        """Whether a record of `size` bytes fits, when one of `replaced` bytes leaves the accounts `replacing`. Raises
        RecordRejected("quota")."""
        for account, quota in limits:
            records, volume = self.booked(account)
            if account in replacing:
                records, volume = records - 1, volume - replaced
            if quota.max_records is not None and records + 1 > quota.max_records:
                raise RecordRejected("quota", f"{_text(account)}: at most {quota.max_records} records here")
            if quota.max_bytes is not None and volume + size > quota.max_bytes:
                raise RecordRejected("quota", f"{_text(account)}: at most {quota.max_bytes} bytes here")

    def book(self, accounts: Iterable[Account], size: int) -> None:
        """Add a record to these accounts."""
        for account in accounts:
            records, volume = self.booked(account)
            self._booked[account] = (records + 1, volume + size)

    def release(self, accounts: Iterable[Account], size: int) -> None:
        """Take a record off the accounts it was booked on."""
        for account in accounts:
            records, volume = self._booked[account]
            if records == 1:
                del self._booked[account]
            else:
                self._booked[account] = (records - 1, volume - size)


_NOTHING = (0, 0)


def _text(account: Account) -> str:
    return " ".join(str(part) for part in account)
