"""What every command shares: errors in one sentence, clean ends on signals, the chain and key options."""

from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import random
import re
import resource
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation, localcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import trio
from cyclopts import App, Parameter
from pydantic import ValidationError

from mesh.cli.hints import hint_for
from mesh.config import DEFAULT_CHAIN_URL, SECRET_VARIABLES, VARIABLES
from mesh.errors import (
    ConfigError,
    ExtrinsicFailed,
    ExtrinsicInvalid,
    KeyFileError,
    MeshError,
    RemoteFailure,
    WorkerError,
)
from mesh.identity import AccountKey, parse_address
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.chain.substrate import SubstrateChain

T = TypeVar("T")


MAX_DOTENV_BYTES = 64 * 1024
MAX_SENTENCE_BYTES = 4096
"""Of an error as it is printed."""


def run_app(app: App, argv: Sequence[str] | None = None) -> None:
    """Run a command: usage errors exit 2, MeshErrors print one sentence and exit 1, `--debug` shows the traceback."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # keys are in memory
    tokens = normalized(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    if not debug:
        logging.getLogger().addHandler(logging.NullHandler())  # commands speak for themselves; servers set up logging
    try:
        if "--help" not in tokens:
            load_dotenv(Path(".env"))
        app(tokens)
        sys.stdout.flush()  # here, where a reader that left is no surprise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BaseException as error:
        cause = single_cause(error)
        if isinstance(cause, BrokenPipeError):  # `mesh … | head`: who reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(128 + signal.SIGPIPE)
        if debug or not isinstance(cause, MeshError | ValidationError | ModuleNotFoundError):
            raise
        # nodes and peers have a say in it: names out of metadata, an RPC error's message
        print(f"error: {printable(sentence(cause), MAX_SENTENCE_BYTES)}", file=sys.stderr)
        sys.exit(1)


def normalized(tokens: Sequence[str]) -> list[str]:
    """`--host_maddrs` means `--host-maddrs`: flags may be written with underscores, values stay as they are."""
    result: list[str] = []
    for token in tokens:
        if token == "--":
            return [*result, *tokens[len(result) :]]
        name, equals, value = token.partition("=")
        result.append(name.replace("_", "-") + equals + value if token.startswith("--") else token)
    return result


def single_cause(error: BaseException) -> BaseException:
    """The first error inside nested exception groups: nurseries wrap, people want the one thing that went wrong.

    MeshErrors come before others that were only cancelled by them.
    """
    while isinstance(error, BaseExceptionGroup):
        chosen, _ = error.split(MeshError)
        error = (chosen or error).exceptions[0]
    return error


def sentence(error: BaseException) -> str:
    """An error as a person reads it."""
    if isinstance(error, ExtrinsicFailed):
        hint = hint_for(error.name)
        return f"the chain refused it ({error}){': ' + hint if hint else ''}"
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is not installed: pip install 'mesh-subnets[subnets]'"
    if isinstance(error, WorkerError) and "ModuleNotFoundError" in str(error):
        return f"{error}: pip install 'mesh-subnets[subnets]'"
    if isinstance(error, ExtrinsicInvalid) and "pay" in error.reason.lower():
        return f"{error}: the signing account cannot pay the fee, send it TENSOR first"
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'config'}: {item['msg']} (got {item['input']!r})"
            for item in error.errors(include_url=False, include_context=False)
        )
    if isinstance(error, RemoteFailure) and error.details:
        return f"{error} {printable(json.dumps(error.details), 512)}"
    return str(error)


def load_dotenv(path: Path) -> None:
    """What `.env` says of mesh's own variables (config.VARIABLES), the real environment winning.

    The file is that of whatever folder a command is started in, perhaps somebody else's: it is taken as it stands
    (`${NAME}` would put a secret of the environment into a URL), and names nothing that other programs read (a proxy,
    a library path, where journals lie). Raises ConfigError when others could have written it, or when it holds a
    secret that others on this machine can read.
    """
    if not path.is_file():
        return
    from dotenv import dotenv_values

    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            raw = file.read(MAX_DOTENV_BYTES + 1)
        if len(raw) > MAX_DOTENV_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_DOTENV_BYTES} bytes")
        said = dotenv_values(stream=io.StringIO(raw.decode()), interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as NAME=value lines: {error}") from error
    values = {name: said[name] for name in VARIABLES if said.get(name)}  # NAME= means: not set here
    if values and info.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path} can be written by others: look what it says, then run `chmod o-w {path}`")
    if values and os.geteuid() not in (0, info.st_uid) and info.st_uid:  # root reads those of users, as in a container
        raise ConfigError(f"{path} is another user's: it is not read; copy it, or work in another folder")
    if set(values) & set(SECRET_VARIABLES) and stat.S_IMODE(info.st_mode) & 0o077:
        raise ConfigError(f"{path} holds a secret and others can read it: run `chmod 600 {path}`")
    for name, value in values.items():
        os.environ.setdefault(name, str(value))


def die_with_parent() -> None:
    """End with SIGTERM when the parent dies, where the parent asked for it (MESH_PARENT_PID; Linux only)."""
    parent = os.environ.get("MESH_PARENT_PID")
    if not parent or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we could ask
        sys.exit(1)


class Ends(Enum):
    """When a command is over."""

    WHEN_DONE = "when done"
    "It has something to finish: a signal cuts it short, and its exit code says so."
    WHEN_TOLD = "when told"
    "It runs until a signal ends it, which is no failure."


def run_until_signalled(
    main: Callable[[], Awaitable[None]],
    *,
    ends: Ends = Ends.WHEN_DONE,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """trio.run(main) that ends by cancellation on SIGINT or SIGTERM.

    `drain` comes first, and takes a bounded time; a second signal ends at once. What was cut short raises SystemExit
    with the code that shells give to a command ended by the signal, so that `&&` does not go on.
    """
    told: list[int] = []

    async def guarded() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    told.append(await anext(signals))
                    if drain is not None:
                        nursery.start_soon(finish, drain)
                        await anext(signals)
                    nursery.cancel_scope.cancel()

                async def finish(drain: Callable[[], Awaitable[None]]) -> None:
                    await drain()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                await main()
                told.clear()  # a signal that came too late cut nothing short
                nursery.cancel_scope.cancel()

    trio.run(guarded)
    if told and ends is Ends.WHEN_DONE:
        raise SystemExit(128 + told[0])


@Parameter(name="*")
@dataclass(frozen=True)
class ChainOptions:
    """Which chain to talk to."""

    chain_url: Annotated[tuple[str, ...], Parameter(env_var="MESH_CHAIN_URL")] = ()
    "Websocket URL(s) of a Substrate node; the next is tried when one fails."
    local_rpc: bool = False
    "Use the chain on this machine: LOCAL_RPC or ws://127.0.0.1:9944."
    chain_timeout: float = 60.0
    "Seconds to wait for the chain before giving up (commands only; nodes wait for ever)."

    def urls(self) -> tuple[str, ...]:
        """The URLs to use, from the flag, the environment or the default."""
        urls = (os.environ.get("LOCAL_RPC", DEFAULT_CHAIN_URL),) if self.local_rpc else self.chain_url
        for url in urls:
            if not url.startswith(("ws://", "wss://")):
                raise ConfigError(f"--chain-url: {url!r} is no websocket URL, such as {DEFAULT_CHAIN_URL}")
        return urls or (DEFAULT_CHAIN_URL,)


@Parameter(name="*")
@dataclass(frozen=True)
class ColdkeyOptions:
    """Which coldkey signs. Secrets on the command line are visible to others: local chains only."""

    coldkey_file: Path | None = None
    "File with the coldkey (mode 0600), or its name in the key store (`mesh keys`). Otherwise MESH_COLDKEY or PHRASE."
    private_key: str | None = None
    "Coldkey in hexadecimal; accepted on a local chain only."
    phrase: str | None = None
    "Coldkey as a BIP39 phrase; accepted on a local chain only."

    def on_argv(self) -> bool:
        """Whether a secret was given on the command line."""
        return self.private_key is not None or self.phrase is not None

    def key(self) -> AccountKey:
        """The coldkey. Raises KeyFileError saying how to give one."""
        return account_key(
            self.coldkey_file, ("MESH_COLDKEY", "PHRASE"), self.private_key or self.phrase, name="coldkey"
        )

    def account_id(self) -> bytes:
        """Whose coldkey it is; an encrypted file is taken at its word, so that looking needs no password."""
        if self.coldkey_file is not None and not self.on_argv():
            from mesh.cli.keyfiles import account_in, named_file

            return account_in(named_file(self.coldkey_file))
        return self.key().account_id


def account_key(file: Path | None, variables: Sequence[str], text: str | None, *, name: str) -> AccountKey:
    """From argv text, a file, or the first environment variable that is set, in this order.

    An encrypted file's password is MESH_KEY_PASSWORD or asked for. Raises KeyFileError.
    """
    if text is not None:
        return AccountKey.parse(text)
    if file is not None:
        from mesh.cli.keyfiles import named_file, open_key

        return open_key(named_file(file)).key
    for variable in variables:
        if value := os.environ.get(variable):
            return AccountKey.parse(value)
    raise KeyFileError(f"no {name} given: pass --{name}-file FILE or set {variables[0]}")


@asynccontextmanager
async def open_chain(
    options: ChainOptions, *, secret_on_argv: bool = False, acknowledged: bool = False
) -> AsyncIterator[SubstrateChain]:
    """A connected chain for one command. Raises ChainUnavailable after `chain_timeout`, WrongChain when a secret
    was on the command line and the chain is not local. `acknowledged`: public keys may sign on any chain."""
    from mesh.chain.local import TestChain, data_home
    from mesh.chain.substrate import ChainConfig, SubstrateChain
    from mesh.errors import ChainUnavailable

    chain = SubstrateChain(
        ChainConfig(
            urls=options.urls(),
            only_local=secret_on_argv,
            test_chain=TestChain.ACKNOWLEDGED if acknowledged else TestChain.NOT_SAID,
        ),
        journal_dir=data_home() / "journal",
        cache_dir=data_home() / "metadata",
        rng=random.Random(os.urandom(16)),
    )
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(options.chain_timeout) as waiting:
                async with trio.open_nursery() as patience:
                    patience.start_soon(_say_that_it_waits, options)
                    await nursery.start(chain.run)
                    patience.cancel_scope.cancel()
            if waiting.cancelled_caught:
                raise ChainUnavailable(
                    f"no chain answers at {', '.join(options.urls())} within {options.chain_timeout:g} s: "
                    "start one with `mesh-chain`, or give --chain-url"
                )
            yield chain
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise single_cause(group) from None  # so that a caller can catch what it knows


_QUIET_WAIT_S = 2.0
"""A command that waits for longer says for what."""


async def _say_that_it_waits(options: ChainOptions) -> None:
    await trio.sleep(_QUIET_WAIT_S)
    print(
        f"waiting for the chain at {', '.join(options.urls())}, for {options.chain_timeout:g} s at most "
        "(--chain-timeout)",
        file=sys.stderr,
    )


def read_chain(options: ChainOptions | None, reading: Callable[[SubstrateChain], Awaitable[T]]) -> T:
    """What `reading` makes of the chain, for commands that only look. A signal ends the command, and says so."""
    found: list[T] = []

    async def run() -> None:
        async with open_chain(options or ChainOptions()) as chain:
            found.append(await reading(chain))

    run_until_signalled(run)
    return found[0]


def account_meant(address: str | None, coldkey: ColdkeyOptions | None) -> bytes:
    """Whose account a command looks at: that of --address, or the coldkey's. Raises KeyFileError when there is none."""
    return parse_address(address) if address else (coldkey or ColdkeyOptions()).account_id()


