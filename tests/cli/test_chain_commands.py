"""Staker commands against a development chain: what goes wrong is said in one sentence with what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.identity import AccountKey, PeerKey, save_account_key, save_peer_key


@dataclass
class Chain:
    folder: Path
    env: dict[str, str]
    url: str

    def mesh(self, *argv: str, secret: str = "") -> subprocess.CompletedProcess[str]:
        env = {**self.env, "MESH_COLDKEY": secret} if secret else self.env
        return subprocess.run(
            [sys.executable, "-m", "mesh.cli", *argv, "--chain-url", self.url],
            cwd=self.folder, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    env = {**os.environ, "XDG_DATA_HOME": str(folder / "home"), "MESH_PARENT_PID": str(os.getpid())}
    env.pop("MESH_COLDKEY", None)
    argv = [sys.executable, "-m", "mesh.cli", "chain", "--port", "0", "--block-time", "0.2", "--json"]
    process = subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    for name in ("peer", "bootnode", "client"):
        save_peer_key(folder / "keys" / f"{name}.key", PeerKey.generate())
    save_account_key(folder / "keys" / "hotkey.account", AccountKey.generate())
    yield Chain(folder, env, url)
    process.kill()
    process.wait()
    process.stdout.close()


TRIO = [f"{AccountKey.dev('alith').address}=2", *(AccountKey.dev(n).address for n in ("charleth", "dorothy"))]


def hexkey(name: str) -> str:
    return AccountKey.dev(name).private.hex()


@pytest.fixture(scope="module")
def subnet(chain: Chain) -> str:
    done = chain.mesh(
        "register-subnet", "--yes", "--name", "one", "--repo", "one", "--initial_coldkeys", *TRIO,
        "--bootnodes", f"/ip4/127.0.0.1/tcp/1/p2p/{PeerKey.dev('bootnode').peer_id}", "--json",
        secret=hexkey("alith"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["friendly_id"] == 1
    return str(made["subnet_id"])


def test_refusals_say_what_to_do(chain: Chain, subnet: str) -> None:
    register = ("register-node", "--subnet_id", subnet, "--keys-dir", "keys")
    again = ("register-subnet", "--name", "one", "--repo", "two", "--initial_coldkeys", *TRIO,
             "--bootnodes", f"/ip4/127.0.0.1/tcp/1/p2p/{PeerKey.dev('bootnode').peer_id}")  # fmt: skip
    poor = AccountKey.generate().private.hex()
    for argv, secret, says in (
        ((*register, "--stake_to_be_added", "1"), hexkey("alith"), "stake more"),
        ((*register, "--stake_to_be_added", "5000000"), hexkey("alith"), "smaller amount"),
        (register, hexkey("baltathar"), "initial coldkeys"),
        (again, hexkey("alith"), "another --name"),
        (("activate-subnet", "--subnet_id", "1"), hexkey("alith"), "at least 3 nodes"),
        (("activate-subnet", "--subnet_id", "1"), hexkey("alith"), "0 of the 3 nodes"),
        (("activate-subnet", "--subnet_id", "1"), hexkey("baltathar"), "only the coldkey"),
        (("activate-subnet", "--subnet_id", "77"), hexkey("alith"), "77"),
        (("transfer", "--to", TRIO[1], "--amount", "1"), poor, "TENSOR first"),
        (("activate-node", "--subnet_id", "1", "--subnet_node_id", "9"), "", "register-node"),
    ):
        sign = () if argv[0] == "activate-node" else ("--yes",)
        done = chain.mesh(*argv, *sign, secret=secret)
        assert done.returncode == 1, (argv, done.stdout)
        assert says in done.stderr, (argv, done.stderr)
        assert "Traceback" not in done.stderr
        said = [line for line in done.stderr.strip().splitlines() if not line.startswith("warning:")]
        assert len(said) == 1, done.stderr


def test_a_subnet_is_shown_by_its_id_alone(chain: Chain, subnet: str) -> None:
    shown = json.loads(chain.mesh("subnet", "show", "1", "--json").stdout)
    assert str(shown["subnet_id"]) == subnet
    assert shown["start_epoch"] is None
    assert chain.mesh("node", "list", subnet, "--json").returncode == 0


def test_what_was_not_done_after_a_refusal_is_said(chain: Chain, subnet: str) -> None:
    done = chain.mesh(
        "register-subnet", "--yes", "--name", "two", "--repo", "two", "--initial_coldkeys", *TRIO,
        "--bootnodes", f"/ip4/127.0.0.1/tcp/1/p2p/{PeerKey.dev('bootnode').peer_id}",
        "--churn_limit", "1000000",
        secret=hexkey("alith"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "done in block" in done.stdout
    real = int(subnet) + 1
    assert done.stderr.splitlines()[0] == f"not done: set churn_limit of subnet {real}"
    assert "InvalidChurnLimit): the value is outside" in done.stderr


def test_secrets_on_argv_work_here_because_this_chain_is_ours(chain: Chain, subnet: str) -> None:
    argv = (
        "register-node",
        "--subnet_id",
        "1",
        "--keys-dir",
        "keys",
        "--private_key",
        hexkey("alith"),
        "--json",
        "--yes",
    )
    stranger = {**chain.env, "XDG_DATA_HOME": str(chain.folder / "another-home")}
    elsewhere = Chain(chain.folder, stranger, chain.url).mesh(*argv)
    assert elsewhere.returncode == 1
    assert "local chains only" in elsewhere.stderr
    assert hexkey("alith") not in elsewhere.stderr
    done = chain.mesh(*argv)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["node_id"] == 1


def test_one_hotkey_one_process_and_one_port(chain: Chain, subnet: str) -> None:
    argv = [
        sys.executable, "-m", "mesh.cli", "server", "mock", "--identity-path", "keys/peer.key", "--json",
        "--hotkey-file", "keys/hotkey.account", "--new-swarm", "--subnet_id", subnet, "--chain-url", chain.url,
    ]  # fmt: skip
    first = subprocess.Popen(argv, cwd=chain.folder, env=chain.env, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        ready = json.loads(first.stdout.readline())
        second = chain.mesh(*argv[3:-2])
        assert second.returncode == 1
        assert "already used" in second.stderr
        address = ready["addresses"][0].partition("/p2p/")[0]
        third = chain.mesh("dht", "bootnode", "--new-swarm", "--host_maddrs", address)
        assert third.returncode == 1
        assert address in third.stderr
        assert "Traceback" not in third.stderr
    finally:
        first.terminate()
        assert first.wait(timeout=10) == 0
        assert first.stdout is not None
        first.stdout.close()
