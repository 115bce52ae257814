"""The Chain protocol over a Substrate node's JSON-RPC.

Unmodified substrate-interface holds the connection and signs; it is used from ONE worker thread, one call at a time,
and its socket is shut down when a deadline or a cancellation leaves a call behind. New heads come over a subscription
in the event loop (heads.py), or by polling while there is none. The connection is rebuilt for ever with jittered
backoff, through all URLs in turn; a call waits for it up to `call_timeout_s`. Works with any node that answers the
standard methods: nothing here asks for `network_*` or for the dev chain's own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from pydantic import BaseModel, ConfigDict, Field
from substrateinterface import Keypair, KeypairType, SubstrateInterface
from substrateinterface.exceptions import SubstrateRequestException
from websocket import WebSocketException

from mesh.chain import runtime, session
from mesh.chain.dialect import PALLET, Call, Dialect, Read
from mesh.chain.heads import follow_heads
from mesh.chain.journal import Delivery, Done, Entry, Fate, Journal
from mesh.chain.local import TestChain, is_local_chain, require_local_for_dev_key
from mesh.chain.runtime import Era, SigningContext
from mesh.chain.session import Found, RpcRefused, Session
from mesh.chain.types import Balance, BlockRef, Event, Receipt, Score, Snapshot, Submission, SubnetInfo
from mesh.errors import (
    CallRefused,
    ChainError,
    ChainUnavailable,
    ExtrinsicFailed,
    ExtrinsicInvalid,
    ExtrinsicLost,
    WrongChain,
    first_leaf,
)
from mesh.identity import AccountKey
from mesh.peer import PeerInfo

log = logging.getLogger(__name__)

T = TypeVar("T")

ALREADY_IMPORTED: Final = 1013
TEMPORARILY_BANNED: Final = 1012
"""Said of what was in the pool a moment ago: it may be in a block, so it is looked for, not given up."""
_UNSIGNED: Final = b"\x01" * runtime.SIGNATURE_BYTES
"""The signature of what is only priced: of the right length, and nobody can submit it."""
_LOCK_POLL_S: Final = 0.1


class ChainConfig(BaseModel):
    """How a chain is reached, and the bounds of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: tuple[str, ...] = Field(default=("ws://127.0.0.1:9944",), min_length=1, max_length=16)
    """ws:// or wss://; tried in turn."""
    call_timeout_s: float = Field(default=15.0, gt=0, le=600)
    """One question to the chain, waiting for a connection included."""
    submit_timeout_s: float = Field(default=180.0, gt=0, le=3600)
    """From signing to being in a block."""
    era_blocks: int = Field(default=64, ge=4, le=4096)
    """How long a signed extrinsic stays valid; a power of two."""
    backoff_first_s: float = Field(default=0.5, gt=0, le=60)
    backoff_max_s: float = Field(default=30.0, gt=0, le=600)
    poll_interval_s: float = Field(default=6.0, gt=0, le=60)
    """How often the best block is asked for while there is no subscription."""
    silence_s: float = Field(default=30.0, gt=0, le=600)
    """After so long without a head from the subscription the best block is asked for."""
    ping_interval_s: float = Field(default=20.0, gt=0, le=600)
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=65_536)
    test_chain: TestChain = TestChain.NOT_SAID
    """Whether the user vouches that this is a test chain, so that public development keys may sign on it."""

    only_local: bool = False
    """Whether any chain but a local one (mesh.chain.local) is refused: for keys given where others can see them."""

    def model_post_init(self, context: Any, /) -> None:
        if self.era_blocks & (self.era_blocks - 1):
            raise ValueError("era_blocks must be a power of two")


class _Disconnected(ChainError):
    """The connection ended under a call; the call may be made again on the next one."""


