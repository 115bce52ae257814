"""`mesh chain status|epoch|rewards|events|validators`: looking at the chain. Nothing here signs."""

from __future__ import annotations

import csv as csvlib
import datetime
import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mesh.chain.checks import tensor_text
from mesh.chain.types import ONE
from mesh.cli.acting import one_line, plain
from mesh.cli.common import ChainOptions, open_chain, read_chain, run_until_signalled
from mesh.cli.epoch_text import epoch_lines, epoch_values
from mesh.cli.tables import share_text, table
from mesh.clock import SystemClock
from mesh.errors import ConfigError
from mesh.identity import checksum_address
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.chain.client import Chain
    from mesh.chain.earnings import Entry
    from mesh.chain.reading import EpochView, Overview
    from mesh.chain.substrate import SubstrateChain

MAX_EVENT_BLOCKS: Final = 10_000
"""Blocks whose events one command reads, one request each."""
BAR_FROM_BLOCKS: Final = 400
"""From here on a bar shows how far the reading is."""
CSV_HEAD: Final = ("block", "epoch", "subnet", "node", "planck", "cause")


def status(*, json: bool = False, chain: ChainOptions | None = None) -> None:
    """Say which chain this is, how far it is, and what runs on it.

    Args:
        json: Print one JSON object.
    """
    from mesh.chain.reading import read_overview

    async def read(client: SubstrateChain) -> tuple[Overview, dict[str, str | None]]:
        here = {
            "url": client.url,
            "chain_type": client.chain_type or None,
            "dialect": client.dialect.name,
            "genesis": "0x" + client.genesis.hex(),
        }
        return await read_overview(client), here

    seen, here = read_chain(chain, read)
    if json:
        print(jsonlib.dumps({**here, **_overview_values(seen)}))
        return
    age_s = SystemClock().now() - seen.timestamp_ms / 1000
    states = ", ".join(f"{count} {state.name.lower()}" for state, count in seen.subnets.items()) or "none"
    offset = seen.best.number % seen.epoch_length
    for name, value in (
        ("chain", f"{here['url']} ({here['chain_type'] or 'says no type'}), pallet of {here['dialect']}"),
        ("genesis", str(here["genesis"])),
        ("best block", f"{seen.best.number} 0x{seen.best.hash.hex()}, {_ago(age_s)}"),
        ("finalized", f"{seen.finalized.number}"),
        ("epoch", f"{seen.epoch} of the network, block {offset + 1} of {seen.epoch_length}"),
        ("subnets", states),
        ("nodes", f"{seen.active_nodes} active"),
        ("staked", tensor_text(seen.stake_planck)),
        ("delegated", f"{tensor_text(seen.delegate_stake_planck)} to subnets"),
    ):
        print(f"{name:<11} {printable(value, 300)}")
    if seen.is_paused:
        print("the network is paused: it takes no calls")


def _overview_values(seen: Overview) -> dict[str, object]:
    return {
        "best": {"number": seen.best.number, "hash": "0x" + seen.best.hash.hex()},
        "finalized": {"number": seen.finalized.number, "hash": "0x" + seen.finalized.hash.hex()},
        "timestamp_ms": seen.timestamp_ms,
        "epoch": seen.epoch,
        "epoch_length": seen.epoch_length,
        "subnets": {state.name.lower(): count for state, count in seen.subnets.items()},
        "active_nodes": seen.active_nodes,
        "stake_planck": str(seen.stake_planck),
        "delegate_stake_planck": str(seen.delegate_stake_planck),
        "paused": seen.is_paused,
    }


