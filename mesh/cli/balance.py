"""`mesh balance`: what an account has, free and otherwise."""

from __future__ import annotations

import json as jsonlib

from mesh.chain.checks import tensor_text
from mesh.chain.portfolio import portfolio
from mesh.cli.common import ChainOptions, ColdkeyOptions, account_meant, read_chain
from mesh.identity import checksum_address


def balance(
    address: str | None = None,
    /,
    *,
    json: bool = False,
    coldkey: ColdkeyOptions | None = None,
    chain: ChainOptions | None = None,
) -> None:
    """Show what an account has: free, staked, delegated, cooling down.

    Args:
        address: Whose; default is the coldkey's.
        json: Print one JSON object, amounts in planck.
    """
    account = account_meant(address, coldkey)
    has = read_chain(chain, lambda client: portfolio(client, account))
    amounts = {
        "free": has.free_planck,
        "staked": sum(each.stake_planck for each in has.stakes),
        "delegated": sum(each.worth_planck for each in has.delegations),
        "cooling": sum(each.amount_planck for each in has.unbondings) - has.claimable_planck,
        "claimable": has.claimable_planck,
        "swapping": sum(each.balance_planck for each in has.swaps),
        "delegate_account": has.delegate_account_planck,
    }
    if json:
        values = {f"{name}_planck": str(amount) for name, amount in amounts.items()}
        print(jsonlib.dumps({"address": checksum_address(account), "block": has.block.number, **values}))
        return
    print(f"{checksum_address(account)} at block {has.block.number}")
    for name, amount in amounts.items():
        if amount or name == "free":
            print(f"  {name.replace('_', ' '):<17} {tensor_text(amount)}")
