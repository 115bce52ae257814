"""The life of a staker, over the commands only: every one is a process of its own, as a person would type it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.identity import AccountKey, save_account_key

OWNER, FRIEND, HEIR = (AccountKey.dev(name) for name in ("alith", "baltathar", "charleth"))


class Life:
    """A folder, a chain of its own, and how many commands were run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = 0
        self.env = {**os.environ, "XDG_DATA_HOME": str(folder / "home"), "MESH_PARENT_PID": str(os.getpid())}
        for name in ("MESH_COLDKEY", "MESH_HOTKEY", "PHRASE"):
            self.env.pop(name, None)
        argv = ["chain", "run", "--port", "0", "--block-time", "0.2", "--epoch-length", "60", "--dev-rpc", "--json"]
        self.chain = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", *argv], cwd=folder, env=self.env, stdout=subprocess.PIPE, text=True
        )
        assert self.chain.stdout is not None
        self.env["MESH_CHAIN_URL"] = json.loads(self.chain.stdout.readline())["url"]
        for key, name in ((OWNER, "owner"), (FRIEND, "friend"), (HEIR, "heir")):
            save_account_key(folder / f"{name}.account", key)

    def end(self) -> None:
        self.chain.kill()
        self.chain.wait()
        assert self.chain.stdout is not None
        self.chain.stdout.close()

    def run(self, line: str, *, says: str = "", code: int = 0, answer: str = "", key: str | None = None) -> str:
        """Run one command line; `key` signs it, with --yes unless somebody answers."""
        self.commands += 1
        argv = line.split()
        if key is not None:
            argv += ["--coldkey-file", f"{key}.account", *([] if answer else ["--yes"])]
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli", *argv],
            cwd=self.folder, env=self.env, input=answer, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{line}: {said}"
        assert says in said, f"{line}: {said}"
        assert "Traceback" not in said
        return done.stdout

    def json(self, line: str, *, key: str | None = None) -> Any:
        return json.loads(self.run(f"{line} --json", key=key))


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path)
    yield life
    life.end()


