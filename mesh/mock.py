"""The subnet without a use case: nodes that keep their heartbeat share an epoch's reward equally.

It exercises everything a real subnet does (signed records in windows, evidence, settlement) and computes nothing:
`mesh-server mock` shows a node runner that keys, ports, stake and chain are in order.

A heartbeat is kept by two records in an epoch, one early and one late; both must be in evidence.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.chain.types import ONE, Score
from mesh.consensus.during import During
from mesh.consensus.evidence import Value, epoch_key
from mesh.errors import MeshError, RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, NamespaceRule
from mesh.peer import PeerID
from mesh.rpc.servicer import RpcContext, Servicer, method
from mesh.subnet import Evidence, SubnetContext

log = logging.getLogger(__name__)

NAMESPACE: Final = "heartbeat"
EARLY: Final = b"early"
LATE: Final = b"late"
_WINDOWS: Final = {EARLY: During("claim_commit"), LATE: During("vote_reveal")}
MAX_VALUE_BYTES: Final = 256


class MockConfig(BaseModel):
    """Settings of the mock subnet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record_ttl_s: float = Field(default=3600.0, gt=0, le=86_400, description="life of a heartbeat record")


class Heartbeat(Value):
    """A sign of life. What matters is who signed it and when it was stored."""

    block: int = Field(ge=0, le=2**63 - 1, description="the best block its owner saw")


class AliveRequest(BaseModel):
    """Are you there?"""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AliveReply(BaseModel):
    """How long this node has been there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heartbeats: int


class MockServicer(Servicer):
    """`/mesh/mock/1.0.0`."""

    protocol = "/mesh/mock/1.0.0"

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    @method(timeout_s=5.0)
    async def rpc_alive(self, request: AliveRequest, ctx: RpcContext) -> AliveReply:
        """Heartbeats sent so far."""
        return AliveReply(heartbeats=self._count())


def _in_its_window(record: Record, position: BlockPosition | None) -> None:
    predicate = _WINDOWS.get(record.subkey)
    if predicate is None:
        raise RecordRejected("subkey", f"a heartbeat has the subkey early or late, not {record.subkey!r}")
    predicate(record, position)


@dataclass
class MockSubnet:
    """The subnet object."""

    Config: ClassVar[type[BaseModel]] = MockConfig
    jobs: ClassVar[Mapping[str, str]] = {}
    name: str = "mock"
    score_id: str = "mock/1.0.0"
    heartbeats: int = 0
    """Sent by this process."""

    def rules(self, config: MockConfig) -> Sequence[NamespaceRule]:
        return [
            NamespaceRule(
                NAMESPACE,
                schema=Heartbeat,
                max_value_bytes=MAX_VALUE_BYTES,
                max_ttl_s=config.record_ttl_s,
                max_records_per_owner=2,
                predicate=_in_its_window,
                is_evidence=True,
            )
        ]

    def evidence_keys(self, epoch: int) -> Sequence[bytes]:
        return [epoch_key(NAMESPACE, epoch)]

    def servicers(self, ctx: SubnetContext, config: MockConfig) -> Sequence[Servicer]:
        return [MockServicer(lambda: self.heartbeats)]

    async def run(
        self,
        ctx: SubnetContext,
        config: MockConfig,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started()
        async for epoch in ctx.epochs.each():
            for subkey, at in ((EARLY, ctx.epochs.windows.claim_commit), (LATE, ctx.epochs.windows.vote_reveal)):
                await ctx.epochs.wait_until(epoch, at.first)
                if ctx.epochs.is_by(epoch, at.last):
                    await self._beat(ctx, config, epoch, subkey)

    async def _beat(self, ctx: SubnetContext, config: MockConfig, epoch: int, subkey: bytes) -> None:
        """Store one heartbeat at every validator; a missed one is missed, the next is tried."""
        try:
            if (await ctx.epochs.snapshot(epoch)).by_peer(ctx.identity.peer_id) is None:
                return
            beat = Heartbeat(block=ctx.epochs.block().number)
            await ctx.put_evidence(epoch, epoch_key(NAMESPACE, epoch), beat, subkey=subkey, ttl_s=config.record_ttl_s)
            self.heartbeats += 1
        except MeshError as error:
            log.warning("epoch %d: a heartbeat was missed: %s", epoch, error)

    def score(self, evidence: Evidence) -> Sequence[Score]:
        seen: dict[PeerID, set[bytes]] = defaultdict(set)
        for record in evidence.records:
            if record.key == epoch_key(NAMESPACE, evidence.epoch) and not record.tombstone:
                seen[record.owner].add(record.subkey)
        return [
            Score(node.node_id, ONE)
            for node in sorted(evidence.snapshot.nodes, key=lambda node: node.node_id)
            if {EARLY, LATE} <= seen.get(node.peer_id, set())
        ]


subnet = MockSubnet()
