"""Attacks on the embedded chain: its pool, its blocks, its server, and the money of its Network pallet."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from trio_websocket import ConnectionClosed

from mesh.devchain import scale as s
from mesh.devchain import snapshot
from mesh.devchain.chain import DevChain, DevChainConfig, ServerConfig
from mesh.devchain.extrinsic import Refused
from mesh.devchain.genesis import read_genesis
from mesh.devchain.overlay import root_of
from mesh.devchain.pallet import Call, Context, Pays, StorageItem
from mesh.devchain.pallets import balances, books, system
from mesh.devchain.pallets.network import consensus, overwatch, owner, peers, stake, storage
from mesh.devchain.pallets.network.errors import ERRORS
from mesh.devchain.pool import PoolConfig
from mesh.errors import ConfigError
from tests.devchain.network.chain import COLDKEYS, HOTKEYS, OWNER, SUBNET, TENSOR, account, subnet_data
from tests.devchain.network.chain import Chain as Network
from tests.devchain.serving import ALICE, BOB, FUND, running
from tests.devchain.signing import Signer
from tests.devchain.test_operate import sealed
from tests.devchain.test_runtime import events, planck_adds_up, refused, transfer
from tests.devchain.test_server import bare


@pytest.fixture(autouse=True)
def own_data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a chain notes its genesis in the user's data folder; here that is a temporary one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


@pytest.fixture
def chain() -> Iterator[DevChain]:
    opened = DevChain(DevChainConfig(fund=FUND))
    yield opened
    opened.close()


def remark(chain: DevChain, who: Signer, nonce: int, *, size: int = 0) -> bytes:
    return who.sign(chain, "System", "remark", nonce=nonce, remark=bytes(size))


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_what_may_never_be_ready_keeps_nobody_out_of_the_pool() -> None:
    """An account that leaves out its first nonce pays for nothing, however long its extrinsics wait."""
    chain = DevChain(DevChainConfig(fund=FUND, pool=PoolConfig(max_extrinsics=3)))
    told: list[tuple[int, str]] = []
    for nonce in (1, 2, 3):
        ext = chain.submit(remark(chain, BOB, nonce))
        chain.watch(ext.hash, lambda status, _, nonce=nonce: told.append((nonce, status)))  # type: ignore[misc]
    refused(chain, remark(chain, ALICE, 1), 1016, "Immediately Dropped")  # nor is this one ready
    chain.submit(remark(chain, ALICE, 0))
    chain.submit(remark(chain, ALICE, 1))
    assert told == [(3, "dropped"), (2, "dropped")]
    assert len(chain.new_block().extrinsics) == 1 + 2
    assert [each.nonce for each in chain.pool] == [1]
    chain.submit(remark(chain, BOB, 0))
    assert len(chain.new_block().extrinsics) == 1 + 2


def test_who_tips_more_gets_into_a_full_pool() -> None:
    """A pool's worth of extrinsics costs next to nothing: whoever refills it at each block must not have it alone."""
    chain = DevChain(DevChainConfig(fund=FUND, pool=PoolConfig(max_extrinsics=3)))
    told: list[tuple[int, str]] = []
    for nonce, tip in enumerate((5, 1, 1)):
        raw = BOB.sign(chain, "System", "remark", nonce=nonce, tip_planck=tip, remark=b"")
        chain.watch(chain.submit(raw).hash, lambda status, _, nonce=nonce: told.append((nonce, status)))  # type: ignore[misc]
    refused(chain, ALICE.sign(chain, "System", "remark", tip_planck=1, remark=b""), 1016, "Immediately Dropped")
    chain.submit(ALICE.sign(chain, "System", "remark", tip_planck=2, remark=b""))
    assert told == [(2, "dropped")]
    refused(
        chain, ALICE.sign(chain, "System", "remark", nonce=2, tip_planck=9, remark=b""), 1016, "Dropped"
    )  # not ready
    assert len(chain.new_block().extrinsics) == 1 + 3


