"""Buckets by hand with 8-bit keys, and invariants that hold for any history."""

from __future__ import annotations

from mesh.kad.key import Key
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


def test_a_network_of_one_address_group_still_knows_its_neighbours() -> None:
    """Else its nodes would fill the group's share of the only bucket and refuse all others, near or far."""
    routes = table(bucket_size=8, max_per_ip_group=2)
    for number in range(255, 0, -1):  # the farthest first
        routes.add(info(number, f"/ip4/203.0.113.{number}/tcp/1"), now=0.0)
    assert numbers(routes.closest(Key(0), 5)) == [1, 2, 3, 6, 7]
    assert [len(routes.bucket_peers(index)) for index in range(8)] == [2, 2, 2, 2, 2, 2, 2, 1]


def test_a_group_has_a_share_of_the_table_however_deep_it_is_made() -> None:
    routes = table(bucket_size=4, max_per_ip_group=2, max_per_ip_group_in_table=5)
    near = [0x80, 0x81, 0x40, 0x41, 0x20, 0x21, 0x10, 0x11]
    for number in near:
        routes.add(info(number, f"/ip4/203.0.113.{number}/tcp/1"), now=0.0)
    assert len(routes) == 5
    depth = routes.buckets
    for number in range(1, 16):
        routes.add(info(number, f"/ip4/203.0.113.{number}/tcp/1"), now=0.0)
    assert routes.buckets == depth  # nor do refused ones make it deeper
    for number in (0x10, 0x11):
        routes.add(info(number, f"/ip4/198.51.100.{number}/tcp/1"), now=0.0)
    assert len(routes) == 7
    routes.remove(peer(0x80))
    routes.add(info(0x08, "/ip4/203.0.113.8/tcp/1"), now=0.0)  # its place is free for its group
    assert peer(0x08) in routes
    # Nor by moving into the group once inside.
    routes.add(info(0x10, "/ip4/203.0.113.16/tcp/1"), now=1.0)
    assert str(routes.closest(Key(0x10), 1)[0].addrs[0]) == "/ip4/198.51.100.16/tcp/1"


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
