"""How a command ends: what others wait for is finished first, and who insists is obeyed at once."""

import os
import signal

import pytest
import trio

from mesh.cli.common import run_until_signalled


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_then_ends(number: signal.Signals) -> None:
    said: list[str] = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
        finally:
            said.append("ended")

    async def drain() -> None:
        said.append("draining")
        await trio.sleep(0.01)
        said.append("drained")

    run_until_signalled(main, drain=drain)
    assert said == ["draining", "drained", "ended"]


def test_a_second_signal_ends_at_once() -> None:
    async def drain() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    run_until_signalled(main, drain=drain)


def test_without_a_drain_the_first_signal_ends() -> None:
    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    run_until_signalled(main)
