"""`mesh doctor`: what stands between this machine and a working node, and what to do about each of it."""

from __future__ import annotations

import enum
import json as jsonlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio
from multiaddr import Multiaddr

from mesh.cli.common import ChainOptions, open_chain, run_until_signalled
from mesh.cli.keyfiles import account_in, named_file
from mesh.cli.keys import HOTKEY_FILE, PEER_FILES
from mesh.clock import SystemClock
from mesh.errors import ChainError, ConfigError, KeyFileError, MeshError
from mesh.identity import AccountKey, checksum_address, load_peer_key
from mesh.peer import PeerID, PeerInfo
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.chain.client import Chain
    from mesh.chain.substrate import SubstrateChain
    from mesh.chain.types import Snapshot, SubnetInfo, SubnetNode

T = TypeVar("T")

CHAIN_TIMEOUT_S = 10.0
_ANYBODY = PeerID.parse("12D3KooWBP2bH84ed62VppJ2LNQqeGcwvE3RdRrymLhkJe3dakUt")
"""For an address that is dialled without asking who is there."""


class State(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """The node would run, and something is not as it should be."""
    FAILS = "fails"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it (nothing when it is ok)."""

    check: str
    state: State
    says: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class _Node:
    """The node that is looked at, as far as its key files say who it is."""

    peer: PeerID | None
    hotkey: bytes | None
    journals: tuple[Path, ...]


def doctor(
    *,
    subnet_id: int | None = None,
    keys_dir: Path | None = None,
    identity_path: Path | None = None,
    hotkey_file: Path | None = None,
    coldkey_file: Path | None = None,
    data_dir: Path | None = None,
    host_maddrs: tuple[str, ...] = (),
    address: str | None = None,
    initial_peers: tuple[str, ...] = (),
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Check keys, ports, bootnodes, chain, clock, registration, balance and journals; exit code 1 when one fails.

    Args:
        subnet_id: Subnet the node is to work in.
        keys_dir: Folder made by `keygen --keys-dir`, instead of the next two.
        identity_path: Its peer key file.
        hotkey_file: Its hotkey file, or its name in the key store; an encrypted one needs no password here.
        coldkey_file: The coldkey's file, where it is on this machine.
        data_dir: The node's --data-dir, where it is not the default.
        host_maddrs: Addresses it is to listen on.
        address: Where others reach it, /ip4/…/tcp/…: a running node must answer there under its PeerID.
        initial_peers: Bootnodes to reach; default PUBLIC_INITIAL_PEERS, and those that the chain lists.
        json: Print one JSON array.
    """
    chain = chain or ChainOptions()
    chain = replace(chain, chain_timeout=min(chain.chain_timeout, CHAIN_TIMEOUT_S))
    if keys_dir is not None:
        identity_path, hotkey_file = (
            identity_path or keys_dir / PEER_FILES["peer"],
            hotkey_file or keys_dir / HOTKEY_FILE,
        )
    findings: list[Finding] = []
    peer = _key(findings, "peer key", identity_path, lambda path: load_peer_key(path).peer_id)
    hotkey = _key(findings, "hotkey", hotkey_file, lambda path: account_in(named_file(path)))
    _key(findings, "coldkey", coldkey_file, lambda path: account_in(named_file(path)))
    if hotkey_file is None and (text := os.environ.get("MESH_HOTKEY")):
        hotkey = AccountKey.parse(text).account_id
    node = _Node(peer, hotkey, _journals(data_dir, peer))
    peers = initial_peers or tuple(os.environ.get("PUBLIC_INITIAL_PEERS", "").split())
    where = None if address is None else PeerInfo(peer or _ANYBODY, (_multiaddr(address, "address"),))
    listens = [_multiaddr(text, "host-maddrs") for text in host_maddrs]

    async def run() -> None:
        findings.extend([await _port(listen, peer) for listen in listens])
        if where is not None:
            findings.append(await _answers(where, peer))
        findings.extend(await _together([partial(_bootnode, text) for text in peers]))
        try:
            async with open_chain(chain) as client:
                findings.append(await _chain(client))
                findings.append(await _clock(client))
                async for finding in _on_chain(client, node, subnet_id, given=bool(peers)):
                    findings.append(finding)  # noqa: PERF401 - what was found counts when the chain goes away
        except ChainError as error:
            findings.append(Finding("chain", State.FAILS, str(error), "check --chain-url and your connection"))

    run_until_signalled(run)
    _print(findings, json=json)
    if any(finding.state is State.FAILS for finding in findings):
        sys.exit(1)


def _print(findings: Sequence[Finding], *, json: bool) -> None:
    if json:
        shown = [{"check": f.check, "state": f.state.value, "says": f.says, "do": f.do} for f in findings]
        print(jsonlib.dumps(shown))
        return
    for finding in findings:
        line = f"{finding.says}: {finding.do}" if finding.do else finding.says
        print(f"{finding.state:<8} {finding.check:<13} {printable(line, 600)}")


# --- keys and journals ------------------------------------------------------------------------------------------


def _key(findings: list[Finding], check: str, path: Path | None, load: Callable[[Path], T]) -> T | None:
    """Whose key the file is, with a finding about it; None without a file, or with a bad one."""
    if path is None:
        return None
    try:
        who = load(path)
    except KeyFileError as error:
        findings.append(Finding(check, State.FAILS, str(error)))
        return None
    text = checksum_address(who) if isinstance(who, bytes) else str(who)
    findings.append(Finding(check, State.OK, f"{text} in {path}, which only you can read"))
    return who


def _journals(data_dir: Path | None, peer: PeerID | None) -> tuple[Path, ...]:
    """Where what this machine signs is written down: by commands, and by the node."""
    from mesh.chain.local import data_home

    if data_dir is None and peer is not None:
        data_dir = data_home() / "nodes" / str(peer)
    return (data_home() / "journal", *([] if data_dir is None else [data_dir / "journal"]))


def _open_entries(node: _Node, genesis: bytes, *, head: int) -> Iterator[Finding]:
    """What was signed with the hotkey and has no known end."""
    from mesh.chain.journal import Journal, JournalDamaged, journal_path

    for folder in node.journals:
        if node.hotkey is None or not journal_path(folder, genesis=genesis, account=node.hotkey).exists():
            continue
        try:
            journal = Journal.open_locked(folder, genesis=genesis, account=node.hotkey)
        except JournalDamaged as error:
            yield Finding("journal", State.FAILS, str(error))
            continue
        except ChainError as error:
            yield Finding("journal", State.FAILS, str(error), "check who owns the folder")
            continue
        if journal is None:
            yield Finding("journal", State.OK, f"{folder} is in use by a running process")
            continue
        entries = journal.pending
        journal.release()
        if not entries:
            yield Finding("journal", State.OK, f"{folder} has no open entry")
        for entry in entries:
            left = entry.era_end - head
            ends = f"may get into a block for {left} blocks yet" if left > 0 else "its time is over"
            yield Finding(
                "journal",
                State.WARNING,
                f"{entry.call} (nonce {entry.nonce}) was signed and its end is not known; {ends}",
                "the node settles it when it starts",
            )


# --- the network ------------------------------------------------------------------------------------------------


async def _port(listen: Multiaddr, peer: PeerID | None) -> Finding:
    """Whether the address can be listened on, or the node does so already."""
    from mesh.cli.readiness import tcp_places, unanswered

    target = PeerInfo(peer or _ANYBODY, (listen,))
    places = tcp_places(target)
    if not places:
        raise ConfigError(f"--host-maddrs: {str(listen)!r} is no TCP multiaddr")
    ((host, port),) = places
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if peer is not None and port and await unanswered(_here(target), peer) is None:
                return Finding("port", State.OK, f"the node runs at {listen}")
            return Finding(
                "port", State.FAILS, f"{listen} cannot be used ({error.strerror})", "stop what runs there, or move"
            )
    return Finding("port", State.OK, f"{listen} is free")


def _here(info: PeerInfo) -> PeerInfo:
    """An address of all interfaces, as it is dialled on this machine."""
    text = str(info.addrs[0]).replace("/ip4/0.0.0.0/", "/ip4/127.0.0.1/").replace("/ip6/::/", "/ip6/::1/")
    return PeerInfo(info.peer_id, (Multiaddr(text),))


async def _answers(where: PeerInfo, peer: PeerID | None) -> Finding:
    from mesh.cli.readiness import accepts, unanswered

    if peer is None:
        if await accepts(where):
            return Finding("reachable", State.OK, f"{where.addrs[0]} accepts connections")
        return Finding("reachable", State.FAILS, f"{where.addrs[0]} does not answer", "open or forward its port")
    why = await unanswered(where, peer)
    if why is None:
        return Finding("reachable", State.OK, f"the node answers at {where.addrs[0]} as {peer}")
    return Finding("reachable", State.FAILS, why, "open or forward its port, and start the node")


async def _bootnode(text: str) -> Finding:
    try:
        return await _dialled(PeerInfo.parse(text))
    except MeshError as error:
        return Finding("bootnode", State.FAILS, f"{text}: {error}", "correct --initial-peers")


async def _dialled(info: PeerInfo) -> Finding:
    from mesh.cli.readiness import accepts

    shown = info.multiaddrs()[0] if info.addrs else str(info.peer_id)
    if await accepts(info):
        return Finding("bootnode", State.OK, f"{shown} accepts connections")
    return Finding("bootnode", State.FAILS, f"{shown} does not answer", "ask its owner, or name another")


async def _together(checks: Sequence[Callable[[], Awaitable[Finding]]]) -> list[Finding]:
    """The findings of all checks, in their order; each waits for others."""
    found: dict[int, Finding] = {}

    async def one(place: int) -> None:
        found[place] = await checks[place]()

    async with trio.open_nursery() as nursery:
        for place in range(len(checks)):
            nursery.start_soon(one, place)
    return [found[place] for place in range(len(checks))]


# --- the chain --------------------------------------------------------------------------------------------------


async def _chain(client: SubstrateChain) -> Finding:
    head = await client.head()
    kind = client.chain_type or "says no type"
    return Finding(
        "chain", State.OK, f"{client.url} answers at block {head.number} ({kind}; pallet of {client.dialect.name})"
    )


async def _clock(client: Chain) -> Finding:
    from mesh.cli.readiness import clock_fault

    skew_s = SystemClock().now() - await client.timestamp_ms() / 1000
    fault = clock_fault(skew_s)
    return Finding(
        "clock", State.FAILS if fault else State.OK, f"{skew_s:+.1f} s against the chain's last block", fault or ""
    )


async def _on_chain(client: Chain, node: _Node, subnet_id: int | None, *, given: bool) -> AsyncIterator[Finding]:
    """What the chain says of the node; `given`: bootnodes were named, so that the chain's are not needed."""
    if node.hotkey is not None:
        yield await _balance(client, node.hotkey)
        for finding in _open_entries(node, client.genesis, head=(await client.head()).number):
            yield finding
    if subnet_id is None:
        return
    try:
        real = await client.resolve_subnet_id(subnet_id)
        info = await client.subnet(real)
    except ChainError as error:
        yield Finding("subnet", State.FAILS, str(error), "see `mesh subnet list`")
        return
    yield _subnet(info)
    snapshot = await client.snapshot(real)
    for finding in _registration(snapshot, node):
        yield finding
    for finding in await _together([partial(_dialled, each) for each in await client.bootnodes(real)]):
        if given and finding.state is State.FAILS:
            finding = replace(finding, state=State.WARNING, do="newcomers that know no other cannot enter there")
        yield finding


async def _balance(client: Chain, hotkey: bytes) -> Finding:
    from mesh.chain.checks import FAILED_CALL_FEE_PLANCK, tensor_text

    free = (await client.balance(hotkey)).free_planck
    address = checksum_address(hotkey)
    says = f"{address} holds {tensor_text(free)}"
    if free >= FAILED_CALL_FEE_PLANCK:
        return Finding("balance", State.OK, says)
    return Finding(
        "balance",
        State.FAILS,
        f"{says}, and a vote that fails costs a fee",
        f"`mesh transfer --to {address} --amount 1`",
    )


def _subnet(info: SubnetInfo) -> Finding:
    from mesh.chain.types import SubnetState

    says = f"{info.name} ({info.subnet_id}, friendly id {info.friendly_id}) is {info.state.name.lower()}"
    if info.state is SubnetState.ACTIVE:
        return Finding("subnet", State.OK, says)
    waits = "its owner activates it" if info.state is SubnetState.REGISTERED else "its owner lets it go on"
    return Finding("subnet", State.WARNING, says, f"nothing is earned before {waits}")


def _registration(snapshot: Snapshot, node: _Node) -> Iterator[Finding]:
    """Whether the chain knows the node by the keys it is to run with."""
    from mesh.chain.checks import tensor_text

    if node.peer is None and node.hotkey is None:
        return
    by_peer = None if node.peer is None else snapshot.by_peer(node.peer)
    by_hotkey = next((each for each in snapshot.nodes if each.hotkey == node.hotkey), None)
    known = by_peer or by_hotkey
    if known is None:
        who = node.peer or checksum_address(node.hotkey or bytes(20))
        yield Finding("registration", State.FAILS, f"{who} is not registered", "run `register-node`")
        return
    if node.peer is not None and known.peer_id != node.peer:
        yield Finding(
            "registration",
            State.FAILS,
            f"node {known.node_id} has the peer id {known.peer_id} on the chain, the key file is {node.peer}",
            "use the key file it was registered with, or `mesh node update --peer`",
        )
        return
    if node.hotkey is not None and known.hotkey != node.hotkey:
        yield Finding(
            "registration",
            State.FAILS,
            f"node {known.node_id} votes with {checksum_address(known.hotkey)}, the hotkey given is "
            f"{checksum_address(node.hotkey)}",
            "use the hotkey it was registered with",
        )
        return
    yield Finding("registration", State.OK, f"node {known.node_id}, {tensor_text(known.stake_planck)} staked")
    yield _class(known)


def _class(node: SubnetNode) -> Finding:
    from mesh.chain.types import NodeClass
    from mesh.cli.tables import share_text

    says = f"{node.node_class.name.title()} since epoch {node.start_epoch}, reputation {share_text(node.reputation)}"
    waits = {
        NodeClass.REGISTERED: "it is in the queue and earns nothing yet: keep it running",
        NodeClass.IDLE: "it becomes Included after some epochs, and earns nothing yet: keep it running",
        NodeClass.INCLUDED: "it becomes Validator when others' proposals name it often enough: keep it running",
    }
    if node.node_class in waits:
        return Finding("class", State.WARNING, says, waits[node.node_class])
    return Finding("class", State.OK, says)


def _multiaddr(text: str, flag: str) -> Multiaddr:
    try:
        parsed = Multiaddr(text)
        parsed.value_for_protocol("tcp")
    except (ValueError, LookupError) as error:
        raise ConfigError(f"--{flag}: {text!r} is no TCP multiaddr") from error
    return parsed
