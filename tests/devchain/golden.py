"""Recorded data of the real runtime, read in place; tests that need it are skipped where it is absent."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "golden"

needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason="no recorded chain data beside this checkout")


def metadata_bytes() -> bytes:
    """The real runtime's V14 metadata."""
    return bytes.fromhex((FOLDER / "hypertensor_v14.hex").read_text().strip()[2:])


@lru_cache
def calls() -> tuple[dict[str, Any], ...]:
    """Every recorded extrinsic."""
    if not FOLDER.is_dir():
        return ()
    found: list[dict[str, Any]] = []
    for name in ("golden_registration", "golden_epoch"):
        found += json.loads((FOLDER / f"{name}.json").read_text())
    return tuple(each for each in found if isinstance(each, dict) and "extrinsic" in each)


def end_state() -> dict[bytes, bytes]:
    """Raw storage after the recorded epoch."""
    recorded = json.loads((FOLDER / "golden_state_end.json").read_text())["storage"]
    return {bytes.fromhex(key[2:]): bytes.fromhex(value[2:]) for key, value in recorded.items()}


@lru_cache
def foreign_registry() -> tuple[Any, Any]:
    """(scalecodec's configuration, decoded metadata) of the real runtime."""
    return decode_foreign(metadata_bytes())


def decode_foreign(raw: bytes) -> tuple[Any, Any]:
    """Let scalecodec, written by others, decode metadata."""
    from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
    from scalecodec.type_registry import load_type_registry_preset

    config = RuntimeConfigurationObject()
    config.update_type_registry(load_type_registry_preset("core"))
    decoded = config.create_scale_object("MetadataVersioned", ScaleBytes(raw))
    decoded.decode()
    config.add_portable_registry(decoded)
    return config, decoded
