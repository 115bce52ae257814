"""What a person sees of the demo: phases, the epoch's clock, the champions, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mesh.chain.types import PLANCK_PER_TENSOR

if TYPE_CHECKING:
    from types import TracebackType

    from subnets.demo.books import EpochBooks
    from subnets.demo.report import NodeRow, Report


class View:
    """Live progress on stderr; silent when the output is JSON."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: list[str] = []
        self._phase = ""
        self._clock: tuple[int, int, int, int] | None = None
        self._champions: list[tuple[str, str]] = []
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def __enter__(self) -> View:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.__exit__(kind, error, tb)

    def phase(self, name: str) -> None:
        """A new phase begins; the last one is done."""
        if self._phase:
            self.say(f"[green]✓[/green] {self._phase}")
        self._phase = name

    def say(self, line: str) -> None:
        """Something worth keeping on the screen."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def clock(self, epoch: int, offset: int, length: int, block: int) -> None:
        """Where the chain stands."""
        self._clock = (epoch, offset, length, block)

    def champions(self, rows: Sequence[tuple[str, str]]) -> None:
        """(node, what it holds to be best)."""
        self._champions = list(rows)

    def _render(self) -> Group:
        parts: list[Text | Table] = [Text.from_markup(f"[bold]… {self._phase}[/bold]")]
        if self._clock is not None:
            epoch, offset, length, block = self._clock
            grid = Table.grid(padding=(0, 1))
            grid.add_row(f"epoch {epoch}", ProgressBar(total=length, completed=offset + 1, width=40), f"block {block}")
            parts.append(grid)
        if self._champions:
            grid = Table.grid(padding=(0, 2))
            for name, best in self._champions:
                grid.add_row(name, best)
            parts.append(grid)
        return Group(*parts)


def tensor(amount_planck: int, digits: int = 4) -> str:
    """Planck as TENSOR."""
    return f"{Decimal(amount_planck) / PLANCK_PER_TENSOR:,.{digits}f}"


def print_report(report: Report, console: Console) -> None:
    """The table and the books, as read back from the chain; fits 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for header in ("node", "peer id", "role"):
        table.add_column(header, no_wrap=True)
    for header in ("score", "claims", "rep.", "stake", "after", "work", "propose"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in report.nodes:
        table.add_row(*_cells(row))
    console.print(table)
    console.print(
        "(score in thousandths; claims accepted/rejected; amounts in TENSOR, read back from the chain.\n"
        " work is what a node earned by its score; propose is what the chain pays whoever is\n"
        " elected to settle an epoch, by lot, the liar included: it lies about its claims only)\n\n"
        f"model:    accuracy {report.accuracy_before:.3f} before, {report.accuracy_after:.3f} after, on "
        f"{report.judge_samples} samples no node has seen\n"
        f"          (verified gain {report.verified_gain:+.3f}, served on {report.device})\n"
        f"stranger: refused, {report.stranger_refused_because.partition(':')[0]}\n"
        f"epochs:   {report.epochs_settled} settled with rewards, {report.epochs_missed} missed; "
        f"{report.rejected_claims} claims rejected\n\n"
        "books: N = every planck anywhere, summed from storage; minted and burned by cause",
        highlight=False,
        soft_wrap=True,
    )
    for epoch in report.books:
        console.print(_books(epoch), highlight=False, soft_wrap=True)


def _cells(row: NodeRow) -> tuple[str, ...]:
    return (
        row.name,
        row.peer_id[-6:],
        row.role,
        str(row.score // 10**15),
        f"{row.claims_accepted}/{row.claims_rejected}",
        f"{Decimal(row.reputation) / PLANCK_PER_TENSOR:.2f}",
        tensor(row.stake_before, 1),
        tensor(row.stake_after),
        tensor(row.reward_work),
        tensor(row.reward_proposer),
    )


def _books(books: EpochBooks) -> str:
    def exact(amount: int) -> str:
        return f"{Decimal(amount) / PLANCK_PER_TENSOR:,.18f}"

    lines = [f"  epoch {books.epoch:<3} N {exact(books.before):>39}"]
    lines += [f"    + {cause:<20} {exact(amount):>26}" for cause, amount in sorted(books.minted.items())]
    lines += [f"    - {cause:<20} {exact(amount):>26}" for cause, amount in sorted(books.burned.items())]
    verdict = "balanced" if books.conserved else "NOT BALANCED"
    return "\n".join([*lines, f"    = N {exact(books.after):>45}  {verdict}"])
