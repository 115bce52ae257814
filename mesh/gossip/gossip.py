"""Gossip: publish and subscribe among the members of a subnet. The streams around mesh.gossip.router.

Each node has one stream of its own to each neighbour and only writes to it, and one reader for each stream that comes.
What waits for a neighbour is bounded (mesh.gossip.outbox); a neighbour that reads too slowly loses messages that are
only passed on, and gets them by IHAVE later. Neighbours are the members we are connected to, whoever dialled, and a few
more that are dialled when there are too few.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.clock import Clock
from mesh.errors import (
    ConfigError,
    LocalProtocolError,
    NetworkError,
    NotAuthorized,
    PublishFailed,
    RemoteProtocolError,
    StreamBroken,
)
from mesh.gossip.outbox import Outbox
from mesh.gossip.router import Action, Priority, Router, RouterConfig, Send
from mesh.gossip.rules import MAX_SKEW_S, Judge, Judgement, Message, TopicRule, Verdict
from mesh.gossip.score import Fault
from mesh.gossip.wire import MAX_RPC_BYTES, PROTOCOL, RawMessage, Rpc, decode, frame, sign
from mesh.identity import PeerKey
from mesh.net.base import Network, Stream
from mesh.peer import PeerID
from mesh.protobuf import FrameReader
from mesh.ratelimit import TokenBucket
from mesh.rpc.body import pack

log = logging.getLogger(__name__)

_MAX_TOPICS: Final = 128
_BETWEEN_PAUSES: Final = 16
"""Messages and RPCs of one neighbour read before other tasks have their turn: about 3 ms when all are new."""


class GossipConfig(BaseModel):
    """Bounds of the streams; the router has its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    router: RouterConfig = RouterConfig()
    max_links: int = Field(default=128, ge=1, description="neighbours we send to")
    max_outbox_messages: int = Field(default=2048, ge=1, description="waiting for one neighbour")
    max_outbox_bytes: int = Field(default=4 * 2**20, ge=2**17, description="the same in bytes")
    batch_bytes: int = Field(default=32 * 1024, ge=1024, le=MAX_RPC_BYTES // 2, description="put into one RPC")
    max_rpc_bytes: int = Field(default=MAX_RPC_BYTES, ge=2**17, le=MAX_RPC_BYTES, description="one RPC of a neighbour")
    forward_delay_s: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="mean wait of a message that is only passed on: most often the neighbour sends it to us meanwhile",
    )
    forward_delay_max_s: float = Field(default=0.25, ge=0, le=2, description="the same when this process is behind")
    send_timeout_s: float = Field(default=10.0, gt=0, description="a neighbour that reads nothing for so long is left")
    publish_wait_s: float = Field(default=2.0, ge=0, description="how long publish waits for room in full outboxes")
    poll_s: float = Field(default=0.25, gt=0, description="how often new connections are looked for")
    retry_s: float = Field(default=5.0, gt=0, description="before a neighbour whose stream ended is tried again")
    retry_max_s: float = Field(default=120.0, gt=0, description="the same after many failures")
    max_dials: int = Field(default=4, ge=0, description="members dialled at once when neighbours are too few")
    max_unread: int = Field(default=1024, ge=1, description="messages a subscriber may leave unread")
    max_subscribers: int = Field(default=64, ge=1, description="of one topic in this process")
    max_owners: int = Field(default=4096, ge=1, description="publishers of a topic whose rate is remembered")


@dataclass(frozen=True, slots=True)
class PublishReport:
    """Where a message went at once. With no neighbour at all it waits in the cache and is offered to who comes."""

    queued: int
    """Neighbours it waits for or was sent to."""
    slow: tuple[PeerID, ...] = ()
    """Neighbours with no room for it; they are offered it later."""


class Subscription:
    """The messages of a topic, in the order they came: iterate over it. Ends with its `subscribe` only."""

    def __init__(self, topic: str, max_unread: int) -> None:
        self.topic = topic
        self.dropped = 0
        """Messages that were lost because they were not read in time; the oldest go first."""
        self._unread: deque[Message] = deque()
        self._max_unread = max_unread
        self._changed = trio.Event()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Message:
        while not self._unread:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self._unread.popleft()

    def _put(self, message: Message) -> None:
        if len(self._unread) >= self._max_unread:
            self._unread.popleft()
            self.dropped += 1
        self._unread.append(message)
        self._changed.set()
        self._changed = trio.Event()