@pytest.mark.timeout(180)
def test_the_life_of_a_staker(life: Life) -> None:
    for number in (1, 2, 3, 4):
        life.run(f"keygen --keys-dir node{number}", says="hotkey")
    made = life.json("keyview --path node1/bootnode.key")
    bootnode = f"/ip4/127.0.0.1/tcp/31330/p2p/{made['key']['peer_id']}"
    hotkeys = [AccountKey.parse((life.folder / f"node{n}" / "hotkey.account").read_text()) for n in (1, 2, 3, 4)]

    # a subnet and its first nodes
    life.run(
        f"register-subnet --name life --repo life --initial_coldkeys {OWNER.address}=2 {FRIEND.address} {HEIR.address} "
        f"--bootnodes {bootnode} --churn_limit 8 --subnet_node_queue_epochs 3",
        key="owner", says="is registered",
    )  # fmt: skip
    assert life.json("subnet list")[0]["state"] == "Registered"
    life.run("subnet update --subnet-id 1 --description life", key="owner")
    life.run(f"subnet initial-coldkeys --subnet-id 1 --add {FRIEND.address}=2", key="owner")
    life.run("register-node --subnet-id 1 --keys-dir node1", key="owner", says="node 1 is registered")
    life.run("register-node --subnet-id 1 --keys-dir node1", key="owner", code=1, says="in use already")
    life.run("register-node --subnet-id 1 --keys-dir node2", key="friend", says="node 2 is registered")
    life.run("register-node --subnet-id 1 --keys-dir node3", key="heir", says="node 3 is registered")
    life.run(
        f"transfer --to {hotkeys[0].address} --amount 1", key="owner", answer="n\n", code=1, says="nothing was signed"
    )
    life.run(f"transfer --to {hotkeys[0].address} --amount 1", key="owner", answer="y\n", says="send 1 TENSOR")
    assert life.json(f"balance {hotkeys[0].address}")["free_planck"] == str(10**18)

    # stake and delegations, while the subnet is young
    dry = life.json("delegate add --subnet-id 1 --amount 200 --dry-run", key="friend")
    assert dry["calls"][0]["args"]["stake_to_be_added"] == str(200 * 10**18)
    life.run("delegate add --subnet-id 1 --amount 2000000", key="friend", code=1, says="smaller amount")
    life.run("delegate add --subnet-id 1 --amount 200.5", key="friend")
    life.run("delegate add --subnet-id 1 --node-id 2 --amount 50", key="friend")
    life.run("activate-subnet --subnet_id 1", key="owner", says="is active")
    life.run("stake add --subnet-id 1 --amount 25", key="owner", says="125 TENSOR")
    life.run("delegate donate --subnet-id 1 --amount 5", key="heir")
    life.run(f"delegate transfer --subnet-id 1 --to {HEIR.address} --amount 100", key="friend")
    shares = life.json("delegate list --coldkey-file heir.account")["delegations"]
    assert 10**20 <= int(shares[0]["worth_planck"]) < 10**20 + 10**6
    life.run("delegate swap --subnet-id 1 --to-subnet-id 1 --to-node-id 2 --all", key="heir")
    (waiting,) = life.json("delegate list --coldkey-file heir.account")["swaps"]
    life.run(f"delegate redirect --swap-id {waiting['swap_id']} --to-subnet-id 1 --to-node-id 3", key="heir")
    life.run("delegate remove --subnet-id 1 --all", key="friend", says="can be claimed from block")
    life.run("chain dev new-block --count 61")
    life.run("stake claim", key="friend", says="claim")

    # a node's settings, and what is refused
    life.run("node update --subnet-id 1 --node-id 1 --delegate-reward-rate 0.1 --non-unique mine", key="owner")
    assert life.json("node show --subnet-id 1 --node-id 1")["class"] == "Validator"
    life.run("node status --subnet-id 1 --node-id 1", says="Validator since epoch")
    life.run("register-node --subnet-id 1 --keys-dir node4", key="owner", code=1, says="--force")
    life.run("register-node --subnet-id 1 --keys-dir node4 --force", key="owner", says="node 4 is registered")
    life.run("node remove --subnet-id 1 --node-id 4", key="owner")
    life.run(f"stake remove --subnet-id 1 --hotkey {hotkeys[3].address} --all", key="owner")
    life.run("identity set --name we --url example.org", key="owner")
    assert life.json(f"identity show --address {OWNER.address}")["name"] == "we"

    # the owner's emergency exits
    life.run("subnet pause --subnet-id 1", key="friend", code=1, says="only the coldkey that owns")
    life.run("subnet pause --subnet-id 1", key="owner")
    assert life.json("subnet show --subnet-id 1")["state"] == "Paused"
    life.run("subnet emergency --subnet-id 1 --nodes 1 2 3", key="owner")
    life.run("subnet unpause --subnet-id 1", key="owner")
    life.run(f"subnet bootnodes --subnet-id 1 --allow {FRIEND.address}", key="owner")
    life.run(f"subnet bootnodes --subnet-id 1 --remove {made['key']['peer_id']}", key="friend")
    life.run(f"subnet transfer --subnet-id 1 --to {HEIR.address}", key="owner")
    life.run("subnet transfer --subnet-id 1 --accept", key="heir")
    assert life.json("subnet show --subnet-id 1")["owner"] == HEIR.address

    # at the end everything comes back
    life.run("subnet deactivate --subnet-id 1", key="heir")
    life.run(f"stake remove --subnet-id 128001 --hotkey {hotkeys[0].address} --all", key="owner")
    life.run("chain dev new-block --count 61")
    life.run("stake claim", key="owner")
    has = life.json("balance --coldkey-file owner.account")
    assert (has["staked_planck"], has["cooling_planck"]) == ("0", "0")
    assert life.commands >= 40
