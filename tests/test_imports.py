"""Who may import whom (mesh/README.md): pure packages stay pure, heavy libraries stay behind their one adapter."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("mesh/protobuf.py", "mesh/keystore.py", "mesh/gossip/wire.py", "mesh/gossip/rules.py", "mesh/gossip/router.py",
        "mesh/gossip/cache.py",
        "mesh/gossip/score.py", "mesh/gossip/outbox.py", "mesh/auth/request.py",
        "mesh/kad", "mesh/rpc/frame.py", "mesh/rpc/body.py", "mesh/rpc/flow.py", "mesh/rpc/standing.py",
        "mesh/rpc/adapters.py", "mesh/rpc/codec.py", "mesh/chain/types.py", "mesh/chain/codec.py",
        "mesh/net/offer.py",
        "mesh/chain/info.py", "mesh/chain/calls.py", "mesh/chain/checks.py",
        "mesh/chain/dialect.py", "mesh/chain/metadata.py", "mesh/chain/runtime.py", "mesh/consensus/round.py",
        "mesh/consensus/quorum.py", "mesh/consensus/replay.py", "mesh/consensus/refusing.py",
        "mesh/consensus/during.py", "mesh/consensus/wire.py", "mesh/consensus/storing.py", "mesh/consensus/context.py",
        "mesh/consensus/inventories.py", "mesh/consensus/judging.py", "mesh/consensus/evidence.py",
        "mesh/content/merkle.py", "mesh/content/schedule.py", "mesh/content/penalty.py",
        "mesh/devchain/runtime.py", "mesh/devchain/network_rpc.py", "mesh/devchain/pallets",
        "subnets/optimization/score.py",
        "subnets/evaluation/votes.py", "mesh/net/manager.py", "mesh/net/peerstore.py")  # fmt: skip
IMPURE = {"trio", "time", "socket", "asyncio", "threading", "torch", "libp2p", "substrateinterface"}
ONLY_IN = {
    "libp2p": ("mesh/net/",),
    "substrateinterface": (),
    "zeroconf": ("mesh/net/",),
    "torch": ("subnets/",),
    "sklearn": ("subnets/",),
    "subnets": ("subnets/",),
    "mesh.testing": ("mesh/testing/", "subnets/demo/liar.py"),
    "pickle": (),
}


LAYERS = (
    {"errors", "peer", "identity", "clock", "log", "config", "files", "ratelimit", "trace", "protobuf",
     "offload", "keystore"},
    {"kad", "rpc.frame", "rpc.body", "rpc.status", "rpc.config", "rpc.tensor", "rpc.flow", "rpc.standing",
     "rpc.adapters", "rpc.codec", "chain.types", "chain.windows",
     "gossip.wire", "gossip.rules", "gossip.router", "gossip.cache", "gossip.score", "gossip.outbox",
     "chain.codec", "chain.checked", "chain.metadata", "chain.runtime", "chain.dialect", "chain.info", "chain.calls",
     "chain.checks"},
    {"net.base", "chain.client", "auth.authorizer", "subnet"},
    {"rpc", "auth", "dht", "content", "worker", "worker_main", "chain", "consensus", "gossip", "presence"},
    {"net", "chain.substrate", "devchain"},
    {"node", "mock", "client", "metrics"},
    {"testing", "cli"},
)  # fmt: skip
"""From the bottom up; a longer name decides. Imports for type checking only are not held to it."""


def layer_of(module: str) -> int:
    """Of a name such as `mesh.kad.record.Record`."""
    name = module.removeprefix("mesh.")
    while name:
        for number, layer in enumerate(LAYERS):
            if name in layer:
                return number
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} belongs to no layer")


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


def says_pure(path: Path) -> bool:
    return re.search(r"\bPURE\b", ast.get_docstring(ast.parse(path.read_text())) or "") is not None


PURE_FILES = sorted({*sources(*PURE), *filter(says_pure, sources("mesh", "subnets"))})
"""What must be pure, and what says that it is."""


@pytest.mark.parametrize("path", PURE_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_modules_import_nothing_that_waits_or_rolls_dice(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in IMPURE}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    for path in sources("mesh", "subnets"):
        place = path.relative_to(ROOT).as_posix()
        uses = any(name == library or name.startswith(library + ".") for name in imports(path))
        assert not uses or place.startswith(ONLY_IN[library]), f"{place} imports {library}"


@pytest.mark.parametrize("path", sources("mesh"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if path.name == "__init__.py":
        module = module.rpartition(".")[0]
        if module == "mesh":
            return
    runtime = ast.parse(path.read_text())
    runtime.body = [n for n in runtime.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
    found = {n.module for n in ast.walk(runtime) if isinstance(n, ast.ImportFrom) and n.module}
    for name in sorted(name for name in found if name.startswith("mesh.")):
        assert layer_of(name) <= layer_of(module), f"{module} imports {name}, which lies above it"


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
