"""What is wrong with a call before it is signed, as functions of what the chain says. PURE.

The chain would refuse most of it too, for a fee, and some of it (a hotkey that cannot vote) it would not. A refusal
raises CallRefused with what to do; a warning is a sentence.
"""

from __future__ import annotations

from typing import Final

from mesh.chain.types import PLANCK_PER_TENSOR
from mesh.errors import CallRefused
from mesh.identity import checksum_address

EXISTENTIAL_DEPOSIT_PLANCK: Final = 500
"""What an account must keep (Balances.ExistentialDeposit of the runtime)."""
FAILED_CALL_FEE_PLANCK: Final = 1_000_000_000
"""What a failed propose or attest costs, ten times the 1.08e8 planck recorded from the real runtime."""


def require_funds(*, free_planck: int, spends_planck: int, fee_planck: int, account: bytes) -> None:
    """Raises CallRefused when the account cannot spend so much and stay alive."""
    needed = spends_planck + fee_planck + EXISTENTIAL_DEPOSIT_PLANCK
    if needed > free_planck:
        raise CallRefused(
            f"{checksum_address(account)} has {tensor_text(free_planck)} free, and this takes "
            f"{tensor_text(spends_planck)} and a fee of {fee_planck} planck: choose a smaller amount, or send it "
            f"{tensor_text(needed - free_planck)} first"
        )


def require_some(amount_planck: int) -> None:
    """Raises CallRefused for an amount of 0, which would cost a fee and do nothing."""
    if amount_planck <= 0:
        raise CallRefused("the amount is 0: it would cost a fee and do nothing")


def require_at_most(wanted_planck: int, held_planck: int, *, what: str) -> None:
    """Raises CallRefused when more is taken of `what` than there is, or nothing."""
    if wanted_planck == 0:
        raise CallRefused("the amount is 0: give more")
    if held_planck <= 0:
        raise CallRefused(f"there is nothing to take: {what} is 0")
    if not 0 < wanted_planck <= held_planck:
        raise CallRefused(
            f"{what} is {tensor_text(held_planck)}, and this asks for {tensor_text(wanted_planck)}: choose another"
        )


def require_new_hotkey(hotkey: bytes, *, coldkey: bytes, owner: bytes | None) -> None:
    """Raises CallRefused when a hotkey is its own coldkey or in use; `owner` is its coldkey, None when it has none."""
    if hotkey == coldkey:
        raise CallRefused("hotkey and coldkey are the same account: make a hotkey with `keygen --keys-dir DIR`")
    if owner is not None:
        raise CallRefused(
            f"the hotkey {checksum_address(hotkey)} is in use already by {checksum_address(owner)}: "
            "every node takes a new one, made with `keygen --keys-dir DIR`"
        )


def hotkey_warning(hotkey: bytes, *, free_planck: int) -> str | None:
    """Says when a hotkey could not pay the fee of a vote that fails."""
    if free_planck >= FAILED_CALL_FEE_PLANCK:
        return None
    address = checksum_address(hotkey)
    return (
        f"the hotkey {address} has {tensor_text(free_planck)}, and a vote that fails costs a fee: "
        f"`mesh transfer --to {address} --amount 1`"
    )


def tensor_text(amount_planck: int) -> str:
    """An amount exactly, for people: `100.5 TENSOR`."""
    sign = "-" if amount_planck < 0 else ""
    whole, rest = divmod(abs(amount_planck), PLANCK_PER_TENSOR)
    fraction = f".{rest:018d}".rstrip("0") if rest else ""
    return f"{sign}{whole:,}{fraction} TENSOR"