@dataclass
class _Account:
    """What this process does for one signing account."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    journal: Journal | None = None
    live: set[bytes] = field(default_factory=set)
    """Hashes of extrinsics a task of this process waits for."""


class SubstrateChain:
    """Implements mesh.chain.client.Chain. `run()` must run; see the protocol for what each method means.

    `journal_dir` holds the write-ahead journals (one file per chain and account), `cache_dir` raw metadata. `recover`
    names accounts whose interrupted submissions are settled when `run()` starts; others are at their next submission.
    """

    def __init__(
        self,
        config: ChainConfig,
        *,
        journal_dir: Path,
        cache_dir: Path | None = None,
        recover: Sequence[bytes] = (),
        rng: random.Random,
    ) -> None:
        self._config = config
        self._journal_dir = journal_dir
        self._cache_dir = cache_dir
        self._recover = tuple(recover)
        self._rng = rng
        self._limiter = trio.CapacityLimiter(1)
        self._links: dict[int, _Link] = {}
        self._session: Session | None = None
        self._genesis: bytes | None = None
        self._epoch_length: int | None = None
        self._changed = trio.Event()
        self._best: BlockRef | None = None
        self._accounts: dict[bytes, _Account] = {}

    # --- connection -------------------------------------------------------------------------------------------

    @property
    def genesis(self) -> bytes:
        """Hash of block 0. Raises ChainUnavailable before run() has started."""
        if self._genesis is None:
            raise ChainUnavailable("the chain was not reached yet")
        return self._genesis

    @property
    def epoch_length(self) -> int:
        """Constant Network.EpochLength. Raises ChainUnavailable before run() has started."""
        if self._epoch_length is None:
            raise ChainUnavailable("the chain was not reached yet")
        return self._epoch_length

    @property
    def dialect(self) -> Dialect:
        """The pallet's dialect. Raises ChainUnavailable while there is no connection."""
        return self._here().dialect

    @property
    def url(self) -> str:
        """The URL in use. Raises ChainUnavailable while there is no connection."""
        return self._here().url

    @property
    def chain_type(self) -> str:
        """`system_chainType`, empty when the node does not say. Raises ChainUnavailable without a connection."""
        return self._here().chain_type

    def _here(self) -> Session:
        if self._session is None:
            raise ChainUnavailable(f"no chain answers at {', '.join(self._config.urls)}")
        return self._session

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, keep the connection, follow heads; started() once usable. Raises WrongChain when the first node
        reached is no chain for mesh; after that it only logs and tries on."""
        fatal: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_connected)
                await self._until(lambda: self._session is not None)
                for account in self._recover:
                    await self.recover(account)
                nursery.start_soon(self._follow_heads)
                await self._until(lambda: self._best is not None)
                task_status.started()
        except* ChainError as group:
            fatal = first_leaf(group)
        finally:
            self._drop()
        if fatal is not None:  # raised out here, so that the caller gets the error and not a group
            raise fatal

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            url = self._config.urls[failures % len(self._config.urls)]
            try:
                found = await self._connect(url)
            except WrongChain:
                if self._genesis is None:
                    raise
                log.exception("%s is another chain; trying on", url)
            except ChainError as error:
                log.warning("no chain at %s: %s", url, error)
            else:
                failures = 0
                log.info("connected to %s: %s, genesis 0x%s", url, found.dialect.name, found.genesis.hex())
                self._session = found
                self._tell()
                await self._until(lambda gone=found: self._session is not gone)  # type: ignore[misc]
                log.warning("lost the chain at %s; reconnecting", url)
            await trio.sleep(self._backoff(failures))
            failures += 1

    def _backoff(self, failures: int) -> float:
        longest = min(self._config.backoff_max_s, self._config.backoff_first_s * 2.0 ** min(failures, 20))
        return longest * (0.5 + self._rng.random() / 2)

    async def _connect(self, url: str) -> Session:
        link = _Link(url, self._config)

        def job() -> tuple[Session, int]:
            link.connect()
            opened = session.open_session(link.rpc, url, cache_dir=self._cache_dir)
            length = session.constant(opened, PALLET, "EpochLength")
            if not isinstance(length, int) or length < 1:
                raise WrongChain(f"the chain's epoch length is {length}")
            return opened, length

        opened: Session | None = None
        try:
            # metadata is downloaded here, so more than one call's time
            with trio.move_on_after(2 * self._config.call_timeout_s):
                opened, length = await self._in_thread(job, link)
            if opened is None:
                raise ChainUnavailable(f"{url} did not answer within {2 * self._config.call_timeout_s:g} s")
            if self._config.only_local and not is_local_chain(url, opened.chain_type, opened.genesis):
                raise WrongChain(
                    f"{url} is no local chain, and secrets on the command line are accepted on local chains only: "
                    "use a key file or the environment"
                )
            if self._genesis is not None and self._genesis != opened.genesis:
                raise WrongChain(
                    f"{url} has the genesis 0x{opened.genesis.hex()}, the chain in use 0x{self._genesis.hex()}"
                )
            self._links[id(opened)] = link
            self._genesis, self._epoch_length = opened.genesis, length
            return opened
        finally:
            if opened is None or id(opened) not in self._links:
                link.shut()

    async def _in_thread(self, job: Callable[[], T], link: _Link | None) -> T:
        """Run in the worker thread. Cancelled while it runs: the link is shut, so that the thread ends."""
        running = False

        def work() -> T:
            nonlocal running
            running = True
            return job()

        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except trio.Cancelled:
            if running and link is not None:
                link.shut()
                self._drop(link)
            raise

    async def _ask(self, job: Callable[[Session], T]) -> T:
        """Run `job` with the session, again on the next connection when this one ends under it."""
        why = "no connection"
        with trio.move_on_after(self._config.call_timeout_s):
            while True:
                await self._until(lambda: self._session is not None)
                here = self._here()
                link = self._links[id(here)]
                try:
                    return await self._in_thread(lambda: job(here), link)  # noqa: B023 - runs before the next round
                except _Disconnected as error:
                    why = str(error)
                    self._drop(link)
        raise ChainUnavailable(
            f"no chain answered within {self._config.call_timeout_s:g} s at {', '.join(self._config.urls)} ({why})"
        )

    def _drop(self, link: _Link | None = None) -> None:
        """Give up the connection (only if it is `link`, when given)."""
        here = self._session
        if here is None:
            return
        own = self._links[id(here)]
        if link is None or link is own:
            own.shut()
            del self._links[id(here)]
            self._session = None
            self._tell()

    def _tell(self) -> None:
        event, self._changed = self._changed, trio.Event()
        event.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait for connection or head to change until `holds()`."""
        while not holds():
            await self._changed.wait()

    # --- heads ------------------------------------------------------------------------------------------------

    async def _follow_heads(self) -> None:
        while True:
            await self._until(lambda: self._session is not None)
            try:
                await self._on_head(False)
                await follow_heads(self._here().url, self._on_head, self._config)
            except ChainUnavailable as error:
                log.info("%s; polling every %g s", error, self._config.poll_interval_s)
            except ChainError as error:
                log.warning("%s; polling every %g s", error, self._config.poll_interval_s)
            await trio.sleep(self._config.poll_interval_s * (0.5 + self._rng.random() / 2))

    async def _on_head(self, runtime_changed: bool) -> None:
        if runtime_changed:
            await self._ask(session.refresh_runtime)
        best = await self._ask(session.head)
        if best != self._best:
            self._best = best
            self._tell()

    async def heads(self) -> AsyncIterator[BlockRef]:
        """New best blocks from now on; a slow reader gets the newest only."""
        last: BlockRef | None = None
        while True:
            await self._until(lambda: self._best is not None and self._best != last)  # noqa: B023
            last = self._best
            assert last is not None
            yield last

    async def head(self) -> BlockRef:
        """The best block, asked of the node."""
        return await self._ask(session.head)

    async def finalized(self) -> BlockRef:
        """The last finalized block."""
        return await self._ask(session.finalized)

    async def block_hash(self, number: int) -> bytes:
        """Hash of a block of the best chain. Raises ChainError when there is none yet."""
        return await self._ask(lambda s: session.block_hash(s, number))

    async def timestamp_ms(self) -> int:
        """Timestamp.Now of the best block."""
        now = await self.storage("Timestamp", "Now")
        if not isinstance(now, int):
            raise ChainError("the chain's timestamp is no integer")
        return now

    # --- reads ------------------------------------------------------------------------------------------------

    async def resolve_subnet_id(self, subnet_id: int) -> int:
        """The real id of a friendly or real one. Raises ChainError when there is no such subnet."""
        return await self._ask(lambda s: session.resolve_subnet_id(s, subnet_id))

    async def subnet(self, subnet_id: int, at: bytes | None = None) -> SubnetInfo:
        """Raises ChainError when there is no such subnet."""
        return await self._ask(lambda s: session.subnet(s, subnet_id, at))

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        """All registered nodes of a subnet at one block."""
        return await self._ask(lambda s: session.snapshot(s, subnet_id, at))

    async def bootnodes(self, subnet_id: int) -> tuple[PeerInfo, ...]:
        """Bootnodes listed on chain by the subnet; malformed entries are left out."""
        return await self._ask(lambda s: session.bootnodes(s, subnet_id))

    async def elected(self, subnet_id: int, epoch: int) -> int | None:
        """Node id elected to propose in subnet epoch `epoch`, or None."""
        return await self._ask(lambda s: session.elected(s, subnet_id, epoch))

    async def submission(self, subnet_id: int, epoch: int) -> Submission | None:
        """The proposal made in subnet epoch `epoch`, or None."""
        return await self._ask(lambda s: session.submission(s, subnet_id, epoch))

    async def balance(self, account: bytes) -> Balance:
        """Free and reserved planck and the nonce."""
        return await self._ask(lambda s: session.balance(s, account))

    async def events(self, at: bytes) -> tuple[Event, ...]:
        """Events of the block with this hash."""
        records = await self._ask(lambda s: session.events(s, at))
        return tuple(record.event for record in records)

    async def storage(self, pallet: str, item: str, *keys: object, at: bytes | None = None) -> object:
        """One decoded storage value. Raises CallRefused for an item or key the metadata does not have."""
        read = [Read(item, keys)]
        (value,) = await self._ask(lambda s: session.read_many(s, read, at, pallet))
        return value

    async def storage_map(
        self, pallet: str, item: str, *keys: object, at: bytes | None = None
    ) -> Sequence[tuple[tuple[object, ...], object]]:
        """All entries under a (partial) key, decoded, in the order of their storage keys."""
        return await self._ask(lambda s: session.read_map(s, pallet, item, keys, at))

    async def constant(self, pallet: str, name: str) -> object:
        """A constant of the metadata. Raises CallRefused when there is none."""
        return await self._ask(lambda s: session.constant(s, pallet, name))

    # --- submitting -------------------------------------------------------------------------------------------

    async def estimate_fee(self, call: str, args: Mapping[str, object], signer: AccountKey) -> int:
        """What `submit` of the same would cost, in planck. Nothing valid is signed. Raises CallRefused."""
        pallet, name = _split(call)

        def job(s: Session) -> int:
            raw = runtime.encode_call(s.metadata, pallet, name, args)
            context = SigningContext(s.version, s.genesis, s.genesis, session.next_nonce(s, signer.account_id), None)
            extrinsic = runtime.build_extrinsic(
                s.metadata, raw, context, account=signer.account_id, signature=_UNSIGNED
            )
            return session.fee(s, extrinsic)

        return await self._ask(job)

    def require_may_sign(self, account: bytes) -> None:
        """Raises WrongChain when this is a public development account and the chain is not this user's own."""
        here = self._here()
        require_local_for_dev_key(
            account, url=here.url, chain_type=here.chain_type, genesis=here.genesis, said=self._config.test_chain
        )

    async def preview(self, call: str, args: Mapping[str, object]) -> tuple[bytes, dict[str, object]]:
        """The bytes `submit` would sign, and their arguments decoded again from the bytes. Raises CallRefused."""
        pallet, name = _split(call)

        def job(s: Session) -> tuple[bytes, dict[str, object]]:
            raw = runtime.encode_call(s.metadata, pallet, name, args)
            return raw, runtime.decode_call(s.metadata, raw)[1]

        return await self._ask(job)

    async def submit(self, call: str, args: Mapping[str, object], signer: AccountKey) -> Receipt:
        """Sign, submit, wait until it is in a block: exactly once, also across a crash.

        An interrupted submission (crash, cancellation, deadline) of the same call with the same arguments is continued
        with its own bytes while its era lasts, also when it turns out to be in a block already. Raises CallRefused,
        WrongChain (a public development key on a chain that is not local), ExtrinsicInvalid, ExtrinsicFailed,
        ExtrinsicLost, and ChainUnavailable when it is in no block within `submit_timeout_s` (it may still get there).
        """
        pallet, name = _split(call)
        raw = await self._ask(lambda s: runtime.encode_call(s.metadata, pallet, name, args))
        self.require_may_sign(signer.account_id)
        deadline = trio.current_time() + self._config.submit_timeout_s
        state = self._accounts.setdefault(signer.account_id, _Account())
        purpose = runtime.blake2(raw)
        async with self._journal_of(signer.account_id, state) as journal:
            async with state.lock:
                await self._settle(journal, state)
                orphans = [e for e in journal.pending if e.extrinsic_hash not in state.live]
                entry = next((e for e in orphans if e.purpose == purpose), None)
                if entry is None:
                    head = (await self.head()).number
                    done = await self._in_thread(lambda: journal.claim(purpose, head=head), None)
                    if done is not None:
                        log.info("%s of 0x%s was already in block %d", call, signer.account_id.hex(), done.block)
                        return await self._receipt_of(done)
                    entry = await self._sign(raw, call, signer, journal, state)
                state.live.add(entry.extrinsic_hash)
            try:
                await self._send(entry, journal)
                return await self._wait(entry, journal, deadline)
            finally:
                state.live.discard(entry.extrinsic_hash)

    async def propose(self, subnet_id: int, scores: Sequence[Score], *, args: bytes, hotkey: AccountKey) -> Receipt:
        """`propose_attestation`, in the dialect's form."""
        node_id = await self._node_id(subnet_id, hotkey)
        return await self._submit_call(self._here().dialect.propose(subnet_id, node_id, scores, args), hotkey)

    async def attest(self, subnet_id: int, *, hotkey: AccountKey) -> Receipt:
        """`attest`, in the dialect's form."""
        node_id = await self._node_id(subnet_id, hotkey)
        return await self._submit_call(self._here().dialect.attest(subnet_id, node_id), hotkey)

    async def _node_id(self, subnet_id: int, hotkey: AccountKey) -> int | None:
        return await self._ask(
            lambda s: session.node_of_hotkey(s, subnet_id, hotkey.account_id) if s.dialect.needs_node_id else None
        )

    async def _submit_call(self, call: Call, signer: AccountKey) -> Receipt:
        return await self.submit(f"{PALLET}.{call.name}", call.args, signer)

    async def recover(self, account: bytes) -> None:
        """Settle what earlier runs left in this account's journal: found in a block, sent again as it is, or dead."""
        state = self._accounts.setdefault(account, _Account())
        async with self._journal_of(account, state) as journal:
            async with state.lock:
                await self._settle(journal, state)

    @contextlib.asynccontextmanager
    async def _journal_of(self, account: bytes, state: _Account) -> AsyncIterator[Journal]:
        """The account's journal, locked against other processes while anything of it is under way here."""
        async with state.lock:
            if state.journal is None:
                genesis = self.genesis
                with trio.move_on_after(self._config.call_timeout_s) as scope:
                    while state.journal is None:
                        state.journal = await trio.to_thread.run_sync(
                            lambda: Journal.open_locked(self._journal_dir, genesis=genesis, account=account)
                        )
                        if state.journal is None:
                            await trio.sleep(_LOCK_POLL_S)
                if state.journal is None:
                    assert scope.cancelled_caught
                    raise ChainUnavailable(f"another process is submitting for 0x{account.hex()}; try again")
            journal = state.journal
            journal.users += 1
        try:
            yield journal
        finally:
            journal.users -= 1
            if journal.users == 0:
                state.journal = None
                journal.release()

    async def _settle(self, journal: Journal, state: _Account) -> None:
        """Give every entry nobody waits for its fate, or send its identical bytes again."""
        for entry in journal.pending:
            if entry.extrinsic_hash in state.live:
                continue
            found = await self._find(entry)
            if found.block is not None:
                block = found.block.number
                await self._close(journal, entry, Fate.INCLUDED, Delivery.WAITING, block)
            elif found.head.number >= entry.era_end - 1:
                await self._close(journal, entry, Fate.DEAD, Delivery.DELIVERED)
            else:
                with contextlib.suppress(ExtrinsicInvalid):  # the journal says so now
                    await self._send(entry, journal)

    async def _sign(self, raw: bytes, call: str, signer: AccountKey, journal: Journal, state: _Account) -> Entry:
        """Sign and write to the journal, in one piece of the worker thread."""
        live = [entry.nonce + 1 for entry in journal.pending]
        keypair = Keypair.create_from_private_key(signer.private.hex(), crypto_type=KeypairType.ECDSA)

        def job(s: Session) -> Entry:
            session.refresh_runtime(s)
            best, final = session.head(s), session.finalized(s)
            # a final block cannot be retracted, and an era born there loses little while finality is near
            birth = final if best.number - final.number <= self._config.era_blocks // 4 else best
            era = Era(birth.number, self._config.era_blocks)
            nonce = max([session.next_nonce(s, signer.account_id), *live])
            context = SigningContext(s.version, s.genesis, birth.hash, nonce, era)
            payload = runtime.signing_payload(s.metadata, raw, context)
            extrinsic = runtime.build_extrinsic(
                s.metadata, raw, context, account=signer.account_id, signature=bytes(keypair.sign(payload))
            )
            entry = Entry(
                nonce=nonce,
                extrinsic=extrinsic,
                extrinsic_hash=runtime.blake2(extrinsic),
                era_birth=birth.number,
                era_end=era.end,
                account=signer.account_id,
                call=call,
                purpose=runtime.blake2(raw),
            )
            journal.open(entry)
            return entry

        return await self._ask(job)

    async def _send(self, entry: Entry, journal: Journal) -> None:
        """Hand the bytes to the node. Refused and in no block: the journal is told, ExtrinsicInvalid raised."""

        def job(s: Session) -> None:
            s.rpc("author_submitExtrinsic", [f"0x{entry.extrinsic.hex()}"])

        try:
            await self._ask(job)
        except RpcRefused as error:
            if error.code in (ALREADY_IMPORTED, TEMPORARILY_BANNED) or (await self._find(entry)).block is not None:
                return
            await self._close(journal, entry, Fate.REFUSED, Delivery.DELIVERED)
            raise ExtrinsicInvalid(error.code, error.message) from error

    async def _wait(self, entry: Entry, journal: Journal, deadline: float) -> Receipt:
        """Follow blocks until the extrinsic is in one, its era ended, or the deadline passed."""
        sent_over = self._session
        with trio.move_on_at(deadline):
            while True:
                changed = self._changed
                with contextlib.suppress(ChainUnavailable):  # it waits for the next connection as long as it may
                    if self._session is not None and self._session is not sent_over:
                        sent_over = self._session
                        await self._send(entry, journal)  # that node's pool may not have it
                    found = await self._find(entry)
                    if found.block is not None:
                        return await self._finish(entry, journal, found)
                    if found.head.number >= entry.era_end - 1:
                        await self._close(journal, entry, Fate.DEAD, Delivery.DELIVERED)
                        raise ExtrinsicLost(
                            f"{entry.call} of 0x{entry.account.hex()} (nonce {entry.nonce}) was in no block before "
                            f"its era ended at block {entry.era_end}; it can never be now, so it may be made again"
                        )
                await changed.wait()
        raise ChainUnavailable(
            f"{entry.call} of 0x{entry.account.hex()} is in no block after {self._config.submit_timeout_s:g} s; it may "
            f"get there until block {entry.era_end}, and the same call continues it"
        )

    async def _find(self, entry: Entry) -> Found:
        return await self._ask(
            lambda s: session.find_extrinsic(s, entry.extrinsic_hash, after=entry.era_birth, until=entry.era_end)
        )

    async def _finish(self, entry: Entry, journal: Journal, found: Found) -> Receipt:
        assert found.block is not None
        block = found.block
        try:
            receipt = await self._receipt(entry, block, found.index)
        except ExtrinsicFailed:
            await self._close(journal, entry, Fate.INCLUDED, Delivery.DELIVERED, block.number)
            raise
        await self._close(journal, entry, Fate.INCLUDED, Delivery.DELIVERED, block.number)
        return receipt

    async def _receipt(self, entry: Entry, block: BlockRef, index: int) -> Receipt:
        """What the block says of the extrinsic. Raises ExtrinsicFailed by name."""
        events, fee = await self._ask(lambda s: runtime.outcome(s.metadata, session.events(s, block.hash), index))
        return Receipt(entry.extrinsic_hash, block, fee, events)

    async def _receipt_of(self, done: Done) -> Receipt:
        found = await self._find(done.entry)
        if found.block is None:
            raise ExtrinsicLost(f"{done.entry.call}: block {done.block}, which had it, is retracted")
        return await self._receipt(done.entry, found.block, found.index)

    async def _close(self, journal: Journal, entry: Entry, fate: Fate, delivery: Delivery, block: int = -1) -> None:
        # shielded: the fate is known, and a cancelled caller must not leave it unwritten
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: journal.close(entry, fate, delivery=delivery, block=block))


