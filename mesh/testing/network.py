"""SimNetwork: authenticated streams between PeerKeys in memory, for tests under trio's MockClock.

It implements mesh.net.base (same contract tests as the libp2p network) and shares its habits: streams are
windowed, a dial needs a known address, a crash breaks streams, the far side learns of an end one latency
later. What it draws (latency, loss) comes from one seeded rng, and nothing depends on the order of a set, so
that under `run_sim` the same seed gives the same trace (`SimNetwork.digest`).
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import DialFailed, LocalProtocolError, NetworkError, ProtocolNotSpoken, StreamBroken
from mesh.identity import PeerKey
from mesh.net.base import Handler, Lifetime, Protection
from mesh.net.drain import Drain
from mesh.net.manager import Connection, ManagerConfig, Tags, surplus
from mesh.peer import Multiaddr, PeerID, PeerInfo

log = logging.getLogger(__name__)

_FIRST_OCTET: Final = 128  # simulated addresses are spread over 128.0.0.0 … 191.255.0.0, one /16 per node
_OCTETS: Final = 64


class SimConfig(BaseModel):
    """Bounds and habits of a simulated network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_bytes: int = Field(default=256 * 1024, ge=1)
    """Unread bytes per stream and direction before the sender waits (yamux's first window)."""
    dial_timeout_s: float = Field(default=5.0, gt=0)
    """How long a dial into a partition takes to fail."""
    max_known_peers: int = Field(default=4096, ge=1)
    """Peers whose addresses a node remembers; the longest known leave first."""
    max_known_addrs: int = Field(default=8, ge=1)
    """Addresses remembered per peer."""
    max_lossy_bytes: int = Field(default=64 * 1024, ge=1)
    """A stream hit by `loss` breaks somewhere within this many bytes."""
    drain_s: float = Field(default=5.0, ge=0)
    """How long `drain` waits for what runs for others."""
    manager: ManagerConfig = ManagerConfig(high_water=1_000_000, low_water=1_000_000)
    """Which connections a node closes for economy, looked at when it gets a new one; by default none."""


class _Pipe:
    """One direction of a stream: chunks with arrival times, bounded by the window."""

    def __init__(self, window_bytes: int, latency_s: float) -> None:
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._free = window_bytes
        self._latency_s = latency_s
        self._last_arrival = 0.0
        self._broken_at: float | None = None
        self._reason = ""
        self._ended = False
        self._changed = trio.Event()
        self.lossy_after: int | None = None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def break_(self, reason: str, *, delay_s: float) -> None:
        """Both ends of this pipe fail once `delay_s` has passed; what is under way is lost."""
        at = trio.current_time() + delay_s
        if self._broken_at is None or at < self._broken_at:
            self._broken_at, self._reason = at, reason
            self._wake()

    def _check(self) -> None:
        if self._broken_at is not None and trio.current_time() >= self._broken_at:
            raise StreamBroken(self._reason)

    def end(self) -> None:
        """No more bytes will come (after those under way)."""
        if not self._ended:
            self._ended = True
            self._put(b"")

    def _put(self, data: bytes) -> None:
        self._last_arrival = max(self._last_arrival, trio.current_time() + self._latency_s)
        self._chunks.append((self._last_arrival, data))
        self._wake()

    async def send(self, data: bytes) -> None:
        if self._ended:
            raise StreamBroken("the stream was closed on this side")
        offset = 0
        while offset < len(data):
            self._check()
            if self._free <= 0:
                await self._wait(None)
                continue
            piece = data[offset : offset + self._free]
            if self.lossy_after is not None and len(piece) >= self.lossy_after:
                self.break_("connection lost (simulated)", delay_s=0.0)
                continue
            if self.lossy_after is not None:
                self.lossy_after -= len(piece)
            self._free -= len(piece)
            offset += len(piece)
            self._put(piece)
        self._check()

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            self._check()
            if not self._chunks:
                await self._wait(None)
                continue
            arrival, data = self._chunks[0]
            if arrival > trio.current_time():
                await self._wait(arrival)
                continue
            if not data:
                return b""  # stays there: the end is the end
            self._chunks.popleft()
            if len(data) > max_bytes:
                self._chunks.appendleft((arrival, data[max_bytes:]))
                data = data[:max_bytes]
            self._free += len(data)
            self._wake()
            return data

    async def _wait(self, until: float | None) -> None:
        """Until something changes, `until`, or the pipe breaks."""
        if until is None and self._broken_at is None:
            await self._changed.wait()
            return
        deadline = min(t for t in (until, self._broken_at) if t is not None)
        with trio.CancelScope(deadline=deadline):
            await self._changed.wait()


