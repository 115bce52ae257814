"""`/ipfs/kad/1.0.0` on streams: how libp2p nodes that know nothing of mesh take part in a DHT, and we in theirs.

Whoever asks is held to the same classes as everywhere: guests may read, members may put and provide, anybody may ping.
What they put passes the same validators. A member that serves gets a place in the routing table like any other and is
asked on this wire. Errors end the stream, as the spec wants; they are counted.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh import protobuf
from mesh.auth.authorizer import PeerClass, is_enough
from mesh.dht.answers import Answered, Judged, closest_to
from mesh.dht.holdings import Holdings
from mesh.dht.metrics import DhtMetrics
from mesh.dht.rates import CallerRates
from mesh.errors import MeshError, NotAuthorized, RecordRejected, RemoteProtocolError, RequestTimeout, StreamBroken
from mesh.kad import ipfs
from mesh.kad.ipfs import Kind, Message
from mesh.kad.key import Key, key_of, wire_key
from mesh.kad.providers import ProviderStore
from mesh.kad.record import Record
from mesh.kad.routing import RoutingTable
from mesh.kad.wire import MAX_CLOSER, Query, Role, parse_addrs, parse_peers, raw_addrs, raw_peers
from mesh.net.base import Stream
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.rpc import Rpc

log = logging.getLogger(__name__)

_LEAST: Final = {
    Kind.PING: PeerClass.PUBLIC,
    Kind.FIND_NODE: PeerClass.GUEST,
    Kind.GET_VALUE: PeerClass.GUEST,
    Kind.GET_PROVIDERS: PeerClass.GUEST,
    Kind.PUT_VALUE: PeerClass.MEMBER,
    Kind.ADD_PROVIDER: PeerClass.MEMBER,
}


class IpfsConfig(BaseModel):
    """Bounds of the wire."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str = Field(
        default="ipfs", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="`/<prefix>/kad/1.0.0` is spoken"
    )
    max_streams: int = Field(default=128, ge=1, description="streams of others at once; further ones are reset")
    max_streams_per_peer: int = Field(default=16, ge=1, description="of these, one peer's")
    idle_s: float = Field(default=60.0, gt=0, description="a stream of another's without a request is closed")
    write_s: float = Field(default=10.0, gt=0, description="how long another may take to read an answer")
    requests_per_s: float = Field(default=50.0, gt=0, description="requests of one peer")
    guest_requests_per_s: float = Field(default=5.0, gt=0, description="the same, of a guest")
    all_guest_requests_per_s: float = Field(default=50.0, gt=0, description="the same, of all guests together")
    max_guest_value_bytes: int = Field(default=128 * 1024, ge=1024, description="records in one answer to a guest")
    max_callers: int = Field(default=1024, ge=1, description="callers whose rate is remembered")
    timeout_s: float = Field(default=10.0, gt=0, description="one exchange of ours")
    max_foreign: int = Field(default=4096, ge=1, description="peers remembered to speak only this")


