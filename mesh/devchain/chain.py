"""The dev chain without its transport: store, pool, runtime, and who wants to hear of blocks.

Nothing here waits. A block is final when the next one is on top of it; there is one author, so there are no forks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mesh.devchain import snapshot
from mesh.devchain.extrinsic import Extrinsic, Refused, invalid
from mesh.devchain.overlay import MemoryState, Overlay, ReadState
from mesh.devchain.pallets.network import BLOCKS_PER_YEAR
from mesh.devchain.pallets.network.storage import DEV_GENESIS
from mesh.devchain.pallets.system import ACCOUNT
from mesh.devchain.pallets.timestamp import NOW, SLOT_MS
from mesh.devchain.pool import Pool, PoolConfig
from mesh.devchain.runtime import Block, BlockBuilder, Runtime
from mesh.devchain.scale import ScaleError
from mesh.devchain.store import Store
from mesh.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT_GENESIS_MS = 1_795_000_000_000
MAX_TRIED_BLOCKS = 2_000
"""Blocks that are tried before a state set by hand or restored is taken: an epoch of them, if it is no longer."""


class ServerConfig(BaseModel):
    """Bounds of the JSON-RPC server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_connections: int = Field(default=64, ge=1)
    max_message_bytes: int = Field(default=2 * 1024 * 1024, ge=1024)
    max_subscriptions: int = Field(default=128, ge=1)
    """Per connection, watched extrinsics included."""
    max_outgoing_messages: int = Field(default=4096, ge=16)
    """Unsent messages of one connection; one more and it is closed, for it does not read."""
    max_outgoing_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    """Answers that one client may leave unread, in bytes."""
    max_batch: int = Field(default=64, ge=1)
    max_keys: int = Field(default=1000, ge=1)
    """Storage keys in one answer or one request."""
    max_watched_keys: int = Field(default=10_000, ge=1)
    """Storage keys that all subscriptions of one connection watch together; each block looks for them."""
    max_new_blocks: int = Field(default=10_000, ge=1)
    """Blocks that one dev_newBlock may ask for."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header to accept beside localhost and IP addresses."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of browser pages to accept; none by default."""


class DevChainConfig(BaseModel):
    """One dev chain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback shows the chain to the network, without any authentication."""
    port: int = Field(default=0, ge=0, le=65535)
    """0 takes a free one."""
    data_dir: Path | None = None
    """None keeps everything in memory."""
    block_time_s: float | None = Field(default=None, gt=0)
    """None: a block only when asked for (dev_newBlock, `DevChain.new_block`)."""
    epoch_length: int = Field(default=20, ge=4, le=BLOCKS_PER_YEAR)
    """Blocks of a global epoch; a year's emission is shared by the epochs in it, so there must be one."""
    fund: dict[str, int] = Field(default_factory=dict)
    """Address (0x and 40 hex digits) to planck at genesis."""
    network_genesis: dict[str, Any] = Field(default_factory=lambda: dict(DEV_GENESIS))
    """What plain items of the Network pallet hold at genesis in place of their defaults."""
    dev_rpc: bool = False
    """Whether the dev_ methods are answered: whoever can connect may then make blocks and change the state."""
    genesis_time_ms: int = Field(default=DEFAULT_GENESIS_MS, ge=0)
    name: str = "mesh dev chain"
    history_blocks: int = Field(default=4096, ge=16)
    """Blocks back for which state can be read."""
    pool: PoolConfig = PoolConfig()
    server: ServerConfig = ServerConfig()

    @field_validator("fund")
    @classmethod
    def _addresses(cls, fund: dict[str, int]) -> dict[str, int]:
        for address, planck in fund.items():
            if len(parse_address(address)) != 20 or not 0 <= planck < 1 << 127:
                raise ValueError(f"fund {address}: wants 0x and 40 hex digits, and 0 <= planck < 2**127")
        if len({parse_address(address) for address in fund}) != len(fund):
            raise ValueError("fund: an account is there twice, in different spellings")
        if sum(fund.values()) >= 1 << 127:
            raise ValueError("fund: all together must be less than 2**127 planck")
        return fund


