"""`mesh overwatch`: judging subnets from outside, by weights that are committed first and revealed later.

What was committed is kept in a file of mode 0600 until it is revealed: without its salts nothing can be revealed.
"""

from __future__ import annotations

import json as jsonlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh.chain import calls
from mesh.chain.checked import require_number
from mesh.chain.checks import require_at_most, tensor_text
from mesh.chain.portfolio import OverwatchEpoch, OverwatchStanding, overwatch_epoch, overwatch_of
from mesh.cli.acting import ActOptions, Outcome, Plan, Step, act
from mesh.cli.common import ChainOptions, ColdkeyOptions, account_key, amount_or_all, planck, read_chain, share
from mesh.cli.keyfiles import account_in
from mesh.cli.keys import HOTKEY_FILE
from mesh.cli.stake import cooling
from mesh.cli.tables import table
from mesh.errors import CallRefused, ConfigError, KeyFileError
from mesh.identity import (
    AccountKey,
    Overwrite,
    checksum_address,
    parse_address,
    read_secret,
    write_secret,
)
from mesh.peer import PeerID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.chain.client import Chain
    from mesh.chain.substrate import SubstrateChain
    from mesh.chain.types import BlockRef, Receipt

_SALT_BYTES = 32
_MAX_WEIGHTS = 1024
_MAX_COMMITMENT_BYTES = 256 * _MAX_WEIGHTS
"""A weight and its salt take about 130 bytes of JSON."""
_GONE = 0
"""Node id of a stake whose node is removed, on the command line; the chain counts from 1."""


class _Committed(BaseModel):
    """One subnet's weight and its salt, as they are kept until the reveal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subnet_id: Annotated[int, Field(ge=0, lt=2**32)]
    weight: Annotated[int, Field(ge=0, lt=2**128)]
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Commitment(BaseModel):
    """All an overwatch node committed in one overwatch epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Annotated[tuple[_Committed, ...], Field(max_length=_MAX_WEIGHTS)]


def register(
    *,
    amount: str = "100",
    hotkey: str | None = None,
    keys_dir: Path | None = None,
    options: ActOptions | None = None,
) -> None:
    """Become an overwatch node; the coldkey signs and stakes.

    Args:
        amount: TENSOR to stake.
        hotkey: Address of a hotkey that is used nowhere else.
        keys_dir: Folder of `keygen --keys-dir` with it.
    """
    account = _hotkey_address(hotkey, keys_dir)
    amount_planck = planck(amount, name="amount")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        from mesh.cli.readiness import vet_new_hotkey

        warnings = await vet_new_hotkey(chain, account, coldkey=signer.account_id)
        does = (
            f"register an overwatch node with the hotkey {checksum_address(account)} and {tensor_text(amount_planck)}"
        )
        step = Step(does, calls.register_overwatch(account, amount_planck=amount_planck), amount_planck)
        return Plan((step,), warnings, after=partial(_registered, hotkey=account))

    act(options, plan)


async def _registered(chain: SubstrateChain, receipts: Sequence[Receipt], *, hotkey: bytes) -> Outcome:
    """No event tells the id: it is read from the state after the registration."""
    node_id = await chain.storage("Network", "HotkeyOverwatchNodeId", hotkey, at=receipts[-1].block.hash)
    return Outcome((f"overwatch node {node_id} is registered",), {"overwatch_node_id": node_id})


def commit(
    *,
    node_id: int,
    weights: tuple[str, ...],
    hotkey_file: Path | None = None,
    options: ActOptions | None = None,
) -> None:
    """Commit to a weight per subnet, in the first part of an overwatch epoch; the hotkey signs.

    Args:
        node_id: Overwatch node id.
        weights: SUBNET=SHARE, such as 1=0.8; each from 0 to 1.
        hotkey_file: Its hotkey; otherwise MESH_HOTKEY is read.
    """
    chosen = _weights(weights)
    signer = account_key(hotkey_file, ("MESH_HOTKEY",), None, name="hotkey")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        epoch, head = await overwatch_epoch(chain), (await chain.head()).number
        if head >= epoch.reveal_block:
            raise CallRefused(
                f"commits are taken again from block {epoch.end_block} on; this is block {head}, and until then "
                "what was committed is revealed"
            )
        real = {await chain.resolve_subnet_id(subnet): weight for subnet, weight in chosen.items()}
        path = _path(chain.genesis, epoch.epoch, node_id)
        kept = _made(path, epoch.epoch, real)
        is_new = kept is None
        kept = kept or _Commitment(
            weights=tuple(
                _Committed(subnet_id=subnet, weight=weight, salt=os.urandom(_SALT_BYTES).hex())
                for subnet, weight in sorted(real.items())
            )
        )
        call = calls.commit_overwatch(
            node_id,
            {w.subnet_id: calls.overwatch_commitment(w.weight, bytes.fromhex(w.salt)) for w in kept.weights},
        )
        does = f"commit overwatch node {node_id} to weights for {len(real)} subnets in overwatch epoch {epoch.epoch}"
        lines = (
            f"committed; reveal between blocks {epoch.reveal_block} and {epoch.end_block - 1}: "
            f"mesh overwatch reveal --node-id {node_id}{f' --hotkey-file {hotkey_file}' if hotkey_file else ''}",
        )
        values = {"overwatch_epoch": epoch.epoch, "reveal_block": epoch.reveal_block, "end_block": epoch.end_block}
        return Plan(
            (Step(does, call),),
            before=partial(write_secret, path, kept.model_dump_json().encode(), Overwrite.REFUSE) if is_new else None,
            after=partial(_say, outcome=Outcome(lines, values)),
        )

    act(options, plan, signer=signer)


