"""Proved addresses on disk: bounded, expiring, and read as if a stranger had written them."""

import json
import logging
import os
import stat

import pytest
from multiaddr import Multiaddr

from mesh.errors import DialFailed
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.net.peerstore import PeerStore, PeerStoreConfig
from mesh.peer import PeerInfo

from .nodes import ECHO, network, running, until

A, B, C = (PeerKey.dev(name).peer_id for name in "abc")
NOW = 1_800_000_000.0
DAY = 86_400.0


def at(port: int) -> Multiaddr:
    return Multiaddr(f"/ip4/10.0.0.1/tcp/{port}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "peers.json"


def test_what_was_proved_is_there_again_newest_first(path):
    store = PeerStore(path, now=NOW)
    store.proved(A, at(1), now=NOW)
    store.proved(B, at(2), now=NOW + 1)
    store.proved(A, at(3), now=NOW + 2)
    store.save(now=NOW + 2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["peers.json"]
    again = PeerStore(path, now=NOW + 3)
    assert again.peers(now=NOW + 3) == (PeerInfo(A, (at(3), at(1))), PeerInfo(B, (at(2),)))


def test_proofs_expire_and_a_wrong_address_goes_at_once(path):
    store = PeerStore(path, now=NOW)
    store.proved(A, at(1), now=NOW)
    store.proved(A, at(2), now=NOW + DAY)
    store.proved(B, at(3), now=NOW + DAY)
    store.wrong(B, at(3))
    store.wrong(C, at(3))
    assert store.peers(now=NOW + 7 * DAY) == (PeerInfo(A, (at(2),)),)
    store.save(now=NOW + 7 * DAY)
    assert PeerStore(path, now=NOW + 9 * DAY).peers(now=NOW + 9 * DAY) == ()


def test_peers_addresses_and_bytes_are_bounded(path):
    config = PeerStoreConfig(max_peers=20, max_addrs=2, max_bytes=1024)
    store = PeerStore(path, config, now=NOW)
    many = [PeerKey.dev(str(i)).peer_id for i in range(30)]
    for number, peer in enumerate(many):
        for port in (1, 2, 3):
            store.proved(peer, at(port), now=NOW + number)
    kept = store.peers(now=NOW + 30)
    assert [info.peer_id for info in kept] == many[:9:-1]
    assert all(info.addrs == (at(3), at(2)) for info in kept)
    store.save(now=NOW + 30)
    assert path.stat().st_size <= 1024
    assert PeerStore(path, config, now=NOW + 30).peers(now=NOW + 30)[0].peer_id == many[-1]


def entry(peer=str(A), address="/ip4/10.0.0.1/tcp/1", proved_s=NOW):
    return {"peer": peer, "addresses": [{"address": address, "proved_s": proved_s}]}


def test_a_proof_from_the_future_counts_from_now_on(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"version": 1, "peers": [entry(proved_s=1e15)]}))
    store = PeerStore(path, now=NOW)
    assert store.peers(now=NOW) == (PeerInfo(A, (at(1),)),)
    assert store.peers(now=NOW + 8 * DAY) == ()


