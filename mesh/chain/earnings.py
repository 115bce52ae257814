"""What a subnet's epochs paid and cost, node by node, read back from a range of blocks.

An epoch is settled in the first block of the next one. Its SubnetRewards event says what was earned by work; what the
proposer got is in no event and shows only as a change of its stake. So the stakes right before and right after each
settlement are compared, and every planck of the difference gets a cause. Blocks in between are read only where the
stakes differ at their ends: what was staked and taken out again between two settlements is not seen.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.chain.checked import require_account, require_number
from mesh.chain.client import Chain
from mesh.chain.dialect import PALLET, submission
from mesh.chain.reading import block_at
from mesh.chain.types import EpochPosition, Event, Snapshot
from mesh.errors import ChainError

MAX_BLOCKS: Final = 200_000
"""Blocks of one reading: about 10,000 epochs of 20, two weeks."""


class Cause(enum.StrEnum):
    """Why planck came or went."""

    WORK = "work"
    """By the scores of an agreed proposal, into the node's stake."""
    PROPOSER = "proposer"
    """For a proposal that was agreed on, into its node's stake."""
    SLASH = "slash"
    """For one that was not, from its node's stake."""
    STAKED = "staked"
    UNSTAKED = "unstaked"
    """By the coldkey."""
    OTHER = "other"
    """A change of the stake that no event of the block explains."""
    NODE_DELEGATORS = "node-delegators"
    """To those who delegate to the node."""
    DELEGATE_ACCOUNT = "delegate-account"
    """To the account the node shares its rewards with."""
    SUBNET_DELEGATORS = "subnet-delegators"
    """To those who delegate to the subnet; belongs to no node."""


OUTSIDE_STAKE: Final = frozenset({Cause.NODE_DELEGATORS, Cause.DELEGATE_ACCOUNT, Cause.SUBNET_DELEGATORS})
"""All other causes change the node's stake: a node's rows of a range sum up to the change of its stake."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One amount. Negative: it was lost or taken out."""

    block: int
    epoch: int
    """Subnet epoch of the proposal it is for (whose work was done one epoch earlier); of staking: of its block."""
    subnet_id: int
    node_id: int | None
    planck: int
    cause: Cause


# --- one block, pure --------------------------------------------------------------------------------------------


def settlement_entries(
    events: Sequence[Event], *, before: Snapshot, after: Snapshot, epoch: int, proposer: int | None
) -> list[Entry]:
    """What the block of `after` did to a subnet's nodes. `before` is the state of its parent, `epoch` the one whose
    proposal the block settled, `proposer` that proposal's node. Raises ChainError for events of an unknown form."""
    subnet_id, block = after.subnet_id, after.block.number
    entries = list(_event_entries(events, before, after, epoch))
    explained: dict[int, int] = defaultdict(int)
    for entry in entries:
        if entry.node_id is not None and entry.cause not in OUTSIDE_STAKE:
            explained[entry.node_id] += entry.planck
    old = {node.node_id: node.stake_planck for node in before.nodes}
    for node in after.nodes:  # the stake of one that left is its coldkey's to take: nothing is lost by leaving
        rest = node.stake_planck - old.get(node.node_id, 0) - explained[node.node_id]
        if rest:
            cause = Cause.PROPOSER if node.node_id == proposer and rest > 0 else Cause.OTHER
            entries.append(Entry(block, epoch, subnet_id, node.node_id, rest, cause))
    return sorted(entries, key=lambda entry: (entry.node_id is None, entry.node_id or 0, entry.cause))


def paid_by_work(events: Sequence[Event], subnet_id: int) -> dict[int, int] | None:
    """Planck by node id in the SubnetRewards event among these; None when there is none: nobody earned by work."""
    for event in events:
        if (event.pallet, event.name, event.fields.get("subnet_id")) == (PALLET, "SubnetRewards", subnet_id):
            return {
                node_id: require_number(planck, "reward") for node_id, planck in _pairs(event.fields, "node_rewards")
            }
    return None


