"""`mesh delegate`: shares of the pools of subnets and nodes, for accounts that run nothing themselves.

Every command means a subnet's own pool, or with --node-id the pool of one node in it.
"""

from __future__ import annotations

import enum
import json as jsonlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cyclopts import Parameter

from mesh.chain import calls
from mesh.chain.calls import NodeRef, PoolKey
from mesh.chain.checks import require_at_most, require_some, tensor_text
from mesh.chain.portfolio import delegate_account_of, pool_of, portfolio, shares_in, swap_queue
from mesh.chain.types import FIRST_SUBNET_ID
from mesh.cli.acting import ActOptions, Plan, Step, act
from mesh.cli.common import Whose, amount_or_all, planck, read_chain, receiver
from mesh.cli.stake import cooling
from mesh.cli.tables import table
from mesh.errors import CallRefused, ConfigError
from mesh.identity import AccountKey

if TYPE_CHECKING:
    from mesh.chain.client import Chain
    from mesh.chain.substrate import SubstrateChain


@Parameter(name="*")
@dataclass(frozen=True)
class HowMuch:
    """How much of what an account has in a pool: exactly one of the three."""

    amount: str | None = None
    "How much at the present price: `100`, `100.5 TENSOR` or planck."
    shares: int | None = None
    "How many shares instead."
    all: bool = False
    "All shares."

    def amount_planck(self) -> int | None:
        """The amount, where it was said that way. Raises ConfigError."""
        return None if self.amount is None else planck(self.amount, name="amount")


def add(*, subnet_id: int, amount: str, node_id: int | None = None, options: ActOptions | None = None) -> None:
    """Buy shares of a pool.

    Args:
        subnet_id: Friendly or real id.
        amount: `100`, `100.5 TENSOR` or planck.
        node_id: The pool of this node instead of the subnet's.
    """
    amount_planck = planck(amount, name="amount")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        pool = await find_pool(chain, subnet_id, node_id)
        require_some(amount_planck)
        call = calls.delegate(pool, amount_planck=amount_planck)
        return Plan((Step(f"delegate {tensor_text(amount_planck)} to {_named(pool)}", call, amount_planck),))

    act(options, plan)


def remove(
    *,
    subnet_id: int,
    node_id: int | None = None,
    how_much: HowMuch | None = None,
    options: ActOptions | None = None,
) -> None:
    """Sell shares of a pool; what they are worth can be claimed after the cooldown (`mesh stake claim`).

    Args:
        subnet_id: Friendly or real id, also of a subnet that is gone.
        node_id: The pool of this node instead of the subnet's.
    """
    chosen = _chosen(how_much)

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        pool = await find_pool(chain, subnet_id, node_id, of=Of.GONE)
        count, worth = await _shares(chain, signer.account_id, pool, chosen)
        call = calls.undelegate(pool, shares=count)
        does = f"sell {count} shares of {_named(pool)}, worth {worth} now"
        return Plan((Step(does, call),), after=partial(cooling, account=signer.account_id))

    act(options, plan)


def swap(
    *,
    subnet_id: int,
    to_subnet_id: int,
    node_id: int | None = None,
    to_node_id: int | None = None,
    how_much: HowMuch | None = None,
    options: ActOptions | None = None,
) -> None:
    """Move shares from a pool to another; the chain queues it until the cooldown is over.

    Args:
        subnet_id: From which subnet.
        to_subnet_id: To which subnet.
        node_id: From the pool of this node.
        to_node_id: To the pool of this node.
    """
    chosen = _chosen(how_much)

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        source = await find_pool(chain, subnet_id, node_id, of=Of.GONE)
        target = await find_pool(chain, to_subnet_id, to_node_id)
        if source == target:
            raise CallRefused("source and target are the same pool")
        count, worth = await _shares(chain, signer.account_id, source, chosen)
        call = calls.swap_delegation(source, target, shares=count)
        return Plan((Step(f"move {count} shares, worth {worth} now, from {_named(source)} to {_named(target)}", call),))

    act(options, plan)


def redirect(
    *, swap_id: int, to_subnet_id: int, to_node_id: int | None = None, options: ActOptions | None = None
) -> None:
    """Send a swap that still waits in the chain's queue to another pool.

    Args:
        swap_id: Its id, from `mesh delegate list`.
        to_subnet_id: To which subnet.
        to_node_id: To the pool of this node.
    """

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        waiting = next((each for each in await swap_queue(chain) if each.swap_id == swap_id), None)
        if waiting is None or waiting.account != signer.account_id:
            raise CallRefused(f"no swap {swap_id} of {signer.address} waits: see `mesh delegate list`")
        target = await find_pool(chain, to_subnet_id, to_node_id)
        call = calls.redirect_swap(swap_id, signer.account_id, target, balance_planck=waiting.balance_planck)
        return Plan((Step(f"send swap {swap_id} to {_named(target)}", call),))

    act(options, plan)


def transfer(
    *,
    subnet_id: int,
    to: str,
    node_id: int | None = None,
    how_much: HowMuch | None = None,
    options: ActOptions | None = None,
) -> None:
    """Give shares of a pool to another account.

    Args:
        subnet_id: Friendly or real id.
        to: Address of the receiver.
        node_id: The pool of this node instead of the subnet's.
    """
    chosen, target = _chosen(how_much), receiver(to)

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        if target == signer.account_id:
            raise CallRefused("the receiver is the signing account itself")
        pool = await find_pool(chain, subnet_id, node_id)
        count, worth = await _shares(chain, signer.account_id, pool, chosen)
        call = calls.transfer_delegation(pool, target, shares=count)
        return Plan((Step(f"give {count} shares of {_named(pool)}, worth {worth} now, to {to}", call),))

    act(options, plan)