HOSTILE = {
    "empty": b"",
    "binary": os.urandom(500),
    "not utf-8": b'{"version": 1, "peers": ["\xff"]}',
    "torn": json.dumps({"version": 1, "peers": [entry()]}).encode()[:-9],
    "nested": b"[" * 200_000,
    "huge": b" " * (2**20 + 1),
    "huge number": b'{"version": 1, "peers": ' + b"9" * 5000 + b"}",
    "list": b"[]",
    "version": b'{"version": 2, "peers": []}',
    "no peers": b'{"version": 1}',
    "too many peers": json.dumps({"version": 1, "peers": [entry()] * 1025}).encode(),
    "entry is no object": b'{"version": 1, "peers": [7]}',
    "no addresses": json.dumps({"version": 1, "peers": [{"peer": str(A)}]}).encode(),
    "too many addresses": json.dumps(
        {"version": 1, "peers": [{"peer": str(A), "addresses": entry()["addresses"] * 5}]}
    ).encode(),
    "address is no object": json.dumps({"version": 1, "peers": [{"peer": str(A), "addresses": ["x"]}]}).encode(),
    **{
        name: json.dumps({"version": 1, "peers": [wrong]}).encode()
        for name, wrong in {
            "peer id of another kind": entry(peer=5),
            "peer id is none": entry(peer="12D3KooW"),
            "peer id is long": entry(peer="1" * 100_000),
            "address is none": entry(address="/ip4/10.0.0.1/tcp/99999999"),
            "address is a number": entry(address=4),
            "address is long": entry(address="/dns4/" + "a" * 100_000 + "/tcp/1"),
            "address is a socket": entry(address="/unix/tmp%2fsocket"),
            "address is multicast": entry(address="/ip4/224.0.0.1/tcp/1"),
            "time is text": entry(proved_s="now"),
            "time is true": entry(proved_s=True),
            "time is no number": entry(proved_s=float("nan")),
            "time is infinite": entry(proved_s=float("inf")),
            "time is negative": entry(proved_s=-1),
        }.items()
    },
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_file_is_set_aside_and_said(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        store = PeerStore(path, now=NOW)
    assert "no list of known peers" in caplog.text
    assert len(caplog.text) < 1000
    assert store.peers(now=NOW) == ()
    assert path.with_name("peers.json.damaged").read_bytes() == content
    store.proved(B, at(1), now=NOW)
    store.save(now=NOW)
    assert PeerStore(path, now=NOW).peers(now=NOW) == (PeerInfo(B, (at(1),)),)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_is_set_aside_without_waiting_or_following(path, kind, tmp_path):
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "elsewhere").write_text("mine")
        path.symlink_to(tmp_path / "elsewhere")
    store = PeerStore(path, now=NOW)
    store.proved(A, at(1), now=NOW)
    store.save(now=NOW)
    assert PeerStore(path, now=NOW).peers(now=NOW)
    assert kind != "link" or (tmp_path / "elsewhere").read_text() == "mine"


def test_a_disk_that_takes_nothing_ends_nobody(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = PeerStore(tmp_path / "file" / "peers.json", now=NOW)
    store.proved(A, at(1), now=NOW)
    store.save(now=NOW)
    assert "cannot write known peers" in caplog.text


# --- in a network ---------------------------------------------------------------------------------------------------


async def test_a_restarted_node_reaches_a_peer_it_knew_without_being_told_again(path):
    key, other = PeerKey.dev("restarted"), network("other")
    async with running(other) as (info,):
        first = Libp2pNetwork(key, peers_path=path)
        async with running(first):
            await first.connect(info)
        again = Libp2pNetwork(key, peers_path=path)
        async with running(again):
            stream = await again.open(info.peer_id, ECHO)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        without = Libp2pNetwork(key)
        async with running(without):
            with pytest.raises(DialFailed):
                await without.open(info.peer_id, ECHO)


async def test_hearsay_is_not_kept(path):
    net = Libp2pNetwork(PeerKey.dev("a"), peers_path=path)
    async with running(net):
        net.learn(PeerInfo(B, (at(1),)))
    assert not path.exists()


async def test_an_address_where_somebody_else_answers_is_forgotten_on_disk_too(path):
    liar = network("liar")
    async with running(liar) as (info,):
        store = PeerStore(path, now=NOW)
        net = Libp2pNetwork(PeerKey.dev("a"), Libp2pConfig(), peers_path=path)
        store.proved(C, info.addrs[0], now=net._clock.now())
        store.save(now=net._clock.now())
        async with running(net):
            with pytest.raises(DialFailed):
                await net.open(C, ECHO)
    assert PeerStore(path, now=net._clock.now()).peers(now=net._clock.now()) == ()


async def test_a_connection_that_lasts_keeps_its_address_proved(path):
    class Later:
        now_s = NOW

        def now(self) -> float:
            return self.now_s

    clock, other = Later(), network("other")
    config = Libp2pConfig(store=PeerStoreConfig(save_interval_s=0.05))
    net = Libp2pNetwork(PeerKey.dev("a"), config, peers_path=path, clock=clock)
    async with running(other) as (info,), running(net):
        await net.connect(info)
        clock.now_s += 6 * DAY
        proved = f'"proved_s": {clock.now_s}'
        await until(lambda: path.exists() and proved in path.read_text())
    later = clock.now_s + 6 * DAY
    assert [known.peer_id for known in PeerStore(path, now=later).peers(now=later)] == [info.peer_id]
