"""Unmodified substrate-interface on the dev chain: one scripted life, and what it is told when it is wrong.

The same life as polkadot/scenario.mjs: connect, query, maps, the past, immortal and mortal extrinsics watched to their
end, the fee, a dispatch error by name, heads, storage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from substrateinterface import Keypair, KeypairType, SubstrateInterface
from substrateinterface.exceptions import SubstrateRequestException

from mesh.devchain.pallets import books
from mesh.devchain.pallets.transaction_payment import BASE_FEE_PLANCK
from tests.devchain.serving import ALICE, BOB, CAROL, START, running
from tests.devchain.signing import Signer
from tests.devchain.test_runtime import planck_adds_up

BLOCK_TIME_S = 0.05
T = TypeVar("T")


@pytest.fixture(autouse=True)
def own_data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a chain notes its genesis in the user's data folder; here that is a temporary one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking client code beside the chain."""
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def keypair(who: Signer) -> Keypair:
    """The same key, as substrate-interface holds it."""
    return Keypair.create_from_private_key("0x" + who.key.secret.hex(), crypto_type=KeypairType.ECDSA)


def connect(url: str) -> SubstrateInterface:
    """An unmodified client; its socket gives up after a while, so that no test hangs."""
    return SubstrateInterface(url=url, ws_options={"timeout": 30})


def free(client: SubstrateInterface, who: Signer, at: str | None = None) -> int:
    value: int = client.query("System", "Account", [who.hex], block_hash=at).value["data"]["free"]
    return value


async def test_a_whole_life() -> None:
    async with running(block_time_s=BLOCK_TIME_S) as (chain, url):

        def work() -> None:
            client, pair = connect(url), keypair(ALICE)
            assert (client.chain, client.token_symbol, client.token_decimals) == ("mesh dev chain", "TENSOR", 18)
            assert client.get_constant("Network", "EpochLength").value == 20
            assert pair.public_key == ALICE.address
            assert free(client, ALICE) == START

            call = client.compose_call("Balances", "transfer_keep_alive", {"dest": BOB.hex, "value": 1000})
            spent = 0
            for era in (None, {"period": 256}):
                signed = client.create_signed_extrinsic(call, pair, era=era)
                data = signed.data.data + len(signed.data.data).to_bytes(4, "little")
                info = client.rpc_request("state_call", ["TransactionPaymentApi_query_info", "0x" + data.hex()])
                receipt = client.submit_extrinsic(signed, wait_for_finalization=True)
                assert (receipt.finalized, receipt.is_success, receipt.error_message) == (True, True, None)
                fee = BASE_FEE_PLANCK + len(signed.data.data)
                assert receipt.total_fee_amount == fee
                assert int.from_bytes(bytes.fromhex(info["result"][-32:]), "little") == fee
                spent += fee + 1000
                names = [(event.value["module_id"], event.value["event_id"]) for event in receipt.triggered_events]
                assert names[1] == ("Balances", "Transfer")
                assert names[-1] == ("System", "ExtrinsicSuccess")
                (found,) = [each for each in client.get_extrinsics(receipt.block_hash) if each.signed]
                assert found.value["call"]["call_function"] == "transfer_keep_alive"
                parent = client.get_block_header(receipt.block_hash)["header"]["parentHash"]
                assert free(client, BOB, receipt.block_hash) == free(client, BOB, parent) + 1000
            assert (free(client, ALICE), free(client, BOB)) == (START - spent, START + 2000)
            assert client.get_account_nonce(ALICE.hex) == 2

            call = client.compose_call("Network", "add_to_delegate_stake", {"subnet_id": 5, "stake_to_be_added": 1})
            receipt = client.submit_extrinsic(client.create_signed_extrinsic(call, pair), wait_for_inclusion=True)
            assert not receipt.is_success
            assert (receipt.error_message["type"], receipt.error_message["name"]) == ("Module", "InvalidSubnetId")

            accounts = {key.value for key, _ in client.query_map("System", "Account", page_size=1)}
            assert {ALICE.hex, BOB.hex} <= accounts
            epoch = chain.best.number // 20
            causes = {key.value for when in range(epoch + 1) for key, _ in client.query_map("Books", "Burned", [when])}
            assert causes == {"fee"}
            client.close()

        await in_thread(work)
        assert sum(amount for _, amount in chain.items(books.BURNED)) > 3 * BASE_FEE_PLANCK
        planck_adds_up(chain)


async def test_heads_and_storage_are_told() -> None:
    async with running(block_time_s=BLOCK_TIME_S) as (_, url):

        def head(header: dict[str, Any], count: int, _: str) -> int | None:
            numbers.append(header["header"]["number"])
            return len(numbers) if count == 3 else None

        def balance(_: Any, changed: Any, count: int, __: str) -> int | None:
            seen.append(changed.value["data"]["free"])
            return count or None

        numbers: list[int] = []
        seen: list[int] = []

        def work() -> None:
            client, other = connect(url), connect(url)
            client.subscribe_block_headers(head)
            call = other.compose_call("Balances", "transfer_keep_alive", {"dest": BOB.hex, "value": 5})
            key = client.create_storage_key("System", "Account", [BOB.hex])

            def told(*update: Any) -> int | None:
                if update[2] == 0:
                    other.submit_extrinsic(other.create_signed_extrinsic(call, keypair(ALICE)))
                return balance(*update)

            client.subscribe_storage([key], told)
            client.close()
            other.close()

        await in_thread(work)
        assert numbers == list(range(numbers[0], numbers[0] + 4))
        assert seen == [START, START + 5]


async def test_a_tampered_extrinsic_and_one_that_cannot_pay_are_refused() -> None:
    async with running() as (chain, url):

        def work() -> None:
            client = connect(url)
            call = client.compose_call("Balances", "transfer_keep_alive", {"dest": BOB.hex, "value": 1000})
            raw = bytearray(client.create_signed_extrinsic(call, keypair(ALICE)).data.data)
            raw[-1] ^= 1
            with pytest.raises(SubstrateRequestException) as caught:
                client.rpc_request("author_submitExtrinsic", ["0x" + raw.hex()])
            assert caught.value.args[0]["code"] == 1010
            assert "bad signature" in caught.value.args[0]["data"]
            with pytest.raises(SubstrateRequestException) as caught:
                client.submit_extrinsic(client.create_signed_extrinsic(call, keypair(CAROL)))
            assert caught.value.args[0]["code"] == 1010
            assert "Inability to pay" in caught.value.args[0]["data"]
            with pytest.raises(SubstrateRequestException) as caught:
                client.rpc_request("dev_rewind", [])
            assert caught.value.args[0]["code"] == -32601
            client.close()

        await in_thread(work)
        chain.new_block()
        assert chain.nonce(ALICE.address) == 0