def test_the_pool_is_bounded_in_bytes() -> None:
    """Or a few accounts could make it hold gigabytes, for the price of one block."""
    chain = DevChain(DevChainConfig(fund=FUND, pool=PoolConfig(max_bytes=1024, max_per_account=64)))
    chain.submit(remark(chain, ALICE, 0, size=300))
    chain.submit(remark(chain, ALICE, 1, size=300))
    refused(chain, remark(chain, ALICE, 2, size=300), 1016, "Immediately Dropped")
    refused(chain, remark(chain, BOB, 0, size=300), 1016, "Immediately Dropped")
    replacing = ALICE.sign(chain, "System", "remark", nonce=1, tip_planck=1, remark=bytes(400))
    chain.submit(replacing)
    refused(chain, ALICE.sign(chain, "System", "remark", nonce=1, tip_planck=2, remark=bytes(600)), 1016, "Dropped")
    assert [each.raw for each in chain.pool][-1] == replacing
    chain.new_block()
    chain.submit(remark(chain, BOB, 0, size=500))


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_an_extrinsic_that_the_runtime_cannot_bear_leaves_the_block_to_the_others(chain: DevChain) -> None:
    key = system.ACCOUNT.key(BOB.address)
    chain.set_storage({key: system.account_info.encode({**chain.get(system.ACCOUNT, BOB.address), "nonce": 2**32 - 1})})
    last = chain.submit(remark(chain, BOB, 2**32 - 1))
    chain.submit(transfer(chain, tip_planck=0))
    block = chain.new_block()
    assert len(block.extrinsics) == 2
    assert [name for _, name, _ in events(chain)].count("Withdraw") == 1
    assert last.hash not in {each.hash for each in chain.pool}
    planck_adds_up(chain)
    with pytest.raises(Refused, match="banned"):
        chain.submit(last.raw)


def test_an_event_that_cannot_be_written_fails_its_call_and_not_the_block(chain: DevChain) -> None:
    def wrong(ctx: Context, origin: bytes, remark: bytes) -> None:
        ctx.emit("Remarked", sender=origin, hash=b"not a hash")

    pallet = chain.runtime.pallets["System"]
    pallet.calls = [Call(0, "remark", (("remark", s.bytes_),), wrong), *pallet.calls[1:]]
    chain.submit(remark(chain, ALICE, 0))
    chain.new_block()
    assert events(chain)[-1][1:] == (
        "ExtrinsicFailed",
        {
            "dispatch_error": "Other",
            "dispatch_info": {"weight": system.BASE_WEIGHT, "class": "Normal", "pays_fee": "Yes"},
        },
    )
    planck_adds_up(chain)


def test_what_is_staked_by_hand_is_booked_so_that_a_slash_finds_it(chain: DevChain) -> None:
    """A hook that wants to burn planck that nobody put in would end the chain."""
    who = BOB.address
    swap = {"SwapToSubnetDelegateStake": {"account_id": who, "to_subnet_id": 1, "balance": 5}}
    item = {"id": 9, "call": swap, "queued_at_block": 0, "execute_after_blocks": 10**6}
    values = [
        (storage.AccountSubnetStake, (who, 1), 100),
        (storage.AccountOverwatchStake, (who,), 20),
        (storage.StakeUnbondingLedger, (who,), {7: 1, 8: 2}),
        (storage.SwapCallQueue, (9,), item),
        (storage.TotalStake, (), 10**6),  # a total holds nothing
    ]
    chain.set_storage({item.key(*keys): item.value.encode(value) for item, keys, value in values})
    assert chain.get(books.HELD) == 100 + 20 + 3 + 5
    planck_adds_up(chain)
    chain.set_storage({storage.AccountSubnetStake.key(who, 1): storage.AccountSubnetStake.value.encode(30)})
    chain.set_storage({storage.StakeUnbondingLedger.key(who): None})
    assert chain.get(books.HELD) == 30 + 20 + 5
    planck_adds_up(chain)


def test_a_long_epoch_is_not_tried_to_its_end() -> None:
    chain = DevChain(DevChainConfig(fund=FUND, epoch_length=5_000_000))
    chain.set_storage({storage.TotalNodes.key(): storage.TotalNodes.value.encode(1)})
    assert chain.best.number == 1


def test_no_call_fails_with_an_error_that_the_pallet_does_not_declare() -> None:
    """One that is not declared has no index, and its extrinsic could be in no block."""
    declared = set(ERRORS)
    package = Path(overwatch.__file__).parent
    named: set[str] = set()
    for path in package.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("Dispatch", "Limit"):
                first = call.args[0]
                named |= {first.value} if isinstance(first, ast.Constant) else set()
    named |= {limit.error for setting in owner.SETTINGS for limit in setting.limits}
    named |= {text.error for text in owner.TEXTS if text.error}
    named |= {error for role in peers.Role for error in (role.invalid, role.taken)}
    assert len(named) > 90
    assert named <= declared, named - declared


