"""Run the dev chain: its server, and its clock where it has one.

Single author, no consensus, no Merkle state root: for development and tests only.
"""

from __future__ import annotations

import ipaddress
import logging

import trio

from mesh.clock import Clock, SystemClock
from mesh.devchain.chain import DevChain, DevChainConfig, ServerConfig
from mesh.devchain.pool import PoolConfig
from mesh.devchain.server import listen, serve

__all__ = ["DevChain", "DevChainConfig", "PoolConfig", "ServerConfig", "run_chain"]

log = logging.getLogger(__name__)


async def run_chain(
    config: DevChainConfig,
    *,
    chain: DevChain | None = None,
    clock: Clock | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a dev chain until cancelled; `started` is called with its ws:// URL once it answers.

    A `chain` made by the caller (so that it can make blocks itself) stays open afterwards; otherwise one is opened
    from `config` and closed. `clock` gives the blocks' time when `block_time_s` is set. `ListenFailed` when the
    address cannot be bound, `ConfigError` when the data directory is in use or holds another chain.
    """
    from mesh.chain.local import remember_genesis

    own = chain is None
    running = DevChain(config) if chain is None else chain
    try:
        remember_genesis(running.genesis_hash)
        listeners, port = await listen(config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, running, listeners)
            url = f"ws://{_authority(config.host)}:{port}"
            log.info(
                "dev chain %s at %s: block %d, genesis 0x%s; single author, its state root is no Merkle root",
                config.name, url, running.best.number, running.genesis_hash.hex(),
            )  # fmt: skip
            if config.block_time_s is not None:
                nursery.start_soon(_author, running, config.block_time_s, clock or SystemClock())
            task_status.started(url)
    finally:
        if own:
            running.close()


async def _author(chain: DevChain, block_time_s: float, clock: Clock) -> None:
    """A block every `block_time_s`; blocks missed while the process was stopped are not made up for."""
    due = trio.current_time() + block_time_s
    while True:
        await trio.sleep_until(due)
        chain.new_block(now_ms=int(clock.now() * 1000))
        due = max(due + block_time_s, trio.current_time())


def _authority(host: str) -> str:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return host
    return f"[{host}]" if version == 6 else host