class _Delay:
    """How long a message waits that is only passed on.

    Drawn at random, so that of two neighbours that would send each other the same message one is first, and the other
    need not. In a process that is behind, messages are longer under way, so they must wait longer to be of that use;
    otherwise a busy node would make itself busier with copies.
    """

    def __init__(self, config: GossipConfig, rng: random.Random) -> None:
        self._mean_s = config.forward_delay_s
        self._max_s = config.forward_delay_max_s
        self._rng = rng
        self._behind_s = 0.0

    def learn(self, behind_s: float) -> None:
        """A wait took so much longer than it should."""
        self._behind_s += (behind_s - self._behind_s) / 8

    def draw(self) -> float:
        mean_s = min(self._mean_s + 3 * self._behind_s, max(self._mean_s, self._max_s))
        return mean_s * self._rng.uniform(0.5, 1.5)


class _Link:
    """Our stream to a neighbour, and what waits for it."""

    def __init__(self, peer: PeerID, config: GossipConfig) -> None:
        self.peer = peer
        self.outbox = Outbox(max_messages=config.max_outbox_messages, max_bytes=config.max_outbox_bytes)
        self.scope = trio.CancelScope()
        self.is_open = False
        self.sending_since: float | None = None
        self._filled = trio.Event()
        self._urgent = trio.Event()
        self._emptied = trio.Event()

    def put(self, rpc: Rpc, priority: Priority) -> bool:
        """See Outbox.put."""
        if not self.outbox.put(rpc, priority):
            return False
        self._filled.set()
        if priority <= Priority.OWN:
            self._urgent.set()
        return True

    async def take(self, max_bytes: int, delay: _Delay) -> Rpc:
        """The next RPC; what is not urgent waits a little."""
        while True:
            self._filled = trio.Event()
            self._urgent = trio.Event() if not self.outbox.is_urgent else self._urgent
            if not self.outbox:
                await self._filled.wait()
            if not self.outbox.is_urgent:
                with trio.CancelScope(deadline=trio.current_time() + delay.draw()) as scope:
                    await self._urgent.wait()
                if scope.cancelled_caught:
                    delay.learn(trio.current_time() - scope.deadline)
            rpc = self.outbox.take(max_bytes)
            if rpc is not None:
                return rpc

    def emptied(self) -> None:
        """Something was sent, or nothing will be any more."""
        self._emptied.set()
        self._emptied = trio.Event()

    async def wait_emptied(self) -> None:
        """Until there is more room, or the stream has ended."""
        await self._emptied.wait()

    @property
    def is_idle(self) -> bool:
        return not self.outbox and self.sending_since is None


