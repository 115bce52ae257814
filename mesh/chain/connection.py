"""The connection to the chain: kept up for ever, through several URLs, and asked from one worker thread.

One websocket (link.py) is used by one thread, one job at a time; it is shut when a deadline or a cancellation leaves a
job behind. When it ends the next URL is tried, with jittered backoff, for ever. A node must be of the chain first
reached (genesis), and not more than `max_lag_blocks` behind the best block seen, unless no other is nearer. New heads
come over a subscription in the event loop (heads.py), or by polling while there is none.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import trio

from mesh.chain import facts, session
from mesh.chain.config import ChainConfig
from mesh.chain.dialect import PALLET
from mesh.chain.heads import follow_heads
from mesh.chain.link import Link
from mesh.chain.local import is_local_chain
from mesh.chain.session import Disconnected, Session
from mesh.chain.subscription import ask_once
from mesh.chain.types import BlockRef
from mesh.errors import ChainError, ChainUnavailable, WrongChain

log = logging.getLogger(__name__)

T = TypeVar("T")

ROUNDS_BEHIND: Final = 3
"""How often all URLs are tried before one is taken that is behind what was seen."""
_CONNECT_CALLS: Final = 2
"""Metadata is downloaded when a connection is made: that may take so many times `call_timeout_s`."""


_SENSELESS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError)
"""What reading by a node's own metadata ends in where that contradicts itself (a type within itself, a map of numbers):
it is checked, but a chain's node must not be able to end ours."""


class _Behind(ChainError):
    """The node is more than `max_lag_blocks` behind the best block seen."""

    def __init__(self, url: str, number: int, seen: int) -> None:
        super().__init__(f"{url} is at block {number}, {seen - number} behind the best one seen")
        self.number = number


