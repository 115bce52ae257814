"""The Chain protocol: everything a node, a staker command or a subnet asks of the chain.

Two implementations pass tests/contract/test_chain.py: `mesh.chain.substrate.SubstrateChain` and
`mesh.testing.FakeChain`. Reads take `at` (a block hash) or use the best block; what must agree is read at one hash.
Every method raises ChainUnavailable when no RPC answers within the configured time, and BlockUnavailable for a block
that is unknown or whose state is not kept any more; cancellation is always safe.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import trio

from mesh.chain.types import Balance, BlockRef, Event, Receipt, Score, Snapshot, Submission, SubnetInfo
from mesh.identity import AccountKey
from mesh.peer import PeerInfo


class Chain(Protocol):
    """The chain's face to mesh."""

    @property
    def genesis(self) -> bytes:
        """Hash of block 0, known once run() has started."""
        ...

    @property
    def epoch_length(self) -> int:
        """Blocks per epoch (constant Network.EpochLength)."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, keep the connection, follow heads; started() once usable. Reconnects for ever with backoff."""
        ...

    async def head(self) -> BlockRef:
        """The best block."""
        ...

    async def finalized(self) -> BlockRef:
        """The last finalized block."""
        ...

    async def block_hash(self, number: int) -> bytes:
        """Hash of a block of the best chain. Raises BlockUnavailable when there is none yet."""
        ...

    def heads(self) -> AsyncIterator[BlockRef]:
        """New best blocks, in order, gaps skipped over when the reader is slow or the connection was away."""
        ...

    async def timestamp_ms(self) -> int:
        """Timestamp.Now of the best block."""
        ...

    async def resolve_subnet_id(self, subnet_id: int) -> int:
        """The real id of a friendly or real one. Raises ChainError when there is no such subnet."""
        ...

    async def subnet(self, subnet_id: int, at: bytes | None = None) -> SubnetInfo:
        """Raises ChainError when there is no such subnet."""
        ...

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        """All registered nodes of a subnet at one block."""
        ...

    async def bootnodes(self, subnet_id: int) -> tuple[PeerInfo, ...]:
        """Bootnodes listed on chain by the subnet (`SubnetBootnodes`); malformed entries are left out."""
        ...

    async def elected(self, subnet_id: int, epoch: int) -> int | None:
        """Node id elected to propose in subnet epoch `epoch`, or None."""
        ...

    async def submission(self, subnet_id: int, epoch: int) -> Submission | None:
        """The proposal made in subnet epoch `epoch`, or None."""
        ...

    async def balance(self, account: bytes) -> Balance:
        """Free and reserved planck and the nonce."""
        ...

    async def events(self, at: bytes) -> tuple[Event, ...]:
        """Events of the block with this hash."""
        ...

    async def storage(self, pallet: str, item: str, *keys: object, at: bytes | None = None) -> object:
        """One decoded storage value (metadata-driven); None when absent and optional."""
        ...

    async def storage_map(
        self, pallet: str, item: str, *keys: object, at: bytes | None = None
    ) -> Sequence[tuple[tuple[object, ...], object]]:
        """All entries under a (partial) key, decoded."""
        ...

    async def constant(self, pallet: str, name: str) -> object:
        """One decoded constant of the metadata. Raises CallRefused when there is none."""
        ...

    async def estimate_fee(self, call: str, args: Mapping[str, object], signer: AccountKey) -> int:
        """What `submit` of the same would pay in planck. Nothing valid is signed, nothing sent. Raises CallRefused."""
        ...

    async def submit(self, call: str, args: Mapping[str, object], signer: AccountKey) -> Receipt:
        """Sign `Pallet.call` (or a Network call by bare name), submit, wait until it is in a block.

        Exactly once, also across a crash of this process or of the node. Raises CallRefused, ExtrinsicInvalid,
        ExtrinsicFailed, ExtrinsicLost, ChainUnavailable. Cancelled: it may be included yet; the same call goes on.
        """
        ...

    async def propose(self, subnet_id: int, scores: Sequence[Score], *, args: bytes, hotkey: AccountKey) -> Receipt:
        """`propose_attestation`, in the dialect's form."""
        ...

    async def attest(self, subnet_id: int, *, hotkey: AccountKey) -> Receipt:
        """`attest`, in the dialect's form."""
        ...
