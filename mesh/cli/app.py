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


_GROUPS: tuple[tuple[str, str, dict[str, tuple[str, str]]], ...] = (
    (
        "keys",
        "Coldkeys and hotkeys in encrypted files, which other wallets read, too.",
        {
            "new": ("accounts:new", "Make a key from a new phrase."),
            "import": ("accounts:import_", "Take a phrase, a private key or another wallet's file in."),
            "list": ("accounts:list_", "List the keys of a folder."),
            "show": ("accounts:show", "Show whose key it is."),
            "export": ("accounts:export", "Write a key for another wallet, or show its secret."),
        },
    ),
    (
        "subnet",
        "Subnets: look at them, change your own.",
        {
            "list": ("subnet:list_subnets", "List all subnets."),
            "show": ("subnet:show", "Show one subnet."),
            "update": ("subnet:update", "Change a subnet of yours."),
            "pause": ("subnet:pause", "Stop a subnet's epochs."),
            "unpause": ("subnet:unpause", "Let a paused subnet go on."),
            "transfer": ("subnet:transfer", "Offer a subnet to another owner, or accept one."),
            "bootnodes": ("subnet:bootnodes", "Change a subnet's bootnodes and who may change them."),
            "initial-coldkeys": ("subnet:initial_coldkeys", "Change who may register nodes before activation."),
            "emergency": ("subnet:emergency", "Elect among a few nodes only, for a bounded time."),
            "deactivate": ("subnet:deactivate", "Remove a subnet for good."),
        },
    ),
    (
        "node",
        "Nodes of a subnet: look at them, change your own.",
        {
            "list": ("node:list_nodes", "List the nodes of a subnet."),
            "show": ("node:show", "Show all the chain knows of a node."),
            "status": ("node:status", "Say where a node stands in its epoch."),
            "update": ("node:update", "Change a node of yours."),
            "remove": ("node:remove", "Take a node of yours out of its subnet."),
        },
    ),
    (
        "stake",
        "Stake on nodes of your own.",
        {
            "add": ("stake:add", "Stake more on a node."),
            "remove": ("stake:remove", "Take stake off a node."),
            "claim": ("stake:claim", "Take what has cooled down back to the free balance."),
            "list": ("stake:show", "List your stakes and what cools down."),
        },
    ),
    (
        "delegate",
        "Shares of the pools of subnets and nodes.",
        {
            "add": ("delegate:add", "Buy shares of a pool."),
            "remove": ("delegate:remove", "Sell shares of a pool."),
            "swap": ("delegate:swap", "Move shares to another pool."),
            "redirect": ("delegate:redirect", "Send a waiting swap to another pool."),
            "transfer": ("delegate:transfer", "Give shares to another account."),
            "donate": ("delegate:donate", "Give to all delegators of a pool."),
            "withdraw": ("delegate:withdraw", "Take out what nodes gave this account as their delegate account."),
            "list": ("delegate:show", "List your shares and waiting swaps."),
        },
    ),
    (
        "epoch",
        "Epochs of a subnet: watch one, check one afterwards.",
        {
            "watch": ("watch:watch", "Follow a subnet's epochs block by block."),
            "replay": ("replay:replay", "Recompute a proposal's scores from its evidence."),
        },
    ),
    (
        "overwatch",
        "Judge subnets from outside.",
        {
            "register": ("overwatch:register", "Become an overwatch node."),
            "commit": ("overwatch:commit", "Commit to a weight per subnet."),
            "reveal": ("overwatch:reveal", "Reveal what was committed."),
            "peer": ("overwatch:set_peer", "Say with which peer id you look at a subnet."),
            "stake": ("overwatch:stake", "Stake more on an overwatch node."),
            "unstake": ("overwatch:unstake", "Take stake off an overwatch node."),
            "remove": ("overwatch:remove", "Stop being an overwatch node."),
            "show": ("overwatch:show", "Show the overwatch epoch and your nodes."),
        },
    ),
    (
        "identity",
        "Who a coldkey says it is.",
        {
            "set": ("identity:set_identity", "Say who your coldkey is."),
            "show": ("identity:show", "Show who a coldkey says it is."),
            "remove": ("identity:remove", "Forget who your coldkey is."),
        },
    ),
)
"""Groups of commands: name, help, and per command its place in mesh.cli and its help."""


def build() -> App:
    """The whole app."""
    app = _app("mesh", "Decentralized AI networks: run nodes, stake for them, use what they serve.")
    app.command("mesh.cli.server:serve", name="server", help="Run a node of a subnet.")
    app.command(_chain("chain"))
    app.command("mesh.cli.keys:keygen", name="keygen", help="Make the keys of a node.")
    app.command("mesh.cli.keys:keyview", name="keyview", help="Show who a key file is.")
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
    app.command("mesh.cli.look:rewards", name="rewards", help="List what nodes earned and lost.")
    app.command("mesh.cli.balance:balance", name="balance", help="Show what an account has.")
    for name, text, commands in _GROUPS:
        group = _app(name, text)
        for command, (place, says) in commands.items():
            group.command(f"mesh.cli.{place}", name=command, help=says)
        app.command(group)
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


def _chain(name: str) -> App:
    """`mesh chain` and `mesh-chain`: without a command they run the development chain."""
    from mesh.cli.chain import run

    chain = _app(name, "Look at a chain; run the embedded development chain, change it while it runs.")
    chain.default(run)
    for command, text in _LOOKS.items():
        chain.command(f"mesh.cli.look:{command}", name=command, help=text)
    chain.command("mesh.cli.chain:run", name="run", help="Run a chain of one machine, for development and tests.")
    dev = _app("dev", "Change a running chain that was started with --dev-rpc.")
    dev.command("mesh.cli.chain:new_block", name="new-block", help="Make blocks now.")
    dev.command("mesh.cli.chain:set_storage", name="set-storage", help="Set a storage entry.")
    dev.command("mesh.cli.chain:snapshot", name="snapshot", help="Write the chain as it is to a file.")
    dev.command("mesh.cli.chain:restore", name="restore", help="Go to the block and state of a snapshot.")
    chain.command(dev)
    return chain


_LOOKS = {
    "status": "Say which chain this is and what runs on it.",
    "epoch": "Say how an epoch of a subnet stands.",
    "validators": "List the validators of a subnet.",
    "rewards": "List what nodes earned and lost; the same as mesh rewards.",
    "events": "Print the events of blocks.",
}
"""Commands of `mesh chain` that look at any chain."""


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
    run_app(_chain("mesh-chain"))


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
