"""What tests read in the guides: commands, and the output shown below each (`...` stands for anything)."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
ROLES = ("own-a-subnet", "run-a-node", "stake-and-delegate", "watch-over-subnets")
"""Guides for people on the chain, in the order in which one chain can live through them."""
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)


def is_like(shown: str, real: str) -> bool:
    """Whether real output is what is shown, where `...` is anything, over several lines when it has its own."""
    parts = [re.escape(part) for part in shown.strip().split("...")]
    return re.fullmatch(".*".join(parts), real.strip(), re.DOTALL) is not None


def commands_of(page: Path) -> list[tuple[str, str]]:
    """Commands with the output shown below each."""
    found: list[tuple[str, str]] = []
    for block in CONSOLE.findall(page.read_text()):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found
