"""Data connections: TLS 1.3 over TCP beside a libp2p connection, for calls and bulk.

py-libp2p's noise and yamux move some 50 MB/s in Python; a plain TLS socket moves several hundred. Both peers make a
certificate for this one connection and tell each other over their libp2p connection, which has proven who they are
(mesh.net.offer). Each trusts that one certificate and no other, and inside TLS both prove that they mean the same
offers. There is no cipher and no handshake of our own. Whoever dialled the libp2p connection dials this one too, to the
same IP address: an offer cannot aim a dial at anybody else. The stream over which the offers went stays open; when it
ends (with the libp2p connection) the data connection ends too.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, runtime_checkable

import trio
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mesh.clock import Clock, SystemClock
from mesh.errors import (
    DialFailed,
    ListenFailed,
    LocalProtocolError,
    MeshError,
    NotAuthorized,
    RemoteProtocolError,
    StreamBroken,
)
from mesh.net.base import Handler, Lifetime, Network, Stream
from mesh.net.offer import MAX_OFFER_BYTES, NONCE_BYTES, Agreement, Offer, Refusal, agree, decode, encode
from mesh.net.tls import (
    Identity,
    TlsStream,
    client_context,
    closed_context,
    dial,
    handshake,
    new_identity,
    server_context,
)
from mesh.peer import PeerID

log = logging.getLogger(__name__)

DATA_PROTOCOL: Final = "/mesh/data/1.0.0"
_READY: Final = b"\x01"
"""From the listening side when it was the one that asked: the other side may dial now."""


class DataConfig(BaseModel):
    """Limits of a node's data connections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(default=0, ge=0, le=65535)
    """TCP port they come in at, from 1024; 0 takes a free one. Fix it where a firewall or port forwarding must know
    it."""
    max_connections: int = Field(default=128, ge=1)
    """Live ones that others asked for."""
    max_connections_per_peer: int = Field(default=2, ge=1)
    """Of these, with one peer."""
    max_offers: int = Field(default=64, ge=1)
    """Offers that wait for their dial, in all."""
    max_offers_per_peer: int = Field(default=2, ge=1)
    """Of these, of one peer."""
    offer_life_s: float = Field(default=10.0, gt=0)
    """From the first byte of an offer to a usable connection."""
    max_unproven: int = Field(default=64, ge=1)
    """Sockets that have not finished their handshake; those from an address of which one is expected find room beyond
    it, so that strangers elsewhere cannot keep a peer out."""
    max_unproven_per_ip: int = Field(default=16, ge=1)
    """Of these, from one IP address."""
    handshake_timeout_s: float = Field(default=5.0, gt=0)
    """For TLS and what both sides prove inside it."""

    @field_validator("port")
    @classmethod
    def _unprivileged(cls, value: int) -> int:
        if 0 < value < 1024:  # peers refuse such offers: nobody shall make them dial a system's services
            raise ValueError("a data port is 0 (any free one) or from 1024 on")
        return value


class Route(Protocol):
    """The libp2p connection under a stream."""

    @property
    def ip(self) -> str:
        """Of its other end."""
        ...

    @property
    def is_dialler(self) -> bool:
        """Whether we dialled it."""
        ...


@runtime_checkable
class RoutedStream(Protocol):
    """A stream that knows the connection it is on; what data connections need of a network."""

    @property
    def route(self) -> Route:
        """The connection under it. Raises StreamBroken when that has no address (a relay)."""
        ...


class _Waiting:
    """A connection that is to be dialled by the other side."""

    def __init__(
        self, peer: PeerID, ip: str, context: ssl.SSLContext, certificate: bytes, agreement: Agreement
    ) -> None:
        self.peer = peer
        self.ip = ip
        """Of the other side, from which the dial should come."""
        self.context = context
        self.certificate = certificate
        self.agreement = agreement
        self.stream: TlsStream | None = None
        self.arrived = trio.Event()
        self.is_over = False
        """Nobody waits any more."""


