"""Plain tables for people: columns that line up, also in a pipe.

Cells may hold what strangers wrote (names, identities): control characters are replaced here, for every table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh.chain.checks import tensor_text
from mesh.chain.types import ONE
from mesh.rpc.frame import printable

MAX_CELL_BYTES = 2048
"""Of one cell or value: more than any text of the pallet has."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print rows under their heads, or `empty` when there are none."""
    if not rows:
        print(empty)
        return
    cells = [[printable(cell, MAX_CELL_BYTES) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def share_text(value: int) -> str:
    """A share of 1e18, such as a reputation, for people: 1 is all."""
    return f"{value / ONE:.3f}"


def facts(values: Mapping[str, object]) -> None:
    """Print named values, one a line: `stake_planck` as `stake` in TENSOR, lists over several lines, None as `-`."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        if name.endswith("_planck"):
            text = tensor_text(int(str(value)))
        elif isinstance(value, list):
            text = ("\n" + " " * (width + 2)).join(printable(str(each), MAX_CELL_BYTES) for each in value) or "-"
        else:
            text = "-" if value is None else printable(str(value), MAX_CELL_BYTES)
        print(f"{name.removesuffix('_planck').replace('_', ' '):<{width}}  {text}")
