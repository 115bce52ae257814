"""Buckets by hand with 8-bit keys, and invariants that hold for any history."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.kad.key import Key, common_prefix_length
from mesh.kad.routing import Ping, RoutingConfig, RoutingTable, ip_group
from mesh.peer import Multiaddr
from tests.kad.small import info, numbers, peer, place


def table(local: int = 0, **config: object) -> RoutingTable:
    settings = RoutingConfig.model_validate({"bucket_size": 2, "replacements": 2, "quiet_s": 10.0, **config})
    return RoutingTable(Key(local), config=settings, place=place, bits=8)


def test_only_the_bucket_on_the_own_path_splits() -> None:
    routes = table()
    for number in (0b1000_0000, 0b1100_0000, 0b0100_0000, 0b0110_0000):
        assert routes.add(info(number), now=0.0) is None
    assert routes.buckets == 2
    assert numbers(routes.bucket_peers(0)) == [0b1000_0000, 0b1100_0000]
    assert numbers(routes.bucket_peers(1)) == [0b0100_0000, 0b0110_0000]
    routes.add(info(0b1110_0000), now=0.0)  # bucket 0 is full and not ours to split
    assert len(routes) == 4
    routes.add(info(0b0010_0000), now=0.0)  # bucket 1 is full and is
    assert routes.buckets == 3
    assert numbers(routes.bucket_peers(2)) == [0b0010_0000]


def test_a_newcomer_waits_and_the_longest_silent_is_pinged_before_it_loses_its_place() -> None:
    routes = table()
    for number in (0x80, 0x81, 0x01, 0x02):
        routes.add(info(number), now=0.0)
    assert routes.add(info(0x90), now=5.0) is None  # heard of 5 s ago: not doubted yet
    assert routes.add(info(0x91), now=20.0) == Ping(info(0x80))
    assert routes.add(info(0x92), now=20.0) is None  # it is being pinged already
    routes.on_seen(peer(0x80), now=21.0)  # it answers: it stays, and 0x81 is the longest silent now
    assert numbers(routes.bucket_peers(0)) == [0x81, 0x80]
    assert routes.add(info(0x93), now=22.0) == Ping(info(0x81))
    assert routes.on_failure(peer(0x81))
    assert numbers(routes.bucket_peers(0)) == [0x80, 0x93]  # the newest that waited


def test_a_peer_is_dropped_after_failures_in_a_row_only() -> None:
    routes = table(max_failures=2)
    routes.add(info(0x80), now=0.0)
    assert not routes.on_failure(peer(0x80))
    routes.on_seen(peer(0x80), now=1.0)
    assert not routes.on_failure(peer(0x80))
    assert routes.on_failure(peer(0x80))
    assert peer(0x80) not in routes


def test_a_ping_that_was_not_sent_may_be_asked_for_again() -> None:
    routes = table()
    for number in (0x80, 0x81, 0x01):
        routes.add(info(number), now=0.0)
    assert routes.add(info(0x90), now=20.0) == Ping(info(0x80))
    routes.cancel_ping(peer(0x80))
    assert routes.add(info(0x90), now=20.0) == Ping(info(0x80))


def test_one_network_cannot_fill_a_bucket() -> None:
    routes = table(bucket_size=4, max_per_ip_group=2)
    for number in range(0x80, 0x88):
        routes.add(info(number, f"/ip4/203.0.113.{number}/tcp/1"), now=0.0)
    assert numbers(routes.bucket_peers(0)) == [0x80, 0x81]
    routes.add(info(0x90, "/ip4/198.51.100.1/tcp/1"), now=0.0)
    assert len(routes) == 3
    # Nor by changing its address once inside.
    routes.add(info(0x90, "/ip4/203.0.113.9/tcp/1"), now=1.0)
    assert str(routes.closest(Key(0x90), 1)[0].addrs[0]) == "/ip4/198.51.100.1/tcp/1"


def test_loopback_is_one_machine_and_exempt() -> None:
    routes = table(bucket_size=4, max_per_ip_group=1)
    for number in range(0x80, 0x84):
        routes.add(info(number, f"/ip4/127.0.0.1/tcp/{number}"), now=0.0)
    assert len(routes) == 4


def test_groups_of_addresses() -> None:
    assert ip_group((Multiaddr("/ip4/203.0.113.7/tcp/1"),)) == "203.0.0.0/16"
    assert ip_group((Multiaddr("/ip6/2001:db8:1::7/tcp/1"),)) == "2001:db8::/32"
    assert ip_group((Multiaddr("/ip6/::1/tcp/1"),)) is None
    assert ip_group((Multiaddr("/dns4/a.example/tcp/1"),)) == "dns"
    assert ip_group(()) is None


def test_the_table_never_holds_its_owner() -> None:
    routes = table(5)
    routes.add(info(5), now=0.0)
    assert len(routes) == 0


class TableMachine(RuleBasedStateMachine):
    """Any history of hearing, failing and leaving."""

    def __init__(self) -> None:
        super().__init__()
        self.local = 0b0101_1010
        self.now = 0.0
        self.table = RoutingTable(
            Key(self.local),
            config=RoutingConfig(bucket_size=3, replacements=2, max_per_ip_group=2, quiet_s=1.0),
            place=place,
            bits=8,
        )
        self.heard: set[int] = set()

    @rule(number=st.integers(0, 255), group=st.sampled_from(["127.0.0.1", "203.0.113.1", "198.51.100.1", None]))
    def hear(self, number: int, group: str | None) -> None:
        self.now += 0.7
        self.heard.add(number)
        ping = self.table.add(info(number, group and f"/ip4/{group}/tcp/1"), now=self.now)
        assert ping is None or ping.info.peer_id in self.table

    @precondition(lambda self: len(self.table))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(list(self.table)))
        gone = self.table.on_failure(victim.peer_id)
        assert gone == (victim.peer_id not in self.table)

    @rule(number=st.integers(0, 255))
    def leave(self, number: int) -> None:
        self.table.remove(peer(number))
        assert peer(number) not in self.table

    @invariant()
    def peers_are_in_their_buckets_within_bounds(self) -> None:
        for index in range(self.table.buckets):
            peers = self.table.bucket_peers(index)
            assert len(peers) <= 3
            groups = [g for g in (ip_group(p.addrs) for p in peers) if g is not None]
            assert all(groups.count(group) <= 2 for group in groups)
            for number in numbers(peers):
                prefix = common_prefix_length(Key(self.local), Key(number), 8)
                assert prefix == index or (index == self.table.buckets - 1 and prefix >= index)
        assert set(numbers(tuple(self.table))) <= self.heard - {self.local}

    @invariant()
    def closest_is_what_sorting_all_gives(self) -> None:
        everybody = numbers(tuple(self.table))
        for target in (0, self.local, 0b0101_0101, 0xFF):
            expected = sorted(everybody, key=lambda number: number ^ target)[:4]
            assert numbers(self.table.closest(Key(target), 4)) == expected


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, derandomize=True)
