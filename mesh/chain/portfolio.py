"""What an account has on the chain, beyond its free balance: stakes, delegations, unbondings, overwatch.

Everything is read at one block. Storage is read by name, so a chain that lacks an item says which (CallRefused).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mesh.chain.calls import NodeRef
from mesh.chain.calls import Pool as PoolKey
from mesh.chain.client import Chain
from mesh.chain.types import BlockRef
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
    """An overwatch node of a coldkey's hotkey."""

    node_id: int
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
    free = await chain.balance(account)
    own = await chain.storage("Network", "AccountDelegateStake", account, at=block.hash)
    return Portfolio(
        block=block,
        account=account,
        free_planck=free.free_planck,
        stakes=await stakes_of(chain, account, at=block.hash),
        delegations=await delegations_of(chain, account, at=block.hash),
        unbondings=await unbondings_of(chain, account, at=block.hash),
        swaps=tuple(s for s in await swap_queue(chain, at=block.hash) if s.account == account),
        delegate_account_planck=_int(own),
    )


async def hotkeys_of(chain: Chain, coldkey: bytes, *, at: bytes | None = None) -> tuple[bytes, ...]:
    """Hotkeys that a coldkey owns, ascending."""
    owned = await chain.storage("Network", "ColdkeyHotkeys", coldkey, at=at)
    if not isinstance(owned, tuple | list):
        raise ChainError("the chain's ColdkeyHotkeys is no set of accounts")
    return tuple(sorted(_bytes(each) for each in owned))


async def stakes_of(chain: Chain, coldkey: bytes, *, at: bytes | None = None) -> tuple[NodeStake, ...]:
    """Stakes of all hotkeys of a coldkey, by subnet and hotkey; those of hotkeys without stake are left out."""
    found: list[NodeStake] = []
    for hotkey in await hotkeys_of(chain, coldkey, at=at):
        for (_, subnet_id), stake in await chain.storage_map("Network", "AccountSubnetStake", hotkey, at=at):
            if not _int(stake):
                continue
            node_id = await chain.storage("Network", "HotkeySubnetNodeId", subnet_id, hotkey, at=at)
            found.append(NodeStake(_int(subnet_id), None if node_id is None else _int(node_id), hotkey, _int(stake)))
    return tuple(sorted(found, key=lambda each: (each.subnet_id, each.hotkey)))


async def delegations_of(chain: Chain, account: bytes, *, at: bytes | None = None) -> tuple[Delegation, ...]:
    """Shares of an account in all pools, with what they are worth."""
    found: list[Delegation] = []
    for (_, subnet), shares in await chain.storage_map("Network", "AccountSubnetDelegateStakeShares", account, at=at):
        pool = await pool_of(chain, _int(subnet), at=at)
        found.append(Delegation(_int(subnet), None, _int(shares), pool.worth(_int(shares))))
    nodes = await chain.storage_map("Network", "AccountNodeDelegateStakeShares", account, at=at)
    for (_, subnet, node), shares in nodes:
        pool = await pool_of(chain, NodeRef(_int(subnet), _int(node)), at=at)
        found.append(Delegation(_int(subnet), _int(node), _int(shares), pool.worth(_int(shares))))
    held = [each for each in found if each.shares]
    return tuple(sorted(held, key=lambda each: (each.subnet_id, each.node_id or 0)))


async def shares_in(chain: Chain, account: bytes, pool: PoolKey, *, at: bytes | None = None) -> int:
    """How many shares of one pool an account holds."""
    if isinstance(pool, NodeRef):
        return _int(
            await chain.storage(
                "Network", "AccountNodeDelegateStakeShares", account, pool.subnet_id, pool.node_id, at=at
            )
        )
    return _int(await chain.storage("Network", "AccountSubnetDelegateStakeShares", account, pool, at=at))


async def pool_of(chain: Chain, pool: PoolKey, *, at: bytes | None = None) -> Pool:
    """A subnet's pool, or a node's."""
    if isinstance(pool, NodeRef):
        keys: tuple[int, ...] = (pool.subnet_id, pool.node_id)
        names = ("TotalNodeDelegateStakeShares", "TotalNodeDelegateStakeBalance")
    else:
        keys, names = (pool,), ("TotalSubnetDelegateStakeShares", "TotalSubnetDelegateStakeBalance")
    shares, balance = [_int(await chain.storage("Network", name, *keys, at=at)) for name in names]
    return Pool(shares, balance)


async def unbondings_of(chain: Chain, account: bytes, *, at: bytes | None = None) -> tuple[Unbonding, ...]:
    """What cools down, soonest first."""
    ledger = await chain.storage("Network", "StakeUnbondingLedger", account, at=at)
    if not isinstance(ledger, Mapping):
        raise ChainError("the chain's StakeUnbondingLedger is no map")
    return tuple(Unbonding(_int(block), _int(ledger[block])) for block in sorted(ledger))


async def swap_queue(chain: Chain, *, at: bytes | None = None) -> tuple[QueuedSwap, ...]:
    """All swaps that wait, by id."""
    found: list[QueuedSwap] = []
    for (swap_id,), item in await chain.storage_map("Network", "SwapCallQueue", at=at):
        if not isinstance(item, Mapping) or not isinstance(item.get("call"), Mapping):
            raise ChainError(f"the chain's queued swap {swap_id} is no swap")
        ((_, call),) = item["call"].items()
        node = call.get("to_subnet_node_id")
        found.append(
            QueuedSwap(
                _int(swap_id),
                _bytes(call.get("account_id")),
                _int(call.get("to_subnet_id")),
                None if node is None else _int(node),
                _int(call.get("balance")),
                _int(item.get("queued_at_block")) + _int(item.get("execute_after_blocks")),
            )
        )
    return tuple(sorted(found, key=lambda each: each.swap_id))


async def overwatch_of(chain: Chain, coldkey: bytes, *, at: bytes | None = None) -> tuple[OverwatchStanding, ...]:
    """Overwatch nodes of a coldkey's hotkeys, with stakes that outlived their node under id 0."""
    found: list[OverwatchStanding] = []
    for hotkey in await hotkeys_of(chain, coldkey, at=at):
        node_id = await chain.storage("Network", "HotkeyOverwatchNodeId", hotkey, at=at)
        stake = _int(await chain.storage("Network", "AccountOverwatchStake", hotkey, at=at))
        if node_id is not None or stake:
            found.append(OverwatchStanding(0 if node_id is None else _int(node_id), hotkey, stake))
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
        """`cutoff` is OverwatchCommitCutoffPercent, of 1e18."""
        length = epoch_length * max(multiplier, 1)
        epoch = block // length
        return cls(epoch, epoch * length, epoch * length + length * cutoff // 10**18, (epoch + 1) * length)


async def overwatch_epoch(chain: Chain, *, at: BlockRef | None = None) -> OverwatchEpoch:
    """The overwatch epoch of a block, the best one for None."""
    block = at or await chain.head()
    multiplier = await chain.storage("Network", "OverwatchEpochLengthMultiplier", at=block.hash)
    cutoff = await chain.storage("Network", "OverwatchCommitCutoffPercent", at=block.hash)
    return OverwatchEpoch.of(
        block.number, epoch_length=chain.epoch_length, multiplier=_int(multiplier), cutoff=_int(cutoff)
    )


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ChainError(f"expected a number from the chain, got {value!r}")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ChainError(f"expected bytes from the chain, got {value!r}")
    return value
