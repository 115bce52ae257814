"""The state transition: what a block and each extrinsic in it do to the state.

PURE: time, the parent's hash and the state are arguments; nothing here waits or draws randomness. The same genesis
and the same extrinsics give the same blocks, byte for byte.

The state root in a header commits to the whole state after the block (overlay.py). It is no Merkle root.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mesh.devchain import extrinsic as xt
from mesh.devchain import metadata
from mesh.devchain import scale as s
from mesh.devchain.overlay import NO_ROOT, MemoryState, Overlay, ReadState, moved_root
from mesh.devchain.pallet import Context, Dispatch, DispatchOther, Pallet, Pays, StorageItem
from mesh.devchain.pallets import RUNTIME_VERSION, SPEC_VERSION, TRANSACTION_VERSION, all_pallets, books, system
from mesh.devchain.pallets.balances import EXISTENTIAL_DEPOSIT_PLANCK, TOTAL_ISSUANCE, BooksLedger
from mesh.devchain.pallets.network.storage import DEV_GENESIS
from mesh.devchain.pallets.timestamp import NOW
from mesh.devchain.pallets.transaction_payment import BASE_FEE_PLANCK, LENGTH_FEE_PLANCK, fee_planck

log = logging.getLogger(__name__)

ZERO_HASH = bytes(32)

header_type = s.struct(
    "",
    parent_hash=s.h256,
    number=s.compact(s.u32),
    state_root=s.h256,
    extrinsics_root=s.h256,
    digest=system.digest,
)
_opaque_extrinsics = s.vec(s.bytes_)


@dataclass(frozen=True)
class Block:
    """A finished block. `changes` are the raw storage changes, None where a key was removed."""

    number: int
    hash: bytes
    header: dict[str, Any]
    extrinsics: tuple[bytes, ...]
    changes: dict[bytes, bytes | None]


@dataclass(frozen=True)
class Outcome:
    """What became of an extrinsic in its block. `error` is the DispatchError's value, None on success."""

    error: Any
    fee_planck: int


