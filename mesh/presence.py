"""Presence: who of the subnet is there. Each node says JOINING, then ONLINE every few seconds, and OFFLINE as it stops.

A state is a signed gossip message; the later message of a node wins, whatever order they come in, so OFFLINE is not
undone by an ONLINE that was late. A node of which nothing is heard for `expire_s` is forgotten: it crashed, or cannot
be reached. States are what members say of themselves: good for choosing whom to ask, not for paying.
"""

from __future__ import annotations

import enum
import logging
import random
from dataclasses import dataclass
from typing import Final

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import NetworkError
from mesh.gossip import Gossip, Message, TopicRule
from mesh.peer import PeerID

log = logging.getLogger(__name__)

MAX_AGE_S: Final = 30.0
"""What a state may take to arrive; `expire_s` is longer, so that nothing forgotten comes back."""


class NodeState(enum.StrEnum):
    """Where a node is in its life."""

    JOINING = "joining"
    """Running, not ready to work."""
    ONLINE = "online"
    OFFLINE = "offline"
    """Stopped in good order."""


class Beat(BaseModel):
    """What a node says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: NodeState


class PresenceConfig(BaseModel):
    """Times and bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval_s: float = Field(default=10.0, ge=1.0, description="between two beats, 10 % more or less")
    expire_s: float = Field(default=45.0, gt=MAX_AGE_S, description="after which a silent node is forgotten")
    farewell_s: float = Field(default=1.0, gt=0, le=10, description="what publishing OFFLINE may take at shutdown")
    max_peers: int = Field(default=4096, ge=1, description="nodes whose state is kept; who was silent longest leaves")


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a node last said of itself, and when by its own clock (unix seconds)."""

    state: NodeState
    said_at: float


@dataclass(frozen=True, slots=True)
class _Entry:
    known: PeerState
    seq: int
    heard_at: float


def presence_topic(subnet_id: int, genesis: bytes) -> str:
    """The topic of a subnet; the chain's genesis hash is in it, so that a signature means one network only."""
    return f"/mesh/presence/1/{genesis[:8].hex()}/{subnet_id}"


def presence_rule(topic: str) -> TopicRule:
    """What is taken: small, and no more than one a second."""
    return TopicRule(topic, Beat, max_bytes=64, max_per_s=1.0, burst=5.0, max_age_s=MAX_AGE_S)


class Presence:
    """Says our state and remembers that of others."""

    def __init__(self, gossip: Gossip, topic: str, *, rng: random.Random, config: PresenceConfig | None = None) -> None:
        """`gossip` must have the topic's rule (`presence_rule`)."""
        self.config = config or PresenceConfig()
        self._gossip = gossip
        self._topic = topic
        self._rng = rng
        self._state = NodeState.JOINING
        self._turned = trio.Event()
        self._entries: dict[PeerID, _Entry] = {}
        self._changed = trio.Event()

    @property
    def state(self) -> NodeState:
        """Our own."""
        return self._state

    def go_online(self) -> None:
        """We are ready: others hear it at once. Once; later calls change nothing."""
        if self._state is NodeState.JOINING:
            self._state = NodeState.ONLINE
            self._turned.set()

    def states(self) -> dict[PeerID, PeerState]:
        """The others of whom something was heard in the last `expire_s`, in the order of having heard them first."""
        self._expire()
        return {peer: entry.known for peer, entry in self._entries.items()}

    def online(self) -> tuple[PeerID, ...]:
        """The others that said ONLINE last."""
        return tuple(peer for peer, known in self.states().items() if known.state is NodeState.ONLINE)

    async def wait_for(self, peer: PeerID, state: NodeState) -> None:
        """Until this is what the peer said last. Give it a deadline: a node that crashed says nothing, not OFFLINE."""
        self._expire()
        while (entry := self._entries.get(peer)) is None or entry.known.state is not state:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Beat and listen until cancelled; started() once JOINING is said.

        Cancelled, it says OFFLINE before it ends, within `farewell_s`: gossip and the network must still be running
        then, so whoever owns them stops them after this.
        """
        async with self._gossip.subscribe(self._topic) as messages:
            try:
                await self._say(NodeState.JOINING)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._beat)
                    task_status.started()
                    async for message in messages:
                        self._hear(message)
            finally:
                self._state = NodeState.OFFLINE
                with trio.CancelScope(shield=True, deadline=trio.current_time() + self.config.farewell_s):
                    await self._say(NodeState.OFFLINE)
                    await self._gossip.flush()

    async def _beat(self) -> None:
        while True:
            pause_s = self.config.interval_s * self._rng.uniform(0.9, 1.1)
            if self._state is NodeState.JOINING:
                with trio.move_on_after(pause_s):
                    await self._turned.wait()
            else:
                await trio.sleep(pause_s)
            await self._say(self._state)

    async def _say(self, state: NodeState) -> None:
        try:
            await self._gossip.publish(self._topic, Beat(state=state))
        except NetworkError as error:
            log.info("presence not said: %s", error)

    def _hear(self, message: Message) -> None:
        assert isinstance(message.value, Beat)
        old = self._entries.get(message.owner)
        if old is not None and message.seq <= old.seq:
            return
        self._entries[message.owner] = _Entry(
            PeerState(message.value.state, message.sent_at), message.seq, trio.current_time()
        )
        self._expire()
        if len(self._entries) > self.config.max_peers:
            del self._entries[min(self._entries, key=lambda peer: self._entries[peer].heard_at)]
        self._changed.set()
        self._changed = trio.Event()

    def _expire(self) -> None:
        before = trio.current_time() - self.config.expire_s
        self._entries = {peer: entry for peer, entry in self._entries.items() if entry.heard_at > before}
