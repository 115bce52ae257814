"""What consensus needs of a network, without a network: records, blobs and calls carried by post in virtual time.

The stores are the product's (`Holdings`: RecordStore behind RecordValidator, windows and quotas included); what lies
between them is a delay, and perhaps a loss, drawn from one seeded rng for each message. There are no streams,
handshakes, routing tables or channels: a message arrives after its delay or is known to be lost. That is what makes
hundreds of whole epochs affordable. Run it under `run_sim`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from mesh.clock import Clock
from mesh.content.merkle import digest_of
from mesh.dht.holdings import Holdings
from mesh.dht.metrics import DhtMetrics
from mesh.errors import ContentNotFound, DialFailed, MeshError, ProtocolNotSpoken, RecordRejected, RequestTimeout
from mesh.identity import PeerKey, is_signature
from mesh.kad.equivocation import Equivocation
from mesh.kad.key import key_of_peer
from mesh.kad.record import Record, sign_record
from mesh.kad.store import RecordStore
from mesh.kad.validator import BlockPosition, NamespaceRule, RecordValidator
from mesh.peer import PeerID


class PostOffice:
    """Carries messages between desks."""

    def __init__(self, *, rng: random.Random, delay_s: float = 1.0, loss: float = 0.0) -> None:
        """A message takes up to `delay_s`, or is lost with probability `loss`."""
        self._rng = rng
        self._delay_s = delay_s
        self._loss = loss
        self._verified: dict[tuple[bytes, bytes, bytes], bool] = {}
        self.desks: dict[PeerID, Desk] = {}
        self.closed: set[PeerID] = set()
        """Whose post is neither taken nor delivered."""
        self.carried = 0
        """Messages delivered."""

    async def carry(self, source: PeerID, target: PeerID) -> Desk:
        """Where a message arrives. Raises DialFailed when it does not."""
        lost = self._rng.random() < self._loss
        await trio.sleep(self._rng.random() * self._delay_s)
        desk = self.desks.get(target)
        if lost or desk is None or source in self.closed or target in self.closed:
            raise DialFailed(f"a message to {target.short} was lost (simulated)")
        self.carried += 1
        return desk

    def verify(self, public_key_pb: bytes, message: bytes, signature: bytes) -> bool:
        """`is_signature`, which answers the same for everybody, and so is asked once for all desks."""
        asked = (public_key_pb, message, signature)
        if asked not in self._verified:
            self._verified[asked] = is_signature(*asked)
        return self._verified[asked]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of a put, as far as its caller looks."""

    record: Record
    stored: tuple[PeerID, ...]


class Desk:
    """One node's records, blobs and servicer; stands for its DHT."""

    def __init__(
        self,
        office: PostOffice,
        key: PeerKey,
        *,
        rules: Sequence[NamespaceRule],
        subnet_id: int,
        genesis: bytes,
        position: Callable[[], BlockPosition | None],
        clock: Clock,
    ) -> None:
        self._office = office
        self._key = key
        self._subnet_id, self._genesis, self._clock = subnet_id, genesis, clock
        self._seq = 0
        self.position = position
        self._holdings = Holdings(
            RecordStore(key_of_peer(key.peer_id)),
            RecordValidator(rules, subnet_id=subnet_id, genesis=genesis, verify=office.verify),
            is_member=_everybody,
            position=lambda: self.position(),
            clock=clock,
            metrics=DhtMetrics(),
            on_proof=lambda proof: None,
        )
        self.content = Drawer(office, key.peer_id)
        self.refused: dict[str, int] = {}
        """Why records of others were not stored."""
        office.desks[key.peer_id] = self

    # -- as mesh.dht.DHT --

    @property
    def changes(self) -> int:
        """Counts what was newly stored here."""
        return self._holdings.changes

    @property
    def proofs(self) -> tuple[Equivocation, ...]:
        """Owners caught signing two records for one place and seq."""
        return self._holdings.store.proofs

    async def wait_change(self, seen: int | None = None) -> int:
        """See DHT."""
        return await self._holdings.wait_change(seen)

    def local(self, key: bytes) -> tuple[Record, ...]:
        """See DHT."""
        return self._holdings.local(key)

    async def find_peer(self, peer: PeerID) -> None:
        """Everybody's place is known."""

    async def put(
        self,
        key: bytes,
        value: bytes,
        *,
        subkey: bytes = b"",
        ttl_s: float,
        peers: Sequence[PeerID],
    ) -> Receipt:
        """See DHT. Raises RecordRejected when our own rules refuse it."""
        now_ms = int(self._clock.now() * 1000)
        self._seq = max(self._seq + 1, now_ms)
        record = sign_record(
            self._key,
            key,
            value,
            subkey=subkey,
            expiry_ms=now_ms + int(ttl_s * 1000),
            seq=self._seq,
            subnet_id=self._subnet_id,
            genesis=self._genesis,
        )
        await self._holdings.accept(record, sender=None)
        said = await self.push(record, peers)
        return Receipt(record, tuple(peer for peer in peers if said[peer] == ""))

    # -- for those who sign by hand --

    async def push(self, record: Record, peers: Sequence[PeerID]) -> Mapping[PeerID, str]:
        """Offer a record to peers as it is; what they said, "" for stored, "lost" for nothing."""
        said: dict[PeerID, str] = {}

        async def offer(peer: PeerID) -> None:
            try:
                desk = await self._office.carry(self._key.peer_id, peer)
                said[peer] = await desk.take(record, self._key.peer_id)
            except DialFailed:
                said[peer] = "lost"

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(offer, peer)
        return said

    async def take(self, record: Record, sender: PeerID) -> str:
        """Store a record of somebody's if the rules allow it; "" or the reason why not."""
        try:
            await self._holdings.accept(record, sender=sender)
        except RecordRejected as error:
            self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
            return error.reason
        return ""


