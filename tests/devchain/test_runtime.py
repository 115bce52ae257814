"""Blocks, fees, nonces, refusals, the pool and the store, without a transport."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.devchain import scale as s
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.extrinsic import Era, Refused
from mesh.devchain.overlay import MemoryState, Overlay
from mesh.devchain.pallet import Call, Context, Dispatch, Hasher, Pallet, Pays, StorageItem
from mesh.devchain.pallets import all_pallets, balances, books, system
from mesh.devchain.pallets.transaction_payment import BASE_FEE_PLANCK
from mesh.devchain.pool import PoolConfig
from mesh.devchain.runtime import Runtime
from mesh.devchain.store import HistoryDiscarded
from mesh.errors import ConfigError

from .signing import Signer, assemble, mortal

ALICE, BOB, CAROL = Signer("alice"), Signer("bob"), Signer("carol")
START = 10**24
FUND = {ALICE.hex: START, BOB.hex: START}


@pytest.fixture
def chain() -> Iterator[DevChain]:
    opened = DevChain(DevChainConfig(fund=FUND))
    yield opened
    opened.close()


def free(chain: DevChain, who: Signer) -> int:
    """The free balance in the latest state."""
    return int(chain.get(system.ACCOUNT, who.address)["data"]["free"])


def events(chain: DevChain) -> list[tuple[str, str, Any]]:
    """(pallet, event, content) of the latest block."""
    found = []
    for record in chain.get(chain.runtime.events):
        ((pallet, body),) = record["event"].items()
        name, content = (body, None) if isinstance(body, str) else next(iter(body.items()))
        found.append((pallet, name, content))
    return found


def planck_adds_up(chain: DevChain) -> None:
    """Every planck in an account or held by pallets was minted and not burned, and issuance is what accounts hold."""
    accounts = sum(v["data"]["free"] + v["data"]["reserved"] for _, v in chain.items(system.ACCOUNT))
    minted = sum(amount for _, amount in chain.items(books.MINTED))
    burned = sum(amount for _, amount in chain.items(books.BURNED))
    assert accounts + chain.get(books.HELD) == minted - burned
    assert accounts == chain.get(balances.TOTAL_ISSUANCE)


def transfer(chain: DevChain, *, amount: int = 1000, **more: Any) -> bytes:
    """Alice pays Bob."""
    return ALICE.sign(chain, "Balances", "transfer_keep_alive", dest=BOB.address, value=amount, **more)


def refused(chain: DevChain, raw: bytes, code: int, words: str) -> None:
    """Assert that the pool refuses the extrinsic, and that nothing waits because of it."""
    waiting = len(chain.pool)
    with pytest.raises(Refused, match=words) as caught:
        chain.submit(raw)
    assert caught.value.code == code
    assert len(chain.pool) == waiting


def test_a_transfer_and_its_fee(chain: DevChain) -> None:
    raw = transfer(chain)
    ext = chain.submit(raw)
    block = chain.new_block()
    fee = BASE_FEE_PLANCK + len(raw)
    assert block.extrinsics[1] == raw
    assert free(chain, ALICE) == START - 1000 - fee
    assert free(chain, BOB) == START + 1000
    assert chain.nonce(ALICE.address) == 1
    assert [(pallet, name) for pallet, name, _ in events(chain)][-6:] == [
        ("System", "ExtrinsicSuccess"),  # of the timestamp
        ("Balances", "Withdraw"),
        ("Balances", "Transfer"),
        ("Balances", "Deposit"),
        ("TransactionPayment", "TransactionFeePaid"),
        ("System", "ExtrinsicSuccess"),
    ]
    assert chain.get(books.BURNED, 0, b"fee") == fee
    assert ext.hash not in {each.hash for each in chain.pool}
    planck_adds_up(chain)


def test_a_failed_call_changes_fee_and_nonce_only(chain: DevChain) -> None:
    chain.new_block()
    before = dict(chain.state.items())
    raw = transfer(chain, amount=2 * START)
    chain.submit(raw)
    chain.new_block()
    after = dict(chain.state.items())
    own = {system.ACCOUNT.key(ALICE.address), balances.TOTAL_ISSUANCE.key(), books.BURNED.key(0, b"fee")}
    each_block = {
        chain.runtime.events.key(),
        *(item.key() for item in (system.NUMBER, system.PARENT_HASH, system.EVENT_COUNT)),
        system.BLOCK_HASH.key(1),
        next(item for item in chain.runtime.pallets["Timestamp"].storage if item.name == "Now").key(),
    }
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed <= own | each_block
    assert free(chain, ALICE) == START - BASE_FEE_PLANCK - len(raw)
    assert events(chain)[-1][1] == "ExtrinsicFailed"
    assert events(chain)[-1][2]["dispatch_error"] == {"Token": "FundsUnavailable"}
    assert not any(name == "Transfer" for _, name, _ in events(chain))
    planck_adds_up(chain)


@pytest.mark.parametrize("place", [5, 25, 60, 90, -1])
def test_a_changed_byte_is_refused(chain: DevChain, place: int) -> None:
    raw = bytearray(transfer(chain))
    raw[place] ^= 1
    with pytest.raises(Refused) as caught:
        chain.submit(bytes(raw))
    assert caught.value.code in (1001, 1010)
    chain.new_block()
    assert (free(chain, ALICE), chain.nonce(ALICE.address)) == (START, 0)


def test_somebody_elses_signature_is_a_bad_proof(chain: DevChain) -> None:
    ext = chain.runtime.parse(transfer(chain))
    for signature in (bytes(65), b"\xff" * 65, BOB.key.sign_recoverable(b"other"), ext.signature[:64] + b"\x05"):
        refused(chain, assemble(ext, signature), 1010, "bad signature")


def test_v_of_27_and_28_is_taken(chain: DevChain) -> None:
    ext = chain.runtime.parse(transfer(chain))
    chain.submit(assemble(ext, ext.signature[:64] + bytes([ext.signature[64] + 27])))


@pytest.mark.parametrize("change", [{"genesis": bytes(32)}, {"spec_version": 2}, {"birth": bytes(31) + b"\x01"}])
def test_another_chain_or_version_is_a_bad_proof(chain: DevChain, change: dict[str, Any]) -> None:
    refused(chain, transfer(chain, **change), 1010, "bad signature")


def test_junk_is_refused(chain: DevChain) -> None:
    raw = transfer(chain)
    for junk in (b"", b"\x00", raw[:-1], raw + b"\x00", raw[1:], b"\x08\x04\x00", bytes(100)):
        refused(chain, junk, 1001, "invalid format")
    refused(chain, bytes(chain.config.pool.max_extrinsic_bytes + 1), 1010, "exhaust")


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_junk_gets_in(chain: DevChain, junk: bytes) -> None:
    for raw in (junk, s.encode_compact(len(junk) + 1) + b"\x84" + junk):
        with pytest.raises(Refused):
            chain.submit(raw)


def test_a_map_out_of_order_is_a_bad_proof(chain: DevChain) -> None:
    """The runtime checks the signature over the call as it would encode it."""
    call = chain.runtime.types.call
    register = next(each for each in chain.runtime.pallets["Network"].calls if each.name == "register_subnet")
    args = {name: kind.zero() for name, kind in register.args}
    low, high = bytes(19) + b"\x01", b"\x01" + bytes(19)
    args["subnet_data"]["initial_coldkeys"] = {low: 1, high: 2}
    sorted_call = call.encode({"Network": {"register_subnet": args}})
    pairs = low + s.u32.encode(1), high + s.u32.encode(2)
    assert sorted_call.count(b"".join(pairs)) == 1
    swapped = sorted_call.replace(b"".join(pairs), b"".join(reversed(pairs)))
    assert call.decode_all(swapped) == call.decode_all(sorted_call)
    good = ALICE.sign(chain, "Network", "claim_unbondings", call_bytes=sorted_call)
    bad = ALICE.sign(chain, "Network", "claim_unbondings", call_bytes=swapped)
    refused(chain, bad, 1010, "bad signature")
    chain.submit(good)


def test_nonces(chain: DevChain) -> None:
    first = transfer(chain, nonce=0)
    chain.submit(first)
    refused(chain, first, 1013, "Already Imported")
    chain.submit(transfer(chain, nonce=2))
    chain.new_block()
    assert chain.nonce(ALICE.address) == 1
    assert chain.next_nonce(ALICE.address) == 1  # 2 waits for it
    refused(chain, first, 1010, "outdated")
    chain.submit(transfer(chain, nonce=1))
    assert chain.next_nonce(ALICE.address) == 3
    chain.new_block()
    assert chain.nonce(ALICE.address) == 3
    refused(chain, transfer(chain, nonce=3 + chain.config.pool.max_per_account), 1010, "future")


def test_a_higher_tip_takes_the_place(chain: DevChain) -> None:
    told: list[tuple[str, bytes | None]] = []
    old = chain.submit(transfer(chain, amount=1, tip_planck=5))
    chain.watch(old.hash, lambda status, other: told.append((status, other)))
    refused(chain, transfer(chain, amount=2, tip_planck=5), 1014, "Priority is too low")
    new = chain.submit(transfer(chain, amount=3, tip_planck=6))
    assert told == [("usurped", new.hash)]
    chain.new_block()
    assert free(chain, BOB) == START + 3
    assert free(chain, ALICE) == START - 3 - 6 - BASE_FEE_PLANCK - len(new.raw)


def test_who_cannot_pay_is_refused(chain: DevChain) -> None:
    raw = CAROL.sign(chain, "System", "remark", remark=b"hello")
    refused(chain, raw, 1010, "Inability to pay")
    fee = BASE_FEE_PLANCK + len(raw)
    chain.submit(ALICE.sign(chain, "Balances", "transfer_keep_alive", dest=CAROL.address, value=fee + 500))
    chain.new_block()
    chain.submit(raw)
    # one is paid for, two are not
    refused(chain, CAROL.sign(chain, "System", "remark", nonce=1, remark=b"hello"), 1010, "Inability to pay")
    chain.new_block()
    assert free(chain, CAROL) == 500
    planck_adds_up(chain)


def test_eras(chain: DevChain) -> None:
    for _ in range(10):
        chain.new_block()

    def at(era: Era, born: int) -> bytes:
        birth = chain.store.hash_of(born)
        assert birth is not None
        return transfer(chain, era=era, birth=birth)

    alive = at(mortal(8, 10), 10)
    refused(chain, at(mortal(8, 10), 9), 1010, "bad signature")
    dead = at(mortal(4, 2), 2)
    refused(chain, dead, 1010, "bad signature")
    refused(chain, transfer(chain, era=mortal(64, 40), birth=bytes(32)), 1010, "ancient birth")
    chain.submit(alive)
    waiting = chain.submit(
        BOB.sign(chain, "System", "remark", nonce=1, remark=b"", era=mortal(4, 10), birth=chain.best.hash)
    )
    told: list[str] = []
    chain.watch(waiting.hash, lambda status, _: told.append(status))
    chain.new_block()
    assert chain.nonce(ALICE.address) == 1
    for _ in range(4):
        chain.new_block()
    assert told == ["dropped"]
    assert len(chain.pool) == 0


def test_an_extrinsic_that_can_no_longer_be_paid_is_invalid_and_banned(chain: DevChain) -> None:
    told: list[str] = []
    everything = ALICE.sign(chain, "Balances", "transfer_all", dest=BOB.address, keep_alive=False)
    chain.submit(everything)
    second = transfer(chain, nonce=1)
    chain.watch(chain.submit(second).hash, lambda status, _: told.append(status))
    chain.new_block()
    assert told == ["invalid"]
    assert free(chain, ALICE) == 0
    refused(chain, second, 1012, "banned")
    planck_adds_up(chain)
    # the emptied account keeps its nonce: nothing it signed before can run again
    chain.submit(BOB.sign(chain, "Balances", "transfer_keep_alive", dest=ALICE.address, value=START))
    chain.new_block()
    assert chain.nonce(ALICE.address) == 1
    refused(chain, everything, 1010, "outdated")


def test_the_pool_is_bounded() -> None:
    chain = DevChain(DevChainConfig(fund=FUND, pool=PoolConfig(max_extrinsics=2, max_block_extrinsics=1)))
    for nonce in range(2):
        chain.submit(transfer(chain, nonce=nonce))
    refused(chain, BOB.sign(chain, "System", "remark", remark=b""), 1016, "Immediately Dropped")
    chain.new_block()
    assert (len(chain.pool), chain.nonce(ALICE.address)) == (1, 1)


def test_new_accounts_and_dust(chain: DevChain) -> None:
    chain.submit(ALICE.sign(chain, "Balances", "transfer_allow_death", dest=CAROL.address, value=499))
    chain.new_block()
    assert events(chain)[-1][2]["dispatch_error"] == {"Token": "BelowMinimum"}
    chain.submit(ALICE.sign(chain, "Balances", "transfer_allow_death", dest=CAROL.address, value=10**9))
    chain.new_block()
    assert ("System", "NewAccount", {"account": CAROL.address}) in events(chain)
    left = 10**9 - BASE_FEE_PLANCK - 200
    chain.submit(CAROL.sign(chain, "Balances", "transfer_allow_death", dest=BOB.address, value=left))
    chain.new_block()
    assert ("System", "KilledAccount", {"account": CAROL.address}) in events(chain)
    assert chain.get(books.BURNED, 0, b"dust") > 0
    planck_adds_up(chain)


COUNTER = StorageItem("Counter", value=s.u32)
BY_NAME = StorageItem("ByName", value=s.u32, keys=((Hasher.BLAKE2_128_CONCAT, s.bytes_), (Hasher.IDENTITY, s.u32)))


def demo_pallet() -> Pallet:
    """A pallet that mints, holds, fails, breaks, and pays no fee."""

    def count(ctx: Context, origin: bytes, fail: bool) -> Pays:
        ctx.put(COUNTER, value=ctx.get(COUNTER) + 1)
        ctx.emit("Counted", ctx.get(COUNTER))
        ctx.mint(origin, 7, "demo")
        ctx.transfer_in(origin, 5)
        if fail:
            raise Dispatch("Full")
        return Pays.NO

    def broken(ctx: Context, origin: bytes) -> None:
        ctx.put(COUNTER, value=2**40)

    return Pallet(
        "Demo",
        50,
        storage=[COUNTER, BY_NAME],
        calls=[Call(0, "count", (("fail", s.boolean),), count), Call(1, "broken", (), broken), Call(2, "none")],
        events={"Counted": s.u32},
        errors=["Empty", "Full"],
    )


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[DevChain]:
    monkeypatch.setattr(
        "mesh.devchain.chain.Runtime",
        lambda epoch_length, **_: Runtime(
            epoch_length=epoch_length, pallets=[*all_pallets(epoch_length), demo_pallet()]
        ),
    )
    opened = DevChain(DevChainConfig(fund=FUND))
    yield opened
    opened.close()


def test_pays_no_gives_the_fee_back_only_on_success(demo: DevChain) -> None:
    demo.submit(ALICE.sign(demo, "Demo", "count", fail=False))
    demo.new_block()
    assert free(demo, ALICE) == START + 7 - 5
    assert demo.get(COUNTER) == 1
    assert events(demo)[-2][2]["actual_fee"] == 0
    assert events(demo)[-1][2]["dispatch_info"]["pays_fee"] == "No"
    raw = ALICE.sign(demo, "Demo", "count", fail=True)
    demo.submit(raw)
    demo.new_block()
    assert demo.get(COUNTER) == 1
    assert free(demo, ALICE) == START + 2 - BASE_FEE_PLANCK - len(raw)
    error = {"Module": {"index": 50, "error": b"\x01\x00\x00\x00"}}
    assert events(demo)[-1][2]["dispatch_error"] == error
    assert not any(pallet == "Demo" for pallet, _, _ in events(demo))
    assert demo.get(books.MINTED, 0, b"demo") == 7
    planck_adds_up(demo)


def test_a_mistake_in_a_call_fails_the_call_not_the_chain(demo: DevChain) -> None:
    demo.submit(ALICE.sign(demo, "Demo", "broken"))
    demo.submit(ALICE.sign(demo, "Demo", "none", nonce=1))
    demo.new_block()
    failures = [content["dispatch_error"] for _, name, content in events(demo) if name == "ExtrinsicFailed"]
    assert failures == ["Other", {"Module": {"index": 0, "error": b"\x05\x00\x00\x00"}}]
    assert demo.get(COUNTER) == 0


def test_items_of_a_map_by_prefix(demo: DevChain) -> None:
    state = MemoryState()
    ctx = demo.runtime.context(state, pallet="Demo", block=1, parent_hash=bytes(32))
    for name, number in ((b"b", 2), (b"a", 1), (b"b", 1)):
        ctx.put(BY_NAME, name, number, value=number * 10)
    assert sorted(ctx.items(BY_NAME, b"b")) == [((b"b", 1), 10), ((b"b", 2), 20)]
    assert len(list(ctx.items(BY_NAME))) == 3
    ctx.remove(BY_NAME, b"b", 1)
    assert [keys for keys, _ in ctx.items(BY_NAME, b"b")] == [(b"b", 2)]
    assert not ctx.has(BY_NAME, b"b", 1)
    with pytest.raises(ValueError, match="2 keys, 1 given"):
        ctx.get(BY_NAME, b"b")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.binary(max_size=3), st.none() | st.binary(max_size=2)), max_size=30))
def test_an_overlay_reads_like_one_dict(changes: list[tuple[bytes, bytes | None]]) -> None:
    half = len(changes) // 2
    model: dict[bytes, bytes] = {}
    state = MemoryState()
    below = Overlay(state)
    above = Overlay(below)
    for place, (key, value) in enumerate(changes):
        (below if place < half else above).put(key, value)
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value
    assert {key: above.get(key) for key in above.keys(b"")} == model
    assert list(above.keys(b"a")) == sorted(key for key in model if key.startswith(b"a"))
    above.commit()
    state.apply(below.changes)
    assert dict(state.items()) == model
    assert list(state.keys(b"")) == sorted(model)


def test_the_same_extrinsics_give_the_same_blocks() -> None:
    hashes = []
    for _ in range(2):
        chain = DevChain(DevChainConfig(fund=FUND))
        chain.submit(transfer(chain))
        chain.new_block()
        chain.submit(transfer(chain))
        hashes.append((chain.genesis_hash, chain.new_block().hash))
    assert hashes[0] == hashes[1]
    assert DevChain(DevChainConfig(fund={})).genesis_hash != hashes[0][0]


def test_state_of_the_past(tmp_path: Path) -> None:
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=tmp_path, history_blocks=16))
    marks = []
    for _ in range(3):
        chain.submit(transfer(chain))
        marks.append((chain.new_block().hash, free(chain, BOB)))
    chain.new_block()
    for block_hash, balance in marks:
        found = chain.state_at(block_hash)
        assert found is not None
        assert chain.runtime.account(found[0], BOB.address)["data"]["free"] == balance
        assert list(found[0].keys(system.ACCOUNT.prefix)) == list(chain.state.keys(system.ACCOUNT.prefix))
    assert chain.state_at(bytes(32)) is None
    for _ in range(300):  # beyond the history and past a pruning
        chain.new_block()
    with pytest.raises(HistoryDiscarded):
        chain.state_at(marks[0][0])
    kept = chain.store.at(chain.best.number - 16, best=chain.best.number)
    assert chain.runtime.account(kept, BOB.address)["data"]["free"] == START + 3000
    assert dict(chain.store.load(chain.best.header["state_root"]).items()) == dict(chain.state.items())
    chain.close()


def test_restart_keeps_the_state_and_a_second_chain_is_kept_out(tmp_path: Path) -> None:
    config = DevChainConfig(fund=FUND, data_dir=tmp_path)
    chain = DevChain(config)
    chain.submit(transfer(chain))
    chain.new_block()
    best, state = chain.best.hash, dict(chain.state.items())
    with pytest.raises(ConfigError, match="another dev chain runs"):
        DevChain(config)
    chain.close()
    with pytest.raises(ConfigError, match="another genesis"):
        DevChain(DevChainConfig(fund={}, data_dir=tmp_path))
    again = DevChain(config)
    assert (again.best.hash, dict(again.state.items())) == (best, state)
    again.submit(transfer(again))
    again.new_block()
    assert again.nonce(ALICE.address) == 2
    again.close()


def _run_until_killed(folder: str, written: Any) -> None:
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=Path(folder)))
    for number in itertools.count():
        chain.submit(transfer(chain))
        chain.new_block()
        if number == 20:
            written.set()


def test_a_kill_loses_no_finished_block(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    written = context.Event()
    child = context.Process(target=_run_until_killed, args=(str(tmp_path), written))
    child.start()
    assert written.wait(60)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=tmp_path))
    assert chain.best.number >= 21
    assert chain.nonce(ALICE.address) == chain.best.number
    planck_adds_up(chain)
    chain.new_block()
    chain.close()


@pytest.mark.parametrize(
    "fund", [{"0x12": 1}, {"alice": 1}, {ALICE.hex: -1}, {ALICE.hex: 2**127}], ids=["short", "no hex", "less", "more"]
)
def test_funds_that_cannot_be(fund: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        DevChainConfig(fund=fund)
