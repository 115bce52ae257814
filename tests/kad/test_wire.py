"""What strangers send about peers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import RemoteProtocolError
from mesh.identity import PeerKey
from mesh.kad.wire import (
    MAX_ADDRS,
    MAX_QUERIES,
    FindReply,
    FindRequest,
    Query,
    Role,
    StoreReply,
    StoreRequest,
    parse_addrs,
    parse_peers,
    raw_addrs,
    raw_peers,
)
from mesh.peer import Multiaddr, PeerInfo
from mesh.rpc.body import pack, unpack

LOCAL = PeerInfo(PeerKey.dev("local").peer_id, (Multiaddr("/ip4/203.0.113.1/tcp/4001"),))
AT_HOME = PeerInfo(PeerKey.dev("local").peer_id, (Multiaddr("/ip4/127.0.0.1/tcp/4001"),))
OTHER = PeerKey.dev("other").peer_id


def texts(*addrs: str, local: PeerInfo = LOCAL) -> list[str]:
    raws = [Multiaddr(a).to_bytes() for a in addrs]
    return [str(a) for a in parse_addrs(raws, ours=local.addrs)]


def test_good_addresses_pass_once() -> None:
    good = ["/ip4/198.51.100.7/tcp/1", "/ip6/2001:db8::1/tcp/1", "/dns4/a.example/tcp/443"]
    assert texts(*good, good[0]) == good


@pytest.mark.parametrize(
    "addr", ["/ip4/0.0.0.0/tcp/1", "/ip4/224.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1", "/ip6/::/tcp/1",
             "/ip4/203.0.113.1/tcp/4001", f"/ip4/198.51.100.7/tcp/1/p2p/{OTHER}", "/ip4/198.51.100.7"],
)  # fmt: skip
def test_addresses_that_lead_nowhere_to_us_or_to_another_identity_are_left_out(addr: str) -> None:
    assert texts(addr) == []


def test_loopback_is_believed_among_neighbours() -> None:
    assert texts("/ip4/127.0.0.1/tcp/9", local=AT_HOME) == ["/ip4/127.0.0.1/tcp/9"]


def test_a_relays_own_id_is_part_of_the_way() -> None:
    addr = f"/ip4/198.51.100.7/tcp/1/p2p/{OTHER}/p2p-circuit"
    assert texts(addr) == [addr]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=60), max_size=20))
def test_random_bytes_are_no_addresses_and_no_error(raws: list[bytes]) -> None:
    assert len(parse_addrs(raws, ours=LOCAL.addrs)) <= MAX_ADDRS


def test_peers_are_parsed_once_without_ourselves() -> None:
    info = PeerInfo(OTHER, (Multiaddr("/ip4/198.51.100.7/tcp/1"),))
    raws = raw_peers([info, LOCAL])
    assert parse_peers(raws, local=LOCAL) == (info, None)
    with pytest.raises(RemoteProtocolError):
        parse_peers([(b"\x12\x20short", ())], local=LOCAL)


def test_own_addresses_are_bounded() -> None:
    many = [Multiaddr(f"/ip4/198.51.100.7/tcp/{port}") for port in range(1, 30)]
    assert len(raw_addrs(many)) == MAX_ADDRS
    long = Multiaddr("/dns4/" + ("a" * 60 + ".") * 4 + "a/tcp/1/ws/http-path/" + "b" * 60)
    assert raw_addrs([long]) == ()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from([FindRequest, FindReply, StoreRequest, StoreReply]), st.binary(max_size=200))
def test_random_bytes_are_a_protocol_error(model: type[FindRequest], data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(model, data)


def test_messages_have_bounds() -> None:
    request = FindRequest(role=Role.SERVER, addrs=(), queries=(Query(target=b"\x00" * 32),))
    assert unpack(FindRequest, pack(request)) == request
    for wrong in (
        {"queries": (Query.model_construct(target=b"short"),)},
        {"queries": (Query.model_construct(key=b""),)},
        {"queries": (Query.model_construct(key=b"a", target=b"\x00" * 32),)},
        {"queries": (Query.model_construct(),)},
        {"queries": ()},
        {"queries": request.queries * (MAX_QUERIES + 1)},
        {"addrs": (b"a",) * (MAX_ADDRS + 1)},
        {"addrs": (b"a" * 257,)},
    ):
        body = pack(request.model_copy(update=wrong))
        with pytest.raises(RemoteProtocolError):
            unpack(FindRequest, body)
    empty = StoreRequest.model_construct(role=Role.SERVER, addrs=(), records=())
    with pytest.raises(RemoteProtocolError):
        unpack(StoreRequest, pack(empty))
