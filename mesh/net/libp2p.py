"""Libp2pNetwork: authenticated streams over py-libp2p 0.8.1, with noise and yamux on TCP.

py-libp2p gives the host, its protocol handlers, identify, noise and the life cycle of connections. Accepting,
dialling and closing sockets is done here and multiplexing in mesh.net.yamux, because that is where its faults would
let one stranger stop a node (mesh.net.compat lists them). Nothing else in mesh imports libp2p's host or swarm.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
from libp2p import new_host
from libp2p.abc import ConnectionType, INetConn, INetStream, ISecureConn
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.exceptions import CryptographyError
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.rsa import RSAPrivateKey
from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import MULTISELECT_PROTOCOL_ID, PROTOCOL_NOT_FOUND_MSG
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.utils.address_validation import expand_wildcard_address
from libp2p.utils.varint import encode_delim
from pydantic import BaseModel, ConfigDict, Field

from mesh.clock import Clock, SystemClock
from mesh.errors import (
    ConfigError,
    DialFailed,
    ListenFailed,
    LocalProtocolError,
    MeshError,
    ProtocolNotSpoken,
    RemoteProtocolError,
    StreamBroken,
)
from mesh.identity import KeyType, PeerKey
from mesh.net import compat
from mesh.net.addresses import Addresses, tcp_endpoint, unreachable, without_peer
from mesh.net.base import Handler, Lifetime, Protection
from mesh.net.drain import Drain
from mesh.net.manager import Connection, ManagerConfig, Tags, surplus
from mesh.net.peerstore import PeerStore, PeerStoreConfig
from mesh.net.yamux import YamuxConfig, YamuxConnection, YamuxStream
from mesh.peer import Multiaddr, PeerID, PeerInfo

log = logging.getLogger(__name__)

_LISTEN_BACKLOG: Final = 128
_UNBOUNDED: Final = 1_000_000
"""For limits of py-libp2p whose place ours take."""


class Libp2pConfig(BaseModel):
    """Addresses and limits of one node's network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: tuple[str, ...] = Field(default=("/ip4/127.0.0.1/tcp/0",), max_length=8)
    """Multiaddrs to listen on, TCP only; port 0 takes a free one. Empty: dial only."""
    announce: tuple[str, ...] = Field(default=(), max_length=8)
    """Multiaddrs to tell others instead, for a node behind port forwarding."""

    max_connections: int = Field(default=512, ge=2)
    """All connections; at this number we dial no more."""
    max_inbound: int = Field(default=400, ge=1)
    """Connections others dialled. When full, one idle for `min_idle_s` makes room, or the new one goes."""
    max_connections_per_ip: int = Field(default=128, ge=1)
    """Inbound connections from one IP address."""
    max_connections_per_peer: int = Field(default=4, ge=2)
    """Connections with one peer (simultaneous dials make two); the oldest makes room."""
    max_half_open: int = Field(default=64, ge=1)
    """Inbound connections before the end of their handshake; the oldest makes room."""
    max_half_open_per_ip: int = Field(default=32, ge=1)
    handshake_timeout_s: float = Field(default=5.0, gt=0)
    """For noise and the choice of the muxer, on connections others dialled."""

    max_dials: int = Field(default=32, ge=1)
    """Peers dialled at once; others wait."""
    dial_timeout_s: float = Field(default=10.0, gt=0)
    """For all addresses of a peer together, handshakes included."""
    dial_stagger_s: float = Field(default=0.25, gt=0)
    """Head start of a peer's better address before the next is tried beside it."""
    stream_timeout_s: float = Field(default=10.0, gt=0)
    """For opening a stream on a connection, waiting for a free one included."""
    linger_s: float = Field(default=5.0, gt=0)
    """How long a stream that ended here waits for its other side to end before it is reset."""
    min_idle_s: float = Field(default=30.0, ge=0)
    """How long an inbound connection without streams is left alone when room is needed."""
    idle_timeout_s: float = Field(default=900.0, gt=0)
    """How long any connection without streams is kept."""
    sweep_interval_s: float = Field(default=1.0, gt=0)
    close_timeout_s: float = Field(default=1.5, gt=0)
    """For ending in good order once `run` is cancelled."""
    drain_s: float = Field(default=5.0, ge=0)
    """How long `drain` waits for what runs for others."""

    manager: ManagerConfig = ManagerConfig()
    """Which connections are closed for economy."""
    store: PeerStoreConfig = PeerStoreConfig()
    """Addresses kept over restarts, when there is a file for them."""
    max_known_peers: int = Field(default=4096, ge=1)
    max_known_addrs: int = Field(default=8, ge=1)
    """Addresses remembered per peer."""
    muxer: YamuxConfig = YamuxConfig()


