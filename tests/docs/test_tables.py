"""The tables of limits in docs/ are those of the code. `python tests/docs/test_tables.py` writes them anew.

Between `<!-- table: X -->` and `<!-- end -->` is a table of the config model X, or of what `@method` declares: name,
default, and what the code says about it.
"""

import ast
import dataclasses
import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from mesh.errors import NotAuthorized
from mesh.rpc.codec import Codec, TensorHeader
from mesh.rpc.servicer import MethodLimits

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
MODELS = {
    "RpcConfig": "mesh.rpc.config",
    "ReplyCacheConfig": "mesh.rpc.config",
    "StandingConfig": "mesh.rpc.standing",
    "MembershipConfig": "mesh.auth.membership",
    "DataConfig": "mesh.net.data",
}
TABLE = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
METHOD = {
    "least": "least class of a caller",
    "server": "least class of a peer that it is called at",
    "timeout_s": "when it is cancelled, the whole of a stream included",
    "max_request_bytes": "one request message",
    "max_response_bytes": "one answer message",
    "max_concurrent": "calls worked on at once; further ones are `busy`",
    "max_concurrent_per_peer": "of these, of one caller; half of `max_concurrent`, unless given",
    "repeat": "whether it may be sent again",
}


def in_words(name: str, value: object) -> str:
    """A default as people write it."""
    if isinstance(value, enum.Enum):
        return f"`{type(value).__name__}.{value.name}`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and "bytes" in name:
        for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value % size == 0 and value:
                return f"{value // size} {unit}"
    if isinstance(value, (int, float)):
        unit = " s" if name.endswith("_s") and "per_s" not in name else ""
        return f"{value:,.10g}{unit}"
    return f"`{value}`"


def said_of(model: type[BaseModel]) -> dict[str, str]:
    """What a model says of its fields: their descriptions, or the first sentence of the strings below them."""
    found = {name: field.description or "" for name, field in model.model_fields.items()}
    (tree,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            text = ast.literal_eval(after.value)
            text = " ".join(text.split()).removesuffix(".")
            found[node.target.id] = text[0].lower() + text[1:]
    assert all(found[name] for name, field in model.model_fields.items() if not isinstance(field.default, BaseModel))
    return found


def rows(name: str) -> Iterator[tuple[str, str, str]]:
    if name == "method":
        for limit in dataclasses.fields(MethodLimits):
            yield limit.name, in_words(limit.name, limit.default), METHOD[limit.name]
        return
    model: type[BaseModel] = getattr(importlib.import_module(MODELS[name]), name)
    said = said_of(model)
    for key, field in model.model_fields.items():
        if not isinstance(field.default, BaseModel):
            yield key, in_words(key, field.default), said[key]


def table(name: str) -> str:
    first = "`@method(...)`" if name == "method" else f"`{name}`"
    lines = [f"| {first} | default | what |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {default} | {what} |" for key, default, what in rows(name)]
    return "\n".join(lines) + "\n"


def rendered(text: str) -> str:
    return TABLE.sub(lambda found: f"<!-- table: {found[1]} -->\n{table(found[1])}<!-- end -->", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_limits_are_those_of_the_code(page: Path) -> None:
    assert page.read_text() == rendered(page.read_text()), "run python tests/docs/test_tables.py"


def test_all_models_have_their_table() -> None:
    names = {found[1] for page in PAGES for found in TABLE.finditer(page.read_text())}
    assert names == {"method", *MODELS}


def test_all_reasons_of_a_refusal_are_told() -> None:
    told = (ROOT / "docs" / "who-may-call-me.md").read_text()
    documented = set(re.findall(r"``([a-z-]+)``", NotAuthorized.__doc__ or ""))
    raised = set()
    for path in (ROOT / "mesh" / "auth").glob("*.py"):
        raised |= set(re.findall(r'NotAuthorized\(\s*"([a-z-]+)"', path.read_text()))
    assert len(raised) > 10
    for reason in documented | raised:
        assert f"`{reason}`" in told, reason


def test_the_codecs_are_those_that_were_measured() -> None:
    told = (ROOT / "docs" / "move-tensors.md").read_text()
    measured = (ROOT / "benchmarks" / "README.md").read_text()
    for codec in Codec:
        row = re.search(rf"^\| `{codec.name}` \| ([^|]+) \| [^|]+ \| ([^|]+) \|", told, re.MULTILINE)
        figures = re.search(rf"^\| {codec.value}[^|]* \| [^|]+ \| ([^| ]+) \| ([^| ]+) \|", measured, re.MULTILINE)
        assert row is not None
        assert figures is not None
        assert row[2] == f"{figures[1]} / {figures[2]}"
        size = TensorHeader(dtype="float32", shape=(6400,), codec=codec).encoded_bytes()
        if codec not in (Codec.RAW, Codec.ZSTD):
            assert size == float(row[1]) * 6400


def test_what_the_data_connection_saves_was_measured() -> None:
    told = (ROOT / "docs" / "move-tensors.md").read_text()
    measured = (ROOT / "benchmarks" / "README.md").read_text()
    costs = re.search(r"64 MiB costs ([0-9.]+) CPU-ms per MB on it and ([0-9.]+) on the libp2p stream", told)
    assert costs is not None
    for peer, cost in zip(("mesh", "mesh-libp2p"), costs.groups(), strict=True):
        assert re.search(rf"^\| stream_64MiB \| {peer} \|[^\n]*\| {cost} \(", measured, re.MULTILINE)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
