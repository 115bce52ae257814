"""One reading of a subnet's nodes, that every chain given agrees on.

One RPC node can lie: leave out that a node was removed, or invent one. Witnesses are further Chains, over URLs that
other people run. What counts is what all of them say of one block: the same genesis, the same hash at that height, the
same subnet and the same nodes there (a hash alone would not show a lie about storage, as no proofs are read).

The block is the newest that all have; they may be `max_lag_blocks` apart. Differing hashes at a height that both call
final are two histories, and so is a difference in the nodes of one block; differing hashes above that are a fork that
may settle in a few blocks. Both raise ChainsDisagree; nothing is decided by majority.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from mesh.chain.client import Chain
from mesh.chain.types import BlockRef, Snapshot, SubnetInfo
from mesh.errors import ChainsDisagree, ChainUnavailable, first_leaf
from mesh.peer import PeerID

T = TypeVar("T")


class TwoHistories(ChainsDisagree):
    """A disagreement that waiting cannot settle: one of the chains lies, or is another chain."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What all chains say of one block. Bootnodes cannot be read at a block: those that all list now."""

    block: BlockRef
    info: SubnetInfo
    snapshot: Snapshot
    bootnodes: frozenset[PeerID]


async def read_agreed(chains: Sequence[Chain], subnet_id: int, *, max_lag_blocks: int) -> Reading:
    """Read from all chains at once; the first one's block is the measure. The caller bounds the time.

    Raises ChainUnavailable when one is more than `max_lag_blocks` behind another, ChainsDisagree, TwoHistories,
    ChainError of any of them.
    """
    if len({chain.genesis for chain in chains}) > 1:
        raise TwoHistories("the chain URLs lead to chains of different genesis blocks")
    heads = await _ask_all(chains, lambda chain: chain.head())
    lowest, highest = min(head.number for head in heads), max(head.number for head in heads)
    if highest - lowest > max_lag_blocks:
        raise ChainUnavailable(
            f"one of the chain URLs is at block {lowest} and another at {highest}; at most {max_lag_blocks} apart "
            f"are believed"
        )
    hashes = [
        head.hash if head.number == lowest else await chain.block_hash(lowest)
        for chain, head in zip(chains, heads, strict=True)
    ]
    if len(set(hashes)) > 1:
        await _check_finality(chains)
        raise ChainsDisagree(f"the chain URLs name different blocks {lowest}: a fork that is not settled yet")
    block = BlockRef(lowest, hashes[0])
    infos = await _ask_all(chains, lambda chain: chain.subnet(subnet_id, block.hash))
    snapshots = await _ask_all(chains, lambda chain: chain.snapshot(subnet_id, block))
    bootnodes = await _ask_all(chains, lambda chain: chain.bootnodes(subnet_id))
    if any(info != infos[0] for info in infos) or any(snapshot != snapshots[0] for snapshot in snapshots):
        raise TwoHistories(f"the chain URLs tell different things of the subnet's nodes in block {lowest}")
    listed = [frozenset(info.peer_id for info in some) for some in bootnodes]
    return Reading(block, infos[0], snapshots[0], frozenset.intersection(*listed))


async def _check_finality(chains: Sequence[Chain]) -> None:
    """Raises TwoHistories when chains differ at a height that all of them call final."""
    number = min(block.number for block in await _ask_all(chains, lambda chain: chain.finalized()))
    if len(set(await _ask_all(chains, lambda chain: chain.block_hash(number)))) > 1:
        raise TwoHistories(f"the chain URLs have different final blocks {number}")


async def _ask_all(chains: Sequence[Chain], question: Callable[[Chain], Awaitable[T]]) -> list[T]:
    """The answers, in order of the chains. One that raises ends the others' work."""
    if len(chains) == 1:
        return [await question(chains[0])]
    answers: dict[int, T] = {}
    fatal: BaseException | None = None

    async def ask(index: int) -> None:
        answers[index] = await question(chains[index])

    try:
        async with trio.open_nursery() as nursery:
            for index in range(len(chains)):
                nursery.start_soon(ask, index)
    except* Exception as group:  # noqa: BLE001 - raised again below
        fatal = first_leaf(group)
    if fatal is not None:
        raise fatal
    return [answers[index] for index in range(len(chains))]
