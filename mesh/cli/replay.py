"""`mesh epoch replay`: check a settled epoch from its evidence. Nothing here signs."""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.cli.common import ChainOptions, read_chain, read_toml
from mesh.cli.tables import table
from mesh.errors import ConfigError, ConsensusError, RecordRejected, RemoteProtocolError
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.chain.client import Chain
    from mesh.chain.types import Snapshot, Submission
    from mesh.consensus.replay import Replay
    from mesh.consensus.wire import Blob, ProposalArgs
    from mesh.kad.record import Record
    from mesh.peer import PeerID
    from mesh.subnet import Subnet


def replay(
    blob: Path,
    /,
    *,
    subnet_id: int | None = None,
    epoch: int | None = None,
    subnet_config: Path | None = None,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Recompute a proposal's scores from its evidence; exit code 1 when the chain holds something else.

    The proposal and the nodes are read from the chain, the scoring function is that of the installed subnet which the
    proposal names. `mesh content get` gets a blob by the digest that `mesh chain epoch` shows.

    Args:
        blob: File with the evidence.
        subnet_id: Friendly or real id; default is what the evidence says.
        epoch: Epoch of the work (the proposal is made in the next one); default is what the evidence says.
        subnet_config: TOML file with the subnet's own settings.
        json: Print one JSON object.
    """
    from mesh.consensus.wire import MAX_BLOB_BYTES, decode_blob
    from mesh.content import digest_of

    try:
        with blob.open("rb") as file:
            data = file.read(MAX_BLOB_BYTES + 1)
        evidence = decode_blob(data)
    except FileNotFoundError as error:
        digest = str(blob) if len(str(blob)) == 64 else "DIGEST"
        raise ConfigError(
            f"{blob} is not there: get the evidence with `mesh content get {digest} --initial-peers ADDRESS "
            "--identity PEER_KEY`, by the digest that `mesh chain epoch` shows"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {blob}: {error.strerror}") from error
    except RemoteProtocolError as error:
        raise ConfigError(f"{blob} is no proposal's evidence: {error}") from error
    settings = read_toml(subnet_config)

    async def read(client: Chain) -> Replayed:
        named = _named(evidence, client.genesis)
        if subnet_id is None and named is None:
            raise ConfigError("the evidence is empty: say --subnet-id and --epoch")
        real = await client.resolve_subnet_id(subnet_id if subnet_id is not None else named[0] if named else 0)
        worked = epoch if epoch is not None else named[1] if named else 0
        return await _replayed(client, data, digest_of(data), subnet_id=real, epoch=worked, settings=settings)

    found = read_chain(chain, read)
    if json:
        print(jsonlib.dumps(found.values()))
    else:
        found.show()
    if not found.result.is_right:
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replay with what the chain says of the proposal."""

    subnet_id: int
    epoch: int
    submission: Submission
    claim: ProposalArgs
    node_ids: dict[PeerID, int]
    result: Replay

    def rows(self) -> list[tuple[int, int | None, int | None]]:
        """(node id, score on chain, recomputed score) of every node that has one."""
        theirs = {score.node_id: score.score for score in self.submission.scores}
        ours = {score.node_id: score.score for score in self.result.scores}
        return [(node, theirs.get(node), ours.get(node)) for node in sorted(theirs.keys() | ours.keys())]

    def values(self) -> dict[str, object]:
        """For programs."""
        result = self.result
        return {
            "subnet_id": self.subnet_id,
            "epoch": self.epoch,
            "proposer": self.submission.proposer_node_id,
            "block": self.submission.block,
            "evidence": self.claim.evidence.hex(),
            "score": printable(self.claim.score, 128),
            "right": result.is_right,
            "decision": result.judgement.decision.value,
            "reason": result.judgement.reason,
            "detail": printable(result.judgement.detail, 512),
            "inventories": result.inventories,
            "equivocators": [str(peer) for peer in result.equivocators],
            "records": {str(peer): count for peer, count in result.by_owner.items()},
            "scores": [
                {"node_id": node, "proposed": _text(theirs), "recomputed": _text(ours)}
                for node, theirs, ours in self.rows()
            ],
            "differences": [difference.node_id for difference in result.differences],
        }

    def show(self) -> None:
        """For people."""
        result = self.result
        print(
            f"subnet {self.subnet_id}, work of epoch {self.epoch}, proposed by node "
            f"{self.submission.proposer_node_id} in block {self.submission.block}, "
            f"scored by {printable(self.claim.score, 128)}"
        )
        owners = ", ".join(f"{self._name(peer)} {count}" for peer, count in result.by_owner.items())
        print(f"{result.inventories} inventories count; {len(result.records)} records ({owners or 'of nobody'})")
        for peer in result.equivocators:
            print(f"{self._name(peer)} signed two inventories; neither counts")
        changed = {difference.node_id for difference in result.differences}
        table(
            ("node", "proposed", "recomputed", ""),
            [
                (str(node), _text(theirs) or "-", _text(ours) or "-", "DIFFERS" if node in changed else "")
                for node, theirs, ours in self.rows()
            ],
            empty="no scores, proposed or recomputed",
        )
        verdict = (
            "the proposal is right" if result.is_right else f"the proposal is not right ({result.judgement.reason})"
        )
        print(f"{verdict}: {printable(result.judgement.detail, 512)}")

    def _name(self, peer: PeerID) -> str:
        return f"node {self.node_ids[peer]}" if peer in self.node_ids else str(peer)


async def _replayed(
    chain: Chain, data: bytes, digest: bytes, *, subnet_id: int, epoch: int, settings: dict[str, object]
) -> Replayed:
    """Raises ConfigError: no such proposal, a subnet that is not installed; BlockUnavailable."""
    from mesh.chain.reading import block_at
    from mesh.chain.types import first_block
    from mesh.chain.windows import Windows
    from mesh.consensus.replay import Replay, replay
    from mesh.consensus.round import RoundContext, eligible, judgement_of, read_proposal, timeless_validator
    from mesh.consensus.wire import decode_args

    slot = (await chain.subnet(subnet_id)).slot
    submission = await chain.submission(subnet_id, epoch + 1)
    if slot is None or submission is None:
        raise ConfigError(f"the chain has no proposal for epoch {epoch} of subnet {subnet_id}")
    try:
        claim = decode_args(submission.args)
    except ConsensusError as error:
        raise ConfigError(f"the proposal for epoch {epoch} of subnet {subnet_id} cannot be checked: {error}") from error
    subnet = _subnet_of(claim)

    async def nodes(number: int) -> Snapshot:
        return await chain.snapshot(subnet_id, await block_at(chain, number))

    first = first_block(epoch, slot=slot, length=chain.epoch_length)
    snapshot = await nodes(first)
    rules = subnet.rules(subnet.Config(**settings))
    ctx = RoundContext(
        genesis=chain.genesis,
        subnet_id=subnet_id,
        epoch=epoch,
        snapshot=snapshot,
        evidence_keys=frozenset(subnet.evidence_keys(epoch)),
        score_id=subnet.score_id,
        validator=timeless_validator(rules, subnet_id=subnet_id, genesis=chain.genesis),
    )
    try:
        read_proposal(submission.args, ctx)
        if (claim.evidence, claim.size) != (digest, len(data)):
            said = claim.evidence.hex() or f"none ({printable(claim.reason, 128)})"
            raise ConsensusError("evidence", f"the proposal's is {said}; this file is {digest.hex()}")
        result = replay(
            data,
            ctx,
            draw_hash=await chain.block_hash(first + Windows.of(chain.epoch_length).draw),
            score=subnet.score,
            proposed=submission.scores,
            eligible_ids=eligible(
                await nodes(first + chain.epoch_length), await nodes(submission.block), epoch=epoch + 1
            ),
        )
    except ConsensusError as error:
        result = Replay(judgement_of(error))
    node_ids = {node.peer_id: node.node_id for node in snapshot.nodes}
    return Replayed(subnet_id, epoch, submission, claim, node_ids, result)


def _named(blob: Blob, genesis: bytes) -> tuple[int, int] | None:
    """(subnet id, epoch) that a blob is about, as its first inventory says. Raises ConfigError."""
    from mesh.consensus.wire import Inventory
    from mesh.kad.validator import unpack_value

    record: Record | None = next(iter(blob.inventories), None)
    if record is None:
        return None
    if record.genesis != genesis:
        raise ConfigError(f"the evidence is of another chain, whose genesis is 0x{record.genesis.hex()}")
    try:
        return record.subnet_id, unpack_value(Inventory, record.value).epoch
    except RecordRejected as error:
        raise ConfigError(f"the evidence's first inventory is none ({error}): say --subnet-id and --epoch") from error


def _subnet_of(claim: ProposalArgs) -> Subnet:
    """The installed subnet whose scoring function a proposal names. Raises ConfigError."""
    from mesh.subnet import installed_subnets, load_subnet

    score = printable(claim.score, 128)
    name = score.partition("/")[0]
    if name not in installed_subnets():
        raise ConfigError(f"the proposal is scored by {score}; no subnet {name!r} is installed")
    subnet = load_subnet(name)
    if subnet.score_id != claim.score:
        raise ConfigError(f"the proposal is scored by {score}; the installed {name} scores by {subnet.score_id}")
    return subnet


def _text(score: int | None) -> str | None:
    return None if score is None else str(score)
