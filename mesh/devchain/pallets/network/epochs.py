"""Which epoch it is: the network's, and each subnet's, which starts at the subnet's slot.

Every epoch is ``EpochLength`` blocks. The network's epoch is ``block // L``. A subnet owns one block of it,
its slot; its own epoch runs from slot to slot, so ``(block - slot) // L``. Elections, submissions and node
classes count subnet epochs; registration, activation and emission weights count the network's. Overwatchers
have epochs of several network epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import economics
from mesh.devchain.pallets.network import storage as s


def epoch_length(ctx: Context) -> int:
    """Blocks per epoch."""
    length: int = ctx.pallet.constants["EpochLength"].value
    return length


def first_slot(ctx: Context) -> int:
    """The first slot a subnet may have; the blocks before it serve the network."""
    slots: int = ctx.pallet.constants["DesignatedEpochSlots"].value
    return slots


def network_epoch(ctx: Context) -> int:
    """The network's epoch of the current block."""
    return ctx.block // epoch_length(ctx)


def overwatch_length(ctx: Context) -> int:
    """Blocks per overwatch epoch: ``OverwatchEpochLengthMultiplier`` of the network's."""
    return epoch_length(ctx) * max(int(ctx.get(s.OverwatchEpochLengthMultiplier)), 1)


def overwatch_epoch(ctx: Context) -> int:
    """The overwatchers' epoch of the current block."""
    return ctx.block // overwatch_length(ctx)


def overwatch_block(ctx: Context) -> int:
    """The current block's place in its overwatch epoch, from 0."""
    return ctx.block % overwatch_length(ctx)


def subnet_epoch(ctx: Context, subnet_id: int) -> int:
    """The subnet's epoch; 0 while it has no slot or its first slot block has not come."""
    slot = ctx.get(s.SubnetSlot, subnet_id)
    if not slot or ctx.block < slot:
        return 0
    return int((ctx.block - slot) // epoch_length(ctx))


@dataclass(frozen=True, slots=True)
class Progress:
    """A subnet epoch and the percentage (1e18 = all) of it that has gone by."""

    epoch: int
    progress: int


def subnet_progress(ctx: Context, subnet_id: int) -> Progress:
    """Where the subnet is in its epoch; `Dispatch` SubnetEpochDataIsNone before its first slot block."""
    slot = ctx.get(s.SubnetSlot, subnet_id)
    if not slot or ctx.block < slot:
        raise Dispatch("SubnetEpochDataIsNone")
    epoch, gone = divmod(ctx.block - slot, epoch_length(ctx))
    return Progress(epoch, economics.percent_div(gone, epoch_length(ctx)))


def attestor_progress(ctx: Context, subnet_id: int, *, proposed_at: int) -> int:
    """Percentage gone of the blocks between the proposal's block and the end of its subnet epoch."""
    slot = ctx.get(s.SubnetSlot, subnet_id)
    if not slot or ctx.block < proposed_at:
        raise Dispatch("SubnetEpochDataIsNone")
    left = epoch_length(ctx) - (proposed_at - slot) % epoch_length(ctx)
    return min(economics.percent_div(ctx.block - proposed_at, left), economics.ONE)
