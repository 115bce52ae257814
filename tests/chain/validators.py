"""A small network pallet of the later dialect (S: validator ids), for tests of the client.

Names of calls, arguments and storage are the published ones; nothing recorded exists of this dialect. The functions do
just enough that what was called can be read back.
"""

from __future__ import annotations

from typing import Any

from mesh.devchain.pallet import Call, Constant, Context, Dispatch, Hasher, Pallet, StorageItem
from mesh.devchain.pallets import RUNTIME_VERSION, balances, books, system, timestamp, transaction_payment
from mesh.devchain.pallets.network import types as t
from mesh.devchain.runtime import Runtime
from mesh.devchain.scale import (
    Variant,
    account_id,
    bounded_bytes,
    btree_map,
    bytes_,
    opaque_peer_id,
    option,
    struct,
    u32,
    u128,
    vec,
)  # fmt: skip

AT = "pallet_network::pallet::"
SLOT = 3
LENGTH = 20
SUBNET = 128_001

identity = struct(AT + "IdentityData", name=bounded_bytes)
registration = struct(
    AT + "RegistrationSubnetData",
    name=bytes_, repo=bytes_, description=bytes_, misc=bytes_, min_stake=u128, max_stake=u128,
    delegate_stake_percentage=u128, initial_validators=btree_map(u32, u32),
    bootnodes=btree_map(opaque_peer_id, bounded_bytes),
)  # fmt: skip
validator = struct(
    AT + "ValidatorData", id=u32, coldkey=account_id, hotkey=account_id, delegate_reward_rate=u128,
    delegate_account=option(t.delegate_account),
)  # fmt: skip
node = struct(
    AT + "SubnetNode", id=u32, validator_id=u32, peer_info=t.peer_info, bootnode_peer_info=option(t.peer_info),
    client_peer_info=option(t.peer_info), classification=t.classification, unique=option(bounded_bytes),
    non_unique=option(bounded_bytes),
)  # fmt: skip
submission = struct(
    AT + "ConsensusData", validator_id=u32, block=u32, validator_epoch_progress=u128, validator_reward_factor=u128,
    validator_ids=vec(u32), attests=btree_map(u32, t.attest_entry), subnet_nodes=vec(node),
    prioritize_queue_node_id=option(u32), remove_queue_node_id=option(u32), data=vec(t.consensus_score),
    args=option(bounded_bytes),
)  # fmt: skip
node_info = struct(
    AT + "SubnetNodeInfo", validator_id=option(u32), subnet_id=u32, subnet_node_id=u32, coldkey=account_id,
    hotkey=account_id, peer_info=t.peer_info, bootnode_peer_info=option(t.peer_info),
    client_peer_info=option(t.peer_info), classification=t.classification, unique=option(bounded_bytes),
    non_unique=option(bounded_bytes), stake_balance=u128, subnet_node_reputation=option(u128),
    node_slot_index=option(u32), consecutive_idle_epochs=u32, consecutive_included_epochs=u32,
)  # fmt: skip


def _map(name: str, value: Any, *keys: Any, optional: bool = False, **more: Any) -> StorageItem:
    hashed = [(Hasher.BLAKE2_128_CONCAT if key is account_id else Hasher.IDENTITY, key) for key in keys]
    return StorageItem(name, value=value, keys=hashed, optional=optional, **more)


class Items:
    """The pallet's storage, made anew for each chain: an item belongs to one pallet."""

    def __init__(self) -> None:
        self.validators = _map("ValidatorsData", validator, u32, optional=True)
        self.of_coldkey = _map("ColdkeyValidatorId", u32, account_id, optional=True)
        self.subnets = _map("SubnetsData", t.subnet_data, u32, optional=True)
        self.friendly = _map("FriendlyUidSubnetId", u32, u32, optional=True)
        self.slot = _map("SubnetSlot", u32, u32, optional=True)
        self.owner = _map("SubnetOwner", account_id, u32, optional=True)
        self.low = _map("SubnetMinStakeBalance", u128, u32)
        self.high = _map("SubnetMaxStakeBalance", u128, u32)
        self.bootnodes = _map("SubnetBootnodes", btree_map(opaque_peer_id, bounded_bytes), u32)
        self.initial = _map("SubnetRegistrationInitialValidators", btree_map(u32, u32), u32)
        self.nodes = _map("SubnetNodesData", node, u32, u32, optional=True)
        self.stake = _map("NodeSubnetStake", u128, u32, u32)
        self.reputation = _map("SubnetNodeReputation", u128, u32, u32, default=10**18)
        self.elected = _map("SubnetElectedValidator", u32, u32, u32, optional=True)
        self.submissions = _map("SubnetConsensusSubmission", submission, u32, u32, optional=True)
        self.delegated = _map("AccountSubnetDelegateStakeShares", u128, account_id, u32)

    def all(self) -> list[StorageItem]:
        return list(vars(self).values())


