"""What an account has on the chain, beyond its free balance: stakes, delegations, unbondings, overwatch.

Everything is read at one block. Storage is read by name, so a chain that lacks an item says which (CallRefused).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mesh.chain import dialect
from mesh.chain.calls import NodeRef, PoolKey
from mesh.chain.checked import require_account, require_number
from mesh.chain.client import Chain
from mesh.chain.dialect import PALLET
from mesh.chain.types import ONE, BlockRef
from mesh.errors import ChainError

_VIRTUAL_SHARES: Final = 10
_VIRTUAL_PLANCK: Final = 1
"""What the pallet adds to a pool when it prices shares, so that the first depositor cannot set the price."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A delegate pool: of a subnet, or of one node of it."""

    shares: int
    balance_planck: int

    def worth(self, shares: int) -> int:
        """Planck that `shares` would be sold for now."""
        worth = shares * (self.balance_planck + _VIRTUAL_PLANCK) // (self.shares + _VIRTUAL_SHARES)
        return min(worth, self.balance_planck)

    def shares_for(self, amount_planck: int) -> int:
        """The least shares that are worth at least `amount_planck` now."""
        return -(-amount_planck * (self.shares + _VIRTUAL_SHARES) // (self.balance_planck + _VIRTUAL_PLANCK))


@dataclass(frozen=True, slots=True)
class Delegation:
    """Shares of one pool. `node_id` None: the subnet's own pool."""

    subnet_id: int
    node_id: int | None
    shares: int
    worth_planck: int


@dataclass(frozen=True, slots=True)
class NodeStake:
    """Stake of one hotkey in one subnet. `node_id` None: its node is gone, the stake can be taken out."""

    subnet_id: int
    node_id: int | None
    hotkey: bytes
    stake_planck: int


@dataclass(frozen=True, slots=True)
class Unbonding:
    """Planck that can be claimed from `claim_block` on."""

    claim_block: int
    amount_planck: int


@dataclass(frozen=True, slots=True)
class OverwatchStanding:
    """Overwatch stake of a coldkey's hotkey. `node_id` None: its node is gone, the stake can be taken out."""

    node_id: int | None
    hotkey: bytes
    stake_planck: int


@dataclass(frozen=True, slots=True)
class QueuedSwap:
    """A swap of delegations that the chain has not carried out yet."""

    swap_id: int
    account: bytes
    to_subnet_id: int
    to_node_id: int | None
    balance_planck: int
    due_block: int


@dataclass(frozen=True, slots=True)
class Portfolio:
    """All of it, at one block."""

    block: BlockRef
    account: bytes
    free_planck: int
    stakes: tuple[NodeStake, ...]
    delegations: tuple[Delegation, ...]
    unbondings: tuple[Unbonding, ...]
    swaps: tuple[QueuedSwap, ...]
    delegate_account_planck: int
    """What nodes gave this account as their delegate account."""

    @property
    def claimable_planck(self) -> int:
        """Planck of the unbondings that have cooled down."""
        return sum(u.amount_planck for u in self.unbondings if u.claim_block <= self.block.number)


async def portfolio(chain: Chain, account: bytes) -> Portfolio:
    """What `account` has, at the best block. Raises ChainError, ChainUnavailable."""
    block = await chain.head()
    return Portfolio(
        block=block,
        account=account,
        free_planck=await _free_of(chain, account, at=block.hash),
        stakes=await stakes_of(chain, account, at=block.hash),
        delegations=await delegations_of(chain, account, at=block.hash),
        unbondings=await unbondings_of(chain, account, at=block.hash),
        swaps=tuple(s for s in await swap_queue(chain, at=block.hash) if s.account == account),
        delegate_account_planck=await delegate_account_of(chain, account, at=block.hash),
    )


async def hotkeys_of(chain: Chain, coldkey: bytes, *, at: bytes | None = None) -> tuple[bytes, ...]:
    """Hotkeys that a coldkey owns, ascending."""
    owned = await chain.storage(PALLET, "ColdkeyHotkeys", coldkey, at=at)
    if not isinstance(owned, tuple | list):
        raise ChainError("the chain's ColdkeyHotkeys is no set of accounts")
    return tuple(sorted(require_account(each, "hotkey") for each in owned))


async def hotkey_owner(chain: Chain, hotkey: bytes) -> bytes | None:
    """The coldkey that owns a hotkey; None while nobody does, which the pallet writes as zeros."""
    owner = await chain.storage(PALLET, "HotkeyOwner", hotkey)
    if owner is None or not any(require_account(owner, "hotkey owner")):
        return None
    return require_account(owner, "hotkey owner")


async def stake_of(chain: Chain, hotkey: bytes, subnet_id: int, *, at: bytes | None = None) -> int:
    """Planck that a hotkey has at stake in a subnet."""
    return await _stored(chain, "AccountSubnetStake", hotkey, subnet_id, at=at)


async def delegate_account_of(chain: Chain, account: bytes, *, at: bytes | None = None) -> int:
    """Planck that nodes gave an account as their delegate account, and that it has not taken out."""
    return await _stored(chain, "AccountDelegateStake", account, at=at)


async def stakes_of(chain: Chain, coldkey: bytes, *, at: bytes | None = None) -> tuple[NodeStake, ...]:
    """Stakes of all hotkeys of a coldkey, by subnet and hotkey; those of hotkeys without stake are left out."""
    found: list[NodeStake] = []
    for hotkey in await hotkeys_of(chain, coldkey, at=at):
        for (_, subnet), raw in await chain.storage_map(PALLET, "AccountSubnetStake", hotkey, at=at):
            subnet_id, stake = require_number(subnet, "subnet id"), require_number(raw, "stake")
            if not stake:
                continue
            node_id = await chain.storage(PALLET, "HotkeySubnetNodeId", subnet_id, hotkey, at=at)
            found.append(NodeStake(subnet_id, _id_or_none(node_id), hotkey, stake))
    return tuple(sorted(found, key=lambda each: (each.subnet_id, each.hotkey)))


async def delegations_of(chain: Chain, account: bytes, *, at: bytes | None = None) -> tuple[Delegation, ...]:
    """Shares of an account in all pools, with what they are worth."""
    found: list[Delegation] = []
    for (_, subnet), raw in await chain.storage_map(PALLET, "AccountSubnetDelegateStakeShares", account, at=at):
        subnet_id, shares = require_number(subnet, "subnet id"), require_number(raw, "shares")
        pool = await pool_of(chain, subnet_id, at=at)
        found.append(Delegation(subnet_id, None, shares, pool.worth(shares)))
    for (_, subnet, node), raw in await chain.storage_map(PALLET, "AccountNodeDelegateStakeShares", account, at=at):
        of = NodeRef(require_number(subnet, "subnet id"), require_number(node, "node id"))
        shares = require_number(raw, "shares")
        pool = await pool_of(chain, of, at=at)
        found.append(Delegation(of.subnet_id, of.node_id, shares, pool.worth(shares)))
    held = [each for each in found if each.shares]
    return tuple(sorted(held, key=lambda each: (each.subnet_id, each.node_id or 0)))


async def shares_in(chain: Chain, account: bytes, pool: PoolKey, *, at: bytes | None = None) -> int:
    """How many shares of one pool an account holds."""
    if isinstance(pool, NodeRef):
        return await _stored(chain, "AccountNodeDelegateStakeShares", account, pool.subnet_id, pool.node_id, at=at)
    return await _stored(chain, "AccountSubnetDelegateStakeShares", account, pool, at=at)


async def pool_of(chain: Chain, pool: PoolKey, *, at: bytes | None = None) -> Pool:
    """A subnet's pool, or a node's."""
    if isinstance(pool, NodeRef):
        keys: tuple[int, ...] = (pool.subnet_id, pool.node_id)
        names = ("TotalNodeDelegateStakeShares", "TotalNodeDelegateStakeBalance")
    else:
        keys, names = (pool,), ("TotalSubnetDelegateStakeShares", "TotalSubnetDelegateStakeBalance")
    shares, balance = [await _stored(chain, name, *keys, at=at) for name in names]
    return Pool(shares, balance)


async def unbondings_of(chain: Chain, account: bytes, *, at: bytes | None = None) -> tuple[Unbonding, ...]:
    """What cools down, soonest first."""
    ledger = await chain.storage(PALLET, "StakeUnbondingLedger", account, at=at)
    if not isinstance(ledger, Mapping):
        raise ChainError("the chain's StakeUnbondingLedger is no map")
    return tuple(
        Unbonding(require_number(block, "block"), require_number(ledger[block], "unbonding"))
        for block in sorted(ledger)
    )


async def swap_queue(chain: Chain, *, at: bytes | None = None) -> tuple[QueuedSwap, ...]:
    """All swaps that wait, by id."""
    found: list[QueuedSwap] = []
    for (swap_id,), item in await chain.storage_map(PALLET, "SwapCallQueue", at=at):
        if not isinstance(item, Mapping) or not isinstance(item.get("call"), Mapping):
            raise ChainError(f"the chain's queued swap {swap_id} is no swap")
        ((_, call),) = item["call"].items()
        found.append(
            QueuedSwap(
                require_number(swap_id, "swap id"),
                dialect.account(call, "account_id"),
                dialect.integer(call, "to_subnet_id"),
                _id_or_none(call.get("to_subnet_node_id")),
                dialect.integer(call, "balance"),
                dialect.integer(item, "queued_at_block") + dialect.integer(item, "execute_after_blocks"),
            )
        )
    return tuple(sorted(found, key=lambda each: each.swap_id))


async def overwatch_of(chain: Chain, coldkey: bytes, *, at: bytes | None = None) -> tuple[OverwatchStanding, ...]:
    """Overwatch nodes of a coldkey's hotkeys, and stakes that outlived their node."""
    found: list[OverwatchStanding] = []
    for hotkey in await hotkeys_of(chain, coldkey, at=at):
        node_id = await chain.storage(PALLET, "HotkeyOverwatchNodeId", hotkey, at=at)
        stake = await _stored(chain, "AccountOverwatchStake", hotkey, at=at)
        if node_id is not None or stake:
            found.append(OverwatchStanding(_id_or_none(node_id), hotkey, stake))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class OverwatchEpoch:
    """Where a block stands in the overwatch epochs (pallet: `block / (EpochLength * multiplier)`)."""

    epoch: int
    first_block: int
    reveal_block: int
    """Commits are taken before this block, reveals from it on."""
    end_block: int

    @classmethod
    def of(cls, block: int, *, epoch_length: int, multiplier: int, cutoff: int) -> OverwatchEpoch:
        """`cutoff` is OverwatchCommitCutoffPercent: that share of the epoch, of 1e18, is for commits."""
        length = epoch_length * max(multiplier, 1)
        epoch = block // length
        return cls(epoch, epoch * length, epoch * length + length * cutoff // ONE, (epoch + 1) * length)


async def overwatch_epoch(chain: Chain, *, at: BlockRef | None = None) -> OverwatchEpoch:
    """The overwatch epoch of a block, the best one for None."""
    block = at or await chain.head()
    return OverwatchEpoch.of(
        block.number,
        epoch_length=chain.epoch_length,
        multiplier=await _stored(chain, "OverwatchEpochLengthMultiplier", at=block.hash),
        cutoff=await _stored(chain, "OverwatchCommitCutoffPercent", at=block.hash),
    )


async def _free_of(chain: Chain, account: bytes, *, at: bytes) -> int:
    """Free balance at a block, which Chain.balance tells of the best one only."""
    info = await chain.storage("System", "Account", account, at=at)
    data = info.get("data") if isinstance(info, Mapping) else None
    if not isinstance(data, Mapping):
        raise ChainError("the chain's account has no data")
    return dialect.integer(data, "free")


async def _stored(chain: Chain, item: str, *keys: object, at: bytes | None) -> int:
    """A number in the network pallet's storage."""
    return require_number(await chain.storage(PALLET, item, *keys, at=at), item)


def _id_or_none(value: object) -> int | None:
    return None if value is None else require_number(value, "node id")
