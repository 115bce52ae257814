"""What validators ask each other when an epoch is settled: inventories and records they have not seen.

Both are signed, so it does not matter who hands them on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import PeerClass
from mesh.kad.record import Record
from mesh.peer import MAX_PEER_ID_BYTES, PeerID
from mesh.rpc.servicer import RpcContext, Servicer, method

MAX_ASKED: Final = 32
"""Owners or digests in one call."""
MAX_REPLY_RECORDS: Final = 2 * MAX_ASKED
MAX_REPLY_BYTES: Final = 3 * 1024 * 1024
"""Bytes of records in one reply: the largest 32 records and then some."""


class InventoriesRequest(BaseModel):
    """Asks for the inventories of some owners."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: Annotated[int, Field(ge=0, lt=2**32)]
    owners: Annotated[
        tuple[Annotated[bytes, Field(min_length=3, max_length=MAX_PEER_ID_BYTES)], ...], Field(max_length=MAX_ASKED)
    ]
    """Multihashes of peer ids."""


class RecordsRequest(BaseModel):
    """Asks for evidence records by digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: Annotated[int, Field(ge=0, lt=2**32)]
    digests: Annotated[tuple[Annotated[bytes, Field(min_length=32, max_length=32)], ...], Field(max_length=MAX_ASKED)]


class RecordsReply(BaseModel):
    """Those of the asked that this node has and that fit; ask again for the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: Annotated[tuple[bytes, ...], Field(max_length=MAX_REPLY_RECORDS)]


class Holdings(Protocol):
    """What the servicer reads."""

    def inventories_of(self, epoch: int, owners: Iterable[PeerID]) -> Iterable[Record]:
        """Inventories known here, both of an owner that signed two."""
        ...

    def records_of(self, epoch: int, digests: Iterable[bytes]) -> Iterable[Record]:
        """Evidence records held here."""
        ...


class ConsensusServicer(Servicer):
    """`/mesh/consensus/1.0.0`."""

    protocol = "/mesh/consensus/1.0.0"

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    @method(
        least=PeerClass.MEMBER,
        timeout_s=10.0,
        max_request_bytes=4096,
        max_response_bytes=4 * 1024 * 1024,
        max_concurrent=8,
    )
    async def rpc_inventories(self, request: InventoriesRequest, ctx: RpcContext) -> RecordsReply:
        """Inventories of the asked owners. RemoteProtocolError when a name is no peer id."""
        owners = [PeerID(owner) for owner in request.owners]
        return _reply(self._holdings.inventories_of(request.epoch, owners))

    @method(
        least=PeerClass.MEMBER,
        timeout_s=10.0,
        max_request_bytes=4096,
        max_response_bytes=4 * 1024 * 1024,
        max_concurrent=8,
    )
    async def rpc_records(self, request: RecordsRequest, ctx: RpcContext) -> RecordsReply:
        """Records of the asked digests."""
        return _reply(self._holdings.records_of(request.epoch, request.digests))


def _reply(records: Iterable[Record]) -> RecordsReply:
    packed: list[bytes] = []
    size = 0
    for record in records:
        data = record.to_bytes()
        if len(packed) >= MAX_REPLY_RECORDS or size + len(data) > MAX_REPLY_BYTES:
            break
        packed.append(data)
        size += len(data)
    return RecordsReply(records=tuple(packed))
