"""Extrinsics that wait for a block.

PURE. Per account they stand in nonce order; a nonce that is ahead of the account waits, within bounds, for the ones
before it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from mesh.devchain.extrinsic import FUTURE, PAYMENT, Extrinsic, Refused, invalid
from mesh.devchain.pallets.transaction_payment import fee_planck


class PoolConfig(BaseModel):
    """Bounds of the pool and of blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_extrinsics: int = Field(default=4096, ge=1)
    """All that wait, of all accounts."""
    max_bytes: int = Field(default=20 * 1024 * 1024, ge=1024)
    """Of all that wait: five full blocks."""
    max_per_account: int = Field(default=64, ge=1)
    """Waiting extrinsics of one account; also how far its nonce may be ahead."""
    max_extrinsic_bytes: int = Field(default=512 * 1024, ge=128)
    max_block_extrinsics: int = Field(default=1024, ge=1)
    max_block_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    max_banned: int = Field(default=1024, ge=1)
    """Hashes remembered of extrinsics that turned out invalid."""
    ban_blocks: int = Field(default=10, ge=1)
    """Blocks for which such a hash is refused."""


@dataclass(frozen=True)
class Added:
    """Who had to go for an extrinsic that was taken: the one of the same nonce, and those that blocked the room."""

    replaced: Extrinsic | None
    evicted: tuple[Extrinsic, ...]


