"""Answers of earlier gets, for gets that are content with the first valid: bounded in bytes and in age. PURE."""

from __future__ import annotations

from collections import OrderedDict

from mesh.dht.report import Found
from mesh.kad.validator import record_bytes


class ReadCache:
    """Found by key. `now` is in unix seconds. A record is never returned past its expiry, whatever its answer's age."""

    def __init__(self, *, max_bytes: int, max_age_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._answers: OrderedDict[bytes, tuple[Found, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, found: Found) -> None:
        """Keep an answer; the least recently used leave. One bigger than everything is not kept."""
        self.forget(found.key)
        size = sum(record_bytes(record) for record in found.records) + len(found.key)
        if not found.records or size > self._max_bytes:
            return
        self._answers[found.key] = (found, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, gone) = self._answers.popitem(last=False)
            self._bytes -= gone

    def get(self, key: bytes, *, now: float) -> Found | None:
        """The answer kept for a key; None when there is none young enough, or when one of its records has expired:
        its owner may have published the next."""
        kept = self._answers.get(key)
        if kept is None:
            return None
        found, _ = kept
        if not 0 <= now - found.at <= self._max_age_s or any(record.is_expired(now) for record in found.records):
            self.forget(key)
            return None
        self._answers.move_to_end(key)
        return found

    def forget(self, key: bytes) -> None:
        """Drop what is kept for a key."""
        kept = self._answers.pop(key, None)
        if kept is not None:
            self._bytes -= kept[1]
