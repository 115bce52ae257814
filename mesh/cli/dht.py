"""`mesh dht …`: look into a running network's DHT, and put something there."""

from __future__ import annotations

import json as jsonlib
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mesh.cli.common import run_until_signalled
from mesh.errors import ConfigError
from mesh.identity import PeerKey, load_peer_key
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    import trio

    from mesh.client import Client
    from mesh.dht import DHT
    from mesh.dht.inspection import NetworkView
    from mesh.kad.record import Record

Identity = Annotated[Path | None, Parameter(alias="--identity")]


@Parameter(name="*")
@dataclass(frozen=True)
class Access:
    """Which network, and who asks."""

    initial_peers: Annotated[tuple[str, ...], Parameter(env_var="PUBLIC_INITIAL_PEERS")] = ()
    "Nodes of the network, /ip4/…/tcp/…/p2p/… (a running node prints its own)."
    identity_path: Identity = None
    "Peer key file to ask with; a throwaway identity, which nodes on a chain take for a stranger, without."
    json: bool = False
    "Print one JSON object."


def get(key: str, /, *, first: bool = False, access: Access | None = None) -> None:
    """Print the records under a key: owner, subkey, how long they live, value.

    Signatures are checked; whether their owners are registered on the chain is not: ask a node for that.

    Args:
        key: <namespace>/<rest>, such as heartbeat/7; `0x…` for bytes in hexadecimal. A wrong one is answered with
            those there are.
        first: Be content with the first answer.
    """
    access = access or Access()
    name = _bytes(key)

    async def main(dht: DHT, view: NetworkView) -> None:
        from mesh.dht import Want

        found = await dht.get(name, want=Want.FIRST if first else Want.LATEST)
        if access.json:
            records = [_record_json(record) for record in found]
            _print({"key": _text(name), "answered": found.answered, "agreed": found.agreed, "records": records})
            return
        for record in found:
            subkey = f" {_text(record.subkey)}" if record.subkey else ""
            lives_s = record.expiry_ms / 1000 - _now()
            print(f"{record.owner}{subkey}  seq {record.seq}, lives {lives_s:.0f} s more")
            print(f"  {_value(record.value)}")
        print(
            f"{len(found)} record{'s' * (len(found) != 1)}; {found.agreed} of {found.answered} nodes hold all of this"
        )

    _with_dht(access, main)


def put(
    key: str,
    value: str,
    /,
    *,
    subkey: str = "",
    ttl_s: float = 3600.0,
    access: Access | None = None,
) -> None:
    """Sign a record and store it with the peers nearest to its key; nothing publishes it anew afterwards.

    Args:
        key: <namespace>/<rest>, such as heartbeat/7; `0x…` for bytes in hexadecimal.
        value: Text; `0x…` for bytes in hexadecimal; `-` reads standard input.
        subkey: Tells several records of one owner under a key apart.
        ttl_s: Seconds until it expires.
    """
    access = access or Access()
    name, content = _bytes(key), sys.stdin.buffer.read(1 << 20) if value == "-" else _bytes(value)

    async def main(dht: DHT, view: NetworkView) -> None:
        report = await dht.put(name, content, subkey=_bytes(subkey), ttl_s=ttl_s)
        refused = {str(peer): reason for peer, reason in report.refused.items()}
        if access.json:
            _print({"stored": [str(peer) for peer in report.stored], "refused": refused})
        else:
            for peer in report.stored:
                print(f"stored   {peer}")
            for name_, reason in refused.items():
                print(f"refused  {name_}  {printable(reason, 100)}")
        if not report.stored:
            raise ConfigError(f"nobody stored it: {_reasons(refused)}; `mesh dht explain` says what each check thinks")

    _with_dht(access, main)