# --- the server -------------------------------------------------------------------------------------------------------


async def test_one_large_value_asked_for_often_is_sent_once() -> None:
    """Five hundred thousand bytes in storage and a thousand times their key would be a gigabyte of answer."""
    limits = ServerConfig(max_outgoing_bytes=1024 * 1024)
    async with running(server=limits) as (chain, url), bare(url) as client:
        name, misc = (storage.SubnetName.key(b"n"), storage.SubnetsData.key(1))
        value = storage.SubnetsData.value.encode({**storage.SubnetsData.value.zero(), "misc": bytes(300_000)})
        chain.set_storage({storage.SubnetsData.key(number): value for number in (1, 2)})
        (found,) = await client.get("state_queryStorageAt", ["0x" + misc.hex(), "0x" + name.hex()] * 400)
        assert [key for key, _ in found["changes"]] == ["0x" + misc.hex(), "0x" + name.hex()]
        both = ["0x" + storage.SubnetsData.key(number).hex() for number in (1, 2)]
        reply = await client.ask("state_queryStorageAt", both)
        assert reply["error"]["code"] == -32602
        assert "ask for fewer" in reply["error"]["message"]
        with pytest.raises(ConnectionClosed):
            await client.get("state_subscribeStorage", both)
            await client.read()
        async with bare(url) as other:  # everybody else is served
            chain.new_block()
            assert await other.get("chain_getHead") == "0x" + chain.best.hash.hex()


async def test_a_batch_is_as_bounded_as_one_answer() -> None:
    limits = ServerConfig(max_outgoing_bytes=1024 * 1024)
    async with running(server=limits) as (chain, url), bare(url) as client:
        asked = [{"jsonrpc": "2.0", "id": n, "method": "state_getMetadata"} for n in range(64)]
        served = 0
        answer = chain.runtime.metadata

        class Counting(bytes):
            def hex(self, *args: Any) -> str:
                nonlocal served
                served += 1
                return super().hex(*args)

        chain.runtime.metadata = Counting(answer)
        await client.socket.send_message(json.dumps(asked))
        with pytest.raises(ConnectionClosed):
            await client.read()
        assert served < 20


async def test_no_request_ends_the_connection_by_what_it_asks() -> None:
    async with running() as (_, url), bare(url) as client:
        for params in (
            ["state_call", [], "0x"],
            ["state_call", {"a": 1}, "0x"],
            ["dev_setStorage", {"Network": {"SubnetOwner": [[[[]], {}]]}}],
            ["dev_setStorage", {"Network": {"AssignedSlots": [[], {}]}}],
            ["dev_setStorage", {"Network": {"SubnetBootnodes": [[[1], [[[], "0x"]]]]}}],
            [
                "dev_setStorage",
                {"Network": {"SubnetWeightFactors": {"delegate_stake": {}, "node_count": 1, "net_flow": []}}},
            ],
            ["network_proofOfStake", 1, [1.5], []],
            ["chain_getBlockHash", [[1]]],
            ["state_getKeysPaged", {}, 1],
            ["chain_getHeader", "0x00"],
            ["state_getKeysPaged", "0x", "0x" + "9" * 5000],  # more digits than Python prints
            ["dev_setStorage", {"Network": {"TotalNodes": "0x" + "9" * 5000}}],
        ):
            assert await client.code(*params) == -32602, params
        assert await client.get("system_chain") == "mesh dev chain"


async def test_the_keys_that_a_connection_watches_are_bounded_and_given_back() -> None:
    limits = ServerConfig(max_watched_keys=5)
    async with running(server=limits) as (_, url), bare(url) as client:
        three = ["0x" + bytes([n]).hex() for n in range(3)]
        ident = await client.get("state_subscribeStorage", three)
        assert await client.code("state_subscribeStorage", three) == -32006
        assert await client.get("state_unsubscribeStorage", ident) is True
        await client.get("state_subscribeStorage", three * 9)