def epoch(
    *,
    subnet_id: int,
    epoch: int | None = None,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Say how an epoch of a subnet stands: who is elected, what is proposed, who attested.

    Args:
        subnet_id: Friendly or real id.
        epoch: Which epoch of the subnet; default is the current one.
        json: Print one JSON object.
    """
    view = _epoch_of(chain, subnet_id, epoch)
    if json:
        print(jsonlib.dumps(epoch_values(view)))
        return
    for name, value in epoch_lines(view):
        print(f"{name:<11} {printable(value, 2000)}")


def validators(
    *,
    subnet_id: int,
    epoch: int | None = None,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """List the validators of a subnet's epoch: stake, reputation, and whether each attested.

    Args:
        subnet_id: Friendly or real id.
        epoch: Which epoch of the subnet; default is the current one.
        json: Print one JSON array.
    """
    view = _epoch_of(chain, subnet_id, epoch)
    if json:
        print(jsonlib.dumps([_validator_values(view, node_id) for node_id in view.electable]))
        return
    table(
        ("node", "stake", "reputation", "elected", "attested", "peer id"),
        [_validator_row(view, node_id) for node_id in view.electable],
        empty=f"subnet {subnet_id} has no validators in epoch {view.epoch}",
    )


def _epoch_of(chain: ChainOptions | None, subnet_id: int, epoch: int | None) -> EpochView:
    from mesh.chain.reading import read_epoch

    async def read(client: Chain) -> EpochView:
        return await read_epoch(client, await client.resolve_subnet_id(subnet_id), epoch=epoch)

    return read_chain(chain, read)


def _validator_values(view: EpochView, node_id: int) -> dict[str, object]:
    node = view.node(node_id)  # None: it has left since it was counted
    return {
        "node_id": node_id,
        "peer_id": None if node is None else str(node.peer_id),
        "hotkey": None if node is None else checksum_address(node.hotkey),
        "stake_planck": None if node is None else str(node.stake_planck),
        "reputation": None if node is None else node.reputation / ONE,
        "elected": node_id == view.elected,
        "attested": node_id in view.attested,
    }


def _validator_row(view: EpochView, node_id: int) -> tuple[str, ...]:
    node = view.node(node_id)
    return (
        str(node_id),
        "left" if node is None else tensor_text(node.stake_planck),
        "" if node is None else share_text(node.reputation),
        "elected" if node_id == view.elected else "",
        "yes" if node_id in view.attested else "no" if view.proposal is not None else "",
        "" if node is None else str(node.peer_id),
    )


def events(
    *,
    from_block: int | None = None,
    to_block: int | None = None,
    blocks: int = 1,
    pallet: str | None = None,
    name: str | None = None,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Print the events of blocks, oldest first.

    Args:
        from_block: First block; default is as many as --blocks says before the last.
        to_block: Last block; default is the best one.
        blocks: How many, when --from-block is not given.
        pallet: Only of this pallet, such as Network.
        name: Only events of this name, such as SubnetRewards.
        json: Print one JSON object per line and event.
    """
    from mesh.chain.reading import block_at

    async def run() -> None:
        found = 0
        async with open_chain(chain or ChainOptions()) as client:
            first, last = await _range(client, from_block, to_block, blocks=blocks, most=MAX_EVENT_BLOCKS)
            with _bar("events", first, last, shown=not sys.stdout.isatty()) as progress:
                for number in range(first, last + 1):
                    block = await block_at(client, number)
                    for event in await client.events(block.hash):
                        if pallet not in (None, event.pallet) or name not in (None, event.name):
                            continue
                        found += 1
                        if json:
                            said = {"block": number, "pallet": event.pallet, "event": event.name}
                            print(jsonlib.dumps({**said, "fields": plain(event.fields)}))
                        else:
                            fields = " ".join(f"{key}={one_line(value)}" for key, value in event.fields.items())
                            print(f"{number:>9}  {printable(f'{event.pallet}.{event.name}  {fields}', 2000)}")
                    progress(number)
        if not found:
            which = ".".join(part for part in (pallet, name) if part) or "at all"
            print(f"no events {which} in blocks {first} to {last}", file=sys.stderr)

    run_until_signalled(run)


def rewards(
    *,
    subnet_id: int,
    from_block: int | None = None,
    to_block: int | None = None,
    epochs: int = 10,
    node_id: int | None = None,
    csv: bool = False,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """List what each node of a subnet earned and lost, epoch by epoch, and why.

    Args:
        subnet_id: Friendly or real id.
        from_block: First block; default is as many epochs back as --epochs says.
        to_block: Last block; default is the best one.
        epochs: How many epochs, when --from-block is not given.
        node_id: Only this node.
        csv: Print comma-separated values: block, epoch, subnet, node, planck, cause.
        json: Print one JSON object per line and amount.
    """
    from mesh.chain.earnings import MAX_BLOCKS, read_earnings

    if csv and json:
        raise ConfigError("--csv and --json are two forms: choose one")

    async def run() -> None:
        totals: dict[tuple[int | None, str], int] = {}
        async with open_chain(chain or ChainOptions()) as client:
            real = await client.resolve_subnet_id(subnet_id)
            first, last = await _range(
                client, from_block, to_block, blocks=epochs * client.epoch_length, most=MAX_BLOCKS
            )
            if csv:
                csvlib.writer(sys.stdout, lineterminator="\n").writerow(CSV_HEAD)
            with _bar("rewards", first, last, shown=not sys.stdout.isatty()) as progress:
                async for entry in read_earnings(client, real, first=first, last=last, progress=progress):
                    if node_id is None or entry.node_id == node_id:
                        _print_entry(entry, csv=csv, json=json)
                        key = (entry.node_id, entry.cause.value)
                        totals[key] = totals.get(key, 0) + entry.planck
        if csv or json:
            return
        if not totals:
            print(f"nothing was earned or lost in blocks {first} to {last}")
        for (node, cause), amount in sorted(totals.items(), key=lambda item: (item[0][0] is None, item[0])):
            print(f"in all  {_who(node):<10} {cause:<17} {tensor_text(amount)}")

    run_until_signalled(run)


def _print_entry(entry: Entry, *, csv: bool, json: bool) -> None:
    row = (entry.block, entry.epoch, entry.subnet_id, entry.node_id, entry.planck, entry.cause.value)
    if csv:
        csvlib.writer(sys.stdout, lineterminator="\n").writerow(row)
    elif json:
        print(jsonlib.dumps(dict(zip(CSV_HEAD, row, strict=True)) | {"planck": str(entry.planck)}))
    else:
        who = _who(entry.node_id)
        print(f"block {entry.block:<8} epoch {entry.epoch:<6} {who:<10} {entry.cause:<17} {tensor_text(entry.planck)}")


def _who(node_id: int | None) -> str:
    return "the subnet" if node_id is None else f"node {node_id}"


async def _range(client: Chain, first: int | None, last: int | None, *, blocks: int, most: int) -> tuple[int, int]:
    """The blocks that are meant, within the chain. Raises ConfigError."""
    if first is None and blocks < 1:
        raise ConfigError("nothing to read: --epochs and --blocks take 1 or more")
    best = (await client.head()).number
    end = best if last is None else last
    start = max(end - blocks + 1, 1) if first is None else first
    if start > end:
        raise ConfigError(f"--from-block {start} is after --to-block {end}: turn them around")
    if not 1 <= start <= end <= best:
        raise ConfigError(f"--from-block {start} --to-block {end}: the chain has blocks 1 to {best}")
    if end - start >= most:
        raise ConfigError(f"{end - start + 1} blocks are more than the {most} read at once: take them in parts")
    return start, end


@contextmanager
def _bar(what: str, first: int, last: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr for a long range; nothing where it would mix with the output, or without a terminal."""
    if last - first < BAR_FROM_BLOCKS or not shown or not sys.stderr.isatty():
        yield lambda number: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=last - first + 1)
        yield lambda number: progress.update(task, completed=number - first + 1)


def _ago(seconds: float) -> str:
    if abs(seconds) > 86_400:
        return f"{datetime.timedelta(seconds=int(seconds))} ago"
    return f"{seconds:.1f} s ago" if seconds > -1 else f"{-seconds:.1f} s ahead of this machine's clock"