def explain(key: str, value: str, /, *, subkey: str = "", ttl_s: float = 3600.0, access: Access | None = None) -> None:
    """Ask a node what each of its checks says about a record of ours, without storing it.

    Args:
        key: As for put.
        value: As for put.
        subkey: As for put.
        ttl_s: As for put.
    """
    access = access or Access()
    name, content = _bytes(key), sys.stdin.buffer.read(1 << 20) if value == "-" else _bytes(value)

    async def main(client: Client) -> None:
        from mesh.dht.inspection import DhtInfoServicer, ExplainRequest, Nothing
        from mesh.kad.record import sign_record

        stub = client.rpc.stub(DhtInfoServicer, client.peers[0])
        view = await stub.rpc_network(Nothing())
        record: Record = sign_record(
            _identity(access),
            name,
            content,
            subkey=_bytes(subkey),
            expiry_ms=int((_now() + ttl_s) * 1000),
            seq=int(_now() * 1000),
            subnet_id=view.subnet_id,
            genesis=view.genesis,
        )
        said = await stub.rpc_explain(ExplainRequest(record=record.to_bytes()))
        if access.json:
            _print({"lines": said.lines})
            return
        for line in said.lines:
            print(printable(line, 2000))

    _with_client(access, main)


def table(*, access: Access | None = None) -> None:
    """Print a node's routing table by bucket: how many leading bits its peers share with it."""
    access = access or Access()

    async def main(client: Client) -> None:
        from mesh.dht.inspection import DhtInfoServicer, Nothing

        view = await client.rpc.stub(DhtInfoServicer, client.peers[0]).rpc_table(Nothing())
        if access.json:
            _print(view.model_dump(mode="json"))
            return
        for index, bucket in enumerate(view.buckets):
            at_least = "" if index < len(view.buckets) - 1 else "+"
            print(f"{index}{at_least} bits: {len(bucket)} peers")
            for peer in bucket:
                print(f"  {printable(peer.peer, 64)}  {printable(' '.join(peer.addrs), 300)}")

    _with_client(access, main)


def stats(*, access: Access | None = None) -> None:
    """Print what a node's DHT holds and did since it started."""
    access = access or Access()

    async def main(client: Client) -> None:
        from mesh.dht.inspection import DhtInfoServicer, Nothing

        view = await client.rpc.stub(DhtInfoServicer, client.peers[0]).rpc_stats(Nothing())
        if access.json:
            _print(view.model_dump(mode="json"))
            return
        print(f"{printable(view.role, 32)}, {view.peers} peers, {view.records} records in {view.record_bytes} bytes")
        for kind, one in view.operations.items():
            print(
                f"  {printable(kind, 32):<16}{one['done']:>8.0f} done {one['requests']:>8.0f} requests "
                f"{one['mean_s'] * 1000:>8.1f} ms"
            )
        for title, numbers in (
            ("asked", view.asked),
            ("refused", view.refused),
            ("refused by others", view.refused_by_others),
            ("counted", view.counters),
        ):
            if numbers:
                print(f"  {title}: " + ", ".join(f"{printable(name, 32)} {count}" for name, count in numbers.items()))

    _with_client(access, main)


def crawl(*, max_peers: int = 10_000, timeout_s: float = 60.0, access: Access | None = None) -> None:
    """Ask every node that can be reached whom it knows, and print what the network looks like.

    Args:
        max_peers: Nodes asked at most.
        timeout_s: Seconds after which what was seen is printed.
    """
    access = access or Access()

    async def main(dht: DHT, view: NetworkView) -> None:
        report = await dht.crawl(max_peers=max_peers, timeout_s=timeout_s)
        named_by: dict[str, int] = {}
        for node in report.nodes.values():
            for peer in node.knows:
                named_by[str(peer)] = named_by.get(str(peer), 0) + 1
        if access.json:
            nodes = [
                {
                    "peer": str(node.info.peer_id),
                    "addrs": [str(addr) for addr in node.info.addrs],
                    "role": node.role,
                    "rtt_s": round(node.rtt_s, 6),
                    "knows": [str(peer) for peer in node.knows],
                }
                for node in report.nodes.values()
            ]
            unreachable = {str(peer): printable(why, 300) for peer, why in report.unreachable.items()}
            _print({"nodes": nodes, "unreachable": unreachable, "is_complete": report.is_complete})
            return
        for peer_id in sorted(report.nodes):
            node = report.nodes[peer_id]
            print(
                f"{peer_id}  {node.role:<12} {node.rtt_s * 1000:7.1f} ms  knows {len(node.knows):>3}, "
                f"named by {named_by.get(str(peer_id), 0):>3}  {node.info.addrs[0] if node.info.addrs else ''}"
            )
        for peer_id, why in sorted(report.unreachable.items()):
            print(f"{peer_id}  no answer: {printable(why, 200)}")
        whole = "" if report.is_complete else " (cut short: --max-peers or --timeout-s)"
        print(f"{len(report.nodes)} nodes answered, {len(report.unreachable)} did not{whole}")

    _with_dht(access, main)


