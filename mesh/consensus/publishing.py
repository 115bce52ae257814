"""This node's own inventory: made once, written down before it is sent, the same after every restart."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import trio

from mesh.chain.types import EpochPosition, Snapshot
from mesh.chain.windows import SLACK_BLOCKS
from mesh.consensus.context import check_record
from mesh.consensus.gathering import Gatherer
from mesh.consensus.inventories import inventory_of, select_records
from mesh.consensus.rounds import Parts, Round, log
from mesh.consensus.wire import Inventory, inventory_key
from mesh.errors import ConsensusError, RecordRejected, StoreFull
from mesh.files import Durable, replace_file
from mesh.kad.validator import pack_value, unpack_value
from mesh.peer import PeerID


def validator_peers(snapshot: Snapshot, epoch: int) -> tuple[PeerID, ...]:
    """Whom evidence and inventories are stored at: every validator of the epoch, in the order of node ids."""
    return tuple(node.peer_id for node in snapshot.validators(epoch))


class Publisher:
    """Publishes our inventory of each epoch."""

    def __init__(self, parts: Parts, gatherer: Gatherer) -> None:
        self._parts = parts
        self._gatherer = gatherer
        self.started_at: EpochPosition | None = None
        """Where the chain was when this run began; None before it is known."""

    async def inventory_due(self, epoch: int) -> None:
        """Store our inventory at the other validators, if it is the time and it was not done. Raises what `DHT.put`
        raises, ChainError, StoreFull."""
        parts = self._parts
        if not parts.epochs.windows.inventory <= parts.offset_in(epoch) < parts.epochs.length + SLACK_BLOCKS:
            return
        found = await self._gatherer.round(epoch)
        if found.inventory_sent:
            return
        validators = found.ctx.validators
        if parts.us not in validators:
            found.inventory_sent = True
            return
        value = await self._our_inventory(found)
        peers = [p for p in validator_peers(found.ctx.snapshot, epoch) if p != parts.us]
        report = await parts.dht.put(inventory_key(epoch), value, ttl_s=parts.config.ttl_s, peers=peers)
        stored = {*report.stored, parts.us} & validators.keys()
        found.inventory_sent = len(stored) >= found.ctx.thresholds.need
        log.log(
            logging.INFO if found.inventory_sent else logging.WARNING,
            "epoch %d: inventory of %d records stored at %d of %d validators",
            epoch,
            len(unpack_value(Inventory, value).digests),
            len(stored),
            len(validators),
        )

    async def _our_inventory(self, found: Round) -> bytes:
        """The one inventory of ours: of this run, of an earlier one, or made and written down now."""
        if found.inventory is not None:
            return found.inventory
        path = self._parts.files / f"inventory-{found.epoch}"
        value = self._read(path, found) or await self._sent_before(found)
        if value is None:
            value = await self._make(found)
        try:
            replace_file(path, value, durable=Durable.YES)  # it must survive a crash before it is sent
        except OSError as error:
            raise StoreFull(f"{path} cannot be written, so the inventory is not sent: {error.strerror}") from error
        found.inventory = value
        return value

    async def _make(self, found: Round) -> bytes:
        dht = self._parts.dht
        held = [record for key in sorted(found.ctx.evidence_keys) for record in dht.local(key)]
        for number, record in enumerate(held):  # select_records would check them all at one go
            with suppress(ConsensusError):
                check_record(record, found.ctx)
            if number % self._parts.config.checks_per_turn == 0:
                await trio.lowlevel.checkpoint()
        chosen = select_records(held, found.ctx)
        found.records.update({record.digest: record for record in chosen})
        return pack_value(inventory_of(chosen, found.ctx))

    def _read(self, path: Path, found: Round) -> bytes | None:
        try:
            value = path.read_bytes()
            if unpack_value(Inventory, value).snapshot == found.ctx.snapshot.block.hash:
                return value
        except FileNotFoundError:
            return None
        except RecordRejected as error:
            log.warning("%s is damaged: %s", path, error)
            return None
        log.warning("epoch %d: the snapshot's block changed after our inventory was written", found.epoch)
        return None

    async def _sent_before(self, found: Round) -> bytes | None:
        """An inventory of ours that only others still have: this run began after it could have been sent."""
        started = self.started_at
        if started is None or (started.epoch, started.offset) < (found.epoch, self._parts.epochs.windows.inventory):
            return None
        us = self._parts.us
        await self._gatherer.ask_inventories(found, [us], others=tuple(found.ctx.validators))
        records = found.book.records([us])
        return records[0].value if records else None
