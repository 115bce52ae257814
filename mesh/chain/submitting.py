"""Exactly once: sign, write down, send, watch, look, and go on after a crash where the last run stopped.

An extrinsic is signed and in the journal before it leaves, and from then on only its identical bytes are sent. Its fate
is read from blocks, never believed from a status: what the node says of it (dropped, usurped, …) is a reason to look,
or to send it again. It is given up only when that is certain: its era ended in final blocks without it, its nonce is
used in a final block by another, or the node refused it before any node had it.

A caller is told once its extrinsic is in a block. That it heard is written down when it makes the same call again, or
when the process ends in order; a process that dies in between makes the call again in its next life and gets the same
receipt. So a call repeated by one process is a new intent, and one repeated after a crash (within the era) is not.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import trio

from mesh.chain import facts, runtime, session
from mesh.chain.connection import Connection
from mesh.chain.journal import Delivery, Entry, Fate, Journal
from mesh.chain.metadata import Metadata
from mesh.chain.runtime import Era, SigningContext
from mesh.chain.session import METHOD_NOT_FOUND, Found, RpcRefused, Session
from mesh.chain.subscription import subscribe
from mesh.chain.types import BlockRef, Receipt
from mesh.errors import CallRefused, ChainError, ChainUnavailable, ExtrinsicFailed, ExtrinsicInvalid, ExtrinsicLost
from mesh.identity import AccountKey

log = logging.getLogger(__name__)

INVALID: Final = 1010
TEMPORARILY_BANNED: Final = 1012
"""Said of what was in the pool a moment ago: it may be in a block, so it is looked for, not given up."""
ALREADY_IMPORTED: Final = 1013
TOO_LOW_PRIORITY: Final = 1014
IMMEDIATELY_DROPPED: Final = 1016
TOO_MANY_SUBSCRIPTIONS: Final = -32006
_NOT_NOW: Final = frozenset((TEMPORARILY_BANNED, TOO_LOW_PRIORITY, IMMEDIATELY_DROPPED))
"""Refusals that may be over later: what may be out already is sent again."""
_UNWATCHED: Final = frozenset((METHOD_NOT_FOUND, TOO_MANY_SUBSCRIPTIONS))
"""The node does not watch extrinsics, or not this one: it is sent plainly and looked for at every head."""
_LEFT_POOL: Final = frozenset(("usurped", "dropped", "invalid"))
"""Statuses after which the node tells nothing more and has the extrinsic no longer."""
_LOCK_POLL_S: Final = 0.1
_SIGN_OFF_S: Final = 2
"""What writing down at the end that callers heard may take, waiting for the journal included."""
_LEAST_ERA_BLOCKS: Final = 4
_SHARE_LOST: Final = 8
"""An era may be born in the final block where that is not farther back than so small a part of it."""
MAX_STATUSES: Final = 64
"""Statuses of one sending that are a reason to look; more are ignored, heads are reason enough."""


class _LeftPool(ChainError):
    """The node's pool let the extrinsic go."""


@dataclass
class _Account:
    """What this process does for one signing account."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    journal: Journal | None = None
    live: set[bytes] = field(default_factory=set)
    """Hashes of extrinsics a task of this process waits for."""
    pooled: set[bytes] = field(default_factory=set)
    """Hashes of what a node took; their nonces are not given out again."""
    refused: set[bytes] = field(default_factory=set)
    """Hashes of those whose callers heard that a node refused them, though another may have them: they are sent again
    only when the same call is made again."""
    told: set[bytes] = field(default_factory=set)
    """Hashes of those whose callers this process told, not written down yet."""


@dataclass
class _Watch:
    """What the sending task tells the looking one."""

    attempts: int = 0
    refusal: tuple[RpcRefused, int] | None = None
    """The node's last refusal and at which attempt."""
    said: str = ""
    """Its last status."""
    why: str = ""
    """What went wrong last in looking for it."""


