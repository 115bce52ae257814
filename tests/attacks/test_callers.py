"""Callers who give up, dribble, hoard, flood, grant without end, repeat themselves, or are not members."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio

from mesh.auth.authorizer import Everyone, PeerClass
from mesh.auth.combine import AllowList
from mesh.errors import MeshError
from mesh.rpc import frame as f
from mesh.rpc.body import pack
from mesh.rpc.flow import LIBP2P_LINK
from mesh.rpc.rpc import Rpc

from .scene import (
    CONFIG,
    HONEST,
    MAX_GROWTH_BYTES,
    VICTIM,
    Part,
    Scale,
    Scene,
    Target,
    call,
    check_clean,
    put,
    scales,
    simulate,
    take,
)

TOGETHER = 25
BODY = pack(Part(n=1, blob=bytes(100)))


@scales
def test_calls_given_up_at_any_moment(scale: Scale) -> None:
    """All four shapes through our own caller, cancelled after a random time; both ends forget them."""
    outcomes: Counter[str] = Counter()

    async def one(it: Scene, rpc: Rpc, number: int) -> None:
        rng = random.Random(number)
        stub = rpc.stub(Target, it.peer)
        blob = bytes(rng.choice((0, 100, 40_000, 300_000)))
        with trio.move_on_after(rng.random() * 0.15) as scope:
            match number % 4:
                case 0:
                    await stub.rpc_slow(Part(n=rng.randrange(2), blob=blob))
                case 1:
                    async with stub.rpc_count(Part(n=9, blob=blob)) as answers:
                        async for _ in answers:
                            await trio.sleep(rng.random() / 50)
                case 2:
                    async with stub.rpc_sum() as upload:
                        for _ in range(5):
                            await upload.send(Part(blob=blob))
                        await upload.result()
                case _:
                    async with stub.rpc_chat() as chat:
                        async with trio.open_nursery() as nursery:

                            async def send() -> None:
                                for _ in range(5):
                                    await chat.send(Part(blob=blob))
                                await chat.end()

                            nursery.start_soon(send)
                            async for _ in chat:
                                pass
        outcomes["cancelled" if scope.cancelled_caught else "answered"] += 1

    async def attack(it: Scene) -> None:
        rpc = Rpc(it.crowd[0], Everyone(), config=CONFIG, rng=random.Random(2))
        async with trio.open_nursery() as caller:
            await caller.start(rpc.run)
            for first in scale.rounds(TOGETHER):
                async with trio.open_nursery() as nursery:
                    for number in range(first, first + TOGETHER):
                        nursery.start_soon(one, it, rpc, number)
            await trio.sleep(1)
            check_clean(rpc)
            caller.cancel_scope.cancel()
        assert not it.victim.metrics.violations + rpc.metrics.violations

    simulate(attack)
    assert outcomes["cancelled"]
    assert outcomes["answered"]


@scales
def test_bytes_that_dribble(scale: Scale) -> None:
    """One byte of a frame now and then: each frame has its time in all, whatever the pace, and the channel ends."""
    lives: list[float] = []

    async def one(it: Scene, number: int) -> None:
        rng = random.Random(number)
        stream = await it.open(number)
        if number % 2:
            await put(stream, call(1, body=BODY))  # a good one first
        begun = trio.current_time()
        data = call(2, body=BODY) if rng.random() < 0.5 else call(2, body=bytes(60_000))
        pause_s = rng.choice((0.3, 1.0, 4.9))
        for byte in data:
            if not await put(stream, bytes((byte,))):
                break
            await trio.sleep(pause_s)
        lives.append(trio.current_time() - begun)

    async def attack(it: Scene) -> None:
        for first in scale.rounds(TOGETHER):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + TOGETHER):
                    nursery.start_soon(one, it, number)
        assert lives
        assert it.victim.metrics.violations == 0  # what they say is allowed, and a network that stalls looks the same

    simulate(attack, crowd=50)
    assert max(lives) <= CONFIG.frame_timeout_s + 4.9 + 0.1  # noticed with the next byte


def members_only() -> AllowList:
    """The victim and the honest caller are members, the crowd is not."""
    return AllowList({VICTIM.peer_id: PeerClass.MEMBER, HONEST.peer_id: PeerClass.MEMBER})


@scales
def test_channels_opened_and_left(scale: Scale) -> None:
    """By strangers, many at once and more than there is room for, silent, in half a frame, or after a call: each peer
    has two at most, and a member between two calls does not lose its own."""
    opened: Counter[bool] = Counter()

    async def one(it: Scene, number: int) -> None:
        try:
            stream = await it.open(number)
        except MeshError:
            opened[False] += 1
            return
        await put(stream, (b"", b"\0\0", call(1, "slow", pack(Part(n=4))), call(1, "sum"))[number % 4])
        opened[True] += 1

    async def attack(it: Scene) -> None:
        for first in scale.rounds(100):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + 100):
                    nursery.start_soon(one, it, number)
            by_peer = Counter(c.stream.remote for c in it.victim._answering if not c.scope.cancel_called)
            assert sum(by_peer.values()) <= CONFIG.max_channels_in
            assert max(by_peer.values()) <= CONFIG.max_channels_in_per_peer
        assert it.honest.metrics.channels_opened == 1

    # The simulated network remembers what the attackers left open: some 3 KiB a stream of theirs.
    theirs = 4096 * scale.operations
    simulate(attack, crowd=200, authorizer=members_only, settle_s=CONFIG.idle_in_s + 1, max_growth=(24 << 20) + theirs)
    assert opened[True] > 2 * CONFIG.max_channels_in


@scales
def test_credit_for_nothing_and_without_end(scale: Scale) -> None:
    """Grants of a gigabyte, of one byte, for calls that are over: no answer holds more than its frames in memory."""

    async def one(it: Scene, number: int) -> None:
        rng = random.Random(number)
        try:
            stream = await it.open(number)
        except MeshError:
            return
        await put(stream, call(1, "count", pack(Part(n=1 << 30, blob=bytes(20_000))), ms=1000))
        await put(stream, call(2, "plain", pack(Part(blob=bytes(20_000)))))
        for _ in range(30):
            amount = rng.choice((1, 64, 1 << 20, f.MAX_BODY_BYTES))
            await put(stream, f.encode(f.Credit(rng.choice((1, 1, 2, 3, 99)), amount)))
            await take(stream, 0.02)  # reads, and gives no window back
        if number % 3 == 0:
            await put(stream, f.encode(f.Credit(0, f.MAX_BODY_BYTES)))
            _, dropped = await take(stream, 2)
            assert dropped
        await take(stream, 2)
        await stream.aclose()

    async def attack(it: Scene) -> None:
        for first in scale.rounds(TOGETHER):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + TOGETHER):
                    nursery.start_soon(one, it, number)

    simulate(attack, crowd=50)


CHATS = 8
MAX_OBJECTS_FACTOR = 6
"""What a waiting message takes in Python's memory for each byte it is counted for: an empty one, counted as
MESSAGE_COST, is a bytearray and a tuple in a queue, some 250 bytes."""


@scales
def test_messages_of_nothing(scale: Scale) -> None:
    """Empty messages into conversations whose answers are not read: credit bounds how many lie here."""
    sent = 0

    async def one(it: Scene, number: int) -> None:
        nonlocal sent
        stream = await it.open(number)
        calls = range(1, 1 + CHATS)
        await put(stream, b"".join(call(n, "chat", ms=4000) for n in calls))
        credit = dict.fromkeys(calls, LIBP2P_LINK.first_credit_bytes)
        decoder = f.FrameDecoder(max_frame_bytes=1 << 20)
        for _ in range(5):
            for n in calls:
                count = min(500, credit[n] // f.MESSAGE_COST)
                credit[n] -= count * f.MESSAGE_COST
                await put(stream, f.encode(f.Message(n, 0)) * count)
                sent += count
            frames, dropped = await take(stream, 0.05, decoder=decoder)
            assert not dropped
            for frame in frames:
                if isinstance(frame, f.Credit) and frame.call_id in credit:
                    credit[frame.call_id] += frame.amount
        await take(stream, 5.0)
        await stream.aclose()

    async def attack(it: Scene) -> None:
        for first in scale.rounds(100):
            await one(it, first)
        assert not it.victim.metrics.violations

    simulate(attack, max_growth=MAX_OBJECTS_FACTOR * CHATS * LIBP2P_LINK.stream_window_bytes)
    assert sent > CHATS * 1000


@pytest.mark.parametrize("shape", ["unknown method", "known method"])
@scales
def test_one_peer_uses_up_its_own_rate_alone(scale: Scale, shape: str) -> None:
    """More calls a second than the node takes from all peers together, by one: the others do not notice."""
    per_peer = scale.operations / 5
    config = CONFIG.model_copy(
        update={"calls_per_s_per_peer": per_peer, "calls_per_s": 2 * per_peer, "max_queued_frames": 4096}
    )
    codes: Counter[str] = Counter()

    async def attack(it: Scene) -> None:
        stream = await it.open()
        decoder = f.FrameDecoder(max_frame_bytes=1 << 20)
        name = "plain" if shape == "known method" else "slow"
        for number in scale.rounds(20):
            data = b"".join(call(n, name, BODY) + f.encode(f.Cancel(n)) for n in range(number + 1, number + 21))
            await put(stream, data)
            frames, dropped = await take(stream, 0.001, decoder=decoder)
            assert not dropped
            codes.update(frame.code for frame in frames if isinstance(frame, f.Reply))

    simulate(attack, config=config)
    assert codes["busy"]


@scales
def test_keys_of_calls_that_never_come_again(scale: Scale) -> None:
    """Replies are kept for those who repeat; who only makes keys pushes out their own, and the tables stay small."""

    async def attack(it: Scene) -> None:
        streams = [await it.open(number) for number in range(len(it.crowd))]
        for number in scale.rounds():
            body = pack(Part(n=number, blob=bytes(2000)))
            stream = streams[number % len(streams)]
            await put(stream, call(number + 1, "keyed", body, key=number.to_bytes(8, "big")))
            if number % 40 == 0:
                for each in streams:
                    await take(each, 0.005)
        await trio.sleep(1)
        bounds = it.victim.config.replies
        assert it.victim.replies.replies <= bounds.max_replies
        assert it.victim.replies.bytes <= bounds.max_bytes
        assert max(len(own) for own in it.victim.replies._peers.values()) <= bounds.max_replies_per_peer

    # They give no window back: small answers queue up to the bound of frames, for each channel.
    unread = 20 * CONFIG.max_queued_frames * 2100
    simulate(attack, crowd=20, max_growth=MAX_GROWTH_BYTES + unread)


@scales
def test_strangers_get_nothing(scale: Scale) -> None:
    """Peers that are no members call all shapes with bodies of all sizes: refused before any body is taken."""
    codes: Counter[str] = Counter()

    async def one(it: Scene, number: int) -> None:
        stream = await it.open(number)
        name = ("plain", "count", "sum", "chat", "keyed", "tensor")[number % 6]
        size = 0 if name in ("sum", "chat") else 1 << 20
        await put(stream, call(1, name, bytes(min(size, 32 * 1024)), size=size, key=b"k" if name == "keyed" else b""))
        if not size:
            await put(stream, f.encode(f.Message(1, 100_000, bytes(30_000))))
        frames, dropped = await take(stream, 1.0)
        assert not dropped
        for frame in frames:
            assert not isinstance(frame, f.Message | f.Data)
            assert not (isinstance(frame, f.Credit) and frame.call_id and size), "its body was asked for"
            if isinstance(frame, f.Reply):
                codes[frame.code] += 1
        await stream.aclose()

    async def attack(it: Scene) -> None:
        for first in scale.rounds(TOGETHER):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + TOGETHER):
                    nursery.start_soon(one, it, number)
        called = sum(m.seconds for m in it.victim.metrics.methods_in.values())
        assert called < 1000

    simulate(attack, crowd=60, authorizer=members_only)
    assert set(codes) == {"not-authorized"}, codes