class IpfsWire:
    """Both ends of the protocol: `serve` answers others, `ask_*` ask them."""

    def __init__(
        self,
        rpc: Rpc,
        table: RoutingTable,
        holdings: Holdings,
        providers: ProviderStore,
        *,
        role: Role,
        config: IpfsConfig,
        metrics: DhtMetrics,
    ) -> None:
        self._rpc = rpc
        self._table = table
        self._holdings = holdings
        self._providers = providers
        self._role = role
        self._config = config
        self._metrics = metrics
        self._foreign: OrderedDict[PeerID, None] = OrderedDict()
        self._met: OrderedDict[PeerID, None] = OrderedDict()
        """Members that were found out about already."""
        self._streams: Counter[PeerID] = Counter()
        self._rates = CallerRates(
            member_per_s=config.requests_per_s,
            guest_per_s=config.guest_requests_per_s,
            all_guests_per_s=config.all_guest_requests_per_s,
            max_callers=config.max_callers,
        )
        self.protocol = ipfs.protocol(config.prefix)
        self._heard_in, self.heard = trio.open_memory_channel[PeerInfo](64)
        """Members that asked something on this wire and may serve on it too: whoever reads this should find out."""

    # -- who speaks it --

    def is_foreign(self, peer: PeerID) -> bool:
        """Whether a peer is known to speak this wire and not ours."""
        return peer in self._foreign

    def note(self, peer: PeerID) -> None:
        """A peer does not speak our wire."""
        self._foreign.pop(peer, None)
        self._foreign[peer] = None
        if len(self._foreign) > self._config.max_foreign:
            self._foreign.popitem(last=False)

    def forget(self, peer: PeerID) -> None:
        """It speaks neither, or not now."""
        self._foreign.pop(peer, None)

    # -- answering --

    def serve(self) -> None:
        """Answer others from now on."""
        self._rpc.net.serve(self.protocol, self._serve, max_streams=self._config.max_streams)

    async def _serve(self, stream: Stream) -> None:
        peer = stream.remote
        if self._streams[peer] >= self._config.max_streams_per_peer:
            self._metrics.count(self._metrics.refused, "rate-limited")
            raise NotAuthorized("rate-limited", f"{peer} has {self._streams[peer]} streams open")
        self._streams[peer] += 1
        reader = protobuf.FrameReader(ipfs.MAX_MESSAGE_BYTES)
        try:
            while True:
                # For a whole request, so that bytes that trickle hold a stream no longer than silence does.
                with trio.move_on_after(self._config.idle_s) as waiting:
                    body = await _next(stream, reader)
                if waiting.cancelled_caught or body is None:
                    return
                answer = await self._answer(peer, ipfs.decode(body))
                if answer is not None:
                    with trio.fail_after(self._config.write_s):
                        await stream.send_all(protobuf.framed(ipfs.encode(answer)))
        except (MeshError, trio.TooSlowError) as error:
            if isinstance(error, RecordRejected | NotAuthorized):
                self._metrics.count(self._metrics.refused, error.reason)
            elif isinstance(error, RemoteProtocolError):
                self._metrics.count(self._metrics.refused, "malformed")
            log.debug("dht.ipfs_refused", extra={"peer": str(peer), "error": str(error)})
            await stream.reset()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _answer(self, peer: PeerID, message: Message) -> Message | None:
        """The reply to a request, None where the protocol has none. Raises MeshError for a refusal."""
        self._metrics.count(self._metrics.asked, f"ipfs-{message.kind.name.lower()}")
        least = _LEAST[message.kind]
        found = await self._rpc.authorizer.authorize(peer, f"{self.protocol}:{message.kind.name.lower()}", least)
        if not is_enough(found, least):
            raise NotAuthorized("class-too-low", f"{peer} may not {message.kind.name}")
        is_guest = found < PeerClass.INFRASTRUCTURE
        self._rates.charge(peer, is_guest=is_guest)
        if not is_guest and peer not in self._table and peer not in self._met:
            self._met[peer] = None
            if len(self._met) > self._config.max_foreign:
                self._met.popitem(last=False)
            try:
                self._heard_in.send_nowait(self._rpc.net.known(peer))
            except trio.WouldBlock:
                log.debug("dht.foreign_not_met", extra={"peer": str(peer)})
        if message.kind is Kind.PING:
            return Message(Kind.PING)
        if message.kind is Kind.PUT_VALUE:
            await self._put(peer, message)
            return message
        if message.kind is Kind.ADD_PROVIDER:
            self._add_provider(peer, message)
            return None
        closer = raw_peers(self._closer(message.key, peer))
        if message.kind is Kind.GET_VALUE:
            return await self._get(message.key, closer, is_guest=is_guest)
        if message.kind is Kind.GET_PROVIDERS:
            providers = raw_peers(self._providers.get(message.key, now=trio.current_time())[:MAX_CLOSER])
            return Message(Kind.GET_PROVIDERS, message.key, closer=closer, providers=providers)
        return Message(Kind.FIND_NODE, message.key, closer=closer)

    async def _put(self, peer: PeerID, message: Message) -> None:
        if message.value is None or message.value_key != message.key:
            raise RemoteProtocolError("a record for another key than the message's")
        if self._role is not Role.SERVER:
            raise RecordRejected("not-a-replica")
        if ipfs.is_container(message.value):
            raise RecordRejected("read-only", "several records under one key can be read on this wire and not be put")
        record = Record.from_bytes(message.value)
        if wire_key(record.key) != message.key:
            raise RecordRejected("key", f"a record for {record.key!r} put under {message.key!r}")
        self._holdings.validator.check_sender(peer, now=self._holdings.now())
        try:
            await self._holdings.accept(record, sender=peer)
        except RecordRejected as error:
            if error.reason != "duplicate":  # who puts again what we hold has stored it
                raise
        await self._holdings.flush()

    async def _get(self, key: bytes, closer: tuple[ipfs.RawPeer, ...], *, is_guest: bool) -> Message:
        try:
            records = await self._holdings.readable(ipfs.record_key(key)) if self._role is Role.SERVER else ()
        except (RecordRejected, RemoteProtocolError):
            records = ()  # a key that no rule covers: nothing is there
        records = tuple(record for record in records if not record.tombstone)
        room = self._config.max_guest_value_bytes if is_guest else ipfs.MAX_VALUE_BYTES
        value = ipfs.pack_records(records, max_bytes=room) if records else None
        return Message(Kind.GET_VALUE, key, value, key if value is not None else b"", closer)

    def _add_provider(self, peer: PeerID, message: Message) -> None:
        if not message.key:
            raise RemoteProtocolError("a provider of nothing")
        if self._role is not Role.SERVER:
            raise RecordRejected("not-a-replica")
        for multihash, addrs in message.providers:
            if multihash == peer.multihash:  # a peer speaks for itself only
                info = PeerInfo(peer, parse_addrs(addrs, ours=self._rpc.net.local.addrs))
                self._providers.add(message.key, info, now=trio.current_time())

    def _closer(self, key: bytes, asker: PeerID) -> list[PeerInfo]:
        return closest_to(self._table, self._rpc.net, key_of(key), asker=asker, want=MAX_CLOSER)

    # -- asking --

    async def ask_find(self, info: PeerInfo, query: Query) -> Answered:
        """One query of ours on this wire. Raises MeshError."""
        if query.key is not None:
            reply = await self._one(info, Message(Kind.GET_VALUE, wire_key(query.key)))
            records = () if reply.value is None else ipfs.unpack_records(reply.value)
            raws = tuple(record.to_bytes() for record in records)
            return Answered(Role.SERVER, self._parse(reply.closer), raws)
        if query.provided is not None:
            reply = await self._one(info, Message(Kind.GET_PROVIDERS, query.provided))
            return Answered(Role.SERVER, self._parse(reply.closer), providers=self._parse(reply.providers))
        reply = await self._one(info, Message(Kind.FIND_NODE, self._peer_near(query.place).multihash))
        return Answered(Role.SERVER, self._parse(reply.closer))

    async def ask_store(self, info: PeerInfo, record: Record) -> Judged:
        """Ask a foreign peer to hold a record, and for closer ones: only a GET names them. Raises MeshError."""
        key = wire_key(record.key)
        async with self._open(info) as exchange:
            near = await exchange.ask(Message(Kind.GET_VALUE, key))
            closer = self._parse(near.closer)
            if record.subkey or record.tombstone:
                return Judged("not-a-replica", closer)
            try:
                await exchange.ask(Message(Kind.PUT_VALUE, key, record.to_bytes(), key))
            except StreamBroken:
                return Judged("refused", closer)
            return Judged("", closer)

    async def ask_provide(self, info: PeerInfo, key: bytes) -> Judged:
        """Tell a foreign peer that we have something. Raises MeshError."""
        local = self._rpc.net.local
        async with self._open(info) as exchange:
            near = await exchange.ask(Message(Kind.GET_PROVIDERS, key))
            ours = (local.peer_id.multihash, raw_addrs(local.addrs))
            await exchange.tell(Message(Kind.ADD_PROVIDER, key, providers=(ours,)))
        return Judged("", self._parse(near.closer))

    async def ping(self, info: PeerInfo) -> None:
        """Whether a peer serves this wire: it is asked for its neighbourhood, for not all answer PING. Raises
        MeshError."""
        await self._one(info, Message(Kind.FIND_NODE, self._rpc.net.local.peer_id.multihash))

    async def _one(self, info: PeerInfo, message: Message) -> Message:
        async with self._open(info) as exchange:
            return await exchange.ask(message)

    @asynccontextmanager
    async def _open(self, info: PeerInfo) -> AsyncIterator[_Exchange]:
        net = self._rpc.net
        if not set(info.addrs) <= set(net.known(info.peer_id).addrs):
            net.learn(info)
        with trio.move_on_after(self._config.timeout_s) as scope:
            stream = await net.open(info.peer_id, self.protocol)
            try:
                yield _Exchange(stream)
            except BaseException:
                with trio.CancelScope(shield=True):  # aborting waits for nobody
                    await stream.reset()
                raise
            await stream.aclose()
        if scope.cancelled_caught:
            raise RequestTimeout(f"{info.peer_id.short}: no answer on {self.protocol} in {self._config.timeout_s:g} s")

    def _parse(self, raws: tuple[ipfs.RawPeer, ...]) -> tuple[PeerInfo, ...]:
        return tuple(info for info in parse_peers(raws, local=self._rpc.net.local) if info is not None)

    def _peer_near(self, place: Key) -> PeerID:
        """On this wire one asks for peers near a peer, not near a place: the peer we know that is nearest to it."""
        local = self._rpc.net.local.peer_id
        nearest = self._table.closest(place, 1)
        candidates = [local, *(info.peer_id for info in nearest)]
        return min(candidates, key=lambda peer: key_of(peer.multihash) ^ place)


async def _next(stream: Stream, reader: protobuf.FrameReader) -> bytes | None:
    """The next whole message; None at the end of the stream."""
    body = next(reader.feed(b""), None)
    while body is None:
        data = await stream.receive_some()
        if not data:
            return None
        body = next(reader.feed(data), None)
    return body


class _Exchange:
    """Requests and replies in turn on one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reader = protobuf.FrameReader(ipfs.MAX_MESSAGE_BYTES)

    async def tell(self, message: Message) -> None:
        """Send what has no reply."""
        await self._stream.send_all(protobuf.framed(ipfs.encode(message)))

    async def ask(self, message: Message) -> Message:
        """Send a request and wait for its reply. Raises StreamBroken when the other side ends the stream instead, which
        is how it refuses."""
        await self.tell(message)
        body = await _next(self._stream, self._reader)
        if body is None:
            raise StreamBroken(f"{self._stream.remote.short} ended the stream instead of answering")
        reply = ipfs.decode(body)
        if reply.kind is not message.kind:
            raise RemoteProtocolError(f"a {reply.kind.name} in answer to a {message.kind.name}")
        return reply
