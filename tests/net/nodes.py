"""Networks on loopback for tests, ours and bare py-libp2p."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo as BareInfo
from multiaddr import Multiaddr

from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.peer import PeerInfo

ECHO = "/test/echo/1.0.0"
SPARE_S = 10.0
"""What a busy machine may take beside a bound of ours."""
LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


def network(name: str, **limits: Any) -> Libp2pNetwork:
    net = Libp2pNetwork(PeerKey.dev(name), Libp2pConfig(**{"sweep_interval_s": 0.05, "linger_s": 0.2, **limits}))
    net.serve(ECHO, echo)
    return net


@asynccontextmanager
async def running(*networks: Libp2pNetwork) -> AsyncIterator[list[PeerInfo]]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            infos = [await nursery.start(net.run) for net in networks]
            yield infos
            nursery.cancel_scope.cancel()


async def still_serves(net: Libp2pNetwork) -> None:
    """A fresh peer can dial and use it."""
    probe = network("probe")
    async with running(probe):
        await probe.connect(net.local)
        stream = await probe.open(net.local.peer_id, ECHO)
        await stream.send_all(b"alive?")
        assert await stream.receive_some() == b"alive?"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - networks report connections by state, not by event
            await trio.sleep(0.005)


def bare_host(**options: Any) -> Any:
    """A py-libp2p host as its documentation makes it."""
    return new_host(key_pair=create_new_key_pair(), **options)


@asynccontextmanager
async def bare(*hosts: Any) -> AsyncIterator[list[Any]]:
    """The hosts, listening on loopback; what kills one comes out of here."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for host in hosts:

                async def run(host: Any = host, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                    async with host.run([LOOPBACK]):
                        task_status.started()
                        try:
                            await trio.sleep_forever()
                        finally:
                            with trio.CancelScope(shield=True, deadline=trio.current_time() + 3):
                                await host.close()

                await nursery.start(run)
            yield [BareInfo(host.get_id(), list(host.get_transport_addrs())) for host in hosts]
            nursery.cancel_scope.cancel()
