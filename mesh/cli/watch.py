"""`mesh epoch watch`: a subnet's epochs as they go. Nothing here signs."""

from __future__ import annotations

import json as jsonlib
import logging
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mesh.chain.checks import tensor_text
from mesh.cli.common import ChainOptions, Ends, open_chain, run_until_signalled
from mesh.cli.epoch_text import attested_text, elected_text, epoch_values, proposal_text
from mesh.errors import ChainUnavailable, ConfigError
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mesh.chain.client import Chain
    from mesh.chain.reading import EpochView
    from mesh.chain.types import BlockRef

log = logging.getLogger(__name__)

MAX_GAP_BLOCKS: Final = 64
"""Blocks that came while we were away and are still shown one by one."""
BAR_WIDTH: Final = 40


def watch(
    *,
    subnet_id: int,
    blocks: int | None = None,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Follow a subnet's epochs block by block until Ctrl-C: who is elected, what is proposed, who attests.

    On a terminal one picture changes in place; elsewhere every block is one line.

    Args:
        subnet_id: Friendly or real id.
        blocks: End after so many blocks.
        json: Print one JSON object per line and block.
    """
    from rich.console import Console
    from rich.live import Live

    if blocks is not None and blocks < 1:
        raise ConfigError(f"--blocks {blocks}: at least 1")
    console = Console()
    in_place = console.is_terminal and not json

    async def run() -> None:
        left = blocks
        async with open_chain(chain or ChainOptions()) as client:
            real = await client.resolve_subnet_id(subnet_id)
            with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
                async for seen in _follow(client, real):
                    if live is not None:
                        live.update(picture(seen), refresh=True)
                    else:
                        print(jsonlib.dumps(_values(seen)) if json else block_line(seen), flush=True)
                    if left is not None:
                        left -= 1
                        if not left:
                            return

    run_until_signalled(run, ends=Ends.WHEN_TOLD if blocks is None else Ends.WHEN_DONE)


@dataclass(frozen=True, slots=True)
class Seen:
    """An epoch at a block, and what the one before it paid by work (None: nothing was agreed on)."""

    view: EpochView
    paid: dict[int, int] | None


async def _follow(chain: Chain, subnet_id: int) -> AsyncIterator[Seen]:
    """The epoch at each new block, those that came between two heads included."""
    from mesh.chain.reading import read_epoch

    last: int | None = None
    paid: tuple[int, dict[int, int] | None] = (-1, None)
    async for head in chain.heads():
        try:
            views = [await read_epoch(chain, subnet_id, at=block) async for block in _since(chain, last, head)]
            for view in views:
                if view.epoch != paid[0]:
                    paid = (view.epoch, await _paid(chain, view))
                yield Seen(view, paid[1])
                last = view.block.number
        except ChainUnavailable as error:
            log.warning("block %d: %s", head.number, error)  # shown with the next head, if it is not too far


async def _paid(chain: Chain, view: EpochView) -> dict[int, int] | None:
    """What the epoch before the view's paid by work, as its first block says."""
    from mesh.chain.earnings import paid_by_work
    from mesh.chain.types import first_block

    slot = view.subnet.slot
    opening = None if slot is None else first_block(view.epoch, slot=slot, length=view.position.length)
    if opening is None or opening > view.block.number:
        return None
    return paid_by_work(await chain.events(await chain.block_hash(opening)), view.subnet.subnet_id)


async def _since(chain: Chain, last: int | None, head: BlockRef) -> AsyncIterator[BlockRef]:
    from mesh.chain.reading import block_at

    if last is not None:
        for number in range(max(last + 1, head.number - MAX_GAP_BLOCKS), head.number):
            yield await block_at(chain, number)
    yield head


def _values(seen: Seen) -> dict[str, object]:
    paid = None if seen.paid is None else {str(node): str(planck) for node, planck in seen.paid.items()}
    return {**epoch_values(seen.view), "paid_before": paid}


def block_line(seen: Seen) -> str:
    """A block in one line."""
    view = seen.view
    parts = [
        f"block {view.block.number}",
        f"epoch {view.epoch}, {view.position.offset + 1} of {view.position.length}",
        f"elected {'nobody' if view.elected is None else f'node {view.elected}'}",
        f"proposal {proposal_text(view)}",
    ]
    if view.proposal is not None:
        parts.append(f"attested by {attested_text(view)}")
    if view.open_windows():
        parts.append(f"open: {', '.join(view.open_windows())}")
    return "; ".join(parts)


def picture(seen: Seen) -> RenderableType:
    """A block as a picture for a terminal."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    view = seen.view
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()

    def row(name: str, value: RenderableType) -> None:
        grid.add_row(name, Text(value) if isinstance(value, str) else value)

    info = view.subnet
    row("subnet", f"{info.subnet_id} ({printable(info.name, 64)}), {info.state.name.lower()}")
    row("block", f"{view.block.number} 0x{view.block.hash.hex()[:16]}…")
    row("epoch", f"{view.epoch}, block {view.position.offset + 1} of {view.position.length}")
    row("", ProgressBar(total=view.position.length, completed=view.position.offset + 1, width=BAR_WIDTH))
    row("open", ", ".join(view.open_windows()) or "nothing")
    if view.windows is not None:
        row("calendar", _calendar(view))
    row("elected", elected_text(view))
    row("proposal", proposal_text(view))
    if view.proposal is not None:
        row("attested", attested_text(view))
        row("", ProgressBar(total=max(len(view.electable), 1), completed=len(view.attested), width=BAR_WIDTH))
        row("", ", ".join(f"{node}{'' if node in view.attested else ' not yet'}" for node in view.electable))
    if view.epoch > 0:
        row("paid", _paid_text(seen))
    return Group(grid)


def _calendar(view: EpochView) -> str:
    windows = view.windows
    assert windows is not None
    spans = (
        ("claim commits", windows.claim_commit.first, windows.claim_commit.last),
        ("draw", windows.draw, windows.draw),
        ("reveals", windows.reveal.first, windows.reveal.last),
        ("vote commits", windows.vote_commit.first, windows.vote_commit.last),
        ("vote reveals", windows.vote_reveal.first, windows.vote_reveal.last),
        ("inventory", windows.inventory, windows.length - 1),
        ("propose", 0, windows.propose_by),
        ("attest", 0, windows.attest_by),
    )  # blocks counted from 1, as above
    return "\n".join(
        f"{name:<14} {first + 1}" + (f" to {last + 1}" if last > first else "") for name, first, last in spans
    )


def _paid_text(seen: Seen) -> str:
    before = f"epoch {seen.view.epoch - 1}"
    if seen.paid is None:
        return f"{before}: nobody earned by work"
    return f"{before}: {tensor_text(sum(seen.paid.values()))} to {len(seen.paid)} nodes"
