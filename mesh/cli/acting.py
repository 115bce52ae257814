"""How every command that signs goes: make the calls, check them, show what would be signed, ask, submit, say.

`--dry-run` stops after showing; `--yes` does not ask. What is shown is decoded from the bytes that would be signed.
"""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cyclopts import Parameter

from mesh.chain.checks import require_funds
from mesh.chain.dialect import PALLET
from mesh.cli.common import ChainOptions, ColdkeyOptions, open_chain, run_until_signalled, single_cause
from mesh.errors import ConfigError
from mesh.identity import AccountKey, checksum_address
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.chain.dialect import Call
    from mesh.chain.substrate import Preview, SubstrateChain
    from mesh.chain.types import Receipt

_SHOWN_BYTES = 64
_SHOWN_TEXT_BYTES = 256
_SHOWN_LINE_BYTES = 4096


@Parameter(name="*")
@dataclass(frozen=True)
class ActOptions:
    """What every signing command takes."""

    dry_run: bool = False
    "Show the decoded call and its fee, and sign nothing."
    yes: bool = False
    "Sign without asking."
    json: bool = False
    "Print one JSON object (asks nothing: needs --yes or --dry-run)."
    i_know_this_is_a_test_chain: bool = False
    "Let public development keys sign on a chain that is not this machine's own."
    coldkey: ColdkeyOptions = field(default_factory=ColdkeyOptions)
    chain: ChainOptions = field(default_factory=ChainOptions)


@dataclass(frozen=True, slots=True)
class Step:
    """One extrinsic a command wants signed."""

    does: str
    """What it does, for people, in the imperative: `stake 100 TENSOR on node 3`."""
    call: Call
    spends_planck: int = 0
    """Free balance it takes beside the fee."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All a command wants signed, in this order, and what a person should know first."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    then: Callable[[SubstrateChain, Sequence[Receipt]], Awaitable[tuple[Step, ...]]] | None = None
    """Further steps that only the receipts of the first ones make possible. They are signed without asking again: what
    they do must be said by a first one."""
    after: Callable[[SubstrateChain, Sequence[Receipt]], Awaitable[Outcome]] | None = None
    """What to say once it is done."""
    before: Callable[[], None] | None = None
    """Called right before the first signature: what must be on disk by then."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command says at its end: lines for people, values for programs."""

    lines: tuple[str, ...] = ()
    values: Mapping[str, object] = field(default_factory=dict)


Planner = Callable[["SubstrateChain", AccountKey], Awaitable[Plan]]


def act(options: ActOptions | None, planner: Planner, *, signer: AccountKey | None = None) -> None:
    """Run a signing command; `signer` is the coldkey of the options where it is not given."""
    chosen = options or ActOptions()
    if chosen.json and not (chosen.yes or chosen.dry_run):
        raise ConfigError("--json asks nothing: add --yes to sign, or --dry-run to look")
    key = signer or chosen.coldkey.key()
    begun: list[Step] = []

    async def run() -> None:
        async with open_chain(
            chosen.chain,
            secret_on_argv=chosen.coldkey.on_argv(),
            acknowledged=chosen.i_know_this_is_a_test_chain,
        ) as chain:
            await _carry_out(chain, key, await planner(chain, key), chosen, begun)

    try:
        run_until_signalled(run)
    except SystemExit:
        if not begun and not chosen.dry_run:
            print("stopped: nothing was signed", file=sys.stderr)
        raise


@dataclass(frozen=True, slots=True)
class _Shown:
    """A step as it would be signed: its call read back from the bytes, and what it costs."""

    step: Step
    preview: Preview
    fee_planck: int

    def values(self) -> dict[str, object]:
        """For programs."""
        return {
            "does": self.step.does,
            "call": self.preview.call.removeprefix(f"{PALLET}."),
            "args": plain(self.preview.args),
            "bytes": "0x" + self.preview.raw.hex(),
            "fee_planck": str(self.fee_planck),
        }

    def show(self) -> None:
        """For people. Every name and value here is the node's word: none may steer the terminal."""
        print(_safe(self.step.does))
        print(f"  {_safe(self.preview.call)}")
        for name, value in self.preview.args.items():
            print(f"    {_safe(name):<24} {one_line(value)}")
        print(f"  fee {self.fee_planck} planck")


