"""Operating the chain: its genesis file, storage set by hand, snapshots, damage, kills."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mesh.devchain import scale as s
from mesh.devchain import snapshot, store
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.extrinsic import blake2_256
from mesh.devchain.genesis import GenesisFile, read_genesis
from mesh.devchain.overlay import MemoryState, moved_root, root_of
from mesh.devchain.pallets import balances, books, system
from mesh.devchain.pallets.network import storage
from mesh.devchain.pallets.timestamp import NOW
from mesh.devchain.plain import from_plain
from mesh.devchain.runtime import Block, Runtime
from mesh.devchain.store import HistoryDiscarded
from mesh.errors import ChainError, ConfigError

from .serving import ALICE, BOB, CAROL, FUND, START
from .test_runtime import events, free, planck_adds_up, transfer

RUNTIME = Runtime(epoch_length=20)  # binds the storage items to their pallets
NODES = storage.MinSubnetNodes


@pytest.fixture
def chain() -> Iterator[DevChain]:
    opened = DevChain(DevChainConfig(fund=FUND))
    yield opened
    opened.close()


def replayed(chain: DevChain) -> bytes:
    """The hash of the last of all blocks, executed again from the genesis, each the same as before."""
    runtime, config = Runtime(epoch_length=chain.config.epoch_length), chain.config
    funds = {bytes.fromhex(who[2:]): amount for who, amount in config.fund.items()}
    block, state = runtime.genesis(funds, now_ms=config.genesis_time_ms), MemoryState()
    state.apply(block.changes)
    for number in range(1, chain.best.number + 1):
        stored = chain.store.block_at(number)
        assert stored is not None
        block = runtime.execute(stored.extrinsics, state, parent=block, genesis_hash=chain.genesis_hash)
        assert block.hash == stored.hash
        state.apply(block.changes)
    assert dict(state.items()) == dict(chain.state.items())
    return block.hash


# --- the root ---------------------------------------------------------------------------------------------------------

entries = st.dictionaries(st.binary(max_size=3), st.none() | st.binary(max_size=3), max_size=6)


@settings(derandomize=True)
@given(st.lists(entries, max_size=5))
def test_a_root_moved_by_changes_is_the_root_of_what_they_make(blocks: list[dict[bytes, bytes | None]]) -> None:
    state, root = MemoryState(), bytes(32)
    for changes in blocks:
        root = moved_root(root, state, changes)
        state.apply(changes)
        assert root == root_of(state.items())
    assert (root == bytes(32)) == (not list(state.items()))


def test_key_and_value_do_not_run_into_each_other() -> None:
    assert root_of([(b"a", b"bc")]) != root_of([(b"ab", b"c")])


# --- the genesis file -------------------------------------------------------------------------------------------------


def genesis_file(folder: Path, text: str) -> GenesisFile:
    path = folder / "genesis.toml"
    path.write_text(text)
    return read_genesis(path)


def test_a_genesis_file_says_what_block_0_is(tmp_path: Path) -> None:
    said = genesis_file(
        tmp_path,
        f"""
        epoch_length = 8
        time_ms = 1800000000000
        [fund]
        "{ALICE.hex}" = 0.5
        [network]
        MinSubnetNodes = 1
        MaxSlashAmount = "340282366920938463463374607431768211455"
        SubnetWeightFactors = {{delegate_stake = 1, node_count = 2, net_flow = 3}}
        """,
    )
    assert str(said.fund[ALICE.hex]) == "0.5"
    chain = DevChain(DevChainConfig(epoch_length=8, network_genesis=said.network_genesis(), genesis_time_ms=7))
    assert chain.get(NODES) == 1
    assert chain.get(storage.MaxSlashAmount) == 2**128 - 1
    assert chain.get(storage.SubnetWeightFactors) == {"delegate_stake": 1, "node_count": 2, "net_flow": 3}
    assert chain.get(storage.StakeCooldownEpochs) == storage.DEV_GENESIS["StakeCooldownEpochs"]
    real = genesis_file(tmp_path, 'defaults = "network"\n[network]\nMinSubnetNodes = 1')
    assert real.network_genesis() == {"MinSubnetNodes": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 8", "epoch"),
        ("epoch_length = 3", "greater than or equal to 4"),
        ("epoch_length = true", "epoch_length"),
        ('defaults = "live"', "defaults"),
        ("[network]\nMinSubnetNodez = 1", "MinSubnetNodez is no plain storage item"),
        ("[network]\nSubnetsData = 1", "SubnetsData is no plain storage item"),
        ("[network]\nMinSubnetNodes = -1", "-1 does not fit u32"),
        ("[network]\nMinSubnetNodes = 1.5", "u32 cannot hold"),
        ('[network]\nMinSubnetNodes = "many"', "no whole number"),
        ("[network]\nTxPause = 1", "bool cannot hold"),
        ("[network]\nSubnetWeightFactors = {node_count = 2}", "exactly the fields"),
        ("[fund]\n0x12 = true", "fund"),
        ("[[", "no TOML"),
    ],
)
def test_what_a_genesis_file_may_not_say(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=says):
        genesis_file(tmp_path, text)


def test_a_genesis_file_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_genesis(tmp_path)
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="too many"):
        read_genesis(tmp_path / "large")


# --- plain values -----------------------------------------------------------------------------------------------------

colour = s.enum("Colour", Red=None, Mixed={"parts": s.vec(s.u8)}, Grey=s.u32, Two=(s.u32, s.boolean))


@pytest.mark.parametrize(
    ("kind", "plain", "value"),
    [
        (s.u128, "0x10", 16),
        (s.compact(s.u32), "12", 12),
        (s.account_id, "0x" + "ab" * 20, b"\xab" * 20),
        (s.bytes_, "0x00ff", b"\x00\xff"),
        (s.bounded_bytes, "héllo", "héllo".encode()),
        (s.option(s.u32), None, None),
        (s.option(s.u32), 5, 5),
        (s.vec(s.tuple_of(s.u32, s.boolean)), [[1, True]], [(1, True)]),
        (s.btree_map(s.u32, s.bytes_), {"1": "0x02"}, {1: b"\x02"}),
        (s.btree_map(s.u32, s.bytes_), [[1, "0x02"]], {1: b"\x02"}),
        (s.btree_set(s.u32), [2, 1, 2], {1, 2}),
        (colour, "Red", "Red"),
        (colour, {"Grey": "7"}, {"Grey": 7}),
        (colour, {"Two": [1, False]}, {"Two": (1, False)}),
        (colour, {"Mixed": {"parts": "0x01"}}, {"Mixed": {"parts": b"\x01"}}),
    ],
)
def test_plain_values(kind: s.Type, plain: Any, value: Any) -> None:
    assert from_plain(kind, plain) == value


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("0x12"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["Two", "Grey", "a"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(derandomize=True)
@given(st.sampled_from([each.value for each in storage.ITEMS] + [colour, s.account_id]), plain_values)
def test_no_plain_value_does_more_than_be_refused(kind: s.Type, plain: Any) -> None:
    try:
        value = from_plain(kind, plain)
    except ConfigError:
        return
    assert kind.decode_all(kind.encode(value)) is not None or plain is None


# --- storage set by hand ----------------------------------------------------------------------------------------------


def test_storage_that_is_set_is_an_extrinsic_of_its_block_and_replayed(chain: DevChain) -> None:
    chain.submit(transfer(chain))
    reputation = storage.SubnetReputation.key(128_001)
    block = chain.set_storage({NODES.key(): NODES.value.encode(1), reputation: s.u128.encode(7)})
    assert (chain.get(NODES), chain.get(storage.SubnetReputation, 128_001)) == (1, 7)
    assert block.number == 1
    assert free(chain, BOB) == START + 1000  # what waited is in the same block, after it
    chain.set_storage({NODES.key(): None, reputation: s.u128.encode(8)})
    assert (chain.get(NODES), chain.get(storage.SubnetReputation, 128_001)) == (3, 8)
    assert [name for _, name, _ in events(chain)].count("ExtrinsicSuccess") == 3
    assert replayed(chain) == chain.best.hash
    planck_adds_up(chain)


def test_a_balance_that_is_set_is_booked(chain: DevChain) -> None:
    rich = {**system.account_info.zero(), "providers": 1, "data": {**system.account_data.zero(), "free": 10**20}}
    chain.set_storage({system.ACCOUNT.key(CAROL.address): system.account_info.encode(rich)})
    assert chain.get(books.MINTED, 0, b"set-storage") == 10**20
    assert chain.get(balances.TOTAL_ISSUANCE) == 2 * START + 500 + 10**20  # 500 are the treasury's
    planck_adds_up(chain)
    chain.submit(CAROL.sign(chain, "Balances", "transfer_keep_alive", dest=BOB.address, value=5))
    chain.new_block()
    chain.set_storage({system.ACCOUNT.key(CAROL.address): None})
    assert 10**20 - 10**17 < chain.get(books.BURNED, 0, b"set-storage") < 10**20
    planck_adds_up(chain)
    assert replayed(chain) == chain.best.hash


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (b"", b"", "the key of no storage item"),
        (bytes(32), b"\x00", "the key of no storage item"),
        (NODES.key() + b"\x00", b"\x00\x00\x00\x00", "left over"),
        (NODES.key(), b"\x00", "4 bytes wanted"),
        (NODES.key(), bytes(5), "left over"),
        (system.ACCOUNT.prefix + bytes(36), system.ACCOUNT.default_bytes, "is no key of System.Account"),
        (system.NUMBER.key(), bytes(4), "System.Number is kept by the chain"),
        (books.HELD.key(), bytes(16), "Books.Held is kept by the chain"),
        (storage.SlotAssignment.key(3), s.u32.encode(5), None),
        (storage.SubnetsData.key(5), None, None),
    ],
)
def test_what_may_be_set(chain: DevChain, key: bytes, value: bytes | None, says: str | None) -> None:
    before = chain.best.hash
    if says is None:
        chain.set_storage({key: value})
        assert chain.best.hash != before
        return
    with pytest.raises(ConfigError, match=says):
        chain.set_storage({key: value})
    assert chain.best.hash == before


def test_a_value_that_would_end_the_chain_is_refused(chain: DevChain, monkeypatch: pytest.MonkeyPatch) -> None:
    network = chain.runtime.pallets["Network"]
    hook = network.on_initialize
    assert hook is not None

    def fragile(ctx: Any) -> None:
        hook(ctx)
        if ctx.block % 7 == 0:
            1 // ctx.get(NODES)

    monkeypatch.setattr(network, "on_initialize", fragile)
    before = dict(chain.state.items())
    with pytest.raises(ConfigError, match="could not make block 7"):
        chain.set_storage({NODES.key(): NODES.value.encode(0)})
    assert dict(chain.state.items()) == before
    for _ in range(8):
        chain.new_block()


def test_no_account_may_set_storage(chain: DevChain) -> None:
    chain.submit(ALICE.sign(chain, "System", "set_storage", items=[(NODES.key(), NODES.value.encode(1))]))
    chain.submit(BOB.sign(chain, "System", "kill_storage", keys=[NODES.key()]))
    chain.new_block()
    failures = [content["dispatch_error"] for _, name, content in events(chain) if name == "ExtrinsicFailed"]
    assert failures == ["BadOrigin", "BadOrigin"]
    assert chain.get(NODES) == 3


def test_a_block_with_strange_extrinsics_is_not_executed(chain: DevChain) -> None:
    block = chain.new_block()
    signed = transfer(chain)
    time, call = block.extrinsics[0], chain.runtime.types.call
    for body in ((), (signed,), (time, time), (time, b"\x04\x84"), (time[:-1],), (time + b"\x00",)):
        with pytest.raises((s.ScaleError, ChainError)):
            chain.runtime.execute(body, chain.state, parent=block, genesis_hash=chain.genesis_hash)
    assert call.decode_all(time[2:])  # the time is a call like any other


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_restored_exactly_and_what_came_after_is_gone(tmp_path: Path) -> None:
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=tmp_path))
    chain.submit(transfer(chain))
    kept = chain.new_block()
    chain.new_block()
    raw, block, state = chain.snapshot(), chain.best, dict(chain.state.items())
    told: list[tuple[str, bytes | None]] = []
    chain.submit(transfer(chain, amount=1))
    gone = chain.new_block()
    chain.watch(chain.submit(transfer(chain)).hash, lambda status, _: told.append((status, _)))
    seen: list[Block] = []
    chain.listeners.append(seen.append)
    assert chain.restore(raw).hash == block.hash
    assert (chain.best.hash, dict(chain.state.items())) == (block.hash, state)
    assert told == [("dropped", None)]
    assert len(chain.pool) == 0
    assert seen[0].hash == block.hash
    assert system.ACCOUNT.key(ALICE.address) in seen[0].changes
    assert chain.store.number_of(gone.hash) is None
    found = chain.state_at(kept.hash)
    assert found is not None
    assert chain.runtime.account(found[0], BOB.address)["data"]["free"] == START + 1000
    assert chain.finalized_hash == kept.hash
    chain.submit(transfer(chain, amount=1))
    assert chain.new_block().extrinsics == gone.extrinsics
    assert chain.best.hash == gone.hash  # the same again, to the last byte
    assert replayed(chain) == gone.hash
    chain.close()
    again = DevChain(DevChainConfig(fund=FUND, data_dir=tmp_path))
    assert again.best.hash == gone.hash
    again.close()


def test_a_snapshot_of_another_run_and_of_a_pruned_block(tmp_path: Path) -> None:
    other = DevChain(DevChainConfig(fund=FUND))
    for _ in range(3):
        other.submit(transfer(other))
        other.new_block()
    config = DevChainConfig(fund=FUND, data_dir=tmp_path, history_blocks=16)
    chain = DevChain(config)
    for _ in range(5):
        chain.new_block()
    left = chain.best.hash
    chain.restore(other.snapshot())
    assert (chain.best.hash, chain.finalized_hash) == (other.best.hash, other.best.hash)
    assert chain.store.number_of(left) is None
    assert chain.store.block_at(2) == other.store.block_at(2)
    second = chain.store.hash_of(2)
    with pytest.raises(HistoryDiscarded):
        chain.state_at(second)
    chain.new_block()
    assert chain.finalized_hash == other.best.hash
    raw, mark = chain.snapshot(), chain.best.hash
    for _ in range(300):
        chain.new_block()
    chain.restore(raw)  # whose state is not kept any more
    assert chain.best.hash == mark
    assert replayed(chain) == mark
    chain.close()
    again = DevChain(config)
    assert (again.best.hash, again.finalized_hash) == (mark, mark)
    again.new_block()
    again.restore(DevChain(DevChainConfig(fund=FUND)).snapshot())  # of the genesis block
    assert again.best.hash == again.genesis_hash == again.finalized_hash
    again.new_block()
    planck_adds_up(again)
    again.close()


def sealed(body: bytes) -> bytes:
    return snapshot.MAGIC + blake2_256(body) + body


def test_a_snapshot_is_checked_before_anything_changes(chain: DevChain) -> None:
    chain.submit(transfer(chain))
    chain.new_block()
    raw, before = chain.snapshot(), chain.new_block()
    body = snapshot.check_digest(raw)
    value = snapshot._body.decode_all(body)

    def changed(**parts: Any) -> bytes:
        return sealed(snapshot._body.encode({**value, **parts}))

    pairs, blocks = value["state"], value["blocks"]
    last = blocks[-1]
    altered = {**blocks[0], "header": {**blocks[0]["header"], "state_root": bytes(32)}}
    elsewhere = DevChain(DevChainConfig(fund={ALICE.hex: 1000}))
    refused = {
        "no snapshot": b"",
        "no snapshot of": b"x" + raw,
        "digest does not fit": raw[:-1],
        "damaged": raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
        "bytes at most": raw + bytes(snapshot.MAX_SNAPSHOT_BYTES),
        "with genesis 0x": elsewhere.snapshot(),
        "holds what is no part": sealed(body[:-1]),
        "left over": sealed(body + b"\x00"),
        "0 blocks": changed(blocks=[]),
        "does not follow": changed(blocks=[last, *blocks]),
        "other extrinsics": changed(blocks=[*blocks[:-1], {**last, "extrinsics": last["extrinsics"][:-1]}]),
        "another genesis block": changed(blocks=[altered]),
        "not the one its last block": changed(state=pairs[:-1]),
        "not the one its last": changed(state=[*pairs, pairs[0]]),
        "no storage item": changed(state=[*pairs, (b"key", b"value")]),
        "bytes wanted": changed(state=[*pairs, (NODES.key(), b"")]),
    }  # fmt: skip
    for words, junk in refused.items():
        with pytest.raises(ConfigError, match=words):
            chain.restore(junk)
    assert chain.best.hash == before.hash
    chain.restore(changed())
    assert chain.best.number == 1


def test_a_snapshot_after_which_no_block_could_come_is_refused(chain: DevChain) -> None:
    value = snapshot._body.decode_all(snapshot.check_digest(chain.snapshot()))
    state = {**dict(value["state"]), NOW.key(): b"\xff" * 8}
    header = {**value["blocks"][0]["header"], "number": 5, "state_root": root_of(state.items())}
    blocks = [{"header": header, "extrinsics": []}]
    with pytest.raises(ConfigError, match="could not make block 6"):
        chain.restore(sealed(snapshot._body.encode({**value, "blocks": blocks, "state": sorted(state.items())})))
    assert chain.new_block().number == 1


def test_a_state_too_large_for_a_snapshot_is_said(chain: DevChain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_SNAPSHOT_BYTES", 500)
    with pytest.raises(ConfigError, match="copy its data directory"):
        chain.snapshot()


def test_a_snapshot_has_no_more_blocks_than_fit(chain: DevChain, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(9):
        chain.new_block()
    monkeypatch.setattr(snapshot, "MAX_BLOCKS", 4)
    few = snapshot.read(chain.snapshot(), genesis_hash=chain.genesis_hash, runtime=chain.runtime)
    assert [block.number for block in few.blocks] == [6, 7, 8, 9]
    monkeypatch.setattr(snapshot, "MAX_BLOCKS_BYTES", 0)
    one = snapshot.read(chain.snapshot(), genesis_hash=chain.genesis_hash, runtime=chain.runtime)
    assert [block.number for block in one.blocks] == [8, 9]  # clients ask about the parent


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_junk_is_restored(chain: DevChain, data: st.DataObject) -> None:
    body = bytearray(snapshot.check_digest(chain.snapshot()))
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ConfigError):
        chain.restore(sealed(bytes(body)))


# --- damage -----------------------------------------------------------------------------------------------------------


def a_chain_on_disk(folder: Path, *, blocks: int = 5) -> DevChainConfig:
    config = DevChainConfig(fund=FUND, data_dir=folder)
    chain = DevChain(config)
    for _ in range(blocks):
        chain.submit(transfer(chain))
        chain.new_block()
    chain.close()
    return config


def edit(sql: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute(sql)
        db.close()

    return damage


def overwrite(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for place in range(4096, len(raw), 4096):
        raw[place : place + 64] = b"\xff" * 64
    path.write_bytes(raw)


def test_a_database_that_another_program_holds_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCKED_TIMEOUT_S", 0.0)
    config = a_chain_on_disk(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "chain.sqlite3")) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match=r"cannot be used \(database is locked\)"):
            DevChain(config)
    DevChain(config).close()


@pytest.mark.parametrize(
    "damage",
    [
        edit("DELETE FROM state WHERE block = 5 AND value IS NOT NULL"),
        edit("UPDATE state SET value = x'00' WHERE block = 0"),
        edit("UPDATE blocks SET extrinsics = x'00' WHERE number = 5"),
        edit("UPDATE blocks SET header = zeroblob(8) WHERE number = 5"),
        edit("UPDATE blocks SET hash = zeroblob(32) WHERE number = 0"),
        edit("DELETE FROM blocks WHERE number = 5"),
        overwrite,
        lambda path: path.write_bytes(b"no database at all" * 1000),
    ],
    ids=["value gone", "values", "extrinsics", "header", "hash", "block gone", "pages", "no database"],
)
def test_a_damaged_database_is_refused_with_what_to_do(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    config = a_chain_on_disk(tmp_path)
    damage(tmp_path / "chain.sqlite3")
    with pytest.raises(ConfigError, match=r"damaged .*delete its directory"):
        DevChain(config)
    with pytest.raises(ConfigError, match="damaged"):  # and lets go of the directory
        DevChain(config)


def test_a_database_of_another_format_is_refused(tmp_path: Path) -> None:
    config = a_chain_on_disk(tmp_path)
    edit("PRAGMA user_version = 99")(tmp_path / "chain.sqlite3")
    with pytest.raises(ConfigError, match=r"format 99, .* delete this one"):
        DevChain(config)


def test_a_data_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        DevChain(DevChainConfig(data_dir=tmp_path / "file"))
    (tmp_path / "chain.sqlite3").mkdir()
    with pytest.raises(ConfigError, match=r"chain\.sqlite3"):
        DevChain(DevChainConfig(data_dir=tmp_path))


def test_a_full_disk_is_said_and_takes_nothing_back(tmp_path: Path) -> None:
    config = a_chain_on_disk(tmp_path)
    chain = DevChain(config)
    pages = chain.store._db.execute("PRAGMA page_count").fetchone()[0]
    chain.store._db.execute(f"PRAGMA max_page_count = {pages}")
    best, state = chain.best.hash, dict(chain.state.items())
    with pytest.raises(ChainError, match=r"cannot be written .*has room"):
        for _ in range(100):
            chain.submit(ALICE.sign(chain, "System", "remark", remark=bytes(5000)))
            chain.new_block()
            best, state = chain.best.hash, dict(chain.state.items())
    assert (chain.best.hash, dict(chain.state.items())) == (best, state)
    chain.store._db.execute("PRAGMA max_page_count = 1000000")
    chain.new_block()
    chain.close()
    DevChain(config).close()


# --- kills ------------------------------------------------------------------------------------------------------------

Deadly = Callable[[DevChain], object]


def at_statement(words: str) -> Deadly:
    """SIGKILL when SQLite is about to run a statement."""

    def arm(chain: DevChain) -> None:
        def trace(sql: str) -> None:
            if sql.lstrip().startswith(words):
                os.kill(os.getpid(), signal.SIGKILL)

        chain.store._db.set_trace_callback(trace)

    return arm


def inside_the_commit(written: int) -> Deadly:
    """The kernel ends the process in the write that would make the write-ahead log longer by more than `written` bytes:
    what is before that place is in the file, the rest is not."""

    def arm(chain: DevChain) -> None:
        assert chain.config.data_dir is not None
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        size = (chain.config.data_dir / "chain.sqlite3-wal").stat().st_size + written
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return arm


def after_the_commit(chain: DevChain) -> None:
    """SIGKILL when the block is on disk and nobody knows of it."""
    chain.state.apply = lambda changes: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]


def _live_and_die(folder: str, arm: Deadly, blocks: int, last: Deadly, told: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=Path(folder), history_blocks=16))
    while chain.best.number < blocks:
        chain.submit(transfer(chain))
        chain.new_block()
    chain.submit(transfer(chain))
    told.send((chain.best.number, chain.best.hash, chain.state.get(system.ACCOUNT.key(BOB.address))))
    arm(chain)
    last(chain)
    told.send("it lives")


def one_more(chain: DevChain) -> None:
    """The last thing a process does: make a block."""
    chain.new_block()


def killed(folder: Path, arm: Deadly, *, blocks: int, last: Deadly = one_more) -> tuple[int, bytes, bytes]:
    """What a process said of its best block before it was killed while it did the last thing."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_live_and_die, args=(str(folder), arm, blocks, last, theirs))
    child.start()
    theirs.close()
    assert ours.poll(60)
    said: tuple[int, bytes, bytes] = ours.recv()
    child.join(60)
    with pytest.raises(EOFError):
        ours.recv()
    assert child.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ)
    return said


