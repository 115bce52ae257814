"""Which connections are closed for economy: a function of facts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mesh.errors import LocalProtocolError
from mesh.identity import PeerKey
from mesh.net.base import Protection
from mesh.net.manager import MAX_TAGS_PER_PEER, Connection, ManagerConfig, Tags, surplus

from .nodes import network, running, until

PEERS = [PeerKey.dev(str(i)).peer_id for i in range(12)]
NOW = 1000.0


def connection(number: int, *, opened_at: float = 0.0, used_at: float = 0.0, has_streams: bool = False):
    return Connection(number, PEERS[number], opened_at, used_at, has_streams)


def closed(connections, tags=None, *, high=2, low=1, grace_s=30.0):
    config = ManagerConfig(high_water=high, low_water=low, grace_s=grace_s)
    return surplus(connections, tags or Tags(max_peers=100), config=config, now=NOW)


def test_nothing_is_closed_up_to_high_water_and_beyond_it_down_to_low_water():
    assert closed([connection(i) for i in range(5)], high=5, low=2) == []
    assert len(closed([connection(i) for i in range(6)], high=5, low=2)) == 4


def test_the_least_valuable_goes_first():
    tags = Tags(max_peers=10)
    tags.protect(PEERS[0], "routing-table", Protection.RATHER)
    tags.protect(PEERS[0], "content", Protection.RATHER)
    tags.protect(PEERS[1], "routing-table", Protection.RATHER)
    ranked = [
        connection(0),
        connection(1),
        connection(2, used_at=NOW - 1),
        connection(3, used_at=NOW - 60, has_streams=True),
        connection(4, used_at=NOW - 50),
        connection(5, used_at=NOW - 500),
    ]
    assert closed(ranked, tags, high=5, low=0) == [5, 4, 3, 2, 1, 0]


def test_many_connections_of_an_attacker_do_not_push_out_a_protected_peer():
    """It keeps bytes moving on open streams, which looks like value; the protected peer is idle."""
    tags = Tags(max_peers=10)
    tags.protect(PEERS[0], "validators", Protection.ALWAYS)
    flood = [connection(i, used_at=NOW, has_streams=True) for i in range(1, 12)]
    assert set(closed([connection(0), *flood], tags, high=4, low=1)) == set(range(1, 12))


def test_the_newest_are_left_alone_even_when_nothing_else_could_be_closed():
    young = [connection(i, opened_at=NOW - 29) for i in range(6)]
    assert closed(young) == []
    assert closed([*young, connection(6, opened_at=NOW - 30, used_at=NOW)]) == [6]


@given(
    st.lists(st.tuples(st.floats(0, NOW), st.floats(0, NOW), st.booleans()), max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(1, 12),
    st.integers(0, 12),
)
def test_what_must_stay_stays_and_no_more_is_closed_than_needed(facts, protected, high, low):
    tags = Tags(max_peers=100)
    for number in protected:
        tags.protect(PEERS[number], "x", Protection.ALWAYS)
    live = [connection(i, opened_at=o, used_at=max(o, u), has_streams=s) for i, (o, u, s) in enumerate(facts)]
    low = min(low, high)
    gone = closed(live, tags, high=high, low=low)
    assert len(set(gone)) == len(gone)
    assert not set(gone) & protected
    assert all(NOW - live[key].opened_at >= 30 for key in gone)
    if len(live) <= high:
        assert gone == []
    else:
        closable = [c for c in live if c.key not in protected and NOW - c.opened_at >= 30]
        assert len(gone) == min(len(closable), len(live) - low)


def test_tags_are_set_and_removed_by_name_and_bounded():
    tags = Tags(max_peers=2)
    tags.protect(PEERS[0], "a", Protection.ALWAYS)
    tags.protect(PEERS[0], "b", Protection.ALWAYS)
    tags.unprotect(PEERS[0], "a")
    assert tags.is_protected(PEERS[0])
    tags.protect(PEERS[0], "b", Protection.RATHER)
    assert not tags.is_protected(PEERS[0])
    assert tags.count(PEERS[0]) == 1
    tags.unprotect(PEERS[0], "b")
    tags.unprotect(PEERS[0], "never there")
    for peer in PEERS[:2]:
        tags.protect(peer, "a", Protection.ALWAYS)
    with pytest.raises(LocalProtocolError, match="2 peers"):
        tags.protect(PEERS[2], "a", Protection.ALWAYS)
    for number in range(MAX_TAGS_PER_PEER - 1):
        tags.protect(PEERS[0], str(number), Protection.RATHER)
    with pytest.raises(LocalProtocolError, match="tags"):
        tags.protect(PEERS[0], "one more", Protection.RATHER)


def test_water_marks_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="low_water"):
        ManagerConfig(high_water=1, low_water=2)


async def test_idle_connections_of_protected_peers_stay():
    a, b, c = network("a", idle_timeout_s=0.3), network("b"), network("c")
    async with running(a, b, c) as (_, info_b, info_c):
        a.protect(info_b.peer_id, "test")
        await a.connect(info_b)
        await a.connect(info_c)
        await until(lambda: a.connected() == (info_b.peer_id,))
        a.unprotect(info_b.peer_id, "test")
        await until(lambda: a.connected() == ())


async def test_whoever_fills_the_places_for_inbound_connections_does_not_push_out_a_protected_peer():
    server = network("server", max_inbound=2, min_idle_s=0)
    friend, *strangers = (network(name) for name in ("friend", "s0", "s1", "s2"))
    async with running(server, friend, *strangers) as (info, info_friend, *_):
        server.protect(info_friend.peer_id, "test")
        await friend.connect(info)
        for stranger in strangers:
            await until(lambda: all(muxed.idle_since is not None for muxed in server._inbound))
            await stranger.connect(info)
            await until(lambda: len(server._inbound) == 2)
        assert info_friend.peer_id in server.connected()
