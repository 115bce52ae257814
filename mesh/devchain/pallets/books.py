"""Pallet Books, of the dev chain only: why planck came to be and went, per epoch.

For every planck: sum over accounts + `Held` = sum of `Minted` - sum of `Burned`. A cause is a short word such as
b"genesis", b"fee" or b"proposer-reward".
"""

from __future__ import annotations

from mesh.devchain import scale as s
from mesh.devchain.pallet import Hasher, Pallet, StorageItem

INDEX = 99

_KEYS = ((Hasher.TWOX64_CONCAT, s.u32), (Hasher.BLAKE2_128_CONCAT, s.bytes_))
MINTED = StorageItem("Minted", value=s.u128, keys=_KEYS, docs="Planck created: (global epoch, cause).")
BURNED = StorageItem("Burned", value=s.u128, keys=_KEYS, docs="Planck destroyed: (global epoch, cause).")
HELD = StorageItem("Held", value=s.u128, docs="Planck kept by pallets (stake, unbonding), in no account.")


def pallet() -> Pallet:
    """The declaration."""
    return Pallet("Books", INDEX, storage=[MINTED, BURNED, HELD])