async def _carry_out(
    chain: SubstrateChain, signer: AccountKey, plan: Plan, options: ActOptions, begun: list[Step]
) -> None:
    if not plan.steps:
        raise ConfigError("nothing to do: say what to change")
    chain.require_may_sign(signer.account_id)
    for warning in plan.warnings:
        print(f"warning: {printable(warning, _SHOWN_LINE_BYTES)}", file=sys.stderr)
    shown = [await _look(chain, signer, step) for step in plan.steps]
    require_funds(
        free_planck=(await chain.balance(signer.account_id)).free_planck,
        spends_planck=sum(step.spends_planck for step in plan.steps),
        fee_planck=sum(each.fee_planck for each in shown),
        account=signer.account_id,
    )
    if options.dry_run and options.json:
        said = {"dry_run": True, "signer": signer.address, "url": chain.url}
        print(jsonlib.dumps({**said, "calls": [each.values() for each in shown]}))
        return
    if options.dry_run or not options.yes:
        for each in shown:
            each.show()
        print(f"signed by {signer.address} for {chain.url}")
    if options.dry_run:
        print("nothing was signed (--dry-run)")
        return
    if not options.yes:
        await _ask(len(plan.steps))
    if plan.before is not None:
        plan.before()
    receipts = await _submit(chain, signer, plan, shown, options, begun)
    outcome = await plan.after(chain, receipts) if plan.after is not None else Outcome()
    if options.json:
        print(jsonlib.dumps({**outcome.values, **paid(receipts), "calls": [each.values() for each in shown]}))
        return
    for line in outcome.lines:
        print(printable(line, _SHOWN_LINE_BYTES))


async def _look(chain: SubstrateChain, signer: AccountKey, step: Step) -> _Shown:
    preview = await chain.preview(step.call.name, step.call.args, signer)
    return _Shown(step, preview, await chain.fee_of(preview.raw, signer))


async def _submit(
    chain: SubstrateChain,
    signer: AccountKey,
    plan: Plan,
    shown: Sequence[_Shown],
    options: ActOptions,
    begun: list[Step],
) -> list[Receipt]:
    """One after the other: a later step may need what an earlier one did. The first that fails ends it, and what is
    left undone is said. `begun` gets each step before it is sent.

    What was shown is signed by its bytes: they are not made again, for the chain may have changed since.
    """
    receipts: list[Receipt] = []
    steps = list(shown)
    while len(receipts) < len(steps):
        each = steps[len(receipts)]
        begun.append(each.step)
        try:
            receipt = await chain.submit_shown(each.preview, signer)
        except BaseException as error:
            _say_undone(error, [left.step for left in steps], done=len(receipts))
            raise
        receipts.append(receipt)
        # a program reads stdout when all is done; where a later step fails, this is what tells of the earlier ones
        done = f"done in block {receipt.block.number}: {_safe(each.step.does)}"
        print(done, file=sys.stderr if options.json else sys.stdout, flush=True)
        if len(receipts) == len(shown) and plan.then is not None:
            steps += [await _look(chain, signer, step) for step in await plan.then(chain, receipts)]
    return receipts


def _say_undone(error: BaseException, steps: Sequence[Step], *, done: int) -> None:
    """What a person must know when the next of these steps did not come back with a receipt."""
    import trio

    if isinstance(single_cause(error), trio.Cancelled):  # alone or in a group
        text = "stopped while this was sent, so look whether it was done before you do it again"
        print(f"{text}: {_safe(steps[done].does)}", file=sys.stderr)
    elif len(steps) > 1:
        for undone in steps[done:]:
            print(f"not done: {_safe(undone.does)}", file=sys.stderr)


def paid(receipts: Sequence[Receipt]) -> dict[str, object]:
    """Block, hash and fee for programs: of the last extrinsic, the fee of all."""
    last = receipts[-1]
    return {
        "fee_planck": str(sum(receipt.fee_planck for receipt in receipts)),
        "block": last.block.number,
        "extrinsic": "0x" + last.extrinsic_hash.hex(),
    }


async def _ask(count: int) -> None:
    """Raises ConfigError unless a person says yes."""
    import trio

    question = "sign and submit this? [y/N] " if count == 1 else f"sign and submit these {count}? [y/N] "
    try:
        answer = await trio.to_thread.run_sync(input, question, abandon_on_cancel=True)
    except EOFError:
        raise ConfigError("nobody is there to ask: nothing was signed, pass --yes to sign without asking") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was signed")


def plain(value: object) -> object:
    """A decoded value as JSON: bytes in hexadecimal, integers of more than 53 bits as text, sets as lists."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, Mapping):
        return {_key(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return str(value)


def _key(key: object) -> str:
    return "0x" + key.hex() if isinstance(key, bytes) else str(key)


def one_line(value: object) -> str:
    """A decoded value in one line: accounts with checksum, printable bytes as text, long ones cut. Safe to print."""
    if isinstance(value, bytes):
        if len(value) == 20:
            return checksum_address(value)
        if not value:
            return "''"
        if all(32 <= byte < 127 for byte in value):
            return _safe(value.decode("ascii"))
        return f"0x{value[:_SHOWN_BYTES].hex()}{'…' if len(value) > _SHOWN_BYTES else ''}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{one_line(key)}: {one_line(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(one_line(each) for each in value) + "]"
    return "-" if value is None else _safe(str(value))


def _safe(text: str) -> str:
    return printable(text, _SHOWN_TEXT_BYTES)
