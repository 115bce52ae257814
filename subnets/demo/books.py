"""The books: every planck anywhere, summed from storage, against what the chain says it minted and burned.

N = free and reserved balances, node stake, unbonding stake, delegate pools and overwatch stake. The sum never looks at
the chain's own totals; the chain's books of minted and burned by cause never look at the sum. They must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mesh.chain.client import Chain

SCALARS = (
    "AccountSubnetStake",
    "AccountOverwatchStake",
    "TotalSubnetDelegateStakeBalance",
    "TotalNodeDelegateStakeBalance",
)


@dataclass(frozen=True, slots=True)
class EpochBooks:
    """One epoch of the whole chain (block // epoch length): planck before and after, and each cause between."""

    epoch: int
    before: int
    after: int
    minted: Mapping[str, int]
    burned: Mapping[str, int]

    @property
    def conserved(self) -> bool:
        """Whether the difference is exactly what was minted less what was burned."""
        return self.after - self.before == sum(self.minted.values()) - sum(self.burned.values())


async def total_planck(chain: Chain, at: bytes) -> int:
    """N at one block."""
    total = 0
    for _, account in await chain.storage_map("System", "Account", at=at):
        data = _fields(account)["data"]
        total += int(data["free"]) + int(data["reserved"])
    for item in SCALARS:
        total += sum(_ints(value for _, value in await chain.storage_map("Network", item, at=at)))
    for _, ledger in await chain.storage_map("Network", "StakeUnbondingLedger", at=at):
        total += sum(_ints(_pairs(ledger)))
    return total


async def read_books(chain: Chain, first_block: int, last_block: int) -> list[EpochBooks]:
    """Every epoch from the one that begins at or after `first_block` to `last_block`, which may end the last one early.
    Needs a chain that keeps its history (the development chain does)."""
    length = chain.epoch_length
    first, last = -(-first_block // length), last_block // length
    ends = [*(epoch * length - 1 for epoch in range(first, last + 1)), last_block]
    boundaries = [await chain.block_hash(max(0, number)) for number in ends]
    sums = [await total_planck(chain, at) for at in boundaries]
    causes = {}
    for item in ("Minted", "Burned"):
        for key, value in await chain.storage_map("Books", item, at=boundaries[-1]):
            epoch, cause = key
            causes[item, int(str(epoch)), _text(cause)] = int(str(value))
    return [
        EpochBooks(
            epoch=epoch,
            before=sums[index],
            after=sums[index + 1],
            minted={c: v for (item, e, c), v in causes.items() if (item, e) == ("Minted", epoch)},
            burned={c: v for (item, e, c), v in causes.items() if (item, e) == ("Burned", epoch)},
        )
        for index, epoch in enumerate(range(first, last + 1))
    ]


def _fields(value: object) -> Mapping[str, Any]:
    assert isinstance(value, Mapping)
    return value


def _ints(values: Iterable[object]) -> Iterable[int]:
    return (int(str(value)) for value in values)


def _pairs(ledger: object) -> Iterable[object]:
    if isinstance(ledger, Mapping):
        return ledger.values()
    assert isinstance(ledger, list | tuple)
    return [amount for _, amount in ledger]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()
    text = str(value)
    return bytes.fromhex(text[2:]).decode() if text.startswith("0x") else text
