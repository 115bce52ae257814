"""Proofs that an owner signed two things for one place: whoever holds one can show it to anybody.

A proof is two records of one slot and seq with different contents, both signed. It needs neither the store it was
found in nor trust in whoever shows it: `check` says whether it proves anything. A pair of records makes one proof, of
one encoding: the lesser in (seq, expiry, digest) comes first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import msgpack

from mesh.errors import RecordRejected, RemoteProtocolError
from mesh.identity import is_signature
from mesh.kad.record import MAX_RECORD_BYTES, Record, Slot, Verify, is_equivocation
from mesh.peer import PeerID

MAX_PROOF_BYTES: Final = 2 * MAX_RECORD_BYTES + 16
"""Two records and what msgpack puts around them (5 bytes each, 2 for the list and version)."""


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two signed records of one slot and seq: proof that their owner said two things. Made by `of`."""

    first: Record
    second: Record

    @classmethod
    def of(cls, one: Record, other: Record) -> Equivocation:
        """The proof made of two records, in whichever order they came."""
        first, second = sorted((one, other), key=lambda record: record.order)
        return cls(first, second)

    @property
    def owner(self) -> PeerID:
        """Against whom it is."""
        return self.first.owner

    @property
    def slot(self) -> Slot:
        """The place that was signed for twice."""
        return self.first.slot

    def to_bytes(self) -> bytes:
        """Wire form; `from_bytes` is its inverse."""
        packed = msgpack.packb([1, self.first.to_bytes(), self.second.to_bytes()], use_bin_type=True)
        assert isinstance(packed, bytes)
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Equivocation:
        """Parse and bound, without checking what it proves. Raises RemoteProtocolError."""
        if len(data) > MAX_PROOF_BYTES:
            raise RemoteProtocolError(f"a proof of {len(data)} bytes; at most {MAX_PROOF_BYTES} are accepted")
        try:
            fields = msgpack.unpackb(data, use_list=True, strict_map_key=True)
        except (ValueError, msgpack.UnpackException) as error:
            raise RemoteProtocolError("a proof that is not msgpack") from error
        if not isinstance(fields, list) or [type(part) for part in fields] != [int, bytes, bytes]:
            raise RemoteProtocolError("a proof with missing fields or of wrong types")
        version, *raws = fields
        if version != 1:
            raise RemoteProtocolError(f"a proof of version {version}; this node reads version 1")
        proof = cls(*(Record.from_bytes(raw) for raw in raws))
        if proof.first.order >= proof.second.order or proof.to_bytes() != data:
            raise RemoteProtocolError("a proof that is not in canonical form")
        return proof

    def check(self, verify: Verify = is_signature, *, subnet_id: int, genesis: bytes) -> None:
        """Whether it proves that `owner` said two things in this subnet of this chain.

        Raises RecordRejected: "not-a-proof" (nothing contradicts), "subnet", "genesis", "signature".
        """
        if not is_equivocation(self.first, self.second):
            raise RecordRejected("not-a-proof", "one slot, one seq and two contents would be one")
        for record in (self.first, self.second):
            if record.genesis != genesis:
                raise RecordRejected("genesis", f"signed for the chain {record.genesis.hex()[:16]}…")
            if record.subnet_id != subnet_id:
                raise RecordRejected("subnet", f"signed for subnet {record.subnet_id}, this one is {subnet_id}")
        for record in (self.first, self.second):
            record.check_signature(verify)


class ProofBook:
    """Proofs seen: one per slot, the newest, bounded in all and by owner, so that one liar with many slots does not
    push out what proves others to be liars. Trusts who fills it to have checked the signatures."""

    def __init__(self, *, max_proofs: int, max_per_owner: int) -> None:
        self._max_proofs = max_proofs
        self._max_per_owner = max_per_owner
        self._by_slot: OrderedDict[Slot, Equivocation] = OrderedDict()
        self._by_owner: dict[PeerID, OrderedDict[Slot, None]] = {}

    @property
    def proofs(self) -> tuple[Equivocation, ...]:
        """Oldest first."""
        return tuple(self._by_slot.values())

    def __len__(self) -> int:
        return len(self._by_slot)

    def of(self, slot: Slot) -> Equivocation | None:
        """The proof about a slot; None when there is none."""
        return self._by_slot.get(slot)

    def under(self, key: bytes) -> tuple[Equivocation, ...]:
        """Those about slots under a key, oldest first."""
        return tuple(proof for slot, proof in self._by_slot.items() if slot.key == key)

    def proves(self, slot: Slot, seq: int) -> bool:
        """Whether the slot is known to have been signed twice with this seq."""
        proof = self._by_slot.get(slot)
        return proof is not None and proof.first.seq == seq

    def add(self, proof: Equivocation) -> tuple[Equivocation, ...]:
        """Keep a proof. Returns those that left for it, and itself when there is no room for any."""
        if self._by_slot.get(proof.slot) == proof:
            return ()
        gone = [self._remove(proof.slot)] if proof.slot in self._by_slot else []
        self._by_slot[proof.slot] = proof
        mine = self._by_owner.setdefault(proof.owner, OrderedDict())
        mine[proof.slot] = None
        if len(mine) > self._max_per_owner:
            gone.append(self._remove(next(iter(mine))))
        while len(self._by_slot) > self._max_proofs:
            gone.append(self._remove(next(iter(self._by_slot))))
        return tuple(gone)

    def _remove(self, slot: Slot) -> Equivocation:
        proof = self._by_slot.pop(slot)
        mine = self._by_owner[slot.owner]
        del mine[slot]
        if not mine:
            del self._by_owner[slot.owner]
        return proof