class _Link:
    """One substrate-interface connection. `connect` and `rpc` run in the worker thread, `shut` in any."""

    def __init__(self, url: str, config: ChainConfig) -> None:
        self._url = url
        self._timeout_s = config.call_timeout_s
        self._max_bytes = config.max_message_bytes
        self._interface: SubstrateInterface | None = None
        self._shut = False

    def connect(self) -> None:
        """Open the websocket. Raises _Disconnected."""
        try:
            self._interface = SubstrateInterface(
                url=self._url,
                auto_discover=False,
                auto_reconnect=False,
                use_remote_preset=False,
                ws_options={"timeout": self._timeout_s},
            )
        except (WebSocketException, OSError) as error:
            raise _Disconnected(f"{self._url}: {error}") from error
        except ValueError as error:
            raise WrongChain(f"{self._url!r} is no ws:// or wss:// URL: {error}") from error
        if self._shut:
            self.shut()
            raise _Disconnected(f"{self._url}: given up")

    def rpc(self, method: str, params: Sequence[object]) -> object:
        """One call. Raises RpcRefused, _Disconnected; ChainError (and the link is shut) for what is no JSON-RPC."""
        if self._interface is None or self._shut:
            raise _Disconnected(f"{self._url}: closed")
        try:
            reply = self._interface.rpc_request(method, list(params))
        except SubstrateRequestException as error:
            raise _refusal(method, error) from error
        except (WebSocketException, OSError) as error:
            raise _Disconnected(f"{self._url}: {error}") from error
        except json.JSONDecodeError as error:
            self.shut()
            if not error.doc:  # how websocket-client reports a close by the other side
                raise _Disconnected(f"{self._url}: closed by the node") from error
            raise ChainError(f"{self._url} answers {method} with what is no JSON") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.shut()
            raise ChainError(f"{self._url} answers {method} with what is no JSON-RPC: {error!r}") from error
        if not isinstance(reply, dict) or "result" not in reply:
            raise ChainError(f"{self._url} answers {method} without a result")
        return reply["result"]

    def shut(self) -> None:
        """End the socket under whatever reads from it; the thread there gets an error at once."""
        self._shut = True
        websocket = self._interface.websocket if self._interface is not None else None
        raw = getattr(websocket, "sock", None)
        if raw is not None:
            with contextlib.suppress(OSError, ValueError):
                raw.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError, ValueError):
                raw.close()


def _refusal(method: str, error: SubstrateRequestException) -> RpcRefused:
    """The code, message and data of a JSON-RPC error object."""
    body = error.args[0] if error.args else {}
    if not isinstance(body, dict):
        return RpcRefused(method, 0, str(body)[:500])
    code, data = body.get("code"), body.get("data")
    message = str(body.get("message", ""))[:500]
    return RpcRefused(
        method, code if isinstance(code, int) else 0, message if data is None else f"{message}: {str(data)[:500]}"
    )


def _split(call: str) -> tuple[str, str]:
    """(pallet, call) of `Pallet.call`, the network pallet for a bare name."""
    pallet, separator, name = call.partition(".")
    if not (name if separator else pallet):
        raise CallRefused(f"{call!r} is no call: write Pallet.call")
    return (pallet, name) if separator else (PALLET, pallet)
