"""Pallet Timestamp: the block's time, set by the author in the block's first extrinsic."""

from __future__ import annotations

from mesh.devchain import scale as s
from mesh.devchain.pallet import Call, Constant, Pallet, StorageItem

NOW = StorageItem("Now", value=s.u64)
DID_UPDATE = StorageItem("DidUpdate", value=s.boolean)

SLOT_MS = 6_000
"""The real chain's block time, milliseconds; in manual mode each block is that much later."""


def pallet() -> Pallet:
    """The declaration. `set` is applied by the runtime itself and refused from a signed origin."""
    return Pallet(
        "Timestamp",
        1,
        storage=[NOW, DID_UPDATE],
        calls=[Call(0, "set", (("now", s.compact(s.u64)),))],
        constants={"MinimumPeriod": Constant(s.u64, SLOT_MS // 2)},
    )
