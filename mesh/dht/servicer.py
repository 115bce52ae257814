"""`/mesh/kad/2.0.0`: what other nodes ask of a DHT node, and what it answers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from mesh.auth.authorizer import PeerClass
from mesh.dht.rates import CallerRates
from mesh.errors import NotAuthorized, RecordRejected, RemoteProtocolError
from mesh.kad.equivocation import Equivocation
from mesh.kad.key import key_of, key_of_record
from mesh.kad.record import Record
from mesh.kad.replicas import pack_wanted
from mesh.kad.wire import (
    MAX_CLOSER,
    MAX_PROOFS,
    Answer,
    FindReply,
    FindRequest,
    Naming,
    OfferReply,
    OfferRequest,
    PingReply,
    PingRequest,
    ProofReply,
    ProofRequest,
    ProvideReply,
    ProvideRequest,
    Query,
    Role,
    StoreReply,
    StoreRequest,
    parse_peer,
)
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.servicer import RpcContext, Servicer, method

if TYPE_CHECKING:
    from mesh.dht.config import DhtConfig
    from mesh.dht.holdings import Holdings
    from mesh.dht.metrics import DhtMetrics
    from mesh.dht.peers import Peers
    from mesh.kad.providers import ProviderStore

log = logging.getLogger(__name__)

STORED: Final = ""
"""The verdict on a record that is held now."""
HELD: Final = frozenset({STORED, "duplicate"})
"""Verdicts after which the peer holds the record."""


class KadServicer(Servicer):
    """The DHT's methods. Everything in a request is bounded by mesh.kad.wire before it comes here."""

    protocol = "/mesh/kad/2.0.0"

    def __init__(
        self, peers: Peers, holdings: Holdings, providers: ProviderStore, config: DhtConfig, metrics: DhtMetrics
    ) -> None:
        self._peers = peers
        self._holdings = holdings
        self._providers = providers
        self._config = config
        self._metrics = metrics
        self._rates = CallerRates(
            member_per_s=config.member_finds_per_s,
            guest_per_s=config.guest_finds_per_s,
            all_guests_per_s=config.all_guest_finds_per_s,
            max_callers=config.max_callers,
        )

    @method(least=PeerClass.PUBLIC, timeout_s=5.0, max_request_bytes=256, max_response_bytes=256)
    async def rpc_ping(self, request: PingRequest, ctx: RpcContext) -> PingReply:
        """Answers anybody; changes nothing."""
        self._metrics.count(self._metrics.asked, "ping")
        return PingReply(role=self._config.role)

    @method(least=PeerClass.GUEST, timeout_s=10.0, max_request_bytes=64 * 1024, max_response_bytes=3 * 2**20)
    async def rpc_find(self, request: FindRequest, ctx: RpcContext) -> FindReply:
        """Closer peers, and a page of records. Raises NotAuthorized("rate-limited")."""
        is_guest = ctx.peer_class < PeerClass.INFRASTRUCTURE
        self._rates.charge(ctx.remote, is_guest=is_guest, cost=len(request.queries))
        self._metrics.count(self._metrics.asked, "find", len(request.queries))
        self._peers.on_caller(ctx, request.role, request.addrs)
        naming = Naming()
        room = self._config.max_guest_page_bytes if is_guest else self._config.max_page_bytes
        answers: list[Answer] = []
        for query in request.queries:
            answer = await self._answer(query, ctx.remote, naming, room)
            room -= sum(map(len, answer.records)) + sum(map(len, answer.proofs))
            answers.append(answer)
        return FindReply(role=self._config.role, peers=naming.peers(), answers=tuple(answers))

    @method(least=PeerClass.MEMBER, timeout_s=10.0, max_request_bytes=10 * 2**20, max_response_bytes=256 * 1024)
    async def rpc_store(self, request: StoreRequest, ctx: RpcContext) -> StoreReply:
        """A verdict on each record, and closer peers."""
        self._metrics.count(self._metrics.asked, "store", len(request.records))
        self._peers.on_caller(ctx, request.role, request.addrs)
        naming = Naming()
        verdicts: list[str] = []
        closer: list[tuple[int, ...]] = []
        try:
            self._holdings.validator.check_sender(ctx.remote, now=self._holdings.now())
        except RecordRejected as error:
            self._metrics.count(self._metrics.refused, error.reason, len(request.records))
            raise NotAuthorized("rate-limited", error.detail) from error
        self._rates.charge(ctx.remote, is_guest=False, cost=1 + len(request.records) // 8)
        for number, raw in enumerate(request.records):
            if number % 8 == 7:  # eight RSA signatures are checked in a few milliseconds
                await trio.lowlevel.checkpoint()
            near: tuple[int, ...] = ()
            try:
                record = Record.from_bytes(raw)
                if not verdicts or verdicts[-1] != "rate":
                    near = naming.indices(self._peers.closest_to(key_of_record(record.key), ctx.remote, request.want))
                if self._config.role is not Role.SERVER:
                    raise RecordRejected("not-a-replica")
                await self._holdings.accept(record, sender=ctx.remote)
            except RecordRejected as error:
                verdicts.append(error.reason)
                if error.reason != "duplicate":
                    log.debug("dht.refused", extra={"peer": str(ctx.remote), "error": str(error)})
            except RemoteProtocolError:
                verdicts.append("malformed")
            else:
                verdicts.append(STORED)
            closer.append(near)
            if verdicts[-1] not in HELD:
                self._metrics.count(self._metrics.refused, verdicts[-1])
        if STORED in verdicts:
            await self._holdings.flush()
        return StoreReply(role=self._config.role, verdicts=tuple(verdicts), peers=naming.peers(), closer=tuple(closer))

    @method(least=PeerClass.MEMBER, timeout_s=10.0, max_request_bytes=16 * 1024, max_response_bytes=256 * 1024)
    async def rpc_provide(self, request: ProvideRequest, ctx: RpcContext) -> ProvideReply:
        """The caller has what the keys name: whoever looks for one is told, for a time."""
        self._metrics.count(self._metrics.asked, "provide", len(request.keys))
        self._rates.charge(ctx.remote, is_guest=False, cost=len(request.keys))
        self._peers.on_caller(ctx, request.role, request.addrs)
        info = PeerInfo(ctx.remote, self._peers.addrs_of(request.addrs))
        naming = Naming()
        verdict = STORED if self._config.role is Role.SERVER else "not-a-replica"
        closer: list[tuple[int, ...]] = []
        for key in request.keys:
            closer.append(naming.indices(self._peers.closest_to(key_of(key), ctx.remote, request.want)))
            if verdict == STORED:
                self._providers.add(key, info, now=trio.current_time())
        return ProvideReply(
            role=self._config.role,
            verdicts=(verdict,) * len(request.keys),
            peers=naming.peers(),
            closer=tuple(closer),
        )

    @method(least=PeerClass.MEMBER, timeout_s=10.0, max_request_bytes=128 * 1024, max_response_bytes=1024)
    async def rpc_offer(self, request: OfferRequest, ctx: RpcContext) -> OfferReply:
        """Which of the records that the caller holds are lacking here. Raises NotAuthorized("rate-limited")."""
        self._metrics.count(self._metrics.asked, "offer", len(request.digests))
        self._rates.charge(ctx.remote, is_guest=False, cost=1 + len(request.digests) // 64)
        self._peers.on_caller(ctx, request.role, request.addrs)
        if self._config.role is not Role.SERVER:
            return OfferReply(role=self._config.role, wanted=b"")
        wanted = [not self._holdings.store.has_digest(digest) for digest in request.digests]
        return OfferReply(role=self._config.role, wanted=pack_wanted(wanted))

    @method(least=PeerClass.MEMBER, timeout_s=10.0, max_request_bytes=1024 * 1024, max_response_bytes=256)
    async def rpc_proof(self, request: ProofRequest, ctx: RpcContext) -> ProofReply:
        """Equivocations the caller knows; checked, each on its own. Raises NotAuthorized("rate-limited")."""
        self._metrics.count(self._metrics.asked, "proof", len(request.proofs))
        # Two signatures to check each: dearer than a question.
        self._rates.charge(ctx.remote, is_guest=False, cost=10 * len(request.proofs))
        new = 0
        if self._config.role is Role.SERVER:
            for raw in request.proofs:
                try:
                    new += await self._holdings.learn_proof(Equivocation.from_bytes(raw))
                except (RecordRejected, RemoteProtocolError) as error:
                    reason = error.reason if isinstance(error, RecordRejected) else "malformed"
                    self._metrics.count(self._metrics.refused, f"proof-{reason}")
                    log.debug("dht.proof_refused", extra={"peer": str(ctx.remote), "error": str(error)})
        return ProofReply(role=self._config.role, new=new)

    async def _answer(self, query: Query, asker: PeerID, naming: Naming, room: int) -> Answer:
        closer = naming.indices(self._peers.closest_to(query.place, asker, query.want))
        if self._config.role is not Role.SERVER:
            return Answer(closer=closer)
        if query.provided is not None:
            providers = self._providers.get(query.provided, now=trio.current_time())[:MAX_CLOSER]
            return Answer(closer=closer, providers=naming.indices(providers))
        if query.key is None:
            return Answer(closer=closer)
        if room <= 0:
            return Answer(closer=closer, more=self._holdings.store.has(query.key))
        after = None if query.after is None else (parse_peer(query.after[0]), query.after[1])
        page = self._holdings.store.page(
            query.key,
            now=self._holdings.now(),
            max_bytes=room,
            after=after,
            owners=await self._holdings.allowed_owners(query.key),
        )
        proofs = () if after else tuple(p.to_bytes() for p in self._holdings.store.proofs_of(query.key)[:MAX_PROOFS])
        return Answer(
            closer=closer,
            records=tuple(record.to_bytes() for record in page.records),
            more=page.more,
            proofs=proofs,
        )
