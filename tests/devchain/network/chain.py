"""A chain of just the pallets that matter here, without extrinsics: calls go straight to the pallet, in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh.devchain.overlay import MemoryState, Overlay
from mesh.devchain.pallet import Context, Dispatch, Pays
from mesh.devchain.pallets import RUNTIME_VERSION, balances, books, network, system
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.epoch import draw
from mesh.devchain.pallets.network.storage import DEV_GENESIS
from mesh.devchain.scale import TupleOf, encode_fields

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
TENSOR = 10**18
FUND = 1_000_000 * TENSOR

OWNER = bytes.fromhex("3cd0a705a2dc65e5b1e1205896baa2be8a07c6e0")
COLDKEYS = [
    bytes.fromhex("f24ff3a9cf04c71dbc94d0b566f7a27b94566cac"),
    OWNER,
    bytes.fromhex("798d4ba9baf0064ec19eb4f0a1a45785ae9d6dfc"),
]
HOTKEYS = [
    bytes.fromhex("1a642f0e3c3af545e7acbd38b07251b3990914f1"),
    bytes.fromhex("5050a4f4b3f9338c3472dcc01a87c76a144b3c9c"),
    bytes.fromhex("3325a78425f17a7e487eb5666b2bfd93abb06c70"),
]
PEERS = [b"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx%cN" % letter for letter in b"ABC"]
BOOTNODE = b"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
BOOTNODE_ADDRESS = bytes.fromhex(
    "047f000001061f90a5032212209dff3b17d74cf4d38a50d8b6383e92d181a10395a5e73a726dcccbd21bf6f0b9"
)
SUBNET = 128_001


class Chain:
    """Blocks and calls. `events` are those of the block being built: (pallet, name, content)."""

    def __init__(
        self,
        *,
        epoch_length: int = 20,
        genesis: Mapping[str, Any] | None = None,
        fund: Mapping[bytes, int] | None = None,
    ) -> None:
        self.pallet = network.pallet(epoch_length, genesis={**DEV_GENESIS, **(genesis or {})})
        self.ledger = balances.BooksLedger(epoch_length)
        system.pallet(RUNTIME_VERSION)
        balances.pallet(self.ledger)
        books.pallet()
        self.calls = {call.name: call for call in self.pallet.calls}
        self.length = epoch_length
        self.state = Overlay(MemoryState())
        self.block = 0
        self.parent_hash = bytes(32)
        self.events: list[tuple[str, str, Any]] = []
        ctx = self.ctx()
        for who, amount in (fund or dict.fromkeys([*COLDKEYS, *HOTKEYS], FUND)).items():
            self.ledger.mint(ctx, who, amount, "genesis")
        assert self.pallet.genesis is not None
        self.pallet.genesis(ctx)

    def ctx(self, state: Overlay | None = None) -> Context:
        return Context(
            self.state if state is None else state,
            pallet=self.pallet,
            ledger=self.ledger,
            block=self.block,
            parent_hash=self.parent_hash,
            sink=lambda *event: self.events.append(event),
        )

    def next_block(self) -> None:
        """Start the next block."""
        self.parent_hash = hashlib.blake2b(self.parent_hash, digest_size=32).digest()
        self._start()

    def _start(self) -> None:
        self.block += 1
        self.events = []
        assert self.pallet.on_initialize is not None
        self.pallet.on_initialize(self.ctx())

    def to_block(self, number: int) -> None:
        while self.block < number:
            self.next_block()

    def to_slot(self, epoch: int, *, elect: int | None = None, subnet_id: int = SUBNET) -> None:
        """Go to the slot block that starts a subnet epoch; `elect`: under a parent hash that elects this node.

        Where the settlement in that block changes the election slots, the election is overruled instead.
        """
        slot = self.get(s.SubnetSlot, subnet_id)
        self.to_block(epoch * self.length + slot - 1)
        if elect is None:
            self.next_block()
            return
        slots = self.get(s.SubnetNodeElectionSlots, subnet_id)
        guesses = (guess.to_bytes(32, "big") for guess in range(10_000))
        self.parent_hash = next(each for each in guesses if slots[draw(each, subnet_id, epoch, len(slots))] == elect)
        self._start()
        if self.get(s.SubnetNodeElectionSlots, subnet_id) != slots:
            self.ctx().put(s.SubnetElectedValidator, subnet_id, epoch, value=elect)
        assert self.get(s.SubnetElectedValidator, subnet_id, epoch) == elect

    def call(self, name: str, origin: bytes, /, **args: Any) -> Pays:
        """Run a call as the runtime does: arguments through their SCALE, writes dropped when it fails."""
        call = self.calls[name]
        types = TupleOf(tuple(kind for _, kind in call.args))
        encoded = types.encode([args[each] for each, _ in call.args])
        assert set(args) == {each for each, _ in call.args}
        decoded = dict(zip([each for each, _ in call.args], types.decode_all(encoded), strict=True))
        inner = Overlay(self.state)
        mark = len(self.events)
        try:
            pays = call.run(self.ctx(inner), origin, decoded)
        except Exception:
            del self.events[mark:]
            raise
        inner.commit()
        for pallet, event, content in self.events[mark:]:
            if pallet == "Network":
                self.encode_event(event, content)
        return pays

    def error(self, name: str, origin: bytes, /, **args: Any) -> str:
        """The error a call fails with; nothing may have changed."""
        before = dict(self.state.changes)
        with pytest.raises(Dispatch) as caught:
            self.call(name, origin, **args)
        assert self.state.changes == before
        failure = caught.value
        assert failure.pallet is not None or failure.error in self.pallet.error_indices
        return failure.error

    def encode_event(self, event: str, content: Any) -> bytes:
        """The event's bytes; fails when the content does not fit the declaration."""
        return encode_fields(event, self.pallet.event_variants[event].fields, content)

    def get(self, item: Any, *keys: Any) -> Any:
        return self.ctx().get(item, *keys)

    def names(self, pallet: str = "Network") -> list[str]:
        return [event for owner, event, _ in self.events if owner == pallet]

    def event(self, name: str) -> Any:
        """The content of the one event of this name."""
        (content,) = [content for owner, event, content in self.events if owner == "Network" and event == name]
        return content

    def event_of(self, name: str, place: int) -> Any:
        """The content of one of several events of this name."""
        return [content for owner, event, content in self.events if owner == "Network" and event == name][place]

    def stake_of(self, node: int) -> int:
        return int(self.get(s.AccountSubnetStake, self.get(s.SubnetNodeIdHotkey, SUBNET, node), SUBNET))

    # --- a subnet's life ------------------------------------------------------------------------------------------

    def register_subnet(self, **changes: Any) -> None:
        self.call("register_subnet", OWNER, max_cost=2000 * TENSOR, subnet_data=subnet_data(**changes))

    def register_node(
        self, place: int, *, coldkey: bytes | None = None, hotkey: bytes | None = None, **changes: Any
    ) -> None:
        self.call(
            "register_subnet_node",
            COLDKEYS[place] if coldkey is None else coldkey,
            **node_args(place, hotkey=hotkey, **changes),
        )

    def make_active(self, *, delegate: int = 400_000 * TENSOR) -> None:
        """The recorded life: registered at block 8, nodes at 9, 10, 11, delegation at 12, active at 13."""
        self.to_block(8)
        self.register_subnet()
        for place in range(3):
            self.next_block()
            self.register_node(place)
        self.next_block()
        if delegate:
            self.call("add_to_delegate_stake", COLDKEYS[2], subnet_id=SUBNET, stake_to_be_added=delegate)
        self.next_block()
        self.call("activate_subnet", OWNER, subnet_id=SUBNET)

    def propose(self, node: int, scores: Mapping[int, int], **wishes: Any) -> Pays:
        return self.call("propose_attestation", self.hotkey(node), **proposal(scores, **wishes))

    def attest(self, node: int) -> Pays:
        return self.call("attest", self.hotkey(node), subnet_id=SUBNET, attest_data=None)

    def hotkey(self, node: int) -> bytes:
        found: bytes = self.get(s.SubnetNodeIdHotkey, SUBNET, node)
        return found

    def agree(self, epoch: int, scores: Mapping[int, int], *, elect: int, **wishes: Any) -> None:
        """One whole subnet epoch from its slot block: `elect` proposes, all validators attest."""
        self.to_slot(epoch, elect=elect)
        self.next_block()
        self.propose(elect, scores, **wishes)
        for node in self.get(s.SubnetNodeElectionSlots, SUBNET):
            if node != elect:
                self.attest(node)