async def test_an_answer_that_json_would_blow_up_is_refused() -> None:
    """An array of numbers takes twenty times its bytes of memory until it is sent."""
    limits = ServerConfig(max_outgoing_bytes=1024 * 1024)
    async with running(server=limits) as (chain, url), bare(url) as client:
        zero = {**storage.SubnetsData.value.zero(), "description": bytes(200_000)}
        chain.set_storage({storage.SubnetsData.key(1): storage.SubnetsData.value.encode(zero)})
        assert await client.code("network_getSubnetInfo", 1) == 1
        assert len(await client.get("state_call", "NetworkRuntimeApi_get_subnet_info", "0x01000000")) > 400_000


# --- what it starts from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "genesis",
    [
        {"InflationSigmoidSteepness": 10**9},
        {"InflationSigmoidSteepness": 2**128 - 1, "InflationSigmoidMidpoint": 0},
        {"OverwatchStakeWeightFactor": 2**128 - 1, "OverwatchMinStakeBalance": 0},
        {"ValidatorRewardK": 2**64 - 1, "AttestorRewardExponent": 2**64 - 1},
        {"SubnetDistributionPower": 2**128 - 1, "RegistrationCostAlpha": 2**128 - 1},
        {"InConsensusSubnetReputationFactor": 2**128 - 1, "NotInConsensusSubnetReputationFactor": 2**128 - 1},
    ],
)
def test_no_factor_of_a_genesis_file_ends_the_chain(genesis: dict[str, int]) -> None:
    """What the runtime's doubles make infinite or NaN must not be an exception in a hook."""
    net = Network(genesis={"OverwatchMinAge": 0, **genesis})
    net.make_active()
    net.to_block(20)
    net.call("register_overwatch_node", COLDKEYS[0], hotkey=account(1), stake_to_be_added=100 * TENSOR)
    for epoch in (2, 3, 4):
        net.agree(epoch, {1: 1, 2: 1, 3: 1}, elect=1)
        weight = overwatch.commitment(TENSOR, b"")
        commits = [{"subnet_id": SUBNET, "weight": weight}]
        net.call("commit_overwatch_subnet_weights", account(1), overwatch_node_id=1, commit_weights=commits)
        net.to_block(epoch * 20 + 16)
        reveals = [{"subnet_id": SUBNET, "weight": TENSOR, "salt": b""}]
        net.call("reveal_overwatch_subnet_weights", account(1), overwatch_node_id=1, reveals=reveals)
    net.to_slot(5)
    assert stake.held(net.ctx()) == net.get(books.HELD)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epoch_length": 2**40}, "epoch_length"),
        ({"fund": {"0x" + "ab" * 20: 1, "0x" + "AB" * 20: 2}}, "twice"),
        ({"fund": {f"0x{place:040x}": 2**126 for place in range(2)}}, "all together"),
    ],
)
def test_a_configuration_that_cannot_be_a_chain_is_refused_before_it_is_one(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        DevChainConfig(**settings)


@pytest.mark.parametrize("item", [balances.TOTAL_ISSUANCE, books.HELD])
def test_a_snapshot_whose_books_do_not_fit_its_balances_is_refused(chain: DevChain, item: StorageItem) -> None:
    """With no issuance no fee can be taken, with nothing held no slash: the chain would stop at the first."""
    chain.set_storage({storage.AccountSubnetStake.key(BOB.address, 1): storage.AccountSubnetStake.value.encode(30)})
    before = chain.best
    content = snapshot._body.decode_all(snapshot.check_digest(chain.snapshot()))
    state = {**dict(content["state"]), item.key(): item.value.encode(chain.get(item) - 1)}
    last = content["blocks"][-1]
    header = {**last["header"], "state_root": root_of(state.items())}
    blocks = [*content["blocks"][:-1], {**last, "header": header}]
    body = snapshot._body.encode({**content, "blocks": blocks, "state": sorted(state.items())})
    with pytest.raises(ConfigError, match="not what its books say"):
        chain.restore(sealed(body))
    assert chain.best is before


@pytest.mark.parametrize("number", ["1e999999999", "1e-999999999", "0x" + "9" * 5000])
def test_a_number_of_endless_digits_in_a_genesis_file(tmp_path: Path, number: str) -> None:
    path = tmp_path / "genesis.toml"
    path.write_text(f"[fund]\n{ALICE.hex} = {number}\n")
    with pytest.raises(ConfigError, match="too many digits"):
        read_genesis(path)


def test_a_genesis_after_which_no_block_could_come_is_refused() -> None:
    with pytest.raises(ConfigError, match="could not make block 1"):
        DevChain(DevChainConfig(network_genesis={"SwapQueueOrder": [1]}))


# --- the Network pallet -----------------------------------------------------------------------------------------------


def test_the_reward_of_a_node_that_left_goes_to_nobody_who_took_its_hotkey() -> None:
    """Anybody may register a hotkey that is forgotten, for nothing is signed with it."""
    net = Network()
    net.make_active()
    net.agree(2, {1: 1, 2: 1, 3: 1}, elect=1)
    net.call("remove_subnet_node", COLDKEYS[2], subnet_id=SUBNET, subnet_node_id=3)
    net.call("remove_stake", COLDKEYS[2], subnet_id=SUBNET, hotkey=HOTKEYS[2], stake_to_be_removed=200 * TENSOR)
    net.register_node(7, coldkey=COLDKEYS[0], hotkey=HOTKEYS[2], stake_to_be_added=100 * TENSOR)
    net.to_slot(3)
    assert [node for node, _ in net.event("SubnetRewards")["node_rewards"]] == [1, 2]
    assert net.get(storage.AccountSubnetStake, HOTKEYS[2], SUBNET) == 100 * TENSOR


def test_the_coldkeys_that_every_registration_reads_are_bounded() -> None:
    """An owner could make each block of a chain take minutes."""
    net = Network()
    net.to_block(8)
    many = {account(number): 1 for number in range(257)}
    data = subnet_data(initial_coldkeys=many)
    error = net.error("register_subnet", OWNER, max_cost=2000 * TENSOR, subnet_data=data)
    assert error == "InvalidSubnetRegistrationInitialColdkeys"
    net.register_subnet(initial_coldkeys=dict(list(many.items())[:256]))
    error = net.error(
        "owner_add_or_update_initial_coldkeys", OWNER, subnet_id=SUBNET, coldkeys=dict(list(many.items())[200:])
    )
    assert error == "InvalidSubnetRegistrationInitialColdkeys"
    net.call("owner_add_or_update_initial_coldkeys", OWNER, subnet_id=SUBNET, coldkeys={account(0): 5})


def test_who_had_nodes_in_a_subnet_that_is_gone_has_none_active() -> None:
    net = Network()
    net.make_active()
    assert net.get(storage.ColdkeyReputation, COLDKEYS[0])["total_active_nodes"] == 1
    net.call("owner_deactivate_subnet", OWNER, subnet_id=SUBNET)
    for coldkey in COLDKEYS:
        standing = net.get(storage.ColdkeyReputation, coldkey)
        assert (standing["total_active_nodes"], standing["lifetime_node_count"]) == (0, 1)


def test_a_snapshot_is_read_once_however_many_attest() -> None:
    """Decoding all nodes of a submission for each attestation made an epoch of a large subnet longer than an epoch."""
    net = Network()
    net.make_active()
    net.to_slot(2, elect=1)
    net.next_block()
    net.propose(1, {1: 1, 2: 1, 3: 1}, args=b"a proposal of this test")
    before = consensus._snapshot_ids.cache_info()
    net.attest(2)
    net.attest(3)
    after = consensus._snapshot_ids.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
    attests = net.get(storage.SubnetConsensusSubmission, SUBNET, 2)["attests"]
    assert [(node, entry["block"]) for node, entry in attests.items()] == [
        (1, net.block),
        (2, net.block),
        (3, net.block),
    ]


def test_a_reveal_without_news_costs_its_fee() -> None:
    net = Network(genesis={"OverwatchMinStakeBalance": 0})
    net.make_active()
    net.to_block(20)
    net.call("register_overwatch_node", COLDKEYS[0], hotkey=account(1), stake_to_be_added=TENSOR)
    commits = [{"subnet_id": SUBNET, "weight": overwatch.commitment(7, b"salt")}]
    commit = {"overwatch_node_id": 1, "commit_weights": commits}
    assert net.call("commit_overwatch_subnet_weights", account(1), **commit) is Pays.NO
    net.to_block(36)
    reveals = [{"subnet_id": SUBNET, "weight": 7, "salt": b"salt"}]
    for said, pays in ((reveals, Pays.NO), (reveals, Pays.YES), ([], Pays.YES)):
        assert net.call("reveal_overwatch_subnet_weights", account(1), overwatch_node_id=1, reveals=said) is pays
