"""What a DHT node holds: records that were checked and kept, proofs against owners, and who waits for news."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from mesh.clock import Clock
from mesh.dht.disk import SqliteRecords
from mesh.dht.metrics import DhtMetrics
from mesh.errors import RecordRejected
from mesh.kad.equivocation import Equivocation
from mesh.kad.record import Record
from mesh.kad.store import Keep, RecordStore
from mesh.kad.validator import BlockPosition, Purpose, RecordValidator
from mesh.offload import Offload, in_thread
from mesh.peer import PeerID

log = logging.getLogger(__name__)


class Holdings:
    """The record store of a node behind its validator. Nothing gets in, and nothing of others gets out, unchecked."""

    def __init__(
        self,
        store: RecordStore,
        validator: RecordValidator,
        *,
        is_member: Callable[[PeerID], Awaitable[bool]],
        position: Callable[[], BlockPosition | None],
        clock: Clock,
        metrics: DhtMetrics,
        on_proof: Callable[[Equivocation], None],
        disk: SqliteRecords | None = None,
        offload: Offload = in_thread,
    ) -> None:
        """`on_proof` is told of every equivocation that was not known here; `disk` is the store's journal."""
        self.store = store
        self.validator = validator
        self._is_member = is_member
        self._position = position
        self._clock = clock
        self._metrics = metrics
        self._on_proof = on_proof
        self._disk = disk
        self._offload = offload
        self._changes = 0
        self._changed = trio.Event()

    def now(self) -> float:
        """Unix seconds."""
        return self._clock.now()

    # -- letting in --

    async def accept(self, record: Record, *, sender: PeerID | None, own: Keep = Keep.OWN) -> None:
        """Check and hold a record; `sender` None is ourselves, who say how it is held. Raises RecordRejected."""
        now, position = self._clock.now(), self._position()
        self.validator.check_envelope(record, purpose=Purpose.STORE, now=now, position=position, sender=sender)
        member = await self._is_member(record.owner)
        is_own = sender is None
        self.validator.check_content(
            record,
            purpose=Purpose.STORE,
            member=member,
            position=position,
            held=self.store.own_view() if is_own else self.store,
            sender=sender,
            now=now,
        )
        rule = self.validator.rule(record.key)
        keep = own if is_own else Keep.EVIDENCE if rule.is_evidence else Keep.REPLICA
        known = self.store.proof(record.slot)
        try:
            evicted = self.store.put(
                record, max_per_owner=rule.max_records_per_owner, keep=keep, quota=rule.quota, sender=sender
            )
        finally:
            proof = self.store.proof(record.slot)
            if proof is not None and proof is not known:
                self._on_proof(proof)
        if evicted:
            log.debug("dht.evicted", extra={"records": len(evicted)})
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    async def flush(self) -> None:
        """When it returns, what was accepted before survives the process, where records are kept on disk. Raises
        ConfigError when they cannot be."""
        if self._disk is not None:
            await self._offload(self._disk.flush)

    async def close(self) -> None:
        """Flush, and close the file; what comes after is held in memory only. Raises ConfigError."""
        if self._disk is not None:
            disk, self._disk = self._disk, None
            await self._offload(disk.close)

    def may_be_sent(self, record: Record) -> bool:
        """Whether others would take a record now, as far as its time says: its window is open, it has not expired."""
        try:
            self.validator.check_envelope(
                record, purpose=Purpose.STORE, now=self._clock.now(), position=self._position()
            )
        except RecordRejected:
            return False
        return True

    def may_be_spread(self, record: Record) -> bool:
        """Whether we may give a record to whoever is near its key. One for named peers is for nobody else, and evidence
        goes where its owner sends it while its window is open: who has it by then is what inventories are about."""
        if self.store.keep(record.slot) is Keep.NAMED or self.validator.rule(record.key).is_evidence:
            return False
        return self.may_be_sent(record)

    async def check_read(self, record: Record) -> None:
        """Check a record that another node returned. Raises RecordRejected."""
        self.validator.check_envelope(record, purpose=Purpose.READ, now=self._clock.now())
        member = await self._is_member(record.owner)
        self.validator.check_content(record, purpose=Purpose.READ, member=member, position=self._position())

    # -- letting out --

    def local(self, key: bytes) -> tuple[Record, ...]:
        """What is held under the key: live, deleted ones left out, sorted by (owner, subkey)."""
        return tuple(r for r in self.store.records(key, now=self._clock.now()) if not r.tombstone)

    async def readable(self, key: bytes) -> tuple[Record, ...]:
        """What is held under the key and may be returned: live, of members, tombstones included."""
        allowed = await self.allowed_owners(key)
        return tuple(r for r in self.store.records(key, now=self._clock.now()) if r.owner in allowed)

    async def allowed_owners(self, key: bytes) -> frozenset[PeerID]:
        """Of those whose records we hold, who may own some still: of all checks only membership, besides expiry, can
        have changed since."""
        held = self.store.owners(key)
        if not held or not self.validator.rule(key).members_only:
            return frozenset(held)
        allowed: list[PeerID] = []
        for number, owner in enumerate(held):
            if number % 64 == 63:
                await trio.lowlevel.checkpoint()
            if await self._is_member(owner):
                allowed.append(owner)
        return frozenset(allowed)

    # -- proofs --

    async def learn_proof(self, proof: Equivocation) -> bool:
        """Keep a proof that another node sent, after checking it; says whether it was new. Raises RecordRejected."""
        known = self.store.proof(proof.slot)
        if known is not None and known.first.seq >= proof.first.seq:
            return False
        self.validator.check_proof(proof)
        if not await self._is_member(proof.owner):
            raise RecordRejected("not-member", f"{proof.owner} is no member: what it signs does not count")
        self.store.prove(proof)
        self._on_proof(proof)
        return True

    # -- news --

    @property
    def changes(self) -> int:
        """Counts what was newly stored here."""
        return self._changes

    async def wait_change(self, seen: int | None = None) -> int:
        """Wait until something new was stored here; at once when `changes` has gone past `seen`."""
        if seen is not None and self._changes > seen:
            await trio.lowlevel.checkpoint()
            return self._changes
        await self._changed.wait()
        return self._changes