@pytest.mark.parametrize(
    ("arm", "blocks"),
    [
        (at_statement("BEGIN"), 3),
        (at_statement("INSERT INTO blocks"), 3),
        (at_statement("INSERT INTO state"), 3),
        (at_statement("DELETE FROM state"), 255),  # old values are dropped in this block
        (at_statement("UPDATE history"), 255),
        (at_statement("COMMIT"), 3),
        (at_statement("COMMIT"), 255),
        (inside_the_commit(0), 3),
        (inside_the_commit(10), 3),
        (inside_the_commit(24), 3),
        (inside_the_commit(24 + 4096), 3),
        (inside_the_commit(24 + 4096 + 2000), 3),
        (after_the_commit, 3),
    ],
    ids=["begin", "block", "state", "prune", "history", "commit", "prune committed", "log 0", "log 10", "log 24",
         "log page", "log torn", "after"],
)  # fmt: skip
def test_a_kill_loses_at_most_the_block_in_progress(tmp_path: Path, arm: Deadly, blocks: int) -> None:
    number, block_hash, account = killed(tmp_path, arm, blocks=blocks)
    assert number == blocks
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=tmp_path, history_blocks=16))
    extra = 1 if arm is after_the_commit else 0
    assert chain.best.number == number + extra
    assert chain.store.hash_of(number) == block_hash
    assert (chain.state.get(system.ACCOUNT.key(BOB.address)) == account) == (not extra)
    assert chain.nonce(ALICE.address) == number + extra
    planck_adds_up(chain)
    assert replayed(chain) == chain.best.hash
    chain.submit(transfer(chain))
    chain.new_block()
    assert chain.nonce(ALICE.address) == number + extra + 1
    chain.close()


