"""`mesh chain`, `mesh-chain`: run the embedded development chain, and change one that runs."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import trio
from cyclopts import Parameter

from mesh.cli.common import ChainOptions, Ends, planck, run_until_signalled, single_cause
from mesh.errors import ChainError, ChainUnavailable, ConfigError
from mesh.identity import DEV_NAMES, AccountKey, parse_address


def run(
    *,
    data_dir: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 9944,
    block_time: str = "6",
    epoch_length: int | None = None,
    fund: tuple[str, ...] = (),
    genesis: Path | None = None,
    dev_rpc: bool = False,
    log_level: str = "INFO",
    log_json: bool = False,
    log_file: Path | None = None,
    json: bool = False,
) -> None:
    """Run a chain of one machine, for development and tests: real signatures, fees and rewards, no real money.

    It speaks Substrate JSON-RPC; any Substrate client can use it. Its only author could choose its randomness and its
    state root is no Merkle root, so nothing of value belongs on it. The public development accounts (alith … ian) are
    funded with 1,000,000 TENSOR each.

    Args:
        data_dir: Folder of the chain's database; default is under ~/.local/share/mesh.
        host: Address to listen on; keep it loopback.
        port: Port to listen on; 0 takes a free one.
        block_time: Seconds between blocks, or `manual` (blocks only by dev_newBlock, needs --dev-rpc).
        epoch_length: Blocks per epoch; the genesis file's, or 20.
        fund: Further accounts at genesis, as ADDRESS=TENSOR.
        genesis: TOML file with what the chain is at block 0: epoch_length, time_ms, dev_accounts, defaults (`dev` or
            `network`), [fund] of ADDRESS = TENSOR, [network] of plain storage items of the Network pallet.
        dev_rpc: Let whoever can connect make blocks, set storage, take and restore snapshots (`mesh chain dev`).
        log_level: Least level of log lines.
        log_json: Log as JSON lines.
        json: Say on stdout that the chain is ready as one JSON object.
        log_file: Log to this file instead of stderr.
    """
    from mesh import log
    from mesh.chain.local import data_home
    from mesh.devchain.genesis import GenesisFile, read_genesis
    from mesh.devchain.node import DevChainConfig, ServerConfig, run_chain
    from mesh.devchain.snapshot import MAX_SNAPSHOT_BYTES

    log.configure(level=log_level, json_lines=log_json, file=log_file)
    manual = block_time == "manual"
    if manual and not dev_rpc:
        raise ConfigError("--block-time manual needs --dev-rpc, or no block is ever made")
    try:
        seconds = None if manual else float(block_time)
    except ValueError as error:
        raise ConfigError(f"--block-time: {block_time!r} is neither a number of seconds nor `manual`") from error
    start = GenesisFile() if genesis is None else read_genesis(genesis)
    funds = {}
    if start.dev_accounts:
        funds = {AccountKey.dev(name).account_id: planck("1000000", name="fund") for name in DEV_NAMES}
    for address, amount in start.fund.items():
        funds[parse_address(address)] = planck(str(amount), name="genesis")
    for entry in fund:
        address, equals, tensors = entry.partition("=")
        if not equals:
            raise ConfigError(f"--fund: {entry!r} must be ADDRESS=TENSOR")
        funds[parse_address(address)] = planck(tensors, name="fund")
    settings: dict[str, Any] = {} if start.time_ms is None else {"genesis_time_ms": start.time_ms}
    config = DevChainConfig(
        host=host,
        port=port,
        data_dir=data_dir or data_home() / "devchain",
        block_time_s=seconds,
        epoch_length=epoch_length or start.epoch_length or 20,
        fund={"0x" + account.hex(): amount for account, amount in funds.items()},
        network_genesis=start.network_genesis(),
        dev_rpc=dev_rpc,
        server=ServerConfig(max_message_bytes=2 * MAX_SNAPSHOT_BYTES + 1024) if dev_rpc else ServerConfig(),
        **settings,
    )

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run_chain, config)
            if json:
                print(jsonlib.dumps({"event": "ready", "url": url}), flush=True)
            else:
                print(f"development chain at {url} (one author, no Merkle proofs: for tests only)", flush=True)

    run_until_signalled(serve, ends=Ends.WHEN_TOLD)


def new_block(*, count: int = 1, chain: ChainOptions | None = None) -> None:
    """Make blocks now, whatever the chain's block time is.

    Args:
        count: How many.
    """
    _say(_ask(chain, "dev_newBlock", {"count": count}))


def set_storage(
    key: str, value: Annotated[str, Parameter(allow_leading_hyphen=True)], *, chain: ChainOptions | None = None
) -> None:
    """Set a storage entry of a running chain, in a block of its own; a restart has it, being part of the chain.

    Only System.Account and the Network pallet's items may be set. What an account, a stake, a pool, a ledger or a
    waiting swap gains or loses is booked as minted or burned; totals are not moved with it, nor are a pool's shares.
    Values with which the chain could not go on for an epoch are refused.

    Args:
        key: A raw key as 0x…, or an item: `MinSubnetNodes`, `Network.SubnetReputation[128001]`,
            `System.Account["0x…"]`; the keys of a map are JSON.
        value: Of a raw key 0x…; of an item JSON (planck, blocks; bytes are "0x…"). `null` removes the entry.
    """
    given = _json(value)
    if key.startswith("0x"):
        raw = f"0x{value[2:]}" if value.startswith("0x") else given
        _say(_ask(chain, "dev_setStorage", [[key, raw]]))
        return
    name, bracket, keys = key.partition("[")
    pallet, dot, item = name.rpartition(".")
    entry: Any = [[_json(bracket + keys), given]] if bracket else given
    _say(_ask(chain, "dev_setStorage", {pallet if dot else "Network": {item: entry}}))


def snapshot(file: Path, *, chain: ChainOptions | None = None) -> None:
    """Write the block and state of a running chain to a file; what waits in the pool is not in it.

    Args:
        file: Is written over.
    """
    from mesh.devchain.snapshot import check_digest
    from mesh.files import Durable, replace_file

    answer = _ask(chain, "dev_snapshot")
    try:
        raw = bytes.fromhex(answer.removeprefix("0x"))
    except (ValueError, AttributeError) as error:
        raise ChainError("the chain answered with what is no snapshot") from error
    check_digest(raw)
    try:
        replace_file(file, raw, durable=Durable.YES)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    print(f"{file}: {len(raw)} bytes")


def restore(file: Path, *, chain: ChainOptions | None = None) -> None:
    """Go to the block and state of a snapshot: later blocks and what waits in the pool are forgotten.

    Args:
        file: As `snapshot` wrote it, of a chain with the same genesis.
    """
    from mesh.devchain.snapshot import MAX_SNAPSHOT_BYTES, check_digest

    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_SNAPSHOT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    check_digest(raw)
    _say(_ask(chain, "dev_restore", "0x" + raw.hex()))


def _json(text: str) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return jsonlib.loads(text)
    except (ValueError, RecursionError):
        return text


def _say(block_hash: Any) -> None:
    print(f"the best block is {block_hash}")


def _ask(options: ChainOptions | None, method: str, *params: Any) -> Any:
    """What a running chain answers. Raises ChainUnavailable when none does, ChainError when it refuses."""
    chosen = options or ChainOptions()
    try:
        return trio.run(_exchange, chosen.urls(), chosen.chain_timeout, method, params)
    except BaseExceptionGroup as group:
        raise single_cause(group) from None


async def _exchange(urls: Sequence[str], timeout_s: float, method: str, params: Sequence[Any]) -> Any:
    from mesh.chain.session import RpcRefused
    from mesh.chain.subscription import ask_once
    from mesh.devchain.snapshot import MAX_SNAPSHOT_BYTES

    failure: ChainUnavailable | None = None
    for url in urls:
        try:
            room = 2 * MAX_SNAPSHOT_BYTES + 1024  # in hexadecimal
            (answer,) = await ask_once(url, [(method, params)], timeout_s=timeout_s, max_message_bytes=room)
        except RpcRefused as error:
            raise ChainError(f"the chain refused: {error.message:.300}") from error
        except ChainUnavailable as error:
            failure = error
        else:
            return answer
    raise ChainUnavailable(
        f"no chain answers at {', '.join(urls)}: start one with `mesh-chain --dev-rpc`, or give --chain-url"
    ) from failure
