"""Commands that look at a chain, against a dev chain whose blocks are made by hand: what they say is what happened."""

import csv
import io
import json
import random
import shlex
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from mesh.chain import staking
from mesh.chain.staking import NodeTerms, SubnetTerms
from mesh.chain.substrate import ChainConfig, SubstrateChain
from mesh.chain.types import ONE, PLANCK_PER_TENSOR, Score, Snapshot
from mesh.consensus.evidence import epoch_key
from mesh.consensus.wire import Inventory, ProposalArgs, encode_args, encode_blob, inventory_key, make_blob
from mesh.content import digest_of
from mesh.devchain.node import DevChain, DevChainConfig, run_chain
from mesh.identity import AccountKey, Overwrite, PeerKey, save_account_key, save_peer_key
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import pack_value
from mesh.mock import EARLY, LATE, NAMESPACE, Heartbeat
from mesh.peer import Multiaddr, PeerInfo
from tests.docs.pages import DOCS, commands_of, is_like

Run = Callable[..., Any]
T = TypeVar("T")

OWNER = AccountKey.dev("alith")
COLDKEYS = [AccountKey.dev(name) for name in ("alith", "baltathar", "charleth")]
HOTKEYS = [AccountKey.dev(name) for name in ("dorothy", "ethan", "faith")]
PEERS = [PeerKey.dev(f"node {i}") for i in range(3)]
LENGTH = 20
STAKE = 200 * PLANCK_PER_TENSOR
ADDED = 7 * PLANCK_PER_TENSOR
AGREED, REFUSED, SILENT, NOW = 2, 3, 4, 5
"""Epochs, by what became of their proposals."""


