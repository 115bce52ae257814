"""The attestor's part: fetch a proposal's blob, judge it, attest only what was recomputed, say why not."""

from __future__ import annotations

import logging
from typing import Final

import trio

from mesh.chain.types import BlockRef, Snapshot, Submission, SubnetNode
from mesh.consensus.context import RoundContext
from mesh.consensus.gathering import Gatherer
from mesh.consensus.judging import (
    Decision,
    Judgement,
    checks,
    eligible,
    evidence_of,
    judge_empty,
    judge_scores,
    judgement_of,
    read_proposal,
)
from mesh.consensus.proposing import score
from mesh.consensus.publishing import validator_peers
from mesh.consensus.replay import evidence_for
from mesh.consensus.rounds import Parts, Round, Rounds, log
from mesh.consensus.wire import (
    Blob,
    ProposalArgs,
    Refusal,
    decode_args,
    decode_blob,
    encode_blob,
    make_blob,
    refusal_key,
)
from mesh.errors import (
    ChainUnavailable,
    ConsensusError,
    ContentNotFound,
    ExtrinsicFailed,
    ExtrinsicLost,
    RemoteProtocolError,
)
from mesh.identity import AccountKey
from mesh.kad.validator import pack_value
from mesh.peer import PeerID
from mesh.subnet import Settlement

DONE_ATTESTING: Final = frozenset({"AlreadyAttested"})


