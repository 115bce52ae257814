"""`mesh node`: registered nodes of a subnet, and what their coldkey may change."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING

from mesh.chain import calls
from mesh.chain.calls import NodeRef
from mesh.chain.checks import hotkey_warning, tensor_text
from mesh.chain.types import ONE, NodeClass, Snapshot, SubnetNode
from mesh.cli.acting import ActOptions, Plan, Step, act
from mesh.cli.common import ChainOptions, read_chain, receiver, share
from mesh.cli.tables import facts, share_text, table
from mesh.errors import CallRefused, ConfigError
from mesh.identity import AccountKey, checksum_address, parse_address
from mesh.peer import PeerID, PeerInfo

if TYPE_CHECKING:
    from mesh.chain.client import Chain
    from mesh.chain.reading import EpochView
    from mesh.chain.substrate import SubstrateChain

NOBODY = "none"
"""Written for an optional value that is to be dropped."""


def list_nodes(subnet_id: int, *, json: bool = False, chain: ChainOptions | None = None) -> None:
    """List the nodes of a subnet.

    Args:
        subnet_id: Friendly or real id.
        json: Print one JSON array.
    """

    async def read(client: Chain) -> Snapshot:
        return await client.snapshot(await client.resolve_subnet_id(subnet_id))

    snapshot = read_chain(chain, read)
    if json:
        print(jsonlib.dumps([values_of(node) for node in snapshot.nodes]))
        return
    table(
        ("node", "class", "since", "reputation", "stake", "peer id"),
        [
            (
                str(node.node_id),
                node.node_class.name.title(),
                str(node.start_epoch),
                share_text(node.reputation),
                tensor_text(node.stake_planck),
                str(node.peer_id),
            )
            for node in snapshot.nodes
        ],
        empty=f"subnet {subnet_id} has no nodes",
    )


def show(*, subnet_id: int, node_id: int, json: bool = False, chain: ChainOptions | None = None) -> None:
    """Show all the chain knows of one node.

    Args:
        subnet_id: Friendly or real id.
        node_id: Its id in the subnet.
        json: Print one JSON object.
    """

    known = values_of(read_chain(chain, lambda client: find(client, subnet_id, node_id)))
    if json:
        print(jsonlib.dumps(known))
        return
    facts(known)


def status(*, subnet_id: int, node_id: int, json: bool = False, chain: ChainOptions | None = None) -> None:
    """Say where a node stands: its class and the next one, whether it is elected, whether it voted this epoch.

    Args:
        subnet_id: Friendly or real id.
        node_id: Its id in the subnet.
        json: Print one JSON object.
    """

    from mesh.chain.reading import read_epoch

    async def read(client: Chain) -> tuple[EpochView, SubnetNode, int]:
        view = await read_epoch(client, await client.resolve_subnet_id(subnet_id))
        node = one_of(view.snapshot, node_id, subnet_id=subnet_id)
        return view, node, (await client.balance(node.hotkey)).free_planck

    view, node, free_planck = read_chain(chain, read)
    state, proposed = view.subnet.state.name.title(), view.proposal is not None
    attested = view.proposal is not None and node_id in view.proposal.attests
    if json:
        said = {
            "node_id": node_id,
            "class": node.node_class.name.title(),
            "since_epoch": node.start_epoch,
            "epoch": view.epoch,
            "subnet_state": state,
            "elected": view.elected == node_id,
            "proposed": proposed,
            "attested": attested,
            "reputation": node.reputation / ONE,
            "stake_planck": str(node.stake_planck),
            "hotkey_free_planck": str(free_planck),
        }
        print(jsonlib.dumps(said))
        return
    print(f"node {node_id} of subnet {subnet_id} ({state}), epoch {view.epoch}")
    print(f"  {node.node_class.name.title()} since epoch {node.start_epoch}{_next_class(node)}")
    print(f"  {tensor_text(node.stake_planck)} staked, reputation {share_text(node.reputation)}")
    if view.elected == node_id:
        print("  elected to propose" + (", and has proposed" if proposed else ", has not proposed yet"))
    elif proposed and node.node_class is NodeClass.VALIDATOR:
        print(f"  has {'' if attested else 'not '}attested this epoch's proposal")
    if warning := hotkey_warning(node.hotkey, free_planck=free_planck):
        print(f"  {warning}")


def update(
    *,
    subnet_id: int,
    node_id: int,
    peer: str | None = None,
    bootnode: str | None = None,
    client: str | None = None,
    delegate_reward_rate: str | None = None,
    delegate_account: str | None = None,
    delegate_account_rate: str | None = None,
    unique: str | None = None,
    non_unique: str | None = None,
    hotkey: str | None = None,
    coldkey_to: str | None = None,
    options: ActOptions | None = None,
) -> None:
    """Change a node of yours; each flag is one extrinsic. `none` drops what is optional.

    Args:
        subnet_id: Friendly or real id.
        node_id: Its id in the subnet.
        peer: PeerID it runs with, or /ip4/…/tcp/…/p2p/….
        bootnode: PeerID or multiaddr of its own bootnode, or none.
        client: PeerID or multiaddr of its client, or none.
        delegate_reward_rate: Share of its rewards for its delegators, 0 to 1.
        delegate_account: Account that gets a part of its rewards, or none.
        delegate_account_rate: How large a part, 0 to 1.
        unique: Parameter no other node of the subnet may have, or none.
        non_unique: Free parameter, or none.
        hotkey: A new hotkey in place of the present one.
        coldkey_to: Hand the node and its stake to another coldkey, for good.
    """
    if (delegate_account in (None, NOBODY)) != (delegate_account_rate is None):
        raise ConfigError("--delegate-account and --delegate-account-rate belong together")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        from mesh.cli.readiness import vet_new_hotkey

        node = await find(chain, subnet_id, node_id)
        _require_own(node, signer)
        ref = NodeRef(await chain.resolve_subnet_id(subnet_id), node_id)
        what = f"of node {node_id} in subnet {subnet_id}"
        steps: list[Step] = []
        warnings: list[str] = []
        if peer is not None:
            steps.append(Step(f"change the peer id {what}", calls.update_peer(ref, _peer(peer))))
        if bootnode is not None:
            steps.append(Step(f"change the bootnode {what}", calls.update_bootnode_peer(ref, _peer_or_none(bootnode))))
        if client is not None:
            steps.append(Step(f"change the client {what}", calls.update_client_peer(ref, _peer_or_none(client))))
        if delegate_reward_rate is not None:
            rate = share(delegate_reward_rate, name="delegate-reward-rate")
            steps.append(Step(f"change the delegators' share {what}", calls.update_delegate_reward_rate(ref, rate)))
        if delegate_account is not None:
            account = None if delegate_account == NOBODY else parse_address(delegate_account)
            rate_of = (
                None if delegate_account_rate is None else share(delegate_account_rate, name="delegate-account-rate")
            )
            call = calls.update_delegate_account(ref, account=account, rate=rate_of)
            steps.append(Step(f"change the delegate account {what}", call))
        if unique is not None:
            steps.append(Step(f"change the unique parameter {what}", calls.update_unique(ref, _bytes_or_none(unique))))
        if non_unique is not None:
            call = calls.update_non_unique(ref, _bytes_or_none(non_unique))
            steps.append(Step(f"change the free parameter {what}", call))
        new_hotkey = node.hotkey
        if hotkey is not None:
            new_hotkey = parse_address(hotkey)
            warnings += await vet_new_hotkey(chain, new_hotkey, coldkey=signer.account_id)
            steps.append(Step(f"replace the hotkey {what}", calls.update_hotkey(node.hotkey, new_hotkey)))
        if coldkey_to is not None:  # last: afterwards the signer owns the node no more
            new_coldkey = receiver(coldkey_to)
            if new_coldkey in (new_hotkey, signer.account_id):
                raise CallRefused(
                    "--coldkey-to must be an account of its own, neither the hotkey nor the present coldkey"
                )
            steps.append(
                Step(f"give away the coldkey {what} to {coldkey_to}", calls.update_coldkey(new_hotkey, new_coldkey))
            )
        return Plan(tuple(steps), tuple(warnings))

    act(options, plan)


def remove(*, subnet_id: int, node_id: int, options: ActOptions | None = None) -> None:
    """Take a node of yours out of its subnet. Its stake stays until `mesh stake remove --all`.

    Args:
        subnet_id: Friendly or real id.
        node_id: Its id in the subnet.
    """

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        node = await find(chain, subnet_id, node_id)
        if signer.account_id != node.hotkey:
            _require_own(node, signer)
        ref = NodeRef(await chain.resolve_subnet_id(subnet_id), node_id)
        return Plan((Step(f"remove node {node_id} from subnet {subnet_id}", calls.remove_node(ref)),))

    act(options, plan)


# --- shared -----------------------------------------------------------------------------------------------------


async def find(chain: Chain, subnet_id: int, node_id: int) -> SubnetNode:
    """One node at the best block. Raises CallRefused when the subnet has no such node."""
    return one_of(await chain.snapshot(await chain.resolve_subnet_id(subnet_id)), node_id, subnet_id=subnet_id)


def one_of(snapshot: Snapshot, node_id: int, *, subnet_id: int) -> SubnetNode:
    """A node of a snapshot; `subnet_id` as the person wrote it. Raises CallRefused when there is no such node."""
    node = next((each for each in snapshot.nodes if each.node_id == node_id), None)
    if node is None:
        raise CallRefused(f"subnet {subnet_id} has no node {node_id}: see `mesh node list --subnet-id {subnet_id}`")
    return node


def values_of(node: SubnetNode) -> dict[str, object]:
    """A node for people and programs."""
    return {
        "node_id": node.node_id,
        "class": node.node_class.name.title(),
        "since_epoch": node.start_epoch,
        "stake_planck": str(node.stake_planck),
        "reputation": node.reputation / ONE,
        "coldkey": checksum_address(node.coldkey),
        "hotkey": checksum_address(node.hotkey),
        "peer_id": str(node.peer_id),
        "bootnode_peer_id": None if node.bootnode_peer_id is None else str(node.bootnode_peer_id),
        "client_peer_id": None if node.client_peer_id is None else str(node.client_peer_id),
    }


def _next_class(node: SubnetNode) -> str:
    if node.node_class is NodeClass.VALIDATOR:
        return ""
    return f"; next {NodeClass(node.node_class + 1).name.title()}, by the chain, when its epochs are served"


def _require_own(node: SubnetNode, signer: AccountKey) -> None:
    if node.coldkey != signer.account_id:
        raise CallRefused(
            f"node {node.node_id} belongs to the coldkey {checksum_address(node.coldkey)}, and {signer.address} signs"
        )


def _peer(text: str) -> PeerInfo:
    return PeerInfo.parse(text) if text.startswith("/") else PeerInfo(PeerID.parse(text), ())


def _peer_or_none(text: str) -> PeerInfo | None:
    return None if text == NOBODY else _peer(text)


def _bytes_or_none(text: str) -> bytes | None:
    return None if text == NOBODY else text.encode()
