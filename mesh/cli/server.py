"""`mesh-server SUBNET` and `mesh-dht`: run a node, run a bootnode."""

from __future__ import annotations

import functools
import json as jsonlib
import logging
import os
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
from cyclopts import Parameter

from mesh.cli.common import ChainOptions, Ends, account_key, planck, read_toml, run_until_signalled
from mesh.config import Discovery, NodeConfig, usable_maddrs
from mesh.errors import ConfigError
from mesh.identity import AccountKey, PeerKey, load_peer_key

if TYPE_CHECKING:
    from mesh.node import NodeInfo, Parts


@Parameter(name="*")
@dataclass(frozen=True)
class NodeOptions:
    """Where a node listens, who it is and how it joins."""

    identity_path: Annotated[Path | None, Parameter(alias="--identity")] = None
    "Peer key file (made by `keygen`). Bootnodes and nodes without a chain make a throwaway identity without one."
    host_maddrs: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    "Addresses to listen on; port 0 takes a free one."
    announce_maddrs: tuple[str, ...] = ()
    "Addresses to tell others, when they differ."
    data_port: int = 0
    "TCP port of data connections; fix it where a firewall must know it. 0 takes a free one."
    initial_peers: Annotated[tuple[str, ...], Parameter(env_var="PUBLIC_INITIAL_PEERS")] = ()
    "Nodes to join through, /ip4/…/tcp/…/p2p/…, beside the bootnodes that the chain lists."
    mdns: bool = False
    "Find nodes on the local network, and be found there: multicast DNS."
    drain_s: float = 5.0
    "Seconds that running calls may still take when the node is told to stop; a second signal ends it at once."
    new_swarm: bool = False
    "Start a new network: join nobody."
    subnet_id: int = 1
    "Subnet: friendly id (1) or real id (128001)."
    data_dir: Path | None = None
    "Where the node keeps its state; default is a folder under ~/.local/share/mesh named after its PeerID."
    no_blockchain_rpc: bool = False
    "Run without any chain: everyone is a member, nothing is paid."
    min_stake: str = "0"
    "TENSOR a registered node must have staked to be a member for this node."
    guest_open: bool = False
    "Let strangers read the DHT and call guest methods, within limits."
    membership_grace_s: float = 60.0
    "Seconds for which proven members stay members while the chain is away."
    keep_records: bool = False
    "Keep the DHT's records on disk, so that they survive a crash of this node."
    metrics_port: int | None = None
    "Serve numbers for Prometheus at http://127.0.0.1:PORT/metrics; 0 takes a free port and logs it."
    log_level: str = "INFO"
    "Least level of log lines."
    log_json: bool = False
    "Log as JSON lines."
    log_file: Path | None = None
    "Log to this file instead of stderr."
    json: bool = False
    "Say on stdout that the node is ready as one JSON object."


def serve(
    subnet: str,
    /,
    *,
    subnet_config: Path | None = None,
    subnet_node_id: int | None = None,
    hotkey_file: Path | None = None,
    private_key: str | None = None,
    phrase: str | None = None,
    node: NodeOptions | None = None,
    chain: ChainOptions | None = None,
) -> None:
    """Run a node of a subnet until Ctrl-C.

    The hotkey votes; give it as --hotkey-file or MESH_HOTKEY. Without one the node works but earns nothing by voting.

    Args:
        subnet: Name of an installed subnet, such as `optimization` or `mock`.
        subnet_config: TOML file with the subnet's own settings.
        subnet_node_id: Node id from `register-node`; checked against the chain.
        hotkey_file: File with the hotkey (mode 0600).
        private_key: Hotkey in hexadecimal; local chains only.
        phrase: Hotkey as a BIP39 phrase; local chains only.
    """
    from mesh.subnet import load_subnet

    node, chain = node or NodeOptions(), chain or ChainOptions()
    loaded = load_subnet(subnet)
    settings = loaded.Config(**read_toml(subnet_config))
    if node.identity_path is None and not node.no_blockchain_rpc:
        raise ConfigError("say who this node is: --identity_path FILE, the peer key it was registered with")
    config = _config(node, chain, subnet_node_id=subnet_node_id)
    on_argv = private_key is not None or phrase is not None
    hotkey = None
    if node.no_blockchain_rpc and (on_argv or hotkey_file is not None):
        raise ConfigError("a hotkey is of no use with --no_blockchain_rpc: leave one of them out")
    if not node.no_blockchain_rpc and (on_argv or hotkey_file is not None or os.environ.get("MESH_HOTKEY")):
        hotkey = account_key(hotkey_file, ("MESH_HOTKEY",), private_key or phrase, name="hotkey")

    async def run(parts: Parts, started: Callable[[NodeInfo], None]) -> None:
        from mesh.node import run_node

        async with trio.open_nursery() as nursery:
            start = functools.partial(run_node, hotkey=hotkey)
            info = await nursery.start(start, config, parts, loaded, settings)
            if hotkey is None and not node.no_blockchain_rpc:
                logging.getLogger(__name__).warning("no hotkey was given: this node does not vote (--hotkey-file)")
            started(info)

    _run(config, node, run, hotkey=hotkey, label=subnet, secret_on_argv=on_argv)


