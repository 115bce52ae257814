"""A hostile or broken chain node, and what it cannot make the client do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from mesh.chain.codec import Field, Kind, TypeDef, compact, decode_all
from mesh.chain.journal import Delivery, Entry, Fate, Journal, started
from mesh.chain.link import Link, parse_message
from mesh.chain.metadata import Metadata
from mesh.chain.runtime import Version
from mesh.chain.session import Changes, Disconnected, read_metadata
from mesh.devchain.node import DevChain, DevChainConfig, run_chain
from mesh.errors import CallRefused, ChainError, WrongChain
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


def test_a_node_that_tells_other_metadata_of_the_same_version_is_not_used(
    tmp_path: Path,
) -> None:
    """The user's node was taken over since, or it is the next URL's: `stake` would be shown and another call signed."""
    cache = tmp_path / "metadata"
    version, genesis = Version("hyper", 7, 1), bytes(32)
    honest = DevChain(DevChainConfig()).runtime.metadata
    other = honest.replace(b"remark_with_event", b"remark_with_evenT")
    assert other != honest

    def node(raw: bytes, code: str) -> Callable[[str, Sequence[object]], object]:
        return lambda method, params: {"state_getStorageHash": code, "state_getMetadata": f"0x{raw.hex()}"}[method]

    first = read_metadata(node(honest, "0x01"), genesis, version, cache)
    assert read_metadata(node(other, "0x01"), genesis, version, cache) == first  # it names our code: ours is used
    for _ in range(2):
        with pytest.raises(WrongChain, match="lies about what calls mean"):
            read_metadata(node(other, "0x02"), genesis, version, cache)
    assert len(list(cache.glob("metadata-*"))) == 1
    read_metadata(node(other, "0x02"), genesis, Version("hyper", 8, 1), cache)  # an upgrade
    read_metadata(node(other, "0x03"), bytes(31) + b"\1", version, cache)  # another chain
    read_metadata(node(other, "0x04"), genesis, version, cache, Changes.ALLOWED)  # one's own development chain


UNIT = TypeDef(Kind.TUPLE)
U16 = TypeDef(Kind.PRIMITIVE, primitive="u16")


def newtype(type_id: int, *path: str) -> TypeDef:
    return TypeDef(Kind.COMPOSITE, path=path, fields=(Field(None, type_id),))


@pytest.mark.parametrize(
    ("types", "data"),
    [
        pytest.param([TypeDef(Kind.ARRAY, inner=(1,), length=2**32 - 1), UNIT], b"", id="an array of nothings"),
        pytest.param([*(TypeDef(Kind.TUPLE, inner=(i + 1,) * 10) for i in range(9)), UNIT], b"", id="a tree"),
        pytest.param(
            [TypeDef(Kind.SEQUENCE, inner=(1,)), TypeDef(Kind.SEQUENCE, inner=(2,)), UNIT],
            compact(5000) + compact(4096) * 5000,
            id="lists of nothings",
        ),
        pytest.param([newtype(0)], b"", id="a type within itself"),
        pytest.param([TypeDef(Kind.COMPACT, inner=(1,)), newtype(1)], b"\0", id="a compact of itself"),
        pytest.param(
            [TypeDef(Kind.COMPACT, inner=(1,)), TypeDef(Kind.PRIMITIVE, primitive="bool")], b"\0", id="compact bool"
        ),
        pytest.param(
            [newtype(1, "BTreeMap"), TypeDef(Kind.SEQUENCE, inner=(2,)), U16], b"\4\1\1", id="a map of no pairs"
        ),
        pytest.param(
            [
                newtype(1, "BTreeMap"),
                TypeDef(Kind.SEQUENCE, inner=(2,)),
                TypeDef(Kind.TUPLE, inner=(3, 3)),
                TypeDef(Kind.SEQUENCE, inner=(4,)),
                U16,
            ],
            b"\4\0\0",
            id="a map by lists",
        ),
        pytest.param([TypeDef(Kind.PRIMITIVE, primitive="char")], b"\xff" * 4, id="no character"),
    ],
)
def test_types_that_a_node_made_up_cost_little_and_end_in_a_chain_error(types: list[TypeDef], data: bytes) -> None:
    """A thread that decodes cannot be stopped: an array of 2**32 - 1 empty tuples took two hours and all memory."""
    with pytest.raises(ChainError):
        decode_all(types, 0, data)


async def test_metadata_that_contradicts_itself_does_not_end_the_client(tmp_path: Path) -> None:
    """Checked as it is, its types may lead in circles in a way nobody thought of: an error of the call, not of us."""
    async with trio.open_nursery() as nursery:
        url = await nursery.start(run_chain, DevChainConfig(fund=FUND))
        chain = client(tmp_path, url)
        await nursery.start(chain.run)
        here = chain._connection.here()
        honest = here.metadata
        account = honest.call("System", "remark").fields[0].type_id
        circle = list(honest.registry)
        circle[account] = newtype(account)
        here.metadata = replace(honest, registry=tuple(circle))
        with pytest.raises(ChainError, match="makes no sense: RecursionError"):
            await chain.preview("System.remark", REMARK, OWN)
        here.metadata = honest
        assert (await chain.preview("System.remark", REMARK, OWN)).args == REMARK
        nursery.cancel_scope.cancel()


def test_a_process_with_the_number_of_one_that_was_killed_did_not_hear_its_receipt(tmp_path: Path) -> None:
    """The same call again gets the receipt, not a second extrinsic; in a container numbers repeat at every start."""
    raw = b"signed"
    entry = Entry(7, raw, hashlib.blake2b(raw, digest_size=32).digest(), 10, 74, bytes(20), "System.remark", bytes(32))
    other = os.getppid()
    journal = Journal.open_locked(tmp_path, genesis=bytes(32), account=bytes(20))
    assert journal is not None
    journal.open(entry)
    journal.close(entry, Fate.INCLUDED, delivery=Delivery.WAITING, block=12, teller=other)
    assert journal.unheard(entry.purpose, head=12) == ()  # it lives, and told its caller
    journal.release()
    path = journal.path
    *_, last = path.read_bytes().splitlines()
    step = json.loads(last.partition(b" ")[2])
    assert step["born"] == started(other) > 0
    line = json.dumps({**step, "born": step["born"] - 1}).encode()
    path.write_bytes(path.read_bytes() + hashlib.sha256(line).hexdigest()[:16].encode() + b" " + line + b"\n")
    again = Journal.open_locked(tmp_path, genesis=bytes(32), account=bytes(20))
    assert again is not None
    assert [done.entry for done in again.unheard(entry.purpose, head=12)] == [entry]
    again.release()
