"""`mesh transfer`: send TENSOR, such as the little a hotkey needs before it may vote."""

from __future__ import annotations

import json as jsonlib

from mesh.cli.common import ChainOptions, ColdkeyOptions, open_chain, planck, run_until_signalled
from mesh.identity import checksum_address, parse_address


def transfer(
    *,
    to: str,
    amount: str,
    json: bool = False,
    coldkey: ColdkeyOptions | None = None,
    chain: ChainOptions | None = None,
) -> None:
    """Send TENSOR from the coldkey to another account.

    Args:
        to: Address of the receiver.
        amount: TENSOR to send.
        json: Print one JSON object.
    """
    from mesh.chain import staking

    coldkey, chain = coldkey or ColdkeyOptions(), chain or ChainOptions()
    signer, receiver, amount_planck = coldkey.key(), parse_address(to), planck(amount, name="amount")

    async def run() -> None:
        async with open_chain(chain, secret_on_argv=coldkey.on_argv()) as client:
            receipt = await staking.transfer(client, signer, to=receiver, amount_planck=amount_planck)
        if json:
            print(jsonlib.dumps({"block": receipt.block.number, "fee_planck": str(receipt.fee_planck)}))
        else:
            print(f"sent {amount} TENSOR to {checksum_address(receiver)} in block {receipt.block.number}")

    run_until_signalled(run)