def bootnode(*, node: NodeOptions | None = None, chain: ChainOptions | None = None) -> None:
    """Run a bootnode: an entry point into the network that routes and holds no records."""
    node, chain = node or NodeOptions(), chain or ChainOptions()
    config = _config(node, chain, subnet_node_id=None)

    async def run(parts: Parts, started: Callable[[NodeInfo], None]) -> None:
        from mesh.node import run_bootnode

        async with trio.open_nursery() as nursery:
            started(await nursery.start(run_bootnode, config, parts))

    _run(config, node, run, hotkey=None, label="bootnode", secret_on_argv=False)


def _run(
    config: NodeConfig,
    node: NodeOptions,
    run: Callable[[Parts, Callable[[NodeInfo], None]], Awaitable[None]],
    *,
    hotkey: AccountKey | None,
    label: str,
    secret_on_argv: bool,
) -> None:
    from mesh import log

    log.configure(level=node.log_level, json_lines=node.log_json, file=node.log_file)
    identity = load_peer_key(config.identity_path) if node.identity_path else PeerKey.generate()
    from mesh.chain.local import data_home
    from mesh.net.data import DataConfig, DataPlane
    from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
    from mesh.node import Parts, one_process_per_hotkey, warn_when_open

    net = Libp2pNetwork(
        identity,
        Libp2pConfig(listen=config.host_maddrs, announce=config.announce_maddrs, drain_s=config.drain_s),
        peers_path=config.data_dir / "state" / "peers.json",
    )
    data = DataPlane(net, hosts=net.listen_hosts, config=DataConfig(port=config.data_port))
    if node.no_blockchain_rpc:
        the_chain = None
        warn_when_open(config.host_maddrs)
    else:
        from mesh.chain.substrate import ChainConfig, SubstrateChain

        the_chain = SubstrateChain(
            ChainConfig(urls=config.chain_urls, only_local=secret_on_argv),
            journal_dir=config.data_dir / "journal",
            cache_dir=data_home() / "metadata",
            recover=(hotkey.account_id,) if hotkey else (),
            rng=random.Random(os.urandom(16)),
        )

    def started(info: NodeInfo) -> None:
        _announce(label, info, node)

    with one_process_per_hotkey(hotkey, data_home() / "locks") if hotkey else nullcontext():
        run_until_signalled(
            lambda: run(Parts(identity, net, the_chain, data=data), started), ends=Ends.WHEN_TOLD, drain=net.drain
        )


def _announce(label: str, info: NodeInfo, node: NodeOptions) -> None:
    """The line people copy the address from, or one JSON object."""
    addresses = info.local.multiaddrs()
    if node.json:
        print(
            jsonlib.dumps(
                {
                    "event": "ready",
                    "label": label,
                    "peer_id": str(info.local.peer_id),
                    "addresses": addresses,
                    "subnet_id": info.subnet_id,
                    "node_id": info.node_id,
                }
            ),
            flush=True,
        )
        return
    mode = " WITHOUT A CHAIN: everyone is a member" if node.no_blockchain_rpc else f" in subnet {info.subnet_id}"
    print(f"{label} {info.local.peer_id} is ready{mode}", flush=True)
    print(f"To connect other peers to this one, use --initial_peers {' '.join(addresses)}", flush=True)


def _config(node: NodeOptions, chain: ChainOptions, *, subnet_node_id: int | None) -> NodeConfig:
    from mesh.chain.local import data_home

    host, left_out = usable_maddrs(node.host_maddrs)
    announce, left_out_too = usable_maddrs(node.announce_maddrs)
    if skipped := left_out + left_out_too:
        print(f"warning: only TCP is offered; left out {', '.join(skipped)}", file=sys.stderr)
    if not host:
        raise ConfigError("--host-maddrs: give at least one TCP address, such as /ip4/0.0.0.0/tcp/31330")
    identity = node.identity_path or Path("throwaway")
    peers: tuple[str, ...] = ()
    if not node.new_swarm:
        peers = tuple(part for text in node.initial_peers for part in text.split())
    name = str(load_peer_key(identity).peer_id) if node.identity_path else f"throwaway-{os.getpid()}"
    return NodeConfig(
        identity_path=identity,
        data_dir=node.data_dir or data_home() / "nodes" / name,
        host_maddrs=host,
        announce_maddrs=announce,
        data_port=node.data_port,
        drain_s=node.drain_s,
        initial_peers=peers,
        discovery=Discovery.MDNS if node.mdns else Discovery.OFF,
        subnet_id=node.subnet_id,
        subnet_node_id=subnet_node_id,
        chain_urls=chain.urls(),
        is_new_swarm=node.new_swarm,
        min_stake_planck=planck(node.min_stake, name="min-stake"),
        guest_open=node.guest_open,
        membership_grace_s=node.membership_grace_s,
        metrics_port=node.metrics_port,
        keep_records=node.keep_records,
    )
