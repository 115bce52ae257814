"""Pallet Balances, and the ledger behind `Context.mint`, `burn` and the transfers.

Events are those recorded from the real runtime: planck that leaves an account for good or into stake shows as
Withdraw and Rescinded, planck that comes from nothing or out of stake as Deposit and Issued.

One difference from the real pallet, on purpose: an account that falls to zero keeps its nonce, so that an immortal
extrinsic can never run twice.
"""

from __future__ import annotations

from typing import Any

from mesh.devchain import scale as s
from mesh.devchain.pallet import Call, Constant, Context, Dispatch, DispatchOther, Pallet, StorageItem
from mesh.devchain.pallets import books, system

EXISTENTIAL_DEPOSIT_PLANCK = 500
_PALLET = "Balances"

TOTAL_ISSUANCE = StorageItem("TotalIssuance", value=s.u128)
INACTIVE_ISSUANCE = StorageItem("InactiveIssuance", value=s.u128)


class BooksLedger:
    """Balances of accounts, and the books. `epoch_length` is the blocks of a global epoch."""

    def __init__(self, epoch_length: int) -> None:
        self.epoch_length = epoch_length

    def free(self, ctx: Context, who: bytes) -> int:
        """The free balance, planck."""
        return int(ctx.get(system.ACCOUNT, who)["data"]["free"])

    def issuance(self, ctx: Context) -> int:
        """The planck in all accounts together."""
        return int(ctx.get(TOTAL_ISSUANCE))

    def mint(self, ctx: Context, who: bytes | None, amount: int, cause: str) -> None:
        """Create planck and book it. Too little to make an account live is not created, as in the real pallet."""
        _check_amount(amount)
        small = amount < EXISTENTIAL_DEPOSIT_PLANCK
        if who is not None and small and ctx.get(system.ACCOUNT, who)["providers"] == 0:
            return
        self.book(ctx, books.MINTED, cause, amount)
        if who is None:
            ctx.put(books.HELD, value=ctx.get(books.HELD) + amount)
        else:
            self._enter(ctx, who, amount)

    def burn(self, ctx: Context, who: bytes | None, amount: int, cause: str) -> None:
        """Destroy planck and book it."""
        _check_amount(amount)
        self.book(ctx, books.BURNED, cause, amount)
        if who is None:
            self._hold_less(ctx, amount)
        else:
            self._leave(ctx, who, amount)

    def transfer(self, ctx: Context, source: bytes, target: bytes, amount: int, *, keep_alive: bool = False) -> None:
        """Move free balance between accounts; a new account must get the existential deposit."""
        _check_amount(amount)
        if source != target:
            self.add_free(ctx, source, -amount, keep_alive=keep_alive)
            self.add_free(ctx, target, amount)
        elif self.free(ctx, source) < amount:
            raise DispatchOther({"Token": "FundsUnavailable"})
        ctx.emit_for(_PALLET, "Transfer", **{"from": source, "to": target, "amount": amount})

    def transfer_in(self, ctx: Context, who: bytes, amount: int) -> None:
        """Free balance into the keeping of the pallets."""
        _check_amount(amount)
        self._leave(ctx, who, amount)
        ctx.put(books.HELD, value=ctx.get(books.HELD) + amount)

    def transfer_out(self, ctx: Context, who: bytes, amount: int) -> None:
        """From the keeping of the pallets to an account."""
        _check_amount(amount)
        self._hold_less(ctx, amount)
        self._enter(ctx, who, amount)

    def withdraw_fee(self, ctx: Context, who: bytes, amount: int) -> None:
        """Take the fee before the call runs; the account must stay above the existential deposit."""
        self.add_free(ctx, who, -amount, keep_alive=True)
        self._add_issuance(ctx, -amount)
        ctx.emit_for(_PALLET, "Withdraw", who=who, amount=amount)

    def settle_fee(self, ctx: Context, who: bytes, *, withdrawn: int, due: int) -> None:
        """Give back what is not due and book the rest as burned."""
        back = withdrawn - due
        if back:
            self.add_free(ctx, who, back)
            self._add_issuance(ctx, back)
        ctx.emit_for(_PALLET, "Deposit", who=who, amount=back)
        if due:
            self.book(ctx, books.BURNED, "fee", due)

    def book(self, ctx: Context, item: StorageItem, cause: str, amount: int) -> None:
        """Add to a cause of this epoch."""
        key = (ctx.block // self.epoch_length, cause.encode())
        ctx.put(item, *key, value=ctx.get(item, *key) + amount)

    def book_set(self, ctx: Context, *, free: int, held: int) -> None:
        """Book what an account has, or pallets hold, more or (negative) less because an entry was written over."""
        for difference in (free, held):
            if difference:
                self.book(ctx, books.MINTED if difference > 0 else books.BURNED, "set-storage", abs(difference))
        if free:
            self._add_issuance(ctx, free)
        if held:
            ctx.put(books.HELD, value=ctx.get(books.HELD) + held)

    def add_free(self, ctx: Context, who: bytes, amount: int, *, keep_alive: bool = False) -> None:
        """Change a free balance by `amount` planck, making or ending the account where that is needed."""
        info: dict[str, Any] = ctx.get(system.ACCOUNT, who)
        data = info["data"]
        free = data["free"] + amount
        if free < 0:
            raise DispatchOther({"Token": "FundsUnavailable"})
        alive = free >= EXISTENTIAL_DEPOSIT_PLANCK or data["reserved"] > 0
        if not alive and amount > 0 and info["providers"] == 0:
            raise DispatchOther({"Token": "BelowMinimum"})
        if not alive and keep_alive:
            raise DispatchOther({"Token": "NotExpendable"})
        data["free"] = free
        data["flags"] = system.NEW_ACCOUNT_FLAGS
        if alive and info["providers"] == 0:
            info["providers"] = 1
            ctx.emit_for("System", "NewAccount", account=who)
            ctx.emit_for(_PALLET, "Endowed", account=who, free_balance=free)
        elif not alive and info["providers"] > 0:
            info["providers"] = 0
            data["free"] = 0
            ctx.emit_for("System", "KilledAccount", account=who)
            if free:
                self._add_issuance(ctx, -free)
                self.book(ctx, books.BURNED, "dust", free)
                ctx.emit_for(_PALLET, "DustLost", account=who, amount=free)
        ctx.put(system.ACCOUNT, who, value=info)

    def _enter(self, ctx: Context, who: bytes, amount: int) -> None:
        if amount:
            self.add_free(ctx, who, amount)
            self._add_issuance(ctx, amount)
        ctx.emit_for(_PALLET, "Deposit", who=who, amount=amount)
        ctx.emit_for(_PALLET, "Issued", amount=amount)

    def _leave(self, ctx: Context, who: bytes, amount: int) -> None:
        if self.free(ctx, who) < amount:
            raise Dispatch("InsufficientBalance", pallet=_PALLET)
        if amount:
            self.add_free(ctx, who, -amount)
            self._add_issuance(ctx, -amount)
        ctx.emit_for(_PALLET, "Withdraw", who=who, amount=amount)
        ctx.emit_for(_PALLET, "Rescinded", amount=amount)

    def _add_issuance(self, ctx: Context, amount: int) -> None:
        ctx.put(TOTAL_ISSUANCE, value=ctx.get(TOTAL_ISSUANCE) + amount)

    def _hold_less(self, ctx: Context, amount: int) -> None:
        held = ctx.get(books.HELD)
        if held < amount:
            raise DispatchOther("Corruption")  # more paid out than was ever put in: a pallet's books are wrong
        ctx.put(books.HELD, value=held - amount)


def _check_amount(amount: int) -> None:
    if amount < 0:
        raise ValueError(f"an amount of {amount} planck")


def pallet(ledger: BooksLedger) -> Pallet:
    """The declaration, working on `ledger`."""

    def transfer_allow_death(ctx: Context, origin: bytes, dest: bytes, value: int) -> None:
        ledger.transfer(ctx, origin, dest, value)

    def transfer_keep_alive(ctx: Context, origin: bytes, dest: bytes, value: int) -> None:
        ledger.transfer(ctx, origin, dest, value, keep_alive=True)

    def transfer_all(ctx: Context, origin: bytes, dest: bytes, keep_alive: bool) -> None:
        keep = EXISTENTIAL_DEPOSIT_PLANCK if keep_alive else 0
        ledger.transfer(ctx, origin, dest, max(ledger.free(ctx, origin) - keep, 0), keep_alive=keep_alive)

    def burn(ctx: Context, origin: bytes, value: int, keep_alive: bool) -> None:
        ledger.add_free(ctx, origin, -value, keep_alive=keep_alive)
        ctx.put(TOTAL_ISSUANCE, value=ctx.get(TOTAL_ISSUANCE) - value)
        ledger.book(ctx, books.BURNED, "burn-call", value)
        ctx.emit("Burned", who=origin, amount=value)

    who_amount: dict[str, s.Type] = {"who": s.account_id, "amount": s.u128}
    destination = s.enum("frame_support::traits::tokens::misc::BalanceStatus", Free=None, Reserved=None)
    dest_value = (("dest", s.account_id), ("value", s.compact(s.u128)))
    return Pallet(
        _PALLET,
        4,
        storage=[TOTAL_ISSUANCE, INACTIVE_ISSUANCE],
        calls=[
            Call(0, "transfer_allow_death", dest_value, transfer_allow_death),
            Call(3, "transfer_keep_alive", dest_value, transfer_keep_alive),
            Call(4, "transfer_all", (("dest", s.account_id), ("keep_alive", s.boolean)), transfer_all),
            Call(10, "burn", (("value", s.compact(s.u128)), ("keep_alive", s.boolean)), burn),
        ],
        events={
            "Endowed": {"account": s.account_id, "free_balance": s.u128},
            "DustLost": {"account": s.account_id, "amount": s.u128},
            "Transfer": {"from": s.account_id, "to": s.account_id, "amount": s.u128},
            "BalanceSet": {"who": s.account_id, "free": s.u128},
            "Reserved": who_amount,
            "Unreserved": who_amount,
            "ReserveRepatriated": {
                "from": s.account_id,
                "to": s.account_id,
                "amount": s.u128,
                "destination_status": destination,
            },
            "Deposit": who_amount,
            "Withdraw": who_amount,
            "Slashed": who_amount,
            "Minted": who_amount,
            "Burned": who_amount,
            "Suspended": who_amount,
            "Restored": who_amount,
            "Upgraded": {"who": s.account_id},
            "Issued": {"amount": s.u128},
            "Rescinded": {"amount": s.u128},
            "Locked": who_amount,
            "Unlocked": who_amount,
            "Frozen": who_amount,
            "Thawed": who_amount,
            "TotalIssuanceForced": {"old": s.u128, "new": s.u128},
        },
        errors=[
            "VestingBalance",
            "LiquidityRestrictions",
            "InsufficientBalance",
            "ExistentialDeposit",
            "Expendability",
            "ExistingVestingSchedule",
            "DeadAccount",
            "TooManyReserves",
            "TooManyHolds",
            "TooManyFreezes",
            "IssuanceDeactivated",
            "DeltaZero",
        ],
        constants={
            "ExistentialDeposit": Constant(s.u128, EXISTENTIAL_DEPOSIT_PLANCK),
            "MaxLocks": Constant(s.u32, 50),
            "MaxReserves": Constant(s.u32, 50),
            "MaxFreezes": Constant(s.u32, 50),
        },
    )
