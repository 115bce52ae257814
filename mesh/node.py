"""A node put together: one nursery that owns the DHT, the chain, consensus and the subnet, and under it the network.

This is the composition root: it alone knows which implementation stands behind each protocol. A crash in any part
cancels all of them and the one cause comes out; shut-down is cancellation, of the network and of gossip last, so that a
node can still say that it goes. `run_node` is a node that works in a
subnet, `run_bootnode` one that only routes.
"""

from __future__ import annotations

import functools
import logging
import os
import random
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import Authorizer, Everyone, PeerClass
from mesh.auth.membership import MembershipAuthorizer, MembershipConfig
from mesh.chain.client import Chain
from mesh.chain.epochs import Epochs
from mesh.clock import Clock, SystemClock
from mesh.config import Discovery, NodeConfig
from mesh.consensus.loop import ConsensusLoop, inventory_rule, refusal_rule
from mesh.content import Content
from mesh.dht import DHT, DhtConfig, Role
from mesh.errors import ChainUnavailable, ConfigError, MeshError
from mesh.gossip import Gossip
from mesh.identity import AccountKey, PeerKey
from mesh.kad.validator import BlockPosition, NamespaceRule
from mesh.net.base import Network
from mesh.net.data import DataPlane
from mesh.offload import Offload, in_thread
from mesh.peer import PeerID, PeerInfo
from mesh.presence import Presence, presence_rule, presence_topic
from mesh.rpc.reflection import ReflectionServicer
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.subnet import Settlement, Subnet, SubnetContext
from mesh.worker import Compute, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

log = logging.getLogger(__name__)

MAX_UNREAD_SETTLEMENTS = 8
"""Settled epochs a slow subnet may fall behind before it misses the oldest."""

MAX_WAITING_NEIGHBOURS = 16
"""Peers found on the local network and not yet asked; further ones wait to be announced again."""
MAX_CLOCK_SKEW_S = 5.0
"""How far behind the chain's time a node may start."""
CHAIN_STANDS_STILL_S = 60.0
"""Ten of the real chain's blocks."""


@dataclass(frozen=True)
class Parts:
    """What a node is made of; a test hands in simulated ones."""

    identity: PeerKey
    net: Network
    chain: Chain | None
    """None: no chain at all (`--no_blockchain_rpc`), everyone is a member and nothing is settled."""
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=lambda: random.Random(os.urandom(16)))
    worker: Compute | None = None
    """None: a process of its own for the subnet's jobs."""
    offload: Offload = in_thread
    """How large blobs are read, hashed and written; a simulation has no threads."""
    data: DataPlane | None = None
    """Data connections beside the network's; None: libp2p streams carry all calls."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A running node, as `started` reports it."""

    local: PeerInfo
    subnet_id: int
    node_id: int | None
    genesis: bytes


class Empty(BaseModel):
    """No arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Health(BaseModel):
    """How a node is, for people and programs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subnet: str
    subnet_id: int
    epoch: int
    block: int
    connected: int
    has_chain: bool
    """False when the node runs without one and takes everyone as a member."""


class HealthServicer(Servicer):
    """`/mesh/health/1.0.0`: answers anyone."""

    protocol = "/mesh/health/1.0.0"

    def __init__(self, read: Callable[[], Health]) -> None:
        self._read = read

    @method(least=PeerClass.PUBLIC, timeout_s=5.0)
    async def rpc_health(self, request: Empty, ctx: RpcContext) -> Health:
        """This node's state now."""
        return self._read()


