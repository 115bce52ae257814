"""What a node knows about the epochs it still deals with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from mesh.chain.client import Chain
from mesh.chain.epochs import Epochs
from mesh.chain.types import Score
from mesh.chain.windows import BASE_LENGTH
from mesh.consensus.config import ConsensusConfig
from mesh.consensus.context import RoundContext
from mesh.consensus.inventories import InventoryBook
from mesh.consensus.judging import Judgement
from mesh.content import Content
from mesh.dht import DHT
from mesh.identity import AccountKey, PeerKey
from mesh.kad.record import Record
from mesh.kad.validator import RecordValidator
from mesh.peer import PeerID
from mesh.subnet import Evidence, Settlement, Subnet

log = logging.getLogger(__name__)

MAX_SAID: Final = 256
"""Different lines logged about one epoch: peers decide what some of them say."""
_LIVE_ROUNDS: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the loop works with: chain, network and subnet of this node, and where it writes things down."""

    chain: Chain
    subnet_id: int
    epochs: Epochs
    dht: DHT
    content: Content
    subnet: Subnet
    identity: PeerKey
    hotkey: AccountKey | None
    files: Path
    config: ConsensusConfig
    validator: RecordValidator
    """Judges records by the subnet's rules at any time (`timeless_validator`)."""

    @property
    def us(self) -> PeerID:
        """This node."""
        return self.identity.peer_id

    def scaled(self, blocks: int) -> int:
        """Blocks of an epoch of 20 in epochs of this chain."""
        return blocks * self.epochs.length // BASE_LENGTH

    def offset_in(self, epoch: int) -> int:
        """Blocks since the first one of `epoch`, as of the newest block we know."""
        now = self.epochs.position()
        return now.offset + (now.epoch - epoch) * now.length


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal that could be made of what is known now: its blob is kept, its records are checked and scored."""

    names: tuple[tuple[bytes, ...], tuple[bytes, ...]]
    """Digests of its inventories and its records."""
    digest: bytes
    """Of the blob."""
    size: int
    evidence: Evidence
    scores: tuple[Score, ...]


@dataclass
class Round:
    """What is known about one epoch's work."""

    ctx: RoundContext
    book: InventoryBook
    records: dict[bytes, Record] = field(default_factory=dict)
    """Evidence beside the store's: what our inventory names, and what others gave us."""
    answered: set[PeerID] = field(default_factory=set)
    """Validators that said which inventories they have."""
    inventory: bytes | None = None
    inventory_sent: bool = False
    draft: Draft | None = None
    tries: int = 0
    closed: bool = False
    """Whether we have nothing (more) to propose."""
    fingerprint: object = None
    """Of the submission that `judgement` is about."""
    judgement: Judgement | None = None
    judged: bytes = b""
    """Digest of the blob it is about."""
    witness: bytes = b""
    refusal_sent: bool = False
    attest_tries: int = 0
    settlement: Settlement | None = None
    pinned: set[bytes] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    """Log lines that need no repetition at every block."""

    @property
    def epoch(self) -> int:
        """The epoch of the work."""
        return self.ctx.epoch

    def unheard(self) -> tuple[PeerID, ...]:
        """Validators of whom no inventory is known."""
        heard = self.book.heard()
        return tuple(peer for peer in self.ctx.validators if peer not in heard)

    def known(self, us: PeerID) -> int:
        """Of how many validators we know whether they have an inventory."""
        return len((self.book.heard() | self.answered | {us}) & self.ctx.validators.keys())

    def say(self, level: int, text: str) -> None:
        """Log a line once."""
        if text not in self.said and len(self.said) < MAX_SAID:
            self.said.add(text)
            log.log(level, "epoch %d: %s", self.epoch, text)


class Rounds:
    """The rounds of the last epochs, by epoch."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rounds: dict[int, Round] = {}

    @property
    def known(self) -> Mapping[int, Round]:
        """Those that were opened and not forgotten yet."""
        return MappingProxyType(self._rounds)

    async def open(self, epoch: int) -> Round:
        """The round of an epoch. Raises ChainError while the epoch has not begun."""
        found = self._rounds.get(epoch)
        if found is None:
            parts = self._parts
            ctx = RoundContext(
                genesis=parts.chain.genesis,
                subnet_id=parts.subnet_id,
                epoch=epoch,
                snapshot=await parts.epochs.snapshot(epoch),
                evidence_keys=frozenset(parts.subnet.evidence_keys(epoch)),
                score_id=parts.subnet.score_id,
                validator=parts.validator,
            )
            found = self._rounds.setdefault(epoch, Round(ctx, InventoryBook(ctx)))
        return found

    def forget(self, epoch: int) -> None:
        """Let go of what is too old in `epoch`: blobs may leave, files of inventories do."""
        for old in [e for e in self._rounds if e + self._parts.config.keep_epochs < epoch]:
            for digest in self._rounds.pop(old).pinned:
                self._parts.content.unpin(digest)
        for path in self._parts.files.glob("inventory-*"):
            number = path.name.rpartition("-")[2]
            if number.isdecimal() and int(number) + _LIVE_ROUNDS < epoch:
                path.unlink(missing_ok=True)

    def keep(self, found: Round, data: bytes) -> bytes:
        """Hold a blob for others until the round is forgotten; returns its digest. Raises StoreFull."""
        digest = self._parts.content.put(data)
        self.pin(found, digest)
        return digest

    def pin(self, found: Round, digest: bytes) -> None:
        """Hold a blob that is here already."""
        if digest not in found.pinned:
            self._parts.content.pin(digest)
            found.pinned.add(digest)
