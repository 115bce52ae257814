"""How a command ends: what others wait for is finished first, and who insists is obeyed at once."""

import os
import signal
import subprocess
import sys

import pytest
import trio

from mesh.cli.common import Ends, run_until_signalled


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

    run_until_signalled(main, ends=Ends.WHEN_TOLD, drain=drain)
    assert said == ["draining", "drained", "ended"]


def test_a_second_signal_ends_at_once() -> None:
    async def drain() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    run_until_signalled(main, ends=Ends.WHEN_TOLD, drain=drain)


def test_without_a_drain_the_first_signal_ends() -> None:
    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    run_until_signalled(main, ends=Ends.WHEN_TOLD)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_cut_short_is_no_success(number: signal.Signals) -> None:
    async def main() -> None:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    with pytest.raises(SystemExit) as ended:
        run_until_signalled(main)
    assert ended.value.code == 128 + number


def test_what_is_done_is_a_success_whatever_comes_then() -> None:
    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)

    run_until_signalled(main)


def test_a_reader_that_leaves_is_no_error() -> None:
    """`mesh … | head -1`."""
    program = "from cyclopts import App; from mesh.cli.common import run_app; app = App();" + (
        "app.default(lambda: print('line\\n' * 100_000)); run_app(app, [])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.wait() == 128 + signal.SIGPIPE