@Parameter(name="*")
@dataclass(frozen=True)
class Whose:
    """Which account a command looks at, and how it says what it sees."""

    address: str | None = None
    "Whose; default is the coldkey's."
    json: bool = False
    "Print one JSON object."
    coldkey: ColdkeyOptions = field(default_factory=ColdkeyOptions)
    chain: ChainOptions = field(default_factory=ChainOptions)

    def account(self) -> bytes:
        """Raises KeyFileError when nothing says whose."""
        return account_meant(self.address, self.coldkey)


_MAX_AMOUNT_CHARS = 80
_UNITS = {"": 18, "tensor": 18, "planck": 0}


def planck(text: str, *, name: str) -> int:
    """An amount as typed, in planck, exactly: `100`, `100.5 TENSOR`, `100500000000000000000 planck`. A number without
    a unit is TENSOR. Raises ConfigError."""
    found = _AMOUNT.fullmatch(text.strip()) if len(text) <= _MAX_AMOUNT_CHARS else None
    if found is None or found["unit"].lower() not in _UNITS:
        commas = ", without commas" if "," in text else ""
        raise ConfigError(
            f"--{name}: {text!r} is no amount; write 100, 100.5 TENSOR or 100500000000000000000 planck{commas}"
        )
    digits = _UNITS[found["unit"].lower()]
    fraction = (found["fraction"] or "").rstrip("0")
    if len(fraction) > digits:
        raise ConfigError(f"--{name}: {text!r} has more than {digits} decimals, and a planck cannot be divided")
    amount = int(found["whole"].replace("_", "") + fraction.ljust(digits, "0"))
    if amount >= 2**128:
        raise ConfigError(f"--{name}: {text!r} is more than the chain can count")
    return amount


