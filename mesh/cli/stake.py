"""`mesh stake`: what a coldkey has on its own nodes."""

from __future__ import annotations

import json as jsonlib
from functools import partial
from typing import TYPE_CHECKING

from mesh.chain import calls
from mesh.chain.checks import require_at_most, tensor_text
from mesh.chain.portfolio import portfolio, stake_of, stakes_of, unbondings_of
from mesh.chain.types import FIRST_SUBNET_ID
from mesh.cli.acting import ActOptions, Outcome, Plan, Step, act
from mesh.cli.common import Whose, amount_or_all, planck, read_chain
from mesh.cli.tables import table
from mesh.errors import CallRefused
from mesh.identity import AccountKey, checksum_address, parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.chain.client import Chain
    from mesh.chain.portfolio import NodeStake
    from mesh.chain.substrate import SubstrateChain
    from mesh.chain.types import Receipt


def add(*, subnet_id: int, amount: str, node_id: int | None = None, hotkey: str | None = None,
        options: ActOptions | None = None) -> None:  # fmt: skip
    """Stake more on a node of yours; the coldkey signs.

    Args:
        subnet_id: Friendly or real id.
        amount: `100`, `100.5 TENSOR` or planck.
        node_id: Which of your nodes; needed when there are several.
        hotkey: The node's hotkey instead of its id.
    """
    amount_planck = planck(amount, name="amount")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await chain.resolve_subnet_id(subnet_id)
        own = await own_node(chain, signer.account_id, real, node_id=node_id, hotkey=hotkey)
        if own.node_id is None:
            raise CallRefused(f"the node of {checksum_address(own.hotkey)} is gone: there is nothing to stake on")
        most = (await chain.subnet(real)).max_stake_planck
        require_at_most(amount_planck, most - own.stake_planck, what="the room below the subnet's largest stake")
        call = calls.add_stake(calls.NodeRef(real, own.node_id), own.hotkey, amount_planck=amount_planck)
        does = f"stake {tensor_text(amount_planck)} on node {own.node_id} of subnet {subnet_id}"
        return Plan((Step(does, call, amount_planck),), after=partial(staked, subnet_id=real, hotkey=own.hotkey))

    act(options, plan)


def remove(*, subnet_id: int, amount: str | None = None, all: bool = False, node_id: int | None = None,
           hotkey: str | None = None, options: ActOptions | None = None) -> None:  # fmt: skip
    """Take stake off a node of yours; it can be claimed after the cooldown (`mesh stake claim`).

    A registered node keeps the subnet's least stake: remove the node first to take everything.

    Args:
        subnet_id: Friendly or real id.
        amount: `100`, `100.5 TENSOR` or planck.
        all: Everything that may be taken.
        node_id: Which of your nodes.
        hotkey: The hotkey instead, also of a node that is gone.
    """
    wanted = amount_or_all(amount, everything=all)

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await chain.resolve_subnet_id(subnet_id) if subnet_id < FIRST_SUBNET_ID else subnet_id
        own = await own_node(chain, signer.account_id, real, node_id=node_id, hotkey=hotkey)
        kept = 0 if own.node_id is None else (await chain.subnet(real)).min_stake_planck
        free = max(own.stake_planck - kept, 0)
        amount_planck = free if wanted is None else wanted
        require_at_most(amount_planck, free, what="the stake above the least a node keeps")
        call = calls.remove_stake(real, own.hotkey, amount_planck=amount_planck)
        does = f"take {tensor_text(amount_planck)} of stake off subnet {subnet_id}"
        return Plan((Step(does, call),), after=partial(cooling, account=signer.account_id))

    act(options, plan)


def claim(*, options: ActOptions | None = None) -> None:
    """Take what has cooled down back to the free balance."""

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        waiting = await unbondings_of(chain, signer.account_id)
        if not waiting:
            raise CallRefused(f"{signer.address} has nothing that cools down")
        head = (await chain.head()).number
        due = sum(each.amount_planck for each in waiting if each.claim_block <= head)
        if not due:
            raise CallRefused(f"nothing can be claimed before block {waiting[0].claim_block}; this is block {head}")
        return Plan((Step(f"claim {tensor_text(due)}", calls.claim_unbondings()),))

    act(options, plan)


def show(*, whose: Whose | None = None) -> None:
    """List the stakes of a coldkey and what cools down."""
    seen = whose or Whose()
    account = seen.account()
    has = read_chain(seen.chain, lambda client: portfolio(client, account))
    if seen.json:
        said = {
            "block": has.block.number,
            "stakes": [
                {
                    "subnet_id": each.subnet_id,
                    "node_id": each.node_id,
                    "hotkey": checksum_address(each.hotkey),
                    "stake_planck": str(each.stake_planck),
                }
                for each in has.stakes
            ],
            "unbondings": [
                {"claim_block": each.claim_block, "amount_planck": str(each.amount_planck)} for each in has.unbondings
            ],
            "claimable_planck": str(has.claimable_planck),
        }
        print(jsonlib.dumps(said))
        return
    table(
        ("subnet", "node", "hotkey", "stake"),
        [
            (str(s.subnet_id), str(s.node_id or "gone"), checksum_address(s.hotkey), tensor_text(s.stake_planck))
            for s in has.stakes
        ],
        empty="no stake",
    )
    for each in has.unbondings:
        left = each.claim_block - has.block.number
        when = "can be claimed now: mesh stake claim" if left <= 0 else f"can be claimed in {left} blocks"
        print(f"{tensor_text(each.amount_planck)} {when}")


async def own_node(
    chain: Chain, coldkey: bytes, subnet_id: int, *, node_id: int | None = None, hotkey: str | None = None
) -> NodeStake:
    """The one stake of a coldkey in a subnet that the flags mean. Raises CallRefused when it is none or not clear."""
    found = [each for each in await stakes_of(chain, coldkey) if each.subnet_id == subnet_id]
    if node_id is not None:
        found = [each for each in found if each.node_id == node_id]
    if hotkey is not None:
        found = [each for each in found if each.hotkey == parse_address(hotkey)]
    if not found:
        which = f" with id {node_id}" if node_id is not None else f" with hotkey {hotkey}" if hotkey else ""
        raise CallRefused(
            f"{checksum_address(coldkey)} has no stake on a node{which} in subnet {subnet_id}: see `mesh stake list`"
        )
    if len(found) > 1:
        ids = ", ".join(str(each.node_id or checksum_address(each.hotkey)) for each in found)
        raise CallRefused(f"{len(found)} nodes of yours are in subnet {subnet_id} ({ids}): say which with --node-id")
    return found[0]


async def staked(chain: SubstrateChain, receipts: Sequence[Receipt], *, subnet_id: int, hotkey: bytes) -> Outcome:
    """What a hotkey has at stake after the last receipt."""
    amount = await stake_of(chain, hotkey, subnet_id, at=receipts[-1].block.hash)
    return Outcome((f"the node has {tensor_text(amount)} staked now",), {"stake_planck": str(amount)})


async def cooling(chain: SubstrateChain, receipts: Sequence[Receipt], *, account: bytes) -> Outcome:
    """When what was just taken out can be claimed."""
    block = receipts[-1].block
    last = max((each.claim_block for each in await unbondings_of(chain, account, at=block.hash)), default=block.number)
    return Outcome(
        (f"it can be claimed from block {last} on with `mesh stake claim`",),
        {"claim_block": last},
    )
