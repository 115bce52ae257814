"""The demo, phase by phase. Every phase waits on events of the chain or of a process, never on a guess of time."""

from __future__ import annotations

import enum
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from mesh.chain import staking
from mesh.chain.substrate import ChainConfig, SubstrateChain
from mesh.chain.types import Snapshot
from mesh.cli.common import Ends, run_until_signalled
from mesh.errors import MeshError
from mesh.log import configure
from mesh.peer import Multiaddr, PeerID, PeerInfo
from subnets.demo.books import read_books
from subnets.demo.client import Client, refusal_of_a_stranger
from subnets.demo.follow import Follower, Settled
from subnets.demo.judge import Judged, judge
from subnets.demo.processes import Fleet, Process
from subnets.demo.report import NodeRow, Report
from subnets.demo.setup import Cast, NodeKeys, make_keys, register_nodes, register_subnet
from subnets.demo.view import View, print_report
from subnets.optimization.data import JUDGE_FILE, prepare_data
from subnets.optimization.score import PENALIZED

EPOCH_LENGTH = 20
MAX_EPOCHS_WITHOUT_PAY = 6
"""Proposals that may fail (elected node down, too few inventories) before the demo gives up."""
MAX_EXTRA_EPOCHS = 3
PROGRESS_EVERY_S = 2.0


class DemoFailed(MeshError):
    """Something the demo promises did not hold."""


