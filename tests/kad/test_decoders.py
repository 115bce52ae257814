"""Whatever bytes arrive, every decoder of mesh.kad returns a value or raises RemoteProtocolError, and nothing else.

What once broke one is kept in tests/kad/corpus: a file per case, named for what is wrong with it, tried on all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

from mesh.errors import RemoteProtocolError
from mesh.identity import PeerKey
from mesh.kad.equivocation import Equivocation
from mesh.kad.record import Record, sign_record
from mesh.kad.wire import parse_addrs, parse_peer, parse_peers
from mesh.peer import PeerInfo

LOCAL = PeerInfo(PeerKey.dev("local").peer_id, (Multiaddr("/ip4/127.0.0.1/tcp/1"),))
DECODERS: Mapping[str, Callable[[bytes], object]] = {
    "record": Record.from_bytes,
    "proof": Equivocation.from_bytes,
    "peer": parse_peer,
    "peers": lambda data: parse_peers(((data, (data,)),), local=LOCAL),
    "addresses": lambda data: parse_addrs((data, data[1:]), ours=LOCAL.addrs),
}
CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())

RECORD = sign_record(
    PeerKey.dev("alice"), b"ns/k", b"v", subkey=b"s", expiry_ms=2_000, seq=7, subnet_id=1, genesis=b"g" * 32
)
OTHER = sign_record(
    PeerKey.dev("alice"), b"ns/k", b"w", subkey=b"s", expiry_ms=2_000, seq=7, subnet_id=1, genesis=b"g" * 32
)
GOOD = (RECORD.to_bytes(), Equivocation.of(RECORD, OTHER).to_bytes(), RECORD.owner.multihash, LOCAL.addrs[0].to_bytes())


def decode(name: str, data: bytes) -> object:
    """The value, or None for a refusal; any other error fails the test."""
    try:
        return DECODERS[name](data)
    except RemoteProtocolError:
        return None


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_corpus_breaks_nothing(path: Path, name: str) -> None:
    value = decode(name, path.read_bytes())
    if name in ("record", "proof"):
        assert value is None  # nothing in it is in canonical form


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) >= 10


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=200)
@given(data=st.binary(max_size=400))
def test_random_bytes(name: str, data: bytes) -> None:
    decode(name, data)


packable = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40)
    | st.text(max_size=8) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=12)),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner),
    max_leaves=16,
)  # fmt: skip


@pytest.mark.parametrize("name", ["record", "proof"])
@settings(max_examples=150)
@given(value=packable)
def test_msgpack_of_anything(name: str, value: object) -> None:
    decode(name, msgpack.packb(value))
    decode(name, msgpack.packb([1, value, value]))


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150)
@given(good=st.sampled_from(GOOD), data=st.data())
def test_damaged_good_ones(name: str, good: bytes, data: st.DataObject) -> None:
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        raw = raw or bytearray(b"\0")
    value = decode(name, bytes(raw))
    if isinstance(value, Record | Equivocation):
        assert value.to_bytes() == bytes(raw)  # one value, one encoding
