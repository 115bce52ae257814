"""What the settled epochs say about claims, recomputed here from the evidence that the proposals name.

The demo believes no node's word for it: it reads args and block hashes from the chain, fetches each proposal's blob by
digest, checks every signature in it, and runs the same scoring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh.chain.client import Chain
from mesh.chain.types import BlockRef, first_block
from mesh.chain.windows import Windows
from mesh.consensus.round import RoundContext, decode_args, timeless_validator, verify_blob
from mesh.errors import ConsensusError
from mesh.subnet import Evidence, load_subnet
from subnets.demo.client import Client
from subnets.demo.follow import Settled
from subnets.optimization.records import MILLION
from subnets.optimization.score import Outcome, Status, outcome


@dataclass
class Judged:
    """Claims of all paid epochs, by node id, and what was verified to be gained."""

    accepted: Counter[int] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    champion_weights: bytes = b""
    """Digest of the last champion's weights; empty while nobody beat the default."""
    verified_gain_ppm: int = 0
    """Sum of the champions' gains over their incumbents, each measured by a quorum on one split."""
    outcomes: list[Outcome] = field(default_factory=list)


async def judge(chain: Chain, client: Client, subnet_id: int, settled: Sequence[Settled], *, slot: int) -> Judged:
    """Recompute every paid epoch. Raises ConsensusError when a proposal on chain does not follow from its evidence."""
    found = Judged()
    for one in settled:
        result = await _outcome(chain, client, subnet_id, one, slot=slot)
        found.outcomes.append(result)
        found.accepted.update(v.node_id for v in result.accepted)
        found.rejected.update(v.node_id for v in result.rejected if v.status is not Status.UNDECIDED)
        if result.improved:
            found.champion_weights = result.champion.weights
            gains = [v.gain_ppm for v in result.accepted if v.claim_id == result.champion.claim_id]
            found.verified_gain_ppm += sum(gains)
    assert 0 <= found.verified_gain_ppm <= MILLION
    return found


async def _outcome(chain: Chain, client: Client, subnet_id: int, settled: Settled, *, slot: int) -> Outcome:
    subnet = load_subnet("optimization")
    work_epoch = settled.epoch - 1
    length = chain.epoch_length
    first = first_block(work_epoch, slot=slot, length=length)
    snapshot = await chain.snapshot(subnet_id, BlockRef(first, await chain.block_hash(first)))
    rules = subnet.rules(subnet.Config())
    ctx = RoundContext(
        genesis=chain.genesis,
        subnet_id=subnet_id,
        epoch=work_epoch,
        snapshot=snapshot,
        evidence_keys=frozenset(subnet.evidence_keys(work_epoch)),
        score_id=subnet.score_id,
        validator=timeless_validator(rules, subnet_id=subnet_id, genesis=chain.genesis),
    )
    args = decode_args(settled.submission.args)
    blob = await client.fetch(args.evidence, max_bytes=args.size)
    evidence = Evidence(
        epoch=work_epoch,
        subnet_id=subnet_id,
        genesis=chain.genesis,
        snapshot=snapshot,
        draw_hash=await chain.block_hash(first + Windows.of(length).draw),
        records=verify_blob(blob, ctx),
    )
    result = outcome(evidence)
    on_chain = {score.node_id: score.score for score in settled.submission.scores}
    if on_chain != {score.node_id: score.score for score in result.scores}:
        raise ConsensusError("scores-differ", f"epoch {work_epoch}: the chain has other scores than its evidence gives")
    return result
