"""An active subnet of three nodes on a dev chain, made without a client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mesh.chain.dialect import peer_id_bytes
from mesh.devchain.chain import DevChain, DevChainConfig
from mesh.devchain.pallets.network import storage as s
from mesh.identity import AccountKey
from tests.contract.test_chain import COLDKEYS, FUND, HOTKEYS, OWNER, PEERS, STAKE, TENSOR, subnet_data
from tests.devchain.signing import Signer

SUBNET = 128_001


def config(data_dir: Path | None, **changes: Any) -> DevChainConfig:
    fund = {f"0x{account.hex()}": planck for account, planck in FUND.items()}
    return DevChainConfig(**{"fund": fund, "data_dir": data_dir, **changes})


def say(dev: DevChain, key: AccountKey, call: str, **args: Any) -> None:
    """An extrinsic in a block of its own."""
    signer = Signer("")
    signer.key, signer.address = signer.key.__class__(key.private), key.account_id
    dev.submit(signer.sign(dev, "Network", call, **args))
    dev.new_block()


def registration(hotkey: bytes, peer: bytes) -> dict[str, Any]:
    none = dict.fromkeys(("bootnode_peer_info", "client_peer_info", "unique", "non_unique", "delegate_account"))
    return {
        "subnet_id": SUBNET, "hotkey": hotkey, "peer_info": {"peer_id": peer, "multiaddr": None},
        "delegate_reward_rate": 0, "stake_to_be_added": STAKE, "max_burn_amount": 100 * TENSOR, **none,
    }  # fmt: skip


def populate(dev: DevChain) -> None:
    """An active subnet of three nodes."""
    say(dev, OWNER, "register_subnet", max_cost=10**24, subnet_data=subnet_data())
    for coldkey, hotkey, peer in zip(COLDKEYS, HOTKEYS, PEERS, strict=True):
        say(dev, coldkey, "register_subnet_node", **registration(hotkey.account_id, peer_id_bytes(peer)))
    say(dev, COLDKEYS[2], "add_to_delegate_stake", subnet_id=SUBNET, stake_to_be_added=400_000 * TENSOR)
    say(dev, OWNER, "activate_subnet", subnet_id=SUBNET)


def to_next_epoch(dev: DevChain) -> int:
    """Make blocks up to the next slot block; the epoch that starts there."""
    slot = dev.get(s.SubnetSlot, SUBNET)
    dev.new_block()
    while (dev.best.number - slot) % 20:
        dev.new_block()
    return (dev.best.number - slot) // 20


def propose(dev: DevChain, elected: int) -> None:
    """The elected node's proposal."""
    data = [{"subnet_node_id": node, "score": TENSOR} for node in (1, 2, 3)]
    wishes = dict.fromkeys(("prioritize_queue_node_id", "remove_queue_node_id", "args", "attest_data"))
    say(dev, HOTKEYS[elected - 1], "propose_attestation", subnet_id=SUBNET, data=data, **wishes)