def _event_entries(events: Sequence[Event], before: Snapshot, after: Snapshot, epoch: int) -> Iterator[Entry]:
    subnet_id, block = after.subnet_id, after.block.number
    hotkeys = {node.hotkey: node.node_id for node in (*before.nodes, *after.nodes)}
    there = {node.node_id for node in after.nodes}

    def entry(node_id: int | None, planck: int, cause: Cause) -> Entry:
        return Entry(block, epoch, subnet_id, node_id, planck, cause)

    for event in events:
        if event.pallet != PALLET:
            continue
        fields = event.fields
        if event.name == "SubnetRewards" and fields.get("subnet_id") == subnet_id:
            for node_id, planck in _pairs(fields, "node_rewards"):
                yield entry(node_id, require_number(planck, "reward"), Cause.WORK)
            for node_id, planck in _pairs(fields, "node_delegate_stake_rewards"):
                yield entry(node_id, require_number(planck, "reward"), Cause.NODE_DELEGATORS)
            for node_id, allocation in _pairs(fields, "node_delegate_account_allocations"):
                yield entry(node_id, require_number(_pair(allocation)[1], "reward"), Cause.DELEGATE_ACCOUNT)
            if planck := require_number(fields.get("delegate_stake_reward"), "reward"):
                yield entry(None, planck, Cause.SUBNET_DELEGATORS)
        elif event.name == "Slashing" and fields.get("subnet_id") == subnet_id:
            node = hotkeys.get(require_account(fields.get("account_id"), "slashed hotkey"))
            if node in there:
                yield entry(node, -require_number(fields.get("amount"), "slash"), Cause.SLASH)
        elif event.name in ("StakeAdded", "StakeRemoved") and fields.get("0") == subnet_id:
            node = hotkeys.get(require_account(fields.get("2"), "staking hotkey"))
            if node in there:
                sign, cause = (1, Cause.STAKED) if event.name == "StakeAdded" else (-1, Cause.UNSTAKED)
                yield entry(node, sign * require_number(fields.get("3"), "stake"), cause)


# --- a range of blocks ------------------------------------------------------------------------------------------


async def read_earnings(
    chain: Chain, subnet_id: int, *, first: int, last: int, progress: Callable[[int], None] = lambda block: None
) -> AsyncIterator[Entry]:
    """Entries of the blocks `first` to `last` (1 at the least, both included), in their order; `subnet_id` is a real
    id. `progress` hears up to which block all is read.

    Raises ChainError for a range that is empty, goes beyond the best block or has more than MAX_BLOCKS, and
    BlockUnavailable when the node keeps the state of one of them no more.
    """
    best = await chain.head()
    if not 1 <= first <= last <= best.number:
        raise ChainError(f"blocks {first} to {last} cannot be read: the chain has 1 to {best.number}")
    if last - first >= MAX_BLOCKS:
        raise ChainError(f"{last - first + 1} blocks are more than the {MAX_BLOCKS} of one reading: take them in parts")
    slot, length = (await chain.subnet(subnet_id, best.hash)).slot, chain.epoch_length
    known = await _snapshot(chain, subnet_id, first - 1)
    for block in _settlements(first, last, slot=slot, length=length):
        assert slot is not None  # without one there are no settlements
        before = await _snapshot(chain, subnet_id, block - 1)
        async for entry in _between(chain, known, before, slot=slot):
            yield entry
        known = await _snapshot(chain, subnet_id, block)
        epoch = EpochPosition.of(block, slot=slot, length=length).epoch - 1
        raw = await chain.storage(PALLET, "SubnetConsensusSubmission", subnet_id, epoch, at=before.block.hash)
        proposer = submission(raw).proposer_node_id if isinstance(raw, Mapping) else None
        events = await chain.events(known.block.hash)
        for entry in settlement_entries(events, before=before, after=known, epoch=epoch, proposer=proposer):
            yield entry
        progress(block)
    async for entry in _between(chain, known, await _snapshot(chain, subnet_id, last), slot=slot):
        yield entry
    progress(last)


def _settlements(first: int, last: int, *, slot: int | None, length: int) -> range:
    """Blocks in which an epoch is settled: the first of every subnet epoch after the first."""
    if slot is None:
        return range(0)
    skipped = max(-(-(first - slot) // length), 1)
    return range(slot + skipped * length, last + 1, length)


async def _between(chain: Chain, known: Snapshot, now: Snapshot, *, slot: int | None) -> AsyncIterator[Entry]:
    """What happened in the blocks after `known` up to `now`, none of which settles anything."""
    if _stakes(known) == _stakes(now):
        return
    for block in range(known.block.number + 1, now.block.number + 1):
        after = now if block == now.block.number else await _snapshot(chain, now.subnet_id, block)
        if _stakes(after) != _stakes(known):
            events = await chain.events(after.block.hash)
            epoch = EpochPosition.of(block, slot=slot or 0, length=chain.epoch_length).epoch
            for entry in settlement_entries(events, before=known, after=after, epoch=epoch, proposer=None):
                yield entry
        known = after


def _stakes(snapshot: Snapshot) -> Mapping[int, int]:
    return {node.node_id: node.stake_planck for node in snapshot.nodes}


async def _snapshot(chain: Chain, subnet_id: int, number: int) -> Snapshot:
    return await chain.snapshot(subnet_id, await block_at(chain, number))


# --- checked reading --------------------------------------------------------------------------------------------


def _pairs(fields: Mapping[str, object], name: str) -> Iterator[tuple[int, object]]:
    items = fields.get(name)
    if not isinstance(items, list | tuple):
        raise ChainError(f"the chain's SubnetRewards event has no list {name!r}")
    for item in items:
        node_id, value = _pair(item)
        yield require_number(node_id, "node id"), value


def _pair(value: object) -> tuple[object, object]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ChainError(f"the chain's event has {str(value)[:40]!r} where a pair belongs")
    return value[0], value[1]