@pytest.mark.parametrize("words", ["DELETE FROM blocks", "INSERT INTO blocks", "INSERT INTO state", "COMMIT"])
def test_a_kill_while_a_snapshot_is_restored_leaves_the_chain_as_it_was(tmp_path: Path, words: str) -> None:
    other = DevChain(DevChainConfig(fund=FUND))
    other.new_block()
    raw = other.snapshot()
    number, block_hash, _ = killed(tmp_path, at_statement(words), blocks=3, last=lambda chain: chain.restore(raw))
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=tmp_path))
    assert (chain.best.number, chain.best.hash) == (number, block_hash)
    assert replayed(chain) == block_hash
    assert chain.restore(raw).hash == other.best.hash
    chain.close()


def _live(folder: str, told: Any) -> None:
    chain = DevChain(DevChainConfig(fund=FUND, data_dir=Path(folder), history_blocks=16))
    chain.store._db.execute("PRAGMA wal_autocheckpoint = 3")  # the log is copied into the database all the time
    while True:
        chain.submit(transfer(chain))
        told.send((chain.best.number, chain.best.hash))
        chain.new_block()


@pytest.mark.slow
def test_kills_at_any_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for kill in range(60):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_live, args=(str(tmp_path), theirs))
        child.start()
        theirs.close()
        for _ in range(1 + kill % 7):  # then at whatever it is doing
            said = ours.recv()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        with contextlib.suppress(EOFError):
            while True:
                said = ours.recv()
        chain = DevChain(DevChainConfig(fund=FUND, data_dir=tmp_path, history_blocks=16))
        assert chain.best.number in (said[0], said[0] + 1)
        assert chain.store.hash_of(said[0]) == said[1]
        planck_adds_up(chain)
        assert replayed(chain) == chain.best.hash
        chain.close()
