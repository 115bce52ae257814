"""No chain at all: blocks are counted from the wall clock, nobody is registered, nothing can be submitted.

For `--no_blockchain_rpc`: a subnet can be tried between a few machines before there is a chain. Everyone who connects
is a member, and no work is paid.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, NoReturn

import trio

from mesh.chain.types import (
    Balance,
    BlockRef,
    Event,
    Receipt,
    Score,
    Snapshot,
    Submission,
    SubnetInfo,
    SubnetState,
)
from mesh.clock import Clock
from mesh.errors import ChainError
from mesh.identity import AccountKey
from mesh.peer import PeerInfo

BLOCK_TIME_S: Final = 6  # the real chain's
EPOCH_LENGTH: Final = 20
GENESIS: Final = hashlib.sha256(b"mesh/offline/1").digest()


class OfflineChain:
    """A Chain that only tells time. Same block numbers on every machine whose clock is right."""

    genesis = GENESIS
    epoch_length = EPOCH_LENGTH

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Nothing to keep up."""
        task_status.started()

    async def head(self) -> BlockRef:
        """The block of this moment."""
        return _block(int(self._clock.now()) // BLOCK_TIME_S)

    async def finalized(self) -> BlockRef:
        """The same: nothing can be reverted."""
        return await self.head()

    async def block_hash(self, number: int) -> bytes:
        """A hash anybody can compute: no use as randomness."""
        return _block(number).hash

    async def heads(self) -> AsyncIterator[BlockRef]:
        """One block every six seconds."""
        while True:
            now = self._clock.now()
            await trio.sleep(BLOCK_TIME_S - now % BLOCK_TIME_S)
            yield await self.head()

    async def timestamp_ms(self) -> int:
        """The clock itself."""
        return int(self._clock.now() * 1000)

    async def resolve_subnet_id(self, subnet_id: int) -> int:
        """Ids are taken as they are."""
        return subnet_id

    async def subnet(self, subnet_id: int, at: bytes | None = None) -> SubnetInfo:
        """Every subnet exists and is active from block 0."""
        return SubnetInfo(subnet_id, subnet_id, "offline", SubnetState.ACTIVE, 0, 0, bytes(20), 0, 0)

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        """Nobody is registered."""
        return Snapshot(subnet_id, at or await self.head(), ())

    async def bootnodes(self, subnet_id: int) -> tuple[PeerInfo, ...]:
        """None listed."""
        return ()

    async def elected(self, subnet_id: int, epoch: int) -> int | None:
        """Nobody."""
        return None

    async def submission(self, subnet_id: int, epoch: int) -> Submission | None:
        """None."""
        return None

    async def balance(self, account: bytes) -> Balance:
        """Raises ChainError."""
        _refuse()

    async def events(self, at: bytes) -> tuple[Event, ...]:
        """None ever happen."""
        return ()

    async def storage(self, pallet: str, item: str, *keys: object, at: bytes | None = None) -> object:
        """Raises ChainError."""
        _refuse()

    async def storage_map(
        self, pallet: str, item: str, *keys: object, at: bytes | None = None
    ) -> Sequence[tuple[tuple[object, ...], object]]:
        """Raises ChainError."""
        _refuse()

    async def constant(self, pallet: str, name: str) -> object:
        """Raises ChainError."""
        _refuse()

    async def estimate_fee(self, call: str, args: Mapping[str, object], signer: AccountKey) -> int:
        """Raises ChainError."""
        _refuse()

    async def submit(self, call: str, args: Mapping[str, object], signer: AccountKey) -> Receipt:
        """Raises ChainError."""
        _refuse()

    async def propose(self, subnet_id: int, scores: Sequence[Score], *, args: bytes, hotkey: AccountKey) -> Receipt:
        """Raises ChainError."""
        _refuse()

    async def attest(self, subnet_id: int, *, hotkey: AccountKey) -> Receipt:
        """Raises ChainError."""
        _refuse()


def _block(number: int) -> BlockRef:
    return BlockRef(number, hashlib.sha256(GENESIS + number.to_bytes(8, "big")).digest())


def _refuse() -> NoReturn:
    raise ChainError("this node runs without a chain (--no_blockchain_rpc): nothing can be read from or sent to one")
