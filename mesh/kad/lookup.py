"""Iterative lookup of the peers closest to a key (Kademlia §2.3; libp2p kad-dht "Peer routing"). Sans-IO.

`Lookup` says whom to ask next and is told what came back; a shell moves the messages (mesh.dht over RPC, the
simulated World over a heap of events). `simple_lookup` is the same in ten lines without concurrency: read it
first, the tests hold the two against each other.

With several paths (S/Kademlia §4.4; Baumgart and Mies 2007) the lookup is several that share nothing but whom they
have asked: a peer is asked by one path only, and whom it names becomes known to that path only. So one that names
accomplices leads its own path astray and no other; and since a peer belongs to the path that asks it, not to the one
that named it first, it cannot keep honest peers from the others by naming them all.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.kad.key import Key, key_of_peer
from mesh.kad.patience import Patience
from mesh.peer import PeerID, PeerInfo


def simple_lookup(
    target: Key,
    seeds: Iterable[PeerID],
    ask: Callable[[PeerID], Sequence[PeerID] | None],
    *,
    k: int,
    place: Callable[[PeerID], Key] = key_of_peer,
) -> list[PeerID]:
    """The reference: ask the closest peer not yet asked until the k closest that answer have been. `ask`
    returns whom the peer knows, None when it does not answer."""
    known, asked, dead = set(seeds), set[PeerID](), set[PeerID]()
    while True:
        closest = sorted(known - dead, key=lambda peer: place(peer) ^ target)[:k]
        todo = [peer for peer in closest if peer not in asked]
        if not todo:
            return closest
        asked.add(todo[0])
        closer = ask(todo[0])
        if closer is None:
            dead.add(todo[0])
        else:
            known.update(closer)


_MAX_ADDRS: Final = 16
"""Of one peer, as several paths name it: twice what one answer may hold."""


class LookupConfig(BaseModel):
    """How a lookup spends its time. Defaults marked unmeasured are guesses until benchmarks/ says more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: int = Field(default=3, ge=1, description="requests in flight, over all paths; at least one for each")
    paths: int = Field(default=1, ge=1, le=8, description="d: disjoint paths")
    max_closer: int = Field(default=20, ge=1, description="peers taken from one answer, the closest first")
    max_candidates: int = Field(default=256, ge=20, description="peers a path remembers; the farthest are forgotten")
    max_requests: int = Field(default=200, ge=1, description="requests of one lookup in all; each path has its share")


class Counts(enum.Enum):
    """Whether a peer that answered is one of the k looked for."""

    YES = enum.auto()
    ROUTES_ONLY = enum.auto()
    """It told us closer peers but cannot be a result: a bootnode, or a replica that is full."""


class _State(enum.Enum):
    NEW = enum.auto()
    WAITING = enum.auto()
    SLOW = enum.auto()
    """Out of patience: no longer waited for, still welcome."""
    ANSWERED = enum.auto()
    ROUTED = enum.auto()
    FAILED = enum.auto()


@dataclass(slots=True, eq=False)
class _Candidate:
    distance: int
    info: PeerInfo
    hops: int
    """Answers that led here, one after another, this one's own included once it comes."""
    state: _State = _State.NEW
    asked_at: float = 0.0
    is_live: bool = True
    """New, waiting or answered: what the k closest are chosen from."""
    path: _Path | None = None
    """Which path asked it."""
    paths: int = 0
    """How many paths know it."""

    def __lt__(self, other: _Candidate) -> bool:
        return self.distance < other.distance


@dataclass(slots=True, eq=False)
class _Path:
    """Whom one path knows, the closest first."""

    candidates: list[_Candidate] = field(default_factory=list)
    budget: int = 0
    """Requests it may still make: liars that answer at once would else spend the other paths' while these wait."""

    def closest_live(self, k: int) -> list[_Candidate]:
        """The k closest that have answered this path or still may."""
        live: list[_Candidate] = []
        for candidate in self.candidates:
            if candidate.is_live and (candidate.path is self or candidate.path is None):
                live.append(candidate)
                if len(live) == k:
                    break
        return live

    def has_arrived(self, live: Sequence[_Candidate]) -> bool:
        """Nothing to wait for among the closest, and nobody to ask, or no request left."""
        states = [candidate.state for candidate in live]
        return _State.WAITING not in states and (_State.NEW not in states or not self.budget)


