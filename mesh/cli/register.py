"""`register-subnet`, `activate-subnet`, `register-node`, `activate-node`: a subnet's way onto the chain."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.chain import calls, staking
from mesh.chain.checks import tensor_text
from mesh.chain.dialect import Call
from mesh.chain.types import NodeClass
from mesh.cli.acting import ActOptions, Outcome, Plan, Step, act
from mesh.cli.common import ChainOptions, open_chain, planck, run_until_signalled, share
from mesh.cli.keyfiles import account_in
from mesh.cli.keys import HOTKEY_FILE, PEER_FILES, require_keys_dir
from mesh.cli.subnet import coldkeys_of, require_owner
from mesh.errors import CallRefused, ConfigError
from mesh.identity import AccountKey, checksum_address, load_peer_key, parse_address
from mesh.peer import PeerID, PeerInfo

if TYPE_CHECKING:
    from mesh.chain.client import Chain
    from mesh.chain.substrate import SubstrateChain
    from mesh.chain.types import Receipt


def register_subnet(
    *,
    name: str,
    repo: str,
    description: str = "",
    misc: str = "",
    max_cost: str = "100",
    min_stake: str = "100",
    max_stake: str = "1000",
    delegate_stake_percentage: str = "0.1",
    initial_coldkeys: tuple[str, ...],
    bootnodes: tuple[str, ...],
    churn_limit: int | None = None,
    subnet_node_queue_epochs: int | None = None,
    idle_classification_epochs: int | None = None,
    included_classification_epochs: int | None = None,
    max_registered_nodes: int | None = None,
    max_node_penalties: int | None = None,
    key_types: tuple[str, ...] = (),
    options: ActOptions | None = None,
) -> None:
    """Register a subnet; the coldkey becomes its owner and pays the registration cost.

    What the chain sets after registration (churn, queue, classification, registered nodes) follows in extrinsics of
    its own, signed in the same run.

    Args:
        name: Unique name.
        repo: Unique address of the subnet's code.
        description: One line for people.
        misc: Anything else.
        max_cost: Most TENSOR to pay; the cost falls from 1 to 0.1 between registrations.
        min_stake: Least TENSOR a node stakes.
        max_stake: Most TENSOR a node stakes.
        delegate_stake_percentage: Share of rewards for delegators, 0.05 to 0.95.
        initial_coldkeys: Three accounts or more that may register nodes before activation; A=2 means two nodes.
        bootnodes: Multiaddrs of bootnodes, /ip4/…/tcp/…/p2p/….
        churn_limit: Nodes that may become active from the queue at once.
        subnet_node_queue_epochs: Epochs a new node waits in the queue.
        idle_classification_epochs: Epochs a node stays Idle.
        included_classification_epochs: Epochs a node stays Included.
        max_registered_nodes: Nodes a coldkey may have waiting.
        max_node_penalties: Of earlier networks; this one removes nodes by reputation, so it is ignored.
        key_types: Of earlier networks; all key types are accepted, so it is ignored.
    """
    accounts = coldkeys_of(initial_coldkeys, name="initial-coldkeys")
    terms = staking.SubnetTerms(
        name=name,
        repo=repo,
        description=description,
        misc=misc,
        max_cost_planck=planck(max_cost, name="max-cost"),
        min_stake_planck=planck(min_stake, name="min-stake"),
        max_stake_planck=planck(max_stake, name="max-stake"),
        delegate_stake_percentage=share(delegate_stake_percentage, name="delegate-stake-percentage"),
    )
    peers = [PeerInfo.parse(text) for text in bootnodes]
    if len({peer.peer_id for peer in peers}) != len(peers):
        raise ConfigError("--bootnodes: a bootnode has one address, and one is named twice")
    warnings = tuple(
        f"--{flag} means nothing on this chain and is ignored"
        for flag, given in (("max-node-penalties", max_node_penalties is not None), ("key-types", bool(key_types)))
        if given
    )
    later: dict[str, int | None] = {
        "churn_limit": churn_limit,
        "registration_queue_epochs": subnet_node_queue_epochs,
        "idle_classification_epochs": idle_classification_epochs,
        "included_classification_epochs": included_classification_epochs,
        "max_registered_nodes": max_registered_nodes,
    }

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        settings = ", ".join(f"{setting} {value}" for setting, value in later.items() if value is not None)
        does = f"register the subnet {name!r} for at most {tensor_text(terms.max_cost_planck)}"
        does += f"; then set its {settings}" if settings else ""
        first = Step(does, Call("register_subnet", staking.subnet_args(terms, accounts, peers)))
        for setting, value in later.items():  # a chain that cannot do it is found out before the cost is paid
            if value is not None:
                call = calls.update_subnet(0, setting, value)
                await chain.preview(call.name, call.args, signer)

        async def then(chain: SubstrateChain, receipts: Sequence[Receipt]) -> tuple[Step, ...]:
            subnet_id = staking.new_id(receipts[-1], "SubnetRegistered", "subnet_id")
            return tuple(
                Step(f"set {setting} of subnet {subnet_id}", calls.update_subnet(subnet_id, setting, value))
                for setting, value in later.items()
                if value is not None
            )

        async def after(chain: SubstrateChain, receipts: Sequence[Receipt]) -> Outcome:
            subnet_id = staking.new_id(receipts[0], "SubnetRegistered", "subnet_id")
            friendly = (await chain.subnet(subnet_id)).friendly_id
            return Outcome(
                (
                    f"subnet {staking.describe_subnet_id(subnet_id, friendly)} is registered",
                    f"next: register at least 3 nodes with `register-node --subnet_id {friendly} --keys-dir …`",
                ),
                {"subnet_id": subnet_id, "friendly_id": friendly},
            )

        return Plan((first,), warnings, then=then, after=after)

    act(options, plan)


def activate_subnet(*, subnet_id: int, options: ActOptions | None = None) -> None:
    """Activate a subnet that has enough nodes and delegated stake; its owner signs.

    Args:
        subnet_id: Friendly or real id.
    """

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        real = await require_owner(chain, signer, subnet_id)

        async def after(chain: SubstrateChain, receipts: Sequence[Receipt]) -> Outcome:
            start = (await chain.subnet(real)).start_epoch
            line = f"subnet {real} is active; its first epoch is {start}"
            return Outcome((line,), {"subnet_id": real, "start_epoch": start})

        step = Step(f"activate subnet {subnet_id}", calls.activate_subnet(real))
        return Plan((step,), await _before_activation(chain, real, subnet_id), after=after)

    act(options, plan)


async def _before_activation(chain: Chain, real: int, subnet_id: int) -> tuple[str, ...]:
    """What stands against an activation, as far as it is counted in the storage; and when a try is dangerous."""
    since = await chain.storage("Network", "SubnetRegistrationEpoch", real)
    if not isinstance(since, int):
        return ()

    async def number(item: str, *keys: object) -> int:
        value = await chain.storage("Network", item, *keys)
        return value if isinstance(value, int) else 0

    epoch = (await chain.head()).number // chain.epoch_length
    found: list[str] = []
    nodes, needed = await number("TotalActiveSubnetNodes", real), await number("MinSubnetNodes")
    if nodes < needed:
        found.append(f"subnet {subnet_id} has {nodes} of the {needed} nodes that it takes: see `register-node`")
    if epoch < (first := since + await number("MinSubnetRegistrationEpochs")):
        found.append(f"subnet {subnet_id} can be activated from epoch {first} on; this is epoch {epoch}")
    if epoch > since + await number("SubnetRegistrationEpochs"):
        found.append(
            f"the time to prepare subnet {subnet_id} is over: an activation that still lacks something removes it "
            "for good"
        )
    return tuple(found)


def register_node(
    *,
    subnet_id: int,
    keys_dir: Path | None = None,
    hotkey: str | None = None,
    peer_id: str | None = None,
    bootnode_peer_id: str | None = None,
    client_peer_id: str | None = None,
    bootnode: str | None = None,
    delegate_reward_rate: str = "0",
    stake_to_be_added: str = "100",
    max_burn_amount: str = "100",
    unique: str | None = None,
    non_unique: str | None = None,
    address: str | None = None,
    force: bool = False,
    options: ActOptions | None = None,
) -> None:
    """Register a node in a subnet and stake for it; the coldkey signs and pays.

    `--keys-dir` is a folder made by `keygen --keys-dir`; single flags override what it holds. In an active subnet the
    node must run already, and --address says where: once it is elected, a node that does not answer loses stake.

    Args:
        subnet_id: Friendly or real id.
        keys_dir: Folder with peer.key, bootnode.key, client.key and hotkey.account.
        hotkey: Address of the hotkey.
        peer_id: PeerID the node runs with.
        bootnode_peer_id: PeerID of the node's own bootnode.
        client_peer_id: PeerID of the node's client.
        bootnode: Multiaddr of the node's own bootnode.
        delegate_reward_rate: Share of the node's rewards for its delegators, 0 to 1.
        stake_to_be_added: TENSOR to stake.
        max_burn_amount: Most TENSOR the registration may burn.
        unique: Parameter no other node of the subnet may have.
        non_unique: Free parameter.
        address: Where the running node answers, /ip4/…/tcp/…; it is called before anything is signed.
        force: Register although it does not answer.
    """
    said = {"peer": peer_id, "bootnode": bootnode_peer_id, "client": client_peer_id}
    peers = {name: PeerID.parse(text) for name, text in said.items() if text}
    account = parse_address(hotkey) if hotkey else None
    if keys_dir is not None:
        require_keys_dir(keys_dir)
        peers |= _peers_in(keys_dir, given=peers)
        account = account or account_in(keys_dir / HOTKEY_FILE)
    if "peer" not in peers or account is None:
        raise ConfigError("a node needs --keys-dir (see `keygen --keys-dir`), or --hotkey and --peer_id")
    terms = staking.NodeTerms(
        hotkey=account,
        peer_id=peers["peer"],
        bootnode_peer_id=peers.get("bootnode"),
        client_peer_id=peers.get("client"),
        stake_planck=planck(stake_to_be_added, name="stake-to-be-added"),
        delegate_reward_rate=share(delegate_reward_rate, name="delegate-reward-rate"),
        max_burn_planck=planck(max_burn_amount, name="max-burn-amount"),
        bootnode=PeerInfo.parse(bootnode) if bootnode else None,
        unique=unique.encode() if unique else None,
        non_unique=non_unique.encode() if non_unique else None,
    )
    where = PeerInfo.parse(f"{address.partition('/p2p/')[0]}/p2p/{peers['peer']}") if address else None

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        from mesh.cli.readiness import obstacles, vet_new_hotkey

        real = await chain.resolve_subnet_id(subnet_id)
        warnings = await vet_new_hotkey(chain, account, coldkey=signer.account_id)
        missing = await obstacles(chain, real, peer=terms.peer_id, address=where)
        if missing and not force:
            raise CallRefused(f"the node is not ready: {'; '.join(missing)}. --force registers it all the same")
        does = f"register {terms.peer_id} in subnet {subnet_id} and stake {tensor_text(terms.stake_planck)}"
        step = Step(does, Call("register_subnet_node", staking.node_args(real, terms)), terms.stake_planck)

        async def after(chain: SubstrateChain, receipts: Sequence[Receipt]) -> Outcome:
            urls = (options or ActOptions()).chain.chain_url
            return _node_registered(staking.node_id_of(receipts[-1]), terms, subnet_id, keys_dir=keys_dir, urls=urls)

        return Plan((step,), (*missing, *warnings), after=after)

    act(options, plan)


def _peers_in(keys_dir: Path, *, given: Collection[str]) -> dict[str, PeerID]:
    """PeerIDs of a folder made by `keygen --keys-dir`, but for those given; the node's own must be there."""
    files = {name: keys_dir / file for name, file in PEER_FILES.items() if name not in given}
    return {name: load_peer_key(file).peer_id for name, file in files.items() if name == "peer" or file.exists()}


