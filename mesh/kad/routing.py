"""The routing table: k-buckets split along the own path, with a replacement cache and ping-before-evict.

Kademlia §2.2 and §4.1. Bucket i holds peers that share exactly i leading bits with us; the last bucket holds
all that share at least that many, and splits when it is full. A peer that is there is never displaced by a
newcomer while it answers: the table asks its owner (by a returned `Ping`) to find out.

No address group (IPv4 /16, IPv6 /32) may hold more than its share of a bucket, so that renting one network does not
buy a bucket, nor of the table, which grinding peer ids near ours could make deeper and deeper. Loopback is exempt.
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from mesh.kad.key import KEY_BITS, Key, common_prefix_length, key_of_peer, random_key_sharing
from mesh.peer import Multiaddr, PeerID, PeerInfo


class RoutingConfig(BaseModel):
    """Bounds of a RoutingTable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket_size: int = Field(default=20, ge=1, description="k: peers per bucket")
    replacements: int = Field(default=20, ge=0, description="peers per bucket waiting for a place")
    max_per_ip_group: int | None = Field(
        default=10, ge=1, description="peers of one IPv4 /16 or IPv6 /32 per bucket; none: no limit"
    )
    max_per_ip_group_in_table: int | None = Field(
        default=100,
        ge=1,
        description="peers of one such group in all buckets; none: no limit. Subnets are often hosted in one or two "
        "data centres, whose nodes must all find each other: 100 are ten buckets' shares, and a network of 5,000 nodes "
        "in a single group has no more. What is beyond comes from ids ground to lie near ours, a bucket deeper each",
    )
    max_failures: int = Field(default=2, ge=1, description="failures in a row after which a peer is dropped")
    quiet_s: float = Field(
        default=30.0, ge=0, description="a peer heard of within this time is not pinged to make room"
    )


@dataclass(frozen=True, slots=True)
class Ping:
    """Please find out whether this peer still answers, then call `on_seen` or `on_failure`."""

    info: PeerInfo


@dataclass(slots=True)
class _Entry:
    info: PeerInfo
    key: Key
    group: str | None
    seen_at: float
    failures: int = 0
    pinging: bool = False


@dataclass(slots=True)
class _Bucket:
    # Both ordered by when a peer was last heard of, longest silent first.
    entries: OrderedDict[PeerID, _Entry] = field(default_factory=OrderedDict)
    waiting: OrderedDict[PeerID, _Entry] = field(default_factory=OrderedDict)
    groups: Counter[str | None] = field(default_factory=Counter)
    """Of the entries."""


