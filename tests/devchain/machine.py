"""A machine that lives on the whole runtime: every call of the Network pallet with arguments drawn by their types.

What it checks is computed from raw storage, by readers written here: where planck can be is known to this file on its
own. Calls are found in the pallet's table, so one that is added is called too; a storage item that holds planck must be
added to `HELD`, or conservation fails.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import xxhash

from mesh.devchain import scale as s
from mesh.devchain.extrinsic import Era, Extrinsic, Refused
from mesh.devchain.overlay import MemoryState, ReadState
from mesh.devchain.pallet import Call, StorageItem
from mesh.devchain.pallets import SPEC_VERSION, TRANSACTION_VERSION
from mesh.devchain.pallets.network import CALLS
from mesh.devchain.pallets.network import storage as n
from mesh.devchain.pallets.network.storage import DEV_GENESIS
from mesh.devchain.pallets.transaction_payment import BASE_FEE_PLANCK, LENGTH_FEE_PLANCK
from mesh.devchain.runtime import Block, BlockBuilder, Runtime
from mesh.identity import keccak256

from .network.chain import BOOTNODE, BOOTNODE_ADDRESS, peer
from .signing import Signer, assemble

TENSOR: Final = 10**18
FUND: Final = 10_000_000 * TENSOR
COLDKEYS, HOTKEYS = 6, 24
LIMIT: Final = 2**120
"""No amount of planck here is anywhere near it: a subtraction that wrapped around is."""

# --- planck, from raw storage -----------------------------------------------------------------------------------------


def twox128(text: str) -> bytes:
    return b"".join(xxhash.xxh64(text.encode(), seed=seed).intdigest().to_bytes(8, "little") for seed in (0, 1))


def under(state: ReadState, pallet: str, item: str) -> Iterator[tuple[bytes, bytes]]:
    """(key behind the item's prefix, value) of all entries."""
    prefix = twox128(pallet) + twox128(item)
    for key in state.keys(prefix):
        value = state.get(key)
        assert value is not None
        yield key[32:], value


def number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def whole(raw: bytes) -> int:
    """The value is the amount."""
    assert len(raw) == 16
    return number(raw)


def ledger(raw: bytes) -> int:
    """Blocks and amounts, after a compact count."""
    count = raw[0] >> 2
    assert raw[0] & 3 == 0
    assert len(raw) == 1 + 20 * count
    return sum(number(raw[1 + 20 * place + 4 : 1 + 20 * place + 20]) for place in range(count))


def queued_swap(raw: bytes) -> int:
    """Id, variant, account, subnet, node in the second variant, amount, two block numbers."""
    assert raw[4] in (0, 1)
    start = 4 + 1 + 20 + 4 + 4 * raw[4]
    assert len(raw) == start + 16 + 8
    return number(raw[start : start + 16])


HELD: Final = {
    "AccountSubnetStake": whole,
    "TotalSubnetDelegateStakeBalance": whole,
    "TotalNodeDelegateStakeBalance": whole,
    "AccountDelegateStake": whole,
    "AccountOverwatchStake": whole,
    "StakeUnbondingLedger": ledger,
    "SwapCallQueue": queued_swap,
}
"""What the Network pallet keeps in no account: each is counted at its owner, by no total of the pallet's."""
TOTALS: Final = {
    "TotalStake": "AccountSubnetStake",
    "TotalDelegateStake": "TotalSubnetDelegateStakeBalance",
    "TotalNodeDelegateStake": "TotalNodeDelegateStakeBalance",
    "TotalAccountDelegateStake": "AccountDelegateStake",
    "TotalOverwatchStake": "AccountOverwatchStake",
    "TotalUnbondingBalance": "StakeUnbondingLedger",
}


def accounts(state: ReadState) -> dict[bytes, tuple[int, int, int]]:
    """(nonce, free, reserved) of every account."""
    found = {}
    for key, raw in under(state, "System", "Account"):
        assert len(raw) == 16 + 64
        nonce, free, reserved, frozen = number(raw[:4]), *(number(raw[at : at + 16]) for at in (16, 32, 48))
        assert frozen <= free
        found[key[16:]] = (nonce, free, reserved)
    return found


def planck(state: ReadState) -> dict[str, int]:
    """All planck there is, by where it is."""
    where = {"accounts": sum(free + reserved for _, free, reserved in accounts(state).values())}
    for item, amount in HELD.items():
        amounts = [amount(raw) for _, raw in under(state, "Network", item)]
        assert all(0 <= each < LIMIT for each in amounts), item
        where[item] = sum(amounts)
    for total, of in TOTALS.items():
        assert sum(whole(raw) for _, raw in under(state, "Network", total)) == where[of], total
    assert sum(whole(raw) for _, raw in under(state, "Books", "Held")) == sum(where.values()) - where["accounts"]
    assert sum(whole(raw) for _, raw in under(state, "Balances", "TotalIssuance")) == where["accounts"]
    return where


def booked(state: ReadState, item: str) -> Counter[str]:
    """Planck minted or burned since genesis, by cause."""
    causes: Counter[str] = Counter()
    for key, raw in under(state, "Books", item):
        cause = key[8 + 4 + 16 + 1 :].decode()  # behind the epoch, its hash, the cause's hash and its length
        causes[cause] += whole(raw)
    return causes


# --- the machine ------------------------------------------------------------------------------------------------------

AMOUNTS: Final = (0, 1, 499, 500, 999, 1000, TENSOR, 100 * TENSOR, 250 * TENSOR, 2**100, 2**128 - 1)
RATES: Final = (0, 1, 10**16, 10**17, 2 * 10**17, 5 * 10**17, 10**18, 10**18 + 1, 2**128 - 1)
RATE_WORDS: Final = ("rate", "percentage", "weight", "factor", "threshold", "reputation")
ENDS: Final = ("owner_deactivate_subnet", "owner_pause_subnet")
"""Tried less often, or no subnet lives long."""
SALT, WEIGHT = b"salt", 5 * 10**17


class Machine:
    """A seeded life. `step` makes a block; the same seed gives the same life."""

    def __init__(self, seed: int, *, epoch_length: int = 8, calls: Sequence[Call] = CALLS) -> None:
        self.rng = random.Random(seed)
        self.length = epoch_length
        self.calls = calls
        self.network_genesis = {
            **DEV_GENESIS,
            "SubnetRegistrationEpochs": 6,
            "SubnetEnactmentEpochs": 4,
            "RegistrationCostDecayBlocks": 40,
        }
        self.runtime = Runtime(epoch_length=epoch_length, network_genesis=self.network_genesis)
        self.signers = [Signer(f"machine {place}") for place in range(COLDKEYS + HOTKEYS)]
        self.coldkeys = [each.address for each in self.signers[:COLDKEYS]]
        self.hotkeys = [each.address for each in self.signers[COLDKEYS:]]
        self.by_address = {each.address: each for each in self.signers}
        self.funds = dict.fromkeys(self.coldkeys, FUND) | dict.fromkeys(self.hotkeys, 1000 * TENSOR)
        self.genesis = self.runtime.genesis(self.funds, now_ms=0)
        self.state = MemoryState()
        self.state.apply(self.genesis.changes)
        self.best = self.genesis
        self.blocks: list[Block] = []
        self.done: Counter[str] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()
        self.refused = 0
        self.calling = ""
        self.peers = 0
        assert sum(planck(self.state).values()) == booked(self.state, "Minted").total()

    # blocks

    def step(self, calls: int) -> None:
        """A block: the elected propose and others attest where it is time, then some calls of any kind."""
        self.block(lambda: self.live(calls))

    def live(self, calls: int) -> None:
        """What happens in a block of `step`."""
        self.consensus()
        self.overwatch()
        for _ in range(calls):
            call = self.rng.choice(self.calls)
            if call.name in ENDS and self.likely():
                continue
            args = self.arguments(call)
            self.submit(call.name, self.origin(call, args), args, tip=self.rng.choice((0, 0, 0, 1, 10**15)))
        if self.rng.random() < 0.1:  # accounts end by this, too
            call = self.rng.choice(self.runtime.pallets["Balances"].calls)
            self.submit(call.name, self.rng.choice(self.hotkeys), self.arguments(call), pallet="Balances")

    def block(self, work: Callable[[], None]) -> None:
        """A block in which `work` submits; planck is counted before and after."""
        before, were = sum(planck(self.state).values()), (booked(self.state, "Minted"), booked(self.state, "Burned"))
        self.builder = BlockBuilder(
            self.runtime, self.state, parent=self.best, genesis_hash=self.genesis.hash, now_ms=6000 * self.best.number
        )
        self.fees = 0
        work()
        block = self.builder.finish()
        self.state.apply(block.changes)
        self.best = block
        self.blocks.append(block)
        minted, burned = booked(self.state, "Minted") - were[0], booked(self.state, "Burned") - were[1]
        for item, was in zip(("Minted", "Burned"), were, strict=True):
            assert all(booked(self.state, item)[cause] >= amount for cause, amount in was.items())
        assert sum(planck(self.state).values()) == before + minted.total() - burned.total(), (minted, burned)
        assert burned["fee"] == self.fees
        assert all(free == 0 or free >= 500 for _, free, _ in accounts(self.state).values())

    def submit(self, name: str, origin: bytes, args: dict[str, Any], *, tip: int = 0, pallet: str = "Network") -> str:
        """Sign, run and check one call; "" or the name of its error."""
        before = dict(self.builder.state.changes)
        was = accounts(self.builder.state)
        nonce, free, _ = was.get(origin, (0, 0, 0))
        raw = self.sign(origin, {pallet: {name: args} if args else name}, nonce=nonce, tip=tip)
        ext = self.runtime.parse(raw)
        assert assemble(ext, ext.signature) == raw  # to the last byte, through the decoded call
        assert self.runtime.types.call.encode(ext.call) == ext.call_bytes
        cost = BASE_FEE_PLANCK + LENGTH_FEE_PLANCK * len(raw) + tip
        try:
            outcome = self.builder.apply(ext)
        except Refused:
            assert free < cost + 500
            assert self.builder.state.changes == before
            self.refused += 1
            return "Refused"
        assert outcome.fee_planck in ((cost,) if outcome.error is not None else (cost, 0))
        self.fees += outcome.fee_planck
        now = accounts(self.builder.state)
        assert now[origin][0] == nonce + 1
        assert all(now[who][0] == was[who][0] for who in was if who != origin)
        if outcome.error is None:
            self.done[name] += 1
            return ""
        self.failed[name, self.error_name(outcome.error)] += 1
        changed = {key for key, value in self.builder.state.changes.items() if before.get(key, b"-") != value}
        unchanged = {key for key in changed if key not in before and self.state.get(key) == self.builder.state.get(key)}
        fee_key = twox128("Books") + twox128("Burned")
        for key in changed - unchanged:
            own = key.endswith(origin) and key.startswith(twox128("System") + twox128("Account"))
            fee = key.startswith(fee_key) and key.endswith(b"fee")
            assert own or fee or key == twox128("Balances") + twox128("TotalIssuance"), (name, key.hex())
        assert {who: each for who, each in now.items() if who != origin} == {
            who: each for who, each in was.items() if who != origin
        }
        assert now[origin] == (nonce + 1, free - cost, was[origin][2])
        return self.error_name(outcome.error)

    def error_name(self, error: Any) -> str:
        """Of a dispatch error."""
        match error:
            case {"Module": {"index": index, "error": raw}}:
                (owner,) = [each for each in self.runtime.pallets.values() if each.index == index]
                return next(name for name, place in owner.error_indices.items() if place == raw[0])
        return str(error)

    def sign(self, origin: bytes, call: Any, *, nonce: int, tip: int) -> bytes:
        """An immortal extrinsic."""
        encoded = self.runtime.types.call.encode(call)
        ext = Extrinsic(b"", b"", origin, b"", Era(b"\x00"), nonce, tip, call, encoded)
        payload = ext.payload(
            spec_version=SPEC_VERSION,
            transaction_version=TRANSACTION_VERSION,
            genesis=self.genesis.hash,
            birth=self.genesis.hash,
        )
        return assemble(ext, self.by_address[origin].key.sign_recoverable(keccak256(payload), hasher=None))

    def replay(self) -> None:
        """All blocks again, from the genesis: the same hashes, the same state."""
        runtime = Runtime(epoch_length=self.length, network_genesis=self.network_genesis)
        block, state = runtime.genesis(self.funds, now_ms=0), MemoryState()
        state.apply(block.changes)
        for lived in self.blocks:
            block = runtime.execute(lived.extrinsics, state, parent=block, genesis_hash=self.genesis.hash)
            assert block.hash == lived.hash
            state.apply(block.changes)
        assert dict(state.items()) == dict(self.state.items())

    # what is there

    def view(self) -> ReadState:
        """The state as the next call will see it."""
        return self.builder.state

    def get(self, item: StorageItem, *keys: Any) -> Any:
        raw = self.view().get(item.key(*keys))
        if raw is None:
            return None if item.optional else item.value.decode_all(item.default_bytes)
        return item.value.decode_all(raw)

    def keys_of(self, item: StorageItem, *keys: Any) -> list[tuple[Any, ...]]:
        return [item.decode_key(key) for key in self.view().keys(item.key(*keys))]

    def subnets(self) -> list[int]:
        return [key for (key,) in self.keys_of(n.SubnetsData)]

    def nodes(self, subnet_id: int) -> list[int]:
        return [node for _, node in self.keys_of(n.SubnetNodeIdHotkey, subnet_id)]

    # consensus

    def consensus(self) -> None:
        """Most of the elected propose, most validators attest, in the block after their slot."""
        for subnet_id in self.subnets():
            slot = self.get(n.SubnetSlot, subnet_id)
            if slot is None or (self.builder.number - 1) % self.length != slot:
                continue
            epoch = (self.builder.number - slot) // self.length
            elected = self.get(n.SubnetElectedValidator, subnet_id, epoch)
            hotkey = None if elected is None else self.get(n.SubnetNodeIdHotkey, subnet_id, elected)
            if hotkey is None or self.rng.random() < 0.05:
                continue
            call = next(each for each in CALLS if each.name == "propose_attestation")
            args = self.arguments(call) | {"subnet_id": subnet_id}
            args["data"] = [
                {"subnet_node_id": node, "score": self.rng.choice((0, *(TENSOR,) * 9))}
                for node in self.nodes(subnet_id)
                if self.rng.random() < 0.95
            ]
            self.submit("propose_attestation", hotkey, args)
            eager = self.rng.choice((0.95, 0.95, 0.95, 0.95, 0.95, 0.2))
            for node in self.nodes(subnet_id):
                if self.rng.random() < eager:
                    attestor = self.get(n.SubnetNodeIdHotkey, subnet_id, node)
                    self.submit("attest", attestor, {"subnet_id": subnet_id, "attest_data": None})

    def overwatch(self) -> None:
        """Overwatchers commit to weights of all subnets at the start of their epoch and reveal them at its end."""
        name = {1: "commit_overwatch_subnet_weights", self.length - 1: "reveal_overwatch_subnet_weights"}.get(
            self.builder.number % self.length
        )
        for call in (each for each in CALLS if each.name == name):
            for (node,) in self.keys_of(n.OverwatchNodes):
                args = self.arguments(call) | {"overwatch_node_id": node}
                self.submit(call.name, self.get(n.OverwatchNodeIdHotkey, node), args)

    # arguments

    def arguments(self, call: Call) -> dict[str, Any]:
        """Drawn by type and name, made to fit each other more often than chance would."""
        self.calling = call.name
        args = {name: self.draw(kind, name) for name, kind in call.args}
        subnet_id, node_id = args.get("subnet_id"), args.get("subnet_node_id")
        if subnet_id is not None and node_id is not None and self.likely():
            args["subnet_node_id"] = self.choose(self.nodes(subnet_id), node_id)
            hotkey = self.get(n.SubnetNodeIdHotkey, subnet_id, args["subnet_node_id"])
            if "hotkey" in args and hotkey is not None:
                args["hotkey"] = hotkey
        if {"hotkey", "stake_to_be_added"} <= args.keys() and call.name.startswith("register") and self.likely():
            used = {key for (key,) in self.keys_of(n.HotkeyOwner)}
            args["hotkey"] = self.choose([each for each in self.hotkeys if each not in used], args["hotkey"])
        if call.name == "remove_stake":
            hotkey, staked = self.choose(self.keys_of(n.AccountSubnetStake), (args["hotkey"], subnet_id))
            args |= {"hotkey": hotkey, "subnet_id": staked}
            args["stake_to_be_removed"] = self.part(self.get(n.AccountSubnetStake, hotkey, staked))
        if call.name == "remove_overwatch_stake":
            (args["hotkey"],) = self.choose(self.keys_of(n.AccountOverwatchStake), (args["hotkey"],))
            args["stake_to_be_removed"] = self.part(self.get(n.AccountOverwatchStake, args["hotkey"]))
        if "overwatch_node_id" in args and self.likely():
            (args["overwatch_node_id"],) = self.choose(self.keys_of(n.OverwatchNodes), (1,))
            hotkey = self.get(n.OverwatchNodeIdHotkey, args["overwatch_node_id"])
            args |= {} if hotkey is None or "hotkey" not in args else {"hotkey": hotkey}
        if call.name == "update_swap_queue":
            args["id"] = self.choose(self.get(n.SwapQueueOrder), args["id"])
        return args

    def likely(self) -> bool:
        """Nine times in ten."""
        return self.rng.random() < 0.9

    def origin(self, call: Call, args: dict[str, Any]) -> bytes:
        """Who may sign it, mostly; fits shares to what the signer has."""
        shares = next((name for name, _ in call.args if "shares" in name), None)
        if shares is not None and self.likely():
            return self.holder(shares, args)
        fitting: list[bytes] = []
        hotkey, subnet_id = args.get("hotkey", args.get("old_hotkey")), args.get("subnet_id")
        if hotkey is not None:
            fitting += [self.get(n.HotkeyOwner, hotkey)] * 3
        if subnet_id is not None and args.get("subnet_node_id") is not None:
            node_key = self.get(n.SubnetNodeIdHotkey, subnet_id, args["subnet_node_id"])
            fitting += [] if node_key is None else [self.get(n.HotkeyOwner, node_key)] * 3 + [node_key]
            beneficiary = self.get(n.SubnetNodesData, subnet_id, args["subnet_node_id"])["delegate_account"]
            fitting += [] if beneficiary is None else [beneficiary["account_id"]] * 2
        elif subnet_id is not None:
            owner, heir = self.get(n.SubnetOwner, subnet_id), self.get(n.PendingSubnetOwner, subnet_id)
            fitting += [owner] * 3 + [heir]
        if args.get("overwatch_node_id") is not None:
            node_key = self.get(n.OverwatchNodeIdHotkey, args["overwatch_node_id"])
            fitting += [] if node_key is None else [self.get(n.HotkeyOwner, node_key)] * 3 + [node_key]
        waiting = self.get(n.SwapCallQueue, args["id"]) if "id" in args else None
        fitting += [] if waiting is None else [content["account_id"] for content in waiting["call"].values()]
        known = [each for each in fitting if each in self.by_address]
        return self.rng.choice(known) if known and self.likely() else self.rng.choice(self.coldkeys)

    def holder(self, shares: str, args: dict[str, Any]) -> bytes:
        """Somebody who has shares, which the arguments then name."""
        of_node = "node" in shares
        item = n.AccountNodeDelegateStakeShares if of_node else n.AccountSubnetDelegateStakeShares
        held = [keys for keys in self.keys_of(item) if keys[0] in self.by_address]
        if not held:
            return self.rng.choice(self.coldkeys)
        keys = self.rng.choice(held)
        source = "from_" if "from_subnet_id" in args else ""
        args[f"{source}subnet_id"] = keys[1]
        if of_node:
            args[f"{source}subnet_node_id"] = keys[2]
        args[shares] = self.part(self.get(item, *keys))
        who: bytes = keys[0]
        return who

    def part(self, whole: int) -> int:
        """Of an amount: some, all, none, or more."""
        return self.rng.choice((whole // 2, whole // 3, whole, whole - 1 if whole else 0, whole + 1, 0, 2**128 - 1))

    def choose(self, values: list[Any], otherwise: Any) -> Any:
        return self.rng.choice(values) if values else otherwise

    def fresh_peer(self) -> bytes:
        self.peers += self.rng.random() < 0.9
        return peer(1000 + self.peers)

    def draw(self, kind: s.Type, name: str) -> Any:
        """A value of a type; what is known of the argument's name makes it likelier to mean something."""
        rng = self.rng
        if name == "commit_weights":
            digest = hashlib.blake2b(s.u128.encode(WEIGHT) + s.bytes_.encode(SALT), digest_size=32).digest()
            return [{"subnet_id": each, "weight": digest} for each in self.subnets()]
        if name == "reveals":
            return [{"subnet_id": each, "weight": WEIGHT, "salt": SALT} for each in self.subnets()]
        if name.endswith("subnet_id"):
            return self.choose(self.subnets(), 1) if self.likely() else rng.choice((0, 1, 2**32 - 1))
        if kind.ident == s.opaque_peer_id.ident:
            return self.fresh_peer()
        match kind:
            case s.Integer() | s.Compact():
                return self.draw_number(kind.inner if isinstance(kind, s.Compact) else kind, name)
            case s.Boolean():
                return rng.random() < 0.5
            case s.Newtype() if kind.ident == s.account_id.ident:
                if "hotkey" not in name:
                    return rng.choice(self.coldkeys)
                owned = [key for (key,) in self.keys_of(n.HotkeyOwner)]
                return rng.choice(self.hotkeys if "new" in name or rng.random() < 0.3 or not owned else owned)
            case s.Newtype():
                return self.draw(kind.inner, name)
            case s.OptionOf():
                return None if rng.random() < 0.4 else self.draw(kind.inner, name)
            case s.Bytes():
                if name == "multiaddr":
                    return BOOTNODE_ADDRESS[:7] + bytes(rng.choices(range(1, 9)))
                texts = (b"text", b"%d" % rng.randrange(10**6), rng.randbytes(40))
                return rng.choice(texts) if self.likely() else b""
            case s.ArrayU8():
                return rng.randbytes(kind.length)
            case s.Text():
                return rng.choice(("", "text"))
            case s.BTreeMap() if name in ("bootnodes", "add"):
                return {BOOTNODE: BOOTNODE_ADDRESS} if self.likely() else {}
            case s.BTreeMap() if "coldkey" in name:
                return dict.fromkeys(self.coldkeys[: rng.choice((2, 3, 5, 6))], rng.choice((1, 2, 5)))
            case s.BTreeMap():
                return {self.draw(kind.key, name): self.draw(kind.value, name) for _ in range(rng.randrange(3))}
            case s.BTreeSet():
                return {self.draw(kind.inner, name) for _ in range(rng.randrange(3))}
            case s.Vec():
                return [self.draw(kind.inner, name) for _ in range(rng.randrange(4))]
            case s.TupleOf():
                return tuple(self.draw(each, name) for each in kind.inner)
            case s.Struct():
                value = {field: self.draw(each, field) for field, each in kind.fields.items()}
                if {"min_stake", "max_stake"} <= value.keys() and self.likely():
                    value |= {"min_stake": 100 * TENSOR, "max_stake": 1000 * TENSOR}
                    value["delegate_stake_percentage"] = 10**17
                return value
            case s.Enum():
                variant = rng.choice(list(kind.variants))
                fields = kind.variants[variant].fields
                if isinstance(fields, dict):
                    return {variant: {field: self.draw(each, field) for field, each in fields.items()}}
                return variant if fields is None else {variant: self.draw(_type(fields), variant)}
        raise AssertionError(f"no value is drawn for {name}: {kind!r}")

    def draw_number(self, kind: s.Integer, name: str) -> int:
        rng, most = self.rng, 2 ** (8 * kind.size - kind.signed) - 1
        if name.startswith("max_") and self.likely():
            value = 2**100
        elif name.endswith("node_id") or name == "id":
            value = rng.choice((0, 1, 1, 2, 3, 4, 5, 6, 2**32 - 1))
        elif any(word in (self.calling if name == "value" else name) for word in RATE_WORDS):
            value = rng.choice(RATES)
        elif kind.size == 16:
            value = rng.choice((*AMOUNTS, *(rng.randrange(100, 900) * TENSOR for _ in AMOUNTS)))
        else:
            value = rng.choice((0, 1, 2, 3, 5, 10, 100, most))
        return min(value, most)


def _type(fields: s.Type | tuple[s.Type, ...]) -> s.Type:
    return s.TupleOf(fields) if isinstance(fields, tuple) else fields


def found_subnet(machine: Machine, *, nodes: int = 4) -> None:
    """Register a subnet with nodes and delegations and activate it, in one block: what chance would take long for.
    Nothing is done where there is no slot or hotkey left."""
    have = set(machine.subnets())
    name = b"subnet %d" % machine.best.number
    info = {
        "name": name, "repo": name, "description": b"", "misc": b"", "min_stake": 100 * TENSOR,
        "max_stake": 1000 * TENSOR, "delegate_stake_percentage": 10**17,
        "initial_coldkeys": dict.fromkeys(machine.coldkeys, 5), "bootnodes": {BOOTNODE: BOOTNODE_ADDRESS},
    }  # fmt: skip
    owner = machine.coldkeys[0]
    used = {key for (key,) in machine.keys_of(n.HotkeyOwner)}
    free = [each for each in machine.hotkeys if each not in used]
    if len(free) < nodes or len(machine.get(n.AssignedSlots)) >= machine.length - 3:
        return
    if machine.submit("register_subnet", owner, {"max_cost": 2**100, "subnet_data": info}):
        return  # the network is paused, or the owner cannot pay
    (subnet_id,) = set(machine.subnets()) - have
    for place in range(nodes):
        machine.peers += 1
        args = {
            "subnet_id": subnet_id, "hotkey": free[place], "bootnode_peer_info": None,
            "client_peer_info": None, "peer_info": {"peer_id": peer(1000 + machine.peers), "multiaddr": None},
            "delegate_reward_rate": (place % 2) * 10**17,
            "stake_to_be_added": 200 * TENSOR, "unique": None, "non_unique": None, "max_burn_amount": 2**100,
            "delegate_account": {"account_id": machine.coldkeys[5], "rate": 10**17} if place == 3 else None,
        }  # fmt: skip
        machine.submit("register_subnet_node", machine.coldkeys[place % COLDKEYS], args)
    delegation = {"subnet_id": subnet_id, "stake_to_be_added": 300_000 * TENSOR}
    machine.submit("add_to_delegate_stake", machine.coldkeys[4], delegation)
    machine.submit("activate_subnet", owner, {"subnet_id": subnet_id})