async def run_node(
    config: NodeConfig,
    parts: Parts,
    subnet: Subnet,
    subnet_config: Any,
    *,
    hotkey: AccountKey | None,
    task_status: trio.TaskStatus[NodeInfo] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Work in a subnet until cancelled; started() once joined and ready to earn.

    `hotkey` votes; without it the node works but neither proposes nor attests. Raises what its parts raise at start
    (ListenFailed, WrongChain, ConfigError); a chain that goes away later is waited for.
    """
    state = config.data_dir / "state"
    state.mkdir(parents=True, exist_ok=True)
    async with _outliving() as base, trio.open_nursery() as nursery:
        view = await _open_chain_view(nursery, config, parts)
        node_id = await _registered_as(view, config, parts.identity.peer_id)
        if view.has_chain and hotkey is not None:
            await _warn_of_an_empty(hotkey, view.chain)
        await base.start(parts.net.run)
        rpc = await _start_rpc(nursery, parts, view)
        rules: list[NamespaceRule] = [*subnet.rules(subnet_config)]
        if view.has_chain:
            rules += [inventory_rule(), refusal_rule()]
        dht = _dht(config, parts, rpc, rules, view, role=Role.SERVER, state_path=state / "dht.json")
        content = _content(config, parts, rpc, dht)
        rpc.serve(content.servicer())
        await nursery.start(dht.run, view.bootstrap)
        if config.metrics_port is not None:
            await nursery.start(_export_metrics, config.metrics_port, dht, rpc)
        gossip = _gossip(parts, view, dht)
        await base.start(gossip.run)
        presence = Presence(gossip, presence_topic(view.subnet_id, view.genesis), rng=random.Random(parts.rng.random()))
        await nursery.start(presence.run)
        if config.discovery is Discovery.MDNS:
            await nursery.start(_meet_neighbours, parts, dht)
        worker = parts.worker or Worker(subnet.jobs)
        await nursery.start(worker.run)

        send, receive = trio.open_memory_channel[Settlement](MAX_UNREAD_SETTLEMENTS)
        ctx = SubnetContext(
            identity=parts.identity,
            subnet_id=view.subnet_id,
            genesis=view.genesis,
            dht=dht,
            rpc=rpc,
            chain=view.chain,
            epochs=view.epochs,
            content=content,
            gossip=gossip,
            presence=presence,
            worker=worker,
            clock=parts.clock,
            rng=random.Random(parts.rng.random()),
            data_dir=config.data_dir,
            settlements=receive,
        )
        rpc.serve(HealthServicer(lambda: _health(subnet.name, view, parts.net)))
        for servicer in subnet.servicers(ctx, subnet_config):
            rpc.serve(servicer)
        await nursery.start(subnet.run, ctx, subnet_config)
        if view.has_chain:
            loop = ConsensusLoop(
                chain=view.chain,
                subnet_id=view.subnet_id,
                epochs=view.epochs,
                dht=dht,
                content=content,
                subnet=subnet,
                subnet_config=subnet_config,
                identity=parts.identity,
                hotkey=hotkey,
                state_dir=state,
                settlements=send,
                receiver=receive,
            )
            await nursery.start(loop.run)
        presence.go_online()
        info = NodeInfo(parts.net.local, view.subnet_id, node_id, view.genesis)
        log.info("%s is ready in subnet %d", info.local.peer_id, info.subnet_id)
        task_status.started(info)


async def run_bootnode(
    config: NodeConfig,
    parts: Parts,
    *,
    task_status: trio.TaskStatus[NodeInfo] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Route for others until cancelled: a DHT node that holds no records. started() once listening."""
    state = config.data_dir / "state"
    state.mkdir(parents=True, exist_ok=True)
    async with trio.open_nursery() as nursery:
        view = await _open_chain_view(nursery, config, parts)
        await nursery.start(parts.net.run)
        rpc = await _start_rpc(nursery, parts, view)
        rpc.serve(HealthServicer(lambda: _health("bootnode", view, parts.net)))
        dht = _dht(config, parts, rpc, [], view, role=Role.ROUTING_ONLY, state_path=state / "dht.json")
        await nursery.start(dht.run, view.bootstrap)
        if config.metrics_port is not None:
            await nursery.start(_export_metrics, config.metrics_port, dht, rpc)
        if config.discovery is Discovery.MDNS:
            await nursery.start(_meet_neighbours, parts, dht)
        task_status.started(NodeInfo(parts.net.local, view.subnet_id, None, view.genesis))


async def _meet_neighbours(
    parts: Parts, dht: DHT, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Find peers on the local network and ask each whether it is of this DHT. Raises ListenFailed at the start."""
    from mesh.net.mdns import discover

    send, receive = trio.open_memory_channel[PeerInfo](MAX_WAITING_NEIGHBOURS)

    def found(info: PeerInfo) -> None:
        parts.net.learn(info)
        with suppress(trio.WouldBlock):
            send.send_nowait(info)

    async with trio.open_nursery() as nursery:
        rng = random.Random(parts.rng.random())
        await nursery.start(functools.partial(discover, parts.net.local, found, rng=rng))
        task_status.started()
        async for info in receive:
            try:
                log.debug("meet %s, found on the local network", info.peer_id)
                await dht.meet(info)
            except MeshError as error:
                log.debug("%s, found on the local network, is none of ours: %s", info.peer_id, error)


@asynccontextmanager
async def _outliving() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled when the block inside has ended, not before: what runs in the block can use it while
    it is being cancelled itself. A crash in it cancels the block."""
    async with trio.open_nursery() as outer:
        base: trio.Nursery = await outer.start(_shielded)
        try:
            yield base
        finally:
            base.cancel_scope.cancel()


async def _shielded(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await trio.sleep_forever()


def check_clock(now_s: float, chain_s: float) -> None:
    """Raises ConfigError when our clock is behind the chain's last block, which no right clock can be: records would be
    signed with wrong times. Far ahead is only logged, since the chain itself may be standing still."""
    skew_s = now_s - chain_s
    if skew_s < -MAX_CLOCK_SKEW_S:
        raise ConfigError(
            f"this machine's clock is {-skew_s:.0f} s behind the chain: set it right (at most {MAX_CLOCK_SKEW_S:g} s)"
        )
    if skew_s > CHAIN_STANDS_STILL_S:
        log.warning("the chain's last block is %.0f s old: it stands still, or this machine's clock is ahead", skew_s)


@contextmanager
def one_process_per_hotkey(hotkey: AccountKey, directory: Path) -> Iterator[None]:
    """Hold the lock file of a hotkey: two running processes would vote twice. Raises ConfigError."""
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{hotkey.account_id.hex()}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"hotkey {hotkey.address} is already used by a running node on this machine: stop that one first"
            ) from error
        yield


def warn_when_open(addresses: Sequence[str]) -> None:
    """Say aloud that a node without a chain takes strangers as members."""
    if any("/127." not in address and "/::1/" not in address for address in addresses):
        log.warning("running without a chain on an address others can reach: everyone is a member")


@dataclass(frozen=True)
class _ChainView:
    """What the rest of the node sees of the chain, or of its absence."""

    subnet_id: int
    chain: Chain
    has_chain: bool
    """False: `chain` only tells time (mesh.chain.offline)."""
    epochs: Epochs
    authorizer: Authorizer
    is_member: Callable[[PeerID], bool]
    bootstrap: tuple[PeerInfo, ...]
    """Whom to join through: configured peers first, then the bootnodes that the chain lists."""

    @property
    def genesis(self) -> bytes:
        """The chain's."""
        return self.chain.genesis

    def position(self) -> BlockPosition | None:
        """Where the best block stands, or None while nobody knows."""
        try:
            position = self.epochs.position()
            return BlockPosition(self.epochs.block().number, position.epoch, position.offset, position.length)
        except ChainUnavailable:
            return None


async def _open_chain_view(nursery: trio.Nursery, config: NodeConfig, parts: Parts) -> _ChainView:
    configured = config.bootstrap()
    if parts.chain is None:
        from mesh.chain.offline import OfflineChain

        offline = OfflineChain(parts.clock)
        await nursery.start(offline.run)
        epochs = Epochs(offline, config.subnet_id)
        await nursery.start(epochs.run)
        return _ChainView(config.subnet_id, offline, False, epochs, Everyone(), lambda peer: True, configured)
    chain = parts.chain
    await nursery.start(chain.run)
    check_clock(parts.clock.now(), await chain.timestamp_ms() / 1000)
    subnet_id = await chain.resolve_subnet_id(config.subnet_id)
    epochs = Epochs(chain, subnet_id)
    await nursery.start(epochs.run)
    known = {info.peer_id for info in configured}
    listed = () if config.is_new_swarm else await chain.bootnodes(subnet_id)
    bootstrap = (*configured, *(info for info in listed if info.peer_id not in known))
    membership = MembershipAuthorizer(
        chain,
        subnet_id,
        config=MembershipConfig(
            min_stake_planck=config.min_stake_planck,
            grace_s=config.membership_grace_s,
            guest_open=config.guest_open,
        ),
        infrastructure=tuple(info.peer_id for info in configured),
    )
    await nursery.start(membership.run)
    return _ChainView(subnet_id, chain, True, epochs, membership, membership.is_member, bootstrap)


async def _registered_as(view: _ChainView, config: NodeConfig, peer: PeerID) -> int | None:
    """The node id our peer id is registered under, None when it is not (yet). Raises ConfigError when the node was told
    another one: it would run with somebody else's keys."""
    if not view.has_chain:
        return config.subnet_node_id
    node = (await view.chain.snapshot(view.subnet_id)).by_peer(peer)
    if node is None and config.subnet_node_id is not None:
        raise ConfigError(
            f"--subnet_node_id {config.subnet_node_id}: {peer} is not registered in subnet {view.subnet_id}"
        )
    if node is None:
        log.warning("%s is not registered in subnet %d: others will refuse it (register-node)", peer, view.subnet_id)
        return None
    if config.subnet_node_id not in (None, node.node_id):
        raise ConfigError(
            f"--subnet_node_id {config.subnet_node_id} does not fit: {peer} is registered as node {node.node_id}"
        )
    return node.node_id


async def _warn_of_an_empty(hotkey: AccountKey, chain: Chain) -> None:
    if not (await chain.balance(hotkey.account_id)).free_planck:
        log.warning(
            "hotkey %s holds nothing, and the chain takes no vote of an account that could not pay its fee: send it a "
            "little (mesh transfer --to %s --amount 1)",
            hotkey.address,
            hotkey.address,
        )


async def _start_rpc(nursery: trio.Nursery, parts: Parts, view: _ChainView) -> Rpc:
    if parts.data is not None:
        await nursery.start(parts.data.run)
    rpc = Rpc(parts.net, view.authorizer, rng=random.Random(parts.rng.random()), data=parts.data)
    rpc.serve(ReflectionServicer(rpc.served))
    await nursery.start(rpc.run)
    return rpc


def _content(config: NodeConfig, parts: Parts, rpc: Rpc, dht: DHT) -> Content:
    """The node's blobs; who has one, the DHT knows, under `content/` and its digest."""

    async def find_providers(digest: bytes) -> Sequence[PeerID]:
        found = await dht.find_providers(b"content/" + digest)
        return [info.peer_id for info in found if info.peer_id != parts.identity.peer_id]

    async def provide(digest: bytes) -> None:
        await dht.provide(b"content/" + digest, is_there=lambda: content.size(digest) is not None)

    content = Content(
        config.data_dir / "content", rpc, offload=parts.offload, find_providers=find_providers, provide=provide
    )
    return content


async def _export_metrics(
    port: int, dht: DHT, rpc: Rpc, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    from mesh.metrics import DhtCollector, RpcCollector, export

    await export((DhtCollector(dht), RpcCollector(rpc)), port=port, task_status=task_status)


def _dht(
    config: NodeConfig,
    parts: Parts,
    rpc: Rpc,
    rules: Sequence[NamespaceRule],
    view: _ChainView,
    *,
    role: Role,
    state_path: Path,
) -> DHT:
    return DHT(
        rpc,
        parts.identity,
        rules=rules,
        is_member=view.is_member,
        position=view.position,
        subnet_id=view.subnet_id,
        genesis=view.genesis,
        config=DhtConfig(role=role),
        clock=parts.clock,
        rng=random.Random(parts.rng.random()),
        state_path=state_path,
        records_path=state_path.with_name("records.sqlite") if config.keep_records else None,
        offload=parts.offload,
    )


def _gossip(parts: Parts, view: _ChainView, dht: DHT) -> Gossip:
    return Gossip(
        parts.net,
        parts.identity,
        is_member=view.is_member,
        rules=[presence_rule(presence_topic(view.subnet_id, view.genesis))],
        peers=lambda: [info.peer_id for info in dht.peers],
        clock=parts.clock,
        rng=random.Random(parts.rng.random()),
    )


def _health(name: str, view: _ChainView, net: Network) -> Health:
    position = view.position()
    return Health(
        subnet=name,
        subnet_id=view.subnet_id,
        epoch=position.epoch if position else 0,
        block=position.block if position else 0,
        connected=len(net.connected()),
        has_chain=view.has_chain,
    )