class _Told(MeshError):
    """The peer is to be told why not."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class DataPlane:
    """A node's data connections, those it asks for and those that others do (mesh.rpc.rpc.DataConnections)."""

    def __init__(
        self,
        net: Network,
        *,
        hosts: Sequence[str],
        config: DataConfig | None = None,
        clock: Clock | None = None,
        nonce: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`hosts`: IP addresses to listen at, as the network's own (none: dial only)."""
        self.config = config or DataConfig()
        self._net = net
        self._hosts = tuple(dict.fromkeys(hosts))
        self._clock = clock or SystemClock()
        self._nonce = nonce
        self._handler: Handler | None = None
        self._authorize: Callable[[PeerID], Awaitable[object]] | None = None
        self._nursery: trio.Nursery | None = None
        self._port = 0
        self._closed_context: ssl.SSLContext | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._claimed: dict[ssl.SSLSocket, _Waiting] = {}
        self._unproven: Counter[str] = Counter()
        self._offers: Counter[PeerID] = Counter()
        self._live: dict[trio.CancelScope, tuple[PeerID, bool]] = {}
        """Connections, and whether the other side asked for them."""
        net.serve(
            DATA_PROTOCOL,
            self._on_offer,
            max_streams=self.config.max_connections + self.config.max_offers,
            lifetime=Lifetime.CHANNEL,
        )

    def serve(self, handler: Handler, authorize: Callable[[PeerID], Awaitable[object]]) -> None:
        """Let others ask for connections: `handler` serves them, `authorize` raises NotAuthorized for a peer that may
        have none. Until then all are refused."""
        self._handler = handler
        self._authorize = authorize

    def peers(self) -> tuple[PeerID, ...]:
        """Who has a live connection with us, in the order of connecting."""
        return tuple(dict.fromkeys(peer for peer, _ in self._live.values()))

    @property
    def port(self) -> int:
        """Where connections come in; 0 while it does not listen."""
        return self._port

    def count(self, peer: PeerID | None = None) -> int:
        """Live connections, with that peer or in all."""
        return sum(peer is None or other == peer for other, _ in self._live.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and keep connections until cancelled. Raises ListenFailed, LocalProtocolError when running already."""
        if self._nursery is not None:
            raise LocalProtocolError("this DataPlane is already running")
        listeners: list[socket.socket] = []
        try:
            for host in self._hosts:
                listeners.append(_listen(host, self._port or self.config.port))
                self._port = listeners[0].getsockname()[1]
            self._closed_context = closed_context(new_identity(self._clock.now()), self._select)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for listener in listeners:
                    nursery.start_soon(self._listen_at, listener)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery, self._port = None, 0
            for scope in tuple(self._live):
                scope.cancel()
            for listener in listeners:
                listener.close()

    async def close_peer(self, peer: PeerID) -> None:
        """End all connections with a peer, as when it is no member any more; never raises."""
        for scope, (other, _) in tuple(self._live.items()):
            if other == peer:
                scope.cancel()
        await trio.lowlevel.checkpoint()

    # --- asking ---

    async def open(self, peer: PeerID) -> TlsStream:
        """A connection to a peer for our calls, dialling its libp2p connection if needed.

        Raises DialFailed (also when there can be none, as through a relay), StreamBroken, NotAuthorized,
        RemoteProtocolError."""
        if self._nursery is None:
            raise DialFailed("data connections are not running")
        done: list[TlsStream | MeshError] = []
        ready = trio.Event()
        scope = trio.CancelScope()
        # In our own nursery, as the connection outlives this call; the caller's cancellation ends it while it opens.
        self._nursery.start_soon(self._ask, peer, scope, done, ready)
        try:
            await ready.wait()
        except BaseException:
            scope.cancel()
            raise
        if isinstance(done[0], MeshError):
            raise done[0]
        return done[0]

    async def _ask(
        self, peer: PeerID, scope: trio.CancelScope, done: list[TlsStream | MeshError], ready: trio.Event
    ) -> None:
        data: TlsStream | None = None
        try:
            with scope:
                stream = await self._net.open(peer, DATA_PROTOCOL)
                try:
                    with trio.fail_after(self.config.offer_life_s):
                        data = await self._negotiate(stream, peer)
                    done.append(data)
                    ready.set()
                    await self._keep(scope, stream, data, asked=False)
                finally:
                    with trio.move_on_after(1.0, shield=True):
                        if data is not None:
                            await data.reset()
                        await stream.reset()
        except trio.TooSlowError:
            done.append(DialFailed(f"{peer.short} opened no data connection within {self.config.offer_life_s:g} s"))
        except MeshError as error:
            done.append(error)
        finally:
            done.append(DialFailed("data connections were stopped"))
            ready.set()

    async def _negotiate(self, stream: Stream, peer: PeerID) -> TlsStream:
        route = _route(stream)
        identity = new_identity(self._clock.now())
        ours = Offer(identity.certificate, self._nonce(NONCE_BYTES), 0 if route.is_dialler else self._need_port())
        await stream.send_all(encode(ours))
        theirs = await _receive(stream)
        if isinstance(theirs, Refusal):
            if theirs.reason == "busy":
                raise DialFailed(f"{peer.short} has no room for a data connection: {theirs.text}")
            raise NotAuthorized(theirs.reason, theirs.text)
        local = self._net.local.peer_id
        agreement = agree(local, peer, ours, theirs, dialler=local if route.is_dialler else peer)
        if route.is_dialler:
            return await _dial(route.ip, theirs, identity, peer, agreement, self.config.handshake_timeout_s)
        with self._expect(peer, route.ip, identity, theirs, agreement) as waiting:
            await stream.send_all(_READY)
            return await _arrival(waiting)

    # --- being asked ---

    async def _on_offer(self, stream: Stream) -> None:
        """Serves a peer's offer and then its connection; runs in the network's task."""
        peer = stream.remote
        self._offers[peer] += 1
        data: TlsStream | None = None
        try:
            try:
                with trio.fail_after(self.config.offer_life_s):
                    data = await self._answer(stream, peer)
            except _Told as error:
                # Returning ends the stream in order; a failure would reset it, and the refusal might be lost.
                await stream.send_all(encode(error.refusal))
                return
            except trio.TooSlowError:
                raise StreamBroken(f"{peer.short} did not finish its offer in time") from None
            finally:
                self._offers[peer] -= 1
                if not self._offers[peer]:
                    del self._offers[peer]
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._keep_asked, scope, stream, data)
                    assert self._handler is not None
                    assert self._authorize is not None
                    await self._authorize(peer)  # again, as it may have lost its right before the connection was live
                    await self._handler(data)
                    nursery.cancel_scope.cancel()
        finally:
            if data is not None:
                with trio.move_on_after(1.0, shield=True):
                    await data.reset()

    async def _keep_asked(
        self,
        scope: trio.CancelScope,
        stream: Stream,
        data: TlsStream,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await self._keep(scope, stream, data, asked=True, task_status=task_status)
        scope.cancel()

    async def _answer(self, stream: Stream, peer: PeerID) -> TlsStream:
        theirs = await _receive(stream)
        if isinstance(theirs, Refusal):
            raise RemoteProtocolError("a refusal of nothing")
        try:
            self._check_room(peer)
            assert self._authorize is not None
            await self._authorize(peer)
            route = _route(stream)
            port = 0 if route.is_dialler else self._need_port()
        except NotAuthorized as error:
            raise _Told(Refusal(error.reason, str(error))) from error
        except DialFailed as error:
            raise _Told(Refusal("busy", str(error))) from error
        identity = new_identity(self._clock.now())
        ours = Offer(identity.certificate, self._nonce(NONCE_BYTES), port)
        local = self._net.local.peer_id
        agreement = agree(peer, local, theirs, ours, dialler=local if route.is_dialler else peer)
        if route.is_dialler:
            await stream.send_all(encode(ours))
            if await stream.receive_some(1) != _READY:
                raise StreamBroken(f"{peer.short} gave its offer up")
            return await _dial(route.ip, theirs, identity, peer, agreement, self.config.handshake_timeout_s)
        with self._expect(peer, route.ip, identity, theirs, agreement) as waiting:
            await stream.send_all(encode(ours))
            return await _arrival(waiting)

    def _check_room(self, peer: PeerID) -> None:
        config = self.config
        if self._nursery is None or self._handler is None:
            raise DialFailed("this node takes no data connections")
        asked = [other for other, by_them in self._live.values() if by_them]
        if len(asked) >= config.max_connections or asked.count(peer) >= config.max_connections_per_peer:
            raise DialFailed(f"{len(asked)} data connections are open, {asked.count(peer)} of them yours")
        if self._offers[peer] > config.max_offers_per_peer or self._offers.total() > config.max_offers:
            raise DialFailed("too many offers are waiting")

    def _need_port(self) -> int:
        if not self._port:
            raise DialFailed("this node listens for no data connections")
        return self._port

    async def _keep(
        self,
        scope: trio.CancelScope,
        stream: Stream,
        data: TlsStream,
        *,
        asked: bool,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until the data connection is closed here, or the stream of the offers ends."""
        self._live[scope] = (data.remote, asked)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:

                async def until_closed() -> None:
                    await data.closed.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_closed)
                try:
                    # Nothing more comes on it: its end is what is waited for, and a byte ends it too.
                    await stream.receive_some(1)
                except StreamBroken:
                    pass
                nursery.cancel_scope.cancel()
        finally:
            del self._live[scope]

    # --- listening ---

    def _expect(self, peer: PeerID, ip: str, identity: Identity, theirs: Offer, agreement: Agreement) -> _Expected:
        try:
            context = server_context(identity, theirs.certificate)
        except (ssl.SSLError, ValueError) as error:
            raise RemoteProtocolError(f"{peer.short} offers no certificate: {error}") from error
        except OSError as error:  # no descriptor for the key, say
            raise DialFailed(f"no certificate can be loaded: {error.strerror}") from error
        return _Expected(self._waiting, _Waiting(peer, ip, context, theirs.certificate, agreement))

    def _select(self, sock: ssl.SSLSocket, name: str | None) -> int | None:
        """The one connection of that name, once; else a TLS alert."""
        waiting = self._waiting.pop(name or "", None)
        if waiting is None:
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        sock.context = waiting.context
        self._claimed[sock] = waiting
        return None

    async def _listen_at(self, listener: socket.socket) -> None:
        assert self._nursery is not None
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                tcp, address = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                log.warning("no data connection can be accepted: %s", error.strerror)
                await trio.sleep(0.1)  # out of file descriptors: others may be closed meanwhile
                continue
            ip = str(address[0])
            tcp.setblocking(False)
            if self._unproven[ip] >= self.config.max_unproven_per_ip or not self._has_room(ip):
                tcp.close()
                continue
            self._unproven[ip] += 1
            self._nursery.start_soon(self._prove, tcp, ip)

    def _has_room(self, ip: str) -> bool:
        """Whether one more unknown socket may come from there."""
        is_full = self._unproven.total() >= self.config.max_unproven
        return not is_full or any(waiting.ip == ip for waiting in self._waiting.values())

    async def _prove(self, tcp: socket.socket, ip: str) -> None:
        """An unknown socket until it has shown which connection it is. What strangers send cannot make this raise."""
        assert self._closed_context is not None
        sock: ssl.SSLSocket | None = None
        stream: TlsStream | None = None
        try:
            with trio.move_on_after(self.config.handshake_timeout_s):
                tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock = _wrap(self._closed_context, tcp, server_side=True)
                waiting = await self._claim(sock)
                stream = TlsStream(sock, waiting.peer)
                if not hmac.compare_digest(await _exactly(stream, 32), waiting.agreement.hello):
                    raise RemoteProtocolError("a hello of another connection")
                await stream.send_all(waiting.agreement.ack)
                if waiting.is_over:
                    raise StreamBroken("nobody waits for it any more")
                waiting.stream = stream
                waiting.arrived.set()
        except (OSError, ValueError, MeshError) as error:
            log.debug("a data connection from %s came to nothing: %s", ip, error)
        finally:
            self._unproven[ip] -= 1
            if not self._unproven[ip]:
                del self._unproven[ip]
            if sock is not None:
                self._claimed.pop(sock, None)
            if stream is None:
                _close(sock or tcp)
            elif not (waiting.arrived.is_set()):
                _close(sock)

    async def _claim(self, sock: ssl.SSLSocket) -> _Waiting:
        await handshake(sock, lambda: self._claimed[sock].certificate)
        return self._claimed[sock]


class _Expected:
    """A name in the table of waiting connections, for as long as somebody waits."""

    def __init__(self, table: dict[str, _Waiting], waiting: _Waiting) -> None:
        self._table = table
        self._waiting = waiting

    def __enter__(self) -> _Waiting:
        self._table[self._waiting.agreement.name] = self._waiting
        return self._waiting

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._table.pop(self._waiting.agreement.name, None)
        stream = self._waiting.stream
        self._waiting.is_over = True
        if error is not None and stream is not None:
            stream._close()


async def _arrival(waiting: _Waiting) -> TlsStream:
    await waiting.arrived.wait()
    assert waiting.stream is not None
    return waiting.stream


async def _dial(
    ip: str, theirs: Offer, identity: Identity, peer: PeerID, agreement: Agreement, timeout_s: float
) -> TlsStream:
    if not theirs.port:
        raise DialFailed(f"{peer.short} listens for no data connections")
    sock: socket.socket | None = None
    try:
        with trio.fail_after(timeout_s):
            context = client_context(identity, theirs.certificate)
            sock = await dial(ip, theirs.port)
            tls = sock = _wrap(context, sock, server_side=False, name=agreement.name)
            await handshake(tls, lambda: theirs.certificate)
            stream = TlsStream(tls, peer)
            # A handshake can succeed here although the other side refuses our certificate: only its ack says not.
            await stream.send_all(agreement.hello)
            if not hmac.compare_digest(await _exactly(stream, 32), agreement.ack):
                raise RemoteProtocolError(f"{peer.short} acknowledged another connection")
            return stream
    except trio.TooSlowError:
        _close(sock)
        raise DialFailed(f"{peer.short} finished no handshake at port {theirs.port} within {timeout_s:g} s") from None
    except (OSError, ValueError) as error:
        _close(sock)
        raise DialFailed(f"{peer.short} at port {theirs.port}: {error}") from error
    except BaseException:
        _close(sock)
        raise


def _wrap(context: ssl.SSLContext, tcp: socket.socket, *, server_side: bool, name: str | None = None) -> ssl.SSLSocket:
    return context.wrap_socket(
        tcp, server_side=server_side, server_hostname=name, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )


def _close(sock: socket.socket | None) -> None:
    if sock is not None and sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()


async def _exactly(stream: TlsStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise StreamBroken("the other side refused the data connection")
        data += piece
    return data


async def _receive(stream: Stream) -> Offer | Refusal:
    """One length-prefixed value. Raises RemoteProtocolError, StreamBroken."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        want = 2 - len(data) if len(data) < 2 else 2 + int.from_bytes(data[:2], "big") - len(data)
        if want > MAX_OFFER_BYTES:
            raise RemoteProtocolError(f"an offer of {want} bytes, allowed are {MAX_OFFER_BYTES}")
        piece = await stream.receive_some(want)
        if not piece:
            raise StreamBroken(f"{stream.remote.short} ended its offer half-way")
        data += piece
    return decode(data[2:])


def _route(stream: Stream) -> Route:
    if not isinstance(stream, RoutedStream):
        raise DialFailed("this network has no addresses for data connections")
    try:
        return stream.route
    except StreamBroken as error:
        raise DialFailed(str(error)) from error


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ListenFailed(f"cannot listen for data connections on {host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ListenFailed(
            f"cannot listen for data connections on {host} port {port}: {error.strerror}; choose another port, or 0"
        ) from error
    return listener