def reveal(*, node_id: int, hotkey_file: Path | None = None, options: ActOptions | None = None) -> None:
    """Reveal what was committed, in the last part of the same overwatch epoch; the hotkey signs.

    Args:
        node_id: Overwatch node id.
        hotkey_file: Its hotkey; otherwise MESH_HOTKEY is read.
    """
    signer = account_key(hotkey_file, ("MESH_HOTKEY",), None, name="hotkey")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        epoch, head = await overwatch_epoch(chain), (await chain.head()).number
        path = _path(chain.genesis, epoch.epoch, node_id)
        kept = _read(path, epoch.epoch)
        if head < epoch.reveal_block:
            raise CallRefused(f"reveals are taken from block {epoch.reveal_block} on; this is block {head}")
        call = calls.reveal_overwatch(node_id, {w.subnet_id: (w.weight, bytes.fromhex(w.salt)) for w in kept.weights})
        return Plan((Step(f"reveal {len(kept.weights)} weights of overwatch node {node_id}", call),))

    act(options, plan, signer=signer)


def remove(*, node_id: int, unfit: bool = False, options: ActOptions | None = None) -> None:
    """Stop being an overwatch node; the stake stays until `mesh overwatch unstake`.

    Args:
        node_id: Overwatch node id.
        unfit: Remove somebody else's node that qualifies no more; anybody may.
    """

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        make = calls.remove_unfit_overwatch if unfit else calls.remove_overwatch
        return Plan((Step(f"remove overwatch node {node_id}", make(node_id)),))

    act(options, plan)


def set_peer(*, node_id: int, subnet_id: int, peer_id: str, options: ActOptions | None = None) -> None:
    """Say with which peer id an overwatch node looks at a subnet, so that the subnet's nodes answer it.

    Args:
        node_id: Overwatch node id.
        subnet_id: Friendly or real id.
        peer_id: PeerID it uses there.
    """
    peer = PeerID.parse(peer_id)

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await chain.resolve_subnet_id(subnet_id)
        does = f"let overwatch node {node_id} look at subnet {subnet_id} as {peer}"
        return Plan((Step(does, calls.set_overwatch_peer(real, node_id, peer)),))

    act(options, plan)


def stake(*, amount: str, node_id: int | None = None, options: ActOptions | None = None) -> None:
    """Stake more on an overwatch node of yours.

    Args:
        amount: `100`, `100.5 TENSOR` or planck.
        node_id: Which one; needed when there are several.
    """
    amount_planck = planck(amount, name="amount")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        own = await _own(chain, signer.account_id, node_id)
        if own.node_id is None:
            raise CallRefused(f"the node of {checksum_address(own.hotkey)} is gone: there is nothing to stake on")
        call = calls.add_overwatch_stake(own.node_id, own.hotkey, amount_planck=amount_planck)
        does = f"stake {tensor_text(amount_planck)} on overwatch node {own.node_id}"
        return Plan((Step(does, call, amount_planck),))

    act(options, plan)


def unstake(
    *, amount: str | None = None, all: bool = False, node_id: int | None = None, options: ActOptions | None = None
) -> None:
    """Take stake off an overwatch node of yours; it can be claimed after the cooldown.

    Args:
        amount: `100`, `100.5 TENSOR` or planck.
        all: All of it, once the node is removed.
        node_id: Which one; needed when there are several. 0 means one that is removed.
    """
    wanted = amount_or_all(amount, everything=all)

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        own = await _own(chain, signer.account_id, node_id)
        amount_planck = own.stake_planck if wanted is None else wanted
        require_at_most(amount_planck, own.stake_planck, what="the overwatch stake")
        call = calls.remove_overwatch_stake(own.hotkey, amount_planck=amount_planck)
        does = f"take {tensor_text(amount_planck)} of overwatch stake"
        return Plan((Step(does, call),), after=partial(cooling, account=signer.account_id))

    act(options, plan)