# -- inside --


def _with_client(access: Access, main: Any) -> None:
    async def run() -> None:
        from mesh.client import connect, parse_peers

        peers = parse_peers(access.initial_peers, flag="--initial_peers")
        async with connect(peers, identity=_identity(access)) as client:
            await main(client)

    run_until_signalled(run)


def _with_dht(access: Access, main: Any) -> None:
    async def run(client: Client) -> None:
        async with _joined(client, access) as (dht, view):
            await main(dht, view)

    _with_client(access, run)


@asynccontextmanager
async def _joined(client: Client, access: Access) -> AsyncIterator[tuple[DHT, NetworkView]]:
    """A DHT client of the network, which takes its rules from the node it is joined through: values are not checked
    against schemas, nor owners against the chain."""
    import trio

    from mesh.clock import SystemClock
    from mesh.dht import DHT, DhtConfig, Role
    from mesh.dht.inspection import DhtInfoServicer, Nothing
    from mesh.kad.validator import NamespaceRule

    view = await client.rpc.stub(DhtInfoServicer, client.peers[0]).rpc_network(Nothing())
    rules = [
        NamespaceRule(one.namespace, max_value_bytes=one.max_value_bytes, max_ttl_s=one.max_ttl_s, members_only=False)
        for one in view.namespaces
    ]
    dht = DHT(
        client.rpc,
        _identity(access),
        rules=rules,
        is_member=lambda peer: True,
        position=lambda: None,
        subnet_id=view.subnet_id,
        genesis=view.genesis,
        config=DhtConfig(role=Role.CLIENT, replicas=view.replicas),
        clock=SystemClock(),
        rng=random.Random(os.urandom(16)),
    )
    failure: Exception | None = None
    nursery: trio.Nursery
    async with trio.open_nursery() as nursery:
        await nursery.start(dht.run, [client.rpc.net.known(peer) for peer in client.peers])
        try:
            yield dht, view
        except Exception as error:  # noqa: BLE001 - raised below, as the nursery would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


_keys: dict[Path | None, PeerKey] = {}


def _identity(access: Access) -> PeerKey:
    """Who we are, the same throughout a command."""
    path = access.identity_path
    if path not in _keys:
        _keys[path] = load_peer_key(path) if path else PeerKey.generate()
    return _keys[path]


def _bytes(text: str) -> bytes:
    if text.startswith("0x"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError as error:
            raise ConfigError(f"{text[:40]!r} is not hexadecimal") from error
    return text.encode()


def _text(raw: bytes) -> str:
    """As typed: text where it is printable, `0x…` otherwise."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "0x" + raw.hex()
    return text if text.isprintable() and not text.startswith("0x") else "0x" + raw.hex()


def _value(raw: bytes) -> str:
    text = _text(raw)
    return text if len(text) <= 2000 else f"{text[:2000]}… ({len(raw)} bytes)"


def _record_json(record: Record) -> dict[str, Any]:
    return {
        "owner": str(record.owner),
        "subkey": _text(record.subkey),
        "seq": record.seq,
        "expiry_ms": record.expiry_ms,
        "value": _text(record.value),
        "digest": record.digest.hex(),
    }


def _reasons(refused: dict[str, str]) -> str:
    return ", ".join(sorted({printable(reason, 100) for reason in refused.values()})) or "no peer was reached"


def _print(value: object) -> None:
    print(jsonlib.dumps(value, separators=(",", ":")))


def _now() -> float:
    from mesh.clock import SystemClock

    return SystemClock().now()