@dataclass
class Live:
    """A dev chain in a thread of its own, and a client beside it."""

    url: str
    token: trio.lowlevel.TrioToken
    dev: DevChain
    client: SubstrateChain
    slot: int = 0
    subnet_id: int = 0
    proposers: dict[int, int] = field(default_factory=dict)
    """By epoch: who was elected and proposed."""
    blobs: dict[int, bytes] = field(default_factory=dict)
    """By epoch of the work."""

    def do(self, act: Callable[[], Awaitable[T]]) -> T:
        """Run something in the chain's thread, with a block made whenever something waits for one."""

        async def sealed() -> T:
            results: list[T] = []
            async with trio.open_nursery() as nursery:

                async def seal() -> None:
                    while True:
                        if len(self.dev.pool):
                            self.dev.new_block()
                        await trio.sleep(0.002)

                nursery.start_soon(seal)
                results.append(await act())
                nursery.cancel_scope.cancel()
            return results[0]

        return trio.from_thread.run(sealed, trio_token=self.token)

    def to(self, epoch: int, offset: int = 0) -> None:
        """Make blocks up to this one."""

        def make() -> None:
            while self.dev.best.number < self.slot + epoch * LENGTH + offset:
                self.dev.new_block()

        trio.from_thread.run_sync(make, trio_token=self.token)

    def stakes(self, block: int) -> dict[int, int]:
        """By node id, as the chain's own books have them."""

        async def read() -> Snapshot:
            from mesh.chain.types import BlockRef

            return await self.client.snapshot(self.subnet_id, BlockRef(block, await self.client.block_hash(block)))

        return {node.node_id: node.stake_planck for node in self.do(read).nodes}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One epoch is agreed on, one is not, in one nobody proposes; one runs, its proposal not attested yet."""
    folder = tmp_path_factory.mktemp("live")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_DATA_HOME", str(folder))
    accounts = [*COLDKEYS, *HOTKEYS]
    config = DevChainConfig(
        epoch_length=LENGTH, fund={key.address: 1_000_000 * PLANCK_PER_TENSOR for key in accounts}, history_blocks=200
    )
    ready, end = threading.Event(), trio.Event()
    made: list[Live] = []

    async def main() -> None:
        dev = DevChain(config)
        async with trio.open_nursery() as nursery:
            url = await nursery.start(lambda task_status: run_chain(config, chain=dev, task_status=task_status))
            client = SubstrateChain(
                ChainConfig(urls=(url,), call_timeout_s=10, poll_interval_s=0.02),
                journal_dir=folder / "journal",
                rng=random.Random(1),
            )
            await nursery.start(client.run)
            made.append(Live(url, trio.lowlevel.current_trio_token(), dev, client))
            ready.set()
            await end.wait()
            nursery.cancel_scope.cancel()
        dev.close()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert ready.wait(30)
        (chain,) = made
        found(chain)
        for epoch in (AGREED, REFUSED, SILENT, NOW):
            chain.to(epoch, 1)
            if epoch != SILENT:
                propose(chain, epoch, attested=epoch == AGREED)
        yield chain
    finally:
        made[0].token.run_sync_soon(end.set)
        thread.join(30)
        patch.undo()


def found(chain: Live) -> None:
    """A subnet of three validators, which starts."""
    bootnode = PeerInfo(PeerKey.dev("bootnode").peer_id, (Multiaddr("/ip4/127.0.0.1/tcp/1"),))

    async def act() -> None:
        client = chain.client
        chain.subnet_id, _ = await staking.register_subnet(
            client,
            OWNER,
            terms=SubnetTerms(name="mock\x1b[2J", repo="r"),  # a name that would clear a terminal
            initial_coldkeys={key.account_id: 1 for key in COLDKEYS},
            bootnodes=[bootnode],
        )
        for coldkey, hotkey, peer in zip(COLDKEYS, HOTKEYS, PEERS, strict=True):
            terms = NodeTerms(hotkey.account_id, peer.peer_id, None, None, STAKE)
            await staking.register_node(client, coldkey, subnet_id=1, terms=terms)
        await staking.add_delegate_stake(client, COLDKEYS[2], subnet_id=1, amount_planck=400_000 * PLANCK_PER_TENSOR)
        await staking.activate_subnet(client, OWNER, subnet_id=1)
        slot = (await client.subnet(chain.subnet_id)).slot
        assert slot is not None
        chain.slot = slot

    chain.do(act)


def propose(chain: Live, epoch: int, *, attested: bool) -> None:
    """The elected node proposes for the work of the epoch before: nodes 1 and 2 worked, says the evidence. The last
    proposal says more than that."""
    worked = epoch - 1

    async def act() -> None:
        client = chain.client
        elected = await client.elected(chain.subnet_id, epoch)
        assert elected is not None
        first = await client.block_hash(chain.slot + worked * LENGTH)
        blob = chain.blobs[worked] = evidence(chain, worked, first)
        args = ProposalArgs(
            v=1, epoch=worked, snapshot=first, evidence=digest_of(blob), size=len(blob), score="mock/1.0.0"
        )
        scores = [Score(1, ONE), Score(2, ONE if epoch != NOW else 2 * ONE)]
        chain.proposers[epoch] = elected
        await client.propose(chain.subnet_id, scores, args=encode_args(args), hotkey=HOTKEYS[elected - 1])
        if attested:
            for node_id in {1, 2, 3} - {elected}:
                await client.attest(chain.subnet_id, hotkey=HOTKEYS[node_id - 1])
        if epoch == AGREED:  # and the node after it is given more stake, between two settlements
            number = elected % 3
            args_ = {"subnet_id": chain.subnet_id, "subnet_node_id": number + 1, "stake_to_be_added": ADDED}
            await client.submit("add_stake", {**args_, "hotkey": HOTKEYS[number].account_id}, COLDKEYS[number])

    chain.do(act)


def evidence(chain: Live, epoch: int, snapshot: bytes) -> bytes:
    """Heartbeats of the first two nodes, named by everybody."""

    def signed(peer: PeerKey, key: bytes, value: bytes, subkey: bytes = b"") -> Record:
        return sign_record(
            peer, key, value, subkey=subkey, expiry_ms=1_900_000_000_000, seq=1, subnet_id=chain.subnet_id,
            genesis=chain.client.genesis,
        )  # fmt: skip

    beats = [
        signed(peer, epoch_key(NAMESPACE, epoch), pack_value(Heartbeat(block=1)), subkey)
        for peer in PEERS[:2]
        for subkey in (EARLY, LATE)
    ]
    inventory = Inventory(epoch=epoch, snapshot=snapshot, digests=tuple(sorted(beat.digest for beat in beats)))
    return encode_blob(make_blob([signed(peer, inventory_key(epoch), pack_value(inventory)) for peer in PEERS], beats))


@pytest.fixture
def look(run: Run, live: Live, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, against the chain."""
    monkeypatch.setenv("MESH_CHAIN_URL", live.url)
    return run


