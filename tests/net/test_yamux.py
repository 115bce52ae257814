"""The muxer alone, over connections in memory and in virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

from mesh.net.yamux import FIRST_WINDOW, YamuxConfig, YamuxConnection, YamuxStream

from .wire import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW, Wire, wires

PEER = ID(b"\x00\x02ab")


@asynccontextmanager
async def two(config: YamuxConfig | None = None, capacity: float = 1000) -> AsyncIterator[list[YamuxConnection]]:
    ends = [YamuxConnection(wire, PEER, config=config) for wire in wires(capacity)]
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.start)
            await end.event_started.wait()
        yield ends
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def hostile(config: YamuxConfig | None = None) -> AsyncIterator[tuple[YamuxConnection, Wire]]:
    """Ours is the initiator, the test speaks for the peer."""
    wire, peer = wires()
    ours = YamuxConnection(wire, PEER, config=config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.start)
        await ours.event_started.wait()
        yield ours, peer
        nursery.cancel_scope.cancel()


async def read_all(stream: YamuxStream) -> bytes:
    data = b""
    while True:
        try:
            data += await stream.read(10_000)
        except MuxedStreamEOF:
            return data


async def test_streams_of_both_sides_carry_what_was_sent(autojump_clock):
    async with two() as (a, b):
        for one, other in ((a, b), (b, a)):
            sent = await one.open_stream()
            await sent.write(b"hello")
            await sent.close()
            got = await other.accept_stream()
            assert await read_all(got) == b"hello"
            await got.write(b"x" * 100_000)
            await got.close()
            assert await read_all(sent) == b"x" * 100_000
            with pytest.raises(MuxedStreamClosed):
                await sent.write(b"more")
        assert a.stream_count == b.stream_count == 0
        assert a.idle_since is not None


@pytest.mark.parametrize("window", [FIRST_WINDOW, 1024 * 1024])
async def test_a_sender_gets_one_window_ahead_and_no_further(autojump_clock, window):
    async with two(YamuxConfig(receive_window_bytes=window)) as (a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        with trio.move_on_after(5) as scope:
            await stream.write(b"x" * 10 * window)
        assert scope.cancelled_caught
        got = 0
        with trio.move_on_after(5):
            while True:
                got += len(await other.read())
        assert got == window  # the rest was never taken: the sender had given up

    async with two(YamuxConfig(receive_window_bytes=window)) as (a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, b"y" * 5 * window)
            got = 0
            while got < 5 * window:
                got += len(await other.read(12_345))


async def test_a_stalled_reader_is_waited_for_and_then_given_up(autojump_clock):
    """B5: py-libp2p breaks the stream after 5 s."""
    async with two(YamuxConfig(write_stall_timeout_s=60)) as (a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, b"x" * (FIRST_WINDOW + 1000))
            await trio.sleep(50)
            assert len(await other.read()) > 0
            with trio.fail_after(1):
                while (await other.read())[-1:] != b"x" or not stream._send_window:
                    pass
        start = trio.current_time()
        with pytest.raises(MuxedStreamError, match="60 s"):
            await stream.write(b"x" * 10 * FIRST_WINDOW)
        assert trio.current_time() - start == pytest.approx(60, abs=1)


async def test_a_full_connection_makes_opening_wait_until_a_stream_ends(autojump_clock):
    """B6: here waiting ends with the caller's patience, and the place comes back."""
    async with two(YamuxConfig(max_outbound_streams=2)) as (a, b):
        first = await a.open_stream()
        await a.open_stream()
        with pytest.raises(trio.TooSlowError), trio.fail_after(3):
            await a.open_stream()
        other = await b.accept_stream()
        await first.close()
        with pytest.raises(trio.TooSlowError), trio.fail_after(3):
            await a.open_stream()
        await other.close()
        with trio.fail_after(3):
            await a.open_stream()


async def test_a_reset_drops_what_was_not_read(autojump_clock):
    async with two() as (a, b):
        stream = await a.open_stream()
        await stream.write(b"never mind")
        other = await b.accept_stream()
        await trio.sleep(0.1)
        await stream.reset()
        await trio.sleep(0.1)
        for end in (stream, other):
            with pytest.raises(MuxedStreamReset):
                await end.read()
            with pytest.raises(MuxedStreamReset):
                await end.write(b"x")
        assert a.stream_count == b.stream_count == 0