def _epoch(ctx: Context) -> int:
    return (ctx.block - SLOT) // LENGTH if ctx.block >= SLOT else 0


def network() -> Pallet:
    """The pallet. Errors are raised by name; a call's argument that the chain must see is stored."""
    s = Items()

    def own(ctx: Context, origin: bytes, validator_id: int) -> dict[str, Any]:
        found = ctx.get(s.validators, validator_id)
        if found is None or origin not in (found["coldkey"], found["hotkey"]):
            raise Dispatch("NotKeyOwner")
        return dict(found)

    def register_validator(ctx: Context, origin: bytes, **args: Any) -> None:
        number = 1 + sum(1 for _ in ctx.items(s.validators))
        ctx.put(s.validators, number, value={
            "id": number, "coldkey": origin, "hotkey": args["hotkey"],
            "delegate_reward_rate": args["delegate_reward_rate"], "delegate_account": args["delegate_account"],
        })  # fmt: skip
        ctx.put(s.of_coldkey, origin, value=number)

    def register_subnet(ctx: Context, origin: bytes, *, max_cost: int, subnet_data: dict[str, Any]) -> None:
        kept = {name: subnet_data[name] for name in ("name", "repo", "description", "misc")}
        ctx.put(s.subnets, SUBNET, value={**kept, "id": SUBNET, "friendly_id": 1, "state": "Active", "start_epoch": 0})
        ctx.put(s.friendly, 1, value=SUBNET)
        ctx.put(s.slot, SUBNET, value=SLOT)
        ctx.put(s.owner, SUBNET, value=origin)
        ctx.put(s.low, SUBNET, value=subnet_data["min_stake"])
        ctx.put(s.high, SUBNET, value=subnet_data["max_stake"])
        ctx.put(s.bootnodes, SUBNET, value=subnet_data["bootnodes"])
        ctx.put(s.initial, SUBNET, value=subnet_data["initial_validators"])
        ctx.emit("SubnetRegistered", owner=origin, name=subnet_data["name"], subnet_id=SUBNET)

    def register_subnet_node(ctx: Context, origin: bytes, **args: Any) -> None:
        own(ctx, origin, args["validator_id"])
        number = 1 + sum(1 for _ in ctx.items(s.nodes, args["subnet_id"]))
        names = ("validator_id", "peer_info", "bootnode_peer_info", "client_peer_info", "unique", "non_unique")
        ctx.put(s.nodes, args["subnet_id"], number, value={
            "id": number, **{name: args[name] for name in names},
            "classification": {"node_class": "Validator", "start_epoch": 0},
        })  # fmt: skip
        ctx.put(s.stake, args["subnet_id"], number, value=args["stake_to_be_added"])
        ctx.emit("SubnetNodeRegistered", subnet_id=args["subnet_id"], subnet_node_id=number)

    def stake(sign: int, name: str) -> Any:
        def call(ctx: Context, origin: bytes, **args: Any) -> None:
            place = (args["subnet_id"], args["subnet_node_id"])
            own(ctx, origin, ctx.get(s.nodes, *place)["validator_id"])
            ctx.put(s.stake, *place, value=ctx.get(s.stake, *place) + sign * args[name])

        return call

    def add_delegate_stake(ctx: Context, origin: bytes, *, subnet_id: int, stake_to_be_added: int) -> None:
        ctx.put(s.delegated, origin, subnet_id, value=stake_to_be_added)

    def propose(ctx: Context, origin: bytes, **args: Any) -> None:
        epoch = _epoch(ctx)
        own(ctx, origin, ctx.get(s.nodes, args["subnet_id"], args["subnet_node_id"])["validator_id"])
        ctx.put(s.submissions, args["subnet_id"], epoch, value={
            "validator_id": args["subnet_node_id"], "block": ctx.block, "validator_epoch_progress": 0,
            "validator_reward_factor": 0, "validator_ids": [1, 2], "attests": {args["subnet_node_id"]: _entry(ctx)},
            "subnet_nodes": [each for _, each in ctx.items(s.nodes, args["subnet_id"])], "data": args["data"],
            "prioritize_queue_node_id": None, "remove_queue_node_id": None, "args": args["args"],
        })  # fmt: skip

    def attest(ctx: Context, origin: bytes, **args: Any) -> None:
        own(ctx, origin, ctx.get(s.nodes, args["subnet_id"], args["subnet_node_id"])["validator_id"])
        found = ctx.get(s.submissions, args["subnet_id"], _epoch(ctx))
        if found is None:
            raise Dispatch("InvalidSubnetConsensusSubmission")
        if args["subnet_node_id"] in found["attests"]:
            raise Dispatch("AlreadyAttested")
        found["attests"][args["subnet_node_id"]] = _entry(ctx)
        ctx.put(s.submissions, args["subnet_id"], _epoch(ctx), value=found)

    def nodes_info(ctx: Context, encoded: bytes) -> bytes:
        subnet_id = u32.decode_all(encoded)
        found = []
        for (_, number), each in ctx.items(s.nodes, subnet_id):
            of = ctx.get(s.validators, each["validator_id"])
            kept = {name: value for name, value in each.items() if name != "id"}
            found.append({
                **kept, "subnet_id": subnet_id, "subnet_node_id": number, "coldkey": of["coldkey"],
                "hotkey": of["hotkey"], "stake_balance": ctx.get(s.stake, subnet_id, number),
                "subnet_node_reputation": ctx.get(s.reputation, subnet_id, number), "node_slot_index": None,
                "consecutive_idle_epochs": 0, "consecutive_included_epochs": 0,
            })  # fmt: skip
        return bytes_.encode(vec(node_info).encode(found))

    subnet, number = ("subnet_id", u32), ("subnet_node_id", u32)
    other = option(t.peer_info)
    peers = (("peer_info", t.peer_info), ("bootnode_peer_info", other), ("client_peer_info", other))
    calls = (
        Call(0, "register_validator", (
            ("hotkey", account_id), ("delegate_reward_rate", u128), ("delegate_account", option(t.delegate_account)),
            ("identity", option(identity)),
        ), register_validator),
        Call(6, "register_subnet", (("max_cost", u128), ("subnet_data", registration)), register_subnet),
        Call(44, "register_subnet_node", (
            ("validator_id", u32), subnet, ("hotkey", option(account_id)), *peers, ("stake_to_be_added", u128),
            ("unique", option(bounded_bytes)), ("non_unique", option(bounded_bytes)), ("max_burn_amount", u128),
        ), register_subnet_node),
        Call(52, "add_node_stake", (subnet, number, ("stake_to_be_added", u128)), stake(1, "stake_to_be_added")),
        Call(53, "remove_node_stake", (subnet, number, ("stake_to_be_removed", u128)),
             stake(-1, "stake_to_be_removed")),
        Call(54, "add_delegate_stake", (subnet, ("stake_to_be_added", u128)), add_delegate_stake),
        Call(69, "propose_attestation", (
            subnet, number, ("data", vec(t.consensus_score)), ("prioritize_queue_node_id", option(u32)),
            ("remove_queue_node_id", option(u32)), ("args", option(bounded_bytes)),
            ("attest_data", option(bounded_bytes)),
        ), propose),
        Call(70, "attest", (subnet, number, ("data", option(bounded_bytes))), attest),
    )  # fmt: skip
    return Pallet(
        name="Network",
        index=23,
        storage=s.all(),
        calls=calls,
        events={
            "SubnetRegistered": Variant(0, {"owner": account_id, "name": bytes_, "subnet_id": u32}),
            "SubnetNodeRegistered": Variant(3, {"subnet_id": u32, "subnet_node_id": u32}),
        },
        errors=("NotKeyOwner", "InvalidSubnetConsensusSubmission", "AlreadyAttested"),
        constants={"EpochLength": Constant(u32, LENGTH)},
        apis={"NetworkRuntimeApi_get_subnet_nodes_info": nodes_info},
    )


def _entry(ctx: Context) -> dict[str, Any]:
    return {"block": ctx.block, "attestor_progress": 0, "reward_factor": 0, "data": None}


def runtime(*, epoch_length: int, **_: object) -> Runtime:
    """A runtime with it, in the place of mesh.devchain.chain.Runtime."""
    ledger = balances.BooksLedger(epoch_length)
    own = (
        system.pallet(RUNTIME_VERSION), timestamp.pallet(), balances.pallet(ledger), transaction_payment.pallet(),
        network(), books.pallet(),
    )  # fmt: skip
    return Runtime(epoch_length=epoch_length, pallets=own)
