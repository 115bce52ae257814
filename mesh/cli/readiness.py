"""Whether a node is ready to be registered: an elected node that does not answer loses reputation, then stake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from mesh.chain.checks import hotkey_warning, require_new_hotkey
from mesh.chain.portfolio import hotkey_owner
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
    found: list[str] = []
    skew_s = SystemClock().now() - await chain.timestamp_ms() / 1000
    if fault := clock_fault(skew_s):
        found.append(f"this machine's clock is {skew_s:+.0f} s off the chain's last block: {fault}")
    if address is not None and (why := await unanswered(address, peer)):
        found.append(why)
    if (await chain.subnet(subnet_id)).state is not SubnetState.ACTIVE:
        return tuple(found)
    if address is None:
        found.append("nothing says that the node runs: start it with mesh-server, and pass --address /ip4/…/tcp/…")
    bootnodes = await chain.bootnodes(subnet_id)
    if bootnodes and not await _any_accepts(bootnodes):
        found.append(f"none of the subnet's {len(bootnodes)} bootnodes accepts connections, so nobody new can enter")
    return tuple(found)


def clock_fault(skew_s: float) -> str | None:
    """What is wrong when this machine's clock is so far ahead of the chain's last block; None when a node would start.

    A right clock is up to a block time ahead: the timestamp is the last block's.
    """
    from mesh.node import CHAIN_STANDS_STILL_S, MAX_CLOCK_SKEW_S

    if skew_s < -MAX_CLOCK_SKEW_S:
        return "set this machine's clock right, or a node does not start"
    if skew_s > CHAIN_STANDS_STILL_S:
        return "the chain stands still, or this machine's clock is ahead"
    return None


async def vet_new_hotkey(chain: Chain, hotkey: bytes, *, coldkey: bytes) -> tuple[str, ...]:
    """Warnings about a hotkey that a coldkey is to register. Raises CallRefused when it cannot be registered."""
    require_new_hotkey(hotkey, coldkey=coldkey, owner=await hotkey_owner(chain, hotkey))
    warning = hotkey_warning(hotkey, free_planck=(await chain.balance(hotkey)).free_planck)
    return () if warning is None else (warning,)


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


async def _any_accepts(peers: Sequence[PeerInfo]) -> bool:
    for each in peers:
        if await accepts(each):
            return True
    return False


async def accepts(peer: PeerInfo) -> bool:
    """Whether one of a peer's TCP addresses takes a connection. Says nothing about who is there."""
    for host, port in tcp_places(peer):
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                stream = await trio.open_tcp_stream(host, port)
            await stream.aclose()
        except (trio.TooSlowError, OSError):
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