class SimStream:
    """One end of a simulated stream (mesh.net.base.Stream)."""

    def __init__(self, remote: PeerID, out: _Pipe, into: _Pipe, latency_s: float) -> None:
        self._remote = remote
        self._out = out
        self._into = into
        self._latency_s = latency_s
        self._sending = False
        self._receiving = False
        self._closed = False
        self.bytes_sent = 0

    @property
    def remote(self) -> PeerID:
        """Who is at the other end."""
        return self._remote

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See mesh.net.base.Stream."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            await self._out.send(bytes(data))
            self.bytes_sent += len(data)
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See mesh.net.base.Stream."""
        if max_bytes < 1:
            raise LocalProtocolError("receive_some needs max_bytes >= 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise StreamBroken("the stream was closed on this side")
            return await self._into.receive(max_bytes)
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """See mesh.net.base.Stream. The other side reads what was sent, then the end; its sends fail."""
        if not self._closed:
            self._closed = True
            self._out.end()
            self._into.break_(f"{self._remote.short} was told the stream is closed", delay_s=self._latency_s)

    async def reset(self) -> None:
        """See mesh.net.base.Stream."""
        self._closed = True
        self.cut("the stream was reset")

    def cut(self, reason: str) -> None:
        """Break both directions: here now, at the far end one latency later."""
        self._into.break_(reason, delay_s=0.0)
        self._out.break_(reason, delay_s=self._latency_s)
        self._out._ended = True


class _Link:
    """A live connection between two nodes and the streams on it."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.streams: list[SimStream] = []
        self.opened_at = self.used_at = trio.current_time()

    def cut(self, reason: str) -> None:
        """Break every stream at both ends."""
        for stream in self.streams:
            stream._into.break_(reason, delay_s=0.0)
            stream._out.break_(reason, delay_s=0.0)
        self.streams.clear()


@dataclass(slots=True)
class _Service:
    handler: Handler
    max_streams: int
    lifetime: Lifetime
    live: int = 0


