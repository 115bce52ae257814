"""Whom a DHT node knows, and how it asks them: the routing table, the messages of a lookup, and what becomes of
peers that do not answer or break the protocol."""

from __future__ import annotations

import inspect
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import trio
from pydantic import BaseModel

from mesh.auth.authorizer import PeerClass
from mesh.dht.answers import Answered, Judged, closest_to
from mesh.dht.config import DhtConfig
from mesh.dht.ipfs import IpfsWire
from mesh.dht.metrics import DhtMetrics
from mesh.dht.servicer import KadServicer
from mesh.errors import MeshError, NotAuthorized, ProtocolNotSpoken, RemoteFailure, RemoteProtocolError
from mesh.kad.key import Key, key_bytes, key_of_peer
from mesh.kad.lookup import Counts, Lookup
from mesh.kad.patience import Patience
from mesh.kad.record import Record
from mesh.kad.replicas import unpack_wanted
from mesh.kad.routing import Ping, RoutingTable
from mesh.kad.wire import (
    FindRequest,
    OfferRequest,
    PingRequest,
    ProofRequest,
    ProvideRequest,
    Query,
    Role,
    StoreRequest,
    named,
    parse_addrs,
    parse_peers,
    raw_addrs,
)
from mesh.net.base import Protection
from mesh.peer import Multiaddr, PeerID, PeerInfo
from mesh.rpc.rpc import Rpc
from mesh.rpc.servicer import RpcContext

log = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=BaseModel)
ReplyT = TypeVar("ReplyT", bound=BaseModel)
Item = TypeVar("Item")
T = TypeVar("T")

_TAG: Final = "routing-table"
_TAG_INTERVAL_S: Final = 10.0
"""How often the network is told who is in the table; below the grace of a new connection."""

IsMember = Callable[[PeerID], bool | Awaitable[bool]]
Ask = Callable[[PeerInfo], Awaitable[tuple[Sequence[PeerInfo], Counts]]]
"""Asks one peer of a lookup: the closer peers it names, and whether it counts itself."""