def values(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the chain and its epochs ---------------------------------------------------------------------------------------


def test_status_says_which_chain_it_is_and_what_runs_there(look: Run, live: Live) -> None:
    said = values(look("chain", "status", "--json"))
    assert said["url"] == live.url
    assert said["dialect"] == "coldkey/hotkey"
    assert said["genesis"] == "0x" + live.dev.genesis_hash.hex()
    assert said["best"] == {"number": live.dev.best.number, "hash": "0x" + live.dev.best.hash.hex()}
    assert said["finalized"]["number"] == live.dev.best.number - 1
    assert (said["subnets"], said["active_nodes"], said["epoch_length"]) == ({"active": 1}, 3, LENGTH)
    assert int(said["stake_planck"]) == sum(live.stakes(live.dev.best.number).values())
    shown = look("chain", "status").stdout
    assert str(live.dev.best.number) in shown
    assert "400,000" in shown


def test_an_epoch_is_shown_with_its_proposal_and_who_attested(look: Run, live: Live) -> None:
    over = values(look("chain", "epoch", "--subnet-id", "1", "--epoch", str(AGREED), "--json"))
    assert over["elected"] == over["proposal"]["node_id"] == live.proposers[AGREED]
    assert over["proposal"]["scores"] == {"1": str(ONE), "2": str(ONE)}
    assert over["proposal"]["claim"]["evidence"] == digest_of(live.blobs[AGREED - 1]).hex()
    assert (over["electable"], over["attested"], over["needed"]) == ([1, 2, 3], [1, 2, 3], 2)
    assert over["offset"] is None
    now = values(look("chain", "epoch", "--subnet-id", str(live.subnet_id), "--json"))
    assert (now["epoch"], now["attested"]) == (NOW, [live.proposers[NOW]])
    assert "propose" in now["open"]
    shown = look("chain", "epoch", "--subnet-id", "1").stdout
    assert "\x1b" not in shown
    assert "1 of 3 validators, 2 are needed" in shown
    assert "none was made" in look("chain", "epoch", "--subnet-id", "1", "--epoch", str(SILENT)).stdout
    later = look("chain", "epoch", "--subnet-id", "1", "--epoch", str(NOW + 1))
    assert later.returncode == 1
    assert f"epoch {NOW}" in later.stderr
    assert "no subnet 77" in look("chain", "epoch", "--subnet-id", "77").stderr


def test_validators_are_listed_with_what_they_did(look: Run, live: Live) -> None:
    rows = values(look("chain", "validators", "--subnet-id", "1", "--json"))
    assert [row["node_id"] for row in rows] == [1, 2, 3]
    assert [row["peer_id"] for row in rows] == [str(peer.peer_id) for peer in PEERS]
    assert [row["node_id"] for row in rows if row["elected"]] == [live.proposers[NOW]]
    assert [row["node_id"] for row in rows if row["attested"]] == [live.proposers[NOW]]
    assert {row["node_id"]: int(row["stake_planck"]) for row in rows} == live.stakes(live.dev.best.number)
    shown = look("chain", "validators", "--subnet-id", "1", "--epoch", str(AGREED)).stdout
    assert shown.count("yes") == 3


def test_events_are_filtered_by_block_and_name(look: Run, live: Live) -> None:
    block = live.slot + (AGREED + 1) * LENGTH
    argv = ("chain", "events", "--from-block", str(block), "--to-block", str(block), "--json")
    lines = [json.loads(line) for line in look(*argv).stdout.splitlines()]
    assert [line["event"] for line in lines if line["pallet"] == "Network"].count("SubnetRewards") == 1
    named = look(*argv, "--name", "SubnetRewards").stdout.splitlines()
    assert json.loads(named[0])["fields"]["subnet_id"] == live.subnet_id
    nobody = look("chain", "events", "--pallet", "Nobody", "--blocks", "5")
    assert nobody.stdout == ""
    assert "no events Nobody in blocks" in nobody.stderr
    assert "1 or more" in look("chain", "events", "--blocks", "0").stderr
    assert "turn them around" in look("chain", "events", "--from-block", "2", "--to-block", "1").stderr
    shown = look("chain", "events", "--from-block", "1", "--name", "SubnetRegistered").stdout
    assert "SubnetRegistered" in shown
    assert "\x1b" not in shown
    assert "1 to" in look("chain", "events", "--to-block", "999999").stderr


def test_doctor_asks_the_chain_about_the_node(look: Run, live: Live, tmp_path: Path) -> None:
    save_peer_key(tmp_path / "peer.key", PEERS[0])
    save_account_key(tmp_path / "hotkey.account", HOTKEYS[0])
    argv = ("doctor", "--subnet-id", "1", "--keys-dir", str(tmp_path), "--json")
    done = look(*argv)
    found = {each["check"]: each for each in json.loads(done.stdout)}
    for check in ("peer key", "hotkey", "chain", "balance", "subnet", "registration", "class"):
        assert found[check]["state"] == "ok", found[check]
    assert found["clock"]["state"] == found["bootnode"]["state"] == "fails"  # blocks by hand, and nobody listens there
    assert done.returncode == 1
    save_peer_key(tmp_path / "peer.key", PEERS[1], Overwrite.REPLACE)
    found = {each["check"]: each for each in json.loads(look(*argv).stdout)}
    assert found["registration"]["state"] == "fails"
    assert "\x1b" not in look(*argv[:-1]).stdout


# --- rewards --------------------------------------------------------------------------------------------------------


def test_every_planck_of_a_stakes_change_has_a_cause(look: Run, live: Live) -> None:
    """The rows of a node sum up to what its stake changed by, over the whole life of the subnet and over any part."""
    last = live.dev.best.number
    for first, end in (
        (1, last),
        (live.slot + LENGTH, last),
        (live.slot + (AGREED + 1) * LENGTH, live.slot + (AGREED + 1) * LENGTH),
    ):
        done = look("rewards", "--subnet-id", "1", "--from-block", str(first), "--to-block", str(end), "--csv")
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert {row["subnet"] for row in rows} == {str(live.subnet_id)}
        before, after = live.stakes(first - 1), live.stakes(end)
        for node in (1, 2, 3):
            mine = [row for row in rows if row["node"] == str(node) and "deleg" not in row["cause"]]
            assert sum(int(row["planck"]) for row in mine) == after[node] - before.get(node, 0)
        assert "other" not in {row["cause"] for row in rows}


def test_rewards_name_who_worked_proposed_lost_and_staked(look: Run, live: Live) -> None:
    rows = [
        json.loads(line)
        for line in look("rewards", "--subnet-id", "1", "--from-block", "1", "--json").stdout.splitlines()
    ]
    by_cause: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_cause.setdefault(row["cause"], []).append(row)
    settled = live.slot + (AGREED + 1) * LENGTH
    assert {(row["node"], row["block"], row["epoch"]) for row in by_cause["work"] if int(row["planck"])} == {
        (1, settled, AGREED), (2, settled, AGREED),
    }  # fmt: skip
    (proposer,) = by_cause["proposer"]
    assert (proposer["node"], proposer["block"]) == (live.proposers[AGREED], settled)
    (slash,) = by_cause["slash"]
    assert (slash["node"], slash["block"], slash["epoch"]) == (live.proposers[REFUSED], settled + LENGTH, REFUSED)
    assert int(slash["planck"]) < 0
    staked = [int(row["planck"]) for row in by_cause["staked"]]
    assert sorted(staked) == [ADDED, STAKE, STAKE, STAKE]
    shown = look("rewards", "--subnet-id", "1", "--node-id", str(live.proposers[REFUSED])).stdout
    assert "slash" in shown
    assert "in all" in shown
    assert "--json" in look("rewards", "--subnet-id", "1", "--csv", "--json").stderr


def test_a_range_is_bounded_and_a_pruned_block_is_said(look: Run, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from mesh.chain import earnings

    monkeypatch.setattr(earnings, "MAX_BLOCKS", 10)
    assert "in parts" in look("rewards", "--subnet-id", "1", "--from-block", "1").stderr
    assert "1 to" in look("rewards", "--subnet-id", "1", "--from-block", "0").stderr
    monkeypatch.undo()
    monkeypatch.setenv("MESH_CHAIN_URL", live.url)
    monkeypatch.setattr(live.dev.store, "history_blocks", 20)
    for argv in (("rewards", "--subnet-id", "1"), ("chain", "events")):
        done = look(*argv, "--from-block", "2")
        assert done.returncode == 1
        assert "no more" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_long_range_shows_how_far_it_is_beside_the_output(
    live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mesh.cli.look import _bar

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for last, shown in ((100, False), (1000, True)):
        with _bar("rewards", 1, last, shown=True) as progress:
            progress(last)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("rewards" in err) == shown


# --- replay ---------------------------------------------------------------------------------------------------------


def test_a_right_proposal_is_recomputed(look: Run, live: Live, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(live.blobs[AGREED - 1])
    said = values(look("epoch", "replay", "blob", "--json"))
    assert said["right"]
    assert (said["subnet_id"], said["epoch"], said["proposer"]) == (live.subnet_id, AGREED - 1, live.proposers[AGREED])
    assert said["inventories"] == 3
    assert set(said["records"].values()) == {2}
    assert all(row["proposed"] == row["recomputed"] for row in said["scores"])
    assert "the proposal is right" in look("epoch", "replay", "blob").stdout


def test_where_a_proposal_differs_is_said_and_the_exit_code_is_one(look: Run, live: Live, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(live.blobs[NOW - 1])
    done = look("epoch", "replay", "blob", "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert not said["right"]
    assert said["differences"] == [2]
    assert {"node_id": 2, "proposed": str(2 * ONE), "recomputed": str(ONE)} in said["scores"]
    shown = look("epoch", "replay", "blob")
    assert shown.returncode == 1
    assert [line.split()[0] for line in shown.stdout.splitlines() if "DIFFERS" in line] == ["2"]
    other = look(
        "epoch", "replay", "blob", "--epoch", str(AGREED - 1), "--json"
    )  # not what that epoch's proposal was made of
    assert json.loads(other.stdout)["reason"] == "evidence"
    assert other.returncode == 1


def test_what_cannot_be_replayed_is_said(look: Run, live: Live, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(live.blobs[AGREED - 1])
    (tmp_path / "garbage").write_bytes(b"\x93nonsense")
    (tmp_path / "empty").write_bytes(encode_blob(make_blob([], [])))
    for argv, says in (
        (("garbage",), "no proposal's evidence"),
        (("nothing",), "mesh content get"),
        (("empty",), "--subnet-id and --epoch"),
        (("blob", "--epoch", str(SILENT - 1)), f"no proposal for epoch {SILENT - 1}"),
    ):
        done = look("epoch", "replay", *argv)
        assert done.returncode == 1
        assert says in done.stderr, done.stderr


# --- watching -------------------------------------------------------------------------------------------------------


OWN_SOCKETS = 2
"""Of the client beside the chain: one for questions, one for heads."""


@contextmanager
def blocks_come(live: Live) -> Iterator[None]:
    """Blocks while somebody watches, all in the epoch that runs: there are few, and none is made before a watcher is
    connected, however long that takes it."""
    end = threading.Event()

    def make() -> None:
        while not end.wait(0.1) and live.dev.best.number < live.slot + (NOW + 1) * LENGTH - 1:
            if len(live.dev.listeners) > OWN_SOCKETS:
                trio.from_thread.run_sync(live.dev.new_block, trio_token=live.token)

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(10)


def test_watching_prints_every_block_once_where_there_is_no_terminal(look: Run, live: Live) -> None:
    with blocks_come(live):
        done = look("epoch", "watch", "--subnet-id", "1", "--blocks", "3", "--json")
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["block"] for line in seen] == list(range(seen[0]["block"], seen[0]["block"] + 3))
    assert {line["epoch"] for line in seen} == {NOW}
    assert seen[0]["proposal"]["node_id"] == live.proposers[NOW]
    assert seen[0]["paid_before"] is None  # nobody proposed in the epoch before
    shown = look("epoch", "watch", "--subnet-id", "1", "--blocks", "1").stdout
    assert len(shown.splitlines()) == 1
    assert "attested by 1 of 3 validators" in shown


def test_the_picture_shows_bars_windows_and_what_was_paid(live: Live) -> None:
    from rich.console import Console

    from mesh.chain.reading import read_epoch
    from mesh.cli.watch import Seen, picture

    view = live.do(lambda: read_epoch(live.client, live.subnet_id))
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    console.print(picture(Seen(view, {1: PLANCK_PER_TENSOR, 2: 0})))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("1 of 3 validators", "inventory      20 ", "━", "1 TENSOR to 2 nodes", "not yet"):
        assert part in text
    assert "\x1b" not in text


def test_the_guide_prints_what_it_shows(look: Run, live: Live, tmp_path: Path) -> None:
    (tmp_path / "evidence.blob").write_bytes(live.blobs[AGREED - 1])
    save_peer_key(tmp_path / "node1" / "peer.key", PEERS[0])
    save_account_key(tmp_path / "node1" / "hotkey.account", HOTKEYS[0])
    for command, shown in commands_of(DOCS / "look-at-the-chain.md"):
        words = shlex.split(command, comments=True)
        assert words[0] == "mesh", command
        with blocks_come(live) if words[1:3] == ["epoch", "watch"] else nullcontext():
            done = look(*words[1:])
        assert done.returncode == (1 if words[1] == "doctor" else 0), f"{command}: {done.stderr}"
        assert is_like(shown, done.stdout), f"{command} printed:\n{done.stdout}"
