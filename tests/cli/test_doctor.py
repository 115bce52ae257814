"""`mesh doctor` names what is wrong and what to do, line by line; a working node is ok in every line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.chain.journal import Entry, Journal, journal_path
from mesh.chain.runtime import blake2
from mesh.chain.types import BlockRef, NodeClass, Snapshot, SubnetInfo, SubnetNode, SubnetState
from mesh.cli import doctor as checks
from mesh.cli.doctor import State
from mesh.identity import AccountKey, PeerKey, save_account_key, save_peer_key
from mesh.peer import Multiaddr, PeerInfo

Run = Callable[..., Any]
HOTKEY, OTHER = AccountKey.dev("dorothy"), AccountKey.dev("ethan")
PEER, STRANGER = PeerKey.dev("node 1").peer_id, PeerKey.dev("node 2").peer_id
GENESIS = bytes(32)


def snapshot(**changes: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "node_id": 4, "coldkey": bytes(20), "hotkey": HOTKEY.account_id, "peer_id": PEER, "bootnode_peer_id": None,
        "client_peer_id": None, "node_class": NodeClass.VALIDATOR, "start_epoch": 3, "stake_planck": 10**20,
        "reputation": 10**18,
    }  # fmt: skip
    return Snapshot(128001, BlockRef(9, bytes(32)), (SubnetNode(**(fields | changes)),))


def node(peer: object = PEER, hotkey: bytes | None = HOTKEY.account_id, journals: tuple[Path, ...] = ()) -> Any:
    return checks._Node(peer, hotkey, journals)  # type: ignore[arg-type]


def states(found: Any) -> list[tuple[str, State]]:
    return [(finding.check, finding.state) for finding in found]


def test_a_node_is_known_by_the_keys_it_runs_with() -> None:
    good = [("registration", State.OK), ("class", State.OK)]
    assert states(checks._registration(snapshot(), node())) == good
    assert states(checks._registration(snapshot(), node(hotkey=None))) == good
    assert states(checks._registration(snapshot(), node(peer=None))) == good
    assert not list(checks._registration(snapshot(), node(peer=None, hotkey=None)))
    for wrong, says in (
        (node(peer=STRANGER), str(STRANGER)),
        (node(hotkey=OTHER.account_id), OTHER.address),
        (node(peer=STRANGER, hotkey=OTHER.account_id), "not registered"),
    ):
        (finding,) = checks._registration(snapshot(), wrong)
        assert finding.state is State.FAILS
        assert says in finding.says
        assert finding.do


@pytest.mark.parametrize("node_class", [NodeClass.REGISTERED, NodeClass.IDLE, NodeClass.INCLUDED])
def test_a_class_that_earns_nothing_yet_is_a_warning(node_class: NodeClass) -> None:
    _, finding = checks._registration(snapshot(node_class=node_class), node())
    assert (finding.check, finding.state) == ("class", State.WARNING)
    assert "running" in finding.do


@pytest.mark.parametrize(
    ("state", "expected"),
    [(SubnetState.ACTIVE, State.OK), (SubnetState.REGISTERED, State.WARNING), (SubnetState.PAUSED, State.WARNING)],
)
def test_a_subnet_that_stands_still_is_a_warning(state: SubnetState, expected: State) -> None:
    assert checks._subnet(SubnetInfo(128001, 1, "one", state, 0, 3, bytes(20), 0, 0)).state is expected


def test_what_was_signed_and_has_no_end_is_named(tmp_path: Path) -> None:
    held = node(journals=(tmp_path,))
    assert not list(checks._open_entries(held, GENESIS, head=10))
    journal = Journal.open_locked(tmp_path, genesis=GENESIS, account=HOTKEY.account_id)
    assert journal is not None
    extrinsic = b"signed bytes"
    entry = Entry(
        nonce=7, extrinsic=extrinsic, extrinsic_hash=blake2(extrinsic), era_birth=1, era_end=65,
        account=HOTKEY.account_id, call="Network.attest", purpose=bytes(32),
    )  # fmt: skip
    journal.open(entry)
    (busy,) = checks._open_entries(held, GENESIS, head=10)
    assert (busy.state, "running process" in busy.says) == (State.OK, True)
    journal.release()
    for head, says in ((10, "55 blocks"), (65, "over")):
        (finding,) = checks._open_entries(held, GENESIS, head=head)
        assert finding.state is State.WARNING
        assert "Network.attest (nonce 7)" in finding.says
        assert says in finding.says
    path = journal_path(tmp_path, genesis=GENESIS, account=HOTKEY.account_id)
    path.write_bytes(b"0" * 16 + b" {}\n" + path.read_bytes())
    (damaged,) = checks._open_entries(held, GENESIS, head=10)
    assert damaged.state is State.FAILS


def test_keys_that_are_missing_open_to_others_or_wrong(run: Run, tmp_path: Path) -> None:
    save_peer_key(tmp_path / "peer.key", PeerKey.dev("node 1"))
    save_account_key(tmp_path / "hotkey.account", HOTKEY)
    (tmp_path / "hotkey.account").chmod(0o640)
    argv = ("doctor", "--chain-url", "ws://127.0.0.1:1", "--chain-timeout", "0.2", "--json")
    found = json.loads(run(*argv, "--keys-dir", str(tmp_path), "--coldkey-file", "nothing").stdout)
    by_check = {each["check"]: each for each in found}
    assert by_check["peer key"]["state"] == "ok"
    assert by_check["hotkey"]["state"] == by_check["coldkey"]["state"] == by_check["chain"]["state"] == "fails"
    assert "chmod 600" in by_check["hotkey"]["says"]


async def test_ports_and_bootnodes(tmp_path: Path) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    taken = Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")
    assert (await checks._bootnode(f"{taken}/p2p/{PEER}")).state is State.OK
    finding = await checks._port(taken, None)
    assert finding.state is State.FAILS
    assert finding.do
    assert (await checks._answers(PeerInfo(PEER, (taken,)), None)).state is State.OK
    await listeners[0].aclose()
    for peer in (None, PEER):
        assert (await checks._answers(PeerInfo(PEER, (taken,)), peer)).state is State.FAILS
    assert (await checks._port(taken, None)).state is State.OK
    assert (await checks._bootnode(f"{taken}/p2p/{PEER}")).state is State.FAILS
    assert (await checks._bootnode("/ip4/127.0.0.1/tcp/1")).state is State.FAILS
