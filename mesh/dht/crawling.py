"""Crawling: ask every node there is whom it knows, to see the network as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from mesh.dht.peers import Peers
from mesh.errors import MeshError, NotAuthorized
from mesh.kad.key import KEY_BITS, Key, key_bytes, key_of_peer
from mesh.kad.wire import Query, Role
from mesh.peer import PeerID, PeerInfo

_DEPTH: Final = 16
"""Buckets of a node that are asked for: with k = 20 as many as networks of a million nodes fill."""


@dataclass(frozen=True, slots=True)
class Crawled:
    """One node that answered."""

    info: PeerInfo
    role: Role
    rtt_s: float
    knows: tuple[PeerID, ...]
    """Whom it named, sorted."""


@dataclass(frozen=True, slots=True)
class CrawlReport:
    """The network as it answered. `unreachable`: peers that others named and that did not answer, with the reason.
    `is_complete`: nobody was left out for the bound on peers or time."""

    nodes: Mapping[PeerID, Crawled]
    unreachable: Mapping[PeerID, str]
    is_complete: bool


async def crawl(peers: Peers, *, max_peers: int, parallel: int, timeout_s: float) -> CrawlReport:
    """See DHT.crawl."""
    known: dict[PeerID, PeerInfo] = {}
    todo: deque[PeerInfo] = deque()
    nodes: dict[PeerID, Crawled] = {}
    unreachable: dict[PeerID, str] = {}
    left_out = is_done = False
    running = 0
    news = trio.Event()

    def note(infos: Iterable[PeerInfo]) -> None:
        nonlocal left_out
        for info in infos:
            if info.peer_id in known or info.peer_id == peers.local:
                continue
            if len(known) >= max_peers:
                left_out = True
                continue
            known[info.peer_id] = info
            todo.append(info)

    async def visit(info: PeerInfo) -> None:
        nonlocal running
        try:
            if not await peers.may_be_asked(info.peer_id):
                raise NotAuthorized("not-registered", f"{info.peer_id} is no member, or misbehaved: not asked")
            began = trio.current_time()
            answers = await peers.ask_find(info, _questions(key_of_peer(info.peer_id)))
        except MeshError as error:
            unreachable[info.peer_id] = str(error)
        else:
            named = {peer.peer_id: peer for answer in answers for peer in answer.closer}
            rtt_s = trio.current_time() - began
            nodes[info.peer_id] = Crawled(info, answers[0].role, rtt_s, tuple(sorted(named)))
            note(named[peer_id] for peer_id in sorted(named))
        running -= 1
        news.set()

    note(peers.table)
    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            while todo or running:
                while todo and running < parallel:
                    running += 1
                    nursery.start_soon(visit, todo.popleft())
                news = trio.Event()
                await news.wait()
        is_done = True
    for peer_id in known:
        if peer_id not in nodes and peer_id not in unreachable:
            unreachable[peer_id] = "no answer: out of time"
    return CrawlReport(nodes, unreachable, is_done and not left_out)


def _questions(place: Key) -> Sequence[Query]:
    """Who is near the node, and near a place in each of its buckets."""
    targets = [place, *(Key(place ^ (1 << (KEY_BITS - 1 - index))) for index in range(_DEPTH))]
    return tuple(Query(target=key_bytes(target)) for target in targets)