class Libp2pStream:
    """One stream to a peer (mesh.net.base.Stream)."""

    def __init__(self, remote: PeerID, muxed: YamuxStream, linger: Callable[[YamuxStream], None]) -> None:
        self._remote = remote
        self._muxed = muxed
        self._linger = linger
        self._closed = False
        self._sending = False
        self._receiving = False

    @property
    def remote(self) -> PeerID:
        """Who is at the other end, proven by the noise handshake."""
        return self._remote

    @property
    def route(self) -> Libp2pRoute:
        """The connection it is on. Raises StreamBroken when that is gone or leads over a relay."""
        connection = self._muxed.muxed_conn
        address = connection.get_remote_address()
        if address is None or connection.get_connection_type() is not ConnectionType.DIRECT:
            raise StreamBroken(f"there is no direct connection to {self._remote.short}")
        return Libp2pRoute(str(address[0]), connection.is_initiator)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See mesh.net.base.Stream. Returns when accepted; a lost connection may show at a later call only."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await self._muxed.write(data)
        except BaseLibp2pError as error:
            raise StreamBroken(f"stream to {self._remote.short} broke: {compat.reason(error)}") from error
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See mesh.net.base.Stream."""
        if max_bytes < 1:
            raise LocalProtocolError("receive_some needs max_bytes >= 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if self._closed:
            raise StreamBroken(f"stream to {self._remote.short} was closed on this side")
        self._receiving = True
        try:
            return await self._muxed.read(max_bytes)
        except MuxedStreamEOF:
            return b""
        except BaseLibp2pError as error:
            raise StreamBroken(f"stream to {self._remote.short} broke: {compat.reason(error)}") from error
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """See mesh.net.base.Stream. What was sent still arrives; what arrives from now on is thrown away."""
        if not self._closed:
            self._closed = True
            self._muxed.discard_input()
            self._muxed.finish()
            if not self._muxed.is_closed:
                self._linger(self._muxed)
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """See mesh.net.base.Stream."""
        self._closed = True
        self._muxed.abort()
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class Libp2pRoute:
    """The connection under a stream (mesh.net.data.Route)."""

    ip: str
    is_dialler: bool


@dataclass(slots=True)
class _Service:
    """A served protocol."""

    handler: Handler
    max_streams: int
    lifetime: Lifetime
    live: int = 0


@dataclass(slots=True)
class _Dial:
    """A dial in progress, shared by all who wait for the peer."""

    done: trio.Event = field(default_factory=trio.Event)
    error: str = ""


@dataclass(slots=True, eq=False)
class _HalfOpen:
    """An inbound connection that has not proven anything yet."""

    ip: str
    scope: trio.CancelScope


class Libp2pNetwork:
    """A node's place on the libp2p network (mesh.net.base.Network). Runs once; make a new one to run again."""

    def __init__(
        self,
        identity: PeerKey,
        config: Libp2pConfig | None = None,
        *,
        peers_path: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`peers_path`: the file that keeps proved addresses over restarts; None keeps none.

        Raises ConfigError when an address is no TCP multiaddr or py-libp2p cannot use the key.
        """
        self.config = config or Libp2pConfig()
        self._peers_path = peers_path
        self._clock = clock or SystemClock()
        self._store: PeerStore | None = None
        self._identity = identity
        self._key_pair = _key_pair(identity)
        self._listen = tuple(_listen_endpoint(text) for text in self.config.listen)
        self._announced = tuple(without_peer(_multiaddr("announce", text)) for text in self.config.announce)
        for address in self._announced:
            if reason := unreachable(address):
                log.warning("announce: others cannot reach this node at %s: %s", address, reason)
        self._local = PeerInfo(identity.peer_id, self._announced)
        self._addresses = Addresses(max_peers=self.config.max_known_peers, max_addrs=self.config.max_known_addrs)
        self._services: dict[str, _Service] = {}
        self._host: BasicHost | None = None
        self._nursery: trio.Nursery | None = None
        self._ran = False
        self._dials: dict[PeerID, _Dial] = {}
        self._dial_limit = trio.CapacityLimiter(self.config.max_dials)
        self._half_open: dict[_HalfOpen, None] = {}
        self._inbound_by_ip: Counter[str] = Counter()
        self._inbound: dict[YamuxConnection, None] = {}
        self._lingering: deque[tuple[float, YamuxStream]] = deque()
        self._tags = Tags(max_peers=self.config.manager.max_tagged_peers)
        self._drain = Drain()

    # --- mesh.net.base.Network ------------------------------------------------------------------------------------

    @property
    def local(self) -> PeerInfo:
        """Our id and the addresses we announce; those we listen at are known once `run` has started."""
        return self._local

    @property
    def listen_hosts(self) -> tuple[str, ...]:
        """IP addresses it listens at, as configured."""
        return tuple(host for host, _ in self._listen)

    @property
    def draining(self) -> trio.Event:
        """See mesh.net.base.Network."""
        return self._drain.begun

    def serve(
        self, protocol: str, handler: Handler, *, max_streams: int = 256, lifetime: Lifetime = Lifetime.EXCHANGE
    ) -> None:
        """See mesh.net.base.Network."""
        if not protocol.startswith("/") or len(protocol) > 128:
            raise LocalProtocolError(f"protocol {protocol!r} must begin with / and have at most 128 characters")
        if protocol in self._services:
            raise LocalProtocolError(f"protocol {protocol} is already served")
        self._services[protocol] = _Service(handler, max_streams, lifetime)
        if self._host is not None:
            self._register(self._host, protocol)

    def learn(self, info: PeerInfo) -> None:
        """See mesh.net.base.Network. An address at which the peer has answered us stays first."""
        if info.peer_id != self._identity.peer_id:
            self._addresses.learn(info)

    def known(self, peer: PeerID) -> PeerInfo:
        """See mesh.net.base.Network."""
        return self._local if peer == self._identity.peer_id else self._addresses.known(peer)

    def connected(self) -> tuple[PeerID, ...]:
        """Peers with a live connection, in the order of connecting."""
        if self._host is None:
            return ()
        connections = _swarm(self._host).connections
        return tuple(PeerID(peer.to_bytes()) for peer, all_of in connections.items() if any(map(_is_live, all_of)))

    async def connect(self, info: PeerInfo) -> None:
        """See mesh.net.base.Network."""
        self.learn(info)
        await self._connection(info.peer_id)

    async def open(self, peer: PeerID, protocol: str) -> Libp2pStream:
        """See mesh.net.base.Network. Takes one round trip on a live connection."""
        muxed = await self._connection(peer)
        try:
            return await self._open_on(muxed, peer, protocol)
        except StreamBroken:
            # A connection that had died unnoticed shows it now: then a new one is worth one try.
            if not muxed.is_closed:
                raise
        return await self._open_on(await self._connection(peer), peer, protocol)

    async def disconnect(self, peer: PeerID) -> None:
        """See mesh.net.base.Network."""
        if self._host is not None:
            await self._close(_swarm(self._host).get_connections(ID(peer.multihash)))

    def protect(self, peer: PeerID, tag: str, *, keep: Protection = Protection.ALWAYS) -> None:
        """See mesh.net.base.Network. A protected connection is not ended for being idle either."""
        self._tags.protect(peer, tag, keep)

    def unprotect(self, peer: PeerID, tag: str) -> None:
        """See mesh.net.base.Network."""
        self._tags.unprotect(peer, tag)

    def hold(self) -> AbstractContextManager[None]:
        """See mesh.net.base.Network."""
        return self._drain.hold()

    async def drain(self) -> None:
        """See mesh.net.base.Network. Its port refuses connections from now on; connections that are up stay."""
        await self._drain.finish(self.config.drain_s)

    async def run(self, *, task_status: trio.TaskStatus[PeerInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """See mesh.net.base.Network. Cancelled, it has closed every socket and connection within `close_timeout_s`."""
        if self._ran:
            raise LocalProtocolError("a Libp2pNetwork runs once: make a new one to run again")
        self._ran = True
        compat.apply()
        if self._peers_path is not None:
            self._store = self._open_store(self._peers_path)
        listeners: list[trio.SocketListener] = []
        try:
            for endpoint in self._listen:
                listeners.append(await _bind(*endpoint))  # noqa: PERF401 - closed below if a later one fails
            self._local = PeerInfo(self._identity.peer_id, self._announced or _addresses_of(listeners))
            host = self._new_host()
            async with host.run(()):
                try:
                    async with trio.open_nursery() as nursery:
                        self._host, self._nursery = host, nursery
                        nursery.start_soon(self._sweep)
                        if listeners:
                            nursery.start_soon(self._listen_until_draining, nursery, listeners)
                        if self._store is not None:
                            nursery.start_soon(self._keep_saved, self._store)
                        log.info("%s listens on %s", self._local.peer_id, ", ".join(map(str, self._local.addrs)))
                        task_status.started(self._local)
                        await trio.sleep_forever()
                finally:
                    self._host, self._nursery = None, None
                    # B8: a host that is only cancelled keeps its connections. Ours have closed their sockets as they
                    # were cancelled; this ends py-libp2p's own tasks.
                    deadline = trio.current_time() + self.config.close_timeout_s
                    with trio.CancelScope(deadline=deadline, shield=True):
                        await host.close()
        finally:
            for listener in listeners:
                listener.socket.close()

    async def _listen_until_draining(self, nursery: trio.Nursery, listeners: Sequence[trio.SocketListener]) -> None:
        """Accept into `nursery`, where connections outlive the listening."""
        async with trio.open_nursery() as accepting:

            async def serve() -> None:
                await trio.serve_listeners(self._accept, list(listeners), handler_nursery=nursery)

            accepting.start_soon(serve)
            await self._drain.begun.wait()
            accepting.cancel_scope.cancel()
        for listener in listeners:
            await listener.aclose()
        for half in tuple(self._half_open):
            half.scope.cancel()

    # --- addresses kept over restarts -----------------------------------------------------------------------------

    def _open_store(self, path: Path) -> PeerStore:
        now = self._clock.now()
        store = PeerStore(path, self.config.store, now=now)
        known = store.peers(now=now)
        for info in reversed(known):  # newest last, so that the bounds here drop the oldest
            told = self._addresses.known(info.peer_id).addrs
            self._addresses.learn(info)
            self._addresses.learn(PeerInfo(info.peer_id, told))  # what this run was told stays before what was stored
            if not told:
                self._addresses.proved(info.peer_id, info.addrs[0])
        if known:
            log.info("%d peers are known from %s", len(known), path)
        return store

    async def _keep_saved(self, store: PeerStore) -> None:
        try:
            while True:
                await trio.sleep(self.config.store.save_interval_s)
                self._prove_connected(store)
                store.save(now=self._clock.now())
        finally:
            store.save(now=self._clock.now())

    def _prove_connected(self, store: PeerStore) -> None:
        """An address at which we are connected right now is proved right now."""
        assert self._host is not None
        for connection in _swarm(self._host).get_connections():
            muxed = _muxed(connection)
            if muxed.is_initiator and _is_live(connection):
                peer = PeerID(muxed.peer_id.to_bytes())
                if (address := self._addresses.proved_address(peer)) is not None:
                    store.proved(peer, address, now=self._clock.now())

    # --- the host -------------------------------------------------------------------------------------------------

    def _new_host(self) -> BasicHost:
        config = self.config
        book = compat.AddressBook(
            self._heard, max_addrs=config.max_known_addrs, max_peers=config.max_known_peers, own=self._key_pair
        )
        host = new_host(
            key_pair=self._key_pair,
            sec_opt={
                NOISE_PROTOCOL_ID: NoiseTransport(
                    self._key_pair, noise_privkey=create_new_x25519_key_pair().private_key
                )
            },
            muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): YamuxConnection},
            peerstore_opt=book,
            # No connection is made for its own sake (min, low), and our limits apply instead of these.
            connection_config=ConnectionConfig(
                max_connections=_UNBOUNDED,
                high_watermark=_UNBOUNDED,
                low_watermark=0,
                min_connections=0,
                max_connections_per_peer=_UNBOUNDED,
                inbound_upgrade_timeout=config.handshake_timeout_s,
                outbound_upgrade_timeout=config.dial_timeout_s,
                inbound_stream_protocol_negotiation_timeout=max(1.0, config.stream_timeout_s),
                outbound_stream_protocol_negotiation_timeout=max(1.0, config.stream_timeout_s),
            ),
            addrs_factory=lambda _candidates: list(self._local.addrs),
            disable_identify_address_discovery=True,
        )
        assert isinstance(host, BasicHost)
        compat.contain(host)
        compat.use_muxer(host, self._muxer)
        for protocol in self._services:
            self._register(host, protocol)
        return host

    def _muxer(self, conn: ISecureConn, peer: ID) -> YamuxConnection:
        return YamuxConnection(conn, peer, config=self.config.muxer)

    def _heard(self, peer: ID, addrs: Sequence[Multiaddr]) -> None:
        """What identify says of a peer."""
        try:
            self.learn(PeerInfo(PeerID(peer.to_bytes()), tuple(map(without_peer, addrs))))
        except (RemoteProtocolError, ValueError) as error:
            log.debug("ignored addresses of %s: %s", peer, error)

    def _register(self, host: BasicHost, protocol: str) -> None:
        service = self._services[protocol]

        async def on_stream(stream: INetStream) -> None:
            await self._serve(protocol, service, stream)

        host.set_stream_handler(TProtocol(protocol), on_stream)

    async def _serve(self, protocol: str, service: _Service, net_stream: INetStream) -> None:
        muxed = net_stream.muxed_stream
        if self._drain.begun.is_set():
            muxed.abort()
            log.debug("%s: refused a stream, this node is about to end", protocol)
            return
        if service.live >= service.max_streams:
            muxed.abort()
            log.debug("%s: more than %d streams at once", protocol, service.max_streams)
            return
        stream = Libp2pStream(PeerID(net_stream.muxed_conn.peer_id.to_bytes()), muxed, self._linger)
        service.live += 1
        try:
            with self.hold() if service.lifetime is Lifetime.EXCHANGE else nullcontext():
                await service.handler(stream)
        except MeshError as error:
            log.debug("%s with %s ended: %s", protocol, stream.remote.short, error)
            muxed.abort()
        except Exception:  # the design: what a handler raises ends its stream only (B2)
            log.exception("handler of %s failed with %s", protocol, stream.remote)
            muxed.abort()
        except BaseException:
            muxed.abort()
            raise
        else:
            await stream.aclose()
        finally:
            service.live -= 1

    def _linger(self, muxed: YamuxStream) -> None:
        self._lingering.append((trio.current_time() + self.config.linger_s, muxed))

    async def _sweep(self) -> None:
        """Ends what others leave open: streams we have ended, and connections nobody uses."""
        while True:
            await trio.sleep(self.config.sweep_interval_s)
            now = trio.current_time()
            while self._lingering and self._lingering[0][0] <= now:
                self._lingering.popleft()[1].abort()
            if self._host is not None and self._nursery is not None:
                leaving = self._unwanted(_swarm(self._host).get_connections(), now)
                if leaving:
                    self._nursery.start_soon(self._close, leaving)

    def _unwanted(self, connections: Sequence[INetConn], now: float) -> list[INetConn]:
        """Those nobody has used for long, and those beyond what a node cares to keep."""
        idle = [
            connection
            for connection in connections
            if (since := _muxed(connection).idle_since) is not None
            and now - since > self.config.idle_timeout_s
            and not self._tags.is_protected(PeerID(_muxed(connection).peer_id.to_bytes()))
        ]
        if len(connections) <= self.config.manager.high_water:
            return idle
        gone = set(map(id, idle))
        live = [c for c in connections if id(c) not in gone and _is_live(c)]
        return [*idle, *surplus(map(_facts, live), self._tags, config=self.config.manager, now=now)]

    async def _close(self, connections: Sequence[INetConn]) -> None:
        """Close together: each close of py-libp2p sleeps for 0.1 s."""
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(connection.close)

    # --- inbound --------------------------------------------------------------------------------------------------

    async def _accept(self, tcp: trio.SocketStream) -> None:
        """Serves one inbound TCP connection until it ends. What strangers send cannot make this raise."""
        async with tcp:
            try:
                ip = str(tcp.socket.getpeername()[0])
            except OSError:
                return  # already gone
            if self._inbound_by_ip[ip] >= self.config.max_connections_per_ip or not self._has_room():
                log.debug("refused a connection from %s: too many", ip)
                return
            self._inbound_by_ip[ip] += 1
            try:
                muxed = await self._upgrade_inbound(tcp, ip)
                if muxed is not None:
                    self._inbound[muxed] = None
                    try:
                        self._trim(muxed)
                        await muxed.event_closed.wait()
                    finally:
                        del self._inbound[muxed]
            finally:
                self._inbound_by_ip[ip] -= 1
                if not self._inbound_by_ip[ip]:
                    del self._inbound_by_ip[ip]

    async def _upgrade_inbound(self, tcp: trio.SocketStream, ip: str) -> YamuxConnection | None:
        assert self._host is not None
        if sum(half.ip == ip for half in self._half_open) >= self.config.max_half_open_per_ip:
            log.debug("refused a connection from %s: too many unfinished handshakes", ip)
            return None
        if len(self._half_open) >= self.config.max_half_open:
            oldest = next(iter(self._half_open))
            del self._half_open[oldest]
            oldest.scope.cancel()
        muxed: YamuxConnection | None = None
        with trio.move_on_after(self.config.handshake_timeout_s) as scope:
            half = _HalfOpen(ip, scope)
            self._half_open[half] = None
            try:
                muxed = await _swarm(self._host).upgrade_inbound_raw_conn(
                    RawConnection(TrioTCPStream(tcp), False), Multiaddr("/ip4/0.0.0.0/tcp/0")
                )
            except Exception as error:  # noqa: BLE001 - anything a stranger sends before its handshake ends this only
                log.debug("handshake with %s failed: %s", ip, compat.reason(error))
            finally:
                self._half_open.pop(half, None)
        if scope.cancelled_caught:
            log.debug("handshake with %s did not finish", ip)
        return muxed

    def _has_room(self) -> bool:
        """Whether one more inbound connection may come; ends the one that has been idle longest if that helps."""
        if len(self._inbound) + len(self._half_open) < self.config.max_inbound:
            return True
        assert self._nursery is not None
        before = trio.current_time() - self.config.min_idle_s
        idle = [
            muxed
            for muxed in self._inbound
            if muxed.idle_since is not None
            and muxed.idle_since <= before
            and not self._tags.is_protected(PeerID(muxed.peer_id.to_bytes()))
        ]
        if not idle:
            return False
        longest = min(idle, key=lambda muxed: muxed.idle_since or 0.0)
        longest.idle_since = None  # it leaves once only
        self._nursery.start_soon(longest.close)
        return True

    def _trim(self, muxed: YamuxConnection) -> None:
        """The newest connections of a peer stay: a peer that restarted does not wait for its old ones to time out."""
        assert self._host is not None
        assert self._nursery is not None
        live = [c for c in _swarm(self._host).get_connections(muxed.peer_id) if _is_live(c)]
        extra = live[: max(0, len(live) - self.config.max_connections_per_peer)]
        if extra:
            self._nursery.start_soon(self._close, extra)

    # --- outbound -------------------------------------------------------------------------------------------------

    async def _connection(self, peer: PeerID) -> YamuxConnection:
        """A live connection to the peer, dialled if needed. Raises DialFailed."""
        if self._host is None or self._nursery is None:
            raise DialFailed(f"cannot reach {peer}: this network is not running")
        if peer == self._identity.peer_id:
            raise DialFailed(f"cannot dial {peer}: that is this node")
        if live := self._live(peer):
            return live
        dial = self._dials.get(peer)
        if dial is None:
            # In our own nursery: a caller that gives up must not take the dial from the others who wait for it.
            dial = self._dials[peer] = _Dial()
            self._nursery.start_soon(self._dial, peer, dial)
        await dial.done.wait()
        live = self._live(peer)
        if live is None:
            raise DialFailed(f"cannot reach {peer}: {dial.error or 'the connection was lost at once'}")
        return live

    def _live(self, peer: PeerID) -> YamuxConnection | None:
        if self._host is None:
            return None
        connections = _swarm(self._host).connections.get(ID(peer.multihash), ())
        return next((_muxed(c) for c in connections if _is_live(c)), None)

    async def _dial(self, peer: PeerID, dial: _Dial) -> None:
        dial.error = "the network stopped"
        try:
            async with self._dial_limit:
                dial.error = await self._try_addresses(peer)
        finally:
            del self._dials[peer]
            dial.done.set()

    async def _try_addresses(self, peer: PeerID) -> str:
        """Dial a peer's addresses, the better ones with a head start; says what went wrong, or ""."""
        assert self._host is not None
        swarm = _swarm(self._host)
        addresses = self._addresses.known(peer).addrs
        if not addresses:
            return "no address of it is known"
        if len(swarm.get_connections()) >= self.config.max_connections:
            return f"this node has {self.config.max_connections} connections already (max_connections)"
        errors: dict[Multiaddr, str] = {}
        reached = False

        async def attempt(address: Multiaddr, failed: trio.Event, winner: trio.CancelScope) -> None:
            nonlocal reached
            try:
                await _dial_address(swarm, peer, address)
            except DialFailed as error:
                errors[address] = str(error)
                if "Peer ID mismatch" in str(error) or "does not correspond" in str(error):
                    self._addresses.wrong(peer, address)
                    if self._store is not None:
                        self._store.wrong(peer, address)
                else:
                    self._addresses.failed(peer, address)
                failed.set()
            else:
                reached = True
                self._addresses.proved(peer, address)
                if self._store is not None:
                    self._store.proved(peer, address, now=self._clock.now())
                winner.cancel()

        with trio.move_on_after(self.config.dial_timeout_s) as scope:
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    failed = trio.Event()
                    nursery.start_soon(attempt, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(self.config.dial_stagger_s):
                        await failed.wait()
        if reached:
            return ""
        if scope.cancelled_caught:
            for address in addresses:
                errors.setdefault(address, f"no answer within {self.config.dial_timeout_s:g} s")
        return "; ".join(f"{address}: {error}" for address, error in errors.items())

    async def _open_on(self, muxed: YamuxConnection, peer: PeerID, protocol: str) -> Libp2pStream:
        stream: YamuxStream | None = None
        try:
            with trio.fail_after(self.config.stream_timeout_s):
                stream = await muxed.open_stream()
                await _negotiate(stream, peer, protocol)
                return Libp2pStream(peer, stream, self._linger)
        except trio.TooSlowError:
            _abort(stream)
            raise StreamBroken(
                f"{peer.short} did not open {protocol} within {self.config.stream_timeout_s:g} s"
            ) from None
        except BaseLibp2pError as error:
            _abort(stream)
            raise StreamBroken(f"{peer.short} did not open {protocol}: {compat.reason(error)}") from error
        except BaseException:
            _abort(stream)
            raise


def _abort(stream: YamuxStream | None) -> None:
    if stream is not None:
        stream.abort()


async def _negotiate(stream: YamuxStream, peer: PeerID, protocol: str) -> None:
    """multistream-select 1.0.0, both of our messages at once: the answers take one round trip instead of two."""
    await stream.write(encode_delim(MULTISELECT_PROTOCOL_ID.encode()) + encode_delim(protocol.encode()))
    communicator = MultiselectCommunicator(stream)
    if (hello := await communicator.read()) != MULTISELECT_PROTOCOL_ID:
        raise StreamBroken(f"{peer.short} answered {hello[:40]!r} instead of {MULTISELECT_PROTOCOL_ID}")
    answer = await communicator.read()
    if answer == PROTOCOL_NOT_FOUND_MSG:
        raise ProtocolNotSpoken(f"{peer.short} does not speak {protocol}")
    if answer != protocol:
        raise StreamBroken(f"{peer.short} answered {answer[:40]!r} to {protocol}")


async def _dial_address(swarm: Swarm, peer: PeerID, address: Multiaddr) -> None:
    """One TCP connection and its handshakes. Raises DialFailed with the innermost cause."""
    endpoint = tcp_endpoint(address)
    if endpoint is None:
        raise DialFailed("not a TCP address")
    try:
        tcp = await trio.open_tcp_stream(*endpoint)
    except OSError as error:
        raise DialFailed(_os_reason(error)) from error
    done = False
    try:
        await swarm.upgrade_outbound_raw_conn(RawConnection(TrioTCPStream(tcp), True), ID(peer.multihash))
        done = True
    except Exception as error:
        raise DialFailed(compat.reason(error)) from error
    finally:
        if not done:
            tcp.socket.close()


def _os_reason(error: OSError) -> str:
    cause: BaseException = error
    while isinstance(cause.__cause__, OSError | BaseExceptionGroup):
        cause = cause.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[-1]
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    return text.lower()


def _swarm(host: BasicHost) -> Swarm:
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    return swarm


def _muxed(connection: INetConn) -> YamuxConnection:
    muxed = connection.muxed_conn
    assert isinstance(muxed, YamuxConnection)
    return muxed


def _facts(connection: INetConn) -> Connection[INetConn]:
    muxed = _muxed(connection)
    return Connection(
        key=connection,
        peer=PeerID(muxed.peer_id.to_bytes()),
        opened_at=muxed.opened_at,
        used_at=muxed.used_at,
        has_streams=muxed.idle_since is None,
    )


def _is_live(connection: INetConn) -> bool:
    return not connection.is_closed and _muxed(connection).is_established


# --- addresses and keys -------------------------------------------------------------------------------------------


def _multiaddr(name: str, text: str) -> Multiaddr:
    try:
        return Multiaddr(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is not a multiaddr such as /ip4/0.0.0.0/tcp/31330") from error


def _listen_endpoint(text: str) -> tuple[str, int]:
    parts = list(without_peer(_multiaddr("listen", text)).items())
    if len(parts) != 2 or parts[0][0].name not in ("ip4", "ip6") or parts[1][0].name != "tcp":
        raise ConfigError(f"listen: {text!r} is not of the form /ip4/<address>/tcp/<port> (TCP is the only transport)")
    return str(parts[0][1]), int(str(parts[1][1]))


async def _bind(host: str, port: int) -> trio.SocketListener:
    """A listening socket. SO_REUSEADDR only: py-libp2p's SO_REUSEPORT lets two processes share a port in silence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ListenFailed(f"cannot listen on {address}: {_os_reason(error)}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((host, port))
        sock.listen(_LISTEN_BACKLOG)
        return trio.SocketListener(sock)
    except OSError as error:
        sock.close()
        raise ListenFailed(f"cannot listen on {address}: {_bind_reason(error)}") from error
    except BaseException:
        sock.close()
        raise


def _bind_reason(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another process uses this port; stop it, choose another port, or use port 0 for any free one"
        case errno.EADDRNOTAVAIL:
            return "this is not an address of this machine; use one it has, or 0.0.0.0 for all"
        case errno.EACCES:
            return "ports below 1024 need privileges; choose a higher port"
        case _:
            return _os_reason(error)


def _addresses_of(listeners: Sequence[trio.SocketListener]) -> tuple[Multiaddr, ...]:
    """Where we can be reached: the real ports, and every interface for a wildcard."""
    addresses: dict[Multiaddr, None] = {}
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        kind = "ip6" if ":" in host else "ip4"
        address = Multiaddr(f"/{kind}/{host}/tcp/{port}")
        for one in expand_wildcard_address(address) if host in ("0.0.0.0", "::") else [address]:
            if tcp_endpoint(one) is not None:
                addresses[one] = None
    return tuple(addresses)


def _key_pair(identity: PeerKey) -> KeyPair:
    kinds: dict[KeyType, Callable[[bytes], Ed25519PrivateKey | RSAPrivateKey | Secp256k1PrivateKey]] = {
        KeyType.ED25519: Ed25519PrivateKey.from_bytes,  # takes the 32-byte seed
        KeyType.RSA: RSAPrivateKey.from_bytes,
        KeyType.SECP256K1: Secp256k1PrivateKey.from_bytes,
    }
    try:
        private = kinds[identity.type](identity.private)
    except (CryptographyError, ValueError) as error:
        raise ConfigError(f"py-libp2p cannot use this peer key: {error}") from error
    pair = KeyPair(private, private.get_public_key())
    if ID.from_pubkey(pair.public_key).to_bytes() != identity.peer_id.multihash:
        raise LocalProtocolError(f"py-libp2p derives another peer id than {identity.peer_id} from this key")
    return pair
