"""`mesh-chain`: run the embedded development chain."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import trio

from mesh.cli.common import planck, run_until_signalled
from mesh.errors import ConfigError
from mesh.identity import DEV_NAMES, AccountKey, parse_address


def chain(
    *,
    data_dir: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 9944,
    block_time: str = "6",
    epoch_length: int = 20,
    fund: tuple[str, ...] = (),
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
        epoch_length: Blocks per epoch.
        fund: Further accounts at genesis, as ADDRESS=TENSOR.
        dev_rpc: Offer dev_newBlock.
        log_level: Least level of log lines.
        log_json: Log as JSON lines.
        json: Say on stdout that the chain is ready as one JSON object.
        log_file: Log to this file instead of stderr.
    """
    from mesh import log
    from mesh.chain.local import data_home
    from mesh.devchain.node import DevChainConfig, run_chain

    log.configure(level=log_level, json_lines=log_json, file=log_file)
    manual = block_time == "manual"
    if manual and not dev_rpc:
        raise ConfigError("--block-time manual needs --dev-rpc, or no block is ever made")
    try:
        seconds = None if manual else float(block_time)
    except ValueError as error:
        raise ConfigError(f"--block-time: {block_time!r} is neither a number of seconds nor `manual`") from error
    funds = {"0x" + AccountKey.dev(name).account_id.hex(): planck("1000000", name="fund") for name in DEV_NAMES}
    for entry in fund:
        address, equals, amount = entry.partition("=")
        if not equals:
            raise ConfigError(f"--fund: {entry!r} must be ADDRESS=TENSOR")
        funds["0x" + parse_address(address).hex()] = planck(amount, name="fund")
    config = DevChainConfig(
        host=host,
        port=port,
        data_dir=data_dir or data_home() / "devchain",
        block_time_s=seconds,
        epoch_length=epoch_length,
        fund=funds,
        dev_rpc=dev_rpc,
    )

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run_chain, config)
            if json:
                print(jsonlib.dumps({"event": "ready", "url": url}), flush=True)
            else:
                print(f"development chain at {url} (one author, no Merkle proofs: for tests only)", flush=True)

    run_until_signalled(run)
