"""Joining: bootnodes and cached peers are asked, then we look for ourselves so that those near us hear of us. Tried
for ever: a node that knows nobody backs off, and one that knows some asks missing bootnodes and a peer by chance now
and then, which is how the halves of a partition come together once any bootnode is reached (mesh.kad.rejoin)."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import trio

from mesh.dht.config import DhtConfig
from mesh.dht.peers import Peers
from mesh.dht.state import DhtState
from mesh.errors import MeshError
from mesh.kad.key import key_bytes, key_of_peer
from mesh.kad.rejoin import strangers_near, whom_to_ask
from mesh.kad.schedule import spread
from mesh.kad.wire import Query
from mesh.peer import PeerID, PeerInfo

log = logging.getLogger(__name__)


class Joiner:
    """Keeps a node in its network."""

    def __init__(
        self, peers: Peers, state: DhtState, bootstrap: Sequence[PeerInfo], *, config: DhtConfig, rng: random.Random
    ) -> None:
        self._peers = peers
        self._state = state
        self._bootstrap = tuple(info for info in bootstrap if info.peer_id != peers.local)
        self._config = config
        self._rng = rng
        self._self_query = (Query(target=key_bytes(key_of_peer(peers.local))),)

    async def join(self) -> None:
        """One attempt: ask whom we do not have, and one peer that we have, who is near us, all at once; then look for
        ourselves where that is news (mesh.kad.rejoin)."""
        table = self._peers.table
        knew_nobody = len(table) == 0
        asked = whom_to_ask(table, self._seeds(), rng=self._rng)
        strangers: dict[PeerID, PeerInfo] = {}
        async with trio.open_nursery() as nursery:
            for info in asked:
                nursery.start_soon(self._knock, info, strangers)
        if (knew_nobody and len(table)) or strangers:
            await self._look_for_ourselves(tuple(strangers.values()))
            log.info("joined: %d peers in the table", len(table))

    async def meet(self, info: PeerInfo) -> None:
        """See DHT.meet."""
        if info.peer_id == self._peers.local or info.peer_id in self._peers.table:
            return
        knew_nobody = len(self._peers.table) == 0
        await self._peers.ask_find(info, self._self_query)
        if knew_nobody and len(self._peers.table):
            await self._look_for_ourselves()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Join, and join again, until cancelled; started() after the first attempt, whatever came of it."""
        with trio.move_on_after(self._config.bootstrap_timeout_s):
            await self.join()
        task_status.started()
        pause_s = self._config.retry_min_s
        while True:
            if len(self._peers.table) > 0 or not (self._bootstrap or self._state.peers):
                pause_s = self._config.retry_min_s
                self._state.remember(self._peers.table)
                await trio.sleep(spread(self._config.rejoin_s, self._rng))
            else:
                known = len({info.peer_id for info in (*self._bootstrap, *self._state.peers)})
                log.warning("none of %d known peers answers; trying again in %.1f s", known, pause_s)
                await trio.sleep(spread(pause_s, self._rng))
                pause_s = min(self._config.retry_max_s, pause_s * 2)
            await self.join()

    def _seeds(self) -> list[PeerInfo]:
        """Bootnodes and a bucketful of cached peers. Where we were told that somebody is comes before where he was."""
        cached = [info for info in self._state.peers if info.peer_id not in self._peers.table]
        seeds: dict[PeerID, PeerInfo] = {}
        for info in (*self._bootstrap, *cached[: self._config.routing.bucket_size]):
            told = seeds.get(info.peer_id, PeerInfo(info.peer_id))
            seeds[info.peer_id] = PeerInfo(info.peer_id, tuple(dict.fromkeys((*told.addrs, *info.addrs))))
        return list(seeds.values())

    async def _knock(self, info: PeerInfo, strangers: dict[PeerID, PeerInfo]) -> None:
        """Ask a peer who is near us; those it names that we should know and do not are added to `strangers`."""
        try:
            (answer,) = await self._peers.ask_find(info, self._self_query)
        except MeshError as error:
            log.info("cannot join through %s: %s", info.peer_id, error)
            return
        near = self._config.routing.bucket_size
        for stranger in strangers_near(self._peers.table, self._peers.local, answer.closer, near=near):
            strangers.setdefault(stranger.peer_id, stranger)

    async def _look_for_ourselves(self, seeds: Sequence[PeerInfo] = ()) -> None:
        place = key_of_peer(self._peers.local)
        await self._peers.find(place, k=self._config.routing.bucket_size, seeds=seeds)