@dataclass(frozen=True, slots=True)
class _Fate:
    """What the chain says of an entry."""

    found: Found
    dead: str | None
    """Why it can be in no block any more."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is to happen once."""

    raw: bytes
    """The call's bytes."""
    call: str
    until: int | None = None
    """The first block that must not contain it, as far as an era of four blocks or more can say it."""
    says: tuple[str, Mapping[str, object]] | None = None
    """What `raw` says by the metadata it was made with (runtime.decode_call): shown, agreed to, and the only thing that
    is signed. Another runtime, or another node's metadata, may read the same bytes as another call."""

    @property
    def purpose(self) -> bytes:
        """What the journal knows it by."""
        return runtime.blake2(self.raw)


class Submitter:
    """All submissions of one chain object. `close` it at the end."""

    def __init__(self, connection: Connection, *, journal_dir: Path) -> None:
        self._connection = connection
        self._config = connection.config
        self._journal_dir = journal_dir
        self._accounts: dict[bytes, _Account] = {}

    async def submit(self, intent: Intent, signer: AccountKey) -> Receipt:
        """Raises what Chain.submit raises, but CallRefused."""
        state = self._accounts.setdefault(signer.account_id, _Account())
        digest, outcome = await self._once(intent, signer, state)
        state.told.add(digest)  # nothing is awaited from here on: who is cancelled was not told
        if isinstance(outcome, ExtrinsicFailed):
            raise outcome
        return outcome

    async def _once(
        self, intent: Intent, signer: AccountKey, state: _Account
    ) -> tuple[bytes, Receipt | ExtrinsicFailed]:
        """The extrinsic that did it, and what became of it in its block."""
        account, entry, watch = signer.account_id, None, _Watch()
        with trio.move_on_after(self._config.submit_timeout_s):
            async with self._journal_of(account, state) as journal:
                async with state.lock:
                    await self._settle(journal, state)
                    pending = [e for e in journal.pending if e.extrinsic_hash not in state.live]
                    entry = next((e for e in pending if e.purpose == intent.purpose), None)
                    if entry is None:
                        entry = await self._unheard(intent, journal, state)
                    if entry is None:
                        entry = await self._sign(intent, signer, journal, state)
                    else:
                        watch.attempts = 1  # an earlier run may have sent it
                    state.live.add(entry.extrinsic_hash)
                try:
                    return entry.extrinsic_hash, await self._follow(entry, watch, journal, state)
                except ExtrinsicFailed as error:
                    return entry.extrinsic_hash, error
                finally:
                    state.live.discard(entry.extrinsic_hash)
        if entry is None:
            raise ChainUnavailable(f"{intent.call}: nothing was signed within {self._config.submit_timeout_s:g} s")
        raise ChainUnavailable(
            f"{entry.call} of 0x{account.hex()} is in no block after {self._config.submit_timeout_s:g} s"
            f"{f' (the node last said {watch.said!r})' if watch.said else ''}{watch.why and f' ({watch.why})'}; it may "
            f"get there until block {entry.era_end}, and the same call continues it"
        )

    async def recover(self, account: bytes) -> None:
        """Settle what earlier runs left in this account's journal: found in a block, sent again as it is, or dead."""
        state = self._accounts.setdefault(account, _Account())
        async with self._journal_of(account, state) as journal:
            async with state.lock:
                await self._settle(journal, state)

    async def close(self) -> None:
        """Write down that all callers heard: the process ends in order. What cannot be written now stays unwritten."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _SIGN_OFF_S):
            for account, state in self._accounts.items():
                if not state.told:
                    continue
                try:
                    async with self._journal_of(account, state) as journal:
                        best = self._connection.best
                        head = 0 if best is None else best.number
                        fresh = [d.entry.extrinsic_hash for d in journal.done if d.entry.era_end > head]
                        await trio.to_thread.run_sync(_deliver, journal, tuple(state.told.intersection(fresh)))
                    state.told.clear()
                except ChainError as error:
                    log.warning("the journal of 0x%s is not closed in order: %s", account.hex(), error)

    # --- the journal --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _journal_of(self, account: bytes, state: _Account) -> AsyncIterator[Journal]:
        """The account's journal, locked against other processes while anything of it is under way here."""
        async with state.lock:
            if state.journal is None:
                genesis = self._connection.genesis
                if genesis is None:
                    raise ChainUnavailable("the chain was not reached yet")
                with trio.move_on_after(self._config.call_timeout_s):
                    while state.journal is None:
                        state.journal = await trio.to_thread.run_sync(
                            lambda: Journal.open_locked(self._journal_dir, genesis=genesis, account=account)
                        )
                        if state.journal is None:
                            await trio.sleep(_LOCK_POLL_S)
                if state.journal is None:
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

    async def _unheard(self, intent: Intent, journal: Journal, state: _Account) -> Entry | None:
        """An inclusion of the same call that its caller may not have heard of, open again: it is looked for anew, as
        the block that had it may be retracted."""
        if not journal.unheard(intent.purpose, head=0):
            return None
        head = (await self._connection.ask(session.head)).number
        for done in journal.unheard(intent.purpose, head=head):
            digest = done.entry.extrinsic_hash
            if digest not in state.told:
                log.info("%s of 0x%s was in block %d", intent.call, done.entry.account.hex(), done.block)
                await trio.to_thread.run_sync(journal.open, done.entry)
                return done.entry
            await trio.to_thread.run_sync(_deliver, journal, (digest,))  # we told it: this is the next intent
            state.told.discard(digest)
        return None

    async def _settle(self, journal: Journal, state: _Account) -> None:
        """Give every entry nobody waits for its fate, or send its identical bytes again."""
        state.told.intersection_update(done.entry.extrinsic_hash for done in journal.done)
        for entry in journal.pending:
            if entry.extrinsic_hash in state.live:
                continue
            fate = await self._look(entry)
            if fate.found.block is not None:
                await self._close(journal, entry, Fate.INCLUDED, Delivery.WAITING, fate.found.block.number)
            elif fate.dead is not None:
                await self._close(journal, entry, Fate.DEAD, Delivery.DELIVERED)
            elif entry.extrinsic_hash not in state.refused:
                await self._send_left(entry, journal, state)

    async def _send_left(self, entry: Entry, journal: Journal, state: _Account) -> None:
        try:
            await self._send_plainly(entry)
        except RpcRefused as error:
            if error.code == ALREADY_IMPORTED:
                state.pooled.add(entry.extrinsic_hash)
                return
            log.info("%s, left by an earlier run, is not taken now: %s", entry.call, error)
            state.pooled.discard(entry.extrinsic_hash)
            if _never_valid(error):
                await self._close(journal, entry, Fate.REFUSED, Delivery.DELIVERED)
        else:
            state.pooled.add(entry.extrinsic_hash)

    async def _close(
        self, journal: Journal, entry: Entry, fate: Fate, delivery: Delivery, block: int = -1, teller: int = 0
    ) -> None:
        # shielded: the fate is known, and a cancelled caller must not leave it unwritten
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(
                lambda: journal.close(entry, fate, delivery=delivery, block=block, teller=teller)
            )

    # --- signing ------------------------------------------------------------------------------------------------

    async def _sign(self, intent: Intent, signer: AccountKey, journal: Journal, state: _Account) -> Entry:
        """Sign and write to the journal, in one piece."""
        taken = [e.nonce + 1 for e in journal.pending if e.extrinsic_hash in state.pooled | state.live]

        def ask(s: Session) -> tuple[Metadata, SigningContext, Era]:
            session.refresh_runtime(s)
            _require_same_meaning(intent, s.metadata)
            best, final = session.head(s), session.finalized(s)
            era = era_for(best, final, period=self._config.era_blocks, until=intent.until)
            birth = final if era.birth == final.number else best
            nonce = max([facts.next_nonce(s, signer.account_id), *taken])
            return s.metadata, SigningContext(s.version, s.genesis, birth.hash, nonce, era), era

        metadata, context, era = await self._connection.ask(ask)

        def sign() -> Entry:
            extrinsic = runtime.build_extrinsic(
                metadata,
                intent.raw,
                context,
                account=signer.account_id,
                signature=signer.sign(runtime.signing_payload(metadata, intent.raw, context)),
            )
            entry = Entry(
                nonce=context.nonce,
                extrinsic=extrinsic,
                extrinsic_hash=runtime.blake2(extrinsic),
                era_birth=era.birth,
                era_end=era.end,
                account=signer.account_id,
                call=intent.call,
                purpose=intent.purpose,
            )
            journal.open(entry)
            return entry

        # in a thread that is waited for whatever happens: the journal is ours only as long as we are here
        return await trio.to_thread.run_sync(sign)

    # --- sending ------------------------------------------------------------------------------------------------

    async def _keep_sent(self, entry: Entry, watch: _Watch) -> None:
        """See that a node has it: send, listen to what becomes of it, send again when its pool or node is gone."""
        raw = f"0x{entry.extrinsic.hex()}"

        statuses = 0

        def tell(status: object) -> None:
            nonlocal statuses
            statuses += 1
            if statuses > MAX_STATUSES:
                return
            watch.said = _name_of(status)
            self._connection.tell()  # a reason to look
            if watch.said in _LEFT_POOL:
                raise _LeftPool(watch.said)

        async def send() -> None:
            nonlocal statuses
            watch.attempts, statuses = watch.attempts + 1, 0
            await subscribe(here.url, "author_submitAndWatchExtrinsic", [raw], tell, self._config)

        while True:
            await self._connection.until(lambda: self._connection.session is not None)
            here = self._connection.here()
            at_once = False
            try:
                await self._connection.while_connected(here, send)
                at_once = True  # by another connection, to a node that may not have it
            except _LeftPool:
                at_once = watch.attempts == 1  # its refusal of the same bytes says why
            except RpcRefused as error:
                await self._refused(entry, error, watch)
            except ChainError as error:
                log.info("%s of 0x%s: %s", entry.call, entry.account.hex(), error)
                watch.attempts += 1  # it may be out
            self._connection.tell()
            # not sent again while it is considered: what is given up for a refusal must not be accepted meanwhile
            await self._connection.until(lambda: watch.refusal is None)
            if not at_once:
                with trio.move_on_after(self._config.resend_interval_s):
                    await self._connection.until(lambda gone=here: self._connection.session is not gone)  # type: ignore[misc]

    async def _refused(self, entry: Entry, error: RpcRefused, watch: _Watch) -> None:
        if error.code in _UNWATCHED:
            try:
                await self._send_plainly(entry)
            except RpcRefused as plain:
                error = plain
            except ChainError as unknown:
                log.info("%s of 0x%s: %s", entry.call, entry.account.hex(), unknown)
                watch.attempts += 1
                return
            else:
                return
        if error.code == ALREADY_IMPORTED:
            return
        watch.refusal = (error, watch.attempts)

    async def _send_plainly(self, entry: Entry) -> None:
        raw = f"0x{entry.extrinsic.hex()}"
        await self._connection.ask(lambda s: s.rpc("author_submitExtrinsic", [raw]))

    # --- looking ------------------------------------------------------------------------------------------------

    async def _follow(self, entry: Entry, watch: _Watch, journal: Journal, state: _Account) -> Receipt:
        """Send, and look at every head and status, until its fate is certain."""
        ended: list[Receipt | ChainError] = []
        state.pooled.add(entry.extrinsic_hash)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_sent, entry, watch)
            try:
                ended.append(await self._decide(entry, watch, journal, state))
            except ChainError as error:
                ended.append(error)
            nursery.cancel_scope.cancel()
        if isinstance(ended[0], ChainError):
            raise ended[0]
        return ended[0]

    async def _decide(self, entry: Entry, watch: _Watch, journal: Journal, state: _Account) -> Receipt:
        while True:
            changed, refusal = self._connection.changed, watch.refusal
            try:
                fate = await self._look(entry)
                if fate.found.block is not None:
                    return await self._finish(entry, fate.found, journal)
            except (ExtrinsicFailed, ExtrinsicInvalid):
                raise
            except ChainError as error:  # it waits for better answers as long as it may
                watch.why = str(error)
                log.info("%s of 0x%s cannot be looked for: %s", entry.call, entry.account.hex(), error)
            else:
                if fate.dead is not None:
                    await self._close(journal, entry, Fate.DEAD, Delivery.DELIVERED)
                    raise ExtrinsicLost(
                        f"{entry.call} of 0x{entry.account.hex()} (nonce {entry.nonce}) {fate.dead}; it can be in no "
                        "block any more, so it may be made again"
                    )
                if refusal is not None:
                    await self._consider(refusal, entry, journal, state)
                    watch.refusal = None  # now it may be sent again
                    self._connection.tell()
                    continue
            await changed.wait()

    async def _consider(self, refusal: tuple[RpcRefused, int], entry: Entry, journal: Journal, state: _Account) -> None:
        """Raise ExtrinsicInvalid for a refusal of what is in no block, unless only time tells more."""
        error, attempt = refusal
        first = attempt == 1  # no node can have it
        if not first and (error.code in _NOT_NOW or _is_stale(error)):
            return
        if first and error.code == TEMPORARILY_BANNED:
            return
        state.pooled.discard(entry.extrinsic_hash)
        if first or _never_valid(error):
            await self._close(journal, entry, Fate.REFUSED, Delivery.DELIVERED)
            raise ExtrinsicInvalid(error.code, error.message) from error
        state.refused.add(entry.extrinsic_hash)
        still = f"another node may have it until block {entry.era_end}, and the same call continues it"
        raise ExtrinsicInvalid(error.code, f"{error.message} ({still})") from error

    async def _look(self, entry: Entry) -> _Fate:
        def job(s: Session) -> _Fate:
            final = session.finalized(s)
            found = session.find_extrinsic(s, entry.extrinsic_hash, after=entry.era_birth, until=entry.era_end)
            if found.block is not None or found.head.number < final.number:
                return _Fate(found, None)
            if final.number >= entry.era_end - 1:
                return _Fate(found, f"was in no block before its era ended at block {entry.era_end}")
            if facts.nonce_at(s, entry.account, final.hash) > entry.nonce:
                return _Fate(found, "was in no block, and another extrinsic used its nonce")
            return _Fate(found, None)

        return await self._connection.ask(job)

    async def _finish(self, entry: Entry, found: Found, journal: Journal) -> Receipt:
        assert found.block is not None
        close = partial(
            self._close, journal, entry, Fate.INCLUDED, Delivery.WAITING, found.block.number, teller=os.getpid()
        )
        try:
            receipt = await self._receipt(entry, found.block, found.index)
        except ExtrinsicFailed:
            await close()
            raise
        await close()
        return receipt

    async def _receipt(self, entry: Entry, block: BlockRef, index: int) -> Receipt:
        """What the block says of the extrinsic. Raises ExtrinsicFailed by name."""
        events, fee = await self._connection.ask(
            lambda s: runtime.outcome(s.metadata, facts.events(s, block.hash), index)
        )
        return Receipt(entry.extrinsic_hash, block, fee, events)


