"""A hostile or broken chain node, and what it cannot make the client do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from mesh.chain.metadata import Metadata
from mesh.devchain.node import DevChainConfig, run_chain
from mesh.errors import CallRefused
from tests.chain.nodes import FUND, OWN, REMARK, client


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


def relabelled(metadata: Metadata) -> Metadata:
    """Metadata by which the bytes of System.remark are those of another call with the same arguments."""
    system = metadata.pallets["System"]
    calls = dict(system.calls)
    calls["remark"], calls["remark_with_event"] = (
        replace(calls["remark"], index=calls["remark_with_event"].index),
        replace(calls["remark_with_event"], index=calls["remark"].index),
    )
    changed = replace(system, calls=calls)
    return replace(
        metadata,
        pallets={**metadata.pallets, "System": changed},
        by_index={**metadata.by_index, system.index: changed},
    )


async def test_what_was_shown_is_signed_or_nothing_when_the_metadata_changes_in_between(tmp_path: Path) -> None:
    """A runtime upgrade, or the next URL's node, between a person's yes and the signature."""
    async with trio.open_nursery() as nursery:
        url = await nursery.start(run_chain, DevChainConfig(fund=FUND, block_time_s=0.05))
        chain = client(tmp_path, url)
        await nursery.start(chain.run)
        shown = await chain.preview("System.remark", REMARK, OWN)
        assert (shown.call, shown.args) == ("System.remark", REMARK)
        here = chain._connection.here()
        honest, here.metadata = here.metadata, relabelled(here.metadata)
        with pytest.raises(CallRefused, match="nothing was signed"):
            await chain.submit_shown(shown, OWN)
        assert not list((tmp_path / "journal").glob("*.jsonl"))
        here.metadata = honest
        await chain.submit_shown(shown, OWN)
        nursery.cancel_scope.cancel()
