"""Unmodified @polkadot/api on the dev chain (`make test-npm`): one scripted life, polkadot/scenario.mjs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.devchain.pallets.network import storage
from mesh.devchain.pallets.transaction_payment import BASE_FEE_PLANCK
from tests.devchain.serving import ALICE, BOB, START, running
from tests.devchain.test_runtime import planck_adds_up

HERE = Path(__file__).parent / "polkadot"
BLOCK_TIME_S = 0.3  # such that a client that starts can sign for the next few blocks

pytestmark = pytest.mark.npm


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text())
    for entry in lock["packages"].values():
        assert not {"resolved", "funding"} & entry.keys()


async def test_a_whole_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("node") is None or not (HERE / "node_modules").exists():
        pytest.skip("no Node.js, or its packages are not installed: make test-npm installs them")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    async with running(block_time_s=BLOCK_TIME_S, dev_rpc=False) as (chain, url):
        chain.set_storage({storage.MinSubnetNodes.key(): b"\x04\x00\x00\x00"})
        with trio.fail_after(90):
            done = await trio.run_process(
                ["node", "scenario.mjs", url, ALICE.key.secret.hex(), BOB.hex],
                cwd=HERE,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
        seen: dict[str, Any] = {line["step"]: line["seen"] for line in lines}
        assert "done" in seen, done.stdout.decode()
        planck_adds_up(chain)

    assert seen["connect"] == {
        "chain": "mesh dev chain",
        "spec": "hypertensor-node",
        "ethereum": True,
        "token": ["TENSOR"],
        "decimals": [18],
        "epochLength": 20,
    }
    assert seen["query"]["free"] == str(START)
    assert seen["query"]["signer"].lower() == ALICE.hex
    transfers = seen["transfers"]
    for each in (transfers["immortal"], transfers["mortal"]):
        assert each["statuses"] == ["Ready", "InBlock", "Finalized"]
        assert each["error"] is None
        assert each["events"][1] == "balances.Transfer"
        assert each["events"][-1] == "system.ExtrinsicSuccess"
    # an estimate is of a mortal extrinsic, which is a byte longer
    assert int(transfers["estimate"]) == int(transfers["mortal"]["fee"]) == int(transfers["immortal"]["fee"]) + 1
    assert int(transfers["immortal"]["fee"]) > BASE_FEE_PLANCK
    assert seen["block"]["methods"] == ["timestamp.set", "balances.transferKeepAlive"]
    assert seen["block"]["era"] == 64
    assert seen["block"]["signer"].lower() == ALICE.hex
    assert seen["set"] == {"methods": ["timestamp.set", "system.setStorage"], "value": "0x04000000"}
    assert seen["past"] == {"before": str(START + 1000), "now": str(START + 2000)}
    assert seen["failure"]["error"] == "InvalidSubnetId"
    assert seen["failure"]["events"][-1] == "system.ExtrinsicFailed"
    assert {ALICE.hex, BOB.hex} <= {account.lower() for account in seen["maps"]["accounts"]}
    assert seen["maps"]["causes"] == ["fee"]
    assert seen["maps"]["several"] == [str(START + 2000), "4"]
    assert seen["refused"]["code"] == 1010
    assert "bad signature" in seen["refused"]["message"]
    assert seen["batch"] == {"errors": [None, None, None], "nonce": 3}
    told = seen["subscriptions"]
    for numbers in (told["heads"], told["finals"]):
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert len(numbers) > 5
    assert (told["balances"][0], told["balances"][-1]) == (str(START), str(START + 2006))