def _require_same_meaning(intent: Intent, metadata: Metadata) -> None:
    """Raises CallRefused when the bytes say by this metadata something else than they did when they were made."""
    if intent.says is None:
        return
    try:
        same = runtime.decode_call(metadata, intent.raw) == intent.says
    except ChainError:
        same = False
    if not same:
        raise CallRefused(
            f"{intent.call}: by the metadata that the chain tells now, its bytes say something else than when it was "
            "made (the runtime was upgraded, or another node tells another thing); nothing was signed: make it again"
        )


def era_for(best: BlockRef, final: BlockRef, *, period: int, until: int | None) -> Era:
    """The era to sign with: `period` blocks, or fewer so that it ends by block `until` where four or more can.

    Born in the final block, which cannot be retracted, where that costs little of it; in the best one otherwise.
    """
    if until is not None:
        while period > _LEAST_ERA_BLOCKS and best.number + period > until:
            period //= 2
    birth = final if best.number - final.number <= period // _SHARE_LOST else best
    return Era(birth.number, period)


def _deliver(journal: Journal, hashes: tuple[bytes, ...]) -> None:
    for digest in hashes:
        journal.deliver(digest)


def _name_of(status: object) -> str:
    """The name of a status: a text, or an object with the name as its only key."""
    if isinstance(status, dict) and len(status) == 1:
        status = next(iter(status))
    return status[:32] if isinstance(status, str) else ""


def _never_valid(error: RpcRefused) -> bool:
    """A bad signature: over another runtime's version or another chain, so no block can take it."""
    return error.code == INVALID and ("bad signature" in error.message.lower() or "badproof" in error.message.lower())


def _is_stale(error: RpcRefused) -> bool:
    """Its nonce is used in the best chain: by itself, which a look finds, or by another, which finality settles."""
    return error.code == INVALID and ("outdated" in error.message.lower() or "stale" in error.message.lower())
