"""Nodes that break the rules, as objects of their own: a liar is never an `if` in the product.

Subnets that lie are made from honest subnets; DHT nodes that lie answer in the place of honest ones
(`World.adversaries`). They run against honest nodes, and must lose.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any, Final

from mesh.kad.key import KEY_BITS, Key, key_of_peer
from mesh.kad.record import Record, Slot
from mesh.kad.wire import MAX_CLOSER
from mesh.peer import PeerID, PeerInfo
from mesh.testing.world import Honest, Message, Reply, WorldNode

OVERCLAIM_PPM: Final = 180_000
MAX_MEASURED_PPM: Final = 835_000
"""What it prefers to lie about: a candidate poor enough for the whole overclaim to stay below 100 %, or nearly."""
MIN_OVERCLAIM_PPM: Final = 100_000
_MILLION: Final = 1_000_000


def overclaim(found: Sequence[Any]) -> Any:
    """States a poor candidate as OVERCLAIM_PPM better than it measured (at most 100 %).

    `found` are the subnet's measured candidates, best first, with a field `ppm`. It takes the best one of at most
    MAX_MEASURED_PPM, or else the worst there is; None when even that leaves no room for MIN_OVERCLAIM_PPM.
    """
    poor = next((one for one in found if one.ppm <= MAX_MEASURED_PPM), found[-1] if found else None)
    if poor is None or poor.ppm + MIN_OVERCLAIM_PPM > _MILLION:
        return None
    return dataclasses.replace(poor, ppm=min(poor.ppm + OVERCLAIM_PPM, _MILLION))


def overclaiming(subnet: Any) -> Any:
    """The same subnet, honest in everything but its claims; its name ends in `-liar`.

    `subnet` is a dataclass instance with the fields `name` and `restate`, which makes the claim from what was found
    (see `overclaim`).
    """
    return dataclasses.replace(subnet, name=f"{subnet.name}-liar", restate=overclaim)


# --- DHT nodes ----------------------------------------------------------------------------------------------


def invented_peers(count: int, *, rng: random.Random) -> list[PeerInfo]:
    """Well-formed ids that nobody has: who asks them waits in vain."""
    return [PeerInfo(PeerID(b"\0\x24\x08\x01\x12\x20" + rng.randbytes(32))) for _ in range(count)]


def ground_peers(count: int, near: Key, *, bits: int, rng: random.Random) -> list[PeerID]:
    """Ids that share at least `bits` leading bits with a key; 2**bits hashes each."""
    found: list[PeerID] = []
    while len(found) < count:
        peer = PeerID(b"\0\x24\x08\x01\x12\x20" + rng.randbytes(32))
        if key_of_peer(peer) ^ near < 1 << (KEY_BITS - bits):
            found.append(peer)
    return found


class WrongPeers:
    """Names of its own pool whom is closest, whatever it is asked, and no records: a pool of accomplices leads lookups
    in circles, one of invented peers into timeouts."""

    def __init__(self, pool: Sequence[PeerInfo]) -> None:
        self._pool = [(key_of_peer(info.peer_id), info) for info in pool]

    def __call__(self, node: WorldNode, message: Message, honest: Honest) -> Reply:
        """Its answer."""
        reply = honest(message)
        nearest = sorted(self._pool, key=lambda one: one[0] ^ message.target)[:MAX_CLOSER]
        return dataclasses.replace(reply, closer=tuple(info for _, info in nearest), records=())


class DropsStores:
    """Says that it holds whatever it is given, and holds nothing."""

    def __call__(self, node: WorldNode, message: Message, honest: Honest) -> Reply:
        """Its answer."""
        reply = honest(dataclasses.replace(message, records=(), names=()))
        return dataclasses.replace(reply, records=(), verdicts=("",) * len(message.records), wanted=())


class Forger:
    """Answers with newer records of what it holds, whose signatures cannot be right; says nothing about others."""

    def __call__(self, node: WorldNode, message: Message, honest: Honest) -> Reply:
        """Its answer."""
        reply = honest(message)
        forged = (dataclasses.replace(record, value=b"forged", seq=record.seq + 1) for record in reply.records)
        return dataclasses.replace(reply, records=tuple(forged))


class Stale:
    """Keeps the first record of every slot, says that it took the newer ones, and offers the old one around."""

    def __init__(self) -> None:
        self._seen: set[Slot] = set()

    def __call__(self, node: WorldNode, message: Message, honest: Honest) -> Reply:
        """Its answer."""
        verdicts: list[str] = []
        reply = honest(dataclasses.replace(message, records=()))
        for record in message.records:
            if self._is_first(record):
                verdicts += honest(dataclasses.replace(message, records=(record,))).verdicts
            else:
                verdicts.append("")
        return dataclasses.replace(reply, verdicts=tuple(verdicts), wanted=())

    def _is_first(self, record: Record) -> bool:
        is_first = record.slot not in self._seen
        self._seen.add(record.slot)
        return is_first


class Sybil(WrongPeers):
    """One of many faces of one attacker: names only the others, holds nothing, says it does."""

    def __call__(self, node: WorldNode, message: Message, honest: Honest) -> Reply:
        """Its answer."""
        empty = dataclasses.replace(message, records=(), names=())
        reply = super().__call__(node, empty, honest)
        return dataclasses.replace(reply, verdicts=("",) * len(message.records))
