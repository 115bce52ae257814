"""Pallet TransactionPayment: what an extrinsic costs.

Every call has the same weight here, so a fee is a base and one planck per byte of the extrinsic (its length prefix
included). The base is the one recorded from the real runtime.
"""

from __future__ import annotations

from mesh.devchain import scale as s
from mesh.devchain.pallet import Constant, Pallet, StorageItem

BASE_FEE_PLANCK = 108_156_999
"""Fee of an extrinsic of length 0, planck."""
LENGTH_FEE_PLANCK = 1
"""Fee of each byte, planck."""

_ONE = 10**18


def fee_planck(length: int) -> int:
    """The fee of an extrinsic of `length` bytes, without the tip."""
    return BASE_FEE_PLANCK + LENGTH_FEE_PLANCK * length


def pallet() -> Pallet:
    """The declaration."""
    return Pallet(
        "TransactionPayment",
        5,
        storage=[
            StorageItem(
                "NextFeeMultiplier",
                value=s.newtype("sp_arithmetic::fixed_point::FixedU128", s.u128),
                default=_ONE,
            )
        ],
        events={"TransactionFeePaid": {"who": s.account_id, "actual_fee": s.u128, "tip": s.u128}},
        constants={"OperationalFeeMultiplier": Constant(s.u8, 5)},
    )
