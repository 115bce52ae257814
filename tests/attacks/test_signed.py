"""Signed requests carried by an attacker: to other nodes, after restarts, at other times, for other methods, altered,
in floods, and from strangers. One member signs; each request is accepted once, by whom it is for, or not at all."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from mesh.auth.authorizer import PeerClass
from mesh.auth.combine import AllowList
from mesh.auth.request import SignedRequest
from mesh.auth.signature import SignatureAuthorizer, SignatureConfig
from mesh.errors import NotAuthorized, RemoteProtocolError
from mesh.identity import PeerKey

from .scene import MEMBER, Scale, bounded_growth, count_tasks, scales

SIGNER, ADDRESSEE, OTHER, STRANGER = (
    PeerKey.dev(f"attacks {name}") for name in ("signer", "addressee", "other", "stranger")
)
GENESIS, SUBNET, METHOD = bytes(range(32)), 128_001, "/toy/1.0.0 train"
CONFIG = SignatureConfig(max_nonces=500, max_nonces_per_signer=400, reserve_s=10.0, clock_tolerance_s=30.0)
MAX_GROWTH_BYTES = 4 << 20
"""What two nodes' tables may take: 1,000 nonces of about 300 bytes, and what lies about besides."""


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        return self.at


class Post:
    """A signer, the addressee with its floor on disk, another member, and an attacker who carries."""

    def __init__(self, path: Path) -> None:
        self.clock = Hand()
        self.rng = random.Random(5)
        self.path = path
        self.members = AllowList({key.peer_id: PeerClass.MEMBER for key in (SIGNER, ADDRESSEE, OTHER)})
        self.signer = self.node(SIGNER)
        self.stranger = self.node(STRANGER)
        self.other = self.node(OTHER)
        self.restart()
        self.clock.at += CONFIG.clock_tolerance_s + 1  # a first start refuses for as long
        self.outcomes: Counter[str] = Counter()
        self.accepted: set[bytes] = set()

    def node(self, key: PeerKey, path: Path | None = None) -> SignatureAuthorizer:
        return SignatureAuthorizer(
            key,
            self.members,
            genesis=GENESIS,
            subnet_id=SUBNET,
            clock=self.clock,
            floor_path=path,
            config=CONFIG,
            token_bytes=self.rng.randbytes,
        )

    def restart(self) -> None:
        """The addressee loses all but its disk."""
        self.addressee = self.node(ADDRESSEE, self.path)

    def sign(self, body: bytes, *, to: PeerKey = ADDRESSEE, life_s: float = 60.0) -> bytes:
        return self.signer.sign(to.peer_id, METHOD, body, life_s=life_s).to_bytes()

    async def put(
        self, data: bytes, body: bytes, *, at: SignatureAuthorizer | None = None, method: str = METHOD
    ) -> str:
        """Give a request to a node. What it accepts, it must not have accepted before."""
        try:
            verified = await (at or self.addressee).verify(data, body, method=method, least=MEMBER)
        except NotAuthorized as error:
            outcome = error.reason
        except RemoteProtocolError:
            outcome = "malformed"
        else:
            outcome = "accepted"
            assert verified.signer == SIGNER.peer_id
            assert data not in self.accepted
            self.accepted.add(data)
        self.outcomes[outcome] += 1
        return outcome


async def attacked(scale: Scale, path: Path, attack: Callable[[Post, int], Awaitable[None]]) -> Post:
    """The attack, with an honest request beside each tenth operation, which must be accepted."""
    post = Post(path)
    tasks = count_tasks()
    with bounded_growth(MAX_GROWTH_BYTES + 2000 * scale.operations):  # the test keeps what was accepted, too
        for number in scale.rounds():
            await attack(post, number)
            if number % 10 == 0:
                post.clock.at += 1.0
                body = b"honest %d" % number
                assert await post.put(post.sign(body, life_s=5.0), body) == "accepted"
            for node in (post.addressee, post.other):
                assert len(node.nonces) <= CONFIG.max_nonces
                assert sum(map(len, node.nonces._signers.values())) == len(node.nonces)
    assert count_tasks() <= tasks
    return post


@scales
async def test_replayed_to_the_same_node_and_to_another(scale: Scale, tmp_path: Path) -> None:
    async def attack(post: Post, number: int) -> None:
        body = b"body %d" % number
        data = post.sign(body, life_s=5.0)
        assert await post.put(data, body, at=post.other) == "wrong-addressee"
        assert await post.put(data, body) == "accepted"
        if number % 3 == 0:
            post.clock.at += 0.2
        assert await post.put(data, body) == "replayed"
        assert await post.put(data, body, at=post.other) == "wrong-addressee"

    await attacked(scale, tmp_path / "floor", attack)


@scales
async def test_replayed_after_a_restart(scale: Scale, tmp_path: Path) -> None:
    """Also of one that restarts often, at any moment, while its clock goes on, stands or is set back a little."""

    async def attack(post: Post, number: int) -> None:
        rng = random.Random(number)
        body = b"body %d" % number
        data = post.sign(body, life_s=rng.choice((1.0, 60.0, 300.0)))
        first = await post.put(data, body)
        for _ in range(rng.randrange(1, 3)):
            post.restart()
            post.clock.at += rng.choice((0.0, 0.001, -1.0))
            assert await post.put(data, body) in ("signed-before-restart", "replayed", "not-yet-valid")
        post.outcomes[f"first {first}"] += 1
        post.clock.at += CONFIG.clock_tolerance_s + CONFIG.reserve_s + 5  # the floor is behind again

    post = await attacked(scale, tmp_path / "floor", attack)
    assert post.outcomes["first accepted"]


