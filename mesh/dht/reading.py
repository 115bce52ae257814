"""Reading: a get asks the peers closest to a key and merges what they hold, the newest valid record of each slot.

Gets of one key that run at the same time share one lookup. Afterwards a get for the latest gives replicas what they
lack or hold in an older form (read repair), and a get for the first gives the nearest peer that held nothing a copy
(Kademlia §2.3), so that a key asked for often is found ever sooner.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from mesh.dht.answers import Answered
from mesh.dht.batching import Batch
from mesh.dht.cache import ReadCache
from mesh.dht.config import DhtConfig
from mesh.dht.gifts import Gifts
from mesh.dht.holdings import Holdings
from mesh.dht.metrics import DhtMetrics
from mesh.dht.peers import Peers
from mesh.dht.report import Found, Want
from mesh.errors import MeshError, RecordNotFound, RecordRejected, RemoteProtocolError
from mesh.kad.diversity import crowding, outside, second_seeds
from mesh.kad.equivocation import Equivocation
from mesh.kad.key import key_of_record
from mesh.kad.lookup import Counts, Lookup
from mesh.kad.record import Record, Slot
from mesh.kad.wire import MAX_PROOFS, MAX_QUERIES, Query, Role
from mesh.peer import PeerID, PeerInfo

log = logging.getLogger(__name__)

AskQuery = Callable[[PeerInfo, Query], Awaitable[Answered]]

_FORGED: Final = frozenset({"signature", "schema", "genesis", "subnet", "namespace", "size", "key"})
"""Refusals of a record in an answer that no honest peer can cause: the rest of the answer is not looked at."""
_MAX_BATCH_BYTES: Final = 32 * 1024
"""Of the queries in one message; the servicer takes twice as much."""


@dataclass(slots=True)
class _Collected:
    """What one lookup gathered."""

    key: bytes
    at: float
    newest: dict[Slot, Record] = field(default_factory=dict)
    returned: dict[PeerID, set[bytes]] = field(default_factory=dict)
    """Digests of what each peer that answered holds."""
    slots_of: Counter[PeerID] = field(default_factory=Counter)
    proofs: dict[Slot, Equivocation] = field(default_factory=dict)
    is_done: bool = False


class Reader:
    """The gets of one node."""

    def __init__(
        self,
        peers: Peers,
        holdings: Holdings,
        gifts: Gifts,
        *,
        config: DhtConfig,
        metrics: DhtMetrics,
    ) -> None:
        self._peers = peers
        self._holdings = holdings
        self._gifts = gifts
        self._config = config
        self._metrics = metrics
        self._cache = ReadCache(max_bytes=config.cache_bytes, max_age_s=config.cache_s)
        self._flights: dict[tuple[bytes, Want, int | None], tuple[trio.Event, _Collected]] = {}

    async def get(self, key: bytes, want: Want, *, paths: int | None = None, ask: AskQuery | None = None) -> Found:
        """See DHT.get."""
        called_at = self._holdings.now()
        self._holdings.validator.rule(key)
        if want is Want.FIRST:
            near = await self._at_hand(key, called_at)
            if near is not None:
                await trio.lowlevel.checkpoint()
                return near
        collected = await self._shared(key, want, paths, ask or self._ask)
        self._cache.forget(key)
        found = await self._present(collected, called_at)
        self._cache.put(found)
        return found

    async def newest(self, key: bytes) -> tuple[Record, ...]:
        """The newest record of every slot, tombstones included: empty when nothing is there."""
        collected = await self._shared(key, Want.LATEST, None, self._ask)
        return tuple((await self._merged(collected)).values())

    async def get_many(self, keys: Iterable[bytes], want: Want) -> dict[bytes, Found]:
        """See DHT.get_many."""
        wanted = sorted(set(keys))
        found: dict[bytes, Found] = {}
        limiter = trio.CapacityLimiter(self._config.max_parallel_keys)
        for key in wanted:
            self._holdings.validator.rule(key)

        async def one(key: bytes, ask: AskQuery) -> None:
            async with limiter:
                try:
                    found[key] = await self.get(key, want, ask=ask)
                except RecordNotFound:
                    return

        async with trio.open_nursery() as sending:
            batch = Batch[Query, Answered](
                sending, self._peers.ask_find, weigh=_weight, max_weight=_MAX_BATCH_BYTES, max_items=MAX_QUERIES
            )
            async with trio.open_nursery() as nursery:
                for key in wanted:
                    nursery.start_soon(one, key, batch.ask)
            sending.cancel_scope.cancel()
        return {key: found[key] for key in wanted if key in found}

    # -- at hand --

    async def _at_hand(self, key: bytes, now: float) -> Found | None:
        """What we hold ourselves, else what we were told lately; never what has expired or lost its membership."""
        held = tuple(record for record in await self._holdings.readable(key) if not record.tombstone)
        if held:
            return Found(
                key,
                held,
                answered=1,
                holders={record.slot: 1 for record in held},
                at=now,
                proofs=self._holdings.store.proofs_of(key),
            )
        found = self._cache.get(key, now=now)
        if found is None or any(self._is_overtaken(record) for record in found):
            return None
        if self._holdings.validator.rule(key).members_only:
            for owner in sorted({record.owner for record in found}):
                if not await self._peers.is_member(owner):
                    self._cache.forget(key)
                    return None
        self._metrics.cache_hits += 1
        return replace(found, age_s=now - found.at)

    def _is_overtaken(self, record: Record) -> bool:
        """Whether we hold something newer in its place, a tombstone perhaps."""
        held = self._holdings.store.held(record.slot)
        return held is not None and held.order > record.order

    # -- one lookup, shared --

    async def _shared(self, key: bytes, want: Want, paths: int | None, ask: AskQuery) -> _Collected:
        """Collect, or wait for whom collects the same already. When that one is cancelled, somebody who waits begins
        anew: nobody's lookup runs on behalf of a caller that is gone."""
        name = (key, want, paths)
        while name in self._flights:
            done, collected = self._flights[name]
            self._metrics.shared_lookups += 1
            await done.wait()
            if collected.is_done:
                return collected
        done, collected = trio.Event(), _Collected(key, self._holdings.now())
        self._flights[name] = (done, collected)
        try:
            await self._collect(collected, want, paths, ask)
            collected.is_done = True
        finally:
            del self._flights[name]
            done.set()
        return collected

    async def _collect(self, collected: _Collected, want: Want, paths: int | None, ask: AskQuery) -> None:
        key = collected.key
        await self._take_ours(collected)

        async def one(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            answer = await ask(info, Query(key=key, want=self._config.read_width))
            await self._take(collected, info, answer)
            return answer.closer, Counts.YES if answer.role is Role.SERVER else Counts.ROUTES_ONLY

        def is_content(lookup: Lookup) -> bool:
            return any(not record.tombstone for record in collected.newest.values())

        lookup = self._peers.lookup(
            key_of_record(key),
            k=self._config.read_width,
            # All at once: with a warm table that is one round. The first valid answer is most likely the closest
            # peer's, and asking more at once makes all of them slower.
            alpha=1 if want is Want.FIRST else self._config.read_width,
            paths=paths,
            stop_when=is_content if want is Want.FIRST else None,
        )
        await self._peers.drive(lookup, one, kind="get")
        if not collected.newest:
            lookup.widen(self._config.miss_width)
            await self._peers.drive(lookup, one, kind="get")
        if not collected.newest:
            await self._ask_others(collected, lookup, ask)
        self._repair(collected, want, lookup)

    async def _ask_others(self, collected: _Collected, lookup: Lookup, ask: AskQuery) -> None:
        """Before saying that nothing is there, ask outside the IP groups that said so (mesh.kad.diversity)."""
        crowded = crowding(lookup.closest())
        count = self._config.routing.bucket_size
        others = second_seeds(self._peers.table, lookup.target, crowded, count=count)
        if not crowded or not others:
            return

        async def one(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            answer = await ask(info, Query(key=collected.key))
            await self._take(collected, info, answer)
            return outside(answer.closer, crowded), Counts.YES if answer.role is Role.SERVER else Counts.ROUTES_ONLY

        second = self._peers.lookup(lookup.target, k=self._config.read_width, only=others)
        await self._peers.drive(second, one, kind="get")

    async def _take_ours(self, collected: _Collected) -> None:
        held = await self._holdings.readable(collected.key)
        collected.newest.update((record.slot, record) for record in held)
        collected.slots_of.update(record.owner for record in held)
        if held:
            collected.returned[self._peers.local] = {record.digest for record in held}
        collected.proofs.update((proof.slot, proof) for proof in self._holdings.store.proofs_of(collected.key))

    async def _ask(self, info: PeerInfo, query: Query) -> Answered:
        (answer,) = await self._peers.ask_find(info, (query,))
        return answer

    async def _take(self, collected: _Collected, info: PeerInfo, answer: Answered) -> None:
        """Merge all pages of a peer's answer. Raises RemoteProtocolError for what no honest peer sends; what was taken
        before stays, being valid."""
        returned = collected.returned.setdefault(info.peer_id, set()) if answer.role is Role.SERVER else set()
        budget = self._config.max_get_bytes
        last: tuple[bytes, bytes] | None = None
        await self._take_proofs(collected, answer.proofs[:MAX_PROOFS])
        was_full = not answer.records
        while True:
            last = await self._merge(collected, answer.records, returned, source=info.peer_id, after=last)
            budget -= sum(map(len, answer.records))
            if not answer.more or budget <= 0 or not (answer.records or was_full):
                return
            was_full = False
            answer = await self._ask(info, Query(key=collected.key, after=last, want=0))

    async def _merge(
        self,
        collected: _Collected,
        raws: Sequence[bytes],
        returned: set[bytes],
        *,
        source: PeerID,
        after: tuple[bytes, bytes] | None,
    ) -> tuple[bytes, bytes] | None:
        """Take what is newer, after checking it. Returns where the page, which begins behind `after`, ended."""
        last = after
        most = self._holdings.validator.rule(collected.key).max_records_per_owner
        with self._peers.blaming(source):
            for number, raw in enumerate(raws):
                if number % 32 == 31:
                    await trio.lowlevel.checkpoint()
                record = Record.from_bytes(raw)
                if record.key != collected.key:
                    raise RemoteProtocolError(f"a record under {record.key!r} when {collected.key!r} was asked for")
                place = (record.owner.multihash, record.subkey)
                if last is not None and place <= last:
                    raise RemoteProtocolError("records out of order")
                last = place
                held = collected.newest.get(record.slot)
                if held is not None and held.order >= record.order:
                    returned.add(record.digest)
                    continue
                if held is None and collected.slots_of[record.owner] >= most:
                    continue  # no honest replica holds more of one owner
                try:
                    await self._holdings.check_read(record)
                except RecordRejected as error:
                    if error.reason in _FORGED:
                        self._metrics.forged += 1
                        raise RemoteProtocolError(f"{source} returned a forged record: {error}") from error
                    log.debug("dht.record_skipped", extra={"peer": str(source), "reason": error.reason})
                    continue
                returned.add(record.digest)
                collected.slots_of[record.owner] += held is None
                collected.newest[record.slot] = record
        return last

    async def _take_proofs(self, collected: _Collected, raws: Sequence[bytes]) -> None:
        for raw in raws:
            try:
                proof = Equivocation.from_bytes(raw)
                if proof.first.key == collected.key and proof.slot not in collected.proofs:
                    await self._holdings.learn_proof(proof)
                    collected.proofs[proof.slot] = proof
            except MeshError as error:
                log.debug("dht.proof_skipped", extra={"error": str(error)})

    # -- afterwards --

    def _repair(self, collected: _Collected, want: Want, lookup: Lookup) -> None:
        """Give what is newest to whom it should be with: replicas that lack it, as far as all were asked; else the
        nearest peer on the way that held nothing, where the next who looks for it comes by."""
        near: list[PeerInfo] = []
        if collected.newest and want is Want.LATEST:
            near = [info for info in lookup.closest(self._config.replicas) if info.peer_id in collected.returned]
        elif collected.newest:
            miss = lookup.nearest_without({peer for peer, held in collected.returned.items() if held})
            near = [miss] if miss is not None and miss.peer_id in collected.returned else []
        for info in near:
            lacking = [r for r in collected.newest.values() if r.digest not in collected.returned[info.peer_id]]
            self._gifts.offer(info, lacking)

    async def _present(self, collected: _Collected, called_at: float) -> Found:
        newest = await self._merged(collected)
        present = [record for record in newest.values() if not record.tombstone]
        if not present:
            known = len(self._peers.table)
            raise RecordNotFound(f"nothing is stored under {collected.key!r}, as far as {known} known peers say")
        holding = Counter(digest for held in collected.returned.values() for digest in held)
        return Found(
            collected.key,
            tuple(sorted(present, key=lambda record: (record.owner, record.subkey))),
            answered=len(collected.returned),
            holders={record.slot: holding[record.digest] for record in present},
            at=collected.at,
            age_s=max(0.0, called_at - collected.at),
            proofs=tuple(collected.proofs.values()),
        )

    async def _merged(self, collected: _Collected) -> dict[Slot, Record]:
        """What was collected as it is now: what expired meanwhile is left out, and what came to be held here meanwhile,
        our own puts above all, is in."""
        newest = dict(collected.newest)
        for record in await self._holdings.readable(collected.key):
            held = newest.get(record.slot)
            if held is None or held.order < record.order:
                newest[record.slot] = record
        now = self._holdings.now()
        return {slot: record for slot, record in newest.items() if not record.is_expired(now)}


def _weight(query: Query) -> int:
    return len(query.key or b"") + 64