class DemoConfig(BaseModel):
    """The options of `mesh demo`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class Output(enum.Enum):
        """What is printed at the end."""

        TABLE = enum.auto()
        JSON = enum.auto()

    class After(enum.Enum):
        """What happens then."""

        END = enum.auto()
        KEEP = enum.auto()

    nodes: int
    epochs: int
    block_time_s: float
    seed: int
    data_dir: Path | None
    output: Output
    after: After
    log_json: bool


def main(config: DemoConfig) -> None:
    """Run the demo and print what it found. Raises DemoFailed, or what a part raised."""
    report = Report()
    console = Console(stderr=config.output is DemoConfig.Output.JSON, quiet=False)
    with ExitStack() as stack:
        directory = stack.enter_context(_directory(config))
        configure(level="INFO", json_lines=config.log_json, file=directory / "logs" / "demo.log")
        view = View(Console(stderr=True, quiet=config.output is DemoConfig.Output.JSON))
        ended = False

        async def run() -> None:
            nonlocal ended
            with view:
                await Demo(config, directory, view, report, lambda: _print(report, config, console)).run()
            if config.after is DemoConfig.After.END:
                _print(report, config, console)
            if failures := report.failures(epochs=config.epochs):
                raise DemoFailed(f"the demo did not hold: {'; '.join(failures)} (logs in {directory / 'logs'})")
            ended = True

        run_until_signalled(run, ends=Ends.WHEN_TOLD)
        if not ended:
            raise KeyboardInterrupt  # ended by a signal: everything is stopped, nothing was proven


def _print(report: Report, config: DemoConfig, console: Console) -> None:
    if config.output is DemoConfig.Output.JSON:
        print(json.dumps(report.to_json()), flush=True)
    else:
        print_report(report, console)


@contextmanager
def _directory(config: DemoConfig) -> Iterator[Path]:
    """Where everything goes. A temporary folder stays only after a failure, for its logs."""
    if config.data_dir is not None:
        config.data_dir.mkdir(parents=True, exist_ok=True)
        yield config.data_dir.resolve()
        return
    directory = Path(tempfile.mkdtemp(prefix="mesh-demo-"))
    try:
        yield directory
    except (KeyboardInterrupt, GeneratorExit):
        shutil.rmtree(directory, ignore_errors=True)
        raise
    except BaseException:
        print(f"logs and state are in {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Demo:
    """One run."""

    config: DemoConfig
    directory: Path
    view: View
    report: Report
    show: Callable[[], None]
    killed: str = ""
    _down: str = ""
    """The node that is down on purpose just now."""
    _phase_began: float = 0.0
    _phase: str = ""

    async def run(self) -> None:
        """All phases; the processes are ended whatever happens."""
        # Journals, locks and remembered chains of this run belong to this run.
        os.environ["XDG_DATA_HOME"] = str(self.directory / "home")
        fleet = Fleet(self.directory, log_json=self.config.log_json)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, fleet)
                await self._run(fleet, nursery)
                nursery.cancel_scope.cancel()
        finally:
            fleet.end()

    async def _watch(self, fleet: Fleet) -> None:
        while True:
            await trio.sleep(0.5)
            fleet.check(except_for=self._down)

    async def _run(self, fleet: Fleet, nursery: trio.Nursery) -> None:
        self._enter("keys and data")
        cast = make_keys(self.directory / "keys", self.config.nodes)
        data = await trio.to_thread.run_sync(prepare_data, self.directory / "data", self.config.seed)

        self._enter("chain")
        url = await self._start_chain(fleet, cast)
        chain = SubstrateChain(
            ChainConfig(urls=(url,)),
            journal_dir=self.directory / "journal",
            cache_dir=self.directory / "metadata",
            rng=random.Random(os.urandom(16)),
        )
        await nursery.start(chain.run)

        self._enter("register subnet and nodes")
        bootnode_port = _free_port()
        bootnode = PeerInfo(cast.bootnode.peer_id, (Multiaddr(f"/ip4/127.0.0.1/tcp/{bootnode_port}"),))
        subnet_id = await register_subnet(chain, cast, bootnode)
        ids = await register_nodes(chain, cast, subnet_id)

        self._enter("start bootnode and nodes")
        await self._start_bootnode(fleet, cast, url, bootnode, subnet_id)
        addresses = await self._start_nodes(fleet, cast, url, bootnode, subnet_id, ids, data.pool)

        self._enter("measure the default model, refuse a stranger")
        client = Client(cast.nodes[0].client, addresses, self.directory / "client")
        await nursery.start(client.run)
        before = await client.measure(data.judge / JUDGE_FILE)
        self.report.accuracy_before, self.report.judge_samples = before.accuracy, before.samples
        self.report.stranger_refused_because = await refusal_of_a_stranger(addresses[0], self.directory / "stranger")

        self._enter("activate the subnet")
        await staking.activate_subnet(chain, cast.owner, subnet_id=subnet_id)
        info = await chain.subnet(subnet_id)
        assert info.slot is not None
        first = await chain.head()
        before_snapshot = await chain.snapshot(subnet_id, first)
        follower = Follower(chain, subnet_id, info.slot, info.start_epoch)
        nursery.start_soon(follower.run)
        nursery.start_soon(self._show_progress, follower, client, cast)

        await self._epochs(fleet, follower, cast, ids)

        self._enter("judge the champion")
        judged = await self._judge(chain, client, subnet_id, follower)
        after = await client.measure_champion(data.judge / JUDGE_FILE, judged.champion_weights)
        self.report.accuracy_after, self.report.device = after.accuracy, after.device
        self.report.verified_gain = judged.verified_gain_ppm / 1_000_000

        self._enter("read the books")
        last = _paid(follower)[-1].block
        self.report.books = await read_books(chain, 1, last)
        after_snapshot = await chain.snapshot(subnet_id)
        self._fill(cast, ids, follower, judged, before_snapshot, after_snapshot)
        self._enter("")
        if self.config.after is DemoConfig.After.KEEP:
            self.show()
            for line in (
                f"chain    {url}",
                f"bootnode {bootnode.multiaddrs()[0]}",
                f"logs     {self.directory / 'logs'}",
            ):
                self.view.say(line)
            self.view.say("running until Ctrl-C, which removes it all")
            await trio.sleep_forever()

    def _enter(self, phase: str) -> None:
        now = trio.current_time()
        if self._phase:
            self.report.seconds[self._phase] = now - self._phase_began
        self._phase, self._phase_began = phase, now
        self.view.phase(phase)

    # --- processes ------------------------------------------------------------------------------------------

    async def _start_chain(self, fleet: Fleet, cast: Cast) -> str:
        arguments = [
            "chain",
            "--port",
            "0",
            "--data-dir",
            str(self.directory / "chain"),
            "--block-time",
            str(self.config.block_time_s),
            "--epoch-length",
            str(EPOCH_LENGTH),
            "--fund",
            *cast.funds(),
        ]
        return str((await fleet.start("chain", arguments)).ready["url"])

    async def _start_bootnode(self, fleet: Fleet, cast: Cast, url: str, bootnode: PeerInfo, subnet_id: int) -> None:
        arguments = ["dht", "bootnode", "--identity-path", str(cast.bootnode_path), "--new-swarm"]
        arguments += ["--host-maddrs", str(bootnode.addrs[0]), "--chain-url", url, "--subnet-id", str(subnet_id)]
        arguments += ["--data-dir", str(self.directory / "bootnode")]
        await fleet.start("bootnode", arguments)

    async def _start_nodes(
        self,
        fleet: Fleet,
        cast: Cast,
        url: str,
        bootnode: PeerInfo,
        subnet_id: int,
        ids: dict[PeerID, int],
        pool: Path,
    ) -> tuple[PeerInfo, ...]:
        settings = self.directory / "optimization.toml"
        settings.write_text(f'pool = "{pool}"\n')
        ready: dict[str, PeerInfo] = {}

        async def start(node: NodeKeys) -> None:
            subnet = "optimization-liar" if node is cast.nodes[-1] else "optimization"
            arguments = ["server", subnet, "--subnet-config", str(settings)]
            arguments += ["--identity-path", str(node.directory / "peer.key")]
            arguments += ["--hotkey-file", str(node.directory / "hotkey.account")]
            arguments += ["--subnet-id", str(subnet_id), "--subnet-node-id", str(ids[node.peer.peer_id])]
            # A port that is kept, so that the others find the node where it was after a restart.
            arguments += ["--host-maddrs", f"/ip4/127.0.0.1/tcp/{_free_port()}"]
            arguments += ["--initial-peers", bootnode.multiaddrs()[0], "--chain-url", url]
            arguments += ["--data-dir", str(self.directory / node.name)]
            process = await fleet.start(node.name, arguments)
            ready[node.name] = PeerInfo.parse(process.ready["addresses"][0])

        async with trio.open_nursery() as nursery:
            for node in cast.nodes:
                nursery.start_soon(start, node)
        return tuple(ready[node.name] for node in cast.nodes)

    # --- epochs ---------------------------------------------------------------------------------------------

    async def _epochs(self, fleet: Fleet, follower: Follower, cast: Cast, ids: dict[PeerID, int]) -> None:
        self._enter("first paid epoch proposed")
        await self._until(follower, lambda: any(p.scores for p in follower.proposals.values()))
        proposal = next(p for p in follower.proposals.values() if p.scores)

        self._enter("kill and restart a node")
        victim = next(n for n in cast.nodes[:-1] if ids[n.peer.peer_id] != proposal.proposer_node_id)
        await self._kill_and_restart(fleet, fleet.processes[victim.name])

        self._enter(f"{self.config.epochs} epochs settled with rewards")
        await self._until(follower, lambda: len(_paid(follower)) >= self.config.epochs)

    async def _judge(self, chain: SubstrateChain, client: Client, subnet_id: int, follower: Follower) -> Judged:
        """Recompute all paid epochs; where no claim beat the default yet (a slow machine), run further epochs."""
        while True:
            judged = await judge(chain, client, subnet_id, _paid(follower), slot=follower.slot)
            paid = len(_paid(follower))
            if judged.champion_weights or paid >= self.config.epochs + MAX_EXTRA_EPOCHS:
                return judged
            self.view.say("no claim has beaten the default yet; running another epoch")
            await self._until(follower, lambda: len(_paid(follower)) > paid)  # noqa: B023 - awaited in this round

    async def _until(self, follower: Follower, holds: Callable[[], bool]) -> None:
        def over() -> bool:
            unpaid = len(follower.missed) + sum(not s.paid for s in follower.settled)
            if unpaid > MAX_EPOCHS_WITHOUT_PAY:
                raise DemoFailed(f"{unpaid} epochs were settled without rewards; missed: {follower.missed}")
            return holds()

        await follower.until(over)

    async def _kill_and_restart(self, fleet: Fleet, process: Process) -> None:
        self.killed = self._down = process.name
        process.kill()
        self.view.say(f"[red]killed {process.name}[/red] with SIGKILL")
        await fleet.restart(process)
        self._down = ""
        self.view.say(f"{process.name} is back from its data directory")

    async def _show_progress(self, follower: Follower, client: Client, cast: Cast) -> None:
        while True:
            position = follower.position
            self.view.clock(position.epoch, position.offset, position.length, follower.block)
            self.view.champions(await client.bests([node.name for node in cast.nodes]))
            await trio.sleep(PROGRESS_EVERY_S)

    # --- result ---------------------------------------------------------------------------------------------

    def _fill(
        self,
        cast: Cast,
        ids: dict[PeerID, int],
        follower: Follower,
        judged: Judged,
        before: Snapshot,
        after: Snapshot,
    ) -> None:
        report = self.report
        report.epochs_settled = len(_paid(follower))
        report.epochs_missed = len(follower.missed)
        report.rejected_claims = sum(judged.rejected.values())
        liar_id = ids[cast.nodes[-1].peer.peer_id]
        report.liar_paid_after_rejection = sum(
            settled.node_rewards.get(liar_id, 0)
            for settled, outcome in zip(_paid(follower), judged.outcomes, strict=True)
            if any(v.node_id == liar_id and v.status in PENALIZED for v in outcome.verdicts)
        )
        work: dict[int, int] = {}
        scores: dict[int, int] = {}
        for settled in follower.settled:
            for node_id, planck in settled.node_rewards.items():
                work[node_id] = work.get(node_id, 0) + planck
            for score in settled.submission.scores:
                scores[score.node_id] = scores.get(score.node_id, 0) + score.score
        for node in cast.nodes:
            node_id = ids[node.peer.peer_id]
            was, now = before.by_peer(node.peer.peer_id), after.by_peer(node.peer.peer_id)
            if was is None or now is None:
                raise DemoFailed(f"{node.name} is no longer registered")
            role = "liar" if node is cast.nodes[-1] else "killed" if node.name == self.killed else "honest"
            gained = now.stake_planck - was.stake_planck
            report.nodes.append(
                NodeRow(
                    name=node.name,
                    peer_id=str(node.peer.peer_id),
                    role=role,
                    score=scores.get(node_id, 0),
                    claims_accepted=judged.accepted[node_id],
                    claims_rejected=judged.rejected[node_id],
                    stake_before=was.stake_planck,
                    stake_after=now.stake_planck,
                    reward_work=work.get(node_id, 0),
                    # The pallet puts the proposer's own reward into its stake without an event for it.
                    reward_proposer=gained - work.get(node_id, 0),
                    reputation=now.reputation,
                )
            )


def _paid(follower: Follower) -> list[Settled]:
    return [settled for settled in follower.settled if settled.paid]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
