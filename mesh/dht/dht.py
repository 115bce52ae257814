"""The DHT of one subnet as a program sees it: put, get, watch, provide, find.

What is decided is decided in mesh.kad; the parts beside this file move messages over Rpc and wait. Everything that
comes from others (records, peers, addresses) is checked before it is kept, returned or asked.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from mesh.clock import Clock
from mesh.dht.config import DhtConfig
from mesh.dht.crawling import CrawlReport, crawl
from mesh.dht.disk import SqliteRecords
from mesh.dht.gifts import Gifts
from mesh.dht.holdings import Holdings
from mesh.dht.inspection import DhtInfoServicer, NetworkView, namespace_view
from mesh.dht.ipfs import IpfsWire
from mesh.dht.joining import Joiner
from mesh.dht.metrics import DhtMetrics
from mesh.dht.peers import Peers
from mesh.dht.proofs import ProofSpreader
from mesh.dht.providing import Providing
from mesh.dht.reading import Reader
from mesh.dht.report import Found, StoreReport, Want
from mesh.dht.servicer import KadServicer
from mesh.dht.state import DhtState
from mesh.dht.upkeep import Upkeep
from mesh.dht.watching import Watch
from mesh.dht.writing import Entry, Writer, expiry_of
from mesh.errors import ConfigError, DialFailed, LocalProtocolError
from mesh.identity import PeerKey
from mesh.kad.equivocation import Equivocation
from mesh.kad.key import key_of_peer, key_of_record
from mesh.kad.lookup import Lookup
from mesh.kad.providers import ProviderStore
from mesh.kad.record import Record
from mesh.kad.schedule import Schedule
from mesh.kad.store import RecordStore
from mesh.kad.validator import BlockPosition, NamespaceRule, RecordValidator
from mesh.kad.wire import Role
from mesh.offload import Offload, in_thread
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.rpc import Rpc

log = logging.getLogger(__name__)


class DHT:
    """One node's part in the DHT of one subnet. `run` it; its other methods work while it runs."""

    def __init__(
        self,
        rpc: Rpc,
        identity: PeerKey,
        *,
        rules: Sequence[NamespaceRule],
        is_member: Callable[[PeerID], bool | Awaitable[bool]],
        position: Callable[[], BlockPosition | None],
        subnet_id: int,
        genesis: bytes,
        config: DhtConfig | None = None,
        clock: Clock,
        rng: random.Random,
        state_path: Path | None = None,
        records_path: Path | None = None,
        offload: Offload = in_thread,
    ) -> None:
        """`is_member` says who may own records and be asked; a MeshError of its counts as no. `state_path`: where the
        peer cache and the highest seq are kept. `records_path`: where records are kept, which then survive the
        process; they are read here (0.2 ms each), and the file is closed when `run` ends. `offload` does the waiting
        for that file. Raises ConfigError when `rules` clash or a file is not ours."""
        self._config = config = config or DhtConfig()
        self._identity = identity
        self._rng = rng
        local = key_of_peer(identity.peer_id)
        self.metrics = DhtMetrics()
        """What this node did; see DhtMetrics."""
        self._peers = Peers(
            rpc,
            identity.peer_id,
            config=config,
            is_member=is_member,
            metrics=self.metrics,
            on_new=lambda info: self._upkeep.on_new(info),
            on_lost=lambda peer: self._upkeep.on_lost(peer),
        )
        self._proofs = ProofSpreader(self._peers, config=config)
        self._disk = None if records_path is None else SqliteRecords(records_path, subnet_id=subnet_id, genesis=genesis)
        store = RecordStore(local, config.store, journal=self._disk)
        validator = RecordValidator(rules, subnet_id=subnet_id, genesis=genesis, config=config.validator)
        if self._disk is not None:
            loaded = self._disk.load(store, validator, now=clock.now())
            log.info("%d records were kept on disk", loaded.records, extra={"skipped": dict(loaded.skipped)})
        self._holdings = Holdings(
            store,
            validator,
            is_member=self._peers.is_member,
            position=position,
            clock=clock,
            metrics=self.metrics,
            on_proof=self._proofs.offer,
            disk=self._disk,
            offload=offload,
        )
        self._providers = ProviderStore(config.providers)
        if config.ipfs is not None:
            self._peers.ipfs = IpfsWire(
                rpc,
                self._peers.table,
                self._holdings,
                self._providers,
                role=config.role,
                config=config.ipfs,
                metrics=self.metrics,
            )
        self._schedule = Schedule(config.schedule, rng=rng)
        self._state = DhtState(state_path, max_peers=config.peer_cache)
        self._gifts = Gifts(self._peers, self._holdings, config=config, metrics=self.metrics)
        self._reader = Reader(self._peers, self._holdings, self._gifts, config=config, metrics=self.metrics)
        self._writer = Writer(
            self._peers,
            self._holdings,
            self._schedule,
            self._state,
            identity,
            subnet_id=subnet_id,
            genesis=genesis,
            config=config,
            metrics=self.metrics,
        )
        self._writer.resume()
        self._providing = Providing(self._peers, self._providers, config=config)
        self._upkeep = Upkeep(
            self._peers, self._holdings, self._writer, self._gifts, self._schedule, config=config, rng=rng
        )
        self._joiner = Joiner(self._peers, self._state, (), config=config, rng=rng)
        self._position = position
        self._subnet_id = subnet_id
        self._genesis = genesis
        self._rules = tuple(rules)
        self._is_running = False
        self._is_served = False

    # -- what it is --

    @property
    def role(self) -> Role:
        """What this node does for others."""
        return self._config.role

    @property
    def peers(self) -> tuple[PeerInfo, ...]:
        """The routing table, farthest bucket first."""
        return tuple(self._peers.table)

    @property
    def buckets(self) -> tuple[tuple[PeerInfo, ...], ...]:
        """The routing table by bucket, farthest first; of a bucket, the longest silent first."""
        table = self._peers.table
        return tuple(table.bucket_peers(index) for index in range(table.buckets))

    def gauges(self) -> dict[str, int]:
        """How many peers, records, bytes of records and proofs there are now; may be read from another thread."""
        store = self._holdings.store
        return {
            "peers": len(self._peers.table),
            "records": len(store),
            "record_bytes": store.size_bytes,
            "proofs": store.proof_count,
        }

    @property
    def proofs(self) -> tuple[Equivocation, ...]:
        """Owners caught signing two records for one place and seq, by this node or by others that told it."""
        return self._holdings.store.proofs

    @property
    def changes(self) -> int:
        """Counts what was newly stored here."""
        return self._holdings.changes

    # -- reading --

    async def get(self, key: bytes, *, want: Want = Want.LATEST, paths: int | None = None) -> Found:
        """The newest valid record of every slot under the key, deleted ones left out, sorted by (owner, subkey); how
        many nodes agreed and how old the answer is are in it.

        `want`: Want.FIRST is content with the first answer, what we hold or were told lately included. `paths`: look
        along so many disjoint paths (S/Kademlia), against peers that lie about whom they know; the config's unless
        told. Raises RecordRejected("namespace") for a key no rule covers, RecordNotFound when no peer asked holds
        anything. Cancelled: nothing goes on; another get that waited for the same lookup begins its own.
        """
        return await self._reader.get(key, want, paths=paths)

    async def get_many(self, keys: Iterable[bytes], *, want: Want = Want.LATEST) -> dict[bytes, Found]:
        """`get` for several keys at once, what they ask of one peer in one message; keys under which nothing is found
        are left out."""
        return await self._reader.get_many(keys, want)

    def local(self, key: bytes) -> tuple[Record, ...]:
        """What this node itself holds under the key: live, deleted ones left out, sorted by (owner, subkey)."""
        return self._holdings.local(key)

    def watch(self, key: bytes) -> Watch:
        """What changes under the key, beginning with what is there: `async for change in dht.watch(key)`.

        Changes stored at this node come at once, others within `watch_s`. It ends never, and leaves nothing behind
        when it is dropped. Raises RecordRejected("namespace").
        """
        self._holdings.validator.rule(key)
        return Watch(key, self._holdings, self._reader.newest, config=self._config)

    async def wait_change(self, seen: int | None = None) -> int:
        """Wait until something new was stored here, then return `changes`. With `seen` it returns at once
        when `changes` has gone past it, so that nothing is missed between two calls."""
        return await self._holdings.wait_change(seen)

    async def find_closest(self, key: bytes, k: int = 20) -> list[PeerInfo]:
        """The `k` members closest to a record key that answer now, closest first."""
        return (await self._peers.find(key_of_record(key), k=k)).closest(k)

    async def find_peer(self, peer: PeerID) -> PeerInfo:
        """Where a peer can be dialled, as those near it say. Raises DialFailed when none of them knows."""
        net, table = self._peers.rpc.net, self._peers.table
        if peer == self._identity.peer_id:
            return net.local
        known = net.known(peer)
        if peer in table and known.addrs:
            return known

        def is_met(lookup: Lookup) -> bool:
            info = lookup.info(peer)
            return info is not None and bool(info.addrs)

        lookup = await self._peers.find(key_of_peer(peer), k=self._config.routing.bucket_size, stop_when=is_met)
        info = lookup.info(peer)
        if info is None or not info.addrs:
            if known.addrs:
                return known
            raise DialFailed(f"no peer near {peer} knows an address of it")
        net.learn(info)
        return info

    async def crawl(self, *, max_peers: int = 10_000, parallel: int = 32, timeout_s: float = 300.0) -> CrawlReport:
        """Ask every node that can be reached whom it knows, at most `max_peers` of them, `parallel` at once."""
        return await crawl(self._peers, max_peers=max_peers, parallel=parallel, timeout_s=timeout_s)

    async def explain(self, record: Record) -> tuple[str, ...]:
        """What every check says about storing this record here and now, one line each."""
        return tuple(
            str(verdict)
            for verdict in self._holdings.validator.explain(
                record,
                now=self._holdings.now(),
                member=await self._peers.is_member(record.owner),
                position=self._position(),
                held=self._holdings.store,
            )
        )

    # -- writing --

    async def put(
        self,
        key: bytes,
        value: bytes,
        *,
        subkey: bytes = b"",
        ttl_s: float | None = None,
        expires_at: float | None = None,
        peers: Sequence[PeerID] | None = None,
        replicas: int | None = None,
    ) -> StoreReport:
        """Sign a record, hold it, and store it at the r closest peers (`replicas` of them; the config's number unless
        told), or at exactly `peers`. It lives `ttl_s` seconds
        or until `expires_at` (unix seconds), and is published again while it lives and this node runs.

        Raises RecordRejected when our own rules refuse it (reason and detail say why), LocalProtocolError
        when a part is too long. That others refuse is in the report. Cancelled: some peers may hold it.
        """
        at = expiry_of(self._holdings.now(), ttl_s, expires_at)
        return await self._writer.put(Entry(key, value, subkey), expires_at=at, peers=peers, replicas=replicas)

    async def put_many(
        self,
        entries: Iterable[Entry | tuple[bytes, bytes]],
        *,
        ttl_s: float | None = None,
        expires_at: float | None = None,
    ) -> tuple[StoreReport, ...]:
        """`put` for several (key, value) or (key, value, subkey) at once, what goes to one peer in one message; reports
        in their order. Raises as `put`, at the first of our own that is refused; those before it are held then."""
        at = expiry_of(self._holdings.now(), ttl_s, expires_at)
        return await self._writer.put_many([Entry(*entry) for entry in entries], expires_at=at)

    async def delete(self, key: bytes, *, subkey: bytes = b"", peers: Sequence[PeerID] | None = None) -> StoreReport:
        """Put a tombstone over our record; it lives as long as the namespace allows, and so outlives what it
        deletes. Raises as `put`."""
        return await self._writer.delete(key, subkey, peers)

    # -- providers --

    async def provide(self, key: bytes, *, is_there: Callable[[], bool] | None = None) -> tuple[PeerID, ...]:
        """Say that we have what `key` (a digest or multihash, 1 to 128 bytes) names; said again every `provide_s` until
        `withdraw`, or until `is_there` says that we have it no more. Returns who was told and remembers. Raises
        LocalProtocolError for a bad key or too many."""
        return await self._providing.provide(key, is_there)

    def withdraw(self, key: bytes) -> None:
        """Say it no more: others forget it within the life of a provider entry."""
        self._providing.withdraw(key)

    async def find_providers(self, key: bytes, *, want: int = 20) -> tuple[PeerInfo, ...]:
        """Who provides what `key` names, sorted by id, ourselves included; done when `want` are found. Empty when
        nobody is known. That a peer says so proves nothing: check what it gives you."""
        return await self._providing.find(key, want=want)

    # -- running --

    async def run(
        self,
        bootstrap: Sequence[PeerInfo] = (),
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve, join, refresh and republish until cancelled. started() after the first attempt to join,
        successful or not; the DHT never stops trying."""
        if self._is_running:
            raise LocalProtocolError("this DHT is running already")
        self._is_running = True
        self._joiner = Joiner(self._peers, self._state, bootstrap, config=self._config, rng=self._rng)
        self._peers.infrastructure = frozenset(info.peer_id for info in bootstrap)
        if self.role is not Role.CLIENT and not self._is_served:
            self._peers.rpc.serve(self.servicer())
            self._peers.rpc.serve(DhtInfoServicer(self))
            if self._peers.ipfs is not None:
                self._peers.ipfs.serve()
            self._is_served = True
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._peers.run)
                await nursery.start(self._gifts.run)
                await nursery.start(self._proofs.run)
                await nursery.start(self._joiner.run)
                await nursery.start(self._upkeep.run)
                await nursery.start(self._providing.run)
                task_status.started()
        finally:
            self._is_running = False
            self._state.remember(self._peers.table)
            try:
                self._state.save()
            finally:
                with trio.CancelScope(shield=True), suppress(ConfigError):  # the disk's time; it has said what is wrong
                    await self._holdings.close()

    def servicer(self) -> KadServicer:
        """What answers others; `run` serves it. Simulated adversaries derive theirs from it."""
        return KadServicer(self._peers, self._holdings, self._providers, self._config, self.metrics)

    def network_view(self) -> NetworkView:
        """What a client must know to read and write here."""
        return NetworkView(
            subnet_id=self._subnet_id,
            genesis=self._genesis,
            replicas=self._config.replicas,
            namespaces=tuple(namespace_view(rule) for rule in self._rules),
        )

    async def meet(self, info: PeerInfo) -> None:
        """Ask a peer that somebody named whether it takes part, and join through it when we know nobody yet.

        Raises MeshError when it does not answer; then nothing has changed.
        """
        await self._joiner.meet(info)
