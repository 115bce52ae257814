"""A hostile or broken chain node, and what it cannot make the client do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from mesh.chain.link import Link, parse_message
from mesh.chain.metadata import Metadata
from mesh.chain.session import Disconnected
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


async def listen(nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]) -> str:
    """A TCP server on loopback, as a ws:// URL."""

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await handler(stream)

    listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
    return f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


async def test_a_handshake_that_is_drawn_out_for_ever_does_not_hold_up_the_next_url(tmp_path: Path) -> None:
    """Each byte comes in time, the last one never."""

    async def drip(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"H")
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        slow = await listen(nursery, drip)
        honest = await nursery.start(run_chain, DevChainConfig(fund=FUND))
        chain = client(tmp_path, slow, honest, call_timeout_s=0.4)
        with trio.fail_after(20):
            await nursery.start(chain.run)
        assert chain.url == honest
        nursery.cancel_scope.cancel()


async def test_a_redirection_is_not_followed(tmp_path: Path) -> None:
    """It would lead to a node nobody named, and from wss:// to ws://."""
    async with trio.open_nursery() as nursery:
        elsewhere = await nursery.start(run_chain, DevChainConfig(fund=FUND))

        async def redirect(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}/\r\n\r\n".encode())

        url = await listen(nursery, redirect)
        link = Link(url, timeout_s=5, max_bytes=1 << 20)
        with pytest.raises(Disconnected):
            await trio.to_thread.run_sync(link.connect)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param('{"result": [' + "[]," * 70_000 + "0]}", id="lists"),
        pytest.param('{"result": [' + "{}," * 70_000 + "0]}", id="objects"),
        pytest.param('{"result": [' + "0," * 1_100_000 + "0]}", id="numbers"),
        pytest.param('{"result": ' + "9" * 4000 + "}", id="digits"),
        pytest.param('{"result": 0.' + "9" * 4000 + "}", id="decimals"),
        pytest.param("[" * 60_000, id="depth"),
        pytest.param(b'\xff\xfe{\x00"\x00"\x00:\x001\x00}\x00', id="encoding"),
    ],
)
def test_an_answer_that_would_keep_the_parser_busy_is_refused(bomb: str | bytes) -> None:
    """While json parses nothing else runs, the event loop beside it included: 16 MiB of `[],` take 1.5 s."""
    with pytest.raises((ValueError, RecursionError)):
        parse_message(bomb)


def test_what_honest_nodes_answer_is_parsed() -> None:
    """256 nodes as `network_*` tells them, metadata, a page of storage."""
    for result in ([7] * 256 * 1024, "0x" + "ab" * 500_000, [{"changes": [["0x00", None]] * 256}], 2**256 - 1, 0.5):
        assert parse_message(json.dumps({"id": 1, "result": result}))["result"] == result