class RoutingTable:
    """Peers near and far, of which at least one is closer to any key than we are. Not thread-safe; `now` is
    any monotonic clock in seconds."""

    def __init__(
        self,
        local: Key,
        *,
        config: RoutingConfig | None = None,
        place: Callable[[PeerID], Key] = key_of_peer,
        bits: int = KEY_BITS,
    ) -> None:
        """`place` maps a peer to its key; with `bits` = 8 tests lay tables out by hand."""
        self._local = local
        self._config = config or RoutingConfig()
        self._place = place
        self._bits = bits
        self._buckets = [_Bucket()]
        self._groups = Counter[str | None]()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self._bucket(self._place(peer)).entries

    def __iter__(self) -> Iterator[PeerInfo]:
        """All peers, farthest bucket first, longest silent first."""
        for bucket in self._buckets:
            for entry in bucket.entries.values():
                yield entry.info

    @property
    def buckets(self) -> int:
        """How many buckets there are, at least one."""
        return len(self._buckets)

    def bucket_index(self, key: Key) -> int:
        """The bucket a key falls into."""
        return min(common_prefix_length(self._local, key, self._bits), len(self._buckets) - 1)

    def bucket_peers(self, index: int) -> tuple[PeerInfo, ...]:
        """The peers of one bucket, longest silent first."""
        return tuple(entry.info for entry in self._buckets[index].entries.values())

    def random_key(self, index: int, *, rng: random.Random) -> Key:
        """A random key in a bucket, to refresh it."""
        return random_key_sharing(self._local, min(index, self._bits - 1), rng=rng, bits=self._bits)

    def add(self, info: PeerInfo, *, now: float) -> Ping | None:
        """A peer that was just heard of, directly, takes a place if there is one, else waits for one.

        Returns a Ping when somebody in its bucket has been silent for long enough to be doubted.
        """
        key = self._place(info.peer_id)
        if key == self._local:
            return None
        bucket = self._bucket(key)
        known = bucket.entries.get(info.peer_id)
        if known is not None:
            self._heard(bucket, known, now)
            if info.addrs and info.addrs != known.info.addrs:
                group = ip_group(info.addrs)
                # A peer may not move into a crowded group by changing its address once inside.
                if group == known.group or self._has_room(group, bucket):
                    self._uncount(bucket, known)
                    known.info, known.group = info, group
                    self._count_in(bucket, known)
            return None
        entry = _Entry(info, key, ip_group(info.addrs), now)
        if self._is_crowded(entry.group):
            return None
        # A crowded network divides a bucket as a full one does: else nodes that are all in one would fill its share of
        # the only bucket, and never know their neighbours.
        while (is_crowded := self._is_crowded(entry.group, bucket)) or self._is_full(bucket):
            if not self._split(bucket):
                return None if is_crowded else self._wait(bucket, entry, now)
            bucket = self._bucket(key)
        bucket.waiting.pop(info.peer_id, None)
        bucket.entries[info.peer_id] = entry
        self._count_in(bucket, entry)
        return None

    def on_seen(self, peer: PeerID, *, now: float) -> None:
        """The peer answered us or called us."""
        bucket = self._bucket(self._place(peer))
        entry = bucket.entries.get(peer)
        if entry is not None:
            self._heard(bucket, entry, now)

    def cancel_ping(self, peer: PeerID) -> None:
        """The ping asked for will not be sent; it may be asked for again."""
        entry = self._bucket(self._place(peer)).entries.get(peer)
        if entry is not None:
            entry.pinging = False

    def on_failure(self, peer: PeerID) -> bool:
        """The peer did not answer. Returns whether it lost its place: at once when somebody waits for it and
        a ping was asked for, else after `max_failures` in a row."""
        bucket = self._bucket(self._place(peer))
        bucket.waiting.pop(peer, None)
        entry = bucket.entries.get(peer)
        if entry is None:
            return False
        entry.failures += 1
        if entry.failures < self._config.max_failures and not (entry.pinging and bucket.waiting):
            entry.pinging = False
            return False
        self.remove(peer)
        return True

    def remove(self, peer: PeerID) -> None:
        """Take a peer out (it left, or is no member any more); the newest that waits moves up."""
        bucket = self._bucket(self._place(peer))
        bucket.waiting.pop(peer, None)
        gone = bucket.entries.pop(peer, None)
        if gone is None:
            return
        self._uncount(bucket, gone)
        for candidate in reversed(bucket.waiting):
            entry = bucket.waiting[candidate]
            if self._has_room(entry.group, bucket):
                del bucket.waiting[candidate]
                bucket.entries[candidate] = entry
                self._count_in(bucket, entry)
                break

    def closest(self, key: Key, count: int) -> list[PeerInfo]:
        """The `count` peers we know that are closest to `key`, closest first.

        Buckets are visited in the order of their distance to the key, so only a few are sorted.
        """
        found: list[_Entry] = []
        for group in self._by_distance(self.bucket_index(key)):
            entries = [entry for bucket in group for entry in bucket.entries.values()]
            entries.sort(key=lambda entry: entry.key ^ key)
            found.extend(entries[: count - len(found)])
            if len(found) >= count:
                break
        return [entry.info for entry in found]

    def _by_distance(self, index: int) -> Iterator[list[_Bucket]]:
        """Groups of buckets such that all peers of a group are closer than any of the next one: the key's own
        bucket shares more bits with it than any other; deeper ones all share exactly `index`; shallower ones
        ever fewer."""
        yield [self._buckets[index]]
        if index + 1 < len(self._buckets):
            yield self._buckets[index + 1 :]
        for shallower in range(index - 1, -1, -1):
            yield [self._buckets[shallower]]

    def _bucket(self, key: Key) -> _Bucket:
        return self._buckets[self.bucket_index(key)]

    def _heard(self, bucket: _Bucket, entry: _Entry, now: float) -> None:
        entry.seen_at = now
        entry.failures = 0
        entry.pinging = False
        bucket.entries.move_to_end(entry.info.peer_id)

    def _wait(self, bucket: _Bucket, entry: _Entry, now: float) -> Ping | None:
        bucket.waiting.pop(entry.info.peer_id, None)
        bucket.waiting[entry.info.peer_id] = entry
        if len(bucket.waiting) > self._config.replacements:
            bucket.waiting.popitem(last=False)
        silent = next(iter(bucket.entries.values()))
        if silent.pinging or now - silent.seen_at < self._config.quiet_s or not bucket.waiting:
            return None
        silent.pinging = True
        return Ping(silent.info)

    def _is_full(self, bucket: _Bucket) -> bool:
        return len(bucket.entries) >= self._config.bucket_size

    def _is_crowded(self, group: str | None, bucket: _Bucket | None = None) -> bool:
        """Whether a network has its share of a bucket, or of the table."""
        if group is None:
            return False
        if bucket is None:
            most, groups = self._config.max_per_ip_group_in_table, self._groups
        else:
            most, groups = self._config.max_per_ip_group, bucket.groups
        return most is not None and groups[group] >= most

    def _has_room(self, group: str | None, bucket: _Bucket) -> bool:
        return not self._is_crowded(group) and not self._is_crowded(group, bucket)

    def _count_in(self, bucket: _Bucket, entry: _Entry) -> None:
        self._count += 1
        for groups in (bucket.groups, self._groups):
            groups[entry.group] += 1

    def _uncount(self, bucket: _Bucket, entry: _Entry) -> None:
        self._count -= 1
        for groups in (bucket.groups, self._groups):
            groups[entry.group] -= 1
            if not groups[entry.group]:
                del groups[entry.group]

    def _split(self, bucket: _Bucket) -> bool:
        if bucket is not self._buckets[-1] or len(self._buckets) >= self._bits:
            return False
        depth = len(self._buckets) - 1
        deeper = _Bucket()
        for source, target in ((bucket.entries, deeper.entries), (bucket.waiting, deeper.waiting)):
            for peer in [p for p, e in source.items() if self._prefix(e.key) > depth]:
                target[peer] = source.pop(peer)
        for divided in (bucket, deeper):
            divided.groups = Counter(entry.group for entry in divided.entries.values())
        self._buckets.append(deeper)
        return True

    def _prefix(self, key: Key) -> int:
        return common_prefix_length(self._local, key, self._bits)


def ip_group(addrs: tuple[Multiaddr, ...]) -> str | None:
    """The network the first IP address lies in: IPv4 /16, IPv6 /32. None for loopback, and for no address at all; names
    (`/dns4/…`) share one group, because whoever owns a zone has as many as he likes, and so does what is no IP."""
    for addr in addrs:
        parts = str(addr).split("/", 3)
        if len(parts) < 3:
            continue
        kind, value = parts[1], parts[2]
        if kind.startswith("dns"):
            return "dns"
        if kind not in ("ip4", "ip6"):
            continue
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            continue
        if address.is_loopback:
            return None
        return str(ipaddress.ip_network((address, 16 if address.version == 4 else 32), strict=False))
    return "other" if addrs else None
