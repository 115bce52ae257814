"""The commands as a stranger types them: flags of both spellings, one-sentence errors, exit codes."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.cli.common import load_dotenv, normalized, planck, sentence, single_cause
from mesh.cli.register import share
from mesh.config import NodeConfig, usable_maddrs
from mesh.errors import ConfigError, DialFailed, WorkerError

Run = Callable[..., Any]


def test_flags_take_underscores_and_values_keep_theirs() -> None:
    assert normalized(["--host_maddrs", "/a_b", "--x_y=c_d", "--", "--z_z"]) == [
        "--host-maddrs", "/a_b", "--x-y=c_d", "--", "--z_z",
    ]  # fmt: skip


def test_keygen_makes_three_identities_once(run: Run) -> None:
    argv = ("keygen", "--path", "a", "--bootstrap_path", "b", "--client_path", "c", "--key_type", "secp256k1", "--json")
    made = json.loads(run(*argv).stdout)
    assert len({entry["peer_id"] for entry in made.values()}) == 3
    again = run(*argv)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert "Traceback" not in again.stderr
    shown = json.loads(run("keyview", "--path", "a", "--json").stdout)
    assert json.loads(run("keyview", "a", "--json").stdout) == shown
    assert shown["key"] == {"path": "a", "type": "secp256k1", "peer_id": made["peer"]["peer_id"]}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("keyview", "--path", "nothing"), "not there"),
        (("server", "no-such-subnet"), "there is no subnet"),
        (("server", "mock", "--identity-path", "nothing", "--no_blockchain_rpc"), "not there"),
        (("server", "mock", "--subnet-config", "nothing.toml"), "not there"),
        (("dht", "bootnode", "--host_maddrs", "/ip4/1.2.3.4/udp/1/quic", "--no_blockchain_rpc"), "TCP address"),
        (("dht", "bootnode", "--host_maddrs", "nonsense", "--no_blockchain_rpc"), "multiaddr"),
        (("dht", "bootnode", "--initial_peers", "/ip4/1.2.3.4/tcp/1", "--no_blockchain_rpc"), "/p2p/"),
        (("register-node", "--subnet_id", "1"), "--keys-dir"),
        (("transfer", "--to", f"0x{'11' * 20}", "--amount", "1"), "coldkey"),
        (("transfer", "--to", f"0x{'11' * 20}", "--amount", "0.1234567890123456789"), "18 decimals"),
        (("transfer", "--to", "0xf24FF3a9CF04c71Dbc94D0b566f7A27B94566caC", "--amount", "1"), "checksum"),
        (("stake", "remove", "--subnet-id", "1"), "--all"),
        (("delegate", "remove", "--subnet-id", "1", "--all", "--shares", "3"), "one of"),
        (("subnet", "transfer", "--subnet-id", "1"), "--accept"),
        (("overwatch", "commit", "--node-id", "1", "--weights", "half"), "SUBNET=SHARE"),
        (("transfer", "--to", f"0x{'11' * 20}", "--amount", "1", "--json"), "--yes"),
        (("transfer", "--to", f"0x{'00' * 20}", "--amount", "1"), "nobody"),
        (("transfer", "--to", f"0x{'11' * 20}", "--amount", "1,000"), "without commas"),
        (("register-node", "--subnet_id", "1", "--keys-dir", "nothing"), "keygen --keys-dir nothing"),
        (("balance", "--coldkey-file", "nothing"), "mesh keys new"),
        (("overwatch", "commit", "--node-id", "1", "--weights", "1=80"), "80%"),
        (("demo", "--nodes", "2"), "5 to 16"),
        (("chain", "--fund", "0x12"), "ADDRESS=TENSOR"),
        (("chain", "--block-time", "manual"), "--dev-rpc"),
        (("new", "subnet", "not-a-name"), "lower-case"),
        (("activate-node", "--subnet_id", "1"), "--hotkey"),
    ],
)
def test_one_sentence_and_no_traceback(argv: tuple[str, ...], says: str, run: Run) -> None:
    done = run(*argv)
    assert done.returncode == 1, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(BaseException) as caught:
        run(*argv, "--debug")
    assert not isinstance(caught.value, SystemExit)


def test_no_chain_is_said_in_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_COLDKEY", "11" * 32)
    argv = ("activate-subnet", "--subnet_id", "1", "--chain-url", "ws://127.0.0.1:1", "--chain-timeout", "1")
    done = run(*argv)
    assert done.returncode == 1
    assert "mesh-chain" in done.stderr
    assert "waiting" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_waits_for_the_chain_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.cli.common._QUIET_WAIT_S", 0.01)
    done = run("chain", "status", "--chain-url", "ws://127.0.0.1:1", "--chain-timeout", "0.3")
    assert done.stderr.splitlines()[0] == (
        "waiting for the chain at ws://127.0.0.1:1, for 0.3 s at most (--chain-timeout)"
    )
    assert done.stdout == ""


def test_doctor_finds_that_there_is_no_chain_and_what_else(run: Run) -> None:
    argv = (
        "doctor",
        "--chain-url",
        "ws://127.0.0.1:1",
        "--chain-timeout",
        "0.5",
        "--host_maddrs",
        "/ip4/127.0.0.1/tcp/0",
    )
    done = run(
        *argv, "--initial_peers", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWBP2bH84ed62VppJ2LNQqeGcwvE3RdRrymLhkJe3dakUt"
    )
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ok", "port"], ["fails", "bootnode"], ["fails", "chain"],
    ]  # fmt: skip
    assert done.stderr == ""


def test_dotenv_with_a_secret_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_COLDKEY", raising=False)
    path = tmp_path / ".env"
    path.write_text("MESH_COLDKEY=0x11\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_dotenv(path)
    assert "MESH_COLDKEY" not in os.environ
    path.write_text("LOCAL_RPC=ws://one\nMESH_COLDKEY=\n")
    monkeypatch.setenv("MESH_COLDKEY", "")
    monkeypatch.setenv("LOCAL_RPC", "ws://two")
    load_dotenv(path)
    assert os.environ["LOCAL_RPC"] == "ws://two"


@pytest.mark.parametrize("text", ["-1", "1e30", "nan", "x", "0.0000000000000000001", ""])
def test_amounts_are_exact_or_refused(text: str) -> None:
    assert planck("100.5", name="x") == 100_500_000_000_000_000_000
    with pytest.raises(ConfigError, match="--x"):
        planck(text, name="x")
    with pytest.raises(ConfigError):
        share("1.1", name="x")


def test_quic_addresses_are_left_out() -> None:
    assert usable_maddrs(("/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/udp/1/quic")) == (
        ("/ip4/0.0.0.0/tcp/1",),
        ("/ip4/0.0.0.0/udp/1/quic",),
    )


def test_config_names_the_field_and_its_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="subnet_id"):
        NodeConfig(identity_path=tmp_path, data_dir=tmp_path, subnet_id=0)
    with pytest.raises(ValueError, match="colour"):
        NodeConfig(identity_path=tmp_path, data_dir=tmp_path, colour="red")


def test_a_missing_extra_is_named() -> None:
    assert "mesh-subnets[subnets]" in sentence(ModuleNotFoundError("No module named 'torch'", name="torch"))
    said = sentence(WorkerError("the worker cannot load its jobs: ModuleNotFoundError: No module named 'torch'"))
    assert "mesh-subnets[subnets]" in said


def test_the_one_cause_comes_out_of_nested_groups() -> None:
    wanted = DialFailed("x")
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [wanted])])
    assert single_cause(group) is wanted


OF_THE_RUNTIME = {"BelowMinimum", "NotExpendable", "FundsUnavailable", "InsufficientBalance"}
NO_COMMANDS_FAULT = {"BalanceBurnError", "InvalidDelegateAccountParameters", "MaxSubnets", "SubnetEpochDataIsNone"}


def test_every_hint_is_about_an_error_of_the_chain() -> None:
    from mesh.cli.hints import HINTS
    from mesh.devchain.pallets.network.errors import ERRORS

    assert set(HINTS) <= set(ERRORS) | OF_THE_RUNTIME


def test_whatever_the_chain_refuses_a_command_has_a_hint() -> None:
    from mesh.cli.hints import hint_for
    from mesh.devchain.pallets import network

    files = [path for path in Path(network.__file__).parent.glob("*.py") if path.name != "consensus.py"]  # of nodes
    raised = {name for path in files for name in re.findall(r'(?:Dispatch|Limit)\(\s*"(\w+)"', path.read_text())}
    assert len(raised) > 80
    assert {name for name in raised if hint_for(name) is None} <= NO_COMMANDS_FAULT
