"""Setting the stage: keys, genesis, subnet, nodes, stake. The same calls the commands for stakers make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio

from mesh.chain import staking
from mesh.chain.client import Chain
from mesh.chain.types import PLANCK_PER_TENSOR
from mesh.cli.keys import HOTKEY_FILE, PEER_FILES
from mesh.identity import AccountKey, PeerKey, save_account_key, save_peer_key
from mesh.peer import PeerID, PeerInfo

COLDKEY_TENSOR = 1_000
HOTKEY_TENSOR = 1
OWNER_TENSOR = 10_000
STAKE_PLANCK = 200 * PLANCK_PER_TENSOR
DELEGATE_PLANCK = 5_000 * PLANCK_PER_TENSOR


@dataclass(frozen=True)
class NodeKeys:
    """One node's keys and where they lie."""

    name: str
    directory: Path
    peer: PeerKey
    bootnode: PeerKey
    client: PeerKey
    hotkey: AccountKey
    coldkey: AccountKey


@dataclass(frozen=True)
class Cast:
    """Everybody in the demo."""

    owner: AccountKey
    bootnode: PeerKey
    bootnode_path: Path
    nodes: tuple[NodeKeys, ...]

    def funds(self) -> list[str]:
        """`--fund` arguments of the chain."""
        amounts = [(self.owner, OWNER_TENSOR)]
        for node in self.nodes:
            amounts += [(node.coldkey, COLDKEY_TENSOR), (node.hotkey, HOTKEY_TENSOR)]
        return [f"{key.address}={tensor}" for key, tensor in amounts]


def make_keys(directory: Path, nodes: int) -> Cast:
    """Fresh keys for everybody, as `keygen --keys-dir` lays them out."""
    made = []
    for number in range(1, nodes + 1):
        folder = directory / f"node-{number}"
        keys = {name: PeerKey.generate() for name in PEER_FILES}
        for name, key in keys.items():
            save_peer_key(folder / PEER_FILES[name], key)
        hotkey, coldkey = AccountKey.generate(), AccountKey.generate()
        save_account_key(folder / HOTKEY_FILE, hotkey)
        made.append(NodeKeys(folder.name, folder, keys["peer"], keys["bootnode"], keys["client"], hotkey, coldkey))
    bootnode, path = PeerKey.generate(), directory / "bootnode.key"
    save_peer_key(path, bootnode)
    return Cast(AccountKey.generate(), bootnode, path, tuple(made))


async def register_subnet(chain: Chain, cast: Cast, bootnode: PeerInfo) -> int:
    """Register the subnet with every coldkey allowed one node; returns its real id."""
    subnet_id, _ = await staking.register_subnet(
        chain,
        cast.owner,
        terms=staking.SubnetTerms(name="demo", repo="mesh/demo", description="digits, tuned and served"),
        initial_coldkeys={node.coldkey.account_id: 1 for node in cast.nodes},
        bootnodes=[bootnode],
    )
    return subnet_id


async def register_nodes(chain: Chain, cast: Cast, subnet_id: int) -> dict[PeerID, int]:
    """Register, stake and delegate, all in as few blocks as the chain needs; returns node ids."""
    ids: dict[PeerID, int] = {}

    async def register(node: NodeKeys) -> None:
        terms = staking.NodeTerms(
            hotkey=node.hotkey.account_id,
            peer_id=node.peer.peer_id,
            bootnode_peer_id=node.bootnode.peer_id,
            client_peer_id=node.client.peer_id,
            stake_planck=STAKE_PLANCK,
        )
        ids[node.peer.peer_id], _ = await staking.register_node(chain, node.coldkey, subnet_id=subnet_id, terms=terms)

    async with trio.open_nursery() as nursery:
        for node in cast.nodes:
            nursery.start_soon(register, node)
        nursery.start_soon(_delegate, chain, cast.owner, subnet_id)
    return ids


async def _delegate(chain: Chain, owner: AccountKey, subnet_id: int) -> None:
    await staking.add_delegate_stake(chain, owner, subnet_id=subnet_id, amount_planck=DELEGATE_PLANCK)
