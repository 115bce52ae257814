"""Delegate pools in storage, a subnet's and a node's alike: anybody's planck, held as shares of a balance that
rewards make grow.

The arithmetic is in economics.py; here is where its numbers are kept. Nothing here looks at fees, limits or
whether the subnet or node is there: that is for the calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.devchain.pallet import Context, StorageItem
from mesh.devchain.pallets.network import economics
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import add_to


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pool is kept: its key, and the items that hold its parts."""

    key: tuple[int, ...]
    shares: StorageItem
    balance: StorageItem
    owned: StorageItem
    """Shares under (account, *key)."""
    all: StorageItem
    """Planck in all pools of the kind."""


def of_subnet(subnet_id: int) -> Place:
    """The pool of a subnet."""
    return Place(
        (subnet_id,),
        shares=s.TotalSubnetDelegateStakeShares,
        balance=s.TotalSubnetDelegateStakeBalance,
        owned=s.AccountSubnetDelegateStakeShares,
        all=s.TotalDelegateStake,
    )


def of_node(subnet_id: int, node_id: int) -> Place:
    """The pool of one node."""
    return Place(
        (subnet_id, node_id),
        shares=s.TotalNodeDelegateStakeShares,
        balance=s.TotalNodeDelegateStakeBalance,
        owned=s.AccountNodeDelegateStakeShares,
        all=s.TotalNodeDelegateStake,
    )


def read(ctx: Context, place: Place) -> economics.Pool:
    """The pool as it is stored."""
    return economics.Pool(ctx.get(place.shares, *place.key), ctx.get(place.balance, *place.key))


def owned_by(ctx: Context, place: Place, who: bytes) -> int:
    """The shares of one account."""
    return int(ctx.get(place.owned, who, *place.key))


def worth(ctx: Context, place: Place, shares: int) -> int:
    """Planck that shares would be sold for now."""
    return economics.sell_shares(read(ctx, place), shares)[1]


def _write(ctx: Context, place: Place, before: economics.Pool, after: economics.Pool) -> None:
    ctx.put(place.shares, *place.key, value=after.shares)
    ctx.put(place.balance, *place.key, value=after.balance)
    add_to(ctx, place.all, amount=after.balance - before.balance)


def buy(ctx: Context, place: Place, who: bytes, amount: int) -> int:
    """Turn planck in the pallet's keeping into shares; 0, and nothing changed, when it does not buy one."""
    before = read(ctx, place)
    after, shares = economics.buy_shares(before, amount)
    if shares:
        _write(ctx, place, before, after)
        add_to(ctx, place.owned, who, *place.key, amount=shares)
    return shares


def sell(ctx: Context, place: Place, who: bytes, shares: int) -> int:
    """Take shares the account has out of the pool; gives the planck, which the pallet still keeps."""
    before = read(ctx, place)
    after, amount = economics.sell_shares(before, shares)
    _write(ctx, place, before, after)
    add_to(ctx, place.owned, who, *place.key, amount=-shares)
    return amount


def give(ctx: Context, place: Place, amount: int) -> None:
    """Put planck in the pallet's keeping into the pool for all who hold shares."""
    if amount:
        before = read(ctx, place)
        _write(ctx, place, before, economics.give_to_pool(before, amount))


def hand_over(ctx: Context, place: Place, source: bytes, target: bytes, shares: int) -> None:
    """Move shares the source has to another account."""
    add_to(ctx, place.owned, source, *place.key, amount=-shares)
    add_to(ctx, place.owned, target, *place.key, amount=shares)
