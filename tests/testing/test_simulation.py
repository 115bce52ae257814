"""run_sim: virtual time, a seeded scheduler, and nothing from outside."""

from __future__ import annotations

import random
import socket

import pytest
import trio

from mesh.errors import LocalProtocolError
from mesh.testing.simulation import MAX_VIRTUAL_S, run_sim


def order(seed: int) -> list[int]:
    """In which order trio ran tasks that were ready at once."""
    ran: list[int] = []

    async def one(number: int, event: trio.Event) -> None:
        await trio.sleep(1)
        ran.append(number)
        await event.wait()
        ran.append(number)

    async def main() -> None:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number, event)
            await trio.sleep(2)
            event.set()

    run_sim(main, seed)
    return ran


def test_the_seed_decides_the_order_of_tasks() -> None:
    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(3)) == sorted([*range(50)] * 2)


def test_time_is_virtual_and_the_result_is_returned() -> None:
    async def main() -> float:
        start = trio.current_time()
        await trio.sleep(86_400)
        return trio.current_time() - start

    assert run_sim(main, 0) == pytest.approx(86_400)


def test_no_sockets_and_no_threads() -> None:
    async def use_socket() -> None:
        trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    async def thread() -> None:
        await trio.to_thread.run_sync(int)

    for main in (use_socket, thread):
        with pytest.raises(LocalProtocolError):
            run_sim(main, 0)


def test_it_ends_and_leaves_no_trace() -> None:
    async def forever() -> None:
        await trio.sleep_forever()

    async def thread() -> int:
        return await trio.to_thread.run_sync(int)

    with pytest.raises(trio.TooSlowError):
        run_sim(forever, 0)
    assert trio.run(thread) == 0  # real runs afterwards are as before
    assert MAX_VIRTUAL_S > 86_400


def test_errors_of_main_come_out() -> None:
    async def main() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_sim(main, random.Random(0).getrandbits(16))
