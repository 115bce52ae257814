"""The proposer's part: a draft of the proposal before it is due, and the proposal once this node is elected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import trio

from mesh.chain.types import Score
from mesh.consensus.gathering import Gatherer
from mesh.consensus.inventories import choose, named
from mesh.consensus.judging import evidence_of
from mesh.consensus.replay import evidence_for, recompute
from mesh.consensus.rounds import Draft, Parts, Round, Rounds, log
from mesh.consensus.wire import (
    TOO_FEW_INVENTORIES,
    VERSION,
    Inventory,
    ProposalArgs,
    encode_args,
    encode_blob,
    make_blob,
)
from mesh.errors import ChainUnavailable, ConsensusError, ExtrinsicFailed, ExtrinsicLost
from mesh.identity import AccountKey
from mesh.kad.record import Record
from mesh.peer import PeerID
from mesh.subnet import Evidence

DONE_PROPOSING: Final = frozenset({"SubnetRewardsAlreadySubmitted"})
"""Errors of the pallet that mean: the epoch has its proposal."""
NOT_OURS: Final = frozenset({"InvalidValidator", "NoElectedValidator"})
"""… it was not for us to propose."""


class Proposer:
    """Makes drafts, and proposes."""

    def __init__(self, parts: Parts, rounds: Rounds, gatherer: Gatherer) -> None:
        self._parts = parts
        self._rounds = rounds
        self._gatherer = gatherer

    # -- before it is due --

    async def draft(self, epoch: int) -> None:
        """Once every validator's inventory is here, or the epoch is over, fetch and score what they name.

        Who is elected is not known yet, so every validator does this. It is no work in vain: the draft of one who saw
        what the proposer saw is the proposal's blob, byte for byte, and need not be fetched to be judged. Raises
        ConsensusError, ChainError, StoreFull.
        """
        found = await self._gatherer.round(epoch)
        if self._parts.hotkey is None or self._parts.us not in found.ctx.validators:
            return
        await self._wait_heard(found)
        standing = _standing(found)
        limits = found.ctx.thresholds
        if len(standing) < limits.need:
            return
        records = await self._gatherer.complete(found, standing)
        if records.keys() >= set(named(standing.values(), limits.naming)):
            await self._build(found, standing, records)

    async def _wait_heard(self, found: Round) -> None:
        async with trio.open_nursery() as nursery:

            async def epoch_over() -> None:
                await self._parts.epochs.wait_until(found.epoch + 1, 0)
                nursery.cancel_scope.cancel()

            nursery.start_soon(epoch_over)
            await self._gatherer.wait_heard(found)
            nursery.cancel_scope.cancel()

    async def _build(
        self, found: Round, standing: Mapping[PeerID, Inventory], records: Mapping[bytes, Record]
    ) -> Draft:
        """The proposal that follows from these inventories. Raises ConsensusError, StoreFull."""
        ctx = found.ctx
        sizes = {digest: len(record.to_bytes()) for digest, record in records.items()}
        choice = choose(standing, held=records.keys(), limits=ctx.thresholds, sizes=sizes)
        inventories = (*found.book.records(choice.owners), *found.book.records(tuple(found.book.proofs())))
        blob = make_blob(inventories, (records[digest] for digest in choice.digests))
        names = (tuple(r.digest for r in blob.inventories), choice.digests)
        if found.draft is None or found.draft.names != names:
            data = encode_blob(blob)
            draw = await self._parts.epochs.draw_hash(ctx.epoch)
            evidence = evidence_for(ctx, evidence_of(blob, ctx), draw_hash=draw)
            scores = score(self._parts, evidence)
            found.draft = Draft(names, self._rounds.keep(found, data), len(data), evidence, scores)
        return found.draft

    # -- once we are elected --

    async def propose(self, found: Round, hotkey: AccountKey) -> None:
        """Propose the epoch's scores if we can by now; else the next block comes back here. Raises ChainError,
        ConsensusError, StoreFull."""
        parts = self._parts
        offset = parts.offset_in(found.epoch + 1)
        windows = parts.epochs.windows
        if found.closed or found.tries >= parts.config.max_tries:
            return
        if offset > windows.attest_by:
            found.say(logging.ERROR, "not proposed: the time for it is over")
            return
        try:
            prepared = await self._prepare(found, offset)
        except ConsensusError as error:
            found.closed = error.reason == "score-failed"  # another block will not mend that
            raise
        if prepared is None:
            return
        scores, args = prepared
        found.tries += 1
        try:
            receipt = await parts.chain.propose(parts.subnet_id, scores, args=encode_args(args), hotkey=hotkey)
        except ExtrinsicFailed as error:
            if error.name not in DONE_PROPOSING | NOT_OURS:
                raise
            found.closed = True
            log.warning("epoch %d: our proposal came to nothing: %s", found.epoch, error)
            return
        except (ChainUnavailable, ExtrinsicLost):
            found.tries -= 1
            raise
        found.closed = True
        log.log(
            logging.INFO if offset <= windows.propose_by else logging.WARNING,
            "epoch %d: proposed %d scores at block %d (%d of the epoch)%s",
            found.epoch,
            len(scores),
            receipt.block.number,
            offset,
            f", empty: {args.reason}" if args.reason else "",
        )

    async def _prepare(self, found: Round, offset: int) -> tuple[tuple[Score, ...], ProposalArgs] | None:
        """Scores and args to propose; None while waiting may still bring what is missing."""
        parts, limits = self._parts, found.ctx.thresholds
        may_give_up = offset >= parts.scaled(parts.config.give_up_block)
        if unheard := found.unheard():
            others = tuple(found.ctx.validators) if may_give_up else self._gatherer.some_validators(found)
            await self._gatherer.ask_inventories(found, unheard, others=others)
        standing = _standing(found)
        if len(standing) < limits.need:
            if not may_give_up:
                return None
            if found.known(parts.us) < limits.need:
                # Cut off, or too many are gone for a proposal to pass: not proposing costs less than being refused.
                found.say(logging.WARNING, "not proposed yet: too few validators answer to say that inventories lack")
                return None
            return (), self._args(found, reason=TOO_FEW_INVENTORIES)
        if found.unheard() and offset < parts.scaled(parts.config.gather_block):
            return None
        records = await self._gatherer.complete(found, standing)
        if not records.keys() >= set(named(standing.values(), limits.naming)) and (
            offset < parts.epochs.windows.propose_by - 1
        ):
            found.say(logging.WARNING, "records are missing; asking again")
            return None
        draft = await self._build(found, standing, records)
        return draft.scores, self._args(found, evidence=draft.digest, size=draft.size)

    @staticmethod
    def _args(found: Round, *, evidence: bytes = b"", size: int = 0, reason: str = "") -> ProposalArgs:
        return ProposalArgs(
            v=VERSION,
            epoch=found.epoch,
            snapshot=found.ctx.snapshot.block.hash,
            evidence=evidence,
            size=size,
            score=found.ctx.score_id,
            reason=reason,
        )


def score(parts: Parts, evidence: Evidence) -> tuple[Score, ...]:
    """The subnet's scores; a failure is logged with its traceback. Raises ConsensusError("score-failed")."""
    try:
        return recompute(parts.subnet.score, evidence)
    except ConsensusError as error:
        log.exception("epoch %d: %s cannot score its evidence: %s", evidence.epoch, parts.subnet.score_id, error)
        raise


def _standing(found: Round) -> dict[PeerID, Inventory]:
    return {owner: inventory for owner, (_, inventory) in found.book.valid().items()}