async def test_a_reset_after_the_end_takes_nothing_back(autojump_clock):
    async with two() as (a, b):
        stream = await a.open_stream()
        await stream.write(b"all of it")
        await stream.close()
        await stream.reset()
        other = await b.accept_stream()
        await trio.sleep(0.1)
        assert await read_all(other) == b"all of it"


async def test_a_lost_connection_is_no_clean_end(autojump_clock):
    """B16: py-libp2p reports an end of stream, so that a cut-off answer looks whole."""
    async with two() as (a, b):
        stream = await a.open_stream()
        await stream.write(b"half an ans")
        other = await b.accept_stream()
        await trio.sleep(0.1)
        await a.secured_conn.close()
        await b.event_closed.wait()
        assert await other.read() == b"half an ans"
        with pytest.raises(MuxedStreamReset):
            await other.read()
        with pytest.raises(MuxedConnUnavailable):
            await b.open_stream()
        with pytest.raises(MuxedConnUnavailable):
            await b.accept_stream()


async def test_a_cancelled_writer_leaves_the_connection_whole(autojump_clock):
    """B14: py-libp2p's caller writes itself, and cancelled leaves half a message."""
    async with two() as (a, b):
        stuck, good = await a.open_stream(), await a.open_stream()
        await trio.sleep(0.1)
        a.secured_conn.gate = trio.Event()
        with trio.move_on_after(1) as scope:
            await stuck.write(b"x" * FIRST_WINDOW * 2)
        assert scope.cancelled_caught
        a.secured_conn.gate.set()
        await stuck.reset()
        await good.write(b"fine")
        await b.accept_stream()
        assert await (await b.accept_stream()).read() == b"fine"


async def test_two_busy_peers_do_not_wait_for_each_other(autojump_clock):
    """B15: both write all they can over a connection that holds one message, and open streams meanwhile."""
    async with two(capacity=1) as (a, b):
        finished = 0

        async def echo_end(connection: YamuxConnection) -> None:
            while True:
                stream = await connection.accept_stream()
                nursery.start_soon(read_all, stream)

        async def push(connection: YamuxConnection) -> None:
            nonlocal finished
            for _ in range(5):
                stream = await connection.open_stream()
                await stream.write(b"x" * 300_000)
                await stream.close()
            finished += 1

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for end in (a, b):
                    nursery.start_soon(echo_end, end)
                async with trio.open_nursery() as pushers:
                    for end in (a, a, b, b):
                        pushers.start_soon(push, end)
                nursery.cancel_scope.cancel()
        assert finished == 4


async def test_a_silent_peer_is_noticed(autojump_clock):
    """B17."""
    async with hostile(YamuxConfig(ping_interval_s=10, ping_timeout_s=5)) as (ours, peer):
        kind, flags, *_ = await peer.receive_frame()
        assert (kind, flags) == (PING, SYN)
        assert trio.current_time() > 9
        await ours.event_closed.wait()
        assert "ping" in ours.reason


async def test_pings_are_answered_and_measured(autojump_clock):
    async with two(YamuxConfig(ping_interval_s=1)) as (a, b):
        await trio.sleep(5.5)
        assert a.rtt_s == pytest.approx(0, abs=0.1)
        assert b.rtt_s == pytest.approx(0, abs=0.1)
        assert not a.is_closed


@pytest.mark.parametrize(
    ("kind", "flags", "stream", "body", "version"),
    [
        (DATA, 0, 2, b"", 1),
        (7, 0, 2, b"", 0),
        (DATA, 0, 2, FIRST_WINDOW + 1, 0),
        (DATA, 0, 2, 0xFFFFFFFF, 0),
        (WINDOW, SYN, 1, 0, 0),
        (WINDOW, SYN, 0, 0, 0),
    ],
    ids=["version", "type", "too long", "4 GiB", "our id", "id 0"],
)
async def test_a_peer_that_breaks_the_protocol_loses_the_connection(autojump_clock, kind, flags, stream, body, version):
    async with hostile() as (ours, peer):
        await peer.send_frame(kind, flags, stream, body, version)
        with trio.fail_after(1):
            await ours.event_closed.wait()
        assert "broke the protocol" in ours.reason


