"""Recorded data of the real runtime, read in place."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from mesh.chain.metadata import Metadata, parse

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"


def golden(name: str) -> str:
    """A recorded file's text; the test is skipped where the recordings are not beside the repository."""
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"no recorded chain data at {path}")
    return path.read_text()


@pytest.fixture(scope="session")
def metadata_bytes() -> bytes:
    return bytes.fromhex(golden("hypertensor_v14.hex").strip().removeprefix("0x"))


@pytest.fixture(scope="session")
def metadata(metadata_bytes: bytes) -> Metadata:
    return parse(metadata_bytes)


@pytest.fixture(scope="session")
def recorded() -> list[dict[str, Any]]:
    """Every recorded extrinsic: call, params (evaluated), call_hex, extrinsic, block, fee, events_hex."""
    entries = json.loads(golden("golden_epoch.json"))
    return [{**entry, "params": ast.literal_eval(entry["params"])} for entry in entries]


@pytest.fixture(scope="session")
def state_end() -> dict[str, Any]:
    """Block number, hash and raw storage after the recorded epoch."""
    loaded: dict[str, Any] = json.loads(golden("golden_state_end.json"))
    return loaded


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path
