"""Authorizers made of others: all of them, any of them, a fixed list.

They fail closed: a part that crashes, or answers with anything but a class of at least the one that was asked for, has
refused. What went wrong inside is logged and not told to the peer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NoReturn

import trio

from mesh.auth.authorizer import Authorizer, PeerClass, is_enough
from mesh.errors import ChainError, ConfigError, MeshError, NotAuthorized, first_leaf
from mesh.peer import PeerID

log = logging.getLogger(__name__)

MAX_DETAIL_CHARS: Final = 240
"""Of one part's refusal, where several are told together."""

Question = Callable[[Authorizer], Awaitable[PeerClass]]


class _Parts:
    """What AllOf and AnyOf have in common: their answers change when a part's do."""

    def __init__(self, *parts: Authorizer) -> None:
        if not parts:
            raise ConfigError(f"{type(self).__name__} needs at least one authorizer: none at all decides nothing")
        self._parts = parts

    @property
    def changes(self) -> int:
        """The sum of the parts'."""
        return sum(part.changes for part in self._parts)

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer."""
        return await self._decide(lambda part: part.authorize(peer, method, least), least)

    async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer."""
        return await self._decide(lambda part: part.classify(peer, method, least), least)

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        """See Authorizer."""
        return await self._decide(lambda part: part.recheck(peer, least), least)

    async def wait_change(self, seen: int | None = None) -> int:
        """Until any part changes; see Authorizer. Raises what a part's own waiting raises."""
        counts = [part.changes for part in self._parts]
        if seen is not None and sum(counts) > seen:
            return sum(counts)
        fatal: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:

                async def wait(part: Authorizer, count: int) -> None:
                    await part.wait_change(count)
                    nursery.cancel_scope.cancel()

                for part, count in zip(self._parts, counts, strict=True):
                    nursery.start_soon(wait, part, count)
        except* Exception as group:  # noqa: BLE001 - raised again below
            fatal = first_leaf(group)
        if fatal is not None:  # raised out here, so that the caller gets the error and not a group
            raise fatal
        return self.changes

    async def _decide(self, question: Question, least: PeerClass) -> PeerClass:
        """What the parts say together; each combinator's own."""
        raise NotImplementedError  # abstract: _Parts itself is never an authorizer


class AllOf(_Parts):
    """Every part must agree; the class is the lowest they name. Asked in order, and the first refusal is the answer,
    so put first what is cheap and what others shall be spared by."""

    async def _decide(self, question: Question, least: PeerClass) -> PeerClass:
        return min([await _answer(part, question, least) for part in self._parts])


class AnyOf(_Parts):
    """One part must agree; the class is the highest of those that do. Asked in order, and nobody further once one says
    MEMBER. When all refuse, their reasons are told together, under the reason they share or `all-refused`."""

    async def _decide(self, question: Question, least: PeerClass) -> PeerClass:
        agreed: list[PeerClass] = []
        refusals: list[NotAuthorized] = []
        for part in self._parts:
            try:
                agreed.append(await _answer(part, question, least))
            except NotAuthorized as error:
                refusals.append(error)
            if PeerClass.MEMBER in agreed:
                break
        if agreed:
            return max(agreed)
        _refuse_together(refusals)


class AllowList:
    """The peers named here have the classes named here, MEMBER for a plain list; anyone else is refused everything."""

    def __init__(self, peers: Mapping[PeerID, PeerClass] | Iterable[PeerID]) -> None:
        """Raises ConfigError for what is no PeerID or PeerClass, such as text that was not parsed."""
        self._classes = dict(peers) if isinstance(peers, Mapping) else dict.fromkeys(peers, PeerClass.MEMBER)
        for peer, peer_class in self._classes.items():
            if not isinstance(peer, PeerID) or not isinstance(peer_class, PeerClass):
                raise ConfigError(f"a list of allowed peers has PeerID and PeerClass, not {peer!r}: {peer_class!r}")

    @property
    def changes(self) -> int:
        """Always 0: the list is fixed."""
        return 0

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer. Reasons: `not-listed`, `class-too-low`."""
        found = self._classes.get(peer)
        if found is None:
            raise NotAuthorized("not-listed", f"{method} is for peers this node lists, and {peer} is none of them.")
        if found < least:
            raise NotAuthorized(
                "class-too-low", f"{method} is for {least.name.lower()}s, and {peer} is listed as {found.name.lower()}."
            )
        return found

    async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        """See Authorizer."""
        return await self.authorize(peer, method, least)

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        """See Authorizer."""
        return await self.authorize(peer, "this", least)

    async def wait_change(self, seen: int | None = None) -> int:
        """For ever."""
        await trio.sleep_forever()
        raise AssertionError


async def _answer(part: Authorizer, question: Question, least: PeerClass) -> PeerClass:
    """One part's answer when it is a class of at least `least`; everything else is raised as NotAuthorized."""
    name = type(part).__name__
    try:
        found = await question(part)
    except NotAuthorized:
        raise
    except ChainError as error:
        raise NotAuthorized("chain-unreachable", "this node's chain does not answer. Try later.") from error
    except Exception as error:
        if not isinstance(error, MeshError):
            log.exception("an authorizer (%s) crashed; the peer is refused", name)
        raise NotAuthorized("internal", "this node could not find out whether that is allowed.") from error
    if not is_enough(found, least):
        log.error("an authorizer (%s) answered %r where %s was asked for; refused", name, found, least.name)
        raise NotAuthorized("internal", "this node could not find out whether that is allowed.")
    return found


def _refuse_together(refusals: list[NotAuthorized]) -> NoReturn:
    reasons = {error.reason for error in refusals}
    reason = reasons.pop() if len(reasons) == 1 else "all-refused"
    waits_s = [error.retry_after_s for error in refusals if error.retry_after_s is not None]
    raise NotAuthorized(
        reason,
        "; ".join(f"{error.reason}: {str(error)[:MAX_DETAIL_CHARS]}" for error in refusals),
        retry_after_s=min(waits_s, default=None),
    )
