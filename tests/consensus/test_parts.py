"""The small parts: windows of records, what values of records have in common, and what validators ask each other."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from pydantic import ValidationError

from mesh.consensus.during import During
from mesh.consensus.evidence import Commit, epoch_key, no_subkey, read_value
from mesh.consensus.service import (
    MAX_ASKED,
    MAX_REPLY_BYTES,
    ConsensusServicer,
    InventoriesRequest,
    RecordsRequest,
)
from mesh.errors import MeshError, RecordRejected
from mesh.kad.record import Record
from mesh.kad.validator import BlockPosition, pack_value
from mesh.peer import PeerID

from .toy import EPOCH, KEYS, LABELS, inventory, note, note_key, signed

# --- windows of records -------------------------------------------------------------------------------------------


def at(offset: int, *, epoch: int = EPOCH, length: int = 20) -> BlockPosition:
    return BlockPosition(1000, epoch, offset, length)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("claim_commit", 0, 6), ("reveal", 6, 17), ("vote_commit", 6, 15), ("vote_reveal", 14, 20)],
)
def test_records_are_stored_while_their_window_is_open_only(name: str, first: int, last: int) -> None:
    def is_open(position: BlockPosition | None) -> bool:
        try:
            During(name)(note("ada", "1"), position)  # type: ignore[arg-type]
        except RecordRejected as error:
            assert error.reason == "window"  # noqa: PT017
            return False
        return True

    assert [offset for offset in range(20) if is_open(at(offset))] == list(range(first, min(last, 19) + 1))
    assert is_open(at(0, epoch=EPOCH + 1)) == (last >= 20)
    assert not is_open(at(10, epoch=EPOCH - 1))
    assert not is_open(at(10, epoch=EPOCH + 1))
    assert not is_open(None)


# --- values -------------------------------------------------------------------------------------------------------


def test_a_value_is_read_as_it_was_packed_and_nothing_else_is_one() -> None:
    made = Commit(commitment=b"\x01" * 32)
    assert epoch_key("claim", 3) == b"claim/3"
    assert read_value(Commit, signed("ada", b"claim/3", pack_value(made))) == made
    for value in (b"", b"\x80", b"\xc1", pack_value(made) + b"\0", b"\x81\xaacommitment\xc4\x01\x01"):
        assert read_value(Commit, signed("ada", b"claim/3", value)) is None


def test_a_subkey_is_refused_where_an_owner_has_one_record() -> None:
    no_subkey(signed("ada", b"claim/3", b""), None)
    with pytest.raises(RecordRejected, match="subkey"):
        no_subkey(signed("ada", b"claim/3", b"", subkey=b"second"), None)


# --- what validators ask each other -------------------------------------------------------------------------------

BIG = [signed("ada", note_key(EPOCH), bytes(60_000), subkey=bytes([n])) for n in range(64)]


class Shelf:
    """Holds these inventories and records."""

    def inventories_of(self, epoch: int, owners: Iterable[PeerID]) -> Iterable[Record]:
        return [inventory(label, []) for label in LABELS if epoch == EPOCH and KEYS[label].peer_id in tuple(owners)]

    def records_of(self, epoch: int, digests: Iterable[bytes]) -> Iterable[Record]:
        return BIG


async def test_inventories_of_the_asked_owners_are_given() -> None:
    servicer = ConsensusServicer(Shelf())
    owners = tuple(KEYS[label].peer_id.multihash for label in ("ada", "cyd"))
    reply = await servicer.rpc_inventories(InventoriesRequest(epoch=EPOCH, owners=owners), None)  # type: ignore[arg-type]
    assert [Record.from_bytes(data).owner.multihash for data in reply.records] == list(owners)
    nothing = await servicer.rpc_inventories(InventoriesRequest(epoch=9, owners=owners), None)  # type: ignore[arg-type]
    assert nothing.records == ()


async def test_a_reply_is_bounded_in_bytes_however_much_there_is() -> None:
    reply = await ConsensusServicer(Shelf()).rpc_records(RecordsRequest(epoch=EPOCH, digests=()), None)  # type: ignore[arg-type]
    assert MAX_REPLY_BYTES - 70_000 < sum(map(len, reply.records)) <= MAX_REPLY_BYTES


async def test_a_name_that_is_no_peer_is_the_askers_fault() -> None:
    request = InventoriesRequest(epoch=EPOCH, owners=(b"\xff\xff\xff",))
    with pytest.raises(MeshError):
        await ConsensusServicer(Shelf()).rpc_inventories(request, None)  # type: ignore[arg-type]


def test_what_is_asked_at_once_is_bounded() -> None:
    with pytest.raises(ValidationError):
        RecordsRequest(epoch=EPOCH, digests=(bytes(32),) * (MAX_ASKED + 1))
    with pytest.raises(ValidationError):
        RecordsRequest(epoch=EPOCH, digests=(bytes(31),))
    with pytest.raises(ValidationError):
        InventoriesRequest(epoch=EPOCH, owners=(bytes(34),) * (MAX_ASKED + 1))