def parse_address(text: str) -> bytes:
    """The bytes of a 0x-prefixed address; `ValueError` when it is none."""
    raw = bytes.fromhex(text.removeprefix("0x"))
    if len(raw) != 20:
        raise ValueError(f"{text}: an address has 20 bytes")
    return raw


Listener = Callable[[Block], None]
Watcher = Callable[[str, bytes | None], None]
"""Called with a status (inBlock, finalized, usurped, dropped, invalid) and the block's or other extrinsic's hash."""


class DevChain:
    """A chain that is open. Not safe to use from several threads at once. Close it when done."""

    def __init__(self, config: DevChainConfig) -> None:
        self.config = config
        self.runtime = Runtime(epoch_length=config.epoch_length, network_genesis=config.network_genesis)
        self.pool = Pool(config.pool)
        self.listeners: list[Listener] = []
        self._watchers: dict[bytes, list[Watcher]] = {}
        self._included: dict[bytes, bytes] = {}
        genesis = self.runtime.genesis(
            {parse_address(address): planck for address, planck in config.fund.items()},
            now_ms=config.genesis_time_ms,
        )
        self.store = Store(config.data_dir, history_blocks=config.history_blocks)
        try:
            stored = self.store.block_at(0)
            if stored is None:
                if config.network_genesis != DEV_GENESIS:
                    start = {key: value for key, value in genesis.changes.items() if value is not None}
                    self._check_goes_on(MemoryState(start), genesis, genesis_hash=genesis.hash)
                self.store.append(genesis)
            elif stored.hash != genesis.hash:
                raise ConfigError(
                    f"{config.data_dir} holds a dev chain with another genesis (other funds, epoch length, genesis "
                    "file or version): choose another data directory (--data-dir) or delete it"
                )
            best = self.store.latest()
            assert best is not None  # genesis is there
            self.best: Block = best
            self.state: MemoryState = self.store.load(best.header["state_root"])
        except BaseException:
            self.store.close()
            raise
        self.genesis_hash = genesis.hash

    def close(self) -> None:
        """Let go of the data directory."""
        self.store.close()

    @property
    def finalized_number(self) -> int:
        """The highest block that has another on top of it; a block restored from a snapshot is final at once."""
        return min(max(self.best.number - 1, self.store.history_from), self.best.number)

    @property
    def finalized_hash(self) -> bytes:
        """Its hash."""
        return self.best.hash if self.finalized_number == self.best.number else self.best.header["parent_hash"]

    def nonce(self, who: bytes) -> int:
        """The next nonce of an account in the latest state."""
        return int(self.runtime.account(self.state, who)["nonce"])

    def next_nonce(self, who: bytes) -> int:
        """The next nonce of an account, the waiting extrinsics counted."""
        return self.pool.next_nonce(who, self.nonce(who))

    def state_at(self, block_hash: bytes | None) -> tuple[ReadState, int] | None:
        """(state, number) of a block, the best one for None; None for a hash that is not known.

        `HistoryDiscarded` when the block's state is kept no more.
        """
        if block_hash is None or block_hash == self.best.hash:
            return self.state, self.best.number
        number = self.store.number_of(block_hash)
        if number is None:
            return None
        return self.store.at(number, best=self.best.number), number

    def submit(self, raw: bytes) -> Extrinsic:
        """Check an extrinsic and let it wait for a block; `Refused` otherwise."""
        limits = self.config.pool
        if len(raw) > limits.max_extrinsic_bytes:
            raise invalid(f"Transaction would exhaust the block limits: {len(raw)} bytes")
        number = self.best.number + 1
        self.pool.refuse_known(hashlib.blake2b(raw, digest_size=32).digest(), number=number)
        ext = self.runtime.parse(raw)
        self.runtime.check(ext, self.state, number=number, parent_hash=self.best.hash, genesis_hash=self.genesis_hash)
        info = self.runtime.account(self.state, ext.signer)
        added = self.pool.add(ext, nonce_of=self.nonce, free_planck=info["data"]["free"], number=number)
        if added.replaced is not None:
            self._tell(added.replaced.hash, "usurped", ext.hash, last=True)
        for each in added.evicted:
            self._tell(each.hash, "dropped", None, last=True)
        return ext

    def watch(self, ext_hash: bytes, watcher: Watcher) -> None:
        """Tell `watcher` what becomes of an extrinsic, until it is finalized or gone."""
        self._watchers.setdefault(ext_hash, []).append(watcher)

    def unwatch(self, ext_hash: bytes, watcher: Watcher) -> None:
        """Stop telling."""
        watchers = self._watchers.get(ext_hash, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            self._watchers.pop(ext_hash, None)

    def new_block(self, *, now_ms: int | None = None, set_storage: Mapping[bytes, bytes | None] | None = None) -> Block:
        """Make a block of what waits. Its time is `now_ms`; when None, one slot (6 s) after the parent's, or 1 ms
        when the chain has a block time.

        The raw entries of `set_storage` (checked: `check_settable`) are written first, None removing one. Raises
        ChainError when the block cannot be stored; nothing has changed then.
        """
        limits = self.config.pool
        if now_ms is None:
            now_ms = self._next_ms(self.state)
        builder = BlockBuilder(
            self.runtime, self.state, parent=self.best, genesis_hash=self.genesis_hash, now_ms=now_ms
        )
        if set_storage:
            builder.set_storage(set_storage)
        taken: list[Extrinsic] = []
        refused: list[Extrinsic] = []
        size = 0
        failed: set[bytes] = set()
        for ext in self.pool.ready(self.nonce):
            if len(taken) >= limits.max_block_extrinsics or size + len(ext.raw) > limits.max_block_bytes:
                break
            if ext.signer in failed:
                continue
            try:
                builder.apply(ext)
            except Refused as error:
                log.info("extrinsic 0x%s left the pool: %s", ext.hash.hex(), error)
                failed.add(ext.signer)
                refused.append(ext)
            else:
                taken.append(ext)
                size += len(ext.raw)
        block = builder.finish()
        self.store.append(block)
        self.state.apply(block.changes)
        self.best = block
        for ext in taken:
            self.pool.remove(ext)
        for ext in refused:
            self.pool.ban(ext, number=block.number)
        gone = self.pool.dead(self.nonce, number=block.number + 1)
        for ext in gone:
            self.pool.remove(ext)
        self._announce(block, taken=taken, refused=refused, gone=gone)
        return block

    def set_storage(self, entries: Mapping[bytes, bytes | None]) -> Block:
        """Make a block that writes these raw entries, None removing one; it is an extrinsic of that block.

        Raises ConfigError for an entry that is not one of `System.Account` or the Network pallet, that is not of its
        item's type, or with which the chain could not go on for an epoch.
        """
        self.check_settable(entries)
        self._check_goes_on(self.state, self.best, genesis_hash=self.genesis_hash, set_storage=entries)
        return self.new_block(set_storage=entries)

    def _check_goes_on(
        self,
        state: ReadState,
        parent: Block,
        *,
        genesis_hash: bytes,
        set_storage: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """Raise ConfigError unless an epoch of empty blocks (`MAX_TRIED_BLOCKS` at most) can follow: what a hook cannot
        bear would end the chain, at every start anew."""
        scratch = Overlay(state)
        try:
            for number in range(min(self.config.epoch_length + 1, MAX_TRIED_BLOCKS)):
                builder = BlockBuilder(
                    self.runtime, scratch, parent=parent, genesis_hash=genesis_hash, now_ms=self._next_ms(scratch)
                )
                if number == 0 and set_storage:
                    builder.set_storage(set_storage)
                parent = builder.finish()
                scratch.changes.update(parent.changes)
        except Exception as error:  # whatever a pallet raises
            raise ConfigError(
                f"with this the chain could not make block {parent.number + 1} ({error!r:.120}): nothing is changed"
            ) from error

    def check_settable(self, entries: Mapping[bytes, bytes | None]) -> None:
        """Raise ConfigError unless all of these may be written; see `set_storage`."""
        for key, value in entries.items():
            try:
                item = self.runtime.check_entry(key, value)
            except ScaleError as error:
                raise ConfigError(f"the entry cannot be set: {error}") from error
            if item.pallet != "Network" and item is not ACCOUNT:
                raise ConfigError(
                    f"{item.pallet}.{item.name} is kept by the chain itself: set System.Account or an item of Network"
                )

    def snapshot(self) -> bytes:
        """The chain at its best block, without the pool. Raises ConfigError when it is too large."""
        blocks, room = [self.best], snapshot.MAX_BLOCKS_BYTES
        while len(blocks) < snapshot.MAX_BLOCKS and blocks[-1].number:
            block = self.store.block(blocks[-1].header["parent_hash"])
            room -= 0 if block is None else sum(map(len, block.extrinsics)) + 256
            if block is None or (room < 0 and len(blocks) > 1):  # clients ask about the parent of the best block
                break
            blocks.append(block)
        return snapshot.write(self.genesis_hash, blocks[::-1], self.state)

    def restore(self, raw: bytes) -> Block:
        """Go to the block of a snapshot, which is final then; what waits in the pool is dropped.

        Raises ConfigError when the snapshot fails a check or nothing could follow its block, ChainError when it cannot
        be stored; nothing has changed then. Blocks above that one are forgotten; so are those below, but for the
        snapshot's own, when it is of another run of this chain.
        """
        given = snapshot.read(raw, genesis_hash=self.genesis_hash, runtime=self.runtime)
        head, number = given.blocks[-1], given.blocks[-1].number
        self._check_goes_on(MemoryState(given.state), head, genesis_hash=self.genesis_hash)
        kept = max(self.best.number - self.config.history_blocks, self.store.history_from) <= number
        if self.store.hash_of(number) == head.hash and kept:
            self.store.cut(number)
        else:
            self.store.replace(given.blocks, given.state)
        old, self.state, self.best = dict(self.state.items()), MemoryState(given.state), head
        changed = {key for key in old.keys() | given.state.keys() if old.get(key) != given.state.get(key)}
        included, self._included = self._included, {}
        waiting, self.pool = len(self.pool), Pool(self.config.pool)
        for listener in list(self.listeners):
            listener(replace(head, changes={key: given.state.get(key) for key in changed}))
        for ext_hash, in_block in included.items():
            if self.store.number_of(in_block) is not None:
                self._tell(ext_hash, "finalized", in_block, last=True)
        for ext_hash in [*self._watchers]:
            self._tell(ext_hash, "dropped", None, last=True)
        log.info("restored block %d; %d extrinsics that waited are dropped", number, waiting)
        return head

    def _next_ms(self, state: ReadState) -> int:
        """The time of a block that nobody times: a slot after its parent, or, where a clock makes blocks too, just
        after it, so that the chain's time does not run ahead of the clock's."""
        step_ms = SLOT_MS if self.config.block_time_s is None else 1
        return int(NOW.value.decode_all(state.get(NOW.key()) or NOW.default_bytes)) + step_ms

    def _announce(
        self, block: Block, *, taken: list[Extrinsic], refused: list[Extrinsic], gone: list[Extrinsic]
    ) -> None:
        for listener in list(self.listeners):
            listener(block)
        for ext_hash, in_block in self._included.items():
            self._tell(ext_hash, "finalized", in_block, last=True)
        self._included = {}
        for ext in taken:
            self._tell(ext.hash, "inBlock", block.hash)
            self._included[ext.hash] = block.hash
        for ext in refused:
            self._tell(ext.hash, "invalid", None, last=True)
        for ext in gone:
            self._tell(ext.hash, "dropped", None, last=True)

    def _tell(self, ext_hash: bytes, status: str, other: bytes | None, *, last: bool = False) -> None:
        watchers = self._watchers.pop(ext_hash, []) if last else list(self._watchers.get(ext_hash, []))
        for watcher in watchers:
            watcher(status, other)

    def get(self, item: Any, *keys: Any) -> Any:
        """A storage value of the latest state, for tests and tools in this process."""
        ctx = self.runtime.context(self.state, pallet=item.pallet, block=self.best.number, parent_hash=self.best.hash)
        return ctx.get(item, *keys)

    def items(self, item: Any, *keys: Any) -> list[tuple[tuple[Any, ...], Any]]:
        """All entries of a storage map in the latest state."""
        ctx = self.runtime.context(self.state, pallet=item.pallet, block=self.best.number, parent_hash=self.best.hash)
        return list(ctx.items(item, *keys))