def proposal(
    scores: Mapping[int, int],
    *,
    prioritize: int | None = None,
    remove: int | None = None,
    args: bytes | None = None,
) -> dict[str, Any]:
    return {
        "subnet_id": SUBNET,
        "data": [{"subnet_node_id": node, "score": score} for node, score in scores.items()],
        "prioritize_queue_node_id": prioritize,
        "remove_queue_node_id": remove,
        "args": args,
        "attest_data": None,
    }


def subnet_data(**changes: Any) -> dict[str, Any]:
    return {
        "name": b"sub-one",
        "repo": b"https://x/y",
        "description": b"d",
        "misc": b"m",
        "min_stake": 100 * TENSOR,
        "max_stake": 1000 * TENSOR,
        "delegate_stake_percentage": TENSOR // 10,
        "initial_coldkeys": dict.fromkeys(COLDKEYS, 1),
        "bootnodes": {BOOTNODE: BOOTNODE_ADDRESS},
        **changes,
    }


def node_args(place: int, *, hotkey: bytes | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "subnet_id": SUBNET,
        "hotkey": HOTKEYS[place] if hotkey is None else hotkey,
        "peer_info": {"peer_id": PEERS[place] if place < 3 else peer(place), "multiaddr": None},
        "bootnode_peer_info": None,
        "client_peer_info": None,
        "delegate_reward_rate": 0,
        "stake_to_be_added": 200 * TENSOR,
        "unique": None,
        "non_unique": None,
        "delegate_account": None,
        "max_burn_amount": 100 * TENSOR,
        **changes,
    }


def peer(number: int) -> bytes:
    """The text of some peer id."""
    return b"Qm" + bytes(b"ABCDEFGHJK"[int(digit)] for digit in f"{number:044d}")


def account(number: int) -> bytes:
    return hashlib.blake2b(b"account %d" % number, digest_size=20).digest()
