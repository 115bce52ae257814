"""Who may import whom (mesh/README.md): pure packages stay pure, heavy libraries stay behind their one adapter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("mesh/kad", "mesh/rpc/frame.py", "mesh/chain/types.py", "mesh/consensus/round.py", "mesh/consensus/quorum.py",
        "mesh/consensus/windows.py", "subnets/optimization/score.py", "subnets/evaluation/votes.py")  # fmt: skip
IMPURE = {"trio", "time", "socket", "asyncio", "threading", "torch", "libp2p", "substrateinterface"}
ONLY_IN = {
    "libp2p": ("mesh/net/",),
    "substrateinterface": ("mesh/chain/",),
    "torch": ("subnets/",),
    "sklearn": ("subnets/",),
    "subnets": ("subnets/", "mesh/none"),
    "mesh.testing": ("mesh/testing/",),
    "pickle": (),
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def sources(*places: str) -> list[Path]:
    return [p for place in places for p in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(*PURE), ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_modules_import_nothing_that_waits_or_rolls_dice(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in IMPURE}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    for path in sources("mesh", "subnets"):
        place = path.relative_to(ROOT).as_posix()
        uses = any(name == library or name.startswith(library + ".") for name in imports(path))
        assert not uses or place.startswith(ONLY_IN[library]), f"{place} imports {library}"


def test_help_and_keygen_load_neither_torch_nor_libp2p(tmp_path: Path) -> None:
    program = (
        "import sys; from mesh.cli.app import build; from mesh.cli.keys import keygen; from pathlib import Path;"
        f"build(); keygen(keys_dir=Path({str(tmp_path)!r}));"
        "print([m for m in ('torch', 'libp2p', 'substrateinterface', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_float_in_a_score() -> None:
    for path in sources("subnets"):
        if path.name != "score.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), path
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)), path
