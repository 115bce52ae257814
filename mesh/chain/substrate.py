"""The Chain protocol over a Substrate node's JSON-RPC.

What it is made of: connection.py keeps one websocket up and asks from one worker thread, session.py and facts.py read
and check what the node tells, submitting.py makes submissions happen exactly once. Works with any node that answers the
standard methods: nothing here needs `network_*` or the dev chain's own.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from mesh.chain import facts, runtime, session
from mesh.chain.config import ChainConfig as ChainConfig
from mesh.chain.connection import Connection
from mesh.chain.dialect import PALLET, Call, Dialect, Read
from mesh.chain.local import require_local_for_dev_key
from mesh.chain.runtime import SigningContext
from mesh.chain.session import Session
from mesh.chain.submitting import Intent, Submitter
from mesh.chain.types import Balance, BlockRef, Event, Receipt, Score, Snapshot, Submission, SubnetInfo
from mesh.errors import CallRefused, ChainError, ChainUnavailable, first_leaf
from mesh.identity import AccountKey
from mesh.peer import PeerInfo

_UNSIGNED = b"\x01" * runtime.SIGNATURE_BYTES
"""The signature of what is only priced: of the right length, and nobody can submit it."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A call as it would be signed, read back from the very bytes."""

    raw: bytes
    call: str
    """`Pallet.call`, in the dialect of the chain."""
    args: dict[str, object]


