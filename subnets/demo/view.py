"""What a person sees of the demo: phases, the epoch's clock, the champions, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

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
        self._console.print(line, highlight=False)

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
    """The table and the books, as read back from the chain."""
    table = Table(title="Read back from the chain", title_justify="left")
    for header in ("node", "peer id", "role", "score", "claims ok/bad", "reputation"):
        table.add_column(header)
    for header in ("stake before", "stake after", "reward work", "reward proposer"):
        table.add_column(header, justify="right")
    for row in report.nodes:
        table.add_row(*_cells(row))
    console.print(table)
    console.print(
        f"model on {report.judge_samples} samples no node has seen: accuracy {report.accuracy_before:.3f} before, "
        f"{report.accuracy_after:.3f} after (verified gain {report.verified_gain:+.3f}, served on {report.device})"
    )
    console.print(f"a stranger without stake was refused: {report.stranger_refused_because}")
    console.print(
        f"epochs settled with rewards {report.epochs_settled}, missed {report.epochs_missed}, "
        f"claims rejected {report.rejected_claims}"
    )
    books = Table(title="Books: every planck anywhere", title_justify="left")
    for header in ("epoch", "N before", "minted", "burned", "N after", ""):
        books.add_column(header, justify="right" if header else "left")
    for epoch in report.books:
        books.add_row(*_book_cells(epoch))
    console.print(books)


def _cells(row: NodeRow) -> tuple[str, ...]:
    return (
        row.name,
        f"…{row.peer_id[-8:]}",
        row.role,
        str(row.score),
        f"{row.claims_accepted}/{row.claims_rejected}",
        f"{Decimal(row.reputation) / PLANCK_PER_TENSOR:.3f}",
        tensor(row.stake_before),
        tensor(row.stake_after),
        tensor(row.reward_work),
        tensor(row.reward_proposer),
    )


def _book_cells(books: EpochBooks) -> tuple[str, ...]:
    def causes(amounts: object) -> str:
        assert isinstance(amounts, dict)
        return "\n".join(f"{cause} {tensor(amount, 6)}" for cause, amount in sorted(amounts.items())) or "-"

    return (
        str(books.epoch),
        tensor(books.before, 6),
        causes(dict(books.minted)),
        causes(dict(books.burned)),
        tensor(books.after, 6),
        "balanced" if books.conserved else "NOT BALANCED",
    )
