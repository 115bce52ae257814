"""Pausing a subnet, for its owner: what stops, what goes on, and how the subnet comes out whole.

A paused subnet starts nothing new: from the next slot block on there is no election, no entry from the queue, no
move of the node fee, and from the next epoch no weight, so no reward. Nobody may register a node. The round that
was under way is finished, though: whoever was elected may still propose, the others attest, and the next slot block
settles it. Otherwise an owner could pause to keep a round from being paid, or a proposer from being slashed.

Paused epochs count for nobody in the queue: unpausing moves the first epoch of each queued node, and with it the
end of its waiting and of its immunity, forward by the epochs of the pause and one. Idle and Included nodes count
settled rounds, of which a pause has none.

While it lasts nothing is asked of the subnet but an end: after ``MaxSubnetPauseEpochs`` each epoch costs it
reputation, until it is removed (epoch.py).
"""

from __future__ import annotations

from typing import Any, Final

from mesh.devchain.pallet import Call, Context, Dispatch
from mesh.devchain.pallets.network import emergency, epochs
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.owner import SUBNET, authorize


def pause_subnet(ctx: Context, origin: bytes, *, subnet_id: int) -> None:
    """Call 2: pause, if the last pause (or the activation) is ``SubnetPauseCooldownEpochs`` ago.

    ``start_epoch`` becomes the epoch of the pause.
    """
    authorize(ctx, origin, subnet_id)
    subnet = ctx.get(s.SubnetsData, subnet_id)
    if subnet["state"] != "Active":
        raise Dispatch("SubnetMustBeActive")
    epoch = epochs.network_epoch(ctx)
    if ctx.get(s.PreviousSubnetPauseEpoch, subnet_id) + ctx.get(s.SubnetPauseCooldownEpochs) > epoch:
        raise Dispatch("SubnetPauseCooldownActive")
    ctx.put(s.SubnetsData, subnet_id, value={**subnet, "state": "Paused", "start_epoch": epoch})
    ctx.emit("SubnetPaused", subnet_id=subnet_id, owner=origin)


def unpause_subnet(ctx: Context, origin: bytes, *, subnet_id: int) -> None:
    """Call 3: go on at the next epoch; an emergency set that was chosen meanwhile comes into force."""
    authorize(ctx, origin, subnet_id)
    subnet = ctx.get(s.SubnetsData, subnet_id)
    if subnet["state"] != "Paused":
        raise Dispatch("SubnetMustBePaused")
    epoch = epochs.network_epoch(ctx)
    _shift_queue(ctx, subnet_id, epoch - subnet["start_epoch"] + 1)
    ctx.put(s.SubnetsData, subnet_id, value={**subnet, "state": "Active", "start_epoch": epoch + 1})
    ctx.put(s.PreviousSubnetPauseEpoch, subnet_id, value=epoch)
    emergency.come_into_force(ctx, subnet_id)
    ctx.emit("SubnetUnpaused", subnet_id=subnet_id, owner=origin)


def _shift_queue(ctx: Context, subnet_id: int, by: int) -> None:
    """Move the first epoch of all queued nodes of this subnet, in their data and in the queue's copies."""

    def moved(node: dict[str, Any]) -> dict[str, Any]:
        held = node["classification"]
        return {**node, "classification": {**held, "start_epoch": held["start_epoch"] + by}}

    for keys, node in list(ctx.items(s.RegisteredSubnetNodesData, subnet_id)):
        ctx.put(s.RegisteredSubnetNodesData, *keys, value=moved(node))
    queue = ctx.get(s.SubnetNodeQueue, subnet_id)
    if queue:
        ctx.put(s.SubnetNodeQueue, subnet_id, value=[moved(node) for node in queue])


CALLS: Final[tuple[Call, ...]] = (
    Call(2, "owner_pause_subnet", (SUBNET,), pause_subnet),
    Call(3, "owner_unpause_subnet", (SUBNET,), unpause_subnet),
)
"""This file's calls."""
