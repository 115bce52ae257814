"""`mesh rpc list` and `mesh rpc call`: what a node serves, and calls to it by hand."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mesh.cli.common import run_until_signalled
from mesh.errors import ConfigError, RemoteProtocolError
from mesh.identity import PeerKey, load_peer_key
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.peer import PeerInfo
    from mesh.rpc.reflection import MethodInfo, ServiceList

_WHO = {"public": "anyone", "guest": "guests", "infrastructure": "bootnodes and members", "member": "members"}
Identity = Annotated[Path | None, Parameter(alias="--identity")]


def list_services(peer: str, /, *, identity_path: Identity = None, json: bool = False) -> None:
    """List the services of a node, their methods, and what these take and give.

    Args:
        peer: Its address, /ip4/…/tcp/…/p2p/….
        identity_path: Peer key file to call with; a throwaway identity without.
        json: Print one JSON object, with the schemas of requests and answers.
    """
    found: list[ServiceList] = []

    async def main() -> None:
        from mesh.client import connect
        from mesh.rpc.reflection import ListRequest, ReflectionServicer

        async with connect([_peer(peer)], identity=_identity(identity_path)) as client:
            stub = client.rpc.stub(ReflectionServicer, client.peers[0])
            found.append(await stub.rpc_list(ListRequest()))

    run_until_signalled(main)
    if json:
        print(found[0].model_dump_json())
        return
    for service in found[0].services:
        print(_plain(service.protocol))
        for method in service.methods:
            print(f"  {_plain(method.name):<14} {_plain(_signature(method))}")
            who = _WHO.get(method.least, method.least)
            print(f"  {'':<14} for {who}, {method.timeout_s:g} s. {_plain(method.summary)}".rstrip())


def call(
    peer: str,
    protocol: str,
    method: str,
    request: Annotated[str, Parameter(allow_leading_hyphen=True)] = "{}",
    /,
    *,
    identity_path: Identity = None,
    timeout_s: float = 30.0,
) -> None:
    """Call a method of a node with a JSON request; prints its answer as JSON, one line each for a stream.

    Args:
        peer: The node's address, /ip4/…/tcp/…/p2p/….
        protocol: Such as /mesh/health/1.0.0; `mesh rpc list` shows them.
        method: Its name, without `rpc_`.
        request: A JSON object; `-` reads one request a line from standard input, for methods that take a stream.
        identity_path: Peer key file to call with; a throwaway identity, which nodes on a chain take for a stranger,
            without.
        timeout_s: Seconds until the call is given up.
    """

    async def main() -> None:
        from mesh.client import connect
        from mesh.rpc.frame import Shape
        from mesh.rpc.reflection import ListRequest, ReflectionServicer

        async with connect([_peer(peer)], identity=_identity(identity_path)) as client:
            target = client.peers[0]
            served = await client.rpc.stub(ReflectionServicer, target).rpc_list(ListRequest())
            found = _find(served, protocol, method)
            shape = Shape(found.shape)
            texts = _requests(request, is_stream=bool(shape & Shape.REQUESTS))
            first = None if shape & Shape.REQUESTS else texts[0]
            async with client.rpc.open_json(
                target, protocol, found.name, first, shape, timeout_s=timeout_s
            ) as exchange:
                if shape & Shape.REQUESTS:
                    for text in texts:
                        await exchange.send(text)
                    await exchange.end()
                if shape & Shape.ANSWERS:
                    async for answer in exchange:
                        print(_json(answer), flush=True)
                else:
                    print(_json(await exchange.result()))

    run_until_signalled(main)


def _plain(text: str) -> str:
    """A stranger's words, which must not steer the terminal."""
    return printable(text, 2000)


def _json(answer: str) -> str:
    try:
        return jsonlib.dumps(jsonlib.loads(answer), separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the answer is not JSON: {error}") from error


def _peer(text: str) -> PeerInfo:
    from mesh.client import parse_peers

    return parse_peers([text], flag="PEER")[0]


def _identity(path: Path | None) -> PeerKey | None:
    return load_peer_key(path) if path else None


def _requests(text: str, *, is_stream: bool) -> list[str]:
    lines = [line for line in sys.stdin.read().splitlines() if line.strip()] if text == "-" else [text]
    if not is_stream and len(lines) != 1:
        raise ConfigError(f"this method takes one request, and {len(lines)} were given")
    for line in lines:
        try:
            jsonlib.loads(line)
        except ValueError as error:
            raise ConfigError(f"the request is not JSON ({error}): {line[:80]}") from error
    return lines


def _find(served: ServiceList, protocol: str, name: str) -> MethodInfo:
    service = next((s for s in served.services if s.protocol == protocol), None)
    if service is None:
        raise ConfigError(
            f"the node does not serve {protocol}; it serves {_plain(', '.join(s.protocol for s in served.services))}"
        )
    found = next((m for m in service.methods if m.name == name.removeprefix("rpc_")), None)
    if found is None:
        raise ConfigError(
            f"{protocol} has no method {name}; it has {_plain(', '.join(m.name for m in service.methods))}"
        )
    return found


def _signature(method: MethodInfo) -> str:
    from mesh.rpc.frame import Shape

    shape = Shape(method.shape)
    takes, gives = _type(method.request), _type(method.response)
    return (
        f"{'stream of ' * bool(shape & Shape.REQUESTS)}{takes} -> {'stream of ' * bool(shape & Shape.ANSWERS)}{gives}"
    )


def _type(schema: str) -> str:
    """A model's fields, such as {text: string}; else the type's name."""
    try:
        fields = jsonlib.loads(schema)["properties"]
    except (ValueError, KeyError, TypeError):
        return "{}" if schema.startswith("{") else schema
    return "{" + ", ".join(f"{name}: {field.get('type', 'any')}" for name, field in fields.items()) + "}"