@scales
async def test_carried_at_another_time(scale: Scale, tmp_path: Path) -> None:
    """Held back, or shown to a node whose clock is shifted: what is outside of the window and the tolerance is refused,
    and what was accepted stays used when the clock is set back."""

    async def attack(post: Post, number: int) -> None:
        rng = random.Random(number)
        body = b"body %d" % number
        data = post.sign(body, life_s=10.0)
        tolerance, at = CONFIG.clock_tolerance_s, post.clock.at
        shift = rng.choice((-1000.0, -tolerance - 1, tolerance + 11, 1000.0, rng.uniform(-tolerance, 10 + tolerance)))
        if not number % 5:
            post.clock.at += shift
            outcome = await post.put(data, body)
            if shift < -tolerance:
                assert outcome == "not-yet-valid"
            elif shift >= 10 + tolerance:
                assert outcome == "expired"
            else:
                # What ended before a forgotten one did may have been accepted: refused in doubt.
                assert outcome in ("accepted", "replayed")
            post.clock.at = at
            again = await post.put(data, body)
            assert again in ("accepted", "replayed"), again
        else:
            await post.put(data, body)
        assert await post.put(data, body) == "replayed"
        post.clock.at += 45.0  # beyond all of it, so that an honest one is not in doubt
        if not number % 5:
            post.clock.at += 1100.0

    post = await attacked(scale, tmp_path / "floor", attack)
    assert post.outcomes["expired"]
    assert post.outcomes["not-yet-valid"]


@scales
async def test_for_another_method_or_with_another_body(scale: Scale, tmp_path: Path) -> None:
    async def attack(post: Post, number: int) -> None:
        rng = random.Random(number)
        body = rng.randbytes(rng.choice((1, 100, 4000)))
        data = post.sign(body, life_s=5.0)
        place, bit = rng.randrange(len(body)), 1 << rng.randrange(8)
        flipped = body[:place] + bytes((body[place] ^ bit,)) + body[place + 1 :]
        for other in (flipped, body + b"\0", body[:-1], b""):
            if other != body:
                assert await post.put(data, other) == "wrong-body"
        for method in ("/toy/1.0.0 infer", "/toy/1.0.1 train", "/toy/1.0.0 trai", METHOD + " ", ""):
            assert await post.put(data, body, method=method) == "wrong-method"
        # Said to be for that method, or of that body, by the one who carries it.
        request = SignedRequest.from_bytes(data)
        forged = dataclasses.replace(request, method="/toy/1.0.0 infer").to_bytes()
        assert await post.put(forged, body, method="/toy/1.0.0 infer") == "bad-signature"
        altered = dataclasses.replace(request, nonce=rng.randbytes(16)).to_bytes()
        assert await post.put(altered, body) == "bad-signature"
        assert await post.put(data, body) == "accepted"

    await attacked(scale, tmp_path / "floor", attack)


@scales
async def test_bytes_flipped_anywhere(scale: Scale, tmp_path: Path) -> None:
    async def attack(post: Post, number: int) -> None:
        rng = random.Random(number)
        body = b"body %d" % number
        data = bytearray(post.sign(body, life_s=5.0))
        for place in rng.sample(range(len(data)), rng.randrange(1, 4)):
            data[place] ^= 1 << rng.randrange(8)
        cut = bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        await post.put(cut, body)

    post = await attacked(scale, tmp_path / "floor", attack)
    honest = len(range(0, scale.operations, 10))
    assert post.outcomes["accepted"] <= honest


@scales
async def test_a_flood_of_nonces(scale: Scale, tmp_path: Path) -> None:
    """A member that signs all it can is held to its share; strangers and forgers leave nothing."""
    most = 0

    async def attack(post: Post, number: int) -> None:
        nonlocal most
        body = b"body %d" % number
        if number % 3 == 0:
            data = post.sign(body, life_s=20.0)
            assert await post.put(data, body) in ("accepted", "nonces-full")
        elif number % 3 == 1:
            before = len(post.addressee.nonces)
            data = post.stranger.sign(ADDRESSEE.peer_id, METHOD, body).to_bytes()
            assert await post.put(data, body) == "not-listed"
            assert len(post.addressee.nonces) <= before
        else:
            forged = dataclasses.replace(
                post.stranger.sign(ADDRESSEE.peer_id, METHOD, body), public_key_pb=SIGNER.public_key_pb
            )
            assert await post.put(forged.to_bytes(), body) == "bad-signature"
        most = max(most, len(post.addressee.nonces))

    await attacked(scale, tmp_path / "floor", attack)
    assert most <= CONFIG.max_nonces_per_signer


@scales
async def test_many_copies_at_once(scale: Scale, tmp_path: Path) -> None:
    """Ten carriers bring one request at the same moment: one finds it unused."""

    async def attack(post: Post, number: int) -> None:
        if number % 10:
            return
        body = b"body %d" % number
        data = post.sign(body, life_s=5.0)
        before = post.outcomes["accepted"]
        async with trio.open_nursery() as nursery:
            for _ in range(10):

                async def carry() -> None:
                    await post.put(data, body)

                nursery.start_soon(carry)
        assert post.outcomes["accepted"] == before + 1

    await attacked(scale, tmp_path / "floor", attack)