class Attestor:
    """Judges submissions, attests, publishes refusals."""

    def __init__(self, parts: Parts, rounds: Rounds, gatherer: Gatherer) -> None:
        self._parts = parts
        self._rounds = rounds
        self._gatherer = gatherer

    async def weigh(self, found: Round, submission: Submission) -> None:
        """Judge a submission once; one that took its place (another fork) is judged anew."""
        fingerprint = _fingerprint(submission)
        if found.judgement is not None and found.fingerprint == fingerprint:
            return
        found.fingerprint, found.settlement, found.refusal_sent, found.witness = fingerprint, None, False, b""
        found.judged = b""
        found.judgement = await self._judge(found, submission)
        if found.judgement is None:
            return
        log.log(
            logging.INFO if found.judgement.decision is Decision.ATTEST else logging.WARNING,
            "epoch %d: %s the proposal of node %d (%s): %s",
            found.epoch,
            found.judgement.decision.value,
            submission.proposer_node_id,
            found.judgement.reason,
            found.judgement.detail,
        )

    def _is_over(self, found: Round) -> bool:
        return self._parts.offset_in(found.epoch + 1) > self._parts.epochs.windows.attest_by

    async def _judge(self, found: Round, submission: Submission) -> Judgement | None:
        """What to do about a submission; None while what it takes to say cannot be had but may still come."""
        parts = self._parts
        try:
            claim = read_proposal(submission.args, found.ctx)
            if not claim.evidence:
                return await self._judge_empty(found, submission)
            data = await self._fetch(found, claim, submission)
            if data is None:
                if not self._is_over(found):
                    return None
                return Judgement(Decision.REFUSE, "unavailable", f"no peer served the blob {claim.evidence.hex()}")
            found.judged = claim.evidence
            if len(data) != claim.size:
                raise ConsensusError("size", f"the evidence has {len(data)} bytes, the proposal says {claim.size}")
            blob = decode_blob(data)
            await self._check(blob, found.ctx)
            records = evidence_of(blob, found.ctx)
            if found.draft is not None and found.draft.digest == claim.evidence:
                evidence, scores = found.draft.evidence, found.draft.scores  # of the same bytes, by the same function
            else:
                draw = await parts.epochs.draw_hash(found.epoch)
                evidence = evidence_for(found.ctx, records, draw_hash=draw)
                scores = score(parts, evidence)
        except (ConsensusError, RemoteProtocolError) as error:
            return judgement_of(error)
        block = BlockRef(submission.block, await parts.chain.block_hash(submission.block))
        eligible_ids = eligible(
            await parts.epochs.snapshot(found.epoch + 1),
            await parts.chain.snapshot(parts.subnet_id, block),
            epoch=found.epoch + 1,
        )
        judgement = judge_scores(scores, submission.scores, eligible_ids=eligible_ids)
        if judgement.decision is Decision.ATTEST:
            found.settlement = Settlement(evidence, scores)
        return judgement

    async def _judge_empty(self, found: Round, submission: Submission) -> Judgement | None:
        if len(found.book.valid()) < found.ctx.thresholds.need:
            everybody = tuple(found.ctx.validators)
            await self._gatherer.ask_inventories(found, found.unheard(), others=everybody)
        standing = found.book.valid()
        judgement = judge_empty(
            submission.scores,
            standing=len(standing),
            heard=found.known(self._parts.us),
            limits=found.ctx.thresholds,
        )
        if judgement.reason == "unheard" and not self._is_over(found):
            return None
        if judgement.reason == "had-inventories":
            blob = make_blob((record for record, _ in standing.values()), ())
            found.witness = self._rounds.keep(found, encode_blob(blob))
        return judgement

    # -- the blob --

    async def _fetch(self, found: Round, claim: ProposalArgs, submission: Submission) -> bytes | None:
        parts = self._parts
        peers = self._servers(await parts.epochs.snapshot(found.epoch + 1), found.ctx, submission)
        data: bytes | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_when_late, found.epoch + 1, nursery.cancel_scope)
            nursery.cancel_scope.deadline = trio.current_time() + parts.config.fetch_timeout_s
            await self._gatherer.locate(peers[:1])
            try:
                data = await parts.content.fetch(claim.evidence, max_bytes=claim.size, peers=peers)
                self._rounds.pin(found, claim.evidence)
            except ContentNotFound as error:
                found.say(logging.WARNING, f"evidence not fetched yet: {error}")
            nursery.cancel_scope.cancel()
        if data is None:
            found.say(logging.WARNING, "evidence not fetched yet: it took too long")
        return data

    async def _give_up_when_late(self, epoch: int, scope: trio.CancelScope) -> None:
        """Whoever serves slowly loses its own epoch, not the next one's: end a fetch when attesting is over, or where
        we come after that, with the epoch. Past epochs are told again by a task of their own and delay nothing."""
        offset, last = self._parts.offset_in(epoch), self._parts.epochs.windows.attest_by + 1
        if offset >= self._parts.epochs.length:
            return
        await self._parts.epochs.wait_until(*((epoch, last) if offset < last else (epoch + 1, 0)))
        scope.cancel()

    @staticmethod
    def _servers(now: Snapshot, ctx: RoundContext, submission: Submission) -> list[PeerID]:
        """The proposer, then those who attested (they have the blob), then every other validator."""
        nodes: dict[int, SubnetNode] = {node.node_id: node for node in (*ctx.snapshot.nodes, *now.nodes)}
        first = [submission.proposer_node_id, *sorted(submission.attests)]
        rest = [node.node_id for node in (*now.validators(ctx.epoch + 1), *ctx.validators.values())]
        return [nodes[node_id].peer_id for node_id in dict.fromkeys((*first, *rest)) if node_id in nodes]

    async def _check(self, blob: Blob, ctx: RoundContext) -> None:
        for number, _ in enumerate(checks(blob, ctx)):
            if number % self._parts.config.checks_per_turn == 0:
                await trio.lowlevel.checkpoint()

    # -- saying so --

    async def attest(self, found: Round, hotkey: AccountKey) -> None:
        """Attest what was judged right, once, while there is time. Raises ChainError."""
        parts = self._parts
        if found.attest_tries >= parts.config.max_tries:
            return
        if self._is_over(found):
            found.say(logging.WARNING, "not attested: the time for it is over")
            return
        # An attestation says nothing of what it is about: look once more that it is what we judged.
        latest = await parts.chain.submission(parts.subnet_id, found.epoch + 1)
        if latest is None or _fingerprint(latest) != found.fingerprint:
            return
        found.attest_tries += 1
        try:
            await parts.chain.attest(parts.subnet_id, hotkey=hotkey)
        except ExtrinsicFailed as error:
            if error.name not in DONE_ATTESTING:
                raise
            found.attest_tries = parts.config.max_tries
        except (ChainUnavailable, ExtrinsicLost):
            found.attest_tries -= 1  # nothing was refused; the next block looks at the chain first
            raise
        log.info("epoch %d: attested", found.epoch)

    async def publish_refusal(self, found: Round, submission: Submission) -> None:
        """Tell everybody why we do not attest. Raises what `DHT.put` raises."""
        judgement = found.judgement
        if found.refusal_sent or judgement is None:
            return
        found.refusal_sent = True  # told once: the log has it, and nothing depends on who hears it
        try:
            evidence = decode_args(submission.args).evidence
        except ConsensusError:
            evidence = b""
        refusal = Refusal(
            epoch=found.epoch,
            proposer_node_id=submission.proposer_node_id,
            evidence=evidence,
            reason=judgement.reason,
            detail=judgement.detail,
            witness=found.witness,
        )
        parts = self._parts
        peers = [p for p in validator_peers(found.ctx.snapshot, found.epoch) if p != parts.us]
        await parts.dht.put(refusal_key(found.epoch), pack_value(refusal), ttl_s=parts.config.ttl_s, peers=peers)


def _fingerprint(submission: Submission) -> object:
    """What of a submission does not change while others attest it."""
    return (submission.proposer_node_id, submission.block, submission.scores, submission.args)
