"""`mesh transfer`: send TENSOR, such as the little a hotkey needs before it may vote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.chain import calls
from mesh.chain.checks import require_some, tensor_text
from mesh.cli.acting import ActOptions, Plan, Step, act
from mesh.cli.common import planck, receiver
from mesh.errors import CallRefused
from mesh.identity import AccountKey, checksum_address

if TYPE_CHECKING:
    from mesh.chain.substrate import SubstrateChain


def transfer(*, to: str, amount: str, options: ActOptions | None = None) -> None:
    """Send TENSOR from the coldkey to another account.

    Args:
        to: Address of the receiver.
        amount: `100`, `100.5 TENSOR` or planck.
    """
    account, amount_planck = receiver(to), planck(amount, name="amount")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        if account == signer.account_id:
            raise CallRefused("the receiver is the signing account itself")
        require_some(amount_planck)
        does = f"send {tensor_text(amount_planck)} to {checksum_address(account)}"
        return Plan((Step(does, calls.transfer(account, amount_planck=amount_planck), amount_planck),))

    act(options, plan)