@dataclass(slots=True)
class LookupStats:
    """What a lookup cost."""

    requests: int = 0
    answers: int = 0
    failures: int = 0
    slow: int = 0


@dataclass(slots=True)
class Lookup:
    """One lookup of the `k` closest peers to `target`.

    At most `alpha` requests are in flight, as a sliding window: each answer makes room for the next. A request that
    outlasts the patience learnt from its peer's round trips no longer counts as in flight. `finished` once, on each
    path, the k closest known peers that are neither dead nor slow nor another path's have answered; or `stop_when` says
    so after an answer, the deadline passed or the budget of requests is spent. `now` is any monotonic clock in seconds.
    """

    target: Key
    k: int
    local: PeerID | None = None
    """Never asked, never a result."""
    config: LookupConfig = field(default_factory=LookupConfig)
    deadline: float | None = None
    stop_when: Callable[[Lookup], bool] | None = None
    place: Callable[[PeerID], Key] = key_of_peer
    patience: Patience = field(default_factory=Patience)
    """What the node knows of its peers' round trips."""
    stats: LookupStats = field(default_factory=LookupStats)
    finished: bool = False
    _known: dict[PeerID, _Candidate] = field(default_factory=dict)
    _paths: list[_Path] = field(default_factory=list)
    _waiting: dict[PeerID, _Candidate] = field(default_factory=dict)

    def start(self, seeds: Iterable[PeerInfo]) -> Lookup:
        """Give it the peers to begin with, dealt out to the paths by distance; returns itself."""
        count = self.config.paths
        budget, rest = divmod(self.config.max_requests, count)
        self._paths = [_Path(budget=budget + (number < rest)) for number in range(count)]
        dealt = sorted(seeds, key=lambda info: self.place(info.peer_id) ^ self.target)
        for number, info in enumerate(dealt):
            self._learn(info, self._paths[number % len(self._paths)], hops=1)
        return self

    def next_requests(self, now: float) -> list[PeerInfo]:
        """Whom to ask now; call again after every answer, failure, and at `wake_at`."""
        if self.finished or (self.deadline is not None and now >= self.deadline):
            self.finished = True
            return []
        for candidate in tuple(self._waiting.values()):
            if now >= self._late_at(candidate):  # as wake_at says it, to the last bit
                self.patience.on_slow(candidate.info.peer_id)
                self._settle(candidate, _State.SLOW)
                self.stats.slow += 1
        closest = [path.closest_live(self.k) for path in self._paths]
        requests = [self._ask(candidate, path, now) for candidate, path in self._choose(closest)]
        # A request to a peer that closer ones have pushed out of the k closest holds nothing up.
        self.finished = all(path.has_arrived(live) for path, live in zip(self._paths, closest, strict=True))
        return requests

    def _choose(self, closest: Sequence[Sequence[_Candidate]]) -> Iterator[tuple[_Candidate, _Path]]:
        """Whom to ask on which path, while there is room: paths take turns, those with fewest in flight first."""
        alpha = max(self.config.alpha, len(self._paths))
        turns: list[list[_Candidate | None]] = []
        for live in closest:
            states = [candidate.state for candidate in live]
            new = [candidate for candidate in live if candidate.state is _State.NEW]
            turns.append([*[None] * states.count(_State.WAITING), *new])
        for turn in zip_longest(*turns):
            for candidate, path in zip(turn, self._paths, strict=True):
                if len(self._waiting) >= alpha:
                    return
                if candidate is not None and candidate.state is _State.NEW and path.budget:
                    yield candidate, path

    def on_response(self, peer: PeerID, closer: Sequence[PeerInfo], *, now: float, counts: Counts = Counts.YES) -> None:
        """A peer answered with peers it knows. Answers nobody asked for are ignored."""
        candidate = self._known.get(peer)
        if candidate is None or candidate.path is None or candidate.state not in (_State.WAITING, _State.SLOW):
            return
        self.patience.observe(peer, now - candidate.asked_at)
        self._settle(candidate, _State.ANSWERED if counts is Counts.YES else _State.ROUTED)
        self.stats.answers += 1
        if len(closer) > self.config.max_closer:
            closer = sorted(closer, key=lambda info: self.place(info.peer_id) ^ self.target)
        for info in closer[: self.config.max_closer]:
            self._learn(info, candidate.path, hops=candidate.hops + 1)
        if self.stop_when is not None and self.stop_when(self):
            self.finished = True

    def on_failure(self, peer: PeerID) -> None:
        """A peer did not answer, or with nonsense."""
        candidate = self._known.get(peer)
        if candidate is not None and candidate.state in (_State.WAITING, _State.SLOW):
            self._settle(candidate, _State.FAILED)
            self.stats.failures += 1

    def widen(self, k: int) -> None:
        """Look for more peers than at first, going on from what is known: before saying that nothing is
        there."""
        if k > self.k:
            self.k = k
            self.finished = False

    def wake_at(self) -> float | None:
        """When `next_requests` has news even if nothing arrives: a request turns slow, or the deadline."""
        times = [self._late_at(candidate) for candidate in self._waiting.values()]
        if self.deadline is not None:
            times.append(self.deadline)
        return min(times, default=None)

    def closest(self, count: int | None = None) -> list[PeerInfo]:
        """The peers that answered on any path, closest to the target first; at most `count`, k unless told."""
        return [c.info for c in self._in(_State.ANSWERED)][: self.k if count is None else count]

    def info(self, peer: PeerID) -> PeerInfo | None:
        """What is known of a peer met on the way, asked or not."""
        candidate = self._known.get(peer)
        return None if candidate is None else candidate.info

    def nearest_without(self, has: Container[PeerID]) -> PeerInfo | None:
        """The closest peer that answered and is not in `has`."""
        return next((c.info for c in self._in(_State.ANSWERED) if c.info.peer_id not in has), None)

    def missed(self) -> list[PeerID]:
        """Peers asked that failed or were too slow, closest first."""
        return [c.info.peer_id for c in self._in(_State.FAILED, _State.SLOW)]

    def unanswered(self) -> list[PeerID]:
        """Peers asked that had not answered when it finished, those we ran out of patience with."""
        return [c.info.peer_id for c in self._in(_State.SLOW)]

    @property
    def hops(self) -> int:
        """Answers, one leading to the next, to the closest peer that answered; 0 when none did."""
        answered = self._in(_State.ANSWERED)
        return answered[0].hops if answered else 0

    def _late_at(self, candidate: _Candidate) -> float:
        return candidate.asked_at + self.patience.of(candidate.info.peer_id)

    def _in(self, *states: _State) -> list[_Candidate]:
        return sorted(candidate for candidate in self._known.values() if candidate.state in states)

    def _ask(self, candidate: _Candidate, path: _Path, now: float) -> PeerInfo:
        candidate.state = _State.WAITING
        candidate.path = path
        candidate.asked_at = now
        path.budget -= 1
        self._waiting[candidate.info.peer_id] = candidate
        self.stats.requests += 1
        return candidate.info

    def _settle(self, candidate: _Candidate, state: _State) -> None:
        """A request is no longer in flight."""
        candidate.state = state
        candidate.is_live = state is _State.ANSWERED
        self._waiting.pop(candidate.info.peer_id, None)

    def _learn(self, info: PeerInfo, path: _Path, *, hops: int) -> None:
        peer = info.peer_id
        if peer == self.local:
            return
        candidate = self._known.get(peer)
        if candidate is None:
            candidate = _Candidate(self.place(peer) ^ self.target, info, hops)
        elif candidate.path is not None or len(self._paths) == 1:
            return
        else:
            # Where one path's liar says a peer is must not be all that the others try.
            addrs = tuple(dict.fromkeys((*candidate.info.addrs, *info.addrs)))[:_MAX_ADDRS]
            candidate.info = PeerInfo(peer, addrs)
            if candidate in path.candidates:
                return
        if len(path.candidates) >= self.config.max_candidates:
            # Whom it asked stays, so that it is not asked again; were only the last looked at, one far seed that
            # answered would end all learning.
            farthest = next((known for known in reversed(path.candidates) if known.path is not path), None)
            if farthest is None or candidate.distance >= farthest.distance:
                return
            path.candidates.remove(farthest)
            farthest.paths -= 1
            if not farthest.paths:
                del self._known[farthest.info.peer_id]
        self._known[peer] = candidate
        candidate.paths += 1
        insort(path.candidates, candidate)
