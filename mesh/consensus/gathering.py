"""Getting hold of what others have: inventories as they come, and on asking; records that inventories name."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import trio
from pydantic import BaseModel

from mesh.chain.windows import SLACK_BLOCKS
from mesh.consensus.context import check_record
from mesh.consensus.inventories import Added, named
from mesh.consensus.rounds import Parts, Round, Rounds, log
from mesh.consensus.service import MAX_ASKED, ConsensusServicer, InventoriesRequest, RecordsReply, RecordsRequest
from mesh.consensus.wire import Inventory, inventory_key
from mesh.errors import ConsensusError, NetworkError, RemoteProtocolError, RpcError
from mesh.kad.record import Record
from mesh.peer import PeerID


class Gatherer:
    """Fills rounds with what others have. All asking is bounded in time and in peers asked at once."""

    def __init__(self, parts: Parts, rounds: Rounds) -> None:
        self._parts = parts
        self._rounds = rounds
        self._news = trio.Event()

    async def round(self, epoch: int) -> Round:
        """The round of an epoch, with every inventory that has come here."""
        is_new = epoch not in self._rounds.known
        found = await self._rounds.open(epoch)
        if is_new:
            await self.locate(found.ctx.validators)
        self._collect(found)
        return found

    # -- inventories --

    async def watch(self) -> None:
        """Take inventories in as they come: the store keeps only the newest of an owner, we keep the proof of two."""
        while True:
            seen = self._parts.dht.changes
            for found in tuple(self._rounds.known.values()):
                # Everything stored wakes us; of epochs long over no inventory can have come.
                if self._parts.offset_in(found.epoch) <= self._parts.epochs.length + SLACK_BLOCKS:
                    self._collect(found)
            await self._parts.dht.wait_change(seen)

    async def wait_heard(self, found: Round) -> None:
        """Return when an inventory of every validator is known."""
        while found.unheard():
            await self._news.wait()

    def _collect(self, found: Round) -> None:
        key = inventory_key(found.epoch)
        for record in self._parts.dht.local(key):
            self._take_in(found, record)
        for proof in self._parts.dht.proofs:
            if proof.first.key == key:
                self._take_in(found, proof.first)
                self._take_in(found, proof.second)

    def _take_in(self, found: Round, record: Record) -> None:
        try:
            added = found.book.add(record)
        except ConsensusError as error:
            found.say(logging.INFO, f"an inventory was not taken: {error}")
            return
        if added is Added.PROOF:
            log.warning("epoch %d: %s signed two inventories; neither counts", found.epoch, record.owner)
        elif added is Added.NEW:
            self._news.set()
            self._news = trio.Event()

    async def ask_inventories(self, found: Round, owners: Sequence[PeerID], *, others: Sequence[PeerID]) -> None:
        """Ask owners for their inventories, and `others` for those of all of them. Who answers is noted."""
        asked: dict[PeerID, Sequence[PeerID]] = {peer: [peer] for peer in owners}
        asked.update((peer, owners) for peer in others)
        asked.pop(self._parts.us, None)

        async def ask(peer: PeerID) -> None:
            stub = self._parts.content.rpc.stub(ConsensusServicer, peer)
            answers = False
            for start in range(0, len(asked[peer]), MAX_ASKED):
                heard = found.book.heard()  # what one has told, the next is not asked for
                few = [owner for owner in asked[peer][start : start + MAX_ASKED] if owner not in heard]
                if not few:
                    continue
                request = InventoriesRequest(epoch=found.epoch, owners=tuple(owner.multihash for owner in few))
                records = await self._records(peer, stub.rpc_inventories, request)
                if records is None:
                    return
                answers = True
                for record in records:
                    if record.owner in few:
                        self._take_in(found, record)
            if answers:
                found.answered.add(peer)

        await self._together(ask, asked)

    def some_validators(self, found: Round) -> tuple[PeerID, ...]:
        """A few others to ask, not the same for every node: those after us in the order of node ids."""
        all_ = tuple(found.ctx.validators)
        start = all_.index(self._parts.us) + 1 if self._parts.us in all_ else 0
        return (all_[start:] + all_[:start])[: self._parts.config.max_asked_peers]

    # -- records --

    def held(self, found: Round) -> dict[bytes, Record]:
        """Records of the epoch that are here, by digest."""
        held = dict(found.records)
        for key in sorted(found.ctx.evidence_keys):
            held.update({record.digest: record for record in self._parts.dht.local(key)})
        return held

    async def complete(self, found: Round, standing: Mapping[PeerID, Inventory]) -> dict[bytes, Record]:
        """The valid records among those enough inventories name, asking others for what we lack."""
        wanted = named(standing.values(), found.ctx.thresholds.naming)
        held = self.held(found)
        missing = {digest for digest in wanted if digest not in held}
        if missing:
            await self._ask_records(found, missing)
            held.update(found.records)
        usable = {}
        for number, digest in enumerate(wanted):
            if number % self._parts.config.checks_per_turn == 0:
                await trio.lowlevel.checkpoint()
            if digest in held:
                with suppress(ConsensusError):  # then whoever names it is left out
                    check_record(held[digest], found.ctx)
                    usable[digest] = held[digest]
        return usable

    async def _ask_records(self, found: Round, missing: set[bytes]) -> None:
        """Ask whoever names records for those we lack; `missing` shrinks."""
        by_peer = {
            owner: theirs
            for owner, (_, inventory) in found.book.valid().items()
            if owner != self._parts.us and (theirs := missing.intersection(inventory.digests))
        }

        async def ask(peer: PeerID) -> None:
            stub = self._parts.content.rpc.stub(ConsensusServicer, peer)
            left = sorted(by_peer[peer])
            while left := [digest for digest in left if digest in missing]:
                few = left[:MAX_ASKED]
                request = RecordsRequest(epoch=found.epoch, digests=tuple(few))
                given = {r.digest: r for r in await self._records(peer, stub.rpc_records, request) or ()}
                answered = [digest for digest in few if digest in given]
                for digest in answered:
                    try:
                        check_record(given[digest], found.ctx)
                    except ConsensusError as error:
                        log.info("epoch %d: %s names what is no evidence: %s", found.epoch, peer.short, error)
                        continue
                    found.records[digest] = given[digest]
                    missing.discard(digest)
                # A short answer may only be full: ask on for the rest, as long as something comes.
                left = [d for d in left if d not in answered] if answered else left[MAX_ASKED:]

        await self._together(ask, by_peer)

    # -- asking --

    async def locate(self, peers: Iterable[PeerID]) -> None:
        """Learn where peers can be dialled whose addresses we do not have."""

        async def find(peer: PeerID) -> None:
            try:
                await self._parts.dht.find_peer(peer)
            except NetworkError as error:
                log.debug("%s", error)

        net = self._parts.content.rpc.net
        await self._together(find, [p for p in peers if not net.known(p).addrs])

    async def _together(self, ask: Callable[[PeerID], Awaitable[None]], peers: Iterable[PeerID]) -> None:
        limit = trio.CapacityLimiter(self._parts.config.max_asked_peers)

        async def one(peer: PeerID) -> None:
            async with limit:
                await ask(peer)

        with trio.move_on_after(self._parts.config.ask_timeout_s):
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(one, peer)

    async def _records(
        self, peer: PeerID, call: Callable[..., Awaitable[RecordsReply]], request: BaseModel
    ) -> list[Record] | None:
        """What a peer answers, parsed; None when it does not answer or answers nonsense."""
        try:
            reply = await call(request, timeout_s=self._parts.config.ask_timeout_s)
            return [Record.from_bytes(data) for data in reply.records]
        except (NetworkError, RpcError, RemoteProtocolError) as error:
            log.debug("%s gave no records: %s", peer.short, error)
            return None