class Connection:
    """Run `run()`; then `ask`. The state that others wait on is `session`, `best` and, for any change, `until`."""

    def __init__(self, config: ChainConfig, *, cache_dir: Path | None, rng: random.Random) -> None:
        self.config = config
        self.session: Session | None = None
        self.genesis: bytes | None = None
        self.epoch_length: int | None = None
        self.best: BlockRef | None = None
        self._cache_dir = cache_dir
        self._rng = rng
        self._limiter = trio.CapacityLimiter(1)
        self._links: dict[int, Link] = {}
        self._seen = 0
        """Number of the best block that any node told."""
        self._next = 0
        self._passed_over: dict[str, int] = {}
        """URLs that were too far behind since the last success, with the number of their best block."""
        self._failed: set[str] = set()
        self._rounds = 0
        """How often all were tried in vain, some of them being behind only."""
        self._changed = trio.Event()

    def here(self) -> Session:
        """The session in use. Raises ChainUnavailable while there is none."""
        if self.session is None:
            raise ChainUnavailable(f"no chain answers at {', '.join(self.config.urls)}")
        return self.session

    async def run(self) -> None:
        """Keep connected and follow heads. Raises WrongChain when the first node reached is no chain for mesh."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_connected)
                nursery.start_soon(self._follow_heads)
                if len(self.config.urls) > 1:
                    nursery.start_soon(self._compare)
        finally:
            self.drop()

    # --- asking -------------------------------------------------------------------------------------------------

    async def ask(self, job: Callable[[Session], T]) -> T:
        """Run `job` with the session in the worker thread, again on the next connection when this one ends under it.

        Raises ChainUnavailable after `call_timeout_s`, and what `job` does.
        """
        why = "no connection"
        with trio.move_on_after(self.config.call_timeout_s):
            while True:
                await self.until(lambda: self.session is not None)
                here = self.here()
                link = self._links[id(here)]
                try:
                    return await self._in_thread(lambda: job(here), link)  # noqa: B023 - runs before the next round
                except Disconnected as error:
                    why = str(error)
                    self.drop(link)
        raise ChainUnavailable(
            f"no chain answered within {self.config.call_timeout_s:g} s at {', '.join(self.config.urls)} ({why})"
        )

    async def while_connected(self, here: Session, act: Callable[[], Awaitable[None]]) -> None:
        """Run `act` until it ends or the connection `here` does. Raises the ChainError it raises."""
        failed: ChainError | None = None
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                nonlocal failed
                try:
                    await act()
                except ChainError as error:
                    failed = error
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            await self.until(lambda: self.session is not here)
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def _in_thread(self, job: Callable[[], T], link: Link) -> T:
        """Run in the worker thread. Cancelled while it runs: the link is shut, so that the thread ends."""
        running = False

        def work() -> T:
            nonlocal running
            running = True
            try:
                return job()
            except _SENSELESS as error:
                log.exception("what the node answered cannot be understood")
                raise ChainError(
                    f"what the node answers makes no sense: {type(error).__name__}: {str(error)[:200]}"
                ) from error

        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except trio.Cancelled:
            if running:
                link.shut()
                self.drop(link)
            raise

    def drop(self, link: Link | None = None) -> None:
        """Give up the connection (only if it is `link`, when given)."""
        here = self.session
        if here is None:
            return
        own = self._links[id(here)]
        if link is None or link is own:
            own.shut()
            del self._links[id(here)]
            self.session = None
            self.tell()

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of anything."""
        return self._changed

    def tell(self) -> None:
        """Wake all who wait for a change."""
        event, self._changed = self._changed, trio.Event()
        event.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a change after which `holds()`."""
        while not holds():
            await self._changed.wait()

    # --- connecting ---------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            url = self.config.urls[self._next % len(self.config.urls)]
            try:
                found = await self._connect(url)
            except WrongChain as error:
                if self.genesis is None:
                    raise
                log.error("%s; trying on", error)
                self._failed.add(url)
            except _Behind as error:
                log.warning("%s; it is passed over", error)
                self._passed_over[url] = error.number
            except ChainError as error:
                log.warning("no chain at %s: %s", url, error)
                self._failed.add(url)
            else:
                failures = 0
                self._forget_failures()
                self._rounds = 0
                log.info("connected to %s: %s, genesis 0x%s", url, found.dialect.name, found.genesis.hex())
                self.session = found
                self.tell()
                await self.until(lambda gone=found: self.session is not gone)  # type: ignore[misc]
                log.warning("lost the chain at %s; reconnecting", url)
            self._next += 1
            if not self._settle_for_the_freshest():
                await trio.sleep(self._backoff(failures))
                failures += 1

    def _settle_for_the_freshest(self) -> bool:
        """Whether one that is only behind is to be tried again and taken: after some rounds in which no URL had what
        was seen, it is nowhere to be had (a chain set back, or a node that lied about its head)."""
        if len(self._passed_over.keys() | self._failed) < len(self.config.urls):
            return False
        self._rounds = self._rounds + 1 if self._passed_over else 0
        settle = self._rounds == ROUNDS_BEHIND
        if settle:
            url = max(self._passed_over, key=lambda each: self._passed_over[each])
            log.warning("no URL has a block near %d; going on with %s", self._seen, url)
            self._seen, self._rounds = self._passed_over[url], 0
            self._next = self.config.urls.index(url)
        self._forget_failures()
        return settle

    def _forget_failures(self) -> None:
        self._passed_over.clear()
        self._failed.clear()

    def _backoff(self, failures: int) -> float:
        longest = min(self.config.backoff_max_s, self.config.backoff_first_s * 2.0 ** min(failures, 20))
        return longest * (0.5 + self._rng.random() / 2)

    async def _connect(self, url: str) -> Session:
        link = Link(url, timeout_s=self.config.call_timeout_s, max_bytes=self.config.max_message_bytes)

        def job() -> tuple[Session, int, int]:
            link.connect()
            opened = session.open_session(link.rpc, url, cache_dir=self._cache_dir)
            length = facts.constant(opened, PALLET, "EpochLength")
            if not isinstance(length, int) or length < 1:
                raise WrongChain(f"the chain's epoch length is {length}")
            return opened, length, session.head(opened).number

        opened: Session | None = None
        allowed_s = _CONNECT_CALLS * self.config.call_timeout_s
        try:
            with trio.move_on_after(allowed_s):
                opened, length, number = await self._in_thread(job, link)
            if opened is None:
                raise ChainUnavailable(f"{url} did not answer within {allowed_s:g} s")
            if self.config.only_local and not is_local_chain(url, opened.chain_type, opened.genesis):
                raise WrongChain(
                    f"{url} is no local chain, and secrets on the command line are accepted on local chains only: "
                    "use a key file or the environment"
                )
            if self.genesis is not None and self.genesis != opened.genesis:
                raise WrongChain(
                    f"{url} has the genesis 0x{opened.genesis.hex()}, the chain in use 0x{self.genesis.hex()}"
                )
            if number < self._seen - self.config.max_lag_blocks:
                raise _Behind(url, number, self._seen)
            self._links[id(opened)] = link
            self.genesis, self.epoch_length = opened.genesis, length
            self._seen = max(self._seen, number)
            return opened
        finally:
            if opened is None or id(opened) not in self._links:
                link.shut()

    # --- heads --------------------------------------------------------------------------------------------------

    async def _follow_heads(self) -> None:
        while True:
            await self.until(lambda: self.session is not None)
            try:
                await self._on_head(False)
                here = self.here()
                await self.while_connected(here, lambda: follow_heads(here.url, self._on_head, self.config))  # noqa: B023
            except ChainUnavailable as error:
                log.info("%s; polling every %g s", error, self.config.poll_interval_s)
            except ChainError as error:
                log.warning("%s; polling every %g s", error, self.config.poll_interval_s)
            else:
                continue  # the connection is another now
            await trio.sleep(self.config.poll_interval_s * (0.5 + self._rng.random() / 2))

    async def _on_head(self, runtime_changed: bool) -> None:
        if runtime_changed:
            await self.ask(session.refresh_runtime)
        best = await self.ask(session.head)
        self._seen = max(self._seen, best.number)
        if best != self.best:
            self.best = best
            self.tell()

    async def _compare(self) -> None:
        """Leave a node that falls behind the others: now and then all of them are asked for their best block."""
        while True:
            await trio.sleep(self.config.lag_check_s * (0.5 + self._rng.random() / 2))
            here = self.session
            if here is None:
                continue
            for url in [url for url in self.config.urls if url != here.url]:
                number, best = await self._number_at(url), self.best
                if number is None or best is None or self.session is not here:
                    continue
                if number > best.number + self.config.max_lag_blocks:
                    log.warning("%s is at block %d, %s at %d: the first is left", here.url, best.number, url, number)
                    self._next = self.config.urls.index(url) - 1
                    self.drop()
                    break

    async def _number_at(self, url: str) -> int | None:
        """Number of the best block that a node of this chain tells; None when it tells none."""
        try:
            with trio.fail_after(self.config.call_timeout_s):
                questions = (("chain_getBlockHash", (0,)), ("chain_getHeader", ()))
                genesis, header = await ask_once(url, questions, timeout_s=self.config.call_timeout_s)
            if session.unhex(genesis, "genesis hash") == self.genesis and isinstance(header, dict):
                return session.block_number(header.get("number"))
        except (ChainError, trio.TooSlowError) as error:
            log.debug("%s tells no block: %s", url, error)
        return None