async def _everybody(peer: PeerID) -> bool:
    return True


class Drawer:
    """One node's blobs; stands for its Content, and for its Rpc."""

    def __init__(self, office: PostOffice, peer: PeerID) -> None:
        self._office, self._peer = office, peer
        self._blobs: dict[bytes, bytes] = {}
        self.rpc = _Rpc(office, peer)
        self.fetched_bytes = 0
        """What was fetched from others."""

    def put(self, data: bytes) -> bytes:
        """Keep a blob; returns its digest."""
        digest = digest_of(data)
        self._blobs[digest] = data
        return digest

    def pin(self, digest: bytes) -> None:
        """Nothing leaves here anyway."""

    def unpin(self, digest: bytes) -> None:
        """See `pin`."""

    def get_local(self, digest: bytes) -> bytes | None:
        """A blob that is here."""
        return self._blobs.get(digest)

    async def fetch(self, digest: bytes, *, max_bytes: int, peers: Sequence[PeerID] = ()) -> bytes:
        """A blob, from here or from the first of `peers` that has it. Raises ContentNotFound."""
        if (here := self._blobs.get(digest)) is not None:
            return here
        for peer in peers:
            if peer == self._peer:
                continue
            try:
                desk = await self._office.carry(self._peer, peer)
                data = desk.content.get_local(digest)
                await self._office.carry(peer, self._peer)
            except DialFailed:
                continue
            if data is not None and len(data) <= max_bytes:
                self._blobs[digest] = data
                self.fetched_bytes += len(data)
                return data
        raise ContentNotFound(f"nobody served {digest.hex()}")


class _Rpc:
    """Calls of one servicer."""

    def __init__(self, office: PostOffice, peer: PeerID) -> None:
        self._office, self._peer = office, peer
        self.servicer: Any = None
        self.net = self

    def serve(self, servicer: Any) -> None:
        self.servicer = servicer

    def stub(self, kind: type, peer: PeerID) -> Any:
        return _Stub(self._office, self._peer, peer)

    def known(self, peer: PeerID) -> _Known:
        return _Known()


@dataclass(frozen=True)
class _Known:
    addrs: tuple[str, ...] = ("by post",)


class _Stub:
    def __init__(self, office: PostOffice, source: PeerID, target: PeerID) -> None:
        self._office, self._source, self._target = office, source, target

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, *, timeout_s: float) -> Any:
            with trio.move_on_after(timeout_s):
                desk = await self._office.carry(self._source, self._target)
                servicer = desk.content.rpc.servicer
                if servicer is None:
                    raise ProtocolNotSpoken(f"{self._target.short} serves nothing")
                try:
                    reply = await getattr(servicer, name)(request, None)
                except MeshError as error:
                    raise ProtocolNotSpoken(str(error)) from error
                await self._office.carry(self._target, self._source)
                return reply
            raise RequestTimeout(f"{self._target.short} did not answer in {timeout_s} s (simulated)")

        return call