class SimNode:
    """One simulated node's place on the network (mesh.net.base.Network)."""

    def __init__(self, sim: SimNetwork, key: PeerKey, addrs: Sequence[Multiaddr]) -> None:
        self._sim = sim
        self._local = PeerInfo(key.peer_id, tuple(addrs))
        self._services: dict[str, _Service] = {}
        self._known: dict[PeerID, PeerInfo] = {}
        self._links: dict[PeerID, _Link] = {}
        self._nursery: trio.Nursery | None = None
        self._tags = Tags(max_peers=sim.config.manager.max_tagged_peers)
        self._drain = Drain()
        self.alive = True

    @property
    def local(self) -> PeerInfo:
        """Our id and the addresses we announce."""
        return self._local

    @property
    def up(self) -> bool:
        """Whether it runs and was not killed."""
        return self.alive and self._nursery is not None

    @property
    def draining(self) -> trio.Event:
        """See mesh.net.base.Network."""
        return self._drain.begun

    def serve(
        self, protocol: str, handler: Handler, *, max_streams: int = 256, lifetime: Lifetime = Lifetime.EXCHANGE
    ) -> None:
        """See mesh.net.base.Network."""
        self._services[protocol] = _Service(handler, max_streams, lifetime)

    def learn(self, info: PeerInfo) -> None:
        """See mesh.net.base.Network."""
        if info.peer_id == self._local.peer_id:
            return
        old = self._known.pop(info.peer_id, None)
        addrs = dict.fromkeys((*info.addrs, *(old.addrs if old else ())))
        self._known[info.peer_id] = PeerInfo(info.peer_id, tuple(addrs)[: self._sim.config.max_known_addrs])
        while len(self._known) > self._sim.config.max_known_peers:
            del self._known[next(iter(self._known))]

    def known(self, peer: PeerID) -> PeerInfo:
        """See mesh.net.base.Network."""
        return self._local if peer == self._local.peer_id else self._known.get(peer, PeerInfo(peer))

    async def connect(self, info: PeerInfo) -> None:
        """See mesh.net.base.Network."""
        self.learn(info)
        await self._dial(info.peer_id)

    async def open(self, peer: PeerID, protocol: str) -> SimStream:
        """See mesh.net.base.Network. Costs two latencies (protocol negotiation) on a connection that is
        up."""
        link = await self._dial(peer)
        return await self._sim._open(self, peer, protocol, link)

    async def disconnect(self, peer: PeerID) -> None:
        """See mesh.net.base.Network."""
        self._sim._unlink(self._local.peer_id, peer, "disconnected")

    def connected(self) -> tuple[PeerID, ...]:
        """Peers with a live connection, in the order of connecting."""
        return tuple(self._links)

    def protect(self, peer: PeerID, tag: str, *, keep: Protection = Protection.ALWAYS) -> None:
        """See mesh.net.base.Network."""
        self._tags.protect(peer, tag, keep)

    def unprotect(self, peer: PeerID, tag: str) -> None:
        """See mesh.net.base.Network."""
        self._tags.unprotect(peer, tag)

    def hold(self) -> AbstractContextManager[None]:
        """See mesh.net.base.Network."""
        return self._drain.hold()

    async def drain(self) -> None:
        """See mesh.net.base.Network."""
        await self._drain.finish(self._sim.config.drain_s)

    async def run(self, *, task_status: trio.TaskStatus[PeerInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """See mesh.net.base.Network. May run again after it was cancelled (a restart)."""
        if self._nursery is not None:
            raise LocalProtocolError(f"{self._local.peer_id.short} is already running")
        if self.draining.is_set():  # it had ended before
            self._drain = Drain()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started(self._local)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for peer in tuple(self._links):
                self._sim._unlink(self._local.peer_id, peer, "the peer stopped")

    def _economize(self) -> None:
        """Close what is beyond the high water mark (mesh.net.manager)."""
        config = self._sim.config.manager
        if len(self._links) <= config.high_water:
            return
        facts = [
            Connection(peer, peer, link.opened_at, link.used_at, any(not stream._closed for stream in link.streams))
            for peer, link in self._links.items()
        ]
        for peer in surplus(facts, self._tags, config=config, now=trio.current_time()):
            self._sim._unlink(self._local.peer_id, peer, "there are too many connections")

    async def _dial(self, peer: PeerID) -> _Link:
        link = self._links.get(peer)
        if link is not None:
            await trio.lowlevel.checkpoint()
            return link
        return await self._sim._dial(self, self.known(peer))

    async def _serve(self, service: _Service, stream: SimStream, protocol: str) -> None:
        service.live += 1
        try:
            with self.hold() if service.lifetime is Lifetime.EXCHANGE else nullcontext():
                await service.handler(stream)
            await stream.aclose()
        except NetworkError as error:
            log.debug("%s: handler of %s ended: %s", self._local.peer_id.short, protocol, error)
            await stream.reset()
        except Exception:  # whatever a handler raises ends that stream only
            log.warning("handler of %s failed", protocol, exc_info=True)
            await stream.reset()
        finally:
            service.live -= 1
            stream.cut("the handler ended") if not stream._closed else None


class SimNetwork:
    """Nodes that reach each other in memory.

    `latency_s` is one way, drawn evenly from [latency_s, latency_s + jitter_s] once per pair of peers;
    `loss` is the probability, per opened stream, that opening fails or the stream breaks within its first
    bytes.
    """

    def __init__(
        self,
        *,
        seed: int,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        config: SimConfig | None = None,
    ) -> None:
        self.config = config or SimConfig()
        self._rng = random.Random(seed)
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._loss = loss
        self._nodes: dict[PeerID, SimNode] = {}
        self._by_addr: dict[str, SimNode] = {}
        self._latencies: dict[tuple[PeerID, PeerID], float] = {}
        self._group: dict[PeerID, int] = {}
        self._trace = hashlib.sha256()
        self.events = 0

    def node(self, key: PeerKey, *, addrs: Sequence[Multiaddr] | None = None) -> SimNode:
        """A node for this key; `addrs` is what it announces (default one address; empty: it cannot be
        dialled)."""
        if key.peer_id in self._nodes:
            raise LocalProtocolError(f"{key.peer_id.short} is already on this simulated network")
        index = len(self._nodes)
        octets = f"{_FIRST_OCTET + index % _OCTETS}.{index // _OCTETS % 256}.{index // _OCTETS // 256}.1"
        node = SimNode(self, key, (Multiaddr(f"/ip4/{octets}/tcp/4001"),) if addrs is None else addrs)
        self._nodes[key.peer_id] = node
        for address in node.local.addrs:
            self._by_addr[str(address)] = node
        return node

    def partition(self, groups: Iterable[Iterable[PeerID]]) -> None:
        """From now on only peers of one group reach each other (peers named nowhere form one more group);
        connections between groups break."""
        self._group = {peer: number for number, group in enumerate(groups, 1) for peer in group}
        self._note("partition", *(f"{peer}={number}" for peer, number in self._group.items()))
        for a, node in self._nodes.items():
            for b in tuple(node._links):
                if not self._reachable(a, b):
                    self._unlink(a, b, "the network is partitioned (simulated)")

    def heal(self) -> None:
        """End the partition; who wants a connection dials again."""
        self._group = {}
        self._note("heal")

    def kill(self, peer: PeerID) -> None:
        """Crash a node: its connections break and it neither dials nor answers until `revive`. Its tasks are
        not touched: whoever models a process cancels them too."""
        self._node(peer).alive = False
        self._note("kill", str(peer))
        for other in tuple(self._node(peer)._links):
            self._unlink(peer, other, "the peer crashed (simulated)")

    def revive(self, peer: PeerID) -> None:
        """Let a killed node dial and answer again."""
        self._node(peer).alive = True
        self._note("revive", str(peer))

    def digest(self) -> str:
        """Hash of everything that happened on the network so far, with times: equal for equal runs."""
        return self._trace.hexdigest()

    def _node(self, peer: PeerID) -> SimNode:
        if peer not in self._nodes:
            raise LocalProtocolError(f"{peer.short} is not on this simulated network")
        return self._nodes[peer]

    def _note(self, *words: str) -> None:
        self.events += 1
        self._trace.update(f"{trio.current_time():.9f} {' '.join(words)}\n".encode())

    def _reachable(self, a: PeerID, b: PeerID) -> bool:
        return self._group.get(a, 0) == self._group.get(b, 0)

    def _latency(self, a: PeerID, b: PeerID) -> float:
        pair = (a, b) if a < b else (b, a)
        if pair not in self._latencies:
            self._latencies[pair] = self._latency_s + self._jitter_s * self._rng.random()
        return self._latencies[pair]

    def _unlink(self, a: PeerID, b: PeerID, reason: str) -> None:
        link = self._node(a)._links.pop(b, None)
        if link is not None:
            self._node(b)._links.pop(a, None)
            self._note("unlink", str(a), str(b))
            link.cut(f"{b.short}: {reason}")

    async def _dial(self, node: SimNode, info: PeerInfo) -> _Link:
        local, peer = node.local.peer_id, info.peer_id
        if peer == local:
            raise DialFailed("a node cannot dial itself")
        if not node.up:
            raise DialFailed(f"{local.short} is not running")
        if not info.addrs:
            raise DialFailed(f"no address of {peer} is known")
        target = next((t for t in (self._by_addr.get(str(a)) for a in info.addrs) if t is not None), None)
        self._note("dial", str(local), str(peer))
        if target is not None and not self._reachable(local, target.local.peer_id):
            await trio.sleep(self.config.dial_timeout_s)
            raise DialFailed(f"{peer} did not answer within {self.config.dial_timeout_s} s")
        latency_s = self._latency(local, peer)
        await trio.sleep(2 * latency_s)
        if target is None or not target.up or target.local.peer_id != peer or target.draining.is_set():
            raise DialFailed(f"{peer} does not answer at {', '.join(map(str, info.addrs))}")
        if not node.up or not self._reachable(local, peer):
            raise DialFailed(f"{peer} did not answer")
        if peer not in node._links:  # another task of ours, or the peer, may have been faster
            link = _Link(latency_s)
            node._links[peer] = target._links[local] = link
            node.learn(target.local)
            target.learn(node.local)
            for one in (node, target):
                one._economize()
        if peer not in node._links:
            raise DialFailed(f"{peer} has too many connections")
        return node._links[peer]

    async def _open(self, node: SimNode, peer: PeerID, protocol: str, link: _Link) -> SimStream:
        local, target = node.local.peer_id, self._node(peer)
        self._note("open", str(local), str(peer), protocol)
        is_lost = self._loss > 0 and self._rng.random() < self._loss
        breaks_after = self._rng.randrange(2 * self.config.max_lossy_bytes) if is_lost else None
        await trio.sleep(2 * link.latency_s)
        if node._links.get(peer) is not link or target._nursery is None:
            raise StreamBroken(f"the connection to {peer.short} ended while a stream was opened")
        service = target._services.get(protocol)
        if service is None:
            raise ProtocolNotSpoken(f"{peer.short} does not speak {protocol}")
        if breaks_after is not None and breaks_after >= self.config.max_lossy_bytes:
            self._unlink(local, peer, "connection lost (simulated)")
            raise DialFailed(f"the connection to {peer.short} was lost (simulated)")
        there = _Pipe(self.config.window_bytes, link.latency_s)
        back = _Pipe(self.config.window_bytes, link.latency_s)
        there.lossy_after = back.lossy_after = breaks_after
        ours = SimStream(peer, there, back, link.latency_s)
        theirs = SimStream(local, back, there, link.latency_s)
        link.used_at = trio.current_time()
        if service.live >= service.max_streams or target.draining.is_set():
            theirs.cut(f"{peer.short} serves no more streams of {protocol}")
            return ours
        link.streams = [s for s in link.streams if not s._closed]
        link.streams += (ours, theirs)
        target._nursery.start_soon(target._serve, service, theirs, protocol)
        return ours
