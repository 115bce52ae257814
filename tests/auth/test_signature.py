"""Signed requests under attack: replayed, redirected, altered, late, early, flooded, forged, by strangers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.auth import request as requests
from mesh.auth.authorizer import Everyone, PeerClass
from mesh.auth.combine import AllowList
from mesh.auth.replay import NonceTable, ReplayFloor
from mesh.auth.request import MAX_METHOD_CHARS, MAX_REQUEST_BYTES, Addressed, SignedRequest, sign_request
from mesh.auth.signature import SignatureAuthorizer, SignatureConfig
from mesh.errors import ConfigError, LocalProtocolError, NotAuthorized, RemoteProtocolError
from mesh.identity import KeyType, PeerKey
from mesh.peer import PeerID

MEMBER, GUEST = PeerClass.MEMBER, PeerClass.GUEST
ALICE, BOB, EVE, MALLORY = (PeerKey.dev(f"signature {name}") for name in ("alice", "bob", "eve", "mallory"))
GENESIS, SUBNET = bytes(range(32)), 128_001
METHOD, BODY = "/toy/1.0.0 train", b"the body"
TOLERANCE_S, RESERVE_S = 30.0, 10.0
START = 1_800_000_000.0


class Hand:
    """A clock moved by hand."""

    def __init__(self, now: float = START) -> None:
        self.at = now

    def now(self) -> float:
        return self.at


class Node:
    """Bob's node, which verifies; `restart` makes it anew over the same file."""

    def __init__(self, path: Path | None = None, **config: Any) -> None:
        self.clock = Hand()
        self.path = path
        self.config = SignatureConfig(**config)
        self.inner: Any = AllowList({ALICE.peer_id: MEMBER, EVE.peer_id: GUEST})
        self.restart()
        self.clock.at += TOLERANCE_S + 1  # the first start refuses for as long; see test_the_first_start

    def restart(self) -> None:
        self.bob = self.of(BOB, self.path)

    def of(self, key: PeerKey, path: Path | None = None, **changes: Any) -> SignatureAuthorizer:
        fields: dict[str, Any] = {"genesis": GENESIS, "subnet_id": SUBNET, "clock": self.clock, "config": self.config}
        return SignatureAuthorizer(key, self.inner, floor_path=path, **(fields | changes))

    def signed(self, key: PeerKey = ALICE, *, to: PeerKey = BOB, life_s: float = 60.0, **changes: Any) -> SignedRequest:
        return self.of(key, **changes).sign(to.peer_id, METHOD, BODY, life_s=life_s)

    async def put(
        self, signed: SignedRequest | bytes, body: bytes = BODY, *, method: str = METHOD, least: PeerClass = MEMBER
    ) -> str:
        """What becomes of it: the signer's class or the reason of the refusal."""
        data = signed if isinstance(signed, bytes) else signed.to_bytes()
        try:
            verified = await self.bob.verify(data, body, method=method, least=least)
        except NotAuthorized as error:
            return error.reason
        return verified.peer_class.name


async def test_a_member_is_taken_at_its_word_once() -> None:
    node = Node()
    signed = node.signed()
    verified = await node.bob.verify(signed.to_bytes(), BODY, method=METHOD, least=MEMBER)
    assert (verified.signer, verified.peer_class) == (ALICE.peer_id, MEMBER)
    for _ in range(3):
        assert await node.put(signed) == "replayed"
    assert await node.put(node.signed()) == "MEMBER"  # the same again, said anew


@pytest.mark.parametrize("key_type", KeyType)
async def test_all_types_of_peer_keys_sign(key_type: KeyType) -> None:
    key, other, node = PeerKey.generate(key_type), PeerKey.generate(key_type), Node()
    node.inner = AllowList([key.peer_id])
    node.restart()
    node.clock.at += TOLERANCE_S + 1
    signed = node.signed(key)
    assert len(signed.to_bytes()) < 1200
    forged = dataclasses.replace(signed, signature=other.sign(signed.signed_bytes()))
    assert await node.put(forged) == "bad-signature"
    assert await node.put(dataclasses.replace(signed, signature=b"\x30")) == "bad-signature"
    assert await node.put(signed) == "MEMBER"
    assert await node.put(signed) == "replayed"


