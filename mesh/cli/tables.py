"""Plain tables for people: columns that line up, also in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh.chain.checks import tensor_text
from mesh.chain.types import ONE


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print rows under their heads, or `empty` when there are none."""
    if not rows:
        print(empty)
        return
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
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
            text = ("\n" + " " * (width + 2)).join(map(str, value)) or "-"
        else:
            text = "-" if value is None else str(value)
        print(f"{name.removesuffix('_planck').replace('_', ' '):<{width}}  {text}")
