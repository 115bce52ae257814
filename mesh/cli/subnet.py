"""`mesh subnet`: what a subnet's owner may do, and what anybody may see of it."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING

from mesh.chain import calls
from mesh.chain.calls import OWNER_SHARES
from mesh.chain.checked import require_number
from mesh.chain.checks import tensor_text
from mesh.chain.types import ONE, SubnetState
from mesh.cli.acting import ActOptions, Plan, Step, act
from mesh.cli.common import ChainOptions, planck, read_chain, receiver, share
from mesh.cli.tables import facts, table
from mesh.errors import CallRefused, ConfigError
from mesh.identity import AccountKey, checksum_address, parse_address
from mesh.peer import PeerID, PeerInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.chain.client import Chain
    from mesh.chain.dialect import Call
    from mesh.chain.substrate import SubstrateChain


def list_subnets(*, json: bool = False, chain: ChainOptions | None = None) -> None:
    """List all subnets.

    Args:
        json: Print one JSON array.
    """

    async def read(client: Chain) -> list[dict[str, object]]:
        at = (await client.head()).hash
        ids = [keys[0] for keys, _ in await client.storage_map("Network", "SubnetsData", at=at)]
        return [await _facts(client, require_number(each, "subnet id"), at=at) for each in ids]

    rows = read_chain(chain, read)
    if json:
        print(jsonlib.dumps(rows))
        return
    table(
        ("id", "real id", "name", "state", "nodes", "delegated"),
        [
            (
                str(row["friendly_id"]),
                str(row["subnet_id"]),
                str(row["name"]),
                str(row["state"]),
                str(row["nodes"]),
                tensor_text(int(str(row["delegated_planck"]))),
            )
            for row in rows
        ],
        empty="no subnets",
    )


def show(subnet_id: int, *, json: bool = False, chain: ChainOptions | None = None) -> None:
    """Show one subnet: state, owner, limits, nodes, bootnodes.

    Args:
        subnet_id: Friendly or real id.
        json: Print one JSON object.
    """

    async def read(client: Chain) -> dict[str, object]:
        real = await client.resolve_subnet_id(subnet_id)
        at = (await client.head()).hash
        return await _facts(client, real, at=at) | await _more_facts(client, real, at=at)

    known = read_chain(chain, read)
    if json:
        print(jsonlib.dumps(known))
        return
    facts(known)


def update(
    *,
    subnet_id: int,
    name: str | None = None,
    repo: str | None = None,
    description: str | None = None,
    misc: str | None = None,
    churn_limit: int | None = None,
    churn_limit_multiplier: int | None = None,
    queue_epochs: int | None = None,
    queue_immunity_epochs: int | None = None,
    idle_classification_epochs: int | None = None,
    included_classification_epochs: int | None = None,
    max_registered_nodes: int | None = None,
    target_registrations_per_epoch: int | None = None,
    min_stake: str | None = None,
    max_stake: str | None = None,
    delegate_stake_percentage: str | None = None,
    min_node_reputation: str | None = None,
    node_burn_rate_alpha: str | None = None,
    reputation_factor: tuple[str, ...] = (),
    options: ActOptions | None = None,
) -> None:
    """Change a subnet of yours; each flag is one extrinsic.

    Args:
        subnet_id: Friendly or real id.
        name: Unique name.
        repo: Unique address of the code.
        description: One line for people.
        misc: Anything else.
        churn_limit: Nodes that may become active from the queue at once.
        churn_limit_multiplier: Every how many epochs that happens.
        queue_epochs: Epochs a new node waits in the queue.
        queue_immunity_epochs: Epochs in which a queued node cannot be voted out.
        idle_classification_epochs: Epochs a node stays Idle.
        included_classification_epochs: Epochs a node stays Included.
        max_registered_nodes: Nodes a coldkey may have waiting.
        target_registrations_per_epoch: Registrations at which the node fee stays as it is.
        min_stake: Least TENSOR a node stakes.
        max_stake: Most TENSOR a node stakes.
        delegate_stake_percentage: Share of rewards for delegators.
        min_node_reputation: Reputation below which a node is removed, 0 to 1.
        node_burn_rate_alpha: How fast the node fee follows the registrations, 0 to 1.
        reputation_factor: NAME=SHARE, such as absent_decrease=0.1, included_increase=0.1.
    """

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await require_owner(chain, signer, subnet_id)
        settings: dict[str, str | int | None] = {
            "name": name,
            "repo": repo,
            "description": description,
            "misc": misc,
            "churn_limit": churn_limit,
            "churn_limit_multiplier": churn_limit_multiplier,
            "registration_queue_epochs": queue_epochs,
            "queue_immunity_epochs": queue_immunity_epochs,
            "idle_classification_epochs": idle_classification_epochs,
            "included_classification_epochs": included_classification_epochs,
            "max_registered_nodes": max_registered_nodes,
            "target_node_registrations_per_epoch": target_registrations_per_epoch,
            "delegate_stake_percentage": _share(delegate_stake_percentage, "delegate-stake-percentage"),
            "min_subnet_node_reputation": _share(min_node_reputation, "min-node-reputation"),
            "node_burn_rate_alpha": _share(node_burn_rate_alpha, "node-burn-rate-alpha"),
            **_factors(reputation_factor),
        }
        steps = [
            Step(f"set {setting} of subnet {subnet_id}", calls.update_subnet(real, setting, value))
            for setting, value in settings.items()
            if value is not None
        ]
        if min_stake is not None or max_stake is not None:
            info = await chain.subnet(real)
            call = calls.update_stake_limits(
                real,
                min_planck=info.min_stake_planck if min_stake is None else planck(min_stake, name="min-stake"),
                max_planck=info.max_stake_planck if max_stake is None else planck(max_stake, name="max-stake"),
            )
            steps.append(Step(f"set the stake limits of subnet {subnet_id}", call))
        return Plan(tuple(steps))

    act(options, plan)


def pause(*, subnet_id: int, options: ActOptions | None = None) -> None:
    """Stop a subnet's epochs: nobody is elected, paid or punished until it goes on.

    Args:
        subnet_id: Friendly or real id.
    """
    _owner_act(options, subnet_id, "pause", calls.pause_subnet)


def unpause(*, subnet_id: int, options: ActOptions | None = None) -> None:
    """Let a paused subnet go on.

    Args:
        subnet_id: Friendly or real id.
    """
    _owner_act(options, subnet_id, "let go on", calls.unpause_subnet)


def deactivate(*, subnet_id: int, options: ActOptions | None = None) -> None:
    """Remove a subnet for good. Stakes and delegations can be taken out afterwards.

    Args:
        subnet_id: Friendly or real id.
    """
    _owner_act(options, subnet_id, "remove for good", calls.deactivate_subnet)


def transfer(*, subnet_id: int, to: str | None = None, accept: bool = False, options: ActOptions | None = None) -> None:
    """Offer a subnet of yours to another account, or accept one that was offered to you.

    Args:
        subnet_id: Friendly or real id.
        to: Address of the new owner.
        accept: Accept it; the new owner signs.
    """
    if (to is None) == (not accept):
        raise ConfigError("say --to ADDRESS to offer the subnet, or --accept to take one")
    new_owner = receiver(to) if to else b""

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        if accept:
            real = await chain.resolve_subnet_id(subnet_id)
            offered = await chain.storage("Network", "PendingSubnetOwner", real)
            if offered != signer.account_id:
                raise CallRefused(f"subnet {subnet_id} is not offered to {signer.address}")
            return Plan((Step(f"accept subnet {subnet_id}", calls.accept_subnet(real)),))
        real = await require_owner(chain, signer, subnet_id)
        if new_owner == signer.account_id:
            raise CallRefused(f"{signer.address} owns subnet {subnet_id} already")
        return Plan((Step(f"offer subnet {subnet_id} to {to}", calls.transfer_subnet(real, new_owner)),))

    act(options, plan)


def bootnodes(
    *,
    subnet_id: int,
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
    allow: tuple[str, ...] = (),
    disallow: tuple[str, ...] = (),
    options: ActOptions | None = None,
) -> None:
    """Change a subnet's bootnodes, or who may change them besides the owner.

    Args:
        subnet_id: Friendly or real id.
        add: Multiaddrs, /ip4/…/tcp/…/p2p/….
        remove: PeerIDs.
        allow: Accounts that may change bootnodes from now on (the owner signs).
        disallow: Accounts that may not any more.
    """
    new = [PeerInfo.parse(text) for text in add]
    gone = [PeerID.parse(text.rpartition("/p2p/")[2]) for text in remove]

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await chain.resolve_subnet_id(subnet_id)
        steps: list[Step] = []
        if new or gone:
            does = f"add {len(new)} and remove {len(gone)} bootnodes of subnet {subnet_id}"
            steps.append(Step(does, calls.update_bootnodes(real, add=new, remove=gone)))
        for text in allow:
            call = calls.add_bootnode_access(real, parse_address(text))
            steps.append(Step(f"let {text} change the bootnodes of subnet {subnet_id}", call))
        for text in disallow:
            call = calls.remove_bootnode_access(real, parse_address(text))
            steps.append(Step(f"let {text} change the bootnodes of subnet {subnet_id} no more", call))
        return Plan(tuple(steps))

    act(options, plan)


def initial_coldkeys(
    *, subnet_id: int, add: tuple[str, ...] = (), remove: tuple[str, ...] = (), options: ActOptions | None = None
) -> None:
    """Change who may register nodes before activation.

    Args:
        subnet_id: Friendly or real id.
        add: Accounts; A=2 means two nodes.
        remove: Accounts.
    """
    more, fewer = coldkeys_of(add, name="add"), [parse_address(text) for text in remove]

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await require_owner(chain, signer, subnet_id)
        steps: list[Step] = []
        if more:
            steps.append(
                Step(
                    f"let {len(more)} coldkeys register nodes in subnet {subnet_id}",
                    calls.set_initial_coldkeys(real, more),
                )
            )
        if fewer:
            steps.append(
                Step(f"take {len(fewer)} coldkeys off subnet {subnet_id}", calls.remove_initial_coldkeys(real, fewer))
            )
        return Plan(tuple(steps))

    act(options, plan)


def emergency(
    *, subnet_id: int, nodes: tuple[int, ...] = (), revert: bool = False, options: ActOptions | None = None
) -> None:
    """Elect among a few nodes only, for a bounded time, when the others went astray; or among all again.

    Args:
        subnet_id: Friendly or real id.
        nodes: Node ids.
        revert: Elect among all validators again.
    """
    if bool(nodes) == revert:
        raise ConfigError("say --nodes ID ID … or --revert")

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await require_owner(chain, signer, subnet_id)
        if revert:
            return Plan((Step(f"elect among all of subnet {subnet_id}", calls.revert_emergency_validators(real)),))
        call = calls.set_emergency_validators(real, nodes)
        return Plan((Step(f"elect among nodes {', '.join(map(str, nodes))} of subnet {subnet_id} only", call),))

    act(options, plan)


# --- shared -----------------------------------------------------------------------------------------------------


def coldkeys_of(texts: tuple[str, ...], *, name: str) -> dict[bytes, int]:
    """`A`, `A=2` as accounts and how many nodes each may register. Raises ConfigError."""
    accounts: dict[bytes, int] = {}
    for text in texts:
        address, _, count = text.partition("=")
        if count and not (count.isascii() and count.isdigit() and int(count)):
            raise ConfigError(f"--{name}: {text!r} must be ADDRESS or ADDRESS=NODES")
        account = parse_address(address)
        if account in accounts:
            raise ConfigError(f"--{name}: {address} is there twice; write {address}=2 for two nodes")
        accounts[account] = int(count or 1)
    return accounts


async def require_owner(chain: Chain, signer: AccountKey, subnet_id: int) -> int:
    """The real id of a subnet the signer owns. Raises CallRefused."""
    real = await chain.resolve_subnet_id(subnet_id)
    owner = (await chain.subnet(real)).owner
    if owner != signer.account_id:
        known = "nobody" if owner is None else checksum_address(owner)
        raise CallRefused(f"only the coldkey that owns subnet {subnet_id} may do this: {known}")
    return real


def _owner_act(options: ActOptions | None, subnet_id: int, does: str, make: Callable[[int], Call]) -> None:
    """One call of an owner that takes the subnet only."""

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await require_owner(chain, signer, subnet_id)
        return Plan((Step(f"{does} subnet {subnet_id}", make(real)),))

    act(options, plan)


def _share(text: str | None, name: str) -> int | None:
    return None if text is None else share(text, name=name)


def _factors(texts: tuple[str, ...]) -> Mapping[str, int]:
    short = {name.removesuffix("_reputation_factor"): name for name in OWNER_SHARES if name.endswith("_factor")}
    short["min_weight_decrease_threshold"] = "subnet_node_min_weight_decrease_reputation_threshold"
    found: dict[str, int] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name.replace("-", "_") not in short:
            raise ConfigError(
                f"--reputation-factor: {text!r} must be NAME=SHARE, with one of {', '.join(sorted(short))}"
            )
        found[short[name.replace("-", "_")]] = share(value, name="reputation-factor")
    return found


async def _facts(chain: Chain, subnet_id: int, *, at: bytes) -> dict[str, object]:
    """What a list of subnets shows of each."""
    info = await chain.subnet(subnet_id, at)
    return {
        "subnet_id": subnet_id,
        "friendly_id": info.friendly_id,
        "name": info.name,
        "state": info.state.name.title(),
        "nodes": await _stored(chain, "TotalActiveSubnetNodes", subnet_id, at=at),
        "delegated_planck": str(await _stored(chain, "TotalSubnetDelegateStakeBalance", subnet_id, at=at)),
    }


async def _more_facts(chain: Chain, subnet_id: int, *, at: bytes) -> dict[str, object]:
    """What one subnet is shown with besides."""
    info = await chain.subnet(subnet_id, at)
    return {
        "owner": None if info.owner is None else checksum_address(info.owner),
        "slot": info.slot,
        "start_epoch": None if info.state is SubnetState.REGISTERED else info.start_epoch,
        "min_stake_planck": str(info.min_stake_planck),
        "max_stake_planck": str(info.max_stake_planck),
        "staked_planck": str(await _stored(chain, "TotalSubnetStake", subnet_id, at=at)),
        "delegate_share": await _stored(chain, "SubnetDelegateStakeRewardsPercentage", subnet_id, at=at) / ONE,
        "validators": await _stored(chain, "TotalSubnetElectableNodes", subnet_id, at=at),
        "reputation": await _stored(chain, "SubnetReputation", subnet_id, at=at) / ONE,
        "churn_limit": await _stored(chain, "ChurnLimit", subnet_id, at=at),
        "queue_epochs": await _stored(chain, "SubnetNodeQueueEpochs", subnet_id, at=at),
        "idle_classification_epochs": await _stored(chain, "IdleClassificationEpochs", subnet_id, at=at),
        "included_classification_epochs": await _stored(chain, "IncludedClassificationEpochs", subnet_id, at=at),
        "max_registered_nodes": await _stored(chain, "MaxRegisteredNodes", subnet_id, at=at),
        "bootnodes": [text for peer in await chain.bootnodes(subnet_id) for text in peer.multiaddrs()],
    }


async def _stored(chain: Chain, item: str, subnet_id: int, *, at: bytes) -> int:
    return require_number(await chain.storage("Network", item, subnet_id, at=at), item)
