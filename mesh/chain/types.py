"""What the chain says, as plain values. PURE.

Amounts are integer planck (1 TENSOR = 1e18); percentages and scores are integers of 1e18 = 100 %. Accounts are 20
bytes. Epochs here are SUBNET epochs: `(block - slot) // epoch_length` (pallet `utilities/era`), 0 before the slot.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from mesh.peer import PeerID

PLANCK_PER_TENSOR: Final = 10**18
ONE: Final = 10**18
"""100 % in the pallet's fixed point."""
FIRST_SUBNET_ID: Final = 128_001
"""Real subnet ids start here; smaller numbers are friendly ids."""
MAX_ARGS_BYTES: Final = 4096
"""Bound of `propose_attestation`'s args."""


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block by number and hash."""

    number: int
    hash: bytes


class NodeClass(enum.IntEnum):
    """SubnetNodeClass of the pallet; only VALIDATOR is elected and attests."""

    REGISTERED = 0
    IDLE = 1
    INCLUDED = 2
    VALIDATOR = 3


class SubnetState(enum.IntEnum):
    """SubnetState of the pallet."""

    REGISTERED = 0
    ACTIVE = 1
    PAUSED = 2


@dataclass(frozen=True, slots=True)
class SubnetInfo:
    """One subnet. `slot` is None until it is activated, `owner` where the chain names none."""

    subnet_id: int
    friendly_id: int
    name: str
    state: SubnetState
    start_epoch: int
    slot: int | None
    owner: bytes | None
    min_stake_planck: int
    max_stake_planck: int


@dataclass(frozen=True, slots=True)
class SubnetNode:
    """One registered node. `start_epoch` is the subnet epoch from which `node_class` holds."""

    node_id: int
    coldkey: bytes
    hotkey: bytes
    peer_id: PeerID
    bootnode_peer_id: PeerID | None
    client_peer_id: PeerID | None
    node_class: NodeClass
    start_epoch: int
    stake_planck: int
    reputation: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A subnet's nodes in the state at ONE block, named by hash, sorted by node id."""

    subnet_id: int
    block: BlockRef
    nodes: tuple[SubnetNode, ...]

    def by_peer(self, peer: PeerID) -> SubnetNode | None:
        """The node whose peer id this is, or None."""
        return next((node for node in self.nodes if node.peer_id == peer), None)

    def validators(self, epoch: int) -> tuple[SubnetNode, ...]:
        """Nodes of class Validator in subnet epoch `epoch`."""
        return tuple(n for n in self.nodes if n.node_class is NodeClass.VALIDATOR and n.start_epoch <= epoch)

    def validator_peers(self, epoch: int) -> tuple[PeerID, ...]:
        """Their peer ids."""
        return tuple(node.peer_id for node in self.validators(epoch))


@dataclass(frozen=True, slots=True)
class Score:
    """One node's part of a proposal."""

    node_id: int
    score: int


@dataclass(frozen=True, slots=True)
class Submission:
    """The accepted proposal of an epoch (pallet `ConsensusData`)."""

    proposer_node_id: int
    block: int
    scores: tuple[Score, ...]
    args: bytes | None
    attests: tuple[int, ...]
    """Node ids that attested, the proposer included."""


@dataclass(frozen=True, slots=True)
class Event:
    """A runtime event; `fields` by name, positional ones under "0", "1", …"""

    pallet: str
    name: str
    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A successful extrinsic in a block."""

    extrinsic_hash: bytes
    block: BlockRef
    fee_planck: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Balance:
    """An account's `System.Account` data and nonce."""

    free_planck: int
    reserved_planck: int
    nonce: int


@dataclass(frozen=True, slots=True)
class EpochPosition:
    """Where a block stands in a subnet's epochs."""

    epoch: int
    offset: int
    """Blocks since the epoch's slot block, 0 … length - 1."""
    length: int

    @classmethod
    def of(cls, block: int, *, slot: int, length: int) -> EpochPosition:
        """Subnet epoch arithmetic; before the slot everything is epoch 0, offset 0."""
        if block < slot:
            return cls(0, 0, length)
        return cls((block - slot) // length, (block - slot) % length, length)


def first_block(epoch: int, *, slot: int, length: int) -> int:
    """The block at which subnet epoch `epoch` begins."""
    return slot + epoch * length
