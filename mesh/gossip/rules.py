"""What a topic takes: rules, and the verdict on one message. PURE.

Checks run cheapest first and stop at the first refusal. REJECT is for what no honest neighbour passes on (it would have
refused it itself), IGNORE for what may be honest: two nodes need not agree on the time, on who is a member at this
moment, or on how much of somebody's rate is used up.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from mesh.errors import ConfigError, RemoteProtocolError
from mesh.gossip.wire import MAX_TOPIC_BYTES, SEQNO_BYTES, RawMessage, is_signed
from mesh.peer import PeerID
from mesh.ratelimit import Rate, RateLimiter
from mesh.rpc.body import unpack

MAX_SKEW_S: Final = 5.0
"""How far ahead of our clock a message may be; nodes further off the chain's time do not start (mesh.node)."""
MAX_MESSAGE_BYTES: Final = 64 * 1024
RECEIVER_SLACK: Final = 2.0
"""A publisher keeps to its rate; who receives allows this times as much, since messages that waited arrive together."""


@dataclass(frozen=True)
class TopicRule:
    """What may be published under a topic, and how much of it. Raises ConfigError when the numbers make no sense."""

    topic: str
    """On the wire as it is; at most 128 bytes. Name the subnet in it: signatures cover the topic."""
    schema: type[BaseModel]
    """Of the value, packed as mesh.rpc.body packs it. Use extra="forbid" and bounded fields."""
    max_bytes: int = 4096
    max_per_s: float = 1.0
    """Messages of one owner in the long run."""
    burst: float = 10.0
    """Messages of one owner at once."""
    max_age_s: float = 60.0
    """Since publishing, by our clock; older ones are not delivered: what is older than the seen cache could be a
    replay."""

    def __post_init__(self) -> None:
        if not 0 < len(self.topic.encode()) <= MAX_TOPIC_BYTES:
            raise ConfigError(f"topic {self.topic!r}: 1 to {MAX_TOPIC_BYTES} bytes of UTF-8")
        if not 0 < self.max_bytes <= MAX_MESSAGE_BYTES:
            raise ConfigError(f"topic {self.topic}: max_bytes is {self.max_bytes}, of 1 to {MAX_MESSAGE_BYTES}")
        if self.max_per_s <= 0 or self.burst < 1 or self.max_age_s <= 0:
            raise ConfigError(f"topic {self.topic}: max_per_s and max_age_s are above 0, burst is 1 or more")


class Verdict(enum.Enum):
    """What becomes of a message."""

    ACCEPT = enum.auto()
    """Delivered and passed on."""
    IGNORE = enum.auto()
    """Neither delivered nor passed on."""
    REJECT = enum.auto()
    """The same, and the neighbour it came from loses score."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as subscribers get it: signed by `owner`, a member, and of the topic's schema."""

    topic: str
    owner: PeerID
    value: BaseModel
    seq: int
    """Of two messages of one owner the one with the larger number was published later."""
    via: PeerID
    """The neighbour it came from."""

    @property
    def sent_at(self) -> float:
        """When it was published by its owner's clock, in seconds since the unix epoch."""
        return self.seq / 1e9


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its short stable reason, and the message when it was accepted."""

    verdict: Verdict
    reason: str = ""
    message: Message | None = None


class Judge:
    """Holds messages against the rules; remembers only how much of its rate each owner has used."""

    def __init__(
        self, rules: Iterable[TopicRule], *, is_member: Callable[[PeerID], bool], max_owners: int = 4096
    ) -> None:
        """Raises ConfigError when a topic has two rules."""
        self._is_member = is_member
        self._max_owners = max_owners
        self._rules: dict[str, TopicRule] = {}
        self._rates: dict[str, RateLimiter[PeerID]] = {}
        for rule in rules:
            self.add(rule)

    def add(self, rule: TopicRule) -> None:
        """Take one more topic. Raises ConfigError when it has a rule already."""
        if rule.topic in self._rules:
            raise ConfigError(f"topic {rule.topic} has two rules")
        self._rules[rule.topic] = rule
        rate = Rate(rule.max_per_s * RECEIVER_SLACK, rule.burst * RECEIVER_SLACK)
        self._rates[rule.topic] = RateLimiter(rate, max_keys=self._max_owners)

    def rule(self, topic: str) -> TopicRule | None:
        """The topic's rule, if it has one."""
        return self._rules.get(topic)

    @property
    def max_age_s(self) -> float:
        """The longest any rule allows."""
        return max((rule.max_age_s for rule in self._rules.values()), default=0.0)

    def judge(self, via: PeerID, raw: RawMessage, *, now: float, wall_s: float) -> Judgement:
        """The verdict on a message that `via` sent us. `now` is monotonic, `wall_s` unix time. Never raises."""
        rule = self._rules.get(raw.topic)
        if rule is None:
            return _reject("topic")
        if len(raw.data) > rule.max_bytes:
            return _reject("size")
        if len(raw.seqno) != SEQNO_BYTES:
            return _reject("seqno")
        age_s = wall_s - raw.seq / 1e9
        if age_s > rule.max_age_s:
            return _ignore("old")
        if age_s < -MAX_SKEW_S:
            return _ignore("future")
        try:
            owner = _owner(raw.source)
            if not self._is_member(owner):
                return _ignore("owner is no member")
            if not is_signed(raw):
                return _reject("signature")
            value = unpack(rule.schema, raw.data)
        except RemoteProtocolError:
            return _reject("malformed")
        # After the signature: otherwise anybody could use up somebody else's rate.
        if not self._rates[raw.topic].take(owner, now):
            return _ignore("rate")
        return Judgement(Verdict.ACCEPT, "", Message(raw.topic, owner, value, raw.seq, via))


@functools.lru_cache(maxsize=4096)
def _owner(source: bytes) -> PeerID:
    return PeerID(source)


def _reject(reason: str) -> Judgement:
    return Judgement(Verdict.REJECT, reason)


def _ignore(reason: str) -> Judgement:
    return Judgement(Verdict.IGNORE, reason)
