"""Providers: who has the thing that a key names. Unlike a record it is not signed and does not say what the thing is:
a peer says it of itself over its own connection, and it is forgotten unless said again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from mesh.dht.config import DhtConfig
from mesh.dht.peers import Peers
from mesh.dht.servicer import STORED
from mesh.errors import LocalProtocolError
from mesh.kad.key import key_of
from mesh.kad.lookup import Counts, Lookup
from mesh.kad.providers import ProviderStore
from mesh.kad.record import MAX_KEY_BYTES
from mesh.kad.wire import Query, Role
from mesh.peer import PeerID, PeerInfo


class Providing:
    """What we provide, and how providers are found. `run` it: what we provide is said again then."""

    def __init__(self, peers: Peers, providers: ProviderStore, *, config: DhtConfig) -> None:
        self._peers = peers
        self._providers = providers
        self._config = config
        self._own: dict[bytes, _Own] = {}

    async def provide(self, key: bytes, is_there: Callable[[], bool] | None = None) -> tuple[PeerID, ...]:
        """See DHT.provide."""
        if not 0 < len(key) <= MAX_KEY_BYTES:
            raise LocalProtocolError(f"a provider key of {len(key)} bytes; 1 to {MAX_KEY_BYTES} are accepted")
        if key not in self._own and len(self._own) >= self._config.max_provided:
            raise LocalProtocolError(f"{len(self._own)} keys are provided already: the most that max_provided allows")
        self._own[key] = _Own(trio.current_time(), is_there)
        told: list[PeerID] = []

        async def ask(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            (judged,) = await self._peers.ask_provide(info, (key,), want=self._config.replicas)
            if judged.verdict == STORED:
                told.append(info.peer_id)
            return judged.closer, Counts.YES if judged.verdict == STORED else Counts.ROUTES_ONLY

        replicas = self._config.replicas
        await self._peers.drive(self._peers.lookup(key_of(key), k=replicas, alpha=replicas), ask, kind="provide")
        return tuple(told)

    def withdraw(self, key: bytes) -> None:
        """See DHT.withdraw."""
        self._own.pop(key, None)

    async def find(self, key: bytes, *, want: int) -> tuple[PeerInfo, ...]:
        """See DHT.find_providers."""
        now = trio.current_time()
        found = {info.peer_id: info for info in self._providers.get(key, now=now)}
        if key in self._own:
            found[self._peers.local] = self._peers.here

        async def ask(info: PeerInfo) -> tuple[Sequence[PeerInfo], Counts]:
            (answer,) = await self._peers.ask_find(info, (Query(provided=key, want=self._config.read_width),))
            for provider in answer.providers:
                if provider.peer_id not in found and await self._peers.may_be_asked(provider.peer_id):
                    found[provider.peer_id] = provider
            return answer.closer, Counts.YES if answer.role is Role.SERVER else Counts.ROUTES_ONLY

        def is_enough(lookup: Lookup) -> bool:
            return len(found) >= want

        if len(found) < want:
            width = self._config.read_width
            lookup = self._peers.lookup(key_of(key), k=width, alpha=width, stop_when=is_enough)
            await self._peers.drive(lookup, ask, kind="find_providers")
        for info in found.values():
            if info.addrs and info.peer_id != self._peers.local:
                self._peers.rpc.net.learn(info)
        return tuple(found[peer] for peer in sorted(found))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say again what we provide, and forget what others do not, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._config.provide_s / 10)
            now = trio.current_time()
            self._providers.expire(now)
            for key, own in tuple(self._own.items()):
                if own.is_there is not None and not own.is_there():
                    self._own.pop(key, None)
                elif key in self._own and now - own.told_at >= self._config.provide_s:
                    await self.provide(key, own.is_there)


@dataclass(frozen=True, slots=True)
class _Own:
    told_at: float
    is_there: Callable[[], bool] | None