_AMOUNT = re.compile(r"(?P<whole>[0-9]+(?:_[0-9]+)*)(?:\.(?P<fraction>[0-9]+))?\s*(?P<unit>[A-Za-z]*)", re.ASCII)


def amount_or_all(amount: str | None, *, everything: bool) -> int | None:
    """What --amount AMOUNT or --all mean: planck, or None for everything. Raises ConfigError unless one is given."""
    if (amount is None) == (not everything):
        raise ConfigError("say how much: --amount AMOUNT or --all")
    return None if amount is None else planck(amount, name="amount")


def share(text: str, *, name: str) -> int:
    """`0.125` or `12.5%` as a fraction of 1e18, exactly. Raises ConfigError."""
    from mesh.chain.types import ONE

    try:
        with localcontext(prec=_MAX_AMOUNT_CHARS + 20):  # the usual 28 digits would round what has too many decimals
            value = Decimal(text.removesuffix("%")) * (ONE // 100 if text.endswith("%") else ONE)
    except InvalidOperation as error:
        raise ConfigError(f"--{name}: {text!r} is no number") from error
    if (
        len(text) > _MAX_AMOUNT_CHARS
        or not value.is_finite()
        or not 0 <= value <= ONE
        or value != value.to_integral_value()
    ):
        percent = f" (or do you mean {text}%?)" if value.is_finite() and ONE < value <= 100 * ONE else ""
        raise ConfigError(f"--{name}: {text!r} must be between 0 and 1, with at most 18 decimals{percent}")
    return int(value)


def receiver(text: str) -> bytes:
    """An account that is to get something. Raises KeyFileError, or ConfigError for the account of all zeros: nobody
    has its key, so that what it holds is lost."""
    account = parse_address(text)
    if not any(account):
        raise ConfigError(f"{text} belongs to nobody, and what is sent there is lost: give another address")
    return account


def read_toml(path: Path | None) -> dict[str, Any]:
    """A subnet's settings from a file, none without one. Raises ConfigError."""
    if path is None:
        return {}
    import tomllib

    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