class Runtime:
    """The declared pallets, put together.

    `network_genesis` is what plain items of the Network pallet hold at block 0 in place of their defaults. `pallets`
    is for tests; all of them when not given.
    """

    def __init__(
        self,
        *,
        epoch_length: int,
        network_genesis: Mapping[str, Any] = DEV_GENESIS,
        pallets: Sequence[Pallet] | None = None,
    ) -> None:
        self.epoch_length = epoch_length
        chosen = list(all_pallets(epoch_length, network_genesis=network_genesis) if pallets is None else pallets)
        chosen.sort(key=lambda each: each.index)
        self.types = metadata.runtime_types(chosen)
        self.event_record = system.event_record(self.types.event)
        self.events: StorageItem = system.events_item(self.event_record)
        self.pallets = {each.name: each for each in chosen}
        own = self.pallets["System"]
        own.storage = [item for item in own.storage if item.name != "Events"] + [self.events]
        self.events.bind("System")
        self.ledger = BooksLedger(epoch_length)
        self.metadata = metadata.build(chosen, self.types)
        self.apis = {name: (pallet, fn) for pallet in chosen for name, fn in pallet.apis.items()}
        self.holdings = {
            item.prefix: partial(_held_by, item, pallet.holdings[item.name])
            for pallet in chosen
            for item in pallet.storage
            if item.name in pallet.holdings
        }
        self._items = {item.prefix: item for pallet in chosen for item in pallet.storage}

    def parse(self, raw: bytes) -> xt.Extrinsic:
        """Decode an extrinsic; `Refused` 1001 for bytes that are none."""
        try:
            return xt.parse(raw, self.types.call)
        except s.ScaleError as error:
            raise xt.Refused(1001, "Extrinsic has invalid format", str(error)) from error

    def context(self, state: ReadState, *, pallet: str, block: int, parent_hash: bytes) -> Context:
        """A context for reading: its writes and events go nowhere."""
        return Context(
            Overlay(state),
            pallet=self.pallets[pallet],
            ledger=self.ledger,
            block=block,
            parent_hash=parent_hash,
            sink=lambda *_: None,
        )

    def check_entry(self, key: bytes, value: bytes | None) -> StorageItem:
        """The item that a raw entry belongs to; `ScaleError` when it is of none, or its key or value (None for one
        that is removed) is not the item's."""
        item = self._items.get(key[:32])
        if item is None:
            raise s.ScaleError(f"0x{key.hex():.80} is the key of no storage item")
        if item.key(*item.decode_key(key)) != key:
            raise s.ScaleError(f"0x{key.hex():.160} is no key of {item.pallet}.{item.name}")
        if value is not None:
            item.value.decode_all(value)
        return item

    def planck_of(self, key: bytes, raw: bytes | None) -> tuple[int, int]:
        """The planck of which an entry says that (an account has, pallets hold) them."""
        if raw is None:
            return 0, 0
        if key.startswith(system.ACCOUNT.prefix):
            data = system.account_info.decode_all(raw)["data"]
            return int(data["free"] + data["reserved"]), 0
        holding = self.holdings.get(key[:32])
        return 0, 0 if holding is None else holding(raw)

    def check_books(self, state: MemoryState) -> None:
        """`ScaleError` unless accounts and pallets together have what was minted and not burned, and the totals say so:
        with other books a fee or a slash could be more than there is, which no block can bear."""
        ctx = self.context(state, pallet="System", block=0, parent_hash=ZERO_HASH)
        each = [self.planck_of(key, raw) for key, raw in state.items()]
        free, held = sum(has for has, _ in each), sum(holds for _, holds in each)
        minted, burned = (sum(amount for _, amount in ctx.items(item)) for item in (books.MINTED, books.BURNED))
        if (free, held, free + held) != (ctx.get(TOTAL_ISSUANCE), ctx.get(books.HELD), minted - burned):
            raise s.ScaleError("its balances are not what its books say")

    def account(self, state: ReadState, who: bytes) -> dict[str, Any]:
        """`System.Account` of an address."""
        raw = state.get(system.ACCOUNT.key(who))
        value: dict[str, Any] = system.account_info.decode_all(raw or system.ACCOUNT.default_bytes)
        return value

    def check(
        self, ext: xt.Extrinsic, state: ReadState, *, number: int, parent_hash: bytes, genesis_hash: bytes
    ) -> None:
        """Raise `Refused` unless block `number` on top of `parent_hash` could take the extrinsic, apart from
        its nonce being too high."""
        self.check_signature(ext, state, number=number, parent_hash=parent_hash, genesis_hash=genesis_hash)
        info = self.account(state, ext.signer)
        if ext.nonce < info["nonce"]:
            raise xt.invalid(xt.STALE)
        cost = fee_planck(len(ext.raw)) + ext.tip_planck
        if info["data"]["free"] < cost + EXISTENTIAL_DEPOSIT_PLANCK:
            raise xt.invalid(xt.PAYMENT)

    def check_signature(
        self, ext: xt.Extrinsic, state: ReadState, *, number: int, parent_hash: bytes, genesis_hash: bytes
    ) -> None:
        """Raise `Refused` unless the signer signed this call for this chain, these versions and this era."""
        birth = ext.era.birth(number)
        if ext.era.immortal:
            birth_hash: bytes | None = genesis_hash
        elif birth == number - 1:
            birth_hash = parent_hash
        else:
            birth_hash = state.get(system.BLOCK_HASH.key(birth))
        if birth_hash is None:
            raise xt.invalid(xt.ANCIENT_BIRTH)
        payload = ext.payload(
            spec_version=SPEC_VERSION,
            transaction_version=TRANSACTION_VERSION,
            genesis=genesis_hash,
            birth=birth_hash,
        )
        if xt.recover(payload, ext.signature) != ext.signer:
            raise xt.invalid(xt.BAD_PROOF)

    def query_info(self, data: bytes) -> tuple[int, xt.Extrinsic]:
        """(fee without tip in planck, the extrinsic); its signature is not looked at."""
        ext = self.parse(data)
        return fee_planck(len(ext.raw)), ext

    def fee_parts(self, length: int) -> tuple[int, int]:
        """(base, length) parts of the fee in planck."""
        return BASE_FEE_PLANCK, LENGTH_FEE_PLANCK * length

    def genesis(self, fund: Mapping[bytes, int], *, now_ms: int) -> Block:
        """Block 0: the funded accounts and each pallet's genesis."""
        overlay = Overlay(MemoryState())

        def context(pallet: Pallet) -> Context:
            return Context(
                overlay,
                pallet=pallet,
                ledger=self.ledger,
                block=0,
                parent_hash=ZERO_HASH,
                sink=lambda *_: None,
            )

        ctx = context(self.pallets["System"])
        ctx.put(
            system.LAST_RUNTIME_UPGRADE,
            value={"spec_version": SPEC_VERSION, "spec_name": RUNTIME_VERSION["spec_name"]},
        )
        ctx.put(system.NUMBER, value=0)
        ctx.put(NOW, value=now_ms)
        for who, amount in sorted(fund.items()):
            self.ledger.mint(ctx, who, amount, "genesis")
        for pallet in self.pallets.values():
            if pallet.genesis is not None:
                pallet.genesis(context(pallet))
        return _seal(0, ZERO_HASH, moved_root(NO_ROOT, overlay.below, overlay.changes), (), overlay.changes)

    def execute(self, extrinsics: Sequence[bytes], state: ReadState, *, parent: Block, genesis_hash: bytes) -> Block:
        """The block that these extrinsics, the author's own among them, make on top of `parent`.

        `state` is the one after `parent`. Raises `Refused` or `ScaleError` when a block cannot have them.
        """
        call = self.types.call
        match xt.parse_inherent(extrinsics[0], call) if extrinsics else None:
            case {"Timestamp": {"set": {"now": now_ms}}}:
                builder = BlockBuilder(self, state, parent=parent, genesis_hash=genesis_hash, now_ms=now_ms)
            case _:
                raise s.ScaleError("a block whose first extrinsic is not its time")
        for raw in extrinsics[1:]:
            if not xt.is_inherent(raw):
                builder.apply(self.parse(raw))
                continue
            match xt.parse_inherent(raw, call):
                case {"System": {"set_storage": {"items": items}}}:
                    builder.set_storage(dict(items))
                case {"System": {"kill_storage": {"keys": keys}}}:
                    builder.set_storage(dict.fromkeys(keys))
                case _:
                    raise s.ScaleError("an author's extrinsic that sets neither time nor storage")
        return builder.finish()