class Gossip:
    """A node's place in the gossip of its subnet."""

    def __init__(
        self,
        net: Network,
        identity: PeerKey,
        *,
        is_member: Callable[[PeerID], bool],
        clock: Clock,
        rng: random.Random,
        rules: Sequence[TopicRule] = (),
        peers: Callable[[], Sequence[PeerID]] = lambda: (),
        config: GossipConfig | None = None,
    ) -> None:
        """`is_member` says who may publish and be a neighbour, from what is known now; `peers` names members worth
        dialling when there are too few neighbours (`net` must know their addresses)."""
        self.config = config or GossipConfig()
        self._net = net
        self._identity = identity
        self._is_member = is_member
        self._clock = clock
        self._rng = rng
        self._peers = peers
        self._judge = Judge((), is_member=is_member, max_owners=self.config.max_owners)
        self._router = Router(
            identity.peer_id,
            judge=self._judged,
            has_rule=lambda topic: self._judge.rule(topic) is not None,
            is_member=is_member,
            rng=random.Random(rng.random()),
            config=self.config.router,
        )
        self._delay = _Delay(self.config, random.Random(rng.random()))
        self._rates: dict[str, TokenBucket] = {}
        self._links: dict[PeerID, _Link] = {}
        self._inbound: dict[PeerID, trio.CancelScope] = {}
        self._failures: dict[PeerID, tuple[int, float]] = {}
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._counts: Counter[str] = Counter()
        self._last_seq = 0
        self._nursery: trio.Nursery | None = None
        for rule in rules:
            self.add_rule(rule)

    # --- for users ----------------------------------------------------------------------------------------------------

    def add_rule(self, rule: TopicRule) -> None:
        """Take one more topic. Raises ConfigError when it has a rule, or when there are too many."""
        if len(self._rates) >= _MAX_TOPICS:
            raise ConfigError(f"more than {_MAX_TOPICS} topics")
        self._judge.add(rule)
        self._rates[rule.topic] = TokenBucket(rate_per_s=rule.max_per_s, burst=rule.burst)
        # A message may be as far in the future as the skew allows, and is acceptable until it is max_age_s old.
        self._router.remember_for(rule.max_age_s + MAX_SKEW_S + self.config.router.heartbeat_s)

    async def publish(self, topic: str, value: BaseModel) -> PublishReport:
        """Sign a message and send it to the neighbours; our own subscribers do not get it.

        Raises LocalProtocolError when the topic has no rule, or the value is of another type or too large for it, and
        PublishFailed when our rate is used up or every neighbour's outbox stayed full for `publish_wait_s`. Returning
        means accepted, not delivered (see `flush`). Cancelled while it waits: some neighbours have it.
        """
        rule = self._judge.rule(topic)
        if rule is None:
            raise LocalProtocolError(f"topic {topic} has no rule")
        if not isinstance(value, rule.schema):
            raise LocalProtocolError(f"topic {topic} carries {rule.schema.__name__}, not {type(value).__name__}")
        data = pack(value)
        if len(data) > rule.max_bytes:
            raise LocalProtocolError(f"{len(data)} bytes on topic {topic}, which takes {rule.max_bytes}")
        now = trio.current_time()
        if not self._rates[topic].take(now):
            raise PublishFailed(f"topic {topic} takes {rule.max_per_s:g} messages a second of one node: wait")
        self._last_seq = max(self._last_seq + 1, int(self._clock.now() * 1e9))
        sends = self._router.publish(sign(self._identity, topic, data, self._last_seq), now)
        self._counts["published"] += 1
        full = [send for send in sends if not self._put(send)]
        if full:
            full = await self._wait_for_room(full)
            if len(full) == len(sends):
                raise PublishFailed(f"{len(full)} neighbours took no message for {self.config.publish_wait_s:g} s")
        await trio.lowlevel.checkpoint()
        return PublishReport(len(sends) - len(full), tuple(send.peer for send in full))

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[Subscription]:
        """The messages of a topic from now on, and what neighbours still remember of it.

        Raises LocalProtocolError when the topic has no rule or too many subscribers.
        """
        if self._judge.rule(topic) is None:
            raise LocalProtocolError(f"topic {topic} has no rule")
        subscription = Subscription(topic, self.config.max_unread)
        ours = self._subscriptions.setdefault(topic, [])
        if len(ours) >= self.config.max_subscribers:
            raise LocalProtocolError(f"topic {topic} has {len(ours)} subscribers already")
        ours.append(subscription)
        if len(ours) == 1:
            self._perform(self._router.subscribe(topic, trio.current_time()))
        try:
            yield subscription
        finally:
            ours.remove(subscription)
            if not ours:
                self._perform(self._router.unsubscribe(topic, trio.current_time()))

    async def flush(self) -> None:
        """Until every neighbour with an open stream was sent what waits for it now or comes meanwhile. Give it a
        deadline: a neighbour may not read."""
        for link in tuple(self._links.values()):
            while link.is_open and not link.is_idle and self._links.get(link.peer) is link:
                await link.wait_emptied()
        await trio.lowlevel.checkpoint()

    def neighbours(self) -> tuple[PeerID, ...]:
        """Members we have an open stream to, in the order of meeting them."""
        return tuple(peer for peer, link in self._links.items() if link.is_open)

    def subscribers(self, topic: str) -> tuple[PeerID, ...]:
        """Neighbours that subscribe to a topic."""
        return self._router.subscribers(topic)

    def mesh(self, topic: str) -> tuple[PeerID, ...]:
        """Our mesh of a topic."""
        return self._router.mesh(topic)

    def score(self, peer: PeerID) -> float:
        """0, or less for a neighbour that broke rules."""
        return self._router.score(peer)

    @property
    def counts(self) -> Mapping[str, int]:
        """How often what happened, for people: published, delivered, received, unread, dropped, and reasons of
        refusals."""
        dropped = sum(link.outbox.dropped for link in self._links.values())
        return MappingProxyType({**self._counts, "dropped": self._counts["dropped"] + dropped})

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gossip until cancelled; the network must be running. What waits to be sent is lost then: `flush` before."""
        self._net.serve(PROTOCOL, self._serve, max_streams=2 * self.config.max_links)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._beat)
                nursery.start_soon(self._watch)
                task_status.started()
        finally:
            self._nursery = None

    # --- time ---------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        period_s = self.config.router.heartbeat_s
        at = trio.current_time() + period_s * self._rng.random()  # nodes started together do not beat together
        while True:
            await trio.sleep_until(at)
            now = trio.current_time()
            self._perform(self._router.heartbeat(now))
            self._leave_slow(now)
            at = max(at + period_s, now)

    async def _watch(self) -> None:
        """Looks for neighbours among the connected, and for connections where neighbours are too few."""
        while True:
            now = trio.current_time()
            for peer in self._net.connected():
                if self._may_link(peer, now):
                    self._link(peer)
            if len(self._links) < self.config.router.d_lo and self.config.max_dials:
                known = dict.fromkeys(p for p in self._peers() if p != self._identity.peer_id)
                wanted = [peer for peer in known if self._may_link(peer, now)]
                missing = min(self.config.router.d - len(self._links), self.config.max_dials, len(wanted))
                for peer in self._rng.sample(wanted, missing):
                    self._link(peer)
            for peer in (*self._links, *self._inbound):
                if not self._is_member(peer):
                    self._part(peer)
            await trio.sleep(self.config.poll_s)

    def _may_link(self, peer: PeerID, now: float) -> bool:
        return (
            peer not in self._links
            and len(self._links) < self.config.max_links
            and self._failures.get(peer, (0, now))[1] <= now
            and self._is_member(peer)
            and not self._router.is_graylisted(peer)
        )

    def _part(self, peer: PeerID) -> None:
        """Have no streams with a peer."""
        if peer in self._links:
            self._links[peer].scope.cancel()
        if peer in self._inbound:
            self._inbound[peer].cancel()

    # --- streams out --------------------------------------------------------------------------------------------------

    def _link(self, peer: PeerID) -> None:
        if self._nursery is None:
            return
        link = self._links[peer] = _Link(peer, self.config)
        self._perform(self._router.stream_out(peer))
        self._nursery.start_soon(self._run_link, link)

    async def _run_link(self, link: _Link) -> None:
        try:
            with link.scope:
                stream = await self._net.open(link.peer, PROTOCOL)
                link.is_open = True
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_ended, stream, nursery.cancel_scope)
                    nursery.start_soon(self._pump, link, stream, nursery.cancel_scope)
        except NetworkError as error:
            log.debug("no gossip with %s: %s", link.peer.short, error)
        finally:
            del self._links[link.peer]
            self._counts["dropped"] += link.outbox.dropped
            link.emptied()
            self._failed(link)
            self._router.stream_out_ended(link.peer)

    def _failed(self, link: _Link) -> None:
        """Wait longer each time before a peer that speaks no gossip is tried again."""
        times, _ = self._failures.pop(link.peer, (0, 0.0))
        times = 1 if link.is_open else times + 1
        wait_s = min(self.config.retry_max_s, self.config.retry_s * 2 ** min(times - 1, 10))
        self._failures[link.peer] = (times, trio.current_time() + wait_s)
        while len(self._failures) > 2 * self.config.max_links:
            del self._failures[next(iter(self._failures))]

    async def _until_ended(self, stream: Stream, scope: trio.CancelScope) -> None:
        """Nothing comes on a stream of ours but its end."""
        try:
            await stream.receive_some(1)
        except NetworkError:
            pass
        scope.cancel()

    async def _pump(self, link: _Link, stream: Stream, scope: trio.CancelScope) -> None:
        try:
            while True:
                rpc = await link.take(self.config.batch_bytes, self._delay)
                link.sending_since = trio.current_time()  # the heartbeat ends what takes too long
                await stream.send_all(frame(rpc))
                link.sending_since = None
                link.emptied()
        except NetworkError as error:
            log.debug("gossip to %s ended: %s", link.peer.short, error)
        finally:
            await (stream.aclose() if link.sending_since is None else stream.reset())
        scope.cancel()

    def _leave_slow(self, now: float) -> None:
        for link in self._links.values():
            if link.sending_since is not None and now - link.sending_since > self.config.send_timeout_s:
                log.info("%s read no gossip for %g s: left", link.peer.short, self.config.send_timeout_s)
                link.scope.cancel()

    def _put(self, send: Send) -> bool:
        link = self._links.get(send.peer)
        if link is None:
            return False
        is_taken = link.put(send.rpc, send.priority)
        if not is_taken and send.priority is Priority.CONTROL:
            link.scope.cancel()  # it has not read for long, and would hold wrong beliefs about us
        return is_taken

    async def _wait_for_room(self, full: list[Send]) -> list[Send]:
        """Those for which there was none until the time was over."""
        left: list[Send] = []
        deadline = trio.current_time() + self.config.publish_wait_s
        for send in full:
            with trio.CancelScope(deadline=deadline) as scope:
                while (link := self._links.get(send.peer)) is not None and not self._put(send):
                    await link.wait_emptied()
            if scope.cancelled_caught or link is None:
                left.append(send)
        return left

    # --- streams in ---------------------------------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        """Reads what a neighbour sends. Only members are neighbours; the newest stream of each is read."""
        peer = stream.remote
        if self._nursery is None:
            raise StreamBroken("gossip is not running")
        if not self._is_member(peer):
            self._counts["strangers"] += 1
            raise NotAuthorized("not-registered", f"gossip is for members, and {peer} is none")
        if self._router.is_graylisted(peer):
            raise NotAuthorized("rate-limited", f"{peer} has broken too many rules of gossip")
        if peer in self._inbound:
            self._inbound[peer].cancel()
        scope = self._inbound[peer] = trio.CancelScope()
        self._router.stream_in(peer)
        self._failures.pop(peer, None)  # it speaks gossip now, whatever was before
        if self._may_link(peer, trio.current_time()):
            self._link(peer)
        try:
            with scope:
                await self._read(peer, stream)
        except RemoteProtocolError as error:
            log.debug("gossip from %s: %s", peer.short, error)
            self._counts["malformed"] += 1
            self._router.blame(peer, Fault.MALFORMED)
            raise
        finally:
            if self._inbound.get(peer) is scope:
                del self._inbound[peer]
                self._router.stream_in_ended(peer)

    async def _read(self, peer: PeerID, stream: Stream) -> None:
        frames = FrameReader(self.config.max_rpc_bytes)
        since_pause = 0
        while data := await stream.receive_some():
            for body in frames.feed(data):
                rpc = decode(body)
                for raw in rpc.publish:
                    self._counts["received"] += 1
                    if peer in self._links:
                        self._links[peer].outbox.discard(raw.id)
                    self._perform(self._router.on_message(peer, raw, trio.current_time()))
                    since_pause = await _pause(since_pause + 1)
                # After the messages: what the same RPC offers may have come with it.
                self._perform(self._router.on_control(peer, rpc, trio.current_time()))
                if self._router.is_graylisted(peer):
                    log.info("%s has broken too many rules of gossip: not listened to for a while", peer.short)
                    self._part(peer)
                since_pause = await _pause(since_pause + 1)

    def _judged(self, via: PeerID, raw: RawMessage) -> Judgement:
        judgement = self._judge.judge(via, raw, now=trio.current_time(), wall_s=self._clock.now())
        if judgement.verdict is not Verdict.ACCEPT:
            self._counts[judgement.reason] += 1
        return judgement

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._put(action)
                continue
            message = action.message
            self._counts["delivered"] += 1
            for subscription in self._subscriptions.get(message.topic, ()):
                before = subscription.dropped
                subscription._put(message)
                self._counts["unread"] += subscription.dropped - before


async def _pause(count: int) -> int:
    """Let other tasks have their turn after so many messages and RPCs; the count from here on."""
    if count < _BETWEEN_PAUSES:
        return count
    await trio.lowlevel.checkpoint()
    return 0