class Pool:
    """The waiting extrinsics."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self._by_account: dict[bytes, dict[int, Extrinsic]] = {}
        self._arrival: dict[bytes, int] = {}
        self._born: dict[bytes, int] = {}
        self._by_hash: dict[bytes, Extrinsic] = {}
        self._banned: OrderedDict[bytes, int] = OrderedDict()
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def __iter__(self) -> Iterator[Extrinsic]:
        return iter(list(self._by_hash.values()))

    def refuse_known(self, ext_hash: bytes, *, number: int) -> None:
        """Raise `Refused` for a hash that waits already or is banned, before anything costly is checked."""
        if ext_hash in self._by_hash:
            raise Refused(1013, "Transaction Already Imported", "0x" + ext_hash.hex())
        until = self._banned.get(ext_hash)
        if until is not None and number <= until:
            raise Refused(1012, "Transaction is temporarily banned", f"until block {until}")

    def add(self, ext: Extrinsic, *, nonce_of: Callable[[bytes], int], free_planck: int, number: int) -> Added:
        """Take a checked extrinsic; gives those whose place it took.

        `nonce_of` gives an account's nonce in the state, `free_planck` is the signer's, `number` is the next block's.
        `Refused` by the bounds, by a nonce too far ahead, when a waiting extrinsic of the same nonce tips as much, or
        when the account cannot pay for all its extrinsics up to this one.

        A full pool still takes what the next block could. Extrinsics behind a gap in their account's nonces make room
        first, for they may never be ready, and nobody pays for their waiting; then those that tip less. Or whoever
        fills the pool anew after each block, for next to nothing, would keep everybody out.
        """
        nonce = nonce_of(ext.signer)
        waiting = self._by_account.get(ext.signer, {})
        if ext.nonce - nonce >= self.config.max_per_account:
            raise invalid(FUTURE)
        old = waiting.get(ext.nonce)
        if old is not None and ext.tip_planck <= old.tip_planck:
            raise Refused(
                1014,
                f"Priority is too low: ({old.tip_planck} vs {ext.tip_planck})",
                "The transaction has too low priority to replace another transaction already in the pool.",
            )
        before = [each for number, each in waiting.items() if number < ext.nonce]
        if sum(cost_planck(each) for each in (*before, ext)) > free_planck:
            raise invalid(PAYMENT)
        evicted = self._make_room(ext, old, nonce_of)
        for each in (*evicted, *([] if old is None else [old])):
            self.remove(each)
        self._count += 1
        self._by_account.setdefault(ext.signer, {})[ext.nonce] = ext
        self._by_hash[ext.hash] = ext
        self._arrival[ext.hash] = self._count
        self._born[ext.hash] = ext.era.birth(number)
        self._bytes += len(ext.raw)
        return Added(old, tuple(evicted))

    def _make_room(self, ext: Extrinsic, old: Extrinsic | None, nonce_of: Callable[[bytes], int]) -> list[Extrinsic]:
        """What must go so that `ext` fits in place of `old`; `Refused` when that would not be enough."""
        over = len(self) + (old is None) - self.config.max_extrinsics
        over_bytes = self._bytes + len(ext.raw) - (0 if old is None else len(old.raw)) - self.config.max_bytes
        going: list[Extrinsic] = []
        if over <= 0 and over_bytes <= 0:
            return going
        if ext.nonce <= self.next_nonce(ext.signer, nonce_of(ext.signer)):
            ready = {each.hash for each in self.ready(nonce_of)}
            others = [each for each in reversed(self._by_hash.values()) if each.signer != ext.signer]  # latest first
            blocked = [each for each in others if each.hash not in ready]
            cheaper = [each for each in others if each.hash in ready and each.tip_planck < ext.tip_planck]
            for each in [*blocked, *sorted(cheaper, key=lambda each: each.tip_planck)]:
                if over <= 0 and over_bytes <= 0:
                    break
                going.append(each)
                over, over_bytes = over - 1, over_bytes - len(each.raw)
        if over > 0 or over_bytes > 0:
            raise Refused(1016, "Immediately Dropped", "The transaction couldn't enter the pool because of the limit")
        return going

    def remove(self, ext: Extrinsic) -> None:
        """Forget a waiting extrinsic."""
        waiting = self._by_account[ext.signer]
        del waiting[ext.nonce]
        if not waiting:
            del self._by_account[ext.signer]
        del self._by_hash[ext.hash]
        del self._arrival[ext.hash]
        del self._born[ext.hash]
        self._bytes -= len(ext.raw)

    def ban(self, ext: Extrinsic, *, number: int) -> None:
        """Forget an extrinsic that turned out invalid, and refuse it for a while."""
        self.remove(ext)
        self._banned[ext.hash] = number + self.config.ban_blocks
        while len(self._banned) > self.config.max_banned:
            self._banned.popitem(last=False)

    def ready(self, nonce_of: Callable[[bytes], int]) -> Iterator[Extrinsic]:
        """What a block may take, in order: higher tip, then earlier arrival; each account by nonce without gaps."""
        heap: list[tuple[int, int, bytes, int]] = []

        def push(signer: bytes, nonce: int) -> None:
            ext = self._by_account.get(signer, {}).get(nonce)
            if ext is not None:
                heapq.heappush(heap, (-ext.tip_planck, self._arrival[ext.hash], signer, nonce))

        for signer in self._by_account:
            push(signer, nonce_of(signer))
        while heap:
            _, _, signer, nonce = heapq.heappop(heap)
            ext = self._by_account.get(signer, {}).get(nonce)
            if ext is not None:
                push(signer, nonce + 1)
                yield ext

    def next_nonce(self, signer: bytes, nonce: int) -> int:
        """The first nonce from the account's own on that nothing waits for."""
        waiting = self._by_account.get(signer, {})
        while nonce in waiting:
            nonce += 1
        return nonce

    def dead(self, nonce_of: Callable[[bytes], int], *, number: int) -> list[Extrinsic]:
        """What can never enter block `number` or a later one: its nonce is used, or its era is over."""
        gone = []
        for ext in self._by_hash.values():
            over = not ext.era.immortal and number >= self._born[ext.hash] + ext.era.period
            if over or ext.nonce < nonce_of(ext.signer):
                gone.append(ext)
        return gone


def cost_planck(ext: Extrinsic) -> int:
    """Fee and tip of an extrinsic."""
    return fee_planck(len(ext.raw)) + ext.tip_planck
