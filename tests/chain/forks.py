"""Processes that can be killed at a named step: a server that forks them, as starting Python for each would take long.

Run: python -m tests.chain.forks. One line of JSON in, {"do": "submit" | "chain", ...}; out come {"pid": …} at once,
{"url": …} of a chain when it listens, and {"exit": pid, "signal": …, "result": …} when one ends.

The steps are wrapped around the product's functions here; the product knows nothing of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import trio
import trio_websocket

from mesh.chain import journal as journals
from mesh.chain import submitting, subscription
from mesh.chain.journal import Journal
from mesh.chain.submitting import Submitter
from mesh.chain.substrate import ChainConfig, SubstrateChain
from mesh.chain.types import Receipt, Score
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.node import run_chain
from mesh.errors import ChainError, first_leaf
from mesh.identity import AccountKey

STEPS = (
    "before the journal has it",
    "the journal has half a line of it",
    "the journal has it",
    "about to send",
    "sent and not answered",
    "told ready",
    "told inBlock",
    "found in a block",
    "its events are read",
    "before the journal has its fate",
    "the journal has half a line of its fate",
    "the journal has its fate",
    "the caller has the receipt",
    "its block is final",
)
"""All there is between signing and finality."""
SETTLING_STEPS = ("about to send again", "sent again", *STEPS[7:])
"""What a second life goes through, when what the first one left is in no block."""


class Steps:
    """Kills this process when it comes to a step."""

    def __init__(self, fatal: str | None) -> None:
        self._fatal = fatal

    def at(self, step: str) -> None:
        if step == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Wrap the product's functions."""
        self._wrap_journal()
        self._wrap_sending()
        self._wrap_looking()

    def _wrap_journal(self) -> None:
        opening, closing, writing = Journal.open, Journal.close, journals._write_all

        def write_all(handle: int, data: bytes) -> None:
            half = "of it" if b'"step": "open"' in data else "of its fate"
            if self._fatal == f"the journal has half a line {half}":
                os.write(handle, data[: len(data) // 2])
                self.at(self._fatal)
            writing(handle, data)

        def open_entry(journal: Journal, entry: Any) -> None:
            self.at("before the journal has it")
            opening(journal, entry)
            self.at("the journal has it")

        def close_entry(journal: Journal, *args: Any, **named: Any) -> None:
            self.at("before the journal has its fate")
            closing(journal, *args, **named)
            self.at("the journal has its fate")

        journals._write_all = write_all
        Journal.open = open_entry  # type: ignore[method-assign]
        Journal.close = close_entry  # type: ignore[method-assign]

    def _wrap_sending(self) -> None:
        subscribing, plainly = submitting.subscribe, Submitter._send_plainly
        send_message = trio_websocket.WebSocketConnection.send_message

        async def subscribe(
            url: str, method: str, params: Sequence[object], tell: Callable[[object], None], config: Any
        ) -> NoReturn:
            self.at("about to send")

            def told(status: object) -> None:
                self.at(f"told {submitting._name_of(status)}")
                tell(status)

            await subscribing(url, method, params, told, config)

        async def send(websocket: trio_websocket.WebSocketConnection, message: str) -> None:
            await send_message(websocket, message)
            if "author_submitAndWatchExtrinsic" in message:
                self.at("sent and not answered")

        async def send_plainly(submitter: Submitter, entry: Any) -> None:
            self.at("about to send again")
            await plainly(submitter, entry)
            self.at("sent again")

        submitting.subscribe = subscribe
        assert subscription.trio_websocket is trio_websocket
        trio_websocket.WebSocketConnection.send_message = send
        Submitter._send_plainly = send_plainly  # type: ignore[method-assign]

    def _wrap_looking(self) -> None:
        looking, receipt = Submitter._look, Submitter._receipt

        async def look(submitter: Submitter, entry: Any) -> Any:
            fate = await looking(submitter, entry)
            if fate.found.block is not None:
                self.at("found in a block")
            return fate

        async def read(*args: Any) -> Receipt:
            found = await receipt(*args)
            self.at("its events are read")
            return found

        Submitter._look = look  # type: ignore[method-assign]
        Submitter._receipt = read  # type: ignore[method-assign]


def act(chain: SubstrateChain, call: str, args: Mapping[str, Any], key: AccountKey) -> Awaitable[Receipt]:
    """The call by name; bytes come as {"hex": …}."""
    if call == "propose":
        scores = [Score(node_id, score) for node_id, score in args["scores"]]
        return chain.propose(args["subnet_id"], scores, args=bytes.fromhex(args["args"]), hotkey=key)
    if call == "attest":
        return chain.attest(args["subnet_id"], hotkey=key)
    return chain.submit(call, _bytes(args), key)


def _bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"]) if set(value) == {"hex"} else {k: _bytes(v) for k, v in value.items()}
    return [_bytes(each) for each in value] if isinstance(value, list) else value


async def submit(request: Mapping[str, Any]) -> dict[str, Any]:
    steps = Steps(request.get("kill"))
    steps.install()
    key = AccountKey.from_private(bytes.fromhex(request["key"]))
    config = ChainConfig(
        urls=tuple(request["urls"]), poll_interval_s=0.05, backoff_first_s=0.05, backoff_max_s=0.2, silence_s=0.2,
        resend_interval_s=0.1, call_timeout_s=5, submit_timeout_s=request.get("timeout_s", 20),
    )  # fmt: skip
    recover = (key.account_id,) if request.get("recover") else ()
    chain = SubstrateChain(config, journal_dir=Path(request["journal"]), recover=recover, rng=random.Random(1))
    result: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(chain.run)
        try:
            receipt = await act(chain, request["call"], request["args"], key)
            steps.at("the caller has the receipt")
            while (await chain.finalized()).number < receipt.block.number:  # noqa: ASYNC110 - another process
                await trio.sleep(0.005)
            steps.at("its block is final")
            result = {"hash": receipt.extrinsic_hash.hex(), "block": receipt.block.number}
        except ChainError as error:
            result = {"error": type(error).__name__, "text": str(error)}
        nursery.cancel_scope.cancel()
    return result


async def run_dev_chain(config: DevChainConfig, report: int) -> None:
    dev = DevChain(config)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: run_chain(config, chain=dev, task_status=task_status))
        os.write(report, json.dumps({"url": url}).encode())
        os.close(report)


def work(request: Mapping[str, Any], report: int) -> None:
    """In the child: do it, and write what came of it."""
    if request["do"] == "chain":
        trio.run(run_dev_chain, DevChainConfig.model_validate(request["config"]), report)
        return
    try:
        result = trio.run(submit, request)
    except BaseException as error:  # noqa: BLE001 - reported to the test
        result = {"error": type(first_leaf(error)).__name__, "text": repr(first_leaf(error))}
    os.write(report, json.dumps(result).encode())


def say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def fork(request: Mapping[str, Any]) -> tuple[int, int]:
    """(pid, descriptor of its report)"""
    reading, writing = os.pipe()
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != server:
            os._exit(1)
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        try:
            work(request, writing)
        finally:
            os._exit(0)
    os.close(writing)
    return pid, reading


def main() -> None:
    children: dict[int, int] = {}
    reports: dict[int, bytes] = {}
    buffer = b""
    while True:
        ready, _, _ = select.select([0, *(fd for pid, fd in children.items() if pid not in reports)], [], [], 0.005)
        for pid, fd in list(children.items()):
            if fd in ready and pid not in reports:
                reports[pid] = os.read(fd, 1 << 16)
                if b'"url"' in reports[pid]:
                    say(json.loads(reports[pid]))
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                pid, fd = fork(json.loads(line))
                children[pid] = fd
                say({"pid": pid})
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            fd = children.pop(pid)
            report = reports.pop(pid, None) or os.read(fd, 1 << 16)
            os.close(fd)
            ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            say({"exit": pid, "signal": ended, "result": json.loads(report) if report else None})


if __name__ == "__main__":
    main()