class SubstrateChain:
    """Implements mesh.chain.client.Chain. `run()` must run; see the protocol for what each method means.

    `journal_dir` holds the write-ahead journals (one file per chain and account), `cache_dir` raw metadata. `recover`
    names accounts whose interrupted submissions are settled when `run()` starts; others are at their next submission.
    """

    def __init__(
        self,
        config: ChainConfig,
        *,
        journal_dir: Path,
        cache_dir: Path | None = None,
        recover: Sequence[bytes] = (),
        rng: random.Random,
    ) -> None:
        self._config = config
        self._recover = tuple(recover)
        self._connection = Connection(config, cache_dir=cache_dir, rng=rng)
        self._submitter = Submitter(self._connection, journal_dir=journal_dir)

    # --- connection -------------------------------------------------------------------------------------------

    @property
    def genesis(self) -> bytes:
        """Hash of block 0. Raises ChainUnavailable before run() has started."""
        if self._connection.genesis is None:
            raise ChainUnavailable("the chain was not reached yet")
        return self._connection.genesis

    @property
    def epoch_length(self) -> int:
        """Constant Network.EpochLength. Raises ChainUnavailable before run() has started."""
        if self._connection.epoch_length is None:
            raise ChainUnavailable("the chain was not reached yet")
        return self._connection.epoch_length

    @property
    def dialect(self) -> Dialect:
        """The pallet's dialect. Raises ChainUnavailable while there is no connection."""
        return self._connection.here().dialect

    @property
    def url(self) -> str:
        """The URL in use. Raises ChainUnavailable while there is no connection."""
        return self._connection.here().url

    @property
    def chain_type(self) -> str:
        """`system_chainType`, empty when the node does not say. Raises ChainUnavailable without a connection."""
        return self._connection.here().chain_type

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, keep the connection, follow heads; started() once usable. Raises WrongChain when the first node
        reached is no chain for mesh; after that it only logs and tries on."""
        fatal: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connection.run)
                await self._connection.until(lambda: self._connection.session is not None)
                for account in self._recover:
                    await self.recover(account)
                await self._connection.until(lambda: self._connection.best is not None)
                task_status.started()
        except* ChainError as group:
            fatal = first_leaf(group)
        finally:
            await self._submitter.close()
        if fatal is not None:  # raised out here, so that the caller gets the error and not a group
            raise fatal

    # --- heads ------------------------------------------------------------------------------------------------

    async def heads(self) -> AsyncIterator[BlockRef]:
        """New best blocks from now on; a slow reader gets the newest only."""
        here, last = self._connection, None
        while True:
            await here.until(lambda: here.best is not None and here.best != last)  # noqa: B023
            last = here.best
            assert last is not None
            yield last

    async def head(self) -> BlockRef:
        """The best block, asked of the node."""
        return await self._connection.ask(session.head)

    async def finalized(self) -> BlockRef:
        """The last finalized block."""
        return await self._connection.ask(session.finalized)

    async def block_hash(self, number: int) -> bytes:
        """Hash of a block of the best chain. Raises BlockUnavailable when there is none yet."""
        return await self._connection.ask(lambda s: session.block_hash(s, number))

    async def timestamp_ms(self) -> int:
        """Timestamp.Now of the best block."""
        now = await self.storage("Timestamp", "Now")
        if not isinstance(now, int):
            raise ChainError("the chain's timestamp is no integer")
        return now

    # --- reads ------------------------------------------------------------------------------------------------

    async def resolve_subnet_id(self, subnet_id: int) -> int:
        """The real id of a friendly or real one. Raises ChainError when there is no such subnet."""
        return await self._connection.ask(lambda s: facts.resolve_subnet_id(s, subnet_id))

    async def subnet(self, subnet_id: int, at: bytes | None = None) -> SubnetInfo:
        """Raises ChainError when there is no such subnet."""
        return await self._connection.ask(lambda s: facts.subnet(s, subnet_id, at))

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        """All registered nodes of a subnet at one block."""
        return await self._connection.ask(lambda s: facts.snapshot(s, subnet_id, at))

    async def bootnodes(self, subnet_id: int) -> tuple[PeerInfo, ...]:
        """Bootnodes listed on chain by the subnet; malformed entries are left out."""
        return await self._connection.ask(lambda s: facts.bootnodes(s, subnet_id))

    async def elected(self, subnet_id: int, epoch: int) -> int | None:
        """Node id elected to propose in subnet epoch `epoch`, or None."""
        return await self._connection.ask(lambda s: facts.elected(s, subnet_id, epoch))

    async def submission(self, subnet_id: int, epoch: int) -> Submission | None:
        """The proposal made in subnet epoch `epoch`, or None."""
        return await self._connection.ask(lambda s: facts.submission(s, subnet_id, epoch))

    async def balance(self, account: bytes) -> Balance:
        """Free and reserved planck and the nonce."""
        return await self._connection.ask(lambda s: facts.balance(s, account))

    async def events(self, at: bytes) -> tuple[Event, ...]:
        """Events of the block with this hash."""
        records = await self._connection.ask(lambda s: facts.events(s, at))
        return tuple(record.event for record in records)

    async def storage(self, pallet: str, item: str, *keys: object, at: bytes | None = None) -> object:
        """One decoded storage value. Raises CallRefused for an item or key the metadata does not have."""
        read = [Read(item, keys)]
        (value,) = await self._connection.ask(lambda s: session.read_many(s, read, at, pallet))
        return value

    async def storage_map(
        self, pallet: str, item: str, *keys: object, at: bytes | None = None
    ) -> Sequence[tuple[tuple[object, ...], object]]:
        """All entries under a (partial) key, decoded, in the order of their storage keys."""
        return await self._connection.ask(lambda s: session.read_map(s, pallet, item, keys, at))

    async def constant(self, pallet: str, name: str) -> object:
        """A constant of the metadata. Raises CallRefused when there is none."""
        return await self._connection.ask(lambda s: facts.constant(s, pallet, name))

    # --- submitting -------------------------------------------------------------------------------------------

    async def estimate_fee(self, call: str, args: Mapping[str, object], signer: AccountKey) -> int:
        """What `submit` of the same would cost, in planck. Nothing valid is signed. Raises CallRefused."""
        return await self.fee_of((await self.preview(call, args, signer)).raw, signer)

    async def fee_of(self, raw: bytes, signer: AccountKey) -> int:
        """What a call's bytes would cost, in planck. Nothing valid is signed."""

        def job(s: Session) -> int:
            nonce = facts.next_nonce(s, signer.account_id)
            era = runtime.Era(session.head(s).number, self._config.era_blocks)
            context = SigningContext(s.version, s.genesis, s.genesis, nonce, era)
            extrinsic = runtime.build_extrinsic(
                s.metadata, raw, context, account=signer.account_id, signature=_UNSIGNED
            )
            return facts.fee(s, extrinsic)

        return await self._connection.ask(job)

    def require_may_sign(self, account: bytes) -> None:
        """Raises WrongChain when this is a public development account and the chain is not this user's own."""
        here = self._connection.here()
        require_local_for_dev_key(
            account, url=here.url, chain_type=here.chain_type, genesis=here.genesis, said=self._config.test_chain
        )

    async def preview(self, call: str, args: Mapping[str, object], signer: AccountKey) -> Preview:
        """What `submit` of the same would sign, for `submit_shown`. Raises CallRefused."""
        pallet, name = _split(call)

        def job(s: Session) -> Preview:
            raw = facts.encode_call(s, pallet, name, args, signer.account_id)
            return Preview(raw, *runtime.decode_call(s.metadata, raw))

        return await self._connection.ask(job)

    async def submit_shown(self, shown: Preview, signer: AccountKey) -> Receipt:
        """`submit` of these very bytes: nothing is looked up or encoded again since they were shown. Raises the same,
        CallRefused when the chain would read the bytes as anything but what was shown."""
        self.require_may_sign(signer.account_id)
        intent = Intent(shown.raw, shown.call, says=(shown.call, shown.args))
        return await self._submitter.submit(intent, signer)

    async def submit(self, call: str, args: Mapping[str, object], signer: AccountKey) -> Receipt:
        """Sign, submit, wait until it is in a block: exactly once, also across a crash (submitting.py says how).

        Raises CallRefused, WrongChain (a public development key on a chain that is not local), ExtrinsicInvalid,
        ExtrinsicFailed, ExtrinsicLost, and ChainUnavailable when it is in no block within `submit_timeout_s` (it may
        still get there; the same call continues it).
        """
        return await self.submit_shown(await self.preview(call, args, signer), signer)

    async def propose(self, subnet_id: int, scores: Sequence[Score], *, args: bytes, hotkey: AccountKey) -> Receipt:
        """`propose_attestation`, in the dialect's form, for the subnet epoch of the best block and no other."""
        return await self._vote(subnet_id, hotkey, lambda d, node_id: d.propose(subnet_id, node_id, scores, args))

    async def attest(self, subnet_id: int, *, hotkey: AccountKey) -> Receipt:
        """`attest`, in the dialect's form, for the subnet epoch of the best block and no other."""
        return await self._vote(subnet_id, hotkey, lambda d, node_id: d.attest(subnet_id, node_id))

    async def _vote(self, subnet_id: int, hotkey: AccountKey, build: Callable[[Dialect, int | None], Call]) -> Receipt:
        """The pallet counts a vote for whatever epoch its block is in, and an attestation does not say what it attests:
        so its era ends with the epoch, and with it what the journal makes of the same bytes."""

        def job(s: Session) -> Intent:
            node_id = facts.node_of_hotkey(s, subnet_id, hotkey.account_id) if s.dialect.needs_node_id else None
            call = build(s.dialect, node_id)
            raw = runtime.encode_call(s.metadata, PALLET, call.name, call.args)
            says = runtime.decode_call(s.metadata, raw)
            return Intent(raw, f"{PALLET}.{call.name}", until=facts.end_of_epoch(s, subnet_id), says=says)

        intent = await self._connection.ask(job)
        self.require_may_sign(hotkey.account_id)
        return await self._submitter.submit(intent, hotkey)

    async def recover(self, account: bytes) -> None:
        """Settle what earlier runs left in this account's journal: found in a block, sent again as it is, or dead."""
        await self._submitter.recover(account)


def _split(call: str) -> tuple[str, str]:
    """(pallet, call) of `Pallet.call`, the network pallet for a bare name."""
    pallet, separator, name = call.partition(".")
    if not (name if separator else pallet):
        raise CallRefused(f"{call!r} is no call: write Pallet.call")
    return (pallet, name) if separator else (PALLET, pallet)
