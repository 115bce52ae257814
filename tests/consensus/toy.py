"""A tiny subnet and the values of one epoch, for the tests beside this file.

The toy subnet's work is to write notes; an owner's score is how many of its notes are in the evidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import trio
from pydantic import BaseModel, ConfigDict

from mesh.chain.types import BlockRef, NodeClass, Score, Snapshot, SubnetNode
from mesh.consensus.round import Inventory, RoundContext, inventory_key, timeless_validator
from mesh.identity import AccountKey, PeerKey
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import NamespaceRule, pack_value, window
from mesh.subnet import Evidence

GENESIS = b"\x07" * 32
SUBNET = 128_001
EPOCH = 3
SNAPSHOT_HASH = b"\x33" * 32
EXPIRY_MS = 1_800_000_600_000
LABELS = ("ada", "bob", "cyd", "dan", "eve", "fay", "gus")
KEYS = {label: PeerKey.dev(f"consensus {label}") for label in LABELS}


class Note(BaseModel):
    """One piece of work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str


class ToyConfig(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ToySubnet:
    """See the module."""

    name: ClassVar[str] = "toy"
    Config = ToyConfig

    def __init__(self, score_id: str = "toy/1.0.0") -> None:
        self.score_id = score_id
        self.bonus = 0

    def rules(self, config: Any) -> Sequence[NamespaceRule]:
        return [
            NamespaceRule(
                "note",
                schema=Note,
                max_value_bytes=1024,
                max_ttl_s=86_400.0,
                predicate=window(0, 18),
                is_evidence=True,
            )
        ]

    def evidence_keys(self, epoch: int) -> Sequence[bytes]:
        return [note_key(epoch)]

    def servicers(self, ctx: Any, config: Any) -> Sequence[Any]:
        return []

    async def run(self, ctx: Any, config: Any, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    def score(self, evidence: Evidence) -> Sequence[Score]:
        counts = Counter(record.owner for record in evidence.records)
        nodes = {node.peer_id: node.node_id for node in evidence.snapshot.nodes}
        return [Score(nodes[peer], count + self.bonus) for peer, count in sorted(counts.items())]


def note_key(epoch: int) -> bytes:
    return f"note/{epoch}".encode()


def node(label: str, number: int, **changes: Any) -> SubnetNode:
    fields: dict[str, Any] = {
        "node_id": number,
        "coldkey": bytes([number]) * 20,
        "hotkey": bytes([100 + number]) * 20,
        "peer_id": KEYS[label].peer_id,
        "bootnode_peer_id": None,
        "client_peer_id": None,
        "node_class": NodeClass.VALIDATOR,
        "start_epoch": 0,
        "stake_planck": 10**20,
        "reputation": 10**18,
    }
    return SubnetNode(**(fields | changes))


def snapshot(labels: Sequence[str] = LABELS[:4], **by_label: dict[str, Any]) -> Snapshot:
    nodes = tuple(node(label, i + 1, **by_label.get(label, {})) for i, label in enumerate(labels))
    return Snapshot(SUBNET, BlockRef(60, SNAPSHOT_HASH), nodes)


def context(labels: Sequence[str] = LABELS[:4], *, score_id: str = "toy/1.0.0", **by_label: Any) -> RoundContext:
    toy = ToySubnet()
    return RoundContext(
        genesis=GENESIS,
        subnet_id=SUBNET,
        epoch=EPOCH,
        snapshot=snapshot(labels, **by_label),
        evidence_keys=frozenset(toy.evidence_keys(EPOCH)),
        score_id=score_id,
        validator=timeless_validator(toy.rules(None), subnet_id=SUBNET, genesis=GENESIS),
    )


def signed(label: str, key: bytes, value: bytes, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "expiry_ms": EXPIRY_MS, "seq": 1_800_000_000_000, "subnet_id": SUBNET, "genesis": GENESIS
    }  # fmt: skip
    return sign_record(KEYS[label], key, value, **(fields | changes))


def note(label: str, text: str, **changes: Any) -> Record:
    key = changes.pop("key", note_key(EPOCH))
    changes.setdefault("subkey", text.encode()[:32])
    return signed(label, key, pack_value(Note(text=text)), **changes)


def inventory(label: str, records: Iterable[Record], **changes: Any) -> Record:
    value = Inventory(
        epoch=changes.pop("epoch", EPOCH),
        snapshot=changes.pop("snapshot", SNAPSHOT_HASH),
        digests=tuple(sorted({record.digest for record in records})),
    )
    return signed(label, changes.pop("key", inventory_key(EPOCH)), pack_value(value), **changes)


def hotkey(label: str) -> AccountKey:
    return AccountKey.from_private((1000 + LABELS.index(label)).to_bytes(32, "big"))
