"""A client of a network: calls nodes, serves nothing, listens nowhere.

async with connect(["/ip4/198.51.100.7/tcp/31330/p2p/12D3KooW..."], identity=key) as client:
    (peer,) = client.peers
    answer = await client.rpc.stub(EchoServicer, peer).rpc_echo(Echo(text="hello"))
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from mesh.auth.authorizer import Authorizer, Everyone
from mesh.errors import ConfigError, ProtocolError
from mesh.identity import PeerKey
from mesh.net.data import DataPlane
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.config import RpcConfig
from mesh.rpc.rpc import Rpc


@dataclass(frozen=True)
class Client:
    """A running client."""

    rpc: Rpc
    peers: tuple[PeerID, ...]
    """Whose addresses were given, in their order."""


def parse_peers(texts: Sequence[str], *, flag: str) -> tuple[PeerInfo, ...]:
    """Addresses with /p2p/…, several to a text. Raises ConfigError naming the flag when there is none or one is
    wrong."""
    try:
        peers = tuple(PeerInfo.parse(part) for text in texts for part in text.split())
    except ProtocolError as error:
        raise ConfigError(f"{flag}: {error}") from error
    if not peers:
        raise ConfigError(f"{flag}: give the address of a node, /ip4/…/tcp/…/p2p/… (a running node prints its own)")
    return peers


@asynccontextmanager
async def connect(
    peers: Sequence[PeerInfo | str],
    *,
    identity: PeerKey | None = None,
    authorizer: Authorizer | None = None,
    config: RpcConfig | None = None,
) -> AsyncIterator[Client]:
    """A client of these nodes; connections are made when calls are. What nodes let it do depends on `identity` (a
    registered client id is a member; a throwaway key, the default, is a stranger). `authorizer` says whom it may call;
    anybody, by default. Raises ConfigError for an address that is none."""
    if isinstance(peers, str):
        peers = [peers]
    infos = [info if isinstance(info, PeerInfo) else parse_peers([info], flag="peers")[0] for info in peers]
    net = Libp2pNetwork(identity or PeerKey.generate(), Libp2pConfig(listen=()))
    data = DataPlane(net, hosts=())
    rpc = Rpc(net, authorizer or Everyone(), config=config, rng=random.Random(os.urandom(16)), data=data)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(net.run)
        await nursery.start(data.run)
        await nursery.start(rpc.run)
        for info in infos:
            net.learn(info)
        try:
            yield Client(rpc, tuple(info.peer_id for info in infos))
        except Exception as error:  # noqa: BLE001 - raised below, as the nursery would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