class BlockBuilder:
    """One block in the making: made, `apply` for each extrinsic, then `finish`."""

    def __init__(self, runtime: Runtime, state: ReadState, *, parent: Block, genesis_hash: bytes, now_ms: int) -> None:
        self.runtime = runtime
        self.number = parent.number + 1
        self.parent = parent
        self.genesis_hash = genesis_hash
        self.state = Overlay(state)
        self.extrinsics: list[bytes] = []
        self._events: list[bytes] = []
        self._phase: Any = "Initialization"
        self._start(now_ms)

    def apply(self, ext: xt.Extrinsic) -> Outcome:
        """Run an extrinsic. `Refused` when it may not be in this block: then nothing has changed.

        That is also what becomes of one that the runtime cannot bear, as only a state set by hand can make it: it must
        not keep the others out of the block.
        """
        block, mark = self.state, len(self._events)
        self.state = Overlay(block)
        try:
            outcome = self._apply(ext)
            self.state.commit()
        except Exception as error:  # said above: it is refused, and the others go on
            del self._events[mark:]
            if isinstance(error, xt.Refused):
                raise
            log.exception("extrinsic 0x%s cannot be applied", ext.hash.hex())
            raise xt.invalid(f"The runtime cannot apply it: {error!r:.120}") from error
        finally:
            self.state = block
        self.extrinsics.append(ext.raw)
        return outcome

    def _apply(self, ext: xt.Extrinsic) -> Outcome:
        runtime = self.runtime
        runtime.check(ext, self.state, number=self.number, parent_hash=self.parent.hash, genesis_hash=self.genesis_hash)
        info = runtime.account(self.state, ext.signer)
        if ext.nonce > info["nonce"]:
            raise xt.invalid(xt.FUTURE)
        self._phase = {"ApplyExtrinsic": len(self.extrinsics)}
        outer = self._context("System", self.state)
        info["nonce"] += 1
        outer.put(system.ACCOUNT, ext.signer, value=info)
        withdrawn = fee_planck(len(ext.raw)) + ext.tip_planck
        runtime.ledger.withdraw_fee(outer, ext.signer, withdrawn)

        pays, error = self._dispatch(ext)

        due = 0 if error is None and pays is Pays.NO else withdrawn
        runtime.ledger.settle_fee(outer, ext.signer, withdrawn=withdrawn, due=due)
        outer.emit_for(
            "TransactionPayment",
            "TransactionFeePaid",
            who=ext.signer,
            actual_fee=due,
            tip=ext.tip_planck if due else 0,
        )
        dispatch_info = {"weight": system.BASE_WEIGHT, "class": "Normal", "pays_fee": pays.value}
        if error is None:
            outer.emit("ExtrinsicSuccess", dispatch_info=dispatch_info)
        else:
            outer.emit("ExtrinsicFailed", dispatch_error=error, dispatch_info=dispatch_info)
        return Outcome(error, due)

    def set_storage(self, entries: Mapping[bytes, bytes | None]) -> None:
        """Write raw entries, None removing one, as the author: the block says so in an extrinsic of its own.

        What accounts, or pallets for them, gain or lose by it is booked as minted or burned under "set-storage".
        """
        calls: dict[str, dict[str, list[Any]]] = {
            "set_storage": {"items": [(key, value) for key, value in entries.items() if value is not None]},
            "kill_storage": {"keys": [key for key, value in entries.items() if value is None]},
        }
        for name, args in calls.items():
            if any(args.values()):
                self._phase = {"ApplyExtrinsic": len(self.extrinsics)}
                self._inherent({"System": {name: args}})
        ctx = self._context("System", self.state)
        for key, value in entries.items():
            before = self._planck(key)
            self.state.put(key, value)
            free, held = (now - then for now, then in zip(self._planck(key), before, strict=True))
            self.runtime.ledger.book_set(ctx, free=free, held=held)

    def _planck(self, key: bytes) -> tuple[int, int]:
        return self.runtime.planck_of(key, self.state.get(key))

    def finish(self) -> Block:
        """Close the block."""
        ctx = self._context("System", self.state)
        self.state.put(self.runtime.events.key(), s.encode_compact(len(self._events)) + b"".join(self._events))
        ctx.put(system.EVENT_COUNT, value=len(self._events))
        return _seal(
            self.number,
            self.parent.hash,
            moved_root(self.parent.header["state_root"], self.state.below, self.state.changes),
            tuple(self.extrinsics),
            self.state.changes,
        )

    def _dispatch(self, ext: xt.Extrinsic) -> tuple[Pays, Any]:
        """(who pays, the DispatchError or None). Writes and events of a call that fails are dropped."""
        ((pallet_name, content),) = ext.call.items()
        call_name, args = (content, {}) if isinstance(content, str) else next(iter(content.items()))
        pallet = self.runtime.pallets[pallet_name]
        call = next(each for each in pallet.calls if each.name == call_name)
        inner = Overlay(self.state)
        mark = len(self._events)
        try:
            pays = call.run(self._context(pallet_name, inner), ext.signer, args)
        except Dispatch as failure:
            owner = self.runtime.pallets[failure.pallet or pallet_name]
            index = owner.error_indices[failure.error]
            error: Any = {"Module": {"index": owner.index, "error": bytes([index, 0, 0, 0])}}
        except DispatchOther as failure:
            error = failure.error
        except Exception:  # a call that raises fails alone: it must not keep the block from being made
            log.exception("call %s.%s raised; it fails with Other", pallet_name, call_name)
            error = "Other"
        else:
            inner.commit()
            return pays, None
        del self._events[mark:]
        return Pays.YES, error

    def _start(self, now_ms: int) -> None:
        ctx = self._context("System", self.state)
        ctx.put(system.NUMBER, value=self.number)
        ctx.put(system.PARENT_HASH, value=self.parent.hash)
        ctx.put(system.BLOCK_HASH, self.number - 1, value=self.parent.hash)
        if self.number > system.BLOCK_HASH_COUNT:
            ctx.remove(system.BLOCK_HASH, self.number - 1 - system.BLOCK_HASH_COUNT)
        ctx.put(system.DIGEST, value={"logs": []})
        for pallet in self.runtime.pallets.values():
            if pallet.on_initialize is not None:
                pallet.on_initialize(self._context(pallet.name, self.state))
        now_ms = max(now_ms, ctx.get(NOW) + 1)
        ctx.put(NOW, value=now_ms)
        self._phase = {"ApplyExtrinsic": 0}
        self._inherent({"Timestamp": {"set": {"now": now_ms}}})

    def _inherent(self, call: Any) -> None:
        self.extrinsics.append(xt.inherent(self.runtime.types.call.encode(call)))
        self._context("System", self.state).emit(
            "ExtrinsicSuccess",
            dispatch_info={"weight": system.BASE_WEIGHT, "class": "Mandatory", "pays_fee": "Yes"},
        )

    def _context(self, pallet: str, state: Overlay) -> Context:
        return Context(
            state,
            pallet=self.runtime.pallets[pallet],
            ledger=self.runtime.ledger,
            block=self.number,
            parent_hash=self.parent.hash,
            sink=self._record,
        )

    def _record(self, pallet: str, event: str, content: Any) -> None:
        body = event if content is None else {event: content}
        record = {"phase": self._phase, "event": {pallet: body}, "topics": []}
        self._events.append(self.runtime.event_record.encode(record))  # one that does not fit fails its own call only


def _held_by(item: StorageItem, count: Callable[[Any], int], raw: bytes) -> int:
    return count(item.value.decode_all(raw))


def header_hash(header: Mapping[str, Any]) -> bytes:
    """A block's hash."""
    return xt.blake2_256(header_type.encode(header))


def extrinsics_root(extrinsics: Sequence[bytes]) -> bytes:
    """What a header says of its block's extrinsics."""
    return xt.blake2_256(_opaque_extrinsics.encode(list(extrinsics)))


def _seal(
    number: int,
    parent_hash: bytes,
    state_root: bytes,
    extrinsics: tuple[bytes, ...],
    changes: dict[bytes, bytes | None],
) -> Block:
    header = {
        "parent_hash": parent_hash,
        "number": number,
        "state_root": state_root,
        "extrinsics_root": extrinsics_root(extrinsics),
        "digest": {"logs": []},
    }
    return Block(number, header_hash(header), header, extrinsics, dict(changes))