def show(
    *,
    address: str | None = None,
    json: bool = False,
    coldkey: ColdkeyOptions | None = None,
    chain: ChainOptions | None = None,
) -> None:
    """Show the overwatch epoch, and the overwatch nodes of a coldkey.

    Args:
        address: Whose; default is the coldkey's, all nodes' ids when there is none.
        json: Print one JSON object.
    """
    account = parse_address(address) if address else _coldkey_or_none(coldkey)

    async def read(client: Chain) -> _Seen:
        head = await client.head()
        entries = await client.storage_map("Network", "OverwatchNodes", at=head.hash)
        return _Seen(
            head=head,
            epoch=await overwatch_epoch(client, at=head),
            own=await overwatch_of(client, account, at=head.hash) if account else (),
            all_ids=tuple(sorted(require_number(keys[0], "overwatch node id") for keys, _ in entries)),
        )

    head, epoch, nodes, all_ids = read_chain(chain, read)
    phase = "commit" if head.number < epoch.reveal_block else "reveal"
    if json:
        own = [
            {"node_id": n.node_id, "hotkey": checksum_address(n.hotkey), "stake_planck": str(n.stake_planck)}
            for n in nodes
        ]
        said = {
            "block": head.number,
            "epoch": epoch.epoch,
            "phase": phase,
            "reveal_block": epoch.reveal_block,
            "end_block": epoch.end_block,
            "nodes": own,
            "all_node_ids": list(all_ids),
        }
        print(jsonlib.dumps(said))
        return
    until = epoch.reveal_block if phase == "commit" else epoch.end_block
    print(f"overwatch epoch {epoch.epoch} at block {head.number}: {phase} for {until - head.number} more blocks")
    print(f"{len(all_ids)} overwatch nodes in all")
    table(
        ("node", "hotkey", "stake"),
        [(str(n.node_id or "gone"), checksum_address(n.hotkey), tensor_text(n.stake_planck)) for n in nodes],
        empty="none of them is yours" if account else "give --address or a coldkey to see yours",
    )


# --- shared -----------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """What `show` reads, at one block."""

    head: BlockRef
    epoch: OverwatchEpoch
    own: tuple[OverwatchStanding, ...]
    all_ids: tuple[int, ...]


async def _own(chain: Chain, coldkey: bytes, node_id: int | None) -> OverwatchStanding:
    found = [each for each in await overwatch_of(chain, coldkey) if node_id in (None, each.node_id or _GONE)]
    if len(found) != 1:
        ids = ", ".join(str(each.node_id or _GONE) for each in found)
        raise CallRefused(
            f"{checksum_address(coldkey)} has no such overwatch node: see `mesh overwatch show`"
            if not found
            else f"several overwatch nodes are yours ({ids}): say which with --node-id"
        )
    return found[0]


async def _say(chain: SubstrateChain, receipts: Sequence[Receipt], *, outcome: Outcome) -> Outcome:
    return outcome


def _weights(texts: tuple[str, ...]) -> dict[int, int]:
    found: dict[int, int] = {}
    for text in texts:
        subnet, equals, value = text.partition("=")
        if not equals or not (subnet.isascii() and subnet.isdigit()):
            raise ConfigError(f"--weights: {text!r} must be SUBNET=SHARE, such as 1=0.8")
        if int(subnet) in found:
            raise ConfigError(f"--weights: subnet {subnet} is there twice")
        found[int(subnet)] = share(value, name="weights")
    return found


def _hotkey_address(hotkey: str | None, keys_dir: Path | None) -> bytes:
    if hotkey is not None:
        return parse_address(hotkey)
    if keys_dir is None:
        raise ConfigError("which hotkey? give --hotkey ADDRESS or --keys-dir DIR")
    return account_in(keys_dir / HOTKEY_FILE)


def _coldkey_or_none(coldkey: ColdkeyOptions | None) -> bytes | None:
    try:
        return (coldkey or ColdkeyOptions()).account_id()
    except KeyFileError:
        if coldkey is not None:
            raise
        return None


def _path(genesis: bytes, epoch: int, node_id: int) -> Path:
    from mesh.chain.local import data_home

    return data_home() / "overwatch" / genesis.hex()[:16] / f"epoch-{epoch}-node-{node_id}.json"


def _made(path: Path, epoch: int, weights: dict[int, int]) -> _Commitment | None:
    """What an earlier run wrote down for this epoch, perhaps without getting it onto the chain: with its salts the call
    is the same one, which happens once. Raises CallRefused when it was to other weights."""
    if not path.exists():
        return None
    kept = _read(path, epoch)
    if {each.subnet_id: each.weight for each in kept.weights} != weights:
        raise CallRefused(
            f"a commitment to other weights was made in this overwatch epoch, and may be on the chain: see {path}, or "
            "give the same weights to send it again"
        )
    return kept


def _read(path: Path, epoch: int) -> _Commitment:
    if not path.exists():
        raise CallRefused(f"nothing was committed from this machine in overwatch epoch {epoch}: {path} is not there")
    try:
        return _Commitment.model_validate_json(read_secret(path, max_bytes=_MAX_COMMITMENT_BYTES))
    except ValidationError as error:
        raise CallRefused(f"{path} is damaged: {error.errors(include_input=False)[0]['msg']}") from error