async def test_a_peer_that_ignores_the_window_loses_the_connection(autojump_clock):
    """B13: py-libp2p logs a warning and keeps the bytes."""
    async with hostile() as (ours, peer):
        await peer.send_frame(WINDOW, SYN, 2)
        stream = await ours.accept_stream()
        for _ in range(8):
            await peer.send_frame(DATA, 0, 2, b"x" * (FIRST_WINDOW // 8))
        await trio.sleep(0.1)
        assert not ours.is_closed
        await peer.send_frame(DATA, 0, 2, b"x")
        await ours.event_closed.wait()
        assert "beyond the window" in ours.reason
        assert len(stream._buffer) == FIRST_WINDOW


async def test_more_streams_than_allowed_are_reset(autojump_clock):
    async with hostile(YamuxConfig(max_inbound_streams=3)) as (ours, peer):
        for number in range(5):
            await peer.send_frame(WINDOW, SYN, 2 + 2 * number)
        answers = [await peer.receive_frame() for _ in range(5)]
        assert [flags for _, flags, *_ in answers] == [ACK] * 3 + [RST] * 2
        assert ours.stream_count == 3
        for _ in range(3):
            await ours.accept_stream()
        await peer.send_frame(WINDOW, RST, 2)
        await peer.send_frame(WINDOW, SYN, 20)
        _, flags, stream, *_ = await peer.receive_frame()
        assert (flags, stream) == (ACK, 20)


async def test_streams_opened_too_fast_are_reset(autojump_clock):
    async with hostile(YamuxConfig(streams_per_s=2.0, streams_burst=4.0)) as (ours, peer):

        async def flood(first: int, count: int) -> list[int]:
            for number in range(first, first + count):
                await peer.send_frame(WINDOW, SYN | FIN, 2 + 2 * number)
            return [(await peer.receive_frame())[1] for _ in range(count)]

        assert (await flood(0, 10)).count(RST) == 6
        await trio.sleep(1.0)
        assert (await flood(10, 10)).count(RST) == 8
        assert not ours.is_closed


async def test_replies_nobody_reads_do_not_pile_up(autojump_clock):
    async with hostile(YamuxConfig(max_unsent_control_bytes=4096)) as (ours, peer):
        ours.secured_conn.gate = trio.Event()
        with suppress(ConnectionClosedError):
            for _ in range(400):
                await peer.send_frame(PING, SYN, 0, 1)
        with trio.fail_after(1):
            await ours.event_closed.wait()
        assert "replies" in ours.reason


async def test_late_frames_of_a_closed_stream_are_ignored(autojump_clock):
    async with hostile() as (ours, peer):
        stream = await ours.open_stream()
        await stream.reset()
        for flags in (0, FIN, RST):
            await peer.send_frame(DATA, flags, stream.stream_id, b"late")
        await peer.send_frame(WINDOW, 0, 99, 1000)
        await trio.sleep(0.1)
        assert not ours.is_closed
        assert ours.stream_count == 0


async def test_go_away_ends_it_and_close_says_so(autojump_clock):
    async with hostile() as (ours, peer):
        await peer.send_frame(GO_AWAY, 0, 0, 0)
        await ours.event_closed.wait()
    async with hostile() as (ours, peer):
        called = trio.Event()

        async def on_close() -> None:
            called.set()

        ours.on_close = on_close
        await ours.close()
        assert (await peer.receive_frame())[0] == GO_AWAY
        assert called.is_set()
        await ours.close()


async def test_close_is_bounded_when_the_peer_does_not_read(autojump_clock):
    async with hostile() as (ours, _peer):
        ours.secured_conn.gate = trio.Event()
        start = trio.current_time()
        await ours.close()
        assert trio.current_time() - start <= ours.config.flush_timeout_s + 0.01


async def test_discarded_input_is_not_kept(autojump_clock):
    async with two() as (a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        other.discard_input()
        await stream.write(b"x" * FIRST_WINDOW)
        await trio.sleep(0.1)
        assert not other._buffer
