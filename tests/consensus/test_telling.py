"""Settlements nobody reads: a subnet that reads and falls behind is warned, one that never asks is not."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mesh.consensus.telling import Teller

UNUSED: Any = None


async def told(teller: Teller, epochs: range) -> None:
    await teller.resettle(0)
    for epoch in epochs:
        settlement: Any = SimpleNamespace(evidence=SimpleNamespace(epoch=epoch))
        teller.ready(epoch, settlement)
        teller.tell()


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "never asks"])
async def test_who_falls_behind_is_warned_if_it_reads_at_all(reads: bool, caplog: pytest.LogCaptureFixture) -> None:
    send, receive = trio.open_memory_channel[Any](2)
    parts: Any = SimpleNamespace(config=SimpleNamespace(settle_back=0))
    teller = Teller(parts, UNUSED, UNUSED, send, receive)
    with send, receive, caplog.at_level(logging.INFO):
        await told(teller, range(1, 3))
        if reads:
            assert receive.receive_nowait().evidence.epoch == 1
        await told(teller, range(3, 6))
        assert [receive.receive_nowait().evidence.epoch for _ in range(2)] == [4, 5]
    warned = [record.args for record in caplog.records]
    assert warned == ([(2,), (3,)] if reads else [])
