"""The gossipsub v1.1 router as a state machine: what comes in, `now` and an rng give what to send and deliver. PURE.

Each topic we subscribe to has a mesh: D neighbours with whom every message is exchanged at once. Others learn at each
heartbeat which messages there were (IHAVE) and ask for those they missed (IWANT). GRAFT and PRUNE change the mesh; who
was pruned stays out for a backoff. After the specs "gossipsub v1.0" and "v1.1" of libp2p, and different from them here:

- Own messages go to the mesh and up to `flood_peers` other subscribers; not to everybody (v1.1, "Flood Publishing").
- A neighbour that subscribes is offered the whole cache of the topic once, so a partition that heals gives back what
  was published meanwhile. Where there are too few neighbours outside the mesh, those inside are offered messages too:
  what a full queue dropped on its way through the mesh comes back at the next heartbeat.
- No peer exchange (PX), no outbound quota, no scores by topic (mesh.gossip.score).

Whatever a neighbour does is bounded by RouterConfig; what goes beyond it is left undone and costs score. Below
`prune_score` a neighbour is in no mesh and exchanges no IHAVE and IWANT with us, below `graylist_score` it is not
listened to at all.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mesh.errors import LocalProtocolError
from mesh.gossip.cache import MessageCache, SeenCache
from mesh.gossip.rules import Judgement, Message, Verdict
from mesh.gossip.score import MAX_PROMISES, Fault, Scores
from mesh.gossip.wire import IHave, Prune, RawMessage, Rpc
from mesh.peer import PeerID
from mesh.ratelimit import TokenBucket


class RouterConfig(BaseModel):
    """Degrees, times and bounds. Degrees and backoffs are the specs' defaults; the other bounds are guesses, wide
    for honest neighbours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d: int = Field(default=6, ge=1, le=64, description="neighbours in a topic's mesh")
    d_lo: int = Field(default=5, ge=1, description="below it, more are grafted")
    d_hi: int = Field(default=12, ge=1, description="above it, some are pruned")
    d_score: int = Field(default=4, ge=0, description="of those kept when pruning, how many are the best by score")
    d_lazy: int = Field(default=6, ge=0, description="neighbours that are offered messages at a heartbeat, at least")
    gossip_factor: float = Field(default=0.25, ge=0, le=1, description="or this part of the topic's others, if more")
    flood_peers: int = Field(default=32, ge=0, description="subscribers outside the mesh that get own messages at once")

    heartbeat_s: float = Field(default=1.0, gt=0)
    gossip_windows: int = Field(default=3, ge=1, description="heartbeats for which a message is offered")
    history_windows: int = Field(default=60, ge=1, description="heartbeats for which a message can be asked for")
    max_cache_messages: int = Field(default=8192, ge=1)
    max_cache_bytes: int = Field(default=16 * 2**20, ge=1)
    seen_ttl_s: float = Field(default=120.0, gt=0, description="raised to what the oldest acceptable message needs")
    max_seen: int = Field(default=131_072, ge=1, description="when full, replays of the oldest are not recognised")
    fanout_ttl_s: float = Field(default=60.0, gt=0)
    max_fanout_topics: int = Field(default=64, ge=1)
    prune_backoff_s: float = Field(default=60.0, gt=0)
    unsubscribe_backoff_s: float = Field(default=10.0, gt=0)
    max_backoff_s: float = Field(default=600.0, gt=0, description="what a neighbour may ask for at most")
    max_backoffs: int = Field(default=4096, ge=1)
    max_topics: int = Field(default=256, ge=1, description="subscriptions remembered of one neighbour")

    max_offers: int = Field(
        default=4096, ge=1, le=4096, description="messages a neighbour offers that are not asked for yet"
    )
    max_ihave: int = Field(default=16, ge=1, description="IHAVE entries of a neighbour in one heartbeat")
    max_asked: int = Field(
        default=512, ge=1, le=4096, description="ids asked of and answered to a neighbour per heartbeat"
    )
    max_answer_bytes: int = Field(default=2**20, ge=1, description="answered to a neighbour's IWANT per heartbeat")
    max_repeats: int = Field(default=3, ge=1, description="times a neighbour gets the same message by IWANT")
    promise_s: float = Field(default=3.0, gt=0, description="how long a message asked for may take")
    messages_per_s: float = Field(default=500.0, gt=0, description="new messages and control entries of a neighbour")
    message_burst: float = Field(default=2000.0, ge=1)

    score_decay: float = Field(default=0.95, gt=0, lt=1, description="what is left of a score after a heartbeat")
    prune_score: float = Field(default=-10.0, lt=0)
    graylist_score: float = Field(default=-40.0, lt=0)
    max_scores: int = Field(default=4096, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> RouterConfig:
        if not self.d_lo <= self.d <= self.d_hi or self.d_score > self.d:
            raise ValueError("d_lo <= d <= d_hi and d_score <= d")
        if self.gossip_windows > self.history_windows or self.graylist_score >= self.prune_score:
            raise ValueError("gossip_windows <= history_windows and graylist_score < prune_score")
        return self


class Priority(enum.IntEnum):
    """Which of the things that wait for a neighbour goes first; of those in one RPC all have the same."""

    CONTROL = 0
    OWN = 1
    FORWARD = 2
    LAZY = 3


@dataclass(frozen=True, slots=True)
class Send:
    """Give this to a neighbour."""

    peer: PeerID
    rpc: Rpc
    priority: Priority


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give this to our subscribers."""

    message: Message


Action = Send | Deliver


@dataclass(slots=True, eq=False)
class _Neighbour:
    bucket: TokenBucket
    can_send: bool = False
    """Whether we have, or are opening, a stream to it."""
    is_heard: bool = False
    """Whether it has a stream to us."""
    topics: dict[str, None] = field(default_factory=dict)
    offers: dict[bytes, None] = field(default_factory=dict)
    served: dict[bytes, int] = field(default_factory=dict)
    ihaves: int = 0
    asked: int = 0
    answered: int = 0
    answered_bytes: int = 0
    flooded: bool = False
    """These five are of the current heartbeat."""


class Router:
    """One node's gossipsub. No method raises for anything a neighbour does."""

    def __init__(
        self,
        local: PeerID,
        *,
        judge: Callable[[PeerID, RawMessage], Judgement],
        has_rule: Callable[[str], bool],
        is_member: Callable[[PeerID], bool],
        rng: random.Random,
        config: RouterConfig | None = None,
    ) -> None:
        self.config = config or RouterConfig()
        self._local = local
        self._judge = judge
        self._has_rule = has_rule
        self._is_member = is_member
        self._rng = rng
        self._neighbours: dict[PeerID, _Neighbour] = {}
        self._mesh: dict[str, dict[PeerID, None]] = {}
        self._fanout: dict[str, tuple[dict[PeerID, None], float]] = {}
        self._backoff: dict[tuple[str, PeerID], float] = {}
        self._promises: dict[bytes, tuple[PeerID, float]] = {}
        self._cache = MessageCache(
            windows=self.config.history_windows,
            max_messages=self.config.max_cache_messages,
            max_bytes=self.config.max_cache_bytes,
        )
        self._seen = SeenCache(ttl_s=self.config.seen_ttl_s, max_ids=self.config.max_seen)
        self._scores = Scores(decay=self.config.score_decay, max_peers=self.config.max_scores)

    # --- what can be read ---------------------------------------------------------------------------------------------

    def mesh(self, topic: str) -> tuple[PeerID, ...]:
        """Our mesh of a topic; empty when we do not subscribe."""
        return tuple(self._mesh.get(topic, ()))

    def subscribers(self, topic: str) -> tuple[PeerID, ...]:
        """Neighbours that subscribe to a topic, in the order of meeting them."""
        return tuple(peer for peer, state in self._neighbours.items() if topic in state.topics)

    def score(self, peer: PeerID) -> float:
        """0, or less after faults."""
        return self._scores[peer]

    def is_graylisted(self, peer: PeerID) -> bool:
        """Whether the peer is not listened to."""
        return self._scores[peer] < self.config.graylist_score

    def remember_for(self, ttl_s: float) -> None:
        """See to it that seen messages are recognised for so long."""
        self._seen.ttl_s = max(self._seen.ttl_s, ttl_s)

    # --- neighbours come and go ---------------------------------------------------------------------------------------

    def stream_out(self, peer: PeerID) -> list[Action]:
        """We can send to the peer now: first of all it hears our subscriptions."""
        self._neighbour(peer).can_send = True
        if not self._mesh:
            return []
        return [Send(peer, Rpc(subscriptions=tuple((True, topic) for topic in self._mesh)), Priority.CONTROL)]

    def stream_out_ended(self, peer: PeerID) -> None:
        """We can no longer send to the peer."""
        if peer in self._neighbours:
            self._neighbours[peer].can_send = False
            self._leave(peer)
            self._forget_if_idle(peer)

    def stream_in(self, peer: PeerID) -> None:
        """The peer begins to send to us; what it subscribed to, it says again."""
        state = self._neighbour(peer)
        state.is_heard = True
        state.topics.clear()
        self._leave(peer)

    def stream_in_ended(self, peer: PeerID) -> None:
        """The peer no longer sends to us."""
        if peer in self._neighbours:
            state = self._neighbours[peer]
            state.is_heard = False
            state.topics.clear()
            state.offers.clear()
            self._leave(peer)
            self._forget_if_idle(peer)

    def blame(self, peer: PeerID, fault: Fault) -> None:
        """For what was noticed outside the router."""
        self._scores.blame(peer, fault)

    def _neighbour(self, peer: PeerID) -> _Neighbour:
        if peer not in self._neighbours:
            bucket = TokenBucket(rate_per_s=self.config.messages_per_s, burst=self.config.message_burst)
            self._neighbours[peer] = _Neighbour(bucket)
        return self._neighbours[peer]

    def _leave(self, peer: PeerID) -> None:
        for mesh in self._mesh.values():
            mesh.pop(peer, None)
        for fanout, _ in self._fanout.values():
            fanout.pop(peer, None)

    def _forget_if_idle(self, peer: PeerID) -> None:
        state = self._neighbours[peer]
        if not state.can_send and not state.is_heard:
            del self._neighbours[peer]
            self._promises = {i: promise for i, promise in self._promises.items() if promise[0] != peer}

    # --- our own subscriptions and messages ---------------------------------------------------------------------------

    def subscribe(self, topic: str, now: float) -> list[Action]:
        """Get the messages of a topic from now on."""
        if topic in self._mesh:
            return []
        self._mesh[topic] = {}
        self._fanout.pop(topic, None)
        actions = self._announce(topic, is_on=True)
        return actions + self._graft(topic, self._candidates(topic, now), self.config.d)

    def unsubscribe(self, topic: str, now: float) -> list[Action]:
        """Get them no longer."""
        mesh = self._mesh.pop(topic, {})
        actions = [self._prune(topic, peer, now, self.config.unsubscribe_backoff_s) for peer in mesh]
        return actions + self._announce(topic, is_on=False)

    def _announce(self, topic: str, *, is_on: bool) -> list[Action]:
        rpc = Rpc(subscriptions=((is_on, topic),))
        return [Send(peer, rpc, Priority.CONTROL) for peer, state in self._neighbours.items() if state.can_send]

    def publish(self, raw: RawMessage, now: float) -> list[Send]:
        """Send a message of ours. Raises LocalProtocolError when it was published before."""
        if raw.id in self._seen:
            raise LocalProtocolError("a message is published once")
        self._seen.add(raw.id, now)
        self._cache.put(raw)
        first = dict(self._mesh.get(raw.topic) or self._fanout_of(raw.topic, now))
        others = [p for p in self._able(raw.topic) if p not in first and self._is_good(p)]
        for peer in self._sample(others, self.config.flood_peers):
            first[peer] = None
        rpc = Rpc(publish=(raw,))
        return [Send(peer, rpc, Priority.OWN) for peer in first]

    def _fanout_of(self, topic: str, now: float) -> dict[PeerID, None]:
        """D subscribers that stay the same while we publish to a topic without subscribing."""
        fanout, _ = self._fanout.pop(topic, ({}, now))
        able = [p for p in self._able(topic) if self._is_good(p)]
        fanout = {peer: None for peer in fanout if peer in able}
        for peer in self._sample([p for p in able if p not in fanout], self.config.d - len(fanout)):
            fanout[peer] = None
        self._fanout[topic] = (fanout, now)
        while len(self._fanout) > self.config.max_fanout_topics:
            del self._fanout[next(iter(self._fanout))]
        return fanout

    # --- what neighbours send -----------------------------------------------------------------------------------------

    def on_message(self, peer: PeerID, raw: RawMessage, now: float) -> list[Action]:
        """A message came: delivered and passed on if it is new and valid."""
        state = self._listen_to(peer)
        if state is None:
            return []
        message_id = raw.id
        is_new = message_id not in self._seen
        if not self._charge(peer, state, now, 1.0 if is_new else 0.1):
            return []
        if self._promises.get(message_id, (None,))[0] == peer:
            del self._promises[message_id]
        if not is_new or raw.source == self._local.multihash:
            return []
        judgement = self._judge(peer, raw)
        if judgement.verdict is Verdict.REJECT:
            self._scores.blame(peer, Fault.INVALID)
        if judgement.verdict is not Verdict.ACCEPT or judgement.message is None:
            return []  # not marked as seen: the next one under this id may be the real one
        self._promises.pop(message_id, None)
        self._seen.add(message_id, now)
        self._cache.put(raw)
        rpc = Rpc(publish=(raw,))
        passed_on: list[Action] = [
            Send(other, rpc, Priority.FORWARD)
            for other in self._mesh.get(raw.topic, ())
            if other != peer and other.multihash != raw.source
        ]
        return [Deliver(judgement.message), *passed_on] if raw.topic in self._mesh else passed_on

    def on_control(self, peer: PeerID, rpc: Rpc, now: float) -> list[Action]:
        """All of an RPC but its messages."""
        state = self._listen_to(peer)
        entries = len(rpc.subscriptions) + len(rpc.ihave) + len(rpc.graft) + len(rpc.prune) + bool(rpc.iwant)
        if state is None or not entries or not self._charge(peer, state, now, entries):
            return []
        actions: list[Action] = []
        for is_on, topic in rpc.subscriptions:
            actions += self._on_subscription(peer, state, topic, now, is_on=is_on)
        for prune in rpc.prune:
            self._on_prune(peer, prune, now)
        pruned = tuple(self._on_graft(peer, topic, now) for topic in dict.fromkeys(rpc.graft))
        if refused := tuple(prune for prune in pruned if prune is not None):
            actions.append(Send(peer, Rpc(prune=refused), Priority.CONTROL))
        if not self._is_good(peer):
            return actions
        if rpc.iwant:
            actions += self._answer(peer, state, rpc.iwant)
        if rpc.ihave:
            self._take_offers(peer, state, rpc.ihave)
            actions += self._ask(peer, state, now)
        return actions

    def _listen_to(self, peer: PeerID) -> _Neighbour | None:
        if self.is_graylisted(peer) or not self._is_member(peer):
            return None
        return self._neighbours.get(peer)

    def _charge(self, peer: PeerID, state: _Neighbour, now: float, cost: float) -> bool:
        if state.bucket.take(now, cost):
            return True
        self._flood(peer, state)
        return False

    def _flood(self, peer: PeerID, state: _Neighbour) -> None:
        if not state.flooded:  # once a heartbeat, so that one burst does not end an honest neighbour
            state.flooded = True
            self._scores.blame(peer, Fault.FLOOD)

    def _on_subscription(self, peer: PeerID, state: _Neighbour, topic: str, now: float, *, is_on: bool) -> list[Action]:
        if not is_on:
            state.topics.pop(topic, None)
            self._mesh.get(topic, {}).pop(peer, None)
            return []
        if topic in state.topics or not self._has_rule(topic) or len(state.topics) >= self.config.max_topics:
            return []
        state.topics[topic] = None
        actions: list[Action] = []
        ids = self._cache.ids(topic)[: self.config.max_offers]
        if ids and state.can_send:
            actions.append(Send(peer, Rpc(ihave=(IHave(topic, tuple(ids)),)), Priority.LAZY))
        if topic in self._mesh and peer in self._candidates(topic, now):
            actions += self._graft(topic, [peer], self.config.d)
        return actions

    def _on_prune(self, peer: PeerID, prune: Prune, now: float) -> None:
        mesh = self._mesh.get(prune.topic)
        if mesh is None:
            return
        mesh.pop(peer, None)
        wait_s = float(prune.backoff_s) if prune.backoff_s else self.config.prune_backoff_s
        self._back_off(prune.topic, peer, now, min(wait_s, self.config.max_backoff_s))

    def _on_graft(self, peer: PeerID, topic: str, now: float) -> Prune | None:
        """None, or the refusal."""
        mesh = self._mesh.get(topic)
        if mesh is None or peer in mesh or not self._neighbours[peer].can_send:
            # Unknown topics are not answered: no echo for floods (v1.1, "Spam Protection"). And whom we cannot send to
            # would take a place in the mesh and give nothing for it.
            return None
        backoff_s = self.config.prune_backoff_s
        # A heartbeat's grace: the peer counts from when it sent its PRUNE, we from when it came.
        if self._backoff.get((topic, peer), now) > now + self.config.heartbeat_s:
            self._scores.blame(peer, Fault.EARLY_GRAFT)
        elif self._is_good(peer) and len(mesh) < self.config.d_hi:
            mesh[peer] = None
            return None
        self._back_off(topic, peer, now, backoff_s)
        return Prune(topic, int(backoff_s) or 1)

    # --- lazy: IHAVE and IWANT ----------------------------------------------------------------------------------------

    def _take_offers(self, peer: PeerID, state: _Neighbour, offers: Sequence[IHave]) -> None:
        state.ihaves += len(offers)
        if state.ihaves > self.config.max_ihave:
            self._flood(peer, state)
            return
        for offer in offers:
            if offer.topic not in self._mesh:
                continue
            for message_id in offer.ids:
                if message_id in self._seen:
                    continue
                if len(state.offers) >= self.config.max_offers:
                    self._flood(peer, state)
                    return
                state.offers[message_id] = None

    def _ask(self, peer: PeerID, state: _Neighbour, now: float) -> list[Action]:
        """Ask for what the peer offered and nobody was asked for, within the heartbeat's bound."""
        wanted: list[bytes] = []
        for message_id in tuple(state.offers):
            if state.asked >= self.config.max_asked:
                break
            if message_id in self._seen:
                del state.offers[message_id]
            elif message_id not in self._promises:
                del state.offers[message_id]
                self._promises[message_id] = (peer, now + self.config.promise_s)
                state.asked += 1
                wanted.append(message_id)
        return [Send(peer, Rpc(iwant=tuple(wanted)), Priority.CONTROL)] if wanted else []

    def _answer(self, peer: PeerID, state: _Neighbour, ids: Iterable[bytes]) -> list[Action]:
        """The messages asked for, as far as the bounds of a heartbeat allow: asking is cheap, answering is not."""
        actions: list[Action] = []
        for message_id in ids:
            state.answered += 1
            if state.answered > self.config.max_asked:
                self._flood(peer, state)
                break
            raw = self._cache.get(message_id)
            if raw is None or state.answered_bytes + raw.size > self.config.max_answer_bytes:
                continue
            times = state.served.get(message_id, 0)
            if times >= self.config.max_repeats:
                continue
            state.served[message_id] = times + 1
            state.answered_bytes += raw.size
            actions.append(Send(peer, Rpc(publish=(raw,)), Priority.LAZY))
        return actions

    # --- the heartbeat ------------------------------------------------------------------------------------------------

    def heartbeat(self, now: float) -> list[Action]:
        """To be called every `heartbeat_s`: scores, meshes, offers."""
        actions: list[Action] = []
        self._scores.heartbeat()
        self._break_promises(now)
        self._backoff = {key: until for key, until in self._backoff.items() if until > now}
        for topic in self._mesh:
            actions += self._tend(topic, now)
        self._fanout = {
            topic: (fanout, at) for topic, (fanout, at) in self._fanout.items() if now - at < self.config.fanout_ttl_s
        }
        for topic in (*self._mesh, *self._fanout):
            actions += self._offer(topic)
        for peer, state in self._neighbours.items():
            state.ihaves = state.asked = state.answered = state.answered_bytes = 0
            state.flooded = False
            state.served = {i: times for i, times in state.served.items() if i in self._cache}
            if state.offers and self._is_good(peer):
                actions += self._ask(peer, state, now)
        self._cache.shift()
        self._seen.expire(now)
        return actions

    def _break_promises(self, now: float) -> None:
        broken: dict[PeerID, int] = {}
        for message_id, (peer, until) in tuple(self._promises.items()):
            if until <= now:
                del self._promises[message_id]
                broken[peer] = broken.get(peer, 0) + 1
        for peer, times in broken.items():
            self._scores.blame(peer, Fault.BROKEN_PROMISE, min(times, MAX_PROMISES))

    def _tend(self, topic: str, now: float) -> list[Action]:
        """Bring a mesh back between its bounds."""
        mesh, actions = self._mesh[topic], list[Action]()
        for peer in [p for p in mesh if not self._is_good(p)]:
            actions.append(self._prune(topic, peer, now, self.config.prune_backoff_s))
        if len(mesh) < self.config.d_lo:
            actions += self._graft(topic, self._candidates(topic, now), self.config.d)
        elif len(mesh) > self.config.d_hi:
            peers = self._sample(tuple(mesh), len(mesh))
            peers.sort(key=self.score, reverse=True)  # stable: those of equal score stay in random order
            rest = self._sample(peers[self.config.d_score :], len(peers))
            for peer in rest[self.config.d - self.config.d_score :]:
                actions.append(self._prune(topic, peer, now, self.config.prune_backoff_s))
        return actions

    def _offer(self, topic: str) -> list[Action]:
        ids = self._cache.ids(topic, windows=self.config.gossip_windows)
        if not ids:
            return []
        mesh = self._mesh.get(topic, {})
        able = [peer for peer in self._able(topic) if self._is_good(peer)]
        others = [peer for peer in able if peer not in mesh]
        count = max(self.config.d_lazy, int(len(others) * self.config.gossip_factor))
        chosen = self._sample(others, count)
        chosen += self._sample([peer for peer in able if peer in mesh], count - len(chosen))
        rpc = Rpc(ihave=(IHave(topic, tuple(ids[: self.config.max_offers])),))
        return [Send(peer, rpc, Priority.LAZY) for peer in chosen]

    # --- small ones ---------------------------------------------------------------------------------------------------

    def _able(self, topic: str) -> list[PeerID]:
        """Subscribers we can send to."""
        return [p for p, state in self._neighbours.items() if state.can_send and topic in state.topics]

    def _is_good(self, peer: PeerID) -> bool:
        return self._scores[peer] >= self.config.prune_score and self._is_member(peer)

    def _candidates(self, topic: str, now: float) -> list[PeerID]:
        """Who may be grafted."""
        mesh = self._mesh.get(topic, {})
        return [
            peer
            for peer in self._able(topic)
            if peer not in mesh and self._is_good(peer) and self._backoff.get((topic, peer), now) <= now
        ]

    def _graft(self, topic: str, candidates: Sequence[PeerID], up_to: int) -> list[Action]:
        mesh = self._mesh[topic]
        chosen = self._sample(candidates, up_to - len(mesh))
        for peer in chosen:
            mesh[peer] = None
        return [Send(peer, Rpc(graft=(topic,)), Priority.CONTROL) for peer in chosen]

    def _prune(self, topic: str, peer: PeerID, now: float, backoff_s: float) -> Action:
        self._mesh.get(topic, {}).pop(peer, None)
        self._back_off(topic, peer, now, backoff_s)
        return Send(peer, Rpc(prune=(Prune(topic, int(backoff_s) or 1),)), Priority.CONTROL)

    def _back_off(self, topic: str, peer: PeerID, now: float, wait_s: float) -> None:
        self._backoff[topic, peer] = max(now + wait_s, self._backoff.pop((topic, peer), now))
        while len(self._backoff) > self.config.max_backoffs:
            del self._backoff[next(iter(self._backoff))]

    def _sample(self, peers: Sequence[PeerID], count: int) -> list[PeerID]:
        return self._rng.sample(peers, min(len(peers), max(0, count)))