class Peers:
    """The peers of one DHT as one node sees them. `run` it: doubtful ones are pinged then."""

    def __init__(
        self,
        rpc: Rpc,
        local: PeerID,
        *,
        config: DhtConfig,
        is_member: IsMember,
        metrics: DhtMetrics,
        on_new: Callable[[PeerInfo], None],
        on_lost: Callable[[PeerID], None],
    ) -> None:
        """`on_new` is told of each peer that serves and was not in the table before, `on_lost` when one that was in it
        is no more."""
        self.rpc = rpc
        self.local = local
        self.table = RoutingTable(key_of_peer(local), config=config.routing)
        self.ipfs: IpfsWire | None = None
        """The other wire, for peers that speak only that."""
        self.patience = Patience(config.patience)
        self.infrastructure: frozenset[PeerID] = frozenset()
        """Bootnodes: asked though they are no members."""
        self._config = config
        self._is_member_now = is_member
        self._metrics = metrics
        self._on_new = on_new
        self._on_lost = on_lost
        self._shunned: OrderedDict[PeerID, float] = OrderedDict()
        self._pings_in, self._pings_out = trio.open_memory_channel[Ping](config.max_pings)

    @property
    def role(self) -> Role:
        """What we do for others."""
        return self._config.role

    @property
    def here(self) -> PeerInfo:
        """Ourselves."""
        return self.rpc.net.local

    def addrs_of(self, raws: Sequence[bytes]) -> tuple[Multiaddr, ...]:
        """Addresses that a peer sent of itself, as far as they make sense from here."""
        return parse_addrs(raws, ours=self.here.addrs, near=self._near())

    def _near(self) -> Sequence[Multiaddr]:
        """Where we are; a client that listens nowhere is where its bootnodes are."""
        net = self.rpc.net
        return self.here.addrs or [addr for peer in sorted(self.infrastructure) for addr in net.known(peer).addrs]

    # -- lookups --

    def lookup(
        self,
        target: Key,
        *,
        k: int,
        alpha: int | None = None,
        paths: int | None = None,
        stop_when: Callable[[Lookup], bool] | None = None,
        seeds: Sequence[PeerInfo] = (),
        only: Sequence[PeerInfo] = (),
    ) -> Lookup:
        """A lookup that begins with the closest peers we know, and `seeds`; with `only` these, where there are any."""
        update = {name: value for name, value in (("alpha", alpha), ("paths", paths)) if value is not None}
        config = self._config.lookup.model_copy(update=update) if update else self._config.lookup
        lookup = Lookup(
            target,
            k,
            local=self.local,
            config=config,
            deadline=trio.current_time() + self._config.operation_timeout_s,
            stop_when=stop_when,
            patience=self.patience,
        )
        known = only or self.table.closest(target, max(k, self._config.routing.bucket_size))
        return lookup.start((*seeds, *known))

    async def drive(self, lookup: Lookup, ask: Ask, *, kind: str) -> Lookup:
        """Move a lookup's messages until it is finished; requests still open then are cancelled."""
        news = trio.Event()
        began, before = trio.current_time(), lookup.stats.requests

        async def one(info: PeerInfo) -> None:
            peer = info.peer_id
            try:
                if not await self.may_be_asked(peer):
                    raise NotAuthorized("not-registered", f"{peer} is no member, or misbehaved: not asked")
                closer, counts = await ask(info)
            except MeshError as error:
                log.debug("dht.no_answer", extra={"peer": str(peer), "error": str(error)})
                lookup.on_failure(peer)
            else:
                lookup.on_response(peer, closer, now=trio.current_time(), counts=counts)
            news.set()

        async with trio.open_nursery() as nursery:
            while True:
                for info in lookup.next_requests(trio.current_time()):
                    nursery.start_soon(one, info)
                if lookup.finished:
                    break
                wake_at = lookup.wake_at()
                with trio.move_on_at(math.inf if wake_at is None else wake_at):
                    await news.wait()
                news = trio.Event()
            nursery.cancel_scope.cancel()
        for peer in lookup.unanswered():
            self._failed(peer)
        numbers = self._metrics.operation(kind)
        numbers.done += 1
        numbers.failed += lookup.stats.answers == 0
        numbers.requests += lookup.stats.requests - before
        numbers.seconds.observe(trio.current_time() - began)
        numbers.hops.observe(lookup.hops)
        return lookup

    async def find(
        self,
        target: Key,
        *,
        k: int,
        stop_when: Callable[[Lookup], bool] | None = None,
        seeds: Sequence[PeerInfo] = (),
    ) -> Lookup:
        """Look for the k peers closest to a place, beginning with those we know and `seeds`."""

        async def ask(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            (answer,) = await self.ask_find(info, (Query(target=key_bytes(target)),))
            return answer.closer, Counts.YES

        return await self.drive(self.lookup(target, k=k, stop_when=stop_when, seeds=seeds), ask, kind="find")

    # -- messages --

    async def ask_find(self, info: PeerInfo, queries: Sequence[Query]) -> list[Answered]:
        """Put questions to a peer; an answer to each. Raises MeshError; the peer's standing is seen to."""
        return await self._on_its_wire(
            info,
            lambda: self._ask_find(info, queries),
            lambda wire: _each(queries, lambda query: wire.ask_find(info, query)),
        )

    async def _ask_find(self, info: PeerInfo, queries: Sequence[Query]) -> list[Answered]:
        request = FindRequest(role=self.role, addrs=raw_addrs(self.here.addrs), queries=tuple(queries))
        reply = await self.call(KadServicer.rpc_find, info, request)
        with self.blaming(info.peer_id):
            if len(reply.answers) != len(queries):
                raise RemoteProtocolError(f"{info.peer_id} gave {len(reply.answers)} answers to {len(queries)} queries")
            peers = parse_peers(reply.peers, local=self.here, near=self._near())
            answers = [
                Answered(
                    reply.role,
                    named(peers, answer.closer),
                    answer.records,
                    answer.more,
                    named(peers, answer.providers),
                    answer.proofs,
                )
                for answer in reply.answers
            ]
        await self.on_answer(info, reply.role)
        return answers

    async def ask_store(self, info: PeerInfo, records: Sequence[Record], *, want: int) -> list[Judged]:
        """Ask a peer to hold records; a verdict on each. Raises MeshError."""
        return await self._on_its_wire(
            info,
            lambda: self._ask_store(info, records, want=want),
            lambda wire: _each(records, lambda record: wire.ask_store(info, record)),
        )

    async def _ask_store(self, info: PeerInfo, records: Sequence[Record], *, want: int) -> list[Judged]:
        request = StoreRequest(
            role=self.role,
            addrs=raw_addrs(self.here.addrs),
            records=tuple(record.to_bytes() for record in records),
            want=want,
        )
        reply = await self.call(KadServicer.rpc_store, info, request)
        return await self._judged(info, len(records), reply.role, reply.verdicts, reply.peers, reply.closer)

    async def ask_provide(self, info: PeerInfo, keys: Sequence[bytes], *, want: int) -> list[Judged]:
        """Tell a peer that we have what these keys name. Raises MeshError."""
        return await self._on_its_wire(
            info,
            lambda: self._ask_provide(info, keys, want=want),
            lambda wire: _each(keys, lambda key: wire.ask_provide(info, key)),
        )

    async def _ask_provide(self, info: PeerInfo, keys: Sequence[bytes], *, want: int) -> list[Judged]:
        request = ProvideRequest(role=self.role, addrs=raw_addrs(self.here.addrs), keys=tuple(keys), want=want)
        reply = await self.call(KadServicer.rpc_provide, info, request)
        return await self._judged(info, len(keys), reply.role, reply.verdicts, reply.peers, reply.closer)

    async def ask_wanted(self, info: PeerInfo, digests: Sequence[bytes]) -> tuple[int, ...]:
        """Which of these records a peer lacks, by place. Raises MeshError."""
        request = OfferRequest(role=self.role, addrs=raw_addrs(self.here.addrs), digests=tuple(digests))
        reply = await self.call(KadServicer.rpc_offer, info, request)
        await self.on_answer(info, reply.role)
        return unpack_wanted(reply.wanted, len(digests))

    async def tell_proofs(self, info: PeerInfo, proofs: Sequence[bytes]) -> None:
        """Tell a peer of equivocations. Raises MeshError."""
        reply = await self.call(KadServicer.rpc_proof, info, ProofRequest(role=self.role, proofs=tuple(proofs)))
        await self.on_answer(info, reply.role)

    async def _on_its_wire(
        self,
        info: PeerInfo,
        ours: Callable[[], Awaitable[T]],
        theirs: Callable[[IpfsWire], Awaitable[T]],
    ) -> T:
        """Ask on our wire, and on the other where ours is not spoken; remembered by peer."""
        peer, wire = info.peer_id, self.ipfs
        if wire is None:
            return await ours()
        if not wire.is_foreign(peer):
            try:
                return await ours()
            except ProtocolNotSpoken:
                wire.note(peer)
        try:
            answer = await theirs(wire)
        except MeshError as error:
            if isinstance(error, ProtocolNotSpoken):
                wire.forget(peer)
            self.on_error(peer, error)
            raise
        await self.on_answer(info, Role.SERVER)
        return answer

    async def _judged(
        self,
        info: PeerInfo,
        count: int,
        role: Role,
        verdicts: Sequence[str],
        raws: Sequence[tuple[bytes, Sequence[bytes]]],
        closer: Sequence[Sequence[int]],
    ) -> list[Judged]:
        with self.blaming(info.peer_id):
            if len(verdicts) != count or len(closer) != count:
                raise RemoteProtocolError(f"{info.peer_id} gave {len(verdicts)} verdicts on {count} of ours")
            peers = parse_peers(raws, local=self.here, near=self._near())
            judged = [Judged(verdict, named(peers, near)) for verdict, near in zip(verdicts, closer, strict=True)]
        await self.on_answer(info, role)
        return judged

    async def call(
        self,
        function: Callable[[Any, RequestT, RpcContext], Awaitable[ReplyT]],
        info: PeerInfo,
        request: RequestT,
    ) -> ReplyT:
        """One call; a failure is noted before it is raised."""
        if not set(info.addrs) <= set(self.rpc.net.known(info.peer_id).addrs):
            self.rpc.net.learn(info)
        try:
            return await self.rpc.call(function, info.peer_id, request, timeout_s=self._config.request_timeout_s)
        except MeshError as error:
            if self.ipfs is None or not isinstance(error, ProtocolNotSpoken):
                self.on_error(info.peer_id, error)
            raise

    # -- what becomes of them --

    @contextmanager
    def blaming(self, peer: PeerID) -> Iterator[None]:
        """What is raised inside as a RemoteProtocolError is held against the peer."""
        try:
            yield
        except RemoteProtocolError as error:
            self.on_error(peer, error)
            raise

    def on_error(self, peer: PeerID, error: MeshError) -> None:
        """A peer failed us: shunned when it broke the protocol, doubted when it did not answer."""
        if isinstance(error, RemoteProtocolError):
            log.warning("%s broke the protocol and is shunned for a while: %s", peer, error)
            self._metrics.shunned += 1
            self._remove(peer)
            self._shunned.pop(peer, None)
            self._shunned[peer] = trio.current_time() + self._config.shun_s
            while len(self._shunned) > self._config.max_shunned:
                self._shunned.popitem(last=False)
        elif isinstance(error, RemoteFailure | NotAuthorized):
            self.table.on_seen(peer, now=trio.current_time())  # alive, if not well
        else:
            self._failed(peer)

    def _remove(self, peer: PeerID) -> None:
        if peer in self.table:
            self.table.remove(peer)
            self._on_lost(peer)

    def _failed(self, peer: PeerID) -> None:
        if self.table.on_failure(peer):
            self._on_lost(peer)

    async def on_answer(self, info: PeerInfo, role: Role) -> None:
        """A peer answered: members and bootnodes that serve get a place in the table."""
        if role is Role.CLIENT or not await self.may_be_asked(info.peer_id):
            self._remove(info.peer_id)
            return
        known = self.rpc.net.known(info.peer_id)
        self.heard(known if known.addrs else info, role)

    def on_caller(self, ctx: RpcContext, role: Role, raw: Sequence[bytes]) -> None:
        """Whoever may and wants to serve gets a place in the table for having called."""
        if ctx.peer_class < PeerClass.INFRASTRUCTURE or role is Role.CLIENT:
            return
        if ctx.remote == self.local or self._is_shunned(ctx.remote):
            return
        known = self.rpc.net.known(ctx.remote)
        info = PeerInfo(ctx.remote, self.addrs_of(raw))
        if not set(info.addrs) <= set(known.addrs):
            self.rpc.net.learn(info)
        self.heard(info if info.addrs else known, role)

    def heard(self, info: PeerInfo, role: Role) -> None:
        """A peer that serves was heard of directly."""
        is_new = info.peer_id not in self.table
        ping = self.table.add(info, now=trio.current_time())
        if ping is not None:
            try:
                self._pings_in.send_nowait(ping)
            except trio.WouldBlock:
                self.table.cancel_ping(ping.info.peer_id)
        if is_new and role is Role.SERVER and info.peer_id in self.table:
            self._on_new(info)

    def closest_to(self, target: Key, asker: PeerID, want: int) -> list[PeerInfo]:
        """Whom we name to an asker."""
        return closest_to(self.table, self.rpc.net, target, asker=asker, want=want)

    def _is_shunned(self, peer: PeerID) -> bool:
        until = self._shunned.get(peer)
        return until is not None and trio.current_time() < until

    async def may_be_asked(self, peer: PeerID) -> bool:
        """Members and bootnodes that did not break the protocol lately."""
        if self._is_shunned(peer):
            return False
        return peer in self.infrastructure or await self.is_member(peer)

    async def is_member(self, peer: PeerID) -> bool:
        """Whether a peer may own records; when that cannot be found out, no."""
        try:
            answer = self._is_member_now(peer)
            return await answer if inspect.isawaitable(answer) else answer
        except MeshError as error:
            log.debug("dht.membership_unknown", extra={"peer": str(peer), "error": str(error)})
            return False

    # -- running --

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ping whom the table doubts, and tell the network whom it holds, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping_doubted)
            nursery.start_soon(self._keep_tagged)
            if self.ipfs is not None:
                nursery.start_soon(self._meet_foreign, self.ipfs)
            task_status.started()

    async def ping(self, info: PeerInfo) -> Role:
        """Ask a peer whether it is there; the answer or its lack is noted. Raises MeshError."""
        return await self._on_its_wire(info, lambda: self._ping(info), lambda wire: _ping_foreign(wire, info))

    async def _ping(self, info: PeerInfo) -> Role:
        reply = await self.call(KadServicer.rpc_ping, info, PingRequest(role=self.role))
        await self.on_answer(info, reply.role)
        return reply.role

    async def _ping_doubted(self) -> None:
        """Ask peers of which the table is not sure; the answer or its lack settles it."""
        async for doubted in self._pings_out:
            try:
                await self.ping(doubted.info)
            except MeshError as error:
                log.debug("dht.ping_failed", extra={"peer": str(doubted.info.peer_id), "error": str(error)})

    async def _meet_foreign(self, wire: IpfsWire) -> None:
        """Find out whether members that asked on the other wire serve on it, too."""
        limiter = trio.CapacityLimiter(8)

        async def one(info: PeerInfo) -> None:
            async with limiter:
                if info.peer_id in self.table or not await self.may_be_asked(info.peer_id):
                    return
                wire.note(info.peer_id)
                try:
                    await self.ping(info)
                except MeshError as error:
                    wire.forget(info.peer_id)
                    log.debug("dht.foreign_only_asks", extra={"peer": str(info.peer_id), "error": str(error)})

        async with trio.open_nursery() as nursery:
            async for info in wire.heard:
                nursery.start_soon(one, info)

    async def _keep_tagged(self) -> None:
        """Say to the network that connections to peers in the table are worth more than others."""
        net, tagged = self.rpc.net, frozenset[PeerID]()
        try:
            while True:
                table = frozenset(info.peer_id for info in self.table)
                for peer in tagged - table:
                    net.unprotect(peer, _TAG)
                for peer in table - tagged:
                    net.protect(peer, _TAG, keep=Protection.RATHER)
                tagged = table
                await trio.sleep(_TAG_INTERVAL_S)
        finally:
            for peer in tagged:
                net.unprotect(peer, _TAG)


async def _each(items: Sequence[Item], ask: Callable[[Item], Awaitable[T]]) -> list[T]:
    """One after another: that wire has one question to a message."""
    return [await ask(item) for item in items]


async def _ping_foreign(wire: IpfsWire, info: PeerInfo) -> Role:
    await wire.ping(info)
    return Role.SERVER
