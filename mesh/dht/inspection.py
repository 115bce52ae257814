"""`/mesh/dht-info/1.0.0`: a node's DHT for people and tools: what may be stored, whom it knows, what it did, and why
it would refuse a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import PeerClass
from mesh.kad.record import MAX_RECORD_BYTES, Record
from mesh.kad.validator import NamespaceRule
from mesh.rpc.servicer import Repeat, RpcContext, Servicer, method

if TYPE_CHECKING:
    from mesh.dht.dht import DHT

MAX_TABLE_PEERS: Final = 4096
"""Peers in a TableView; of a fuller table, the nearest."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Nothing(_Message):
    """No arguments."""


class NamespaceView(_Message):
    """What one namespace takes."""

    namespace: Annotated[str, Field(max_length=64)]
    max_value_bytes: int
    max_ttl_s: float
    members_only: bool
    schema_name: Annotated[str, Field(max_length=128)] = ""
    """Of the model that values are; empty for any bytes."""


class NetworkView(_Message):
    """What a client must know to read and write here."""

    subnet_id: int
    genesis: Annotated[bytes, Field(min_length=32, max_length=32)]
    replicas: Annotated[int, Field(ge=1, le=20)]
    namespaces: Annotated[tuple[NamespaceView, ...], Field(max_length=256)]


class PeerView(_Message):
    """One peer of a table."""

    peer: Annotated[str, Field(max_length=64)]
    addrs: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=8)]


class TableView(_Message):
    """A routing table by bucket, farthest first."""

    buckets: Annotated[tuple[tuple[PeerView, ...], ...], Field(max_length=256)]


class StatsView(_Message):
    """What a node did and holds."""

    role: Annotated[str, Field(max_length=32)]
    peers: int = 0
    records: int = 0
    record_bytes: int = 0
    proofs: int = 0
    operations: dict[str, dict[str, float]]
    """By kind: done, failed, requests, mean_s."""
    refused: dict[str, int]
    refused_by_others: dict[str, int]
    asked: dict[str, int]
    counters: dict[str, int]


class ExplainRequest(_Message):
    """A record as it travels."""

    record: Annotated[bytes, Field(max_length=MAX_RECORD_BYTES)]


class Explanation(_Message):
    """What every check says, one line each."""

    lines: Annotated[tuple[Annotated[str, Field(max_length=2000)], ...], Field(max_length=32)]


class DhtInfoServicer(Servicer):
    """Answers guests and better; changes nothing."""

    protocol = "/mesh/dht-info/1.0.0"

    def __init__(self, dht: DHT) -> None:
        self._dht = dht

    @method(least=PeerClass.GUEST, max_request_bytes=64, max_concurrent=8, repeat=Repeat.SAFE)
    async def rpc_network(self, request: Nothing, ctx: RpcContext) -> NetworkView:
        """Subnet, chain and namespaces."""
        return self._dht.network_view()

    @method(
        least=PeerClass.GUEST, max_request_bytes=64, max_response_bytes=4 * 2**20, max_concurrent=2, repeat=Repeat.SAFE
    )
    async def rpc_table(self, request: Nothing, ctx: RpcContext) -> TableView:
        """The routing table."""
        room = MAX_TABLE_PEERS
        buckets: list[tuple[PeerView, ...]] = []
        for bucket in reversed(self._dht.buckets):
            views = [
                PeerView(peer=str(info.peer_id), addrs=tuple(str(addr)[:512] for addr in info.addrs[:8]))
                for info in bucket[:room]
            ]
            room -= len(views)
            buckets.append(tuple(views))
        return TableView(buckets=tuple(reversed(buckets)))

    @method(least=PeerClass.GUEST, max_request_bytes=64, max_concurrent=8, repeat=Repeat.SAFE)
    async def rpc_stats(self, request: Nothing, ctx: RpcContext) -> StatsView:
        """What this node did and holds."""
        metrics = self._dht.metrics
        return StatsView(
            role=self._dht.role,
            **self._dht.gauges(),
            operations={
                kind: {
                    "done": one.done,
                    "failed": one.failed,
                    "requests": one.requests,
                    "mean_s": round(one.seconds.total / max(1, one.seconds.count), 6),
                }
                for kind, one in sorted(metrics.operations.items())
            },
            refused=dict(sorted(metrics.refused.items())),
            refused_by_others=dict(sorted(metrics.refused_by_others.items())),
            asked=dict(sorted(metrics.asked.items())),
            counters=metrics.counters(),
        )

    @method(
        least=PeerClass.GUEST,
        max_request_bytes=MAX_RECORD_BYTES + 64,
        max_concurrent=2,
        max_concurrent_per_peer=1,
        repeat=Repeat.SAFE,
    )
    async def rpc_explain(self, request: ExplainRequest, ctx: RpcContext) -> Explanation:
        """Why a record would be stored here or not; bytes that are no record are an error of protocol."""
        lines = await self._dht.explain(Record.from_bytes(request.record))
        return Explanation(lines=tuple(line[:2000] for line in lines))


def namespace_view(rule: NamespaceRule) -> NamespaceView:
    """A rule as clients see it."""
    return NamespaceView(
        namespace=rule.namespace,
        max_value_bytes=rule.max_value_bytes,
        max_ttl_s=rule.max_ttl_s,
        members_only=rule.members_only,
        schema_name=rule.schema.__name__[:128] if rule.schema else "",
    )