def _node_registered(
    node_id: int, terms: staking.NodeTerms, subnet_id: int, *, keys_dir: Path | None, urls: Sequence[str]
) -> Outcome:
    """That it is, and what to type next."""
    keys, hotkey = keys_dir or Path("YOUR_KEYS"), checksum_address(terms.hotkey)
    return Outcome(
        (
            f"node {node_id} is registered in subnet {subnet_id} with peer id {terms.peer_id}",
            "run it with:",
            f"  mesh-server SUBNET --subnet_id {subnet_id} --subnet_node_id {node_id} "
            f"--identity_path {keys / PEER_FILES['peer']} --hotkey-file {keys / HOTKEY_FILE} "
            f"--host_maddrs /ip4/0.0.0.0/tcp/31330" + "".join(f" --chain-url {url}" for url in urls),
            f"its hotkey {hotkey} must hold a fee before it votes; if it is empty:",
            f"  mesh transfer --to {hotkey} --amount 1",
        ),
        {"node_id": node_id, "peer_id": str(terms.peer_id)},
    )


def activate_node(
    *,
    subnet_id: int,
    subnet_node_id: int | None = None,
    hotkey: str | None = None,
    wait: bool = False,
    json: bool = False,
    chain: ChainOptions | None = None,
) -> None:
    """Say when a registered node becomes active: the chain does it by itself, there is no call for it.

    Nodes registered before the subnet's activation are validators from its first epoch. Later ones pass through the
    queue: Registered, Idle, Included, Validator.

    Args:
        subnet_id: Friendly or real id.
        subnet_node_id: Node id from `register-node`.
        hotkey: Address of the node's hotkey, instead of its id.
        wait: Wait until the node is at least Idle.
        json: Print one JSON object.
    """
    chain = chain or ChainOptions()
    if subnet_node_id is None and hotkey is None:
        raise ConfigError("say which node: --subnet_node_id ID or --hotkey ADDRESS")
    account = parse_address(hotkey) if hotkey else None

    async def run() -> None:
        async with open_chain(chain) as client:
            real = await client.resolve_subnet_id(subnet_id)
            async for _ in client.heads():
                snapshot = await client.snapshot(real)
                node = next((n for n in snapshot.nodes if account == n.hotkey or n.node_id == subnet_node_id), None)
                if node is None:
                    raise ConfigError(f"subnet {subnet_id} has no such node: register it with `register-node`")
                state = f"node {node.node_id} is {node.node_class.name.title()} since epoch {node.start_epoch}"
                if node.node_class > NodeClass.REGISTERED or not wait:
                    said = {"node_id": node.node_id, "class": node.node_class.name.title()}
                    print(
                        jsonlib.dumps({**said, "since_epoch": node.start_epoch})
                        if json
                        else f"{state}; activation is automatic, there is nothing to call"
                    )
                    return
                if not json:
                    print(f"{state}; waiting", flush=True)

    run_until_signalled(run)
