"""Replies kept for repeated calls: an idempotency key makes a call complete once, however often it is sent.

A key is its caller's own: two peers with one key are two calls. Bounded per caller and in all, in replies, bytes and
age; a reply that was dropped means that a very late repetition runs again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from mesh.errors import RemoteFailure
from mesh.peer import PeerID
from mesh.rpc.config import ReplyCacheConfig


@dataclass(slots=True, eq=False)
class _Entry:
    digest: bytes
    begun_at: float
    reply: bytes | None = None
    done: trio.Event = field(default_factory=trio.Event)

    async def outcome(self) -> bytes | None:
        """The reply once it is made, although it may be too large to be kept; None when the run failed."""
        await self.done.wait()
        return self.reply


Key = tuple[str, str, bytes]
"""Protocol, method, idempotency key."""


class ReplyCache:
    """Replies by caller and key."""

    def __init__(self, config: ReplyCacheConfig | None = None) -> None:
        self.config = config or ReplyCacheConfig()
        self._peers: OrderedDict[PeerID, OrderedDict[Key, _Entry]] = OrderedDict()
        self.replies = 0
        self.bytes = 0

    async def once(self, peer: PeerID, key: Key, body: bytes | bytearray, run: Callable[[], Awaitable[bytes]]) -> bytes:
        """The reply kept under the key; else that of `run`, which is kept. A repetition that comes while the first one
        runs waits for it, and takes its place when it fails. Raises RemoteFailure `bad-request` when the key was used
        for another request, and what `run` raises (a failure is not kept). Cancelled: the next one runs."""
        digest = hashlib.sha256(body).digest()
        while True:
            entry = self._find(peer, key, trio.current_time())
            if entry is None:
                break
            if entry.digest != digest:
                raise RemoteFailure("bad-request", "this idempotency key was used for another request")
            kept = entry.reply if entry.reply is not None else await entry.outcome()
            if kept is not None:
                return kept
        entry = _Entry(digest, trio.current_time())
        self._peers.setdefault(peer, OrderedDict())[key] = entry
        self._peers.move_to_end(peer)
        self.replies += 1
        try:
            reply = entry.reply = await run()
        except BaseException:
            self._drop(peer, key, entry)
            raise
        finally:
            entry.done.set()
        own = self._peers.get(peer)
        if own is not None and own.get(key) is entry:
            self.bytes += len(reply)
            self._trim(peer)
        return reply

    def _find(self, peer: PeerID, key: Key, now: float) -> _Entry | None:
        own = self._peers.get(peer)
        entry = own.get(key) if own is not None else None
        if entry is not None and entry.reply is not None and now > entry.begun_at + self.config.life_s:
            self._drop(peer, key, entry)
            return None
        return entry

    def _trim(self, peer: PeerID) -> None:
        config = self.config
        own = self._peers[peer]
        while len(own) > config.max_replies_per_peer or _bytes(own) > config.max_bytes_per_peer:
            if not self._drop_oldest(peer):
                break
        while self.replies > config.max_replies or self.bytes > config.max_bytes:
            if not any(self._drop_oldest(other) for other in list(self._peers)):
                break

    def _drop_oldest(self, peer: PeerID) -> bool:
        """Drop a peer's oldest reply; those still being made stay (calls in flight have bounds of their own)."""
        for key, entry in self._peers.get(peer, {}).items():
            if entry.reply is not None:
                self._drop(peer, key, entry)
                return True
        return False

    def _drop(self, peer: PeerID, key: Key, entry: _Entry) -> None:
        own = self._peers.get(peer)
        if own is None or own.get(key) is not entry:
            return
        del own[key]
        if not own:
            del self._peers[peer]
        self.replies -= 1
        self.bytes -= len(entry.reply or b"")


def _bytes(own: OrderedDict[Key, _Entry]) -> int:
    return sum(len(entry.reply or b"") for entry in own.values())
