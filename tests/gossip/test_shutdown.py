"""A node as a process of its own: SIGTERM and SIGINT make it say OFFLINE before it is gone."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mesh.chain.offline import GENESIS
from mesh.clock import SystemClock
from mesh.gossip import Gossip
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pNetwork
from mesh.peer import PeerInfo
from mesh.presence import NodeState, Presence, presence_rule, presence_topic

ROOT = Path(__file__).parents[2]
TOPIC = presence_topic(1, GENESIS)


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_node_that_is_told_to_stop_says_offline(number: signal.Signals, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "mesh.cli", "server", "mock", "--no_blockchain_rpc", "--new_swarm", "--json"]
    argv += ["--data_dir", str(tmp_path)]
    process = start(argv)
    try:
        assert process.stdout is not None
        line = await trio.to_thread.run_sync(process.stdout.readline)
        node = PeerInfo.parse(json.loads(line)["addresses"][0])
        key = PeerKey.dev("watcher")
        net = Libp2pNetwork(key)
        rng = random.Random(1)
        rules = [presence_rule(TOPIC)]
        gossip = Gossip(net, key, is_member=lambda peer: True, clock=SystemClock(), rng=rng, rules=rules)
        presence = Presence(gossip, TOPIC, rng=rng)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(net.run)
                await nursery.start(gossip.run)
                await nursery.start(presence.run)
                await net.connect(node)
                await presence.wait_for(node.peer_id, NodeState.ONLINE)
                process.send_signal(number)
                await presence.wait_for(node.peer_id, NodeState.OFFLINE)
                assert await trio.to_thread.run_sync(process.wait) == 0
                nursery.cancel_scope.cancel()
    finally:
        process.kill()
        _, log = process.communicate()
    assert "Traceback" not in log
