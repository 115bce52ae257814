"""Whether a node is ready to be registered: an elected node that does not answer loses reputation, then stake."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from mesh.chain.types import SubnetState
from mesh.clock import SystemClock
from mesh.errors import MeshError
from mesh.peer import PeerID, PeerInfo

if TYPE_CHECKING:
    from mesh.chain.client import Chain

CONNECT_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 15.0


async def obstacles(chain: Chain, subnet_id: int, *, peer: PeerID, address: PeerInfo | None) -> tuple[str, ...]:
    """Sentences about what stands between this node and earning, none when it is ready.

    While the subnet is only registered nobody is elected yet, so that nothing has to run; in an active one the node
    must answer at `address` under its peer id, and one of the subnet's bootnodes must let newcomers in.
    """
    from mesh.node import CHAIN_STANDS_STILL_S, MAX_CLOCK_SKEW_S

    found: list[str] = []
    skew_s = SystemClock().now() - await chain.timestamp_ms() / 1000
    if not -MAX_CLOCK_SKEW_S < skew_s < CHAIN_STANDS_STILL_S:
        found.append(f"this machine's clock is {skew_s:+.0f} s off the chain's last block: set the clock")
    if address is not None and (why := await unanswered(address, peer)):
        found.append(why)
    if (await chain.subnet(subnet_id)).state is not SubnetState.ACTIVE:
        return tuple(found)
    if address is None:
        found.append("nothing says that the node runs: start it with mesh-server, and pass --address /ip4/…/tcp/…")
    bootnodes = await chain.bootnodes(subnet_id)
    if bootnodes and not any([await accepts(each) for each in bootnodes]):
        found.append(f"none of the subnet's {len(bootnodes)} bootnodes accepts connections, so nobody new can enter")
    return tuple(found)


async def unanswered(address: PeerInfo, peer: PeerID) -> str | None:
    """Why the node cannot be called at its address under this peer id; None when it can."""
    from mesh.client import connect
    from mesh.node import Empty, HealthServicer

    target = PeerInfo(peer, address.addrs)
    where = ", ".join(map(str, address.addrs))
    try:
        with trio.fail_after(CALL_TIMEOUT_S):
            async with connect([target]) as client:
                await client.rpc.stub(HealthServicer, peer).rpc_health(Empty())
    except trio.TooSlowError:
        return f"{peer} does not answer at {where} within {CALL_TIMEOUT_S:g} s: is its port open?"
    except MeshError as error:
        return f"{peer} does not answer at {where} ({error}): start it with mesh-server first"
    return None


async def accepts(peer: PeerInfo) -> bool:
    """Whether one of a peer's TCP addresses takes a connection. Says nothing about who is there."""
    for host, port in tcp_places(peer):
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                stream = await trio.open_tcp_stream(host, port)
            await stream.aclose()
        except (trio.TooSlowError, OSError, socket.gaierror):
            continue
        return True
    return False


def tcp_places(peer: PeerInfo) -> Sequence[tuple[str, int]]:
    """(host, port) of the addresses that are TCP."""
    found: list[tuple[str, int]] = []
    for address in peer.addrs:
        parts = str(address).split("/")
        if len(parts) >= 5 and parts[1] in ("ip4", "ip6", "dns", "dns4", "dns6") and parts[3] == "tcp":
            found.append((parts[2], int(parts[4])))
    return found