async def test_a_request_is_good_for_its_addressee_only() -> None:
    node = Node()
    signed = node.signed(to=MALLORY)
    assert await node.put(signed) == "wrong-addressee"
    assert await node.put(dataclasses.replace(signed, addressee=BOB.peer_id)) == "bad-signature"


async def test_a_request_is_good_for_its_method_version_chain_and_subnet_only() -> None:
    node = Node()
    signed = node.signed()
    for method in ("/toy/1.0.0 remove", "/toy/2.0.0 train", "/toy/1.0.0 train2", "train"):
        assert await node.put(signed, method=method) == "wrong-method"
        assert await node.put(dataclasses.replace(signed, method=method), method=method) == "bad-signature"
    assert await node.put(node.signed(genesis=bytes(32))) == "wrong-subnet"
    assert await node.put(node.signed(subnet_id=SUBNET + 1)) == "wrong-subnet"
    assert await node.put(dataclasses.replace(node.signed(subnet_id=1), subnet_id=SUBNET)) == "bad-signature"
    assert await node.put(signed) == "MEMBER"


async def test_no_bit_of_the_body_may_change() -> None:
    node = Node()
    signed = node.signed()
    for bit in range(8 * len(BODY)):
        body = bytearray(BODY)
        body[bit // 8] ^= 1 << bit % 8
        assert await node.put(signed, bytes(body)) == "wrong-body"
    assert await node.put(signed, BODY + b"\0") == "wrong-body"
    assert await node.put(signed, b"") == "wrong-body"
    assert await node.put(signed) == "MEMBER"


async def test_no_bit_of_the_request_may_change() -> None:
    node = Node()
    data = node.signed().to_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert await node.put(bytes(changed)) != "MEMBER"
        except RemoteProtocolError:
            continue
    assert await node.put(data) == "MEMBER"


@pytest.mark.parametrize(
    ("shift_s", "outcome"),
    [(0, "MEMBER"), (89.9, "MEMBER"), (90, "expired"), (10**6, "expired"), (-30, "MEMBER"), (-30.1, "not-yet-valid"),
     (-(10**6), "not-yet-valid")],
)  # fmt: skip
async def test_clocks_may_be_apart_by_the_tolerance(shift_s: float, outcome: str) -> None:
    node = Node()
    node.clock.at += 1000
    signed = node.signed(life_s=60)
    node.clock.at += shift_s
    assert await node.put(signed) == outcome


async def test_nobody_signs_for_long() -> None:
    node = Node(max_window_s=100)
    with pytest.raises(LocalProtocolError):
        node.signed(life_s=300.1)
    assert await node.put(node.signed(life_s=100.1)) == "window-too-long"
    now_ms = int(node.clock.at * 1000)
    to = Addressed(GENESIS, SUBNET, BOB.peer_id, METHOD)
    short = sign_request(ALICE, to, BODY, not_before_ms=now_ms, expiry_ms=now_ms + 1000, nonce=bytes(16))
    long = dataclasses.replace(short, expiry_ms=now_ms + 10**9)
    assert await node.put(dataclasses.replace(long, signature=ALICE.sign(long.signed_bytes()))) == "window-too-long"


async def test_a_clock_set_back_does_not_revive_what_was_forgotten() -> None:
    node = Node()
    signed = node.signed()
    assert await node.put(signed) == "MEMBER"
    node.clock.at += 1000
    assert await node.put(node.signed()) == "MEMBER"  # the first one's nonce is forgotten here
    assert len(node.bob.nonces) == 1
    node.clock.at -= 1000
    assert await node.put(signed) == "replayed"
    node.clock.at += 91  # what that time has taken from honest signers: one window and not the whole jump
    assert await node.put(node.signed()) == "MEMBER"


async def test_a_restart_does_not_revive_what_was_accepted(tmp_path: Path) -> None:
    node = Node(tmp_path / "state" / "floor")
    signed = node.signed()
    assert await node.put(signed) == "MEMBER"
    assert stat.S_IMODE((tmp_path / "state" / "floor").stat().st_mode) == 0o600
    node.restart()
    assert await node.put(signed) == "signed-before-restart"
    node.clock.at -= 3600  # not even with the clock set back
    node.restart()
    assert await node.put(signed) == "not-yet-valid"
    node.clock.at += 3600 + RESERVE_S
    assert await node.put(node.signed()) == "MEMBER"  # what it costs: `reserve_s` after the last accepted one


async def test_a_signer_whose_clock_is_ahead_is_covered_by_the_floor_too(tmp_path: Path) -> None:
    node = Node(tmp_path / "floor")
    node.clock.at += TOLERANCE_S
    ahead = node.signed()
    node.clock.at -= TOLERANCE_S
    assert await node.put(ahead) == "MEMBER"
    node.restart()
    assert await node.put(ahead) == "signed-before-restart"


@pytest.mark.parametrize("lost", [True, False])
async def test_the_first_start_and_a_lost_file_are_covered_by_the_clock(tmp_path: Path, lost: bool) -> None:
    path = tmp_path / "floor" if lost else None
    node = Node(path)
    node.clock.at += TOLERANCE_S
    ahead = node.signed()
    node.clock.at -= TOLERANCE_S
    assert await node.put(ahead) == "MEMBER"
    if path is not None:
        path.unlink()
    node.restart()
    assert await node.put(ahead) == "signed-before-restart"
    node.clock.at += TOLERANCE_S + 0.002
    assert await node.put(node.signed()) == "MEMBER"


async def test_the_floor_is_on_disk_before_a_request_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path / "floor")
    signed = node.signed()

    def crash(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mesh.auth.replay.replace_file", crash)
        assert await node.put(signed) == "internal"
        assert await node.put(node.signed()) == "internal"
    assert not (tmp_path / "floor").exists()
    assert await node.put(node.signed()) == "MEMBER"
    # As if the power went right after each step: a file read at any moment refuses all that was let in until then.
    for step_s in (0.0, 5.0, 4.9, 0.2, 30.0, 9.9, 10.0):
        node.clock.at += step_s
        signed = node.signed()
        assert await node.put(signed) == "MEMBER"
        floor = ReplayFloor(tmp_path / "floor", start_ms=0, tolerance_ms=0, reserve_ms=1)
        assert signed.not_before_ms < floor.floor_ms


async def test_the_floor_is_written_once_in_a_while_and_not_per_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, written = Node(tmp_path / "floor"), []
    real = ReplayFloor.reserve

    def counting(floor: ReplayFloor, not_before_ms: int) -> None:
        written.append(not_before_ms)
        real(floor, not_before_ms)

    monkeypatch.setattr(ReplayFloor, "reserve", counting)
    for _ in range(100):
        assert await node.put(node.signed()) == "MEMBER"
        node.clock.at += 0.5
    assert len(written) == 5


@pytest.mark.parametrize("data", [b"", b"mesh/replay-floor/1 12", b"mesh/replay-floor/1 x\n", b"\0" * 64, b"9" * 4096])
def test_a_damaged_floor_is_not_guessed_at(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "floor").write_bytes(data)
    with pytest.raises(ConfigError, match="remove it"):
        Node(tmp_path / "floor")


async def test_two_copies_that_come_together_are_one() -> None:
    class Slow(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            await trio.testing.wait_all_tasks_blocked()
            return MEMBER

    node = Node()
    node.inner = Slow()
    node.restart()
    node.clock.at += TOLERANCE_S + 1
    data, outcomes = node.signed().to_bytes(), []

    async def put() -> None:
        outcomes.append(await node.put(data))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(put)
    assert sorted(outcomes) == ["MEMBER"] + ["replayed"] * 7


async def test_strangers_guests_and_forgers_leave_nothing_behind() -> None:
    node = Node()
    for _ in range(50):
        assert await node.put(node.signed(MALLORY)) == "not-listed"
        assert await node.put(node.signed(EVE)) == "class-too-low"
        forged = dataclasses.replace(node.signed(MALLORY), public_key_pb=ALICE.public_key_pb)
        assert await node.put(forged) == "bad-signature"
        assert await node.put(node.signed(), b"other") == "wrong-body"
    assert len(node.bob.nonces) == 0
    assert await node.put(node.signed(EVE), least=GUEST) == "GUEST"


@pytest.mark.parametrize("answer", [None, True, GUEST, RuntimeError("broken")])
async def test_what_the_inner_authorizer_does_not_clearly_allow_is_not_accepted(answer: object) -> None:
    class Odd(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[return-value]

    node = Node()
    node.inner = Odd()
    node.restart()
    node.clock.at += TOLERANCE_S + 1
    if isinstance(answer, Exception):
        with pytest.raises(RuntimeError):
            await node.put(node.signed())
    else:
        assert await node.put(node.signed()) == "internal"
    assert len(node.bob.nonces) == 0


def at(not_before_ms: int, nonce: int, key: PeerKey = ALICE) -> SignedRequest:
    """A request as the table sees it; nobody looks at its signature."""
    return SignedRequest(
        GENESIS, SUBNET, METHOD, key.public_key_pb, BOB.peer_id, bytes(32), not_before_ms, not_before_ms + 60_000,
        nonce.to_bytes(16, "big"), b"s",
    )  # fmt: skip


def reason_of(act: Callable[[], None]) -> str:
    try:
        act()
    except NotAuthorized as error:
        return error.reason
    return ""


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_flood_of_nonces_is_bounded_and_forgets_none_that_holds(count: int) -> None:
    table = NonceTable(floor_ms=0, tolerance_ms=30_000, max_nonces=count // 2, max_per_signer=count // 4)
    flood = [at(1000, i) for i in range(count)]
    outcomes = [reason_of(functools.partial(table.add, one, 1000 + i)) for i, one in enumerate(flood)]
    assert outcomes == [""] * (count // 4) + ["nonces-full"] * (count - count // 4)
    assert len(table) == count // 4
    table.add(at(1000, 1, EVE), 2000)  # the others have their own room
    for one in flood[: count // 4]:
        assert reason_of(functools.partial(table.add, one, 90_999)) == "replayed"
    # More signers than the whole table holds: it refuses, and still forgets nothing.
    crowd = [PeerKey.dev(f"signature crowd {i}") for i in range(4)]
    late = [reason_of(functools.partial(table.add, at(50_000, i, key), 60_000))
            for key in crowd for i in range(count // 8)]  # fmt: skip
    assert late.count("") == count // 2 - count // 4 - 1
    assert len(table) == count // 2
    assert reason_of(functools.partial(table.add, flood[0], 90_999)) == "replayed"
    # When the windows have ended there is room again, and nothing is left of the old.
    table.add(at(300_000, 1), 300_000)
    assert len(table) == len(table._signers) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-40, 60), st.booleans()), max_size=80))
def test_whatever_the_clock_does_nothing_is_accepted_twice(steps: list[tuple[int, int, bool]]) -> None:
    """Against a model that remembers all: signers sign, clocks jump, the node restarts with its reserved floor."""
    now_ms, reserved_ms, number = 100_000, 0, itertools.count()
    sizes: dict[str, Any] = {"tolerance_ms": 10_000, "max_nonces": 8, "max_per_signer": 8}
    table = NonceTable(floor_ms=0, **sizes)
    accepted: list[SignedRequest] = []
    for action, jump_s, restart in steps:
        now_ms = max(0, now_ms + jump_s * 1000)
        if restart and action == 0:
            table = NonceTable(floor_ms=reserved_ms, **sizes)
        for one in [at(now_ms, next(number)), *accepted]:
            in_window = one.not_before_ms - 10_000 <= now_ms < one.expiry_ms + 10_000
            if in_window and reason_of(functools.partial(table.add, one, now_ms)) == "":
                assert one not in accepted
                accepted = [*accepted, one]
                reserved_ms = max(reserved_ms, one.not_before_ms + 1)


# --- the codec ------------------------------------------------------------------------------------------------------


def fields_of(signed: SignedRequest) -> list[Any]:
    fields = msgpack.unpackb(signed.to_bytes())
    assert isinstance(fields, list)
    return fields


SAMPLE = sign_request(
    ALICE, Addressed(GENESIS, SUBNET, BOB.peer_id, METHOD), BODY, not_before_ms=1, expiry_ms=2, nonce=bytes(16)
)


def test_the_wire_form_is_its_own_inverse() -> None:
    assert SignedRequest.from_bytes(SAMPLE.to_bytes()) == SAMPLE
    assert SAMPLE.signer == ALICE.peer_id


@given(st.binary(max_size=200))
@example(b"\xc1")
@example(b"\x9b" + b"\x9b" * 100)
@example(b"\x81\x81\x01\x01\x01")
@example(b"\xc7\x0c\xff" + bytes(12))
@example(b"\xdd\xff\xff\xff\xff")
def test_random_bytes_are_the_senders_fault_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        SignedRequest.from_bytes(data)


@given(st.integers(0, len(SAMPLE.to_bytes()) - 1), st.binary(min_size=0, max_size=4))
def test_spoiled_requests_are_refused_or_say_something_else(place: int, patch: bytes) -> None:
    data = SAMPLE.to_bytes()
    spoiled = data[:place] + patch + data[place + len(patch) :]
    try:
        assert SignedRequest.from_bytes(spoiled).to_bytes() == spoiled
    except RemoteProtocolError:
        pass


OVERSIZED: list[tuple[int, Any]] = [
    (0, 2), (0, True), (1, bytes(33)), (1, bytes(31)), (2, -1), (2, 2**32), (3, ""), (3, "x" * (MAX_METHOD_CHARS + 1)),
    (3, "a  b"), (3, "a\nb"), (3, "é"), (3, b"/toy train"), (4, bytes(1300)), (4, b""), (5, bytes(45)), (5, b""),
    (6, bytes(31)), (6, bytes(33)), (7, -1), (7, 2), (7, 1.0), (8, 2**53 + 1), (8, 0), (9, bytes(15)), (9, bytes(17)),
    (10, b""), (10, bytes(1025)), (10, None), (10, [1]),
]  # fmt: skip


@pytest.mark.parametrize(("index", "value"), OVERSIZED)
def test_each_field_has_its_bounds(index: int, value: object) -> None:
    fields = fields_of(SAMPLE)
    fields[index] = value
    with pytest.raises(RemoteProtocolError):
        SignedRequest.from_bytes(msgpack.packb(fields))


def test_a_request_has_one_form_and_a_size() -> None:
    data = SAMPLE.to_bytes()
    for other in (
        data + b"\0",
        msgpack.packb([*fields_of(SAMPLE), 1]),
        msgpack.packb(fields_of(SAMPLE)[:-1]),
        data.replace(b"\xce\x00\x01\xf4\x01", b"\xcf\x00\x00\x00\x00\x00\x01\xf4\x01"),  # the subnet id, longer
        bytes(MAX_REQUEST_BYTES + 1),
        b"\xc6\x7f\xff\xff\xff" + bytes(64),
    ):
        assert other != data
        with pytest.raises(RemoteProtocolError):
            SignedRequest.from_bytes(other)
    largest = 32 + 5 + MAX_METHOD_CHARS + 1200 + 44 + 32 + 18 + 16 + requests.MAX_SIGNATURE_BYTES + 40
    assert largest <= MAX_REQUEST_BYTES


@pytest.mark.parametrize("method", ["", " ", "a b ", "x" * 257, "a\tb", "ü"])
def test_what_names_no_method_is_not_signed(method: str) -> None:
    with pytest.raises(LocalProtocolError):
        Node().bob.sign(ALICE.peer_id, method, BODY)


def test_nonces_differ_and_are_of_the_given_randomness() -> None:
    node = Node()
    assert len({node.signed().nonce for _ in range(100)}) == 100
    assert node.signed(token_bytes=lambda count: b"n" * count).nonce == b"n" * 16
