"""Nodes of a World that break the DHT's rules, each a function of an honest reply: a liar is never an `if` in the
product. What they do not do is answer for others: who answers is proven by the connection's handshake."""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Sequence
from typing import Final

from mesh.kad.key import key_of_peer
from mesh.kad.record import Record, Slot
from mesh.peer import PeerID, PeerInfo
from mesh.testing.world import Adversary, Message, Reply, WorldNode

_ED25519_ID: Final = bytes.fromhex("002408011220")
"""Identity multihash of an Ed25519 public key in its protobuf, before the key."""


def wrong_peers(accomplices: Sequence[PeerInfo]) -> Adversary:
    """Holds nothing and names only its own kind, the closest first."""
    placed = [(key_of_peer(info.peer_id), info) for info in accomplices]

    def lie(node: WorldNode, message: Message, reply: Reply) -> Reply:
        near = heapq.nsmallest(20, placed, key=lambda one: one[0] ^ message.target)
        return Reply(tuple(info for _, info in near))

    return lie


def invented_peers(count: int, *, rng: random.Random) -> list[PeerInfo]:
    """Well-formed ids that nobody has. A liar that names those of them closest to what it is asked about keeps others
    waiting in vain: `wrong_peers(invented_peers(…))`. The more it made beforehand, the closer they lie."""
    return [PeerInfo(PeerID(_ED25519_ID + rng.randbytes(32))) for _ in range(count)]


def silent_on_everything() -> Adversary:
    """Answers, and says nothing."""

    def lie(node: WorldNode, message: Message, reply: Reply) -> Reply:
        return Reply()

    return lie


def drops_stores() -> Adversary:
    """Says that it stored and forgets at once."""

    def lie(node: WorldNode, message: Message, reply: Reply) -> Reply:
        if message.record is not None:
            node.store.drop(message.record.slot)
            return Reply(reply.closer)
        return dataclasses.replace(reply, records=(), wanted=())

    return lie


def forges() -> Adversary:
    """Returns records of real owners with another value, newer than any, under a signature that is none."""

    def lie(node: WorldNode, message: Message, reply: Reply) -> Reply:
        if message.key is None:
            return reply
        forged = [
            dataclasses.replace(record, value=b"forged", seq=record.seq + 1, signature=bytes(64))
            for record in reply.records
        ]
        return dataclasses.replace(reply, records=tuple(forged))

    return lie


def stale() -> Adversary:
    """Never takes a newer record, and so returns the oldest it ever saw."""
    kept: dict[tuple[int, Slot], Record] = {}

    def lie(node: WorldNode, message: Message, reply: Reply) -> Reply:
        for record in node.store:
            kept.setdefault((node.index, record.slot), record)
        if message.key is None:
            return reply
        old = tuple(kept[node.index, record.slot] for record in reply.records)
        return dataclasses.replace(reply, records=old)

    return lie
