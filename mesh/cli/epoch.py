"""`mesh epoch`: watch a subnet's epochs as they go, and check one afterwards from its evidence. Nothing here signs."""

from __future__ import annotations

import json as jsonlib
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mesh.chain.checks import tensor_text
from mesh.cli.common import ChainOptions, Ends, open_chain, read_chain, read_toml, run_until_signalled
from mesh.cli.look import attested_text, elected_text, epoch_values, proposal_text
from mesh.cli.tables import table
from mesh.errors import ChainUnavailable, ConfigError, ConsensusError, RecordRejected, RemoteProtocolError
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mesh.chain.client import Chain
    from mesh.chain.reading import EpochView
    from mesh.chain.types import BlockRef, Snapshot, Submission
    from mesh.consensus.replay import Replay
    from mesh.consensus.wire import Blob, ProposalArgs
    from mesh.kad.record import Record
    from mesh.peer import PeerID
    from mesh.subnet import Subnet

log = logging.getLogger(__name__)

MAX_GAP_BLOCKS: Final = 64
"""Blocks that came while we were away and are still shown one by one."""
BAR_WIDTH: Final = 40


def watch(
    *,
    subnet_id: int,
    blocks: int | None = None,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Follow a subnet's epochs block by block until Ctrl-C: who is elected, what is proposed, who attests.

    On a terminal one picture changes in place; elsewhere every block is one line.

    Args:
        subnet_id: Friendly or real id.
        blocks: End after so many blocks.
        json: Print one JSON object per line and block.
    """
    from rich.console import Console
    from rich.live import Live

    if blocks is not None and blocks < 1:
        raise ConfigError(f"--blocks {blocks}: at least 1")
    console = Console()
    in_place = console.is_terminal and not json

    async def run() -> None:
        left = blocks
        async with open_chain(chain or ChainOptions()) as client:
            real = await client.resolve_subnet_id(subnet_id)
            with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
                async for seen in _follow(client, real):
                    if live is not None:
                        live.update(picture(seen), refresh=True)
                    else:
                        print(jsonlib.dumps(_values(seen)) if json else block_line(seen), flush=True)
                    if left is not None:
                        left -= 1
                        if not left:
                            return

    run_until_signalled(run, ends=Ends.WHEN_TOLD if blocks is None else Ends.WHEN_DONE)


@dataclass(frozen=True, slots=True)
class Seen:
    """An epoch at a block, and what the one before it paid by work (None: nothing was agreed on)."""

    view: EpochView
    paid: dict[int, int] | None


async def _follow(chain: Chain, subnet_id: int) -> AsyncIterator[Seen]:
    """The epoch at each new block, those that came between two heads included."""
    from mesh.chain.reading import read_epoch

    last: int | None = None
    paid: tuple[int, dict[int, int] | None] = (-1, None)
    async for head in chain.heads():
        try:
            views = [await read_epoch(chain, subnet_id, at=block) async for block in _since(chain, last, head)]
            for view in views:
                if view.epoch != paid[0]:
                    paid = (view.epoch, await _paid(chain, view))
                yield Seen(view, paid[1])
                last = view.block.number
        except ChainUnavailable as error:
            log.warning("block %d: %s", head.number, error)  # shown with the next head, if it is not too far


async def _paid(chain: Chain, view: EpochView) -> dict[int, int] | None:
    """What the epoch before the view's paid by work, as its first block says."""
    from mesh.chain.earnings import paid_by_work
    from mesh.chain.types import first_block

    slot = view.subnet.slot
    opening = None if slot is None else first_block(view.epoch, slot=slot, length=view.position.length)
    if opening is None or opening > view.block.number:
        return None
    return paid_by_work(await chain.events(await chain.block_hash(opening)), view.subnet.subnet_id)


async def _since(chain: Chain, last: int | None, head: BlockRef) -> AsyncIterator[BlockRef]:
    from mesh.chain.reading import block_at

    if last is not None:
        for number in range(max(last + 1, head.number - MAX_GAP_BLOCKS), head.number):
            yield await block_at(chain, number)
    yield head


def _values(seen: Seen) -> dict[str, object]:
    paid = None if seen.paid is None else {str(node): str(planck) for node, planck in seen.paid.items()}
    return {**epoch_values(seen.view), "paid_before": paid}


def block_line(seen: Seen) -> str:
    """A block in one line."""
    view = seen.view
    parts = [
        f"block {view.block.number}",
        f"epoch {view.epoch}, {view.position.offset + 1} of {view.position.length}",
        f"elected {'nobody' if view.elected is None else f'node {view.elected}'}",
        f"proposal {proposal_text(view)}",
    ]
    if view.proposal is not None:
        parts.append(f"attested by {attested_text(view)}")
    if view.open_windows():
        parts.append(f"open: {', '.join(view.open_windows())}")
    return "; ".join(parts)


def picture(seen: Seen) -> RenderableType:
    """A block as a picture for a terminal."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    view = seen.view
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()

    def row(name: str, value: RenderableType) -> None:
        grid.add_row(name, Text(value) if isinstance(value, str) else value)

    info = view.subnet
    row("subnet", f"{info.subnet_id} ({printable(info.name, 64)}), {info.state.name.lower()}")
    row("block", f"{view.block.number} 0x{view.block.hash.hex()[:16]}…")
    row("epoch", f"{view.epoch}, block {view.position.offset + 1} of {view.position.length}")
    row("", ProgressBar(total=view.position.length, completed=view.position.offset + 1, width=BAR_WIDTH))
    row("open", ", ".join(view.open_windows()) or "nothing")
    if view.windows is not None:
        row("calendar", _calendar(view))
    row("elected", elected_text(view))
    row("proposal", proposal_text(view))
    if view.proposal is not None:
        row("attested", attested_text(view))
        row("", ProgressBar(total=max(len(view.electable), 1), completed=len(view.attested), width=BAR_WIDTH))
        row("", ", ".join(f"{node}{'' if node in view.attested else ' not yet'}" for node in view.electable))
    if view.epoch > 0:
        row("paid", _paid_text(seen))
    return Group(grid)


def _calendar(view: EpochView) -> str:
    windows = view.windows
    assert windows is not None
    spans = (
        ("claim commits", windows.claim_commit.first, windows.claim_commit.last),
        ("draw", windows.draw, windows.draw),
        ("reveals", windows.reveal.first, windows.reveal.last),
        ("vote commits", windows.vote_commit.first, windows.vote_commit.last),
        ("vote reveals", windows.vote_reveal.first, windows.vote_reveal.last),
        ("inventory", windows.inventory, windows.length - 1),
        ("propose", 0, windows.propose_by),
        ("attest", 0, windows.attest_by),
    )  # blocks counted from 1, as above
    return "\n".join(
        f"{name:<14} {first + 1}" + (f" to {last + 1}" if last > first else "") for name, first, last in spans
    )


def _paid_text(seen: Seen) -> str:
    before = f"epoch {seen.view.epoch - 1}"
    if seen.paid is None:
        return f"{before}: nobody earned by work"
    return f"{before}: {tensor_text(sum(seen.paid.values()))} to {len(seen.paid)} nodes"


# --- replay -----------------------------------------------------------------------------------------------------


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
