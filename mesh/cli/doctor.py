"""`mesh doctor`: what stands between this machine and a working node."""

from __future__ import annotations

import json as jsonlib
import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from multiaddr import Multiaddr

from mesh.cli.common import ChainOptions, account_key, open_chain, run_until_signalled, tensor
from mesh.clock import SystemClock
from mesh.errors import ChainError, ConfigError, KeyFileError, MeshError
from mesh.identity import load_peer_key
from mesh.peer import PeerInfo

if TYPE_CHECKING:
    from mesh.chain.client import Chain

CHAIN_TIMEOUT_S = 10.0
FAILED_CALL_FEE_PLANCK = 1_000_000_000
"""What a failed propose or attest costs, ten times the 1.08e8 planck recorded from the real runtime."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check and what to do about it."""

    check: str
    good: bool
    says: str


def doctor(
    *,
    subnet_id: int | None = None,
    identity_path: Path | None = None,
    hotkey_file: Path | None = None,
    host_maddrs: tuple[str, ...] = (),
    initial_peers: tuple[str, ...] = (),
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Check chain, registration, keys, port, clock and balance; exit code 1 when something is wrong.

    Args:
        subnet_id: Subnet the node is to work in.
        identity_path: Its peer key file.
        hotkey_file: Its hotkey file.
        host_maddrs: Addresses it is to listen on.
        initial_peers: Bootnodes to reach; default PUBLIC_INITIAL_PEERS.
        json: Print one JSON array.
    """
    chain = chain or ChainOptions()
    chain = replace(chain, chain_timeout=min(chain.chain_timeout, CHAIN_TIMEOUT_S))
    findings = [_free(address) for address in host_maddrs]
    peers = initial_peers or tuple(os.environ.get("PUBLIC_INITIAL_PEERS", "").split())
    findings += [_reachable(text) for text in peers]

    async def run() -> None:
        try:
            async with open_chain(chain) as client:
                findings.append(Finding("chain", True, f"answers at block {(await client.head()).number}"))
                findings.extend(await _ask_chain(client, subnet_id, identity_path, hotkey_file))
        except ChainError as error:
            findings.append(Finding("chain", False, str(error)))
        except KeyFileError as error:
            findings.append(Finding("keys", False, str(error)))

    run_until_signalled(run)
    if json:
        print(jsonlib.dumps([{"check": f.check, "good": f.good, "says": f.says} for f in findings]))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.good else 'BAD '} {finding.check:<13} {finding.says}")
    if not all(finding.good for finding in findings):
        sys.exit(1)


async def _ask_chain(
    client: Chain, subnet_id: int | None, identity_path: Path | None, hotkey_file: Path | None
) -> list[Finding]:
    from mesh.node import CHAIN_STANDS_STILL_S, MAX_CLOCK_SKEW_S

    skew_s = SystemClock().now() - await client.timestamp_ms() / 1000
    # The timestamp is the last block's: a right clock is up to a block time ahead of it.
    good = -MAX_CLOCK_SKEW_S < skew_s < CHAIN_STANDS_STILL_S
    findings = [Finding("clock", good, f"{skew_s:+.1f} s against the chain's last block")]
    if hotkey_file is not None or os.environ.get("MESH_HOTKEY"):
        hotkey = account_key(hotkey_file, ("MESH_HOTKEY",), None, name="hotkey")
        balance = await client.balance(hotkey.account_id)
        enough = balance.free_planck > FAILED_CALL_FEE_PLANCK
        hint = "" if enough else ": send it a little TENSOR, a failed vote costs a fee"
        findings.append(Finding("hotkey", enough, f"{hotkey.address} holds {tensor(balance.free_planck)} TENSOR{hint}"))
    if subnet_id is None:
        return findings
    try:
        real = await client.resolve_subnet_id(subnet_id)
        info = await client.subnet(real)
    except ChainError as error:
        return [*findings, Finding("subnet", False, str(error))]
    findings.append(
        Finding("subnet", True, f"{info.name} ({real}, friendly id {info.friendly_id}) is {info.state.name}")
    )
    if identity_path is not None:
        peer = load_peer_key(identity_path).peer_id
        node = (await client.snapshot(real)).by_peer(peer)
        if node is None:
            findings.append(Finding("registration", False, f"{peer} is not registered: run `register-node`"))
        else:
            findings.append(
                Finding(
                    "registration",
                    True,
                    f"node {node.node_id}, class {node.node_class.name.title()} since epoch {node.start_epoch}, "
                    f"{tensor(node.stake_planck)} TENSOR staked",
                )
            )
    return findings


def _free(address: str) -> Finding:
    try:
        multiaddr = Multiaddr(address)
        host = multiaddr.value_for_protocol("ip4" if "/ip4/" in address else "ip6")
        port = int(multiaddr.value_for_protocol("tcp"))
    except (ValueError, LookupError) as error:
        raise ConfigError(f"--host-maddrs: {address!r} is no TCP multiaddr") from error
    family = socket.AF_INET if "/ip4/" in address else socket.AF_INET6
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding("port", False, f"{address} cannot be used: {error.strerror}")
    return Finding("port", True, f"{address} is free")


def _reachable(text: str) -> Finding:
    try:
        info = PeerInfo.parse(text)
        address = info.addrs[0]
        host = address.value_for_protocol("ip4" if "/ip4/" in text else "ip6")
        socket.create_connection((host, int(address.value_for_protocol("tcp"))), timeout=5).close()
    except (MeshError, LookupError, ValueError) as error:
        return Finding("bootnode", False, f"{text}: {error}")
    except OSError as error:
        return Finding("bootnode", False, f"{text} does not answer: {error.strerror or error}")
    return Finding("bootnode", True, f"{text} accepts connections")
