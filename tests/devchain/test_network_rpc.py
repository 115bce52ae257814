"""The `network_*` methods: the same answers as the runtime API, as JSON; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.devchain import scale as s
from mesh.devchain.network_rpc import METHODS
from mesh.devchain.pallets import network
from mesh.devchain.pallets.network import info
from mesh.devchain.pallets.network import storage as items

from .network.chain import BOOTNODE, subnet_data
from .signing import Signer
from .test_server import bare, running

ALICE = Signer("alice")
SUBNET = 128_001


def test_every_function_of_the_runtime_api_has_a_method_by_the_networks_name() -> None:
    assert {method.api for method in METHODS.values()} == set(network.info.APIS)
    assert set(METHODS) == {
        "network_getSubnetInfo",
        "network_getAllSubnetsInfo",
        "network_getSubnetNodeInfo",
        "network_getSubnetNodesInfo",
        "network_getAllSubnetNodesInfo",
        "network_getBootnodes",
        "network_proofOfStake",
        "network_getElectedValidatorInfo",
        "network_getValidatorsAndAttestors",
        "network_getOverwatchCommitsForEpochAndNode",
        "network_getOverwatchRevealsForEpochAndNode",
        "network_getAllOverwatchNodesInfo",
        "network_getDelegateStakes",
        "network_getNodeDelegateStakes",
        "network_getColdkeySubnetNodesInfo",
        "network_getColdkeyStakes",
    }


AT = "0x" + "11" * 32


@pytest.mark.parametrize(
    ("params", "encoded", "at"),
    [
        ([1, [49, 50], 3], "0100000008313203", None),
        ([1, [49, 50], 3, AT], "0100000008313203", AT),
        ([1, [], 0, 5], "01000000000001" + "05" + "00" * 15, None),
        ([1, [], 0, 5, AT], "01000000000001" + "05" + "00" * 15, AT),
        ([1, [], 0, None, AT], "01000000000000", AT),
    ],
)
def test_the_least_stake_may_be_left_out(params: list[Any], encoded: str, at: str | None) -> None:
    assert METHODS["network_proofOfStake"].read(params) == (bytes.fromhex(encoded), at)


PROOF = "network_proofOfStake"
REFUSED: list[tuple[str, list[Any]]] = [
    ("network_getSubnetInfo", []),
    ("network_getSubnetInfo", ["1"]),
    ("network_getSubnetInfo", [-1]),
    ("network_getSubnetInfo", [2**32]),
    ("network_getSubnetInfo", [True]),
    ("network_getSubnetInfo", [1.0]),
    ("network_getSubnetInfo", [1, "0x11"]),
    ("network_getSubnetInfo", [1, 2]),
    ("network_getAllSubnetsInfo", [AT, AT]),
    ("network_getColdkeyStakes", [ALICE.hex[2:]]),
    ("network_getColdkeyStakes", [ALICE.hex + "00"]),
    ("network_getColdkeyStakes", ["0x" + "zz" * 20]),
    ("network_getColdkeyStakes", [[1] * 20]),
    (PROOF, [1, "Qm", 0]),
    (PROOF, [1, [256], 0]),
    (PROOF, [1, [-1], 0]),
    (PROOF, [1, ["Q"], 0]),
    (PROOF, [1, [49], 256]),
    (PROOF, [1, [49], 0, 2**128]),
    (PROOF, [1, [49], 0, AT, AT]),
    (PROOF, [1, [49], 0, 5, AT, AT]),
]


async def test_methods_answer_what_state_call_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # where a chain notes its genesis
    async with running() as (chain, url), bare(url) as client:
        data = subnet_data(initial_coldkeys={bytes([n]) * 20: 1 for n in range(3)})
        chain.submit(ALICE.sign(chain, "Network", "register_subnet", max_cost=10**24, subnet_data=data))
        chain.new_block()
        before, head = ["0x" + (chain.store.hash_of(number) or b"").hex() for number in (0, 1)]
        for name, method in METHODS.items():
            params: list[Any] = [SUBNET if each.kind is s.u32 else ALICE.hex for each in method.args]
            if name == PROOF:
                params = [SUBNET, list(BOOTNODE), 0]
            raw = bytes.fromhex((await client.get("state_call", method.api, "0x" + method.read(params)[0].hex()))[2:])
            result = await client.get(name, *params)
            assert result == await client.get(name, *params, None) == await client.get(name, *params, head)
            assert result == (True if name == PROOF else list(s.bytes_.decode_all(raw))), name
            assert name in (await client.get("rpc_methods"))["methods"]
        found = s.option(info.subnet_info).decode_all(bytes(await client.get("network_getSubnetInfo", SUBNET)))
        assert found["owner"] == ALICE.address
        assert chain.get(items.SubnetOwner, SUBNET) == ALICE.address
        # at a block before, there was none
        assert await client.get("network_getSubnetInfo", SUBNET, before) == [0]
        assert await client.get(PROOF, SUBNET, list(BOOTNODE), 0, before) is False
        assert await client.get(PROOF, SUBNET, list(BOOTNODE), 0, None, before) is False
        # a block nobody knows is an error of the runtime, nonsense is the caller's
        assert await client.code("network_getSubnetInfo", SUBNET, AT) == 1
        for name, params in REFUSED:
            assert await client.code(name, *params) == -32602, (name, params)
