"""Iterative lookup of the peers closest to a key (Kademlia §2.3; libp2p kad-dht "Peer routing"). Sans-IO.

`Lookup` says whom to ask next and is told what came back; a shell moves the messages (mesh.dht over RPC, the
simulated World over a heap of events). `simple_lookup` is the same in ten lines without concurrency: read it
first, the tests hold the two against each other.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from mesh.kad.key import Key, key_of_peer
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


class LookupConfig(BaseModel):
    """How a lookup spends its time. `unmeasured` defaults are guesses until benchmarks/ says more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: int = Field(default=3, ge=1, description="requests in flight")
    max_closer: int = Field(default=20, ge=1, description="peers taken from one answer, the closest first")
    max_candidates: int = Field(default=256, ge=20, description="peers remembered; the farthest are forgotten")
    max_requests: int = Field(default=200, ge=1, description="requests of one lookup in all")
    first_patience_s: float = Field(
        default=1.0,
        gt=0,
        description="before any answer: how long until another peer is asked beside a slow one",
    )
    min_patience_s: float = Field(default=0.25, gt=0, description="least such time once round trips are known")
    patience_rtts: float = Field(default=4.0, gt=0, description="such time in smoothed round trips")


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


@dataclass(slots=True)
class _Candidate:
    distance: int
    info: PeerInfo
    state: _State = _State.NEW
    asked_at: float = 0.0
    is_live: bool = True
    """New, waiting or answered: what the k closest are chosen from."""

    def __lt__(self, other: _Candidate) -> bool:
        return self.distance < other.distance


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

    At most `alpha` requests are in flight, as a sliding window: each answer makes room for the next. A
    request that outlasts the patience learnt from this lookup's own round trips no longer counts as in
    flight. `finished` once the k closest known peers that are neither dead nor slow have answered,
    `stop_when` says so after an answer, the deadline passed or the budget of requests is spent. `now` is any
    monotonic clock in seconds.
    """

    target: Key
    k: int
    local: PeerID | None = None
    """Never asked, never a result."""
    config: LookupConfig = field(default_factory=LookupConfig)
    deadline: float | None = None
    stop_when: Callable[[Lookup], bool] | None = None
    place: Callable[[PeerID], Key] = key_of_peer
    stats: LookupStats = field(default_factory=LookupStats)
    finished: bool = False
    _known: dict[PeerID, _Candidate] = field(default_factory=dict)
    _sorted: list[_Candidate] = field(default_factory=list)
    _waiting: dict[PeerID, _Candidate] = field(default_factory=dict)
    _rtt_s: float | None = None

    def start(self, seeds: Iterable[PeerInfo]) -> Lookup:
        """Give it the peers to begin with; returns itself."""
        for info in seeds:
            self._learn(info)
        return self

    def next_requests(self, now: float) -> list[PeerInfo]:
        """Whom to ask now; call again after every answer, failure, and at `wake_at`."""
        if self.finished or (self.deadline is not None and now >= self.deadline):
            self.finished = True
            return []
        patience_s = self.patience_s
        for candidate in tuple(self._waiting.values()):
            if now >= candidate.asked_at + patience_s:  # as wake_at says it, to the last bit
                self._settle(candidate, _State.SLOW)
                self.stats.slow += 1
        requests: list[PeerInfo] = []
        closest = self._closest_live()
        for candidate in closest:
            if len(self._waiting) >= self.config.alpha or self.stats.requests >= self.config.max_requests:
                break
            if candidate.state is _State.NEW:
                candidate.state = _State.WAITING
                candidate.asked_at = now
                self._waiting[candidate.info.peer_id] = candidate
                self.stats.requests += 1
                requests.append(candidate.info)
        # A request to a peer that closer ones have pushed out of the k closest holds nothing up.
        if not any(c.state is _State.WAITING for c in closest) and (
            all(c.state is _State.ANSWERED for c in closest) or self.stats.requests >= self.config.max_requests
        ):
            self.finished = True
        return requests

    def on_response(self, peer: PeerID, closer: Sequence[PeerInfo], *, now: float, counts: Counts = Counts.YES) -> None:
        """A peer answered with peers it knows. Answers nobody asked for are ignored."""
        candidate = self._known.get(peer)
        if candidate is None or candidate.state not in (_State.WAITING, _State.SLOW):
            return
        rtt_s = max(0.0, now - candidate.asked_at)
        self._rtt_s = rtt_s if self._rtt_s is None else 0.75 * self._rtt_s + 0.25 * rtt_s
        self._settle(candidate, _State.ANSWERED if counts is Counts.YES else _State.ROUTED)
        self.stats.answers += 1
        if len(closer) > self.config.max_closer:
            closer = sorted(closer, key=lambda info: self.place(info.peer_id) ^ self.target)
        for info in closer[: self.config.max_closer]:
            self._learn(info)
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

    def stop(self) -> None:
        """Finish with what there is."""
        self.finished = True

    @property
    def patience_s(self) -> float:
        """How long a request counts as in flight."""
        if self._rtt_s is None:
            return self.config.first_patience_s
        return max(self.config.min_patience_s, self.config.patience_rtts * self._rtt_s)

    def wake_at(self) -> float | None:
        """When `next_requests` has news even if nothing arrives: a request turns slow, or the deadline."""
        patience_s = self.patience_s
        times = [c.asked_at + patience_s for c in self._waiting.values()]
        if self.deadline is not None:
            times.append(self.deadline)
        return min(times, default=None)

    def closest(self, count: int | None = None) -> list[PeerInfo]:
        """The peers that answered, closest to the target first; at most `count`, k unless told."""
        answered = [c.info for c in self._sorted if c.state is _State.ANSWERED]
        return answered[: self.k if count is None else count]

    def info(self, peer: PeerID) -> PeerInfo | None:
        """What is known of a peer met on the way, asked or not."""
        candidate = self._known.get(peer)
        return None if candidate is None else candidate.info

    def nearest_without(self, has: Container[PeerID]) -> PeerInfo | None:
        """The closest peer that answered and is not in `has`."""
        return next((info for info in self.closest() if info.peer_id not in has), None)

    def missed(self) -> list[PeerID]:
        """Peers asked that failed or were too slow, closest first."""
        return [c.info.peer_id for c in self._sorted if c.state in (_State.FAILED, _State.SLOW)]

    def unanswered(self) -> list[PeerID]:
        """Peers asked that had not answered when it finished, those we ran out of patience with."""
        return [c.info.peer_id for c in self._sorted if c.state is _State.SLOW]

    def _settle(self, candidate: _Candidate, state: _State) -> None:
        """A request is no longer in flight."""
        candidate.state = state
        candidate.is_live = state is _State.ANSWERED
        self._waiting.pop(candidate.info.peer_id, None)

    def _closest_live(self) -> list[_Candidate]:
        """The k closest that have answered or still may."""
        live: list[_Candidate] = []
        for candidate in self._sorted:
            if candidate.is_live:
                live.append(candidate)
                if len(live) == self.k:
                    break
        return live

    def _learn(self, info: PeerInfo) -> None:
        peer = info.peer_id
        if peer == self.local or peer in self._known:
            return
        candidate = _Candidate(self.place(peer) ^ self.target, info)
        if len(self._sorted) >= self.config.max_candidates:
            farthest = self._sorted[-1]
            if candidate.distance >= farthest.distance or farthest.state is not _State.NEW:
                return
            del self._known[self._sorted.pop().info.peer_id]
        self._known[peer] = candidate
        insort(self._sorted, candidate)
