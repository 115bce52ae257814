"""The chain as somebody who looks at it wants it: what runs on it, and how one epoch of a subnet stands.

Everything that must agree is read at one block, named by hash. Nothing here signs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mesh.chain import dialect as dialects
from mesh.chain.checked import require_number
from mesh.chain.client import Chain
from mesh.chain.dialect import PALLET
from mesh.chain.types import (
    ONE,
    BlockRef,
    EpochPosition,
    NodeClass,
    Snapshot,
    Submission,
    SubnetInfo,
    SubnetNode,
    SubnetState,
)
from mesh.chain.windows import MIN_LENGTH, Windows
from mesh.errors import ChainError


async def block_at(chain: Chain, number: int) -> BlockRef:
    """The block of this number. Raises BlockUnavailable when there is none yet."""
    return BlockRef(number, await chain.block_hash(number))


# --- the whole chain --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overview:
    """What runs on a chain, at one block. Amounts in planck."""

    best: BlockRef
    finalized: BlockRef
    timestamp_ms: int
    """Of the best block."""
    epoch: int
    """The network's epoch, `block // length`; subnets count their own from their slots."""
    epoch_length: int
    subnets: Mapping[SubnetState, int]
    active_nodes: int
    stake_planck: int
    delegate_stake_planck: int
    is_paused: bool
    """Whether the network's pallet takes no calls."""


async def read_overview(chain: Chain) -> Overview:
    """What the best block says of the whole network. Raises ChainError for a chain without the network's pallet."""
    finalized, best = await chain.finalized(), await chain.head()
    states = Counter(
        SubnetState[str(data.get("state")).upper()]
        for _, data in await chain.storage_map(PALLET, "SubnetsData", at=best.hash)
        if isinstance(data, Mapping) and str(data.get("state")).upper() in SubnetState.__members__
    )
    return Overview(
        best=best,
        finalized=finalized,
        timestamp_ms=require_number(await chain.storage("Timestamp", "Now", at=best.hash), "timestamp"),
        epoch=best.number // chain.epoch_length,
        epoch_length=chain.epoch_length,
        subnets=dict(sorted(states.items())),
        active_nodes=await _total(chain, "TotalActiveNodes", best),
        stake_planck=await _total(chain, "TotalStake", best),
        delegate_stake_planck=await _total(chain, "TotalDelegateStake", best),
        is_paused=bool(await chain.storage(PALLET, "TxPause", at=best.hash)),
    )


async def _total(chain: Chain, item: str, at: BlockRef) -> int:
    return require_number(await chain.storage(PALLET, item, at=at.hash), item)


# --- one epoch of a subnet --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EpochView:
    """How an epoch of a subnet stands at a block."""

    block: BlockRef
    subnet: SubnetInfo
    position: EpochPosition
    """Of the block; `epoch` may be an earlier one."""
    epoch: int
    snapshot: Snapshot
    elected: int | None
    """Node id that may propose."""
    proposal: Submission | None
    electable: tuple[int, ...]
    """Node ids whose attestations count: the validators when the proposal was made, before it those of now."""
    least_ratio: int
    """Share of them that must attest, of 1e18."""

    @property
    def attested(self) -> tuple[int, ...]:
        """Those of the electable that attested."""
        return () if self.proposal is None else tuple(n for n in self.electable if n in self.proposal.attests)

    @property
    def needed(self) -> int:
        """Attestations it takes for the proposal to be paid."""
        return -(-len(self.electable) * self.least_ratio // ONE)

    @property
    def windows(self) -> Windows | None:
        """The calendar of an epoch; None on a chain whose epochs are too short for one."""
        return Windows.of(self.position.length) if self.position.length >= MIN_LENGTH else None

    @property
    def is_over(self) -> bool:
        """Whether nothing about it can change any more."""
        return self.epoch < self.position.epoch

    def node(self, node_id: int) -> SubnetNode | None:
        """A node of the snapshot."""
        return next((node for node in self.snapshot.nodes if node.node_id == node_id), None)

    def open_windows(self) -> tuple[str, ...]:
        """What the block is in, of the calendar: the work's windows, and proposing and attesting for the epoch
        before."""
        windows, offset = self.windows, self.position.offset
        if windows is None or self.subnet.state is not SubnetState.ACTIVE:
            return ()
        inside = {
            "claim commits": offset in windows.claim_commit,
            "draw": offset == windows.draw,
            "reveals": offset in windows.reveal,
            "vote commits": offset in windows.vote_commit,
            "vote reveals": offset in windows.vote_reveal,
            "inventory": offset >= windows.inventory,
            "propose": offset <= windows.propose_by,
            "attest": offset <= windows.attest_by,
        }
        return tuple(name for name, is_open in inside.items() if is_open)


async def read_epoch(
    chain: Chain, subnet_id: int, *, at: BlockRef | None = None, epoch: int | None = None
) -> EpochView:
    """An epoch (the block's own without one) of a subnet with this real id, as the state at `at` (the best block) has
    it. Raises ChainError: no such subnet, or an epoch that has not begun; BlockUnavailable."""
    block = at or await chain.head()
    info = await chain.subnet(subnet_id, block.hash)
    position = EpochPosition.of(block.number, slot=info.slot or 0, length=chain.epoch_length)
    wanted = position.epoch if epoch is None else epoch
    if not 0 <= wanted <= position.epoch:
        raise ChainError(f"subnet {subnet_id} is in epoch {position.epoch} at block {block.number}, not in {wanted}")
    elected = await chain.storage(PALLET, "SubnetElectedValidator", subnet_id, wanted, at=block.hash)
    raw = await chain.storage(PALLET, "SubnetConsensusSubmission", subnet_id, wanted, at=block.hash)
    snapshot = await chain.snapshot(subnet_id, block)
    return EpochView(
        block=block,
        subnet=info,
        position=position,
        epoch=wanted,
        snapshot=snapshot,
        elected=elected if isinstance(elected, int) else None,
        proposal=dialects.submission(raw) if isinstance(raw, Mapping) else None,
        electable=electable(raw, snapshot, epoch=wanted),
        least_ratio=require_number(
            await chain.storage(PALLET, "MinAttestationPercentage", at=block.hash), "least share of attestations"
        ),
    )


def electable(submission: object, snapshot: Snapshot, *, epoch: int) -> tuple[int, ...]:
    """Node ids whose attestations of a proposal count, ascending, from its `ConsensusData`: W keeps the subnet's nodes
    as they were when it was made, S the ids. Without a proposal: the snapshot's validators."""
    if isinstance(submission, Mapping):
        ids, nodes = submission.get("validator_ids"), submission.get("subnet_nodes")
        if isinstance(ids, list):
            return tuple(sorted(require_number(node_id, "validator id") for node_id in ids))
        if isinstance(nodes, list):
            return tuple(sorted(dialects.integer(n, "id") for n in nodes if _is_validator(n, epoch)))
    return tuple(node.node_id for node in snapshot.validators(epoch))


def _is_validator(node: object, epoch: int) -> bool:
    classification = node.get("classification") if isinstance(node, Mapping) else None
    return (
        isinstance(classification, Mapping)
        and str(classification.get("node_class")).upper() == NodeClass.VALIDATOR.name
        and dialects.integer(classification, "start_epoch") <= epoch
    )