def donate(*, subnet_id: int, amount: str, node_id: int | None = None, options: ActOptions | None = None) -> None:
    """Give to all delegators of a pool. It cannot be taken back.

    Args:
        subnet_id: Friendly or real id.
        amount: `100`, `100.5 TENSOR` or planck.
        node_id: The pool of this node instead of the subnet's.
    """
    amount_planck = planck(amount, name="amount")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        pool = await find_pool(chain, subnet_id, node_id)
        if not (await pool_of(chain, pool)).balance_planck:
            raise CallRefused(f"{_named(pool)} is empty: nobody would get the donation")
        require_some(amount_planck)
        call = calls.donate(pool, amount_planck=amount_planck)
        return Plan((Step(f"donate {tensor_text(amount_planck)} to {_named(pool)}", call, amount_planck),))

    act(options, plan)


def withdraw(*, amount: str | None = None, all: bool = False, options: ActOptions | None = None) -> None:
    """Take out what nodes gave this account as their delegate account.

    Args:
        amount: `100`, `100.5 TENSOR` or planck.
        all: All of it.
    """
    wanted = amount_or_all(amount, everything=all)

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        has = await delegate_account_of(chain, signer.account_id)
        amount_planck = has if wanted is None else wanted
        require_at_most(amount_planck, has, what="the delegate account's balance")
        call = calls.withdraw_delegate_account(amount_planck=amount_planck)
        return Plan((Step(f"take {tensor_text(amount_planck)} out of the delegate account", call),))

    act(options, plan)


def show(*, whose: Whose | None = None) -> None:
    """List the shares of an account, and its swaps that wait."""
    seen = whose or Whose()
    account = seen.account()
    has = read_chain(seen.chain, lambda client: portfolio(client, account))
    if seen.json:
        said = {
            "block": has.block.number,
            "delegations": [
                {
                    "subnet_id": each.subnet_id,
                    "node_id": each.node_id,
                    "shares": str(each.shares),
                    "worth_planck": str(each.worth_planck),
                }
                for each in has.delegations
            ],
            "swaps": [
                {
                    "swap_id": each.swap_id,
                    "to_subnet_id": each.to_subnet_id,
                    "to_node_id": each.to_node_id,
                    "balance_planck": str(each.balance_planck),
                    "due_block": each.due_block,
                }
                for each in has.swaps
            ],
            "delegate_account_planck": str(has.delegate_account_planck),
        }
        print(jsonlib.dumps(said))
        return
    table(
        ("subnet", "node", "shares", "worth"),
        [
            (str(d.subnet_id), str(d.node_id or "-"), str(d.shares), tensor_text(d.worth_planck))
            for d in has.delegations
        ],
        empty="no delegations",
    )
    for each in has.swaps:
        target = f"node {each.to_node_id} of " if each.to_node_id else ""
        print(
            f"swap {each.swap_id}: {tensor_text(each.balance_planck)} to {target}subnet {each.to_subnet_id} "
            f"from block {each.due_block} on"
        )
    if has.delegate_account_planck:
        print(f"delegate account: {tensor_text(has.delegate_account_planck)}, see `mesh delegate withdraw`")


# --- shared -----------------------------------------------------------------------------------------------------


class Of(enum.Enum):
    """Whose pool may be meant."""

    PRESENT = "present"
    """Of a subnet or node that is there."""
    GONE = "gone"
    """Also of one that is not there any more: its shares can be sold."""


async def find_pool(chain: Chain, subnet_id: int, node_id: int | None, *, of: Of = Of.PRESENT) -> PoolKey:
    """The pool the flags mean: a real subnet id, or a node. Raises ChainError or CallRefused when there is none;
    with Of.GONE, pools of what is not there any more are taken by their real id."""
    real = subnet_id
    if of is Of.PRESENT or subnet_id < FIRST_SUBNET_ID:
        real = await chain.resolve_subnet_id(subnet_id)
    if node_id is None:
        return real
    if of is Of.PRESENT and await chain.storage("Network", "SubnetNodeIdHotkey", real, node_id) is None:
        raise CallRefused(f"subnet {subnet_id} has no node {node_id}: see `mesh node list --subnet-id {subnet_id}`")
    return NodeRef(real, node_id)


def _named(pool: PoolKey) -> str:
    return f"subnet {pool}" if isinstance(pool, int) else f"node {pool.node_id} of subnet {pool.subnet_id}"


def _chosen(how_much: HowMuch | None) -> HowMuch:
    """What was said. Raises ConfigError unless exactly one way of saying it was used, and for what is no amount."""
    said = how_much or HowMuch()
    if (said.amount is not None) + (said.shares is not None) + said.all != 1:
        raise ConfigError("say how much: one of --amount AMOUNT, --shares N or --all")
    said.amount_planck()
    return said


async def _shares(chain: Chain, account: bytes, pool: PoolKey, chosen: HowMuch) -> tuple[int, str]:
    """How many shares were meant and what they are worth, for people. Raises CallRefused for more than there are."""
    amount_planck = chosen.amount_planck()
    at = (await chain.head()).hash
    price, held = await pool_of(chain, pool, at=at), await shares_in(chain, account, pool, at=at)
    count = held
    if amount_planck is not None:
        if amount_planck > price.worth(held):
            raise CallRefused(
                f"the shares of {_named(pool)} are worth {tensor_text(price.worth(held))} now: choose less, or --all"
            )
        count = min(price.shares_for(amount_planck), held)
    elif chosen.shares is not None:
        count = chosen.shares
    if held == 0:
        raise CallRefused(f"the account has no shares of {_named(pool)}: see `mesh delegate list`")
    if not 0 < count <= held:
        raise CallRefused(f"{count} shares of {_named(pool)} cannot be taken: the account has {held}")
    return count, tensor_text(price.worth(count))
