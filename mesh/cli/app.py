"""The app `mesh` and its entry points. Commands are imported when they are run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Any

from cyclopts import App, Parameter

from mesh.cli.common import run_app


def _app(name: str, help_text: str | None = None) -> App:
    return App(
        name=name,
        help=help_text,
        version=_version,
        result_action="return_value",
        default_parameter=Parameter(negative=(), negative_iterable=(), consume_multiple=True),
    )


def _version() -> str:
    return version("mesh-subnets")


def build() -> App:
    """The whole app."""
    app = _app("mesh", "Decentralized AI networks: run nodes, stake for them, use what they serve.")
    app.command("mesh.cli.server:serve", name="server", help="Run a node of a subnet.")
    app.command("mesh.cli.chain:chain", name="chain", help="Run the embedded development chain.")
    app.command("mesh.cli.keys:keygen", name="keygen", help="Make the keys of a node.")
    app.command("mesh.cli.keys:keyview", name="keyview", help="Show who a key file is.")
    keys = _app("keys", "Coldkeys and hotkeys in encrypted files, which other wallets read, too.")
    keys.command("mesh.cli.accounts:new", name="new", help="Make a key from a new phrase.")
    keys.command("mesh.cli.accounts:import_", name="import", help="Take a phrase, key or another wallet's file in.")
    keys.command("mesh.cli.accounts:list_", name="list", help="List the keys of a folder.")
    keys.command("mesh.cli.accounts:show", name="show", help="Show whose key it is.")
    keys.command("mesh.cli.accounts:export", name="export", help="Write a key for another wallet, or show its secret.")
    app.command(keys)
    app.command("mesh.cli.register:register_subnet", name="register-subnet", help="Register a subnet.")
    app.command("mesh.cli.register:activate_subnet", name="activate-subnet", help="Activate a registered subnet.")
    app.command("mesh.cli.register:register_node", name="register-node", help="Register a node and stake for it.")
    app.command(
        "mesh.cli.register:activate_node",
        name="activate-node",
        help="Say when a registered node becomes active.",
    )
    app.command(
        "mesh.cli.doctor:doctor",
        name="doctor",
        help="Check what stands between this machine and a working node.",
    )
    app.command("mesh.cli.transfer:transfer", name="transfer", help="Send TENSOR to another account.")
    content = _app("content", "Blobs by digest: put a file among a node's, get one from the network.")
    content.command("mesh.cli.content:put", name="put", help="Copy a file into a node's blobs.")
    content.command("mesh.cli.content:get", name="get", help="Get a blob from peers.")
    content.command("mesh.cli.content:ls", name="ls", help="List a node's blobs.")
    app.command(content)
    dht = _app("dht", "Look into a network's DHT, put something there, run an entry point to it.")
    dht.command("mesh.cli.server:bootnode", name="bootnode", help="Run a bootnode; the same as mesh-dht.")
    dht.command("mesh.cli.dht:get", name="get", help="Print the records under a key.")
    dht.command("mesh.cli.dht:put", name="put", help="Sign a record and store it.")
    dht.command("mesh.cli.dht:crawl", name="crawl", help="See the whole network.")
    dht.command("mesh.cli.dht:table", name="table", help="Print a node's routing table.")
    dht.command("mesh.cli.dht:stats", name="stats", help="Print what a node's DHT holds and did.")
    dht.command("mesh.cli.dht:explain", name="explain", help="Ask a node why it would refuse a record.")
    app.command(dht)
    rpc = _app("rpc", "Call a node by hand.")
    rpc.command("mesh.cli.rpc:list_services", name="list", help="List what a node serves.")
    rpc.command("mesh.cli.rpc:call", name="call", help="Call a method of a node.")
    app.command(rpc)
    new = _app("new", "Start something of your own.")
    new.command("mesh.cli.scaffold:subnet", name="subnet", help="Scaffold a subnet.")
    app.command(new)
    for entry in entry_points(group="mesh.commands"):
        app.command(entry.value, name=entry.name, help=f"Comes with an installed package: mesh {entry.name} --help.")
    return app


def main() -> None:
    """`mesh`."""
    run_app(build())


def _single(name: str, load: Callable[[], Any]) -> None:
    app = _app(name)
    app.default(load())
    run_app(app)


def mesh_server() -> None:
    """`mesh-server SUBNET`."""
    from mesh.cli.server import serve

    _single("mesh-server", lambda: serve)


def mesh_server_mock() -> None:
    """`mesh-server-mock`: the subnet without a use case."""
    sys.argv.insert(1, "mock")
    mesh_server()


def mesh_dht() -> None:
    """`mesh-dht`: a bootnode."""
    from mesh.cli.server import bootnode

    _single("mesh-dht", lambda: bootnode)


def mesh_chain() -> None:
    """`mesh-chain`."""
    from mesh.cli.chain import chain

    _single("mesh-chain", lambda: chain)


def keygen() -> None:
    """`keygen`."""
    from mesh.cli.keys import keygen as command

    _single("keygen", lambda: command)


def keyview() -> None:
    """`keyview`."""
    from mesh.cli.keys import keyview as command

    _single("keyview", lambda: command)


def register_subnet() -> None:
    """`register-subnet`."""
    from mesh.cli.register import register_subnet as command

    _single("register-subnet", lambda: command)


def activate_subnet() -> None:
    """`activate-subnet`."""
    from mesh.cli.register import activate_subnet as command

    _single("activate-subnet", lambda: command)


def register_node() -> None:
    """`register-node`."""
    from mesh.cli.register import register_node as command

    _single("register-node", lambda: command)


def activate_node() -> None:
    """`activate-node`."""
    from mesh.cli.register import activate_node as command

    _single("activate-node", lambda: command)
