"""`register-subnet`, `activate-subnet`, `register-node`, `activate-node`: a subnet's way onto the chain."""

from __future__ import annotations

import json as jsonlib
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from mesh.cli.common import ChainOptions, ColdkeyOptions, open_chain, planck, run_until_signalled
from mesh.cli.keyfiles import account_in
from mesh.cli.keys import HOTKEY_FILE, PEER_FILES
from mesh.errors import ConfigError
from mesh.identity import checksum_address, load_peer_key, parse_address
from mesh.peer import PeerID, PeerInfo


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
    json: bool = False,
    coldkey: ColdkeyOptions | None = None,
    chain: ChainOptions | None = None,
) -> None:
    """Register a subnet; the coldkey becomes its owner and pays the registration cost.

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
        json: Print one JSON object.
    """
    from mesh.chain import staking

    coldkey, chain = coldkey or ColdkeyOptions(), chain or ChainOptions()
    owner = coldkey.key()
    accounts: dict[bytes, int] = {}
    for text in initial_coldkeys:
        address, _, count = text.partition("=")
        if count and not count.isdigit():
            raise ConfigError(f"--initial-coldkeys: {text!r} must be ADDRESS or ADDRESS=NODES")
        accounts[parse_address(address)] = int(count or 1)
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

    async def run() -> None:
        async with open_chain(chain, secret_on_argv=coldkey.on_argv()) as client:
            subnet_id, receipt = await staking.register_subnet(
                client, owner, terms=terms, initial_coldkeys=accounts, bootnodes=peers
            )
            info = await client.subnet(subnet_id)
        if json:
            print(jsonlib.dumps({"subnet_id": subnet_id, "friendly_id": info.friendly_id, **_paid(receipt)}))
            return
        print(f"subnet {staking.describe_subnet_id(subnet_id, info.friendly_id)} is registered")
        print(f"next: register at least 3 nodes with `register-node --subnet_id {info.friendly_id} --keys-dir …`")

    run_until_signalled(run)


def activate_subnet(
    *,
    subnet_id: int,
    json: bool = False,
    coldkey: ColdkeyOptions | None = None,
    chain: ChainOptions | None = None,
) -> None:
    """Activate a subnet that has enough nodes and delegated stake; its owner signs.

    Args:
        subnet_id: Friendly or real id.
        json: Print one JSON object.
    """
    from mesh.chain import staking

    coldkey, chain = coldkey or ColdkeyOptions(), chain or ChainOptions()
    owner = coldkey.key()

    async def run() -> None:
        async with open_chain(chain, secret_on_argv=coldkey.on_argv()) as client:
            receipt = await staking.activate_subnet(client, owner, subnet_id=subnet_id)
            info = await client.subnet(await client.resolve_subnet_id(subnet_id))
        if json:
            print(jsonlib.dumps({"subnet_id": info.subnet_id, "start_epoch": info.start_epoch, **_paid(receipt)}))
            return
        print(f"subnet {info.subnet_id} is active; its first epoch is {info.start_epoch}")

    run_until_signalled(run)


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
    json: bool = False,
    coldkey: ColdkeyOptions | None = None,
    chain: ChainOptions | None = None,
) -> None:
    """Register a node in a subnet and stake for it; the coldkey signs and pays.

    `--keys-dir` is a folder made by `keygen --keys-dir`; single flags override what it holds.

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
        json: Print one JSON object.
    """
    from mesh.chain import staking

    coldkey, chain = coldkey or ColdkeyOptions(), chain or ChainOptions()
    signer = coldkey.key()
    peers: dict[str, PeerID | None] = {
        "peer": PeerID.parse(peer_id) if peer_id else None,
        "bootnode": PeerID.parse(bootnode_peer_id) if bootnode_peer_id else None,
        "client": PeerID.parse(client_peer_id) if client_peer_id else None,
    }
    account = parse_address(hotkey) if hotkey else None
    if keys_dir is not None:
        for name, file in PEER_FILES.items():
            if peers[name] is None and (name == "peer" or (keys_dir / file).exists()):
                peers[name] = load_peer_key(keys_dir / file).peer_id
        account = account or account_in(keys_dir / HOTKEY_FILE)
    if peers["peer"] is None or account is None:
        raise ConfigError("a node needs --keys-dir (see `keygen --keys-dir`), or --hotkey and --peer_id")
    terms = staking.NodeTerms(
        hotkey=account,
        peer_id=peers["peer"],
        bootnode_peer_id=peers["bootnode"],
        client_peer_id=peers["client"],
        stake_planck=planck(stake_to_be_added, name="stake-to-be-added"),
        delegate_reward_rate=share(delegate_reward_rate, name="delegate-reward-rate"),
        max_burn_planck=planck(max_burn_amount, name="max-burn-amount"),
    )
    terms = replace(
        terms,
        bootnode=PeerInfo.parse(bootnode) if bootnode else None,
        unique=unique.encode() if unique else None,
        non_unique=non_unique.encode() if non_unique else None,
    )

    async def run() -> None:
        async with open_chain(chain, secret_on_argv=coldkey.on_argv()) as client:
            node_id, receipt = await staking.register_node(client, signer, subnet_id=subnet_id, terms=terms)
        if json:
            print(jsonlib.dumps({"node_id": node_id, "peer_id": str(terms.peer_id), **_paid(receipt)}))
            return
        keys = keys_dir or Path("YOUR_KEYS")
        print(f"node {node_id} is registered in subnet {subnet_id} with peer id {terms.peer_id}")
        print("run it with:")
        print(
            f"  mesh-server SUBNET --subnet_id {subnet_id} --subnet_node_id {node_id} "
            f"--identity_path {keys / PEER_FILES['peer']} --hotkey-file {keys / HOTKEY_FILE} "
            f"--host_maddrs /ip4/0.0.0.0/tcp/31330" + "".join(f" --chain-url {url}" for url in chain.chain_url)
        )
        print(f"its hotkey {checksum_address(account)} must be able to pay a fee before it votes; if it holds nothing:")
        print(f"  mesh transfer --to {checksum_address(account)} --amount 1")

    run_until_signalled(run)


def activate_node(
    *,
    subnet_id: int,
    subnet_node_id: int | None = None,
    hotkey: str | None = None,
    wait: bool = False,
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
    """
    from mesh.chain.types import NodeClass

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
                    print(f"{state}; activation is automatic, there is nothing to call")
                    return
                print(f"{state}; waiting", flush=True)

    run_until_signalled(run)


def share(text: str, *, name: str) -> int:
    """`0.125` as a fraction of 1e18, exactly. Raises ConfigError."""
    from mesh.chain.types import ONE

    try:
        value = Decimal(text) * ONE
    except InvalidOperation as error:
        raise ConfigError(f"--{name}: {text!r} is no number") from error
    if not value.is_finite() or not 0 <= value <= ONE or value != value.to_integral_value():
        raise ConfigError(f"--{name}: {text!r} must be between 0 and 1")
    return int(value)


def _paid(receipt: object) -> dict[str, object]:
    from mesh.chain.types import Receipt

    assert isinstance(receipt, Receipt)
    return {
        "fee_planck": str(receipt.fee_planck),
        "block": receipt.block.number,
        "extrinsic": "0x" + receipt.extrinsic_hash.hex(),
    }
